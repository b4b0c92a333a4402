"""Finite networks: gradients against finite differences, kernels against the exact ones.

Statistical bounds are multiples of the standard error that the draws themselves have, and every
seed is fixed. A kernel agrees if it is within `AGREES` standard errors of the exact one, entry by
entry; a wrong network is detected if an entry is more than `DETECTED` of them away.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import correlate2d

import widelimit as wl
from widelimit.finite import Estimate, FiniteNetwork, WidthStudy, convergence
from widelimit.finite import network as module
from widelimit.layers import walk
from widelimit.network import (
    GELU,
    ABReLU,
    Abs,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Erf,
    Flatten,
    Gaussian,
    GlobalAvgPool,
    Identity,
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
from widelimit.testing import assert_close

Array = NDArray[np.float64]
AGREES, DETECTED = 4.0, 5.0
SHAPE = (4, 5, 2)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


# ------------------------------------------------------------------------- gradients, exactly

TINY = {
    "vanilla": wl.cntk_vanilla(depth=3),
    "gap": wl.cntk_gap(depth=4),
    "dense": wl.ntk_dense(depth=2),
    "filters": Network([Conv(5, b_std=0.3), ReLU(), Conv(1), ReLU(), Flatten(), Dense()]),
    "linear": Network([Conv(3), Conv(3, trainable=False), GlobalAvgPool(), Dense(), Dense(2.0)]),
    "activated mean": Network([Conv(3), Erf(), Conv(3), GlobalAvgPool(), GELU(), Dense()]),
    "lap": Network(
        [
            Conv(3, 1.3, 0.2),
            ReLU(),
            Conv(3, 0.8, 0.5, trainable=False),
            ReLU(),
            LocalAvgPool(1),
            Dense(1.1, 0.4),
            ReLU(),
            Dense(0.9, 0.7),
        ]
    ),
    "last untrained": Network(
        [Conv(3, b_std=0.1), ReLU(), LocalAvgPool(2), Dense(b_std=0.3, trainable=False)],
        scaling="paper",
    ),
    "no conv": Network([LocalAvgPool(1), Dense(), ReLU(), Dense(b_std=1.0)]),
    "flat first": Network([Flatten(), Dense(1.2, 0.3), ReLU(), Dense()], scaling="paper"),
    "pools": Network(
        [
            Conv((1, 2), b_std=0.2, padding="valid"),
            Erf(),
            AvgPool((2, 1), 1),
            Conv(2, 0.9, padding="valid", trainable=False),
            AvgPool(3, 1, "same"),
            GELU(),
            Conv(3, 1.0, 0.1),
            AvgPool(3, 2, "same"),
            Cos(),
            GlobalAvgPool(),
            Dense(),
        ]
    ),
    "sums": Network(
        [
            Conv((3, 1), 1.2, 0.3),
            Sum([AvgPool(3, 2, "same")], [Abs(), Conv(3, 0.8, stride=2)]),
            LayerNorm(0.1),
            Gaussian(0.5),
            Conv(1, stride=(1, 2)),
            Sum((), [Sin(), Conv(3), Sum([LeakyReLU(0.2), Conv(1, b_std=0.4)], ())]),
            ReLU(),
            Flatten(),
            Dense(1.1, 0.3),
            LayerNorm(),
            Dense(1.3),
        ],
        scaling="paper",
    ),
    "dense sums": Network(
        [
            Sum([Dense(1.1)], [Dense(0.5, 0.2), ABReLU(-0.3, 1.2), Dense(trainable=False)]),
            Sum((), [Polynomial((0.3, -0.8, 0.25, 0.1)), Dense(0.5, 0.3)]),
            Gaussian(),
            Dense(b_std=0.3),
            Identity(),
            Dense(),
        ]
    ),
}
tiny = pytest.mark.parametrize("network", TINY.values(), ids=TINY)


def differences(finite: FiniteNetwork, x: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Gradients of shape (n, parameters) by central differences, and which are trained.

    Of ReLU networks the output is piecewise linear in one parameter: exact but for rounding, away
    from kinks. Of others the third derivative adds about ``step^2``.
    """
    step = 1e-5
    columns: list[Array] = []
    trained: list[bool] = []
    for layer, own in zip(walk(finite.network.layers), finite.parameters, strict=True):
        for array in () if own is None else (own.weight, own.bias):
            assert isinstance(layer, Conv | Dense)
            for place in np.ndindex(array.shape):
                value = array[place]
                array[place] = value + step
                above = finite.forward(x)
                array[place] = value - step
                columns.append((above - finite.forward(x)) / (2 * step))
                array[place] = value
                trained.append(layer.trainable)
    return np.stack(columns, axis=1), np.array(trained)


