"""Own photos: which files of folders are read, by all commands, and what is said of the others."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import widelimit as wl
from widelimit.cli import app
from widelimit.data import image
from widelimit.data.load import read_dataset
from widelimit.data.search import find_images
from widelimit.job import read_inputs

QUIET = pytest.mark.filterwarnings("ignore:.*passed over")


def widelimit(*words: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def picture(level: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    """Noise over stripes: across below level 50, down from there on."""
    h, w = size
    stripes = np.indices(size)[int(level >= 50)] % 2 * 120 + 50
    noise = np.random.default_rng(level).integers(-50, 50, (h, w, 3))
    return Image.fromarray((stripes[..., None] + noise).astype(np.uint8)).convert(mode)


def put(path: Path, level: int, size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(level, size).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of four images, those of the second in folders of folders."""
    folder = tmp_path / "photos"
    for k in range(4):
        put(folder / "dark" / f"{k}.png", 10 + k)
        put(folder / "light" / "2024" / f"may {k % 2}" / f"{k}.jpg", 200 + k)
    return folder


def add_clutter(folder: Path) -> None:
    put(folder / "__MACOSX" / "dark" / "._0.png", 1)
    put(folder / ".ipynb_checkpoints" / "0.png", 1)
    put(folder / "dark" / ".ipynb_checkpoints" / "0.png", 1)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "readme.txt"):
        (folder / "light" / name).write_text("clutter")
    (folder / "labels.csv").write_text("a,b")


def test_fit_and_predict_and_kernel_read_the_same_files(photos: Path, tmp_path: Path) -> None:
    add_clutter(photos)
    model = tmp_path / "model"
    code, text, error = widelimit("fit", photos, "--net", "cntk-gap-3", "--out", model)
    assert code == 0, error
    assert text.startswith("photos: 8 images 6 x 5 colour, 2 classes\n")
    assert len(error.splitlines()) == 1  # what was passed over, and why
    said = re.sub(" +", " ", error)
    assert "hidden or of the system (" in said
    assert "1 in no folder of a class (labels.csv)" in said
    assert "1 of no format that is read here (light/readme.txt)" in said

    code, text, error = widelimit("predict", model, photos)
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["class"] for row in rows] == ["dark"] * 4 + ["light"] * 4
    assert error.count("passed over") == 1
    with pytest.warns(UserWarning, match="passed over"):
        assert len(read_inputs(str(photos))) == 8
    with pytest.warns(UserWarning, match="passed over"):
        data = wl.load_dataset(photos)
    assert (len(data.x_train), len(data.x_test)) == (6, 2)
    assert set(data.files_train or ()) | set(data.files_test or ()) == {
        *(f"dark/{k}.png" for k in range(4)),
        *(f"light/2024/may {k % 2}/{k}.jpg" for k in range(4)),
    }


def test_nothing_is_said_where_nothing_is_passed_over(photos: Path) -> None:
    assert str(find_images(photos)) == ""
    assert len(read_inputs(str(photos))) == 8  # a warning would be an error here


SUFFIXES = [".jfif", ".jpe", ".JPG", ".bmp", ".pbm", ".pnm", ".jp2", ".tif", ".webp", ".tga", ""]


@pytest.mark.parametrize("end", SUFFIXES)
def test_any_name_of_an_image_is_one(tmp_path: Path, end: str) -> None:
    kind = {"": "PNG", ".pbm": "PPM", ".pnm": "PPM"}.get(end)
    picture(9).save(tmp_path / f"x{end}", format=kind)
    assert [path.name for path in find_images(tmp_path).images] == [f"x{end}"]
    read = image.read_image(tmp_path / f"x{end}", tmp_path, image.safe_formats())
    assert read.shape == (6, 5, 3)


def test_avif_is_read_where_pillow_does(tmp_path: Path) -> None:
    if ".avif" not in image.image_suffixes():
        pytest.skip("this Pillow has no AVIF")
    picture(9, (32, 32)).save(tmp_path / "x.avif")
    assert len(find_images(tmp_path).images) == 1


