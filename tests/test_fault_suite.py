"""benchmarks/faults.py: a few of its trials; and it notices what would be wrong."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widelimit import files
from widelimit.matrices import objects
from widelimit.matrices.store import TileStore
from widelimit.matrices.tiles import KeySet

PATH = Path(__file__).parents[1] / "benchmarks" / "faults.py"
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def suite() -> Any:
    spec = importlib.util.spec_from_file_location("fault_suite", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["fault_suite"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_faults_at_random(suite: Any) -> None:
    told: list[str] = []
    record = suite.run(40, 0, told.append)
    assert suite.is_good(record), told
    sums = suite.total(record)
    assert record["faults"] >= 40
    assert sums["noticed"] + sums["harmless"] == sums["trials"] == record["trials"]
    assert sums["noticed"] >= 15
    assert suite.render(record).count("\n") == len(record["rows"]) + 1


def nothing(*arguments: object) -> None:
    pass


FLAWS: dict[str, tuple[Callable[[pytest.MonkeyPatch], object], str, list[str], str]] = {
    "seals are not looked at": (
        lambda patch: patch.setattr(TileStore, "_is_sealed", lambda *_: True),
        "silent",
        ["swapped"],
        "kernel",
    ),
    "what is half-written stays": (
        lambda patch: (
            patch.setattr(objects, "remove_abandoned", nothing),
            patch.setattr(files, "remove_abandoned", nothing),
        ),
        "left",
        ["killed"],
        "kernel",
    ),
    "what is being written is deleted": (
        lambda patch: patch.setattr(files, "_remove_unlocked", lambda entry: Path(entry).unlink()),
        "lost",
        ["slow writer"],
        "kernel",
    ),
    "all is made again": (
        lambda patch: patch.setattr(TileStore, "missing", lambda self: KeySet(self.grid).others()),
        "lost",
        ["file lost"],
        "kernel",
    ),
    "errors name no file": (
        lambda patch: patch.setattr(files, "naming", lambda *_: files.contextlib.nullcontext()),
        "lost",
        ["disk full"],
        "model",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_would_be_wrong_is_noticed(
    flaw: str, suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, column, kinds, name = FLAWS[flaw]
    jobs = [job for job in suite.JOBS if job.name == name]
    make(monkeypatch)
    record = suite.run(10, 0, nothing, kinds=kinds, jobs=jobs)
    assert suite.total(record)[column] > 0
    assert not suite.is_good(record)
