"""Which solver is used is decided before there is a kernel, and refused before there is one."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.linalg import LinAlgWarning

import widelimit as wl
from widelimit.estimators import base, fitted
from widelimit.estimators import regression as regression_module
from widelimit.estimators.regression import Options, solver_for
from widelimit.solvers import blas
from widelimit.solvers import conjugate as conjugate_module

# Targets of noise are best predicted by next to nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(ridge|time)=.loo. chose:UserWarning")

# The regressions of the paper, on samples and targets as they are.
Regressor = partial(wl.NTKRegressor, normalize_y=False, standardise=False)

N = 1000
FACTOR, SPECTRUM = 16 * N * N, 24 * N * N  # bytes


def options(**changes: Any) -> Options:
    given: dict[str, Any] = {
        "ridge": 0.1,
        "time": np.inf,
        "solver": "auto",
        "store": None,
        "memory": None,
        "threads": None,
    }
    return Options(**(given | changes))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the bytes that are free."""

    def let(number: int) -> None:
        for module in (regression_module, conjugate_module):
            monkeypatch.setattr(module, "remaining", lambda memory: number)

    return let


@pytest.mark.parametrize(
    ("changes", "about", "bytes_free", "method"),
    [
        ({}, {}, FACTOR, "cholesky"),
        ({}, {}, FACTOR - 1, "conjugate"),
        ({}, {"held": 5}, FACTOR + 5, "cholesky"),
        ({}, {"held": 5}, FACTOR + 4, "conjugate"),
        ({"store": "s"}, {}, FACTOR - 1, "tiled"),
        ({"store": "s"}, {}, FACTOR, "cholesky"),
        ({"solver": "cholesky", "store": "s"}, {}, 0, "tiled"),
        ({"solver": "cg"}, {}, 10**12, "conjugate"),
        ({"ridge": "loo"}, {}, SPECTRUM, "spectral"),
        ({"time": 1.0}, {}, SPECTRUM, "spectral"),
        ({"time": 0.0}, {}, SPECTRUM, "spectral"),
        ({"time": "loo", "ridge": 0.0}, {}, SPECTRUM, "spectral"),
        ({}, {"several": True}, FACTOR, "cholesky"),
        ({}, {"weights": np.arange(1.0, N + 1)}, FACTOR, "cholesky"),
        ({"ridge": 0.0, "store": "s"}, {"weights": np.arange(1.0, N + 1)}, 0, "tiled"),
        ({"store": "s"}, {"weights": np.ones(N)}, 0, "tiled"),
        ({"solver": "cg"}, {"weights": np.arange(1.0, N + 1)}, 10**12, "conjugate"),
        ({"solver": "cg"}, {"weights": np.arange(1.0, N + 1), "stored": True}, 10**12, "conjugate"),
    ],
)
def test_the_solver(free: Any, changes: Any, about: Any, bytes_free: int, method: str) -> None:
    free(bytes_free)
    assert solver_for(N, options(**changes), **about) == method


WEIGHTS = {"weights": np.arange(1.0, N + 1)}


