"""General networks, as trees: the reference backend against the naive witness."""

from __future__ import annotations

from collections import Counter
from typing import Any

import naive
import numpy as np
import pytest
from trees import FEATURES, features, samples, tree

import widelimit as wl
from widelimit.backends import get_backend
from widelimit.backends.base import Pairs
from widelimit.estimators.gaussian import with_std
from widelimit.network import (
    GELU,
    AvgPool,
    Conv,
    Dense,
    Erf,
    Flatten,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    Network,
    ReLU,
    Sum,
)
from widelimit.program import Pool, compile_family, compile_networks
from widelimit.testing.compare import compute
from widelimit.testing.exact import exact_kernel

KINDS: Any = ("nngp", "ntk")
TOLERANCE = 1e-12


def check(network: Network, x: np.ndarray, z: np.ndarray, kinds: Any = KINDS) -> None:
    wanted = naive.kernels(network, x, z)
    values = compute(get_backend("reference"), [network], x, z, kinds=kinds)[0]
    for kind, value in zip(kinds, values, strict=True):
        scale = getattr(wanted, f"{kind}_scale")
        error = np.abs(value - getattr(wanted, kind)) / np.where(scale > 0, scale, 1.0)
        assert error.max() < TOLERANCE, f"{kind} of {network!r}: {error.max():.1e}"


def test_random_trees_agree_with_the_naive_witness() -> None:
    seen: Counter[str] = Counter()
    for seed in range(21):  # more cost seconds each: pools in a row
        network, shape = tree(seed)
        x, z = samples(shape, 3, seed), samples(shape, 2, seed + 1)
        z[0] = x[1]  # known to both sides
        check(network, x, z)
        seen.update(features(network, shape))
    assert set(seen) == FEATURES


@pytest.mark.parametrize("seed", range(10))
def test_random_networks_on_series(seed: int) -> None:
    network, shape = tree(seed, series=True)
    x, z = samples(shape, 3, seed), samples(shape, 2, seed + 1)
    check(network, x[:, None], z[:, None])
    of_series, as_images = (
        wl.kernel(network, *both, backend="reference")
        for both in ((x, z), (x[:, None], z[:, None]))
    )
    assert np.array_equal(of_series, as_images)


@pytest.mark.parametrize("series", [False, True])
def test_the_exact_kernel_of_random_trees(series: bool) -> None:
    for seed in range(4):
        network, shape = tree(seed, series=series)
        x = samples(shape, 3, seed)  # x[2] is x[0]
        images = x[:, None] if series else x
        wanted = naive.kernels(network, images[:2], images[1:])
        for i, j in ((0, 0), (0, 1)):
            exact = exact_kernel(network, x[i], x[j + 1], digits=30)
            for kind, value in zip(KINDS, exact, strict=True):
                scale = getattr(wanted, f"{kind}_scale")[i, j]
                error = abs(getattr(wanted, kind)[i, j] - float(value))
                assert error <= TOLERANCE * scale, f"{kind} of {network!r}: {error / scale:.1e}"


def test_the_exact_kernel_takes_two_images_of_one_shape() -> None:
    network, x = wl.cntk_gap(3), samples((4, 4, 1), 2)
    with pytest.raises(ValueError, match="x and z must have one shape"):
        exact_kernel(network, x[0], x[1, :3])
    with pytest.raises(ValueError, match=r"input_shape of .* must be"):
        exact_kernel(network, *x.reshape(2, -1))


