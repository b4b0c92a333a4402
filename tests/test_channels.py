"""Images with their channels first, or last: refused where both may be meant, at every entrance."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import widelimit as wl
from widelimit.cli import app
from widelimit.data import standardise
from widelimit.finite import convergence

NET = wl.cntk_vanilla(2)
LAST = np.random.default_rng(0).random((12, 5, 6, 3))
FIRST = np.ascontiguousarray(LAST.transpose(0, 3, 1, 2))
LABELS = np.arange(12) % 2
BOTH = r"5 x 6 pixels of 3 channels .*3 x 5 pixels of 6 channels .*transpose\(0, 2, 3, 1\)"


def save(path: Path, images: NDArray[Any]) -> str:
    np.savez(path, x_train=images, y_train=LABELS)
    return str(path)


def fitted(**options: Any) -> wl.NTKClassifier:
    return wl.NTKClassifier(NET, dtype="float64", **options)


ENTRANCES = {
    "kernel": lambda folder: wl.kernel(NET, FIRST),
    "kernel, x2": lambda folder: wl.kernel(NET, LAST, FIRST),
    "a dense network": lambda folder: wl.kernel(wl.ntk_dense(2), FIRST),
    "gram": lambda folder: wl.gram(NET, FIRST, store=folder / "k.zarr"),
    "classifier": lambda folder: fitted().fit(FIRST, LABELS),
    "regressor": lambda folder: wl.NTKRegressor(NET).fit(FIRST, LABELS),
    "predict": lambda folder: fitted().fit(LAST, LABELS).predict(FIRST),
    "metric": lambda folder: wl.KernelMetric(NET)(FIRST),
    "load_dataset": lambda folder: wl.load_dataset(save(folder / "x.npz", FIRST)),
    "standardise": lambda folder: standardise(FIRST),
    "finite": lambda folder: convergence(NET, FIRST, [4], draws=2),
}


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES)
def test_images_that_look_channels_first_are_refused(enter: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=BOTH):
        enter(tmp_path)
    assert not (tmp_path / "k.zarr").exists()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_colour_and_transparent_images_are_looked_at(channels: int) -> None:
    with pytest.raises(ValueError, match='channels="first"; if the second is, channels="last"'):
        wl.kernel(NET, np.ones((2, channels, 5, 5)))
    for shape in [(2, 2, 5, 5), (2, 5, 5, 6), (2, channels, 4, 4)]:  # none that is read in two ways
        wl.kernel(NET, np.ones(shape))


def test_channels_first_gives_the_values_of_channels_last(tmp_path: Path) -> None:
    expected = wl.kernel(NET, LAST)
    np.testing.assert_array_equal(wl.kernel(NET, FIRST, channels="first"), expected)
    crossed = wl.kernel(NET, FIRST, FIRST[:2], channels="first")
    np.testing.assert_array_equal(crossed, wl.kernel(NET, LAST, LAST[:2]))
    stored = wl.gram(NET, FIRST, store=tmp_path / "k.zarr", channels="first")
    np.testing.assert_array_equal(stored[:], expected)
    metric = wl.KernelMetric(NET, channels="first")
    np.testing.assert_array_equal(metric(FIRST, FIRST[:2]), wl.KernelMetric(NET)(LAST, LAST[:2]))

    model = fitted(channels="first").fit(FIRST, LABELS)
    assert model.image_shape_ == (5, 6, 3)
    np.testing.assert_array_equal(
        model.decision_function(FIRST), fitted().fit(LAST, LABELS).decision_function(LAST)
    )
    wl.save_model(model, tmp_path / "model")
    again = wl.load_model(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(FIRST), model.predict(FIRST))
    data = wl.load_dataset(save(tmp_path / "x.npz", FIRST), channels="first")
    assert data.image_shape == (5, 6, 3)


def test_channels_last_says_that_it_is_meant(tmp_path: Path) -> None:
    for x in (FIRST, FIRST.astype(np.float32)):
        k = wl.kernel(NET, x, channels="last")
        np.testing.assert_array_equal(
            wl.KernelMetric(NET, normalise=False, dtype="float32", channels="last")(x), k
        )
    model = fitted(channels="last").fit(FIRST, LABELS)
    assert model.image_shape_ == (3, 5, 6)
    assert model.predict(FIRST).shape == (12,)


def test_a_word_that_is_none_and_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="or None, got 'fist'"):
        wl.kernel(NET, LAST, channels="fist")  # pyright: ignore[reportCallIssue, reportArgumentType]
    rows = LAST.reshape(12, -1)
    for call in (
        lambda: wl.kernel(wl.ntk_dense(2), rows, channels="first"),
        lambda: wl.NTKClassifier(channels="first").fit(rows, LABELS),
        lambda: wl.KernelMetric(NET, (5, 6, 3), channels="first")(rows),
    ):
        with pytest.raises(ValueError, match=r'channels="first" is for images \(n, c, h, w\)'):
            call()


def test_the_shape_of_an_image_in_a_row_is_looked_at_as_well() -> None:
    rows = FIRST.reshape(12, -1)
    with pytest.raises(ValueError, match=r"image_shape has shape .*X.reshape\(-1, 3, 5, 6\)"):
        fitted(image_shape=(3, 5, 6)).fit(rows, LABELS)
    assert fitted(image_shape=(3, 5, 6), channels="last").fit(rows, LABELS).image_shape_[2] == 6


def test_the_commands_take_channels(tmp_path: Path) -> None:
    data, run = save(tmp_path / "x.npz", FIRST), CliRunner()
    np.save(tmp_path / "x.npy", FIRST)
    kernel = ["kernel", str(tmp_path / "x.npy"), "--net", "cntk-vanilla-2", "--out"]
    kernel.append(str(tmp_path / "k.npy"))
    fit = ["fit", data, "--net", "cntk-vanilla-2", "--out", str(tmp_path / "model")]
    demo = ["demo", "--data", data, "--out", str(tmp_path / "out")]
    for command in (kernel, fit, demo):
        refused = run.invoke(app, command)
        assert refused.exit_code == 2
        assert 'channels="first"' in refused.stderr
    assert run.invoke(app, ["explain", "cntk-gap-2", "--shape", "3x32x32"]).exit_code == 2
    for command in (kernel, fit):
        with warnings.catch_warnings():
            assert run.invoke(app, [*command, "--channels", "first"]).exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "k.npy"), wl.kernel(NET, LAST))
    assert wl.load_model(tmp_path / "model").image_shape_ == (5, 6, 3)
    assert "first or last" in run.invoke(app, [*fit, "--channels", "x"]).stderr
