"""Targets in units of y: centred and scaled for the regression, and back; with the noise of y."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import widelimit as wl

NET = wl.ntk_dense(2, b_std=0.5)
RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(40, 3)), RNG.normal(size=(9, 3))
Y = 1000 + 50 * np.c_[X[:, 0], np.abs(X[:, 1])] * [1, 0.01]
WEIGHTS = RNG.uniform(0.2, 4, 40)


@pytest.mark.parametrize("options", [{"ridge": 0.1}, {"kind": "nngp", "ridge": "loo"}])
def test_all_results_are_those_of_targets_scaled_by_hand(options):
    model = wl.NTKRegressor(NET, **options).fit(X, Y, WEIGHTS)
    mean = np.average(Y, axis=0, weights=WEIGHTS)
    scale = np.sqrt(np.average((Y - mean) ** 2, axis=0, weights=WEIGHTS))
    np.testing.assert_allclose(model.target_mean_, mean)
    np.testing.assert_allclose(model.target_scale_, scale)
    hand = wl.NTKRegressor(NET, normalize_y=False, **options).fit(X, (Y - mean) / scale, WEIGHTS)

    found, std = model.predict(NEW, return_std=True)
    expected, std_by_hand = hand.predict(NEW, return_std=True)
    np.testing.assert_allclose(found, mean + scale * expected, rtol=1e-9)
    np.testing.assert_allclose(std, scale * std_by_hand, rtol=1e-6)
    cov = model.predict(NEW, return_cov=True)[1]
    np.testing.assert_allclose(cov, hand.predict(NEW, return_cov=True)[1] * scale**2, rtol=1e-6)
    draws = mean[:, None] + scale[:, None] * hand.sample_y(NEW, 3)
    np.testing.assert_allclose(model.sample_y(NEW, 3), draws, rtol=1e-6)
    for one, other in zip(
        model.staged_predict(NEW, [0, 1, np.inf]),
        hand.staged_predict(NEW, [0, 1, np.inf]),
        strict=True,
    ):
        np.testing.assert_allclose(one, mean + scale * other, rtol=1e-8)
    np.testing.assert_allclose(model.loo_predictions_, mean + scale * hand.loo_predictions_)
    np.testing.assert_allclose(model.self_influence_, hand.self_influence_, rtol=1e-6)
    assert model.loo_score_ == pytest.approx(hand.loo_score_)
    density = hand.log_marginal_likelihood() - 40 * np.log(scale).sum()
    assert model.log_marginal_likelihood() == pytest.approx(density)
    # Sums over all training samples.
    for target in (0, 1):
        terms = model.influence(NEW, 40, target, "terms").weights.sum(axis=1)
        np.testing.assert_allclose(terms, found[:, target] - mean[target], rtol=1e-8)


def test_units_do_not_matter():
    model = wl.NTKRegressor(NET, ridge=0.1).fit(X, Y[:, 0])
    other = wl.NTKRegressor(NET, ridge=0.1).fit(X, 1e6 - 3 * Y[:, 0])
    mean, std = model.predict(NEW, return_std=True, noise=True)
    mean_other, std_other = other.predict(NEW, return_std=True, noise=True)
    np.testing.assert_allclose(mean_other, 1e6 - 3 * mean)
    np.testing.assert_allclose(std_other, 3 * std)
    constant = wl.NTKRegressor(NET, ridge=0.1).fit(X, np.full(40, 7.0))
    np.testing.assert_array_equal(constant.predict(NEW), np.full(9, 7.0))
    with pytest.raises(TypeError, match="normalize_y must be True or False, got 'yes'"):
        wl.NTKRegressor(normalize_y="yes").fit(X, Y)
    with pytest.raises(ValueError, match="noise is for return_std or return_cov"):
        model.predict(NEW, noise=True)


def test_more_samples_keep_the_units_of_the_first():
    first = wl.NTKRegressor(NET, ridge=0.0).fit(X[:30], Y[:30])
    noise = first.noise_variance_
    model = first.partial_fit(X[30:], Y[30:])
    np.testing.assert_allclose(model.target_mean_, Y[:30].mean(axis=0))
    np.testing.assert_allclose(model.predict(X), Y, rtol=1e-8)
    assert not np.allclose(model.noise_variance_, noise)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_the_spread_of_networks_that_have_not_seen_a_sample(kind):
    """In closed form, as fits without the sample have it; the rest of the error is noise."""
    y = Y[:, 0] + 20 * np.random.default_rng(1).normal(size=40)
    options = {"kind": kind, "ridge": 0.0, "normalize_y": False}
    model = wl.NTKRegressor(NET, **options).fit(X, y)
    left_out = np.empty(40)
    for i in range(40):
        rest = np.arange(40) != i
        one = wl.NTKRegressor(NET, standardise=False, **options)
        given = X if model.standardisation_ is None else model.x_fit_
        one.fit(given[rest], y[rest])
        left_out[i] = one.predict(given[i : i + 1], return_std=True)[1][0]
    expected = max(0.0, np.mean((y - model.loo_predictions_) ** 2 - left_out**2))
    assert model.noise_variance_ == pytest.approx(expected, rel=1e-6)
    assert expected > 100
    cov = [model.predict(NEW, return_cov=True, noise=noise)[1] for noise in (False, True)]
    np.testing.assert_allclose(cov[1] - cov[0], expected * np.eye(9), rtol=1e-6, atol=1e-6)


def folds(model, x, y):
    """Return R² of five folds, and the share of held-out targets within 1.96 std, noise in."""
    score, inside = [], []
    for train, test in KFold(5, shuffle=True, random_state=0).split(x):
        model.fit(x[train], y[train])
        mean, std = model.predict(x[test], return_std=True, noise=True)
        score.append(1 - np.mean((y[test] - mean) ** 2) / np.var(y[test]))
        inside.append(np.mean(np.abs(y[test] - mean) < 1.96 * std))
    return np.mean(score), np.mean(inside)


def test_diabetes():
    """As good as a tuned linear model, and bands that hold what they say."""
    x, y = load_diabetes(return_X_y=True)
    split = KFold(5, shuffle=True, random_state=0)
    linear = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))
    reference = cross_val_score(linear, x, y, cv=split).mean()
    score, inside = folds(wl.NTKRegressor(ridge="loo"), x, y)
    assert score > reference - 0.02
    assert 0.9 <= inside <= 0.99
    score, inside = folds(wl.NTKRegressor(), x, y)
    assert score > 0.38
    assert 0.9 <= inside <= 0.99


def test_friedman():
    x, y = make_friedman1(300, noise=1.0, random_state=0)
    assert folds(wl.NTKRegressor(ridge="loo"), x, y)[0] > 0.8
