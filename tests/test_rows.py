"""Rows and images in tables and arrays, from `widelimit fit` to `predict`; names of files."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
from PIL import Image
from sklearn.datasets import load_digits, load_iris
from typer.testing import CliRunner

import widelimit as wl
from widelimit import cli
from widelimit.estimators.influence import Influence
from widelimit.estimators.saved import _document_checksum

IRIS = load_iris()
WORDS = IRIS.target_names[IRIS.target]
COLUMNS = ["sepal length", "sepal width", "petal length", "petal width"]
DIGITS = load_digits()
PIXELS = (DIGITS.images[:60] * 15).astype(np.uint8)


def widelimit(*words: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def run(*words: Any) -> tuple[str, str]:
    code, text, error = widelimit(*words)
    assert code == 0, error
    return text, error


def refused(*words: Any) -> str:
    code, _, error = widelimit(*words)
    assert code == 2
    assert error.count("\n") == 1
    return error


def predicted(text: str) -> tuple[list[str], list[str], np.ndarray]:
    _, *rows = csv.reader(io.StringIO(text))
    chances = np.array([[float(cell) for cell in row[2:-1]] for row in rows])
    return [row[0] for row in rows], [row[1] for row in rows], chances


def iris(places: Any = slice(None), columns: Any = COLUMNS, **more: Any) -> pd.DataFrame:
    frame = pd.DataFrame(IRIS.data[places], columns=COLUMNS)[list(columns)]
    return frame.assign(species=WORDS[places], **more)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flowers")
    iris(slice(0, None, 2)).to_csv(folder / "iris.csv", index=False)
    text, error = run("fit", folder / "iris.csv", "--out", folder / "model", "--ridge", "1e-3")
    assert error == ""
    assert text.startswith("iris: 75 rows of 4 values, 3 classes, the label is 'species'\n")
    return folder


def expected(x: np.ndarray) -> np.ndarray:
    model = wl.NTKClassifier(ridge=1e-3).fit(IRIS.data[::2], WORDS[::2])
    return model.predict_proba(x)


def test_rows_of_a_table(flowers: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    other = iris(slice(1, 30, 2), COLUMNS[::-1], height=1.0)
    other.to_csv(new, index=True)  # columns in another order, and more of them
    text, error = run("predict", flowers / "model", new)
    assert "passed over the columns 'Unnamed: 0', 'species', 'height'" in error
    names, classes, chances = predicted(text)
    assert names == [f"{new}[{k}]" for k in range(15)]
    assert text.startswith("row,class,setosa,versicolor,virginica,problem\n")
    np.testing.assert_allclose(chances, expected(IRIS.data[1:30:2]), rtol=1e-4, atol=1e-6)
    assert set(classes) == {"setosa"}
    out = tmp_path / "p.csv"
    assert run("predict", flowers / "model", new, new, "--out", out)[0] == f"{out}: 30 rows\n"
    error = refused("predict", flowers / "model", new, "--array", "x")
    assert "--array is for files of arrays" in error


def test_rows_with_names(flowers: Path, tmp_path: Path) -> None:
    files = [f"photo {k}.jpg" for k in range(3)]
    iris(slice(0, 3), filename=files).to_csv(tmp_path / "n.csv", index=False)
    assert predicted(run("predict", flowers / "model", tmp_path / "n.csv")[0])[0] == files


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "both.npz", "x.mat", "plain.csv", "labels.csv"])
def test_rows_of_other_files(flowers: Path, tmp_path: Path, name: str) -> None:
    x, path = IRIS.data[1:30:2], tmp_path / name
    if name == "x.npy":
        np.save(path, x)
    elif name == "x.npz":
        np.savez(path, rows=x)
    elif name == "both.npz":
        np.savez(path, x_test=x, y_test=WORDS[1:30:2])
    elif name == "x.mat":
        scipy.io.savemat(path, {"X": x.T})
    else:
        frame = iris(slice(1, 30, 2))
        frame = frame if name == "labels.csv" else frame[COLUMNS]
        frame.to_csv(path, index=False, header=False)
    chances = predicted(run("predict", flowers / "model", path)[0])[2]
    np.testing.assert_allclose(chances, expected(x), rtol=1e-4, atol=1e-6)


def test_rows_that_are_refused(flowers: Path, tmp_path: Path) -> None:
    model, path = flowers / "model", tmp_path / "a.csv"
    iris()[COLUMNS[:3]].to_csv(path, index=False)
    assert "got no 'petal width'; there are columns sepal length (numbers)" in refused(
        "predict", model, path
    )
    pd.DataFrame(IRIS.data[:, :3]).to_csv(path, index=False, header=False)
    assert "must have 4 columns of numbers" in refused("predict", model, path)
    np.savez(tmp_path / "a.npz", x_train=IRIS.data, x_test=IRIS.data)
    error = refused("predict", model, tmp_path / "a.npz")
    assert "has the samples x_train, x_test, got x_test float64 (150, 4), x_train" in error
    assert "name the array with --array" in error
    run("predict", model, tmp_path / "a.npz", "--array", "x_test")
    assert "has no samples called 'z'" in refused(
        "predict", model, tmp_path / "a.npz", "--array", "z"
    )
    np.save(tmp_path / "a.npy", PIXELS)
    assert "must hold rows of 4 values, like the model's, got (60, 8, 8)" in refused(
        "predict", model, tmp_path / "a.npy"
    )
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    assert "it reads rows of 4 values: give a table" in refused(
        "predict", model, tmp_path / "a.png"
    )
    x = IRIS.data[:3].copy()
    x[1, 2] = np.nan
    np.save(tmp_path / "a.npy", x)
    assert "must be finite, got nan at [1, 2]" in refused("predict", model, tmp_path / "a.npy")


def test_a_test_table_has_its_columns_by_name(flowers: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    iris(slice(1, None, 2), [*COLUMNS[::-1]], height=1.0).to_csv(other, index=False)
    words = ["fit", flowers / "iris.csv", "--out", tmp_path / "m", "--ridge", "1e-3"]
    text, _ = run(*words, "--test", other)
    share = np.mean(expected(IRIS.data[1::2]).argmax(axis=1) == IRIS.target[1::2])
    assert f"accuracy on 75 test rows: {share:.2%}\n" in text
    iris(slice(1, None, 2), COLUMNS[:3]).to_csv(other, index=False)
    error = refused(*words, "--overwrite", "--test", other)
    assert "must have the columns of iris, got no 'petal width'" in error
    iris(slice(1, 50, 2), COLUMNS).to_csv(other, index=False)  # of one class
    text, _ = run(*words, "--overwrite", "--test", other)
    assert "accuracy on 25 test rows: " in text
    assert "must be at least 2 distinct names, got ['setosa']: add" in refused(
        "fit", other, "--out", tmp_path / "n"
    )
    text, _ = run(*words, "--overwrite", "--test", "0.2")
    assert "held out: 15 of 75 rows, 20% of each class, drawn with seed 0\n" in text
    text, _ = run(*words, "--overwrite", "--per-class", "10")
    assert "fitted: 10 of each class, of 75 rows\n" in text


# --- images in tables and arrays ---


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    np.savez(folder / "digits.npz", x_train=PIXELS, y_train=DIGITS.target[:60])
    run("fit", folder / "digits.npz", "--net", "cntk-vanilla-3", "--out", folder / "model")
    return folder


def test_images_of_other_files(digits: Path, tmp_path: Path) -> None:
    new = PIXELS[:4]
    model = wl.NTKClassifier("cntk-vanilla-3").fit(PIXELS[..., None] / 255, DIGITS.target[:60])
    wanted = model.predict_proba(new[..., None] / 255)
    np.save(tmp_path / "x.npy", new)
    np.savez(tmp_path / "floats.npz", new[..., None] / 255)
    np.save(tmp_path / "rows.npy", new.reshape(4, 64))
    scipy.io.savemat(tmp_path / "last.mat", {"digits": np.moveaxis(new, 0, -1)})
    frame = pd.DataFrame(new.reshape(4, 64), columns=[f"pixel{k}" for k in range(64)])
    frame.to_csv(tmp_path / "pixels.csv", index=False)
    frame.insert(0, "label", DIGITS.target[:4])
    frame.to_csv(tmp_path / "labels.csv", index=False)
    for path in sorted(tmp_path.iterdir()):
        names, classes, chances = predicted(run("predict", digits / "model", path)[0])
        assert names == [f"{path}[{k}]" for k in range(4)], path
        np.testing.assert_allclose(chances, wanted, rtol=1e-4, atol=1e-6, err_msg=str(path))
        assert classes == ["0", "1", "2", "3"]


def test_images_and_arrays_together(digits: Path, tmp_path: Path) -> None:
    for k in range(2):
        Image.fromarray(PIXELS[k]).save(tmp_path / f"{k}.png")
    np.save(tmp_path / "x.npy", PIXELS[2:5])
    paths = [tmp_path / "0.png", tmp_path / "x.npy", tmp_path / "1.png"]
    text, error = run("predict", digits / "model", *paths)
    assert error == ""
    names, classes, _ = predicted(text)
    assert names == [str(paths[0]), *(f"{paths[1]}[{k}]" for k in range(3)), str(paths[2])]
    assert classes == ["0", "2", "3", "4", "1"]
    out = tmp_path / "p.csv"
    text, _ = run("predict", digits / "model", *paths, "--out", out)
    assert text == f"{out}: 2 images and 3 images in tables or arrays\n"


def test_colour_images_in_rows_ask_for_channels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(8) % 2)
    model = tmp_path / "model"
    run("fit", tmp_path / "a.npz", "--net", "cntk-vanilla-3", "--out", model)
    np.save(tmp_path / "rows.npy", images.transpose(0, 3, 1, 2).reshape(8, -1))
    assert "are read in two ways" in refused("predict", model, tmp_path / "rows.npy")
    found = predicted(run("predict", model, tmp_path / "rows.npy", "--channels", "first")[0])
    np.save(tmp_path / "images.npy", images)
    same = predicted(run("predict", model, tmp_path / "images.npy")[0])
    np.testing.assert_array_equal(found[2], same[2])


def test_normalised_images_and_others(digits: Path, tmp_path: Path) -> None:
    white = PIXELS / 255 - 0.4
    np.savez(tmp_path / "w.npz", x=white, y=DIGITS.target[:60])
    model = tmp_path / "model"
    text, _ = run("fit", tmp_path / "w.npz", "--net", "cntk-vanilla-3", "--out", model)
    assert text.startswith("w: 60 images 8 x 8 grey, 10 classes, normalised, as they are\n")
    np.save(tmp_path / "new.npy", white[:3])
    run("predict", model, tmp_path / "new.npy")
    np.save(tmp_path / "bytes.npy", PIXELS[:3])
    error = refused("predict", model, tmp_path / "bytes.npy")
    assert "must hold normalised images, as those that the model was fitted to" in error
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    error = refused("predict", model, tmp_path / "a.png")
    assert "images that were normalised, and files have pixels in [0, 1]" in error
    error = refused("predict", digits / "model", tmp_path / "new.npy")
    assert "must hold pixels in [0, 1]" in error


@pytest.mark.parametrize("options", [{"whiten": 0.1}, {"standardise": True}])
@pytest.mark.parametrize("before", [False, True])
def test_what_is_whitened_or_standardised_was_pixels(
    options: Any, before: bool, tmp_path: Path
) -> None:
    """Files are read for such a model as for any other; also for one that was saved before."""

    def saved(x: Any, name: str) -> Path:
        model = wl.NTKClassifier("cntk-vanilla-3", ridge=1e-3, **options).fit(x, DIGITS.target[:60])
        wl.save_model(model, tmp_path / name)
        if before:
            path = tmp_path / name / "model.json"
            document = json.loads(path.read_text())
            assert document["fitted"].pop("signed") == (name == "white")
            document.pop("crc32c")
            document["crc32c"] = _document_checksum(document)
            path.write_text(json.dumps(document))
        return tmp_path / name

    pixels = PIXELS[..., None] / 255
    model, white = saved(pixels, "pixels"), saved(pixels - 0.4, "white")
    (tmp_path / "new").mkdir()
    for k in range(3):
        Image.fromarray(PIXELS[k]).save(tmp_path / "new" / f"{k}.png")
    np.save(tmp_path / "bytes.npy", PIXELS[:3])
    np.save(tmp_path / "white.npy", PIXELS[:3, ..., None] / 255 - 0.4)
    expected = wl.load_model(model).predict_proba(pixels[:3])
    for path in (tmp_path / "new", tmp_path / "bytes.npy"):
        _, classes, chances = predicted(run("predict", model, path)[0])
        assert classes == ["0", "1", "2"]
        np.testing.assert_allclose(chances, expected, rtol=1e-4, atol=1e-6)
        if not (before and "whiten" in options):  # which no longer shows
            assert "normalised" in refused("predict", white, path)
    assert "must hold pixels in [0, 1]" in refused("predict", model, tmp_path / "white.npy")
    if not (before and "whiten" in options):
        assert predicted(run("predict", white, tmp_path / "white.npy")[0])[1] == ["0", "1", "2"]


def test_normalised_images_that_are_added_count(tmp_path: Path) -> None:
    model = wl.NTKClassifier("cntk-vanilla-3", ridge=1e-3)
    model.fit(PIXELS[:20, ..., None] / 255, DIGITS.target[:20])
    model.partial_fit(PIXELS[20:30, ..., None] / 255 - 0.4, DIGITS.target[20:30])
    wl.save_model(model, tmp_path / "m")
    np.save(tmp_path / "bytes.npy", PIXELS[:3])
    assert "must hold normalised images" in refused(
        "predict", tmp_path / "m", tmp_path / "bytes.npy"
    )


def test_rows_that_are_images(tmp_path: Path) -> None:
    frame = pd.DataFrame(PIXELS.reshape(60, -1)).assign(kind=DIGITS.target[:60])
    frame.to_csv(tmp_path / "d.csv", index=False)
    words = ["fit", tmp_path / "d.csv", "--label", "kind", "--out", tmp_path / "m"]
    text, _ = run(*words, "--image-shape", "8x8", "--net", "cntk-vanilla-3")
    assert text.startswith("d: 60 images 8 x 8 grey, 10 classes, the label is 'kind'\n")
    assert wl.load_model(tmp_path / "m").image_shape_ == (8, 8, 1)
    error = refused(*words, "--overwrite", "--image-shape", "3x28x28")
    assert "--image-shape has shape (3, 28, 28), which is read in two ways" in error
    for wrong in ("8", "0x8", "8x8x1x1", "axb"):
        assert "as in 28x28x1" in refused(*words, "--overwrite", "--image-shape", wrong)


# --- other commands ---


def test_other_commands_take_tables(flowers: Path, tmp_path: Path) -> None:
    table, out = flowers / "iris.csv", tmp_path / "k.npy"
    text, _ = run("kernel", table, "--net", "ntk-dense-2", "--out", out)
    assert text == f"{out}: 75 x 75, float32\n"
    np.testing.assert_array_equal(np.load(out), wl.kernel(wl.ntk_dense(2), IRIS.data[::2]))
    text, _ = run("suspects", table, "--out", tmp_path / "s")
    assert "of 75 rows are suspects" in text
    page = (tmp_path / "s" / "suspects.html").read_text()
    assert "<img" not in page
    assert "75 rows, which a fit to all other rows" in page
    error = refused("demo", "--data", table, "--out", tmp_path / "d")
    assert "iris holds rows of 4 values, and this is for images" in error
    error = refused("fit", table, "--net", "cntk-gap-3", "--out", tmp_path / "m")
    assert "reads images, but X holds rows of 4 values" in error


def test_networks_that_were_tried_are_named(flowers: Path, tmp_path: Path) -> None:
    nets = ["--net", "ntk-dense-1", "--net", "ntk-dense-3"]
    text, _ = run("fit", flowers / "iris.csv", *nets, "--out", tmp_path / "m", "--ridge", "1e-3")
    tried = [line for line in text.splitlines() if line.startswith("tried: ")]
    for line, depth in zip(tried, (1, 3), strict=True):
        model = wl.NTKClassifier(f"ntk-dense-{depth}", ridge=1e-3).fit(IRIS.data[::2], WORDS[::2])
        assert line.startswith(f"tried: {wl.ntk_dense(depth)}, left-out residuals of mean square ")
        assert float(line.rpartition(" ")[2]) == pytest.approx(-model.loo_score_, rel=1e-3)


# --- names of files ---


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for label in range(2):
        (folder / "data" / f"class {label}").mkdir(parents=True)
        for k, place in enumerate(np.flatnonzero(DIGITS.target[:60] == label)[:5]):
            path = folder / "data" / f"class {label}" / f"<{k}>.png"
            Image.fromarray(PIXELS[place]).save(path)
    run("fit", folder / "data", "--net", "cntk-vanilla-3", "--out", folder / "model")
    return folder


def test_a_model_has_the_names_of_its_files(photos: Path) -> None:
    model = wl.load_model(photos / "model")
    names = [f"class {label}/<{k}>.png" for label in range(2) for k in range(5)]
    assert model.sample_names_ == names
    assert model.x_fit_ is not None
    found = model.influence(model.x_fit_[[7]], n_largest=3)
    assert found.names is not None
    assert found.names[0].tolist() == [names[k] for k in found.indices[0]]
    assert found.names[0, 0] == "class 1/<2>.png"
    assert "class 1/&lt;2&gt;.png" in found._repr_html_()
    model.partial_fit(model.x_fit_[:1] / 2 + 0.1, ["class 0"])
    assert model.sample_names_ is None  # of the new sample there is none
    assert model.influence(model.x_fit_[:1]).names is None


def test_names_follow_the_images_that_were_drawn(photos: Path, tmp_path: Path) -> None:
    words = ["fit", photos / "data", "--net", "cntk-vanilla-3", "--out", tmp_path / "m"]
    run(*words, "--per-class", "2", "--seed", "3")
    model = wl.load_model(tmp_path / "m")
    for name, row in zip(model.sample_names_, model.x_fit_, strict=True):
        image = np.asarray(Image.open(photos / "data" / name)) / 255
        np.testing.assert_allclose(row[..., 0], image, atol=1e-7)


def test_influence_without_names_shows_places() -> None:
    found = Influence(np.array([[4, 2]]), np.array([[0.5, -0.25]]))
    assert "#4" in found._repr_html_()
    assert "places of training samples" in found._repr_html_()


def test_the_report_names_files(photos: Path, tmp_path: Path) -> None:
    more = photos / "more"
    for label in range(3):
        (more / str(label)).mkdir(parents=True)
        for k, place in enumerate(np.flatnonzero(DIGITS.target == label)[:16]):
            pixels = (DIGITS.images[place] * 15).astype(np.uint8)
            Image.fromarray(pixels).save(more / str(label) / f"no{k}.png")
    run("demo", "--data", more, "--quick", "--out", tmp_path / "o")
    page = (tmp_path / "o" / "demo-more.html").read_text()
    assert ' title="' in page
    assert "/no" in page.partition("The hardest test images")[2]
