"""Stores of tiles: round trips, other readers, and what happens when a disk or a file is bad."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import change_metadata

import widelimit as wl
from widelimit.files import atomic_file
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import StoreError, TileStore
from widelimit.matrices.tiles import Grid, KeySet

HALF = f".{'a' * 16}.{'0' * 32}.partial"  # a temporary name
LEADING = [(), (2,), (2, 3)]


def matrices(leading: tuple[int, ...], n1: int, n2: int, region: str, dtype: str) -> np.ndarray:
    values = np.random.default_rng(n1 + n2).normal(size=(*leading, n1, n2)).astype(dtype)
    if region == "upper":
        values = values + values.swapaxes(-1, -2)
    return np.tril(values) if region == "lower" else values


def fill(url: str, values: np.ndarray, tile: int, region: str) -> TileStore:
    store = TileStore.create(
        open_objects(url), values.shape, tile, values.dtype.name, region, {"who": "test"}
    )
    for key in store.grid.tiles():
        rows, columns = store.grid.extent(key)
        assert store.write(key, values[..., rows, columns]) == store.checksums(key)
    return store


@pytest.fixture
def store(tmp_path: Path) -> TileStore:
    """A symmetric matrix of 70 in tiles of 32: six tiles, ragged."""
    return fill(str(tmp_path / "k.zarr"), matrices((), 70, 70, "upper", "float32"), 32, "upper")


def chunk(store: TileStore, key: str) -> Path:
    return Path(store.objects.name) / "c" / key


# ---------------------------------------------------------------- round trips


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_block_is_what_was_written(data: st.DataObject) -> None:
    region = data.draw(st.sampled_from(["full", "upper", "lower"]))
    n1 = data.draw(st.integers(1, 40))
    n2 = n1 if region != "full" else data.draw(st.integers(1, 40))
    leading = data.draw(st.sampled_from(LEADING))
    values = matrices(leading, n1, n2, region, data.draw(st.sampled_from(["float32", "float64"])))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # thousands of small tiles
        made = fill(f"{folder}/k.zarr", values, data.draw(st.integers(1, 45)), region)
        store = TileStore.open(made.objects)
        assert (store.shape, store.region, store.manifest) == (
            values.shape,
            region,
            {"who": "test"},
        )
        assert store.finished() == set(store.grid.tiles())
        i, j = sorted(data.draw(st.tuples(st.integers(0, n1), st.integers(0, n1))))
        k, m = sorted(data.draw(st.tuples(st.integers(0, n2), st.integers(0, n2))))
        for place in store.places:
            np.testing.assert_array_equal(
                store.block(slice(i, j), slice(k, m), place), values[(*place, slice(i, j))][:, k:m]
            )


def test_the_round_trip_notices_a_transposed_tile(store: TileStore) -> None:
    values = store.block(slice(0, 70), slice(0, 70))
    store.write((0, 1), store.read((0, 1)).T)
    assert (store.block(slice(0, 70), slice(0, 70)) != values).any()


@pytest.mark.parametrize("url", ["folder", "file", "memory"])
@pytest.mark.parametrize("leading", LEADING)
def test_zarr_reads_it(url: str, leading: tuple[int, ...], tmp_path: Path) -> None:
    path = {"folder": f"{tmp_path}/k.zarr", "file": f"file://{tmp_path}/k.zarr"}.get(
        url, f"memory://{tmp_path}/k.zarr"
    )
    values = matrices(leading, 50, 40, "full", "float64")
    fill(path, values, 16, "full")
    array: Any = zarr.open_array(path, mode="r")
    np.testing.assert_array_equal(array[...], values)
    assert array.attrs["widelimit"]["who"] == "test"


def test_zarr_reads_what_is_not_there_as_nan_and_notices_damage(store: TileStore) -> None:
    array: Any = zarr.open_array(store.objects.name, mode="r")
    assert np.isnan(array[40, 0])  # below the diagonal
    assert not np.isnan(array[0, 40])
    flip(chunk(store, "0/1"), 100)
    with pytest.raises(ValueError, match="checksum"):
        array[0, 40]


def test_objects_in_memory_behave_like_a_folder(tmp_path: Path) -> None:
    for url in (str(tmp_path / "o"), "memory://objects"):
        objects = open_objects(url)
        assert dict(objects.sizes("c")) == {}
        with pytest.raises(FileNotFoundError):
            objects.read("c/a", 9)
        with objects.locked():
            objects.write("c/a", b"12345")
            objects.write("c/b/d", b"1")
            objects.write("c/a", b"123456")
        assert (objects.read("c/a", 6), objects.read_end("c/a", 4)) == (b"123456", b"3456")
        assert dict(objects.sizes("c")) == {"c/a": 6, "c/b/d": 1}
        objects.delete("c/a")
        objects.delete("c/a")
        assert dict(objects.sizes("c")) == {"c/b/d": 1}
        assert objects.read_end("c/b/d", 4) == b"1"  # all that there is
        assert not objects.in_use()


def test_what_is_not_complete_is_not_counted(store: TileStore) -> None:
    before = dict(store.objects.sizes("c"))
    (chunk(store, "0") / HALF).write_bytes(b"half")
    assert dict(store.objects.sizes("c")) == before


def test_sizes_are_not_those_of_an_earlier_look() -> None:
    objects: Any = open_objects("memory://asked-again")
    asked: list[bool] = []
    objects._fs = type("Fs", (), {"find": objects._fs.find})()  # of S3 and others, which keep lists
    objects._fs.invalidate_cache = lambda: asked.append(True)
    assert dict(objects.sizes("c")) == {}
    assert asked == [True]


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 60),
    tile=st.integers(1, 20),
    group=st.integers(1, 9),
    region=st.sampled_from(["full", "upper", "lower"]),
)
def test_an_order_is_a_permutation_that_needs_few_blocks(
    n: int, tile: int, group: int, region: Any
) -> None:
    grid = Grid(n, n, tile, region)
    keys = list(grid.tiles())
    order = list(grid.order(set(keys), group))
    assert sorted(order) == keys
    assert sum(map(grid.pairs, keys)) == (n * n if region == "full" else n * (n + 1) // 2)
    loads = 0
    held: list[tuple[int, int]] = []  # least recently used first, as the engine holds profiles
    for i, j in order:
        for block in ((0, i), (1, j)):
            if block in held:
                held.remove(block)
            else:
                loads += 1
            held = [*held, block][-(group + 2) :]
    rows, columns = grid.shape
    assert loads <= rows + columns * -(-rows // group)


@settings(max_examples=50, deadline=None)
@given(
    n1=st.integers(1, 60),
    n2=st.integers(1, 60),
    tile=st.integers(1, 20),
    region=st.sampled_from(["full", "upper", "lower"]),
    seed=st.integers(0, 99),
)
def test_pairs_of_some_tiles_are_the_sum_of_each(
    n1: int, n2: int, tile: int, region: Any, seed: int
) -> None:
    grid = Grid(n1, n2 if region == "full" else n1, tile, region)
    rng = np.random.default_rng(seed)
    chosen = {key for key in grid.tiles() if rng.random() < 0.5}
    keys = KeySet(grid)
    for key in chosen:
        keys.add(key)
    assert (list(keys), len(keys)) == (sorted(chosen), len(chosen))
    assert set(keys.others()) == set(grid.tiles()) - chosen
    assert keys.pairs() == sum(map(grid.pairs, chosen))


# ---------------------------------------------------------------- damage


def flip(path: Path, byte: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@settings(max_examples=40, deadline=None)
@given(byte=st.integers(0, 32 * 32 * 4 + 3), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(byte: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        values = matrices((), 70, 70, "upper", "float32")
        store = fill(f"{folder}/k.zarr", values, 32, "upper")
        flip(chunk(store, "0/1"), byte, bit)
        with pytest.raises(StoreError, match=r"tile \(0, 1\) of .* is damaged.*verify=True"):
            store.read((0, 1))
        with pytest.raises(StoreError, match="is damaged"):
            store.block(slice(40, 42), slice(0, 3))  # its mirror image
        assert store.damaged(sorted(store.finished())) == [(0, 1)]
        np.testing.assert_array_equal(store.read((1, 1)), values[32:64, 32:64])


@pytest.mark.parametrize("length", [0, 3, 4, 100, 32 * 32 * 4, 32 * 32 * 4 + 3])
def test_a_truncated_tile_is_not_there(store: TileStore, length: int) -> None:
    os.truncate(chunk(store, "1/2"), length)
    assert set(store.grid.tiles()) - store.finished() == {(1, 2)}
    with pytest.raises(StoreError, match=r"tile \(1, 2\) of .* is damaged"):
        store.read((1, 2))


def test_a_missing_tile(store: TileStore) -> None:
    store.delete((0, 2))
    assert set(store.grid.tiles()) - store.finished() == {(0, 2)}
    with pytest.raises(StoreError, match=r"tile \(0, 2\) is not in .*: run the call that makes it"):
        store.block(slice(64, 70), slice(0, 10))


def test_a_tile_needs_all_matrices(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "k.zarr"), matrices((2, 3), 9, 9, "full", "float64"), 8, "full")
    chunk(store, "1/2/0/1").unlink()
    assert set(store.grid.tiles()) - store.finished() == {(0, 1)}


@pytest.mark.parametrize(
    "change",
    [
        {"zarr_format": 2},
        {"shape": [70]},
        {"shape": [70, 71]},
        {"shape": [70, -70]},
        {"shape": [0, 0]},
        {"shape": [2**31, 2**31]},
        {
            "shape": [1, 1, 1, 70, 70],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, 1, 32, 32]}},
        },
        {"shape": [2**30, 2**30]},
        {"shape": [70.0, 70]},
        {"shape": [True, 70]},
        {"data_type": "float16"},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [32, 16]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**20, 2**20]}}},
        {"chunk_grid": 5},
        {"attributes": {}},
        {"attributes": {"widelimit": {"region": "upper"}}},
        {"region": "left"},
    ],
)
def test_foreign_metadata_are_refused(store: TileStore, change: dict[str, Any]) -> None:
    path = Path(store.objects.name)
    if "region" in change:
        change_metadata(path, lambda metadata: metadata["attributes"]["widelimit"].update(change))
    elif "attributes" in change:
        metadata = json.loads((path / "zarr.json").read_text()) | change
        (path / "zarr.json").write_text(json.dumps(metadata))
    else:
        change_metadata(path, lambda metadata: metadata.update(change))
    with pytest.raises(StoreError, match="must be a matrix that widelimit wrote, it is not"):
        TileStore.open(store.objects)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 10**5, b'"' * 2**25])
def test_metadata_that_are_none(store: TileStore, content: bytes) -> None:
    (Path(store.objects.name) / "zarr.json").write_bytes(content)
    with pytest.raises(StoreError, match="must be a matrix that widelimit wrote"):
        TileStore.open(store.objects)


def test_what_could_not_be_opened_is_not_made(tmp_path: Path, store: TileStore) -> None:
    objects = open_objects(str(tmp_path / "new.zarr"))
    with pytest.raises(StoreError, match="more than 16,777,216 tiles: use larger ones"):
        TileStore.create(objects, (10**6, 10**6), 16, "float32", "full", {})
    with pytest.raises(ValueError, match="16,777,216 bytes of metadata"):
        TileStore.create(objects, (9, 9), 16, "float32", "full", {"a": "x" * 2**24})
    with pytest.raises(FileNotFoundError):
        TileStore.open(objects)
    with pytest.raises(StoreError, match="its metadata take"):
        store.with_manifest({"a": "x" * 2**24})
    assert TileStore.open(store.objects).manifest == {"who": "test"}


def test_nothing_there(tmp_path: Path) -> None:
    for url in (str(tmp_path / "no.zarr"), "memory://nothing/there.zarr"):
        with pytest.raises(FileNotFoundError, match="there is no matrix of widelimit"):
            TileStore.open(open_objects(url))


def test_something_else_is_not_overwritten(store: TileStore) -> None:
    with pytest.raises(FileExistsError, match="there is a Zarr array already"):
        TileStore.create(store.objects, (5, 5), 5, "float32", "full", {})
    assert TileStore.open(store.objects).shape == (70, 70)


# ---------------------------------------------------------------- a bad disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 KiB: room for five tiles of 32 x 32 in float32, or eleven files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)]
    command = mount if os.geteuid() == 0 else ["sudo", "-n", *mount]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # no right to mount: the same error from the call that would meet it
        patch = pytest.MonkeyPatch()
        write, room = os.fsync, iter(range(11))

        def fsync(handle: int) -> None:
            if stat.S_ISREG(os.fstat(handle).st_mode) and next(room, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(handle)

        patch.setattr(os, "fsync", fsync)
        yield folder
        patch.undo()
        return
    yield folder
    subprocess.run([*command[:-7], "umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    values = matrices((), 320, 320, "full", "float32")
    store = TileStore.create(
        open_objects(str(small_disk / "k.zarr")), values.shape, 32, "float32", "full", {}
    )
    written = []

    def write_all() -> None:
        for key in store.grid.tiles():
            store.write(key, values[store.grid.extent(key)])
            written.append(key)

    with pytest.raises(OSError, match="the finished tiles are kept: mend this, and run") as caught:
        write_all()
    assert caught.value.errno == errno.ENOSPC
    # Of a hundred tiles each takes two blocks of 4 KiB, and its seal one.
    assert re.search(r"full: 1\.2 MB are needed in .*/k\.zarr, while tile", str(caught.value))
    assert len(written) >= 3
    assert store.finished() == set(written)  # what was not finished does not look as if
    for key in written:
        np.testing.assert_array_equal(store.read(key), values[store.grid.extent(key)])
    assert not list(small_disk.rglob(".*.partial"))


def test_the_room_of_tiles(tmp_path: Path) -> None:
    """What the file system says that tiles take, for six matrices, in files of whole blocks."""
    values = matrices((2, 3), 70, 70, "upper", "float32")
    store = TileStore.create(
        open_objects(str(tmp_path / "k.zarr")), values.shape, 32, "float32", "upper", {}
    )
    keys = set(store.grid.tiles())
    whole = store.room(keys)
    fill(str(tmp_path / "other.zarr"), values, 32, "upper")
    files = [
        path
        for path in (tmp_path / "other.zarr").rglob("*")
        if path.is_file() and path.name.isdigit()
    ]
    assert whole == sum(-(-path.stat().st_size // 4096) * 4096 for path in files) > 0
    assert len(files) == 6 * (2 * 3 + 1)
    rows, columns = store.grid.extent((0, 1))
    store.write((0, 1), values[..., rows, columns])
    assert store.room(keys - {(0, 1)}) == whole * 5 // 6
    store.objects.delete("c/1/2/0/1")
    assert 0 < store.room({(0, 1)}) < whole / 6
    assert store.room(set()) == 0


def test_permission_denied() -> None:
    folder = Path(tempfile.mkdtemp())
    nobody = 65534
    try:
        values = matrices((), 70, 70, "full", "float32")
        store = fill(str(folder / "k.zarr"), values, 32, "full")
        store.delete((1, 1))
        (folder / "k.zarr" / "c" / "1").chmod(0o555)
        folder.chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.seteuid(nobody)  # the rights of a file mean nothing to root
        try:
            with pytest.raises(PermissionError, match=r"while tile \(1, 1\) was written; the fin"):
                store.write((1, 1), values[32:64, 32:64])
        finally:
            if root:
                os.seteuid(0)
        (folder / "k.zarr" / "c" / "1").chmod(0o755)
        assert set(store.grid.tiles()) - store.finished() == {(1, 1)}
    finally:
        shutil.rmtree(folder)


def test_a_failed_write_leaves_nothing(store: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.read((0, 1)).copy()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error, while tile"):
        store.write((0, 1), before + 1)
    np.testing.assert_array_equal(store.read((0, 1)), before)
    assert not list(Path(store.objects.name).rglob(".*.partial"))


# ---------------------------------------------------------------- two writers

HOLD = """
import sys, time
from widelimit.matrices.objects import open_objects
with open_objects(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_writers(store: TileStore) -> None:
    url = store.objects.name
    command = [sys.executable, "-c", HOLD, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        limit = threading.Timer(50, other.kill)  # of whatever waits below, for it or for the lock
        limit.start()
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            assert store.objects.in_use()
            match = (
                rf"another process is writing there \(process {other.pid} on .*\): wait until it"
            )
            with pytest.raises(BlockingIOError, match=match), open_objects(url).locked():
                pass
        finally:
            limit.cancel()
            other.kill()
    assert not store.objects.in_use()
    with open_objects(url).locked():  # a lock goes with its process
        assert store.objects.in_use()


def test_what_a_killed_process_left_is_cleaned_away(store: TileStore) -> None:
    left = [chunk(store, "0") / HALF.replace("0" * 32, digit * 32) for digit in "01"]
    left[0].write_bytes(b"half")
    assert store.finished() == set(store.grid.tiles())
    with store.objects.locked():
        assert not left[0].exists()
        left[1].write_bytes(b"half")  # by a worker that is killed meanwhile
    assert not left[1].exists()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("ends", ["finishes", "is killed"])
def test_what_another_process_is_writing_is_not_cleaned_away(store: TileStore, ends: str) -> None:
    """A worker of an earlier run lives on, while another run has the lock."""
    path = chunk(store, "0") / "0"
    content = path.read_bytes()
    path.unlink()
    (told, tell), (wait, go_on) = os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            with atomic_file(path) as file:
                file.write(content[:10])
                os.write(tell, b"half")
                os.read(wait, 1)
                file.write(content[10:])
            os._exit(0)
        finally:
            os._exit(1)
    assert os.read(told, 4) == b"half"
    with store.objects.locked():
        pass
    assert len(list(path.parent.glob(".*.partial"))) == 1
    if ends == "is killed":
        os.kill(worker, signal.SIGKILL)
    os.write(go_on, b"!")
    status = os.waitpid(worker, 0)[1]
    assert (status == 0) == (ends == "finishes")
    with store.objects.locked():
        pass
    assert not list(path.parent.glob(".*.partial"))
    assert (path.read_bytes() == content) if ends == "finishes" else not path.exists()


def test_paths_of_this_machine_have_several_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "k.zarr"
    for form in (path, str(path), f"file://{path}", "~/k.zarr"):
        assert open_objects(form).name == str(path)


def test_a_relative_path_stays_that_of_the_folder_where_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = matrices((), 40, 40, "full", "float32")
    store = fill("k.zarr", values, 16, "full")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.objects.name == "k.zarr"
    assert np.array_equal(store.block(slice(0, 40), slice(0, 40)), values)
    store.delete((0, 1))
    with pytest.raises(StoreError, match=r"tile \(0, 1\) is not in k\.zarr"):
        store.read((0, 1))
    assert not list(Path().iterdir())


def test_a_store_that_lacks_one_tile_is_not_finished(tmp_path: Path) -> None:
    values = matrices((), 40, 40, "upper", "float32")
    objects = open_objects(tmp_path / "k.zarr")
    store = TileStore.create(objects, values.shape, 16, "float32", "upper", {})
    for key in store.grid.tiles():
        store.write(key, values[store.grid.extent(key)])
    store.check_finished()
    store.delete((0, 1))
    assert store.missing() == {(0, 1)}
    with pytest.raises(StoreError, match="lacks 1 of its tiles: run the call that makes it again"):
        store.check_finished()


ORPHAN = """
import os, sys, time
from widelimit.matrices.objects import open_objects
with open_objects(sys.argv[1]).locked():
    if os.fork() == 0:
        print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_not_that_of_forked_processes(store: TileStore) -> None:
    url = store.objects.name
    command = [sys.executable, "-c", ORPHAN, url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            assert store.objects.in_use()
            other.kill()
            other.wait()  # its child lives on
            assert not store.objects.in_use()
            with open_objects(url).locked():
                assert store.objects.in_use()
        finally:
            os.killpg(other.pid, signal.SIGKILL)


def test_who_only_looks_stops_no_writer(store: TileStore) -> None:
    stop, looks = threading.Event(), [0, 0]

    def look(number: int) -> None:
        objects = open_objects(store.objects.name)
        while not stop.is_set():
            objects.in_use()
            looks[number] += 1

    threads = [threading.Thread(target=look, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            with store.objects.locked():
                pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert min(looks) > 10


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    files = [folder / "cats" / HALF, folder / "notes.txt"]
    for file in files:
        file.write_bytes(b"mine")
    objects = open_objects(folder)
    match = r"there are other files in this folder \(cats, notes.txt\): give the path of a store"
    with pytest.raises(FileExistsError, match=match), objects.locked():
        pass
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == sorted(files)
    with pytest.raises(FileExistsError, match="there are other files in this folder"):
        wl.gram(wl.cntk_vanilla(2), np.ones((3, 2, 2, 1)), store=folder)


@pytest.mark.parametrize("verify", [False, True])
def test_what_only_has_the_names_of_a_store_is_not_touched(verify: bool, tmp_path: Path) -> None:
    """An array of somebody else, and a folder of inputs."""
    zarr.create_array(store=str(tmp_path / "a"), shape=(4, 4), dtype="float32")[...] = 1
    (tmp_path / "b" / "inputs").mkdir(parents=True)
    (tmp_path / "b" / "inputs" / "x1.npy").write_bytes(b"mine")
    left = tmp_path / "a" / "c" / HALF
    left.write_bytes(b"mine")

    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")}

    before = state()
    for name, error in (("a", StoreError), ("b", FileExistsError)):
        with pytest.raises(
            error, match=r"other files in this folder \(inputs\)|that widelimit wrote"
        ):
            wl.gram(wl.ntk_dense(2), np.ones((3, 2)), store=tmp_path / name, verify=verify)
    assert state() == before
