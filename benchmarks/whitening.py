"""What regularised ZCA does to small sets of images: CNTK-V and CNTK-GAP, ridge by leave-one-out.

usage: python benchmarks/whitening.py --cifar10 CIFAR10.npz --out RECORD
       python benchmarks/whitening.py --table RECORD

Digits, Fashion-MNIST and CIFAR-10 (an ``.npz`` file with uint8 images ``X_train`` and labels
``y_train``); class-balanced training sets of 100 and 500 images, drawn from the training images,
and test images drawn from the others. The choice of leave-one-out is that of the whitening with the
best ``loo_score_``. What was measured is kept after each set, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

import widelimit as wl
from widelimit.experiments.environment import describe_environment
from widelimit.files import check_file, write_atomically

WHITENINGS = (None, 0.01, 0.1, 1.0)
NETS = {"CNTK-V-4": wl.cntk_vanilla(4), "CNTK-GAP-4": wl.cntk_gap(4)}
DRAWS = {100: 3, 500: 1}
N_TEST = 300
DATA = ("digits", "fashion-mnist", "cifar10")


def load(name: str, cifar10: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images, float64 in [0, 1], and labels."""
    if name == "cifar10":
        with np.load(cifar10, allow_pickle=False) as held:
            return held["X_train"] / 255.0, held["y_train"]
    data = wl.load_dataset(name)
    return data.x_train, data.y_train


def draw(y: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return places of n training images, as many of each class, and of test images."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    train = np.concatenate([order[y[order] == label][: n // 10] for label in np.unique(y)])
    return train, np.setdiff1d(order, train)[rng.permutation(len(y) - len(train))[:N_TEST]]


def compare(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, r: float | None
) -> dict[str, Any]:
    """Return the accuracy of each network after one whitening."""
    a, b = x[train], x[test]
    if r is not None:
        zca = wl.ZCA(r).fit(a)
        a, b = zca.transform(a), zca.transform(b)
    results: dict[str, Any] = {}
    inner, cross = wl.kernel(list(NETS.values()), a), wl.kernel(list(NETS.values()), b, a)
    for name, k, across in zip(NETS, inner, cross, strict=True):
        model = wl.NTKClassifier(kernel="precomputed", ridge="loo").fit(k, y[train])
        results[name] = {
            "accuracy": float(model.score(across, y[test])),
            "loo_accuracy": float(model.loo_accuracy_),
            "loo_score": float(model.loo_score_),
            "ridge": float(model.ridge_),
        }
    return results


def measure(out: Path, cifar10: Path) -> dict[str, Any]:
    """Measure all sets, and keep each in the file."""
    record: dict[str, Any] = {"format": "widelimit.whitening/1", "rows": []}
    if out.exists():
        record = json.loads(out.read_text())
    record["environment"] = dataclasses.asdict(describe_environment())
    record |= {"n_test": N_TEST, "draws": {str(n): count for n, count in DRAWS.items()}}
    done = {(row["data"], row["n"], row["seed"], row["whitening"]) for row in record["rows"]}
    for n in DRAWS:
        for name in DATA:
            x, y = load(name, cifar10)
            for seed in range(DRAWS[n]):
                train, test = draw(y, n, seed)
                for r in WHITENINGS:
                    if (name, n, seed, r) in done:
                        continue
                    found = compare(x, y, train, test, r)
                    row = {"data": name, "n": n, "seed": seed, "whitening": r, "results": found}
                    record["rows"].append(row)
                    write_atomically(out, json.dumps(record, indent=1) + "\n")
                    print(row, flush=True)
    return record


def table(record: dict[str, Any]) -> str:
    """Return what a record says as a table for docs/results.md."""
    heads = ["none" if r is None else f"r = {r:g}" for r in WHITENINGS]
    lines = [
        f"| data | images | draws | network | {' | '.join(heads)} | by leave-one-out |",
        "|---" * (len(heads) + 5) + "|",
    ]
    for name in DATA:
        for n in DRAWS:
            rows = [row for row in record["rows"] if (row["data"], row["n"]) == (name, n)]
            seeds = sorted({row["seed"] for row in rows})
            for net in NETS:
                by = {(row["seed"], row["whitening"]): row["results"][net] for row in rows}
                cells = [
                    f"{np.mean([by[seed, r]['accuracy'] for seed in seeds]):.1%}"
                    for r in WHITENINGS
                ]
                chosen = [
                    max((by[seed, r] for r in WHITENINGS), key=lambda one: one["loo_score"])
                    for seed in seeds
                ]
                cells.append(f"{np.mean([one['accuracy'] for one in chosen]):.1%}")
                lines.append(f"| {name} | {n} | {len(seeds)} | {net} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, help=".npz file with X_train and y_train")
    parser.add_argument("--out", type=Path, help="write the record")
    parser.add_argument("--table", type=Path, help="print the table of a record")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())), end="")
        return
    if arguments.out is None or arguments.cifar10 is None:
        parser.error("give --cifar10 and --out, or --table")
    check_file(arguments.out)
    print(table(measure(arguments.out, arguments.cifar10)), end="")


if __name__ == "__main__":
    main()
