"""`gram`: the values of `kernel`, however often a run is killed, within a budget of memory."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import Usage, change_metadata, contents, disk_of
from trees import MIXED

import widelimit as wl
from widelimit.backends.base import Pairs
from widelimit.backends.cpu import ISA_VARIABLE, CpuBackend, instruction_sets
from widelimit.backends.dense import DenseBackend
from widelimit.machine import available_memory, held_memory, parse_memory, remaining
from widelimit.matrices import plan as plan_module
from widelimit.matrices import store as store_module
from widelimit.matrices.manifest import Manifest
from widelimit.matrices.objects import open_objects
from widelimit.matrices.plan import Sizes, columns_in_use, solve
from widelimit.matrices.progress import Progress, Tracker
from widelimit.matrices.store import StoreError, TileStore
from widelimit.network import MAX_LAYERS
from widelimit.program import Kind

RNG = np.random.default_rng(0)
X = RNG.random((75, 7, 6, 2))
X[60] = X[3]  # the same image in two tiles
Z = RNG.random((41, 7, 6, 2))
Z[5] = X[7]
VANILLA, GAP = wl.cntk_vanilla(3), wl.cntk_gap(4)
BOTH: tuple[Kind, ...] = ("ntk", "nngp")


def open_tiles(path: Path) -> TileStore:
    return TileStore.open(open_objects(path))


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("x2", [None, Z], ids=["symmetric", "two sides"])
@pytest.mark.parametrize("kind", ["ntk", BOTH], ids=str)
@pytest.mark.parametrize("net", [VANILLA, [VANILLA, GAP, wl.cntk_gap(2)]], ids=["one", "three"])
def test_the_values_of_kernel(net: Any, kind: Any, x2: Any, dtype: Any, tmp_path: Path) -> None:
    found = wl.gram(net, X, x2, kind, store=tmp_path / "k.zarr", tile=32, dtype=dtype)
    expected = wl.kernel(net, X, x2, kind, dtype=dtype)
    again = wl.open_gram(tmp_path / "k.zarr")
    for grams in (found, again):
        if isinstance(net, list):
            assert np.array_equal(np.array(grams), np.array(expected))
        elif isinstance(kind, tuple):
            assert isinstance(grams, tuple)
            assert all(np.array_equal(a, b) for a, b in zip(grams, expected, strict=True))
        else:
            assert np.array_equal(grams, expected)
            assert np.asarray(grams).dtype == dtype


@pytest.mark.parametrize(
    "net",
    [
        wl.ntk_dense(2),
        wl.Network([wl.Conv(3), wl.ReLU(), wl.Flatten(), wl.Dense(), wl.ReLU(), wl.Dense()]),
    ],
    ids=["dense", "head"],
)
def test_dense_networks_and_heads(net: Any, tmp_path: Path) -> None:
    k = wl.gram(net, X, store=tmp_path / "k.zarr", tile=16)
    assert np.array_equal(k, wl.kernel(net, X))


def test_dense_network_on_rows_in_large_tiles(tmp_path: Path) -> None:
    x = RNG.normal(size=(700, 5))
    k = wl.gram(wl.ntk_dense(3), x, store=tmp_path / "k.zarr", tile=300, dtype="float64")
    assert np.array_equal(k, wl.kernel(wl.ntk_dense(3), x, dtype="float64"))


@pytest.mark.parametrize("tile", [16, 33, 75, 200])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("net", [GAP, MIXED], ids=["gap", "pools"])
def test_no_bit_depends_on_tiles_or_threads(
    net: Any, tile: int, threads: int, tmp_path: Path
) -> None:
    k = np.array(wl.gram(net, X, store=tmp_path / "k.zarr", tile=tile, threads=threads))
    assert np.array_equal(k, wl.kernel(net, X))
    assert np.array_equal(k, k.T)


def test_few_profiles_held_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    run = importlib.import_module("widelimit.matrices.run")
    monkeypatch.setattr(run, "solve", lambda *a: replace(solve(*a), group=1, columns=2))
    k = wl.gram(VANILLA, X, Z, store=tmp_path / "k.zarr", tile=16)
    assert np.array_equal(k, wl.kernel(VANILLA, X, Z))


def test_behind_a_url() -> None:
    k = wl.gram(VANILLA, X, store="memory://test_gram/k.zarr", tile=32)
    assert np.array_equal(k, wl.kernel(VANILLA, X))
    assert np.array_equal(wl.open_gram("memory://test_gram/k.zarr"), k)


# ---------------------------------------------------------------- reading

INDEX = st.one_of(
    st.integers(-75, 74),
    st.slices(75),
    st.just(slice(None)),
)


@pytest.fixture(scope="module")
def k(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wl.gram(VANILLA, X, store=tmp_path_factory.mktemp("k") / "k.zarr", tile=32)


@settings(max_examples=200, deadline=None)
@given(rows=INDEX, columns=INDEX)
def test_it_reads_like_an_array(k: Any, rows: Any, columns: Any) -> None:
    whole = wl.kernel(VANILLA, X)
    np.testing.assert_array_equal(k[rows, columns], whole[rows, columns])
    np.testing.assert_array_equal(k[rows], whole[rows])


def test_the_rest_of_an_array(k: Any) -> None:
    whole = wl.kernel(VANILLA, X)
    assert (k.shape, k.ndim, len(k), k.dtype, k.tile) == ((75, 75), 2, 75, "float32", 32)
    assert k.symmetric
    np.testing.assert_array_equal(k[...], whole)
    np.testing.assert_array_equal(k[..., 3:5], whole[:, 3:5])
    np.testing.assert_array_equal(k.diagonal(), whole.diagonal())
    assert np.asarray(k, dtype="float64").dtype == "float64"
    assert repr(k).endswith("75 x 75, float32)")
    for wrong in ([1, 2], np.array([True]), (1, 2, 3), None, "a"):
        with pytest.raises(IndexError, match=r"takes integers and slices, k\[i:j, l:m\], got"):
            k[wrong]
    with pytest.raises(IndexError, match="index 75 is out of bounds for 75 samples"):
        k[75]
    with pytest.raises(ValueError, match="without a copy"):
        k.__array__(copy=False)


def test_fingerprints_tell_matrices_apart(k: Any, tmp_path: Path) -> None:
    two = wl.gram([VANILLA, GAP], X, store=tmp_path / "2.zarr", tile=32)
    other = wl.gram(VANILLA, X[:74], store=tmp_path / "3.zarr", tile=32)
    same = wl.gram(VANILLA, X, store=tmp_path / "4.zarr", tile=16)
    assert len({k.fingerprint, two[0].fingerprint, two[1].fingerprint, other.fingerprint}) == 4
    assert same.fingerprint == k.fingerprint


# ---------------------------------------------------------------- resuming


def tiles_computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    keys: list[tuple[int, int]] = []
    write = TileStore.write

    def note(self: TileStore, key: tuple[int, int], values: Any) -> Any:
        keys.append(key)
        return write(self, key, values)

    monkeypatch.setattr(TileStore, "write", note)
    return keys


def test_finished_tiles_are_never_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = tiles_computed(monkeypatch)

    def stop(state: Progress) -> None:
        if state.tiles == 3:
            raise KeyboardInterrupt

    path = tmp_path / "k.zarr"
    with pytest.raises(KeyboardInterrupt):
        wl.gram(VANILLA, X, store=path, tile=16, threads=1, progress=stop)
    first = list(computed)
    assert 3 <= len(first) < 15
    with pytest.raises(StoreError, match=r"lacks \d+ of its tiles: run the call that makes it"):
        wl.open_gram(path)
    k = wl.gram(VANILLA, X, store=path, threads=1)
    assert sorted(computed) == sorted(open_tiles(path).grid.tiles())  # each once
    assert np.array_equal(k, wl.kernel(VANILLA, X))
    wl.gram(VANILLA, X, store=path)
    assert len(computed) == 15


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damaged_tiles_are_computed_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k.zarr"
    wl.gram(VANILLA, X, store=path, tile=16)
    file = path / "c" / "1" / "3"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        bad = content[:-1] if damage == "truncated" else content[:9] + b"?" + content[10:]
        file.write_bytes(bad)
    computed = tiles_computed(monkeypatch)
    k = wl.gram(VANILLA, X, store=path)
    if damage == "flipped":  # of the right length: noticed when it is read
        assert computed == []
        with pytest.raises(StoreError, match=r"tile \(1, 3\) of .* is damaged.*verify=True"):
            k[20:30, 50:60]
        k = wl.gram(VANILLA, X, store=path, verify=True)
    assert computed == [(1, 3)]
    assert file.read_bytes() == content
    assert np.array_equal(k, wl.kernel(VANILLA, X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": GAP}, r"the network is Conv.* Flatten Dense there, Conv.* GlobalAvgPool Dense n"),
        ({"net": wl.Network(VANILLA.layers)}, "scaling is 'paper' there, 'fan_in' now"),
        (
            {"net": wl.Network([wl.Conv(3, w_std=1.0), *VANILLA.layers[1:]], "paper")},
            r"layer 0 is Conv\(3.*\) there, Conv\(3, w_std=1.0.*\) now",
        ),
        ({"x1": X + 1e-9}, r"x1 is \(75, 7, 6, 2\) with SHA-256 .*… there, \(75, 7, 6, 2\) with"),
        ({"x1": X + (np.arange(75) == 74)[:, None, None, None]}, r"x1 is \(75, 7, 6, 2\) with"),
        ({"x1": X[:70]}, r"x1 is \(75, 7, 6, 2\) with .* there, \(70, 7, 6, 2\) with .* now"),
        ({"x2": Z}, r"x2 is None there, \(41, 7, 6, 2\) with SHA-256"),
        ({"dtype": "float64"}, "dtype is float32 there, float64 now"),
        ({"kind": "nngp"}, "kind is ntk there, nngp now"),
        ({"net": [VANILLA]}, r"the shape of the result is \(75, 75\) there, \(1, 75, 75\) now"),
        ({"tile": 16}, "has tiles of 32 samples, got tile=16: leave tile out"),
    ],
)
def test_another_kernel_on_the_same_path_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "k.zarr"
    call: dict[str, Any] = {"net": VANILLA, "x1": X, "store": path}
    before = np.array(wl.gram(**call, tile=32))
    with pytest.raises(ValueError, match=message):
        wl.gram(**(call | change))
    assert np.array_equal(wl.gram(**call), before)


def test_the_same_inputs_in_another_dtype_and_order_are_the_same(tmp_path: Path) -> None:
    x = np.round(X * 255).astype(np.uint8)
    first = wl.gram(VANILLA, x, store=tmp_path / "k.zarr")
    again = wl.gram(VANILLA, np.asfortranarray(x.astype(np.float64)), store=tmp_path / "k.zarr")
    assert again.fingerprint == first.fingerprint


def test_another_instruction_set_needs_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k.zarr"
    best, *_, last = [name for name, there in instruction_sets().items() if there]
    assert best != last
    monkeypatch.setenv(ISA_VARIABLE, last)
    wl.gram(VANILLA, X, store=path, tile=32)
    open_tiles(path).delete((0, 1))
    monkeypatch.setenv(ISA_VARIABLE, best)
    with pytest.raises(ValueError, match=rf"was begun by backend cpu with {last}.* here is backe"):
        wl.gram(VANILLA, X, store=path)
    with pytest.raises(ValueError, match=r"was begun by .* here is backend reference, wide"):
        wl.gram(VANILLA, X, store=path, backend="reference")
    k = wl.gram(VANILLA, X, store=path, allow_mixed=True)
    makers = Manifest.from_json(open_tiles(path).manifest, "").makers
    assert [maker.instruction_set for maker in makers] == [last, best]
    np.testing.assert_allclose(k, wl.kernel(VANILLA, X), rtol=1e-5)
    monkeypatch.setenv(ISA_VARIABLE, last)  # complete: nothing is computed, nothing is mixed
    wl.gram(VANILLA, X, store=path)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, room = os.fsync, iter(range(10))  # the metadata, and four tiles, with a seal each

    def fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "k.zarr"
    with pytest.raises(
        OSError,
        match=r"full: 0\.1 MB are needed in .*k\.zarr, while tile \(.*run the same call",
    ):
        wl.gram(VANILLA, X, store=path, tile=16, threads=1)  # or they take turns
    monkeypatch.undo()
    assert len(open_tiles(path).finished()) == 4
    computed = tiles_computed(monkeypatch)
    assert np.array_equal(wl.gram(VANILLA, X, store=path), wl.kernel(VANILLA, X))
    assert len(computed) == 11


def test_what_does_not_fit_onto_the_disk_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles and seals are counted in whole blocks, those that are there are not."""
    path, block = tmp_path / "k.zarr", 2**12
    computed = tiles_computed(monkeypatch)
    tile = block + block  # 1,024 bytes of float32 and a checksum; a seal
    disk_of(15 * tile - 1, monkeypatch)
    with pytest.raises(
        OSError, match=r"full: 0\.2 MB are needed in .*k\.zarr, 0\.1 MB are free: m"
    ):
        wl.gram(VANILLA, X, store=path, tile=16)
    assert not (path / "zarr.json").exists()
    assert computed == []
    disk_of(15 * tile, monkeypatch)
    wl.gram(VANILLA, X, store=path, tile=16)
    assert len(computed) == 15
    disk_of(0, monkeypatch)
    wl.gram(VANILLA, X, store=path)
    for key in ((0, 1), (2, 2)):
        open_tiles(path).delete(key)
    disk_of(2 * tile - 1, monkeypatch)
    with pytest.raises(OSError, match=r"the disk is full: 0\.1 MB are needed in .*k\.zarr"):
        wl.gram(VANILLA, X, store=path)
    disk_of(2 * tile, monkeypatch)
    assert np.array_equal(wl.gram(VANILLA, X, store=path), wl.kernel(VANILLA, X))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))  # it does not say
    wl.gram([VANILLA, VANILLA], X[:20], store=tmp_path / "b.zarr")


