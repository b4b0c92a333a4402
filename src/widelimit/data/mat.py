"""Files of MATLAB and HDF5: arrays by name, with samples wherever their axis is.

MATLAB has samples last, ``(h, w, c, n)``, as the Street View House Numbers do. Files of versions 5
to 7 are read by `matlab`; those of version 7.3 are HDF5 files with all axes reversed.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.data.dataset import MAX_VALUES, Dataset
from widelimit.data.matlab import Variable, scan_matlab
from widelimit.data.parts import Part, Reading, assemble, find_arrays, listed
from widelimit.data.table import needed
from widelimit.reading import open_regular, refusing

__all__ = ["HDF5", "MAT", "Held", "load_arrays", "open_held"]

MAT = (".mat",)
"""How names of files of MATLAB end."""
HDF5 = (".h5", ".hdf5", ".hdf", ".he5")
"""How names of HDF5 files end."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # at the beginning, or after a block of 512 bytes or a multiple
_BLOCKS = (0, 512, 1024, 2048)
_MAX_ARRAYS = 10_000
_MAX_NAMES = 10_000  # of classes
_MAX_STRUCTURE = 2**29  # bytes of a file with structures, which are read whole
_SVHN = (32, 32, 3)
_FEW_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Held:
    """An array in a file, of which nothing has been read yet.

    Parameters
    ----------
    shape : tuple of int
    dtype : str
        What to call its type.
    read : callable
        Returns the array.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[Any]]


@contextlib.contextmanager
def open_held(path: Path) -> Generator[dict[str, Held]]:
    """Open a ``.mat`` or HDF5 file, as arrays by name; those in groups have paths, ``train/data``.

    Raises
    ------
    OSError
        If it cannot be opened.
    ValueError
        If it is no such file or a damaged one, or h5py is needed and not there.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if _is_hdf5(file, size):
            with _open_hdf5(path, file) as held:
                yield held
            return
        if not path.name.lower().endswith(MAT):
            raise ValueError(
                f"{path} must be an HDF5 file, it does not begin like one: is it the right file?"
            )
        yield _matlab(path, file, size)


def _is_hdf5(file: BinaryIO, size: int) -> bool:
    for start in _BLOCKS:
        if start < size:
            file.seek(start)
            if file.read(len(_SIGNATURE)) == _SIGNATURE:
                return True
    file.seek(0)
    return False


# ---------------------------------------------------------------- MATLAB up to 7


def _matlab(path: Path, file: BinaryIO, size: int) -> dict[str, Held]:
    expected = f"{path} must be a .mat file, it is not", "save it again, or as .npz"
    with refusing(*expected):
        variables = scan_matlab(file)
    held: dict[str, Held] = {}
    for name, variable in variables.items():
        if variable.is_structure and size <= _MAX_STRUCTURE:
            with refusing(*expected):
                fields = cast("dict[str, NDArray[Any]]", variable.read())
            held |= {f"{name}/{inner}": _whole(array) for inner, array in fields.items()}
            continue

        def read(variable: Variable = variable) -> NDArray[Any]:
            with refusing(*expected):
                return _plain(np.asarray(variable.read()))

        held[name] = Held(variable.shape, variable.kind, read)
    return held


