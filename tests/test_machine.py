"""What this process may use: processors and memory of control groups, threads of the BLAS."""

from __future__ import annotations

import importlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from widelimit import machine
from widelimit.machine import available_memory, blas_on_one_thread, default_threads
from widelimit.solvers import blas, solve_cholesky, solve_tiled

GIB = 2**30
V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 24 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
    "32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
)
ROOT = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


class System:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: 99 kB\nMemAvailable: {100 * 2**20} kB\n")

    def write(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def process(self, groups: str, mounts: str) -> None:
        """Set the groups of this process, and what is mounted."""
        self.write("proc/self/cgroup", groups)
        self.write("proc/self/mountinfo", ROOT + mounts)

    def memory(self, group: str, limit: object, used: int = 0, cached: int = 0) -> None:
        """Limit a group of version 2, in GiB."""
        folder = f"sys/fs/cgroup/{group}"
        limit = limit if isinstance(limit, str) else int(float(str(limit)) * GIB)
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.current", f"{used * GIB}\n")
        stat = f"anon 5\nfile 7\ninactive_file {cached * GIB}\nactive_file 3\n"
        self.write(f"{folder}/memory.stat", stat)

    def memory_v1(self, group: str, limit: int, used: int = 0, cached: int = 0) -> None:
        """The same for version 1, in bytes for the limit."""
        folder = f"sys/fs/cgroup/memory/{group}"
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used * GIB}\n")
        stat = f"inactive_file 1\ntotal_inactive_file {cached * GIB}\n"
        self.write(f"{folder}/memory.stat", stat)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setattr(machine, "_SYSTEM", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return System(tmp_path)


# ---------------------------------------------------------------- memory


def test_without_control_groups_memory_is_what_the_system_has(system: System) -> None:
    assert available_memory() == 100 * GIB
    system.process("0::/a\n", "")  # not mounted
    assert available_memory() == 100 * GIB
    assert default_threads() == 16


def test_without_proc_memory_is_what_is_built_in(system: System) -> None:
    (system.root / "proc/meminfo").unlink()
    assert available_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


SLURM = "system.slice/slurmstepd.scope/job_7"
INNER = f"{SLURM}/step_0/user/task_0"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({INNER: (8, 3, 1)}, 6),
        ({INNER: ("max", 3, 1), SLURM: (8, 5, 2)}, 5),  # as SLURM: the job has the limit
        ({INNER: (8, 3, 1), SLURM: (20, 18, 1)}, 3),  # the outer one leaves less
        ({INNER: (8, 3, 1), "system.slice": (9, 1, 0)}, 6),
        ({INNER: ("max", 3, 1), "": (7, 2, 0)}, 5),  # at the mount itself
        ({INNER: ("max", 3, 1)}, 100),
        ({INNER: (8, 9, 0)}, 0),  # over its limit
        ({INNER: (200, 9, 0)}, 100),  # more than the system has
        ({"other": (1, 0, 0)}, 100),
    ],
)
def test_memory_of_nested_groups(
    limits: dict[str, tuple[Any, int, int]], expected: int, system: System
) -> None:
    system.process(f"0::/{INNER}\n", V2)
    (system.root / "sys/fs/cgroup" / INNER).mkdir(parents=True)
    for group, limit in limits.items():
        system.memory(group, *limit)
    assert available_memory() == expected * GIB


def test_memory_of_groups_of_version_1(system: System) -> None:
    """The limit of a group holds for those in it; a number near 2^63 stands for none."""
    none = 2**63 - 4096
    system.process("9:memory:/slurm/job_7/step_0\n4:cpu,cpuacct:/\n0::/\n", V1)
    system.memory_v1("slurm/job_7/step_0", none, 2)
    system.memory_v1("slurm/job_7", 8 * GIB, 5, 1)
    system.memory_v1("slurm", none, 50)
    assert available_memory() == 4 * GIB
    system.memory_v1("slurm/job_7/step_0", 3 * GIB, 2)
    assert available_memory() == 1 * GIB
    system.memory_v1("", 60 * GIB, 60)
    assert available_memory() == 0


