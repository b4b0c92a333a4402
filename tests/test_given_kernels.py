"""Kernels that are given: their orientation, and distributions of predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import PairwiseKernel

import widelimit as wl

NET = wl.ntk_dense(2, b_std=0.5)
RNG = np.random.default_rng(0)
X, Y, NEW = RNG.normal(size=(30, 4)), RNG.normal(size=30), RNG.normal(size=(13, 4))


def kernel(a: Any, b: Any = None, kind: Any = "nngp") -> Any:
    return wl.kernel(NET, a, b, kind=kind, dtype="float64")


def given(k: Any = None, **options: Any) -> wl.NTKRegressor:
    k = kernel(X) if k is None else k
    model = wl.NTKRegressor(kernel="precomputed", kind="nngp", ridge=1e-2, **options)
    return model.fit(k, Y)


@pytest.mark.parametrize("time", [None, 0.7])
def test_distributions_are_those_of_the_network(time: float | None) -> None:
    options: dict[str, Any] = {"ridge": 1e-2, "standardise": False, "time": time}
    network = wl.NTKRegressor(NET, kind="nngp", **options).fit(X, Y)
    model, across, own = given(time=time), kernel(NEW, X), kernel(NEW)
    for noise in (False, True):
        mean, std = network.predict(NEW, return_std=True, noise=noise)
        for k_self in (own, own.diagonal(), own.diagonal().tolist()):
            found = model.predict(across, return_std=True, noise=noise, k_self=k_self)
            np.testing.assert_allclose(found[0], mean, rtol=1e-9)
            np.testing.assert_allclose(found[1], std, rtol=1e-8)
        cov = model.predict(across, return_cov=True, noise=noise, k_self=own)[1]
        expected = network.predict(NEW, return_cov=True, noise=noise)[1]
        np.testing.assert_allclose(cov, expected, rtol=1e-7, atol=1e-10)
    drawn = model.sample_y(across, 3, k_self=own)
    np.testing.assert_allclose(drawn, network.sample_y(NEW, 3), rtol=1e-5, atol=1e-6)


def test_the_posterior_is_that_of_scikit_learn() -> None:
    linear = X @ X.T, NEW @ X.T, NEW @ NEW.T
    model = given(linear[0], normalize_y=False)
    noise = model.solution_.statistics.ridge_absolute
    peer = GaussianProcessRegressor(PairwiseKernel(metric="linear"), alpha=noise, optimizer=None)
    mean, std = peer.fit(X, Y).predict(NEW, return_std=True)
    found = model.predict(linear[1], return_std=True, k_self=linear[2])
    np.testing.assert_allclose(found[0], mean, rtol=1e-9)
    np.testing.assert_allclose(found[1], std, rtol=1e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"return_std": True}, r"themselves: give it as k_self, shape \(13,\) or \(13, 13\)$"),
        ({"return_cov": True}, r"give it as k_self, shape \(13, 13\)$"),
        ({"k_self": np.ones(13)}, "k_self is for return_std or return_cov"),
        ({"return_std": True, "k_self": np.ones(12)}, r"13 rows of X .*\(13, 13\), got \(12,\)"),
        ({"return_cov": True, "k_self": np.ones(13)}, r"shape \(13, 13\), got \(13,\)"),
        ({"return_std": True, "k_self": np.ones((13, 30))}, r"got \(13, 30\)"),
        ({"return_std": True, "k_self": np.full(13, np.nan)}, "k_self must be finite"),
        ({"return_std": True, "k_self": np.full(13, -1.0)}, "a diagonal of 0 or more"),
    ],
)
def test_the_kernel_of_new_samples_with_themselves(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        given().predict(kernel(NEW, X), **options)


def test_where_no_covariance_is() -> None:
    model = wl.NTKRegressor(kernel="precomputed", ridge=0.1).fit(kernel(X, kind="ntk"), Y)
    across, own = kernel(NEW, X, "ntk"), kernel(NEW, kind="ntk")
    for call in (
        lambda: model.predict(across, return_std=True),
        lambda: model.predict(across, return_std=True, k_self=own),
        lambda: model.noise_variance_,
    ):
        with pytest.raises(ValueError, match="kind='ntk' needs NNGP kernels beside the one"):
            call()
    network = wl.NTKRegressor(NET).fit(X, Y)
    with pytest.raises(ValueError, match="here it is computed"):
        network.predict(NEW, return_std=True, k_self=own)


@pytest.mark.parametrize("estimator", [wl.NTKClassifier, wl.NTKRegressor])
def test_the_wrong_orientation_says_which_is_wanted(estimator: Any) -> None:
    model = estimator(kernel="precomputed").fit(kernel(X), np.arange(30) % 2)
    across = kernel(NEW, X)
    assert model.predict(across).shape == (13,)
    wanted = r"one a row, and the 30 training samples, one a column, shape \(m, 30\), got "
    with pytest.raises(ValueError, match=wanted + r"\(30, 13\): .*transpose, give X.T$"):
        model.predict(across.T)
    with pytest.raises(ValueError, match=wanted + r"\(13, 13\): compute it as wl.kernel\(net, x_n"):
        model.predict(kernel(NEW))
    with pytest.raises(ValueError, match=r"the square Gram matrix .*got shape \(13, 30\)"):
        estimator(kernel="precomputed").fit(across, np.arange(13) % 2)


SERIES = np.random.default_rng(1).random((12, 20, 3))


def test_series_have_two_readings() -> None:
    both = (
        r"X\[..., None\].* image.*X\[None\].*; if they are series \(n, length, channels\), "
        r"X\[:, None\], which are images one pixel high, for cnn_1d and its like, or "
        r"X\[:, :, None\], which are images one pixel wide$"
    )
    labels = np.arange(12) % 2
    with pytest.raises(ValueError, match=both):
        wl.NTKClassifier(wl.cntk_gap(3)).fit(SERIES, labels)
    with pytest.raises(ValueError, match=both.replace("X", "x1")):
        wl.kernel(wl.cntk_gap(3), SERIES)
    with pytest.raises(ValueError, match=both):
        wl.KernelMetric(wl.cntk_gap(3))(SERIES)
    model = wl.NTKClassifier(wl.cntk_gap(3)).fit(SERIES[:, :, None], labels)
    assert model.image_shape_ == (20, 1, 3)
    # Along the axis of time it is the same network, whichever axis of an image that is.
    k = wl.kernel(wl.cntk_gap(3), SERIES[:, :, None])
    across = wl.kernel(wl.cntk_gap(3), SERIES[:, None])
    np.testing.assert_allclose(k, across, rtol=1e-5)
