"""Fitted estimators as folders: one JSON file, and arrays beside it. Nothing in them is code.

``model.json`` names the format and its version, holds everything that is not an array, and lists
the arrays with dtype, shape and checksum. A folder from a stranger can do no harm: names of files
are those of this module, sizes are looked at before they are read, nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from widelimit.estimators.attributes import check_is_fitted
from widelimit.estimators.base import NTKEstimator
from widelimit.estimators.described import ARRAYS, FORMATS, describe, restore
from widelimit.files import (
    PARTIAL_SUFFIX,
    atomic_file,
    atomic_folder,
    check_folder,
    check_room,
    locked_file,
    naming,
    write_atomically,
)
from widelimit.machine import available_memory
from widelimit.reading import MAX_HEADER, StoredArray, open_array, read_json, refusing

__all__ = ["check_model_folder", "load_model", "save_model"]

_DOCUMENT = "model.json"
_LOCK = ".lock"
_FILE = re.compile(r"([a-z0-9_]+?)(?:-[0-9a-f]{16})?\.npy")  # of an array, by its name
_MAX_DOCUMENT = 2**25  # bytes; the names of a million features
_LIST = 2**14  # bytes of it that list the arrays
_CHUNK = 2**24  # bytes
_CRC: Callable[[int, bytes], int] = cast("Any", google_crc32c).extend


def save_model(
    model: NTKEstimator, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a fitted estimator to a folder, which `load_model` reads.

    Parameters
    ----------
    model : NTKClassifier or NTKRegressor
    folder : path
        Will hold JSON and arrays, without code: whoever loads it need not trust it. It appears
        when it is complete.
    overwrite : bool
        Whether to replace a model that is there: at every instant the folder holds the old one or
        the new one, whole, and who loads it meanwhile gets one of them.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        Before `fit`.
    FileExistsError
        If the folder exists, and is no model, or not to be replaced.
    BlockingIOError
        If another process is replacing it.
    OSError
        If it cannot be written, or will not fit; what was there is still there.
    TypeError
        If labels are neither numbers nor strings.
    ValueError
        If names of features take more than 32 MB together, which could not be read again; or the
        lock of the folder is none.

    Notes
    -----
    Takes the training samples and ``8 n^2`` bytes for the factor, with which a loaded model can
    do all that this one can. What lies in `store` stays there: a loaded model then predicts, but
    has no covariances and no `partial_fit`.
    """
    check_is_fitted(model, "dual_coef_")
    target = Path(folder)
    check_model_folder(target, overwrite=overwrite)
    document, arrays = describe(model)
    if (size := len(json.dumps(document, indent=1))) > _MAX_DOCUMENT - _LIST:
        raise ValueError(
            f"names and parameters of a model must take at most {_MAX_DOCUMENT:,} bytes, got "
            f"{size:,}: fit it to an array, or to a frame with shorter names of columns"
        )
    needed = sum(values.nbytes + MAX_HEADER for values in arrays.values()) + 2 * MAX_HEADER
    check_room(target, needed)
    if not os.path.exists(target):
        with atomic_folder(target, needed) as made:
            _write(made, document, arrays, "")
        return
    with locked_file(target / _LOCK), naming(target, needed, target):
        # Arrays have other names than those there: the rename of the document replaces all.
        try:
            _write(target, document, arrays, f"-{secrets.token_hex(8)}")
        finally:
            with suppress(OSError):
                _tidy(target, _listed(target))


def check_model_folder(folder: Path, *, overwrite: bool, option: str = "overwrite=True") -> None:
    """Refuse a folder that a model could not be written to.

    Parameters
    ----------
    folder : Path
    overwrite : bool
        Whether it may be that of a model.
    option : str
        How the user says so.

    Raises
    ------
    OSError
        As for `check_folder`; FileExistsError if something lies there that is not to be replaced.
    """
    if os.path.exists(folder):
        if not _is_model(folder):
            raise FileExistsError(f"{folder} exists, and is no model: give another path")
        if not overwrite:
            raise FileExistsError(
                f"{folder} exists: give another path, or {option} to replace a model"
            )
    check_folder(folder)


def _write(
    folder: Path, document: dict[str, Any], arrays: dict[str, NDArray[Any]], tag: str
) -> None:
    """Write a model: its arrays, then the document that lists them."""
    listed: dict[str, Any] = {}
    for name, values in arrays.items():
        contiguous = np.ascontiguousarray(values)
        listed[name] = {
            "file": f"{name}{tag}.npy",
            "dtype": contiguous.dtype.str,
            "shape": list(contiguous.shape),
            "crc32c": _checksum(contiguous),
        }
        with atomic_file(folder / f"{name}{tag}.npy") as file:
            np.save(file, contiguous, allow_pickle=False)
    document["arrays"] = listed
    document["crc32c"] = _document_checksum(document)
    text = json.dumps(document, indent=1, allow_nan=False)
    write_atomically(folder / _DOCUMENT, text + "\n")


