"""Standard deviations of weights and biases, and a ridge, of the largest marginal likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import linalg, optimize  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.estimators.fitted import FittedKernel
from widelimit.estimators.gaussian import B_STD_BOUNDS, STEP, W_STD_BOUNDS, with_std
from widelimit.estimators.regression import RIDGES
from widelimit.estimators.samples import Training
from widelimit.estimators.warned import warn_caller
from widelimit.machine import remaining
from widelimit.matrices.kernel import kernel
from widelimit.network import Network
from widelimit.solvers.blas import run_interruptibly

__all__ = ["START", "Evidence", "Optimum", "maximise"]

START = (2**0.5, 1.0)
"""Standard deviations of weights and biases that a search begins with."""
_STARTS = ((*START, 1e-2), (START[0], 0.1, 1e-2), (1.0, START[1], 0.3))  # and a relative ridge
_MATRICES = 6  # of float64 that exist at a time
_NAMES = ("w_std", "b_std", "ridge")
_NEAR = 1e-4  # a bound: in its logarithm

# SciPy has no type stubs.
_linalg, _optimize = cast("Any", linalg), cast("Any", optimize)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The logarithm of the density of training targets, by hyperparameters.

    As `NTKRegressor.log_marginal_likelihood` has it, for targets as the regression has them; but a
    sample of weight w is w samples here, as in all that `fit` does.

    Parameters
    ----------
    fitted : FittedKernel
        Of one network: its layers, of which standard deviations are replaced.
    training : Training
        With multiples of 1.
    ridge : float or None
        Relative; None: the third of the hyperparameters.
    """

    fitted: FittedKernel
    training: Training
    ridge: float | None

    def network(self, theta: FloatArray) -> Network:
        """Return the network of some hyperparameters, given by their logarithms."""
        return with_std(self.fitted.networks[0], *(float(x) for x in np.exp(theta[:2])))

    def relative(self, theta: FloatArray) -> float:
        """Return the relative ridge."""
        return float(np.exp(theta[2])) if self.ridge is None else self.ridge

    def value(self, theta: FloatArray) -> float:
        """Return the density's logarithm alone."""
        return self._evaluated(theta, 0)[0]

    def __call__(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Return the density's logarithm, and its slope by theta; minus infinity where singular.

        With ``A = k + r W^-1`` it is ``-1/2 tr(y^T A^-1 y) - t/2 log det A`` and what copies of
        samples add; the slope by an entry of A is ``1/2 (a a^T - t A^-1)``, ``a = A^-1 y``.
        """
        return self._evaluated(theta, 2)

    def _evaluated(self, theta: FloatArray, derivatives: int) -> tuple[float, FloatArray]:
        """Return the value, and the slope by so many hyperparameters of the network."""
        training, weights, means = self.training, self.training.weights, self.training.means
        t, m, n = training.targets.shape[1], len(weights), float(training.sample_weight.sum())
        k = self._kernel(theta)
        ridge, mean = self.relative(theta), float(np.average(k.diagonal(), weights=weights))
        r = ridge * mean
        np.fill_diagonal(k, k.diagonal() + r / weights)
        try:
            factor = run_interruptibly(lambda: _linalg.cho_factor(k, lower=True, overwrite_a=True))
        except np.linalg.LinAlgError:
            return -np.inf, np.zeros(len(theta))
        a = _linalg.cho_solve(factor, means)
        value = -0.5 * float((means * a).sum()) - 0.5 * m * t * np.log(2 * np.pi)
        value -= t * float(np.log(np.diag(factor[0])).sum())
        # Samples of one row, or what a weight counts for, differ by noise alone.
        squares = ((training.targets - training.at_samples(means)) ** 2).sum(axis=1)
        size = float((squares * training.sample_weight).sum())
        value -= 0.5 * (size / r + t * ((n - m) * np.log(2 * np.pi * r) + np.log(weights).sum()))
        again = 0.5 * (size / r**2 - t * (n - m) / r)
        if not derivatives:
            return value, np.zeros(len(theta))
        inverse = run_interruptibly(lambda: _linalg.cho_solve(factor, np.eye(m)))
        by_entry = 0.5 * (a @ a.T - t * inverse)
        by_r = float((by_entry.diagonal() / weights).sum()) + again
        slope = np.empty(len(theta))
        for index in range(derivatives):
            step = np.zeros(len(theta))
            step[index] = STEP
            change = self._kernel(theta + step)
            change -= self._kernel(theta - step)
            change /= 2 * STEP
            mean_change = float(np.average(change.diagonal(), weights=weights))
            slope[index] = float((by_entry * change).sum()) + by_r * ridge * mean_change
        slope[2:] = by_r * r
        return value, slope

    def _kernel(self, theta: FloatArray) -> FloatArray:
        """Return the kernel in float64: what is differentiated has to be exact."""
        made = self.fitted
        return cast("Any", kernel)(
            self.network(theta),
            made.samples,
            kind=made.kind,
            channels="last",
            backend=made.backend,
            dtype="float64",
            threads=made.threads,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """What was found.

    Parameters
    ----------
    network : Network
    ridge : float
        Relative.
    value : float
        Logarithm of the density.
    """

    network: Network
    ridge: float
    value: float


def maximise(evidence: Evidence, memory: int | str | None) -> Optimum:
    """Return the hyperparameters of the largest marginal likelihood: L-BFGS-B, from one start.

    That is the best of three.

    Raises
    ------
    MemoryError
        Before the work, if matrices will not fit.
    ValueError
        If all that was tried is singular.
    """
    m = len(evidence.fitted.samples)
    need, have = 8 * _MATRICES * m * m, remaining(memory)
    if need > have:
        raise MemoryError(
            f"optimize='marginal' needs {_MATRICES} matrices of {m} samples in memory, "
            f"{need / 2**30:.1f} GiB, and {have / 2**30:.1f} GiB are free: find the standard "
            "deviations on fewer samples, and fit net_ with ridge_ on all"
        )
    free = 3 if evidence.ridge is None else 2
    limits = (W_STD_BOUNDS, B_STD_BOUNDS, (float(RIDGES[0]), float(RIDGES[-1])))
    bounds = np.log(np.array(limits[:free]))

    def minus(theta: FloatArray) -> tuple[float, FloatArray]:
        value, slope = evidence(theta)
        return (-value, -slope) if np.isfinite(value) else (1e25, slope)

    starts = [np.log(np.array(start[:free])) for start in _STARTS]
    first = max(starts, key=lambda theta: evidence.value(theta))
    best = _optimize.minimize(minus, first, jac=True, method="L-BFGS-B", bounds=bounds)
    if not best.fun < 1e25:
        raise ValueError(
            "optimize='marginal' found no kernel that is positive definite: give a ridge above 0"
        )
    for name, theta, (lower, upper) in zip(_NAMES, best.x, bounds, strict=False):
        low = name == "w_std" and theta < lower + _NEAR  # a small b_std or ridge is none
        if low or theta > upper - _NEAR:
            warn_caller(
                f"optimize='marginal' found {name} on the edge of what is tried, "
                f"{np.exp(lower):.1e} to {np.exp(upper):.1e}: the likelihood may be larger "
                "beyond it. Rescale inputs or targets, or give another network; a large ridge says "
                "that nothing but noise was found"
            )
    return Optimum(evidence.network(best.x), evidence.relative(best.x), -float(best.fun))
