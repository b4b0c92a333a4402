"""Results in the documents are those of their records."""

import importlib.util
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def load_benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fashion_mnist() -> None:
    record = json.loads((ROOT / "results" / "fashion-mnist.json").read_text())
    table = load_benchmark("fashion_mnist").table(record)
    assert "| 11 | " in table
    assert table in (ROOT / "docs" / "results.md").read_text()
