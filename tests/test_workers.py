"""Tiles on executors: the bits of one process, whatever workers do to a store or to themselves."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from trees import MIXED

import widelimit as wl
from widelimit.backends.cpu import ISA_VARIABLE, instruction_sets
from widelimit.machine import held_memory
from widelimit.matrices import computation, executors, run, workers
from widelimit.matrices.computation import Order
from widelimit.matrices.manifest import Maker
from widelimit.matrices.objects import open_objects
from widelimit.matrices.plan import Plan, Sizes
from widelimit.matrices.progress import Progress
from widelimit.matrices.store import StoreError, TileStore
from widelimit.matrices.stored_inputs import StoredInputs
from widelimit.matrices.tiles import Grid, Key
from widelimit.matrices.workers import Report, Task, run_task

X = np.random.default_rng(0).random((120, 7, 6, 2))
Z = np.random.default_rng(1).random((50, 7, 6, 2))
NETS = [wl.cntk_vanilla(3), wl.cntk_gap(3), MIXED]
TILES = 36  # 8 x 9 / 2
HERE = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def gram(path: Path, **options: Any) -> Any:
    return wl.gram(NETS, X, store=path, tile=16, **options)


def expected() -> np.ndarray:
    return np.array(wl.kernel(NETS, X))


class Fault(Executor):
    """Runs tasks on a thread, but for what a test makes of them."""

    def __init__(self, make: Callable[[int, Task], Any]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._make = make
        self.tasks: list[Task] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        task = args[0]
        assert isinstance(task, Task)
        assert fn is run_task
        self.tasks.append(task)
        return self._pool.submit(self._run, len(self.tasks) - 1, task)

    def _run(self, number: int, task: Task) -> Any:
        made = self._make(number, task)
        if isinstance(made, BaseException):
            raise made
        return run_task(task) if made is None else made


# ---------------------------------------------------------------- the same bits


@contextmanager
def dask_client() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


ENGINES = {
    "threads": lambda: ThreadPoolExecutor(3),
    "processes": lambda: ProcessPoolExecutor(2, multiprocessing.get_context("spawn")),
    "dask": dask_client,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_bits_of_one_process(engine: str, tmp_path: Path) -> None:
    states: list[Progress] = []
    with ENGINES[engine]() as executor:
        k = gram(tmp_path / "k.zarr", executor=executor, progress=states.append)
        rectangle = wl.gram(MIXED, X, Z, store=tmp_path / "z.zarr", executor=executor)
    assert np.array_equal(np.array(k), expected())
    assert np.array_equal(rectangle, wl.kernel(MIXED, X, Z))
    assert (states[-1].tiles, states[-1].pairs) == (TILES, 120 * 121 // 2)


def test_workers_that_are_forked_do_not_hold_the_store(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
        for path in (tmp_path / "k.zarr", tmp_path / "l.zarr", tmp_path / "k.zarr"):
            assert np.array_equal(np.array(gram(path, executor=executor)), expected())
            with open_objects(path).locked():
                pass


def test_what_travels_is_small(tmp_path: Path) -> None:
    import pickle

    executor = Fault(lambda number, task: None)
    gram(tmp_path / "k.zarr", executor=executor)
    assert max(len(pickle.dumps(task)) for task in executor.tasks) < 1000
    keys = [key for task in executor.tasks for key in task.keys]
    assert len(keys) == len(set(keys)) == TILES


@pytest.mark.parametrize(("asked", "threads"), [(None, 1), (3, 3)])
def test_a_worker_has_one_thread_unless_it_is_asked_to_have_more(
    asked: int | None, threads: int, tmp_path: Path
) -> None:
    executor = Fault(lambda number, task: None)
    gram(tmp_path / "k.zarr", executor=executor, threads=asked)
    assert {task.threads for task in executor.tasks} == {threads}


def test_a_resume_on_workers_computes_what_is_missing(tmp_path: Path) -> None:
    gram(tmp_path / "k.zarr")
    store = TileStore.open(open_objects(tmp_path / "k.zarr"))
    store.delete((2, 5))
    executor = Fault(lambda number, task: None)
    k = gram(tmp_path / "k.zarr", executor=executor)
    assert [task.keys for task in executor.tasks] == [((2, 5),)]
    assert np.array_equal(np.array(k), expected())


# ---------------------------------------------------------------- workers that are lost


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    killed: list[int] = []
    others = multiprocessing.active_children()  # as those that joblib keeps for its next call

    def kill(state: Progress) -> None:
        if not killed:
            victim = next(p for p in multiprocessing.active_children() if p not in others)
            victim.kill()
            killed.append(state.tiles)

    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(2, context) as executor,
        pytest.warns(RuntimeWarning, match=r"the executor lost a worker and stopped .* here"),
    ):
        k = gram(tmp_path / "k.zarr", executor=executor, progress=kill)
    assert killed[0] < TILES
    assert np.array_equal(np.array(k), expected())


@HERE
def test_a_dask_worker_that_is_killed(tmp_path: Path) -> None:
    killed: list[int] = []
    with dask_client() as client:

        def kill(state: Progress) -> None:
            if not killed:
                worker = next(iter(client.cluster.workers.values()))
                worker.process.process._process.kill()
                killed.append(state.tiles)

        k = gram(tmp_path / "k.zarr", executor=client, progress=kill)
    assert killed
    assert np.array_equal(np.array(k), expected())


SCHEDULER = """
import time
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        time.sleep(120)
"""


@HERE
def test_a_dask_scheduler_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named at once, not after the patience with workers; what is finished is kept."""
    from distributed import Client

    monkeypatch.setattr(executors, "_GRACE", 0.5)
    script = tmp_path / "scheduler.py"
    script.write_text(SCHEDULER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    ) as scheduler:
        try:
            assert scheduler.stdout is not None
            address = scheduler.stdout.readline().strip()
            with Client(address) as client:
                message = rf"scheduler at {address} is gone \(its client is connecting\): start it"
                with pytest.raises(ConnectionError, match=message):
                    gram(tmp_path / "k.zarr", executor=client, progress=lambda _: scheduler.kill())
                assert TileStore.open(open_objects(tmp_path / "k.zarr")).finished()
                with pytest.raises(ConnectionError, match="is gone"):
                    gram(tmp_path / "l.zarr", executor=client)
        finally:
            scheduler.kill()
    assert np.array_equal(np.array(gram(tmp_path / "k.zarr")), expected())