def _listed(folder: Path) -> set[str]:
    """Return the names of the files of a model."""
    listed: dict[str, Any] = _read_document(folder)["arrays"]
    return {about.get("file", f"{name}.npy") for name, about in listed.items()}


def _tidy(folder: Path, needed: set[str]) -> None:
    """Delete what another model left, or a process that was killed, under the lock."""
    for path in folder.iterdir():
        ours = (match := _FILE.fullmatch(path.name)) is not None and match[1] in ARRAYS
        half = path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX)
        if half or (ours and path.name not in needed):
            path.unlink(missing_ok=True)


def load_model(folder: str | os.PathLike[str]) -> Any:
    """Read a fitted estimator that `save_model` wrote.

    Parameters
    ----------
    folder : path
        A folder from a stranger can do no harm: nothing in it is code, and it is checked before
        much of it is read.

    Returns
    -------
    NTKClassifier or NTKRegressor
        As it was fitted; only the parameters `store`, `memory` and `executor` are None.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If the folder holds no model, one of a later version, or a damaged one.
    MemoryError
        If it will not fit into memory.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path}: give the one that a model was saved to"
        )
    while True:
        document = _read_document(path)
        with refusing(f"{path} must hold a model, it is damaged", "save the model again"):
            try:
                arrays = _read_arrays(path, document["arrays"])
            except FileNotFoundError as error:
                if _read_document(path) != document:  # it was replaced meanwhile
                    continue
                raise ValueError(f"{Path(str(error.filename)).name} is missing") from None
            return restore(document, arrays)


def _is_model(path: Path) -> bool:
    try:
        _read_document(path)
    except (OSError, ValueError):
        return False
    return True


def _checksum(values: NDArray[Any]) -> int:
    content, found = values.reshape(-1).view(np.uint8), 0
    for start in range(0, content.size, _CHUNK):  # the library wants bytes, so a copy
        found = _CRC(found, content[start : start + _CHUNK].tobytes())
    return found


def _document_checksum(document: dict[str, Any]) -> int:
    """Return the checksum of all that a document says, but for itself."""
    rest = {name: value for name, value in document.items() if name != "crc32c"}
    return _CRC(0, json.dumps(rest, sort_keys=True, allow_nan=False).encode())


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path / _DOCUMENT, _MAX_DOCUMENT, path)
    except FileNotFoundError:
        raise ValueError(
            f"{path} must hold a model, but has no file {_DOCUMENT}: give another path"
        ) from None
    found = document.get("format")
    if found not in FORMATS:
        raise ValueError(
            f"{path} must hold a model of format {' or '.join(FORMATS)}, got {found!r:.100}: it "
            "was written by another version of widelimit, or is something else"
        )
    if found != FORMATS[0] and document.pop("crc32c", None) != _document_checksum(document):
        raise ValueError(
            f"{path / _DOCUMENT} is damaged, its checksum is wrong: save the model again"
        )
    return document


def _read_arrays(path: Path, listed: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Read the arrays that are listed, after a look at the size of all."""
    if not set(listed) <= set(ARRAYS):
        raise ValueError(f"unknown arrays {sorted(set(listed) - set(ARRAYS))[:5]}")
    with ExitStack() as stack:
        stored: dict[str, StoredArray] = {}
        for name, about in listed.items():
            file = about.get("file", f"{name}.npy")  # the first format had no other names
            match = _FILE.fullmatch(file)
            if match is None or match[1] != name:
                raise ValueError(f"the file of {name} is {file!r:.100}")
            found = stack.enter_context(open_array(path / file, file, path))
            dtypes, _ = ARRAYS[name]
            allowed = (
                found.dtype.kind in "biufU"
                if dtypes == "any"
                else found.dtype.str.lstrip("<|=") in dtypes.split()
            )
            written = [found.dtype.str, list(found.shape)]
            if not allowed or written != [about["dtype"], about["shape"]]:
                raise ValueError(f"{found.name} does not hold what {_DOCUMENT} says")
            stored[name] = found
        need, free = sum(found.nbytes for found in stored.values()), available_memory()
        if free is not None and need > free:
            raise MemoryError(
                f"the model takes {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
            )
        arrays = {name: found.read() for name, found in stored.items()}
    for name, values in arrays.items():
        if _checksum(values) != listed[name]["crc32c"]:
            raise ValueError(f"{stored[name].name} is damaged, its checksum is wrong")
    return arrays
