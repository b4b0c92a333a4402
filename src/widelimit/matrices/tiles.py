"""Cutting a Gram matrix into tiles: pure functions, no arrays of data.

Twice: a `Grid` cuts the matrix into square tiles, the unit that is stored and sent to workers;
`rectangle` and `triangle` cut one of these into the `Pairs` of single calls of a backend. Such a
tile is best when its columns fill whole lane groups. What does not fill one (the triangles on the
diagonal, the last few samples) is collected as single pairs, which share lanes freely.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widelimit.backends.base import Pairs

__all__ = ["Grid", "Key", "Region", "rectangle", "triangle"]

Key: TypeAlias = tuple[int, int]
"""Row and column of a tile in its grid."""

Region: TypeAlias = Literal["full", "upper", "lower"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Square tiles of a matrix.

    Parameters
    ----------
    n1, n2 : int
        Shape of the matrix.
    tile : int
        Side of a tile; those at the lower and right edge are smaller.
    region : {"full", "upper", "lower"}
        Which tiles there are: all, or those that touch or lie above (below) the diagonal.
    """

    n1: int
    n2: int
    tile: int
    region: Region

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.n1 // self.tile), -(-self.n2 // self.tile)

    def tiles(self) -> Iterator[Key]:
        """Yield the keys of all tiles, row by row."""
        rows, columns = self.shape
        for i in range(rows):
            first = i if self.region == "upper" else 0
            last = i + 1 if self.region == "lower" else columns
            for j in range(first, last):
                yield i, j

    def extent(self, key: Key) -> tuple[slice, slice]:
        """Return the rows and columns of the matrix that a tile covers."""
        i, j = (index * self.tile for index in key)
        return slice(i, min(self.n1, i + self.tile)), slice(j, min(self.n2, j + self.tile))

    def common(self, other: Grid) -> set[Key]:
        """Return the keys of the tiles that cover the same entries in another grid."""
        mine, others = set(self.tiles()), set(other.tiles())
        return {key for key in mine & others if self.extent(key) == other.extent(key)}

    def pairs(self, key: Key) -> int:
        """Return the number of entries of a tile, without the mirror images of a diagonal tile."""
        rows, columns = (part.stop - part.start for part in self.extent(key))
        half = self.region != "full" and key[0] == key[1]
        return rows * (rows + 1) // 2 if half else rows * columns

    def order(self, keys: Container[Key], group: int) -> Iterator[Key]:
        """Yield some keys in an order in which few rows and columns of tiles are wanted at a time.

        Parameters
        ----------
        keys : container of Key
            Those that are wanted.
        group : int
            Rows of tiles that are swept together: a column of tiles is then wanted for so many
            rows before the next one.
        """
        rows, columns = self.shape
        wanted = set(self.tiles())
        for start in range(0, rows, group):
            for j in range(columns):
                for i in range(start, min(start + group, rows)):
                    if (i, j) in wanted and (i, j) in keys:
                        yield i, j


def rectangle(n1: int, n2: int, lanes: int, rows_per_tile: int) -> Iterator[tuple[Pairs, bool]]:
    """Cut all pairs of n1 left and n2 right samples.

    Parameters
    ----------
    n1, n2 : int
    lanes : int
        Size of a lane group.
    rows_per_tile : int
        Largest number of rows of a tile, and of lane groups of single pairs in a tile.

    Yields
    ------
    tile, swapped : Pairs, bool
        If `swapped`, `tile.rows` are right and `tile.columns` left samples: then the lanes run
        along the left samples, where more of them are left to fill a group.
    """
    whole1, whole2 = n1 - n1 % lanes, n2 - n2 % lanes
    for tile in _blocks(np.arange(n1), np.arange(whole2), lanes, rows_per_tile):
        yield tile, False
    rest = np.arange(whole2, n2)
    for tile in _blocks(rest, np.arange(whole1), lanes, rows_per_tile):
        yield tile, True
    rows, columns = np.meshgrid(np.arange(whole1, n1), rest, indexing="ij")
    for tile in _pairs(rows.ravel(), columns.ravel(), lanes * rows_per_tile):
        yield tile, False


def triangle(n: int, lanes: int, rows_per_tile: int, *, pack: bool) -> Iterator[Pairs]:
    """Cut the pairs ``i <= j`` of n samples; the other half is the mirror image.

    Parameters
    ----------
    n, lanes, rows_per_tile : int
        As for `rectangle`.
    pack : bool
        Whether to pick the pairs of the diagonal triangles one by one; if not, whole squares are
        computed there, of which half is redundant: cheaper when a pair costs less than packing it.
    """
    whole = n - n % lanes
    for start in range(0, whole, lanes):
        group = np.arange(start, start + lanes)
        stop = start if pack else start + lanes
        yield from _blocks(np.arange(stop), group, lanes, rows_per_tile)
    rest = np.arange(whole, n)
    yield from _blocks(rest, np.arange(whole), lanes, rows_per_tile)
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    starts = range(0, n, lanes) if pack else [whole]
    for start in starts:
        i, j = np.triu_indices(min(lanes, n - start))
        rows.append(i + start)
        columns.append(j + start)
    yield from _pairs(np.concatenate(rows), np.concatenate(columns), lanes * rows_per_tile)


def _blocks(
    rows: NDArray[np.int64], columns: NDArray[np.int64], lanes: int, rows_per_tile: int
) -> Iterator[Pairs]:
    for group in range(0, len(columns), lanes):
        for start in range(0, len(rows), rows_per_tile):
            yield Pairs(rows[start : start + rows_per_tile], columns[group : group + lanes])


def _pairs(
    rows: NDArray[np.int64], columns: NDArray[np.int64], pairs_per_tile: int
) -> Iterator[Pairs]:
    for start in range(0, len(rows), pairs_per_tile):
        part = slice(start, start + pairs_per_tile)
        yield Pairs(rows[part], columns[part], pairwise=True)
