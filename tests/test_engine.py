"""The parts of the engine: cuts into pairs, profiles of a side, sinks, threads, the diagonal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import widelimit as wl
from widelimit.backends import Backend, cpu, get_backend, serving
from widelimit.backends.base import Cancelled, Dtype, Entries, Pairs
from widelimit.backends.cpu import CpuBackend
from widelimit.backends.dense import DenseBackend
from widelimit.matrices.engine import Engine, held_blocks
from widelimit.matrices.families import Family, find_families, profile_bytes, scratch_bytes
from widelimit.matrices.kernel import kernel_diagonal
from widelimit.matrices.profiles import Samples, Side, make_sides
from widelimit.matrices.sinks import InMemory
from widelimit.matrices.threads import Threads
from widelimit.matrices.tiles import Grid
from widelimit.program import Readout, compile_family

RNG = np.random.default_rng(0)
X = RNG.standard_normal((131, 4, 5, 2))
HEAD = wl.Network([wl.Conv(3), wl.ReLU(), wl.GlobalAvgPool(), wl.Dense(), wl.ReLU(), wl.Dense()])
GAP, VANILLA, DENSE = wl.cntk_gap(3), wl.cntk_vanilla(3), wl.ntk_dense(3, b_std=0.1)
SHAPE = (4, 5, 2)

# ---------------------------------------------------------------- cuts


@st.composite
def wanted(draw: st.DrawFn) -> Entries:
    part: Any = draw(st.sampled_from(["all", "upper", "diagonal"]))
    n2 = draw(st.integers(1, 300))
    n1 = draw(st.integers(1, 300)) if part == "all" else n2
    known = 0 if part == "diagonal" else draw(st.integers(0, n2 - 1))
    return Entries(n1, n2, part, known)


def counts(calls: Iterable[tuple[Pairs, bool]], entries: Entries) -> NDArray[np.int64]:
    """How often each entry is computed, and stored where it belongs."""
    count = np.zeros((entries.n1, entries.n2), np.int64)
    for part, swapped in calls:
        rows, columns = part.rows, part.columns
        if not part.pairwise:
            assert (np.diff(rows) == 1).all()  # consecutive, as `Pairs` says
            assert (np.diff(columns) == 1).all()
            rows, columns = (side.ravel() for side in np.meshgrid(rows, columns, indexing="ij"))
        np.add.at(count, (columns, rows) if swapped else (rows, columns), 1)
    return count


@pytest.mark.parametrize("net", [GAP, VANILLA, DENSE], ids=["gap", "vanilla", "dense"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(entries=wanted())
def test_what_is_wanted_is_computed_once(net: wl.Network, entries: Entries) -> None:
    (family,) = find_families([net], SHAPE, ["ntk"], get_backend("cpu"))
    backend, lanes = family.backend, family.backend.lanes("float64")
    calls = list(backend.cut(family.program, "float64", entries))
    count = counts(calls, entries)
    for pairs, _ in calls:
        if backend.name == "dense":
            assert max(pairs.shape) <= lanes
        elif entries.part == "diagonal":
            assert pairs.rows.size <= lanes
    if entries.part == "all":
        assert (count[:, entries.known :] == 1).all()
        assert not count[:, : entries.known].any()
        return
    i, j = np.indices(count.shape)
    if entries.part == "diagonal":
        assert (count[i == j] == 1).all()
        assert (count[i != j] == (0 if backend.name == "cpu" else count[i != j])).all()
        return
    either = count + count.T - np.diag(count.diagonal())
    new = np.maximum(i, j) >= entries.known
    assert (either[new] >= 1).all()
    assert not either[~new].any()
    # squares on the diagonal are computed whole, but where single pairs are packed
    side = 1 if net is GAP else lanes
    apart = np.abs(i - j) >= side
    assert (either[new & apart] == 1).all()


def test_dense_networks_have_one_backend() -> None:
    dense = compile_family([DENSE], SHAPE, ["ntk"])
    conv = compile_family([GAP], SHAPE, ["ntk"])
    for name in ("cpu", "reference"):
        backend = get_backend(cast("Any", name))
        assert isinstance(serving(dense, backend), DenseBackend)
        assert serving(conv, backend) is backend


@pytest.mark.parametrize("d", [1, 40, 128, 300])
def test_blocks_of_any_size_are_the_squares_of_a_cut(d: int) -> None:
    """What `Backend` promises: no bit depends on the other pairs of a call."""
    x = RNG.standard_normal((300, d))
    program = compile_family([wl.Network([wl.Dense()])], (d,), ["ntk"])
    backend, cancel = DenseBackend(), np.zeros(1, np.int32)
    profile = backend.profile(program, x, np.arange(300), "float64")
    whole = backend.sums(program, profile, profile, Pairs(np.arange(300), np.arange(300)), cancel)
    np.testing.assert_allclose(whole[0, 0], x @ x.T / d, rtol=1e-12, atol=1e-13)
    assert not whole[0, 1].any()
    assert np.array_equal(whole[0, 0], whole[0, 0].T)
    for rows, columns in ((slice(3, 4), slice(290, 300)), (slice(100, 290), slice(1, 131))):
        part = Pairs(np.arange(300)[rows], np.arange(300)[columns])
        sums = backend.sums(program, profile, profile, part, cancel)
        assert np.array_equal(sums, whole[:, :, rows, columns])
    single = Pairs(np.arange(300), np.arange(300)[::-1].copy(), pairwise=True)
    sums = backend.sums(program, profile, profile, single, cancel)
    np.testing.assert_allclose(sums[0, 0], whole[0, 0, :, ::-1].diagonal(), rtol=1e-12, atol=1e-13)
    with pytest.raises(Cancelled):
        backend.sums(program, profile, profile, single, np.ones(1, np.int32))


# ---------------------------------------------------------------- the diagonal


@pytest.mark.parametrize("n", [1, 15, 17, 131])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_diagonal_is_that_of_the_kernel(n: int, dtype: Dtype) -> None:
    nets = [DENSE, GAP, HEAD, wl.ntk_dense(1), VANILLA]  # three families
    for kind in ("ntk", "nngp"):
        k = wl.kernel(nets, X[:n], kind=kind, dtype=dtype)
        found = kernel_diagonal(nets, X[:n], kind, dtype=dtype, threads=2)
        assert found.dtype == k.dtype
        assert np.array_equal(found, k.diagonal(axis1=1, axis2=2))
        one = kernel_diagonal(HEAD, X[:n], kind, dtype=dtype)
        assert np.array_equal(one, found[2])
        assert np.array_equal(kernel_diagonal([HEAD], X[:n], kind, dtype=dtype), one[None])


def test_the_diagonal_costs_one_group_of_lanes_for_as_many_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    sums = CpuBackend.sums

    def count(self: Any, program: Any, a: Any, b: Any, pairs: Pairs, cancel: Any) -> Any:
        sizes.append(int(np.prod(pairs.shape)))
        return sums(self, program, a, b, pairs, cancel)

    monkeypatch.setattr(CpuBackend, "sums", count)
    kernel_diagonal(GAP, X)
    assert sum(sizes) == 131
    lanes = CpuBackend().lanes("float32")
    assert len(sizes) == -(-131 // lanes)


def test_the_diagonal_costs_one_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dense network, for as many samples."""
    shapes: list[tuple[int, ...]] = []
    sums = DenseBackend.sums

    def count(self: Any, program: Any, a: Any, b: Any, pairs: Pairs, cancel: Any) -> Any:
        shapes.append(pairs.shape)
        return sums(self, program, a, b, pairs, cancel)

    monkeypatch.setattr(DenseBackend, "sums", count)
    kernel_diagonal(wl.Network([wl.Dense()]), X)
    assert shapes == [(128, 128), (3, 3)]


