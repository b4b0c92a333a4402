"""The contract of `Factor`, with the same tests for every kind; and `solve` for every method."""

import json
import pickle
import re
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from widelimit.solvers import (
    Bordered,
    Factor,
    Method,
    Solution,
    Spectrum,
    Status,
    Unavailable,
    card,
    restore_factor,
    solve,
    solve_cholesky,
    solve_conjugate,
    solve_refined,
    solve_spectral,
    solve_tiled,
)

N, NEW, RIDGE = 40, 9, 1e-3
KINDS = ["cholesky", "cholesky weighed", "tiled", "spectral", "spectral weighed", "at a time"]


class Case:
    """A factor of the first N samples, and what it stands for."""

    def __init__(self, kind: str, folder: Path) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(N + NEW, 60)) * np.geomspace(1, 1e-2, 60)
        whole = x @ x.T
        self.whole = (whole + whole.T) / 2
        self.k = np.ascontiguousarray(self.whole[:N, :N])
        self.y = rng.normal(size=(N + NEW, 3))
        weights = rng.uniform(0.3, 3, N + NEW) if "weighed" in kind else np.ones(N + NEW)
        self.all_weights, self.weights = weights, weights[:N]
        self.kind, self.method = kind, kind.split()[0].replace("at", "spectral")
        self.time = 30.0 if kind == "at a time" else np.inf
        self.folder = folder
        self.solution = solve(self.k, self.y[:N], RIDGE, **self.options("l.zarr"))
        assert self.solution.factor is not None
        self.factor: Factor = self.solution.factor
        self.mean = float(np.average(self.k.diagonal(), weights=self.weights))
        self.a = self.k + np.diag(RIDGE * self.mean / self.weights)

    def options(self, name: str) -> dict[str, Any]:
        return {
            "method": self.method,
            "time": self.time,
            "weights": self.weights,
            "store": self.folder / name,
        }

    def coefficients(self, y: np.ndarray, kept: Any = slice(None)) -> np.ndarray:
        """By gradient flow on some of the samples."""
        if np.isinf(self.time):
            return np.linalg.solve(self.a[kept][:, kept], y)
        values, vectors = np.linalg.eigh(self.a[kept][:, kept])  # of weights 1
        return vectors @ ((1 - np.exp(-self.time * values)) / values * (vectors.T @ y).T).T


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("factor"))


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def refused(case: Case, what: str) -> bool:
    """Whether the kind cannot do it; then it says why, and what to do."""
    reasons = {
        "tiled": {"gram": "from its own store", "spectrum": "fewer samples", "described": "open"},
        "spectral": {},
        "cholesky": {},
    }
    reason = reasons[case.method].get(what)
    if reason is not None:
        with pytest.raises(Unavailable, match=reason):
            getattr(case.factor, what)()
    return reason is not None


def test_facts(case: Case) -> None:
    factor = case.factor
    assert (factor.n, factor.method, factor.time, factor.ridge) == (
        N,
        case.method,
        case.time,
        RIDGE,
    )
    assert factor.ridge_absolute == pytest.approx(RIDGE * case.mean, rel=1e-14)
    assert (factor.location is None) == (case.method != "tiled")
    assert factor.location is None or Path(factor.location) == case.folder / "l.zarr"
    assert case.solution.statistics.ridge == factor.ridge
    assert case.solution.statistics.ridge_absolute == factor.ridge_absolute


def test_solve(case: Case) -> None:
    y = case.y[:N]
    close(case.factor.solve(y), case.coefficients(y))
    again = case.factor.solution(case.k, y[:, 0])
    assert again.factor is case.factor
    assert again.status is Status.SOLVED
    close(again.value, case.coefficients(y)[:, 0])
    left = np.linalg.norm(y - case.a @ case.solution.value) / np.linalg.norm(y)
    assert case.solution.statistics.residual_norm == pytest.approx(left, rel=1e-6, abs=1e-10)
    np.testing.assert_array_equal(case.solution.value, case.factor.solution(case.k, y).value)


