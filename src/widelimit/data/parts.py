"""From arrays as a file has them to a `Dataset`: splits, labels, classes, pixels or features.

Every reader of files with arrays ends here, so that all of them understand the same names, and
refuse the same things in the same words.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.data.dataset import Dataset, check_size, to_unit_interval
from widelimit.matrices.inputs import Channels, check_channels, check_series

__all__ = [
    "PART_WORDS",
    "Found",
    "Part",
    "Reading",
    "assemble",
    "check_images",
    "check_rows",
    "find_arrays",
    "find_part",
    "is_samples",
    "listed",
    "shaped",
    "to_pixels",
]

PART_WORDS = {
    "training": "train",
    "train": "train",
    "testing": "test",
    "test": "test",
    "t10k": "test",
    "validation": "val",
    "valid": "val",
    "val": "val",
}
"""Words for the parts of a data set, in lower case, longer ones first."""

# Words for images or rows, and for labels; of several arrays the first of the list is meant.
_SAMPLES = ("x", "images", "image", "data", "pixels", "features", "fea", "inputs", "imgs")
_LABELS = ("y", "labels", "label", "finelabels", "targets", "target", "gnd", "class")
_NAMES = ("classnames", "labelnames", "finelabelnames", "classes", "categories")
_WRAPPERS = ("dataset", "ds", "root")  # groups and structures that say nothing
_EXAMPLES = {
    ("samples", "train"): "x_train (or train_images, x, images, data)",
    ("labels", "train"): "y_train (or train_labels, y, labels, target)",
    ("labels", "test"): "y_test (or test_labels)",
}
_MAX_NAME = 256  # characters of a class name
_MAX_LISTED = 8  # arrays in a message
_FEW_CHANNELS = 4  # of series: a side of so few pixels is asked about
_VOLUME = 5  # sides of an image that are all as large as this, and equal, are no image


@dataclass(frozen=True, slots=True)
class Reading:
    """How samples are to be read, as the user says: the options of `load_dataset`.

    Parameters
    ----------
    channels : {"first", "last"} or None
        Where those of images are.
    label : str or None
        Name, or place, of the array or column of labels; None: it is looked for.
    image_shape : (h, w, c) or None
        Of the image that a row is; None: rows stay rows. Of grey images that may be series, too.
    series : bool
        Whether samples of three axes, and rows, are series: images one pixel high, of any values.
    """

    channels: Channels = None
    label: str | None = None
    image_shape: tuple[int, int, int] | None = None
    series: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One split of a data set, as a file has it.

    Parameters
    ----------
    x : ndarray
        Images (n, h, w) or (n, h, w, c), or rows (n, d); numbers of any kind.
    y : ndarray of shape (n,) or (n, 1)
        Labels: numbers or text.
    files : tuple of str or None
        Names of the files that samples come from.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    files: tuple[str, ...] | None = None


def check_images(name: str, reading: Reading, *, label: bool = False) -> None:
    """Refuse options that have no use for images whose labels and axes are known.

    Channels that are said to be last are; images are no series, also where networks are for those.

    Parameters
    ----------
    name : str
        Of the data, for messages.
    reading : Reading
    label : bool
        Whether there are several labels for each image.

    Raises
    ------
    ValueError
        If a label, or channels that are first, were asked for.
    """
    if reading.label is not None and not label:
        raise ValueError(
            f"{name} has one label for each image, got label={reading.label!r}: leave label "
            "(--label) out"
        )
    if reading.channels == "first":
        raise ValueError(
            f'{name} holds images with their channels last, got channels="first": leave channels '
            "(--channels) out"
        )


# ---------------------------------------------------------------- names of arrays


@dataclass(frozen=True, slots=True)
class Found:
    """Names of arrays by what they are: of samples and labels for each part; of class names."""

    arrays: dict[tuple[str, str], str]
    class_names: str | None

    @property
    def parts(self) -> list[str]:
        """The parts that there are, those of training first."""
        return [part for part in ("train", "val", "test") if ("samples", part) in self.arrays]


def find_part(name: str) -> tuple[str | None, str]:
    """Return the part that a name says, or None, and the rest of it in lower case.

    "X_train", "train/data" and "trainImages" are of "train", and "x", "data" and "images".
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    words = [word for word in words if word not in _WRAPPERS] or words
    for index, word in enumerate(words):
        if word in PART_WORDS:
            return PART_WORDS[word], "".join(words[:index] + words[index + 1 :])
    whole = "".join(words)
    for word, part in PART_WORDS.items():
        for rest in (whole.removeprefix(word), whole.removesuffix(word)):
            if rest != whole and rest in (*_SAMPLES, *_LABELS):
                return part, rest
    return None, whole


