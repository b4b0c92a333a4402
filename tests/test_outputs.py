"""Outputs of commands: refused before the work, or kept when the disk fills up in the end."""

import errno
import io
import json
import os
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from stores import Usage, disk_of
from toys import NAMES, FakeKernel, make_images
from typer.testing import CliRunner

import widelimit as wl
from widelimit import console, files, keeping
from widelimit.cli import app
from widelimit.experiments import learning_curve
from widelimit.keeping import NotWritten, keep, keep_and_show

# The words of each command, where its work begins, and what it writes.
ROOT = Path(__file__).parents[1]
COMMANDS = {
    "kernel": ("kernel x.npy --net cntk-vanilla-2 --out {}.npy", "widelimit.job.kernel"),
    "store": ("kernel x.npy --net cntk-vanilla-2 --out {}.zarr", "widelimit.job.gram"),
    "fit": (
        "fit d.npz --net cntk-vanilla-2 --per-class 9 --out {}",
        "widelimit.classify.NTKClassifier.fit",
    ),
    "predict": ("predict model i.png --out {}", "widelimit.classify.Prediction.run"),
    "suspects": (
        "suspects d.npz --net cntk-vanilla-2 --out {}",
        "widelimit.classify.NTKClassifier.fit",
    ),
    "rank": (
        "rank d.npz --n 9 --draws 1 --net cntk-vanilla-2 --net cntk-gap-2 --store s --out {}.json",
        "widelimit.experiments.rank.Rank.run",
    ),
    "report": ("report r.json --out {}.html", "widelimit.report.runs.read_json"),
    "bench": ("bench --quick --only sizes --out {}", "widelimit.bench.run"),
    "demo": ("demo --data d.npz --draws 1 --threads 1 --out {}", "widelimit.report.demo.Demo.run"),
    "table1": (
        "reproduce table1 d.npz --n-train 9 --n-test 3 --depths 3 --store s --out {}.json",
        "widelimit.experiments.table1.Table1.run",
    ),
    "small-data": (
        "reproduce small-data d.npz --largest 9 --draws 1 --store of-small-data --out {}.json",
        "widelimit.experiments.small_data.SmallData.run",
    ),
    "readouts": (
        "reproduce readouts d.npz --n-train 9 --n-test 3 --draws 1 --store of-readouts "
        "--out {}.json",
        "widelimit.experiments.readouts.Readouts.run",
    ),
    "myrtle": (
        "reproduce myrtle d.npz --n-train 9 --n-test 3 --networks myrtle-5 --activations relu "
        "--preprocessing standardise --store of-myrtle --out {}.json",
        "widelimit.experiments.myrtle.Myrtle.run",
    ),
    "table2": (
        "reproduce table2 d.npz --n-train 9 --n-test 3 --channels 2 --draws 1 --depths 3 "
        "--store of-table2 --out {}.json",
        "widelimit.experiments.table2.Table2.run",
    ),
    "table1-cnn": (
        "reproduce table1-cnn d.npz --n-train 9 --n-test 3 --channels 2 --depths 3 --epochs 1 "
        "--store of-table1-cnn "
        "--out {}.json",
        "widelimit.experiments.table1_cnn.Table1CNN.run",
    ),
    "theorem31": (
        "reproduce theorem31 --widths 2,4 --seeds 2 --draws 2 --mean-width 2 --store s "
        "--out {}.json",
        "widelimit.experiments.theorems.Theorem.run",
    ),
    "theorem32": (
        "reproduce theorem32 --widths 2,4 --seeds 1 --n-train 4 --n-test 2 --store of-theorem32 "
        "--out {}.json",
        "widelimit.experiments.theorems.Theorem.run",
    ),
    "weakly-trained": (
        "reproduce weakly-trained --widths 2,4 --seeds 1 --n-train 4 --n-test 2 "
        "--store of-weakly-trained --out {}.json",
        "widelimit.experiments.theorems.Theorem.run",
    ),
}
# What prints before it is done, and writes.
SAYING = ("fit", "rank", "bench", "table1", "small-data", "readouts")
# What runs that take long would return.
RECORDS = {
    "rank": "rank-16x16",
    "table1": "table1-v-2k",
    "table2": "table2",
    "table1-cnn": "cnn-digits",
    "theorem31": "theorem31",
    "theorem32": "theorem32",
    "weakly-trained": "weakly-trained",
}
TORCH = ("table2", "table1-cnn", "theorem31", "theorem32", "weakly-trained")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    x, y = make_images(90)
    np.save(folder / "x.npy", x)
    shutil.copy(ROOT / "results" / "table1-v-2k.json", folder / "r.json")
    np.savez(folder / "d.npz", x_train=x, y_train=np.array(NAMES)[y])
    wl.save_model(wl.NTKClassifier("cntk-vanilla-2").fit(x[:20], y[:20]), folder / "model")
    Image.fromarray((x[0, ..., 0] * 255).astype("uint8")).save(folder / "i.png")
    return folder


