"""Odd input that is right is computed with; wrong input is refused, in words that help."""

from __future__ import annotations

import _thread
import contextlib
import importlib
import threading
import time
from typing import Any

import naive
import numpy as np
import pytest
from host_device import HostDevice
from numpy.typing import NDArray

import widelimit as wl
from widelimit.backends.base import Cancelled, OutsideRange, Pairs
from widelimit.backends.cpu import CpuBackend
from widelimit.backends.cuda import CudaBackend
from widelimit.matrices import inputs
from widelimit.matrices.passes import _check_range
from widelimit.network import (
    GELU,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Erf,
    Flatten,
    Gaussian,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    LocalAvgPool,
    Network,
    Polynomial,
    ReLU,
    Sin,
    Sum,
)
from widelimit.program import compile_family
from widelimit.testing import assert_close

NET = wl.cntk_gap(3)
BOTH = ("nngp", "ntk")
NETWORKS = [NET, wl.cntk_vanilla(3), Network([Conv(5), ReLU(), LocalAvgPool(1), Dense()])]
ALL = [*NETWORKS, wl.ntk_dense(2)]
every = pytest.mark.parametrize("network", ALL, ids=str)
engines = pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", "float64"), ("cpu", "float32"), ("reference", "float64")]
)


def images(n: int = 4, seed: int = 0) -> NDArray[np.float64]:
    """Return images of multiples of 1/16 up to 8, exact in float16, and in uint8 times 16."""
    return np.random.default_rng(seed).integers(0, 128, (n, 4, 5, 3)) / 16


def kernel(*arguments: Any, **options: Any) -> Any:
    """Call `wl.kernel` with arguments that a type checker would refuse."""
    return wl.kernel(*arguments, **options)


# ---------------------------------------------------------------- odd, but right


def odd_versions() -> dict[str, Any]:
    x = images()
    wide = np.zeros((4, 8, 5, 6))
    wide[:, ::2, :, 1::2] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    return {
        "Fortran order": np.asfortranarray(x),
        "not contiguous": wide[:, ::2, :, 1::2],
        "negative strides": np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        "channels first, turned": np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(
            0, 2, 3, 1
        ),
        "read-only": read_only,
        "float16": x.astype(np.float16),
        "float32": x.astype(np.float32),
        "long double": x.astype(np.longdouble),
        "big endian": x.astype(">f8"),
        "list": x.tolist(),
    }


@pytest.mark.parametrize("name", odd_versions())
@every
def test_memory_order_and_type_do_not_matter(name: str, network: Network) -> None:
    odd, x, z = odd_versions()[name], images(), images(5, seed=1)
    np.testing.assert_array_equal(kernel(network, odd), kernel(network, x))
    np.testing.assert_array_equal(kernel(network, odd, z), kernel(network, x, z))
    np.testing.assert_array_equal(kernel(network, z, odd), kernel(network, z, x))
    np.testing.assert_array_equal(kernel(network, odd, x), kernel(network, x))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "int64", "uint64"])
@every
def test_integers_do_not_overflow(dtype: str, network: Network) -> None:
    largest = np.iinfo(dtype).max
    scale = 2 if dtype == "uint8" else largest // 128  # squares leave the type, float64 is exact
    x = np.rint(images() * 16)
    whole = (x * max(1, scale)).astype(dtype)
    assert whole.max() > 0.8 * largest
    expected = kernel(network, x * max(1, scale), dtype="float64")
    np.testing.assert_array_equal(kernel(network, whole, dtype="float64"), expected)


def test_negative_integers_and_booleans() -> None:
    x = np.random.default_rng(0).integers(-128, 128, (3, 4, 4, 2))
    np.testing.assert_array_equal(kernel(NET, x.astype(np.int8)), kernel(NET, x.astype(float)))
    np.testing.assert_array_equal(kernel(NET, x > 0), kernel(NET, (x > 0).astype(float)))


@every
def test_inputs_are_left_as_they_were(network: Network) -> None:
    x, z = images(), images(5, seed=1)
    before = x.copy(), z.copy()
    kernel(network, x, z)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(z, before[1])


@every
@engines
def test_a_black_image_has_kernel_zero(network: Network, backend: str, dtype: str) -> None:
    x, z = images(20), images(18, seed=1)
    x[[3, 19]], z[[0, 17]] = 0.0, 0.0
    options = {"kind": BOTH, "backend": backend, "dtype": dtype}
    for gram in kernel(network, x, **options):
        assert not gram[[3, 19]].any()
        assert not gram[:, [3, 19]].any()
        assert (np.delete(np.delete(gram, [3, 19], 0), [3, 19], 1) > 0).all()
    for gram in kernel(network, x, z, **options):
        assert not gram[[3, 19]].any()
        assert not gram[:, [0, 17]].any()
        assert np.isfinite(gram).all()
    for gram in kernel(network, x[3:4], **options):
        assert gram.tolist() == [[0.0]]


