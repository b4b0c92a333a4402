"""Kernels against the naive transcription, against the paper, and against their properties.

Errors are relative, entry by entry. Where an image has entries of both signs, the first covariances
may be negative and terms of both signs cancel: there, errors are relative to at least a quarter of
sqrt(k(x,x) k(z,z)), which no |k(x,z)| exceeds. Uniform images have positive terms only, no floor.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import widelimit as wl
from widelimit.backends import get_backend
from widelimit.backends.base import Pairs
from widelimit.backends.cpu import ISA_VARIABLE, CpuBackend, instruction_sets
from widelimit.network import (
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    LocalAvgPool,
    Network,
    ReLU,
)
from widelimit.program import Tap, compile_family
from widelimit.testing import assert_close, compute

Array = NDArray[np.float64]
BOTH = ("nngp", "ntk")
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}
ENGINES = [("cpu", "float64"), ("cpu", "float32"), ("reference", "float64")]
SUPPORTED = [name for name, supported in instruction_sets().items() if supported]
engines = pytest.mark.parametrize(("backend", "dtype"), ENGINES)
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])
some = settings(max_examples=20, deadline=None, derandomize=True)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def uniform(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0.0, 1.0, shape)


def mixed_pairs(
    h: int, w: int, c: int, n1: int = 4, n2: int = 5, seed: int = 0
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Images, every other one normal, one of them on both sides; and which pairs may cancel."""
    images = uniform(n1 + n2, h, w, c, seed=seed)
    images[1::2] = normal(n1 + n2, h, w, c, seed=seed + 1)[1::2]
    signed = np.arange(n1 + n2) % 2 == 1
    images[-1], signed[-1] = images[1], signed[1]
    return images[:n1], images[n1:], signed[:n1, None] | signed[None, n1:]


def check(
    network: Network,
    values: tuple[NDArray[Any], ...],
    expected: naive.Values,
    cancels: NDArray[np.bool_],
    tolerance: float,
) -> None:
    scales = (expected.nngp_scale, expected.ntk_scale)
    for kind, value, desired, scale in zip(BOTH, values, expected[:2], scales, strict=True):
        floor = np.where(cancels, 0.25 * scale, 0.0)
        assert_close(value, desired, rtol=tolerance, floor=floor, context=f"{kind} of {network!r}")


def against_naive(
    network: Network, h: int, w: int, c: int, backend: Any, dtype: Any, **sizes: int
) -> None:
    x, z, cancels = mixed_pairs(h, w, c, **sizes)
    values = wl.kernel(network, x, z, kind=BOTH, backend=backend, dtype=dtype)
    check(network, values, naive.kernels(network, x, z), cancels, TOLERANCE[dtype])


# ---------------------------------------------------------------- the grid

SHAPES = [(1, 1), (1, 9), (6, 6), (5, 8)]


def trainable_patterns(n: int) -> list[tuple[bool, ...]]:
    every = range(n)
    patterns = [
        tuple(True for _ in every),
        tuple(False for _ in every),
        tuple(i > 0 for i in every),
        tuple(i < n - 1 for i in every),
        tuple(i % 2 == 0 for i in every),
        tuple(i % 2 == 1 for i in every),
    ]
    return list(dict.fromkeys(patterns))


def stack(q: int, trainable: tuple[bool, ...]) -> list[Layer]:
    return [layer for t in trainable for layer in (Conv(q, trainable=t), ReLU())]


@lru_cache(maxsize=2)
def grid(h: int, w: int, q: int, n: int) -> tuple[Any, ...]:
    """All networks of one cell of the grid, images, and naive values."""
    readouts: list[Layer] = [Flatten(), GlobalAvgPool(), LocalAvgPool(1)]
    networks = [
        Network([*stack(q, trainable), readout, Dense(trainable=last)])
        for trainable in trainable_patterns(n)
        for readout in readouts
        for last in (True, False)
    ]
    x, z, cancels = mixed_pairs(h, w, 3, seed=10 * h + w + 100 * q + 1000 * n)
    memo: naive.Memo = {}
    return networks, x, z, cancels, [naive.kernels(network, x, z, memo) for network in networks]


def test_patterns_are_what_they_should_be() -> None:
    assert trainable_patterns(1) == [(True,), (False,)]
    assert [len(trainable_patterns(n)) for n in (2, 5)] == [4, 6]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("q", [1, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 5])
