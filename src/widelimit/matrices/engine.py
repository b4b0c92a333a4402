"""Computing tiles of a Gram matrix on threads, with progress and cancellation."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import Backend, Dtype, Pairs, Profile
from widelimit.matrices.tiles import Grid, Key, rectangle, triangle
from widelimit.program import Program

__all__ = [
    "Done",
    "Engine",
    "Output",
    "Samples",
    "Sink",
    "block_bytes",
    "cached_blocks",
    "fill",
    "fill_diagonal",
    "memory_grid",
]

Output = NDArray[Any]  # (n_networks, n_kinds, n1, n2) in the dtype of the user

_BLOCK = 512  # side of a tile of a matrix in memory
_CACHE_BYTES = 2**28  # profiles that `fill` holds, if a few blocks are not more
_TILE_COST = 1e8  # element-layers of one tile: a tenth of a second or less
_DENSE_BLOCK = 128  # samples, and entries of each, of one matrix product: `_inner_products`


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

    def block(self, start: int, stop: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Return samples in C order as float64, and their identities."""
        values = np.ascontiguousarray(self.values[start:stop], dtype=np.float64)
        return values, np.ascontiguousarray(self.identity[start:stop])


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
    weights = [max(1, program.element_layers) for program, _ in programs]
    total = sum(weights) * sum(map(grid.pairs, grid.tiles()))
    done = 0
    engine = Engine(programs, backend, left, right, grid, dtype, threads, cached)
    keys = grid.order(set(grid.tiles()), cached - 2)
    with closing(engine.run(keys, _Memory(out, grid))) as parts:
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
    engine = Engine(programs, backend, samples, None, grid, dtype, threads, 3)
    keys = ((i, i) for i in range(grid.shape[0]))
    with closing(engine.run(keys, _Diagonal(out, grid))) as parts:
        for _ in parts:
            pass


def memory_grid(n1: int, n2: int | None) -> Grid:
    """Return the tiles that `fill` works on; n2 None: a symmetric matrix."""
    return Grid(n1, n1 if n2 is None else n2, _BLOCK, "upper" if n2 is None else "full")


def block_bytes(
    programs: Sequence[tuple[Program, Sequence[int]]], backend: Backend, dtype: Dtype, tile: int
) -> int:
    """Return the memory of the profiles, for all programs, of the samples of one tile's side."""
    return tile * sum(
        8 * program.shape[0] if program.is_dense else backend.profile_bytes(program, dtype)
        for program, _ in programs
    )


