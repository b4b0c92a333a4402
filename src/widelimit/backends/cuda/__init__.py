"""Sums over slices on an NVIDIA card (docs/gpu.md)."""

from widelimit.backends.cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
