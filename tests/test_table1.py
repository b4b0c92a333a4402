"""Table 1 again: what a run computes and says, how it goes on, and which images fit a budget."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import widelimit as wl
from widelimit.cli import app
from widelimit.costs import Cost
from widelimit.data import standardise
from widelimit.experiments import planning, table1
from widelimit.experiments.paper import is_cifar10
from widelimit.experiments.planning import Asked, published
from widelimit.experiments.table1 import Table1
from widelimit.report.table1 import to_markdown


def make_file(folder: Path, n: int = 60, m: int = 40, side: int = 6) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(n + m) % 10
    x = rng.integers(0, 100, (n + m, side, side, 3)) + 12 * y[:, None, None, None]
    path = folder / "ten.npz"
    images, labels = x.astype(np.uint8), y
    arrays = {"x_train": images[:n], "x_test": images[n:]}
    np.savez(path, y_train=labels[:n], y_test=labels[n:], **arrays)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_file(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["reproduce", "table1", *map(str, arguments)])


def run(data: Path, *arguments: object) -> dict[str, Any]:
    """Return the record of a run."""
    out = data.parent / "t.json"
    result = call(data, "--out", out, "--overwrite", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text("utf-8"))


def with_copies(path: Path) -> Path:
    """Put copies among the training images of a file: of 10 images, one with another label."""
    with np.load(path) as file:
        arrays = dict(file)
    x = arrays["x_train"]
    x[10:19], x[25] = x[:9], x[4]
    np.savez(path, **arrays)
    return path


def values(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says, but for times, the machine, and what was there before."""
    left_out = ("environment", "seconds", "solve_seconds", "peak_memory", "pairs_computed")

    def stripped(content: Any) -> Any:
        if isinstance(content, dict):
            return {k: stripped(v) for k, v in content.items() if k not in left_out}
        return [stripped(v) for v in content] if isinstance(content, list) else content

    return stripped(record)


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("column", ["cntk-gap", "cntk-v-2k"])
def test_a_column_is_what_the_protocol_says(column: str, data: Path) -> None:
    record = run(data, "--column", column, "--n-train", 40, "--n-test", 30, "--depths", "3,4")
    assert (record["format"], record["errors"]) == ("widelimit.table1/2", [])
    assert record["environment"]["machine"]["packages"]["numpy"] == np.__version__
    (found,) = record["columns"]
    assert (found["n_train"], found["n_test"], found["pairs"]) == (40, 30, 40 * 41 // 2 + 1200)
    assert found["pairs_computed"] == found["pairs"]
    images = wl.load_dataset(data)
    x, x_test = standardise(images.x_train[:40], images.x_test[:30])
    for row, depth in zip(found["rows"], (3, 4), strict=True):
        make = wl.cntk_gap if column == "cntk-gap" else wl.cntk_vanilla
        model = wl.NTKClassifier(make(depth), channels="last").fit(x, images.y_train[:40])
        accuracy = model.score(x_test, images.y_test[:30])
        assert 0.2 < accuracy < 1
        assert row["depth"] == depth
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["leave_one_out"] == pytest.approx(model.loo_accuracy_)
        assert row["standard_error"] == pytest.approx((accuracy * (1 - accuracy) / 30) ** 0.5)
        assert row["residual_norm"] < 1e-9
        assert (row["paper_percent"], row["difference"]) == (None, None)


def test_all_columns_are_there_and_none_twice(data: Path) -> None:
    record = run(data, "--depths", "3")
    assert [column["column"] for column in record["columns"]] == ["cntk-v", "cntk-gap"]
    assert [column["n_train"] for column in record["columns"]] == [60, 60]
    told = "\n".join(record["notes"])
    assert "cntk-v: 60 training images, which is what there is for it; the paper has 50," in told
    assert "cntk-gap-2k: is the same as cntk-gap with these images, computed once" in told
    assert "40 test images; the paper has 10,000" in told


def test_draws_are_in_one_record(data: Path) -> None:
    options = ("--column", "cntk-v", "--depths", "3", "--n-train", 20, "--balanced")
    record = run(data, *options, "--draws", 3, "--seed", 5)
    (column,) = record["columns"]
    (row,) = column["rows"]
    accuracies = [draw["accuracy"] for draw in row["draws"]]
    assert len(accuracies) == column["draws"] == 3
    assert len(set(accuracies)) > 1
    assert row["accuracy"] == pytest.approx(np.mean(accuracies))
    assert row["standard_error"] == pytest.approx(np.std(accuracies, ddof=1) / 3**0.5)
    assert column["pairs"] == 3 * (20 * 21 // 2 + 20 * 40)
    assert ", mean of 3 draws" in to_markdown(record)


def test_all_images_are_one_draw(data: Path) -> None:
    options = ("--column", "cntk-v", "--depths", "3", "--balanced", "--draws", 3)
    for store, draws in (("new", 1), ("old", 3)):
        folder = data.parent / store
        if store == "old":  # a run that an earlier version began
            folder.mkdir()
            plan = json.loads((data.parent / "new" / planning.PLAN).read_text())
            assert plan["columns"] == [["cntk-v", 60, 40, 1]]
            plan |= {"columns": [["cntk-v", 60, 40]], "notes": []}
            (folder / planning.PLAN).write_text(json.dumps(plan))
        record = run(data, *options, "--store", folder)
        (column,) = record["columns"]
        assert column["draws"] == draws
        (row,) = column["rows"]
        p = row["accuracy"]
        assert row["standard_error"] == pytest.approx((p * (1 - p) / 40) ** 0.5)
        told = "cntk-v: 60 training images are all there are, so that 3 draws are the same: one is "
        assert any(note.startswith(told) for note in record["notes"]) == (store == "new")
    assert run(data, *options, "--store", data.parent / "new")["columns"][0]["pairs_computed"] == 0


def test_flips_predict_the_same(data: Path) -> None:
    rows = {}
    for flips in ("none", "average", "double"):
        options = ("--column", "cntk-gap", "--depths", "3", "--n-train", 30, "--dtype", "float64")
        store = data.parent / flips
        (column,) = run(data, *options, "--flips", flips, "--store", store)["columns"]
        (rows[flips],) = column["rows"]
    assert rows["average"]["accuracy"] == rows["double"]["accuracy"]
    assert rows["none"]["accuracy"] != rows["double"]["accuracy"]
    # Of a doubled training set the mirror image would stay when an image is left out.
    assert rows["double"]["leave_one_out"] is None
    assert rows["average"]["leave_one_out"] > 0


def test_two_classes_and_other_preprocessing(data: Path) -> None:
    options = ("--column", "cntk-v", "--depths", "3", "--classes", 2, "--preprocessing", "zca")
    (column,) = run(data, *options)["columns"]
    assert (column["n_classes"], column["n_train"], column["n_test"]) == (2, 12, 8)
    assert column["preprocessing"] == "zca"


def test_a_kernel_that_cannot_be_solved_is_told(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    image = arrays["x_train"][1]
    image[:, 3:] = image[:, 2::-1]  # its own mirror image
    np.savez(path, **arrays)
    record = run(path, "--column", "cntk-v", "--depths", "3", "--flips", "double")
    (row,) = record["columns"][0]["rows"]
    assert (row["accuracy"], row["leave_one_out"]) == (None, None)
    assert len(record["errors"]) == 1
    assert "cntk-v, depth 3: " in record["errors"][0]
    assert "| 3 | not solved | - | - |" in to_markdown(record)


def test_equal_images_are_one(data: Path) -> None:
    with_copies(data)
    options = ("--column", "cntk-v", "--depths", "3", "--n-train", 40, "--n-test", 30)
    record = run(data, *options)
    (row,) = record["columns"][0]["rows"]
    assert (record["errors"], row["residual_norm"] < 1e-9) == ([], True)
    assert record["notes"] == [
        "cntk-v: 10 of 40 training images are copies of others: equal images count as one, with "
        "the mean of their targets, and are left out together"
    ]
    images = wl.load_dataset(data)
    x, x_test = standardise(images.x_train[:40], images.x_test[:30])
    model = wl.NTKClassifier(wl.cntk_vanilla(3), channels="last").fit(x, images.y_train[:40])
    assert row["accuracy"] == pytest.approx(model.score(x_test, images.y_test[:30]))
    assert row["leave_one_out"] == pytest.approx(model.loo_accuracy_)
    # Mirror images of copies are copies, and predict what averaged kernels do.
    found = {}
    for flips in ("average", "double"):
        store = data.parent / flips
        how = ("--dtype", "float64", "--flips", flips, "--store", store)
        (column,) = run(data, *options, *how)["columns"]
        found[flips] = column["rows"][0]["accuracy"]
    assert found["average"] == found["double"]
    # What fits into no memory cannot be put together: it is told before the work.
    result = call(data, *options, "--out", data.parent / "t.json", "--overwrite", "--memory", "1MB")
    assert result.exit_code == 1
    assert "out of memory: cntk-v: training images repeat, and equal ones are" in result.stderr


def test_the_paper_stands_beside_columns_of_its_size() -> None:
    shape = (10, 32, 32, 3)
    images = {"x_train": np.ones(shape), "x_test": np.ones(shape)}
    labels = {"y_train": np.arange(10), "y_test": np.arange(10)}
    names = tuple("abcdefghij")
    dataset = wl.Dataset("Cifar-10_3k", **images, **labels, class_names=names, provenance="")  # type: ignore[arg-type]

    def figures(
        name: str, n_train: int, of: wl.Dataset = dataset, **options: Any
    ) -> dict[int, float]:
        asked = Asked(**options)
        column = planning.Column(name, asked.depths, asked.protocol(n_train, 10))
        return published(column, of)

    assert figures("cntk-gap", 50_000)[11] == 77.43
    assert figures("cntk-gap", 2_000) == figures("cntk-gap-2k", 2_000)
    assert figures("cntk-v-2k", 2_000)[21] == 42.53
    assert figures("cntk-v-2k", 1_000) == {}
    assert figures("cntk-v-2k", 2_000, n_classes=2) == {}
    # Beside those of other images of ten classes, as SVHN's, they are not.
    for called in ("svhn", "cifar100-ten", "x"):
        other = dataclasses.replace(dataset, name=called)
        assert figures("cntk-gap", 50_000, other) == {}
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship")
    other = dataclasses.replace(dataset, name="x", class_names=("truck", *classes))
    assert figures("cntk-gap", 50_000, other)[11] == 77.43
    few = {"x_train": np.ones((10, 4, 4, 1)), "x_test": np.ones((10, 4, 4, 1))}
    assert not is_cifar10(dataclasses.replace(dataset, **few))


# ---------------------------------------------------------------- going on

STOPPED = """
import functools, os, signal, sys
from contextlib import contextmanager
from widelimit.experiments import table1

@contextmanager
def shown(progress, stage, read):
    def report(state):
        if stage == {stage!r} and state.tiles >= 3:
            os.kill(os.getpid(), signal.{signal})
    yield report

table1.shown = shown
table1.gram = functools.partial(table1.gram, tile=16)
from widelimit.cli import main
sys.argv = ["widelimit", *{words!r}]
main()
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGKILL"])
def test_a_run_that_was_stopped_ends_with_the_same_record(data: Path, sent: str) -> None:
    words = ["--column", "cntk-gap", "--depths", "3,4", "--n-train", "50", "--budget", "10h"]
    whole = run(data, *words, "--store", data.parent / "whole")
    out, store = data.parent / "again.json", data.parent / "stopped"
    again = ["reproduce", "table1", str(data), *words, "--out", str(out), "--store", str(store)]
    for stage in ("cntk-gap-train", "cntk-gap-test"):
        code = STOPPED.format(stage=stage, signal=sent, words=again)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
        assert not out.exists()
        if sent == "SIGINT":
            assert done.returncode == 130, done.stderr
            kept = "widelimit: interrupted, what is finished is kept, the same command goes on\n"
            assert done.stderr.endswith(kept)
        else:
            assert done.returncode == -signal.SIGKILL
    result = CliRunner().invoke(app, again)
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text("utf-8"))
    assert values(record) == values(whole)
    (column,) = record["columns"]
    assert 0 < column["pairs_computed"] < column["pairs"]


def test_a_run_goes_on_with_the_images_that_it_began_with(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--column", "cntk-v", "--depths", "3", "--budget", "60s")
    monkeypatch.setattr(planning, "estimate", priced(0.1))
    first = run(data, *words)
    assert first["columns"][0]["n_train"] == 20
    monkeypatch.setattr(planning, "estimate", priced(0.001))
    assert values(run(data, *words)) == values(first)
    assert run(data, *words)["columns"][0]["pairs_computed"] == 0


def test_another_run_is_not_taken_for_this_one(data: Path) -> None:
    words = ("--column", "cntk-v", "--n-train", 20)
    run(data, *words, "--depths", "3")
    result = call(data, *words, "--depths", "3,4", "--out", data.parent / "t.json", "--overwrite")
    assert result.exit_code == 2
    assert re.search(r"holds another run of table 1 \(depths \[3\] there and", result.stderr)
    assert "give another store, or delete that one" in result.stderr
    make_file(data.parent, side=5)  # the same options for other images
    result = call(data, *words, "--depths", "3", "--out", data.parent / "t.json", "--overwrite")
    assert result.exit_code == 2
    assert "Give another path, or delete that one" in result.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "must be the plan of a run of table 1"),
        ({"columns": [["cntk-v", "many", 3]]}, "is damaged"),
        ({"columns": [["cntk-v", 20]]}, "is damaged"),
        ({"columns": [["cntk-v", 20, 5, 3]]}, "is damaged"),
        ({"columns": 3}, "is damaged"),
        ({"columns": []}, "is damaged"),
        ({"columns": [["cntk-gap", 20, 5]]}, "is damaged"),
        ({"columns": [["cntk-v", 10**9, 5]]}, "must have 1,000,000,000 training images"),
        ({"asked": 1}, "holds another run"),
    ],
)
def test_damaged_plans(change: dict[str, Any], words: str, data: Path) -> None:
    asked = Asked(("cntk-v",), (3,), n_train=20, n_test=5)
    out = data.parent / "t.json"
    job = Table1.prepare(str(data), asked, out)
    job.run(lambda line: None)
    path = data.parent / "t-stores" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        Table1.prepare(str(data), asked, out)


def test_a_folder_with_other_files_is_left_alone(data: Path) -> None:
    folder = data.parent / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    result = call(data, "--out", data.parent / "t.json", "--store", folder, "--depths", "3")
    assert result.exit_code == 2
    assert "there are other files in this folder (thesis.txt)" in result.stderr
    assert os.listdir(folder) == ["thesis.txt"]


# ---------------------------------------------------------------- budgets


def priced(seconds: float) -> Callable[..., Cost]:
    """Return a stand-in for `estimate`: so many seconds for a pair."""

    def estimate(networks: Any, shape: Any, n1: int, n2: int | None = None, **how: Any) -> Cost:
        pairs = n1 * (n1 + 1) // 2 if n2 is None else n1 * n2
        return Cost(pairs, 1, pairs * seconds, 1, 1, len(networks), 4, "cpu")

    return estimate


def test_a_budget_takes_the_most_images_that_fit(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "estimate", priced(1.0))

    def sizes(budget: float) -> tuple[int, int]:
        asked = Asked(("cntk-v",), (3,), budget=budget)
        (column,) = Table1.prepare(str(data), asked, data.parent / "t.json").columns
        return column.protocol.n_train, column.protocol.n_test

    def pairs(n: int, m: int) -> int:
        return n * (n + 1) // 2 + n * m

    assert sizes(pairs(60, 40)) == (60, 40)
    assert sizes(pairs(60, 40) - 1) == (50, 33)
    assert sizes(pairs(50, 33)) == (50, 33)
    assert sizes(pairs(50, 33) - 1) == (40, 26)
    assert sizes(pairs(10, 6)) == (10, 6)
    with pytest.raises(ValueError, match="takes 1 min 55 s even with 10 training images"):
        sizes(pairs(10, 6) - 1)


def test_what_cheap_columns_leave_is_for_the_others(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def estimate(networks: Any, *rest: Any, **how: Any) -> Cost:
        gap = "GlobalAvgPool" in networks[0].to_json()
        return priced(1.0 if gap else 0.001)(networks, *rest, **how)

    monkeypatch.setattr(planning, "estimate", estimate)
    asked = Asked(("cntk-gap", "cntk-v"), (3,), budget=2940.0)
    job = Table1.prepare(str(data), asked, data.parent / "t.json")
    gap, v = job.columns
    assert (v.name, v.protocol.n_train) == ("cntk-v", 60)
    assert (gap.name, gap.protocol.n_train) == ("cntk-gap", 50)  # 50 of 2940 - 4 s, not of a half
    assert job.seconds <= 2940
    assert any("cntk-gap: 50 + 33 of 60 + 40 images fit into" in note for note in job.notes)


def test_the_cost_is_told_first(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "estimate", priced(10.0))
    monkeypatch.setattr(table1, "gram", stop)
    out = data.parent / "t.json"
    result = call(data, "--out", out, "--column", "cntk-gap", "--column", "cntk-v")
    assert result.exit_code == 130
    told = result.stderr.splitlines()
    words = "60 + 40 images, 4,230 pairs of 1 element-layers, about 11 h 45 min"
    assert sum(words in line for line in told) == 2
    assert any("in all about 23 h 30 min" in line for line in told)


# ---------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--column cntk", "a column must be one of cntk-v, cntk-gap, cntk-v-2k, cntk-gap-2k, got"),
        ("--column cntk-v --column cntk-v", "columns must be different ones"),
        ("--depths 3,x", "--depths must be numbers, as in 3,4,6, got '3,x'"),
        ("--depths 3,3", "depths must be different ones"),
        ("--depths 1", "must be from 2 to"),
        ("--budget soon", "a time must be a number and s, min, h or d, as in 30min, got 'soon'"),
        ("--budget 0s", "a time must be"),
        ("--dtype float16", "dtype must be"),
        ("--flips twice", "flips must be one of"),
        ("--preprocessing whiten", "preprocessing must be one of"),
        ("--draws 2", "draws and a seed are of balanced training sets"),
        ("--n-train 61", "ten must have 61 training images, got 60"),
        ("--n-test 41", "ten must have 41 test images, got 40"),
        ("--classes 11", "ten must have 11 classes, got 10"),
        ("--out t.txt", "the record must be a .json file"),
        ("--memory much", "memory must be"),
        ("--backend gpu", "backend must be"),
    ],
)
def test_wrong_options_are_one_line(
    options: str, words: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    before = sorted(os.listdir())
    result = call(data, *options.split())
    assert result.exit_code == 2
    assert (result.stderr.count("\n"), "Traceback" in result.output) == (1, False), result.stderr
    assert words in result.stderr
    assert sorted(os.listdir()) == before


def test_a_record_is_not_replaced(data: Path) -> None:
    out = data.parent / "t.json"
    out.write_text("{}")
    result = call(data, "--out", out)
    assert result.exit_code == 2
    assert "there is one already: give another path, or say --overwrite" in result.stderr
