"""Regularised ZCA: images whose pixels are no longer correlated, and still look like images."""

from __future__ import annotations

from numbers import Real
from typing import Any, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg  # pyright: ignore[reportMissingTypeStubs]
from sklearn import base  # pyright: ignore[reportMissingTypeStubs]
from sklearn.utils import validation  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.estimators.samples import ImageShape
from widelimit.estimators.scaling import check_is_fitted, normalised, read_images
from widelimit.machine import blas_on_one_thread

__all__ = ["ZCA"]

_check_sample_weight: Any = cast("Any", validation)._check_sample_weight

_linalg: Any = linalg  # scipy has no type stubs
_BLOCK = 2**24  # numbers that are transformed at a time
_ROUNDING = 1e-12  # of the largest eigenvalue: smaller ones are zero


class ZCA(base.TransformerMixin, base.BaseEstimator):
    """Regularised ZCA whitening of images, a scikit-learn transformer.

    Each image is centred (the mean over its own pixels and channels is subtracted) and divided by
    its norm. Of the training images so made, x_1 ... x_n, the second moments are decomposed,
    ``1/n sum_i x_i x_i^T = U diag(s) U^T``, and an image x becomes

        ``U diag(s + r mean(s))^-1/2 U^T x``

    with the regularisation r (Shankar et al. 2020, *Neural Kernels Without Tangents*, Section 5;
    Nguyen et al. 2021 for the unit in which r is given).

    Parameters
    ----------
    regularisation : float
        r, 0 or more. Directions that training images have less of than r times the average are not
        enlarged beyond it. 0: directions that no training image has are lost.

    Attributes
    ----------
    components_ : ndarray of float64, shape (k, d)
        Rows of U that belong to eigenvalues above rounding; k is at most n and d.
    moments_ : ndarray of float64, shape (k,)
        s, descending.
    regularisation_ : float
        ``r mean(s)``, the mean over all d.
    norm_ : float
        Root mean square of the norms of whitened training images: ``sum_i s_i / (s_i + r mean(s))``
        is its square. Other images come out larger, by more the fewer training images there are:
        bring them to one norm where a kernel reads them, as ``whiten=`` of the estimators does, and
        as ``normalise="image"`` does behind this transformer.
    n_features_in_ : int
        d, values of an image.
    image_shape_ : tuple of int (h, w, c), or None
        Of images; None: rows were given.

    Notes
    -----
    Cost of `fit`: ``n d min(n, d)`` multiplications and an eigenproblem of min(n, d), in float64;
    of `transform`: ``2 k d`` for each image. The BLAS works on one thread: no bit of the result
    depends on how many there are, so that kernels in a store are gone on with on any number.

    Examples
    --------
    >>> import widelimit as wl
    >>> x = wl.load_dataset("digits").x_train
    >>> wl.ZCA(regularisation=0.1).fit_transform(x).shape
    (1280, 8, 8, 1)
    """

    components_: FloatArray
    moments_: FloatArray
    regularisation_: float
    n_features_in_: int
    image_shape_: ImageShape | None

    def __init__(self, regularisation: float = 0.1) -> None:
        self.regularisation = regularisation

    def fit(self, X: Any, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Decompose the second moments of training images.

        Parameters
        ----------
        X : array-like of shape (n, h, w, c), or (n, d)
        y : object
            Ignored.
        sample_weight : array-like of shape (n,) or None
            0 or more: an image of weight w counts as w equal ones.

        Raises
        ------
        TypeError, ValueError
            If X or the regularisation is not as described, or all images are constant.
        """
        r = check_regularisation("regularisation", self.regularisation)
        rows, shape = read_images(self, X, reset=True)
        images = normalised(rows)
        n, d = images.shape
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, rows, dtype=np.float64)
            if weight.min() < 0:
                raise ValueError(f"sample_weight must be 0 or more, got {weight.min():g}")
            images = images * np.sqrt(weight * (n / weight.sum()))[:, None]
        with blas_on_one_thread():
            if n < d:
                values, vectors = _linalg.eigh(images @ images.T / n)
                kept = _above_rounding(values)
                moments = values[kept]
                components = vectors[:, kept].T @ images / np.sqrt(n * moments)[:, None]
            else:
                values, vectors = _linalg.eigh(images.T @ images / n)
                kept = _above_rounding(values)
                moments, components = values[kept], np.ascontiguousarray(vectors[:, kept].T)
        if not moments.size:
            raise ValueError(
                f"X must hold images that are not constant, got {n} constant ones of "
                f"n_features={d} values: nothing can be whitened"
            )
        self.moments_, self.components_ = moments, components
        self.regularisation_ = r * float(moments.sum()) / d
        self.image_shape_ = shape
        return self

    @property
    def norm_(self) -> float:
        """Root mean square of the norms of whitened training images."""
        return float(np.sqrt((self.moments_ / (self.moments_ + self.regularisation_)).sum()))

    def transform(self, X: Any) -> FloatArray:
        """Whiten images.

        Parameters
        ----------
        X : array-like of shape (m, h, w, c), or (m, d)
            Of the shape of those of `fit`.

        Returns
        -------
        ndarray of float64, of the shape of X
        """
        check_is_fitted(self, "components_")
        rows, shape = read_images(self, X, reset=False)
        return self.whitened(rows).reshape(len(rows), *(shape or rows.shape[1:]))

    def whitened(self, rows: FloatArray) -> FloatArray:
        """Return rows (m, d) that have been checked, whitened."""
        return self._apply(normalised(rows), -0.5)

    def unwhitened(self, rows: FloatArray) -> FloatArray:
        """Return the centred images of unit norm, as rows, of whitened ones (m, d)."""
        return self._apply(rows, 0.5)

    def inverse_transform(self, X: Any) -> FloatArray:
        """Return the centred images of unit norm that whitened ones were made of.

        Mean and norm of each image are lost, as is what has no part in the training images if
        the regularisation is 0.
        """
        check_is_fitted(self, "components_")
        rows, shape = read_images(self, X, reset=False)
        return self.unwhitened(rows).reshape(len(rows), *(shape or rows.shape[1:]))

    def _apply(self, rows: FloatArray, power: float) -> FloatArray:
        """Multiply by ``U diag(s + r mean(s))^power U^T``: apart from what lies outside of U."""
        outside = self.regularisation_**power if self.regularisation_ else 0.0
        inside = (self.moments_ + self.regularisation_) ** power - outside
        out = np.empty_like(rows)
        step = max(1, _BLOCK // rows.shape[1])
        with blas_on_one_thread():
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                parts = part @ self.components_.T
                out[start : start + step] = outside * part + (parts * inside) @ self.components_
        return out


def check_regularisation(name: str, value: object) -> float:
    """Return a regularisation, 0 or more and finite, as a float.

    Raises
    ------
    TypeError, ValueError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not 0 <= float(value) < np.inf:
        raise ValueError(f"{name} must be 0 or more and finite, got {value!r}: 0.1 is a good start")
    return float(value)


def _above_rounding(values: FloatArray) -> NDArray[np.int64]:
    """Return places of eigenvalues above rounding, the largest first."""
    order = np.argsort(values)[::-1]
    return order[values[order] > _ROUNDING * max(float(values.max()), 0.0)]