@engines
def test_minus_zero_is_zero(backend: str, dtype: str) -> None:
    x = images()
    x[:, 1:3] = 0.0
    negative = x.copy()
    negative[:, 1:3] = -0.0
    for network in ALL:
        values = kernel(network, x, backend=backend, dtype=dtype)
        found = kernel(network, x, negative, backend=backend, dtype=dtype)
        if backend == "cpu":
            np.testing.assert_array_equal(found, values)
        assert_close(found, values, rtol=1e-14)


@pytest.mark.parametrize("b_std", [0.0, 0.3])
@engines
def test_black_parts_of_images(b_std: float, backend: str, dtype: str) -> None:
    """Pixels without variance beside others: no 0/0 where a profile vanishes."""
    x, z = images(), images(5, seed=1)
    x[:, :2], x[1, :, 2:], x[2] = 0.0, 0.0, 0.0
    z[:, 2:], z[3, :, :4], z[4] = 0.0, 0.0, 0.0
    for readout in (Flatten(), GlobalAvgPool(), LocalAvgPool(1)):
        for q in (1, 3):
            layers = [Conv(q, b_std=b_std), ReLU(), Conv(3), ReLU(), readout, Dense()]
            network = Network(layers)
            expected = naive.kernels(network, x, z)
            values = kernel(network, x, z, kind=BOTH, backend=backend, dtype=dtype)
            for value, desired in zip(values, expected[:2], strict=True):
                # A bias alone makes black pixels agree: lambda = 1 between different images.
                tolerance = 5e-6 if dtype == "float32" else 1e-12
                if b_std > 0:
                    tolerance = 1e-3 if dtype == "float32" else 1e-7
                assert_close(value, desired, rtol=tolerance, context=str(network))


@every
def test_one_image(network: Network) -> None:
    x, z = images(1), images(1, seed=1)
    for dtype in ("float32", "float64"):
        assert kernel(network, x, dtype=dtype).shape == (1, 1)
        both = np.concatenate([x, z])
        np.testing.assert_array_equal(
            kernel(network, x, z, dtype=dtype), kernel(network, both, dtype=dtype)[:1, 1:]
        )


# ---------------------------------------------------------------- wrong numbers


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["x1", "x2"])
@every
def test_not_finite(value: float, side: str, network: Network) -> None:
    bad = images(700)
    bad[600, 1, 2, 1] = value
    bad[650] = value
    arguments = (bad,) if side == "x1" else (images(), bad)
    message = (
        rf"{side} must be finite, got NaN or infinity in 2 of the samples 512 to 699, "
        rf"the first is {side}\[600\]: remove or replace them"
    )
    with pytest.raises(ValueError, match=message):
        kernel(network, *arguments)


def test_not_finite_in_half_precision() -> None:
    x = images().astype(np.float16)
    x[2, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"the first is x1\[2\]"):
        kernel(NET, x)


@pytest.mark.parametrize("factor", [1e-130, 1e150])
@every
def test_numbers_that_cannot_be_squared_twice(factor: float, network: Network) -> None:
    z = images(600)
    z[530] *= factor  # samples are looked at 512 at a time
    message = r"x2 must have its largest entries between 1e-120 and 1e\+120, got .* in x2\[530\]: r"
    with pytest.raises(ValueError, match=message):
        kernel(network, images(), z)


@every
def test_values_beyond_float32(network: Network) -> None:
    x = images()
    for factor in (1e20, 1e-24):
        with pytest.raises(
            OverflowError,
            match=r"kernel values must lie between 1.2e-38 and 3.4e\+38 for float32, got .*: "
            r"use dtype='float64', or inputs or w_std of another scale",
        ):
            kernel(network, factor * x)
        value, exact = (kernel(network, a * x, dtype="float64") for a in (factor, 1.0))
        assert_close(value / factor / factor, exact, rtol=1e-12)
    with pytest.raises(OverflowError, match=r"between 1.2e-38 and"):
        kernel(network, 1e-24 * x[:3], 1e-24 * x[3:])


