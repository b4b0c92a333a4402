"""Cholesky factors larger than memory: a tile at a time, resumable after a kill.

With tiles of one size, ``A = k + ridge trace(k)/n I`` and ``A = L L^T``, row by row

    L[i, j] = (A[i, j] - sum_{m < j} L[i, m] L[j, m]^T) L[j, j]^-T      j < i
    L[i, i] = chol(A[i, i] - sum_{m < i} L[i, m] L[i, m]^T)

The products of a tile are always summed in the order of m, each by one call of BLAS of one shape.
So no bit of a tile depends on how much memory there is, nor on where a run was killed.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import blas, lapack  # pyright: ignore[reportMissingTypeStubs]

from widelimit._version import __version__
from widelimit.gram.memory import remaining
from widelimit.gram.store import StoreError, TileStore, open_objects
from widelimit.gram.tiles import Key
from widelimit.solvers.checks import check_ridge, check_targets, epsilon
from widelimit.solvers.matrix import (
    Matrix,
    as_matrix,
    diagonal,
    fingerprint,
    multiply,
    tile_side,
)
from widelimit.solvers.solution import FloatArray, Solution, Statistics, Status, failed

__all__ = ["NotPositiveDefinite", "TiledFactor", "factorise", "solve_tiled"]

_FORMAT = "widelimit.factor/1"
_INVERSE = "inverse_diagonal.npy"
_MIN_ROUNDINGS = 100  # that a pivot must exceed, as in `solve_cholesky`
_MAX_ROUNDINGS = 100  # that a negative pivot of a Gram matrix may be
_AHEAD = 2  # tiles that are read before they are wanted

# scipy has no type stubs.
_blas, _lapack = cast("Any", blas), cast("Any", lapack)

Progress = Callable[[float], None]


class NotPositiveDefinite(Exception):
    """A pivot that is not positive to rounding.

    Parameters
    ----------
    index : int
        Of the sample.
    pivot : float
        What is left of its diagonal entry.
    weights : ndarray of float64, shape (index,)
        Of the samples before it, of which it is a combination.
    """

    def __init__(self, index: int, pivot: float, weights: FloatArray) -> None:
        super().__init__(f"pivot {index} is {pivot:.3g}")
        self.index, self.pivot, self.weights = index, pivot, weights


@dataclass(frozen=True)
class _Arithmetic:
    """BLAS and LAPACK on row-first tiles, of one dtype.

    The transpose of a row-first tile is column-first, which BLAS takes without a copy.
    """

    dtype: np.dtype[Any]

    def _routine(self, library: Any, name: str) -> Callable[..., Any]:
        return getattr(library, ("s" if self.dtype == np.float32 else "d") + name)

    def subtract_product(self, c: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> None:
        """C -= A B^T, in place."""
        gemm = self._routine(_blas, "gemm")
        gemm(-1.0, b.T, a.T, 1.0, c.T, trans_a=1, trans_b=0, overwrite_c=1)

    def subtract_plain_product(self, c: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> None:
        """C -= A B, in place."""
        gemm = self._routine(_blas, "gemm")
        gemm(-1.0, b.T, a.T, 1.0, c.T, trans_a=0, trans_b=0, overwrite_c=1)

    def divide(self, x: NDArray[Any], triangle: NDArray[Any]) -> None:
        """X := X T^-T for a lower triangle T, in place."""
        if not x.size:  # which BLAS does not take
            return
        trsm = self._routine(_blas, "trsm")
        trsm(1.0, triangle.T, x.T, side=0, lower=0, trans_a=1, overwrite_b=1)

    def solve(self, x: NDArray[Any], triangle: NDArray[Any]) -> None:
        """X := T^-1 X for a lower triangle T, in place."""
        trsm = self._routine(_blas, "trsm")
        trsm(1.0, triangle.T, x.T, side=1, lower=0, trans_a=0, overwrite_b=1)

    def solve_transposed(self, x: NDArray[Any], triangle: NDArray[Any]) -> None:
        """X := T^-T X for a lower triangle T, in place."""
        trsm = self._routine(_blas, "trsm")
        trsm(1.0, triangle.T, x.T, side=1, lower=0, trans_a=1, overwrite_b=1)

    def factor(self, a: NDArray[Any]) -> int:
        """A := chol(A), lower, in place; return LAPACK's info."""
        _, info = self._routine(_lapack, "potrf")(a.T, lower=0, clean=1, overwrite_a=1)
        return int(info)


