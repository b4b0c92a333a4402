"""What every solver returns: a `Solution`, and the `Factor` that it carries.

No caller asks which kind of factor it has. What a kind cannot do raises `Unavailable`, which says
why and what to do instead.

========== ================= =====================================
method     class             what it holds
========== ================= =====================================
cholesky   `CholeskyFactor`  ``A = L L^T`` in memory, and k
tiled      `TiledFactor`     L in a store
spectral   `SpectralFactor`  the eigenvectors of k, k, and a time
card       `CardFactor`      ``A = L L^T`` on an NVIDIA card, and k
========== ================= =====================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray
from widelimit.display import duration
from widelimit.markup import facts
from widelimit.solvers.matrix import Matrix

__all__ = [
    "Eigenvectors",
    "Factor",
    "LeaveOneOut",
    "Method",
    "Solution",
    "Statistics",
    "Status",
    "Unavailable",
    "failed",
]


class Status(Enum):
    """How far a solution can be trusted; the value of a member says what to do about it."""

    SOLVED = "Solved: nothing to do."
    ILL_CONDITIONED = (
        "Solved, but the entries of k are not exact enough: its smallest eigenvalue is below their "
        "rounding, or samples nearly repeat others, so that coefficients may be mostly rounding. "
        "Compute the kernel with dtype='float64', add a relative ridge such as ridge=1e-6 (it "
        "multiplies trace(k)/n), or remove near-duplicates from the training set."
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
        ``ridge trace(k)/n``, the number r that was added to the diagonal of k. With weights W of
        samples it is ``ridge sum(w_i k_ii) / sum(w)``, and ``r W^-1`` was added.
    residual_norm : float
        ``|y - A value| / |y|`` in the Frobenius norm, ``A = k + r W^-1``; 0 if y is 0, NaN if
        there is no value.
        It holds for the arithmetic of the solver, not for the accuracy of the entries of k.
    reciprocal_condition : float
        Estimate of ``1 / (|A|_1 |A^-1|_1)``: 1 is best, 0 is singular to rounding. Not below the
        truth, and rarely more than three times above it. NaN where there is none: it takes a factor
        in memory (`solve_cholesky`, `solve_spectral`, `solve_refined` without a store), and a
        solution.
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
    factor : Factor or None
        What solves for other targets with the same matrix. None for conjugate gradients and for
        refinement, and where there is no solution.
    """

    value: FloatArray
    status: Status
    statistics: Statistics
    message: str = ""
    factor: Factor | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        """Show in a notebook how far the solution can be trusted."""
        told = self.statistics
        return facts(
            f"Solution: {self.status.name.replace('_', ' ').lower()}",
            [
                ("what it means", self.message or self.status.value),
                ("coefficients", " × ".join(f"{size:,}" for size in np.shape(self.value))),
                ("ridge", f"{told.ridge:g}, relative; {told.ridge_absolute:.3g}, absolute"),
                ("residual", f"{told.residual_norm:.1e}, relative"),
                ("condition", _inverse(told.reciprocal_condition)),
                ("factor", "" if self.factor is None else self.factor.method),
                ("time", duration(told.seconds)),
            ],
        )

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


Method = Literal["cholesky", "card", "tiled", "refined", "conjugate", "spectral"]
"""How `solve` solves."""


class Unavailable(ValueError):
    """What a factor, or a method, cannot do: why, and what to do instead."""


class Eigenvectors(Protocol):
    """``W^1/2 k W^1/2 = U diag(s) U^T``, as `Spectrum` holds it."""

    @property
    def values(self) -> FloatArray:
        """s, ascending, (n,)."""
        ...

    @property
    def vectors(self) -> FloatArray:
        """U, (n, n)."""
        ...

    def solve(self, y: FloatArray, ridge_absolute: float, time: float, /) -> FloatArray:
        """Return the coefficients for targets y (n, m), an absolute ridge and a time."""
        ...


