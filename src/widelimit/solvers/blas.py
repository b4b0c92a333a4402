"""BLAS and LAPACK on row-first arrays, in place, without the lock of the interpreter.

SciPy's own wrappers keep the lock while they work, so that tiles could neither be computed side by
side nor read meanwhile, and Ctrl-C waits for them. These call the same routines, of SciPy's
documented interface for other languages (`scipy.linalg.cython_blas`), through ctypes. What may take
long runs on a thread of its own, while the main thread waits for Ctrl-C as well.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from widelimit.machine import blas_on_one_thread
from widelimit.matrices.inputs import check_threads
from widelimit.solvers.solution import Unavailable

__all__ = [
    "MAX_EIGENVECTORS",
    "Arithmetic",
    "Crew",
    "check_eigenvectors",
    "factor_in_place",
    "run_interruptibly",
]

MAX_EIGENVECTORS = 32_766
"""Samples whose eigenvectors can be found: LAPACK's dsyevd counts its workspace, of 2 n^2 + 6 n + 1
entries, in 32 bits. Beyond that it takes any workspace for large enough, and writes past its end.
NVIDIA's routine has the same limit, or a smaller one (CUDALibrarySamples, issue 246)."""

_BLOCK = 1024
_PATIENCE = 0.1  # seconds after which Ctrl-C is looked for, at the latest

_Array = NDArray[Any]
_Result = TypeVar("_Result")


