"""How far random trees are from the naive witness of the tests, by what they have.

usage: python benchmarks/general.py [--trees 500] [--out docs/records/general.json]

Each tree is drawn by its number, with images to fit (tests/trees.py), and computed by the reference
backend, and by the compiled engine in float64 and float32; the witness is the 4-D recursion of
tests/naive.py. Errors of NNGP and NTK are relative to ``sqrt(k(x, x) k(z, z))``.

Prints a table, writes a record, and ends with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from widelimit.backends import get_backend
from widelimit.backends.base import Dtype
from widelimit.bench.record import write_json
from widelimit.experiments.environment import describe_environment
from widelimit.network import Network
from widelimit.testing.compare import KINDS, compute

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import naive
from trees import FEATURES, features, samples, tree

# Columns of the table: backend, dtype, and the largest error that is promised.
COLUMNS: dict[str, tuple[Any, Dtype, float]] = {
    "reference": ("reference", "float64", 1e-12),
    "float64": ("cpu", "float64", 1e-11),
    "float32": ("cpu", "float32", 1e-5),
}
REFERENCE = 60  # trees that the reference computes: it is slow
SERIES = 5  # every fifth tree is of series


def errors(
    network: Network, shape: tuple[int, ...], seed: int, reference: bool
) -> tuple[set[str], dict[str, float]]:
    """Return what a tree has, and the largest error of each column that computes it."""
    x, z = samples(shape, 4, seed), samples(shape, 3, seed + 1)
    z[0] = x[1]  # known to both sides
    if len(shape) == 2:
        x, z = x[:, None], z[:, None]
    wanted = naive.kernels(network, x, z)
    found: dict[str, float] = {}
    for name, (backend, dtype, _) in COLUMNS.items():
        if reference or backend != "reference":
            values = compute(get_backend(backend), [network], x, z, dtype=dtype)[0]
            found[name] = max(
                float((np.abs(value - getattr(wanted, kind)) / np.where(scale > 0, scale, 1)).max())
                for kind, value in zip(KINDS, values, strict=True)
                for scale in [getattr(wanted, f"{kind}_scale")]
            )
    has = features(network, shape) | ({"series"} if len(shape) == 2 else set[str]())
    return has, found


def measure(trees: int) -> dict[str, dict[str, Any]]:
    """Return how many trees have each thing, and the largest errors of those."""
    names = (*sorted(FEATURES | {"series"}, key=str.lower), "all")
    families: dict[str, dict[str, Any]] = {name: {"trees": 0} for name in names}
    for seed in range(trees):
        network, shape = tree(seed, series=seed % SERIES == SERIES - 1)
        has, found = errors(network, shape, seed, seed < REFERENCE)
        for name in has | {"all"}:
            family = families[name]
            family["trees"] += 1
            for column, error in found.items():
                family[column] = max(error, family.get(column, 0.0))
    return families


def table(record: dict[str, Any]) -> str:
    """Render a line for each thing that a tree may have: the largest errors of those that do."""
    lines = [
        f"| trees with | number | {' | '.join(COLUMNS)} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, family in record["families"].items():
        cells = [f"{family[column]:.0e}" if column in family else "" for column in COLUMNS]
        lines.append(f"| {name} | {family['trees']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def is_good(record: dict[str, Any]) -> bool:
    """Whether every error is within its bound, and everything is there in several trees."""
    return all(
        family["trees"] >= 10 and family.get(column, np.inf) <= bound
        for family in record["families"].values()
        for column, (_, _, bound) in COLUMNS.items()
    )


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=int, default=500)
    parser.add_argument("--out", type=Path, help="where to write the record")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "format": "widelimit.general/1",
        "environment": asdict(describe_environment()),
        "families": measure(arguments.trees),
    }
    print(table(record))
    if arguments.out is not None:
        write_json(record, arguments.out)
    return 0 if is_good(record) else 1


if __name__ == "__main__":
    sys.exit(main())