def test_multiply(case: Case) -> None:
    v = np.random.default_rng(1).normal(size=(N, 2))
    close(case.factor.multiply(v), case.a @ v)
    close(case.factor.multiply_gram(v), case.k @ v)
    wrong = case.k.copy()
    wrong[3, 30] += 1e-5 * case.k.max()  # such an entry would be noticed
    assert np.abs(case.factor.multiply_gram(v) - wrong @ v).max() > 1e-7 * np.abs(v).max()


def test_gram(case: Case) -> None:
    if not refused(case, "gram"):
        np.testing.assert_array_equal(case.factor.gram(), case.k)
        case.factor.gram()[:] = 0  # a new array
        np.testing.assert_array_equal(case.factor.gram(), case.k)


def test_inverse_diagonal_and_log_determinant(case: Case) -> None:
    close(case.factor.inverse_diagonal(), np.linalg.inv(case.a).diagonal())
    assert case.factor.log_determinant() == pytest.approx(np.linalg.slogdet(case.a)[1], rel=1e-10)


def test_left_out(case: Case) -> None:
    y = case.y[:N]
    expected = np.empty_like(y)
    for i in range(N):
        kept = np.arange(N) != i
        expected[i] = case.k[i, kept] @ case.coefficients(y[kept], kept)
    close(case.factor.left_out(y), expected)
    close(case.factor.left_out(y, case.solution.value), expected)


def test_spectrum(case: Case) -> None:
    if not refused(case, "spectrum"):
        spectrum = case.factor.spectrum()
        roots = np.sqrt(case.weights)
        product = (spectrum.vectors * spectrum.values) @ spectrum.vectors.T
        close(product, roots[:, None] * case.k * roots)
        absolute = case.factor.ridge_absolute
        close(spectrum.solve(case.y[:N], absolute, case.time), case.factor.solve(case.y[:N]))


def test_extended(case: Case, tmp_path: Path) -> None:
    """By the factor itself if it can, by `solve` in any case, from an array or a bordered one."""
    gram = case.factor.gram if case.method != "tiled" else case.k.copy
    bordered = Bordered(gram, case.whole[:N, N:], case.whole[N:, N:])
    absolute = case.factor.ridge_absolute
    mean = np.average(case.whole.diagonal(), weights=case.all_weights)
    a = case.whole + np.diag(absolute / case.all_weights)
    expected = np.linalg.solve(a, case.y)
    if np.isfinite(case.time):
        values, vectors = np.linalg.eigh(a)
        grown = (1 - np.exp(-case.time * values)) / values
        expected = vectors @ (grown[:, None] * (vectors.T @ case.y))
    if case.method == "cholesky":
        factor = case.factor.extended(bordered, case.all_weights)
        assert (factor.n, factor.ridge_absolute) == (N + NEW, absolute)
        assert factor.ridge == pytest.approx(absolute / mean, rel=1e-14)
        close(factor.solve(case.y), expected)
        close(factor.gram(), case.whole)
        close(factor.inverse_diagonal(), np.linalg.inv(a).diagonal())
    else:
        reason = {"tiled": "grows into another one", "spectral": "change with every sample"}
        with pytest.raises(Unavailable, match=reason[case.method]):
            case.factor.extended(bordered, case.all_weights)
    for index, k in enumerate((case.whole, bordered)):
        store = tmp_path / str(index)
        solution = solve(k, case.y, extends=case.factor, weights=case.all_weights, store=store)
        assert solution.factor is not None
        assert (solution.factor.method, solution.factor.time) == (case.method, case.time)
        assert solution.factor.ridge_absolute == pytest.approx(absolute, rel=1e-14)
        close(solution.value, expected)


@pytest.mark.parametrize("change", ["scaled", "another", "order"])
def test_a_factor_extends_the_beginning_of_k(change: str) -> None:
    case = Case("cholesky", Path())
    k = case.whole.copy()
    order = np.r_[1, 0, 2 : N + NEW]
    k = {"scaled": 1.01 * k, "another": k + np.eye(N + NEW), "order": k[order][:, order]}[change]
    with pytest.raises(ValueError, match=r"k must begin with .* got k\[0, 0\] = "):
        solve(k, case.y, extends=case.factor)
    rounded = case.whole * (1 + 4 * np.finfo(float).eps)
    assert solve(rounded, case.y, extends=case.factor).status is Status.SOLVED