@every
def test_one_image_far_below_the_others(network: Network) -> None:
    x = images()
    x[2] *= 1e-25
    exact = kernel(network, x, dtype="float64")
    assert 0 < exact[2, 2] < 1e-38
    with pytest.raises(OverflowError, match=r"for float32, got \d\.\de-\d\d: use dtype='float64'"):
        kernel(network, x)
    assert_close(kernel(network, x[2:3], x[:2]), exact[2:3, :2], rtol=1e-4)


def test_an_entry_far_below_those_of_its_samples_is_none_to_refuse() -> None:
    far = np.array([[1.0, 1e-50], [1e-50, 1.0]])
    _check_range(far, np.eye(2, dtype=bool), np.dtype("float32"))
    with pytest.raises(OverflowError, match=r"got 1.0e-50"):
        _check_range(far, np.ones((2, 2), dtype=bool), np.dtype("float32"))
    _check_range(np.diag([1.0, 0.0]), np.eye(2, dtype=bool), np.dtype("float32"))  # a black image


SCALE_BOUND = [
    Erf(),
    GELU(),
    Sin(),
    Cos(),
    LayerNorm(),
    LayerNorm(1e-30),
    Polynomial((0.1, 1, 0.5)),
]


@pytest.mark.parametrize("act", SCALE_BOUND, ids=str)
@pytest.mark.parametrize("where", ["first", "behind a ReLU", "before ReLUs"])
def test_images_too_dark_or_bright_for_float32_are_refused(act: Layer, where: str) -> None:
    network = Network(
        {
            "first": [Conv(3), act, Flatten(), Dense()],
            "behind a ReLU": [Conv(3), ReLU(), Conv(3, 1.3, 0.2), act, Flatten(), Dense()],
            "before ReLUs": [
                Conv(3),
                act,
                Conv(3),
                ReLU(),
                AvgPool(2),
                Conv(1),
                ReLU(),
                Flatten(),
                Dense(),
            ],
        }[where]
    )
    x = np.random.default_rng(1).normal(size=(4, 4, 5, 2))
    errors: list[float | None] = []
    for power in (-14, -11, -9, -8, -7, -6, -3, 0, 1, 2, 3, 6, 8, 9, 11, 14):
        z = x * np.reshape([1, 1, 10.0**power, 0], (4, 1, 1, 1))  # and one that is black
        errors.append(None)
        with contextlib.suppress(OverflowError):
            value = kernel(network, z, dtype="float32")
            exact = kernel(network, z, dtype="float64", backend="reference")
            size = np.sqrt(np.diag(exact))
            errors[-1] = np.max(np.abs(value - exact) / np.maximum(np.outer(size, size), 1e-300))
    computed = [error for error in errors if error is not None]
    assert 2 < len(computed) < len(errors) - 2
    # Behind a cosine dark images are alike: ReLUs then see an angle of the size of its rounding.
    assert max(computed) < (1e-4 if isinstance(act, Cos) else 1e-5)


SQUARE, END = Polynomial((0, 0, 1)), [GlobalAvgPool(), Dense()]


@pytest.mark.parametrize(
    ("layers", "scale"),
    [
        ([Conv(3), SQUARE, AvgPool(2), Conv(3), SQUARE, *END], 1e-5),
        ([Conv(3), SQUARE, Conv(3, 1e10), ReLU(), *END], 1e-5),
        ([Conv(3), Erf(), Conv(3, 1e9), ReLU(), *END], 1e-9),
        ([Conv(3), Erf(), Conv(3), GlobalAvgPool(), Dense(1e20)], 1e-20),
        ([Conv(3), Polynomial((0, 1)), Conv(3), GlobalAvgPool(), Dense(1e20)], 1e-20),
        ([Conv(3, 1e20), LayerNorm(), Conv(3), *END], 1e-20),
        ([Conv(3, 1e18), Sin(), Conv(3), *END], 1e-18),
    ],
    ids=str,
)
def test_what_is_too_dark_for_a_pass_in_float32(layers: list[Layer], scale: float) -> None:
    x = scale * np.random.default_rng(1).normal(size=(3, 4, 5, 2))
    with pytest.raises(OverflowError, match=r"deviations of layers .* use dtype='float64'"):
        kernel(Network(layers), x)
    exact = kernel(Network(layers), x, dtype="float64", backend="reference")
    assert_close(kernel(Network(layers), x, dtype="float64"), exact, rtol=1e-12)


