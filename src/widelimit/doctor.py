"""What ``widelimit doctor`` shows: the machine, what was found and chosen, and whether it works.

`examine` looks and tests, `render` writes the page; only the first touches the machine.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from widelimit._version import __version__
from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.arrays import FloatArray
from widelimit.backends.base import Backend, Dtype, Pairs
from widelimit.backends.reference import ReferenceBackend
from widelimit.machine import available_memory, default_threads
from widelimit.network import Conv, Dense, Flatten, LocalAvgPool, Network, ReLU
from widelimit.program import Program, compile_networks

__all__ = [
    "Diagnosis",
    "InstructionSet",
    "Machine",
    "examine",
    "find_machine",
    "processor",
    "render",
]


_CUPY = ("cupy-cuda12x", "cupy-cuda13x")
_PACKAGES = ("numpy", "scipy", "scikit-learn", "zarr", "torch", *_CUPY)

_SHAPE = (7, 6, 3)  # of images of the self test: odd and even extents

# What a self test may differ from the reference by, relative: ten times what is seen.
_ALLOWED: dict[Dtype, float] = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Machine:
    """What a record of a run says about the machine.

    Parameters
    ----------
    system : str
        Operating system and architecture.
    cpu : str
        Model of the processor, with family, model and stepping where the system tells them.
    cores_usable, cores : int
        Processors that this process may use, and that the machine has.
    memory_free : int or None
        Bytes that this process can still take.
    gpu_driver : bool
        Whether an NVIDIA driver is installed.
    python : str
    packages : mapping of str to str or None
        Version of each package that can play a role; None: not installed.
    """

    system: str
    cpu: str
    cores_usable: int
    cores: int
    memory_free: int | None
    gpu_driver: bool
    python: str
    packages: Mapping[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class InstructionSet:
    """One compiled instruction set.

    Parameters
    ----------
    name : str
    supported : bool
        Whether this processor has it.
    lanes : tuple of int
        Numbers in one register: float32, float64.
    errors : mapping of str to float
        Largest relative error of the self test by dtype; empty if not supported.
    """

    name: str
    supported: bool
    lanes: tuple[int, int]
    errors: Mapping[Dtype, float]


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA card that can be computed on.

    Parameters
    ----------
    name : str
    target : str
        What kernels are compiled for.
    count : int
        How many of this kind there are.
    memory, free : int
        Bytes.
    software : str
        Versions of the driver and the compiler.
    errors : mapping of str to float
        Largest relative error of the self test by dtype.
    """

    name: str
    target: str
    count: int
    memory: int
    free: int
    software: str
    errors: Mapping[Dtype, float]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that the page shows.

    Parameters
    ----------
    version : str
    machine : Machine
    instruction_sets : tuple of InstructionSet
        Best first; empty if the compiled core cannot be loaded.
    override : str or None
        Value of ``WIDELIMIT_ISA``.
    chosen : str or None
        Instruction set in use; None if there is none.
    problems : tuple of str
        What keeps widelimit from working, each with a remedy; empty: all is well.
    gpu : Gpu or None
        The first card; None if there is none, or no CuPy.
    """

    version: str
    machine: Machine
    instruction_sets: tuple[InstructionSet, ...]
    override: str | None
    chosen: str | None
    problems: tuple[str, ...]
    gpu: Gpu | None = None


def parse_cpuinfo(text: str) -> str | None:
    """Return the name of the processor in the text of ``/proc/cpuinfo``, None if it has none."""
    found: dict[str, str] = {}
    for key, value in re.findall(r"^([\w ]+?)\s*:[ \t]*(.+)$", text, re.MULTILINE):
        found.setdefault(key, value.strip())
    name = found.get("model name") or found.get("Hardware") or found.get("cpu")
    numbers = (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
    detail = ", ".join(f"{word} {found[key]}" for word, key in numbers if key in found)
    return None if name is None else name + (f" ({detail})" if detail else "")


def processor() -> str:
    """Return the name of the processor."""
    name = None
    try:
        name = parse_cpuinfo(Path("/proc/cpuinfo").read_text("utf-8", "replace"))
        if name is None and sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            name = subprocess.check_output(command, text=True).strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return name or platform.processor() or platform.machine() or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_machine() -> Machine:
    """Look at the machine: quick, and without loading any of the packages."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=processor(),
        cores_usable=default_threads(),
        cores=os.cpu_count() or 1,
        memory_free=available_memory(),
        gpu_driver=shutil.which("nvidia-smi") is not None,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages={name: _version(name) for name in _PACKAGES},
    )


