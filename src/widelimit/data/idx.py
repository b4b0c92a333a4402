"""IDX files, the format of MNIST and its relatives: numbers behind a header of a few bytes."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.data.dataset import MAX_VALUES, Dataset, check_unpacked
from widelimit.data.parts import PART_WORDS, Part, Reading, assemble, check_images
from widelimit.data.search import visible_folders
from widelimit.reading import open_regular, read_bytes, refusing

__all__ = ["IdxFiles", "find_idx_files", "idx_group", "load_idx", "read_idx"]

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
# Code of the type in the header, and the number of axes: images, labels, and QMNIST's labels.
_TYPES = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}
_READ = ((8, 1), (8, 3), (8, 4), (12, 1), (12, 2))
# train-images-idx3-ubyte as published, train-images.idx3-ubyte unpacked, emnist-letters-test-... .
_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<part>train(?:ing)?|t10k|test(?:ing)?|val(?:id(?:ation)?)?)"
    r"[-_. ]*(?P<what>images?|imgs?|data|labels?|targets?)"
    r"(?P<format>[-_. ]*idx\d?)?[-_. ]*(?P<type>ubyte|int|uint8)?(?:\.idx)?"
)
_MAX_MAPPING = 2**16  # bytes
_MAX_FOLDERS = 100  # that are looked into
_SHOWN = 8


class IdxFiles(dict[str, Path]):
    """The IDX files of a data set by part: "train-images", "t10k-labels", and so on."""


def find_idx_files(folder: Path) -> dict[str, IdxFiles]:
    """Return the IDX files of a folder, or else of folders in it, by data set.

    The prefix of names tells data sets; that of MNIST, Fashion-MNIST and Kaggle's is "".
    """
    found = _in_folder(folder)
    if not found:
        inner = visible_folders(folder)[:_MAX_FOLDERS]
        # MNIST/raw of torchvision, and Kaggle's train-images-idx3-ubyte/train-images-idx3-ubyte.
        inner += [deeper for path in inner[:_MAX_FOLDERS] for deeper in _quietly(path)]
        for path in inner[:_MAX_FOLDERS]:
            for prefix, files in _in_folder(path).items():
                known = found.setdefault(prefix, IdxFiles())
                for part, file in files.items():
                    known.setdefault(part, file)
    return found


def _quietly(folder: Path) -> list[Path]:
    try:
        return visible_folders(folder)
    except OSError:
        return []


def idx_group(path: Path) -> str | None:
    """Return the prefix of a file's name, which tells its data set; None if it is no IDX file."""
    parsed = _parse(path)
    return None if parsed is None else parsed[0]


def _in_folder(folder: Path) -> dict[str, IdxFiles]:
    found: dict[str, IdxFiles] = {}
    try:
        entries = sorted(folder.iterdir(), key=lambda path: (path.suffix != ".gz", path.name))
    except OSError:
        return {}
    for path in entries:
        if (parsed := _parse(path)) is not None:
            prefix, part = parsed
            found.setdefault(prefix, IdxFiles()).setdefault(part, path)
    return {prefix: files for prefix, files in found.items() if files.keys() & set(_PARTS)}


def _parse(path: Path) -> tuple[str, str] | None:
    """Return prefix and part of a file, if its name fits or, where that tells little, its start."""
    name = path.name.lower().removesuffix(".gz")
    match = _NAME.fullmatch(name)
    if match is None or not path.is_file():
        return None
    if match["format"] is None and match["type"] is None and not _begins(path):
        return None
    part = {"train": "train", "test": "t10k", "val": "val"}[PART_WORDS[match["part"]]]
    what = "labels" if match["what"].startswith(("label", "target")) else "images"
    return match["prefix"].strip("-_. "), f"{part}-{what}"


def _begins(path: Path) -> bool:
    """Return whether a file begins like one of bytes."""
    try:
        with open_regular(path) as file:
            stream: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            return stream.read(3) == b"\0\0\x08"
    except (OSError, ValueError, EOFError):
        return False


