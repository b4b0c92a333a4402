"""Solvers for matrices larger than memory, against numpy and LAPACK, killed and damaged."""

import errno
import io
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import contents, disk_of

import widelimit as wl
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import StoreError, TileStore
from widelimit.solvers import (
    Convergence,
    Status,
    encode_labels,
    factorise,
    leave_one_out,
    leave_one_out_of_factor,
    solve,
    solve_cholesky,
    solve_conjugate,
    solve_refined,
    solve_tiled,
)
from widelimit.solvers import blas as blas_module
from widelimit.solvers import factor as factor_module
from widelimit.solvers import matrix as matrix_module
from widelimit.solvers import tiled as tiled_module
from widelimit.solvers.conjugate import _share


def gram(n: int, seed: int = 0, dtype: str = "float64", least: float = 1e-2) -> np.ndarray:
    """A Gram matrix with a spectrum that decays; by default of condition 1e4 or so."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n + 5)) * np.geomspace(1, least, n + 5)
    k = x @ x.T
    return ((k + k.T) / 2).astype(dtype)


def with_ridge(k: np.ndarray, ridge: float) -> np.ndarray:
    k = k.astype(np.float64)
    return k + ridge * np.trace(k) / len(k) * np.eye(len(k))


class Stored:
    """A matrix that is read in tiles, as one on a disk; counts what is read."""

    def __init__(self, k: np.ndarray, tile: int) -> None:
        self._k, self.tile = k, tile
        self.shape, self.dtype = k.shape, k.dtype
        self.fingerprint = "of the test"
        self.read: list[tuple[int, int]] = []

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = index
        for part in index:
            assert part.start % self.tile == 0, "not aligned with the tiles"
            assert part.stop - part.start <= self.tile, "more than a tile"
        assert rows.start <= columns.start, "below the diagonal"
        self.read.append((rows.start // self.tile, columns.start // self.tile))
        return self._k[rows, columns]


# ---------------------------------------------------------------- one triangle


def every_solver(store: Path) -> dict[str, Callable[[Any, Any], Any]]:
    """What takes a Gram matrix and targets."""
    grown = solve_cholesky(gram(150)[:100, :100], np.ones(100), 1e-3).factor
    return {
        "cholesky": lambda k, y: solve_cholesky(k, y, 1e-3),
        "tiled": lambda k, y: solve_tiled(k, y, 1e-3, store=store / "tiled", tile=32),
        "factorise": lambda k, y: factorise(k, 1e-3, store=store / "factor"),
        "refined": lambda k, y: solve_refined(k, y, 1e-3),
        "refined in a store": lambda k, y: solve_refined(k, y, 1e-3, store=store / "refined"),
        "conjugate": lambda k, y: solve_conjugate(k, y, 1e-3),
        "spectral": lambda k, y: solve(k, y, 1e-3, method="spectral"),
        "more samples": lambda k, y: solve(k, y, extends=grown),
        "leave-one-out": lambda k, y: leave_one_out(k, y, [1e-3]),
        "estimator": lambda k, y: wl.NTKRegressor(
            kernel="precomputed", solver="cg", ridge=1e-3, normalize_y=False
        ).fit(k, y),
    }


SOLVERS = list(every_solver(Path()))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_matrix_that_is_not_symmetric_is_refused(name: str, tmp_path: Path) -> None:
    """One triangle is read: the answer would be right for another matrix."""
    solver, k, y = every_solver(tmp_path)[name], gram(150), np.arange(150.0)
    solver(k, y)
    other = every_solver(tmp_path / "other")[name]
    lower, upper = k.copy(), k.copy()
    lower[120:130, 105:112] = 0
    upper[105:112, 120:130] = 0
    for wrong in (lower, upper, lower.astype(np.float32)):
        with pytest.raises(ValueError, match="k must be symmetric up to rounding"):
            other(wrong, y)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "estimator"])
@pytest.mark.parametrize("place", [(120, 105), (105, 120)])
def test_nan_is_named_by_its_place(name: str, place: tuple[int, int], tmp_path: Path) -> None:
    k = gram(150)
    k[place] = np.nan
    found = rf"got k\[{place[0]}, {place[1]}\] = nan|finite.* got nan at \[{place[0]}, {place[1]}\]"
    with pytest.raises(ValueError, match=found):
        every_solver(tmp_path)[name](k, np.arange(150.0))


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "estimator"])
def test_a_kernel_of_two_sets_of_samples_is_refused(name: str, tmp_path: Path) -> None:
    """A stored one as well, of which the tiles above the diagonal would be read."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 150, 3))
    k = wl.gram(wl.ntk_dense(2), x, z, store=tmp_path / "k.zarr")
    assert k.shape == (150, 150)
    with pytest.raises(ValueError, match=r"samples with themselves, got Gram.* without x2"):
        every_solver(tmp_path)[name](k, np.arange(150.0))


# ---------------------------------------------------------------- in place


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 150),
    block=st.sampled_from([16, 20, 64]),
    dtype=st.sampled_from(["float32", "float64"]),
    threads=st.sampled_from([1, 3]),
)
def test_factor_in_place(n: int, block: int, dtype: str, threads: int) -> None:
    k = with_ridge(gram(n, n), 1e-3).astype(dtype)
    work = k.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blas_module, "_BLOCK", block)
        assert blas_module.factor_in_place(work, threads) == 0
    expected = np.linalg.cholesky(k.astype(np.float64))
    rtol = 1e-3 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(np.tril(work), expected, rtol=rtol, atol=rtol * expected.max())
    np.testing.assert_array_equal(np.triu(work, 1), np.triu(k, 1))  # left alone


@pytest.mark.parametrize("place", [0, 15, 16, 40, 89])
def test_factor_in_place_says_which_pivot(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas_module, "_BLOCK", 16)
    k = with_ridge(gram(90), 1e-3)
    k[place, place] = -1.0
    assert blas_module.factor_in_place(k) == place + 1


def test_solvers_of_matrices_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas_module, "_BLOCK", 16)
    k, y = gram(90), np.random.default_rng(0).normal(size=(90, 2))
    expected = np.linalg.solve(with_ridge(k, 1e-3), y)
    for solution in (solve_cholesky(k, y, 1e-3), solve_refined(k, y, 1e-3)):
        np.testing.assert_allclose(solution.value, expected, rtol=1e-8, atol=1e-9)
    failed = solve_cholesky(duplicates(90, "float64"), y)
    assert re.search(r"sample 86 .* sample 2 \(weight 1\).*ridge=1e-06 was tried", failed.message)


@pytest.mark.slow
def test_more_samples_than_the_lapack_of_scipy_takes() -> None:
    """Its dpotrf crashes on two threads from n = 16,384 on (OpenBLAS 0.3.30)."""
    n = 16_500
    k = np.zeros((n, n))
    k[np.diag_indices(n)] = 2.0
    k[0, 1:] = k[1:, 0] = 1 / n
    y = np.ones(n)
    solution = solve_cholesky(k, y, overwrite_k=True)
    # 2 a_i + a_0/n = 1 for i > 0, and 2 a_0 + (n - 1) a_i/n = 1
    first = (1 - (n - 1) / (2 * n)) / (2 - (n - 1) / (2 * n * n))
    np.testing.assert_allclose(solution.value[0], first, rtol=1e-12)
    np.testing.assert_allclose(solution.value[1:], (1 - first / n) / 2, rtol=1e-12)


