"""A factor in float32, and iterative refinement to the accuracy of float64."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from widelimit.arrays import FloatArray
from widelimit.solvers.blas import Arithmetic, factor_in_place
from widelimit.solvers.checks import (
    check_absolute,
    check_matrix,
    check_ridge,
    check_targets,
    relative_norm,
)
from widelimit.solvers.matrix import Matrix, diagonal, load, multiply
from widelimit.solvers.solution import Solution, Statistics, Status
from widelimit.solvers.tiled import NotPositiveDefinite, factorise

__all__ = ["solve_refined"]

_MAX_STEPS = 40
_LEAST_PROGRESS = 0.5  # of the residual, in one step


def solve_refined(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float = 0.0,
    *,
    store: str | os.PathLike[str] | None = None,
    memory: int | str | None = None,
    progress: bool | Callable[[float], None] = False,
) -> Solution:
    """Solve ``(k + ridge trace(k)/n I) a = y`` by a float32 factor, refined to float64 accuracy.

    A factor in float32 takes half the memory and half the time. Each step solves for the residual
    with it, and computes the residual anew in float64 from k.

    Parameters
    ----------
    k, y, ridge
        As for `solve_cholesky`.
    store : path, fsspec URL or None
        Where the factor lies, as for `factorise`. None: in memory.
    memory, progress
        As for `factorise`, with a store.

    Returns
    -------
    Solution
        ``Status.SOLVED`` if the backward error of every column is that of float64,
        ``|r|_inf <= sqrt(n) 2.2e-16 |A|_inf |a|_inf`` (the criterion of LAPACK's dsposv).
        ``Status.NOT_CONVERGED`` if it could not be reached, with the best value that was; NaN if
        float32 has no factor.

    Raises
    ------
    TypeError, ValueError, MemoryError, OSError
        As for `solve_cholesky` and `factorise`.

    Notes
    -----
    Cost: ``n^3/3`` flops in float32, and a pass over k for each step. It converges if the
    condition number of ``A`` is below 1e7 or so.
    """
    start = time.perf_counter()
    matrix = check_matrix(k)
    n = matrix.shape[0]
    targets = check_targets(y, n)
    relative = check_ridge(ridge)
    absolute = check_absolute(relative, float(diagonal(matrix).mean()), dtype="float32")
    value = np.zeros_like(targets)
    residual = targets

    def finish(status: Status, condition: float, message: str = "") -> Solution:
        error = relative_norm(residual, targets)
        seconds = time.perf_counter() - start
        statistics = Statistics(n, relative, absolute, error, condition, seconds)
        return Solution(value.reshape(np.shape(y)), status, statistics, message)

    # |A|_inf, from one pass: the residual has to be small beside it.
    norm = float((multiply(matrix, np.ones((n, 1)), absolute=True) + absolute).max())
    if not np.isfinite(norm):
        raise ValueError("k must be finite, got NaN or infinity: look at its samples")
    solve, condition = _factor(matrix, relative, absolute, norm, store, memory, progress)
    if solve is None:
        value = np.full_like(targets, np.nan)
        message = (
            f"k with relative ridge {relative:g} has no factor in float32, whose rounding exceeds "
            "its smallest pivot: use solve_cholesky or solve_tiled, which are float64, or a larger "
            f"relative ridge, such as ridge={max(10 * relative, n**0.5 * 1e-6):.0e}"
        )
        residual = value
        return finish(Status.NOT_CONVERGED, np.nan, message)
    bound = n**0.5 * 2.0**-52 * norm
    before = np.inf
    for _ in range(_MAX_STEPS):
        refined = value + solve(residual)
        left = targets - multiply(matrix, refined) - absolute * refined
        now = float(np.linalg.norm(left))
        if not now < before:
            break
        value, residual = refined, left
        if np.all(np.abs(residual).max(axis=0) <= bound * np.abs(value).max(axis=0)):
            return finish(Status.SOLVED, condition)
        if now > _LEAST_PROGRESS * before:
            break
        before = now
    share = float(np.linalg.norm(residual) / np.linalg.norm(targets))
    message = (
        f"refinement stopped at a residual of {share:.1e} of the targets, short of "
        "float64: the condition number is too large for a factor in float32. Use solve_cholesky "
        "or solve_tiled, or a larger relative ridge, such as "
        f"ridge={max(10 * relative, n**0.5 * 1e-6):.0e}"
    )
    return finish(Status.NOT_CONVERGED, condition, message)


def _factor(
    matrix: Matrix,
    relative: float,
    absolute: float,
    norm: float,
    store: str | os.PathLike[str] | None,
    memory: int | str | None,
    progress: bool | Callable[[float], None],
) -> tuple[Callable[[FloatArray], FloatArray] | None, float]:
    """Return what solves with a float32 factor, and the reciprocal condition."""
    n = matrix.shape[0]
    if store is not None:
        try:
            factor = factorise(
                matrix, relative, store=store, memory=memory, dtype="float32", progress=progress
            )
        except NotPositiveDefinite:
            return None, np.nan
        return factor.solve, np.nan
    work = load(matrix, "float32")
    work.reshape(-1)[:: n + 1] += np.float32(absolute)
    if factor_in_place(work) != 0:
        return None, np.nan
    arithmetic = Arithmetic(work.dtype)

    def solve(residual: FloatArray) -> FloatArray:
        # To columns of size 1: float32 would lose small residuals.
        scale = np.abs(residual).max(axis=0)
        scale[scale == 0] = 1.0
        right = (residual / scale).astype(np.float32)
        return arithmetic.solve_factored(work, right).astype(np.float64) * scale

    return solve, arithmetic.reciprocal_condition(work, norm)
