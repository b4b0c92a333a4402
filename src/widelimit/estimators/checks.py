"""What estimators ask of their parameters, targets and weights, before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import validation  # pyright: ignore[reportMissingTypeStubs]

from widelimit.architectures import cntk_gap, myrtle, named_network, ntk_dense
from widelimit.arrays import FloatArray
from widelimit.backends.base import Dtype
from widelimit.display import check_progress
from widelimit.estimators.preparation import resolve_whitenings
from widelimit.estimators.regression import Options
from widelimit.estimators.samples import ImageShape
from widelimit.machine import parse_memory
from widelimit.matrices.inputs import read_series
from widelimit.network import Network
from widelimit.solvers.checks import check_ridge
from widelimit.solvers.spectrum import check_time

__all__ = [
    "ClassWeight",
    "Net",
    "check_class_weight",
    "check_options",
    "check_standardise",
    "check_weights",
    "resolve_dtype",
    "resolve_networks",
    "weigh_classes",
]

ClassWeight: TypeAlias = dict[Any, float] | Literal["balanced"] | None
Net: TypeAlias = Network | str | Sequence[Network | str] | None

# scikit-learn has no types.
_check_sample_weight: Callable[..., FloatArray] = cast("Any", validation)._check_sample_weight


def check_options(model: Any) -> Options:
    """Check the parameters of an estimator that do not depend on samples.

    Raises
    ------
    TypeError, ValueError
        If one is wrong, or two do not go together.
    """
    for name, allowed in (
        ("kernel", ("network", "precomputed")),
        ("kind", ("ntk", "nngp")),
        ("combine", ("best", "mean")),
        ("solver", ("auto", "cholesky", "cg")),
        ("loo_scoring", ("squared", "log_loss", "accuracy")),
    ):
        given = getattr(model, name, allowed[0])  # regressors have one scoring
        if given not in allowed:
            words = " or ".join(f'"{word}"' for word in allowed)
            raise ValueError(f"{name} must be {words}, got {given!r}: choose one")
    check_class_weight(getattr(model, "class_weight", None))
    ridge = _number_or_loo("ridge", model.ridge, check_ridge)
    time = _number_or_loo("time", np.inf if model.time is None else model.time, check_time)
    if ridge == "loo" and time != np.inf:
        raise ValueError(
            "ridge='loo' is chosen for the end of training, got a time as well: give ridge a "
            "number, or leave time out"
        )
    _check_optimize(model, ridge, time)
    if model.normalise not in ("image", None):
        raise ValueError(f'normalise must be "image" or None, got {model.normalise!r}')
    resolve_whitenings(model.whiten)
    if model.kernel == "precomputed" and (model.store is not None or model.executor is not None):
        raise ValueError("store and executor are for kernels of networks: leave them out")
    check_progress(model.progress)
    if model.memory is not None:
        parse_memory(model.memory)
    if model.executor is not None and model.store is None:
        raise ValueError("executor needs store, a folder that all of its workers see")
    return Options(ridge, time, model.solver, model.store, model.memory, model.threads)


def _check_optimize(model: Any, ridge: Any, time: Any) -> None:
    """Refuse a search for hyperparameters with what it does not go with."""
    given = getattr(model, "optimize", None)
    if given is None:
        return
    if given != "marginal":
        raise ValueError(f'optimize must be "marginal" or None, got {given!r}')
    if model.whiten == "loo":
        raise ValueError("whiten='loo' chooses by leave-one-out: give whiten a number here")
    if ridge == "loo" or time != np.inf:
        raise ValueError(
            "optimize='marginal' chooses the ridge itself, for the end of training: leave ridge "
            "and time out, or give a ridge above 0 that is to be kept"
        )
    if model.kernel == "precomputed" or model.solver == "cg":
        raise ValueError(
            "optimize='marginal' is for the kernel of a network and needs a factor: leave out "
            f"kernel={model.kernel!r}, solver={model.solver!r}"
        )


def _number_or_loo(name: str, value: Any, check: Callable[[object], float]) -> Any:
    if not isinstance(value, str):
        return check(value)
    if value != "loo":
        raise ValueError(f'{name} must be a number or "loo", got {value!r}')
    return value


def check_weights(
    sample_weight: ArrayLike | None, rows: NDArray[Any]
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the weights above 0, and which samples have one.

    Raises
    ------
    ValueError
        If a weight is below 0 or not finite, or all are 0.
    """
    if sample_weight is None:
        return np.ones(len(rows)), np.ones(len(rows), np.bool_)
    weight = _check_sample_weight(sample_weight, rows, dtype=np.float64)
    if weight.min() < 0:
        raise ValueError(
            f"sample_weight must be 0 or more, got {weight.min():g} for sample "
            f"{int(weight.argmin())}: a sample of weight w counts as w equal ones"
        )
    counts = weight > 0
    if not counts.any():
        raise ValueError("sample_weight must be above 0 for some sample, got only zeros")
    return weight[counts], counts


