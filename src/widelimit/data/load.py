"""`load_dataset`: one name, path or object in, one `Dataset` out."""

from __future__ import annotations

import difflib
import os
import warnings
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.data.cifar import (
    ARCHIVES,
    is_cifar_folder,
    load_cifar_archive,
    load_cifar_folder,
)
from widelimit.data.dataset import Dataset, Size, check_size, draw_test_set
from widelimit.data.download import CIFAR10, fetch
from widelimit.data.folder import load_image_folder
from widelimit.data.idx import find_idx_files, idx_group, load_idx
from widelimit.data.image import resize
from widelimit.data.mat import HDF5, MAT, load_arrays, read_held
from widelimit.data.npz import load_npz, read_parts
from widelimit.data.objects import load_object
from widelimit.data.parts import Part, Reading, assemble, check_images, find_part, shaped
from widelimit.data.search import is_hidden, visible_folders
from widelimit.data.table import TABLES, is_table, load_tables
from widelimit.matrices.inputs import Channels
from widelimit.reading import check_regular, open_arrays, open_regular

__all__ = ["load_dataset", "read_dataset"]

SYSTEM_FOLDER = Path("/usr/share/datasets")
_DATA_FOLDER = "WIDELIMIT_DATA"  # environment variable
_FETCHED = {"cifar10": CIFAR10}
_MAX_SIBLINGS = 1000  # that are looked through for a similar name
_DIGITS_TRAIN_PER_CLASS = 128
_SHOWN = 8

