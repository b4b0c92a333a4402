"""Samples that are multiples of one another, against least squares in explicit features.

Without biases ``k(a x, z) = a k(x, z)`` exactly. With ``k = L L^T`` for samples of different
directions, the features of a sample ``a x`` are a times the row of L that belongs to x, and all
that an estimator tells follows from these features, without a Gram matrix of all samples.
"""

import pickle
from functools import partial

import mpmath
import numpy as np
import pytest
from scipy import linalg, stats
from sklearn.datasets import load_digits

import widelimit as wl
from widelimit.solvers import Status

# Targets of noise are best predicted by next to nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(ridge|time)=.loo. chose:UserWarning")

# The regressions of the paper, on samples and targets as they are.
Regressor = partial(wl.NTKRegressor, normalize_y=False, standardise=False)
Classifier = partial(wl.NTKClassifier, standardise=False)

LOCAL = wl.Network([wl.Conv(3), wl.ReLU(), wl.Conv(3), wl.ReLU(), wl.LocalAvgPool(1), wl.Dense()])
NETS = {
    "dense": wl.ntk_dense(3),
    "vanilla": wl.cntk_vanilla(3),
    "pooled": wl.cntk_gap(3),
    "local": LOCAL,
}


class Problem:
    """Samples of few directions, one of zeros, with features of all of them."""

    def __init__(self, net, kind="ntk", seed=0, targets=2, n=23, dtype="float64"):
        rng = np.random.default_rng(seed)
        shape = (5,) if net.is_dense else (4, 3, 2)
        self.net, self.kind = net, kind
        self.base = rng.normal(size=(9, *shape))
        self.of = np.r_[np.arange(9), rng.integers(9, size=n - 9)]
        self.size = np.r_[np.ones(9), np.exp(rng.normal(size=n - 9))]
        self.size[[4, 12]] = 0  # the fifth direction is another sample of it, or nobody's
        order = rng.permutation(n)
        self.of, self.size = self.of[order], self.size[order]
        self.x = (self.base[self.of] * self.size.reshape(-1, *[1] * len(shape))).astype(dtype)
        self.y = rng.normal(size=(n, targets))
        self.w = rng.integers(1, 4, n) * 0.5
        self.new = np.concatenate([rng.normal(size=(5, *shape)), 2.5 * self.base[:2]])
        both = np.concatenate([self.base, self.new[:5]])
        k = wl.kernel(net, both, kind=kind, dtype="float64")
        self.l = np.linalg.cholesky(k[:9, :9])
        self.phi = self.size[:, None] * self.l[self.of]
        # Features of new samples give the same products with all training samples.
        self.phi_new = np.concatenate(
            [linalg.solve_triangular(self.l, k[:9, 9:], lower=True).T, 2.5 * self.l[:2]]
        )
        self.k = self.phi @ self.phi.T

    def ridge(self, relative):
        """The absolute one, by its definition over samples."""
        return relative * np.average(np.diag(self.k), weights=self.w)

    def features(self, relative, keep=None, time=np.inf):
        """Weights of the features that minimise the weighed squares, or at a time of training."""
        keep = np.ones(len(self.x), bool) if keep is None else keep
        phi, w, r = self.phi[keep], self.w[keep], self.ridge(relative)
        gram = phi.T @ (w[:, None] * phi) + r * np.eye(9)
        right = phi.T @ (w[:, None] * self.y[keep])
        if time == np.inf:
            return np.linalg.lstsq(gram, right, rcond=1e-12)[0]
        flow = np.zeros((9 + right.shape[1],) * 2)
        flow[:9, :9], flow[:9, 9:] = -gram, right  # d/dt v = right - gram v, from 0
        return linalg.expm(time * flow)[:9, 9:]

    def left_out(self, relative, time=np.inf):
        out = np.empty_like(self.y)
        for i in range(len(self.x)):
            keep = self.of != self.of[i]
            if self.size[i] == 0:
                out[i] = 0
            else:
                out[i] = self.phi[i] @ self.features(relative, keep, time)
        return out

    def model(self, **options):
        return Regressor(self.net, kind=self.kind, dtype="float64", **options)

    def fitted(self, **options):
        return self.model(**options).fit(self.x, self.y, self.w)


