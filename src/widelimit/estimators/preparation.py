"""From rows to what a kernel takes: norms, whitening, units of features, the shape of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.estimators.samples import ImageShape
from widelimit.estimators.whitening import ZCA, check_regularisation

__all__ = [
    "WHITENINGS",
    "Normalise",
    "Preparation",
    "Standardisation",
    "Whiten",
    "resolve_whitenings",
]

Standardisation: TypeAlias = tuple[FloatArray, FloatArray]
"""Mean and scale of each feature."""

Normalise: TypeAlias = Literal["image"] | None
Whiten: TypeAlias = float | Literal["loo"] | None

_ROUNDING = 1e-9  # of the norm of others: images that have no part in the training ones

WHITENINGS = (None, 0.01, 0.1, 1.0)
"""Regularisations that whiten="loo" chooses from."""


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """What is made of rows before a kernel reads them: in the order of the parameters.

    Parameters
    ----------
    shape : (h, w, c) or None
        Of an image, at last; None: samples are rows.
    normalise : {"image"} or None
        Each image is divided by its norm; one of zeros stays.
    zca : ZCA or None
        Fitted.
    levelled : bool
        Whether whitened images are brought to one norm, that of training images in the root mean
        square. Of few images the whitening fits the training ones best: others come out larger,
        and so would all outputs.
    standardisation : (mean, scale) or None
        Of features, each (d,).
    """

    shape: ImageShape | None = None
    normalise: Normalise = None
    zca: ZCA | None = None
    standardisation: Standardisation | None = None
    levelled: bool = True

    def __call__(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows (n, d) as a kernel takes them: (n, d) or (n, h, w, c)."""
        if self.normalise == "image":
            rows = _of_unit_norm(rows)
        if self.zca is not None:
            rows = self.zca.whitened(np.asarray(rows, np.float64))
            if self.levelled:
                norms = np.linalg.norm(rows, axis=1)
                norms[norms <= _ROUNDING * self.zca.norm_] = np.inf  # zeros, not noise
                rows *= (self.zca.norm_ / norms)[:, None]
        if self.standardisation is not None:
            mean, scale = self.standardisation
            rows = (rows - mean) / scale
        return rows if self.shape is None else rows.reshape(-1, *self.shape)

    def comparable(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return samples of a kernel as rows in which training samples and others are alike.

        Whitened they are not: of few images the whitening fits the training ones best. So it is
        undone.
        """
        rows = samples.reshape(len(samples), -1)
        if self.zca is None:
            return rows
        rows = self.zca.unwhitened(rows)
        return _of_unit_norm(rows) if self.levelled else rows


def _of_unit_norm(rows: NDArray[Any]) -> FloatArray:
    """Return rows of norm 1, but for those of zeros."""
    values = np.asarray(rows, np.float64)
    values = _divided(values, np.abs(values).max(axis=1))  # so that no square is too large or small
    return _divided(values, np.linalg.norm(values, axis=1))


def _divided(values: FloatArray, sizes: FloatArray) -> FloatArray:
    return values / np.where(sizes > 0, sizes, 1.0)[:, None]


def resolve_whitenings(whiten: object) -> tuple[float | None, ...]:
    """Return the regularisations that are tried, None for images as they are.

    Raises
    ------
    TypeError, ValueError
        If it is no number of 0 or more, "loo" or None.
    """
    if whiten is None:
        return (None,)
    if isinstance(whiten, str):
        if whiten != "loo":
            raise ValueError(f'whiten must be a number, "loo" or None, got {whiten!r}')
        return WHITENINGS
    return (check_regularisation("whiten", whiten),)
