"""Whitening as a parameter of the estimators, and of `widelimit fit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from typer.testing import CliRunner

import widelimit as wl
from widelimit import cli
from widelimit.estimators import saved
from widelimit.estimators.preparation import WHITENINGS
from widelimit.estimators.samples import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore:(ridge|time)=.loo. chose:UserWarning"),
    # The transformer by itself: what it has not seen has a larger norm.
    pytest.mark.filterwarnings("ignore:X lies far from the training samples:UserWarning"),
]

X, Y = load_digits(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(len(X))
X, Y = X[ORDER].reshape(-1, 8, 8, 1) / 16, Y[ORDER]
NET = wl.cntk_vanilla(3)
NEW = X[100:140]


def levelled(r: float, x: Any) -> Any:
    """Images whitened, all of the norm that the first 60 have on average."""
    zca = wl.ZCA(r).fit(X[:60])
    first, z = (np.linalg.norm(zca.transform(a).reshape(len(a), -1), axis=1) for a in (X[:60], x))
    return np.sqrt((first**2).mean()) * zca.transform(x) / z[:, None, None, None]


@pytest.mark.parametrize("r", [0.01, 1, np.float64(0.1)])
@pytest.mark.parametrize("estimator", [wl.NTKClassifier, wl.NTKRegressor])
def test_it_is_the_transformer_before_the_estimator(estimator: Any, r: float) -> None:
    model = estimator(NET, whiten=r, ridge=1e-3).fit(X[:60], Y[:60])
    plain = estimator(NET, ridge=1e-3).fit(levelled(r, X[:60]), Y[:60])
    np.testing.assert_allclose(model.x_fit_, levelled(r, X[:60]), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.dual_coef_, plain.dual_coef_, rtol=1e-4, atol=1e-6)
    expected = plain.predict(levelled(r, NEW))
    np.testing.assert_allclose(model.predict(NEW), expected, rtol=1e-4)
    np.testing.assert_allclose(model.predict(NEW.reshape(40, -1)), expected, rtol=1e-4)
    assert model.whiten_ == r
    assert not hasattr(model, "whiten_grid_")
    without = estimator(NET, ridge=1e-3).fit(X[:60], Y[:60])
    assert without.whiten_ is None
    assert not np.allclose(without.dual_coef_, plain.dual_coef_, rtol=0.1)


@pytest.mark.parametrize("options", [{"ridge": 1e-3}, {"ridge": "loo"}, {"time": "loo"}])
@pytest.mark.parametrize("estimator", [wl.NTKClassifier, wl.NTKRegressor])
def test_by_leave_one_out(estimator: Any, options: Any) -> None:
    model = estimator(NET, whiten="loo", **options).fit(X[:60], Y[:60])
    alone = [estimator(NET, whiten=r, **options).fit(X[:60], Y[:60]) for r in WHITENINGS]
    scores = [one.loo_score_ for one in alone]
    assert model.whiten_grid_ == WHITENINGS
    np.testing.assert_allclose(model.whiten_curve_, scores, rtol=1e-9)
    best = alone[int(np.argmax(scores))]
    assert model.whiten_ == best.whiten_
    assert model.loo_score_ == best.loo_score_
    np.testing.assert_array_equal(model.predict(NEW), best.predict(NEW))
    np.testing.assert_array_equal(model.loo_curve_, best.loo_curve_)


@pytest.mark.parametrize("r", [0.0, 0.01, 1.0])
@pytest.mark.filterwarnings("error")
def test_only_what_is_far_is_warned_of(r: float) -> None:
    model = wl.NTKClassifier(NET, whiten=r, ridge=1e-2).fit(X[:60], Y[:60])
    for new in (NEW, X[:60], 0.3 * NEW, 255 * NEW):  # brightness plays no part
        model.predict(new)
    noise = np.random.default_rng(0).random(NEW.shape)
    with pytest.warns(UserWarning, match="40 of 40 have no likeness to any training sample"):
        model.predict(noise)


def test_none_is_one_of_the_choices() -> None:
    """Where brightness says all, whitened images say nothing; where it says nothing, they do."""
    rng = np.random.default_rng(0)
    pattern, size = rng.random((8, 8, 1)) + 1, rng.uniform(1, 3, 60)
    x = size[:, None, None, None] * (pattern + 0.1 * rng.random((60, 8, 8, 1)))
    model = wl.NTKRegressor(NET, whiten="loo", ridge=1e-3, normalize_y=False).fit(x, size)
    assert model.whiten_ is None
    assert int(np.argmax(model.whiten_curve_)) == 0
    # What matters is small beside what does not.
    basis = np.linalg.qr(rng.normal(size=(64, 17)))[0].T
    signs = rng.choice([-1.0, 1.0], 120)
    rows = 3 * rng.normal(size=(120, 16)) @ basis[:16] + signs[:, None] * basis[16]
    model = wl.NTKClassifier(NET, whiten="loo", ridge=1e-2).fit(rows.reshape(-1, 8, 8, 1), signs)
    assert model.whiten_ is not None
    assert model.loo_accuracy_ > 0.9


def test_few_images_are_left_out_of_too_little() -> None:
    """The whitening has seen what is left out of the regression; where n < d/2 that is told."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 17)))[0].T
    signs = rng.choice([-1.0, 1.0], 33)
    x = (3 * rng.normal(size=(33, 16)) @ basis[:16] + signs[:, None] * basis[16]).reshape(
        -1, 8, 8, 1
    )
    model = wl.NTKClassifier(NET, whiten="loo", ridge=1e-2).fit(x, signs)
    assert model.whiten_ is not None
    with pytest.warns(UserWarning, match=r"of all 31 images.*half their 64 values.*too good"):
        model.fit(x[:31], signs[:31])
    assert model.whiten_ is not None
    model.set_params(whiten=0.1).fit(x[:31], signs[:31])


