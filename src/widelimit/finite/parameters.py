"""The parameters of a finite network: where it has some, their sizes and scales, and drawn ones.

Layers are numbered as `walk` yields them, those of branches after their `Sum`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeAlias

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.layers import walk
from widelimit.network import AvgPool, Conv, Dense, Flatten, GlobalAvgPool, Layer, Network, Sum

__all__ = [
    "Parameters",
    "Seed",
    "Sizes",
    "check_width",
    "draw_parameters",
    "inner_shape",
    "parameter_sizes",
]

Seed: TypeAlias = int | Sequence[int] | np.random.SeedSequence | np.random.Generator


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Weights and biases of one layer, and what each is multiplied with where it is used.

    Parameters
    ----------
    weight : ndarray of float64, shape (rows, columns, c, outputs), or (c, outputs) of a `Dense`
    bias : ndarray of float64, shape (outputs,)
    weight_scale : float
        ``w_std / sqrt(fan-in)``.
    bias_scale : float
        ``b_std``.
    """

    weight: FloatArray
    bias: FloatArray
    weight_scale: float
    bias_scale: float

    @property
    def matrix(self) -> FloatArray:
        """Weights of shape (fan-in, outputs)."""
        return self.weight.reshape(-1, self.weight.shape[-1])


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the parameters of one layer.

    Parameters
    ----------
    layer : Conv or Dense
    weight : tuple of int
        Shape of the weights, as in `Parameters`.
    weight_scale : float
        ``w_std / sqrt(fan-in)``.
    places : int
        Pixels of the output.
    """

    layer: Conv | Dense
    weight: tuple[int, ...]
    weight_scale: float
    places: int


def check_width(width: object) -> int:
    """Return the width of hidden layers as a plain integer, or say what is wrong with it."""
    if isinstance(width, bool) or not isinstance(width, Integral):
        raise TypeError(f"width must be an integer, got {width!r} ({type(width).__name__})")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return int(width)


def inner_shape(network: Network, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape in which one sample goes through the layers: an image, or a vector.

    To a dense network an image is a vector, and a series is an image of one row.
    """
    shape = tuple(int(size) for size in input_shape)
    if network.is_dense:
        return (math.prod(shape),)
    return (1, *shape) if len(shape) == 2 else shape


def parameter_sizes(
    network: Network, input_shape: Sequence[int], width: int, outputs: int = 1
) -> tuple[Sizes | None, ...]:
    """Return where a finite network has parameters, and of which sizes.

    Parameters
    ----------
    network, input_shape, width, outputs
        As for `draw_parameters`.

    Returns
    -------
    tuple of Sizes or None
        One for each layer of the network, None where it has nothing to learn.

    Raises
    ------
    TypeError, ValueError
        If width is not a positive integer, or the shape does not fit the network.
    """
    width = check_width(width)
    network.output_shapes(input_shape)  # says what is wrong with the shape
    shape = inner_shape(network, input_shape)
    divides = network.scaling == "fan_in"
    last = sum(1 for _ in walk(network.layers)) - 1
    found: list[Sizes | None] = []

    # fan_in: what the next layer divides by, but for the area of its filter
    def through(
        layers: Sequence[Layer], shape: tuple[int, ...], fan_in: int
    ) -> tuple[tuple[int, ...], int]:
        for layer in layers:
            number = len(found)
            found.append(None)
            match layer:
                case Conv(w_std=w_std):
                    area = [window.size for window in layer.windows]
                    grid = _extents(layer, shape)
                    scale = w_std / (math.sqrt(math.prod(area)) * math.sqrt(fan_in))
                    size = (*area, shape[-1], width)
                    found[number] = Sizes(layer, size, scale, math.prod(grid))
                    shape, fan_in = (*grid, width), width
                case Dense(w_std):
                    features = outputs if number == last else width
                    found[number] = Sizes(
                        layer, (shape[-1], features), w_std / math.sqrt(fan_in), 1
                    )
                    shape, fan_in = (features,), width
                case AvgPool():
                    shape = (*_extents(layer, shape), shape[-1])
                case Flatten():
                    fan_in *= math.prod(shape[:-1]) if divides else 1
                    shape = (math.prod(shape),)
                case GlobalAvgPool():
                    shape = shape[-1:]
                case Sum():
                    ends = [through(branch, shape, fan_in) for branch in layer.branches]
                    shape, fan_in = ends[0]
                case _:
                    pass
        return shape, fan_in

    through(network.layers, shape, shape[-1] if divides else 1)
    return tuple(found)


def _extents(layer: Conv | AvgPool, shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = layer.windows
    return rows.extent(shape[0]), columns.extent(shape[1])


def draw_parameters(
    network: Network, input_shape: Sequence[int], width: int, seed: Seed, outputs: int = 1
) -> tuple[Parameters | None, ...]:
    """Draw all parameters, as `FiniteNetwork.sample` says, for any number of outputs.

    Returns
    -------
    tuple of Parameters or None
        One for each layer of the network, None where it has nothing to learn.
    """
    every = parameter_sizes(network, input_shape, width, outputs)
    rng = np.random.default_rng(seed)
    drawn: list[Parameters | None] = []
    for sizes in every:
        if sizes is None:
            drawn.append(None)
            continue
        weight = rng.standard_normal(sizes.weight)
        bias = rng.standard_normal(sizes.weight[-1])
        drawn.append(Parameters(weight, bias, sizes.weight_scale, sizes.layer.b_std))
    return tuple(drawn)