@pytest.fixture
def place(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write to, seen from that of the data; and one for what is temporary."""
    monkeypatch.chdir(data)
    (tmp_path / "out").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path / "out"


def suffix(name: str) -> str:
    """Return how the name of what a command writes ends."""
    return Path(COMMANDS[name][0].split()[-1]).suffix


def widelimit(words: str, out: Path | str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [word.format(out) for word in words.split()])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr


# ---------------------------------------------------------------- before the work


def read_only(**_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/somewhere/tmpabc")


# What is wrong with an output, and what is said of it. Demo and bench make folders.
FAULTS = {
    "no folder": ("none/m", "there is no folder .*none: make it, or give another path"),
    "no name": ("n" * 300, "name.* too long"),
    "something else": ("taken", "this is (a|no) folder: give|is no model: give another path"),
    "read-only": (
        "m",
        r"nothing can be written in .*out.* \(Read-only file system\): give another",
    ),
    "too small": ("m", r"the disk is full: \d\.\d MB are needed in .*m\S*, 0\.0 MB are free: make"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_written_is_refused_before_the_work(
    name: str, fault: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in TORCH:
        pytest.importorskip("torch")
    words, work = COMMANDS[name]
    out, message = place / FAULTS[fault][0], FAULTS[fault][1]
    if fault == "no folder" and name in ("bench", "demo", "suspects"):
        return
    if fault == "something else":
        path = out.with_name(out.name + suffix(name))
        if name in ("store", "demo", "suspects"):
            path.touch()
        else:
            path.mkdir()
    if fault == "read-only":
        if name in ("demo", "suspects"):  # a folder that it makes
            (place / "m").mkdir()
        monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    if fault == "too small":
        if name not in ("kernel", "store", "fit"):  # others are small
            return
        disk_of(9, monkeypatch)
        work = "widelimit.matrices.run.Computation.engine" if name == "store" else work
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work has begun"))
    code, error = widelimit(words, out)
    assert code == 2
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert str(out) in error
    assert "partial" not in error
    known = {"taken", "taken.npy", "taken.zarr", "taken.json", "taken.html", "m"}
    left = {path.name for path in place.rglob("*")} - known
    assert left == ({"m.zarr", ".lock"} if (name, fault) == ("store", "too small") else set())


def test_overwrite_is_for_models(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, work = COMMANDS["fit"]
    (place / "m").mkdir()
    (place / "m" / "thesis").write_text("years of work")
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work has begun"))
    code, error = widelimit(f"{words} --overwrite", place / "m")
    assert (code, error) == (
        2,
        f"widelimit: {place / 'm'} exists, and is no model: give another path\n",
    )
    assert os.listdir(place / "m") == ["thesis"]


def test_the_room_of_a_model_is_that_of_its_distinct_images(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that would fit is not refused, whatever was counted twice."""
    x, y = make_images(30)
    x = np.repeat(x, 4, axis=0) * np.tile([1, 1, 2, 4], 30)[:, None, None, None] / 4
    np.savez("copies.npz", x_train=x, y_train=np.repeat(y, 4), x_test=x[:1], y_test=y[:1])
    words = f"fit {Path('copies.npz').absolute()} --net cntk-vanilla-2 --out {{}}"
    asked: list[int] = []
    real = files.check_room
    monkeypatch.setattr(
        "widelimit.classify.check_room",
        lambda path, needed: (asked.append(needed), real(path, needed)),
    )
    assert widelimit(words, place / "m") == (0, "")
    size = sum(path.stat().st_size for path in (place / "m").iterdir())
    assert 0.4 * size < asked[0] < size


# ---------------------------------------------------------------- in the end


@pytest.fixture
def full(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to write to is on a disk that was full when the work was done."""
    sync = os.fsync

    def fsync(handle: int) -> None:
        number = os.fstat(handle).st_ino
        if any(path.is_file() and path.stat().st_ino == number for path in place.rglob("*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    without_work(monkeypatch)
    return place


def without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands that take longest take no time."""
    monkeypatch.setattr(learning_curve, "compute_kernel", FakeKernel())
    for call, value in (("run", {"speed": 1}), ("render", "a table"), ("exit_code", 0)):
        monkeypatch.setattr(f"widelimit.bench.{call}", lambda *_, value=value: value)


def record_of(name: str) -> Any:
    return json.loads((ROOT / "results" / f"{RECORDS[name]}.json").read_text())


def looked_at(name: str, kept: Path) -> None:
    """Look whether what a command made is whole."""
    if name == "kernel":
        x = np.load("x.npy")
        np.testing.assert_array_equal(np.load(kept), wl.kernel(wl.cntk_vanilla(2), x))
    elif name == "fit":
        assert len(wl.load_model(kept).x_fit_) == 27
    elif name == "predict":
        assert kept.read_text().startswith("image,class,0,1,2,problem\ni.png,")
    elif name == "bench":
        assert kept.read_text() == '{\n "speed": 1\n}\n'
    elif name == "report":
        assert kept.read_text().startswith("<!doctype html>")
    elif name in RECORDS:
        assert json.loads(kept.read_text()) == record_of(name)
    elif suffix(name) == ".json":
        assert json.loads(kept.read_text())["data"]["name"] == "d"
    elif name == "suspects":
        assert sorted(os.listdir(kept)) == ["suspects.csv", "suspects.html"]
    else:
        assert sorted(os.listdir(kept)) == ["demo-d.html", "demo-d.json"]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "store"])
