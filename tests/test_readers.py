"""Files of data sets in the forms in which they are published, and what is refused of them."""

import contextlib
import gzip
import io
import os
import pickle
import struct
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

import widelimit as wl
from widelimit.data import Dataset, load_dataset
from widelimit.data.load import read_dataset
from widelimit.data.pickles import unpickle

RNG = np.random.default_rng(11)
GREY = RNG.integers(0, 256, (12, 10, 10), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
FEATURES = np.round(RNG.normal(size=(12, 3)), 3)


@contextlib.contextmanager
def suppress_naming(text: str) -> Iterator[None]:
    """Let a block raise a ValueError that says something, and nothing else."""
    try:
        yield
    except ValueError as error:
        if text not in str(error):
            raise AssertionError(f"it does not say {text!r}") from error


# --- .npz ---


def test_npz_of_medmnist(tmp_path: Path) -> None:
    path = tmp_path / "pathmnist.npz"
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    arrays = {f"{part}_images": COLOUR[where] for part, where in parts.items()}
    arrays |= {f"{part}_labels": LABELS[where, None] for part, where in parts.items()}
    np.savez(path, **arrays)
    with pytest.warns(UserWarning, match=r"passed over 3 samples for validation.*pathmnist:val"):
        data = load_dataset(path)
    np.testing.assert_array_equal(data.x_train, COLOUR[:6] / 255)
    np.testing.assert_array_equal(data.x_test, COLOUR[9:] / 255)
    np.testing.assert_array_equal(data.y_test, LABELS[9:])
    validation = read_dataset(f"{path}:val")
    np.testing.assert_array_equal(validation.x_train, COLOUR[6:9] / 255)
    assert validation.split == "none"
    np.savez(path, **{name: array for name, array in arrays.items() if "test" not in name})
    np.testing.assert_array_equal(load_dataset(path).x_test, COLOUR[6:9] / 255)


@pytest.mark.parametrize(
    "names", [("data", "target"), ("trainX", "trainY"), ("X_train", "y_train")]
)
def test_names_of_arrays(tmp_path: Path, names: tuple[str, str]) -> None:
    np.savez(tmp_path / "a.npz", **dict(zip(names, (GREY, LABELS), strict=True)))
    np.testing.assert_array_equal(read_dataset(tmp_path / "a.npz").x_train[..., 0], GREY / 255)


def test_names_that_say_their_part_come_first(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", x=GREY[::-1], y=LABELS[::-1], train_images=GREY, train_labels=LABELS
    )
    data = read_dataset(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.x_train[..., 0], GREY / 255)
    np.testing.assert_array_equal(data.y_train, LABELS)


def test_labels_that_mark_a_class_are_read(tmp_path: Path) -> None:
    for marks in (np.eye(3)[LABELS], np.eye(3, dtype=np.uint8)[LABELS], np.eye(3)[LABELS] - 0.1):
        np.savez(tmp_path / "a.npz", x=GREY, y=marks)
        np.testing.assert_array_equal(read_dataset(tmp_path / "a.npz").y_train, LABELS)
    np.savez(tmp_path / "a.npz", x=GREY, y=np.maximum(np.eye(3)[LABELS], np.eye(3)[0]))
    with pytest.raises(ValueError, match="must mark one class in each row"):
        read_dataset(tmp_path / "a.npz")


def test_normalised_images_are_taken_as_they_are(tmp_path: Path) -> None:
    white = (COLOUR - 120.0) / 60.0
    np.savez(tmp_path / "w.npz", x_train=white, y_train=LABELS, x_test=white, y_test=LABELS)
    data = load_dataset(tmp_path / "w.npz")
    np.testing.assert_array_equal(data.x_train, white)
    assert data.normalised
    assert "data:image/png" in data._repr_html_()
    small = load_dataset(tmp_path / "w.npz", size=(8, 8))
    assert small.x_train.shape == (12, 8, 8, 3)
    assert white.min() <= small.x_train.min() < 0
    np.savez(tmp_path / "w.npz", x_train=white, y_train=LABELS, x_test=COLOUR, y_test=LABELS)
    with pytest.raises(ValueError, match="normalised alike"):
        load_dataset(tmp_path / "w.npz")


def test_floats_of_bytes_are_pixels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=GREY.astype(np.float32), y=LABELS)
    np.testing.assert_array_equal(read_dataset(tmp_path / "a.npz").x_train[..., 0], GREY / 255)


def test_volumes_are_no_images(tmp_path: Path) -> None:
    volumes = np.zeros((12, 8, 8, 8), np.uint8)
    np.savez(tmp_path / "v.npz", train_images=volumes, train_labels=LABELS)
    with pytest.raises(ValueError, match="look like volumes"):
        read_dataset(tmp_path / "v.npz")
    assert read_dataset(tmp_path / "v.npz", channels="last").image_shape == (8, 8, 8)


