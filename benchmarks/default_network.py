"""Which network is a good default for images: Myrtle networks beside CNTK-GAP, on few of them.

usage: python benchmarks/default_network.py --cifar10 CIFAR10.npz --out RECORD
       python benchmarks/default_network.py --table RECORD

Digits, Fashion-MNIST and CIFAR-10 (an ``.npz`` file with uint8 images ``X_train`` and labels
``y_train``), pixels in [0, 1] as they are. A pool of 1,000 training images, 100 of each class, is
drawn from each, and its kernels are computed once, those of networks that begin alike in one pass:
ten sets of 100 images and two of 500 are parts of it. Each is scored by leaving one out, and on
those of the pool that it has not; ridge 0, the default, and that of leave-one-out. The cost is that
of one network, from a kernel of its own between some images. What was measured is kept after each
pass, and a run that was stopped goes on; ``--data digits`` measures some of the sets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import widelimit as wl
from widelimit.experiments.environment import describe_environment
from widelimit.files import check_file, write_atomically
from widelimit.program import compile_family

PASSES = (  # of networks by name; those that begin alike
    {"CNTK-GAP-11": wl.cntk_gap(11), "CNTK-GAP-4": wl.cntk_gap(4)},
    {"Myrtle-5": wl.myrtle(5), "Myrtle-7": wl.myrtle(7), "Myrtle-10": wl.myrtle(10)},
    {"Myrtle-5, Gaussian": wl.myrtle(5, wl.Gaussian())},
)
BASE = "CNTK-GAP-11"
DATA = ("digits", "fashion-mnist", "cifar10")
SIZES = (100, 500, 1000)  # the last one is the pool
RIDGES = (0.0, "loo")
TIMED = 64  # images of the pool whose kernel is timed
SEED = 0


def load(name: str, cifar10: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return images, float64 in [0, 1], and labels."""
    if name == "cifar10":
        if cifar10 is None:
            raise SystemExit("give --cifar10, or --data for the other sets")
        with np.load(cifar10, allow_pickle=False) as held:
            return held["X_train"] / 255.0, held["y_train"]
    data = wl.load_dataset(name)
    return data.x_train, data.y_train


