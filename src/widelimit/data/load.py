"""`load_dataset`: one name or path in, one `Dataset` out."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.data.cifar10 import is_cifar10_folder, load_cifar10_folder
from widelimit.data.dataset import Dataset, Size, check_size, draw_test_set
from widelimit.data.folder import load_image_folder
from widelimit.data.idx import find_idx_files, load_idx_folder
from widelimit.data.image import resize
from widelimit.data.npz import load_npz
from widelimit.matrices.inputs import Channels
from widelimit.reading import check_regular

__all__ = ["load_dataset", "read_dataset"]

SYSTEM_FOLDER = Path("/usr/share/datasets")
_DATA_FOLDER = "WIDELIMIT_DATA"  # environment variable
_MAX_SIBLINGS = 1000  # that are looked through for a similar name
_DIGITS_TRAIN_PER_CLASS = 128

# Where the files of a named data set are looked for, and how to get them.
_FOLDERS = {"fashion-mnist": ("fashion-mnist",), "cifar10": ("cifar-10-batches-bin", "cifar10")}
_HOW_TO_GET = {
    "fashion-mnist": (
        "install Debian's package dataset-fashion-mnist, or download train-images-idx3-ubyte.gz, "
        "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz of "
        "https://github.com/zalandoresearch/fashion-mnist to a folder fashion-mnist"
    ),
    "cifar10": (
        "download cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html and unpack "
        "it to a folder cifar-10-batches-bin"
    ),
}


def load_dataset(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    channels: Channels = None,
    size: Size | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Load images and labels by name, or from a folder or file.

    Parameters
    ----------
    source : str or path
        "digits"
            The 1,797 digits of scikit-learn, 8 x 8, grey. 128 of each class are drawn for
            training, the other 517 are for testing.
        "fashion-mnist", "cifar10"
            Read from files on this machine: the folder ``fashion-mnist`` or
            ``cifar-10-batches-bin`` in the folder that the environment variable WIDELIMIT_DATA
            names, or in ``/usr/share/datasets``. Nothing is ever downloaded.
        path of a folder
            The IDX files of MNIST or Fashion-MNIST, the binary files of CIFAR-10, or images:
            ``folder/class_name/image`` (`load_image_folder`).
        path of an ``.npz`` file
            With ``x_train, y_train`` and perhaps ``x_test, y_test`` (`load_npz`).

        A file or folder called like a data set is loaded with a slash: ``./digits``.
    seed : int
        Of the test set, where one has to be drawn.
    channels : {"first", "last"} or None
        Where those of images in arrays are, as for `widelimit.kernel`.
    size : (height, width) or None
        What all images are resized to, each side for itself, with Lanczos' filter. None: as they
        are; those of a folder must then have one size.
    skip_bad : bool
        Of a folder: whether images that cannot be read are left out, with a warning.

    Returns
    -------
    Dataset
        Pixels in [0, 1], not centred. Where the data have no test set, a fifth of each class is
        drawn for one.

    Raises
    ------
    FileNotFoundError
        If there is no such data set or path, or files are missing. Says how to get them, and
        what has a similar name.
    OSError
        If a file cannot be opened.
    ValueError
        If the content is damaged, too large, or not as described above; a class has one image,
        so that no test set can be drawn.

    Warns
    -----
    UserWarning
        Of files of a folder that were passed over, and of images that were changed.
    """
    data = read_dataset(source, channels=channels, size=size, skip_bad=skip_bad)
    if data.split != "none":
        return data
    per_class = _DIGITS_TRAIN_PER_CLASS if os.fspath(source) == "digits" else None
    return draw_test_set(data, train_per_class=per_class, seed=seed)


def read_dataset(
    source: str | os.PathLike[str],
    *,
    channels: Channels = None,
    size: Size | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Load images and labels as `load_dataset` does, but draw no test set."""
    data = _read(source, channels, size, skip_bad)
    return data if size is None or data.image_shape[:2] == size else _resized(data, size)


def _read(
    source: str | os.PathLike[str], channels: Channels, size: Size | None, skip_bad: bool
) -> Dataset:
    name = os.fspath(source)
    if name == "digits":
        return _load_digits()
    if name in _FOLDERS:
        return _load_folder(_find_folder(name), name, size, skip_bad)
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, path.resolve().name, size, skip_bad)
    if path.exists():
        check_regular(path)
        if path.suffix.lower() != ".npz":
            raise ValueError(
                f"{path} must be an .npz file or a folder, got a file of type "
                f"{path.suffix or 'unknown'}: save arrays with numpy.savez, or give the folder "
                "that holds the images"
            )
        return load_npz(path, channels=channels)
    raise FileNotFoundError(_explain_missing(name, path))


def _load_digits() -> Dataset:
    from sklearn import datasets  # pyright: ignore[reportMissingTypeStubs]

    # scikit-learn has no types.
    load_digits = cast("Callable[[], dict[str, Any]]", cast("Any", datasets).load_digits)
    bunch = load_digits()
    images = np.asarray(bunch["images"], dtype=np.float64)[..., None] / 16.0
    labels = np.asarray(bunch["target"], dtype=np.int64)
    return Dataset(
        name="digits",
        x_train=images,
        y_train=labels,
        x_test=images[:0],
        y_test=labels[:0],
        class_names=tuple("0123456789"),
        provenance=(
            "Handwritten digits that come with scikit-learn (E. Alpaydin and C. Kaynak, UCI "
            "repository, 1998). No test set of their own."
        ),
        split="none",
    )


def _load_folder(folder: Path, name: str, size: Size | None, skip_bad: bool) -> Dataset:
    if find_idx_files(folder):
        return load_idx_folder(folder, name)
    if is_cifar10_folder(folder):
        return load_cifar10_folder(folder)
    return load_image_folder(folder, size=size, skip_bad=skip_bad)


def _resized(data: Dataset, size: Size) -> Dataset:
    def made(images: FloatArray) -> FloatArray:
        check_size((len(images), *size, images.shape[3]), data.name)
        out = np.empty((len(images), *size, images.shape[3]))
        for target, image in zip(out, images, strict=True):
            np.clip(resize(image, 1.0, size), 0.0, 1.0, out=target)
        return out

    return replace(data, x_train=made(data.x_train), x_test=made(data.x_test))


def _find_folder(name: str) -> Path:
    bases = [SYSTEM_FOLDER]
    if given := os.environ.get(_DATA_FOLDER):
        bases.insert(0, Path(given).expanduser())
    folders = [base / folder for base in bases for folder in _FOLDERS[name]]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{name} is not on this machine (looked for {', '.join(map(str, folders))}): "
        f"{_HOW_TO_GET[name]}, and give the path of that folder, or set {_DATA_FOLDER} to the "
        "folder that holds it"
    )


def _explain_missing(name: str, path: Path) -> str:
    known = ["digits", *_FOLDERS]
    message = f"there is no data set and no path {name!r}"
    if similar := difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6):
        return f"{message}: did you mean {similar[0]}?"
    if path.parent.is_dir():
        try:
            siblings = [entry.name for entry in islice(path.parent.iterdir(), _MAX_SIBLINGS)]
        except OSError:
            siblings = []
        if similar := difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6):
            return f"{message}: did you mean {path.parent / similar[0]}?"
        return f"{message}: give {', '.join(known)}, a folder of images by class, or an .npz file"
    existing = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f"{message}: {existing} is there, but has no {path.absolute().relative_to(existing)}"