@engines
def test_grid(shape: tuple[int, int], q: int, n: int, backend: Any, dtype: Any) -> None:
    networks, x, z, cancels, expected = grid(*shape, q, n)
    nngp, ntk = wl.kernel(networks, x, z, kind=BOTH, backend=backend, dtype=dtype)
    for index, (network, values) in enumerate(zip(networks, expected, strict=True)):
        found = (nngp[index], ntk[index])
        check(network, found, values, cancels, TOLERANCE[dtype])
        if backend == "cpu" and index % 3 == n % 3:
            # Alone, each kind alone: not one bit differs from what the family gave.
            for kind, together in zip(BOTH, found, strict=True):
                apart = wl.kernel(network, x, z, kind, dtype=dtype, threads=1)
                np.testing.assert_array_equal(apart, together, err_msg=f"{kind} of {network!r}")


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("shape", [(1, 9), (5, 8)])
@pytest.mark.parametrize("q", [1, 3, 5])
@dtypes
def test_grid_on_each_instruction_set(
    isa: str, shape: tuple[int, int], q: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, x, z, cancels, expected = grid(*shape, q, 2)
    monkeypatch.setenv(ISA_VARIABLE, isa)
    values = wl.kernel(networks, x, z, kind=BOTH, backend="cpu", dtype=dtype)
    for network, value, desired in zip(networks, zip(*values, strict=True), expected, strict=True):
        check(network, value, desired, cancels, TOLERANCE[dtype])


def test_the_grid_can_fail() -> None:
    networks, x, z, cancels, expected = grid(5, 8, 3, 2)
    for network, values in zip(networks, expected, strict=True):
        first = replace(network.layers[0], w_std=network.layers[0].w_std * (1 + 1e-5))
        wrong = replace(network, layers=[first, *network.layers[1:]])
        found = wl.kernel(wrong, x, z, kind=BOTH)
        with pytest.raises(AssertionError, match="entries differ by more than"):
            check(network, found, values, cancels, TOLERANCE["float32"])
        with pytest.raises(AssertionError, match="entries differ by more than"):
            check(network, (found[0], found[1].T[:4]), values, cancels, TOLERANCE["float32"])


# ---------------------------------------------------------------- beyond the grid

C3 = (Conv(3), ReLU())
GAP_HEAD = (GlobalAvgPool(), Dense())
EXTRA: dict[str, tuple[list[Layer], tuple[int, int, int]]] = {
    "filter 7": ([Conv(7), ReLU(), Conv(7), ReLU(), *GAP_HEAD], (5, 6, 3)),
    "filter 7 on one pixel": ([Conv(7), ReLU(), Conv(7), ReLU(), *GAP_HEAD], (1, 1, 3)),
    "filter 9 larger than the image": ([Conv(9), ReLU(), Conv(9), ReLU(), *GAP_HEAD], (3, 4, 2)),
    "filter 11 larger, local": ([Conv(11), ReLU(), LocalAvgPool(1), Dense()], (2, 3, 2)),
    "filter 15": ([Conv(15), ReLU(), Conv(3), ReLU(), *GAP_HEAD], (2, 1, 3)),
    "filters 5 3 1 7": (
        [Conv(5), ReLU(), Conv(3), ReLU(), Conv(1), ReLU(), Conv(7), ReLU(), *GAP_HEAD],
        (4, 5, 2),
    ),
    "1 x 20": ([*C3, *C3, *GAP_HEAD], (1, 20, 3)),
    "20 x 1": ([*C3, *C3, LocalAvgPool(2), Dense()], (20, 1, 3)),
    "2 x 2": ([*C3, *C3, *C3, *GAP_HEAD], (2, 2, 3)),
    "odd height": ([*C3, Conv(5), ReLU(), *GAP_HEAD], (7, 3, 2)),
    "1 channel": ([*C3, *C3, Flatten(), Dense()], (4, 4, 1)),
    "2 channels": ([*C3, *C3, *GAP_HEAD], (4, 4, 2)),
    "5 channels": ([*C3, *C3, *GAP_HEAD], (5, 4, 5)),
    "depth 30, pooled": ([*C3 * 30, *GAP_HEAD], (4, 4, 3)),
    "depth 30, flat": ([*C3 * 30, Flatten(), Dense()], (6, 5, 3)),
    "depth 30, filter 5": ([*(Conv(5), ReLU()) * 30, LocalAvgPool(1), Dense()], (3, 3, 3)),
    "biases": (
        [*(Conv(3, b_std=0.5), ReLU()) * 3, GlobalAvgPool(), Dense(b_std=0.3)],
        (4, 5, 3),
    ),
    "some biases": (
        [Conv(3, b_std=0.3), ReLU(), *C3, Conv(5, b_std=1.0, trainable=False), ReLU(), *GAP_HEAD],
        (4, 5, 3),
    ),
    "bias not trained": (
        [*C3, Conv(3, b_std=0.4, trainable=False), ReLU(), Flatten(), Dense(b_std=1.0)],
        (4, 5, 3),
    ),
    "last bias not trained": ([*C3, Flatten(), Dense(b_std=0.7, trainable=False)], (4, 5, 3)),
    "linear": ([Conv(3), Conv(3), ReLU(), *GAP_HEAD], (4, 5, 3)),
    "linear to the end": ([Conv(3), Conv(1), Conv(5), LocalAvgPool(1), Dense()], (4, 5, 3)),
    "linear last": ([*C3, Conv(3), *GAP_HEAD], (4, 5, 3)),
    "linear with biases": (
        [Conv(3, b_std=0.2), Conv(5, b_std=0.1), ReLU(), Conv(1, b_std=0.3), *GAP_HEAD],
        (3, 5, 3),
    ),
    "no convolution, pooled": ([*GAP_HEAD], (4, 5, 3)),
    "no convolution, local": ([LocalAvgPool(1), Dense()], (4, 5, 3)),
    "no convolution, flat": ([Flatten(), Dense(), ReLU(), Dense()], (4, 5, 3)),
    "no convolution, pooled, deep": (
        [GlobalAvgPool(), Dense(), ReLU(), Dense(b_std=0.1)],
        (4, 5, 3),
    ),
    "head after pooling": (
        [*C3, *C3, GlobalAvgPool(), Dense(2**0.5), ReLU(), Dense(2**0.5), ReLU(), Dense()],
        (4, 5, 3),
    ),
    "head after flatten": (
        [*C3, Flatten(), Dense(), ReLU(), Dense(b_std=0.2, trainable=False)],
        (4, 5, 3),
    ),
    "head after local pooling": (
        [*C3, LocalAvgPool(1), Flatten(), Dense(b_std=0.1), ReLU(), Dense()],
        (4, 5, 3),
    ),
    "linear head": ([*C3, GlobalAvgPool(), Dense(), Dense(0.5), Dense(trainable=False)], (4, 5, 3)),
    "head of nothing trained but the middle": (
        [
            Conv(3, trainable=False),
            ReLU(),
            GlobalAvgPool(),
            Dense(),
            ReLU(),
            Dense(trainable=False),
        ],
        (4, 5, 3),
    ),
    "w_std 0.1": ([*(Conv(3, w_std=0.1), ReLU()) * 4, GlobalAvgPool(), Dense(0.1)], (4, 5, 3)),
    "w_std 10": ([*(Conv(3, w_std=10), ReLU()) * 4, GlobalAvgPool(), Dense(10)], (4, 5, 3)),
    "local pooling 0": ([*C3, LocalAvgPool(0), Dense()], (4, 5, 3)),
    "local pooling 2": ([*C3, *C3, LocalAvgPool(2), Dense()], (6, 5, 3)),
    "local pooling beyond the image": ([*C3, LocalAvgPool(9), Dense()], (4, 5, 3)),
}


@pytest.mark.parametrize("name", EXTRA)
@pytest.mark.parametrize("scaling", ["fan_in", "paper"])
@engines
def test_beyond_the_grid(
    name: str, scaling: Literal["fan_in", "paper"], backend: Any, dtype: Any
) -> None:
    layers, shape = EXTRA[name]
    against_naive(Network(layers, scaling), *shape, backend, dtype)


@pytest.mark.parametrize(("n1", "n2"), [(1, 1), (2, 19), (19, 2), (17, 33)])
@engines
def test_any_number_of_images(n1: int, n2: int, backend: Any, dtype: Any) -> None:
    network = Network([*C3, *C3, LocalAvgPool(1), Dense()])
    against_naive(network, 3, 4, 2, backend, dtype, n1=max(2, n1), n2=n2)


@dtypes
def test_digits_size_pooled_against_naive(dtype: Any) -> None:
    network = wl.cntk_gap(3)
    x, z = uniform(1, 28, 28, 1, seed=1), uniform(1, 28, 28, 1, seed=2)
    expected = naive.kernels(network, x, z)
    for kind, desired in zip(BOTH, expected[:2], strict=True):
        value = wl.kernel(network, x, z, kind, dtype=dtype)
        assert_close(value, desired, rtol=TOLERANCE[dtype], context=kind)


@pytest.mark.parametrize(
    ("shape", "networks"),
    [
        ((28, 28, 1), [wl.cntk_vanilla(4), Network([*C3, *C3, LocalAvgPool(1), Dense()], "paper")]),
        ((32, 32, 3), [wl.cntk_vanilla(11)]),
        ((64, 48, 3), [wl.cntk_vanilla(4), Network([*C3, LocalAvgPool(1), Dense()], "paper")]),
        ((48, 64, 2), [wl.cntk_vanilla(3, 7)]),
        ((1, 20, 3), [wl.cntk_gap(6), wl.cntk_vanilla(6, 5)]),
        ((3, 2, 3), [wl.cntk_gap(3, 101)]),
        ((96, 3, 3), [wl.cntk_vanilla(6)]),
        ((12, 13, 3), [wl.cntk_gap(4), wl.cntk_gap(3, 5)]),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else "",
)
@dtypes
def test_larger_images_against_the_reference(
    shape: tuple[int, int, int], networks: list[Network], dtype: Any
) -> None:
    x, z = uniform(2, *shape, seed=1), uniform(3, *shape, seed=2)
    z[2] = x[1]
    values = wl.kernel(networks, x, z, kind=BOTH, dtype=dtype)
    expected = wl.kernel(networks, x, z, kind=BOTH, backend="reference", dtype="float64")
    for value, desired in zip(values, expected, strict=True):
        assert_close(value, desired, rtol=TOLERANCE[dtype])


# ---------------------------------------------------------------- the paper's numbers


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 1), (4, 3, 1), (3, 4, 3), (5, 5, 3)])
@pytest.mark.parametrize("q", [1, 3, 5])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_presets_have_the_papers_values(shape: tuple[int, int, int], q: int, depth: int) -> None:
    images = uniform(3, *shape)
    images[2] = images[0]
    for pooling, network in ((True, wl.cntk_gap(depth, q)), (False, wl.cntk_vanilla(depth, q))):
        pairs = [(0, 1), (2, 0), (1, 2)]
        paper = [
            naive.paper_cntk(images[i], images[j], depth, q, pooling=pooling) for i, j in pairs
        ]
        written = naive.kernels(network, images, images)
        values = {"naive": np.stack(written[:2], -1)}
        for backend in ("cpu", "reference"):
            found = wl.kernel(network, images, kind=BOTH, backend=backend, dtype="float64")
            values[backend] = np.stack(found, -1)
        # One channel and q = 1: lambda is 1 between any two pixels, and arccos near 1 turns a
        # rounding of 1e-16 into 1e-8, in the witness as well.
        tolerance = 1e-7 if q == 1 and shape[2] == 1 else 1e-12
        for name, value in values.items():
            found = [value[i, j] for i, j in pairs]
            assert_close(found, paper, rtol=tolerance, context=f"{name}: {network}")


