"""The public test kit: backends pass it, faulty backends do not, and its own witnesses agree."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar, get_args

import naive
import numpy as np
import pytest
import trees

import widelimit as wl
from widelimit.backends import Backend, choose, get_backend
from widelimit.backends.cpu import CpuBackend, instruction_sets
from widelimit.network import (
    GELU,
    Abs,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Erf,
    Flatten,
    GlobalAvgPool,
    LayerNorm,
    LeakyReLU,
    LocalAvgPool,
    Network,
    ReLU,
    Sin,
    Sum,
)
from widelimit.testing import (
    BackendConformance,
    Case,
    Fault,
    FaultyBackend,
    accuracy_table,
    assert_close,
    compute,
    exact_kernel,
)

ISAS = [
    pytest.param(isa, marks=[] if supported else pytest.mark.skip("not on this processor"))
    for isa, supported in instruction_sets().items()
]


class TestReference(BackendConformance):
    tolerance: ClassVar[Any] = {"float64": 1e-12}

    def make_backend(self) -> Backend:
        return get_backend("reference")


@pytest.mark.parametrize("isa", ISAS)
class TestCpu(BackendConformance):
    @pytest.fixture(autouse=True)
    def _isa(self, isa: str) -> None:
        self.isa = isa

    def make_backend(self) -> Backend:
        return CpuBackend(self.isa)


class TestChosen(BackendConformance):
    """The whole kit on the backend that users get, with a case of this test's own."""

    cases: ClassVar[tuple[Case, ...]] = (Case("1 x 20", wl.cntk_gap(3), (1, 20, 3)),)

    def make_backend(self) -> Backend:
        return get_backend(choose("auto", 0))


# ---------------------------------------------------------------- the kit can fail

VALUES = {"test_values_of_a_rectangle", "test_values_of_a_symmetric_gram_matrix"}
SCALED = "test_without_biases_a_kernel_is_homogeneous"
BITS = "test_tile_is_the_sum_of_its_entries"
EXCHANGE = "test_arguments_may_be_exchanged"

# What must fail at least. Other tests may, and mostly do.
CAUGHT_BY: dict[Fault, set[str]] = {
    "perturbed entry": {*VALUES, BITS},
    "perturbed weight": VALUES,
    "transposed tile": {"test_values_of_a_rectangle"},
    "shifted displacement": VALUES,
    "dropped layer": VALUES,
    "frozen layer": VALUES,
    "lost sign": VALUES,
    "forgotten identity": VALUES,
    "exchanged fields": VALUES,
    "shuffled pairs": {BITS},
    "rounded to float32": VALUES,
    "depends on the tile": {BITS},
    "depends on the batch": {"test_a_profile_belongs_to_its_image_alone"},
    "depends on the call": {"test_threads_change_nothing"},
    "asymmetric": {EXCHANGE},
    "0/0": {"test_a_black_image_has_kernel_zero"},
    "deaf to cancel": {"test_cancelled_work_raises"},
    "undeclared memory": {"test_sizes_are_declared"},
}


def failures(make: Callable[[], Backend]) -> dict[str, str]:
    """Names of the tests of the kit that fail for a backend, with their messages."""

    class Suite(BackendConformance):
        def make_backend(self) -> Backend:
            return make()

    found: dict[str, str] = {}
    for name in [name for name in dir(Suite) if name.startswith("test_")]:
        try:
            getattr(Suite(), name)()
        except (AssertionError, ArithmeticError) as error:  # the engine refuses NaN by itself
            found[name] = str(error)
    return found


def test_every_fault_is_listed() -> None:
    assert set(CAUGHT_BY) == set(get_args(Fault))


def test_every_test_of_the_kit_can_fail() -> None:
    seen = {SCALED, "test_a_family_is_its_networks", "test_what_no_kernel_needs_is_zero"}
    found = failures(lambda: FaultyBackend(get_backend("cpu"), "exchanged fields"))
    assert found.keys() >= seen
    kit = {name for name in dir(BackendConformance) if name.startswith("test_")}
    assert kit == seen.union(*CAUGHT_BY.values())


@pytest.mark.parametrize("fault", get_args(Fault))
def test_faults_are_caught(fault: Fault) -> None:
    found = failures(lambda: FaultyBackend(get_backend("cpu"), fault))
    assert found.keys() >= CAUGHT_BY[fault]
    assert all(found.values()), "a failure must say what failed"


def test_a_correct_backend_has_no_failures() -> None:
    assert failures(lambda: get_backend("cpu")) == {}


def test_a_suite_without_backend_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"define make_backend\(\)"):
        BackendConformance().test_values_of_a_rectangle()


def test_unknown_fault() -> None:
    fault: Any = "typo"
    with pytest.raises(ValueError, match=r"fault must be one of perturbed entry, .*got 'typo'"):
        FaultyBackend(get_backend("cpu"), fault)


def test_the_kit_needs_neither_pytest_nor_mpmath_to_be_imported() -> None:
    look = "import sys, widelimit.testing; print('pytest' in sys.modules, 'mpmath' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# ---------------------------------------------------------------- assert_close


