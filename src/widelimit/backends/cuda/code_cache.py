"""Compiled kernels on disk, by a digest of all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from widelimit.backends.cuda.device import Device
from widelimit.files import atomic_file, remove_abandoned
from widelimit.machine import cache_folder, default_threads
from widelimit.reading import read_bytes

__all__ = ["compiled"]

_KEPT = 2000  # files: older ones make room
_MAX_CODE, _DIGEST = 2**28, 64  # bytes

_NAME = re.compile(r"[0-9a-f]{64}")

_lock = threading.Lock()


def _folder() -> Path:
    """Return the folder of compiled kernels; a temporary one where none can be written."""
    return cache_folder() or _temporary()


@lru_cache(maxsize=1)
def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="widelimit-"))


def compiled(
    device: Device,
    sources: Sequence[str],
    progress: Callable[[float], None] | None = None,
) -> list[Path]:
    """Return files of compiled code, one for each source.

    Parameters
    ----------
    device : Device
    sources : sequence of str
    progress : callable or None
        Called with the share that is done, if anything is compiled.

    Notes
    -----
    What is in the cache is not compiled again; the rest side by side on the processors of this
    process. A file appears complete or not at all, so that two processes may do this at a time.
    Its name is a digest of the source, the compiler and the target; a checksum lies beside it, and
    a damaged file is compiled again.
    """
    with _lock:
        folder = _folder()
        paths = [folder / f"{_digest(device, source)}.bin" for source in sources]
        missing = [i for i, path in enumerate(paths) if not _whole(path)]
        if not missing:
            return paths
        with ThreadPoolExecutor(min(len(missing), default_threads())) as pool:
            codes = pool.map(device.compile, [sources[i] for i in missing])
            for done, (i, code) in enumerate(zip(missing, codes, strict=True), start=1):
                _write(paths[i], code)
                if progress is not None:
                    progress(done / len(missing))
        _tidy(folder, keep=set(paths))
    return paths


def _digest(device: Device, source: str) -> str:
    return hashlib.sha256(f"{device.compiler()}\n{source}".encode()).hexdigest()


def _write(path: Path, code: bytes) -> None:
    with atomic_file(path) as file:
        file.write(code)
    with atomic_file(path.with_suffix(".sum")) as file:
        file.write(hashlib.sha256(code).hexdigest().encode())


def _whole(path: Path) -> bool:
    try:
        code = read_bytes(path, _MAX_CODE)
        checksum = read_bytes(path.with_suffix(".sum"), _DIGEST)
    except (OSError, ValueError):
        return False
    return hashlib.sha256(code).hexdigest().encode() == checksum


def _tidy(folder: Path, keep: set[Path]) -> None:
    """Delete the oldest files beyond a number, of those that have our names, and halves of them."""
    remove_abandoned(folder)
    with contextlib.suppress(OSError):
        ours = [path for path in folder.glob("*.bin") if _NAME.fullmatch(path.stem)]
        files = sorted(ours, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[_KEPT:]:
            if path not in keep:
                path.with_suffix(".sum").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
