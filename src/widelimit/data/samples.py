"""Samples without labels, for a model that is there: rows and images in tables and arrays."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.data.dataset import MAX_VALUES, described
from widelimit.data.mat import HDF5, MAT, open_held, samples_first
from widelimit.data.parts import (
    Reading,
    check_rows,
    find_part,
    is_samples,
    listed,
    shaped,
    to_pixels,
)
from widelimit.data.table import Table, find_columns, find_label, is_table, read_table, samples_of
from widelimit.matrices.inputs import Channels
from widelimit.reading import open_arrays

__all__ = ["Samples", "Wanted", "holds_samples", "read_samples"]

_ARRAYS = (".npz", ".npy")
_SHOWN = 8


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What a model reads.

    Parameters
    ----------
    shape : (h, w, c) or None
        Of an image; None: rows.
    n_features : int
        Values of a sample.
    feature_names : sequence of str or None
        Of the columns of a table that the model was fitted to.
    normalised : bool
        Whether its images are normalised, and not pixels in [0, 1].
    series : bool
        Whether samples of three axes are series to it.
    """

    shape: tuple[int, int, int] | None
    n_features: int
    feature_names: Sequence[str] | None = None
    normalised: bool = False
    series: bool = False

    @property
    def about(self) -> str:
        """What that is, in words."""
        if self.shape is None:
            return f"rows of {self.n_features:,} values"
        return described(self.shape, series=self.series)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Samples of one file, and a name for each."""

    path: Path
    x: FloatArray
    names: list[str]


def holds_samples(path: Path) -> bool:
    """Return whether the name of a file is that of a table or of arrays, and of no image."""
    return is_table(path) or path.name.lower().endswith((*_ARRAYS, *MAT, *HDF5))


def read_samples(
    path: Path, wanted: Wanted, *, array: str | None = None, channels: Channels = None
) -> Samples:
    """Read samples for a model, as `load_dataset` reads those to fit; labels are passed over.

    Parameters
    ----------
    path : Path
        A table, whose columns are those of the model by their names, or as many; or an ``.npy``,
        ``.npz``, ``.mat`` or HDF5 file.
    wanted : Wanted
    array : str or None
        Name of the array; None: the only one, or the only one that is called like samples.
    channels : {"first", "last"} or None
        Where those of images are.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it holds no samples that the model reads; says what it holds.

    Warns
    -----
    UserWarning
        Of columns that are passed over.
    """
    if is_table(path):
        if array is not None:
            raise ValueError(f"--array is for files of arrays, got {path}")
        table = read_table(path)
        x, names = _of_table(table, wanted, channels)
    else:
        x, names = _read_array(path, wanted, array), None
    x = _fitted(x, path, wanted, channels)
    return Samples(path, x, names or [f"{path}[{k}]" for k in range(len(x))])


def _fitted(x: NDArray[Any], path: Path, wanted: Wanted, channels: Channels) -> FloatArray:
    """Return samples in the shape and the units of those of the model."""
    title = f"{path}: samples"
    if wanted.shape is None:
        if x.ndim != 2 or x.shape[1] != wanted.n_features:
            raise ValueError(f"{path} must hold {wanted.about}, like the model's, got {x.shape}")
        return check_rows(x, title)
    unlike = ValueError(f"{path} must hold {wanted.about}, like the model's, got {x.shape}")
    if x.ndim == 3 and not wanted.series and (*x.shape[1:], 1) != wanted.shape:
        raise unlike
    says = x.ndim == 2 or (x.ndim == 3 and not wanted.series)
    image_shape = wanted.shape if says else None
    reading = Reading(channels, image_shape=image_shape, series=wanted.series)
    images = shaped(x, title, reading)
    if images.shape[1:] != wanted.shape:
        raise unlike
    if wanted.series or (wanted.normalised and x.dtype.kind == "f"):
        return check_rows(images, title)
    made, normalised = to_pixels({"samples": images}, str(path))
    if normalised != wanted.normalised:
        here, there = ("normalised images", "pixels in [0, 1]")[:: 1 if normalised else -1]
        raise ValueError(
            f"{path} must hold {there}, as those that the model was fitted to, got {here}: prepare "
            "them alike"
        )
    return made["samples"]


def _of_table(
    table: Table, wanted: Wanted, channels: Channels
) -> tuple[NDArray[Any], list[str] | None]:
    """Return the columns that a model reads, and names of rows."""
    columns = find_columns(table, None)
    names = None
    if columns.files is not None:
        names = [str(name) for name in table.values(columns.files)]
    if wanted.feature_names is not None and table.named:
        if missing := [name for name in wanted.feature_names if name not in table.columns]:
            raise ValueError(
                f"{table.path} must have the columns that the model was fitted to, got no "
                f"{', '.join(map(repr, missing[:_SHOWN]))}; there are {table.shown()}"
            )
        known = (*wanted.feature_names, columns.files)
        _say_passed(table, [name for name in table.columns if name not in known])
        return table.numbers(wanted.feature_names), names
    passed = columns.passed
    if columns.pixels is None and len(columns.features) != wanted.n_features:
        try:
            label = find_label(table, None)
        except ValueError:
            label = None
        if label in columns.features and len(columns.features) == wanted.n_features + 1:
            passed = [*passed, label]
            columns = find_columns(table, label)
        else:
            raise ValueError(
                f"{table.path} must have {wanted.n_features:,} columns of numbers, like those that "
                f"the model was fitted to, got {table.shown()}"
            )
    _say_passed(table, passed)
    shape = (1, wanted.n_features, 1) if wanted.shape is None else wanted.shape
    return samples_of(table, columns, Reading(channels, image_shape=shape)), names


def _say_passed(table: Table, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        what = "column" if len(names) == 1 else "columns"
        warnings.warn(f"{table.path}: passed over the {what} {shown}", stacklevel=4)


def _read_array(path: Path, wanted: Wanted, array: str | None) -> NDArray[Any]:
    if path.name.lower().endswith(_ARRAYS):
        with open_arrays(path) as stored:
            chosen = _choose(stored, path, array)
            _check_values(stored[chosen].shape, path)
            return stored[chosen].read()
    with open_held(path) as held:
        chosen = _choose(held, path, array)
        _check_values(held[chosen].shape, path)
        x = held[chosen].read()
        labels = _labels_beside(held, chosen)
        return _turned(x, None if labels is None else labels(), path, wanted)


def _check_values(shape: Sequence[int], path: Path) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"{path} must hold at most {MAX_VALUES:,} values: predict parts of it")


def _choose(arrays: Mapping[str, Any], path: Path, array: str | None) -> str:
    """Return the name of the array with samples."""
    found = [name for name in arrays if is_samples(name)]
    if array is not None:
        found = [array] if array in arrays else []
    elif len(arrays) == 1:
        found = list(arrays)
    if len(found) != 1:
        several = f"has the samples {', '.join(found[:_SHOWN])}" if found else "has no samples"
        named = f" called {array!r}" if array is not None else ""
        raise ValueError(
            f"{path} {several}{named}, got {listed(arrays)}: name the array with --array"
        )
    return found[0]


def _labels_beside(arrays: Mapping[str, Any], chosen: str) -> Callable[[], NDArray[Any]] | None:
    part = find_part(chosen)[0]
    for name in arrays:
        if find_part(name) in ((part, "y"), (part, "labels"), (part, "label"), (part, "target")):
            return arrays[name].read
    return None


def _turned(x: NDArray[Any], y: NDArray[Any] | None, path: Path, wanted: Wanted) -> NDArray[Any]:
    """Return samples of a file of MATLAB, or HDF5, with their axis in front."""
    if y is not None:
        return samples_first(x, y, str(path))
    shapes = {(wanted.n_features,)}
    if wanted.shape is not None:
        shapes |= {wanted.shape, wanted.shape[:2]} if wanted.shape[2] == 1 else {wanted.shape}
    first, last = x.shape[1:] in shapes, x.shape[:-1] in shapes
    return np.moveaxis(x, -1, 0) if last and not first else x