def test_the_inputs_for_workers_have_to_fit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, needed = tmp_path / "k.zarr", 15 * 2 * 2**12 + X.nbytes
    disk_of(needed - 1, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(OSError, match="the disk is full: 0"):
            wl.gram(VANILLA, X, store=path, tile=16, executor=pool)
        disk_of(needed, monkeypatch)
        wl.gram(VANILLA, X, store=path, tile=16, executor=pool)


def test_all_of_mnist_does_not_begin_on_a_small_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TileStore, "create", lambda *_: pytest.fail("it has begun"))
    disk_of(10**8, monkeypatch)
    x = np.random.default_rng(0).random((60_000, 2))
    with pytest.raises(
        OSError, match=r"7,\d\d\d MB are needed in .*k\.zarr, 100 MB are free"
    ) as caught:
        wl.gram(wl.ntk_dense(2), x, store=tmp_path / "k.zarr", memory="2GB")
    assert caught.value.errno == errno.ENOSPC


def test_a_second_process_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "k.zarr"
    seen: list[str] = []

    def again(state: Progress) -> None:
        if not seen:
            with pytest.raises(BlockingIOError, match="another process is writing there") as told:
                wl.gram(VANILLA, X, store=path)
            seen.append(str(told.value))

    k = wl.gram(VANILLA, X, store=path, tile=16, progress=again)
    assert seen
    assert np.array_equal(k, wl.kernel(VANILLA, X))


