"""Small data again: the design, and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import NAMES, make_dataset, make_images
from typer.testing import CliRunner, Result

from widelimit.cli import app
from widelimit.experiments import small_data
from widelimit.experiments.design import fixed_design


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x, y = make_images(60)
    names = np.array(NAMES)
    path = tmp_path / "toy.npz"
    np.savez(path, x_train=x[:42], y_train=names[y[:42]], x_test=x[42:], y_test=names[y[42:]])
    return path


def call(data: Path, *arguments: object) -> Result:
    words = [data, "--out", data.parent / "r.json", "--draws", 2, "--threads", 1, *arguments]
    return CliRunner().invoke(app, ["reproduce", "small-data", *map(str, words)])


def test_the_design_is_that_of_the_paper() -> None:
    dataset = make_dataset(300, "given")
    design = fixed_design(dataset, largest=48, n_test=30, draws=20, seed=2)
    assert design.sizes == (3, 6, 12, 24, 48)
    assert np.bincount(dataset.y_train[design.pool]).tolist() == [24] * 3
    assert design.test is not None
    assert design.test.tolist() == list(range(dataset.y_train.size, dataset.y_train.size + 30))
    assert design.pairs == 72 * 73 // 2 + 72 * 30
    assert (design.draws, design.seed, design.shrink) == (20, 2, 1)
    drawn = fixed_design(make_dataset(90, "drawn"), largest=1000)
    assert drawn.test is None
    assert drawn.sizes == (3, 6, 12, 24, 48)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"largest": 2}, "must have an image of each of 3 classes, got 2"),
        ({"largest": 9, "n_test": 101}, "must have 101 test images, got"),
        ({"largest": 9, "draws": 0}, "expected draws >= 1"),
    ],
)
def test_bad_designs(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fixed_design(make_dataset(90, "given"), **options)
    with pytest.raises(ValueError, match="no test set of its own"):
        fixed_design(make_dataset(90, "drawn"), largest=9, n_test=5)


def test_a_run_that_was_stopped_ends_with_the_same_record(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, calls = data.parent / "r.json", small_data.gram, 0

    def stop(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(small_data, "gram", stop)
    stopped = call(data, "--largest", 12, "--store", data.parent / "s")
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("what is finished is kept, the same command goes on\n")
    assert not out.exists()
    assert call(data, "--largest", 12, "--store", data.parent / "s").exit_code == 0
    again = json.loads(out.read_text("utf-8"))
    whole = call(data, "--largest", 12, "--store", data.parent / "t", "--overwrite")
    assert whole.exit_code == 0, whole.output
    record = json.loads(out.read_text("utf-8"))
    for key in ("data", "curves", "confusion", "hardest", "seed", "draws", "notes", "errors"):
        assert record[key] == again[key]
    points = record["curves"][0]["points"]
    assert [point["size"] for point in points] == [3, 6, 12]
    assert all(len(point["accuracies"]) == 2 for point in points)
    assert {curve["key"] for curve in record["curves"]} >= {"gap", "svm", "logistic"}
    assert "RBF-SVM" in whole.output


def test_wrong_options_are_one_line(data: Path) -> None:
    result = call(data, "--n-test", 100)
    assert result.exit_code == 2
    assert result.stderr == "widelimit: toy must have 100 test images, got 18\n"
