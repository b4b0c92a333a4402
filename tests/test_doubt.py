"""Errors of the kernel that decide are warned of, others are not."""

import warnings
from dataclasses import dataclass, replace
from functools import partial

import mpmath
import numpy as np
import pytest
from scipy.linalg import LinAlgWarning
from sklearn.datasets import load_digits

import widelimit as wl
from widelimit.estimators import doubt
from widelimit.estimators.directions import Directions
from widelimit.estimators.doubt import Errors, Nearest, doubted, find_nearest
from widelimit.estimators.samples import Training
from widelimit.solvers import Solution, Statistics, Status

# The regressions of the paper, on samples and targets as they are.
Regressor = partial(wl.NTKRegressor, normalize_y=False, standardise=False)
Classifier = partial(wl.NTKClassifier, standardise=False)

WRONG = 0.01  # error of outputs, over the largest target or output


def tangent_kernel(depth, x, z):
    """Eq. 7-9 of the paper, c = 2, to 50 digits: dense networks without biases."""
    out = mpmath.matrix(len(x), len(z))
    for i, a in enumerate(x):
        for j, b in enumerate(z):
            size = mpmath.sqrt(mpmath.fdot(a, a) * mpmath.fdot(b, b))
            sigma = theta = mpmath.fdot(a, b) / size
            for _ in range(depth):
                angle = mpmath.acos(max(min(sigma, mpmath.mpf(1)), mpmath.mpf(-1)))
                slope = 1 - angle / mpmath.pi
                sigma = sigma * slope + mpmath.sin(angle) / mpmath.pi
                theta = theta * slope + sigma
            out[i, j] = theta * size
    return out


def exact_outputs(depth, x, y, new, ridge):
    with mpmath.workdps(50):
        x, new = ([[mpmath.mpf(float(v)) for v in row] for row in part] for part in (x, new))
        k, n = tangent_kernel(depth, x, x), len(x)
        mean = sum(k[i, i] for i in range(n)) / n
        a = mpmath.lu_solve(k + ridge * mean * mpmath.eye(n), mpmath.matrix(y.tolist()))
        return np.array([float(v) for v in tangent_kernel(depth, new, x) * a])