def test_rows_of_npz_stay_rows_or_become_images(tmp_path: Path) -> None:
    rows = COLOUR.transpose(0, 3, 1, 2).reshape(12, -1)
    np.savez(tmp_path / "rows.npz", data=rows, labels=LABELS)
    data = read_dataset(tmp_path / "rows.npz")
    assert data.is_rows
    np.testing.assert_array_equal(data.x_train, rows)
    assert repr(data) == "Dataset('rows', 12 + 0 rows of 3,072 values, 3 classes)"
    with pytest.raises(ValueError, match=r"this is for images.*image_shape"):
        _ = data.image_shape
    assert "training images" not in data._repr_html_()
    images = read_dataset(tmp_path / "rows.npz", image_shape=(32, 32, 3), channels="first")
    np.testing.assert_array_equal(images.x_train, COLOUR / 255)
    with pytest.raises(ValueError, match="rows of 3,072 values, and channels is for images"):
        read_dataset(tmp_path / "rows.npz", channels="first")
    with pytest.raises(ValueError, match="are read in two ways"):
        read_dataset(tmp_path / "rows.npz", image_shape=(32, 32, 3))
    with pytest.raises(ValueError, match=r"rows of 5 x 5 x 1 = 25 values .* got 3072"):
        read_dataset(tmp_path / "rows.npz", image_shape=(5, 5, 1))


def test_a_folder_of_npy_files(tmp_path: Path) -> None:
    for name, array in {
        "X_train": GREY,
        "y_train": LABELS,
        "X_test": GREY,
        "y_test": LABELS,
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    data = load_dataset(tmp_path)
    assert data.split == "given"
    np.testing.assert_array_equal(data.x_train[..., 0], GREY / 255)
    with pytest.raises(ValueError, match="got one array: it has no labels"):
        load_dataset(tmp_path / "X_train.npy")


# --- tables ---


def write_table(path: Path, frame: pd.DataFrame, **options: Any) -> Path:
    frame.to_csv(path, **({"index": False} | options))
    return path


def iris(label: str = "species") -> pd.DataFrame:
    frame = pd.DataFrame(FEATURES, columns=["sepal length", "petal length", "width"])
    frame[label] = np.array(["setosa", "versicolor", "virginica"])[LABELS]
    return frame


@pytest.mark.parametrize("label", ["species", "Label", "class", "kind of flower"])
def test_table_of_features(tmp_path: Path, label: str) -> None:
    data = read_dataset(write_table(tmp_path / "iris.csv", iris(label)))
    assert data.name == "iris"
    assert data.feature_names == ("sepal length", "petal length", "width")
    assert data.label_name == label
    assert data.class_names == ("setosa", "versicolor", "virginica")
    np.testing.assert_array_equal(data.x_train, FEATURES)
    np.testing.assert_array_equal(data.y_train, LABELS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("t.csv.gz", {}),
        ("t.tsv", {"sep": "\t"}),
        ("t.csv", {"sep": ";"}),
        ("t.csv", {"sep": ";", "decimal": ","}),
        ("t.csv", {"encoding": "utf-8-sig"}),
        ("t.csv", {"encoding": "utf-16"}),
        ("t.csv", {"lineterminator": "\r\n"}),
        ("T.CSV", {"quoting": 1}),
    ],
)
def test_tables_as_programs_write_them(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    data = read_dataset(write_table(tmp_path / name, iris("größe"), **options))
    np.testing.assert_array_equal(data.x_train, FEATURES)
    assert data.label_name == "größe"


def test_table_without_names_of_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path / "iris.data", iris(), header=False)
    data = read_dataset(path)
    np.testing.assert_array_equal(data.x_train, FEATURES)
    assert data.feature_names is data.label_name is None
    # 0, 1, 2, ... are names, as pandas gives them
    frame = pd.DataFrame(FEATURES)
    frame["label"] = LABELS
    data = read_dataset(write_table(path.with_suffix(".csv"), frame))
    assert data.feature_names == ("0", "1", "2")
    np.testing.assert_array_equal(data.x_train, FEATURES)


@pytest.mark.parametrize("names", ["pixel{}", "pixel{:04}", None])
def test_table_of_pixels(tmp_path: Path, names: str | None) -> None:
    rows = GREY.reshape(12, -1)
    frame = pd.DataFrame(rows, columns=[(names or "{}").format(k) for k in range(100)])
    frame.insert(0, "label", LABELS)
    data = read_dataset(write_table(tmp_path / "mnist.csv", frame, header=names is not None))
    assert data.image_shape == (10, 10, 1)
    np.testing.assert_array_equal(data.x_train[..., 0], GREY / 255)
    np.testing.assert_array_equal(data.y_train, LABELS)


def test_table_of_pixels_called_by_place(tmp_path: Path) -> None:
    columns = [f"{i}x{j}" for i in range(1, 11) for j in range(1, 11)]
    frame = pd.DataFrame(GREY.reshape(12, -1), columns=columns)
    frame["label"] = LABELS
    assert read_dataset(write_table(tmp_path / "m.csv", frame)).image_shape == (10, 10, 1)


def test_table_of_colours_is_never_guessed(tmp_path: Path) -> None:
    small = COLOUR[:, :8, :8]
    frame = pd.DataFrame(small.reshape(12, -1), columns=[f"pixel{k:04}" for k in range(192)])
    frame["label"] = LABELS
    path = write_table(tmp_path / "hmnist_8_8_RGB.csv", frame)
    with pytest.warns(UserWarning, match="--image-shape 8x8x3 with --channels"):
        assert read_dataset(path).is_rows
    data = read_dataset(path, image_shape=(8, 8, 3), channels="last")
    np.testing.assert_array_equal(data.x_train, small / 255)