def test_a_foreign_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.zarr"
    TileStore.create(open_objects(path), (75, 75), 32, "float32", "upper", {"format": "x"})
    with pytest.raises(StoreError, match="must hold a Gram matrix of widelimit, it does not"):
        wl.gram(VANILLA, X, store=path)
    wl.gram(VANILLA, X, store=tmp_path / "a.zarr", tile=32)
    change_metadata(tmp_path / "a.zarr", lambda metadata: metadata.update(shape=[60, 60]))
    with pytest.raises(StoreError, match="is not the one of its manifest"):
        wl.open_gram(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "widelimit.gram/0"}, "format is 'widelimit.gram/0'"),
        ({"fingerprints": ["0" * 64]}, "a network does not have its fingerprint"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"kinds": ["cntk"]}, r"kinds are \('cntk',\)"),
        ({"networks": []}, "fingerprint"),
        ({"kinds": ["ntk", "nngp"]}, "several networks or kinds are not listed"),
        ({"makers": []}, "there is no maker"),
        (
            {"makers": [{"backend": "cpu", "instruction_set": ["x"], "version": "1"}]},
            r"the instruction set of a maker is \['x'\]",
        ),
        ({"x1": {"shape": [75, 0], "sha256": ""}}, r"the shape of inputs is \[75, 0\]"),
    ],
)
def test_a_manifest_that_is_none(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "k.zarr"
    wl.gram(VANILLA, X, store=path)
    change_metadata(path, lambda metadata: metadata["attributes"]["widelimit"].update(change))
    with pytest.raises(StoreError, match=rf"must hold a Gram matrix of widelimit, .*{message}"):
        wl.open_gram(path)


def test_a_list_of_networks_is_no_tuple_of_kinds(tmp_path: Path) -> None:
    (k,) = wl.gram([VANILLA], X, store=tmp_path / "k.zarr")
    message = "what is in a list is networks there, kinds now"
    with pytest.raises(ValueError, match=message):
        wl.gram(VANILLA, X, kind=("ntk",), store=tmp_path / "k.zarr")
    longer = np.concatenate([X, Z])
    with pytest.raises(ValueError, match=message):
        wl.gram(
            VANILLA, longer, kind=("ntk",), store=tmp_path / "l.zarr", reuse=tmp_path / "k.zarr"
        )
    again = wl.gram([VANILLA], X, store=tmp_path / "k.zarr")
    assert isinstance(again, list)
    assert again[0].fingerprint == k.fingerprint


def test_the_longest_network_fits_into_a_store(tmp_path: Path) -> None:
    k = wl.gram(DENSE, X, store=tmp_path / "k.zarr")
    long = wl.Conv(9_999, w_std=1.2345678901234567e-100, b_std=1.2345678901234567e-100)
    network = wl.Network([*[long] * (MAX_LAYERS - 2), wl.Flatten(), wl.Dense()])
    manifest = replace(k.manifest, networks=(network,))
    assert len(json.dumps(manifest.to_json(), indent=2)) < store_module._MAX_METADATA - 10_000


def test_a_store_that_could_not_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_MAX_METADATA", 5_000)
    wl.gram(VANILLA, X, store=tmp_path / "k.zarr")
    with pytest.raises(ValueError, match=r"at most 5,000 bytes of metadata, those .* fewer netw"):
        wl.gram([VANILLA] * 9, X, store=tmp_path / "l.zarr")
    assert not (tmp_path / "l.zarr" / "zarr.json").exists()


# What a run that is killed does: it notes every tile it begins.
RUN = """
import os, sys
import numpy as np
import widelimit as wl
from widelimit.matrices.sinks import Stored

path, journal = sys.argv[1:]
handle = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
begin = Stored.begin

def note(self, key):
    os.write(handle, f"{key[0]} {key[1]}\\n".encode())
    return begin(self, key)

Stored.begin = note
x = np.random.default_rng(0).random((16 * 26 + 5, 16, 16, 1))
wl.gram([wl.cntk_vanilla(11), wl.cntk_vanilla(21)], x, store=path, tile=16)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """At least twenty times: the same bits, and no finished tile computed twice."""
    path, journal = tmp_path / "k.zarr", tmp_path / "journal"
    rng = random.Random(1)
    command = [sys.executable, "-c", RUN, str(path), str(journal)]
    kills, finished = 0, set[tuple[int, int]]()
    total = set[tuple[int, int]]()
    while not total or finished != total:
        journal.write_text("")
        with subprocess.Popen(command) as run:
            # However fast the machine: after a few tiles, at any moment of the next.
            wanted = rng.randint(1, 7) if kills < 25 else 10**6
            while run.poll() is None and journal.read_text().count("\n") < wanted:
                time.sleep(0.001)
            if kills < 25:
                time.sleep(rng.random() * 0.01)
                run.send_signal(signal.SIGKILL)
        assert run.returncode in (0, -signal.SIGKILL)
        kills += run.returncode == -signal.SIGKILL
        begun = {tuple(map(int, line.split())) for line in journal.read_text().splitlines()}
        assert not begun & finished, "a finished tile was computed again"
        store = open_tiles(path)
        total = set(store.grid.tiles())
        now = store.finished()
        assert finished <= now, "a finished tile was lost"
        assert now - finished <= begun
        assert store.damaged(sorted(now)) == []
        finished = now
    assert kills >= 20
    assert not list(path.rglob("*.partial"))
    rest = RUN.replace(str(path), "")
    whole = tmp_path / "whole.zarr"
    subprocess.run([sys.executable, "-c", rest, str(whole), str(journal)], check=True)
    for key in total:
        for place in range(2):
            name = f"c/{place}/{key[0]}/{key[1]}"
            assert (path / name).read_bytes() == (whole / name).read_bytes()


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9)
    states: list[Progress] = []
    path = tmp_path / "k.zarr"
    wl.gram(VANILLA, X, store=path, tile=16, progress=states.append)
    assert all(0 <= state.seconds < 60 and state.pairs_per_second >= 0 for state in states)
    for index, file in enumerate(sorted((path / "c").rglob("*"))):
        when = (0, 4e9)[index % 2]  # 1970, 2096
        os.utime(file, (when, when))
    wl.gram(VANILLA, X, store=path, progress=lambda state: pytest.fail("computed again"))


# ---------------------------------------------------------------- reuse

OLD = [75, 74, 64, 40, 5]  # of 75, in tiles of 16: none new, one, ragged new ones; more than a tile
DENSE = wl.ntk_dense(2)
HEAD = wl.Network([wl.Conv(3), wl.ReLU(), wl.Flatten(), wl.Dense(), wl.ReLU(), wl.Dense()])


def pairs_computed(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Note the pairs that a backend is asked for."""
    pairs: set[tuple[int, int]] = set()
    numbers: dict[int, tuple[Any, Any]] = {}  # of the samples of each profile, which is kept alive

    def note(a: Any, b: Any, part: Pairs) -> None:
        left, right = a[part.rows], b[part.columns]
        if not part.pairwise:
            left, right = (side.ravel() for side in np.meshgrid(left, right))
        lows, highs = np.minimum(left, right), np.maximum(left, right)
        pairs.update(zip(lows.tolist(), highs.tolist(), strict=True))

    def watch(backend: type[Any]) -> None:
        profile, sums = backend.profile, backend.sums

        def note_profile(self: Any, program: Any, images: Any, identity: Any, dtype: Any) -> Any:
            made = profile(self, program, images, identity, dtype)
            numbers[id(made)] = (identity, made)
            return made

        def note_sums(self: Any, program: Any, a: Any, b: Any, part: Pairs, cancel: Any) -> Any:
            if not (part.pairwise and backend is DenseBackend):  # those are for variances
                note(numbers[id(a)][0], numbers[id(b)][0], part)
            return sums(self, program, a, b, part, cancel)

        monkeypatch.setattr(backend, "profile", note_profile)
        monkeypatch.setattr(backend, "sums", note_sums)

    watch(CpuBackend)
    watch(DenseBackend)
    return pairs


@pytest.mark.parametrize("n_old", OLD)
@pytest.mark.parametrize(
    ("net", "kind", "dtype"),
    [
        (VANILLA, "ntk", "float32"),
        ([VANILLA, GAP, wl.cntk_gap(2)], BOTH, "float64"),
        ([HEAD], ("nngp",), "float32"),
        (DENSE, "ntk", "float64"),
    ],
    ids=["one", "three", "head", "dense"],
)
def test_an_extended_matrix_is_the_whole_one(
    net: Any, kind: Any, dtype: Any, n_old: int, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("whole.zarr", "old.zarr", "new.zarr")]
    whole = wl.gram(net, X, None, kind, store=paths[0], tile=16, dtype=dtype)
    wl.gram(net, X[:n_old], None, kind, store=paths[1], tile=16, dtype=dtype)
    found = wl.gram(net, X, None, kind, store=paths[2], dtype=dtype, reuse=paths[1])
    assert contents(paths[2]) == contents(paths[0])
    assert np.array_equal(np.array(found), np.array(whole))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 90), share=st.floats(0, 1), tile=st.integers(16, 40), threads=st.integers(1, 3)
)
def test_a_matrix_of_any_size_is_extended(
    n: int, share: float, tile: int, threads: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    x, folder = RNG.random((n, 3, 4, 1)), tmp_path_factory.mktemp("k")
    n_old = max(1, round(share * n))
    call: dict[str, Any] = {"tile": tile, "threads": threads}
    net = [wl.cntk_vanilla(2), wl.cntk_gap(2)]
    wl.gram(net, x, store=folder / "whole", **call)
    wl.gram(net, x[:n_old], store=folder / "old", **call)
    wl.gram(net, x, store=folder / "new", reuse=folder / "old", **call)
    assert contents(folder / "new") == contents(folder / "whole")


@pytest.mark.parametrize("n_old", OLD)
@pytest.mark.parametrize("net", [VANILLA, GAP, DENSE], ids=["vanilla", "gap", "dense"])
def test_no_pair_is_computed_again(
    net: wl.Network, n_old: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = RNG.random(X.shape)  # all different: the engine numbers them in order
    expected = {(i, j) for j in range(75) for i in range(j + 1)}
    with monkeypatch.context() as patch:
        old = pairs_computed(patch)
        wl.gram(net, x[:n_old], store=tmp_path / "old.zarr", tile=16)
    assert old == {(i, j) for i, j in expected if j < n_old}
    new = pairs_computed(monkeypatch)
    states: list[Progress] = []
    path = tmp_path / "new.zarr"
    wl.gram(net, x, store=path, reuse=tmp_path / "old.zarr", progress=states.append)
    assert new == expected - old
    last = states[-1]
    assert (last.tiles, last.tiles_found, last.pairs) == (15, 0, len(new))
    assert last.pairs_total == len(new)


@pytest.mark.parametrize(("key", "entry"), [((0, 1), (3, 20)), ((1, 2), (20, 39))])
def test_old_entries_are_those_of_the_old_store(
    key: tuple[int, int], entry: tuple[int, int], tmp_path: Path
) -> None:
    """One that was changed there is changed here, whether its tile is copied or at the edge."""
    wl.gram(VANILLA, X[:40], store=tmp_path / "old.zarr", tile=16)
    store = open_tiles(tmp_path / "old.zarr")
    values = store.read(key).copy()
    values[entry[0] % 16, entry[1] % 16] += 1
    store.write(key, values)
    found = wl.gram(VANILLA, X, store=tmp_path / "new.zarr", reuse=tmp_path / "old.zarr")
    different = np.argwhere(np.triu(np.asarray(found) != wl.kernel(VANILLA, X)))
    assert different.tolist() == [list(entry)]


@pytest.mark.parametrize("stop", [2, 5, 8, 14])
@pytest.mark.parametrize("lost", [False, True], ids=["with the old store", "without it"])
def test_an_extension_that_was_stopped_goes_on(
    stop: int, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, path = tmp_path / "old.zarr", tmp_path / "new.zarr"
    wl.gram(VANILLA, X[:40], store=old, tile=16)
    computed, copied = tiles_computed(monkeypatch), list[tuple[int, int]]()
    copy = TileStore.copy

    def note(self: TileStore, key: tuple[int, int], source: TileStore) -> None:
        copied.append(key)
        copy(self, key, source)

    def interrupt(state: Progress) -> None:
        if state.tiles == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(TileStore, "copy", note)
    with pytest.raises(KeyboardInterrupt):
        wl.gram(VANILLA, X, store=path, threads=1, reuse=old, progress=interrupt)
    assert stop <= len(open_tiles(path).finished()) <= 15  # what is complete is kept
    if lost:
        shutil.rmtree(old)
    wl.gram(VANILLA, X, store=path, threads=1, reuse=None if lost else old)
    assert sorted(computed + copied) == sorted(open_tiles(path).grid.tiles())  # each once
    assert sorted(copied) == [(0, 0), (0, 1), (1, 1)][: stop if lost else 3]
    before = contents(path)
    shutil.rmtree(old, ignore_errors=True)
    wl.gram(VANILLA, X, store=path, reuse=old)  # finished: the same call is harmless
    wl.gram(VANILLA, X, store=tmp_path / "whole.zarr", tile=16)
    assert contents(path) == before == contents(tmp_path / "whole.zarr")


EXTEND = """
import os, signal, sys
import numpy as np
import widelimit as wl

old, path, tiles, *networks = sys.argv[1:]

def kill(state):
    if state.tiles == int(tiles):
        os.kill(os.getpid(), signal.SIGKILL)

x = np.random.default_rng(0).random((75, 7, 6, 2))
nets = [wl.Network.from_json(network) for network in networks]
wl.gram(nets, x, store=path, reuse=old, threads=2, progress=kill)
"""


def test_an_extension_that_is_killed(tmp_path: Path) -> None:
    nets = [VANILLA, MIXED]
    x = np.random.default_rng(0).random((75, 7, 6, 2))
    old, path = tmp_path / "old.zarr", tmp_path / "new.zarr"
    wl.gram(nets, x[:40], store=old, tile=16)
    for tiles in (2, 4, 9, 0):
        command = [sys.executable, "-c", EXTEND, str(old), str(path), str(tiles)]
        command += [net.to_json() for net in nets]
        code = subprocess.run(command, check=False).returncode
        assert code == (-signal.SIGKILL if tiles else 0)
    wl.gram(nets, x, store=tmp_path / "whole.zarr", tile=16)
    assert contents(path) == contents(tmp_path / "whole.zarr")


def test_workers_extend(tmp_path: Path) -> None:
    old, path, net = tmp_path / "old.zarr", tmp_path / "new.zarr", [VANILLA, GAP, MIXED]
    x = RNG.random(X.shape)
    wl.gram(net, x[:40], store=old, tile=16)
    with ThreadPoolExecutor(2) as executor, pytest.MonkeyPatch.context() as patch:
        pairs = pairs_computed(patch)
        wl.gram(net, x, store=path, reuse=old, executor=executor)
    assert min(j for _, j in pairs) == 40
    wl.gram(net, x, store=tmp_path / "whole.zarr", tile=16)
    assert contents(path) == contents(tmp_path / "whole.zarr")


def test_extended_behind_a_url() -> None:
    url = "memory://test_reuse"
    for n_old, n in ((0, 33), (33, 50), (50, 75)):
        reuse = f"{url}/{n_old}.zarr" if n_old else None
        wl.gram(GAP, X[:n], store=f"{url}/{n}.zarr", reuse=reuse, tile=None if n_old else 16)
    wl.gram(GAP, X, store=f"{url}/whole.zarr", tile=16)
    assert contents(f"{url}/75.zarr") == contents(f"{url}/whole.zarr")


@pytest.mark.parametrize("key", [(0, 1), (1, 2)], ids=["inside", "at the edge"])
def test_damage_of_the_old_store_is_told_before_the_work(
    key: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, path = tmp_path / "old.zarr", tmp_path / "new.zarr"
    wl.gram(VANILLA, X[:40], store=old, tile=16)
    file = old / "c" / str(key[0]) / str(key[1])
    content = file.read_bytes()
    file.write_bytes(content[:9] + b"?" + content[10:])
    computed = tiles_computed(monkeypatch)
    with pytest.raises(StoreError, match=rf"tile \({key[0]}, {key[1]}\) of .*old.zarr is damaged"):
        wl.gram(VANILLA, X, store=path, reuse=old)
    assert computed == []
    assert (0, 0) in open_tiles(path).finished()  # what was copied is kept
    file.unlink()
    with pytest.raises(StoreError, match=r"old.zarr lacks 1 of its tiles: run the call that makes"):
        wl.gram(VANILLA, X, store=path, reuse=old)
    wl.gram(VANILLA, X[:40], store=old)
    k = wl.gram(VANILLA, X, store=path, reuse=old)
    assert np.array_equal(k, wl.kernel(VANILLA, X))


def test_a_damaged_tile_of_an_extended_store_is_copied_again(tmp_path: Path) -> None:
    old, path = tmp_path / "old.zarr", tmp_path / "new.zarr"
    wl.gram(VANILLA, X[:40], store=old, tile=16)
    wl.gram(VANILLA, X, store=path, reuse=old)
    before = contents(path)
    for name in ("c/0/1", "c/1/2", "c/3/4"):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:9] + b"?" + content[10:])
    wl.gram(VANILLA, X, store=path, reuse=old, verify=True)
    assert contents(path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x1": X + 1e-9},
            r"x1 is \(40, 7, 6, 2\) with SHA-256 .* there, \(40, .*first samples",
        ),
        ({"x1": X[::-1]}, r"x1 is \(40, 7, 6, 2\) with SHA-256 .* there, \(40, 7, 6, 2\) with"),
        ({"x1": X[:39]}, r"x1 is \(40, 7, 6, 2\) with .* there, \(39, 7, 6, 2\) with .* now"),
        ({"net": GAP}, r"the network is Conv.* there, .*: give its path, or leave reuse out"),
        ({"net": wl.Network(VANILLA.layers)}, "scaling is 'paper' there, 'fan_in' now"),
        ({"net": [VANILLA]}, r"result is \(40, 40\) there, \(1, 40, 40\) now"),
        ({"dtype": "float64"}, "dtype is float32 there, float64 now"),
        ({"kind": BOTH}, "kind is ntk there, ntk/nngp now"),
        (
            {"backend": "reference"},
            r"was made by backend cpu .*; here is backend reference",
        ),
        ({"tile": 32}, r"old.zarr has tiles of 16 samples, got tile=32: leave tile out"),
        ({"x2": Z}, "reuse extends the symmetric matrix of x1, got x2 as well"),
    ],
)
def test_what_is_not_the_beginning_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    old, path = tmp_path / "old.zarr", tmp_path / "new.zarr"
    wl.gram(VANILLA, X[:40], store=old, tile=16)
    call: dict[str, Any] = {"net": VANILLA, "x1": X, "store": path, "reuse": old}
    with pytest.raises(ValueError, match=message):
        wl.gram(**(call | change))
    assert not (path / "zarr.json").exists()
    assert np.array_equal(wl.gram(**call), wl.kernel(VANILLA, X))


