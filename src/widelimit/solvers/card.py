"""Kernel regression by a Cholesky factorisation in float64 in the memory of an NVIDIA card."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack  # pyright: ignore[reportMissingTypeStubs]
from scipy.sparse import linalg as sparse_linalg  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray, IntArray
from widelimit.solvers.checks import (
    check_absolute,
    check_columns,
    check_ridge,
    check_targets,
    check_weights,
    epsilon,
    largest_asymmetry,
    leave_out,
    named,
    relative_norm,
)
from widelimit.solvers.cholesky import CholeskyFactor, is_definite
from widelimit.solvers.matrix import Matrix, as_matrix, pieces
from widelimit.solvers.solution import Method, Solution, Statistics, Status, Unavailable, failed
from widelimit.solvers.spectrum import Spectrum

__all__ = ["CardFactor", "Device", "card_device", "solve_card"]

_sparse: Any = sparse_linalg  # scipy has no type stubs
_lapack: Any = lapack
_BLOCK = 4096  # columns of a panel
_LOADED = 2048  # rows of a matrix in memory that travel at a time
_PANELS = 4  # of temporary memory, beside the square
_SQUARES = 5  # of memory, to find eigenvectors


@dataclass(frozen=True, slots=True)
class Device:
    """The arrays of a card: CuPy, or NumPy in its place.

    Parameters
    ----------
    xp : module
        With the interface of NumPy.
    cholesky : callable
        As `numpy.linalg.cholesky`, with its error.
    solve_triangular : callable
        As `scipy.linalg.solve_triangular`.
    to_host : callable
        From an array of the card to one of NumPy.
    free_memory : callable
        Bytes that can still be allocated.
    block : int
        Columns of a panel.
    """

    xp: Any
    cholesky: Callable[[Any], Any]
    solve_triangular: Callable[..., Any]
    to_host: Callable[[Any], NDArray[Any]]
    free_memory: Callable[[], int]
    block: int = _BLOCK

    def need(self, n: int, *, vectors: bool = False) -> int:
        """Return the bytes that a factor of n samples, or their eigenvectors, takes."""
        if vectors:  # what is decomposed, once as it came, and the work space of cuSOLVER
            return _SQUARES * 8 * n * n
        return 8 * n * n + _PANELS * 8 * n * min(n, self.block)

    def fits(self, n: int, *, vectors: bool = False) -> bool:
        """Return whether there is room for that."""
        return self.need(n, vectors=vectors) <= self.free_memory()

    def eigenvectors(self, a: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return eigenvalues, ascending, and eigenvectors of a symmetric matrix."""
        values, vectors = self.xp.linalg.eigh(self.xp.asarray(a))
        return self.to_host(values), self.to_host(vectors)


def card_device() -> Device:
    """Return the first card.

    Raises
    ------
    RuntimeError
        If there is none, or no CuPy; with what to do.
    """
    from widelimit.backends.cuda.cupy_device import find_devices

    device = find_devices()[0]
    cupy: Any = import_module("cupy")
    cupyx: Any = import_module("cupyx")
    linalg: Any = import_module("cupyx.scipy.linalg")

    def free() -> int:
        cupy.get_default_memory_pool().free_all_blocks()
        return device.free_memory()

    def cholesky(a: Any) -> Any:
        with cupyx.errstate(linalg="raise"):
            return cupy.linalg.cholesky(a)

    return Device(cupy, cholesky, linalg.solve_triangular, cupy.asnumpy, free)


