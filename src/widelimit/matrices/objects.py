"""Where the bytes of a store lie: a folder with its lock, or the objects of an fsspec URL."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from widelimit.files import (
    LOCK,
    atomic_file,
    check_room,
    make_folder,
    own_folder,
    remove_abandoned,
    write_atomically,
)
from widelimit.reading import check_inside, open_regular, read_bytes

__all__ = ["KEPT", "METADATA", "SEALS", "Objects", "open_objects"]

METADATA = "zarr.json"
SEALS, KEPT = "seals", "kept"
_FOLDERS = ("c", SEALS, KEPT, "inputs")


class Objects(Protocol):
    """Where bytes are kept under names: a folder, or what an fsspec URL names."""

    name: str  # as it was given
    url: str  # from any folder
    listed: int  # bytes of memory that a list of them takes for each

    def read(self, key: str, at_most: int) -> bytes:
        """Return an object of at most so many bytes.

        FileNotFoundError if it is not there, ValueError if it is larger or no object.
        """
        ...

    def read_end(self, key: str, n: int) -> bytes:
        """Return the last n bytes of an object."""
        ...

    def read_part(self, key: str, start: int, n: int) -> bytes:
        """Return n bytes of an object from one on, fewer where it ends."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """Write an object: readers see the old one or the whole new one.

        ValueError if its place is not among the others, but where a link leads.
        """
        ...

    def writing(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Write an object within a block, a piece at a time, at whose end it appears.

        Behind a URL it may appear if the block fails, too, cut short.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        ...

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield the names of all objects below a prefix, and their sizes in bytes."""
        ...

    def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        ...

    def check_room(self, needed: int) -> None:
        """Refuse to begin what so many more bytes are needed for; OSError if they are not free."""
        ...

    @contextmanager
    def locked(self) -> Generator[None]:
        """Be the only writer within the block.

        BlockingIOError if another process is; ValueError if links lead out of the folder.
        """
        ...

    def in_use(self) -> bool:
        """Return whether a process is known to be writing."""
        ...


class _Folder:
    """Objects in a folder of this machine's file system.

    The folder may be anybody's: nothing is read, written or deleted where links lead out of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()  # the folder of the process may change
        self.name, self.url, self.listed = str(path), str(self._path), 0

    def read(self, key: str, at_most: int) -> bytes:
        return read_bytes(self._path / key, at_most, self._path)

    def read_end(self, key: str, n: int) -> bytes:
        with open_regular(self._path / key, self._path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - n))
            return file.read()

    def read_part(self, key: str, start: int, n: int) -> bytes:
        with open_regular(self._path / key, self._path) as file:
            file.seek(start)
            return file.read(n)

    def write(self, key: str, content: bytes) -> None:
        path = self._place(key)
        make_folder(path.parent)
        write_atomically(path, content)

    def writing(self, key: str) -> AbstractContextManager[BinaryIO]:
        path = self._place(key)
        make_folder(path.parent)
        return atomic_file(path)

    def delete(self, key: str) -> None:
        self._place(key).unlink(missing_ok=True)

    def _place(self, key: str) -> Path:
        """Return the path of an object; one that is itself a link is replaced, or deleted."""
        path = self._path / key
        check_inside(path.parent, self._path)
        return path

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        check_inside(self._path / prefix, self._path)
        folders = [prefix]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(self._path / folder))
            except FileNotFoundError:
                continue
            for entry in entries:
                key = f"{folder}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(key)
                elif not entry.name.startswith("."):
                    yield key, entry.stat(follow_symlinks=False).st_size

    def exists(self, key: str) -> bool:
        return self._place(key).is_file()

    def check_room(self, needed: int) -> None:
        check_room(self._path, needed)

    @contextmanager
    def locked(self) -> Generator[None]:
        with own_folder(self._path, (METADATA, *_FOLDERS), "a store", (METADATA, SEALS)):
            self._clean()
            try:
                yield
            finally:
                self._clean()  # also what a worker left that was killed

    def in_use(self) -> bool:
        try:
            with open_regular(self._path / LOCK, self._path) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _clean(self) -> None:
        """Delete what processes that were killed left half-written."""
        for name in _FOLDERS:
            check_inside(self._path / name, self._path)
            for folder, _, _ in os.walk(self._path / name):
                remove_abandoned(Path(folder))


class _Remote:
    """Objects of a file system of fsspec: an object store writes an object whole."""

    def __init__(self, url: str) -> None:
        import fsspec  # pyright: ignore[reportMissingTypeStubs]

        self._fs, self._root = cast("tuple[Any, str]", fsspec.url_to_fs(url))  # pyright: ignore[reportUnknownMemberType]
        self.name = self.url = url
        self.listed = 1024

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def read(self, key: str, at_most: int) -> bytes:
        content: bytes = self._fs.cat_file(self._path(key), start=0, end=at_most + 1)
        if len(content) > at_most:
            raise ValueError(f"{self.name}/{key} must have at most {at_most:,} bytes")
        return content

    def read_end(self, key: str, n: int) -> bytes:
        return self._fs.cat_file(self._path(key), start=-n)

    def read_part(self, key: str, start: int, n: int) -> bytes:
        return self._fs.cat_file(self._path(key), start=start, end=start + n)

    def write(self, key: str, content: bytes) -> None:
        path = self._path(key)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, content)

    def writing(self, key: str) -> AbstractContextManager[BinaryIO]:
        path = self._path(key)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        return self._fs.open(path, "wb")

    def delete(self, key: str) -> None:
        if self._fs.exists(self._path(key)):
            self._fs.rm_file(self._path(key))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._fs.invalidate_cache()
        start = self._path("").lstrip("/")
        try:
            found = self._fs.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return
        for path, entry in found.items():
            yield path[path.index(start) + len(start) :], int(entry["size"])

    def exists(self, key: str) -> bool:
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._path(key)))

    def check_room(self, needed: int) -> None:
        pass  # nobody knows how much is free behind a URL

    @contextmanager
    def locked(self) -> Generator[None]:
        # No lock: two runs of one job write the same bits, and another job is refused.
        yield

    def in_use(self) -> bool:
        return False


def open_objects(url: str | os.PathLike[str]) -> Objects:
    """Return the objects below a local path or an fsspec URL (``s3://bucket/k.zarr``)."""
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return _Remote(text) if "://" in text else _Folder(Path(text).expanduser())
