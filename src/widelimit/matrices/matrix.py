"""`Gram`: a stored Gram matrix that reads like an array."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.markup import facts
from widelimit.matrices.manifest import Manifest
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import StoreError, TileStore

__all__ = ["Gram", "open_gram"]


class Gram:
    """A Gram matrix in a store; `gram` makes it, `open_gram` finds it again.

    ``k[i:j, l:m]`` reads a part as an ndarray, as if the whole matrix were there: of a symmetric
    one only half is stored. ``np.asarray(k)`` reads it all. Every tile that is read is checked.

    Parameters
    ----------
    store : TileStore
    place : tuple of int
        Which of the matrices of the store.
    manifest : Manifest
        What the store holds.
    """

    ndim = 2

    def __init__(self, store: TileStore, place: tuple[int, ...], manifest: Manifest) -> None:
        self._store, self._place, self.manifest = store, place, manifest

    @property
    def shape(self) -> tuple[int, int]:
        """``(n1, n2)``."""
        n1, n2 = self._store.shape[-2:]
        return n1, n2

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self._store.dtype

    @property
    def tile(self) -> int:
        """Side of a tile: parts that begin and end at multiples of it are read fastest."""
        return self._store.tile

    @property
    def symmetric(self) -> bool:
        """Whether this is the matrix of one set of inputs with itself."""
        return self._store.region == "upper"

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of network, kind, inputs, dtype and what computed it."""
        text = f"{self.manifest.fingerprint} {self._place}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Read entries: integers and slices; StoreError if a tile is missing or damaged."""
        parts: list[Any] = list(index) if isinstance(index, tuple) else [index]  # pyright: ignore[reportUnknownArgumentType]
        rest = [slice(None)] * (2 - sum(part is not Ellipsis for part in parts))
        place = next((p for p, part in enumerate(parts) if part is Ellipsis), len(parts))
        parts[place : place + 1] = rest
        if len(parts) > 2 or not all(isinstance(part, slice | int | np.integer) for part in parts):
            raise IndexError(
                f"a stored matrix takes integers and slices, k[i:j, l:m], got {index!r}: read a "
                "part that contains what you want, then index that"
            )
        reads: list[slice] = []
        picks: list[Any] = []
        for part, n in zip(parts, self.shape, strict=True):
            if isinstance(part, slice):
                chosen = range(*part.indices(n))
                low = min(chosen, default=0)
                reads.append(slice(low, max(chosen, default=-1) + 1))
                back = chosen.start - low
                stop = back + len(chosen) * chosen.step
                picks.append(slice(back, None if stop < 0 else stop, chosen.step))
            else:
                place = int(part)
                if not -n <= place < n:
                    raise IndexError(f"index {place} is out of bounds for {n} samples")
                reads.append(slice(place % n, place % n + 1))
                picks.append(0)
        return self._store.block(reads[0], reads[1], self._place)[tuple(picks)]

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a stored matrix cannot become an array without a copy")
        whole: NDArray[Any] = self[:, :]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def diagonal(self) -> NDArray[Any]:
        """Return the diagonal, (min(n1, n2),); reads the tiles on it."""
        n, t = min(self.shape), self.tile
        parts = [slice(start, min(n, start + t)) for start in range(0, n, t)]
        return np.concatenate([self[part, part].diagonal() for part in parts])

    def _repr_html_(self) -> str:
        """Show what the matrix is in a notebook, and how much of it is there now."""
        n1, n2 = self.shape
        about = self.manifest
        networks = len(about.networks) if about.listed else 1
        place = self._place[0] if about.listed else 0
        kind = about.kinds[self._place[-1]] if about.kinds_listed else about.kinds[0]
        try:
            done, total = len(self._store.finished()), sum(1 for _ in self._store.grid.tiles())
            state = f"{done:,} of {total:,} tiles of {self.tile} x {self.tile}"
            state += ", finished" if done == total else ", not finished: make it again"
        except (OSError, ValueError) as error:
            state = f"cannot be read: {error}"
        return facts(
            f"Gram matrix, {n1:,} × {n2:,}, {self.dtype.name}",
            [
                ("kernel", f"{kind} of {about.networks[place]}"),
                ("inputs", f"{about.x1}" + (f", and {about.x2}" if about.x2 else "")),
                ("state", state),
                ("store", self._store.objects.name),
                ("matrices in it", f"{networks * len(about.kinds)}"),
                ("made by", "; ".join(map(str, about.makers))),
            ],
        )

    def __repr__(self) -> str:
        n1, n2 = self.shape
        return f"Gram({self._store.objects.name!r}, {n1} x {n2}, {self.dtype.name})"


def open_gram(store: str | os.PathLike[str]) -> Any:
    """Open a stored Gram matrix that is finished.

    Parameters
    ----------
    store : path or fsspec URL
        As it was given to `gram`.

    Returns
    -------
    Gram, or list or tuple of Gram
        What `gram` returned: a list for a sequence of networks, a tuple for a sequence of kinds.

    Raises
    ------
    FileNotFoundError, StoreError
        If nothing is stored there, something else is, or tiles are missing.
    """
    tiles = TileStore.open(open_objects(store))
    manifest = read_manifest(tiles)
    tiles.check_finished()
    return arrange(tiles, manifest)


def read_manifest(tiles: TileStore) -> Manifest:
    """Return the manifest of a store, if it is that of a Gram matrix and fits its array."""
    manifest = Manifest.from_json(tiles.manifest, tiles.objects.name)
    expected = ("full" if manifest.x2 else "upper", manifest.shape, manifest.dtype)
    if (tiles.region, tiles.shape, tiles.dtype.name) != expected:
        raise StoreError(
            f"the array of {tiles.objects.name} is not the one of its manifest: give another path"
        )
    return manifest


def arrange(tiles: TileStore, manifest: Manifest) -> Any:
    """Return the matrices of a store as `gram` does."""
    by_kind: list[Any] = []
    for k in range(len(manifest.kinds)):
        kind = (k,) if manifest.kinds_listed else ()
        grams = [
            Gram(tiles, ((n,) if manifest.listed else ()) + kind, manifest)
            for n in range(len(manifest.networks))
        ]
        by_kind.append(grams if manifest.listed else grams[0])
    return tuple(by_kind) if manifest.kinds_listed else by_kind[0]
