"""The function `gram`: a Gram matrix computed into a store, resumable, on any executor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from numpy.typing import ArrayLike, NDArray

from widelimit.backends import BackendName, choose, get_backend
from widelimit.backends.base import Dtype
from widelimit.display import shown
from widelimit.machine import parse_memory, remaining
from widelimit.matrices.computation import Computation, kept
from widelimit.matrices.executors import as_executor
from widelimit.matrices.families import choose_backend, prepare
from widelimit.matrices.inputs import (
    Channels,
    check_dtype,
    check_inputs,
    check_kinds,
    check_networks,
    check_threads,
    check_tile,
)
from widelimit.matrices.manifest import Inputs, Maker, Manifest
from widelimit.matrices.matrix import arrange, read_manifest
from widelimit.matrices.objects import Objects, open_objects
from widelimit.matrices.plan import Plan, Sizes, batches, solve, tasks_in_flight
from widelimit.matrices.progress import Progress, Tracker
from widelimit.matrices.sinks import Stored
from widelimit.matrices.store import StoreError, TileStore, is_finished, room_of
from widelimit.matrices.stored_inputs import put_inputs
from widelimit.matrices.tiles import Key, KeySet
from widelimit.matrices.workers import Report, Task, distribute
from widelimit.network import Network
from widelimit.program import Kind

__all__ = ["gram"]

_BATCH_PAIRS = 3e10  # element-layers of a task for a worker, about: a quarter of a minute
_FEWEST_TASKS = 64  # so that workers finish together
_MOST_KEYS = 1024  # of a task


def gram(
    net: Network | str | Sequence[Network | str],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    kind: Kind | list[Kind] | tuple[Kind, ...] = "ntk",
    *,
    store: str | os.PathLike[str],
    channels: Channels = None,
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
    memory: int | str | None = None,
    tile: int | None = None,
    reuse: str | os.PathLike[str] | None = None,
    executor: Any = None,
    timeout: float | None = None,
    progress: bool | Callable[[Progress], None] = False,
    verify: bool = False,
    allow_mixed: bool = False,
) -> Any:
    """Compute a Gram matrix of any size into a store, and go on where an earlier run stopped.

    The values are those of `kernel`, to the last bit. The matrix is cut into square tiles, each
    written whole and with its checksum, so that a run may be killed at any moment: the same call,
    made again, computes the tiles that are not there yet, and no other.

    Parameters
    ----------
    net, x1, x2, kind, channels, backend, dtype
        As for `kernel`.
    store : path or fsspec URL
        Where the tiles lie, as one Zarr v3 array (``"k.zarr"``, ``"s3://bucket/k.zarr"``). Of a
        symmetric matrix the tiles on and above the diagonal are stored. One process at a time may
        write to a local path; behind a URL nothing keeps two apart, but their tiles are the same.
    threads : int or None
        Threads, of each worker if there is an `executor`. None: one for each processor that this
        process may use; with an executor, 1.
    memory : int, str or None
        Bytes, or ``"6GB"``, ``"512MiB"``: the most that this process (and each worker process)
        will take in all, what it holds already included. Threads, tiles and profiles held are
        solved from it. None: what is held, and 60 % of what is available.
    tile : int or None
        Side of a tile of a new store, 16 or more. None: that of `reuse`, or solved from memory and
        cost.
    reuse : path, fsspec URL or None
        A finished store of the same networks, kinds and dtype, whose samples are the first ones of
        `x1` (``x2=None`` there and here): its entries are copied, and only pairs with a new sample
        are computed. It is read, never written, by all workers, and not looked at once the new
        store is finished: then it may be deleted. If it is lost before, the call without it
        computes what is missing; no bit depends on it.
    executor : concurrent.futures.Executor, dask.distributed.Client or None
        Where tiles are computed. Workers read the inputs from the store, as they need them, and
        write their tiles there: all have to see its path. Tasks that fail, or whose worker is lost,
        are handed out again, up to three times. If it breaks, what is left is computed here, on
        all processors that this process may use. None: threads of this process.
    timeout : float or None
        With an executor: seconds in which no task has finished, after which workers count as
        hanging and their tiles are handed out again. None: the longest of ten minutes, 20 times
        the longest task, and what the element-layers of a task take at 1e8 a second.
    progress : bool or callable
        True shows tiles, speed and time left on standard error, as a bar on a terminal and as
        lines elsewhere. A callable is given a `Progress` whenever something is done.
    verify : bool
        Whether all tiles that are there are read first. Those whose checksum is wrong are computed
        again. Without it only their length is looked at, and a wrong checksum is an error when
        the tile is read.
    allow_mixed : bool
        Whether to go on with a store, or to extend one, that another backend, instruction set or
        version has begun.
        The result then depends, in the last bits, on who computed what. NumPy and its BLAS, which
        compute dense networks and activations behind a readout, are not compared: of those, last
        bits may depend on it in any case, if processors are of several kinds.

    Returns
    -------
    Gram
        Reads like an array: ``k[i:j, l:m]``. A list of them if `net` is a sequence; a tuple of
        these if `kind` is one.

    Raises
    ------
    TypeError, ValueError
        As for `kernel`; or if the store, or `reuse`, holds another kernel (the message says what
        differs), or tiles that something else computes, without `allow_mixed`.
    MemoryError
        Before the work starts, if it cannot be done within `memory`. A finished store is opened
        whatever `memory` is.
    BlockingIOError
        If another process is writing to the store.
    FileNotFoundError, StoreError
        If there is no store at `reuse`, or tiles are missing or damaged there. What it takes from
        there is read before anything is computed; what is copied is kept. Or if `store` was
        deleted, or made anew, before this was done.
    OSError
        If the store cannot be written: no room, no permission. Finished tiles are kept. Before
        the work, if the disk of a local path has less room than the tiles that are missing take.
    TimeoutError
        If all workers hang.
    ConnectionError
        If the scheduler of dask is gone for some seconds.

    Notes
    -----
    Cost as for `kernel`. Every tile that was under way when a run was killed is lost: about
    half a minute of one core for each thread, or less; or 16 x 16 pairs if these take longer (one
    to three minutes for CNTK-GAP of depth 11 on 96 x 96 pixels). A store takes ``n (n + tile)/2``
    entries of each symmetric matrix. With `reuse`, profiles of all samples are made again, ``n`` of
    them; of the pairs only new ones.
    """
    networks = check_networks(net)
    kinds = check_kinds(kind)
    check_dtype(dtype)
    choose(backend, 0)
    pool = as_executor(executor)
    workers = 1 if threads is None and pool is not None else check_threads(threads)
    side = check_tile(tile)
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds or None, got {timeout!r}")
    values1, values2 = check_inputs(networks, x1, x2, channels)
    if reuse is not None and values2 is not None:
        raise ValueError(
            "reuse extends the symmetric matrix of x1, got x2 as well: leave one of them out"
        )
    display = shown(progress, "", lambda state: (state.share, str(state)))

    objects = open_objects(store)
    with nullcontext() if is_finished(objects) and not verify else objects.locked():
        import_module("zarr")  # before memory is looked at: its modules take some, too
        manifest = Manifest(
            tuple(networks),
            not isinstance(net, Network | str),
            kinds,
            not isinstance(kind, str),
            dtype,
            Inputs.of(values1),
            None if values2 is None else Inputs.of(values2),
            (),
        )
        there = _look(objects, manifest, verify=verify)
        if there is not None and not there.missing:  # nothing to plan memory for
            _one_side(side, there, None)
            return arrange(there.tiles, read_manifest(there.tiles))
        old = None if reuse is None else _find_reused(reuse, manifest, values1)
        name = _choose(backend, old if there is None else there.tiles, manifest)
        chosen = get_backend(name)
        maker = Maker.of(chosen)
        if old is not None and not allow_mixed:
            _check_maker(old, maker)
        computation = Computation(manifest, values1, values2, chosen)
        if pool is None:
            prepare(computation.families, dtype)  # which takes memory, too
        sizes = computation.sizes(workers, listed=objects.listed, handed_out=pool is not None)
        plan = solve(sizes, remaining(memory), workers, _one_side(side, there, old))
        laid = [x for x in (values1, values2) if x is not None and pool is not None]
        objects.check_room(_room(objects, there, sizes, plan, laid))
        if there is None:
            there = _create(objects, replace(manifest, makers=(maker,)), plan.tile)
        makers = (maker, *(() if old is None else read_manifest(old).makers))
        tiles = _admit(there.tiles, makers, allow_mixed)
        run = _Run(tiles, computation, plan, sizes, there.missing, old)
        with display as report:
            run.copy(report)
            if pool is None:
                run.here(report)
            else:
                put_inputs(tiles, values1, values2)
                task = Task(
                    objects.url,
                    (),
                    name,
                    None if allow_mixed else maker,
                    plan.threads,
                    None if memory is None else parse_memory(memory),
                    _at_once(pool),
                    None if old is None else old.objects.url,
                )
                run.on(pool, report, task, timeout)
        tiles = _open_again(there.tiles)
    return arrange(tiles, read_manifest(tiles))


@dataclass(frozen=True, slots=True)
class _There:
    """The store of a call as it lies there, and the tiles that are missing."""

    tiles: TileStore
    missing: KeySet


class _Run:
    """The missing tiles of one call, and how they are computed."""

    def __init__(
        self,
        tiles: TileStore,
        computation: Computation,
        plan: Plan,
        sizes: Sizes,
        missing: KeySet,
        old: TileStore | None,
    ) -> None:
        self._tiles, self._computation, self._plan, self._sizes = tiles, computation, plan, sizes
        self._missing, self._old = missing, old
        self._weights = [max(1, f.program.element_layers) for f in computation.families]
        pairs, found = missing.pairs(), len(tiles.grid) - len(missing)
        if old is not None:
            pairs -= sum(old.grid.pairs(key) for key in missing if key in old.grid)
        self._tracker = Tracker(len(tiles.grid), found, pairs, sizes.element_layers)

    def _keys(self) -> Iterator[Key]:
        """Yield the tiles that have to be computed, in order; `copy` has been called."""
        return self._tiles.grid.order(self._missing, self._plan.group)

    def _pairs(self, key: Key) -> int:
        """Return how many pairs of a tile are computed."""
        known = self._old.grid.pairs(key) if self._old is not None and key in self._old.grid else 0
        return self._tiles.grid.pairs(key) - known

    def copy(self, report: Callable[[Progress], None]) -> None:
        """Copy the tiles of the old matrix; read those at its edge, to be told of damage now."""
        if self._old is None:
            return
        for key in self._missing:
            if self._tiles.grid.has_in_common(key, self._old.grid):
                self._tiles.copy(key, self._old)
                self._missing.discard(key)
                report(self._tracker.add(0, 1))
            elif key in self._old.grid:
                for place in self._old.places:
                    self._old.read(key, place)

    def here(self, report: Callable[[Progress], None]) -> None:
        """Compute tiles on threads of this process."""
        known = 0 if self._old is None else self._old.shape[-1]
        engine = self._computation.engine(self._tiles.grid, self._plan, known)
        sink = Stored(self._tiles, self._computation.manifest, self._old)
        total = sum(self._weights)
        with closing(engine.run(self._keys(), sink)) as parts:
            for part in parts:
                pairs = part.entries * self._weights[part.family] / total
                report(self._tracker.add(pairs, int(part.finished is not None)))

    def on(
        self,
        executor: Executor,
        report: Callable[[Progress], None],
        task: Task,
        timeout: float | None,
    ) -> None:
        """Hand tiles out to workers; compute here what is left if the executor breaks.

        `task` is what tasks are like, but for their tiles.
        """
        cost = self._plan.tile**2 * max(1, self._sizes.element_layers)
        share = len(self._missing) // _FEWEST_TASKS
        size = max(1, min(round(_BATCH_PAIRS / cost), share, _MOST_KEYS))
        tasks = (replace(task, keys=keys) for keys in batches(self._keys(), size))

        def finished(done: Report) -> None:
            if done.maker not in read_manifest(self._tiles).makers:  # allowed, or it had not run
                self._tiles = _admit(self._tiles, [done.maker], allow_mixed=True)
            pairs = sum(map(self._pairs, done.checksums))
            report(self._tracker.add(pairs, len(done.checksums)))

        try:
            done = distribute(
                executor, tasks, tasks_in_flight(size), self._tiles, timeout, size * cost, finished
            )
        finally:
            kept.forget()  # of a worker that is a thread of this process
        if not done:
            self._missing = self._tiles.missing()
            self._plan = self._plan_here(task.memory)
            self.here(report)

    def _plan_here(self, memory: int | None) -> Plan:
        """Return the plan for all processors of this process, not for one worker's threads."""
        threads, computation = check_threads(None), self._computation
        prepare(computation.families, computation.manifest.dtype)
        sizes = computation.sizes(threads, listed=self._tiles.objects.listed)
        try:
            return solve(sizes, remaining(memory), threads, self._tiles.tile)
        except MemoryError:
            return self._plan  # for which there was room before tasks were held


