"""Activations of finite networks in NumPy, and the way back through them.

From the definition of each function alone. Channels are the last axis.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import polynomial
from scipy.special import erf, ndtr  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from widelimit.arrays import FloatArray
from widelimit.layers import (
    GELU,
    ABReLU,
    Activation,
    Cos,
    Erf,
    Gaussian,
    LayerNorm,
    Pointwise,
    Polynomial,
    ReLU,
    Sin,
)

__all__ = ["activate", "pull_back"]


def activate(layer: Pointwise, u: FloatArray) -> FloatArray:
    """Return ``f(u)``, float64, of the shape of u, (..., channels)."""
    match layer:
        case LayerNorm(eps):
            return _standardised(u, eps)[0]
        case Gaussian(gamma):
            v, size = _normalised(u)
            return size * np.exp(math.sqrt(gamma) * v - gamma)
        case _:
            return _of_each(layer, u)[0]


def pull_back(layer: Pointwise, u: FloatArray, delta: FloatArray) -> FloatArray:
    """Return the derivative by u of what has the derivative `delta` by ``f(u)``."""
    match layer:
        case LayerNorm(eps):
            y, inverse = _standardised(u, eps)
            return inverse * (delta - _mean(delta) - y * _mean(delta * y))
        case Gaussian(gamma):
            # f = X g(v), v = u/X, and dX/du = v / channels
            v, _ = _normalised(u)
            value = np.exp(math.sqrt(gamma) * v - gamma)
            slope = math.sqrt(gamma) * value
            return slope * delta + v * _mean(delta * (value - v * slope))
        case _:
            return _of_each(layer, u)[1] * delta


def _of_each(layer: Activation, u: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the function of every number alone, and its derivative."""
    match layer:
        case ReLU():
            return np.maximum(u, 0.0), (u > 0.0).astype(np.float64)
        case ABReLU(a, b):
            slope = np.where(u > 0.0, b, a)
            return slope * u, slope
        case Erf():
            return np.asarray(erf(u)), 2 / math.sqrt(math.pi) * np.exp(-u * u)
        case GELU():
            below = np.asarray(ndtr(u))
            return u * below, below + u * np.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        case Sin():
            return np.sin(u), np.cos(u)
        case Cos():
            return np.cos(u), -np.sin(u)
        case Polynomial(coefficients):
            both = coefficients, polynomial.polyder(coefficients)
            value, slope = (np.asarray(polynomial.polyval(u, c), np.float64) for c in both)
            return value, slope
        case _:
            raise AssertionError(layer)


def _mean(u: FloatArray) -> FloatArray:
    return u.mean(axis=-1, keepdims=True)


def _standardised(u: FloatArray, eps: float) -> tuple[FloatArray, FloatArray]:
    """Return values of mean 0 and variance 1, and what they were multiplied with."""
    inverse = _inverse(np.sqrt(u.var(axis=-1, keepdims=True) + eps))
    return (u - _mean(u)) * inverse, inverse


def _normalised(u: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return values of mean square 1, and the root of what it was: 0 where all channels are."""
    size = np.sqrt(_mean(u * u))
    return u * _inverse(size), size


def _inverse(size: FloatArray) -> FloatArray:
    return np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