def test_factors_take_columns(case: Case) -> None:
    """Of (n,) rows and columns would be taken for one another."""
    factor, y = case.factor, case.y[:N, 0]
    for call in (factor.solve, factor.multiply, factor.multiply_gram, factor.left_out):
        with pytest.raises(ValueError, match=r"takes \(40, m\).* got shape \(40,\): give v\["):
            call(y)
        with pytest.raises(ValueError, match=r"takes \(40, m\).* got shape \(39, 1\)"):
            call(y[1:, None])


def test_a_factor_is_not_written_by_its_solutions() -> None:
    """Other threads solve with it, and it may be mapped from a file."""
    case = Case("cholesky weighed", Path())
    case.factor.square.flags.writeable = False
    again = case.factor.solution(case.k, case.y[:N])
    close(again.value, case.solution.value)
    assert again.statistics.residual_norm < 1e-12


def test_ridges_are_tried_until_none_is_allowed() -> None:
    k = np.array([[1e-310, 1.0], [1.0, 1e-310]])
    solution = solve(k, np.ones(2))
    assert solution.status is Status.NOT_POSITIVE_DEFINITE
    assert "none that is allowed is enough" in solution.message


def test_weights_of_old_samples_that_change(case: Case) -> None:
    """A factor in memory is made anew: what a ridge adds to its old part is another."""
    if case.method == "tiled":
        weights = np.r_[2.0, np.ones(N + NEW - 1)]
        with pytest.raises(Unavailable, match="need the kernel in memory"):
            solve(case.whole, case.y, extends=case.factor, weights=weights, store="unused")
        return
    weights = case.all_weights.copy()
    weights[0] *= 2
    if case.method == "cholesky":
        with pytest.raises(Unavailable, match="solve all of k again"):
            case.factor.extended(case.whole, weights)
    solution = solve(case.whole, case.y, extends=case.factor, weights=weights)
    if np.isinf(case.time):
        a = case.whole + np.diag(case.factor.ridge_absolute / weights)
        close(solution.value, np.linalg.solve(a, case.y))


def test_a_new_sample_that_repeats_an_old_one_is_found() -> None:
    """Also where rounding leaves a little more than 0 of its pivot."""
    k, y = np.eye(3), np.ones(3)
    k[0, 2] = k[2, 0] = 1.0
    k[2, 2] += 2.0**-52
    factor = solve(k[:2, :2], y[:2]).factor
    assert factor is not None
    with pytest.raises(np.linalg.LinAlgError, match="is not positive definite"):
        factor.extended(k)
    solution = solve(k, y, extends=factor)
    assert solution.status is Status.NOT_POSITIVE_DEFINITE
    assert "sample 2 (from 0) of n = 3" in solution.message


def test_described_and_back(case: Case) -> None:
    if refused(case, "described"):
        return
    facts, arrays = case.factor.described()
    given: dict[str, Any] = {
        "weights": case.weights,
        "ridge": case.factor.ridge,
        "ridge_absolute": case.factor.ridge_absolute,
    }
    again = restore_factor(json.loads(json.dumps(facts, allow_nan=False)), arrays, **given)
    assert type(again) is type(case.factor)
    for name in ("n", "ridge", "ridge_absolute", "time"):
        assert getattr(again, name) == getattr(case.factor, name)
    y = case.y[:N]
    np.testing.assert_array_equal(again.solve(y), case.factor.solve(y))
    np.testing.assert_array_equal(again.left_out(y), case.factor.left_out(y))
    np.testing.assert_array_equal(again.gram(), case.factor.gram())
    with pytest.raises(ValueError, match="must be cholesky or spectral, got 'tiled'"):
        restore_factor({**facts, "kind": "tiled"}, arrays, **given)
    with pytest.raises(KeyError):
        restore_factor(facts, {}, **given)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["cholesky", "card", "more samples", "saved", "pickled"])
