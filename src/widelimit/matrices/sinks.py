"""Where the tiles of a Gram matrix go: an array in memory, or a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from widelimit.matrices.manifest import Manifest
from widelimit.matrices.passes import Output
from widelimit.matrices.store import TileStore
from widelimit.matrices.tiles import Grid, Key

__all__ = ["Diagonal", "InMemory", "Sink", "Stored"]


class Sink(Protocol):
    """Where the tiles of a Gram matrix go."""

    def begin(self, key: Key) -> Output:
        """Return the array ``(n_networks, n_kinds, rows, columns)`` that a tile is put into."""
        ...

    def end(self, key: Key, values: Output) -> None:
        """Take a tile that is complete. Any thread may call."""
        ...


class InMemory:
    """Puts tiles into one array, (n_networks, n_kinds, n1, n2), with their mirror images."""

    def __init__(self, out: Output, grid: Grid) -> None:
        self._out, self._grid = out, grid

    def begin(self, key: Key) -> Output:
        """Return the part of the array that a tile is."""
        return self._out[:, :, *self._grid.extent(key)]

    def end(self, key: Key, values: Output) -> None:
        """Copy a tile to the place of its mirror image."""
        if self._grid.region == "upper" and key[0] != key[1]:
            rows, columns = self._grid.extent(key)
            self._out[:, :, columns, rows] = values.swapaxes(-1, -2)


class Diagonal:
    """Puts the diagonals of tiles into one array, (n_networks, n_kinds, n).

    Parameters
    ----------
    out : ndarray
    grid : Grid
    positions : sequence of int
        The networks whose kernels are computed.
    """

    def __init__(self, out: Output, grid: Grid, positions: Sequence[int]) -> None:
        self._out, self._grid, self._positions = out, grid, list(positions)

    def begin(self, key: Key) -> Output:
        """Return memory for a tile."""
        rows, columns = (part.stop - part.start for part in self._grid.extent(key))
        return np.empty((*self._out.shape[:2], rows, columns), self._out.dtype)

    def end(self, key: Key, values: Output) -> None:
        """Keep the diagonal of a tile."""
        diagonals = values[self._positions].diagonal(axis1=-2, axis2=-1)
        self._out[self._positions, :, self._grid.extent(key)[0]] = diagonals


class Stored:
    """Puts tiles into a store.

    Parameters
    ----------
    store : TileStore
    manifest : Manifest
    old : TileStore or None
        The same matrices of the first samples: entries that are there are put into new tiles.
    """

    def __init__(self, store: TileStore, manifest: Manifest, old: TileStore | None) -> None:
        self._store, self._old = store, old
        self._matrices = (len(manifest.networks), len(manifest.kinds))

    def begin(self, key: Key) -> Output:
        """Return memory for a tile, with the entries that are known."""
        rows, columns = (part.stop - part.start for part in self._store.grid.extent(key))
        # What is left out is not stored in silence: NaN is refused.
        values = np.full((*self._matrices, rows, columns), np.nan, self._store.dtype)
        if self._old is not None and max(key) < self._old.grid.shape[0]:
            by_place = values.reshape(*self._old.shape[:-2], rows, columns)
            for place in self._old.places:
                known = self._old.read(key, place)
                by_place[place][: known.shape[0], : known.shape[1]] = known
        return values

    def end(self, key: Key, values: Output) -> None:
        """Write a tile."""
        leading = self._store.shape[:-2]
        self._store.write(key, values.reshape(*leading, *values.shape[-2:]))
