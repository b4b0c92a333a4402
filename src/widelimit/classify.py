"""Classifiers from the command line: what ``widelimit fit`` and ``widelimit predict`` do."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.costs import Forecast, estimate, forecast
from widelimit.data.dataset import Dataset, Size, draw_test_set, draw_training_sets
from widelimit.data.image import Changes, fit_image, read_image, safe_formats
from widelimit.data.load import read_dataset
from widelimit.data.samples import Samples, Wanted, holds_samples, read_samples
from widelimit.data.search import find_images
from widelimit.estimators import NTKClassifier, load_model, save_model
from widelimit.estimators.base import block_size
from widelimit.estimators.checks import Net, check_options, resolve_dtype, resolve_networks
from widelimit.estimators.directions import find_directions
from widelimit.estimators.judge import alone_in_class
from widelimit.estimators.preparation import resolve_whitenings
from widelimit.estimators.regression import NoRoom
from widelimit.estimators.samples import ImageShape, resolve_shape
from widelimit.estimators.saved import check_model_folder
from widelimit.files import check_file, check_room, make_folder, said, write_atomically
from widelimit.keeping import keep, keep_and_show
from widelimit.machine import remaining
from widelimit.matrices.inputs import Channels, check_networks, number_samples, read_series
from widelimit.reading import check_regular
from widelimit.report.suspects import Suspect, find_suspects, render_sheet, to_table
from widelimit.report.table import to_cell, to_csv

__all__ = ["Fit", "Prediction", "Suspicion", "read_choice"]

_BATCH = 256  # images that are read and predicted at a time
_ROWS = 4096  # rows
_MAX_CELL = 2**15 - 1  # characters that a spreadsheet reads; csv reads four times as many


def read_choice(name: str, text: str | None) -> Any:
    """Return "loo", a number, or None.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if text is None or text == "loo":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--{name} must be a number or loo, got {text!r}") from None


