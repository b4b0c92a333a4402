"""Tiles computed by the workers of any executor, which write them to the store themselves.

What travels is a `Task`, the path of the store and keys of tiles, and back a `Report`. Inputs lie
in the store, where a worker reads a block at a time.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable
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
from itertools import islice
from typing import Any

from widelimit.backends import BackendName, get_backend
from widelimit.matrices.computation import Order, kept
from widelimit.matrices.executors import DaskExecutor
from widelimit.matrices.manifest import Maker
from widelimit.matrices.matrix import read_manifest
from widelimit.matrices.objects import open_objects
from widelimit.matrices.sinks import Stored
from widelimit.matrices.store import StoreError, TileStore
from widelimit.matrices.tiles import Key

__all__ = ["Report", "Task", "distribute", "run_task"]

_ATTEMPTS = 3
_PATIENCE = 600.0  # seconds without a report, at least, before a worker counts as hanging
_PATIENCE_FACTOR = 20.0  # and at least so many times the longest task
_SLOWEST = 1e8  # element-layers a second of a worker that is well: a tenth of a slow core's


@dataclass(frozen=True, slots=True)
class Task:
    """Some tiles for one worker."""

    store: str
    keys: tuple[Key, ...]
    backend: BackendName
    maker: Maker | None  # what has to compute them; None: any
    threads: int
    memory: int | None  # of a process, as for `gram`
    at_once: int  # tasks that a process may be given at a time, if that is known here
    reuse: str | None  # the store of the first samples, whose pairs are read from there


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker did."""

    worker: str
    maker: Maker
    checksums: dict[Key, tuple[int, ...]]
    seconds: float


def run_task(task: Task) -> Report:
    """Compute the tiles of a task and write them to the store; runs in a worker.

    Raises
    ------
    ValueError
        If this worker would not compute the bits that the store is made of.
    MemoryError
        If it cannot compute them within the memory of the task.
    """
    start = time.monotonic()
    tiles = TileStore.open(open_objects(task.store))
    manifest = read_manifest(tiles)
    worker = f"process {os.getpid()} on {socket.gethostname()}"
    maker = Maker.of(get_backend(task.backend, worker=True))
    if task.maker not in (None, maker):
        raise ValueError(
            f"a worker ({worker}) has {maker}, the store is made by {task.maker}: set the "
            "environment variable WIDELIMIT_ISA to one instruction set that all workers have, or "
            "allow tiles of several makers with allow_mixed=True"
        )
    old = None if task.reuse is None else TileStore.open(open_objects(task.reuse))
    order = Order(
        task.store,
        manifest.fingerprint,
        task.backend,
        maker,
        tiles.grid,
        task.threads,
        task.memory,
        max(task.at_once, _threads_of_dask()),
        0 if old is None else old.shape[-1],
    )
    sink = Stored(tiles, manifest, old)
    try:
        with kept.engine(order, tiles) as engine, closing(engine.run(task.keys, sink)) as parts:
            for _ in parts:
                pass
    except MemoryError as error:
        raise MemoryError(f"a worker ({worker}) ran out of memory: {error}") from error
    checksums = {key: tiles.sealed(key) for key in task.keys}
    return Report(worker, maker, checksums, time.monotonic() - start)


def _threads_of_dask() -> int:
    """Return how many tasks this process is given at a time, if it is a worker of dask, or 1."""
    distributed: Any = sys.modules.get("distributed")
    if distributed is None:
        return 1
    try:
        return int(distributed.get_worker().state.nthreads)
    except ValueError:  # it is none
        return 1


# ---------------------------------------------------------------- on the side that hands out