@dataclass(frozen=True, slots=True, eq=False)
class CardFactor:
    """`Factor` on a card: ``A = k + r W^-1 = L L^T`` and k itself, in one square.

    Parameters
    ----------
    device : Device
    square : array of the device, float64, shape (n, n)
        L in the lower triangle, k above the diagonal.
    diagonal : ndarray of float64, shape (n,)
        Of k.
    weights : ndarray of float64, shape (n,)
        Of the samples.
    ridge, ridge_absolute : float
        Relative, and r.
    norm : float
        Largest sum of ``|A|`` over a row.
    precision : float
        Relative rounding of the entries of k, which may have been float32.
    """

    device: Device
    square: Any
    diagonal: FloatArray
    weights: FloatArray
    ridge: float
    ridge_absolute: float
    norm: float
    precision: float

    @property
    def method(self) -> Method:
        """``"card"``."""
        return "card"

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.diagonal)

    @property
    def time(self) -> float:
        """The end of training."""
        return np.inf

    @property
    def location(self) -> None:
        """In memory."""
        return None

    @property
    def _parts(self) -> list[slice]:
        return _blocks(self.n, self.device.block)

    def solve(self, y: FloatArray) -> FloatArray:
        """Return ``A^-1 y``, (n, m), in ``2 n^2 m`` flops."""
        solve, square = self.device.solve_triangular, self.square
        x = self.device.xp.array(check_columns(y, self.n), np.float64)
        for part in self._parts:
            x[part] -= square[part, : part.start] @ x[: part.start]
            x[part] = solve(square[part, part], x[part], lower=True)
        for part in reversed(self._parts):
            x[part] -= square[part.stop :, part].T @ x[part.stop :]
            x[part] = solve(square[part, part], x[part], lower=True, trans=1)
        return self.device.to_host(x)

    def solution(self, k: Matrix, y: ArrayLike, *, start: float | None = None) -> Solution:
        """Solve, and say how well.

        Parameters
        ----------
        k : matrix of shape (n, n)
            Only its dtype is looked at.
        y : array-like of shape (n,) or (n, targets)
        start : float or None
            Of the work, by `time.perf_counter`; None: now.
        """
        begun = time.perf_counter() if start is None else start
        targets = check_targets(y, self.n)
        value = self.solve(targets)
        residual = targets - self.multiply(value)
        rcond = self._reciprocal_condition()
        uncertain = self.n**0.5 * epsilon(k.dtype) * float(self.diagonal.mean())
        ill = rcond * self.norm < uncertain
        return Solution(
            value=value.reshape(np.shape(y)),
            status=Status.ILL_CONDITIONED if ill else Status.SOLVED,
            statistics=Statistics(
                n=self.n,
                ridge=self.ridge,
                ridge_absolute=self.ridge_absolute,
                residual_norm=relative_norm(residual, targets),
                reciprocal_condition=rcond,
                seconds=time.perf_counter() - begun,
            ),
            factor=self,
        )

    def _reciprocal_condition(self) -> float:
        def solve(v: FloatArray) -> FloatArray:
            return self.solve(v.reshape(self.n, -1))

        calls = dict.fromkeys(("matvec", "rmatvec", "matmat", "rmatmat"), solve)
        inverse = _sparse.LinearOperator((self.n, self.n), dtype=np.float64, **calls)
        return 1 / (self.norm * float(_sparse.onenormest(inverse, t=1)))

    def multiply(self, v: FloatArray) -> FloatArray:
        """Return ``A v``."""
        return self.multiply_gram(v) + (self.ridge_absolute / self.weights)[:, None] * v

    def multiply_gram(self, v: FloatArray) -> FloatArray:
        """Return ``k v``."""
        xp = self.device.xp
        x = xp.array(check_columns(v, self.n), np.float64)
        out = xp.array(self.diagonal)[:, None] * x
        for part in self._parts:
            corner = xp.triu(self.square[part, part], 1)
            across = self.square[part, part.stop :]
            out[part] += corner @ x[part] + corner.T @ x[part] + across @ x[part.stop :]
            out[part.stop :] += across.T @ x[part]
        return self.device.to_host(out)

    def gram(self) -> FloatArray:
        """Return k, (n, n), as a new array in the memory of this side."""
        return self._in_memory().gram()

    def inverse_diagonal(self) -> FloatArray:
        """Return the diagonal of ``A^-1``, (n,): ``n^3/3`` flops, and a panel of memory."""
        xp, square, parts = self.device.xp, self.square, self._parts
        out = np.empty(self.n)
        for first, columns in enumerate(parts):
            # Columns of L^-1, by forward substitution from the block on the diagonal on.
            width = columns.stop - columns.start
            z = xp.empty((self.n - columns.start, width))
            for rows in parts[first:]:
                here = slice(rows.start - columns.start, rows.stop - columns.start)
                right = xp.eye(width) if rows == columns else 0
                left = square[rows, columns.start : rows.start] @ z[: here.start]
                z[here] = self.device.solve_triangular(square[rows, rows], right - left, lower=True)
            out[columns] = self.device.to_host(xp.einsum("ij,ij->j", z, z))
        return out

    def log_determinant(self) -> float:
        """Return ``log det A``."""
        pivots = self.device.to_host(self.square.diagonal())
        return 2 * float(np.log(pivots).sum())

    def left_out(self, y: FloatArray, value: FloatArray | None = None) -> FloatArray:
        """Return what all other samples predict for each: `inverse_diagonal`, and the value."""
        return leave_out(self, y, value)

    def _in_memory(self) -> CholeskyFactor:
        square = self.device.to_host(self.square)
        given = (self.diagonal, self.weights, self.ridge, self.ridge_absolute, self.precision)
        return CholeskyFactor(square, *given)

    def spectrum(self) -> Spectrum:
        """Return the eigenvectors, computed on the card if it has room for them as well."""
        if not self.device.fits(self.n, vectors=True):
            return self._in_memory().spectrum()
        found = self.device.eigenvectors
        return Spectrum.of(self.gram(), self.weights, found, precision=self.precision)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a factor in memory: no card is needed to use it."""
        factor = self._in_memory()
        values = (factor.square, factor.diagonal, factor.weights)
        return CholeskyFactor, (*values, self.ridge, self.ridge_absolute, self.precision)

    def described(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return facts and arrays of the same factor in memory: no card is needed to use it."""
        return self._in_memory().described()

    def extended(self, k: Matrix, weights: FloatArray | None = None) -> CardFactor:
        """Refuse: the square would be there twice."""
        raise Unavailable(
            "a factor on a card does not grow: solve all of k again, it takes as long"
        )


