"""CIFAR-10 and CIFAR-100 in all published forms: binary, Python's, MATLAB's; packed or not.

Python's form is pickled: it is read as data, and nothing in it is run (`pickles`). Archives are
read from, never unpacked to the disk.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from widelimit.data.dataset import Dataset
from widelimit.data.matlab import read_matlab
from widelimit.data.parts import Part, Reading, assemble, check_images
from widelimit.data.pickles import unpickle
from widelimit.reading import open_regular, read_bytes, refusing

__all__ = ["ARCHIVES", "is_cifar_folder", "load_cifar_archive", "load_cifar_folder"]

ARCHIVES = (".tar.gz", ".tgz", ".tar")
"""How names of archives end."""

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

_PIXELS = 3 * 32 * 32
_MAX_FILE = 2**28  # bytes: all 50,000 training images of CIFAR-100 take 1.5e8
_MAX_ARCHIVE = 2**29  # bytes that are unpacked
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class _Form:
    """One of the forms: names of files, and what is in them.

    Parameters
    ----------
    title : str
        How messages call it.
    archive : str
        Where it comes from.
    train : tuple of str
    test : str
    names : tuple of str
        Of files with names of classes, any of which may be missing.
    classes : int
    most : int
        Records of one file.
    """

    title: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: tuple[str, ...]
    classes: int
    most: int


def _ten(title: str, archive: str, end: str, names: str) -> _Form:
    batches = tuple(f"data_batch_{i}{end}" for i in range(1, 6))
    return _Form(title, archive, batches, f"test_batch{end}", (names,), 10, 10_000)


_FORMS = {
    "binary-10": _ten("binary", "cifar-10-binary.tar.gz", ".bin", "batches.meta.txt"),
    "python-10": _ten("Python", "cifar-10-python.tar.gz", "", "batches.meta"),
    "matlab-10": _ten("MATLAB", "cifar-10-matlab.tar.gz", ".mat", "batches.meta.mat"),
    "binary-100": _Form(
        "binary",
        "cifar-100-binary.tar.gz",
        ("train.bin",),
        "test.bin",
        ("fine_label_names.txt", "coarse_label_names.txt"),
        100,
        50_000,
    ),
    "python-100": _Form(
        "Python", "cifar-100-python.tar.gz", ("train",), "test", ("meta",), 100, 50_000
    ),
    "matlab-100": _Form(
        "MATLAB", "cifar-100-matlab.tar.gz", ("train.mat",), "test.mat", ("meta.mat",), 100, 50_000
    ),
}


def _form_of(names: set[str]) -> str | None:
    """Return the form that files with such names have."""
    for key, form in _FORMS.items():
        if form.classes == 10 and form.train[0] in names:
            return key
        # train and test alone are names of anything.
        if form.classes == 100 and {form.train[0], form.names[0]} <= names:
            return key
    return None


def is_cifar_folder(folder: Path) -> bool:
    """Return whether a folder looks like CIFAR-10 or CIFAR-100, in any form."""
    return _form_of(_files_of(folder)) is not None


def _files_of(folder: Path) -> set[str]:
    known = {name for form in _FORMS.values() for name in (*form.train, form.test, *form.names)}
    return {name for name in known if (folder / name).is_file()}


def load_cifar_folder(folder: Path, reading: Reading, wanted: str | None = None) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 from a folder, in any form.

    Parameters
    ----------
    folder : Path
        Holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, or the same
        without ``.bin`` (Python's form) or with ``.mat``; or ``train.bin, test.bin,
        fine_label_names.txt``; ``train, test, meta``; ``train.mat, test.mat, meta.mat``.
    reading : Reading
        The label of CIFAR-100 is "fine", which is the default, or "coarse".
    wanted : {"train", "test"} or None
        The one part to take.

    Returns
    -------
    Dataset
        Images (32, 32, 3), with the test set of the data set. Python's form names their files.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, a label impossible, or a pickle names more than arrays are made of.
    """
    names = _files_of(folder)

    def read(name: str) -> bytes:
        return read_bytes(folder / name, _MAX_FILE)

    return _load(names, read, folder, reading, wanted)


