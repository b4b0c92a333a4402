"""Which training samples a prediction owes most to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from widelimit.arrays import FloatArray, IntArray

__all__ = ["Influence", "Measure"]

Measure = Literal["weights", "terms"]
"""What influence is measured by."""


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """The training samples that a prediction owes most to.

    Parameters
    ----------
    indices : ndarray of int64, shape (n, m)
        Places of training samples in the X of `fit`, those of largest ``|weight|`` first. Of equal
        samples, and without biases of multiples of one another, the first.
    weights : ndarray of float64, shape (n, m)
        measure="weights": ``(A^-1 k(X, x))_j``, A the kernel of the training samples with its
        ridge: the prediction is the sum of the training targets, each times its weight. Two copies
        of one sample are one with the mean of their targets. measure="terms": what training sample
        j adds to the output, ``alpha_j k(x, x_j)``; all of them sum to it. As they nearly cancel,
        single terms may be hundreds of times the output.
    """

    indices: IntArray
    weights: FloatArray
