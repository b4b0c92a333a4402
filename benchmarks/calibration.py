"""Are the probabilities of NTKClassifier those with which it is right? On digits and Fashion-MNIST.

usage: python benchmarks/calibration.py --out RECORD
       python benchmarks/calibration.py --table RECORD
       python benchmarks/calibration.py --plot RECORD FILE.svg

predict_proba is the softmax of the outputs over a temperature that is fitted to leave-one-out
predictions of the training images. It is measured on test images, next to the softmax of the
outputs as they are (temperature 1) and to the temperature that is best for the test images
("oracle": it has seen their labels, so it can't be had).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

import widelimit as wl
from widelimit.data.dataset import split_by_class
from widelimit.estimators.calibration import log_softmax
from widelimit.experiments.environment import describe_environment
from widelimit.files import check_file, write_atomically
from widelimit.keeping import keep

BINS = 15
DIGITS_SEEDS = range(5)
DIGITS_PER_CLASS = (10, 50)
FASHION_SEED = 0
FASHION_PER_CLASS = (100, 500)  # five draws of the first make one of the second
LABELS = {"loo": "leave-one-out", "one": "1", "oracle": "oracle"}
TITLES = {"digits": "digits, CNTK-GAP depth 11", "fashion-mnist": "Fashion-MNIST, CNTK-V depth 11"}


def assess(outputs: Any, labels: Any, temperature: float) -> dict[str, Any]:
    """Measure the probabilities that outputs (n, c) have at a temperature.

    ``nll``: mean of -log p of the true class. ``brier``: mean over samples of the sum over classes
    of (p - [true class])^2. ``ece``: mean over samples of |accuracy - confidence| of their bin; the
    confidence is the largest probability, and the bins are 15 of equal width. ``bins``: of each,
    the number of samples, how many are right, and the sum of their confidences.
    """
    logs = log_softmax(outputs, temperature)
    p = np.exp(logs)
    places = np.arange(len(labels))
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count, hits, total = (
        np.bincount(which, weights, BINS) for weights in (None, right, confidence)
    )
    wrong = p.copy()
    wrong[places, labels] -= 1
    return {
        "temperature": temperature,
        "nll": float(-logs[places, labels].mean()),
        "brier": float((wrong**2).sum(axis=1).mean()),
        "ece": float(np.abs(hits - total).sum() / len(labels)),
        "confidence": float(confidence.mean()),
        "bins": {"count": count.tolist(), "right": hits.tolist(), "confidence": total.tolist()},
    }


def best_temperature(outputs: Any, labels: Any) -> float:
    """Return the temperature with the smallest negative log-likelihood."""
    places = np.arange(len(labels))

    def nll(log_temperature: float) -> float:
        return -log_softmax(outputs, np.exp(log_temperature))[places, labels].mean()

    return float(np.exp(minimize_scalar(nll, bounds=(-14, 7), method="bounded").x))


def draw(data: str, k: Any, k_test: Any, y: Any, y_test: Any, seed: int) -> dict[str, Any]:
    """Fit on one training set, and assess three temperatures on the test images."""
    model = wl.NTKClassifier(kernel="precomputed").fit(k, y)
    outputs = model.decision_function(k_test)
    temperatures = {
        "loo": float(model.temperature_),
        "one": 1.0,
        "oracle": best_temperature(outputs, y_test),
    }
    return {
        "data": data,
        "seed": seed,
        "n_train": len(y),
        "n_test": len(y_test),
        "accuracy": model.score(k_test, y_test),
        "loo_accuracy": model.loo_accuracy_,
        "results": {name: assess(outputs, y_test, t) for name, t in temperatures.items()},
    }


def digits() -> list[dict[str, Any]]:
    """Return draws of training images from all 1,797; the others are for testing."""
    data = wl.load_dataset("digits")
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    k = wl.kernel(wl.cntk_gap(11), x)
    draws = []
    for per_class in DIGITS_PER_CLASS:
        for seed in DIGITS_SEEDS:
            train, test = split_by_class(y, train_per_class=per_class, seed=seed)
            parts = k[np.ix_(train, train)], k[np.ix_(test, train)]
            draws.append(draw("digits", *parts, y[train], y[test], seed))
    return draws


def fashion() -> list[dict[str, Any]]:
    """Return five draws of 1,000 training images that share none, and one of all 5,000."""
    data = wl.load_dataset("fashion-mnist")
    small, large = FASHION_PER_CLASS
    train, _ = split_by_class(data.y_train, train_per_class=large, seed=FASHION_SEED)
    x, y = data.x_train[train], data.y_train[train]
    net = wl.cntk_vanilla(11)
    k, k_test = wl.kernel(net, x), wl.kernel(net, data.x_test, x)
    rng = np.random.default_rng(FASHION_SEED)
    shuffled = np.stack([rng.permutation(np.flatnonzero(y == c)) for c in range(data.n_classes)])
    subsets = [part.ravel() for part in np.split(shuffled, large // small, axis=1)]
    return [
        draw("fashion-mnist", k[np.ix_(s, s)], k_test[:, s], y[s], data.y_test, FASHION_SEED)
        for s in (*subsets, np.arange(len(y)))
    ]


def table(record: dict[str, Any]) -> str:
    """Return what a record says as a table for docs/results.md: means over draws."""
    lines = [
        "| images | training | draws | accuracy | temperature | its value | NLL | Brier | ECE "
        "| confidence |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in record["draws"]:
        groups.setdefault((one["data"], one["n_train"]), []).append(one)
    for (data, n_train), draws in groups.items():
        accuracy = np.mean([one["accuracy"] for one in draws])
        for name, label in LABELS.items():
            results = [one["results"][name] for one in draws]
            value, nll, brier, ece, confidence = (
                np.mean([result[key] for result in results])
                for key in ("temperature", "nll", "brier", "ece", "confidence")
            )
            lines.append(
                f"| {data} | {n_train:,} | {len(draws)} | {accuracy:.2%} | {label} | {value:.3f} "
                f"| {nll:.3f} | {brier:.3f} | {ece:.3f} | {confidence:.2%} |"
            )
    return "\n".join(lines)


def digest(path: Path) -> str:
    """Return what a picture says of the record that it shows."""
    return f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


def reliability(draws: list[dict[str, Any]]) -> Any:
    """Draw accuracy against confidence, for each training size the bins of all its draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (data, title) in zip(panels, TITLES.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        axes.text(0.2, 0.11, "calibrated", rotation=45, color="0.4", ha="center", va="center")
        mine = [one for one in draws if one["data"] == data]
        sizes = sorted({one["n_train"] for one in mine})
        styles = zip(sizes, "os", ("C0", "C1"), strict=True)
        for n_train, marker, colour in styles:
            for name, filled in (("loo", True), ("one", False)):
                bins = [one["results"][name]["bins"] for one in mine if one["n_train"] == n_train]
                count, right, total = (
                    np.sum([b[key] for b in bins], axis=0)
                    for key in ("count", "right", "confidence")
                )
                some = count >= 20  # fewer say nothing about a share
                axes.plot(
                    total[some] / count[some],
                    right[some] / count[some],
                    marker=marker,
                    color=colour,
                    markerfacecolor=colour if filled else "white",
                    markersize=4.5,
                    linewidth=1.2 if filled else 0,
                    label=f"{n_train:,}, " + ("leave-one-out" if filled else "always 1"),
                    clip_on=False,
                    zorder=3,
                )
        axes.set(title=title, xlabel="confidence: the largest probability", aspect="equal")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", title="training images, temperature", fontsize=8)
    panels[0].set_ylabel("test images that are right, share")
    return figure


def plot(path: Path, out: Path) -> None:
    """Write the reliability diagram of a record."""
    import matplotlib as mpl

    record = json.loads(path.read_text())
    with mpl.rc_context({"svg.hashsalt": "widelimit", "svg.fonttype": "none", "font.size": 9}):
        figure = reliability(record["draws"])
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Source": digest(path)})
    write_atomically(out, drawn.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the record")
    parser.add_argument("--table", type=Path, help="print the table of a record")
    parser.add_argument("--plot", type=Path, nargs=2, help="draw a record into an SVG file")
    arguments = parser.parse_args()
    if arguments.plot is not None:
        plot(*arguments.plot)
    elif arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())))
    elif arguments.out is not None:
        check_file(arguments.out)
        environment = dataclasses.asdict(describe_environment())
        record = {"environment": environment, "draws": [*digits(), *fashion()]}
        text = json.dumps(record, indent=1) + "\n"
        keep(arguments.out, lambda path: write_atomically(path, text))
        print(table(record))
    else:
        parser.error("give --out, --table or --plot")


if __name__ == "__main__":
    main()