def is_samples(name: str) -> bool:
    """Return whether an array is called like samples of any part."""
    return find_part(name)[1] in _SAMPLES


def find_arrays(names: Iterable[str], path: Any, found: str, label: str | None = None) -> Found:
    """Find samples and labels among named arrays.

    Parameters
    ----------
    names : iterable of str
    path : object
        The file, for messages.
    found : str
        What there is, for messages: `listed`.
    label : str or None
        Name of the labels, where the user gives one; with "train" in it, that of the training
        labels.

    Raises
    ------
    ValueError
        If there are none; says what there is.
    """
    ranked: dict[tuple[str, str], tuple[tuple[bool, int], str]] = {}
    class_names, known = None, list(names)
    if label is not None and label not in known:
        raise ValueError(f"{path} has no array {label!r} of labels, got {found}")
    wanted = None if label is None else find_part(label)[1]
    for name in known:
        part, rest = find_part(name)
        if rest in _NAMES and part is None and name != label:
            class_names = name if class_names is None else class_names
            continue
        if rest == wanted or (wanted is None and rest in _LABELS):
            what, rank = "labels", 0 if rest == wanted else _LABELS.index(rest)
        elif rest in _SAMPLES:
            what, rank = "samples", _SAMPLES.index(rest)
        else:
            continue
        key, order = (what, part or "train"), (part is None, rank)
        if key not in ranked or order < ranked[key][0]:
            ranked[key] = order, name
    arrays = {key: name for key, (_, name) in ranked.items()}
    if ("samples", "val") in arrays and ("labels", "val") not in arrays:
        del arrays["samples", "val"]
    for key, example in _EXAMPLES.items():
        required = key[1] == "train" or ("samples", "test") in arrays
        if required and key not in arrays:
            raise ValueError(
                f"{path} must hold {example}, got {found}: save as numpy.savez(file, x_train=..., "
                "y_train=...)" + ("" if key[0] == "samples" else ', or name it: label="..."')
            )
    return Found(arrays, class_names)


def listed(arrays: Mapping[str, Any]) -> str:
    """Say which arrays there are, with dtype and shape where it is known."""
    shown: list[str] = []
    for name, array in sorted(arrays.items())[:_MAX_LISTED]:
        try:
            about = f" {array.dtype} {tuple(array.shape)}"
        except (AttributeError, ValueError):
            about = ""
        shown.append(f"{name}{about}")
    more = f" and {len(arrays) - _MAX_LISTED:,} more" if len(arrays) > _MAX_LISTED else ""
    return ", ".join(shown) + more if shown else "no arrays"


# ---------------------------------------------------------------- assembling


