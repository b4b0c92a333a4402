"""Models in folders: everything comes back, damage and strangers are refused."""

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from stores import disk_of

import widelimit as wl
from widelimit.estimators import saved

# Targets of noise are best predicted by next to nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(ridge|time)=.loo. chose:UserWarning")

X, Y = load_digits(return_X_y=True)
X, IMAGES = X / 16, (X / 16).reshape(-1, 8, 8, 1)
NET = wl.ntk_dense(3)
NAMES = np.array([f"digit {label}" for label in Y])

MODELS = {
    "classifier": (wl.NTKClassifier(ridge=1e-3), X, Y),
    "names": (wl.NTKClassifier("cntk-vanilla-3", ridge="loo"), IMAGES.astype("float32"), NAMES),
    "objects": (
        wl.NTKClassifier(wl.cntk_gap(3), time=np.float64(0.5)),
        IMAGES,
        NAMES.astype(object),
    ),
    "regressor": (wl.NTKRegressor(ridge=1e-3), X, Y / 3),
    "targets": (
        wl.NTKRegressor([wl.cntk_gap(3), "cntk-gap-4"], combine="mean", image_shape=(8, 8)),
        X,
        np.c_[Y, -Y],
    ),
    "posterior": (wl.NTKRegressor(kind="nngp", ridge="loo"), (16 * X).astype("uint8"), Y / 3),
    "early": (wl.NTKRegressor(time="loo", standardise=True), X + 0.01, Y / 3),
    "iterated": (wl.NTKClassifier(ridge=0.1, solver="cg"), X, Y),
    "whitened": (
        wl.NTKClassifier("cntk-vanilla-3", whiten="loo", ridge=1e-3, class_weight="balanced"),
        IMAGES,
        NAMES,
    ),
    "unit": (wl.NTKRegressor("cntk-vanilla-3", normalise="image", ridge=1e-3), IMAGES, Y / 3),
    "marginal": (wl.NTKRegressor("ntk-dense-1", optimize="marginal"), X, Y / 3),
    "singular": (wl.NTKRegressor(wl.ntk_dense(2)), np.r_[X, 0 * X[:5]], np.r_[Y, Y[:5]]),
}


@pytest.fixture(scope="module")
def fitted():
    models = {}
    for name, (model, x, y) in MODELS.items():
        rows = np.r_[0:60, len(x) - 5 : len(x)]  # the last five: zeros, of "singular"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *a, **k: None)
            models[name] = model.fit(x[rows], y[rows])
    return models


def same(one, two):
    """Equal, whatever it is made of."""
    if isinstance(one, np.ndarray):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    elif hasattr(one, "__dataclass_fields__"):
        assert type(one) is type(two)
        for name, field in one.__dataclass_fields__.items():
            if field.init:  # others follow from those
                same(getattr(one, name), getattr(two, name))
    elif isinstance(one, float) and np.isnan(one):
        assert np.isnan(two)
    elif isinstance(one, tuple | list):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            same(first, second)
    else:
        assert one == two


@pytest.mark.parametrize("name", MODELS)
def test_everything_comes_back(fitted, name, tmp_path):
    model = fitted[name]
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    assert type(again) is type(model)
    for key, value in model.__dict__.items():
        same(value, again.__dict__[key])
    assert again.__dict__.keys() == model.__dict__.keys()
    assert again.dual_coef_.strides == model.dual_coef_.strides
    new = MODELS[name][1][100:110]
    np.testing.assert_array_equal(again.predict(new), model.predict(new))
    if model.solver != "cg":
        more = MODELS[name][1][200:206], MODELS[name][2][200:206]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *a, **k: None)
            same(
                again.partial_fit(*more).dual_coef_,
                pickle.loads(pickle.dumps(model)).partial_fit(*more).dual_coef_,
            )
    assert not list(tmp_path.glob(".*"))


ASKED = ("decision_function", "predict_proba", "predict", "std", "cov", "staged", "influence")


def told(model, what, x):
    """What a model says of samples, or None where it says nothing."""
    if what in ("std", "cov"):
        if isinstance(model, wl.NTKClassifier):
            return None
        return model.predict(x, **{f"return_{what}": True})
    if what == "staged":
        return None if model.solver == "cg" else list(model.staged_predict(x, [0.1, np.inf]))
    if what == "influence":
        return model.influence(x, measure="terms")
    return getattr(model, what)(x) if hasattr(model, what) else None


