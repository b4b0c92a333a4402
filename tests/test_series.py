"""Series (n, length, channels) in estimators, files and on the command line: images of one row."""

import base64
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

import widelimit as wl
from widelimit.cli import app
from widelimit.data.dataset import described

NET = "cnn-1d-3"
RNG = np.random.default_rng(0)
Y = np.arange(40) % 2
STEPS = np.arange(12)
WAVES = np.sin(STEPS / (1 + Y[:, None]) + RNG.uniform(0, 6, (40, 1)))
X = 5 + np.stack([WAVES, 0.3 * RNG.standard_normal(WAVES.shape)], axis=-1)  # (40, 12, 2)
TURNED = X.transpose(0, 2, 1)
ROWS = X.reshape(40, -1)


def widelimit(words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, words.split())
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


# ---------------------------------------------------------------- estimators


@pytest.mark.parametrize(
    ("model", "y"),
    [(wl.NTKClassifier(NET, ridge=1e-3), Y), (wl.NTKRegressor(NET, ridge=1e-3), X[:, 3, 0])],
)
def test_estimators_take_series_as_images_of_one_row(model: Any, y: np.ndarray) -> None:
    images = X[:, None]
    expected = model.fit(images[:24], y[:24]).predict(images[30:])
    assert model.image_shape_ == (1, 12, 2)
    for x, more in ((X, {}), (TURNED, {"channels": "first"}), (ROWS, {"image_shape": (1, 12, 2)})):
        other = type(model)(NET, ridge=1e-3, **more).fit(x[:24], y[:24])
        np.testing.assert_array_equal(other.predict(x[30:]), expected)
    grown = type(model)(NET, ridge=1e-3).fit(X[:20], y[:20]).partial_fit(X[20:24], y[20:24])
    np.testing.assert_allclose(grown.predict(X[30:]), expected, rtol=1e-3)


def test_the_networks_of_fit_decide_what_three_axes_are(tmp_path: Path) -> None:
    model = wl.NTKClassifier([NET, "cnn-1d-2"], ridge=1e-3).fit(X[:24], Y[:24])
    expected = model.predict(X[30:])
    wl.save_model(model, tmp_path / "m")
    np.testing.assert_array_equal(wl.load_model(tmp_path / "m").predict(X[30:]), expected)
    model.net = "cntk-gap-3"  # what the next fit would take
    np.testing.assert_array_equal(model.predict(X[30:]), expected)
    with pytest.raises(ValueError, match=r"X must be rows .* series .*X\[:, None\]"):
        model.fit(X, Y)
    with pytest.raises(ValueError, match=r"X must be rows .* series .*X\[:, None\]"):
        wl.NTKClassifier([NET, "cntk-gap-3"]).fit(X, Y)  # to one of them they are none


def test_kernels_for_others_take_series() -> None:
    k = wl.kernel(NET, X, dtype="float64")
    metric = wl.KernelMetric(NET, normalise=False)
    np.testing.assert_array_equal(metric(X), k)
    np.testing.assert_array_equal(metric.diag(X), k.diagonal())
    np.testing.assert_array_equal(wl.KernelMetric(NET, (1, 12, 2), normalise=False)(ROWS), k)
    process = wl.NTK(NET, b_std=0.0, b_std_bounds="fixed")
    np.testing.assert_array_equal(process(X[:4], X[4:6]), process(X[:4, None], X[4:6, None]))


def test_two_readings_are_refused() -> None:
    ways = r"series of 12 steps in 2 channels \(channels first\), or of 2 steps in 12 channels"
    with pytest.raises(ValueError, match=f"x1 has shape .*{ways}"):
        wl.kernel(NET, TURNED)
    with pytest.raises(ValueError, match=f"X has shape .*{ways}"):
        wl.NTKClassifier(NET).fit(TURNED, Y)
    short = wl.kernel(NET, TURNED, channels="last")  # 2 steps, as one says
    np.testing.assert_array_equal(short, wl.kernel(NET, TURNED[:, None], channels="last"))
    np.testing.assert_array_equal(wl.kernel(NET, TURNED, channels="first"), wl.kernel(NET, X))
    wl.kernel(NET, X[:, :2])  # as many steps as channels are no doubt
    with pytest.raises(ValueError, match=r'channels must be "first", "last" or None, got .mid'):
        wl.kernel(NET, X, channels="middle")  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(
        ValueError, match=r"image_shape \(12, 2\) is read in two ways.*\(1, 12, 2\)"
    ):
        wl.NTKClassifier(NET, image_shape=(12, 2)).fit(ROWS, Y)
    with pytest.raises(ValueError, match=r"image_shape \(12, 2\) is read in two ways"):
        wl.KernelMetric(NET, (12, 2))(ROWS)
    with pytest.raises(ValueError, match=r"X holds rows of 24 values: .*image_shape=\(1, 24, 1\)"):
        wl.NTKClassifier(NET).fit(ROWS, Y)
    wl.NTKClassifier("cntk-gap-3", image_shape=(12, 2)).fit(ROWS, Y)  # grey images


