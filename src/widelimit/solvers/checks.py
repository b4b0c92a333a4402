"""What every solver asks of its input, and the errors when it does not get it."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.solvers.matrix import Matrix, as_matrix
from widelimit.solvers.solution import Factor, Unavailable

__all__ = [
    "LARGEST_RIDGE",
    "check_absolute",
    "check_columns",
    "check_gram",
    "check_matrix",
    "check_ridge",
    "check_targets",
    "check_weights",
    "entry",
    "epsilon",
    "largest_asymmetry",
    "leave_out",
    "named",
    "refuse_weights",
    "relative_norm",
]

# Rows looked at together: the temporary arrays hold this many rows of k in float64.
_BLOCK_ROWS = 128
# |k - k.T| up to this many roundings of max |k| is arithmetic, say of x @ z.T; more is a mistake.
_MAX_ASYMMETRY = 1000
# Sizes of targets, and of the diagonal with its ridge: squares, and their sums, are numbers then.
_SMALLEST_TARGET, _LARGEST_TARGET = 1e-100, 1e100
LARGEST_RIDGE = 1e100
"""Relative."""
_LARGEST_ABSOLUTE = {"float64": 1e150, "float32": 1e30}


def epsilon(dtype: np.dtype[Any]) -> float:
    """Relative rounding of entries given in a dtype: that of float64 at best."""
    return max(float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0, 2.0**-52)


def named(index: int, n: int, numbers: IntArray | None) -> str:
    """Return what messages call the sample of a row of k, (n, n)."""
    if numbers is None:
        return f"sample {index} (from 0) of n = {n}"
    return f"sample {numbers[index]} (from 0)"


def entry(row: int, column: int, numbers: IntArray | None) -> str:
    """Return what messages call an entry of k."""
    if numbers is not None:
        row, column = int(numbers[row]), int(numbers[column])
    return f"k[{row}, {column}]"


def largest_asymmetry(dtype: np.dtype[Any], largest: float) -> float:
    """Return how far ``|k - k.T|`` may be from 0, for a dtype and the largest ``|k|``."""
    return _MAX_ASYMMETRY * epsilon(dtype) * largest


def check_ridge(ridge: object) -> float:
    """Return the relative ridge, which multiplies ``trace(k)/n``, as a float >= 0.

    Raises
    ------
    TypeError, ValueError
        If it is not a number, or is negative, above 1e100, or NaN.
    """
    if isinstance(ridge, bool) or not isinstance(ridge, Real):
        raise TypeError(f"ridge must be a number, got {ridge!r} ({type(ridge).__name__})")
    # An integer may be none that a float holds, and a float of 32 bits holds no large limit.
    given: Any = ridge if isinstance(ridge, int) else float(ridge)
    if not 0 <= given < math.inf:  # also false for nan
        raise ValueError(
            f"ridge must be finite and >= 0, got {ridge!r}: it is relative, it multiplies "
            "trace(k)/n; use 0 for none, or a small number such as 1e-6"
        )
    if given > LARGEST_RIDGE:
        raise ValueError(
            f"ridge must be at most {LARGEST_RIDGE:g}, got {ridge!r}: it is relative, it "
            "multiplies trace(k)/n; ridge=1e6 leaves next to nothing to learn already"
        )
    return float(ridge)


def check_absolute(
    ridge: float, mean: float, weights: FloatArray | None = None, dtype: str = "float64"
) -> float:
    """Return the absolute ridge of a relative one.

    Parameters
    ----------
    ridge : float
        Relative, from `check_ridge`.
    mean : float
        What it multiplies.
    weights : ndarray or None
        Of the samples.
    dtype : {"float64", "float32"}
        Of the arithmetic.

    Raises
    ------
    ValueError
        If it is too large to calculate with.
    """
    absolute, limit = ridge * mean, _LARGEST_ABSOLUTE[dtype]
    added = absolute / (1.0 if weights is None else float(weights.min()))
    if not abs(added) <= limit:
        raise ValueError(
            f"ridge={ridge:g} must add at most {limit:g} to the diagonal of k, got {added:g}: it "
            f"multiplies trace(k)/n = {mean:g}, and is divided by the weights of samples; give a "
            "smaller ridge, or scale k or the weights"
        )
    return absolute


def check_targets(y: ArrayLike, n: int) -> FloatArray:
    """Return y as a new (n, targets) array of float64, columns first.

    Raises
    ------
    TypeError, ValueError
        If y is not real, is not (n,) or (n, targets) with targets >= 1, is not finite, or a
        column that is not all 0 has its largest entry beyond 1e-100 to 1e100.
    """
    array = _real_array("y", y)
    if array.ndim not in (1, 2) or array.shape[0] != n or array.size == 0:
        raise ValueError(
            f"y must have shape ({n},) or ({n}, targets) because k is ({n}, {n}), got shape "
            f"{array.shape}: give one row of y per row of k"
        )
    if not np.all(np.isfinite(array)):
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise ValueError(
            f"y must be finite, got NaN or infinity first in row {row}: drop or mend such samples"
        )
    targets = np.array(array.reshape(n, -1), dtype=np.float64, order="F")
    sizes = np.abs(targets).max(axis=0)
    wrong = (sizes > _LARGEST_TARGET) | ((sizes < _SMALLEST_TARGET) & (sizes != 0))
    if wrong.any():
        column = int(np.argmax(wrong))
        raise ValueError(
            f"y must be 0, or {_SMALLEST_TARGET:g} to {_LARGEST_TARGET:g} in size, so that its "
            f"squares are numbers, got up to {sizes[column]:g} in column {column}: divide y by that"
        )
    return targets


def check_weights(weights: FloatArray | None, n: int) -> FloatArray:
    """Return weights of samples, ones for None.

    Raises
    ------
    ValueError
        If they are not n finite numbers above 0.
    """
    if weights is None:
        return np.ones(n)
    values = np.asarray(weights, np.float64)
    if values.shape != (n,) or not np.all(np.isfinite(values)) or not np.all(values > 0):
        raise ValueError(
            f"weights must be {n} finite numbers above 0, got shape {values.shape} from "
            f"{values.min(initial=np.inf):g}: leave samples of weight 0 out"
        )
    return values


def check_columns(v: ArrayLike, n: int) -> FloatArray:
    """Return what a factor is given for its n samples, (n, m), as float64.

    Raises
    ------
    ValueError
        If it has another shape: of (n,) rows and columns would be taken for one another.
    """
    columns = np.asarray(v, np.float64)
    if columns.ndim != 2 or len(columns) != n:
        raise ValueError(
            f"a factor of {n} samples takes ({n}, m), a column for each target, got shape "
            f"{columns.shape}" + (": give v[:, None]" if columns.shape == (n,) else "")
        )
    return columns


def leave_out(factor: Factor, y: ArrayLike, value: ArrayLike | None) -> FloatArray:
    """Return what all other samples predict for each, from the diagonal of the inverse.

    Parameters
    ----------
    factor : Factor
    y, value : ndarray of shape (n, targets), or None
        Targets; and the solution for them, if it is known.
    """
    targets = check_columns(y, factor.n)
    solved = factor.solve(targets) if value is None else check_columns(value, factor.n)
    return targets - solved / factor.inverse_diagonal()[:, None]


def relative_norm(residual: FloatArray, targets: FloatArray) -> float:
    """Return ``|residual| / |targets|`` in the Frobenius norm, 0 if the targets are."""
    size = float(np.linalg.norm(targets))
    return float(np.linalg.norm(residual)) / size if size else 0.0


def refuse_weights(weights: FloatArray | None, ridge: float) -> None:
    """Refuse weights of a matrix that is not in memory; without a ridge they make no difference.

    Raises
    ------
    Unavailable
        If there is a ridge, and a weight that is not 1.
    """
    if ridge != 0 and weights is not None and not np.all(weights == 1):
        raise Unavailable(
            "sample weights (and samples that occur more than once, which weigh more) need the "
            "kernel in memory: remove repeated samples and weights, use ridge=0, or raise memory"
        )


def check_gram(k: ArrayLike, numbers: IntArray | None = None) -> tuple[NDArray[Any], FloatArray]:
    """Return k as an array, without a copy, and the sums of ``|k|`` over its rows.

    Parameters
    ----------
    k : array-like
    numbers : ndarray of int64, shape (n,), or None
        What messages call the rows of k; None: their places, from 0.

    Raises
    ------
    TypeError, ValueError
        If k is not real, square, finite and symmetric, or n = 0.

    Notes
    -----
    One pass over k; temporary arrays of ``3 * 8 * 128 * n`` bytes.
    """
    matrix = np.asarray(as_matrix(k))
    n = matrix.shape[0]
    row_sums = np.empty(n)
    largest = asymmetry = 0.0
    i = j = 0
    for start in range(0, n, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, n)
        block = matrix[start:stop].astype(np.float64)
        if not np.all(np.isfinite(block)):
            row, column = np.argwhere(~np.isfinite(block))[0]
            there = entry(start + int(row), int(column), numbers)
            raise ValueError(
                f"k must be finite, got {there} = {block[row, column]}: look "
                "for NaN, infinity or huge values in the samples of that row and column"
            )
        gap = block[:, start:] - matrix[start:, start:stop].T
        np.abs(gap, out=gap)
        row, column = np.unravel_index(int(gap.argmax()), gap.shape)
        if gap[row, column] > asymmetry:
            asymmetry = float(gap[row, column])
            i, j = start + int(row), start + int(column)
        del gap
        np.abs(block, out=block)
        row_sums[start:stop] = block.sum(axis=1)
        largest = max(largest, float(block.max()))
    allowed = largest_asymmetry(matrix.dtype, largest)
    if asymmetry > allowed:
        one, other = entry(i, j, numbers), entry(j, i, numbers)
        raise ValueError(
            f"k must be symmetric up to rounding ({allowed:.1e}), got {one} = "
            f"{matrix[i, j]:.9g} and {other} = {matrix[j, i]:.9g}: give the kernel of the "
            "training samples with themselves, in one order; if this is rounding after all, "
            "give (k + k.T) / 2"
        )
    return matrix, row_sums


def check_matrix(k: ArrayLike | Matrix) -> Matrix:
    """Return a stored matrix as it is, of which half is there; an array as `check_gram` does.

    For solvers that read one triangle: without it they would solve for another matrix.

    Raises
    ------
    TypeError, ValueError
        As `as_matrix` and `check_gram`.
    """
    matrix = as_matrix(k)
    return matrix if hasattr(matrix, "tile") else check_gram(cast("ArrayLike", matrix))[0]


def _real_array(name: str, value: ArrayLike) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}: convert it to float64"
        )
    return array
