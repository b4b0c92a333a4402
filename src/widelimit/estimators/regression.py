"""From a Gram matrix and targets to coefficients: which ridge, which time, which solver."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.estimators.samples import Training
from widelimit.machine import remaining
from widelimit.solvers import (
    Solution,
    Spectrum,
    Status,
    factor_and_solve,
    factorise,
    leave_one_out_of_factor,
    solve_conjugate,
    solve_tiled,
)
from widelimit.solvers.cholesky import CholeskyFactor
from widelimit.solvers.matrix import Matrix, as_matrix, diagonal

__all__ = [
    "FACTOR",
    "RIDGES",
    "Factor",
    "Options",
    "Regression",
    "Solver",
    "SpectralFactor",
    "by_tiles",
    "explain",
    "grow",
    "join",
    "regress",
    "solver_for",
]

Solver = Literal["auto", "cholesky", "cg"]
FACTOR = "factor.zarr"
"""Name of a factor in the folder of a fit."""

RIDGES = 10.0 ** np.arange(-8.0, 2.5, 0.5)
"""Relative ridges that ridge="loo" chooses from."""


class Factor(Protocol):
    """What applies ``A^-1``, ``A = k + r W^-1``, or what training until some time makes of it."""

    @property
    def n(self) -> int:
        """Number of distinct samples."""
        ...

    def solve(self, y: FloatArray, /) -> FloatArray:
        """Return the coefficients for targets (n, m)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SpectralFactor:
    """A Gram matrix, its spectrum, and the ridge and time that coefficients are made with.

    Parameters
    ----------
    k : ndarray of shape (n, n)
    spectrum : Spectrum
    ridge_absolute, time : float
    """

    k: NDArray[Any]
    spectrum: Spectrum
    ridge_absolute: float
    time: float

    @property
    def n(self) -> int:
        """Number of distinct samples."""
        return len(self.k)

    def solve(self, y: FloatArray) -> FloatArray:
        """Return the coefficients for targets (n, m)."""
        return self.spectrum.solve(y, self.ridge_absolute, self.time)

    def gram(self) -> FloatArray:
        """Return k as float64."""
        return np.asarray(self.k, np.float64)

    def log_determinant(self) -> float:
        """Return ``log det A``."""
        return self.spectrum.log_determinant(self.ridge_absolute)


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """How to solve.

    Parameters
    ----------
    ridge : float or "loo"
    time : float or "loo"
        Infinity: the end of training.
    solver : {"auto", "cholesky", "cg"}
    store : path, URL or None
        A folder for what does not fit into memory.
    memory : int, str or None
    threads : int or None
    """

    ridge: float | Literal["loo"]
    time: float | Literal["loo"]
    solver: Solver
    store: str | os.PathLike[str] | None
    memory: int | str | None
    threads: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Regression:
    """Coefficients, and what they were made with.

    Parameters
    ----------
    solution : Solution
    factor : Factor or None
        None for conjugate gradients.
    time : float
    left_out : ndarray of float64, shape (m, t), or None
        Prediction of each distinct sample by a regression without it and its copies.
    grid, curve : ndarray of float64, shape (g,)
        Ridges or times that were tried, and minus the mean squares of the residuals of leaving
        one out, over all samples; NaN where there are none.
    """

    solution: Solution
    factor: Factor | None
    time: float
    left_out: FloatArray | None
    grid: FloatArray
    curve: FloatArray

    @property
    def score(self) -> float:
        """Largest of the curve; NaN for conjugate gradients."""
        return float(np.nanmax(self.curve)) if np.isfinite(self.curve).any() else np.nan