@tiny
def test_tangent_kernel_is_the_gram_matrix_of_gradients(network: Network) -> None:
    finite = FiniteNetwork.sample(network, (3, 4, 2), width=3, seed=1)
    x, z = normal(3, 3, 4, 2), normal(2, 3, 4, 2, seed=1)
    gradients, trained = differences(finite, np.concatenate([x, z]))
    gram = gradients[:, trained] @ gradients[:, trained].T
    size = np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))
    context = f"tangent kernel of {network!r}"
    assert_close(
        finite.empirical_ntk(x, z), gram[:3, 3:], rtol=1e-8, floor=size[:3, 3:], context=context
    )
    own = finite.empirical_ntk(x)
    assert_close(own, gram[:3, :3], rtol=1e-8, floor=size[:3, :3], context=context)
    np.testing.assert_array_equal(own, own.T)

    # and the comparison sees one weight among all of them that is left out
    largest = np.argmax(np.where(trained, (gradients[:3] ** 2).sum(axis=0), -1.0))
    fewer = gram - np.outer(gradients[:, largest], gradients[:, largest])
    with pytest.raises(AssertionError, match="tangent kernel"):
        assert_close(own, fewer[:3, :3], rtol=1e-8, floor=size[:3, :3], context=context)


@tiny
def test_output_covariance_is_that_of_the_last_layer(network: Network) -> None:
    finite = FiniteNetwork.sample(network, (3, 4, 2), width=3, seed=2)
    x, z = normal(3, 3, 4, 2), normal(2, 3, 4, 2, seed=1)
    last = finite.parameters[-1]
    assert last is not None
    no_bias, unit_bias = np.zeros(1), np.ones(1)
    total = np.zeros((3, 2))
    # E[f(x) f(z)] over standard normal parameters is the sum over unit vectors
    for unit in np.eye(len(last.weight) + 1):
        bias = unit_bias if unit[-1] else no_bias
        own = replace(last, weight=unit[:-1, None], bias=bias)
        draw = replace(finite, parameters=(*finite.parameters[:-1], own))
        total += np.outer(draw.forward(x), draw.forward(z))
    np.testing.assert_allclose(finite.empirical_nngp(x, z), total, rtol=1e-12)
    own_kernel = finite.empirical_nngp(x)
    np.testing.assert_array_equal(own_kernel, own_kernel.T)


def test_forward_by_the_definition_of_its_layers() -> None:
    network = TINY["lap"]
    finite = FiniteNetwork.sample(network, SHAPE, width=3, seed=3)
    (image,) = normal(1, *SHAPE)
    maps = list(image.transpose(2, 0, 1))
    for index, (w_std, b_std) in {0: (1.3, 0.2), 2: (0.8, 0.5)}.items():
        own = finite.parameters[index]
        assert own is not None
        scale = w_std / np.sqrt(9 * len(maps))
        maps = [
            np.maximum(0.0, b_std * own.bias[o] + scale * sum(
                correlate2d(channel, own.weight[:, :, c, o], mode="same")
                for c, channel in enumerate(maps)
            ))
            for o in range(3)
        ]  # fmt: skip
    pooled = np.stack([correlate2d(m, np.ones((3, 3)), mode="same") / 9 for m in maps], axis=-1)
    hidden, last = finite.parameters[-3], finite.parameters[-1]
    assert hidden is not None
    assert last is not None
    u = 1.1 / np.sqrt(4 * 5 * 3) * pooled.ravel() @ hidden.weight + 0.4 * hidden.bias
    out = 0.9 / np.sqrt(3) * np.maximum(0.0, u) @ last.weight + 0.7 * last.bias
    np.testing.assert_allclose(finite.forward(image[None]), out, rtol=1e-12)


