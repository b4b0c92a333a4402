"""What estimators tell beside predictions: leave-one-out, distributions, times, influence."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC
from stores import disk_of

import widelimit as wl
from widelimit.estimators import base, fitted
from widelimit.estimators import metric as metric_module
from widelimit.estimators import regression as regression_module
from widelimit.estimators.calibration import fit_temperature, log_softmax
from widelimit.machine import default_threads
from widelimit.solvers import CholeskyFactor, Status, TiledFactor
from widelimit.solvers.solution import failed

# Targets of noise are best predicted by next to nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(ridge|time)=.loo. chose:UserWarning")

# The regressions of the paper, on samples and targets as they are.
Regressor = partial(wl.NTKRegressor, normalize_y=False, standardise=False)
Classifier = partial(wl.NTKClassifier, standardise=False)

NET = wl.Network([wl.Dense(1.4, 0.3), wl.ReLU(), wl.Dense(1.4, 0.3), wl.ReLU(), wl.Dense(1, 0.2)])


def regression(n=60, m=17, targets=(), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)), rng.normal(size=(n, *targets)), rng.normal(size=(m, 4))


def digits(n, seed=0):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))[:n]
    return x[order] / 16, y[order]


# --- leave-one-out ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"ridge": 1e-2}, {"time": 0.3}, {"ridge": "loo"}])
def test_leave_one_out_is_a_fit_without_one(options):
    x, y, _ = regression()
    model = Regressor(NET, **options).fit(x, y)
    k = wl.kernel(NET, x, dtype="float64")
    ridge = model.solution_.statistics.ridge_absolute
    expected = np.empty(60)
    for i in range(60):
        rest = np.arange(60) != i
        inner = k[np.ix_(rest, rest)]
        if "time" in options:  # a precomputed kernel, and the same time
            one = Regressor(kernel="precomputed", time=0.3).fit(inner, y[rest])
        else:
            one = KernelRidge(alpha=ridge, kernel="precomputed").fit(inner, y[rest])
        expected[i] = one.predict(k[i : i + 1, rest])[0]
    np.testing.assert_allclose(model.loo_predictions_, expected, atol=1e-10)
    assert model.loo_score_ == pytest.approx(-np.mean((y - expected) ** 2), rel=1e-10)
    influence = (y - expected) ** 2 - (y - model.predict(x)) ** 2
    np.testing.assert_allclose(model.self_influence_, influence, atol=1e-9)


def test_ridge_by_leave_one_out():
    x, y, _ = regression(80)
    y = x[:, 0] + y  # half of it noise: some ridge is best
    model = Regressor(NET, ridge="loo").fit(x, y)
    assert model.loo_grid_[0] < model.ridge_ < model.loo_grid_[-1]
    best = int(np.argmax(model.loo_curve_))
    assert model.ridge_ == model.loo_grid_[best]
    assert model.loo_score_ == model.loo_curve_[best]
    for place in (3, best, 18):
        alone = Regressor(NET, ridge=model.loo_grid_[place]).fit(x, y)
        assert alone.loo_score_ == pytest.approx(model.loo_curve_[place], rel=1e-9)
    same = Regressor(NET, ridge=model.ridge_).fit(x, y)
    np.testing.assert_allclose(model.dual_coef_, same.dual_coef_, rtol=1e-9)


def test_early_stopping_by_leave_one_out():
    x, y, new = regression(80)
    y = x[:, 0] + y
    model = Regressor(NET, time="loo").fit(x, y)
    best = int(np.argmax(model.loo_curve_))
    assert 0 < best < len(model.loo_grid_) - 1
    assert model.time_ == model.loo_grid_[best]
    assert model.loo_score_ > Regressor(NET).fit(x, y).loo_score_
    same = Regressor(NET, time=model.time_).fit(x, y)
    np.testing.assert_allclose(model.predict(new), same.predict(new), rtol=1e-9)


@pytest.mark.parametrize("estimator", [wl.NTKClassifier, wl.NTKRegressor])
def test_networks_by_leave_one_out(estimator):
    x, y = digits(90)
    nets = ["ntk-dense-1", wl.cntk_gap(3), wl.cntk_vanilla(3).to_json()]
    model = estimator(nets, image_shape=(8, 8), ridge="loo").fit(x, y)
    alone = [
        estimator(net, image_shape=(8, 8), ridge="loo", dtype="float32").fit(x, y) for net in nets
    ]
    scores = [one.loo_score_ for one in alone]
    assert model.loo_curve_.shape == (3, len(model.loo_grid_))
    np.testing.assert_allclose(model.loo_curve_.max(axis=1), scores, rtol=1e-5)
    assert model.loo_score_ == model.loo_curve_.max()
    chosen = alone[int(np.argmax(scores))]
    assert model.net_ == chosen.net_
    np.testing.assert_allclose(model.dual_coef_, chosen.dual_coef_, rtol=1e-4, atol=1e-6)


def test_networks_have_times_of_their_own():
    x, y, new = regression(40)
    y = x[:, 0] + y
    nets = [NET, wl.Network([wl.Dense(30, 9), wl.ReLU(), wl.Dense(10)])]  # of another scale
    model = Regressor(nets, time="loo").fit(x, y)
    alone = [Regressor(net, time="loo").fit(x, y) for net in nets]
    assert model.loo_grid_.shape == model.loo_curve_.shape == (2, len(alone[0].loo_grid_))
    for name in ("loo_grid_", "loo_curve_"):
        expected = np.stack([getattr(one, name) for one in alone])
        np.testing.assert_allclose(getattr(model, name), expected, rtol=1e-9)
    best = int(np.argmax([one.loo_score_ for one in alone]))
    assert model.net_ == nets[best]
    place = model.loo_curve_[best].argmax()
    assert model.time_ == model.loo_grid_[best, place]
    assert len(list(model.staged_predict(new, model.loo_grid_))) == model.loo_grid_.size
    one = Regressor([NET], time="loo").fit(x, y)
    assert one.loo_grid_.shape == one.loo_curve_.shape == (len(alone[0].loo_grid_),)


@pytest.mark.parametrize("size", [1e200, 1e-200])
@pytest.mark.parametrize("options", [{}, {"ridge": "loo"}, {"solver": "cg", "ridge": 0.1}])
def test_targets_whose_squares_are_no_numbers(size, options):
    x, y, new = regression(20)
    with pytest.raises(ValueError, match=r"y must be 0, or 1e-100 to 1e\+100 in size.*divide y"):
        Regressor(NET, **options).fit(x, size * y)
    plain = Regressor(NET, **options).fit(x, y)
    scale = 1e98 if size > 1 else 1e-98
    large = Regressor(NET, **options).fit(x, scale * y)
    np.testing.assert_allclose(large.predict(new), scale * plain.predict(new), rtol=1e-9)
    if "solver" not in options:
        np.testing.assert_allclose(large.loo_score_, scale**2 * plain.loo_score_, rtol=1e-9)
        before = large.predict(new)
        with pytest.raises(ValueError, match="y must be 0, or"):
            large.partial_fit(x[:1] + 1, [1e200])
        np.testing.assert_array_equal(large.predict(new), before)


def test_mean_of_kernels():
    x, y = digits(60)
    images = x.reshape(-1, 8, 8, 1)
    nets = [wl.cntk_gap(3), wl.cntk_gap(4)]
    model = Regressor(nets, combine="mean", dtype="float64").fit(images[:40], y[:40])
    assert model.net_ == tuple(nets)
    k = wl.kernel(nets, images, dtype="float64").mean(axis=0)
    expected = k[40:, :40] @ np.linalg.solve(k[:40, :40], y[:40])
    np.testing.assert_allclose(model.predict(images[40:]), expected, rtol=1e-8)
    mean, std = model.predict(images[40:], return_std=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-8)
    assert np.all(std > 0)


# --- equal samples, weights ---------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_a_weight_is_a_number_of_copies(ridge):
    x, y, new = regression(30, targets=(2,))
    counts = np.random.default_rng(1).integers(0, 4, 30)
    weighted = Regressor(NET, ridge=ridge).fit(x, y, sample_weight=counts)
    copies = Regressor(NET, ridge=ridge).fit(x.repeat(counts, 0), y.repeat(counts, 0))
    np.testing.assert_allclose(weighted.predict(new), copies.predict(new), rtol=1e-9)
    assert weighted.loo_score_ == pytest.approx(copies.loo_score_)
    assert len(copies.x_fit_) == np.count_nonzero(counts)
    if ridge:
        plain = KernelRidge(
            alpha=weighted.solution_.statistics.ridge_absolute, kernel="precomputed"
        )
        plain.fit(wl.kernel(NET, x, dtype="float64"), y, sample_weight=counts)
        expected = plain.predict(wl.kernel(NET, new, x, dtype="float64"))
        np.testing.assert_allclose(weighted.predict(new), expected, rtol=1e-8)
        assert (
            np.abs(weighted.predict(new) - Regressor(NET, ridge=ridge).fit(x, y).predict(new)).max()
            > 1e-3
        )


def test_a_weight_of_labels_is_a_number_of_copies():
    x, y = digits(120)
    counts = np.random.default_rng(1).integers(0, 6, 120) * (y != 4)  # there are no fours
    weighted = Classifier(wl.ntk_dense(3)).fit(x, y, sample_weight=counts)
    copies = Classifier(wl.ntk_dense(3)).fit(x.repeat(counts, 0), y.repeat(counts))
    assert weighted.classes_.tolist() == copies.classes_.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert weighted.temperature_ == pytest.approx(copies.temperature_)
    assert weighted.loo_accuracy_ == pytest.approx(copies.loo_accuracy_)
    np.testing.assert_allclose(weighted.predict_proba(x), copies.predict_proba(x), rtol=1e-6)
    # It would be noticed if all weighed the same.
    counted = counts[counts > 0]
    right = weighted.loo_predictions_[counts > 0].argmax(axis=1) == weighted._labels
    assert abs(np.average(right, weights=counted) - right.mean()) > 1e-3
    # Added later, too: what does not count brings no label.
    later = Classifier(wl.ntk_dense(3)).fit(x[:60], y[:60], sample_weight=counts[:60])
    later.partial_fit(x[60:], y[60:], sample_weight=counts[60:])
    assert later.classes_.tolist() == weighted.classes_.tolist()
    np.testing.assert_allclose(later.predict_proba(x), weighted.predict_proba(x), rtol=1e-6)


def test_equal_samples_with_unequal_targets():
    x, y, new = regression(20)
    twice = np.r_[0:20, 5, 5]
    targets = y[twice] + np.r_[np.zeros(20), 1.0, 4.0]
    model = Regressor(NET, ridge=0.05).fit(x[twice], targets)
    k = wl.kernel(NET, x[twice], dtype="float64")
    ridge = 0.05 * np.trace(k) / 22
    expected = wl.kernel(NET, new, x[twice], dtype="float64") @ np.linalg.solve(
        k + ridge * np.eye(22), targets
    )
    np.testing.assert_allclose(model.predict(new), expected, rtol=1e-9)
    # Without a ridge the limit of training: the mean target.
    limit = Regressor(NET).fit(x[twice], targets)
    np.testing.assert_allclose(limit.predict(x[5:6]), np.mean(targets[[5, 20, 21]]), rtol=1e-8)
    assert limit.loo_predictions_[5] == limit.loo_predictions_[20]
    weights = np.r_[np.ones(20), 3.0, 2.0]
    copies = np.repeat(np.arange(22), weights.astype(int))
    weighted = Regressor(NET, ridge=0.05).fit(x[twice], targets, sample_weight=weights)
    repeated = Regressor(NET, ridge=0.05).fit(x[twice][copies], targets[copies])
    np.testing.assert_allclose(weighted.predict(new), repeated.predict(new), rtol=1e-9)
    density = stats.multivariate_normal(np.zeros(22), k + ridge * np.eye(22)).logpdf(targets)
    assert model.log_marginal_likelihood() == pytest.approx(density)
    with pytest.raises(ValueError, match="no density: use a ridge"):
        limit.log_marginal_likelihood()


@pytest.mark.parametrize("options", [{"ridge": 0.05}, {"ridge": "loo"}, {"time": "loo"}])
def test_the_score_is_over_samples(options):
    """Also over what targets of equal samples differ by, each by its weight."""
    x, y, _ = regression(20, targets=(2,))
    twice, weights = np.r_[0:20, 5, 5, 9], np.random.default_rng(1).uniform(0.2, 3, 23)
    targets = y[twice] + np.random.default_rng(2).normal(size=(23, 2))
    model = Regressor(NET, **options).fit(x[twice], targets, weights)
    squares = ((targets - model.loo_predictions_) ** 2).mean(axis=1)
    assert model.loo_score_ == pytest.approx(-np.average(squares, weights=weights), rel=1e-12)
    assert model.loo_score_ == model.loo_curve_.max()
    for wrong in (squares.mean(), np.average(squares[:20], weights=weights[:20])):
        assert abs(model.loo_score_ + wrong) > 1e-3


@pytest.mark.parametrize("weigh", [False, True])
def test_conjugate_gradients_use_the_same_ridge(weigh):
    x, y, new = regression(40)
    weights = np.random.default_rng(1).uniform(0.1, 5, 40) if weigh else None
    models = [
        Regressor(NET, ridge=0.3, solver=solver).fit(x, y, weights) for solver in ("cholesky", "cg")
    ]
    exact, model = models
    np.testing.assert_allclose(model.predict(new), exact.predict(new), atol=1e-6)
    absolute = [each.solution_.statistics.ridge_absolute for each in models]
    assert absolute[1] == pytest.approx(absolute[0], rel=1e-12)
    assert model.ridge_ == 0.3


def test_bad_weights():
    x, y, _ = regression(10)
    with pytest.raises(ValueError, match="sample_weight must be 0 or more, got -1 for sample 3"):
        Regressor(NET).fit(x, y, sample_weight=np.where(np.arange(10) == 3, -1, 1))
    with pytest.raises(ValueError, match=r"above 0 for some sample|zero"):
        Regressor(NET).fit(x, y, sample_weight=np.zeros(10))


def test_singular_kernels_are_solved_and_warned_of():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3))
    y = x @ [3.0, 1.0, -2.0] + rng.normal(size=12)
    net = wl.Network([wl.Dense()])  # linear
    with pytest.warns(Warning, match=r"rank of k is 3 for n = 12.*smallest pivot") as caught:
        model = Regressor(net).fit(x, y)
    assert caught[0].filename == __file__
    assert model.solution_.status is Status.RANK_DEFICIENT
    slopes = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(model.predict(np.eye(3)), slopes, rtol=1e-9)


# --- Gaussian processes and ensembles -----------------------------------------------------------


class Precomputed(Kernel):
    """A kernel of scikit-learn's Gaussian processes."""

    def __init__(self, net, kind):
        self.net, self.kind = net, kind

    def __call__(self, X, Y=None, eval_gradient=False):
        return wl.kernel(self.net, X, Y, kind=self.kind, dtype="float64")

    def diag(self, X):
        return self(X).diagonal().copy()

    def is_stationary(self):
        return False


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
@pytest.mark.parametrize("targets", [(), (2,)])
def test_posterior_is_that_of_scikit_learn(ridge, targets):
    x, y, new = regression(targets=targets)
    model = Regressor(NET, kind="nngp", ridge=ridge).fit(x, y)
    alpha = model.solution_.statistics.ridge_absolute
    reference = GaussianProcessRegressor(Precomputed(NET, "nngp"), alpha=alpha, optimizer=None)
    reference.fit(x, y)
    for option in ({"return_std": True}, {"return_cov": True}):
        for found, expected in zip(
            model.predict(new, **option), reference.predict(new, **option), strict=True
        ):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-8)
    density = reference.log_marginal_likelihood_value_
    assert model.log_marginal_likelihood() == pytest.approx(density, abs=1e-8 * abs(density))
    other = Regressor(NET, kind="nngp", ridge=2 * ridge).fit(x, y)
    expected = reference.predict(new, return_std=True)[1]
    assert np.abs(other.predict(new, return_std=True)[1] - expected).max() > 1e-8


