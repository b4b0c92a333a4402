"""Files and folders that appear complete, and on the disk, or not at all; and whether they can.

What can be known of an output is checked before the work that it is for: `check_file` and
`check_folder`. All errors name it as the user did.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import random
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Generator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

__all__ = [
    "LOCK",
    "HeldByAnother",
    "atomic_file",
    "atomic_folder",
    "check_file",
    "check_folder",
    "check_room",
    "has_no_room",
    "is_partial",
    "locked_file",
    "make_folder",
    "naming",
    "no_room",
    "own_folder",
    "remove_abandoned",
    "said",
    "write_atomically",
    "write_record",
]

LOCK = ".lock"
"""Name of the file that is locked while something is written to a folder."""

# Of what is not complete; `remove_abandoned` deletes it after a crash.
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{32}\.partial")

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


def check_file(path: Path, needed: int = 0, *, replace: bool = True) -> None:
    """Refuse the path of a file that could not be written in the end.

    Parameters
    ----------
    path : Path
        May be that of a file, which is then replaced.
    needed : int
        Bytes that the file will have; 0 if nobody knows.
    replace : bool
        Whether a file that is there may be replaced: what the option --overwrite says.

    Raises
    ------
    OSError
        If there is no folder for it, nothing can be written there, its name is too long, something
        that is no file has this name, or a file that is not to be replaced, or the disk has too
        little room.
    """
    _check_place(path, path.parent, [path, _beside(path)])
    _check_replaced(path)
    if not replace and os.path.lexists(path):
        reason = "there is one already: give another path, or say --overwrite"
        raise _refusal(errno.EEXIST, reason, path)
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


def _check_replaced(path: Path) -> None:
    """Refuse to put a file in the place of what is none; a rename would."""
    with contextlib.suppress(FileNotFoundError):
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            raise _refusal(errno.EISDIR, "this is a folder: give the path of a file", path)
        if not stat.S_ISREG(kind):
            raise _refusal(errno.EEXIST, "this is no file: give the path of a file", path)


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
def naming(path: Path, needed: int = 0) -> Generator[None]:
    """Make errors of a block those of the path that the user gave.

    These are errors of no path, as those of a handle, of a temporary one, and of what lies in the
    path; and, whatever was written, that there is no room.

    Parameters
    ----------
    path : Path
    needed : int
        Bytes that the block writes; 0 if nobody knows.
    """
    try:
        yield
    except OSError as error:
        if has_no_room(error):
            raise no_room(path, needed, number=error.errno) from error
        if error.errno is None or error.strerror is None:
            raise
        if error.filename is not None:
            named = Path(os.fsdecode(error.filename))
            if path not in named.parents and not any(map(is_partial, named.parts)):
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
        and with the ending ``.partial``, and is locked: what is not, was abandoned.
    needed : int
        Bytes that will be written, for the error; 0 if nobody knows.

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is still there. Or if the folder
        cannot be synced: then the new file is there, but may be gone after a power cut. Or if
        something is there that is no file. It names the path, not the temporary one.
    """
    with naming(path, needed):
        _check_replaced(path)
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
    """Write bytes, or text as UTF-8, by `atomic_file`.

    Half surrogates, which stand for bytes in names of files that are not UTF-8, become escapes of
    Python, which JSON reads, too.
    """
    text = isinstance(content, str)
    encoded = content.encode("utf-8", "backslashreplace") if text else content
    with atomic_file(path, len(encoded)) as file:
        file.write(encoded)


def check_record(path: Path, store: Path, *, replace: bool) -> None:
    """Refuse the path of a record, or of a folder for stores, that could not be written in the end.

    Raises
    ------
    OSError
        As for `check_file` and `check_folder`.
    ValueError
        If the record is no .json file.
    """
    if path.suffix != ".json":
        raise ValueError(f"the record must be a .json file, got {path}")
    check_file(path, replace=replace)
    check_folder(store)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, which has no NaN and no infinity, by `write_atomically`."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


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
        The folder under a temporary name, as in `atomic_file`, for files that are written by it.

    Raises
    ------
    OSError
        As for `atomic_file`.
    """
    place = path.resolve()  # a link that leads to where nothing is yet stays one
    with naming(path, needed):
        temporary, handle = _make_beside(place)
        try:
            yield temporary
            temporary.rename(place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(handle)
        _sync_folder(place.parent)


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
    ValueError
        As for `locked_file`.
    OSError
        If nothing can be written there.
    """
    try:
        there = {name for name in os.listdir(path) if not is_partial(name)}
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


def is_partial(name: str) -> bool:
    """Return whether this is a temporary name of `atomic_file` or `atomic_folder`."""
    return _PARTIAL.fullmatch(name) is not None


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete what processes that were killed have left half-written in a folder.

    What a process is still writing is locked, and stays.

    Parameters
    ----------
    folder : Path
    name : str or None
        Of what was to be written; None: whatever it was.
    """
    start = "." if name is None else _start(name)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_partial(entry.name) and entry.name.startswith(start):
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
    ValueError
        If it is something else than a lock, which is not written over.
    OSError
        If nothing can be written there; it names the folder.
    """
    with naming(path.parent):
        opened = _open_lock(path)
    with opened as file:
        _locked.add(file)
        try:
            with naming(path.parent):
                alone = _lock_alone(file)
                held = file.read(200).strip()
                if not alone:
                    raise HeldByAnother(
                        errno.EAGAIN,
                        f"another process is writing there ({held or 'unknown'}): wait until it "
                        "has finished, or stop it",
                        str(path.parent),
                    )
                if held and not held.startswith(_OWNER):
                    raise ValueError(f"{path} must be a lock, it holds something else: delete it")
                os.ftruncate(file.fileno(), 0)
                owner = f"{_OWNER}{os.getpid()} on {socket.gethostname()}\n"
                os.pwrite(file.fileno(), owner.encode(), 0)
            yield file
        finally:
            _locked.discard(file)


def _open_lock(path: Path) -> TextIO:
    """Open the file of a lock at its beginning, or make it; none that a link or a pipe is."""
    with contextlib.suppress(FileNotFoundError):
        _check_lock(path, os.lstat(path))
    # As if it had become a link or a pipe since.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8", errors="replace")
    try:
        _check_lock(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _check_lock(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} must be a lock, it is a link or no regular file: delete it")


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


# ---------------------------------------------------------------- temporary names


def _open_beside(path: Path) -> tuple[Path, BinaryIO]:
    """Open a new file with a temporary name, locked."""
    while True:
        temporary = _beside(path)
        # Open for reading, too: numpy then writes arrays by the file's own `write`, whose errors
        # say what is wrong; "36864 requested and 7152 written" does not.
        file = temporary.open("x+b")
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
    return path.parent / f"{_start(path.name)}{uuid.uuid4().hex}.partial"


def _start(name: str) -> str:
    """Return what temporary names for a name begin with: as short however long that is."""
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}."


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
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
