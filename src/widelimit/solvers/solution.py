"""What every solver returns: the value, a status whose text is a remedy, and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike

from widelimit.arrays import FloatArray

__all__ = ["Solution", "Statistics", "Status", "failed"]


class Status(Enum):
    """How far a solution can be trusted; the value of a member says what to do about it."""

    SOLVED = "Solved: nothing to do."
    ILL_CONDITIONED = (
        "Solved, but the smallest eigenvalue of k is below the rounding of its entries, so that "
        "the coefficients may be mostly rounding. Compute the kernel with dtype='float64', add a "
        "relative ridge such as ridge=1e-6 (it multiplies trace(k)/n), or remove near-duplicates "
        "from the training set."
    )
    RANK_DEFICIENT = (
        "Solved by least squares, with coefficients of smallest norm: this is the end of training, "
        "but k is singular to rounding, so that not all targets can be met. Add a relative ridge "
        "such as ridge=1e-6 (it multiplies trace(k)/n), or ridge='loo' in an estimator; give the "
        "network biases (b_std > 0) if samples are multiples of one another; or remove samples "
        "that are combinations of others."
    )
    NOT_POSITIVE_DEFINITE = (
        "Not solved: k with the ridge is not positive definite to rounding. The message of the "
        "solution says why, and which ridge would make it so."
    )
    NOT_CONVERGED = (
        "Not solved to the accuracy asked for: the iteration ended before. The message of the "
        "solution says how far it came, and what to do."
    )


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a solver did and how well it did it.

    Parameters
    ----------
    n : int
        Number of training samples: k is (n, n).
    ridge : float
        Relative ridge as asked for: it multiplies ``trace(k)/n``. Solvers never change it.
    ridge_absolute : float
        ``ridge * trace(k)/n``, the number that was added to the diagonal of k.
    residual_norm : float
        ``|y - (k + ridge_absolute I) value| / |y|`` in the Frobenius norm; 0 if y is 0, NaN if
        there is no value.
        It holds for the arithmetic of the solver, not for the accuracy of the entries of k.
    reciprocal_condition : float
        Estimate of ``1 / (|A|_1 |A^-1|_1)`` for ``A = k + ridge_absolute I``: 1 is best, 0 is
        singular.
    seconds : float
        Wall-clock time of the solver, checks included.
    """

    n: int
    ridge: float
    ridge_absolute: float
    residual_norm: float
    reciprocal_condition: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Solution of ``(k + ridge trace(k)/n I) value = y``.

    Parameters
    ----------
    value : ndarray of float64, the shape of y: (n,) or (n, targets)
        The dual coefficients; NaN if there are none.
    status : Status
        ``status.value`` is a sentence that says what to do.
    statistics : Statistics
        Ridge really used, residual, condition, time.
    message : str
        What the status means here: numbers, samples, a remedy. Empty if all is well.
    """

    value: FloatArray
    status: Status
    statistics: Statistics
    message: str = ""

    def require(self) -> Solution:
        """Return the solution itself, if it has a value.

        Raises
        ------
        numpy.linalg.LinAlgError
            With the message, if k is not positive definite.
        """
        if self.status is Status.NOT_POSITIVE_DEFINITE:
            raise np.linalg.LinAlgError(self.message)
        return self


def failed(
    y: ArrayLike, ridge: float, ridge_absolute: float, message: str, seconds: float
) -> Solution:
    """Return the solution of a system that is not positive definite: NaN, and why."""
    shape = np.shape(y)
    return Solution(
        np.full(shape, np.nan),
        Status.NOT_POSITIVE_DEFINITE,
        Statistics(shape[0], ridge, ridge_absolute, np.nan, 0.0, seconds),
        message,
    )
