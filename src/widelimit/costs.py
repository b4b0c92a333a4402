"""What a kernel costs on this machine, known before it is begun."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from scipy import linalg

from widelimit._version import __version__
from widelimit.architectures import cntk_gap, cntk_vanilla, myrtle
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.display import duration
from widelimit.doctor import processor
from widelimit.files import write_atomically
from widelimit.machine import blas_threads, cache_folder, default_threads
from widelimit.matrices.families import choose_backend
from widelimit.matrices.inputs import check_threads
from widelimit.matrices.kernel import kernel, needed_memory
from widelimit.network import GlobalAvgPool, LocalAvgPool, Network
from widelimit.program import Kind, compile_networks
from widelimit.reading import read_json

__all__ = [
    "LONG",
    "Cost",
    "Forecast",
    "cheaper",
    "estimate",
    "forecast",
    "shortened",
    "solving_seconds",
    "to_size",
]

_linalg = cast("Any", linalg)  # scipy has no type stubs

LONG = 600.0
"""Seconds: before work that takes longer a user at a terminal is asked."""
_WORTH_TELLING, _WORTH_LESS = 10.0, 60.0  # seconds: what is shorter is not told, nor compared

_PROBE = 0.4  # seconds that a probe is to take
_GUESS = 1e9  # element-layers a second of one processor, of which a probe is made
_SMALL = 1e9  # element-layers that are not worth a probe
_LANES = 16  # pairs that share a vector register
_SIDE = 32  # of the images of a probe, at most: the rate of larger ones is the same
_DENSE_PAIRS = 1e7  # a second of one processor, of a dense network of a few layers
_MOST_RATES, _MAX_FILE = 1000, 2**20
_MOST_SAMPLES = 4096  # of a probe, on either side
_WORTH_SOLVING = 768  # rows of a system that takes a time worth telling
_FACTORISED, _DECOMPOSED = 2048, 1024  # rows of those that tell how fast this machine is


@dataclass(frozen=True, slots=True)
class Cost:
    """What a kernel costs.

    Parameters
    ----------
    pairs : int
        Of inputs; those of a symmetric matrix count once.
    element_layers : int
        Of one pair, for all networks; 0 for dense ones.
    seconds : float
        On this machine.
    memory : int
        Bytes, work space included.
    result : int
        Bytes of the matrices.
    matrices : int
        One for each network and kind.
    entry : int
        Bytes of an entry of one.
    backend : str
        On which it would run.
    """

    pairs: int
    element_layers: int
    seconds: float
    memory: int
    result: int
    matrices: int
    entry: int
    backend: str

    @property
    def stored(self) -> int:
        """Bytes of the matrices in a store, which has one half of those that are symmetric."""
        return self.matrices * self.pairs * self.entry

    def __str__(self) -> str:
        """One line: pairs, element-layers, time and memory."""
        each = f" of {shortened(self.element_layers)} element-layers" if self.element_layers else ""
        where = " on the card" if self.backend == "cuda" else ""
        return (
            f"{self.pairs:,} pairs{each}: about {duration(self.seconds)}{where}, "
            f"{to_size(self.memory)} of memory"
        )


def estimate(
    networks: Sequence[Network],
    shape: Sequence[int],
    n1: int,
    n2: int | None = None,
    *,
    kinds: Sequence[Kind] = ("ntk",),
    dtype: Dtype = "float32",
    backend: BackendName = "auto",
    threads: int | None = None,
) -> Cost:
    """Estimate what a kernel costs on this machine.

    Parameters
    ----------
    networks : sequence of Network
    shape : sequence of int
        Of one input, (h, w, c) or (d,).
    n1, n2 : int, int or None
        How many inputs; n2 = None is a symmetric matrix.
    kinds, dtype, backend, threads
        As for `widelimit.kernel`.

    Raises
    ------
    TypeError, ValueError
        If a network cannot take such inputs, or threads are not as described.
    RuntimeError
        If there is no such backend here.

    Notes
    -----
    Time: the pairs, divided by those that this machine has been seen to compute in a second, for
    these networks on images of at most 32 x 32 pixels. That is measured for about half a second
    when it is first asked for, and kept in the folder of `cache_folder`, for each processor, number
    of threads and version. Work below 1e9 element-layers is told from a usual rate.
    """
    workers = check_threads(threads)
    chosen = choose_backend(backend, networks, shape, n1, n2)
    pairs = n1 * (n1 + 1) // 2 if n2 is None else n1 * n2
    each = _element_layers(networks, shape, kinds)
    matrix = (len(networks), len(kinds), n1, n1 if n2 is None else n2)
    result, work = needed_memory(
        networks, shape, matrix, kinds, dtype, chosen, workers, symmetric=n2 is None
    )
    if pairs * each <= _SMALL and (each or pairs <= _DENSE_PAIRS):
        seconds = pairs * each / _GUESS + (0 if each else pairs / _DENSE_PAIRS)
    else:
        seconds = pairs / _rate(networks, shape, kinds, dtype, chosen, workers)
    entry = np.dtype(dtype).itemsize
    return Cost(pairs, each, seconds, result + work, result, matrix[0] * matrix[1], entry, chosen)


def cheaper(
    now: Cost,
    networks: Sequence[Network],
    shape: Sequence[int],
    n1: int,
    n2: int | None = None,
    *,
    size: str | None = "--size {h}x{w}",
    net: str | None = "--net {}",
    **how: Any,
) -> list[tuple[str, float]]:
    """Return what would cost at least a tenth less: options of the command line, and seconds.

    Parameters
    ----------
    now : Cost
        What `estimate` says of the rest.
    networks, shape, n1, n2, **how
        As for `estimate`.
    size, net : str or None
        How the command is told of a size (h, w, c), and of one network. None: it is not.
    """
    if len(shape) != 3 or all(network.is_dense for network in networks):
        return []
    h, w, c = shape
    if h == 1:  # a series, which --size does not resample
        return []
    tried: list[tuple[str, float]] = []
    side = max(h, w)
    for smaller in (64, 32):
        if side > smaller:
            small = (max(1, round(h * smaller / side)), max(1, round(w * smaller / side)), c)
            if size is None or not _take(networks, small):
                continue
            cost = estimate(networks, small, n1, n2, **how)
            tried.append((size.format(h=small[0], w=small[1], c=c), cost.seconds))
    depth = max(network.n_conv for network in networks) + 1
    pooled = any(
        isinstance(layer, GlobalAvgPool | LocalAvgPool)
        for network in networks
        for layer in network.layers
    )
    others: list[tuple[str, Network]] = []
    if pooled and _take([myrtle(5)], shape):
        others.append(("myrtle-5", myrtle(5)))
    if depth >= 8:
        others.append((f"cntk-gap-{depth // 2}", cntk_gap(depth // 2)))
    if pooled:
        others.append((f"cntk-vanilla-{depth}", cntk_vanilla(depth)))
    for name, network in others:
        if net is not None:
            cost = estimate([network], shape, n1, n2, **how)
            tried.append((net.format(name), cost.seconds))
    return [(words, seconds) for words, seconds in tried if seconds < 0.9 * now.seconds]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a command will take.

    Parameters
    ----------
    cost : Cost
        Of the kernel.
    solving : float
        Seconds, of its equations.
    options : list of (str, float)
        What would be cheaper: `cheaper`.
    testing : Cost or None
        Of the kernel between test and training images.
    """

    cost: Cost
    solving: float
    options: list[tuple[str, float]]
    testing: Cost | None = None

    @property
    def seconds(self) -> float:
        """Of all of it."""
        testing = 0.0 if self.testing is None else self.testing.seconds
        return self.cost.seconds + self.solving + testing

    @property
    def is_long(self) -> bool:
        """Whether somebody should be asked before."""
        return self.seconds > LONG

    def lines(self) -> list[str]:
        """Say what it costs, and what would be cheaper; nothing if it is short."""
        if self.seconds < _WORTH_TELLING:
            return []
        solving = f", then {duration(self.solving)} to solve" if self.solving >= 1 else ""
        told = [f"cost: {self.cost}{solving}"]
        if self.testing is not None and self.testing.seconds >= 1:
            about = f"about {duration(self.testing.seconds)}"
            told[0] += f", then {self.testing.pairs:,} pairs for the test, {about}"
        if self.options:
            others = [f"{words} about {duration(seconds)}" for words, seconds in self.options]
            told.append(f"cheaper: {', '.join(others)}")
        return told