def test_the_head_of_a_dense_network_is_for_the_diagonal_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And in blocks of many squares: 50,000 samples cost a few passes of NumPy."""
    sizes: list[int] = []
    apply, make = Readout.apply, Side._make
    monkeypatch.setattr(Readout, "apply", lambda *a: sizes.append(a[1].size) or apply(*a))
    blocks: list[int] = []
    monkeypatch.setattr(Side, "_make", lambda *a: blocks.append(len(a[2])) or make(*a))
    x = np.random.default_rng(0).normal(size=(1100, 3))
    found = kernel_diagonal(DENSE, x, dtype="float64")
    assert sum(sizes) == 1100
    assert blocks == [1024, 76]
    assert np.array_equal(found, wl.kernel(DENSE, x, dtype="float64").diagonal())


# ---------------------------------------------------------------- profiles


def test_work_space_is_that_of_the_largest_family() -> None:
    made = find_families([DENSE, GAP, VANILLA], SHAPE, ["ntk"], CpuBackend())
    assert len(made) == 3
    work = [family.backend.scratch_bytes(family.program, "float32") for family in made]
    assert scratch_bytes(made, "float32") == max(work) > min(work)
    # 4 x 5 images of two channels in float32 with two steps; 40 numbers in float64
    assert profile_bytes(made, "float32") == 2 * 4 * 20 * (2 + 2) + 8 * 40


def families(backend: Backend | None = None) -> list[Family]:
    return find_families([GAP], SHAPE, ["ntk"], backend or CpuBackend())


def samples(n: int) -> Samples:
    return Samples(X[:n], np.arange(n))


class Profiled(CpuBackend):
    """Notes which samples are profiled."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[int] = []

    def profile(self, program: Any, images: Any, identity: Any, dtype: Any) -> Any:
        self.blocks.append(int(identity[0]))
        return super().profile(program, images, identity, dtype)