class KilledWorker(Exception):
    """As distributed calls it."""


@pytest.mark.parametrize(
    "error", [KilledWorker("3 times"), CancelledError(), OSError(errno.EIO, "input/output error")]
)
def test_a_task_that_fails_is_handed_out_again(error: BaseException, tmp_path: Path) -> None:
    executor = Fault(lambda number, task: error if number in (3, TILES) else None)
    with pytest.warns(RuntimeWarning, match=r"tiles \(.*\) failed \(.*\) and are handed out again"):
        k = gram(tmp_path / "k.zarr", executor=executor)
    assert len(executor.tasks) == TILES + 2
    assert np.array_equal(np.array(k), expected())


@HERE
def test_a_task_that_always_fails(tmp_path: Path) -> None:
    bad = (0, 2)
    executor = Fault(lambda n, task: KilledWorker("memory") if task.keys == (bad,) else None)
    with pytest.raises(KilledWorker, match="memory"):
        gram(tmp_path / "k.zarr", executor=executor)
    assert sum(task.keys == (bad,) for task in executor.tasks) == 3
    k = gram(tmp_path / "k.zarr")  # and what was finished is not lost
    assert np.array_equal(np.array(k), expected())


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), OverflowError("x"), OSError(errno.ENOSPC, "x"), OSError(errno.EACCES, "x")],
)
def test_an_error_that_will_not_pass_is_told_at_once(error: Exception, tmp_path: Path) -> None:
    executor = Fault(lambda number, task: error if number == 3 else None)
    with pytest.raises(type(error), match="x"):
        gram(tmp_path / "k.zarr", executor=executor)
    assert np.array_equal(np.array(gram(tmp_path / "k.zarr")), expected())


def test_an_executor_that_breaks(tmp_path: Path) -> None:
    executor = Fault(lambda n, task: BrokenProcessPool("a process died") if n == 10 else None)
    with pytest.warns(RuntimeWarning, match="lost a worker and stopped .a process died.: the oth"):
        k = gram(tmp_path / "k.zarr", executor=executor)
    assert np.array_equal(np.array(k), expected())


