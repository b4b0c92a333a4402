"""Programs: families, taps and their weights, cost, and the text that explains them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widelimit.architectures import cntk_gap, cntk_vanilla, ntk_dense
from widelimit.backends.base import Pairs
from widelimit.backends.lowered import is_chain, lower
from widelimit.backends.reference import ReferenceBackend
from widelimit.matrices import kernel
from widelimit.network import (
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    LocalAvgPool,
    Network,
    ReLU,
    Sum,
)
from widelimit.program import Program, Readout, Tap, compile_family, compile_networks
from widelimit.testing import assert_close

BOTH: Any = ("nngp", "ntk")
SHAPE = (4, 5, 3)
C3: list[Layer] = [Conv(3), ReLU()]
some = settings(max_examples=60, deadline=None, derandomize=True)


def families(networks: list[Network], kinds: Any = BOTH) -> list[tuple[int, ...]]:
    return [positions for _, positions in compile_networks(networks, SHAPE, kinds)]


# ---------------------------------------------------------------- families


def test_depths_and_readouts_of_one_stem_are_one_family() -> None:
    nets = [cntk_gap(3), cntk_gap(6), cntk_gap(2), cntk_gap(4)]
    ((program, positions),) = compile_networks(nets, SHAPE, BOTH)
    assert positions == (1, 3, 0, 2)  # deepest first
    assert program.networks == tuple(nets[i] for i in positions)
    assert [tap.node for tap in program.taps] == [5, 3, 2, 1]
    assert [readout.tap for readout in program.readouts] == [0, 1, 2, 3]
    assert len(program.nodes) == 5


def test_what_begins_otherwise_is_another_family() -> None:
    stem = [*C3, *C3]
    base = Network([*stem, GlobalAvgPool(), Dense()])
    others = [
        Network([Conv(5), ReLU(), *C3, GlobalAvgPool(), Dense()]),
        Network([Conv(3, w_std=1.0), ReLU(), *C3, GlobalAvgPool(), Dense()]),
        Network([Conv(3, b_std=0.1), ReLU(), *C3, GlobalAvgPool(), Dense()]),
        Network([Conv(3), *C3, GlobalAvgPool(), Dense()]),
        Network([*stem, GlobalAvgPool(), Dense()], "paper"),
        Network([Conv(3, trainable=False), ReLU(), *C3, GlobalAvgPool(), Dense()]),
    ]
    assert len(families([base, *others])) == 1 + len(others)
    # What is trained does not matter to the NNGP kernel.
    assert len(families([base, *others], ["nngp"])) == len(others)


def test_a_prefix_must_end_where_the_activation_ends() -> None:
    linear = Network([Conv(3), GlobalAvgPool(), Dense()])
    assert len(families([Network([*C3, GlobalAvgPool(), Dense()]), linear])) == 2


def test_a_network_joins_the_first_family_that_it_begins() -> None:
    a = Network([*C3, Conv(5), ReLU(), Flatten(), Dense()])
    b = Network([*C3, Conv(1), ReLU(), Flatten(), Dense()])
    short = Network([*C3, GlobalAvgPool(), Dense()])
    none = Network([GlobalAvgPool(), Dense()])
    assert families([short, a, b, none]) == [(1, 0, 3), (2,)]


def test_dense_networks_are_not_mixed_with_images() -> None:
    assert families([cntk_gap(2), ntk_dense(2), ntk_dense(5)]) == [(0,), (1, 2)]
    no_conv = Network([GlobalAvgPool(), Dense()], "paper")
    assert len(families([no_conv, ntk_dense(2)])) == 2


def test_equal_readouts_share_a_tap() -> None:
    nets = [
        Network([*C3, LocalAvgPool(0), Dense(trainable=False)]),
        Network([*C3, Flatten(), Dense(2.0, trainable=False)]),
        Network([*C3, LocalAvgPool(1), Dense()]),
        Network([*C3, LocalAvgPool(1), Dense(), ReLU(), Dense()]),
    ]
    ((program, _),) = compile_networks(nets, SHAPE, ["ntk"])
    flat, local = Tap(1, Flatten(), False, True), Tap(1, LocalAvgPool(1), True, True)
    assert program.taps == (flat, local)
    assert [readout.tap for readout in program.readouts] == [0, 0, 1, 1]
    assert [readout.needs_variance for readout in program.readouts] == [False, False, False, True]


@pytest.mark.parametrize(
    ("head", "kinds", "wanted"),
    [
        ([Dense(trainable=False)], ["ntk"], (False, True)),
        ([Dense(trainable=False)], ["nngp"], (True, False)),
        ([Dense(trainable=False)], ["ntk", "nngp"], (True, True)),
        ([Dense()], ["ntk"], (True, True)),
        ([Dense(trainable=False), ReLU(), Dense(trainable=False)], ["ntk"], (True, True)),
    ],
)
def test_only_what_is_read_is_summed(head: list[Layer], kinds: Any, wanted: Any) -> None:
    for order in (False, True):  # a second network of the family adds its wishes
        nets = [Network([*C3, GlobalAvgPool(), *head])]
        if order:
            nets.insert(0, Network([*C3, GlobalAvgPool(), Dense(3.0, trainable=False)]))
        ((program, _),) = compile_networks(nets, SHAPE, kinds)
        (tap,) = program.taps
        assert (tap.want_sigma, tap.want_theta) == wanted


def test_steps_carry_the_general_form() -> None:
    layers = [Conv(5, 3.0, 0.5, trainable=False), Conv(1), ReLU(), Conv(3), *C3, GlobalAvgPool()]
    program = compile_family([Network([*layers, Dense()])], SHAPE, BOTH)
    found = [
        (s.filter_size, s.weight_variance, s.bias_variance, s.trainable, s.activation, s.signed)
        for s in program.nodes
    ]
    two = (2**0.5) ** 2
    assert found == [
        (5, 9.0, 0.25, False, None, True),
        (1, two, 0.0, True, ReLU(), True),
        (3, two, 0.0, True, None, False),  # after the first activation nothing is negative
        (3, two, 0.0, True, ReLU(), False),
    ]
    nngp = compile_family([Network([*layers, Dense()])], SHAPE, ["nngp"])
    assert not any(node.trainable for node in nngp.nodes)


@pytest.mark.parametrize(("scaling", "scale"), [("fan_in", 1 / 3), ("paper", 1.0)])
def test_scales_of_input_and_readout(scaling: Any, scale: float) -> None:
    pixels = 20
    flat = 1 / pixels if scaling == "fan_in" else 1.0
    for readout, expected in (
        (Flatten(), flat),
        (GlobalAvgPool(), 1 / pixels**2),
        (LocalAvgPool(2), flat / 5**4),
    ):
        program = compile_family([Network([*C3, readout, Dense()], scaling)], SHAPE, BOTH)
        assert program.input_scale == scale
        assert program.readouts[0].scale == pytest.approx(expected, rel=1e-15)
    dense = compile_family([Network([Dense()], scaling)], SHAPE, BOTH)
    assert dense.is_dense
    assert dense.shape == (60,)
    assert dense.input_scale == (1 / 60 if scaling == "fan_in" else 1.0)


def test_compile_family_refuses_strangers() -> None:
    with pytest.raises(ValueError, match=r"Conv\(5\) .* shares no layer with Conv\(3\) .*family"):
        compile_family([cntk_gap(3), cntk_gap(2, 5)], SHAPE, BOTH)


def test_networks_that_share_a_branch_are_one_family() -> None:
    end = [ReLU(), GlobalAvgPool(), Dense()]
    branches = [Conv(3), ReLU(), Conv(3)], [Conv(5), ReLU(), Conv(3)]
    both, one = Network([Sum(*branches), *end]), Network([Conv(5), *end])
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 2))
    for networks in ([both, one], [one, both]):
        assert len(compile_networks(networks, x.shape[1:], BOTH)) == 1
        together = kernel(networks, x, dtype="float64")
        for values, network in zip(together, networks, strict=True):
            assert_close(values, kernel(network, x, dtype="float64"), rtol=1e-12)


def test_networks_must_fit_the_input() -> None:
    with pytest.raises(ValueError, match=r"must be \(h, w, c\), got \(7,\)"):
        compile_networks([ntk_dense(2), cntk_gap(2)], (7,), BOTH)


@pytest.mark.parametrize(
    ("network", "hw", "allowed"),
    [
        (cntk_vanilla(3), (4096, 1), True),
        (cntk_vanilla(3), (1, 4097), False),
        (cntk_vanilla(3), (100_000, 100_000), False),
        (cntk_gap(3), (1024, 1025), False),
        (cntk_gap(3), (4096, 16), True),
        (ntk_dense(3), (100_000, 100_000), True),
    ],
)
def test_images_are_not_too_large(network: Network, hw: tuple[int, int], allowed: bool) -> None:
    if allowed:
        compile_networks([network], (*hw, 3), ("ntk",))
        return
    with pytest.raises(
        ValueError, match=r"images must have at most 4,096 pixels a side, and 1,048"
    ):
        compile_networks([network], (*hw, 3), ("ntk",))


def test_programs_are_values() -> None:
    program = compile_family([cntk_gap(3)], SHAPE, BOTH)
    assert program == compile_family([cntk_gap(3)], list(SHAPE), list(BOTH))
    assert hash(program) == hash(compile_family([cntk_gap(3)], SHAPE, BOTH))
    assert program != compile_family([cntk_gap(3)], (5, 4, 3), BOTH)


def test_equal_layers_are_one_node_also_where_networks_branch() -> None:
    a = Network([*C3, Conv(5), ReLU(), *C3, GlobalAvgPool(), Dense()])
    b = Network([*C3, *C3, *C3, Flatten(), Dense()])
    program = compile_family([a, b], SHAPE, BOTH)
    assert [(node.source, node.filter_size) for node in program.nodes] == [
        (0, 3),
        (1, 5),
        (2, 3),
        (1, 3),
        (4, 3),
    ]
    assert [tap.node for tap in program.taps] == [3, 5]
    assert set(program.stages[0].variants) == {(1, 2, 3, 4, 5), (1, 2, 3)}
    assert program.element_layers == 3 * 20**2 + 2 * 20
    assert "4  Conv(3) ReLU  yes      no    own field, of step 1" in program.explain()
    assert len(families([a, b])) == 2  # a card computes chains at full speed
    assert set(lower(program).stages[0].variants) == {(0, 1, 2, 3, 4, 5), (0, 1, 2, 3)}
    assert not is_chain(program)


@pytest.mark.parametrize("kinds", [("ntk",), ("nngp",), BOTH])
def test_a_family_that_branches_is_its_networks(kinds: Any) -> None:
    nets = [
        Network([*C3, Conv(5), *C3, GlobalAvgPool(), Dense(), ReLU(), Dense()]),
        Network([*C3, *C3, Conv(1, trainable=False), LocalAvgPool(1), Dense()]),
        Network([*C3, *C3, Flatten(), Dense()]),
    ]
    x = np.random.default_rng(0).standard_normal((4, *SHAPE))
    backend = ReferenceBackend()

    def sums(networks: list[Network]) -> dict[Any, Any]:
        program = compile_family(networks, SHAPE, kinds)
        profile = backend.profile(program, x, np.arange(4), "float64")
        pairs = Pairs(np.arange(4), np.arange(4))
        values = backend.sums(program, profile, profile, pairs, np.zeros(1, np.int32))
        return {
            net: values[readout.tap]
            for net, readout in zip(networks, program.readouts, strict=True)
        }

    together = sums(nets)
    for net in nets:
        np.testing.assert_allclose(together[net], sums([net])[net], rtol=1e-13, atol=1e-15)


# ---------------------------------------------------------------- weights of a readout

POOLINGS = [Flatten(), GlobalAvgPool(), *map(LocalAvgPool, (0, 1, 2, 3, 7))]


def count_windows(pooling: Layer, i: int, i_prime: int, extent: int) -> int:
    """How many terms of the readout, along one axis, hold pixel i of x and pixel i' of z."""
    match pooling:
        case GlobalAvgPool():
            return 1
        case Flatten():
            return int(i == i_prime)
        case LocalAvgPool(c):
            windows = [set(range(centre - c, centre + c + 1)) for centre in range(extent)]
            return sum({i, i_prime} <= window for window in windows)
        case _:
            raise NotImplementedError(pooling)


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("extent", [1, 2, 3, 5, 8])
def test_weights_count_windows(pooling: Any, extent: int) -> None:
    weights = Tap(1, pooling, True, True).weights(extent)
    assert weights.shape == (2 * extent - 1, extent)
    expected = np.zeros_like(weights)
    for i, i_prime in product(range(extent), repeat=2):
        d = i_prime - i
        # entry of the slice: the smaller of the two pixels
        expected[d + extent - 1, min(i, i_prime)] = count_windows(pooling, i, i_prime, extent)
    np.testing.assert_array_equal(weights, expected)