def test_a_result_whose_disk_is_full_is_kept_elsewhere(
    name: str, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in TORCH:
        pytest.importorskip("torch")
    words, work = COMMANDS[name]
    if name in RECORDS:
        monkeypatch.setattr(work, lambda *_, **__: record_of(name))
    out = full / "m"
    code, error = widelimit(words, out)
    assert code == 1
    told = re.search(
        r"widelimit: the disk is full: \d\.\d MB are needed in (\S+); what was computed is kept in "
        r"(\S+): move it to where it belongs\n\Z",
        error,
    )
    assert told is not None, error
    assert told[1].startswith(str(out))
    assert "partial" not in error
    kept = Path(told[2])
    assert kept.parent.parent == full.parent / "tmp"
    assert kept.name == f"m{suffix(name)}"
    looked_at(name, kept)
    assert not [path for path in full.rglob("*") if path.is_file()]


def test_places_are_tried_until_one_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / name for name in ("none", "small", "broken", "good", "unused")]
    for path in places[1:]:
        path.mkdir()
    monkeypatch.setattr(keeping, "_places", lambda: iter(places))
    usage = {"small": 9}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(10**6, 0, usage.get(Path(path).name, 10**5))
    )
    tried: list[Path] = []

    def write(path: Path) -> None:
        tried.append(path)
        if "good" not in path.parts:
            path.with_name("half").write_text("x")
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        path.write_text("result")

    (tmp_path / "asked").mkdir()
    message = r"asked/r: Input/output error; what was computed is kept in .*good/widelimit-\w+/r:"
    with pytest.raises(NotWritten, match=message):
        keep(tmp_path / "asked" / "r", write, 10)
    assert [path.relative_to(tmp_path).parts[0] for path in tried] == ["asked", "broken", "good"]
    assert tried[-1].read_text() == "result"
    assert os.listdir(tmp_path / "broken") == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def refuse(path: Path) -> None:
    if path.name != "here":
        raise files.no_room(path, 2 * 10**7)
    path.write_text("result")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keeping, "_places", lambda: iter([]))
    return tmp_path


