"""`Dataset`, what every loader returns, and the preprocessing that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.markup import image, lines, table, to_data_uri
from widelimit.matrices.inputs import check_not_first

__all__ = [
    "MAX_VALUES",
    "Dataset",
    "FloatArray",
    "IntArray",
    "Size",
    "check_size",
    "check_unpacked",
    "draw_test_set",
    "draw_training_sets",
    "split_by_class",
    "standardise",
    "to_unit_interval",
]


Size: TypeAlias = tuple[int, int]
"""Height and width of an image, in pixels."""

MAX_VALUES = 2**28
"""Most pixel values that a loader reads: 2 GiB in float64 (CIFAR-10 has 1.8e8)."""

_SHOWN_CLASSES, _SHOWN_IMAGES = 20, 10  # in a notebook
_MAX_RATIO = 100  # of what images take in float64 and the size of their file ...
_FREELY_UNPACKED = 2**29  # ... where it is more bytes than these


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dataset:
    """Images or rows with labels, in a training and a test set; checked when built, read-only.

    Parameters
    ----------
    name : str
        Short name, for titles.
    x_train, x_test : ndarray of float64, shape (n, h, w, c) or (n, d)
        Images, channels last, pixels in [0, 1]; or rows of features.
    y_train, y_test : ndarray of int64, shape (n,)
        Labels: places in class_names.
    class_names : tuple of str
        Distinct; at least two, but for data that are only classified.
    provenance : str
        Where the data come from: one or two sentences.
    split : {"given", "drawn", "none"}
        "given": the data came with their test set. "drawn": `load_dataset` drew it, so that
        another division into training and test images is as good. "none": there is none, x_test
        and y_test are empty.
    files_train, files_test : tuple of str or None
        Names of the files that images come from, below the folder that was read; of rows that a
        table divides into training and test, ``table.csv[20]``, from 0.
    normalised : bool
        Whether pixels are those of images that are normalised or whitened: any finite numbers.
    feature_names : tuple of str or None
        Of the columns of rows.
    label_name : str or None
        Of the column that labels come from.
    is_series : bool
        Whether samples are series, which are images one pixel high.

    Raises
    ------
    TypeError, ValueError
        If an array has another type or shape, a pixel is outside [0, 1], a label names no class,
        a set is empty that should not be, or there are no class names, or equal ones.
    """

    name: str
    x_train: FloatArray
    y_train: IntArray
    x_test: FloatArray
    y_test: IntArray
    class_names: tuple[str, ...]
    provenance: str
    split: Literal["given", "drawn", "none"] = "given"
    files_train: tuple[str, ...] | None = None
    files_test: tuple[str, ...] | None = None
    normalised: bool = False
    feature_names: tuple[str, ...] | None = None
    label_name: str | None = None
    is_series: bool = False

    def __post_init__(self) -> None:
        n_classes = len(self.class_names)
        if n_classes < 1 or len(set(self.class_names)) < n_classes:
            raise ValueError(
                f"{self.name}: class_names must be 1 or more distinct names, got "
                f"{_shortened(self.class_names)}"
            )
        if self.split not in ("given", "drawn", "none"):
            raise ValueError(
                f'{self.name}: split must be "given", "drawn" or "none", got {self.split!r}'
            )
        if self.split == "none" and len(self.x_test):
            raise ValueError(f'{self.name}: split "none" must have no x_test: leave it empty')
        for part in ("train", "test"):
            x: NDArray[Any] = getattr(self, f"x_{part}")
            y: NDArray[Any] = getattr(self, f"y_{part}")
            files: tuple[str, ...] | None = getattr(self, f"files_{part}")
            may_be_empty = part == "test" and self.split == "none"
            _check_samples(
                f"{self.name}: x_{part}",
                x,
                empty=may_be_empty,
                normalised=self.normalised,
                series=self.is_series,
            )
            _check_labels(f"{self.name}: y_{part}", y, x.shape[0], n_classes)
            if files is not None and len(files) != len(x):
                raise ValueError(
                    f"{self.name}: files_{part} must name {len(x)} files, got {len(files)}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            shape = "shape (h, w, c)" if self.x_train.ndim == 4 else "length"
            raise ValueError(
                f"{self.name}: training and test images must have one {shape}, got "
                f"{self.x_train.shape[1:]} and {self.x_test.shape[1:]}"
            )
        if self.feature_names is not None and self.x_train.shape[1:] != (len(self.feature_names),):
            raise ValueError(
                f"{self.name}: feature_names must name the columns of rows, got "
                f"{len(self.feature_names)} for samples of {self.x_train.shape[1:]}"
            )
        for name in ("x_train", "y_train", "x_test", "y_test"):
            view: NDArray[Any] = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def is_rows(self) -> bool:
        """Whether samples are rows of features, and no images."""
        return self.x_train.ndim == 2

    @property
    def what(self) -> str:
        """Plural of what samples are: "rows", "series" or "images"."""
        return "rows" if self.is_rows else "series" if self.is_series else "images"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(h, w, c)`` of one image; ValueError if there are rows."""
        if self.is_rows:
            raise ValueError(
                f"{self.name} holds rows of {self.x_train.shape[1]:,} values, and this is for "
                "images: give images, arrays (n, h, w, c); or, if a row is one, "
                "image_shape=(h, w, c) (--image-shape of fit, kernel, suspects, demo and rank)"
            )
        _, h, w, c = self.x_train.shape
        return h, w, c

    @property
    def about(self) -> str:
        """What one sample is, in words."""
        if self.is_rows:
            return f"rows of {self.x_train.shape[1]:,} values"
        return described(self.image_shape, series=self.is_series)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self.y_train)} + {len(self.y_test)} {self.about}, "
            f"{self.n_classes} classes)"
        )

    def _repr_html_(self) -> str:
        """Show in a notebook how many images there are of each class, and the first of them."""
        height = min(max(self.x_train.shape[1], 24), 48)
        rows: list[list[str]] = []
        for label, name in enumerate(self.class_names[:_SHOWN_CLASSES]):
            mine = np.flatnonzero(self.y_train == label)
            counts = f"{mine.size:,}", f"{int((self.y_test == label).sum()):,}"
            rows.append([escape(name), *counts])
            if not self.is_rows:
                first: list[int] = mine[:_SHOWN_IMAGES].tolist()
                shown = [
                    image(lines(x[0]) if self.is_series else to_data_uri(x), height, name)
                    for x, name in ((self.x_train[i], self._name(i)) for i in first)
                ]
                rows[-1].append("".join(shown))
        left = self.n_classes - _SHOWN_CLASSES
        about = self.about.replace(" x ", " × ")
        title = f"{self.name}: {len(self.y_train):,} + {len(self.y_test):,} {about}"
        head = ["class", "training", "test", f"the first training {self.what}"]
        return (
            table(title, rows, head[: 3 if self.is_rows else 4])
            + (f"<i>and {left:,} more classes</i>" if left > 0 else "")
            + f"<p><i>{escape(self.provenance)}</i></p>"
        )

    def _name(self, place: int) -> str:
        """Return what a training image is called: its file, or its place."""
        return f"#{place}" if self.files_train is None else self.files_train[place]