@pytest.mark.parametrize("d", [2, 7, 100])
@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_dense_preset_has_the_papers_values(d: int, depth: int) -> None:
    x, z = uniform(3, d, seed=1), uniform(4, d, seed=2)
    z[3] = x[1]
    paper = [[naive.paper_ntk(a, b, depth) for b in z] for a in x]
    for dtype in ("float64", "float32"):
        found = wl.kernel(wl.ntk_dense(depth), x, z, kind=BOTH, dtype=dtype)
        tolerance = 1e-12 if dtype == "float64" else 1e-7  # float64 but for the result
        assert_close(np.stack(found, -1), paper, rtol=tolerance)


DENSE = {
    "paper": wl.ntk_dense(3),
    "biases": Network([Dense(1.5, 0.2), ReLU(), Dense(2**0.5, 0.1), ReLU(), Dense(b_std=1.0)]),
    "not all trained": Network(
        [Dense(trainable=False), ReLU(), Dense(), Dense(), ReLU(), Dense(2.0, trainable=False)]
    ),
    "linear": Network([Dense()]),
    "nothing trained": Network([Dense(trainable=False), ReLU(), Dense(trainable=False)]),
    "flatten": Network([Flatten(), Dense(), ReLU(), Dense()], "paper"),
}


@pytest.mark.parametrize("name", DENSE)
@engines
def test_dense_networks_against_naive(name: str, backend: Any, dtype: Any) -> None:
    network = DENSE[name]
    against_naive(network, 2, 3, 2, backend, dtype)
    if name == "flatten":  # vectors are images of one pixel
        network = replace(network, layers=network.layers[1:])
    x, z, cancels = mixed_pairs(1, 1, 12)
    vectors = [images.reshape(len(images), -1) for images in (x, z)]
    values = wl.kernel(network, *vectors, kind=BOTH, backend=backend, dtype=dtype)
    check(network, values, naive.kernels(network, *vectors), cancels, TOLERANCE[dtype])


