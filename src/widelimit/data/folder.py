"""A folder of images, one subfolder per class, read with Pillow.

Only common bitmap formats are tried (no format that runs a program, as PostScript does), and the
size that a file announces is checked before it is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from widelimit.arrays import FloatArray, IntArray
from widelimit.data.dataset import Dataset, check_size, split_by_class
from widelimit.data.image import read_image

__all__ = ["load_image_folder"]

_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_MAX_FILES = 200_000
_MAX_CLASSES = 10_000
_SPLIT_FOLDERS = ("train", "test")


def load_image_folder(folder: Path, *, seed: int = 0) -> Dataset:
    """Read ``folder/class_name/*.png`` (or .jpg, .bmp, .gif, .webp, .tif, .ppm, .pgm).

    Parameters
    ----------
    folder : Path
        One subfolder per class, or the two subfolders ``train`` and ``test`` with one subfolder
        per class in each. Names that begin with a dot, and files of other types, are skipped.
    seed : int
        Of the test set that is drawn if there are no such two (`split_by_class`).

    Returns
    -------
    Dataset
        Classes and images in alphabetical order. Grey if all images are, else colour. Pixels of
        8 bits are divided by 255, those of 16 bits by 65535.

    Raises
    ------
    OSError
        If a folder cannot be read.
    ValueError
        If there are fewer than two classes or a class is empty, an image cannot be read, is
        transparent or has another size than the first one, or all together are too large.
    """
    parts = {entry.name: entry for entry in _visible(folder) if entry.is_dir()}
    name = folder.resolve().name
    if sorted(parts) == sorted(_SPLIT_FOLDERS):
        sets = [_list_classes(parts[part]) for part in _SPLIT_FOLDERS]
        if sets[0].keys() != sets[1].keys():
            odd = sorted(sets[0].keys() ^ sets[1].keys())
            raise ValueError(
                f"{folder}: train and test must have the same classes, only one of them has "
                f"{', '.join(odd[:5])}"
            )
        files = [path for classes in sets for paths in classes.values() for path in paths]
        n_train = sum(map(len, sets[0].values()))
        images = _read_images(files, folder)
        labels = np.concatenate([_labels_of(classes) for classes in sets])
        train, test = np.arange(n_train), np.arange(n_train, len(files))
    else:
        sets = [_list_classes(folder)]
        images = _read_images([p for paths in sets[0].values() for p in paths], folder)
        labels = _labels_of(sets[0])
        try:
            train, test = split_by_class(labels, seed=seed)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
    return Dataset(
        name=name,
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
        class_names=tuple(sets[0]),
        provenance=f"Folder of images {name}, with{'' if len(sets) == 2 else 'out'} a test set.",
        split="given" if len(sets) == 2 else "drawn",
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _list_classes(folder: Path) -> dict[str, list[Path]]:
    entries = _visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    if not 2 <= len(folders) <= _MAX_CLASSES:
        loose = sum(entry.suffix.lower() in _SUFFIXES for entry in entries)
        raise ValueError(
            f"{folder} must have 2 to {_MAX_CLASSES:,} subfolders, one per class, got "
            f"{len(folders)}{f' and {loose} images beside them' if loose else ''}: move the "
            f"images of each class to a folder of its own, as in {folder.name}/cat/1.png"
        )
    classes = {
        entry.name: [p for p in _visible(entry) if p.suffix.lower() in _SUFFIXES]
        for entry in folders
    }
    if empty := [name for name, files in classes.items() if not files]:
        raise ValueError(
            f"{folder}: every class must have images ({', '.join(sorted(_SUFFIXES))}), got none in "
            f"{', '.join(empty[:5])}: add some, or remove the folder"
        )
    if (n_files := sum(map(len, classes.values()))) > _MAX_FILES:
        raise ValueError(f"{folder} must have at most {_MAX_FILES:,} images, got {n_files:,}")
    return classes


def _labels_of(classes: dict[str, list[Path]]) -> IntArray:
    counts = [len(files) for files in classes.values()]
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _read_images(files: Sequence[Path], folder: Path) -> FloatArray:
    """Read all files to one array; grey images become coloured if others are."""
    first = read_image(files[0], folder, _FORMATS)
    h, w, _ = first.shape
    check_size((len(files), *first.shape), str(folder))
    images = [first]
    for path in files[1:]:
        image = read_image(path, folder, _FORMATS)
        if image.shape[:2] != (h, w):
            raise ValueError(
                f"all images of {folder} must have one size, got {w} x {h} in "
                f"{files[0].relative_to(folder)} and {image.shape[1]} x {image.shape[0]} in "
                f"{path.relative_to(folder)} (width x height): resize them before"
            )
        images.append(image)
    channels = max(image.shape[2] for image in images)
    check_size((len(files), h, w, channels), str(folder))
    result = np.empty((len(files), h, w, channels))
    for target, image in zip(result, images, strict=True):
        np.divide(image, float(np.iinfo(image.dtype).max), out=target)  # grey fills three channels
    return result
