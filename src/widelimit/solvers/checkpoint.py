"""What conjugate gradients keep in a folder, to go on from: whole files of one job, or none.

Each file says of which job it is, and has a digest of all that is in it. An iteration also has that
of its preconditioner: with another one it would go astray.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.files import LOCK, check_room, own_folder, said, write_atomically
from widelimit.reading import StoredArray, open_arrays, refusing

__all__ = ["Checkpoint", "Preconditioner", "seal"]

_STATE, _PRECONDITIONER = "state.npz", "preconditioner.npz"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """``M = U diag(s^2) U^T + mu I`` with orthonormal U (n, r).

    `rank` is what was asked for: r is less if k has no more.
    """

    u: FloatArray
    squares: FloatArray
    mu: float
    rank: int

    def power(self, v: FloatArray, exponent: float) -> FloatArray:
        """Return ``M^exponent v``."""
        outside = self.mu**exponent
        inside = (self.squares + self.mu) ** exponent - outside
        return outside * v + self.u @ (inside[:, None] * (self.u.T @ v))

    @cached_property
    def arrays(self) -> Arrays:
        """All of it."""
        numbers = {"mu": np.array(self.mu), "rank": np.array(self.rank)}
        return {"u": self.u, "squares": self.squares, **numbers}

    @cached_property
    def digest(self) -> str:
        """What tells it from others."""
        return seal(self.arrays)


def seal(content: Arrays) -> str:
    """Return the SHA-256 of arrays and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(content):
        values = np.ascontiguousarray(content[name])
        digest.update(f"{name} {values.dtype.str} {np.shape(content[name])} ".encode())
        digest.update(values.data)
    return digest.hexdigest()


class Checkpoint:
    """The files of one job.

    Parameters
    ----------
    folder : Path or None
        None: nothing is kept.
    job : str
        What tells it from others, but for its rank.
    targets : (n, t)
        Shape of the targets.
    rank : int or None
        Of the preconditioner, if one is asked for.
    """

    def __init__(
        self, folder: Path | None, job: str, targets: tuple[int, ...], rank: int | None
    ) -> None:
        self._folder, self._job, self._targets, self._rank = folder, job, targets, rank

    def alone(self) -> AbstractContextManager[None]:
        """Be the only process that writes there: see `own_folder`."""
        if self._folder is None:
            return nullcontext()
        if not (self._folder / LOCK).exists():  # a stranger's files are refused, and not touched
            self.state()
            self.preconditioner(lambda _: None)
        return own_folder(self._folder, (_STATE, _PRECONDITIONER), "a checkpoint")

    def check_room(self, rank: int) -> None:
        """Refuse a folder whose disk has too little room for what is not there yet."""
        if self._folder is None:
            return
        n, t = self._targets
        sizes = {_PRECONDITIONER: 8 * n * rank, _STATE: 24 * n * t}
        new = [size for name, size in sizes.items() if not (self._folder / name).exists()]
        check_room(self._folder, sum(new))

    def preconditioner(self, check: Callable[[int], None]) -> Preconditioner | None:
        """Return the one that was kept, if there is one.

        `check` is told its number of columns before they are read, and may raise MemoryError.
        """

        def shapes(held: Mapping[str, StoredArray]) -> dict[str, tuple[int, ...]]:
            (columns,) = held["squares"].shape
            check(columns)
            return {"u": (self._targets[0], columns), "squares": (columns,), "mu": (), "rank": ()}

        held = self._read(_PRECONDITIONER, shapes)
        if held is None:
            return None
        return Preconditioner(held["u"], held["squares"], float(held["mu"]), int(held["rank"]))

    def keep_preconditioner(self, made: Preconditioner) -> None:
        """Keep the preconditioner."""
        self._write(_PRECONDITIONER, made.arrays)

    def state(self) -> dict[str, Any] | None:
        """Return the iteration that was kept, with the rank and the digest of its preconditioner.

        Those are called ``rank`` and ``of``.
        """
        n, t = self._targets
        block, small = (n, min(n, t)), (min(n, t), t)
        shapes = {"z": (n, t), "s": block, "q": block, "delta": small}
        return self._read(_STATE, lambda _: {**shapes, "iteration": (), "rank": (), "of": ()})

    def matching(self, state: dict[str, Any] | None, made: Preconditioner) -> dict[str, Any] | None:
        """Return an iteration if it is one with this preconditioner; else warn that it is lost."""
        if state is None or str(state["of"]) == made.digest:
            return state
        warnings.warn(
            f"the iteration in {self._folder} was made with another preconditioner, which is no "
            "more there: it begins anew",
            RuntimeWarning,
            stacklevel=4,
        )
        return None

    def keep(self, made: Preconditioner, state: Arrays) -> None:
        """Keep the iteration."""
        of = {"of": np.array(made.digest), "rank": np.array(made.rank)}
        self._write(_STATE, {**state, **of})

    def _read(
        self,
        name: str,
        shapes: Callable[[Mapping[str, StoredArray]], dict[str, tuple[int, ...]]],
    ) -> dict[str, Any] | None:
        """Return what was kept under a name, if it is of this job."""
        if self._folder is None:
            return None
        path = self._folder / name
        expected = f"{path} must be a checkpoint of solve_conjugate, it is not"
        try:
            with (
                refusing(expected, "delete it, or give another folder"),
                open_arrays(path, folder=self._folder) as held,
            ):
                content: dict[str, Any] = {}
                for key, shape in {"job": (), **shapes(held)}.items():
                    if held[key].shape != shape:
                        raise ValueError(f"{key} has the shape {held[key].shape}")
                    content[key] = held[key].read()
                if str(held["seal"].read()) != seal(content):
                    raise ValueError("it is damaged")
                for key in content.keys() - {"job", "of"}:
                    values = content[key]
                    if not np.isfinite(values).all() or (not values.shape and values < 0):
                        raise ValueError(f"{key} has impossible values")
        except FileNotFoundError:
            return None
        if content["job"] != self._job or self._rank not in (None, int(content["rank"])):
            raise ValueError(
                f"{path} is a checkpoint of another system (k, y, ridge, rank or seed differ): "
                "give another folder, or delete that one"
            )
        return content

    def _write(self, name: str, content: Arrays) -> None:
        if self._folder is None:
            return
        sealed: dict[str, Any] = {**content, "job": np.array(self._job)}
        file = io.BytesIO()
        np.savez(file, seal=np.array(seal(sealed)), **sealed)
        try:
            write_atomically(self._folder / name, file.getvalue())
        except OSError as error:  # the solution is worth more
            warnings.warn(
                f"{said(error)}: this checkpoint is not kept, the work goes on",
                RuntimeWarning,
                stacklevel=4,
            )
