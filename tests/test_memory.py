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
from widelimit.solvers import solve_tiled
from widelimit.solvers import tiled as tiled_module

linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are those of /proc")

PREPARE = """
import json, multiprocessing, os, sys, time, zarr
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np
import widelimit as wl
import widelimit.matrices  # which is imported when it is first used
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
def test_inputs_that_are_more_than_the_memory(tmp_path: Path) -> None:
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
            wl.gram(wl.ntk_dense(2), x[:16], x, store=folder / store, tile=16, memory=memory,
                    threads=1, executor=chosen)
            peaks.append((peak_memory(), memory))
        peaks.append((executor.submit(peak_memory).result(), memory))
    print(json.dumps(peaks))

if __name__ == "__main__":
    main()
""",
    )
    assert [peak <= memory for peak, memory in found] == [True] * 3, found
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    whole = np.asarray(wl.open_gram(tmp_path / "here"))
    assert np.array_equal(whole, wl.open_gram(tmp_path / "there"))
    assert np.array_equal(whole[:, :40], wl.kernel(wl.ntk_dense(2), x[:16], x[:40]))


@linux
def test_each_worker_keeps_to_it(tmp_path: Path) -> None:
    """Also one that was forked, and holds what this process held; inputs are in memory here."""
    found = measured(
        tmp_path,
        """
def peak():
    time.sleep(0.1)  # so that both answer
    return os.getpid(), peak_memory()

x = np.random.default_rng(0).random((1000, 32, 32, 3))  # 25 MB
memory = promise(40_000_000)
with ProcessPoolExecutor(2) as executor:
    wl.gram([wl.cntk_vanilla(2), wl.cntk_vanilla(3)], x, store=folder / "k", tile=128,
            memory=memory, threads=1, executor=executor)
    workers = dict(future.result() for future in [executor.submit(peak) for _ in range(8)])
print(json.dumps((memory, peak_memory(), *workers.values())))
""",
    )
    memory, *peaks = found
    assert len(peaks) == 3
    assert max(peaks) <= memory, found


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


@linux
def test_targets_of_a_factor_count(tmp_path: Path) -> None:
    """A block of them is 16 MB: they, their solution and what is left of them, besides tiles."""
    peak, memory, told, begun = measured(
        tmp_path,
        """
from widelimit.solvers import solve_tiled

x = np.random.default_rng(0).normal(size=(2000, 40))
k, y = x @ x.T / 40 + np.eye(2000), np.random.default_rng(1).normal(size=(2000, 1000))
given = {"tile": 128, "threads": 2}
try:
    solve_tiled(k, y, store=folder / "little", memory=promise(75_000_000), **given)
except MemoryError as error:
    told = str(error)
begun = (folder / "little").exists()
memory = promise(110_000_000)
solve_tiled(k, y, store=folder / "f", memory=memory, **given)
print(json.dumps((peak_memory(), memory, told, begun)))
""",
    )
    assert "raise memory, or solve for fewer targets at a time" in told
    assert not begun
    assert peak <= memory


def test_targets_leave_the_rest_to_the_factor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles that would fit without them are refused before there is a store."""
    monkeypatch.setattr(tiled_module, "remaining", lambda memory: memory)
    given: dict[str, Any] = {"tile": 64, "threads": 1, "memory": 10**6}
    with pytest.raises(MemoryError, match="raise memory, or use a smaller tile for a new factor"):
        solve_tiled(np.eye(256), np.ones((256, 50)), store=tmp_path / "f", **given)
    assert not (tmp_path / "f" / "zarr.json").exists()
    assert solve_tiled(np.eye(256), np.ones(256), store=tmp_path / "f", **given)