def test_stores_that_cannot_be_extended(tmp_path: Path) -> None:
    call: dict[str, Any] = {"net": VANILLA, "x1": X, "store": tmp_path / "new.zarr"}
    with pytest.raises(FileNotFoundError, match="there is no matrix of widelimit"):
        wl.gram(**call, reuse=tmp_path / "nothing.zarr")
    wl.gram(VANILLA, X[:40], Z, store=tmp_path / "two.zarr", tile=16)
    with pytest.raises(ValueError, match=r"x2 is \(41, 7, 6, 2\) with SHA-256 .* there, None now"):
        wl.gram(**call, reuse=tmp_path / "two.zarr")
    wl.gram(VANILLA, X[:40], store=tmp_path / "old.zarr", tile=16)
    wl.gram(**call, tile=32)
    open_tiles(tmp_path / "new.zarr").delete((0, 2))
    with pytest.raises(ValueError, match=r"old.zarr has tiles of 16 samples, got tile=32"):
        wl.gram(**call, reuse=tmp_path / "old.zarr")


def test_another_maker_of_the_old_store_needs_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, path = tmp_path / "old.zarr", tmp_path / "new.zarr"
    best, *_, last = [name for name, there in instruction_sets().items() if there]
    monkeypatch.setenv(ISA_VARIABLE, last)
    wl.gram(VANILLA, X[:40], store=old, tile=16)
    monkeypatch.setenv(ISA_VARIABLE, best)
    with pytest.raises(
        ValueError, match=rf"was made by .* with {last}.*; here is .*{best}, .*mixed"
    ):
        wl.gram(VANILLA, X, store=path, reuse=old)
    k = wl.gram(VANILLA, X, store=path, reuse=old, allow_mixed=True)
    makers = Manifest.from_json(open_tiles(path).manifest, "").makers
    assert [maker.instruction_set for maker in makers] == [best, last]
    assert np.array_equal(k[:40, :40], wl.open_gram(old))
    assert np.array_equal(k[:, 40:], wl.kernel(VANILLA, X)[:, 40:])


