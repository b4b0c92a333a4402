"""Tile size, threads and profiles to hold, solved from a memory budget: pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from widelimit.machine import held_memory
from widelimit.matrices.tiles import Grid, Key

__all__ = [
    "IN_FLIGHT",
    "Plan",
    "Sizes",
    "batches",
    "columns_in_use",
    "most_open",
    "solve",
    "tasks_in_flight",
]

IN_FLIGHT = 4
"""Tasks that each thread has: those that wait outlast the profiles of the next block of samples."""

_SIDES = (1024, 512, 256, 128, 64)
_SMALL_SIDES = (32, 16)  # only where pairs cost so much: a tile is two files, each flushed
_TILE_COST = 5e10  # element-layers: half a minute of one core
_TILES_A_SIDE = 4  # at least, so that there is something to share out and to resume
_THREAD = 2**20  # stack and small objects of a thread
_MAX_HOLE = 2**25  # bytes: what is larger, the allocator of the GNU C library gives back at once
_KEYS_IN_FLIGHT, _TASKS_IN_FLIGHT = 2**16, 2**12  # with workers, at most
_KEY, _TASK = 128, 2**12  # bytes, about


def most_open(threads: int) -> int:
    """Return how many tiles may be begun and not yet handed over: all threads have work."""
    return threads + 2


def columns_in_use(threads: int, calls: int) -> int:
    """Return how many columns of tiles the tasks under way can belong to, and the next one.

    Parameters
    ----------
    threads : int
        Each has `IN_FLIGHT` tasks.
    calls : int
        Into which a tile is cut, at least.
    """
    return min(most_open(threads), 1 + math.ceil(IN_FLIGHT * threads / calls))


def tasks_in_flight(size: int) -> int:
    """Return how many tasks, each of some tiles, are handed out to workers at a time."""
    return max(1, min(_TASKS_IN_FLIGHT, _KEYS_IN_FLIGHT // size))


@dataclass(frozen=True, slots=True)
class Plan:
    """How tiles are computed.

    Parameters
    ----------
    tile : int
        Side of a tile.
    threads : int
    group : int
        Rows of tiles that are swept together, so that their profiles stay held.
    columns : int
        Columns of tiles whose profiles are held beside them.
    """

    tile: int
    threads: int
    group: int
    columns: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the memory of a run is made of, in bytes.

    Parameters
    ----------
    n1, n2 : int
        Samples.
    symmetric : bool
    entry : int
        One entry, of one matrix.
    matrices : int
        Networks times kinds.
    sample : int
        One sample as float64.
    profile : int
        Profiles of one sample, for all programs.
    scratch : int
        Work space of one thread.
    calls : callable
        Of the side of a tile: into how many calls of a backend it is cut, at least, and the bytes
        of the values of one.
    element_layers : int
        Cost of a pair (no memory: it bounds the tile).
    listed : int
        A tile of one matrix, in a list of what is stored.
    handed_out : bool
        Whether tasks for workers are held.
    """

    n1: int
    n2: int
    symmetric: bool
    entry: int
    matrices: int
    sample: int
    profile: int
    scratch: int
    calls: Callable[[int], tuple[int, int]]
    element_layers: int
    listed: int = 0
    handed_out: bool = False

    def grid(self, tile: int) -> Grid:
        """Return the grid of tiles of a size."""
        return Grid(self.n1, self.n2, tile, "upper" if self.symmetric else "full")

    def columns(self, tile: int, threads: int) -> int:
        """Return the fewest columns of tiles whose profiles are held."""
        return columns_in_use(threads, self.calls(tile)[0])

    def need(self, tile: int, threads: int, held: int) -> int:
        """Return the bytes that are taken at the peak, with so many blocks of profiles held."""
        # Of a tile that is being finished one matrix is copied to be filled up, encoded, and given
        # its checksum, after a look for NaN, on one thread more. One of another store may be read
        # meanwhile.
        tiles = (most_open(threads) * self.matrices + 4) * self.entry
        blocks = (held + 1) * self.profile + 3 * self.sample
        thread = self.scratch + self.calls(tile)[1] + tile**2 + _THREAD
        # What is freed between blocks that are held may fit nothing that is wanted then.
        holes = 2 * min(_MAX_HOLE, tile * max(self.profile, self.sample))
        taken = threads * thread + _THREAD + tile**2 * tiles + tile * blocks + holes
        return taken + self.bookkeeping(tile)

    def bookkeeping(self, tile: int) -> int:
        """Return the bytes that it takes to know what there is of the tiles of a size."""
        grid = self.grid(tile)
        # Some sets of tiles, a count of matrices, and a checksum for each of them.
        taken = math.prod(grid.shape) * (8 + 4 * self.matrices)
        taken += len(grid) * self.matrices * self.listed
        if self.handed_out:
            taken += (
                min(len(grid), _KEYS_IN_FLIGHT) * _KEY + min(len(grid), _TASKS_IN_FLIGHT) * _TASK
            )
        return taken


def solve(sizes: Sizes, budget: float, threads: int, tile: int | None, engines: int = 1) -> Plan:
    """Choose the plan that fits a budget.

    Parameters
    ----------
    sizes : Sizes
    budget : float
        Bytes.
    threads : int
        At most.
    tile : int or None
        The size of a tile, if it is given.
    engines : int
        That have a budget like this one in this process.

    Returns
    -------
    Plan
        As many threads as fit, then tiles as large as fit, are not costlier than half a minute (or
        the smallest), and leave several on a side; then as many profiles as fit.

    Raises
    ------
    MemoryError
        If nothing fits; with the least that would, and the `memory` of the process for it.
    """
    for workers in range(threads, 0, -1):
        for side in preferred_sides(sizes) if tile is None else (tile,):
            columns = sizes.columns(side, workers)
            left = budget - sizes.need(side, workers, columns + 1)
            if left >= 0:
                rows = sizes.grid(side).shape[0]
                more = math.floor(left / max(1, side * sizes.profile))
                return Plan(side, workers, min(rows, 1 + more), columns)
    side = tile or preferred_sides(sizes)[-1]
    least = sizes.need(side, 1, 1 + sizes.columns(side, 1))
    remedy = ""
    if tile is not None:
        other = "larger" if sizes.bookkeeping(side) > least / 2 else "smaller"
        remedy = f", or use a {other} tile for a new store"
    held = held_memory()
    enough = math.ceil((held + engines * least) / 2**20)
    raise MemoryError(
        f"this takes {least / 2**20:.0f} MiB at least beside what the process holds, "
        f"{held / 2**20:.0f} MiB, and {max(0.0, budget) / 2**20:.0f} MiB are left of memory: "
        f"raise memory{remedy}; '{enough}MiB' would be enough now"
    )


def preferred_sides(sizes: Sizes) -> Sequence[int]:
    """Return the sizes of tiles to try, best first."""
    largest = math.sqrt(_TILE_COST / max(1, sizes.element_layers))
    if largest < _SIDES[-1]:
        return [side for side in _SMALL_SIDES if side <= largest] or _SMALL_SIDES[-1:]
    largest = min(largest, max(sizes.n1, sizes.n2) / _TILES_A_SIDE)
    return [side for side in _SIDES if side <= largest] or _SIDES[-1:]


def batches(keys: Iterator[Key], size: int) -> Iterator[tuple[Key, ...]]:
    """Cut keys into tasks of a size: neighbours in order share their profiles."""
    while batch := tuple(islice(keys, size)):
        yield batch