def test_table_of_pixels_as_text_with_parts(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "emotion": LABELS,
            "pixels": [" ".join(map(str, image.ravel())) for image in GREY],
            "Usage": ["Training"] * 6 + ["PublicTest"] * 3 + ["PrivateTest"] * 3,
        }
    )
    path = write_table(tmp_path / "fer2013.csv", frame)
    with pytest.warns(UserWarning, match="passed over 3 samples for validation"):
        data = read_dataset(path)
    np.testing.assert_array_equal(data.x_train[..., 0], GREY[:6] / 255)
    np.testing.assert_array_equal(data.x_test[..., 0], GREY[9:] / 255)


def test_two_tables_and_one_without_labels(tmp_path: Path) -> None:
    frame = iris()
    write_table(tmp_path / "fashion_train.csv", frame[:9])
    write_table(tmp_path / "fashion_test.csv", frame[frame.columns[::-1]][9:])
    data = load_dataset(tmp_path)
    np.testing.assert_array_equal(data.x_train, FEATURES[:9])
    np.testing.assert_array_equal(data.x_test, FEATURES[9:])  # columns by name, not by place
    write_table(tmp_path / "fashion_test.csv", frame.drop(columns="species"))
    with pytest.warns(
        UserWarning, match="fashion_test.csv: passed over, it has no column 'species'"
    ):
        assert read_dataset(tmp_path).split == "none"


def test_a_folder_of_a_competition(tmp_path: Path) -> None:
    frame = pd.DataFrame(GREY.reshape(12, -1), columns=[f"pixel{k}" for k in range(100)])
    write_table(tmp_path / "test.csv", frame)
    write_table(tmp_path / "train.csv", frame.assign(label=LABELS))
    write_table(tmp_path / "sample_submission.csv", pd.DataFrame({"ImageId": [1], "Label": [0]}))
    with pytest.warns(UserWarning, match="passed over") as said:
        data = read_dataset(tmp_path)
    messages = " ".join(str(warning.message) for warning in said)
    assert "passed over sample_submission.csv, neither train nor test" in messages
    assert "test.csv: passed over, it has no column 'label'" in messages
    assert data.image_shape == (10, 10, 1)


def test_columns_that_name_or_number_rows(tmp_path: Path) -> None:
    frame = iris()
    frame.insert(0, "Id", np.arange(12))
    frame["filename"] = [f"{k}.jpg" for k in range(12)]
    with pytest.warns(UserWarning, match="passed over the columns 'Id', which number rows"):
        data = read_dataset(write_table(tmp_path / "iris.csv", frame))
    np.testing.assert_array_equal(data.x_train, FEATURES)
    assert data.files_train == tuple(f"{k}.jpg" for k in range(12))
    unnamed = write_table(tmp_path / "index.csv", iris(), index=True)
    with pytest.warns(UserWarning, match="'Unnamed: 0', which number rows"):
        np.testing.assert_array_equal(read_dataset(unnamed).x_train, FEATURES)


def test_table_with_names_of_rows(tmp_path: Path) -> None:
    text = iris().to_csv(index=True).split(",", 1)[1]  # as R writes it: one name too few
    (tmp_path / "r.csv").write_text(text)
    np.testing.assert_array_equal(read_dataset(tmp_path / "r.csv").x_train, FEATURES)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "it is empty"),
        ("a,b,label\n", "must have rows, got none"),
        ("a,b\n1,2\n3,4\n", r"one column of labels.*got columns a \(numbers\), b \(numbers\)"),
        ("a,label\n1,x\n,y\n", "a value is missing in column 'a' of row 2"),
        ("a,label\n1,x\n2,\n", "column 'label' is empty in 1 rows, the first is row 2"),
        ("a,label\n1,x\n?,y\n", r"column 'a' must hold numbers to be a feature, got '1', '\?'"),
        ("a,label\n1,0.5\n2,1.5\n", "whole numbers or text, got 0.5"),
        ("a,label\n1,x\n2,x,3,4,5\n", "must be a table, it is not"),
        ("a,label\n1,x,\n2,y,\n", "its rows end with ',', and the names do not"),
        ("label\nx\ny\n", "must have columns beside the labels"),
        ("label,class,a\n1,2,3\n4,5,6\n", "'label' and 'class' may be it"),
        ("1,2,3\n2,5,6\n1,2,3\n2,5,6\n", "'0' and '2' may be it"),
        ("a,label\n1e999,x\n2,y\n", "must be finite, got inf|must hold numbers"),
        ("\0\0\1,\2\n", "it is no text"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        read_dataset(tmp_path / "t.csv")


def test_the_label_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "wine.csv"
    path.write_text("".join(f"{k % 2},{k},{k % 3}\n" for k in range(12)))
    for label, expected in (("0", 2), ("-1", 3), ("2", 3), (0, 2), (-1, 3), (np.int64(2), 3)):
        assert read_dataset(path, label=label).n_classes == expected
    with pytest.raises(ValueError, match="has no column '3', got columns without names 0"):
        read_dataset(path, label="3")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["01", "02", "10"], ("01", "02", "10")),
        (["True", "False", "True"], ("False", "True")),
        (["true", "false", "true"], ("false", "true")),
        (["+1", "-1", "+1"], ("+1", "-1")),
        (["1e05", "2", "inf"], ("1e05", "2", "inf")),
        (["1", "2", "10"], ("1", "2", "10")),  # numbers, in their order
        (["-1", "0", "1 "], ("-1", "0", "1")),
        (["1.0", "2.000e+00", "10"], ("1", "2", "10")),
        (["1", "18446744073709551615", "2"], ("1", "2", "18446744073709551615")),
    ],
)
@pytest.mark.parametrize("form", ["named", "unnamed", "rows have names", "no such name"])
def test_labels_of_tables_come_back(
    tmp_path: Path, labels: list[str], names: tuple[str, ...], form: str
) -> None:
    """What pandas takes for numbers may be codes; of numbers only the notation is lost."""
    path, label = tmp_path / "t.csv", "kind"
    first = {"named": "a, kind\n", "unnamed": "", "rows have names": "a,kind\n"}.get(form)
    if form == "unnamed":
        label = "-1"
    elif first is None:  # pandas makes one name of two
        first, label = "kind,kind\n", "kind.1"
    start = "row," if form == "rows have names" else ""
    path.write_text(first + "".join(f"{start}{k}.5, {word}\n" for k, word in enumerate(labels * 2)))
    data = read_dataset(path, label=label)
    assert data.class_names == names
    read = [data.class_names[k] for k in data.y_train]
    plain = {"1.0": "1", "2.000e+00": "2", "1 ": "1"}
    assert read == [plain.get(word, word) for word in labels * 2]


