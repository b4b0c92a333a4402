"""A program in the units of the compiled engines: what a pass over a slice does, level by level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.backends.base import Dtype
from widelimit.dual import MOST_OF_A_WAVE, hermite
from widelimit.lattice import Boundary, Window
from widelimit.layers import GELU, ABReLU, Cos, Erf, Gaussian, LayerNorm, Polynomial, ReLU, Sin
from widelimit.program import Node, Pool, Program

__all__ = ["Field", "Grid", "Lowered", "LoweredLevel", "LoweredStep"]
__all__ += ["depths", "deviation_range", "deviations_behind", "is_chain", "lower", "missing"]

# Kinds of levels and activations, as _core/core.hpp numbers them.
IMAGE, GATHER, NODE = range(3)
IDENTITY, RELU, AB_RELU, GAUSSIAN, ERF, GELU_, SIN, COS, NORM, POLYNOMIAL = range(10)
BOUND_TO_UNITS = (ERF, GELU_, SIN, COS, NORM, POLYNOMIAL)  # not homogeneous

# Standard deviations that a pass bears where the scale of an image cannot be taken out. Rectifiers
# take roots of numbers as small as m^2, m being a product of two deviations, which takes those
# above 1e-8; what others compute is as small as m. Pixels of an image a hundred times as dark as
# its brightest matter a ten thousandth of it, but not to LayerNorm. The exponent of a wave has the
# error of s.
_DEVIATIONS = {"float32": (1e-13, 1e9), "float64": (1e-140, 1e75)}
_LEAST_OF_A_ROOT = {"float32": 1e-6, "float64": 1e-65}
_LEAST_OF_A_NORM = {"float32": 1e-7, "float64": 1e-67}
_MOST_OF_A_WAVE = {"float32": 32.0, "float64": MOST_OF_A_WAVE}  # X^2 roundings: 6e-5, 1e-8


_ONE = Window(1)
_STRONGER = 2.0**20  # what is added to a branch has at most this times its unit

_WARP = 32  # lanes of a card
_MOST_VARIANTS = 64  # kinds of slices of a stage that it can tell apart


@dataclass(frozen=True, slots=True)
class Field:
    """One level of a program, in true units: K and Theta on one grid.

    Parameters
    ----------
    h, w : int
    kind : int
        Of the image, of windows over a level of the parent stage, or of a node:
        ``Sigma = weight * box(K) + bias_variance + K of skip``, and the activation after it.
    source, skip : int
        Levels; -1: none.
    rows, columns : Window
        Of the filter, or of the windows.
    diagonal : bool
        Of windows: whether both images are read at the same place, as a convolution does.
    weight : float
        What sums are multiplied with.
    operands : int
        Numbers of a pixel in the profile of an image: X, and what the activation makes of it.
    """

    h: int
    w: int
    kind: int = IMAGE
    source: int = -1
    skip: int = -1
    rows: Window = _ONE
    columns: Window = _ONE
    diagonal: bool = False
    weight: float = 1.0
    bias_variance: float = 0.0
    trainable: bool = False
    activation: int = IDENTITY
    parameters: tuple[float, ...] = ()
    signed: bool = True
    operands: int = 1

    @property
    def boundary(self) -> Boundary:
        """The windows."""
        return Boundary(self.rows, self.columns, self.diagonal)


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels that are swept together: those of one stage.

    Parameters
    ----------
    parent : int
        The stage whose slices it gathers; -1: it begins with the image.
    n_levels : int
    variants : tuple of tuple of int
        Levels that a slice goes through, one entry for each kind of slice.
    slices : ndarray of int64, shape (n_passes, 8)
        di, dj, variant, needs, slot, strip, strip of the next stage to which it adds, whether it
        goes by for the first time (`widelimit.lattice.Schedule`).
    room : int
        Entries of the memory where slices gather.
    """

    parent: int
    n_levels: int
    variants: tuple[tuple[int, ...], ...]
    slices: IntArray
    room: int = 0