def described(shape: tuple[int, int, int], *, series: bool) -> str:
    """Say what images of a shape are, or series, as after a number of them."""
    h, w, c = shape
    if series:
        return f"series of {w:,} step{'s'[: w > 1]} in {c} channel{'s'[: c > 1]}"
    return f"images of {h} x {w} x {c}"


def to_unit_interval(x: ArrayLike, name: str = "images") -> FloatArray:
    """Pixels as float64 in [0, 1]: integers are divided by the largest value of their type.

    Parameters
    ----------
    x : array-like of real numbers, any shape
        uint8 is divided by 255, uint16 by 65535, booleans become 0 and 1. Other integers must
        be from 0 to 255, and are divided by 255. Floats must be in [0, 1] already.
    name : str
        What the error message calls x.

    Returns
    -------
    ndarray of float64, the shape of x

    Raises
    ------
    TypeError
        If x does not hold real numbers.
    ValueError
        If a value is not finite, or outside the range above.
    """
    array: NDArray[Any] = np.asarray(x)
    kind = array.dtype.kind
    if kind not in "buif":
        raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}: save pixels as uint8")
    if kind == "b":
        return array.astype(np.float64)
    if kind == "u" and array.dtype.itemsize <= 2:
        return np.divide(array, float(np.iinfo(array.dtype).max), dtype=np.float64)
    if array.size == 0:
        return array.astype(np.float64)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(
            f"{name} must be finite, got {array[place]} at {list(place)}: mend or drop such images"
        )
    limit = 1.0 if kind == "f" else 255.0
    if low < 0 or high > limit:
        remedy = (
            "divide by the largest value that a pixel can have (say 255), or save as uint8"
            if kind == "f"
            else "save as uint8 or uint16, or as floats in [0, 1]"
        )
        raise ValueError(
            f"{name} of dtype {array.dtype} must be from 0 to {limit:g}, got {low:g} to {high:g}: "
            f"{remedy}"
        )
    return np.divide(array, limit, dtype=np.float64)