def test_assert_close_accepts_what_is_close() -> None:
    assert_close([1.0, 2.0], [1.0, 2.0 + 1e-9], rtol=1e-9)
    assert_close([0.0, 1.0], [0.0, 1.0], rtol=0.0)
    assert_close(np.inf, np.inf, rtol=0.0)
    assert_close([1e-9], [2e-9], rtol=1e-8, floor=1.0)
    assert_close(np.zeros((0, 3)), np.zeros((0, 3)), rtol=0.0)


def test_assert_close_says_how_much_and_where() -> None:
    actual = np.ones((2, 3))
    actual[0, 2], actual[1, 1] = 100.5, 1.25
    desired = np.ones((2, 3))
    desired[0, 2] = 100.0
    with pytest.raises(AssertionError) as caught:
        assert_close(actual, desired, rtol=1e-3, context="here")
    assert str(caught.value) == (
        "here: 2 of 6 entries differ by more than 1.0e-03\n"
        "  largest absolute error 5.000e-01 at [0, 2]: got 100.5, expected 100.0\n"
        "  largest relative error 2.500e-01 at [1, 1]: got 1.25, expected 1.0"
    )


@pytest.mark.parametrize(
    ("actual", "desired", "message"),
    [
        ([1.0, np.nan], [1.0, 2.0], r"error inf at \[1\]: got nan, expected 2.0"),
        ([np.nan], [np.nan], "got nan, expected nan"),
        ([np.inf], [1.0], "got inf"),
        ([np.inf], [-np.inf], "got inf, expected -inf"),
        ([1e-300], [0.0], "1 of 1 entries"),
        ([1.0], [1.0, 1.0], r"shape \(1,\), expected \(2,\)"),
        ([[1.0]], [1.0], r"shape \(1, 1\), expected \(1,\)"),
    ],
)
def test_assert_close_refuses(actual: Any, desired: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, desired, rtol=0.5)


# ---------------------------------------------------------------- compute


def test_compute_is_the_function_kernel() -> None:
    nets = [wl.cntk_gap(3), wl.cntk_vanilla(2)]
    rng = np.random.default_rng(0)
    x, z = rng.uniform(size=(4, 3, 3, 2)), rng.uniform(size=(6, 3, 3, 2))
    z[2] = x[1]
    for dtype in ("float32", "float64"):
        for arguments in ((x,), (x, z)):
            found = compute(get_backend("cpu"), nets, *arguments, dtype=dtype)
            expected = wl.kernel(nets, *arguments, kind=("nngp", "ntk"), dtype=dtype)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, np.stack(expected, 1))


# ---------------------------------------------------------------- the witness with many digits

END = [GlobalAvgPool(), Dense()]
EXACT = {
    "gap": (wl.cntk_gap(3), (3, 2, 2)),
    "vanilla": (wl.cntk_vanilla(4), (3, 3, 2)),
    "dense": (wl.ntk_dense(3), (1, 2, 3)),
    "local": (Network([Conv(3, b_std=0.2), ReLU(), LocalAvgPool(1), Dense(b_std=0.1)]), (3, 2, 2)),
    "linear, deep head": (
        Network(
            [
                Conv(5, 0.9, 0.1, trainable=False),
                Conv(1),
                GlobalAvgPool(),
                Dense(),
                ReLU(),
                Dense(b_std=0.3),
            ],
            "paper",
        ),
        (2, 3, 2),
    ),
    "no convolution": (Network([Flatten(), Dense(), ReLU(), Dense()]), (2, 2, 2)),
    "not a layer but a readout": (Network([GlobalAvgPool(), Dense()]), (2, 2, 2)),
    "pools": (
        Network(
            [
                *(Conv(3), ReLU(), AvgPool(3, 1, "same"), Conv(3, b_std=0.2), ReLU(), AvgPool(2)),
                *(AvgPool((1, 2), 1), Conv(1), Abs(), GlobalAvgPool(), Dense()),
            ]
        ),
        (3, 4, 1),
    ),
    "pool of 3 with stride 2": (
        Network([Conv(3), ReLU(), AvgPool(3, 2), AvgPool(3, 2, "same"), Flatten(), Dense()]),
        (4, 5, 2),
    ),
    "strides": (
        Network(
            [
                *(Conv(3, stride=2), ReLU(), Conv((1, 3), 1.1, 0.2, stride=(2, 1)), LeakyReLU(0.2)),
                *(Conv(2, padding="valid"), GlobalAvgPool(), Dense()),
            ],
            "paper",
        ),
        (5, 6, 2),
    ),
    "residual": (
        Network(
            [
                *(Conv(3), Sum((), [ReLU(), Conv(3), Sum((), [ReLU(), Conv(1)])]), ReLU()),
                *(Conv(3, trainable=False), Sum([AvgPool(2)], [GELU(), Conv(1, 0.9, stride=2)])),
                *(LayerNorm(0.1), Conv(3), LocalAvgPool(1), Dense()),
            ]
        ),
        (2, 4, 1),
    ),
    "heads": (
        Network(
            [
                *(Conv(3), AvgPool(2), Flatten(), Dense(), Sum((), [Erf(), Dense(0.8, 0.1)])),
                *(LayerNorm(), Dense(), Sin(), Dense(), Cos(), Dense(), wl.Gaussian(), Dense()),
            ]
        ),
        (4, 3, 2),
    ),
    "a series": (Network([Conv((1, 3)), Cos(), AvgPool((1, 2)), Flatten(), Dense()]), (1, 6, 2)),
    "dense sums": (Network([Dense(), Sum((), [GELU(), Dense()]), Dense()]), (1, 2, 3)),
} | {
    repr(act): (Network([Conv(3), act, Conv(3, 1.1, 0.2), act, *END]), (2, 3, 2))
    for act in trees.ACTIVATIONS
    if not isinstance(act, ReLU)
}


