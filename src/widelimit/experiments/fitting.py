"""Every method, fitted in every draw with every size, on several threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.experiments.baselines import Baseline, Cancelled, ConvergenceWarning, fit_baseline
from widelimit.experiments.design import Design
from widelimit.experiments.methods import METHODS, Method
from widelimit.experiments.sets import Sets
from widelimit.machine import blas_on_one_thread
from widelimit.solvers import Status, encode_labels, solve_cholesky

__all__ = ["RIDGES", "KernelBlocks", "Result", "Results", "fit_all"]

RIDGES = (0.0, 1e-7, 1e-5, 1e-3)
"""Relative ridges (they multiply trace(K)/n) that are tried in this order."""


@dataclass(frozen=True, slots=True, eq=False)
class KernelBlocks:
    """One kernel, of the pool with itself and of the test images with the pool.

    Parameters
    ----------
    pool : ndarray of shape (n, n)
    test : ndarray of shape (m, n)
        The same array if the pool has the test images.
    """

    pool: NDArray[Any]
    test: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One method in one draw with one size.

    Parameters
    ----------
    accuracy : float
        Share of the test images that were classified correctly.
    setting : dict
        What was chosen on the training images.
    outputs : ndarray of float64, shape (m, n_classes), or None
        Of the test images, if the method is a kernel.
    unconverged : int
        Fits that stopped before they converged.
    """

    accuracy: float
    setting: dict[str, float]
    outputs: FloatArray | None = None
    unconverged: int = 0


Results: TypeAlias = dict[tuple[str, int, int], Result]
"""By key of the method, draw, and place of the size."""


def fit_all(
    blocks: dict[str, KernelBlocks],
    sets: Sets,
    design: Design,
    *,
    workers: int,
    progress: Callable[[float], None],
) -> Results:
    """Fit and test every method in every draw with every size.

    Parameters
    ----------
    grams : dict
        Kernels by key of the method.
    images : Sets
    design : Design
    workers : int
        Threads. Results do not depend on it.
    progress : callable
        Is told the finished share, from any of the threads, one at a time.

    Returns
    -------
    Results

    Raises
    ------
    numpy.linalg.LinAlgError
        If a kernel is not positive definite even with the largest of `RIDGES`.
    """
    sizes = design.sizes
    tasks = [(m, i, j) for m in METHODS for j in range(len(sizes)) for i in range(design.draws)]
    tasks.sort(key=lambda task: -sizes[task[2]])  # the longest first, so that all threads end alike
    total = sum(_weight(method, sizes[j]) for method, _, j in tasks)
    done = 0.0
    lock = threading.Lock()
    stop = threading.Event()

    def work(method: Method, i: int, j: int) -> Result:
        nonlocal done
        if stop.is_set():
            raise Cancelled
        if method.baseline is None:
            result = _fit_kernel(blocks[method.key], sets, i, j, design.n_classes)
        else:
            result = _fit_baseline(method.baseline, sets, i, j, design.seed, stop)
        with lock:
            done += _weight(method, sizes[j])
            progress(min(1.0, done / total))
        return result

    # One thread each for linear algebra: the same sums, in the same order, on any machine.
    with warnings.catch_warnings(), blas_on_one_thread(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        futures: dict[tuple[str, int, int], Future[Result]] = {}
        try:
            for method, i, j in tasks:
                futures[method.key, i, j] = pool.submit(work, method, i, j)
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:  # after Ctrl-C, too: what runs ends with its current fit
            stop.set()
            pool.shutdown(cancel_futures=True)
    for future in futures.values():
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, Cancelled):
            raise error
    return {key: future.result() for key, future in futures.items()}


def _weight(method: Method, size: int) -> float:
    """Rough share of the time, for the progress bar."""
    return (size + 50.0) ** 1.5 * {"svm": 20.0, "logistic": 8.0}.get(method.key, 1.0)


def _fit_kernel(block: KernelBlocks, sets: Sets, i: int, j: int, n_classes: int) -> Result:
    """Kernel regression on encoded labels (Section 3, Eq. 8)."""
    train, test = sets.draws[i].train[j], sets.draws[i].test
    targets = encode_labels(sets.y_pool[train], np.arange(n_classes))
    coefficients, ridge = _solve(block.pool[np.ix_(train, train)], targets)
    outputs = block.test[np.ix_(test, train)] @ coefficients
    accuracy = _share(outputs.argmax(axis=1) == sets.y_test[test])
    return Result(accuracy, {"ridge": ridge}, outputs)


def _solve(k: NDArray[Any], targets: FloatArray) -> tuple[FloatArray, float]:
    """Solve with the smallest of `RIDGES` that leaves the system well-conditioned, and name it."""
    for ridge in RIDGES[:-1]:
        solution = solve_cholesky(k, targets, ridge)
        if solution.status is Status.SOLVED:
            return solution.value, ridge
    return solve_cholesky(k, targets, RIDGES[-1]).require().value, RIDGES[-1]


def _fit_baseline(
    kind: Baseline, sets: Sets, i: int, j: int, seed: int, stop: threading.Event
) -> Result:
    train, test = sets.draws[i].train[j], sets.draws[i].test
    fit = fit_baseline(
        kind,
        sets.x_pool[train].reshape(train.size, -1),
        sets.y_pool[train],
        sets.x_test[test].reshape(test.size, -1),
        seed=int(np.random.default_rng([seed, 3, i, j]).integers(2**31)),
        cancelled=stop.is_set,
    )
    accuracy = _share(fit.predicted == sets.y_test[test])
    return Result(accuracy, fit.setting, unconverged=fit.unconverged)


def _share(correct: NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(correct)) / correct.size
