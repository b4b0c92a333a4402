"""How far outputs spread around predictions: over networks, or functions of a Gaussian process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.estimators.fitted import FittedKernel, PrecomputedKernel
from widelimit.estimators.samples import Training
from widelimit.solvers import Factor
from widelimit.solvers.matrix import multiply

__all__ = ["Spread"]

_COLUMNS = 512  # of an inverse that exist at a time


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """The covariance of outputs after training, as `NTKRegressor.predict` describes it.

    Parameters
    ----------
    kernel : FittedKernel or PrecomputedKernel
    factor : Factor
        Of the kernel of the training samples.
    nngp : ndarray, Gram or None
        NNGP kernel of the training samples; None for kind="nngp", where it is the factor's.
    """

    kernel: FittedKernel | PrecomputedKernel
    factor: Factor
    nngp: Any

    def explained(self, samples: NDArray[Any], *, diagonal: bool) -> tuple[FloatArray, FloatArray]:
        """Return the kernel to training samples, and what training takes from the covariance.

        Of that only the symmetric part is meant.
        """
        product = "ij,ji->i" if diagonal else "ij,jk->ik"
        if self.kernel.kind == "nngp" and np.isinf(self.factor.time):
            k = np.asarray(self.kernel.cross(samples)[0], np.float64)
            return k, np.einsum(product, k, self.factor.solve(k.T), optimize=True)
        k, nngp = self.kernel.both(samples)
        w = self.factor.solve(k.T)
        inner = np.einsum(product, nngp, w, optimize=True)
        spread = np.einsum(product, w.T, self._at_training(w), optimize=True)
        return k, 2 * inner - spread

    def _at_training(self, v: FloatArray) -> FloatArray:
        """Return the covariance of what networks are short of their targets at first, times v."""
        if self.kernel.kind == "nngp":  # that of outputs, and of the noise of targets
            return self.factor.multiply(v)
        if hasattr(self.nngp, "tile"):
            return multiply(self.nngp, v)
        return np.asarray(self.nngp, np.float64) @ v

    def left_out(self, training: Training) -> FloatArray | None:
        """Return the variance at each training sample over networks that have not seen it, (n,).

        With B the inverse of A, the prediction for row i from the others has the weights
        ``-B_ij / B_ii``, so that ``v = B e_i / B_ii`` is what takes outputs at rows to the error of
        row i, and ``v^T N v`` its variance, N the covariance of these outputs, noise included.

        Returns
        -------
        ndarray or None
            None where there is no closed form: for a finite time, or a kernel that is singular.

        Notes
        -----
        Cost: ``4 m^3`` flops for m rows.
        """
        m = training.first.size
        if np.isfinite(self.factor.time) or not np.isfinite(self.factor.log_determinant()):
            return None
        variance = np.empty(m)
        for start in range(0, m, _COLUMNS):
            some = np.arange(start, min(start + _COLUMNS, m))
            unit = np.zeros((m, len(some)))
            unit[some, some - start] = 1.0
            inverse = self.factor.solve(unit)
            inverse /= inverse[some, some - start]
            variance[some] = np.einsum("ij,ij->j", inverse, self._at_training(inverse))
        if self.kernel.kind == "nngp":  # without the noise of the sample itself
            variance -= self.factor.ridge_absolute / training.weights
        return training.multiples**2 * np.maximum(variance, 0.0)[training.place]
