"""What a power cut would leave: files and names count only when they were synced, in that order."""

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Usage, disk_of

import widelimit as wl
from widelimit.files import (
    atomic_file,
    atomic_folder,
    check_file,
    check_folder,
    check_room,
    make_folder,
    own_folder,
    remove_abandoned,
    write_atomically,
)
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


def test_errors_of_a_handle_name_the_file(disk: Disk) -> None:
    def fail(event: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.fault = fail
    with pytest.raises(OSError, match=f"Input/output error: '{disk.root / 'a'}'"):
        write_atomically(disk.root / "a", "new")
    with pytest.raises(OSError, match=r"Input/output error: '.*b'"), atomic_folder(disk.root / "b"):
        pass


# ---------------------------------------------------------------- what is half-written

HALF, OTHER = (
    f".{hashlib.sha256(name).hexdigest()[:16]}.{'0' * 32}.partial" for name in (b"a", b"b")
)


def test_only_what_was_abandoned_is_deleted(tmp_path: Path) -> None:
    """Not what somebody is still writing, nor what only looks like ours."""
    folder, link = (HALF.replace("0" * 32, digit * 32) for digit in "12")
    others = [".a.0123.partial", "a.partial", HALF[1:], ".a", HALF.removesuffix(".partial")]
    for name in (*others, HALF, OTHER):
        (tmp_path / name).write_text("half")
    (tmp_path / folder).mkdir()
    (tmp_path / link).symlink_to(tmp_path / ".a")
    others.append(link)
    with atomic_file(tmp_path / "a") as file, atomic_folder(tmp_path / "c") as folder:
        remove_abandoned(tmp_path, "a")
        assert (tmp_path / OTHER).exists()
        assert not (tmp_path / HALF).exists()
        remove_abandoned(tmp_path)
        left = set(os.listdir(tmp_path))
        assert left == {*others, folder.name, Path(file.name).name}
        file.write(b"whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert set(os.listdir(tmp_path)) == {*others, "a", "c"}


def test_what_was_deleted_before_it_could_be_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the instant between the two somebody may have taken it for abandoned."""
    lock, deleted = fcntl.flock, []

    def late(handle: Any, how: int) -> None:
        if how == fcntl.LOCK_EX and len(deleted) < 2:
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            path.rmdir() if path.is_dir() else path.unlink()
            deleted.append(path)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomically(tmp_path / "a", "content")
    assert (tmp_path / "a").read_text() == "content"
    with atomic_folder(tmp_path / "b") as folder:
        write_atomically(folder / "c", "")
    assert os.listdir(tmp_path / "b") == ["c"]
    assert len(deleted) == 2


def test_a_folder_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with own_folder(path, ("x",), "a thing"):
        (path / "x").write_text("")
        (path / HALF).write_text("")
    with own_folder(path, ("x",), "a thing"):
        assert set(os.listdir(path)) == {"x", ".lock"}
        with pytest.raises(BlockingIOError), own_folder(path, ("x",), "a thing"):
            pass
    (path / "y").write_text("")
    match = (
        r"other files in this folder \(y\): give the path of a thing, or one where nothing is yet"
    )
    with pytest.raises(FileExistsError, match=match), own_folder(path, ("x",), "a thing"):
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_system_that_syncs_no_folders(disk: Disk, number: int) -> None:
    def refuse(event: str) -> None:
        if event == "sync folder":
            raise OSError(number, os.strerror(number))

    disk.fault = refuse
    write_atomically(disk.root / "a", "content")
    assert (disk.root / "a").read_text() == "content"


# ---------------------------------------------------------------- before the work


def test_outputs_that_will_be_written_are_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of any length that the disk takes; what is replaced; links; and nothing is left."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "ä" * 127, "n" * 255):
        for _ in range(2):
            check_file(Path(name), 1)
            write_atomically(Path(name), "x")
    (tmp_path / "link").symlink_to("place")
    for name in ("b", "m" * 255, "link"):
        check_folder(Path(name), 1)
        with atomic_folder(Path(name)):
            pass
        check_folder(Path(name))
    assert sorted(os.listdir()) == sorted(
        ["a", "ä" * 127, "n" * 255, "link", "place", "b", "m" * 255]
    )
    disk_of(0, monkeypatch)
    check_file(Path("a"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))  # it does not say
    check_file(Path("a"), 10**9)


REFUSED = {
    "none/a": (FileNotFoundError, "there is no folder none: make it, or give another path"),
    "file/a": (NotADirectoryError, "file is no folder: give another path"),
    "n" * 256: (OSError, "this name is too long: give a shorter one"),
    "d/../" * 812 + "a": (OSError, "this name is too long: give a shorter one"),
    "loop": (OSError, "nothing can be written|Too many levels of symbolic links"),
}


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path[:9])
@pytest.mark.parametrize("check", [check_file, check_folder])
def test_outputs_that_cannot_be_written_are_refused(
    path: str, check: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    kind, message = REFUSED[path]
    if path == "loop" and check is check_folder:
        (tmp_path / "loop").unlink()
        (tmp_path / "loop").symlink_to("loop/none")
    with pytest.raises(kind, match=message) as caught:
        check(Path(path))
    assert caught.value.filename == path


def test_what_has_the_name_already_is_of_the_right_kind(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("", "this is a folder: give the path of a file"),
        ("pipe", "this is no file: give the path of a file"),
    ):
        with pytest.raises(OSError, match=message):
            check_file(tmp_path / name)
    with pytest.raises(NotADirectoryError, match="this is no folder: give another path"):
        check_folder(tmp_path / "file")


def test_a_folder_that_may_not_be_written_to() -> None:
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    try:
        (folder / "model").mkdir()
        for path in (folder / "model", folder):
            path.chmod(0o555)
        if root:
            os.seteuid(65534)  # the rights of a folder mean nothing to root
        for check in (check_file, check_folder):
            with pytest.raises(PermissionError, match=rf"nothing can be written in {folder} \(Per"):
                check(folder / "a")
        with pytest.raises(PermissionError, match=r"nothing can be written in .*/model \(Permiss"):
            check_folder(folder / "model")
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("needed", "free", "said"),
    [
        (7_200_000_000, 10**8, "7,200 MB are needed in k, 100 MB are free"),
        (10**7 + 1, 10**7 - 1, "11 MB are needed in k, 9.9 MB are free"),
        (1, 0, "0.1 MB are needed in k, 0.0 MB are free"),
    ],
)
def test_sizes_are_rounded_to_the_safe_side(
    needed: int, free: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    disk_of(free, monkeypatch)
    for check in (check_file, check_folder, check_room):
        check(Path("k"), free)
        with pytest.raises(OSError, match=f"the disk is full: {said}: make room, or") as caught:
            check(Path("k"), needed)
        assert caught.value.errno == errno.ENOSPC
    check_room(Path("k/not/yet"), free)


# ---------------------------------------------------------------- errors of what is written


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full: 0.1 MB are needed in a$"),
        (errno.EDQUOT, "the disk is full: 0.1 MB are needed in a$"),
        (errno.EFBIG, "no file may be so large there: 0.1 MB are needed in a$"),
        (errno.EIO, "Input/output error: 'a'$"),
    ],
)
def test_errors_name_what_the_user_named(
    disk: Disk, number: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk.root)

    def fail(event: str) -> None:
        raise OSError(number, os.strerror(number))  # of no path, as `write` and `fsync`

    disk.fault = fail
    with pytest.raises(OSError, match=said) as caught:
        write_atomically(Path("a"), "content")
    assert caught.value.errno == number
    with pytest.raises(OSError, match=said), atomic_folder(Path("a"), 7) as folder:
        write_atomically(folder / "b", "content")
    assert os.listdir(disk.root) == []


def test_temporary_names_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for write in (
        lambda: write_atomically(Path("a"), ""),
        lambda: write_atomically(Path("none/a"), ""),
        lambda: write_atomically(Path("n" * 256), ""),
    ):
        with pytest.raises(OSError, match=r"(a|none/a|n{256})'$") as caught:
            write()
        assert "partial" not in str(caught.value)
    with pytest.raises(OSError, match=r"none/m'$"), atomic_folder(Path("none/m")):
        pass
    with pytest.raises(FileNotFoundError, match=r"other'$"), atomic_file(Path("b")):
        Path("other").read_text()  # not of what is written


def test_numpy_says_why_an_array_cannot_be_written(tmp_path: Path) -> None:
    """Its own "36864 requested and 7152 written" has no number of an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = np.zeros((192, 192))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with (
            (tmp_path / "plain").open("wb") as file,
            pytest.raises(OSError, match=r"36864 requested and .* written") as own,
        ):
            np.save(file, values)
        with (
            pytest.raises(OSError, match=r"0\.3 MB are needed in .*/k\.npy$") as caught,
            atomic_file(tmp_path / "k.npy", values.nbytes) as file,
        ):
            np.save(file, values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (own.value.errno, caught.value.errno) == (None, errno.EFBIG)
    assert os.listdir(tmp_path) == ["plain"]


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
    for call in (check_file, lambda path: write_atomically(path, "")):
        with pytest.raises(
            OSError, match=r"give (the path of a file|another path)|No such"
        ) as told:
            call(path)
        assert told.value.filename == str(path)
    assert list(tmp_path.iterdir()) == before
    check_file(tmp_path / "new")


def test_names_that_are_no_utf_8_cost_no_report(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", json.dumps(["\udcff", "é"], ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == ["\udcff", "é"]
