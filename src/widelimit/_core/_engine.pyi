from typing import Any

import numpy as np
from numpy.typing import NDArray

class Program:
    def __init__(
        self,
        h: int,
        w: int,
        c: int,
        levels: list[Any],
        stages: list[Any],
        taps: list[Any],
        closed: bool,
    ) -> None: ...

class Batch32:
    def __init__(self, program: Program, *arrays: NDArray[Any]) -> None: ...

class Batch64:
    def __init__(self, program: Program, *arrays: NDArray[Any]) -> None: ...

def run32(
    isa: str,
    program: Program,
    left: Batch32,
    right: Batch32,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    pairwise: bool,
    out: NDArray[np.float64],
    cancel: NDArray[np.int32],
) -> None: ...
def run64(
    isa: str,
    program: Program,
    left: Batch64,
    right: Batch64,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    pairwise: bool,
    out: NDArray[np.float64],
    cancel: NDArray[np.int32],
) -> None: ...
def profile32(
    program: Program,
    x: NDArray[np.float64],
    bias: NDArray[np.float64],
    images: NDArray[Any],
    profiles: NDArray[Any],
    biases: NDArray[Any],
    scale: NDArray[np.float64],
    diagonal: NDArray[np.float64],
) -> None: ...
def profile64(
    program: Program,
    x: NDArray[np.float64],
    bias: NDArray[np.float64],
    images: NDArray[Any],
    profiles: NDArray[Any],
    biases: NDArray[Any],
    scale: NDArray[np.float64],
    diagonal: NDArray[np.float64],
) -> None: ...
def self_profiles(
    isa: str,
    program: Program,
    images: NDArray[np.float64],
    biases: NDArray[np.float64],
    profiles: NDArray[np.float64],
    cancel: NDArray[np.int32],
) -> None: ...
def instruction_sets() -> list[tuple[str, bool, int, int]]: ...
def workspace_bytes(isa: str, program: Program, single: bool, pairwise: bool) -> int: ...
def fma_peak(isa: str, seconds: float) -> tuple[float, float]: ...
def mixed_peak(isa: str, seconds: float) -> tuple[float, float]: ...
def read_bandwidth(isa: str, bytes: int, seconds: float) -> float: ...