def test_an_old_store_of_several_makers_needs_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, path = tmp_path / "old.zarr", tmp_path / "new.zarr"
    best, *_, last = [name for name, there in instruction_sets().items() if there]
    wl.gram(VANILLA, X[:40], store=old, tile=16)
    open_tiles(old).delete((0, 1))
    with monkeypatch.context() as patch:
        patch.setenv(ISA_VARIABLE, last)
        wl.gram(VANILLA, X[:40], store=old, allow_mixed=True)
    with pytest.raises(ValueError, match=rf"was made by .*{best}.*; .*{last}.*; here is .*{best}"):
        wl.gram(VANILLA, X, store=path, reuse=old)


def test_an_old_store_that_is_not_finished(tmp_path: Path) -> None:
    old = tmp_path / "old.zarr"
    wl.gram(VANILLA, X[:40], store=old, tile=16)
    open_tiles(old).delete((0, 1))
    with pytest.raises(StoreError, match="lacks 1 of its tiles: run the call that makes it again"):
        wl.gram(VANILLA, X, store=tmp_path / "new.zarr", reuse=old)
    assert not (tmp_path / "new.zarr" / "zarr.json").exists()


# ---------------------------------------------------------------- memory

MEASURE = """
import sys
import numpy as np
import zarr
import widelimit as wl
import widelimit.matrices  # which is imported when it is first used
from widelimit.machine import held_memory, peak_memory

rows = np.random.default_rng(0).random((800, 32, 32, 3), dtype=np.float32)
path, beside = sys.argv[1:]
memory = None if beside == "None" else held_memory() + int(beside)
held = held_memory()
k = wl.gram([wl.cntk_vanilla(d) for d in (3, 6, 11)], rows, store=path, memory=memory)
print(peak_memory() - held)
"""


