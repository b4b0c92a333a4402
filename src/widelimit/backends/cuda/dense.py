"""Dense networks on cards: the inner products of the inputs, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import Cancelled, Dtype, Entries, Pairs, Profile
from widelimit.backends.cuda.device import Device, Turns, put_all
from widelimit.backends.cut import squares
from widelimit.backends.dense import DenseBackend, DenseProfile
from widelimit.program import Program

__all__ = ["CudaDense"]

_SIDE = 1024  # samples of one product
_ALIGNED = 16  # numbers of a row are a multiple of it


@dataclass(frozen=True, eq=False)
class _Profile(DenseProfile):
    resident: tuple[Any, ...]  # of each card: rows, filled up with zeros


class CudaDense(DenseBackend):
    """As `DenseBackend`, with products of matrices on cards; heads run on the processor.

    The order in which a product sums depends on its shape, so that all have one: of rows that are
    filled up with zeros, and followed by rows of zeros.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._turns = Turns(devices)

    def cut(self, program: Program, dtype: Dtype, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
        """Cut into squares; see `Backend.cut`."""
        return squares(_SIDE, entries)

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of a few squares."""
        return 8 * 8 * _SIDE**2

    def profile_room(self) -> int:
        """Return half of the memory that is free on the card with the least."""
        return min(device.free_memory() for device in self._devices) // 2

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Copy rows to the cards."""
        rows = images.reshape(len(images), -1)
        n, d = rows.shape
        filled = np.zeros((n + _SIDE, -(-d // _ALIGNED) * _ALIGNED))
        filled[:n, :d] = rows
        resident = tuple(put_all(device, [filled])[0] for device in self._devices)
        return _Profile(rows, resident)

    def sums(
        self,
        program: Program,
        left: Profile,
        right: Profile,
        pairs: Pairs,
        cancel: NDArray[np.int32],
    ) -> FloatArray:
        """Return input covariances as the sums of the one tap; see `Backend.sums`."""
        if pairs.pairwise:
            return super().sums(program, left, right, pairs, cancel)
        assert isinstance(left, _Profile)
        assert isinstance(right, _Profile)
        result = np.zeros((1, 2, *pairs.shape))
        for i in range(0, len(pairs.rows), _SIDE):
            for j in range(0, len(pairs.columns), _SIDE):
                if cancel[0]:
                    raise Cancelled
                place = result[0, 0, i : i + _SIDE, j : j + _SIDE]
                with self._turns.turn() as card:
                    x = left.resident[card][pairs.rows[i] :][:_SIDE]
                    z = right.resident[card][pairs.columns[j] :][:_SIDE]
                    product = self._devices[card].host_empty((_SIDE, _SIDE), "float64")
                    device = self._devices[card]
                    device.fetch(device.product(x, z).reshape(-1), [product])
                part = product[: place.shape[0], : place.shape[1]]
                np.multiply(part, program.input_scale, out=place)
        return result
