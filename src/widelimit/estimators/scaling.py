"""Scaling of images: each channel of all images alike, or each image by itself."""

from __future__ import annotations

from typing import Any, Self, cast

import numpy as np
from sklearn import base  # pyright: ignore[reportMissingTypeStubs]
from sklearn.utils import validation  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.estimators.samples import ImageShape, split_shape

__all__ = ["ChannelStandardiser", "ImageNormaliser", "channel_scale", "normalised", "read_images"]

check_is_fitted: Any = cast("Any", validation).check_is_fitted
_validate_data: Any = cast("Any", validation).validate_data
_ROUNDING = 1e-12  # of what a number is the difference of: less is zero


class ChannelStandardiser(base.TransformerMixin, base.BaseEstimator):
    """Subtract the mean of each channel and divide by its standard deviation, over training images.

    It is the preprocessing of the paper (Section 5): one mean and one deviation for each channel,
    over all pixels of all training images.

    Attributes
    ----------
    mean_ : ndarray of float64, shape (c,)
    scale_ : ndarray of float64, shape (c,)
        One over the standard deviation (divisor: the number of values); 0 for a constant channel,
        which becomes 0.
    n_features_in_ : int
        Values of an image.
    image_shape_ : tuple of int (h, w, c), or None
        Of images; None: rows were given.

    Notes
    -----
    Rows (n, d) are images of one pixel with d channels: each feature is standardised.

    Examples
    --------
    >>> import widelimit as wl
    >>> x = wl.load_dataset("digits").x_train
    >>> bool(abs(wl.ChannelStandardiser().fit_transform(x).std() - 1) < 1e-12)
    True
    """

    mean_: FloatArray
    scale_: FloatArray
    n_features_in_: int
    image_shape_: ImageShape | None

    def fit(self, X: Any, y: object = None) -> Self:
        """Take mean and deviation of each channel.

        Parameters
        ----------
        X : array-like of shape (n, h, w, c), or (n, d)
        y : object
            Ignored.

        Raises
        ------
        TypeError, ValueError
            If X is not as described.
        """
        rows, shape = read_images(self, X, reset=True)
        images = rows.reshape(len(rows), *(shape or (1, 1, rows.shape[1])))
        self.mean_, self.scale_ = channel_scale(images)
        self.image_shape_ = shape
        return self

    def transform(self, X: Any) -> FloatArray:
        """Return images of the shape of those of `fit`, standardised, as float64."""
        check_is_fitted(self, "mean_")
        rows, shape = read_images(self, X, reset=False)
        images = rows.reshape(len(rows), -1, self.mean_.size)
        scaled = (images - self.mean_) * self.scale_
        return scaled.reshape(len(rows), *(shape or rows.shape[1:]))


class ImageNormaliser(base.TransformerMixin, base.BaseEstimator):
    """Subtract from each image its own mean and divide by its own norm.

    The mean is over pixels and channels, and the norm is the Euclidean one, as in `ZCA`. Constant
    images become 0.

    Attributes
    ----------
    n_features_in_ : int
        Values of an image.
    image_shape_ : tuple of int (h, w, c), or None
        Of images; None: rows were given.
    """

    n_features_in_: int
    image_shape_: ImageShape | None

    def fit(self, X: Any, y: object = None) -> Self:
        """Take the shape of images (n, h, w, c), or rows (n, d); nothing is learned."""
        self.image_shape_ = read_images(self, X, reset=True)[1]
        return self

    def transform(self, X: Any) -> FloatArray:
        """Return images of the shape of those of `fit`, normalised, as float64."""
        check_is_fitted(self, "n_features_in_")
        rows, shape = read_images(self, X, reset=False)
        return normalised(rows).reshape(len(rows), *(shape or rows.shape[1:]))


def read_images(transformer: Any, x: Any, *, reset: bool) -> tuple[FloatArray, ImageShape | None]:
    """Return images as rows, and their shape; None for what came as rows.

    Parameters
    ----------
    transformer : estimator
        Whose `n_features_in_` is set with `reset`, and else compared, as is its `image_shape_`.
    x : array-like of shape (n, h, w, c), or (n, d)
    reset : bool
        Whether this is `fit`.

    Raises
    ------
    TypeError, ValueError
        If x is neither, or of another shape than that of `fit`.
    """
    rows, shape = split_shape(x)
    rows = _validate_data(transformer, rows, reset=reset, dtype=np.float64)
    if not reset and shape is not None and transformer.image_shape_ not in (None, shape):
        raise ValueError(
            "X must hold images of the shape of those of fit, "
            f"{transformer.image_shape_}, got {shape}"
        )
    return rows, shape


def channel_scale(images: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the mean of each channel of images (n, h, w, c), and one over its deviation.

    The latter is 0 for a constant channel.
    """
    mean: FloatArray = images.mean(axis=(0, 1, 2))
    std: FloatArray = images.std(axis=(0, 1, 2))
    # The mean of equal numbers may be one rounding off, and their deviation then is not 0.
    constant = std <= _ROUNDING * np.abs(mean)
    return mean, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, std))


def normalised(rows: FloatArray) -> FloatArray:
    """Return images (n, d) centred and of unit norm; constant ones become 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    # What is left of a constant image is rounding.
    constant = norms <= _ROUNDING * np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, norms))
