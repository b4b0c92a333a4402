"""Where the bytes of a store lie: a folder with its lock, or the objects of an fsspec URL."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from widelimit.files import (
    PARTIAL_SUFFIX,
    check_room,
    locked_file,
    make_folder,
    write_atomically,
)
from widelimit.reading import check_inside, open_regular, read_bytes

__all__ = ["KEPT", "METADATA", "SEALS", "Objects", "check_stores", "open_objects"]

METADATA = "zarr.json"
SEALS, KEPT = "seals", "kept"
_LOCK = ".lock"
_FOLDERS = ("c", SEALS, KEPT, "inputs")
_OURS = {METADATA, _LOCK, *_FOLDERS}


class Objects(Protocol):
    """Where bytes are kept under names: a folder, or what an fsspec URL names."""

    name: str  # as it was given
    url: str  # from any folder

    def read(self, key: str, at_most: int) -> bytes:
        """Return an object of at most so many bytes.

        FileNotFoundError if it is not there, ValueError if it is larger or no object.
        """
        ...

    def read_end(self, key: str, n: int) -> bytes:
        """Return the last n bytes of an object."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """Write an object: readers see the old one or the whole new one.

        ValueError if its place is not among the others, but where a link leads.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        ...

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of all objects below a prefix."""
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
        self._path = path
        self.name, self.url = str(path), str(path.absolute())

    def read(self, key: str, at_most: int) -> bytes:
        return read_bytes(self._path / key, at_most, self._path)

    def read_end(self, key: str, n: int) -> bytes:
        with open_regular(self._path / key, self._path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - n))
            return file.read()

    def write(self, key: str, content: bytes) -> None:
        path = self._place(key)
        make_folder(path.parent)
        write_atomically(path, content)

    def delete(self, key: str) -> None:
        self._place(key).unlink(missing_ok=True)

    def _place(self, key: str) -> Path:
        """Return the path of an object; one that is itself a link is replaced, or deleted."""
        path = self._path / key
        check_inside(path.parent, self._path)
        return path

    def sizes(self, prefix: str) -> dict[str, int]:
        check_inside(self._path / prefix, self._path)
        found: dict[str, int] = {}
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
                    found[key] = entry.stat(follow_symlinks=False).st_size
        return found

    def exists(self, key: str) -> bool:
        return self._place(key).is_file()

    def check_room(self, needed: int) -> None:
        check_room(self._path, needed)

    @contextmanager
    def locked(self) -> Generator[None]:
        self._check_ours()
        make_folder(self._path)
        with locked_file(self._path / _LOCK):
            self._clean()
            yield

    def in_use(self) -> bool:
        try:
            with open_regular(self._path / _LOCK, self._path) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _check_ours(self) -> None:
        """Refuse a folder in which something else lies than a store, or what is left of one."""
        try:
            names = {entry.name for entry in os.scandir(self._path)}
        except FileNotFoundError:
            return
        other = sorted(name for name in names - _OURS if not name.endswith(PARTIAL_SUFFIX))
        if other:
            raise FileExistsError(
                errno.EEXIST,
                f"there are other files in this folder ({', '.join(other[:3])}): give the path of "
                "a store, or one where nothing is yet",
                self.name,
            )

    def _clean(self) -> None:
        """Delete what a process that was killed left half-written."""
        for place in (self._path, *(self._path / name for name in _FOLDERS)):
            check_inside(place, self._path)
            for folder, inside, files in os.walk(place):
                if place == self._path:
                    inside.clear()
                for name in files:
                    if name.startswith(".") and name.endswith(PARTIAL_SUFFIX):
                        (Path(folder) / name).unlink(missing_ok=True)


class _Remote:
    """Objects of a file system of fsspec: an object store writes an object whole."""

    def __init__(self, url: str) -> None:
        import fsspec  # pyright: ignore[reportMissingTypeStubs]

        self._fs, self._root = cast("tuple[Any, str]", fsspec.url_to_fs(url))  # pyright: ignore[reportUnknownMemberType]
        self.name = self.url = url

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def read(self, key: str, at_most: int) -> bytes:
        content: bytes = self._fs.cat_file(self._path(key), start=0, end=at_most + 1)
        if len(content) > at_most:
            raise ValueError(f"{self.name}/{key} must have at most {at_most:,} bytes")
        return content

    def read_end(self, key: str, n: int) -> bytes:
        return self._fs.cat_file(self._path(key), start=-n)

    def write(self, key: str, content: bytes) -> None:
        path = self._path(key)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, content)

    def delete(self, key: str) -> None:
        if self._fs.exists(self._path(key)):
            self._fs.rm_file(self._path(key))

    def sizes(self, prefix: str) -> dict[str, int]:
        self._fs.invalidate_cache()
        start = self._path("")
        try:
            found = self._fs.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return {}
        return {
            path[path.index(start.lstrip("/")) + len(start.lstrip("/")) :]: int(entry["size"])
            for path, entry in found.items()
        }

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


def check_stores(folder: str, sizes: dict[str, int]) -> None:
    """Refuse to begin several stores in a folder whose disk has too little room for all of them.

    Parameters
    ----------
    folder : str
        Path or URL: behind a URL nothing is refused.
    sizes : dict of str to int
        For each store the bytes of its tiles; those that are there are not counted again.

    Raises
    ------
    OSError
        As for `Objects.check_room`.
    """
    if isinstance(open_objects(folder), _Folder):
        there = {store: sum(open_objects(store).sizes("c").values()) for store in sizes}
        needed = sum(max(0, size - there[store]) for store, size in sizes.items())
        open_objects(folder).check_room(needed)