def test_a_dense_network_flattens_images() -> None:
    x = normal(5, 3, 4, 2)
    for network in (wl.ntk_dense(2), DENSE["flatten"]):
        np.testing.assert_array_equal(wl.kernel(network, x), wl.kernel(network, x.reshape(5, -1)))


# ---------------------------------------------------------------- identities

weights = st.sampled_from([2**0.5, 1.0, 0.7, 2.0])
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 3))
seeds = st.integers(0, 2**16)


@st.composite
def networks(draw: st.DrawFn, biased: bool = False) -> Network:
    biases = st.sampled_from([0.0, 0.1, 0.5]) if biased else st.just(0.0)

    def weighted(kind: Any, *size: int) -> Layer:
        return kind(*size, draw(weights), draw(biases), draw(st.booleans()))

    layers: list[Layer] = []
    for _ in range(draw(st.integers(0, 3))):
        layers.append(weighted(Conv, draw(st.sampled_from([1, 3, 5, 7]))))
        if draw(st.integers(0, 4)):
            layers.append(ReLU())
    readouts = [Flatten(), GlobalAvgPool(), LocalAvgPool(1), LocalAvgPool(2)]
    layers += [draw(st.sampled_from(readouts)), weighted(Dense)]
    if draw(st.booleans()):
        layers += [ReLU(), weighted(Dense)]
    return Network(layers, draw(st.sampled_from(["fan_in", "paper"])))


@given(networks(biased=True), shapes, seeds)
@settings(some, max_examples=60)
def test_any_network_against_naive(
    network: Network, shape: tuple[int, int, int], seed: int
) -> None:
    x, z, cancels = mixed_pairs(*shape, n1=2, n2=4, seed=seed)
    expected = naive.kernels(network, x, z)
    # Biases bring lambda close to 1: three digits more are allowed to be lost.
    for backend, dtype, tolerance in (
        ("cpu", "float64", 1e-11),
        ("cpu", "float32", 5e-5),
        ("reference", "float64", 1e-11),
    ):
        values = wl.kernel(network, x, z, kind=BOTH, backend=backend, dtype=dtype)
        check(network, values, expected, cancels, tolerance)


