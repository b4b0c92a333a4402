"""CIFAR-10 in its binary version: records of one label byte and 3 x 32 x 32 pixel bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widelimit.data.dataset import Dataset, to_unit_interval
from widelimit.reading import open_regular

__all__ = ["is_cifar10_folder", "load_cifar10_folder"]

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST_FILE = "test_batch.bin"
_RECORD = 1 + 3 * 32 * 32
_MAX_RECORDS = 10_000  # of one file


def is_cifar10_folder(folder: Path) -> bool:
    """Whether a folder looks like CIFAR-10, be it the binary or the pickled version."""
    return any((folder / name).is_file() for name in (_TRAIN_FILES[0], "data_batch_1"))


def load_cifar10_folder(folder: Path) -> Dataset:
    """Read the binary version of CIFAR-10.

    Parameters
    ----------
    folder : Path
        Holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.

    Returns
    -------
    Dataset
        60,000 images (32, 32, 3), with the test set of the data set.

    Raises
    ------
    FileNotFoundError
        If a file is missing. The Python version, which is pickled, is never read: to unpickle a
        file is to run what it says.
    ValueError
        If a file has an impossible size, or a label is not from 0 to 9.
    """
    missing = [name for name in (*_TRAIN_FILES, _TEST_FILE) if not (folder / name).is_file()]
    if missing:
        pickled = (folder / "data_batch_1").is_file()
        raise FileNotFoundError(
            f"{folder} must hold the binary version of CIFAR-10, got no {' and no '.join(missing)}"
            + (" but the Python version, whose pickles are never read" if pickled else "")
            + ": unpack cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    batches = [_read(folder / name) for name in _TRAIN_FILES]
    x_test, y_test = _read(folder / _TEST_FILE)
    return Dataset(
        name="cifar10",
        x_train=to_unit_interval(np.concatenate([x for x, _ in batches])),
        y_train=np.concatenate([y for _, y in batches]).astype(np.int64),
        x_test=to_unit_interval(x_test),
        y_test=y_test.astype(np.int64),
        class_names=CLASSES,
        provenance="CIFAR-10, binary version, with the test set of the data set.",
    )


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        records, rest = divmod(size, _RECORD)
        if rest or not 1 <= records <= _MAX_RECORDS:
            raise ValueError(
                f"{path} must hold 1 to {_MAX_RECORDS:,} records of {_RECORD:,} bytes, got "
                f"{size:,} bytes: unpack cifar-10-binary.tar.gz again"
            )
        content = np.frombuffer(file.read(size), np.uint8).reshape(-1, _RECORD)
    labels = content[:, 0]
    if int(labels.max()) >= len(CLASSES):
        bad = int(np.argmax(labels >= len(CLASSES)))
        raise ValueError(
            f"{path} must hold labels from 0 to 9, got {labels[bad]} in record {bad}: unpack "
            "cifar-10-binary.tar.gz again"
        )
    return content[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
