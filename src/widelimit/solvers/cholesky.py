"""Kernel regression by a float64 Cholesky factorisation that works in place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import blas, lapack  # pyright: ignore[reportMissingTypeStubs]

from widelimit.solvers.blas import factor_in_place
from widelimit.solvers.checks import check_gram, check_ridge, check_targets, epsilon
from widelimit.solvers.matrix import Matrix, as_matrix, load
from widelimit.solvers.solution import FloatArray, Solution, Statistics, Status, failed

__all__ = ["is_definite", "solve_cholesky"]

# scipy has no type stubs, and its LAPACK and BLAS wrappers are compiled: the types are given here.
_lapack, _blas = cast("Any", lapack), cast("Any", blas)
_dpotrs: Callable[..., tuple[FloatArray, int]] = _lapack.dpotrs
_dpocon: Callable[..., tuple[float, int]] = _lapack.dpocon
_dsymm: Callable[..., FloatArray] = _blas.dsymm
_dtrsv: Callable[..., FloatArray] = _blas.dtrsv

_EPSILON = 2.0**-52
_BLOCK_ROWS = 128
_FIRST_RIDGE = 1e-6  # that is tried where none, or a smaller one, is not enough
_ENOUGH = "<which ridge>"  # stands in a message until a ridge has been tried
# Roundings that a pivot must exceed: n by the error bound of Cholesky, and for small n those of
# the entries of k, which are sums of products themselves.
_MIN_ROUNDINGS = 100
# A pivot below -1e-3 trace(k)/n is no rounding, not even that of a float32 kernel.
_MAX_ROUNDING_PIVOT = 1e-3


def solve_cholesky(
    k: ArrayLike | Matrix, y: ArrayLike, ridge: float = 0.0, *, overwrite_k: bool = False
) -> Solution:
    """Solve ``(k + ridge trace(k)/n I) a = y`` by a Cholesky factorisation in float64.

    The ridge is relative: it multiplies ``trace(k)/n``, the mean of the diagonal of k. Nothing is
    repaired: the ridge used is the ridge asked for, and a k that is not positive definite with
    it has no solution. ridge = 0 is the kernel regression of the paper (Section 3, Eq. 8).

    Parameters
    ----------
    k : Gram, or array-like of shape (n, n), float32 or float64
        Symmetric Gram matrix of the training samples, finite. Integers are read as float64.
    y : array-like of shape (n,) or (n, targets)
        Targets, finite real numbers.
    ridge : float
        Relative ridge, finite and >= 0.
    overwrite_k : bool
        Whether k may serve as the workspace. If it is a contiguous, writeable array of float64,
        no copy is made and **its contents are destroyed**, also when an error is raised because
        k is not positive definite. Any other k is copied and left alone.

    Returns
    -------
    Solution
        ``value`` (float64, shape of y), ``status`` and ``statistics``. The status is
        ``Status.ILL_CONDITIONED`` if ``1 / |A^-1|_1 < sqrt(n) eps trace(k)/n`` by estimate, where
        A is k with the ridge: its smallest eigenvalue is then no larger than the effect of
        rounding the entries of k to their dtype, eps = 1.2e-7 for float32, 2.2e-16 for float64.
        It is ``Status.NOT_POSITIVE_DEFINITE``, and the value NaN, if a pivot is below
        ``max(n, 100) 2.2e-16`` times the diagonal; the message then gives the pivot, the sample
        it belongs to and the one that it repeats, and a ridge that was tried and is enough.

    Raises
    ------
    TypeError
        If k or y is not real, or ridge is not a number.
    ValueError
        If k is not square, symmetric and finite, y does not fit k, or ridge is negative.

    Notes
    -----
    Cost: ``n^3/3 + 4 n^2 targets`` flops. Memory beside k and y: one float64 copy of k, ``8 n^2``
    bytes (none with overwrite_k), and ``3100 n + 32 n targets`` bytes. One triangle of the
    workspace becomes the factor and the other keeps k, so that the residual needs no second copy.
    Finding a ridge that is enough takes a factorisation for each that is tried, mostly one.
    """
    start = time.perf_counter()
    dtype = as_matrix(k).dtype
    if hasattr(k, "tile"):  # stored: read into the buffer that becomes the factor
        k, overwrite_k = load(as_matrix(k), "float64"), True
    matrix, row_sums = check_gram(cast("ArrayLike", k))
    n = matrix.shape[0]
    targets = check_targets(y, n)
    relative = check_ridge(ridge)

    work = _workspace(matrix, overwrite_k)
    # A view: the diagonal is changed in place, there is no k + ridge * eye(n).
    diagonal_view = work.reshape(-1)[:: n + 1]
    mean_diagonal = float(diagonal_view.mean())
    ridge_absolute = relative * mean_diagonal
    row_sums -= np.abs(diagonal_view)
    diagonal_view += ridge_absolute
    diagonal = diagonal_view.copy()
    norm = float(np.max(row_sums + np.abs(diagonal)))

    # The lower triangle becomes the factor, the strict upper triangle keeps k.
    weakest = factor_in_place(work) - 1
    if weakest < 0:
        # Whether Cholesky gets through a singular k is luck, and the value is then noise: it
        # cannot tell a pivot of some roundings of the diagonal from zero.
        pivots = diagonal_view**2 / diagonal
        if not is_definite(pivots):
            weakest = int(pivots.argmin())
    if weakest >= 0:
        why = _explain_pivot(work, diagonal, weakest, mean_diagonal, relative, dtype)
        enough = _find_ridge(work, diagonal - ridge_absolute, mean_diagonal, relative)
        message = why.replace(_ENOUGH, enough)
        return failed(y, relative, ridge_absolute, message, time.perf_counter() - start)
    # LAPACK wants columns first. The transpose is just that, and is a view.
    columns = work.T
    value, _ = _dpotrs(columns, targets, lower=0)
    rcond, _ = _dpocon(columns, norm, uplo="U")

    diagonal_view[:] = diagonal
    residual = targets - _dsymm(1.0, columns, value, lower=1)
    size = float(np.linalg.norm(targets))
    # rcond * norm = 1 / |A^-1|_1, at most the smallest eigenvalue; independent roundings of the
    # entries of k are a matrix of norm sqrt(n) eps trace(k)/n, up to a small factor.
    noise = n**0.5 * epsilon(dtype) * mean_diagonal
    return Solution(
        value=value.reshape(np.shape(y)),
        status=Status.ILL_CONDITIONED if rcond * norm < noise else Status.SOLVED,
        statistics=Statistics(
            n=n,
            ridge=relative,
            ridge_absolute=ridge_absolute,
            residual_norm=float(np.linalg.norm(residual)) / size if size else 0.0,
            reciprocal_condition=float(rcond),
            seconds=time.perf_counter() - start,
        ),
    )


def _workspace(matrix: NDArray[Any], overwrite: bool) -> FloatArray:
    """Return a row-first float64 array that holds the matrix and may be destroyed."""
    if overwrite and matrix.dtype == np.float64 and matrix.flags.writeable:
        if matrix.flags.c_contiguous:
            return matrix
        if matrix.flags.f_contiguous:
            return matrix.T
    return np.array(matrix, dtype=np.float64, order="C")


def is_definite(pivots: FloatArray) -> bool:
    """Return whether pivots, divided by the diagonal, exceed rounding."""
    return bool(pivots.min() >= max(pivots.size, _MIN_ROUNDINGS) * _EPSILON)


def _find_ridge(work: FloatArray, diagonal: FloatArray, mean: float, ridge: float) -> str:
    """Say which relative ridge is enough: powers of ten are tried, from 1e-6 on.

    The strict upper triangle of `work` keeps k, `diagonal` is that of k. `work` is destroyed.
    """
    n = diagonal.size
    if mean <= 0:
        return "no relative ridge can be enough, since trace(k)/n is not positive"
    larger = max(10 * ridge, _FIRST_RIDGE)
    while True:
        for start in range(0, n, _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            square = np.triu(work[rows, rows], 1)
            work[start:, rows] = work[rows, start:].T
            work[rows, rows] = square + square.T
        work.reshape(-1)[:: n + 1] = entries = diagonal + larger * mean
        if entries.min() > 0:
            info = factor_in_place(work)
            if info == 0 and is_definite(work.diagonal() ** 2 / entries):
                return f"ridge={larger:g} was tried and is enough"
        larger *= 10


def _explain_pivot(
    work: FloatArray,
    diagonal: FloatArray,
    index: int,
    mean_diagonal: float,
    ridge: float,
    dtype: np.dtype[Any],
) -> str:
    """Say why a row has no pivot to speak of, and what to do.

    The rows before ``index`` are factored. Solving with them gives the pivot, whatever the LAPACK
    in use left on the diagonal, and the combination of earlier samples that row ``index`` is.
    """
    n = diagonal.size
    # Solve with all of work, so that no block of it is copied: the rows past the leading ones
    # have no influence, since they come last in the first solve and are zero in the second.
    work.reshape(-1)[index * (n + 1) :: n + 1] = 1.0
    column = np.zeros(n)
    column[:index] = work[:index, index]
    half = _dtrsv(work.T, column, lower=0, trans=1)
    half[index:] = 0.0
    weights = _dtrsv(work.T, half, lower=0)[:index]

    pivot = float(diagonal[index] - half @ half)
    unit, name = (mean_diagonal, " trace(k)/n") if mean_diagonal > 0 else (1.0, "")
    message = (
        f"k is not positive definite to rounding, with relative ridge {ridge:g}: its smallest "
        f"pivot is {pivot / unit:.3g}{name}, at sample {index} (from 0) of n = {n}. "
    )
    if diagonal[index] <= 0:
        return message + (
            f"k[{index}, {index}] is {diagonal[index]:.3g} with the ridge; it is 0 for a sample of "
            "zeros: remove such samples from the training set, or give the network a bias "
            f"(b_std > 0), or add a larger relative ridge: {_ENOUGH}."
        )
    if pivot < -_MAX_ROUNDING_PIVOT * unit:
        return message + (
            "This is far beyond rounding, so k is no Gram matrix: compute it again, from the "
            f"training samples in one order. As for a larger relative ridge, {_ENOUGH}."
        )
    nearest = int(np.argmax(np.abs(weights)))
    remedies = [
        f"add a larger relative ridge: {_ENOUGH}",
        "remove samples that repeat another one, or are a positive multiple of it when the "
        "network has no biases",
    ]
    if dtype == np.float32:
        remedies.insert(0, 'compute the kernel with dtype="float64" (k is float32)')
    return message + (
        "To rounding this sample is a combination of those before it, above all of sample "
        f"{nearest} (weight {weights[nearest]:.3g}): {'; or '.join(remedies)}."
    )