def taken(path: Path, beside: int | None) -> int:
    """Return what a call took beside what its process held, where it may take so much."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(beside)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
def test_memory_is_a_promise(tmp_path: Path) -> None:
    free = taken(tmp_path / "free.zarr", None)
    rows = np.random.default_rng(0).random((800, 32, 32, 3), dtype=np.float32)
    block = wl.kernel([wl.cntk_vanilla(d) for d in (3, 6, 11)], rows[:40])
    for megabytes in (35, 38, 42):
        assert free > megabytes * 10**6  # without a promise it takes more
        assert taken(tmp_path / f"{megabytes}.zarr", megabytes * 10**6) <= megabytes * 10**6
        found = wl.open_gram(tmp_path / f"{megabytes}.zarr")
        assert np.array_equal([k[:40, :40] for k in found], block)


def test_too_little_memory_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"takes \d+ MiB at least beside .*: raise memory"):
        wl.gram(VANILLA, X, store=tmp_path / "k.zarr", memory="10MB")
    assert not (tmp_path / "k.zarr" / "zarr.json").exists()


def test_a_finished_store_takes_no_memory(tmp_path: Path) -> None:
    """Nor does it take a tile of another size."""
    path = tmp_path / "k.zarr"
    k = np.array(wl.gram(VANILLA, X, store=path, tile=16))
    for verify in (False, True):
        assert np.array_equal(wl.gram(VANILLA, X, store=path, memory="10MB", verify=verify), k)
    with pytest.raises(ValueError, match="has tiles of 16 samples, got tile=32"):
        wl.gram(VANILLA, X, store=path, tile=32)
    open_tiles(path).delete((0, 1))
    with pytest.raises(MemoryError, match="at least"):
        wl.gram(VANILLA, X, store=path, memory="10MB")


SIZES = Sizes(10_000, 10_000, True, 4, 3, 8 * 784, 40_000, 10**6, lambda side: (99, 10**5), 7840)


@settings(max_examples=200, deadline=None)
@given(
    budget=st.integers(10**7, 10**10),
    threads=st.integers(1, 64),
    tile=st.none() | st.integers(16, 2000),
    profile=st.integers(0, 10**6),
    cost=st.integers(0, 10**9),
    calls=st.integers(1, 100),
)
def test_plans_fit(
    budget: int, threads: int, tile: int | None, profile: int, cost: int, calls: int
) -> None:
    sizes = replace(SIZES, profile=profile, element_layers=cost, calls=lambda side: (calls, 10**5))
    try:
        plan = solve(sizes, budget, threads, tile)
    except MemoryError:
        least = 16 if cost > 5e10 / 64**2 else 64
        assert sizes.need(tile or least, 1, 1 + columns_in_use(1, calls)) > budget
        return
    assert sizes.need(plan.tile, plan.threads, plan.group + plan.columns) <= budget
    assert 1 <= plan.threads <= threads
    assert plan.group >= 1
    assert plan.columns == columns_in_use(plan.threads, calls) >= 2
    assert tile in (None, plan.tile)


def test_columns_are_held_for_all_tasks_under_way() -> None:
    """Four for each thread; no more tiles are open than that all threads have work."""
    for threads, calls, columns in ((1, 99, 2), (8, 99, 2), (8, 16, 3), (8, 6, 7), (8, 1, 10)):
        assert columns_in_use(threads, calls) == columns


def test_what_a_plan_takes() -> None:
    sizes = Sizes(
        n1=1000,
        n2=1000,
        symmetric=True,
        entry=4,
        matrices=6,
        sample=10**3,
        profile=10**6,
        scratch=10**9,
        calls=lambda side: (9, 10**4 * side),
        element_layers=1,
    )
    megabyte = 2**20  # small things of a thread
    tile = 10 * 10 * 4
    # Three threads: each has finished a tile of six matrices, and two more are handed out; of the
    # one that a thread more stores there are a whole, an encoded and a checked copy of a matrix,
    # and which of its entries are NaN; and one of another store. Five blocks of profiles are held
    # and one is made, of samples that are there thrice; two holes of a block are kept by the
    # allocator. 100 x 100 tiles are in some sets, with six checksums each.
    need = (
        3 * (10**9 + 10**5 + 10 * 10 + megabyte)
        + megabyte
        + 5 * 6 * tile
        + 4 * tile
        + (6 + 2) * 10**7
        + 3 * 10**4
        + 100**2 * (8 + 4 * 6)
    )
    assert sizes.need(10, 3, 5) == need
    tiles = 100 * 101 // 2
    # Behind a URL there are lists of what is stored; workers have tasks, and these keys of tiles.
    assert replace(sizes, listed=1000).need(10, 3, 5) == need + tiles * 6 * 1000
    assert replace(sizes, handed_out=True).need(10, 3, 5) == need + tiles * 128 + 4096 * 4096
    assert replace(sizes, handed_out=True).bookkeeping(1000) == 8 + 4 * 6 + 128 + 4096


def test_plans_use_what_there_is() -> None:
    plan = solve(SIZES, 10**10, 8, None)
    assert (plan.tile, plan.threads) == (1024, 8)
    assert (plan.group, plan.columns) == (10, 2)  # all profiles, and no more
    assert solve(replace(SIZES, element_layers=10**7), 10**10, 8, None).tile == 64
    assert solve(replace(SIZES, n1=500, n2=500), 10**10, 8, None).tile == 64
    assert solve(replace(SIZES, n1=100, n2=100), 10**10, 8, None).tile == 64
    for cost, side in ((3 * 10**7, 32), (10**8, 16), (10**10, 16)):
        costly = replace(SIZES, element_layers=cost)
        assert solve(costly, 10**10, 8, None).tile == side
        assert solve(costly, 10**10, 8, 64).tile == 64  # of a store that is there
    assert solve(SIZES, 5 * 10**7, 8, None).tile < 1024
    assert solve(SIZES, 2.2e7, 8, None).threads < 8
    wide = replace(SIZES, n2=100, symmetric=False)
    assert solve(wide, 10**10, 8, None).tile == 1024  # the longer side has several


@pytest.mark.parametrize(("tile", "remedy"), [(None, ""), (200, ", or use a smaller tile for")])
def test_the_least_memory_is_enough(
    tile: int | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "held_memory", lambda: 100 * 2**20)
    with pytest.raises(
        MemoryError, match=rf"and 0 MiB are left of memory: raise memory{remedy}"
    ) as told:
        solve(SIZES, 10, 8, tile)
    assert ("smaller tile" in str(told.value)) == (tile is not None)
    assert "what the process holds, 100 MiB, and" in str(told.value)
    least = int(str(told.value).split(" MiB at least")[0].split()[-1])
    for engines in (1, 3):
        with pytest.raises(MemoryError, match=r"'(.*)MiB' would be enough now") as told:
            solve(SIZES, 10, 8, tile, engines)
        enough = int(str(told.value).split("'")[1].removesuffix("MiB"))
        assert abs(enough - 100 - engines * least) <= engines
        budget = (parse_memory(f"{enough}MiB") - 100 * 2**20) / engines
        assert solve(SIZES, budget, 8, tile).threads == 1
    assert solve(SIZES, (least + 1) * 2**20, 8, tile).threads == 1
    with pytest.raises(MemoryError):
        solve(SIZES, (least - 1) * 2**20, 8, tile)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6GB", 6 * 10**9),
        ("512MiB", 2**29),
        ("1.5 GB", 15 * 10**8),
        ("7", 7),
        (10, 10),
        ("2Ki", 2048),
    ],
)
def test_memory_is_read(text: Any, value: int) -> None:
    assert parse_memory(text) == value


@pytest.mark.parametrize("wrong", ["", "GB", "-1GB", "6 gb", "6GBs", "1e9", "0", 0, -5, "nan"])
def test_memory_that_is_none(wrong: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a number of bytes, or text such as '6GB'"):
        parse_memory(wrong)
    for other in (True, 1.5, None, [1]):
        with pytest.raises(TypeError, match="memory must be a number of bytes"):
            parse_memory(other)


def test_what_is_held_counts() -> None:
    held = held_memory()
    assert 10**7 < held < 10**11
    assert abs(remaining(10**12) - (10**12 - held)) < held / 2
    available = available_memory()
    assert available is not None
    assert 0.4 * available < remaining(None) < 0.7 * available


@pytest.mark.parametrize("sizes", [(40, 70), (70, 40)])
def test_the_diagonal_of_a_matrix_that_is_not_square(
    sizes: tuple[int, int], tmp_path: Path
) -> None:
    k = wl.gram(VANILLA, X[: sizes[0]], X[-sizes[1] :], store=tmp_path / "k.zarr", tile=16)
    assert np.array_equal(k.diagonal(), np.array(k).diagonal())


# ---------------------------------------------------------------- progress and options


def test_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    states: list[Progress] = []
    path = tmp_path / "k.zarr"
    wl.gram([VANILLA, GAP], X, store=path, tile=32, progress=states.append)
    last = states[-1]
    assert (last.tiles, last.tiles_total, last.tiles_found) == (6, 6, 0)
    assert last.pairs == last.pairs_total == 75 * 76 // 2
    assert [s.tiles for s in states] == sorted(s.tiles for s in states)
    assert last.element_layers_per_second > last.pairs_per_second > 0
    tiles = open_tiles(path)
    tiles.delete((0, 0))
    states.clear()
    wl.gram([VANILLA, GAP], X, store=path, progress=states.append)
    assert (states[-1].tiles, states[-1].tiles_found, states[-1].pairs) == (6, 5, 32 * 33 // 2)
    tiles.delete((0, 0))
    capfd.readouterr()
    wl.gram([VANILLA, GAP], X, store=path, progress=True)  # not a terminal: plain lines
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("6 of 6 tiles, ")
    assert err.count("\n") == 1
    assert "element-layers/s, 0 s left" in err


def test_the_time_left_is_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    tracker = Tracker(tiles_total=10, tiles_found=4, pairs_total=600, element_layers=50)
    assert tracker.add(0, 0).seconds_left is None
    now[0] = 102.0
    state = tracker.add(200, 2)
    assert (state.tiles, state.seconds_left) == (6, 4.0)
    assert (state.pairs_per_second, state.element_layers_per_second) == (100, 5000)
    assert str(replace(state, seconds_left=3700.0)).endswith(", 1 h 01 min left")
    assert str(state) == "6 of 10 tiles, 100 pairs/s, 5 k element-layers/s, 4 s left"


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"tile": 8}, ValueError, "tile must be from 16 to 16384 samples, got 8"),
        ({"tile": 2**15}, ValueError, "tile must be from 16 to 16384 samples, got 32768"),
        ({"tile": 32.0}, TypeError, "tile must be an integer or None, got 32.0"),
        ({"tile": True}, TypeError, "tile must be an integer or None, got True"),
        ({"memory": "much"}, ValueError, "memory must be a number of bytes"),
        ({"timeout": 0}, ValueError, "timeout must be a positive number of seconds or None"),
        ({"executor": 5}, TypeError, "executor must be a concurrent.futures.Executor, a dask"),
        ({"progress": 1}, TypeError, "progress must be True, False or a callable, got 1"),
        ({"dtype": "float16"}, ValueError, 'dtype must be "float32" or "float64"'),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"x1": X[0]}, ValueError, r"x1 must have shape \(n, h, w, c\)"),
        ({"x1": X * np.nan}, ValueError, "x1 must be finite"),
    ],
)
def test_wrong_options(option: Any, error: Any, message: str, tmp_path: Path) -> None:
    call: dict[str, Any] = {"net": VANILLA, "x1": X, "store": tmp_path / "k.zarr"}
    with pytest.raises(error, match=message):
        wl.gram(**(call | option))
    assert not (tmp_path / "k.zarr" / "zarr.json").exists()


def test_a_finished_store_is_opened_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k.zarr"
    values = np.array(wl.gram(VANILLA, X, store=path, tile=16))

    def refuse(self: Any) -> Any:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(type(open_objects(path)), "locked", refuse)
    assert np.array_equal(np.array(wl.gram(VANILLA, X, store=path)), values)
    with pytest.raises(ValueError, match="Give another path, or delete that one"):
        wl.gram(VANILLA, X[::-1], store=path)
    for options in ({"verify": True}, {"store": tmp_path / "new.zarr"}):
        with pytest.raises(OSError, match="read-only"):
            wl.gram(VANILLA, X, **({"store": path} | options))


def test_workers_in_another_folder_find_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, os.chdir, (tmp_path / "there",)) as executor:
        k = wl.gram(VANILLA, X, store="k.zarr", tile=16, executor=executor)
        assert np.array_equal(np.array(k), wl.kernel(VANILLA, X))
    assert not list((tmp_path / "there").iterdir())
