"""Slices of one grid and of the next: which displacements a window reads, and in which order.

Pixels of a grid are numbered from 0. The slice of displacement d has an entry for each pair of
pixels ``(p, p + d)`` inside the grid, and entry r belongs to ``min(p, p + d) = r``: an axis of n
pixels has ``n - |d|`` entries. A window of m pixels that moves s pixels at a time turns a fine grid
into a coarse one: pixel P of the coarse grid covers ``s P - low`` to ``s P - low + m - 1``. For a
pair of coarse pixels of displacement D, the pairs of fine pixels in the two windows have the
displacements ``d = s D + e``, ``|e| < m``, and for each e they are ``m - |e|`` entries in a row.
A convolution uses one filter for both images, so it reads ``e = 0`` alone.

Axes are separate: what follows is for one of them, except `schedule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import IntArray

__all__ = ["Boundary", "Run", "Schedule", "Window", "first_gap", "schedule"]


class Run(NamedTuple):
    """Entries of a fine slice that entry R of a coarse slice sums.

    They are ``first + stride R`` to ``first + stride R + length - 1``; outside the slice, 0.
    """

    fine: int  # displacement of the fine slice
    coarse: int  # displacement of the coarse slice
    first: int
    length: int


@dataclass(frozen=True, slots=True)
class Window:
    """A window that moves along one axis.

    Parameters
    ----------
    size : int
        m, in pixels.
    stride : int
        s, pixels from one place to the next.
    low, high : int
        Zeros before the first and after the last pixel.
    """

    size: int
    stride: int = 1
    low: int = 0
    high: int = 0

    def extent(self, fine: int) -> int:
        """Return how many places the window has on so many pixels; 0 if it does not fit."""
        room = fine + self.low + self.high - self.size
        return 0 if room < 0 else room // self.stride + 1

    def run(self, coarse: int, e: int = 0) -> Run:
        """Return what a coarse slice sums of the fine slice ``stride * coarse + e``."""
        fine = self.stride * coarse + e
        first = self.stride * max(0, -coarse) - self.low + max(0, -e) - max(0, -fine)
        return Run(fine, coarse, first, self.size - abs(e))

    def offsets(self, *, diagonal: bool) -> range:
        """Return every e: 0 alone for a convolution (`diagonal`), all for a mean."""
        return range(1) if diagonal else range(1 - self.size, self.size)

    def sources(self, coarse: int, fine_extent: int, *, diagonal: bool) -> tuple[Run, ...]:
        """Return what a coarse slice reads, of the fine slices that exist."""
        runs = (self.run(coarse, e) for e in self.offsets(diagonal=diagonal))
        return tuple(run for run in runs if abs(run.fine) < fine_extent)

    def targets(self, fine: int, coarse_extent: int, *, diagonal: bool) -> tuple[Run, ...]:
        """Return the coarse slices that a fine slice adds to, and how."""
        reach = 0 if diagonal else self.size - 1
        least, most = -((reach - fine) // self.stride), (fine + reach) // self.stride
        places = range(max(least, 1 - coarse_extent), min(most, coarse_extent - 1) + 1)
        return tuple(self.run(D, fine - self.stride * D) for D in places)

    def spread(self, fine: int, *, diagonal: bool) -> NDArray[np.bool_]:
        """Return which fine displacements each coarse one reads.

        Returns
        -------
        ndarray of bool, shape (2 * extent(fine) - 1, 2 * fine - 1)
            Displacements in ascending order.
        """
        coarse = self.extent(fine)
        read = np.arange(1 - fine, fine)[None, :]
        reading = np.arange(1 - coarse, coarse)[:, None]
        return abs(read - self.stride * reading) < (1 if diagonal else self.size)


@dataclass(frozen=True, slots=True)
class Boundary:
    """What separates two grids: one window for each axis.

    Parameters
    ----------
    rows, columns : Window
    diagonal : bool
        Whether both images are read at the same place of the window: a convolution.
    """

    rows: Window
    columns: Window
    diagonal: bool

    def targets(self, d: tuple[int, int], coarse: tuple[int, int]) -> list[tuple[Run, Run]]:
        """Return the coarse slices that a fine slice adds to: a run for each axis."""
        down = self.rows.targets(d[0], coarse[0], diagonal=self.diagonal)
        across = self.columns.targets(d[1], coarse[1], diagonal=self.diagonal)
        return [(a, b) for a in down for b in across]


@dataclass(frozen=True, eq=False)
class Schedule:
    """In which order fine slices go by, and where coarse ones gather meanwhile.

    Slices are those that are not negative, ``d >= (0, 0)``; each stands for d and -d.

    Parameters
    ----------
    fine : ndarray of int64, shape (n_fine, 2)
        Fine slices in order: those that a coarse slice needs, then all others.
    needs : ndarray of int64, shape (n_coarse,)
        How many fine slices must be done before each coarse slice can begin; ascending.
    slots : ndarray of int64, shape (n_coarse,)
        First entry of the memory where a coarse slice gathers, with its opposite right after it.
    size : int
        Entries of that memory.
    alive : int
        Entries of coarse slices that gather at one time, at most: `size` is no less.
    """

    fine: IntArray
    needs: IntArray
    slots: IntArray
    size: int
    alive: int


def schedule(
    boundaries: Sequence[Boundary],
    coarse: IntArray,
    coarse_shape: tuple[int, int],
    fine: IntArray,
) -> Schedule:
    """Order fine slices by the first coarse slice that needs them, and give out memory.

    Memory is given out as registers are: a coarse slice has its entries from the first fine slice
    that adds to it until it begins, in the first gap that is large enough.

    Parameters
    ----------
    boundaries : sequence of Boundary
        Between the two grids, all of one stride.
    coarse : ndarray of int64, shape (n_coarse, 2)
        Coarse slices, not negative, in the order in which they will be done.
    coarse_shape : tuple of int
        Pixels of the coarse grid.
    fine : ndarray of int64, shape (n_fine, 2)
        Fine slices, not negative: all that a coarse slice of the list reads, and maybe others.
    """
    order = [(int(i), int(j)) for i, j in coarse]
    place = {D: index for index, D in enumerate(order)}
    feeds: dict[tuple[int, int], list[int]] = {}
    for i, j in fine.tolist():
        places: set[int] = set()
        for boundary in boundaries:
            for d in ((i, j), (-i, -j)):
                for a, b in boundary.targets(d, coarse_shape):
                    target = max((a.coarse, b.coarse), (-a.coarse, -b.coarse))
                    if target in place:
                        places.add(place[target])
        feeds[i, j] = sorted(places)
    late = len(order)
    sorted_fine = sorted(feeds, key=lambda d: (feeds[d][0] if feeds[d] else late, d))
    needs = np.zeros(late, np.int64)
    for number, d in enumerate(sorted_fine, start=1):
        needs[feeds[d]] = number
    needs = np.maximum.accumulate(needs)

    slots = np.full(late, -1, np.int64)
    taken: list[tuple[int, int, int]] = []  # start, stop, coarse slice: in order
    size = alive = position = 0
    for index, coarse_slice in enumerate(order):
        for d in sorted_fine[position : int(needs[index])]:
            for new in feeds[d]:
                if slots[new] < 0:
                    slots[new] = first_gap(taken, _entries(order[new], coarse_shape), new)
        position = int(needs[index])
        alive = max(alive, sum(stop - start for start, stop, _ in taken))
        size = max(size, taken[-1][1] if taken else 0)
        taken = [entry for entry in taken if entry[2] != index]
        assert slots[index] >= 0, f"no fine slice adds to {coarse_slice}"
    return Schedule(np.array(sorted_fine, np.int64).reshape(-1, 2), needs, slots, size, alive)


def _entries(D: tuple[int, int], shape: tuple[int, int]) -> int:
    """Return the entries of a slice and its opposite."""
    return (shape[0] - abs(D[0])) * (shape[1] - abs(D[1])) * (1 if D == (0, 0) else 2)


def first_gap(taken: list[tuple[int, int, int]], entries: int, owner: int) -> int:
    """Take the first gap of so many entries in memory that is partly taken; return where it begins.

    Parameters
    ----------
    taken : list of (start, stop, owner)
        In order; the new one is put in.
    entries, owner : int
    """
    start = 0
    for index, (begin, stop, _) in enumerate(taken):
        if begin - start >= entries:
            taken.insert(index, (start, start + entries, owner))
            return start
        start = stop
    taken.append((start, start + entries, owner))
    return start
