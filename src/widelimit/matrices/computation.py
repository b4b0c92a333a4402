"""What computes the tiles of one store, and what a process of workers keeps of it between tasks."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np

from widelimit.arrays import Rows
from widelimit.backends import Backend, BackendName, get_backend
from widelimit.machine import remaining
from widelimit.matrices.engine import Engine
from widelimit.matrices.families import calls, find_families, profile_bytes, scratch_bytes
from widelimit.matrices.inputs import number_samples
from widelimit.matrices.manifest import Maker, Manifest
from widelimit.matrices.matrix import read_manifest
from widelimit.matrices.plan import IN_FLIGHT, Plan, Sizes, solve
from widelimit.matrices.profiles import Samples, make_sides
from widelimit.matrices.store import TileStore
from widelimit.matrices.stored_inputs import StoredInputs
from widelimit.matrices.tiles import Grid

__all__ = ["Computation", "Order", "kept"]


@dataclass(frozen=True, slots=True)
class Order:
    """An engine that is asked for: all that its tiles, its speed and its memory depend on.

    Parameters
    ----------
    store : str
        Path or URL of the store, where the inputs lie.
    fingerprint : str
        Of its manifest: networks, kinds, dtype, inputs.
    backend : BackendName
    maker : Maker
        What the backend of this name is in this process now.
    grid : Grid
    threads : int
        Of each engine, at most.
    memory : int or None
        Bytes that this process may take, as for `gram`.
    engines : int
        Tasks that it runs at a time, at most: others wait.
    known : int
        Samples, the first ones, whose pairs the sink knows.
    """

    store: str
    fingerprint: str
    backend: BackendName
    maker: Maker
    grid: Grid
    threads: int
    memory: int | None
    engines: int
    known: int


class Computation:
    """The inputs and programs of a store: makes the engine that computes its tiles."""

    def __init__(self, manifest: Manifest, x1: Rows, x2: Rows | None, backend: Backend) -> None:
        self.manifest = manifest
        self.families = find_families(manifest.networks, x1.shape[1:], manifest.kinds, backend)
        left, right = number_samples(x1, x2)
        self._left = Samples(x1, left)
        self._right = None if x2 is None or right is None else Samples(x2, right)

    def sizes(self, threads: int, *, listed: int = 0, handed_out: bool = False) -> Sizes:
        """Return what memory depends on, with so many threads at most. See `Sizes`."""
        families, manifest = self.families, self.manifest

        @cache
        def cut(side: int) -> tuple[int, int]:
            return calls(families, manifest.dtype, side, IN_FLIGHT * threads)

        *_, n1, n2 = manifest.shape
        return Sizes(
            n1=n1,
            n2=n2,
            symmetric=self._right is None,
            entry=np.dtype(manifest.dtype).itemsize,
            matrices=len(manifest.networks) * len(manifest.kinds),
            sample=8 * math.prod(manifest.x1.shape[1:]),
            profile=profile_bytes(families, manifest.dtype),
            scratch=scratch_bytes(families, manifest.dtype),
            calls=cut,
            element_layers=sum(family.program.element_layers for family in families),
            listed=listed,
            handed_out=handed_out,
        )

    def engine(self, grid: Grid, plan: Plan, known: int) -> Engine:
        """Return an engine; one thread at a time may run it. For `known` see `Order`."""
        families, dtype = self.families, self.manifest.dtype
        sides = make_sides(
            self._left, self._right, families, dtype, grid.tile, plan.group, plan.columns
        )
        return Engine(families, *sides, grid, dtype, plan.threads, known=known)


# ---------------------------------------------------------------- what a worker keeps


class _Kept:
    """The last order of this process, and its engines: all threads share the memory.

    Tasks of another order wait for those that run.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._order: Order | None = None
        self._computation: Computation | None = None
        self._plan: Plan | None = None
        self._free: list[Engine] = []
        self._running = 0

    @contextmanager
    def engine(self, order: Order, tiles: TileStore) -> Generator[Engine]:
        """Lend an engine of an order, with the profiles that it has, to one thread.

        Parameters
        ----------
        order : Order
        tiles : TileStore
            Its store, as it is now.

        Raises
        ------
        MemoryError
            If the memory of the order is too little.
        """
        with self._changed:
            while self._running >= (order.engines if order == self._order else 1):
                self._changed.wait()
            if order != self._order:
                self._change(order, tiles)
            assert self._computation is not None
            assert self._plan is not None
            made = self._free.pop() if self._free else None
            engine = made or self._computation.engine(order.grid, self._plan, order.known)
            self._running += 1
        try:
            yield engine
        finally:
            with self._changed:
                self._running -= 1
                self._free.append(engine)
                self._changed.notify_all()

    def forget(self) -> None:
        """Let go of all, if nothing runs."""
        with self._changed:
            if not self._running:
                self._order = self._computation = self._plan = None
                self._free.clear()

    def _change(self, order: Order, tiles: TileStore) -> None:
        """Make room, then what another order needs; inputs are not read again for the same ones."""
        last, computation = self._order, self._computation
        self._order = self._computation = self._plan = None
        self._free.clear()
        if last is None or _inputs_of(last) != _inputs_of(order):
            computation = None
        if computation is None:
            manifest = read_manifest(tiles)
            x1 = StoredInputs(tiles.objects, "x1", manifest.x1)
            x2 = None if manifest.x2 is None else StoredInputs(tiles.objects, "x2", manifest.x2)
            computation = Computation(manifest, x1, x2, get_backend(order.backend, worker=True))
        budget = remaining(order.memory) / order.engines
        sizes = computation.sizes(order.threads)
        self._plan = solve(sizes, budget, order.threads, order.grid.tile, order.engines)
        self._order, self._computation = order, computation


def _inputs_of(order: Order) -> tuple[str, str, Maker]:
    return order.store, order.fingerprint, order.maker


kept = _Kept()
