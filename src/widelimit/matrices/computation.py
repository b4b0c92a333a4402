"""What computes the tiles of one store, and what a worker keeps of it from task to task."""

from __future__ import annotations

import io
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.backends import Backend, BackendName, get_backend
from widelimit.matrices.engine import Engine
from widelimit.matrices.families import find_families
from widelimit.matrices.inputs import number_samples
from widelimit.matrices.manifest import Inputs, Maker, Manifest
from widelimit.matrices.matrix import read_manifest
from widelimit.matrices.objects import Objects
from widelimit.matrices.profiles import Samples, make_sides
from widelimit.matrices.store import StoreError, TileStore
from widelimit.matrices.tiles import Grid
from widelimit.reading import MAX_HEADER, open_array

__all__ = ["Computation", "Order", "kept_engine", "put_inputs"]

_WIDEST = 16  # bytes of an input


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
    held : int
        Blocks of profiles, each of the samples of one side of a tile.
    known : int
        Samples, the first ones, whose pairs the sink knows.
    """

    store: str
    fingerprint: str
    backend: BackendName
    maker: Maker
    grid: Grid
    threads: int
    held: int
    known: int


class Computation:
    """The inputs and programs of a store: makes the engine that computes its tiles."""

    def __init__(
        self, manifest: Manifest, x1: NDArray[Any], x2: NDArray[Any] | None, backend: Backend
    ) -> None:
        self.manifest = manifest
        self.families = find_families(manifest.networks, x1.shape[1:], manifest.kinds, backend)
        left, right = number_samples(x1, x2)
        self._left = Samples(x1, left)
        self._right = None if x2 is None or right is None else Samples(x2, right)

    def engine(self, grid: Grid, threads: int, held: int, known: int) -> Engine:
        """Return an engine; one thread at a time may run it. See `Order`."""
        families, dtype = self.families, self.manifest.dtype
        sides = make_sides(self._left, self._right, families, dtype, grid.tile, held)
        return Engine(families, *sides, grid, dtype, threads, known=known)


# ---------------------------------------------------------------- inputs on their way to workers


def put_inputs(tiles: TileStore, x1: NDArray[Any], x2: NDArray[Any] | None) -> None:
    """Lay inputs beside the tiles, for workers."""
    for name, values in (("x1", x1), ("x2", x2)):
        if values is not None:
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(values), allow_pickle=False)
            tiles.lay(f"inputs/{name}.npy", content.getvalue(), name)


def _get_inputs(objects: Objects, name: str, described: Inputs) -> NDArray[Any]:
    size = math.prod(described.shape) * _WIDEST
    content = objects.read(f"inputs/{name}.npy", size + MAX_HEADER)
    with open_array(content, f"{name} in {objects.name}") as stored:
        values = stored.read() if stored.shape == described.shape else None
    if values is None or Inputs.of(values) != described:
        raise StoreError(
            f"{name} in {objects.name} is not what the store is the kernel of: run the call that "
            "makes the store again, which writes its inputs anew"
        )
    return values


# ---------------------------------------------------------------- what a worker keeps


class _Kept:
    """The last computation of this process, whose inputs all its threads share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, str, Maker] | None = None
        self._computation: Computation | None = None

    def computation(self, order: Order, tiles: TileStore) -> Computation:
        """Return the computation of an order; inputs are read if it is not the one of the last."""
        key = (order.store, order.fingerprint, order.maker)
        with self._lock:
            if self._computation is None or self._key != key:
                self._key, self._computation = None, None  # room for the next one
                manifest = read_manifest(tiles)
                x1 = _get_inputs(tiles.objects, "x1", manifest.x1)
                x2 = None if manifest.x2 is None else _get_inputs(tiles.objects, "x2", manifest.x2)
                made = Computation(manifest, x1, x2, get_backend(order.backend, worker=True))
                self._key, self._computation = key, made
            return self._computation


class _Thread(threading.local):
    """The last engine of a thread: it serves one thread at a time, and keeps profiles."""

    order: Order | None = None
    engine: Engine | None = None


_kept = _Kept()
_thread = _Thread()


def kept_engine(order: Order, tiles: TileStore) -> Engine:
    """Return the engine of an order: the one that this thread had last, if it is of the same.

    Parameters
    ----------
    order : Order
    tiles : TileStore
        Its store, as it is now.
    """
    if _thread.engine is None or _thread.order != order:
        _thread.order, _thread.engine = None, None
        computation = _kept.computation(order, tiles)
        made = computation.engine(order.grid, order.threads, order.held, order.known)
        _thread.order, _thread.engine = order, made
    return _thread.engine
