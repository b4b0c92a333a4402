"""Every method, fitted in every draw with every size, on several threads."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.estimators import NTKClassifier
from widelimit.experiments.baselines import Baseline, Cancelled, ConvergenceWarning, fit_baseline
from widelimit.experiments.design import Design
from widelimit.experiments.methods import METHODS, Method
from widelimit.experiments.sets import Sets
from widelimit.machine import blas_on_one_thread
from widelimit.solvers import Status

__all__ = ["RIDGES", "KernelBlocks", "Result", "Results", "fit_all", "fit_kernel", "reproducible"]

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
            result = _fit_kernel(blocks[method.key], sets, i, j)
        else:
            result = _fit_baseline(method.baseline, sets, i, j, design.seed, stop)
        with lock:
            done += _weight(method, sizes[j])
            progress(min(1.0, done / total))
        return result

    with reproducible(), ThreadPoolExecutor(workers) as pool:
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


@contextlib.contextmanager
def reproducible() -> Generator[None]:
    """Fit with one thread each for linear algebra: the same sums, in the same order, everywhere.

    Nothing warns of what results say themselves: baselines that did not converge, ridges that were
    needed. Filters of warnings are those of all threads, so that none of these must enter.
    """
    with warnings.catch_warnings(), blas_on_one_thread():
        for kind in (ConvergenceWarning, LinAlgWarning):
            warnings.simplefilter("ignore", kind)
        yield


def _weight(method: Method, size: int) -> float:
    """Rough share of the time, for the progress bar."""
    return (size + 50.0) ** 1.5 * {"svm": 20.0, "logistic": 8.0}.get(method.key, 1.0)


def fit_kernel(blocks: KernelBlocks, sets: Sets, i: int, j: int) -> NTKClassifier:
    """Fit kernel regression on encoded labels (Section 3, Eq. 5) in one draw with one size.

    Parameters
    ----------
    blocks : KernelBlocks
    sets : Sets
    i, j : int
        Draw, and place of the size.

    Returns
    -------
    NTKClassifier
        With the smallest of `RIDGES` that leaves the system well-conditioned, or the largest.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the kernel is not positive definite even with the largest.
    """
    train = sets.draws[i].train[j]
    k, labels = blocks.pool[np.ix_(train, train)], sets.y_pool[train]
    for ridge in RIDGES[:-1]:
        model = NTKClassifier(kernel="precomputed", ridge=ridge)
        with contextlib.suppress(np.linalg.LinAlgError):
            if model.fit(k, labels).solution_.status is Status.SOLVED:
                return model
    return NTKClassifier(kernel="precomputed", ridge=RIDGES[-1]).fit(k, labels)


def _fit_kernel(blocks: KernelBlocks, sets: Sets, i: int, j: int) -> Result:
    train, test = sets.draws[i].train[j], sets.draws[i].test
    model = fit_kernel(blocks, sets, i, j)
    outputs = model.decision_function(blocks.test[np.ix_(test, train)])
    if outputs.ndim == 1:  # that of the second of two classes
        outputs = np.stack([-outputs, outputs], axis=1)
    accuracy = _share(outputs.argmax(axis=1) == sets.y_test[test])
    return Result(accuracy, {"ridge": model.ridge_}, outputs)


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