LATER = """
import pickle, sys, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import widelimit as wl
from test_saved import ASKED, told
x, folder = pickle.load(sys.stdin.buffer)
model = wl.load_model(folder)
sys.stdout.buffer.write(pickle.dumps([told(model, what, x) for what in ASKED]))
"""


@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_says_the_same_to_the_last_bit(fitted, name, tmp_path):
    """Here, and in another process."""
    model, new = fitted[name], MODELS[name][1][100:117]
    expected = [told(model, what, new) for what in ASKED]
    assert sum(one is not None for one in expected) >= 3
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    for what, one in zip(ASKED, expected, strict=True):
        same(one, told(again, what, new))
    run = subprocess.run(
        [sys.executable, "-c", LATER, str(Path(__file__).parent)],
        input=pickle.dumps((new, str(tmp_path / "m"))),
        capture_output=True,
        check=True,
    )
    for one, other in zip(expected, pickle.loads(run.stdout), strict=True):
        same(one, other)


def test_names_of_features_and_infinite_times(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X[:40], columns=[f"p{i}" for i in range(64)])
    model = wl.NTKRegressor(ridge=0.1, time=np.inf).fit(frame, Y[:40])
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
    assert again.time == np.inf


def test_a_stored_matrix_stays_where_it_is(tmp_path):
    options = {"store": tmp_path / "s", "memory": "2GB"}
    model = wl.NTKRegressor("cntk-vanilla-3", **options).fit(IMAGES[:30], Y[:30])
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    assert again.store is again.memory is None
    np.testing.assert_array_equal(again.predict(IMAGES[:9]), model.predict(IMAGES[:9]))
    with pytest.raises(ValueError, match="stays in the store"):
        again.predict(IMAGES[:9], return_std=True)


def test_a_kernel_that_is_given_comes_back(tmp_path):
    k = wl.kernel(wl.ntk_dense(3), X[:30], dtype="float64")
    model = wl.NTKClassifier(kernel="precomputed").fit(k, Y[:30], np.arange(30) % 3)
    wl.save_model(model, tmp_path / "m")
    new = wl.kernel(wl.ntk_dense(3), X[30:40], X[:30], dtype="float64")
    again = wl.load_model(tmp_path / "m")
    np.testing.assert_array_equal(again.decision_function(new), model.decision_function(new))
    columns = np.load(tmp_path / "m" / "columns.npy")
    for wrong in (-1, 30):
        change = replace_array("columns", np.r_[columns[:-1], wrong])
        with pytest.raises(ValueError, match="columns must number samples"):
            wl.load_model(broken(tmp_path / "m", tmp_path, change))


def test_samples_of_weight_0_keep_their_places(tmp_path):
    weight = np.r_[np.zeros(5), np.ones(20), 0]
    model = wl.NTKClassifier(ridge=1e-3).fit(X[:26], Y[:26], weight)
    model.sample_names_ = [f"{place}.png" for place in range(26)]
    wl.save_model(model, tmp_path / "m")
    again = wl.load_model(tmp_path / "m")
    for key, value in model.__dict__.items():
        same(value, again.__dict__[key])
    assert again.influence(X[[7]], 1).names.item() == "7.png"
    np.testing.assert_array_equal(again.self_influence_, model.self_influence_)
    for wrong in (np.full(26, True), np.full((20, 1), True)):
        with pytest.raises(ValueError, match="counts must be true for each sample that has a wei"):
            wl.load_model(broken(tmp_path / "m", tmp_path, replace_array("counts", wrong)))
    change = replace_array("sample_names", np.array(model.sample_names_[:20]))
    with pytest.raises(ValueError, match="a name for each sample"):
        wl.load_model(broken(tmp_path / "m", tmp_path, change))

    def of_before(path, document):  # without weights of 0 there is no such array
        del document["arrays"]["counts"]

    before = wl.load_model(broken(tmp_path / "m", tmp_path, of_before))
    np.testing.assert_array_equal(before.predict(X[:9]), model.predict(X[:9]))
    assert len(before.loo_predictions_) == 20


