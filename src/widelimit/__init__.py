"""Exact kernels of infinitely wide neural networks: NTK, CNTK and NNGP.

>>> import widelimit as wl
>>> k = wl.kernel(wl.cntk_gap(depth=11), images)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widelimit._version import __version__

if TYPE_CHECKING:
    from widelimit import finite, plot
    from widelimit.architectures import cntk_gap, cntk_vanilla, ntk_dense
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
        Conv,
        Dense,
        Flatten,
        GlobalAvgPool,
        LocalAvgPool,
        Network,
        ReLU,
    )

__all__ = [
    "NTK",
    "ZCA",
    "ChannelStandardiser",
    "Conv",
    "Dataset",
    "Dense",
    "Flatten",
    "GlobalAvgPool",
    "Gram",
    "ImageNormaliser",
    "KernelMetric",
    "LocalAvgPool",
    "NTKClassifier",
    "NTKRegressor",
    "Network",
    "ReLU",
    "__version__",
    "cntk_gap",
    "cntk_vanilla",
    "finite",
    "gram",
    "kernel",
    "load_dataset",
    "load_model",
    "ntk_dense",
    "open_gram",
    "plot",
    "save_model",
]

# Imported when first used: scikit-learn takes longer to import than many kernels to compute, and a
# command line that is interrupted while it starts says so.
_LAZY = {
    "widelimit.architectures": ("cntk_gap", "cntk_vanilla", "ntk_dense"),
    "widelimit.data": ("Dataset", "load_dataset"),
    "widelimit.estimators": (
        *("NTK", "ZCA", "ChannelStandardiser", "ImageNormaliser", "KernelMetric"),
        *("NTKClassifier", "NTKRegressor"),
        *("load_model", "save_model"),
    ),
    "widelimit.matrices": ("Gram", "gram", "kernel", "open_gram"),
    "widelimit.network": (
        *("Conv", "Dense", "Flatten", "GlobalAvgPool", "LocalAvgPool", "Network", "ReLU"),
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
