"""Myrtle networks on few images: values beside the estimators', the choice, a run that goes on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from test_table1 import make_file, values, with_copies
from typer.testing import CliRunner, Result

import widelimit as wl
from widelimit.arrays import FloatArray
from widelimit.cli import app
from widelimit.costs import Cost
from widelimit.experiments import myrtle as module
from widelimit.experiments import planning
from widelimit.experiments.cells import compute_now
from widelimit.experiments.myrtle import Myrtle, choose, normalised
from widelimit.experiments.myrtle_groups import ACTIVATIONS, NETWORKS, Asked
from widelimit.report.myrtle import to_markdown

SMALL = ("--n-train", 40, "--n-test", 30, "--networks", "myrtle-5,myrtle-7")
RELU = (*SMALL, "--activations", "relu", "--preprocessing", "standardise")
LEFT_OUT = "ignore:.*:UserWarning"  # of so few images


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_file(tmp_path, n=60, m=40, side=8)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A data set, and the record of all that there is of it."""
    path = make_file(tmp_path_factory.mktemp("small"), n=60, m=40, side=8)
    return path, run(path, *SMALL, "--flips")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["reproduce", "myrtle", *map(str, arguments)])


def run(data: Path, *arguments: object) -> dict[str, Any]:
    out = data.parent / "m.json"
    result = call(data, "--out", out, "--overwrite", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text("utf-8"))


def row_of(record: dict[str, Any], kernel: str, images: str) -> dict[str, Any]:
    (row,) = (r for r in record["kernels"] if (r["kernel"], r["images"]) == (kernel, images))
    return row


class Images:
    """The images of a run, and kernels of them, by the public interface alone."""

    def __init__(self, data: Path, preprocessing: str) -> None:
        images = wl.load_dataset(data)
        prepared: Any = wl.ZCA() if preprocessing == "zca" else wl.ChannelStandardiser()
        self.x: FloatArray = prepared.fit_transform(images.x_train[:40])
        self.test: FloatArray = prepared.transform(images.x_test[:30])
        self.y, self.y_test = images.y_train[:40], images.y_test[:30]

    def whole(self, depth: int, activation: str, kind: Any, *, flips: bool) -> FloatArray:
        """The kernel of training images, and test images after them, (70, 70)."""
        network = wl.myrtle(depth, ACTIVATIONS[activation][0])
        both = np.concatenate([self.x, self.test])
        found: list[Any] = [wl.kernel(network, both, kind=kind, channels="last")]
        if flips:
            mirrored = both[:, :, ::-1]
            found.append(wl.kernel(network, both, mirrored, kind=kind, channels="last"))
            # So that the average is one over the group: flips of both sides change nothing.
            found.append(wl.kernel(network, mirrored, both, kind=kind, channels="last"))
            np.testing.assert_allclose(found.pop(), found[1], rtol=1e-5)
        return np.mean(np.array(found, np.float64), axis=0)

    def check(self, row: dict[str, Any], k: FloatArray) -> None:
        """Compare a row with what an estimator makes of a kernel."""
        train = (k[:40, :40] + k[:40, :40].T) / 2
        model: Any = wl.NTKClassifier(kernel="precomputed", ridge="loo").fit(train, self.y)
        one = 1.0 / 30 + 1e-9  # an image, by rounding
        assert row["leave_one_out"] == pytest.approx(model.loo_accuracy_, abs=1.0 / 40 + 1e-9)
        assert row["accuracy"] == pytest.approx(model.score(k[40:, :40], self.y_test), abs=one)
        assert row["ridge"] == pytest.approx(model.ridge_, rel=1e-6)
        p = row["accuracy"]
        assert row["standard_error"] == pytest.approx((p * (1 - p) / 30) ** 0.5)


def scaled(k: FloatArray) -> FloatArray:
    root = np.sqrt(k.diagonal())
    return k / root[:, None] / root


# ---------------------------------------------------------------- what is computed


