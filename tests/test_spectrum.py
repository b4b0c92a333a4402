"""The spectrum against dense linear algebra, and leave-one-out against leaving one out."""

from functools import partial

import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import widelimit as wl
from widelimit.solvers import Spectrum, Status, leave_one_out, solve_cholesky
from widelimit.solvers.spectrum import check_time

# The regressions of the paper, on samples and targets as they are.
Regressor = partial(wl.NTKRegressor, normalize_y=False, standardise=False)


def problem(n, targets=2, seed=0, weighted=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    k = x @ x.T + np.exp(-0.2 * ((x[:, None] - x) ** 2).sum(-1))
    weights = rng.uniform(0.3, 3, n) if weighted else np.ones(n)
    return k, rng.normal(size=(n, targets)), weights


def train(k, y, weights, ridge, time):
    """Coefficients of gradient flow at a time, by a matrix exponential."""
    roots = np.sqrt(weights)
    a = roots[:, None] * k * roots + ridge * np.eye(len(k))
    grown = np.eye(len(k)) - (0 if np.isinf(time) else scipy.linalg.expm(-time * a))
    return roots[:, None] * (np.linalg.inv(a) @ grown @ (roots[:, None] * y))


def leave_out(k, y, weights, ridge, time):
    """Train n times, each without one sample."""
    out = np.empty_like(y)
    for i in range(len(k)):
        rest = np.arange(len(k)) != i
        out[i] = k[i, rest] @ train(k[np.ix_(rest, rest)], y[rest], weights[rest], ridge, time)
    return out


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("time", [0.01, 0.5, 30.0, np.inf])
def test_leave_one_out_is_leaving_one_out(weighted, ridge, time):
    k, y, weights = problem(60, weighted=weighted)
    spectrum = Spectrum.of(k, weights if weighted else None)
    found = spectrum.leave_one_out_at(y, [time], ridge)
    expected = leave_out(k, y, weights, ridge * spectrum.mean, time)
    np.testing.assert_allclose(found.predictions[0], expected, atol=1e-10)
    error = np.average(((y - expected) ** 2).mean(axis=1), weights=weights)
    assert found.errors[0] == pytest.approx(error, rel=1e-10)
    wrong = leave_out(k, y, weights, ridge * spectrum.mean, time * 1.001 if time < 30 else 1.0)
    assert np.abs(found.predictions[0] - wrong).max() > 1e-8


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 30), seed=st.integers(0, 2**32 - 1), time=st.floats(1e-6, 1e2))
def test_training_is_the_matrix_exponential(n, seed, time):
    k, y, weights = problem(n, seed=seed, weighted=True)
    spectrum = Spectrum.of(k, weights)
    for ridge in (0.0, 0.1):
        found = spectrum.solution(y, ridge, time)
        expected = train(k, y, weights, ridge * spectrum.mean, time)
        np.testing.assert_allclose(found.value, expected, rtol=1e-7, atol=1e-7)


def test_ridges_agree_with_cholesky():
    k, y, _ = problem(80)
    spectrum, ridges = Spectrum.of(k), [0.0, 1e-6, 1e-2, 1.0]
    found, expected = spectrum.leave_one_out(y, ridges), leave_one_out(k, y, ridges)
    np.testing.assert_allclose(found.predictions, expected.predictions, atol=1e-9)
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-9)
    for ridge in ridges:
        solution = spectrum.solution(y, ridge)
        assert solution.status is Status.SOLVED
        np.testing.assert_allclose(solution.value, solve_cholesky(k, y, ridge).value, atol=1e-9)
        assert solution.statistics.residual_norm < 1e-10
    sign, determinant = np.linalg.slogdet(k + 0.3 * np.eye(80))
    assert sign == 1
    assert spectrum.log_determinant(0.3) == pytest.approx(determinant)


# ---------------------------------------------------------------- singular kernels, late times

TIMES = [0.0, 5e-324, 1e-300, 1e-6, 0.3, 1e3, 1e6, 1e9, 1e12, 1e14, 1e16, 1e18, 1e20, 1e40, 1e300]


