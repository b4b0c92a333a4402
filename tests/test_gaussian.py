"""Kernels as scikit-learn's estimators and Gaussian processes call them."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import mpmath
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import KernelPCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge

import widelimit as wl
from widelimit.estimators import metric as metric_module

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(40, 3)), RNG.normal(size=(11, 3))
Y = np.sin(2 * X[:, 0]) - X[:, 1]
NET = wl.ntk_dense(2, b_std=0.3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Sizes of the kernels that are computed."""
    made: list[tuple[int, ...]] = []
    real = metric_module.kernel

    def spy(net: Any, x1: Any, x2: Any = None, **options: Any) -> Any:
        made.append((len(x1), *([] if x2 is None else [len(x2)])))
        return real(net, x1, x2, **options)

    monkeypatch.setattr(metric_module, "kernel", spy)
    return made


@pytest.mark.parametrize("make", [wl.KernelMetric, wl.NTK])
def test_a_pair_gives_a_float_and_rows_a_matrix(make: Any) -> None:
    k = make(NET)
    matrix = k(X, NEW)
    assert matrix.shape == (40, 11)
    one = k(X[3], NEW[5])
    assert type(one) is float
    assert one == pytest.approx(matrix[3, 5], rel=1e-12)
    assert k(X[3].tolist(), NEW[5].tolist()) == one
    assert k(X[3]) == pytest.approx(k(X)[3, 3], rel=1e-12)
    np.testing.assert_allclose(k.diag(X), np.diag(k(X)), rtol=1e-12)
    for a, b, ranks in ((X[0], NEW, "1 and 2"), (X, NEW[0], "2 and 1")):
        with pytest.raises(
            ValueError, match=rf"one sample \(d,\), or both rows .*got {ranks} axes"
        ):
            k(a, b)


@pytest.mark.parametrize("make", [wl.KernelMetric, wl.NTK])
def test_estimators_with_kernels(make: Any, calls: list[tuple[int, ...]]) -> None:
    """Each is what it is with the matrices, and asks for them as a whole."""
    kernel = make(NET)
    k, across = kernel(X), kernel(NEW, X)
    calls.clear()
    ridge = KernelRidge(alpha=0.1, kernel=kernel).fit(X, Y)
    expected = KernelRidge(alpha=0.1, kernel="precomputed").fit(k, Y).predict(across)
    np.testing.assert_allclose(ridge.predict(NEW), expected, rtol=1e-9)
    assert calls == [(40,), (11, 40)]

    components = KernelPCA(3, kernel=kernel).fit(X)
    peer = KernelPCA(3, kernel="precomputed").fit(k)
    np.testing.assert_allclose(
        abs(components.transform(NEW)), abs(peer.transform(across)), atol=1e-9
    )

    features = Nystroem(kernel, n_components=40, random_state=0).fit(X)
    made = features.transform(X)
    np.testing.assert_allclose(made @ made.T, k, atol=1e-6 * abs(k).max())

    clustered = SpectralClustering(3, affinity=kernel, random_state=0).fit(X)
    plain = SpectralClustering(3, affinity="precomputed", random_state=0).fit(k)
    np.testing.assert_array_equal(clustered.labels_, plain.labels_)
    assert all(size[0] in (11, 40) for size in calls)
    assert len(calls) < 10


@pytest.mark.parametrize("kernel", [wl.KernelMetric(NET, (1, 3)), wl.NTK(NET, 1.2, 0.4)])
def test_kernels_are_cloned_compared_and_pickled(kernel: Any) -> None:
    for copy in (clone(kernel), pickle.loads(pickle.dumps(kernel))):
        assert copy == kernel
        assert copy is not kernel
        np.testing.assert_array_equal(copy(X), kernel(X))
    assert kernel.set_params(kind="nngp") != copy


# --- hyperparameters ----------------------------------------------------------------------------


def exact(w: Any, b: Any, x: np.ndarray, z: np.ndarray, depth: int) -> tuple[Any, Any]:
    """NTK and NNGP of one pair, by the equations, to 30 digits."""
    sxx, szz, sxz = (mpmath.mpf(float(p @ q)) for p, q in ((x, x), (z, z), (x, z)))
    sxx, szz, sxz = (w**2 * s + b**2 for s in (sxx, szz, sxz))
    theta = sxz
    for _ in range(depth):
        size = mpmath.sqrt(sxx * szz)
        cosine = 1 if (x == z).all() else sxz / size
        angle = mpmath.acos(cosine)
        k0 = (mpmath.pi - angle) / (2 * mpmath.pi)
        k1 = size * (mpmath.sin(angle) + (mpmath.pi - angle) * cosine) / (2 * mpmath.pi)
        sxx, szz, sxz = (w**2 * s + b**2 for s in (sxx / 2, szz / 2, k1))
        theta = w**2 * k0 * theta + sxz
    return theta, sxz


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_derivatives_by_hyperparameters(kind: Any, depth: int) -> None:
    kernel = wl.NTK(wl.ntk_dense(depth), 1.3, 0.7, kind=kind)
    k, gradient = kernel(X[:4], eval_gradient=True)
    assert [h.name for h in kernel.hyperparameters] == ["b_std", "w_std"]
    place = 0 if kind == "ntk" else 1
    with mpmath.workdps(30):
        for i in range(4):
            for j in range(4):

                def value(b: Any, w: Any, i: int = i, j: int = j) -> Any:
                    found = exact(mpmath.exp(w), mpmath.exp(b), X[i], X[j], depth)
                    return found[place]

                at = tuple(map(mpmath.log, ("0.7", "1.3")))
                assert k[i, j] == pytest.approx(float(value(*at)), rel=1e-12)
                slopes = [float(mpmath.diff(value, at, n)) for n in ((1, 0), (0, 1))]
                np.testing.assert_allclose(gradient[i, j], slopes, rtol=1e-6)