def standardise(x_train: ArrayLike, *others: ArrayLike) -> tuple[FloatArray, ...]:
    """Subtract the mean and divide by the standard deviation of the training images, per channel.

    Parameters
    ----------
    x_train : array-like of shape (n, h, w, c)
        Images from which mean and standard deviation are taken, one of each per channel.
    *others : array-like of shape (m, h, w, c)
        Images that are treated with the same numbers, say the test images.

    Returns
    -------
    tuple of ndarray of float64
        The training images, then the others. A constant channel becomes 0.

    Raises
    ------
    ValueError
        If an array is not (n, h, w, c) with one number of channels, or x_train is empty.
    """
    from widelimit.estimators.scaling import channel_scale  # scikit-learn takes long to import

    first = np.asarray(x_train, dtype=np.float64)
    arrays = [first, *(np.asarray(x, dtype=np.float64) for x in others)]
    for array in arrays:
        if array.ndim != 4 or first.size == 0 or array.shape[-1] != first.shape[-1]:
            raise ValueError(
                "standardise needs images (n, h, w, c), n >= 1, with the same c, got shapes "
                f"{', '.join(str(a.shape) for a in arrays)}: a grey image is (h, w, 1)"
            )
        check_not_first("an array", array.shape, "x.transpose(0, 2, 3, 1)")
    mean, scale = channel_scale(first)
    return tuple((array - mean) * scale for array in arrays)


def split_by_class(
    labels: ArrayLike,
    *,
    train_per_class: int | None = None,
    share: float | None = None,
    seed: int = 0,
) -> tuple[IntArray, IntArray]:
    """Divide images at random, class by class, into a training and a test set.

    Parameters
    ----------
    labels : array-like of int, shape (n,)
        Class of each image.
    train_per_class : int, optional
        Training images of every class. By default four fifths of each class, rounded down, and
        at least one.
    share : float, optional
        Of the images of each class that are for testing, above 0 and below 1, rounded; a class
        keeps at least one image for training, and may have none for testing. In place of
        train_per_class.
    seed : int
        Seed of ``numpy.random.default_rng``.

    Returns
    -------
    train, test : ndarray of int64
        Places in labels, in ascending order. Every class is in both, unless `share` is given.

    Raises
    ------
    ValueError
        If a class has no image left for the test set; none has, with `share`.
    """
    return _divide(np.asarray(labels), train_per_class, share, seed)


