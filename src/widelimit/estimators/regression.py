"""From a Gram matrix and targets to coefficients: which ridge, which time, which solver."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from widelimit._version import __version__
from widelimit.arrays import FloatArray
from widelimit.estimators.judge import Judge, best_place
from widelimit.estimators.samples import Training
from widelimit.machine import remaining
from widelimit.solvers import Factor, Method, Solution, Spectrum, Status, Unavailable, solve
from widelimit.solvers.blas import check_eigenvectors
from widelimit.solvers.card import card_device
from widelimit.solvers.checks import refuse_weights
from widelimit.solvers.conjugate import preconditioner_rank
from widelimit.solvers.matrix import Bordered, Matrix, as_matrix, diagonal, fingerprint

__all__ = [
    "RIDGES",
    "NoRoom",
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
_FEWEST_ON_CARD = 2048  # samples: fewer are solved in the time that they travel

RIDGES = 10.0 ** np.arange(-8.0, 2.5, 0.5)
"""Relative ridges that ridge="loo" chooses from."""
_EIGENVECTORS = 24  # bytes of an entry of the kernel: its copy, vectors, and room to find them


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
        A folder for what does not fit into memory, under names made of what it is: a factor of
        its kernel and ridge, a checkpoint of its targets and weights, too.
    memory : int, str or None
    threads : int or None
    judge : Judge
        Of predictions of left-out samples.
    """

    ridge: float | Literal["loo"]
    time: float | Literal["loo"]
    solver: Solver
    store: str | os.PathLike[str] | None
    memory: int | str | None
    threads: int | None
    judge: Judge = field(default_factory=lambda: Judge("squared"))


@dataclass(frozen=True, slots=True, eq=False)
class Regression:
    """Coefficients, and what they were made with.

    Parameters
    ----------
    solution : Solution
    left_out : ndarray of float64, shape (m, t), or None
        Prediction at each row of `Training` by a regression without it.
    grid, curve : ndarray of float64, shape (g,)
        Ridges or times that were tried, and how the judge scores leaving one out; NaN where it
        cannot.
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


class NoRoom(MemoryError):
    """There is no memory for a factor: how much it takes, and what to do, are its arguments."""

    def __str__(self) -> str:
        return ": ".join(self.args)


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
    card: bool = False,
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
    card : bool
        Whether there is a card: it solves if there is room on it, and enough to do.

    Returns
    -------
    {"cholesky", "card", "tiled", "conjugate", "spectral"}
        As `widelimit.solvers.solve` has it; "spectral" or "card" if a ridge or a time is to be
        chosen, too.

    Raises
    ------
    NoRoom
        If a factor fits neither into memory nor there is a store.
    MemoryError
        If even conjugate gradients do not fit.
    ValueError
        If the solver cannot do what is asked for: a choice, a time, or weights.
    """
    choices = options.ridge == "loo" or options.time != np.inf
    if choices and options.solver != "cg":
        check_eigenvectors(n)
    if options.solver == "cg":
        if choices:
            raise Unavailable(
                "ridge='loo' and a time need a factor, which solver='cg' has not: give ridge a "
                "number and leave time out, or use solver='cholesky'"
            )
        if several:
            raise Unavailable(
                "a choice among networks or whitenings needs leave-one-out, which solver='cg' has "
                "not: give one network, combine='mean', a number for whiten, or solver='cholesky'"
            )
        return _conjugate(n, options, targets, held)
    # The factor; and a copy of it, for the diagonal of its inverse or while eigenvectors are found.
    need = _EIGENVECTORS * n * n if choices else 16 * n * n
    have = remaining(options.memory) - held
    room = card and n >= _FEWEST_ON_CARD and (not choices or need <= have)
    if room and card_device().fits(n, vectors=choices):
        return "card"
    if need <= have:
        return "spectral" if choices else "cholesky"
    if choices:
        raise NoRoom(
            f"ridge='loo' and a time need the eigenvectors of {n} samples in memory, "
            f"{need / 2**30:.1f} GiB, and {have / 2**30:.1f} GiB are free for it",
            "give ridge a number and leave time out, use fewer samples, or raise memory",
        )
    if options.store is not None:
        assert options.ridge != "loo"
        refuse_weights(weights, options.ridge)
        return "tiled"
    if options.solver == "auto" and not several:
        return _conjugate(n, options, targets, held)
    raise NoRoom(
        f"a factor for {n} samples takes {need / 2**30:.1f} GiB, and {have / 2**30:.1f} GiB are "
        "free for it",
        "give store, a folder for it, or " + ("one network" if several else 'use solver="cg"'),
    )


