"""`store=` of estimators: each kernel and factor under a name that follows from what it is."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score

import widelimit as wl
from widelimit.estimators import base, fitted
from widelimit.files import own_folder

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 5)), RNG.normal(size=60)
NET = wl.ntk_dense(2)


def model(store: Path | None, **options: Any) -> Any:
    return wl.NTKRegressor(NET, store=store, standardise=False, **({"ridge": 0.1} | options))


def fits(root: Path) -> list[str]:
    return sorted(os.listdir(root))


@pytest.fixture(params=["memory", "tiled", "conjugate"])
def method(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where and how is solved."""
    chosen = request.param
    if chosen != "memory":

        def choose(n: int, options: Any, **about: Any) -> str:
            return "cholesky" if options.store is None else chosen

        monkeypatch.setattr(base, "solver_for", choose)
    return chosen


def written(root: Path) -> dict[Path, int]:
    """When each file of a store was written, but for those that say how far an iteration is."""
    files = (p for p in root.rglob("*") if p.is_file() and p.name not in (".lock", "state.npz"))
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_second_fit_with_other_data_has_a_store_of_its_own(method: str, tmp_path: Path) -> None:
    stored, plain = model(tmp_path), model(None)
    parts = (slice(0, 40), slice(20, 60), slice(0, 40))
    for part in parts:
        stored.fit(X[part], Y[part])
        assert np.array_equal(stored.dual_coef_, model(tmp_path).fit(X[part], Y[part]).dual_coef_)
        plain.fit(X[part], Y[part])
        np.testing.assert_allclose(stored.dual_coef_, plain.dual_coef_, rtol=1e-5, atol=1e-9)
        if part is parts[0]:
            first = stored.store_
    assert fits(tmp_path) == sorted({Path(stored.store_).name, *fits(tmp_path)})
    assert len(fits(tmp_path)) == 2
    assert stored.store_ == first == str(tmp_path / Path(first).name)
    assert plain.store_ is None


def test_what_is_there_is_used_again(method: str, tmp_path: Path) -> None:
    """Also for other targets, which the kernel and its factor do not depend on."""
    one = model(tmp_path).fit(X, Y)
    before = written(tmp_path)
    again = model(tmp_path).fit(X, Y)
    assert np.array_equal(again.dual_coef_, one.dual_coef_)
    assert written(tmp_path) == before
    model(tmp_path).fit(X, Y + 1)
    assert {p: t for p, t in written(tmp_path).items() if p in before} == before
    assert (written(tmp_path).keys() == before.keys()) == (method != "conjugate")


def test_samples_that_repeat_old_ones_need_no_new_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "solver_for", lambda *_, **__: "tiled")
    stored = model(tmp_path, ridge=0.0).fit(X, Y)
    before = written(tmp_path)
    stored.partial_fit(X[:10], Y[:10])
    assert written(tmp_path) == before
    stored.partial_fit(X[:10] + 1, Y[:10])
    assert {p: t for p, t in written(tmp_path).items() if p in before} == before
    assert len(fits(tmp_path)) == 2
    again = model(tmp_path, ridge=0.0).fit(X, Y).partial_fit(X[:10] + 1, Y[:10])
    assert again.store_ == stored.store_
    np.testing.assert_allclose(again.dual_coef_, stored.dual_coef_, rtol=1e-9)
    assert len(fits(tmp_path)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "nngp"},
        {"net": wl.ntk_dense(3)},
        {"dtype": "float32"},
        {"backend": "reference"},
        {"standardise": True},
    ],
    ids=str,
)
def test_each_kernel_has_a_name(change: dict[str, Any], tmp_path: Path) -> None:
    model(tmp_path).fit(X, Y)
    other = model(tmp_path).set_params(**change).fit(X, Y)
    expected = model(None).set_params(**change).fit(X, Y)
    assert np.array_equal(other.dual_coef_, expected.dual_coef_)
    assert len(fits(tmp_path)) == 2


# Forked ones: others take seconds to begin.
FORK = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@FORK
@pytest.mark.parametrize("jobs", [1, 2])
def test_cross_validation(jobs: int, tmp_path: Path) -> None:
    folds = KFold(3)
    with parallel_config("multiprocessing"):
        found = cross_val_score(model(tmp_path), X, Y, cv=folds, n_jobs=jobs)
    assert np.array_equal(found, cross_val_score(model(None), X, Y, cv=folds))
    assert len(fits(tmp_path)) == 3


@FORK
def test_a_search_over_ridges_by_two_processes_needs_each_kernel_once(tmp_path: Path) -> None:
    grid = {"ridge": [1e-3, 1e-2, 1e-1, 1.0]}
    search = GridSearchCV(model(tmp_path), grid, cv=KFold(2), n_jobs=2, refit=False)
    with parallel_config("multiprocessing"):
        search.fit(X, Y)
    plain = GridSearchCV(model(None), grid, cv=KFold(2), refit=False).fit(X, Y)
    for name in ("mean_test_score", "std_test_score"):
        assert np.array_equal(search.cv_results_[name], plain.cv_results_[name])
    assert len(fits(tmp_path)) == 2


def test_a_fit_waits_for_the_process_that_makes_the_same(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so, after a while."""
    stored = model(tmp_path).fit(X, Y)
    expected, place = stored.dual_coef_, Path(stored.store_)
    names = {"memory": "kernel", "tiled": "factor", "conjugate": "checkpoint"}
    (folder,) = (path for path in place.iterdir() if path.name.startswith(names[method]))
    for path in folder.rglob("0" if method != "conjugate" else "state.npz"):
        if path.is_file():
            path.unlink()
    monkeypatch.setattr(fitted, "_PAUSE", 0.001)
    monkeypatch.setattr(fitted, "_QUIET", 0.0)
    held = own_folder(folder, {path.name for path in folder.iterdir()}, "a store")
    held.__enter__()
    slept: list[float] = []

    def pause(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 5:
            held.__exit__(None, None, None)

    clock = SimpleNamespace(sleep=pause, monotonic=time.monotonic)
    monkeypatch.setattr(fitted, "time", clock)
    with pytest.warns(RuntimeWarning, match=f"waits for what another process .* {folder}: another"):
        found = model(tmp_path).fit(X, Y).dual_coef_
    assert slept == [0.001] * 5
    assert np.array_equal(found, expected)


def test_two_fits_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one estimator, in threads: the second waits for the first, and both are right."""
    monkeypatch.setattr(fitted, "_PAUSE", 0.001)
    expected = model(None).fit(X, Y).dual_coef_
    found: list[Any] = []

    def fit() -> None:
        found.append(model(tmp_path, threads=1).fit(X, Y).dual_coef_)

    threads = [threading.Thread(target=fit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(np.array_equal(one, expected) for one in found)
    assert len(fits(tmp_path)) == 1
