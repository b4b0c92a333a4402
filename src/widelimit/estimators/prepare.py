"""From rows and the parameters of an estimator to the kernel that it is fitted with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn import preprocessing  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.estimators.checks import check_standardise, resolve_dtype, resolve_networks
from widelimit.estimators.directions import Directions
from widelimit.estimators.fitted import FittedKernel, PrecomputedKernel
from widelimit.estimators.gaussian import with_std
from widelimit.estimators.marginal import START
from widelimit.estimators.preparation import Preparation
from widelimit.estimators.samples import ImageShape, resolve_shape
from widelimit.estimators.whitening import ZCA

__all__ = ["prepare"]

_StandardScaler: Callable[[], Any] = cast("Any", preprocessing).StandardScaler  # has no types


def prepare(
    model: Any,
    rows: NDArray[Any],
    counts: NDArray[np.bool_],
    weight: FloatArray,
    found: ImageShape | None,
    *,
    whiten: float | None = None,
    multiples: bool = True,
) -> tuple[FittedKernel | PrecomputedKernel, Directions]:
    """Return the kernel of the samples that count, one for each row of its matrix, and the rows.

    Parameters
    ----------
    model : NTKEstimator
        Of which parameters are read.
    rows : ndarray of shape (n, d)
        Samples; the Gram matrix, if the kernel is precomputed.
    counts : ndarray of bool, shape (n,)
    weight : ndarray of float64
        Of the samples that count.
    found : (h, w, c) or None
        Shape of an image, if X held images.
    whiten : float or None
        Regularisation of the whitening, one of those of the parameter.
    multiples : bool
        As for `FittedKernel.merged`.

    Raises
    ------
    TypeError, ValueError
        If parameters and samples do not go together.
    """
    n_features = rows.shape[1]
    if model.kernel == "precomputed":
        if model.net is not None or found is not None:
            raise ValueError(
                "with kernel='precomputed', X is the Gram matrix and net must be None, got "
                f"net={model.net!r} and {'images' if found else 'rows'}"
            )
        if model.normalise is not None or model.whiten is not None:
            raise ValueError(
                "normalise and whiten are for images, with kernel='precomputed' there are none: "
                "prepare images before their kernel is computed"
            )
        if len(rows) != n_features:
            raise ValueError(
                "with kernel='precomputed', X must be the square Gram matrix of the training "
                f"samples, got shape {rows.shape}: compute it as wl.kernel(net, x)"
            )
        columns = np.flatnonzero(counts)
        given = PrecomputedKernel(model.kind, model.dtype or "float64", columns)
        return given, Directions.of_equal(np.arange(len(columns)))
    shape = resolve_shape(model.image_shape, found, n_features, model.channels, model.net)
    networks = resolve_networks(model.net, shape, n_features)
    if model.kind == "ntk" and not all(net.is_trained for net in networks):
        raise ValueError(
            "of a network whose layers are not trained the tangent kernel is 0: set trainable=True "
            "of a Conv or Dense, or kind='nngp'"
        )
    if getattr(model, "optimize", None) is not None:
        if len(networks) > 1:
            raise ValueError(
                f"optimize='marginal' is for one network, got {len(networks)}: fit each, and "
                "compare log_marginal_likelihood()"
            )
        networks = tuple(with_std(net, *START) for net in networks)
    dtype = resolve_dtype(model.dtype, networks)
    if shape is None and (model.normalise is not None or model.whiten is not None):
        raise ValueError(
            f"normalise and whiten are for images, and X holds rows of {n_features} values: set "
            "image_shape=(h, w, c), or give X of shape (n, h, w, c)"
        )
    standardise = check_standardise(model.standardise, default=shape is None)
    if standardise and model.whiten is not None:
        raise ValueError(
            "whiten and standardise=True both choose the units of pixels: give one of them"
        )
    preparation = Preparation(shape, model.normalise)
    x = rows[counts]
    if whiten is not None:
        zca = ZCA(whiten).fit(preparation(x).reshape(x.shape), sample_weight=weight)
        preparation = replace(preparation, zca=zca)
    if standardise:
        scaler = _StandardScaler().fit(preparation(x).reshape(x.shape), sample_weight=weight)
        preparation = replace(preparation, standardisation=(scaler.mean_, scaler.scale_))
    return FittedKernel(
        networks,
        model.combine == "mean" and len(networks) > 1,
        model.kind,
        dtype,
        preparation,
        preparation(x),
        model.backend,
        model.threads,
    ).merged(multiples=multiples, given=np.flatnonzero(counts))