# ---------------------------------------------------------------- tiled Cholesky


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 130),
    tile=st.sampled_from([16, 32, 50, 200]),
    targets=st.integers(0, 3),
    ridge=st.sampled_from([0.0, 1e-3, 2.0]),
    dtype=st.sampled_from(["float32", "float64"]),
    stored=st.booleans(),
)
def test_tiled_agrees_with_numpy(
    n: int,
    tile: int,
    targets: int,
    ridge: float,
    dtype: str,
    stored: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    k = gram(n, n, dtype)
    y = np.random.default_rng(n).normal(size=(n, max(1, targets)))
    y = y[:, 0] if targets == 0 else y
    path = tmp_path_factory.mktemp("f") / "l.zarr"
    given: Any = Stored(k, tile) if stored else k
    solution = solve_tiled(given, y, ridge, store=path, tile=tile)
    a = with_ridge(k, ridge)
    assert solution.status is Status.SOLVED
    assert solution.value.shape == y.shape
    np.testing.assert_allclose(solution.value, np.linalg.solve(a, y), rtol=1e-6, atol=1e-9)
    factor = factorise(given, ridge, store=path)
    lower = factor.store.block(slice(0, n), slice(0, n))
    np.testing.assert_allclose(
        lower, np.linalg.cholesky(a), rtol=1e-9, atol=1e-9 * np.sqrt(a.max())
    )
    v = y.reshape(n, -1)
    np.testing.assert_allclose(factor.multiply(v), a @ v, rtol=1e-9, atol=1e-9 * a.max())
    inverse = np.linalg.inv(a).diagonal()
    np.testing.assert_allclose(factor.inverse_diagonal(dtype="float32"), inverse, rtol=2e-3)
    np.testing.assert_allclose(factor.inverse_diagonal(), inverse, rtol=1e-8)
    assert solution.statistics.residual_norm < 1e-9
    if stored:  # each tile once for the factor
        given.read.clear()
        factorise(given, ridge, store=path.with_name("2.zarr"))
        off = [key for key in given.read if key[0] != key[1]]
        assert len(off) == len(set(off))


@pytest.mark.parametrize("fault", ["dropped product", "ridge twice", "transposed tile"])
def test_the_comparison_with_numpy_notices(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, y = gram(90), np.ones(90)
    given: Any = k
    if fault == "dropped product":
        calls = iter(range(10**6))
        product = tiled_module.Arithmetic.subtract_product
        monkeypatch.setattr(
            tiled_module.Arithmetic,
            "subtract_product",
            lambda *a: None if next(calls) == 3 else product(*a),
        )
    elif fault == "ridge twice":
        given = with_ridge(k, 1e-3)
    else:  # stored: of an array it is refused
        k[0:16, 32:48] = k[0:16, 32:48].T.copy()
        given = Stored(k, 16)
    solution = solve_tiled(given, y, 1e-3, store=tmp_path / "l.zarr", tile=16)
    wrong = np.abs(solution.value - np.linalg.solve(with_ridge(gram(90), 1e-3), y)).max()
    assert np.isnan(wrong) or wrong > 1e-4


def test_no_bit_depends_on_memory_or_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = gram(200)
    widths: list[int] = []
    chosen = tiled_module.fitting_width
    contents = []
    for most, threads in ((100, 1), (3, 3), (1, 2)):

        def width(tiles: Any, budget: float, limit: int, most: int = most) -> int:
            widths.append(min(most, chosen(tiles, budget, limit)))
            return widths[-1]

        monkeypatch.setattr(tiled_module, "fitting_width", width)
        monkeypatch.setattr(factor_module, "fitting_width", width)
        factor = factorise(k, store=tmp_path / f"{most}.zarr", tile=32, threads=threads)
        lower = factor.store.block(slice(0, 200), slice(0, 200))
        contents.append((lower.tobytes(), factor.inverse_diagonal(threads=threads).tobytes()))
    assert {1, 3, 6} <= set(widths)
    assert contents[0] == contents[1] == contents[2]


@given(each=st.floats(0.1, 10), budget=st.floats(-10, 100), most=st.integers(1, 20))
def test_the_widest_panel_that_fits(each: float, budget: float, most: int) -> None:
    fits = [width for width in range(1, most + 1) if each * width <= budget]
    assert factor_module.fitting_width(lambda p: each * p, budget, most) == max([1, *fits])


def test_another_factor_on_the_same_path_is_refused(tmp_path: Path) -> None:
    k, path = gram(40), tmp_path / "l.zarr"
    factorise(k, 0.1, store=path, tile=16)
    for other, message in (
        ((k, 0.2), "ridge is 0.1 there, 0.2 now"),
        ((k * 2, 0.1), "kernel is .* there, .* now"),
        ((k[:39, :39], 0.1), "n is 40 there, 39 now"),
    ):
        with pytest.raises(ValueError, match=f"holds another factor: .*{message}"):
            factorise(*other, store=path)
    with pytest.raises(ValueError, match="dtype is float64 there, float32 now"):
        factorise(k, 0.1, store=path, dtype="float32")
    wl.gram(wl.cntk_vanilla(2), np.ones((3, 4, 4, 1)), store=tmp_path / "k.zarr")
    with pytest.raises(StoreError, match="must hold a factor, it does not"):
        factorise(k, 0.1, store=tmp_path / "k.zarr")
    with pytest.raises(ValueError, match='dtype must be "float32" or "float64", got \'f2\''):
        factorise(k, 0.1, store=path, dtype="f2")
    bad = k.copy()
    bad[20, 3] = bad[3, 20] = np.nan
    with pytest.raises(ValueError, match="k must be finite, got NaN or infinity in rows 16 to 31"):
        factorise(Stored(bad, 16), 0.1, store=tmp_path / "b.zarr")


def test_too_little_memory(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"takes \d+ MiB at least beside what the process holds"):
        factorise(gram(40), store=tmp_path / "l.zarr", memory="1MB")


def test_the_memory_of_the_message_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled_module, "remaining", lambda memory: memory)
    given: dict[str, Any] = {"store": tmp_path / "l.zarr", "tile": 512, "threads": 1}  # 2 MiB each
    with pytest.raises(MemoryError, match="takes") as error:
        factorise(gram(40), memory=1, **given)
    enough = int(str(error.value).split()[2]) * 2**20
    with pytest.raises(MemoryError, match=f"takes {enough // 2**20} MiB at least"):
        factorise(gram(40), memory=enough - 1, **given)
    factorise(gram(40), memory=enough, **given)


def test_tiles_that_do_not_fit_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a size of tiles that is not that of the factor pass in silence."""
    monkeypatch.setattr(tiled_module, "remaining", lambda memory: memory)
    given: dict[str, Any] = {"store": tmp_path / "l.zarr", "memory": 2**22}
    k = gram(40)
    for tile, error in ((16384, MemoryError), (20000, ValueError)):
        with pytest.raises(error, match=r"a smaller tile|tile must be from 16 to 16384"):
            factorise(k, tile=tile, **given)
    expected = factorise(k, tile=16, **given).solve(np.ones((40, 1)))
    with pytest.raises(ValueError, match="tile is 16 there, 32 now"):
        factorise(k, tile=32, **given)
    assert np.array_equal(factorise(k, **given).solve(np.ones((40, 1))), expected)


def test_memory_that_the_last_panel_lacks_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled_module, "remaining", lambda memory: memory)
    given: dict[str, Any] = {"tile": 16, "threads": 1}
    enough = (2 * 2 + 8 + 9 + 3) * 16 * 16 * 8  # ten columns of tiles
    with pytest.raises(MemoryError, match="raise memory"):
        factorise(gram(160), store=tmp_path / "l.zarr", memory=enough - 1, **given)
    assert not (tmp_path / "l.zarr" / "zarr.json").exists()
    factorise(gram(160), store=tmp_path / "l.zarr", memory=enough, **given)


class Tiled(np.ndarray):
    """An array that says that it lies in tiles."""

    tile = 1024


def test_larger_tiles_of_the_kernel_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part that is read of one is read with all of it."""
    monkeypatch.setattr(tiled_module, "remaining", lambda memory: memory)
    k = gram(160, dtype="float32").view(Tiled)
    panel = (2 * 2 + 8 + 9 + 3) * 16 * 16 * 8  # as above
    given: dict[str, Any] = {"store": tmp_path / "l.zarr", "threads": 1}
    enough = panel + 1024**2 * (4 + 4 + 8)
    message = (
        r"takes 17 MiB at least .*, 16 of them for the tiles of k, of 1024 samples: .*or for k$"
    )
    with pytest.raises(MemoryError, match=message):
        factorise(k, tile=16, memory=enough - 1, **given)
    assert not (tmp_path / "l.zarr" / "zarr.json").exists()
    factorise(k, tile=16, memory=enough, **given)
    factorise(k, tile=16, memory=1, **given)  # finished: nothing is left to fit
    k.tile = 16  # an attribute of this one
    factorise(k, tile=16, memory=panel, store=tmp_path / "same.zarr", threads=1)


def test_a_factor_in_smaller_tiles_takes_no_more_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled_module, "remaining", lambda memory: memory)
    x = np.random.default_rng(0).normal(size=(1040, 4))
    k = wl.gram(wl.ntk_dense(2), x, store=tmp_path / "k.zarr", tile=1024)
    given: dict[str, Any] = {"store": tmp_path / "l.zarr", "tile": 128, "threads": 1}
    with pytest.raises(MemoryError) as error:
        factorise(k, 1e-2, memory=1, **given)
    enough = int(str(error.value).split()[2]) * 2**20
    tracemalloc.start()
    try:
        factor = factorise(k, 1e-2, memory=enough, **given)
        assert factor.solution(k, np.ones((1040, 1))).status is Status.SOLVED
        assert tracemalloc.get_traced_memory()[1] <= enough
    finally:
        tracemalloc.stop()


