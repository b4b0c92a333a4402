"""Regression without a ridge, as the estimators do it: equal images are one row that weighs more.

So no training image is predicted from its copy when it is left out; and a kernel that is singular
all the same is solved with in the limit of training, which notes say, not refused after the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from widelimit.arrays import FloatArray, IntArray
from widelimit.estimators.directions import Directions
from widelimit.estimators.regression import Options, regress
from widelimit.estimators.samples import Training
from widelimit.matrices.inputs import number_samples
from widelimit.solvers import Status, encode_labels

__all__ = ["Interpolation", "copies", "interpolate", "put_together", "told_of_copies"]

_OPTIONS = Options(0.0, np.inf, "cholesky", None, None, None)


def put_together(
    x: FloatArray, labels: IntArray, classes: int, *, doubled: bool = False
) -> Training:
    """Return training images with the targets of their classes, equal ones in one row.

    Parameters
    ----------
    x : ndarray of float64, shape (n, h, w, c)
        As they are: what is prepared may differ in its rounding.
    labels : ndarray of int64, shape (n,)
    classes : int
    doubled : bool
        Whether the mirror images of all of them come after them. These are equal to one another
        where the images are, and never to an image.
    """
    numbers = number_samples(x, None)[0]
    if doubled:
        numbers = np.concatenate([numbers, numbers + numbers.max() + 1])
        labels = np.concatenate([labels, labels])
    targets = encode_labels(labels, np.arange(classes))
    n = len(labels)
    return Training.of(Directions.of_equal(numbers), targets, np.ones(n), np.full(n, True))


def copies(training: Training) -> int:
    """Return how many training images are copies of others before them."""
    return len(training.place) - len(training.first)


def told_of_copies(sets: Iterable[Training]) -> list[str]:
    """Return a sentence on the training sets, one of each draw, if images repeat."""
    counts = [(copies(training), len(training.place)) for training in sets]
    most, n = max(counts)
    if not most:
        return []
    up_to, of_a_draw = ("up to ", " of a draw") if len(counts) > 1 else ("", "")
    return [
        f"{up_to}{most:,} of {n:,} training images{of_a_draw} are copies of others: equal images "
        "count as one, with the mean of their targets, and are left out together"
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Interpolation:
    """What one kernel predicts.

    Parameters
    ----------
    outputs : ndarray of float64, shape (m, classes)
        Of test images.
    left_out : ndarray of float64, shape (n, classes)
        Of each training image, without it and its equals.
    status : Status
    """

    outputs: FloatArray
    left_out: FloatArray
    status: Status

    @staticmethod
    def told(label: str, found: Sequence[Interpolation]) -> list[str]:
        """Return a sentence for each status, but that of a good solution."""
        count = {status: sum(one.status is status for one in found) for status in _TOLD}
        return [
            f"{label}: {count[status]} of {len(found)} kernels {words}"
            for status, words in _TOLD.items()
            if count[status]
        ]


_TOLD = {
    Status.ILL_CONDITIONED: "are nearly singular: what they predict may be mostly rounding",
    Status.RANK_DEFICIENT: "are singular to rounding, and were solved with by least squares, the "
    "limit of training: not all targets are met",
}


def interpolate(train: Any, test: Any, training: Training) -> Interpolation:
    """Solve with a kernel, without a ridge.

    Parameters
    ----------
    train : array_like of shape (n, n)
        Of the training images.
    test : array_like of shape (m, n)
        Of test images with them.
    training : Training

    Raises
    ------
    numpy.linalg.LinAlgError
        If there is no solution, not even in the limit of training.
    """
    rows = training.first
    k: FloatArray = np.asarray(train, np.float64)[np.ix_(rows, rows)]
    fit = regress(k, training, _OPTIONS, "cholesky")
    assert fit.left_out is not None  # by a factor
    outputs = np.asarray(test, np.float64)[:, rows] @ fit.solution.value
    return Interpolation(outputs, training.at_samples(fit.left_out), fit.solution.status)
