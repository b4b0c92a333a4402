"""Scaling of images, beside its definition, written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import widelimit as wl
from widelimit.data import standardise

RNG = np.random.default_rng(0)
IMAGES = RNG.random((30, 4, 5, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, 100.0]
NEW = RNG.random((7, 4, 5, 3))


def test_each_channel_has_one_mean_and_one_deviation() -> None:
    made = wl.ChannelStandardiser().fit(IMAGES)
    mean = IMAGES.reshape(-1, 3).mean(axis=0)
    std = np.sqrt(((IMAGES.reshape(-1, 3) - mean) ** 2).mean(axis=0))
    assert np.allclose(made.transform(NEW), (NEW - mean) / std, rtol=1e-12)
    assert made.image_shape_ == (4, 5, 3)
    assert made.mean_.shape == made.scale_.shape == (3,)


def test_there_is_one_standardisation() -> None:
    made = wl.ChannelStandardiser().fit(IMAGES)
    for mine, other in zip(
        map(made.transform, (IMAGES, NEW)), standardise(IMAGES, NEW), strict=True
    ):
        assert np.array_equal(mine, other)


def test_a_constant_channel_becomes_zero() -> None:
    x = IMAGES.copy()
    x[..., 1] = 0.1
    scaled = wl.ChannelStandardiser().fit_transform(x)
    assert not scaled[..., 1].any()
    assert scaled[..., [0, 2]].std() == pytest.approx(1)


def test_each_image_has_its_own_mean_and_norm() -> None:
    x = NEW.copy()
    x[3] = 0.1
    scaled = wl.ImageNormaliser().fit(IMAGES).transform(x)
    assert scaled.shape == x.shape
    assert not scaled[3].any()
    rows = np.delete(scaled, 3, axis=0).reshape(6, -1)
    assert np.allclose(rows.mean(axis=1), 0, atol=1e-15)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
    # A norm is no direction: what ZCA makes of them is the same.
    assert np.allclose(wl.ZCA().fit(scaled).transform(scaled), wl.ZCA().fit(x).transform(x))


@pytest.mark.filterwarnings("ignore:X lies far")
@pytest.mark.parametrize("kind", [wl.ChannelStandardiser, wl.ImageNormaliser])
def test_transformers_of_scikit_learn(kind: type) -> None:
    check_estimator(kind())
    y = np.arange(30) % 2
    model = make_pipeline(kind(), wl.NTKClassifier("cntk-vanilla-3")).fit(IMAGES, y)
    assert model.predict(NEW).shape == (7,)
    rows = kind().fit(IMAGES.reshape(30, -1))
    assert rows.image_shape_ is None
    with pytest.raises(ValueError, match=r"those of fit, \(4, 5, 3\), got \(5, 4, 3\)"):
        kind().fit(IMAGES).transform(NEW.transpose(0, 2, 1, 3))
    with pytest.raises(ValueError, match="features"):
        kind().fit(IMAGES).transform(NEW[..., :1])


def test_rows_are_images_of_one_pixel() -> None:
    rows = RNG.random((20, 6)) * np.arange(6)
    scaled = wl.ChannelStandardiser().fit_transform(rows)
    assert np.allclose(scaled.std(axis=0), [0, 1, 1, 1, 1, 1])