@pytest.mark.filterwarnings(LEFT_OUT)
@pytest.mark.parametrize("images", ["standardised", "ZCA, flips"])
def test_scores_are_those_of_the_estimators(
    small: tuple[Path, dict[str, Any]], images: str
) -> None:
    data, record = small
    assert (record["n_train"], record["n_test"], record["left"]) == (40, 30, [])
    flips = images.endswith("flips")
    given = Images(data, "zca" if images.startswith("ZCA") else "standardise")
    kernels = {
        (depth, activation, kind): given.whole(depth, activation, kind, flips=flips)
        for depth in (5, 7)
        for activation, kind in (("relu", "ntk"), ("relu", "nngp"), ("gaussian", "nngp"))
    }
    spoken = {"relu": "ReLU", "gaussian": "Gaussian"}
    for (depth, activation, kind), k in kernels.items():
        name = f"Myrtle-{depth} {kind.upper()}, {spoken[activation]}"
        given.check(row_of(record, name, images), k)
        given.check(row_of(record, f"{name}, normalised", images), scaled(k))
    for activation, kinds in (("relu", ("ntk", "nngp")), ("gaussian", ("nngp",))):
        for kind in kinds:
            mean = np.mean([scaled(kernels[d, activation, kind]) for d in (5, 7)], axis=0)
            name = f"mean of {kind.upper()}, ReLU" if activation == "relu" else "mean of Gaussian"
            given.check(row_of(record, name, images), mean)
    relu = [scaled(k) for (_, activation, _), k in kernels.items() if activation == "relu"]
    given.check(row_of(record, "mean of ReLU", images), np.mean(relu, axis=0))
    whole = np.mean([scaled(k) for k in kernels.values()], axis=0)
    given.check(row_of(record, "mean of all", images), whole)