# ---------------------------------------------------------------- cost


@st.composite
def nets(draw: st.DrawFn) -> Network:
    n = draw(st.integers(0, 3))
    pooling = draw(st.sampled_from(POOLINGS))
    return Network([*C3 * n, pooling, Dense()])


def slices_of(program: Program) -> dict[tuple[int, int], int]:
    """Displacement of every slice, negative ones too -> number of nodes that it goes through."""
    if program.is_dense:
        return {}
    (stage,) = program.stages
    found = {(di, dj): len(stage.variants[int(v)]) for di, dj, v in stage.slices.tolist()}
    assert all(d >= (0, 0) for d in found)
    assert list(found) == sorted(found)
    return found | {(-di, -dj): depth for (di, dj), depth in found.items()}


@given(st.lists(nets(), min_size=1, max_size=4), st.tuples(st.integers(1, 5), st.integers(1, 6)))
@some
def test_displacements_and_cost_by_brute_force(networks: list[Network], hw: Any) -> None:
    h, w = hw
    for program, positions in compile_networks(networks, (h, w, 2), BOTH):
        if program.is_dense:
            continue
        # Walk over all pairs of pixels and ask every network whether it reads that pair.
        deepest: dict[tuple[int, int], int] = {}
        for i, j, i_prime, j_prime in product(range(h), range(w), range(h), range(w)):
            d = i_prime - i, j_prime - j
            for network in (networks[k] for k in positions):
                pooling = next(y for y in network.layers if not isinstance(y, Conv | ReLU))
                rows = count_windows(pooling, i, i_prime, h)
                if rows * count_windows(pooling, j, j_prime, w) > 0:
                    deepest[d] = max(deepest.get(d, 0), network.n_conv)
        assert slices_of(program) == deepest
        pairs = product(range(h), range(w), range(h), range(w))
        cost = sum(deepest.get((k - i, m - j), 0) for i, j, k, m in pairs)
        assert program.element_layers == cost