class _Reader:
    """Reads tiles of a factor ahead of their use, on a thread of its own."""

    def __init__(self, store: TileStore, dtype: np.dtype[Any]) -> None:
        self._store, self._dtype = store, dtype
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="widelimit-read")

    def __enter__(self) -> _Reader:
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
    """The Cholesky factor of a Gram matrix with its ridge, in a store; `factorise` makes it.

    Parameters
    ----------
    store : TileStore
        Region "lower".
    memory : int, str or None
        As for `factorise`.
    """

    def __init__(self, store: TileStore, memory: int | str | None) -> None:
        self.store, self._memory = store, memory
        self.n = store.shape[0]
        self.ridge = float(store.manifest["ridge"])
        self.ridge_absolute = float(store.manifest["ridge_absolute"])

    @property
    def _rows(self) -> int:
        return self.store.grid.shape[0]

    def _part(self, index: int) -> slice:
        return self.store.grid.extent((index, 0))[0]

    def pivots(self) -> FloatArray:
        """Return the squares of the diagonal of the factor."""
        parts = [self.store.read((i, i)).diagonal() for i in range(self._rows)]
        return np.concatenate(parts).astype(np.float64) ** 2

    def solve(self, y: FloatArray) -> FloatArray:
        """Return ``A^-1 y`` for y (n, targets) by two substitutions; reads the factor twice."""
        arithmetic = _Arithmetic(np.dtype(np.float64))
        x = np.array(y, np.float64, order="C")
        rows = range(self._rows)
        with _Reader(self.store, arithmetic.dtype) as reader:
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
        self, *, dtype: str | None = None, progress: Progress | None = None
    ) -> FloatArray:
        """Return the diagonal of ``A^-1``: the sums of the squares of the columns of ``L^-1``.

        Parameters
        ----------
        dtype : {"float32", "float64"} or None
            Of the arithmetic; None: that of the factor.
        progress : callable or None
            Is given the finished share, 0 to 1.

        Notes
        -----
        Cost: ``n^3/3`` flops, as much as the factor, and ``n^3/(6 p)`` entries read, for p columns
        at a time, as many as fit into memory. What is finished is kept beside the factor.
        """
        arithmetic = _Arithmetic(np.dtype(dtype or self.store.dtype))
        done, t = self._rows, self.store.tile
        result = self._stored_inverse(arithmetic.dtype)
        total = sum((done - c) ** 2 for c in range(done))
        with self.store.objects.locked(), _Reader(self.store, arithmetic.dtype) as reader:
            budget = remaining(self._memory) / (t * t * arithmetic.dtype.itemsize) - 2 * _AHEAD - 2
            first = next((c for c in range(done) if np.isnan(result[c * t])), done)
            finished = sum((done - c) ** 2 for c in range(first))
            while first < done:
                width = _width(lambda p, first=first: p * (done - first), budget, done - first)
                self._inverse_columns(first, first + width, reader, arithmetic, result)
                finished += sum((done - c) ** 2 for c in range(first, first + width))
                first += width
                content = io.BytesIO()
                np.save(content, result)
                self.store.objects.write(_inverse_name(arithmetic.dtype), content.getvalue())
                if progress is not None:
                    progress(finished / total)
        return result

    def _stored_inverse(self, dtype: np.dtype[Any]) -> FloatArray:
        try:
            content = io.BytesIO(self.store.objects.read(_inverse_name(dtype)))
            stored = cast("FloatArray", np.load(content, allow_pickle=False))
        except (FileNotFoundError, ValueError, EOFError):
            return np.full(self.n, np.nan)
        return stored if stored.shape == (self.n,) else np.full(self.n, np.nan)

    def _inverse_columns(
        self,
        first: int,
        last: int,
        reader: _Reader,
        arithmetic: _Arithmetic,
        result: FloatArray,
    ) -> None:
        """Sum the squares of some columns of tiles of ``L^-1``, by forward substitution."""
        held: dict[Key, NDArray[Any]] = {}
        sums = {c: np.zeros(self._part(c).stop - self._part(c).start) for c in range(first, last)}
        rows = range(first, self._rows)
        keys = ((r, m) for r in rows for m in range(first, r + 1))
        for (r, m), tile in reader.stream(keys):
            height = len(tile)
            for c in range(first, min(r + 1, last)):
                width = len(sums[c])
                if m == first:
                    held[r, c] = (
                        np.eye(height, width, dtype=tile.dtype)
                        if r == c
                        else (np.zeros((height, width), tile.dtype))
                    )
                z = held[r, c]
                if c <= m < r:
                    arithmetic.subtract_plain_product(z, tile, held[m, c])
                elif m == r:
                    arithmetic.solve(z, tile)
                    sums[c] += np.einsum("ij,ij->j", z, z, dtype=np.float64)
        for c, values in sums.items():
            result[self._part(c)] = values


