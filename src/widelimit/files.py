"""Files and folders that appear complete, and on the disk, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

__all__ = ["PARTIAL_SUFFIX", "atomic_file", "atomic_folder", "make_folder", "write_atomically"]

PARTIAL_SUFFIX = ".partial"
"""Ending of the names of files that are not complete: after a crash they may be deleted."""

# What a file system answers that cannot sync a folder.
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """Open a file for writing that appears, complete and on the disk, when the block ends.

    Parameters
    ----------
    path : Path
        Is replaced if it exists. Until then the content has a temporary name beside it, hidden
        and with the ending `PARTIAL_SUFFIX`.

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is still there. Or if the folder
        cannot be synced: then the new file is there, but may be gone after a power cut.
    """
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, by `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Make a folder that appears, with all its files, when the block ends.

    Parameters
    ----------
    path : Path
        Is replaced if it exists.

    Returns
    -------
    Path
        The folder under a temporary name, hidden and with the ending `PARTIAL_SUFFIX`: for files
        that are written by `atomic_file`.

    Raises
    ------
    OSError
        As for `atomic_file`.

    Notes
    -----
    No system call that Python has exchanges two folders: a crash between two renames leaves the old
    one and the new one, both complete, under hidden names.
    """
    path = path.resolve()  # a link stays one
    temporary, old = _beside(path), _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        replaced = path.exists()
        if replaced:
            path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            if replaced:
                old.rename(path)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)
    if replaced:
        shutil.rmtree(old)


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in, on the disk; nothing happens if it is there."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system lets one."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