def assemble(
    name: str,
    parts: Mapping[str, Part],
    source: str,
    reading: Reading,
    *,
    where: str | None = None,
    class_names: Sequence[str] | None = None,
    all_names: bool = False,
    first: int | None = None,
    feature_names: Sequence[str] | None = None,
    label_name: str | None = None,
    wanted: str | None = None,
) -> Dataset:
    """Return the data set of some parts, all of it checked.

    Parameters
    ----------
    name : str
    parts : mapping of Part
        "train", and perhaps "test" and "val". The last is taken for testing where there is no
        other; or passed over, with a warning.
    source : str
        Where they come from: the beginning of the provenance, ``digits.npz, a file``.
    reading : Reading
    where : str or None
        What messages name; None: the source.
    class_names : sequence of str or None
        Of the labels 0, 1, ... or 1, 2, ... . None: labels are names.
    all_names : bool
        Whether these are classes of the labels 0, 1, ..., be there samples of all or not.
    first : {0, 1} or None
        The label of the first of the names. None: the labels have to tell.
    feature_names : sequence of str or None
        Of the columns of rows.
    label_name : str or None
        Of the column of labels.
    wanted : {"train", "val", "test"} or None
        The one part to take, without the others.

    Raises
    ------
    TypeError, ValueError
        If samples or labels are none, or do not fit together.
    """
    title = source if where is None else where
    if wanted is not None:
        if wanted not in parts:
            raise ValueError(f"{title} has no part {wanted!r}, got {', '.join(parts)}")
        chosen = {"train": parts[wanted]}
    else:
        chosen = {key: part for key, part in parts.items() if key != "val"}
        if "val" in parts and "test" in parts:
            warnings.warn(
                f"{title}: passed over {len(parts['val'].x):,} samples for validation, which "
                f"neither fit nor test uses (give {name}:val to take them)",
                stacklevel=3,
            )
        elif "val" in parts:
            chosen["test"] = parts["val"]
    words = {"train": "training", "test": "test"}
    arrays = {
        key: shaped(part.x, f"{title}: {words[key]} images", reading)
        for key, part in chosen.items()
    }
    series = reading.series and all(a.ndim == 4 and a.shape[1] == 1 for a in arrays.values())
    if series:
        samples = {key: check_rows(array, title) for key, array in arrays.items()}
        normalised = True
    else:
        samples, normalised = to_pixels(arrays, title)
    labels = {
        key: to_labels(
            part.y, len(part.x), f"{title}: {words[key]} labels", named=class_names is not None
        )
        for key, part in chosen.items()
    }
    if all_names and class_names is not None:
        places, names = _numbered(labels, title, len(class_names)), tuple(class_names)
    else:
        places, names = to_places(labels, title, class_names, first)
    x, y, train = samples["train"], places["train"], chosen["train"]
    test = chosen.get("test")
    rows = x.ndim == 2
    return Dataset(
        name=name,
        x_train=x,
        y_train=y,
        x_test=x[:0] if test is None else samples["test"],
        y_test=y[:0] if test is None else places["test"],
        class_names=names,
        provenance=f"{source} {'without a test set of its own' if test is None else 'with a test'}"
        + ("." if test is None else " set."),
        split="none" if test is None else "given",
        files_train=train.files,
        files_test=None if test is None else test.files,
        normalised=normalised,
        feature_names=None if feature_names is None or not rows else tuple(feature_names),
        label_name=label_name,
        is_series=series,
    )


def shaped(array: NDArray[Any], name: str, reading: Reading) -> NDArray[Any]:
    """Return images (n, h, w, c), channels last, or rows (n, d); series are images of h = 1.

    Raises
    ------
    TypeError
        If they are no numbers.
    ValueError
        If they have another shape, or one that may be read in two ways.
    """
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.ndim == 2 and array.size and reading.image_shape is not None:
        array = _unfolded(array, name, reading)
    elif array.ndim == 2 and reading.series:
        array = check_channels(name, array, reading.channels)[:, None, :, None]
    elif array.ndim == 2 and reading.channels is not None:
        raise ValueError(
            f"{name} are rows of {array.shape[1]:,} values, and channels is for images: leave it "
            "out, or say which image a row is: image_shape=(h, w, c) (--image-shape)"
        )
    elif array.ndim == 3 and reading.series:
        array = check_series(name, array, reading.channels)
    elif array.ndim == 3:
        array = _grey(check_channels(name, array, reading.channels), name, reading)
    elif array.ndim == 4:
        array = check_channels(name, array, reading.channels, series=reading.series)
    if array.ndim not in (2, 4) or array.size == 0:
        raise ValueError(
            f"{name} must have shape (n, h, w) or (n, h, w, c), or (n, d) for rows, none of them "
            f"0, got {array.shape}: reshape them before saving"
        )
    _, *sides = array.shape
    if array.ndim == 4 and reading.image_shape not in (None, tuple(sides)):
        raise ValueError(
            f"{name} of shape {array.shape} are no rows, got image_shape={reading.image_shape}, "
            "which says which image a row is: leave it (--image-shape) out; size=(h, w) (--size) "
            "resizes images"
        )
    if array.ndim == 4 and reading.channels is None and min(sides) == max(sides) >= _VOLUME:
        raise ValueError(
            f"{name} of shape {array.shape} look like volumes, and images have two sides: channels="
            '"last" says that the last axis is channels; or save slices of them'
        )
    check_size(array.shape, name)
    return array