@pytest.mark.parametrize("name", EXACT)
def test_three_witnesses_agree(name: str) -> None:
    network, shape = EXACT[name]
    rng = np.random.default_rng(3)
    x, z = rng.uniform(size=(2, *shape)), rng.standard_normal((2, *shape))
    z[1] = x[1]
    written = np.stack(naive.kernels(network, x, z)[:2])
    exact = [[[float(v) for v in exact_kernel(network, a, b)] for b in z] for a in x]
    exact = np.moveaxis(np.array(exact), -1, 0)
    floor = 0.1 * np.abs(exact).max()
    assert_close(written, exact, rtol=1e-13, floor=floor, context="naive")
    for backend in ("cpu", "reference"):
        found = wl.kernel(network, x, z, kind=("nngp", "ntk"), backend=backend, dtype="float64")
        assert_close(np.stack(found), exact, rtol=1e-13, floor=floor, context=backend)


def test_the_witness_is_exact_where_lambda_is_one() -> None:
    # One pixel, one channel, q = 1: lambda is 1, Theta^(L) = (L + 1) x z in exact arithmetic.
    x, z = np.full((1, 1, 1), 3.0), np.full((1, 1, 1), 5.0)
    for depth in (2, 5):
        nngp, ntk = exact_kernel(wl.cntk_vanilla(depth, 1), x, z, digits=60)
        # w_std**2 is 2 but for one rounding of the square root in float64
        assert abs(nngp / 15 - 1) < 1e-14
        assert abs(ntk / (15 * depth) - 1) < 1e-14


# ---------------------------------------------------------------- the accuracy table


def table(**arguments: Any) -> dict[tuple[Any, ...], float]:
    images = np.random.default_rng(0).uniform(size=(4, 4, 3, 3))
    rows = accuracy_table(images, depths=(3,), exact_size=3, **arguments)
    found = {(row.dtype, row.kernel, row.inputs): row.error for row in rows}
    assert len(found) == len(rows)
    assert {row.witness for row in rows if row.dtype == "float64"} <= {"mpmath"}
    assert {row.depth for row in rows} == {3}
    return found


def test_the_accuracy_table_has_every_row_and_sane_figures() -> None:
    distances = (1e-3, 1e-5, 1e-7)
    rows = table(distances=distances)
    inputs = ["distinct", "two-level", "half as bright", *(f"differ by {d:.0e}" for d in distances)]
    inputs += ["share pixels of 1e-09", "share pixels of 1e-15"]
    inputs += [f"distinct, biases of {bias}" for bias in (1, 100, 10000)]
    assert [key[2] for key in rows][: len(inputs)] == inputs
    assert len(rows) == 2 * 2 * len(inputs)
    for kernel in ("CNTK-V", "CNTK-GAP"):
        assert rows["float32", kernel, "distinct"] < 2e-6
        assert rows["float64", kernel, "distinct"] < 2e-15 * 10
        for name in ("share pixels of 1e-09", "share pixels of 1e-15"):
            assert rows["float32", kernel, name] < 2e-6
            assert rows["float64", kernel, name] < 2e-14
        for name in inputs[2:]:
            # The square root of a rounding: not hidden, and not worse than that.
            assert rows["float32", kernel, name] < 1e-3
            assert rows["float64", kernel, name] < 1e-7
    assert rows["float32", "CNTK-V", "differ by 1e-05"] > 5e-6
    assert rows["float64", "CNTK-V", "differ by 1e-07"] > 1e-12


def test_the_accuracy_table_measures_the_backend_it_is_given() -> None:
    faulty = FaultyBackend(get_backend("cpu"), "rounded to float32")
    rows = table(
        backend=faulty, dtypes=("float64",), kernels=("CNTK-V",), distances=(), biases=(), shared=()
    )
    assert list(rows) == [
        ("float64", "CNTK-V", name) for name in ("distinct", "two-level", "half as bright")
    ]
    assert 1e-9 < rows["float64", "CNTK-V", "distinct"] < 1e-7


@pytest.mark.parametrize(
    "images", [np.ones((2, 3, 3, 1)), np.zeros((3, 3, 3, 1)), np.ones((3, 3, 3))]
)
def test_the_accuracy_table_refuses(images: Any) -> None:
    with pytest.raises(ValueError, match="images must be at least 3, none of them black, got"):
        accuracy_table(images)