def _inverse_name(dtype: np.dtype[Any]) -> str:
    return f"{dtype.name}-{_INVERSE}"


def _width(tiles: Callable[[int], float], budget: float, most: int) -> int:
    """Return the largest number of columns of tiles that fits, at least 1."""
    width = 1
    while width < most and tiles(width + 1) <= budget:
        width += 1
    return width


def factorise(
    k: ArrayLike | Matrix,
    ridge: float = 0.0,
    *,
    store: str | os.PathLike[str],
    dtype: str = "float64",
    memory: int | str | None = None,
    tile: int | None = None,
    progress: Progress | None = None,
    verify: bool = False,
) -> TiledFactor:
    """Factor ``k + ridge trace(k)/n I = L L^T`` into a store, and go on where a run was killed.

    Parameters
    ----------
    k : Gram or array-like of shape (n, n)
        Symmetric; of a stored matrix each tile is read once.
    ridge : float
        Relative ridge, finite and >= 0: it multiplies ``trace(k)/n``.
    store : path or fsspec URL
        Where the tiles of the factor lie: ``n (n + tile)/2`` entries.
    dtype : {"float64", "float32"}
        Of the factor and of the arithmetic.
    memory : int, str or None
        Bytes, or ``"6GB"``: the most that this process takes in all, what it holds already
        included. None: 60 % of what is available beside that. No bit depends on it.
    tile : int or None
        Side of a tile of a new factor. None: that of k.
    progress : callable or None
        Is given the finished share of the flops, 0 to 1.
    verify : bool
        Whether all tiles that are there are read first; damaged ones are computed again.

    Returns
    -------
    TiledFactor

    Raises
    ------
    NotPositiveDefinite
        If a pivot is not positive to rounding. `solve_tiled` makes a status of it.
    TypeError, ValueError
        If k, ridge or memory are not as described, or the store holds another factor.
    MemoryError
        If not even one column of tiles fits into memory.
    BlockingIOError, OSError, StoreError
        As for `gram`.

    Notes
    -----
    Cost: ``n^3/3`` flops by BLAS; a column of tiles is read again for every panel of as many
    columns as fit into memory. A kill costs the tile under way.
    """
    matrix = as_matrix(k)
    relative = check_ridge(ridge)
    if dtype not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    n = matrix.shape[0]
    trace_mean = float(diagonal(matrix).mean())
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "kernel": fingerprint(matrix),
        "ridge": relative,
        "ridge_absolute": relative * trace_mean,
        "version": __version__,
    }
    objects = open_objects(store)
    with objects.locked():
        factor_store = _open_store(store, manifest, n, dtype)
        if factor_store is None:
            side = tile or tile_side(matrix)
            factor_store = TileStore.create(objects, (n, n), side, dtype, "lower", manifest)
        if verify:
            for key in factor_store.damaged(sorted(factor_store.finished())):
                factor_store.delete(key)
        _Factorisation(matrix, factor_store, memory, progress).run()
    return TiledFactor(factor_store, memory)