def test_the_spectrum_knows_how_exact_k_was(
    method: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor holds float64, but directions of rounding of a float32 kernel are no data."""
    monkeypatch.setattr(card, "card_device", host)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 30))
    k = (x @ x.T + np.diag(np.geomspace(1e-12, 1e-3, 60))).astype(dtype)
    k, y = (k + k.T) / 2, np.ones(60)
    if method == "more samples":
        factor = solve_cholesky(k[:50, :50], y[:50], 1e-3).factor
        assert factor is not None
        # New columns are less exact, or the old ones are: the sum is as the worse of them.
        assert factor.extended(k.astype(np.float32)).spectrum().rounding > 1e-8
        factor = factor.extended(k)
    else:
        name: Method = "card" if method in ("card", "pickled") else "cholesky"
        factor = solve(k, y, 1e-3, method=name).factor
    assert factor is not None
    if method == "saved":
        facts, arrays = factor.described()
        given: Any = {"weights": y, "ridge": 0.0, "ridge_absolute": 0.0}
        for wrong in (0.0, 1.0, np.nan):
            with pytest.raises(ValueError, match=r"precision must be from 2.2e-16 to 1, got"):
                restore_factor(facts | {"precision": wrong}, arrays, **given)
        old = restore_factor({"kind": "cholesky"}, arrays, **given)  # as models of before say
        assert old.spectrum().rounding <= factor.spectrum().rounding
        factor = restore_factor(facts, arrays, **given)
    elif method == "pickled":
        factor = pickle.loads(pickle.dumps(factor))
    found, expected = factor.spectrum(), Spectrum.of(k)
    assert found.rounding == pytest.approx(expected.rounding, rel=1e-6)
    assert found.rank == expected.rank
    assert (found.rounding > 1e-8) == (dtype == "float32")


def host() -> card.Device:
    return card.Device(
        np, np.linalg.cholesky, scipy.linalg.solve_triangular, np.asarray, lambda: 2**40
    )


# ---------------------------------------------------------------- bordered matrices


@pytest.mark.parametrize(("n", "p"), [(5, 3), (1, 1), (4, 0), (0, 4)])
def test_bordered_matrices(n: int, p: int) -> None:
    x = np.random.default_rng(0).normal(size=(n + p, 3)).astype(np.float32)
    whole = x @ x.T
    asked: list[int] = []

    def gram() -> np.ndarray:
        asked.append(1)
        return whole[:n, :n].astype(np.float64)

    k = Bordered(gram, whole[:n, n:], whole[n:, n:])
    assert (k.shape, k.dtype) == (whole.shape, np.float32)
    np.testing.assert_array_equal(k[:n, n:], whole[:n, n:])
    np.testing.assert_array_equal(k[n:, n:], whole[n:, n:])
    assert not asked  # the old part is read only where it is needed
    np.testing.assert_array_equal(np.asarray(k), whole)
    assert np.asarray(k).dtype == np.float32
    for rows in (slice(0, n + p), slice(1, n + 1), slice(n, n + p)):
        for columns in (slice(0, n + p), slice(0, n), slice(n, n + 1), slice(2, n)):
            np.testing.assert_array_equal(k[rows, columns], whole[rows, columns])


# ---------------------------------------------------------------- one call for every method


NAMED = {
    "cholesky": solve_cholesky,
    "tiled": solve_tiled,
    "refined": solve_refined,
    "conjugate": solve_conjugate,
    "spectral": solve_spectral,
    "card": card.solve_card,
}


@pytest.fixture
def _numpy_for_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    arithmetic = np.linalg.cholesky, scipy.linalg.solve_triangular
    device = card.Device(np, *arithmetic, np.asarray, lambda: 2**40)
    monkeypatch.setattr(card, "card_device", lambda: device)


def problem(n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, n + 5))
    return x @ x.T, rng.normal(size=(n, 2))


@pytest.mark.usefixtures("_numpy_for_a_card")
@pytest.mark.parametrize("method", typing.get_args(Method))
def test_solve_is_the_function_of_that_name(method: Any, tmp_path: Path) -> None:
    k, y = problem()
    store: dict[str, Any] = {"store": tmp_path / "1"} if method in ("tiled", "refined") else {}
    named: Solution = NAMED[method](k, y, 0.1, **store)
    found = solve(k, y, 0.1, method=method, store=tmp_path / "2")
    assert np.array_equal(found.value, named.value)
    assert found.status is Status.SOLVED
    assert (tmp_path / "2").exists() == (method in ("tiled", "refined", "conjugate"))
    expected = np.linalg.solve(k + 0.1 * np.trace(k) / 50 * np.eye(50), y)
    np.testing.assert_allclose(found.value, expected, rtol=1e-6)
    assert (found.factor is None) == (method in ("conjugate", "refined"))
    assert found.factor is None or found.factor.method == method


@pytest.mark.usefixtures("_numpy_for_a_card")
@pytest.mark.parametrize("method", ["cholesky", "card", "tiled", "conjugate"])
def test_samples_have_the_numbers_that_are_given(method: Any, tmp_path: Path) -> None:
    """They may be some of more samples, and messages name them among those."""
    k, y = problem(4)
    numbers = np.array([2, 3, 5, 7])
    twice, zero = k.copy(), k.copy()
    twice[3], twice[:, 3] = k[1], k[:, 1]
    twice[3, 3] = k[1, 1]
    zero[2] = zero[:, 2] = 0.0
    told = solve(zero, y, 0.0, method=method, store=tmp_path / "1", numbers=numbers).message
    assert ("sample 5 (from 0)" if method == "card" else "k[5, 5]") in told
    if method != "conjugate":  # which names a direction
        told = solve(twice, y, 0.0, method=method, store=tmp_path / "2", numbers=numbers).message
        assert "sample 7 (from 0)" in told
        assert "of n" not in told
        assert ("above all of sample 3 (" in told) == (method != "card")


@pytest.mark.parametrize("method", ["cholesky", "spectral"])
def test_entries_have_the_numbers_that_are_given(method: Any) -> None:
    k, y = problem(4)
    k[0, 3] += 1.0
    with pytest.raises(ValueError, match=r"got k\[2, 7\] = \S+ and k\[7, 2\] = "):
        solve(k, y, method=method, numbers=np.array([2, 3, 5, 7]))
    k[0, 3] = np.nan
    with pytest.raises(ValueError, match=r"got k\[2, 7\] = nan"):
        solve(k, y, method=method, numbers=np.array([2, 3, 5, 7]))


def test_the_method_is_cholesky_if_none_is_given() -> None:
    solution = solve(*problem())
    assert solution.factor is not None
    assert solution.factor.method == "cholesky"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "qr"}, r"method must be one of \['cholesky', 'card', .*\], got 'qr'"),
        ({"method": "tiled"}, "method='tiled' needs store, got None: give a path"),
        ({"time": 1.0}, "time of training needs eigenvectors, got time=1 and method='cholesky'"),
        ({"method": "conjugate", "time": 1.0}, "or use method='spectral'"),
        ({"method": "refined", "weights": 2}, "need the kernel in memory: remove repeated"),
        ({"method": "tiled", "weights": 2, "store": "unused"}, "need the kernel in memory"),
        ({"extends": True}, "extends keeps the ridge and the time of its factor, got ridge=0.1"),
        ({"extends": True, "ridge": 0.0, "time": 1.0}, "got ridge=0.0 and time=1.0 as well: leave"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    k, y = problem()
    given = {"ridge": 0.1, **options}
    if "weights" in given:
        given["weights"] = np.full(50, 2.0)
    if "extends" in given:
        given["extends"] = solve(k, y).factor
    with pytest.raises(ValueError, match=message):
        solve(k, y, **given)


def test_a_solution_shows_no_factor_and_pickles_with_it() -> None:
    import pickle

    solution = solve(*problem())
    assert "factor" not in repr(solution)
    again = pickle.loads(pickle.dumps(solution))
    np.testing.assert_array_equal(again.factor.gram(), problem()[0])
    assert not re.search("array", repr(solution.statistics))
