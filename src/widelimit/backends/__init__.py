"""Backends: implementations of the slice pass."""

from __future__ import annotations

from typing import Literal, TypeAlias

from widelimit.backends.base import Backend

__all__ = ["Backend", "BackendName", "get_backend"]

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
            raise ValueError('backend="cuda" is to come: use "cpu" or "auto" until it is there')
        case _:
            raise ValueError(f'backend must be "auto", "reference" or "cpu", got {name!r}')
