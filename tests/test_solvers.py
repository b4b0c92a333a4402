"""Solvers against `numpy.linalg.solve`, `KernelRidge` and exact small cases."""

import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from widelimit.solvers import Status, encode_labels, solve, solve_cholesky
from widelimit.solvers.checks import check_gram

# Rows that check_gram looks at together: sizes around it have one, two and a ragged third block.
BLOCK = 128
SIZES = [1, 2, 3, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5]


def gram(n, seed=0):
    """A positive definite Gram matrix, exactly symmetric, of condition 1e4 at most or so."""
    x = np.random.default_rng(seed).normal(size=(n, 2 * n + 5))
    x *= np.linspace(1, 30, n)[:, None]
    k = x @ x.T
    return (k + k.T) / 2


def with_ridge(k, ridge):
    """The definition, written out: ridge times the mean of the diagonal."""
    return k + ridge * np.trace(k) / len(k) * np.eye(len(k))


def assert_solves(value, k, y, ridge):
    """The value agrees with LU within the condition number times rounding."""
    matrix = with_ridge(k.astype(np.float64), ridge)
    expected = np.linalg.solve(matrix, y)
    tolerance = 10 * len(k) * np.linalg.cond(matrix) * 2.3e-16
    assert tolerance < 1e-6  # a tolerance that would notice nothing is no test
    np.testing.assert_allclose(value, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def columns(y, targets):
    return y[:, 0] if targets == 0 else y[:, :targets]


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from(SIZES),
    targets=st.integers(0, 3),  # 0: y is (n,)
    ridge=st.sampled_from([0.0, 1e-6, 0.3, 20.0]),
    dtype=st.sampled_from(["float32", "float64"]),
    order=st.sampled_from("CF"),
    overwrite=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_lu(n, targets, ridge, dtype, order, overwrite, seed):
    rng = np.random.default_rng(seed)
    k = gram(n, seed).astype(dtype, order=order)
    y = columns(rng.normal(size=(n, 3)), targets)
    before = k.copy()
    solution = solve_cholesky(k, y, ridge, overwrite_k=overwrite)

    assert solution.value.shape == y.shape
    assert solution.value.dtype == np.float64
    assert solution.status is Status.SOLVED
    assert_solves(solution.value, before, y, ridge)
    statistics = solution.statistics
    assert (statistics.n, statistics.ridge) == (n, ridge)
    mean_diagonal = np.trace(before.astype(np.float64)) / n
    assert statistics.ridge_absolute == pytest.approx(ridge * mean_diagonal, rel=1e-14)
    assert 0 <= statistics.residual_norm < 1e-10
    if not (overwrite and dtype == "float64"):
        np.testing.assert_array_equal(k, before)


@pytest.mark.parametrize("fault", ["entry", "absolute ridge", "order of y", "twice the ridge"])
def test_the_comparison_with_lu_notices(fault):
    n, ridge = 2 * BLOCK + 5, 0.3
    k, y = gram(n), np.random.default_rng(1).normal(size=n)
    value = solve_cholesky(k, y, ridge).value
    assert_solves(value, k, y, ridge)
    if fault == "entry":
        k[200, 3] = k[3, 200] = k[3, 200] + 1e-6 * k[3, 3]
    if fault == "absolute ridge":
        ridge /= np.trace(k) / n
    if fault == "order of y":
        y[[0, 1]] = y[[1, 0]]
    if fault == "twice the ridge":
        ridge *= 2
    with pytest.raises(AssertionError):
        assert_solves(value, k, y, ridge)


@pytest.mark.parametrize("ridge", [1e-6, 0.01, 5.0])
@pytest.mark.parametrize("shape", [(40,), (40, 3)])
def test_agrees_with_kernel_ridge(ridge, shape):
    k, y = gram(40), np.random.default_rng(1).normal(size=shape)
    reference = KernelRidge(alpha=ridge * np.trace(k) / 40, kernel="precomputed").fit(k, y)
    np.testing.assert_allclose(solve_cholesky(k, y, ridge).value, reference.dual_coef_, rtol=1e-9)


def test_ridge_is_relative():
    k, y = gram(30), np.random.default_rng(1).normal(size=30)
    first = solve_cholesky(k, y, 0.1)
    scaled = solve_cholesky(2.0**20 * k, y, 0.1)  # a power of two: not one bit may change
    np.testing.assert_array_equal(first.value, 2.0**20 * scaled.value)
    assert scaled.statistics.ridge_absolute == 2.0**20 * first.statistics.ridge_absolute
    assert scaled.statistics.reciprocal_condition == first.statistics.reciprocal_condition


def test_exact_small_case():
    # trace(k)/n = 3, so that the matrix is [[3.5, 1], [1, 5.5]]
    solution = solve_cholesky([[2.0, 1.0], [1.0, 4.0]], [4.5, 6.5], ridge=0.5)
    np.testing.assert_allclose(solution.value, [1.0, 1.0], rtol=1e-15)
    assert solution.statistics.ridge_absolute == 1.5


def test_integers_and_lists_are_read_as_float64():
    solution = solve_cholesky([[4, 0], [0, 16]], [1, 1])
    np.testing.assert_array_equal(solution.value, [0.25, 0.0625])


def test_residual_is_that_of_the_matrix_given():
    # Asymmetry of the size of float32 rounding: the factor is one triangle, the residual the other.
    n = 50
    k = gram(n).astype(np.float32)
    k[3, 7] *= np.float32(1 + 3e-6)
    y = np.random.default_rng(1).normal(size=n)
    solution = solve_cholesky(k, y)
    triangles = [np.tril(k, -1), np.triu(k, 1)]
    full = [
        (t + t.T).astype(np.float64) + np.diag(np.diag(k)).astype(np.float64) for t in triangles
    ]
    residuals = [np.linalg.norm(y - m @ solution.value) / np.linalg.norm(y) for m in full]
    assert min(residuals) < 1e-12 < 1e-9 < max(residuals)
    assert solution.statistics.residual_norm == pytest.approx(max(residuals), rel=1e-3)


def test_residual_of_zero_targets_is_zero():
    assert solve_cholesky(np.eye(3), np.zeros(3)).statistics.residual_norm == 0.0


@pytest.mark.parametrize("n", [1, 2, 9, 150])
@pytest.mark.parametrize("least", [1.0, 1e-3])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("method", ["cholesky", "refined", "spectral", "weighed", "grown"])
def test_reciprocal_condition(n, least, ridge, method):
    """Not below that of numpy, and rarely more than three times above it."""
    k, y = gram(n), np.ones(n)
    scale = np.geomspace(1, least, n)
    k *= scale * scale[:, None]
    weights = np.linspace(0.5, 2, n) if method in ("weighed", "grown") else np.ones(n)
    absolute = ridge * np.average(np.diag(k), weights=weights)
    if method == "grown":
        half = (n + 1) // 2
        small = ridge and absolute / np.average(np.diag(k)[:half], weights=weights[:half])
        old = solve(k[:half, :half], y[:half], small, weights=weights[:half])
        solution = solve(k, y, extends=old.factor, weights=weights)
    elif method == "weighed":
        solution = solve(k, y, ridge, method="spectral", weights=weights)
    else:
        solution = solve(k, y, ridge, method=method)
    exact = 1 / np.linalg.cond(k + np.diag(absolute / weights), 1)
    estimate = solution.statistics.reciprocal_condition
    if method == "refined" and exact < 1e-6:  # below float32, which sees only that
        assert estimate < 1e-5 or np.isnan(estimate)
        return
    tolerance = 1e-2 if method == "refined" else 1e-6
    assert exact * (1 - tolerance) <= estimate <= 3 * exact


def test_the_condition_is_not_made_up(tmp_path):
    """Where nothing estimates it, and where there is no solution: NaN, not a number."""
    k, y = gram(60), np.ones(60)
    for solution in (
        solve(k, y, 1e-3, method="conjugate"),
        solve(k, y, method="tiled", store=tmp_path / "1"),
        solve(k, y, method="refined", store=tmp_path / "2"),
        solve(np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones(2)),  # its condition is 3
        solve(np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones(2), method="refined"),
        solve(-np.eye(2), np.ones(2), method="conjugate"),
    ):
        assert np.isnan(solution.statistics.reciprocal_condition)
        assert np.isnan(solution.statistics.residual_norm) == np.isnan(solution.value).all()
    singular = solve(np.ones((3, 3)), np.ones(3), method="spectral")
    assert singular.statistics.reciprocal_condition == 0.0


@pytest.mark.parametrize(
    ("dtype", "smallest", "status"),
    [  # the limit is sqrt(100) eps 0.99: 1.18e-6 and 2.2e-15
        ("float32", 1.1e-6, Status.ILL_CONDITIONED),
        ("float32", 1.3e-6, Status.SOLVED),
        ("float64", 2.0e-15, Status.ILL_CONDITIONED),
        ("float64", 2.4e-15, Status.SOLVED),
    ],
)
@pytest.mark.parametrize("method", ["cholesky", "tiled"])
def test_status_depends_on_the_rounding_of_k(method, dtype, smallest, status, tmp_path):
    k = np.diag(np.r_[np.ones(99), smallest]).astype(dtype)
    solution = solve(k, np.ones(100), method=method, store=tmp_path / "l.zarr")
    assert solution.status is status
    assert ("ridge=1e-6" in solution.status.value) == (status is Status.ILL_CONDITIONED)


def test_whole_numbers_are_rounded_as_float64():
    """As the solver reads them; what less than that decides is in doubt."""
    k = np.diag([2**53, 1])
    for matrix in (k, k.astype("float64")):
        assert solve_cholesky(matrix, np.ones(2)).status is Status.ILL_CONDITIONED


@pytest.mark.parametrize("n", SIZES)
def test_row_sums_span_all_blocks(n):
    k = gram(n)
    np.testing.assert_allclose(check_gram(k)[1], np.abs(k).sum(axis=1), rtol=1e-12)


def test_memory_is_one_copy_or_none():
    n = 1500
    k, y = gram(n), np.ones((n, 2))
    declared = 3100 * n + 32 * n * 2 + 20_000  # and a few small objects
    for overwrite, copies in [(False, 1), (True, 0)]:
        work = k.copy() if overwrite else k
        tracemalloc.start()
        solve_cholesky(work, y, 0.1, overwrite_k=overwrite)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert copies * 8 * n * n <= peak <= copies * 8 * n * n + declared
        assert declared < 0.3 * 8 * n * n  # a second copy would not pass


@pytest.mark.parametrize("order", "CF")
def test_overwrite_destroys_k_and_no_other_array(order):
    y = np.ones(20)
    k = gram(20).copy(order=order)
    value = solve_cholesky(k.copy(order=order), y).value
    overwritten = k.copy(order=order)
    np.testing.assert_array_equal(solve_cholesky(overwritten, y, overwrite_k=True).value, value)
    assert not np.array_equal(overwritten, k)
    big = gram(40)
    for spared in (k.astype(np.float32), big[::2, ::2]):
        before = spared.copy()
        solve_cholesky(spared, y, overwrite_k=True)
        np.testing.assert_array_equal(spared, before)
    k.flags.writeable = False
    np.testing.assert_array_equal(solve_cholesky(k, y, overwrite_k=True).value, value)
    np.testing.assert_array_equal(y, np.ones(20))


def assert_not_positive_definite(solution, message):
    assert solution.status is Status.NOT_POSITIVE_DEFINITE
    assert np.isnan(solution.value).all()
    with pytest.raises(np.linalg.LinAlgError, match=message):
        solution.require()
    assert "<" not in solution.message


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([2, 3, 7, 40, BLOCK + 1, 2 * BLOCK + 5]),
    factor=st.sampled_from([1.0, 3.0, -2.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_dependent_samples_are_always_found(n, factor, seed):
    # Whether Cholesky itself fails on them is a matter of rounding: about one seed in two.
    rng = np.random.default_rng(seed)
    first, second = sorted(rng.choice(n, 2, replace=False))
    x = rng.normal(size=(n, n + 5))
    x[second] = factor * x[first]
    k = x @ x.T
    k = (k + k.T) / 2
    message = rf"sample {second} \(from 0\) of n = {n}.* sample {first} \(weight {factor:g}\)"
    solution = solve_cholesky(k, np.ones(n))
    assert_not_positive_definite(solution, message)
    # The remedy of the message works.
    assert "ridge=1e-06 was tried and is enough" in solution.message
    assert solve_cholesky(k, np.ones(n), ridge=1e-6).status is Status.SOLVED


@pytest.mark.parametrize(("n", "limit"), [(2, 100), (300, 300)])
@pytest.mark.parametrize("method", ["cholesky", "tiled"])
def test_pivots_exceed_a_hundred_roundings_or_n(n, limit, method, tmp_path):
    for roundings in (0.9 * limit, 1.1 * limit):
        k = np.eye(n)
        k[:2, :2] = 1.0
        k[1, 1] += roundings * 2.0**-52
        solution = solve(k, np.ones(n), method=method, store=tmp_path / f"{roundings}.zarr")
        failed = solution.status is Status.NOT_POSITIVE_DEFINITE
        assert failed == (roundings < limit)


def test_independent_samples_of_any_scale_are_not_accused():
    k = gram(60)
    scale = np.logspace(-9, 9, 60)
    y = np.random.default_rng(1).normal(size=60)
    value = solve_cholesky(k * np.outer(scale, scale), y * scale).value
    np.testing.assert_allclose(value * scale, solve_cholesky(k, y).value, rtol=1e-8)


def test_pivot_is_the_schur_complement():
    k = gram(200)
    leading = np.linalg.solve(k[:150, :150], k[:150, 150])
    k[150, 150] = k[:150, 150] @ leading - 0.05 * np.trace(k) / 200
    pivot = (k[150, 150] - k[:150, 150] @ leading) / (np.trace(k) / 200)
    assert float(
        solve_cholesky(k, np.ones(200)).message.split("smallest pivot is ")[1].split()[0]
    ) == pytest.approx(pivot, rel=0.01)


@pytest.mark.parametrize(
    ("k", "ridge", "message"),
    [
        (np.ones((3, 3)), 0, r"pivot is 0 trace.*sample 1 .*n = 3.*sample 0 \(weight 1\)"),
        (np.ones((3, 3), np.float32), 0, r'dtype="float64" \(k is float32\); or .*ridge=1e-06 w'),
        (np.ones((3, 3)), 1e-17, "ridge=1e-06 was tried and is enough"),
        (np.diag([1.0, 0.0, 2.0]), 0, r"k\[1, 1\] is 0 with the ridge.*sample of zeros"),
        (np.zeros((2, 2)), 1.0, r"pivot is 0, at sample 0.*k\[0, 0\] is 0 .*no relative ridge"),
        (np.diag([1.0, -4.0]), 0.5, r"k\[1, 1\] is -4.75 with the ridge"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), 0, "pivot is -3 trace.*no Gram matrix"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), 0.5, "no Gram matrix.*ridge=5 was tried"),
    ],
)
def test_not_positive_definite(k, ridge, message):
    solution = solve_cholesky(k, np.ones(len(k)), ridge)
    assert_not_positive_definite(solution, message)
    if "was tried" in solution.message:  # and it is: the ridge makes it positive definite
        enough = float(solution.message.split("ridge=")[-1].split()[0])
        assert solve_cholesky(k, np.ones(len(k)), enough).require() is not None


@settings(max_examples=30, deadline=None)
@given(
    n=st.sampled_from([3, 40, BLOCK + 1, 2 * BLOCK + 5]),
    shift=st.sampled_from([0.0, 1e-9, 1e-4, 0.3, 7.0]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_ridge_of_the_message_is_enough(n, shift, dtype, seed):
    """Of rank n/2, moved below zero by some share of the mean of the diagonal."""
    x = np.random.default_rng(seed).normal(size=(n, max(1, n // 2)))
    k = x @ x.T
    k = (k - shift * np.trace(k) / n * np.eye(n)).astype(dtype)
    solution = solve_cholesky(k, np.ones(n))
    if np.trace(k) <= 0:
        assert "no relative ridge can be enough" in solution.message
        return
    smallest = -np.linalg.eigvalsh(k.astype(np.float64))[0] / (np.trace(k) / n)
    if solution.status is not Status.NOT_POSITIVE_DEFINITE:
        assert smallest < 1e-14 * n  # rounding has made it positive definite
        return
    assert_not_positive_definite(solution, r"ridge=\S+ was tried and is enough")
    enough = float(solution.message.split("ridge=")[-1].split()[0])
    assert solve_cholesky(k, np.ones(n), enough).status is not Status.NOT_POSITIVE_DEFINITE
    assert smallest < enough <= max(1e-6, 20 * smallest)


def test_float64_is_not_advised_for_float64():
    assert "float64" not in solve_cholesky(np.ones((2, 2)), [0, 1]).message


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (5, 140), (140, 5), (259, 260), (260, 259)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_asymmetry_is_found_in_every_block(place, dtype):
    k = gram(261).astype(dtype)
    k[place] += 1e-3 * k.max()
    i, j = place
    message = rf"k\[{min(i, j)}, {max(i, j)}\] = .* k\[{max(i, j)}, {min(i, j)}\] = .*k \+ k.T"
    with pytest.raises(ValueError, match=message):
        solve_cholesky(k, np.ones(261))


def test_a_transposed_tile_is_found():
    k = gram(40)
    k[8:16, 24:32] = k[8:16, 24:32].T.copy()
    with pytest.raises(ValueError, match="k must be symmetric"):
        solve_cholesky(k, np.ones(40))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 200), (260, 0), (260, 260)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinity_are_found(bad, place, dtype):
    k = gram(261).astype(dtype)
    k[place] = bad
    with pytest.raises(ValueError, match=rf"k must be finite, got k\[{place[0]}, {place[1]}\] = "):
        solve_cholesky(k, np.ones(261))


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("k", "y", "ridge", "error", "message"),
    [
        (EYE[:2], [1, 1], 0, ValueError, r"square Gram matrix .*got shape \(2, 3\): give"),
        (EYE[0], [1, 1, 1], 0, ValueError, r"square Gram matrix .*got shape \(3,\)"),
        (np.ones((0, 0)), [], 0, ValueError, r"n >= 1, got shape \(0, 0\)"),
        (EYE * 1j, [1, 1, 1], 0, TypeError, "k must hold real numbers, got dtype complex128"),
        (EYE > 0, [1, 1, 1], 0, TypeError, "k must hold real numbers, got dtype bool"),
        (EYE.astype(object), [1, 1, 1], 0, TypeError, "got dtype object: convert"),
        (EYE, [1, 1], 0, ValueError, r"shape \(3,\) or \(3, targets\) .*got shape \(2,\): give"),
        (EYE, 1.0, 0, ValueError, r"y must have shape .*got shape \(\)"),
        (EYE, np.ones((1, 3)), 0, ValueError, r"y must have shape .*got shape \(1, 3\)"),
        (EYE, np.ones((3, 0)), 0, ValueError, r"y must have shape .*got shape \(3, 0\)"),
        (EYE, np.ones((3, 1, 1)), 0, ValueError, r"y must have shape .*got shape \(3, 1, 1\)"),
        (EYE, [1, np.nan, 1], 0, ValueError, "y must be finite.*row 1: drop"),
        (EYE, [[1, 1], [1, 1], [1, np.inf]], 0, ValueError, "y must be finite.*row 2: drop"),
        (EYE, ["a", "b", "c"], 0, TypeError, "y must hold real numbers"),
        (EYE, [True, False, True], 0, TypeError, "y must hold real numbers, got dtype bool"),
        (EYE, [1, 1, 1], -1e-9, ValueError, "ridge must be finite and >= 0, got -1e-09.*relative"),
        (EYE, [1, 1, 1], np.nan, ValueError, "ridge must be finite and >= 0, got nan"),
        (EYE, [1, 1, 1], np.inf, ValueError, "ridge must be finite and >= 0, got inf"),
        (EYE, [1, 1, 1], 1.7e308, ValueError, r"ridge must be at most 1e\+100, got 1.7e\+308"),
        (1e60 * EYE, [1, 1, 1], 1e95, ValueError, r"must add at most 1e\+150 .* got 1e\+155: it"),
        (EYE, [1, 1e200, 1], 0, ValueError, r"1e-100 to 1e\+100 .* up to 1e\+200 in column 0: di"),
        (EYE, [[1, 0, 0]] * 2 + [[1, 0, 1e-200]], 0, ValueError, "up to 1e-200 in column 2: divid"),
        (EYE, [1, 1, 1], "1", TypeError, r"ridge must be a number, got '1' \(str\)"),
        (EYE, [1, 1, 1], True, TypeError, r"ridge must be a number, got True \(bool\)"),
    ],
)
def test_bad_input(k, y, ridge, error, message):
    with pytest.raises(error, match=message):
        solve_cholesky(k, y, ridge)


def test_solution_is_frozen_and_pickles():
    solution = solve_cholesky(EYE, [1.0, 2.0, 3.0], np.float32(0.5))
    with pytest.raises(AttributeError):
        solution.status = Status.ILL_CONDITIONED
    with pytest.raises(AttributeError):
        solution.statistics.ridge = 0.0
    again = pickle.loads(pickle.dumps(solution))
    np.testing.assert_array_equal(again.value, solution.value)
    assert again.status is Status.SOLVED
    assert again.statistics == solution.statistics


def test_labels_of_the_paper():
    digits = np.array([3, 0, 9])
    expected = np.full((3, 10), -0.1)
    expected[[0, 1, 2], digits] = 0.9
    np.testing.assert_allclose(encode_labels(digits, range(10)), expected, rtol=1e-15)


@given(st.data())
def test_labels_can_be_read_back(data):
    classes = data.draw(
        st.one_of(
            st.lists(st.integers(-5, 300), min_size=2, max_size=7, unique=True),
            st.lists(st.text("ab1 ", max_size=3), min_size=2, max_size=7, unique=True),
        )
    )
    y = data.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=9))
    targets = encode_labels(y, classes)
    assert targets.shape == (len(y), len(classes))
    assert [classes[j] for j in targets.argmax(axis=1)] == y
    np.testing.assert_allclose(targets.sum(axis=1), 0, atol=1e-15)
    np.testing.assert_allclose(np.ptp(targets, axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        ([0, 1, 7, 8], [0, 1, 2], r"labels from classes = \[0, 1, 2\], got \[7, 8\]: add"),
        (["a", "zz"], ["a", "b"], r"got \['zz'\]"),
        ([[0, 1]], [0, 1], r"shape \(n,\), got shape \(1, 2\): use y.argmax"),
        ([0, 0], [0], r"at least 2 labels, got shape \(1,\)"),
        ([0, 0], [[0, 1]], r"at least 2 labels, got shape \(1, 2\)"),
        ([0, 1], [0, 1, 0], r"classes must be distinct, got \[0, 1, 0\]: use numpy.unique"),
    ],
)
def test_bad_labels(y, classes, message):
    with pytest.raises(ValueError, match=message):
        encode_labels(y, classes)


def test_solvers_do_not_import_scikit_learn():
    code = "import sys, widelimit.solvers; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