@given(networks(biased=True), shapes, st.integers(1, 20), st.integers(1, 20), seeds)
@some
def test_symmetry_and_exchange(
    network: Network, shape: tuple[int, int, int], n1: int, n2: int, seed: int
) -> None:
    x, z = normal(n1, *shape, seed=seed), uniform(n2, *shape, seed=seed)
    for dtype in ("float32", "float64"):
        for gram in wl.kernel(network, x, kind=BOTH, dtype=dtype):
            np.testing.assert_array_equal(gram, gram.T)
        forth = wl.kernel(network, x, z, kind=BOTH, dtype=dtype)
        back = wl.kernel(network, z, x, kind=BOTH, dtype=dtype)
        for a, b in zip(forth, back, strict=True):
            np.testing.assert_array_equal(a, b.T)


@given(networks(biased=True), shapes, seeds)
@some
def test_positive_semidefinite_and_cauchy_schwarz(
    network: Network, shape: tuple[int, int, int], seed: int
) -> None:
    x = np.concatenate([normal(6, *shape, seed=seed), uniform(6, *shape, seed=seed)])
    x[[4, 9]] = 0.5 * x[0], x[1]  # proportional and identical images
    for dtype, tolerance in (("float64", 1e-7), ("float32", 1e-3)):
        # Half an image has lambda = 1: see docs/accuracy.md for the square root of a rounding
        for gram in wl.kernel(network, x, kind=BOTH, dtype=dtype):
            gram = gram.astype(np.float64)
            scale = np.sqrt(np.diag(gram))
            gram = gram / np.where(np.outer(scale, scale) > 0, np.outer(scale, scale), 1.0)
            assert np.abs(gram).max() <= 1 + tolerance
            assert np.linalg.eigvalsh(gram).min() >= -tolerance


@given(networks(), shapes, seeds, st.integers(-40, 40), st.integers(-40, 40))
@some
def test_homogeneity_is_exact_for_powers_of_two(
    network: Network, shape: tuple[int, int, int], seed: int, p1: int, p2: int
) -> None:
    x, z = normal(3, *shape, seed=seed), uniform(18, *shape, seed=seed)
    for dtype in ("float32", "float64"):
        values = wl.kernel(network, x, z, kind=BOTH, dtype=dtype)
        scaled = wl.kernel(
            network,
            np.ldexp(x, p1),
            np.ldexp(z, p2),
            kind=BOTH,
            dtype=dtype,
        )
        for a, b in zip(values, scaled, strict=True):
            np.testing.assert_array_equal(np.ldexp(a, p1 + p2), b)


@pytest.mark.parametrize(("a", "b"), [(1e-18, 1.0), (1e18, 1e-18), (1e-18, 1e-18), (1e18, 1e18)])
@pytest.mark.parametrize(
    "network",
    [wl.cntk_gap(4), wl.cntk_vanilla(4), wl.ntk_dense(3), Network([*C3, LocalAvgPool(1), Dense()])],
    ids=str,
)
@engines
def test_the_scale_of_inputs_costs_no_accuracy(
    a: float, b: float, network: Network, backend: Any, dtype: Any
) -> None:
    x, z, cancels = mixed_pairs(4, 5, 3)
    if a != b:  # an image and a multiple of it: that lambda is 1 is not known, and digits are lost
        z[-1] += x[0]
    expected = naive.kernels(network, x, z)
    values = wl.kernel(network, a * x, b * z, kind=BOTH, backend=backend, dtype=dtype)
    scaled = tuple(value.astype(np.float64) / a / b for value in values)
    check(network, scaled, expected, cancels, TOLERANCE[dtype])


@given(networks(biased=True), shapes, seeds)
@some
def test_flips_and_transposition_of_both_images(
    network: Network, shape: tuple[int, int, int], seed: int
) -> None:
    x, z = uniform(2, *shape, seed=seed), uniform(3, *shape, seed=seed + 1)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-5)):
        value = np.stack(wl.kernel(network, x, z, kind=BOTH, dtype=dtype))
        for turn in (
            lambda a: a[:, ::-1],
            lambda a: a[:, :, ::-1],
            lambda a: a[:, ::-1, ::-1],
            lambda a: a.swapaxes(1, 2),
            lambda a: a[..., ::-1],
            lambda a: -a if not any(getattr(y, "b_std", 0) for y in network.layers) else a,
        ):
            turned = wl.kernel(network, turn(x), turn(z), kind=BOTH, dtype=dtype)
            assert_close(np.stack(turned), value, rtol=tolerance)
    # One image alone: the kernel changes, unless it does not see where a column of pixels is.
    w = shape[1]
    wide = any(isinstance(y, Conv) and y.filter_size > 1 for y in network.layers)
    pools = [y.half_width for y in network.layers if isinstance(y, LocalAvgPool)]
    local = Flatten() in network.layers and all(half_width < w - 1 for half_width in pools)
    if w > 1 and (wide or local):
        before = np.stack(wl.kernel(network, x, z, kind=BOTH, dtype="float64"))
        turned = np.stack(wl.kernel(network, x[:, :, ::-1], z, kind=BOTH, dtype="float64"))
        assert np.abs(turned - before).max() > 1e-9 * np.abs(before).max()