def fit(model, x, y):
    """Fit; also return whether it warned, or refused: then without a ridge."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return model.fit(x, y), bool(caught)
        except np.linalg.LinAlgError:
            return model.set_params(ridge=0.0).fit(x, y), True


def relative_error(found, expected, y):
    return np.abs(found - expected).max() / max(np.abs(y).max(), np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_wrong_is_silent_for_rows(dtype):
    rng = np.random.default_rng(5)
    wrong = right = 0
    for _ in range(36):
        d, n, p = rng.integers(2, 6), rng.integers(1, 6), rng.integers(1, 3)
        x = rng.normal(size=(n, d))
        of, size = rng.integers(n, size=p), np.exp(rng.normal(size=(p, 1)))
        gap = 10 ** (rng.uniform(-12, -2, (p, 1)) if dtype == "float64" else rng.uniform(-7, -1))
        x = np.r_[x, size * x[of] * (1 + gap * rng.normal(size=(p, d)))]
        y, new = rng.normal(size=n + p), rng.normal(size=(5, d))
        depth, ridge = int(rng.integers(1, 4)), rng.choice([0.0, 10 ** rng.uniform(-13, -6)])
        model, warned = fit(Regressor(wl.ntk_dense(depth), ridge=ridge, dtype=dtype), x, y)
        error = relative_error(model.predict(new), exact_outputs(depth, x, y, new, ridge), y)
        assert warned or error < WRONG
        wrong += error > WRONG
        right += not warned
    assert wrong > 6  # without warnings this would have been seen
    assert right > 9


@pytest.mark.parametrize(
    "net",
    [
        wl.cntk_vanilla(3),
        wl.cntk_gap(4),
        wl.Network([wl.Conv(3), wl.ReLU(), wl.LocalAvgPool(1), wl.Dense()]),
    ],
    ids=str,
)
def test_nothing_wrong_is_silent_for_images(net):
    rng = np.random.default_rng(7)
    wrong = right = 0
    for index in range(24):
        n, p = rng.integers(2, 12), rng.integers(1, 4)
        x = rng.random((n, 6, 5, 2))
        if index % 3 == 0:
            x = np.round(x)  # line art: many pixels agree up to a factor
        copies = x[rng.integers(n, size=p)] * rng.uniform(0.3, 1, (p, 1, 1, 1))
        if index % 2:
            x = np.round(255 * np.concatenate([x, copies])).astype("uint8")
        else:
            gap = 10 ** rng.uniform(-6, -1)
            x = np.concatenate([x, copies * (1 + gap * rng.normal(size=copies.shape))])
        y, new = rng.normal(size=n + p), x.max() * rng.random((5, 6, 5, 2))
        single, warned = fit(Regressor(net, dtype="float32"), x, y)
        double, _ = fit(Regressor(net, dtype="float64"), x, y)
        error = relative_error(single.predict(new), double.predict(new), y)
        assert warned or error < WRONG
        wrong += error > WRONG
        right += not warned
    assert wrong > 1
    assert right > 3


def ordinary():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[:120]
    rows, labels = x[order], y[order]
    images = rows.reshape(-1, 8, 8, 1)
    random = np.random.default_rng(1).random((120, 6, 6, 3))
    return {
        "digits": ([wl.cntk_gap(4), wl.cntk_vanilla(5), wl.ntk_dense(3)], images, labels),
        "rows": ([wl.ntk_dense(1), wl.ntk_dense(4, b_std=0.5)], rows, labels),
        "random": ([wl.cntk_gap(3), wl.cntk_vanilla(3)], random, labels[:120]),
        "bytes": ([wl.cntk_vanilla(3)], (255 * random).astype("uint8"), labels[:120]),
        "line art": ([wl.cntk_vanilla(3), wl.cntk_gap(3)], np.round(random), labels[:120]),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ordinary())
def test_ordinary_problems_are_silent(name, dtype, monkeypatch):
    def never(*arguments):
        raise AssertionError("an error was measured")

    monkeypatch.setattr("widelimit.estimators.fitted.FittedKernel._error_at_once", never)
    networks, x, y = ordinary()[name]
    noise = np.random.default_rng(2).normal(size=len(x))
    for net in networks:
        for model in (
            Classifier(net, dtype=dtype).fit(x, y),
            Regressor(net, dtype=dtype).fit(x, noise),
        ):
            assert model.solution_.status is Status.SOLVED
        k = wl.kernel(net, x, dtype=dtype)
        assert Classifier(kernel="precomputed").fit(k, y).solution_.status is Status.SOLVED


ROWS = np.random.default_rng(3).normal(size=(9, 4))
TARGETS = np.random.default_rng(4).normal(size=9)
NEAR = np.concatenate([ROWS[:8], 1.7 * ROWS[2:3] * (1 + 4e-7 * ROWS[8:])])


def test_what_is_said():
    match = r"outputs by \S+ of the largest target: the angle between samples 2 and 8"
    with pytest.warns(LinAlgWarning, match=match) as caught:
        model = Regressor(wl.ntk_dense(3)).fit(NEAR, TARGETS)
    assert caught[0].filename == __file__
    assert model.solution_.status is Status.ILL_CONDITIONED
    for options in ({"ridge": 1e-4}, {"time": 10.0}):
        Regressor(wl.ntk_dense(3), **options).fit(NEAR, TARGETS)
    Regressor(wl.ntk_dense(3)).fit(NEAR, np.r_[TARGETS[:8], 1.7 * TARGETS[2]])  # they agree
    Regressor(wl.ntk_dense(3)).fit(NEAR, 0 * TARGETS)
    Regressor(wl.ntk_dense(3, b_std=0.5)).fit(NEAR, TARGETS)  # 1.7 times is another sample
    near = np.concatenate([ROWS[:8], ROWS[2:3] * (1 + 4e-7 * ROWS[8:])])
    with pytest.warns(LinAlgWarning, match="the angle between samples"):
        Regressor(wl.ntk_dense(3, b_std=0.5)).fit(near, TARGETS)
    with pytest.warns(LinAlgWarning, match="the angle between samples 2 and 8"):  # places in X
        Regressor(wl.ntk_dense(3)).fit(NEAR, TARGETS, sample_weight=[0, 0, *[1] * 7])


@pytest.mark.parametrize("options", [{}, {"ridge": 1e-12}, {"time": 1e12}])
def test_every_way_to_solve_is_judged(options):
    with pytest.warns(LinAlgWarning, match="outputs by"):
        Regressor(wl.ntk_dense(3), **options).fit(NEAR, TARGETS)


def test_samples_that_are_added_are_judged():
    model = Regressor(wl.ntk_dense(3)).partial_fit(NEAR[:8], TARGETS[:8])
    with pytest.warns(LinAlgWarning, match="samples 2 and 8"):
        model.partial_fit(NEAR[8:], TARGETS[8:])


def test_the_network_that_is_chosen_is_judged():
    with pytest.warns(LinAlgWarning, match="outputs by"):
        Regressor([wl.ntk_dense(3), wl.ntk_dense(2)]).fit(NEAR, TARGETS)
    nets = [wl.ntk_dense(3), wl.ntk_dense(3, b_std=1.0)]
    with pytest.warns(LinAlgWarning, match="outputs by"):
        Regressor(nets, combine="mean").fit(
            np.concatenate([ROWS[:8], ROWS[2:3] * (1 + 4e-7 * ROWS[8:])]), TARGETS
        )


@pytest.mark.parametrize("factor", [1.0, 1.7])
def test_a_kernel_that_is_given_is_judged(factor):
    """Multiples and equal samples alike: nothing tells them from near ones."""
    x = np.concatenate([ROWS[:8], factor * ROWS[2:3] * (1 + 4e-7 * ROWS[8:])])
    for matrix in (
        wl.kernel(wl.ntk_dense(3), x, dtype="float64"),
        wl.kernel(wl.cntk_vanilla(3), x.reshape(9, 2, 2, 1), dtype="float32"),
    ):
        model, warned = fit(Regressor(kernel="precomputed"), matrix, TARGETS)
        assert warned
    assert model.solution_.status is not Status.SOLVED


@dataclass
class Off:
    """A kernel that is off by some error between each sample and its nearest one."""

    angles: np.ndarray
    most: float
    found: float

    def errors(self, nearest):
        return Errors(1e-6, self.angles, self.most, lambda rows: self.found)


@pytest.mark.parametrize("seed", range(5))
def test_outputs_move_by_errors_times_coefficients(seed):
    rng = np.random.default_rng(seed)
    m = 7
    angles, scale = 10 ** rng.uniform(-9, -3, m), np.exp(2 * rng.normal(size=m))
    partner = (np.arange(m) + rng.integers(1, m, m)) % m
    y, value = rng.normal(size=(m, 2)), np.exp(2 * rng.normal(size=(m, 2)))
    # An error of 1 in the entries of each sample and its nearest one, in both triangles.
    error = np.zeros((m, m))
    for i in range(m):
        for row, column in ((i, partner[i]), (partner[i], i)):
            share = min(1.0, 1e-6 / angles[i]) * scale[i] * scale[partner[i]]
            error[row, column] = max(error[row, column], share)
    moved = max(
        error[i, j] * abs(value[j, target]) for i in range(m) for j in range(m) for target in (0, 1)
    )
    just = 0.01 * np.abs(y).max() / (2 * moved)  # twice that is the estimate, 1 % is allowed
    training = Training.of(Directions.of_equal(np.arange(m)), y, np.ones(m), np.full(m, True))
    nearest = Nearest(partner, np.full(m, 0.1), scale, 0.5, np.dtype("float64"))
    statistics = Statistics(m, 0.0, 0.0, 0.0, 1.0, 0.0)
    solution = Solution(value, Status.SOLVED, statistics)
    for most, found, status in (
        (0.999 * just, np.nan, Status.SOLVED),  # measured if it may decide
        (1.001 * just, 0.999 * just, Status.SOLVED),
        (1e6 * just, 1.001 * just, Status.ILL_CONDITIONED),
    ):
        assert doubted(solution, nearest, Off(angles, most, found), training).status is status
    # What is said already is not said again in other words.
    before = replace(solution, status=Status.NOT_CONVERGED, message="5 steps.")
    assert doubted(before, nearest, Off(angles, 1.0, 1.0), training) is before


@pytest.mark.parametrize("n", [1, 2, 63, 300])
@pytest.mark.parametrize("stored", [False, True])
def test_nearest_samples(tmp_path, n, stored):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)) * np.exp(2 * rng.normal(size=(n, 1)))
    x[n // 2] = 0
    options = {"dtype": "float64", **({"store": tmp_path / "k.zarr"} if stored else {})}
    k = (wl.gram if stored else wl.kernel)(wl.ntk_dense(2), x, **options)
    nearest, whole = find_nearest(k), np.asarray(k)
    size = np.sqrt(np.diag(whole))
    np.testing.assert_array_equal(nearest.scale, size)
    alike = whole / np.where(size > 0, size, np.inf) / np.where(size > 0, size, np.inf)[:, None]
    np.fill_diagonal(alike, -np.inf)
    if n > 1:
        rest = np.arange(n) != n // 2
        np.testing.assert_array_equal(nearest.partner[rest], alike.argmax(axis=1)[rest])
        np.testing.assert_allclose(nearest.gap[rest], 1 - alike.max(axis=1)[rest], atol=1e-15)
        others = ~np.eye(n, dtype=bool)
        assert nearest.slope == pytest.approx(1 - alike[others].mean())


def test_angles():
    assert doubt.unresolved_angle("float64") == pytest.approx(2.1e-8, rel=0.01)
    assert doubt.unresolved_angle("float32") == pytest.approx(4.9e-4, rel=0.01)
    turned = np.array([[1.0, 0], [3 * np.cos(1e-5), 3 * np.sin(1e-5)], [0, 2]])
    for net, expected in (
        (wl.ntk_dense(3), 1e-5),
        (wl.Network([wl.Dense(), wl.ReLU(), wl.Dense()]), 1e-5),
        # With a bias as large as the entries, 1 and 3 times a direction are pi/4 and pi/10 from it.
        (wl.Network([wl.Dense(1, 1), wl.ReLU(), wl.Dense()], scaling="paper"), 0.4636),
    ):
        model, _ = fit(Regressor(net), turned, np.arange(3.0))
        angles = model._fitted._angles(np.array([1, 0, 2]))
        np.testing.assert_allclose(angles[:2], expected, rtol=0.02)
        assert angles[2] == 0
    zeros = replace(
        model._fitted, networks=(wl.ntk_dense(3),), samples=np.array([[3.0, 4], [0, 0]])
    )
    np.testing.assert_array_equal(zeros._angles(np.array([1, 0])), np.pi / 2)
