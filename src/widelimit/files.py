"""Files and folders that appear complete, and on the disk, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO, TextIO

__all__ = [
    "PARTIAL_SUFFIX",
    "atomic_file",
    "atomic_folder",
    "check_place",
    "locked_file",
    "make_folder",
    "write_atomically",
]

PARTIAL_SUFFIX = ".partial"
"""Ending of the names of files that are not complete: after a crash they may be deleted."""

_OWNER = "process "  # what a lock begins with

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
        As for `check_place`, too.
    """
    check_place(path)
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


def check_place(path: Path) -> None:
    """Refuse a path that no file can be put at, before the work for it.

    Raises
    ------
    FileNotFoundError
        If the folder is not there.
    IsADirectoryError, FileExistsError
        If there is a folder; or a pipe, a device or a socket, which a rename would replace.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "No such file or folder: make it, or give another", str(path.parent)
        )
    mode = path.stat().st_mode if path.exists() else stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "There is a folder: give another path", str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(
            errno.EEXIST, "There is a pipe, device or socket: give another path", str(path)
        )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, by `atomic_file`.

    Half surrogates, which stand for bytes in names of files that are not UTF-8, become escapes of
    Python, which JSON reads, too.
    """
    with atomic_file(path) as file:
        text = isinstance(content, str)
        file.write(content.encode("utf-8", "backslashreplace") if text else content)


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
    ValueError
        If it is something else than a lock, which is not written over.
    """
    with _open_lock(path) as file:
        _locked.add(file)
        try:
            alone = _lock_alone(file)
            held = file.read(200).strip()
            if not alone:
                raise BlockingIOError(
                    errno.EAGAIN,
                    f"another process is writing there ({held or 'unknown'}): wait until it has "
                    "finished, or stop it",
                    str(path.parent),
                )
            if held and not held.startswith(_OWNER):
                raise ValueError(f"{path} must be a lock, it holds something else: delete it")
            file.seek(0)
            file.truncate()
            file.write(f"{_OWNER}{os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield file
        finally:
            _locked.discard(file)


def _open_lock(path: Path) -> TextIO:
    """Open the file of a lock at its beginning, or make it; none that a link or a pipe is."""
    if path.is_symlink():
        raise ValueError(f"{path} must be a lock, it is a link to {os.readlink(path)}: delete it")
    # Both as if it had become a link or a pipe since.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path} must be a lock, it is no regular file: delete it")
    return os.fdopen(handle, "r+", encoding="utf-8", errors="replace")


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