def test_labels_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1,1\n2,\n3,2\n")
    with pytest.raises(ValueError, match=r"column 'label' is empty in 1 rows, the first is row 2"):
        read_dataset(tmp_path / "t.csv")


def test_labels_that_are_false_and_true_have_these_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=GREY, y=LABELS > 0)
    frame = pd.DataFrame({"a": FEATURES[:, 0], "label": LABELS > 0})
    for source in (tmp_path / "a.npz", frame, (GREY, LABELS > 0)):
        data = read_dataset(source)
        assert data.class_names == ("False", "True")
        np.testing.assert_array_equal(data.y_train, LABELS > 0)


def test_labels_that_look_like_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n" + "1,None\n2,NA\n3,nan\n" * 2)
    assert read_dataset(tmp_path / "t.csv").class_names == ("NA", "None", "nan")


def test_tables_without_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "iris.csv", iris())
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ValueError, match=r"iris.csv, a table, needs pandas.*pip install pandas"):
        read_dataset(path)


def test_a_packed_table_that_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widelimit.data.table._FREELY_UNPACKED", 1000)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,label\n" + b"0,1\n" * 100_000))
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_dataset(tmp_path / "t.csv.gz")


@settings(deadline=None, max_examples=60)
@given(
    content=st.binary(max_size=300) | st.text(alphabet='ab1,;\t\n" .', max_size=80).map(str.encode)
)
def test_strange_tables_give_data_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "strange.csv"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress_naming("strange"):
            read_dataset(path)


# --- MATLAB and HDF5 ---


def svhn(folder: Path, name: str = "train_32x32.mat") -> tuple[Path, np.ndarray]:
    labels = (np.arange(12) % 10 + 1).astype(np.uint8)  # 10 is the digit 0
    images = np.ascontiguousarray(np.moveaxis(COLOUR, 0, -1))
    scipy.io.savemat(folder / name, {"X": images, "y": labels[:, None]}, do_compression=True)
    return folder / name, labels % 10


def test_house_numbers(tmp_path: Path) -> None:
    path, digits = svhn(tmp_path)
    data = read_dataset(path)
    np.testing.assert_array_equal(data.x_train, COLOUR / 255)
    assert data.class_names == tuple("0123456789")
    np.testing.assert_array_equal(data.y_train, digits)
    svhn(tmp_path, "test_32x32.mat")
    both = load_dataset(tmp_path)
    assert both.split == "given"
    np.testing.assert_array_equal(both.x_test, COLOUR / 255)


