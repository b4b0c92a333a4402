"""General networks on the compiled engine: against the naive witness, to the last bit symmetric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trees import fits, samples, trees

from widelimit.backends.base import Dtype
from widelimit.backends.cpu import CpuBackend, instruction_sets
from widelimit.backends.lowered import lower, missing
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
from widelimit.program import compile_family, compile_networks
from widelimit.testing.compare import compute

KINDS: Any = ("nngp", "ntk")
TOLERANCE: dict[Dtype, float] = {"float64": 1e-11, "float32": 1e-5}
SHAPE = (7, 6, 2)  # ragged: no stride divides it
END = [GlobalAvgPool(), Dense()]
ACTIVATIONS: list[Layer] = [
    *(LeakyReLU(0.2), Abs(), Gaussian(), Gaussian(3.0), Erf()),
    *(GELU(), Sin(), Cos(), LayerNorm(), LayerNorm(0.5)),
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
    "linear": [Conv(3), Conv(3), AvgPool(2), Conv(3), Conv(3), *END],
} | {
    str(act): [Conv(3, 1.3, 0.2), act, Conv(5), act, AvgPool(2), Conv(3), act, *END]
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


@settings(max_examples=25, deadline=None, derandomize=True)
@given(trees(), st.tuples(st.integers(3, 6), st.integers(3, 6)), st.integers(0, 99))
def test_random_trees_agree_with_the_naive_witness(
    network: Network, grid: tuple[int, int], seed: int
) -> None:
    shape = (*grid, 2)
    assume(fits(network, shape))
    assume(not any(missing(program) for program, _ in compile_networks([network], shape, KINDS)))
    check(network, shape, seed=seed)


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


def test_what_the_engine_cannot_do_is_named() -> None:
    network = Network([Conv(3), Polynomial((0.0, 1.0, 0.5)), *END])
    program = compile_family([network], SHAPE, KINDS)
    assert missing(program) == missing(program, "cuda") == ["Polynomial"]
    with pytest.raises(ValueError, match=r"has no Polynomial, got .* use backend=\"reference\""):
        lower(program)
    pooled = compile_family([Network(NETWORKS["residual across a pool"])], SHAPE, KINDS)
    assert missing(pooled) == missing(pooled, "cuda") == []