def _open_store(
    store: str | os.PathLike[str], manifest: dict[str, Any], n: int, dtype: str
) -> TileStore | None:
    try:
        found = TileStore.open(open_objects(store))
    except FileNotFoundError:
        return None
    if found.manifest.get("format") != _FORMAT or found.region != "lower":
        raise StoreError(f"{found.objects.name} must hold a factor, it does not: give another path")
    asked = {**manifest, "dtype": dtype, "n": n}
    there = {**found.manifest, "dtype": found.dtype.name, "n": found.shape[0]}
    differences = [
        f"{name} is {there.get(name)} there, {value} now"
        for name, value in asked.items()
        if there.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{found.objects.name} holds another factor: {'; '.join(differences)}. Give another "
            "path, or delete that one"
        )
    return found


class _Factorisation:
    """One run: what is finished, what is held, what is left."""

    def __init__(
        self,
        matrix: Matrix,
        store: TileStore,
        memory: int | str | None,
        progress: Progress | None,
    ) -> None:
        self._matrix, self._store, self._memory = matrix, store, memory
        self._report = progress
        self._arithmetic = _Arithmetic(np.dtype(store.dtype.name))
        self._finished = store.finished()
        self._ridge = float(store.manifest["ridge_absolute"])
        self._n = store.shape[0]
        self._work = sum(j + 1 for _, j in store.grid.tiles())
        self._done = sum(j + 1 for _, j in self._finished)

    def run(self) -> None:
        rows, t = self._store.grid.shape[0], self._store.tile
        first = 0
        with _Reader(self._store, self._arithmetic.dtype) as reader:
            while first < rows:
                entry = self._arithmetic.dtype.itemsize
                # Besides what is held: tiles read ahead, one of k, and copies of a tile written.
                budget = remaining(self._memory) / (t * t * entry) - _AHEAD - 7
                least = first + 2
                if budget < least:
                    raise MemoryError(
                        f"this takes {(least + _AHEAD + 7) * t * t * entry / 2**20:.0f} MiB at "
                        "least beside what the process holds: raise memory, or use a smaller tile "
                        "for a new factor"
                    )
                width = _width(
                    lambda p, first=first: p * first + p * (p + 1) / 2 + p, budget, rows - first
                )
                self._panel(first, first + width, reader)
                first += width

    def _panel(self, first: int, last: int, reader: _Reader) -> None:
        """Compute the tiles of some columns, row by row."""
        rows = self._store.grid.shape[0]
        open_rows = [
            i
            for i in range(first, rows)
            if any((i, j) not in self._finished for j in range(first, min(i + 1, last)))
        ]
        if not open_rows:
            return
        last = min(last, open_rows[-1] + 1)
        above = dict(reader.stream((j, m) for j in range(first, last) for m in range(first)))
        for i in range(first, rows):
            if i < last or i in open_rows:
                self._row(i, first, last, above, reader)

    def _row(
        self,
        i: int,
        first: int,
        last: int,
        above: dict[Key, NDArray[Any]],
        reader: _Reader,
    ) -> None:
        """Compute the tiles (i, j) of a panel that are not there; hold them if they are above."""
        columns = range(first, min(i + 1, last))
        open_ = [j for j in columns if (i, j) not in self._finished]
        sums = {j: self._start(i, j) for j in open_}
        if open_:
            left = (
                (((i, m), above[i, m]) for m in range(first))
                if i < last
                else reader.stream((i, m) for m in range(first))
            )
            for (_, m), tile in left:
                for j in open_:
                    self._arithmetic.subtract_product(sums[j], tile, above[j, m])
        row: dict[int, NDArray[Any]] = {}
        for j in columns:
            if j in sums:
                values = sums.pop(j)
                for m in range(first, j):
                    other = row[m] if j == i else above[j, m]
                    self._arithmetic.subtract_product(values, row[m], other)
                if j < i:
                    self._arithmetic.divide(values, above[j, j])
                else:
                    self._factor(values, i)
                self._store.write((i, j), values)
                self._finished.add((i, j))
                self._done += j + 1
                if self._report is not None:
                    self._report(self._done / self._work)
            else:
                values = reader.read((i, j))
            row[j] = values
            if i < last:
                above[i, j] = values

    def _start(self, i: int, j: int) -> NDArray[Any]:
        rows, columns = self._store.grid.extent((i, j))
        # Stored matrices have the tiles above the diagonal.
        values = np.array(self._matrix[columns, rows].T, self._arithmetic.dtype, order="C")
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"k must be finite, got NaN or infinity in rows {rows.start} to {rows.stop - 1}, "
                f"columns {columns.start} to {columns.stop - 1}: look at these samples"
            )
        if i == j:
            values[np.diag_indices(len(values))] += self._ridge
        return values

    def _factor(self, values: NDArray[Any], i: int) -> None:
        start = self._store.grid.extent((i, i))[0].start
        part = slice(start, start + len(values))
        before = self._matrix[part, part].diagonal().astype(np.float64) + self._ridge
        reduced = values.copy()
        info = self._arithmetic.factor(values)
        if info > 0:  # the rows above are factored: they give the pivot, whatever LAPACK left
            index = info - 1
            row = reduced[index : index + 1, :index].copy()
            self._arithmetic.divide(row, np.ascontiguousarray(values[:index, :index]))
            pivot = float(reduced[index, index]) - float(np.sum(row.astype(np.float64) ** 2))
        else:
            pivots = values.diagonal().astype(np.float64) ** 2 / before
            least = max(self._n, _MIN_ROUNDINGS) * float(np.finfo(self._arithmetic.dtype).eps)
            if pivots.min() >= least:
                return
            index = int(np.argmin(pivots))
            row, pivot = values[index : index + 1, :index], float(pivots[index] * before[index])
        weights = self._weights(i, values[:index, :index], row[0])
        raise NotPositiveDefinite(start + index, pivot, weights)

    def _weights(self, i: int, triangle: NDArray[Any], row: NDArray[Any]) -> FloatArray:
        """Return the weights of earlier samples that make up one: ``L^-T`` times its row of L.

        `triangle` is what is factored of the tile on the diagonal, `row` what follows it.
        """
        exact = _Arithmetic(np.dtype(np.float64))
        index, height = len(row), self._store.grid.extent((i, i))[0].start

        def solve(triangle: NDArray[Any], values: FloatArray) -> FloatArray:
            column = np.array(values, np.float64)[:, None]
            if column.size:
                exact.solve_transposed(column, np.ascontiguousarray(triangle, np.float64))
            return column[:, 0]

        last = solve(triangle, row)
        weights = np.empty(height)
        for j in range(i):
            columns = self._store.grid.extent((i, j))[1]
            tile = self._store.read((i, j)).astype(np.float64)
            weights[columns] = tile[index] - last @ tile[:index]
        for m in reversed(range(i)):
            rows = self._store.grid.extent((m, m))[0]
            weights[rows] = solve(self._store.read((m, m)), weights[rows])
            for j in range(m):
                weights[self._store.grid.extent((m, j))[1]] -= (
                    self._store.read((m, j)).T.astype(np.float64) @ weights[rows]
                )
        return np.concatenate([weights, last])


