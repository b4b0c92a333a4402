"""Gram matrices: tile grid, engine, and the function `kernel`."""

from widelimit.gram.kernel import kernel

__all__ = ["kernel"]
