"""General networks above the backends: stores, models and commands know no special case."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import contents
from toys import NAMES, make_images
from typer.testing import CliRunner

import widelimit as wl
from widelimit.cli import app
from widelimit.costs import estimate
from widelimit.matrices.progress import Progress
from widelimit.program import compile_networks

X, Y = make_images(48)
NETS = {
    "myrtle": wl.myrtle(5),
    "resnet": wl.resnet(8),
    "Gaussian": wl.myrtle(5, wl.Gaussian()),
    "norm": wl.Network(
        [
            wl.Conv(3),
            wl.LayerNorm(),
            wl.GELU(),
            wl.AvgPool(3, stride=2, padding="same"),
            wl.Conv((3, 2), padding="valid"),
            wl.Erf(),
            wl.Flatten(),
            wl.Dense(b_std=0.1),
        ]
    ),
}


def widelimit(words: str) -> str:
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    return done.stdout


class Stopped(Exception):
    pass


def stop_after(tiles: int) -> Any:
    def progress(state: Progress) -> None:
        if state.tiles >= tiles:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    """Of all networks, of both kinds: (kinds, networks, n, n)."""
    both = wl.kernel(list(NETS.values()), X, kind=("ntk", "nngp"))
    return np.stack(both)


def test_stores_that_were_stopped_go_on(kernels: np.ndarray, tmp_path: Path) -> None:
    nets, path = list(NETS.values()), tmp_path / "k.zarr"
    how: Any = {"kind": ("ntk", "nngp"), "store": path, "tile": 16}
    for tiles in (1, 4):  # of 6
        with pytest.raises(Stopped):
            wl.gram(nets, X, progress=stop_after(tiles), **how)
    made = wl.gram(nets, X, **how)
    np.testing.assert_array_equal(np.stack([np.asarray(k) for k in made]), kernels)
    with ThreadPoolExecutor(2) as executor:
        wl.gram(nets, X, executor=executor, **how | {"store": tmp_path / "e.zarr"})
    assert contents(tmp_path / "e.zarr") == contents(path)
    part = wl.gram(nets[0], X[:32], store=tmp_path / "p.zarr", tile=16)
    whole = wl.gram(nets[0], X, store=tmp_path / "w.zarr", tile=16, reuse=tmp_path / "p.zarr")
    np.testing.assert_array_equal(np.asarray(whole), kernels[0, 0])
    assert len({whole.fingerprint, part.fingerprint, *(k.fingerprint for k in made[0])}) == 6
    with pytest.raises(ValueError, match="another"):  # of networks that differ in one activation
        wl.gram([wl.myrtle(5, wl.Abs()), *nets[1:]], X, **how)


def test_one_pass_computes_what_networks_share() -> None:
    family = [wl.myrtle(depth) for depth in (5, 7, 10)]
    ((program, _),) = compile_networks([family[0], wl.myrtle(5)], (8, 8, 1), ("ntk",))
    assert len(program.networks) == 2
    each = [estimate([net], (8, 8, 1), 10).element_layers for net in family]
    assert each == [8_464, 8_736, 13_104]  # 4,096 of a fine layer, then 256 and 16


@pytest.mark.parametrize("name", NETS)
def test_estimators_take_them(name: str, kernels: np.ndarray, tmp_path: Path) -> None:
    net, k = NETS[name], kernels[0][list(NETS).index(name)]
    given = wl.NTKClassifier(kernel="precomputed", ridge=1e-2).fit(k[:30, :30], Y[:30])
    outputs = given.decision_function(k[30:, :30])
    model = wl.NTKClassifier(net, ridge=1e-2).fit(X[:30], Y[:30])
    np.testing.assert_allclose(model.decision_function(X[30:]), outputs, atol=1e-6)
    rows = wl.NTKClassifier(net, ridge=1e-2, image_shape=(8, 8)).fit(X[:30].reshape(30, -1), Y[:30])
    np.testing.assert_array_equal(rows.predict(X[30:]), model.predict(X[30:]))
    wl.save_model(model, tmp_path / "m")
    loaded = wl.load_model(tmp_path / "m")
    assert loaded.net_ == net
    np.testing.assert_array_equal(loaded.predict_proba(X[30:]), model.predict_proba(X[30:]))
    stored = wl.NTKClassifier(net, ridge=1e-2, store=tmp_path / "s").fit(X[:24], Y[:24])
    stored.partial_fit(X[24:30], Y[24:30])
    grown = wl.NTKClassifier(net, ridge=1e-2).fit(X[:24], Y[:24]).partial_fit(X[24:30], Y[24:30])
    ours, theirs = (each.decision_function(X[30:]) for each in (stored, grown))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    white = wl.NTKClassifier(net, ridge=1e-2, whiten=0.1).fit(X[:30], Y[:30])
    zca = wl.ZCA(0.1).fit(X[:30])
    inner, across = (
        zca.norm_ * z / np.sqrt((z**2).sum(axis=(1, 2, 3), keepdims=True))
        for z in (zca.transform(X[:30]), zca.transform(X[30:]))
    )
    by_hand = wl.NTKClassifier(kernel="precomputed", ridge=1e-2).fit(wl.kernel(net, inner), Y[:30])
    expected = by_hand.decision_function(wl.kernel(net, across, inner))
    np.testing.assert_allclose(white.decision_function(X[30:]), expected, atol=1e-6)
    own = wl.KernelMetric(net, normalise=False, dtype="float32")
    np.testing.assert_array_equal(own(X[:5], X[5:9]), k[:5, 5:9])
    np.testing.assert_allclose(own.diag(X), k.diagonal(), rtol=1e-6)


def test_commands_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x_train=X, y_train=np.array(NAMES)[Y])
    Path("norm.json").write_text(NETS["norm"].to_json())
    nets = "--net myrtle-5 --net resnet-8 --net norm.json"
    told = widelimit(f"rank d.npz {nets} --n 9 --draws 2 --out r.json")
    for name in ("myrtle-5", "resnet-8", "norm.json"):
        assert f"| {name} | " in told
    held = {
        e["name"]: e["network"] for e in json.loads(Path("r.json").read_text())["architectures"]
    }
    assert wl.Network.from_json(held["resnet-8"]) == NETS["resnet"]
    widelimit("report r.json --out r.html")
    assert "resnet-8" in Path("r.html").read_text()
    told = widelimit(f"fit d.npz {nets} --ridge loo --out m")
    assert told.count("tried: ") == 3
    lines = widelimit("predict m d.npz").splitlines()
    assert len(lines) == 49
    widelimit("kernel d.npz --array x_train --net resnet-8 --out k.npy")
    np.testing.assert_array_equal(np.load("k.npy"), wl.kernel("resnet-8", X))
    widelimit("suspects d.npz --net myrtle-5 --out s")


def test_explain_draws_the_tree() -> None:
    told = widelimit("explain resnet-8 --shape 8x8x3")
    assert "  Sum\n  ├─ ReLU Conv(1, stride=2)\n  └─ ReLU Conv(3, stride=2) ReLU Conv(3)\n" in told
    steps = [line.split(maxsplit=1)[1] for line in told.splitlines() if line[:4].strip().isdigit()]
    assert steps[5:10] == [
        "Conv(1, stride=2)  no       no    own field, 4 x 4 pixels",
        "weights            yes      no    own field",
        "Conv(3, stride=2)  no       no    own field, of step 5, 4 x 4 pixels",
        "weights ReLU       yes      no    own field",
        "Conv(3) Sum        yes      no    own field, plus step 7",
    ]
    odd = widelimit("explain myrtle-5 --shape 9x10x3")
    assert "4 x 5 pixels (last row in no window)\n" in odd
    assert "2 x 2 pixels (last column in no window)\n" in odd
    both = widelimit("explain myrtle-5 myrtle-5 --shape 8x8x1 --inputs 100")
    assert "in one pass" in both
    assert "5,050 pairs of 8.46 thousand element-layers" in both