def test_a_kernel_that_is_stored(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((90, 6, 6, 1))
    y = np.random.default_rng(1).normal(size=(90, 2))
    k = wl.gram(wl.cntk_vanilla(4), x, store=tmp_path / "k.zarr", tile=32)
    expected = np.linalg.solve(with_ridge(np.asarray(k), 1e-4), y)
    for solution in (
        solve_cholesky(k, y, 1e-4),
        solve_tiled(k, y, 1e-4, store=tmp_path / "l.zarr"),
        solve_refined(k, y, 1e-4),
        solve_conjugate(k, y, 1e-4, tolerance=1e-12),
    ):
        assert solution.status is Status.SOLVED, solution
        scale = np.abs(expected).max()
        np.testing.assert_allclose(solution.value, expected, rtol=0, atol=1e-7 * scale)


RUN = """
import os, sys
import numpy as np
from widelimit.solvers import tiled
from widelimit.matrices.store import TileStore

path, journal = sys.argv[1:]
handle = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
write = tiled._Writer.write

def note(self, key, values):
    os.write(handle, f"{key[0]} {key[1]}\\n".encode())
    return write(self, key, values)

tiled._Writer.write = note
x = np.random.default_rng(0).normal(size=(700, 800))
tiled.factorise(x @ x.T, 1e-3, store=path, tile=32, memory=sys.maxsize)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """At least twenty times: the same bits, and no finished tile computed twice."""
    path, journal = tmp_path / "l.zarr", tmp_path / "journal"
    rng = random.Random(2)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(path), str(journal)]
    kills, finished, total = 0, set[tuple[int, ...]](), set[tuple[int, ...]]()
    while not total or finished != total:
        journal.write_text("")
        with subprocess.Popen(command, env=environment) as run:
            # However fast the machine: after a few tiles, at any moment of the next.
            wanted = rng.randint(1, 5) if kills < 22 else 10**6
            while run.poll() is None and journal.read_text().count("\n") < wanted:
                time.sleep(0.001)
            if kills < 22:
                time.sleep(rng.random() * 0.01)
                run.send_signal(signal.SIGKILL)
        assert run.returncode in (0, -signal.SIGKILL)
        kills += run.returncode == -signal.SIGKILL
        begun = [tuple(map(int, line.split())) for line in journal.read_text().splitlines()]
        assert len(begun) == len(set(begun))
        assert not set(begun) & finished, "a finished tile was computed again"
        store = TileStore.open(open_objects(path))
        total = set(store.grid.tiles())
        now = store.finished()
        assert finished <= now <= finished | set(begun)
        assert store.damaged(sorted(now)) == []
        finished = now
    assert kills >= 20
    whole = tmp_path / "whole.zarr"
    subprocess.run([*command[:-2], str(whole), str(journal)], check=True, env=environment)
    for i, j in total:
        assert (path / f"c/{i}/{j}").read_bytes() == (whole / f"c/{i}/{j}").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_tile_of_a_factor(damage: str, tmp_path: Path) -> None:
    k, y, path = gram(90), np.ones(90), tmp_path / "l.zarr"
    expected = solve_tiled(k, y, store=path, tile=32).value
    file = path / "c" / "1" / "0"
    content = file.read_bytes()
    if damage == "flipped":
        file.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        with pytest.raises(StoreError, match=r"tile \(1, 0\) of .* is damaged.*verify=True"):
            solve_tiled(k, y, store=path)
        assert np.array_equal(solve_tiled(k, y, store=path, verify=True).value, expected)
    else:
        if damage == "missing":
            file.unlink()
        else:
            os.truncate(file, 100)
        assert np.array_equal(solve_tiled(k, y, store=path).value, expected)
    assert file.read_bytes() == content


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    k, path = gram(90), tmp_path / "l.zarr"
    sync, room = os.fsync, iter(range(8))

    def fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        OSError,
        match=r"full: 0\.1 MB are needed in .*l\.zarr, while tile .* the finished tiles",
    ):
        factorise(k, store=path, tile=32)
    monkeypatch.undo()
    assert len(TileStore.open(open_objects(path)).finished()) == 3  # and zarr.json
    factor = factorise(k, store=path)
    lower = factor.store.block(slice(0, 90), slice(0, 90))
    np.testing.assert_allclose(lower, np.linalg.cholesky(k), atol=1e-10)


def test_a_factor_that_does_not_fit_onto_the_disk_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, y, path = gram(90), np.arange(90.0), tmp_path / "l.zarr"
    tile = 3 * 2**12 + 2**12  # 8,192 bytes of float64 and a checksum; a seal
    factored: list[int] = []
    factor = tiled_module._Factorisation._factor
    monkeypatch.setattr(
        tiled_module._Factorisation,
        "_factor",
        lambda *arguments: (factored.append(arguments[2]), factor(*arguments))[1],
    )
    full = r"the disk is full: 0\.[1-9] MB are needed in .*, 0\.0 MB are free"
    disk_of(2**12, monkeypatch)
    for method in ("tiled", "refined"):
        with pytest.raises(OSError, match=full):
            solve(k, y, 1e-6, method=method, store=path, memory="1GB")
    disk_of(6 * tile - 1, monkeypatch)
    with pytest.raises(OSError, match=full):
        factorise(k, store=path, tile=32)
    assert (factored, path.exists() and not (path / "zarr.json").exists()) == ([], True)
    disk_of(6 * tile, monkeypatch)
    factorise(k, store=path, tile=32).store.delete((1, 0))
    disk_of(tile, monkeypatch)
    made = factorise(k, store=path)
    more = np.pad(k, (0, 6)) + np.pad(np.eye(6), (90, 0))
    monkeypatch.setattr(tiled_module, "_check_factor_of", lambda *_: pytest.fail("it has begun"))
    disk_of(6 * tile - 1, monkeypatch)
    with pytest.raises(OSError, match=full):
        factorise(more, store=tmp_path / "more.zarr", reuse=made.store.objects.name)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of no path, as `write` and `fsync`


def test_a_disk_that_fills_up_costs_checkpoints_and_no_solution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, y = gram(90), np.arange(90.0)
    factor = factorise(k, store=tmp_path / "l.zarr", tile=32)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.warns(RuntimeWarning, match=r"disk is full: .* needed in .*: what is finished of"):
        found = factor.inverse_diagonal()
    np.testing.assert_allclose(found, np.linalg.inv(k).diagonal(), rtol=1e-6)
    place = tmp_path / "c"
    place.mkdir()
    with pytest.warns(
        RuntimeWarning, match=r"full: 0\.1 MB .*/c/.*this checkpoint is not kept"
    ) as told:
        solution = solve_conjugate(k, y, 1e-3, rank=10, checkpoint=place)
    assert solution.status is Status.SOLVED
    assert len(told) == 2
    disk_of(8 * 90 * (10 + 3) - 1, monkeypatch)
    monkeypatch.setattr("widelimit.solvers.conjugate._precondition", no_space)
    with pytest.raises(OSError, match=r"full: 0\.1 MB are needed in .*c, 0\.0 MB are free"):
        solve_conjugate(k, y, 1e-3, rank=10, checkpoint=place)


@pytest.mark.parametrize("number", range(6))
def test_a_tile_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whichever it is, the error of the thread that writes is raised, and the rest is kept."""
    k, path = gram(90), tmp_path / "l.zarr"
    write, calls = TileStore.write, iter(range(100))

    def fail(self: TileStore, key: tuple[int, int], values: Any) -> Any:
        if next(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(self, key, values)

    monkeypatch.setattr(TileStore, "write", fail)
    with pytest.raises(OSError, match="Input/output error"):
        factorise(k, store=path, tile=32)
    monkeypatch.undo()
    assert len(TileStore.open(open_objects(path)).missing()) >= 1
    lower = factorise(k, store=path).store.block(slice(0, 90), slice(0, 90))
    np.testing.assert_allclose(lower, np.linalg.cholesky(k), atol=1e-10)


# ---------------------------------------------------------------- reuse

OLD = [90, 89, 64, 50, 5]  # of 90, in tiles of 16: none new, one, ragged new ones; more than a tile


def tiles_written(patch: pytest.MonkeyPatch) -> tuple[list[tuple[int, int]], ...]:
    """The tiles that are computed, and those that are copied."""
    computed: list[tuple[int, int]] = []
    copied: list[tuple[int, int]] = []
    write, copy = TileStore.write, TileStore.copy

    def note_write(self: TileStore, key: tuple[int, int], values: Any) -> Any:
        computed.append(key)
        return write(self, key, values)

    def note_copy(self: TileStore, key: tuple[int, int], source: TileStore) -> None:
        copied.append(key)
        copy(self, key, source)

    patch.setattr(TileStore, "write", note_write)
    patch.setattr(TileStore, "copy", note_copy)
    return computed, copied


@pytest.mark.parametrize("n_old", OLD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", [False, True], ids=["array", "stored"])
def test_an_extended_factor_is_the_whole_one(
    stored: bool, dtype: str, n_old: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(n: int) -> Any:
        return Stored(gram(90)[:n, :n], 16) if stored else gram(90)[:n, :n]

    old, path, whole = (tmp_path / name for name in ("old", "new", "whole"))
    factorise(given(n_old), store=old, tile=16, dtype=dtype)
    computed, copied = tiles_written(monkeypatch)
    factorise(given(90), store=path, reuse=old, dtype=dtype)
    rows = 6 if n_old == 90 else n_old // 16  # complete ones
    assert sorted(copied) == [(i, j) for i in range(rows) for j in range(i + 1)]
    assert sorted(computed) == [(i, j) for i in range(rows, 6) for j in range(i + 1)]
    factorise(given(90), store=whole, tile=16, dtype=dtype)
    assert contents(path) == contents(whole)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 120),
    share=st.floats(0, 1),
    tile=st.sampled_from([16, 32, 50]),
    ridge=st.sampled_from([0.0, 1e-3, 0.5]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_extended_factors_solve(
    n: int,
    share: float,
    tile: int,
    ridge: float,
    dtype: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    k, y = gram(n, n, dtype), np.random.default_rng(n).normal(size=(n, 2))
    n_old, folder = max(1, round(share * n)), tmp_path_factory.mktemp("f")
    first = k[:n_old, :n_old]
    old = factorise(first, ridge, store=folder / "old", tile=tile)
    solution = solve_tiled(k, y, store=folder / "new", reuse=folder / "old", tile=tile)
    used = solution.statistics
    assert used.ridge_absolute == old.ridge_absolute
    np.testing.assert_allclose(used.ridge * np.trace(k) / n, used.ridge_absolute, rtol=1e-5)
    a = k.astype(np.float64) + used.ridge_absolute * np.eye(n)
    expected = solve_cholesky(a, y).value
    np.testing.assert_allclose(
        solution.value, expected, rtol=0, atol=1e-10 * np.abs(expected).max()
    )


def test_kernel_and_factor_are_extended_together(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((90, 6, 6, 1))
    y = np.random.default_rng(1).normal(size=(90, 2))
    net = wl.cntk_vanilla(4)
    for n_old, n in ((0, 40), (40, 41), (41, 90)):
        old = [str(tmp_path / f"{name}{n_old}") if n_old else None for name in "kl"]
        k = wl.gram(net, x[:n], store=tmp_path / f"k{n}", tile=16, reuse=old[0])
        ridge = 0.0 if n_old else 1e-4
        solution = solve_tiled(k, y[:n], ridge, store=tmp_path / f"l{n}", reuse=old[1])
        expected = solve_cholesky(k, y[:n], solution.statistics.ridge).value
        scale = np.abs(expected).max()
        np.testing.assert_allclose(solution.value, expected, rtol=0, atol=1e-10 * scale)


def test_the_comparison_notices_a_wrong_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, y = gram(90), np.ones(90)
    factorise(k[:50, :50], store=tmp_path / "old", tile=16)

    def perturbed(self: TileStore, key: tuple[int, int], source: TileStore) -> None:
        self.write(key, source.read(key) * (1 + 1e-6))

    monkeypatch.setattr(TileStore, "copy", perturbed)
    solution = solve_tiled(k, y, store=tmp_path / "new", reuse=tmp_path / "old")
    expected = solve_cholesky(k, y).value
    assert np.abs(solution.value - expected).max() > 1e-8 * np.abs(expected).max()


@pytest.mark.parametrize("place", ["copying", "computing"])
@pytest.mark.parametrize("lost", [False, True], ids=["with the old factor", "without it"])
def test_an_extended_factor_that_was_stopped_goes_on(
    lost: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, old, path = gram(90), tmp_path / "old", tmp_path / "new"
    factorise(k[:50, :50], 0.1, store=old, tile=16)
    with monkeypatch.context() as patch:
        factorise(k, store=tmp_path / "whole", reuse=old)
        computed, _ = tiles_written(patch)

        def stop(share: float) -> None:
            if len(computed) > 5:
                raise KeyboardInterrupt

        if place == "copying":
            copy, room = TileStore.copy, iter(range(4))

            def copy_some(self: TileStore, key: tuple[int, int], source: TileStore) -> None:
                if next(room, None) is None:
                    raise KeyboardInterrupt
                copy(self, key, source)

            patch.setattr(TileStore, "copy", copy_some)
        with pytest.raises(KeyboardInterrupt):
            factorise(k, store=path, reuse=old, progress=stop, threads=1)
        finished = TileStore.open(open_objects(path)).finished()
        assert 4 <= len(finished) < 21
    computed_again, copied_again = tiles_written(monkeypatch)
    if lost:
        shutil.rmtree(old)
        with pytest.raises(FileNotFoundError, match="there is no matrix of widelimit"):
            factorise(k, store=path, reuse=old)
        with pytest.raises(ValueError, match=r"ridge is 0\.\d+ there, 0.0 now") as told:
            factorise(k, store=path)
        ridge = re.search(r"ridge is (\S+) there", str(told.value))
        assert ridge is not None
        factorise(k, float(ridge[1]), store=path)
        assert copied_again == []
    else:
        factorise(k, store=path, reuse=old)
    assert not finished & set(computed_again + copied_again)
    assert len(computed_again + copied_again) == 21 - len(finished)
    shutil.rmtree(old, ignore_errors=True)
    factorise(k, store=path, reuse=old)  # finished: the same call is harmless
    assert contents(path) == contents(tmp_path / "whole")


EXTEND = """
import os, signal, sys
import numpy as np
from widelimit.solvers import factorise

old, path, share = sys.argv[1:]

def kill(done):
    if done > float(share):
        os.kill(os.getpid(), signal.SIGKILL)

k = np.load(old + ".npy")
factorise(k, store=path, reuse=old, threads=1, progress=kill)
"""


def test_an_extended_factor_that_is_killed(tmp_path: Path) -> None:
    k, old, path = gram(150), tmp_path / "old", tmp_path / "new"
    np.save(tmp_path / "old.npy", k)
    factorise(k[:60, :60], 0.1, store=old, tile=16)
    for share in ("0.2", "0.6", "2"):
        command = [sys.executable, "-c", EXTEND, str(old), str(path), share]
        code = subprocess.run(command, check=False).returncode
        assert code == (0 if share == "2" else -signal.SIGKILL)
    factorise(k, store=tmp_path / "whole", reuse=old)
    assert contents(path) == contents(tmp_path / "whole")


def test_extended_factors_behind_a_url() -> None:
    k, url = gram(90), "memory://test_reuse_factor"
    factorise(k[:50, :50], store=f"{url}/50", tile=16)
    factorise(k[:70, :70], store=f"{url}/70", reuse=f"{url}/50")
    factorise(k, store=f"{url}/90", reuse=f"{url}/70")
    factorise(k, store=f"{url}/whole", tile=16)
    assert contents(f"{url}/90") == contents(f"{url}/whole")


def changed(k: np.ndarray, i: int, j: int, by: float) -> np.ndarray:
    other = k.copy()
    other[i, j] += by
    other[j, i] = other[i, j]
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"k": gram(90, 1)},
            r"reuse must be a factor of the first 50 rows .*random v, L L\^T v dif",
        ),
        ({"k": gram(90)[::-1, ::-1]}, "is not: for a random v, .* or leave reuse out"),
        (
            {"k": changed(gram(90), 49, 3, 1e-7)},
            r"v by 1?\.?\d.*e-0\d in row 3, .*e-1\d is rounding",
        ),
        ({"k": changed(gram(90), 20, 20, 1e-7)}, "in row 20, "),
        ({"k": Stored(changed(gram(90), 20, 3, np.nan), 16)}, "k must be finite, .* in row 3: "),
        (
            {"k": gram(90)[:49, :49]},
            r"is of 50 samples, k of 49: reuse must be a factor of the fir",
        ),
        (
            {"ridge": 0.1},
            r"reuse keeps the ridge that its factor has, got ridge=0.1 as well: leave",
        ),
        (
            {"dtype": "float32"},
            r"has dtype='float64', got 'float32': give dtype='float64', or leave",
        ),
        ({"tile": 32}, r"has tile=16, got 32: give tile=16, or leave reuse out"),
    ],
)
def test_what_is_not_the_beginning_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    call: dict[str, Any] = {"k": gram(90), "store": tmp_path / "new", "reuse": tmp_path / "old"}
    factorise(gram(90)[:50, :50], 0.1, store=tmp_path / "old", tile=16)
    with pytest.raises(ValueError, match=message):
        factorise(**(call | change))
    assert not (tmp_path / "new" / "zarr.json").exists()
    factorise(**call)


def test_the_relative_ridge_finds_an_extended_factor_whatever_its_last_bit(tmp_path: Path) -> None:
    k, rounded = gram(20), 0
    for ridge in np.linspace(0.1, 0.3, 10):
        old, new = tmp_path / f"{ridge}-old", tmp_path / f"{ridge}-new"
        factorise(k[:10, :10], ridge, store=old)
        factor = factorise(k, store=new, reuse=old)
        rounded += factor.ridge * k.diagonal().mean() != factor.ridge_absolute
        assert factorise(k, factor.ridge, store=new).ridge_absolute == factor.ridge_absolute
    assert rounded > 0


def test_a_factor_with_another_ridge_than_it_says_is_refused(tmp_path: Path) -> None:
    old = factorise(gram(90)[:50, :50], 0.1, store=tmp_path / "old", tile=16).store
    ridge = old.manifest["ridge_absolute"] + 1e-8
    old.with_manifest({**old.manifest, "ridge_absolute": ridge})
    with pytest.raises(ValueError, match="reuse must be a factor of the first 50 rows and columns"):
        factorise(gram(90), store=tmp_path / "new", reuse=tmp_path / "old")


@pytest.mark.parametrize("n", [1, 2, 17, 150])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("least", [1e-1, 1e-3])
def test_rounding_is_no_reason_to_refuse(n: int, dtype: str, least: float, tmp_path: Path) -> None:
    k = with_ridge(gram(n + 3, least=least), 1e-5)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(n + 3)
        samples = k[np.ix_(order, order)]
        old, new = tmp_path / f"{seed}-old", tmp_path / f"{seed}-new"
        factorise(samples[:n, :n], store=old, dtype=dtype, tile=16)
        factorise(samples, store=new, dtype=dtype, reuse=old)


def test_a_change_of_new_samples_is_none_of_the_beginning(tmp_path: Path) -> None:
    factorise(gram(90)[:50, :50], 0.1, store=tmp_path / "old", tile=16)
    for name, k in (("a", changed(gram(90), 50, 3, 1e-2)), ("b", changed(gram(90), 60, 3, np.nan))):
        call: dict[str, Any] = {"store": tmp_path / name, "reuse": tmp_path / "old"}
        if name == "a":
            factorise(k, **call)
        else:
            with pytest.raises(
                ValueError, match="k must be finite, got NaN or infinity in rows 48"
            ):
                factorise(Stored(k, 16), **call)


def test_stores_whose_factor_cannot_be_extended(tmp_path: Path) -> None:
    k, old = gram(90), tmp_path / "old"
    with pytest.raises(FileNotFoundError, match="there is no matrix of widelimit"):
        factorise(k, store=tmp_path / "new", reuse=old)
    wl.gram(wl.cntk_vanilla(2), np.ones((3, 4, 4, 1)), store=tmp_path / "k.zarr")
    with pytest.raises(StoreError, match="must hold a factor, it does not"):
        factorise(k, store=tmp_path / "new", reuse=tmp_path / "k.zarr")
    other = factorise(k[:50, :50], store=tmp_path / "other", tile=16).store
    other.with_manifest({**other.manifest, "format": "of another version"})
    with pytest.raises(StoreError, match="must hold a factor, it does not"):
        factorise(k, store=tmp_path / "new", reuse=tmp_path / "other")
    factorise(k[:50, :50], store=old, tile=16)
    file = old / "c" / "2" / "1"
    content = file.read_bytes()
    file.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(StoreError, match=r"tile \(2, 1\) of .*old is damaged.*verify=True"):
        factorise(k, store=tmp_path / "new", reuse=old)
    file.unlink()
    with pytest.raises(StoreError, match="old lacks 1 of its tiles: run the call that makes it"):
        factorise(k, store=tmp_path / "new", reuse=old)
    assert not (tmp_path / "new" / "zarr.json").exists()
    factorise(k[:50, :50], store=old)
    factorise(k, store=tmp_path / "new", reuse=old)


def test_damaged_tiles_of_an_extended_factor(tmp_path: Path) -> None:
    k, old, path = gram(90), tmp_path / "old", tmp_path / "new"
    factorise(k[:50, :50], 0.1, store=old, tile=16)
    factorise(k, store=path, reuse=old)
    before = contents(path)
    for name in ("c/1/0", "c/4/2"):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(ValueError, match="holds another factor: kernel is"):
        factorise(2 * k, 0.1, store=path, verify=True)
    factorise(k, store=path, reuse=old, verify=True)
    assert contents(path) == before


def test_new_samples_that_repeat_old_ones(tmp_path: Path) -> None:
    k, y = duplicates(90, "float64"), np.ones(90)
    factorise(k[:80, :80], store=tmp_path / "old", tile=16)
    solution = solve_tiled(k, y, store=tmp_path / "new", reuse=tmp_path / "old")
    assert solution.status is Status.NOT_POSITIVE_DEFINITE
    assert re.search(r"sample 86 .* sample 2 \(weight 1\).*: leave reuse out", solution.message)


# ---------------------------------------------------------------- memory

MEASURE = """
import sys
import numpy as np
from widelimit.machine import peak_memory
from widelimit.solvers import factorise, solve_tiled

class Identity:
    shape, dtype, tile, fingerprint = (6144, 6144), np.dtype("float32"), 256, "identity"
    def __getitem__(self, index):
        rows, columns = index
        return np.eye(rows.stop - rows.start, columns.stop - columns.start,
                      columns.start - rows.start and 10**6, dtype="float32")

solution = solve_tiled(Identity(), np.ones((6144, 10)), 1.0, store=sys.argv[1], memory=sys.argv[2])
assert np.allclose(solution.value, 0.5)
factorise(Identity(), 1.0, store=sys.argv[1], memory=sys.argv[2]).inverse_diagonal()
print(peak_memory())
"""


@pytest.mark.slow
def test_memory_is_a_promise(tmp_path: Path) -> None:
    for megabytes in (150, 250):  # the factor takes 157 MB
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / f"{megabytes}"), f"{megabytes}MB"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) <= megabytes * 10**6


# ---------------------------------------------------------------- not positive definite


def duplicates(n: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, n + 5))
    x[n - 4] = x[2]
    k = x @ x.T
    return ((k + k.T) / 2).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_duplicates_have_a_status_and_a_ridge_that_is_enough(dtype: str, tmp_path: Path) -> None:
    k, y = duplicates(90, dtype), np.ones((90, 2))
    solution = solve_tiled(k, y, store=tmp_path / "l.zarr", tile=32)
    if dtype == "float64" or solution.status is Status.NOT_POSITIVE_DEFINITE:
        assert solution.status is Status.NOT_POSITIVE_DEFINITE
        assert np.isnan(solution.value).all()
        match = re.search(
            r"sample 86 \(from 0\) of n = 90 .* of sample 2 \(weight 1\).*ridge=(\S+) is enough",
            solution.message,
        )
        assert match is not None, solution.message
        with pytest.raises(np.linalg.LinAlgError, match="not positive definite to rounding"):
            solution.require()
        enough = float(match[1])
        assert enough <= 1e-3
        for again in (
            solve_tiled(k, y, enough, store=tmp_path / "2.zarr", tile=32),
            solve_cholesky(k, y, enough),
        ):
            assert again.status is not Status.NOT_POSITIVE_DEFINITE