def test_both_versions_at_once(system: System) -> None:
    """Version 2 without the controller of memory, beside version 1 with it."""
    unified = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    system.process("9:memory:/a\n0::/a\n", unified + V1)
    (system.root / "sys/fs/cgroup/unified/a").mkdir(parents=True)
    system.memory_v1("a", 5 * GIB)
    assert available_memory() == 5 * GIB


@pytest.mark.parametrize(
    ("path", "top"),
    [
        ("/docker/abc", "/"),  # the path of the host: not visible
        ("/docker/abc", "/docker/abc"),  # a part of the host's tree is mounted
        ("/docker/abcd", "/docker/abc"),  # ... of another name that begins alike
        ("/../../user.slice", "/"),  # out of the namespace
        ("/", "/"),
    ],
)
def test_in_a_container_what_is_mounted_is_its_own(path: str, top: str, system: System) -> None:
    system.process(f"0::{path}\n", V2.replace("0:26 / ", f"0:26 {top} "))
    system.memory("", 4, 1)
    system.write("sys/fs/cgroup/cpu.max", "250000 100000\n")
    system.write("user.slice/memory.max", "1\n")
    assert available_memory() == 3 * GIB
    assert default_threads() == 3


def test_a_group_below_what_is_mounted(system: System) -> None:
    system.process("0::/docker/abc/job\n", V2.replace("0:26 / ", "0:26 /docker/abc "))
    system.memory("job", 4, 1)
    system.memory("", 50, 1)
    assert available_memory() == 3 * GIB


@pytest.mark.parametrize("text", ["", "abc", "-3 GB", "1 2 3"])
def test_files_that_make_no_sense_are_passed_over(text: str, system: System) -> None:
    system.process("0::/a\nnonsense\n", V2 + "nonsense\n\n - \n")
    system.memory("a", text)
    system.memory("", 9)
    system.write("sys/fs/cgroup/a/cpu.max", text)
    assert available_memory() == 9 * GIB
    assert default_threads() == 16


# ---------------------------------------------------------------- processors


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({"a/b": "max 100000"}, 16),
        ({"a/b": "400000 100000"}, 4),
        ({"a/b": "150000 100000"}, 2),  # a part of one is one
        ({"a/b": "1000 100000"}, 1),
        ({"a/b": "max 100000", "a": "300000 100000"}, 3),
        ({"a/b": "500000 100000", "a": "300000 100000", "": "max 100000"}, 3),
        ({"a/b": "6400000 100000"}, 16),
        ({"a/b": "400000 0"}, 16),
    ],
)
def test_processors_of_a_quota(quotas: dict[str, str], expected: int, system: System) -> None:
    system.process("0::/a/b\n", V2)
    (system.root / "sys/fs/cgroup/a/b").mkdir(parents=True)
    for group, quota in quotas.items():
        system.write(f"sys/fs/cgroup/{group}/cpu.max", quota + "\n")
    assert default_threads() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("200000", 4), ("1", 1)])
def test_processors_of_a_quota_of_version_1(quota: str, expected: int, system: System) -> None:
    system.process("4:cpu,cpuacct:/a\n9:memory:/b\n", V1)
    folder = "sys/fs/cgroup/cpu,cpuacct/a"
    system.write(f"{folder}/cpu.cfs_quota_us", quota + "\n")
    system.write(f"{folder}/cpu.cfs_period_us", "50000\n")
    assert default_threads() == expected