def test_a_side_holds_the_blocks_that_were_wanted_last() -> None:
    backend = Profiled()
    side = Side(samples(50), families(backend), "float32", 10, 2)
    with Threads(1) as threads:
        for index in (0, 1, 0, 2, 0, 1, 4):
            (block,) = side.block(index, threads)
            assert len(block.profile) == 10
    assert backend.blocks == [0, 10, 20, 10, 40]


@pytest.mark.parametrize("square", [True, False])
def test_no_profile_is_made_twice_in_a_sweep(square: bool) -> None:
    """With blocks for a group of rows, and two columns."""
    backend = Profiled()
    made = families(backend)
    right = None if square else samples(70)
    grid = Grid(50, 50 if square else 70, 10, "upper" if square else "full")
    engine = Engine(
        made, *make_sides(samples(50), right, made, "float32", 10, 5, 2), grid, "float32", 1
    )
    out = np.empty((1, 1, grid.n1, grid.n2), np.float32)
    with closing(engine.run(grid.order(grid, 5), InMemory(out, grid))) as parts:
        assert {part.finished for part in parts} - {None} == set(grid.tiles())
    assert len(backend.blocks) == (5 if square else 12)
    assert np.array_equal(out[0, 0], wl.kernel(GAP, X[:50], None if square else X[:70]))


def test_a_block_in_use_counts_though_it_is_not_held() -> None:
    """Tasks of tiles that came before may still need it: no other takes its room."""
    side = Side(samples(40), families(), "float32", 10, 2)
    with Threads(1) as threads:
        first, second = side.block(0, threads), side.block(1, threads)
        assert side.has_room(1)
        assert not side.has_room(2)
        del first
        assert side.has_room(2)
        del second


def test_a_kernel_in_memory_is_swept_by_the_blocks_that_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from widelimit.matrices import engine

    backend = Profiled()
    made = families(backend)
    sample = backend.profile_bytes(made[0].program, "float32")
    monkeypatch.setattr(engine, "_SIDE", 20)  # of two groups of lanes or more
    monkeypatch.setattr(cpu, "PROFILE_BYTES", 5 * 20 * sample)
    out = np.empty((1, 1, 120, 120), np.float32)
    engine.fill(made, samples(120), None, out, "float32", 1)
    # Two rows of six at a time: all six blocks, then two more with the last of them held, then one.
    assert len(backend.blocks) == 9
    assert np.array_equal(out[0, 0], wl.kernel(GAP, X[:120]))


def test_blocks_held_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(100, 100, 20, "upper")
    sample = CpuBackend().profile_bytes(families()[0].program, "float32")
    for blocks, group in ((1, 1), (4, 1), (7, 4), (100, 10)):
        monkeypatch.setattr(cpu, "PROFILE_BYTES", blocks * 20 * sample)
        assert held_blocks(families(), "float32", grid, 1) == (group, 3)


# ---------------------------------------------------------------- sinks and threads


class Broken(InMemory):
    """A sink that fails at one tile, slowly."""

    def __init__(self, out: Any, grid: Grid, when: str, at: tuple[int, int]) -> None:
        super().__init__(out, grid)
        self._when, self._at = when, at

    def begin(self, key: tuple[int, int]) -> Any:
        if self._when == "begin" and key == self._at:
            raise OSError("no room")
        return super().begin(key)

    def end(self, key: tuple[int, int], values: Any) -> None:
        if self._when == "end" and key == self._at:
            time.sleep(0.1)
            raise OSError("no room")
        super().end(key, values)


