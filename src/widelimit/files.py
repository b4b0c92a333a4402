"""Files and folders that appear complete, and on the disk, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import re
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Generator
from pathlib import Path
from typing import BinaryIO, TextIO

__all__ = [
    "LOCK",
    "HeldByAnother",
    "atomic_file",
    "atomic_folder",
    "locked_file",
    "make_folder",
    "naming",
    "own_folder",
    "partial_of",
    "remove_abandoned",
    "write_atomically",
]

LOCK = ".lock"
"""Name of the file that is locked while something is written to a folder."""

# Of what is not complete; `remove_abandoned` deletes it after a crash.
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial", re.DOTALL)

# What a file system answers that cannot sync a folder.
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)


@contextlib.contextmanager
def naming(path: Path) -> Generator[None]:
    """Say of errors of the system which file they are about: those of a handle do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """Open a file for writing that appears, complete and on the disk, when the block ends.

    Parameters
    ----------
    path : Path
        Is replaced if it exists. Until then the content has a temporary name beside it, hidden
        and with the ending ``.partial``, and is locked: what is not, was abandoned.

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is still there. Or if the folder
        cannot be synced: then the new file is there, but may be gone after a power cut.
    """
    with naming(path):
        temporary, file = _open_beside(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)  # while it is locked: nobody takes it for abandoned
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
        The folder under a temporary name, as in `atomic_file`, for files that are written by it.

    Raises
    ------
    OSError
        As for `atomic_file`.
    """
    path = path.resolve()  # a link that leads to where nothing is yet stays one
    with naming(path):
        temporary, handle = _make_beside(path)
        try:
            yield temporary
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(handle)
        _sync_folder(path.parent)


class HeldByAnother(BlockingIOError):
    """What one process writes at a time is being written by another one."""


@contextlib.contextmanager
def own_folder(
    path: Path, names: Collection[str], what: str, marks: Collection[str] = ()
) -> Generator[None]:
    """Be the only process that writes to a folder, in which nothing lies but what is ours.

    Parameters
    ----------
    path : Path
        Is made if it is not there. What processes that were killed have left in it half-written
        is deleted.
    names : collection of str
        Of all that may lie there.
    what : str
        What the folder is for, in the message.
    marks : collection of str
        Those of `names` that only we give. Where anything lies, one of them does, or our lock.

    Raises
    ------
    FileExistsError
        If something else lies there; nothing is touched.
    HeldByAnother
        If another process holds it.
    OSError
        If nothing can be written there.
    """
    try:
        there = {name for name in os.listdir(path) if partial_of(name) is None}
    except FileNotFoundError:
        there = set[str]()
    is_ours = bool(there & {LOCK, *(marks or names)})
    other = sorted(there - {LOCK, *names} if is_ours else there)
    if other:
        raise FileExistsError(
            errno.EEXIST,
            f"there are other files in this folder ({', '.join(other[:3])}): give the path of "
            f"{what}, or one where nothing is yet",
            str(path),
        )
    make_folder(path)
    with locked_file(path / LOCK):
        remove_abandoned(path)
        yield


def partial_of(name: str) -> str | None:
    """Return the name that a temporary one stands for; None if it is none of `atomic_file`."""
    match = _PARTIAL.fullmatch(name)
    return match and match[1]


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete what processes that were killed have left half-written in a folder.

    What a process is still writing is locked, and stays.

    Parameters
    ----------
    folder : Path
    name : str or None
        Of what was to be written; None: whatever it was.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            real = partial_of(entry.name)
            if real is not None and name in (None, real):
                with contextlib.suppress(OSError):  # such as that it is locked
                    _remove_unlocked(entry)


def _remove_unlocked(entry: os.DirEntry[str]) -> None:
    is_folder = entry.is_dir(follow_symlinks=False)
    if not is_folder and not entry.is_file(follow_symlinks=False):
        return
    # On some file systems only what may be written can be locked.
    mode = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR
    handle = os.open(entry.path, mode | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_folder:
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked_file(path: Path) -> Generator[TextIO]:
    """Hold a file for this process alone, and write into it who holds it.

    The lock is one of the file system: it ends with this process, however that ends, and processes
    that are forked do not share it.

    Raises
    ------
    HeldByAnother
        If another process holds it, with what that one has written.
    """
    with path.open("a+", encoding="utf-8") as file:
        _locked.add(file)
        try:
            with naming(path):
                if not _lock_alone(file):
                    file.seek(0)
                    owner = file.read(200).strip() or "unknown"
                    raise HeldByAnother(
                        errno.EAGAIN,
                        f"another process is writing there ({owner}): wait until it has finished, "
                        "or stop it",
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


# ---------------------------------------------------------------- temporary names


def _open_beside(path: Path) -> tuple[Path, BinaryIO]:
    """Open a new file with a temporary name, locked."""
    while True:
        temporary = _beside(path)
        file = temporary.open("xb")
        if _hold(file.fileno(), temporary):
            return temporary, file
        file.close()


def _make_beside(path: Path) -> tuple[Path, int]:
    """Make a folder with a temporary name; what is returned with it keeps it locked."""
    while True:
        temporary = _beside(path)
        temporary.mkdir()
        handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        if _hold(handle, temporary):
            return temporary, handle
        os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _hold(handle: int, path: Path) -> bool:
    """Lock what is new; return whether it is still there, as nobody may have seen it locked."""
    with contextlib.suppress(OSError):  # where nothing can be locked, nothing is deleted
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system lets one."""
    try:
        with naming(folder):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