@pytest.mark.parametrize("act", [*SCALE_BOUND, ReLU(), Gaussian()], ids=str)
@pytest.mark.parametrize("scale", [1e-10, 1e10, 1e18])
def test_weights_that_undo_the_scale_of_images(act: Layer, scale: float) -> None:
    x = np.random.default_rng(1).normal(size=(3, 4, 5, 2))
    layers = [act, Conv(3), ReLU(), Flatten(), Dense()]
    values = kernel(Network([Conv(3, 1 / scale), *layers]), scale * x)
    exact = kernel(Network([Conv(3, 1.0), *layers]), x, dtype="float64", backend="reference")
    assert_close(values, exact, rtol=1e-5)


@pytest.mark.parametrize("w_std", [1e-8, 1e-15, 1e-20, 1e-40])
def test_a_branch_that_is_weaker_than_its_skip(w_std: float) -> None:
    x = np.random.default_rng(1).normal(size=(3, 4, 5, 2))
    end = [ReLU(), Conv(3), Flatten(), Dense()]
    network = Network([Conv(3), Sum((), [ReLU(), Conv(3, w_std)]), *end])
    exact = kernel(network, x, dtype="float64", backend="reference")
    assert_close(kernel(network, x), exact, rtol=1e-5)


def weak(w_std: float) -> Network:
    inner = [Conv(3), Sum((), [ReLU(), Conv(3, w_std)]), ReLU(), Conv(3), ReLU()]
    return Network([*inner, GlobalAvgPool(), Dense()])


BIASED = [Conv(3), ReLU(), Conv(3, 1.0, b_std=1e18), ReLU(), GlobalAvgPool(), Dense()]


@pytest.mark.parametrize(
    "pair", [[weak(1.0), weak(1e-19)], [Network([*BIASED[:2], *BIASED[4:]]), Network(BIASED)]]
)
def test_networks_of_one_pass_that_differ_by_more_than_a_number_holds(pair: list[Network]) -> None:
    """Each is right alone, or is refused; together a stronger one would leave nothing of others."""
    x = np.random.default_rng(0).random((3, 6, 6, 2))
    with pytest.raises(OverflowError, match=r"computed together .* or compute networks one by one"):
        wl.kernel(pair, x, dtype="float32")
    for net in pair:
        expected = wl.kernel(net, x, backend="reference", dtype="float64")
        np.testing.assert_allclose(wl.kernel(net, x, dtype="float64"), expected, rtol=1e-12)
        try:
            found = wl.kernel(net, x, dtype="float32")
        except OverflowError:
            continue
        np.testing.assert_allclose(found, expected, rtol=2e-6)
    expected = wl.kernel(pair, x, backend="reference", dtype="float64")
    np.testing.assert_allclose(wl.kernel(pair, x, dtype="float64"), expected, rtol=1e-12)


def test_waves_of_a_head_have_the_limit_of_others() -> None:
    x = np.random.default_rng(0).random((3, 6, 6, 2))
    net = Network([Conv(3), ReLU(), GlobalAvgPool(), Dense(1000.0), Sin(), Dense()])
    message = r"before Sin must be at most 32 for float32, got \d\.\de\+02 for sample \d: use dtype"
    with pytest.raises(OverflowError, match=message):
        wl.kernel(net, x, dtype="float32")
    for options in ({"dtype": "float64"}, {"backend": "reference", "dtype": "float64"}):
        wl.kernel(net, x, **options)
    # Of features sums are in float64.
    wl.kernel(Network([Dense(100.0), Sin(), Dense()]), 3 * x.reshape(3, -1), dtype="float32")


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_image_that_is_out_of_range_is_named(backend: str) -> None:
    x = np.random.default_rng(2).normal(size=(70, 4, 4, 2))
    x[51] *= 1e3  # profiles are made 32 images at a time
    program = compile_family(
        [Network([Conv(3), Sin(), GlobalAvgPool(), Dense()])], x.shape[1:], ("nngp",)
    )
    made = CpuBackend() if backend == "cpu" else CudaBackend(HostDevice())
    with pytest.raises(OutsideRange) as caught:
        made.profile(program, x, np.arange(70), "float32")
    assert (caught.value.sample, caught.value.most) == (51, 32)


def test_what_to_do_about_an_image_that_is_out_of_range() -> None:
    x = np.random.default_rng(2).normal(size=(70, 4, 4, 2))
    x[51] *= 1e3
    network = [Conv(3), Sin(), GlobalAvgPool(), Dense()]
    message = (
        r"layers must lie between 1e-13 and 32 for float32, got .*e\+03 for sample 51: use dtype="
    )
    with pytest.raises(OverflowError, match=message):
        kernel(Network(network), x, kind="nngp")
    with pytest.raises(OverflowError, match=r"for sample 51 of x2: use"):
        kernel(Network(network), x[:3], x, kind="nngp")
    assert np.isfinite(kernel(Network(network), x, kind="nngp", dtype="float64")).all()


