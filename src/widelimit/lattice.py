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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import IntArray

__all__ = ["Boundary", "Run", "Schedule", "Window", "first_gap", "schedule", "strip_width"]

_BORDER = 1 / 16  # of the columns of a strip, that go by for its neighbour, too


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

    def unread(self, fine: int) -> int:
        """Return how many of the last pixels are in no place of the window."""
        last = (self.extent(fine) - 1) * self.stride - self.low + self.size
        return max(0, fine - last)

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

    Slices are those that are not negative, ``d >= (0, 0)``; each stands for d and -d. Where coarse
    slices are taken in strips, one after the other, fine slices that two of them read go by twice,
    and each time add to one strip alone.

    Parameters
    ----------
    fine : ndarray of int64, shape (n_passes, 2)
        Fine slices, each as often as it goes by.
    strips : ndarray of int64, shape (n_passes,)
        The strip to which each adds.
    first : ndarray of bool, shape (n_passes,)
        Whether it has not gone by before.
    coarse : ndarray of int64, shape (n_coarse, 2)
        Coarse slices in the order in which they are complete, but d = 0 comes first.
    strip : ndarray of int64, shape (n_coarse,)
        In which each is.
    needs : ndarray of int64, shape (n_coarse,)
        How many fine slices must have gone by before each coarse slice can begin; ascending.
    slots : ndarray of int64, shape (n_coarse,)
        First entry of the memory where a coarse slice gathers, with its opposite right after it.
    size : int
        Entries of that memory.
    alive : int
        Entries of coarse slices that gather at one time, at most: `size` is no less.
    """

    fine: IntArray
    strips: IntArray
    first: NDArray[np.bool_]
    coarse: IntArray
    strip: IntArray
    needs: IntArray
    slots: IntArray
    size: int
    alive: int


def schedule(
    boundaries: Sequence[Boundary],
    coarse: IntArray,
    coarse_shape: tuple[int, int],
    fine: IntArray,
    width: int | None = None,
) -> Schedule:
    """Order slices, and give out memory.

    Memory is given out as registers are: a coarse slice has its entries from the first fine slice
    that adds to it until it begins, in the first gap that is large enough. A row of coarse
    displacements gathers at a time, or what of it is in one strip.

    Parameters
    ----------
    boundaries : sequence of Boundary
        Between the two grids.
    coarse : ndarray of int64, shape (n_coarse, 2)
        Coarse slices, not negative, ascending.
    coarse_shape : tuple of int
        Pixels of the coarse grid, the largest if there are several.
    fine : ndarray of int64, shape (n_fine, 2)
        Fine slices, not negative, in the order in which they go by, in each strip: all that a
        coarse slice reads, and maybe others. What one coarse slice reads comes in this order,
        however wide strips are.
    width : int or None
        Of strips, in displacements along rows; that around 0 comes first. None: all in one.
    """
    place = {(int(i), int(j)): index for index, (i, j) in enumerate(coarse)}
    strip = np.zeros(len(coarse), np.int64)
    if width is not None:
        away = (coarse[:, 1] + width // 2) // width
        strip = np.where(away < 0, -2 * away - 1, 2 * away)
    axes = [_targets(boundary, fine, coarse_shape) for boundary in boundaries]
    passes: list[tuple[int, int, list[int]]] = []  # strip, fine slice, coarse slices
    for number, (i, j) in enumerate(fine.tolist()):
        found = {
            place.get(max((a, b), (-a, -b)), -1)
            for down, across in axes
            for a in down[i]
            for b in across[j]
        }
        feeds: dict[int, list[int]] = {}
        for index in sorted(found - {-1}):
            feeds.setdefault(int(strip[index]), []).append(index)
        passes += [(into, number, feeds[into]) for into in feeds] or [(0, number, [])]
    passes.sort(key=lambda entry: entry[0])  # in each strip the order stays
    needs = np.zeros(len(coarse), np.int64)
    for position, (_, _, adds) in enumerate(passes, start=1):
        needs[adds] = position
    # d = 0 comes first, and the strip around it: where an image meets itself, all others need what
    # it makes. A small grid may have slices that nothing is missing for before that.
    if (0, 0) in place:
        needs = np.maximum(needs, needs[place[0, 0]])
    order = np.argsort(needs, kind="stable")

    slots = np.full(len(coarse), -1, np.int64)
    taken: list[tuple[int, int, int]] = []  # start, stop, coarse slice: in order
    size = alive = position = 0
    for index in order.tolist():
        for _, _, adds in passes[position : int(needs[index])]:
            for new in adds:
                if slots[new] < 0:
                    slots[new] = first_gap(taken, _entries(coarse[new], coarse_shape), new)
        position = int(needs[index])
        alive = max(alive, sum(stop - start for start, stop, _ in taken))
        size = max(size, taken[-1][1] if taken else 0)
        taken = [entry for entry in taken if entry[2] != index]
        assert slots[index] >= 0, f"no fine slice adds to {coarse[index]}"
    numbers = np.array([number for _, number, _ in passes], np.int64)
    first = np.zeros(len(passes), bool)
    first[np.unique(numbers, return_index=True)[1]] = True
    strips = np.array([into for into, _, _ in passes], np.int64)
    by_order = (coarse[order], strip[order], needs[order], slots[order])
    return Schedule(fine[numbers], strips, first, *by_order, size, alive)


def strip_width(
    boundaries: Sequence[Boundary], coarse_shape: tuple[int, int], size: int, most: int
) -> int | None:
    """Return how wide strips are to be, so that one gathers in `most` entries; None: all is one.

    For W coarse columns s W + 2 m - 1 - s fine ones go by. Strips are not so narrow that these are
    more than `_BORDER` above s W, whatever memory that takes.

    Parameters
    ----------
    boundaries, coarse_shape
        As for `schedule`.
    size : int
        Entries that are taken where all is one strip.
    most : int
    """
    windows = [boundary.columns for boundary in boundaries if not boundary.diagonal]
    least = [math.ceil((2 * m.size - 1 - m.stride) / (m.stride * _BORDER)) for m in windows]
    width = max(1, most * coarse_shape[1] // size, *least)
    return width if size > most and width < 2 * coarse_shape[1] - 1 else None


def _targets(
    boundary: Boundary, fine: IntArray, coarse: tuple[int, int]
) -> list[dict[int, list[int]]]:
    """Return, for each axis and fine displacement, the coarse displacements that it adds to."""
    windows = boundary.rows, boundary.columns
    return [
        {
            d: [run.coarse for run in window.targets(d, extent, diagonal=boundary.diagonal)]
            for d in set(along.tolist())
        }
        for window, along, extent in zip(windows, fine.T, coarse, strict=True)
    ]


def _entries(D: IntArray, shape: tuple[int, int]) -> int:
    """Return the entries of a slice and its opposite."""
    i, j = D.tolist()
    return (shape[0] - abs(i)) * (shape[1] - abs(j)) * (1 if i == j == 0 else 2)


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
