"""Data sets that are fetched: each from one address, of one size, with one digest.

pooch, which others use for this, begins a file again whenever a line breaks; here what came stays
and is gone on with. No more is taken from a server than the file has, and nothing is read of it
before its digest is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import time
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from widelimit._version import __version__
from widelimit.display import duration, shown
from widelimit.files import LOCK, check_file, check_room, locked_file, make_folder, naming

__all__ = ["CIFAR10", "Published", "Received", "fetch", "may_follow"]

_PATIENCE = 60.0  # seconds that a server may be silent
_CHUNK = 2**18
_OK, _PARTIAL_CONTENT, _NOT_SATISFIABLE = 200, 206, 416
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Published:
    """A file as it was published.

    Parameters
    ----------
    url : str
        https; http of this machine alone.
    size : int
        Bytes.
    sha256 : str
        Its digest, in hexadecimal digits.
    """

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rpartition("/")[2]


CIFAR10 = Published(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    170_498_071,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
"""Python's version of CIFAR-10. Its page has the MD5 digest, c58f30108f718f92721af3b95e74349a; the
SHA-256 digest is that of the same file, and also what Keras checks."""


@dataclass(frozen=True, slots=True)
class Received:
    """How far a file is: bytes that are here, of how many, and a second."""

    count: int
    size: int
    rate: float

    @property
    def share(self) -> float:
        """Finished share, 0 to 1."""
        return self.count / self.size

    def __str__(self) -> str:
        text = f"{_megabytes(self.count)} of {_megabytes(self.size)}"
        if not self.rate or self.count == self.size:
            return text
        left = (self.size - self.count) / self.rate
        return f"{text}, {self.rate / 1e6:.2g} MB/s, {duration(left)} left"


def fetch(
    file: Published, folder: Path, *, progress: bool | Callable[[Received], None] = True
) -> Path:
    """Return the path of a published file, which is fetched if it is not there.

    Parameters
    ----------
    file : Published
    folder : Path
        Is made if it is not there. What has come lies in it as ``NAME.partial`` until all of it is
        there and its digest is right.
    progress : bool or callable
        True: where it is fetched from and to, and a bar. A callable is given every state.

    Returns
    -------
    Path

    Raises
    ------
    ConnectionError
        If the server cannot be reached, refuses, is silent for a minute, leads elsewhere than to
        https, or ends too early. What has come is kept, the next call goes on with it.
    ValueError
        If the digest is wrong: what was fetched is then deleted, what was there before is not.
    OSError
        If it cannot be written, or the disk has too little room for it.
    HeldByAnother
        If another process fetches into this folder.
    """
    path = folder / file.name
    if _is_there(file, path):
        return path
    partial = folder / f"{file.name}.partial"
    check_room(path, file.size - (partial.stat().st_size if partial.is_file() else 0))
    make_folder(folder)
    with locked_file(folder / LOCK):
        if _is_there(file, path):  # another process had it in the meantime
            return path
        check_file(path)
        if progress is True:
            place = f"{file.url} ({_megabytes(file.size)}) to {path}"
            print(f"fetching {place}", file=sys.stderr, flush=True)
        with _opened(partial) as out, shown(progress, file.name, _state) as report:
            have = out.seek(0, os.SEEK_END)
            try:
                if have != file.size:
                    _receive(file, partial, out, have if have < file.size else 0, report)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{_megabytes(out.tell())} of {file.name} are kept, the same command goes on"
                ) from None
            with naming(path):
                out.flush()
                os.fsync(out.fileno())
        if (found := _digest(partial)) != file.sha256:
            partial.unlink()
            raise ValueError(
                f"{file.url} must have the SHA-256 digest {file.sha256}, what came has {found}: "
                "it was deleted; try again, and if that is no better the file, or the line to it, "
                "is not what it should be"
            )
        with naming(path):
            partial.replace(path)
    return path


def _is_there(file: Published, path: Path) -> bool:
    """Return whether a file is there; refuse one that is another than was published."""
    if not path.exists():
        return False
    if (found := _digest(path)) != file.sha256:
        raise ValueError(
            f"{path} must have the SHA-256 digest {file.sha256}, it has {found}: delete it, and it "
            "will be fetched"
        )
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Generator[BinaryIO]:
    """Open a file that is gone on with, or make it; none that a link or a pipe is."""
    with naming(path):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        out = os.fdopen(os.open(path, flags, 0o666), "r+b")
    with out:
        if not stat.S_ISREG(os.fstat(out.fileno()).st_mode):
            raise ValueError(f"{path} must be a file that was begun, it is none: delete it")
        yield out


def _state(state: Received) -> tuple[float, str]:
    return state.share, str(state)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


# ---------------------------------------------------------------- the network


def _receive(
    file: Published, path: Path, out: BinaryIO, have: int, report: Callable[[Received], None]
) -> None:
    """Write what is not there yet of a file to the end of what is."""
    with _explained(file):
        response, first = _ask(file, have)
    with response:
        with naming(path):
            out.truncate(first)
            out.seek(first)
        count, start = first, time.monotonic()
        report(Received(count, file.size, 0.0))
        while count < file.size:
            with _explained(file):
                content = response.read1(min(_CHUNK, file.size - count))
                if not content:
                    raise URLError(f"it ends after {count:,} of {file.size:,} bytes")
            with naming(path, file.size - count):
                out.write(content)
                count += len(content)
            seconds = time.monotonic() - start
            report(Received(count, file.size, (count - first) / seconds if seconds else 0.0))


def _ask(file: Published, have: int) -> tuple[Any, int]:
    """Ask for a file, or for the rest of it; return the answer, and where in the file it begins.

    Whether the server still has the file of which the first bytes are here, the digest will tell.
    """
    request = urllib.request.Request(file.url, headers={"User-Agent": f"widelimit/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(request, timeout=_PATIENCE)
    except HTTPError as error:
        error.close()
        if have and error.code == _NOT_SATISFIABLE:
            return _ask(file, 0)
        raise
    told = response.headers.get("Content-Length")
    if response.status == _OK and told in (None, str(file.size)):
        return response, 0
    rest = f"bytes {have}-{file.size - 1}/{file.size}"
    if have and response.status == _PARTIAL_CONTENT and response.headers["Content-Range"] == rest:
        return response, have
    response.close()
    if have:  # the rest of another file
        return _ask(file, 0)
    raise URLError(
        f"it must have {file.size:,} bytes, the server offers {told or 'none'} (status "
        f"{response.status})"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes nowhere but to https; on this machine, from http to http, too."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if not may_follow(req.full_url, newurl):
            fp.close()
            raise URLError(f"the server leads to {newurl[:200]!r}, which is no https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def may_follow(old: str, new: str) -> bool:
    """Return whether a server may lead from one address to another."""
    places = [urlsplit(old), urlsplit(new)]
    local = all(place.scheme == "http" and place.hostname in _LOOPBACK for place in places)
    return places[1].scheme == "https" or local


@contextlib.contextmanager
def _explained(file: Published) -> Generator[None]:
    """Make what goes wrong on the way an error that says so, and what to do."""
    try:
        yield
    except (OSError, HTTPException) as error:
        reason: Any = error.reason if isinstance(error, URLError) else error
        told = " ".join(str(reason).split()) or type(reason).__name__
        if isinstance(error, HTTPError):
            told = f"the server answers {error.code}, {told}"
        place = urlsplit(file.url)
        proxies = urllib.request.getproxies()
        if place.scheme in proxies and not urllib.request.proxy_bypass(place.hostname or ""):
            told += f" (by way of the proxy that {place.scheme}_proxy names)"
        raise ConnectionError(
            f"{file.url} cannot be fetched: {told}; what has come is kept, the same command goes "
            "on with it; or fetch it in another way"
        ) from error