# Where the files of a named data set are looked for, and how to get them.
_FOLDERS = {
    "fashion-mnist": ("fashion-mnist",),
    "cifar10": (
        *("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-batches-mat", "cifar10"),
        *("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "cifar-10-matlab.tar.gz"),
    ),
    "cifar100": (
        *("cifar-100-binary", "cifar-100-python", "cifar-100-matlab", "cifar100"),
        *("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz", "cifar-100-matlab.tar.gz"),
    ),
}
NAMED = ("digits", *_FOLDERS)
"""Data sets that have names."""
_HOW_TO_GET = {
    "fashion-mnist": (
        "install Debian's package dataset-fashion-mnist, or download train-images-idx3-ubyte.gz, "
        "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz of "
        "https://github.com/zalandoresearch/fashion-mnist to a folder fashion-mnist"
    ),
    "cifar10": (
        "let --download of widelimit reproduce or rank fetch it, or "
        'load_dataset("cifar10", download=True); or download '
        "cifar-10-binary.tar.gz, or another version, of "
        "https://www.cs.toronto.edu/~kriz/cifar.html (there is no need to unpack it)"
    ),
    "cifar100": (
        "download cifar-100-binary.tar.gz, or another version, of "
        "https://www.cs.toronto.edu/~kriz/cifar.html (there is no need to unpack it)"
    ),
}

# What files begin with that are not read here, and what to do with them.
_OTHERS = (
    (b"PAR1", "a Parquet file", "save it as CSV (pandas.read_parquet, DataFrame.to_csv)"),
    (b"PK", "an archive", "unpack it, and give the folder"),
    (b"\x80", "a pickle, which is never read", "save arrays with numpy.savez"),
    (b"\xd0\xcf\x11\xe0", "a file of Office", "save the table as CSV"),
    (b"\x1f\x8b", "a packed file", "unpack it"),
    (b"SQLite", "a data base", "save the table as CSV"),
    (b"ARROW1", "an Arrow file", "save it as CSV, or give load_dataset the data set in Python"),
)
_ARRAYS = (".npz", ".npy", *MAT, *HDF5)


def load_dataset(
    source: Any,
    *,
    seed: int = 0,
    channels: Channels = None,
    size: Size | None = None,
    skip_bad: bool = False,
    label: str | int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    series: bool = False,
    download: bool = False,
) -> Dataset:
    """Load images or rows, and labels, by name, from files, or from objects of other libraries.

    Parameters
    ----------
    source : str, path or object
        "digits"
            The 1,797 digits of scikit-learn, 8 x 8, grey. 128 of each class are drawn for
            training, the other 517 are for testing.
        "fashion-mnist", "cifar10", "cifar100"
            Read from files on this machine: the folder ``fashion-mnist``,
            ``cifar-10-batches-bin`` and so on, or the archive of CIFAR, in the folder that the
            environment variable WIDELIMIT_DATA names, in ``~/.local/share/widelimit`` (or
            ``widelimit`` in XDG_DATA_HOME), or in ``/usr/share/datasets``.
        path of a folder
            IDX files (MNIST, EMNIST, QMNIST, under any of the usual names), CIFAR-10 or CIFAR-100
            in any version, a table or file of arrays for each of train, test and val; or images:
            ``folder/class_name/image`` (`load_image_folder`).
        path of a file
            ``.npz`` (Keras, MedMNIST, ``x_train, y_train``: `load_npz`), ``.mat`` (house numbers:
            `load_arrays`), HDF5, a table (CSV, with pandas: `load_tables`), an archive of CIFAR, or
            one of the IDX files. ``FILE:val`` and so on is one part of it.
        object
            A ``datasets.Dataset`` or ``DatasetDict`` of Hugging Face, a ``Dataset`` or
            ``DataLoader`` of PyTorch, or a pair of arrays, data frames or tensors ``(x, y)``.

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
    label : str, int or None
        Name of the column or array that has the labels, or the place of the column; "fine" or
        "coarse" of CIFAR-100. None: it is told by its name. Refused where there is no choice.
    image_shape : (h, w, c) or None
        Of the image that a row is. None: rows stay rows, unless columns of a table are pixels by
        their names. Images of another shape are refused. Also says that arrays (n, h, w) with a
        side of 4 pixels or less are grey images, (h, w, 1), and no series.
    series : bool
        Whether arrays (n, length, channels), or (n, channels, length) with channels="first", are
        series, and rows (n, length) series of one channel. They become images one pixel high,
        (n, 1, length, channels), for `cnn_1d` and its like, whose values may be any numbers.
        Other images stay what they are.
    download : bool
        Whether CIFAR-10 (170 MB) is fetched from its official address where it is not on this
        machine, to the folder that WIDELIMIT_DATA names, or ``~/.local/share/widelimit``. Other
        data sets are refused.

    Returns
    -------
    Dataset
        Pixels in [0, 1], not centred; or, where floats are below 0, normalised images as they are;
        or rows of features as they are. Where the data have no test set, a fifth of each class is
        drawn for one.

    Raises
    ------
    FileNotFoundError
        If there is no such data set or path, or files are missing. Says how to get them, and
        what has a similar name.
    OSError
        If a file cannot be opened.
    ConnectionError
        If it cannot be fetched.
    ValueError
        If the content is damaged, too large, or not as described above (the message says what was
        found); a class has one image, so that no test set can be drawn; what was fetched has
        another digest; or `download` is asked for of something else.

    Warns
    -----
    UserWarning
        Of files, columns and parts that were passed over, and of images that were changed.
    """
    data = read_dataset(
        source,
        channels=channels,
        size=size,
        skip_bad=skip_bad,
        label=label,
        image_shape=image_shape,
        series=series,
        download=download,
    )
    if data.split != "none":
        return data
    per_class = _DIGITS_TRAIN_PER_CLASS if isinstance(source, str) and source == "digits" else None
    return draw_test_set(data, train_per_class=per_class, seed=seed)


def read_dataset(
    source: Any,
    *,
    channels: Channels = None,
    size: Size | None = None,
    skip_bad: bool = False,
    label: str | int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    series: bool = False,
    download: bool = False,
    fewest: int = 2,
) -> Dataset:
    """Load images and labels as `load_dataset` does, but draw no test set.

    There must be two classes, or `fewest`: one is enough to classify.
    """
    if download:
        _make_there(source)
    if channels not in (None, "first", "last"):
        raise ValueError(f'channels must be "first", "last" or None, got {channels!r}')
    shape = None if image_shape is None else tuple(image_shape)
    if shape is not None and (len(shape) != 3 or min(shape) < 1):
        raise ValueError(f"image_shape must be (h, w, c), each 1 or more, got {image_shape!r}")
    reading = Reading(channels, None if label is None else str(label), shape, series)
    if isinstance(source, str | os.PathLike):
        path = cast("str | os.PathLike[str]", source)
        data = _read(path, reading, size, skip_bad, fewest)
    else:
        data = load_object(source, reading)
    if data.n_classes < fewest:
        raise ValueError(
            f"{data.name}: class_names must be at least {fewest} distinct names, got "
            f"{list(data.class_names)}: add samples of another class"
        )
    if size is None or data.image_shape[:2] == size:
        return data
    return _resized(data, size)


def _read(
    source: str | os.PathLike[str],
    reading: Reading,
    size: Size | None,
    skip_bad: bool,
    fewest: int,
) -> Dataset:
    name, wanted = _split_part(os.fspath(source))
    if name == "digits":
        if wanted not in (None, "train"):
            raise ValueError(f"digits has no part {wanted!r}, got train")
        check_images(name, reading)
        return _load_digits(reading)
    if name in _FOLDERS:
        path = _find_named(name)
        if path.is_file():
            return load_cifar_archive(path, reading, wanted)
        return _load_folder(path, name, reading, size, skip_bad, wanted, fewest)
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, path.resolve().name, reading, size, skip_bad, wanted, fewest)
    if path.exists():
        check_regular(path)
        return _load_file(path, reading, wanted)
    raise FileNotFoundError(_explain_missing(name, path))