@pytest.mark.parametrize(
    ("network", "slices", "element_layers"),
    [
        (cntk_vanilla(11), 1, 10 * 1024),
        (cntk_gap(11), 63 * 63, 10 * 1024**2),
        (Network([*C3, LocalAvgPool(4), Dense()]), 17 * 17, None),
        (ntk_dense(3), 0, 0),
    ],
    ids=["V", "GAP", "LAP", "dense"],
)
def test_cost_at_32_x_32(network: Network, slices: int, element_layers: int | None) -> None:
    program = compile_family([network], (32, 32, 3), BOTH)
    assert len(slices_of(program)) == slices
    if element_layers is not None:
        assert program.element_layers == element_layers
    else:  # zero for |di| or |dj| > 2c (docs/mathematics.md, "Readouts")
        assert max(max(map(abs, d)) for d in slices_of(program)) == 8


def test_a_family_costs_what_its_deepest_network_costs() -> None:
    depths = [3, 4, 6, 11, 21]
    ((program, _),) = compile_networks([cntk_gap(d) for d in depths], (8, 8, 3), BOTH)
    assert program.element_layers == 20 * 64**2
    ((mixed, _),) = compile_networks(
        [Network([*C3, GlobalAvgPool(), Dense()]), Network([*C3 * 3, Flatten(), Dense()])],
        (8, 8, 3),
        BOTH,
    )
    assert mixed.element_layers == 64**2 + 2 * 64  # only d = 0 goes on


