"""The spectrum against dense linear algebra, and leave-one-out against leaving one out."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from widelimit.solvers import Spectrum, Status, leave_one_out, solve_cholesky
from widelimit.solvers.spectrum import check_time


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


@pytest.mark.parametrize(
    ("time", "error", "message"),
    [
        (0, ValueError, "above 0, got 0"),
        (-1.0, ValueError, "above 0"),
        (np.nan, ValueError, "above 0"),
        ("1", TypeError, "must be a number"),
        (True, TypeError, "must be a number"),
    ],
)
def test_bad_times(time, error, message):
    with pytest.raises(error, match=message):
        check_time(time)


def test_bad_weights():
    k, _, _ = problem(4)
    for weights in (np.zeros(4), np.ones(3), np.array([1, 1, 1, np.nan])):
        with pytest.raises(ValueError, match="weights must be 4 finite numbers above 0"):
            Spectrum.of(k, weights)