def forecast(
    networks: Sequence[Network],
    shape: Sequence[int],
    n1: int,
    n2: int | None = None,
    *,
    solve: Literal["factor", "eigenvectors"] | None = None,
    kernels: int = 1,
    systems: int = 1,
    test: int = 0,
    together: bool = True,
    size: str | None = "--size {h}x{w}",
    net: str | None = "--net {}",
    **how: Any,
) -> Forecast:
    """Return what kernels cost, and the equations of `n1` samples.

    Parameters
    ----------
    networks, shape, n1, n2, **how
        As for `estimate`.
    solve : {"factor", "eigenvectors"} or None
        What is made of each system.
    kernels, systems : int
        How often the kernels are computed, of images that are whitened in several ways, say; and
        how many systems of equations are solved in all.
    test, together : int, bool
        How many other samples are classified in the end; by all networks, or by one of them, of
        which nobody knows yet which it is: the costliest.
    size, net : str or None
        As for `cheaper`.
    """
    cost = estimate(networks, shape, n1, n2, **how)
    solving = 0.0 if solve is None else solving_seconds(n1, decompose=solve == "eigenvectors")
    whole, testing = kernels * cost.seconds, None
    if test:
        used = [networks] if together else [[network] for network in networks]
        costs = [estimate(some, shape, test, n1, **how) for some in used]
        testing = max(costs, key=lambda one: one.seconds)
        whole += testing.seconds
    options: list[tuple[str, float]] = []
    if whole >= _WORTH_LESS:
        # What costs most of it says what all of it would cost.
        sizes, most = (n1, n2), cost
        if testing is not None and testing.seconds > cost.seconds:
            sizes, most = (test, n1), estimate(networks, shape, test, n1, **how)
        options = [
            (words, seconds * whole / most.seconds)
            for words, seconds in cheaper(most, networks, shape, *sizes, size=size, net=net, **how)
        ]
    cost = replace(cost, pairs=kernels * cost.pairs, seconds=kernels * cost.seconds)
    return Forecast(cost, systems * solving, options, testing)


