"""Dual activations against mpmath with 50 digits: the third witness of docs/mathematics.md."""

import re
import shutil
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf

from widelimit import dual
from widelimit.layers import (
    GELU,
    ABReLU,
    Abs,
    Cos,
    Erf,
    Gaussian,
    LayerNorm,
    LeakyReLU,
    Polynomial,
    ReLU,
    Sin,
)
from widelimit.testing.exact import expectations

ROOT = Path(__file__).resolve().parent.parent
EPS = 2.0**-52

# 1 - |lambda| from 1 down to 1e-12, to the last bit before 1, and 0.
GAPS = [1.0, 0.9, 0.75, 0.5, 0.3, 0.1, 0.03, *(10.0**-k for k in range(2, 13)), 2.0**-53, 0.0]
LAMBDAS = sorted({sign * (1.0 - gap) for gap in GAPS for sign in (-1.0, 1.0)} - {0.0} | {0.0})


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mp.workdps(50):
        yield


def exact_a(v):
    v = mpf(v)
    return 2 / mp.pi * (mp.atan(mp.sqrt(v)) / mp.sqrt(v) if v else 1)


def exact_c(v):
    v = mpf(v)
    with mp.extradps(60):  # the numerator is of size v
        value = (2 / mp.pi - exact_a(v)) / v if v else 2 / mp.pi / 3
    return +value


def exact_e(v):
    v = mpf(v)
    return mp.expm1(-v * mp.ln2) / v if v else -mp.ln2


EXACT = {"A": exact_a, "C": exact_c, "E": exact_e}


def exact_kappa0(lam):
    return (mp.pi - mp.acos(lam)) / mp.pi


def exact_kappa1(lam):
    return (lam * (mp.pi - mp.acos(lam)) + mp.sqrt(1 - lam**2)) / mp.pi


def relative(value, exact):
    """Relative error of floats against mpmath, 0 where both vanish."""
    return [
        float(abs(mpf(float(a)) - b) / abs(b)) if b else abs(float(a))
        for a, b in zip(np.ravel(value), exact, strict=True)
    ]


def check(errors, bound, where):
    worst = int(np.argmax(errors))
    assert errors[worst] <= bound, f"error {errors[worst]:.3e} > {bound:.3e} at {where[worst]!r}"


# ---- the table of polynomials

rows = pytest.mark.parametrize("row", dual.POLYNOMIALS, ids=lambda row: f"{row.name}-{row.dtype}")


def nodes(row, count):
    """Chebyshev nodes of the domain with both ends: polynomial errors peak between and at them."""
    low, high = row.domain
    return low + (high - low) * np.sin(np.pi / 2 * np.linspace(0.0, 1.0, count)) ** 2


def exact_error(row, coefficients, grid):
    """Largest relative error of the polynomial in exact arithmetic."""
    function, worst = EXACT[row.name], mpf(0)
    for v in map(mpf, grid.tolist()):
        value = mpf(0)
        for coefficient in reversed(coefficients):
            value = value * v + coefficient
        worst = max(worst, abs(value / function(v) - 1))
    return worst


def test_there_is_one_row_for_each_function_and_type():
    names = [(row.name, row.dtype) for row in dual.POLYNOMIALS]
    assert sorted(names) == [(n, t) for n in EXACT for t in ("float32", "float64")]


@rows
def test_bound_holds_and_is_tight(row):
    error = exact_error(row, row.coefficients, nodes(row, 1200))
    assert 0.98 * row.max_relative_error < error <= row.max_relative_error


@rows
def test_every_perturbed_coefficient_breaks_the_bound(row):
    # At the upper end: the shift there exceeds what two errors of opposite sign explain.
    shift, end = 3 * row.max_relative_error * row.coefficients[0], row.domain[1]
    for k, coefficient in enumerate(row.coefficients):
        perturbed = list(row.coefficients)
        perturbed[k] = coefficient + shift / end**k
        error = exact_error(row, perturbed, nodes(row, 30))
        assert error > row.max_relative_error, f"coefficient {k}"


@rows
def test_coefficients_are_exact_in_their_type(row):
    assert row.coefficients == tuple(np.array(row.coefficients, row.dtype).tolist())


@rows
def test_horner_in_its_type_adds_two_units_in_the_last_place(row):
    grid = nodes(row, 1200).astype(row.dtype)
    values = row(grid)
    assert values.dtype == row.dtype
    assert values.shape == grid.shape
    exact = [EXACT[row.name](v) for v in grid.tolist()]
    bound = row.max_relative_error + 2 * float(np.finfo(row.dtype).eps)
    check(relative(values, exact), bound, grid)