def test_as_many_images_as_they_have_rows(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    for x in (images, np.moveaxis(images, 0, -1)):  # the axis of channels tells
        scipy.io.savemat(tmp_path / "a.mat", {"X": x, "y": np.arange(32)[:, None] % 10 + 1})
        np.testing.assert_array_equal(read_dataset(tmp_path / "a.mat").x_train, images / 255)


@pytest.mark.parametrize("images", [GREY, np.moveaxis(GREY, 0, -1)])
def test_mat_of_doubles_rows_and_cells(tmp_path: Path, images: np.ndarray) -> None:
    words = np.array(["cat", "dog", "emu"], dtype=object)
    arrays = {"images": images.astype(float), "labels": LABELS[None] + 1.0, "class_names": words}
    scipy.io.savemat(tmp_path / "a.mat", arrays)
    data = read_dataset(tmp_path / "a.mat")
    np.testing.assert_array_equal(data.x_train[..., 0], GREY / 255)
    assert data.class_names == ("cat", "dog", "emu")
    scipy.io.savemat(tmp_path / "a.mat", {"fea": FEATURES, "gnd": words[LABELS][:, None]})
    data = read_dataset(tmp_path / "a.mat")
    np.testing.assert_array_equal(data.x_train, FEATURES)
    assert data.class_names == ("cat", "dog", "emu")
    scipy.io.savemat(tmp_path / "a.mat", {"fea": FEATURES.T, "gnd": ["cat  ", "dog", "em"] * 4})
    data = read_dataset(tmp_path / "a.mat")
    np.testing.assert_array_equal(data.x_train, FEATURES)
    assert data.class_names == ("cat", "dog", "em")


@pytest.mark.parametrize("form", ["a.mat", "a.h5"])
def test_labels_that_may_count_names_from_0_or_1(tmp_path: Path, form: str) -> None:
    words = ["cat", "dog", "emu"]

    def read(labels: np.ndarray) -> Dataset:
        path = tmp_path / form
        if form == "a.mat":
            names = np.array(words, dtype=object)
            scipy.io.savemat(path, {"x": GREY, "y": labels[:, None], "class_names": names})
        else:
            h5py = pytest.importorskip("h5py")
            with h5py.File(path, "w") as file:
                file["x"], file["y"], file["class_names"] = GREY, labels.astype(int), words
        return read_dataset(path)

    halves = LABELS % 2
    assert read(LABELS).class_names == tuple(words)
    assert read(LABELS + 1).class_names == tuple(words)
    assert read(halves).class_names == ("cat", "dog")  # 0 counts from 0
    assert read(halves + 2).class_names == ("dog", "emu")  # 3 counts from 1
    assert read(LABELS + 2).class_names == ("2", "3", "4")  # no places
    with pytest.warns(UserWarning, match="1 to 2, may count the 3 names of classes from 0 or from"):
        data = read(halves + 1)
    assert data.class_names == ("1", "2")
    np.testing.assert_array_equal(data.y_train, halves)


def test_mat_of_emnist_is_a_structure(tmp_path: Path) -> None:
    rows = GREY.reshape(12, -1)
    part = {"images": rows, "labels": LABELS[:, None], "writers": LABELS[:, None]}
    dataset = {"train": part, "test": part, "mapping": np.eye(3)}
    scipy.io.savemat(tmp_path / "emnist-letters.mat", {"dataset": dataset})
    data = read_dataset(tmp_path / "emnist-letters.mat", image_shape=(10, 10, 1))
    assert data.split == "given"
    np.testing.assert_array_equal(data.x_test[..., 0], GREY / 255)


def test_mat_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"speed": FEATURES, "when": LABELS})
    with pytest.raises(ValueError, match=r"must hold x_train .*got speed float64 \(12, 3\), when"):
        read_dataset(path)
    scipy.io.savemat(path, {"X": GREY, "y": LABELS[:5]})
    with pytest.raises(ValueError, match=r"got 5 labels for samples of shape \(12, 10, 10\)"):
        read_dataset(path)
    scipy.io.savemat(path, {"X": np.zeros((12, 10, 12)), "y": LABELS})
    with pytest.raises(ValueError, match="on the first axis or on the last"):
        read_dataset(path)
    path.write_bytes(b"MATLAB 5.0 MAT-file, but not really" * 20)
    with pytest.raises(ValueError, match=r"must be a \.mat file, it is not"):
        read_dataset(path)


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "usps.h5", "w") as file:
        for part in ("train", "test"):
            file[f"{part}/data"] = GREY / 255.0
            file[f"{part}/target"] = LABELS
    data = load_dataset(tmp_path / "usps.h5")
    assert data.split == "given"
    np.testing.assert_array_equal(data.x_test[..., 0], GREY / 255)
    with h5py.File(tmp_path / "words.hdf5", "w") as file:
        file.create_dataset("images", data=COLOUR, compression="gzip")
        file["labels"] = ["cat" if k else "dog" for k in LABELS]
    assert load_dataset(tmp_path / "words.hdf5").class_names == ("cat", "dog")


def test_mat_of_version_7_3_has_its_axes_reversed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["X"] = np.moveaxis(COLOUR, 0, -1).T  # what MATLAB calls (h, w, c, n)
        file["y"] = LABELS[None, :]
    data = read_dataset(tmp_path / "a.mat")
    np.testing.assert_array_equal(data.x_train, COLOUR / 255)
    np.testing.assert_array_equal(data.y_train, LABELS)


def test_hdf5_never_leads_out_of_its_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = GREY
        file["y"] = LABELS
    GREY.tofile(tmp_path / "raw")
    layout = h5py.VirtualLayout(shape=GREY.shape, dtype="u1")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", shape=GREY.shape)
    with h5py.File(tmp_path / "bait.h5", "w") as file:
        file["y"] = LABELS
        file["x"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x")
        file.create_virtual_dataset("images", layout)
        size = [(str(tmp_path / "raw"), 0, GREY.nbytes)]
        file.create_dataset("data", GREY.shape, "u1", external=size)
    with pytest.raises(ValueError, match=r"must hold x_train .*got y int64 \(12,\)"):
        read_dataset(tmp_path / "bait.h5")


def test_hdf5_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ValueError, match=r"an HDF5 file, needs h5py.*pip install h5py"):
        read_dataset(tmp_path / "a.h5")
    (tmp_path / "a.h5").write_bytes(b"something else")
    with pytest.raises(ValueError, match="must be an HDF5 file"):
        read_dataset(tmp_path / "a.h5")


