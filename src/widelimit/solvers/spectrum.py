"""The eigendecomposition of a Gram matrix: every ridge, every training time, leave-one-out.

With weights of samples W (ones, if there are none), ``W^1/2 k W^1/2 = U diag(s) U^T``. Training by
gradient flow (Eq. 3-4 of the paper), on squares that are weighed by W and with the penalty
``r |theta - theta_0|^2`` if there is a ridge r, gives at time t the coefficients

    ``a_t = W^1/2 U g_t(s + r) U^T W^1/2 y``,    ``g_t(x) = (1 - exp(-t x)) / x``

and ``g = 1/x`` at the end of training. Along eigenvectors that belong to zero nothing is learned.

Leaving one out at the end of training is closed: the residual of sample i without it is
``a_i / (A^-1)_ii`` for ``A = k + r W^-1``. For a finite time it is not, but g_t is a sum of such
inverses: by Talbot's contour for the inverse Laplace transform of ``1/(p (p + x))``,

    ``g_t(x) = sum_j c_j / (x + p_j)``

with complex shifts p_j, to 14 digits with 28 of them (Trefethen, Weideman, Schmelzer, *Talbot
quadratures and rational approximations*, BIT 46, 2006). Each term is closed, and so is their sum.

Where s = 0, N the eigenvectors that belong to it: what N holds of sample i has the share ``n_i =
sum_N U_ij^2``, and without i the smallest eigenvalue that is not 0 is about ``n_i / (k^+)_ii``, by
the secular equation. If that is above rounding, the others learn along it, late: in the limit the
residual is ``(U_N U_N^T y)_i / n_i``. If not, they learn nothing along it, and what N holds of the
sample is left out, as for all s that are zero to rounding.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.solvers.blas import Arithmetic, check_eigenvectors
from widelimit.solvers.checks import (
    check_absolute,
    check_columns,
    check_gram,
    check_ridge,
    check_targets,
    check_weights,
    epsilon,
    relative_norm,
)
from widelimit.solvers.matrix import Matrix, as_matrix, load
from widelimit.solvers.solution import (
    Factor,
    LeaveOneOut,
    Method,
    Solution,
    Statistics,
    Status,
    Unavailable,
)

__all__ = ["SpectralFactor", "Spectrum", "check_time", "solve_spectral"]

_NODES = 28  # of the contour, of which half are needed: they come in conjugate pairs
# Times beyond these, in units of 1/s_max, are as these: nothing, or everything, has been learned.
_EARLIEST, _LATEST = 1e-30, 1e30
_ROWS = 128  # of k that are looked at together
_CLIMBS = 4
_SMALLEST_SCALE = 1e-290  # of the largest eigenvalue, for times in its units


def check_time(time: object) -> float:
    """Return a time of training as a float, 0 or more or infinite.

    Raises
    ------
    TypeError, ValueError
        If it is not a number, or below 0.
    """
    if isinstance(time, bool) or not isinstance(time, Real):
        raise TypeError(f"time must be a number, got {time!r} ({type(time).__name__})")
    if not float(time) >= 0:  # also true for nan
        raise ValueError(
            f"time must be 0 or more, got {time!r}: it is the time of gradient flow, in units of 1 "
            "over an eigenvalue of the kernel; infinity is the end of training"
        )
    return float(time) + 0.0  # no -0.0


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """``W^1/2 k W^1/2 = U diag(s) U^T``, from which all of the above follows in ``n^2`` flops.

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
        s, ascending.
    vectors : ndarray of float64, shape (n, n)
        U.
    roots : ndarray of float64, shape (n,)
        Square roots of the weights.
    mean : float
        ``sum(w_i k_ii) / sum(w)``, which relative ridges multiply.
    rounding : float
        Eigenvalues up to this are zero, to the rounding of the entries of k.
    k : ndarray of shape (n, n)
        What was decomposed; not a copy.
    """

    values: FloatArray
    vectors: FloatArray
    roots: FloatArray
    mean: float
    rounding: float
    k: NDArray[Any]

    @classmethod
    def of(
        cls,
        k: ArrayLike | Matrix,
        weights: FloatArray | None = None,
        eigenvectors: Callable[[FloatArray], tuple[FloatArray, FloatArray]] | None = None,
        numbers: IntArray | None = None,
        precision: float | None = None,
    ) -> Spectrum:
        """Decompose a Gram matrix.

        Parameters
        ----------
        k : Gram or array-like of shape (n, n)
            Symmetric and finite.
        weights : ndarray of shape (n,) or None
            Of samples, above 0.
        eigenvectors : callable or None
            What finds them; None: LAPACK, on this processor.
        numbers : ndarray of int64, shape (n,), or None
            As for `solve_cholesky`.
        precision : float or None
            Relative rounding of the entries, of a k that was converted; None: that of its dtype.

        Raises
        ------
        TypeError, ValueError
            If k or the weights are not as described.
        Unavailable
            For more than 32,766 samples: before anything is read.

        Notes
        -----
        Cost: about ``9 n^3`` flops; memory: ``24 n^2`` bytes beside k, ``8 n^2`` of them kept.
        """
        given = as_matrix(k)
        check_eigenvectors(given.shape[0])
        stored = hasattr(k, "tile")
        whole = load(given, given.dtype.name) if stored else cast("ArrayLike", k)
        matrix, _ = check_gram(whole, numbers)
        n = len(matrix)
        shares = check_weights(weights, n)
        roots = np.sqrt(shares)
        work = np.array(matrix.T, np.float64, order="C")  # LAPACK sees the transpose
        mean = float(np.average(work.diagonal(), weights=shares))
        work *= roots[:, None]
        work *= roots
        values, vectors = (eigenvectors or Arithmetic(work.dtype).eigenvectors)(work)
        # Cholesky's rule for pivots; what independent roundings of the entries amount to; and, as
        # entries of nearly collinear samples are less exact than their dtype, what errors show:
        # a Gram matrix has no negative eigenvalues, so those there are have their size.
        rounding = max(
            max(n, 100) * 2.0**-52 * float(values[-1]),
            2 * n**0.5 * (precision or epsilon(given.dtype)) * mean * float(shares.max()),
            -10 * float(values[0]),
        )
        # In LAPACK's order, wherever they come from: products have other bits in another one.
        columns = np.asfortranarray(vectors)
        return cls(values, columns, roots, mean, max(rounding, 0.0), matrix)

    def absolute(self, ridge: float) -> float:
        """Return the absolute ridge of a relative one."""
        return check_absolute(ridge, self.mean, self.roots**2)

    @property
    def rank(self) -> int:
        """Number of eigenvalues above rounding."""
        return int((self.values > self.rounding).sum())

    def times(self, count: int = 21) -> FloatArray:
        """Return times of training, equally spaced on a log scale: from 1 to 1e10 over s_max."""
        return 10.0 ** np.linspace(0, 10, count) / max(float(self.values[-1]), _SMALLEST_SCALE)

    def null(self, ridge_absolute: float) -> NDArray[np.bool_]:
        """Return which eigenvalues are zero to rounding; none if the ridge lifts all above it."""
        shifted = self.values + ridge_absolute
        least = max(100, shifted.size) * 2.0**-52 * float(shifted[-1])
        if ridge_absolute > 0 and float(shifted[0]) > least:
            return np.zeros(shifted.size, np.bool_)
        return self.values <= self.rounding

    def _filter(self, ridge: float, time: float) -> FloatArray:
        """Return g_t at the eigenvalues, for an absolute ridge."""
        learned = ~self.null(ridge)
        safe = np.where(learned, self.values + ridge, 1.0)
        with np.errstate(over="ignore"):
            grown = 1.0 if np.isinf(time) else -np.expm1(-time * safe)
        return np.where(learned, grown / safe, 0.0)

    def solve(self, y: FloatArray, ridge_absolute: float, time: float = np.inf) -> FloatArray:
        """Return the coefficients a_t for targets y (n, m)."""
        rotated = self.vectors.T @ (self.roots[:, None] * y)
        rotated *= self._filter(ridge_absolute, time)[:, None]
        return self.roots[:, None] * (self.vectors @ rotated)

    def solution(self, y: ArrayLike, ridge: float = 0.0, time: float = np.inf) -> Solution:
        """Solve for a relative ridge and a time, and say how well.

        Parameters
        ----------
        y : array-like of shape (n,) or (n, targets)
        ridge : float
            Relative ridge, >= 0.
        time : float
            Of gradient flow, 0 or more; infinity: the end of training.

        Returns
        -------
        Solution
            ``Status.RANK_DEFICIENT`` if eigenvalues are zero to rounding, the ridge is 0 (or too
            small to lift them above it) and the time infinite: the value is then the coefficients
            of smallest norm.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described.
        """
        relative, until = check_ridge(ridge), check_time(time)
        factor = SpectralFactor(self, relative, self.absolute(relative), until)
        return factor.solution(as_matrix(self.k), y)

    def log_determinant(self, ridge_absolute: float) -> float:
        """Return ``log det (k + r W^-1)``; minus infinity if it is singular to rounding."""
        if self.null(ridge_absolute).any():
            return -np.inf
        return float(np.log(self.values + ridge_absolute).sum() - 2 * np.log(self.roots).sum())

    def leave_one_out(self, y: ArrayLike, ridges: Sequence[float]) -> LeaveOneOut:
        """Predict every sample from all others, for several ridges, in ``n^2`` flops for each.

        Parameters
        ----------
        y : array-like of shape (n,) or (n, targets)
        ridges : sequence of float
            Relative. For a ridge of 0 and a k that is singular to rounding, the limit of small
            ridges; NaN for ridges that leave the matrix not positive definite to rounding.

        Returns
        -------
        LeaveOneOut
            Its errors are means that the weights weigh.
        """
        targets = check_targets(y, len(self.values))
        relative = np.array([check_ridge(ridge) for ridge in ridges], np.float64)
        rotated = self.vectors.T @ (self.roots[:, None] * targets)
        squares = self.vectors**2
        predictions = np.full((relative.size, *targets.shape), np.nan)
        for index, absolute in enumerate(self.absolute(ridge) for ridge in relative):
            null = self.null(absolute)
            if absolute > 0 and null.any():
                continue
            inverse = np.where(null, 0.0, 1 / np.where(null, 1.0, self.values + absolute))
            scale = squares @ inverse
            left = self.vectors @ (inverse[:, None] * rotated)
            if null.any():  # the limit of ridge to 0: what is lost there outweighs all else
                inside = squares @ null.astype(np.float64)
                lost = inside > self.rounding * scale
                scale = np.where(lost, inside, scale)
                left[lost] = (self.vectors @ np.where(null[:, None], rotated, 0.0))[lost]
            predictions[index] = targets - left / (self.roots * scale)[:, None]
        return self._result(relative, targets, predictions, np.shape(y))

    def leave_one_out_at(
        self, y: ArrayLike, times: Sequence[float], ridge: float = 0.0
    ) -> LeaveOneOut:
        """Predict every sample from all others that were trained until some times; exactly.

        Parameters
        ----------
        y : array-like of shape (n,) or (n, targets)
        times : sequence of float
            Each 0 or more; infinity is the end of training.
        ridge : float
            Relative.

        Returns
        -------
        LeaveOneOut
            One row for each time; ``ridges`` repeats the ridge.

        Notes
        -----
        Cost: ``28 n^2 (targets + 1)`` complex products for each time, instead of n trainings.
        """
        targets = check_targets(y, len(self.values))
        relative = check_ridge(ridge)
        chosen = [check_time(time) for time in times]
        predictions = np.zeros((len(chosen), *targets.shape))
        ends = np.isinf(chosen)
        if ends.any():
            predictions[ends] = self.leave_one_out(targets, [relative]).predictions
        if not ends.all():
            self._leave_one_out_before(targets, chosen, self.absolute(relative), predictions)
        ridges = np.full(len(chosen), relative)
        return self._result(ridges, targets, predictions, np.shape(y))

    def _leave_one_out_before(
        self, targets: FloatArray, chosen: list[float], absolute: float, predictions: FloatArray
    ) -> None:
        """Put predictions at finite times in their places."""
        rotated = self.vectors.T @ (self.roots[:, None] * targets)
        squares = self.vectors**2
        null = self.null(absolute)
        shifted = np.where(null, 0.0, self.values) + absolute
        kept = np.zeros(len(null), np.bool_)  # samples of which nothing is where k is singular
        if null.any():
            inverse = np.where(null, 0.0, 1 / np.where(null, 1.0, self.values))
            kept = squares @ null.astype(np.float64) <= self.rounding * (squares @ inverse)

        def times(matrix: FloatArray, v: FloatArray) -> FloatArray:
            out = matrix @ v
            if kept.any():  # as if entries of their rows were 0 there, without a copy of them
                out[kept] = (matrix @ np.where(null[:, None], 0.0, v))[kept]
            return out

        largest = float(shifted[-1])
        for index, time in enumerate(chosen):
            if np.isinf(time) or time == 0 or not largest > 0:  # done, or nothing is learned
                continue
            bounded = min(max(time, _EARLIEST / largest), _LATEST / largest)
            shifts, weights = _contour(bounded)
            inverse = 1 / (shifted[:, None] + shifts)
            # Products of real with complex matrices, as real ones.
            scale = times(squares, inverse.real) + 1j * times(squares, inverse.imag)
            total = np.zeros_like(targets)
            for j, weight in enumerate(weights):
                part = inverse[:, j, None] * rotated
                left = times(self.vectors, part.real) + 1j * times(self.vectors, part.imag)
                residual = left / (self.roots * scale[:, j])[:, None]
                total += 2 * (weight * (targets - residual)).real
            predictions[index] = total

    def _result(
        self,
        ridges: FloatArray,
        targets: FloatArray,
        predictions: FloatArray,
        shape: tuple[int, ...],
    ) -> LeaveOneOut:
        squares = ((targets - predictions) ** 2).mean(axis=2)
        errors = np.average(squares, axis=1, weights=self.roots**2)
        return LeaveOneOut(ridges, predictions.reshape(len(ridges), *shape), errors)


@dataclass(frozen=True, slots=True, eq=False)
class SpectralFactor:
    """`Factor` by eigenvectors, for a ridge and a time of training.

    Parameters
    ----------
    eigenvectors : Spectrum
    ridge, ridge_absolute : float
        Relative, and r.
    time : float
    """

    eigenvectors: Spectrum
    ridge: float
    ridge_absolute: float
    time: float

    @property
    def method(self) -> Method:
        """``"spectral"``."""
        return "spectral"

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.eigenvectors.values)

    @property
    def location(self) -> None:
        """In memory."""
        return None

    def solve(self, y: FloatArray) -> FloatArray:
        """Return the coefficients at the time, in ``4 n^2 m`` flops."""
        return self.eigenvectors.solve(check_columns(y, self.n), self.ridge_absolute, self.time)

    def solution(self, k: Matrix, y: ArrayLike) -> Solution:
        """Solve, and say how well; k is not looked at. See `Spectrum.solution`."""
        start = clock.perf_counter()
        spectrum, n, absolute = self.eigenvectors, self.n, self.ridge_absolute
        targets = check_targets(y, n)
        value = self.solve(targets)
        # W^1/2 (k + r W^-1) value = (U s U^T + r) W^-1/2 value
        rotated = spectrum.vectors.T @ (value / spectrum.roots[:, None])
        fitted = spectrum.vectors @ ((spectrum.values + absolute)[:, None] * rotated)
        weighed = spectrum.roots[:, None] * targets
        status, condition, message = Status.SOLVED, 0.0, ""
        if not spectrum.null(absolute).any():
            condition = self._reciprocal_condition()
        elif np.isinf(self.time):
            status = Status.RANK_DEFICIENT
            message = f"The rank of k is {spectrum.rank} for n = {n} samples."
        return Solution(
            value.reshape(np.shape(y)),
            status,
            Statistics(
                n=n,
                ridge=self.ridge,
                ridge_absolute=absolute,
                residual_norm=relative_norm((weighed - fitted) / spectrum.roots[:, None], targets),
                reciprocal_condition=condition,
                seconds=clock.perf_counter() - start,
            ),
            message,
            self,
        )

    def _reciprocal_condition(self) -> float:
        """Estimate ``1 / (|A|_1 |A^-1|_1)`` in a few times ``4 n^2`` flops."""
        spectrum, ridge = self.eigenvectors, self.ridge_absolute
        k, diagonal = spectrum.k, spectrum.k.diagonal().astype(np.float64)
        rows = (slice(start, start + _ROWS) for start in range(0, self.n, _ROWS))
        sums = np.concatenate([np.abs(k[some]).sum(axis=1, dtype=np.float64) for some in rows])
        entries = diagonal + ridge / spectrum.roots**2
        norm = float((sums - np.abs(diagonal) + np.abs(entries)).max())
        return 1 / (norm * _norm_of_inverse(lambda x: spectrum.solve(x, ridge), self.n))

    def multiply(self, v: FloatArray) -> FloatArray:
        """Return ``A v``."""
        noise = self.ridge_absolute / self.eigenvectors.roots**2
        return self.multiply_gram(v) + noise[:, None] * v

    def multiply_gram(self, v: FloatArray) -> FloatArray:
        """Return ``k v``."""
        return np.asarray(self.eigenvectors.k, np.float64) @ check_columns(v, self.n)

    def gram(self) -> FloatArray:
        """Return k."""
        return np.array(self.eigenvectors.k, np.float64)

    def inverse_diagonal(self) -> FloatArray:
        """Return the diagonal of ``A^-1``, in ``2 n^2`` flops."""
        spectrum = self.eigenvectors
        if not np.isfinite(self.log_determinant()):
            raise Unavailable(
                f"k is singular to rounding (rank {spectrum.rank} of {self.n}), so that it has no "
                "inverse: use a ridge above 0"
            )
        inverse = 1 / (spectrum.values + self.ridge_absolute)
        return spectrum.roots**2 * (spectrum.vectors**2 @ inverse)

    def log_determinant(self) -> float:
        """Return ``log det A``."""
        return self.eigenvectors.log_determinant(self.ridge_absolute)

    def left_out(self, y: FloatArray, value: FloatArray | None = None) -> FloatArray:
        """Return what all other samples predict for each, at the time; the value is not needed."""
        targets = check_columns(y, self.n)
        return self.eigenvectors.leave_one_out_at(targets, [self.time], self.ridge).predictions[0]

    def spectrum(self) -> Spectrum:
        """Return the eigenvectors, which are there."""
        return self.eigenvectors

    def extended(self, k: Matrix, weights: FloatArray | None = None) -> Factor:
        """Refuse: with every sample all eigenvectors change."""
        raise Unavailable("eigenvectors change with every sample: solve all of k again")

    def described(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return facts and arrays."""
        spectrum = self.eigenvectors
        facts: dict[str, Any] = {
            "kind": self.method,
            "mean": spectrum.mean,
            "rounding": spectrum.rounding,
            "time": self.time if np.isfinite(self.time) else None,
        }
        arrays: dict[str, NDArray[Any]] = {
            "spectrum_k": spectrum.k,
            "spectrum_values": spectrum.values,
            "spectrum_vectors": spectrum.vectors,
        }
        return facts, arrays


