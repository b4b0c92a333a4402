"""`TiledFactor`: a Cholesky factor in a store, and what is solved with it a tile at a time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray
from widelimit.display import share_alone, shown
from widelimit.files import said
from widelimit.machine import remaining
from widelimit.matrices.store import StoreError, TileStore
from widelimit.matrices.tiles import Key
from widelimit.reading import MAX_HEADER, open_array, refusing
from widelimit.solvers.blas import Arithmetic, Crew
from widelimit.solvers.checks import check_columns, check_targets, epsilon, leave_out, relative_norm
from widelimit.solvers.matrix import Matrix, diagonal, multiply
from widelimit.solvers.solution import (
    Eigenvectors,
    Factor,
    Method,
    Solution,
    Statistics,
    Status,
    Unavailable,
)

__all__ = ["Reader", "TiledFactor", "fitting_width", "read_ridges"]

_INVERSE = "inverse_diagonal.npy"
_WIDEST_PANEL = 8  # tiles: what a kill can cost, and what a progress bar has to wait for
_AHEAD = 2  # tiles that are read before they are wanted


class Reader:
    """Reads tiles of a factor ahead of their use, on a thread of its own."""

    def __init__(self, store: TileStore, dtype: np.dtype[Any]) -> None:
        self._store, self._dtype = store, dtype
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="widelimit-read")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, key: Key) -> NDArray[Any]:
        """Read one tile now."""
        values = self._store.read(key)
        # BLAS wants contiguous tiles; those at the lower edge are parts of larger ones.
        return np.ascontiguousarray(values, self._dtype)

    def stream(self, keys: Iterable[Key]) -> Iterator[tuple[Key, NDArray[Any]]]:
        """Yield tiles in the order of their keys."""
        pending: list[tuple[Key, Future[NDArray[Any]]]] = []
        for key in keys:
            pending.append((key, self._pool.submit(self.read, key)))
            if len(pending) > _AHEAD:
                first, future = pending.pop(0)
                yield first, future.result()
        for key, future in pending:
            yield key, future.result()


class TiledFactor:
    """`Factor` in a store: ``A = k + r I = L L^T``, which `factorise` makes; k is not in it.

    Parameters
    ----------
    store : TileStore
        Region "lower".
    memory, threads
        As for `factorise`.
    """

    def __init__(
        self, store: TileStore, memory: int | str | None, threads: int | None = None
    ) -> None:
        self.store, self._memory, self._threads = store, memory, threads
        self.n = store.shape[0]
        self.ridge, self.ridge_absolute = read_ridges(store)

    @property
    def method(self) -> Method:
        """``"tiled"``."""
        return "tiled"

    @property
    def time(self) -> float:
        """The end of training."""
        return np.inf

    @property
    def location(self) -> str:
        """Path or URL of the store."""
        return self.store.objects.name

    @property
    def _rows(self) -> int:
        return self.store.grid.shape[0]

    def _part(self, index: int) -> slice:
        return self.store.grid.extent((index, 0))[0]

    def pivots(self) -> FloatArray:
        """Return the squares of the diagonal of the factor."""
        parts = [self.store.read((i, i)).diagonal() for i in range(self._rows)]
        return np.concatenate(parts).astype(np.float64) ** 2

    def solution(self, k: Matrix, y: ArrayLike, *, start: float | None = None) -> Solution:
        """Solve, and say how well.

        Parameters
        ----------
        k : matrix of shape (n, n)
            That of the factor: the residual takes a pass over it.
        y : array-like of shape (n,) or (n, targets)
        start : float or None
            Of the work, by `time.perf_counter`; None: now.
        """
        begun = perf_counter() if start is None else start
        targets = check_targets(y, self.n)
        value = self.solve(targets)
        residual = multiply(k, value)
        np.subtract(targets, residual, out=residual)
        residual -= self.ridge_absolute * value
        smallest = float(self.pivots().min())
        noise = self.n**0.5 * epsilon(k.dtype) * float(diagonal(k).mean())
        return Solution(
            value=value.reshape(np.shape(y)),
            status=Status.ILL_CONDITIONED if smallest < noise else Status.SOLVED,
            statistics=Statistics(
                n=self.n,
                ridge=self.ridge,
                ridge_absolute=self.ridge_absolute,
                residual_norm=relative_norm(residual, targets),
                reciprocal_condition=np.nan,
                seconds=perf_counter() - begun,
            ),
            factor=self,
        )

    def multiply(self, v: FloatArray) -> FloatArray:
        """Return ``A v = L (L^T v)`` in float64 for v (n, m); reads the factor twice."""
        v = check_columns(v, self.n)
        down, out = np.zeros_like(v), np.zeros_like(v)
        with Reader(self.store, np.dtype(np.float64)) as reader:
            for (i, j), tile in reader.stream(self.store.grid.tiles()):
                down[self._part(j)] += tile.T @ v[self._part(i)]
            for (i, j), tile in reader.stream(self.store.grid.tiles()):
                out[self._part(i)] += tile @ down[self._part(j)]
        return out

    def multiply_gram(self, v: FloatArray) -> FloatArray:
        """Return ``k v = A v - r v``; reads the factor twice."""
        return self.multiply(v) - self.ridge_absolute * v

    def gram(self) -> FloatArray:
        """Refuse: k lies in a store of its own."""
        raise Unavailable(f"{self._lies}: the kernel is not in it, read that from its own store")

    def spectrum(self) -> Eigenvectors:
        """Refuse: they would not fit into memory."""
        raise Unavailable(
            f"{self._lies}, and eigenvectors need the kernel in memory: solve for fewer samples"
        )

    def extended(self, k: Matrix, weights: FloatArray | None = None) -> Factor:
        """Refuse: a stored factor grows into another store."""
        raise Unavailable(
            f"{self._lies}, and grows into another one: use factorise(k, store=..., reuse=...), or "
            "solve(k, y, store=..., extends=...)"
        )

    def described(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Refuse: the factor stays where it is."""
        raise Unavailable(f"{self._lies}, and stays there: open it with TiledFactor")

    @property
    def _lies(self) -> str:
        return f"this factor lies in {self.location}"

    def log_determinant(self) -> float:
        """Return ``log det A``."""
        return float(np.log(self.pivots()).sum())

    def left_out(self, y: FloatArray, value: FloatArray | None = None) -> FloatArray:
        """Return what all other samples predict for each: `inverse_diagonal`, and the value."""
        return leave_out(self, y, value)

    def solve(self, y: FloatArray) -> FloatArray:
        """Return ``A^-1 y`` for y (n, targets) by two substitutions; reads the factor twice."""
        arithmetic = Arithmetic(np.dtype(np.float64))
        x = np.array(check_columns(y, self.n), order="C")
        rows = range(self._rows)
        with Reader(self.store, arithmetic.dtype) as reader:
            forward = ((r, c) for r in rows for c in range(r + 1))
            for (i, j), tile in reader.stream(forward):
                part = x[self._part(i)]
                if j < i:
                    part -= tile @ x[self._part(j)]
                else:
                    arithmetic.solve(part, tile)
            back = ((r, c) for r in reversed(rows) for c in range(r, -1, -1))
            for (i, j), tile in reader.stream(back):
                part = x[self._part(i)]
                if j < i:
                    x[self._part(j)] -= tile.T @ part
                else:
                    arithmetic.solve_transposed(part, tile)
        return x

    def inverse_diagonal(
        self,
        *,
        dtype: str | None = None,
        threads: int | None = None,
        progress: bool | Callable[[float], None] = False,
    ) -> FloatArray:
        """Return the diagonal of ``A^-1``: the sums of the squares of the columns of ``L^-1``.

        Parameters
        ----------
        dtype : {"float32", "float64"} or None
            Of the arithmetic; None: that of the factor.
        threads : int or None
            As for `factorise`; None: what the factor was made with.
        progress : bool or callable
            True shows it on standard error; a callable is given the finished share, 0 to 1.

        Notes
        -----
        Cost: ``n^3/3`` flops, as much as the factor, and ``n^3/(6 p)`` entries read, for p columns
        at a time: 8 tiles of them, or as many as fit into memory. What is finished is kept beside
        the factor.
        """
        if dtype not in (None, "float32", "float64"):
            raise ValueError(f'dtype must be "float32", "float64" or None, got {dtype!r}')
        arithmetic = Arithmetic(np.dtype(dtype or self.store.dtype))
        done, t = self._rows, self.store.tile
        result = self._stored_inverse(arithmetic.dtype)
        total = sum((done - c) ** 2 for c in range(done))
        if not np.isnan(result).any():
            return result
        with (
            self.store.objects.locked(),
            Reader(self.store, arithmetic.dtype) as reader,
            Crew(self._threads if threads is None else threads) as crew,
            shown(progress, "inverse", share_alone) as report,
        ):
            spare = 2 * _AHEAD + 2
            budget = remaining(self._memory) / (t * t * arithmetic.dtype.itemsize) - spare
            first = next((c for c in range(done) if np.isnan(result[c * t])), done)
            finished = sum((done - c) ** 2 for c in range(first))
            while first < done:
                most = min(_WIDEST_PANEL, done - first)
                width = fitting_width(lambda p, first=first: p * (done - first), budget, most)
                self._inverse_columns(first, first + width, reader, crew, arithmetic, result)
                finished += sum((done - c) ** 2 for c in range(first, first + width))
                first += width
                content = io.BytesIO()
                np.save(content, result)
                self._keep_inverse(arithmetic.dtype, content.getvalue())
                report(finished / total)
        return result

    def _stored_inverse(self, dtype: np.dtype[Any]) -> FloatArray:
        """Return what was finished; nan for the rest, and if what is there cannot be that."""
        name = _inverse_name(dtype)
        content = self.store.kept(name, 8 * self.n + MAX_HEADER)
        if content is None:
            return np.full(self.n, np.nan)
        with open_array(content, name) as stored:
            return stored.read()

    def _keep_inverse(self, dtype: np.dtype[Any], content: bytes) -> None:
        try:
            self.store.keep(_inverse_name(dtype), content)
        except OSError as error:  # what is computed is worth more
            warnings.warn(
                f"{said(error)}: what is finished of the inverse is not kept, the work goes on",
                RuntimeWarning,
                stacklevel=3,
            )

    def _inverse_columns(
        self,
        first: int,
        last: int,
        reader: Reader,
        crew: Crew,
        arithmetic: Arithmetic,
        result: FloatArray,
    ) -> None:
        """Sum the squares of some columns of tiles of ``L^-1``, by forward substitution."""
        held: dict[Key, NDArray[Any]] = {}
        sums = {c: np.zeros(self._part(c).stop - self._part(c).start) for c in range(first, last)}
        rows = range(first, self._rows)
        keys = ((r, m) for r in rows for m in range(first, r + 1))

        def step(r: int, m: int, c: int, tile: NDArray[Any]) -> None:
            if m == first:
                shape = (len(tile), len(sums[c]))
                held[r, c] = (
                    np.eye(*shape, dtype=tile.dtype) if r == c else (np.zeros(shape, tile.dtype))
                )
            z = held[r, c]
            if c <= m < r:
                arithmetic.subtract_product(z, tile, held[m, c], transposed=False)
            elif m == r:
                arithmetic.solve(z, tile)
                sums[c] += np.einsum("ij,ij->j", z, z, dtype=np.float64)

        for (r, m), tile in reader.stream(keys):
            crew.run(partial(step, r, m, c, tile) for c in range(first, min(r + 1, last)))
        for c, values in sums.items():
            result[self._part(c)] = values


def read_ridges(store: TileStore) -> tuple[float, float]:
    """Return the ridge of a stored factor, relative and absolute.

    Raises
    ------
    StoreError
        If there is none.
    """
    expected = f"{store.objects.name} must hold a factor, it does not"
    with refusing(expected, "give another path", StoreError):
        return float(store.manifest["ridge"]), float(store.manifest["ridge_absolute"])


def _inverse_name(dtype: np.dtype[Any]) -> str:
    return f"{dtype.name}-{_INVERSE}"


def fitting_width(tiles: Callable[[int], float], budget: float, most: int) -> int:
    """Return the largest number of columns of tiles that fits, at least 1."""
    width = 1
    while width < most and tiles(width + 1) <= budget:
        width += 1
    return width
