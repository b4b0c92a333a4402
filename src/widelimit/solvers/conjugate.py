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
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.display import shown
from widelimit.files import atomic_file, make_folder
from widelimit.machine import default_threads, remaining
from widelimit.reading import open_arrays, refusing
from widelimit.solvers.checks import (
    are_weights,
    check_absolute,
    check_ridge,
    check_targets,
    check_weights,
    refuse_weights,
    relative_norm,
)
from widelimit.solvers.matrix import (
    Matrix,
    as_matrix,
    columns_of,
    diagonal,
    fingerprint,
    multiply,
    residual,
    tile_side,
    usual_side,
)
from widelimit.solvers.room import packed, pass_bytes
from widelimit.solvers.solution import Solution, Statistics, Status, failed

__all__ = ["Convergence", "preconditioner_rank", "solve_conjugate"]

_PASSES = 4  # over k, for the preconditioner: its pivots are drawn in so many blocks
_CHECKPOINT_SECONDS = 30.0
_BLOCKS = 13  # of targets: those of an iteration, and what a step takes
_FACTORS = 2.2  # of the preconditioner: F, and the product of its orthonormal basis
_SQUARES = 9  # of its rank: singular vectors, and what it takes to find them
_PACKED_ROWS = 64  # of a product that a BLAS copies, for each thread
_STATE, _PRECONDITIONER = "state.npz", "preconditioner.npz"

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


@dataclass(frozen=True, slots=True, eq=False)
class _Preconditioner:
    """``M = U diag(s^2) U^T + mu I`` with orthonormal U (n, r)."""

    u: FloatArray
    squares: FloatArray
    mu: float

    def power(self, v: FloatArray, exponent: float) -> FloatArray:
        """Return ``M^exponent v``."""
        outside = self.mu**exponent
        inside = (self.squares + self.mu) ** exponent - outside
        return outside * v + self.u @ (inside[:, None] * (self.u.T @ v))


