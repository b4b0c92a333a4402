"""Block conjugate gradients with a Nystrom preconditioner: a pass over k for each iteration.

For ``A = k + ridge trace(k)/n I``, ``A a = y`` becomes ``B z = M^-1/2 y`` with
``B = M^-1/2 A M^-1/2`` and ``a = M^-1/2 z``. ``M = F F^T + mu I``, F from a partial Cholesky
factorisation of k with pivots drawn at random (Chen, Epperly, Tropp, Webber, *Randomly pivoted
Cholesky*, 2022), and B is solved for all targets at once (Dubrulle, *Retooling the method of block
conjugate gradients*, ETNA 12, 2001: BCGrQ), so that dependent targets do no harm.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray, IntArray
from widelimit.display import shown
from widelimit.machine import remaining
from widelimit.solvers.checkpoint import Checkpoint, Preconditioner
from widelimit.solvers.checks import (
    check_absolute,
    check_matrix,
    check_ridge,
    check_targets,
    check_weights,
    entry,
    relative_norm,
)
from widelimit.solvers.matrix import (
    Matrix,
    columns_of,
    diagonal,
    fingerprint,
    multiply,
)
from widelimit.solvers.solution import Solution, Statistics, Status, failed

__all__ = ["Convergence", "is_remote", "preconditioner_rank", "solve_conjugate"]

_PASSES = 4  # over k, for the preconditioner: its pivots are drawn in so many blocks
_CHECKPOINT_SECONDS = 30.0
_FILE = "file://"

_linalg = cast("Any", linalg)  # scipy has no type stubs


@dataclass(frozen=True, slots=True)
class Convergence:
    """State of an iteration.

    Parameters
    ----------
    iteration : int
        Passes over k.
    residual : float
        Largest relative residual of a target, ``|y - A a| / |y|``.
    seconds : float
        Since this run began.
    """

    iteration: int
    residual: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"iteration {self.iteration}: largest relative residual {self.residual:.2e}, "
            f"{self.seconds:.0f} s"
        )


def solve_conjugate(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float = 0.0,
    *,
    weights: FloatArray | None = None,
    numbers: IntArray | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 500,
    rank: int | None = None,
    memory: int | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[Convergence], None] = False,
    seed: int = 0,
) -> Solution:
    """Solve ``(k + ridge trace(k)/n I) a = y`` by preconditioned block conjugate gradients.

    For matrices of which a factor would take too long, and for ridges that are not small: the
    iterations grow with the condition number that the preconditioner leaves.

    Parameters
    ----------
    k, y, ridge
        As for `solve_cholesky`. Of a stored matrix every tile is read once an iteration.
    weights : ndarray of shape (n,) or None
        As for `solve_cholesky`.
    numbers : ndarray of int64, shape (n,), or None
        As for `solve_cholesky`.
    tolerance : float
        Largest relative residual of a target at which to stop, 1e-14 to 1.
    max_iterations : int
    rank : int or None
        Of the preconditioner. None: that of the checkpoint; if there is none, ``4 sqrt(n)``, or
        what fits into memory.
    memory : int, str or None
        As for `gram`: bounds the rank.
    checkpoint : path or None
        A folder, new or of a checkpoint, in which the preconditioner and, every half minute, the
        iteration are kept: the same call goes on from there, also where less memory is free. It
        takes ``8 n (rank + 3 targets)`` bytes. One process at a time may write there.
    progress : bool or callable
        True shows it on standard error: a bar on a terminal, elsewhere a line for each iteration. A
        callable is given a `Convergence`.
    seed : int
        Of the pivots.

    Returns
    -------
    Solution
        ``Status.NOT_CONVERGED`` if the tolerance was not reached, with the last value. What counts
        is the residual that is computed anew from k, as in the statistics. There is no factor, and
        no estimate of the condition.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or the checkpoint is of another system, or damaged.
    MemoryError
        If the preconditioner does not fit into memory.
    FileExistsError, BlockingIOError, OSError
        If the folder of the checkpoint holds something else, or another process writes there, or
        nothing can be written there, or its disk has too little room: before the work. A checkpoint
        that cannot be written later is warned of, and the work goes on.
    """
    start = time.monotonic()
    display = shown(
        progress, "", lambda state: (_share(state.residual, tolerance), str(state)), pause=0.0
    )
    matrix = check_matrix(k)
    targets = np.ascontiguousarray(check_targets(y, matrix.shape[0]))
    n, columns = targets.shape
    relative = check_ridge(ridge)
    if not 1e-14 <= tolerance <= 1:
        raise ValueError(f"tolerance must be from 1e-14 to 1, got {tolerance!r}")
    system = _system(matrix, targets, relative, weights)
    folder = None if checkpoint is None else _local(checkpoint)
    kept = Checkpoint(folder, system.digest(seed), targets.shape, rank)

    def fail(message: str) -> Solution:
        return failed(y, relative, system.absolute, message, time.monotonic() - start)

    with kept.alone():
        state = kept.state()
        preconditioner = kept.preconditioner(partial(_check_held, n, columns, memory))
        before = rank if state is None else int(state["rank"])
        chosen = (
            preconditioner_rank(n, columns, before, memory)
            if preconditioner is None
            else preconditioner.rank
        )
        kept.check_room(chosen)
        if preconditioner is None:
            entries = system.diagonal()
            least = int(entries.argmin())
            if entries[least] + system.absolute <= 0:
                return fail(
                    f"{entry(least, least, numbers)} is {entries[least]:.3g}, and has to be "
                    "positive with the ridge: remove samples of zeros, or use a bias (b_std > 0)"
                )
            preconditioner = _precondition(system, entries, chosen, seed)
            kept.keep_preconditioner(preconditioner)
        iteration = _Iteration(system, preconditioner, kept.matching(state, preconditioner))
        saved = time.monotonic()
        with display as report:
            while iteration.residual > tolerance and iteration.count < max_iterations:
                curvature = iteration.step()
                if not curvature > 0:
                    return fail(
                        f"k with relative ridge {relative:g} is not positive definite to rounding: "
                        f"a direction with curvature {curvature:.1e} was met. Use solve_cholesky, "
                        "which finds a ridge that is enough, or try "
                        f"ridge={max(10 * relative, 1e-6):g}"
                    )
                report(Convergence(iteration.count, iteration.residual, time.monotonic() - start))
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    kept.keep(preconditioner, iteration.state())
                    saved = time.monotonic()
        kept.keep(preconditioner, iteration.state())
    value = iteration.value()
    left = system.residual(value)
    true = float((np.linalg.norm(left, axis=0) / system.sizes).max())
    solved = true <= 2 * tolerance
    message = ""
    if not solved:
        more = f"raise rank (now {preconditioner.rank}) or max_iterations, add"
        if iteration.residual <= tolerance:  # but k says otherwise
            more = "which is all that float64 gives for this k: raise tolerance, add"
        message = (
            f"after {iteration.count} iterations the largest relative residual is {true:.1e}, "
            f"tolerance is {tolerance:.0e}: {more} a larger relative ridge (now {relative:g}), or "
            "use solve_tiled, which needs no convergence"
        )
    return Solution(
        (system.roots * value).reshape(np.shape(y)),
        Status.SOLVED if solved else Status.NOT_CONVERGED,
        Statistics(
            n,
            relative,
            system.absolute,
            relative_norm(left / system.roots, targets),
            np.nan,
            time.monotonic() - start,
        ),
        message,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _System:
    """``(W^1/2 k W^1/2 + r) b = W^1/2 y``, of which ``a = W^1/2 b``.

    `k` is that before it is weighed, `targets` are weighed already; `roots` is W^1/2, (n, 1), and
    `sizes` the norms of the targets, 1 for those of zeros.
    """

    k: Matrix
    targets: FloatArray
    ridge: float
    absolute: float
    roots: FloatArray
    sizes: FloatArray

    def multiply(self, v: FloatArray) -> FloatArray:
        """Return the matrix with its ridge times v: one pass over k."""
        return self.roots * multiply(self.k, self.roots * v) + self.absolute * v

    def diagonal(self) -> FloatArray:
        """Return the diagonal of the matrix, without the ridge."""
        return diagonal(self.k) * self.roots[:, 0] ** 2

    def columns(self, chosen: NDArray[np.intp]) -> FloatArray:
        """Return some columns of the matrix, without the ridge."""
        return self.roots * columns_of(self.k, chosen) * self.roots[chosen, 0]

    def residual(self, b: FloatArray) -> FloatArray:
        """Return what b leaves of the targets, from a pass over k."""
        return self.targets - self.multiply(b)

    def digest(self, seed: int) -> str:
        """Return what tells this system from others, and its pivots."""
        about = f"{fingerprint(self.k)} {self.ridge!r} {seed} {self.targets.shape}"
        digest = hashlib.sha256(about.encode())
        digest.update(self.targets.tobytes())
        if np.any(self.roots != 1):
            digest.update(self.roots.tobytes())
        return digest.hexdigest()


def _system(k: Matrix, targets: FloatArray, ridge: float, weights: FloatArray | None) -> _System:
    """Weigh the targets; without a ridge weights make no difference."""
    roots, own = np.ones((len(targets), 1)), diagonal(k)
    if weights is not None and ridge != 0:
        shares = check_weights(weights, len(targets))
        roots = np.sqrt(shares)[:, None]
        targets = roots * targets
        absolute = check_absolute(ridge, float(np.average(own, weights=shares)), shares)
    else:
        absolute = check_absolute(ridge, float(own.mean()))
    sizes = np.linalg.norm(targets, axis=0)
    sizes[sizes == 0] = 1.0
    return _System(k, targets, ridge, absolute, roots, sizes)


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL, but for one of a file."""
    return "://" in os.fspath(place).removeprefix(_FILE)


