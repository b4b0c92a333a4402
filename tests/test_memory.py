"""`memory` is a promise for a process: its peak, with workers, small tiles and many threads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widelimit as wl
from widelimit.machine import held_memory
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import TileStore
from widelimit.solvers import conjugate as conjugate_module
from widelimit.solvers import (
    factorise,
    leave_one_out_of_factor,
    solve_conjugate,
    solve_refined,
    solve_tiled,
)
from widelimit.solvers import refined as refined_module
from widelimit.solvers import tiled as tiled_module
from widelimit.solvers.factor import TiledFactor

MEGABYTE = 10**6
linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are those of /proc")

PREPARE = """
import json, multiprocessing, sys, zarr
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np
import widelimit as wl
from widelimit.machine import held_memory, peak_memory

def promise(beside):  # what is held now, and so much beside it; the peak begins anew
    Path("/proc/self/clear_refs").write_text("5")
    return held_memory() + beside

folder = Path(sys.argv[1])
"""


def measured(folder: Path, script: str) -> Any:
    """What a script prints as JSON, run by a process of its own."""
    path = folder / "script.py"
    path.write_text(PREPARE + script)
    done = subprocess.run(
        [sys.executable, str(path), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---------------------------------------------------------------- gram


@linux
def test_inputs_of_several_times_the_memory(tmp_path: Path) -> None:
    """They lie in a file that is mapped: neither this process nor a worker holds them."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((320, 2**15)))  # 84 MB
    found = measured(
        tmp_path,
        """
def main():
    x = np.load(folder / "x.npy", mmap_mode="r")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        executor.submit(peak_memory).result()  # it has begun
        peaks = []
        for store, chosen in (("here", None), ("there", executor)):
            memory = promise(50_000_000)
            wl.gram(wl.ntk_dense(2), x, store=folder / store, tile=16, memory=memory,
                    threads=1, executor=chosen)
            peaks.append((peak_memory(), memory))
        peaks.append((executor.submit(peak_memory).result(), memory))
    print(json.dumps(peaks))

if __name__ == "__main__":
    main()
""",
    )
    assert [peak <= memory for peak, memory in found] == [True] * 3, found
    assert max(memory for _, memory in found) < 200 * MEGABYTE
    whole = np.asarray(wl.open_gram(tmp_path / "here"))
    assert np.array_equal(whole, wl.open_gram(tmp_path / "there"))
    assert np.array_equal(whole[:9, :40], wl.kernel(wl.ntk_dense(2), *halves(tmp_path)))


def halves(folder: Path) -> tuple[Any, Any]:
    x = np.load(folder / "x.npy", mmap_mode="r")
    return x[:9], x[:40]


@linux
def test_what_is_known_of_small_tiles_is_small(tmp_path: Path) -> None:
    """781,875 tiles of 16 x 16, of which the first few are computed."""
    peak, memory = measured(
        tmp_path,
        """
class Enough(Exception):
    pass

def stop(state):
    if state.tiles >= 40:
        raise Enough

x = np.random.default_rng(0).random((20_000, 4))
memory = promise(45_000_000)
try:
    wl.gram(wl.ntk_dense(2), x, store=folder / "k", tile=16, threads=2, memory=memory,
            progress=stop)
except Enough:
    print(json.dumps((peak_memory(), memory)))
""",
    )
    assert peak <= memory


@linux
def test_profiles_in_use_by_many_threads_count(tmp_path: Path) -> None:
    """Tiles of one call each: every thread has others, with other profiles."""
    peak, memory = measured(
        tmp_path,
        """
x = np.random.default_rng(0).random((320, 32, 32, 3), dtype=np.float32)
memory = promise(30_000_000)
wl.gram([wl.cntk_vanilla(2), wl.cntk_vanilla(3)], x, store=folder / "k", tile=16, threads=16,
        memory=memory)
print(json.dumps((peak_memory(), memory)))
""",
    )
    assert peak <= memory


def test_too_small_tiles_are_told_before_the_work(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((60_000, 1))
    with pytest.raises(MemoryError, match="raise memory, or use a larger tile for a new store"):
        wl.gram(wl.ntk_dense(2), x, store=tmp_path / "k", tile=16, memory=held_memory() + 2**25)
    assert not (tmp_path / "k" / "zarr.json").exists()


# ---------------------------------------------------------------- solvers


def positive(n: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(n, 40))
    return x @ x.T / 40 + np.eye(n)


def test_solvers_refuse_before_they_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many targets, a factor in memory, a copy that is weighed, a column of an inverse."""
    for module in (conjugate_module, refined_module):
        monkeypatch.setattr(module, "default_threads", lambda: 2)
    k, y = positive(1500), np.ones(1500)
    path = tmp_path / "factor"

    def memory(megabytes: float) -> int:
        return held_memory() + round(megabytes * MEGABYTE)

    solve_refined(k, y, memory=memory(500))  # what is loaded at first use is there
    with pytest.raises(MemoryError, match="or solve for fewer targets at a time"):
        solve_tiled(k, np.ones((1500, 1500)), store=path, memory=memory(80))
    with pytest.raises(MemoryError, match="raise memory, or give store"):
        solve_refined(k, y, memory=memory(15))
    solve_conjugate(k, y, 0.1, rank=5, memory=memory(25))
    with pytest.raises(MemoryError, match="rank 5 does not fit into memory, where 0 would: raise"):
        solve_conjugate(k, y, 0.1, rank=5, memory=memory(25), weights=np.arange(1.0, 1501))
    assert not path.exists()
    factor = factorise(k, store=path, tile=256)
    with pytest.raises(MemoryError, match=r"takes \d+ MiB at least beside what the process holds"):
        leave_one_out_of_factor(TiledFactor(factor.store, memory(1)), y)


def test_the_last_columns_of_a_factor_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need more rows above than the first ones: told before those are computed."""
    monkeypatch.setattr(tiled_module, "remaining", lambda memory: memory)
    given: dict[str, Any] = {"store": tmp_path / "l", "tile": 64, "threads": 1}
    with pytest.raises(MemoryError, match="takes 4 MiB at least .* and 1 MiB are left"):
        factorise(positive(1600), memory=2**20, **given)
    assert not (tmp_path / "l" / "zarr.json").exists()
    factorise(positive(1600), memory=2**22, **given)
    assert not TileStore.open(open_objects(tmp_path / "l")).missing()
