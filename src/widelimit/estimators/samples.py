"""What estimators take as X: arrays of any library, images or rows; samples that are one row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.estimators.directions import Directions
from widelimit.matrices.foreign import to_array
from widelimit.matrices.inputs import (
    Channels,
    check_channels,
    check_networks,
    check_not_first,
    check_series,
    check_steps,
    read_series,
    series_advice,
)

__all__ = [
    "ImageShape",
    "Training",
    "check_image_shape",
    "resolve_shape",
    "split_shape",
]

ImageShape: TypeAlias = tuple[int, int, int]


def split_shape(
    x: Any, channels: Channels = None, net: Any = None
) -> tuple[Any, ImageShape | None]:
    """Flatten images to rows and return their shape; leave anything else to scikit-learn.

    What other libraries have in place of arrays becomes one: `to_array`. Images come out with their
    channels last; `channels` says where they are: `check_channels`. Three axes are series, which
    are images one pixel high, if `net`, as estimators take it, is for series: `check_series`.
    """
    samples = to_array(x)
    if isinstance(samples, list | tuple):
        samples = np.asarray(cast("Sequence[Any]", samples))
    if getattr(samples, "ndim", 2) <= 2:
        if hasattr(samples, "ndim"):
            check_channels("X", samples, channels)
        return samples, None
    images: NDArray[Any] = np.asarray(samples)
    series = bool(net) and images.ndim in (3, 4) and read_series(check_networks(net))
    if images.ndim == 3 and series:
        images = check_series("X", images, channels)
    elif images.ndim != 4:
        advice = f"; {series_advice('X')}" if images.ndim == 3 else ""
        raise ValueError(
            f"X must be rows (n, d) or images (n, h, w, c), got shape {images.shape}: give "
            f"X[..., None] for images with one channel, X[None] for a single image{advice}"
        )
    else:
        images = check_channels("X", images, channels, series=series)
    h, w, c = images.shape[1:]
    return images.reshape(len(images), h * w * c), (h, w, c)


def check_image_shape(shape: object) -> ImageShape:
    """Return image_shape as (h, w, c)."""
    expected = "image_shape must be (h, w, c) or (h, w), integers >= 1, or None"
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"{expected}, got {shape!r} ({type(shape).__name__})")
    sizes = cast("Sequence[Any]", shape)
    integers = all(isinstance(s, int | np.integer) and not isinstance(s, bool) for s in sizes)
    if len(sizes) not in (2, 3) or not integers or min(sizes) < 1:
        raise ValueError(f"{expected}, got {shape!r}: give the shape of one image, channels last")
    h, w, c = (int(size) for size in (*sizes, 1)[:3])
    return h, w, c


def resolve_shape(
    asked: object, found: ImageShape | None, n_features: int, channels: Channels, net: Any = None
) -> ImageShape | None:
    """Return the shape of an image, from image_shape or from X itself, or None for rows."""
    if asked is None:
        return found
    shape = check_image_shape(asked)
    series = bool(net) and read_series(check_networks(net))
    if len(cast("Sequence[Any]", asked)) == 2 and series:
        h, w, _ = shape
        raise ValueError(
            f"image_shape {(h, w)} is read in two ways by a network for series: write "
            f"{(1, h, w)} for series of {h} steps in {w} channels, or {(h, w, 1)} for grey images "
            f"of {h} x {w} pixels, each row of which is a series"
        )
    if channels is None:
        c, h, w = shape
        last = 'channels="first"; if the second is, channels="last"'
        if series and c == 1:
            check_steps("image_shape", shape, f"X = X.reshape(-1, {h}, {w}), {last}")
        else:
            check_not_first("image_shape", shape, f"X = X.reshape(-1, {c}, {h}, {w}), {last}")
    if found is not None and found != shape:
        raise ValueError(
            f"image_shape is {shape}, but X holds images of shape {found}: leave image_shape "
            "out, it is needed only for rows (n, d)"
        )
    if math.prod(shape) != n_features:
        count, rest = divmod(n_features, shape[0] * shape[1])
        hint = "" if rest else f", for example {(*shape[:2], count)}"
        raise ValueError(
            f"image_shape {shape} holds {math.prod(shape)} values, but a row of X holds "
            f"{n_features}: give (h, w, c) with h * w * c = {n_features}{hint}"
        )
    return shape


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """Training samples, of which those of one direction are one row that weighs more.

    Equal samples are one row, and, for networks without biases, samples that are multiples of one
    another: outputs are then homogeneous, ``f(a x) = a f(x)`` for ``a > 0``, so that samples
    ``a_i x`` with weights w_i and targets y_i ask of f what x alone does,

        ``sum_i w_i (a_i f(x) - y_i)^2 = W (f(x) - sum_i w_i a_i y_i / W)^2 + constant``

    with ``W = sum_i w_i a_i^2``: the same function, from a smaller and regular matrix. Leaving a
    sample out leaves its row out, so that no sample is predicted from itself.

    Parameters
    ----------
    place : ndarray of int64, shape (n,)
        The row of each sample.
    first : ndarray of int64, shape (m,)
        The sample that each row is.
    multiples : ndarray of float64, shape (n,)
        a_i: each sample over that of its row; 0 for a sample of zeros in the row of another.
    targets : ndarray of float64, shape (n, t)
    sample_weight : ndarray of float64, shape (n,)
        Above 0.
    counts : ndarray of bool, shape (given,)
        Which of the samples that users gave these n are: those of weight 0 are left out.
    """

    place: IntArray
    first: IntArray
    multiples: FloatArray
    targets: FloatArray
    sample_weight: FloatArray
    counts: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        directions: Directions,
        targets: FloatArray,
        sample_weight: FloatArray,
        counts: NDArray[np.bool_],
    ) -> Training:
        """Put samples, whose rows are known, and their targets together."""
        made = directions
        return cls(made.place, made.first, made.multiples, targets, sample_weight, counts)

    def grown(
        self,
        added: Directions,
        targets: FloatArray,
        sample_weight: FloatArray,
        counts: NDArray[np.bool_],
    ) -> Training:
        """Return these and more samples.

        Parameters
        ----------
        added : Directions
            Of the m rows that are there, and the new samples after them.
        targets : ndarray of float64, shape (n + p, t)
            Of all.
        sample_weight : ndarray of float64, shape (p,)
            Of the new ones.
        counts : ndarray of bool, shape (given,)
            Which of the samples that are given now the new ones are.
        """
        n, m = len(self.place), len(self.first)
        return Training(
            np.concatenate([self.place, added.place[m:]]),
            np.concatenate([self.first, added.first[m:] + (n - m)]),
            np.concatenate([self.multiples, added.multiples[m:]]),
            targets,
            np.concatenate([self.sample_weight, sample_weight]),
            np.concatenate([self.counts, counts]),
        )

    @property
    def given(self) -> IntArray:
        """Place of each row among the samples that users gave, (m,): that of its first sample."""
        return np.flatnonzero(self.counts)[self.first]

    def among_given(self, values: FloatArray) -> FloatArray:
        """Return values of samples, (n, ...), for all that users gave: NaN for those left out."""
        if self.counts.all():
            return values
        made = np.full((len(self.counts), *values.shape[1:]), np.nan)
        made[self.counts] = values
        return made

    @property
    def weights(self) -> FloatArray:
        """W of each row, (m,)."""
        return np.bincount(self.place, self.sample_weight * self.multiples**2).astype(np.float64)

    @property
    def means(self) -> FloatArray:
        """Target of each row, (m, t)."""
        if len(self.first) == len(self.place):
            return self.targets[self.first]
        weighed = self.targets * (self.sample_weight * self.multiples)[:, None]
        sums = [np.bincount(self.place, column) for column in weighed.T]
        return np.stack(sums, axis=1) / self.weights[:, None]

    @property
    def share(self) -> float:
        """Sum of the weights of rows over that of samples; 1 but for multiples.

        A relative ridge multiplies ``sum_i w_i k(x_i, x_i) / sum_i w_i`` over samples, and that is
        this share of what it would be over rows.
        """
        if np.all(self.multiples == 1):
            return 1.0
        return float(self.weights.sum() / self.sample_weight.sum())

    def at_samples(self, rows: FloatArray) -> FloatArray:
        """Return outputs at samples, (n, t), from those at rows, (m, t)."""
        return self.multiples[:, None] * rows[self.place]

    def error(self, rows: FloatArray) -> float:
        """Return the weighted mean square of targets minus outputs, given those at rows."""
        squares = ((self.targets - self.at_samples(rows)) ** 2).mean(axis=1)
        return float(np.average(squares, weights=self.sample_weight))

    @property
    def spread(self) -> float:
        """Weighted mean square of targets around what is best for their row."""
        return self.error(self.means)