def _explain(matrix: Matrix, error: NotPositiveDefinite, ridge: float, mean: float) -> str:
    """Say why a pivot is not positive, and which ridge would be enough."""
    n, index = matrix.shape[0], error.index
    unit, name = (mean, " trace(k)/n") if mean > 0 else (1.0, "")
    message = (
        f"k is not positive definite to rounding, with relative ridge {ridge:g}: the pivot of "
        f"sample {index} (from 0) of n = {n} is {error.pivot / unit:.3g}{name}. "
    )
    entries = diagonal(matrix)
    if entries[index] <= 0 or mean <= 0:
        return message + (
            f"k[{index}, {index}] is {entries[index]:.3g}; it is 0 for a sample of zeros: remove "
            "such samples from the training set, or give the network a bias (b_std > 0)."
        )
    # With v = (-weights, 1) the pivot is v' A v: an eigenvalue is at most this. Of a Gram matrix
    # that was rounded none is far below: independent roundings make a matrix of norm
    # 2 sqrt(n) eps trace(k)/n.
    eigenvalue = error.pivot / (1.0 + float(error.weights @ error.weights)) / mean
    rounding = n**0.5 * epsilon(matrix.dtype)
    if eigenvalue < -_MAX_ROUNDINGS * rounding:
        sums = multiply(matrix, np.ones((n, 1)), absolute=True)[:, 0]
        enough = float((sums - 2 * entries).max()) / mean
        return message + (
            "This is far beyond rounding, so k is no Gram matrix: compute it again, from the "
            f"training samples in one order. No relative ridge below ridge={max(enough, 0.0):.3g} "
            "is sure to be enough (by Gershgorin's circles)."
        )
    nearest = int(np.argmax(np.abs(error.weights))) if index else 0
    weight = float(error.weights[nearest]) if index else 0.0
    enough = 10 ** np.ceil(np.log10(max(10 * ridge, 10 * rounding, -10 * eigenvalue)))
    return message + (
        "To rounding this sample is a combination of those before it, above all of sample "
        f"{nearest} (weight {weight:.3g}). Add a larger relative ridge: ridge={enough:g} is enough "
        "by the size of rounding; or remove samples that repeat another one, or are a positive "
        "multiple of it when the network has no biases"
        + ('; or compute the kernel with dtype="float64".' if epsilon(matrix.dtype) > 1e-9 else ".")
    )


