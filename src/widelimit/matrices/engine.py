"""Computing tiles of a Gram matrix on threads, with progress and cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import Backend, Dtype, Pairs
from widelimit.matrices.profiles import Block, Samples, Side, block_bytes, quiet
from widelimit.matrices.threads import Threads
from widelimit.matrices.tiles import Grid, Key, rectangle, triangle
from widelimit.program import Program

__all__ = [
    "CACHE_BYTES",
    "Done",
    "Engine",
    "InMemory",
    "Output",
    "Sink",
    "cached_blocks",
    "fill",
    "fill_diagonal",
    "make_sides",
    "memory_grid",
]

Output = NDArray[Any]  # (n_networks, n_kinds, n1, n2) in the dtype of the user

_BLOCK = 512  # side of a tile of a matrix in memory
CACHE_BYTES = 2**28  # profiles that `fill` holds, if a few blocks are not more
_TILE_COST = 1e8  # element-layers of one tile: a tenth of a second or less
_DENSE_BLOCK = 128  # samples, and entries of each, of one matrix product: `_inner_products`


class Sink(Protocol):
    """Where the tiles of a Gram matrix go."""

    def begin(self, key: Key) -> Output:
        """Return the array ``(n_networks, n_kinds, rows, columns)`` that a tile is put into."""
        ...

    def end(self, key: Key, values: Output) -> None:
        """Take a tile that is complete. Any thread may call."""
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """What one task has done: entries of one program, and perhaps the last of a tile."""

    entries: int
    program: int
    finished: Key | None


def fill(
    programs: Sequence[tuple[Program, Sequence[int]]],
    backend: Backend,
    left: Samples,
    right: Samples | None,
    out: Output,
    dtype: Dtype,
    threads: int,
    progress: Callable[[float], None] | None,
) -> None:
    """Compute all kernels of some programs into an array in memory.

    Parameters
    ----------
    programs : sequence of (Program, positions)
        From `compile_networks`; where in `out` each network of a program belongs.
    backend : Backend
    left, right : Samples
        `right` None: the symmetric Gram matrix of `left`, of which half is computed.
    out : ndarray of shape (n_networks, n_kinds, n1, n2)
    dtype : {"float32", "float64"}
        Precision of the slices.
    threads : int
        Tasks in flight. No result depends on it.
    progress : callable or None
        Called with the finished share of the work, 0 to 1, from the calling thread.

    Notes
    -----
    An exception in any thread, and Ctrl-C, stop the others at their next slice.
    """
    grid = memory_grid(len(left), None if right is None else len(right))
    cached = cached_blocks(programs, backend, dtype, grid)
    sides = make_sides(programs, backend, left, right, dtype, grid.tile, cached)
    weights = [max(1, program.element_layers) for program, _ in programs]
    total = sum(weights) * sum(map(grid.pairs, grid.tiles()))
    done = 0
    engine = Engine(programs, backend, *sides, grid, dtype, threads)
    keys = grid.order(set(grid.tiles()), cached - 2)
    with closing(engine.run(keys, InMemory(out, grid))) as parts:
        for part in parts:
            done += part.entries * weights[part.program]
            if progress is not None:
                progress(min(1.0, done / total))


class _Diagonal:
    """Keeps the diagonals of the tiles on the diagonal."""

    def __init__(self, out: Output, grid: Grid) -> None:
        self._out, self._grid = out, grid

    def begin(self, key: Key) -> Output:
        rows, columns = self._grid.extent(key)
        return np.empty(
            (*self._out.shape[:2], rows.stop - rows.start, columns.stop - columns.start),
            self._out.dtype,
        )

    def end(self, key: Key, values: Output) -> None:
        self._out[:, :, self._grid.extent(key)[0]] = values.diagonal(axis1=-2, axis2=-1)


def fill_diagonal(
    programs: Sequence[tuple[Program, Sequence[int]]],
    backend: Backend,
    samples: Samples,
    out: Output,
    dtype: Dtype,
    threads: int,
) -> None:
    """Compute ``k(x, x)`` of all kernels into an array (n_networks, n_kinds, n).

    Notes
    -----
    Cost: for each sample that of one group of lanes, as for a row of a few samples.
    """
    lanes = backend.lanes(dtype)
    grid = Grid(len(samples), len(samples), lanes, "upper")
    sides = make_sides(programs, backend, samples, None, dtype, lanes, 3)
    engine = Engine(programs, backend, *sides, grid, dtype, threads)
    keys = ((i, i) for i in range(grid.shape[0]))
    with closing(engine.run(keys, _Diagonal(out, grid))) as parts:
        for _ in parts:
            pass


def make_sides(
    programs: Sequence[tuple[Program, Sequence[int]]],
    backend: Backend,
    left: Samples,
    right: Samples | None,
    dtype: Dtype,
    size: int,
    cached: int,
) -> tuple[Side, Side]:
    """Return both sides of a matrix, with so many blocks of profiles held together, 3 or more.

    In the order of `Grid.order` with a group of `cached - 2`, no profile is made twice in a sweep.
    """
    if right is None:
        both = Side(left, programs, backend, dtype, size, cached)
        return both, both
    return (
        Side(left, programs, backend, dtype, size, cached - 2),
        Side(right, programs, backend, dtype, size, 2),
    )


def memory_grid(n1: int, n2: int | None) -> Grid:
    """Return the tiles that `fill` works on; n2 None: a symmetric matrix."""
    return Grid(n1, n1 if n2 is None else n2, _BLOCK, "upper" if n2 is None else "full")


def cached_blocks(
    programs: Sequence[tuple[Program, Sequence[int]]], backend: Backend, dtype: Dtype, grid: Grid
) -> int:
    """Return how many blocks of profiles `fill` holds: at least 3, and no more than there are."""
    blocks = sum(grid.shape) + 2
    return max(3, min(blocks, CACHE_BYTES // block_bytes(programs, backend, dtype, grid.tile)))


class InMemory:
    """Tiles in one array, with their mirror images."""

    def __init__(self, out: Output, grid: Grid) -> None:
        self._out, self._grid = out, grid

    def begin(self, key: Key) -> Output:
        """Return the part of the array that a tile is."""
        return self._out[:, :, *self._grid.extent(key)]

    def end(self, key: Key, values: Output) -> None:
        """Copy a tile to the place of its mirror image."""
        if self._grid.region == "upper" and key[0] != key[1]:
            rows, columns = self._grid.extent(key)
            self._out[:, :, columns, rows] = values.swapaxes(-1, -2)


class _OpenTile:
    """A tile whose tasks are under way."""

    def __init__(self, key: Key, values: Output, symmetric: bool) -> None:
        self.key, self.values, self.symmetric = key, values, symmetric
        self._left = 1  # the task of handing out tasks
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count one task more."""
        with self._lock:
            self._left += 1

    def remove(self) -> bool:
        """Count one task less; return whether it was the last."""
        with self._lock:
            self._left -= 1
            return self._left == 0