@dataclass(frozen=True, eq=False)
class Fit:
    """A classifier to be fitted to the training images of a data set, and saved.

    Parameters
    ----------
    data : Dataset
        Its test set is empty, unless a test is asked for.
    chosen : ndarray of int
        Places of the training images.
    left : str
        Which images are not fitted, and why; "" if all are.
    model : NTKClassifier
    out : Path
        A folder.
    overwrite : bool
        Whether to replace a model that is there.
    """

    data: Dataset
    chosen: NDArray[np.int64]
    left: str
    model: NTKClassifier
    out: Path
    overwrite: bool

    @classmethod
    def prepare(
        cls,
        source: str,
        out: Path,
        *,
        overwrite: bool = False,
        per_class: int | None = None,
        test: str | None = None,
        channels: Channels = None,
        size: Size | None = None,
        skip_bad: bool = False,
        label: str | None = None,
        image_shape: ImageShape | None = None,
        seed: int = 0,
        **parameters: Any,
    ) -> Fit:
        """Check what can be checked before the work.

        Parameters
        ----------
        source : str
            For `load_dataset`; where no test is asked for, all of its images are fitted but those
            of a test set of its own.
        out : Path
        overwrite : bool
        per_class, seed : int or None, int
            How many images of each class to draw; None: all.
        test : str or None
            What to classify when the model is fitted: a share of each class, as "0.2", which is
            then not fitted; "given", the test set of the data; or another data set or folder.
        channels, size, skip_bad, label, image_shape
            As for `load_dataset`.
        **parameters
            Of `NTKClassifier`.

        Raises
        ------
        OSError
            If the data cannot be read, the folder exists, or the model will not be written to it.
        ValueError
            If the data or a parameter are wrong.
        """
        check_model_folder(out, overwrite=overwrite, option="--overwrite")
        reading: Any = {
            "channels": channels,
            "size": size,
            "skip_bad": skip_bad,
            "label": label,
            "image_shape": image_shape,
            "series": _reads_series(parameters.get("net")),
        }
        data, left = _with_test(read_dataset(source, **reading), test, seed, reading)
        chosen = np.arange(len(data.y_train))
        if per_class is not None:
            smallest = int(np.bincount(data.y_train).min())
            if per_class > smallest:
                held = " that are not held out" if data.split == "drawn" else ""
                raise ValueError(
                    f"--per-class must be at most {smallest}, the {data.what} of the smallest "
                    f"class of {source}{held}, got {per_class}"
                )
            rng = np.random.default_rng(seed)
            chosen = draw_training_sets(data.y_train, [per_class], rng)[0]
            drawn = f"fitted: {per_class} of each class, of {len(data.y_train):,} {data.what}"
            left = "\n".join(filter(None, [drawn, left]))
        model = NTKClassifier(**parameters, solver="cholesky")
        check_room(out, _least_size(model, data.x_train[chosen]))
        return cls(data, chosen, left, model, out, overwrite)

    def forecast(self) -> Forecast:
        """Return what the fit, and the test if there is one, cost on this machine."""
        return _forecast(self.model, self.data.x_train[self.chosen], len(self.data.y_test))

    def run(self, say: Callable[[str], None]) -> Path:
        """Fit, save, and say what came out: the model is there, whether somebody reads it or not.

        Returns
        -------
        Path
            Where the model is: `out`, or another path that a user at a terminal has named.

        Raises
        ------
        OSError
            If the model cannot be written. It is then kept elsewhere: `keep`.
        MemoryError
            Before the work, if there is no room for a factor: without one there is neither
            leave-one-out nor a probability.
        ValueError
            If a parameter is wrong, or the kernel is not positive definite.
        """
        data, model = self.data, self.model
        x, y = data.x_train[self.chosen], self._names(data.y_train[self.chosen])
        with suppress(BrokenPipeError):
            for line in (_described(data, len(x)), *self.left.splitlines()):
                say(line)
        choice = model.ridge == "loo" or model.time is not None
        other = "--ridge a number and leave --time out" if choice else "--store, a folder for it"
        with _fitting(f"give {other}, or fewer {data.what}, or raise --memory"):
            model.fit(_with_names(x, data.feature_names), y)
        if data.files_train is not None:
            model.sample_names_ = [data.files_train[int(i)] for i in self.chosen]

        def show() -> None:
            for line in _found(model):
                say(line)

        save = partial(save_model, model, overwrite=self.overwrite)
        place = keep_and_show(self.out, save, show)
        say(f"model: {place}")
        return place

    def test(self, say: Callable[[str], None]) -> None:
        """Say how many of the test images the fitted classifier labels correctly."""
        true = self._names(self.data.y_test)
        x = _with_names(self.data.x_test, self.data.feature_names)
        correct: NDArray[np.bool_] = self.model.predict(x) == true
        say(f"accuracy on {len(true):,} test {self.data.what}: {correct.mean():.2%}")

    def _names(self, labels: NDArray[np.int64]) -> NDArray[np.str_]:
        return np.array(self.data.class_names)[labels]


