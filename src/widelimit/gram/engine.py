"""Running the tiles of a Gram matrix on threads, with progress and cancellation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.backends.base import Backend, Dtype, Profile, Tile
from widelimit.gram.tiles import rectangle, triangle
from widelimit.program import Program

__all__ = ["Samples", "available_memory", "default_threads", "fill"]

Float = NDArray[np.float64]
Output = NDArray[Any]  # (n_networks, n_kinds, n1, n2) in the dtype of the user

_BLOCK = 512  # samples whose profiles are held at a time, on either side
_TILE_COST = 1e8  # element-layers of one tile: a tenth of a second or less
_DENSE_BLOCK = 128  # samples, and entries of each, of one matrix product: `_inner_products`


def default_threads() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Return the bytes that this process can still take, None if the system does not say.

    The smaller of the system's free memory and the limit of the control group (containers).
    """
    limits: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            limits.append(int(limit) - used + int(counts.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    if not limits and sys.platform != "win32":
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


@dataclass(frozen=True, eq=False)
class Samples:
    """Validated inputs of one side.

    Parameters
    ----------
    values : ndarray
        ``(n, h, w, c)`` or ``(n, d)``, any real dtype; converted to float64 a block at a time.
    identity : ndarray of int64, shape (n,)
        Equal numbers mean identical samples, on both sides.
    """

    values: NDArray[Any]
    identity: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)

    def block(self, start: int, stop: int) -> tuple[Float, NDArray[np.int64]]:
        """Return samples in C order as float64, and their identities."""
        values = np.ascontiguousarray(self.values[start:stop], dtype=np.float64)
        return values, np.ascontiguousarray(self.identity[start:stop])


@dataclass(frozen=True, eq=False)
class _Block:
    """Samples [start, start + n) of one side, with what every tile needs of them."""

    start: int
    profile: Profile
    identity: NDArray[np.int64]
    variances: Float | None  # (n_taps, n): k(x, x) at the taps, if a head has an activation


def fill(
    program: Program,
    positions: Sequence[int],
    backend: Backend,
    left: Samples,
    right: Samples | None,
    out: Output,
    dtype: Dtype,
    threads: int,
    progress: Callable[[float], None] | None,
) -> None:
    """Compute all kernels of a program into `out`.

    Parameters
    ----------
    program, backend : Program, Backend
    positions : sequence of int
        Where in `out` each network of the program belongs.
    left, right : Samples
        `right` None: the symmetric Gram matrix of `left`, of which half is computed.
    out : ndarray of shape (n_networks, n_kinds, n1, n2)
    dtype : {"float32", "float64"}
        Precision of the slices.
    threads : int
        Tiles in flight. No result depends on it.
    progress : callable or None
        Called with the finished share of the work, 0 to 1, from the calling thread.

    Notes
    -----
    An exception in any thread, and Ctrl-C, stop the others at their next slice.
    """
    cancel = np.zeros(1, np.int32)
    n1, n2 = len(left), len(left if right is None else right)
    total = n1 * (n1 + 1) / 2 if right is None else n1 * n2
    done = 0
    # Also with one thread: the calling thread stays free to take Ctrl-C.
    pool = ThreadPoolExecutor(threads, thread_name_prefix="widelimit")
    work = _Work(program, positions, backend, dtype, out, right is None, cancel, pool)
    try:
        for entries in _completed(pool, work.tasks(left, right), 2 * threads):
            done += entries
            if progress is not None:
                progress(min(1.0, done / total))
    finally:
        cancel[0] = 1
        pool.shutdown(wait=True, cancel_futures=True)


def _completed(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], int]], most: int
) -> Iterator[int]:
    """Run tasks, at most so many in flight; yield what each returns, as they finish."""
    pending: set[Future[int]] = set()
    for task in tasks:
        pending.add(pool.submit(task))
        while len(pending) >= most:
            finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    while pending:
        finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in finished)


