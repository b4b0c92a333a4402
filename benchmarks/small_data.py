"""Ten training images per class: exact kernels next to a tuned SVM, on the digits of scikit-learn.

usage: python benchmarks/small_data.py --out RECORD
       python benchmarks/small_data.py --table RECORD

Each of 20 draws takes 100 of the 1,797 images for training, 10 of each class, and tests on the
others. Every choice (ridge, depth, C, gamma) is made on the training images alone. The kernels of
all images are computed once, and each fit takes its part of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import widelimit as wl
from widelimit.data.dataset import split_by_class
from widelimit.experiments.baselines import Baseline, fit_baseline
from widelimit.experiments.environment import describe_environment
from widelimit.files import check_file, write_atomically
from widelimit.keeping import keep

DRAWS = 20
PER_CLASS = 10
GAP_DEPTHS = (3, 4, 6, 11)
BASELINES: tuple[Baseline, ...] = ("svm", "logistic")
# Method -> how it is called in the table.
LABELS = {
    "gap": "CNTK-GAP, depth 11",
    "gap-ridge": "CNTK-GAP, depth 11, ridge by leave-one-out",
    "gap-choice": "CNTK-GAP, depth and ridge by leave-one-out",
    "vanilla": "CNTK-V, depth 11",
    "dense": "NTK, 3 hidden layers",
    "svm": "RBF-SVM, tuned",
    "logistic": "logistic regression, tuned",
}


def kernels(x: Any) -> dict[str, Any]:
    """Return the Gram matrix of all images for each network, by its name."""
    nets = {f"gap-{depth}": wl.cntk_gap(depth) for depth in GAP_DEPTHS}
    nets["vanilla-11"] = wl.cntk_vanilla(11)
    grams = dict(zip(nets, wl.kernel(list(nets.values()), x), strict=True))
    # Float64 is what NTKClassifier takes for dense networks.
    return {**grams, "dense-3": wl.kernel(wl.ntk_dense(3), x, dtype="float64")}


def compare(grams: dict[str, Any], x: Any, y: Any, seed: int) -> dict[str, Any]:
    """Return the test accuracy of every method, and its choices, for the draw of this seed."""
    train, test = split_by_class(y, train_per_class=PER_CLASS, seed=seed)
    results: dict[str, Any] = {}

    def fit(name: str, ridge: Any = 0.0) -> tuple[float, dict[str, Any]]:
        k = grams[name]
        model = wl.NTKClassifier(kernel="precomputed", ridge=ridge)
        model.fit(k[np.ix_(train, train)], y[train])
        accuracy = model.score(k[np.ix_(test, train)], y[test])
        return model.loo_score_, {"accuracy": accuracy, "net": name, "ridge": model.ridge_}

    for method, name in (("gap", "gap-11"), ("vanilla", "vanilla-11"), ("dense", "dense-3")):
        results[method] = fit(name)[1]
    # The one with the best loo_score_ is what NTKClassifier takes of a list of networks.
    tried = {depth: fit(f"gap-{depth}", "loo") for depth in GAP_DEPTHS}
    results["gap-ridge"] = tried[11][1]
    results["gap-choice"] = max(tried.values(), key=lambda one: one[0])[1]
    rows = x.reshape(len(x), -1)
    for kind in BASELINES:
        tuned = fit_baseline(kind, rows[train], y[train], rows[test], seed=seed)
        accuracy = float(np.mean(tuned.predicted == y[test]))
        results[kind] = {"accuracy": accuracy, **tuned.setting, "unconverged": tuned.unconverged}
    return {"seed": seed, "n_test": len(test), "results": results}


def measure() -> dict[str, Any]:
    """Return the record of all draws."""
    environment = dataclasses.asdict(describe_environment())
    data = wl.load_dataset("digits")
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    grams = kernels(x)
    draws = [compare(grams, x, y, seed) for seed in range(DRAWS)]
    about = {"data": "digits", "images": len(x), "train_per_class": PER_CLASS}
    return {"environment": environment, **about, "draws": draws}


def table(record: dict[str, Any]) -> str:
    """Return what a record says as a table for docs/results.md."""

    def accuracies(method: str) -> Any:
        return np.array([draw["results"][method]["accuracy"] for draw in record["draws"]])

    svm = accuracies("svm")
    lines = [
        "| method | test accuracy | standard deviation | minus the SVM, points "
        "| wins, ties, losses |",
        "|---|---|---|---|---|",
    ]
    for method, label in LABELS.items():
        mine = accuracies(method)
        against = " | "
        if method != "svm":
            gain = mine - svm
            error = gain.std(ddof=1) / math.sqrt(len(gain))
            counts = [int(np.sum(np.sign(gain) == sign)) for sign in (1, 0, -1)]
            against = f"{gain.mean():+.2%} ± {error:.2%} | ".replace("%", "")
            against += ", ".join(map(str, counts))
        lines.append(f"| {label} | {mine.mean():.2%} | {mine.std(ddof=1):.2%} | {against} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the record")
    parser.add_argument("--table", type=Path, help="print the table of a record")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())))
        return
    if arguments.out is None:
        parser.error("give --out or --table")
    check_file(arguments.out)
    record = measure()
    text = json.dumps(record, indent=1) + "\n"
    keep(arguments.out, lambda path: write_atomically(path, text))
    print(table(record))


if __name__ == "__main__":
    main()