def load_cifar_archive(path: Path, reading: Reading, wanted: str | None = None) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 from the archive as it was published, packed or not.

    Parameters
    ----------
    path : Path
        ``cifar-10-python.tar.gz`` and so on.
    reading, wanted
        As for `load_cifar_folder`, with the same result and errors.
    """
    known = {name for form in _FORMS.values() for name in (*form.train, form.test, *form.names)}
    members: dict[str, bytes] = {}
    seen: list[str] = []
    with (
        open_regular(path) as file,
        refusing(
            f"{path} must be an archive of CIFAR-10 or CIFAR-100, it is not", "download it again"
        ),
    ):
        packed = not path.name.lower().endswith(".tar")
        stream: Any = gzip.GzipFile(fileobj=file) if packed else file
        with tarfile.open(fileobj=cast("Any", _Bounded(stream)), mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isreg():
                    seen.append(member.name)
                if name not in known or not member.isreg():
                    continue
                if name in members or member.size > _MAX_FILE:
                    raise ValueError(f"it has {name} twice, or one of {member.size:,} bytes")
                content = archive.extractfile(member)
                assert content is not None
                members[name] = content.read()
        if _form_of(set(members)) is None:
            shown = ", ".join(seen[:_SHOWN]) + (", ..." if len(seen) > _SHOWN else "")
            raise ValueError(f"it holds {shown or 'no files'}: unpack it, and give the folder")
    return _load(set(members), members.__getitem__, path, reading, wanted)


class _Bounded:
    """A stream that unpacks to no more than so many bytes."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._left = stream, _MAX_ARCHIVE

    def read(self, n: int = -1) -> bytes:
        content: bytes = self._stream.read(min(n, self._left + 1) if n >= 0 else self._left + 1)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {_MAX_ARCHIVE:,} bytes")
        return content


def _load(
    names: set[str],
    read: Callable[[str], bytes],
    where: Path,
    reading: Reading,
    wanted: str | None,
) -> Dataset:
    key = _form_of(names)
    assert key is not None
    form = _FORMS[key]
    if missing := [name for name in (*form.train, form.test) if name not in names]:
        raise FileNotFoundError(
            f"{where} must hold the {form.title} version of CIFAR-{form.classes}, got no "
            f"{' and no '.join(missing)}: unpack {form.archive} of {_PAGE}"
        )
    level = _level(form, reading.label)
    check_images(f"CIFAR-{form.classes}", reading, label=True)
    kind = key.partition("-")[0]
    decode = {"binary": _binary, "python": _pickled, "matlab": _matlab}[kind]

    def part(files: tuple[str, ...]) -> Part:
        batches = [decode(read(name), where / name, form, level) for name in files]
        titles = [batch.files for batch in batches]
        return Part(
            np.concatenate([batch.x for batch in batches]),
            np.concatenate([batch.y for batch in batches]),
            None if None in titles else tuple(t for some in titles if some for t in some),
        )

    class_names = CLASSES if form.classes == 10 else _names_of(form, names, read, where, level)
    name = f"cifar{form.classes}" + ("-coarse" if level == "coarse" else "")
    return assemble(
        name,
        {"train": part(form.train), "test": part((form.test,))},
        f"CIFAR-{form.classes}, {form.title} version,",
        Reading(image_shape=reading.image_shape),
        where=str(where),
        class_names=class_names,
        all_names=True,
        wanted=wanted,
    )


def _level(form: _Form, label: str | None) -> str:
    """Return which labels of CIFAR-100 are meant."""
    if form.classes == 10:
        if label is not None:
            raise ValueError(f"CIFAR-10 has one label for each image, got label {label!r}")
        return ""
    level = "fine" if label is None else label.removesuffix("_labels").removesuffix("_label")
    if level not in ("fine", "coarse"):
        raise ValueError(f'the label of CIFAR-100 must be "fine" or "coarse", got {label!r}')
    return level


