"""Fitted estimators as folders: one JSON file, and arrays beside it. Nothing in them is code.

``model.json`` names the format and its version, holds everything that is not an array, and lists
the arrays with dtype, shape and checksum. A folder from a stranger can do no harm: names of files
are those of this module, sizes are looked at before they are read, nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from widelimit._version import __version__
from widelimit.backends.base import Dtype
from widelimit.estimators.base import NTKEstimator, check_is_fitted
from widelimit.estimators.classifier import NTKClassifier
from widelimit.estimators.regressor import NTKRegressor
from widelimit.estimators.samples import Training, check_image_shape
from widelimit.files import PARTIAL_SUFFIX, write_atomically
from widelimit.machine import available_memory
from widelimit.network import Network
from widelimit.program import Kind
from widelimit.solvers import Solution, Statistics, Status, Unavailable, restore_factor

__all__ = ["load_model", "save_model"]

_FORMAT = "widelimit.model/1"
_DOCUMENT = "model.json"
_MAX_DOCUMENT = 2**26  # bytes; the names of a million features
_ESTIMATORS: dict[str, type[NTKEstimator]] = {
    kind.__name__: kind for kind in (NTKClassifier, NTKRegressor)
}
_CHUNK = 2**24  # bytes
# Parameters that mean something on one machine only.
_LOCAL = ("store", "memory", "executor")
_CRC: Callable[[int, bytes], int] = cast("Any", google_crc32c).extend

# What may be in each array: kinds of dtypes, and how its shape follows from n samples, m distinct
# ones and t targets. None: anything.
_ARRAYS: dict[str, tuple[str, tuple[str | None, ...] | None]] = {
    "dual_coef": ("f8", ("m", "t")),
    "targets": ("f8", ("n", "t")),
    "sample_weight": ("f8", ("n",)),
    "place": ("i8", ("n",)),
    "first": ("i8", ("m",)),
    "x_fit": ("f8 f4 u1", None),
    "columns": ("i8", ("m",)),
    "mean": ("f8", None),
    "scale": ("f8", None),
    "loo_grid": ("f8", None),
    "loo_curve": ("f8", None),
    "loo_predictions": ("f8", ("n", "t")),
    "classes": ("any", None),
    "nngp": ("f8 f4", ("m", "m")),
    "factor_square": ("f8", ("m", "m")),
    "factor_diagonal": ("f8", ("m",)),
    "spectrum_k": ("f8 f4", ("m", "m")),
    "spectrum_values": ("f8", ("m",)),
    "spectrum_vectors": ("f8", ("m", "m")),
}


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
        Whether to replace a model that is there.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        Before `fit`.
    FileExistsError
        If the folder exists.
    OSError
        If it cannot be written.
    TypeError
        If labels are neither numbers nor strings.

    Notes
    -----
    Takes the training samples and ``8 n^2`` bytes for the factor, with which a loaded model can
    do all that this one can. What lies in `store` stays there: a loaded model then predicts, but
    has no covariances and no `partial_fit`.
    """
    check_is_fitted(model, "dual_coef_")
    target = Path(folder)
    if target.exists() and not (overwrite and _is_model(target)):
        raise FileExistsError(
            f"{target} exists: give another path"
            + (", it is no model" if overwrite else ", or overwrite=True to replace a model")
        )
    document, arrays = _describe(model)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    temporary.mkdir()
    try:
        listed: dict[str, Any] = {}
        for name, values in arrays.items():
            contiguous = np.ascontiguousarray(values)
            with (temporary / f"{name}.npy").open("xb") as file:
                np.save(file, contiguous, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            listed[name] = {
                "dtype": contiguous.dtype.str,
                "shape": list(contiguous.shape),
                "crc32c": _checksum(contiguous),
            }
        document["arrays"] = listed
        text = json.dumps(document, indent=1, allow_nan=False)
        write_atomically(temporary / _DOCUMENT, text + "\n")
        if target.exists():
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
    document = _read_document(path)
    try:
        return _restore(document, _read_arrays(path, document["arrays"]))
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold a model, it is damaged: {error!r:.300}") from error
    except ValueError as error:
        raise ValueError(f"{path} must hold a model: {str(error)[:400]}") from error


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


# --- what is written --------------------------------------------------------------------------


def _describe(model: NTKEstimator) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the document without its list of arrays, and the arrays."""
    kind = type(model).__name__
    if _ESTIMATORS.get(kind) is not type(model):
        raise TypeError(f"save_model is for {' and '.join(_ESTIMATORS)}, got {type(model)}")
    training = model._training  # pyright: ignore[reportPrivateUsage]
    m = training.first.size
    arrays: dict[str, Any] = {
        "dual_coef": model.dual_coef_.reshape(m, -1),
        "targets": training.targets,
        "sample_weight": training.sample_weight,
        "place": training.place.astype(np.int64),
        "first": training.first.astype(np.int64),
        "x_fit": model.x_fit_,
        "columns": model._columns,  # pyright: ignore[reportPrivateUsage]
        "loo_grid": model.loo_grid_,
        "loo_curve": model.loo_curve_,
        "loo_predictions": model.loo_predictions_,
    }
    if model.standardisation_ is not None:
        arrays["mean"], arrays["scale"] = model.standardisation_
    if model.loo_predictions_ is not None:
        arrays["loo_predictions"] = model.loo_predictions_.reshape(training.targets.shape)
    nngp = model._nngp_fit  # pyright: ignore[reportPrivateUsage]
    if isinstance(nngp, np.ndarray):  # a stored one stays where it is
        arrays["nngp"] = nngp
    factor = model._factor  # pyright: ignore[reportPrivateUsage]
    about: dict[str, Any] | None = None
    with contextlib.suppress(Unavailable):  # what lies in a store stays there
        if factor is not None:
            about, held = factor.described()
            arrays |= held
    nets = model.net_ if isinstance(model.net_, tuple) else (model.net_,)
    names: Any = getattr(model, "feature_names_in_", None)
    fitted: dict[str, Any] = {
        "net": None if model.net_ is None else [_network(net) for net in nets],
        "averaged": isinstance(model.net_, tuple),
        "kind": model.kind_,
        "dtype": model.dtype_,
        "image_shape": model.image_shape_,
        "n_features": int(model.n_features_in_),
        "feature_names": None if names is None else [str(name) for name in names],
        "time": _finite(model.time_),
        "factor": about,
        "status": model.solution_.status.name,
        "message": model.solution_.message,
        "statistics": {k: _finite(v) for k, v in asdict(model.solution_.statistics).items()},
    }
    if isinstance(model, NTKClassifier):
        arrays["classes"], fitted["object_labels"] = _plain_labels(model.classes_)
        fitted["temperature"] = model.temperature_
    else:
        fitted["flat"] = model.dual_coef_.ndim == 1
    parameters = {
        name: _plain(value)
        for name, value in cast("dict[str, Any]", model.get_params(deep=False)).items()
        if name not in _LOCAL
    }
    document = {
        "format": _FORMAT,
        "version": __version__,
        "estimator": kind,
        "parameters": parameters,
        "fitted": fitted,
    }
    return document, {name: values for name, values in arrays.items() if values is not None}


def _network(net: Any) -> Any:
    return json.loads(net.to_json()) if isinstance(net, Network) else net


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return a parameter as JSON has it."""
    if isinstance(value, np.number | np.bool_):
        return _plain(value.item())
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Network):
        return {"network": _network(value)}
    return [_plain(entry) for entry in list(value)]