@pytest.fixture(scope="module", params=[("ntk", name) for name in NETS] + [("nngp", "dense")])
def problem(request):
    kind, name = request.param
    return Problem(NETS[name], kind)


def close(found, expected, tolerance=1e-6):
    """To what kernels of multiples are off by at cos = 1, times the size of coefficients."""
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_the_example_of_one_feature():
    model = Regressor(wl.ntk_dense(3), standardise=False).fit([[1.0], [5.3]], [0.0, 1.0])
    assert model.solution_.status is Status.SOLVED
    slope = 5.3 / (1 + 5.3**2)
    np.testing.assert_allclose(model.predict([[1.5]]), 1.5 * slope, rtol=1e-8)
    assert model.predict([[1.5]])[0] == pytest.approx(0.27329, abs=5e-6)
    # To 50 digits, by least squares in the one feature there is.
    with mpmath.workdps(50):
        a = mpmath.matrix([[1], [mpmath.mpf(5.3)]])
        best = (a.T * mpmath.matrix([0, 1]))[0] / (a.T * a)[0]
    np.testing.assert_allclose(model.predict([[1.0], [5.3]]), [float(best), float(5.3 * best)])
    np.testing.assert_allclose(
        model.loo_predictions_, 0, atol=1e-15
    )  # nothing else has this direction
    other = Regressor(wl.ntk_dense(3), standardise=False)
    other.fit([[1.0], [5.3], [-2.0]], [0.0, 1.0, 4.0])
    assert other.dual_coef_.shape == (2,)
    np.testing.assert_allclose(other.predict([[-2.0]]), 4.0)


@pytest.mark.parametrize("relative", [0.0, 1e-13, 0.05])
def test_outputs(problem, relative):
    model = problem.fitted(ridge=relative)
    assert model.solution_.status is Status.SOLVED
    assert len(model.x_fit_) == len(set(problem.of[problem.size > 0].tolist()))
    assert model.ridge_ == relative
    absolute = model.solution_.statistics.ridge_absolute
    assert absolute == pytest.approx(problem.ridge(relative), rel=1e-9)
    v = problem.features(relative)
    close(model.predict(problem.new), problem.phi_new @ v)
    close(model.predict(problem.x), problem.phi @ v)
    left_out = problem.left_out(relative)
    close(model.loo_predictions_, left_out, 1e-5)
    squares = ((problem.y - left_out) ** 2).mean(axis=1)
    score = -np.average(squares, weights=problem.w)
    assert model.loo_score_ == pytest.approx(score, rel=1e-5)
    influence = ((problem.y - left_out) ** 2 - (problem.y - problem.phi @ v) ** 2).sum(axis=1)
    close(model.self_influence_, influence, 1e-5)
    shares = model.influence(problem.new, 50, 1, measure="terms")
    close(shares.weights.sum(axis=1), problem.phi_new @ v[:, 1])
    assert set(shares.indices.ravel().tolist()) == set(model._training.first.tolist())
    first = [
        np.flatnonzero((problem.of == d) & (problem.size > 0))[0]
        for d in set(problem.of[problem.size > 0].tolist())
    ]
    assert sorted(model._training.first.tolist()) == sorted(first)


