"""The grid of square tiles of a matrix: what is stored, and sent to workers.

What one call of a backend computes is a part of a tile: `widelimit.backends.base.Pairs`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Grid", "Key", "Region"]

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

    def __len__(self) -> int:
        """Return the number of tiles."""
        rows, columns = self.shape
        return rows * columns if self.region == "full" else rows * (rows + 1) // 2

    def __contains__(self, key: Key) -> bool:
        """Return whether there is such a tile."""
        (i, j), (rows, columns) = key, self.shape
        inside = 0 <= i < rows and 0 <= j < columns
        return inside and (self.region == "full" or (i <= j if self.region == "upper" else i >= j))

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