def join(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path or URL of something in a folder."""
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def solver_for(n: int, options: Options) -> Literal["memory", "tiled", "cg"]:
    """Choose where and how to solve for n distinct samples.

    Raises
    ------
    MemoryError
        If a factor fits neither into memory nor there is a store.
    """
    if options.solver == "cg":
        return "cg"
    # The factor; and a copy of it, for the diagonal of its inverse or while eigenvectors are found.
    spectral = options.ridge == "loo" or options.time != np.inf
    need, have = 8 * n * n * (3 if spectral else 2), remaining(options.memory)
    if need <= have:
        return "memory"
    if spectral:
        raise MemoryError(
            f"ridge='loo' and a time need the eigenvectors of {n} samples in memory, "
            f"{need / 2**30:.1f} GiB, and {have / 2**30:.1f} GiB are free for it: give ridge a "
            "number and leave time out, use fewer samples, or raise memory"
        )
    if options.store is not None:
        return "tiled"
    if options.solver == "auto":
        return "cg"
    raise MemoryError(
        f"a factor for {n} samples takes {need / 2**30:.1f} GiB, and {have / 2**30:.1f} GiB are "
        'free for it: give store, a folder for it, or use solver="cg"'
    )


def regress(k: NDArray[Any] | Matrix, training: Training, options: Options) -> Regression:
    """Solve, with the ridge or time that predicts left-out samples best, if that is asked for.

    Parameters
    ----------
    k : ndarray or Gram, (m, m)
        Of the distinct samples; an ndarray of float64 may be overwritten.
    training : Training
    options : Options

    Raises
    ------
    numpy.linalg.LinAlgError
        If there is no solution; the message says why, and what to do.
    """
    match solver_for(as_matrix(k).shape[0], options):
        case "cg":
            return _by_conjugate_gradients(k, training, options)
        case "tiled":
            assert options.store is not None
            return by_tiles(k, training, options, join(options.store, FACTOR))
        case "memory":
            pass
    if options.ridge == "loo" or options.time != np.inf:
        return _by_spectrum(np.asarray(k), training, options)
    # Without a ridge k may turn out to be singular, and is then needed again.
    singular = options.ridge == 0 or not np.any(diagonal(as_matrix(k)))
    solution, factor = factor_and_solve(
        k, training.means, options.ridge, weights=training.weights, overwrite_k=not singular
    )
    if factor is not None:
        return finish(solution, factor, training)
    if not singular:
        solution.require()
    found = _by_spectrum(np.asarray(k), training, options)
    message = f"{found.solution.message} {solution.message.split('. ')[0]}."
    return replace(found, solution=replace(found.solution, message=message))


def finish(solution: Solution, factor: CholeskyFactor, training: Training) -> Regression:
    """Leave one out with a Cholesky factor."""
    means = training.means
    residuals = solution.value / factor.inverse_diagonal()[:, None]
    ridge = solution.statistics.ridge
    return _one(solution, factor, means - residuals, training, ridge)


def grow(
    factor: CholeskyFactor | SpectralFactor,
    columns: NDArray[Any],
    corner: NDArray[Any],
    training: Training,
    ridge_absolute: float,
) -> Regression:
    """Solve for more samples, from what is there for the first of them.

    Parameters
    ----------
    factor : CholeskyFactor or SpectralFactor
        Of the first m distinct samples.
    columns, corner : ndarray of shape (m, p), (p, p)
        The kernel between these and p new ones, and that of the new ones.
    training : Training
        All samples.
    ridge_absolute : float
        That of the factor, which stays: another ridge would change all of it.

    Raises
    ------
    numpy.linalg.LinAlgError
        If there is no solution.
    """
    weights, m = training.weights, factor.n
    own = factor.diagonal if isinstance(factor, CholeskyFactor) else factor.k.diagonal()
    mean = float(np.average(np.concatenate([own, corner.diagonal()]), weights=weights))
    ridge = ridge_absolute / mean if ridge_absolute else 0.0
    if isinstance(factor, CholeskyFactor):
        noise = ridge_absolute / weights
        # A new copy of an old sample adds to its weight, and so changes the old rows.
        grown = None
        if np.array_equal(noise[:m], factor.noise):
            grown = factor.extended(columns, corner, noise[m:])
        if grown is not None:
            solution = grown.solution(training.means, ridge, ridge_absolute, columns.dtype)
            return finish(solution, grown, training)
    time = factor.time if isinstance(factor, SpectralFactor) else np.inf
    whole = np.block([[factor.gram(), columns], [columns.T, corner]])
    return regress(whole, training, Options(ridge, time, "cholesky", None, None, None))


def _one(
    solution: Solution, factor: Factor, left_out: FloatArray, training: Training, ridge: float
) -> Regression:
    squares = ((training.targets - left_out[training.place]) ** 2).mean(axis=1)
    error = np.average(squares, weights=training.sample_weight)
    return Regression(solution, factor, np.inf, left_out, np.array([ridge]), np.array([-error]))


def _by_spectrum(k: NDArray[Any], training: Training, options: Options) -> Regression:
    spectrum, means = Spectrum.of(k, training.weights), training.means
    ridges: Sequence[float] = list(RIDGES) if options.ridge == "loo" else [options.ridge]
    if options.time == "loo":
        grid = spectrum.times()
        tried = spectrum.leave_one_out_at(means, list(grid), ridges[0])
    elif np.isinf(options.time):
        grid = np.array(ridges)
        tried = spectrum.leave_one_out(means, ridges)
    else:
        grid = np.array([options.time])
        tried = spectrum.leave_one_out_at(means, list(grid), ridges[0])
    _ = tried.best  # raises if there is none
    best = int(np.nanargmin(tried.errors))
    ridge = float(tried.ridges[best])
    time = np.inf if options.time == np.inf else float(grid[best])
    curve = -(tried.errors + training.spread)
    if options.ridge == "loo":
        # From here on as for a ridge that was given: the factor can grow, the spectrum cannot.
        solution, factor = factor_and_solve(k, means, ridge, weights=training.weights)
        if factor is not None:
            return Regression(solution, factor, np.inf, tried.predictions[best], grid, curve)
    solution = spectrum.solution(means, ridge, time)
    factor = SpectralFactor(k, spectrum, solution.statistics.ridge_absolute, time)
    return Regression(solution, factor, time, tried.predictions[best], grid, curve)


def by_tiles(
    k: NDArray[Any] | Matrix,
    training: Training,
    options: Options,
    path: str,
    reuse: str | None = None,
) -> Regression:
    """Solve with a factor in a store.

    Parameters
    ----------
    k, training, options
        As for `regress`.
    path : str
        Of the factor.
    reuse : str or None
        A factor of the first samples, whose absolute ridge is kept.
    """
    assert options.ridge != "loo"
    _no_weights(training, options.ridge)
    where: dict[str, Any] = {"store": path, "memory": options.memory, "threads": options.threads}
    if reuse is not None:
        where["reuse"] = reuse
    else:
        where["ridge"] = options.ridge
    solution = solve_tiled(k, training.means, **where).require()
    factor = factorise(k, **where)
    tried = leave_one_out_of_factor(factor, training.means, value=solution.value)
    return _one(solution, factor, tried.predictions[0], training, factor.ridge)


def _by_conjugate_gradients(
    k: NDArray[Any] | Matrix, training: Training, options: Options
) -> Regression:
    if options.ridge == "loo" or options.time != np.inf:
        raise ValueError(
            "ridge='loo' and a time need a factor, which solver='cg' has not: give ridge a number "
            "and leave time out, or use solver='cholesky'"
        )
    roots = np.ones(as_matrix(k).shape[0])
    ridge = options.ridge
    if hasattr(k, "tile") or ridge == 0:
        _no_weights(training, ridge)
    else:
        # (k + r W^-1) a = y is (W^1/2 k W^1/2 + r) b = W^1/2 y with a = W^1/2 b.
        roots = np.sqrt(training.weights)
        before = np.asarray(k, np.float64)
        unit = float(np.average(before.diagonal(), weights=training.weights))
        k = before * (roots[:, None] * roots)
        ridge *= unit / float(k.diagonal().mean()) if unit else 1.0
    checkpoint = None
    if options.store is not None and "://" not in os.fspath(options.store):
        checkpoint = join(options.store, "checkpoint")
    solution = solve_conjugate(
        k, roots[:, None] * training.means, ridge, memory=options.memory, checkpoint=checkpoint
    ).require()
    statistics = replace(solution.statistics, ridge=options.ridge)
    value = roots[:, None] * solution.value
    none = np.array([np.nan])
    solution = replace(solution, value=value, statistics=statistics)
    return Regression(solution, None, np.inf, None, np.array([options.ridge]), none)


def _no_weights(training: Training, ridge: float) -> None:
    """Refuse weights of a stored matrix; without a ridge they make no difference."""
    if ridge != 0 and not np.all(training.weights == 1):
        raise ValueError(
            "sample weights (and samples that occur more than once, which weigh more) need the "
            "kernel in memory: remove repeated samples and weights, use ridge=0, or raise memory"
        )


def explain(solution: Solution) -> str:
    """Return what to warn of, or nothing."""
    if solution.status is Status.SOLVED:
        return ""
    return f"{solution.status.value} {solution.message}".strip()