def check_class_weight(weight: Any) -> None:
    """Refuse weights of classes that are none, whatever the classes.

    Raises
    ------
    TypeError, ValueError
        If it is no dict of numbers above 0, "balanced" or None.
    """
    if weight is None or (isinstance(weight, str) and weight == "balanced"):
        return
    if not isinstance(weight, dict):
        raise TypeError(
            f'class_weight must be a dict of labels and weights, "balanced" or None, got {weight!r}'
        )
    for label, value in cast("dict[Any, Any]", weight).items():
        bad = isinstance(value, bool) or not isinstance(value, Real)
        if bad or not 0 < float(value) < np.inf:
            raise ValueError(
                f"class_weight must be above 0 and finite, got {value!r} for class {label!r}: to "
                "have none of a class leave its samples out"
            )


def weigh_classes(weight: ClassWeight, classes: NDArray[Any], counts: FloatArray) -> FloatArray:
    """Return the weight of each class, (c,).

    Parameters
    ----------
    weight : dict, "balanced" or None
        Checked.
    classes : ndarray of shape (c,)
    counts : ndarray of float64, shape (c,)
        Weights of the samples of each class, summed. One that has none weighs 1.

    Raises
    ------
    ValueError
        If a class is named that there is not.
    """
    if weight is None:
        return np.ones(len(classes))
    if weight == "balanced":
        there = counts > 0
        shares = counts.sum() / there.sum() / np.where(there, counts, 1.0)
        return np.where(there, shares, 1.0)
    assert isinstance(weight, dict)
    known = classes.tolist()
    if unknown := [label for label in weight if label not in known]:
        raise ValueError(
            f"class_weight names {', '.join(map(repr, unknown[:5]))}, which y has not: its classes "
            f"are {', '.join(map(repr, known[:10]))}"
        )
    return np.array([float(weight.get(label, 1.0)) for label in known])


_LEAST_SIDE = 8  # pixels: the two pools of a Myrtle network leave 2 x 2 of them


def _default_network(shape: ImageShape | None) -> Network:
    """Return the network that None stands for: docs/results.md has what was measured."""
    if shape is None:
        return ntk_dense(3, b_std=1.0)
    return myrtle(5) if min(shape[:2]) >= _LEAST_SIDE else cntk_gap(depth=11)


def resolve_dtype(dtype: Dtype | None, networks: Sequence[Network]) -> Dtype:
    """Return the dtype that None stands for: float32 for images, float64 for rows."""
    return dtype or ("float64" if all(net.is_dense for net in networks) else "float32")


def resolve_networks(net: Net, shape: ImageShape | None, n_features: int) -> tuple[Network, ...]:
    """Return the networks that `net` stands for, checked against the samples.

    Raises
    ------
    TypeError, ValueError
        If one is none, or reads images where there are rows.
    """
    if net is None:
        return (_default_network(shape),)
    listed = isinstance(net, Sequence) and not isinstance(net, str)
    entries: list[Any] = list(cast("Any", net)) if listed else [net]
    networks = [named_network(entry) if isinstance(entry, str) else entry for entry in entries]
    for entry in networks:
        if not isinstance(entry, Network):
            raise TypeError(
                f"net must be a Network, the name of a preset, a list of these, or None, got "
                f'{entry!r}: use wl.cntk_gap(), "cntk-gap-11" or wl.Network([...])'
            )
        if shape is None and not entry.is_dense:
            series = ""
            if read_series([entry]):
                series = (
                    f"; series (n, length, c) are read, too: X[..., None] and image_shape=(1, "
                    f"{n_features}, 1) mean that each row is one of {n_features} steps in one "
                    "channel"
                )
            raise ValueError(
                f"net ({entry}) reads images, but X holds rows of {n_features} values: set "
                f"image_shape=(h, w, c), or give X of shape (n, h, w, c){series}"
            )
    if not networks:
        raise ValueError("net must be a Network or a non-empty list of them, got an empty list")
    return tuple(networks)


def check_standardise(standardise: object, *, default: bool) -> bool:
    """Return whether features are standardised; None stands for the default."""
    if standardise is None:
        return default
    if not isinstance(standardise, bool):
        raise TypeError(f"standardise must be True, False or None, got {standardise!r}")
    return standardise