def test_both_ways_to_multiply_gradients_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    n1, n2, pixels, fan_in, outputs = 3, 4, 6, 7, 5
    f1, f2 = normal(n1, pixels, fan_in), normal(n2, pixels, fan_in, seed=1)
    d1, d2 = normal(n1, pixels, outputs, seed=2), normal(n2, pixels, outputs, seed=3)
    expected = np.einsum("ipf,jqf,ipo,jqo->ij", f1, f2, d1, d2)
    np.testing.assert_allclose(module._by_gram(f1, d1, f2, d2), expected, rtol=1e-12)
    for channels in (1, 2, 5):  # the last block is not always full
        monkeypatch.setattr(module, "_BLOCK", channels * (n1 + n2) * fan_in)
        np.testing.assert_allclose(module._by_gradient(f1, d1, f2, d2), expected, rtol=1e-12)
    # the cheaper one: many pixels and few channels, and the other way round
    taken: list[str] = []
    for name in ("_by_gram", "_by_gradient"):
        monkeypatch.setattr(module, name, lambda *_, name=name: taken.append(name))
    module._gradient_products(*(normal(2, 50, 3) for _ in range(4)))
    module._gradient_products(*(normal(2, 2, 90) for _ in range(4)))
    assert taken == ["_by_gradient", "_by_gram"]


# --------------------------------------------------------------- one hidden layer, at any width