def _test_programs(shape: tuple[int, int, int]) -> list[Program]:
    """Programs that between them use every kind of step and readout."""
    biased = [Conv(5, b_std=0.3), ReLU(), Conv(1), Conv(3, b_std=0.1), ReLU()]
    networks = [
        cntk_gap(4),
        cntk_gap(3),
        cntk_vanilla(4),
        Network([*biased, LocalAvgPool(1), Flatten(), Dense()]),
    ]
    return [program for program, _ in compile_networks(networks, shape, ("ntk", "nngp"))]


def sample_sums(backend: Backend, dtype: Dtype) -> list[FloatArray]:
    """Compute small kernels by whole tiles and by single pairs: what the self test compares.

    Parameters
    ----------
    backend : Backend
    dtype : {"float32", "float64"}

    Returns
    -------
    list of ndarray of float64
        Sums of every tap, all positive.
    """
    n, shape = 6, _SHAPE
    images = np.random.default_rng(7).standard_normal((n, *shape))
    identity = np.arange(n)
    cancel = np.zeros(1, np.int32)
    rows, columns = (index.ravel() for index in np.indices((n, n)))
    tiles = [Pairs(np.arange(n), np.arange(n)), Pairs(rows, columns, pairwise=True)]
    sums: list[FloatArray] = []
    for program in _test_programs(shape):
        profile = backend.profile(program, images, identity, dtype)
        sums += [backend.sums(program, profile, profile, tile, cancel) for tile in tiles]
    return sums


def largest_error(got: Sequence[FloatArray], want: Sequence[FloatArray]) -> float:
    """Return the largest relative difference of two lists of arrays, nan if a value is."""
    errors = [np.max(np.abs(a - b) / np.abs(b)) for a, b in zip(got, want, strict=True)]
    return float(np.max(errors))


def examine() -> Diagnosis:
    """Look at the machine, test every instruction set that it has, and a card if there is one."""
    machine = find_machine()
    try:
        from widelimit.backends import cpu
    except ImportError as error:
        problem = f"the compiled core cannot be loaded ({error}): install widelimit again"
        return Diagnosis(__version__, machine, (), None, None, (problem,))

    problems: list[str] = []
    tested: list[InstructionSet] = []
    want = sample_sums(ReferenceBackend(), "float64")
    for name, supported in cpu.instruction_sets().items():
        errors: dict[Dtype, float] = {}
        lanes = (0, 0)
        if supported:
            backend = cpu.CpuBackend(name)
            lanes = (backend.lanes("float32"), backend.lanes("float64"))
            errors = {dtype: largest_error(sample_sums(backend, dtype), want) for dtype in _ALLOWED}
        tested.append(InstructionSet(name, supported, lanes, errors))
        problems += find_faults(name, errors)
    override = os.environ.get(cpu.ISA_VARIABLE) or None
    chosen = None
    try:
        chosen = cpu.chosen_instruction_set()
    except ValueError as error:
        problems.append(str(error))
    gpu = None
    if machine.gpu_driver and any(machine.packages[name] for name in _CUPY):
        try:
            gpu = _examine_gpu(want)
            problems += find_faults("cuda", gpu.errors, "use backend='cpu'")
        except Exception as error:  # whatever a driver, a compiler or a card may do
            problems.append(f"backend='cuda' cannot be used: {error}")
    given = (override, chosen, tuple(problems), gpu)
    return Diagnosis(__version__, machine, tuple(tested), *given)


def _examine_gpu(want: Sequence[FloatArray]) -> Gpu:
    """Test the cards: some seconds, the first time, to compile the kernels."""
    from widelimit.backends.cuda import CudaBackend
    from widelimit.backends.cuda.cupy_device import find_devices

    devices = find_devices()
    backend, device = CudaBackend(*devices), devices[0]
    programs = _test_programs(_SHAPE)
    backend.compile_all([(program, dtype) for program in programs for dtype in _ALLOWED])
    errors: dict[Dtype, float] = {
        dtype: largest_error(sample_sums(backend, dtype), want) for dtype in _ALLOWED
    }
    card, free = device.card, device.free_memory()
    return Gpu(card.name, card.target, len(devices), card.memory, free, device.software(), errors)


