"""The kernel of a fitted estimator: which networks, of which training samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.estimators.directions import Directions, find_directions
from widelimit.estimators.samples import ImageShape
from widelimit.matrices.inputs import number_samples
from widelimit.matrices.kernel import kernel, kernel_diagonal
from widelimit.matrices.prepared import PreparedKernel
from widelimit.matrices.run import gram
from widelimit.network import Conv, Dense, Network
from widelimit.program import Kind

__all__ = ["FittedKernel", "PrecomputedKernel", "Standardisation", "Stored", "standardised"]

Standardisation: TypeAlias = tuple[FloatArray, FloatArray]  # mean and scale of each feature


def as_samples(
    rows: NDArray[Any], shape: ImageShape | None, standardisation: Standardisation | None
) -> NDArray[Any]:
    """Return rows (n, d) as a kernel takes them: (n, d) or (n, h, w, c)."""
    if standardisation is not None:
        mean, scale = standardisation
        rows = (rows - mean) / scale
    return rows if shape is None else rows.reshape(-1, *shape)