def _divide(
    y: NDArray[Any],
    train_per_class: int | None,
    share: float | None,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> tuple[IntArray, IntArray]:
    """Divide as `split_by_class` does; errors name a class as `class_names` do."""
    rng = np.random.default_rng(seed)
    train = np.zeros(y.size, dtype=np.bool_)
    if share is not None and not 0 < share < 1:
        raise ValueError(f"the share for testing must be above 0 and below 1, got {share!r}")
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        if share is not None:
            kept = max(1, members.size - round(share * members.size))
            train[rng.permutation(members)[:kept]] = True
            continue
        count = max(1, members.size * 4 // 5) if train_per_class is None else train_per_class
        if count >= members.size:
            name = label if class_names is None else repr(class_names[label])
            raise ValueError(
                f"class {name} must have at least {count + 1} images to be divided into "
                f"{count} for training and the rest for testing, got {members.size}: add images, "
                "or leave the class out"
            )
        train[rng.permutation(members)[:count]] = True
    if train.all():
        raise ValueError(
            f"a share of {share:g} for testing leaves no image to test with in {y.size}: give a "
            "larger one"
        )
    return np.flatnonzero(train), np.flatnonzero(~train)


def draw_test_set(
    data: Dataset,
    *,
    share: float | None = None,
    train_per_class: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Draw a test set from the training images, class by class: `split_by_class`.

    Parameters
    ----------
    data : Dataset
        Its test set, if there is one, is given up.
    share, train_per_class, seed
        As for `split_by_class`.

    Raises
    ------
    ValueError
        As for `split_by_class`, with the name of the data set in front.
    """
    try:
        train, test = _divide(data.y_train, train_per_class, share, seed, data.class_names)
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    files = data.files_train
    return replace(
        data,
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_test=data.x_train[test],
        y_test=data.y_train[test],
        split="drawn",
        files_train=None if files is None else tuple(files[int(i)] for i in train),
        files_test=None if files is None else tuple(files[int(i)] for i in test),
    )


def draw_training_sets(
    labels: IntArray, per_class: Sequence[int], rng: np.random.Generator
) -> list[IntArray]:
    """Draw one training set of each size, every class alike in number, each within the next.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
        Classes, from 0 on, of the images to draw from.
    per_class : sequence of int
        Images of each class, ascending.
    rng : Generator
        Source of randomness.

    Returns
    -------
    list of ndarray of int64
        Places in labels, ascending.

    Raises
    ------
    ValueError
        If a class has fewer images than the largest training set needs.
    """
    orders = [rng.permutation(np.flatnonzero(labels == k)) for k in range(int(labels.max()) + 1)]
    fewest = min(order.size for order in orders)
    if fewest < max(per_class):
        raise ValueError(f"expected {max(per_class)} images of every class, got {fewest} of one")
    return [np.sort(np.concatenate([order[:m] for order in orders])) for m in per_class]


def check_size(shape: Sequence[int], name: str) -> None:
    """Refuse images that would take too much memory, before they are read.

    Raises
    ------
    ValueError
        If shape holds more than `MAX_VALUES` values.
    """
    values = 1
    for size in shape:
        values *= int(size)
    if values > MAX_VALUES:
        raise ValueError(
            f"{name} must hold at most {MAX_VALUES:,} pixel values ({MAX_VALUES * 8 / 2**30:g} GiB "
            f"in float64), got {' x '.join(map(str, shape))} = {values:,}: use fewer or smaller "
            "images"
        )


def check_unpacked(values: int, size: int, name: str) -> None:
    """Refuse a file so well compressed that little of it would take much memory.

    Parameters
    ----------
    values : int
        Pixel values in the file.
    size : int
        Bytes of the file.
    name : str
        Of the file.

    Raises
    ------
    ValueError
        If the values take more than 512 MiB as float64, and more than 100 times its size.
    """
    if 8 * values > max(_FREELY_UNPACKED, _MAX_RATIO * size):
        raise ValueError(
            f"{name} has {size:,} bytes, but at least {values:,} pixel values, which take "
            f"{8 * values / 2**30:.1f} GiB: save it without compression if that is meant"
        )


def _check_samples(
    name: str, x: NDArray[Any], *, empty: bool, normalised: bool, series: bool
) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != np.float64:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name} must be an array of float64, got {_kind(x)}: use to_unit_interval")
    if x.ndim in (2, 4) and empty and len(x) == 0:
        return
    if x.ndim not in (2, 4) or x.size == 0:
        raise ValueError(
            f"{name} must have shape (n, h, w, c), or (n, d) for rows, none of them 0, got "
            f"{x.shape}: a grey image is (h, w, 1)"
        )
    if x.ndim == 2 or normalised:
        if not np.isfinite(x).all():
            raise ValueError(f"{name} must be finite: mend or drop samples that are not")
        if x.ndim == 2:
            return
    if series:
        if x.shape[1] != 1:
            raise ValueError(f"{name} must be series (n, 1, length, c), got shape {x.shape}")
    else:
        check_not_first(name, x.shape, f"{name}.transpose(0, 2, 3, 1)")
    low, high = float(x.min()), float(x.max())
    if not normalised and not (low >= 0.0 and high <= 1.0):  # refuses nan, too
        raise ValueError(
            f"{name} must be in [0, 1], got {low:g} to {high:g}: use to_unit_interval, or say "
            "normalised=True"
        )


def _check_labels(name: str, y: NDArray[Any], n: int, n_classes: int) -> None:
    if not isinstance(y, np.ndarray) or y.dtype != np.int64:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name} must be an array of int64, got {_kind(y)}")
    if y.shape != (n,):
        raise ValueError(f"{name} must hold one label for each of {n} images, got shape {y.shape}")
    if n and (int(y.min()) < 0 or int(y.max()) >= n_classes):
        raise ValueError(
            f"{name} must be from 0 to {n_classes - 1}, places in class_names, got {y.min()} to "
            f"{y.max()}"
        )


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {getattr(value, 'dtype', 'no dtype')}"


def _shortened(names: Sequence[str]) -> str:
    text = repr(list(names))
    return text if len(text) <= 200 else text[:197] + "..."