def test_what_is_out_of_range_is_what_weights_make_of_an_image() -> None:
    network = Network([Conv(3, 100.0), Sin(), Flatten(), Dense()])
    x = np.random.default_rng(3).normal(size=(3, 4, 4, 2)) / 20  # X is about 7, and 70 of 10 x
    exact = kernel(network, x, dtype="float64", backend="reference")
    assert_close(kernel(network, x), exact, rtol=1e-4)
    with pytest.raises(OverflowError, match=r"between 1e-13 and 32 for float32"):
        kernel(network, 10 * x)


def test_a_dark_pixel_matters_to_a_norm_of_each_pixel() -> None:
    x = np.random.default_rng(4).normal(size=(3, 4, 4, 2))
    x[1, 2, 3] *= 1e-12
    layers = [Flatten(), Dense()]
    with pytest.raises(OverflowError, match="for sample 1"):
        kernel(Network([Conv(1), LayerNorm(1e-30), *layers]), x)
    kernel(Network([Conv(1), LayerNorm(), *layers]), x)  # its eps is more than that


def test_a_bias_that_is_much_larger_than_images_with_pools() -> None:
    network = Network(
        [Conv(3, b_std=1e60), ReLU(), AvgPool(2), Conv(1), ReLU(), GlobalAvgPool(), Dense()]
    )
    x = np.random.default_rng(5).normal(size=(3, 4, 4, 2)) * 1e-100
    exact = kernel(network, x, kind="nngp", dtype="float64", backend="reference")
    assert_close(kernel(network, x, kind="nngp", dtype="float64"), exact, rtol=1e-12)


def test_samples_that_are_alike_by_their_hash_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images()
    expected = kernel(NET, x)
    monkeypatch.setattr(inputs, "hash", lambda content: len(content), raising=False)
    np.testing.assert_array_equal(kernel(NET, x), expected)


