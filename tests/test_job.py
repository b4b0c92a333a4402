"""Kernels from files to files, and the commands that do it."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import change_metadata, disk_of
from typer.testing import CliRunner

import widelimit as wl
from widelimit import files, job
from widelimit.cli import app
from widelimit.job import (
    Job,
    explain_networks,
    read_array,
    read_inputs,
    read_network,
    read_shape,
)
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import TileStore

X = np.random.default_rng(0).random((4, 6, 5, 2))


def widelimit(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


# ---- networks and shapes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("cntk_gap:11", wl.cntk_gap(11)),
        ("cntk-gap-11", wl.cntk_gap(11)),
        ("ntk-dense-3", wl.ntk_dense(3)),
        ("cntk_vanilla:3", wl.cntk_vanilla(3)),
        ("ntk_dense:1", wl.ntk_dense(1)),
    ],
)
def test_preset(text: str, network: wl.Network) -> None:
    assert read_network(text) == network


def test_network_of_a_file(tmp_path: Path) -> None:
    network = wl.Network([wl.Conv(5, b_std=0.1), wl.ReLU(), wl.LocalAvgPool(2), wl.Dense()])
    path = tmp_path / "net.json"
    path.write_text(network.to_json())
    assert read_network(str(path)) == network


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cntk_gap", "needs a depth, as in cntk-gap-11"),
        ("gap", "cntk-gap-DEPTH, cntk-vanilla-DEPTH, ntk-dense-DEPTH, myrtle-DEPTH"),
        ("cntk_gap:", "needs a depth, as in cntk-gap-11"),
        ("cntk_gap:-3", "needs a depth"),
        ("cntk_gap:٣", "needs a depth"),
        ("cntk_gap:1", "from 2 to 16,383, got 1"),
        ("cntk-gap-999999999", "from 2 to 16,383, got 999999999"),
        ("alexnet:50", "or the JSON of a network, got 'alexnet:50'"),
    ],
)
def test_no_network(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_network(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "network JSON: the text must be a JSON object, it is not"),
        (b"{}", "network JSON: it must be a valid network (expected an object with exactly"),
    ],
)
def test_files_without_a_network_are_told_of_once(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")) as caught:
        read_network(str(path))
    assert str(caught.value).count("write it with") <= 1


def test_shape() -> None:
    assert read_shape("32x31x3") == (32, 31, 3)
    assert read_shape("784") == (784,)
    assert read_shape("128x1") == (128, 1)  # of a series: whether networks take it, they say


@pytest.mark.parametrize("text", ["", "x", "axbxc", "-1x2x3", "1x2x3x4", "32X32X3"])
def test_no_shape(text: str) -> None:
    with pytest.raises(ValueError, match="as in 32x32x3"):
        read_shape(text)


def test_explain() -> None:
    networks = [wl.cntk_gap(3), wl.cntk_gap(5), wl.cntk_vanilla(3)]
    text = explain_networks(networks, (8, 8, 3), ["ntk", "nngp", "ntk"])
    assert text.count("kernels ntk, nngp") == 2  # two families
    first, second, cost = text.split("\n\n")
    assert first.startswith(f"{networks[0]} and {networks[1]}, in one pass:\n")
    assert second.startswith(f"{networks[2]}:\n")
    assert "\n6 matrices of 1,000 x 1,000: 24 MB in an .npy file" in cost
    assert explain_networks(networks[::-1], (8, 8, 3), ["ntk"], "abc").startswith("a:\n")
    with pytest.raises(ValueError, match="kind must be ntk or nngp, got 'x'"):
        explain_networks(networks, (8, 8, 3), ["x"])


# ---- arrays ------------------------------------------------------------------------------------


def test_read_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "one.npz", a=X)
    np.savez(tmp_path / "two.npz", a=X, b=X[:1])
    for path, name in (("x.npy", None), ("one.npz", None), ("one.npz", "a"), ("two.npz", "a")):
        np.testing.assert_array_equal(read_array(tmp_path / path, name), X)
    for name in (None, "c"):
        with pytest.raises(ValueError, match=rf"has the arrays a, b, got {name!r}: .* --array"):
            read_array(tmp_path / "two.npz", name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begin like one"),
        (b"text", "begin like one"),
        (b"PK\x03\x04 no archive", "not a zip file"),
        (b"\x93NUMPY\x01", "a whole array of numpy"),
    ],
)
def test_no_array(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.npy must be .*{message}.*: save it"):
        read_array(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="a pickle, which is never read: save it with"):
        read_array(tmp_path / "x.npy")


# ---- the job -----------------------------------------------------------------------------------


def test_job_writes_the_kernel(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "z.npy", X[:3] + 0.1)
    out = tmp_path / "k.npy"
    job = Job.prepare(str(tmp_path / "x.npy"), str(out), [wl.cntk_gap(3)])
    job.run()
    np.testing.assert_array_equal(np.load(out), wl.kernel(wl.cntk_gap(3), X))
    job = Job.prepare(
        str(tmp_path / "x.npy"),
        str(out),
        [wl.cntk_gap(3)],
        columns=str(tmp_path / "z.npy"),
        kind="nngp",
        dtype="float64",
        threads=1,
        overwrite=True,
    )
    job.run()
    want = wl.kernel(wl.cntk_gap(3), X, X[:3] + 0.1, "nngp", dtype="float64")
    np.testing.assert_array_equal(np.load(out), want)
    assert job.shape == want.shape == (4, 3)
    assert sorted(os.listdir(tmp_path)) == ["k.npy", "x.npy", "z.npy"]


def test_wrong_options_are_told_before_the_inputs_are_read(tmp_path: Path) -> None:
    missing, out = str(tmp_path / "missing.npy"), str(tmp_path / "k.npy")
    with pytest.raises(ValueError, match="kind must be ntk or nngp"):
        Job.prepare(missing, out, [wl.cntk_gap(3)], kind="x")
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        Job.prepare(missing, out, [wl.cntk_gap(3)], dtype="float16")
    for wrong in (tmp_path / "k.txt", "s3://bucket/k.npy"):
        with pytest.raises(ValueError, match=r"an \.npy file, or a \.zarr store \(a path or URL\)"):
            Job.prepare(missing, str(wrong), [wl.cntk_gap(3)])
    for wrong in (tmp_path / "no" / "k.npy", tmp_path / "no" / "k.zarr"):
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*no: make it"):
            Job.prepare(missing, str(wrong), [wl.cntk_gap(3)])
    for option in ({"verify": True}, {"allow_mixed": True}, {"memory": "1GB"}):
        with pytest.raises(ValueError, match=r"are for a \.zarr store"):
            Job.prepare(missing, out, [wl.cntk_gap(3)], **option)
    with pytest.raises(ValueError, match="memory must be a number of bytes, or text such as"):
        Job.prepare(missing, str(tmp_path / "k.zarr"), [wl.cntk_gap(3)], memory="lots")


def test_threads_are_those_of_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", X)
    asked: list[Any] = []
    for name in ("kernel", "gram"):
        real = getattr(job, name)

        def noted(*arguments: Any, real: Any = real, **options: Any) -> Any:
            asked.append(options["threads"])
            return real(*arguments, **options)

        monkeypatch.setattr(job, name, noted)
    for out in ("k.npy", "k.zarr"):
        networks = [wl.cntk_vanilla(2)]
        Job.prepare(str(tmp_path / "x.npy"), str(tmp_path / out), networks, threads=3).run()
    assert asked == [3, 3]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "k.npy"
    out.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    words = (str(tmp_path / "x.npy"), str(out), [wl.cntk_gap(3)])
    with pytest.raises(FileExistsError, match=r"there is one already: .* or say --overwrite"):
        Job.prepare(*words)
    with pytest.raises(OSError, match="disk full"):
        Job.prepare(*words, overwrite=True).run()
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["k.npy", "x.npy"]


# ---- commands ----------------------------------------------------------------------------------


def test_kernel_command(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "k.npy"
    code, text, _ = widelimit("kernel", tmp_path / "x.npy", "--net", "cntk_vanilla:3", "--out", out)
    assert (code, text) == (0, f"{out}: 4 x 4, float32\n")
    np.testing.assert_array_equal(np.load(out), wl.kernel(wl.cntk_vanilla(3), X))


def test_kernel_command_with_a_store(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "z.npy", X[:3] + 0.1)
    out = tmp_path / "k.zarr"
    words = ["kernel", tmp_path / "x.npy", "--net", "cntk_vanilla:3", "--net", "cntk_gap:3"]
    words += ["--columns", tmp_path / "z.npy", "--memory", "2GB", "--out", out]
    code, text, error = widelimit(*words)
    about = [
        f"{out}: 2 x 4 x 3, float32",
        "  [0]: ntk of cntk_vanilla:3",
        "  [1]: ntk of cntk_gap:3",
        f"  rows: 4 of {tmp_path / 'x.npy'}; columns: 3 of {tmp_path / 'z.npy'}",
    ]
    assert (code, text.splitlines()) == (0, about)
    assert error.startswith("1 of 1 tiles, ")
    nets = [wl.cntk_vanilla(3), wl.cntk_gap(3)]
    expected = wl.kernel(nets, X, X[:3] + 0.1)
    assert np.array_equal([np.asarray(k) for k in wl.open_gram(out)], expected)
    assert widelimit(*words) == (0, text, "")
    code, text, _ = widelimit("kernel", "--status", out)
    assert code == 0
    for line in (
        f"{out}: 2 x 4 x 3, float32",
        "  kernel: ntk of Conv(3) ReLU Conv(3) ReLU GlobalAvgPool Dense",
        "  tiles: 1 of 1 (100.0%), 64 x 64, 0.00 GB",
        "  finished",
    ):
        assert line in text.splitlines()
    (out / "c" / "1" / "0" / "0").unlink()
    code, text, _ = widelimit("kernel", "--status", out)
    assert "  not finished: run the command that began it again" in text.splitlines()
    code, _, error = widelimit(*words[:3], "cntk_gap:3", *words[4:])
    assert (code, error.count("\n")) == (2, 1)
    assert "holds another kernel: " in error


def test_a_finished_store_is_read_from_any_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "k.zarr"
    words = ["kernel", tmp_path / "x.npy", "--net", "cntk_vanilla:3", "--out", out]
    assert widelimit(*words)[0] == 0

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("TemporaryFile", "mkdtemp"):
        monkeypatch.setattr(files.tempfile, call, refuse)
    disk_of(0, monkeypatch)
    assert widelimit(*words)[0] == 0


def test_kernel_command_verifies(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "k.zarr"
    words = ["kernel", tmp_path / "x.npy", "--net", "cntk_vanilla:3", "--out", out]
    assert widelimit(*words)[0] == 0
    tile = out / "c" / "0" / "0"
    content = tile.read_bytes()
    tile.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert widelimit(*words)[0] == 0  # a tile of full length is not read
    assert tile.read_bytes() != content
    assert widelimit(*words, "--verify")[0] == 0
    assert tile.read_bytes() == content


def test_kernel_command_keeps_to_the_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    words = ["kernel", tmp_path / "x.npy", "--net", "cntk_vanilla:3", "--out", tmp_path / "k.zarr"]
    code, _, error = widelimit(*words, "--memory", "1MB")  # the process holds more already
    assert (code != 0, "memory" in error, error.count("\n")) == (True, True, 1)
    assert not list(tmp_path.glob("k.zarr/c/*"))


def test_kernel_command_mixes_makers_only_if_asked(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "k.zarr"
    words = ["kernel", tmp_path / "x.npy", "--net", "cntk_vanilla:3", "--out", out]
    assert widelimit(*words)[0] == 0
    (out / "c" / "0" / "0").unlink()

    def older(metadata: Any) -> None:
        metadata["attributes"]["widelimit"]["makers"][0]["version"] = "0.0.1"

    change_metadata(out, older)
    code, _, error = widelimit(*words)
    assert (code, "was begun by backend cpu" in error) == (2, True)
    assert widelimit(*words, "--allow-mixed")[0] == 0
    np.testing.assert_array_equal(wl.open_gram(out), wl.kernel(wl.cntk_vanilla(3), X))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--status", "no.zarr"], "no.zarr: there is no matrix of widelimit"),
        (
            ["--status", __file__],
            f"{__file__} must be a store of widelimit, a folder, it is a file",
        ),
        (["--status", "a.zarr", "--out", "b.zarr"], "--status takes a store, and neither DATA"),
        (["x.npy", "--out", "k.zarr"], "kernel needs DATA, --net and --out, as in: widelimit"),
        (["fashion-mnits", "--net", "cntk_gap:3", "--out", "k.npy"], "did you mean fashion-mnist?"),
        (["digits", "--array", "x", "--net", "cntk_gap:3", "--out", "k.npy"], "is for .npz files"),
    ],
)
def test_kernel_command_that_cannot_be(words: list[str], message: str) -> None:
    code, _, error = widelimit("kernel", *words)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_inputs_by_name() -> None:
    data = wl.load_dataset("digits")
    assert len(read_inputs("digits")) == 1797  # all: it has no test set of its own
    told = (
        "digits has no test set of its own: 517 of its 1,797 images were drawn for one, with seed"
    )
    with pytest.warns(UserWarning, match=told):
        np.testing.assert_array_equal(read_inputs("digits:train"), data.x_train)
    with pytest.warns(UserWarning, match=told):
        np.testing.assert_array_equal(read_inputs("digits:test"), data.x_test)


def test_rows_do_not_hold_the_columns_in_silence(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((10, 4, 4, 1)), np.arange(10) % 2
    for name, parts in (("own", {"train": x[:6], "test": x[6:]}), ("none", {"train": x})):
        (tmp_path / name).mkdir()
        for part, values in parts.items():
            np.save(tmp_path / name / f"x_{part}.npy", values)
            np.save(tmp_path / name / f"y_{part}.npy", y[: len(values)])
    own, none = tmp_path / "own", tmp_path / "none"
    words = ["--net", "cntk-gap-3", "--out", tmp_path / "k.npy", "--overwrite", "--columns"]
    code, _, error = widelimit("kernel", own, *words, f"{own}:test")
    assert (code, error) == (0, "")
    assert np.load(tmp_path / "k.npy").shape == (6, 4)
    for one, other in ((none, f"{none}:test"), (f"{none}:train", f"{none}/")):
        code, _, error = widelimit("kernel", one, *words, other)
        assert (code, error.count("\n")) == (2, 1), error
        assert "means all of its 10 images, those of" in error
        assert f"give {none}:train and {none}:test, 8 and 2 that are drawn" in error
    code, _, error = widelimit("kernel", f"{none}:train", *words, f"{none}:test")
    told = f"{none} has no test set of its own: 2 of its 10 images were drawn for one, with seed 0"
    assert (code, error) == (0, f"widelimit: warning: {told}\n")
    assert np.load(tmp_path / "k.npy").shape == (8, 2)


# A shell tells what it starts with "&" to ignore the signal of Ctrl-C.
COMMAND = """
import re
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from widelimit.cli import main
main()
"""


def test_ctrl_c_keeps_the_finished_tiles(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((330, 12, 12, 1))
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "k.zarr"
    words = ["kernel", str(tmp_path / "x.npy"), "--net", "cntk_gap:6", "--out", str(out)]
    command = [sys.executable, "-c", COMMAND, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not list(out.glob("c/*/[0-9]*")):
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        error = run.stderr.read()
    assert run.returncode == 130
    told = "widelimit: interrupted, what is finished is kept, the same command goes on"
    assert error.splitlines()[-1] == told
    store = TileStore.open(open_objects(out))
    assert 0 < len(store.finished()) < len(list(store.grid.tiles()))
    code, _, error = widelimit(*words)
    assert code == 0
    corner = wl.kernel(wl.cntk_gap(6), x[:40], x[300:])
    assert np.array_equal(wl.open_gram(out)[:40, 300:], corner)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (X[0], r"must hold rows .*: one image is \(1, 6, 5, 2\), series of 5 values in 2 channels"),
        (np.array(["a", "b"]), "x1 must "),
        (np.full((2, 3, 3, 1), np.nan), "x1 must "),
    ],
)
def test_inputs_that_are_refused(tmp_path: Path, content: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", content)
    out = tmp_path / "k.npy"
    code, _, error = widelimit("kernel", tmp_path / "x.npy", "--net", "cntk_gap:3", "--out", out)
    assert code == 2
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not out.exists()


def test_grey_images_get_their_axis_and_a_network_its_name(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((3, 6, 7))
    np.savez(tmp_path / "m.npz", x_train=x, y_train=[0, 1, 0])
    out = tmp_path / "k.npy"
    words = ("kernel", tmp_path / "m.npz", "--array", "x_train", "--net", "cntk-gap-3")
    code, _, error = widelimit(*words, "--out", out)
    assert code == 0
    assert "taken for 3 grey images of 6 x 7 pixels" in error
    np.testing.assert_array_equal(np.load(out), wl.kernel("cntk-gap-3", x[..., None]))
    named, made = ["cntk-gap-3", wl.cntk_vanilla(3)], [wl.cntk_gap(3), wl.cntk_vanilla(3)]
    np.testing.assert_array_equal(wl.kernel(named, x[..., None]), wl.kernel(made, x[..., None]))
    code, _, error = widelimit(*words, "--out", out)
    assert (code, "k.npy: there is one already" in error) == (2, True)


def test_whole_numbers_are_told_of_and_not_mixed_with_others(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 2), np.uint8)
    whole.ravel()[:2] = 0, 255
    np.save(tmp_path / "whole.npy", whole)
    np.save(tmp_path / "too.npy", whole[:2].astype(np.float32))
    np.savez(tmp_path / "unit.npz", x=whole / 255)
    words = ["--net", "cntk-gap-3", "--out", tmp_path / "k.npy", "--overwrite", "--columns"]
    told = "whole numbers from 0 to 255, are taken as they are; those of data sets and folders are "
    code, _, error = widelimit("kernel", tmp_path / "whole.npy", *words, tmp_path / "too.npy")
    assert (code, error.count(told)) == (0, 2)
    at_first = np.load(tmp_path / "k.npy")
    code, _, error = widelimit("kernel", tmp_path / "unit.npz", *words, tmp_path / "unit.npz")
    assert (code, error) == (0, "")
    np.testing.assert_allclose(at_first, 65025 * np.load(tmp_path / "k.npy")[:, :2], rtol=1e-5)
    for one, other in (("whole.npy", "unit.npz"), ("unit.npz", "too.npy")):
        code, _, error = widelimit("kernel", tmp_path / one, *words, tmp_path / other)
        last = error.splitlines()[-1]
        assert code == 2
        assert re.search(r"of one kind, got .* in \S*, and .*, in \S*: divide whole", last), last
        assert last.count("whole numbers from 0 to 255") == last.count("values from 0 to 1") == 1
    rows = np.arange(6).reshape(3, 2)  # features, of any range
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "half.npy", rows / 2)
    words[1] = "ntk-dense-2"
    assert widelimit("kernel", tmp_path / "rows.npy", *words, tmp_path / "half.npy")[::2] == (0, "")


def test_explain_command() -> None:
    code, text, _ = widelimit("explain", "cntk_gap:3", "--shape", "8x8x1")
    assert code == 0
    assert "element-layers a pair: 8,192" in text
    code, _, error = widelimit("explain", "cntk_gap:3", "--shape", "8x8")
    assert (code, error.count("\n")) == (2, 1)


def test_doctor_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WIDELIMIT_ISA", raising=False)
    code, text, _ = widelimit("doctor")
    assert (code, text.splitlines()[-1]) == (0, "all is well")
    monkeypatch.setenv("WIDELIMIT_ISA", "mmx")
    code, text, _ = widelimit("doctor")
    assert code == 1
    assert "PROBLEM" in text


def test_bench_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WIDELIMIT_ISA", raising=False)
    out = tmp_path / "new" / "bench.json"
    code, text, _ = widelimit("bench", "--quick", "--only", "sizes", "--out", out)
    assert code == 0
    assert "8x8 / 32x32, element-layers/s" in text
    assert out.exists()
    code, _, error = widelimit("bench", "--only", "everything")
    assert code == 2
    assert "groups of measurements are speed," in error