class Engine:
    """Computes tiles of a Gram matrix, for all networks and kinds in one pass, on threads.

    Parameters
    ----------
    programs, backend, dtype, threads
        As for `fill`.
    left, right : Side
        One object twice: a symmetric matrix.
    grid : Grid
        Of tiles as large as a block of the sides; with the region "upper" if symmetric.
    known : int
        The pairs of so many samples, the first ones, are not computed: the sink has put them into
        the tile. No tile may lie among them altogether. 0 if not symmetric.
    """

    def __init__(
        self,
        programs: Sequence[tuple[Program, Sequence[int]]],
        backend: Backend,
        left: Side,
        right: Side,
        grid: Grid,
        dtype: Dtype,
        threads: int,
        known: int = 0,
    ) -> None:
        self._programs, self._backend = programs, backend
        self._left, self._right = left, right
        self._grid = grid
        self._dtype: Dtype = dtype
        self._threads, self._known = threads, known

    def run(self, keys: Iterable[Key], sink: Sink) -> Generator[Done]:
        """Compute tiles; yield what is done, as it is done, in the calling thread.

        Parameters
        ----------
        keys : iterable of Key
            In this order; `Grid.order` gives a good one.
        sink : Sink

        Notes
        -----
        Close it to stop: an exception elsewhere does not (`contextlib.closing`).
        """
        with Threads(self._threads) as threads:
            yield from threads.run(self._tasks(keys, sink, threads))

    def _tasks(
        self, keys: Iterable[Key], sink: Sink, threads: Threads
    ) -> Iterator[Callable[[], Done]]:
        symmetric = self._left is self._right
        for key in keys:
            # Of a tile above the diagonal that reaches beyond them, all rows are known samples.
            known = max(0, self._known - self._grid.extent(key)[1].start)
            left = self._left.block(key[0], threads)
            right = self._right.block(key[1], threads)
            tile = _OpenTile(key, sink.begin(key), symmetric and key[0] == key[1])
            for index, (program, positions) in enumerate(self._programs):
                pass_ = _Pass(program, positions, self._backend, self._dtype, threads.cancel, tile)
                for compute in pass_.tasks(left[index], right[index], known):
                    tile.add()
                    yield partial(_finish, compute, index, tile, sink)
            if tile.remove():
                sink.end(key, tile.values)
                yield lambda key=key: Done(0, 0, key)


def _finish(compute: Callable[[], int], program: int, tile: _OpenTile, sink: Sink) -> Done:
    """Run one task of a tile, and hand the tile over after its last."""
    entries = compute()
    if not tile.remove():
        return Done(entries, program, None)
    sink.end(tile.key, tile.values)
    return Done(entries, program, tile.key)


