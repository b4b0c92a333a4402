"""Kernels of a backend object, and values that must be close, or equal to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.backends.base import Backend, Dtype
from widelimit.matrices.engine import fill
from widelimit.matrices.families import find_families
from widelimit.matrices.profiles import Samples
from widelimit.network import Network
from widelimit.program import Kind

__all__ = ["KINDS", "as_samples", "assert_close", "assert_same_bits", "compute"]

KINDS: tuple[Kind, ...] = ("nngp", "ntk")


def assert_close(
    actual: ArrayLike,
    desired: ArrayLike,
    *,
    rtol: float,
    floor: ArrayLike = 0.0,
    context: str = "",
) -> None:
    """Require ``|actual - desired| <= rtol * max(|desired|, floor)`` in every entry.

    Parameters
    ----------
    actual, desired : array_like of the same shape
    rtol : float
        Largest relative error allowed; 0 requires equality.
    floor : array_like
        Errors are relative to at least this, broadcast to the shape: what to compare with where
        terms cancel, such as a part of ``sqrt(k(x,x) k(z,z))``.
    context : str
        What is compared, first words of the failure message.

    Raises
    ------
    AssertionError
        With the largest absolute and relative error, both values and where they are. NaN is close
        to nothing.
    """
    a, d = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    what = f"{context}: " if context else ""
    if a.shape != d.shape:
        raise AssertionError(f"{what}shape {a.shape}, expected {d.shape}")
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(a == d, 0.0, np.abs(a - d))
        relative = error / np.maximum(np.abs(d), np.asarray(floor, np.float64))
    relative = np.where(error == 0, 0.0, relative)
    error, relative = (np.where(np.isnan(e), np.inf, e) for e in (error, relative))
    wrong = relative > rtol
    if not wrong.any():
        return
    lines = [f"{what}{np.count_nonzero(wrong)} of {a.size} entries differ by more than {rtol:.1e}"]
    for name, values in (("absolute", error), ("relative", relative)):
        at = np.unravel_index(int(np.argmax(values)), values.shape)
        where = f"[{', '.join(str(int(i)) for i in at)}]"
        lines.append(
            f"  largest {name} error {values[at]:.3e} at {where}: "
            f"got {float(a[at])!r}, expected {float(d[at])!r}"
        )
    raise AssertionError("\n".join(lines))


def assert_same_bits(actual: ArrayLike, desired: ArrayLike, context: str) -> None:
    """Require equal values in every entry."""
    assert_close(actual, desired, rtol=0.0, context=f"{context}, bit for bit")


def compute(
    backend: Backend,
    networks: Sequence[Network],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    kinds: Sequence[Kind] = KINDS,
    dtype: Dtype = "float64",
    threads: int = 1,
) -> NDArray[Any]:
    """Compute kernels with a backend object, as `widelimit.kernel` does with a backend's name.

    Parameters
    ----------
    backend : Backend
    networks : sequence of Network
    x1, x2 : array_like of shape (n, h, w, c)
        `x2` None: the symmetric Gram matrix of `x1`.
    kinds : sequence of {"nngp", "ntk"}
    dtype : {"float32", "float64"}
    threads : int

    Returns
    -------
    ndarray of `dtype`, shape (n_networks, n_kinds, n1, n2)
    """
    left, right = as_samples(x1, x2)
    shape = (len(networks), len(kinds), len(left), len(left if right is None else right))
    out = np.empty(shape, dtype)
    families = find_families(networks, left.values.shape[1:], tuple(kinds), backend)
    fill(families, left, right, out, dtype, threads)
    return out


def as_samples(x1: ArrayLike, x2: ArrayLike | None) -> tuple[Samples, Samples | None]:
    """Return the inputs as the engine takes them: equal ones have equal numbers on both sides."""
    one = np.asarray(x1, np.float64)
    two = one[:0] if x2 is None else np.asarray(x2, np.float64)
    both = np.concatenate([one, two])
    rows = both.reshape(len(both), -1)
    _, inverse = np.unique(rows, axis=0, return_inverse=True)
    identity = np.asarray(inverse, np.int64).reshape(-1)
    left = Samples(one, identity[: len(one)])
    return left, None if x2 is None else Samples(two, identity[len(one) :])