@settings(max_examples=20, deadline=None)
@given(n=st.sampled_from([40, 90, 150]), seed=st.integers(0, 10**6))
def test_the_ridge_that_rounding_needs(
    n: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of rank n/2 and rounded to float32: about half of the eigenvalues are below 0."""
    x = np.random.default_rng(seed).normal(size=(n, n // 2))
    k = (x @ x.T).astype(np.float32)
    folder = tmp_path_factory.mktemp("f")
    solution = solve_tiled(k, np.ones(n), store=folder / "1", tile=32)
    assert solution.status is Status.NOT_POSITIVE_DEFINITE
    found = re.search(r"ridge=(\S+) is enough by the size of rounding", solution.message)
    assert found is not None
    again = solve_tiled(k, np.ones(n), float(found[1]), store=folder / "2", tile=32)
    assert again.status is not Status.NOT_POSITIVE_DEFINITE


@pytest.mark.parametrize("n", [2, 30, 200])
@pytest.mark.parametrize("ratio", [1.0, 100.0])
def test_the_ridge_that_the_limit_of_pivots_needs(n: int, ratio: float, tmp_path: Path) -> None:
    """Of samples that repeat others, in float64, of sizes that may differ."""
    x = np.random.default_rng(n).normal(size=(n, max(1, n // 10)))
    x *= np.geomspace(1, ratio, n)[:, None] / np.linalg.norm(x, axis=1, keepdims=True)
    k = (x @ x.T + (x @ x.T).T) / 2
    before = solve_tiled(k, np.ones(n), store=tmp_path / "1", tile=32)
    assert before.status is Status.NOT_POSITIVE_DEFINITE
    found = re.search(r"ridge=(\S+) is enough by the size of rounding", before.message)
    assert found is not None
    assert float(found[1]) < 1e-9
    again = solve_tiled(k, np.ones(n), float(found[1]), store=tmp_path / "2", tile=32)
    assert again.status is not Status.NOT_POSITIVE_DEFINITE


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (np.diag([1.0, 0.0, 2.0]), r"k\[1, 1\] is 0; it is 0 for a sample of zeros: remove"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), r"no Gram matrix: .* below ridge=1 is sure"),
        (-np.eye(3), r"k\[0, 0\] is -1"),
    ],
)
def test_matrices_that_are_no_gram_matrices(k: np.ndarray, message: str, tmp_path: Path) -> None:
    solution = solve_tiled(k, np.ones(len(k)), store=tmp_path / "l.zarr")
    assert solution.status is Status.NOT_POSITIVE_DEFINITE
    assert re.search(message, solution.message), solution.message


# ---------------------------------------------------------------- refinement


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("n", [1, 7, 150])
def test_refinement_reaches_float64(n: int, store: bool, tmp_path: Path) -> None:
    k, y = gram(n), np.random.default_rng(1).normal(size=(n, 3))
    path = tmp_path / "l.zarr" if store else None
    solution = solve_refined(k, y, 1e-4, store=path)
    expected = np.linalg.solve(with_ridge(k, 1e-4), y)
    assert solution.status is Status.SOLVED
    assert solution.message == ""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(solution.value, expected, rtol=0, atol=1e-9 * scale)
    once = np.linalg.solve(with_ridge(k, 1e-4).astype(np.float32), y.astype(np.float32))
    if n == 150:  # float32 alone does not
        assert np.abs(once - expected).max() > 1e-6 * scale


@pytest.mark.parametrize("store", [False, True])
def test_refinement_says_that_it_could_not(store: bool, tmp_path: Path) -> None:
    """Of condition 1e9, or with a smallest eigenvalue that float32 takes for negative."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(100, 100)))
    for index, smallest in enumerate((1e-7, 1e-9, 1e-12)):
        k = (q * np.geomspace(1, smallest, 100)) @ q.T
        k = (k + k.T) / 2
        path = tmp_path / f"{index}.zarr" if store else None
        solution = solve_refined(k, np.ones((100, 2)), store=path)
        if solution.status is Status.SOLVED:
            expected = np.linalg.solve(k, np.ones((100, 2)))
            np.testing.assert_allclose(solution.value, expected, rtol=1e-2)
            continue
        assert solution.status is Status.NOT_CONVERGED
        assert re.search(r"use solve_cholesky or|Use solve_cholesky or", solution.message)
        if np.isfinite(solution.value).all():
            assert solution.statistics.residual_norm > 0
    assert solution.status is Status.NOT_CONVERGED


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("order", [[0, 1], [1, 0], [1, 2], [0, 1, 2]])
def test_every_column_has_to_be_refined(store: bool, order: list[int], tmp_path: Path) -> None:
    """Zeros are solved by the first step, and an eigenvector nearly so: not so the ones."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(100, 100)))
    y = np.column_stack([np.zeros(100), np.ones(100), q[:, 0]])[:, order]
    for smallest in (1e-6, 1e-8):
        k = (q * np.geomspace(1, smallest, 100)) @ q.T
        k = (k + k.T) / 2
        path = tmp_path / str(smallest) if store else None
        solution = solve_refined(k, y, store=path)
        left = np.abs(y - k @ solution.value).max(axis=0)
        bound = 10 * 2.0**-52 * np.abs(k).sum(axis=1).max() * np.abs(solution.value).max(axis=0)
        if smallest == 1e-6:
            assert solution.status is Status.SOLVED
            assert np.all(left <= bound)
        else:
            assert solution.status is Status.NOT_CONVERGED
            assert not np.all(left <= bound)


# ---------------------------------------------------------------- conjugate gradients


@settings(max_examples=25, deadline=None)
@given(
    n=st.sampled_from([1, 3, 40, 131]),
    targets=st.integers(0, 4),
    rank=st.sampled_from([None, 1, 10, 200]),
    ridge=st.sampled_from([0.03, 0.5]),
    seed=st.integers(0, 1000),
)
def test_conjugate_gradients_agree_with_numpy(
    n: int, targets: int, rank: int | None, ridge: float, seed: int
) -> None:
    k = gram(n, seed)
    y = np.random.default_rng(seed).normal(size=(n, max(1, targets)))
    y = y[:, 0] if targets == 0 else y
    solution = solve_conjugate(Stored(k, 16), y, ridge, rank=rank, tolerance=1e-10, seed=seed)
    assert solution.status is Status.SOLVED, solution.message
    expected = np.linalg.solve(with_ridge(k, ridge), y)
    np.testing.assert_allclose(solution.value, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    assert solution.statistics.residual_norm <= 2e-10


def test_dependent_targets_do_no_harm() -> None:
    """Targets of classes sum to 0 in every row: one of the block's columns is redundant."""
    k, labels = gram(120), np.arange(120) % 3
    y = encode_labels(labels, range(3))
    y = np.column_stack([y, y[:, 0], np.zeros(120)])
    solution = solve_conjugate(k, y, 1e-3, tolerance=1e-12)
    np.testing.assert_allclose(
        solution.value, np.linalg.solve(with_ridge(k, 1e-3), y), atol=1e-8, rtol=0
    )


def test_the_preconditioner_saves_iterations() -> None:
    k, y = gram(300, least=1e-5), np.random.default_rng(0).normal(size=(300, 2))
    counts = []
    for rank in (1, 60, 200):
        states: list[Convergence] = []
        solve_conjugate(k, y, 1e-3, rank=rank, tolerance=1e-8, progress=states.append)
        counts.append(len(states))
        assert [state.iteration for state in states] == list(range(1, len(states) + 1))
        assert states[-1].residual <= 1e-8
    assert counts[0] > 2 * counts[1] > 2 * counts[2]


def test_a_preconditioner_of_full_rank_is_the_inverse() -> None:
    k, y = gram(100), np.ones(100)
    states: list[Convergence] = []
    solve_conjugate(k, y, 1e-3, rank=100, tolerance=1e-8, progress=states.append)
    assert len(states) == 1


def test_every_tile_is_read_once_an_iteration() -> None:
    k = Stored(gram(64), 16)
    reads: list[int] = []
    solve_conjugate(
        k,
        np.ones(64),
        0.1,
        rank=1,
        tolerance=1e-10,
        progress=lambda state: reads.append(len(k.read)),
    )
    assert set(np.diff(reads)) == {10}  # 4 x 5 / 2


def test_an_iteration_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    k, y = gram(150), np.random.default_rng(0).normal(size=(150, 2))
    whole = solve_conjugate(k, y, 1e-4, rank=10, tolerance=1e-10)
    states: list[Convergence] = []

    def stop(state: Convergence) -> None:
        states.append(state)
        if len(states) == 5:
            raise KeyboardInterrupt

    from widelimit.solvers import conjugate

    monkeypatch.setattr(conjugate, "_CHECKPOINT_SECONDS", 0.0)
    call: dict[str, Any] = {"rank": 10, "tolerance": 1e-10, "checkpoint": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        solve_conjugate(k, y, 1e-4, progress=stop, **call)
    monkeypatch.setattr(conjugate, "_precondition", None)  # it is not made again
    again = solve_conjugate(k, y, 1e-4, progress=states.append, **call)
    assert states[5].iteration == 5  # the fifth was not yet saved
    assert np.array_equal(again.value, whole.value)
    for change in ({"seed": 1}, {"rank": 11}):
        with pytest.raises(ValueError, match="is a checkpoint of another system"):
            solve_conjugate(k, y, 1e-4, **(call | change))
    for other in ((k, y + 1, 1e-4), (k, y, 1.0001e-4), (k + np.eye(150), y, 1e-4)):
        with pytest.raises(ValueError, match="is a checkpoint of another system"):
            solve_conjugate(*other, **call)
    weights = np.linspace(1, 2, 150)
    with pytest.raises(ValueError, match="is a checkpoint of another system"):
        solve_conjugate(k, y, 1e-4, weights=weights, **call)
    (tmp_path / "c" / "state.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be a checkpoint of solve_conjugate, it is not"):
        solve_conjugate(k, y, 1e-4, **call)


def test_the_rank_is_that_of_the_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    """Not what fits into the memory that is free when it goes on."""
    from widelimit.solvers import conjugate

    k, y, rank = gram(150), np.random.default_rng(0).normal(size=(150, 2)), 20
    need = 8 * 150 * (3.5 * rank + 8 * 2)
    monkeypatch.setattr(conjugate, "remaining", lambda memory: memory)
    call: dict[str, Any] = {"tolerance": 1e-10, "checkpoint": tmp_path / "c"}
    whole = solve_conjugate(k, y, 1e-4, memory=need, rank=rank, tolerance=1e-10)
    solve_conjugate(k, y, 1e-4, memory=need + 1, max_iterations=3, **call)
    for lost in ((), ("preconditioner.npz",), ("state.npz",)):
        for name in lost:
            (tmp_path / "c" / name).unlink()
        less = need + 1 if "preconditioner.npz" in lost else 0.97 * need
        again = solve_conjugate(k, y, 1e-4, memory=less, **call)
        assert np.array_equal(again.value, whole.value)
    with pytest.raises(MemoryError, match="whose preconditioner has rank 20, takes 0 MiB"):
        solve_conjugate(k, y, 1e-4, memory=1, **call)


def test_a_checkpoint_that_was_damaged_is_noticed(tmp_path: Path) -> None:
    """Whatever has become of a byte: the bits of a run without it, or a ValueError that helps."""
    folder, rng = tmp_path / "c", np.random.default_rng(0)
    k, y = gram(30), rng.normal(size=(30, 2))
    whole = solve_conjugate(k, y, 1e-4, rank=5, tolerance=1e-10)
    solve_conjugate(k, y, 1e-4, rank=5, checkpoint=folder, max_iterations=3)
    contents = {path: path.read_bytes() for path in folder.glob("*.npz")}
    assert len(contents) == 2
    refused = 0
    for _ in range(60):
        for path, before in contents.items():
            path.write_bytes(before)
        path = list(contents)[rng.integers(2)]
        content = bytearray(contents[path])
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content[: rng.integers(len(content))] if rng.random() < 0.2 else content)
        with suppress(ValueError):
            again = solve_conjugate(k, y, 1e-4, tolerance=1e-10, checkpoint=folder)
            assert np.array_equal(again.value, whole.value)
            continue
        refused += 1
        match = rf"{path} must be a checkpoint .* delete it, or give another folder"
        with pytest.raises(ValueError, match=match):
            solve_conjugate(k, y, 1e-4, checkpoint=folder)
        path.unlink()  # as it says
        again = solve_conjugate(k, y, 1e-4, tolerance=1e-10, checkpoint=folder)
        assert np.array_equal(again.value, whole.value)
    assert refused > 40


def test_an_iteration_of_another_preconditioner_is_not_gone_on_with(tmp_path: Path) -> None:
    k, y = gram(150), np.random.default_rng(0).normal(size=(150, 2))
    for rank, name in ((10, "a"), (20, "b")):
        solve_conjugate(k, y, 1e-4, rank=rank, checkpoint=tmp_path / name, max_iterations=3)
    (tmp_path / "b" / "state.npz").replace(tmp_path / "a" / "state.npz")
    with pytest.warns(RuntimeWarning, match="made with another preconditioner, .*: it begins anew"):
        again = solve_conjugate(k, y, 1e-4, tolerance=1e-10, checkpoint=tmp_path / "a")
    whole = solve_conjugate(k, y, 1e-4, rank=10, tolerance=1e-10)
    assert np.array_equal(again.value, whole.value)


def test_one_process_at_a_time_writes_to_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    k, y = gram(30), np.ones(30)

    def again(state: Convergence) -> None:
        with pytest.raises(BlockingIOError, match="another process is writing there"):
            solve_conjugate(k, y, 1e-4, checkpoint=tmp_path / "c")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_conjugate(k, y, 1e-4, rank=2, checkpoint=tmp_path / "c", progress=again)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"other files .*notes.txt\): give the path of a check"
    ):
        solve_conjugate(k, y, 1e-4, checkpoint=tmp_path)