def _conjugate(n: int, options: Options, targets: int, held: int) -> Method:
    """Refuse what conjugate gradients cannot do either."""
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
        return _choose(k, training, options, method)
    # Without a ridge k may turn out to be singular, and is then needed again.
    singular = method in ("cholesky", "card") and (
        options.ridge == 0 or not np.any(diagonal(as_matrix(k)))
    )
    ridge = options.ridge * training.share
    place = None
    if options.store is not None and method == "tiled":
        place = _factor_place(options.store, k, ridge)
    elif options.store is not None and method == "conjugate":
        place = join(options.store, f"checkpoint-{_name(k, ridge, training)}")
    solution = solve(
        k,
        training.means,
        ridge,
        method=method,
        time=options.time,
        weights=training.weights,
        numbers=training.given,
        store=place,
        memory=options.memory,
        threads=options.threads,
        overwrite_k=not singular,
    )
    kept = k if singular else None
    return _concluded(solution, kept, training, options.ridge, options.judge, options.memory)


def grow(
    factor: Factor,
    k: Bordered | NDArray[Any] | Matrix,
    training: Training,
    judge: Judge,
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
    judge : Judge
    store : path, URL or None
        A folder for the new factor, if the old one lies in a store.
    memory, threads
        As for `Options`.

    Raises
    ------
    numpy.linalg.LinAlgError
        If there is no solution.
    """
    place = factor.location
    if store is not None and factor.n != training.first.size:  # else it is the same factor
        place = _factor_place(store, k, factor.ridge_absolute)
    solution = solve(
        k,
        training.means,
        extends=factor,
        weights=training.weights,
        numbers=training.given,
        store=place,
        memory=memory,
        threads=threads,
    )
    singular = factor.location is None and factor.ridge_absolute == 0
    ridge = solution.statistics.ridge / training.share
    return _concluded(solution, k if singular else None, training, ridge, judge, memory)


def _factor_place(folder: str | os.PathLike[str], k: Any, ridge: float) -> str:
    return join(folder, f"factor-{_name(k, ridge)}.zarr")


def _name(k: Any, ridge: float, training: Training | None = None) -> str:
    """Return a name for what is made of a matrix, a ridge and, maybe, targets and weights."""
    digest = hashlib.sha256(f"{fingerprint(as_matrix(k))} {ridge!r} {__version__}".encode())
    for values in () if training is None else (training.means, training.weights):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]


def _concluded(
    solution: Solution,
    k: Any,
    training: Training,
    ridge: float,
    judge: Judge,
    memory: int | str | None,
) -> Regression:
    """Leave one out; if there is no solution, for a k that was kept take the limit of training.

    The solution is that of rows; the ridge is relative to samples.
    """
    if solution.status is Status.NOT_POSITIVE_DEFINITE and k is not None:
        used = solution.statistics.ridge
        try:
            _check_room(k.shape[0], memory)
            found = solve(k, training.means, used, method="spectral", weights=training.weights)
            message = f"{found.message} {solution.message.split('. ')[0]}."
        except Unavailable as error:  # too many: the message of before says which ridge is enough
            found, message = solution, f"{solution.message} As for the end of training, {error}."
        solution = replace(found, message=message)
    if solution.status is Status.NOT_POSITIVE_DEFINITE and training.share != 1:
        message = (
            f"{solution.message} These ridges are for samples that are multiples taken as one: "
            f"give one that is {1 / training.share:.3g} times as large."
        )
        solution = replace(solution, message=message)
    solution = _with_ridge(solution.require(), ridge)
    factor, grid = solution.factor, np.array([ridge])
    if factor is None:
        return Regression(solution, None, grid, np.array([np.nan]))
    if np.isfinite(factor.time):
        grid = np.array([factor.time])
    left_out = factor.left_out(training.means, solution.value)
    return Regression(solution, left_out, grid, np.array([judge(training, left_out)]))


def _check_room(n: int, memory: int | str | None) -> None:
    """Refuse eigenvectors of a kernel that is in memory: only a factor was sure to fit."""
    need, have = _EIGENVECTORS * n * n, remaining(memory)
    if need > have:
        raise Unavailable(
            f"its eigenvectors need {need / 2**30:.1f} GiB, and {max(0, have) / 2**30:.1f} GiB are "
            "free: raise memory"
        )


def _with_ridge(solution: Solution, ridge: float) -> Solution:
    return replace(solution, statistics=replace(solution.statistics, ridge=ridge))


def _choose(
    k: NDArray[Any] | Matrix, training: Training, options: Options, method: Method
) -> Regression:
    """Take the ridge, or the time, with which left-out samples are predicted best."""
    means, share = training.means, training.share
    found = card_device().eigenvectors if method == "card" else None
    spectrum = Spectrum.of(k, training.weights, found, training.given)
    if options.ridge == "loo":
        grid = RIDGES
        tried = spectrum.leave_one_out(means, list(share * grid))
    else:
        grid = spectrum.times()
        tried = spectrum.leave_one_out_at(means, list(grid), share * options.ridge)
    _ = tried.best  # raises if there is none
    curve = np.array([options.judge(training, left_out) for left_out in tried.predictions])
    # Of equal ones that shrinks outputs least: ridges ascend, and so do times.
    best = best_place(curve, last=options.time == "loo")
    solution = None
    if options.ridge == "loo":
        # From here on as for a ridge that was given: the factor can grow, the spectrum cannot.
        ridge, by = float(tried.ridges[best]), "card" if method == "card" else "cholesky"
        solution = solve(spectrum.k, means, ridge, method=by, weights=training.weights)
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