def solving_seconds(n: int, *, decompose: bool = False) -> float:
    """Estimate how long a system of n float64 equations takes on this machine.

    Parameters
    ----------
    n : int
    decompose : bool
        Whether its eigenvectors are computed, as for ridge="loo".
    """
    key = ["equations", decompose]
    if n < _WORTH_SOLVING:
        return 0.0
    known = _known(key)
    if known is None:
        rows = _DECOMPOSED if decompose else _FACTORISED
        solve: Any = _linalg.eigh if decompose else _linalg.cholesky
        a = np.random.default_rng(0).random((rows, rows))
        a += a.T
        a.ravel()[:: rows + 1] += 2 * rows  # positive definite
        taken, at_once = math.inf, min(blas_threads(), default_threads())
        for _ in range(3):  # the first wakes threads
            b = a.copy()
            start, worked = time.perf_counter(), time.process_time()
            solve(b, overwrite_a=True, check_finite=False)
            # As in `_measure`: while others work the clock runs on.
            worked = (time.process_time() - worked) / at_once
            taken = min(taken, time.perf_counter() - start, worked)
        known = taken / rows**3
        _keep(key, known)
    return known * float(n) ** 3


def shortened(count: float) -> str:
    """Write a large number: ``950``, ``31.5 million``, ``2.1e+04 billion``."""
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:.0f}"