def exactly_left_out(k, y, weights, ridge, times):
    """n trainings, each without one sample, by gradient flow in 60 digits: (times, n, targets)."""
    n = len(k)
    out = np.empty((len(times), *y.shape))
    with mpmath.workdps(60):
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            roots = [mpmath.sqrt(mpmath.mpf(weights[j])) for j in rest]
            a = mpmath.matrix(n - 1, n - 1)
            for p, q in np.ndindex(n - 1, n - 1):
                a[p, q] = roots[p] * mpmath.mpf(k[rest[p], rest[q]]) * roots[q]
                a[p, q] += mpmath.mpf(ridge) if p == q else 0
            values, vectors = mpmath.eigsy(a)
            weighed = mpmath.matrix(
                [[r * mpmath.mpf(v) for v in y[j]] for r, j in zip(roots, rest, strict=True)]
            )
            rotated = vectors.T * weighed
            row = (
                mpmath.matrix([[mpmath.mpf(k[i, j]) * r for r, j in zip(roots, rest, strict=True)]])
                * vectors
            )
            for index, time in enumerate(times):
                for c in range(y.shape[1]):
                    out[index, i, c] = mpmath.fsum(
                        row[j] * rotated[j, c] * grown(values[j], time) for j in range(n - 1)
                    )
    return out


def grown(x, time):
    """g_t(x) = (1 - exp(-t x)) / x; along x = 0 (1e-50 here) a kernel has nothing to add."""
    if x < mpmath.mpf(10) ** -45:
        return mpmath.mpf(0)
    return 1 / x if np.isinf(time) else -mpmath.expm1(-mpmath.mpf(time) * x) / x


def of_rank(rank, n, seed=0):
    """A Gram matrix that float64 holds exactly, of a rank; the others do not span the last sample.

    So that the null space has no share in it, but for rounding.
    """
    rng = np.random.default_rng(seed)
    x = np.zeros((n, rank))
    few = max(1, rank - 1)
    x[: n - 1, :few] = rng.integers(-4, 5, size=(n - 1, few))
    x[0, :few] += x[0, :few] == 0
    x[n - 1] = rng.integers(1, 5, size=rank)
    return x @ x.T


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 4, 6])
@pytest.mark.parametrize("ridge", [0.0, 1e-25, 1e-2])
def test_leaving_one_out_of_singular_kernels(rank, weighted, ridge):
    """From nothing to the end: at late times what the others cannot learn is not noise."""
    n = 6
    rng = np.random.default_rng(rank)
    k, y = of_rank(rank, n), rng.normal(size=(n, 2))
    weights = rng.uniform(0.3, 3, n) if weighted else np.ones(n)
    spectrum = Spectrum.of(k, weights)
    times = [*(t / spectrum.values[-1] if 0 < t < 1e300 else t for t in TIMES)]
    if ridge != 1e-25:  # too small for the end of training, where it decides
        times.append(np.inf)
    found = spectrum.leave_one_out_at(y, times, ridge)
    # A ridge that rounding hides is none; in 60 digits it would decide at times past 1/ridge.
    expected = exactly_left_out(
        k, y, weights, 0.0 if ridge == 1e-25 else ridge * spectrum.mean, times
    )
    np.testing.assert_allclose(
        found.predictions, expected, rtol=0, atol=1e-9 * np.abs(expected).max()
    )
    errors = np.average(((y - expected) ** 2).mean(axis=2), axis=1, weights=weights)
    np.testing.assert_allclose(found.errors, errors, rtol=1e-8)
    assert not found.predictions[0].any()  # at time 0
    later = exactly_left_out(k, y, weights, ridge * spectrum.mean, [1.001 * times[5]])
    assert rank == 6 or np.abs(found.predictions[5] - later[0]).max() > 1e-7 or times[5] > 1