def test_a_hyperparameter_that_is_fixed_has_no_derivative() -> None:
    kernel = wl.NTK(NET, 1.3, 0.7, b_std_bounds="fixed")
    k, gradient = kernel(X, eval_gradient=True)
    np.testing.assert_array_equal(
        gradient, wl.NTK(NET, 1.3, 0.7)(X, eval_gradient=True)[1][..., 1:]
    )
    assert kernel.theta.tolist() == [np.log(1.3)]
    homogeneous = wl.NTK(NET, 1.3, 0.0, b_std_bounds="fixed")  # 2 * 3 layers: a power of w_std
    k, gradient = homogeneous(X, eval_gradient=True)
    np.testing.assert_allclose(gradient[..., 0], 6 * k, rtol=1e-6)
    both = wl.NTK(NET, w_std_bounds="fixed", b_std_bounds="fixed")
    assert both(X, eval_gradient=True)[1].shape == (40, 40, 0)
    with pytest.raises(ValueError, match=r'b_std=0 has no logarithm .*b_std_bounds="fixed"'):
        wl.NTK(NET, b_std=0.0)(X, eval_gradient=True)
    with pytest.raises(ValueError, match="eval_gradient is for Y=None"):
        kernel(X, NEW, eval_gradient=True)


def test_all_layers_get_the_standard_deviations() -> None:
    made = wl.NTK("cntk-gap-3", 1.1, 0.2).network
    conv, dense = wl.Conv(3, 1.1, 0.2), wl.Dense(1.1, 0.2, trainable=False)
    layers = [wl.Conv(3, 1.1, 0.2, False), wl.ReLU(), conv, wl.ReLU(), wl.GlobalAvgPool(), dense]
    assert made == wl.Network(layers, scaling="paper")
    images = RNG.random((5, 4, 4, 2))
    k = wl.NTK("cntk-gap-3", 1.1, 0.2, image_shape=(4, 4, 2))
    np.testing.assert_array_equal(
        k(images.reshape(5, -1)), wl.kernel(made, images, dtype="float64")
    )
    assert k(images.reshape(5, -1), eval_gradient=True)[1].shape == (5, 5, 2)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_a_gaussian_process_fits_them_by_marginal_likelihood(kind: Any) -> None:
    y = Y + 0.4 * np.random.default_rng(1).normal(size=40)  # the NTK takes less for signal
    kernel = ConstantKernel(1.0, "fixed") * wl.NTK(NET, kind=kind) + WhiteKernel(0.1)
    gp = GaussianProcessRegressor(kernel).fit(X, y)
    best = gp.log_marginal_likelihood_value_
    theta, bounds = gp.kernel_.theta, gp.kernel_.bounds
    assert best > gp.log_marginal_likelihood(kernel.theta) + 1
    # No other is better, and the slope at the best is 0 but where a bound is in the way.
    rng = np.random.default_rng(2)
    for _ in range(20):
        other = np.clip(theta + 0.3 * rng.normal(size=3), *bounds.T)
        assert gp.log_marginal_likelihood(other) <= best + 1e-6
    _, slope = gp.log_marginal_likelihood(theta, eval_gradient=True)
    inside = (theta > bounds[:, 0] + 1e-6) & (theta < bounds[:, 1] - 1e-6)
    assert inside.all()
    np.testing.assert_allclose(slope[inside], 0, atol=0.05)
    mean, std = gp.predict(NEW, return_std=True)
    assert np.mean((mean - np.sin(2 * NEW[:, 0]) + NEW[:, 1]) ** 2) < 0.5
    assert (std > 0).all()


def test_bounds_are_kept() -> None:
    narrow = wl.NTK(NET, 1.0, 0.5, (0.9, 1.1), (0.4, 0.6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it tells of each bound that is met
        fitted = GaussianProcessRegressor(narrow, alpha=1e-4).fit(X, 30 * Y).kernel_
    assert 0.9 <= fitted.w_std <= 1.1
    assert 0.4 <= fitted.b_std <= 0.6
    assert (fitted.w_std, fitted.b_std) != (1.0, 0.5)
    assert repr(narrow).startswith("NTK(Dense")
    assert repr(wl.NTK()) == "NTK(ntk-dense-3, w_std=1.41, b_std=1)"
