"""What a power cut would leave: files and names count only when they were synced, in that order."""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widelimit as wl
from widelimit.files import atomic_file, atomic_folder, check_place, make_folder, write_atomically
from widelimit.job import Job
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import TileStore
from widelimit.solvers import factorise, solve_conjugate


class Disk:
    """What has reached the disk: content of files and of folders, by their numbers."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, dict[str, int]] = {}
        self.events: list[str] = []
        self.fault: Callable[[str], None] = lambda event: None
        sync, replace, rename = os.fsync, os.replace, os.rename

        def fsync(handle: int) -> None:
            number = os.fstat(handle).st_ino
            is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
            self.note("sync folder" if is_folder else "sync file")
            sync(handle)
            if is_folder:
                entries = os.scandir(handle)
                self.folders[number] = {entry.name: entry.inode() for entry in entries}
            else:
                self.files[number] = Path(f"/proc/self/fd/{handle}").read_bytes()

        def renamed(call: Callable[..., None], source: Any, target: Any) -> None:
            self.note("rename")
            # Else a name could lead to what is not there.
            assert self.lost(Path(source)) == []
            call(source, target)

        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", lambda *ends: renamed(replace, *ends))
        patch.setattr(os, "rename", lambda *ends: renamed(rename, *ends))

    def note(self, event: str) -> None:
        self.fault(event)
        self.events.append(event)

    def lost(self, path: Path | None = None) -> list[Path]:
        """Return the files and folders that a power cut would take, or parts of them."""
        path = self.root if path is None else path
        number = path.stat().st_ino
        if path.is_file():
            return [] if self.files.get(number) == path.read_bytes() else [path]
        kept = self.folders.get(number, {})
        missing: list[Path] = []
        for entry in path.iterdir():
            if entry.name == ".lock":  # says nothing after a crash
                continue
            if kept.get(entry.name) != entry.stat().st_ino:
                missing.append(entry)
            missing += self.lost(entry)
        return missing


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Disk]:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system has no /proc")
    return Disk(monkeypatch, tmp_path)


WRITTEN = ["sync file", "rename", "sync folder"]


def test_a_file_is_synced_then_named_then_its_folder_is_synced(disk: Disk) -> None:
    for content in ("one", "two"):
        write_atomically(disk.root / "a", content)
        assert disk.events == WRITTEN
        assert disk.lost() == []
        disk.events.clear()
    (disk.root / "b").write_text("not by us")
    assert disk.lost() == [disk.root / "b"] * 2  # the witness can fail


def test_folders_are_synced_with_those_that_they_lie_in(disk: Disk) -> None:
    make_folder(disk.root / "a" / "b" / "c")
    write_atomically(disk.root / "a" / "b" / "c" / "file", "content")
    assert disk.lost() == []
    disk.events.clear()
    make_folder(disk.root / "a" / "b")
    assert disk.events == []
    with pytest.raises(FileExistsError):
        make_folder(disk.root / "a" / "b" / "c" / "file")


def test_a_folder_appears_when_all_is_in_it(disk: Disk) -> None:
    path = disk.root / "a"
    with atomic_folder(path) as folder:
        for name in "xy":
            with atomic_file(folder / name) as file:
                file.write(b"content")
        assert folder.name.endswith(".partial")
    assert (path / "y").read_text() == "content"
    assert disk.lost() == []
    assert disk.events == [*WRITTEN, *WRITTEN, "rename", "sync folder"]
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as folder:
        write_atomically(folder / "z", "other")
    assert os.listdir(disk.root) == ["a"]
    assert sorted(os.listdir(path)) == ["x", "y"]


def test_a_link_to_a_folder_that_is_not_there_yet_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("place")
    with atomic_folder(tmp_path / "link") as folder:
        write_atomically(folder / "new", "")
    assert sorted(os.listdir(tmp_path)) == ["link", "place"]
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "place") == ["new"]


@pytest.mark.parametrize("step", range(3))
def test_a_file_that_cannot_be_written(disk: Disk, step: int) -> None:
    """What was there is there, or, if only the folder could not be synced, what is new."""
    write_atomically(disk.root / "a", "old")
    disk.events.clear()

    def fail(event: str) -> None:
        if len(disk.events) == step:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.fault = fail
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(disk.root / "a", "new")
    assert (disk.root / "a").read_text() == ("new" if step == 2 else "old")
    assert os.listdir(disk.root) == ["a"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_system_that_syncs_no_folders(disk: Disk, number: int) -> None:
    def refuse(event: str) -> None:
        if event == "sync folder":
            raise OSError(number, os.strerror(number))

    disk.fault = refuse
    write_atomically(disk.root / "a", "content")
    assert (disk.root / "a").read_text() == "content"


# ---------------------------------------------------------------- what is written by the package

X = np.random.default_rng(0).random((20, 3))
Y = X[:, 0]
K = X @ X.T + np.eye(20)


def save(folder: Path) -> None:
    model = wl.NTKRegressor(ridge=0.1).fit(X, Y)
    wl.save_model(model, folder / "model")
    wl.save_model(model, folder / "model", overwrite=True)


def store(folder: Path) -> None:
    tiles = TileStore.create(
        open_objects(folder / "k.zarr"), (2, 20, 20), 16, "float32", "full", {"a": 1}
    )
    for key in tiles.grid.tiles():
        rows, columns = tiles.grid.extent(key)
        tiles.write(key, np.broadcast_to(K[rows, columns], (2, *K[rows, columns].shape)))
    tiles.with_manifest({"a": 2})


def factor(folder: Path) -> None:
    factorise(K, store=folder / "l.zarr", tile=16).inverse_diagonal()


def matrix(folder: Path) -> None:
    np.save(folder / "x.npy", X)
    wl.kernel(wl.ntk_dense(2), X)
    Job.prepare(str(folder / "x.npy"), str(folder / "k.npy"), [wl.ntk_dense(2)]).run()
    (folder / "x.npy").unlink()


@pytest.mark.parametrize(
    "write",
    [
        save,
        store,
        factor,
        matrix,
        lambda folder: wl.gram(wl.ntk_dense(2), X, store=folder / "a" / "b" / "k.zarr"),
        lambda folder: solve_conjugate(K, Y, checkpoint=folder / "a" / "b"),
    ],
)
def test_all_that_is_written_is_on_the_disk(disk: Disk, write: Callable[[Path], object]) -> None:
    write(disk.root)
    assert [path.suffix for path in disk.root.rglob("*") if path.is_file()]
    assert disk.lost() == []


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "no folder"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "folder":
        path.mkdir()
    else:
        path = path / "y"
    before = list(tmp_path.iterdir())
    for call in (check_place, lambda path: write_atomically(path, "")):
        with pytest.raises(OSError, match=r"another( path)?: '.*/x'$"):
            call(path)
    assert list(tmp_path.iterdir()) == before
    check_place(tmp_path / "new")


def test_names_that_are_no_utf_8_cost_no_report(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", json.dumps(["\udcff", "é"], ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == ["\udcff", "é"]