# ---------------------------------------------------------------- readouts


def readout(*head: Layer) -> Readout:
    return Readout(0, 1.0, head)


def test_a_head_with_an_activation_needs_variances() -> None:
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match="an activation in the head needs variance1 and variance2"):
        readout(Dense(), ReLU(), Dense()).apply(one, one)
    with pytest.raises(TypeError, match=r"the head of a network cannot hold Conv\(3\)"):
        readout(Conv(3)).apply(one, one)


def test_a_head_by_hand() -> None:
    one = np.ones((1, 1))
    # lambda = 1: kappa0 = kappa1 = 1. K: 1 -> 4 + 1 -> 5/2 -> 5/2; Theta: 1 -> 4 (1 + 1) + 1 = 9
    # -> 9/2 -> 9/2 + 5/2
    head = readout(Dense(2.0, 1.0), ReLU(), Dense())
    nngp, ntk = head.apply(one, one, one, one, np.array([[True]]))
    assert (nngp.item(), ntk.item()) == pytest.approx((2.5, 7.0), rel=1e-15)
    # not trained, with a bias: Theta only shrinks
    nngp, ntk = readout(Dense(0.5, 3.0, trainable=False)).apply(one, 8 * one)
    assert (nngp.item(), ntk.item()) == (9.25, 2.0)
    # the scale of the readout comes first
    nngp, ntk = replace(readout(Dense()), scale=0.25).apply(4 * one, 8 * one)
    assert (nngp.item(), ntk.item()) == (1.0, 3.0)


