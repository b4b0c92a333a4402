"""The images of a design, and the training and test sets that are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from widelimit.arrays import FloatArray, IntArray
from widelimit.data.dataset import Dataset, draw_training_sets
from widelimit.experiments.design import Design, shrink_images

__all__ = ["Draw", "Sets", "file_of", "take"]


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Training sets and test images of one draw.

    Parameters
    ----------
    train : list of ndarray of int64
        Places in the pool, one array for each size, each within the next.
    test : ndarray of int64
        Places among the test images of `Sets`.
    """

    train: list[IntArray]
    test: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Sets:
    """Pool and test images of a design, with labels.

    Parameters
    ----------
    x_pool : ndarray of float64, shape (n, h, w, c)
    y_pool : ndarray of int64, shape (n,)
    x_test : ndarray of float64, shape (m, h, w, c)
        The pool itself if test images are drawn from it.
    y_test, test_numbers : ndarray of int64, shape (m,)
        Labels, and numbers as in `Design`.
    draws : list of Draw
    """

    x_pool: FloatArray
    y_pool: IntArray
    x_test: FloatArray
    y_test: IntArray
    test_numbers: IntArray
    draws: list[Draw]

    @classmethod
    def of(cls, dataset: Dataset, design: Design) -> Sets:
        """Take the images of a design from its data set and draw the training sets."""
        labels = np.concatenate([dataset.y_train, dataset.y_test])
        x_pool, y_pool = (
            shrink_images(take(dataset, design.pool), design.shrink),
            labels[design.pool],
        )
        numbers = design.pool if design.test is None else design.test
        x_test = x_pool
        if design.test is not None:
            x_test = shrink_images(take(dataset, design.test), design.shrink)
        draws: list[Draw] = []
        for i in range(design.draws):
            rng = np.random.default_rng([design.seed, 2, i])
            train = draw_training_sets(y_pool, design.per_class, rng)
            test = np.arange(numbers.size)
            draws.append(
                Draw(train, np.setdiff1d(test, train[-1]) if design.test is None else test)
            )
        return cls(x_pool, y_pool, x_test, labels[numbers], numbers, draws)


def file_of(dataset: Dataset, number: int) -> str | None:
    """Name of the file of an image, by number as `take` has it; None if it is of none."""
    n = dataset.y_train.size
    files = dataset.files_train if number < n else dataset.files_test
    return None if files is None else files[number if number < n else number - n]


def take(dataset: Dataset, numbers: IntArray) -> FloatArray:
    """Images by number: those of the training set first, then those of the test set."""
    n = dataset.y_train.size
    images = np.empty((numbers.size, *dataset.image_shape))
    first = numbers < n
    images[first] = dataset.x_train[numbers[first]]
    images[~first] = dataset.x_test[numbers[~first] - n]
    return images
