"""The compiled slice engine, for the best instruction set that the processor has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit._core import _engine
from widelimit.arrays import FloatArray
from widelimit.backends.base import PROFILE_BYTES, Cancelled, Dtype, Entries, Pairs, Profile
from widelimit.backends.cut import lane_groups
from widelimit.backends.lowered import Lowered, depths, lower
from widelimit.program import Program

__all__ = [
    "ISA_VARIABLE",
    "CpuBackend",
    "ProfileArrays",
    "instruction_sets",
    "profile_arrays",
]

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
class _Compiled:
    program: Any  # the engine's
    lowered: Lowered


@lru_cache(maxsize=64)
def _compile(program: Program, drift: float = 1.0) -> _Compiled:
    h, w, c = program.shape
    lowered = lower(program, drift)
    steps = [astuple(step) for step in lowered.steps]
    taps = [
        (tap.node, tap.want_sigma, tap.want_theta, tap.weights(h), tap.weights(w))
        for tap in program.taps
    ]
    geometry = depths(program).astype(np.int32)
    made = _engine.Program(h, w, c, lowered.in_scale, steps, taps, geometry)
    return _Compiled(made, lowered)


@dataclass(frozen=True, eq=False)
class ProfileArrays:
    """Images of a batch and what they contribute to every pair, divided by `scale`.

    Parameters
    ----------
    images : ndarray of shape (n, h, w, c)
    profiles : ndarray of shape (n, n_nodes, h, w)
        X of each activation.
    biases : ndarray of shape (n, n_nodes)
    scale : ndarray of float64, shape (n,)
        A power of two for each image.
    diagonal : ndarray of float64, shape (n, n_taps, 2)
        What the slice d = 0 adds to the sums of ``k(x, x)``.
    """

    images: NDArray[Any]
    profiles: NDArray[Any]
    biases: NDArray[Any]
    scale: FloatArray
    diagonal: FloatArray


def profile_arrays(
    program: Program, images: FloatArray, dtype: Dtype, drift: float = 1.0
) -> ProfileArrays:
    """Compute profiles in float64; return them in `dtype`, for any engine of ``lower(...)``."""
    compiled = _compile(program, drift)
    n, h, w, c = images.shape
    shapes = ((n, h, w, c), (n, len(program.nodes), h, w), (n, len(program.nodes)))
    stored = [np.empty(shape, dtype) for shape in shapes]
    scale, diagonal = np.empty(n), np.empty((n, len(program.taps), 2))
    fill = _engine.profile32 if dtype == "float32" else _engine.profile64
    for start in range(0, n, _PROFILE_CHUNK):
        part = slice(start, start + _PROFILE_CHUNK)
        outputs = (array[part] for array in (*stored, scale, diagonal))
        fill(compiled.program, images[part], compiled.lowered.biases, *outputs)
    return ProfileArrays(stored[0], stored[1], stored[2], scale, diagonal)


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
        return (4 if dtype == "float32" else 8) * h * w * (c + len(program.nodes))

    def profile_room(self) -> int:
        """Return what is little beside a matrix in memory."""
        return PROFILE_BYTES

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes that the engine allocates for one call."""
        single = dtype == "float32"
        return _engine.workspace_bytes(self.isa, _compile(program).program, single, True)

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Compute profiles in float64 and store them, scaled, in `dtype`."""
        made = profile_arrays(program, images, dtype)
        make = _engine.Batch32 if dtype == "float32" else _engine.Batch64
        arrays = (made.images, made.profiles, made.biases, identity, made.diagonal)
        compiled = _compile(program)
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
        rows, columns = pairs.rows, pairs.columns
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
