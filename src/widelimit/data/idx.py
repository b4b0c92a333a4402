"""IDX files, the format of MNIST and its relatives: bytes behind a header of 8 or 16 bytes."""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widelimit.data.dataset import MAX_VALUES, Dataset, check_unpacked, to_unit_interval
from widelimit.reading import open_regular, refusing

__all__ = ["find_idx_files", "load_idx_folder", "read_idx"]

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_CHUNK = 2**20  # bytes
_UNSIGNED_BYTE = 8  # the only type that these data sets use


def find_idx_files(folder: Path) -> dict[str, Path]:
    """Return the IDX files of a folder by part: "train-images", "t10k-labels" and so on."""
    found: dict[str, Path] = {}
    for part in _PARTS:
        rank = 3 if part.endswith("images") else 1
        for dot in "-.":  # train-images-idx3-ubyte as published, train-images.idx3-ubyte unpacked
            for end in (".gz", ""):
                path = folder / f"{part}{dot}idx{rank}-ubyte{end}"
                if part not in found and path.is_file():
                    found[part] = path
    return found


def load_idx_folder(folder: Path, name: str) -> Dataset:
    """Read the four files of MNIST, Fashion-MNIST or another data set of the same form.

    Parameters
    ----------
    folder : Path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``,
        each with or without ``.gz``.
    name : str
        "fashion-mnist" gives the classes their names; any other name leaves them numbers.

    Returns
    -------
    Dataset
        With the test set of the files.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, too large, or no IDX file of bytes, or the files do not fit together.
    """
    files = find_idx_files(folder)
    if missing := [part for part in _PARTS if part not in files]:
        raise FileNotFoundError(
            f"{folder} must hold four IDX files, got no {' and no '.join(missing)} "
            f"(say {missing[0]}-idx{3 if missing[0].endswith('images') else 1}-ubyte.gz): "
            "download all four into this folder"
        )
    arrays = {part: read_idx(path) for part, path in files.items()}
    highest = 0
    for part in ("train", "t10k"):
        images, labels = arrays[f"{part}-images"], arrays[f"{part}-labels"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{files[f'{part}-images']} and {files[f'{part}-labels']} must hold images "
                f"(n, h, w) and labels (n,), got shapes {images.shape} and {labels.shape}: "
                "download both again"
            )
        highest = max(highest, int(labels.max(initial=0)))
    names = tuple(str(label) for label in range(highest + 1))
    if name == "fashion-mnist" and highest < len(FASHION_CLASSES):
        names = FASHION_CLASSES
    return Dataset(
        name=name,
        x_train=to_unit_interval(arrays["train-images"])[..., None],
        y_train=arrays["train-labels"].astype(np.int64),
        x_test=to_unit_interval(arrays["t10k-images"])[..., None],
        y_test=arrays["t10k-labels"].astype(np.int64),
        class_names=names,
        provenance=f"{name}, read from IDX files, with the test set of the data set.",
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Parameters
    ----------
    path : Path

    Returns
    -------
    ndarray of uint8, the shape of the header

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, no IDX file of at most `MAX_VALUES` unsigned bytes, or compressed so well
        that little of it would take much memory (`check_unpacked`).

    Notes
    -----
    Never reads more than the header announces, so that a small file cannot unpack to a large one.
    """
    with open_regular(path) as file:
        stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file

        def take(n: int) -> bytes:
            with refusing(f"{path} is damaged", "download it again"):
                return stream.read(n)

        return _read(take, path, os.fstat(file.fileno()).st_size)


def _read(take: Callable[[int], bytes], path: Path, size: int) -> NDArray[np.uint8]:
    head = take(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTE or head[3] not in (1, 3):
        raise ValueError(
            f"{path} must be an IDX file of bytes, beginning 00 00 08 01 or 00 00 08 03, got "
            f"{head.hex(' ') or 'an empty file'}: is it the right file?"
        )
    rank = head[3]
    sizes = take(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(f"{path} ends inside its header: download it again")
    shape = struct.unpack(f">{rank}I", sizes)
    expected = math.prod(shape)
    if not 0 < expected <= MAX_VALUES:
        raise ValueError(
            f"{path} must hold 1 to {MAX_VALUES:,} bytes, its header says "
            f"{' x '.join(map(str, shape))} = {expected:,}: is it the right file?"
        )
    content = bytearray()  # which grows: the header may promise more than there is
    while len(content) < expected and (part := take(min(_CHUNK, expected - len(content)))):
        content += part
        check_unpacked(len(content), size, str(path))
    if len(content) < expected:
        raise ValueError(
            f"{path} must hold {expected:,} bytes after its header, got {len(content):,}: it was "
            "cut off, download it again"
        )
    if take(1):
        raise ValueError(
            f"{path} holds more than the {expected:,} bytes that its header says: download it again"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
