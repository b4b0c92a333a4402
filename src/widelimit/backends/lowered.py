"""A program in the units of the compiled engines: what a pass over a slice does, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from widelimit.arrays import FloatArray, IntArray
from widelimit.layers import ReLU
from widelimit.program import Node, Pool, Program

__all__ = ["Lowered", "LoweredStep", "depths", "lower", "missing"]


@dataclass(frozen=True, slots=True)
class LoweredStep:
    """One convolution, the activation after it if `relu`, and what is needed of both.

    ``Sigma = box(F) + beta^2``, ``F' = scale * m kappa1``; see `Lowered`.
    """

    filter_size: int
    relu: bool
    signed: bool  # sigma may be negative
    trainable: bool
    theta_in: bool  # a tangent kernel that is not zero everywhere enters
    k_out: bool
    theta_out: bool
    biased: bool
    scale: float


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program in units in which no number of a pass leaves the range of float32.

    Without biases a kernel is homogeneous, so gains are taken out: an engine computes
    ``Sigma = box(F) + beta^2``, ``F = scale * m kappa1`` with powers of two for scales that keep a
    constant image constant. The true fields after a step are a gain times the engine's.

    Parameters
    ----------
    program : Program
    in_scale : float
        Of the covariance of the inputs.
    steps : tuple of LoweredStep
    biases : ndarray of float64, shape (n_steps,)
        beta of each step.
    factors : ndarray of float64, shape (n_taps,)
        From the engine's sums to true sums.
    """

    program: Program
    in_scale: float
    steps: tuple[LoweredStep, ...]
    biases: FloatArray
    factors: FloatArray


@lru_cache(maxsize=64)
def lower(program: Program, drift: float = 1.0) -> Lowered:
    """Return a program with slices in the engines' units.

    Parameters
    ----------
    program : Program
    drift : float
        How far a constant image may grow or shrink before the scale of layers changes: with some
        room, layers in a row are alike, and one piece of code serves them all. The units decide
        about the last bit of profiles.
    """
    nodes = _chain(program)
    units = _units(program, drift)
    wanted_below = [
        max((tap.node for tap in program.taps if tap.want_theta), default=-1),
        max(tap.node for tap in program.taps),
    ]
    steps: list[LoweredStep] = []
    theta = False
    for layer, (node, scale) in enumerate(zip(nodes, units.out_scales, strict=True), 1):
        enters, theta = theta, theta or node.trainable
        here = any(tap.node == layer and tap.want_sigma for tap in program.taps)
        k_out = layer < wanted_below[1] or here
        theta_out = theta and layer <= wanted_below[0]
        steps.append(_lowered(node, scale, enters and theta_out, k_out, theta_out))
    factors = np.array([units.gains[tap.node] for tap in program.taps])
    return Lowered(program, units.in_scale, tuple(steps), units.biases, factors)


def depths(program: Program) -> IntArray:
    """Return the slices of a chain with a number of steps in place of the variant.

    Returns
    -------
    ndarray of int64, shape (n_slices, 3)
        di, dj, steps: a slice goes through the first ones.
    """
    _chain(program)
    (stage,) = program.stages
    slices = stage.slices.copy()
    slices[:, 2] = np.array([len(nodes) for nodes in stage.variants])[slices[:, 2]]
    return slices


def missing(program: Program) -> list[str]:
    """Return what a program has that the compiled engines cannot do; nothing if they can run it.

    They go from each layer to the next: square convolutions of stride 1 that keep the size of an
    image, and ReLU.
    """
    found: dict[str, None] = {}
    for number, node in enumerate(program.nodes):
        if isinstance(node, Pool):
            found["strides" if node.diagonal else "AvgPool"] = None
            continue
        if node.filter_size is None:
            found['filters that are not square, or padding="valid"'] = None
        if node.skip is not None:
            found["Sum"] = None
        if node.activation not in (None, ReLU()):
            found[type(node.activation).__name__] = None
        elif node.source != number and not found:
            found["networks that branch in one pass"] = None
    return list(found)


def _chain(program: Program) -> list[Node]:
    """Return the nodes of a program, or refuse what is no chain of convolutions and ReLU."""
    lacks = missing(program)
    if lacks:
        raise ValueError(
            "the compiled engines compute chains of convolutions and ReLU, not "
            f"{' and '.join(lacks)}, got {', '.join(map(str, program.networks))}: use "
            'backend="reference"'
        )
    return [node for node in program.nodes if isinstance(node, Node)]


def _lowered(node: Node, scale: float, theta_in: bool, k_out: bool, theta_out: bool) -> LoweredStep:
    biased = node.bias_variance > 0
    flags = (
        node.activation is not None,
        node.signed,
        node.trainable,
        theta_in,
        k_out,
        theta_out,
        biased,
    )
    return LoweredStep(node.windows[0].size, *flags, scale)


@dataclass(frozen=True, eq=False)
class _Units:
    """See `Lowered`. The true fields are ``gain[layer]`` times the engine's."""

    in_scale: float
    out_scales: tuple[float, ...]
    biases: FloatArray  # beta
    gains: tuple[float, ...]  # for each layer, the input (0) included


def _units(program: Program, drift: float) -> _Units:
    h, w, _ = program.shape
    gain = program.input_scale
    gains: list[float] = [gain]
    biases: list[float] = []
    scales: list[float] = []
    image = np.ones((h, w))  # a constant image, to choose the scales by
    scale = 0.0
    for node in _chain(program):
        r = node.windows[0].low
        rows, columns = (np.minimum(np.arange(n) + r, n - 1) for n in (h, w))
        top, left = (np.maximum(np.arange(n) - r, 0) for n in (h, w))
        # A box sum from cumulative sums: its cost does not grow with the filter. Rounding is no
        # matter here, the scale is a power of two.
        total = np.pad(image.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        image = (
            total[np.ix_(rows + 1, columns + 1)]
            - total[np.ix_(top, columns + 1)]
            - total[np.ix_(rows + 1, left)]
            + total[np.ix_(top, left)]
        )
        if not 1 / drift < image.max() * scale < drift:
            scale = 2.0 ** -round(math.log2(image.max()))
        image = image * scale
        weight = gain * (node.weight_variance / node.area)
        gain = min(max(weight / scale, 1e-280), 1e280)
        if gain != weight / scale:  # leave to the field what the gain cannot hold
            scale = min(max(weight / gain, 1e-300), 1e300)
        scales.append(scale)
        gains[-1] /= scale  # the field is stored times `scale`
        biases.append(math.sqrt(node.bias_variance / gain))
        if node.activation is not None:
            gain /= 2  # E[s(u) s(v)] = m kappa1 / 2
        gains.append(gain)
    in_scale, *out_scales = [*scales, 1.0]
    return _Units(in_scale, tuple(out_scales), np.array(biases, float), tuple(gains))