def test_a_user_at_a_terminal_is_asked_for_another_path(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"\n{nowhere}/there\n{nowhere}/here\n"))
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    assert keep(nowhere / "r", refuse) == nowhere / "here"
    assert (nowhere / "here").read_text() == "result"
    for name in ("r", "there"):
        assert f"the disk is full: 20 MB are needed in {nowhere}/{name}\n" in shown.getvalue()
    assert shown.getvalue().count("the disk is full") == 2
    assert shown.getvalue().count("another path for what was computed: ") == 3
    monkeypatch.setattr("sys.stdin", Terminal(f"{nowhere}/there\n"))  # and then Ctrl-D
    with pytest.raises(NotWritten, match=r"needed in .*there; what was computed could be kept no"):
        keep(nowhere / "r", refuse)


def test_nobody_is_asked_without_a_terminal(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{nowhere}/here\n"))
    with pytest.raises(NotWritten, match=r"20 MB are needed in .*/r; .* kept nowhere, it is lost"):
        keep(nowhere / "r", refuse)


def test_the_usual_places_are_there() -> None:
    places = list(keeping._places())
    assert Path.cwd() in places
    assert all(path.is_absolute() and path.is_dir() for path in places)


# ---------------------------------------------------------------- nobody reads what is printed


def unread(words: str, out: Path | str) -> tuple[Any, str]:
    """Run a command whose output goes to a pipe without a reader, as behind ``| head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    errors = io.StringIO()
    with (
        suppress(BrokenPipeError),  # closing writes what is left
        open(writer, "w") as stream,
        redirect_stdout(stream),
        redirect_stderr(errors),
        pytest.raises(SystemExit) as ended,
    ):
        app([word.format(out) for word in words.split()])
    return ended.value.code, errors.getvalue()


@pytest.mark.parametrize("name", SAYING)
def test_a_result_is_written_before_it_is_told(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, work = COMMANDS[name]
    without_work(monkeypatch)
    record = {"readouts": "readouts", **RECORDS}.get(name)
    if record is not None:
        content = json.loads((ROOT / "results" / f"{record}.json").read_text())
        monkeypatch.setattr(work, lambda *_, **__: content)
    code, error = unread(words, place / "m")
    assert (code, "pipe" in error) == (1, False)
    if name == "readouts":
        assert json.loads((place / "m.json").read_text()) == content
    else:
        looked_at(name, place / f"m{suffix(name)}")


def test_a_reader_that_leaves_is_no_wrong_input() -> None:
    assert unread("explain cntk-gap-3 --inputs 9", "") == (1, "")


def test_a_pipe_that_breaks_elsewhere_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """That of a worker, or of a store far away: standard output is as it was."""
    with pytest.raises(typer.Exit) as ended, console.guarded():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    assert (ended.value.exit_code, capsys.readouterr().err) == (2, "widelimit: Broken pipe\n")


def test_what_could_not_be_written_is_told(nowhere: Path) -> None:
    shown: list[str] = []
    with pytest.raises(NotWritten, match="it is lost"):
        keep_and_show(nowhere / "r", refuse, lambda: shown.append("the table"))
    assert shown == ["the table"]
    assert keep_and_show(nowhere / "here", refuse, lambda: shown.append("")) == nowhere / "here"
    assert len(shown) == 2


def test_every_command_that_writes_is_tried() -> None:
    """Those of groups, as reproduce is one, included."""
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    writing: set[str] = set()
    for of, commands in {"": app, **groups}.items():
        assert commands is not None
        for command in commands.registered_commands:
            call = command.callback
            assert call is not None
            if "out" in call.__annotations__:
                name = command.name or call.__name__
                writing.add(f"{of} {name}".strip())
    depths = {words.split()[0]: 1 for words, _ in COMMANDS.values()} | dict.fromkeys(groups, 2)
    tried = (words.split() for words, _ in COMMANDS.values())
    assert writing == {" ".join(words[: depths[words[0]]]) for words in tried}
