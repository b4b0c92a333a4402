"""Memory: what is available, and what a budget leaves."""

from __future__ import annotations

import os
import re
import resource
import sys
from numbers import Integral
from pathlib import Path
from typing import Any

__all__ = ["available_memory", "held_memory", "parse_memory", "peak_memory", "remaining"]

_DEFAULT_SHARE = 0.6  # of what is available
_PREFIXES = "KMGT"


def available_memory() -> int | None:
    """Return the bytes that this process can still take, None if the system does not say.

    The smaller of the system's free memory and the limit of the control group (containers).
    """
    limits: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            limits.append(int(limit) - used + int(counts.get("inactive_file", 0)))
    except (OSError, ValueError):
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
