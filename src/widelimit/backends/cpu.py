"""The compiled slice engine, for the best instruction set that the processor has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit._core import _engine
from widelimit.arrays import FloatArray
from widelimit.backends.base import Cancelled, Dtype, Entries, Pairs, Profile
from widelimit.backends.cut import lane_groups
from widelimit.program import Program

__all__ = ["ISA_VARIABLE", "CpuBackend", "instruction_sets"]

ISA_VARIABLE = "WIDELIMIT_ISA"  # forces one instruction set

_PROFILE_CHUNK = 32  # images at a time: between two chunks Python takes notice of Ctrl-C


def instruction_sets() -> dict[str, bool]:
    """Return the compiled instruction sets, best first, and whether this processor has each."""
    return {name: supported for name, supported, *_ in _engine.instruction_sets()}


def chosen_instruction_set() -> str:
    """Return the instruction set in use: the best one, or what ``WIDELIMIT_ISA`` names.

    Raises
    ------
    ValueError
        If the variable names one that is unknown here or that the processor lacks.
    """
    available = instruction_sets()
    forced = os.environ.get(ISA_VARIABLE)
    if not forced:
        return next(name for name, supported in available.items() if supported)
    if not available.get(forced, False):
        usable = ", ".join(name for name, supported in available.items() if supported)
        raise ValueError(f"{ISA_VARIABLE} must name one of {usable}, got {forced!r}: unset it")
    return forced


@dataclass(frozen=True, eq=False)
class _Units:
    """The engine's units, in which no number of a pass leaves the range of float32.

    Without biases a kernel is homogeneous, so gains are taken out: the engine computes
    ``Sigma = box(F) + beta^2``, ``F = scale * m kappa1`` with powers of two for scales that keep a
    constant image constant. The true fields are ``gain[layer]`` times the engine's.
    """

    in_scale: float
    out_scales: tuple[float, ...]
    biases: FloatArray  # beta
    gains: tuple[float, ...]  # for each layer, the input (0) included


def _units(program: Program) -> _Units:
    h, w, _ = program.shape
    gain = program.input_scale
    gains: list[float] = [gain]
    biases: list[float] = []
    scales: list[float] = []
    image = np.ones((h, w))  # a constant image, to choose the scales by
    for step in program.steps:
        r = step.filter_size // 2
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
        scale = 2.0 ** -round(math.log2(image.max()))
        image = image * scale
        weight = gain * (step.weight_variance / step.filter_size**2)
        gain = min(max(weight / scale, 1e-280), 1e280)
        if gain != weight / scale:  # leave to the field what the gain cannot hold
            scale = min(max(weight / gain, 1e-300), 1e300)
        scales.append(scale)
        gains[-1] /= scale  # the field is stored times `scale`
        biases.append(math.sqrt(step.bias_variance / gain))
        if step.relu:
            gain /= 2  # E[s(u) s(v)] = m kappa1 / 2
        gains.append(gain)
    in_scale, *out_scales = [*scales, 1.0]
    return _Units(in_scale, tuple(out_scales), np.array(biases, float), tuple(gains))


@dataclass(frozen=True, eq=False)
class _Compiled:
    program: Any  # the engine's
    units: _Units
    factors: FloatArray  # (n_taps,): from the engine's sums to true sums


@lru_cache(maxsize=64)
def _compile(program: Program) -> _Compiled:
    h, w, c = program.shape
    units = _units(program)
    wanted_below = [
        max((tap.layer for tap in program.taps if tap.want_theta), default=-1),
        max(tap.layer for tap in program.taps),
    ]
    steps: list[tuple[Any, ...]] = []
    theta = False
    for layer, (step, scale) in enumerate(zip(program.steps, units.out_scales, strict=True), 1):
        enters, theta = theta, theta or step.trainable
        here = any(tap.layer == layer and tap.want_sigma for tap in program.taps)
        k_out = layer < wanted_below[1] or here
        theta_out = theta and layer <= wanted_below[0]
        biased = step.bias_variance > 0
        needed = (k_out, theta_out, biased, scale)
        flags = (step.relu, step.signed, step.trainable, enters and theta_out)
        steps.append((step.filter_size, *flags, *needed))
    taps = [
        (tap.layer, tap.want_sigma, tap.want_theta, tap.weights(h), tap.weights(w))
        for tap in program.taps
    ]
    # Of d and -d, which are added before they join the total, one is listed.
    slices = sorted((*d, depth) for d, depth in program.displacements.items() if d >= (0, 0))
    geometry = np.array(slices, np.int32)
    return _Compiled(
        _engine.Program(h, w, c, units.in_scale, steps, taps, geometry),
        units,
        np.array([units.gains[tap.layer] for tap in program.taps]),
    )


@dataclass(frozen=True, eq=False)
class _Profile:
    batch: Any
    scale: FloatArray  # (n,): images were divided by it
    dtype: Dtype

    def __len__(self) -> int:
        return len(self.scale)


class CpuBackend:
    """The compiled engine. One object holds no state but the name of its instruction set.

    Parameters
    ----------
    isa : str or None
        One of `instruction_sets`; None takes `chosen_instruction_set`.
    """

    name = "cpu"

    def __init__(self, isa: str | None = None) -> None:
        self.isa = chosen_instruction_set() if isa is None else isa
        self._lanes = {name: lanes for name, _, *lanes in _engine.instruction_sets()}[self.isa]

    def lanes(self, dtype: Dtype) -> int:
        """Return the numbers in one vector register."""
        return self._lanes[0 if dtype == "float32" else 1]

    def cut(self, program: Program, dtype: Dtype, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
        """Cut into lane groups; see `Backend.cut`."""
        return lane_groups(program, self.lanes(dtype), entries)

    def profile_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of one image and its profile."""
        h, w, c = program.shape
        return (4 if dtype == "float32" else 8) * h * w * (c + len(program.steps))

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes that the engine allocates for one call."""
        single = dtype == "float32"
        return _engine.workspace_bytes(self.isa, _compile(program).program, single, True)

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Compute profiles in float64 and store them, scaled, in `dtype`."""
        compiled = _compile(program)
        n, h, w, c = images.shape
        shapes = ((n, h, w, c), (n, len(program.steps), h, w), (n, len(program.steps)))
        stored = [np.empty(shape, dtype) for shape in shapes]
        scale, diagonal = np.empty(n), np.empty((n, len(program.taps), 2))
        single = dtype == "float32"
        fill = _engine.profile32 if single else _engine.profile64
        for start in range(0, n, _PROFILE_CHUNK):
            part = slice(start, start + _PROFILE_CHUNK)
            outputs = (array[part] for array in (*stored, scale, diagonal))
            fill(compiled.program, images[part], compiled.units.biases, *outputs)
        make = _engine.Batch32 if single else _engine.Batch64
        return _Profile(make(compiled.program, *stored, identity, diagonal), scale, dtype)

    def sums(
        self,
        program: Program,
        left: Profile,
        right: Profile,
        pairs: Pairs,
        cancel: NDArray[np.int32],
    ) -> FloatArray:
        """Run the engine on lane groups of the columns; see `Backend.sums`."""
        assert isinstance(left, _Profile)
        assert isinstance(right, _Profile)
        compiled = _compile(program)
        result = np.empty((len(program.taps), 2, *pairs.shape))
        run = _engine.run32 if left.dtype == "float32" else _engine.run64
        rows, columns = pairs.rows, pairs.columns
        arguments = (rows, columns, pairs.pairwise, result, cancel)
        run(self.isa, compiled.program, left.batch, right.batch, *arguments)
        if cancel[0]:
            raise Cancelled
        if not pairs.pairwise:
            rows, columns = rows[:, None], columns[None, :]
        # One product of the two scales first: k(x, z) and k(z, x) must agree to the last bit.
        factors = compiled.factors.reshape(-1, *([1] * (result.ndim - 1)))
        result *= factors * (left.scale[rows] * right.scale[columns])
        return result
