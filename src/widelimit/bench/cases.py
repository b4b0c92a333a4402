"""What is timed: a benchmark is a measurement that can be repeated.

A measurement takes the function that users call, from checked inputs to the finished matrix.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit._core import _engine
from widelimit.backends.base import Dtype, Pairs
from widelimit.backends.cpu import (
    ISA_VARIABLE,
    CpuBackend,
    chosen_instruction_set,
    instruction_sets,
)
from widelimit.backends.cut import triangle
from widelimit.bench.images import Images
from widelimit.machine import default_threads
from widelimit.matrices import gram, kernel
from widelimit.network import Network
from widelimit.program import Kind, compile_family, compile_networks

__all__ = [
    "Benchmark",
    "Setting",
    "bandwidth",
    "bare_core",
    "interrupt",
    "lane_sizes",
    "peak",
    "scratch",
    "stored_gram",
    "timed_kernel",
]

Shape = tuple[int, int, int]

# Element-layers per second to choose the number of images by: float32, float64.
_EXPECTED = {"avx512": (3e9, 1.2e9), "avx2": (1.2e9, 3e8), "sse4": (3e8, 1e8), "plain": (3e8, 1e8)}
_MOST_IMAGES = 1024


@dataclass(frozen=True)
class Benchmark:
    """A measurement that can be repeated.

    Parameters
    ----------
    name : str
        Different for each of a group.
    measure : callable
        Measures once; returns a number in `unit`.
    unit : str
        "s" unless it is a rate.
    pairs, element_layers : int
        Work of one measurement; 0 if it computes no kernel.
    detail : mapping
        What else a reader of the record wants to know.
    """

    name: str
    measure: Callable[[], float]
    unit: str = "s"
    pairs: int = 0
    element_layers: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Setting:
    """What all measurements of a run share.

    Parameters
    ----------
    images : Images
    isa : str
        The instruction set in use, one of `instruction_sets`.
    supported : tuple of str
        All instruction sets of this processor, best first.
    cores : int
        Processors that this process may use.
    quick : bool
        One short repetition of everything that is not slow, to see that it works.
    """

    images: Images
    isa: str
    supported: tuple[str, ...]
    cores: int
    quick: bool = False

    @classmethod
    def prepare(cls, images: Path | None, seed: int, *, quick: bool = False) -> Setting:
        """Look at the machine and read the images.

        Raises
        ------
        OSError, ValueError
            If the file of images cannot be used, or ``WIDELIMIT_ISA`` is wrong.
        """
        isa = chosen_instruction_set()
        supported = tuple(name for name, has in instruction_sets().items() if has)
        return cls(Images(images, seed), isa, supported, default_threads(), quick)

    @property
    def seconds(self) -> float:
        """Time that one measurement of a kernel should take."""
        return 0.02 if self.quick else 1.0


def lane_sizes(
    element_layers: int, lanes: int, isa: str, dtype: Dtype, seconds: float
) -> tuple[int, int]:
    """Choose a block of the kernel matrix that fills whole lane groups and takes about so long.

    Parameters
    ----------
    element_layers : int
        Cost of one pair.
    lanes : int
        Size of a lane group.
    isa : str
    dtype : {"float32", "float64"}
    seconds : float

    Returns
    -------
    n1, n2 : int
        At least 1 and `lanes`; about a square if there are many.
    """
    speed = _EXPECTED[isa][0 if dtype == "float32" else 1]
    group_rows = max(1, round(seconds * speed / (element_layers * lanes)))
    groups = min(max(1, isqrt(group_rows // lanes)), _MOST_IMAGES // lanes)
    return group_rows // groups, groups * lanes


@contextmanager
def _isa(name: str) -> Generator[None]:
    """Force an instruction set, as a user would."""
    before = os.environ.get(ISA_VARIABLE)
    os.environ[ISA_VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[ISA_VARIABLE]
        else:
            os.environ[ISA_VARIABLE] = before


@contextmanager
def _one_core() -> Generator[None]:
    """Keep this thread, and those it starts, on one core: moving costs the contents of caches."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def timed_kernel(
    setting: Setting,
    name: str,
    networks: Network | Sequence[Network],
    shape: Shape = (32, 32, 3),
    *,
    dtype: Dtype = "float32",
    kinds: tuple[Kind, ...] = ("ntk",),
    isa: str | None = None,
    threads: int = 1,
    sizes: tuple[int, int] | None = None,
    gram: int | None = None,
    square: bool = False,
    seconds: float | None = None,
) -> Benchmark:
    """Make the benchmark that times one call of `kernel`.

    Parameters
    ----------
    setting : Setting
    name : str
    networks : Network or sequence of Network
    shape : tuple of int
    dtype, kinds, threads
        As for `kernel`.
    isa : str or None
        None: that of the setting.
    sizes : tuple of int or None
        Number of rows and columns, which are different images; None: so many that a call takes
        `seconds`.
    gram : int or None
        Instead of `sizes`: the Gram matrix of so many images,
    square : bool
        ... all of it, as if it were not symmetric.
    seconds : float or None
        None: that of the setting.
    """
    listed = [networks] if isinstance(networks, Network) else list(networks)
    isa = setting.isa if isa is None else isa
    cost = sum(p.element_layers for p, _ in compile_networks(listed, shape, kinds))
    x2: NDArray[Any] | None = None
    if gram is not None:
        x1 = setting.images.take(gram, shape)
        x2 = x1 if square else None
        pairs = gram * gram if square else gram * (gram + 1) // 2
    else:
        if sizes is None:
            lanes = CpuBackend(isa).lanes(dtype)
            wanted = setting.seconds if seconds is None else seconds
            sizes = lane_sizes(cost, lanes, isa, dtype, wanted)
        both = setting.images.take(sum(sizes), shape)
        x1, x2 = both[: sizes[0]], both[sizes[0] :]
        pairs = len(x1) * len(x2)

    def measure() -> float:
        with _isa(isa):
            start = perf_counter()
            kernel(listed, x1, x2, kind=kinds, backend="cpu", dtype=dtype, threads=threads)
            return perf_counter() - start

    def measure_on_one_core() -> float:
        with _one_core():
            return measure()

    detail = {
        "networks": [network.to_json() for network in listed],
        "kinds": kinds,
        "shape": shape,
        "n1": len(x1),
        "n2": None if x2 is None else len(x2),
        "dtype": dtype,
        "isa": isa,
        "threads": threads,
    }
    timed = measure_on_one_core if threads == 1 else measure
    return Benchmark(name, timed, "s", pairs, pairs * cost, detail)