def test_a_sample_of_which_the_others_know_little():
    """Its share in the null space is 1e-9: only late do the others predict it, exactly."""
    x = np.array([[1.0, 0.0], [0.0, 2.0**-15], [1.0, 2.0**-15], [3.0, 1.0]])
    k, y = x @ x.T, np.array([[1.0], [-1.0], [0.5], [2.0]])
    spectrum = Spectrum.of(k)
    times = [t / spectrum.values[-1] for t in TIMES] + [np.inf]
    found = spectrum.leave_one_out_at(y, times).predictions
    expected = exactly_left_out(k, y, np.ones(4), 0.0, times)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected[-1]).max() > 1e4


def test_kernels_that_float32_makes_singular():
    """The spectrum ends in rounding: the score is nearly that of n trainings, each with its cut."""
    n = 100
    rng = np.random.default_rng(300)
    x = rng.normal(size=(n, n + 5)) * np.geomspace(1, 3e-4, n + 5)
    k, y = (x @ x.T).astype(np.float32), rng.normal(size=(n, 3))
    spectrum = Spectrum.of(k)
    assert 0.5 * n < spectrum.rank < n - 1
    expected = np.empty_like(y)
    for i in range(n):
        rest = np.arange(n) != i
        alone = Spectrum.of(k[np.ix_(rest, rest)])
        expected[i] = k[i, rest].astype(np.float64) @ alone.solve(y[rest], 0.0)
    error = np.mean((y - expected) ** 2)
    for time in (1e20 / spectrum.values[-1], np.inf):
        assert error / 2 < spectrum.leave_one_out_at(y, [time]).errors[0] < 2 * error


def test_late_times_of_an_estimator():
    """One direction, no biases: a kernel of rank 1; and the grid of time="loo" ends at 1e10."""
    x = np.array([[1.0], [2.0], [-3.0], [0.5], [-1.5], [4.0]])
    y = np.random.default_rng(0).normal(size=6)
    k = np.asarray(wl.kernel(wl.ntk_dense(1), x, dtype="float64"))
    assert Spectrum.of(k).rank == 2  # one direction and its opposite
    exact = exactly_left_out(
        np.outer(x, x) * (1 + np.sign(np.outer(x, x))), y[:, None], np.ones(6), 0.0, [np.inf]
    )
    options = {"kernel": "precomputed"}
    scores = []
    k = np.outer(x, x) * (1 + np.sign(np.outer(x, x)))
    largest = np.linalg.eigvalsh(k)[-1]
    for time in (1e4, 1e6, 1e10, 1e15, 1e18, 1e25):
        model = Regressor(**options, time=time / largest).fit(k, y)
        scores.append(model.loo_score_)
    end = -np.mean((y - exact[0, :, 0]) ** 2)
    np.testing.assert_allclose(scores[1:], end, rtol=1e-9)


@pytest.mark.parametrize("time", [0.0, 5e-324, 1e-300, 1e300, 1.7e308])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_times_of_any_size(time, scale):
    k, y, _ = problem(10)
    spectrum = Spectrum.of(scale * k)
    solution = spectrum.solution(y, 0.0, time)
    assert np.isfinite(solution.value).all()
    if time == 0:
        assert not solution.value.any()
    left_out = spectrum.leave_one_out_at(y, [time]).predictions
    early = time * scale < 1
    expected = np.zeros_like(y) if early else spectrum.leave_one_out(y, [0.0]).predictions[0]
    np.testing.assert_allclose(left_out[0], expected, atol=1e-10)
    assert np.isfinite(spectrum.times()).all()


def test_ridges_that_overflow():
    k, y, weights = problem(8)
    with pytest.raises(ValueError, match=r"must add at most 1e\+150 .* divided by the weights"):
        Spectrum.of(1e140 * k).solution(y, 1e10)
    with pytest.raises(ValueError, match=r"must add at most 1e\+150 .* divided by the weights"):
        Spectrum.of(k, 1e-120 * weights).leave_one_out_at(y, [1.0], 1e40)
    large = Spectrum.of(k).leave_one_out_at(y, [1.0, np.inf], 1e99).predictions
    np.testing.assert_allclose(large, 0, atol=1e-13)


