"""Computing tiles of a Gram matrix on threads, with progress and cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Self

from widelimit.backends.base import Dtype, Entries
from widelimit.machine import blas_on_one_thread
from widelimit.matrices.families import Family, calls, profile_bytes
from widelimit.matrices.passes import Output, Pass
from widelimit.matrices.plan import IN_FLIGHT, columns_in_use, most_open
from widelimit.matrices.profiles import Block, Samples, Side, make_sides
from widelimit.matrices.sinks import Diagonal, InMemory, Sink
from widelimit.matrices.threads import Threads
from widelimit.matrices.tiles import Grid, Key

__all__ = [
    "Done",
    "Engine",
    "fill",
    "fill_diagonal",
    "held_blocks",
    "memory_grid",
]

_SIDE = 512  # of a tile of a matrix in memory
_DENSE_SQUARES = 8  # of a block of a diagonal
_BLAS_ALONE = 2**16  # entries; of fewer it takes longer to set the BLAS than to compute them


@dataclass(frozen=True, slots=True)
class Done:
    """What has been done: entries of one family, or a whole tile, which its sink has taken."""

    entries: int
    family: int
    finished: Key | None


class _OpenTile:
    """A tile whose tasks are under way."""

    def __init__(self, values: Output, complete: Callable[[], None]) -> None:
        self.values = values
        self._complete = complete
        self._left = 1  # the task of handing out tasks
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count one task more."""
        with self._lock:
            self._left += 1

    def remove(self) -> None:
        """Count one task less; after the last the tile is complete."""
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._complete()

    def run(self, compute: Callable[[], int], family: int) -> Done:
        """Run one task."""
        entries = compute()
        self.remove()
        return Done(entries, family, None)


