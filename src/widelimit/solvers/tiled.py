"""Cholesky factors larger than memory: a tile at a time, resumable after a kill.

With tiles of one size, ``A = k + ridge trace(k)/n I`` and ``A = L L^T``, row by row

    L[i, j] = (A[i, j] - sum_{m < j} L[i, m] L[j, m]^T) L[j, j]^-T      j < i
    L[i, i] = chol(A[i, i] - sum_{m < i} L[i, m] L[i, m]^T)

The products of a tile are always summed in the order of m, each by one call of BLAS of one shape.
So no bit of a tile depends on how much memory there is, nor on where a run was killed.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit._version import __version__
from widelimit.arrays import FloatArray, IntArray
from widelimit.display import share_alone, shown
from widelimit.machine import parse_memory, remaining
from widelimit.matrices.inputs import check_threads, check_tile
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import StoreError, TileStore, is_finished, room_of
from widelimit.matrices.tiles import Grid, Key, KeySet
from widelimit.solvers.blas import Arithmetic, Crew
from widelimit.solvers.checks import (
    check_absolute,
    check_matrix,
    check_ridge,
    check_targets,
    entry,
    epsilon,
    named,
)
from widelimit.solvers.factor import Reader, TiledFactor, fitting_width, read_ridges
from widelimit.solvers.matrix import (
    Leading,
    Matrix,
    as_matrix,
    diagonal,
    fingerprint,
    multiply,
    tile_side,
)
from widelimit.solvers.solution import Solution, failed

__all__ = ["NotPositiveDefinite", "factorise", "solve_tiled"]

_FORMAT = "widelimit.factor/1"
_MIN_ROUNDINGS = 100  # that a pivot must exceed, as in `solve_cholesky`
_EPSILON = 2.0**-52  # of the arithmetic of `solve_tiled`
_MAX_ROUNDINGS = 100  # that a negative pivot of a Gram matrix may be
_LEAST_SIDE = 64  # of the tile of a factor, where there are more of them than that on a side
_REUSE_ROUNDINGS = 2  # times n that a factor may differ from its matrix: `_check_factor_of`
_WIDEST_PANEL = 6  # tiles: wider ones leave less to do side by side
_AHEAD = 2  # tiles that wait to be written
_COPIES = 5  # of targets: they, the value, its product with k, ridge times it, and one to spare

_Item = TypeVar("_Item")


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


class _Writer:
    """Writes tiles on a thread of its own, a few behind the computation."""

    def __init__(self, store: TileStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="widelimit-write")
        self._pending: list[Future[Any]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True)

    def write(self, key: Key, values: NDArray[Any]) -> None:
        """Write a tile soon; an error of an earlier one is raised here."""
        with self._lock:
            while len(self._pending) >= _AHEAD:
                self._pending.pop(0).result()
            self._pending.append(self._pool.submit(self._store.write, key, values))

    def wait(self) -> None:
        """Wait until all is written."""
        with self._lock:
            while self._pending:
                self._pending.pop(0).result()


def _panel_tiles(first: int, rows: int, width: int) -> float:
    """Return the tiles that a panel holds: rows above, its triangle, sums of rows and the next."""
    return width * first + width * (width + 1) / 2 + 2 * rows * width


def _panel_budget(
    memory: int | str | None, k: Matrix, grid: Grid, entry: int, first: int, threads: int
) -> float:
    """Return the tiles, of such entries, that the panel that begins with a column may hold.

    MemoryError if it is not enough for one column.
    """
    tile, own = grid.tile**2 * entry, int(getattr(k, "tile", 0))
    # Besides what is held: tiles read ahead, one of k, and what is being written. Where those of k
    # are larger, one is read, and unpacked, for each part of it, by two threads; and in a pass over
    # k one is there as float64, too.
    unpacked = own**2 * (2 * k.dtype.itemsize + 8) if own > grid.tile else 0
    spare = _AHEAD * (1 + threads) + 8 + unpacked / tile
    budget, need = remaining(memory) / tile - spare, _panel_tiles(first, threads, 1)
    if budget < need:
        parts = smaller = ""
        if unpacked:
            parts = f", {unpacked / 2**20:.0f} of them for the tiles of k, of {own} samples"
            smaller = ", or for k"
        raise MemoryError(
            f"this takes {math.ceil((need + spare) * tile / 2**20)} MiB at least beside what the "
            f"process holds{parts}: raise memory, or use a smaller tile for a new factor{smaller}"
        )
    return budget


def _beside_targets(memory: int | str | None, size: int) -> int | str | None:
    """Return the memory that is for a factor: what targets of so many bytes leave of it.

    Raises
    ------
    MemoryError
        If they leave nothing.
    """
    taken, left = _COPIES * size, remaining(memory)
    if taken > left:
        raise MemoryError(
            f"to solve for these targets takes {taken / 2**20:.0f} MiB beside what the process "
            f"holds, and {max(0, left) / 2**20:.0f} MiB are left of memory: raise memory, or solve "
            "for fewer targets at a time"
        )
    return None if memory is None else parse_memory(memory) - taken


def _grouped(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    while group := list(islice(items, size)):
        yield group


def factorise(
    k: ArrayLike | Matrix,
    ridge: float = 0.0,
    *,
    store: str | os.PathLike[str],
    dtype: str = "float64",
    memory: int | str | None = None,
    threads: int | None = None,
    tile: int | None = None,
    reuse: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[float], None] = False,
    verify: bool = False,
) -> TiledFactor:
    """Factor ``k + ridge trace(k)/n I = L L^T`` into a store, and go on where a run was killed.

    Parameters
    ----------
    k : Gram or array-like of shape (n, n)
        Symmetric. Of a stored matrix each tile is read once, those on its diagonal three times, if
        the factor has its tile; if that has a smaller one, a tile of k is read for each part of it.
    ridge : float
        Relative ridge, finite and >= 0: it multiplies ``trace(k)/n``. Not with `reuse`.
    store : path or fsspec URL
        Where the tiles of the factor lie: ``n (n + tile)/2`` entries.
    dtype : {"float64", "float32"}
        Of the factor and of the arithmetic.
    memory : int, str or None
        Bytes, or ``"6GB"``: the most that this process takes in all, what it holds already
        included. None: 60 % of what is available beside that. No bit depends on it.
    threads : int or None
        None: one for each processor that this process may use. No bit depends on it.
    tile : int or None
        Side of a tile of a new factor. None: that of `reuse`, or of k.
    reuse : path, fsspec URL or None
        A finished factor, of the same dtype and tile, of the first rows and columns of k: its
        complete tiles are copied, the others computed. If its last row of tiles is not complete,
        those rows, tile - 1 at most, are computed again. Its ridge stays, as an absolute number (a
        relative one would change with the trace, and all of the factor with it): `ridge` must be
        left out, and `TiledFactor.ridge` is the old one in units of the new ``trace(k)/n``. It is
        not looked at once the new factor is finished: then it may be deleted. If it is lost before,
        the call without it is refused, and names the ridge with which it goes on.
    progress : bool or callable
        True shows it on standard error, as a bar on a terminal and as lines elsewhere; a callable
        is given the finished share of the flops, 0 to 1.
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
        If k, ridge or memory are not as described, the store holds another factor, or `reuse` is no
        factor of the beginning of k.
    MemoryError
        If not even one column of tiles fits into memory, beside two tiles of k, and one as
        float64, where these are larger than those of the factor.
    BlockingIOError, OSError, FileNotFoundError, StoreError
        As for `gram`; nothing is copied of a `reuse` that is damaged.

    Notes
    -----
    Cost: ``n^3/3`` flops by BLAS; a column of tiles is read again for every panel of as many
    columns as fit into memory. A kill costs the tile under way.

    Whether `reuse` belongs to k is asked with one random vector v: ``L (L^T v)`` must be
    ``(k + ridge) v``, on the rows of `reuse`, to ``2 max(n, 100)`` roundings of its dtype in units
    of the diagonal: a difference beyond that is noticed wherever it is, a smaller one is not.
    Cost, as long as there is something to copy: two passes over the old factor and one over its
    part of k. Then ``n_old^2 m + n_old m^2 + m^3/3`` flops for m new samples.
    """
    display = shown(progress, "factor", share_alone)
    matrix = check_matrix(k)
    relative = check_ridge(ridge)
    if reuse is not None and relative:
        raise ValueError(
            f"reuse keeps the ridge that its factor has, got ridge={ridge!r} as well: leave ridge "
            "out, or leave reuse out and factor all of k"
        )
    if dtype not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    asked, size = check_tile(tile), check_threads(threads)
    n = matrix.shape[0]
    mean = float(diagonal(matrix).mean())
    absolute = check_absolute(relative, mean, dtype=dtype)
    objects = open_objects(store)
    with nullcontext() if is_finished(objects) and not verify else objects.locked():
        found, old = _find_factor(store), None
        if reuse is not None:
            if found is None or not found.is_finished:
                side = asked if found is None else found.tile
                old = same_ridge = _find_reused(reuse, n, dtype, side)
            else:
                same_ridge = found
            absolute = TiledFactor(same_ridge, memory).ridge_absolute
            relative = absolute / mean if mean > 0 else 0.0
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "kernel": fingerprint(matrix),
            "ridge": relative,
            "ridge_absolute": absolute,
            "version": __version__,
        }
        if found is not None:
            _check_same(found, manifest, n, dtype, asked)
            for key in found.damaged(sorted(found.finished())) if verify else ():
                found.delete(key)
        side = found.tile if found else asked or (_own_side(matrix) if old is None else old.tile)
        grid = Grid(n, n, side, "lower")
        if found is None or found.missing():  # before there is a store of tiles that do not fit
            _panel_budget(memory, matrix, grid, np.dtype(dtype).itemsize, grid.shape[0] - 1, size)
        whole = room_of(len(grid), side, np.dtype(dtype).itemsize)
        objects.check_room(whole if found is None else found.room(found.missing()))
        copied: list[Key] = []
        if old is not None:
            there = found.finished() if found else KeySet(grid)
            copied = [key for key in there.others() if grid.has_in_common(key, old.grid)]
            if copied or found is None:
                _check_factor_of(matrix, TiledFactor(old, memory))
        if found is None:
            found = TileStore.create(objects, (n, n), side, dtype, "lower", manifest)
        if old is not None:
            for key in copied:
                found.copy(key, old)
        if found.missing():
            with display as report:
                _Factorisation(matrix, found, memory, report).run(threads)
    return TiledFactor(found, memory, threads)


def _open_factor(store: str | os.PathLike[str]) -> TileStore:
    found = TileStore.open(open_objects(store))
    if found.manifest.get("format") != _FORMAT or found.region != "lower":
        raise StoreError(f"{found.objects.name} must hold a factor, it does not: give another path")
    return found


def _find_factor(store: str | os.PathLike[str]) -> TileStore | None:
    """Return the factor that is there already, None if there is none."""
    try:
        return _open_factor(store)
    except FileNotFoundError:
        return None


def _check_same(
    found: TileStore, manifest: dict[str, Any], n: int, dtype: str, tile: int | None
) -> None:
    """Refuse to go on with a store that holds another factor than the one that is asked for."""
    asked = {**manifest, "dtype": dtype, "n": n} | ({} if tile is None else {"tile": tile})
    del asked["ridge_absolute"]  # of one kernel and relative ridge, but for its last bit
    there = {**found.manifest, "dtype": found.dtype.name, "n": found.shape[0], "tile": found.tile}
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


def _find_reused(reuse: str | os.PathLike[str], n: int, dtype: str, side: int | None) -> TileStore:
    """Return the finished factor of at most n samples, of which tiles can be copied."""
    old = _open_factor(reuse)
    name = old.objects.name
    for what, there, wanted in (
        ("dtype", old.dtype.name, dtype),
        ("tile", old.tile, side or old.tile),
    ):
        if there != wanted:
            raise ValueError(
                f"the factor in {name} has {what}={there!r}, got {wanted!r}: give "
                f"{what}={there!r}, or leave reuse out"
            )
    if old.shape[0] > n:
        raise ValueError(
            f"the factor in {name} is of {old.shape[0]} samples, k of {n}: reuse "
            "must be a factor of the first rows and columns of k"
        )
    old.check_finished()
    return old


def _own_side(matrix: Matrix) -> int:
    """Return the tile of a factor: that of its matrix, unless these would be very many."""
    side = tile_side(matrix)
    while side < _LEAST_SIDE and side * _LEAST_SIDE < matrix.shape[0]:
        side *= 2
    return side


def _check_factor_of(matrix: Matrix, factor: TiledFactor) -> None:
    """Refuse a factor of something else than the beginning of a matrix: see `factorise`."""
    n, ridge = factor.n, factor.ridge_absolute
    first = Leading(matrix, n)
    v = np.random.default_rng(0).normal(size=(n, 1))
    gap = np.abs(factor.multiply(v) - multiply(first, v) - ridge * v)[:, 0]
    # Of L L^T an entry is off by roundings of sqrt(a_ii a_jj), a row times v by their sum.
    entries = np.abs(diagonal(first)) + ridge
    rounding = _REUSE_ROUNDINGS * max(n, _MIN_ROUNDINGS) * float(np.finfo(factor.store.dtype).eps)
    allowed = rounding * np.sqrt(entries * entries.mean())
    wrong = ~(gap <= allowed)  # also true for nan
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"reuse must be a factor of the first {n} rows and columns of k, that in "
            f"{factor.store.objects.name} is not: for a random v, L L^T v differs from "
            f"(k + ridge) v by {gap[row]:.1e} in row {row}, {allowed[row]:.1e} is rounding; give "
            "the factor of these samples in this order, or leave reuse out"
        )


class _Factorisation:
    """One run: what is finished, what is held, what is left."""

    def __init__(
        self,
        matrix: Matrix,
        store: TileStore,
        memory: int | str | None,
        report: Callable[[float], None],
    ) -> None:
        self._matrix, self._store, self._memory = matrix, store, memory
        self._report = report
        self._arithmetic = Arithmetic(np.dtype(store.dtype.name))
        self._finished = store.finished()
        _, self._ridge = read_ridges(store)
        self._n = store.shape[0]
        self._work = sum(j + 1 for _, j in store.grid.tiles())
        self._done = sum(j + 1 for _, j in self._finished)
        self._writer: _Writer
        self._starter: ThreadPoolExecutor
        self._crew: Crew
        self._lock = threading.Lock()

    def run(self, threads: int | None) -> None:
        """Compute what is missing."""
        grid, entry = self._store.grid, self._arithmetic.dtype.itemsize
        rows, first = grid.shape[0], 0
        with (
            Reader(self._store, self._arithmetic.dtype) as reader,
            _Writer(self._store) as writer,
            ThreadPoolExecutor(1, thread_name_prefix="widelimit-start") as starter,
            Crew(threads) as crew,
        ):
            self._writer, self._starter, self._crew = writer, starter, crew
            while first < rows:
                budget = _panel_budget(self._memory, self._matrix, grid, entry, first, crew.size)
                # Rows above, the triangle of the panel, the sums of some rows and the next ones.
                need = partial(_panel_tiles, first, crew.size)
                width = fitting_width(need, budget, min(_WIDEST_PANEL, rows - first))
                self._panel(first, first + width, reader)
                writer.wait()
                first += width

    def _panel(self, first: int, last: int, reader: Reader) -> None:
        """Compute the tiles of some columns, a few rows at a time."""
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
        # The rows of the panel depend on one another; those below do not.
        groups = [[i] for i in range(first, last)]
        below = [i for i in open_rows if i >= last]
        groups += [below[s : s + self._crew.size] for s in range(0, len(below), self._crew.size)]
        ahead = self._begin(groups[0], first, last)
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            sums = {key: start.result() for key, start in ahead.items()}
            ahead = self._begin(following, first, last)
            self._rows(group, first, last, sums, above, reader)

    def _begin(self, group: list[int], first: int, last: int) -> dict[Key, Future[NDArray[Any]]]:
        """Begin to read, on a thread of its own, what the open tiles of some rows start from."""
        keys = ((i, j) for i in group for j in range(first, min(i + 1, last)))
        return {
            key: self._starter.submit(self._start, *key)
            for key in keys
            if key not in self._finished
        }

    def _rows(
        self,
        group: list[int],
        first: int,
        last: int,
        sums: dict[Key, NDArray[Any]],
        above: dict[Key, NDArray[Any]],
        reader: Reader,
    ) -> None:
        """Compute the tiles of some rows that are not there; hold them if they are above."""
        subtract = self._arithmetic.subtract_product
        inside = group[0] < last
        if sums:
            held = (((i, m), above[i, m]) for m in range(first) for i in group if inside)
            left = held if inside else reader.stream((i, m) for m in range(first) for i in group)
            for some in _grouped(left, len(group)):
                self._crew.run(
                    partial(subtract, values, tile, above[j, m])
                    for (row, m), tile in some
                    for (i, j), values in sums.items()
                    if i == row
                )
        for j in range(first, min(group[-1] + 1, last)):
            self._crew.run(
                partial(self._finish, i, j, sums, above) for i in group if (i, j) in sums
            )
            column = {i: sums.pop((i, j)) if (i, j) in sums else reader.read((i, j)) for i in group}
            if inside:
                above[group[0], j] = column[group[0]]
            self._crew.run(
                partial(subtract, values, column[i], column[i] if i == other else above[other, j])
                for (i, other), values in sums.items()
            )

    def _finish(
        self, i: int, j: int, sums: dict[Key, NDArray[Any]], above: dict[Key, NDArray[Any]]
    ) -> None:
        """Turn a sum into a tile of the factor, and write it."""
        values = sums[i, j]
        if i == j:
            self._factor(values, i)
        else:
            self._arithmetic.divide(values, above[j, j])
        self._writer.write((i, j), values)
        with self._lock:
            self._finished.add((i, j))
            self._done += j + 1
            self._report(self._done / self._work)

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
        self._writer.wait()
        weights = self._weights(i, values[:index, :index], row[0])
        raise NotPositiveDefinite(start + index, pivot, weights)

    def _weights(self, i: int, triangle: NDArray[Any], row: NDArray[Any]) -> FloatArray:
        """Return the weights of earlier samples that make up one: ``L^-T`` times its row of L.

        `triangle` is what is factored of the tile on the diagonal, `row` what follows it.
        """
        exact = Arithmetic(np.dtype(np.float64))
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


def _explain(
    matrix: Matrix, error: NotPositiveDefinite, ridge: float, numbers: IntArray | None
) -> str:
    """Say why a pivot is not positive, and which ridge would be enough."""
    n, index = matrix.shape[0], error.index
    entries = diagonal(matrix)
    mean = float(entries.mean())
    unit, name = (mean, " trace(k)/n") if mean > 0 else (1.0, "")
    message = (
        f"k is not positive definite to rounding, with relative ridge {ridge:g}: the pivot of "
        f"{named(index, n, numbers)} is {error.pivot / unit:.3g}{name}. "
    )
    if entries[index] <= 0 or mean <= 0:
        return message + (
            f"{entry(index, index, numbers)} is {entries[index]:.3g}; it is 0 for a sample of "
            "zeros: remove such samples from the training set, or give the network a bias "
            "(b_std > 0)."
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
    other = nearest if numbers is None else int(numbers[nearest])
    weight = float(error.weights[nearest]) if index else 0.0
    # No pivot is below the smallest eigenvalue: twice what the largest entry asks of its own.
    least = 2 * max(n, _MIN_ROUNDINGS) * _EPSILON * float(entries.max()) / mean
    enough = 10 ** np.ceil(np.log10(max(10 * ridge, 10 * rounding, -10 * eigenvalue, least)))
    return message + (
        "To rounding this sample is a combination of those before it, above all of sample "
        f"{other} (weight {weight:.3g}). Add a larger relative ridge: ridge={enough:g} is enough "
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
    threads: int | None = None,
    tile: int | None = None,
    reuse: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[float], None] = False,
    verify: bool = False,
    numbers: IntArray | None = None,
) -> Solution:
    """Solve ``(k + ridge trace(k)/n I) a = y`` by a Cholesky factor larger than memory.

    Parameters
    ----------
    k, ridge, store, memory, threads, tile, reuse, progress, verify
        As for `factorise`; the factor is float64, and stays in the store.
    y : array-like of shape (n,) or (n, targets)
    numbers : ndarray of int64, shape (n,), or None
        As for `solve_cholesky`.

    Returns
    -------
    Solution
        With the residual from a pass over k, and its `TiledFactor`. ``Status.ILL_CONDITIONED`` if
        the smallest pivot, which the smallest eigenvalue cannot exceed, is below ``sqrt(n) eps
        trace(k)/n``. The condition is not estimated: that takes many passes over the factor.

    Raises
    ------
    TypeError, ValueError, MemoryError, OSError
        As for `factorise`.
    """
    start = time.perf_counter()
    matrix = as_matrix(k)
    size = check_targets(y, matrix.shape[0]).nbytes
    try:
        factor = factorise(
            matrix,
            ridge,
            store=store,
            memory=_beside_targets(memory, size),
            threads=threads,
            tile=tile,
            reuse=reuse,
            progress=progress,
            verify=verify,
        )
    except NotPositiveDefinite as error:
        begun = TiledFactor(_open_factor(store), memory)
        message = _explain(matrix, error, begun.ridge, numbers)
        if reuse is not None:
            message += " Another ridge changes all of the factor: leave reuse out then."
        seconds = time.perf_counter() - start
        return failed(y, begun.ridge, begun.ridge_absolute, message, seconds)
    return TiledFactor(factor.store, memory, threads).solution(matrix, y, start=start)
