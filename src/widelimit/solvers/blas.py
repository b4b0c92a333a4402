"""BLAS and LAPACK on row-first tiles, in place, without the lock of the interpreter.

SciPy's own wrappers keep the lock while they work, so that tiles could neither be computed side by
side nor read meanwhile. These call the same routines, of SciPy's documented interface for other
languages (`scipy.linalg.cython_blas`), through ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arithmetic"]

_Array = NDArray[Any]


@cache
def _routine(name: str) -> Callable[..., None]:
    """Return a routine of BLAS or LAPACK; all of its arguments are pointers."""
    for module in ("cython_blas", "cython_lapack"):
        table: dict[str, Any] = import_module(f"scipy.linalg.{module}").__pyx_capi__
        if name in table:
            get_name = ctypes.pythonapi.PyCapsule_GetName
            get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
            get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
            get_pointer.restype = ctypes.c_void_p
            get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
            signature: bytes = get_name(table[name])
            if b"int *" not in signature:
                raise RuntimeError(f"{name} of SciPy takes {signature.decode()}, not int *")
            count = signature.count(b",") + 1
            prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)
            return prototype(get_pointer(table[name], signature))
    raise RuntimeError(f"SciPy has no routine {name}")


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _char(value: bytes) -> Any:
    return ctypes.byref(ctypes.c_char(value))


@dataclass(frozen=True)
class Arithmetic:
    """Operations in one dtype. Every array is row-first and contiguous, of that dtype.

    The routines are column-first, and see the transpose of what is passed.
    """

    dtype: np.dtype[Any]

    def _call(self, name: str, *arguments: Any) -> None:
        kind = "s" if self.dtype == np.float32 else "d"
        _routine(kind + name)(*arguments)

    def _scalar(self, value: float) -> Any:
        single = self.dtype == np.float32
        return ctypes.byref(ctypes.c_float(value) if single else ctypes.c_double(value))

    def _pointer(self, array: _Array) -> Any:
        if array.dtype != self.dtype or not array.flags.c_contiguous:
            raise ValueError(f"an array must be contiguous {self.dtype}, got {array.dtype}")
        return ctypes.c_void_p(array.ctypes.data)

    def subtract_product(self, c: _Array, a: _Array, b: _Array, *, transposed: bool = True) -> None:
        """C -= A B^T, or A B if not `transposed`."""
        (m, k), n = a.shape, c.shape[1]
        if not c.size or not k:
            return
        self._call(
            "gemm",
            _char(b"T" if transposed else b"N"),
            _char(b"N"),
            _int(n),
            _int(m),
            _int(k),
            self._scalar(-1.0),
            self._pointer(b),
            _int(k if transposed else n),
            self._pointer(a),
            _int(k),
            self._scalar(1.0),
            self._pointer(c),
            _int(n),
        )

    def _triangular(self, side: bytes, transpose: bytes, x: _Array, triangle: _Array) -> None:
        rows, columns = x.shape
        if x.size:
            self._call(
                "trsm",
                _char(side),
                _char(b"U"),  # a lower triangle, transposed
                _char(transpose),
                _char(b"N"),
                _int(columns),
                _int(rows),
                self._scalar(1.0),
                self._pointer(triangle),
                _int(len(triangle)),
                self._pointer(x),
                _int(columns),
            )

    def divide(self, x: _Array, triangle: _Array) -> None:
        """X := X T^-T for a lower triangle T."""
        self._triangular(b"L", b"T", x, triangle)

    def solve(self, x: _Array, triangle: _Array) -> None:
        """X := T^-1 X for a lower triangle T."""
        self._triangular(b"R", b"N", x, triangle)

    def solve_transposed(self, x: _Array, triangle: _Array) -> None:
        """X := T^-T X for a lower triangle T."""
        self._triangular(b"R", b"T", x, triangle)

    def factor(self, a: _Array) -> int:
        """A := chol(A), lower, zero above; return LAPACK's info, i if pivot i - 1 fails."""
        n, info = len(a), ctypes.c_int(0)
        self._call("potrf", _char(b"U"), _int(n), self._pointer(a), _int(n), ctypes.byref(info))
        a[np.triu_indices(n, 1)] = 0
        return info.value
