"""The protocol of the paper's experiments, beside what it says, written out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from toys import make_dataset

import widelimit as wl
from widelimit.architectures import named_network
from widelimit.data import Dataset
from widelimit.experiments.planning import estimate_parts
from widelimit.experiments.protocol import Draw, Protocol, flip, join_parts
from widelimit.solvers import encode_labels, solve

LAP = wl.Network(
    [wl.Conv(3), wl.ReLU(), wl.Conv(3), wl.ReLU(), wl.LocalAvgPool(1), wl.Flatten(), wl.Dense()]
)


def ten_classes(n: int = 60, m: int = 33, side: int = 4) -> Dataset:
    """Images like those of the paper, in three channels, each class at its own level."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n + m) % 10)
    x = rng.random((n + m, side, side + 1, 3)) * 0.5 + y[:, None, None, None] / 20
    return Dataset(
        name="ten",
        x_train=x[:n],
        y_train=y[:n],
        x_test=x[n:],
        y_test=y[n:],
        class_names=tuple("abcdefghij"),
        provenance="Made by a test.",
    )


def test_the_protocol_of_the_paper() -> None:
    data = ten_classes()
    draw = Protocol(40, 20).draw(data, 0)
    first = data.x_train[:40]
    mean = first.mean(axis=(0, 1, 2))
    std = np.sqrt(((first - mean) ** 2).mean(axis=(0, 1, 2)))
    assert np.allclose(draw.x_train, (first - mean) / std, rtol=1e-12, atol=1e-14)
    assert np.allclose(draw.x_test, (data.x_test[:20] - mean) / std, rtol=1e-12, atol=1e-14)
    assert np.array_equal(draw.y_train, data.y_train[:40])
    assert np.array_equal(draw.y_test, data.y_test[:20])
    targets = encode_labels(draw.y_train, np.arange(10))
    assert set(np.unique(targets).round(12)) == {-0.1, 0.9}


def test_cifar_2_is_the_first_two_classes() -> None:
    data = ten_classes()
    draw = Protocol(8, 5, n_classes=2).draw(data, 0)
    places = [i for i, label in enumerate(data.y_train) if label < 2][:8]
    assert draw.train.tolist() == places
    assert np.array_equal(draw.y_train, data.y_train[places])
    assert set(draw.y_train) == set(draw.y_test) == {0, 1}
    raw = Protocol(8, 5, n_classes=2, preprocessing="none").draw(data, 0)
    assert np.array_equal(raw.x_train, data.x_train[places])
    assert np.array_equal(raw.x_test, data.x_test[data.y_test < 2][:5])


def test_balanced_draws() -> None:
    data = ten_classes()
    protocol = Protocol(30, 5, balanced=True, seed=3, draws=4)
    draws = [protocol.draw(data, i) for i in range(4)]
    for draw in draws:
        assert np.bincount(draw.y_train).tolist() == [3] * 10
        assert np.array_equal(draw.y_train, data.y_train[draw.train])
        assert np.array_equal(draw.y_test, data.y_test[:5])
    assert len({draw.train.tobytes() for draw in draws}) == 4
    again = Protocol(30, 5, balanced=True, seed=3, draws=2).draw(data, 1)
    assert np.array_equal(again.train, draws[1].train)
    other = Protocol(30, 5, balanced=True, seed=4).draw(data, 1)
    assert not np.array_equal(other.train, draws[1].train)


@pytest.mark.parametrize("name", ["standardise", "zca", "normalise"])
def test_preprocessing_learns_from_training_images_alone(name: Any) -> None:
    data = ten_classes()
    kind: Any = {
        "standardise": wl.ChannelStandardiser,
        "zca": wl.ZCA,
        "normalise": wl.ImageNormaliser,
    }
    transformer = kind[name]().fit(data.x_train[:40])
    draw = Protocol(40, 9, preprocessing=name).draw(data, 0)
    assert np.array_equal(draw.x_train, transformer.transform(data.x_train[:40]))
    assert np.array_equal(draw.x_test, transformer.transform(data.x_test[:9]))


def test_blocks_are_costed_by_their_pairs() -> None:
    parts = Protocol(200, 3, flips="average").parts()
    costs = estimate_parts([wl.cntk_gap(3)], (4, 4, 3), parts)
    assert [cost.pairs for cost in costs] == [part.pairs for part in parts]
    assert len({round(cost.seconds / cost.pairs, 12) for cost in costs}) == 1


def predict(net: wl.Network, draw: Draw, protocol: Protocol, ridge: float = 0.0) -> Any:
    """Outputs for the test images, and the absolute ridge."""
    matrices = {
        part.name: wl.kernel(net, *draw.sides(part), dtype="float64", channels="last")
        for part in protocol.parts()
    }
    train, test = join_parts(matrices)
    for part in protocol.parts():
        assert matrices[part.name].shape == (part.rows, part.columns or part.rows)
    assert np.array_equal(train, train.T)
    mean = float(np.trace(train)) / len(train)
    solution = solve(train, encode_labels(draw.y_train, np.arange(10)), ridge / mean)
    return test @ solution.require().value