@given(networks(biased=True), shapes, seeds)
@some
def test_local_pooling_goes_from_flatten_to_global_pooling(
    network: Network, shape: tuple[int, int, int], seed: int
) -> None:
    h, w, _ = shape
    x, z = uniform(2, *shape, seed=seed), uniform(3, *shape, seed=seed + 1)
    place = next(i for i, y in enumerate(network.layers) if not isinstance(y, Conv | ReLU))
    after = next(i for i, y in enumerate(network.layers) if isinstance(y, Dense))
    before, head = network.layers[:place], network.layers[after:]

    def value(readout: Layer, head: Any = head) -> Array:
        net = Network([*before, readout, *head], network.scaling)
        return np.stack(wl.kernel(net, x, z, kind=BOTH, dtype="float64"))

    assert_close(value(LocalAvgPool(0)), value(Flatten()), rtol=1e-13)
    # Windows that cover the image from everywhere: global pooling, times its divisors.
    c = max(h, w) + 1
    plain = [Dense(trainable=True)]
    factor = (h * w) ** 2 / (2 * c + 1) ** 4 * (h * w if network.scaling == "paper" else 1)
    local, pooled = value(LocalAvgPool(c), plain), value(GlobalAvgPool(), plain)
    assert_close(local, factor * pooled, rtol=1e-13)


@dataclass(frozen=True, slots=True)
class OneDistance(Tap):
    """Reads the slices of displacement (+-di, +-dj) alone."""

    distance: dict[int, int] = field(default_factory=dict, hash=False)  # of each extent

    def weights(self, extent: int) -> Array:
        d = np.abs(np.arange(1 - extent, extent))[:, None]
        return np.where(d == self.distance[extent], Tap.weights(self, extent), 0.0)


@engines
def test_global_pooling_is_the_sum_of_all_displacement_sums(backend: Any, dtype: Any) -> None:
    h, w = 4, 5
    x, z = uniform(3, h, w, 2), uniform(18, h, w, 2, seed=1)
    engine = get_backend(backend)
    program = compile_family([Network([*C3, Conv(5), ReLU(), *GAP_HEAD])], (h, w, 2), BOTH)
    (pooled,) = program.taps

    def sums(*taps: Tap) -> Array:
        changed = replace(program, taps=taps)
        left = engine.profile(changed, x, np.arange(3), dtype)
        right = engine.profile(changed, z, np.arange(3, 21), dtype)
        tile = Pairs(np.arange(3), np.arange(18))
        return engine.sums(changed, left, right, tile, np.zeros(1, np.int32))

    own = (pooled.node, pooled.pooling, True, True)
    single = [OneDistance(*own, {h: di, w: dj}) for di in range(h) for dj in range(w)]
    parts = sums(*single)
    assert_close(parts.sum(axis=0), sums(pooled)[0], rtol=TOLERANCE[dtype])
    # Two slices, four, or one (d = 0), each alone as within the one pass.
    for tap, part in zip(single, parts, strict=True):
        assert_close(sums(tap)[0], part, rtol=0.0)
        assert (part > 0).all()
    with pytest.raises(AssertionError):
        assert_close(parts[1:].sum(axis=0), sums(pooled)[0], rtol=TOLERANCE[dtype])


# ---------------------------------------------------------------- one pass, many kernels


@given(st.lists(networks(biased=True), min_size=1, max_size=5), shapes, seeds)
@some
def test_a_list_of_networks_is_each_of_them(
    nets: list[Network], shape: tuple[int, int, int], seed: int
) -> None:
    # Beginnings of the first one, with its own and another readout, share its pass.
    layers = nets[0].layers
    n_body = next(i for i, y in enumerate(layers) if not isinstance(y, Conv | ReLU))
    cuts = [i for i in range(n_body) if isinstance(layers[i], ReLU)]
    for cut in cuts:
        for readout in (GlobalAvgPool(), Flatten()):
            nets = [*nets, Network([*layers[: cut + 1], readout, Dense(1.5)], nets[0].scaling)]
    x, z = uniform(3, *shape, seed=seed), normal(4, *shape, seed=seed)
    for dtype in ("float32", "float64"):
        together = wl.kernel(nets, x, z, kind=BOTH, dtype=dtype)
        for kind, values in zip(BOTH, together, strict=True):
            assert values.shape == (len(nets), 3, 4)
            alone = wl.kernel(nets, x, z, kind=kind, dtype=dtype)
            np.testing.assert_array_equal(alone, values)
            for network, value in zip(nets, values, strict=True):
                apart = wl.kernel(network, x, z, kind=kind, dtype=dtype)
                np.testing.assert_array_equal(apart, value, err_msg=f"{kind} of {network!r}")


def test_table_1_in_one_pass() -> None:
    nets = [preset(depth) for preset in (wl.cntk_gap, wl.cntk_vanilla) for depth in (3, 4, 6, 11)]
    x = uniform(3, 5, 4, 3)
    for dtype in ("float32", "float64"):
        together = wl.kernel(nets, x, dtype=dtype)
        for network, values in zip(nets, together, strict=True):
            np.testing.assert_array_equal(wl.kernel(network, x, dtype=dtype), values)


def test_dense_and_convolutional_networks_in_one_list() -> None:
    nets = [wl.ntk_dense(2), wl.cntk_gap(3), DENSE["biases"]]
    x = normal(4, 3, 3, 2)
    together = wl.kernel(nets, x)
    for network, values in zip(nets, together, strict=True):
        np.testing.assert_array_equal(wl.kernel(network, x), values)


