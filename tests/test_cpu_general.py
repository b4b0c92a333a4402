"""General networks on the compiled engine: against the naive witness, to the last bit symmetric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import naive
import numpy as np
import pytest
from numpy.typing import NDArray
from trees import FEATURES, features, samples, tree

from widelimit.backends import cpu, lowered
from widelimit.backends.base import Dtype
from widelimit.backends.cpu import CpuBackend, instruction_sets
from widelimit.backends.lowered import lower
from widelimit.network import (
    GELU,
    Abs,
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
    LeakyReLU,
    LocalAvgPool,
    Network,
    Polynomial,
    ReLU,
    Sin,
    Sum,
)
from widelimit.program import compile_family
from widelimit.testing.compare import compute

KINDS: Any = ("nngp", "ntk")
TOLERANCE: dict[Dtype, float] = {"float64": 1e-11, "float32": 1e-5}
SHAPE = (7, 6, 2)  # ragged: no stride divides it
END = [GlobalAvgPool(), Dense()]
ACTIVATIONS: list[Layer] = [
    *(LeakyReLU(0.2), Abs(), Gaussian(), Gaussian(3.0), Erf()),
    *(GELU(), Sin(), Cos(), LayerNorm(), LayerNorm(0.5)),
    *(Polynomial((0.3, -0.8, 0.25, 0.1)), Polynomial((0.0, 1.0, 0.5))),
]
NETWORKS: Mapping[str, Sequence[Layer]] = {
    "pool 2/2": [Conv(3), ReLU(), AvgPool(2), Conv(3, 1.3, 0.2), ReLU(), *END],
    "pool 3/2": [Conv(3), ReLU(), AvgPool(3, 2), Conv(3), ReLU(), *END],
    "pool 3/2 same": [Conv(3), ReLU(), AvgPool(3, 2, "same"), Conv(3), ReLU(), *END],
    "pool 3/1 same": [Conv(3), ReLU(), AvgPool(3, 1, "same"), Conv(3), ReLU(), *END],
    "pool 4/1": [Conv(3), ReLU(), AvgPool(4, 1), Conv(3), ReLU(), *END],
    "pool 1x2": [Conv(3), ReLU(), AvgPool((1, 2)), Conv(3), ReLU(), *END],
    "pools": [Conv(3), ReLU(), AvgPool(2), AvgPool(2, 1), Conv(1), ReLU(), Flatten(), Dense()],
    "pool read out": [
        *(Conv(3, trainable=False), ReLU(), AvgPool(2), LocalAvgPool(1), Flatten(), Dense()),
    ],
    "strided": [Conv(3, stride=2), ReLU(), Conv(5, 1.2, 0.1, stride=2), ReLU(), Conv(1), *END],
    "strided 1x1": [Conv(3), ReLU(), Conv(1, stride=3, trainable=False), ReLU(), *END],
    "residual": [Conv(3), Sum([ReLU(), Conv(3), ReLU(), Conv(3, 1.1, 0.3)], []), ReLU(), *END],
    "residual across a pool": [
        *(
            Conv(3),
            Sum([AvgPool(2)], [ReLU(), Conv(2, stride=2, padding="valid"), ReLU(), Conv(3)]),
        ),
        *(ReLU(), *END),
    ],
    "residual, strided": [
        *(Conv(3), Sum([Conv(1, stride=2)], [ReLU(), Conv(3, stride=2), ReLU(), Conv(3)])),
        *(ReLU(), Conv(3), ReLU(), *END),
    ],
    "valid": [Conv(3, padding="valid"), ReLU(), Conv(2, padding="valid"), ReLU(), *END],
    "valid 5": [Conv(3), ReLU(), Conv(5, padding="valid"), ReLU(), Conv(1), *END],
    "rows and columns": [Conv((1, 3)), ReLU(), Conv((5, 1)), ReLU(), Conv((3, 5)), ReLU(), *END],
    "pools to two grids": [
        *(
            Conv(3),
            Sum([AvgPool(4, 1)], [AvgPool((2, 1), 1), ReLU(), Conv((3, 4), padding="valid")]),
        ),
        *(ReLU(), *END),
    ],
    "linear": [Conv(3), Conv(3), AvgPool(2), Conv(3), Conv(3), *END],
} | {
    repr(act): [Conv(3, 1.3, 0.2), act, Conv(5), act, AvgPool(2), Conv(3), act, *END]
    for act in ACTIVATIONS
}


def kernels(
    network: list[Network],
    x: NDArray[Any],
    z: NDArray[Any] | None,
    dtype: Dtype,
    kinds: Any = KINDS,
    isa: str | None = None,
    threads: int = 1,
) -> NDArray[Any]:
    return compute(CpuBackend(isa), network, x, z, kinds=kinds, dtype=dtype, threads=threads)


def check(network: Network, shape: tuple[int, ...], isa: str | None = None, seed: int = 0) -> None:
    x, z = samples(shape, 4, seed), samples(shape, 3, seed + 1)
    z[0] = x[1]  # known to both sides
    wanted = naive.kernels(network, x, z)
    for dtype, tolerance in TOLERANCE.items():
        for kinds in (KINDS, ("ntk",), ("nngp",)):
            for kind, value in zip(
                kinds, kernels([network], x, z, dtype, kinds, isa)[0], strict=True
            ):
                scale = getattr(wanted, f"{kind}_scale")
                error = np.abs(value - getattr(wanted, kind)) / np.where(scale > 0, scale, 1.0)
                assert error.max() < tolerance, (
                    f"{kind}, {dtype}, of {network!r}: {error.max():.1e}"
                )


@pytest.mark.parametrize(
    "isa", [name for name, supported in instruction_sets().items() if supported]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_agrees_with_the_naive_witness(name: str, isa: str) -> None:
    check(Network(NETWORKS[name]), SHAPE, isa)


def test_random_trees_agree_with_the_naive_witness() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        network, shape = tree(seed)
        check(network, shape, seed=seed)
        seen.update(features(network, shape))
    assert set(seen) == FEATURES
    assert min(seen.values()) >= 3, seen


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NETWORKS)
def test_values_do_not_depend_on_sides_tiles_or_threads(name: str, dtype: Dtype) -> None:
    network = [Network(NETWORKS[name])]
    x = samples(SHAPE, 19)
    gram = kernels(network, x, None, dtype, threads=2)
    np.testing.assert_array_equal(gram, gram.transpose(0, 1, 3, 2))
    z = x[:9]
    whole = kernels(network, x, z, dtype)
    np.testing.assert_array_equal(whole, gram[..., :9])
    np.testing.assert_array_equal(whole, kernels(network, z, x, dtype).transpose(0, 1, 3, 2))
    one = [
        kernels(network, x[i : i + 1], z[j : j + 1], dtype)[..., 0, 0] for i, j in ((3, 5), (0, 8))
    ]
    np.testing.assert_array_equal(one, [whole[..., 3, 5], whole[..., 0, 8]])


def test_units_of_images_do_not_matter_where_networks_are_homogeneous() -> None:
    network = [Network(NETWORKS["pool 3/2 same"])]
    x = samples(SHAPE, 5)
    for dtype in TOLERANCE:
        plain = kernels(network, x, None, dtype)
        small = np.asarray(kernels(network, x * 2.0**-40, None, dtype), np.float64)
        np.testing.assert_array_equal(small * 2.0**80, plain)
        assert np.isfinite(kernels(network, x * 1e15, x * 1e-15, dtype)).all()


def test_a_family_with_and_without_pools_is_one_pass() -> None:
    start: list[Layer] = [Conv(3), ReLU(), Conv(3), ReLU()]
    networks = [
        Network([*start, AvgPool(2), Conv(3), ReLU(), AvgPool(2), Conv(3), ReLU(), *END]),
        Network([*start, AvgPool(2), Conv(3), ReLU(), *END]),
        Network([*start, AvgPool(2), *END]),
        Network([*start, Flatten(), Dense()]),
        Network([*start, *END]),
    ]
    x = samples((9, 8, 1), 3)
    (program,) = [compile_family(networks, (9, 8, 1), KINDS)]
    assert [len(grid.slices) for grid in lower(program).stages] == [128, 25, 5]
    together = kernels(networks, x, None, "float64")
    for values, network in zip(together, networks, strict=True):
        (alone,) = kernels([network], x, None, "float64")
        np.testing.assert_allclose(values, alone, rtol=1e-13)


def test_pools_of_one_pass_may_lead_to_different_grids() -> None:
    start: list[Layer] = [Conv(3), ReLU(), Conv(3), ReLU()]
    networks = [
        Network([*start, pool, Conv(3), ReLU(), *END])
        for pool in (AvgPool(2), AvgPool(3, 1, "same"), AvgPool((1, 3)), AvgPool((4, 1)))
    ]
    shape = (9, 8, 1)
    (program,) = [compile_family(networks, shape, KINDS)]
    grids = [program.grids[node] for node in program.stages[1].levels]
    assert set(grids) == {(4, 4), (9, 8), (9, 2), (2, 8)}
    x = samples(shape, 3)
    together = kernels(networks, x, None, "float64")
    for values, network in zip(together, networks, strict=True):
        (alone,) = kernels([network], x, None, "float64")
        np.testing.assert_allclose(values, alone, rtol=1e-13)


@pytest.mark.parametrize(
    "name", ["pool 2/2", "pool 3/2 same", "pool 3/1 same", "pools", "pools to two grids", "strided"]
)
def test_strips_change_no_field(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(NETWORKS[name])
    x = samples(SHAPE, 19)
    whole = compile_family([network], SHAPE, KINDS)
    assert all(made.first.all() for made in whole.schedules)
    plain = {dtype: kernels([network], x, None, dtype) for dtype in TOLERANCE}
    for width in (1, 3):
        monkeypatch.setattr("widelimit.program.strip_width", lambda *_, width=width: width)
        # Programs are kept by their value, which has not changed: what they plan has.
        for kept in (cpu._compile, cpu._of_itself, lowered.lower):
            kept.cache_clear()
        strips = compile_family([network], SHAPE, KINDS)
        assert strips.schedules[0].strip.max() > 0 or width > 1
        assert strips.element_layers >= whole.element_layers
        assert strips.schedules[0].size <= whole.schedules[0].size
        check(network, SHAPE)
        for dtype, values in plain.items():
            made = kernels([network], x, None, dtype)
            np.testing.assert_array_equal(made, made.transpose(0, 1, 3, 2))
            # Where two pools follow, strips decide the order in which the second adds.
            if dtype == "float32" and len(whole.schedules) == 1:
                np.testing.assert_array_equal(made, values)
            np.testing.assert_allclose(made, values, rtol=1e-14 if dtype == "float64" else 1e-6)
    for kept in (cpu._compile, cpu._of_itself, lowered.lower):
        kept.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("layer", "w_std", "depth"), [(Gaussian(100.0), 1.0, 3), (Sin(), 20.0, 2), (Cos(), 20.0, 2)]
)
def test_no_kernel_is_larger_than_cauchy_and_schwarz_allow(
    layer: Layer, w_std: float, depth: int, dtype: Dtype
) -> None:
    """Rounding would make lambda larger than 1, and each layer more of it."""
    net = Network([*[Conv(1, w_std), layer] * depth, Flatten(), Dense()])
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 2))
    x /= np.sqrt((x**2).mean(axis=-1, keepdims=True))
    near = np.concatenate([x * (1 + 1e-6 * np.arange(16.0)[:, None, None, None]), -x])
    k = compute(CpuBackend(), [net], near, kinds=("nngp",), dtype=dtype)[0][0]
    cosines = k / np.sqrt(np.outer(k.diagonal(), k.diagonal()))
    # A Gaussian lets lambda exceed 1 by 8 eps, or its errors would be of one sign.
    most = 8 * layer.gamma * np.finfo(dtype).eps if isinstance(layer, Gaussian) else 0.0
    assert np.abs(cosines).max() <= 1 + most + (2e-6 if dtype == "float32" else 1e-14)


def test_errors_of_images_that_are_nearly_the_same_have_either_sign() -> None:
    """Cut off at lambda = 1, errors would be of one sign, and gamma times as large a layer on."""
    net = Network([*[Conv(3), Gaussian(10.0)] * 3, GlobalAvgPool(), Dense()])
    x = np.random.default_rng(0).standard_normal((16, 8, 8, 3))
    both = np.concatenate([x, x * 1.0001])
    single, double = (
        compute(CpuBackend(), [net], both, kinds=("nngp",), dtype=dtype)[0][0]
        for dtype in ("float32", "float64")
    )
    errors = (single - double).diagonal(16) / double.diagonal().max()
    assert np.abs(errors.mean()) <= 8e-6  # 1.5e-5 where it is cut off
