"""Random networks of every kind, as trees; and images for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from widelimit.lattice import Window
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
    Polynomial((0.3, -0.8, 0.1, 0.02)),
]
# Three grids, with a skip on one and across two.
MIXED = Network(
    [
        *(Conv(3), ReLU(), AvgPool(2), Conv(3), Sum((), [ReLU(), Conv(3)])),
        *(Sum([AvgPool(3, 2, "same")], [Abs(), Conv(3, stride=2)]), GELU()),
        *(GlobalAvgPool(), Dense()),
    ]
)
DEVIATIONS = [(1.0, 0.0), (2**0.5, 0.0), (0.9, 0.3), (1.3, 0.1)]
POOLS = [
    *(AvgPool(2), AvgPool(2), AvgPool(3, 2), AvgPool(3, 2)),
    *(AvgPool(3, 2, "same"), AvgPool(3, 1, "same"), AvgPool((1, 2)), AvgPool(2, 1)),
]


def conv(rng: Random, *, strided: bool = False, keeps: bool = False) -> Conv:
    """Draw a convolution; `keeps`: the grid stays as it is."""
    size = rng.choice([(3, 3), (1, 1), (5, 5), (3, 1), (1, 3)])
    padding: Any = "same"
    stride: Any = rng.choice([1, 1, 2, (1, 2), 3]) if strided else 1
    if not keeps and rng.random() < 0.25:
        padding, size = "valid", rng.choice([(2, 2), (3, 3), (1, 2)])
    return Conv(size, *rng.choice(DEVIATIONS), rng.random() < 0.7, stride, padding)


def residual(rng: Random) -> list[Layer]:
    """Draw a block that needs a Gaussian field, and leaves one."""
    act, other = rng.choice(ACTIVATIONS), rng.choice(ACTIVATIONS)
    first, second = conv(rng, keeps=True), conv(rng, keeps=True)
    pool3, strided = AvgPool(3, 2, "same"), Conv(3, 1.1, stride=2)
    blocks: list[list[Layer]] = [
        [Sum((), [act, first])],
        [Sum([act, first], (), [other, second])],
        [Sum([first], [act, second, other, first])],
        [Sum([AvgPool(3, 1, "same")], [act, first])],  # beside a pool, on one grid and on two
        [Sum([act, Conv(1, 1.1, stride=2)], [other, Conv(3, stride=2), act, first])],
        [Sum([pool3], [act, strided]), LayerNorm(0.01)],
        [Sum((), [act, first, Sum((), [other, second])]), Identity()],
    ]
    return rng.choice(blocks)


def tree(seed: int, *, series: bool = False) -> tuple[Network, tuple[int, ...]]:
    """Draw a network, and a shape of samples that it leaves pixels of.

    The same for a seed with any version of any library: which of `FEATURES` are there is known.

    Parameters
    ----------
    seed : int
    series : bool
        Filters of one row, and the shape ``(length, 2)``; otherwise ``(h, w, 2)``.
    """
    rng = Random(seed)
    while True:
        try:
            network = _network(rng, series)
        except ValueError:
            continue  # branches that are of one size with square windows alone
        for _ in range(10):
            h, w = rng.randint(3, 7), rng.randint(3, 6)
            shape = (h + w, 2) if series else (h, w, 2)
            if len(shape) in network.input_ranks and _fits(network, shape):
                return network, shape


def _network(rng: Random, series: bool) -> Network:
    layers: list[Layer] = [conv(rng, strided=rng.random() < 0.3)]
    for _ in range(rng.randint(1, 3)):
        kind = rng.randint(0, 5)
        if kind <= 1:
            layers += residual(rng)
        elif kind <= 3:
            layers += [rng.choice(ACTIVATIONS), rng.choice(POOLS), conv(rng)]
        elif kind == 4:
            layers += [rng.choice([LayerNorm(), LayerNorm(0.1), *POOLS])]
        else:
            layers += [rng.choice(ACTIVATIONS), conv(rng, strided=True)]
    if rng.random() < 0.5:
        layers.append(rng.choice(ACTIVATIONS))
    layers += rng.choice([[Flatten()], [GlobalAvgPool()], [LocalAvgPool(1), Flatten()]])
    if series:
        layers = [flat(layer) for layer in layers if not isinstance(layer, LocalAvgPool)]
    layers.append(_dense(rng))
    for _ in range(rng.randint(0, 2)):
        act, dense = rng.choice(ACTIVATIONS), _dense(rng)
        layers += rng.choice([[act, dense], [Sum((), [act, dense]), Dense()], [LayerNorm(), dense]])
    return Network(layers, "paper" if rng.random() < 0.3 else "fan_in")


def _dense(rng: Random) -> Dense:
    return Dense(*rng.choice(DEVIATIONS), rng.random() < 0.7)


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


def _fits(network: Network, shape: tuple[int, ...]) -> bool:
    """Whether a network leaves pixels of samples of a shape, and such as differ.

    Two windows that both hold a whole image make equal pixels: lambda = 1, which nobody knows, and
    half of the digits are lost behind a ReLU (docs/accuracy.md).
    """
    try:
        network.output_shapes(shape)
    except ValueError:
        return False
    return not any(
        w.extent(n) > 1 and w.size - w.low >= n and w.stride <= w.low
        for layer, w, n in _windows(network.layers, shape)
        if isinstance(layer, AvgPool)
    )


def _windows(
    layers: Sequence[Layer], shape: tuple[int, ...]
) -> Iterator[tuple[Layer, Window, int]]:
    """Yield each window, of rows and of columns, with the pixels that it moves along."""
    sizes = list(shape[:2] if len(shape) == 3 else (1, shape[0]))
    for layer in _path(layers):
        if isinstance(layer, Conv | AvgPool):
            for axis, window in enumerate(layer.windows):
                yield layer, window, sizes[axis]
                sizes[axis] = window.extent(sizes[axis])


def _path(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Yield the layers of one way through a network, of a Sum those of the longest branch."""
    for layer in layers:
        if isinstance(layer, Sum):
            yield from _path(max(layer.branches, key=len))
        else:
            yield layer


