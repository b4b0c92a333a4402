"""The solver of a card, with NumPy in its place: the same arithmetic, block by block."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

import widelimit as wl
from widelimit import backends
from widelimit.estimators import regression
from widelimit.solvers import Status, Unavailable, card, methods, solve, solve_cholesky
from widelimit.solvers.card import Device, solve_card

N = 131
ARITHMETIC = (np.linalg.cholesky, scipy.linalg.solve_triangular)


def device(block: int = 32, free: int = 2**40) -> Device:
    return Device(
        np, np.linalg.cholesky, scipy.linalg.solve_triangular, np.asarray, lambda: free, block
    )


def gram(n: int = N, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((n, n))
    return a @ a.T / n + 0.1 * np.eye(n)


Y = np.random.default_rng(1).standard_normal((N, 3))
WEIGHTS = np.random.default_rng(2).integers(1, 4, N).astype(float)


@pytest.mark.parametrize("block", [7, 32, 64, 131, 500])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weights"])
def test_a_card_solves_as_memory_does(block: int, dtype: str, weights: Any) -> None:
    k = gram().astype(dtype)
    k = (k + k.T) / 2
    got = solve_card(k, Y, 1e-3, weights=weights, device=device(block))
    want = solve_cholesky(k, Y, 1e-3, weights=weights)
    assert got.status is want.status is Status.SOLVED
    assert np.allclose(got.value, want.value, rtol=1e-10, atol=0)
    for name in ("n", "ridge", "ridge_absolute"):
        assert getattr(got.statistics, name) == getattr(want.statistics, name)
    assert 0 < got.statistics.residual_norm < 1e-13
    truth = np.linalg.cond(
        k.astype(float)
        + np.diag(
            want.statistics.ridge_absolute / (WEIGHTS if weights is not None else np.ones(N))
        ),
        1,
    )
    assert 1 / truth < got.statistics.reciprocal_condition * (1 + 1e-9)
    assert got.statistics.reciprocal_condition < 3 / truth
    mine, other = got.factor, want.factor
    assert mine is not None
    assert other is not None
    assert mine.method == "card"
    assert (mine.n, mine.time, mine.location) == (N, np.inf, None)
    assert np.allclose(mine.inverse_diagonal(), other.inverse_diagonal(), rtol=1e-10)
    assert mine.log_determinant() == pytest.approx(other.log_determinant(), rel=1e-12)
    assert np.allclose(mine.left_out(Y), other.left_out(Y), rtol=1e-9)
    assert np.allclose(mine.multiply(Y), other.multiply(Y), rtol=1e-12)
    assert np.allclose(mine.multiply_gram(Y), other.multiply_gram(Y), rtol=1e-12)
    assert np.array_equal(mine.gram(), k)
    assert np.allclose(mine.spectrum().values, other.spectrum().values)
    facts, arrays = mine.described()
    again = methods.restore_factor(
        facts, arrays, weights=mine.weights, ridge=mine.ridge, ridge_absolute=mine.ridge_absolute
    )
    assert again.method == "cholesky"
    assert np.allclose(again.solve(Y), got.value, rtol=1e-10)
    with pytest.raises(Unavailable, match="solve all of k again"):
        mine.extended(np.eye(N + 1))


def test_one_target_keeps_its_shape() -> None:
    got = solve_card(gram(), Y[:, 0], device=device())
    assert got.value.shape == (N,)


def test_a_stored_matrix_is_read_by_halves(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(size=(70, 4, 4, 1))
    k = wl.gram(wl.cntk_vanilla(3), x, store=tmp_path / "k.zarr", tile=16)
    got = solve_card(k, Y[:70], 1e-4, device=device())
    want = solve_cholesky(k, Y[:70], 1e-4)
    assert np.allclose(got.value, want.value, rtol=1e-8)


def test_a_singular_matrix_has_no_solution() -> None:
    k = gram()
    k[40], k[:, 40] = k[9], k[:, 9]
    k[40, 40] = k[9, 9]
    got = solve_card(k, Y, device=device())
    assert got.status is Status.NOT_POSITIVE_DEFINITE
    assert np.isnan(got.value).all()
    assert "at sample 40 (from 0)" in got.message
    assert "ridge=1e-6" in got.message
    negative = solve_card(-gram(), Y, device=device())
    assert negative.status is Status.NOT_POSITIVE_DEFINITE


def test_a_matrix_of_single_precision_may_be_ill_conditioned() -> None:
    u = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    k = ((u * np.geomspace(1e-7, 1, N)) @ u.T).astype("float32")
    k = (k + k.T) / 2
    assert solve_cholesky(k, Y, 1e-7).status is Status.ILL_CONDITIONED
    assert solve_card(k, Y, 1e-7, device=device()).status is Status.ILL_CONDITIONED


@pytest.mark.parametrize(
    ("k", "y", "ridge", "error", "words"),
    [
        (np.full((N, N), np.nan), Y, 0.0, ValueError, "finite"),
        (np.triu(gram()), Y, 0.0, ValueError, "symmetric"),
        (gram() * (1 + 1e-7 * np.triu(np.ones((N, N)))), Y, 0.0, ValueError, "up to rounding"),
        (gram()[:5], Y, 0.0, ValueError, "square"),
        (gram(), Y[:3], 0.0, ValueError, "y must"),
        (gram(), Y, -1.0, ValueError, "ridge"),
    ],
    ids=["nan", "not symmetric", "nor nearly", "not square", "targets", "ridge"],
)
def test_bad_input(k: Any, y: Any, ridge: float, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        solve_card(k, y, ridge, device=device())


def test_what_does_not_fit_is_refused_before_it_travels() -> None:
    with pytest.raises(MemoryError, match="are free: use method='cholesky' or 'tiled'"):
        solve_card(gram(), Y, device=device(free=8 * N * N))


def test_solve_knows_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "card_device", device)
    got = solve(gram(), Y, 1e-3, method="card", weights=WEIGHTS)
    want = solve(gram(), Y, 1e-3, weights=WEIGHTS)
    assert np.allclose(got.value, want.value, rtol=1e-10)
    with pytest.raises(Unavailable, match="eigenvectors"):
        solve(gram(), Y, method="card", time=1.0)


def on_a_card(monkeypatch: pytest.MonkeyPatch, free: int = 2**40) -> list[tuple[int, ...]]:
    """Let estimators solve on NumPy in the place of a card; list what is decomposed there."""
    decomposed: list[tuple[int, ...]] = []

    class Counted(Device):
        def eigenvectors(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            decomposed.append(a.shape)
            return super().eigenvectors(a)

    made = Counted(
        np, np.linalg.cholesky, scipy.linalg.solve_triangular, np.asarray, lambda: free, 32
    )
    for module in (card, regression):
        monkeypatch.setattr(module, "card_device", lambda: made)
    monkeypatch.setattr(regression, "_FEWEST_ON_CARD", 50)
    # A kernel of the processor, under the name of the card.
    monkeypatch.setattr(backends, "_cuda", lambda worker: backends.get_backend("cpu"))
    return decomposed


@pytest.mark.parametrize(
    "how",
    [{"ridge": 1e-3}, {"ridge": "loo"}, {"ridge": 0.0}, {"ridge": 1e-3, "time": "loo"}],
    ids=str,
)
def test_an_estimator_solves_on_the_card_of_its_kernel(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 5))
    y = x[:, :3].argmax(axis=1)
    want = wl.NTKClassifier(backend="cpu", **how).fit(x, y)
    decomposed = on_a_card(monkeypatch)
    got = wl.NTKClassifier(backend="cuda", **how).fit(x, y)
    assert bool(decomposed) == ("loo" in how.values())
    factor = got.solution_.factor
    assert factor is not None
    assert factor.method == ("spectral" if "time" in how else "card")
    assert got.ridge_ == want.ridge_
    assert np.allclose(got.dual_coef_, want.dual_coef_, rtol=1e-8)
    assert np.allclose(got.loo_predictions_, want.loo_predictions_, rtol=1e-8)
    again = pickle.loads(pickle.dumps(got))
    assert np.array_equal(again.predict_proba(x[:9]), got.predict_proba(x[:9]))
    if "time" not in how:
        assert again.solution_.factor.method == "cholesky"
        both = [model.partial_fit(x[:9] + 0.1, y[:9]).dual_coef_ for model in (got, want)]
        assert np.allclose(*both, rtol=1e-7)


def test_where_the_card_has_no_room_an_estimator_solves_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 5))
    y = x[:, :3].argmax(axis=1)
    for free, method in ((8 * 60 * 60, "cholesky"), (8 * 60 * 60 * 4, "card")):
        decomposed = on_a_card(monkeypatch, free)
        model = wl.NTKClassifier(backend="cuda", ridge=1e-3).fit(x, y)
        assert model.solution_.factor is not None
        assert model.solution_.factor.method == method
        wl.NTKClassifier(backend="cuda", ridge="loo").fit(x, y)
        assert not decomposed  # eigenvectors need more than either
