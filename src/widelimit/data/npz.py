"""Images or rows, and labels, in an ``.npz`` file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from widelimit.data.dataset import MAX_VALUES, Dataset, check_unpacked
from widelimit.data.parts import Part, Reading, assemble, find_arrays, listed
from widelimit.reading import StoredArray, open_arrays

__all__ = ["load_npz", "read_parts"]

_MAX_BYTES = 8 * MAX_VALUES


def load_npz(path: Path, reading: Reading | None = None, wanted: str | None = None) -> Dataset:
    """Read images or rows, and labels, from an ``.npz`` file.

    Parameters
    ----------
    path : Path
        With arrays ``x_train`` and ``y_train``, and perhaps ``x_test`` and ``y_test``, ``x_val``
        and ``y_val``; Keras's names, those of MedMNIST (``train_images``), ``x, y``, ``data,
        target`` and others are understood, capital letters do not matter (`find_arrays`). Samples
        are images (n, h, w) or (n, h, w, c), or rows (n, d). Labels are (n,) or (n, 1), whole
        numbers or strings; or (n, k), each row of which marks one class.
    reading : Reading or None
    wanted : {"train", "val", "test"} or None
        The one part to take.

    Returns
    -------
    Dataset
        Classes in the order of their labels. Pixels as `assemble` has them: integers are divided
        by the largest of their type; floats are in [0, 1], or normalised and stay as they are.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no ``.npz`` file, is damaged or too large, lacks an array, or holds one that is
        no set of samples or labels.
    MemoryError
        If it does not fit into memory.
    """
    reading = Reading() if reading is None else reading
    with open_arrays(path) as stored:
        parts = read_parts(stored, path, reading)
    return assemble(
        path.stem, parts, f"{path.name}, a file", reading, where=str(path), wanted=wanted
    )


def read_parts(stored: Mapping[str, StoredArray], path: Path, reading: Reading) -> dict[str, Part]:
    """Find samples and labels by name, check that they are not too large, and read them."""
    found = find_arrays(stored, path, listed(stored), reading.label)
    wanted = {key: stored[name] for key, name in found.arrays.items()}
    total = sum(array.nbytes for array in wanted.values())
    if total > _MAX_BYTES:
        raise ValueError(
            f"{path} must unpack to at most {_MAX_BYTES:,} bytes, got {total:,}: use fewer or "
            "smaller images, or save them as uint8"
        )
    values = sum(math.prod(array.shape) for (what, _), array in wanted.items() if what == "samples")
    if path.is_file():
        check_unpacked(values, path.stat().st_size, str(path))
    return {
        part: Part(wanted["samples", part].read(), wanted["labels", part].read())
        for part in found.parts
    }