def run_interruptibly(work: Callable[[], _Result]) -> _Result:
    """Do work that cannot be stopped, and let KeyboardInterrupt through meanwhile.

    An interrupted call leaves the work behind: it ends by itself, on a thread that does not keep
    the process alive, in arrays that nobody looks at any more. Signals reach the main thread only:
    on another one this is ``work()``.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="widelimit-lapack", daemon=True).start()
    while not future.done():  # a signal just before a wait does not end it
        wait([future], _PATIENCE)
    return future.result()


def check_eigenvectors(n: int) -> None:
    """Refuse to find the eigenvectors of too many samples.

    Raises
    ------
    Unavailable
        Beyond `MAX_EIGENVECTORS`.
    """
    if n > MAX_EIGENVECTORS:
        raise Unavailable(
            f"eigenvectors can be found for at most {MAX_EIGENVECTORS:,} samples, got {n:,}: "
            "ridge='loo', a time, and a singular kernel without a ridge need them; give ridge a "
            "number above 0 and leave time out, or use fewer samples"
        )


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


def _pitch(array: _Array) -> Any:
    """Return the distance of two rows, in entries."""
    return _int(max(1, array.shape[1], array.strides[0] // array.itemsize))


def _address(array: _Array) -> Any:
    """Return a pointer that keeps the array alive: work that is left behind still writes to it."""
    return array.ctypes.data_as(ctypes.c_void_p)


def _char(value: bytes) -> Any:
    return ctypes.byref(ctypes.c_char(value))


@dataclass(frozen=True)
class Arithmetic:
    """Operations in one dtype. Every array is row-first, of that dtype; rows may lie apart.

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
        apart = array.shape[1] > 1 and array.strides[1] != array.itemsize
        if array.dtype != self.dtype or apart:
            raise ValueError(f"an array must have rows of {self.dtype}, got {array.dtype}")
        return _address(array)

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
            _pitch(b),
            self._pointer(a),
            _pitch(a),
            self._scalar(1.0),
            self._pointer(c),
            _pitch(c),
        )

    def subtract_square(self, c: _Array, a: _Array) -> None:
        """C -= A A^T in the lower triangle of C; the rest is left alone."""
        n, k = a.shape
        if not k:
            return
        self._call(
            "syrk",
            _char(b"U"),
            _char(b"T"),
            _int(n),
            _int(k),
            self._scalar(-1.0),
            self._pointer(a),
            _pitch(a),
            self._scalar(1.0),
            self._pointer(c),
            _pitch(c),
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
                _pitch(triangle),
                self._pointer(x),
                _pitch(x),
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

    def factor(self, a: _Array, *, clean: bool = True) -> int:
        """A := chol(A), lower; `clean` sets the rest to 0. Return i if pivot i - 1 fails, or 0."""
        info = ctypes.c_int(0)
        pointer = self._pointer(a)
        self._call("potrf", _char(b"U"), _int(len(a)), pointer, _pitch(a), ctypes.byref(info))
        if clean:
            a[np.triu_indices(len(a), 1)] = 0
        return info.value

    # What follows may take long: it lets KeyboardInterrupt through.

    def _run(self, name: str, *arguments: Any) -> None:
        run_interruptibly(partial(self._call, name, *arguments))

    def solve_factored(self, triangle: _Array, y: _Array) -> _Array:
        """Return ``(L L^T)^-1 y`` for L in the lower triangle of an array, y (n, m)."""
        x = np.array(y, self.dtype, order="F")
        info = ctypes.c_int(0)
        self._run(
            "potrs",
            _char(b"U"),
            _int(len(x)),
            _int(x.shape[1]),
            self._pointer(triangle),
            _pitch(triangle),
            self._pointer(x.T),
            _int(len(x)),
            ctypes.byref(info),
        )
        return x

    def invert_triangle(self, triangle: _Array) -> None:
        """L := L^-1 in the lower triangle of an array; the upper one is left alone."""
        info = ctypes.c_int(0)
        self._run(
            "trtri",
            _char(b"U"),
            _char(b"N"),
            _int(len(triangle)),
            self._pointer(triangle),
            _pitch(triangle),
            ctypes.byref(info),
        )

    def reciprocal_condition(self, triangle: _Array, norm: float) -> float:
        """Estimate ``1 / (|A|_1 |A^-1|_1)`` for ``A = L L^T`` and its norm."""
        n = len(triangle)
        work, counts = np.empty(3 * n, self.dtype), np.empty(n, np.intc)
        found, info = self._scalar(0.0), ctypes.c_int(0)
        self._run(
            "pocon",
            _char(b"U"),
            _int(n),
            self._pointer(triangle),
            _pitch(triangle),
            self._scalar(norm),
            found,
            _address(work),
            _address(counts),
            ctypes.byref(info),
        )
        return float(found._obj.value)

    def eigenvectors(self, a: _Array) -> tuple[_Array, _Array]:
        """Return the eigenvalues, ascending, and eigenvectors U (n, n) of ``A = U diag(s) U^T``.

        A is given by its upper triangle, and destroyed. Raises `numpy.linalg.LinAlgError` if
        LAPACK's divide and conquer does not converge, and `Unavailable` for too many samples.
        """
        n = len(a)
        check_eigenvectors(n)
        values, info = np.empty(n, self.dtype), ctypes.c_int(0)

        def call(work: _Array, integers: _Array, sizes: tuple[int, int]) -> None:
            self._run(
                "syevd",
                _char(b"V"),
                _char(b"L"),
                _int(n),
                self._pointer(a),
                _pitch(a),
                _address(values),
                _address(work),
                _int(sizes[0]),
                _address(integers),
                _int(sizes[1]),
                ctypes.byref(info),
            )

        work, integers = np.zeros(1, self.dtype), np.zeros(1, np.intc)
        call(work, integers, (-1, -1))  # asks for the sizes
        sizes = int(work[0]), int(integers[0])
        call(np.empty(sizes[0], self.dtype), np.empty(sizes[1], np.intc), sizes)
        if info.value:
            raise np.linalg.LinAlgError(f"LAPACK found no eigenvectors (info = {info.value})")
        return values, a.T


class Crew:
    """Threads that each run BLAS on one thread of its own: no bit depends on how many there are."""

    def __init__(self, threads: int | None) -> None:
        self.size = check_threads(threads)
        self._pool = ThreadPoolExecutor(self.size, thread_name_prefix="widelimit")
        self._alone = blas_on_one_thread()

    def __enter__(self) -> Crew:
        self._alone.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._pool.shutdown(wait=True, cancel_futures=True)
        finally:  # also after Ctrl-C while threads are waited for
            self._alone.__exit__(None, None, None)

    def run(self, tasks: Iterable[Callable[[], Any]]) -> None:
        """Run tasks that do not depend on one another, and wait for all."""
        for future in [self._pool.submit(task) for task in tasks]:
            future.result()


def factor_in_place(a: _Array, threads: int | None = None) -> int:
    """A := chol(A) in the lower triangle of a row-first matrix; the upper one is left alone.

    LAPACK's own routine is not used beyond small matrices: in OpenBLAS 0.3.30, which SciPy 1.17
    brings, dpotrf on two threads crashes from n = 16,384 on.

    Parameters
    ----------
    a : ndarray of shape (n, n), float32 or float64, C-contiguous
    threads : int or None
        None: one for each processor that this process may use. No bit depends on it for
        n > 2,048.

    Returns
    -------
    int
        0, or i if the pivot i - 1 is not positive; what comes before it is then factored.
    """
    n, arithmetic = len(a), Arithmetic(a.dtype)
    if n <= 2 * _BLOCK:
        return arithmetic.factor(a, clean=False)
    parts = [slice(start, min(n, start + _BLOCK)) for start in range(0, n, _BLOCK)]
    with Crew(threads) as crew:
        for j, columns in enumerate(parts):
            left = slice(0, columns.start)
            above = a[columns, left]
            crew.run(
                [
                    partial(arithmetic.subtract_square, a[columns, columns], above),
                    *(
                        partial(arithmetic.subtract_product, a[rows, columns], a[rows, left], above)
                        for rows in parts[j + 1 :]
                    ),
                ]
            )
            info = arithmetic.factor(a[columns, columns], clean=False)
            if info:
                return columns.start + info
            crew.run(
                partial(arithmetic.divide, a[rows, columns], a[columns, columns])
                for rows in parts[j + 1 :]
            )
    return 0
