"""`widelimit fit` and `widelimit predict`, as a user types them."""

import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import widelimit as wl
from widelimit import classify, cli
from widelimit.data.image import fit_image, safe_formats
from widelimit.estimators import regression
from widelimit.estimators.fitted import FittedKernel


def widelimit(*words):
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def widelimit_process(*words):
    command = [sys.executable, "-m", "widelimit", *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Stripes, in folders by class; and others to classify."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    stripes = {
        "across, flat": np.tile([[60], [200]], (3, 5)),
        "down": np.tile([60, 200, 60, 200, 60], (6, 1)),
    }
    for name, pattern in stripes.items():
        (folder / "train" / name).mkdir(parents=True)
        for index in range(12):
            pixels = (pattern + rng.integers(-50, 50, (6, 5))).astype("uint8")
            Image.fromarray(pixels).save(folder / "train" / name / f"{index}.png")
    new = folder / "new"
    (new / "more").mkdir(parents=True)
    across, down = (pattern.astype("uint8") for pattern in stripes.values())
    Image.fromarray(across).save(new / "a.png")
    large = Image.fromarray(down).resize((50, 60), Image.Resampling.NEAREST)
    large.convert("RGB").save(new / "b.jpg")
    Image.fromarray(255 - down).save(new / "more" / "c.webp", lossless=True)
    Image.fromarray(across.astype("uint16") * 250).save(new / "d.tiff")
    Image.fromarray(across // 2).save(new / "e.tga")
    (new / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def model(images):
    code, _, error = widelimit(
        "fit", images / "train", "--net", "cntk-gap-3", "--out", images / "model"
    )
    assert (code, error) == (0, "")
    return images / "model"


def test_fit_and_predict(images, model, tmp_path):
    out = tmp_path / "p.csv"
    code, text, error = widelimit("predict", model, images / "new", "--out", out)
    assert (code, text) == (0, f"{out}: 5 images\n")
    assert "2 images were made grey to 6 x 5 grey" in error
    assert "1 image was resized to 6 x 5 grey" in error
    assert f"{images / 'new' / 'b.jpg'}, 60 x 50 colour" in error
    assert "passed over 1 of no format that is read here (notes.txt)" in error
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[0] == ["image", "class", "across, flat", "down", "problem"]
    names = {row[0].rpartition("/")[2]: row[1] for row in rows[1:]}
    assert names == {
        "a.png": "across, flat",
        "b.jpg": "down",
        "c.webp": "down",
        "d.tiff": "across, flat",
        "e.tga": "across, flat",
    }
    for row in rows[1:]:
        assert float(row[2]) + float(row[3]) == pytest.approx(1, abs=1e-5)
    code, text, _ = widelimit("predict", model, images / "new" / "a.png")
    assert code == 0
    assert text.splitlines()[1].startswith(f'{images / "new" / "a.png"},"across, flat",')


def test_what_fit_says(images, tmp_path):
    words = [
        "fit",
        "digits",
        "--per-class",
        12,
        "--ridge",
        "loo",
        "--net",
        "cntk-vanilla-3",
        "--net",
        "cntk-gap-3",
        "--test",
        "0.25",
        "--out",
        tmp_path / "m",
    ]
    code, text, error = widelimit(*words)
    assert (code, error) == (0, "")
    assert text.startswith("digits: 120 images 8 x 8 grey, 10 classes\n")
    assert "fitted: 12 of each class, of 1,347 images\n" in text
    assert "held out: 450 of 1,797 images, 25% of each class, drawn with seed 0\n" in text
    assert "network: Conv(3)" in text
    assert "relative ridge, by leave-one-out: " in text
    assert "leave-one-out accuracy: " in text
    assert "accuracy on 450 test images: " in text
    loaded = wl.load_model(tmp_path / "m")
    assert loaded.classes_.tolist() == [str(digit) for digit in range(10)]
    assert len(loaded.x_fit_) == 120
    code, _, error = widelimit(*words)
    assert code == 2
    assert "exists: give another path, or --overwrite to replace a model" in error
    assert widelimit(*words, "--overwrite", "--time", "loo", "--ridge", "0")[0] == 0
    assert wl.load_model(tmp_path / "m").time == "loo"


def test_as_many_images_as_the_smallest_class_has(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.array([0] * 3 + [1] * 7)
    np.savez(
        tmp_path / "d.npz",
        x_train=rng.random((10, 4, 4, 1)),
        y_train=labels,
        x_test=rng.random((2, 4, 4, 1)),
        y_test=[0, 1],
    )
    words = ["fit", tmp_path / "d.npz", "--net", "cntk-vanilla-3", "--out", tmp_path / "m"]
    code, text, error = widelimit(*words, "--per-class", 3)
    assert (code, error) == (0, "")
    assert text.startswith("d: 6 images 4 x 4 grey, 2 classes")
    assert len(wl.load_model(tmp_path / "m").x_fit_) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digts"], "did you mean digits?"),
        (["digits", "--ridge", "lo"], "--ridge must be a number or loo, got 'lo'"),
        (["digits", "--ridge", "-1"], "ridge must be finite and >= 0"),
        (["digits", "--time", "soon"], "--time must be a number or loo"),
        (["digits", "--net", "cntk-gap"], "cntk-gap needs a depth, as in cntk-gap-11"),
        (["digits", "--net", "vgg"], "cntk-gap-DEPTH"),
        (["digits", "--net", "resnet"], "resnet needs a depth, as in resnet-8"),
        (["digits", "--kind", "cntk"], "kind must be"),
        (["digits", "--combine", "sum"], "combine must be"),
        (["digits", "--per-class", "500"], "--per-class must be at most 174"),
        (["digits", "--memory", "much"], "memory"),
        (["digits", "--test", "2024"], "got 2024: a file or folder of this name is ./2024"),
    ],
)
def test_bad_fit(words, message, tmp_path):
    code, _, error = widelimit("fit", *words, "--out", tmp_path / "m")
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_bad_predict(images, model, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((images / "new" / "a.png").read_bytes()[:40])
    program = tmp_path / "program.png"
    program.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "m").mkdir()
    for words, message in [
        ((model, tmp_path / "none.png"), "there is no file or folder"),
        ((model, tmp_path / "empty"), "must hold images"),
        ((tmp_path / "m", broken), "has no file model.json"),
        ((tmp_path / "none", broken), "there is no folder"),
        ((model, images / "new", "--out", tmp_path / "none" / "p.csv"), "there is no folder"),
        ((model, images / "new", "--array", "q"), "--array is for files of arrays, got"),
        ((model, images / "new", "--channels", "first"), "--channels first is for files"),
    ]:
        code, _, error = widelimit("predict", *words)
        assert code == 2, words
        assert message in error
    assert "EPS" not in safe_formats()
    rows = np.random.default_rng(0).random((3, 4))
    wl.save_model(wl.NTKClassifier(ridge=1).fit(rows, [0, 1, 0]), tmp_path / "rows")
    assert "reads rows of 4" in widelimit("predict", tmp_path / "rows", images / "new")[2]
    wl.save_model(wl.NTKRegressor(ridge=1).fit(rows, [0, 1, 0]), tmp_path / "numbers")
    assert "must hold a classifier" in widelimit("predict", tmp_path / "numbers", broken)[2]


ODD = [
    *(b"a\rb.png", b"a\nb.png", b"a\r\n.png", b'q".png', b"c,d.png", b"e;=f.png", b" b.png"),
    *(b"=cmd|' C'!A0.png", b"-1.png", b"@x.png", b"+1+1.png", b"\t=1.png", b"'x.png", b"-"),
    *(b"\xff\xfe.png", b"\x1b]0;x\x07.png", b"\\udcff.png", "\u202f\u00e9.png".encode()),
]


@pytest.fixture(scope="module")
def odd(images, tmp_path_factory):
    """Images with names that few programs expect, in the folder that they are asked for from."""
    folder = tmp_path_factory.mktemp("odd")
    content = (images / "new" / "a.png").read_bytes()
    for name in ODD:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(content)
    return folder


def name_of(cell):
    """Return the name of a file, as the tutorial says."""
    if cell.startswith("'"):
        cell = cell[1:].encode("ascii", "backslashreplace").decode("unicode_escape")
    return os.fsencode(cell)


def test_one_image_is_one_row_and_no_name_is_lost(model, odd, monkeypatch):
    monkeypatch.chdir(odd)
    names = list(map(os.fsdecode, ODD))
    code, text, _ = widelimit("predict", model, "--out", odd / "p.csv", "--", *names)
    assert (code, text) == (0, f"{odd}/p.csv: {len(ODD)} images\n")
    with (odd / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "class", "across, flat", "down", "problem"]
    assert [name_of(row[0]) for row in rows[1:]] == ODD
    assert {len(row) for row in rows} == {5}
    written = dict(zip(ODD, rows[1:], strict=True))
    for name in (b"a\rb.png", b"a\r\n.png", b'q".png', b"e;=f.png", b"\\udcff.png"):
        assert written[name][0] == name.decode()  # as it is, but for what CSV cannot hold
    # A folder is found, whatever is in it; and printed, it is the same, whatever the terminal.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "widelimit", "predict", str(model), "."]
    run = subprocess.run(command, capture_output=True, env=environment)
    said = b"widelimit: warning: .: passed over 1 of no format that is read here (p.csv)\n"
    assert (run.returncode, run.stderr) == (0, said)
    rows = list(csv.reader(io.StringIO(run.stdout.decode(), newline="")))
    found = {name_of(row[0]) for row in rows[1:]}
    assert (found, len(rows) - 1) == (set(ODD), len(found))


def test_names_of_classes_come_back(images, tmp_path):
    """Those of folders, of which a spreadsheet would run one and UTF-8 has no other."""
    classes = [b"=1+1", b"\xff\n"]
    for name, old in zip(classes, ("across, flat", "down"), strict=True):
        os.symlink(images / "train" / old, os.path.join(os.fsencode(tmp_path), name))
    words = ["fit", tmp_path, "--net", "cntk-gap-3", "--out", tmp_path / ".m"]
    assert widelimit(*words)[0] == 0
    code, text, _ = widelimit("predict", tmp_path / ".m", images / "new" / "a.png")
    assert code == 0
    head, row = csv.reader(io.StringIO(text, newline=""))
    assert [name_of(cell) for cell in head[2:-1]] == classes
    assert name_of(row[1]) == classes[0]


def test_labels_are_exact(tmp_path, images):
    x = np.random.default_rng(0).random((8, 6, 5, 1))
    labels = np.array([2**64 - 1, 2**64 - 2] * 4, np.uint64)
    wl.save_model(wl.NTKClassifier("cntk-gap-3", ridge=1).fit(x, labels), tmp_path / "m")
    _, text, _ = widelimit("predict", tmp_path / "m", images / "new" / "a.png")
    head, row = csv.reader(io.StringIO(text))
    assert head[2:-1] == ["18446744073709551614", "18446744073709551615"]
    assert row[1] in head[2:-1]


def test_what_cannot_be_read_or_written_is_told_before_the_work(
    images, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(classify, "read_image", lambda *_: pytest.fail("an image is read"))
    good = images / "new" / "a.png"
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    os.mkfifo(tmp_path / "sub" / "deep" / "x.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for words, message in [
        ((good, tmp_path / "pipe"), "pipe must be a regular file, it is a pipe"),
        ((good, "/dev/zero"), "/dev/zero must be a regular file"),
        ((good, tmp_path / "sub"), "not regular files, or links to none (deep/x.png)"),
        ((good, tmp_path / "gone.png"), "there is no file or folder"),
        ((good, "--out", tmp_path / "pipe"), "this is no file: give the path of a file"),
        ((good, "--out", tmp_path / "null"), "this is no file: give the path of a file"),
        ((good, "--out", tmp_path), "this is a folder: give the path of a file"),
        ((good, "--out", tmp_path / "none" / "p.csv"), "there is no folder"),
    ]:
        code, _, error = widelimit("predict", model, *words)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
    (tmp_path / "a\n\x1b[1m").mkdir()
    error = widelimit("predict", model, tmp_path / "a\n\x1b[1m")[2]
    assert (error.count("\n"), "\x1b" in error, r"a \x1b[1m must hold" in error) == (1, False, True)


def test_classifiers_that_have_no_table(tmp_path, images):
    x = np.random.default_rng(0).random((8, 6, 5, 1))
    good = images / "new" / "a.png"
    named = wl.NTKClassifier("cntk-gap-3", ridge=1).fit(x, ["a" * 40_000, "b"] * 4)
    wl.save_model(named, tmp_path / "long")
    assert "more than 32,767 characters" in widelimit("predict", tmp_path / "long", good)[2]


def test_a_model_without_probabilities_tells_classes(tmp_path, images, monkeypatch):
    """As conjugate gradients leave it, whether they were asked for or there was no memory."""
    x, y = np.random.default_rng(0).random((8, 6, 5, 1)), [0, 1] * 4
    good = images / "new" / "a.png"
    asked = wl.NTKClassifier("cntk-gap-3", ridge=1, solver="cg").fit(x, y)
    monkeypatch.setattr(regression, "remaining", lambda memory: 0)
    forced = wl.NTKClassifier("cntk-gap-3", ridge=1).fit(x, y)
    assert not hasattr(forced, "predict_proba")
    label = asked.predict(np.full((1, 6, 5, 1), 0.5))[0]
    Image.new("L", (5, 6), 127).save(tmp_path / "i.png")
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:40])
    for name, model in (("asked", asked), ("forced", forced)):
        wl.save_model(model, tmp_path / name)
        paths = tmp_path / "i.png", tmp_path / "broken.png"
        code, text, error = widelimit("predict", tmp_path / name, *paths)
        assert code == 0
        assert "warning: the model gives classes without probabilities" in error
        head, row, broken = csv.reader(io.StringIO(text))
        assert head == ["image", "class", "problem"]
        assert row == [str(paths[0]), str(label), ""]
        assert broken[:2] == [str(paths[1]), ""]
        assert len(broken) == 3


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("fit --out {}/m", "give --store, a folder for it, or fewer images, or raise --memory"),
        ("fit --ridge loo --out {}/m", "give --ridge a number and leave --time out, or fewer "),
        ("suspects --out {}/s", "give --ridge a number, or fewer images"),
        ("suspects --ridge 1 --out {}/s", "give fewer images"),
    ],
)
def test_a_factor_without_room_is_refused_before_the_work(
    words, remedy, images, tmp_path, monkeypatch
):
    """Else conjugate gradients would say nothing of leave-one-out, and have no probabilities."""
    monkeypatch.setattr(regression, "remaining", lambda memory: 0)
    monkeypatch.setattr(FittedKernel, "gram", lambda *_, **__: pytest.fail("the work has begun"))
    command, *rest = words.format(tmp_path).split()
    code, _, error = widelimit(command, images / "train", "--net", "cntk-gap-3", *rest)
    assert code == 1
    assert error.startswith("widelimit: out of memory: ")
    assert f"0.0 GiB are free for it: {remedy}" in error
    assert not (tmp_path / "m").exists()


