"""The tiled Cholesky factorisation beside LAPACK's: agreement, speed, memory.

usage: python benchmarks/tiled_cholesky.py N MEMORY [--folder FOLDER] [--dtype float64]

Makes a positive definite matrix of N samples (a Gaussian kernel of random vectors, relative ridge
1e-3) in a store of float64 tiles, factors it within MEMORY (say 2GB) and, in another process, in
memory, in place, and by LAPACK; prints the largest difference to the factor of LAPACK, relative to
its largest entry, the GFLOP/s of all, and the peak memory of the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from widelimit.machine import peak_memory
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import TileStore
from widelimit.solvers import TiledFactor, factorise
from widelimit.solvers.blas import factor_in_place

TILE, RIDGE = 1024, 1e-3


class Gaussian:
    """Reads tiles of a stored matrix as solvers want them."""

    def __init__(self, path: Path) -> None:
        self._store = TileStore.open(open_objects(path))
        n1, n2 = self._store.shape
        self.shape, self.dtype, self.tile = (n1, n2), self._store.dtype, TILE
        self.fingerprint = "a Gaussian kernel"

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        return self._store.block(*index)


def make(path: Path, n: int) -> None:
    x = np.random.default_rng(0).normal(size=(n, 10))
    squares = (x**2).sum(axis=1)
    store = TileStore.create(open_objects(path), (n, n), TILE, "float64", "upper", {})
    for key in store.grid.tiles():
        rows, columns = store.grid.extent(key)
        distance = squares[rows, None] + squares[columns] - 2 * x[rows] @ x[columns].T
        store.write(key, np.exp(-np.maximum(distance, 0) / 20))


def tiled(folder: Path, memory: str, dtype: str) -> dict[str, float]:
    k = Gaussian(folder / "k.zarr")
    start = time.perf_counter()
    factorise(k, RIDGE, store=folder / f"{dtype}.zarr", memory=memory, dtype=dtype)
    return {"seconds": time.perf_counter() - start, "peak_memory": peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int)
    parser.add_argument("memory")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--part", choices=["make", "tiled"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    n, memory, dtype = arguments.n, arguments.memory, arguments.dtype
    if arguments.part:
        if arguments.part == "make":
            make(arguments.folder / "k.zarr", n)
        else:
            print(json.dumps(tiled(arguments.folder, memory, dtype)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        command = [sys.executable, __file__, str(n), memory, "--folder", name, "--dtype", dtype]
        # Each in a process of its own, so that the peaks of memory are theirs.
        subprocess.run([*command, "--part", "make"], check=True)
        done = subprocess.run([*command, "--part", "tiled"], check=True, stdout=subprocess.PIPE)
        measured = json.loads(done.stdout)
        k = Gaussian(folder / "k.zarr")
        whole = k[slice(0, n), slice(0, n)].astype(dtype)
        whole[np.diag_indices(n)] *= 1 + RIDGE  # the diagonal is 1
        in_place = whole.copy()
        start = time.perf_counter()
        assert factor_in_place(in_place) == 0
        seconds = time.perf_counter() - start
        # On two threads dpotrf of OpenBLAS 0.3.30 and 0.3.31 crashes from n = 16,384 on.
        potrf = lapack.dpotrf if dtype == "float64" else lapack.spotrf
        with threadpool_limits(1):
            start = time.perf_counter()
            columns, info = potrf(whole.T, lower=0, clean=1, overwrite_a=1)
            alone = time.perf_counter() - start
        assert info == 0
        factor = TiledFactor(TileStore.open(open_objects(folder / f"{dtype}.zarr")), None)
        difference = largest = 0.0
        for key in factor.store.grid.tiles():
            rows, slice_ = factor.store.grid.extent(key)
            expected = columns.T[rows, slice_]
            difference = max(difference, float(np.abs(factor.store.read(key) - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    flops = n**3 / 3
    ours, theirs = flops / measured["seconds"] / 1e9, flops / seconds / 1e9
    print(f"n = {n:,}, {dtype}, memory {memory}, tiles of {TILE}")
    print(f"largest difference / largest entry of the factor: {difference / largest:.1e}")
    print(
        f"tiled: {measured['seconds']:.1f} s, {ours:.0f} GFLOP/s, {ours / theirs:.0%} of the next"
    )
    print(f"in memory, in place: {seconds:.1f} s, {theirs:.0f} GFLOP/s")
    print(f"LAPACK, on one thread: {alone:.1f} s, {flops / alone / 1e9:.0f} GFLOP/s")
    print(f"peak memory of the tiled process: {measured['peak_memory'] / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
