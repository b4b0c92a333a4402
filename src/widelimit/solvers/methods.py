"""`solve`: one call for every method; and factors from what a saved model holds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.solvers.card import solve_card
from widelimit.solvers.checks import check_matrix, check_ridge, check_weights, refuse_weights
from widelimit.solvers.cholesky import CholeskyFactor, solve_cholesky
from widelimit.solvers.conjugate import is_remote, solve_conjugate
from widelimit.solvers.matrix import Bordered, Matrix, as_matrix, diagonal
from widelimit.solvers.refined import solve_refined
from widelimit.solvers.solution import Factor, Method, Solution, Unavailable
from widelimit.solvers.spectrum import SpectralFactor, Spectrum, check_time, solve_spectral
from widelimit.solvers.tiled import solve_tiled

__all__ = ["restore_factor", "solve"]

_FINEST = 2.0**-52  # rounding of the entries of a kernel


def solve(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float = 0.0,
    *,
    method: Method | None = None,
    time: float = np.inf,
    weights: FloatArray | None = None,
    extends: Factor | None = None,
    numbers: IntArray | None = None,
    store: str | os.PathLike[str] | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    overwrite_k: bool = False,
    progress: bool | Callable[[float], None] = False,
) -> Solution:
    """Solve ``(k + r W^-1) a = y``, ``r = ridge sum(w_i k_ii) / sum(w)``, by any method.

    What the problem is (`ridge`, `time`, `weights`) is done or refused. What may be used for it
    (`store` and all that follows) is used by the methods that have a use for it.

    Parameters
    ----------
    k : Gram, `Bordered`, or array-like of shape (n, n)
        Symmetric Gram matrix of the training samples, finite.
    y : array-like of shape (n,) or (n, targets)
        Targets, finite real numbers.
    ridge : float
        Relative ridge, finite and >= 0. Not with `extends`.
    method : {"cholesky", "card", "tiled", "refined", "conjugate", "spectral"} or None
        As `solve_cholesky` and so on. None: that of `extends`, or "cholesky".
    time : float
        Of training by gradient flow, 0 or more; below infinity for "spectral" only. Not with
        `extends`.
    weights : ndarray of shape (n,) or None
        Of the samples, above 0. With a ridge not for "tiled" and "refined".
    extends : Factor or None
        That of the first samples, whose absolute ridge and time stay. What can be is taken from it:
        the rows of a factor in memory, the tiles of one in a store.
    numbers : ndarray of int64, shape (n,), or None
        As for `solve_cholesky`; "refined" names no sample.
    store : path, fsspec URL or None
        Of the factor of "tiled", which needs it, and of "refined"; a folder for checkpoints of
        "conjugate", which cannot lie behind a URL: that is warned of.
    memory, threads
        As for `solve_tiled`.
    overwrite_k : bool
        As for `solve_cholesky`.
    progress : bool or callable
        For "tiled" and "refined": as for `solve_tiled`.

    Returns
    -------
    Solution
        With its factor, if the method has one.

    Raises
    ------
    Unavailable
        If the method cannot do what is asked for; a `ValueError`.
    TypeError, ValueError, MemoryError, OSError
        As for the methods.
    """
    if method is not None and method not in get_args(Method):
        raise ValueError(f"method must be one of {list(get_args(Method))}, got {method!r}")
    relative, until = check_ridge(ridge), check_time(time)
    resources: dict[str, Any] = {"store": store, "memory": memory, "threads": threads}
    resources |= {"overwrite_k": overwrite_k, "progress": progress, "numbers": numbers}
    if extends is None:
        return _solve(k, y, relative, method or "cholesky", until, weights, **resources)
    if relative or until != np.inf:
        raise ValueError(
            f"extends keeps the ridge and the time of its factor, got ridge={ridge!r} and "
            f"time={time!r} as well: leave them out, or leave extends out"
        )
    chosen = method or extends.method
    if chosen == "tiled" and extends.location is not None:
        refuse_weights(weights, extends.ridge_absolute)
        where = _needed(store)
        return solve_tiled(
            k,
            y,
            store=where,
            memory=memory,
            threads=threads,
            reuse=extends.location,
            progress=progress,
            numbers=numbers,
        )
    if chosen == "cholesky":
        whole = k if isinstance(k, Bordered) else check_matrix(k)
        try:
            return extends.extended(whole, weights).solution(whole, y)
        except (Unavailable, np.linalg.LinAlgError):
            pass  # all of k is solved, or says why not
    matrix = as_matrix(k)
    shares = check_weights(weights, matrix.shape[0])
    mean = float(np.average(diagonal(matrix), weights=shares))
    relative = extends.ridge_absolute / mean if extends.ridge_absolute else 0.0
    return _solve(matrix, y, relative, chosen, extends.time, weights, **resources)


def _solve(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float,
    method: Method,
    time: float,
    weights: FloatArray | None,
    *,
    store: str | os.PathLike[str] | None,
    memory: int | str | None,
    threads: int | None,
    overwrite_k: bool,
    progress: bool | Callable[[float], None],
    numbers: IntArray | None,
) -> Solution:
    if time != np.inf and method != "spectral":
        raise Unavailable(
            f"a time of training needs eigenvectors, got time={time:g} and method={method!r}: "
            "leave time out, or use method='spectral'"
        )
    if method in ("tiled", "refined"):
        refuse_weights(weights, ridge)
    match method:
        case "cholesky":
            return solve_cholesky(
                k, y, ridge, weights=weights, numbers=numbers, overwrite_k=overwrite_k
            )
        case "card":
            return solve_card(k, y, ridge, weights=weights, numbers=numbers)
        case "tiled":
            where = _needed(store)
            return solve_tiled(
                k,
                y,
                ridge,
                store=where,
                memory=memory,
                threads=threads,
                progress=progress,
                numbers=numbers,
            )
        case "refined":
            return solve_refined(k, y, ridge, store=store, memory=memory, progress=progress)
        case "conjugate":
            if store is not None and is_remote(store):
                warnings.warn(
                    "checkpoints of conjugate gradients lie in a folder of this machine: nothing "
                    f"is kept behind {os.fspath(store)}",
                    RuntimeWarning,
                    stacklevel=3,
                )
                store = None
            return solve_conjugate(
                k, y, ridge, weights=weights, numbers=numbers, memory=memory, checkpoint=store
            )
        case "spectral":
            return solve_spectral(k, y, ridge, time=time, weights=weights, numbers=numbers)


def _needed(store: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    if store is None:
        raise ValueError(
            "method='tiled' needs store, got None: give a path or URL for the factor, or use "
            "method='cholesky'"
        )
    return store


def restore_factor(
    facts: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    *,
    weights: FloatArray,
    ridge: float,
    ridge_absolute: float,
) -> Factor:
    """Return the factor that `Factor.described` has described.

    Parameters
    ----------
    facts : dict
        As it was, or as JSON gives it back.
    arrays : dict of ndarray
        Those of the factor, and maybe others.
    weights : ndarray of float64, shape (n,)
        Of the samples.
    ridge, ridge_absolute : float

    Raises
    ------
    KeyError, TypeError, ValueError
        If something is missing, or is not as `described` gives it.
    """
    if facts["kind"] == "cholesky":
        square, own = arrays["factor_square"], arrays["factor_diagonal"]
        # Models of before do not say it: their k is taken for one of float64.
        precision = float(facts.get("precision", _FINEST))
        if not _FINEST <= precision < 1:
            raise ValueError(f"precision must be from {_FINEST:.1e} to 1, got {precision}")
        return CholeskyFactor(square, own, weights, ridge, ridge_absolute, precision)
    if facts["kind"] == "spectral":
        spectrum = Spectrum(
            arrays["spectrum_values"],
            np.asfortranarray(arrays["spectrum_vectors"]),  # as `Spectrum.of` has them
            np.sqrt(weights),
            float(facts["mean"]),
            float(facts["rounding"]),
            arrays["spectrum_k"],
        )
        time = check_time(np.inf if facts["time"] is None else facts["time"])
        return SpectralFactor(spectrum, ridge, ridge_absolute, time)
    raise ValueError(f"a factor must be cholesky or spectral, got {facts['kind']!r:.100}")
