"""A disk that fails, or on which a process is killed, at one of the things that are done to it."""

from __future__ import annotations

import fcntl
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

WRITES = {"write", "sync", "create", "mkdir", "rename"}
# What a handle does: such errors of the system name no file.
NAMELESS = {"write", "sync", "lock", "read"}


class Disk:
    """The file operations below a folder, counted; at one of them something happens.

    Parameters
    ----------
    folder : Path
    at : int or None
        Which one.
    act : callable
        What happens: it may raise, or end the process.
    half : bool
        Whether, of what is written then, one half is.
    lasting : bool
        Whether it happens to whatever is written from then on, too.
    """

    def __init__(
        self,
        folder: Path,
        at: int | None = None,
        act: Callable[[str, str], None] = lambda what, path: None,
        *,
        half: bool = False,
        lasting: bool = False,
    ) -> None:
        self._folder, self._at, self._act = str(folder), at, act
        self._half, self._lasting = half, lasting
        self._lock = threading.Lock()
        self.seen: list[str] = []

    def _happens(self, what: str) -> bool:
        with self._lock:
            number = len(self.seen)
            self.seen.append(what)
        later = self._lasting and self._at is not None and number > self._at and what in WRITES
        return number == self._at or later

    def _step(self, what: str, place: Any) -> None:
        if isinstance(place, int):
            with suppress(OSError):
                place = os.readlink(f"/proc/self/fd/{place}")
        inside = isinstance(place, str | Path) and str(place).startswith(self._folder)
        if inside and self._happens(what):
            self._act(what, str(place))

    def write(self, file: Any, name: str, content: Any) -> int:
        if self._happens("write"):
            if self._half:
                file.write(content[: len(content) // 2])
                file.flush()
            self._act("write", name)
        return file.write(content)

    @contextmanager
    def patched(self) -> Iterator[Disk]:
        """Put it in the place of the functions of the system."""
        step, real_open, fdopen = self._step, Path.open, os.fdopen

        def wrapped(function: Callable[..., Any], what: str) -> Callable[..., Any]:
            def call(place: Any, *rest: Any, **options: Any) -> Any:
                handle = place.fileno() if hasattr(place, "fileno") else place
                step(what, handle)
                return function(place, *rest, **options)

            return call

        def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            writes = set(mode) & set("wxa")
            step("create" if writes else "open", path)
            file = real_open(path, mode, *rest, **options)
            if writes and str(path).startswith(self._folder):
                return _File(file, self, str(path))
            return file

        def from_handle(handle: int, *rest: Any, **options: Any) -> Any:
            step("read", handle)
            return fdopen(handle, *rest, **options)

        functions = {
            "open": "open",
            "fsync": "sync",
            "replace": "rename",
            "rename": "rename",
            "mkdir": "mkdir",
            "unlink": "delete",
            "scandir": "list",
            "listdir": "list",
        }
        with (
            mock.patch.multiple(
                os,
                fdopen=from_handle,
                **{name: wrapped(getattr(os, name), what) for name, what in functions.items()},
            ),
            mock.patch.object(pathlib.Path, "open", opened),
            mock.patch.object(fcntl, "flock", wrapped(fcntl.flock, "lock")),
        ):
            yield self


class _File:
    """A file that is written to, by way of a disk."""

    def __init__(self, file: Any, disk: Disk, name: str) -> None:
        self._file, self._disk, self._name = file, disk, name

    def write(self, content: Any) -> int:
        return self._disk.write(self._file, self._name, content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def raising(number: int) -> Callable[[str, str], None]:
    """Return what fails as the system does."""

    def act(what: str, path: str) -> None:
        if what in NAMELESS:
            raise OSError(number, os.strerror(number))
        raise OSError(number, os.strerror(number), path)

    return act


def die(what: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def apart(call: Callable[[], object]) -> bool:
    """Call in a process of its own, and return whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            with suppress(Exception):
                call()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
