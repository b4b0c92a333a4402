"""BLAS and LAPACK through ctypes: rows that lie apart, the bits of SciPy, and Ctrl-C meanwhile."""

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from scipy.linalg import lapack

from widelimit.solvers import Spectrum, Unavailable, leave_one_out, solve, solve_refined
from widelimit.solvers import blas as blas_module
from widelimit.solvers.blas import Arithmetic, Crew, factor_in_place, run_interruptibly

SIZES = [1, 2, 17, 64, 131]


def apart(values: np.ndarray) -> np.ndarray:
    """The same entries, with rows that lie apart and NaN between them."""
    rows, columns = values.shape
    room = np.full((rows, columns + 5), np.nan, values.dtype)
    room[:, :columns] = values
    return room[:, :columns]


def problem(n: int, dtype: str = "float64") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A positive definite matrix, its lower factor, and some columns."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, n + 5))
    a = x @ x.T + np.eye(n)
    return (
        a.astype(dtype),
        np.linalg.cholesky(a).astype(dtype),
        rng.normal(size=(n, 3)).astype(dtype),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("together", [False, True])
def test_rows_may_lie_apart(dtype: str, together: bool) -> None:
    """Each operation against numpy, on arrays whose rows are contiguous or not."""
    place = np.copy if together else apart
    rng = np.random.default_rng(0)
    arithmetic, tolerance = Arithmetic(np.dtype(dtype)), 1e-4 if dtype == "float32" else 1e-12
    a, b, c = (rng.normal(size=shape).astype(dtype) for shape in ((7, 4), (9, 4), (7, 9)))
    square = rng.normal(size=(7, 7)).astype(dtype)
    matrix, lower, y = problem(7, dtype)
    wide = y.T.copy()  # (3, 7)
    triangle = np.tril(lower) + np.triu(square, 1)  # what is above is not looked at

    def close(found: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)

    out = place(c)
    arithmetic.subtract_product(out, place(a), place(b))
    close(out, c - a @ b.T)
    out = place(c)
    arithmetic.subtract_product(out, place(a), place(np.ascontiguousarray(b.T)), transposed=False)
    close(out, c - a @ b.T)
    out = place(square)
    arithmetic.subtract_square(out, place(a))
    close(out, np.tril(square - a @ a.T) + np.triu(square, 1))
    out = place(wide)
    arithmetic.divide(out, place(triangle))
    close(out, wide @ np.linalg.inv(lower).T)
    out = place(y)
    arithmetic.solve(out, place(triangle))
    close(out, np.linalg.solve(lower, y))
    out = place(y)
    arithmetic.solve_transposed(out, place(triangle))
    close(out, np.linalg.solve(lower.T, y))
    out = place(matrix)
    assert arithmetic.factor(out) == 0
    close(out, lower)
    out = place(matrix)
    assert arithmetic.factor(out, clean=False) == 0
    close(out, np.tril(lower) + np.triu(matrix, 1))
    close(arithmetic.solve_factored(place(triangle), y), np.linalg.solve(matrix, y))
    out = place(triangle)
    arithmetic.invert_triangle(out)
    close(out, np.tril(np.linalg.inv(lower)) + np.triu(square, 1))
    exact = 1 / np.linalg.cond(matrix.astype(np.float64), 1)
    norm = float(np.abs(matrix).sum(axis=0).max())
    found = arithmetic.reciprocal_condition(place(triangle), norm)
    assert exact * 0.99 <= found <= 3 * exact
    values, vectors = arithmetic.eigenvectors(place(matrix))
    close((vectors * values) @ vectors.T, matrix)
    close(vectors.T @ vectors, np.eye(7))


def test_arrays_that_are_not_rows_are_refused() -> None:
    arithmetic, columns = Arithmetic(np.dtype(np.float64)), np.zeros((4, 4), order="F")
    for wrong in (columns, np.zeros((4, 4), np.float32), np.zeros((4, 8))[:, ::2]):
        with pytest.raises(ValueError, match="must have rows of float64, got float"):
            arithmetic.subtract_square(wrong, np.zeros((4, 2)))


@pytest.mark.parametrize("n", SIZES)
def test_the_bits_are_those_of_scipy(n: int) -> None:
    """The same routines with the same room to work in."""
    a, lower, y = problem(n)
    arithmetic = Arithmetic(np.dtype(np.float64))
    driver = "evd" if n > 1 else "evr"
    values, vectors = scipy.linalg.eigh(a.copy(order="F"), overwrite_a=True, driver=driver)
    found = arithmetic.eigenvectors(a.copy())
    np.testing.assert_array_equal(found[0], values)
    np.testing.assert_array_equal(found[1], vectors)
    assert found[1].flags.f_contiguous  # as products with it have been
    expected = lapack.dpotrs(lower.T, y, lower=0)[0]
    np.testing.assert_array_equal(arithmetic.solve_factored(lower, y), expected)
    inverse = lower.copy()
    arithmetic.invert_triangle(inverse)
    np.testing.assert_array_equal(inverse, lapack.dtrtri(lower.T, lower=0)[0].T)
    norm = float(np.abs(a).sum(axis=0).max())
    found_condition = arithmetic.reciprocal_condition(lower, norm)
    np.testing.assert_allclose(found_condition, lapack.dpocon(lower.T, norm)[0], rtol=1e-14)


@pytest.mark.parametrize("threads", [1, 2])
def test_factors_of_rows_that_lie_apart(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas_module, "_BLOCK", 16)
    a, lower, _ = problem(131)
    out = apart(a)
    assert factor_in_place(out, threads) == 0
    np.testing.assert_allclose(np.tril(out), lower, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------- interruption


class Held:
    """Stands for a routine of LAPACK that takes as long as the test wants."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.release, self.finished = (threading.Event() for _ in range(3))
        self.threads: list[threading.Thread] = []
        real: Callable[[str], Callable[..., None]] = blas_module._routine

        def routine(wanted: str) -> Callable[..., None]:
            if wanted != name:
                return real(wanted)

            def wait(*arguments: Any) -> None:
                self.threads.append(threading.current_thread())
                self.begun.set()
                assert self.release.wait(60)
                real(wanted)(*arguments)
                self.finished.set()

            return wait

        monkeypatch.setattr(blas_module, "_routine", routine)
        threading.Thread(target=self._interrupt, daemon=True).start()

    def _interrupt(self) -> None:
        if self.begun.wait(60):
            os.kill(os.getpid(), signal.SIGINT)


def a_factor() -> Any:
    a, _, y = problem(40)
    return solve(a, y, 0.1).factor


CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "eigenvectors": ("dsyevd", lambda factor: Spectrum.of(factor.gram()).values),
    "spectrum": ("dsyevd", lambda factor: factor.spectrum().values),
    "inverse": ("dtrtri", lambda factor: factor.inverse_diagonal()),
    "solve": ("dpotrs", lambda factor: factor.solve(problem(40)[2])),
    "condition": ("dpocon", lambda factor: solve(factor.gram(), problem(40)[2]).value),
    "left out": ("dtrtri", lambda factor: leave_one_out(factor.gram(), range(40), [0.1]).errors),
    "refined": ("spotrs", lambda factor: solve_refined(factor.gram(), problem(40)[2], 0.1).value),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_interruption_does_not_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while LAPACK is at work on another thread; what is left behind harms nothing."""
    factor = a_factor()
    routine, call = CALLS[name]
    expected = call(factor)
    held = Held(routine, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        call(factor)
    assert not held.finished.is_set()
    assert threading.main_thread() not in held.threads
    assert all(thread.daemon for thread in held.threads)  # the process can end without them
    monkeypatch.undo()
    np.testing.assert_array_equal(call(factor), expected)  # while that one is still at work
    held.release.set()
    assert held.finished.wait(60)
    np.testing.assert_array_equal(call(factor), expected)


def test_other_threads_work_by_themselves() -> None:
    seen: list[threading.Thread] = []
    worker = threading.Thread(
        target=lambda: run_interruptibly(lambda: seen.append(threading.current_thread()))
    )
    worker.start()
    worker.join()
    assert seen == [worker]


def test_errors_of_the_work_are_raised() -> None:
    def fail() -> None:
        raise ZeroDivisionError("of the work")

    with pytest.raises(ZeroDivisionError, match="of the work"):
        run_interruptibly(fail)


def test_errors_of_a_crew_are_raised() -> None:
    def fail() -> None:
        raise ZeroDivisionError("of the work")

    with Crew(2) as crew, pytest.raises(ZeroDivisionError, match="of the work"):
        crew.run([lambda: None, fail])


def test_routines_of_long_integers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would read beyond the integers of 32 bits that are passed."""
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    signature = b"void (char *, int64_t *)"
    table: dict[str, Any] = vars(scipy.linalg.cython_blas)["__pyx_capi__"]
    monkeypatch.setitem(table, "dlong", make(1, signature, None))
    with pytest.raises(RuntimeError, match=r"dlong of SciPy takes void \(char \*, int64_t \*\)"):
        blas_module._routine("dlong")


def test_eigenvectors_that_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        arguments[-1]._obj.value = 3

    monkeypatch.setattr(blas_module, "_routine", lambda name: fail)
    with pytest.raises(np.linalg.LinAlgError, match=r"found no eigenvectors \(info = 3\)"):
        Arithmetic(np.dtype(np.float64)).eigenvectors(np.eye(3))


def test_lapack_counts_the_workspace_of_eigenvectors_in_32_bits() -> None:
    """What follows from it is a crash, so the size is asked for and nothing is computed."""
    n = blas_module.MAX_EIGENVECTORS
    assert lapack.dsyevd_lwork(n)[0] == 2 * n**2 + 6 * n + 1 < 2**31
    assert 2 * (n + 1) ** 2 + 6 * (n + 1) + 1 >= 2**31
    assert lapack.dsyevd_lwork(n + 1)[0] < n**2  # what it takes for enough


def test_eigenvectors_of_too_many_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    n = blas_module.MAX_EIGENVECTORS + 1
    large, message = np.broadcast_to(0.0, (n, n)), r"at most 32,766 samples, got 32,767: .*give rid"
    with pytest.raises(Unavailable, match=message):
        Arithmetic(large.dtype).eigenvectors(large)
    monkeypatch.setattr(blas_module, "MAX_EIGENVECTORS", 3)
    unread = np.full((4, 4), np.nan)
    with pytest.raises(Unavailable, match="at most 3 samples"):
        Spectrum.of(unread, eigenvectors=Arithmetic(large.dtype).eigenvectors)
    with pytest.raises(Unavailable, match="at most 3 samples"):
        solve(unread, np.ones(4), method="spectral")
