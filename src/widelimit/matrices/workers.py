"""Tiles computed by the workers of any executor, which write them to the store themselves.

What travels is a `Task`, the path of the store and keys of tiles, and back a `Report`. Inputs lie
in the store; a worker reads them once.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.backends import BackendName, get_backend
from widelimit.matrices.engine import Engine, Output, make_sides
from widelimit.matrices.inputs import number_samples
from widelimit.matrices.manifest import Inputs, Maker, Manifest
from widelimit.matrices.matrix import read_manifest
from widelimit.matrices.profiles import Samples
from widelimit.matrices.store import Objects, StoreError, TileStore, open_objects
from widelimit.matrices.tiles import Key
from widelimit.program import compile_networks

__all__ = ["Computation", "Report", "Stored", "Task", "distribute", "put_inputs", "run_task"]

_ATTEMPTS = 3
_PATIENCE = 600.0  # seconds without a report, at least, before a worker counts as hanging
_PATIENCE_FACTOR = 20.0  # and at least so many times the longest task


@dataclass(frozen=True, slots=True)
class Task:
    """Some tiles for one worker."""

    store: str
    keys: tuple[Key, ...]
    backend: BackendName
    maker: Maker | None  # what has to compute them; None: any
    threads: int
    cached: int
    reuse: str | None  # the store of the first samples, whose pairs are read from there


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker did."""

    worker: str
    maker: Maker
    checksums: dict[Key, tuple[int, ...]]
    seconds: float


class Stored:
    """Puts tiles into a store, and keeps their checksums: a sink of the engine.

    Parameters
    ----------
    store : TileStore
    manifest : Manifest
    old : TileStore or None
        The same matrices of the first samples: entries that are there are put into new tiles.
    """

    def __init__(self, store: TileStore, manifest: Manifest, old: TileStore | None) -> None:
        self._store, self._old = store, old
        self._matrices = (len(manifest.networks), len(manifest.kinds))
        self.checksums: dict[Key, tuple[int, ...]] = {}

    def begin(self, key: Key) -> Output:
        """Return memory for a tile, with the entries that are known."""
        rows, columns = (part.stop - part.start for part in self._store.grid.extent(key))
        values = np.empty((*self._matrices, rows, columns), self._store.dtype)
        if self._old is not None and max(key) < self._old.grid.shape[0]:
            by_place = values.reshape(*self._old.shape[:-2], rows, columns)
            for place in self._old.places:
                known = self._old.read(key, place)
                by_place[place][: known.shape[0], : known.shape[1]] = known
        return values

    def end(self, key: Key, values: Output) -> None:
        """Write a tile."""
        leading = self._store.shape[:-2]
        self.checksums[key] = self._store.write(key, values.reshape(*leading, *values.shape[-2:]))


class Computation:
    """The inputs and programs of a store: makes the engine that computes its tiles."""

    def __init__(
        self, manifest: Manifest, x1: NDArray[Any], x2: NDArray[Any] | None, backend: BackendName
    ) -> None:
        self.manifest = manifest
        self.backend = get_backend(backend)
        self.programs = compile_networks(manifest.networks, x1.shape[1:], manifest.kinds)
        left, right = number_samples(x1, x2)
        self._left = Samples(x1, left)
        self._right = None if x2 is None or right is None else Samples(x2, right)

    def engine(self, store: TileStore, threads: int, cached: int, old: TileStore | None) -> Engine:
        """Return an engine for the tiles of a store; one thread at a time may run it.

        With `old`, for a sink that takes what is known from there.
        """
        made = (self.programs, self.backend)
        dtype, grid = self.manifest.dtype, store.grid
        sides = make_sides(*made, self._left, self._right, dtype, grid.tile, cached)
        known = 0 if old is None else old.shape[-1]
        return Engine(*made, *sides, grid, dtype, threads, known)


# ---------------------------------------------------------------- on a worker


def put_inputs(objects: Objects, x1: NDArray[Any], x2: NDArray[Any] | None) -> None:
    """Lay inputs beside the tiles, for workers."""
    for name, values in (("x1", x1), ("x2", x2)):
        if values is not None:
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(values), allow_pickle=False)
            objects.write(f"inputs/{name}.npy", content.getvalue())


def _get_inputs(objects: Objects, name: str, described: Inputs) -> NDArray[Any]:
    content = objects.read(f"inputs/{name}.npy")
    values: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if Inputs.of(values) != described:
        raise StoreError(
            f"{name} in {objects.name} is not what the store is the kernel of: run the call that "
            "makes the store again, which writes its inputs anew"
        )
    return values


@lru_cache(maxsize=1)
def _computation(store: str, fingerprint: str, backend: BackendName) -> Computation:
    """Read the inputs of a store, once in this process."""
    tiles = TileStore.open(open_objects(store))
    manifest = read_manifest(tiles)
    x1 = _get_inputs(tiles.objects, "x1", manifest.x1)
    x2 = None if manifest.x2 is None else _get_inputs(tiles.objects, "x2", manifest.x2)
    return Computation(manifest, x1, x2, backend)


_reading = threading.Lock()
_engines = threading.local()  # an engine serves one thread at a time, and keeps profiles


