"""The list of faults follows the code, and scripts/mutants finds out which of them tests notice."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_mutants", ROOT / "scripts" / "_mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_every_fault_can_be_put_in(tool: Any) -> None:
    faults = tool.read_faults(ROOT)
    assert len({(fault.file, fault.mutated) for fault in faults}) == len(faults) >= 200
    for fault in faults:
        if fault.file.endswith(".py"):
            compile(fault.mutated, str(fault), "exec")
    parts = [fault.file.partition("/")[0] for fault in faults]
    for part in ("program.py", "backends", "matrices", "solvers", "estimators", "_core"):
        assert parts.count(part) >= 20, part


# ---------------------------------------------------------------- a package of one function

CODE = """
def double(x):
    while x < 0:
        x = x + 1
    return x + x
"""
TEST = """
from widelimit.code import double

def test_two():
    assert double(2) == 4

def test_minus_one():
    assert double(-1) == 0
"""
LIST = """
["code.py"]
tests = ["test_code.py::test_two"]
faults = [
  ['return x + x', 'return x * x'],
  ['return x + x', 'return x - x'],
  ['x = x + 1', 'x = x - 1', 'test_code.py'],
  ['x < 0', 'x < 1', 'test_code.py'],
]
"""


def build(folder: Path, listed: str = LIST) -> Path:
    for name, text in {
        "src/widelimit/__init__.py": "",
        "src/widelimit/code.py": CODE,
        "tests/test_code.py": TEST,
        "tests/mutants.toml": listed,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def bare(tool: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without the plugins of pytest, which take seconds to load."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(tool, "SEEDED", "--maxfail=1")
    return tool


def test_survivors_are_told(bare: Any, tmp_path: Path, capsys: Any) -> None:
    tool = bare
    root = build(tmp_path)
    tried = ["--only", "*return*", "--jobs", "2"]
    assert tool.main(root, tried) == 1  # 50 % are less than 90 %
    told = capsys.readouterr().out
    assert "killed   code.py:5: return x + x  ->  return x - x" in told
    assert "by test_code.py::test_two, " in told
    assert told.endswith(
        "code.py           1 of    2\n"
        "survivor: code.py:5: return x + x  ->  return x * x\n"
        "killed: 1 of 2, 50.0%\n"
    )
    record = json.loads((root / "out" / "mutants.json").read_text())
    assert [(row["new"], row["killed"]) for row in record["faults"].values()] == [
        ("return x * x", False),
        ("return x - x", True),
    ]
    # What is known is not tried again, until the code, the tests or the seed are others.
    assert tool.main(root, tried) == 1
    again = capsys.readouterr().out
    assert again == told[told.index("code.py   ") :]
    test = root / "tests" / "test_code.py"
    known = tool.digest_of(root, ["test_code.py::test_two"])
    test.write_text(TEST.replace("double(-1) == 0", "double(-2) == 0"))  # another test
    assert tool.digest_of(root, ["test_code.py::test_two"]) == known
    test.write_text(TEST.replace("double(2) == 4", "double(3) == 6"))
    assert tool.digest_of(root, ["test_code.py::test_two"]) != known
    assert tool.main(root, tried) == 0  # and this one notices
    assert capsys.readouterr().out.endswith("killed: 2 of 2, 100.0%\n")
    assert (root / "src" / "widelimit" / "code.py").read_text() == CODE


def test_a_fault_that_hangs_is_killed(bare: Any, tmp_path: Path, capsys: Any) -> None:
    assert bare.main(build(tmp_path), ["--only", "*x - 1", "--limit", "10"]) == 0
    assert "by time limit of 10 s" in capsys.readouterr().out


def test_some_are_drawn(tool: Any) -> None:
    faults = tool.read_faults(ROOT)
    stores = tool.choose(faults, "matrices/store.py*", None, 0)
    assert {fault.file for fault in stores} == {"matrices/store.py"}
    drawn = tool.choose(faults, "*", 20, 1)
    assert len(set(drawn)) == 20
    assert drawn == tool.choose(faults, "*", 20, 1) != tool.choose(faults, "*", 20, 2)
    assert tool.choose(stores, "*", 10**6, 0) != stores  # all of them, in another order
    assert set(tool.choose(stores, "*", 10**6, 0)) == set(stores)


def test_rows_of_another_seed_are_kept(tool: Any, tmp_path: Path) -> None:
    def record(seed: int) -> Any:
        return tool.Record(tmp_path / "r.json", {"seed": seed, "package": ""})

    for seed in (0, 1):
        now = record(seed)
        now.read(ROOT, {})
        now.put("faults", f"of {seed}", {"seed": seed, "decided_by": []})
    now = record(1)
    now.read(ROOT, {})  # of its own seed there is no such fault any more
    assert now.get("faults", "of 0") is not None
    assert now.get("faults", "of 1") is None


def test_what_cannot_be_used_is_an_error(bare: Any, tmp_path: Path, capsys: Any) -> None:
    def error(listed: str) -> str:
        assert bare.main(build(tmp_path, listed), []) == 2
        return capsys.readouterr().err

    assert "'return y' occurs 0 times, not once" in error(LIST.replace("return x + x", "return y"))
    assert "'x' occurs 6 times, not once" in error(LIST.replace("'x < 0'", "'x'"))
    assert "there is no test_three in tests/test_code.py" in error(LIST.replace("two", "three"))
    assert "there is no file tests/test_none.py" in error(LIST.replace("'test_code", "'test_none"))
    assert "none.py: there is no such file or folder" in error(
        LIST.replace('"code.py"', '"none.py"')
    )
    root = build(tmp_path)
    (root / "tests" / "test_code.py").write_text(TEST.replace("== 4", "== 5"))
    assert bare.main(root, ["--only", "*return*"]) == 2
    assert "test_two fails without a fault (test_code.py::test_two)" in capsys.readouterr().err
