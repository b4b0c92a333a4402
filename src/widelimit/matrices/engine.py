"""Computing tiles of a Gram matrix on threads, with progress and cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial

from widelimit.backends.base import Dtype, Entries
from widelimit.machine import blas_on_one_thread
from widelimit.matrices.families import Family, calls, profile_bytes
from widelimit.matrices.passes import Output, Pass
from widelimit.matrices.plan import columns_in_use, most_open
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
    """What one task has done: entries of one family, and perhaps the last of a tile."""

    entries: int
    family: int
    finished: Key | None


class _OpenTile:
    """A tile whose tasks are under way."""

    def __init__(self, key: Key, values: Output, sink: Sink) -> None:
        self.key, self.values = key, values
        self._sink = sink
        self._left = 1  # the task of handing out tasks
        self._handed_over = False
        self._lock = threading.Lock()

    def add(self) -> None:
        """Count one task more."""
        with self._lock:
            self._left += 1

    def remove(self) -> Key | None:
        """Count one task less; hand the tile over after the last, and return its key."""
        with self._lock:
            self._left -= 1
            if self._left:
                return None
        self._sink.end(self.key, self.values)
        self._handed_over = True
        return self.key

    @property
    def is_open(self) -> bool:
        """Whether a task is under way, or the tile is being handed over."""
        return not self._handed_over

    def run(self, compute: Callable[[], int], family: int) -> Done:
        """Run one task."""
        return Done(compute(), family, self.remove())


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
        with Threads(self._threads) as threads, blas_on_one_thread() if large else nullcontext():
            yield from threads.run(self._tasks(keys, sink, threads))

    def _tasks(
        self, keys: Iterable[Key], sink: Sink, threads: Threads
    ) -> Iterator[Callable[[], Done] | None]:
        """Yield tasks; None while what they need would be more than `Sizes.need` counts."""
        tiles: list[_OpenTile] = []
        for key in keys:
            while len(tiles := [tile for tile in tiles if tile.is_open]) >= most_open(
                self._threads
            ):
                yield None
            yield from self._tile(key, sink, threads, tiles)

    def _tile(
        self, key: Key, sink: Sink, threads: Threads, tiles: list[_OpenTile]
    ) -> Iterator[Callable[[], Done] | None]:
        """Begin one tile, and yield its tasks."""
        sides: list[list[Block]] = []
        for side, index in zip((self._left, self._right), key, strict=True):
            while not side.has_room(index):
                yield None
            sides.append(side.block(index, threads))
        entries = self._entries(key)
        tile = _OpenTile(key, sink.begin(key), sink)
        tiles.append(tile)
        for index, (family, a, b) in enumerate(zip(self._families, *sides, strict=True)):
            mirrored = entries.part == "upper"
            part = Pass(family, self._dtype, a, b, mirrored, tile.values, threads.cancel)
            for compute in part.tasks(entries):
                tile.add()
                yield partial(tile.run, compute, index)
        if finished := tile.remove():
            yield partial(Done, 0, 0, finished)

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
    count, _ = calls(families, dtype, grid.tile, 2 * threads)
    columns = columns_in_use(threads, count)
    room = min(family.backend.profile_room() for family in families)
    fit = room // (grid.tile * profile_bytes(families, dtype))
    return max(1, min(sum(grid.shape), fit - columns)), columns