@pytest.mark.filterwarnings(LEFT_OUT)
def test_the_average_over_all_images(small: tuple[Path, dict[str, Any]]) -> None:
    data, record = small
    both = [Images(data, name) for name in ("standardise", "zca")]
    kernels = [
        scaled(given.whole(depth, activation, kind, flips=False))
        for given in both
        for depth in (5, 7)
        for activation, kind in (("relu", "ntk"), ("relu", "nngp"), ("gaussian", "nngp"))
    ]
    both[0].check(row_of(record, "mean of all", "standardised and ZCA"), np.mean(kernels, axis=0))
    # All of it: in each pass kernels, normalised ones and averages, and averages over passes.
    assert len({(r["kernel"], r["images"]) for r in record["kernels"]}) == len(record["kernels"])
    assert len(record["kernels"]) == 2 * (2 * (8 + 2 + 1) + 2 * (4 + 1) + 3)
    pairs = 2 * 2 * (40 * 41 // 2 + 3 * 30 * 40 + 40 * 40 - 30 * 40)
    assert record["pairs"] == record["pairs_computed"] == pairs
    assert len(record["passes"]) == 16
    assert record["networks"]["myrtle-7, gaussian"] == wl.myrtle(7, wl.Gaussian()).to_json()


@pytest.mark.parametrize("flips", [False, True])
def test_kernels_are_those_of_the_interface(flips: bool, data: Path) -> None:
    asked = Asked(("myrtle-5", "myrtle-7"), ("relu",), ("zca",), True, 40, 30)
    store = data.parent / "stores"
    store.mkdir()
    job = Myrtle.prepare(str(data), asked, data.parent / "x.json", store)
    given = Images(data, "zca")
    (group,) = (group for group in asked.groups() if group.flips == flips)
    found = list(job.kernels(compute_now, group, "relu", "zca"))
    assert [(kind, network) for kind, network, *_ in found] == [
        (kind, network) for kind in ("ntk", "nngp") for network in asked.networks
    ]
    for kind, network, train, test, own in found:
        whole = given.whole(NETWORKS[network], "relu", kind, flips=flips)
        np.testing.assert_allclose(train, whole[:40, :40], rtol=3e-6, atol=1e-6 * whole.max())
        np.testing.assert_array_equal(train, train.T)
        np.testing.assert_allclose(test, whole[40:, :40], rtol=3e-6, atol=1e-6 * whole.max())
        np.testing.assert_allclose(own, whole.diagonal()[40:], rtol=3e-6)
        unit = normalised(train, test, own)
        np.testing.assert_allclose(unit[0], scaled(whole)[:40, :40], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(unit[1], scaled(whole)[40:, :40], rtol=1e-5, atol=1e-5)


def test_no_image_is_predicted_from_its_copy(data: Path) -> None:
    with_copies(data)
    record = run(data, *RELU, "--networks", "myrtle-5")
    assert record["notes"][0].startswith("10 of 40 training images are copies of others: ")
    row = row_of(record, "Myrtle-5 NNGP, ReLU", "standardised")
    given = Images(data, "standardise")
    model = wl.NTKClassifier("myrtle-5", kind="nngp", ridge="loo", channels="last")
    model.fit(given.x, given.y)
    assert row["ridge"] == pytest.approx(model.ridge_)
    assert row["leave_one_out"] == pytest.approx(model.loo_accuracy_)
    assert row["accuracy"] == pytest.approx(model.score(given.test, given.y_test))


def test_an_image_of_zeros_is_normalised() -> None:
    train, test = np.diag([4.0, 0.0]), np.array([[2.0, 0.0], [0.0, 0.0]])
    found = normalised(train, test, np.array([9.0, 0.0]))
    np.testing.assert_array_equal(found[0], [[1, 0], [0, 0]])
    np.testing.assert_allclose(found[1], [[2 / (2 * 3), 0], [0, 0]])


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_pass_is_one_call(activation: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = module.gram

    def gram(networks: Any, *images: Any, kind: Any, **how: Any) -> Any:
        calls.append((networks, kind))
        return real(networks, *images, kind=kind, **how)

    monkeypatch.setattr(module, "gram", gram)
    run(data, *SMALL, "--activations", activation, "--preprocessing", "standardise")
    made, kinds = ACTIVATIONS[activation]
    assert {kind for _, kind in calls} == {kinds}
    assert all(networks == [wl.myrtle(5, made), wl.myrtle(7, made)] for networks, _ in calls)
    assert len(calls) == 4  # training and test images: computed, and read


# ---------------------------------------------------------------- the choice


def test_the_choice_is_by_leave_one_out_alone(small: tuple[Path, dict[str, Any]]) -> None:
    rows, chosen = small[1]["kernels"], small[1]["chosen"]
    assert chosen in rows
    assert chosen["leave_one_out"] == max(row["leave_one_out"] for row in rows)
    page = to_markdown(small[1])
    assert f"Chosen by leave-one-out alone: {chosen['kernel']}; {chosen['images']}: " in page
    accuracy, error = (100 * chosen[name] for name in ("accuracy", "standard_error"))
    told = f" **{accuracy:.2f} ± {error:.2f} ({100 * chosen['leave_one_out']:.2f})** |"
    (line,) = (line for line in page.splitlines() if told in line)
    assert line.startswith(f"| {chosen['kernel']} |")
    assert page.count("**") == 2
    worse = [row | {"accuracy": 0.0 if row == chosen else 1.0} for row in rows]
    assert choose(worse)["kernel"] == chosen["kernel"]
    row = {"leave_one_out": 0.5, "leave_one_out_error": 0.1, "accuracy": 0.5}
    better = row | {"leave_one_out_error": 0.05, "accuracy": 0.1}
    assert choose([row, better, row | {"leave_one_out": 0.4, "accuracy": 0.9}]) is better
    assert choose([row, dict(row)]) is row


def test_it_is_told_where_whitening_has_seen_what_is_left_out(tmp_path: Path) -> None:
    path = make_file(tmp_path, n=120, side=8)  # of 192 values

    def notes(n_train: int, preprocessing: tuple[str, ...]) -> list[str]:
        asked = Asked(("myrtle-5",), ("relu",), preprocessing, n_train=n_train, n_test=30)
        return Myrtle.prepare(str(path), asked, tmp_path / "x.json").notes

    (note,) = notes(95, ("standardise", "zca"))
    assert note.startswith("ZCA is that of all 95 training images, and what is left out of the ")
    assert "of fewer images than half their 192 values" in note
    assert notes(95, ("standardise",)) == notes(96, ("standardise", "zca")) == []


def test_the_order_of_the_work() -> None:
    names = [
        group.name.removeprefix("scores-") for group in Asked(("myrtle-5",), flips=True).groups()
    ]
    plain = [
        "myrtle-5-relu-standardise",
        "myrtle-5-relu-zca",
        "myrtle-5-gaussian-zca",
        "myrtle-5-relu-gaussian-zca",
        "myrtle-5-gaussian-standardise",
        "myrtle-5-relu-gaussian-standardise",
        "myrtle-5-relu-gaussian-standardise-zca",
    ]
    assert names == [*plain, *(f"{name}-flips" for name in plain)]


def test_papers_are_quoted_for_their_images_alone(small: tuple[Path, dict[str, Any]]) -> None:
    record = small[1]
    assert record["quoted"] == []
    images = {f"x_{part}": np.ones((10, 32, 32, 3)) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(10) for part in ("train", "test")}
    names = tuple("abcdefghij")
    for name, count in (("cifar10", 2), ("svhn", 0)):
        dataset = wl.Dataset(name, **images, **labels, class_names=names, provenance="")  # type: ignore[arg-type]
        assert len(Myrtle._quoted(cast("Myrtle", SimpleNamespace(dataset=dataset)))) == count
    quoted = [{"what": "somebody's", "n_train": 50_000, "percent": 90.0}]
    assert "Quoted: somebody's, 50,000 training images: 90%." in to_markdown(
        record | {"quoted": quoted, "left": ["zca"]}
    )


# ---------------------------------------------------------------- a run that goes on

KILLED = """
import os, signal, sys
from widelimit.experiments import myrtle
real, calls = myrtle.gram, 0
def gram(*words, **more):
    global calls
    calls += 1
    if calls == 6:
        os.kill(os.getpid(), kill)
    return real(*words, **more)
myrtle.gram = gram
kill = int(sys.argv.pop(1))
from widelimit.__main__ import main
main()
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on(kill: signal.Signals, data: Path) -> None:
    some = (*SMALL, "--activations", "relu")
    whole = run(data, *some, "--store", data.parent / "whole")
    out = data.parent / "stopped.json"
    words = ["reproduce", "myrtle", data, "--out", out, *some]
    command = [sys.executable, "-c", KILLED, str(int(kill)), *map(str, words)]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert not out.exists()
    assert stopped.returncode == (130 if kill == signal.SIGINT else -signal.SIGKILL)
    if kill == signal.SIGINT:
        assert "what is finished is kept, the same command goes on" in stopped.stderr
    # What is complete has its record, of which a page can be made.
    folder = data.parent / "stopped-stores"
    part = json.loads((folder / module.SO_FAR).read_text("utf-8"))
    assert part["kernels"] == [r for r in whole["kernels"] if r["images"] == "standardised"]
    networks = "myrtle-5-myrtle-7-relu"
    assert part["left"] == [f"{networks}-zca", f"{networks}-standardise-zca"]
    assert f"Not there yet: {networks}-zca" in to_markdown(part)
    page = data.parent / "page.html"
    shown = CliRunner().invoke(app, ["report", str(folder / module.SO_FAR), "--out", str(page)])
    assert shown.exit_code == 0, shown.output
    assert f"Not there yet: {networks}-zca" in page.read_text("utf-8")
    result = call(data, "--out", out, *some)
    assert result.exit_code == 0, result.output
    assert "of them left" in result.stderr
    again = json.loads(out.read_text("utf-8"))
    assert values(again) == values(whole)
    assert json.loads((folder / module.SO_FAR).read_text("utf-8")) == again


def test_the_help_says_that_other_networks_are_all_computed_again() -> None:
    shown = CliRunner().invoke(app, ["reproduce", "myrtle", "--help"], env={"COLUMNS": "400"})
    assert "With other networks all kernels are computed anew" in " ".join(shown.output.split())


def test_a_run_may_be_asked_for_more(data: Path) -> None:
    first = run(data, *RELU)
    folder = data.parent / "m-stores"
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-relu-*.json")}
    assert len(times) == 4  # training and test images, these with themselves, and scores
    more = run(data, *SMALL, "--preprocessing", "standardise", "--activations", "gaussian,relu")
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    assert more["kernels"][: len(first["kernels"])] == first["kernels"]
    assert len(more["kernels"]) == len(first["kernels"]) + 4 + 1 + 1
    fresh = run(data, *SMALL, "--preprocessing", "standardise", "--store", data.parent / "fresh")
    assert values(fresh) == values(more)
    other = call(data, "--out", data.parent / "m.json", *RELU, "--overwrite", "--n-train", 30)
    assert other.exit_code == 2
    assert "holds another run of myrtle" in other.stderr
    assert "n_train 40 there and 30 here" in other.stderr


# ---------------------------------------------------------------- before the work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--networks", "myrtle-6"), "networks must be of myrtle-5, myrtle-7, myrtle-10, got 'm"),
        (("--networks", "myrtle-5,myrtle-5"), "networks must be different ones, at least one"),
        (("--activations", "tanh"), "activations must be of relu, gaussian, got 'tanh'"),
        (("--preprocessing", "pca"), "preprocessing must be of standardise, zca, got 'pca'"),
        (("--flips", "--size", "8x6"), "width is a multiple of 4, or pools lose columns on one"),
        (("--n-train", 70), "must have 70 training images, got 60: ask for fewer"),
    ],
)
def test_what_cannot_be_is_refused_before(
    arguments: tuple[object, ...], message: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "gram", None)
    result = call(data, "--out", data.parent / "m.json", *RELU, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (data.parent / "m-stores").exists()


def test_a_budget_takes_the_most_images_that_fit(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = [1000.0]

    def estimate(networks: Any, shape: Any, n1: int, n2: int | None = None, **how: Any) -> Cost:
        pairs = n1 * (n1 + 1) // 2 if n2 is None else n1 * n2
        return Cost(pairs, 1, pairs / rate[0], 1, 1, 3, 4, "cpu")

    monkeypatch.setattr(planning, "estimate", estimate)
    options = (*RELU, "--n-train", 40, "--n-test", 40, "--budget", "1s")
    record = run(data, *options)
    # 20 21 / 2 + 20 20 (1 + 16 / 20) pairs take 0.9 s, of 30 images 1.9 s.
    assert (record["n_train"], record["n_test"]) == (20, 20)
    assert record["notes"][0] == "20 + 20 of 40 + 40 images fit into 1 s"
    rate[0] = 1e6  # a faster machine: what was begun has the number with which it was
    assert run(data, *options)["n_train"] == 20
    plan = data.parent / "m-stores" / "plan.json"
    plan.write_text(plan.read_text().replace('"taken": 20', '"taken": 50'))
    result = call(data, "--out", data.parent / "m.json", "--overwrite", *options)
    assert result.exit_code == 2
    assert "plan.json is damaged (taken is 50): delete it" in result.stderr
    rate[0] = 1.0
    result = call(data, "--out", data.parent / "x.json", *options)
    assert result.exit_code == 2
    assert "10 training images take 4 min 15 s, the budget is 1 s: raise it" in result.stderr


def test_the_memory_that_is_counted_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, m = 20, 4000  # what test images take is most of it
    path = make_file(tmp_path, n=n, m=m, side=8)
    real, counted = module.solver_for, list[int]()

    def solver_for(*words: Any, held: int, **more: Any) -> Any:
        counted.append(held)
        return real(*words, held=held, **more)

    def kernels(self: Myrtle, keep: Any, group: Any, *passes: str) -> Iterator[Any]:
        rng = np.random.default_rng(0)
        for kind, network in itertools.product(("ntk", "nngp"), group.networks):
            train = rng.random((n, n))
            yield kind, network, train @ train.T + np.eye(n), rng.random((m, n)), np.ones(m)

    monkeypatch.setattr(module, "solver_for", solver_for)
    monkeypatch.setattr(Myrtle, "kernels", kernels)
    asked = Asked(("myrtle-5", "myrtle-7"), ("relu",), ("standardise",), n_train=n, n_test=m)
    job = Myrtle.prepare(str(path), asked, tmp_path / "x.json")
    (group,) = job.asked.groups()
    job._score(compute_now, group)  # so that images and modules are there
    tracemalloc.start()
    try:
        job._score(compute_now, group)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.5 * counted[0] < peak < counted[0]


def test_the_cost_is_told_before(data: Path) -> None:
    result = call(data, "--out", data.parent / "m.json", *RELU, "--flips")
    told = result.stderr.splitlines()
    assert "ReLU (NTK, NNGP), standardised: 2,020 pairs, about" in told[0]
    assert "ReLU (NTK, NNGP), standardised, flips: 2,800 pairs, about" in told[1]
    assert "myrtle-5, myrtle-7 on 40 + 30 images: in all about" in told[2]