def test_series_of_many_channels_are_no_images_with_channels_first() -> None:
    """As the twelve of an electrocardiogram."""
    x = RNG.standard_normal((20, 15, 12))
    model = wl.NTKClassifier(NET).fit(x, Y[:20])
    np.testing.assert_array_equal(model.predict(x[:, None]), model.predict(x))
    np.testing.assert_array_equal(wl.kernel(NET, x[:, None]), wl.kernel(NET, x))
    with pytest.raises(ValueError, match="channels first"):
        wl.kernel("cntk-gap-3", x[:, None])
    rows = x.reshape(20, -1)
    named = wl.NTKClassifier(NET, image_shape=(1, 15, 12)).fit(rows, Y[:20])
    np.testing.assert_array_equal(named.predict(rows), model.predict(x))
    metric = wl.KernelMetric(NET, (1, 15, 12), normalise=False)
    np.testing.assert_array_equal(metric(rows), wl.kernel(NET, x, dtype="float64"))
    ways = r"image_shape has shape \(1, 15, 12\), .* 15 x 12 pixels of 1 channels"
    both = (
        r'write X = X.reshape\(-1, 1, 15, 12\), channels="first"; if the second is, channels="last"'
    )
    with pytest.raises(ValueError, match=f"{ways}.*{both}"):
        wl.NTKClassifier("cntk-gap-3", image_shape=(1, 15, 12)).fit(rows, Y[:20])


def test_rows_of_more_channels_than_steps_are_read_in_two_ways() -> None:
    x = RNG.standard_normal((20, 5, 12))
    rows, turned = x.reshape(20, -1), x.transpose(0, 2, 1).reshape(20, -1)
    ways = r"series of 12 steps in 5 channels \(channels first\), or of 5 steps in 12 channels"
    first = r'if the first is meant, write X = X.reshape\(-1, 5, 12\), channels="first"; if the'
    with pytest.raises(ValueError, match=f"image_shape has shape .*{ways}.*{first}"):
        wl.NTKClassifier(NET, image_shape=(1, 5, 12)).fit(rows, Y[:20])
    model = wl.NTKClassifier(NET, image_shape=(1, 5, 12), channels="last").fit(rows, Y[:20])
    np.testing.assert_array_equal(
        model.predict(rows), wl.NTKClassifier(NET, channels="last").fit(x, Y[:20]).predict(x)
    )
    other = wl.NTKClassifier(NET, channels="first").fit(turned.reshape(-1, 12, 5), Y[:20])
    assert other.image_shape_ == (1, 5, 12)


# ---------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ucr").mkdir()
    table = np.column_stack([Y + 1, X[..., 0]])
    np.savetxt("ucr/Waves_TRAIN.tsv", table[:30], delimiter="\t")
    np.savetxt("ucr/Waves_TEST.tsv", table[30:], delimiter="\t")
    np.savetxt("new.csv", X[30:, :, 0], delimiter=",")
    np.savez("two.npz", x_train=X[:30], y_train=Y[:30], x_test=X[30:], y_test=Y[30:])
    np.savez("first.npz", x_train=TURNED[:30], y_train=Y[:30])
    np.save("x.npy", X)
    np.save("rows.npy", X[..., 0])
    return tmp_path