@pytest.mark.parametrize(
    ("asked", "expected"), [("2", 2), ("64", 4), ("0", 4), ("", 4), ("two", 4), (" 3 ", 3)]
)
def test_processors_of_the_variable(
    asked: str, expected: int, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.process("0::/\n", V2)
    system.write("sys/fs/cgroup/cpu.max", "400000 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_threads() == expected


def test_processors_without_affinity(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert default_threads() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() == 1


# ---------------------------------------------------------------- threads of the BLAS


def blas_threads() -> set[int]:
    return {entry["num_threads"] for entry in threadpool_info() if entry["user_api"] == "blas"}


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}
        yield


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("first_out", [0, 1])
def test_blocks_that_overlap_give_the_threads_back(first_out: int) -> None:
    blocks = [blas_on_one_thread(), blas_on_one_thread()]
    blocks[0].__enter__()
    assert blas_threads() == {1}
    blocks[1].__enter__()
    blocks[first_out].__exit__(None, None, None)
    assert blas_threads() == {1}
    blocks[1 - first_out].__exit__(None, None, None)
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_an_error_gives_the_threads_back() -> None:
    def fail() -> None:
        assert blas_threads() == {1}
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), blas_on_one_thread():
        fail()
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_threads")
def test_a_crew_that_has_gone_gives_the_threads_back() -> None:
    """At once, and not when nobody refers to it any more, as a traceback may."""
    with blas.Crew(2) as crew:
        assert blas_threads() == {1}
    assert blas_threads() == {2}
    assert crew.size == 2


@pytest.mark.usefixtures("two_threads")
def test_the_last_to_leave_may_be_another_thread_than_the_first_to_enter() -> None:
    """Of which the first goes on living: threadpoolctl obeys one thread alone."""
    entered, left = threading.Event(), threading.Event()
    block = blas_on_one_thread()

    def enter() -> None:
        block.__enter__()
        entered.set()
        left.wait(60)

    thread = threading.Thread(target=enter)
    thread.start()
    entered.wait(60)
    assert blas_threads() == {1}
    block.__exit__(None, None, None)
    assert blas_threads() == {2}
    with blas_on_one_thread():
        assert blas_threads() == {1}
    left.set()
    thread.join()


@pytest.mark.usefixtures("two_threads")
def test_solvers_that_overlap_leave_the_blas_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One begins first and ends first: it must not take the limit from the other, nor leave it."""
    monkeypatch.setattr(blas, "BLOCK", 16)
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((90, 90))
    k, y = factor @ factor.T + np.eye(90), rng.standard_normal(90)
    second_is_in, first_is_out = threading.Event(), threading.Event()
    seen: dict[str, set[int]] = {}
    enter = blas.Crew.__enter__

    def gate(crew: Any) -> Any:
        entered = enter(crew)
        me = threading.current_thread().name
        if me == "first":
            second_is_in.wait()
        else:
            second_is_in.set()
            first_is_out.wait()
        seen[me] = seen.get(me, set()) | blas_threads()
        return entered

    monkeypatch.setattr(blas.Crew, "__enter__", gate)
    values: dict[str, Any] = {}

    def solve(solver: Callable[..., Any], **options: Any) -> None:
        values[threading.current_thread().name] = solver(k, y, 0.1, **options).value
        first_is_out.set()

    for solvers in (
        [(solve_cholesky, {}), (solve_cholesky, {})],
        [
            (solve_tiled, {"store": tmp_path / "a", "tile": 16, "threads": 1}),
            (solve_cholesky, {}),
        ],
        [
            (solve_cholesky, {}),
            (solve_tiled, {"store": tmp_path / "b", "tile": 16, "threads": 1}),
        ],
    ):
        second_is_in.clear()
        first_is_out.clear()
        seen.clear()
        threads = [
            threading.Thread(target=solve, name=name, args=(solver,), kwargs=options)
            for name, (solver, options) in zip(("first", "second"), solvers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert seen == {"first": {1}, "second": {1}}
        assert blas_threads() == {2}
        ridge = 0.1 * float(np.trace(k)) / 90
        for value in values.values():
            np.testing.assert_allclose((k + ridge * np.eye(90)) @ value, y, rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------- names


def test_the_function_hides_no_package() -> None:
    import widelimit as wl
    import widelimit.matrices.store as s

    assert s is importlib.import_module("widelimit.matrices.store")
    assert callable(wl.gram)
    assert callable(wl.kernel)
    assert math.isfinite(machine.held_memory())
