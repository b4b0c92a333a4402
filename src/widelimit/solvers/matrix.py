"""Gram matrices that solvers read a piece at a time: arrays in memory, and stored ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray
from widelimit.machine import available_memory

__all__ = [
    "Bordered",
    "Leading",
    "Matrix",
    "as_matrix",
    "columns_of",
    "diagonal",
    "fingerprint",
    "load",
    "multiply",
    "pieces",
    "tile_side",
]

_SMALLEST_TILE, _LARGEST_TILE = 64, 1024
_TILES_A_SIDE = 4


class Matrix(Protocol):
    """A symmetric Gram matrix: an ndarray, or what reads like one, as `Gram` does.

    Of what is stored only one half is read, in pieces that begin and end at multiples of its
    ``tile``.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, n)``."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        ...

    def __getitem__(self, index: tuple[slice, slice], /) -> NDArray[Any]: ...


def as_matrix(k: ArrayLike | Matrix) -> Matrix:
    """Return a stored matrix as it is, anything else as an array; check that it is square.

    Raises
    ------
    TypeError, ValueError
        If it is not real, or not ``(n, n)`` with n >= 1, or stored as that of two sets of samples.
    """
    matrix = cast("Matrix", k if hasattr(k, "tile") else np.asarray(k))
    if matrix.dtype.kind not in "fiu":
        raise TypeError(
            f"k must hold real numbers, got dtype {matrix.dtype}: convert it to float64"
        )
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1] or 0 in matrix.shape:
        raise ValueError(
            f"k must be a square Gram matrix (n, n) with n >= 1, got shape {matrix.shape}: "
            "give the kernel of the training samples with themselves"
        )
    if getattr(matrix, "symmetric", True) is False:
        raise ValueError(
            f"k must be the kernel of the training samples with themselves, got {matrix!r} between "
            "two sets of samples: give wl.gram(net, x1), without x2"
        )
    return matrix


def tile_side(k: Matrix) -> int:
    """Return the side of the pieces that a matrix is read in: its own, if it has one."""
    own = int(getattr(k, "tile", 0))
    if own:
        return own
    side = _LARGEST_TILE
    while side > _SMALLEST_TILE and side * _TILES_A_SIDE > k.shape[0]:
        side //= 2
    return side


def fingerprint(k: Matrix) -> str:
    """Return a digest, in hexadecimal, that tells a matrix from others."""
    own = getattr(k, "fingerprint", None)
    if own is not None:
        return str(own)
    digest = hashlib.sha256(f"{k.shape} {k.dtype.str}".encode())
    for start in range(0, k.shape[0], _SMALLEST_TILE):
        digest.update(np.ascontiguousarray(k[start : start + _SMALLEST_TILE, :]).data)
    return digest.hexdigest()


