"""PyTorch, imported when it is needed; without it, what says how to get it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["load_torch"]


def load_torch() -> Any:
    """Return the module torch, whose parts used here have no complete types.

    Raises
    ------
    ImportError
        If it is not installed, with the extra that installs it.
    """
    try:
        return import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":  # it is there, and broken
            raise
        raise ImportError(
            "modules of PyTorch are built and read with PyTorch, which is not installed: "
            'pip install "widelimit[torch]"; FiniteNetwork needs NumPy alone'
        ) from error