def test_identical_inputs_have_lambda_one_whatever_the_rounding() -> None:
    variance = np.array([[0.3]])
    sigma = variance * (1 - 1e-15)
    head = readout(Dense(), ReLU(), Dense(trainable=False))
    known = head.apply(sigma, variance, variance, variance, np.array([[True]]))
    unknown = head.apply(sigma, variance, variance, variance, np.array([[False]]))
    assert known[1].item() == pytest.approx(0.3, rel=1e-15)
    assert abs(unknown[1].item() - 0.3) > 1e-10


# ---------------------------------------------------------------- explain


def explained(*networks: Network, shape: Any = (8, 8, 1), kinds: Any = ("ntk",)) -> str:
    program: Program = compile_family(networks, shape, kinds)
    return program.explain()


def test_explain_a_family() -> None:
    untrained = Conv(1, trainable=False)
    layers = [Conv(3, trainable=False), ReLU(), Conv(5, b_std=0.1), ReLU(), untrained, Conv(1)]
    text = explained(
        Network([*layers, GlobalAvgPool(), Dense(trainable=False)]),
        Network([*layers[:4], Flatten(), Dense()]),
        kinds=BOTH,
    )
    assert [line.split() for line in text.splitlines()[3:8]] == [
        ["step", "layer", "trained", "bias", "tangent", "kernel", "on", "entry"],
        ["1", "Conv(3)", "ReLU", "no", "no", "zero"],
        ["2", "Conv(5)", "ReLU", "yes", "yes", "zero"],
        ["3", "Conv(1)", "no", "no", "own", "field"],
        ["4", "Conv(1)", "yes", "no", "own", "field"],
    ]
    assert text.splitlines()[:3] == [
        "input 8x8x1, kernels nngp, ntk",
        "  Conv(3) ReLU Conv(5) ReLU Conv(1) Conv(1) GlobalAvgPool Dense",
        "  Conv(3) ReLU Conv(5) ReLU Flatten Dense",
    ]
    assert "read out K and Theta after step 4: GlobalAvgPool" in text
    assert "read out K and Theta after step 2: Flatten" in text
    assert "slices: 225 of 225; element-layers a pair: 16,384 (100.00% of all)" in text
    assert "profile of an image: 1.0 KiB in float32, image 0.2 KiB" in text


def test_explain_says_what_is_saved() -> None:
    text = explained(cntk_vanilla(3))
    assert "read out K and Theta after step 2: Flatten" in text
    assert "slices: 1 of 77; element-layers a pair: 48 (4.17% of all)" in explained(
        cntk_vanilla(3), shape=(4, 6, 1)
    )
    assert "slices: 1 of 225; element-layers a pair: 128 (1.56% of all)" in text
    assert "read out Theta after step 2: GlobalAvgPool" in explained(cntk_gap(3))
    assert "read out K after step 2: GlobalAvgPool" in explained(cntk_gap(3), kinds=("nngp",))


def test_explain_a_dense_network() -> None:
    assert explained(ntk_dense(1), shape=(4,)) == (
        "input 4, kernels ntk\n"
        "  Dense ReLU Dense\n"
        "one matrix product in float64, then an element-wise recursion"
    )
