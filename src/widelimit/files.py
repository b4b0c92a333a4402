"""Files and folders that appear complete, and on the disk, or not at all; and whether they can.

What can be known of an output is checked before the work that it is for: `check_file` and
`check_folder`. All errors name it as the user did.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import random
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, TextIO

__all__ = [
    "PARTIAL_SUFFIX",
    "atomic_file",
    "atomic_folder",
    "check_file",
    "check_folder",
    "check_room",
    "has_no_room",
    "locked_file",
    "make_folder",
    "naming",
    "no_room",
    "said",
    "write_atomically",
]

PARTIAL_SUFFIX = ".partial"
"""Ending of the names of files that are not complete: after a crash they may be deleted."""

_OWNER = "process "  # what a lock begins with

# What a file system answers that cannot sync a folder.
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)
_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full",  # what this user may have of it
    errno.EFBIG: "no file may be so large there",
}
_LONGEST_INSIDE = "x" * 120  # about the longest path of a file in a folder of ours


# ---------------------------------------------------------------- before the work


def check_file(path: Path, needed: int = 0) -> None:
    """Refuse the path of a file that could not be written in the end.

    Parameters
    ----------
    path : Path
        May be that of a file, which is then replaced.
    needed : int
        Bytes that the file will have; 0 if nobody knows.

    Raises
    ------
    OSError
        If there is no folder for it, nothing can be written there, its name is too long, something
        that is no file has this name, or the disk has too little room.
    """
    _check_place(path, path.parent, [path, _beside(path)])
    _check_kind(path)
    check_room(path, needed)


def check_folder(path: Path, needed: int = 0) -> None:
    """Refuse the path of a folder that could not be made, or written in, in the end.

    Parameters
    ----------
    path : Path
        Of a folder that is there, or of a new one in a folder that is there.
    needed : int
        Bytes that will be written there; 0 if nobody knows.

    Raises
    ------
    OSError
        As for `check_file`.
    """
    if os.path.isdir(path):
        folder = path
    elif os.path.exists(path):
        raise _refusal(errno.ENOTDIR, "this is no folder: give another path", path)
    else:
        folder = Path(os.path.realpath(path)).parent if os.path.islink(path) else path.parent
    _check_place(path, folder, [path, path / _LONGEST_INSIDE])
    check_room(path, needed)


def check_room(path: Path, needed: int) -> None:
    """Refuse to begin what there is too little room for.

    Parameters
    ----------
    path : Path
        Where it will lie: need not be there yet.
    needed : int
        Bytes.

    Raises
    ------
    OSError
        ENOSPC. Where the system does not say how much is free, nothing is refused.
    """
    place = Path(os.path.abspath(path))
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    try:
        disk = shutil.disk_usage(place)
    except OSError:
        return
    if disk.total and needed > disk.free:
        free = _megabytes(disk.free, math.floor)
        raise no_room(path, needed, f", {free} are free: make room, or give another path")


def _check_kind(path: Path) -> None:
    """Refuse the path of a folder, or of a pipe, a device or a socket, which a rename replaces."""
    with contextlib.suppress(FileNotFoundError):
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise _refusal(errno.EISDIR, "this is a folder: give the path of a file", path)
        if not stat.S_ISREG(kind):
            raise _refusal(errno.EEXIST, "this is no file: give the path of a file", path)


def _check_place(path: Path, folder: Path, names: list[Path]) -> None:
    """Refuse an output whose folder is not there or not writable, or whose names are too long."""
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise NotADirectoryError
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(name)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileNotFoundError as error:
        reason = f"there is no folder {folder}: make it, or give another path"
        raise _refusal(errno.ENOENT, reason, path) from error
    except NotADirectoryError as error:
        reason = f"{folder} is no folder: give another path"
        raise _refusal(errno.ENOTDIR, reason, path) from error
    except OSError as error:
        if has_no_room(error):
            raise no_room(path, number=error.errno) from error
        number = error.errno or errno.EIO
        reason = f"nothing can be written in {folder} ({error.strerror}): give another path"
        if number == errno.ENAMETOOLONG:
            reason = "this name is too long: give a shorter one"
        raise _refusal(number, reason, path) from error


def _refusal(number: int, reason: str, path: Path) -> OSError:
    return OSError(number, reason, str(path))


# ---------------------------------------------------------------- errors


def has_no_room(error: OSError) -> bool:
    """Return whether an error is that of a disk, or of a quota, that is full."""
    return error.errno in _NO_ROOM


def no_room(
    path: Path | str, needed: int = 0, more: str = "", number: int | None = None
) -> OSError:
    """Return the error of a disk that is full.

    Parameters
    ----------
    path : Path or str
        As the user gave it.
    needed : int
        Bytes that are to be written there; 0 if nobody knows.
    more : str
        What else is to be said.
    number : int or None
        Of the system's error. None: ENOSPC.
    """
    number = errno.ENOSPC if number is None else number
    amount = f"{_megabytes(needed, math.ceil)} are" if needed else "more room is"
    return OSError(number, f"{_NO_ROOM[number]}: {amount} needed in {path}{more}")


def said(error: OSError) -> str:
    """Return what an error says, in one line, with its path in front and without its number."""
    text = str(error) if error.strerror is None else error.strerror
    line = " ".join(text.split())
    return f"{error.filename}: {line}" if error.filename else line


@contextlib.contextmanager
def naming(path: Path, needed: int = 0, hidden: Path | None = None) -> Generator[None]:
    """Make errors of a block those of the path that the user gave.

    Parameters
    ----------
    path : Path
    needed : int
        Bytes that the block writes; 0 if nobody knows.
    hidden : Path or None
        A temporary name for it, of a file, or of a folder in which it writes.
    """
    try:
        yield
    except OSError as error:
        if has_no_room(error):
            raise no_room(path, needed, number=error.errno) from error
        if error.errno is None or error.strerror is None:
            raise
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        if named is not None and (hidden is None or not named.is_relative_to(hidden)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _megabytes(count: int, rounded: Callable[[float], int]) -> str:
    tenths = rounded(count / 1e5)
    return f"{rounded(count / 1e6):,} MB" if tenths >= 100 else f"{tenths / 10} MB"


# ---------------------------------------------------------------- the writing


@contextlib.contextmanager
def atomic_file(path: Path, needed: int = 0) -> Generator[BinaryIO]:
    """Open a file for writing that appears, complete and on the disk, when the block ends.

    Parameters
    ----------
    path : Path
        Is replaced if it exists. Until then the content has a temporary name beside it, hidden
        and with the ending `PARTIAL_SUFFIX`.
    needed : int
        Bytes that will be written, for the error; 0 if nobody knows.

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is still there. Or if the folder
        cannot be synced: then the new file is there, but may be gone after a power cut. It names
        the path, not the temporary one. Or if a folder, a pipe, a device or a socket is there.
    """
    _check_kind(path)
    temporary = _beside(path)
    with naming(path, needed, temporary):
        try:
            # Open for reading, too: numpy then writes arrays by the file's own `write`, whose
            # errors say what is wrong; "36864 requested and 7152 written" does not.
            with temporary.open("x+b") as file:
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
    """Write bytes, or text as UTF-8, by `atomic_file`.

    Half surrogates, which stand for bytes in names of files that are not UTF-8, become escapes of
    Python, which JSON reads, too.
    """
    text = isinstance(content, str)
    encoded = content.encode("utf-8", "backslashreplace") if text else content
    with atomic_file(path, len(encoded)) as file:
        file.write(encoded)


@contextlib.contextmanager
def atomic_folder(path: Path, needed: int = 0) -> Generator[Path]:
    """Make a folder that appears, with all its files, when the block ends.

    Parameters
    ----------
    path : Path
        Must not be there.
    needed : int
        As for `atomic_file`.

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
    place = path.resolve()  # a link that leads to where nothing is yet stays one
    temporary = _beside(place)
    with naming(path, needed, temporary):
        temporary.mkdir()
        try:
            yield temporary
            temporary.rename(place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(place.parent)


@contextlib.contextmanager
def locked_file(path: Path) -> Generator[TextIO]:
    """Hold a file for this process alone, and write into it who holds it.

    The lock is one of the file system: it ends with this process, however that ends, and processes
    that are forked do not share it.

    Raises
    ------
    BlockingIOError
        If another process holds it, with what that one has written.
    OSError
        If nothing can be written there; it names the folder.
    ValueError
        If it is something else than a lock, which is not written over.
    """
    with naming(path.parent, hidden=path):
        opened = _open_lock(path)
    with opened as file:
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
            with naming(path.parent):
                os.ftruncate(file.fileno(), 0)
                owner = f"{_OWNER}{os.getpid()} on {socket.gethostname()}\n"
                os.pwrite(file.fileno(), owner.encode(), 0)
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
        with naming(path):
            try:
                path.mkdir(exist_ok=True)
            except FileExistsError as error:
                reason = "this is no folder: give another path"
                raise _refusal(errno.EEXIST, reason, path) from error
            _sync_folder(path.parent)


def _beside(path: Path) -> Path:
    return path.parent / f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}"  # however long the name is


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
