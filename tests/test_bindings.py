"""widelimit._core._engine: what it is given is checked before it is read, whoever calls."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from widelimit._core import _engine
from widelimit.backends.cpu import CpuBackend
from widelimit.backends.lowered import GATHER, IMAGE, NODE, RELU, Grid, LoweredLevel
from widelimit.lattice import Window

H, W, C = 3, 4, 2
SLICES = [(0, 0, 0), (0, 1, 0), (2, -3, 0)]  # of the variants [0, 1] and [0]


def table(extent: int) -> NDArray[np.float64]:
    return np.ones((2 * extent - 1, extent))


def make(
    slices: Any = SLICES, rows: Any = None, columns: Any = None, shape: tuple[int, int] = (H, W)
) -> Any:
    rows = table(H) if rows is None else rows
    columns = table(W) if columns is None else columns
    h, w = shape
    levels = [LoweredLevel(IMAGE, h, w, -1, -1, 1.0), convolution(h, w)]
    return program(levels, slices, [(1, True, True, rows, columns)])


def convolution(h: int, w: int, **changed: Any) -> LoweredLevel:
    """Return one convolution of 3 x 3 and a ReLU."""
    level = LoweredLevel(NODE, h, w, 0, -1, 1.0, 3, 3, 1, 1, RELU, trainable=True, theta_out=True)
    return replace(level, **changed)


def program(levels: Any, slices: Any, taps: Any = (), variants: Any = ((0, 1), (0,))) -> Any:
    rows = np.pad(np.array(slices, np.int64).reshape(-1, 3), ((0, 0), (0, 5)))
    rows[:, 7] = 1  # each goes by once
    stages = [Grid(-1, len(levels), variants, rows)]
    return _engine.Program(levels[0].h, levels[0].w, C, levels, stages, list(taps), True)


def test_tables_of_readouts_fit_the_image() -> None:
    make()
    for rows, columns in (
        (table(H + 1), None),
        (None, table(W - 1)),
        (None, table(W + 1)),
        (table(W), table(H)),
    ):
        with pytest.raises(ValueError, match=r"expected tables of \(2h-1, h\) and \(2w-1, w\)"):
            make(rows=rows, columns=columns)


@pytest.mark.parametrize(
    "wrong",
    [(H, 0, 0), (0, W, 0), (1, -W, 0), (-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 2)],
    ids=str,
)
def test_slices_lie_inside_the_image(wrong: tuple[int, int, int]) -> None:
    make([(H - 1, W - 1, 0), (H - 1, 1 - W, 1), (0, 0, 1)])  # the last ones inside
    with pytest.raises(ValueError, match="displacements inside the grids, one of each pair d, -d"):
        make([*SLICES, wrong])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"source": 1}, "each after its source"),
        ({"source": -1}, "each after its source"),
        ({"skip": 1}, "each after what is added to it"),
        ({"h": H - 1}, "grids that fit their filters"),
        ({"w": W + 1}, "grids that fit their filters"),
        ({"rows": 5}, "grids that fit their filters"),
        ({"columns": 2}, "grids that fit their filters"),
        ({"top": 0}, "grids that fit their filters"),
        ({"activation": 99}, "unknown activation"),
        ({"kind": IMAGE}, "the image first, and once"),
        ({"kind": GATHER}, "windows over the parent stage"),
        ({"h": 0}, "grids of 1 pixel or more"),
    ],
    ids=str,
)
def test_levels_read_what_is_there(changed: dict[str, Any], words: str) -> None:
    levels = [LoweredLevel(IMAGE, H, W, -1, -1, 1.0), convolution(H, W)]
    program(levels, SLICES)
    with pytest.raises(ValueError, match=words):
        program([levels[0], replace(levels[1], **changed)], SLICES)


@pytest.mark.parametrize("variants", [((1,),), ((1, 0),), ((0, 0),), ((0, 2),), ((),)], ids=str)
def test_slices_go_through_levels_in_order(variants: Any) -> None:
    levels = [LoweredLevel(IMAGE, H, W, -1, -1, 1.0), convolution(H, W)]
    with pytest.raises(ValueError, match="levels after their sources"):
        program(levels, [(0, 0, 0)], variants=variants)


def pooled(**changed: Any) -> Any:
    """Return a program with a pool of 2 x 2 pixels."""
    h, w = 2, 4
    rows, columns = (boundary_runs(extent) for extent in (h, w))
    given: dict[str, Any] = {"room": 4, "slots": (0, 2), "needs": (1, 3), "rows": rows, "parent": 0}
    given |= changed
    gather = LoweredLevel(
        *(GATHER, h // 2, w // 2, 0, -1, 1.0),
        room=given["room"],
        stride_down=2,
        stride_across=2,
        down=given["rows"],
        across=columns,
    )
    fine = np.array([(0, j, 0, 0, 0, 0, 0, 1) for j in range(3)], np.int64)
    coarse = np.array([(0, 0), (0, 1)], np.int64)
    once = [(0, 0, 1)] * 2
    coarse = np.column_stack([coarse, [0, 0], given["needs"], given["slots"], once])
    stages = [Grid(-1, 1, ((0,),), fine), Grid(given["parent"], 1, ((1,),), coarse)]
    levels = [LoweredLevel(IMAGE, h, w, -1, -1, 1.0), gather]
    return _engine.Program(h, w, C, levels, stages, [], False)


def boundary_runs(extent: int) -> NDArray[np.int32]:
    window = Window(2, 2)
    found = [
        (d, run.coarse, run.first, run.length)
        for d in range(1 - extent, extent)
        for run in window.targets(d, extent // 2, diagonal=False)
    ]
    return np.array(found, np.int32)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"slots": (0, 3)}, "slots inside the memory"),
        ({"slots": (-1, 2)}, "slots inside the memory"),
        ({"slots": (0, 2**63 - 1)}, "slots inside the memory"),
        ({"room": 3}, "slots inside the memory"),
        ({"needs": (1, 4)}, "displacements inside the grids"),
        ({"rows": boundary_runs(4)}, "those of the fine one in order"),
        ({"rows": boundary_runs(2)[::-1].copy()}, "those of the fine one in order"),
        ({"rows": np.repeat(boundary_runs(2), 3, axis=0)}, "of each the coarse ones"),
        ({"parent": 1}, "each after its parent"),
        ({"parent": -1}, "each after its parent"),
    ],
    ids=str,
)
def test_coarse_slices_gather_inside_their_memory(changed: dict[str, Any], words: str) -> None:
    pooled()
    with pytest.raises(ValueError, match=words):
        pooled(**changed)


@dataclass
class Arrays:
    """All that `Batch32`, `profile32` and `run32` read and write, for two images."""

    n: int = 2
    images: Any = field(init=False)
    profiles: Any = field(init=False)
    biases: Any = field(init=False)
    identity: Any = field(init=False)
    diagonal: Any = field(init=False)

    def __post_init__(self) -> None:
        n = self.n
        self.images = np.ones((n, H, W, C), np.float32)
        self.profiles = np.ones((n, 1, H, W), np.float32)
        self.biases = np.zeros((n, 1), np.float32)
        self.identity, self.diagonal = np.arange(n), np.ones((n, 1, 2))

    def batch(self, program: Any) -> Any:
        parts = (self.images, self.profiles, self.biases, self.identity, self.diagonal)
        return _engine.Batch32(program, *parts)


@pytest.mark.parametrize("name", ["images", "profiles", "biases", "identity", "diagonal"])
def test_arrays_of_a_batch_fit_the_program(name: str) -> None:
    arrays = Arrays()
    arrays.batch(make())
    setattr(arrays, name, getattr(arrays, name)[:1].copy())
    with pytest.raises(ValueError, match="batch arrays do not fit the program"):
        arrays.batch(make())


@pytest.mark.parametrize("short", range(7))
def test_arrays_of_profiles_fit_the_program(short: int) -> None:
    arrays = Arrays()
    given: list[Any] = [np.ones((2, H, W, C)), np.zeros(1)]
    given += [arrays.images, arrays.profiles, arrays.biases, np.ones(2), arrays.diagonal]
    _engine.profile32(make(), *given)
    given[short] = given[short][:-1].copy()
    with pytest.raises(ValueError, match="profile arrays do not fit the program"):
        _engine.profile32(make(), *given)


def run(program: Any, **changed: Any) -> Any:
    given: dict[str, Any] = {
        "x": Arrays().batch(make()),
        "z": Arrays(3).batch(make()),
        "rows": np.arange(2),
        "columns": np.arange(3),
        "pairwise": False,
        "out": np.zeros((2, 2, 3)),
        "cancel": np.zeros(1, np.int32),
    }
    _engine.run32(CpuBackend().isa, program, *(given | changed).values())


@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_indices_lie_inside_their_batch(wrong: int) -> None:
    run(make(), rows=np.array([0, 1]), columns=np.array([2, 0, 2]))
    with pytest.raises(IndexError, match="image index outside the batch"):
        run(make(), columns=np.array([0, wrong, 1]))
    with pytest.raises(IndexError, match="image index outside the batch"):
        run(make(), rows=np.array([wrong if wrong != 3 else 2, 0]))


def test_batches_are_those_of_the_program() -> None:
    # As many numbers, another shape.
    other = make(shape=(W, H), rows=table(W), columns=table(H), slices=[(0, 0, 0)])
    for name in ("x", "z"):
        with pytest.raises(ValueError, match="the batches were made for another program"):
            run(make(), **{name: Arrays(3).batch(other)})


def test_results_and_flags_have_their_sizes() -> None:
    pairs = {"rows": np.array([0, 1, 0]), "columns": np.arange(3), "pairwise": True}
    run(make(), **pairs, out=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="pairwise: as many rows as columns expected"):
        run(make(), pairwise=True, out=np.zeros((2, 3)))
    for out in (np.zeros((2, 2, 2)), np.zeros((2, 3, 3)), np.zeros((1, 2, 3)), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="out: wrong size"):
            run(make(), out=out)
    with pytest.raises(ValueError, match="out: wrong size"):
        run(make(), **pairs, out=np.zeros((2, 2, 3)))
    for size in (0, 2):
        with pytest.raises(ValueError, match="cancel: one int32 expected"):
            run(make(), cancel=np.zeros(size, np.int32))


def test_nothing_is_written_to_a_copy_or_read_from_one() -> None:
    for name, wrong in (
        ("out", np.zeros((2, 2, 3), np.float32)),
        ("out", np.zeros((2, 2, 3), order="F")),
        ("rows", np.array([0.9, 1.2])),
        ("cancel", np.zeros(1, np.int64)),
    ):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            run(make(), **{name: wrong})


@pytest.mark.parametrize("isa", ["avx1024", "", "AVX2"])
def test_instruction_sets_have_names(isa: str) -> None:
    with pytest.raises(ValueError, match="no instruction set named"):
        _engine.workspace_bytes(isa, make(), True, False)


def test_a_call_that_is_cancelled_leaves_its_result_as_it_was() -> None:
    out = np.full((2, 2, 3), 7.0)
    run(make(), out=out, cancel=np.ones(1, np.int32))
    assert (out == 7).all()
    run(make(), out=out)
    assert not (out == 7).any()


def test_batches_and_calls_let_go_of_their_arrays() -> None:
    arrays, out = Arrays(), np.zeros((2, 2, 2))
    program = make()
    batch = arrays.batch(program)
    for _ in range(3):
        run(program, x=batch, z=batch, columns=np.arange(2), out=out)
    held = [weakref.ref(getattr(arrays, field.name)) for field in fields(Arrays)[1:]]
    held += [weakref.ref(out)]
    del arrays, out
    gc.collect()
    assert [found() is not None for found in held] == [True] * 5 + [False]
    del batch
    gc.collect()
    assert [found() for found in held] == [None] * 6


def test_what_is_held_to_the_end_is_no_leak() -> None:
    """A daemon thread, as that of a server, holds a model when the process ends."""
    program = """
import threading
import numpy as np
import widelimit as wl
x = np.arange(24.0).reshape(2, 3, 4, 1)
model = wl.NTKClassifier("cntk-gap-3").fit(x, [0, 1])
model.predict(x)
threading.Thread(target=lambda model: threading.Event().wait(), args=(model,), daemon=True).start()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