def test_a_ridge_that_rounding_hides_is_none():
    """It would make coefficients of 1e17 along directions that are not there."""
    k, y, _ = problem(10)
    k = np.kron(np.ones((2, 2)), k)
    y = np.vstack([y, y + 1])
    spectrum = Spectrum.of(k)
    for ridge in (0.0, 1e-30, 1e-18):
        solution = spectrum.solution(y, ridge)
        assert solution.status is Status.RANK_DEFICIENT
        np.testing.assert_allclose(solution.value, np.linalg.pinv(k, rcond=1e-12) @ y, atol=1e-9)
        assert spectrum.log_determinant(ridge * spectrum.mean) == -np.inf
    assert spectrum.solution(y, 1e-6).status is Status.SOLVED
    assert Spectrum.of(np.diag([1.0, 1e-17])).log_determinant(0.0) == -np.inf


def test_the_limit_of_small_ridges():
    k, y, _ = problem(40)
    double = np.repeat([0, *range(40)], 1)  # sample 0 twice
    k2, y2 = k[np.ix_(double, double)], y[double] + np.arange(41)[:, None]
    spectrum = Spectrum.of(k2)
    assert spectrum.rank == 40
    solution = spectrum.solution(y2)
    assert solution.status is Status.RANK_DEFICIENT
    assert "rank of k is 40 for n = 41" in solution.message
    expected = np.linalg.pinv(k2, rcond=1e-12) @ y2
    np.testing.assert_allclose(solution.value, expected, atol=1e-9)
    near = spectrum.solution(y2, 1e-9)
    np.testing.assert_allclose(k2 @ near.value, k2 @ solution.value, atol=1e-5)
    left_out = spectrum.leave_one_out(y2, [0.0]).predictions[0]
    small = spectrum.leave_one_out(y2, [1e-9]).predictions[0]
    np.testing.assert_allclose(left_out, small, atol=1e-4)
    np.testing.assert_allclose(left_out[:2], y2[[1, 0]], atol=1e-9)  # each from its copy
    assert spectrum.log_determinant(0.0) == -np.inf


def test_nothing_is_learned_of_nothing():
    spectrum = Spectrum.of(np.zeros((3, 3)))
    assert spectrum.rank == 0
    np.testing.assert_array_equal(spectrum.solution(np.ones(3)).value, np.zeros(3))
    np.testing.assert_array_equal(spectrum.leave_one_out(np.ones(3), [0.0]).predictions[0], 0)


def test_float32_has_more_rounding():
    k, _, _ = problem(50)
    single, double = Spectrum.of(k.astype("float32")), Spectrum.of(k)
    assert single.rounding > 1e6 * double.rounding
    # In the unit of the eigenvalues, which is that of the weights, too.
    weighed = Spectrum.of(k.astype("float32"), np.full(50, 16.0))
    assert weighed.rounding == pytest.approx(16 * single.rounding, rel=1e-5)


def test_negative_eigenvalues_show_how_large_errors_are():
    assert Spectrum.of(np.diag([1.0, 1.0, 1e-4, -5e-5])).rank == 2
    assert Spectrum.of(np.diag([1.0, 1.0, 1e-4, -5e-6])).rank == 3


def test_times_are_equally_spaced_on_a_log_scale():
    spectrum = Spectrum.of(problem(10)[0])
    expected = np.linspace(0, 10, 21)
    np.testing.assert_allclose(
        np.log10(spectrum.times() * spectrum.values[-1]), expected, atol=1e-9
    )


@pytest.mark.parametrize(
    ("time", "error", "message"),
    [
        (-1.0, ValueError, "0 or more, got -1.0"),
        (np.nan, ValueError, "0 or more"),
        (-np.inf, ValueError, "0 or more"),
        ("1", TypeError, "must be a number"),
        (True, TypeError, "must be a number"),
    ],
)
def test_bad_times(time, error, message):
    with pytest.raises(error, match=message):
        check_time(time)


def test_bad_weights():
    k, _, _ = problem(4)
    for weights in (
        np.zeros(4),
        np.ones(3),
        np.array([1, 1, 1, np.nan]),
        np.array([1, 1, 1, np.inf]),
    ):
        with pytest.raises(ValueError, match="weights must be 4 finite numbers above 0"):
            Spectrum.of(k, weights)