@pytest.mark.parametrize("options", [{"ridge": "loo"}, {"time": "loo", "ridge": 0.01}])
def test_choices_by_leave_one_out(problem, options):
    model = problem.fitted(**options)
    for place in (0, 7, len(model.loo_grid_) // 2):
        value = model.loo_grid_[place]
        if options["ridge"] == "loo":
            left_out = problem.left_out(value)
        else:
            left_out = problem.left_out(0.01, value)
        squares = ((problem.y - left_out) ** 2).mean(axis=1)
        score = -np.average(squares, weights=problem.w)
        assert model.loo_curve_[place] == pytest.approx(score, rel=1e-5)
    v = problem.features(model.ridge_, time=model.time_)
    close(model.predict(problem.new), problem.phi_new @ v, 1e-5)
    assert model.ridge_ in ([*model.loo_grid_] if options["ridge"] == "loo" else [0.01])


@pytest.mark.parametrize("relative", [0.0, 0.05])
def test_times(problem, relative):
    scale = 1 / np.linalg.eigvalsh(problem.phi.T @ (problem.w[:, None] * problem.phi))[-1]
    for time in (0.0, 0.3 * scale, 30 * scale):
        model = problem.fitted(ridge=relative, time=time)
        v = problem.features(relative, time=time)
        found = model.predict(problem.new)
        close(found, problem.phi_new @ v)
        left_out = problem.left_out(relative, time)
        close(model.loo_predictions_, left_out)
        (staged,) = problem.fitted(ridge=relative).staged_predict(problem.new, [time])
        close(staged, found, 1e-9)


def test_distributions(problem):
    if problem.kind != "nngp":
        pytest.skip("the posterior is that of one kernel")
    for relative in (1e-3, 0.05):
        model = problem.fitted(ridge=relative)
        r = problem.ridge(relative)
        noise = np.diag(r / problem.w)
        cross = problem.phi_new @ problem.phi.T
        inner = np.linalg.solve(problem.k + noise, np.c_[cross.T, problem.y])
        mean, cov = model.predict(problem.new, return_cov=True)
        prior = wl.kernel(problem.net, problem.new, kind="nngp", dtype="float64")
        close(mean, cross @ inner[:, -2:])
        close(cov[..., 0], prior - cross @ inner[:, :-2])
        density = stats.multivariate_normal(np.zeros(len(problem.x)), problem.k + noise)
        expected = density.logpdf(problem.y.T).sum()
        assert model.log_marginal_likelihood() == pytest.approx(expected, rel=1e-7)
    with pytest.raises(ValueError, match="no density"):
        problem.fitted().log_marginal_likelihood()


@pytest.mark.parametrize("relative", [0.0, 0.05])
@pytest.mark.parametrize("sizes", [(23,), (9, 14), (1, 5, 1, 16)])
def test_more_samples(problem, relative, sizes, tmp_path):
    model, start = problem.model(ridge=relative), 0
    for size in sizes:
        part = slice(start, start + size)
        model.partial_fit(problem.x[part], problem.y[part], problem.w[part])
        start += size
        if start < 23:  # as a saved model, too
            wl.save_model(model, tmp_path / f"{start}")
            model = wl.load_model(tmp_path / f"{start}")
    absolute = model.solution_.statistics.ridge_absolute
    whole = problem.fitted(ridge=absolute / problem.ridge(1.0))
    close(model.predict(problem.new), whole.predict(problem.new))
    close(model.loo_predictions_, whole.loo_predictions_, 1e-5)
    assert model.loo_score_ == pytest.approx(whole.loo_score_, rel=1e-5)
    assert model.ridge_ == pytest.approx(whole.ridge_, rel=1e-9)
    for name in ("place", "first", "multiples", "targets", "sample_weight"):
        found, expected = (getattr(m._training, name) for m in (model, whole))
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_a_model_that_is_saved_and_pickled(problem, tmp_path):
    model = problem.fitted(ridge=0.05)
    wl.save_model(model, tmp_path / "m")
    for again in (wl.load_model(tmp_path / "m"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again.predict(problem.new), model.predict(problem.new))
        np.testing.assert_array_equal(again.self_influence_, model.self_influence_)
        relative = again.solution_.factor.ridge  # over rows
        assert relative == pytest.approx(model.solution_.factor.ridge, rel=1e-14)
        (one,), (two,) = (m.staged_predict(problem.new, [0.1]) for m in (again, model))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_digits_with_copies_of_other_brightness(dtype, solver):
    x, labels = load_digits(return_X_y=True)
    x, labels = x[:120].reshape(-1, 8, 8, 1) / 16, labels[:120]
    bright = np.random.default_rng(0).uniform(0.2, 3, 60).reshape(-1, 1, 1, 1)
    rows = np.concatenate([x[:100], bright * x[:60]]).astype(dtype)
    options = {"dtype": dtype, "ridge": 1e-4, "solver": solver}
    model = Classifier(wl.cntk_vanilla(3), **options).fit(rows, np.r_[labels[:100], labels[:60]])
    assert len(model.x_fit_) == 100
    k = wl.kernel(wl.cntk_vanilla(3), x, dtype="float64")
    size = np.r_[np.ones(100), bright.ravel()]
    phi = size[:, None] * np.linalg.cholesky(k)[np.r_[:100, :60]]
    y = (np.r_[labels[:100], labels[:60]][:, None] == np.arange(10)) - 0.1
    r = 1e-4 * np.mean((phi**2).sum(axis=1))
    v = np.linalg.solve(phi.T @ phi + r * np.eye(120), phi.T @ y)
    expected = np.linalg.cholesky(k)[100:] @ v
    np.testing.assert_allclose(
        model.decision_function(x[100:]), expected, atol=1e-3 if dtype == "float32" else 1e-6
    )


def test_labels():
    problem = Problem(wl.ntk_dense(3), targets=3)
    labels = np.array(["a", "b", "c"])[problem.y.argmax(axis=1)]
    model = Classifier(problem.net, ridge=0.05).fit(problem.x, labels, problem.w)
    problem.y = (labels[:, None] == ["a", "b", "c"]) - 1 / 3
    close(model.decision_function(problem.new), problem.phi_new @ problem.features(0.05))
    left_out = problem.left_out(0.05)
    close(model.loo_predictions_, left_out, 1e-5)
    correct = left_out.argmax(axis=1) == problem.y.argmax(axis=1)
    assert model.loo_accuracy_ == pytest.approx(np.average(correct, weights=problem.w))


def test_only_zeros():
    with pytest.warns(Warning, match="rank of k is 0"):
        model = Regressor(wl.ntk_dense(2)).fit(np.zeros((3, 2)), [1.0, 2, 3])
    np.testing.assert_array_equal(model.predict([[0.0, 0], [1, 1]]), [0, 0])
    model = Regressor(wl.ntk_dense(2), ridge=0.1).fit([[0.0, 0], [1, 2]], [7.0, 1.0])
    np.testing.assert_allclose(model.predict([[0.0, 0], [1, 2]])[0], 0)
    assert model.loo_predictions_.tolist() == [0, 0]
    assert len(model.x_fit_) == 1


def test_networks_with_biases_tell_multiples_apart():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    x, y = np.concatenate([rows, 2 * rows, rows[:1], 0 * rows[:2]]), np.arange(15.0)
    for net in (wl.ntk_dense(2, b_std=0.5), wl.Network([wl.Dense(), wl.ReLU(), wl.Dense(1, 0.1)])):
        assert len(Regressor(net, ridge=1e-3).fit(x, y).x_fit_) == 13
    # A list: all of them, or none.
    with_one = [wl.ntk_dense(2), wl.ntk_dense(2, b_std=0.5)]
    without = [wl.ntk_dense(2), wl.ntk_dense(3)]
    for combine in ("best", "mean"):
        options = {"combine": combine, "ridge": 1e-3}
        assert len(Regressor(with_one, **options).fit(x, y).x_fit_) == 13
        assert len(Regressor(without, **options).fit(x, y).x_fit_) == 6


def test_stores_that_take_no_weights(tmp_path, monkeypatch):
    """Multiples are rows of their own there, which a ridge makes regular."""
    problem = Problem(wl.cntk_vanilla(3))
    kept = np.arange(23) != np.flatnonzero(problem.size == 0)[0]  # one sample of zeros
    problem.w = np.ones(22)
    for name in ("of", "size", "x", "y", "phi"):
        setattr(problem, name, getattr(problem, name)[kept])
    problem.k = problem.phi @ problem.phi.T
    expected = problem.phi_new @ problem.features(1e-3)
    from widelimit.estimators import regression

    monkeypatch.setattr(regression, "remaining", lambda memory: 0)
    model = problem.model(ridge=1e-3, store=tmp_path / "s").fit(problem.x, problem.y)
    assert model.solution_.factor.location is not None
    assert len(model.x_fit_) == 22
    close(model.predict(problem.new), expected)
    model = problem.model(ridge=1e-3, store=tmp_path / "t")
    model.partial_fit(problem.x[:9], problem.y[:9]).partial_fit(problem.x[9:], problem.y[9:])
    relative = model.solution_.statistics.ridge_absolute / problem.ridge(1.0)
    close(model.predict(problem.new), problem.phi_new @ problem.features(relative))
    # Without a ridge weights make no difference, and multiples are one row.
    model = problem.model(store=tmp_path / "u").fit(problem.x, problem.y)
    assert len(model.x_fit_) == len(set(problem.of[problem.size > 0].tolist()))
    close(model.predict(problem.new), problem.phi_new @ problem.features(0.0))
