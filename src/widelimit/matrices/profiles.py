"""One side of a matrix: its samples, and the profiles of some blocks of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.backends.base import Backend, Dtype, Pairs, Profile
from widelimit.matrices.threads import Threads
from widelimit.program import Program

__all__ = ["Block", "Samples", "Side", "block_bytes", "quiet"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Validated samples of one side.

    Parameters
    ----------
    values : ndarray
        ``(n, h, w, c)`` or ``(n, d)``, any real dtype; converted to float64 a block at a time.
    identity : ndarray of int64, shape (n,)
        Equal numbers mean identical samples, on both sides.
    """

    values: NDArray[Any]
    identity: IntArray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class Block:
    """Samples of one side of a tile, with what every tile needs of them."""

    profile: Profile
    identity: IntArray
    variances: FloatArray | None  # (n_taps, n): k(x, x) at the taps, if a head has an activation


class Side:
    """The samples of one side of a matrix in blocks, of which some keep their profiles.

    Parameters
    ----------
    samples : Samples
    programs, backend, dtype
        As for `fill`.
    size : int
        Samples of a block: the side of a tile.
    held : int
        Blocks whose profiles are held: those that were wanted last.
    """

    def __init__(
        self,
        samples: Samples,
        programs: Sequence[tuple[Program, Sequence[int]]],
        backend: Backend,
        dtype: Dtype,
        size: int,
        held: int,
    ) -> None:
        self._samples, self._programs, self._backend = samples, programs, backend
        self._dtype: Dtype = dtype
        self._size, self._held = size, held
        self._blocks: OrderedDict[int, list[Block]] = OrderedDict()
        self._lock = threading.Lock()

    def block(self, index: int, threads: Threads) -> list[Block]:
        """Return one block, as each program sees it. Any thread may call."""
        with self._lock:
            if index in self._blocks:
                self._blocks.move_to_end(index)
                return self._blocks[index]
            while len(self._blocks) >= self._held:
                self._blocks.popitem(last=False)
            part = slice(index * self._size, (index + 1) * self._size)
            values = np.ascontiguousarray(self._samples.values[part], dtype=np.float64)
            identity = np.ascontiguousarray(self._samples.identity[part])
            made = [self._make(program, values, identity, threads) for program, _ in self._programs]
            self._blocks[index] = made
            return made

    def _make(
        self, program: Program, values: FloatArray, identity: IntArray, threads: Threads
    ) -> Block:
        if program.is_dense:
            flat = values.reshape(len(values), -1)
            profile: Profile = flat  # pyright: ignore[reportAssignmentType]
            variances = program.input_scale * np.einsum("ij,ij->i", flat, flat)[None]
            return Block(profile, identity, variances)
        with quiet():
            profile = self._backend.profile(program, values, identity, self._dtype)
        variances = None
        if any(readout.needs_variance for readout in program.readouts):
            variances = self._variances(program, profile, threads)
        return Block(profile, identity, variances)

    def _variances(self, program: Program, profile: Profile, threads: Threads) -> FloatArray:
        variances = np.empty((len(program.taps), len(profile)))

        def compute(part: IntArray) -> None:
            itself = Pairs(part, part, pairwise=True)
            with quiet():
                sums = self._backend.sums(program, profile, profile, itself, threads.cancel)
            variances[:, part] = sums[:, 0]

        lanes = self._backend.lanes(self._dtype)
        parts = np.split(np.arange(len(profile)), range(lanes, len(profile), lanes))
        for _ in threads.run(lambda part=part: compute(part) for part in parts):
            pass
        return variances


def block_bytes(
    programs: Sequence[tuple[Program, Sequence[int]]], backend: Backend, dtype: Dtype, n: int
) -> int:
    """Return the memory of the profiles, for all programs, of n samples."""
    return n * sum(
        8 * program.shape[0] if program.is_dense else backend.profile_bytes(program, dtype)
        for program, _ in programs
    )


def quiet() -> np.errstate:
    """No warning of an overflow: a range that is left is refused with the result."""
    return np.errstate(over="ignore", invalid="ignore")
