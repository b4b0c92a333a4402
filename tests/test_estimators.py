"""Estimators against `KernelRidge`, closed forms, and the checks of scikit-learn."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import LinAlgWarning
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import widelimit as wl
from widelimit.backends.cpu import CpuBackend
from widelimit.estimators import base, fitted
from widelimit.machine import blas_on_one_thread
from widelimit.matrices import inputs
from widelimit.solvers import Status, encode_labels

# Targets of noise are best predicted by next to nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(ridge|time)=.loo. chose:UserWarning")

BOTH = [wl.NTKClassifier, wl.NTKRegressor]


@pytest.fixture(scope="module", autouse=True)
def _one_blas_thread():
    """On problems this small a second thread only waits, and on a busy machine for long."""
    with blas_on_one_thread():
        yield


def digits(n=None, step=1):
    x, y = load_digits(return_X_y=True)
    return x[:n:step], y[:n:step]


def dot_kernel(net, x1, x2=None, *, kind, channels="last", backend, dtype, threads):
    """A kernel in one line, in place of the real one: 1 + x.z."""
    flat1 = np.asarray(x1, float).reshape(len(x1), -1)
    flat2 = flat1 if x2 is None else np.asarray(x2, float).reshape(len(x2), -1)
    k = (1 + flat1 @ flat2.T).astype(dtype)
    if isinstance(net, list):
        k = np.stack([k] * len(net))
    return tuple([k] * len(kind)) if isinstance(kind, tuple) else k


class DotKernels:
    """In place of a prepared kernel."""

    def __init__(self, networks, samples, backend, dtype, threads):
        self.networks, self.samples = list(networks), samples
        self.options = {"backend": backend, "dtype": dtype, "threads": threads}

    def cross(self, new, kinds):
        return dot_kernel(self.networks, new, self.samples, kind=tuple(kinds), **self.options)


@pytest.fixture
def dots(monkeypatch):
    """Puts kernels in one line in place of the real ones."""
    monkeypatch.setattr(fitted, "kernel", dot_kernel)
    monkeypatch.setattr(fitted, "PreparedKernel", DotKernels)
    return monkeypatch


# --- the checks of scikit-learn -----------------------------------------------------------------

CHECKED = [
    wl.NTKClassifier(),
    wl.NTKRegressor(),
    wl.NTKClassifier(ridge="loo"),
    wl.NTKRegressor(ridge=1e-3, kind="nngp", dtype="float32"),
    wl.NTKRegressor(time="loo", ridge=1e-3),
    wl.NTKClassifier(["ntk-dense-1", "ntk-dense-3"], combine="mean", ridge=1e-3),
    wl.NTKRegressor(["ntk-dense-1", wl.ntk_dense(3)]),
    wl.NTKClassifier(ridge=1e-3, solver="cg"),
    wl.NTKRegressor("ntk-dense-1", optimize="marginal"),
]


# What is singular to rounding is solved, and warned of.
@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.filterwarnings("ignore:.* one distinct sample:UserWarning")
@pytest.mark.filterwarnings("ignore:optimize=.marginal. found:UserWarning")
@parametrize_with_checks(CHECKED)
def test_scikit_learn(estimator, check):
    check(estimator)


# --- agreement with references ------------------------------------------------------------------


def assert_like_kernel_ridge(model, k, k_new, y, ridge, x_new):
    """Predictions are those of scikit-learn with alpha = ridge trace(k)/n."""
    reference = KernelRidge(alpha=ridge * np.trace(k) / len(k), kernel="precomputed").fit(k, y)
    np.testing.assert_allclose(model.predict(x_new), reference.predict(k_new), rtol=1e-8)
    np.testing.assert_allclose(model.dual_coef_, reference.dual_coef_, rtol=1e-6)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("ridge", [1e-4, 0.5])
@pytest.mark.parametrize("targets", [(), (3,)])
def test_regressor_is_kernel_ridge(kind, ridge, targets):
    rng = np.random.default_rng(0)
    x, x_new, y = (
        rng.normal(size=(60, 4)),
        rng.normal(size=(17, 4)),
        rng.normal(size=(60, *targets)),
    )
    model = wl.NTKRegressor(
        wl.ntk_dense(3), kind=kind, ridge=ridge, normalize_y=False, standardise=False
    )
    model.fit(x, y)
    k = wl.kernel(wl.ntk_dense(3), x, kind=kind, dtype="float64")
    k_new = wl.kernel(wl.ntk_dense(3), x_new, x, kind=kind, dtype="float64")
    assert_like_kernel_ridge(model, k, k_new, y, ridge, x_new)

    other = wl.kernel(wl.ntk_dense(3), x, kind="ntk" if kind == "nngp" else "nngp", dtype="float64")
    perturbed = k.copy()
    perturbed[5, 6] = perturbed[6, 5] = perturbed[6, 5] * (1 + 1e-3)
    for wrong in (other, perturbed, k * 1.0001):  # the last: k without k_new, a wrong scale
        with pytest.raises(AssertionError):
            assert_like_kernel_ridge(model, wrong, k_new, y, ridge, x_new)
    for wrong in (1.01 * ridge, ridge / (np.trace(k) / 60)):
        with pytest.raises(AssertionError):
            assert_like_kernel_ridge(model, k, k_new, y, wrong, x_new)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_classifier_is_kernel_ridge_on_encoded_labels(classes):
    x, y = digits(400)
    x, y = x[y < classes], y[y < classes]
    names = np.array([f"digit {9 - label}" for label in y])  # sorted in another order
    half = len(x) // 2
    model = wl.NTKClassifier("ntk-dense-3", ridge=1e-3, standardise=False).fit(
        x[:half], names[:half]
    )
    assert model.classes_.tolist() == sorted(set(names))

    net = wl.ntk_dense(3)
    k = wl.kernel(net, x[:half], dtype="float64")
    k_new = wl.kernel(net, x[half:], x[:half], dtype="float64")
    targets = (names[:half, None] == model.classes_) - 1 / classes
    reference = KernelRidge(alpha=1e-3 * np.trace(k) / half, kernel="precomputed").fit(k, targets)
    outputs = reference.predict(k_new)
    expected = outputs[:, 1] if classes == 2 else outputs
    np.testing.assert_allclose(model.decision_function(x[half:]), expected, atol=1e-9)
    predicted = model.predict(x[half:])
    np.testing.assert_array_equal(predicted, model.classes_[outputs.argmax(axis=1)])
    assert model.score(x[half:], names[half:]) == np.mean(predicted == names[half:]) > 0.9


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 40),
    d=st.integers(2, 6),
    targets=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_without_ridge_the_data_are_met(n, d, targets, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = rng.normal(size=(n, targets)) if targets else rng.normal(size=n)
    model = wl.NTKRegressor("ntk-dense-3", normalize_y=False, standardise=False).fit(x, y)
    assert model.predict(x).shape == model.dual_coef_.shape == y.shape
    # The error of the solution at its own data is rounding, times the size of the coefficients.
    k = wl.kernel(wl.ntk_dense(3), x, dtype="float64")
    tolerance = 1e-14 * n * np.abs(k).max() * np.abs(model.dual_coef_).max()
    np.testing.assert_allclose(model.predict(x), y, atol=tolerance)


@pytest.mark.filterwarnings("ignore:X lies far")  # from two samples, most others do
@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 40), d=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_samples_does_not_matter(n, d, seed):
    rng = np.random.default_rng(seed)
    x, y, new, order = (
        rng.normal(size=(n, d)),
        rng.normal(size=n),
        rng.normal(size=(5, d)),
        rng.permutation(n),
    )
    first = wl.NTKRegressor(ridge=1e-3).fit(x, y).predict(new)
    second = wl.NTKRegressor(ridge=1e-3).fit(x[order], y[order]).predict(new)
    np.testing.assert_allclose(second, first, atol=1e-9)
    third = wl.NTKRegressor(ridge=1e-3).fit(x, np.roll(y, 1)).predict(new)
    assert np.abs(third - first).max() > 1e-6  # the order of y alone does


def test_targets_are_independent():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 4))
    together = wl.NTKRegressor(ridge=0.1).fit(x, y).predict(x[::2] + 0.1)
    for j in range(4):
        alone = wl.NTKRegressor(ridge=0.1).fit(x, y[:, j]).predict(x[::2] + 0.1)
        np.testing.assert_allclose(together[:, j], alone, rtol=1e-10)


def test_there_is_no_intercept():
    # A network without biases is homogeneous: f(2 z) = 2 f(z), f(0) = 0. An intercept breaks both.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    model = wl.NTKRegressor(wl.ntk_dense(3), ridge=0.1, normalize_y=False, standardise=False)
    model.fit(x, 100 + rng.normal(size=30))
    np.testing.assert_array_equal(model.predict(np.zeros((1, 5))), [0.0])
    new = rng.normal(size=(9, 5))
    np.testing.assert_allclose(model.predict(2 * new), 2 * model.predict(new), rtol=1e-12)
    assert abs(model.predict(x).mean()) > 50


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [None, wl.cntk_vanilla(4), wl.ntk_dense(2)])
@pytest.mark.parametrize("estimator", BOTH)
def test_rows_are_images(estimator, net):
    x, y = digits(60)
    images = x.reshape(-1, 8, 8, 1)
    new = x[20:33] + 1.0
    net = wl.cntk_gap(3) if net is None else net
    by_rows = estimator(net, image_shape=(8, 8)).fit(x, y)
    by_images = estimator(net).fit(images, y)
    assert by_rows.image_shape_ == by_images.image_shape_ == (8, 8, 1)
    assert by_rows.n_features_in_ == by_images.n_features_in_ == 64
    assert by_images.x_fit_.shape == by_rows.x_fit_.shape == (60, 8, 8, 1)
    expected = by_rows.predict(new)
    np.testing.assert_array_equal(by_images.predict(new.reshape(-1, 8, 8, 1)), expected)
    np.testing.assert_array_equal(by_rows.predict(new.reshape(-1, 8, 8, 1)), expected)
    np.testing.assert_array_equal(by_images.predict(new), expected)
    both = estimator(net, image_shape=[np.int64(8), 8, 1]).fit(images, y)
    np.testing.assert_array_equal(both.predict(images.tolist()), by_rows.predict(x))


def test_the_order_of_pixels_matters():
    x, y = digits(80)
    turned = x.reshape(-1, 2, 32, 1).reshape(-1, 4, 16, 1)
    first = wl.NTKRegressor(wl.cntk_gap(3)).fit(x.reshape(-1, 8, 8, 1), y)
    second = wl.NTKRegressor(wl.cntk_gap(3)).fit(turned, y)
    assert not np.allclose(first.predict(x[:9] + 1), second.predict(x[:9] + 1), rtol=1e-3)


@pytest.mark.filterwarnings("ignore:X lies far from the training samples:UserWarning")  # dark
def test_bytes_are_numbers():
    x, y = digits(50)
    images = (15 * x).reshape(-1, 8, 8, 1).astype(np.uint8)
    model = wl.NTKClassifier(wl.cntk_gap(3)).fit(images, y)
    assert model.x_fit_.dtype == np.uint8
    same = wl.NTKClassifier(wl.cntk_gap(3)).fit(images.astype(float), y)
    new = images[:7] // 2
    np.testing.assert_array_equal(model.decision_function(new), same.decision_function(new))


def test_default_networks():
    x, y = digits(12)
    rows = wl.NTKClassifier().fit(x, y)
    default = wl.ntk_dense(3, b_std=1.0)
    assert (rows.net_, rows.image_shape_, rows.dtype_) == (default, None, "float64")
    for model in (
        wl.NTKClassifier(image_shape=(8, 8)).fit(x, y),
        wl.NTKClassifier().fit(x.reshape(-1, 8, 8, 1), y),
    ):
        assert (model.net_, model.dtype_) == (wl.myrtle(5), "float32")
        assert model.net is None
        assert model.kind_ == "ntk"
    small = wl.NTKClassifier().fit(x.reshape(-1, 8, 8, 1)[:, :7], y)
    assert small.net_ == wl.cntk_gap(depth=11)
    double = wl.NTKClassifier(image_shape=(8, 8), dtype="float64").fit(x, y)
    assert double.dtype_ == "float64"
    close = model.decision_function(x[:5] + 1), double.decision_function(x[:5] + 1)
    np.testing.assert_allclose(*close, atol=1e-4)
    assert not np.array_equal(*close)


@pytest.mark.parametrize("depth", [3, 11])
def test_float32_serves_digits_without_ridge(depth):
    x, y = digits(step=9)  # 200 samples
    x = x.reshape(-1, 8, 8, 1)
    single, double = (
        wl.NTKClassifier(wl.cntk_gap(depth), dtype=dtype).fit(x[:100], y[:100])
        for dtype in ("float32", "float64")
    )
    assert single.solution_.status is Status.SOLVED
    gap = single.decision_function(x[100:]) - double.decision_function(x[100:])
    assert 0 < np.abs(gap).max() < 1e-4
    assert single.score(x[100:], y[100:]) == double.score(x[100:], y[100:]) > 0.85


# --- around an injected kernel ------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 30, 64, 65, 10**9])
def test_blocks_of_new_samples(dots, block):
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(6, 9)), rng.normal(size=(6, 2)), rng.normal(size=(23, 9))
    dots.setattr(base, "_BLOCK_ENTRIES", block)
    coefficients = np.linalg.solve(1 + x @ x.T + 0.2 * np.mean(1 + (x**2).sum(1)) * np.eye(6), y)
    model = wl.NTKRegressor(standardise=False, ridge=0.2, normalize_y=False).fit(x, y)
    np.testing.assert_allclose(model.predict(new), (1 + new @ x.T) @ coefficients, rtol=1e-10)


def test_blocks_have_the_size_that_fits(dots):
    sizes, cross = [], DotKernels.cross
    dots.setattr(DotKernels, "cross", lambda *a: sizes.append(len(a[1])) or cross(*a))
    dots.setattr(base, "_BLOCK_ENTRIES", 64)
    rng = np.random.default_rng(0)
    model = wl.NTKRegressor(ridge=0.2, standardise=False)
    model.fit(rng.normal(size=(6, 9)), rng.normal(size=6))
    new = rng.normal(size=(23, 9))
    for ask in (model.predict, model.influence, lambda x: model.predict(x, return_std=True)):
        sizes.clear()
        ask(new)
        assert sizes == [10, 10, 3]


def test_training_samples_are_prepared_once(monkeypatch):
    profiled, hashed = [], []
    profile, digest = CpuBackend.profile, inputs._digest
    monkeypatch.setattr(CpuBackend, "profile", lambda *a: profiled.append(len(a[2])) or profile(*a))
    monkeypatch.setattr(inputs, "_digest", lambda row: hashed.append(1) or digest(row))
    monkeypatch.setattr(base, "_BLOCK_ENTRIES", 500 * 50)
    rng = np.random.default_rng(0)
    x, new = rng.random((500, 4, 4, 1)), rng.random((200, 4, 4, 1))
    model = wl.NTKRegressor("cntk-vanilla-3", ridge=1e-3, normalize_y=False).fit(
        x, rng.normal(size=500)
    )
    for expected in (700, 200):  # 200 new samples, in four blocks
        profiled.clear()
        hashed.clear()
        model.predict(new)
        assert sum(profiled) == len(hashed) == expected


def test_what_the_kernel_is_asked_for(monkeypatch):
    calls = []

    def spy(net, x1, x2=None, **options):
        calls.append((net, np.shape(x1), np.shape(x2), options))
        return dot_kernel(net, x1, x2, **options)

    class Spies(DotKernels):
        def cross(self, new, kinds):
            return spy(self.networks, new, self.samples, kind=tuple(kinds), **self.options)

    monkeypatch.setattr(fitted, "kernel", spy)
    monkeypatch.setattr(fitted, "PreparedKernel", Spies)
    net = wl.cntk_vanilla(3)
    options = {
        "kind": "nngp",
        "channels": "last",
        "backend": "cpu",
        "dtype": "float64",
        "threads": 3,
    }
    x = np.random.default_rng(0).normal(size=(5, 4, 3, 2))
    model = wl.NTKRegressor(net, ridge=1.0, **options).fit(x, np.arange(5))
    # Where to compute may change after fit; what was fitted may not.
    model.set_params(
        net=wl.cntk_gap(4), kind="ntk", dtype="float32", backend="reference", threads=1
    )
    model.predict(x[:2])
    model.set_params(backend="cpu", threads=2).predict(x[:2])
    later = {"kind": ("nngp",), "backend": "reference", "dtype": "float64", "threads": 1}
    assert calls == [
        (net, (5, 4, 3, 2), (), options | {"channels": "last"}),
        ([net], (2, 4, 3, 2), (5, 4, 3, 2), later),
        ([net], (2, 4, 3, 2), (5, 4, 3, 2), later | {"backend": "cpu", "threads": 2}),
    ]


def test_an_ill_conditioned_solution_warns(monkeypatch):
    def flat(net, x1, x2=None, **options):
        return np.diag(np.r_[np.ones(len(x1) - 1), 1e-8]).astype("float32")

    monkeypatch.setattr(fitted, "kernel", flat)
    x, y = digits(20)
    with pytest.warns(LinAlgWarning, match="add a relative ridge") as caught:
        model = wl.NTKClassifier().fit(x, y)
    assert caught[0].filename == __file__
    assert model.solution_.status is Status.ILL_CONDITIONED


@pytest.mark.parametrize(
    "options",
    [
        {"ridge": -1},
        {"ridge": np.nan},
        {"memory": "much"},
        {"kind": "cntk"},
        {"net": "gap"},
        {"image_shape": (9, 9)},
    ],
)
@pytest.mark.parametrize("estimator", BOTH)
def test_errors_come_before_the_work(monkeypatch, estimator, options):
    def never(*arguments, **options):
        raise AssertionError("the kernel was computed")

    monkeypatch.setattr(fitted, "kernel", never)
    with pytest.raises((TypeError, ValueError)):
        estimator(**options).fit(*digits(20))


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_solution_reports_the_ridge_used(ridge):
    x, y = digits(50)
    model = wl.NTKClassifier(wl.ntk_dense(3), ridge=ridge, standardise=False).fit(x, y)
    diagonal = np.diag(wl.kernel(wl.ntk_dense(3), x, dtype="float64"))
    statistics = model.solution_.statistics
    assert statistics.ridge == ridge
    assert statistics.ridge_absolute == pytest.approx(ridge * diagonal.mean(), rel=1e-12)
    np.testing.assert_array_equal(model.dual_coef_, model.solution_.value)
    encoded = encode_labels(y, model.classes_)
    np.testing.assert_allclose(
        model.decision_function(x) + statistics.ridge_absolute * model.dual_coef_,
        encoded,
        atol=1e-9,
    )


# --- life in scikit-learn -----------------------------------------------------------------------


@pytest.mark.parametrize("estimator", BOTH)
def test_clone_pickle_and_parameters(estimator):
    net = wl.cntk_gap(3)
    model = estimator(net, ridge=0.1, image_shape=(8, 8), threads=1)
    parameters = model.get_params()
    own = {"loo_scoring": "squared", "class_weight": None}
    if estimator is wl.NTKRegressor:
        own = {"normalize_y": True, "optimize": None}
    assert parameters == own | {
        "net": net,
        "kernel": "network",
        "kind": "ntk",
        "ridge": 0.1,
        "combine": "best",
        "time": None,
        "standardise": None,
        "image_shape": (8, 8),
        "channels": None,
        "normalise": None,
        "whiten": None,
        "dtype": None,
        "backend": "auto",
        "threads": 1,
        "solver": "auto",
        "store": None,
        "memory": None,
        "executor": None,
        "progress": False,
    }
    x, y = digits(30)
    model.fit(x, y)
    assert clone(model).get_params() == model.get_params() == parameters
    with pytest.raises(NotFittedError):
        clone(model).predict(x)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(x[::3] + 1), model.predict(x[::3] + 1))
    assert again.solution_.statistics == model.solution_.statistics
    assert "ridge=0.1" in repr(model)


def test_progress_is_told_as_elsewhere(tmp_path):
    x, y = digits(30)

    class Told(list):  # empty at first, and so not true
        def __call__(self, state):
            self.append(state)

    shares, tiles = Told(), Told()
    model = wl.NTKClassifier(wl.ntk_dense(2), progress=shares).fit(x, y)
    assert shares[-1] == 1.0
    assert clone(model).progress is model.progress  # an object of its own would tell nobody
    wl.NTKClassifier(wl.ntk_dense(2), progress=tiles, store=tmp_path / "s").fit(x, y)
    assert tiles[-1].share == 1.0
    wl.save_model(model, tmp_path / "m")  # what is told is no part of a model
    assert wl.load_model(tmp_path / "m").progress is False
    with pytest.raises(TypeError, match="progress must be True, False or a callable, got 1"):
        wl.NTKClassifier(progress=1).fit(x, y)
    with pytest.raises(TypeError, match="verbose"):
        wl.NTKClassifier(verbose=True)


def test_pipeline_and_grid_search():
    x, y = digits(300)
    pipeline = make_pipeline(MinMaxScaler(), wl.NTKClassifier())
    assert cross_val_score(pipeline, x, y).min() > 0.85
    networks = [wl.ntk_dense(2), wl.Network([wl.Dense()])]  # the second is linear, of rank 64
    grid = {"net": networks, "ridge": [1e-6, 10.0]}
    search = GridSearchCV(wl.NTKClassifier(), grid).fit(x, y)
    assert search.best_params_ == {"net": networks[0], "ridge": 1e-6}


def test_a_failed_fit_keeps_the_shape_of_targets():
    x, y = digits(30)
    model = wl.NTKRegressor(ridge=1e-3).fit(x, y)
    before = model.predict(x)
    with pytest.raises(ValueError, match="with kernel='precomputed'"):
        model.set_params(kernel="precomputed").fit(x, np.c_[y, y])
    np.testing.assert_array_equal(model.set_params(kernel="network").predict(x), before)
    model.partial_fit(x[:1], y[:1])
    assert model.predict(x).shape == model.loo_predictions_[:30].shape == (30,)
    assert model.fit(x, y[:, None]).predict(x).shape == (30, 1)


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize("where", ["base.regress", "base.warn", "base.NTKEstimator._keep"])
def test_a_failed_fit_leaves_all_that_was_there(monkeypatch, estimator, where):
    """Whenever it fails: also what is known of the columns of X."""
    pandas = pytest.importorskip("pandas")
    x, y = digits(30)
    frame = pandas.DataFrame(x, columns=[f"p{i}" for i in range(64)])
    model = estimator(ridge=1e-3).fit(frame, y)
    before, outputs = dict(model.__dict__), model.predict(frame)

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"widelimit.estimators.{where}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(IMAGES[:, :4, :4], LABELS)
    monkeypatch.undo()
    assert model.__dict__.keys() == before.keys()
    assert all(model.__dict__[name] is value for name, value in before.items())
    np.testing.assert_array_equal(model.predict(frame), outputs)


@pytest.mark.parametrize("later", [False, True])
def test_labels_without_a_temperature_are_not_added(monkeypatch, later):
    x, y = digits(30)
    model = wl.NTKClassifier(ridge=1e-3)
    if later:
        model.fit(x, y)
    before = dict(model.__dict__)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("widelimit.estimators.classifier.fit_temperature", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(x + 1, y + 1)
    assert model.__dict__ == before


@pytest.mark.parametrize("estimator", BOTH)
def test_a_failed_fit_is_no_fit(estimator):
    x, y = digits(30)
    model = estimator(wl.Network([wl.Dense()]), ridge=1e-17, standardise=False)
    collinear = np.concatenate([x, x + x[::-1]])  # linear: the kernel has the rank of x
    with pytest.raises(np.linalg.LinAlgError, match="add a larger relative ridge"):
        model.fit(collinear, np.repeat(y, 2))
    with pytest.raises(NotFittedError):
        model.predict(x)
    model.fit(x, y)
    expected = model.predict(x)
    with pytest.raises(np.linalg.LinAlgError):
        model.fit(collinear, np.repeat(y + 1, 2))
    np.testing.assert_array_equal(model.predict(x), expected)


# --- errors -------------------------------------------------------------------------------------

ROWS, LABELS = digits(30)
IMAGES = ROWS.reshape(-1, 8, 8, 1)
NAN = np.where(np.arange(64) == 5, np.nan, ROWS)


@pytest.mark.parametrize(
    ("options", "x", "error", "message"),
    [
        ({"image_shape": (8, 9)}, ROWS, ValueError, r"\(8, 9, 1\) holds 72 .*64: .* = 64$"),
        ({"image_shape": (4, 4)}, ROWS, ValueError, r"holds 16 .*holds 64:.*example \(4, 4, 4\)"),
        ({"image_shape": (4, 16)}, IMAGES, ValueError, r"\(4, 16, 1\).*shape \(8, 8, 1\): leave"),
        ({"image_shape": (64,)}, ROWS, ValueError, r"\(h, w, c\) or \(h, w\).*got \(64,\): give"),
        ({"image_shape": (8, 8, 1, 1)}, ROWS, ValueError, r"got \(8, 8, 1, 1\)"),
        ({"image_shape": (8, 0)}, ROWS, ValueError, r"integers >= 1.*got \(8, 0\)"),
        ({"image_shape": (8.0, 8)}, ROWS, ValueError, r"integers >= 1.*got \(8.0, 8\)"),
        ({"image_shape": (True, 64)}, ROWS, ValueError, r"got \(True, 64\)"),
        ({"image_shape": "88"}, ROWS, TypeError, r"image_shape must be .*got '88' \(str\)"),
        ({"image_shape": 8}, ROWS, TypeError, r"image_shape must be .*got 8 \(int\)"),
        ({"net": wl.cntk_gap(3)}, ROWS, ValueError, r"reads images.*rows of 64 .*set image_shape"),
        ({"net": [3]}, ROWS, TypeError, r"net must be a Network, the name.*, got 3: use"),
        ({"net": []}, ROWS, ValueError, r"non-empty list"),
        ({"net": "cntk-gap"}, ROWS, ValueError, r"needs a depth, as in cntk-gap-11"),
        ({"net": "vgg-16"}, ROWS, ValueError, r"cntk-gap-DEPTH.*got 'vgg-16'"),
        ({"ridge": "best"}, ROWS, ValueError, r'ridge must be a number or "loo", got'),
        ({"time": "never"}, ROWS, ValueError, r'time must be a number or "loo", got'),
        ({"time": -1.0}, ROWS, ValueError, r"time must be 0 or more, got -1.0"),
        ({"ridge": "loo", "time": 1.0}, ROWS, ValueError, r"got a time as well"),
        ({"combine": "sum"}, ROWS, ValueError, r'combine must be "best" or "mean", got'),
        ({"solver": "lu"}, ROWS, ValueError, r"solver must be .*got 'lu'"),
        ({"kernel": "rbf"}, ROWS, ValueError, r"kernel must be .*got 'rbf'"),
        ({"kernel": "precomputed"}, ROWS, ValueError, r"square Gram matrix.*\(30, 64\)"),
        ({"kernel": "precomputed"}, IMAGES, ValueError, r"X is the Gram matrix.*images"),
        ({"solver": "cg", "ridge": "loo"}, ROWS, ValueError, r"need a factor"),
        ({"solver": "cg", "net": ["ntk-dense-1"] * 2}, ROWS, ValueError, r"choice among networks"),
        ({"memory": "much"}, ROWS, ValueError, r"memory"),
        ({"executor": object()}, ROWS, ValueError, r"executor needs store"),
        ({"kernel": "precomputed", "executor": object()}, ROWS, ValueError, r"for kernels of net"),
        ({"kernel": "precomputed", "store": "s"}, ROWS, ValueError, r"for kernels of networks"),
        ({"standardise": 1}, ROWS, TypeError, r"standardise must be True, False or None"),
        ({"kind": ("ntk", "nngp")}, ROWS, ValueError, r"kind must be .*got \('ntk', 'nngp'\)"),
        ({"dtype": "float16"}, ROWS, ValueError, "dtype must be .*float16"),
        ({"backend": "tpu"}, ROWS, ValueError, "backend must be .*tpu"),
        ({"ridge": -1.0}, ROWS, ValueError, "ridge must be finite and >= 0, got -1.0"),
        ({"ridge": None}, ROWS, TypeError, "ridge must be a number, got None"),
        ({}, NAN, ValueError, "Input X contains NaN"),
        ({}, NAN.reshape(-1, 8, 8, 1), ValueError, "Input X contains NaN"),
        ({}, IMAGES[..., 0], ValueError, r"or images \(n, h, w, c\), got shape \(30, 8, 8\): give"),
        ({}, IMAGES[None], ValueError, r"or images .*got shape \(1, 30, 8, 8, 1\)"),
    ],
)
@pytest.mark.parametrize("estimator", BOTH)
def test_bad_fit(estimator, options, x, error, message):
    with pytest.raises(error, match=message):
        estimator(**options).fit(x, LABELS)


def test_bad_labels():
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1 class, \['a'\]: add samples"):
        wl.NTKClassifier().fit(ROWS, np.full(30, "a"))
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        wl.NTKClassifier().fit(ROWS, LABELS + 0.5)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        wl.NTKClassifier().fit(ROWS, LABELS[:-1])
    with pytest.raises(ValueError, match="Input y contains NaN"):
        wl.NTKRegressor().fit(ROWS, np.where(LABELS == 3, np.nan, LABELS))
    with pytest.warns(DataConversionWarning, match="column-vector"):
        wl.NTKClassifier().fit(ROWS, LABELS[:, None])


@pytest.mark.parametrize("estimator", BOTH)
def test_samples_unlike_those_of_fit(estimator):
    by_images = estimator(wl.cntk_gap(3)).fit(IMAGES, LABELS)
    by_rows = estimator().fit(ROWS, LABELS)
    with pytest.raises(ValueError, match=r"of fit, images \(8, 8, 1\), got images \(4, 16, 1\)"):
        by_images.predict(IMAGES.reshape(-1, 4, 16, 1))
    with pytest.raises(ValueError, match=r"X has 63 features, but NTK.* is expecting 64 features"):
        by_images.predict(ROWS[:, 1:])
    with pytest.raises(ValueError, match=r"of fit, rows of 64 values, got images \(8, 8, 1\)"):
        by_rows.predict(IMAGES)
    with pytest.raises(ValueError, match=r"got shape \(8, 8, 1\): give .*X\[None\] for a single"):
        by_images.predict(IMAGES[0])
    with pytest.raises(ValueError, match="Input X contains NaN"):
        by_images.predict(NAN)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_a_network_that_is_not_trained_has_no_tangent_kernel(kind: Any) -> None:
    x, y = np.random.default_rng(0).normal(size=(12, 5)), np.arange(12) % 2
    net = wl.Network([wl.Dense(trainable=False), wl.ReLU(), wl.Dense(trainable=False)])
    model = wl.NTKClassifier(net, kind=kind)
    if kind == "nngp":
        model.fit(x, y)
        return
    with pytest.raises(ValueError, match="tangent kernel is 0: set trainable=True"):
        model.fit(x, y)