def _grey(array: NDArray[Any], name: str, reading: Reading) -> NDArray[Any]:
    """Return grey images (n, h, w) with their channel; refuse what may be series."""
    few, many = sorted(array.shape[1:])
    if 0 < few <= _FEW_CHANNELS < many and reading.image_shape != (*array.shape[1:], 1):
        h, w = array.shape[1:]
        raise ValueError(
            f"{name} have shape {array.shape}, which is read in two ways, grey images of {h} x {w} "
            f"pixels, or series of {many} steps in {few} channels: if the first is meant, say "
            f"image_shape=({h}, {w}, 1) (--image-shape {h}x{w}x1); if the second is, series=True "
            "(--net cnn-1d-4, or another network for series)"
        )
    return array[..., None]


def _unfolded(rows: NDArray[Any], name: str, reading: Reading) -> NDArray[Any]:
    """Return the images that rows are."""
    assert reading.image_shape is not None
    h, w, c = reading.image_shape
    if h * w * c != rows.shape[1]:
        raise ValueError(
            f"{name} must have rows of {h} x {w} x {c} = {h * w * c} values to be such images, got "
            f"{rows.shape[1]}: give another image_shape (--image-shape)"
        )
    if reading.channels == "first":
        return rows.reshape(-1, c, h, w).transpose(0, 2, 3, 1)
    if c > 1 and reading.channels is None:
        raise ValueError(
            f"{name} of {c} channels are read in two ways, all of one channel first, or all of one "
            'pixel: say channels="first" (--channels first) or channels="last"'
        )
    return rows.reshape(-1, h, w, c)


def to_pixels(arrays: Mapping[str, NDArray[Any]], name: str) -> tuple[dict[str, FloatArray], bool]:
    """Return all parts as float64, pixels in [0, 1] unless they are normalised; whether they are.

    Integers are divided by the largest value of their type (`to_unit_interval`), and floats that
    are all whole numbers up to 255 by that. Floats below 0 are normalised or whitened images, and
    stay as they are, as rows do.

    Raises
    ------
    ValueError
        If a value is not finite, or floats are from 0 to more than 1.
    """
    if all(array.ndim == 2 for array in arrays.values()):
        return {key: check_rows(array, name) for key, array in arrays.items()}, False
    floats = [array for array in arrays.values() if array.dtype.kind == "f"]
    normalised = any(bool((array < 0).any()) for array in floats)
    if not normalised:
        whole = all(bool(np.all(a == np.rint(a))) and a.max() <= 255 for a in floats)
        large = any(bool(a.max() > 1) for a in floats)
        scaled = {
            key: np.divide(array, 255.0, dtype=np.float64)
            if whole and large and array.dtype.kind == "f"
            else to_unit_interval(array, f"{name}: images")
            for key, array in arrays.items()
        }
        return scaled, False
    if len(floats) < len(arrays):
        raise ValueError(
            f"{name}: images must be normalised alike, got floats below 0 beside integers: save "
            "all of them as floats"
        )
    return {key: check_rows(array, name) for key, array in arrays.items()}, True


def check_rows(array: NDArray[Any], name: str) -> FloatArray:
    """Return values as float64; ValueError if one is not finite."""
    values = np.asarray(array, np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{name}: all values must be finite, got {values[place]} at {list(place)}: mend or "
            "drop such samples"
        )
    return values


