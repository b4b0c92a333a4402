"""What a backend is: profiles of images, and sums over slices for pairs of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widelimit.program import Program

__all__ = ["PROFILE_BYTES", "Backend", "Cancelled", "Dtype", "Entries", "OutsideRange"]
__all__ += ["Pairs", "Profile"]

PROFILE_BYTES = 2**28  # of profiles held beside a matrix in memory, if a few blocks are not more

Dtype: TypeAlias = Literal["float32", "float64"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Entries of a Gram matrix that are computed by one call.

    Parameters
    ----------
    rows, columns : ndarray of int64, 1-D
        Samples of the left and of the right profile.
    pairwise : bool
        True: the entries ``(rows[i], columns[i])``; False: all ``(rows[i], columns[j])``, of
        consecutive rows and of consecutive columns.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    pairwise: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of their values."""
        n = len(self.rows)
        return (n,) if self.pairwise else (n, len(self.columns))


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of one tile of a Gram matrix that are wanted.

    Parameters
    ----------
    n1, n2 : int
        Shape of the tile: left and right samples.
    part : {"all", "upper", "diagonal"}
        All of them; or, of a tile whose left and right samples are the same, those with
        ``i <= j`` (the others are their mirror images) or with ``i == j``.
    known : int
        So many columns, the first ones, are not wanted.
    """

    n1: int
    n2: int
    part: Literal["all", "upper", "diagonal"] = "all"
    known: int = 0


class Profile(Protocol):
    """What single images contribute to every pair they take part in."""

    def __len__(self) -> int: ...


class OutsideRange(Exception):
    """An image is too dark or too bright for a network in a dtype.

    Parameters
    ----------
    sample : int
        Its number in the batch.
    deviation : float
        Standard deviation of a layer for it.
    least, most : float
        What it must lie between; without an upper limit it is a share of the largest of the pass.
    """

    def __init__(self, sample: int, deviation: float, least: float, most: float) -> None:
        super().__init__(sample, deviation, least, most)
        self.sample, self.deviation = sample, deviation
        self.least, self.most = least, most


class Cancelled(Exception):
    """The computation was told to stop; what it had computed is incomplete."""


class Backend(Protocol):
    """An implementation of `profile` and `sums` for the programs of some networks.

    The sums of a pair must not depend on the other pairs of the call, to the last bit, and
    ``k(x, z)`` must equal ``k(z, x)`` to the last bit.
    """

    name: str

    def lanes(self, dtype: Dtype) -> int:
        """Return the number of images in one vector; blocks of columns are best multiples of it."""
        ...

    def cut(self, program: Program, dtype: Dtype, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
        """Cut a tile into the pairs of single calls of `sums`, a tenth of a second or less each.

        `widelimit.backends.cut` has what most backends need.

        Yields
        ------
        pairs, swapped : Pairs, bool
            Every entry that is wanted is among them; a few more may be. If `swapped`, `pairs.rows`
            are right and `pairs.columns` left samples: for `sums` the two sides change places.
        """
        ...

    def prepare(self, program: Program, dtype: Dtype) -> None:
        """Make ready what the first call would have to wait for, and tell of it on a terminal."""
        ...

    def profile_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the memory that the profile of one image takes."""
        ...

    def profile_room(self) -> int:
        """Return the bytes that the profiles of a matrix in memory may take, where they lie."""
        ...

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the scratch memory that one call of `sums` takes, without its result."""
        ...

    def profile(
        self,
        program: Program,
        images: NDArray[np.float64],
        identity: NDArray[np.int64],
        dtype: Dtype,
    ) -> Profile:
        """Compute profiles of a batch.

        Parameters
        ----------
        program : Program
        images : ndarray of float64, shape (n, h, w, c), C-contiguous
        identity : ndarray of int64, shape (n,)
            Equal numbers mean identical images, also between the two profiles of a call.
        dtype : {"float32", "float64"}
            Precision of the slices; profiles are always computed in float64.

        Raises
        ------
        OutsideRange
            If an image leaves the range in which sums are right.
        """
        ...

    def sums(
        self,
        program: Program,
        left: Profile,
        right: Profile,
        pairs: Pairs,
        cancel: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        """Sum the fields over slices, for every tap and entry.

        Returns
        -------
        ndarray of float64, shape (n_taps, 2, *pairs.shape)
            Plain weighted sums of K (index 0) and Theta (index 1) for `Readout.apply`; a field
            that no kernel needs is 0.

        Raises
        ------
        Cancelled
            If ``cancel[0]`` became non-zero on the way.
        """
        ...