def cached_blocks(
    programs: Sequence[tuple[Program, Sequence[int]]], backend: Backend, dtype: Dtype, grid: Grid
) -> int:
    """Return how many blocks of profiles `fill` holds: at least 3, and no more than there are."""
    blocks = sum(grid.shape) + 2
    return max(3, min(blocks, _CACHE_BYTES // block_bytes(programs, backend, dtype, grid.tile)))


class _Memory:
    """Tiles in one array, with their mirror images."""

    def __init__(self, out: Output, grid: Grid) -> None:
        self._out, self._grid = out, grid

    def begin(self, key: Key) -> Output:
        return self._out[:, :, *self._grid.extent(key)]

    def end(self, key: Key, values: Output) -> None:
        if self._grid.region == "upper" and key[0] != key[1]:
            rows, columns = self._grid.extent(key)
            self._out[:, :, columns, rows] = values.swapaxes(-1, -2)


@dataclass(frozen=True, eq=False)
class _Block:
    """The samples of one side of a tile, with what every tile needs of them."""

    profile: Profile
    identity: NDArray[np.int64]
    variances: FloatArray | None  # (n_taps, n): k(x, x) at the taps, if a head has an activation


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
    programs, backend, left, right, dtype, threads
        As for `fill`.
    grid : Grid
        With the region "upper" if `right` is None.
    cached : int
        Blocks of profiles (of the samples of one side of a tile) that are held, 3 or more.
    known : int
        The pairs of so many samples, the first ones, are not computed: the sink has put them into
        the tile. No tile may lie among them altogether. 0 if `right` is given.
    """

    def __init__(
        self,
        programs: Sequence[tuple[Program, Sequence[int]]],
        backend: Backend,
        left: Samples,
        right: Samples | None,
        grid: Grid,
        dtype: Dtype,
        threads: int,
        cached: int,
        known: int = 0,
    ) -> None:
        self._programs, self._backend = programs, backend
        self._sides = (left, left if right is None else right)
        self._symmetric = right is None
        self._grid = grid
        self._dtype: Dtype = dtype
        self._threads, self._cached, self._known = threads, cached, known
        self._blocks: OrderedDict[tuple[int, int], list[_Block]] = OrderedDict()
        self._cancel = np.zeros(1, np.int32)

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
        self._cancel[0] = 0
        # Also with one thread: the calling thread stays free to take Ctrl-C.
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="widelimit")
        try:
            yield from _completed(pool, self._tasks(keys, sink, pool), 2 * self._threads)
        finally:
            self._cancel[0] = 1
            pool.shutdown(wait=True, cancel_futures=True)

    def _tasks(
        self, keys: Iterable[Key], sink: Sink, pool: ThreadPoolExecutor
    ) -> Iterator[Callable[[], Done]]:
        for key in keys:
            diagonal = self._symmetric and key[0] == key[1]
            # Of a tile above the diagonal that reaches beyond them, all rows are known samples.
            known = max(0, self._known - self._grid.extent(key)[1].start)
            left = self._block(0, key[0], pool)
            right = self._block(1, key[1], pool)
            tile = _OpenTile(key, sink.begin(key), diagonal)
            for index, (program, positions) in enumerate(self._programs):
                pass_ = _Pass(program, positions, self._backend, self._dtype, self._cancel, tile)
                for compute in pass_.tasks(left[index], right[index], known):
                    tile.add()
                    yield partial(_finish, compute, index, tile, sink)
            if tile.remove():
                sink.end(key, tile.values)
                yield lambda key=key: Done(0, 0, key)

    def _block(self, side: int, index: int, pool: ThreadPoolExecutor) -> list[_Block]:
        """Return the profiles of the samples of one side of a tile, one for each program."""
        place = (0 if self._symmetric else side, index)
        if place in self._blocks:
            self._blocks.move_to_end(place)
            return self._blocks[place]
        while len(self._blocks) >= self._cached:
            self._blocks.popitem(last=False)
        start = index * self._grid.tile
        values, identity = self._sides[side].block(start, start + self._grid.tile)
        made = [self._profile(program, values, identity, pool) for program, _ in self._programs]
        self._blocks[place] = made
        return made

    def _profile(
        self,
        program: Program,
        values: FloatArray,
        identity: NDArray[np.int64],
        pool: ThreadPoolExecutor,
    ) -> _Block:
        if program.is_dense:
            flat = values.reshape(len(values), -1)
            profile: Profile = flat  # pyright: ignore[reportAssignmentType]
            variances = program.input_scale * np.einsum("ij,ij->i", flat, flat)[None]
            return _Block(profile, identity, variances)
        with _quiet():
            profile = self._backend.profile(program, values, identity, self._dtype)
        variances = None
        if any(readout.needs_variance for readout in program.readouts):
            variances = self._variances(program, profile, pool)
        return _Block(profile, identity, variances)

    def _variances(
        self, program: Program, profile: Profile, pool: ThreadPoolExecutor
    ) -> FloatArray:
        variances = np.empty((len(program.taps), len(profile)))

        def compute(part: NDArray[np.int64]) -> int:
            itself = Pairs(part, part, pairwise=True)
            with _quiet():
                sums = self._backend.sums(program, profile, profile, itself, self._cancel)
            variances[:, part] = sums[:, 0]
            return len(part)

        lanes = self._backend.lanes(self._dtype)
        parts = np.split(np.arange(len(profile)), range(lanes, len(profile), lanes))
        tasks = (lambda part=part: compute(part) for part in parts)
        for _ in _completed(pool, tasks, len(parts)):
            pass
        return variances


def _finish(compute: Callable[[], int], program: int, tile: _OpenTile, sink: Sink) -> Done:
    """Run one task of a tile, and hand the tile over after its last."""
    entries = compute()
    if not tile.remove():
        return Done(entries, program, None)
    sink.end(tile.key, tile.values)
    return Done(entries, program, tile.key)


_Result = TypeVar("_Result")


def _completed(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], _Result]], most: int
) -> Iterator[_Result]:
    """Run tasks, at most so many in flight; yield what each returns, as they finish."""
    pending: set[Future[_Result]] = set()
    for task in tasks:
        pending.add(pool.submit(task))
        while len(pending) >= most:
            finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    while pending:
        finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in finished)


@dataclass(frozen=True, eq=False)
class _Pass:
    """One program's part of one tile: what its tasks share."""

    program: Program
    positions: Sequence[int]
    backend: Backend
    dtype: Dtype
    cancel: NDArray[np.int32]
    target: _OpenTile

    def tasks(self, a: _Block, b: _Block, known: int) -> Iterator[Callable[[], int]]:
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

    def _multiply(self, a: _Block, b: _Block, tile: Pairs) -> int:
        return self._store(a, b, tile, _inner_products(self.program, a, b, tile))

    def _compute(self, a: _Block, b: _Block, tile: Pairs, swapped: bool = False) -> int:
        with _quiet():
            sums = self.backend.sums(self.program, a.profile, b.profile, tile, self.cancel)
        if swapped:
            turned = Pairs(tile.columns, tile.rows)
            return self._store(b, a, turned, np.ascontiguousarray(sums.swapaxes(-1, -2)))
        return self._store(a, b, tile, sums)

    def _store(self, a: _Block, b: _Block, tile: Pairs, sums: FloatArray) -> int:
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


def _quiet() -> np.errstate:
    """No warning of an overflow: `_check_range` refuses the result, and says what to do."""
    return np.errstate(over="ignore", invalid="ignore")


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


def _inner_products(program: Program, a: _Block, b: _Block, tile: Pairs) -> FloatArray:
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
