"""Which training samples a prediction owes most to."""

from __future__ import annotations

from dataclasses import dataclass

from widelimit.arrays import FloatArray, IntArray

__all__ = ["Influence"]


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """The training samples that a prediction owes most to.

    Parameters
    ----------
    indices : ndarray of int64, shape (n, m)
        Places of training samples in the X of `fit`, those of largest ``|weight|`` first. Of equal
        samples, and without biases of multiples of one another, the first.
    weights : ndarray of float64, shape (n, m)
        ``alpha_j k(x, x_j)``: what training sample j adds to the output. All of them sum to it.
    """

    indices: IntArray
    weights: FloatArray
