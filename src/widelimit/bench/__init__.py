"""How fast this machine computes kernels, next to what it should reach: ``widelimit bench``."""

from __future__ import annotations

from widelimit.bench.cases import Setting
from widelimit.bench.groups import GROUPS, choose_groups
from widelimit.bench.images import Images
from widelimit.bench.record import exit_code, render, run, write_json

__all__ = [
    "GROUPS",
    "Images",
    "Setting",
    "choose_groups",
    "exit_code",
    "render",
    "run",
    "write_json",
]
