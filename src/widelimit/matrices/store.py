"""Tiles of a matrix in a Zarr v3 array: written whole or not at all, each with its checksum.

The array has the shape of the matrix, perhaps with axes for several matrices before it, and one
chunk for every tile of every matrix: raw little-endian numbers, then their CRC32C. Any Zarr v3
reader reads it; tiles that are not there read as NaN.

A checksum does not say of which matrix a tile is, nor where in it. Hence each store has an
identity, drawn when it is made, and each tile a *seal*, ``seals/IDENTITY/I/J``: the checksums of
what was written there for this store, and one over these, identity and place. A tile without its
seal is not there; one that differs from its seal is not what was written, whatever its own checksum
says.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import operator
import re
import secrets
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast, get_args

import numpy as np
from numpy.typing import NDArray

from widelimit.files import has_no_room, no_room
from widelimit.matrices.objects import KEPT, METADATA, SEALS, Objects
from widelimit.matrices.tiles import Grid, Key, KeySet, Region
from widelimit.reading import parse_json, refusing

__all__ = ["StoreError", "TileStore", "is_finished", "room_of"]

_IDENTITY = re.compile("[0-9a-f]{32}")
_MAX_METADATA = 2**24  # bytes: a manifest with thousands of networks
_MAX_TILES = 2**24
_BLOCK = 2**12  # bytes: of the file systems that are in use
_CRC_BYTES = 4
_CRC_RESIDUE = 0x48674BC7  # the CRC32C of any bytes that their own CRC32C follows


class StoreError(ValueError):
    """What is stored is not what it should be; the message says what to do."""


@dataclass(frozen=True, eq=False)
class TileStore:
    """A matrix, or several of one shape, in square tiles; `create` and `open` make one.

    Parameters
    ----------
    objects : Objects
    shape : tuple of int
        ``(*leading, n1, n2)``: a tile is finished when that of every matrix is there.
    tile : int
        Side of a tile. Tiles at the lower and right edge are smaller (and stored filled up).
    dtype : dtype
        float32 or float64.
    region : {"full", "upper", "lower"}
        Which tiles there are. "upper": the matrix is symmetric, and tiles below the diagonal are
        read from their mirror images. "lower": the matrix is triangular, zero above the diagonal.
    manifest : dict
        What belongs to the matrix, as JSON.
    identity : str
        Drawn when the store was made: 32 hexadecimal digits.
    """

    objects: Objects
    shape: tuple[int, ...]
    tile: int
    dtype: np.dtype[Any]
    region: Region
    manifest: dict[str, Any]
    identity: str
    # Checksums of seals as they were read or written last, (*leading, rows, columns); 0: not yet.
    _seals: NDArray[np.uint32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        seals = np.zeros((*self.shape[:-2], *self.grid.shape), np.uint32)
        object.__setattr__(self, "_seals", seals)

    @classmethod
    def create(
        cls,
        objects: Objects,
        shape: Sequence[int],
        tile: int,
        dtype: str,
        region: Region,
        manifest: dict[str, Any],
    ) -> TileStore:
        """Write the metadata of a new store.

        Raises
        ------
        FileExistsError
            If something else lies there.
        ValueError
            If the manifest is too long to be read again.
        OSError
            If it cannot be written.
        """
        import zarr
        from zarr.codecs import BytesCodec, Crc32cCodec
        from zarr.storage import MemoryStore

        held: dict[str, Any] = {}
        create = cast("Any", zarr).create_array
        create(
            store=MemoryStore(held),
            shape=tuple(shape),
            chunks=(*([1] * (len(shape) - 2)), tile, tile),
            dtype=dtype,
            fill_value=float("nan"),
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
        )
        identity = secrets.token_hex(16)
        metadata = json.loads(held[METADATA].to_bytes())
        content = _describe(metadata, manifest, region, identity)
        if len(content) > _MAX_METADATA:
            raise ValueError(
                f"a store must have at most {_MAX_METADATA:,} bytes of metadata, those of "
                f"{objects.name} would take {len(content):,}: put fewer networks into one store"
            )
        made = cls._parse(objects, content)
        try:
            objects.read(METADATA, _MAX_METADATA)
        except FileNotFoundError:
            made.lay(made._seal_name("store"), made._sealed("store", b""), METADATA)
            made.lay(METADATA, content, METADATA)
            return made
        raise FileExistsError(errno.EEXIST, "there is a Zarr array already", objects.name)

    def with_manifest(self, manifest: dict[str, Any]) -> TileStore:
        """Replace the manifest, and keep the tiles."""
        metadata = parse_json(self.objects.read(METADATA, _MAX_METADATA), self.objects.name)
        content = _describe(metadata, manifest, self.region, self.identity)
        made = TileStore._parse(self.objects, content)
        made.lay(METADATA, content, METADATA)
        return made

    @classmethod
    def open(cls, objects: Objects) -> TileStore:
        """Read the metadata of a store; one from a stranger can do no harm.

        Raises
        ------
        FileNotFoundError
            If nothing is stored there.
        StoreError
            If it is no store of tiles.
        """
        try:
            with _refusing(objects):
                content = objects.read(METADATA, _MAX_METADATA)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT, "there is no matrix of widelimit", objects.name
            ) from None
        except NotADirectoryError:
            raise StoreError(
                f"{objects.name} must be a store of widelimit, a folder, it is a file, or lies in "
                "one: give another path"
            ) from None
        return cls._parse(objects, content)

    @classmethod
    def _parse(cls, objects: Objects, content: bytes) -> TileStore:
        """Return the store that metadata describe."""
        with _refusing(objects):
            if len(content) > _MAX_METADATA:
                raise ValueError(f"its metadata take {len(content):,} bytes")
            metadata = parse_json(content, METADATA)
            attributes = dict(metadata["attributes"]["widelimit"])
            region = attributes.pop("region")
            if "identity" not in attributes:
                raise ValueError(
                    "it was made before tiles said where they belong (any Zarr reader still "
                    "opens it)"
                )
            identity, digest = attributes.pop("identity"), attributes.pop("digest")
            if not _IDENTITY.fullmatch(identity) or digest != _digest(metadata):
                raise ValueError("its metadata are damaged, or were changed")
            shape = tuple(metadata["shape"])
            chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            expected: dict[str, Any] = {
                "zarr_format": 3,
                "node_type": "array",
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "crc32c"},
                ],
            }
            for name, value in expected.items():
                if metadata[name] != value:
                    raise ValueError(f"{name} must be {value}, got {metadata[name]}")
            sizes = [*shape, chunks[-1]]
            if (
                not all(type(size) is int and 0 < size < 2**31 for size in sizes)
                or not 2 <= len(shape) <= 4
                or chunks != [1] * (len(shape) - 2) + [chunks[-1]] * 2
                or region not in get_args(Region)
                or (region != "full" and shape[-1] != shape[-2])
                or metadata["data_type"] not in ("float32", "float64")
                or chunks[-1] ** 2 > 2**28
            ):
                raise ValueError("shape, chunks, region or dtype are not those of tiles")
            rows, columns = (-(-size // chunks[-1]) for size in shape[-2:])
            if math.prod(shape[:-2]) * rows * columns > _MAX_TILES:
                raise ValueError(f"it has more than {_MAX_TILES:,} tiles: use larger ones")
        dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        return cls(objects, shape, chunks[-1], dtype, region, attributes, identity)

    @property
    def places(self) -> list[tuple[int, ...]]:
        """The index of each matrix along the leading axes; ``[()]`` if there is one matrix."""
        return list(itertools.product(*map(range, self.shape[:-2])))

    @property
    def grid(self) -> Grid:
        """The tiles of one matrix."""
        n1, n2 = self.shape[-2:]
        return Grid(n1, n2, self.tile, self.region)

    def finished(self) -> KeySet:
        """Return the keys of the tiles that are there for every matrix, in full length, and sealed.

        A tile appears only when all its bytes are on the disk. One that is shorter was damaged
        since: it counts as not there. So does one that was not written for this store.
        """
        leading, grid = self.shape[:-2], self.grid
        whole = np.zeros(grid.shape, np.int32)  # matrices that have a tile
        for place, key, size in self._listed("c", len(leading)):
            if all(map(operator.lt, place, leading)) and key in grid and size == self._chunk_bytes:
                whole[key] += 1
        found = KeySet(grid)
        for _, key, _ in self._listed(f"{SEALS}/{self.identity}", 0):
            if key in grid and whole[key] == math.prod(leading):
                found.add(key)
        return found

    def _listed(self, prefix: str, axes: int) -> Iterator[tuple[tuple[int, ...], Key, int]]:
        """Yield place, key and size of objects below a prefix that are named by numbers."""
        names = re.compile("/".join([re.escape(prefix), *["(0|[1-9][0-9]{0,8})"] * (axes + 2)]))
        for name, size in self.objects.sizes(prefix):
            if match := names.fullmatch(name):
                *place, i, j = map(int, match.groups())
                yield tuple(place), (i, j), size

    def missing(self) -> KeySet:
        """Return the keys of the other tiles."""
        return self.finished().others()

    def room(self, keys: KeySet) -> int:
        """Return the bytes of disk that some tiles will take, beside what is there of them."""
        if not keys:
            return 0
        there = sum(size for _, key, size in self._listed("c", len(self.shape) - 2) if key in keys)
        return room_of(len(keys), self.tile, self.dtype.itemsize, len(self.places)) - there

    @property
    def is_finished(self) -> bool:
        """Whether all tiles are there."""
        return len(self.finished()) == len(self.grid)

    def check_finished(self) -> None:
        """Refuse a store that lacks tiles.

        Raises
        ------
        StoreError
            With how many.
        """
        missing = len(self.grid) - len(self.finished())
        if missing:
            raise StoreError(
                f"{self.objects.name} lacks {missing} of its tiles: run the call that makes it "
                "again"
            )

    def write(self, key: Key, values: NDArray[Any]) -> tuple[int, ...]:
        """Write one tile of every matrix; return their checksums.

        Parameters
        ----------
        key : Key
        values : ndarray of shape (*leading, rows, columns)

        Raises
        ------
        ValueError
            If an entry is NaN: it was not computed.
        StoreError
            If the store was deleted since, or another one was made there.
        OSError
            If there is no room, or no permission; the tile is then not there.
        """
        rows, columns = values.shape[-2:]
        if any(np.isnan(values[place]).any() for place in self.places):
            raise ValueError(f"tile {key} has entries that are no numbers: it is not stored")
        self._check_current()
        checksums: list[int] = []
        for place in self.places:
            whole = np.full((self.tile, self.tile), np.nan, self.dtype)
            whole[:rows, :columns] = values[place]
            content = whole.tobytes()
            checksum = _crc32c(content)
            self._put(key, place, content + checksum.to_bytes(_CRC_BYTES, "little"))
            checksums.append(checksum)
        self._seal(key, tuple(checksums))
        return tuple(checksums)

    def copy(self, key: Key, source: TileStore) -> None:
        """Write a tile of every matrix that another store has, byte for byte.

        Parameters
        ----------
        key : Key
            Of the same entries in both: `Grid.has_in_common`.
        source : TileStore
            Of as many matrices, with the same tile and dtype.

        Raises
        ------
        StoreError
            If the tile is not there, or does not have its checksum.
        OSError
            As for `write`.
        """
        self._check_current()
        checksums: list[int] = []
        for place in self.places:
            content = source._checked(key, place)
            self._put(key, place, content)
            checksums.append(int.from_bytes(content[-_CRC_BYTES:], "little"))
        self._seal(key, tuple(checksums))

    def read(self, key: Key, place: tuple[int, ...] = ()) -> NDArray[Any]:
        """Read one tile of one matrix, and check it.

        Raises
        ------
        StoreError
            If the tile is not there, or does not have its checksum.
        """
        content = self._checked(key, place)
        whole = np.frombuffer(content, self.dtype, self.tile**2).reshape(self.tile, self.tile)
        rows, columns = self.grid.extent(key)
        return whole[: rows.stop - rows.start, : columns.stop - columns.start]

    def checksums(self, key: Key) -> tuple[int, ...]:
        """Return the checksums that are stored with a tile, one for each matrix."""
        ends = (self.objects.read_end(name, _CRC_BYTES) for name in self._names(key))
        return tuple(int.from_bytes(end, "little") for end in ends)

    def delete(self, key: Key) -> None:
        """Delete a tile of every matrix."""
        self._seals[..., *key] = 0
        for name in (self._seal_name(key), *self._names(key)):
            self.objects.delete(name)

    def sealed(self, key: Key) -> tuple[int, ...]:
        """Return the checksums of a tile that this object has written."""
        return tuple(self._seals[..., *key].ravel().tolist())

    def damaged(self, keys: Iterable[Key]) -> list[Key]:
        """Return those of finished tiles that do not have their checksum. Reads them all."""
        bad: list[Key] = []
        for key in keys:
            try:
                for place in self.places:
                    self.read(key, place)
            except StoreError:
                bad.append(key)
        return bad

    def block(self, rows: slice, columns: slice, place: tuple[int, ...] = ()) -> NDArray[Any]:
        """Read a part of one matrix, from any tiles and their mirror images.

        Parameters
        ----------
        rows, columns : slice
            Start and stop within the matrix; no step.
        place : tuple of int
            Which matrix.

        Returns
        -------
        ndarray of shape (rows, columns)
            New.
        """
        t = self.tile
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        out = np.zeros(shape, self.dtype) if self.region == "lower" else np.empty(shape, self.dtype)
        if not out.size:
            return out
        for i in range(rows.start // t, -(-rows.stop // t)):
            for j in range(columns.start // t, -(-columns.stop // t)):
                if j > i and self.region == "lower":
                    continue
                mirrored = j < i and self.region == "upper"
                values = self.read((j, i), place).T if mirrored else self.read((i, j), place)
                top, left = i * t, j * t
                r = slice(max(rows.start, top), min(rows.stop, top + len(values)))
                c = slice(max(columns.start, left), min(columns.stop, left + values.shape[1]))
                out[
                    r.start - rows.start : r.stop - rows.start,
                    c.start - columns.start : c.stop - columns.start,
                ] = values[r.start - top : r.stop - top, c.start - left : c.stop - left]
        return out

    @property
    def _chunk_bytes(self) -> int:
        return self.tile**2 * self.dtype.itemsize + _CRC_BYTES

    def _names(self, key: Key) -> list[str]:
        return [_name(key, place) for place in self.places]

    def keep(self, name: str, content: bytes) -> None:
        """Keep something else beside the tiles, for this store alone; OSError if that fails."""
        self._check_current()
        self.objects.write(f"{KEPT}/{self.identity}/{name}", self._sealed(name, content))

    def kept(self, name: str, at_most: int) -> bytes | None:
        """Return what was kept under a name; None if it is not there, or damaged."""
        try:
            found = self.objects.read(f"{KEPT}/{self.identity}/{name}", at_most + _CRC_BYTES)
        except (FileNotFoundError, ValueError):
            return None
        content = found[:-_CRC_BYTES]
        return content if found == self._sealed(name, content) else None

    def lay(self, name: str, content: bytes, what: str) -> None:
        """Write an object of the store; an error of the system says what, and what is not lost."""
        with self._telling(name, what, len(content)):
            self.objects.write(name, content)

    @contextmanager
    def laying(self, name: str, what: str, needed: int) -> Generator[BinaryIO]:
        """Write an object of so many bytes as `lay` does, a piece at a time."""
        with self._telling(name, what, needed), self.objects.writing(name) as file:
            yield file

    @contextmanager
    def _telling(self, name: str, what: str, needed: int) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):  # the folder went while it was written
                self._check_current()
            more = (
                f", while {what} was written; the finished tiles are kept: mend this, and run "
                "the same call again"
            )
            if has_no_room(error):
                needed = max(needed, self.room(self.missing()))
                raise no_room(self.objects.name, needed, more, error.errno) from error
            place = f"{self.objects.name}/{name}"
            raise type(error)(error.errno, f"{error.strerror or error}{more}", place) from error

    # --- seals ------------------------------------------------------------------------------------

    def _seal_name(self, what: Key | str) -> str:
        return "/".join(
            (SEALS, self.identity, *([what] if isinstance(what, str) else map(str, what)))
        )

    def _sealed(self, name: str, content: bytes) -> bytes:
        """Return a content as it is right under its name in this store alone."""
        return _sealed(f"{self.identity} {name}", content)

    def _seal(self, key: Key, checksums: tuple[int, ...]) -> None:
        content = b"".join(value.to_bytes(_CRC_BYTES, "little") for value in checksums)
        self.lay(self._seal_name(key), self._sealed(str(key), content), f"tile {key}")
        self._seals[..., *key] = np.reshape(checksums, self.shape[:-2])

    def _is_sealed(self, key: Key, place: tuple[int, ...], checksum: int) -> bool:
        """Return whether a tile has the checksum of its seal; one that changed is read again."""
        if checksum and checksum == self._seals[*place, *key]:
            return True
        length = len(self.places) * _CRC_BYTES
        try:
            content = self.objects.read(self._seal_name(key), length + _CRC_BYTES)
        except (FileNotFoundError, ValueError):
            return False
        if content != self._sealed(str(key), content[:length]):  # of another length, too
            return False
        self._seals[..., *key] = np.frombuffer(content[:length], "<u4").reshape(self.shape[:-2])
        return checksum == self._seals[*place, *key]

    def _check_current(self) -> None:
        """Refuse to write where another store, or none, has taken the place of this one."""
        if not self.objects.exists(self._seal_name("store")):
            raise StoreError(
                f"{self.objects.name} was deleted, or made anew, since this began to write there: "
                "nothing more is written; if that was not meant, run the same call again"
            )

    def _checked(self, key: Key, place: tuple[int, ...]) -> bytes:
        """Return the bytes of one tile of one matrix that are what was written there."""
        try:
            content = self.objects.read(_name(key, place), self._chunk_bytes)
        except FileNotFoundError:
            raise StoreError(
                f"tile {key} is not in {self.objects.name}: run the call that makes it again"
            ) from None
        except ValueError:
            content = b""
        checksum = int.from_bytes(content[-_CRC_BYTES:], "little")
        if len(content) != self._chunk_bytes or _crc32c(content) != _CRC_RESIDUE:
            wrong = "is damaged, its checksum is wrong"
        elif not self._is_sealed(key, place, checksum):
            wrong = "is not the one that was written there"
        else:
            return content
        raise StoreError(
            f"tile {key} of {self.objects.name} {wrong}: run the call that makes it again with "
            "verify=True, which computes such tiles anew, or first delete "
            f"{self.objects.name}/{_name(key, place)}"
        )

    def _put(self, key: Key, place: tuple[int, ...], content: bytes) -> None:
        self.lay(_name(key, place), content, f"tile {key}")


def room_of(tiles: int, side: int, entry: int, matrices: int = 1) -> int:
    """Return the bytes of disk that tiles take, with their seals: files are whole blocks.

    Parameters
    ----------
    tiles, side : int
        How many, and how large.
    entry : int
        Bytes of an entry.
    matrices : int
        Of which there is each tile.
    """
    chunk, seal = side**2 * entry + _CRC_BYTES, (matrices + 1) * _CRC_BYTES
    return tiles * sum(-(-size // _BLOCK) * _BLOCK for size in [chunk] * matrices + [seal])


def is_finished(objects: Objects) -> bool:
    """Return whether a whole matrix lies there, which can be read where nothing can be written.

    Raises
    ------
    StoreError
        If something else does, before anything is written beside it.
    """
    try:
        return TileStore.open(objects).is_finished
    except OSError:
        return False


def _refusing(objects: Objects) -> AbstractContextManager[None]:
    expected = f"{objects.name} must be a matrix that widelimit wrote, it is not"
    return refusing(expected, "give another path, or delete that one", StoreError)


def _describe(metadata: Any, manifest: dict[str, Any], region: Region, identity: str) -> bytes:
    """Return the metadata of a Zarr array with what belongs to a store, and their digest."""
    own = {**manifest, "region": region, "identity": identity}
    metadata["attributes"] = {**metadata["attributes"], "widelimit": own}
    own["digest"] = _digest(metadata)
    return json.dumps(metadata, indent=2).encode()


def _digest(metadata: dict[str, Any]) -> str:
    """Return the SHA-256 of metadata, in hexadecimal, without what it is compared with."""
    attributes = dict(metadata["attributes"])
    own = attributes["widelimit"] = dict(attributes["widelimit"])
    own.pop("digest", None)
    text = json.dumps({**metadata, "attributes": attributes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sealed(name: str, content: bytes) -> bytes:
    """Return a content and the CRC32C of its name and itself: elsewhere it is not right."""
    checksum = _crc32c(f"{name}:".encode() + content)
    return content + checksum.to_bytes(_CRC_BYTES, "little")


def _name(key: Key, place: tuple[int, ...]) -> str:
    return "/".join(map(str, ("c", *place, *key)))


def _crc32c(content: bytes) -> int:
    import google_crc32c

    return cast("int", google_crc32c.value(content))  # pyright: ignore[reportUnknownMemberType]
