"""The accuracy table: the largest errors of kernels, by dtype, kernel and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.arrays import FloatArray
from widelimit.backends import get_backend
from widelimit.backends.base import Backend, Dtype
from widelimit.layers import Conv, mapped
from widelimit.network import Network
from widelimit.testing.compare import compute
from widelimit.testing.exact import exact_kernel

__all__ = ["AccuracyRow", "accuracy_table"]


@dataclass(frozen=True)
class AccuracyRow:
    """One line of the accuracy table.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    kernel : str
        Name of the kernel, as in `accuracy_table`.
    depth : int
    inputs : str
        What the two images of a pair are to each other.
    error : float
        Largest relative error of the NTK over the pairs.
    witness : {"float64", "mpmath"}
        What it was compared with.
    """

    dtype: Dtype
    kernel: str
    depth: int
    inputs: str
    error: float
    witness: Literal["float64", "mpmath"]


_PRESETS = {"CNTK-V": cntk_vanilla, "CNTK-GAP": cntk_gap}


def accuracy_table(
    images: ArrayLike,
    *,
    depths: Sequence[int] = (3, 11, 21),
    dtypes: Sequence[Dtype] = ("float32", "float64"),
    kernels: Sequence[str] = tuple(_PRESETS),
    distances: Sequence[float] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
    biases: Sequence[float] = (1, 100, 10000),
    shared: Sequence[float] = (1e-9, 1e-15),
    backend: Backend | None = None,
    threads: int = 1,
    exact_size: int = 5,
    seed: int = 0,
) -> list[AccuracyRow]:
    """Measure the largest relative errors of kernels.

    Float32 is compared with float64 on `images`; float64 with mpmath on the middle of the first
    three.

    Parameters
    ----------
    images : array_like of shape (n, h, w, c)
        At least 3 different ones.
    depths : sequence of int
    dtypes : sequence of {"float32", "float64"}
    kernels : sequence of {"CNTK-V", "CNTK-GAP"}
    distances : sequence of float
        Relative distances ``|z - x| / |x|`` of near-duplicates, a row each.
    biases : sequence of float
        `b_std` of all convolutions in multiples of the brightest pixel, a row of distinct images
        each.
    shared : sequence of float
        Brightness of the only pixels that are not 0 in both images, as a share of the brightest, a
        row each.
    backend : Backend or None
        None: the fastest on the processor.
    threads : int
    exact_size : int
        Largest height and width of the images that mpmath computes with: its time with global
        average pooling grows with the fourth power.
    seed : int
        Of the noise that makes near-duplicates.

    Returns
    -------
    list of AccuracyRow
        For each dtype, kernel and depth: pairs of distinct images; of two-level images (0 below
        the middle of their range, else 1: patches of two images that agree up to a factor have
        lambda = 1); of an image and half of it; of near-duplicates; of networks with biases; and
        of images whose bright pixels meet black ones. Identical images do not appear: their
        lambda is known, they are as accurate as distinct ones.

    Raises
    ------
    ValueError
        If there are fewer than 3 images, or one is black.
    """
    x = np.asarray(images, np.float64)
    if x.ndim != 4 or len(x) < 3 or not x.any(axis=(1, 2, 3)).all():
        raise ValueError(f"images must be at least 3, none of them black, got shape {x.shape}")
    top, left = (max(0, (extent - exact_size) // 2) for extent in x.shape[1:3])
    middle = x[:3, top : top + exact_size, left : left + exact_size]
    backend = get_backend("cpu") if backend is None else backend
    rows: list[AccuracyRow] = []
    for dtype in dtypes:
        single = dtype == "float32"
        own = x if single else middle
        pairs = _accuracy_pairs(own, distances, shared, np.random.default_rng(seed))
        wanted = [(inputs, 0.0) for inputs in pairs] + [("distinct", bias) for bias in biases]
        for kernel in kernels:
            for depth in depths:
                for inputs, bias in wanted:
                    network = _with_biases(_PRESETS[kernel](depth), bias * float(np.abs(own).max()))
                    a, b, chosen = pairs[inputs]
                    value, exact = (
                        compute(backend, [network], a, b, kinds=["ntk"], dtype=t, threads=threads)
                        for t in (dtype, "float64")
                    )
                    errors = [
                        float(value[0, 0, i, j]) / exact_value - 1
                        for i, j in np.argwhere(chosen).tolist()
                        for exact_value in [
                            exact[0, 0, i, j] if single else exact_kernel(network, a[i], b[j])[1]
                        ]
                    ]
                    largest = max(float(abs(error)) for error in errors)
                    name = f"{inputs}, biases of {bias:g}" if bias else inputs
                    witness = "float64" if single else "mpmath"
                    rows.append(AccuracyRow(dtype, kernel, depth, name, largest, witness))
    return rows


def _with_biases(network: Network, b_std: float) -> Network:
    """Return the network with biases in its convolutions."""
    layers = mapped(network.layers, lambda x: replace(x, b_std=b_std) if isinstance(x, Conv) else x)
    return Network(layers, scaling=network.scaling)


def _accuracy_pairs(
    x: FloatArray,
    distances: Sequence[float],
    shared: Sequence[float],
    rng: np.random.Generator,
) -> dict[str, tuple[FloatArray, FloatArray, NDArray[np.bool_]]]:
    """Left images, right images, and which pairs of them count."""
    axes = (1, 2, 3)
    middle = (x.max(axis=axes, keepdims=True) + x.min(axis=axes, keepdims=True)) / 2
    two_level = (x >= middle).astype(np.float64)
    above, itself = np.triu(np.ones((len(x), len(x)), bool), 1), np.eye(len(x), dtype=bool)
    pairs = {
        "distinct": (x, x, above),
        "two-level": (two_level, two_level, above),
        "half as bright": (x, x / 2, itself),
    }
    noise = rng.standard_normal(x.shape)
    noise *= np.sqrt(
        np.sum(x**2, axis=axes, keepdims=True) / np.sum(noise**2, axis=axes, keepdims=True)
    )
    for distance in distances:
        pairs[f"differ by {distance:.0e}"] = (x, x + distance * noise, itself)
    # One is bright in the first column, one in the last; a column between them is dark in both.
    width = x.shape[2]
    for share in shared:
        left, right = np.zeros_like(x), np.zeros_like(x)
        left[:, :, 0], right[:, :, -1] = x[:, :, 0], x[:, :, -1]
        for image in (left, right):
            image[:, :, width // 2] = share * x[:, :, width // 2]
        pairs[f"share pixels of {share:.0e}"] = (left, right, above)
    return pairs
