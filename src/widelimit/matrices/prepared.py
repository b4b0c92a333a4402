"""Kernels between new samples and samples that stay, which are prepared once."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import IntArray
from widelimit.backends import BackendName, choose, get_backend
from widelimit.backends.base import PROFILE_BYTES, Dtype
from widelimit.matrices.engine import Engine, fill, memory_grid
from widelimit.matrices.families import choose_backend, find_families, profile_bytes
from widelimit.matrices.inputs import (
    Numbering,
    check_dtype,
    check_kinds,
    check_networks,
    check_one_shape,
    check_samples,
    check_threads,
)
from widelimit.matrices.kernel import check_memory
from widelimit.matrices.profiles import Samples, Side
from widelimit.matrices.sinks import InMemory
from widelimit.network import Network
from widelimit.program import Kind

__all__ = ["PreparedKernel"]

_Key = tuple[tuple[Kind, ...], str]  # kinds, and the instruction set
_Sides = dict[_Key, Side]


@dataclass(eq=False)
class _Held:
    """What one object keeps between calls: numbers, and profiles for the kinds asked for."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: tuple[Numbering, IntArray] | None = None
    sides: _Sides = field(default_factory=_Sides)


class _Shelf:
    """Bounds the profiles that all objects of this process keep together; the oldest go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: OrderedDict[tuple[weakref.ref[_Held], _Key], int] = OrderedDict()

    def side(self, held: _Held, key: _Key, size: int, make: Callable[[], Side]) -> Side | None:
        """Return what is kept, or made now, and takes `size` bytes; None if that is too much."""
        if size > PROFILE_BYTES:
            return None
        with self._lock:
            for entry in [entry for entry in self._sizes if entry[0]() is None]:
                del self._sizes[entry]
            if key not in held.sides:
                held.sides[key] = make()
            self._sizes[weakref.ref(held), key] = size
            self._sizes.move_to_end((weakref.ref(held), key))
            while sum(self._sizes.values()) > PROFILE_BYTES:
                (other, gone), _ = self._sizes.popitem(last=False)
                if (owner := other()) is not None:
                    owner.sides.pop(gone, None)
            return held.sides[key]


_shelf = _Shelf()


@dataclass(frozen=True, eq=False)
class PreparedKernel:
    """Kernels of networks between new samples and samples that stay the same.

    What `kernel` would do with the samples that stay at each call is done at the first: they are
    checked, numbered (so that equal samples of both sides are known to be equal), and profiled.
    A copy, or one that was pickled, does it again.

    Parameters
    ----------
    networks : sequence of Network
        One or more; stored as a tuple.
    samples : ndarray of shape (n, h, w, c), or (n, d) for dense networks
        Not copied, and not to be changed: it is what was prepared that would be used.
    backend, dtype, threads
        As for `kernel`.

    Raises
    ------
    TypeError, ValueError
        As for `kernel`. Entries of `samples` are looked at when they are first used.

    Notes
    -----
    Profiles are kept while those of all objects take no more than 256 MiB together, those that
    were used last first; profiles that alone take more are made again by each call. Several
    threads may use one object at a time.
    """

    networks: Sequence[Network]
    samples: NDArray[Any]
    backend: BackendName = "auto"
    dtype: Dtype = "float32"
    threads: int | None = None
    _held: _Held = field(default_factory=_Held, init=False, repr=False)

    def __post_init__(self) -> None:
        networks = tuple(check_networks(self.networks))
        check_dtype(self.dtype)
        check_threads(self.threads)
        choose(self.backend, 0)
        object.__setattr__(self, "networks", networks)
        object.__setattr__(self, "samples", check_samples(networks, "x2", self.samples))

    def __reduce__(self) -> tuple[Any, ...]:
        values = (self.networks, self.samples, self.backend, self.dtype, self.threads)
        return PreparedKernel, values

    def cross(self, new: ArrayLike, kinds: Sequence[Kind]) -> list[NDArray[Any]]:
        """Return the kernels between new samples and those that stay.

        Parameters
        ----------
        new : array_like of shape (n1, h, w, c) or (n1, d)
            Samples of the same shape.
        kinds : sequence of {"ntk", "nngp"}

        Returns
        -------
        list of ndarray, each of shape (n_networks, n1, n)
            One for each of `kinds`, in `dtype`: what ``kernel(networks, new, samples, kinds)``
            returns, to the last bit.

        Raises
        ------
        TypeError, ValueError, MemoryError, OverflowError
            As for `kernel`; `new` is called x1 there, and the samples that stay x2.
        """
        chosen = check_kinds(tuple(kinds))
        threads = check_threads(self.threads)
        x = check_samples(self.networks, "x1", new)
        check_one_shape(x, self.samples)
        sizes = x.shape[1:], len(x), len(self.samples)
        backend = get_backend(choose_backend(self.backend, self.networks, *sizes))
        families = find_families(self.networks, x.shape[1:], chosen, backend)
        shape = (len(self.networks), len(chosen), len(x), len(self.samples))
        check_memory(shape, self.dtype, families, threads, symmetric=False)
        out = np.empty(shape, self.dtype)
        left, right = self._number(x)
        grid = memory_grid(len(left), len(right))
        side = _shelf.side(
            self._held,
            (chosen, getattr(backend, "isa", "")),
            len(right) * profile_bytes(families, self.dtype),
            lambda: Side(right, families, self.dtype, grid.tile, grid.shape[1]),
        )
        if side is None:
            fill(families, left, right, out, self.dtype, threads)
        else:
            new_side = Side(left, families, self.dtype, grid.tile, 2)
            engine = Engine(families, new_side, side, grid, self.dtype, threads)
            keys = grid.order(grid, 1)
            with closing(engine.run(keys, InMemory(out, grid))) as parts:
                for _ in parts:
                    pass
        return [out[:, k] for k in range(len(chosen))]

    def _number(self, x: NDArray[Any]) -> tuple[Samples, Samples]:
        """Return new samples, and those that stay, with numbers that are equal for equal ones."""
        held = self._held
        with held.lock:
            if held.numbers is None:
                numbering = Numbering()
                held.numbers = numbering, numbering.add("x2", self.samples)
        numbering, numbers = held.numbers
        return Samples(x, numbering.find("x1", x)), Samples(self.samples, numbers)
