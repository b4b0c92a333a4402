"""Regularised ZCA, beside its definition, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_limits

import widelimit as wl


def images(n: int, shape: tuple[int, ...] = (4, 3, 2), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((int(np.prod(shape)),) * 2)
    return (rng.standard_normal((n, len(mixed))) @ mixed + 3).reshape(n, *shape)


def normalised(x: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(x), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def written_out(train: np.ndarray, x: np.ndarray, r: float) -> np.ndarray:
    z = normalised(train)
    s, u = np.linalg.eigh(z.T @ z / len(z))
    return normalised(x) @ u @ np.diag((s + r * s.mean()) ** -0.5) @ u.T


@pytest.mark.parametrize("n", [7, 23, 24, 25, 60])
@pytest.mark.parametrize("r", [1e-3, 0.1, 10.0])
def test_it_is_what_its_definition_says(n: int, r: float) -> None:
    train, new = images(n), images(5, seed=1)
    made = wl.ZCA(r).fit(train)
    assert made.image_shape_ == (4, 3, 2)
    for x in (train, new):
        want = written_out(train, x, r).reshape(x.shape)
        assert np.allclose(made.transform(x), want, rtol=1e-8, atol=1e-8 * abs(want).max())
        assert np.allclose(
            made.inverse_transform(made.transform(x)), normalised(x).reshape(x.shape)
        )


def test_training_images_are_no_longer_correlated() -> None:
    x = images(300)
    white = wl.ZCA(0.0).fit_transform(x).reshape(300, -1)
    moments = white.T @ white / 300
    # Of 24 directions one is that of the mean, which is subtracted.
    assert np.allclose(np.linalg.eigvalsh(moments), [0, *[1] * 23], atol=1e-9)


def test_rows_are_images_without_a_shape() -> None:
    x = images(30)
    rows = wl.ZCA().fit(x.reshape(30, -1))
    assert rows.image_shape_ is None
    assert np.array_equal(rows.transform(x).reshape(30, -1), rows.transform(x.reshape(30, -1)))


@pytest.mark.parametrize("n", [10, 40])
def test_parts_of_a_call_are_as_the_whole(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(n)
    whole = wl.ZCA().fit(x)
    monkeypatch.setattr("widelimit.estimators.whitening._BLOCK", 24 * 3)
    assert np.allclose(wl.ZCA().fit(x).transform(x), whole.transform(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [300, 500])
def test_threads_of_the_blas_change_no_bit(n: int) -> None:
    """Or a store of whitened images would be that of others on another number of processors."""
    x = np.random.default_rng(0).standard_normal((n, 12, 12, 3))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            found.append(wl.ZCA().fit_transform(x))
    assert np.array_equal(*found)


def test_constant_images_become_zero() -> None:
    x = images(9)
    x[3] = 0.1
    x[5] = 0
    white = wl.ZCA().fit_transform(x)
    assert not white[[3, 5]].any()
    assert np.isfinite(white).all()
    with pytest.raises(ValueError, match="that are not constant"):
        wl.ZCA().fit(np.full((4, 3, 3, 1), 0.1))


@pytest.mark.parametrize(
    ("r", "error", "words"),
    [
        ("0.1", TypeError, "regularisation must be a number, got '0.1'"),
        (True, TypeError, "must be a number"),
        (-1, ValueError, "must be 0 or more and finite, got -1"),
        (np.nan, ValueError, "must be 0 or more"),
        (np.inf, ValueError, "must be 0 or more"),
    ],
)
def test_bad_regularisation(r: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wl.ZCA(r).fit(images(5))


def test_another_shape_is_refused() -> None:
    made = wl.ZCA().fit(images(9))
    with pytest.raises(ValueError, match=r"those of fit, \(4, 3, 2\), got \(3, 4, 2\)"):
        made.transform(images(2, (3, 4, 2)))
    with pytest.raises(ValueError, match="features"):
        made.transform(images(2, (3, 4, 1)))


def test_it_is_a_transformer_of_scikit_learn() -> None:
    check_estimator(wl.ZCA())
    x, y = images(40), np.arange(40) % 2
    model = make_pipeline(wl.ZCA(), wl.NTKClassifier("cntk-vanilla-3", ridge=1e-3)).fit(x, y)
    assert model.predict_proba(x).shape == (40, 2)
