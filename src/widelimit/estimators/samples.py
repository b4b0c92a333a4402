"""What estimators take as X: arrays of any library, images or rows; equal samples found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.matrices.inputs import number_samples

__all__ = [
    "ImageShape",
    "Training",
    "check_image_shape",
    "resolve_shape",
    "split_shape",
    "to_host",
]

ImageShape: TypeAlias = tuple[int, int, int]


def to_host(x: Any) -> Any:
    """Copy an array of another library to the host, as a NumPy array of the same dtype.

    The one rule for tensors of PyTorch, arrays of JAX and of CuPy, and all that has ``__dlpack__``:
    they leave the graph of derivatives and the device, and become NumPy arrays. Results are NumPy
    arrays, too. Anything else, as a list or a data frame, is returned as it is.

    Raises
    ------
    TypeError
        If NumPy has no such dtype.
    """
    if isinstance(x, np.ndarray | np.generic) or not hasattr(x, "__dlpack__"):
        return cast("Any", x)
    plain = x.detach() if hasattr(x, "detach") else x  # PyTorch: out of the graph
    for move in ("cpu", "get"):  # PyTorch, CuPy; others come by themselves
        if hasattr(plain, move):
            plain = getattr(plain, move)()
            break
    try:
        return np.asarray(plain)
    except (TypeError, BufferError) as error:
        raise TypeError(
            f"an array of {type(x).__module__.partition('.')[0]} must have a dtype that NumPy has, "
            f"got {getattr(x, 'dtype', 'none')}: convert it, say to float32"
        ) from error


def split_shape(x: Any) -> tuple[Any, ImageShape | None]:
    """Flatten images to rows and return their shape; leave anything else to scikit-learn."""
    samples: Any = np.asarray(cast("Sequence[Any]", x)) if isinstance(x, list | tuple) else x
    samples = to_host(samples)
    if getattr(samples, "ndim", 2) <= 2:
        return samples, None
    images: NDArray[Any] = np.asarray(samples)
    if images.ndim != 4:
        raise ValueError(
            f"X must be rows (n, d) or images (n, h, w, c), got shape {images.shape}: give "
            "X[..., None] for images with one channel, X[None] for a single image"
        )
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


def resolve_shape(asked: object, found: ImageShape | None, n_features: int) -> ImageShape | None:
    """Return the shape of an image, from image_shape or from X itself, or None for rows."""
    if asked is None:
        return found
    shape = check_image_shape(asked)
    if found is not None and found != shape:
        raise ValueError(
            f"image_shape is {shape}, but X holds images of shape {found}: leave image_shape "
            "out, it is needed only for rows (n, d)"
        )
    if math.prod(shape) != n_features:
        channels, rest = divmod(n_features, shape[0] * shape[1])
        hint = "" if rest else f", for example {(*shape[:2], channels)}"
        raise ValueError(
            f"image_shape {shape} holds {math.prod(shape)} values, but a row of X holds "
            f"{n_features}: give (h, w, c) with h * w * c = {n_features}{hint}"
        )
    return shape


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """Training samples, of which equal ones count as one that weighs more.

    Regression on a sample that occurs twice is regression on one of twice the weight and the mean
    target: the same function, from a smaller and regular matrix. Leaving a sample out leaves its
    copies out, too, so that no sample is predicted from itself.

    Parameters
    ----------
    place : ndarray of int64, shape (n,)
        Of each sample among the distinct ones.
    first : ndarray of int64, shape (m,)
        The first sample that is equal to each distinct one.
    targets : ndarray of float64, shape (n, t)
    sample_weight : ndarray of float64, shape (n,)
        Above 0.
    """

    place: NDArray[np.int64]
    first: NDArray[np.int64]
    targets: FloatArray
    sample_weight: FloatArray

    @classmethod
    def of(
        cls, samples: NDArray[Any] | None, targets: FloatArray, sample_weight: FloatArray
    ) -> Training:
        """Find equal samples, (n, ...); None: all are taken to be distinct."""
        place = np.arange(len(targets)) if samples is None else number_samples(samples, None)[0]
        return cls(place, np.unique(place, return_index=True)[1], targets, sample_weight)

    @property
    def weights(self) -> FloatArray:
        """Of the distinct samples, (m,)."""
        return np.bincount(self.place, self.sample_weight).astype(np.float64)

    @property
    def means(self) -> FloatArray:
        """Mean targets of the distinct samples, (m, t)."""
        if len(self.first) == len(self.place):
            return self.targets[self.first]
        weighed = self.targets * self.sample_weight[:, None]
        sums = [np.bincount(self.place, column) for column in weighed.T]
        return np.stack(sums, axis=1) / self.weights[:, None]

    @property
    def spread(self) -> float:
        """Weighted mean square of targets around those of their distinct sample."""
        squares = ((self.targets - self.means[self.place]) ** 2).mean(axis=1)
        return float(np.average(squares, weights=self.sample_weight))