def test_shapes_and_types_of_results() -> None:
    net, x, z = wl.cntk_gap(2), normal(3, 2, 2, 1), normal(5, 2, 2, 1, seed=1)
    assert wl.kernel(net, x).shape == (3, 3)
    assert wl.kernel(net, x, z).shape == (3, 5)
    assert wl.kernel([net], x, z).shape == (1, 3, 5)
    assert wl.kernel([net, net], x, z).shape == (2, 3, 5)
    both = wl.kernel([net, net], x, z, kind=("ntk", "nngp"))
    assert isinstance(both, tuple)
    assert [a.shape for a in both] == [(2, 3, 5)] * 2
    (only,) = wl.kernel(net, x, z, kind=["nngp"])
    np.testing.assert_array_equal(only, wl.kernel(net, x, z, "nngp"))
    assert wl.kernel(net, x).dtype == np.float32
    assert wl.kernel(net, x, dtype="float64").dtype == np.float64
    for a, b in zip(both, reversed(wl.kernel(net, x, z, kind=("nngp", "ntk"))), strict=True):
        np.testing.assert_array_equal(a[0], b)


# ---------------------------------------------------------------- not one bit depends on ...

PARTS = [1, 15, 16, 17, 33]
BITWISE = [
    wl.cntk_gap(3),
    wl.cntk_vanilla(4),
    Network([Conv(5, b_std=0.2), ReLU(), LocalAvgPool(1), Dense(), ReLU(), Dense()]),
    wl.ntk_dense(3),
    DENSE["biases"],
]
bitwise = pytest.mark.parametrize("network", BITWISE, ids=str)


def cut(n: int, rng: np.random.Generator) -> Iterator[slice]:
    start = 0
    while start < n:
        stop = min(n, start + int(rng.choice(PARTS)))
        yield slice(start, stop)
        start = stop