@pytest.mark.parametrize(
    ("changes", "about", "bytes_free", "error", "message"),
    [
        ({"ridge": "loo"}, {}, SPECTRUM - 1, MemoryError, "eigenvectors of 1000 samples in mem"),
        ({"time": 1.0, "store": "s"}, {}, SPECTRUM - 1, MemoryError, "leave time out, use fewer"),
        ({"solver": "cholesky"}, {}, FACTOR - 1, MemoryError, 'give store, .* solver="cg"'),
        ({"solver": "cg", "ridge": "loo"}, {}, 10**12, ValueError, "which solver='cg' has not"),
        ({"solver": "cg", "time": 1.0}, {}, 10**12, ValueError, "which solver='cg' has not"),
        ({"solver": "cg", "time": "loo"}, {}, 10**12, ValueError, "which solver='cg' has not"),
        ({"solver": "cg"}, {"several": True}, 10**12, ValueError, "a choice among networks"),
        ({}, {"several": True}, FACTOR - 1, MemoryError, "give store, .* or one network"),
        ({"store": "s"}, WEIGHTS, 0, ValueError, "weights .* need the kernel in memory"),
        ({"solver": "cg"}, {"targets": 9}, 8 * N * (8 * 9 + 3), MemoryError, "rank 1, take 1 MiB"),
        ({"solver": "cg"}, {"held": 10**12}, 10**12, MemoryError, "rank 1, take 1 MiB"),
        ({}, {}, 0, MemoryError, "rank 1, take 1 MiB"),
    ],
)
def test_what_is_refused(
    free: Any, changes: Any, about: Any, bytes_free: int, error: Any, message: str
) -> None:
    free(bytes_free)
    with pytest.raises(error, match=message):
        solver_for(N, options(**changes), **about)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ridge": 1e-2},
        {"ridge": "loo"},
        {"time": 3.0},
        {"time": "loo"},
        {"time": 3.0, "ridge": 0.1},
        {"net": ["ntk-dense-2", "ntk-dense-3"], "ridge": 1e-2},
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_score_is_over_all_samples(options: dict[str, Any], weighted: bool) -> None:
    """Copies of a sample differ by targets: their spread belongs to the score, by weight."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3))
    x = x[np.r_[:30, [0, 0, 0, 5, 7, 7]]]
    y = rng.normal(size=36)
    weights = rng.uniform(0.2, 4, 36) if weighted else None
    model = Regressor(**({"net": "ntk-dense-2"} | options)).fit(x, y, weights)
    squares = (y - model.loo_predictions_) ** 2
    assert model.loo_score_ == pytest.approx(-np.average(squares, weights=weights), rel=1e-10)
    assert model.loo_score_ == np.nanmax(model.loo_curve_)
    assert (model.time_ if "time" in options else model.ridge_) in model.loo_grid_
    if weighted:  # and it would be noticed
        assert model.loo_score_ != pytest.approx(-squares.mean(), rel=1e-3)
    # Without sample 0 and its copies, by another fit.
    kept = np.setdiff1d(np.arange(36), [0, 30, 31, 32])
    given = {"ridge": model.ridge_, "time": model.time_, "net": model.net_}
    if model.ridge_ == 0:
        alone = Regressor(**given).fit(x[kept], y[kept], None if weights is None else weights[kept])
        np.testing.assert_allclose(alone.predict(x[:1]), model.loo_predictions_[:1], rtol=1e-6)
    np.testing.assert_array_equal(model.loo_predictions_[[30, 31, 32]], model.loo_predictions_[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"solver": "cholesky", "memory": 1}, MemoryError, "a factor for 40 samples takes"),
        ({"ridge": "loo", "memory": 1}, MemoryError, "need the eigenvectors of 40 samples"),
        ({"time": 1.0, "memory": 1}, MemoryError, "need the eigenvectors of 40 samples"),
        ({"solver": "cg", "ridge": "loo"}, ValueError, "which solver='cg' has not"),
        ({"solver": "cg", "time": "loo"}, ValueError, "which solver='cg' has not"),
        ({"solver": "cg", "net": ["ntk-dense-2", "ntk-dense-3"]}, ValueError, "choice among netw"),
    ],
)
def test_fit_refuses_before_the_kernel(
    monkeypatch: pytest.MonkeyPatch, changes: Any, error: Any, message: str
) -> None:
    monkeypatch.setattr(fitted, "kernel", None)  # it is not called
    x = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(error, match=message):
        Regressor(**({"net": "ntk-dense-2"} | changes)).fit(x, x[:, 0])


@pytest.mark.parametrize("changes", [{"ridge": "loo"}, {"time": 1.0}, {"time": "loo"}])
@pytest.mark.parametrize("about", [{}, {"card": True}])
def test_too_many_samples_for_eigenvectors(
    free: Any, monkeypatch: pytest.MonkeyPatch, changes: Any, about: Any
) -> None:
    """LAPACK would write past the end of its workspace."""
    free(10**15)
    monkeypatch.setattr(regression_module, "card_device", lambda: SimpleNamespace(fits=fits))
    assert solver_for(32_766, options(**changes), **about) == ("card" if about else "spectral")
    with pytest.raises(ValueError, match=r"at most 32,766 samples, got 32,767: .*fewer"):
        solver_for(32_767, options(**changes), **about)
    assert solver_for(32_767, options(), **about) == ("card" if about else "cholesky")


def fits(n: int, *, vectors: bool = False) -> bool:
    return True


def test_fit_with_too_many_samples_for_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice is refused before the kernel; one that is singular says what to do."""
    monkeypatch.setattr(blas, "MAX_EIGENVECTORS", 11)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    net = wl.Network([wl.Dense()])  # linear: of rank 3
    message = "smallest pivot.*ridge=1e-06 was tried and is enough.*at most 11 samples, got 12"
    with pytest.raises(np.linalg.LinAlgError, match=message):
        Regressor(net).fit(x, y)
    Regressor(net, ridge=1e-6).fit(x, y)
    monkeypatch.setattr(fitted, "kernel", None)  # it is not called
    with pytest.raises(ValueError, match="at most 11 samples, got 12"):
        Regressor(net, ridge="loo").fit(x, y)