def test_several_networks_and_whitenings() -> None:
    nets = [wl.cntk_gap(3), NET]
    model = wl.NTKClassifier(nets, whiten="loo", ridge=1e-3).fit(X[:60], Y[:60])
    alone = {
        (net, r): wl.NTKClassifier(net, whiten=r, ridge=1e-3).fit(X[:60], Y[:60]).loo_score_
        for net in nets
        for r in WHITENINGS
    }
    assert (model.net_, model.whiten_) == max(alone, key=lambda key: alone[key])
    assert model.loo_curve_.shape == (2, 1)
    assert model.loo_score_ == pytest.approx(max(alone.values()), rel=1e-5)


def test_a_second_fit_forgets_the_choices_of_the_first() -> None:
    model = wl.NTKClassifier(NET, whiten="loo", ridge=1e-3).fit(X[:60], Y[:60])
    assert hasattr(model, "whiten_grid_")
    model.set_params(whiten=None).fit(X[:60], Y[:60])
    assert not hasattr(model, "whiten_grid_")
    assert not hasattr(clone(model), "whiten_")


def test_what_is_tried_is_judged_by_the_same_samples() -> None:
    """A sample that is alone in its class for one whitening is left out of all."""
    targets, weight, counts = np.eye(2)[[0, 0, 1, 1]], np.ones(4), np.full(4, True)
    apart = Training(np.arange(4), np.arange(4), weight, targets, weight, counts)
    merged = Training(np.array([0, 1, 2, 2]), np.arange(3), weight, targets, weight, counts)
    judge = wl.NTKClassifier()._judge
    assert judge([apart, apart]).judged is None
    for both in ([apart, merged], [merged, apart]):
        assert judge(both).judged.tolist() == [True, True, False, False]


def test_a_weight_is_a_number_of_copies() -> None:
    weight = np.arange(40) % 3
    model = wl.NTKClassifier(NET, whiten=0.1, ridge=1e-2).fit(X[:40], Y[:40] % 3, weight)
    copies = np.repeat(np.arange(40), weight)
    repeated = wl.NTKClassifier(NET, whiten=0.1, ridge=1e-2).fit(X[copies], Y[copies] % 3)
    close = model.decision_function(NEW), repeated.decision_function(NEW)
    np.testing.assert_allclose(*close, atol=1e-5)
    with pytest.raises(ValueError, match="sample_weight must be 0 or more, got -1"):
        wl.ZCA().fit(X[:9], sample_weight=-np.ones(9))


def test_more_samples_are_whitened_as_the_first() -> None:
    model = wl.NTKClassifier(NET, whiten=0.1, ridge=0.0).fit(X[:60], Y[:60])
    model.partial_fit(X[60:80], Y[60:80])
    np.testing.assert_allclose(model.x_fit_, levelled(0.1, X[:80]), atol=1e-9)
    whole = wl.NTKClassifier(NET).fit(levelled(0.1, X[:80]), Y[:80])
    close = model.decision_function(NEW), whole.decision_function(levelled(0.1, NEW))
    np.testing.assert_allclose(*close, atol=1e-4)


