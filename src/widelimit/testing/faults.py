"""Backends that are wrong in a known way, to show that a check can fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import Backend, Dtype, Entries, Pairs, Profile
from widelimit.program import Node, Program, Tap

__all__ = ["Fault", "FaultyBackend"]

Fault: TypeAlias = Literal[
    "perturbed entry",
    "perturbed weight",
    "transposed tile",
    "shifted displacement",
    "dropped layer",
    "frozen layer",
    "lost sign",
    "forgotten identity",
    "exchanged fields",
    "shuffled pairs",
    "rounded to float32",
    "depends on the tile",
    "depends on the batch",
    "depends on the call",
    "asymmetric",
    "0/0",
    "deaf to cancel",
    "undeclared memory",
]


@dataclass(frozen=True, slots=True)
class _ShiftedTap(Tap):
    """Reads the slice next to the one it should read."""

    def weights(self, extent: int) -> FloatArray:
        shifted = np.roll(Tap.weights(self, extent), 1, axis=0)
        d = np.abs(np.arange(1 - extent, extent))[:, None]
        return np.where(np.arange(extent) + d < extent, shifted, 0.0)


class FaultyBackend:
    """A backend with one fault, to show that a check can fail.

    Parameters
    ----------
    backend : Backend
        A correct one.
    fault : Fault
        What goes wrong: one entry of a tile or the last weight off by 1e-5, a tile transposed, the
        slice beside the right one read, the last layer missing or not trained, a first covariance
        taken for positive ("lost sign"), identical images not noticed, K and Theta exchanged,
        single pairs in the wrong order, float32 for float64, last bits that depend on the other
        entries of a tile, on the images profiled before, on the calls made before, or on the order
        of the arguments, NaN for 0, `cancel` not looked at, memory of 0 bytes declared.

    Raises
    ------
    ValueError
        If there is no such fault.
    """

    name = "faulty"

    def __init__(self, backend: Backend, fault: Fault) -> None:
        if fault not in get_args(Fault):
            raise ValueError(f"fault must be one of {', '.join(get_args(Fault))}, got {fault!r}")
        self.backend = backend
        self.fault = fault
        self._strangers = 0
        self._calls = 0

    def lanes(self, dtype: Dtype) -> int:
        """Return what the correct backend returns."""
        return self.backend.lanes(dtype)

    def cut(self, program: Program, dtype: Dtype, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
        """Cut as the correct backend does."""
        return self.backend.cut(program, dtype, entries)

    def prepare(self, program: Program, dtype: Dtype) -> None:
        """Do what the correct backend does."""
        self.backend.prepare(program, dtype)

    def profile_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return what the correct backend returns, or 0."""
        if self.fault == "undeclared memory":
            return 0
        return self.backend.profile_bytes(program, dtype)

    def profile_room(self) -> int:
        """Return what the correct backend returns."""
        return self.backend.profile_room()

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return what the correct backend returns."""
        return self.backend.scratch_bytes(program, dtype)

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Compute profiles, of the wrong program if that is the fault."""
        if self.fault == "forgotten identity":
            identity = np.arange(self._strangers, self._strangers + len(images))
            self._strangers += len(images)
        if self.fault == "depends on the batch":
            images = images * (1 + 1e-6 * np.arange(len(images)))[:, None, None, None]
        return self.backend.profile(self._program(program), images, identity, dtype)

    def sums(
        self,
        program: Program,
        left: Profile,
        right: Profile,
        tile: Pairs,
        cancel: NDArray[np.int32],
    ) -> FloatArray:
        """Compute a tile, wrongly."""
        if self.fault == "deaf to cancel":
            cancel = np.zeros(1, np.int32)
        sums = self.backend.sums(self._program(program), left, right, tile, cancel)
        match self.fault:
            case "perturbed entry":
                sums.reshape(*sums.shape[:2], -1)[:, :, -1] *= 1 + 1e-5
            case "transposed tile" if not tile.pairwise:
                n = min(tile.shape)
                sums[:, :, :n, :n] = sums[:, :, :n, :n].swapaxes(-1, -2).copy()
            case "exchanged fields":
                sums = sums[:, ::-1].copy()
            case "shuffled pairs" if tile.pairwise:
                sums = sums[:, :, ::-1].copy()
            case "rounded to float32":
                sums = sums.astype(np.float32).astype(np.float64)
            case "depends on the tile":
                sums[..., 1::2] = np.nextafter(sums[..., 1::2], np.inf)
            case "depends on the call":
                self._calls += 1
                sums = sums * (1 + self._calls * 2.0**-24)
            case "asymmetric":
                rows = tile.rows if tile.pairwise else tile.rows[:, None]
                below = rows > tile.columns
                sums = np.where(below, np.nextafter(sums, np.inf), sums)
            case "0/0":
                sums[sums == 0] = np.nan
            case _:
                pass
        return sums

    def _program(self, program: Program) -> Program:
        nodes, taps = program.nodes, program.taps
        if self.fault == "shifted displacement":
            moved = [_ShiftedTap(t.node, t.pooling, t.want_sigma, t.want_theta) for t in taps]
            return replace(program, taps=tuple(moved))
        if not nodes:
            return program
        *before, last = nodes
        assert isinstance(last, Node)  # of the networks that backends are tried on
        match self.fault:
            case "perturbed weight":
                last = replace(last, weight_variance=last.weight_variance * (1 + 1e-5))
                return replace(program, nodes=(*before, last))
            case "frozen layer":
                return replace(program, nodes=(*before, replace(last, trainable=False)))
            case "dropped layer":
                earlier = [replace(t, node=min(t.node, len(before))) for t in taps]
                return replace(program, nodes=tuple(before), taps=tuple(earlier))
            case "lost sign":
                unsigned = [replace(n, signed=False) if isinstance(n, Node) else n for n in nodes]
                return replace(program, nodes=tuple(unsigned))
            case _:
                return program