def to_labels(array: NDArray[Any], n: int, name: str, *, named: bool = False) -> NDArray[Any]:
    """Return labels as (n,): int64, uint64 or text; as text False and True, if they are not named.

    Raises
    ------
    ValueError
        If they have another shape, or are neither whole numbers nor text.
    """
    if array.ndim == 2 and 1 in array.shape:
        array = array.ravel()
    if array.ndim == 2 and len(array) == n and array.dtype.kind in "biuf":
        array = _marked(array, name)
    if array.shape != (n,):
        raise ValueError(
            f"{name} must have shape ({n},), one for each image or row, got {array.shape}: save "
            "samples and labels together"
        )
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.int64 if named else np.str_)
    if kind == "S":
        return np.char.decode(array, "utf-8", "surrogateescape")  # as Python reads names of files
    if kind == "O" and all(isinstance(entry, str) for entry in array):
        return array.astype(np.str_)
    if kind == "f":
        whole = np.isfinite(array) & (array == np.round(array)) & (np.abs(array) < 2**53)
        if not np.all(whole):
            raise ValueError(
                f"{name} must be whole numbers or text, got {array[np.argmin(whole)]}: this is "
                "classification"
            )
    elif kind not in "iuU":
        raise ValueError(f"{name} must be whole numbers or text, got dtype {array.dtype}")
    if kind == "U" or (kind == "u" and array.dtype.itemsize == 8):
        return array  # what fits no int64 has no other label than its own
    return array.astype(np.int64)


def _marked(array: NDArray[Any], name: str) -> IntArray:
    """Return the class that each row marks: all of its entries are alike, but for a larger one."""
    low, high = array.min(axis=1), array.max(axis=1)
    ones = array == high[:, None]
    alike = (ones.sum(axis=1) == 1) & ((array == low[:, None]) | ones).all(axis=1)
    if not (alike.all() and np.ptp(high) == 0 and np.ptp(low) == 0):
        raise ValueError(
            f"{name} of shape {array.shape} must mark one class in each row, some mark several or "
            "none: this is classification with one label; y.argmax(axis=1) are the largest entries"
        )
    return ones.argmax(axis=1).astype(np.int64)


def _numbered(labels: Mapping[str, NDArray[Any]], name: str, n_classes: int) -> dict[str, IntArray]:
    for array in labels.values():
        if array.dtype.kind == "U" or array.min() < 0 or array.max() >= n_classes:
            odd = (
                array[(array < 0) | (array >= n_classes)][:1] if array.dtype.kind != "U" else array
            )
            raise ValueError(
                f"{name}: labels must be from 0 to {n_classes - 1}, got {odd[0]}: download it again"
            )
    return {key: array.astype(np.int64) for key, array in labels.items()}


def to_places(
    labels: Mapping[str, NDArray[Any]],
    name: str,
    class_names: Sequence[str] | None,
    first: int | None = None,
) -> tuple[dict[str, IntArray], tuple[str, ...]]:
    """Return the labels of all parts as places in class names, and these.

    Raises
    ------
    ValueError
        If parts have labels of two kinds, or one that the training images do not have.

    Warns
    -----
    UserWarning
        Of names that are not used, as labels may count them from 0 or from 1.
    """
    train = labels["train"]
    classes = np.unique(train)
    for other in labels.values():
        if (other.dtype.kind == "U") != (train.dtype.kind == "U"):
            raise ValueError(
                f"{name}: training and test labels must be of one kind, numbers or text"
            )
        if unknown := sorted(set(other.tolist()) - set(classes.tolist()))[:5]:
            raise ValueError(
                f"{name}: test labels must be among the {len(classes)} training labels, got also "
                f"{unknown}: drop their samples"
            )
    names = tuple(map(str, classes))
    if class_names is not None and train.dtype.kind != "U" and len(set(class_names)) > 1:
        low, high, count = int(classes[0]), int(classes[-1]), len(class_names)
        fits = [k for k in (0, 1) if first in (k, None) and k <= low and high < k + count]
        if len(fits) == 1:
            names = tuple(class_names[int(k) - fits[0]] for k in classes)
        elif fits:
            warnings.warn(
                f"{name}: its labels, {low} to {high}, may count the {count} names of classes from "
                "0 or from 1: classes are called by their numbers (save labels as text to name "
                "them)",
                stacklevel=4,
            )
    if max(map(len, names)) > _MAX_NAME:
        raise ValueError(f"{name}: labels must have at most {_MAX_NAME} characters: shorten them")
    places = {
        key: np.searchsorted(classes, other.astype(classes.dtype)).astype(np.int64)
        for key, other in labels.items()
    }
    return places, names
