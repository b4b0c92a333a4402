"""The device code of the CUDA backend on the processor: all that a card does, but its speed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from widelimit.backends.cuda.device import Card, Launch

COMPILER = os.environ.get("CXX", "c++")
OPTIONS = ("-std=c++17", "-fPIC", "-shared", "-w")


class HostDevice:
    """Compiles kernels with a C++ compiler and runs their blocks one after the other.

    Parameters
    ----------
    shared_bytes : int
        Shared memory that a block may have: decides which kernels are chosen.
    faults : sequence of (old, new)
        Edits of the source, to see that tests notice.
    quick : bool
        To compile: what is tried once, as faults are, takes the compiler longer than it runs.
    """

    def __init__(
        self,
        shared_bytes: int = 200_000,
        faults: Sequence[tuple[str, str]] = (),
        *,
        quick: bool = False,
    ) -> None:
        self.card = Card("the host", "host", 2, shared_bytes, 2**33)
        self.faults = tuple(faults)
        self.options = (*OPTIONS, "-O0" if faults or quick else "-O1")
        self.compiled = self.planted = 0
        self.launched: list[str] = []

    def compiler(self) -> str:
        return f"{COMPILER} {' '.join(self.options)} {self.faults}"

    def compile(self, source: str) -> bytes:
        for old, new in self.faults:
            self.planted += source.count(old)
            source = source.replace(old, new)
        folder = Path(tempfile.mkdtemp(prefix="widelimit-host-"))
        try:
            (folder / "kernel.cpp").write_text(source)
            command = [*COMPILER.split(), *self.options, "kernel.cpp", "-o", "kernel.so"]
            made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if made.returncode:
                raise RuntimeError(made.stderr[:4000])
            self.compiled += 1
            return (folder / "kernel.so").read_bytes()
        finally:
            shutil.rmtree(folder)

    def load(self, path: Path, name: str, shared: int) -> Any:
        function = ctypes.CDLL(str(path))[name]
        function.restype = None
        return function

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def put(self, values: np.ndarray) -> np.ndarray:
        return np.array(values, order="C")

    def empty(self, n: int, dtype: str) -> np.ndarray:
        values = np.empty(n, dtype)
        values[...] = np.nan  # what is not written shows
        return values

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[Any]) -> None:
        self.launched.append(kernel.__name__)
        values = [
            ctypes.c_int(a) if isinstance(a, int) else ctypes.c_void_p(a.ctypes.data)
            for a in arguments
        ]
        kernel(ctypes.c_int(launch.blocks), *values)

    def host_empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.full(shape, np.nan, dtype)

    def product(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        assert x.shape == z.shape  # one shape: one order of sums
        self.launched.append("product")
        return x @ z.T.copy()  # NumPy takes x @ x.T for another product, with other sums

    def fetch(self, array: np.ndarray, outs: Sequence[np.ndarray]) -> None:
        start = 0
        for out in outs:
            assert out.flags.c_contiguous
            out.reshape(-1)[...] = array[start : start + out.size]
            start += out.size

    def free_memory(self) -> int:
        return 2**33
