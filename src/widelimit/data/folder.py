"""A folder of images, one subfolder per class, read with Pillow.

No format is tried that runs another program, as PostScript does, and the size that a file announces
is checked before it is decoded.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.data.dataset import Dataset, Size, check_size
from widelimit.data.image import Changes, fit_image, read_image, safe_formats
from widelimit.data.search import HIDDEN, Found, find_images, is_hidden, visible_folders

__all__ = ["load_image_folder"]

_MAX_CLASSES = 10_000
_MOST_SHOWN = 20  # files or sizes in a message
_MOST_NAMED = 5  # files that are none of images
# Names of the parts of a data set, in lower case.
_PARTS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


def load_image_folder(
    folder: Path,
    *,
    size: Size | None = None,
    skip_bad: bool = False,
    wanted: str | None = None,
    fewest: int = 2,
) -> Dataset:
    """Read ``folder/class_name/image`` in any format that Pillow reads.

    Parameters
    ----------
    folder : Path
        One subfolder per class, with images in it and in folders below; or subfolders ``train`` (or
        ``training``) and ``test`` (``testing``, or ``val`` where there is no such), with one
        subfolder per class in each. Capital letters do not matter.
    size : (height, width) or None
        What all images are resized to, each side for itself.
    skip_bad : bool
        Whether images that cannot be read are left out, with a warning that names them.
    wanted : {"train", "val", "test"} or None
        The one part to take.
    fewest : int
        Of classes: one is enough to classify.

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
        If there is no such part, there are fewer classes than `fewest` or one is empty, images
        cannot be read (all of them are named) or have different sizes and `size` is None, or all
        together are too large.

    Warns
    -----
    UserWarning
        In one line, of what was passed over, and why: hidden files and those of systems
        (``__MACOSX``, ``.ipynb_checkpoints``), what is no image, images outside of all classes.
        Of images that were transparent, and put on white; of animations and documents of several
        pages, of which the first one was taken.
    """
    found = Found(folder)
    parts = _find_parts(folder)
    if wanted is not None and wanted not in (parts or ("train",)):
        raise ValueError(f"{folder} has no part {wanted!r}, got {', '.join(parts) or 'train'}")
    if wanted is not None or not parts:
        only = parts.get(wanted or "", folder)
        classes = [_list_classes(only, found, fewest)]
        _add_loose(only, found)
    else:
        first, second = parts["train"], parts.get("test", parts.get("val"))
        assert second is not None
        classes = [_list_classes(part, found, fewest) for part in (first, second)]
        for part in (first, second):
            _add_loose(part, found)
        if classes[0].keys() != classes[1].keys():
            odd = sorted(classes[0].keys() ^ classes[1].keys())
            raise ValueError(
                f"{folder}: {first.name} and {second.name} must have the same classes, only one "
                f"of them has {', '.join(odd[:5])}"
            )
        if len(parts) == 3:
            left = find_images(parts["val"]).images
            reason = f"images of {parts['val'].name}, which neither fit nor test uses"
            if left:
                found.pass_over(reason, *left)
    if said := str(found):
        warnings.warn(said, stacklevel=2)
    files = [path for part in classes for paths in part.values() for path in paths]
    labels = np.concatenate([_labels_of(part) for part in classes])
    images, read = _read_images(files, folder, size, skip_bad=skip_bad)
    labels = labels[read]
    names = [str(files[int(place)].relative_to(folder)) for place in read]
    n_train = int(np.count_nonzero(read < sum(map(len, classes[0].values()))))
    class_names = tuple(classes[0])
    divided = len(classes) == 2
    for part in (labels[:n_train], labels[n_train:]) if divided else (labels,):
        if gone := [class_names[k] for k in range(len(class_names)) if k not in part]:
            raise ValueError(
                f"{folder}: no image can be read of {', '.join(gone[:5])}: mend them, or remove "
                "the folder"
            )
    name = folder.resolve().name
    return Dataset(
        name=name,
        x_train=images[:n_train],
        y_train=labels[:n_train],
        x_test=images[n_train:],
        y_test=labels[n_train:],
        class_names=class_names,
        provenance=f"Folder of images {name}, with{'' if divided else 'out'} a test set.",
        split="given" if divided else "none",
        files_train=tuple(names[:n_train]),
        files_test=tuple(names[n_train:]),
    )


def _find_parts(folder: Path) -> dict[str, Path]:
    """Return the folders of training and other images, if all folders here are such."""
    parts: dict[str, Path] = {}
    for path in visible_folders(folder):
        part = _PARTS.get(path.name.lower())
        if part is None or part in parts:
            return {}
        parts[part] = path
    return parts if "train" in parts and len(parts) > 1 else {}


def _list_classes(folder: Path, found: Found, fewest: int) -> dict[str, list[Path]]:
    folders = visible_folders(folder)
    if not fewest <= len(folders) <= _MAX_CLASSES:
        loose = len(find_images(folder).images) if not folders else 0
        beside = f" and {loose} images beside them" if loose else _others(folder)
        raise ValueError(
            f"{folder} must have {fewest} to {_MAX_CLASSES:,} subfolders, one per class, got "
            f"{len(folders)}{beside}: move the images of each class to a folder of its own, as in "
            f"{folder.name}/cat/1.png, or give a file of another kind (.npz, .mat, .h5, .csv)"
        )
    classes: dict[str, list[Path]] = {}
    for path in folders:
        before = len(found.images)
        find_images(path, found)
        classes[path.name] = found.images[before:]
    if empty := [name for name, files in classes.items() if not files]:
        passed = f" ({found})" if found.passed else ""
        raise ValueError(
            f"{folder}: every class must have images, got none in {', '.join(empty[:5])}{passed}: "
            "add some, or remove the folder"
        )
    return classes


def _others(folder: Path) -> str:
    """Say what is in a folder that is not as it should be."""
    names = sorted(path.name for path in folder.iterdir() if not is_hidden(path.name))
    if not names:
        return ""
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return f" ({', '.join(names[:_MOST_NAMED])}{more})"


def _add_loose(folder: Path, found: Found) -> None:
    """Note what lies beside the folders of classes."""
    for path in folder.iterdir():
        if is_hidden(path.name):
            found.pass_over(HIDDEN, path)
        elif not path.is_dir():
            found.pass_over("in no folder of a class", path)


def _labels_of(classes: dict[str, list[Path]]) -> IntArray:
    counts = [len(files) for files in classes.values()]
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _read_images(
    files: Sequence[Path], folder: Path, size: Size | None, *, skip_bad: bool
) -> tuple[FloatArray, IntArray]:
    """Read all files to one array, and return the places of those that could be read.

    Grey images become coloured if others are.
    """
    formats, changes = safe_formats(), Changes()
    bad: list[str] = []
    read: list[int] = []
    images: list[NDArray[Any]] = []
    sizes: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for place, path in enumerate(files):
        try:
            image = read_image(path, folder, formats, changes)
        except ValueError as error:
            said = str(error).removeprefix(f"{folder}: cannot read ")
            bad.append(said.removesuffix(": mend the file or remove it"))
            continue
        sizes[image.shape[:2]].append(path)
        if size is not None:
            image = fit_image(image, (*size, image.shape[2]))[0]
        if not images:
            check_size((len(files), *image.shape), str(folder))
        read.append(place)
        images.append(image if size is not None or len(sizes) == 1 else image[:0])
    _check_bad(bad, len(files), folder, skip_bad=skip_bad)
    if size is None and len(sizes) > 1:
        raise ValueError(_describe_sizes(sizes, folder))
    for line in changes.lines():
        warnings.warn(f"{folder}: {line}", stacklevel=3)
    h, w = size or next(iter(sizes))
    channels = max(image.shape[2] for image in images)
    check_size((len(images), h, w, channels), str(folder))
    result = np.empty((len(images), h, w, channels))
    for target, image in zip(result, images, strict=True):
        most = 1.0 if image.dtype == np.float64 else float(np.iinfo(image.dtype).max)
        np.divide(image, most, out=target)  # grey fills three channels
    return result, np.array(read, np.int64)


def _check_bad(bad: list[str], n_files: int, folder: Path, *, skip_bad: bool) -> None:
    """Refuse images that could not be read, or say which are left out."""
    if not bad:
        return
    more = f"; and {len(bad) - _MOST_SHOWN:,} more" if len(bad) > _MOST_SHOWN else ""
    text = f"{len(bad):,} of {n_files:,} images of {folder} "
    listed = "; ".join(bad[:_MOST_SHOWN]) + more
    if not skip_bad or len(bad) == n_files:
        raise ValueError(
            f"{text}cannot be read: {listed}: mend or remove them, or leave them out with "
            "skip_bad=True (--skip-bad)"
        )
    warnings.warn(f"{text}were left out: {listed}", stacklevel=4)


def _describe_sizes(sizes: dict[tuple[int, int], list[Path]], folder: Path) -> str:
    """Say which sizes there are, the most frequent first."""
    ordered = sorted(sizes.items(), key=lambda item: -len(item[1]))
    shown = ", ".join(
        f"{h}x{w} ({len(paths):,}: {paths[0].relative_to(folder)}{', ...' if paths[1:] else ''})"
        for (h, w), paths in ordered[:_MOST_SHOWN]
    )
    more = f", and {len(ordered) - _MOST_SHOWN:,} more" if len(ordered) > _MOST_SHOWN else ""
    h, w = ordered[0][0]
    return (
        f"all images of {folder} must have one size, got {shown}{more} (height x width): resize "
        f"all with size=({h}, {w}) (--size {h}x{w}); a smaller one costs less"
    )