# ---------------------------------------------------------------- wrong shapes and types


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (NET, (5,), r"x1 must have shape \(n, h, w, c\), got \(5,\): reshape it"),
        (
            NET,
            (5, 784),
            r"got \(5, 784\): reshape rows to images, as in x1.reshape\(-1, 28, 28, 1\)",
        ),
        (
            NET,
            (28, 28, 3),
            r"got \(28, 28, 3\): add a channel axis, x1\[..., None\], or for one im",
        ),
        (NET, (1, 5, 4, 4, 3), r"got \(1, 5, 4, 4, 3\): reshape it"),
        (NET, (), r"got \(\): reshape it"),
        (NET, (0, 4, 4, 3), r"x1 must not be empty, got shape \(0, 4, 4, 3\)"),
        (NET, (3, 0, 4, 3), r"x1 must not be empty, got shape \(3, 0, 4, 3\)"),
        (NET, (3, 4, 4, 0), r"x1 must not be empty, got shape \(3, 4, 4, 0\)"),
        (wl.ntk_dense(2), (5,), r"x1 must have shape \(n, d\) or \(n, h, w, c\), got \(5,\)"),
        (wl.ntk_dense(2), (3, 4, 4), r"x1 must have shape \(n, d\) or \(n, h, w, c\), got \(3, 4,"),
        (wl.ntk_dense(2), (3, 0), r"x1 must not be empty, got shape \(3, 0\)"),
        ([wl.ntk_dense(2), NET], (5, 7), r"x1 must have shape \(n, h, w, c\), got \(5, 7\)"),
    ],
)
def test_wrong_shapes(network: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel(network, np.ones(shape))
    if shape and shape[0]:
        good = np.ones((2, 4, 4, 3))
        with pytest.raises(ValueError, match=message.replace("x1", "x2")):
            kernel(network, good, np.ones(shape))


@pytest.mark.parametrize(
    ("network", "shape1", "shape2"),
    [
        (NET, (2, 4, 4, 3), (2, 4, 4, 1)),
        (NET, (2, 4, 5, 3), (2, 5, 4, 3)),
        (wl.ntk_dense(2), (2, 7), (2, 8)),
        (wl.ntk_dense(2), (2, 4, 4, 3), (2, 48)),
    ],
)
def test_inputs_of_different_shapes(network: Network, shape1: Any, shape2: Any) -> None:
    with pytest.raises(ValueError, match=r"x1 and x2 must hold inputs of one shape, got .* resh"):
        kernel(network, np.ones(shape1), np.ones(shape2))


@pytest.mark.parametrize(
    "x",
    [
        images().astype(object),
        images().astype(complex),
        images().astype(str),
        np.zeros((2, 2, 2, 2), "M8[s]"),
        np.zeros((2, 2, 2, 2), "m8[s]"),
        np.zeros(3, [("a", float)]),
        None,
        "x",
        {"a": 1},
        b"1234",
    ],
    ids=lambda x: str(getattr(x, "dtype", x)),
)
def test_wrong_types(x: Any) -> None:
    with pytest.raises(TypeError, match="x1 must hold real numbers, got dtype "):
        kernel(NET, x)


def test_masked_entries() -> None:
    x = np.ma.masked_less(images(), 1.0)
    with pytest.raises(TypeError, match=r"x1 has masked entries: .* x1.filled\(0\)"):
        kernel(NET, x)
    np.testing.assert_array_equal(kernel(NET, np.ma.asarray(images())), kernel(NET, images()))


def test_a_ragged_list() -> None:
    with pytest.raises(ValueError, match="inhomogeneous shape"):
        kernel(NET, [[1.0, 2.0], [3.0]])


# ---------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"kind": "NTK"},
            ValueError,
            r'kind must be "ntk", "nngp" or a tuple of both, got \'NTK\'',
        ),
        ({"kind": ("ntk", "cntk")}, ValueError, r"got \('ntk', 'cntk'\)"),
        ({"kind": ("ntk", "ntk")}, ValueError, r"got \('ntk', 'ntk'\)"),
        ({"kind": ()}, ValueError, r"got \(\)"),
        ({"kind": ""}, ValueError, r"got ''"),
        ({"kind": (1, 2)}, ValueError, r"got \(1, 2\)"),
        (
            {"dtype": "float16"},
            ValueError,
            r'dtype must be "float32" or "float64", got \'float16\'',
        ),
        ({"dtype": np.float32}, ValueError, r"dtype must be .*got <class 'numpy.float32'>"),
        ({"dtype": None}, ValueError, "dtype must be .* got None"),
        ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
        ({"threads": -2}, ValueError, "threads must be at least 1, got -2"),
        ({"threads": 1.0}, TypeError, "threads must be an integer or None, got 1.0"),
        ({"threads": True}, TypeError, "threads must be an integer or None, got True"),
        ({"threads": "2"}, TypeError, "threads must be an integer or None, got '2'"),
        ({"backend": "gpu"}, ValueError, r'backend must be "auto", .* got \'gpu\''),
        ({"backend": None}, ValueError, r'backend must be "auto", .* got None'),
        ({"progress": None}, TypeError, "progress must be True, False or a callable, got None"),
        ({"progress": 1}, TypeError, "progress must be True, False or a callable, got 1"),
    ],
)
def test_wrong_options(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kernel(NET, images(), **options)


NETS = 'net must be a Network, a preset like "cntk-gap-11" or a list of them'


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (None, TypeError, f"{NETS}, got None"),
        ([], ValueError, "net must be a Network or a non-empty list of them, got an empty list"),
        ([NET, 3], TypeError, f"{NETS}, got 3"),
        ([NET, "cntk-gpa-3"], ValueError, r"got 'cntk-gpa-3': did you mean cntk-gap-3\?"),
        (NET.layers, TypeError, rf"{NETS}, got Conv\(3"),
        (wl.cntk_gap, TypeError, f"{NETS}, got <function"),
    ],
)
def test_wrong_networks(net: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kernel(net, images())


# ---------------------------------------------------------------- memory

# The attribute `kernel` of the package is the function.
MODULE = importlib.import_module("widelimit.matrices.kernel")


def refuse_work(*_: Any) -> Any:
    raise AssertionError("work started")


def test_memory_is_checked_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "available_memory", lambda: 2**30)
    monkeypatch.setattr(MODULE, "fill", refuse_work)
    monkeypatch.setattr(CpuBackend, "profile", refuse_work)
    row = np.ones((1, 1, 1, 1))
    x = np.broadcast_to(row, (30_000, 1, 1, 1))
    for network, n in ((wl.cntk_vanilla(2), 30_000), (wl.ntk_dense(1), 30_000)):
        with pytest.raises(
            MemoryError,
            match=rf"{n} x {n} kernel values of 1 networks and 1 kinds need 3.4 GiB, and .* of "
            "work space; 1.0 GiB are free: compute fewer at a time, or use fewer threads",
        ):
            kernel(network, x)
    with pytest.raises(MemoryError, match=r"of 2 networks and 2 kinds need 1.2 GiB"):
        kernel([wl.cntk_gap(2), wl.cntk_gap(3)], x[:9_000], kind=BOTH)
    with pytest.raises(MemoryError, match=r"need 1.2 GiB"):
        kernel(wl.cntk_gap(2), x[:18_000], x[:9_000], dtype="float64")