def test_damaged_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=COLOUR, compression="gzip")
        file["y"] = LABELS
    whole = path.read_bytes()
    for size in (20, 600, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.h5"):
            read_dataset(path)


# --- IDX ---


def idx(array: np.ndarray, code: int = 8) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return head + array.astype(">i4" if code == 12 else "u1").tobytes()


IDX_NAMES = [
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"),
    ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", "t10k-images.idx3-ubyte"),
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"),
    ("train_images.idx", "train_labels.idx", "test_images.idx"),
    ("train-images.gz", "train-labels.gz", "test-images.gz"),
    ("train-images-ubyte", "train-labels-ubyte", "test-images-ubyte"),
    ("emnist-letters-train-images-idx3-ubyte", "emnist-letters-train-labels-idx1-ubyte",
     "emnist-letters-test-images-idx3-ubyte"),
    ("raw/train-images-idx3-ubyte", "raw/train-labels-idx1-ubyte", "raw/t10k-images-idx3-ubyte"),
    ("a/train-images-idx3-ubyte/train-images-idx3-ubyte",
     "a/train-labels-idx1-ubyte/train-labels-idx1-ubyte",
     "a/t10k-images-idx3-ubyte/t10k-images-idx3-ubyte"),
]  # fmt: skip


def write_idx(folder: Path, names: tuple[str, str, str]) -> None:
    images, labels, test = names
    test_labels = test.replace("images", "labels").replace("idx3", "idx1")
    contents = {images: GREY, labels: LABELS, test: GREY[:3], test_labels: LABELS[:3]}
    for name, array in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = idx(array)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize("names", IDX_NAMES)
def test_idx_under_its_usual_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    write_idx(tmp_path, names)
    data = load_dataset(tmp_path)
    upright = GREY.swapaxes(1, 2) if "emnist" in names[0] else GREY
    np.testing.assert_array_equal(data.x_train[..., 0], upright / 255)
    np.testing.assert_array_equal(data.x_test[..., 0], upright[:3] / 255)
    np.testing.assert_array_equal(data.y_train, LABELS)


@pytest.mark.parametrize("kind", ["digits", "idx", "cifar", "npz", "pair", "table"])
def test_options_without_a_use_are_refused(tmp_path: Path, kind: str) -> None:
    """Instead of images that are read as if nothing had been said."""
    source: Any = tmp_path
    match kind:
        case "idx":
            write_idx(tmp_path, IDX_NAMES[0])
        case "cifar":
            for name, content in cifar_files("binary", 10).items():
                (tmp_path / name).write_bytes(content)
        case "npz":
            source = tmp_path / "grey.npz"
            np.savez(source, x=GREY, y=LABELS)
        case "pair":
            source = (GREY, LABELS)
        case "table":
            source = tmp_path / "faces.csv"
            texts = [" ".join(map(str, image.ravel())) for image in GREY[:, :4, :4]]
            write_table(source, pd.DataFrame({"pixels": texts, "label": LABELS}))
        case _:
            source = "digits"
    whole: Any = {"channels": "last", "series": kind in ("digits", "cifar")}
    shape = read_dataset(source, **whole).image_shape
    assert read_dataset(source, **whole, image_shape=shape).image_shape == shape
    refused = [
        ({"image_shape": (2, 2, 2)}, r"image_shape=\(2, 2, 2\), which says which image a row is"),
        ({"channels": "first"}, 'channels="first"'),
    ]
    if kind not in ("npz", "table"):
        refused.append(({"label": "nonsense"}, "label (for each image, got label|=)"))
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            read_dataset(source, **options)


def test_emnist_of_several_kinds_with_its_mapping(tmp_path: Path) -> None:
    for kind in ("letters", "balanced"):
        write_idx(tmp_path, tuple(n.replace("letters", kind) for n in IDX_NAMES[6]))  # type: ignore[arg-type]
    (tmp_path / "emnist-letters-mapping.txt").write_text("0 65 97\n1 66 98\n2 67 99\n")
    with pytest.raises(ValueError, match="2 data sets, emnist-balanced, emnist-letters: give"):
        load_dataset(tmp_path)
    data = load_dataset(tmp_path / "emnist-letters-test-images-idx3-ubyte")
    assert data.name == "emnist-letters"
    assert data.class_names == ("A", "B", "C")
    assert load_dataset(tmp_path / IDX_NAMES[6][0].replace("letters", "balanced")).class_names == (
        "0",
        "1",
        "2",
    )


def test_qmnist_has_labels_of_several_numbers(tmp_path: Path) -> None:
    extended = np.stack([LABELS, LABELS + 300, LABELS], axis=1)
    for part in ("train", "test"):
        images = gzip.compress(idx(GREY))
        (tmp_path / f"qmnist-{part}-images-idx3-ubyte.gz").write_bytes(images)
        labels = gzip.compress(idx(extended, 12))
        (tmp_path / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(labels)
    data = load_dataset(tmp_path)
    np.testing.assert_array_equal(data.y_train, LABELS)
    assert data.class_names == ("0", "1", "2")


# --- CIFAR ---

SMALL = COLOUR[:2]
ROWS = SMALL.transpose(0, 3, 1, 2).reshape(2, -1)
FINE, COARSE = [99, 3], [7, 19]
FINE_NAMES = [f"fine{k}" for k in range(100)]
COARSE_NAMES = [f"coarse{k}" for k in range(20)]


class Old(pickle._Pickler):
    """Writes text as bytes, as Python 2 did, whose pickles CIFAR's are."""

    def save(self, obj: Any, *rest: Any, **more: Any) -> None:
        if isinstance(obj, bytes):
            code = pickle.SHORT_BINSTRING if len(obj) < 256 else pickle.BINSTRING
            size = struct.pack("<B" if len(obj) < 256 else "<i", len(obj))
            self.write(code + size + obj)
            if id(obj) not in self.memo:
                self.memoize(obj)
        else:
            super().save(obj, *rest, **more)


def old_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Old(file, 2).dump(value)
    return file.getvalue()


def matlab(**arrays: Any) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, arrays)
    return file.getvalue()


def cells(names: list[str]) -> np.ndarray:
    return np.array(names, dtype=object)[:, None]


def cifar_files(form: str, classes: int) -> dict[str, bytes]:
    """The files of one form, as published, with two images in each."""
    end = {"binary": ".bin", "python": "", "matlab": ".mat"}[form]
    ten = classes == 10
    labels: dict[str, Any] = {"labels": [3, 9]} if ten else {
        "fine_labels": FINE, "coarse_labels": COARSE
    }  # fmt: skip
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    files: dict[str, bytes] = {}
    for name in names:
        if form == "binary":
            columns = [[3, 9]] if ten else [COARSE, FINE]
            content = np.concatenate([np.array(columns, np.uint8).T, ROWS], axis=1).tobytes()
        elif form == "python":
            titles = [f"{name}_{k}.png".encode() for k in range(2)]
            held = {b"data": ROWS, b"batch_label": b"training batch", b"filenames": titles}
            content = old_pickle(held | {key.encode(): value for key, value in labels.items()})
        else:
            columns_ = {key: np.array(value, np.uint8)[:, None] for key, value in labels.items()}
            content = matlab(data=ROWS, batch_label="training", **columns_)
        files[f"{name}{end}"] = content
    if not ten:
        if form == "binary":
            files["fine_label_names.txt"] = "\n".join(FINE_NAMES).encode()
            files["coarse_label_names.txt"] = "\n".join(COARSE_NAMES).encode()
        elif form == "python":
            words = {"fine_label_names": FINE_NAMES, "coarse_label_names": COARSE_NAMES}
            files["meta"] = old_pickle(
                {key.encode(): [word.encode() for word in value] for key, value in words.items()}
            )
        else:
            files["meta.mat"] = matlab(
                fine_label_names=cells(FINE_NAMES), coarse_label_names=cells(COARSE_NAMES)
            )
    return files


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("packed", [None, "c.tar.gz", "c.tgz", "c.tar"])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("form", ["binary", "python", "matlab"])
def test_cifar_in_all_forms(tmp_path: Path, form: str, classes: int, packed: str | None) -> None:
    files = cifar_files(form, classes)
    path = tmp_path
    if packed is None:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
    else:
        path = pack(tmp_path / packed, files)
    data = load_dataset(path)
    assert data.split == "given"
    np.testing.assert_array_equal(
        data.x_train, np.tile(SMALL, (5 if classes == 10 else 1, 1, 1, 1)) / 255
    )
    np.testing.assert_array_equal(data.x_test, SMALL / 255)
    assert data.n_classes == classes
    labels = [3, 9] if classes == 10 else FINE
    np.testing.assert_array_equal(data.y_test, labels)
    expected = ["cat", "truck"] if classes == 10 else ["fine99", "fine3"]
    assert [data.class_names[k] for k in data.y_test] == expected
    if form == "python":
        assert data.files_test is not None
        assert data.files_test[1] in ("test_batch_1.png", "test_1.png")
    if classes == 100:
        coarse = load_dataset(path, label="coarse")
        assert [coarse.class_names[k] for k in coarse.y_test] == ["coarse7", "coarse19"]
        with pytest.raises(ValueError, match='must be "fine" or "coarse", got'):
            load_dataset(path, label="other")


def test_cifar_is_found_by_name_in_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "cifar-100-python.tar.gz", cifar_files("python", 100))
    monkeypatch.setenv("WIDELIMIT_DATA", str(tmp_path))
    assert load_dataset("cifar100").n_classes == 100


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_later_pythons(protocol: int) -> None:
    held = {"data": ROWS, "labels": [1, 2], "names": ("a", b"b", 1.5, None, True, {"x": []})}
    found = unpickle(pickle.dumps(held, protocol), "it")
    np.testing.assert_array_equal(found["data"], ROWS)
    assert found["labels"] == [1, 2]
    assert found["names"] == held["names"]
    for array in (np.arange(6.0).reshape(2, 3).T, np.arange(3, dtype=">i4"), np.array([True])):
        np.testing.assert_array_equal(unpickle(pickle.dumps(array, protocol), "it"), array)


