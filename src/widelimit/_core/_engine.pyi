from typing import Any

import numpy as np
from numpy.typing import NDArray

class Plan:
    def __init__(
        self, h: int, w: int, c: int, in_scale: float, steps: list[Any], taps: list[Any]
    ) -> None: ...

class Batch32:
    def __init__(self, plan: Plan, *arrays: NDArray[Any]) -> None: ...

class Batch64:
    def __init__(self, plan: Plan, *arrays: NDArray[Any]) -> None: ...

def run32(
    isa: str,
    plan: Plan,
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
    plan: Plan,
    left: Batch64,
    right: Batch64,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    pairwise: bool,
    out: NDArray[np.float64],
    cancel: NDArray[np.int32],
) -> None: ...
def profile32(plan: Plan, *arrays: NDArray[Any]) -> None: ...
def profile64(plan: Plan, *arrays: NDArray[Any]) -> None: ...
def levels() -> list[tuple[str, bool, int, int]]: ...
def workspace_bytes(isa: str, plan: Plan, single: bool, pairwise: bool) -> int: ...
def fma_peak(isa: str, seconds: float) -> tuple[float, float]: ...
def mixed_peak(isa: str, seconds: float) -> tuple[float, float]: ...
def read_bandwidth(isa: str, bytes: int, seconds: float) -> float: ...
