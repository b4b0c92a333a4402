"""Warnings that point to the line that called the package."""

from __future__ import annotations

import inspect
import warnings

__all__ = ["warn_caller"]


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn as from the line outside the package that led here."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals["__name__"].startswith("widelimit."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