class _OpenTiles:
    """Tiles that are begun, until their sink has taken them, on a thread of its own.

    Threads that compute never wait for a disk. What is complete when a run ends is still taken.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="widelimit-sink")
        self._open = 0
        self._ended: SimpleQueue[tuple[Key, Future[None]]] = SimpleQueue()
        self._taken: list[Key] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)

    def begin(self, key: Key) -> _OpenTile:
        """Begin a tile."""
        values = self._sink.begin(key)
        self._open += 1

        def complete() -> None:
            taking = self._thread.submit(self._sink.end, key, values)
            taking.add_done_callback(lambda taking: self._ended.put((key, taking)))

        return _OpenTile(values, complete)

    def count(self, *, wait: bool = False) -> int:
        """Return how many are open; raise what the sink has raised. `wait`: until one is taken."""
        while self._open:
            try:
                key, taking = self._ended.get(block=wait)
            except Empty:
                break
            self._open, wait = self._open - 1, False
            taking.result()
            self._taken.append(key)
        return self._open

    def taken(self) -> list[Done]:
        """Return what the sink has taken since the last call."""
        self.count()
        keys, self._taken = self._taken, []
        return [Done(0, 0, key) for key in keys]


class Engine:
    """Computes tiles of a Gram matrix, for all networks and kinds in one pass, on threads.

    Parameters
    ----------
    families : sequence of Family
    left, right : Side
        One object twice: a symmetric matrix.
    grid : Grid
        Of tiles as large as a block of the sides; with the region "upper" if symmetric.
    dtype : {"float32", "float64"}
        Precision of the slices.
    threads : int
        No result depends on it.
    known : int
        The pairs of so many samples, the first ones, are not computed: the sink has put them into
        the tile. No tile may lie among them altogether. 0 if not symmetric.
    only_diagonal : bool
        Whether the diagonals of tiles on the diagonal are wanted, and nothing else.
    """

    def __init__(
        self,
        families: Sequence[Family],
        left: Side,
        right: Side,
        grid: Grid,
        dtype: Dtype,
        threads: int,
        *,
        known: int = 0,
        only_diagonal: bool = False,
    ) -> None:
        self._families, self._left, self._right, self._grid = families, left, right, grid
        self._dtype: Dtype = dtype
        self._threads, self._known, self._only_diagonal = threads, known, only_diagonal

    def run(self, keys: Iterable[Key], sink: Sink) -> Generator[Done]:
        """Compute tiles; yield what is done, as it is done, in the calling thread.

        Parameters
        ----------
        keys : iterable of Key
            In this order; `Grid.order` gives a good one.
        sink : Sink

        Notes
        -----
        Close it to stop: an exception elsewhere does not (`contextlib.closing`). Then, and after
        an exception in any thread, the others stop at their next slice.
        """
        # Threads here share the processors out; those of a BLAS would come on top of them.
        large = self._grid.n1 * self._grid.n2 > _BLAS_ALONE
        blas = blas_on_one_thread() if large else nullcontext()
        with _OpenTiles(sink) as tiles, Threads(self._threads) as threads, blas:
            for done in threads.run(self._tasks(keys, tiles, threads)):
                yield done
                yield from tiles.taken()
            while tiles.count(wait=True):
                yield from tiles.taken()
            yield from tiles.taken()

    def _tasks(
        self, keys: Iterable[Key], tiles: _OpenTiles, threads: Threads
    ) -> Iterator[Callable[[], Done] | None]:
        """Yield tasks; None while what they need would be more than `Sizes.need` counts."""
        for key in keys:
            while tiles.count() >= most_open(self._threads):
                yield None
            yield from self._tile(key, tiles, threads)

    def _tile(
        self, key: Key, tiles: _OpenTiles, threads: Threads
    ) -> Iterator[Callable[[], Done] | None]:
        """Begin one tile, and yield its tasks."""
        sides: list[list[Block]] = []
        for side, index in zip((self._left, self._right), key, strict=True):
            while not side.has_room(index):
                yield None
            sides.append(side.block(index, threads))
        entries = self._entries(key)
        tile = tiles.begin(key)
        for index, (family, a, b) in enumerate(zip(self._families, *sides, strict=True)):
            mirrored = entries.part == "upper"
            part = Pass(family, self._dtype, a, b, mirrored, tile.values, threads.cancel)
            for compute in part.tasks(entries):
                tile.add()
                yield partial(tile.run, compute, index)
        tile.remove()

    def _entries(self, key: Key) -> Entries:
        """Return which entries of a tile are computed."""
        rows, columns = self._grid.extent(key)
        shape = rows.stop - rows.start, columns.stop - columns.start
        if self._only_diagonal:
            return Entries(*shape, "diagonal")
        # Of a tile above the diagonal that reaches beyond them, all rows are known samples.
        known = max(0, self._known - columns.start)
        on_diagonal = self._left is self._right and key[0] == key[1]
        return Entries(*shape, "upper" if on_diagonal else "all", known)


def fill(
    families: Sequence[Family],
    left: Samples,
    right: Samples | None,
    out: Output,
    dtype: Dtype,
    threads: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Compute all kernels of some families into an array in memory.

    Parameters
    ----------
    families : sequence of Family
    left, right : Samples
        `right` None: the symmetric Gram matrix of `left`, of which half is computed.
    out : ndarray of shape (n_networks, n_kinds, n1, n2)
    dtype, threads
        As for `Engine`.
    progress : callable or None
        Called with the finished share of the work, 0 to 1, from the calling thread.
    """
    grid = memory_grid(len(left), None if right is None else len(right))
    group, columns = held_blocks(families, dtype, grid, threads)
    sides = make_sides(left, right, families, dtype, grid.tile, group, columns)
    engine = Engine(families, *sides, grid, dtype, threads)
    weights = [max(1, family.program.element_layers) for family in families]
    total = sum(weights) * sum(map(grid.pairs, grid.tiles()))
    done = 0
    keys = grid.order(grid, group)
    with closing(engine.run(keys, InMemory(out, grid))) as parts:
        for part in parts:
            done += part.entries * weights[part.family]
            if progress is not None:
                progress(min(1.0, done / total))


def fill_diagonal(
    families: Sequence[Family], samples: Samples, out: Output, dtype: Dtype, threads: int
) -> None:
    """Compute ``k(x, x)`` of all kernels into an array (n_networks, n_kinds, n)."""
    for family in families:  # each in blocks of its own
        size = family.backend.lanes(dtype)
        if not family.program.nodes:  # dense: a block is little work, and little memory
            size *= _DENSE_SQUARES
        grid = Grid(len(samples), len(samples), size, "upper")
        sides = make_sides(samples, None, [family], dtype, size, 1, most_open(threads))
        engine = Engine([family], *sides, grid, dtype, threads, only_diagonal=True)
        keys = ((i, i) for i in range(grid.shape[0]))
        with closing(engine.run(keys, Diagonal(out, grid, family.positions))) as parts:
            for _ in parts:
                pass


def memory_grid(n1: int, n2: int | None) -> Grid:
    """Return the tiles that `fill` works on; n2 None: a symmetric matrix."""
    return Grid(n1, n1 if n2 is None else n2, _SIDE, "upper" if n2 is None else "full")


def held_blocks(
    families: Sequence[Family], dtype: Dtype, grid: Grid, threads: int
) -> tuple[int, int]:
    """Return how many blocks of profiles of rows and of columns `fill` holds: what is useful."""
    count, _ = calls(families, dtype, grid.tile, IN_FLIGHT * threads)
    columns = columns_in_use(threads, count)
    room = min(family.backend.profile_room() for family in families)
    fit = room // (grid.tile * profile_bytes(families, dtype))
    return max(1, min(sum(grid.shape), fit - columns)), columns