def _at_once(executor: Executor) -> int:
    """Return how many tasks of an executor one process may be given at a time, if it is known."""
    if isinstance(executor, ThreadPoolExecutor):
        return int(getattr(executor, "_max_workers", 1))
    return 1


def _look(objects: Objects, manifest: Manifest, *, verify: bool) -> _There | None:
    """Return what is there already, if it is of the same matrix; None if nothing is."""
    try:
        tiles = TileStore.open(objects)
    except FileNotFoundError:
        return None
    remedy = "Give another path, or delete that one"
    read_manifest(tiles).check_same(manifest, objects.name, remedy)
    missing = tiles.missing()
    for key in tiles.damaged(missing.others()) if verify else ():
        missing.add(key)
    return _There(tiles, missing)


def _room(
    objects: Objects,
    there: _There | None,
    sizes: Sizes,
    plan: Plan,
    laid: Sequence[NDArray[Any]],
) -> int:
    """Return the bytes of disk that a run takes: missing tiles, and inputs laid for workers."""
    if there is None:
        tiles = len(sizes.grid(plan.tile))
        needed = room_of(tiles, plan.tile, sizes.entry, sizes.matrices)
    else:
        needed = there.tiles.room(there.missing)
    if laid:
        there_already = sum(size for _, size in objects.sizes("inputs"))
        needed += max(0, sum(x.nbytes for x in laid) - there_already)
    return needed


