"""Whether new samples are like those of the training set: their norms, their range, their images.

A kernel regression answers whatever it is asked: of images of another brightness, or of noise, too,
and surely at that. Each sample has a norm, a largest and a smallest entry, and a likeness: the
largest cosine between it and a training sample, the mean of these subtracted. Those of training
samples, each beside the others, are what is typical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.estimators.samples import Training

__all__ = ["Familiar", "Typical"]

_TAIL = 1.0  # per cent of training samples, on either side, that are not typical
_FAR = 2.0  # a factor, outside of which a single norm is far; and widths of the range, for entries
_FAR_OF_FEW = 20.0  # the widths, of the range of few samples
_FEWEST = 10  # samples that are judged together: more than half of them are not typical
_FEWEST_FITTED = 20  # samples with fewer have no tails
_FEWEST_FEATURES = 16  # on fewer, norms are spread down to 0, and any two samples are alike
_OUTLIERS = 0.05  # of standardised samples: small scales are not known well
_COMPARED, _ENTRIES = 1000, 2**22  # training samples, and entries, that likenesses are taken to
_BLOCK = 2**22  # entries of new samples that are looked at together

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Typical:
    """What training samples are like.

    Parameters
    ----------
    range : (float, float)
        The smallest and the largest entry, 0 included.
    margin : float
        How far outside of it entries are far.
    norms : (smallest, tail, tail, largest) or None
        Between the tails are those of all but 1 % on either side; None where they say nothing.
    mean : ndarray of float64, shape (d,)
    directions : ndarray of float64, shape (k, d)
        Some training samples less the mean, of norm 1.
    likeness : (smallest, tail) or None
        None where it says nothing.
    """

    range: Bounds
    margin: float
    norms: tuple[float, float, float, float] | None
    mean: FloatArray
    directions: FloatArray
    likeness: Bounds | None

    @classmethod
    def of(cls, flat: NDArray[Any], training: Training) -> Typical:
        """Look at the samples of a kernel as rows (m, d), one a row of its matrix."""
        m, d = len(flat), int(flat.shape[1])
        own = np.concatenate([_norms(part) for _, part in _parts(flat)])
        multiples = training.multiples  # rows may stand for samples of other sizes
        factors = np.abs(np.r_[1.0, multiples])
        lowest, highest = float(flat.min()), float(flat.max())
        if factors.max() > 1:
            lowest, highest = lowest * factors.max(), highest * factors.max()
        norms = own[training.place] * multiples
        spread = min(lowest, 0.0), max(highest, 0.0)
        margin = (spread[1] - spread[0]) * (_FAR if m >= _FEWEST_FITTED else _FAR_OF_FEW)
        telling = d >= _FEWEST_FEATURES and len(norms) >= _FEWEST_FITTED
        bounds = None
        if telling:
            least, low, high, most = np.percentile(norms, [0, _TAIL, 100 - _TAIL, 100])
            bounds = float(least), float(low), float(high), float(most)
        count = min(m, _COMPARED, _ENTRIES // d)
        if not telling or count < _FEWEST_FITTED:
            origin = np.zeros(d, np.float64)
            nothing = np.empty((0, d), np.float64)
            return cls(spread, margin, bounds, origin, nothing, None)
        some = np.asarray(flat[np.arange(count) * (m - 1) // max(1, count - 1)], np.float64)
        mean = np.asarray(some.mean(axis=0), np.float64)
        directions = _directions(some, mean)
        alike = directions @ directions.T
        np.fill_diagonal(alike, -np.inf)
        least, tail = np.percentile(alike.max(axis=1), [0, _TAIL])
        return cls(
            spread,
            margin,
            bounds,
            mean,
            directions,
            (float(least), float(tail)) if least > 0 else None,
        )

    def differences(self, flat: NDArray[Any], *, standardised: bool = False) -> str:
        """Return in which way new samples are far from these, in words; "" if they are not.

        Single ones are, if their norm is below half of the smallest or above twice the largest, an
        entry is outside of the range by two of its widths, or the likeness is below half of the
        smallest; ten and more are, if more than half have norms or likenesses in the tails. Where
        features were standardised on the training samples, one in twenty may be an outlier.
        """
        n = len(flat)
        norms, lows, highs, alike = np.empty(n), np.empty(n), np.empty(n), np.ones(n)
        for start, part in _parts(flat):
            here = slice(start, start + len(part))
            norms[here], lows[here], highs[here] = _norms(part), part.min(1), part.max(1)
            if self.likeness is not None:
                alike[here] = (_directions(part, self.mean) @ self.directions.T).max(axis=1)
        found: list[str] = []
        allowed = _OUTLIERS * n if standardised else 0
        low, high = self.range
        outside = (lows < low - self.margin) | (highs > high + self.margin)
        if self.margin > 0 and np.count_nonzero(outside) > allowed:
            found.append(
                f"{_count(outside)} entries of {lows.min():.3g} to {highs.max():.3g}, where those "
                f"of training samples are {low:.3g} to {high:.3g}"
            )
        if self.norms is not None:
            least, low, high, most = self.norms
            alone = (norms < least / _FAR) | (norms > _FAR * most)
            far = _far((norms < low) | (norms > high), alone)
            if np.count_nonzero(far) > allowed:
                found.append(
                    f"{_count(far)} norms of {norms[far].min():.3g} to {norms[far].max():.3g}, "
                    f"where those of training samples are {least:.3g} to {most:.3g}"
                )
        if self.likeness is not None:
            least, tail = self.likeness
            far = _far(alike < tail, alike < least / _FAR)
            if np.count_nonzero(far) > allowed:
                found.append(
                    f"{_count(far)} no likeness to any training sample, cosines of "
                    f"{alike[far].min():.2f} to {alike[far].max():.2f} at most, where these have "
                    f"{least:.2f} or more among themselves"
                )
        return "; ".join(found)


@dataclass(slots=True, eq=False)
class Familiar:
    """What training samples are like, once somebody asks: predictions change no estimator."""

    _found: Typical | None = field(init=False, default=None)

    def typical(self, flat: Callable[[], NDArray[Any]], training: Training) -> Typical:
        """Return what is known, or look at the samples, as `Typical.of` does: once."""
        if self._found is None:
            self._found = Typical.of(flat(), training)
        return self._found


def _far(many: NDArray[np.bool_], alone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which samples are far: by themselves, or since most are in the tails with them."""
    if len(many) >= _FEWEST and 2 * np.count_nonzero(many) > len(many):
        return alone | many
    return alone


def _count(which: NDArray[np.bool_]) -> str:
    number = np.count_nonzero(which)
    return f"{number:,} of {len(which):,} " + ("has" if number == 1 else "have")


def _norms(rows: FloatArray) -> FloatArray:
    return np.linalg.norm(rows, axis=1)


def _directions(rows: FloatArray, mean: FloatArray) -> FloatArray:
    centred = rows - mean
    norms = _norms(centred)
    return centred / np.where(norms > 0, norms, 1.0)[:, None]


def _parts(flat: NDArray[Any]) -> Any:
    """Yield the first place and the entries, as float64, of a few samples at a time."""
    step = max(1, _BLOCK // flat.shape[1])
    for start in range(0, len(flat), step):
        yield start, np.asarray(flat[start : start + step], np.float64)
