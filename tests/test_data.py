"""Loaders of data sets: what they read, what they refuse, and that strange files do no harm."""

import gzip
import io
import os
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import widelimit as wl
from widelimit.data import Dataset, load_dataset, split_by_class, standardise, to_unit_interval
from widelimit.data.dataset import MAX_VALUES
from widelimit.data.idx import FASHION_CLASSES, read_idx

CIFAR10 = Path(os.environ.get("WIDELIMIT_CIFAR10", ""))

RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def dataset(**changes: Any) -> Dataset:
    x = np.full((4, 2, 3, 1), 0.5)
    y = np.array([0, 1, 0, 1])
    fields = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "class_names": ("a", "b")}
    return Dataset(name="toy", provenance="made here", **(fields | changes))


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# --- Dataset and preprocessing ---


def test_dataset_is_checked_and_read_only() -> None:
    data = dataset()
    assert data.image_shape == (2, 3, 1)
    assert data.n_classes == 2
    assert repr(data) == "Dataset('toy', 4 + 4 images of 2 x 3 x 1, 2 classes)"
    with pytest.raises(ValueError, match="read-only"):
        data.x_train[0] = 0.0
    with pytest.raises(AttributeError):
        data.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"x_train": np.zeros((4, 2, 3))}, ValueError, r"\(n, h, w, c\).*got \(4, 2, 3\)"),
        ({"x_test": np.zeros((0, 2, 3, 1))}, ValueError, "none of them 0"),
        ({"x_train": np.full((4, 2, 3, 1), 1.5)}, ValueError, r"in \[0, 1\], got 1.5"),
        ({"x_train": np.full((4, 2, 3, 1), np.nan)}, ValueError, r"in \[0, 1\], got nan"),
        ({"x_train": np.zeros((4, 2, 3, 1), np.float32)}, TypeError, "ndarray of float32"),
        ({"x_train": [[1.0]]}, TypeError, "got list"),
        ({"x_test": np.zeros((4, 3, 2, 1))}, ValueError, r"\(2, 3, 1\) and \(3, 2, 1\)"),
        ({"y_train": np.array([0, 1])}, ValueError, "each of 4 images"),
        ({"y_train": np.array([0.0, 1, 0, 1])}, TypeError, "int64"),
        ({"y_test": np.array([0, 1, 0, 2])}, ValueError, "from 0 to 1"),
        ({"y_test": np.array([0, 1, 0, -1])}, ValueError, "from 0 to 1"),
        ({"class_names": ()}, ValueError, "1 or more distinct"),
        ({"class_names": ("a", "a")}, ValueError, "distinct"),
        ({"split": "other"}, ValueError, "given"),
    ],
)
def test_dataset_refuses(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        dataset(**changes)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        (np.array([0, 13107, 65535], np.uint16), [0, 0.2, 1]),
        (np.array([0, 13107, 65535], ">u2"), [0, 0.2, 1]),
        (np.array([0, 51, 255]), [0, 0.2, 1]),
        (np.array([0, 51, 127], np.int8), [0, 0.2, 127 / 255]),
        (np.array([False, True]), [0, 1]),
        (np.array([0, 0.25, 1], np.float16), [0, 0.25, 1]),
        (np.array([0, 0.25, 1]), [0, 0.25, 1]),
        (np.zeros((0, 3)), np.zeros((0, 3))),
    ],
)
def test_to_unit_interval(x: np.ndarray, expected: Any) -> None:
    result = to_unit_interval(x)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([0.0, 255.0], ValueError, "from 0 to 1, got 0 to 255: divide by"),
        ([-0.1, 0.5], ValueError, "got -0.1 to 0.5"),
        ([0, 256], ValueError, "from 0 to 255, got 0 to 256: save as uint8"),
        ([-1, 5], ValueError, "got -1 to 5"),
        ([[0.5, np.nan]], ValueError, r"must be finite, got nan at \[0, 1\]"),
        ([0.5, np.inf], ValueError, r"finite, got inf at \[1\]"),
        (["a"], TypeError, "must hold numbers"),
        ([1j], TypeError, "must hold numbers"),
    ],
)
def test_to_unit_interval_refuses(x: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        to_unit_interval(x)


def test_standardise_uses_training_images_per_channel() -> None:
    x = RNG.random((30, 4, 5, 3)) * [1.0, 10.0, 0.0] + [0.0, 5.0, 0.1]
    other = RNG.random((2, 4, 5, 3))
    train, test = standardise(x, other)
    np.testing.assert_allclose(train.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(train.std(axis=(0, 1, 2)), [1, 1, 0], atol=1e-12)
    mean, std = x[..., :2].mean(axis=(0, 1, 2)), x[..., :2].std(axis=(0, 1, 2))
    np.testing.assert_allclose(test[..., :2], (other[..., :2] - mean) / std, rtol=1e-12)
    with pytest.raises(ValueError, match=r"same c, got shapes \(30, 4, 5, 3\), \(2, 4, 5, 1\)"):
        standardise(x, other[..., :1])


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=2, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_split_by_class(counts: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train, test = split_by_class(labels, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(labels.size))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    taken = np.bincount(labels[train], minlength=len(counts))
    np.testing.assert_array_equal(taken, [max(1, count * 4 // 5) for count in counts])
    again, _ = split_by_class(labels, seed=seed)
    np.testing.assert_array_equal(train, again)
    fixed, _ = split_by_class(labels, train_per_class=1, seed=seed)
    np.testing.assert_array_equal(np.sort(labels[fixed]), np.arange(len(counts)))


def test_split_by_class_refuses_classes_without_a_test_image() -> None:
    with pytest.raises(ValueError, match=r"class 1 must have at least 2 images.*got 1"):
        split_by_class([0, 0, 1])
    with pytest.raises(ValueError, match=r"class 'emu' must have at least 2 images.*got 1"):
        load_dataset((IMAGES[:5], ["cat", "cat", "dog", "dog", "emu"]))


# --- names and paths ---


def test_digits() -> None:
    data = load_dataset("digits")
    assert data.image_shape == (8, 8, 1)
    assert data.split == "drawn"
    np.testing.assert_array_equal(np.bincount(data.y_train), 128)
    assert len(data.y_test) == 517
    assert data.x_train.max() == 1.0
    np.testing.assert_array_equal(data.x_train * 16, np.round(data.x_train * 16))
    assert len({x.tobytes() for x in (*data.x_train, *data.x_test)}) == 1797
    np.testing.assert_array_equal(load_dataset("digits").x_test, data.x_test)
    assert not np.array_equal(load_dataset("digits", seed=1).x_test, data.x_test)
    assert wl.load_dataset is load_dataset


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("digts", "did you mean digits\\?"),
        ("Digits", "did you mean digits\\?"),
        ("fashion_mnist", "did you mean fashion-mnist\\?"),
        ("cifar-10", "did you mean cifar10\\?"),
        ("{}/photoes", "did you mean .*photos\\?"),
        ("{}/nothing-alike", "give digits, fashion-mnist, cifar10, cifar100, a folder"),
        ("{}/a/b/c.npz", "is there, but has no a/b/c.npz"),
    ],
)
def test_missing_paths_are_explained(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileNotFoundError, match=match):
        load_dataset(name.format(tmp_path))


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_data_sets_that_are_not_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDELIMIT_DATA", str(tmp_path))
    monkeypatch.setattr("widelimit.data.load.SYSTEM_FOLDER", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=f"{name} is not on this machine.*(install|downl)"):
        load_dataset(name)


def test_files_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "x.foo"
    path.write_text("1,2")
    with pytest.raises(ValueError, match=r"folder, or a file of type .* type \.foo .*31 2c 32"):
        load_dataset(path)


# --- .npz ---


@pytest.mark.parametrize(
    ("images", "labels"), [("x_train", "y_train"), ("X", "Y"), ("images", "LABELS")]
)
def test_npz_without_test_set(tmp_path: Path, images: str, labels: str) -> None:
    data = load_dataset(save(tmp_path / "toy.npz", **{images: IMAGES, labels: LABELS}))
    assert data.split == "drawn"
    assert data.name == "toy"
    assert data.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(np.bincount(data.y_train), [3, 3, 3])
    both = np.concatenate([data.x_train, data.x_test])
    order = np.lexsort(both.reshape(12, -1).T)
    expected = IMAGES[np.lexsort(IMAGES.reshape(12, -1).T)] / 255
    np.testing.assert_array_equal(both[order], expected)


def test_npz_with_test_set_names_and_column_labels(tmp_path: Path) -> None:
    words = np.array(["cat", "dog", "emu"])[LABELS]
    path = save(
        tmp_path / "a.NPZ.npz",
        X_train=np.asfortranarray(IMAGES[..., 0]),
        y_train=words[:, None],
        X_test=IMAGES[:2, ..., 0],
        y_test=words[:2],
    )
    data = load_dataset(path, image_shape=(5, 4, 1))  # and no series
    assert data.split == "given"
    assert data.class_names == ("cat", "dog", "emu")
    assert data.image_shape == (5, 4, 1)
    np.testing.assert_array_equal(data.y_train, LABELS)
    np.testing.assert_array_equal(data.x_train[..., 0], IMAGES[..., 0] / 255)
    np.testing.assert_array_equal(data.y_test, LABELS[:2])


def test_npz_compressed_bytes_and_whole_floats(tmp_path: Path) -> None:
    path = tmp_path / "z.npz"
    np.savez_compressed(path, x=IMAGES / 255.0, y=np.array([b"b", b"a", b"\xff"])[LABELS])
    assert load_dataset(path).class_names == ("a", "b", "\udcff")
    assert load_dataset(save(path, x=IMAGES, y=LABELS + 0.0)).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": IMAGES}, r"must hold y_train .*got x uint8 \(12, 5, 4, 3\): save as"),
        ({"foo": IMAGES, "bar": LABELS}, "must hold x_train .*got bar int64 .*, foo uint8"),
        ({}, "got no arrays"),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES}, "must hold y_test"),
        ({"x": IMAGES[:, 0, 0, 0], "y": LABELS}, r"rows, none of them 0, got \(12,\)"),
        ({"x": IMAGES.transpose(0, 3, 1, 2)[..., [0] * 5], "y": LABELS}, r"channels first\), or"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, r"got \(0, 5, 4, 3\)"),
        ({"x": IMAGES, "y": LABELS[:5]}, r"must have shape \(12,\).*got \(5,\)"),
        ({"x": IMAGES, "y": np.ones((12, 3))}, "argmax"),
        ({"x": IMAGES, "y": LABELS + 0.5}, "whole numbers or text, got 0.5"),
        ({"x": IMAGES, "y": LABELS + np.nan}, "whole numbers or text, got nan"),
        ({"x": IMAGES * 1.5, "y": LABELS}, "divide by"),
        ({"x": IMAGES * np.nan, "y": LABELS}, "must be finite"),
        ({"x": IMAGES, "y": LABELS * 0}, "at least 2 distinct"),
        ({"x": IMAGES[:4], "y": np.array([0, 0, 0, 1])}, "at least 2 images"),
        (
            {"x": IMAGES, "y": LABELS, "x_test": IMAGES, "y_test": LABELS + 1},
            r"among the 3 training labels, got also \[3\]",
        ),
        (
            {"x": IMAGES, "y": LABELS, "x_test": IMAGES, "y_test": LABELS.astype(str)},
            "of one kind",
        ),
        ({"x": IMAGES.astype("datetime64[s]"), "y": LABELS}, "numbers or text, got dtype"),
        ({"x": IMAGES, "y": LABELS.astype([("a", "i4")])}, "numbers or text, got dtype"),
    ],
)
def test_npz_refuses(tmp_path: Path, arrays: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=re.compile(match, re.DOTALL)):
        load_dataset(save(tmp_path / "bad.npz", **arrays))


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_npz_never_unpickles(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    array = np.array([Trap(sprung)], dtype=object)
    path = save(tmp_path / "pickle.npz", x_train=array, y_train=LABELS)
    with pytest.raises(ValueError, match="a pickle, which is never read"):
        load_dataset(path)
    assert not sprung.exists()
    np.load(path, allow_pickle=True)["x_train"]  # the trap works
    assert sprung.exists()


def npy(shape: object, content: bytes, descr: str = "|u1") -> bytes:
    """An array file with any header."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def write_zip(path: Path, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        npy((10**6, 10**6, 10**6), b"few"),
        npy((-1, -3), b"few"),
        npy((3, 2**62, 4), b""),
        npy((2, 1, 1), b"too many"),
        npy((2, 1, 1), b"1"),
        npy((0, 2**62), b""),
        npy("text", b""),
        npy((1,), b"12345678", "|O"),
        npy((1,), b"12345678", "nonsense"),
        b"\x93NUMPY\x09\x00" + b"\0" * 100,
        b"\x93NUMPY\x02\x00" + b"\xff" * 100,
        b"not an array",
        b"",
    ],
)
def test_npz_headers_are_not_believed(tmp_path: Path, content: bytes) -> None:
    labels = npy((1,), b"\0")
    path = write_zip(tmp_path / "lies.npz", x_train=content, y_train=labels)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"lies\.npz"):
            load_dataset(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_npz_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    """A member that says in the directory of the archive that it unpacks to 4 GB."""
    content = npy((1,), b"\0")
    path = write_zip(tmp_path / "bomb.npz", x_train=content, y_train=content)
    size = struct.pack("<I", len(content))
    path.write_bytes(path.read_bytes().replace(size + b"\x0b\0", b"\xf0\xff\xff\xff\x0b\0"))
    assert zipfile.ZipFile(path).infolist()[0].file_size == 0xFFFFFFF0
    with pytest.raises(ValueError, match="must hold 1 bytes, got 4,294,967,152: save it"):
        load_dataset(path)


def test_npz_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    """The directory says a few bytes, the compressed stream holds 200 MB: no more are unpacked."""
    honest = npy((200_000_000,), b"")
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = body.compress(honest) + body.compress(bytes(200_000_000)) + body.flush()
    small = npy((1, 2, 2), b"\0\0\0\0")
    path = write_zip(
        tmp_path / "bomb.npz", zipfile.ZIP_DEFLATED, x_train=small, y_train=npy((1,), b"\0")
    )
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("x_train.npy")
        start, old = info.header_offset + 30 + len(info.filename), info.compress_size
    raw = path.read_bytes()
    raw = raw[:start] + stream + raw[start + old :]
    # The sizes of the first member, in its own header and in the directory, and all offsets.
    raw = raw.replace(struct.pack("<II", old, len(small)), struct.pack("<II", len(stream), 132))
    grown = len(stream) - old
    at = raw.rindex(b"PK\x05\x06") + 16
    (offset,) = struct.unpack_from("<I", raw, at)
    raw = raw[:at] + struct.pack("<I", offset + grown) + raw[at + 4 :]
    second = raw.rindex(b"PK\x01\x02") + 42
    (offset,) = struct.unpack_from("<I", raw, second)
    raw = raw[:second] + struct.pack("<I", offset + grown) + raw[second + 4 :]
    path.write_bytes(raw)
    assert zipfile.ZipFile(path).getinfo("x_train.npy").file_size == 132
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.npz"):
            load_dataset(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_npz_that_is_damaged(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x_train=IMAGES, y_train=LABELS)
    good = path.read_bytes()
    at = good.index(IMAGES.tobytes()[:8])
    damaged = {
        "cut": good[: len(good) // 2],
        "empty": b"",
        "flipped": good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :],
        "encrypted": good.replace(
            b"PK\x01\x02\x2d\x03\x2d\0\0\0", b"PK\x01\x02\x2d\x03\x2d\0\x01\0"
        ),
        "method": good.replace(
            b"PK\x01\x02\x2d\x03\x2d\0\0\0\0\0", b"PK\x01\x02\x2d\x03\x2d\0\0\0\x63\0"
        ),
    }
    for what, content in damaged.items():
        assert content != good, what
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"d\.npz.* must be .*: save it"):
            load_dataset(path)


@settings(deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_npz_damage_gives_data_or_an_error_that_names_the_file(
    changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x_train=IMAGES, y_train=LABELS)
    raw = bytearray(buffer.getvalue())
    for place, value in changes:
        raw[place % len(raw)] = value
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.npz"
    path.write_bytes(raw)
    message = "fuzz.npz"
    try:
        load_dataset(path)
    except ValueError as error:
        message = str(error)
    assert "fuzz.npz" in message


@pytest.mark.skipif(not CIFAR10.is_file(), reason="WIDELIMIT_CIFAR10 names no images")
def test_npz_of_cifar10() -> None:
    data = load_dataset(CIFAR10)
    assert data.split == "given"
    assert data.x_train.shape == (2000, 32, 32, 3)
    assert data.x_test.shape == (1000, 32, 32, 3)
    with np.load(CIFAR10) as arrays:
        np.testing.assert_array_equal(data.x_test, arrays["X_test"] / 255)
        np.testing.assert_array_equal(data.y_test, arrays["y_test"])


# --- IDX ---


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, *, end: str = ".gz", **changes: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    grey, labels = IMAGES[..., 0], LABELS.astype(np.uint8)
    files = {
        "train-images-idx3": idx(np.ascontiguousarray(grey)),
        "train-labels-idx1": idx(labels),
        "t10k-images-idx3": idx(np.ascontiguousarray(grey[:3])),
        "t10k-labels-idx1": idx(labels[:3]),
    }
    for name, content in files.items():
        content = changes.get(name.split("-idx")[0].replace("-", "_"), content)
        packed = gzip.compress(content) if end else content
        (folder / f"{name}-ubyte{end}").write_bytes(packed)
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_folder(tmp_path: Path, end: str) -> None:
    data = load_dataset(write_idx(tmp_path / "mnist", end=end))
    assert data.name == "mnist"
    assert data.split == "given"
    assert data.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(data.x_train, IMAGES[..., :1] / 255)
    np.testing.assert_array_equal(data.x_test, IMAGES[:3, ..., :1] / 255)
    np.testing.assert_array_equal(data.y_train, LABELS)


def test_fashion_mnist_is_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "fashion-mnist")
    monkeypatch.setenv("WIDELIMIT_DATA", str(tmp_path))
    assert load_dataset("fashion-mnist").class_names == FASHION_CLASSES


def test_idx_folder_that_is_incomplete(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="four IDX files, got no t10k-labels"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "got an empty file"),
        (b"\x89PNG", "got 89 50 4e 47"),
        (struct.pack(">HBBI", 0, 13, 1, 5), "bytes, beginning 00 00 08 01"),
        (struct.pack(">HBB2I", 0, 8, 2, 5, 5), "beginning"),
        (struct.pack(">HBBI", 0, 8, 3, 5), "ends inside its header"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31), f"1 to {MAX_VALUES:,} bytes"),
        (struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), "1 to"),
        (struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + b"1234567", "got 7: it was cut off"),
        (struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + b"123456789", "holds more than the 8 bytes"),
        (idx(np.ascontiguousarray(IMAGES[:5, ..., 0])), r"got shapes \(5, 5, 4\) and \(12,\)"),
        (idx(LABELS.astype(np.uint8)), r"got shapes \(12,\) and \(12,\)"),
    ],
)
def test_idx_refuses(tmp_path: Path, content: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_dataset(write_idx(tmp_path / "mnist", train_images=content))


def test_gzip_files_from_strangers(tmp_path: Path) -> None:
    path = tmp_path / "a-idx3-ubyte.gz"
    whole = gzip.compress(idx(np.ascontiguousarray(IMAGES[..., 0])))
    for content in (whole[:-12], whole[:40], b"no gzip at all", whole[:-4] + b"\0\0\0\1"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"idx3-ubyte\.gz is damaged"):
            read_idx(path)
    # 300 MB of zeros behind a header that says 8 bytes.
    path.write_bytes(
        gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + bytes(300_000_000), compresslevel=9)
    )
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="holds more"):
            read_idx(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


# --- CIFAR-10 ---


def write_cifar(folder: Path, records: int = 2) -> Path:
    folder.mkdir()
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        image = np.zeros((records, 3, 32, 32), np.uint8)
        image[:, 0, 0, 1] = 255  # red, first row, second column
        labels = np.full((records, 1), index, np.uint8)
        content = np.concatenate([labels, image.reshape(records, -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(content.tobytes())
    return folder


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-bin")
    monkeypatch.setenv("WIDELIMIT_DATA", str(tmp_path))
    data = load_dataset("cifar10")
    assert data.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(data.y_train, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert data.x_train.sum() == 10
    assert data.x_test[1, 0, 1, 0] == 1.0
    assert data.class_names[data.y_test[0]] == "dog"


def test_cifar10_refuses(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "c")
    batch = folder / "data_batch_3.bin"
    good = batch.read_bytes()
    batch.write_bytes(good[:-1])
    with pytest.raises(ValueError, match="records of 3,073 bytes, got 6,145 bytes"):
        load_dataset(folder)
    with batch.open("wb") as file:
        file.truncate(3073 * 10_001)
    with pytest.raises(ValueError, match="1 to 10,000 records"):
        load_dataset(folder)
    batch.write_bytes(b"\x0a" + good[1:])
    with pytest.raises(ValueError, match="labels from 0 to 9, got 10 in record 0"):
        load_dataset(folder)
    batch.unlink()
    with pytest.raises(FileNotFoundError, match=r"got no data_batch_3.bin: unpack"):
        load_dataset(folder)


# --- folders of images ---


def write_folder(folder: Path, mode: str = "RGB", count: int = 5, suffix: str = "png") -> Path:
    for k, name in enumerate(["cat", "<b>dog</b>".replace("/", "-")]):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((4, 6, 3), 40 * k + i, np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.{suffix}")
    return folder


def test_image_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets")
    (folder / ".hidden").mkdir()
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / "cat" / ".DS_Store").write_bytes(b"\0")
    with pytest.warns(UserWarning, match="passed over 2 hidden .*1 of no format"):
        data = load_dataset(folder)
    assert data.class_names == ("<b>dog<-b>", "cat")
    assert data.image_shape == (4, 6, 3)
    assert data.split == "drawn"
    assert (len(data.y_train), len(data.y_test)) == (8, 2)
    values = {round(255 * x.mean()) for x in (*data.x_train, *data.x_test)}
    assert values == {0, 1, 2, 3, 4, 40, 41, 42, 43, 44}


def test_image_folder_with_test_set(tmp_path: Path) -> None:
    write_folder(tmp_path / "d" / "train", count=3)
    write_folder(tmp_path / "d" / "test", count=1)
    data = load_dataset(tmp_path / "d")
    assert data.split == "given"
    assert (len(data.y_train), len(data.y_test)) == (6, 2)
    (tmp_path / "d" / "test" / "emu").mkdir()
    Image.new("L", (6, 4)).save(tmp_path / "d" / "test" / "emu" / "1.png")
    with pytest.raises(ValueError, match="the same classes, only one of them has emu"):
        load_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("L", "png", 1),
        ("1", "png", 1),
        ("P", "png", 3),
        ("P", "gif", 3),
        ("RGBA", "png", 3),
        ("LA", "png", 3),
        ("RGB", "bmp", 3),
        ("RGB", "jpg", 3),
        ("RGB", "webp", 3),
        ("CMYK", "jpeg", 3),
        ("L", "pgm", 1),
        ("I;16", "png", 1),
        ("RGB", "TIFF", 3),
    ],
)
def test_image_modes(tmp_path: Path, mode: str, suffix: str, channels: int) -> None:
    folder = write_folder(tmp_path / "m", mode="L" if mode == "I;16" else mode, suffix=suffix)
    if mode == "I;16":
        for path in folder.rglob("*.png"):
            Image.fromarray(np.full((4, 6), 13107, np.uint16)).save(path)
    data = load_dataset(folder)
    assert data.image_shape == (4, 6, channels)
    if mode == "I;16":
        np.testing.assert_allclose(data.x_train, 0.2, rtol=1e-14)


def test_grey_images_among_coloured_ones(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    Image.new("L", (6, 4), 255).save(folder / "cat" / "0.png")
    data = load_dataset(folder)
    whites = [x for x in (*data.x_train, *data.x_test) if (x == 1).all()]
    assert data.image_shape == (4, 6, 3)
    assert len(whites) == 1


def test_images_are_turned_as_the_camera_says(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", suffix="jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (4, 6)).save(folder / "cat" / "0.jpg", exif=exif)
    assert load_dataset(folder).image_shape == (4, 6, 3)


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that announce a huge image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n")


def larger(path: Path) -> None:
    Image.new("RGB", (7, 4)).save(path)


def floating(path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.float32)).save(path, format="TIFF")


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (truncated, "cannot be read: cat/3.png"),
        (postscript, "cannot be read: cat/3.png"),
        (lambda path: path.write_text("hello"), "cannot be read: cat/3.png"),
        (lambda path: path.write_bytes(b""), "cannot be read: cat/3.png"),
        (lambda path: path.write_bytes(png_of_size(30_000, 30_000)), "cannot be read: cat/3.png"),
        (lambda path: path.write_bytes(png_of_size(6, 2**31 - 1)), "cannot be read: cat/3.png"),
        (larger, r"4x6 \(9: .*, \.\.\.\), 4x7 \(1: cat/3.png\) .*size=\(4, 6\) \(--size 4x6\)"),
        (floating, "got floats in cat/3.png"),
    ],
)
def test_image_that_differs_is_named(
    tmp_path: Path, harm: Callable[[Path], Any], match: str
) -> None:
    folder = write_folder(tmp_path / "pets")
    harm(folder / "cat" / "3.png")
    with pytest.raises(ValueError, match=match):
        load_dataset(folder)


def test_size_of_an_image_is_checked_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "pets")
    (folder / "cat" / "0.png").write_bytes(png_of_size(9_460, 9_460))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # an application may have lifted it
    with pytest.raises(ValueError, match=r"0\.png \(9460 x 9460 pixels, at most 67,108,864\)"):
        load_dataset(folder)


def test_image_folder_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    with pytest.raises(ValueError, match="2 to 10,000 subfolders, one per class, got 0:"):
        load_dataset(folder)
    Image.new("L", (3, 3)).save(folder / "1.png")
    with pytest.raises(ValueError, match="got 0 and 1 images beside them"):
        load_dataset(folder)
    (folder / "1.png").unlink()
    (folder / "cat").mkdir()
    with pytest.raises(ValueError, match=r"got 1 \(cat\): move"):
        load_dataset(folder)
    (folder / "cat").rmdir()
    write_folder(folder, count=1)
    with pytest.raises(ValueError, match="pets: class '<b>dog<-b>' must have at least 2 images"):
        load_dataset(folder)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="got none in empty"):
        load_dataset(folder)


def test_image_folder_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "pets")
    monkeypatch.setattr("widelimit.data.dataset.MAX_VALUES", 700)
    with pytest.raises(ValueError, match=r"at most 700 pixel values .*10 x 4 x 6 x 3 = 720: use"):
        load_dataset(folder)