class Leading:
    """The first n rows and columns of a matrix, read from it in its own pieces."""

    def __init__(self, k: Matrix, n: int) -> None:
        self._k, self.shape, self.dtype, self.tile = k, (n, n), k.dtype, tile_side(k)

    def __getitem__(self, index: tuple[slice, slice], /) -> NDArray[Any]:
        rows, columns = index
        return self._k[self._whole(rows), self._whole(columns)][
            : rows.stop - rows.start, : columns.stop - columns.start
        ]

    def _whole(self, part: slice) -> slice:
        stop = -(-part.stop // self.tile) * self.tile
        return slice(part.start, min(stop, self._k.shape[0]))


class Bordered:
    """A Gram matrix (n, n), and the kernel of p more samples: together (n + p, n + p).

    Parameters
    ----------
    gram : callable
        Returns the old matrix; is called only where the whole is read, as by `numpy.asarray`.
    columns, corner : ndarray of shape (n, p), (p, p)
        The kernel between old and new samples, and that of the new ones.
    """

    def __init__(
        self, gram: Callable[[], NDArray[Any]], columns: NDArray[Any], corner: NDArray[Any]
    ) -> None:
        self._gram, self._columns, self._corner = gram, columns, corner
        n = len(columns) + len(corner)
        self.shape, self.dtype = (n, n), columns.dtype

    def __getitem__(self, index: tuple[slice, slice], /) -> NDArray[Any]:
        rows, columns = (range(*part.indices(len(self))) for part in index)
        n = len(self._columns)
        if columns.start < n:
            return np.asarray(self)[index]
        right = slice(columns.start - n, columns.stop - n)
        if rows.stop <= n:
            return self._columns[rows.start : rows.stop, right]
        if rows.start >= n:
            return self._corner[rows.start - n : rows.stop - n, right]
        return np.asarray(self)[index]

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.block(
            [[self._gram().astype(self.dtype), self._columns], [self._columns.T, self._corner]]
        )
        return whole if dtype is None else whole.astype(dtype)


def pieces(k: Matrix) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
    """Yield the pieces on and above the diagonal, each once: rows, columns, entries."""
    n, t = k.shape[0], tile_side(k)
    for i in range(0, n, t):
        rows = slice(i, min(n, i + t))
        for j in range(i, n, t):
            columns = slice(j, min(n, j + t))
            yield rows, columns, k[rows, columns]


def diagonal(k: Matrix) -> FloatArray:
    """Return the diagonal as float64."""
    n, t = k.shape[0], tile_side(k)
    parts = [slice(i, min(n, i + t)) for i in range(0, n, t)]
    return _finite(np.concatenate([k[part, part].diagonal() for part in parts]).astype(np.float64))


def load(k: Matrix, dtype: str) -> NDArray[Any]:
    """Read a whole matrix into one new array, ``(n, n)``, row-first: one buffer, and one piece.

    Raises
    ------
    MemoryError
        Before anything is read, if it will not fit.
    """
    n = k.shape[0]
    need, free = n * n * np.dtype(dtype).itemsize, available_memory()
    if free is not None and need > free:
        raise MemoryError(
            f"{n} x {n} entries of {dtype} need {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
            "free: use solve_tiled, whose factor lies in a store"
        )
    out = np.empty((n, n), dtype)
    for rows, columns, values in pieces(k):
        out[rows, columns] = values
        out[columns, rows] = values.T
    return out


def columns_of(k: Matrix, chosen: NDArray[np.intp]) -> FloatArray:
    """Return some columns as float64, (n, len(chosen)); reads only pieces that hold some."""
    n, t = k.shape[0], tile_side(k)
    out = np.empty((n, len(chosen)))
    tiles = chosen // t
    for i in range(0, n, t):
        rows = slice(i, min(n, i + t))
        down = np.flatnonzero(tiles == i // t)
        for j in range(i, n, t):
            columns = slice(j, min(n, j + t))
            across = np.flatnonzero(tiles == j // t)
            if not (down.size or across.size):
                continue
            values = k[rows, columns]
            out[rows, across] = values[:, chosen[across] - j]
            out[columns, down] = values[chosen[down] - i].T
    return _finite(out)


def multiply(k: Matrix, v: FloatArray, *, absolute: bool = False) -> FloatArray:
    """Return ``k v`` in float64, or ``|k| v``, for v (n, m): one pass over half of the matrix."""
    out = np.zeros_like(v)
    for rows, columns, values in pieces(k):
        block = values.astype(np.float64)
        if absolute:
            np.abs(block, out=block)
        out[rows] += block @ v[columns]
        if rows != columns:
            out[columns] += block.T @ v[rows]
    return _finite(out)


def _finite(rows: FloatArray) -> FloatArray:
    """Refuse what came of a matrix that is not finite: such an entry always reaches its row."""
    wrong = ~np.isfinite(rows)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise ValueError(
            f"k must be finite, got NaN, infinity or huge values in row {row}: look at that sample"
        )
    return rows
