"""Probabilities from the outputs of a regression on labels: softmax, of a temperature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray

__all__ = ["TYPICAL_TEMPERATURE", "fit_temperature", "log_softmax"]

TYPICAL_TEMPERATURE = 0.1
"""Where none can be found: of images it is about this (docs/results.md)."""

_STEPS = 200
_SMALLEST, _LARGEST = 1e-3, 1e6  # inverse temperatures: outputs are about 1 apart


def log_softmax(outputs: FloatArray, temperature: float) -> FloatArray:
    """Return logarithms of ``exp(f_c / temperature) / sum_c exp(f_c / temperature)``, (n, c)."""
    scaled = (outputs - outputs.max(axis=1, keepdims=True)) / temperature
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def fit_temperature(outputs: FloatArray, labels: NDArray[np.intp], weights: FloatArray) -> float:
    """Return the temperature that makes labels most likely, given outputs that have not seen them.

    The targets are a little softer than the labels, as Platt's are (*Probabilistic outputs for
    support vector machines*, 1999): of n samples each gives ``1/(n + 2)`` of itself to the other
    classes. Without this, outputs that are all right would have the temperature 0, and
    probabilities of exactly 0 and 1.

    Parameters
    ----------
    outputs : ndarray of float64, shape (n, c)
        Leave-one-out predictions.
    labels : ndarray of int, shape (n,)
        Columns of the outputs.
    weights : ndarray of float64, shape (n,)
        Of samples; n is their sum.

    Returns
    -------
    float
        From 1e-6 to 1e3. The likelihood is concave in its inverse, which Newton's method finds.
    """
    n, c = float(weights.sum()), outputs.shape[1]
    targets = np.full(outputs.shape, 1 / (n + 2) / (c - 1))
    targets[np.arange(len(labels)), labels] = (n + 1) / (n + 2)
    wanted = float(weights @ (targets * outputs).sum(axis=1))
    low, high = _SMALLEST, _LARGEST
    inverse = 1.0
    for _ in range(_STEPS):
        shares = np.exp(log_softmax(outputs, 1 / inverse))
        mean = (shares * outputs).sum(axis=1)
        slope = wanted - float(weights @ mean)
        if slope > 0:
            low = inverse
        else:
            high = inverse
        spread = ((outputs - mean[:, None]) ** 2 * shares).sum(axis=1)
        curvature = float(weights @ spread)
        step = inverse + slope / curvature if curvature > 0 else high
        # Newton where it stays between the bounds, their geometric mean where not.
        following = step if low < step < high else float(np.sqrt(low * high))
        if abs(following - inverse) <= 1e-14 * inverse:
            break
        inverse = following
    return 1 / inverse