@pytest.mark.parametrize("net", ["cntk-gap-3", "cntk-vanilla-4", "lap"])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_both_kinds_of_flips_predict_the_same(net: str, ridge: float) -> None:
    """Up to the ridge: what is added to the doubled training set is twice that of the average."""
    data = ten_classes()
    network = LAP if net == "lap" else named_network(net)
    average, double = (Protocol(30, 12, flips=kind) for kind in ("average", "double"))
    one = predict(network, average.draw(data, 0), average, ridge)
    other = predict(network, double.draw(data, 0), double, 2 * ridge)
    assert np.allclose(one, other, rtol=1e-6, atol=1e-7)
    plain = Protocol(30, 12)
    assert not np.allclose(one, predict(network, plain.draw(data, 0), plain, ridge), atol=1e-3)
    # And so it is for mirrored test images.
    mirrored = average.draw(data, 0)
    mirrored = dataclasses.replace(mirrored, x_test=flip(mirrored.x_test))
    assert np.allclose(one, predict(network, mirrored, average, ridge), rtol=1e-6, atol=1e-7)


def test_flips_are_of_left_and_right() -> None:
    x = np.arange(12.0).reshape(1, 2, 3, 2)
    assert flip(x)[0, :, :, 0].tolist() == [[4, 2, 0], [10, 8, 6]]
    assert flip(x)[0, :, :, 1].tolist() == [[5, 3, 1], [11, 9, 7]]


def test_pairs_of_parts() -> None:
    def pairs(flips: Any) -> dict[str, int]:
        return {part.name: part.pairs for part in Protocol(5, 3, flips=flips).parts()}

    assert pairs("none") == {"train": 15, "test": 15}
    assert pairs("average") == {"train": 15, "test": 15, "train-flipped-1": 25, "test-flipped": 15}
    assert pairs("double") == {"train": 55, "test": 30}
    # Blocks of rows up to the diagonal: hardly more than what is symmetric.
    for n, blocks in ((127, 1), (128, 2), (200, 3), (2001, 16)):
        parts = Protocol(n, 1, flips="average").parts()
        cut = [part for part in parts if part.of == "train-flipped"]
        assert len({part.name for part in parts}) == len(parts) == blocks + 3
        assert sum(part.rows for part in cut) == cut[-1].columns == n
        assert sum(part.pairs for part in cut) <= n * n * (1 + 1 / blocks) / 2 + n


def test_blocks_of_rows_are_the_whole_matrix() -> None:
    protocol = Protocol(200, 3, preprocessing="none", flips="average")
    draw, net = protocol.draw(ten_classes(200), 0), wl.cntk_gap(3)
    x, parts = draw.x_train, protocol.parts()
    matrices = {p.name: wl.kernel(net, *draw.sides(p), dtype="float64") for p in parts}
    train, test = join_parts(matrices)
    assert len(parts) == 6
    for joined, rows in ((train, x), (test, draw.x_test)):
        plain, other = (wl.kernel(net, rows, z, dtype="float64") for z in (x, flip(x)))
        assert np.allclose(joined, (plain + other) / 2, rtol=1e-12, atol=0)
        assert not np.allclose(joined, plain, rtol=1e-3)
    assert np.array_equal(train, train.T)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_train": 0}, "n_train must be 1 or more, got 0"),
        ({"n_test": 0}, "n_test must be 1 or more"),
        ({"draws": 0}, "draws must be 1 or more"),
        ({"n_classes": 1}, "n_classes must be 2 or more"),
        ({"preprocessing": "whiten"}, "must be one of standardise, zca, normalise, none, got 'wh"),
        ({"flips": "both"}, "flips must be one of none, average, double, got 'both'"),
        ({"draws": 3}, "draws and a seed are of balanced training sets"),
        ({"seed": 3}, "draws and a seed are of balanced"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"n_train": 5, "n_test": 5} | options
    with pytest.raises(ValueError, match=words):
        Protocol(**given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_train": 61}, "ten must have 61 training images, got 60: ask for fewer"),
        ({"n_test": 34}, "must have 34 test images, got 33"),
        ({"n_classes": 11}, "must have 11 classes, got 10"),
        ({"n_train": 20, "n_classes": 2}, "20 training images of the first 2 classes, got "),
        ({"n_train": 25, "balanced": True}, "needs a multiple of 10 images, got 25: say 20"),
        ({"n_train": 60, "balanced": True}, "6 training images of every class, got 3 of one"),
        ({"n_train": 4}, "first 4 training images of ten have none of . of the 10 classes"),
    ],
)
def test_data_that_have_not_what_is_asked_for(options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"n_train": 40, "n_test": 5} | options
    with pytest.raises(ValueError, match=words):
        Protocol(**given).check(ten_classes())


def test_data_without_a_test_set() -> None:
    data = make_dataset(30, x_test=np.zeros((0, 8, 8, 1)), y_test=np.zeros(0, int), split="none")
    with pytest.raises(ValueError, match="must have 1 test images, got 0"):
        Protocol(10, 1).check(data)