class Factor(Protocol):
    """``A = k + r W^-1`` in a form that solves: k the Gram matrix of n samples, r a ridge.

    W is the diagonal matrix of the weights of the samples, the identity if there are none. All
    arrays that come and go are float64; y, v are (n, m).
    """

    @property
    def method(self) -> Method:
        """The method of `solve` that makes such a factor."""
        ...

    @property
    def n(self) -> int:
        """Number of samples."""
        ...

    @property
    def ridge(self) -> float:
        """Relative: it multiplies ``sum(w_i k_ii) / sum(w)``, which is ``trace(k)/n`` for W = I."""
        ...

    @property
    def ridge_absolute(self) -> float:
        """The ridge r itself."""
        ...

    @property
    def time(self) -> float:
        """Of training by gradient flow; infinity: its end."""
        ...

    @property
    def location(self) -> str | None:
        """Path or URL of the store that the factor lies in; None: in memory."""
        ...

    def solve(self, y: FloatArray, /) -> FloatArray:
        """Return the coefficients ``A^-1 y``; for a finite time what training has made by then."""
        ...

    def solution(self, k: Matrix, y: ArrayLike, /) -> Solution:
        """Solve for y, (n,) or (n, m), and say how well.

        Parameters
        ----------
        k : matrix of shape (n, n)
            That of the factor. Its dtype is that of the rounding of its entries; the entries are
            read where the factor does not hold them.
        y : array-like of shape (n,) or (n, m)
        """
        ...

    def multiply(self, v: FloatArray, /) -> FloatArray:
        """Return ``A v``."""
        ...

    def multiply_gram(self, v: FloatArray, /) -> FloatArray:
        """Return ``k v``: with coefficients for v the outputs at the training samples."""
        ...

    def gram(self) -> FloatArray:
        """Return k, (n, n), as a new array.

        Raises
        ------
        Unavailable
            If k is not in memory.
        """
        ...

    def inverse_diagonal(self) -> FloatArray:
        """Return the diagonal of ``A^-1``, (n,).

        Raises
        ------
        Unavailable
            If A is singular to rounding.
        """
        ...

    def log_determinant(self) -> float:
        """Return ``log det A``; minus infinity if A is singular to rounding."""
        ...

    def left_out(self, y: FloatArray, value: FloatArray | None = None, /) -> FloatArray:
        """Return what a regression on all other samples predicts for each, (n, m).

        At the end of training ``y_i - a_i / (A^-1)_ii``, for the same absolute ridge.

        Parameters
        ----------
        y : ndarray of float64, shape (n, m)
        value : ndarray of float64, shape (n, m), or None
            ``solve(y)``, if it is known.
        """
        ...

    def spectrum(self) -> Eigenvectors:
        """Return the eigenvectors, from which every ridge and every time follows.

        Raises
        ------
        Unavailable
            If k is not in memory.
        """
        ...

    def extended(self, k: Any, weights: FloatArray | None = None, /) -> Factor:
        """Return the factor of more samples, with the same absolute ridge.

        Parameters
        ----------
        k : matrix of shape (n + p, n + p)
            The Gram matrix of all samples, those of this factor first: an ndarray, a stored one, or
            a `Bordered` one. Only ``k[:n, n:]`` and ``k[n:, n:]`` are read.
        weights : ndarray of shape (n + p,) or None
            Of all samples.

        Raises
        ------
        Unavailable
            If the old part changes as well: with a ridge and other weights of old samples, or
            for this kind always. `solve` with ``extends`` then solves anew.
        numpy.linalg.LinAlgError
            If the whole is not positive definite to rounding.
        """
        ...

    def described(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return plain facts (for JSON) and arrays, of which `restore_factor` makes a factor again.

        Weights and ridges are not among them: whoever keeps a model has them.

        Raises
        ------
        Unavailable
            If the factor lies in a store, and stays there.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LeaveOneOut:
    """What each sample would be predicted to be by a regression on all others.

    Parameters
    ----------
    ridges : ndarray of float64, shape (m,)
        Relative ridges.
    predictions : ndarray of float64, shape (m, n) or (m, n, targets)
        NaN for a ridge with which k is not positive definite to rounding.
    errors : ndarray of float64, shape (m,)
        Mean squares of target minus prediction, over samples and targets; NaN likewise.
    """

    ridges: FloatArray
    predictions: FloatArray
    errors: FloatArray

    @property
    def best(self) -> float:
        """The ridge with the smallest error.

        Raises
        ------
        numpy.linalg.LinAlgError
            If k is not positive definite with any of them.
        """
        if np.isnan(self.errors).all():
            raise np.linalg.LinAlgError(
                f"k is not positive definite to rounding with any of the relative ridges "
                f"{self.ridges.tolist()}: add larger ones"
            )
        return float(self.ridges[np.nanargmin(self.errors)])

    def accuracies(self, labels: ArrayLike) -> FloatArray:
        """Return the share of samples whose largest prediction is that of their label.

        Parameters
        ----------
        labels : array-like of int, shape (n,)
            Columns of the targets.

        Returns
        -------
        ndarray of float64, shape (m,)
            NaN where there are no predictions.
        """
        correct = self.predictions.argmax(axis=-1) == np.asarray(labels)
        return np.where(np.isnan(self.errors), np.nan, correct.mean(axis=1))


def _inverse(reciprocal: float) -> str:
    """Write a condition number, as far as it is known."""
    if np.isnan(reciprocal):
        return ""
    return f"{1 / reciprocal:.1e}" if reciprocal > 0 else "infinite, to rounding"


def failed(
    y: ArrayLike, ridge: float, ridge_absolute: float, message: str, seconds: float
) -> Solution:
    """Return the solution of a system that is not positive definite: NaN, and why."""
    shape = np.shape(y)
    return Solution(
        np.full(shape, np.nan),
        Status.NOT_POSITIVE_DEFINITE,
        Statistics(shape[0], ridge, ridge_absolute, np.nan, np.nan, seconds),
        message,
    )
