"""Readouts beside each other: values beside the estimators', differences, a run that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_table1 import make_file, values, with_copies
from typer.testing import CliRunner, Result

import widelimit as wl
from widelimit.arrays import FloatArray
from widelimit.cli import app
from widelimit.data import draw_training_sets
from widelimit.experiments.readouts import readouts
from widelimit.program import compile_networks
from widelimit.report.readouts import to_markdown

SMALL = ("--depth", 3, "--n-train", 20, "--n-test", 30, "--draws", 2, "--seed", 7)
PREPARED = {
    "none": ("standardise", False),
    "flips": ("standardise", True),
    "zca": ("zca", False),
    "zca-flips": ("zca", True),
}
ONE = (*SMALL, "--draws", 1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_file(tmp_path, n=60, m=40)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A data set, and the record of it."""
    path = make_file(tmp_path_factory.mktemp("small"), n=60, m=40)
    return path, run(path, *SMALL)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["reproduce", "readouts", *map(str, arguments)])


def run(data: Path, *arguments: object) -> dict[str, Any]:
    out = data.parent / "r.json"
    result = call(data, "--out", out, "--overwrite", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text("utf-8"))


def test_only_the_readout_differs() -> None:
    found = readouts(4)
    assert list(found) == ["gap", "lap4", "v"]
    assert found["v"] == wl.cntk_vanilla(4)
    assert found["gap"].layers == (
        *found["v"].layers[:-2],
        wl.GlobalAvgPool(),
        wl.Dense(2**0.5 / 3),
    )
    convs = found["v"].layers[:-2]
    assert found["lap4"].layers == (*convs, wl.LocalAvgPool(4), *found["v"].layers[-2:])
    # One pass for all of them: they are one family.
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 3))
    programs = compile_networks(list(found.values()), (6, 6, 3), ["ntk"])
    assert len(programs) == 1
    gap, lap4, v = wl.kernel(list(found.values()), x, channels="last")
    assert len({gap[0, 1], lap4[0, 1], v[0, 1]}) == 3


@pytest.mark.filterwarnings("ignore:X lies far from the training samples")  # few are whitened
def test_values_are_those_of_the_estimators(small: tuple[Path, dict[str, Any]]) -> None:
    data, record = small
    assert (record["n_train"], record["n_test"], record["draws"]) == (20, 30, 2)
    images = wl.load_dataset(data)
    networks = readouts(3)
    found: dict[tuple[str, str], list[float]] = {}
    for i in range(2):
        rng = np.random.default_rng([7, i])
        train = draw_training_sets(images.y_train, [2], rng)[0]
        for variant, (preprocessing, flips) in PREPARED.items():
            prepared: Any = wl.ZCA() if preprocessing == "zca" else wl.ChannelStandardiser()
            x: Any = prepared.fit_transform(images.x_train[train])
            test = prepared.transform(images.x_test[:30])
            y = images.y_train[train]
            if flips:  # what averaged kernels predict, too
                x, y = np.concatenate([x, x[:, :, ::-1]]), np.concatenate([y, y])
            for name, network in networks.items():
                model: Any = wl.NTKClassifier(network, channels="last", dtype="float64").fit(x, y)
                found.setdefault((variant, name), []).append(model.score(test, images.y_test[:30]))
    for entry in record["variants"]:
        assert (entry["preprocessing"], entry["flips"]) == PREPARED[entry["variant"]]
        for of in entry["readouts"]:
            want = found[entry["variant"], of["readout"]]
            assert of["values"] == pytest.approx(want, abs=0.034)  # one image, by rounding
            assert any(np.isclose(of["values"], want))
            assert len(of["leave_one_out"]) == 2
    assert len({str(of["values"]) for entry in record["variants"] for of in entry["readouts"]}) > 6


def test_equal_images_are_one(data: Path) -> None:
    with_copies(data)
    record = run(data, *SMALL, "--n-train", 40)
    (note,) = record["notes"]
    assert "training images of a draw are copies of others: equal images count as one" in note
    images = wl.load_dataset(data)
    train = draw_training_sets(images.y_train, [4], np.random.default_rng([7, 0]))[0]
    x: Any = wl.ChannelStandardiser().fit_transform(images.x_train[train])
    for of in record["variants"][0]["readouts"]:
        network = readouts(3)[of["readout"]]
        model = wl.NTKClassifier(network, channels="last").fit(x, images.y_train[train])
        assert of["leave_one_out"][0] == pytest.approx(model.loo_accuracy_)


