"""From a Gram matrix and targets to coefficients: which ridge, which time, which solver."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.estimators.samples import Training
from widelimit.machine import remaining
from widelimit.solvers import Factor, Method, Solution, Spectrum, Status, Unavailable, solve
from widelimit.solvers.checks import are_weights, refuse_weights
from widelimit.solvers.conjugate import preconditioner_rank
from widelimit.solvers.matrix import Bordered, Matrix, as_matrix, diagonal

__all__ = [
    "FACTOR",
    "RIDGES",
    "Options",
    "Regression",
    "Solver",
    "explain",
    "grow",
    "join",
    "regress",
    "solver_for",
]

Solver = Literal["auto", "cholesky", "cg"]
FACTOR = "factor.zarr"
"""Name of a factor in the folder of a fit."""
_CHECKPOINT = "checkpoint"

RIDGES = 10.0 ** np.arange(-8.0, 2.5, 0.5)
"""Relative ridges that ridge="loo" chooses from."""


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
    left_out : ndarray of float64, shape (m, t), or None
        Prediction at each row of `Training` by a regression without it.
    grid, curve : ndarray of float64, shape (g,)
        Ridges or times that were tried, and minus the mean squares of the residuals of leaving
        one out, over all samples; NaN where there are none.
    """

    solution: Solution
    left_out: FloatArray | None
    grid: FloatArray
    curve: FloatArray

    @property
    def factor(self) -> Factor | None:
        """That of the solution; None for conjugate gradients."""
        return self.solution.factor

    @property
    def time(self) -> float:
        """Of training; infinity: its end."""
        return np.inf if self.factor is None else self.factor.time

    @property
    def score(self) -> float:
        """Largest of the curve; NaN for conjugate gradients."""
        return float(np.nanmax(self.curve)) if np.isfinite(self.curve).any() else np.nan


