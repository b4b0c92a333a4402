"""Random networks of every kind, as trees; and images for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

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

ACTIVATIONS: list[Layer] = [
    ReLU(),
    ABReLU(-0.3, 1.2),
    LeakyReLU(0.2),
    Abs(),
    Erf(),
    GELU(),
    Sin(),
    Cos(),
    Gaussian(),
    Gaussian(0.5),
    Polynomial((0.3, -0.8, 0.25, 0.1)),
]
activations = st.sampled_from(ACTIVATIONS)
deviations = st.sampled_from([(1.0, 0.0), (2**0.5, 0.0), (0.9, 0.3), (1.3, 0.1)])


@st.composite
def convs(draw: st.DrawFn, *, stride: bool = False, keeps: bool = False) -> Conv:
    """Draw a convolution; `keeps`: the grid stays as it is."""
    rows, columns = draw(st.sampled_from([(3, 3), (1, 1), (5, 5), (3, 1), (1, 3)]))
    w_std, b_std = draw(deviations)
    trainable = draw(st.booleans())
    padding: Any = "same"
    step: Any = draw(st.sampled_from([1, 2, (1, 2), 3])) if stride else 1
    if not keeps and draw(st.integers(0, 3)) == 0:
        padding = "valid"
        rows, columns = draw(st.sampled_from([(2, 2), (3, 3), (1, 2)]))
    return Conv((rows, columns), w_std, b_std, trainable, step, padding)


POOLS = [
    AvgPool(2),
    AvgPool(3, 2, "same"),
    AvgPool(3, 1, "same"),
    AvgPool(3, 2),
    AvgPool((1, 2)),
    AvgPool(2, 1),
]


@st.composite
def residuals(draw: st.DrawFn) -> list[Layer]:
    """Draw a block that needs a Gaussian field, and leaves one."""
    act, other = draw(activations), draw(activations)
    conv, second = draw(convs(keeps=True)), draw(convs(keeps=True))
    match draw(st.integers(0, 6)):
        case 0:
            return [Sum((), [act, conv])]
        case 1:
            return [Sum([act, conv], (), [other, second])]
        case 2:
            return [Sum([conv], [act, second, other, conv])]
        case 3:  # beside a pool, on one grid and on two
            return [Sum([AvgPool(3, 1, "same")], [act, conv])]
        case 4:
            short = [act, Conv(1, 1.1, stride=2)]
            return [Sum(short, [other, Conv(3, stride=2), act, conv])]
        case 5:
            return [Sum([AvgPool(3, 2, "same")], [act, Conv(3, 1.1, stride=2)]), LayerNorm(0.01)]
        case _:
            return [Sum((), [act, conv, Sum((), [other, second])]), Identity()]


@st.composite
def trees(draw: st.DrawFn, *, series: bool = False) -> Network:
    """Draw a network; `series`: with filters of one row."""
    layers: list[Layer] = [draw(convs(stride=True))]
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.integers(0, 5))
        if kind <= 1:
            layers += draw(residuals())
        elif kind == 2:
            layers += [draw(activations), draw(st.sampled_from(POOLS)), draw(convs())]
        elif kind == 3:
            layers += [draw(st.sampled_from([LayerNorm(), LayerNorm(0.1), *POOLS]))]
        else:
            layers += [draw(activations), draw(convs(stride=True))]
    if draw(st.booleans()):
        layers.append(draw(activations))
    layers += draw(st.sampled_from([[Flatten()], [GlobalAvgPool()], [LocalAvgPool(1), Flatten()]]))
    if series:
        layers = [flat(layer) for layer in layers if not isinstance(layer, LocalAvgPool)]
    w_std, b_std = draw(deviations)
    layers.append(Dense(w_std, b_std, draw(st.booleans())))
    for _ in range(draw(st.integers(0, 2))):
        act = draw(activations)
        dense = Dense(*draw(deviations), draw(st.booleans()))
        layers += draw(
            st.sampled_from([[act, dense], [Sum((), [act, dense]), Dense()], [LayerNorm(), dense]])
        )
    scaling = draw(st.sampled_from(["fan_in", "paper"]))
    try:
        return Network(layers, scaling)
    except ValueError:
        if not series:
            raise
        reject()  # branches that are of one size with square windows alone


def flat(layer: Layer) -> Layer:
    """Return a layer with windows of one row, as a series has."""
    match layer:
        case Conv(size, w_std, b_std, trainable, stride, padding):
            columns = size[1] if isinstance(size, tuple) else size
            return Conv((1, columns), w_std, b_std, trainable, stride, padding)
        case AvgPool(size, stride, padding):
            columns = size[1] if isinstance(size, tuple) else size
            step = stride[1] if isinstance(stride, tuple) else stride
            return AvgPool((1, columns), (1, step or 1), padding)
        case Sum(branches):
            return Sum(*([flat(inner) for inner in branch] for branch in branches))
        case _:
            return layer


def fits(network: Network, shape: tuple[int, ...]) -> bool:
    """Whether a network leaves pixels of samples of a shape, the same in all branches."""
    try:
        network.output_shapes(shape)
    except ValueError:
        return False
    return True


def samples(shape: tuple[int, ...], n: int, seed: int = 0) -> np.ndarray:
    """Return normal samples, the last of them like the first."""
    values = np.random.default_rng(seed).standard_normal((n, *shape))
    values[-1] = values[0]
    return values
