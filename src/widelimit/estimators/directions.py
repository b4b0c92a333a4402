"""Samples that are multiples of one another, found without comparing all with all.

Without biases every kernel here is positively homogeneous, ``k(a x, z) = a k(x, z)`` for ``a > 0``,
so that multiples of a sample say nothing of it that is new, and make a Gram matrix singular. An
exact kernel would show that; a computed one does not, as it loses half of its digits where the
cosine of two samples is 1. Samples can tell: those of one direction are the same but for rounding,
once each is divided by its largest entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray

__all__ = ["Directions", "find_directions"]

_ENTRIES = 32  # of a sample that are looked at before all are
# Roundings in which multiples may differ: of their entries, and of two divisions. 3 is the most.
_ROUNDINGS = 4
# Of the factor between two samples, whose square is a weight.
_SMALLEST, _LARGEST = 1e-50, 1e50
_CHUNK_BYTES = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """The direction and the size of each sample.

    Parameters
    ----------
    place : ndarray of int64, shape (n,)
        Number of the direction of each sample, in the order in which directions come.
    first : ndarray of int64, shape (m,)
        The first sample of each direction.
    multiples : ndarray of float64, shape (n,)
        Each sample over the first of its direction: above 0, and 1 for that one and its equals. 0
        for a sample of zeros: it has no direction, and is put to the first there is.
    """

    place: IntArray
    first: IntArray
    multiples: FloatArray

    @classmethod
    def of_equal(cls, numbers: IntArray) -> Directions:
        """Take equal samples alone for one, from numbers that are equal for equal ones."""
        return cls(numbers, np.unique(numbers, return_index=True)[1], np.ones(len(numbers)))


def find_directions(
    samples: NDArray[Any], numbers: IntArray, known: int = 0, given: IntArray | None = None
) -> Directions:
    """Find samples that are positive multiples of one another, up to the rounding of their entries.

    Parameters
    ----------
    samples : ndarray of shape (n, ...), float64, float32 or uint8
        Finite. The dtype says how exact the entries are.
    numbers : ndarray of int64, shape (n,)
        Equal for equal samples, from 0 in the order in which they come.
    known : int
        The first so many samples, all distinct, are taken to have directions of their own.
    given : ndarray of int64, shape (n,), or None
        What errors call the samples; None: their places.

    Raises
    ------
    ValueError
        If a factor is so large or small that its square is no number.

    Notes
    -----
    Samples over their largest entries are laid along a random line, where those of one direction
    are neighbours; neighbours are compared entry by entry. Cost: ``n log n``, and some passes over
    the samples; memory: of order n.
    """
    distinct = np.unique(numbers, return_index=True)[1]
    search = _Search(samples, distinct)
    # Of each distinct sample the first of its direction, and the factor from that one.
    leader, multiples = np.arange(len(distinct)), np.ones(len(distinct))
    for run in search.runs():
        leaders: list[int] = []
        for index in run:
            found = None if index < known else search.find(index, leaders)
            if found is None:
                leaders.append(index)
            else:
                leader[index], multiples[index] = found
    nothing = search.scale == 0
    main = 0 if known else int(np.argmin(nothing))  # the first that is not zero
    called = distinct if given is None else given[distinct]
    _check(multiples[~nothing], called[~nothing], called[leader[~nothing]])
    nothing[:known] = False
    leader[nothing], multiples[nothing] = main, float(search.scale[main] == 0)
    leads = np.flatnonzero(leader == np.arange(len(leader)))
    place = np.searchsorted(leads, leader)
    return Directions(place[numbers], distinct[leads], multiples[numbers])


def _check(multiples: FloatArray, samples: IntArray, leaders: IntArray) -> None:
    outside = (multiples < _SMALLEST) | (multiples > _LARGEST)
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(
            f"samples that are multiples of one another must be within a factor of {_LARGEST:g}, "
            f"got a factor of {multiples[i]:.1e} between samples {leaders[i]} and {samples[i]}: "
            "rescale or remove one of them"
        )


class _Search:
    """Distinct samples over their largest entries: `scale`, their places on a line, some entries.

    Parameters
    ----------
    samples : ndarray of shape (n, ...)
    index : ndarray of int64, shape (m,)
        Of distinct samples.
    """

    def __init__(self, samples: NDArray[Any], index: IntArray) -> None:
        self._samples, self._index = samples, index
        m, d = len(index), samples[0].size
        real = samples.dtype.kind == "f"
        least = float(np.finfo(samples.dtype).smallest_subnormal) if real else 0.0
        self._rounding = _ROUNDINGS * float(np.finfo(samples.dtype if real else np.float64).eps)
        rng = np.random.default_rng(0)  # fixed, so that a fit can be repeated to the last bit
        line = np.asarray(rng.standard_normal(d), np.float64)
        picks = rng.permutation(d)[:_ENTRIES]
        self.scale, self._underflow = np.empty(m), np.empty(m)
        self._along, self._width = np.empty(m), np.empty(m)
        self._entries = np.empty((m, len(picks)))
        step = max(1, _CHUNK_BYTES // (8 * d))
        for start in range(0, m, step):
            here = slice(start, start + step)
            rows = np.asarray(samples[index[here]], np.float64).reshape(-1, d)
            self.scale[here] = np.abs(rows).max(axis=1)
            size = np.where(self.scale[here] > 0, self.scale[here], 1.0)
            rows /= size[:, None]
            self._underflow[here] = least / size
            self._entries[here] = rows[:, picks]
            self._along[here] = rows @ line
            # What the rounding of entries, and that of the sum of d products, may come to.
            each = (self._rounding + d * 2.0**-52) * np.abs(rows) + self._underflow[here, None]
            self._width[here] = each @ np.abs(line)

    def runs(self) -> Iterator[list[int]]:
        """Yield sets of samples, each in order: no two of different sets have one direction."""
        order = np.argsort(self._along, kind="stable")
        order = order[self.scale[order] > 0]
        along, width = self._along[order], self._width[order]
        reach = np.maximum.accumulate(along + width)
        cuts = np.flatnonzero((along - width)[1:] > reach[:-1]) + 1
        for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(order)], strict=True):
            if stop - start > 1:
                yield sorted(order[start:stop].tolist())

    def find(self, index: int, leaders: list[int]) -> tuple[int, float] | None:
        """Return which of some samples one is a multiple of, and the factor."""
        near = np.array(leaders, np.intp)
        near = near[self._equal(self._entries[near], self._entries[index], index, near)]
        for leader in near.tolist():
            row, other = self._row(index), self._row(leader)
            if self._equal(other[None], row, index, np.array([leader])).all():
                size = self.scale[index] / self.scale[leader]
                return leader, float(size * (row @ other) / (other @ other))
        return None

    def _equal(
        self, rows: FloatArray, row: FloatArray, index: int, leaders: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Return which rows, those of some leaders, are one other to rounding."""
        underflow = self._underflow[index] + self._underflow[leaders]
        allowed = self._rounding * np.abs(rows) + underflow[:, None]
        return np.all(np.abs(rows - row) <= allowed, axis=1)

    def _row(self, index: int) -> FloatArray:
        values = np.asarray(self._samples[self._index[index]], np.float64).reshape(-1)
        return values / self.scale[index]
