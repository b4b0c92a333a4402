"""benchmarks/: what its programs import of the package is there."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

PROGRAMS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_imports_are_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("widelimit"):
            module = importlib.import_module(node.module or "")
            for name in (alias.name for alias in node.names):
                part = f"{node.module}.{name}"
                assert hasattr(module, name) or importlib.util.find_spec(part), part