def _no_runs() -> NDArray[np.int32]:
    return np.zeros((0, 4), np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class LoweredLevel:
    """A `Field` in the units of an engine, and what is needed of it (_core/core.hpp)."""

    kind: int
    h: int
    w: int
    source: int
    skip: int
    out_scale: float
    rows: int = 1
    columns: int = 1
    top: int = 0
    left: int = 0
    activation: int = IDENTITY
    parameters: tuple[float, ...] = ()
    operands: int = 1
    signed: bool = True  # sigma may be negative
    trainable: bool = False
    theta_in: bool = False  # a tangent kernel that is not zero everywhere enters
    theta_skip: bool = False  # or is added
    k_out: bool = True
    theta_out: bool = False
    biased: bool = False
    skip_scale: float = 0.0
    unit: float = 1.0
    fields: int = 1
    room: int = 0
    stride_down: int = 1
    stride_across: int = 1
    down: NDArray[np.int32] = field(default_factory=_no_runs)  # rows d, coarse, first, count
    across: NDArray[np.int32] = field(default_factory=_no_runs)


@dataclass(frozen=True, slots=True)
class LoweredStep:
    """One convolution of a chain, the ReLU after it if `relu`, and what is needed of both.

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
    constant image constant. The true fields of a level are a gain times the engine's.

    Parameters
    ----------
    levels : tuple of LoweredLevel
        The image first.
    stages : tuple of Grid
    biases : ndarray of float64, shape (n_nodes,)
        beta of each node.
    taps : tuple of int
        The level of each tap.
    factors : ndarray of float64, shape (n_taps,)
        From the engine's sums to true sums.
    homogeneous : bool
        Whether K of a multiple of an image is that multiple of K.
    """

    levels: tuple[LoweredLevel, ...]
    stages: tuple[Grid, ...]
    biases: FloatArray
    taps: tuple[int, ...]
    factors: FloatArray
    homogeneous: bool

    @property
    def in_scale(self) -> float:
        """Of the covariance of the inputs."""
        return self.levels[0].out_scale

    @property
    def is_chain(self) -> bool:
        """Whether it is a chain of square convolutions and ReLUs on one grid."""
        first = self.levels[0]
        return all(
            level.kind == NODE
            and level.source == number - 1
            and level.skip < 0
            and level.rows == level.columns
            and (level.h, level.w) == (first.h, first.w)
            and level.activation in (IDENTITY, RELU)
            for number, level in enumerate(self.levels[1:], start=1)
        )

    @property
    def steps(self) -> tuple[LoweredStep, ...]:
        """The levels of a chain after the image."""
        return tuple(
            LoweredStep(
                level.rows,
                level.activation == RELU,
                level.signed,
                level.trainable,
                level.theta_in,
                level.k_out,
                level.theta_out,
                level.biased,
                level.out_scale,
            )
            for level in self.levels[1:]
        )

    @property
    def n_profile(self) -> int:
        """Numbers in the profile of an image."""
        nodes = (level for level in self.levels if level.kind == NODE)
        return sum(level.h * level.w * level.operands for level in nodes)


def missing(program: Program) -> list[str]:
    """Return what a program has that a card cannot do; nothing if it can run it.

    Where a program is no chain of square convolutions of stride 1 and ReLU, the lanes of a warp are
    the columns of an image.
    """
    found: dict[str, None] = {}
    grids: dict[int, tuple[int, int]] = {}
    for number, node in enumerate(program.nodes, start=1):
        if isinstance(node, Pool):
            grid = program.grids[number]
            if grids.setdefault(program.depths[number], grid) != grid:
                found["pools to different grids in one pass"] = None
        elif isinstance(node.activation, Polynomial):
            found[type(node.activation).__name__] = None
    if not found and not is_chain(program):
        if max(w for _, w in program.grids) > _WARP:
            found[f"such networks on images wider than {_WARP} pixels"] = None
        if max(len(stage.variants) for stage in program.stages) > _MOST_VARIANTS:
            found[f"more than {_MOST_VARIANTS} kinds of slices in one pass"] = None
    return list(found)


def deviation_range(activation: int, dtype: Dtype) -> tuple[float, float]:
    """Return between which standard deviations of a pixel an activation is right.

    Those of `BOUND_TO_UNITS` in true units; others in the engine's.
    """
    least, most = _DEVIATIONS[dtype]
    if activation in (SIN, COS):  # the cosine of nothing is 1
        return (least if activation == SIN else 0.0), _MOST_OF_A_WAVE[dtype]
    if activation == NORM:
        return _LEAST_OF_A_NORM[dtype], most
    return (_LEAST_OF_A_ROOT[dtype] if activation in (RELU, AB_RELU, GAUSSIAN) else least), most


def deviations_behind(level: LoweredLevel, deviations: FloatArray) -> FloatArray:
    """Return standard deviations behind a `Polynomial`, from those before it."""
    square = np.square(deviations)
    table = np.reshape(level.parameters, (level.operands - 2, -1))
    total, power = np.zeros_like(square), np.ones_like(square)
    for row in table:  # c_k^2 = g_k(X)^2 X^(2 k)
        total += np.square(np.polynomial.polynomial.polyval(square, row)) * power
        power = power * square
    return np.sqrt(total)


def is_chain(program: Program) -> bool:
    """Whether nodes are square convolutions of stride 1 that keep the size of images, and ReLUs."""
    return all(
        isinstance(node, Node)
        and node.filter_size is not None
        and node.skip is None
        and node.activation in (None, ReLU())
        and node.source == number - 1
        for number, node in enumerate(program.nodes, start=1)
    )


_ACTIVATIONS: dict[type, int] = {
    type(None): IDENTITY,
    ReLU: RELU,
    ABReLU: AB_RELU,
    Gaussian: GAUSSIAN,
    Erf: ERF,
    GELU: GELU_,
    Sin: SIN,
    Cos: COS,
    LayerNorm: NORM,
    Polynomial: POLYNOMIAL,
}


def _parameters(node: Node) -> tuple[float, ...]:
    match node.activation:
        case ABReLU(a, b):
            return a, b
        case Gaussian(gamma):
            return (gamma,)
        case LayerNorm(eps):
            return (eps,)
        case Polynomial(coefficients):
            return tuple(hermite(coefficients).ravel().tolist())
        case _:
            return ()


def _operands(node: Node) -> int:
    match node.activation:
        case Polynomial(coefficients):  # 1/X, and as many as there are coefficients
            return 2 + len(coefficients)
        case _:
            return 1


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
    numbers = [0, *(number for stage in program.stages for number in stage.levels)]
    level_of = {number: level for level, number in enumerate(numbers)}
    fields: list[Field] = []
    for number in numbers:
        h, w = program.grids[number]
        if number == 0:
            fields.append(Field(h, w))
            continue
        node = program.nodes[number - 1]
        source = level_of[node.source]
        rows, columns = node.windows
        if isinstance(node, Pool):
            common = (h, w, GATHER, source, -1, rows, columns)
            fields.append(Field(*common, diagonal=node.diagonal, weight=node.weight))
            continue
        fields.append(
            Field(
                h,
                w,
                NODE,
                source,
                -1 if node.skip is None else level_of[node.skip],
                rows,
                columns,
                weight=node.weight_variance / node.area,
                bias_variance=node.bias_variance,
                trainable=node.trainable,
                activation=_ACTIVATIONS[type(node.activation)],
                parameters=_parameters(node),
                signed=node.signed,
                operands=_operands(node),
            )
        )
    taps = [(level_of[tap.node], tap.want_sigma, tap.want_theta) for tap in program.taps]
    return lower_fields(fields, _grids(program, level_of), taps, program.input_scale, drift)


def _grids(program: Program, level_of: dict[int, int]) -> list[Grid]:
    """Return the stages, with their slices in the order of the schedules."""
    grids: list[Grid] = []
    last = len(program.stages) - 1
    for depth, stage in enumerate(program.stages):
        first = () if depth else (0,)
        variants = tuple(
            tuple(sorted(level_of[n] for n in (*first, *through))) for through in stage.variants
        )
        before = program.schedules[depth - 1] if depth else None
        after = program.schedules[depth] if depth < last else None
        order = stage.slices[:, :2]
        if after is not None:
            order = after.fine
        elif before is not None:
            order = before.coarse
        variant = {(i, j): v for i, j, v in stage.slices.tolist()}
        slices = np.zeros((len(order), 8), np.int64)
        slices[:, :2], slices[:, 7] = order, 1
        slices[:, 2] = [variant[i, j] for i, j in order.tolist()]
        if before is not None:
            slices[:, 3:6] = np.stack([before.needs, before.slots, before.strip], axis=1)
        if after is not None:
            slices[:, 6], slices[:, 7] = after.strips, after.first
        room = 0 if before is None else before.size
        grids.append(Grid(depth - 1, len(first) + len(stage.levels), variants, slices, room))
    return grids


def depths(program: Program) -> IntArray:
    """Return the slices of a chain with a number of steps in place of the variant.

    Returns
    -------
    ndarray of int64, shape (n_slices, 3)
        di, dj, steps: a slice goes through the first ones.
    """
    assert is_chain(program)
    (stage,) = program.stages
    slices = stage.slices.copy()
    slices[:, 2] = np.array([len(nodes) for nodes in stage.variants])[slices[:, 2]]
    return slices


def lower_fields(
    fields: Sequence[Field],
    grids: Sequence[Grid],
    taps: Sequence[tuple[int, bool, bool]],
    input_scale: float,
    drift: float = 1.0,
) -> Lowered:
    """Return fields in the engines' units.

    Parameters
    ----------
    fields : sequence of Field
    grids : sequence of Grid
        Their levels are those of `fields`, in order.
    taps : sequence of (level, want_sigma, want_theta)
    input_scale : float
        Of the covariance of the inputs.
    drift : float
        See `lower`.
    """
    units = _units(fields, input_scale, drift)
    n = len(fields)
    theta = [False] * n  # there is one
    wanted = [False] * n  # and it is needed
    k_out = [False] * n
    for number, level in enumerate(fields):
        below = [place for place in (level.source, level.skip) if place >= 0]
        theta[number] = level.trainable or any(theta[place] for place in below)
        for place in below:
            k_out[place] = True
    for place, want_sigma, want_theta in taps:
        k_out[place] = k_out[place] or want_sigma
        wanted[place] = wanted[place] or want_theta
    for number in range(n - 1, 0, -1):
        for place in (fields[number].source, fields[number].skip):
            if place >= 0:
                wanted[place] = wanted[place] or wanted[number]
    theta_out = [there and needed for there, needed in zip(theta, wanted, strict=True)]
    rooms = [grid.room for grid in grids for _ in range(grid.n_levels)]
    levels: list[LoweredLevel] = []
    for number, level in enumerate(fields):
        common = (level.kind, level.h, level.w, level.source, level.skip, units.out_scales[number])
        if level.kind == IMAGE:
            levels.append(LoweredLevel(*common))
            continue
        if level.kind == GATHER:
            source, boundary = fields[level.source], level.boundary
            levels.append(
                LoweredLevel(
                    *common,
                    fields=1 + theta_out[number],
                    room=rooms[number],
                    stride_down=level.rows.stride,
                    stride_across=level.columns.stride,
                    down=_runs(boundary.rows, source.h, level.h, level.diagonal),
                    across=_runs(boundary.columns, source.w, level.w, level.diagonal),
                )
            )
            continue
        levels.append(
            LoweredLevel(
                *common,
                rows=level.rows.size,
                columns=level.columns.size,
                top=level.rows.low,
                left=level.columns.low,
                activation=level.activation,
                parameters=level.parameters,
                operands=level.operands,
                signed=level.signed,
                trainable=level.trainable,
                theta_in=theta[level.source] and theta_out[number],
                theta_skip=level.skip >= 0 and theta[level.skip] and theta_out[number],
                k_out=k_out[number],
                theta_out=theta_out[number],
                biased=level.bias_variance > 0,
                skip_scale=units.skip_scales[number],
                unit=units.before[number],
            )
        )
    factors = np.array([units.gains[place] for place, _, _ in taps])
    homogeneous = not any(level.activation in BOUND_TO_UNITS for level in fields)
    places = tuple(place for place, _, _ in taps)
    return Lowered(tuple(levels), tuple(grids), units.biases, places, factors, homogeneous)


def _runs(window: Window, fine: int, coarse: int, diagonal: bool) -> NDArray[np.int32]:
    """Return the entries that each slice adds to coarse ones along one axis."""
    rows = [
        (d, run.coarse, run.first, run.length)
        for d in range(1 - fine, fine)
        for run in window.targets(d, coarse, diagonal=diagonal)
    ]
    return np.array(rows, np.int32).reshape(-1, 4)


@dataclass(frozen=True, eq=False)
class _Units:
    """See `Lowered`. The true fields are ``gains[level]`` times the engine's."""

    out_scales: list[float]
    skip_scales: list[float]
    before: list[float]  # true sigma of a node is this times the engine's
    biases: FloatArray  # beta
    gains: list[float]


def _units(fields: Sequence[Field], input_scale: float, drift: float) -> _Units:
    n = len(fields)
    out_scales = [1.0] * n
    skip_scales, before, gains = [0.0] * n, [1.0] * n, [1.0] * n
    gains[0] = input_scale
    biases: list[float] = []
    decided = [level.kind == GATHER for level in fields]  # what has gathered is not scaled
    # A constant image, to choose the scales by. Rounding is no matter here, they are powers of two.
    images: list[FloatArray] = [np.ones((fields[0].h, fields[0].w))]
    scale = 0.0

    def decide(
        place: int, largest: float, weight: float, *, true: bool = False, least: float = 0.0
    ) -> None:
        """Choose the scale of a level, by the first that reads it: in true units, if it must know.

        What that one makes of it has at least a gain, that of what it is added to.
        """
        nonlocal scale
        if decided[place]:
            return
        decided[place] = True
        if true:
            scale = 2.0 ** round(math.log2(gains[place] * weight))
        elif not 1 / drift < largest * scale < drift:
            scale = 2.0 ** -round(math.log2(largest))
        weight = gains[place] * weight
        if weight / scale < least:
            scale = 2.0 ** math.floor(math.log2(weight / least))
        gain = min(max(weight / scale, 1e-280), 1e280)
        if gain != weight / scale:  # leave to the field what the gain cannot hold
            scale = min(max(weight / gain, 1e-300), 1e300)
        out_scales[place] = scale
        gains[place] /= scale  # the field is stored times `scale`
        images[place] = images[place] * scale

    for number, level in enumerate(fields):
        if level.kind == IMAGE:
            continue
        source = level.source
        if level.kind == GATHER:
            summed = level.rows.size * level.columns.size
            if not level.diagonal:
                summed = summed**2
            decide(source, float(images[source].max()) * summed, 1.0)
            gains[number] = gains[source] * level.weight
            images.append(np.full((level.h, level.w), float(images[source].max()) * summed))
            continue
        true, least = level.activation in BOUND_TO_UNITS, 0.0
        if level.skip >= 0:
            decide(level.skip, float(images[level.skip].max()), 1.0)
            least = gains[level.skip] / _STRONGER
        largest = float(_box(images[source], level).max())
        decide(source, largest, level.weight, true=true, least=least)
        image = _box(images[source], level)
        gain = gains[source] * level.weight
        if level.skip >= 0:
            skip_scales[number] = gains[level.skip] / gain
            image = image + skip_scales[number] * images[level.skip]
        before[number] = gain
        biases.append(math.sqrt(level.bias_variance / gain))
        if level.activation == RELU:  # E[s(u) s(v)] = m kappa1 / 2
            gain /= 2
        elif level.activation == AB_RELU:
            a, b = level.parameters
            gain *= (a * a + b * b) / 2
        elif level.activation in BOUND_TO_UNITS:
            gain, image = 1.0, np.ones_like(image)
        gains[number] = gain
        images.append(image)
    return _Units(out_scales, skip_scales, before, np.array(biases, float), gains)


def _box(image: FloatArray, level: Field) -> FloatArray:
    """Return the box sums from cumulative sums: their cost does not grow with the filter."""
    h, w = image.shape
    top, left = (
        np.arange(n) - axis.low for n, axis in ((level.h, level.rows), (level.w, level.columns))
    )
    rows, columns = np.minimum(top + level.rows.size, h), np.minimum(left + level.columns.size, w)
    top, left = np.maximum(0, top), np.maximum(0, left)
    total = np.pad(image.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return (
        total[np.ix_(rows, columns)]
        - total[np.ix_(top, columns)]
        - total[np.ix_(rows, left)]
        + total[np.ix_(top, left)]
    )