def ensemble(start, theta_new, nngp_new, prior, a):
    """Eq. 16 of Lee et al., for the matrix a that takes targets to coefficients.

    `start` is the covariance of what outputs are short of targets before training.
    """
    w = theta_new @ a
    return prior - w @ nngp_new.T - nngp_new @ w.T + w @ start @ w.T


@pytest.mark.parametrize("options", [{}, {"ridge": 0.02}, {"time": 0.7}, {"time": 2, "ridge": 0.1}])
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_ensembles_of_trained_networks(options, kind):
    x, y, new = regression()
    model = Regressor(NET, kind=kind, **options).fit(x, y)
    theta, nngp = (
        wl.kernel(NET, x, kind=(kind, "nngp"), dtype="float64")
        if kind == "ntk"
        else ([wl.kernel(NET, x, kind="nngp", dtype="float64")] * 2)
    )
    theta_new = wl.kernel(NET, new, x, kind=kind, dtype="float64")
    nngp_new = wl.kernel(NET, new, x, kind="nngp", dtype="float64")
    prior = wl.kernel(NET, new, kind="nngp", dtype="float64")
    values, vectors = np.linalg.eigh(theta)
    ridge = model.solution_.statistics.ridge_absolute
    values = values + ridge
    grown = 1 - np.exp(-values * options.get("time", np.inf))
    a = vectors * (grown / values) @ vectors.T
    start = nngp + ridge * np.eye(60) if kind == "nngp" else nngp
    expected = ensemble(start, theta_new, nngp_new, prior, a)
    mean, cov = model.predict(new, return_cov=True)
    np.testing.assert_allclose(mean, theta_new @ a @ y, atol=1e-8)
    np.testing.assert_allclose(cov, expected, atol=1e-8)
    std = model.predict(new, return_std=True)[1]
    np.testing.assert_allclose(std**2, np.diag(expected), atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.02])
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("weigh", [False, True])
def test_distributions_at_the_ends_of_time(kind, ridge, weigh):
    x, y, new = regression(30)
    weights = np.random.default_rng(1).uniform(0.2, 4, 30) if weigh else np.ones(30)
    prior = wl.kernel(NET, new, kind="nngp", dtype="float64")
    for time in (0.0, 1e-12):
        model = Regressor(NET, kind=kind, ridge=ridge, time=time).fit(x, y, weights)
        mean, cov = model.predict(new, return_cov=True)
        np.testing.assert_allclose(mean, 0, atol=1e-8)
        np.testing.assert_allclose(cov, prior, atol=1e-8)
    np.testing.assert_array_equal(model.fit(x, y).set_params(time=0.0).fit(x, y).predict(new), 0)
    end = Regressor(NET, kind=kind, ridge=ridge).fit(x, y, weights)
    late = Regressor(NET, kind=kind, ridge=ridge, time=1e15).fit(x, y, weights)
    for found, expected in zip(
        late.predict(new, return_cov=True), end.predict(new, return_cov=True), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-7)
    if kind == "nngp":  # the posterior
        absolute = end.solution_.statistics.ridge_absolute
        cross = wl.kernel(NET, new, x, kind="nngp", dtype="float64")
        k = wl.kernel(NET, x, kind="nngp", dtype="float64") + np.diag(absolute / weights)
        np.testing.assert_allclose(cov - 0 * cov, prior, atol=1e-8)
        posterior = prior - cross @ np.linalg.solve(k, cross.T)
        np.testing.assert_allclose(late.predict(new, return_cov=True)[1], posterior, atol=1e-7)