def solve_card(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float = 0.0,
    *,
    weights: FloatArray | None = None,
    numbers: IntArray | None = None,
    device: Device | None = None,
) -> Solution:
    """Solve ``(k + ridge trace(k)/n I) a = y`` by a Cholesky factorisation on an NVIDIA card.

    As `solve_cholesky`, in float64; the matrix travels to the card a piece at a time.

    Parameters
    ----------
    k, y, ridge, weights, numbers
        As for `solve_cholesky`.
    device : Device or None
        None: the first card.

    Returns
    -------
    Solution
        With a `CardFactor`, whose memory is given back when it goes. Status as for
        `solve_cholesky`; a k that is not positive definite has no solution, and the message names
        the sample, but no ridge that is enough.

    Raises
    ------
    TypeError
        If k or y is not real, or ridge is not a number.
    ValueError
        If k is not square, symmetric and finite, y does not fit k, or ridge is negative.
    RuntimeError
        If there is no card, or no CuPy.
    MemoryError
        Before the work, if ``8 n^2`` bytes and four panels of ``8 n`` times 4,096 do not fit.

    Notes
    -----
    Cost: ``n^3/3 + 4 n^2 targets`` flops, almost all of them in products of matrices.
    """
    start = time.perf_counter()
    matrix = as_matrix(k)
    n = matrix.shape[0]
    check_targets(y, n)
    relative = check_ridge(ridge)
    shares = check_weights(weights, n)
    card = card_device() if device is None else device
    need, free = card.need(n), card.free_memory()
    if need > free:
        raise MemoryError(
            f"the factor of {n} samples needs {need / 2**30:.1f} GiB on the card, "
            f"{free / 2**30:.1f} GiB are free: use method='cholesky' or 'tiled'"
        )
    square = _load(matrix, card)
    row_sums = _check(square, card, matrix.dtype)
    own = card.to_host(square.diagonal()).copy()
    ridge_absolute = check_absolute(relative, float(np.average(own, weights=shares)), shares)
    entries = own + ridge_absolute / shares
    norm = float((row_sums - np.abs(own) + np.abs(entries)).max())
    weakest = _factor(square, card, entries)
    if weakest is not None:
        message = (
            f"k is not positive definite to rounding, with relative ridge {relative:g}: its "
            f"smallest pivot is at {named(weakest, n, numbers)}. Add a larger relative "
            "ridge, such as ridge=1e-6; compute the kernel with dtype='float64'; or remove samples "
            "that repeat others. method='cholesky' says more."
        )
        seconds = time.perf_counter() - start
        return failed(y, relative, ridge_absolute, message, seconds)
    precision = epsilon(matrix.dtype)
    factor = CardFactor(card, square, own, shares, relative, ridge_absolute, norm, precision)
    return factor.solution(matrix, y, start=start)


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]