def test_what_exists_is_kept(fitted, tmp_path):
    model, other = fitted["classifier"], fitted["regressor"]
    wl.save_model(model, tmp_path / "m")
    with pytest.raises(FileExistsError, match="overwrite=True to replace"):
        wl.save_model(other, tmp_path / "m")
    assert isinstance(wl.load_model(tmp_path / "m"), wl.NTKClassifier)
    wl.save_model(other, tmp_path / "m", overwrite=True)
    assert isinstance(wl.load_model(tmp_path / "m"), wl.NTKRegressor)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years of work")
    with pytest.raises(FileExistsError, match="exists, and is no model"):
        wl.save_model(model, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "text").exists()
    with pytest.raises(NotFittedError):
        wl.save_model(wl.NTKClassifier(), tmp_path / "n")


CALLS = [(call, n) for call in ("numpy.save", "os.fsync", "os.replace") for n in (0, 1, 5)]


@pytest.mark.parametrize(("call", "before"), CALLS)
def test_a_failed_save_leaves_what_was_there(fitted, tmp_path, monkeypatch, call, before):
    """One call fails, after so many that do not: each array, each file, and each rename."""
    wl.save_model(fitted["classifier"], tmp_path / "m")
    files = sorted(os.listdir(tmp_path / "m"))
    module, _, name = call.partition(".")
    module = {"numpy": np, "os": os}[module]
    right, calls = getattr(module, name), iter(range(10**6))

    def fail(*arguments, **options):
        if next(calls) == before:
            raise OSError(28, "No space left on device")
        return right(*arguments, **options)

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(OSError, match=r"the disk is full: 0\.. MB are needed in .*m$"):
        wl.save_model(fitted["regressor"], tmp_path / "m", overwrite=True)
    monkeypatch.undo()
    assert next(calls) > before
    assert isinstance(wl.load_model(tmp_path / "m"), wl.NTKClassifier)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert sorted(os.listdir(tmp_path / "m")) == [".lock", *files]


def test_a_model_that_does_not_fit_onto_the_disk_is_not_begun(fitted, tmp_path, monkeypatch):
    model, path = fitted["classifier"], tmp_path / "m"
    wl.save_model(model, path)
    size = sum(file.stat().st_size for file in path.iterdir())
    monkeypatch.setattr(saved, "_write", lambda *_: pytest.fail("it has begun"))
    disk_of(size - 1, monkeypatch)
    for place in (path, tmp_path / "n"):
        with pytest.raises(
            OSError, match=rf"full: 0\.\d MB are needed in {place}, 0\.\d MB are fr"
        ):
            wl.save_model(model, place, overwrite=True)
    assert os.listdir(tmp_path) == ["m"]
    monkeypatch.undo()
    disk_of(size + 10**5, monkeypatch)
    wl.save_model(model, path, overwrite=True)


class Killed(BaseException):
    pass


def kill_after(count, patch):
    """Let so many calls that change a disk pass, and none later: nothing is undone, either."""
    calls = iter(range(10**6))

    def limit(right):
        def call(*arguments, **options):
            if next(calls) >= count:
                raise Killed
            return right(*arguments, **options)

        return call

    for name in ("replace", "fsync", "unlink"):
        patch.setattr(os, name, limit(getattr(os, name)))


def test_a_save_that_is_killed_leaves_one_model_or_the_other(fitted, tmp_path, monkeypatch):
    """What lies there at each instant is whole, and what is left over goes with the next save."""
    path, kinds, finished, count = tmp_path / "m", set(), False, 0
    while not finished:
        shutil.rmtree(path, ignore_errors=True)
        wl.save_model(fitted["classifier"], path)
        with monkeypatch.context() as patch, suppress(Killed):
            kill_after(count, patch)
            wl.save_model(fitted["regressor"], path, overwrite=True)
            finished = True
        kinds.add(type(wl.load_model(path)).__name__)
        count += 1
    assert count > 20
    assert kinds == {"NTKClassifier", "NTKRegressor"}
    wl.save_model(fitted["classifier"], path, overwrite=True)
    document = json.loads((path / "model.json").read_text())
    files = {about["file"] for about in document["arrays"].values()}
    assert set(os.listdir(path)) == files | {"model.json", ".lock"}


