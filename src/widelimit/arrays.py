"""Names of the types of arrays."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "IntArray", "Rows"]

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]


class Rows(Protocol):
    """Samples that are read some at a time: an ndarray ``(n, ...)``, or what reads like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, ...)``."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[Any]: ...
