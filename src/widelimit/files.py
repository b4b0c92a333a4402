"""Files and folders that appear complete, and on the disk, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import socket
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO, TextIO

__all__ = [
    "PARTIAL_SUFFIX",
    "atomic_file",
    "atomic_folder",
    "locked_file",
    "make_folder",
    "write_atomically",
]

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
        Must not be there.

    Returns
    -------
    Path
        The folder under a temporary name, hidden and with the ending `PARTIAL_SUFFIX`: for files
        that are written by `atomic_file`.

    Raises
    ------
    OSError
        As for `atomic_file`.
    """
    path = path.resolve()  # a link that leads to where nothing is yet stays one
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def locked_file(path: Path) -> Generator[TextIO]:
    """Hold a file for this process alone, and write into it who holds it.

    The lock is one of the file system: it ends with this process, however that ends, and processes
    that are forked do not share it.

    Raises
    ------
    BlockingIOError
        If another process holds it, with what that one has written.
    """
    with path.open("a+", encoding="utf-8") as file:
        _locked.add(file)
        try:
            if not _lock_alone(file):
                file.seek(0)
                owner = file.read(200).strip() or "unknown"
                raise BlockingIOError(
                    errno.EAGAIN,
                    f"another process is writing there ({owner}): wait until it has finished, or "
                    "stop it",
                    str(path.parent),
                )
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield file
        finally:
            _locked.discard(file)


def _lock_alone(file: TextIO) -> bool:
    """Take a lock, or return whether another process writes; one that only looks is waited for."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(random.uniform(0, 0.002))


_locked = set[TextIO]()  # a lock is that of its file, which processes that are forked would share


def _close_locked() -> None:
    while _locked:
        _locked.pop().close()


os.register_at_fork(after_in_child=_close_locked)


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