def _load(k: Matrix, card: Device) -> Any:
    """Copy a matrix to the card, as float64."""
    n = k.shape[0]
    square = card.xp.empty((n, n))
    if hasattr(k, "tile"):  # stored: half of it is read
        for rows, columns, values in pieces(k):
            piece = card.xp.asarray(values)
            square[rows, columns] = piece
            square[columns, rows] = piece.T
        return square
    for rows in _blocks(n, _LOADED):
        square[rows] = card.xp.asarray(np.ascontiguousarray(k[rows, :]))
    return square


def _check(square: Any, card: Device, dtype: np.dtype[Any]) -> FloatArray:
    """Refuse what is not finite and symmetric; return the sums of ``|k|`` over rows."""
    xp, worst, uneven = card.xp, 0.0, 0.0
    sums = np.empty(len(square))
    for rows in _blocks(len(square), min(card.block, 1024)):
        part = square[rows]
        sums[rows] = card.to_host(xp.abs(part).sum(axis=1))
        if not np.isfinite(sums[rows]).all():
            raise ValueError("k must be finite, got NaN or infinity: check the inputs")
        worst = max(worst, float(xp.abs(part).max()))
        uneven = max(uneven, float(xp.abs(part - square[:, rows].T).max()))
    allowed = largest_asymmetry(dtype, worst)
    if uneven > allowed:
        raise ValueError(
            f"k must be symmetric up to rounding ({allowed:.1e}), got entries that differ from "
            f"their mirror images by {uneven:.3g}: give the kernel of the training samples with "
            "themselves, in one order; if this is rounding after all, give (k + k.T) / 2"
        )
    return sums


def _factor(square: Any, card: Device, entries: FloatArray) -> int | None:
    """Put L into the lower triangle; return the sample without a pivot, if there is one."""
    xp, n = card.xp, len(entries)
    positions = xp.arange(n)
    square[positions, positions] = xp.asarray(entries)
    for part in _blocks(n, card.block):
        corner = square[part, part]
        whole = xp.tril(corner) + xp.tril(corner, -1).T
        try:
            found = card.cholesky(whole)
        except np.linalg.LinAlgError:
            return part.start + _first_bad(card.to_host(whole))
        pivots = np.square(card.to_host(found.diagonal()))
        shares = pivots / entries[part]
        if not is_definite(np.append(shares, np.ones(n - len(pivots)))):
            return part.start + int(shares.argmin())
        square[part, part] = xp.tril(found) + xp.triu(corner, 1)
        panel = square[part.stop :, part]
        panel[...] = card.solve_triangular(found, panel.T, lower=True).T
        for rest in _blocks(n - part.stop, card.block):
            down = slice(part.stop + rest.start, n)
            across = slice(part.stop + rest.start, part.stop + rest.stop)
            change = panel[rest.start :] @ panel[rest].T
            width = rest.stop - rest.start
            change[:width] = xp.tril(change[:width])  # above the diagonal k stays
            square[down, across] -= change
    return None


def _first_bad(a: FloatArray) -> int:
    """Return the first sample whose pivot is not positive."""
    _, info = _lapack.dpotrf(a, lower=True)
    return max(int(info), 1) - 1
