"""The paper's networks: `Network` fields read by the General form give the paper's recursion.

Both sides are evaluated here with 4-D float64 arrays indexed [i, j, i', j'], without any code of a
backend. The paper's side follows its recursion (docs/mathematics.md), with its own placement of
``c/q^2``; the general side knows nothing but the fields of the layers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from widelimit.architectures import cntk_gap, cntk_vanilla, ntk_dense
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

Array: TypeAlias = NDArray[np.float64]

# ---------------------------------------------------------------- shared by both sides


def inner(x: Array, z: Array) -> Array:
    """sum_c x(p) z(p')."""
    return np.einsum("ijc,klc->ijkl", x, z)


def box(m: Array, q: int) -> Array:
    """Sum over |a| <= r of m(p+a, p'+a), zero outside."""
    r = (q - 1) // 2
    h, w = m.shape[:2]
    padded = np.pad(m, r)
    total = np.zeros_like(m)
    for a in range(q):
        for b in range(q):
            total += padded[a : a + h, b : b + w, a : a + h, b : b + w]
    return total


def diagonal(m: Array) -> Array:
    """m(p,p) as (h, w)."""
    return np.einsum("ijij->ij", m)


def relu_expectations(xz: Array, xx: Array, zz: Array) -> tuple[Array, Array]:
    """E[s(u) s(v)] and E[s'(u) s'(v)]; kappa_1 and kappa_0 over two, times the norms."""
    norms = np.sqrt(diagonal(xx))[:, :, None, None] * np.sqrt(diagonal(zz))
    angle = np.arccos(np.clip(xz / norms, -1.0, 1.0))
    e1 = norms * (np.sin(angle) + (math.pi - angle) * np.cos(angle)) / (2 * math.pi)
    return e1, (math.pi - angle) / (2 * math.pi)


# ---------------------------------------------------------------- the paper


def paper_cntk(x: Array, z: Array, depth: int, q: int, readout: str) -> tuple[float, float]:
    """NTK and NNGP of CNTK-V ("flatten") and CNTK-GAP ("pool"): Sections 4 and H."""
    pairs = {"xz": (x, z), "xx": (x, x), "zz": (z, z)}
    sigma = {name: box(inner(*pair), q) for name, pair in pairs.items()}
    theta = sigma["xz"].copy() if readout == "flatten" else np.zeros_like(sigma["xz"])
    k = dk = theta
    for conv in range(1, depth):
        k_all: dict[str, Array] = {}
        for name in pairs:
            e1, e0 = relu_expectations(sigma[name], sigma[name[0] * 2], sigma[name[1] * 2])
            k_all[name] = 2 / q**2 * e1
            if name == "xz":
                k, dk = k_all[name], 2 / q**2 * e0
        if conv < depth - 1:
            theta = box(dk * theta + k, q)
            sigma = {name: box(k_all[name], q) for name in pairs}
    if readout == "flatten":
        return float(diagonal(dk * theta + k).sum()), float(diagonal(k).sum())
    return float((dk * theta).mean()), float(k.mean())


def paper_ntk(x: Array, z: Array, depth: int) -> tuple[float, float]:
    """Theta^(L) and Sigma^(L) of Eq. 7-9, in scalars."""
    s, sx, sz = (float(np.vdot(a, b)) for a, b in [(x, z), (x, x), (z, z)])
    theta = s
    for _ in range(depth):
        angle = math.acos(s / math.sqrt(sx * sz))
        derivative = (math.pi - angle) / math.pi
        # Sigma^(h)(x,x) = Sigma^(h-1)(x,x) because c = 2 is chosen to that end.
        s = math.sqrt(sx * sz) * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
        theta = theta * derivative + s
    return theta, s


# ---------------------------------------------------------------- the General form


def general_form(network: Network, x: Array, z: Array) -> tuple[float, float]:
    """NTK and NNGP from the fields of the layers and nothing else."""
    if isinstance(network.layers[0], Dense):
        x, z = x.reshape(1, 1, -1), z.reshape(1, 1, -1)
    h, w, c = x.shape
    fan_in = network.scaling == "fan_in"
    pairs = {"xz": (x, z), "xx": (x, x), "zz": (z, z)}
    k = {name: inner(*pair) / (c if fan_in else 1) for name, pair in pairs.items()}
    theta = np.zeros_like(k["xz"])
    for layer in network.layers:
        match layer:
            case Conv(q, w_std, b_std, trainable):
                t = float(trainable)
                theta = w_std**2 / q**2 * box(theta + t * k["xz"], q) + t * b_std**2
                k = {name: w_std**2 / q**2 * box(m, q) + b_std**2 for name, m in k.items()}
            case ReLU():
                both = {n: relu_expectations(k[n], k[n[0] * 2], k[n[1] * 2]) for n in pairs}
                theta = both["xz"][1] * theta
                k = {name: e1 for name, (e1, _) in both.items()}
            case Flatten():
                scale = 1 / (h * w) if fan_in else 1.0
                k = {n: np.full((1, 1, 1, 1), scale * diagonal(m).sum()) for n, m in k.items()}
                theta = np.full((1, 1, 1, 1), scale * diagonal(theta).sum())
            case GlobalAvgPool():
                k = {name: np.full((1, 1, 1, 1), m.mean()) for name, m in k.items()}
                theta = np.full((1, 1, 1, 1), theta.mean())
            case Dense(w_std, b_std, trainable):
                t = float(trainable)
                theta = w_std**2 * (theta + t * k["xz"]) + t * b_std**2
                k = {name: w_std**2 * m + b_std**2 for name, m in k.items()}
            case LocalAvgPool():
                raise AssertionError("no architecture of the paper pools locally")
    return theta.item(), k["xz"].item()


# One pixel and one channel is left to the values by hand: there lambda = 1, where arccos turns a
# rounding of 1e-16 into 1e-8.
SHAPES = [(1, 1, 2), (3, 4, 2)]


def close(expected: tuple[float, float], rel: float = 1e-13) -> Any:
    return pytest.approx(expected, rel=rel, abs=0.0)


def images(shape: tuple[int, ...]) -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    return rng.uniform(0.1, 1.0, shape), rng.uniform(-0.9, 1.2, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("q", [1, 3, 5])
def test_cntk_gap_has_the_papers_scale(shape: tuple[int, ...], depth: int, q: int) -> None:
    x, z = images(shape)
    expected = paper_cntk(x, z, depth, q, "pool")
    assert general_form(cntk_gap(depth, q), x, z) == close(expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("q", [1, 3, 5])
def test_cntk_vanilla_has_the_papers_scale(shape: tuple[int, ...], depth: int, q: int) -> None:
    x, z = images(shape)
    expected = paper_cntk(x, z, depth, q, "flatten")
    assert general_form(cntk_vanilla(depth, q), x, z) == close(expected)


@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 4, 2)])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_ntk_dense_has_the_papers_scale(shape: tuple[int, ...], depth: int) -> None:
    x, z = images(shape)
    assert general_form(ntk_dense(depth), x, z) == close(paper_ntk(x, z, depth))


