"""Inputs on their way to workers: laid into the store, and read from there a block at a time."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.matrices.inputs import let_go, steps
from widelimit.matrices.manifest import Inputs
from widelimit.matrices.objects import Objects
from widelimit.matrices.store import StoreError, TileStore
from widelimit.reading import MAX_HEADER, read_header

__all__ = ["StoredInputs", "put_inputs"]


def put_inputs(tiles: TileStore, x1: NDArray[Any], x2: NDArray[Any] | None) -> None:
    """Lay inputs beside the tiles, a few samples at a time."""
    for name, values in (("x1", x1), ("x2", x2)):
        if values is None:
            continue
        header = np.lib.format.header_data_from_array_1_0(values[:1])
        header |= {"shape": values.shape, "fortran_order": False}
        with tiles.laying(_key(name), name, values.nbytes) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in steps(values):
                file.write(values[part].tobytes())
                let_go(values)


class StoredInputs:
    """Samples of one side that lie in a store: read like an array, and none of them kept.

    Parameters
    ----------
    objects : Objects
    name : {"x1", "x2"}
    described : Inputs
        What they have to be.

    Raises
    ------
    StoreError
        If they are something else; whenever they are read, too: a checksum of each is held.
    """

    def __init__(self, objects: Objects, name: str, described: Inputs) -> None:
        self._objects, self._name, self.shape = objects, name, described.shape
        start = objects.read_part(_key(name), 0, MAX_HEADER)
        self._header = read_header(start, f"{name} in {objects.name}")
        self._checksums: NDArray[np.uint32] | None = None
        header = self._header
        if header.shape != self.shape or header.fortran or header.dtype.kind not in "buif":
            raise self._changed()
        checksums = np.concatenate([_checksums(self[part]) for part in steps(self)])
        if Inputs.of(self) != described:
            raise self._changed()
        self._checksums = checksums

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        """Read samples, new; `part` has no step."""
        start, stop, _ = part.indices(len(self))
        header, row = self._header, self._header.nbytes // len(self)
        content = self._objects.read_part(
            _key(self._name), header.start + start * row, (stop - start) * row
        )
        if len(content) != (stop - start) * row:
            raise self._changed()
        values = np.frombuffer(content, header.dtype).reshape(stop - start, *self.shape[1:])
        known = self._checksums
        if known is not None and not np.array_equal(_checksums(values), known[start:stop]):
            raise self._changed()
        return values

    def _changed(self) -> StoreError:
        return StoreError(
            f"{self._name} in {self._objects.name} is not what the store is the kernel of: run the "
            "call that makes the store again, which writes its inputs anew"
        )


def _key(name: str) -> str:
    return f"inputs/{name}.npy"


def _checksums(values: NDArray[Any]) -> NDArray[np.uint32]:
    return np.array([zlib.crc32(row.tobytes()) for row in values], np.uint32)
