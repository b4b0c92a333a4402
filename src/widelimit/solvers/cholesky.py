"""Kernel regression by a float64 Cholesky factorisation that works in place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import blas  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray, IntArray
from widelimit.solvers.blas import Arithmetic, factor_in_place
from widelimit.solvers.checks import (
    LARGEST_RIDGE,
    check_absolute,
    check_columns,
    check_gram,
    check_ridge,
    check_targets,
    check_weights,
    entry,
    epsilon,
    largest_asymmetry,
    leave_out,
    named,
    relative_norm,
)
from widelimit.solvers.matrix import Bordered, Matrix, as_matrix, load
from widelimit.solvers.solution import (
    Method,
    Solution,
    Statistics,
    Status,
    Unavailable,
    failed,
)
from widelimit.solvers.spectrum import Spectrum

__all__ = [
    "CholeskyFactor",
    "column_squares",
    "is_definite",
    "solve_cholesky",
]

# scipy has no type stubs, and its BLAS wrappers are compiled: the type is given here.
_dtrsv: Callable[..., FloatArray] = cast("Any", blas).dtrsv
_ARITHMETIC = Arithmetic(np.dtype(np.float64))

_EPSILON = 2.0**-52
_BLOCK_ROWS = 128
_BLOCK_COLUMNS = 128
_FIRST_RIDGE = 1e-6  # that is tried where none, or a smaller one, is not enough
_ENOUGH = "<which ridge>"  # stands in a message until a ridge has been tried
# Roundings that a pivot must exceed: n by the error bound of Cholesky, and for small n those of
# the entries of k, which are sums of products themselves.
_MIN_ROUNDINGS = 100
# A pivot below -1e-3 trace(k)/n is no rounding, not even that of a float32 kernel.
_MAX_ROUNDING_PIVOT = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class CholeskyFactor:
    """`Factor` in memory: ``A = k + r W^-1 = L L^T`` and k itself, in one square.

    Parameters
    ----------
    square : ndarray of float64, shape (n, n), C-contiguous
        L in the lower triangle, k above the diagonal.
    diagonal : ndarray of float64, shape (n,)
        Of k.
    weights : ndarray of float64, shape (n,)
        Of the samples.
    ridge, ridge_absolute : float
        Relative, and r.
    precision : float
        Relative rounding of the entries of k, which may have been float32.
    """

    square: FloatArray
    diagonal: FloatArray
    weights: FloatArray
    ridge: float
    ridge_absolute: float
    precision: float

    @property
    def method(self) -> Method:
        """``"cholesky"``."""
        return "cholesky"

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.square)

    @property
    def time(self) -> float:
        """The end of training."""
        return np.inf

    @property
    def location(self) -> None:
        """In memory."""
        return None

    @property
    def noise(self) -> FloatArray:
        """What is added to the diagonal of k, (n,)."""
        return self.ridge_absolute / self.weights

    def solve(self, y: FloatArray) -> FloatArray:
        """Return ``A^-1 y``, (n, m), in ``2 n^2 m`` flops."""
        return _ARITHMETIC.solve_factored(self.square, check_columns(y, self.n))

    def solution(
        self,
        k: Matrix,
        y: ArrayLike,
        *,
        norm: float | None = None,
        start: float | None = None,
    ) -> Solution:
        """Solve, and say how well.

        Parameters
        ----------
        k : matrix of shape (n, n)
            Only its dtype is looked at.
        y : array-like of shape (n,) or (n, targets)
        norm : float or None
            Largest sum of ``|A|`` over a row; None: it is computed.
        start : float or None
            Of the work, by `time.perf_counter`; None: now.
        """
        begun = time.perf_counter() if start is None else start
        n, square = self.n, self.square
        targets = check_targets(y, n)
        value = self.solve(targets)
        if norm is None:
            norm = float((_row_sums(square) + np.abs(self.diagonal + self.noise)).max())
        residual = targets - self.multiply(value)
        rcond = _ARITHMETIC.reciprocal_condition(square, norm)
        # rcond * norm = 1 / |A^-1|_1, at most the smallest eigenvalue; independent roundings of
        # the entries of k are a matrix of norm sqrt(n) eps trace(k)/n, up to a small factor.
        uncertain = n**0.5 * epsilon(k.dtype) * float(self.diagonal.mean())
        return Solution(
            value=value.reshape(np.shape(y)),
            status=Status.ILL_CONDITIONED if rcond * norm < uncertain else Status.SOLVED,
            statistics=Statistics(
                n=n,
                ridge=self.ridge,
                ridge_absolute=self.ridge_absolute,
                residual_norm=relative_norm(residual, targets),
                reciprocal_condition=rcond,
                seconds=time.perf_counter() - begun,
            ),
            factor=self,
        )

    def multiply(self, v: FloatArray) -> FloatArray:
        """Return ``A v``."""
        return self.multiply_gram(v) + self.noise[:, None] * v

    def multiply_gram(self, v: FloatArray) -> FloatArray:
        """Return ``k v``."""
        v = check_columns(v, self.n)
        out = self.diagonal[:, None] * v
        for start in range(0, self.n, _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            block = np.triu(self.square[rows, start:], 1)
            out[rows] += block @ v[start:]
            out[start:] += block.T @ v[rows]
        return out

    def inverse_diagonal(self) -> FloatArray:
        """Return the diagonal of ``A^-1``, (n,): ``n^3/3`` flops, and a copy of the square."""
        inverse = self.square.copy()
        _ARITHMETIC.invert_triangle(inverse)
        return column_squares(inverse)

    def log_determinant(self) -> float:
        """Return ``log det A``."""
        return 2 * float(np.log(self.square.diagonal()).sum())

    def gram(self) -> FloatArray:
        """Return k, (n, n), as a new array."""
        k = np.triu(self.square, 1)
        k += k.T
        k.reshape(-1)[:: self.n + 1] = self.diagonal
        return k

    def left_out(self, y: FloatArray, value: FloatArray | None = None) -> FloatArray:
        """Return what all other samples predict for each: `inverse_diagonal`, and the value."""
        return leave_out(self, y, value)

    def spectrum(self) -> Spectrum:
        """Return the eigenvectors, in ``9 n^3`` flops."""
        return Spectrum.of(self.gram(), self.weights, precision=self.precision)

    def _check_beginning(self, k: Matrix) -> None:
        """Refuse a matrix that does not begin with the one of this factor, but for rounding."""
        n = self.n
        scale = np.sqrt(np.abs(self.diagonal))
        allowed = max(largest_asymmetry(k.dtype, 1.0), 1000 * self.precision)
        for start in range(0, n, _BLOCK_ROWS):
            rows = slice(start, min(n, start + _BLOCK_ROWS))
            own = np.triu(self.square[rows, start:], 1)
            own.reshape(-1)[:: own.shape[1] + 1][: len(own)] = self.diagonal[rows]
            gap = np.abs(np.triu(k[rows, start:n]) - own)
            wrong = ~(gap <= allowed * scale[rows, None] * scale[start:n])  # also true for nan
            if wrong.any():
                i, j = np.argwhere(wrong)[0]
                raise ValueError(
                    f"k must begin with the matrix of the factor that is extended, {n} x {n}, got "
                    f"k[{start + i}, {start + j}] = {k[rows, start:n][i, j]:.9g} where that has "
                    f"{own[i, j]:.9g}: give the kernel of the same samples by the same network, "
                    "with new ones after them, or leave extends out"
                )

    def described(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return facts and arrays."""
        arrays: dict[str, NDArray[Any]] = {
            "factor_square": self.square,
            "factor_diagonal": self.diagonal,
        }
        return {"kind": self.method, "precision": self.precision}, arrays

    def extended(self, k: Matrix, weights: FloatArray | None = None) -> CholeskyFactor:
        """Return the factor of more samples, of which the new rows are computed only.

        For p new ones ``n^2 p + n p^2`` flops, and a copy of the square. Unless it is `Bordered`,
        whose old part is not there, k must begin with that of the factor, or ValueError.
        """
        n, size = self.n, k.shape[0]
        if not isinstance(k, Bordered):
            self._check_beginning(k)
        shares = check_weights(weights, size)
        full_noise = self.ridge_absolute / shares
        if not np.array_equal(full_noise[:n], self.noise):
            raise Unavailable(
                "a new copy of an old sample, or another weight, changes what the ridge adds to "
                "the old part of a factor: solve all of k again"
            )
        columns, corner = k[:n, n:], k[n:, n:]
        square = np.empty((size, size))
        square[:n, :n] = self.square
        square[:n, n:] = columns
        diagonal = np.concatenate([self.diagonal, corner.diagonal()])
        rows = square[n:, :n]
        rows[...] = np.transpose(columns)
        _ARITHMETIC.divide(rows, square[:n, :n])
        triangle = np.array(corner, np.float64, order="C")
        triangle[np.diag_indices(len(corner))] += full_noise[n:]
        _ARITHMETIC.subtract_square(triangle, rows)
        found = factor_in_place(triangle)
        square[n:, n:] = triangle  # above its diagonal still the corner
        entries = diagonal + full_noise
        if found != 0 or not is_definite(square.diagonal() ** 2 / entries):
            raise np.linalg.LinAlgError("k with the new samples is not positive definite")
        mean = float(np.average(diagonal, weights=shares))
        ridge = self.ridge_absolute / mean if self.ridge_absolute else 0.0
        precision = max(self.precision, epsilon(k.dtype))
        return CholeskyFactor(square, diagonal, shares, ridge, self.ridge_absolute, precision)