def test_heic_needs_another_package_and_is_read_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a" / "1.png", 3)
    (tmp_path / "a" / "2.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image._register.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert "1 in HEIC, which pip install pillow-heif makes readable (a/2.HEIC)" in str(
        find_images(tmp_path)
    )
    called: list[bool] = []

    def register() -> None:
        called.append(True)
        monkeypatch.setattr(Image, "EXTENSION", Image.EXTENSION | {".heic": "PNG"})

    fake = SimpleNamespace(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    image._register.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert len(find_images(tmp_path).images) == 2
    assert called == [True]
    image._register.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_formats_that_only_have_a_name_are_none() -> None:
    assert not {".h5", ".hdf", ".mpg", ".grib", ".eps"} & image.image_suffixes()


@QUIET
@pytest.mark.parametrize(
    ("parts", "n_test"),
    [
        (("train", "test"), 2),
        (("Train", "Test"), 2),
        (("training", "testing"), 2),
        (("train", "val"), 2),
        (("TRAIN", "validation", "test"), 2),
    ],
)
def test_parts_of_a_data_set_are_understood(
    tmp_path: Path, parts: tuple[str, ...], n_test: int
) -> None:
    for number, part in enumerate(parts):
        for k in range(3 if number == 0 else 1):
            put(tmp_path / "d" / part / "a" / f"{k}.png", 10 * number + k)
            put(tmp_path / "d" / part / "b" / f"{k}.png", 10 * number + k + 100)
    data = wl.load_dataset(tmp_path / "d")
    assert data.split == "given"
    assert (data.class_names, len(data.y_train), len(data.y_test)) == (("a", "b"), 6, n_test)
    assert data.files_test is not None
    assert data.files_test[0].startswith(parts[-1])


def test_one_part_of_a_folder(tmp_path: Path) -> None:
    """As of files: a part is what is called so, and no other in its place."""
    for part, level in (("train", 10), ("validation", 30)):
        for name, k in (("a", 0), ("a", 1), ("b", 0), ("b", 1)):
            put(tmp_path / "d" / part / name / f"{k}.png", level + k)
    for wanted, folder in (("train", "train"), ("val", "validation")):
        data = read_dataset(f"{tmp_path}/d:{wanted}")
        assert data.split == "none"
        assert data.files_train is not None
        assert {name.split("/")[0] for name in data.files_train} == {folder}
        assert (len(data.y_train), len(data.y_test)) == (4, 0)
    with pytest.raises(ValueError, match="has no part 'test', got train, val"):
        wl.load_dataset(f"{tmp_path}/d:test")
    put(tmp_path / "d" / "test" / "a" / "1.png", 1)
    put(tmp_path / "d" / "test" / "b" / "1.png", 2)
    assert read_dataset(f"{tmp_path}/d:test").files_train == ("test/a/1.png", "test/b/1.png")
    assert len(read_dataset(f"{tmp_path}/d:val").y_train) == 4
    assert len(read_dataset(f"{tmp_path}/d/train:train").y_train) == 4  # without parts: all
    with pytest.raises(ValueError, match="has no part 'val', got train"):
        read_dataset(f"{tmp_path}/d/train:val")
    with pytest.raises(ValueError, match="digits has no part 'test', got train"):
        read_dataset("digits:test")
    assert len(read_dataset("digits:train").y_train) == 1797


def test_options_that_a_folder_has_no_use_for(photos: Path) -> None:
    for options, message in (
        ({"label": "kind"}, r"photos, a folder of images, has one label .*got label='kind'"),
        ({"channels": "first"}, 'channels last, got channels="first": leave channels'),
        ({"channels": "frist"}, 'channels must be "first", "last" or None, got'),
        ({"image_shape": (2, 2, 2)}, r"got image_shape=\(2, 2, 2\), which says which image a row"),
        ({"image_shape": (2, 2)}, r"image_shape must be \(h, w, c\), each 1 or more, got"),
    ):
        with pytest.raises(ValueError, match=message):
            read_dataset(photos, **cast("Any", options))
    assert len(read_dataset(photos, channels="last", series=True).y_train) == 8


def test_validation_images_beside_test_images_are_passed_over(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for name in "ab":
            put(tmp_path / part / name / "1.png", ord(name))
    with pytest.warns(UserWarning, match="2 images of val, which neither fit nor test uses"):
        wl.load_dataset(tmp_path)


def test_the_first_frame_of_an_animation_is_taken_and_said(photos: Path) -> None:
    frames = [picture(0, mode="L"), picture(99, mode="L")]
    frames[0].save(photos / "dark" / "4.gif", save_all=True, append_images=frames[1:])
    frames[0].save(photos / "dark" / "5.tif", save_all=True, append_images=frames[1:])
    said = r"2 images were animated or of several pages: the first one was taken \(.*dark/4.gif\)"
    with pytest.warns(UserWarning, match=said):
        data = wl.load_dataset(photos)
    files = (*(data.files_train or ()), *(data.files_test or ()))
    images = np.concatenate([data.x_train, data.x_test])
    expected = np.asarray(frames[0])[..., None] / 255
    for name in ("dark/4.gif", "dark/5.tif"):
        np.testing.assert_allclose(images[files.index(name)], np.broadcast_to(expected, (6, 5, 3)))


def test_transparent_pixels_are_put_on_white_and_said(photos: Path, tmp_path: Path) -> None:
    half = Image.new("RGBA", (5, 6), (0, 0, 0, 0))
    half.putpixel((0, 0), (255, 0, 0, 255))
    half.save(photos / "light" / "4.png")
    with pytest.warns(UserWarning, match=r"1 image was transparent: put on white \(light/4.png\)"):
        images = read_inputs(str(photos))
    white = images[-1]  # behind the folder 2024
    np.testing.assert_array_equal(white[0, 0], [1, 0, 0])
    np.testing.assert_array_equal(white[1:], 1.0)
    model = tmp_path / "m"
    widelimit("fit", photos, "--net", "cntk-gap-3", "--out", model)
    assert "put on white (4.png)" in widelimit("predict", model, photos / "light" / "4.png")[2]


# --- what is fitted, and what is held out ---


@pytest.mark.parametrize("several", [False, True])
def test_everything_is_fitted_unless_a_test_is_asked_for(
    photos: Path, tmp_path: Path, several: bool
) -> None:
    if not several:  # one image of a class is enough
        for k in range(1, 4):
            (photos / "dark" / f"{k}.png").unlink()
    n = 8 if several else 5
    words = ["fit", photos, "--net", "cntk-gap-3", "--ridge", "1e-3", "--out"]
    code, text, error = widelimit(*words, tmp_path / "all")
    assert (code, error) == (0, "")
    assert text.startswith(f"photos: {n} images")
    assert "held out" not in text
    assert len(wl.load_model(tmp_path / "all").x_fit_) == n
    code, text, _ = widelimit(*words, tmp_path / "held", "--test", "0.25")
    assert "25% of each class, drawn with seed 0" in text
    assert f"held out: {2 if several else 1} of {n} images" in text
    assert f"accuracy on {2 if several else 1} test images: " in text
    assert len(wl.load_model(tmp_path / "held").x_fit_) == n - (2 if several else 1)


def test_a_test_folder_and_a_number_of_each_class(photos: Path, tmp_path: Path) -> None:
    other = shutil.copytree(photos, tmp_path / "other")
    words = ["fit", photos, "--net", "cntk-gap-3", "--out"]
    _, text, _ = widelimit(*words, tmp_path / "a", "--test", other, "--per-class", 3)
    assert text.startswith("photos: 6 images")
    assert "fitted: 3 of each class, of 8 images\n" in text
    assert f"test: 8 images of {other}\n" in text
    assert "accuracy on 8 test images: 100.00%" in text
    for more, message in [
        (["--per-class", 5], "at most 4, the images of the smallest class of"),
        (["--per-class", 4, "--test", 0.3], "that are not held out, got 4"),
        (["--test", "given"], "has no test set of its own: --test 0.2 holds a fifth out"),
        (["--test", 1.5], "must be above 0 and below 1, got 1.5"),
        (["--test", 0.01], "leaves no image to test with in 8"),
        (["--test", "nowhere"], "there is no data set and no path 'nowhere'"),
    ]:
        code, _, error = widelimit(*words, tmp_path / "b", *more)
        assert code == 2
        assert message in error
    put(other / "grey" / "1.png", 100)
    _, _, error = widelimit(*words, tmp_path / "b", "--test", other)
    assert "must have the classes of photos, got also grey" in error
    for name in ("grey", "dark"):
        shutil.rmtree(other / name)
    _, text, _ = widelimit(*words, tmp_path / "c", "--test", other)  # one class is enough to test
    assert "accuracy on 4 test images: 100.00%" in text


def test_a_test_set_of_the_data_is_left_out_and_said(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for k in range(2):
            put(tmp_path / "d" / part / "a" / f"{k}.png", 10 + k)
            put(tmp_path / "d" / part / "b" / f"{k}.png", 90 + k)
    words = ["fit", tmp_path / "d", "--net", "cntk-gap-3", "--out"]
    _, text, _ = widelimit(*words, tmp_path / "m")
    assert text.startswith("d: 4 images")
    assert "left out: 4 test images of the data (--test given classifies them)" in text
    assert "accuracy" not in text.replace("leave-one-out accuracy", "")
    _, text, _ = widelimit(*words, tmp_path / "n", "--test", "given")
    assert "held out: 4 images, the test set of the data" in text
    assert "accuracy on 4 test images: " in text
    assert "left out" not in text
    said = "left out: 4 test images of the data (--test given classifies them)\n"
    _, text, _ = widelimit(*words, tmp_path / "o", "--test", 0.5)
    assert f"held out: 2 of 4 images, 50% of each class, drawn with seed 0\n{said}" in text
    other = tmp_path / "d"
    passed = f"left out: 4 test images of {other} (--test {other}:test classifies them)\n"
    _, text, _ = widelimit(*words, tmp_path / "p", "--test", other)
    assert f"test: 4 images of {other}\n{passed}{said}" in text
    _, text, _ = widelimit(*words, tmp_path / "q", "--test", f"{other}:test")
    assert f"test: 4 images of {other}:test\n{said}" in text


# --- sizes, and images that cannot be read ---


def test_mixed_sizes_are_named_with_the_flag_that_helps(photos: Path, tmp_path: Path) -> None:
    put(photos / "dark" / "4.png", 5, size=(20, 30))
    put(photos / "dark" / "5.png", 6, size=(20, 30))
    words = ["fit", photos, "--net", "cntk-gap-3", "--out", tmp_path / "m"]
    code, _, error = widelimit(*words)
    assert code == 2
    assert "got 6x5 (8: dark/0.png, ...), 20x30 (2: dark/4.png, ...)" in error
    assert "--size 6x5" in error
    code, text, error = widelimit(*words, "--size", "4x3")
    assert (code, error) == (0, "")
    assert text.startswith("photos: 10 images 4 x 3 colour")
    model = wl.load_model(tmp_path / "m")
    assert model.image_shape_ == (4, 3, 3)
    fitted = read_inputs(str(photos), size=(4, 3))
    np.testing.assert_array_equal(model.x_fit_, fitted)
    # as predict resizes them
    code, text, _ = widelimit("predict", tmp_path / "m", photos / "dark")
    shown = [float(row["dark"]) for row in csv.DictReader(io.StringIO(text))]
    np.testing.assert_allclose(shown, model.predict_proba(fitted[:6])[:, 0], rtol=1e-5)
    for size in ("4", "4x", "0x3", "4x3x3", "axb"):
        assert "as in 32x48" in widelimit(*words, "--size", size)[2]


def test_resizing_does_not_alias(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (60, 30))  # each pixel unlike its neighbours
    for name in "ab":
        (tmp_path / "s" / name).mkdir(parents=True)
        Image.fromarray(stripes).save(tmp_path / "s" / name / "1.png")
    resized = read_inputs(str(tmp_path / "s"), size=(10, 10))
    np.testing.assert_allclose(resized, 0.5, atol=0.05)


def test_data_sets_and_demo_are_resized_as_well(tmp_path: Path) -> None:
    data = wl.load_dataset("digits", size=(4, 5))
    assert data.image_shape == (4, 5, 1)
    assert read_inputs("digits", size=(4, 4)).shape == (1797, 4, 4, 1)
    assert "--size must be height x width" in widelimit("demo", "--size", "4")[2]
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    words = ("kernel", tmp_path / "x.npy", "--net", "ntk-dense-2", "--out", tmp_path / "k.npy")
    assert "are for data sets and folders" in widelimit(*words, "--size", "4x4")[2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_all_images_that_cannot_be_read_are_named_at_once(photos: Path, tmp_path: Path) -> None:
    cut(photos / "dark" / "1.png")
    (photos / "light" / "2024" / "may 0" / "0.jpg").write_bytes(b"")
    words = ["fit", photos, "--net", "cntk-gap-3", "--out", tmp_path / "m"]
    code, _, error = widelimit(*words)
    assert code == 2
    assert f"2 of 8 images of {photos} cannot be read: " in error
    assert "dark/1.png" in error
    assert "light/2024/may 0/0.jpg" in error
    assert "--skip-bad" in error
    code, text, error = widelimit(*words, "--skip-bad")
    assert code == 0
    assert text.startswith("photos: 6 images")
    assert f"2 of 8 images of {photos} were left out: " in error
    for path in (photos / "dark").iterdir():
        cut(path)
    code, _, error = widelimit(*words, "--skip-bad", "--overwrite")
    assert code == 2
    assert "no image can be read of dark" in error


def test_one_bad_file_never_ends_predict(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widelimit("fit", photos, "--net", "cntk-gap-3", "--out", tmp_path / "m")
    cut(photos / "dark" / "1.png")
    monkeypatch.setattr("widelimit.classify._BATCH", 1)  # a batch may hold nothing else
    code, text, error = widelimit("predict", tmp_path / "m", photos)
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["class"] for row in rows] == ["dark", "", "dark", "dark"] + ["light"] * 4
    assert "cannot read 1.png (" in rows[1]["problem"]
    assert (rows[1]["dark"], rows[0]["problem"]) == ("", "")
    assert "1 of 8 images could not be read: the column problem says why" in error


@pytest.mark.parametrize("harm", [cut, lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0")])
def test_a_table_of_nothing_but_bad_files(
    photos: Path, tmp_path: Path, harm: Callable[[Path], Any]
) -> None:
    widelimit("fit", photos, "--net", "cntk-gap-3", "--out", tmp_path / "m")
    harm(photos / "dark" / "1.png")
    code, text, _ = widelimit("predict", tmp_path / "m", photos / "dark" / "1.png")
    assert code == 0
    assert "cannot read 1.png" in text


def test_the_order_of_rows_is_written_beside_a_kernel(photos: Path, tmp_path: Path) -> None:
    words = ["kernel", photos, "--net", "cntk-gap-3", "--columns", photos, "--out"]
    for out in ("k.npy", "s.zarr"):
        code, _, error = widelimit(*words, tmp_path / out)
        assert code == 0, error
        for end in ("rows", "columns"):
            table = (tmp_path / out).with_suffix(f".{end}.csv")
            rows = list(csv.DictReader(io.StringIO(table.read_text())))
            assert [row["image"] for row in rows[:5]] == [
                *(f"dark/{k}.png" for k in range(4)),
                "light/2024/may 0/0.jpg",
            ]
            assert [row["label"] for row in rows] == ["dark"] * 4 + ["light"] * 4
    np.save(tmp_path / "x.npy", np.ones((3, 4)))
    widelimit("kernel", tmp_path / "x.npy", "--net", "ntk-dense-2", "--out", tmp_path / "n.npy")
    assert not (tmp_path / "n.rows.csv").exists()


def test_the_table_of_another_matrix_is_not_replaced(photos: Path, tmp_path: Path) -> None:
    words = ["kernel", photos, "--net", "cntk-gap-3", "--out"]
    table = tmp_path / "k.rows.csv"
    assert widelimit(*words, tmp_path / "k.npy")[0] == 0
    held = table.read_bytes()
    assert widelimit(*words, tmp_path / "k.zarr")[0] == 0  # of the same images
    (photos / "dark" / "0.png").rename(photos / "dark" / "9.png")
    for _ in "ab":
        code, _, error = widelimit(*words, tmp_path / "n.zarr")
        assert code == 0, error
    for out, remedy in (("k.npy", "say --overwrite"), ("k.zarr", "give another --out, or delete")):
        (tmp_path / "k.npy").unlink(missing_ok=True)
        code, _, error = widelimit(*words, tmp_path / out)
        assert (code, error.count("\n")) == (2, 1), error
        assert f"{table}: there is one already" in error
        assert remedy in error
        assert (table.read_bytes(), (tmp_path / "k.npy").exists()) == (held, False)
    assert widelimit(*words, tmp_path / "k.npy", "--overwrite")[0] == 0
    assert table.read_bytes() == (tmp_path / "n.rows.csv").read_bytes() != held