def _whole(array: NDArray[Any]) -> Held:
    return Held(array.shape, str(array.dtype), lambda: _plain(array))


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return cells of text as an array of text; anything else as it is."""
    if array.dtype.kind == "O":
        cells = [np.asarray(cell).ravel() for cell in array.ravel()]
        if all(cell.dtype.kind == "U" and cell.size == 1 for cell in cells):
            return np.array([str(cell[0]) for cell in cells], np.str_)
    return array


# ---------------------------------------------------------------- HDF5


@contextlib.contextmanager
def _open_hdf5(path: Path, file: BinaryIO) -> Generator[dict[str, Held]]:
    h5py = needed("h5py", f"{path}, an HDF5 file,")
    reverse = path.name.lower().endswith(MAT)
    expected = f"{path} must be an HDF5 file, it is damaged", "save or download it again"
    file.seek(0)
    with contextlib.ExitStack() as stack:
        with _refusing(expected):
            opened = stack.enter_context(h5py.File(file, "r"))
            held = _walk(h5py, opened, path, expected, reverse=reverse)
        yield held


@contextlib.contextmanager
def _refusing(expected: tuple[str, str]) -> Generator[None]:
    """Do as `refusing`; h5py says of a damaged file, too, that the system cannot read it."""
    with refusing(*expected):
        try:
            yield
        except OSError as error:
            if error.errno not in (None, errno.EINVAL):  # where it points before its beginning
                raise
            raise ValueError(str(error)) from error


def _walk(
    h5py: Any, opened: Any, path: Path, expected: tuple[str, str], *, reverse: bool
) -> dict[str, Held]:
    """Return the arrays of a file; links that lead out of it are not followed."""
    held: dict[str, Held] = {}
    groups: list[tuple[str, Any]] = [("", opened)]
    seen = 0
    while groups:
        prefix, group = groups.pop()
        for name in group:
            seen += 1
            if seen > _MAX_ARRAYS:
                raise ValueError(f"it has more than {_MAX_ARRAYS:,} arrays and groups")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink) or name == "#refs#":
                continue
            entry = group[name]
            inner = f"{prefix}{name}"
            if isinstance(entry, h5py.Group):
                if inner.count("/") < 8:
                    groups.append((f"{inner}/", entry))
            elif isinstance(entry, h5py.Dataset) and not entry.external and not entry.is_virtual:
                held[inner] = _of_hdf5(entry, expected, reverse=reverse)
    return held


def _of_hdf5(entry: Any, expected: tuple[str, str], *, reverse: bool) -> Held:
    def read() -> NDArray[Any]:
        with _refusing(expected):
            array = np.asarray(entry[()])
            if array.dtype.kind == "O":  # text of any length
                texts = [
                    e.decode("utf-8", "surrogateescape") if isinstance(e, bytes) else e
                    for e in array.ravel().tolist()
                ]
                if not all(isinstance(text, str) for text in texts):
                    raise ValueError("it holds neither numbers nor text")
                array = np.array(texts, np.str_).reshape(array.shape)
        return array.T if reverse else array

    shape: tuple[int, ...] = entry.shape or ()
    return Held(shape[::-1] if reverse else shape, str(entry.dtype), read)


# ---------------------------------------------------------------- data sets


def load_arrays(path: Path, reading: Reading, wanted: str | None = None) -> Dataset:
    """Read samples and labels from a ``.mat`` or HDF5 file.

    Parameters
    ----------
    path : Path
        With arrays, in structures and groups or not, whose names `find_arrays` understands, as
        ``X, y``, ``train/data, train/target`` or ``fea, gnd``. Samples may be on the first or the
        last axis: labels tell.
    reading : Reading
    wanted : {"train", "val", "test"} or None
        The one part to take.

    Returns
    -------
    Dataset
        Of the house numbers, (32, 32, 3, n) with labels from 1 to 10, the label 10 is the digit 0.

    Raises
    ------
    OSError, ValueError
        As for `open_held`; if there are no samples and labels, or they do not fit together.
    """
    parts, class_names = read_held(path, reading)
    return assemble(
        path.stem,
        parts,
        f"{path.name}, a file",
        reading,
        where=str(path),
        class_names=class_names,
        wanted=wanted,
    )


def read_held(path: Path, reading: Reading) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """Read the parts of a data set, and names of its classes."""
    with open_held(path) as held:
        found = find_arrays(held, path, listed(held), reading.label)
        total = sum(math.prod(held[name].shape) for name in found.arrays.values())
        if total > MAX_VALUES:
            raise ValueError(
                f"{path} must hold at most {MAX_VALUES:,} values, got {total:,}: use fewer or "
                "smaller images"
            )
        parts: dict[str, Part] = {}
        for part in found.parts:
            y = held[found.arrays["labels", part]].read()
            x = held[found.arrays["samples", part]].read()
            parts[part] = Part(samples_first(x, y, f"{path}: {part}"), y)
        class_names = None
        if found.class_names is not None and held[found.class_names].shape != ():
            names = held[found.class_names].read().ravel()
            if names.dtype.kind in "US" and names.size <= _MAX_NAMES:
                class_names = tuple(str(name) for name in names.astype(np.str_))
    if class_names is None and _are_house_numbers(parts):
        parts = {key: replace(part, y=part.y % 10) for key, part in parts.items()}
    return parts, class_names


def samples_first(x: NDArray[Any], y: NDArray[Any], name: str) -> NDArray[Any]:
    """Return samples with their axis, which is as long as there are labels, in front.

    Raises
    ------
    ValueError
        If no axis is, or it may be the first or the last.
    """
    n = len(y) if y.ndim == 2 and 1 not in y.shape else y.size
    if x.ndim < 2 or n not in (x.shape[0], x.shape[-1]):
        raise ValueError(
            f"{name} must have one label for each sample, got {n:,} labels for samples of shape "
            f"{x.shape}: save samples and labels together"
        )
    first, last = x.shape[0] == n, x.shape[-1] == n
    if first and last and x.ndim == 4:  # the axis of channels decides
        first, last = x.shape[3] in _FEW_CHANNELS, x.shape[2] in _FEW_CHANNELS
    if first and last and x.ndim > 2:
        raise ValueError(
            f"{name} of shape {x.shape} may have its {n} samples on the first axis or on the last: "
            "save it as .npz, with samples first"
        )
    return np.moveaxis(x, -1, 0) if last and not first else x


def _are_house_numbers(parts: Mapping[str, Part]) -> bool:
    shapes = {part.x.shape[1:] for part in parts.values()}
    labels: Sequence[NDArray[Any]] = [part.y for part in parts.values()]
    numeric = all(y.dtype.kind in "uif" for y in labels)
    return shapes == {_SVHN} and numeric and all(y.min() >= 1 and y.max() == 10 for y in labels)
