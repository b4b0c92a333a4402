"""Results of the command line: where the disk fills up in the end, they are kept elsewhere."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from widelimit.files import check_room, said

__all__ = ["NotWritten", "keep", "keep_and_show"]

_IN_MEMORY = "/dev/shm"  # until the machine is switched off


class NotWritten(OSError):
    """A result is not where it was to go: the message says where it is kept, or that it is lost."""


def keep(path: Path, write: Callable[[Path], None], needed: int = 0) -> Path:
    """Write a result that took work, if need be to another place.

    Parameters
    ----------
    path : Path
        Of the file or folder that was asked for.
    write : callable
        Writes it to a path, whole or not at all.
    needed : int
        Bytes that it has; 0 if nobody knows.

    Returns
    -------
    Path
        Where it is: another one if a user at a terminal has named it.

    Raises
    ------
    NotWritten
        If it is now in a folder for temporary files, or another one of this machine, or nowhere.
    """
    try:
        write(path)
        return path
    except OSError as error:
        failure = error
    found = _keep_somewhere(Path(os.path.abspath(path)).name, write, needed)
    if found is not None:
        raise NotWritten(
            f"{said(failure)}; what was computed is kept in {found}: move it to where it "
            "belongs" + (" before the machine is switched off" if _is_in_memory(found) else "")
        ) from failure
    while (answer := _ask(said(failure))) is not None:
        try:
            if os.path.lexists(answer):
                raise FileExistsError(errno.EEXIST, "there is one already", str(answer))
            write(answer)
            return answer
        except OSError as error:
            failure = error
    raise NotWritten(
        f"{said(failure)}; what was computed could be kept nowhere, it is lost"
    ) from failure


def keep_and_show(path: Path, write: Callable[[Path], None], show: Callable[[], None]) -> Path:
    """Write a result as `keep` does, and only then print it: nobody may be there who reads.

    Parameters
    ----------
    path, write
        As for `keep`.
    show : callable
        Prints the result, wherever it is; also where it could not be written.

    Returns
    -------
    Path
        As `keep`.

    Raises
    ------
    NotWritten
        As `keep`.
    """
    try:
        place = keep(path, write)
    except NotWritten:
        with suppress(BrokenPipeError):
            show()
        raise
    show()
    return place


def _keep_somewhere(name: str, write: Callable[[Path], None], needed: int) -> Path | None:
    """Write to the first place that will take it; None if there is none."""
    for place in _places():
        try:
            check_room(place, needed)
            folder = Path(tempfile.mkdtemp(prefix="widelimit-", dir=place))
        except OSError:
            continue
        try:
            write(folder / name)
            return folder / name
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
    return None


def _places() -> Iterator[Path]:
    """Yield folders in which something may be kept."""
    chosen = os.environ.get("TMPDIR")
    for place in (chosen, "/tmp", "/var/tmp", os.path.expanduser("~"), ".", _IN_MEMORY):
        if place and os.path.isdir(place):
            yield Path(place).absolute()


def _is_in_memory(path: Path) -> bool:
    return path.is_relative_to(_IN_MEMORY)


def _ask(reason: str) -> Path | None:
    """Ask a user at a terminal for another path; None if there is no terminal, or no answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    print(f"widelimit: {reason}", file=sys.stderr)
    while True:
        print("another path for what was computed: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:  # Ctrl-D
            return None
        if line.strip():
            return Path(line.strip()).expanduser()