def deviations(values: Array, exact: Array) -> Array:
    """Deviation of the mean of values, shape (draws, n, n), in standard errors."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return (values.mean(axis=0) - exact) / error


UNBIASED = {
    "flatten": Network([Conv(3, 1.2, 0.4), ReLU(), Flatten(), Dense(0.9, 0.6)]),
    "gap": Network([Conv(3, b_std=0.5), ReLU(), GlobalAvgPool(), Dense()], scaling="paper"),
    "lap": Network([Conv(5, b_std=0.2), ReLU(), LocalAvgPool(1), Dense(2.0)], scaling="paper"),
    "untrained": Network([Conv(3, 1.0, 0.9, trainable=False), ReLU(), Flatten(), Dense(1.0, 0.5)]),
    "dense": Network([Dense(1.1, 0.3), ReLU(), Dense(1.2, 0.2)]),
    "dense paper": Network([Flatten(), Dense(1.1), ReLU(), Dense(b_std=1.0)], scaling="paper"),
    "linear": Network([Conv(3), Conv(3, 0.9, 0.2), LocalAvgPool(2), Dense(), Dense(1.5, 0.1)]),
}


@pytest.mark.parametrize("network", UNBIASED.values(), ids=UNBIASED)
def test_kernels_without_bias_in_the_width(network: Network) -> None:
    # The units of one hidden layer are independent, and products of independent linear layers
    # too: the mean over draws is the limit at any width.
    x = normal(3, *SHAPE)
    exact = wl.kernel(network, x, kind=("nngp", "ntk"), dtype="float64")
    draws = [FiniteNetwork.sample(network, SHAPE, 16, [7, i]) for i in range(600)]
    for kind, k, values in (
        ("nngp", exact[0], np.array([draw.empirical_nngp(x) for draw in draws])),
        ("ntk", exact[1], np.array([draw.empirical_ntk(x) for draw in draws])),
    ):
        z = deviations(values, k)
        assert np.abs(z).max() < AGREES, f"{kind} of {network}: {z}"
        assert np.abs(deviations(values, 1.25 * k)).max() > DETECTED
    outputs = np.array([draw.forward(x) for draw in draws])
    z = deviations(outputs[:, :, None] * outputs[:, None, :], exact[0])
    assert np.abs(z).max() < AGREES, f"covariance of outputs of {network}: {z}"


# ------------------------------------------------------------------ the limit of infinite width

WIDTHS = (64, 256)
MORE_WIDTHS = (64, 128, 256, 512)
CASES: dict[str, tuple[Network, tuple[int, ...], int]] = {
    "vanilla 3": (wl.cntk_vanilla(depth=3), MORE_WIDTHS, 24),
    "gap 3": (wl.cntk_gap(depth=3), MORE_WIDTHS, 24),
    "vanilla 4": (wl.cntk_vanilla(depth=4), WIDTHS, 64),
    "gap 4": (wl.cntk_gap(depth=4), WIDTHS, 100),
    "gap fan-in, bias": (
        Network(
            [Conv(3, b_std=0.4), ReLU(), Conv(3, 1.2, 0.3), ReLU(), GlobalAvgPool(), Dense(1.1)]
        ),
        WIDTHS,
        128,
    ),
    "lap, bias, untrained": (
        Network(
            [
                Conv(3, b_std=0.3, trainable=False),
                ReLU(),
                Conv(3, 1.3, 0.2),
                ReLU(),
                LocalAvgPool(1),
                Dense(1.4, 0.2),
            ]
        ),
        WIDTHS,
        64,
    ),
    "lap paper": (
        Network(
            [Conv(5), ReLU(), Conv(3), ReLU(), LocalAvgPool(2), Dense(b_std=0.7)], scaling="paper"
        ),
        WIDTHS,
        64,
    ),
    "head, first and last untrained": (
        Network(
            [
                Conv(3, b_std=0.3, trainable=False),
                ReLU(),
                Conv(3, b_std=0.2),
                ReLU(),
                GlobalAvgPool(),
                Dense(1.4, 0.2),
                ReLU(),
                Dense(1.3, 0.1, trainable=False),
            ]
        ),
        WIDTHS,
        200,
    ),
    "dense": (wl.ntk_dense(depth=3), MORE_WIDTHS, 100),
    "dense fan-in, bias": (
        Network([Dense(1.4, 0.3), ReLU(), Dense(1.4, 0.3), ReLU(), Dense(1.0, 0.2)]),
        WIDTHS,
        150,
    ),
}
cases = pytest.mark.parametrize("name", CASES)


@cache
def measured(name: str) -> WidthStudy:
    network, widths, draws = CASES[name]
    return convergence(network, normal(3, *SHAPE), widths, draws, seed=1)


def distance(estimate: Estimate, exact: Array) -> float:
    """Largest deviation of the extrapolated kernel from another one, in standard errors."""
    limit, error = estimate.limit
    return float(np.abs((limit - exact) / error).max())


@cases
def test_limit_is_the_exact_kernel(name: str) -> None:
    found = measured(name)
    for kind, estimate in (("nngp", found.nngp), ("ntk", found.ntk)):
        error = estimate.relative_error
        away = distance(estimate, estimate.exact)
        assert away < AGREES, f"{kind} of {found.network}: {away} standard errors"
        assert error[-1] < error[0], f"{kind} of {found.network}: {error}"


def mutants(network: Network) -> dict[str, Network]:
    """Networks that differ in one respect that changes the tangent kernel."""
    out: dict[str, Network] = {}
    layers = list(network.layers)

    def put(what: str, index: int, *new: Layer) -> None:
        changed = [*layers[:index], *new, *layers[index + 1 :]]
        out[f"{what} of {layers[index]} {index}"] = replace(network, layers=changed)

    for index, layer in enumerate(layers):
        if isinstance(layer, Conv | Dense):
            put("flag", index, replace(layer, trainable=not layer.trainable))
        if isinstance(layer, ReLU):
            put("missing", index)
        if isinstance(layer, LocalAvgPool):
            put("window", index, LocalAvgPool(layer.half_width - 1))
        if isinstance(layer, Conv) and layer.filter_size == 3:
            put("filter", index, replace(layer, filter_size=5, w_std=layer.w_std * 5 / 3))
    second = next(i for i, layer in enumerate(layers) if isinstance(layer, Conv | Dense) and i > 0)
    out["one block less"] = replace(network, layers=layers[: second - 1] + layers[second + 1 :])
    other = "fan_in" if network.scaling == "paper" else "paper"
    out["scaling"] = replace(network, scaling=other)
    return out


@cases
def test_wrong_networks_are_detected(name: str) -> None:
    found = measured(name)
    x = normal(3, *SHAPE)
    for what, network in mutants(found.network).items():
        away = distance(found.ntk, wl.kernel(network, x, dtype="float64"))
        assert away > DETECTED, f"{what}: {away} standard errors"


def test_error_falls_like_one_over_the_root_of_the_width() -> None:
    for estimate in (measured("dense").nngp, measured("dense").ntk):
        squares = ((estimate.values - estimate.exact) ** 2).sum(axis=(2, 3))
        mean = squares.mean(axis=1)
        error = squares.std(axis=1, ddof=1) / np.sqrt(squares.shape[1]) / mean
        falls = np.log(mean[0] / mean[-1])  # expected: log(512 / 64)
        assert abs(falls - np.log(8)) < AGREES * np.hypot(error[0], error[-1])
        assert falls > DETECTED * np.hypot(error[0], error[-1])


def test_estimate_extrapolates_by_weighted_least_squares() -> None:
    widths, exact = (10, 20, 50), normal(2, 2)
    bias = normal(2, 2, seed=1)
    noise = normal(3, 4, 2, 2, seed=2)
    noise -= noise.mean(axis=1, keepdims=True)
    means = np.array([exact + bias / width for width in widths])
    limit, error = Estimate(exact, widths, means[:, None] + noise).limit
    np.testing.assert_allclose(limit, exact, rtol=1e-12)
    # against the solution of the normal equations
    design = np.stack([np.ones(3), 1 / np.array(widths)], axis=1)
    weight = np.diag(widths)
    share = np.linalg.solve(design.T @ weight @ design, design.T @ weight)[0]
    each = noise.std(axis=1, ddof=1) / 2
    np.testing.assert_allclose(error, np.sqrt(np.einsum("w,wij->ij", share**2, each**2)))
    with pytest.raises(ValueError, match=r"two widths, got \(10,\)"):
        _ = Estimate(exact, (10,), noise[:1]).limit


# ------------------------------------------------------------------------------------ behaviour


def test_draws_depend_on_seed_and_width_alone() -> None:
    network, x = wl.cntk_gap(depth=3), normal(2, *SHAPE)
    one = convergence(network, x, (8, 4), 3, seed=5)
    two = convergence(network, x, (4,), 2, seed=5)
    np.testing.assert_array_equal(one.ntk.values[1, :2], two.ntk.values[0])
    np.testing.assert_array_equal(one.nngp.values[1, :2], two.nngp.values[0])
    assert not np.array_equal(two.ntk.values, convergence(network, x, (4,), 2, seed=6).ntk.values)
    for seeds in ((3, 3), (np.random.default_rng(4), np.random.default_rng(4)), ([1, 2], [1, 2])):
        a, b = (FiniteNetwork.sample(network, SHAPE, 4, seed).forward(x) for seed in seeds)
        np.testing.assert_array_equal(a, b)
    a, b = (FiniteNetwork.sample(network, SHAPE, 4, seed).forward(x) for seed in (3, 4))
    assert not np.allclose(a, b)


def test_dense_networks_take_vectors_and_images() -> None:
    network = TINY["flat first"]
    x = normal(3, *SHAPE)
    images = FiniteNetwork.sample(network, SHAPE, 4)
    vectors = FiniteNetwork.sample(network, (40,), 4)
    rows = x.reshape(3, -1)
    for given, finite in ((x, images), (rows, images), (x, vectors), (rows, vectors)):
        np.testing.assert_array_equal(finite.empirical_ntk(given), images.empirical_ntk(x))


@pytest.mark.parametrize(
    ("width", "error", "message"),
    [
        (0, ValueError, "width must be at least 1, got 0"),
        (2.0, TypeError, r"width must be an integer, got 2.0 \(float\)"),
        (True, TypeError, r"width must be an integer, got True \(bool\)"),
    ],
)
def test_width_is_checked(width: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FiniteNetwork.sample(wl.cntk_gap(3), SHAPE, width)


def test_inputs_are_checked() -> None:
    finite = FiniteNetwork.sample(wl.cntk_gap(3), SHAPE, 2)
    with pytest.raises(
        ValueError, match=r"x must have shape \(n, 4, 5, 2\), n at least 1, got \(4, 5, 2\): "
    ):
        finite.forward(normal(*SHAPE))
    with pytest.raises(ValueError, match=r"x2 must have .* got \(1, 5, 4, 2\)"):
        finite.empirical_ntk(normal(1, *SHAPE), normal(1, 5, 4, 2))
    with pytest.raises(ValueError, match=r"got \(0, 4, 5, 2\)"):
        finite.forward(np.empty((0, *SHAPE)))
    with pytest.raises(TypeError, match="x1 must hold real numbers, got dtype complex128"):
        finite.empirical_nngp(1j * normal(1, *SHAPE))
    with pytest.raises(ValueError, match=r"input_shape of .* must be"):
        FiniteNetwork.sample(wl.cntk_gap(3), (40,), 2)
    with pytest.raises(ValueError, match="draws must be at least 2"):
        convergence(wl.cntk_gap(3), normal(1, *SHAPE), (2,), draws=1)
    for widths in ((), (4, 4)):
        with pytest.raises(ValueError, match="widths must be different, and at least one"):
            convergence(wl.cntk_gap(3), normal(1, *SHAPE), widths, draws=2)