def _create(objects: Objects, manifest: Manifest, side: int) -> _There:
    """Return a new store."""
    region = "full" if manifest.x2 else "upper"
    content = manifest.to_json()
    tiles = TileStore.create(objects, manifest.shape, side, manifest.dtype, region, content)
    return _There(tiles, KeySet(tiles.grid).others())


def _find_reused(
    reuse: str | os.PathLike[str], manifest: Manifest, values: NDArray[Any]
) -> TileStore:
    """Return the finished store of the first samples."""
    old = TileStore.open(open_objects(reuse))
    name, there = old.objects.name, read_manifest(old)
    first = replace(manifest, x1=Inputs.of(values[: there.x1.shape[0]]))
    remedy = (
        "reuse must be the kernel of the first samples of x1, for the same networks, kinds and "
        "dtype: give its path, or leave reuse out"
    )
    there.check_same(first, name, remedy)
    old.check_finished()
    return old


def _open_again(tiles: TileStore) -> TileStore:
    """Return a store as it lies there now; refuse another one that has taken its place."""
    name = tiles.objects.name
    try:
        found = TileStore.open(tiles.objects)
    except FileNotFoundError:
        found = None
    if found is None or found.identity != tiles.identity:
        raise StoreError(
            f"{name} was deleted, or made anew, since this began: what lies there is not what this "
            "call has made; if that was not meant, run the same call again"
        )
    return found


