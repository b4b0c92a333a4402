"""What every solver returns: the value, a status whose text is a remedy, and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "Solution", "Statistics", "Status"]

FloatArray: TypeAlias = NDArray[np.float64]


class Status(Enum):
    """How far a solution can be trusted; the value of a member says what to do about it."""

    SOLVED = "Solved: nothing to do."
    ILL_CONDITIONED = (
        "Solved, but the smallest eigenvalue of k is below the rounding of its entries, so that "
        "the coefficients may be mostly rounding. Compute the kernel with dtype='float64', add a "
        "relative ridge such as ridge=1e-6 (it multiplies trace(k)/n), or remove near-duplicates "
        "from the training set."
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
        ``|y - (k + ridge_absolute I) value| / |y|`` in the Frobenius norm; 0 if y is 0.
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
        The dual coefficients.
    status : Status
        ``status.value`` is a sentence that says what to do.
    statistics : Statistics
        Ridge really used, residual, condition, time.
    """

    value: FloatArray
    status: Status
    statistics: Statistics
