"""Rankings of architectures: scores beside the estimators', agreement beside its definition."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_table1 import make_file, with_copies
from typer.testing import CliRunner, Result

import widelimit as wl
from widelimit.cli import app
from widelimit.data import draw_training_sets
from widelimit.experiments.rank import architectures, tau_with_interval
from widelimit.report.rank import to_markdown
from widelimit.report.runs import Report


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_file(tmp_path, n=120, m=10)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["rank", *map(str, arguments)])


def run(data: Path, *arguments: object) -> dict[str, Any]:
    out = data.parent / "r.json"
    result = call(data, "--out", out, "--overwrite", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text("utf-8"))


def test_there_are_at_least_twelve_architectures() -> None:
    found = architectures()
    assert len(found) >= 12
    assert len({network.fingerprint for network in found.values()}) == len(found)
    assert found["cntk-gap-6"] == wl.cntk_gap(6)
    pools = [
        layer.half_width
        for layer in found["cntk-lap4-6"].layers
        if isinstance(layer, wl.LocalAvgPool)
    ]
    assert pools == [4]


@pytest.mark.parametrize("repeated", [False, True])
def test_scores_are_those_of_estimators(data: Path, repeated: bool) -> None:
    if repeated:
        with_copies(data)
    nets = ("cntk-gap-3", "cntk-vanilla-4")
    words = [word for net in nets for word in ("--net", net)]
    record = run(data, *words, "--n", "20,50", "--draws", 3, "--seed", 4, "--validation", 30)
    assert (record["sizes"], record["n_pool"], record["n_validation"]) == ([20, 50], 80, 30)
    told = [
        "up to 3 of 50 training images of a draw are copies of others: equal images count as one, "
        "with the mean of their targets, and are left out together"
    ]
    images = wl.load_dataset(data)
    pool = draw_training_sets(images.y_train, [8], np.random.default_rng([4, 0]))[0]
    y = images.y_train[pool]
    places, names = range(80), [image.tobytes() for image in images.x_train[pool]]
    shared: list[int] = []
    for i in range(3):
        train = draw_training_sets(y, [5], np.random.default_rng([4, 1, i]))[0]
        known = {names[k] for k in train}
        shared.append(sum(names[k] in known for k in places if k not in train))
    told += [
        f"up to {max(shared)} of 30 validation images of a draw are copies of training images, "
        "which tell their labels: remove copies, or go by leaving one out"
    ]
    assert (max(shared) > 0) == repeated
    assert record["notes"] == (told if repeated else [])
    said = "standardised by channel, with mean and deviation of all 80 images, those for validation"
    assert record["preprocessing"] == f"{said} too"
    page = Report.prepare([data.parent / "r.json"], data.parent / "r.html").text
    assert all(words in page for words in (said, *record["notes"]))
    assert {entry["paper"] for entry in record["architectures"]} == {None}
    assert not any("paper" in name for row in record["agreement"] for name in row["between"])
    x = wl.ChannelStandardiser().fit(images.x_train[pool]).transform(images.x_train[pool])
    for entry, net in zip(record["architectures"], nets, strict=True):
        assert (entry["name"], wl.Network.from_json(entry["network"]).n_conv) == (
            net,
            int(net[-1]) - 1,
        )
        scores = np.array(entry["scores"])
        assert scores.shape == (2, 3, 3)
        assert np.allclose(entry["mean"], scores.mean(axis=1))
        assert np.allclose(entry["standard_error"], scores.std(axis=1, ddof=1) / 3**0.5)
        for i in range(3):
            sets = draw_training_sets(y, [2, 5], np.random.default_rng([4, 1, i]))
            held = np.setdiff1d(np.arange(80), sets[1])
            assert np.bincount(y[held]).tolist() == [3] * 10
            for j, train in enumerate(sets):
                model = wl.NTKClassifier(net, channels="last").fit(x[train], y[train])
                assert scores[j, i, 0] == pytest.approx(model.loo_accuracy_)
                assert scores[j, i, 1] == pytest.approx(model.loo_score_, rel=1e-4)
                assert scores[j, i, 2] == pytest.approx(model.score(x[held], y[held]))


def test_all_images_are_drawn_from_where_there_is_no_test_set(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "two.npz"
    labels = np.array(["cat", "dog"] * 6)
    np.savez(path, x=rng.integers(0, 256, (12, 5, 5, 1), np.uint8), y=labels)
    words = ("--net", "cntk-gap-3", "--net", "cntk-vanilla-3", "--draws", 1, "--n", 8)
    record = run(path, *words, "--validation", 4)
    assert (record["n_pool"], record["n_validation"]) == (12, 4)
    labels[[1, 3, 5, 7, 9]] = "cat"
    np.savez(path, x=rng.integers(0, 256, (12, 5, 5, 1), np.uint8), y=labels)
    done = call(path, *words, "--out", tmp_path / "s.json")
    assert done.exit_code == 2
    assert "6 training images of every class, 4 to train and 2 to validate with" in done.stderr
    assert "got 1 of 'dog': give smaller sizes" in done.stderr


def test_rows_of_a_table_are_images_where_it_is_said(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "t.csv"
    heads = ",".join(["kind", *(f"v{k}" for k in range(12))])
    rows = [",".join(map(str, ["ab"[i % 2], *rng.integers(0, 256, 12)])) for i in range(8)]
    path.write_text("\n".join([heads, *rows]))
    words = ("--net", "cntk-gap-3", "--net", "cntk-vanilla-3", "--n", 4, "--draws", 1)
    done = call(path, *words, "--out", tmp_path / "s.json")
    assert "(--image-shape of fit, kernel, suspects, demo and rank)" in done.stderr
    record = run(path, *words, "--image-shape", "4x3", "--label", "kind")
    assert record["data"]["image_shape"] == [4, 3, 1]


def test_a_kernel_that_is_singular_is_solved_with(data: Path) -> None:
    net = data.parent / "sums.json"  # of the mean pixel alone
    net.write_text(wl.Network([wl.GlobalAvgPool(), wl.Dense()]).to_json())
    record = run(data, "--net", net, "--net", "cntk-vanilla-3", "--n", "20,50", "--draws", 2)
    (note,) = record["notes"]
    assert note == (
        f"{net}: 4 of 4 kernels are singular to rounding, and were solved with by least squares, "
        "the limit of training: not all targets are met"
    )
    assert 0.1 < record["architectures"][0]["mean"][1][2] < 1


def test_what_is_compared(data: Path) -> None:
    data = data.rename(data.with_name("cifar10.npz"))  # which the paper has figures of
    nets = ("cntk-gap-3", "cntk-gap-4", "cntk-vanilla-3", "cntk-vanilla-5")
    words = [word for net in nets for word in ("--net", net)]
    record = run(data, *words, "--n", "20,50", "--draws", 2)
    between = [tuple(row["between"]) for row in record["agreement"]]
    assert ("loo_accuracy, n = 20", "loo_accuracy, n = 50") in between
    assert ("loo_score, n = 50", "validation_accuracy, n = 50") in between
    assert ("validation_accuracy, n = 20", "the paper's CNTK") in between
    assert ("loo_accuracy, n = 50", "the paper's CNN") in between
    assert len(between) == 3 + 4 + 12
    for row in record["agreement"]:
        # Depth 5 is not in the paper.
        assert row["architectures"] == (3 if "paper" in row["between"][1] else 4)
        if row["tau"] is not None:
            assert -1 <= row["low"] <= row["high"] <= 1
    paper = {entry["name"]: entry["paper"] for entry in record["architectures"]}
    assert paper["cntk-gap-4"] == {"cntk": 75.93, "cnn": 80.93}
    assert paper["cntk-vanilla-5"] is None
    page = to_markdown(record)
    assert "| loo score, n = 20 | loo score, n = 50 | 4 | " in page
    assert "75.93% | 80.93% |" in page
    # A run that goes on takes the kernels that are there.
    assert run(data, *words, "--n", "20,50", "--draws", 2)["agreement"] == record["agreement"]


def test_kendalls_tau() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((7, 4)), rng.random((7, 4))
    a, b = one.mean(axis=1), other.mean(axis=1)
    signs = [np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in itertools.combinations(range(7), 2)]
    tau, low, high = tau_with_interval(one, other)
    assert tau == pytest.approx(np.mean(signs))
    assert low is not None
    assert high is not None
    assert -1 <= low <= tau <= high <= 1
    assert tau_with_interval(one, one)[0] == pytest.approx(1)
    assert tau_with_interval(one, -one)[0] == pytest.approx(-1)
    assert tau_with_interval(one[:, :1], other[:, :1])[1:] == (None, None)
    assert tau_with_interval(np.ones((7, 4)), other) == (None, None, None)
    # Draws that agree leave no doubt.
    same = np.repeat(one[:, :1], 4, axis=1)
    assert tau_with_interval(same, same) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--n 20,x", "--n must be numbers"),
        ("--n 25", "must be multiples of the 10 classes, got 25"),
        ("--n 50,20", "sizes must be ascending, got 50, 20"),
        ("--n 20 --validation 5", "must be multiples of the 10 classes, got 5"),
        ("--n 100", "must have 15 training images of every class, 10 to train and 5 to validate"),
        ("--n 20 --net cntk-gap-3", "a ranking needs two networks or more, got 1"),
        ("--n 20 --net cntk-gap", "needs a depth"),
        ("--n 20 --out r.txt", "the record must be a .json file"),
    ],
)
def test_wrong_options_are_one_line(
    options: str, words: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    result = call(data, *options.split())
    assert result.exit_code == 2
    assert (result.stderr.count("\n"), "Traceback" in result.output) == (1, False), result.stderr
    assert words in result.stderr
    assert [path.name for path in data.parent.iterdir()] == ["ten.npz"]


def test_a_store_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widelimit.experiments.rank.gram", lambda *_, **__: pytest.fail("begun"))
    (tmp_path / "file").touch()
    done = call("digits", "--n", 20, "--out", tmp_path / "r.json", "--store", tmp_path / "file")
    assert done.exit_code == 2
    assert "file: this is no folder: give another path" in done.stderr
