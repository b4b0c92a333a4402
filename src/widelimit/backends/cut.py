"""Cutting a tile of a Gram matrix into the `Pairs` of single calls of a backend: pure functions.

A pass over slices is best when its columns fill whole lane groups (`lane_groups`). What does not
fill one (the triangles on the diagonal, the last few samples) is collected as single pairs, which
share lanes freely. A matrix product is best in squares (`squares`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from widelimit.arrays import IntArray
from widelimit.backends.base import Entries, Pairs
from widelimit.program import Program

__all__ = ["lane_groups", "rectangle", "squares", "triangle"]

_CALL_COST = 1e8  # element-layers of one call: a tenth of a second or less
_PACKING_SLICES = 8  # packing a pair into lanes costs somewhat less than so many slices


def lane_groups(program: Program, lanes: int, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
    """Cut for a backend that passes over slices, with images in its lanes; see `Backend.cut`."""
    n1, n2, known = entries.n1, entries.n2, entries.known
    cost = program.element_layers * lanes
    most_rows = max(1, int(_CALL_COST / max(1, cost)))
    if entries.part == "diagonal":
        for part in np.split(np.arange(known, n2), range(lanes, n2 - known, lanes)):
            yield Pairs(part, part, pairwise=True), False
        return
    upper = entries.part == "upper"
    for pairs, swapped in rectangle(known if upper else n1, n2 - known, lanes, most_rows):
        yield _moved(pairs, *((known, 0) if swapped else (0, known))), swapped
    if upper:
        pack = sum(len(s.slices) for s in program.stages) > _PACKING_SLICES // 2
        for pairs in triangle(n2 - known, lanes, most_rows, pack=pack):
            yield _moved(pairs, known, known), False


def squares(side: int, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
    """Cut into squares, smaller at the lower and right edge; see `Backend.cut`."""
    for j in range(entries.known, entries.n2, side):
        columns = np.arange(j, min(entries.n2, j + side))
        if entries.part == "diagonal":
            yield Pairs(columns, columns), False
            continue
        last = entries.n1 if entries.part == "all" else int(columns[-1]) + 1
        for i in range(0, last, side):
            yield Pairs(np.arange(i, min(last, i + side)), columns), False


def rectangle(n1: int, n2: int, lanes: int, most_rows: int) -> Iterator[tuple[Pairs, bool]]:
    """Cut all pairs of n1 left and n2 right samples.

    Parameters
    ----------
    n1, n2 : int
    lanes : int
        Size of a lane group.
    most_rows : int
        Largest number of rows of a call, and of lane groups of single pairs in a call.

    Yields
    ------
    pairs, swapped : Pairs, bool
        If `swapped`, `pairs.rows` are right and `pairs.columns` left samples: then the lanes run
        along the left samples, where more of them are left to fill a group.
    """
    whole1, whole2 = n1 - n1 % lanes, n2 - n2 % lanes
    for pairs in _blocks(np.arange(n1), np.arange(whole2), lanes, most_rows):
        yield pairs, False
    rest = np.arange(whole2, n2)
    for pairs in _blocks(rest, np.arange(whole1), lanes, most_rows):
        yield pairs, True
    rows, columns = np.meshgrid(np.arange(whole1, n1), rest, indexing="ij")
    for pairs in _single(rows.ravel(), columns.ravel(), lanes * most_rows):
        yield pairs, False


def triangle(n: int, lanes: int, most_rows: int, *, pack: bool) -> Iterator[Pairs]:
    """Cut the pairs ``i <= j`` of n samples; the other half is the mirror image.

    Parameters
    ----------
    n, lanes, most_rows : int
        As for `rectangle`.
    pack : bool
        Whether to pick the pairs of the diagonal triangles one by one; if not, whole squares are
        computed there, of which half is redundant: cheaper when a pair costs less than packing it.
    """
    whole = n - n % lanes
    for start in range(0, whole, lanes):
        group = np.arange(start, start + lanes)
        stop = start if pack else start + lanes
        yield from _blocks(np.arange(stop), group, lanes, most_rows)
    rest = np.arange(whole, n)
    yield from _blocks(rest, np.arange(whole), lanes, most_rows)
    rows: list[IntArray] = []
    columns: list[IntArray] = []
    starts = range(0, n, lanes) if pack else [whole]
    for start in starts:
        i, j = np.triu_indices(min(lanes, n - start))
        rows.append(i + start)
        columns.append(j + start)
    yield from _single(np.concatenate(rows), np.concatenate(columns), lanes * most_rows)


def _blocks(rows: IntArray, columns: IntArray, lanes: int, most_rows: int) -> Iterator[Pairs]:
    for group in range(0, len(columns), lanes):
        for start in range(0, len(rows), most_rows):
            yield Pairs(rows[start : start + most_rows], columns[group : group + lanes])


def _single(rows: IntArray, columns: IntArray, most_pairs: int) -> Iterator[Pairs]:
    for start in range(0, len(rows), most_pairs):
        part = slice(start, start + most_pairs)
        yield Pairs(rows[part], columns[part], pairwise=True)


def _moved(pairs: Pairs, rows: int, columns: int) -> Pairs:
    return Pairs(pairs.rows + rows, pairs.columns + columns, pairs.pairwise)