def find_faults(
    name: str,
    errors: Mapping[Dtype, float],
    remedy: str = "set WIDELIMIT_ISA to another instruction set",
) -> list[str]:
    """Return a line for each dtype whose self test is further from the reference than allowed.

    Parameters
    ----------
    name : str
        The instruction set, or "cuda".
    errors : mapping of str to float
        Largest relative error by dtype; nan is a fault, too.
    remedy : str
        What to do.
    """
    return [
        f"self test of {name} in {dtype}: error {error:.1e}, allowed {_ALLOWED[dtype]:.0e}: "
        f"{remedy}, and please report this page"
        for dtype, error in errors.items()
        if not error <= _ALLOWED[dtype]
    ]


def _size(n: int | None) -> str:
    return "unknown" if n is None else f"{n / 2**30:.1f} GiB"


def _gpu_line(diagnosis: Diagnosis) -> str:
    gpu, machine = diagnosis.gpu, diagnosis.machine
    if gpu is not None:
        size = f"{_size(gpu.memory)}, {_size(gpu.free)} free"
        name = f"{gpu.count} x {gpu.name}" if gpu.count > 1 else gpu.name
        use = "backend='cuda' computes on it, 'auto' what the processors would take long for"
        return f"{name}, {size}; {gpu.software}; {use}"
    if not machine.gpu_driver:
        return "none found; backend='cpu' is all there is"
    if any(machine.packages.get(name) for name in _CUPY):
        return "NVIDIA driver and CuPy found, but no card that works"
    return "NVIDIA driver found; for backend='cuda' install widelimit[cuda13] (or [cuda12])"


def render(diagnosis: Diagnosis) -> str:
    """Write the page as plain text."""
    machine = diagnosis.machine
    packages = [f"{name} {version}" for name, version in machine.packages.items() if version]
    missing = [name for name, version in machine.packages.items() if not version]
    if any(machine.packages.get(name) for name in _CUPY):  # one of them is enough
        missing = [name for name in missing if name not in _CUPY]
    optional = f"not installed: {', '.join(missing)}" if missing else "all installed"
    lines = [
        f"widelimit {diagnosis.version}",
        f"  Python     {machine.python}",
        f"  packages   {', '.join(packages)}",
        f"  optional   {optional}",
        f"  system     {machine.system}",
        f"  processor  {machine.cpu}",
        f"  cores      {machine.cores_usable} usable of {machine.cores}",
        f"  memory     {_size(machine.memory_free)} free for this process",
        f"  GPU        {_gpu_line(diagnosis)}",
        "",
        f"{'instruction set':<17}{'processor':<11}{'lanes f32/f64':<15}self test, error f32/f64",
    ]
    for isa in diagnosis.instruction_sets:
        mark = "->" if isa.name == diagnosis.chosen else "  "
        if isa.supported:
            errors = " / ".join(f"{error:.1e}" for error in isa.errors.values())
            state = "FAILED" if find_faults(isa.name, isa.errors) else "passed"
            rest = f"{'has it':<11}{isa.lanes[0]:>2} /{isa.lanes[1]:>2}{'':<8}{state}, {errors}"
        else:
            rest = f"{'lacks it':<11}-"
        lines.append(f"{mark} {isa.name:<14}{rest}")
    if diagnosis.gpu is not None:
        errors = " / ".join(f"{error:.1e}" for error in diagnosis.gpu.errors.values())
        state = "FAILED" if find_faults("cuda", diagnosis.gpu.errors) else "passed"
        lines.append(f"   {'cuda':<14}{diagnosis.gpu.target:<11}{'32 /32':<15}{state}, {errors}")
    lines.append("")
    if diagnosis.chosen is not None:
        reason = "the best that the processor has"
        if diagnosis.override:
            reason = "forced by WIDELIMIT_ISA"
        lines.append(f"chosen: {diagnosis.chosen} ({reason})")
    lines += [f"PROBLEM: {problem}" for problem in diagnosis.problems]
    if not diagnosis.problems:
        lines.append("all is well")
    return "\n".join(lines)
