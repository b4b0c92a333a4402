"""How far the errors of a Gram matrix move outputs: an estimate, for samples that nearly repeat.

Coefficients of a computed matrix ``k + e`` are right for other targets,

    ``(k + e + r W^-1) a = y``  is  ``(k + r W^-1) a = y - e a``,

so that errors e move what is met at the training samples by ``e a``. Relative to
``sqrt(k_ii k_jj)`` an entry has two errors:

- its rounding, half the epsilon of its dtype, as if drawn anew for each entry;
- where two samples have nearly one direction, that of the angle t between them. The derivative
  kappa0 of a ReLU falls linearly, ``1 - t/pi``, while arithmetic knows the cosine, and so ``t^2``,
  to its epsilon: t is off by up to ``t0 = sqrt(2 epsilon)`` (2e-8 in float64, 5e-4 in float32),
  and by less, ``t0^2 / 2 t``, where it is larger. With E the error of a kernel at t = 0, which
  depends on depth and pooling and is measured, an entry is off by ``E min(1, t0/t)``, or less.

The second decides if a near-multiple of a sample asks for another output: the coefficients of both
are then about the gap of their targets over ``t``. Of each sample the nearest one is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray, IntArray
from widelimit.estimators.regression import explain
from widelimit.estimators.samples import Training
from widelimit.estimators.warned import warn_caller
from widelimit.solvers import Solution, Status
from widelimit.solvers.checks import epsilon
from widelimit.solvers.matrix import Matrix, as_matrix, diagonal, pieces

__all__ = ["Errors", "Nearest", "doubted", "find_nearest", "unresolved_angle", "warn"]

# Of the largest target: outputs that errors may move by more are warned of.
_ALLOWED = 0.01
# Samples that E is measured at: those of the pairs that move outputs most.
_MEASURED = 4


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """Of each sample the one that its kernel is most alike to.

    Parameters
    ----------
    partner : ndarray of int64, shape (m,)
    gap : ndarray of float64, shape (m,)
        ``1 - k_ij / sqrt(k_ii k_jj)`` of the two.
    scale : ndarray of float64, shape (m,)
        ``sqrt(k_ii)``.
    slope : float
        Mean gap of pairs that are not near: about what a gap is at an angle of 1.
    dtype : dtype
        Of the entries.
    """

    partner: IntArray
    gap: FloatArray
    scale: FloatArray
    slope: float
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Errors:
    """How exact entries are where samples have nearly one direction.

    Parameters
    ----------
    unresolved : float
        t0.
    angles : ndarray of float64, shape (m,)
        Between each sample and its nearest one.
    most : float
        E, or more.
    measure : callable
        Returns E at some samples, given by their places.
    """

    unresolved: float
    angles: FloatArray
    most: float
    measure: Callable[[IntArray], float]


class _Kernel(Protocol):
    def errors(self, nearest: Nearest, /) -> Errors: ...


def unresolved_angle(dtype: np.dtype[Any] | str) -> float:
    """Return t0, below which arithmetic in a dtype does not know an angle."""
    return float(np.sqrt(2 * epsilon(np.dtype(dtype))))


def find_nearest(k: Matrix | NDArray[Any]) -> Nearest:
    """Find the nearest sample of each, in one pass over a Gram matrix (m, m)."""
    matrix = as_matrix(k)
    m = matrix.shape[0]
    scale = np.sqrt(np.maximum(diagonal(matrix), 0.0))
    inverse = 1 / np.where(scale > 0, scale, np.inf)  # zeros are like nothing
    partner, best = np.arange(m), np.full(m, -np.inf)
    near = 10 * unresolved_angle(matrix.dtype)
    total, count = 0.0, 0.0

    def improve(part: slice, alike: FloatArray, start: int) -> None:
        found = alike.max(axis=1)
        better = found > best[part]
        best[part][better] = found[better]
        partner[part][better] = start + alike.argmax(axis=1)[better]

    for rows, columns, values in pieces(matrix):
        alike = np.asarray(values, np.float64) * inverse[columns]
        alike *= inverse[rows, None]
        once = 1.0
        if rows.start == columns.start:
            np.fill_diagonal(alike, -np.inf)
            once = 0.5  # here each pair is there twice
        apart = (alike < 1 - near) & (alike > -np.inf)
        total += once * float((1 - alike[apart]).sum())
        count += once * int(np.count_nonzero(apart))
        improve(rows, alike, columns.start)
        improve(columns, alike.T, rows.start)
    slope = total / count if count else 0.5  # that of a few layers without pooling
    return Nearest(partner, np.where(np.isfinite(best), 1 - best, 1.0), scale, slope, matrix.dtype)


def doubted(solution: Solution, nearest: Nearest, kernel: _Kernel, training: Training) -> Solution:
    """Return a solution with the status that the errors of the kernel leave it.

    Parameters
    ----------
    solution : Solution
        For the rows of `training`.
    nearest : Nearest
        Of the Gram matrix that was solved.
    kernel : FittedKernel or PrecomputedKernel
    training : Training

    Returns
    -------
    Solution
        The same, or with ``Status.ILL_CONDITIONED`` and a message.
    """
    largest = float(np.abs(training.targets).max())
    if solution.status is not Status.SOLVED or largest == 0:
        return solution
    a = np.abs(solution.value.reshape(len(nearest.scale), -1)) * nearest.scale[:, None]
    scale, partner = nearest.scale[:, None], nearest.partner
    rounded = epsilon(nearest.dtype) / 2 * scale * np.sqrt((a**2).sum(axis=0))
    errors = kernel.errors(nearest)
    unresolved = np.minimum(1.0, errors.unresolved / np.maximum(errors.angles, 1e-300))
    pulled = unresolved[:, None] * scale * a[partner]  # at a sample, by its nearest one
    np.maximum.at(pulled, partner, unresolved[:, None] * scale[partner] * a)
    allowed = _ALLOWED * largest

    def moved(error: float) -> FloatArray:
        return training.at_samples(2 * (rounded + error * pulled))

    if moved(errors.most).max() <= allowed:
        return solution
    at_samples = training.at_samples(pulled).max(axis=1)
    worst = np.unique(training.place[np.argsort(-at_samples)[:_MEASURED]])
    found = moved(errors.measure(worst)).max(axis=1)
    if found.max() <= allowed:
        return solution
    message = (
        f"Errors of its entries may move outputs by {found.max() / largest:.1g} of the largest "
        "target"
    )
    if found.max() > 2 * moved(0.0).max():
        i = int(training.place[found.argmax()])
        first, second = sorted(training.given[[i, partner[i]]].tolist())
        message += (
            f": the angle between samples {first} and {second} is {errors.angles[i]:.1e}, and "
            f"{errors.unresolved:.1e} is all that can be told"
        )
    return replace(solution, status=Status.ILL_CONDITIONED, message=f"{message}.")


def warn(solution: Solution) -> None:
    """Warn of coefficients that are not to be trusted, as from the line that called the package."""
    if message := explain(solution):
        warn_caller(message, LinAlgWarning)