@bitwise
@dtypes
def test_splits_change_no_bit(network: Network, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    x = uniform(83, 3, 4, 2)
    x[70] = x[5]
    whole = np.stack(wl.kernel(network, x, kind=BOTH, dtype=dtype))
    np.testing.assert_array_equal(wl.kernel(network, x, x, kind=BOTH, dtype=dtype), whole)
    np.testing.assert_array_equal(wl.kernel(network, x, x.copy(), kind=BOTH, dtype=dtype), whole)
    sizes: set[int] = set()
    for _ in range(4):
        for a in cut(len(x), rng):
            sizes.add(a.stop - a.start)
            own = wl.kernel(network, x[a], kind=BOTH, dtype=dtype)
            np.testing.assert_array_equal(own, whole[:, a, a])
            for b in cut(len(x), rng):
                part = wl.kernel(network, x[a], x[b], kind=BOTH, dtype=dtype)
                np.testing.assert_array_equal(part, whole[:, a, b])
    assert sizes.issuperset(PARTS)


@bitwise
@dtypes
def test_order_changes_no_bit(network: Network, dtype: Any) -> None:
    x, z = uniform(21, 3, 4, 2), normal(37, 3, 4, 2)
    rng = np.random.default_rng(5)
    whole, gram = wl.kernel(network, x, z, dtype=dtype), wl.kernel(network, z, dtype=dtype)
    for _ in range(3):
        p, q = rng.permutation(len(x)), rng.permutation(len(z))
        shuffled = wl.kernel(network, x[p], z[q], dtype=dtype)
        np.testing.assert_array_equal(shuffled, whole[np.ix_(p, q)])
        np.testing.assert_array_equal(wl.kernel(network, z[q], dtype=dtype), gram[np.ix_(q, q)])


@bitwise
@dtypes
def test_threads_change_no_bit(network: Network, dtype: Any) -> None:
    x, z = uniform(40, 3, 4, 2), normal(23, 3, 4, 2)
    for arguments in ((x,), (x, z)):
        one = wl.kernel(network, *arguments, kind=BOTH, dtype=dtype, threads=1)
        for threads in (2, 5, None):
            other = wl.kernel(network, *arguments, kind=BOTH, dtype=dtype, threads=threads)
            np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("isa", SUPPORTED)
@dtypes
def test_no_bit_on_each_instruction_set(
    isa: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    rng = np.random.default_rng(3)
    nets = [wl.cntk_gap(3), wl.cntk_vanilla(4), BITWISE[2]]
    x = uniform(41, 4, 3, 2)
    x[30] = x[5]
    whole = wl.kernel(nets, x, dtype=dtype)
    np.testing.assert_array_equal(whole, whole.swapaxes(1, 2))
    np.testing.assert_array_equal(wl.kernel(nets, x, x.copy(), dtype=dtype), whole)
    p = rng.permutation(len(x))
    np.testing.assert_array_equal(wl.kernel(nets, x, x[p], dtype=dtype), whole[:, :, p])
    for a in cut(len(x), rng):
        np.testing.assert_array_equal(wl.kernel(nets, x, x[a], dtype=dtype), whole[:, :, a])
        np.testing.assert_array_equal(wl.kernel(nets, x[a], dtype=dtype), whole[:, a, a])


def test_more_samples_than_a_block_of_the_engine() -> None:
    # 512 samples have their profiles held at a time; tiles across that border are rectangles.
    x = uniform(530, 2, 2, 2)
    for network in (wl.cntk_vanilla(2), wl.ntk_dense(1)):
        gram = wl.kernel(network, x, dtype="float64", threads=2)
        np.testing.assert_array_equal(gram, gram.T)
        picked = [0, 255, 256, 300, 511, 512, 529]
        small = wl.kernel(network, x[picked], dtype="float64")
        np.testing.assert_array_equal(small, gram[np.ix_(picked, picked)])


@settings(some, max_examples=10)
@given(d=st.sampled_from([1, 2, 3, 7, 17, 64, 100, 785]), n1=st.integers(1, 40), seed=seeds)
def test_dense_networks_whatever_the_length_of_a_vector(d: int, n1: int, seed: int) -> None:
    x, z = normal(n1, d, seed=seed), normal(19, d, seed=seed + 1)
    for network in (wl.ntk_dense(2), DENSE["biases"]):
        value = wl.kernel(network, x, z, dtype="float64")
        np.testing.assert_array_equal(wl.kernel(network, z, x, dtype="float64").T, value)
        part = wl.kernel(network, x[-1:], z[3:8], dtype="float64")
        np.testing.assert_array_equal(part, value[-1:, 3:8])
        gram = wl.kernel(network, x, dtype="float64")
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_array_equal(wl.kernel(network, x, x.copy(), dtype="float64"), gram)


def test_threads_of_the_matrix_product_change_no_bit() -> None:
    x = normal(20, 300)
    with threadpool_limits(1):
        one = wl.kernel(wl.ntk_dense(2), x, dtype="float64")
    with threadpool_limits(2):
        np.testing.assert_array_equal(wl.kernel(wl.ntk_dense(2), x, dtype="float64"), one)


# ---------------------------------------------------------------- choice of the instruction set


def test_the_variable_forces_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in SUPPORTED:
        monkeypatch.setenv(ISA_VARIABLE, isa)
        assert CpuBackend().isa == isa
    monkeypatch.setenv(ISA_VARIABLE, "")  # as if it were not set
    assert CpuBackend().isa == SUPPORTED[0]
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    with pytest.raises(ValueError, match=r"WIDELIMIT_ISA must name one of .*plain, got 'mmx'"):
        wl.kernel(wl.cntk_gap(2), normal(2, 2, 2, 1))
    monkeypatch.delenv(ISA_VARIABLE)
    assert CpuBackend().isa == SUPPORTED[0]
    assert ISA_VARIABLE not in os.environ


@pytest.mark.parametrize("isa", SUPPORTED)
def test_a_vector_holds_twice_as_many_single_numbers(isa: str) -> None:
    lanes = {"avx512": 16, "avx2": 8, "sse4": 4, "plain": 4}[isa]
    assert (CpuBackend(isa).lanes("float32"), CpuBackend(isa).lanes("float64")) == (
        lanes,
        lanes // 2,
    )


@dtypes
def test_a_profile_takes_the_memory_that_is_said(dtype: Any) -> None:
    x = uniform(200, 6, 5, 2)
    program = compile_family([wl.cntk_gap(8)], x.shape[1:], ("ntk",))
    backend = CpuBackend()
    said = len(x) * backend.profile_bytes(program, dtype)
    backend.profile(program, x[:1], np.arange(1), dtype)  # what is compiled once
    tracemalloc.start()
    held = backend.profile(program, x, np.arange(len(x)), dtype)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(held) == len(x)
    assert said <= taken < 1.2 * said  # and some numbers for each image


@pytest.mark.parametrize("isa", SUPPORTED)
@pytest.mark.parametrize("dark", [1e-9, 1e-12, 1e-15])
def test_pairs_that_share_dark_pixels_only(isa: str, dark: float) -> None:
    # Bright pixels meet black ones: all that is left is the product of two dark ones.
    rng = np.random.default_rng(0)
    x, z = np.zeros((2, 3, 5, 12, 3))
    x[:, :, 0], z[:, :, -1] = rng.uniform(size=(2, 3, 5, 3))
    for image in (x, z):
        image[:, :, 6] = dark * rng.uniform(size=(3, 5, 3))
    for network in (wl.cntk_vanilla(2), wl.cntk_vanilla(3), wl.cntk_gap(3)):
        for kind in ("ntk", "nngp"):
            single = compute(CpuBackend(isa), [network], x, z, kinds=[kind], dtype="float32")
            double = compute(CpuBackend(isa), [network], x, z, kinds=[kind], dtype="float64")
            np.testing.assert_allclose(single, double, rtol=1e-6)


def test_a_kind_alone_is_that_of_both() -> None:
    x = np.random.default_rng(3).uniform(size=(5, 4, 4, 1))
    x[3] = x[1]  # identical images: their slice d = 0 is known from one of them
    for net in (wl.cntk_gap(3), wl.cntk_vanilla(3)):
        both = wl.kernel(net, x, kind=["nngp", "ntk"])
        for kind, values in zip(("nngp", "ntk"), both, strict=True):
            np.testing.assert_allclose(wl.kernel(net, x, kind=kind), values, rtol=1e-6)