@rows
def test_evaluation_keeps_scalars_in_their_type(row):
    value = row(0.0)
    assert value.shape == ()
    assert value.dtype == row.dtype
    assert value == row.coefficients[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_formulas_of_the_backends_in_their_type(dtype):
    """The expressions that the compiled backends use, with the rows of that type."""
    a_row, c_row, _ = (r for r in dual.POLYNOMIALS if r.dtype == dtype)
    eps = float(np.finfo(dtype).eps)
    lam = np.concatenate([LAMBDAS, np.linspace(-1.0, 1.0, 201)])
    m = np.full(lam.shape, 1.7, dtype)
    s = (lam * 1.7).astype(dtype)
    a = np.abs(s)
    e, p = np.maximum(m - a, 0), m + a
    t = e / np.sqrt(p * e + np.finfo(dtype).tiny)
    over_pi = np.array(1 / np.pi, dtype)
    fall = t * t * c_row(t * t)
    angle = t * (2 * over_pi - fall)
    kappa0 = np.where(s < 0, angle, 1 - angle)
    any_sign = np.maximum(s, 0) + t * (e * over_pi + a * fall)
    angle = t * a_row(t * t)
    kappa0_of_a = np.where(s < 0, angle, 1 - angle)
    short = s * kappa0_of_a + p * t * over_pi
    assert kappa0.dtype == any_sign.dtype == short.dtype == kappa0_of_a.dtype == dtype

    exact_m = mpf(float(m[0]))
    exact_lam = [max(min(mpf(float(x)) / exact_m, 1), -1) for x in s]
    exact_0 = list(map(exact_kappa0, exact_lam))
    exact_1 = [exact_m * exact_kappa1(x) for x in exact_lam]
    # Of A, at least a half, `fall` is less than 3/10; of both terms of K at most a quarter.
    bound = 0.3 * c_row.max_relative_error + 5 * eps
    check(relative(kappa0, exact_0), bound, lam)
    check(relative(any_sign, exact_1), bound, lam)
    bound = a_row.max_relative_error + 4 * eps
    check(relative(kappa0_of_a, exact_0), bound, lam)
    up = s >= 0
    there = [value for value, is_up in zip(exact_1, up, strict=True) if is_up]
    check(relative(short[up], there), bound, lam[up])
    # Where terms cancel, the error is that which as small a relative error of sigma makes.
    down = [abs(float(mpf(float(k)) - b)) for k, b in zip(short, exact_1, strict=True)]
    assert np.all(np.array(down)[~up] <= bound * 1.7 * np.array(exact_0, float)[~up])


# ---- one source for Python and C++


@pytest.fixture(scope="module")
def generator():
    path = str(ROOT / "scripts/make-dual-coefficients")
    loader = SourceFileLoader("make_dual_coefficients", path)
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_header_holds_the_numbers_of_the_table():
    text = (ROOT / "src/widelimit/_core/dual_coefficients.hpp").read_text()
    arrays = re.findall(r"(float|double) k([A-Z])(32|64)\[\] = \{([^}]*)\}", text)
    found = {
        (name, f"float{bits}"): tuple(
            float.fromhex(literal.strip().removesuffix("f")) for literal in body.split(",")[:-1]
        )
        for ctype, name, bits, body in arrays
        if (ctype == "float") == (bits == "32")
    }
    assert found == {(row.name, row.dtype): row.coefficients for row in dual.POLYNOMIALS}


def test_generated_files_are_up_to_date(generator):
    assert generator.main(["--check"]) == 0


@pytest.mark.parametrize("name", ["dual.py", "_core/dual_coefficients.hpp"])
def test_check_notices_a_changed_digit_and_writing_repairs_it(generator, tmp_path, capsys, name):
    package = tmp_path / "src/widelimit"
    (package / "_core").mkdir(parents=True)
    for file in ("dual.py", "_core/dual_coefficients.hpp"):
        shutil.copy(ROOT / "src/widelimit" / file, package / file)
    arguments = ["--root", str(tmp_path)]
    assert generator.main([*arguments, "--check"]) == 0

    text = (package / name).read_text()
    old, new = ("0.6366", "0.6367") if name == "dual.py" else ("0x1.45f3", "0x1.45f4")
    assert old in text
    (package / name).write_text(text.replace(old, new, 1))
    assert generator.main([*arguments, "--check"]) == 1
    assert f"{name} is out of date" in capsys.readouterr().err

    assert generator.main(arguments) == 0
    assert (package / name).read_text() == text


def test_generator_names_a_file_without_the_block(generator, tmp_path):
    (tmp_path / "src/widelimit").mkdir(parents=True)
    (tmp_path / "src/widelimit/dual.py").write_text("nothing here\n")
    with pytest.raises(ValueError, match="lacks the lines that enclose the generated block"):
        generator.main(["--root", str(tmp_path), "--check"])


# ---- kappa0, kappa1


def test_grid_reaches_the_ends():
    assert {-1.0, 0.0, 1.0} <= set(LAMBDAS)
    assert min(1.0 - lam for lam in LAMBDAS if lam < 1.0) < 1.2e-16


def test_kappa0_against_mpmath():
    exact = [exact_kappa0(mpf(lam)) for lam in LAMBDAS]
    check(relative(dual.kappa0(LAMBDAS), exact), 1e-15, LAMBDAS)


def test_kappa1_against_mpmath():
    values = dual.kappa1(LAMBDAS)
    for lam, value in zip(LAMBDAS, values, strict=True):
        exact = exact_kappa1(mpf(lam))
        bound = 1e-15 * exact if lam >= 0 else mpf(5e-16) * mp.acos(-mpf(lam))
        assert abs(mpf(float(value)) - exact) <= bound, lam


def test_exact_values():
    assert dual.kappa0([-1.0, 0.0, 1.0]).tolist() == [0.0, 0.5, 1.0]
    assert dual.kappa1([-1.0, 0.0, 1.0]).tolist() == [0.0, 1 / np.pi, 1.0]


@pytest.mark.parametrize("function", [dual.kappa0, dual.kappa1])
def test_rounding_beyond_one_is_clipped_and_nan_is_kept(function):
    beyond = 1.0 + 4 * EPS
    assert function([-beyond, beyond]).tolist() == function([-1.0, 1.0]).tolist()
    assert np.isnan(function(np.nan))
    assert function(0.5).shape == ()


@given(st.floats(-1.0, 1.0))
def test_symmetry_of_kappa0(lam):
    assert dual.kappa0(-lam) == pytest.approx(1.0 - dual.kappa0(lam), rel=0, abs=2 * EPS)


@given(st.floats(-1.0, 1.0))
def test_symmetry_of_kappa1(lam):
    assert dual.kappa1(-lam) == pytest.approx(dual.kappa1(lam) - lam, rel=0, abs=2 * EPS)


# ---- relu_dual


@pytest.mark.parametrize("m", [1.0, 1.7, 3e-7, 1e-270, 1e290])
def test_relu_dual_against_mpmath(m):
    # The quotient is formed with 50 digits, so the rounding of lambda * m does not count.
    sigma = np.array([*LAMBDAS, *np.linspace(-1.0, 1.0, 101)]) * m
    k, k_prime = dual.relu_dual(sigma, m)
    lam = [mpf(s) / mpf(m) for s in sigma.tolist()]
    check(relative(k, [mpf(m) * exact_kappa1(x) for x in lam]), 1e-15, sigma)
    check(relative(k_prime, [exact_kappa0(x) for x in lam]), 1e-15, sigma)


def test_relu_dual_agrees_with_kappa0_and_kappa1():
    k, k_prime = dual.relu_dual(LAMBDAS, 1.0)
    np.testing.assert_allclose(k, dual.kappa1(LAMBDAS), rtol=0, atol=2 * EPS)
    np.testing.assert_allclose(k_prime, dual.kappa0(LAMBDAS), rtol=0, atol=2 * EPS)


def test_relu_dual_at_a_zero_profile():
    k, k_prime = dual.relu_dual([0.0, -0.0, 3.0], [0.0, 0.0, 5.0])
    assert k[:2].tolist() == [0.0, 0.0]
    assert k_prime[:2].tolist() == [0.5, 0.5]


def test_relu_dual_beyond_cauchy_schwarz():
    m = 0.7
    sigma = np.array([m, np.nextafter(m, 1.0), -m, -np.nextafter(m, 1.0)])
    k, k_prime = dual.relu_dual(sigma, m)
    assert k.tolist() == [sigma[0], sigma[1], 0.0, 0.0]
    assert k_prime.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_relu_dual_keeps_nan():
    k, k_prime = dual.relu_dual([np.nan, 0.5], [1.0, np.nan])
    assert np.isnan(k).all()
    assert np.isnan(k_prime).all()


def test_relu_dual_broadcasts():
    sigma = np.linspace(-1.0, 1.0, 6).reshape(2, 3)
    xz = np.array([[1.0], [2.0]])
    k, k_prime = dual.relu_dual(sigma, xz)
    assert k.shape == k_prime.shape == (2, 3)
    row, row_prime = dual.relu_dual(sigma[1], 2.0)
    np.testing.assert_array_equal(k[1], row)
    np.testing.assert_array_equal(k_prime[1], row_prime)


@given(st.floats(-1.0, 1.0), st.integers(-200, 200))
def test_relu_dual_is_homogeneous(lam, power):
    k, k_prime = dual.relu_dual(lam, 1.0)
    scaled, scaled_prime = dual.relu_dual(np.ldexp(lam, power), np.ldexp(1.0, power))
    assert scaled_prime == k_prime
    assert scaled == pytest.approx(np.ldexp(k, power), rel=2 * EPS, abs=np.ldexp(1e-300, power))


# ---------------------------------------------------------------- every activation

# The function itself; the derivative is by Price's theorem the one of K by sigma.
FUNCTIONS = {
    ABReLU(-0.3, 1.2): lambda u, _: np.where(u < 0, -0.3 * u, 1.2 * u),
    LeakyReLU(0.2): lambda u, _: np.where(u < 0, 0.2 * u, u),
    Abs(): lambda u, _: np.abs(u),
    ReLU(): lambda u, _: np.maximum(u, 0),
    Erf(): lambda u, _: np.vectorize(lambda t: float(mp.erf(t)))(u),
    GELU(): lambda u, _: u * np.vectorize(lambda t: float(mp.ncdf(t)))(u),
    Sin(): lambda u, _: np.sin(u),
    Cos(): lambda u, _: np.cos(u),
    Gaussian(0.7): lambda u, x: x * np.exp(0.7**0.5 * u / x - 0.7),
    Polynomial((0.3, -0.8, 0.25, 0.1)): lambda u, _: 0.3 - 0.8 * u + 0.25 * u**2 + 0.1 * u**3,
    LayerNorm(0.1): lambda u, x: u / np.sqrt(x**2 + 0.1),
}
SMOOTH = [act for act in FUNCTIONS if not isinstance(act, ABReLU | ReLU)]


@pytest.mark.parametrize("act", SMOOTH, ids=repr)
@pytest.mark.parametrize("lam", [-0.9, -0.3, 0.0, 0.4, 0.95])
def test_expectations_by_gauss_hermite(act, lam) -> None:
    x, z = 0.7, 1.1
    nodes, weights = np.polynomial.hermite_e.hermegauss(50)
    weights = weights / weights.sum()
    u = x * nodes[:, None]
    v = z * (lam * nodes[:, None] + (1 - lam**2) ** 0.5 * nodes[None, :])
    both = weights[:, None] * weights[None, :]
    f = FUNCTIONS[act]

    def expectation(values):
        return float((both * values).sum())

    k, factor = dual.dual(act, lam * x * z, x, z)
    assert k == pytest.approx(expectation(f(u, x) * f(v, z)), rel=1e-10, abs=1e-12)
    h = 1e-5
    slopes = [(f(t + h, s) - f(t - h, s)) / (2 * h) for t, s in ((u, x), (v, z))]
    assert factor == pytest.approx(expectation(slopes[0] * slopes[1]), rel=1e-8, abs=1e-9)


def exact_dual(act, s, x, z):
    """K and the factor with mpmath, by other formulas than those of the package."""
    s, x, z = map(mpf, (s, x, z))
    return expectations(mp, act, s, x * x, z * z, same=False)


@pytest.mark.parametrize("act", list(FUNCTIONS), ids=repr)
def test_expectations_to_many_digits(act) -> None:
    for x, z in ((0.7, 1.1), (1e-3, 2.0), (30.0, 20.0)):
        if x > 10 and isinstance(act, Sin | Cos):
            continue  # 1e-195: the exponents round
        for lam in (-0.99, -0.2, 1e-6, 0.5, 0.999):
            s = lam * x * z
            k, factor = dual.dual(act, s, x, z)
            size = (exact_dual(act, x * x, x, x)[0] * exact_dual(act, z * z, z, z)[0]) ** 0.5
            wanted = exact_dual(act, s, x, z)
            assert abs(mpf(float(k)) - wanted[0]) < 2e-14 * size
            assert abs(mpf(float(factor)) - wanted[1]) < 1e-12 * max(abs(wanted[1]), size / (x * z))
            slope = mp.diff(lambda t, x=x, z=z: exact_dual(act, t, x, z)[0], mpf(s))  # Price
            assert abs(wanted[1] - slope) < 1e-20 * max(abs(slope), size / (x * z))


@pytest.mark.parametrize("act", list(FUNCTIONS), ids=repr)
def test_arguments_may_be_exchanged(act) -> None:
    """To the last bit: the Gram matrix of the reference is symmetric."""
    x, z, lam = np.random.default_rng(0).uniform(0.1, 3.0, (3, 2000))
    s = np.cos(lam) * x * z
    for forth, back in zip(dual.dual(act, s, x, z), dual.dual(act, s, z, x), strict=True):
        np.testing.assert_array_equal(forth, back)


@pytest.mark.parametrize("act", list(FUNCTIONS), ids=repr)
def test_identical_values_have_the_variance_behind(act) -> None:
    variance = np.array([0.0, 1e-3, 0.5, 2.0, 400.0])
    x = np.sqrt(variance)
    k, factor = dual.dual(act, x * x, x, x)
    behind = dual.variance_behind(act, variance)
    np.testing.assert_allclose(k, behind, rtol=2e-15, atol=1e-300)
    assert np.isfinite(factor).all()
    assert (behind >= 0).all()