def _choose(backend: BackendName, begun: TileStore | None, manifest: Manifest) -> BackendName:
    """Return which backend computes; for "auto" the one that has begun, if it is there."""
    if backend != "auto" or begun is None:
        shapes = manifest.x1.shape, None if manifest.x2 is None else manifest.x2.shape
        n1, n2 = shapes[0][0], None if shapes[1] is None else shapes[1][0]
        return choose_backend(backend, manifest.networks, shapes[0][1:], n1, n2)
    name: Any = read_manifest(begun).makers[0].backend
    try:
        get_backend(name)
    except (RuntimeError, ValueError):
        return "cpu"
    return name


def _check_maker(old: TileStore, maker: Maker) -> None:
    """Refuse to extend what something else has made."""
    makers = read_manifest(old).makers
    if set(makers) != {maker}:
        made = "; ".join(map(str, makers))
        raise ValueError(
            f"{old.objects.name} was made by {made}; here is {maker}, whose last bits may differ: "
            "extend it where it was made, set the environment variable WIDELIMIT_ISA to its "
            "instruction set, or allow it with allow_mixed=True"
        )


def _one_side(side: int | None, there: _There | None, old: TileStore | None) -> int | None:
    """Return the side of tiles that is asked for, or that of the stores that are there."""
    for tiles in (None if there is None else there.tiles, old):
        if tiles is None:
            continue
        if side not in (None, tiles.tile):
            raise ValueError(
                f"{tiles.objects.name} has tiles of {tiles.tile} samples, got tile={side}: leave "
                "tile out, or give another path"
            )
        side = tiles.tile
    return side


def _admit(tiles: TileStore, makers: Iterable[Maker], allow_mixed: bool) -> TileStore:
    """Refuse to add tiles to those of other makers, or note that it was allowed."""
    for maker in makers:
        manifest = read_manifest(tiles)
        if maker in manifest.makers:
            continue
        if not allow_mixed:
            made = "; ".join(map(str, manifest.makers))
            raise ValueError(
                f"{tiles.objects.name} was begun by {made}; here is {maker}, whose last bits may "
                "differ: go on where it was begun, set the environment variable WIDELIMIT_ISA to "
                "its instruction set, or allow it with allow_mixed=True"
            )
        content = replace(manifest, makers=(*manifest.makers, maker)).to_json()
        tiles = tiles.with_manifest(content)
    return tiles