def stored_gram(setting: Setting, name: str, network: Network, n: int) -> Benchmark:
    """Make the benchmark that times `gram` into a new store, float32, on all cores."""
    images = setting.images.take(n, (32, 32, 3))

    def measure() -> float:
        with _isa(setting.isa), tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            gram(network, images, store=Path(folder) / "k.zarr", threads=setting.cores)
            return perf_counter() - start

    detail = {"networks": [network.to_json()], "n1": n, "threads": setting.cores}
    return Benchmark(name, measure, "s", n * (n + 1) // 2, detail=detail)


def bare_core(setting: Setting, name: str, network: Network, n: int) -> Benchmark:
    """Make the benchmark of the compiled core alone on a Gram matrix, float32, on all cores.

    Profiles, and the sums over slices of all tiles: no checks, no kernel values, nothing kept.
    """
    images = setting.images.take(n, (32, 32, 3)).astype(np.float64)
    program = compile_family([network], (32, 32, 3), ("ntk",))
    backend = CpuBackend(setting.isa)
    tiles = list(triangle(n, backend.lanes("float32"), 512, pack=False))
    cancel = np.zeros(1, np.int32)

    def measure() -> float:
        start = perf_counter()
        profile = backend.profile(program, images, np.arange(n), "float32")

        def compute(tile: Pairs) -> None:
            backend.sums(program, profile, profile, tile, cancel)

        with ThreadPoolExecutor(setting.cores) as pool:
            for _ in pool.map(compute, tiles):
                pass
        return perf_counter() - start

    detail = {"networks": [network.to_json()], "n1": n, "threads": setting.cores}
    return Benchmark(name, measure, "s", n * (n + 1) // 2, detail=detail)


def scratch(setting: Setting, name: str, network: Network) -> Benchmark:
    """Make the benchmark that asks for the memory of one lane group of a block, float32."""
    program = compile_family([network], (32, 32, 3), ("ntk",))
    size = CpuBackend(setting.isa).scratch_bytes(program, "float32", pairwise=False)
    detail = {"networks": [network.to_json()], "isa": setting.isa}
    return Benchmark(name, lambda: float(size), "B", detail=detail)


def peak(name: str, isa: str, dtype: Dtype, *, mixed: bool = False) -> Benchmark:
    """Make the benchmark that measures the arithmetic peak of one core, in vector instructions.

    Parameters
    ----------
    name : str
    isa : str
    dtype : {"float32", "float64"}
    mixed : bool
        False: fused multiply-adds alone. True: one addition to two of them.
    """
    place = 0 if dtype == "float32" else 1

    def measure() -> float:
        with _one_core():
            if mixed:
                return _engine.mixed_peak(isa, 0.04)[place]
            return _engine.fma_peak(isa, 0.04)[place] / (2 * CpuBackend(isa).lanes(dtype))

    return Benchmark(name, measure, "instructions/s", detail={"isa": isa, "dtype": dtype})


def bandwidth(name: str, isa: str, size: int) -> Benchmark:
    """Make the benchmark that measures how fast one core reads a buffer of `size` bytes."""

    def measure() -> float:
        with _one_core():
            return _engine.read_bandwidth(isa, size, 0.05)

    return Benchmark(name, measure, "B/s", detail={"bytes": size})


# The parent may have been told to ignore SIGINT (a shell does that to what it starts with "&").
_CHILD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
import widelimit
network = widelimit.cntk_gap({depth})
x = np.random.default_rng(0).random({shape}, dtype=np.float32)
print("started", flush=True)
widelimit.kernel(network, x)
print("finished", flush=True)
"""


def interrupt(name: str, shape: Shape, n: int, depth: int) -> Benchmark:
    """Make the benchmark that presses Ctrl-C while CNTK-GAP is computed, and waits for the exit.

    Parameters
    ----------
    name : str
    shape : tuple of int
    n : int
        Number of images: so many that they take more than a few seconds.
    depth : int
    """
    delays = itertools.cycle([0.4, 1.1, 1.7, 0.7, 2.3])  # of the signal after the start of the call
    code = _CHILD.format(depth=depth, shape=(n, *shape))

    def measure() -> float:
        return _seconds_to_exit(code, next(delays))

    return Benchmark(name, measure, detail={"shape": shape, "n1": n, "depth": depth})


def _seconds_to_exit(code: str, delay: float) -> float:
    """Run a program, send it SIGINT a while after it has written a line, time its end."""
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        killer = threading.Timer(60.0, child.kill)
        killer.start()
        try:
            first = child.stdout.readline()
            if first != "started\n":
                raise RuntimeError(f"the program to interrupt did not start: it wrote {first!r}")
            # Not time.sleep: a child that ends early must not be waited for.
            try:
                child.wait(delay)
            except subprocess.TimeoutExpired:
                pass
            else:
                raise RuntimeError(f"the program to interrupt ended by itself within {delay} s")
            start = perf_counter()
            child.send_signal(signal.SIGINT)
            child.wait()
            elapsed = perf_counter() - start
            if child.stdout.read() or child.returncode == 0:
                raise RuntimeError("the program went on after the interrupt")
            if child.returncode == -signal.SIGKILL:
                raise RuntimeError("the interrupt was ignored for a minute")
            return elapsed
        finally:
            killer.cancel()
            child.kill()
