"""Results in the documents are those of their records."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def load_benchmark(name: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


def test_fashion_mnist() -> None:
    record = json.loads((ROOT / "results" / "fashion-mnist.json").read_text())
    table = load_benchmark("fashion_mnist").table(record)
    assert "| 11 | " in table
    assert table in (ROOT / "docs" / "results.md").read_text()


@pytest.mark.parametrize("name", ["gap-2k", "v-50k"])
def test_table_1_on_a_card(name: str) -> None:
    record = json.loads((ROOT / "results" / f"table1-{name}.json").read_text())
    table = load_benchmark("table1").table(record)
    assert "| 21 | " in table
    assert table in (ROOT / "docs" / "results.md").read_text()


def test_a_card() -> None:
    record = json.loads((ROOT / "docs" / "records" / "gpu-check.json").read_text())
    page = (ROOT / "docs" / "gpu.md").read_text()
    for table in load_benchmark("gpu_check").table(record).split("\n\n"):
        assert table.strip() in page


def test_faults_at_random() -> None:
    record = json.loads((ROOT / "docs" / "records" / "faults.json").read_text())
    benchmark = load_benchmark("faults")
    assert record["faults"] >= 2000
    assert benchmark.is_good(record)
    assert benchmark.table(record) in (ROOT / "docs" / "guarantees.md").read_text()


def test_small_data() -> None:
    record = json.loads((ROOT / "results" / "small-data.json").read_text())
    benchmark = load_benchmark("small_data")
    assert len(record["draws"]) == benchmark.DRAWS
    table = benchmark.table(record)
    assert "| RBF-SVM, tuned | " in table
    assert table in (ROOT / "docs" / "results.md").read_text()


def test_calibration() -> None:
    path = ROOT / "results" / "calibration.json"
    benchmark = load_benchmark("calibration")
    table = benchmark.table(json.loads(path.read_text()))
    assert "| fashion-mnist | 5,000 | " in table
    assert table in (ROOT / "docs" / "results.md").read_text()
    picture = (ROOT / "docs" / "pictures" / "calibration.svg").read_text()
    assert benchmark.digest(path) in picture


def test_measures_of_calibration() -> None:
    # Odds 3 to 1, right three times of four: calibrated, and the temperature 1 is the best.
    outputs = np.tile([np.log(3.0), 0.0], (4, 1))
    labels = np.array([0, 0, 0, 1])
    benchmark = load_benchmark("calibration")
    found = benchmark.assess(outputs, labels, 1.0)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found["nll"] == pytest.approx(entropy)
    assert found["brier"] == pytest.approx((3 * 2 * 0.25**2 + 2 * 0.75**2) / 4)
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)
    assert found["confidence"] == pytest.approx(0.75)
    assert sum(found["bins"]["count"]) == 4
    assert benchmark.best_temperature(outputs, labels) == pytest.approx(1.0, rel=1e-3)
    # Half the temperature: odds 9 to 1, too sure by 0.9 - 0.75.
    assert benchmark.assess(outputs, labels, 0.5)["ece"] == pytest.approx(0.15)


def test_picture_of_calibration_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")  # of the extra dev, not of test
    benchmark = load_benchmark("calibration")
    pictures = [tmp_path / "1.svg", tmp_path / "2.svg"]
    for picture in pictures:
        benchmark.plot(ROOT / "results" / "calibration.json", picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