def distribute(
    executor: Executor,
    tasks: Iterable[Task],
    in_flight: int,
    store: TileStore,
    timeout: float | None,
    work: float,
    finished: Callable[[Report], None],
) -> bool:
    """Run tasks on an executor until all their tiles are in the store.

    Parameters
    ----------
    executor : Executor
    tasks : iterable of Task
    in_flight : int
        Tasks that are handed out at a time.
    store : TileStore
        Where the tiles appear; their checksums are compared with those that workers report.
    timeout : float or None
        Seconds without any report after which tasks are handed out again, and after as many again
        given up. None: 10 minutes, 20 times the longest task, or what `work` takes a slow worker:
        whichever is longest.
    work : float
        Element-layers of a task.
    finished : callable
        Called with each report that is right.

    Returns
    -------
    bool
        Whether all were run: False if the executor broke.

    Raises
    ------
    TimeoutError
        If workers hang. Finished tiles are kept.
    ConnectionError
        If the scheduler of dask is gone.
    Exception
        That of a task which failed three times.
    """
    return _Distribution(executor, tasks, in_flight, store, timeout, work, finished).run()


class _Distribution:
    """Tasks on their way: which are open, which run where, and how long nothing has come back."""

    def __init__(
        self,
        executor: Executor,
        tasks: Iterable[Task],
        in_flight: int,
        store: TileStore,
        timeout: float | None,
        work: float,
        finished: Callable[[Report], None],
    ) -> None:
        self._executor, self._store, self._timeout = executor, store, timeout
        self._tasks, self._in_flight, self._finished = iter(tasks), in_flight, finished
        self._left: dict[Task, int] = {}  # failures of each that is handed out
        self._running: dict[Future[Report], Task] = {}
        self._patience = max(_PATIENCE, work / _SLOWEST)
        self._longest = 0.0
        self._last = time.monotonic()
        self._again = False  # whether all that is open was handed out again since

    def run(self) -> bool:
        """Hand tasks out until all are done, or the executor breaks; return whether all are."""
        try:
            while self._fill():
                done, _ = wait(self._running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    self._take(future, self._running.pop(future))
                if isinstance(self._executor, DaskExecutor):
                    self._executor.check()
                self._check_patience()
        except BrokenExecutor as error:
            _warn(
                f"the executor lost a worker and stopped ({error}): the other tiles are computed "
                "here"
            )
        finally:
            for future in self._running:
                future.cancel()
        return not self._left

    def _fill(self) -> bool:
        """Hand out as many tasks as may be; return whether any is left."""
        for task in islice(self._tasks, self._in_flight - len(self._left)):
            self._left[task] = 0
            self._submit(task)
        return bool(self._left)

    def _submit(self, task: Task) -> None:
        self._running[self._executor.submit(run_task, task)] = task

    def _take(self, future: Future[Report], task: Task) -> None:
        """Take what came back of a task; hand it out again if that may help."""
        if task not in self._left:
            return  # another worker was quicker
        error = _fault(future, task, self._store)
        if error is None:
            del self._left[task]
            report = future.result()
            self._longest = max(self._longest, report.seconds)
            self._last, self._again = time.monotonic(), False
            self._finished(report)
            return
        self._left[task] += 1
        if self._left[task] >= _ATTEMPTS or not _may_pass(error):
            raise error
        _warn(f"tiles {_span(task)} failed ({error}) and are handed out again")
        self._submit(task)

    def _check_patience(self) -> None:
        """Hand everything out again when nothing has come back for long; the next time give up."""
        patience = self._timeout
        if patience is None:
            patience = max(self._patience, _PATIENCE_FACTOR * self._longest)
        if not self._left or time.monotonic() - self._last <= patience:
            return
        if self._again:
            raise TimeoutError(
                f"no worker has finished anything for {patience:.0f} s, twice; tiles "
                f"{', '.join(map(_span, list(self._left)[:5]))} are open: look at the workers, or "
                "raise timeout; the finished tiles are kept, run the same call again"
            )
        _warn(
            f"no worker has finished anything for {patience:.0f} s: its tiles are handed out again"
        )
        for future, task in list(self._running.items()):
            if future.cancel():
                del self._running[future]
            if task in self._left:
                self._submit(task)
        self._last, self._again = time.monotonic(), True


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
    warnings.warn(message, RuntimeWarning, stacklevel=6)
