"""Fitted estimators as plain data: a document for JSON, and arrays; and back, all of it checked."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from widelimit._version import __version__
from widelimit.backends.base import Dtype
from widelimit.estimators.base import NTKEstimator
from widelimit.estimators.checks import check_class_weight
from widelimit.estimators.classifier import NTKClassifier
from widelimit.estimators.fitted import FittedKernel, PrecomputedKernel
from widelimit.estimators.preparation import Preparation
from widelimit.estimators.regressor import NTKRegressor
from widelimit.estimators.samples import Training, check_image_shape
from widelimit.estimators.typical import Familiar
from widelimit.estimators.whitening import ZCA, check_regularisation
from widelimit.matrices.inputs import check_threads
from widelimit.network import Network
from widelimit.program import Kind
from widelimit.solvers import Factor, Solution, Statistics, Status, Unavailable, restore_factor

__all__ = ["ARRAYS", "FORMAT", "FORMATS", "describe", "restore"]

FORMAT = "widelimit.model/5"
"""What is written; the fourth had no `levelled`, and whitened images as they come, the third no
whitening, no `normalise` and no `sample_names`, the second no `target_mean` and `target_scale`, the
first no `multiples`, but two arrays that follow from others."""
FORMATS = tuple(f"widelimit.model/{version}" for version in range(1, 6))
"""What is read."""
# Parameters that were not there, with what was done then, where that is not their default.
_BEFORE: dict[str, dict[str, Any]] = {"NTKRegressor": {"normalize_y": False}}

_ESTIMATORS: dict[str, type[NTKEstimator]] = {
    kind.__name__: kind for kind in (NTKClassifier, NTKRegressor)
}
# Parameters that mean something on one machine only.
_LOCAL = ("store", "memory", "executor", "progress")
_RENAMED = ("verbose",)  # now progress: there in models of before

ARRAYS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "dual_coef": ("f8", ("m", "t")),
    "targets": ("f8", ("n", "t")),
    "sample_weight": ("f8", ("n",)),
    "place": ("i8", ("n",)),
    "first": ("i8", ("m",)),
    "multiples": ("f8", ("n",)),
    "counts": ("b1", None),  # where samples of weight 0 were given
    "target_mean": ("f8", ("t",)),
    "target_scale": ("f8", ("t",)),
    "x_fit": ("f8 f4 u1", None),
    "columns": ("i8", ("m",)),
    "mean": ("f8", None),
    "scale": ("f8", None),
    "zca_components": ("f8", None),
    "zca_moments": ("f8", None),
    "whiten_curve": ("f8", None),
    "loo_grid": ("f8", None),
    "loo_curve": ("f8", None),
    "loo_predictions": ("f8", ("n", "t")),
    "classes": ("any", None),
    "sample_names": ("any", None),
    "nngp": ("f8 f4", ("m", "m")),
    "factor_square": ("f8", ("m", "m")),
    "factor_diagonal": ("f8", ("m",)),
    "factor_noise": ("f8", ("m",)),  # of the first format, as the next but three
    "spectrum_k": ("f8 f4", ("m", "m")),
    "spectrum_values": ("f8", ("m",)),
    "spectrum_vectors": ("f8", ("m", "m")),
    "spectrum_roots": ("f8", ("m",)),
}
"""What may be in each array: kinds of dtypes, and how its shape follows from n samples, m rows of
the Gram matrix and t targets; None: in another way."""

_FINITE = {"dual_coef", "targets", "sample_weight", "x_fit", "mean", "scale", "nngp"} | {
    "zca_components",
    "zca_moments",
}

_ROUNDING = 1e-6  # of samples, when their standardisation is undone

Arrays = dict[str, NDArray[Any]]
Document = dict[str, Any]


# --- what is written ------------------------------------------------------------------------------


def describe(model: NTKEstimator) -> tuple[Document, Arrays]:
    """Return the document of a fitted estimator, without its list of arrays, and the arrays.

    Raises
    ------
    TypeError
        If the estimator is none of the package, or labels are neither numbers nor strings.
    """
    name = type(model).__name__
    if _ESTIMATORS.get(name) is not type(model):
        raise TypeError(f"save_model is for {' and '.join(_ESTIMATORS)}, got {type(model)}")
    state: Any = model  # of which private parts are written
    training: Training = state._training
    fitted, arrays = _describe_kernel(state._fitted)
    names: Any = getattr(model, "feature_names_in_", None)
    fitted |= {
        "n_features": int(model.n_features_in_),
        "signed": state._signed,
        "feature_names": None if names is None else [str(name) for name in names],
        "status": model.solution_.status.name,
        "message": model.solution_.message,
        "statistics": {k: _finite(v) for k, v in asdict(model.solution_.statistics).items()},
    }
    if hasattr(model, "whiten_grid_"):
        fitted["whiten_grid"] = list(model.whiten_grid_)
        arrays["whiten_curve"] = model.whiten_curve_
    arrays |= _describe_training(training)
    arrays |= {
        "dual_coef": model.dual_coef_.reshape(training.first.size, -1),
        "loo_grid": model.loo_grid_,
        "loo_curve": model.loo_curve_,
    }
    if model.loo_predictions_ is not None:
        left_out = model.loo_predictions_[training.counts]
        arrays["loo_predictions"] = left_out.reshape(training.targets.shape)
    if isinstance(model, NTKRegressor):
        arrays |= {"target_mean": model.target_mean_, "target_scale": model.target_scale_}
    if model.sample_names_ is not None:
        arrays["sample_names"] = np.array(model.sample_names_, np.str_)
    nngp: Any = state._nngp_fit
    if nngp is not None and not hasattr(nngp, "tile"):  # a stored one stays where it is
        arrays["nngp"] = nngp
    fitted["factor"] = None
    with contextlib.suppress(Unavailable):  # what lies in a store stays there
        if model.solution_.factor is not None:
            fitted["factor"], held = model.solution_.factor.described()
            arrays |= held
    if isinstance(model, NTKClassifier):
        arrays["classes"], fitted["object_labels"] = _plain_labels(model.classes_)
        fitted["temperature"] = model.temperature_
    else:
        fitted["flat"] = state._flat
    parameters = {
        name: _plain(value)
        for name, value in cast("dict[str, Any]", model.get_params(deep=False)).items()
        if name not in _LOCAL
    }
    document = {
        "format": FORMAT,
        "version": __version__,
        "estimator": name,
        "parameters": parameters,
        "fitted": fitted,
    }
    return document, arrays


def _describe_kernel(kernel: FittedKernel | PrecomputedKernel) -> tuple[Document, Arrays]:
    networks = [_network(net) for net in kernel.networks]
    about: Document = {
        "net": networks or None,
        "averaged": kernel.averaged,
        "kind": kernel.kind,
        "dtype": kernel.dtype,
        "image_shape": kernel.shape,
    }
    if isinstance(kernel, PrecomputedKernel):
        return about, {"columns": kernel.columns}
    arrays = {"x_fit": kernel.samples}
    made = kernel.preparation
    about |= {"normalise": made.normalise, "zca": None}
    if made.zca is not None:
        about["zca"] = [float(made.zca.regularisation), made.zca.regularisation_]
        about["levelled"] = made.levelled
        arrays |= {"zca_components": made.zca.components_, "zca_moments": made.zca.moments_}
    if made.standardisation is not None:
        arrays["mean"], arrays["scale"] = made.standardisation
    return about, arrays


def _describe_training(training: Training) -> Arrays:
    arrays = {
        "targets": training.targets,
        "sample_weight": training.sample_weight,
        "place": training.place.astype(np.int64),
        "first": training.first.astype(np.int64),
        "multiples": training.multiples,
    }
    return arrays if training.counts.all() else arrays | {"counts": training.counts}


def _network(net: Network) -> Any:
    return json.loads(net.to_json())


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
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {"pairs": [[_plain(key), _plain(entry)] for key, entry in items]}
    return [_plain(entry) for entry in list(value)]


def _plain_labels(classes: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    if classes.dtype.kind in "biufU":
        return classes, False
    if all(isinstance(label, str) for label in classes):
        return classes.astype(np.str_), True
    raise TypeError(
        f"labels must be numbers or strings to be saved, got dtype {classes.dtype}: fit with such"
    )


# --- what is read ---------------------------------------------------------------------------------


def restore(document: Document, arrays: Arrays) -> NTKEstimator:
    """Return the estimator that was described.

    Parameters
    ----------
    document, arrays
        From a stranger, maybe. Arrays have the dtypes that `ARRAYS` says.

    Raises
    ------
    AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError
        If something is missing, or does not fit the rest.
    """
    _check_shapes(arrays)
    for name in _FINITE & arrays.keys():
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} must be finite")
    fitted, kind = document["fitted"], _ESTIMATORS[document["estimator"]]
    parameters = {
        name: _parameter(value)
        for name, value in document["parameters"].items()
        if name not in _RENAMED
    }
    if places := set(parameters) & set(_LOCAL):  # where a later fit would write
        raise ValueError(f"a model has no parameters {sorted(places)}")
    model = kind(**_BEFORE.get(kind.__name__, {}) | parameters)
    check_threads(model.threads)
    state: Any = model
    _restore_features(model, fitted)
    training = _restore_training(arrays)
    state._training = training
    state._fitted = _restore_kernel(model, fitted, arrays)
    state._nngp_fit, state._stores, state._flat = arrays.get("nngp"), None, False
    state._familiar = Familiar()
    signed = fitted.get("signed")  # models of before do not say
    state._signed = _are_signed(state._fitted) if signed is None else bool(signed)
    if "whiten_grid" in fitted:
        grid = [None if r is None else float(r) for r in fitted["whiten_grid"]]
        model.whiten_grid_, model.whiten_curve_ = tuple(grid), arrays["whiten_curve"]
        if model.whiten_curve_.shape != (len(grid),):
            raise ValueError("there must be a score for each whitening")
    if isinstance(model, NTKClassifier):
        _restore_labels(model, fitted, arrays)
    else:
        state._flat = bool(fitted["flat"]) and training.targets.shape[1] == 1
        _restore_units(cast("NTKRegressor", model), arrays)
    shaped: Callable[[NDArray[Any]], NDArray[Any]] = state._shaped
    # In the order that they have after a fit: products then have the same bits.
    model.dual_coef_ = shaped(np.asfortranarray(arrays["dual_coef"]))
    model.solution_ = _restore_solution(model.dual_coef_, fitted, arrays, training)
    model.loo_grid_, model.loo_curve_ = arrays["loo_grid"], arrays["loo_curve"]
    model.sample_names_ = _restore_names(arrays, len(training.counts))
    left_out = arrays.get("loo_predictions")
    model.loo_predictions_ = None
    if left_out is not None:
        model.loo_predictions_ = shaped(training.among_given(left_out))
    return model


def _check_shapes(arrays: Arrays) -> None:
    """Refuse arrays that do not fit together."""
    n, t = arrays["targets"].shape
    m = len(arrays["first"])
    sizes = {"n": n, "m": m, "t": t}
    for name, values in arrays.items():
        shape = ARRAYS[name][1]
        if shape is not None and values.shape != tuple(sizes[letter] for letter in shape):
            raise ValueError(f"{name} has shape {values.shape}, which does not fit the others")


def _restore_training(arrays: Arrays) -> Training:
    place, first = arrays["place"], arrays["first"]
    n, m = len(place), len(first)
    if place.min() < 0 or place.max() >= m or first.min() < 0 or first.max() >= n:
        raise ValueError("place and first must number samples")
    if not np.all(arrays["sample_weight"] > 0):
        raise ValueError("sample_weight must be above 0")
    multiples, counts = arrays.get("multiples", np.ones(n)), arrays.get("counts", np.full(n, True))
    if counts.ndim != 1 or np.count_nonzero(counts) != n:
        raise ValueError("counts must be true for each sample that has a weight")
    training = Training(place, first, multiples, arrays["targets"], arrays["sample_weight"], counts)
    weights = training.weights
    if weights.shape != (m,) or not np.all(weights > 0) or not np.all(np.isfinite(weights)):
        raise ValueError("place and multiples must give every row a weight above 0")
    return training


def _restore_features(model: NTKEstimator, fitted: Document) -> None:
    model.n_features_in_ = _integer(fitted["n_features"])
    if fitted["feature_names"] is not None:
        names = np.array([str(name) for name in fitted["feature_names"]], dtype=object)
        if names.shape != (model.n_features_in_,):
            raise ValueError("there must be one name for each feature")
        cast("Any", model).feature_names_in_ = names


def _restore_kernel(
    model: NTKEstimator, fitted: Document, arrays: Arrays
) -> FittedKernel | PrecomputedKernel:
    d, m = model.n_features_in_, len(arrays["first"])
    kind, dtype = _one_of(fitted["kind"], Kind), _one_of(fitted["dtype"], Dtype)
    if fitted["net"] is None:
        columns = arrays["columns"]
        if columns.min() < 0 or columns.max() >= d:
            raise ValueError("columns must number samples")
        return PrecomputedKernel(kind, dtype, columns)
    networks = tuple(Network.from_json(json.dumps(net)) for net in fitted["net"])
    given = fitted["image_shape"]
    shape = None if given is None else check_image_shape(given)
    expected: tuple[int, ...] = (m, d) if shape is None else (m, *shape)
    if math.prod(expected) != m * d:
        raise ValueError("an image must have as many values as there are features")
    if arrays["x_fit"].shape != expected:
        raise ValueError(f"x_fit must have shape {expected}, got {arrays['x_fit'].shape}")
    standardisation = None
    if "mean" in arrays:
        standardisation = arrays["mean"], arrays["scale"]
        if not arrays["mean"].shape == arrays["scale"].shape == (d,):
            raise ValueError("there must be one mean and one scale for each feature")
    normalise = fitted.get("normalise")
    if normalise not in ("image", None):
        raise ValueError(f"normalise must be image or None, got {normalise!r:.100}")
    zca = None if fitted.get("zca") is None else _restore_zca(fitted["zca"], arrays, shape, d)
    levelled = bool(fitted.get("levelled", zca is None))
    averaged = bool(fitted["averaged"])
    if len(networks) != 1 and not averaged:
        raise ValueError("there must be one network, or several whose kernels are averaged")
    return FittedKernel(
        networks,
        averaged,
        kind,
        dtype,
        Preparation(shape, normalise, zca, standardisation, levelled),
        arrays["x_fit"],
        model.backend,
        model.threads,
    )


def _are_signed(kernel: FittedKernel | PrecomputedKernel) -> bool:
    """Return whether samples had values below 0 as they were given, as far as that is known.

    Whitening leaves no trace of it: each image is centred first.
    """
    if isinstance(kernel, PrecomputedKernel) or kernel.preparation.zca is not None:
        return False
    if kernel.preparation.standardisation is None:
        return bool((kernel.samples < 0).any())
    mean, scale = kernel.preparation.standardisation
    rows = kernel.samples.reshape(len(kernel.samples), -1) * scale + mean
    return bool(rows.min() < -_ROUNDING * np.abs(rows).max())


def _restore_zca(given: Any, arrays: Arrays, shape: Any, d: int) -> ZCA:
    regularisation, added = given
    zca = ZCA(check_regularisation("regularisation", regularisation))
    zca.components_, zca.moments_ = arrays["zca_components"], arrays["zca_moments"]
    zca.regularisation_ = check_regularisation("regularisation_", added)
    zca.n_features_in_, zca.image_shape_ = d, None
    k = len(zca.moments_)
    if shape is None or zca.components_.shape != (k, d) or zca.moments_.shape != (k,):
        raise ValueError("components of a whitening must fit its moments, and images")
    if not k or not np.all(zca.moments_ > 0):
        raise ValueError("moments of a whitening must be above 0")
    return zca


def _restore_labels(model: NTKClassifier, fitted: Document, arrays: Arrays) -> None:
    classes, targets = arrays["classes"], arrays["targets"]
    if classes.shape != targets.shape[1:]:
        raise ValueError("there must be one column of targets for each class")
    model.classes_ = classes.astype(object) if fitted["object_labels"] else classes
    temperature = fitted["temperature"]
    model.temperature_ = None if temperature is None else float(temperature)
    if model.temperature_ is not None and not 0 < model.temperature_ < math.inf:
        raise ValueError(f"temperature must be above 0, got {model.temperature_}")
    if (temperature is None) != ("loo_predictions" not in arrays):
        raise ValueError("there must be a temperature where there are loo_predictions")
    state: Any = model
    state._labels = targets.argmax(axis=1)
    check_class_weight(model.class_weight)
    state._weigh_classes()


def _restore_names(arrays: Arrays, n: int) -> list[str] | None:
    names = arrays.get("sample_names")
    if names is None:
        return None
    if names.ndim != 1 or len(names) < n or names.dtype.kind != "U":
        raise ValueError("there must be a name for each sample")
    return [str(name) for name in names]


def _restore_units(model: NTKRegressor, arrays: Arrays) -> None:
    t: int = arrays["targets"].shape[1]
    zeros: NDArray[Any] = np.zeros(t)
    ones: NDArray[Any] = np.ones(t)
    model.target_mean_ = arrays.get("target_mean", zeros)
    model.target_scale_ = arrays.get("target_scale", ones)
    if not np.all(np.isfinite(model.target_mean_) & (model.target_scale_ > 0)):
        raise ValueError("target_mean must be finite, and target_scale above 0")


def _restore_solution(
    value: NDArray[Any], fitted: Document, arrays: Arrays, training: Training
) -> Solution:
    numbers = {
        name: float("nan" if value is None else value)
        for name, value in fitted["statistics"].items()
        if name != "n"
    }
    statistics = Statistics(n=_integer(fitted["statistics"]["n"]), **numbers)
    factor: Factor | None = None
    if fitted["factor"] is not None:
        factor = restore_factor(
            fitted["factor"],
            arrays,
            weights=training.weights,
            ridge=statistics.ridge * training.share,
            ridge_absolute=statistics.ridge_absolute,
        )
    status, message = Status[fitted["status"]], str(fitted["message"])
    return Solution(value, status, statistics, message, factor)


def _parameter(value: Any) -> Any:
    if isinstance(value, list):
        return [_parameter(entry) for entry in cast("list[Any]", value)]
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        if "pairs" in entries:
            return {key: _parameter(entry) for key, entry in entries["pairs"]}
        return Network.from_json(json.dumps(entries["network"]))
    return float(value) if value in ("inf", "-inf", "nan") else value


def _integer(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a number of samples or features, got {value!r:.100}")
    return value


def _one_of(value: Any, options: Any) -> Any:
    if value not in get_args(options):
        raise ValueError(f"expected one of {get_args(options)}, got {value!r:.100}")
    return value