@dataclass(frozen=True, eq=False)
class _Pass:
    """One program's part of one tile: what its tasks share."""

    program: Program
    positions: Sequence[int]
    backend: Backend
    dtype: Dtype
    cancel: NDArray[np.int32]
    target: _OpenTile

    def tasks(self, a: Block, b: Block, known: int) -> Iterator[Callable[[], int]]:
        """Yield functions that each compute some entries and return how many.

        The first `known` columns are there, on the diagonal with as many rows.
        """
        n1, n2 = len(a.profile), len(b.profile)
        if self.program.is_dense:
            for j in range(known, n2, _DENSE_BLOCK):
                columns = np.arange(j, min(n2, j + _DENSE_BLOCK))
                last = columns[-1] + 1 if self.target.symmetric else n1
                for i in range(0, last, _DENSE_BLOCK):
                    part = Pairs(np.arange(i, min(last, i + _DENSE_BLOCK)), columns)
                    yield lambda part=part: self._multiply(a, b, part)
            return
        lanes = self.backend.lanes(self.dtype)
        cost = self.program.element_layers * lanes
        rows_per_tile = max(1, int(_TILE_COST / max(1, cost)))
        rows = known if self.target.symmetric else n1
        for part, swapped in rectangle(rows, n2 - known, lanes, rows_per_tile):
            if swapped:
                tile = _moved(part, known, 0)
                yield lambda tile=tile: self._compute(b, a, tile, swapped=True)
            else:
                tile = _moved(part, 0, known)
                yield lambda tile=tile: self._compute(a, b, tile)
        if self.target.symmetric:
            # Packing a pair into lanes costs about as much as two slices.
            pack = len(self.program.displacements) > 8
            for part in triangle(n2 - known, lanes, rows_per_tile, pack=pack):
                tile = _moved(part, known, known)
                yield lambda tile=tile: self._compute(a, b, tile)

    def _multiply(self, a: Block, b: Block, tile: Pairs) -> int:
        return self._store(a, b, tile, _inner_products(self.program, a, b, tile))

    def _compute(self, a: Block, b: Block, tile: Pairs, swapped: bool = False) -> int:
        with quiet():
            sums = self.backend.sums(self.program, a.profile, b.profile, tile, self.cancel)
        if swapped:
            turned = Pairs(tile.columns, tile.rows)
            return self._store(b, a, turned, np.ascontiguousarray(sums.swapaxes(-1, -2)))
        return self._store(a, b, tile, sums)

    def _store(self, a: Block, b: Block, tile: Pairs, sums: FloatArray) -> int:
        rows, columns = tile.rows, tile.columns
        if not tile.pairwise:
            rows, columns = rows[:, None], columns[None, :]
        same = a.identity[rows] == b.identity[columns]
        for index, readout in zip(self.positions, self.program.readouts, strict=True):
            variances = (None, None)
            if a.variances is not None and b.variances is not None:
                variances = (a.variances[readout.tap][rows], b.variances[readout.tap][columns])
            sigma, theta = sums[readout.tap]
            with quiet():
                nngp, ntk = readout.apply(sigma, theta, *variances, same)
            for place, kind in enumerate(self.program.kinds):
                value = nngp if kind == "nngp" else ntk
                target = self.target.values[index, place]
                _check_range(value, target.dtype)
                if tile.pairwise:
                    target[rows, columns] = value
                    if self.target.symmetric:
                        target[columns, rows] = value
                else:  # consecutive samples: slices, which are copied faster
                    down = slice(tile.rows[0], tile.rows[-1] + 1)
                    across = slice(tile.columns[0], tile.columns[-1] + 1)
                    target[down, across] = value
                    if self.target.symmetric:
                        target[across, down] = value.T
        return len(tile.rows) if tile.pairwise else same.size


def _moved(tile: Pairs, rows: int, columns: int) -> Pairs:
    return Pairs(tile.rows + rows, tile.columns + columns, tile.pairwise)


def _check_range(value: FloatArray, dtype: np.dtype[Any]) -> None:
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


def _inner_products(program: Program, a: Block, b: Block, tile: Pairs) -> FloatArray:
    """Return the input covariances of a tile as the sums of the one tap of a dense program.

    The order in which a matrix product sums depends on its shape, and with long rows on the
    threads of the BLAS. No bit may depend on either: all products have one shape, filled up with
    zeros, and sum few numbers.
    """
    x = np.asarray(a.profile, dtype=np.float64)[tile.rows[0] : tile.rows[-1] + 1]
    z = np.asarray(b.profile, dtype=np.float64)[tile.columns[0] : tile.columns[-1] + 1]
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
