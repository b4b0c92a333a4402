"""Stores, models, data sets and images of a stranger: refused in bounded time and memory.

What single files may do to their reader is in `test_reading`.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import widelimit as wl
from widelimit.backends.cuda import code_cache
from widelimit.data import image as images
from widelimit.data.image import fit_image, read_image
from widelimit.estimators import saved
from widelimit.job import describe_store
from widelimit.matrices.store import StoreError, _digest
from widelimit.solvers import factorise

X = np.random.default_rng(0).random((40, 5))
NET = wl.ntk_dense(2)


def gram(store: Path, **options: Any) -> Any:
    return wl.gram(NET, X, store=store, tile=16, **options)


# ---------------------------------------------------------------- links out of a store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel ``k.zarr``, its factor ``f.zarr``, and a model ``m``."""
    folder = tmp_path_factory.mktemp("stores")
    k = gram(folder / "k.zarr")
    factorise(k, 0.01, store=folder / "f.zarr", tile=16).inverse_diagonal()
    wl.save_model(wl.NTKRegressor(NET).fit(X, X[:, 0]), folder / "m")
    return folder


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A folder outside, with files whose names are those of tiles; it must not change."""
    folder = tmp_path / "precious"
    names = ["0", "1", "2", "0/1", "1/1", "float64-inverse_diagonal.npy", ".a.partial"]
    for name in names[3:]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")
    (folder / "file").write_text("years of work")
    before = content_of(folder)
    yield folder
    assert content_of(folder) == before


def content_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lose_a_tile(store: Path) -> None:
    next(path for path in sorted((store / "c").rglob("*")) if path.is_file()).unlink()


@pytest.mark.parametrize("place", ["c", "c/0", "seals", "seals/*", "seals/*/0", "inputs", "kept"])
@pytest.mark.parametrize("verify", [False, True])
def test_no_run_writes_through_a_folder_that_leads_out(
    stores: Path, precious: Path, tmp_path: Path, place: str, verify: bool
) -> None:
    store = shutil.copytree(stores / "k.zarr", tmp_path / "k.zarr")
    lose_a_tile(store)
    linked = next(iter(store.glob(place)), store / place)
    shutil.rmtree(linked, ignore_errors=True)
    linked.symlink_to(precious)
    with pytest.raises(ValueError, match=r"must lie in .*k\.zarr, it leads to .*precious.*: put a"):
        gram(store, verify=verify)


@pytest.mark.parametrize("place", ["c", "c/1", "seals", "kept", "kept/*"])
def test_no_factor_is_written_through_a_folder_that_leads_out(
    stores: Path, precious: Path, tmp_path: Path, place: str
) -> None:
    store = shutil.copytree(stores / "f.zarr", tmp_path / "f.zarr")
    linked = next(iter(store.glob(place)))
    shutil.rmtree(linked)
    linked.symlink_to(precious)
    k = wl.open_gram(stores / "k.zarr")
    with pytest.raises(ValueError, match=r"must lie in .*f\.zarr, it leads to .*precious"):
        factorise(k, 0.01, store=store, tile=16).inverse_diagonal()


def test_a_tile_that_is_a_link_is_replaced(stores: Path, precious: Path, tmp_path: Path) -> None:
    store = shutil.copytree(stores / "k.zarr", tmp_path / "k.zarr")
    for path in ((store / "c" / "0" / "1"), next(store.glob("seals/*/1/1"))):
        path.unlink()
        path.symlink_to(precious / "file")
    made = gram(store, verify=True)
    np.testing.assert_array_equal(made[:, :], wl.open_gram(stores / "k.zarr")[:, :])


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "foreign"])
def test_a_lock_is_never_a_file_of_somebody_else(
    stores: Path, precious: Path, tmp_path: Path, kind: str
) -> None:
    store = shutil.copytree(stores / "k.zarr", tmp_path / "k.zarr")
    lose_a_tile(store)
    folder = shutil.copytree(stores / "m", tmp_path / "m")
    model = wl.load_model(folder)
    for lock in (store / ".lock", folder / ".lock"):
        lock.unlink(missing_ok=True)
        if kind == "link":
            lock.symlink_to(precious / "file")
        elif kind == "dangling":
            lock.symlink_to(precious / "new")
        elif kind == "pipe":
            os.mkfifo(lock)
        else:
            os.link(precious / "file", lock)
    for write in (
        lambda: gram(store),
        lambda: wl.save_model(model, folder, overwrite=True),
    ):
        with pytest.raises(ValueError, match=r"\.lock must be a lock, it .*: delete it"):
            write()


# ---------------------------------------------------------------- what metadata announce


def signed(store: Path, change: Callable[[Any, Any], None]) -> None:
    """Change metadata, and sign them, which anybody can."""
    path = store / "zarr.json"
    content = json.loads(path.read_text())
    change(content, content["attributes"]["widelimit"])
    content["attributes"]["widelimit"]["digest"] = _digest(content)
    path.write_text(json.dumps(content))


def test_millions_of_tiles_that_are_announced_cost_nothing(stores: Path, tmp_path: Path) -> None:
    store = shutil.copytree(stores / "k.zarr", tmp_path / "k.zarr")
    n = 16 * 2**10

    def change(array: Any, own: Any) -> None:
        array["shape"], own["x1"]["shape"] = [n, n], [n, 5]

    signed(store, change)
    calls = {
        r"lacks 524,?794 of its tiles": lambda: wl.open_gram(store),
        r"holds another kernel": lambda: gram(store),
        r"must hold a factor": lambda: factorise(np.eye(3), 1.0, store=store),
    }
    for message, call in calls.items():
        tracemalloc.start()
        with pytest.raises(ValueError, match=message):
            call()
        assert tracemalloc.get_traced_memory()[1] < 2e7  # some bytes for each tile
        tracemalloc.stop()
    assert "6 of 524,800" in describe_store(str(store))


@pytest.mark.parametrize("ridge", ["x", None, pytest.param(10**400, id="large"), []])
def test_a_factor_whose_ridge_is_none(stores: Path, tmp_path: Path, ridge: Any) -> None:
    store = shutil.copytree(stores / "f.zarr", tmp_path / "f.zarr")
    signed(store, lambda _, own: own.update(ridge_absolute=ridge))
    k = wl.open_gram(stores / "k.zarr")
    with pytest.raises(StoreError, match=r"f\.zarr must hold a factor, it does not .*give another"):
        factorise(k, 0.01, store=store, tile=16)
    with pytest.raises(StoreError, match="must hold a factor"):
        factorise(k, store=tmp_path / "new.zarr", reuse=store)


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "m"
    x = np.random.default_rng(0).random((12, 4, 4, 1))
    wl.save_model(wl.NTKClassifier("cntk-gap-3", ridge=1e-3).fit(x, np.arange(12) % 3), path)
    return path


def forged(folder: Path, copy: Path, change: Callable[[Any], None]) -> Path:
    shutil.copytree(folder, copy)
    document = json.loads((copy / "model.json").read_text())
    change(document)
    document["crc32c"] = saved._document_checksum(document)
    (copy / "model.json").write_text(json.dumps(document))
    return copy


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("parameters", "threads", 100_000, r"threads must be at most 1,024, got 100000: None"),
        ("parameters", "threads", 10**30, r"threads must be at most 1,024, got 10{19}: None"),
        ("parameters", "threads", 0, "threads must be at least 1"),
        ("fitted", "temperature", 0, "temperature must be above 0"),
        ("fitted", "temperature", "nan", "temperature must be above 0"),
        ("fitted", "temperature", -1.0, "temperature must be above 0"),
        ("fitted", "temperature", None, "there must be a temperature"),
    ],
)
def test_numbers_of_a_model(
    folder: Path, tmp_path: Path, part: str, name: str, value: Any, message: str
) -> None:
    path = forged(folder, tmp_path / "m", lambda document: document[part].update({name: value}))
    with pytest.raises(ValueError, match=rf"{message}.*save the model again"):
        wl.load_model(path)


@pytest.mark.parametrize("name", ["dual_coef", "x_fit", "targets", "sample_weight"])
def test_arrays_of_a_model_are_finite(folder: Path, tmp_path: Path, name: str) -> None:
    def change(document: Any) -> None:
        values = np.load(tmp_path / "m" / f"{name}.npy")
        values.flat[1] = np.inf
        np.save(tmp_path / "m" / f"{name}.npy", values)
        document["arrays"][name]["crc32c"] = saved._checksum(values)

    path = forged(folder, tmp_path / "m", change)
    with pytest.raises(ValueError, match=rf"{name} must be finite\): save the model again"):
        wl.load_model(path)


def test_threads_are_bounded_everywhere(tmp_path: Path) -> None:
    many: Any = {"store": tmp_path / "x", "threads": 10**9}
    for call in (
        lambda: wl.kernel(NET, X, threads=100_000),
        lambda: wl.solvers.solve_tiled(np.eye(20), np.ones(20), 1.0, **many),
        lambda: wl.NTKRegressor(NET, threads=100_000).fit(X, X[:, 0]),
    ):
        with pytest.raises(ValueError, match="threads must be at most 1,024"):
            call()
    assert not (tmp_path / "x").exists()


def test_a_document_of_millions_of_lists(tmp_path: Path) -> None:
    """A megabyte of them would take thirty."""
    (tmp_path / "model.json").write_text('{"a": [' + "{}," * 2**20 + "{}]}")
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1,048,576 lists and objects"):
        wl.load_model(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_a_model_that_could_not_be_loaded_is_not_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wl.load_model(folder)
    size = (folder / "model.json").stat().st_size
    monkeypatch.setattr(saved, "_MAX_DOCUMENT", size)
    wl.load_model(folder)
    with pytest.raises(ValueError, match=r"must take at most .* bytes, got .*: fit it to an array"):
        wl.save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------- images


def saved_image(path: Path, shape: tuple[int, ...] = (6, 5, 3), **options: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    Image.fromarray(pixels).save(path, **options)
    return path


def test_pixels_are_counted_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 30)
    assert read_image(path, tmp_path, ["PNG"]).shape == (6, 5, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 29)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(ValueError, match=r"a\.png \(5 x 6 pixels, at most 29\): mend the file or"):
        read_image(path, tmp_path, ["PNG"])


def test_an_icon_whose_picture_is_larger_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved_image(tmp_path / "a.ico", (64, 64, 3), sizes=[(64, 64)])
    content = bytearray(path.read_bytes())
    assert tuple(content[6:8]) == (64, 64)
    content[6:8] = 8, 8
    path.write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 40)
    with pytest.raises(ValueError, match=r"cannot read a\.ico \(Image size \(4096 pixels\)"):
        read_image(path, tmp_path, ["ICO"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    monkeypatch.setattr(images, "MAX_PIXELS", 4095)
    with pytest.raises(ValueError, match=r"cannot read a\.ico \(64 x 64 pixels, at most 4,095"):
        read_image(path, tmp_path, ["ICO"])


def test_a_large_image_takes_little_beside_itself() -> None:
    image = np.zeros((1500, 1500, 3), np.uint8)
    for shape in ((6, 5, 1), (6, 5, 3)):
        tracemalloc.start()
        fit_image(image, shape)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 4 * 1500**2
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["webp", "gif", "jpg", "xpm", "png"])
def test_the_file_of_an_image_is_bounded(tmp_path: Path, suffix: str) -> None:
    """Some formats are read whole, others searched byte by byte."""
    path = tmp_path / f"a.{suffix}"
    begin = {"webp": b"RIFF\xff\xff\xff\x7fWEBP", "gif": b"GIF89a", "jpg": b"\xff\xd8\xff\xe0"}
    path.write_bytes(begin.get(suffix, b""))
    os.truncate(path, 2**34)
    with pytest.raises(ValueError, match=r"its file has 17,179,869,184 bytes, at most 268,435,456"):
        read_image(path, tmp_path, images.safe_formats())


def test_entries_that_are_all_the_whole_file(tmp_path: Path) -> None:
    """Five thousand tags, each of all bytes: new releases of Pillow refuse them, too."""
    tags = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)]
    size = 10**5
    tags += [(278, 4, 1, 1), (279, 4, 1, 1), *((t, 7, size - 1, 0) for t in range(1000, 6000))]
    content = b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags))
    content += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path = tmp_path / "a.tiff"
    path.write_bytes(content.ljust(size, b"\0"))
    tracemalloc.start()
    with suppress(ValueError):
        read_image(path, tmp_path, ["TIFF"])
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    with path.open("rb") as file:
        metered = io.BufferedReader(images._Metered(file.fileno(), 3 * size))
        for _ in range(3):
            metered.seek(0)
            assert len(metered.read(size)) == size
        metered.seek(0)
        with pytest.raises(ValueError, match="the same bytes again and again"):
            metered.read(size)
    exif = Image.Exif()
    for length, shape in ((60_000, (2, 3, 1)), (100_000, None)):
        exif[0x0112], exif[0x010E] = 6, "a" * length  # turned, and a description
        Image.new("L", (2, 3)).save(tmp_path / "a.png", exif=exif)
        if shape is not None:
            assert read_image(tmp_path / "a.png", tmp_path, ["PNG"]).shape == shape
    with pytest.raises(ValueError, match=r"its EXIF data have 100,\d+ bytes, at most 98,304"):
        read_image(tmp_path / "a.png", tmp_path, ["PNG"])


def test_a_photograph_with_its_preview_is_one(tmp_path: Path) -> None:
    path = saved_image(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[])
    preview = [Image.new("RGB", (5, 6), "red")]
    path = saved_image(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=preview)
    assert read_image(path, tmp_path, ["JPEG", "MPO"]).shape == (6, 5, 3)


# ---------------------------------------------------------------- data sets


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(3):
            saved_image(tmp_path / "pets" / name / f"{index}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", r"passed over 1 not regular files, or links to none \(cat/x\.png\)"),
        ("folder", ""),  # like any other
        ("device", r"passed over 1 not regular files, or links to none \(cat/x\.png\)"),
        ("dangling", r"passed over 1 not regular files, or links to none \(cat/x\.png\)"),
        ("loop", r"passed over 1 not regular files, or links to none \(cat/x\.png\)"),
    ],
)
def test_what_is_named_like_an_image_is_one(pets: Path, kind: str, message: str) -> None:
    path = pets / "cat" / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "loop": "x.png"}[kind])
    with pytest.warns(UserWarning, match=message) if message else nullcontext():
        data = wl.load_dataset(pets)
    assert len(data.x_train) + len(data.x_test) == 6


def test_a_data_set_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    for path in (tmp_path / "a.npz", Path("/dev/zero")):
        with pytest.raises(ValueError, match="must be a regular file, it is a pipe, device"):
            wl.load_dataset(path)


def test_compressed_data_sets_are_bounded_by_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is small, its pixels as bytes are not, and as float64 take eight times as much."""
    monkeypatch.setattr("widelimit.data.dataset._FREELY_UNPACKED", 2**20)
    x, y = np.zeros((2000, 10, 10), np.uint8), np.arange(2000) % 2
    message = r"bytes, but at least [0-9,]+ pixel values, which take 0\.0 GiB: save it without com"
    np.savez_compressed(tmp_path / "x.npz", x=x, y=y)
    with pytest.raises(ValueError, match=message):
        wl.load_dataset(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", x=x, y=y)
    assert len(wl.load_dataset(tmp_path / "x.npz").x_train) == 1600
    folder = tmp_path / "idx"
    folder.mkdir()
    for part in ("train", "t10k"):
        content = struct.pack(">HBB3I", 0, 8, 3, *x.shape) + x.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        content = struct.pack(">HBBI", 0, 8, 1, len(y)) + y.astype("u1").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        wl.load_dataset(folder)
    monkeypatch.undo()
    assert len(wl.load_dataset(folder).x_train) == 2000


def test_labels_of_an_archive_are_kept_to_the_last_digit(tmp_path: Path) -> None:
    x = np.zeros((8, 4, 4))

    def names(y: Any, **more: Any) -> wl.Dataset:
        np.savez(tmp_path / "x.npz", x_train=x, y_train=y, **more)
        return wl.load_dataset(tmp_path / "x.npz")

    large = np.array([2**63 + 1, 2**63 + 2, 2**64 - 1, 4] * 2, np.uint64)
    expected = ("4", "9223372036854775809", "9223372036854775810", "18446744073709551615")
    assert names(large).class_names == expected
    made = names(large, x_test=x, y_test=np.array([4] * 8))
    assert (made.class_names, made.y_test.tolist()) == (expected, [0] * 8)
    assert names(large, x_test=x, y_test=large[::-1]).y_test.tolist() == [0, 3, 2, 1] * 2
    with pytest.raises(ValueError, match=r"got also \[18446744073709551615\]"):
        names([-1, 1] * 4, x_test=x, y_test=np.array([2**64 - 1] * 8, np.uint64))
    assert names(np.array([b"\xff", b"\xfe"] * 4)).class_names == ("\udcfe", "\udcff")
    with pytest.raises(ValueError, match="labels must have at most 256 characters"):
        names(["a" * 300, "a" * 300 + "b"] * 4)


# ---------------------------------------------------------------- compiled kernels


def test_a_cache_that_is_a_pipe_is_compiled_again(tmp_path: Path) -> None:
    name = hashlib.sha256(b"code").hexdigest()
    (tmp_path / f"{name}.bin").write_bytes(b"code")
    (tmp_path / f"{name}.sum").write_text(name)
    assert code_cache._whole(tmp_path / f"{name}.bin")
    (tmp_path / f"{name}.sum").unlink()
    with suppress(FileExistsError):
        os.mkfifo(tmp_path / f"{name}.sum")
    assert not code_cache._whole(tmp_path / f"{name}.bin")
