"""Images and labels in an ``.npz`` file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.data.dataset import (
    MAX_VALUES,
    Dataset,
    check_size,
    check_unpacked,
    to_unit_interval,
)
from widelimit.matrices.inputs import Channels, check_channels
from widelimit.reading import StoredArray, open_arrays

__all__ = ["load_npz"]

_IMAGES, _LABELS = "images", "labels"
# Names of the same thing, compared in lower case.
_NAMES = {
    (_IMAGES, "train"): ("x_train", "train_images", "x", "images"),
    (_LABELS, "train"): ("y_train", "train_labels", "y", "labels"),
    (_IMAGES, "test"): ("x_test", "test_images"),
    (_LABELS, "test"): ("y_test", "test_labels"),
}
_MAX_BYTES = 8 * MAX_VALUES
_MAX_NAME = 256  # characters of a class name


def load_npz(path: Path, *, channels: Channels = None) -> Dataset:
    """Read images and labels from an ``.npz`` file.

    Parameters
    ----------
    path : Path
        With arrays ``x_train`` and ``y_train``, and perhaps ``x_test`` and ``y_test``; capital
        letters do not matter, and ``x, y`` and ``images, labels`` are understood, too. Images
        are (n, h, w) or (n, h, w, c), in the ranges of `to_unit_interval`. Labels are (n,), whole
        numbers or strings.
    channels : {"first", "last"} or None
        Where those of images (n, h, w, c) are: `widelimit.kernel`.

    Returns
    -------
    Dataset
        Classes in the order of their labels.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no ``.npz`` file, is damaged or too large, lacks an array, or holds one that is
        no set of images or labels.
    MemoryError
        If it does not fit into memory.
    """
    with open_arrays(path) as stored:
        arrays = {key: array.read() for key, array in _find(stored, path).items()}

    x_train = _images(arrays[_IMAGES, "train"], path, "training images", channels)
    labels = _labels(arrays[_LABELS, "train"], len(x_train), path, "training labels")
    classes = np.unique(labels)
    names = tuple(map(str, classes))
    if max(map(len, names)) > _MAX_NAME:
        raise ValueError(f"{path}: labels must have at most {_MAX_NAME} characters: shorten them")
    y_train = np.searchsorted(classes, labels).astype(np.int64)
    title = path.stem
    if (_IMAGES, "test") not in arrays:
        return Dataset(
            name=title,
            x_train=x_train,
            y_train=y_train,
            x_test=x_train[:0],
            y_test=y_train[:0],
            class_names=names,
            provenance=f"{path.name}, a file without a test set of its own.",
            split="none",
        )
    x_test = _images(arrays[_IMAGES, "test"], path, "test images", channels)
    test_labels = _labels(arrays[_LABELS, "test"], len(x_test), path, "test labels")
    if (test_labels.dtype.kind == "U") != (labels.dtype.kind == "U"):
        raise ValueError(f"{path}: training and test labels must be of one kind, numbers or text")
    if unknown := sorted(set(test_labels.tolist()) - set(classes.tolist()))[:5]:
        raise ValueError(
            f"{path}: test labels must be among the {len(classes)} training labels, got also "
            f"{unknown}: drop their images"
        )
    return Dataset(
        name=title,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=np.searchsorted(classes, test_labels.astype(classes.dtype)).astype(np.int64),
        class_names=names,
        provenance=f"{path.name}, a file with a test set.",
    )


def _find(stored: dict[str, StoredArray], path: Path) -> dict[tuple[str, str], StoredArray]:
    """Find the four arrays by name, and check that together they are not too large."""
    by_name = {name.lower(): array for name, array in stored.items()}
    wanted = {
        key: by_name[name]
        for key, names in _NAMES.items()
        if (name := next((n for n in names if n in by_name), None)) is not None
    }
    for key, names in _NAMES.items():
        required = key[1] == "train" or any(part == "test" for _, part in wanted)
        if required and key not in wanted:
            raise ValueError(
                f"{path} must hold {names[0]} (or {', '.join(names[1:])}), got "
                f"{', '.join(sorted(by_name)[:8]) or 'no arrays'}: save as "
                "numpy.savez(file, x_train=..., y_train=...)"
            )
    total = sum(array.nbytes for array in wanted.values())
    if total > _MAX_BYTES:
        raise ValueError(
            f"{path} must unpack to at most {_MAX_BYTES:,} bytes, got {total:,}: use fewer or "
            "smaller images, or save them as uint8"
        )
    values = sum(math.prod(array.shape) for (what, _), array in wanted.items() if what == _IMAGES)
    check_unpacked(values, path.stat().st_size, str(path))
    return wanted


def _images(array: NDArray[Any], path: Path, what: str, channels: Channels) -> FloatArray:
    name = f"{path}: {what}"
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.size == 0:
        raise ValueError(
            f"{name} must have shape (n, h, w) or (n, h, w, c), got {array.shape}: reshape rows "
            "to images before saving, as in x.reshape(-1, 28, 28)"
        )
    array = check_channels(name, array, channels)
    check_size(array.shape, name)
    return to_unit_interval(array, name)


def _labels(array: NDArray[Any], n: int, path: Path, what: str) -> NDArray[Any]:
    name = f"{path}: {what}"
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        raise ValueError(
            f"{name} must have shape ({n},), got {array.shape}: save y.argmax(axis=1) if every "
            "row marks one class"
        )
    if array.shape != (n,):
        raise ValueError(
            f"{name} must have shape ({n},), one for each image, got {array.shape}: save images "
            "and labels together"
        )
    kind = array.dtype.kind
    if kind == "S":
        return np.char.decode(array, "utf-8", "surrogateescape")  # as Python reads names of files
    if kind == "f":
        whole = np.isfinite(array) & (array == np.round(array)) & (np.abs(array) < 2**53)
        if not np.all(whole):
            raise ValueError(
                f"{name} must be whole numbers or text, got {array[np.argmin(whole)]}: this is "
                "classification"
            )
    if kind == "U" or (kind == "u" and array.dtype.itemsize == 8):
        return array  # what fits no int64 has no other label than its own
    return array.astype(np.int64)
