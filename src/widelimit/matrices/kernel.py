"""The function `kernel`: inputs checked, families found, memory declared, engine run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.backends import BackendName, get_backend
from widelimit.backends.base import Dtype
from widelimit.display import share_alone, shown
from widelimit.machine import ALWAYS_FITS, available_memory
from widelimit.matrices.engine import fill, fill_diagonal, held_blocks, memory_grid
from widelimit.matrices.families import (
    Family,
    choose_backend,
    find_families,
    prepare,
    profile_bytes,
    scratch_bytes,
)
from widelimit.matrices.inputs import (
    Channels,
    check_dtype,
    check_entries,
    check_inputs,
    check_kinds,
    check_networks,
    check_threads,
    number_samples,
)
from widelimit.matrices.profiles import Samples
from widelimit.network import Network
from widelimit.program import Kind

__all__ = ["check_memory", "kernel", "kernel_diagonal", "needed_memory"]


@overload
def kernel(
    net: Network | str | Sequence[Network | str],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    kind: Kind = "ntk",
    *,
    channels: Channels = None,
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
    progress: bool | Callable[[float], None] = False,
) -> NDArray[Any]: ...


@overload
def kernel(
    net: Network | str | Sequence[Network | str],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    kind: list[Kind] | tuple[Kind, ...],
    channels: Channels = None,
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
    progress: bool | Callable[[float], None] = False,
) -> tuple[NDArray[Any], ...]: ...


def kernel(
    net: Network | str | Sequence[Network | str],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    kind: Kind | list[Kind] | tuple[Kind, ...] = "ntk",
    *,
    channels: Channels = None,
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
    progress: bool | Callable[[float], None] = False,
) -> NDArray[Any] | tuple[NDArray[Any], ...]:
    """Exact kernel of an infinitely wide network between all pairs of inputs.

    The NTK is ``Theta`` and the NNGP kernel ``K`` at the output (Eq. 1 and 11-12 of the paper;
    general form in `widelimit.network`).

    Parameters
    ----------
    net : Network, str, or sequence of them
        A preset and its depth ("cntk-gap-11", "cntk-vanilla-11", "ntk-dense-3") is as good as its
        network. Networks of a sequence that begin alike are computed in one pass.
    x1, x2 : array_like of shape (n, h, w, c), (n, d) for dense networks, or (n, length, c) for \
            networks on series, whose filters are all one row high
        Real numbers of any dtype and memory order, computed with as float64. ``x2=None``: the
        symmetric Gram matrix of `x1`, bitwise equal to its transpose, at half the cost. A dense
        network flattens images.
    kind : {"ntk", "nngp"} or a sequence of them
    channels : {"first", "last"} or None
        "first": images are (n, c, h, w), as those of PyTorch, and series (n, c, length). None:
        last; images whose first axis is 1, 3 or 4, and whose last one is larger than 4, are then
        refused, and series of more channels than steps.
    backend : {"auto", "cpu", "cuda", "reference"}
        "cuda" is an NVIDIA card, or all of one kind that there are (docs/gpu.md). "auto" is a
        card if there is one and the processors would take longer than it takes to start, about 20
        seconds. "reference" is float64 NumPy, slow and easy to read.
    dtype : {"float32", "float64"}
        Of the slices and of the result. Profiles, sums over slices, and what belongs to
        identical inputs are always float64.
    threads : int or None
        None: one for each processor that this process may use. No bit of the result depends on
        it nor, on one backend, on how inputs are split into calls.
    progress : bool or callable
        True shows it on standard error, as a bar on a terminal and as lines elsewhere; a callable
        is given the finished share, 0 to 1.

    Returns
    -------
    ndarray of shape (n1, n2)
        With a leading axis if `net` is a sequence; a tuple of such arrays if `kind` is a sequence.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape, or inputs are empty or not finite.
    MemoryError
        Before the work starts, if the result and the work space will not fit.
    OverflowError
        If kernel values leave the range of `dtype`.

    Notes
    -----
    Cost in element-layers a pair (`widelimit explain`): ``(h w)^2`` for every convolution with
    global average pooling, ``h w`` with `Flatten`. Pairs share a vector register, 16 in float32
    with AVX-512: fewer pairs than that cost as much as 16. Relative accuracy: about 1e-6 in float32
    and 1e-13 in float64; near-duplicate inputs lose digits (docs/accuracy.md).
    """
    single = isinstance(net, Network | str)
    networks = check_networks(net)
    kinds = check_kinds(kind)
    check_dtype(dtype)
    workers = check_threads(threads)
    values1, values2 = check_inputs(networks, x1, x2, channels)
    n1, n2 = len(values1), None if values2 is None else len(values2)
    chosen = get_backend(choose_backend(backend, networks, values1.shape[1:], n1, n2))
    families = find_families(networks, values1.shape[1:], kinds, chosen)
    shape = (len(networks), len(kinds), n1, n1 if n2 is None else n2)
    check_memory(shape, dtype, families, workers, symmetric=values2 is None)
    numbers1, numbers2 = number_samples(values1, values2)
    left = Samples(values1, numbers1)
    right = None if values2 is None or numbers2 is None else Samples(values2, numbers2)

    prepare(families, dtype)
    out = np.empty(shape, dtype)
    with shown(progress, "kernel", share_alone) as report:
        fill(families, left, right, out, dtype, workers, report)
    results = tuple(out[0, k] if single else out[:, k] for k in range(len(kinds)))
    return results[0] if isinstance(kind, str) else results


def kernel_diagonal(
    net: Network | str | Sequence[Network | str],
    x: ArrayLike,
    kind: Kind = "ntk",
    *,
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
) -> NDArray[Any]:
    """Diagonal of the symmetric Gram matrix of some inputs, without the rest of it.

    Parameters
    ----------
    net, x, kind, backend, dtype, threads
        As for `kernel`, whose values these are, to the last bit; channels are last.

    Returns
    -------
    ndarray of shape (n,)
        With a leading axis if `net` is a sequence.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As for `kernel`.
    """
    networks = check_networks(net)
    kinds = check_kinds(kind)
    check_dtype(dtype)
    workers = check_threads(threads)
    values, _ = check_inputs(networks, x, None, "last")
    chosen = get_backend(choose_backend(backend, networks, values.shape[1:], 1, len(values)))
    families = find_families(networks, values.shape[1:], kinds, chosen)
    check_entries("x1", values)
    samples = Samples(values, np.arange(len(values)))  # each is itself, and no other is asked for
    out = np.empty((len(networks), 1, len(values)), dtype)
    fill_diagonal(families, samples, out, dtype, workers)
    return out[0, 0] if isinstance(net, Network | str) else out[:, 0]


def needed_memory(
    networks: Sequence[Network],
    image: Sequence[int],
    shape: tuple[int, int, int, int],
    kinds: Sequence[Kind],
    dtype: Dtype,
    backend: BackendName,
    threads: int,
    *,
    symmetric: bool,
) -> tuple[int, int]:
    """Return the bytes of the result of `kernel`, (networks, kinds, n1, n2), and of work space."""
    families = find_families(networks, image, kinds, get_backend(backend))
    return _needed(shape, dtype, families, threads, symmetric=symmetric)


def _needed(
    shape: tuple[int, int, int, int],
    dtype: Dtype,
    families: Sequence[Family],
    threads: int,
    *,
    symmetric: bool,
) -> tuple[int, int]:
    result = math.prod(shape) * np.dtype(dtype).itemsize
    grid = memory_grid(shape[2], None if symmetric else shape[3])
    blocks = sum(held_blocks(families, dtype, grid, threads))
    samples = blocks * min(grid.tile, max(shape[2:]))
    work = samples * profile_bytes(families, dtype) + threads * scratch_bytes(families, dtype)
    return result, work


def check_memory(
    shape: tuple[int, int, int, int],
    dtype: Dtype,
    families: Sequence[Family],
    threads: int,
    *,
    symmetric: bool,
) -> None:
    """Refuse what will not fit, before any work is done."""
    result, work = _needed(shape, dtype, families, threads, symmetric=symmetric)
    free = available_memory() if result + work > ALWAYS_FITS else None
    if free is not None and result + work > free:
        raise MemoryError(
            f"{shape[2]} x {shape[3]} kernel values of {shape[0]} networks and {shape[1]} kinds "
            f"need {result / 2**30:.1f} GiB, and {work / 2**30:.1f} GiB of work space; "
            f"{free / 2**30:.1f} GiB are free: compute fewer at a time, or use fewer threads"
        )