def to_size(size: float) -> str:
    """Write a number of bytes: ``3 MB``, ``1.2 GB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1.0, size / 1e6):.0f} MB"


def _element_layers(
    networks: Sequence[Network], shape: Sequence[int], kinds: Sequence[Kind]
) -> int:
    programs = compile_networks(networks, shape, kinds)
    return sum(program.element_layers for program, _ in programs)


# ---------------------------------------------------------------- rates


def _rate(
    networks: Sequence[Network],
    shape: Sequence[int],
    kinds: Sequence[Kind],
    dtype: Dtype,
    backend: BackendName,
    threads: int,
) -> float:
    """Return the pairs a second of this machine."""
    each = _element_layers(networks, shape, kinds)
    probe = tuple(shape) if len(shape) != 3 or not each else _shrunk(networks, shape)
    names = [network.to_json() for network in networks]
    key = ["pairs", *names, *kinds, dtype, backend, threads, *probe]
    rate = _known(key)
    if rate is None:
        rate = _measure(networks, probe, kinds, dtype, backend, threads)
        _keep(key, rate)
    return rate if not each else rate * _element_layers(networks, probe, kinds) / each


def _take(networks: Sequence[Network], shape: Sequence[int]) -> bool:
    """Return whether networks can take inputs of a shape: pools may leave nothing of small ones."""
    try:
        for network in networks:
            network.output_shapes(tuple(shape))
    except ValueError:
        return False
    return True


def _shrunk(networks: Sequence[Network], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest shape to measure at that all networks take."""
    h, w, c = shape
    side = _SIDE
    while side < max(h, w) and not _take(networks, (min(h, side), min(w, side), c)):
        side *= 2
    return (min(h, side), min(w, side), c)


def _measure(
    networks: Sequence[Network],
    shape: Sequence[int],
    kinds: Sequence[Kind],
    dtype: Dtype,
    backend: BackendName,
    threads: int,
) -> float:
    """Compute some pairs, and as many more until they take long enough to be timed.

    The rate is kept, so that it has to be that of a machine that does nothing else: on processors
    it is no less than that of the time for which they worked. Rows and columns are about as many:
    what one image takes is little in a matrix, and would not be beside a few pairs of it.
    """
    each = _element_layers(networks, shape, kinds)
    pairs = threads * _PROBE * _GUESS / each if each else 256.0**2
    rng = np.random.default_rng(0)
    while True:
        lanes = min(_MOST_SAMPLES, math.isqrt(round(pairs))) // _LANES
        columns = _LANES * max(1, lanes)
        rows = min(_MOST_SAMPLES, threads * max(1, round(pairs / (columns * threads))))
        x, z = (rng.random((n, *shape), np.float32) for n in (rows, columns))
        start, worked = time.perf_counter(), time.process_time()
        kernel(
            list(networks),
            x,
            z,
            kind=tuple(kinds),
            channels="last",
            dtype=dtype,
            backend=backend,
            threads=threads,
        )
        taken = time.perf_counter() - start
        if taken >= _PROBE / 2 or rows == columns == _MOST_SAMPLES:
            if backend != "cuda":
                at_once = min(threads, default_threads())
                taken = min(taken, (time.process_time() - worked) / at_once)
            return rows * columns / taken
        pairs *= min(16.0, 1.5 * _PROBE / max(taken, 1e-3))


def _name(key: Sequence[object]) -> str:
    whole = [__version__, processor(), *key]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:24]


def _file() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "rates.json"


def _rates() -> dict[str, float]:
    """Return the rates that were measured; none if there are none, or the file is not ours."""
    path = _file()
    try:
        found = {} if path is None else read_json(path, _MAX_FILE)
    except (OSError, ValueError):
        return {}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and 0 < v < 1e15}


def _known(key: Sequence[object]) -> float | None:
    return _rates().get(_name(key))


def _keep(key: Sequence[object], rate: float) -> None:
    path = _file()
    rates = list((_rates() | {_name(key): rate}).items())[-_MOST_RATES:]
    if path is not None:
        with contextlib.suppress(OSError):  # it is measured again
            write_atomically(path, json.dumps(dict(rates), indent=0))
