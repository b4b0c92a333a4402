"""Theorems 3.1 and 3.2 as experiments: small ones, and the arithmetic of slopes and gaps."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from test_finite import normal

import widelimit as wl
from widelimit.experiments import finite_width
from widelimit.experiments.finite_width import (
    Decay,
    Means,
    Run,
    Training,
    compare_means,
    digits_pair,
    fit_slope,
    measure_decay,
    train_weakly,
    train_widths,
)
from widelimit.finite.training import descend

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_slope_of_a_power_law() -> None:
    widths = (16, 32, 64, 128)
    rng = np.random.default_rng(0)
    slopes, errors = [], []
    for _ in range(200):
        rows = [3 * w**-0.5 * (1 + 0.2 * rng.standard_normal(30)) for w in widths]
        slope, error = fit_slope(widths, rows)
        slopes.append(slope)
        errors.append(error)
    assert np.mean(slopes) == pytest.approx(-0.5, abs=4 * np.std(slopes) / np.sqrt(200))
    # the error that is told is the scatter that is seen
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.2)
    slope, error = fit_slope(widths, [[w**-0.5, w**-0.5] for w in widths])
    assert slope == pytest.approx(-0.5, rel=1e-12)
    assert error == pytest.approx(0, abs=1e-12)


def test_error_falls_like_the_root_of_the_width() -> None:
    said: list[str] = []
    x = normal(4, 6)
    found = measure_decay(
        "toy", wl.ntk_dense(1), x, (16, 64, 256, 1024), 20, epsilons=(0.1, 10.0), say=said.append
    )
    low, high = found.interval
    assert low < -0.5 < high
    assert high - low < 0.4
    assert len(said) == 4
    assert "toy, width 1,024: mean relative error" in said[-1]
    assert [row[1] for row in found.within] == [1.0] * 4
    assert found.within[0][0] < found.within[-1][0]
    # each error is that of the network that the seed names
    module = wl.finite.build(wl.ntk_dense(1), 64, (2, 64), input_shape=(6,))
    exact = wl.kernel(wl.ntk_dense(1), x, dtype="float64")
    away = np.linalg.norm(wl.finite.empirical_ntk(module, x) - exact) / np.linalg.norm(exact)
    assert found.errors[1][2] == pytest.approx(away, rel=1e-12)
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    with pytest.raises(ValueError, match="widths must ascend"):
        measure_decay("toy", wl.ntk_dense(1), x, (16,), 2)
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        measure_decay("toy", wl.ntk_dense(1), x, (16, 32), (2, 1))


def test_means_of_many_networks() -> None:
    x = normal(2, 3, 4, 2)
    found = compare_means("toy", wl.cntk_gap(3), x, 16, 60)
    assert found.largest is not None
    assert found.largest_without_bias is not None
    assert found.largest < min(3, found.largest_without_bias)
    assert found.relative_error < 0.2

    def wrong(*arguments: Any, **options: Any) -> Any:
        return 1.5 * wl.kernel(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finite_width, "kernel", wrong)
        largest = compare_means("toy", wl.cntk_gap(3), x, 16, 60).largest
        assert largest is not None
        assert largest > 3


def test_means_of_networks_that_agree_have_no_standard_error() -> None:
    said: list[str] = []

    def compare(spread: np.ndarray) -> Means:
        kept = [np.ones((2, 2)).tolist(), spread.tolist()]
        x = normal(2, 3, 4, 2)
        return compare_means("toy", wl.cntk_gap(3), x, 2, 2, say=said.append, keep=lambda *_: kept)

    spread = np.ones((2, 2))
    assert compare(spread).largest is not None
    spread[0, 1] = 0.0  # an entry that no network moves
    found = compare(spread)
    assert (found.largest, found.largest_without_bias) == (None, None)
    assert "standard errors beyond its bias" in said[0]
    assert "off, some of its entries are the same in all of them" in said[1]


def test_training_follows_the_flow_of_the_kernel() -> None:
    x, x_test = normal(6, 5), normal(8, 5, seed=1)
    y = np.where(x[:, 0] > 0, 1.0, -1.0)
    network = wl.ntk_dense(1)
    training = train_widths(
        "toy", network, x, y, x_test, np.sign(x_test[:, 0]), (32, 2048), 2, n_times=6
    )
    gaps = training.gaps()
    assert list(gaps) == [32, 2048]
    assert gaps[2048] < 0.5 * gaps[32]
    assert gaps[2048] < 0.25 * training.scale
    wide = [run for run in training.runs if run.width == 2048]
    # the whole way, not its end alone
    assert max(max(run.gaps) for run in wide) < 0.3 * training.scale
    assert all(run.training_error == 0 and run.residual < 0.2 for run in wide)
    json.dumps(dataclasses.asdict(training), allow_nan=False)


def test_descent_is_linear_where_the_network_is() -> None:
    # With the last layer alone trained the tangent kernel stands still, and time is exp(-tK).
    network = wl.Network([wl.Dense(1.0, 0.5, trainable=False), wl.ReLU(), wl.Dense()])
    x, x_test = normal(4, 3), normal(5, 3, seed=1)
    y = normal(4, seed=2)
    module = wl.finite.build(
        network, 64, 1, kappa=0.3, zero_at_start=True, dtype="float64", input_shape=(3,)
    )
    k, k_test = (wl.finite.empirical_ntk(module, a, x) / 0.3**2 for a in (x, x_test))
    values, vectors = np.linalg.eigh(k)
    times = [0.5 / values[-1], 5 / values[-1], 50 / values[-1]]
    done = descend(module, x, y, x_test, times, float(values[-1]))
    for time, train, test in zip(times, done.train, done.test, strict=True):
        part = vectors @ ((-np.expm1(-time * values) / values) * (vectors.T @ y))
        np.testing.assert_allclose(train, k @ part, atol=0.03 * np.abs(y).max())
        np.testing.assert_allclose(test, k_test @ part, atol=0.03 * np.abs(y).max())
    assert done.steps > 60
    with pytest.raises(ValueError, match="times must ascend from above 0"):
        descend(module, x, y, x_test, [1.0, 1.0], 1.0)
    with pytest.raises(ValueError, match="outputs diverged by time"):
        descend(module, x, y, x_test, [1e5 / values[-1]], float(values[-1]) / 100)


def test_weakly_trained_networks_tend_to_the_nngp_kernel() -> None:
    x, x_test = normal(10, 5), normal(20, 5, seed=1)
    y, y_test = np.sign(x[:, 0]), np.sign(x_test[:, 0])
    found = train_weakly("toy", wl.ntk_dense(2), x, y, x_test, y_test, (16, 1024), 3, ridge=0.01)
    assert np.mean(found.gaps[1]) < 0.5 * np.mean(found.gaps[0])
    model = wl.NTKRegressor(
        wl.ntk_dense(2), kind="nngp", ridge=0.01, normalize_y=False, standardise=False
    )
    expected = model.fit(x, y).predict(x_test)
    assert found.exact_accuracy == np.mean(np.sign(expected) == y_test)
    assert found.scale == pytest.approx(np.sqrt(np.mean(expected**2)), rel=1e-4)
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_digits_are_drawn_by_class() -> None:
    data = digits_pair((3, 8), 20, 100)
    assert {name: a.shape for name, a in data.items()} == {
        "x": (20, 8, 8, 1), "y": (20,), "x_test": (100, 8, 8, 1), "y_test": (100,)
    }  # fmt: skip
    assert data["y"].sum() == data["y_test"].sum() == 0
    rows = np.concatenate([data["x"], data["x_test"]]).reshape(120, -1)
    assert len(np.unique(rows, axis=0)) == 120
    with pytest.raises(ValueError, match="must be even, together at most"):
        digits_pair((3, 8), 3, 10)


def test_pictures() -> None:
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    decay = Decay("toy", "", (16, 64), ((0.4, 0.6), (0.2, 0.3)), -0.5, 0.02, (0.1,), ((0.0,),) * 2)
    ax = wl.plot.width_errors([decay, decay])
    (legend,) = [text.get_text() for text in ax.get_legend().get_texts()][:1]
    assert legend == "toy: slope -0.50 (-0.54 to -0.46)"
    line = ax.lines[1]  # the fitted law has the slope that is told
    x, y = line.get_data()
    assert np.log(y[1] / y[0]) / np.log(x[1] / x[0]) == pytest.approx(-0.5)
    run = Run(64, 0, 10, 0.1, 0.0, (0.1, 0.2), 0.2, 0.9)
    training = Training("toy", "", 2, 2, 0.1, True, 0.8, 0.9, (1.0, 10.0), (run, run))
    ax = wl.plot.training_gaps(training)
    assert ax.get_legend().get_texts()[0].get_text() == "width 64"
    weak = finite_width.WeaklyTrained(
        "toy", "", 2, 2, 0.1, (16, 64), ((0.5,), (0.6,)), ((0.5,), (0.2,)), 0.9, 0.9, 0.5
    )
    ax = wl.plot.weakly_trained([weak])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1.0, 0.4])
    pyplot.close("all")