def test_in_a_store(tmp_path: Path) -> None:
    options: dict[str, Any] = {"whiten": "loo", "ridge": 1e-3}
    stored = wl.NTKClassifier(NET, store=tmp_path / "s", memory="2GB", **options)
    stored.fit(X[:60], Y[:60])
    plain = wl.NTKClassifier(NET, **options).fit(X[:60], Y[:60])
    np.testing.assert_array_equal(stored.predict_proba(NEW), plain.predict_proba(NEW))
    assert len(list((tmp_path / "s").iterdir())) == len(WHITENINGS)
    assert Path(str(stored.store_)).exists()


@pytest.mark.parametrize("whiten", [0.1, "loo"])
@pytest.mark.parametrize("estimator", [wl.NTKClassifier, wl.NTKRegressor])
def test_it_is_saved_to_the_last_bit(estimator: Any, whiten: Any, tmp_path: Path) -> None:
    model = estimator(NET, whiten=whiten, ridge=1e-3).fit(X[:60], Y[:60])
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    assert (again.whiten, again.whiten_) == (model.whiten, model.whiten_)
    np.testing.assert_array_equal(again.predict(NEW), model.predict(NEW))
    if estimator is wl.NTKClassifier:
        np.testing.assert_array_equal(again.predict_proba(NEW), model.predict_proba(NEW))
    else:
        np.testing.assert_array_equal(again.predict(NEW, True)[1], model.predict(NEW, True)[1])
    if whiten == "loo":
        assert again.whiten_grid_ == WHITENINGS
        np.testing.assert_array_equal(again.whiten_curve_, model.whiten_curve_)
    more = again.partial_fit(X[60:80], Y[60:80]), model.partial_fit(X[60:80], Y[60:80])
    np.testing.assert_array_equal(more[0].dual_coef_, more[1].dual_coef_)


def test_what_the_whitening_has_not_seen_is_not_larger() -> None:
    """Of 60 images it fits them, and not others: these were larger, and more sure than right."""
    zca = wl.ZCA(0.01).fit(X[:60])
    sizes = [float((zca.transform(x) ** 2).sum(axis=(1, 2, 3)).mean()) for x in (X[:60], NEW)]
    assert zca.norm_**2 == pytest.approx(sizes[0])
    assert sizes[1] > 3 * sizes[0]
    model = wl.NTKClassifier(NET, whiten=0.01, ridge=1e-2).fit(X[:60], Y[:60])
    plain = wl.NTKClassifier(NET, ridge=1e-2).fit(zca.transform(X[:60]), Y[:60])
    x, y = X[100:600], Y[100:600]
    whitened = zca.transform(x)
    surplus = {}
    for name, one, given in (("levelled", model, x), ("as it comes", plain, whitened)):
        surplus[name] = one.predict_proba(given).max(axis=1).mean() - one.score(given, y)
    assert abs(surplus["levelled"]) < 0.05 < 0.1 < surplus["as it comes"]
    # What has no part in the training images has no direction, but for rounding: it is zero.
    left = (np.arange(8) < 4)[:, None]
    few = wl.NTKRegressor(NET, whiten=0.0, ridge=1e-2).fit(X[:9] * left, np.arange(9.0))
    checks = np.zeros((1, 8, 8, 1))
    checks[0, :2, 4:6, 0] = [[1, -1], [-1, 1]]
    made = few._kernel.preparation(np.concatenate([checks, X[9:10]]).reshape(2, -1))
    assert not made[0].any()
    assert np.linalg.norm(made[1]) == pytest.approx(few._kernel.preparation.zca.norm_)


def test_training_images_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, real = wl.NTKClassifier(NET, whiten=0.1).fit(X[:60], Y[:60]), [], wl.ZCA.unwhitened

    def unwhitened(self: wl.ZCA, given: Any) -> Any:
        rows.append(len(given))
        return real(self, given)

    monkeypatch.setattr(wl.ZCA, "unwhitened", unwhitened)
    for _ in range(3):
        model.predict(NEW)
    assert sorted(rows) == [40, 40, 40, 60]