def test_conjugate_gradients_that_do_not_converge(capsys: pytest.CaptureFixture[str]) -> None:
    solution = solve_conjugate(gram(150), np.ones(150), rank=1, max_iterations=3, progress=True)
    assert solution.status is Status.NOT_CONVERGED
    assert re.search(r"after 3 iterations .* raise rank \(now 1\) or max_it", solution.message)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"iteration 3: largest relative residual \S+, 0 s", lines[-1])


def test_the_residual_decides_and_not_the_recurrence() -> None:
    """Of condition 1e10: the iteration takes itself for converged, and is not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 45)) * np.geomspace(1, 1e-5, 45)
    k = x @ x.T
    states: list[Convergence] = []
    solution = solve_conjugate((k + k.T) / 2, np.ones(40), tolerance=1e-13, progress=states.append)
    assert states[-1].residual <= 1e-13
    left = np.ones(40) - k @ solution.value
    assert np.linalg.norm(left) > 1e-9 * np.sqrt(40)
    assert solution.status is Status.NOT_CONVERGED
    assert solution.statistics.residual_norm == pytest.approx(
        np.linalg.norm(left) / np.sqrt(40), rel=1e-2
    )
    assert re.search(
        r"residual is \S+e-0\d, .* all that float64 gives for this k", solution.message
    )


@settings(max_examples=15, deadline=None)
@given(
    n=st.sampled_from([2, 40, 131]),
    ridge=st.sampled_from([0.03, 0.5]),
    seed=st.integers(0, 99),
)
def test_weights_of_conjugate_gradients(n: int, ridge: float, seed: int) -> None:
    """``(k + r W^-1) a = y``, with a ridge that is relative to the weighed mean."""
    k, rng = with_ridge(gram(n, seed), 0.05), np.random.default_rng(seed)
    k *= np.outer(*[rng.uniform(0.3, 3, n)] * 2)  # so that the weights change the mean
    y, weights = rng.normal(size=(n, 2)), rng.uniform(0.2, 4, n)
    solution = solve_conjugate(k, y, ridge, weights=weights, tolerance=1e-9)
    absolute = ridge * np.average(k.diagonal(), weights=weights)
    expected = np.linalg.solve(k + np.diag(absolute / weights), y)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(solution.value, expected, rtol=0, atol=1e-7 * scale)
    assert (solution.statistics.ridge, solution.status) == (ridge, Status.SOLVED)
    assert solution.statistics.ridge_absolute == pytest.approx(absolute, rel=1e-12)
    left = y - k @ solution.value - (absolute / weights)[:, None] * solution.value
    found = np.linalg.norm(left) / np.linalg.norm(y)
    assert solution.statistics.residual_norm == pytest.approx(found, rel=1e-2, abs=1e-14)
    stored = solve_conjugate(Stored(k, 16), y, ridge, weights=weights, tolerance=1e-9)
    np.testing.assert_allclose(stored.value, expected, rtol=0, atol=1e-7 * scale)
    equal = solve_conjugate(Stored(k, 16), y, ridge, weights=np.ones(n))
    assert equal.status is Status.SOLVED
    # Without a ridge they make no difference, in memory or not.
    for matrix in (k, Stored(k, 16)):
        found = [solve_conjugate(matrix, y, weights=some).value for some in (weights, None)]
        np.testing.assert_array_equal(*found)


def test_the_digits_that_are_there_are_the_share() -> None:
    shares = [_share(residual, 1e-8) for residual in (np.inf, 2.0, 1.0, 1e-2, 1e-6, 1.1e-8, 1e-8)]
    assert shares == pytest.approx([0, 0, 0, 0.25, 0.75, 0.995, 1], abs=1e-3)
    assert shares[-2] < 1
    assert _share(2.0, 1.0) == 0.0


def test_progress_of_a_factor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (None, 1):
        with pytest.raises(TypeError, match="progress must be True, False or a callable"):
            factorise(gram(40), store=tmp_path / "f", progress=wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "f").exists()
    shares: list[float] = []
    factorise(gram(40), store=tmp_path / "g", tile=16, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    factor = factorise(gram(40), store=tmp_path / "f", tile=16, progress=True)
    assert capsys.readouterr().err.startswith("factor: 100%, ")
    factor.inverse_diagonal(progress=True)
    assert capsys.readouterr().err.startswith("inverse: 100%, ")


def test_conjugate_gradients_on_an_indefinite_matrix() -> None:
    k = gram(50)
    k -= 0.1 * np.trace(k) / 50 * np.eye(50)
    solution = solve_conjugate(k, np.random.default_rng(0).normal(size=50), rank=2)
    assert solution.status is Status.NOT_POSITIVE_DEFINITE
    assert "not positive definite to rounding: a direction with curvature" in solution.message
    zero = solve_conjugate(np.diag([1.0, 0.0]), np.ones(2))
    assert zero.status is Status.NOT_POSITIVE_DEFINITE
    assert "remove samples of zeros" in zero.message


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"tolerance": 0.0}, ValueError, "tolerance must be from 1e-14 to 1, got 0.0"),
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        (
            {"memory": "1MB"},
            MemoryError,
            r"rank 1, take 1 MiB, and 0 MiB are left of memory: raise memory\Z",
        ),
        ({"memory": "1MB", "rank": 2}, MemoryError, r"rank 2, .*: raise memory, or lower rank\Z"),
        ({"ridge": -1}, ValueError, "ridge must be finite and >= 0"),
    ],
)
def test_wrong_options(option: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        solve_conjugate(gram(10), np.ones(10), **option)


@pytest.mark.parametrize("scale", [1e40, 1e150])
def test_ridges_that_overflow_are_refused_before_the_work(scale: float, tmp_path: Path) -> None:
    """In float32, or in float64: not infinity, and not a factor of nothing."""
    k, y = scale * np.eye(8), np.ones(8)
    with pytest.raises(ValueError, match=r"must add at most 1e\+30 to the diagonal of k, got 1e\+"):
        solve_refined(k, y, 10.0)
    with pytest.raises(ValueError, match=r"at most 1e\+30 .* give a smaller ridge, or scale"):
        factorise(k, 10.0, store=tmp_path / "1", dtype="float32")
    if scale == 1e150:
        for method in (solve_cholesky, solve_conjugate, lambda *a: leave_one_out(*a[:2], [a[2]])):
            with pytest.raises(ValueError, match=r"must add at most 1e\+150 .*, got 1e\+151"):
                method(k, y, 10.0)
        with pytest.raises(ValueError, match=r"must add at most 1e\+150"):
            factorise(k, 10.0, store=tmp_path / "1")
    assert not (tmp_path / "1").exists()


# ---------------------------------------------------------------- leave one out


@pytest.mark.parametrize("targets", [0, 1, 3])
def test_leaving_one_out_is_leaving_one_out(targets: int, tmp_path: Path) -> None:
    """Against what the words say: n regressions, each without one sample."""
    n, ridges = 40, [0.0, 1e-3, 0.3]
    k = gram(n)
    y = np.random.default_rng(0).normal(size=(n, max(1, targets)))
    y = y[:, 0] if targets == 0 else y
    found = leave_one_out(k, y, ridges)
    assert found.predictions.shape == (3, *y.shape)
    for r, ridge in enumerate(ridges):
        a = with_ridge(k, ridge)
        for i in range(n):
            others = np.arange(n) != i
            alone = k[i, others] @ np.linalg.solve(a[np.ix_(others, others)], y[others])
            np.testing.assert_allclose(found.predictions[r, i], alone, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found.errors[r], np.mean((y - found.predictions[r]) ** 2))
        factor = factorise(k, ridge, store=tmp_path / f"{r}.zarr", tile=16)
        tiled = leave_one_out_of_factor(factor, y)
        np.testing.assert_allclose(tiled.predictions[0], found.predictions[r], rtol=1e-7, atol=1e-8)
        assert tiled.ridges.tolist() == [ridge]
    assert found.best == ridges[int(np.argmin(found.errors))]


def test_leave_one_out_reads_no_second_kernel_and_says_what_fails() -> None:
    k = duplicates(50, "float64")
    labels = np.arange(50) % 3
    found = leave_one_out(k, encode_labels(labels, range(3)), [0.0, 1e-3])
    assert np.isnan(found.errors).tolist() == [True, False]
    assert found.best == 1e-3
    accuracies = found.accuracies(labels)
    assert np.isnan(accuracies[0])
    assert accuracies[1] == np.mean(found.predictions[1].argmax(axis=1) == labels)
    with pytest.raises(np.linalg.LinAlgError, match=r"with any of the relative ridges \[0.0\]"):
        _ = leave_one_out(k, labels, [0.0]).best
    with pytest.raises(ValueError, match="ridges must be one relative ridge or more"):
        leave_one_out(k, labels, [])
    copies = np.ones((2, 2))
    copies[1, 1] += 2.0**-52  # a pivot of which rounding has left a little
    assert np.isnan(leave_one_out(copies, [1, 2], [0.0]).errors).all()
    with pytest.raises(ValueError, match="k must be finite"):
        leave_one_out(np.full((2, 2), np.nan), [1, 2], [0.0])


def test_an_inverse_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factor = factorise(gram(90), store=tmp_path / "l.zarr", tile=16)
    monkeypatch.setattr(factor_module, "fitting_width", lambda *a: 1)
    columns = factor_module.TiledFactor._inverse_columns
    seen: list[int] = []

    def note(self: Any, first: int, *rest: Any) -> None:
        seen.append(first)
        columns(self, first, *rest)

    monkeypatch.setattr(factor_module.TiledFactor, "_inverse_columns", note)

    def stop(share: float) -> None:
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        factor.inverse_diagonal(progress=stop)
    shares: list[float] = []
    found = factor.inverse_diagonal(progress=shares.append)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert shares[-1] == 1.0
    np.testing.assert_allclose(found, np.linalg.inv(gram(90)).diagonal(), rtol=1e-8)


def test_an_inverse_that_cannot_be_that_is_computed_again(tmp_path: Path) -> None:
    factor = factorise(gram(90), store=tmp_path / "l.zarr", tile=16)
    factor.inverse_diagonal(dtype="float32")  # kept under a name of its own
    expected = factor.inverse_diagonal()
    np.testing.assert_allclose(expected, np.linalg.inv(gram(90)).diagonal(), rtol=1e-8)
    name = factor_module._inverse_name(np.dtype(np.float64))
    for wrong in (np.ones(45), np.ones((90, 1)), np.ones(90, np.float32)):
        content = io.BytesIO()
        np.save(content, wrong)
        factor.store.objects.write(name, content.getvalue())
        np.testing.assert_array_equal(factor.inverse_diagonal(), expected)


# ---------------------------------------------------------------- matrices


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), tile=st.integers(1, 25), seed=st.integers(0, 100))
def test_pieces_make_the_whole(n: int, tile: int, seed: int) -> None:
    k = gram(n, seed)
    v = np.random.default_rng(seed).normal(size=(n, 2))
    stored = Stored(k, tile)
    np.testing.assert_array_equal(matrix_module.load(stored, "float64"), k)
    np.testing.assert_array_equal(matrix_module.diagonal(stored), k.diagonal())
    np.testing.assert_allclose(
        matrix_module.multiply(stored, v), k @ v, atol=1e-9 * np.abs(k).max()
    )
    np.testing.assert_allclose(
        matrix_module.multiply(stored, np.abs(v), absolute=True), np.abs(k) @ np.abs(v), rtol=1e-10
    )
    chosen = np.sort(np.random.default_rng(seed).choice(n, min(n, 7), replace=False))
    np.testing.assert_array_equal(matrix_module.columns_of(stored, chosen), k[:, chosen])


def test_a_matrix_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_module, "available_memory", lambda: 5_000)
    k = Stored(gram(40), 16)
    message = r"40 x 40 entries of float\d+ need 0.0 GiB, 0.0 GiB are free: use solve_tiled"
    for in_memory in (solve_cholesky, solve_refined):
        with pytest.raises(MemoryError, match=message):
            in_memory(k, np.ones(40))
    with pytest.raises(MemoryError, match=message):
        leave_one_out(k, np.ones(40), [0.1])


def test_fingerprints() -> None:
    k = gram(70)
    assert matrix_module.fingerprint(k) == matrix_module.fingerprint(k.copy())
    other = k.copy()
    other[69, 69] += 1e-9
    assert matrix_module.fingerprint(k) != matrix_module.fingerprint(other)
    assert matrix_module.fingerprint(k) != matrix_module.fingerprint(k.view(np.int64))
    assert matrix_module.fingerprint(Stored(k, 8)) == "of the test"


def test_sides_of_tiles() -> None:
    """At least four tiles a side, of 64 to 1024 samples."""
    for n, side in ((1, 64), (255, 64), (512, 128), (4095, 512), (4096, 1024), (10**5, 1024)):
        assert matrix_module.tile_side(np.broadcast_to(0.0, (n, n))) == side
    k = gram(3)
    assert [values.tolist() for _, _, values in matrix_module.pieces(k)] == [k.tolist()]


def test_a_finished_factor_is_opened_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, path = gram(90), tmp_path / "l.zarr"
    right = factorise(k, 0.1, store=path, tile=32).inverse_diagonal()

    def refuse(self: Any) -> Any:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(type(open_objects(path)), "locked", refuse)
    assert np.array_equal(factorise(k, 0.1, store=path).inverse_diagonal(), right)
    with pytest.raises(OSError, match="read-only"):
        factorise(k, 0.1, store=path, verify=True)


@pytest.mark.parametrize("tile", [8, 20_000, 32.0])
def test_tiles_of_factors_have_the_sizes_of_others(tile: Any, tmp_path: Path) -> None:
    match = "tile must be (from 16 to 16384 samples|an integer or None), got"
    with pytest.raises((ValueError, TypeError), match=match):
        factorise(gram(90), store=tmp_path / "l.zarr", tile=tile)
    assert not (tmp_path / "l.zarr").exists()


# ---------------------------------------------------------------- what reviews have found


@pytest.mark.parametrize("dtype", ["float16", "int64", ">f8", "float"])
def test_the_inverse_is_of_two_dtypes(dtype: str, tmp_path: Path) -> None:
    k, y = gram(20), np.ones(20)
    factor = solve_tiled(k, y, 1e-3, store=tmp_path / "l.zarr").factor
    with pytest.raises(ValueError, match=f"dtype must be .* got '{dtype}'"):
        leave_one_out_of_factor(factor, y, dtype=dtype)
    errors = leave_one_out_of_factor(factor, y, dtype="float64").errors
    np.testing.assert_allclose(errors, leave_one_out(k, y, [1e-3]).errors, rtol=1e-8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(3, 3), (2, 7)])
def test_conjugate_gradients_name_the_row_that_is_not_finite(
    place: tuple[int, int], value: float
) -> None:
    k = gram(40)
    k[place] = k[place[::-1]] = value
    with pytest.raises(ValueError, match=f"k must be finite, got .* in row {min(place)}"):
        solve_conjugate(Stored(k, 16), np.ones(40), 1e-2)


def test_a_checkpoint_is_a_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    k, y = gram(40), np.ones(40)
    solve_conjugate(k, y, 1e-2, checkpoint="~/c")
    solve_conjugate(k, y, 1e-2, checkpoint=f"file://{tmp_path}/d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]
    with pytest.raises(ValueError, match="checkpoint must be a folder of this machine"):
        solve_conjugate(k, y, 1e-2, checkpoint="s3://bucket/c")
    with pytest.warns(RuntimeWarning, match="nothing is kept behind memory://c"):
        solution = solve(k, y, 1e-2, method="conjugate", store="memory://c")
    assert solution.status is Status.SOLVED
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_of_conjugate_gradients_take_no_copy_of_k() -> None:
    n = 1500
    k, y = gram(n), np.ones(n)
    weights = np.linspace(1, 2, n)
    call = partial(solve_conjugate, k, y, 1e-2, rank=5, max_iterations=3)
    tracemalloc.start()
    try:
        call()
        _, plain = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call(weights=weights)
        _, weighed = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert weighed - plain < n * n


def test_a_factor_has_no_more_small_tiles_than_it_has_to(tmp_path: Path) -> None:
    """Of images that cost much the kernel has tiles of 16 samples."""
    for n, side in ((1000, 16), (1100, 32), (5000, 64)):
        assert tiled_module._own_side(Stored(np.broadcast_to(0.0, (n, n)), 16)) == side
    assert tiled_module._own_side(Stored(np.broadcast_to(0.0, (9000, 9000)), 128)) == 128
    x = np.random.default_rng(0).normal(size=(70, 9))
    k = wl.gram(wl.ntk_dense(2), x, store=tmp_path / "k.zarr", tile=16)
    y = np.arange(70.0)
    factor = factorise(k, 1e-3, store=tmp_path / "l.zarr", tile=64)
    found = factor.solve(y[:, None])[:, 0]
    np.testing.assert_allclose(found, solve(k, y, 1e-3).value, rtol=1e-4)