@pytest.mark.parametrize("time", [np.inf, 0.4])
def test_last_layers_trained_on_noisy_targets_spread_as_said(time):
    # Networks of 400 features whose last layer alone is trained, from random weights, held back
    # to them, each on targets with a noise of its own: their spread is exact for any width.
    rng = np.random.default_rng(0)
    x, y, new = regression(10, 4)
    both = np.concatenate([x, new])
    k = wl.kernel(NET, both, kind="nngp", dtype="float64")
    features = np.linalg.cholesky(k)
    model = Regressor(NET, kind="nngp", ridge=0.1, time=time).fit(x, y)
    r = model.solution_.statistics.ridge_absolute
    start = rng.normal(size=(14, 40_000))
    noisy = y[:, None] + np.sqrt(r) * rng.normal(size=(10, 40_000))
    # u' = phi^T (noisy - phi (start + u)) - r u
    phi = features[:10]
    a = phi.T @ phi + r * np.eye(14)
    values, vectors = np.linalg.eigh(a)
    grown = (1 - np.exp(-values * time)) / values
    moved = vectors @ (grown[:, None] * (vectors.T @ (phi.T @ (noisy - phi @ start))))
    outputs = features[10:] @ (start + moved)
    mean, cov = model.predict(new, return_cov=True)
    scale = np.sqrt(np.diag(cov)).max()
    np.testing.assert_allclose(outputs.mean(axis=1), mean, atol=0.03 * scale)
    np.testing.assert_allclose(np.cov(outputs), cov, atol=0.03 * scale**2)


