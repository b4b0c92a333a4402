"""The compiled slice engine, for the best instruction set that the processor has."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit._core import _engine
from widelimit.arrays import FloatArray
from widelimit.backends.base import (
    PROFILE_BYTES,
    Cancelled,
    Dtype,
    Entries,
    OutsideRange,
    Pairs,
    Profile,
)
from widelimit.backends.cut import lane_groups
from widelimit.backends.lowered import (
    BOUND_TO_UNITS,
    COS,
    IDENTITY,
    NODE,
    NORM,
    POLYNOMIAL,
    Lowered,
    LoweredLevel,
    deviation_range,
    deviations_behind,
    lower,
)
from widelimit.layers import Flatten
from widelimit.program import Node, Program, Tap

__all__ = [
    "ISA_VARIABLE",
    "CpuBackend",
    "ProfileArrays",
    "instruction_sets",
    "own_profiles",
    "profile_arrays",
]

ISA_VARIABLE = "WIDELIMIT_ISA"  # forces one instruction set

_LARGEST_INVERSE = {"float32": 1e18, "float64": 1e145}
_LARGEST_PROFILE = {"float32": 2.0**28, "float64": 1.0}  # and less than twice that: profile.hpp
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
    usable = [name for name, supported in available.items() if supported]
    if not usable:
        raise ValueError(
            f"this build has code for {', '.join(available)}, and this processor has none of them: "
            "build it again here"
        )
    if not forced:
        return usable[0]
    if not available.get(forced, False):
        names = ", ".join(usable)
        raise ValueError(f"{ISA_VARIABLE} must name one of {names}, got {forced!r}: unset it")
    return forced


@dataclass(frozen=True, eq=False)
class _Compiled:
    program: Any  # the engine's
    lowered: Lowered


@lru_cache(maxsize=64)
def _compile(program: Program, drift: float = 1.0) -> _Compiled:
    lowered = lower(program, drift)
    taps = [
        (
            level,
            tap.want_sigma,
            tap.want_theta,
            tap.weights(lowered.levels[level].h),
            tap.weights(lowered.levels[level].w),
        )
        for tap, level in zip(program.taps, lowered.taps, strict=True)
    ]
    h, w, c = program.shape
    arguments = (list(lowered.levels), list(lowered.stages), taps, lowered.is_chain)
    return _Compiled(_engine.Program(h, w, c, *arguments), lowered)


@lru_cache(maxsize=64)
def _of_itself(program: Program) -> _Compiled:
    """Return the program of the same nodes that computes no more than the variance of each."""
    read = {node.source for node in program.nodes}
    read |= {node.skip for node in program.nodes if isinstance(node, Node) and node.skip}
    last = [number for number in range(1, len(program.nodes) + 1) if number not in read]
    taps = tuple(Tap(number, Flatten(), want_sigma=True, want_theta=False) for number in last)
    return _compile(replace(program, taps=taps))


@dataclass(frozen=True, eq=False)
class ProfileArrays:
    """Images of a batch and what they contribute to every pair, divided by `scale`.

    Parameters
    ----------
    images : ndarray of shape (n, h, w, c)
    profiles : ndarray of shape (n, n_nodes, h, w), or (n, numbers of all grids)
        X of each node.
    biases : ndarray of shape (n, n_nodes)
    scale : ndarray of float64, shape (n,)
        A power of two for each image.
    diagonal : ndarray of float64, shape (n, n_taps, 2)
        Of a chain: what the slice d = 0 adds to the sums of ``k(x, x)``.
    """

    images: NDArray[Any]
    profiles: NDArray[Any]
    biases: NDArray[Any]
    scale: FloatArray
    diagonal: FloatArray


def profile_arrays(
    program: Program, images: FloatArray, dtype: Dtype, drift: float = 1.0
) -> ProfileArrays:
    """Compute profiles of a chain in float64; return them in `dtype`, for either engine."""
    compiled = _compile(program, drift)
    n = len(images)
    made = _empty(compiled, images, dtype)
    fill = _engine.profile32 if dtype == "float32" else _engine.profile64
    for start in range(0, n, _PROFILE_CHUNK):
        part = slice(start, start + _PROFILE_CHUNK)
        stored = (made.images, made.profiles, made.biases, made.scale, made.diagonal)
        outputs = (array[part] for array in stored)
        fill(compiled.program, images[part], compiled.lowered.biases, *outputs)
        _check_units(compiled.lowered, made.profiles[part], dtype, start)
    h, w = images.shape[1:3]
    return replace(made, profiles=made.profiles.reshape(n, -1, h, w))


def _empty(compiled: _Compiled, images: FloatArray, dtype: Dtype) -> ProfileArrays:
    n, lowered = len(images), compiled.lowered
    return ProfileArrays(
        np.empty(images.shape, dtype),
        np.empty((n, lowered.n_profile), dtype),
        np.empty((n, len(lowered.biases)), dtype),
        np.ones(n),
        np.zeros((n, len(lowered.taps), 2)),
    )


def own_profiles(
    isa: str, program: Program, images: FloatArray, dtype: Dtype, first: int = 0
) -> ProfileArrays:
    """Compute profiles by the engine on pairs of images with themselves, in float64.

    Where K of a multiple of an image is that multiple of K, images are divided by powers of two,
    so that the largest profile is as large as _core/profile.hpp says. `first` is the number of the
    first image in its batch.

    Raises
    ------
    OutsideRange
        If the numbers of an image would leave what the engine can hold in `dtype`.
    """
    compiled, own = _compile(program), _of_itself(program)
    made, cancel = _empty(compiled, images, dtype), np.zeros(1, np.int32)
    beta = compiled.lowered.biases
    for start in range(0, len(images), _PROFILE_CHUNK):
        part = np.s_[start : start + _PROFILE_CHUNK]
        x = np.ascontiguousarray(images[part])
        scale = np.ones(len(x))
        if compiled.lowered.homogeneous:
            brightest = np.abs(x).max(axis=(1, 2, 3), initial=0)
            scale = _power_of_two(np.maximum(brightest, beta.max(initial=0)))
        x = x / scale[:, None, None, None]
        biases = beta / scale[:, None]
        profiles = np.empty((len(x), compiled.lowered.n_profile))
        _engine.self_profiles(isa, own.program, x, biases, profiles, cancel)
        if compiled.lowered.homogeneous:
            largest = np.sqrt(np.square(x).sum(axis=3).max(axis=(1, 2), initial=0))
            unit = _power_of_two(np.maximum(largest, profiles.max(axis=1, initial=0)))
            unit /= _LARGEST_PROFILE[dtype]
            x /= unit[:, None, None, None]
            biases /= unit[:, None]
            profiles /= unit[:, None]
            scale *= unit
            _check_units(compiled.lowered, profiles, dtype, first + start)
        else:
            brightest = np.abs(x).max(axis=(1, 2, 3), initial=0)
            least, most = deviation_range(IDENTITY, dtype)
            _check_range(brightest, np.minimum(brightest, most), (least, most), first + start)
            _check_deviations(compiled.lowered, profiles, dtype, first + start)
            _bound_inverses(compiled.lowered, profiles, dtype)
        made.images[part], made.profiles[part], made.biases[part] = x, profiles, biases
        made.scale[part] = scale
    return made


def _nodes(lowered: Lowered, profiles: FloatArray) -> Generator[tuple[LoweredLevel, FloatArray]]:
    """Yield each node with its part of profiles, (n, operands, pixels)."""
    place = 0
    for level in lowered.levels:
        if level.kind == NODE:
            size = level.operands * level.h * level.w
            part = profiles[:, place : place + size]
            yield level, part.reshape(len(part), level.operands, -1)
            place += size


def _bound_inverses(lowered: Lowered, profiles: FloatArray, dtype: Dtype) -> None:
    """Make what is 1/X for a `Polynomial` a number of which two can be multiplied in `dtype`."""
    for level, operands in _nodes(lowered, profiles):
        if level.activation == POLYNOMIAL:
            np.minimum(operands[:, 1], _LARGEST_INVERSE[dtype], out=operands[:, 1])


def _check_deviations(lowered: Lowered, profiles: FloatArray, dtype: Dtype, start: int) -> None:
    """Refuse images for which a number of the engine leaves the range of `dtype`, or its accuracy.

    Behind an activation that is not homogeneous fields have units of their own, whatever the image.
    """
    for level, operands in _nodes(lowered, profiles):
        own = operands[:, 0]
        brightest = own.max(axis=1)
        limits = deviation_range(level.activation, dtype)
        if level.activation not in BOUND_TO_UNITS:
            _check_range(brightest, brightest, limits, start)
            continue
        if level.activation != COS:
            _check_range(brightest, brightest, deviation_range(IDENTITY, dtype), start)
        deviations = own * np.sqrt(level.unit)
        largest = smallest = deviations.max(axis=1)
        if level.activation == NORM:  # each pixel is as large as any other after it
            deviations = np.sqrt(np.square(deviations) + level.parameters[0]) * (deviations > 0)
            largest = deviations.max(axis=1)
            smallest = np.where(deviations > 0, deviations, np.inf).min(axis=1)
        _check_range(smallest, largest, limits, start)
        if level.activation == POLYNOMIAL:
            behind = deviations_behind(level, deviations).max(axis=1)
            _check_range(behind, behind, limits, start)


def _check_units(lowered: Lowered, profiles: FloatArray, dtype: Dtype, start: int) -> None:
    """Refuse images of which a node has nothing left where another one has the largest numbers.

    One power of two serves all nodes of a pass: one may be stronger than another, in networks that
    are computed together, or in branches of one, by more than a number has room for.
    """
    for level, operands in _nodes(lowered, profiles):
        share = operands[:, 0].max(axis=1).astype(np.float64) / _LARGEST_PROFILE[dtype]
        least = deviation_range(level.activation, dtype)[0] / _LARGEST_PROFILE[dtype]
        _check_range(share, share, (least, np.inf), start)


def _check_range(
    smallest: FloatArray, largest: FloatArray, limits: tuple[float, float], start: int
) -> None:
    """Raise OutsideRange for the first image of which one is, unless it is black."""
    least, most = limits
    outside = (largest > 0) & ((smallest < least) | (largest > most))
    if outside.any():
        first = int(np.argmax(outside))
        got = largest[first] if largest[first] > most else smallest[first]
        raise OutsideRange(start + first, float(got), least, most)


def _power_of_two(values: FloatArray) -> FloatArray:
    """Return the powers of two at or below values, 1 for 0."""
    return np.where(values > 0, np.ldexp(0.5, np.frexp(values)[1]), 1.0)


@dataclass(frozen=True, eq=False)
class _Profile:
    compiled: _Compiled  # looking it up for each call would cost more than handing out the call
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

    def prepare(self, program: Program, dtype: Dtype) -> None:
        """Do nothing: no call waits."""

    def profile_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of one image and its profile."""
        h, w, c = program.shape
        numbers = h * w * c + _compile(program).lowered.n_profile
        return (4 if dtype == "float32" else 8) * numbers

    def profile_room(self) -> int:
        """Return what is little beside a matrix in memory."""
        return PROFILE_BYTES

    def scratch_bytes(self, program: Program, dtype: Dtype, *, pairwise: bool = True) -> int:
        """Return the bytes that the engine allocates for one call: most for single pairs."""
        single = dtype == "float32"
        return _engine.workspace_bytes(self.isa, _compile(program).program, single, pairwise)

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Compute profiles in float64 and store them, scaled, in `dtype`."""
        compiled = _compile(program)
        if compiled.lowered.is_chain:
            made = profile_arrays(program, images, dtype)
        else:
            made = own_profiles(self.isa, program, images, dtype)
        make = _engine.Batch32 if dtype == "float32" else _engine.Batch64
        arrays = (made.images, made.profiles, made.biases, identity, made.diagonal)
        return _Profile(compiled, make(compiled.program, *arrays), made.scale, dtype)

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
        compiled = left.compiled
        result = np.empty((len(program.taps), 2, *pairs.shape))
        run = _engine.run32 if left.dtype == "float32" else _engine.run64
        rows, columns = map(np.ascontiguousarray, (pairs.rows, pairs.columns))
        arguments = (rows, columns, pairs.pairwise, result, cancel)
        run(self.isa, compiled.program, left.batch, right.batch, *arguments)
        if cancel[0]:
            raise Cancelled
        if not pairs.pairwise:
            rows, columns = rows[:, None], columns[None, :]
        # One product of the two scales first: k(x, z) and k(z, x) must agree to the last bit.
        factors = compiled.lowered.factors.reshape(-1, *([1] * (result.ndim - 1)))
        result *= factors * (left.scale[rows] * right.scale[columns])
        return result
