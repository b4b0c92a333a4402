"""The part of one family in one tile: calls of its backend, and the heads of its networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import Dtype, Entries, Pairs
from widelimit.matrices.families import Family
from widelimit.matrices.profiles import Block, quiet

__all__ = ["Output", "Pass"]

Output = NDArray[Any]  # (n_networks, n_kinds, rows, columns) in the dtype of the user


@dataclass(frozen=True, eq=False)
class Pass:
    """What the calls of one family in one tile share.

    Parameters
    ----------
    family : Family
    dtype : {"float32", "float64"}
    left, right : Block
    mirrored : bool
        Whether the tile is symmetric: an entry is stored on both sides of the diagonal.
    values : ndarray of shape (n_networks, n_kinds, rows, columns)
        The tile: where values are stored.
    cancel : ndarray of int32, shape (1,)
        Not 0: stop.
    """

    family: Family
    dtype: Dtype
    left: Block
    right: Block
    mirrored: bool
    values: Output
    cancel: NDArray[np.int32]

    def tasks(self, entries: Entries) -> Iterator[Callable[[], int]]:
        """Yield functions that each compute some entries and return how many."""
        family, diagonal = self.family, entries.part == "diagonal"
        for pairs, swapped in family.backend.cut(family.program, self.dtype, entries):
            yield lambda pairs=pairs, swapped=swapped: self._compute(pairs, swapped, diagonal)

    def _compute(self, pairs: Pairs, swapped: bool, diagonal: bool) -> int:
        program, backend = self.family.program, self.family.backend
        first, second = self.left.profile, self.right.profile
        if swapped:
            first, second = second, first
        with quiet():
            sums = backend.sums(program, first, second, pairs, self.cancel)
        if swapped:
            pairs = Pairs(pairs.columns, pairs.rows)
            sums = np.ascontiguousarray(sums.swapaxes(-1, -2))
        if diagonal and not pairs.pairwise:  # of a square the head is for its diagonal alone
            sums = sums.diagonal(axis1=-2, axis2=-1)
            pairs = Pairs(pairs.rows, pairs.columns, pairwise=True)
        return self._store(pairs, sums)

    def _store(self, pairs: Pairs, sums: FloatArray) -> int:
        """Apply the head of each network, and put its kernels into the tile."""
        family, left, right = self.family, self.left, self.right
        rows, columns = pairs.rows, pairs.columns
        if not pairs.pairwise:
            rows, columns = rows[:, None], columns[None, :]
        same = left.identity[rows] == right.identity[columns]
        for index, readout in zip(family.positions, family.program.readouts, strict=True):
            variances = (None, None)
            if left.variances is not None and right.variances is not None:
                tap = readout.tap
                variances = (left.variances[tap][rows], right.variances[tap][columns])
            sigma, theta = sums[readout.tap]
            with quiet():
                nngp, ntk = readout.apply(sigma, theta, *variances, same)
            for place, kind in enumerate(family.program.kinds):
                value = nngp if kind == "nngp" else ntk
                target = self.values[index, place]
                _check_range(value, same, target.dtype)
                if pairs.pairwise:
                    target[rows, columns] = value
                    if self.mirrored:
                        target[columns, rows] = value
                else:  # consecutive samples: slices, which are copied faster
                    down = slice(pairs.rows[0], pairs.rows[-1] + 1)
                    across = slice(pairs.columns[0], pairs.columns[-1] + 1)
                    target[down, across] = value
                    if self.mirrored:
                        target[across, down] = value.T
        return same.size


def _check_range(value: FloatArray, same: NDArray[np.bool_], dtype: np.dtype[Any]) -> None:
    """Refuse values that the dtype of the result cannot hold.

    That entries are far below the others is harmless if the samples are not: of a sample with
    itself (`same`) the entry is as large as the sample is.
    """
    limits = np.finfo(dtype)
    least, most = float(limits.smallest_normal), float(limits.max)
    largest = max(float(value.max()), -float(value.min()))  # NaN if any is
    own = np.abs(value[same])
    smallest = float(own[own > 0].min(initial=np.inf))
    if not largest <= most or 0 < largest < least or smallest < least:
        got = smallest if largest <= most and smallest < least else largest
        remedy = "use dtype='float64', or" if dtype == np.float32 else "use"
        raise OverflowError(
            f"kernel values must lie between {least:.1e} and {most:.1e} for {dtype}, got "
            f"{got:.1e}: {remedy} inputs or w_std of another scale"
        )
