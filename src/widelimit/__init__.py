"""Exact kernels of infinitely wide neural networks: NTK, CNTK and NNGP.

>>> import widelimit as wl
>>> k = wl.kernel(wl.cntk_gap(depth=11), images)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widelimit._version import __version__
from widelimit.architectures import cntk_gap, cntk_vanilla, ntk_dense
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

if TYPE_CHECKING:
    from widelimit import plot
    from widelimit.data import Dataset, load_dataset
    from widelimit.estimators import (
        NTK,
        ZCA,
        KernelMetric,
        NTKClassifier,
        NTKRegressor,
        load_model,
        save_model,
    )

__all__ = [
    "NTK",
    "ZCA",
    "Conv",
    "Dataset",
    "Dense",
    "Flatten",
    "GlobalAvgPool",
    "Gram",
    "KernelMetric",
    "LocalAvgPool",
    "NTKClassifier",
    "NTKRegressor",
    "Network",
    "ReLU",
    "__version__",
    "cntk_gap",
    "cntk_vanilla",
    "gram",
    "kernel",
    "load_dataset",
    "load_model",
    "ntk_dense",
    "open_gram",
    "plot",
    "save_model",
]

# Imported when first used: scikit-learn takes longer to import than many kernels to compute.
_LAZY = {
    "NTK": "widelimit.estimators",
    "ZCA": "widelimit.estimators",
    "KernelMetric": "widelimit.estimators",
    "load_model": "widelimit.estimators",
    "save_model": "widelimit.estimators",
    "NTKClassifier": "widelimit.estimators",
    "NTKRegressor": "widelimit.estimators",
    "Dataset": "widelimit.data",
    "load_dataset": "widelimit.data",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "plot":
        return import_module("widelimit.plot")
    if name not in _LAZY:
        raise AttributeError(f"module 'widelimit' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