def _names_of(
    form: _Form, names: set[str], read: Callable[[str], bytes], where: Path, level: str
) -> tuple[str, ...]:
    """Return the names of classes of CIFAR-100; their numbers where the files do not tell."""
    n_classes = 100 if level == "fine" else 20
    found: list[Any] = []
    title = f"{level}_label_names"
    source = f"{title}.txt" if f"{title}.txt" in form.names else form.names[0]
    if source in names:
        content = read(source)
        if source.endswith(".txt"):
            found = content.decode("utf-8", "replace").split()
        elif source.endswith(".mat"):
            cells = _load_mat(content, where / source).get(title, np.empty(0, object))
            found = [str(np.asarray(cell).ravel()[0]) for cell in np.asarray(cells).ravel()]
        else:
            held = _dictionary(content, where / source)
            found = [_as_text(entry) for entry in cast("list[Any]", held.get(title, []))]
    if len(set(found)) != n_classes:
        return tuple(str(k) for k in range(n_classes))
    return tuple(found)


# ---------------------------------------------------------------- contents of one file


def _binary(content: bytes, path: Path, form: _Form, level: str) -> Part:
    """Read records of a label byte, or a coarse and a fine one, and 3 x 32 x 32 pixel bytes."""
    labels = 1 if form.classes == 10 else 2
    record = labels + _PIXELS
    records, rest = divmod(len(content), record)
    if rest or not 1 <= records <= form.most:
        raise ValueError(
            f"{path} must hold 1 to {form.most:,} records of {record:,} bytes, got "
            f"{len(content):,} bytes: unpack {form.archive} again"
        )
    values = np.frombuffer(content, np.uint8).reshape(-1, record)
    y = values[:, 0 if level == "coarse" else labels - 1]
    return _part(values[:, labels:], y, path, form, level)


def _pickled(content: bytes, path: Path, form: _Form, level: str) -> Part:
    held = _dictionary(content, path)
    files = held.get("filenames")
    titles = None
    if isinstance(files, list) and files:
        titles = tuple(_as_text(name) for name in cast("list[Any]", files))
    return _part(
        held.get("data"), held.get(f"{level}_labels" if level else "labels"), path, form, level,
        titles,
    )  # fmt: skip


def _matlab(content: bytes, path: Path, form: _Form, level: str) -> Part:
    held = _load_mat(content, path)
    y = held.get(f"{level}_labels" if level else "labels")
    return _part(held.get("data"), None if y is None else np.ravel(y), path, form, level)


def _part(
    data: Any,
    labels: Any,
    path: Path,
    form: _Form,
    level: str,
    files: tuple[str, ...] | None = None,
) -> Part:
    """Return images and labels, checked."""
    again = f": unpack {form.archive} again"
    x = np.asarray(data)
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != _PIXELS or not len(x):
        raise ValueError(
            f"{path} must hold data of shape (n, 3072) in uint8, got {x.dtype} {x.shape}{again}"
        )
    with refusing(f"{path} must hold labels", f"unpack {form.archive} again"):
        y = np.asarray(labels).astype(np.int64)
    if y.shape != (len(x),) or (files is not None and len(files) != len(x)):
        raise ValueError(f"{path} must hold a label for each of {len(x):,} images{again}")
    n_classes = 20 if level == "coarse" else form.classes
    if (odd := (y < 0) | (y >= n_classes)).any():
        bad = int(odd.argmax())
        raise ValueError(
            f"{path} must hold labels from 0 to {n_classes - 1}, got {y[bad]} in record "
            f"{bad}{again}"
        )
    return Part(x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), y, files)


def _dictionary(content: bytes, path: Path) -> Mapping[str, Any]:
    held = unpickle(content, str(path))
    if not isinstance(held, dict):
        raise ValueError(f"{path} must hold a dictionary, got a {type(held).__name__}")
    return {_as_text(key): value for key, value in cast("dict[Any, Any]", held).items()}


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _load_mat(content: bytes, path: Path) -> Mapping[str, Any]:
    with refusing(f"{path} must be a .mat file, it is not", "download it again"):
        return read_matlab(io.BytesIO(content))