def test_all_images_are_one_draw(data: Path) -> None:
    record = run(data, "--depth", 3, "--n-train", 60, "--n-test", 20, "--draws", 3)
    assert (record["draws"], record["asked"]["draws"]) == (1, 3)
    (note,) = record["notes"]
    assert note.startswith("60 training images are all there are, so that 3 draws are the same: ")
    assert record["pairs"] == 2 * (60 * 61 // 2 + 60 * 60 + 2 * 20 * 60)
    assert record["changes"][0]["standard_error"] is None
    assert "±" not in to_markdown(record)


def test_differences_are_within_draws(small: tuple[Path, dict[str, Any]]) -> None:
    _, record = small
    of = {
        (entry["variant"], one["readout"]): np.array(one["values"])
        for entry in record["variants"]
        for one in entry["readouts"]
    }
    assert all(len(found) == 2 for found in of.values())

    def check(told: dict[str, Any], difference: FloatArray) -> None:
        assert told["values"] == pytest.approx(difference)
        assert told["mean"] == pytest.approx(np.mean(difference))
        assert told["standard_error"] == pytest.approx(np.std(difference, ddof=1) / 2**0.5)

    for entry in record["variants"]:
        for told in entry["differences"]:
            one, other = (of[entry["variant"], name] for name in told["between"])
            check(told, one - other)
    assert len(record["changes"]) == 15
    for told in record["changes"]:
        one, other = (of[name, told["readout"]] for name in told["between"])
        check(told, one - other)
    page = to_markdown(record)
    mean = record["variants"][2]["readouts"][0]
    assert f"{mean['mean']:.2%} ± {100 * mean['standard_error']:.2f}" in page
    for name, told in (
        ("GAP − LAP(4)", record["variants"][0]["differences"][0]),
        ("flips − as the paper", record["changes"][0]),
    ):
        error = 100 * told["standard_error"]
        assert f"\n| {name} | {100 * told['mean']:+.2f} ± {error:.2f} | " in page
    assert "\n| change, points | GAP | LAP(4) | V |" in page
    assert len(page.splitlines()) == 5 + 1 + 5 + 1 + 7


KILLED = """
import os, signal, sys
from widelimit.experiments import readouts
real, calls = readouts.gram, 0
def gram(*words, **more):
    global calls
    calls += 1
    if calls == 7:
        os.kill(os.getpid(), kill)
    return real(*words, **more)
readouts.gram = gram
kill = int(sys.argv.pop(1))
from widelimit.__main__ import main
main()
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on(kill: signal.Signals, data: Path) -> None:
    whole = run(data, *ONE, "--store", data.parent / "whole")
    assert whole["pairs_computed"] == whole["pairs"] == 2 * (210 + 600 + 400 + 600)
    assert whole["changes"][0]["standard_error"] is None  # of a single draw
    assert "±" not in to_markdown(whole)
    out = data.parent / "stopped.json"
    words = ["reproduce", "readouts", data, "--out", out, *ONE]
    command = [sys.executable, "-c", KILLED, str(int(kill)), *map(str, words)]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert not out.exists()
    assert stopped.returncode == (130 if kill == signal.SIGINT else -signal.SIGKILL)
    if kill == signal.SIGINT:
        assert "what is finished is kept, the same command goes on" in stopped.stderr
    result = call(data, "--out", out, *ONE)
    assert result.exit_code == 0, result.output
    again = json.loads(out.read_text("utf-8"))
    assert values(again) == values(whole)
    assert again["pairs_computed"] == whole["pairs"] - (210 + 600 + 400 + 600 + 210 + 600)
    other = call(data, "--out", out, *ONE, "--overwrite", "--depth", 4)
    assert other.exit_code == 2
    assert "holds another run of readouts (depth 3 there and 4 here" in other.stderr


def test_a_budget_takes_the_most_images_that_fit(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from widelimit.experiments import planning

    real, rate = planning.estimate, [1000.0]

    def estimate(networks: Any, shape: Any, n1: int, n2: int | None = None, **how: Any) -> Any:
        cost = real(networks, shape, n1, n2, **how)
        return cost.__class__(
            cost.pairs, cost.element_layers, cost.pairs / rate[0], *(1, 1, 3, 4, "cpu")
        )

    monkeypatch.setattr(planning, "estimate", estimate)
    options = ("--depth", 3, "--n-train", 40, "--n-test", 40, "--draws", 1, "--budget", "4s")
    record = run(data, *options)
    # 2 (20 21 / 2 + 3 20 20) pairs take 2.8 s, of 30 images 6.3 s.
    assert (record["n_train"], record["n_test"]) == (20, 20)
    assert record["notes"] == ["20 + 20 of 40 + 40 images fit into 4 s"]
    rate[0] = 1e6  # a faster machine: what was begun has the number with which it was
    assert run(data, *options)["n_train"] == 20
    plan = data.parent / "r-stores" / "plan.json"
    plan.write_text(plan.read_text().replace('"count": 2', '"count": 5'))
    result = call(data, "--out", data.parent / "r.json", "--overwrite", *options)
    assert result.exit_code == 2
    assert "plan.json is damaged (count is 5): delete it" in result.stderr
    rate[0] = 1.0
    result = call(data, "--out", data.parent / "x.json", *options)
    assert result.exit_code == 2
    assert "10 training images take 11 min 50 s, the budget is 4 s: raise it" in result.stderr


def test_the_cost_is_told_before(data: Path) -> None:
    result = call(data, "--out", data.parent / "r.json", *ONE)
    assert (
        "3 readouts at depth 3, 4 variants: 20 + 30 images, 3,620 pairs"
        in (result.stderr.splitlines()[0])
    )
    result = call(data, "--out", data.parent / "s.json", *SMALL, "--n-train", 25)
    assert result.exit_code == 2
    assert "a multiple of 10 images, got 25: say 20" in result.stderr