class _Work:
    """What the tasks of one call share."""

    def __init__(
        self,
        program: Program,
        positions: Sequence[int],
        backend: Backend,
        dtype: Dtype,
        out: Output,
        symmetric: bool,
        cancel: NDArray[np.int32],
        pool: ThreadPoolExecutor,
    ) -> None:
        self.program, self.positions, self.pool = program, positions, pool
        self.backend = backend
        self.dtype: Dtype = dtype
        self.out, self.symmetric, self.cancel = out, symmetric, cancel

    def tasks(self, left: Samples, right: Samples | None) -> Iterator[Callable[[], int]]:
        """Yield functions that each compute some entries and return how many."""
        size = _DENSE_BLOCK if self.program.is_dense else _BLOCK
        other = left if right is None else right
        for i in range(0, len(left), size):
            a = self._block(left, i, size)
            for j in range(i if right is None else 0, len(other), size):
                diagonal = right is None and i == j
                b = a if diagonal else self._block(other, j, size)
                yield from self._block_tasks(a, b, diagonal)

    def _block(self, samples: Samples, start: int, size: int) -> _Block:
        program = self.program
        values, identity = samples.block(start, min(start + size, len(samples)))
        if program.is_dense:
            flat = values.reshape(len(values), -1)
            profile: Profile = flat  # pyright: ignore[reportAssignmentType]
            variances = program.input_scale * np.einsum("ij,ij->i", flat, flat)[None]
            return _Block(start, profile, identity, variances)
        with _quiet():
            profile = self.backend.profile(program, values, identity, self.dtype)
        variances = None
        if any(readout.needs_variance for readout in program.readouts):
            variances = self._variances(profile)
        return _Block(start, profile, identity, variances)

    def _variances(self, profile: Profile) -> Float:
        variances = np.empty((len(self.program.taps), len(profile)))

        def compute(part: NDArray[np.int64]) -> int:
            itself = Tile(part, part, pairwise=True)
            with _quiet():
                sums = self.backend.tile(self.program, profile, profile, itself, self.cancel)
            variances[:, part] = sums[:, 0]
            return len(part)

        lanes = self.backend.lanes(self.dtype)
        parts = np.split(np.arange(len(profile)), range(lanes, len(profile), lanes))
        tasks = (lambda part=part: compute(part) for part in parts)
        for _ in _completed(self.pool, tasks, len(parts)):
            pass
        return variances

    def _block_tasks(self, a: _Block, b: _Block, diagonal: bool) -> Iterator[Callable[[], int]]:
        n1, n2 = len(a.profile), len(b.profile)
        if self.program.is_dense:
            whole = Tile(np.arange(n1), np.arange(n2))
            yield lambda: self._store(a, b, whole, _inner_products(self.program, a, b))
            return
        lanes = self.backend.lanes(self.dtype)
        cost = self.program.element_layers * lanes
        rows_per_tile = max(1, int(_TILE_COST / max(1, cost)))
        if diagonal:
            # Packing a pair into lanes costs about as much as two slices.
            pack = len(self.program.displacements) > 8
            for tile in triangle(n1, lanes, rows_per_tile, pack=pack):
                yield lambda tile=tile: self._compute(a, b, tile)
        else:
            for tile, swapped in rectangle(n1, n2, lanes, rows_per_tile):
                if swapped:
                    yield lambda tile=tile: self._compute(b, a, tile, swapped=True)
                else:
                    yield lambda tile=tile: self._compute(a, b, tile)

    def _compute(self, a: _Block, b: _Block, tile: Tile, swapped: bool = False) -> int:
        with _quiet():
            sums = self.backend.tile(self.program, a.profile, b.profile, tile, self.cancel)
        if swapped:
            turned = Tile(tile.columns, tile.rows)
            return self._store(b, a, turned, np.ascontiguousarray(sums.swapaxes(-1, -2)))
        return self._store(a, b, tile, sums)

    def _store(self, a: _Block, b: _Block, tile: Tile, sums: Float) -> int:
        rows, columns = tile.rows, tile.columns
        if not tile.pairwise:
            rows, columns = rows[:, None], columns[None, :]
        same = a.identity[rows] == b.identity[columns]
        for index, readout in zip(self.positions, self.program.readouts, strict=True):
            variances = (None, None)
            if a.variances is not None and b.variances is not None:
                variances = (a.variances[readout.tap][rows], b.variances[readout.tap][columns])
            sigma, theta = sums[readout.tap]
            with _quiet():
                nngp, ntk = readout.apply(sigma, theta, *variances, same)
            for place, kind in enumerate(self.program.kinds):
                value = nngp if kind == "nngp" else ntk
                target = self.out[index, place]
                _check_range(value, target.dtype)
                if tile.pairwise:
                    target[rows + a.start, columns + b.start] = value
                    if self.symmetric:
                        target[columns + b.start, rows + a.start] = value
                else:  # the samples of a block follow one another: slices, which are copied faster
                    down = slice(a.start + tile.rows[0], a.start + tile.rows[-1] + 1)
                    across = slice(b.start + tile.columns[0], b.start + tile.columns[-1] + 1)
                    target[down, across] = value
                    if self.symmetric:
                        target[across, down] = value.T
        return len(tile.rows) if tile.pairwise else same.size


def _quiet() -> np.errstate:
    """No warning of an overflow: `_check_range` refuses the result, and says what to do."""
    return np.errstate(over="ignore", invalid="ignore")


def _check_range(value: Float, dtype: np.dtype[Any]) -> None:
    """Refuse values that the dtype of the result cannot hold."""
    limits = np.finfo(dtype)
    least, most = float(limits.smallest_normal), float(limits.max)
    largest = float(np.max(np.abs(value)))
    if not largest <= most or 0 < largest < least:
        remedy = "use dtype='float64', or" if dtype == np.float32 else "use"
        raise OverflowError(
            f"kernel values must lie between {least:.1e} and {most:.1e} for {dtype}, got "
            f"{largest:.1e}: {remedy} inputs or w_std of another scale"
        )


def _inner_products(program: Program, a: _Block, b: _Block) -> Float:
    """Return the input covariance of two blocks as the sums of the one tap of a dense program.

    The order in which a matrix product sums depends on its shape, and with long rows on the
    threads of the BLAS. No bit may depend on either: all products have one shape, filled up with
    zeros, and sum few numbers.
    """
    x, z = (np.asarray(block.profile, dtype=np.float64) for block in (a, b))
    product = np.zeros((_DENSE_BLOCK, _DENSE_BLOCK))
    part1, part2 = np.zeros((2, _DENSE_BLOCK, _DENSE_BLOCK))
    for start in range(0, program.shape[0], _DENSE_BLOCK):
        for part, values in ((part1, x), (part2, z)):
            columns = values[:, start : start + _DENSE_BLOCK]
            part[...] = 0
            part[: len(columns), : columns.shape[1]] = columns
        product += part1 @ part2.T
    product = program.input_scale * product[: len(x), : len(z)]
    return np.stack([product, np.zeros_like(product)])[None]