def solve_spectral(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float = 0.0,
    *,
    time: float = np.inf,
    weights: FloatArray | None = None,
    numbers: IntArray | None = None,
) -> Solution:
    """Solve ``(k + ridge trace(k)/n I) a = y`` by eigenvectors, at the end of training or before.

    Parameters
    ----------
    k, y, ridge, weights, numbers
        As for `solve_cholesky`.
    time : float
        Of gradient flow, 0 or more, in units of 1 over an eigenvalue of k; infinity: its end.

    Returns
    -------
    Solution
        That of `Spectrum.solution`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    Unavailable
        For more than 32,766 samples.
    """
    relative, until = check_ridge(ridge), check_time(time)
    check_targets(y, as_matrix(k).shape[0])
    return Spectrum.of(k, weights, numbers=numbers).solution(y, relative, until)


def _norm_of_inverse(solve: Callable[[FloatArray], FloatArray], n: int) -> float:
    """Estimate ``|A^-1|_1`` of a symmetric A from below, as LAPACK does.

    Higham, *FORTRAN codes for estimating the one-norm of a real or complex matrix*, 1988: a climb
    over the corners of the unit ball, and one vector that is hard for it.
    """

    def column(x: FloatArray) -> FloatArray:
        return solve(x[:, None])[:, 0]

    found = column(np.full(n, 1 / n))
    norm, signs = float(np.abs(found).sum()), np.where(found < 0, -1.0, 1.0)
    for _ in range(_CLIMBS):
        corner = np.zeros(n)
        corner[np.abs(column(signs)).argmax()] = 1.0
        found = column(corner)
        following = np.where(found < 0, -1.0, 1.0)
        size = float(np.abs(found).sum())
        if size <= norm or np.array_equal(following, signs):
            norm = max(size, norm)
            break
        norm, signs = size, following
    hard = (1 + np.arange(n) / max(n - 1, 1)) * (-1.0) ** np.arange(n)
    return max(norm, 2 * float(np.abs(column(hard)).sum()) / (3 * n))


def _contour(time: float) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return shifts p_j and weights c_j with ``g_t(x) = 2 Re sum_j c_j / (x + p_j)`` for x >= 0."""
    n = _NODES
    theta = np.pi * np.arange(1, n, 2) / n
    cot, sin = 1 / np.tan(0.6407 * theta), np.sin(0.6407 * theta)
    z = n * (0.5017 * theta * cot - 0.6122 + 0.2645j * theta)
    slope = n * (0.5017 * cot - 0.5017 * 0.6407 * theta / sin**2 + 0.2645j)
    # (1 / 2 pi i) exp(z) / z dz / (z/t + x), dz = slope 2 pi / n
    return z / time, np.exp(z) / z * slope / (1j * n)