def join(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path or URL of something in a folder."""
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def solver_for(
    n: int,
    options: Options,
    *,
    targets: int = 1,
    weights: FloatArray | None = None,
    several: bool = False,
    stored: bool = False,
    held: int = 0,
) -> Method:
    """Choose where and how to solve for n distinct samples: before there is a kernel.

    Parameters
    ----------
    n, targets : int
    options : Options
    weights : ndarray of float64, shape (n,), or None
        Of the distinct samples.
    several : bool
        Whether one of several kernels is to be chosen, by leave-one-out.
    stored : bool
        Whether the kernel will lie in a store; then there is no memory for weights.
    held : int
        Bytes that the kernels will take in memory by the time that one is solved with.

    Returns
    -------
    {"cholesky", "tiled", "conjugate", "spectral"}
        As `widelimit.solvers.solve` has it; "spectral" if a ridge or a time is to be chosen, too.

    Raises
    ------
    MemoryError
        If a factor fits neither into memory nor there is a store, or even conjugate gradients do
        not fit.
    ValueError
        If the solver cannot do what is asked for: a choice, a time, or weights.
    """
    choices = options.ridge == "loo" or options.time != np.inf
    if options.solver == "cg":
        if choices:
            raise Unavailable(
                "ridge='loo' and a time need a factor, which solver='cg' has not: give ridge a "
                "number and leave time out, or use solver='cholesky'"
            )
        if several:
            raise Unavailable(
                "a choice among networks needs leave-one-out, which solver='cg' has not: give one "
                "network, combine='mean', or solver='cholesky'"
            )
        return _conjugate(n, options, targets, weights, held, stored=stored)
    # The factor; and a copy of it, for the diagonal of its inverse or while eigenvectors are found.
    need, have = 8 * n * n * (3 if choices else 2), remaining(options.memory) - held
    if need <= have:
        return "spectral" if choices else "cholesky"
    if choices:
        raise MemoryError(
            f"ridge='loo' and a time need the eigenvectors of {n} samples in memory, "
            f"{need / 2**30:.1f} GiB, and {have / 2**30:.1f} GiB are free for it: give ridge a "
            "number and leave time out, use fewer samples, or raise memory"
        )
    if options.store is not None:
        assert options.ridge != "loo"
        refuse_weights(weights, options.ridge)
        return "tiled"
    if options.solver == "auto" and not several:
        return _conjugate(n, options, targets, weights, held, stored=stored)
    raise MemoryError(
        f"a factor for {n} samples takes {need / 2**30:.1f} GiB, and {have / 2**30:.1f} GiB are "
        "free for it: give store, a folder for it, or "
        + ("one network" if several else 'use solver="cg"')
    )


def _conjugate(
    n: int,
    options: Options,
    targets: int,
    weights: FloatArray | None,
    held: int,
    *,
    stored: bool,
) -> Method:
    """Refuse what conjugate gradients cannot do either."""
    assert options.ridge != "loo"
    if stored:
        refuse_weights(weights, options.ridge)
    elif are_weights(weights, options.ridge):
        held += 8 * n * n  # a copy that is weighed
    preconditioner_rank(n, targets, None, options.memory, held)
    return "conjugate"


def regress(
    k: NDArray[Any] | Matrix, training: Training, options: Options, method: Method
) -> Regression:
    """Solve, with the ridge or time that predicts left-out samples best, if that is asked for.

    Parameters
    ----------
    k : ndarray or Gram, (m, m)
        Of the distinct samples; an ndarray of float64 may be overwritten.
    training : Training
    options : Options
    method : Method
        From `solver_for`.

    Raises
    ------
    numpy.linalg.LinAlgError
        If there is no solution; the message says why, and what to do.
    """
    if options.ridge == "loo" or options.time == "loo":
        return _choose(k, training, options)
    # Without a ridge k may turn out to be singular, and is then needed again.
    singular = method == "cholesky" and (options.ridge == 0 or not np.any(diagonal(as_matrix(k))))
    place = None
    if options.store is not None:
        place = join(options.store, FACTOR if method == "tiled" else _CHECKPOINT)
    solution = solve(
        k,
        training.means,
        options.ridge * training.share,
        method=method,
        time=options.time,
        weights=training.weights,
        store=place,
        memory=options.memory,
        threads=options.threads,
        overwrite_k=not singular,
    )
    return _concluded(solution, k if singular else None, training, options.ridge)


def grow(
    factor: Factor,
    k: Bordered | NDArray[Any] | Matrix,
    training: Training,
    *,
    store: str | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
) -> Regression:
    """Solve for more samples, from what is there for the first of them.

    Parameters
    ----------
    factor : Factor
        Of the first distinct samples; its absolute ridge stays: another would change all of it.
    k : Bordered, ndarray or Gram, (m, m)
        Of all distinct samples.
    training : Training
        All samples.
    store : path, URL or None
        Of the new factor, if the old one lies in a store.
    memory, threads
        As for `Options`.

    Raises
    ------
    numpy.linalg.LinAlgError
        If there is no solution.
    """
    solution = solve(
        k,
        training.means,
        extends=factor,
        weights=training.weights,
        store=store,
        memory=memory,
        threads=threads,
    )
    singular = factor.location is None and factor.ridge_absolute == 0
    ridge = solution.statistics.ridge / training.share
    return _concluded(solution, k if singular else None, training, ridge)


def _concluded(solution: Solution, k: Any, training: Training, ridge: float) -> Regression:
    """Leave one out; if there is no solution, for a k that was kept take the limit of training.

    The solution is that of rows; the ridge is relative to samples.
    """
    if solution.status is Status.NOT_POSITIVE_DEFINITE and k is not None:
        used = solution.statistics.ridge
        found = solve(k, training.means, used, method="spectral", weights=training.weights)
        message = f"{found.message} {solution.message.split('. ')[0]}."
        solution = replace(found, message=message)
    solution = _with_ridge(solution.require(), ridge)
    factor, grid = solution.factor, np.array([ridge])
    if factor is None:
        return Regression(solution, None, grid, np.array([np.nan]))
    if np.isfinite(factor.time):
        grid = np.array([factor.time])
    left_out = factor.left_out(training.means, solution.value)
    return Regression(solution, left_out, grid, np.array([-training.error(left_out)]))


def _with_ridge(solution: Solution, ridge: float) -> Solution:
    return replace(solution, statistics=replace(solution.statistics, ridge=ridge))


def _choose(k: NDArray[Any] | Matrix, training: Training, options: Options) -> Regression:
    """Take the ridge, or the time, with the smallest error of leaving one out."""
    spectrum, means, share = Spectrum.of(k, training.weights), training.means, training.share
    if options.ridge == "loo":
        grid = RIDGES
        tried = spectrum.leave_one_out(means, list(share * grid))
    else:
        grid = spectrum.times()
        tried = spectrum.leave_one_out_at(means, list(grid), share * options.ridge)
    _ = tried.best  # raises if there is none
    best = int(np.nanargmin(tried.errors))
    curve = -(share * tried.errors + training.spread)
    solution = None
    if options.ridge == "loo":
        # From here on as for a ridge that was given: the factor can grow, the spectrum cannot.
        solution = solve(spectrum.k, means, float(tried.ridges[best]), weights=training.weights)
    if solution is None or solution.factor is None:
        time = np.inf if options.ridge == "loo" else float(grid[best])
        solution = spectrum.solution(means, float(tried.ridges[best]), time)
    ridge = float(grid[best]) if options.ridge == "loo" else options.ridge
    return Regression(_with_ridge(solution, ridge), tried.predictions[best], grid, curve)


def explain(solution: Solution) -> str:
    """Return what to warn of, or nothing."""
    if solution.status is Status.SOLVED:
        return ""
    return f"{solution.status.value} {solution.message}".strip()