def test_data_sets_of_series(folder: Path) -> None:
    data = wl.load_dataset("ucr", series=True)
    np.testing.assert_allclose(data.x_train, X[:30, None, :, :1])
    assert repr(data) == "Dataset('ucr', 30 + 10 series of 12 steps in 1 channel, 2 classes)"
    assert data.is_series
    data = wl.load_dataset("two.npz", series=True)  # above 1, and no pixels
    np.testing.assert_array_equal(data.x_test, X[30:, None])
    data = wl.load_dataset("first.npz", series=True, channels="first")
    assert data.x_train.shape[1:] == (1, 12, 2)
    data = wl.load_dataset(
        ("ucr/Waves_TRAIN.tsv"), series=True, image_shape=(1, 6, 2), channels="last"
    )
    assert data.x_train.shape[1:] == (1, 6, 2)
    with pytest.raises(
        ValueError, match=r"training images has shape .* read in two ways, series of"
    ):
        wl.load_dataset("first.npz", series=True)
    many = RNG.standard_normal((40, 1, 15, 12))
    np.savez("many.npz", x=many, y=Y)
    assert wl.load_dataset("many.npz", series=True).image_shape == (1, 15, 12)
    with pytest.raises(ValueError, match="15 x 12 pixels of 1 channels"):
        wl.load_dataset("many.npz")
    digits = wl.load_dataset("digits", series=True)  # images stay what they are
    assert digits.image_shape == (8, 8, 1)
    assert not digits.is_series
    assert described((1, 1, 2), series=True) == "series of 1 step in 2 channels"


def test_narrow_grey_images_may_be_series(folder: Path) -> None:
    """Nothing tells (n, 12, 3) from series of 12 steps in 3 channels but the user."""
    for narrow in (RNG.random((40, 12, 3)), RNG.random((40, 3, 12))):
        h, w = narrow.shape[1:]
        np.savez("n.npz", x_train=narrow, y_train=Y)
        ways = f"read in two ways, grey images of {h} x {w} pixels, or series of 12 steps in 3 chan"
        with pytest.raises(ValueError, match=ways):
            wl.load_dataset("n.npz")
        data = wl.load_dataset("n.npz", image_shape=(h, w, 1))
        assert data.image_shape == (h, w, 1)
        with pytest.raises(ValueError, match=ways):
            wl.load_dataset("n.npz", image_shape=(1, h, w))
        wl.load_dataset("n.npz", series=True, channels="last" if w == 3 else "first")
    words = "--net cntk-vanilla-3 --image-shape 12x3x1 --overwrite --out m"
    np.savez("n.npz", x_train=RNG.random((40, 12, 3)), y_train=Y)
    assert widelimit(f"fit n.npz {words}")[0] == 0
    np.save("n.npy", RNG.random((5, 12, 3)))  # as the model has them
    assert widelimit("predict m n.npy")[0] == 0
    np.save("n.npy", RNG.random((5, 12, 2)))
    code, _, error = widelimit("predict m n.npy")
    assert code == 2
    assert "must hold images of 12 x 3 x 1, like the model's, got (5, 12, 2)" in error


def test_columns_that_might_be_pixels_are_steps(folder: Path) -> None:
    """A table of whole numbers up to 255, as many as a square has, would be grey images."""
    values = RNG.integers(0, 256, (40, 64))
    np.savetxt("t.csv", np.column_stack([values, Y]), delimiter=",", fmt="%d")
    assert wl.load_dataset("t.csv", label="-1").image_shape == (8, 8, 1)
    data = wl.load_dataset("t.csv", label="-1", series=True)
    assert data.image_shape == (1, 64, 1)
    assert data.x_train.max() > 1


# ---------------------------------------------------------------- the command line


def test_fit_and_predict(folder: Path) -> None:
    code, told, error = widelimit(f"fit ucr --net {NET} --out m --test given")
    assert (code, error) == (0, "")
    assert "ucr: 30 series of 12 steps in 1 channel, 2 classes\n" in told
    assert "held out: 10 series, the test set of the data" in told
    assert "accuracy on 10 test series: 100.00%" in told
    code, told, error = widelimit("predict m new.csv")
    assert (code, error) == (0, "")
    classes = [line.split(",")[1] for line in told.splitlines()[1:]]
    assert classes == [str(label + 1) for label in Y[30:]]
    code, _, error = widelimit("predict m x.npy")
    assert code == 2
    assert "must hold series of 12 steps in 1 channel, like the model's, got (40, 12, 2)" in error
    code, _, error = widelimit("predict m ucr")
    assert code == 2
    assert "model of grey or colour images, it reads series of 12 steps in 1 channel" in error
    code, told, error = widelimit(f"fit two.npz --net {NET} --out m2")
    assert (code, error) == (0, "")
    code, told, error = widelimit("predict m2 x.npy --out p.csv")
    assert (code, told, error) == (0, "p.csv: 40 series\n", "")
    y = Y.copy()
    y[7] = 0
    np.savez("wrong.npz", x=X, y=y)
    code, told, error = widelimit(f"suspects wrong.npz --net {NET} --out s")
    assert (code, error) == (0, "")
    assert told.startswith("series 7: 0 (")
    assert " of 40 series are suspects: " in told
    sheet = Path("s", "suspects.html").read_text()
    assert "all other series labels otherwise" in " ".join(sheet.split())
    assert sheet.count('<img src="data:image/svg+xml;base64,') == told.count("rather")