@contextmanager
def _fitting(remedy: str) -> Generator[None]:
    """Say of what goes wrong in a fit what somebody at the command line can do."""
    try:
        yield
    except NoRoom as error:
        raise MemoryError(f"{error.args[0]}: {remedy}") from error
    except (np.linalg.LinAlgError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _found(model: NTKClassifier) -> Iterator[str]:
    """Say what a fit has found."""
    if isinstance(model.net, list) and model.loo_curve_.ndim == 2:
        for net, curve in zip(model.net, model.loo_curve_, strict=True):
            yield f"tried: {net}, left-out residuals of mean square {-np.nanmax(curve):.4g}"
    nets: Any = model.net_ if isinstance(model.net_, tuple) else (model.net_,)
    for net in nets:
        yield f"network: {net}"
    if model.whiten is not None:
        how = ", by leave-one-out" if model.whiten == "loo" else ""
        yield f"whitening{how}: {'none' if model.whiten_ is None else f'{model.whiten_:g}'}"
    if model.ridge == "loo":
        yield f"relative ridge, by leave-one-out: {model.ridge_:.1e}"
    if model.time == "loo":
        yield f"time of training, by leave-one-out: {model.time_:.2e}"
    if model.loo_predictions_ is not None:
        yield f"leave-one-out accuracy: {model.loo_accuracy_:.2%}"


def _reads_series(net: Net) -> bool:
    """Return whether samples of three axes are series to networks, as an estimator takes them."""
    return net is not None and read_series(check_networks(net))


def _with_test(
    data: Dataset, test: str | None, seed: int, reading: dict[str, Any]
) -> tuple[Dataset, str]:
    """Return the data with the test set that is asked for, and say what is not fitted for it."""
    left = _left_out(data, "the data", "--test given classifies them")
    if test is None:
        if not left:
            return data, ""
        return replace(
            data, x_test=data.x_test[:0], y_test=data.y_test[:0], split="none", files_test=None
        ), left
    if test == "given":
        if not left:
            raise ValueError(
                f"{data.name} has no test set of its own: --test 0.2 holds a fifth out, and a "
                "folder of other images is taken, too"
            )
        return data, f"held out: {len(data.y_test):,} {data.what}, the test set of the data"
    try:
        share = float(test)
    except ValueError:
        other = read_dataset(test, fewest=1, **reading)
        tested = f"test: {len(other.y_train):,} {data.what} of {test}"
        passed = _left_out(other, test, f"--test {test}:test classifies them")
        return _join(data, other, test), "\n".join(filter(None, [tested, passed, left]))
    if not 0 < share < 1:
        raise ValueError(
            f"--test: the share must be above 0 and below 1, got {test}: a file or folder of this "
            f"name is ./{test}"
        )
    data = draw_test_set(data, share=share, seed=seed)
    total = len(data.y_train) + len(data.y_test)
    held = (
        f"held out: {len(data.y_test):,} of {total:,} {data.what}, {share:.0%} of each class, "
        f"drawn with seed {seed}"
    )
    return data, "\n".join(filter(None, [held, left]))


def _left_out(data: Dataset, name: str, remedy: str = "") -> str:
    """Say how many test images are neither fitted nor classified, and what does it; or ""."""
    if not (own := len(data.y_test)):
        return ""
    return f"left out: {own:,} test {data.what} of {name}" + (f" ({remedy})" if remedy else "")


def _join(data: Dataset, other: Dataset, name: str) -> Dataset:
    """Return the training images of one data set, with those of another as its test set."""
    places = {label: k for k, label in enumerate(data.class_names)}
    if unknown := [label for label in other.class_names if label not in places]:
        raise ValueError(
            f"{name} must have the classes of {data.name}, got also {', '.join(unknown[:5])}"
        )
    other = _like(data, other, name)
    labels = np.array([places[label] for label in other.class_names], np.int64)
    return replace(
        data,
        x_test=other.x_train,
        y_test=labels[other.y_train],
        split="given",
        files_test=other.files_train,
    )


def _forecast(model: NTKClassifier, x: NDArray[Any], test: int = 0) -> Forecast:
    found = x.shape[1:] if x.ndim > 2 else None
    try:
        check_options(model)
        shape = resolve_shape(model.image_shape, found, x[0].size, model.channels, model.net)
        networks = resolve_networks(model.net, shape, x[0].size)
    except TypeError as error:
        raise ValueError(str(error)) from error
    tried = len(resolve_whitenings(model.whiten))
    return forecast(
        networks,
        x.shape[1:] if shape is None else shape,
        len(x),
        kinds=(model.kind,),
        kernels=tried,
        systems=tried * (1 if model.combine == "mean" else len(networks)),
        test=test,
        together=model.combine == "mean",
        dtype=resolve_dtype(model.dtype, networks),
        backend=model.backend,
        threads=model.threads,
        solve="eigenvectors" if "loo" in (model.ridge, model.time) else "factor",
    )


def _like(data: Dataset, other: Dataset, name: str) -> Dataset:
    """Return a data set with the samples that another one has; ValueError if it has others."""
    known, columns = data.feature_names, other.feature_names
    if known is not None and columns is not None and known != columns:
        if missing := [column for column in known if column not in columns]:
            raise ValueError(
                f"{name} must have the columns of {data.name}, got no "
                f"{', '.join(map(repr, missing[:5]))}"
            )
        order = [columns.index(column) for column in known]
        other = replace(
            other,
            x_train=other.x_train[:, order],
            x_test=other.x_test[:0, order],
            y_test=other.y_test[:0],
            split="none",
            files_test=None,
            feature_names=known,
        )
    if other.x_train.shape[1:] != data.x_train.shape[1:]:
        images = not (data.is_rows or other.is_rows)
        remedy = ": give --size, or make them grey or coloured alike" if images else ""
        raise ValueError(
            f"{name} must have samples like those of {data.name}, {_sample(data)}, got "
            f"{_sample(other)}{remedy}"
        )
    if other.normalised != data.normalised:
        raise ValueError(f"{name} and {data.name} must be normalised alike, only one of them is")
    return other


def _with_names(x: FloatArray, names: Sequence[str] | None) -> Any:
    """Return rows as a data frame, if their columns have names: the model then knows them."""
    if names is None:
        return x
    pandas: Any = importlib.import_module("pandas")  # which has read the table
    return pandas.DataFrame(x, columns=list(names))


def _sample(data: Dataset) -> str:
    return data.about if data.is_rows or data.is_series else _shape(data.image_shape)


def _described(data: Dataset, count: int) -> str:
    """Say what is fitted."""
    images = not (data.is_rows or data.is_series)
    about = f"images {_shape(data.image_shape)}" if images else data.about
    notes = [f"{data.n_classes} classes"]
    if data.normalised and not data.is_series:
        notes.append("normalised, as they are")
    if data.label_name is not None:
        notes.append(f"the label is {data.label_name!r}")
    return f"{data.name}: {count:,} {about}, {', '.join(notes)}"


def _least_size(model: NTKClassifier, x: NDArray[Any]) -> int:
    """Return the bytes that a model of some images will have at least.

    Its samples; and a factor, unless that will have to stay in a store, or there may be none.
    """
    rows = len(find_directions(x, number_samples(x, None)[0]).first)
    factor = 8 * rows**2
    networks = len(model.net) if isinstance(model.net, list) else 1
    # At most: three of eigenvectors, the kernels, and their mean.
    in_memory = (3 + networks + 1) * factor <= remaining(model.memory)
    return rows * x[0].nbytes + (factor if in_memory else 0)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A saved classifier, and what is to be classified: files of images, and rows of others.

    Parameters
    ----------
    model : NTKClassifier
    wanted : Wanted
        What it reads.
    inputs : list of Path or Samples
        A file of one image, or the samples of a table or of an array.
    """

    model: NTKClassifier
    wanted: Wanted
    inputs: list[Path | Samples]

    @classmethod
    def prepare(
        cls,
        folder: Path,
        inputs: Sequence[Path],
        out: Path | None = None,
        *,
        overwrite: bool = False,
        array: str | None = None,
        channels: Channels = None,
    ) -> Prediction:
        """Load the model and find what to classify, and check what can be checked before the work.

        Parameters
        ----------
        folder : Path
            Of a model.
        inputs : sequence of Path
            Files of images, and folders that are searched for some: `find_images`; tables and
            files of arrays: `read_samples`.
        out : Path or None
            Where the table will be written.
        overwrite : bool
            Whether a table that is there is replaced.
        array, channels
            As for `read_samples`.

        Raises
        ------
        OSError
            If a file or folder is not there, or nothing can be written to `out`.
        ValueError
            If the model is no classifier, a folder has no images, a file no samples that the model
            reads, or is no regular file.
        """
        if out is not None:
            check_file(out, replace=overwrite)
        model = load_model(folder)
        if not isinstance(model, NTKClassifier):
            raise ValueError(f"{folder} must hold a classifier, got a {type(model).__name__}")
        if any(len(to_cell(str(label))) > _MAX_CELL for label in model.classes_):
            raise ValueError(f"{folder} has a label of more than {_MAX_CELL:,} characters")
        wanted = _wanted(model, folder)
        if not any(map(holds_samples, inputs)):
            given = "--array" if array is not None else "--channels first"
            if array is not None or channels == "first":
                raise ValueError(f"{given} is for files of arrays, got {inputs[0]}")
        found: list[Path | Samples] = []
        for path in inputs:
            if not path.exists():
                raise FileNotFoundError(f"there is no file or folder {path}")
            if path.is_dir():
                _check_reads_images(folder, wanted)
                found += _images_in(path)
                continue
            check_regular(path)
            if holds_samples(path):
                found.append(read_samples(path, wanted, array=array, channels=channels))
            else:
                _check_reads_images(folder, wanted)
                found.append(path)
        return cls(model, wanted, found)

    @property
    def said(self) -> str:
        """How many there are, of what: ``5 images and 150 rows``."""
        images = sum(isinstance(entry, Path) for entry in self.inputs)
        rows = [len(entry.x) for entry in self.inputs if isinstance(entry, Samples)]
        what = "rows" if self.wanted.shape is None else "images in tables or arrays"
        what = "series" if self.wanted.series else what
        counts = [f"{images:,} images"] if images or not rows else []
        return " and ".join([*counts, *([f"{sum(rows):,} {what}"] if rows else [])])

    def forecast(self) -> Forecast:
        """Return what the kernel with the training samples costs on this machine."""
        model, wanted = self.model, self.wanted
        nets: Any = model.net_ if isinstance(model.net_, tuple) else (model.net_,)
        shape = (wanted.n_features,) if wanted.shape is None else wanted.shape
        fitted: Any = model.x_fit_
        count = sum(1 if isinstance(entry, Path) else len(entry.x) for entry in self.inputs)
        images = all(isinstance(entry, Path) for entry in self.inputs)
        at_once = min(count, _BATCH if images else _ROWS, block_size(len(fitted)))
        how: Any = {"kinds": (model.kind_,), "dtype": model.dtype_}
        how |= {"backend": model.backend, "threads": model.threads}
        cost = estimate(nets, shape, count, len(fitted), **how)
        part = estimate(nets, shape, at_once, len(fitted), **how)
        return Forecast(replace(cost, memory=part.memory, result=part.result), 0.0, [])

    def run(self, warn: Callable[[str], None]) -> str:
        """Classify all of it; return the table as `to_csv` has it, and warn of changes to images.

        The row of an image that cannot be read has no class, and its last cell says why. A model
        without leave-one-out predictions has no probabilities: then there are no columns of them,
        which is said.
        """
        classes: list[Any] = self.model.classes_.tolist() if self._is_calibrated else []
        if not classes:
            warn(
                "warning: the model gives classes without probabilities: it was solved by "
                "conjugate gradients, which leave no sample out"
            )
        # Each row has the name of its image, or of its row.
        head = "image" if any(isinstance(entry, Path) for entry in self.inputs) else "row"
        rows: list[list[Any]] = [[head, "class", *classes, "problem"]]
        changes, bad, total = Changes(), 0, 0
        for names, x, problems in self._batches(changes):
            classified = iter(self._classified(x) if len(x) else [])
            for name in names:
                if name in problems:
                    rows.append([name, "", *[""] * len(classes), problems[name]])
                else:
                    rows.append([name, *next(classified), ""])
            bad, total = bad + len(problems), total + len(names)
        for line in changes.lines():
            warn(f"warning: {line}")
        if bad:
            warn(
                f"warning: {bad:,} of {total:,} images could not be read: the column "
                "problem says why"
            )
        return to_csv(rows)

    @property
    def _is_calibrated(self) -> bool:
        return self.model.loo_predictions_ is not None

    def _classified(self, x: NDArray[Any]) -> list[list[Any]]:
        """Return the class, and the probabilities if there are some, of each sample."""
        samples, classes = self._named(x), self.model.classes_.tolist()
        if not self._is_calibrated:
            return [[label] for label in self.model.predict(samples).tolist()]
        return [
            [classes[int(row.argmax())], *(f"{chance:.6g}" for chance in row)]
            for row in self.model.predict_proba(samples)
        ]

    def _batches(
        self, changes: Changes
    ) -> Iterator[tuple[list[str], NDArray[Any], dict[str, str]]]:
        """Yield names, the samples that could be read, and why others could not."""
        for is_image, group in groupby(self.inputs, lambda entry: isinstance(entry, Path)):
            if not is_image:
                for entry in cast("Iterator[Samples]", group):
                    for start in range(0, len(entry.x), _ROWS):
                        part = slice(start, start + _ROWS)
                        yield entry.names[part], entry.x[part], {}
                continue
            paths = list(cast("Iterator[Path]", group))
            for start in range(0, len(paths), _BATCH):
                x: list[FloatArray] = []
                problems: dict[str, str] = {}
                part = paths[start : start + _BATCH]
                for path in part:
                    try:
                        x.append(self._read(path, changes))
                    except (OSError, ValueError) as error:
                        reason = said(error) if isinstance(error, OSError) else str(error)
                        problems[str(path)] = reason
                yield list(map(str, part)), np.stack(x) if x else np.empty(0), problems

    def _named(self, x: NDArray[Any]) -> Any:
        return _with_names(x, self.wanted.feature_names)

    def _read(self, path: Path, changes: Changes) -> FloatArray:
        image = read_image(path, path.parent, safe_formats(), changes)
        shape = self.wanted.shape
        assert shape is not None
        values, made = fit_image(image, shape)
        for change in made:
            wanted = f"{change} to {_shape(shape)}, as those the model was fitted to"
            changes.add(wanted, f"{path}, {_shape(image.shape)}")
        return values

    @staticmethod
    def write(text: str, out: Path) -> Path:
        """Write the table to a file, or where it can be kept: `keep`."""
        return keep(out, lambda path: write_atomically(path, text))


def _wanted(model: NTKClassifier, folder: Path) -> Wanted:
    """Return what a model reads."""
    if model.x_fit_ is None:
        raise ValueError(
            f"{folder} must hold a model of a network, it has a precomputed kernel: use it in "
            "Python"
        )
    shape = model.image_shape_
    names: Any = getattr(model, "feature_names_in_", None)
    nets: Any = model.net_ if isinstance(model.net_, tuple) else (model.net_,)
    state: Any = model
    return Wanted(
        shape,
        model.n_features_in_,
        None if names is None or shape is not None else [str(name) for name in names],
        normalised=shape is not None and state._signed,
        series=shape is not None and shape[0] == 1 and _reads_series(list(nets)),
    )


def _check_reads_images(folder: Path, wanted: Wanted) -> None:
    """Refuse files of images for a model that reads something else."""
    if wanted.shape is None or wanted.series or wanted.shape[2] not in (1, 3):
        rows_or_series = wanted.shape is None or wanted.series
        reads = wanted.about if rows_or_series else _shape(cast("ImageShape", wanted.shape))
        raise ValueError(
            f"{folder} must hold a model of grey or colour images, it reads {reads}: give a table "
            "(CSV) or a file of arrays (.npz)"
        )
    if wanted.normalised:
        raise ValueError(
            f"{folder} holds a model of images that were normalised, and files have pixels in "
            "[0, 1]: give arrays (.npz) that are prepared as those it was fitted to"
        )


def _images_in(folder: Path) -> list[Path]:
    found = find_images(folder)
    if not found.images:
        passed = f" ({found})" if found.passed else ""
        raise ValueError(f"{folder} must hold images, there are none{passed}")
    if found.passed:
        warnings.warn(str(found), stacklevel=3)
    return found.images


@dataclass(frozen=True, eq=False)
class Suspicion:
    """A search for images with wrong labels, by leave-one-out; all that can be checked has been."""

    data: Dataset
    model: NTKClassifier
    folder: Path

    @classmethod
    def prepare(
        cls,
        source: str,
        folder: Path,
        *,
        overwrite: bool = False,
        channels: Channels = None,
        size: Size | None = None,
        skip_bad: bool = False,
        label: str | None = None,
        image_shape: ImageShape | None = None,
        **parameters: Any,
    ) -> Suspicion:
        """Load the data and make sure that the result can be written.

        Parameters
        ----------
        source, channels, size, skip_bad, label, image_shape
            As for `load_dataset`; all images but those of a test set of the data's own.
        folder : Path
            For table and sheet; is made if it does not exist.
        overwrite : bool
            Whether those that are there are replaced.
        **parameters
            Of `NTKClassifier`.

        Raises
        ------
        OSError, ValueError
            If the data cannot be read, or nothing can be written to the folder.
        """
        data = read_dataset(
            source,
            channels=channels,
            size=size,
            skip_bad=skip_bad,
            label=label,
            image_shape=image_shape,
            series=_reads_series(parameters.get("net")),
        )
        make_folder(folder)
        for path in _sheet_files(folder):
            check_file(path, replace=overwrite)
        return cls(data, NTKClassifier(**parameters, solver="cholesky"), folder)

    @property
    def left(self) -> str:
        """Which images are not looked at; "" if all are."""
        return _left_out(self.data, "the data")

    def forecast(self) -> Forecast:
        """Return what the fit costs on this machine."""
        return _forecast(self.model, self.data.x_train)

    def run(self) -> tuple[list[Suspect], int, Path]:
        """Fit, find the suspects, and write table and sheet.

        Returns
        -------
        list of Suspect
        int
            How many images could not be judged: those that are alone in their classes.
        Path
            Where the sheet is.

        Raises
        ------
        OSError
            If they cannot be written. They are then kept elsewhere: `keep`.
        MemoryError
            Before the work, if there is no room for a factor.
        ValueError
            If the kernel is not positive definite.
        """
        data, model = self.data, self.model
        choice = "--ridge a number, or " if model.ridge == "loo" else ""
        with _fitting(f"give {choice}fewer {data.what}"):
            model.fit(data.x_train, np.array(data.class_names)[data.y_train])
        assert model.loo_predictions_ is not None
        assert model.temperature_ is not None
        state: Any = model
        alone = alone_in_class(state._training)
        places = {str(label): k for k, label in enumerate(model.classes_)}
        outputs = np.full((len(data.y_train), data.n_classes), -np.inf)  # of classes without images
        for k, name in enumerate(data.class_names):
            if name in places:
                outputs[:, k] = model.loo_predictions_[:, places[name]]
        found = find_suspects(data, outputs, model.temperature_, ~alone)
        count = int(np.count_nonzero(alone))

        def write(folder: Path) -> None:
            make_folder(folder)
            table, sheet = _sheet_files(folder)
            write_atomically(table, to_table(found))
            write_atomically(sheet, render_sheet(data, found, count))

        return found, count, _sheet_files(keep(self.folder, write))[1]


def _sheet_files(folder: Path) -> tuple[Path, Path]:
    return folder / "suspects.csv", folder / "suspects.html"


def _shape(shape: Sequence[int]) -> str:
    h, w, c = shape
    return f"{h} x {w} {'grey' if c == 1 else 'colour' if c == 3 else f'x {c}'}"