def test_dense_and_flattened_one_pixel_convolution_agree() -> None:
    # 1x1 images and q = 1: the vanilla CNTK of depth L + 1 is the NTK with L hidden layers.
    x, z = images((1, 1, 4))
    for hidden in (1, 2, 5):
        conv = general_form(cntk_vanilla(hidden + 1, 1), x, z)
        assert conv == close(general_form(ntk_dense(hidden), x, z))


def test_values_by_hand() -> None:
    # x = z of one pixel and one channel, value 3, q = 3: lambda = 1 everywhere.
    x = np.full((1, 1, 1), 3.0)
    # depth 2, vanilla: Sigma_0 = 9, K = 2/9 * 9/2 = 1, K' = 2/9 * 1/2; 9/9 + 1 = 2.
    assert general_form(cntk_vanilla(2, 3), x, x) == close((2.0, 1.0), 1e-7)
    # depth 2, GAP: Theta_0 = 0, so the NTK is 0; the only layer is not trained.
    assert general_form(cntk_gap(2, 3), x, x) == close((0.0, 1.0), 1e-7)
    # Dense: Theta^(L)(x,x) = (L + 1) x.x.
    assert general_form(ntk_dense(3), x, x) == close((36.0, 9.0), 1e-7)


# Each change must move a value by much more than the tolerance: the tests above can fail.


def swap(network: Network, index: int, **fields: Any) -> Network:
    layers = list(network.layers)
    layers[index] = replace(layers[index], **fields)
    return replace(network, layers=layers)


def all_mutants(network: Network) -> list[Network]:
    other = replace(network, scaling="fan_in")
    dropped = replace(network, layers=[*network.layers[:2], *network.layers[4:]])
    mutants = [other, dropped]
    for index, layer in enumerate(network.layers):
        if isinstance(layer, Conv | Dense):
            mutants.append(swap(network, index, w_std=layer.w_std * 1.001))
            mutants.append(swap(network, index, b_std=0.1))
            mutants.append(swap(network, index, trainable=not layer.trainable))
        if isinstance(layer, Conv):
            mutants.append(swap(network, index, filter_size=layer.filter_size + 2))
    return mutants


@pytest.mark.parametrize("network", [cntk_gap(4), cntk_vanilla(4), ntk_dense(3)], ids=str)
def test_every_field_matters(network: Network) -> None:
    x, z = images((3, 4, 2))
    value = general_form(network, x, z)
    mutants = all_mutants(network)
    assert len(mutants) > 10
    for mutant in mutants:
        changed = general_form(mutant, x, z)
        assert changed != close(value, 1e-6), mutant