def test_batches_change_nothing(images, model, monkeypatch):
    whole = widelimit("predict", model, images / "new")[1]
    monkeypatch.setattr(classify, "_BATCH", 2)
    assert widelimit("predict", model, images / "new")[1] == whole


def test_warnings_are_one_line(tmp_path):
    x = np.random.default_rng(0).random((6, 4, 4, 1))
    x[1::2] = x[::2] + 1e-13  # and another label
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.arange(6) % 2)
    # In a process of its own: here warnings are errors.
    code, _, error = widelimit_process(
        "fit",
        tmp_path / "d.npz",
        "--net",
        "cntk-vanilla-3",
        "--dtype",
        "float64",
        "--out",
        tmp_path / "m",
    )
    assert code == 0
    assert error.startswith("widelimit: warning: Solved, but the entries of k are not exact enough")
    assert error.count("\n") == 1


@pytest.mark.parametrize("size", [(6, 5), (60, 50), (3, 2), (6, 6)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_images_fit_the_model(size, dtype):
    level = np.iinfo(dtype).max
    plain = np.full((*size, 1), level // 5 * 3, dtype)
    values, changes = fit_image(plain, (6, 5, 3))
    assert values.shape == (6, 5, 3)
    np.testing.assert_allclose(values, level // 5 * 3 / level, atol=1e-6)
    assert changes == ([] if size == (6, 5) else ["resized"])
    colour = np.random.default_rng(0).integers(0, level, (*size, 3)).astype(dtype)
    values, changes = fit_image(colour, (6, 5, 1))
    assert changes[0] == "made grey"
    assert 0 <= values.min() <= values.max() <= 1
    expected = (colour / level) @ np.array([[0.299], [0.587], [0.114]])
    np.testing.assert_allclose(values.mean(), expected.mean(), atol=0.1)


def test_what_a_resized_edge_overshoots_is_cut_off():
    edge = np.zeros((9, 9, 1), np.uint8)
    edge[:, 4:] = 255
    wider = Image.fromarray(edge[..., 0].astype(np.float32) / 255)
    wider = np.asarray(wider.resize((27, 27), Image.Resampling.LANCZOS))
    assert wider.min() < -0.02  # there is something to cut off, on both sides
    assert wider.max() > 1.02
    values, _ = fit_image(edge, (27, 27, 1))
    assert (values.min(), values.max()) == (0.0, 1.0)
    inside = (wider >= 0) & (wider <= 1)
    np.testing.assert_array_equal(values[inside, 0], wider[inside])


def test_help_is_quick_and_whole():
    for command in ("fit", "predict"):
        run = subprocess.run(
            [sys.executable, "-m", "widelimit", command, "--help"], capture_output=True, text=True
        )
        assert run.returncode == 0
        assert "--out" in run.stdout