@pytest.mark.parametrize("when", ["begin", "end"])
@pytest.mark.parametrize("at", [(1, 2), (6, 6)], ids=["early", "last"])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_sink_is_told(when: str, at: tuple[int, int], threads: int) -> None:
    made = families()
    grid = Grid(131, 131, 20, "upper")
    sides = make_sides(samples(131), None, made, "float32", 20, 7, 2)
    engine = Engine(made, *sides, grid, "float32", threads)
    out = np.empty((1, 1, 131, 131), np.float32)
    before = threading.active_count()
    finished = []
    with (
        pytest.raises(OSError, match="no room"),
        closing(engine.run(grid.order(grid, 7), Broken(out, grid, when, at))) as parts,
    ):
        finished.extend(part.finished for part in parts)
    assert at not in finished
    assert threading.active_count() == before
    # and the engine is of use afterwards
    with closing(engine.run(grid.order(grid, 7), InMemory(out, grid))) as parts:
        assert len({part.finished for part in parts} - {None}) == 28
    assert np.array_equal(out[0, 0], wl.kernel(GAP, X))


def test_threads_that_end_have_been_told_to_stop() -> None:
    """An error in the block does not wait for tasks that would run for long."""
    started = threading.Event()

    def work(cancel: NDArray[np.int32]) -> None:
        started.set()
        while not cancel[0]:
            threading.Event().wait(0.001)

    def fail() -> None:
        started.wait()
        raise RuntimeError("elsewhere")

    with pytest.raises(RuntimeError, match="elsewhere"), Threads(2) as threads:
        for _ in threads.run([lambda: work(threads.cancel), fail]):
            pass


def test_tasks_that_wait_are_not_begun() -> None:
    begun: list[int] = []
    first = threading.Event()

    def task(index: int, threads: Threads) -> None:
        begun.append(index)
        first.set()
        while not threads.cancel[0]:
            threading.Event().wait(0.001)

    with Threads(1) as threads:
        run = threads.run(partial(task, index, threads) for index in range(9))

        def take() -> None:
            with suppress(CancelledError):  # of the one that waits
                next(run, None)

        taker = threading.Thread(target=take)
        taker.start()
        first.wait()
        time.sleep(0.1)  # the next one waits for its turn
    taker.join(10)
    assert begun == [0]


def test_tasks_are_taken_as_they_can_be_run() -> None:
    """Four for each thread are in flight: a task may hold much memory."""
    taken: list[int] = []
    running = threading.Event()

    def tasks() -> Iterator[Any]:
        for index in range(20):
            taken.append(index)
            yield lambda index=index: running.wait() and index

    with Threads(2) as threads:
        results = threads.run(tasks())
        timer = threading.Timer(0.3, running.set)
        timer.start()
        first = next(results)
        assert len(taken) == 8
        assert {first, *results} == set(range(20))


# ---------------------------------------------------------------- bits


_DIGESTS = """
import hashlib
import numpy as np
import widelimit as wl
from widelimit import Conv, Dense, Erf, Flatten, GELU, GlobalAvgPool, LayerNorm, Network, Sin
x = np.random.default_rng(0).uniform(0, 1, (12, 8, 8, 3))
mixed = [Conv(3), LayerNorm(), Sin(), Conv(3), Erf(), Conv(3), GELU(), GlobalAvgPool(), Dense()]
plain = [Conv(3), Erf(), Flatten(), Dense(), Dense(b_std=0.1)]
for net in (wl.cntk_gap(3), wl.cntk_vanilla(3), wl.myrtle(5), Network(mixed), Network(plain)):
    for dtype in ("float32", "float64"):
        k = wl.kernel(net, x, dtype=dtype, threads=1, backend="cpu")
        print(hashlib.sha256(k.tobytes()).hexdigest())
"""


def test_no_bit_of_convolutions_depends_on_the_instructions_of_numpy() -> None:
    """What a store says of its maker is enough for them; for the rest docs/cluster.md warns."""
    extra = cast("Any", np.show_config)(mode="dicts")["SIMD Extensions"].get("found")
    if not extra:
        pytest.skip("NumPy uses no more than the least instructions here")
    other = {"NPY_DISABLE_CPU_FEATURES": " ".join(extra), "OPENBLAS_CORETYPE": "Nehalem"}
    found = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _DIGESTS],
            env={**os.environ, **changes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for changes in ({}, other)
    ]
    assert len(found[0]) == 10
    assert found[0] == found[1]
