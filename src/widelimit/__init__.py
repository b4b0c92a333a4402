"""Exact kernels of infinitely wide neural networks: NTK, CNTK and NNGP.

>>> import widelimit as wl
>>> k = wl.kernel(wl.cntk_gap(depth=11), images)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widelimit._version import __version__

if TYPE_CHECKING:
    from widelimit import finite, plot
    from widelimit.architectures import (
        cnn_1d,
        cntk_gap,
        cntk_vanilla,
        myrtle,
        ntk_dense,
        resnet,
        wide_resnet,
    )
    from widelimit.data import Dataset, load_dataset
    from widelimit.estimators import (
        NTK,
        ZCA,
        ChannelStandardiser,
        ImageNormaliser,
        KernelMetric,
        NTKClassifier,
        NTKRegressor,
        load_model,
        save_model,
    )
    from widelimit.matrices import Gram, gram, kernel, open_gram
    from widelimit.network import (
        GELU,
        ABReLU,
        Abs,
        AvgPool,
        Conv,
        Cos,
        Dense,
        Erf,
        Flatten,
        Gaussian,
        GlobalAvgPool,
        Identity,
        LayerNorm,
        LeakyReLU,
        LocalAvgPool,
        Network,
        Polynomial,
        ReLU,
        Sin,
        Sum,
    )

__all__ = [
    "GELU",
    "NTK",
    "ZCA",
    "ABReLU",
    "Abs",
    "AvgPool",
    "ChannelStandardiser",
    "Conv",
    "Cos",
    "Dataset",
    "Dense",
    "Erf",
    "Flatten",
    "Gaussian",
    "GlobalAvgPool",
    "Gram",
    "Identity",
    "ImageNormaliser",
    "KernelMetric",
    "LayerNorm",
    "LeakyReLU",
    "LocalAvgPool",
    "NTKClassifier",
    "NTKRegressor",
    "Network",
    "Polynomial",
    "ReLU",
    "Sin",
    "Sum",
    "__version__",
    "cnn_1d",
    "cntk_gap",
    "cntk_vanilla",
    "finite",
    "gram",
    "kernel",
    "load_dataset",
    "load_model",
    "myrtle",
    "ntk_dense",
    "open_gram",
    "plot",
    "resnet",
    "save_model",
    "wide_resnet",
]

# Imported when first used: scikit-learn takes longer to import than many kernels to compute, and a
# command line that is interrupted while it starts says so.
_LAZY = {
    "widelimit.architectures": (
        *("cntk_gap", "cntk_vanilla", "ntk_dense", "myrtle", "resnet", "wide_resnet", "cnn_1d"),
    ),
    "widelimit.data": ("Dataset", "load_dataset"),
    "widelimit.estimators": (
        *("NTK", "ZCA", "ChannelStandardiser", "ImageNormaliser", "KernelMetric"),
        *("NTKClassifier", "NTKRegressor"),
        *("load_model", "save_model"),
    ),
    "widelimit.matrices": ("Gram", "gram", "kernel", "open_gram"),
    "widelimit.network": (
        *("Conv", "Dense", "Flatten", "GlobalAvgPool", "LocalAvgPool", "Network", "ReLU"),
        *("AvgPool", "Sum", "LayerNorm", "ABReLU", "LeakyReLU", "Abs", "Erf", "GELU", "Sin", "Cos"),
        *("Gaussian", "Polynomial", "Identity"),
    ),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("finite", "plot"):
        return import_module(f"widelimit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'widelimit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