def test_what_an_executor_stored_before_it_broke_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(number: int, task: Task) -> Any:
        if number == 10:
            run_task(task)  # and its report is lost
            return BrokenProcessPool("a process died")
        return None

    here: list[Key] = []
    compute = run._Run.here
    monkeypatch.setattr(
        run._Run,
        "here",
        lambda self, report: here.extend(self._keys()) or compute(self, report),
    )
    executor = Fault(make)
    with pytest.warns(RuntimeWarning, match="lost a worker and stopped"):
        k = gram(tmp_path / "k.zarr", executor=executor)
    assert np.array_equal(np.array(k), expected())
    assert not {key for task in executor.tasks[:11] for key in task.keys} & set(here)


@HERE
@pytest.mark.parametrize("room", [True, False])
def test_what_a_broken_executor_left_is_computed_on_all_processors(
    room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is no room for them by now, with the memory that there was for a worker's."""
    plans: list[Plan] = []
    compute = run._Run.here
    monkeypatch.setattr(
        run._Run, "here", lambda self, report: plans.append(self._plan) or compute(self, report)
    )

    def make(number: int, task: Task) -> Any:
        if number < 10:
            return None
        monkeypatch.setattr(run, "check_threads", lambda threads: 3 if threads is None else threads)
        if not room:
            monkeypatch.setattr(run, "remaining", lambda memory: 0)
        return BrokenProcessPool("a process died")

    k = gram(tmp_path / "k.zarr", executor=Fault(make))
    assert [(plan.threads, plan.tile) for plan in plans] == [(3 if room else 1, 16)]
    assert np.array_equal(np.array(k), expected())


# ---------------------------------------------------------------- workers that hang


def test_a_worker_that_hangs(tmp_path: Path) -> None:
    """One of two threads never comes back: the other one gets its tiles."""
    stuck = threading.Event()

    class Hanging(Fault):
        def __init__(self) -> None:
            super().__init__(lambda n, task: stuck.wait() and None if n == 4 else None)
            self._pool = ThreadPoolExecutor(2)

    executor = Hanging()
    try:
        with pytest.warns(RuntimeWarning, match="no worker has finished anything for 1 s: its til"):
            k = gram(tmp_path / "k.zarr", executor=executor, timeout=1)
    finally:
        stuck.set()
        executor._pool.shutdown()
    assert np.array_equal(np.array(k), expected())


@HERE
def test_workers_that_all_hang(tmp_path: Path) -> None:
    stuck = threading.Event()
    executor = Fault(lambda n, task: stuck.wait() and None if n >= 5 else None)
    try:
        with pytest.raises(TimeoutError, match=r"finished anything for 0 s, twice; tiles \(.*kept"):
            gram(tmp_path / "k.zarr", executor=executor, timeout=0.3)
    finally:
        stuck.set()
        executor._pool.shutdown(cancel_futures=True)
    assert TileStore.open(open_objects(tmp_path / "k.zarr")).finished()
    assert np.array_equal(np.array(gram(tmp_path / "k.zarr")), expected())


class Silent(Executor):
    """Its workers never come back."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


@pytest.mark.parametrize(
    ("timeout", "work", "patience"),
    [(None, 3e10, 600), (None, 4e11, 4000), (30.0, 4e11, 30)],
    ids=["ten minutes", "a long task", "as asked"],
)
def test_the_first_report_may_take_as_long_as_its_task(
    timeout: float | None, work: float, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    task = Task("k.zarr", ((0, 0),), "cpu", None, 1, None, 1, None)
    nothing: Any = None
    distribution = workers._Distribution(
        Silent(), [task], 1, nothing, timeout, work, lambda report: None
    )
    assert distribution._fill()
    now[0] = patience - 1
    distribution._check_patience()
    now[0] = patience + 1
    with pytest.warns(RuntimeWarning, match=f"anything for {patience:.0f} s: its tiles are handed"):
        distribution._check_patience()


def test_the_work_of_a_task_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    distribute = run.distribute

    def note(*arguments: Any) -> bool:
        told.append(arguments[5])
        return distribute(*arguments)

    monkeypatch.setattr(run, "distribute", note)
    executor = Fault(lambda number, task: None)
    x = np.random.default_rng(2).random((250, 2, 2, 1))
    wl.gram(wl.cntk_vanilla(3), x, store=tmp_path / "k.zarr", tile=16, executor=executor)
    tiles = max(len(task.keys) for task in executor.tasks)
    assert tiles == 2  # of 136
    assert told == [tiles * 16**2 * 8]  # element-layers of two layers of 2 x 2


class Twice(Executor):
    """Runs no task before it is handed out again, and then both at once."""

    def __init__(self) -> None:
        self._futures: dict[Task, list[Future[Any]]] = {}

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        future.set_running_or_notify_cancel()
        futures = self._futures.setdefault(args[0], [])
        futures.append(future)
        if len(futures) == 2:
            report = fn(*args)
            for each in futures:
                each.set_result(report)
        return future


def test_a_task_that_two_workers_finish_counts_once(tmp_path: Path) -> None:
    states: list[Progress] = []
    with pytest.warns(RuntimeWarning, match="no worker has finished anything for 0 s"):
        k = gram(tmp_path / "k.zarr", executor=Twice(), timeout=0.01, progress=states.append)
    assert np.array_equal(np.array(k), expected())
    assert [state.tiles for state in states] == [*range(1, TILES + 1)]


# ---------------------------------------------------------------- workers that are wrong


def lie(task: Task) -> Report:
    report = run_task(task)
    wrong = {key: (values[0] ^ 1, *values[1:]) for key, values in report.checksums.items()}
    return replace(report, checksums=wrong)


def test_a_wrong_checksum_is_reported_and_the_tile_computed_again(tmp_path: Path) -> None:
    wrong: list[Task] = []
    there: list[set[Key]] = []

    def make(number: int, task: Task) -> Report | None:
        if number == 7:
            wrong.append(task)
            return lie(task)
        if task in wrong:  # again: what nobody vouches for is gone, also if nobody gets to this
            there.append(TileStore.open(open_objects(tmp_path / "k.zarr")).finished())
        return None

    executor = Fault(make)
    message = rf"process {os.getpid()} on .* wrote tile \(.*\) with checksum .*, and reported .*bad"
    with pytest.warns(RuntimeWarning, match=message):
        k = gram(tmp_path / "k.zarr", executor=executor)
    assert len(executor.tasks) == TILES + 1
    assert np.array_equal(np.array(k), expected())
    assert len(there) == 1
    assert there[0].isdisjoint(wrong[0].keys)


@HERE
def test_a_worker_whose_checksums_are_always_wrong(tmp_path: Path) -> None:
    executor = Fault(lambda number, task: lie(task))
    with pytest.raises(StoreError, match="look for bad memory or a bad disk there") as caught:
        gram(tmp_path / "k.zarr", executor=executor)
    bad = re.search(r"wrote tile \((\d+), (\d+)\)", str(caught.value))
    assert bad is not None
    store = TileStore.open(open_objects(tmp_path / "k.zarr"))
    assert (int(bad[1]), int(bad[2])) not in store.finished()


@HERE
def test_a_worker_that_sees_another_store(tmp_path: Path) -> None:
    def elsewhere(task: Task) -> Report:
        assert task.maker is not None
        return Report("process 1 on host", task.maker, dict.fromkeys(task.keys, (1, 2)), 0.1)

    executor = Fault(lambda number, task: elsewhere(task))
    with pytest.raises(StoreError, match=r"not in .*: all workers must see that path, on a shared"):
        gram(tmp_path / "k.zarr", executor=executor)


def test_a_worker_with_another_instruction_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = [name for name, there in instruction_sets().items() if there][-1]

    def other(number: int, task: Task) -> None:
        monkeypatch.setenv(ISA_VARIABLE, last)

    with pytest.raises(ValueError, match=rf"has backend cpu with {last}, .* set the environment"):
        gram(tmp_path / "k.zarr", executor=Fault(other))


def test_workers_of_several_makers_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, *_, last = [name for name, there in instruction_sets().items() if there]

    def change(number: int, task: Task) -> None:
        if number == 5:
            monkeypatch.setenv(ISA_VARIABLE, last)

    k = gram(tmp_path / "k.zarr", executor=Fault(change), allow_mixed=True)
    assert {maker.instruction_set for maker in k[0].manifest.makers} == {best, last}
    np.testing.assert_allclose(np.array(k), expected(), rtol=1e-5)


def test_inputs_that_were_changed_on_their_way(tmp_path: Path) -> None:
    path = tmp_path / "k.zarr"

    def change(number: int, task: Task) -> None:
        np.save(path / "inputs" / "x1.npy", X + 1)

    with (
        pytest.raises(StoreError, match=r"x1 in .* is not what the store is the kernel of"),
        pytest.warns(RuntimeWarning, match="handed out again"),
    ):
        gram(path, executor=Fault(change))
    assert json.loads((path / "zarr.json").read_text())["node_type"] == "array"


# ---------------------------------------------------------------- what a worker keeps


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_worker_forgets_a_store_that_was_made_again(engine: str, tmp_path: Path) -> None:
    """Another one at the same path, of the same matrix, with another grid as wide in tiles."""
    path = tmp_path / "k.zarr"
    with ENGINES[engine]() as executor:
        for tile in (40, 50, 16):
            k = wl.gram(NETS, X, store=path, tile=tile, executor=executor)
            assert np.array_equal(np.array(k), expected())
            shutil.rmtree(path)


def orders() -> dict[str, Order]:
    """An order, and one for each of its fields that differs in this alone."""
    maker, grid = Maker("cpu", "plain", "1"), Grid(9, 9, 3, "upper")
    first = Order("k.zarr", "0" * 64, "cpu", maker, grid, 1, 10**12, 1, 0)
    changes: dict[str, Any] = {
        "store": "l.zarr",
        "fingerprint": "1" * 64,
        "backend": "reference",
        "maker": Maker("cpu", "avx2", "1"),
        "grid": Grid(9, 9, 4, "upper"),
        "threads": 2,
        "memory": 2 * 10**12,
        "engines": 2,
        "known": 3,
    }
    assert set(changes) == {field.name for field in fields(Order)}
    return {"": first} | {name: replace(first, **{name: new}) for name, new in changes.items()}


class Counted:
    """A computation that notes what is asked of it."""

    def __init__(self) -> None:
        self.engines: list[tuple[Any, ...]] = []

    def sizes(self, threads: int) -> Sizes:
        return Sizes(9, 9, True, 4, 1, 8, 8, 8, lambda side: (1, 8), 1)

    def engine(self, *arguments: Any) -> Any:
        self.engines.append(arguments)
        return object()


@pytest.fixture
def computations(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    """Those that are made."""
    made: list[Counted] = []
    monkeypatch.setattr(computation, "read_manifest", lambda tiles: SimpleNamespace(x1=0, x2=None))
    monkeypatch.setattr(computation, "StoredInputs", lambda *_: None)
    monkeypatch.setattr(computation, "Computation", lambda *_: made.append(Counted()) or made[-1])
    return made


@pytest.mark.parametrize("name", list(orders()))
def test_what_is_kept_is_kept_under_all_that_it_depends_on(
    name: str, computations: list[Counted]
) -> None:
    """Engines under all of their order; inputs and programs for one store and maker."""
    held, tiles = computation._Kept(), cast("Any", SimpleNamespace(objects=None))
    first, other = orders()[""], orders()[name]
    with held.engine(first, tiles) as one:
        pass
    with held.engine(first, tiles) as again:
        assert again is one
    with held.engine(other, tiles) as last:
        assert (last is one) == (name == "")
    assert len(computations) == 1 + (name in ("store", "fingerprint", "maker"))
    grid, plan, known = computations[-1].engines[-1]
    assert (grid, known) == (other.grid, other.known)
    assert (plan.tile, plan.threads) == (other.grid.tile, other.threads)


def test_tasks_of_one_process_share_its_memory(computations: list[Counted]) -> None:
    """As many engines as tasks may run at a time, of which each has its share; others wait."""
    least = Counted().sizes(1).need(3, 1, 4)
    held, tiles = computation._Kept(), cast("Any", SimpleNamespace(objects=None))
    for engines, enough in ((1, True), (2, False), (2, True)):
        room = least * (engines if enough else 1) + 10**8 * enough
        order = replace(orders()[""], memory=held_memory() + room + 10**5, engines=engines)
        if not enough:
            with pytest.raises(MemoryError, match="at least"), held.engine(order, tiles):
                pass
            continue
        most: list[int] = []

        def run(order: Order = order, most: list[int] = most) -> None:
            with held.engine(order, tiles):
                threading.Event().wait(0.01)
                most.append(held._running)

        with ThreadPoolExecutor(6) as pool:
            for future in [pool.submit(run) for _ in range(12)]:
                future.result()
        assert max(most) == engines
        assert len(computations[-1].engines) <= engines + 1


def test_inputs_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Noted(StoredInputs):
        def __init__(self, objects: Any, name: str, described: Any) -> None:
            opened.append(name)
            super().__init__(objects, name, described)

    monkeypatch.setattr(computation, "StoredInputs", Noted)
    with ThreadPoolExecutor(3) as executor:
        wl.gram(NETS, X, Z, store=tmp_path / "k.zarr", tile=16, executor=executor)
    assert opened == ["x1", "x2"]
    assert computation.kept._computation is None  # this process holds nothing afterwards
