"""What solvers take of memory, so that too little is told before the work: pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from widelimit.machine import no_room

__all__ = ["AHEAD", "Room", "fitting_width", "packed", "panel_room", "panel_tiles", "pass_bytes"]

AHEAD = 2  # tiles that are read before they are wanted, and that wait to be written
_OTHER_TILES = 8  # one of k while it is read, and what is being written
_PACKED = 512  # rows or columns of a product that a BLAS copies to buffers of each thread ...
_MOST_PACKED = 2**25  # ... and their bytes, at most
_FIRST_USE = (
    2**23
)  # bytes: code of the BLAS and of others that is read from the disk when it is run


@dataclass(frozen=True, slots=True)
class Room:
    """What a factorisation may hold.

    Parameters
    ----------
    group : int
        Rows of tiles that are computed side by side.
    tiles : float
        Of a panel: see `panel_tiles`.
    """

    group: int
    tiles: float


def panel_tiles(first: int, group: int, width: int) -> float:
    """Return the tiles that a panel holds: rows above, its triangle, sums of rows and the next.

    Parameters
    ----------
    first, width : int
        Column of tiles that it begins with, and columns.
    group : int
        Rows of tiles.
    """
    return width * first + width * (width + 1) / 2 + 2 * group * width


def panel_room(rows: int, side: int, itemsize: int, threads: int, left: float) -> Room:
    """Return what a factorisation may hold: as many rows side by side as threads, if they fit.

    Parameters
    ----------
    rows, side : int
        Of tiles; of a tile.
    itemsize : int
    threads : int
        At most.
    left : float
        Bytes.

    Raises
    ------
    MemoryError
        If the widest row does not fit, of the last panel.
    """
    tile, need = side * side * itemsize, 0.0
    for group in range(threads, 0, -1):
        other = (AHEAD * (1 + group) + _OTHER_TILES) * tile + group * packed(side, itemsize)
        need = panel_tiles(rows - 1, group, 1) * tile + other
        if need <= left:
            return Room(group, (left - other) / tile)
    raise no_room(need, left, "raise memory, or use a smaller tile for a new factor")


def packed(side: int, itemsize: int) -> int:
    """Return the bytes that a BLAS takes to multiply tiles on one thread, about."""
    return min(_MOST_PACKED, _PACKED * (side + _PACKED) * itemsize)


def pass_bytes(n: int, columns: int, blocks: int, side: int) -> int:
    """Return the bytes of blocks of columns of float64, and of a pass over a matrix with one.

    Parameters
    ----------
    n, columns : int
        Of a block.
    blocks : int
        That there are at a time.
    side : int
        Of the pieces that the matrix is read in.
    """
    return _FIRST_USE + 8 * (columns * (blocks * n + 2 * side) + 3 * side * side)


def fitting_width(tiles: Callable[[int], float], budget: float, most: int) -> int:
    """Return the largest number of columns of tiles that fits, at least 1."""
    width = 1
    while width < most and tiles(width + 1) <= budget:
        width += 1
    return width
