"""Which training samples a prediction owes most to."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.markup import bar_of, table

__all__ = ["Influence", "Measure"]

Measure = Literal["weights", "terms"]
"""What influence is measured by."""

_SHOWN_ROWS, _SHOWN_COLUMNS = 5, 10  # in a notebook


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """The training samples that a prediction owes most to.

    Parameters
    ----------
    indices : ndarray of int64, shape (n, m)
        Places of training samples in the X of `fit`, and, on from its end, of `partial_fit`; those
        of largest ``|weight|`` first. Of equal samples, and without biases of multiples of one
        another, the first.
    weights : ndarray of float64, shape (n, m)
        measure="weights": ``(A^-1 k(X, x))_j``, A the kernel of the training samples with its
        ridge: the prediction is the sum of the training targets, each times its weight. Two copies
        of one sample are one with the mean of their targets. measure="terms": what training sample
        j adds to the output, ``alpha_j k(x, x_j)``; all of them sum to it. As they nearly cancel,
        single terms may be hundreds of times the output.
    names : ndarray of str, shape (n, m), or None
        Of these training samples, where the model has some (``sample_names_``).
    """

    indices: IntArray
    weights: FloatArray
    names: NDArray[np.str_] | None = None

    def _repr_html_(self) -> str:
        """Show in a notebook the first samples, a row each, with the places of training samples."""
        n, m = self.indices.shape
        rows: list[list[str]] = []
        for row in range(min(n, _SHOWN_ROWS)):
            weights = self.weights[row, :_SHOWN_COLUMNS]
            largest = float(np.abs(weights).max()) or 1.0
            rows.append(
                [f"<b>{row}</b>"]
                + [
                    f"{self._name(row, column)}<br>{weight:.3g}<br>{bar_of(weight / largest / 2)}"
                    for column, weight in enumerate(weights)
                ]
            )
        left = [
            *([f"{n - _SHOWN_ROWS:,} more samples"] if n > _SHOWN_ROWS else []),
            *([f"{m - _SHOWN_COLUMNS:,} more of each"] if m > _SHOWN_COLUMNS else []),
        ]
        head = ["sample", *(f"{place + 1}." for place in range(min(m, _SHOWN_COLUMNS)))]
        told = "places" if self.names is None else "names"
        title = f"Influence: {told} of training samples, and what each adds to the output"
        return table(title, rows, head) + (f"<i>not shown: {', '.join(left)}</i>" if left else "")

    def _name(self, row: int, column: int) -> str:
        if self.names is None:
            return f"#{self.indices[row, column]}"
        return escape(str(self.names[row, column]))