TWO = ["cntk-vanilla-3", "cntk-gap-3"]


@pytest.mark.parametrize(
    ("estimator", "changes", "matrices", "itemsize"),
    [
        (wl.NTKClassifier, {"net": TWO[0]}, 1, 4),
        (wl.NTKClassifier, {"net": TWO[0], "dtype": "float64"}, 1, 8),
        (wl.NTKRegressor, {"net": TWO[0]}, 2, 4),  # its NNGP, too
        (wl.NTKRegressor, {"net": TWO}, 4, 4),
        (wl.NTKClassifier, {"net": TWO, "combine": "mean"}, 3, 4),  # those and their mean
        (wl.NTKClassifier, {"net": TWO[:1], "combine": "mean"}, 1, 4),
        (wl.NTKClassifier, {"net": TWO, "combine": "mean", "store": "s"}, 3, 4),
        (wl.NTKClassifier, {"net": TWO[:1], "combine": "mean", "store": "s"}, 0, 4),
        (wl.NTKClassifier, {"net": TWO, "store": "s"}, 0, 4),
    ],
)
def test_what_kernels_will_take(
    monkeypatch: pytest.MonkeyPatch, estimator: Any, changes: Any, matrices: int, itemsize: int
) -> None:
    held: list[int] = []

    class Asked(Exception):
        pass

    def spy(m: int, options: Options, **about: Any) -> Any:
        held.append(about["held"])
        raise Asked

    monkeypatch.setattr(base, "solver_for", spy)
    x = np.random.default_rng(0).random((7, 4, 4, 1))
    with pytest.raises(Asked):
        estimator(**changes).fit(np.concatenate([x, 2 * x[:1]]), np.arange(8) % 2)
    assert held == [7 * 7 * matrices * itemsize]


# --- which sample is at fault ------------------------------------------------------------------

A, B, C = np.eye(3)
SAME = np.array([A, A, A, B, C, 0.1 * A + 0.2 * B + 2 * C])
LINEAR = wl.Network([wl.Dense()])
FAULT = r"at sample {} \(from 0\)\. To rounding .*, above all of sample {} \(weight 2\)"


