"""Where and with what a run was made: the part of a record that every experiment has."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from widelimit._version import __version__
from widelimit.doctor import Machine, find_machine

__all__ = ["Environment", "describe_environment"]

_BUILD_FILES = ("src", "CMakeLists.txt", "pyproject.toml")


@dataclass(frozen=True, slots=True)
class Environment:
    """Command, code and machine of a run.

    Parameters
    ----------
    command : str
        As typed, without the folder of the program.
    started : str
        Time in UTC, ISO 8601.
    version : str
        Of widelimit.
    commit : str or None
        Commit of the repository that the running code is that of; None if it is of none.
    dirty : bool or None
        Whether the sources differ from that commit; None without a commit.
    machine : Machine
        Processor, system, and versions of packages.
    """

    command: str
    started: str
    version: str
    commit: str | None
    dirty: bool | None
    machine: Machine


def describe_environment(command: Sequence[str] | None = None) -> Environment:
    """Describe the running code and machine.

    Parameters
    ----------
    command : sequence of str, optional
        The words of the command line. By default those of this process.

    Returns
    -------
    Environment
        Nothing that identifies a person or a place in a network, unless the command does.
    """
    words = list(sys.argv if command is None else command)
    if words and Path(words[0]).name == "__main__.py":
        words[:1] = ["python", "-m", __name__.partition(".")[0]]
    commit, dirty = _find_commit(Path(__file__).resolve().parents[1])
    return Environment(
        command=shlex.join([Path(words[0]).name, *words[1:]]) if words else "",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        commit=commit,
        dirty=dirty,
        machine=find_machine(),
    )


def _find_commit(package: Path) -> tuple[str | None, bool | None]:
    """Commit of the running code, if it lies in its repository and is the code of that work tree.

    An installed package may lie inside any repository, say in the environment of a project, whose
    commit says nothing about it. So its modules are compared with the sources of the repository.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top:
        return None, None
    source = Path(top) / "src" / package.name
    for module in package.rglob("*.py"):
        twin = source / module.relative_to(package)
        if not twin.is_file() or twin.read_bytes() != module.read_bytes():
            return None, None
    commit = _git(source, "rev-parse", "HEAD")
    if not commit:
        return None, None
    changes = _git(Path(top), "status", "--porcelain", "--", *_BUILD_FILES)
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
