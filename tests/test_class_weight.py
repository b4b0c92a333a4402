"""Weights of classes, and what a choice by leave-one-out is scored by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score

import widelimit as wl
from widelimit.estimators.calibration import TYPICAL_TEMPERATURE, fit_temperature, log_softmax
from widelimit.estimators.judge import best_place, edge

pytestmark = pytest.mark.filterwarnings("ignore:(ridge|time)=.loo. chose:UserWarning")

X, Y = load_digits(return_X_y=True)
X = X / 16
NET = wl.ntk_dense(2)


def uneven(seed: int = 0) -> tuple[Any, ...]:
    """Many images of odd digits, few of even ones, and as many of both to be tested on."""
    rng = np.random.default_rng(seed)
    odd = Y % 2 == 1
    order = rng.permutation(len(Y))
    many, few = order[odd[order]], order[~odd[order]]
    train = np.r_[many[:150], few[:12]]
    test = np.r_[many[150:400], few[12:262]]
    names = np.where(odd, "odd", "even")
    return X[train], names[train], X[test], names[test]


@pytest.mark.parametrize("options", [{}, {"ridge": 1e-2}, {"ridge": 1e-2, "time": 1.0}])
def test_weights_are_those_of_another_population(options: Any) -> None:
    x, y, new, _ = uneven()
    plain = wl.NTKClassifier(NET, **options).fit(x, y)
    weighed = wl.NTKClassifier(NET, class_weight={"even": 3.0, "odd": 0.5}, **options).fit(x, y)
    assert weighed.class_weight_.tolist() == [3.0, 0.5]
    p = plain.predict_proba(new) * [3.0, 0.5]
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weighed.predict_proba(new), p, rtol=1e-9)
    labels = weighed.classes_[p.argmax(axis=1)]
    np.testing.assert_array_equal(weighed.predict(new), labels)
    np.testing.assert_array_equal(weighed.decision_function(new) > 0, labels == "odd")
    assert (labels != plain.predict(new)).any()
    np.testing.assert_array_equal(weighed.dual_coef_, plain.dual_coef_)
    assert weighed.temperature_ == plain.temperature_
    p_left = np.exp(log_softmax(plain.loo_predictions_, plain.temperature_)) * [3.0, 0.5]
    assert weighed.loo_accuracy_ == np.mean(weighed.classes_[p_left.argmax(axis=1)] == y)


def test_several_classes_and_influence() -> None:
    x, y, new = X[:90], Y[:90] % 3, X[90:150]
    plain = wl.NTKClassifier(NET).fit(x, y)
    weighed = wl.NTKClassifier(NET, class_weight={1: 20.0}).fit(x, y)
    p = plain.predict_proba(new) * [1, 20, 1]
    np.testing.assert_allclose(weighed.predict_proba(new), p / p.sum(1, keepdims=True), rtol=1e-9)
    terms = weighed.influence(new, 90, measure="terms").weights.sum(axis=1)
    outputs = plain.decision_function(new)
    chosen = weighed.predict(new)
    assert (chosen != plain.predict(new)).any()
    np.testing.assert_allclose(terms, outputs[np.arange(60), chosen], atol=1e-8)
    staged = next(weighed.staged_predict(new, [np.inf]))
    np.testing.assert_array_equal(staged, chosen)


def test_balanced_classes_are_found_equally_often() -> None:
    gains = []
    for seed in range(5):
        x, y, new, truth = uneven(seed)
        model = wl.NTKClassifier(NET, class_weight="balanced").fit(x, y)
        np.testing.assert_allclose(model.class_weight_, [162 / 2 / 12, 162 / 2 / 150])
        plain = wl.NTKClassifier(NET).fit(x, y)
        scores = [balanced_accuracy_score(truth, m.predict(new)) for m in (model, plain)]
        gains.append(scores[0] - scores[1])
    assert np.mean(gains) > 0.02
    assert min(gains) > 0


def test_balanced_counts_weights_and_later_samples() -> None:
    x, y = X[:60], Y[:60] % 2
    weights = np.where(y == 0, 2.0, 1.0)
    model = wl.NTKClassifier(NET, class_weight="balanced", ridge=0.1).fit(x, y, weights)
    counts = np.array([weights[y == 0].sum(), weights[y == 1].sum()])
    np.testing.assert_allclose(model.class_weight_, counts.sum() / 2 / counts)
    model.partial_fit(X[60:90], np.zeros(30, int))
    counts[0] += 30
    np.testing.assert_allclose(model.class_weight_, counts.sum() / 2 / counts)
    model = wl.NTKClassifier(NET, class_weight="balanced").partial_fit(x, y, classes=[0, 1, 7])
    assert model.class_weight_[2] == 1  # there is none yet


def test_without_leave_one_out_the_temperature_is_a_typical_one() -> None:
    model = wl.NTKClassifier(NET, class_weight={0: 5.0}, ridge=0.1, solver="cg")
    model.fit(X[:60], Y[:60] % 2)
    plain = wl.NTKClassifier(NET, ridge=0.1, solver="cg").fit(X[:60], Y[:60] % 2)
    shift = plain.decision_function(X[60:]) - model.decision_function(X[60:])
    np.testing.assert_allclose(shift, TYPICAL_TEMPERATURE * np.log(5) / 2, rtol=1e-9)


@pytest.mark.parametrize("labels", [Y[:60], Y[:60].astype(str), Y[:60].astype(str).astype(object)])
@pytest.mark.parametrize("weight", ["balanced", "dict"])
def test_weights_are_saved(labels: Any, weight: Any, tmp_path: Path) -> None:
    if weight == "dict":
        weight = {labels[0]: 7.0, labels[1]: np.float64(0.25)}
    model = wl.NTKClassifier(NET, class_weight=weight, loo_scoring="log_loss", ridge="loo")
    model.fit(X[:60], labels)
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    assert again.get_params()["class_weight"] == weight
    assert again.loo_scoring == "log_loss"
    np.testing.assert_array_equal(again.predict_proba(X[60:]), model.predict_proba(X[60:]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"class_weight": "even"}, TypeError, 'class_weight must be a dict .*"balanced" or None'),
        ({"class_weight": [1, 2]}, TypeError, "class_weight must be a dict"),
        ({"class_weight": {0: 0}}, ValueError, "above 0 and finite, got 0 for class 0: to have"),
        ({"class_weight": {0: np.inf}}, ValueError, "above 0 and finite, got inf"),
        ({"class_weight": {0: True}}, ValueError, "got True"),
        ({"class_weight": {0: "2"}}, ValueError, "got '2' for class 0"),
        ({"class_weight": {3: 1.0}}, ValueError, "names 3, which y has not: its classes are 0, 1"),
        ({"loo_scoring": "auc"}, ValueError, 'must be "squared" or "log_loss" or "accuracy", got'),
    ],
)
def test_bad_weights_and_scorings(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        wl.NTKClassifier(NET, **options).fit(X[:40], Y[:40] % 2)


# --- scorings -----------------------------------------------------------------------------------


def scores(model: Any, labels: Any) -> dict[str, float]:
    """Scores of predictions of left-out samples, written out."""
    left, places = model.loo_predictions_, np.searchsorted(model.classes_, labels)
    encoded = np.eye(left.shape[1])[places] - 1 / left.shape[1]
    chances = log_softmax(left, fit_temperature(left, places, np.ones(len(left))))
    return {
        "squared": -float(((left - encoded) ** 2).mean()),
        "accuracy": float(np.mean(left.argmax(axis=1) == places)),
        "log_loss": float(chances[np.arange(len(left)), places].mean()),
    }


@pytest.mark.parametrize("scoring", ["squared", "accuracy", "log_loss"])
def test_a_ridge_is_chosen_by_the_scoring(scoring: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = X[:120], np.where(rng.random(120) < 0.3, rng.integers(0, 10, 120), Y[:120])
    model = wl.NTKClassifier(NET, ridge="loo", loo_scoring=scoring).fit(x, y)
    curve = []
    for ridge in model.loo_grid_:
        one = wl.NTKClassifier(NET, ridge=ridge, loo_scoring=scoring).fit(x, y)
        assert one.loo_score_ == pytest.approx(scores(one, y)[scoring], rel=1e-9)
        curve.append(one.loo_score_)
    np.testing.assert_allclose(model.loo_curve_, curve, rtol=1e-6)
    assert model.ridge_ == model.loo_grid_[np.argmax(curve)]
    assert model.loo_score_ == pytest.approx(max(curve), rel=1e-6)


def test_scorings_choose_differently() -> None:
    rng = np.random.default_rng(0)
    x, y = X[:120], np.where(rng.random(120) < 0.3, rng.integers(0, 10, 120), Y[:120])
    chosen = {
        scoring: wl.NTKClassifier(NET, ridge="loo", loo_scoring=scoring).fit(x, y).ridge_
        for scoring in ("squared", "accuracy", "log_loss")
    }
    assert len(set(chosen.values())) > 1
    networks = [wl.ntk_dense(1), wl.ntk_dense(5)]
    for scoring in ("accuracy", "log_loss"):
        model = wl.NTKClassifier(networks, loo_scoring=scoring, ridge=0.1).fit(x, y)
        alone = [wl.NTKClassifier(n, loo_scoring=scoring, ridge=0.1).fit(x, y) for n in networks]
        best = int(np.argmax([one.loo_score_ for one in alone]))
        assert model.net_ == networks[best]


def test_of_equal_scores_the_one_that_shrinks_least_is_taken() -> None:
    curve = np.array([0.5, 0.9, 0.9, 0.2, np.nan])
    assert best_place(curve, last=False) == 1
    assert best_place(curve, last=True) == 2
    x, y = np.r_[X[Y == 0][:15], X[Y == 1][:15]], np.repeat([0, 1], 15)
    late = wl.NTKClassifier(NET, time="loo", loo_scoring="accuracy").fit(x, y)
    best = np.flatnonzero(late.loo_curve_ == late.loo_curve_.max())
    assert len(best) > 1
    assert late.time_ == late.loo_grid_[best[-1]]
    ridge = wl.NTKClassifier(NET, ridge="loo", loo_scoring="accuracy").fit(x, y)
    assert ridge.ridge_ == ridge.loo_grid_[0]


def test_an_edge_where_size_is_nothing() -> None:
    grid = np.array([1.0, 10.0, 100.0])
    assert "may lie beyond" in edge(grid, np.array([0.1, 0.5, 0.9]), "accuracy")
    assert edge(grid, np.array([0.1, 0.9, 0.9000001]), "accuracy") == ""
    assert "hardly predicted" in edge(grid, np.array([-3.0, -2.0, -1.0]))
