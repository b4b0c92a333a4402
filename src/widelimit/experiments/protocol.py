"""The protocol of the paper's experiments: which images, how prepared, and what is flipped.

As in Section 5 and Section A of the paper: the first n training images, pixels / 255, standardised
by channel with the mean and deviation of these training images, labels -0.1 and 0.9
(`encode_labels` for ten classes), no ridge, quadratic loss, the largest output. Whatever differs is
an option.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.data.dataset import Dataset, draw_training_sets
from widelimit.estimators.samples import Training
from widelimit.estimators.scaling import ChannelStandardiser, ImageNormaliser
from widelimit.estimators.whitening import ZCA
from widelimit.experiments.interpolation import put_together

__all__ = ["Draw", "Flips", "Part", "Preprocessing", "Protocol", "accuracy", "flip", "join_parts"]

Preprocessing: TypeAlias = Literal["standardise", "zca", "normalise", "none"]
Flips: TypeAlias = Literal["none", "average", "double"]

# Of training images with mirror images: 16 blocks of rows have 1/16 more pairs than half a matrix.
_MOST_BLOCKS, _LEAST_ROWS = 16, 64

_TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "standardise": ChannelStandardiser,
    "zca": ZCA,
    "normalise": ImageNormaliser,
}


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix that is computed, of which there may be several for one kernel.

    Parameters
    ----------
    of : str
        "train", "test", and with averaged flips "train-flipped" and "test-flipped".
    rows, columns : int, int or None
        Images. columns = None: symmetric.
    number : int or None
        A block of rows, from 1: those up to the diagonal, of as many of the first columns.
    """

    of: str
    rows: int
    columns: int | None
    number: int | None = None

    @property
    def name(self) -> str:
        """What it is of, and its number."""
        return self.of if self.number is None else f"{self.of}-{self.number}"

    @property
    def is_flipped(self) -> bool:
        """Whether it is between images and mirror images."""
        return self.of.endswith("-flipped")

    @property
    def pairs(self) -> int:
        """Pairs of images; those of a symmetric matrix count once."""
        n = self.rows
        return n * (n + 1) // 2 if self.columns is None else n * self.columns


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Images of one draw, prepared; with flips="double" each training image also mirrored.

    Parameters
    ----------
    x_train : ndarray of float64, shape (n, h, w, c)
    y_train : ndarray of int64, shape (n,)
        Classes.
    x_test : ndarray of float64, shape (m, h, w, c)
    y_test : ndarray of int64, shape (m,)
    train : ndarray of int64
        Places of the training images in the data set, each once.
    test : ndarray of int64, shape (m,)
        Places of the test images.
    training : Training
        Targets of the training images, of which equal ones are one row.
    """

    x_train: FloatArray
    y_train: IntArray
    x_test: FloatArray
    y_test: IntArray
    train: IntArray
    test: IntArray
    training: Training

    def sides(self, part: Part) -> tuple[FloatArray, FloatArray | None]:
        """Return the images of rows and columns of a part; None: the same."""
        rows = self.x_train if part.of.startswith("train") else self.x_test
        if part.columns is None:
            return rows, None
        columns = self.x_train[: part.columns]
        if part.number is not None:
            rows = rows[part.columns - part.rows : part.columns]
        return rows, flip(columns) if part.is_flipped else columns


@dataclass(frozen=True, slots=True)
class Protocol:
    """Which images of a data set are used, and how they are prepared.

    Parameters
    ----------
    n_train, n_test : int
        Training and test images, 1 or more.
    n_classes : int or None
        The first classes alone are used: 2 is the paper's CIFAR-2. None: all.
    balanced : bool
        False: the first n training images. True: as many of each class, drawn.
    seed : int
        Of what is drawn, 0 or more: draw i is that of ``numpy.random.default_rng([seed, i])``.
    draws : int
        Training sets; more than one only if they are drawn. Test images are always the first.
    preprocessing : {"standardise", "zca", "normalise", "none"}
        Fitted to the training images of each draw: `ChannelStandardiser` (the paper's), `ZCA`,
        `ImageNormaliser`.
    flips : {"none", "average", "double"}
        Horizontal flips of the prepared images. "average": the kernel
        ``(k(x, z) + k(x, flip z)) / 2``. "double": a training set with the mirror image of each
        image, too.

    Raises
    ------
    ValueError
        If an option is not as described.

    Notes
    -----
    Flips are for networks that commute with them, ``k(flip x, flip z) = k(x, z)``: all whose
    windows do not move on by more than a pixel and so leave columns out on one side. Then both
    kinds of flips predict the same function without a ridge; with the absolute ridge r of "double"
    it is that of "average" with r / 2. For n training images "average" takes about ``n^2`` pairs,
    ``k(x, flip z) = k(z, flip x)`` computed once, "double" ``2 n^2``.
    """

    n_train: int
    n_test: int
    n_classes: int | None = None
    balanced: bool = False
    seed: int = 0
    draws: int = 1
    preprocessing: Preprocessing = "standardise"
    flips: Flips = "none"

    def __post_init__(self) -> None:
        for name, least in (("n_train", 1), ("n_test", 1), ("seed", 0), ("draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.n_classes is not None and self.n_classes < 2:
            raise ValueError(f"n_classes must be 2 or more, or None, got {self.n_classes}")
        for name, allowed in (("preprocessing", Preprocessing), ("flips", Flips)):
            if getattr(self, name) not in get_args(allowed):
                words = ", ".join(get_args(allowed))
                raise ValueError(f"{name} must be one of {words}, got {getattr(self, name)!r}")
        if not self.balanced and (self.draws > 1 or self.seed):
            raise ValueError(
                "draws and a seed are of balanced training sets, the first images are always the "
                f"same: got draws={self.draws}, seed={self.seed}, add balanced or leave them out"
            )

    def check(self, dataset: Dataset) -> None:
        """Refuse a data set that has not what is asked for.

        Raises
        ------
        ValueError
        """
        classes, y_train, y_test = self._labels(dataset)
        of = "" if self.n_classes is None else f" of the first {classes} classes"
        for name, found, wanted in (
            ("training", y_train.size, self.n_train),
            ("test", y_test.size, self.n_test),
        ):
            if found < wanted:
                raise ValueError(
                    f"{dataset.name} must have {wanted:,} {name} images{of}, got {found:,}: ask "
                    "for fewer"
                )
        if self.balanced:
            each, rest = divmod(self.n_train, classes)
            if rest or not each:
                raise ValueError(
                    f"a balanced training set of {classes} classes needs a multiple of {classes} "
                    f"images, got {self.n_train}: say {max(1, each) * classes}"
                )
            fewest = int(np.bincount(y_train, minlength=classes).min())
            if fewest < each:
                raise ValueError(
                    f"{dataset.name} must have {each} training images of every class, got "
                    f"{fewest} of one: ask for at most {fewest * classes}"
                )
            return
        missing = classes - np.unique(y_train[: self.n_train]).size
        if missing:
            raise ValueError(
                f"the first {self.n_train} training images of {dataset.name} have none of "
                f"{missing} of the {classes} classes: take more, or a balanced training set"
            )

    def takes_all(self, dataset: Dataset) -> bool:
        """Whether each training set is all that there is, so that no two draws differ."""
        return self.n_train == self._labels(dataset)[1].size

    def draw(self, dataset: Dataset, i: int) -> Draw:
        """Return the images of a draw, of a data set that `check` has seen.

        Parameters
        ----------
        dataset : Dataset
        i : int
            From 0.
        """
        classes, y_train, y_test = self._labels(dataset)
        of_classes = np.flatnonzero(dataset.y_train < classes)
        chosen = np.arange(self.n_train)
        if self.balanced:
            rng = np.random.default_rng([self.seed, i])
            chosen = draw_training_sets(y_train, [self.n_train // classes], rng)[0]
        train = of_classes[chosen]
        test = np.flatnonzero(dataset.y_test < classes)[: self.n_test]
        x_train, x_test = dataset.x_train[train], dataset.x_test[test]
        doubled = self.flips == "double"
        training = put_together(x_train, y_train[chosen], classes, doubled=doubled)
        if self.preprocessing != "none":
            transformer = _TRANSFORMERS[self.preprocessing]().fit(x_train)
            x_train = transformer.transform(x_train)
            x_test = transformer.transform(x_test)
        labels = y_train[chosen]
        if doubled:
            x_train = np.concatenate([x_train, flip(x_train)])
            labels = np.concatenate([labels, labels])
        return Draw(x_train, labels, x_test, y_test[: self.n_test], train, test, training)

    def parts(self) -> tuple[Part, ...]:
        """Return the matrices that one draw takes."""
        n, m = self.n_train * (2 if self.flips == "double" else 1), self.n_test
        plain = (Part("train", n, None), Part("test", m, n))
        if self.flips != "average":
            return plain
        blocks = min(_MOST_BLOCKS, max(1, n // _LEAST_ROWS))
        cuts = [n * i // blocks for i in range(blocks + 1)]
        train = (
            Part("train-flipped", stop - start, stop, i)
            for i, (start, stop) in enumerate(itertools.pairwise(cuts), 1)
        )
        return (*plain, *train, Part("test-flipped", m, n))

    def _labels(self, dataset: Dataset) -> tuple[int, IntArray, IntArray]:
        """Return how many classes there are, and the labels of their images."""
        classes = self.n_classes or dataset.n_classes
        if classes > dataset.n_classes:
            raise ValueError(
                f"{dataset.name} must have {classes} classes, got {dataset.n_classes}: ask for "
                "fewer"
            )
        y_train, y_test = dataset.y_train, dataset.y_test
        return classes, y_train[y_train < classes], y_test[y_test < classes]


def flip(x: NDArray[Any]) -> NDArray[Any]:
    """Return images (n, h, w, c) mirrored: left is right."""
    return x[:, :, ::-1]


def join_parts(matrices: dict[str, Any]) -> tuple[Any, Any]:
    """Return the kernel of the training images, and that of test images with them.

    Parameters
    ----------
    matrices : dict of Gram or ndarray
        By the names of `Protocol.parts`.

    Returns
    -------
    train, test : matrices of shape (n, n) and (m, n)
        As they were given; with averaged flips ndarrays of float64, the first one symmetric.
    """
    if "test-flipped" not in matrices:
        return matrices["train"], matrices["test"]
    train, test = (np.array(matrices[name], np.float64) for name in ("train", "test"))
    test += np.asarray(matrices["test-flipped"], np.float64)
    for name, block in matrices.items():
        if not name.startswith("train-flipped"):
            continue
        rows, stop = block.shape
        start = stop - rows
        train[start:stop, :stop] += np.asarray(block, np.float64)
        train[:start, start:stop] = train[start:stop, :start].T  # k(x, flip z) = k(z, flip x)
        square = train[start:stop, start:stop]
        square[...] = np.tril(square) + np.tril(square, -1).T
    train /= 2
    test /= 2
    return train, test


def accuracy(outputs: FloatArray, labels: IntArray) -> float:
    """Return the share of samples whose largest output is that of their class."""
    return int(np.count_nonzero(outputs.argmax(axis=1) == labels)) / labels.size
