"""Backends: implementations of the slice pass, and of the matrix product of dense networks."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

from widelimit.backends.base import Backend
from widelimit.backends.dense import DenseBackend
from widelimit.program import Program

__all__ = ["Backend", "BackendName", "get_backend", "serving"]

BackendName: TypeAlias = Literal["auto", "reference", "cpu", "cuda"]


def get_backend(name: BackendName) -> Backend:
    """Return a backend by name; "auto" is the fastest one that is installed.

    Raises
    ------
    ValueError
        If there is no backend of this name.
    """
    match name:
        case "auto" | "cpu":
            from widelimit.backends.cpu import CpuBackend

            return CpuBackend()
        case "reference":
            from widelimit.backends.reference import ReferenceBackend

            return ReferenceBackend()
        case "cuda":
            return _cuda()
        case _:
            raise ValueError(f'backend must be "auto", "cpu", "cuda" or "reference", got {name!r}')


@lru_cache(maxsize=1)
def _cuda() -> Backend:
    """Return the backend of the first card; it keeps compiled kernels."""
    from widelimit.backends.cuda import CudaBackend
    from widelimit.backends.cuda.cupy_device import find_device

    return CudaBackend(find_device())


def serving(program: Program, backend: Backend) -> Backend:
    """Return the backend that computes a program: this one, or the one for dense networks."""
    return DenseBackend() if program.is_dense else backend