def test_who_loads_while_another_saves_gets_a_whole_model(fitted, tmp_path):
    path, stop = tmp_path / "m", threading.Event()
    wl.save_model(fitted["classifier"], path)
    (tmp_path / "link").symlink_to("m")

    def save():
        while not stop.is_set():
            for name in ("regressor", "classifier"):
                wl.save_model(fitted[name], tmp_path / "link", overwrite=True)

    thread = threading.Thread(target=save)
    thread.start()
    kinds, end = set(), time.monotonic() + 120
    try:
        for count in itertools.count(1):
            kinds.add(type(wl.load_model(path)))
            if count >= 150 and (len(kinds) == 2 or time.monotonic() > end):
                break
    finally:
        stop.set()
        thread.join()
    assert kinds == {wl.NTKClassifier, wl.NTKRegressor}
    assert (tmp_path / "link").is_symlink()


@pytest.fixture(scope="module")
def folder(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m"
    wl.save_model(fitted["classifier"], path)
    return path


def broken(folder, tmp_path, change):
    path = tmp_path / "copy"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder, path)
    document = json.loads((path / "model.json").read_text())
    change(path, document)
    document["crc32c"] = saved._document_checksum(document)  # as only a forger would
    (path / "model.json").write_text(json.dumps(document))
    return path


def put(*keys, value):
    def change(path, document):
        inner = document
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def replace_array(name, values, pickled=False):
    def change(path, document):
        np.save(path / f"{name}.npy", values, allow_pickle=pickled)
        if not pickled:
            document["arrays"][name] = {
                "dtype": values.dtype.str,
                "shape": list(values.shape),
                "crc32c": saved._checksum(values),
            }

    return change


def link(path, document):
    (path / "x_fit.npy").rename(path.parent / "elsewhere.npy")
    (path / "x_fit.npy").symlink_to(path.parent / "elsewhere.npy")