def run_task(task: Task) -> Report:
    """Compute the tiles of a task and write them to the store; runs in a worker.

    Raises
    ------
    ValueError
        If this worker would not compute the bits that the store is made of.
    """
    start = time.monotonic()
    tiles = TileStore.open(open_objects(task.store))
    fingerprint = read_manifest(tiles).fingerprint
    with _reading:
        computation = _computation(task.store, fingerprint, task.backend)
    worker = f"process {os.getpid()} on {socket.gethostname()}"
    maker = Maker.of(computation.backend)
    if task.maker not in (None, maker):
        raise ValueError(
            f"a worker ({worker}) has {maker}, the store is made by {task.maker}: set the "
            "environment variable WIDELIMIT_ISA to one instruction set that all workers have, or "
            "allow tiles of several makers with allow_mixed=True"
        )
    old = None if task.reuse is None else TileStore.open(open_objects(task.reuse))
    wanted = (task.store, fingerprint, task.backend, task.threads, task.cached, task.reuse)
    engine: Engine | None = _engines.made.get(wanted) if hasattr(_engines, "made") else None
    if engine is None:
        engine = computation.engine(tiles, task.threads, task.cached, old)
        _engines.made = {wanted: engine}
    sink = Stored(tiles, computation.manifest, old)
    with closing(engine.run(task.keys, sink)) as parts:
        for _ in parts:
            pass
    return Report(worker, maker, sink.checksums, time.monotonic() - start)


# ---------------------------------------------------------------- on the side that hands out


def distribute(
    executor: Executor,
    tasks: Sequence[Task],
    store: TileStore,
    timeout: float | None,
    finished: Callable[[Report], None],
) -> list[Task]:
    """Run tasks on an executor until all their tiles are in the store.

    Parameters
    ----------
    executor : Executor
    tasks : sequence of Task
    store : TileStore
        Where the tiles appear; their checksums are compared with those that workers report.
    timeout : float or None
        Seconds without any report after which tasks are handed out again, and after as many again
        given up. None: 10 minutes, or 20 times the longest task.
    finished : callable
        Called with each report that is right.

    Returns
    -------
    list of Task
        What could not be run because the executor broke: for the caller to compute.

    Raises
    ------
    TimeoutError
        If workers hang. Finished tiles are kept.
    Exception
        That of a task which failed three times.
    """
    left = dict.fromkeys(tasks, 0)  # failures of each
    running: dict[Future[Report], Task] = {}
    longest = 0.0
    last = time.monotonic()
    again = False
    try:
        for task in tasks:
            running[executor.submit(run_task, task)] = task
        while left:
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                if task not in left:
                    continue  # another worker was quicker
                error = _fault(future, task, store)
                if error is None:
                    del left[task]
                    report = future.result()
                    longest = max(longest, report.seconds)
                    last, again = time.monotonic(), False
                    finished(report)
                    continue
                left[task] += 1
                if left[task] >= _ATTEMPTS or not _may_pass(error):
                    raise error
                _warn(f"tiles {_span(task)} failed ({error}) and are handed out again")
                running[executor.submit(run_task, task)] = task
            patience = max(_PATIENCE, _PATIENCE_FACTOR * longest) if timeout is None else timeout
            if left and time.monotonic() - last > patience:
                if again:
                    raise TimeoutError(
                        f"no worker has finished anything for {patience:.0f} s, twice; tiles "
                        f"{', '.join(map(_span, list(left)[:5]))} are open: look at the workers, "
                        "or raise timeout; the finished tiles are kept, run the same call again"
                    )
                _warn(
                    f"no worker has finished anything for {patience:.0f} s: its tiles are "
                    "handed out again"
                )
                for future, task in list(running.items()):
                    if future.cancel():
                        del running[future]
                    if task in left:
                        running[executor.submit(run_task, task)] = task
                last, again = time.monotonic(), True
    except BrokenExecutor as error:
        _warn(
            f"the executor lost a worker and stopped ({error}): the other tiles are computed here"
        )
    finally:
        for future in running:
            future.cancel()
    return list(left)


def _fault(future: Future[Report], task: Task, store: TileStore) -> BaseException | None:
    """Return what is wrong with the outcome of a task; delete tiles that cannot be trusted."""
    try:
        report = future.result()
    except (Exception, CancelledError) as error:
        return error
    for key in task.keys:
        reported = report.checksums.get(key)
        try:
            stored = store.checksums(key)
        except FileNotFoundError:
            return StoreError(
                f"{report.worker} says that it wrote tile {key}, which is not in "
                f"{store.objects.name}: all workers must see that path, on a shared file system"
            )
        if reported != stored:
            store.delete(key)
            return StoreError(
                f"{report.worker} wrote tile {key} with checksum {stored}, and reported "
                f"{reported}: that tile was deleted; look for bad memory or a bad disk there"
            )
    return None


def _may_pass(error: BaseException) -> bool:
    """Return whether a task that failed may succeed elsewhere, or at another time."""
    if isinstance(error, OSError):
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
    lost = type(error).__name__ == "KilledWorker"  # of distributed, which need not be there
    return lost or isinstance(error, StoreError | CancelledError)


def _span(task: Task) -> str:
    first, last = task.keys[0], task.keys[-1]
    return str(first) if first == last else f"{first} to {last}"


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