def test_work_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "available_memory", lambda: 2**24)
    monkeypatch.setattr(MODULE, "fill", refuse_work)
    with pytest.raises(MemoryError, match="use fewer threads"):
        kernel(wl.cntk_gap(11), np.ones((2, 32, 32, 3)), threads=1_000)


def test_what_always_fits_does_not_ask_for_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # To ask takes a fifth of the time of a small kernel.
    monkeypatch.setattr(MODULE, "available_memory", refuse_work)
    assert kernel(NET, images()).shape == (len(images()), len(images()))


def test_enough_memory_or_unknown_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = kernel(NET, images())
    for free in (2**34, None):
        monkeypatch.setattr(MODULE, "available_memory", lambda free=free: free)
        np.testing.assert_array_equal(kernel(NET, images()), expected)


def test_available_memory_is_a_number_of_bytes() -> None:
    free = MODULE.available_memory()
    assert free is None or 2**20 < free < 2**50


# ---------------------------------------------------------------- progress and Ctrl-C


@pytest.mark.parametrize("network", [NET, wl.ntk_dense(2), [NET, wl.cntk_vanilla(3, 5)]], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_progress_goes_from_0_to_1_in_the_calling_thread(network: Any, threads: int) -> None:
    seen: list[float] = []
    callers: set[threading.Thread] = set()

    def note(share: float) -> None:
        seen.append(share)
        callers.add(threading.current_thread())

    x = images(150)
    for arguments in ((x,), (x, images(40, seed=1))):
        seen.clear()
        kernel(network, *arguments, threads=threads, progress=note)
        assert seen == sorted(seen)
        assert all(0 < share <= 1 for share in seen)
        assert seen[-1] == 1.0
    assert callers == {threading.current_thread()}


def test_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    expected = kernel(NET, images())
    np.testing.assert_array_equal(kernel(NET, images(), progress=True), expected)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kernel: 100%, ")


def no_thread_is_left() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("widelimit")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("threads", [1, 4])
def test_an_exception_from_progress_stops_everything(
    error: type[BaseException], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    tile = CpuBackend.sums
    monkeypatch.setattr(CpuBackend, "sums", lambda *a: (started.append(1), tile(*a))[1])

    def stop(share: float) -> None:
        raise error(f"at {share}")

    x = images(400)
    with pytest.raises(error, match="at 0"):
        kernel(wl.cntk_gap(8), x, threads=threads, progress=stop)
    assert no_thread_is_left()
    at_the_stop = len(started)
    kernel(wl.cntk_gap(2), x)
    assert at_the_stop < (len(started) - at_the_stop) / 2


def test_ctrl_c_sets_the_flag_that_tiles_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []
    begun: list[int] = []
    right_tile = CpuBackend.sums

    def sums(self: Any, program: Any, left: Any, right: Any, tile: Any, cancel: Any) -> Any:
        begun.append(1)
        if len(begun) == 1:  # let the calling thread come to where it waits
            return right_tile(self, program, left, right, tile, cancel)
        _thread.interrupt_main()  # what Ctrl-C does, while this tile is under way
        for _ in range(3000):
            if cancel[0]:
                stopped.append(True)
                raise Cancelled
            time.sleep(0.01)
        raise AssertionError("nobody set the flag")

    monkeypatch.setattr(CpuBackend, "sums", sums)
    with pytest.raises(KeyboardInterrupt):
        kernel(NET, images(40), threads=1)
    assert stopped == [True]
    assert no_thread_is_left()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pairwise", [False, True])
def test_the_engine_notices_the_flag_while_it_works(dtype: Any, pairwise: bool) -> None:
    x = np.random.default_rng(0).uniform(size=(300, 40, 40, 1))
    backend = CpuBackend()
    program = compile_family([wl.cntk_gap(21)], x.shape[1:], ("ntk",))  # hours of work
    profile = backend.profile(program, x, np.arange(300), dtype)
    cancel = np.zeros(1, np.int32)
    caught: list[BaseException] = []
    begun = threading.Event()

    def work() -> None:
        begun.set()
        try:
            tile = Pairs(np.arange(300), np.arange(300), pairwise)
            backend.sums(program, profile, profile, tile, cancel)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert begun.wait(60)
    time.sleep(0.05)
    cancel[0] = 1
    thread.join(60)
    assert not thread.is_alive()
    assert [type(error) for error in caught] == [Cancelled]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_tile_reaches_the_caller(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = CpuBackend.sums

    def fail(self: Any, program: Any, left: Any, right: Any, what: Any, cancel: Any) -> Any:
        if 30 in what.columns:
            raise RuntimeError("tile 30")
        return tile(self, program, left, right, what, cancel)

    monkeypatch.setattr(CpuBackend, "sums", fail)
    with pytest.raises(RuntimeError, match="tile 30"):
        kernel(NET, images(40), threads=threads)
    assert no_thread_is_left()
    monkeypatch.undo()
    assert np.isfinite(kernel(NET, images(40), threads=threads)).all()


def test_no_thread_is_left_after_a_kernel() -> None:
    kernel(NET, images(40), threads=3)
    assert no_thread_is_left()


# ---------------------------------------------------------------- far ends of the ranges


def test_tiny_weights() -> None:
    tiny = [Conv(3, w_std=1e-100, b_std=1.0), ReLU()]
    network = Network([*tiny, *tiny, Flatten(), Dense()])
    expected = kernel(network, images(), backend="reference", dtype="float64")
    assert_close(kernel(network, images(), dtype="float64"), expected, rtol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_beyond_float64(backend: str) -> None:
    network = Network([Conv(3, w_std=1e100), ReLU(), Conv(3, w_std=1e100), *NET.layers[-2:]])
    with pytest.raises(OverflowError, match=r"for float64, got .*: use inputs or w_std of another"):
        kernel(network, images(), backend=backend, dtype="float64")


@pytest.mark.parametrize("kind", [None, 5])
def test_a_kind_that_is_no_sequence(kind: Any) -> None:
    with pytest.raises((TypeError, ValueError), match='kind must be "ntk", "nngp" or a tuple'):
        kernel(NET, images(), kind=kind)


def test_long_doubles_that_float64_rounds() -> None:
    x = images() + np.longdouble(2) ** -60
    np.testing.assert_array_equal(kernel(NET, x, x.copy()), kernel(NET, x))


def test_ctrl_c_is_free_while_variances_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[threading.Thread] = set()
    tile = CpuBackend.sums
    monkeypatch.setattr(
        CpuBackend, "sums", lambda *a: (threads.add(threading.current_thread()), tile(*a))[1]
    )
    kernel(Network([*NET.layers[:-1], Dense(), ReLU(), Dense()]), images(20), threads=2)
    assert threading.current_thread() not in threads


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("cpu", "float64"),
        ("cpu", "float32"),
        ("reference", "float64"),
    ],
)
@pytest.mark.parametrize("w_std", [1e-100, 1e100])
def test_weights_that_undo_each_other(w_std: float, backend: str, dtype: str) -> None:
    def network(first: float) -> Network:
        layers = [Conv(3, first, trainable=False), ReLU(), Conv(3, 1 / first), ReLU()]
        return Network([*layers, GlobalAvgPool(), Dense()])

    expected = naive.kernels(network(1.0), images(), images())
    values = kernel(network(w_std), images(), kind=BOTH, backend=backend, dtype=dtype)
    for value, desired in zip(values, expected[:2], strict=True):
        assert_close(value, desired, rtol=5e-6 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_variances_beyond_float64(backend: str) -> None:
    huge = [Conv(3, w_std=1e100), ReLU()]
    network = Network([*huge, *huge, GlobalAvgPool(), Dense(), ReLU(), Dense()])
    with pytest.raises(OverflowError, match="for float64, got"):
        kernel(network, images(), backend=backend, dtype="float64")


@pytest.mark.parametrize("act", [Sin(), Cos()], ids=str)
def test_waves_of_features_that_rounding_decides_are_refused(act: Layer) -> None:
    x = np.random.default_rng(5).normal(size=(4, 3)) * 0.1
    network = Network([Dense(), act, Dense()])
    near = kernel(network, x + np.array([5e3, 1, 2]), kind="nngp", dtype="float64")
    assert np.all(np.abs(near) <= 0.5 * (1 + 1e-12))
    behind = Network([Conv(3), ReLU(), GlobalAvgPool(), Dense(w_std=1e8), act, Dense()])
    alike = x[:, :, None, None] + np.ones((4, 3, 3, 1))
    for net, samples in ((network, x + np.array([1e7, 1, 2])), (behind, alike)):
        for dtype in ("float32", "float64"):
            with pytest.raises(OverflowError, match=f"before {act} must be at most 10000"):
                kernel(net, samples, dtype=dtype)