def test_a_model_of_the_fourth_format_is_as_it_was(tmp_path: Path) -> None:
    model = wl.NTKClassifier(NET, whiten=0.1).fit(X[:60], Y[:60])
    wl.save_model(model, tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    document = json.loads(path.read_text())
    assert document["fitted"].pop("levelled") is True
    document["format"] = "widelimit.model/4"
    document["crc32c"] = saved._document_checksum(document)
    path.write_text(json.dumps(document))
    for _ in range(2):
        again = wl.load_model(tmp_path / "m")
        made = again._kernel.preparation(NEW.reshape(len(NEW), -1))
        np.testing.assert_allclose(made, wl.ZCA(0.1).fit(X[:60]).transform(NEW), rtol=1e-12)
        wl.save_model(again, tmp_path / "m", overwrite=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zca": [0.1, -1.0]}, "regularisation_ must be 0 or more"),
        ({"zca": ["0.1", 1.0]}, "regularisation must be a number"),
        ({"zca": [0.1]}, "damaged"),
        ({"normalise": "rows"}, "normalise must be image or None"),
        ({"whiten_grid": [None, 0.1]}, "a score for each whitening"),
        ({"image_shape": None}, "must"),
    ],
)
def test_models_of_strangers(change: Any, words: str, tmp_path: Path) -> None:
    model = wl.NTKClassifier(NET, whiten="loo", ridge=1e-3)
    model.fit(X[:60] ** 3, Y[:60])
    if model.whiten_ is None:
        model = wl.NTKClassifier(NET, whiten=0.1).fit(X[:60], Y[:60])
        model.whiten_grid_, model.whiten_curve_ = WHITENINGS, np.zeros(len(WHITENINGS))
    wl.save_model(model, tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    document = json.loads(path.read_text())
    document["fitted"] |= change
    document["crc32c"] = saved._document_checksum(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=words):
        wl.load_model(tmp_path / "m")


@pytest.mark.parametrize("name", ["zca_components", "zca_moments"])
def test_arrays_of_strangers(name: str, tmp_path: Path) -> None:
    wl.save_model(wl.NTKClassifier(NET, whiten=0.1).fit(X[:60], Y[:60]), tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    document = json.loads(path.read_text())
    held = np.load(tmp_path / "m" / f"{name}.npy")
    for wrong in (held[:-1], -held, np.full_like(held, np.nan)):
        if name == "zca_components" and wrong.shape == held.shape and np.isfinite(wrong).all():
            continue  # any components are some
        np.save(tmp_path / "m" / f"{name}.npy", wrong)
        about = {"shape": list(wrong.shape), "crc32c": saved._checksum(wrong)}
        document["arrays"][name] |= about
        document["crc32c"] = saved._document_checksum(document)
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=r"whitening must|must be finite"):
            wl.load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("options", "x", "error", "words"),
    [
        ({"whiten": "zca"}, X[:30], ValueError, 'whiten must be a number, "loo" or None, got'),
        ({"whiten": -0.1}, X[:30], ValueError, "whiten must be 0 or more and finite"),
        ({"whiten": True}, X[:30], TypeError, "whiten must be a number"),
        ({"whiten": 0.1}, X[:30].reshape(30, -1), ValueError, "images, and X holds rows of 64"),
        ({"whiten": 0.1, "kernel": "precomputed"}, np.eye(30), ValueError, "there are none"),
        ({"whiten": 0.1, "standardise": True}, X[:30], ValueError, "choose the units of pixels"),
        ({"whiten": "loo", "solver": "cg"}, X[:30], ValueError, "networks or whitenings needs"),
        ({"whiten": 0.1}, 0 * X[:30] + 1, ValueError, "images that are not constant"),
    ],
)
@pytest.mark.parametrize("estimator", [wl.NTKClassifier, wl.NTKRegressor])
def test_bad_whitenings(
    estimator: Any, options: Any, x: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        estimator(**options).fit(x, Y[:30] % 2)


def test_from_the_command_line(tmp_path: Path) -> None:
    def run(*words: Any) -> Any:
        fit = ["fit", "digits", "--per-class", "6", "--net", "cntk-vanilla-3", "--out"]
        return CliRunner().invoke(cli.app, [*fit, *map(str, words)])

    found = run(tmp_path / "a", "--whiten", "0.1", "--normalise", "image")
    assert found.exit_code == 0, found.output
    assert "whitening: 0.1\n" in found.output
    model = wl.load_model(tmp_path / "a")
    assert (model.whiten_, model.normalise) == (0.1, "image")
    found = run(tmp_path / "b", "--whiten", "loo", "--ridge", "loo")
    assert found.exit_code == 0, found.output
    assert "whitening, by leave-one-out: " in found.output
    assert wl.load_model(tmp_path / "b").whiten == "loo"
    found = run(tmp_path / "c", "--whiten", "much")
    assert found.exit_code == 2
    assert "--whiten must be a number or loo, got 'much'" in found.output
    assert "normalise must be" in run(tmp_path / "c", "--normalise", "row").output
    assert not (tmp_path / "c").exists()
