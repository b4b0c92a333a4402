"""Stores of tiles as tests look at them and change them, and disks of any size."""

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widelimit.matrices import store
from widelimit.matrices.objects import open_objects

Usage = namedtuple("Usage", "total used free")


def disk_of(free: int, patch: pytest.MonkeyPatch) -> None:
    """Let every disk have so many bytes that are free."""
    patch.setattr(shutil, "disk_usage", lambda _: Usage(2 * free + 1, free + 1, free))


def contents(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a store is: its metadata, without what was drawn, and all of its chunks."""
    objects = open_objects(path)
    found: dict[str, Any] = {name: objects.read(name, 2**30) for name, _ in objects.sizes("c")}
    metadata = json.loads(objects.read("zarr.json", 2**24))
    for name in ("identity", "digest"):
        del metadata["attributes"]["widelimit"][name]
    return found | {"zarr.json": metadata}


def change_metadata(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the metadata of a store, and their digest with them, as only a forger would."""
    metadata = json.loads((path / "zarr.json").read_text())
    change(metadata)
    metadata["attributes"]["widelimit"]["digest"] = store._digest(metadata)
    (path / "zarr.json").write_text(json.dumps(metadata))