def test_finite_networks_spread_as_the_ensemble_says():
    # Linear networks f = f0 + J (theta - theta0) with Gaussian features: exact for any width.
    rng = np.random.default_rng(0)
    x, y, new = regression(12, 5)
    model = Regressor(NET).fit(x, y)
    both = np.concatenate([x, new])
    nngp = wl.kernel(NET, both, kind="nngp", dtype="float64")
    theta = wl.kernel(NET, both, dtype="float64")
    start = rng.multivariate_normal(np.zeros(17), nngp, size=20_000)
    w = theta[12:, :12] @ np.linalg.inv(theta[:12, :12])
    outputs = start[:, 12:] + (y - start[:, :12]) @ w.T
    mean, cov = model.predict(new, return_cov=True)
    scale = np.sqrt(np.diag(cov))
    np.testing.assert_allclose(outputs.mean(axis=0), mean, atol=0.05 * scale.max())
    np.testing.assert_allclose(np.cov(outputs.T), cov, atol=0.05 * scale.max() ** 2)


def test_where_all_is_known_nothing_is_spread():
    """But rounding, which may leave less than nothing."""
    x, y, _ = regression()
    mean, std = Regressor(NET, kind="nngp").fit(x, y).predict(x, return_std=True)
    np.testing.assert_allclose(mean, y, rtol=1e-6)
    assert np.all((std >= 0) & (std < 1e-5))


def test_draws():
    x, y, new = regression()
    model = Regressor(NET, ridge=1e-3).fit(x, y)
    mean, cov = model.predict(new, return_cov=True)
    drawn = model.sample_y(new, 20_000, random_state=1)
    assert drawn.shape == (17, 20_000)
    np.testing.assert_allclose(drawn.mean(axis=1), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(drawn), cov, atol=0.05 * cov.max())
    np.testing.assert_array_equal(model.sample_y(new, 2), model.sample_y(new, 2, random_state=0))
    several = Regressor(NET, ridge=1e-3).fit(x, np.c_[y, y])
    assert several.sample_y(new, 3).shape == (17, 2, 3)


def test_where_there_is_no_distribution():
    x, y, new = regression()
    k = wl.kernel(NET, x, dtype="float64")
    model = Regressor(kernel="precomputed").fit(k, y)
    with pytest.raises(ValueError, match="needs NNGP kernels beside the one that is given"):
        model.predict(k[:3], return_std=True)
    with pytest.raises(ValueError, match="not both be True"):
        model.predict(k[:3], return_std=True, return_cov=True)
    model = Regressor(NET, time=1.0).fit(x, y)
    with pytest.raises(ValueError, match="end of training"):
        model.log_marginal_likelihood()
    model = Regressor(NET, ridge=0.1, solver="cg").fit(x, y)
    assert model.loo_predictions_ is None
    assert not hasattr(model, "self_influence_")
    assert not hasattr(model, "partial_fit")
    assert not hasattr(Classifier(solver="cg"), "predict_proba")
    exact = Regressor(NET, ridge=0.1).fit(x, y)
    np.testing.assert_allclose(model.predict(new), exact.predict(new), atol=1e-6)


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_the_end_of_time_is_the_plain_prediction(ridge):
    x, y, new = regression()
    plain = Regressor(NET, ridge=ridge).fit(x, y)
    late = Regressor(NET, ridge=ridge, time=1e15).fit(x, y)
    np.testing.assert_allclose(late.predict(new), plain.predict(new), rtol=1e-8, atol=1e-9)
    *_, last = plain.staged_predict(new, [0.1, np.inf])
    np.testing.assert_allclose(last, plain.predict(new), rtol=1e-8, atol=1e-9)
    early = Regressor(NET, time=1e-9).fit(x, y)  # f_t = t k(x, X) y
    k = wl.kernel(NET, new, x, dtype="float64")
    np.testing.assert_allclose(early.predict(new), 1e-9 * k @ y, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"time": 0.5}, {"ridge": "loo"}])
def test_stages(options):
    x, y, new = regression(targets=(2,))
    model = Regressor(NET, **options).fit(x, y)
    times = [0.01, 0.5, 20.0]
    for time, found in zip(times, model.staged_predict(new, times), strict=True):
        alone = Regressor(NET, time=time, ridge=model.ridge_).fit(x, y)
        np.testing.assert_allclose(found, alone.predict(new), rtol=1e-9, atol=1e-12)
    x, y = digits(60)
    labels = Classifier().fit(x[:40], y[:40])
    *_, last = labels.staged_predict(x[40:], [1e-3, np.inf])
    np.testing.assert_array_equal(last, labels.predict(x[40:]))
    (outputs,) = labels.staged_decision_function(x[40:], [np.inf])
    np.testing.assert_allclose(outputs, labels.decision_function(x[40:]), atol=1e-9)


