"""The grid of square tiles of a matrix: what is stored, and sent to workers.

What one call of a backend computes is a part of a tile: `widelimit.backends.base.Pairs`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, MutableSet, Set
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np

__all__ = ["Grid", "Key", "KeySet", "Region"]

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

    def __contains__(self, key: Key) -> bool:
        (i, j), (rows, columns) = key, self.shape
        inside = 0 <= i < rows and 0 <= j < columns
        return inside and (self.region == "full" or (i <= j if self.region == "upper" else j <= i))

    def __len__(self) -> int:
        rows, columns = self.shape
        return rows * columns if self.region == "full" else rows * (rows + 1) // 2

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

    def has_in_common(self, key: Key, other: Grid) -> bool:
        """Return whether a tile covers the same entries in another grid."""
        return key in self and key in other and self.extent(key) == other.extent(key)

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
        for start in range(0, rows, group):
            stop = min(start + group, rows)
            for j in range(columns):
                first = max(start, j) if self.region == "lower" else start
                last = min(stop, j + 1) if self.region == "upper" else stop
                for i in range(first, last):
                    if (i, j) in keys:
                        yield i, j


class KeySet(MutableSet[Key]):
    """Keys of tiles of one grid: a byte for each that there could be, as small tiles are many."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._there = np.zeros(grid.shape, np.bool_)

    def pairs(self) -> int:
        """Return the number of entries of all these tiles, as `Grid.pairs` counts them."""
        grid, total = self._grid, 0
        heights, widths = (
            np.minimum(grid.tile, n - np.arange(0, n, grid.tile)) for n in (grid.n1, grid.n2)
        )
        for i, (height, row) in enumerate(zip(heights.tolist(), self._there, strict=True)):
            total += height * int(widths[row].sum())
            if grid.region != "full" and row[i]:
                total -= height * (height - 1) // 2
        return total

    def others(self) -> KeySet:
        """Return the other keys of the grid."""
        made = KeySet(self._grid)
        cut = {"full": np.asarray, "upper": np.triu, "lower": np.tril}[self._grid.region]
        made._there = cut(~self._there)
        return made

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> Set[Any]:
        return set(it)  # what operators of sets return

    def __contains__(self, key: object) -> bool:
        i, j = cast("Key", key)
        rows, columns = self._there.shape
        return 0 <= i < rows and 0 <= j < columns and bool(self._there[i, j])

    def __iter__(self) -> Iterator[Key]:
        """Yield the keys row by row."""
        for i, row in enumerate(self._there):
            for j in np.flatnonzero(row).tolist():
                yield i, j

    def __len__(self) -> int:
        return int(np.count_nonzero(self._there))

    def add(self, value: Key) -> None:
        """Add a key of the grid."""
        self._there[value] = True

    def discard(self, value: Key) -> None:
        """Take a key out, if it is there."""
        self._there[value] = False