def _local(checkpoint: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkpoint, which has to be one of this machine."""
    given = os.fspath(checkpoint)
    if is_remote(given):
        raise ValueError(f"checkpoint must be a folder of this machine, got {given!r}: give a path")
    return Path(given.removeprefix(_FILE)).expanduser()


class _Iteration:
    """Conjugate gradients for all targets at once: BCGrQ on ``B z = M^-1/2 y``."""

    def __init__(
        self, system: _System, preconditioner: Preconditioner, held: dict[str, Any] | None
    ) -> None:
        self._system, self._preconditioner = system, preconditioner
        if held is None:
            q, delta = np.linalg.qr(preconditioner.power(system.targets, -0.5))
            zero = np.zeros_like(system.targets)
            held = {"z": zero, "s": q, "q": q, "delta": delta, "iteration": 0}
        self._z, self._s, self._q, self._delta = (
            np.asarray(held[name], np.float64) for name in ("z", "s", "q", "delta")
        )
        self.count = int(held["iteration"])
        self.residual = self._residual()

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what an iteration goes on from."""
        return {
            "z": self._z,
            "s": self._s,
            "q": self._q,
            "delta": self._delta,
            "iteration": np.array(self.count),
        }

    def _residual(self) -> float:
        """Return the largest relative residual of a target, by the recurrence."""
        left = np.linalg.norm(self._preconditioner.power(self._q @ self._delta, 0.5), axis=0)
        return float((left / self._system.sizes).max())

    def step(self) -> float:
        """Go one pass over k further, unless a direction has no curvature; return the least."""
        power = self._preconditioner.power
        image = power(self._system.multiply(power(self._s, -0.5)), -0.5)
        small = self._s.T @ image
        small = (small + small.T) / 2
        least = float(np.linalg.eigvalsh(small)[0])
        if not least > 0:
            return least
        xi = _linalg.cho_solve(_linalg.cho_factor(small), np.eye(len(small)))
        self._z = self._z + self._s @ (xi @ self._delta)
        self._q, tau = np.linalg.qr(self._q - image @ xi)
        self._s = self._q + self._s @ tau.T
        self._delta = tau @ self._delta
        self.count += 1
        self.residual = self._residual()
        return least

    def value(self) -> FloatArray:
        """Return ``b = M^-1/2 z``."""
        return self._preconditioner.power(self._z, -0.5)


def preconditioner_rank(
    n: int, targets: int, rank: int | None, memory: int | str | None, held: int = 0
) -> int:
    """Return the rank of the preconditioner: the one asked for, or what is worth it and fits.

    Parameters
    ----------
    n, targets : int
    rank, memory
        As for `solve_conjugate`.
    held : int
        Bytes that will be taken by then.

    Raises
    ------
    MemoryError
        If that rank, or even rank 1, does not fit.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    # F, its orthonormal basis, and the product of the two; and eight blocks of the iteration.
    fits = ((remaining(memory) - held) / (8 * n) - 8 * targets) / 3.5
    if fits < (rank or 1):
        need, have = 8 * n * (3.5 * (rank or 1) + 8 * targets), remaining(memory) - held
        lower = ", or lower rank" if (rank or 1) > 1 else ""
        raise MemoryError(
            f"conjugate gradients for {n:,} samples, with a preconditioner of rank {rank or 1}, "
            f"take {math.ceil(need / 2**20):,} MiB, and {max(0, have) // 2**20:,} MiB are left of "
            f"memory: raise memory{lower}"
        )
    return min(n, rank or min(int(fits), max(1, int(4 * n**0.5))))


def _check_held(n: int, targets: int, memory: int | str | None, rank: int) -> None:
    """Refuse a preconditioner that was kept, if it does not fit: it takes less than to make it."""
    need, have = 8 * n * (rank + 8 * targets), remaining(memory)
    if need > have:
        raise MemoryError(
            f"to go on from this checkpoint, whose preconditioner has rank {rank}, takes "
            f"{need / 2**20:.0f} MiB, and {max(0, have) / 2**20:.0f} MiB are left of memory: raise "
            "memory, or give another folder"
        )


def _precondition(system: _System, entries: FloatArray, rank: int, seed: int) -> Preconditioner:
    """Factor k partially, with pivots drawn from the diagonal of what is left of it."""
    rng = np.random.default_rng(seed)
    n = len(entries)
    left = entries.copy()
    factor = np.zeros((n, rank), order="F")
    done, block = 0, -(-rank // _PASSES)
    while done < rank:
        weights = np.clip(left, 0, None)
        weights[weights < 1e-13 * entries.max()] = 0
        candidates = int(np.count_nonzero(weights))
        if not candidates:
            break
        count = min(block, rank - done, candidates)
        chosen = np.sort(rng.choice(n, count, replace=False, p=weights / weights.sum()))
        columns = system.columns(chosen) - factor[:, :done] @ factor[chosen, :done].T
        core = columns[chosen]
        # Within the block the pivots may depend on one another: keep the directions that count.
        values, vectors = np.linalg.eigh((core + core.T) / 2)
        good = values > 1e-10 * max(float(values[-1]), 0.0)
        if not good.any():
            break
        width = int(good.sum())
        factor[:, done : done + width] = columns @ (vectors[:, good] / np.sqrt(values[good]))
        left -= np.einsum("ij,ij->i", *[factor[:, done : done + width]] * 2)
        done += width
    u, r = _linalg.qr(factor[:, :done], overwrite_a=True, mode="economic", check_finite=False)
    del factor
    inner, singular, _ = np.linalg.svd(r)
    mu = system.absolute + max(float(np.clip(left, 0, None).mean()), 1e-14 * float(entries.mean()))
    return Preconditioner(u @ inner, singular**2, mu, rank)


def _share(residual: float, tolerance: float) -> float:
    """Return how many of the digits that are asked for are there: roughly the finished share."""
    if residual <= tolerance:
        return 1.0
    return min(max(0.0, math.log(residual) / math.log(tolerance)), 0.999) if tolerance < 1 else 0.0
