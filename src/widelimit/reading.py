"""Reading files that are not ours: arrays and small JSON documents, which may be damaged or bait.

Nothing in them is believed or run. Kind and size of a file are looked at before its content, what
an archive says that it unpacks to before it is unpacked, and the size of an array before memory is
taken. Whatever is wrong with a file is a `ValueError` that says what to do; errors of the system
(there is no such file, it may not be read, the disk is broken) stay `OSError`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.files import naming
from widelimit.machine import ALWAYS_FITS, available_memory

__all__ = [
    "MAX_HEADER",
    "Header",
    "StoredArray",
    "check_inside",
    "check_regular",
    "open_array",
    "open_arrays",
    "open_regular",
    "parse_json",
    "read_bytes",
    "read_header",
    "read_json",
    "refusing",
]

MAX_HEADER = 2**12
"""Most bytes before the content of an array: 64 sizes of 20 digits, and some words."""

_ARRAY, _ARCHIVE = b"\x93NUMPY", b"PK"
_CHUNK = 2**20  # bytes that are unpacked at a time
_MAX_READ = 2**21  # bytes that zipfile takes at a time: a directory of 20,000 members
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy; others unpack unbounded
_MAX_RATIO = 100  # of what an array unpacks to and the size of its archive ...
_FREELY_UNPACKED = 2**28  # ... where it is more bytes than these
_MAX_COUNT, _MAX_RANK = 2**48, 32  # bytes and axes of an array of numpy
_MAX_DEPTH = 64  # of lists and objects in one another
_MAX_INNER = 2**20  # lists and objects in a document: "{}" takes 30 times its bytes
_MAX_REASON = 400  # characters


class _Outside(OSError):
    """A place outside of a file. zipfile takes an OSError as a sign that it is no archive."""


@contextlib.contextmanager
def refusing(expected: str, remedy: str, kind: type[ValueError] = ValueError) -> Generator[None]:
    """Make one kind of error of whatever goes wrong while foreign content is interpreted.

    What libraries raise for damaged content is nowhere listed in full, and differs from release to
    release. Errors of the system, and of memory, are passed on.

    Parameters
    ----------
    expected : str
        What should be there: the beginning of the message.
    remedy : str
        What to do: its end.
    kind : type
        ValueError, or one of its own.
    """
    try:
        yield
    except Exception as error:
        damage = isinstance(error, _Outside | gzip.BadGzipFile)
        if isinstance(error, OSError | MemoryError) and not damage:
            raise
        known = damage or isinstance(error, ValueError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        raise kind(f"{expected} ({reason[:_MAX_REASON]}): {remedy}") from error


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def open_regular(path: Path, folder: Path | None = None) -> Generator[BinaryIO]:
    """Open a regular file for reading.

    Parameters
    ----------
    path : Path
    folder : Path or None
        That the file must lie in, wherever symbolic links lead.

    Raises
    ------
    OSError
        If there is none, or it cannot be opened.
    ValueError
        If it is a folder, a pipe, a device or a socket, or a link leads out of the folder.
    """
    if folder is not None:
        check_inside(path, folder)
    # Before it is opened: a device may act on that.
    check_regular(path)
    # A pipe that came there since would wait for a writer.
    with naming(path), os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        check_regular(path, os.fstat(file.fileno()))
        yield file


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a path below a folder from which symbolic links lead out of it.

    Raises
    ------
    ValueError
        With where it leads.
    """
    if not _has_links(path, folder):
        return
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise ValueError(
            f"{path} must lie in {folder}, it leads to {real}: put a copy in the place of the link"
        )


def _has_links(path: Path, folder: Path) -> bool:
    """Return whether the names below a folder may lead out of it; the usual answer is quick."""
    names, inner = path.parts[len(folder.parts) :], str(folder)
    if path.parts[: len(folder.parts)] != folder.parts or ".." in names:
        return True
    for name in names:
        inner = f"{inner}/{name}"
        if os.path.islink(inner):
            return True
    return False


def check_regular(path: Path, found: os.stat_result | None = None) -> None:
    """Refuse what is no regular file: an open one that was found there, or that of a path.

    Raises
    ------
    OSError
        If it is not there.
    ValueError
        If it is a folder, a pipe, a device or a socket.
    """
    found = os.stat(path) if found is None else found
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, device or socket"
        raise ValueError(f"{path} must be a regular file, it is {kind}: give another path")


def read_bytes(path: Path, at_most: int, folder: Path | None = None) -> bytes:
    """Read a file, after a look at its kind and size.

    Parameters
    ----------
    path, folder : Path, Path or None
        As for `open_regular`.
    at_most : int
        Bytes.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is larger, or as for `open_regular`.
    MemoryError
        If it does not fit into memory.
    """
    with open_regular(path, folder) as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise ValueError(
                f"{path} must have at most {at_most:,} bytes, got {size:,}: is it the right file?"
            )
        _check_memory(size, str(path))
        return file.read(size)