@pytest.mark.parametrize("head", [[ReLU()], [LayerNorm(), GELU()], [Sum((), [Erf(), Dense()])]])
@pytest.mark.parametrize("body", [[Conv(3)], [Conv(3), Sum((), [ReLU(), Conv(3, 1.0, 0.2)])]])
def test_an_activation_may_follow_the_mean_of_gaussian_pixels(
    body: list[Layer], head: list[Layer]
) -> None:
    network, x = Network([*body, GlobalAvgPool(), *head, Dense()]), samples((4, 3, 2), 3)
    check(network, x, x)
    exact = exact_kernel(network, x[0], x[1], digits=30)
    values = compute(get_backend("cpu"), [network], x)[0]
    assert values[:, 0, 1] == pytest.approx([float(value) for value in exact], rel=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pixels_that_cancel_in_the_mean_are_refused(dtype: Any) -> None:
    network = Network([Conv(1), GlobalAvgPool(), Dense(), ReLU(), Dense()])
    x = samples((4, 4, 2), 20)
    x[1:] -= x[1:].mean((1, 2), keepdims=True)
    with pytest.raises(OverflowError, match=r"cancel in the readout.* for sample [1-9]\d*: put an"):
        wl.kernel(network, x, dtype=dtype)


CONV: list[Layer] = [Conv(3), ReLU()]
PRESETS = [
    (wl.myrtle(5), (9, 8, 2)),
    (wl.myrtle(7, wl.Gaussian()), (8, 8, 1)),
    (wl.resnet(8), (7, 6, 2)),
    (wl.wide_resnet(10, Erf()), (5, 6, 1)),
    (wl.cnn_1d(3, 3), (1, 9, 2)),
]


@pytest.mark.parametrize(("network", "shape"), PRESETS, ids=str)
def test_presets_agree_with_the_naive_witness(network: Network, shape: tuple[int, ...]) -> None:
    check(network, samples(shape, 2), samples(shape, 2, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kernel_alone(kind: Any) -> None:
    body: list[Layer] = [Sum((), [GELU(), Conv(3, trainable=False)]), AvgPool(2), Erf(), Conv(3)]
    network = Network([Conv(3), *body, Flatten(), Dense(), LayerNorm(), Dense(1.0, 0.2)])
    check(network, samples((6, 5, 2), 3), samples((6, 5, 2), 2, 1), (kind,))


def test_a_family_of_myrtles_shares_its_first_convolutions() -> None:
    networks = [wl.myrtle(10), wl.myrtle(7), wl.myrtle(5)]
    shape = (6, 5, 1)
    program = compile_family(networks, shape, KINDS)
    alone = [compile_family([net], shape, KINDS) for net in networks]
    # Two convolutions of all three; the pool of 7 and 5, and the convolution after it.
    assert len(program.nodes) == sum(len(p.nodes) for p in alone) - 2 - 4
    pools = [[isinstance(program.nodes[n - 1], Pool) for n in s.levels] for s in program.stages]
    assert [sum(of_stage) for of_stage in pools] == [0, 2, 3]
    x = samples(shape, 2)
    backend, pairs = get_backend("reference"), Pairs(np.arange(2), np.arange(2))
    cancel = np.zeros(1, np.int32)

    def sums(program: Any) -> Any:
        profile = backend.profile(program, x, np.array([0, 1]), "float64")
        return backend.sums(program, profile, profile, pairs, cancel)

    together = sums(program)
    for number, one in enumerate(alone):
        tap = program.readouts[number].tap
        np.testing.assert_allclose(together[tap], sums(one)[0], rtol=1e-13)


def test_networks_with_pools_share_a_pass_if_that_saves_a_quarter() -> None:
    networks = [wl.myrtle(5), wl.myrtle(10), wl.myrtle(7)]
    shape = (16, 16, 1)
    ((program, positions),) = compile_networks(networks, shape, KINDS)
    assert positions == (1, 2, 0)  # most nodes first
    assert program == compile_family([networks[i] for i in positions], shape, KINDS)
    # 3 layers of 16 x 16 for the 7 of one after the other.
    alone = sum(compile_family([net], shape, KINDS).element_layers for net in networks)
    assert program.element_layers < 0.5 * alone

    def positions_of(*networks: Network) -> list[tuple[int, ...]]:
        return [p for _, p in compile_networks(networks, shape, KINDS)]

    stem: list[Layer] = [Conv(3), ReLU()]
    head: list[Layer] = [GlobalAvgPool(), Dense()]
    pooled = Network([*stem, AvgPool(2), Conv(3), ReLU(), *head])
    # A card computes networks without branches at full speed, one after the other.
    assert positions_of(wl.cntk_gap(3), Network([*stem, Conv(5), ReLU(), *head])) == [(0,), (1,)]
    assert positions_of(wl.myrtle(5), wl.cntk_gap(3)) == [(0,), (1,)]
    # One layer of nine is not worth it: fields of both would be in memory at once.
    long = Network([*stem, *[Conv(5), ReLU()] * 8, AvgPool(2), *stem, *head])
    assert positions_of(long, Network([*stem, *[Conv(3), ReLU()] * 8, AvgPool(2), *head])) == [
        (0,),
        (1,),
    ]
    assert positions_of(pooled, Network([*stem, AvgPool(2), Conv(5), ReLU(), *head])) == [(0, 1)]


@pytest.mark.parametrize(
    "pool",
    [AvgPool(2), AvgPool(3, 2), AvgPool(3, 2, "same"), AvgPool(3, 1, "same"), Conv(3, stride=2)],
    ids=str,
)
def test_arguments_may_be_exchanged(pool: Layer) -> None:
    network = Network([*CONV, pool, *CONV, GlobalAvgPool(), Dense()])
    x, z = samples((4, 5, 2), 2), samples((4, 5, 2), 3, 1)
    forth = compute(get_backend("reference"), [network], x, z)
    back = compute(get_backend("reference"), [network], z, x)
    np.testing.assert_array_equal(forth, back.swapaxes(-1, -2))


def test_equal_layers_in_two_branches_are_one_node() -> None:
    # Their weights are independent, their covariances the same.
    shared: list[Layer] = [ReLU(), Conv(1)]
    network = Network([Conv(3), Sum([*shared, Erf(), Conv(3)], shared), Flatten(), Dense()])
    check(network, samples((4, 4, 1), 2), samples((4, 4, 1), 2, 1))


def test_a_series_is_an_image_of_one_row() -> None:
    x = samples((9, 2), 3)
    values = wl.kernel("cnn-1d-3", x, dtype="float64")
    image = wl.kernel(wl.cnn_1d(3), x[:, None], dtype="float64", backend="reference")
    np.testing.assert_allclose(values, image, rtol=1e-12)


def test_heads_of_every_kind_run_on_the_compiled_engine() -> None:
    head: list[Layer] = [Dense(1.1, 0.2), Erf(), Sum([Dense()], [Dense(0.5, trainable=False)])]
    network = Network([*CONV, Flatten(), *head, LayerNorm(), Dense(), GELU(), Dense()])
    x = samples((4, 5, 2), 4)
    values = wl.kernel(network, x, kind=KINDS, dtype="float64", backend="cpu")
    wanted = naive.kernels(network, x, x)
    for kind, value in zip(KINDS, values, strict=True):
        np.testing.assert_allclose(value, getattr(wanted, kind), rtol=1e-11)


def test_dense_networks_with_sums_and_every_activation() -> None:
    body: list[Layer] = [Sum((), [Erf(), Dense()]), GELU(), Dense(), LayerNorm(), wl.Sin(), Dense()]
    network = Network([Dense(), *body])
    assert network.is_dense
    x = samples((7,), 4)
    values = wl.kernel(network, x, kind=KINDS, dtype="float64")
    wanted = naive.kernels(network, x, x)
    for kind, value in zip(KINDS, values, strict=True):
        np.testing.assert_allclose(value, getattr(wanted, kind), rtol=1e-11)


def test_standard_deviations_reach_branches() -> None:
    network = Network([Conv(3), Sum((), [ReLU(), Conv(3)]), GlobalAvgPool(), Dense()])
    changed = with_std(network, 0.5, 0.25)
    assert changed == Network(
        [
            Conv(3, 0.5, 0.25),
            Sum((), [ReLU(), Conv(3, 0.5, 0.25)]),
            GlobalAvgPool(),
            Dense(0.5, 0.25),
        ]
    )