def load_idx(
    folder: Path, name: str, group: str | None, reading: Reading, wanted: str | None = None
) -> Dataset:
    """Read the files of MNIST, Fashion-MNIST, EMNIST or another data set of the same form.

    Parameters
    ----------
    folder : Path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``,
        each with or without ``.gz``, with a prefix (EMNIST, QMNIST) and ``test`` or not.
    name : str
        "fashion-mnist" gives the classes their names, as does the mapping of EMNIST beside the
        files; any other name leaves them numbers.
    group : str or None
        The prefix of the files; None: there is only one.
    reading : Reading
    wanted : {"train", "val", "test"} or None
        The one part to take.

    Returns
    -------
    Dataset
        Images of EMNIST, whose files have lines and columns exchanged, are upright.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, too large, or no IDX file of bytes, or the files do not fit together;
        or there are several data sets.
    """
    groups = find_idx_files(folder)
    if group is None and len(groups) > 1:
        shown = ", ".join(prefix or "without a prefix" for prefix in list(groups)[:_SHOWN])
        first = next(path for files in groups.values() for path in files.values())
        raise ValueError(
            f"{folder} holds IDX files of {len(groups)} data sets, {shown}: give the path of a "
            f"file of one, as {first}"
        )
    prefix = next(iter(groups)) if group is None else group
    files = groups[prefix]
    parts = [part for part in _PARTS if part.startswith("train")]
    if any(part in files for part in _PARTS if part.startswith("t10k")):
        parts = list(_PARTS)
    if missing := [part for part in parts if part not in files]:
        raise FileNotFoundError(
            f"{folder} must hold four IDX files, got no {' and no '.join(missing)} "
            f"(say {missing[0]}-idx{3 if missing[0].endswith('images') else 1}-ubyte.gz): "
            "download all four into this folder"
        )
    check_images(prefix or name, reading)
    upright = prefix.startswith("emnist")
    read = {
        words: _read_part(files, part, upright=upright)
        for words, part in (("train", "train"), ("test", "t10k"), ("val", "val"))
        if f"{part}-images" in files and f"{part}-labels" in files
    }
    class_names, title = None, prefix or name
    all_names = title == "fashion-mnist" and all(
        part.y.max(initial=0) < len(FASHION_CLASSES) for part in read.values()
    )
    if all_names:
        class_names = FASHION_CLASSES
    elif upright:
        read, class_names = _mapped(read, next(iter(files.values())).parent, prefix)
    shape = next(iter(read.values())).x.shape
    if len(shape) == 3 and reading.image_shape is None:  # images by their format, however narrow
        reading = replace(reading, image_shape=(shape[1], shape[2], 1))
    return assemble(
        title,
        read,
        f"{title}, IDX files" + (", made upright," if upright else ""),
        reading,
        where=str(folder),
        class_names=class_names,
        all_names=class_names is not None,
        wanted=wanted,
    )


def _read_part(files: Mapping[str, Path], part: str, *, upright: bool) -> Part:
    paths = files[f"{part}-images"], files[f"{part}-labels"]
    images, labels = map(read_idx, paths)
    if labels.ndim == 2:  # QMNIST: the class, and then where the digit comes from
        labels = labels[:, 0]
    if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"{paths[0]} and {paths[1]} must hold images (n, h, w) and labels (n,), got shapes "
            f"{images.shape} and {labels.shape}: download both again"
        )
    return Part(images.swapaxes(1, 2) if upright else images, labels)


def _mapped(
    read: Mapping[str, Part], folder: Path, prefix: str
) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """Return labels from 0 on, and their characters, from the mapping of EMNIST; or nothing."""
    path = folder / f"{prefix}-mapping.txt"
    if not path.is_file():
        return dict(read), None
    names: dict[int, str] = {}
    with refusing(f"{path} must hold a label and the code of its character a line", "remove it"):
        for line in read_bytes(path, _MAX_MAPPING).decode("ascii").splitlines():
            if line.strip():
                label, code, *_ = (int(word) for word in line.split())
                names[label] = chr(code)
        order = sorted(names)
        parts = {
            key: Part(part.x, np.searchsorted(order, part.y))
            for key, part in read.items()
            if np.isin(part.y, order).all() or _unknown(part.y, order)
        }
    return parts, tuple(names[label] for label in order)


def _unknown(labels: NDArray[Any], order: list[int]) -> bool:
    raise ValueError(f"it has no label {labels[~np.isin(labels, order)][0]}")


def read_idx(path: Path) -> NDArray[Any]:
    """Read one IDX file of unsigned bytes, or of integers of 32 bits, gzipped or not.

    Parameters
    ----------
    path : Path
        Gzipped if it ends in ``.gz``.

    Returns
    -------
    ndarray of uint8 or int32, the shape of the header

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, no IDX file of at most `MAX_VALUES` numbers, or compressed so well
        that little of it would take much memory (`check_unpacked`).

    Notes
    -----
    Never reads more than the header announces, so that a small file cannot unpack to a large one.
    """
    with open_regular(path) as file:
        stream = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file

        def take(n: int) -> bytes:
            with refusing(f"{path} is damaged", "download it again"):
                return stream.read(n)

        return _read(take, path, os.fstat(file.fileno()).st_size)


def _read(take: Callable[[int], bytes], path: Path, size: int) -> NDArray[Any]:
    head = take(4)
    if len(head) < 4 or head[:2] != b"\0\0" or (head[2], head[3]) not in _READ:
        raise ValueError(
            f"{path} must be an IDX file of bytes, beginning 00 00 08 01 or 00 00 08 03, got "
            f"{head.hex(' ') or 'an empty file'}: is it the right file?"
        )
    dtype, rank = _TYPES[head[2]], head[3]
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
    expected *= dtype.itemsize
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
    return np.frombuffer(content, dtype=dtype).reshape(shape)