def solve_tiled(
    k: ArrayLike | Matrix,
    y: ArrayLike,
    ridge: float = 0.0,
    *,
    store: str | os.PathLike[str],
    memory: int | str | None = None,
    tile: int | None = None,
    progress: Progress | None = None,
    verify: bool = False,
) -> Solution:
    """Solve ``(k + ridge trace(k)/n I) a = y`` by a Cholesky factor larger than memory.

    Parameters
    ----------
    k, ridge, store, memory, tile, progress, verify
        As for `factorise`; the factor is float64, and stays in the store.
    y : array-like of shape (n,) or (n, targets)

    Returns
    -------
    Solution
        With the residual from a pass over k. ``reciprocal_condition`` is an upper bound, from the
        smallest pivot: ``min pivot / max diagonal``.

    Raises
    ------
    TypeError, ValueError, MemoryError, OSError
        As for `factorise`.
    """
    start = time.perf_counter()
    matrix = as_matrix(k)
    n = matrix.shape[0]
    targets = check_targets(y, n)
    try:
        factor = factorise(
            matrix,
            ridge,
            store=store,
            memory=memory,
            tile=tile,
            progress=progress,
            verify=verify,
        )
    except NotPositiveDefinite as error:
        relative = check_ridge(ridge)
        mean = float(diagonal(matrix).mean())
        message = _explain(matrix, error, relative, mean)
        return failed(y, relative, relative * mean, message, time.perf_counter() - start)
    value = factor.solve(targets)
    residual = targets - multiply(matrix, value) - factor.ridge_absolute * value
    size = float(np.linalg.norm(targets))
    entries = diagonal(matrix)
    smallest = float(factor.pivots().min())
    noise = n**0.5 * epsilon(matrix.dtype) * float(entries.mean())
    return Solution(
        value=value.reshape(np.shape(y)),
        status=Status.ILL_CONDITIONED if smallest < noise else Status.SOLVED,
        statistics=Statistics(
            n=n,
            ridge=factor.ridge,
            ridge_absolute=factor.ridge_absolute,
            residual_norm=float(np.linalg.norm(residual)) / size if size else 0.0,
            reciprocal_condition=smallest / float(entries.max() + factor.ridge_absolute),
            seconds=time.perf_counter() - start,
        ),
    )