def test_a_notebook_shows_series_as_lines() -> None:
    notebook: Any
    notebook = data = wl.load_dataset((X, Y), series=True)
    shown = notebook._repr_html_()
    assert "the first training series" in shown
    first = shown.split("data:image/svg+xml;base64,")[1].split('"')[0]
    svg = ElementTree.fromstring(base64.b64decode(first))
    drawn = [line.get("points", "").split() for line in svg]
    points = np.array([[[float(v) for v in p.split(",")] for p in line] for line in drawn])
    series = data.x_train[np.argmax(data.y_train == 0), 0]  # (12, 2)
    assert points.shape == (2, 12, 2)
    heights = points[..., 1].T  # from the top, in [2, 46]
    expected = 2 + 44 * (series.max() - series) / np.ptp(series)
    np.testing.assert_allclose(heights, expected, atol=0.051)


def test_kernel_says_how_it_has_read_an_array(folder: Path) -> None:
    code, _, error = widelimit(f"kernel x.npy --net {NET} --out k.npy")
    assert (code, error) == (
        0,
        "widelimit: warning: x.npy: taken for 40 series of 12 steps in 2 channels\n",
    )
    np.testing.assert_array_equal(np.load("k.npy"), wl.kernel(NET, X))
    code, _, error = widelimit(f"kernel rows.npy --net {NET} --out r.npy")
    assert (code, error) == (
        0,
        "widelimit: warning: rows.npy: taken for 40 series of 12 steps in 1 channel\n",
    )
    np.testing.assert_array_equal(np.load("r.npy"), wl.kernel(NET, X[..., :1]))
    code, _, error = widelimit(f"kernel ucr --net {NET} --out u.npy")
    assert (code, error) == (0, "")
    np.save("many.npy", RNG.standard_normal((4, 1, 15, 12)))
    assert widelimit(f"kernel many.npy --net {NET} --out m.npy")[0] == 0
    code, _, error = widelimit(f"kernel x.npy --net {NET} --net cntk-gap-3 --out b.npy")
    assert code == 2
    assert "x.npy must hold rows (n, d) or images (n, h, w, c), got (40, 12, 2)" in error


def test_shapes_on_the_command_line(folder: Path) -> None:
    code, told, _ = widelimit("explain cnn-1d-4 --shape 128x3")
    assert code == 0
    assert told.startswith("input 1x128x3, ")
    assert (
        told.split("\n", 1)[1] == widelimit("explain cnn-1d-4 --shape 1x128x3")[1].split("\n", 1)[1]
    )
    many = [widelimit(f"explain cnn-1d-4 --shape {shape}") for shape in ("50x12", "1x50x12")]
    assert many[0][0] == many[1][0] == 0
    assert many[0][1].split("\n", 1)[1] == many[1][1].split("\n", 1)[1]
    assert widelimit("explain cntk-gap-3 --shape 1x50x12")[0] == 2
    code, _, error = widelimit("explain cntk-gap-3 --shape 128x3")
    assert code == 2
    assert re.search(r"must be \(h, w, c\), got \(128, 3\)", error)
    for net, shape, message in (
        (NET, "6x2", "is read in two ways by a network for series: write 1x6x2 for series of 6"),
        (NET, "1x6x2", "of 2 channels are read in two ways"),
        (NET, "1x2x6", "write 1x6x2, and --channels first; if the second is, --channels last"),
        (NET, "1x15x12", r"rows of 1 x 15 x 12 = 180 values to be such images, got 12"),
        ("cntk-gap-3", "1x2x6", "write 2x6x1, and --channels first; if the second is, --channel"),
    ):
        code, _, error = widelimit(f"fit ucr --net {net} --out n --image-shape {shape}")
        assert code == 2
        assert re.search(message, error), error
    code, told, error = widelimit(
        f"fit ucr --net {NET} --out n --image-shape 1x2x6 --channels last"
    )
    assert (code, error) == (0, "")
    assert "ucr: 30 series of 2 steps in 6 channels" in told


def test_rank_of_networks_for_series(folder: Path) -> None:
    words = f"rank ucr --net {NET} --net cnn-1d-2 --n 12 --draws 1 --out r.json"
    assert widelimit(words)[0] == 0
    assert '"image_shape": [1, 12, 1]' in re.sub(r"\s+", " ", Path("r.json").read_text()).replace(
        "[ ", "["
    ).replace(" ]", "]")
