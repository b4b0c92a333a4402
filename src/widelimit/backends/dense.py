"""Dense networks: no slices, but the inner products of the inputs, in float64 NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import PROFILE_BYTES, Cancelled, Dtype, Entries, Pairs, Profile
from widelimit.backends.cut import squares
from widelimit.program import Program

__all__ = ["DenseBackend", "DenseProfile"]

_SIDE = 128  # samples, and entries of each, of one matrix product


@dataclass(frozen=True, eq=False)
class DenseProfile:
    """Samples as rows."""

    rows: FloatArray  # (n, d)

    def __len__(self) -> int:
        return len(self.rows)


class DenseBackend:
    """The one tap of a dense program: K is the covariance of the inputs, and Theta is 0.

    `dtype` is ignored. Single pairs are dot products, which may differ from the entries of blocks
    in the last bit: they serve for variances, and `cut` has none.
    """

    name = "dense"

    def lanes(self, dtype: Dtype) -> int:
        """Return the side of the squares that are multiplied."""
        return _SIDE

    def cut(self, program: Program, dtype: Dtype, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
        """Cut into squares; see `Backend.cut`."""
        return squares(_SIDE, entries)

    def prepare(self, program: Program, dtype: Dtype) -> None:
        """Do nothing: no call waits."""

    def profile_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of one sample."""
        return 8 * program.shape[0]

    def profile_room(self) -> int:
        """Return what is little beside a matrix in memory."""
        return PROFILE_BYTES

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of a few squares."""
        return 8 * 8 * _SIDE**2

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Flatten samples to rows."""
        return DenseProfile(images.reshape(len(images), -1))

    def sums(
        self,
        program: Program,
        left: Profile,
        right: Profile,
        pairs: Pairs,
        cancel: NDArray[np.int32],
    ) -> FloatArray:
        """Return input covariances as the sums of the one tap; see `Backend.sums`."""
        assert isinstance(left, DenseProfile)
        assert isinstance(right, DenseProfile)
        if cancel[0]:
            raise Cancelled
        result = np.zeros((1, 2, *pairs.shape))
        rows, columns = pairs.rows, pairs.columns
        if pairs.pairwise:
            dots = np.einsum("ij,ij->i", left.rows[rows], right.rows[columns])
            result[0, 0] = program.input_scale * dots
            return result
        x = left.rows[rows[0] : rows[-1] + 1]
        z = right.rows[columns[0] : columns[-1] + 1]
        for i in range(0, len(x), _SIDE):
            for j in range(0, len(z), _SIDE):
                down, across = slice(i, i + _SIDE), slice(j, j + _SIDE)
                product = _product(x[down], z[across])
                result[0, 0, down, across] = program.input_scale * product
        return result


def _product(x: FloatArray, z: FloatArray) -> FloatArray:
    """Return ``x @ z.T`` of at most `_SIDE` rows each.

    The order in which a matrix product sums depends on its shape, and with long rows on the
    threads of the BLAS. No bit may depend on either: all products have one shape, filled up with
    zeros, and sum few numbers.
    """
    product = np.zeros((_SIDE, _SIDE))
    part1, part2 = np.zeros((2, _SIDE, _SIDE))
    for start in range(0, x.shape[1], _SIDE):
        for part, values in ((part1, x), (part2, z)):
            columns = values[:, start : start + _SIDE]
            part[...] = 0
            part[: len(columns), : columns.shape[1]] = columns
        product += part1 @ part2.T
    return product[: len(x), : len(z)]