class Runs:
    """Unpickling it runs something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def hostile(folder: Path) -> dict[str, bytes]:
    made = str(folder / "sprung")
    deep: Any = []
    for _ in range(40):
        deep = [deep, deep]
    objects = np.array([Runs(os.mkdir, made)], dtype=object)
    numpy_again = b"\x80\x02cnumpy\nsave\nX\x01\x00\x00\x00aK\x01\x86R."
    return {
        "a call": pickle.dumps(Runs(os.mkdir, made), 2),
        "in a dictionary": pickle.dumps({b"data": Runs(os.mkdir, made), b"labels": [0]}, 2),
        "in an array": pickle.dumps(objects, 2),
        "eval": b"c__builtin__\neval\n(S'1'\ntR.",
        "getattr": b"cbuiltins\ngetattr\n.",
        "an instance": f"(S'{made}'\nios\nmkdir\n.".encode(),
        "an object": f"(cos\nmkdir\nS'{made}'\no.".encode(),
        "an extension": b"\x80\x02\x82\x01.",
        "another function of numpy": numpy_again,
        "an attribute of an attribute": pickle.dumps(Runs(os.path.join, "a"), 4),
        "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "a place far away": b"\x80\x02]r\xff\xff\xff\x7f.",
        "deep": pickle.dumps(deep, 2),
        "a cut": pickle.dumps({"data": ROWS}, 2)[:500],
        "nothing": b"",
        "a large array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01J\xff\xff\xff\x7f\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x01xtb.",
        "an array of objects": b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
        "a dtype that is called twice": b"\x80\x02cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R)R.",
        "no dictionary": pickle.dumps([1, 2], 2),
    }  # fmt: skip


@pytest.mark.parametrize("kind", hostile(Path("unused")))
def test_hostile_pickles_are_refused(tmp_path: Path, kind: str) -> None:
    files = cifar_files("python", 10) | {"data_batch_2": hostile(tmp_path)[kind]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_2 must hold|data_batch_2 must be a pickle"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"data_batch_2 must hold|data_batch_2 must be a pickle"):
        load_dataset(pack(tmp_path / "c.tar.gz", files))
    assert not (tmp_path / "sprung").exists()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_pickles_give_data_or_a_value_error(data: st.DataObject) -> None:
    content = bytearray(old_pickle({b"data": ROWS[:, :40], b"labels": [1, 2], b"x": (None, 1.5)}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress_naming("it must be a pickle"):
        unpickle(bytes(content), "it")


def test_cifar_that_is_damaged(tmp_path: Path) -> None:
    files = cifar_files("python", 10)
    held = {b"data": ROWS, b"labels": [1, 10], b"filenames": [b"a", b"b"]}
    for changed, match in (
        ({b"labels": [1, 10]}, "labels from 0 to 9, got 10 in record 1"),
        ({b"labels": [1]}, "a label for each of 2 images"),
        ({b"labels": ["a", "b"]}, "must hold labels"),
        ({b"data": ROWS[:, :-1], b"labels": [1, 2]}, r"data of shape \(n, 3072\)"),
        ({b"data": b"x", b"labels": [1, 2]}, r"data of shape \(n, 3072\)"),
    ):
        path = pack(tmp_path / "c.tar.gz", files | {"test_batch": old_pickle(held | changed)})
        with pytest.raises(ValueError, match=match):
            load_dataset(path)
    del files["data_batch_4"]
    with pytest.raises(FileNotFoundError, match="Python version of CIFAR-10, got no data_batch_4"):
        load_dataset(pack(tmp_path / "c.tar.gz", files))


def test_archives_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"it holds folder/a.txt, folder/b.txt: unpack it"):
        load_dataset(pack(tmp_path / "a.tar.gz", {"a.txt": b"1", "b.txt": b"2"}))
    (tmp_path / "b.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="must be an archive of CIFAR-10 or CIFAR-100, it is not"):
        load_dataset(tmp_path / "b.tar.gz")
    # A link in place of a batch leads nowhere.
    files = cifar_files("binary", 10)
    path = pack(tmp_path / "c.tar", {k: v for k, v in files.items() if k != "test_batch.bin"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("folder/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(FileNotFoundError, match=r"got no test_batch.bin"):
        load_dataset(path)
    monkeypatch.setattr("widelimit.data.cifar._MAX_ARCHIVE", 10_000)
    with pytest.raises(ValueError, match="unpacks to more than 10,000 bytes"):
        load_dataset(pack(tmp_path / "d.tar.gz", files | {"bomb": bytes(1_000_000)}))


# --- what is not understood ---


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.parquet", b"PAR1....", "got a Parquet file: save it as CSV"),
        ("a.pkl", pickle.dumps([1], 4), "got a pickle, which is never read: save arrays"),
        ("a.xls", b"\xd0\xcf\x11\xe0....", "got a file of Office"),
        ("a.bin", b"\1\2\3", "got a file of type .bin that begins with 01 02 03"),
        ("a", b"", "got a file of type unknown that is empty"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        load_dataset(tmp_path / name)


def test_a_folder_is_named_with_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one per class, got 0: move the images"):
        load_dataset(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / ".hidden").write_bytes(b"")
    with pytest.raises(ValueError, match=r"one per class, got 0 \(a\.parquet\): move .* a file of"):
        load_dataset(tmp_path)


def test_an_archive_is_named_with_what_is_in_it(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1.png", b"")
    with pytest.raises(ValueError, match=r"got an archive of cat/1.png: unpack it"):
        load_dataset(tmp_path / "a.zip")


def test_kernels_of_what_was_read(tmp_path: Path) -> None:
    path, _ = svhn(tmp_path)
    x = read_dataset(path).x_train
    assert np.isfinite(wl.kernel(wl.cntk_vanilla(3), x)).all()