def _split_part(name: str) -> tuple[str, str | None]:
    """Return what ``cifar10:test`` names, and which part of it."""
    base, colon, part = name.rpartition(":")
    if colon and part in ("train", "val", "test") and not os.path.exists(name):
        return base, part
    return name, None


def _load_file(path: Path, reading: Reading, wanted: str | None) -> Dataset:
    name = path.name.lower()
    if name.endswith(".npz"):
        return load_npz(path, reading, wanted)
    if name.endswith((*MAT, *HDF5)):
        return load_arrays(path, reading, wanted)
    if is_table(path):
        return load_tables({"train": path}, _stem(path), reading, wanted)
    if name.endswith(ARCHIVES):
        return load_cifar_archive(path, reading, wanted)
    if (group := idx_group(path)) is not None:
        folder = path.absolute().parent
        return load_idx(folder, folder.name, group, reading, wanted)
    raise ValueError(_explain_file(path))


def _load_digits(reading: Reading) -> Dataset:
    from sklearn import datasets  # pyright: ignore[reportMissingTypeStubs]

    # scikit-learn has no types.
    load_digits = cast("Callable[[], dict[str, Any]]", cast("Any", datasets).load_digits)
    bunch = load_digits()
    images = np.asarray(bunch["images"], dtype=np.float64)[..., None] / 16.0
    shaped(images, "digits", reading)
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


def _load_folder(
    folder: Path,
    name: str,
    reading: Reading,
    size: Size | None,
    skip_bad: bool,
    wanted: str | None,
    fewest: int,
) -> Dataset:
    if find_idx_files(folder):
        return load_idx(folder, name, None, reading, wanted)
    if is_cifar_folder(folder):
        return load_cifar_folder(folder, reading, wanted)
    if files := _find_files(folder):
        return _load_files(folder, files, reading, wanted)
    check_images(f"{folder}, a folder of images,", reading)
    if reading.image_shape is not None:
        raise ValueError(
            f"{folder} is a folder of images, got image_shape={reading.image_shape}, which says "
            "which image a row is: leave it (--image-shape) out; size=(h, w) (--size) resizes"
        )
    return load_image_folder(folder, size=size, skip_bad=skip_bad, wanted=wanted, fewest=fewest)


# ---------------------------------------------------------------- a folder of tables or arrays


