"""`NTKRegressor(optimize="marginal")`, beside scikit-learn's Gaussian process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel

import widelimit as wl
from widelimit.estimators import marginal
from widelimit.estimators.fitted import FittedKernel
from widelimit.estimators.preparation import Preparation
from widelimit.estimators.samples import Training
from widelimit.machine import blas_on_one_thread

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(40, 3)), RNG.normal(size=(11, 3))
Y = np.sin(2 * X[:, 0]) - X[:, 1] + 0.4 * RNG.normal(size=40)


@pytest.fixture(scope="module", autouse=True)
def _one_blas_thread() -> Any:
    """On problems this small a second thread only waits."""
    with blas_on_one_thread():
        yield


AS_IT_IS: Any = {"normalize_y": False, "standardise": False}


def evidence(
    x: Any, y: Any, weight: Any = None, ridge: float | None = None, kind: Any = "ntk"
) -> Any:
    net = wl.ntk_dense(2, b_std=1.0)
    made = FittedKernel((net,), False, kind, "float64", Preparation(), x, "auto", None)
    made, rows = made.merged()
    weight = np.ones(len(x)) if weight is None else weight
    training = Training.of(rows, y.reshape(len(x), -1), weight, np.full(len(x), True))
    return marginal.Evidence(made, training, ridge)


CASES = {
    "plain": (X, Y, None),
    "targets": (X, np.c_[Y, Y**2], None),
    "copies": (np.r_[X, X[:9]], np.r_[Y, Y[:9] + 0.3], None),
    "weights": (np.r_[X, X[:9]], np.r_[Y, Y[:9] + 0.3], np.arange(49) % 3 + 1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ridge", [None, 0.03])
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_the_value_is_that_of_the_model_and_slopes_are_right(
    case: str, ridge: float | None, kind: Any
) -> None:
    x, y, weight = CASES[case]
    at = evidence(x, y, weight, ridge, kind)
    theta = np.log([1.2, 0.6, 0.03])[: 3 if ridge is None else 2]
    value, slope = at(theta)
    model = wl.NTKRegressor(at.network(theta), ridge=0.03, kind=kind, **AS_IT_IS)
    copies = 1 if weight is None else weight
    model.fit(np.repeat(x, copies, axis=0), np.repeat(y, copies, axis=0))
    assert value == pytest.approx(model.log_marginal_likelihood(), rel=1e-10)
    expected = approx_fprime(theta, lambda t: at(t)[0], 1e-6)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_it_is_what_scikit_learn_finds(kind: Any) -> None:
    model = wl.NTKRegressor("ntk-dense-2", kind=kind, optimize="marginal", **AS_IT_IS).fit(X, Y)
    gp = GaussianProcessRegressor(wl.NTK("ntk-dense-2", kind=kind) + WhiteKernel(0.1))
    gp.fit(X, Y)
    assert model.log_marginal_likelihood() == pytest.approx(
        gp.log_marginal_likelihood_value_, abs=0.01
    )
    np.testing.assert_allclose(model.predict(NEW), gp.predict(NEW), atol=0.05)
    dense = [layer for layer in model.net_.layers if isinstance(layer, wl.Dense)]
    assert len(dense) == 3
    assert len(set(dense)) == 1
    assert dense[0].w_std == pytest.approx(gp.kernel_.k1.w_std, rel=0.05)
    assert dense[0].b_std == pytest.approx(gp.kernel_.k1.b_std, rel=0.1)
    noise = model.solution_.statistics.ridge_absolute
    assert noise == pytest.approx(gp.kernel_.k2.noise_level, rel=0.1)


def test_a_ridge_above_0_is_kept() -> None:
    model = wl.NTKRegressor("ntk-dense-2", ridge=0.3, optimize="marginal").fit(X, Y)
    assert model.ridge_ == 0.3
    free = wl.NTKRegressor("ntk-dense-2", optimize="marginal").fit(X, Y)
    assert free.log_marginal_likelihood() > model.log_marginal_likelihood()
    assert model.net_ != free.net_
    again = wl.NTKRegressor(free.net_, ridge=free.ridge_).fit(X, Y)
    np.testing.assert_allclose(again.predict(NEW), free.predict(NEW), rtol=1e-9)
    np.testing.assert_allclose(again.predict(NEW, True)[1], free.predict(NEW, True)[1], rtol=1e-9)


def test_multiples_are_apart_where_biases_are_looked_for() -> None:
    """With the paper's presets, without biases, they would be one row."""
    x = np.r_[X[:20], 2 * X[:20]]
    y = np.sin(x[:, 0])
    model = wl.NTKRegressor("ntk-dense-1", optimize="marginal", standardise=False).fit(x, y)
    assert len(model.x_fit_) == 40


def test_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    images = rng.random((30, 4, 4, 1))
    y = images[:, 0].mean(axis=(1, 2)) + 0.01 * rng.normal(size=30)
    model = wl.NTKRegressor("cntk-vanilla-3", optimize="marginal").fit(images[:20], y[:20])
    assert model.dtype_ == "float32"
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    assert (again.optimize, again.net_, again.ridge_) == ("marginal", model.net_, model.ridge_)
    np.testing.assert_array_equal(again.predict(images[20:]), model.predict(images[20:]))


def test_diabetes_is_predicted_as_by_a_tuned_gaussian_process() -> None:
    x, y = load_diabetes(return_X_y=True)
    train, test = np.split(np.random.default_rng(0).permutation(len(x)), [200])
    model = wl.NTKRegressor("ntk-dense-2", optimize="marginal").fit(x[train], y[train])
    plain = wl.NTKRegressor("ntk-dense-2").fit(x[train], y[train])
    assert model.score(x[test], y[test]) > max(0.4, plain.score(x[test], y[test]) + 0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimize": "loo"}, 'optimize must be "marginal" or None, got'),
        ({"ridge": "loo"}, "chooses the ridge itself"),
        ({"time": 1.0}, "for the end of training"),
        ({"kernel": "precomputed"}, "is for the kernel of a network"),
        ({"solver": "cg"}, "needs a factor"),
        ({"net": ["ntk-dense-1", "ntk-dense-2"]}, "is for one network, got 2: fit each"),
    ],
)
def test_what_it_does_not_go_with(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wl.NTKRegressor(**({"optimize": "marginal"} | options)).fit(X, Y)


def test_memory_is_asked_for_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marginal, "kernel", lambda *a, **k: pytest.fail("it has begun"))
    monkeypatch.setattr(marginal, "remaining", lambda memory: 6 * 8 * 40 * 40 - 1)
    with pytest.raises(MemoryError, match="6 matrices of 40 samples"):
        wl.NTKRegressor(optimize="marginal").fit(X, Y)


def test_an_edge_is_told() -> None:
    with pytest.warns(
        UserWarning, match=r"found \w+ on the edge of what is tried, 1.0e-0\d to 1.0e"
    ):
        wl.NTKRegressor("ntk-dense-1", optimize="marginal", **AS_IT_IS).fit(X, 1e8 * Y)
