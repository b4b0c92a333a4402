"""Leave-one-out predictions in closed form, from the factor of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from widelimit.arrays import FloatArray
from widelimit.solvers.blas import Arithmetic, factor_in_place
from widelimit.solvers.checks import check_absolute, check_matrix, check_ridge, check_targets
from widelimit.solvers.cholesky import column_squares, is_definite
from widelimit.solvers.factor import TiledFactor
from widelimit.solvers.matrix import Matrix, diagonal, load
from widelimit.solvers.solution import LeaveOneOut

__all__ = ["leave_one_out", "leave_one_out_of_factor"]


def leave_one_out(k: ArrayLike | Matrix, y: ArrayLike, ridges: Sequence[float]) -> LeaveOneOut:
    """Predict every sample from all others, for several ridges, without another kernel.

    With ``A = k + ridge trace(k)/n I`` and ``a = A^-1 y``, the prediction for sample i of the
    regression without it is ``y_i - a_i / (A^-1)_ii``. The absolute ridge is that of all samples.

    Parameters
    ----------
    k : Gram, or array-like of shape (n, n)
        Symmetric Gram matrix, finite.
    y : array-like of shape (n,) or (n, targets)
        Targets.
    ridges : sequence of float
        Relative ridges, each finite and >= 0: they multiply ``trace(k)/n``.

    Returns
    -------
    LeaveOneOut

    Raises
    ------
    TypeError, ValueError
        If k, y or a ridge is not as described.

    Notes
    -----
    Cost for each ridge: a factor and its inverse in place, ``2 n^3/3`` flops, and reading k.
    Memory beside k: one float64 matrix. For matrices larger than that, `leave_one_out_of_factor`.
    """
    matrix = check_matrix(k)
    n = matrix.shape[0]
    targets = check_targets(y, n)
    relative = np.array([check_ridge(ridge) for ridge in ridges], np.float64)
    if relative.size == 0:
        raise ValueError("ridges must be one relative ridge or more, got none")
    mean = float(diagonal(matrix).mean())
    arithmetic = Arithmetic(np.dtype(np.float64))
    predictions = np.full((relative.size, *targets.shape), np.nan)
    for index, ridge in enumerate(relative):
        work = load(matrix, "float64")
        if not np.all(np.isfinite(work.sum(axis=0))):
            raise ValueError("k must be finite, got NaN or infinity: look at its samples")
        work.reshape(-1)[:: n + 1] += check_absolute(float(ridge), mean)
        entries = work.diagonal().copy()
        if factor_in_place(work) != 0 or not is_definite(work.diagonal() ** 2 / entries):
            continue
        value = arithmetic.solve_factored(work, targets)
        arithmetic.invert_triangle(work)
        predictions[index] = targets - value / column_squares(work)[:, None]
        del work  # before the next one is read
    return _result(relative, targets, predictions, np.shape(y))


def leave_one_out_of_factor(
    factor: TiledFactor,
    y: ArrayLike,
    *,
    value: FloatArray | None = None,
    dtype: str | None = None,
    progress: bool | Callable[[float], None] = False,
) -> LeaveOneOut:
    """Predict every sample from all others with a stored factor; for its one ridge.

    Parameters
    ----------
    factor : TiledFactor
    y : array-like of shape (n,) or (n, targets)
    value : ndarray or None
        The solution for y, if it is known.
    dtype, progress
        As for `TiledFactor.inverse_diagonal`, which is most of the cost.
    """
    targets = check_targets(y, factor.n)
    if value is None:
        value = factor.solve(targets)
    inverse = factor.inverse_diagonal(dtype=dtype, progress=progress)
    predictions = targets - value.reshape(targets.shape) / inverse[:, None]
    return _result(np.array([factor.ridge]), targets, predictions[None], np.shape(y))


def _result(
    ridges: FloatArray, targets: FloatArray, predictions: FloatArray, shape: tuple[int, ...]
) -> LeaveOneOut:
    errors = ((targets - predictions) ** 2).mean(axis=(1, 2))
    return LeaveOneOut(ridges, predictions.reshape(len(ridges), *shape), errors)