# --- explanations -------------------------------------------------------------------------------


def test_influences_sum_to_the_output():
    x, y = digits(80)
    model = Classifier(ridge=1e-3).fit(x[:50], y[:50])
    # Weights of the training targets, as the report has them.
    given = model.influence(x[50:], n_largest=50)
    weights = np.take_along_axis(given.weights, given.indices.argsort(axis=1), axis=1)
    targets = np.eye(10)[y[:50]] - 0.1
    outputs = model.decision_function(x[50:])
    np.testing.assert_allclose(weights @ targets, outputs, rtol=1e-8, atol=1e-12)
    assert np.abs(given.weights).max() < 2
    # Terms of a sum, which nearly cancel.
    found = model.influence(x[50:], n_largest=50, measure="terms")
    np.testing.assert_allclose(found.weights.sum(axis=1), outputs.max(axis=1), rtol=1e-9)
    size = np.abs(found.weights)
    assert np.all(size[:, :-1] >= size[:, 1:])
    assert np.all(np.sort(found.indices, axis=1) == np.arange(50))
    again = Classifier(wl.ntk_dense(3)).fit(x[[0, 0, 1, 2, 1, 3]], y[[0, 0, 1, 2, 1, 3]])
    assert set(again.influence(x[:9], 6).indices.ravel()) == {0, 2, 3, 5}  # the first of equal ones
    few = model.influence(x[50:], n_largest=3, measure="terms")
    np.testing.assert_array_equal(few.indices, found.indices[:, :3])
    targets = Regressor(ridge=1e-3).fit(x[:50], np.c_[y[:50], -2 * y[:50]])
    both = [targets.influence(x[50:], 50, t, measure="terms").weights.sum(axis=1) for t in (0, 1)]
    np.testing.assert_allclose(np.stack(both, axis=1), targets.predict(x[50:]), rtol=1e-8)
    with pytest.raises(ValueError, match="target must be from 0 to 1, got 2"):
        targets.influence(x, target=2)
    with pytest.raises(ValueError, match="n_largest must be at least 1, got 0"):
        model.influence(x, 0)
    with pytest.raises(ValueError, match='measure must be "weights" or "terms", got \'sum\''):
        model.influence(x, measure="sum")
    iterated = Classifier(ridge=1e-3, solver="cg").fit(x[:50], y[:50])
    with pytest.raises(ValueError, match="weights of training samples need a factor"):
        iterated.influence(x[50:])
    assert iterated.influence(x[50:], measure="terms").weights.shape == (30, 10)


def test_samples_of_weight_0_keep_their_places():
    """Training samples are told, and left out, by their places in what was given."""
    x, y = digits(60)
    given, part = x[:40], slice(0, 25)
    weight = np.ones(40)
    weight[[0, 1, 2, 17, 24, 25, 39]] = 0
    kept = np.flatnonzero(weight)
    for model in (Classifier(standardise=False), Regressor(standardise=False, normalize_y=False)):
        plain = clone(model).fit(given[kept], y[kept])
        whole = clone(model).fit(given, y[:40], weight)
        added = clone(model).fit(given[part], y[part], weight[part])
        added.partial_fit(given[25:], y[25:40], sample_weight=weight[25:])
        for found in (whole, added):
            for measure in ("weights", "terms"):
                near = found.influence(given[[17, 30]], 3, measure=measure)
                expected = plain.influence(given[[17, 30]], 3, measure=measure)
                np.testing.assert_allclose(near.weights, expected.weights, atol=1e-7)
                assert set(near.indices[0]) == set(kept[expected.indices[0]])
                if measure == "weights":  # of a training sample: itself
                    assert near.indices[1, 0] == 30
            for name in ("loo_predictions_", "self_influence_"):
                values, fewer = getattr(found, name), getattr(plain, name)
                np.testing.assert_allclose(values[kept], fewer, atol=1e-6)
                assert np.isnan(values[weight == 0]).all()
                assert len(values) == 40
    assert plain.noise_variance_ == whole.noise_variance_
    whole.sample_names_ = [f"{place}.png" for place in range(40)]
    assert whole.influence(given[[30]], 1).names.item() == "30.png"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"net": "cntk-gap-3", "image_shape": (8, 8)}])
def test_mislabelled_samples_are_found(seed, options):
    x, y = digits(400, seed)
    rng = np.random.default_rng(seed)
    wrong = rng.choice(400, 20, replace=False)  # 5 %
    labels = y.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, 20)) % 10
    model = Classifier(ridge="loo", **options).fit(x, labels)
    suspects = np.argsort(-model.self_influence_)[:40]  # 10 %
    assert np.isin(wrong, suspects).mean() >= 0.8
    clean = Classifier(ridge="loo", **options).fit(x, y)
    assert np.isin(wrong, np.argsort(-clean.self_influence_)[:40]).mean() < 0.5


# --- probabilities ------------------------------------------------------------------------------


def test_temperature_makes_left_out_labels_most_likely():
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, 4, 200), rng.uniform(0.5, 2, 200)
    outputs = rng.normal(size=(200, 4)) + 1.5 * np.eye(4)[labels]
    found = fit_temperature(outputs, labels, weights)
    n = weights.sum()
    soft = np.full((200, 4), 1 / (n + 2) / 3)
    soft[np.arange(200), labels] = (n + 1) / (n + 2)

    def loss(temperature):
        return -(weights @ (soft * log_softmax(outputs, temperature)).sum(axis=1))

    assert loss(found) < min(loss(found * 1.0001), loss(found / 1.0001))
    doubled = fit_temperature(2 * outputs, labels, weights)
    assert doubled == pytest.approx(2 * found, rel=1e-9)
    assert 1e-6 < fit_temperature(np.eye(4)[labels], labels, weights) < 0.3  # all of them right
    assert fit_temperature(np.eye(4)[(labels + 1) % 4], labels, weights) > 100  # all wrong
    assert np.isfinite(fit_temperature(np.zeros((200, 4)), labels, weights))
    far = np.array([[0.0, 0.0], [1e4, 1e4]])  # each row by itself
    np.testing.assert_allclose(log_softmax(far, 1.0), -np.log(2), rtol=1e-12)


