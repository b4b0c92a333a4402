"""The machine: processors and memory that this process may use, and the threads of the BLAS."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any, cast

__all__ = [
    "ALWAYS_FITS",
    "CACHE_VARIABLE",
    "available_memory",
    "blas_on_one_thread",
    "cache_folder",
    "default_threads",
    "held_memory",
    "parse_memory",
    "peak_memory",
    "remaining",
]

CACHE_VARIABLE = "WIDELIMIT_CACHE"
"""A folder for what is kept between runs: compiled kernels, and how fast this machine is."""

ALWAYS_FITS = 2**24  # bytes: to ask for the free memory takes as long as to fill them
_DEFAULT_SHARE = 0.6  # of what is available
_PREFIXES = "KMGT"
_SYSTEM = Path("/")  # where /proc and the mounted control groups are


def cache_folder() -> Path | None:
    """Return the folder for what is kept between runs, None if nothing can be written there.

    That of the environment variable WIDELIMIT_CACHE, or ``widelimit`` in that of caches.
    """
    chosen, base = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(chosen) if chosen else Path(base or Path.home() / ".cache") / "widelimit"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where home is
        pass
    return None


# ---------------------------------------------------------------- processors


def default_threads() -> int:
    """Return the number of processors that this process may use.

    At most the time that a control group grants it (containers, SLURM), and at most the environment
    variable OMP_NUM_THREADS: joblib sets it in the worker processes of scikit-learn's ``n_jobs``,
    and schedulers of clusters in jobs, so that they share processors.
    """
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    granted = min(_granted_processors(_SYSTEM), default=math.inf)
    processors = max(1, min(processors, math.ceil(granted))) if granted < math.inf else processors
    limit = os.environ.get("OMP_NUM_THREADS", "").strip()
    if limit.isascii() and limit.isdigit() and int(limit) > 0:
        return min(processors, int(limit))
    return processors


def blas_threads() -> int:
    """Return on how many threads the BLAS works, 1 if that is not known."""
    from threadpoolctl import threadpool_info

    found = cast("list[dict[str, Any]]", cast("Any", threadpool_info)())
    return max((each["num_threads"] for each in found if each["user_api"] == "blas"), default=1)


class _BlasLimit:
    """How many blocks want the BLAS on one thread, and what its threads were before the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limits: Any = None

    def enter(self) -> None:
        """Count one block more; the first sets the limit."""
        with self._lock:
            if self._users == 0:
                from threadpoolctl import threadpool_limits

                _let_any_thread_limit()
                self._limits = cast("Any", threadpool_limits)(1, user_api="blas")
            self._users += 1

    def leave(self) -> None:
        """Count one block less; the last gives the threads back."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _let_any_thread_limit()
                self._limits.restore_original_limits()
                self._limits = None
                _let_any_thread_limit()


def _let_any_thread_limit() -> None:
    """Undo what threadpoolctl 3.8 brought: the first thread to set a limit is the only one to.

    For others, as long as that one lives, its functions do nothing, without a word. Here the first
    block and the last one may be those of two threads.
    """
    import threadpoolctl

    controller: Any = threadpoolctl.OpenBLASController
    if hasattr(controller, "clear_controlling_thread"):
        controller.clear_controlling_thread(force=True)


_blas_limit = _BlasLimit()


@contextlib.contextmanager
def blas_on_one_thread() -> Generator[None]:
    """Keep the BLAS on one thread within the block, in all of the process.

    Blocks may overlap in any order, in several threads: the last one to end gives back the threads
    that there were before the first.
    """
    _blas_limit.enter()
    try:
        yield
    finally:
        _blas_limit.leave()


# ---------------------------------------------------------------- control groups


def _control_groups(system: Path, controller: str) -> Sequence[tuple[Path, bool]]:
    """Return the folders of this process's control groups, innermost first, and which are v2.

    SLURM and container engines nest groups, and the limit may be that of any of them. Inside a
    container the path that the kernel names may not be visible: then what is mounted is its own.
    """
    try:
        groups = (system / "proc/self/cgroup").read_text("utf-8", "replace")
        return _group_folders(system, controller, groups)
    except OSError:
        return ()


@lru_cache(maxsize=16)  # every kernel asks; a process that is moved has other groups
def _group_folders(system: Path, controller: str, groups: str) -> Sequence[tuple[Path, bool]]:
    mounts = (system / "proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    folders: list[tuple[Path, bool]] = []
    found: dict[bool, tuple[Path, str]] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            found.setdefault(True, (system / fields[4].lstrip("/"), fields[3]))
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            found.setdefault(False, (system / fields[4].lstrip("/"), fields[3]))
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        is_v2 = number == "0" and not names
        if (not is_v2 and controller not in names.split(",")) or is_v2 not in found:
            continue
        mount, top = found[is_v2]
        inside = path[len(top) :] if top != "/" and path.startswith(top) else path
        folder = mount / inside.lstrip("/")
        if ".." in folder.parts or not folder.is_dir():
            folder = mount
        folders.append((folder, is_v2))
        while folder != mount:
            folder = folder.parent
            folders.append((folder, is_v2))
    return folders


def _granted_processors(system: Path) -> Iterator[float]:
    """Yield the processors' time that each control group is granted, where it is limited."""
    for folder, is_v2 in _control_groups(system, "cpu"):
        try:
            if is_v2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            if quota not in ("max", "-1") and int(period) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def _free_in_groups(system: Path) -> Iterator[int]:
    """Yield the bytes that each limited control group leaves; cached files are free."""
    for folder, is_v2 in _control_groups(system, "memory"):
        names = ("memory.max", "memory.current", "inactive_file")
        if not is_v2:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        try:
            limit = (folder / names[0]).read_text().strip()
            if limit == "max" or int(limit) >= 2**62:  # v1 has a huge number for none
                continue
            used = int((folder / names[1]).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            cached = int(dict(line.split() for line in lines).get(names[2], 0))
            yield max(0, int(limit) - used + cached)
        except (OSError, ValueError):
            continue


# ---------------------------------------------------------------- memory


def available_memory() -> int | None:
    """Return the bytes that this process can still take, None if the system does not say.

    The smallest of the system's free memory and what the control groups leave (containers, SLURM).
    """
    limits = list(_free_in_groups(_SYSTEM))
    try:
        for line in (_SYSTEM / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    if not limits and sys.platform != "win32":
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def held_memory() -> int:
    """Return the bytes of memory that this process holds."""
    return _resident("VmRSS") or peak_memory()  # elsewhere than on Linux: the most that it held


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # That of Linux counts the process that started this one, too.
    return _resident("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)


def _resident(name: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def parse_memory(memory: Any) -> int:
    """Return a number of bytes: an integer, or text such as ``"6GB"`` or ``"512MiB"``.

    Raises
    ------
    TypeError, ValueError
        If it is neither, or not positive.
    """
    expected = "memory must be a number of bytes, or text such as '6GB' or '512MiB'"
    value = 0
    if isinstance(memory, Integral) and memory is not True:
        value = int(memory)
    elif isinstance(memory, str):
        match = re.fullmatch(r"([0-9]{1,18}(?:[.][0-9]{1,9})?) ?([KMGT]i?)?B?", memory.strip())
        if match is None:
            raise ValueError(f"{expected}, got {memory!r}")
        prefix = match[2] or ""
        power = 1 + _PREFIXES.index(prefix[0]) if prefix else 0
        value = int(float(match[1]) * (1024 if prefix.endswith("i") else 1000) ** power)
    else:
        raise TypeError(f"{expected}, got {memory!r}")
    if value <= 0:
        raise ValueError(f"{expected}, positive, got {memory!r}")
    return value


def remaining(memory: int | str | None) -> int:
    """Return the bytes that may still be taken under a budget for the whole process.

    Parameters
    ----------
    memory : int, str or None
        The budget, as for `parse_memory`; what the process holds already counts. None: 60 % of
        what is available, beside what it holds.
    """
    if memory is not None:
        return parse_memory(memory) - held_memory()
    available = available_memory()
    return 2**30 if available is None else int(available * _DEFAULT_SHARE)
