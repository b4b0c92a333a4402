"""Objects of other libraries in place of arrays, for kernels, estimators and data sets."""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from PIL import Image

import widelimit as wl
from widelimit.data import load_dataset
from widelimit.data.load import read_dataset
from widelimit.matrices.foreign import to_array

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
ROWS = RNG.normal(size=(12, 4))
DENSE, CNTK = wl.ntk_dense(2), wl.cntk_vanilla(3)


class Tensor:
    """What a tensor of PyTorch has: DLPack, a graph, and no way to NumPy but out of the graph."""

    def __init__(self, values: Any, requires_grad: bool = False) -> None:
        self.values, self.requires_grad = np.asarray(values), requires_grad
        self.ndim, self.shape, self.dtype = self.values.ndim, self.values.shape, self.values.dtype

    def detach(self) -> "Tensor":
        return Tensor(self.values)

    def cpu(self) -> "Tensor":
        return self

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> "Tensor":
        return Tensor(self.values[index], self.requires_grad)

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.values if dtype is None else self.values.astype(dtype)


class Torch:
    """PyTorch, or where it is not there classes with its names, in modules with its names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        try:
            torch = importlib.import_module("torch")
        except ImportError:
            self.tensor: Callable[..., Any] = Tensor
            self._stand_in(monkeypatch)
            return
        data = importlib.import_module("torch.utils.data")
        self.tensor = lambda values, **options: torch.tensor(values, **options)
        self.Dataset, self.DataLoader = data.Dataset, data.DataLoader
        self.IterableDataset, self.TensorDataset = data.IterableDataset, data.TensorDataset

    def _stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def made(name: str, module: str, bases: tuple[type, ...], **content: Any) -> Any:
            if module not in sys.modules:
                monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
            return type(name, bases, {"__module__": module, **content})

        where = "torch.utils.data"
        self.Dataset = made("Dataset", f"{where}.dataset", ())
        self.IterableDataset = made("IterableDataset", f"{where}.dataset", (self.Dataset,))

        def keep(self: Any, *tensors: Any) -> None:
            self.tensors = tensors

        self.TensorDataset = made(
            "TensorDataset",
            f"{where}.dataset",
            (self.Dataset,),
            __init__=keep,
            __len__=lambda self: len(self.tensors[0]),
            __getitem__=lambda self, i: tuple(tensor[i] for tensor in self.tensors),
        )
        samplers = {
            shuffle: made(name, f"{where}.sampler", ())
            for shuffle, name in ((False, "SequentialSampler"), (True, "RandomSampler"))
        }

        def prepare(
            self: Any, dataset: Any, batch_size: int = 1, shuffle: bool = False,
            drop_last: bool = False,
        ) -> None:  # fmt: skip
            self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
            self.sampler = samplers[shuffle]()

        def batches(self: Any) -> Any:
            order = np.arange(len(self.dataset))
            if type(self.sampler).__name__ == "RandomSampler":
                order = np.random.default_rng(0).permutation(order)
            for start in range(0, len(order), self.batch_size):
                part = [self.dataset[int(i)] for i in order[start : start + self.batch_size]]
                if self.drop_last and len(part) < self.batch_size:
                    return
                columns = zip(*part, strict=True)
                yield [Tensor(np.stack([np.asarray(entry) for entry in c])) for c in columns]

        self.DataLoader = made(
            "DataLoader", f"{where}.dataloader", (), __init__=prepare, __iter__=batches
        )

    def pairs(self, x: Any, y: Any, **content: Any) -> Any:
        """A data set that gives pairs, as those of torchvision."""
        about = {"__len__": lambda _: len(x), "__getitem__": lambda _, i: (x[i], int(y[i]))}
        return type("Own", (self.Dataset,), about | content)()


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Torch:
    return Torch(monkeypatch)


def test_tensors_that_require_grad(torch: Torch) -> None:
    x = ROWS.astype(np.float32)
    tensor = torch.tensor(x, requires_grad=True)
    np.testing.assert_array_equal(wl.kernel(DENSE, tensor), wl.kernel(DENSE, x))
    np.testing.assert_array_equal(wl.kernel(DENSE, tensor, tensor), wl.kernel(DENSE, x, x))
    expected = wl.NTKRegressor(DENSE).fit(x, ROWS[:, 0]).predict(x)
    targets = torch.tensor(ROWS[:, 0], requires_grad=True)
    model = wl.NTKRegressor(DENSE).fit(tensor, targets)
    np.testing.assert_array_equal(model.predict(tensor), expected)
    labels = wl.NTKClassifier(DENSE).fit(tensor, torch.tensor(LABELS)).predict(tensor)
    np.testing.assert_array_equal(labels, LABELS)


def test_channels_of_tensors_are_asked_for(torch: Torch) -> None:
    first = COLOUR.transpose(0, 3, 1, 2) / 255
    with pytest.raises(ValueError, match="channels first"):
        wl.kernel(CNTK, torch.tensor(first))
    expected = wl.kernel(CNTK, COLOUR / 255)
    found = wl.kernel(CNTK, torch.tensor(first), channels="first")
    np.testing.assert_array_equal(found, expected)


def test_data_sets_of_pytorch(torch: Torch) -> None:
    first = COLOUR.transpose(0, 3, 1, 2) / 255
    own = torch.pairs([torch.tensor(x) for x in first], LABELS, classes=["a", "b", "c"])
    expected = wl.kernel(CNTK, COLOUR / 255)
    for data in (own, torch.TensorDataset(torch.tensor(first), torch.tensor(LABELS))):
        np.testing.assert_array_equal(wl.kernel(CNTK, data, channels="first"), expected)
        read = read_dataset(data, channels="first")
        np.testing.assert_array_equal(read.x_train, COLOUR / 255)
        np.testing.assert_array_equal(read.y_train, LABELS)
    assert read_dataset(own, channels="first").class_names == ("a", "b", "c")
    own = torch.pairs([torch.tensor(x) for x in first], LABELS % 2 + 1, classes=["a", "b", "c"])
    assert read_dataset(own, channels="first").class_names == ("b", "c")  # places from 0
    model = wl.NTKClassifier(CNTK, channels="first").fit(own, LABELS)
    np.testing.assert_array_equal(model.predict(own), LABELS)


def test_data_sets_of_pytorch_without_a_transform(torch: Torch) -> None:
    own = torch.pairs([Image.fromarray(x) for x in COLOUR], LABELS)
    np.testing.assert_array_equal(read_dataset(own).x_train, COLOUR / 255)


def test_loaders_of_pytorch(torch: Torch) -> None:
    data = torch.TensorDataset(torch.tensor(ROWS), torch.tensor(LABELS))
    expected = wl.kernel(DENSE, ROWS)
    loader = torch.DataLoader(data, batch_size=5)
    np.testing.assert_array_equal(wl.kernel(DENSE, loader), expected)
    model = wl.NTKClassifier(DENSE).fit(loader, LABELS)
    np.testing.assert_array_equal(model.predict(loader), LABELS)
    shuffled = torch.DataLoader(data, batch_size=5, shuffle=True)
    with pytest.raises(TypeError, match=r"x1 must be in a fixed order.*shuffle=False"):
        wl.kernel(DENSE, shuffled)
    with pytest.raises(TypeError, match="RandomSampler"):
        wl.NTKClassifier(DENSE).fit(shuffled, LABELS)
    read = read_dataset(shuffled)  # takes samples with their labels
    assert not np.array_equal(read.x_train, ROWS)
    for row, label in zip(read.x_train, read.y_train, strict=True):
        place = int(np.flatnonzero((row == ROWS).all(axis=1))[0])
        assert label == LABELS[place]
    short = torch.DataLoader(data, batch_size=5, drop_last=True)
    with pytest.raises(ValueError, match=r"all 12 samples of its data set, got 10: .*drop_last"):
        wl.kernel(DENSE, short)


def test_samplers_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data
    pairs = data.TensorDataset(torch.tensor(ROWS), torch.tensor(LABELS))
    expected = wl.kernel(DENSE, ROWS)
    in_order = data.SequentialSampler(pairs)
    drawn = data.RandomSampler(pairs, generator=torch.Generator().manual_seed(0))
    own = [[2, 1, 0], [3, 4, 5, 6], [7, 8, 9, 10, 11]]

    def loaders(sampler: Any) -> list[Any]:
        batches = data.BatchSampler(sampler, 5, drop_last=False)
        return [
            data.DataLoader(pairs, batch_sampler=batches),
            data.DataLoader(pairs, batch_size=None, sampler=batches),
            data.DataLoader(pairs, batch_size=None, sampler=sampler),
            data.DataLoader(pairs, batch_size=2, sampler=sampler),
        ]

    for loader in loaders(in_order):
        np.testing.assert_array_equal(wl.kernel(DENSE, loader), expected)
    for loader in (*loaders(drawn), data.DataLoader(pairs, batch_sampler=own)):
        name = "list" if loader.batch_sampler is own else "RandomSampler"
        with pytest.raises(TypeError, match=rf"fixed order, .* with a {name}, .*shuffle=False"):
            wl.kernel(DENSE, loader)
        read = read_dataset(loader)  # takes samples with their labels
        assert read.x_train.shape == ROWS.shape
        for row, label in zip(read.x_train, read.y_train, strict=True):
            assert label == LABELS[int(np.flatnonzero((row == ROWS).all(axis=1))[0])]


def test_data_sets_of_pytorch_that_are_refused(torch: Torch) -> None:
    endless = type("Own", (torch.IterableDataset,), {"__iter__": lambda _: iter([ROWS[0]])})()
    with pytest.raises(TypeError, match="x1 must have a length, got Own"):
        wl.kernel(DENSE, endless)
    with pytest.raises(ValueError, match="must hold samples, got an empty Own"):
        wl.kernel(DENSE, torch.pairs([], []))
    alone = type(
        "Own", (torch.Dataset,), {"__len__": lambda _: 3, "__getitem__": lambda _, i: ROWS[i]}
    )
    with pytest.raises(ValueError, match="pairs of a sample and a label, got samples"):
        read_dataset(alone())
    np.testing.assert_array_equal(wl.kernel(DENSE, alone()), wl.kernel(DENSE, ROWS[:3]))
    ragged = torch.pairs([ROWS[0], ROWS[1], ROWS[2, :2]], LABELS)
    with pytest.raises(ValueError, match=r"one shape, got \(4,\) and, at 2, \(2,\): resize"):
        wl.kernel(DENSE, ragged)


def test_sparse_matrices() -> None:
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.csr_array, scipy.sparse.coo_array):
        sparse = kind(ROWS)
        with pytest.raises(TypeError, match=r"x1 must be dense.*give x1\.toarray\(\)"):
            wl.kernel(DENSE, sparse)
        with pytest.raises(TypeError, match=r"X must be dense.*give X\.toarray\(\)"):
            wl.NTKClassifier(DENSE).fit(sparse, LABELS)
        with pytest.raises(TypeError, match=r"x must be dense.*give x\.toarray\(\)"):
            load_dataset((sparse, LABELS))
    np.testing.assert_array_equal(wl.kernel(DENSE, sparse.toarray()), wl.kernel(DENSE, ROWS))


def test_lists_of_images() -> None:
    pictures = [Image.fromarray(x) for x in COLOUR]
    np.testing.assert_array_equal(wl.kernel(CNTK, pictures), wl.kernel(CNTK, COLOUR))
    model = wl.NTKClassifier(CNTK).fit(pictures, LABELS)
    np.testing.assert_array_equal(model.predict(list(COLOUR)), LABELS)
    palettes = [picture.convert("P") for picture in pictures]
    np.testing.assert_array_equal(
        to_array(palettes), np.stack([np.asarray(p.convert("RGB")) for p in palettes])
    )
    grey = [Image.fromarray(GREY[0]), Image.fromarray(GREY[1]).convert("RGB")]
    assert to_array(grey).shape == (2, 6, 5, 3)
    deep = Image.fromarray(GREY[0].astype(np.uint16) * 100)
    np.testing.assert_array_equal(to_array([deep])[0], GREY[0].astype(np.uint16) * 100)
    with pytest.raises(ValueError, match=r"x1 must hold samples of one shape, got \(6, 6, 3\) and"):
        wl.kernel(CNTK, [pictures[0], pictures[1].resize((9, 9))])


# --- data frames ---


def test_polars() -> None:
    polars = pytest.importorskip("polars")
    names = ["a", "b", "c", "d"]
    frame = polars.DataFrame(dict(zip(names, ROWS.T, strict=True)))
    np.testing.assert_array_equal(wl.kernel(DENSE, frame), wl.kernel(DENSE, ROWS))
    model = wl.NTKClassifier(DENSE).fit(frame, polars.Series(LABELS))
    assert model.feature_names_in_.tolist() == names
    np.testing.assert_array_equal(model.predict(frame), LABELS)
    targets = wl.NTKRegressor(DENSE).fit(frame, polars.Series(ROWS[:, 0])).predict(frame)
    np.testing.assert_allclose(targets, ROWS[:, 0], atol=1e-6)
    with pytest.raises(TypeError, match=r"x1 must hold values, got a lazy frame: give x1\.collect"):
        wl.kernel(DENSE, frame.lazy())
    words = np.array(["cat", "dog", "emu"])[LABELS]
    data = read_dataset(frame.with_columns(polars.Series("label", words)))
    np.testing.assert_array_equal(data.x_train, ROWS)
    assert data.class_names == ("cat", "dog", "emu")
    with pytest.raises(TypeError, match="x1 must hold real numbers, got dtype object"):
        wl.kernel(DENSE, frame.with_columns(polars.Series("e", words)))


def test_pandas() -> None:
    frame = pd.DataFrame(ROWS, columns=list("abcd"))
    np.testing.assert_array_equal(wl.kernel(DENSE, frame), wl.kernel(DENSE, ROWS))
    data = read_dataset((frame, pd.Series(LABELS)))
    assert data.feature_names == ("a", "b", "c", "d")
    data = read_dataset(frame.assign(kind=LABELS), label="kind")
    np.testing.assert_array_equal(data.y_train, LABELS)
    with pytest.raises(ValueError, match="data frame must have one column of labels"):
        read_dataset(frame)


def test_other_objects_are_named() -> None:
    with pytest.raises(TypeError, match=r"a pair \(x, y\), got builtins.int"):
        load_dataset(3)
    np.testing.assert_array_equal(np.sort(load_dataset((COLOUR, LABELS)).y_test), [0, 1, 2])


# --- Hugging Face ---


@pytest.fixture
def hugging(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp("hf")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets")


def of_images(hugging: Any, **more: Any) -> Any:
    features = hugging.Features(
        image=hugging.Image(),
        label=hugging.ClassLabel(names=["cat", "dog", "emu"]),
        **{name: hugging.ClassLabel(names=["x", "y"]) for name in more},
    )
    columns = {"image": [Image.fromarray(x) for x in COLOUR], "label": LABELS.tolist(), **more}
    return hugging.Dataset.from_dict(columns, features=features)


def test_columns_of_hugging_face(hugging: Any) -> None:
    data = of_images(hugging)
    expected = wl.kernel(CNTK, COLOUR)
    np.testing.assert_array_equal(wl.kernel(CNTK, data["image"]), expected)
    np.testing.assert_array_equal(wl.kernel(CNTK, data.with_format("numpy")["image"]), expected)
    model = wl.NTKClassifier(CNTK).fit(data["image"], data["label"])
    np.testing.assert_array_equal(model.predict(data["image"]), LABELS)
    with pytest.raises(TypeError, match=r"one column of a data set, got all of image, label: give"):
        wl.kernel(CNTK, data)
    both = hugging.DatasetDict(train=data, test=data)
    with pytest.raises(
        TypeError, match=r"got the splits train, test: give x1\['train'\]\[column\]"
    ):
        wl.kernel(CNTK, both)


def test_data_sets_of_hugging_face(hugging: Any) -> None:
    data = of_images(hugging)
    read = read_dataset(data)
    np.testing.assert_array_equal(read.x_train, COLOUR / 255)
    assert read.class_names == ("cat", "dog", "emu")
    part = data.select(range(6))
    splits = hugging.DatasetDict(train=data, validation=part, test=part)
    with pytest.warns(UserWarning, match="passed over 6 samples for validation"):
        both = load_dataset(splits)
    np.testing.assert_array_equal(both.x_test, COLOUR[:6] / 255)
    assert both.split == "given"
    two = of_images(hugging, coarse_label=[0, 1] * 6)
    assert read_dataset(two, label="coarse_label").class_names == ("x", "y")
    with pytest.raises(ValueError, match=r"no column 'z', got image \(Image\), label \(ClassLabel"):
        read_dataset(two, label="z")


def test_rows_of_hugging_face(hugging: Any) -> None:
    columns = dict(zip("abcd", ROWS.T.tolist(), strict=True))
    data = hugging.Dataset.from_dict({**columns, "y": LABELS.tolist(), "note": ["n"] * 12})
    read = read_dataset(data)
    np.testing.assert_array_equal(read.x_train, ROWS)
    assert read.feature_names == ("a", "b", "c", "d")
    vectors = hugging.Dataset.from_dict({"features": ROWS.tolist(), "label": LABELS.tolist()})
    np.testing.assert_array_equal(read_dataset(vectors).x_train, ROWS)
    np.testing.assert_array_equal(wl.kernel(DENSE, vectors["features"]), wl.kernel(DENSE, ROWS))
    with pytest.raises(ValueError, match=r"one column of labels, got a \(float64\)"):
        read_dataset(data.remove_columns("y"))