def test_messages_name_samples_by_their_places_in_x() -> None:
    """Whatever is one row of the matrix, and whatever does not count."""
    y = np.arange(6.0)
    with pytest.raises(np.linalg.LinAlgError, match=FAULT.format(5, 4)):
        Regressor(LINEAR, ridge=1e-17).fit(SAME, y)
    weight = np.array([0, 1, 1, 1, 0, 1, 1])
    more = np.insert(SAME, 4, 7 * B - A, axis=0)
    with pytest.raises(np.linalg.LinAlgError, match=FAULT.format(6, 5)):
        Regressor(LINEAR, ridge=1e-17).fit(more, np.arange(7.0), weight)
    with pytest.raises(np.linalg.LinAlgError, match=FAULT.format(6, 5)):
        Regressor(kernel="precomputed", ridge=1e-17).fit(
            more @ more.T, np.arange(7.0), weight * [1, 1, 0, 1, 1, 1, 1]
        )
    model = Regressor(LINEAR, ridge=1e-17).fit(more[:6], np.arange(6.0), weight[:6])
    with pytest.raises(np.linalg.LinAlgError, match=FAULT.format(7, 5)):
        model.partial_fit(more[[4, 6]], [0.0, 0.0], [0, 1])
    k = more @ more.T
    k[1, 5] += 1.0
    for ridge in (1.0, "loo"):
        with pytest.raises(ValueError, match=r"symmetric .* got k\[1, 5\] = \S+ and k\[5, 1\] = "):
            Regressor(kernel="precomputed", ridge=ridge).fit(k, np.arange(7.0), weight)


def test_the_ridge_of_the_message_is_for_distinct_samples() -> None:
    """Relative to all of them, as a parameter is, it is another number."""
    factors = np.linspace(0.01, 0.1, 20)
    x = np.concatenate([SAME, factors[:, None] * A])
    with pytest.raises(np.linalg.LinAlgError, match="taken as one: give one that is") as caught:
        Regressor(LINEAR, ridge=1e-16).fit(x, np.arange(26.0))
    times = float(str(caught.value).split("one that is ")[-1].split()[0])
    assert times == pytest.approx(26 / (6 + (factors**2).sum()), rel=1e-2)


def test_samples_out_of_range_have_their_places_in_x(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples that are equal, and of blocks of new ones, each by itself counts from 0."""
    net = wl.Network([wl.Conv(3), wl.Sin(), wl.GlobalAvgPool(), wl.Dense()])
    options: dict[str, Any] = {"dtype": "float32", "ridge": 1e-3}
    x, y = np.random.default_rng(0).normal(size=(9, 4, 4, 2)), np.arange(9.0)
    x[:3], weight = x[4], np.r_[1, 0, np.ones(7)]
    bright = np.array(x)
    bright[7] *= 1e3
    told = r"for float32, got \S+ for sample {} of X: use dtype="
    with pytest.raises(OverflowError, match=told.format(7)):
        Regressor(net, **options).fit(bright, y, weight)
    model = Regressor(net, **options).fit(x[:5], y[:5], weight[:5])
    with pytest.raises(OverflowError, match=told.format(7)):
        model.partial_fit(bright[5:], y[5:], weight[5:])
    monkeypatch.setattr(base, "_BLOCK_ENTRIES", 6)
    with pytest.warns(UserWarning, match="far"), pytest.raises(OverflowError, match=told.format(7)):
        model.predict(bright)


def test_multiples_of_too_different_sizes_have_their_places_in_x() -> None:
    x = np.array([A, A, B, A, C, 1e60 * B])
    told = r"between samples {} and {}: rescale"
    with pytest.raises(ValueError, match=told.format(2, 5)):
        Regressor(LINEAR, ridge=1.0).fit(x, np.arange(6.0), [1, 0, 1, 1, 1, 1])
    model = Regressor(LINEAR, ridge=1.0).fit(x[:4], np.arange(4.0), [1, 0, 1, 1])
    with pytest.raises(ValueError, match=told.format(2, 5)):
        model.partial_fit(x[4:], np.arange(2.0))


def test_eigenvectors_of_a_singular_kernel_need_their_room(free: Any) -> None:
    """A factor fitted, eigenvectors do not: the message of before says which ridge is enough."""
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40.0)
    k = x @ x.T
    model = Regressor(kernel="precomputed", ridge=0.0)
    free(24 * 40 * 40)
    with pytest.warns(LinAlgWarning, match="The rank of k is 5"):
        model.fit(k, y)
    free(24 * 40 * 40 - 1)
    with pytest.raises(np.linalg.LinAlgError, match=r"is enough.* its eigenvectors need .* raise"):
        model.fit(k, y)
