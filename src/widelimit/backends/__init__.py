"""Backends: implementations of the slice pass, and of the matrix product of dense networks."""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal, TypeAlias, get_args

from widelimit.backends.base import Backend
from widelimit.backends.dense import DenseBackend
from widelimit.backends.lowered import missing
from widelimit.machine import default_threads
from widelimit.program import Program

__all__ = ["Backend", "BackendName", "choose", "get_backend", "serving"]

BackendName: TypeAlias = Literal["auto", "reference", "cpu", "cuda"]

# Element-layers for each processor that a card is worth: it takes as long to start and, the first
# time, to compile, as a processor does for these (20 seconds, about).
_WORTH = 6e10


def choose(name: BackendName, work: float) -> BackendName:
    """Return the name of a backend; "auto" is a card, if there is one and the work is worth it.

    Parameters
    ----------
    name : BackendName
    work : float
        Element-layers of the whole matrix, so that parts of it choose alike.

    Raises
    ------
    ValueError
        If there is no backend of this name.
    """
    if name not in get_args(BackendName):
        names = '"auto", "cpu", "cuda" or "reference"'
        raise ValueError(f"backend must be {names}, got {name!r}")
    if name != "auto":
        return name
    if work < _WORTH * default_threads() or find_spec("cupy") is None:
        return "cpu"
    from widelimit.backends.cuda.device import LostCard

    try:
        get_backend("cuda")
    except LostCard as error:
        warnings.warn(f"{error}. The processor computes instead", RuntimeWarning, stacklevel=4)
        return "cpu"
    except RuntimeError:
        return "cpu"
    return "cuda"


def get_backend(name: BackendName, *, worker: bool = False) -> Backend:
    """Return a backend by name.

    Parameters
    ----------
    name : {"cpu", "cuda", "reference"}
        See `choose`.
    worker : bool
        Of an executor: it has the first card that it sees alone, the others are its neighbours'.

    Raises
    ------
    RuntimeError
        If there is no card.
    """
    match name:
        case "cpu":
            from widelimit.backends.cpu import CpuBackend

            return CpuBackend()
        case "reference":
            from widelimit.backends.reference import ReferenceBackend

            return ReferenceBackend()
        case "cuda":
            return _cuda(worker)
        case _:
            raise ValueError(f"no backend is {name!r}")


@lru_cache(maxsize=2)
def _cuda(worker: bool) -> Backend:
    """Return the backend of all cards, or of the first; it keeps compiled kernels."""
    from widelimit.backends.cuda import CudaBackend
    from widelimit.backends.cuda.cupy_device import find_devices

    return CudaBackend(*find_devices()[: 1 if worker else None])


def serving(program: Program, backend: Backend) -> Backend:
    """Return the backend that computes a program: this one, or the one for dense networks.

    Raises
    ------
    ValueError
        If the backend is a card, and cannot compute the program.
    """
    if program.is_dense:
        return getattr(backend, "dense", None) or DenseBackend()
    if backend.name == "cuda" and (lacks := missing(program)):
        networks = ", ".join(map(str, program.networks))
        raise ValueError(
            f'backend="cuda" cannot compute {" and ".join(lacks)} yet, got '
            f'{networks:.400}: use backend="auto" or "cpu"'
        )
    return backend
