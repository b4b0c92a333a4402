"""What leave-one-out can tell, and what is warned of where it cannot."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

import widelimit as wl

X, Y = load_digits(return_X_y=True)
X = X / 16
ONE_EACH = np.array([np.flatnonzero(label == Y)[3] for label in range(10)])
NET = wl.ntk_dense(2, b_std=0.5)


@pytest.mark.parametrize("options", [{"ridge": "loo"}, {"time": "loo"}])
def test_one_sample_of_each_class_cannot_choose(options):
    model = wl.NTKClassifier(NET, **options)
    with pytest.warns(UserWarning, match="10 of 10 classes have one distinct sample, 0, 1, 2"):
        model.fit(X[ONE_EACH], Y[ONE_EACH])
    plain = wl.NTKClassifier(NET).fit(X[ONE_EACH], Y[ONE_EACH])
    assert (model.ridge_, model.time_) == (0.0, np.inf)
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    assert np.isnan(model.loo_score_)
    chances = model.predict_proba(X[ONE_EACH])
    assert chances.max(axis=1).min() > 0.5  # and not 0.1


def test_a_class_of_one_sample_takes_no_part():
    """Neither in the choice, nor in the temperature; copies are no other samples."""
    rows = np.r_[np.flatnonzero(Y < 3)[:40], ONE_EACH[[7, 7]]]
    model = wl.NTKClassifier(NET, ridge="loo")
    with pytest.warns(UserWarning, match=r"1 of 4 classes have one distinct sample, 7: .* no part"):
        model.fit(X[rows], Y[rows])
    others = model.loo_predictions_[:40]
    targets = (Y[rows][:40, None] == model.classes_) - 0.25
    assert model.loo_score_ == pytest.approx(-np.mean((targets - others) ** 2))
    assert model.loo_score_ == np.nanmax(model.loo_curve_)
    assert model.predict_proba(X[rows]).max(axis=1).mean() > 0.9


def test_a_choice_on_the_edge_of_the_grid_is_warned_of():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(40, 3)), rng.normal(size=40)
    message = "chose 1.0e.02, on the edge of the grid from 1.0e-08 to 1.0e.02: outputs are shrunk"
    with pytest.warns(UserWarning, match=message):
        model = wl.NTKRegressor(NET, ridge="loo").fit(x, noise)
    assert model.ridge_ == model.loo_grid_[-1]
    with pytest.warns(UserWarning, match="time='loo' chose .*, on the edge .*outputs are shrunk"):
        wl.NTKRegressor(NET, time="loo").fit(x, noise)
    # What needs no ridge is as good with the next one: nothing is lost, and nothing said.
    model = wl.NTKRegressor(NET, ridge="loo").fit(x, np.sin(x[:, 0]))
    assert model.ridge_ == model.loo_grid_[0]
