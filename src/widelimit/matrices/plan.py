"""Tile size, threads and profiles to hold, solved from a memory budget: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from widelimit.matrices.tiles import Grid, Key

__all__ = ["Plan", "Sizes", "batches", "solve"]

_SIDES = (1024, 512, 256, 128, 64)
_TILE_COST = 5e10  # element-layers: half a minute of one core, the most that a kill can cost it
_TILES_A_SIDE = 4  # at least, so that there is something to share out and to resume
_THREAD = 2**20  # stack and small objects of a thread
_FEWEST_BLOCKS = 3  # the rows and the columns of a tile, and the next columns


@dataclass(frozen=True, slots=True)
class Plan:
    """How tiles are computed.

    Parameters
    ----------
    tile : int
        Side of a tile.
    threads : int
    held : int
        Blocks of profiles held, each of the samples of one side of a tile.
    """

    tile: int
    threads: int
    held: int

    @property
    def group(self) -> int:
        """Rows of tiles that are swept together, so that their profiles stay held."""
        return self.held - 2


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
    element_layers : int
        Cost of a pair (no memory: it bounds the tile).
    """

    n1: int
    n2: int
    symmetric: bool
    entry: int
    matrices: int
    sample: int
    profile: int
    scratch: int
    element_layers: int

    def grid(self, tile: int) -> Grid:
        """Return the grid of tiles of a size."""
        return Grid(self.n1, self.n2, tile, "upper" if self.symmetric else "full")

    def need(self, tile: int, threads: int, held: int) -> int:
        """Return the bytes that a plan takes at its peak."""
        # Open tiles: one that is being handed out, and one that is being finished by each thread,
        # of which one matrix is then copied to be filled up, encoded, and given its checksum.
        # One of another store may be read meanwhile.
        tiles = (threads + 1) * self.matrices * self.entry + (threads * 3 + 1) * self.entry
        blocks = (held + 1) * self.profile + 3 * self.sample
        return threads * (self.scratch + _THREAD) + tile**2 * tiles + tile * blocks


def solve(sizes: Sizes, budget: float, threads: int, tile: int | None) -> Plan:
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

    Returns
    -------
    Plan
        As many threads as fit, then tiles as large as fit, are not costlier than half a minute,
        and leave several on a side; then as many profiles as fit.

    Raises
    ------
    MemoryError
        If nothing fits; with the least that would.
    """
    for workers in range(threads, 0, -1):
        for side in preferred_sides(sizes) if tile is None else (tile,):
            left = budget - sizes.need(side, workers, _FEWEST_BLOCKS)
            if left >= 0:
                most = sum(sizes.grid(side).shape[: 1 if sizes.symmetric else 2]) + 2
                more = math.floor(left / max(1, side * sizes.profile))
                return Plan(side, workers, max(_FEWEST_BLOCKS, min(most, _FEWEST_BLOCKS + more)))
    least = sizes.need(tile or _SIDES[-1], 1, _FEWEST_BLOCKS)
    raise MemoryError(
        f"this takes {least / 2**20:.0f} MiB at least beside what the process holds, and "
        f"{max(0.0, budget) / 2**20:.0f} MiB are left of memory: raise memory"
        + ("" if tile is None else ", or use a smaller tile for a new store")
    )


def preferred_sides(sizes: Sizes) -> Sequence[int]:
    """Return the sizes of tiles to try, best first."""
    largest = math.sqrt(_TILE_COST / max(1, sizes.element_layers))
    largest = min(largest, max(sizes.n1, sizes.n2) / _TILES_A_SIDE)
    return [side for side in _SIDES if side <= largest] or _SIDES[-1:]


def batches(keys: Iterator[Key], size: int) -> Iterator[tuple[Key, ...]]:
    """Cut keys into tasks of a size: neighbours in order share their profiles."""
    while batch := tuple(islice(keys, size)):
        yield batch
