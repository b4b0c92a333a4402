"""CNTK-V of depth 3 on part of CIFAR-10: test accuracy without a ridge, and the time it takes.

The paper's figure for 2,000 training images is 40.94 % (on all 10,000 test images). The file is an
``.npz`` with uint8 images ``X_train, X_test`` and labels ``y_train, y_test``::

    python benchmarks/cifar10.py cifar10.npz --train 2000 --test 1000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np

import widelimit as wl
from widelimit.solvers import encode_labels, solve_cholesky


def accuracy(path: Path, n_train: int, n_test: int, dtype: str) -> float:
    """Return the share of test images that are classified correctly."""
    with np.load(path, allow_pickle=False) as data:
        x_train, y_train = data["X_train"][:n_train] / 255.0, data["y_train"][:n_train]
        x_test, y_test = data["X_test"][:n_test] / 255.0, data["y_test"][:n_test]
    mean, std = x_train.mean(axis=(0, 1, 2)), x_train.std(axis=(0, 1, 2))
    x_train, x_test = (x_train - mean) / std, (x_test - mean) / std
    net = wl.cntk_vanilla(depth=3)
    k_train = wl.kernel(net, x_train, dtype=dtype)  # pyright: ignore[reportArgumentType]
    k_test = wl.kernel(net, x_test, x_train, dtype=dtype)  # pyright: ignore[reportArgumentType]
    solution = solve_cholesky(k_train, encode_labels(y_train, np.arange(10)))
    return float(np.mean(np.argmax(k_test @ solution.value, axis=1) == y_test))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    arguments = parser.parse_args()
    start = perf_counter()
    share = accuracy(arguments.path, arguments.train, arguments.test, arguments.dtype)
    print(f"CNTK-V, depth 3: test accuracy {share:.4f}, {perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
