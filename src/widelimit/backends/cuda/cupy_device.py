"""A card through CuPy and NVRTC."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.backends.cuda.device import CALLS, Card, Launch, LostCard, OutOfMemory

__all__ = ["CupyDevice", "compile_cubin", "compiler_version", "find_devices"]

_OPTIONS = ("--std=c++17", "--fmad=false")
_COMPILE = (
    "import sys; from widelimit.backends.cuda.cupy_device import compile_cubin; "
    "sys.stdout.buffer.write(compile_cubin(sys.stdin.read(), sys.argv[1]))"
)


def compiler_version() -> str:
    """Return the version of NVRTC."""
    nvrtc: Any = import_module("cupy.cuda").nvrtc
    return ".".join(map(str, nvrtc.getVersion()))


def compile_cubin(source: str, target: str) -> bytes:
    """Compile a source to machine code of a target; needs no card and no driver.

    Raises
    ------
    RuntimeError
        With the messages of the compiler.
    """
    nvrtc: Any = import_module("cupy.cuda").nvrtc
    program = nvrtc.createProgram(source, "widelimit.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"-arch={target}", *_OPTIONS])
        return nvrtc.getCUBIN(program) + b"\0"  # CuPy leaves out the last byte
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"NVRTC could not compile for {target}: {error}\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)


class CupyDevice:
    """One card.

    Parameters
    ----------
    number : int
        Among the cards that this process sees.
    """

    def __init__(self, number: int = 0) -> None:
        cupy: Any = import_module("cupy")
        self._cupy, self._cupyx = cupy, import_module("cupyx")
        self._number = number
        self._process = os.getpid()
        with cupy.cuda.Device(number) as device:
            name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
            attributes = device.attributes
            self.card = Card(
                name,
                f"sm_{device.compute_capability}",
                attributes["MultiProcessorCount"],
                attributes["MaxSharedMemoryPerBlockOptin"],
                device.mem_info[1],
            )
            self._streams: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(CALLS):
                self._streams.put(cupy.cuda.Stream(non_blocking=True))

    @contextmanager
    def _named(self) -> Generator[None]:
        """Name what keeps the card from being used, and what to do about it."""
        if os.getpid() != self._process:
            raise LostCard(
                "a card cannot be used in a process that was forked from one that used it: start "
                'processes by multiprocessing.get_context("spawn")'
            )
        try:
            yield
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise OutOfMemory(str(error)) from error
        except (
            self._cupy.cuda.runtime.CUDARuntimeError,
            self._cupy.cuda.driver.CUDADriverError,
        ) as error:
            raise LostCard(
                f"{self.card.name} failed: {error}. What is in a store is whole: start again in a "
                "new process, and the rest is computed. If it fails again, look at nvidia-smi: "
                "another process may have taken the card, or its driver needs a restart"
            ) from error

    @contextmanager
    def turn(self) -> Generator[None]:
        """Wait for a stream, and make it the current one of this thread."""
        with self._named():
            stream = self._streams.get()
            try:
                with self._cupy.cuda.Device(self._number), stream:
                    yield
            finally:
                self._streams.put(stream)

    def _stream(self) -> Any:
        return self._cupy.cuda.get_current_stream()

    def software(self) -> str:
        """Return the versions of the driver, of CuPy and of the compiler."""
        driver = self._cupy.cuda.runtime.driverGetVersion()
        version = f"{driver // 1000}.{driver % 1000 // 10}"
        return (
            f"driver for CUDA {version}, CuPy {self._cupy.__version__}, NVRTC {compiler_version()}"
        )

    def compiler(self) -> str:
        """Return the version of NVRTC and the target."""
        return f"NVRTC {compiler_version()} {self.card.target} {' '.join(_OPTIONS)}"

    def compile(self, source: str) -> bytes:
        """Compile a source in a process of its own: NVRTC compiles one at a time in each.

        Raises
        ------
        RuntimeError
            With the messages of the compiler.
        """
        command = [sys.executable, "-c", _COMPILE, self.card.target]
        done = subprocess.run(command, input=source.encode(), capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace")[-4000:])
        return done.stdout

    def load(self, path: Path, name: str, shared: int) -> Any:
        """Return a function of compiled code."""
        function = self._cupy.RawModule(path=str(path)).get_function(name)
        if shared:  # 48 KiB go without saying, less what the kernel itself declares
            function.max_dynamic_shared_size_bytes = shared
        return function

    def put(self, values: NDArray[Any]) -> Any:
        """Copy an array to the card."""
        stream = self._stream()
        array = self._cupy.empty(values.shape, values.dtype)
        array.set(np.ascontiguousarray(values), stream)
        stream.synchronize()  # other threads use it, in streams of their own
        return array

    def empty(self, n: int, dtype: str) -> Any:
        """Return memory for n numbers."""
        return self._cupy.empty(n, dtype)

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[Any]) -> None:
        """Start a kernel in the stream of this turn."""
        values = tuple(np.int32(a) if isinstance(a, int) else a for a in arguments)
        kernel((launch.blocks,), (launch.threads,), values, shared_mem=launch.shared)

    def host_empty(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Return an array in pages that stay in memory."""
        with self._named():
            return self._cupyx.empty_pinned(shape, dtype)

    def product(self, x: Any, z: Any) -> Any:
        """Return ``x @ z.T``, by cuBLAS."""
        return self._cupy.matmul(x, z.T)

    def fetch(self, array: Any, outs: Sequence[NDArray[Any]]) -> None:
        """Copy parts of an array from the card."""
        stream = self._stream()
        start = 0
        for out in outs:
            array[start : start + out.size].get(stream=stream, out=out.reshape(-1), blocking=False)
            start += out.size
        stream.synchronize()

    def free_memory(self) -> int:
        """Return the bytes that are free, or held by the pool of this card for what comes next."""
        with self._named(), self._cupy.cuda.Device(self._number) as card:
            return card.mem_info[0] + self._cupy.get_default_memory_pool().free_bytes()


def find_devices() -> list[CupyDevice]:
    """Return all cards that this process sees and that are of the kind of the first.

    Raises
    ------
    RuntimeError
        If there is none, or no CuPy; with what to do. `LostCard` if there is one that fails.
    """
    try:
        cupy: Any = import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            'backend="cuda" needs CuPy, which could not be imported: pip install '
            "'widelimit[cuda13]' (or [cuda12], for a driver older than 580)"
        ) from error
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f'backend="cuda" needs an NVIDIA driver: {error}. Install or update it, or use '
            'backend="cpu"'
        ) from error
    if count == 0:
        raise RuntimeError('backend="cuda" found no card: use backend="cpu"')
    try:
        names = [runtime.getDeviceProperties(number)["name"] for number in range(count)]
        return [CupyDevice(number) for number, name in enumerate(names) if name == names[0]]
    except (runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as error:
        raise LostCard(
            f"a card is there, but cannot be used: {error}. Another process may have it for itself "
            "(nvidia-smi shows them), or it has failed: wait, hide it by CUDA_VISIBLE_DEVICES, or "
            'use backend="cpu"'
        ) from error