def _check_memory(size: int, name: str) -> None:
    free = available_memory() if size > ALWAYS_FITS else None
    if free is not None and size > free:
        raise MemoryError(
            f"{name} takes {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free: use a part of "
            "it, or a machine with more memory"
        )


# ---------------------------------------------------------------- JSON


def read_json(path: Path, at_most: int, folder: Path | None = None) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Parameters
    ----------
    path, at_most, folder : Path, int, Path or None
        As for `read_bytes`.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        As for `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, at_most, folder), str(path))


def parse_json(text: str | bytes, name: str) -> dict[str, Any]:
    """Return the JSON object that a text is.

    Parameters
    ----------
    text : str or bytes
        bytes are UTF-8.
    name : str
        What messages call it.

    Raises
    ------
    ValueError
        If it is no JSON object, a key occurs twice in one of its objects, a number is none that a
        float64 holds, lists and objects lie more than 64 deep in one another, or are millions.
    """
    with refusing(f"{name} must be a JSON object, it is not", "is it the right file?"):
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        if plain.count("[") + plain.count("{") > _MAX_INNER:
            raise ValueError(f"it has more than {_MAX_INNER:,} lists and objects")
        content: Any = json.loads(
            plain,
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_finite,
        )
        if not isinstance(content, dict):
            raise ValueError(f"got a {type(content).__name__}")
        level: list[Any] = [content]
        for _ in range(_MAX_DEPTH):
            level = [entry for outer in level for entry in _inner(outer)]
        if level:
            raise ValueError(f"its values lie more than {_MAX_DEPTH} deep in one another")
        return cast("dict[str, Any]", content)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"a key occurs twice in one object: {twice!r:.100}")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _inner(content: Any) -> list[Any]:
    """Return the lists and objects that lie in one of them."""
    values = cast("Any", content.values() if isinstance(content, dict) else content)
    return [value for value in values if isinstance(value, list | dict)]


# ---------------------------------------------------------------- arrays


@dataclass(frozen=True, slots=True)
class Header:
    """What an array says of itself; its content begins at `start`."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the content."""
        return math.prod(self.shape) * self.dtype.itemsize


class StoredArray:
    """An array in a file, of which nothing has been read yet; `open_array` finds it.

    Its header is checked when it is first asked for: ValueError if it is no array of real numbers
    or text, or does not have the bytes that its shape and dtype take.

    Parameters
    ----------
    name : str
        What messages call it.
    size : int
        Bytes of header and content.
    stream : callable
        Opens both for reading.
    at_most : int
        Bytes that the content may have.
    """

    def __init__(
        self,
        name: str,
        size: int,
        stream: Callable[[], AbstractContextManager[Any]],
        at_most: int,
    ) -> None:
        self.name = name
        self._size, self._stream, self._at_most = size, stream, at_most

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Booleans, integers, floats, bytes or text."""
        return self._header.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the array takes in memory."""
        return self._header.nbytes

    def read(self) -> NDArray[Any]:
        """Return the array, new.

        Raises
        ------
        OSError
            If the system cannot read it.
        ValueError
            If it is damaged.
        MemoryError
            If it does not fit into memory.
        """
        header = self._header
        _check_memory(header.nbytes, self.name)
        content = np.empty(header.nbytes, np.uint8)
        view, done = memoryview(cast("Any", content)), 0
        with self._refusing(), self._stream() as stream:
            stream.read(header.start)
            while done < len(view) and (got := stream.readinto(view[done : done + _CHUNK])):
                done += got
            if done < len(view):
                raise ValueError(f"it ends after {done:,} of {len(view):,} bytes")
            if header.dtype.kind == "b" and content.max(initial=0) > 1:
                raise ValueError("a boolean is neither 0 nor 1")
            values = content.view(header.dtype)
            if header.dtype.kind == "U":
                _check_text(values)
        return values.reshape(header.shape, order="F" if header.fortran else "C")

    @cached_property
    def _header(self) -> Header:
        with self._refusing(), self._stream() as stream:
            start = stream.read(MAX_HEADER)
        header = read_header(start, self.name)
        shape, dtype = header.shape, header.dtype
        if header.nbytes != self._size - header.start:
            raise ValueError(
                f"{self.name} of shape {shape} and dtype {dtype} must hold {header.nbytes:,} "
                f"bytes, got {self._size - header.start:,}: save it again"
            )
        if header.nbytes > self._at_most:
            raise ValueError(
                f"{self.name} must unpack to at most {self._at_most:,} bytes, got "
                f"{header.nbytes:,}: save it with numpy.savez, not compressed"
            )
        return header

    def _refusing(self) -> AbstractContextManager[None]:
        return _refusing_array(self.name)


def _refusing_array(name: str) -> AbstractContextManager[None]:
    return refusing(f"{name} must be a whole array of numpy, it is not", "save it again")


def read_header(content: bytes, name: str) -> Header:
    """Return what an array says of itself.

    Parameters
    ----------
    content : bytes
        Its beginning, `MAX_HEADER` bytes at most.
    name : str
        What messages call it.

    Raises
    ------
    ValueError
        If it is no array of real numbers or text, or has an impossible shape.
    """
    with _refusing_array(name):
        header = _parse_header(content)
    shape, dtype = header.shape, header.dtype
    if dtype.kind not in "buifUS" or dtype.itemsize == 0:
        raise ValueError(
            f"{name} must hold real numbers or text, got dtype {dtype}"
            + (", a pickle, which is never read" if dtype.hasobject else "")
            + ": save it with a plain dtype"
        )
    # As numpy counts: a size of 0 does not keep the others from being too large.
    counted = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if min(shape, default=1) < 0 or counted > _MAX_COUNT or len(shape) > _MAX_RANK:
        raise ValueError(f"{name} has the impossible shape {shape}: save it again")
    return header


def _parse_header(content: bytes) -> Header:
    """Parse the header of an array at the beginning of some bytes."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    parse = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in parse:
        raise ValueError(f"version {version} of the format is for named fields")
    shape, fortran, dtype = parse[version](stream, max_header_size=MAX_HEADER)
    return Header(shape, fortran, dtype, stream.tell())


def _check_text(values: NDArray[Any]) -> None:
    codes = values.view(np.dtype(np.uint32).newbyteorder(values.dtype.byteorder))
    if codes.max(initial=0) > 0x10FFFF:
        raise ValueError("a character is none of Unicode")


@contextlib.contextmanager
def open_array(
    source: Path | bytes, name: str | None = None, folder: Path | None = None
) -> Generator[StoredArray]:
    """Open an ``.npy`` file, or bytes that one consists of.

    Parameters
    ----------
    source : Path or bytes
    name : str or None
        What messages call it. None: its path.
    folder : Path or None
        As for `open_regular`.

    Raises
    ------
    OSError
        If it cannot be opened.
    ValueError
        If it is no such file; `StoredArray` looks at its header.
    """
    name = str(source) if name is None else name
    with _opened(source, folder) as file:
        if file.read(len(_ARRAY)) != _ARRAY:
            raise ValueError(
                f"{name} must be an .npy file of numbers, it does not begin like one: save it "
                "with numpy.save"
            )
        yield _whole(file, name)


@contextlib.contextmanager
def open_arrays(
    source: Path | bytes, name: str | None = None, folder: Path | None = None
) -> Generator[dict[str, StoredArray]]:
    """Open an ``.npz`` file, or an ``.npy`` file, as a dictionary of arrays.

    Parameters
    ----------
    source, name, folder : Path or bytes, str or None, Path or None
        As for `open_array`.

    Returns
    -------
    dict of StoredArray
        By name; the array of an ``.npy`` file has the name ``""``. Each array of an ``.npz`` file
        may unpack to 256 MiB, or to 100 times the size of the file, whatever is more.

    Raises
    ------
    OSError
        If it cannot be opened.
    ValueError
        If it is no such file, or two arrays have one name.
    """
    name = str(source) if name is None else name
    with _opened(source, folder) as file:
        start = file.read(len(_ARRAY))
        if start == _ARRAY:
            yield {"": _whole(file, name)}
            return
        expected = f"{name} must be an .npy or .npz file of numbers, it is not"
        with refusing(expected, "save it with numpy.save or numpy.savez"):
            if not start.startswith(_ARCHIVE):
                raise ValueError("it does not begin like one")
            size = file.seek(0, os.SEEK_END)
            archive = zipfile.ZipFile(cast("Any", _Within(file, size)))
            infos = archive.infolist()
            names = [info.filename.removesuffix(".npy") for info in infos]
            if len(set(names)) < len(names):
                raise ValueError("two arrays have one name")
            for info in infos:
                if info.compress_type not in _METHODS:
                    raise ValueError(f"compression {info.compress_type} of {info.filename}")
        at_most = max(_FREELY_UNPACKED, _MAX_RATIO * size)
        yield {
            key: StoredArray(
                f"{name}: {info.filename}", info.file_size, partial(archive.open, info), at_most
            )
            for key, info in zip(names, infos, strict=True)
        }


def _opened(source: Path | bytes, folder: Path | None) -> AbstractContextManager[BinaryIO]:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source, folder)


def _whole(file: BinaryIO, name: str) -> StoredArray:
    """Return the array that a file is."""

    @contextlib.contextmanager
    def stream() -> Generator[BinaryIO]:
        file.seek(0)
        yield file

    size = file.seek(0, os.SEEK_END)
    return StoredArray(name, size, stream, size)


class _Within:
    """A file for zipfile: no number in it makes it read before its beginning, or too much."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.tell = file.tell

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._file.tell(), self._size)[whence]
        if not 0 <= start + offset <= self._size:
            raise _Outside("it points outside of itself")
        return self._file.seek(start + offset)

    def read(self, n: int = -1) -> bytes:
        n = self._size - self._file.tell() if n < 0 else n
        if n > _MAX_READ:
            raise ValueError(f"its directory takes {n:,} bytes, more than {_MAX_READ:,}")
        return self._file.read(n)