# ---------------------------------------------------------------- structure


def test_structure_of_cntk_gap() -> None:
    network = cntk_gap(depth=4, filter_size=5)
    assert str(network) == "Conv(5) ReLU Conv(5) ReLU Conv(5) ReLU GlobalAvgPool Dense"
    assert network.scaling == "paper"
    trained = [x.trainable for x in network.layers if isinstance(x, Conv | Dense)]
    assert trained == [False, True, True, False]


def test_structure_of_cntk_vanilla() -> None:
    network = cntk_vanilla(depth=3, filter_size=3)
    assert str(network) == "Conv(3) ReLU Conv(3) ReLU Flatten Dense"
    assert network.scaling == "paper"
    assert all(x.trainable for x in network.layers if isinstance(x, Conv | Dense))


def test_structure_of_ntk_dense() -> None:
    assert ntk_dense(depth=2) == Network(
        [Dense(1.0), ReLU(), Dense(2**0.5), ReLU(), Dense(2**0.5)], scaling="paper"
    )
    assert ntk_dense(1).is_dense


def test_defaults() -> None:
    assert cntk_gap() == cntk_gap(11, 3)
    assert cntk_vanilla() == cntk_vanilla(11, 3)
    assert ntk_dense() == ntk_dense(3)
    assert cntk_gap().n_conv == cntk_vanilla().n_conv == 10
    assert cntk_gap(2).n_conv == 1


def test_squares_are_the_papers_constants_to_a_rounding() -> None:
    first, *_, last = (x for x in cntk_gap(3, 3).layers if isinstance(x, Conv | Dense))
    assert first.w_std**2 == 9.0
    assert last.w_std**2 == pytest.approx(2 / 9, rel=4e-16)


def test_depths_share_a_prefix() -> None:
    # A family over depths is computed in one pass: all layers but the readout are the same.
    for preset in (cntk_gap, cntk_vanilla):
        short, long = preset(4).layers, preset(6).layers
        assert list(long[: len(short) - 2]) == list(short[:-2])
        assert list(long[-2:]) == list(short[-2:])


@pytest.mark.parametrize("preset", [cntk_gap, cntk_vanilla])
@pytest.mark.parametrize("depth", [1, 0, -3, 16_384, 10**12])
def test_convolutional_depth_out_of_range(preset: Any, depth: int) -> None:
    message = rf"depth \(number of convolutions plus one\) must be from 2 to 16,383, got {depth}"
    with pytest.raises(ValueError, match=message):
        preset(depth=depth)


@pytest.mark.parametrize("depth", [0, -1, 16_384, 10**12])
def test_dense_depth_out_of_range(depth: int) -> None:
    message = rf"depth \(number of hidden layers\) must be from 1 to 16,383, got {depth}"
    with pytest.raises(ValueError, match=message):
        ntk_dense(depth)


@pytest.mark.parametrize("preset", [cntk_gap, cntk_vanilla, ntk_dense])
def test_the_deepest_networks_can_be_read_again(preset: Any) -> None:
    network = preset(16_383)
    assert Network.from_json(network.to_json()) == network


@pytest.mark.parametrize("preset", [cntk_gap, cntk_vanilla, ntk_dense])
@pytest.mark.parametrize("depth", [3.0, "3", True, None])
def test_depth_that_is_no_integer(preset: Any, depth: Any) -> None:
    with pytest.raises(TypeError, match=r"depth must be an integer, got .* \(\w+\)$"):
        preset(depth)


@pytest.mark.parametrize("preset", [cntk_gap, cntk_vanilla])
@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (2, ValueError, "filter_size must be odd"),
        (0, ValueError, "filter_size must be from 1"),
        (-1, ValueError, "filter_size must be from 1"),
        (3.0, TypeError, "filter_size must be an integer"),
        ("3", TypeError, "filter_size must be an integer"),
        (True, TypeError, "filter_size must be an integer"),
    ],
)
def test_bad_filter_size(preset: Any, size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        preset(3, size)


def test_numpy_integers_are_integers() -> None:
    four: Any = np.int64(4)
    three: Any = np.int8(3)
    assert cntk_gap(four, three) == cntk_gap(4, 3)
    assert ntk_dense(four) == ntk_dense(4)


def test_layers_of_a_preset_are_layers_of_the_public_type() -> None:
    layers: list[Layer] = list(cntk_gap(3).layers)
    assert Network(layers, "paper") == cntk_gap(3)


def test_biases_of_the_dense_network() -> None:
    assert ntk_dense(2, b_std=0.0) == ntk_dense(2)
    dense = [layer for layer in ntk_dense(2, b_std=0.5).layers if isinstance(layer, Dense)]
    assert [layer.b_std for layer in dense] == [0.5, 0.5, 0.5]
    assert [layer.w_std for layer in dense] == [1.0, 2**0.5, 2**0.5]