def test_probabilities():
    x, y = digits(900)
    model = Classifier().fit(x[:300], y[:300])
    p = model.predict_proba(x[300:])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(model.classes_[p.argmax(axis=1)], model.predict(x[300:]))
    np.testing.assert_allclose(np.exp(model.predict_log_proba(x[300:])), p)
    right = p.argmax(axis=1) == y[300:]
    assert abs(p.max(axis=1).mean() - right.mean()) < 0.05  # as sure as it is right
    plain = np.exp(log_softmax(model.decision_function(x[300:]), 1.0))
    loss = [-np.log(q[np.arange(600), y[300:]]).mean() for q in (p, plain)]
    assert loss[0] < 0.3 < loss[1]


# --- more samples -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(40,), (20, 1, 19), (1, 39), (13, 27)])
@pytest.mark.parametrize("options", [{}, {"kind": "nngp"}, {"time": 0.5}])
def test_more_samples(sizes, options):
    x, y, new = regression(40)
    whole = Regressor(NET, **options).fit(x, y)
    model, start = Regressor(NET, **options), 0
    for size in sizes:
        model.partial_fit(x[start : start + size], y[start : start + size])
        start += size
    np.testing.assert_allclose(model.dual_coef_, whole.dual_coef_, rtol=1e-6, atol=1e-8)
    for option in ({"return_cov": True}, {"return_std": True}):
        for found, expected in zip(
            model.predict(new, **option), whole.predict(new, **option), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_allclose(model.loo_predictions_, whole.loo_predictions_, atol=1e-7)
    k = wl.kernel(NET, x, kind=options.get("kind", "ntk"), dtype="float64")
    np.testing.assert_allclose(model._factor.gram(), k, rtol=1e-15)
    for found, expected in zip(
        model.staged_predict(new, [0.1, 10]), whole.staged_predict(new, [0.1, 10]), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_more_samples_compute_no_old_pair(monkeypatch):
    x, y = digits(60)
    calls, real, cross = [], fitted.kernel, fitted.PreparedKernel.cross

    def spy(net, x1, x2=None, **options):
        calls.append((len(x1), None if x2 is None else len(x2)))
        return real(net, x1, x2, **options)

    def cross_spy(self, new, kinds):
        calls.append((len(new), len(self.samples)))
        return cross(self, new, kinds)

    monkeypatch.setattr(fitted, "kernel", spy)
    monkeypatch.setattr(fitted.PreparedKernel, "cross", cross_spy)
    factors, extended = [], CholeskyFactor.extended
    monkeypatch.setattr(
        CholeskyFactor, "extended", lambda self, *a: factors.append(self.n) or extended(self, *a)
    )
    model = Classifier(wl.ntk_dense(3)).partial_fit(x[:40], y[:40], classes=range(10))
    model.partial_fit(x[40:], y[40:])
    assert calls == [(40, None), (20, 40), (20, None)]
    assert factors == [40]
    whole = Classifier(wl.ntk_dense(3)).fit(x, y)
    np.testing.assert_allclose(
        model.decision_function(x + 0.1), whole.decision_function(x + 0.1), atol=1e-9
    )


def test_more_samples_of_new_classes_and_old_samples():
    x, y = digits(120)
    first = y < 7
    model = Classifier(wl.ntk_dense(3), ridge=1e-3).partial_fit(x[first], y[first])
    assert model.classes_.tolist() == list(range(7))
    again = np.r_[np.flatnonzero(~first), np.flatnonzero(first)[:5]]  # five samples once more
    model.partial_fit(x[again], y[again], sample_weight=np.r_[np.full(len(again) - 1, 2.0), 0.0])
    assert model.classes_.tolist() == list(range(10))
    absolute = model.solution_.statistics.ridge_absolute
    weights = np.r_[np.ones(first.sum()), np.full(len(again) - 1, 2.0)]
    rows = np.r_[np.flatnonzero(first), again[:-1]]
    k = wl.kernel(wl.ntk_dense(3), x[rows], dtype="float64")
    relative = absolute / np.average(np.diag(k), weights=weights)
    whole = Classifier(wl.ntk_dense(3), ridge=relative).fit(x[rows], y[rows], weights)
    np.testing.assert_allclose(
        model.decision_function(x + 0.1), whole.decision_function(x + 0.1), atol=1e-9
    )
    before = model.decision_function(x)
    with pytest.raises(ValueError, match="63 features"):
        model.partial_fit(x[:, 1:], y)
    np.testing.assert_array_equal(model.decision_function(x), before)


# --- life in scikit-learn, and with other libraries ---------------------------------------------


def test_grid_search_in_processes_shares_the_processors():
    from joblib import Parallel, delayed, parallel_config

    x, y = digits(120)
    grid = {"net": ["ntk-dense-1", wl.cntk_vanilla(3)], "ridge": [1e-4, 1e-2, "loo"]}
    model = Classifier(image_shape=(8, 8))
    results = []
    for jobs in (1, 2):
        with parallel_config(backend="loky"):
            results.append(GridSearchCV(model, grid, cv=3, n_jobs=jobs).fit(x, y))
    one, two = (result.cv_results_["mean_test_score"] for result in results)
    np.testing.assert_array_equal(one, two)
    assert results[1].best_params_ == results[0].best_params_
    # What each of two workers takes, when it is left to choose.
    share = max(1, default_threads() // 2)
    with parallel_config(backend="loky"):
        assert Parallel(n_jobs=2)(delayed(default_threads)() for _ in range(4)) == [share] * 4


@pytest.mark.parametrize("limit", ["1", " 2 ", "", "x", "0", "99"])
def test_threads_that_the_environment_allows(monkeypatch, limit):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processors = default_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    asked = int(limit) if limit.strip().isdigit() and int(limit) else processors
    assert default_threads() == min(asked, processors)


def test_pipelines_and_calibration():
    x, y = digits(200)
    pipeline = make_pipeline(MinMaxScaler(), Classifier("cntk-vanilla-3", image_shape=(8, 8)))
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.85
    calibrated = CalibratedClassifierCV(Classifier(ridge=1e-3), cv=3).fit(x, y)
    assert calibrated.predict_proba(x).shape == (200, 10)


def test_precomputed_kernels_are_cut_by_cross_validation():
    x, y = digits(150)
    net = wl.ntk_dense(2)
    k = wl.kernel(net, x, dtype="float64")
    scores = cross_val_score(Classifier(kernel="precomputed"), k, y, cv=3)
    np.testing.assert_array_equal(scores, cross_val_score(Classifier(net), x, y, cv=3))
    weights = np.arange(150) % 2
    zeros = Classifier(kernel="precomputed").fit(k, y, sample_weight=weights)
    half = Classifier(net).fit(x[1::2], y[1::2])
    np.testing.assert_allclose(zeros.decision_function(k), half.decision_function(x), atol=1e-9)


def test_a_kernel_for_support_vector_machines():
    x, y = digits(300)
    metric = wl.KernelMetric("cntk-vanilla-3", (8, 8))
    model = SVC(kernel=metric, C=10).fit(x[:200], y[:200])
    assert model.score(x[200:], y[200:]) > 0.9
    images = x.reshape(-1, 8, 8, 1)
    k = wl.kernel(wl.cntk_vanilla(3), images, dtype="float64")
    scale = np.sqrt(np.diag(k))
    np.testing.assert_allclose(metric(x, x), k / scale / scale[:, None], rtol=1e-12)
    np.testing.assert_allclose(metric(x[:9], images), metric(x)[:9], rtol=1e-12)
    plain = wl.KernelMetric(wl.cntk_vanilla(3), (8, 8), normalise=False)
    np.testing.assert_array_equal(plain(x), k)
    assert clone(SVC(kernel=metric)).kernel == metric
    zeros = metric(np.r_[x[:3], 0 * x[:1]])
    np.testing.assert_array_equal(zeros[3], 0)
    np.testing.assert_allclose(zeros[:3, :3], metric(x[:3]), rtol=1e-12)


def test_a_support_vector_machine_computes_each_pair_once(monkeypatch):
    x, y = digits(30)
    others, real = [], metric_module.kernel

    def spy(net, x1, x2=None, **options):
        others.append(x2)
        return real(net, x1, x2, **options)

    monkeypatch.setattr(metric_module, "kernel", spy)
    SVC(kernel=wl.KernelMetric("ntk-dense-2")).fit(x, y)
    assert others == [None]  # although it gives the samples twice


class Tensor:
    """What PyTorch and CuPy have in common: DLPack, and a way to the host of their own."""

    def __init__(self, values, move="cpu", graph=False):
        self._values, self._graph = values, graph
        self.ndim, self.shape, self.dtype = values.ndim, values.shape, values.dtype
        setattr(self, move, lambda: self if graph else self._values)
        if move == "cpu":  # only PyTorch has graphs
            self.detach = lambda: Tensor(values, move)

    def __dlpack__(self, **options):
        raise BufferError("it is on a device")

    def __array__(self, dtype=None, copy=None):
        raise TypeError("no implicit conversion")


@pytest.mark.parametrize("move", ["cpu", "get"])
def test_arrays_of_other_libraries(move):
    x, y = digits(60)
    images = x.reshape(-1, 8, 8, 1).astype("float32")
    expected = Classifier("cntk-gap-3").fit(images, y).decision_function(images)
    model = Classifier("cntk-gap-3").fit(Tensor(images, move, graph=move == "cpu"), y)
    np.testing.assert_array_equal(model.decision_function(Tensor(images, move)), expected)
    with pytest.raises(TypeError, match="must have a dtype that NumPy has"):
        model.predict(Tensor(images, "nowhere"))


def test_tensors():
    torch = pytest.importorskip("torch")
    x, y = digits(60)
    images = x.reshape(-1, 8, 8, 1)
    expected = Classifier("cntk-gap-3").fit(images, y).decision_function(images)
    tensor = torch.tensor(images, requires_grad=True)
    model = Classifier("cntk-gap-3").fit(tensor, torch.tensor(y))
    np.testing.assert_array_equal(model.decision_function(tensor), expected)
    with pytest.raises(TypeError, match=r"torch must have a dtype that NumPy has.*bfloat16"):
        model.predict(tensor.to(torch.bfloat16))


def test_data_frames():
    pandas = pytest.importorskip("pandas")
    x, y = digits(60)
    frame = pandas.DataFrame(x, columns=[f"p{i}" for i in range(64)])
    model = Classifier(ridge=1e-3).fit(frame, y)
    assert model.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[frame.columns[::-1]])


def test_standardised_features():
    """Of rows by default, however the network is spelled; of images never."""
    x, y, new = regression()
    x, new = 100 + 5 * x, 100 + 5 * new
    net = wl.ntk_dense(3)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    same = Regressor(net, ridge=1e-3).fit((x - mean) / scale, y)
    expected = same.predict((new - mean) / scale)
    for spelled in (net, "ntk-dense-3", "ntk_dense:3", net.to_json(), [net]):
        model = Regressor(spelled, ridge=1e-3, standardise=None).fit(x, y)
        np.testing.assert_allclose(model.predict(new), expected, rtol=1e-9)
        raw = Regressor(spelled, ridge=1e-3, standardise=False).fit(x, y)
        assert raw.standardisation_ is None
        assert not np.allclose(raw.predict(new), expected, rtol=1e-2)
    for options, wanted in (({}, False), ({"standardise": True}, True)):
        images = wl.NTKRegressor(net, image_shape=(1, x.shape[1]), **options).fit(x, y)
        assert (images.standardisation_ is not None) == wanted
    counts = np.random.default_rng(1).integers(0, 4, len(x))
    weighted = Regressor(ridge=1e-3, standardise=True).fit(x, y, counts)
    for found, expected in zip(
        weighted.standardisation_,
        (x.repeat(counts, 0).mean(axis=0), x.repeat(counts, 0).std(axis=0)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_executor_is_shared_by_clones():
    with ThreadPoolExecutor(1) as executor, config_context(enable_metadata_routing=True):
        model = Regressor(executor=executor, ridge=0.5).set_fit_request(sample_weight=True)
        twin = clone(model)
        assert twin.executor is executor
        assert twin.ridge == 0.5
        assert twin.get_metadata_routing().fit.requests == {"sample_weight": True}


def test_kernels_in_a_store(tmp_path):
    x, y = digits(70)
    images = x.reshape(-1, 8, 8, 1)
    plain = Regressor("cntk-vanilla-3").fit(images[:60], y[:60])
    options = {"store": tmp_path / "fit", "memory": "2GB"}
    with ThreadPoolExecutor(2) as executor:
        stored = Regressor("cntk-vanilla-3", executor=executor, **options)
        stored.fit(images[:60], y[:60])
    np.testing.assert_array_equal(stored.dual_coef_, plain.dual_coef_)
    for found, expected in zip(
        stored.predict(images[60:], return_std=True),
        plain.predict(images[60:], return_std=True),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Regressor("cntk-vanilla-3", **options).fit(images[:60], y[:60])
    np.testing.assert_array_equal(again.dual_coef_, plain.dual_coef_)
    assert wl.open_gram(f"{again.store_}/kernel.zarr")[0].shape == (60, 60)


@pytest.mark.parametrize("estimator", [Regressor, Classifier])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
@pytest.mark.parametrize("tiled", [False, True])
def test_more_samples_in_a_store(tmp_path, monkeypatch, estimator, ridge, tiled):
    x, y = digits(100)
    images = x.reshape(-1, 8, 8, 1)
    calls = []

    def choose(n, options, **about):
        calls.append(n)
        return "tiled" if tiled else "cholesky"

    monkeypatch.setattr(base, "solver_for", choose)
    options = {"net": "cntk-vanilla-3", "ridge": ridge, "store": str(tmp_path / "s")}
    model = estimator(**options).partial_fit(images[:60], y[:60])
    assert isinstance(model._factor, TiledFactor if tiled else CholeskyFactor)
    if estimator is Regressor:
        model.partial_fit(images[60:61], y[60:61]).partial_fit(images[61:90], y[61:90])
    else:
        model.partial_fit(images[60:90], y[60:90])
    assert len(list((tmp_path / "s").iterdir())) == (3 if estimator is Regressor else 2)
    kinds = [path.name.split("-")[0] for path in sorted(Path(model.store_).iterdir())]
    assert kinds == (["factor", "kernel.zarr"] if tiled else ["kernel.zarr"])
    monkeypatch.undo()
    absolute = model.solution_.statistics.ridge_absolute
    k = np.asarray(wl.kernel(wl.cntk_vanilla(3), images[:90]), np.float64)
    relative = absolute / k.diagonal().mean()
    whole = estimator("cntk-vanilla-3", ridge=relative).fit(images[:90], y[:90])
    np.testing.assert_allclose(model.dual_coef_, whole.dual_coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.loo_predictions_, whole.loo_predictions_, atol=1e-6)
    if estimator is Regressor:
        for found, expected in zip(
            model.predict(images[90:], return_cov=True),
            whole.predict(images[90:], return_cov=True),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_networks_have_factors_of_their_own_in_a_store(tmp_path, monkeypatch):
    x, y = digits(60)
    images = x.reshape(-1, 8, 8, 1)
    nets = [wl.cntk_vanilla(3), wl.cntk_vanilla(4)]
    plain = Classifier(nets, ridge=1e-3).fit(images, y)
    monkeypatch.setattr(base, "solver_for", lambda n, options, **about: "tiled")
    model = Classifier(nets, ridge=1e-3, store=tmp_path / "s").fit(images, y)
    assert model.net_ == plain.net_
    np.testing.assert_allclose(model.loo_curve_, plain.loo_curve_, rtol=1e-6)
    np.testing.assert_allclose(model.dual_coef_, plain.dual_coef_, rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match="fit with the one that was chosen"):
        model.partial_fit(images[:1] + 1, y[:1])


def test_a_kernel_is_not_begun_whose_factor_will_not_fit_onto_the_disk(tmp_path, monkeypatch):
    """Entries of 4 bytes for each kernel and 8 for each factor; what is there is not counted."""
    x, y = digits(64)
    images, half = x.reshape(-1, 8, 8, 1), 60 * 61 // 2
    monkeypatch.setattr(base, "solver_for", lambda n, options, **about: "tiled")
    begun = []
    real = base.FittedKernel.gram
    monkeypatch.setattr(
        base.FittedKernel, "gram", lambda *a, **k: (begun.append(1), real(*a, **k))[1]
    )
    full = r"the disk is full: 0\.1 MB are needed in .*/s, 0\.0 MB are free"

    def refused(model, free, *samples):
        disk_of(free - 1, monkeypatch)
        with pytest.raises(OSError, match=full):
            (model.partial_fit if hasattr(model, "dual_coef_") else model.fit)(*samples)
        assert begun == []

    nets = [wl.cntk_vanilla(3), wl.cntk_vanilla(4)]
    refused(Classifier(nets, ridge=1e-3, store=tmp_path / "s"), 24 * half, images[:60], y[:60])
    model = Classifier(nets[0], ridge=1e-3, store=tmp_path / "s")
    refused(model, 12 * half, images[:60], y[:60])
    disk_of(10**6, monkeypatch)
    model.fit(images[:60], y[:60])
    disk_of(0, monkeypatch)
    model.fit(images[:60], y[:60])
    begun.clear()
    refused(model, 12 * 64 * 65 // 2, images[60:], y[60:])


def test_a_ridge_that_cholesky_does_not_take_keeps_the_kernel(monkeypatch):
    x, y, new = regression(30)
    expected = Regressor(NET, ridge="loo").fit(x, y)

    def refuse(k, y, ridge, *, method, weights, overwrite_k=False):
        if overwrite_k:
            k[...] = np.nan
        return failed(y, ridge, 0.0, "refused", 0.0)

    monkeypatch.setattr(regression_module, "solve", refuse)
    model = Regressor(NET, ridge="loo").fit(x, y)
    np.testing.assert_array_equal(model._factor.gram(), wl.kernel(NET, x, dtype="float64"))
    np.testing.assert_allclose(model.predict(new), expected.predict(new), rtol=1e-9)
    np.testing.assert_allclose(model.self_influence_, expected.self_influence_, atol=1e-9)


def test_warnings_that_are_errors_leave_what_was_there():
    x, y = digits(40)
    model = Regressor(wl.Network([wl.Dense()])).fit(x, y)
    before = model.predict(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Warning, match="least squares"):
            model.fit(np.r_[x[:20], x[:1] + x[1:2]], y[:21])
        with pytest.raises(Warning, match="least squares"):
            model.partial_fit(x[:1] + x[1:2], y[:1])
    np.testing.assert_array_equal(model.predict(x), before)


def test_what_does_not_fit_into_memory():
    x, y = digits(40)
    with pytest.raises(MemoryError, match=r'store, a folder for it, or use solver="cg"'):
        Classifier(wl.ntk_dense(2), memory=1, solver="cholesky").fit(x, y)
    with pytest.raises(MemoryError, match="eigenvectors of 40 samples in memory"):
        Classifier(wl.ntk_dense(2), memory=1, ridge="loo").fit(x, y)
    model = Classifier(wl.ntk_dense(2), ridge=0.1)
    assert isinstance(model.fit(x, y)._factor, CholeskyFactor)
