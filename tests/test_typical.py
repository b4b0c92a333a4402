"""Inputs far from the training samples are warned of; `normalise` leaves brightness out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

import widelimit as wl

X, Y = load_digits(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(len(X))
X, Y = X[ORDER].reshape(-1, 8, 8, 1) / 16, Y[ORDER]
NET = wl.cntk_vanilla(3)
FAR = "X lies far from the training samples: "
# Smooth images in colour, bright and dark, as photographs are.
_WAVES = np.random.default_rng(1)


def photographs(n: int) -> np.ndarray:
    size, places = 16, np.arange(16) / 16
    images = np.zeros((n, size, size, 3))
    for _ in range(6):
        f, phase = _WAVES.uniform(0, 1.5, (2, n, 1, 1, 1)), _WAVES.uniform(0, 6, (n, 1, 1, 3))
        wave = f[0] * places[:, None, None] + f[1] * places[None, :, None]
        images += np.sin(2 * np.pi * wave + phase) / 6
    bright, contrast = (
        _WAVES.uniform(0.15, 0.7, (n, 1, 1, 1)),
        _WAVES.uniform(0.2, 0.5, (n, 1, 1, 1)),
    )
    return np.clip(bright + contrast * images, 0, 1)


def told(model: Any, x: Any) -> str:
    """What is warned of, or nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.predict(x)
    messages = [str(w.message) for w in caught]
    assert len(messages) <= 1
    assert all(message.startswith(FAR) for message in messages)
    return messages[0].removeprefix(FAR) if messages else ""


@pytest.mark.parametrize("images", ["digits", "photographs"])
@pytest.mark.parametrize("n", [50, 200])
def test_brightness_units_and_noise_are_warned_of(images: str, n: int) -> None:
    x = X if images == "digits" else photographs(n + 200)
    y = Y if images == "digits" else np.arange(len(x)) % 3
    model, new = wl.NTKClassifier(NET, ridge=1e-2).fit(x[:n], y[:n]), x[n : n + 200]
    noise = np.random.default_rng(0).random(new.shape)
    assert told(model, new) == ""
    assert told(model, x[:n]) == ""
    assert "have norms of " in told(model, 0.3 * new)
    loud = told(model, 255 * new)
    assert "200 of 200 have norms of " in loud
    assert "have entries of 0 to 255, where those of training samples are 0 to 1" in loud
    assert "have no likeness to any training sample" in told(model, noise)
    if images == "digits":
        one = [bool(told(model, part)) for part in (0.3 * new[:1], 255 * new[:1])]
        assert one == [True, True]


@pytest.mark.parametrize("seed", range(5))
def test_other_images_of_the_set_are_not(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(X))
    x, y = X[order], Y[order]
    model = wl.NTKClassifier(NET, ridge=1e-2).fit(x[:100], y[:100])
    assert told(model, x[100:]) == ""
    single = [told(model, x[i : i + 1]) for i in range(100, 160)]
    assert sum(map(bool, single)) == 0


@pytest.mark.parametrize("load", [load_wine, load_diabetes])
def test_rows_of_the_set_are_not_and_other_units_are(load: Any) -> None:
    x, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    model = wl.NTKRegressor(ridge=0.1).fit(x[:100], y[:100])
    assert told(model, x[100:]) == ""
    assert "have entries of" in told(model, (x[100:] - x.mean(axis=0)) * 100 + x.mean(axis=0))