def _row_sums(square: FloatArray) -> FloatArray:
    """Return the sums of ``|A|`` over the rows of a symmetric A but for its diagonal.

    It is given by what is above that.
    """
    sums = np.zeros(len(square))
    for start in range(0, len(square), _BLOCK_ROWS):
        block = np.abs(np.triu(square[start : start + _BLOCK_ROWS, start:], 1))
        sums[start : start + _BLOCK_ROWS] += block.sum(axis=1)
        sums[start:] += block.sum(axis=0)
    return sums


def column_squares(triangle: NDArray[Any]) -> FloatArray:
    """Return the sums of the squares of the columns of the lower triangle of a matrix."""
    n = len(triangle)
    sums = np.empty(n)
    for start in range(0, n, _BLOCK_COLUMNS):
        block = np.tril(triangle[start:, start : start + _BLOCK_COLUMNS])
        sums[start : start + _BLOCK_COLUMNS] = np.einsum("ij,ij->j", block, block)
    return sums


def solve_cholesky(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float = 0.0,
    *,
    weights: FloatArray | None = None,
    numbers: IntArray | None = None,
    overwrite_k: bool = False,
) -> Solution:
    """Solve ``(k + ridge trace(k)/n I) a = y`` by a Cholesky factorisation in float64.

    The ridge is relative: it multiplies ``trace(k)/n``, the mean of the diagonal of k. Nothing is
    repaired: the ridge used is the ridge asked for, and a k that is not positive definite with
    it has no solution. ridge = 0 is the kernel regression of the paper (Section 3, Eq. 5).

    Parameters
    ----------
    k : Gram, or array-like of shape (n, n), float32 or float64
        Symmetric Gram matrix of the training samples, finite. Integers are read as float64.
    y : array-like of shape (n,) or (n, targets)
        Targets, finite real numbers.
    ridge : float
        Relative ridge, finite and >= 0.
    weights : ndarray of shape (n,) or None
        Of the samples, above 0. A sample of weight w counts as w equal ones: the ridge is
        ``ridge sum(w_i k_ii) / sum(w)``, and what is added to the diagonal is that divided by w_i.
    numbers : ndarray of int64, shape (n,), or None
        What messages call the samples, where they are some of more; None: their places, from 0.
    overwrite_k : bool
        Whether k may serve as the workspace. If it is a contiguous, writeable array of float64,
        no copy is made, **its contents are destroyed**, also when there is no solution or the work
        is interrupted, and the factor lies in it. Any other k is copied and left alone.

    Returns
    -------
    Solution
        ``value`` (float64, shape of y), ``status``, ``statistics`` and ``factor``. The status is
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
    given = as_matrix(k)
    if hasattr(k, "tile"):  # stored: read into the buffer that becomes the factor
        k, overwrite_k = load(given, "float64"), True
    matrix, row_sums = check_gram(cast("ArrayLike", k), numbers)
    n = matrix.shape[0]
    check_targets(y, n)
    relative = check_ridge(ridge)
    shares = check_weights(weights, n)

    work = _workspace(matrix, overwrite_k)
    # A view: the diagonal is changed in place, there is no k + ridge * eye(n).
    diagonal_view = work.reshape(-1)[:: n + 1]
    mean_diagonal = float(np.average(diagonal_view, weights=shares))
    ridge_absolute = check_absolute(relative, mean_diagonal, shares)
    own = diagonal_view.copy()
    row_sums -= np.abs(own)
    noise = ridge_absolute / shares
    diagonal_view += noise
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
        why = _explain_pivot(work, diagonal, weakest, mean_diagonal, relative, given.dtype, numbers)
        enough = _find_ridge(work, own, mean_diagonal / shares, relative)
        message = why.replace(_ENOUGH, enough)
        seconds = time.perf_counter() - start
        return failed(y, relative, ridge_absolute, message, seconds)
    precision = epsilon(given.dtype)
    factor = CholeskyFactor(work, own, shares, relative, ridge_absolute, precision)
    return factor.solution(given, y, norm=norm, start=start)


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


def _find_ridge(work: FloatArray, diagonal: FloatArray, unit: FloatArray, ridge: float) -> str:
    """Say which relative ridge is enough: powers of ten are tried, from 1e-6 on.

    The strict upper triangle of `work` keeps k, `diagonal` is that of k, `unit` what a relative
    ridge of 1 adds to it. `work` is destroyed.
    """
    n = diagonal.size
    if unit[0] <= 0:
        return "no relative ridge can be enough, since trace(k)/n is not positive"
    larger = max(10 * ridge, _FIRST_RIDGE)
    while larger <= LARGEST_RIDGE:
        for start in range(0, n, _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            square = np.triu(work[rows, rows], 1)
            work[start:, rows] = work[rows, start:].T
            work[rows, rows] = square + square.T
        work.reshape(-1)[:: n + 1] = entries = diagonal + larger * unit
        if entries.min() > 0:
            info = factor_in_place(work)
            if info == 0 and is_definite(work.diagonal() ** 2 / entries):
                return f"ridge={larger:g} was tried and is enough"
        larger *= 10
    return "none that is allowed is enough"


def _explain_pivot(
    work: FloatArray,
    diagonal: FloatArray,
    index: int,
    mean_diagonal: float,
    ridge: float,
    dtype: np.dtype[Any],
    numbers: IntArray | None,
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

    with np.errstate(over="ignore"):
        pivot = float(diagonal[index] - half @ half)
    unit, name = (mean_diagonal, " trace(k)/n") if mean_diagonal > 0 else (1.0, "")
    message = (
        f"k is not positive definite to rounding, with relative ridge {ridge:g}: its smallest "
        f"pivot is {pivot / unit:.3g}{name}, at {named(index, n, numbers)}. "
    )
    if diagonal[index] <= 0:
        return message + (
            f"{entry(index, index, numbers)} is {diagonal[index]:.3g} with the ridge; it is 0 for "
            "a sample of zeros: remove such samples from the training set, or give the network a "
            f"bias (b_std > 0), or add a larger relative ridge: {_ENOUGH}."
        )
    if pivot < -_MAX_ROUNDING_PIVOT * unit:
        return message + (
            "This is far beyond rounding, so k is no Gram matrix: compute it again, from the "
            f"training samples in one order. As for a larger relative ridge, {_ENOUGH}."
        )
    nearest = int(np.argmax(np.abs(weights)))
    other = nearest if numbers is None else int(numbers[nearest])
    remedies = [
        f"add a larger relative ridge: {_ENOUGH}",
        "remove samples that repeat another one, or are a positive multiple of it when the "
        "network has no biases",
    ]
    if dtype == np.float32:
        remedies.insert(0, 'compute the kernel with dtype="float64" (k is float32)')
    return message + (
        "To rounding this sample is a combination of those before it, above all of sample "
        f"{other} (weight {weights[nearest]:.3g}): {'; or '.join(remedies)}."
    )
