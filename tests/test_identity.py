"""Each tile belongs to one store and one place: nothing else is taken for it."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widelimit as wl
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import StoreError, TileStore
from widelimit.solvers import factorise, solve_tiled

X = np.random.default_rng(0).uniform(size=(70, 4, 3, 2))
NET = wl.cntk_vanilla(3)


def gram(path: Path, x: Any = X, **options: Any) -> Any:
    return wl.gram(NET, x, store=path, tile=16, threads=1, **options)


def tiles_of(path: Path) -> list[Path]:
    return sorted(p for p in (path / "c").rglob("*") if p.is_file())


def seals_of(path: Path) -> dict[str, Path]:
    """Seal of each tile, by the name of the tile below its store."""
    (folder,) = (path / "seals").iterdir()
    return {f"c/{p.relative_to(folder)}": p for p in folder.rglob("*") if p.is_file()}


def swap(a: Path, b: Path) -> None:
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


@pytest.mark.parametrize("sealed", [False, True])
def test_two_tiles_that_changed_places(sealed: bool, tmp_path: Path) -> None:
    """With or without their seals: kernels."""
    path = tmp_path / "k.zarr"
    gram(path)
    rng = random.Random(0)
    for _ in range(10):
        a, b = rng.sample(tiles_of(path), 2)
        swap(a, b)
        if sealed:
            seals = seals_of(path)
            swap(seals[str(a.relative_to(path))], seals[str(b.relative_to(path))])
        with pytest.raises(StoreError, match="is not the one that was written there: run the call"):
            np.array(wl.open_gram(path))
        assert np.array_equal(np.array(gram(path, verify=True)), wl.kernel(NET, X))


def test_two_tiles_that_changed_places_after_they_were_read(tmp_path: Path) -> None:
    """What is known of their seals by then is compared with each tile that is read."""
    k = gram(tmp_path / "k.zarr")
    np.array(k)
    swap(*tiles_of(tmp_path / "k.zarr")[:2])
    with pytest.raises(StoreError, match="is not the one that was written there: run the call"):
        np.array(k)


def test_two_tiles_of_a_factor_that_changed_places(tmp_path: Path) -> None:
    path, k = tmp_path / "f.zarr", wl.kernel(NET, X, dtype="float64")
    y = np.ones(70)
    right = solve_tiled(k, y, 0.1, store=path, tile=16).value
    swap(*tiles_of(path)[:2])
    with pytest.raises(StoreError, match="is not the one that was written there"):
        solve_tiled(k, y, 0.1, store=path, tile=16)
    again = solve_tiled(k, y, 0.1, store=path, tile=16, verify=True).value
    assert np.array_equal(again, right)


def test_a_tile_of_another_store_of_the_same_shape(tmp_path: Path) -> None:
    one, other = tmp_path / "k.zarr", tmp_path / "l.zarr"
    gram(one)
    gram(other, X[::-1])
    for a, b in zip(tiles_of(one), tiles_of(other), strict=True):
        shutil.copy(b, a)
    with pytest.raises(StoreError, match="is not the one that was written there"):
        np.array(wl.open_gram(one))
    shutil.copytree(other / "seals", one / "seals", dirs_exist_ok=True)
    with pytest.raises(StoreError, match="is not the one that was written there"):
        np.array(wl.open_gram(one))
    assert np.array_equal(np.array(gram(one, verify=True)), wl.kernel(NET, X))


def test_what_is_kept_of_another_store_is_not_taken(tmp_path: Path) -> None:
    """Under our own identity: a tile with its seal, and the diagonal of an inverse."""
    y, k = np.ones(70), [wl.kernel(NET, x, dtype="float64") for x in (X, X[::-1])]
    one, other = tmp_path / "f.zarr", tmp_path / "g.zarr"
    right = factorise(k[0], 0.1, store=one, tile=16).inverse_diagonal()
    factorise(k[1], 0.1, store=other, tile=16).inverse_diagonal()
    for name in ("kept", "seals"):
        (mine,), (theirs,) = ([*(path / name).iterdir()] for path in (one, other))
        for file in theirs.rglob("*"):
            if file.is_file() and file.name != "store":
                shutil.copy(file, mine / file.relative_to(theirs))
    assert np.array_equal(factorise(k[0], 0.1, store=one, verify=True).inverse_diagonal(), right)
    shutil.copy(
        next((other / "seals").iterdir()) / "1" / "0", next((one / "seals").iterdir()) / "1" / "0"
    )
    shutil.copy(other / "c" / "1" / "0", one / "c" / "1" / "0")
    with pytest.raises(StoreError, match=r"tile \(1, 0\) .* is not the one that was written there"):
        solve_tiled(k[0], y, 0.1, store=one)
    (one / "c" / "1" / "0").unlink()  # as the message says
    assert np.array_equal(solve_tiled(k[0], y, 0.1, store=one).factor.inverse_diagonal(), right)


def test_tiles_whose_metadata_are_gone_are_not_adopted(tmp_path: Path) -> None:
    """As an interrupted `rm -r` leaves them."""
    path, k = tmp_path / "f.zarr", wl.kernel(NET, X, dtype="float64")
    y = np.ones(70)
    solve_tiled(k, y, 10.0, store=path, tile=16)
    (path / "zarr.json").unlink()
    solution = solve_tiled(k, y, 0.1, store=path, tile=16)
    ridge = 0.1 * np.trace(k) / 70
    np.testing.assert_allclose(k @ solution.value + ridge * solution.value, y, atol=1e-10)
    gram(tmp_path / "k.zarr", X[::-1])
    (tmp_path / "k.zarr" / "zarr.json").unlink()
    assert np.array_equal(np.array(gram(tmp_path / "k.zarr")), wl.kernel(NET, X))


def test_a_job_whose_store_was_made_anew_stops(tmp_path: Path) -> None:
    """Job A is suspended, its store deleted, job B runs to its end, and A goes on."""
    path = tmp_path / "k.zarr"
    suspended, go_on = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def pause(state: Any) -> None:
        if state.tiles == 3:
            suspended.set()
            assert go_on.wait(60)

    def job() -> None:
        try:
            gram(path, X[::-1], progress=pause)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=job)
    thread.start()
    assert suspended.wait(60)
    time.sleep(0.5)  # tiles that are complete are written, though it is suspended
    shutil.rmtree(path)
    gram(path)
    go_on.set()
    thread.join(60)
    (error,) = caught
    assert isinstance(error, StoreError)
    assert "was deleted, or made anew, since this began to write there" in str(error)
    assert np.array_equal(np.array(wl.open_gram(path)), wl.kernel(NET, X))


@pytest.mark.parametrize("again", [True, False], ids=["made anew", "deleted"])
def test_a_job_whose_store_goes_after_its_last_tile_returns_no_other(
    again: bool, tmp_path: Path
) -> None:
    path, other = tmp_path / "k.zarr", tmp_path / "other.zarr"
    wl.gram(wl.cntk_gap(2), X, store=other, tile=16)

    def replace(state: Any) -> None:
        if state.tiles == state.tiles_total:
            shutil.rmtree(path)
            if again:
                shutil.copytree(other, path)

    with pytest.raises(StoreError, match=r"k\.zarr was deleted, or made anew, since this began: "):
        gram(path, progress=replace)
    assert path.exists() == again


def test_what_a_stale_writer_slips_in_is_noticed(tmp_path: Path) -> None:
    """Between the look at the store and the write, which nothing can make one."""
    path = tmp_path / "k.zarr"
    gram(path, X[::-1])
    stale = TileStore.open(open_objects(path))
    values = stale.read((0, 1)).copy()
    shutil.rmtree(path)
    gram(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileStore, "_check_current", lambda self: None)
        stale.write((0, 1), values)
    with pytest.raises(StoreError, match="is not the one that was written there"):
        np.array(wl.open_gram(path))


def test_an_entry_that_was_not_computed_is_not_stored(tmp_path: Path) -> None:
    store = TileStore.create(open_objects(tmp_path / "k.zarr"), (20, 20), 16, "float32", "full", {})
    values = np.ones((16, 16), np.float32)
    values[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"tile \(0, 0\) has entries that are no numbers"):
        store.write((0, 0), values)
    assert store.missing() == set(store.grid.tiles())


def changes() -> dict[str, Any]:
    """Changes of metadata that leave them valid."""

    def change(*where: Any, new: Any) -> Any:
        def apply(document: Any) -> None:
            for name in where[:-1]:
                document = document[name]
            assert document[where[-1]] != new
            document[where[-1]] = new

        return apply

    own = ("attributes", "widelimit")
    return {
        "kind": change(*own, "kinds", new=["nngp"]),
        "inputs": change(*own, "x1", "sha256", new="0" * 64),
        "identity": change(*own, "identity", new="0" * 32),
        "makers": change(*own, "makers", 0, "version", new="9"),
        "region": change(*own, "region", new="full"),
        "dtype": change("data_type", new="float64"),
        "shape": change("shape", new=[69, 69]),
    }


@pytest.mark.parametrize("name", changes())
def test_metadata_that_were_changed_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "k.zarr"
    gram(path)
    document = json.loads((path / "zarr.json").read_text())
    changes()[name](document)
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="its metadata are damaged, or were changed"):
        wl.open_gram(path)
    with pytest.raises(StoreError, match="its metadata are damaged, or were changed"):
        gram(path)


def test_the_ridge_of_an_unfinished_factor_is_not_changed(tmp_path: Path) -> None:
    path, k = tmp_path / "f.zarr", wl.kernel(NET, X, dtype="float64")
    factorise(k, 0.1, store=path, tile=16)
    tiles_of(path)[-1].unlink()
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["widelimit"]["ridge_absolute"] *= 1.5
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="its metadata are damaged, or were changed"):
        factorise(k, 0.1, store=path, tile=16)


def test_stores_without_seals_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "k.zarr"
    gram(path)
    document = json.loads((path / "zarr.json").read_text())
    for name in ("identity", "digest"):
        del document["attributes"]["widelimit"][name]
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"made before tiles said where they belong .*: give"):
        gram(path)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "longer"])
def test_a_damaged_seal_costs_its_tile_and_nothing_else(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "k.zarr"
    gram(path)
    seal = seals_of(path)["c/0/1"]
    content = seal.read_bytes()
    seal.write_bytes(
        {
            "flip": bytes([content[0] ^ 1]) + content[1:],
            "cut": content[:-1],
            "empty": b"",
            "longer": content + b"0",
        }.get(damage, content)
    )
    if damage == "gone":
        seal.unlink()
    with pytest.raises(StoreError, match=r"tile \(0, 1\)|lacks 1 of its tiles"):
        np.array(wl.open_gram(path))
    before = {p: os.stat(p).st_mtime_ns for p in tiles_of(path)}
    assert np.array_equal(np.array(gram(path, verify=True)), wl.kernel(NET, X))
    changed = [p for p in tiles_of(path) if os.stat(p).st_mtime_ns != before[p]]
    assert changed == [path / "c" / "0" / "1"]


def test_a_damaged_inverse_is_computed_again(tmp_path: Path) -> None:
    path, k = tmp_path / "f.zarr", wl.kernel(NET, X, dtype="float64")
    right = factorise(k, 0.1, store=path, tile=16).inverse_diagonal()
    (stored,) = (p for p in (path / "kept").rglob("*") if p.is_file())
    content = stored.read_bytes()
    rng = random.Random(0)
    for _ in range(40):
        at = rng.randrange(len(content))
        flipped = content[at] ^ 1 << rng.randrange(8)
        stored.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        found = factorise(k, 0.1, store=path).inverse_diagonal()
        assert np.array_equal(found, right)
    assert stored.read_bytes() == content


def test_a_changed_digit_of_a_model_is_noticed(tmp_path: Path) -> None:
    model = wl.NTKClassifier(NET).fit(X, np.arange(70) % 3)
    wl.save_model(model, tmp_path / "m")
    document = tmp_path / "m" / "model.json"
    text = document.read_text()
    digits = [at for at, letter in enumerate(text) if letter.isdigit()]
    for at in random.Random(0).sample(digits, 100):
        other = str((int(text[at]) + 1) % 10)
        changed = text[:at] + other + text[at + 1 :]
        with suppress(ValueError):
            if json.loads(changed) == json.loads(text):  # the last digit of a float
                continue
        document.write_text(changed)
        with pytest.raises(ValueError, match=r"damaged|must hold a model of|must be a JSON object"):
            wl.load_model(tmp_path / "m")
