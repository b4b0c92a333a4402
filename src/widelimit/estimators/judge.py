"""How good predictions of left-out samples are, and which samples can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.estimators.calibration import fit_temperature, log_softmax
from widelimit.estimators.samples import Training

__all__ = ["Judge", "LooScoring", "alone_in_class", "best_place", "edge"]

LooScoring = Literal["squared", "accuracy", "log_loss"]
"""What a ridge, a time or a network is chosen by."""

_FLAT = 0.01  # a change of the score by less, of its size, is none


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Scores predictions of left-out samples: the larger, the better.

    Parameters
    ----------
    scoring : {"squared", "accuracy", "log_loss"}
        Minus the mean of squared residuals; the share of labels that are right; or the mean
        logarithm of the probability of the label, with the temperature that is best for it.
    judged : ndarray of bool, shape (n,), or None
        Samples that count; None: all.
    """

    scoring: LooScoring
    judged: NDArray[np.bool_] | None = None

    @property
    def blind(self) -> bool:
        """Whether no sample counts."""
        return self.judged is not None and not self.judged.any()

    def __call__(self, training: Training, rows: FloatArray) -> float:
        """Return the score, by weights, of predictions (m, t) at rows; NaN if there is none."""
        if self.blind or not np.isfinite(rows).all():
            return np.nan
        some = slice(None) if self.judged is None else self.judged
        outputs, targets = training.at_samples(rows)[some], training.targets[some]
        weights = training.sample_weight[some]
        if self.scoring == "squared":
            return -float(np.average(((targets - outputs) ** 2).mean(axis=1), weights=weights))
        labels = targets.argmax(axis=1)
        if self.scoring == "accuracy":
            return float(np.average(outputs.argmax(axis=1) == labels, weights=weights))
        chances = log_softmax(outputs, fit_temperature(outputs, labels, weights))
        return float(np.average(chances[np.arange(len(labels)), labels], weights=weights))


def alone_in_class(training: Training) -> NDArray[np.bool_]:
    """Return which samples, of a classifier, are the only row of their class, (n,).

    Equal samples are left out together: without them there is no example of the class.
    """
    labels = training.targets.argmax(axis=1)
    pairs = np.unique(np.stack([labels, training.place]), axis=1)
    rows = np.bincount(pairs[0], minlength=training.targets.shape[1])
    return rows[labels] == 1


def best_place(curve: FloatArray, *, last: bool) -> int:
    """Return the place of the best score; of equal ones the first, or the last."""
    return len(curve) - 1 - int(np.nanargmax(curve[::-1])) if last else int(np.nanargmax(curve))


def edge(grid: FloatArray, curve: FloatArray, scoring: LooScoring = "squared") -> str:
    """Return what to warn of if the best value lies on the edge of its grid, or nothing.

    Parameters
    ----------
    grid : ndarray of float64, shape (g,)
        From the one that shrinks outputs least to the one that shrinks them most.
    curve : ndarray of float64, shape (g,)
        Scores. Where the least is best, but no better than the next, nothing is lost.
    scoring : LooScoring
        Those that do not depend on the size of outputs may be best where they are shrunk.
    """
    best = int(np.nanargmax(curve))
    if len(grid) < 2 or 0 < best < len(grid) - 1:
        return ""
    if best == 0 or scoring != "squared":
        gain, size = curve[best] - curve[1 if best == 0 else -2], abs(curve[best])
        return "" if not gain > _FLAT * size else "better ones may lie beyond it"
    return "outputs are shrunk as far as they may be: left-out samples are hardly predicted at all"