def shorten(path, document):
    content = (path / "targets.npy").read_bytes()
    (path / "targets.npy").write_bytes(content[:-8])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("format", value="widelimit.model/9"),
            r"format .*model/1 or .*model/2 or .*/3 or .*/4 or .*/5, got 'widelimit",
        ),
        (put("format", value=None), r"must hold a model of format"),
        (put("estimator", value="os.system"), r"damaged \(KeyError: 'os.*: save the model again"),
        (put("parameters", "__class__", value=1), r"damaged \(TypeError"),
        (put("parameters", "store", value="/etc"), r"no parameters \['store'\]"),
        (put("arrays", "../x", value={}), r"unknown arrays \['../x'\]"),
        (put("arrays", "x_fit", "crc32c", value=7), r"x_fit.npy is damaged, its checksum"),
        (put("arrays", "x_fit", "shape", value=[1, 2]), r"x_fit.npy does not hold what"),
        (put("arrays", "x_fit", value=None), r"damaged"),
        (put("arrays", value=[]), r"damaged"),
        (put("fitted", "kind", value="rbf"), r"expected one of .*got 'rbf'"),
        (put("fitted", "status", value="FINE"), r"damaged"),
        (put("fitted", "net", value=[{"a": 1}]), r"network JSON"),
        (put("fitted", "n_features", value=65), r"x_fit must have shape"),
        (put("fitted", "n_features", value=-1), r"number of samples or features, got -1"),
        (put("fitted", "image_shape", value=[4, 4, 1]), r"as many values as there are features"),
        (put("fitted", "feature_names", value=["a"]), r"one name for each feature"),
        (replace_array("place", np.full(65, 99)), r"place and first must number samples"),
        (replace_array("place", np.r_[:64, 65]), r"place and first must number samples"),
        (replace_array("first", np.r_[:64, 65]), r"place and first must number samples"),
        (replace_array("targets", np.ones((65, 9))), r"dual_coef has shape"),
        (replace_array("sample_weight", np.zeros(65)), r"sample_weight must be above 0"),
        (replace_array("multiples", np.zeros(65)), r"give every row a weight above 0"),
        (replace_array("multiples", np.full(65, np.nan)), r"give every row a weight above 0"),
        (replace_array("place", np.zeros(65, int)), r"give every row a weight above 0"),
        (replace_array("multiples", np.ones(64)), r"multiples has shape \(64,\)"),
        (put("parameters", "backend", value="tpu"), r"backend must be"),
        (put("fitted", "net", value=[]), r"there must be one network"),
        (put("fitted", "net", value=2 * [json.loads(NET.to_json())]), r"there must be one network"),
        (replace_array("dual_coef", np.ones(4)), r"dual_coef has shape \(4,\)"),
        (replace_array("x_fit", np.ones((65, 64), "f2")), r"x_fit.npy does not hold what"),
        (replace_array("x_fit", np.ones((65, 64), complex)), r"numbers or text, got dtype complex"),
        (replace_array("x_fit", np.array([print]), pickled=True), r"must hold a model"),
        (replace_array("classes", np.arange(3)), r"one column of targets for each class"),
        (link, r"x_fit.npy must lie in .*leads to .*elsewhere.npy"),
        (shorten, r"must hold a model"),
    ],
)
def test_damage_and_strangers_are_refused(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        wl.load_model(broken(folder, tmp_path, change))


def test_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        wl.load_model(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no file model.json"):
        wl.load_model(tmp_path)
    (tmp_path / "model.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"model\.json must be a JSON object, it is not"):
        wl.load_model(tmp_path)


def test_memory_is_looked_at_first(folder, monkeypatch):
    monkeypatch.setattr(saved, "available_memory", lambda: 10_000)
    with pytest.raises(MemoryError, match=r"the model takes 0\.0 GiB, 0\.0 GiB are free"):
        wl.load_model(folder)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_bit_is_found(folder, tmp_path, data):
    path = broken(folder, tmp_path, lambda path, document: None)
    files = sorted(file for file in path.iterdir() if file.suffix == ".npy")
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(128, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum is wrong"):
        wl.load_model(path)


# --- models of earlier formats ------------------------------------------------------------------

OLD = Path(__file__).parent / "models"
OLD_NEW = np.array([[1.0, 1, 1], [0, -2, 0.5]])
OLD_MORE = np.array([[3.0, 6, 0], [1, 0, 0]])


def test_a_regressor_of_the_first_format(tmp_path):
    """Of rows that are multiples, and one of zeros, which are rows of their own in it."""
    model = wl.load_model(OLD / "regressor-1")
    mean, std = model.predict(OLD_NEW, return_std=True)
    np.testing.assert_allclose(mean, [0.785182671208917, 0.1149103223558305], rtol=1e-12)
    np.testing.assert_allclose(std, [0.814971104515276, 1.752215953099984], rtol=1e-12)
    assert len(model.x_fit_) == 5
    assert (model.ridge_, model.loo_score_) == (0.01, pytest.approx(-0.9967042765903099))
    assert model.self_influence_[1] == pytest.approx(1.6264798478735403)
    wl.save_model(model, tmp_path / "m")
    for again in (model, wl.load_model(tmp_path / "m")):
        again.partial_fit(OLD_MORE, [1.0, 2.0])  # the first is three times an old sample
        assert len(again.x_fit_) == 6
        expected = [1.395009197585999, 0.8697411619869442]
        np.testing.assert_allclose(again.predict(OLD_NEW), expected, rtol=1e-7)


def test_a_classifier_of_the_first_format():
    model = wl.load_model(OLD / "classifier-1")
    assert (model.time_, model.classes_.tolist()) == (0.5, ["a", "b", "c"])
    expected = [
        [0.27824808799862855, -0.1824761931260935, -0.0957718948725349],
        [0.681279839623637, -0.4141174232771788, -0.2671624163464581],
    ]
    np.testing.assert_allclose(model.decision_function(OLD_NEW), expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict_proba(OLD_NEW)[0, 0], 0.33342608893808273, rtol=1e-12)
    model.partial_fit(OLD_MORE, ["d", "a"])
    found = model.decision_function(OLD_NEW)[0]
    expected = [0.4173553838719318, -0.17435201629869929, -0.07000996150008411, -0.1729934060731484]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["regressor-1", "classifier-1"])
def test_verbose_of_an_earlier_model_is_left_out(name):
    """It is called progress now, and is no part of a model."""
    assert "verbose" in json.loads((OLD / name / "model.json").read_text())["parameters"]
    model = wl.load_model(OLD / name)
    assert model.progress is False
    assert not hasattr(model, "verbose")