def _find_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder with tables or arrays, by what they hold.

    By part where names say it, ``train.csv`` and ``test.csv``; by array, ``x_train.npy``; or one.
    """
    if visible_folders(folder):
        return {}
    paths = sorted(path for path in folder.iterdir() if not is_hidden(path.name) and path.is_file())
    paths = [path for path in paths if path.name.lower().endswith((*TABLES, *_ARRAYS))]
    arrays = [path for path in paths if path.suffix.lower() == ".npy"]
    if arrays:
        return {path.stem: path for path in arrays}
    found: dict[str, list[Path]] = {}
    for path in paths:
        part = find_part(_stem(path))[0]
        if part is not None:
            found.setdefault(part, []).append(path)
    if "train" not in found:
        return {"train": paths[0]} if len(paths) == 1 else {}
    if several := [paths for paths in found.values() if len(paths) > 1]:
        raise ValueError(
            f"{folder} must hold one file of each part, got "
            f"{', '.join(path.name for path in several[0][:_SHOWN])}: give the path of one"
        )
    used = {part: paths[0] for part, paths in found.items()}
    if left := [path.name for path in paths if path not in used.values()]:
        shown = ", ".join(left[:_SHOWN]) + (", ..." if len(left) > _SHOWN else "")
        warnings.warn(f"{folder}: passed over {shown}, neither train nor test", stacklevel=4)
    return used


def _stem(path: Path) -> str:
    name = path.name
    for end in (".gz", *{end for end in (*TABLES, *_ARRAYS) if not end.endswith(".gz")}):
        if name.lower().endswith(end):
            name = name[: -len(end)]
    return name or path.name


def _load_files(
    folder: Path, files: dict[str, Path], reading: Reading, wanted: str | None
) -> Dataset:
    """Load a data set that lies in several files of one folder."""
    name = folder.resolve().name
    first = next(iter(files.values()))
    if len(files) == 1 and first.suffix.lower() != ".npy":
        return _load_file(first, reading, wanted)
    if all(is_table(path) for path in files.values()):
        return load_tables(files, name, reading, wanted)
    parts, class_names = _read_files(folder, files, reading)
    return assemble(
        name,
        parts,
        f"{', '.join(path.name for path in files.values())} of {name}",
        reading,
        where=str(folder),
        class_names=class_names,
        wanted=wanted,
    )


def _read_files(
    folder: Path, files: dict[str, Path], reading: Reading
) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    if all(path.suffix.lower() == ".npy" for path in files.values()):
        with ExitStack() as stack:
            stored = {
                key: stack.enter_context(open_arrays(path))[""] for key, path in files.items()
            }
            return read_parts(stored, folder, reading), None
    parts: dict[str, Part] = {}
    class_names = None
    for part, path in files.items():
        if path.suffix.lower() == ".npz":
            with open_arrays(path) as stored:
                held = read_parts(stored, path, reading)
        elif is_table(path):
            raise ValueError(f"{folder} must hold tables alone, or arrays alone, got {path.name}")
        else:
            held, names = read_held(path, reading)
            class_names = names if class_names is None else class_names
        parts[part] = held.get(part, held["train"])
    return parts, class_names


def _resized(data: Dataset, size: Size) -> Dataset:
    low, high = 0.0, 1.0
    if data.normalised:  # what the filter overshoots is cut off, but no more
        low, high = float(data.x_train.min()), float(data.x_train.max())

    def made(images: FloatArray) -> FloatArray:
        check_size((len(images), *size, images.shape[3]), data.name)
        out = np.empty((len(images), *size, images.shape[3]))
        for target, image in zip(out, images, strict=True):
            np.clip(resize(image, 1.0, size), low, high, out=target)
        return out

    return replace(data, x_train=made(data.x_train), x_test=made(data.x_test))


# ---------------------------------------------------------------- what is not there, or not known


def _folders() -> list[Path]:
    """Return the folders that data sets with names lie in; what is fetched goes to the first."""
    folders = [SYSTEM_FOLDER]
    with suppress(RuntimeError):  # nobody knows where home is
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        folders.insert(0, Path(base) / "widelimit")
    if given := os.environ.get(_DATA_FOLDER):
        folders.insert(0, Path(given).expanduser())
    return folders


def _search(name: str) -> tuple[Path | None, list[Path]]:
    """Return where a data set with a name is, if it is there, and where it may be."""
    places = [folder / place for folder in _folders() for place in _FOLDERS[name]]
    for place in places:
        if place.is_dir() or (place.is_file() and place.name.endswith(ARCHIVES)):
            return place, places
    return None, places


def _make_there(source: Any) -> None:
    """Fetch a data set that is not on this machine; of what was fetched, check that it is whole."""
    name = _split_part(os.fspath(source))[0] if isinstance(source, str) else ""
    if name not in _FETCHED:
        given = repr(source) if isinstance(source, str) else type(source).__name__
        raise ValueError(
            f"only {', '.join(_FETCHED)} can be fetched, got {given}: without download"
        )
    place, _ = _search(name)
    if place is None or place.name == _FETCHED[name].name:
        fetch(_FETCHED[name], _folders()[0] if place is None else place.parent)


def _find_named(name: str) -> Path:
    place, places = _search(name)
    if place is not None:
        return place
    raise FileNotFoundError(
        f"{name} is not on this machine (looked for {', '.join(map(str, places))}): "
        f"{_HOW_TO_GET[name]}, and give the path of it, or set {_DATA_FOLDER} to the "
        "folder that holds it"
    )


def _explain_file(path: Path) -> str:
    """Say what a file is that is not read here."""
    ends = ".npz, .mat, .h5, .csv or .tsv"
    message = f"{path} must be a folder, or a file of type {ends}, "
    if path.suffix.lower() == ".npy":
        return (
            f"{message}got one array: it has no labels; save both with numpy.savez(file, x_train="
            "..., y_train=...), or put x_train.npy and y_train.npy into one folder and give that"
        )
    with open_regular(path) as file:
        start = file.read(16)
        for magic, what, remedy in _OTHERS:
            if start.startswith(magic):
                held = f" of {shown}" if magic == b"PK" and (shown := _members(path)) else ""
                return f"{message}got {what}{held}: {remedy}"
    return (
        f"{message}got a file of type {path.suffix or 'unknown'}"
        f"{f' that begins with {start[:8].hex(chr(32))}' if start else ' that is empty'}: save "
        "arrays with numpy.savez or a table as CSV, or give the folder that holds the images"
    )


def _members(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return ""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _explain_missing(name: str, path: Path) -> str:
    message = f"there is no data set and no path {name!r}"
    if similar := difflib.get_close_matches(name.lower(), NAMED, n=1, cutoff=0.6):
        return f"{message}: did you mean {similar[0]}?"
    if path.parent.is_dir():
        try:
            siblings = [entry.name for entry in islice(path.parent.iterdir(), _MAX_SIBLINGS)]
        except OSError:
            siblings = []
        if similar := difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6):
            return f"{message}: did you mean {path.parent / similar[0]}?"
        return (
            f"{message}: give {', '.join(NAMED)}, a folder of images by class, or a file "
            "(.npz, .mat, .h5, .csv)"
        )
    existing = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f"{message}: {existing} is there, but has no {path.absolute().relative_to(existing)}"