def test_a_few_outliers_of_rows_are_not() -> None:
    """Two tumours lie twice as far out as any of a hundred others."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    model = wl.NTKClassifier(ridge=0.1).fit(x[:100], y[:100])
    norms = np.linalg.norm((x - x[:100].mean(axis=0)) / x[:100].std(axis=0), axis=1)
    outliers = 100 + np.flatnonzero(norms[100:] > 2 * norms[:100].max())
    assert len(outliers) == 2
    assert told(model, x[100:]) == ""
    alone = told(model, x[outliers])
    assert alone.startswith("2 of 2 have norms of 26.7 to 27.3, where those of training samples ")


@pytest.mark.parametrize("n", [60, 150])
def test_digits_as_rows_whose_pixels_hardly_vary_are_not(n: int) -> None:
    rows = X.reshape(len(X), -1)
    model = wl.NTKClassifier(ridge=0.1).fit(rows[:n], Y[:n])
    assert told(model, rows[n:]) == ""
    assert told(model, 255 * rows[n:]) != ""
    assert told(model, np.random.default_rng(0).random((200, 64))) != ""


def test_one_image_of_other_units_among_many_is_told() -> None:
    model = wl.NTKClassifier(NET).fit(X[:50], Y[:50])
    new = X[50:450].copy()
    new[17] *= 255
    assert "1 of 400 has norms of" in told(model, new)


def test_the_words_say_what_to_do() -> None:
    model = wl.NTKClassifier(NET).fit(X[:50], Y[:50])
    message = told(model, 0.3 * X[50:90])
    assert message.startswith("40 of 40 have norms of ")
    assert "Outputs and probabilities mean little there: bring X to the units of the tr" in message
    assert message.endswith("fit with normalise='image' to leave brightness out")
    with pytest.warns(UserWarning, match=FAR) as caught:
        model.predict_proba(0.3 * X[50:90])
    assert caught[0].filename == __file__


def test_samples_of_zeros_and_multiples_are_typical_where_they_are_fitted() -> None:
    x = np.r_[X[:40], 0.01 * X[:40], 0 * X[:2]]
    model = wl.NTKClassifier(NET, ridge=1e-2).fit(x, np.r_[Y[:40], Y[:40], Y[:2]])
    assert len(model.x_fit_) == 40
    assert told(model, x) == ""
    assert told(model, 0.01 * X[40:90]) == ""


def test_a_precomputed_kernel_has_no_samples() -> None:
    k = wl.kernel(NET, X[:60])
    model = wl.NTKClassifier(kernel="precomputed").fit(k[:30, :30], Y[:30])
    assert told(model, 1e6 * k[30:, :30]) == ""


# --- normalise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "net", [NET, wl.Network([wl.Conv(3, 1.0, 0.5), wl.ReLU(), *NET.layers[-2:]])]
)
@pytest.mark.parametrize("estimator", [wl.NTKClassifier, wl.NTKRegressor])
def test_images_of_unit_norm(estimator: Any, net: Any) -> None:
    norms = np.linalg.norm(X.reshape(len(X), -1), axis=1)[:, None, None, None]
    model = estimator(net, normalise="image", ridge=1e-3).fit(X[:50], Y[:50])
    plain = estimator(net, ridge=1e-3).fit(X[:50] / norms[:50], Y[:50])
    expected = plain.predict(X[50:90] / norms[50:90])
    np.testing.assert_allclose(model.predict(X[50:90]), expected, rtol=1e-4)
    for factor in (0.3, 255):
        assert told(model, factor * X[50:90]) == ""
        np.testing.assert_allclose(model.predict(factor * X[50:90]), expected, rtol=1e-4)
    rows = (X[50:90] * 255).astype(np.uint8).reshape(40, -1)
    assert model.predict(rows).shape == (40,)
    np.testing.assert_allclose(np.linalg.norm(model.x_fit_.reshape(50, -1), axis=1), 1)


def test_probabilities_no_longer_follow_brightness() -> None:
    new = X[200:400]
    plain = wl.NTKClassifier(NET, ridge=1e-3).fit(X[:200], Y[:200])
    unit = wl.NTKClassifier(NET, ridge=1e-3, normalise="image").fit(X[:200], Y[:200])
    with pytest.warns(UserWarning, match=FAR):
        dark = plain.predict_proba(0.3 * new).max(axis=1).mean()
    assert dark < plain.predict_proba(new).max(axis=1).mean() - 0.2
    np.testing.assert_allclose(unit.predict_proba(0.3 * new), unit.predict_proba(new), atol=1e-4)


def test_an_image_of_zeros_and_extreme_ones_have_a_norm() -> None:
    x = np.r_[X[:40], 1e-100 * X[40:41], 1e100 * X[41:42]]
    model = wl.NTKClassifier(NET, normalise="image", ridge=1e-2).fit(x, Y[:42])
    norms = np.linalg.norm(model.x_fit_.reshape(len(model.x_fit_), -1), axis=1)
    np.testing.assert_allclose(norms, 1)
    with pytest.warns(UserWarning, match="1 of 1 has norms of 0 to 0"):
        np.testing.assert_array_equal(model.decision_function(0 * X[:1]), 0)


@pytest.mark.parametrize(
    ("options", "x", "words"),
    [
        ({"normalise": "row"}, X[:30], 'normalise must be "image" or None, got'),
        ({"normalise": "image"}, X[:30].reshape(30, -1), "for images, and X holds rows of 64"),
        (
            {"normalise": "image", "kernel": "precomputed"},
            X[:30].reshape(30, -1)[:, :30],
            "there a",
        ),
    ],
)
def test_what_cannot_be_normalised(options: Any, x: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wl.NTKClassifier(**options).fit(x, Y[:30])


def test_it_is_saved(tmp_path: Path) -> None:
    model = wl.NTKClassifier(NET, normalise="image").fit(X[:50], Y[:50])
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    assert again.normalise == "image"
    new = 0.3 * X[50:90]
    np.testing.assert_array_equal(again.predict_proba(new), model.predict_proba(new))
    grown = again.partial_fit(5 * X[50:60], Y[50:60])
    whole = wl.NTKClassifier(NET, normalise="image").fit(X[:60], Y[:60])
    close = grown.decision_function(new), whole.decision_function(new)
    np.testing.assert_allclose(*close, atol=1e-4)