def draw(y: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return places of a pool (n / classes, classes): a row has one image of each class."""
    rng = np.random.default_rng(seed)
    classes = np.unique(y)
    rows = n // len(classes)
    return np.stack(
        [rng.permutation(np.flatnonzero(y == label))[:rows] for label in classes], axis=1
    )


def score(k: np.ndarray, y: np.ndarray, train: np.ndarray, ridge: float | str) -> dict[str, Any]:
    """Return what leaving one out, and the rest of the pool, say of some images of it."""
    model = wl.NTKClassifier(kernel="precomputed", ridge=ridge)
    model.fit(k[np.ix_(train, train)], y[train])
    rest = np.setdiff1d(np.arange(len(y)), train)
    right = model.classes_[model.loo_predictions_.argmax(axis=1)] == y[train]
    return {
        "loo_accuracy": float(right.mean()),
        "loo_score": float(model.loo_score_),
        "chosen": float(model.ridge_),
        "right": "".join("01"[int(hit)] for hit in right),
        "accuracy": float(model.score(k[np.ix_(rest, train)], y[rest])) if len(rest) else None,
    }


def compare(
    x: np.ndarray, y: np.ndarray, net: wl.Network, k: np.ndarray, sizes: Sequence[int]
) -> dict[str, Any]:
    """Return what a kernel costs, and the scores of parts of a pool; y goes round classes."""
    start = time.process_time()
    some = len(wl.kernel(net, x[:TIMED]))
    seconds = time.process_time() - start
    rows: list[dict[str, Any]] = []
    for n in sizes:
        for part in range(len(y) // n):
            train = np.arange(part * n, (part + 1) * n)
            for ridge in RIDGES:
                rows.append({"n": n, "part": part, "ridge": ridge} | score(k, y, train, ridge))
    return {
        "element_layers": compile_family([net], x.shape[1:], ("ntk",)).element_layers,
        "cpu_ms_a_pair": 1e3 * seconds / (some * (some + 1) // 2),
        "rows": rows,
    }


def measure(
    out: Path,
    cifar10: Path | None,
    data: Sequence[str] = DATA,
    sizes: Sequence[int] = SIZES,
) -> dict[str, Any]:
    """Measure all networks on some sets, and keep each in the file."""
    record: dict[str, Any] = {"format": "widelimit.default_network/1", "runs": []}
    if out.exists():
        record = json.loads(out.read_text())
    record["environment"] = dataclasses.asdict(describe_environment())
    record |= {"seed": SEED, "sizes": list(sizes)}
    done = {(run["data"], run["net"]) for run in record["runs"]}
    for name in data:
        images, labels = load(name, cifar10)
        pool = draw(labels, sizes[-1], SEED).ravel()
        for nets in PASSES:
            if all((name, label) in done for label in nets):
                continue
            kernels = wl.kernel(list(nets.values()), images[pool])
            for (label, net), k in zip(nets.items(), kernels, strict=True):
                found = compare(images[pool], labels[pool], net, k, sizes)
                run = {"data": name, "net": label, "network": net.to_json()}
                record["runs"].append(run | found)
                print(f"{name}, {label}: {found['cpu_ms_a_pair']:.3g} ms a pair", flush=True)
            write_atomically(out, json.dumps(record, indent=1) + "\n")
    return record


def table(record: dict[str, Any]) -> str:
    """Return what a record says as tables for docs/results.md."""
    runs = {(run["data"], run["net"]): run for run in record["runs"]}
    lines = [
        "| data | images | network | by leave-one-out | other images | ridge by leave-one-out | "
        "other images | better than CNTK-GAP-11, points | element-layers a pair | ms a pair |",
        "|---" * 10 + "|",
    ]
    for name in dict.fromkeys(run["data"] for run in record["runs"]):
        for n in record["sizes"]:
            for (of, net), run in runs.items():
                if of != name:
                    continue
                cells: list[str] = []
                for ridge in RIDGES:
                    rows = [r for r in run["rows"] if (r["n"], r["ridge"]) == (n, ridge)]
                    cells.append(_mean([row["loo_accuracy"] for row in rows]))
                    cells.append(_mean([row["accuracy"] for row in rows]))
                cells.append("" if net == BASE else _difference(run, runs.get((of, BASE)), n))
                cost = f"{run['element_layers']:,} | {run['cpu_ms_a_pair']:.3g}"
                lines.append(f"| {name} | {n:,} | {net} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.1%}" if known else "-"


def _difference(run: dict[str, Any], base: dict[str, Any] | None, n: int) -> str:
    """Return how many points more of left-out images are right, with its standard error.

    With ridges by leave-one-out; over the images of the pool, in which both networks are compared.
    """
    if base is None:
        return "-"
    hits = [
        np.array(
            list("".join(r["right"] for r in of["rows"] if (r["n"], r["ridge"]) == (n, "loo")))
        )
        == "1"
        for of in (run, base)
    ]
    gain = hits[0].astype(float) - hits[1].astype(float)
    error = gain.std(ddof=1) / np.sqrt(gain.size)
    return f"{100 * gain.mean():+.1f} ± {100 * error:.1f}"


def main() -> None:
    """Measure, or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, help=".npz file with X_train and y_train")
    parser.add_argument("--data", action="append", choices=DATA, help="may be repeated: all")
    parser.add_argument("--out", type=Path, help="write the record")
    parser.add_argument("--table", type=Path, help="print the table of a record")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())), end="")
        return
    data = arguments.data or DATA
    if arguments.out is None or ("cifar10" in data and arguments.cifar10 is None):
        parser.error("give --cifar10 and --out, or --table")
    check_file(arguments.out, replace=True)
    print(table(measure(arguments.out, arguments.cifar10, data)), end="")


if __name__ == "__main__":
    main()