def _plain_labels(classes: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    if classes.dtype.kind in "biufU":
        return classes, False
    if all(isinstance(label, str) for label in classes):
        return classes.astype(np.str_), True
    raise TypeError(
        f"labels must be numbers or strings to be saved, got dtype {classes.dtype}: fit with such"
    )


# --- what is read -----------------------------------------------------------------------------


def _read_document(path: Path) -> dict[str, Any]:
    file = path / _DOCUMENT
    if not file.is_file() or file.is_symlink():
        raise ValueError(
            f"{path} must hold a model, but has no file {_DOCUMENT}: give another path"
        )
    if file.stat().st_size > _MAX_DOCUMENT:
        raise ValueError(f"{file} must have at most {_MAX_DOCUMENT} bytes: it is no model")
    try:
        document = json.loads(file.read_text("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be the JSON of a model, it is not: {error}") from error
    found = cast("dict[str, Any]", document).get("format") if isinstance(document, dict) else None
    if found != _FORMAT:
        raise ValueError(
            f"{path} must hold a model of format {_FORMAT}, got {found!r:.100}: it was written by "
            "another version of widelimit, or is something else"
        )
    return cast("dict[str, Any]", document)


def _read_arrays(path: Path, listed: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Read the arrays that are listed, each after a look at its size."""
    if not set(listed) <= set(_ARRAYS):
        raise ValueError(f"unknown arrays {sorted(set(listed) - set(_ARRAYS))[:5]}")
    arrays: dict[str, NDArray[Any]] = {}
    need, free = 0, available_memory()
    for name, about in listed.items():
        file = path / f"{name}.npy"
        if not file.is_file() or file.is_symlink():
            raise ValueError(f"{file.name} is missing")
        mapped: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        dtypes, _ = _ARRAYS[name]
        allowed = (
            mapped.dtype.kind in "biufU"
            if dtypes == "any"
            else (mapped.dtype.str.lstrip("<|=") in dtypes.split())
        )
        if not allowed or [mapped.dtype.str, list(mapped.shape)] != [
            about["dtype"],
            about["shape"],
        ]:
            raise ValueError(f"{file.name} does not hold what {_DOCUMENT} says")
        need += mapped.nbytes
        if free is not None and need > free:
            raise MemoryError(
                f"the model takes more than {free / 2**30:.1f} GiB, which is what is free"
            )
        arrays[name] = np.array(mapped)
        if _checksum(arrays[name]) != about["crc32c"]:
            raise ValueError(f"{file.name} is damaged, its checksum is wrong")
    return arrays


def _check_shapes(arrays: dict[str, NDArray[Any]]) -> None:
    """Refuse arrays that do not fit together."""
    n, t = arrays["targets"].shape
    m = len(arrays["first"])
    sizes = {"n": n, "m": m, "t": t}
    for name, values in arrays.items():
        shape = _ARRAYS[name][1]
        if shape is not None and values.shape != tuple(sizes[str(letter)] for letter in shape):
            raise ValueError(f"{name} has shape {values.shape}, which does not fit the others")
    place, first = arrays["place"], arrays["first"]
    if place.min() < 0 or place.max() >= m or first.min() < 0 or first.max() >= n:
        raise ValueError("place and first must number samples")
    if not np.all(arrays["sample_weight"] > 0):
        raise ValueError("sample_weight must be above 0")


def _restore(document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> NTKEstimator:
    _check_shapes(arrays)
    fitted, kind = document["fitted"], _ESTIMATORS[document["estimator"]]
    parameters = {name: _parameter(value) for name, value in document["parameters"].items()}
    if places := set(parameters) & set(_LOCAL):  # where a later fit would write
        raise ValueError(f"a model has no parameters {sorted(places)}")
    model = kind(**parameters)
    training = Training(
        arrays["place"], arrays["first"], arrays["targets"], arrays["sample_weight"]
    )
    nets = fitted["net"]
    if nets is not None:
        networks = tuple(Network.from_json(json.dumps(net)) for net in nets)
        model.net_ = networks if fitted["averaged"] else networks[0]
    else:
        model.net_ = None
    model.kind_, model.dtype_ = _one_of(fitted["kind"], Kind), _one_of(fitted["dtype"], Dtype)
    shape = fitted["image_shape"]
    model.image_shape_ = None if shape is None else check_image_shape(shape)
    model.n_features_in_ = _integer(fitted["n_features"])
    if fitted["feature_names"] is not None:
        names = np.array([str(name) for name in fitted["feature_names"]], dtype=object)
        if names.shape != (model.n_features_in_,):
            raise ValueError("there must be one name for each feature")
        cast("Any", model).feature_names_in_ = names
    _check_samples(model, arrays)
    model.x_fit_ = arrays.get("x_fit")
    model.standardisation_ = (arrays["mean"], arrays["scale"]) if "mean" in arrays else None
    private: Any = model
    private._columns = arrays.get("columns")
    private._training = training
    private._folder = private._stores = None
    private._nngp_fit = arrays.get("nngp")
    model.time_ = _infinite(fitted["time"])
    if isinstance(model, NTKClassifier):
        classes = arrays["classes"]
        if classes.shape != training.targets.shape[1:]:
            raise ValueError("there must be one column of targets for each class")
        model.classes_ = classes.astype(object) if fitted["object_labels"] else classes
        temperature = fitted["temperature"]
        model.temperature_ = None if temperature is None else float(temperature)
        private._labels = training.targets.argmax(axis=1)
    else:
        private._flat = bool(fitted["flat"]) and training.targets.shape[1] == 1
    shaped: Callable[[NDArray[Any]], NDArray[Any]] = private._shaped
    model.dual_coef_ = shaped(arrays["dual_coef"])
    numbers = {
        name: float("nan" if value is None else value)
        for name, value in fitted["statistics"].items()
        if name != "n"
    }
    statistics = Statistics(n=_integer(fitted["statistics"]["n"]), **numbers)
    status = Status[fitted["status"]]
    factor = None
    if fitted["factor"] is not None:
        factor = restore_factor(
            fitted["factor"],
            arrays,
            weights=training.weights,
            ridge=statistics.ridge,
            ridge_absolute=statistics.ridge_absolute,
        )
    private._factor = factor
    message = str(fitted["message"])
    model.solution_ = Solution(model.dual_coef_, status, statistics, message, factor)
    model.ridge_ = statistics.ridge
    model.loo_grid_, model.loo_curve_ = arrays["loo_grid"], arrays["loo_curve"]
    scores = model.loo_curve_[np.isfinite(model.loo_curve_)]
    model.loo_score_ = float(scores.max()) if scores.size else math.nan
    left_out = arrays.get("loo_predictions")
    model.loo_predictions_ = None if left_out is None else shaped(left_out)
    return model


def _check_samples(model: NTKEstimator, arrays: dict[str, NDArray[Any]]) -> None:
    d, m = model.n_features_in_, len(arrays["first"])
    expected: tuple[int, ...] = (m, d) if model.image_shape_ is None else (m, *model.image_shape_)
    if math.prod(expected) != m * d:
        raise ValueError("an image must have as many values as there are features")
    if model.net_ is None:
        columns = arrays["columns"]
        if columns.min() < 0 or columns.max() >= d:
            raise ValueError("columns must number samples")
    elif arrays["x_fit"].shape != expected:
        raise ValueError(f"x_fit must have shape {expected}, got {arrays['x_fit'].shape}")
    if "mean" in arrays and not arrays["mean"].shape == arrays["scale"].shape == (d,):
        raise ValueError("there must be one mean and one scale for each feature")


def _parameter(value: Any) -> Any:
    if isinstance(value, list):
        return [_parameter(entry) for entry in cast("list[Any]", value)]
    if isinstance(value, dict):
        return Network.from_json(json.dumps(cast("dict[str, Any]", value)["network"]))
    return float(value) if value in ("inf", "-inf", "nan") else value


def _infinite(value: Any) -> float:
    return math.inf if value is None else float(value)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a number of samples or features, got {value!r:.100}")
    return value


def _one_of(value: Any, options: Any) -> Any:
    if value not in get_args(options):
        raise ValueError(f"expected one of {get_args(options)}, got {value!r:.100}")
    return value