def samples(shape: tuple[int, ...], n: int, seed: int = 0) -> np.ndarray:
    """Return normal samples, the last of them like the first."""
    values = np.random.default_rng(seed).standard_normal((n, *shape))
    values[-1] = values[0]
    return values


FEATURES = {
    *("pool 2x2/2", "pool 3x3/2", "pool 3x3/2, same", "pool 3x3/1, same", "another pool"),
    *("strided", "valid", "filter not square", "ragged", "residual", "residual across a pool"),
    *("residual beside a pool", "Sum in a Sum", "head", "Sum in the head", "not trained", "bias"),
    *(type(layer).__name__ for layer in [*ACTIVATIONS, LayerNorm()]),
    *("Flatten", "GlobalAvgPool", "LocalAvgPool"),
}
_POOLS = {
    AvgPool(2): "pool 2x2/2",
    AvgPool(3, 2): "pool 3x3/2",
    AvgPool(3, 2, "same"): "pool 3x3/2, same",
    AvgPool(3, 1, "same"): "pool 3x3/1, same",
}


def features(network: Network, shape: tuple[int, ...]) -> set[str]:
    """Return which of `FEATURES` a network has on samples of a shape."""
    found: set[str] = set()
    layers = list(network.layers)
    readout = next(i for i, x in enumerate(layers) if isinstance(x, Flatten | GlobalAvgPool))
    body, head = list(walk(layers[:readout])), list(walk(layers[readout + 1 :]))
    found |= {type(layer).__name__ for layer in (*body, layers[readout], *head)} & FEATURES
    for layer in body:
        match layer:
            case AvgPool():
                found.add(_POOLS.get(layer, "another pool"))
            case Conv():
                rows, columns = layer.windows
                found |= {"strided"} if rows.stride > 1 or columns.stride > 1 else set[str]()
                found |= {"filter not square"} if rows.size != columns.size else set[str]()
                found |= {"valid"} if layer.padding == "valid" else set[str]()
            case Sum():
                inside = list(walk([x for branch in layer.branches for x in branch]))
                moves = [
                    x for x in inside if isinstance(x, AvgPool) or getattr(x, "stride", 1) != 1
                ]
                found.add("residual across a pool" if moves else "residual")
                found |= {"Sum in a Sum"} if any(isinstance(x, Sum) for x in inside) else set[str]()
            case _:
                pass
    if "residual" in found and any(isinstance(x, AvgPool) for x in layers[:readout]):
        found.add("residual beside a pool")
    found |= {"Sum in the head"} if any(isinstance(x, Sum) for x in head) else set[str]()
    found |= {"head"} if any(not isinstance(x, Dense | Sum) for x in head) else set[str]()
    weights = [x for x in (*body, *head) if isinstance(x, Conv | Dense)]
    found |= {"bias"} if any(x.b_std > 0 for x in weights) else set[str]()
    found |= {"not trained"} if not all(x.trainable for x in weights) else set[str]()
    # A window leaves pixels at the end that no place of it reaches.
    ends = [
        (w.stride * (w.extent(n) - 1) + w.size, n + w.low + w.high)
        for _, w, n in _windows(layers[:readout], shape)
    ]
    found |= {"ragged"} if any(last < end for last, end in ends) else set[str]()
    return found
