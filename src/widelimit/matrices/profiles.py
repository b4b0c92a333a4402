"""One side of a matrix: its samples, and the profiles of some blocks of them."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from widelimit.arrays import FloatArray, IntArray, Rows
from widelimit.backends.base import Dtype, OutsideRange, Pairs, Profile
from widelimit.backends.lowered import SIN, deviation_range
from widelimit.layers import Cos, Sin
from widelimit.matrices.families import Family
from widelimit.matrices.inputs import let_go
from widelimit.matrices.threads import Threads

__all__ = ["Block", "SampleOutsideRange", "Samples", "Side", "make_sides", "quiet"]


class SampleOutsideRange(OverflowError):
    """What a network makes of a sample leaves the range or the digits of a dtype, in words.

    Parameters
    ----------
    found : str
        What must hold, and what does.
    sample : int
        Its place.
    side : str
        What the samples are called; "" if there is one side.
    remedy : str
    """

    def __init__(self, found: str, sample: int, side: str, remedy: str) -> None:
        super().__init__(found, sample, side, remedy)
        self.found, self.sample, self.side, self.remedy = found, sample, side, remedy

    def __str__(self) -> str:
        """Return all of it."""
        side = f" of {self.side}" if self.side else ""
        return f"{self.found} for sample {self.sample}{side}: {self.remedy}"


@dataclass(frozen=True, eq=False)
class Samples:
    """Validated samples of one side.

    Parameters
    ----------
    values : Rows
        ``(n, h, w, c)`` or ``(n, d)``, any real dtype; converted to float64 a block at a time.
    identity : ndarray of int64, shape (n,)
        Equal numbers mean identical samples, on both sides.
    """

    values: Rows
    identity: IntArray

    def __len__(self) -> int:
        return len(self.values)

    def block(self, start: int, stop: int) -> tuple[FloatArray, IntArray]:
        """Return samples in C order as float64, new, and their identities."""
        values = np.array(self.values[start:stop], np.float64, order="C")
        let_go(self.values)
        return values, np.ascontiguousarray(self.identity[start:stop])


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
    families : sequence of Family
    dtype : {"float32", "float64"}
    size : int
        Samples of a block: the side of a tile.
    held : int
        Blocks whose profiles are held: those that were wanted last, and those in use (`has_room`).
    name : str
        What errors call the samples, if there are others beside them.
    """

    def __init__(
        self,
        samples: Samples,
        families: Sequence[Family],
        dtype: Dtype,
        size: int,
        held: int,
        name: str = "",
    ) -> None:
        self._samples, self._families, self._name = samples, families, name
        self._dtype: Dtype = dtype
        self._size, self._held = size, held
        self._blocks: OrderedDict[int, list[Block]] = OrderedDict()
        self._alive: list[list[weakref.ref[Block]]] = []  # also those that are only in use
        self._lock = threading.Lock()

    def has_room(self, index: int) -> bool:
        """Return whether a block is held, or can be made beside those that are held or in use."""
        with self._lock:
            if index in self._blocks:
                return True
            while len(self._blocks) >= self._held:
                self._blocks.popitem(last=False)
            self._alive = [made for made in self._alive if any(block() for block in made)]
            return len(self._alive) < self._held

    def block(self, index: int, threads: Threads) -> list[Block]:
        """Return one block, as each family sees it. Any thread may call."""
        with self._lock:
            if index in self._blocks:
                self._blocks.move_to_end(index)
                return self._blocks[index]
            while len(self._blocks) >= self._held:
                self._blocks.popitem(last=False)
            start = index * self._size
            values, identity = self._samples.block(start, start + self._size)
            made = [
                self._make(family, values, identity, threads, start) for family in self._families
            ]
            self._blocks[index] = made
            self._alive.append([weakref.ref(block) for block in made])
            return made

    def _make(
        self,
        family: Family,
        values: FloatArray,
        identity: IntArray,
        threads: Threads,
        start: int,
    ) -> Block:
        try:
            with quiet():
                profile = family.backend.profile(family.program, values, identity, self._dtype)
        except OutsideRange as error:
            remedy = self._remedy
            found = (
                f"standard deviations of layers must lie between {error.least:g} and "
                f"{error.most:g} for {self._dtype}, got {error.deviation:.1e}"
            )
            if np.isinf(error.most):
                found = (
                    f"layers that are computed together must have standard deviations of at least "
                    f"{error.least:.1e} of the largest for {self._dtype}, got {error.deviation:.1e}"
                )
                remedy += ", or compute networks one by one" * (len(family.positions) > 1)
            raise SampleOutsideRange(found, start + error.sample, self._name, remedy) from None
        variances = None
        if any(readout.needs_variance for readout in family.program.readouts):
            variances = self._variances(family, profile, threads)
            self._check_variances(family, variances, start)
        return Block(profile, identity, variances)

    @property
    def _remedy(self) -> str:
        other = "use dtype='float64', or" if self._dtype == "float32" else "use"
        return f"{other} inputs or w_std of another scale"

    def _variances(self, family: Family, profile: Profile, threads: Threads) -> FloatArray:
        variances = np.empty((len(family.program.taps), len(profile)))

        def compute(part: IntArray) -> None:
            itself = Pairs(part, part, pairwise=True)
            with quiet():
                sums = family.backend.sums(family.program, profile, profile, itself, threads.cancel)
            variances[:, part] = sums[:, 0]

        lanes = family.backend.lanes(self._dtype)
        parts = np.split(np.arange(len(profile)), range(lanes, len(profile), lanes))
        for _ in threads.run(lambda part=part: compute(part) for part in parts):
            pass
        return variances

    def _check_variances(self, family: Family, variances: FloatArray, start: int) -> None:
        """Refuse samples of which rounding is all that is left: in the readout, or of a wave."""
        exact = family.program.is_dense or family.backend.name == "reference"  # in float64
        _, most = deviation_range(SIN, "float64" if exact else self._dtype)
        for readout in family.program.readouts:
            if not readout.needs_variance:
                continue
            own = variances[readout.tap]
            if (own < 0.0).any():
                raise SampleOutsideRange(
                    "pixels must not cancel in the readout, whose variance is lost in rounding",
                    start + int(np.argmax(own < 0.0)),
                    self._name,
                    "put an activation before the readout, or use inputs whose mean is not 0",
                )
            for layer, before in readout.variances(own):
                largest = int(np.argmax(before))
                if isinstance(layer, Sin | Cos) and not before[largest] <= most**2:
                    raise SampleOutsideRange(
                        f"standard deviations before {layer} must be at most {most:g} for "
                        f"{self._dtype}, got {before[largest] ** 0.5:.1e}",
                        start + largest,
                        self._name,
                        self._remedy,
                    )


def make_sides(
    left: Samples,
    right: Samples | None,
    families: Sequence[Family],
    dtype: Dtype,
    size: int,
    group: int,
    columns: int,
) -> tuple[Side, Side]:
    """Return both sides of a matrix, one object twice if `right` is None.

    Parameters
    ----------
    left, right, families, dtype, size
        As for `Side`.
    group, columns : int
        Blocks of rows and of columns that are held, 1 and 2 or more: in the order of `Grid.order`
        with this group, no profile is made twice in a sweep.
    """
    if right is None:
        both = Side(left, families, dtype, size, group + columns)
        return both, both
    return (
        Side(left, families, dtype, size, group, "x1"),
        Side(right, families, dtype, size, columns, "x2"),
    )


def quiet() -> np.errstate:
    """No warning of an overflow: a range that is left is refused with the result."""
    return np.errstate(over="ignore", invalid="ignore")