def solve_conjugate(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float = 0.0,
    *,
    weights: FloatArray | None = None,
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
        As for `solve_cholesky`; with a ridge for matrices in memory only, of which a weighed copy
        is made.
    tolerance : float
        Largest relative residual of a target at which to stop, 1e-14 to 1.
    max_iterations : int
    rank : int or None
        Of the preconditioner. None: ``4 sqrt(n)``, or what fits into memory.
    memory : int, str or None
        As for `gram`: bounds the rank.
    checkpoint : path or None
        A folder, in which the preconditioner and, every half minute, the iteration are kept: the
        same call goes on from there. It takes ``8 n (rank + 3 targets)`` bytes.
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
        If an argument is not as described, or the checkpoint is of another system.
    """
    start = time.monotonic()
    display = shown(
        progress, "", lambda state: (_share(state.residual, tolerance), str(state)), pause=0.0
    )
    matrix = as_matrix(k)
    targets = np.ascontiguousarray(check_targets(y, matrix.shape[0]))
    relative = check_ridge(ridge)
    if not 1e-14 <= tolerance <= 1:
        raise ValueError(f"tolerance must be from 1e-14 to 1, got {tolerance!r}")
    n, columns = targets.shape
    copied = not hasattr(matrix, "tile") and are_weights(weights, relative)
    held = 8 * n * n * copied
    chosen = preconditioner_rank(n, columns, rank, memory, held, tile_side(matrix))
    system = _system(matrix, targets, relative, weights)
    folder = None if checkpoint is None else Path(checkpoint)
    kept = _Checkpoint(folder, system.digest(chosen, seed), targets.shape)

    def fail(message: str) -> Solution:
        return failed(y, relative, system.absolute, message, time.monotonic() - start)

    preconditioner = kept.preconditioner()
    if preconditioner is None:
        entries = diagonal(system.matrix)
        if entries.min() + system.absolute <= 0:
            return fail(
                f"k[{entries.argmin()}, {entries.argmin()}] is {entries.min():.3g}, and has to be "
                "positive with the ridge: remove samples of zeros, or use a bias (b_std > 0)"
            )
        preconditioner = _precondition(system.matrix, entries, system.absolute, chosen, seed)
        kept.save_preconditioner(preconditioner)
    iteration = _Iteration(system, preconditioner, kept.state())
    saved = time.monotonic()
    with display as report:
        while iteration.residual > tolerance and iteration.count < max_iterations:
            curvature = iteration.step()
            if not curvature > 0:
                return fail(
                    f"k with relative ridge {relative:g} is not positive definite to rounding: a "
                    f"direction with curvature {curvature:.1e} was met. Use solve_cholesky, which "
                    f"finds a ridge that is enough, or try ridge={max(10 * relative, 1e-6):g}"
                )
            report(Convergence(iteration.count, iteration.residual, time.monotonic() - start))
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                kept.save(**iteration.state())
                saved = time.monotonic()
    kept.save(**iteration.state())
    value = iteration.value()
    left = system.residual(value)
    true = float((np.linalg.norm(left, axis=0) / system.sizes).max())
    solved = true <= 2 * tolerance
    message = ""
    if not solved:
        more = f"raise rank (now {chosen}) or max_iterations, add"
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
            matrix.shape[0],
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

    `matrix` and `targets` are weighed already; `ridge` is relative to the diagonal of `matrix`;
    `roots` is W^1/2, (n, 1), and `sizes` the norms of the targets, 1 for those of zeros.
    """

    matrix: Matrix
    targets: FloatArray
    ridge: float
    absolute: float
    roots: FloatArray
    sizes: FloatArray

    def multiply(self, v: FloatArray) -> FloatArray:
        """Return the matrix with its ridge times v: one pass over k."""
        return multiply(self.matrix, v) + self.absolute * v

    def residual(self, b: FloatArray) -> FloatArray:
        """Return what b leaves of the targets, from a pass over k."""
        return residual(self.matrix, self.absolute, b, self.targets)

    def digest(self, rank: int, seed: int) -> str:
        """Return what tells this system, and how it is solved, from others."""
        about = f"{fingerprint(self.matrix)} {self.ridge!r} {rank} {seed} {self.targets.shape}"
        return hashlib.sha256(about.encode() + self.targets.tobytes()).hexdigest()


def _system(k: Matrix, targets: FloatArray, ridge: float, weights: FloatArray | None) -> _System:
    """Weigh a matrix in memory and its targets; without a ridge weights make no difference."""
    matrix, roots = k, np.ones((len(targets), 1))
    if hasattr(k, "tile"):
        refuse_weights(weights, ridge)
    elif weights is not None and ridge != 0:
        shares = check_weights(weights, len(targets))
        if are_weights(shares, ridge):
            column = np.sqrt(shares)
            weighed = np.array(k, np.float64, order="C")
            unit = float(np.average(weighed.diagonal(), weights=shares))
            for row, root in zip(weighed, column, strict=True):
                row *= root * column
            matrix = weighed
            ridge *= unit / float(matrix.diagonal().mean()) if unit else 1.0
            roots = column[:, None]
            targets = roots * targets
    sizes = np.linalg.norm(targets, axis=0)
    sizes[sizes == 0] = 1.0
    absolute = check_absolute(ridge, float(diagonal(matrix).mean()))
    return _System(matrix, targets, ridge, absolute, roots, sizes)


class _Iteration:
    """Conjugate gradients for all targets at once: BCGrQ on ``B z = M^-1/2 y``."""

    def __init__(
        self, system: _System, preconditioner: _Preconditioner, held: dict[str, Any] | None
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

    def state(self) -> dict[str, Any]:
        """Return what an iteration goes on from."""
        return {
            "z": self._z,
            "s": self._s,
            "q": self._q,
            "delta": self._delta,
            "iteration": np.int64(self.count),
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
    n: int,
    targets: int,
    rank: int | None,
    memory: int | str | None,
    held: int = 0,
    side: int | None = None,
) -> int:
    """Return the rank of the preconditioner: the one asked for, or what is worth it and fits.

    Parameters
    ----------
    n, targets : int
    rank, memory
        As for `solve_conjugate`.
    held : int
        Bytes that will be taken by then.
    side : int or None
        Of the pieces that k is read in. None: as usual.

    Raises
    ------
    MemoryError
        If that rank, or even rank 1, does not fit.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    other = held + pass_bytes(n, targets, _BLOCKS, side or usual_side(n))
    other += default_threads() * packed(_PACKED_ROWS, 8)
    left = remaining(memory) - other
    square, linear = 8.0 * _SQUARES, 8.0 * _FACTORS * n  # bytes: square r^2 + linear r <= left
    fits = (math.sqrt(linear**2 + 4 * square * max(left, 0.0)) - linear) / (2 * square)
    if fits < (rank or 1):
        asked = rank or 1
        more = math.ceil((square * asked**2 + linear * asked - left) / 2**20)
        raise MemoryError(
            f"a preconditioner of rank {asked} does not fit into memory, where {int(fits)} would: "
            f"raise memory by {more} MiB" + (", or lower rank" if asked > 1 else "")
        )
    return min(n, rank or min(int(fits), max(1, int(4 * n**0.5))))


def _precondition(
    matrix: Matrix, entries: FloatArray, absolute: float, rank: int, seed: int
) -> _Preconditioner:
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
        columns = columns_of(matrix, chosen)
        columns -= factor[:, :done] @ factor[chosen, :done].T
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
    whole = {"overwrite_a": True, "mode": "economic", "check_finite": False}
    u, r = _linalg.qr(factor[:, :done], **whole)  # in place
    inner, singular, _ = np.linalg.svd(r)
    mu = absolute + max(float(np.clip(left, 0, None).mean()), 1e-14 * float(entries.mean()))
    return _Preconditioner(u @ inner, singular**2, mu)


class _Checkpoint:
    """Files of one system in a folder, each there completely or not at all."""

    def __init__(self, folder: Path | None, digest: str, targets: tuple[int, ...]) -> None:
        self._folder, self._digest, self._targets = folder, digest, targets
        if folder is not None:
            make_folder(folder)

    def _read(self, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Return what was saved, of these shapes; -1 stands for the rank."""
        if self._folder is None or not (self._folder / name).exists():
            return None
        path = self._folder / name
        content: dict[str, Any] = {}
        with (
            refusing(
                f"{path} must be a checkpoint of solve_conjugate, it is not",
                "delete it, or give another folder",
            ),
            open_arrays(path, folder=self._folder) as held,
        ):
            found = str(held["digest"].read())
            rank = held["squares"].nbytes // 8 if "squares" in held else 0
            for key, shape in shapes.items() if found == self._digest else ():
                if held[key].shape != tuple(rank if size < 0 else size for size in shape):
                    raise ValueError(f"{key} has the shape {held[key].shape}")
                content[key] = held[key].read()
                if not np.isfinite(content[key]).all() or (not shape and content[key] < 0):
                    raise ValueError(f"{key} has impossible values")
        if found != self._digest:
            raise ValueError(
                f"{path} is a checkpoint of another system (k, y, ridge, rank or seed differ): "
                "give another folder, or delete that one"
            )
        return content

    def _write(self, name: str, **content: Any) -> None:
        if self._folder is not None:
            with atomic_file(self._folder / name) as file:
                np.savez(file, digest=np.array(self._digest), **content)

    def preconditioner(self) -> _Preconditioner | None:
        """Return the one that was saved."""
        shapes = {"u": (self._targets[0], -1), "squares": (-1,), "mu": ()}
        held = self._read(_PRECONDITIONER, shapes)
        if held is None:
            return None
        return _Preconditioner(held["u"], held["squares"], float(held["mu"]))

    def save_preconditioner(self, made: _Preconditioner) -> None:
        """Keep the preconditioner."""
        self._write(_PRECONDITIONER, u=made.u, squares=made.squares, mu=np.float64(made.mu))

    def state(self) -> dict[str, Any] | None:
        """Return the iteration that was saved."""
        n, t = self._targets
        block, small = (n, min(n, t)), (min(n, t), t)
        shapes = {"z": (n, t), "s": block, "q": block, "delta": small, "iteration": ()}
        return self._read(_STATE, shapes)

    def save(self, **state: Any) -> None:
        """Keep the iteration."""
        self._write(_STATE, **state)


def _share(residual: float, tolerance: float) -> float:
    """Return how many of the digits that are asked for are there: roughly the finished share."""
    if residual <= tolerance:
        return 1.0
    return min(max(0.0, math.log(residual) / math.log(tolerance)), 0.999) if tolerance < 1 else 0.0
