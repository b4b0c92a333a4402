"""What the learning curve will compute, decided before it starts and without looking at a result.

A design depends on the data, the seed and the planned time, never on the speed of this machine: the
same command draws the same images everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from widelimit.architectures import cntk_gap
from widelimit.arrays import FloatArray, IntArray
from widelimit.data.dataset import Dataset
from widelimit.program import compile_networks

__all__ = ["DEPTH", "Design", "fixed_design", "make_design", "shrink_images"]

DEPTH = 11  # of both convolutional kernels: the depth at which the paper's Table 1 is best
MAX_TRAINING = 1280
_MAX_IMAGES = 4_000  # in the pool, and in the test set: what a Gram matrix in memory allows easily
# Element-layers a second that are planned with: two processors as of 2024, AVX-512, float32.
_PLANNED_SPEED = 2 * 2.0e9
_FLOAT64_COST = 3.0  # of an element-layer, compared with float32
# Images are made smaller if fewer than these could be compared with each other otherwise.
_FEWEST_IMAGES = 100
_FEWEST_PER_CLASS = 20
_FEWEST_TEST = 200


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """Images, sizes and arithmetic of a learning curve.

    Images have numbers: those of the training set of the `Dataset` first, then its test set.

    Parameters
    ----------
    pool : ndarray of int64
        Numbers of the images that training sets are drawn from, in ascending order.
    test : ndarray of int64 or None
        Numbers of the test images. None: in every draw, the images of the pool that are in none
        of its training sets.
    per_class : tuple of int
        Images of each class in the training sets: 1, 2, 4 and so on.
    n_classes : int
        Number of classes.
    shrink : int
        Images are averaged over blocks of ``shrink x shrink`` pixels.
    dtype : {"float32", "float64"}
        Of the CNTK-GAP kernel; the others cost little and are computed in float64.
    pairs : int
        Pairs of images in its Gram matrices.
    element_layers : float
        Cost of these pairs.
    seed, draws : int
        Seed and number of draws of training sets.
    notes : tuple of str
        What a reader must know about the choice: sentences.
    """

    pool: IntArray
    test: IntArray | None
    per_class: tuple[int, ...]
    n_classes: int
    shrink: int
    dtype: Literal["float32", "float64"]
    pairs: int
    element_layers: float
    seed: int
    draws: int
    notes: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of images in the training sets."""
        return tuple(count * self.n_classes for count in self.per_class)


def make_design(dataset: Dataset, *, draws: int = 5, seed: int = 0, minutes: float = 2.5) -> Design:
    """Choose images, training sizes and dtype so that CNTK-GAP takes about the planned time.

    Parameters
    ----------
    dataset : Dataset
        If its split is not "given", training and test images are divided anew in every draw.
    draws : int
        Training sets of each size, at least 1.
    seed : int
        Of everything that is drawn, at least 0.
    minutes : float
        Planned time of the CNTK-GAP kernel on two modern processors, more than 0.

    Returns
    -------
    Design

    Raises
    ------
    ValueError
        If a parameter is outside its range, a class has too few images, or all images are zero.

    Notes
    -----
    CNTK-GAP costs ``(h w)^2`` element-layers for each convolution and pair of images. It is
    computed in float64 if all images of the data set can be used in half of the planned time.
    """
    _check(dataset, draws, seed, minutes)
    budget = minutes * 60 * _PLANNED_SPEED
    shrink = _choose_shrink(dataset, budget)
    cost = _cost_per_pair(_shrunk(dataset, shrink))
    pool, test = _choose_images(dataset, budget / cost, np.random.default_rng([seed, 1]))
    pairs = _pairs(pool.size) + (0 if test is None else pool.size * test.size)
    design = Design(
        pool=pool,
        test=test,
        per_class=_choose_sizes(dataset, pool, test),
        n_classes=dataset.n_classes,
        shrink=shrink,
        dtype="float64" if pairs * cost * _FLOAT64_COST <= budget / 2 else "float32",
        pairs=pairs,
        element_layers=float(pairs) * cost,
        seed=seed,
        draws=draws,
        notes=(),
    )
    return replace(design, notes=tuple(_notes(dataset, design, minutes)))


def fixed_design(
    dataset: Dataset, *, largest: int, n_test: int | None = None, draws: int = 20, seed: int = 0
) -> Design:
    """Return a design with training sets up to a number of images, whatever that takes.

    Parameters
    ----------
    dataset : Dataset
        Its first test images are used; if its split is not "given", those that a draw leaves over.
    largest : int
        Images in the largest training set, at most: sizes are 1, 2, 4, ... times the number of
        classes. The pool is half as large again, where there are so many, so that draws differ.
    n_test : int or None
        Test images of a given split. None: all.
    draws, seed : int
        As for `make_design`.

    Raises
    ------
    ValueError
        If a parameter is outside its range, or there are too few images.
    """
    _check(dataset, draws, seed, 1.0)
    classes, given = dataset.n_classes, dataset.split == "given"
    labels = dataset.y_train if given else _labels(dataset)
    smallest = int(np.bincount(labels, minlength=classes).min())
    per_class = min(largest // classes, smallest if given else smallest * 4 // 5)
    if per_class < 1:
        raise ValueError(
            f"the largest training set must have an image of each of {classes} classes, got "
            f"{largest}"
        )
    per_class = 2 ** (per_class.bit_length() - 1)
    count = min(smallest, per_class + max(1, per_class // 2))
    pool = _draw_balanced(labels, count, np.random.default_rng([seed, 1]))
    test, tested = None, 0
    if given:
        tested = dataset.y_test.size if n_test is None else n_test
        if not 1 <= tested <= dataset.y_test.size:
            raise ValueError(
                f"{dataset.name} must have {tested:,} test images, got {dataset.y_test.size:,}"
            )
        test = dataset.y_train.size + np.arange(tested)
    elif n_test is not None:
        raise ValueError(
            f"{dataset.name} has no test set of its own: each draw is tested on what it leaves "
            "over, leave n_test out"
        )
    pairs = _pairs(pool.size) + pool.size * tested
    return Design(
        pool=pool,
        test=test,
        per_class=tuple(2**j for j in range(per_class.bit_length())),
        n_classes=classes,
        shrink=1,
        dtype="float32",
        pairs=pairs,
        element_layers=float(pairs) * _cost_per_pair(dataset.image_shape),
        seed=seed,
        draws=draws,
        notes=(),
    )


def shrink_images(x: FloatArray, factor: int) -> FloatArray:
    """Average images (n, h, w, c) over blocks of pixels; what fills no block is cut off."""
    n, h, w, c = x.shape
    if factor == 1:
        return x
    rows, columns = h // factor, w // factor
    cut = x[:, : rows * factor, : columns * factor]
    return cut.reshape(n, rows, factor, columns, factor, c).mean(axis=(2, 4))


def _labels(dataset: Dataset) -> IntArray:
    return np.concatenate([dataset.y_train, dataset.y_test])


def _shrunk(dataset: Dataset, shrink: int) -> tuple[int, int, int]:
    h, w, c = dataset.image_shape
    return h // shrink, w // shrink, c


def _check(dataset: Dataset, draws: int, seed: int, minutes: float) -> None:
    if draws < 1 or seed < 0 or not 0 < minutes < 1e6:
        raise ValueError(
            "expected draws >= 1, seed >= 0 and minutes from 0 to a million, got "
            f"draws={draws}, seed={seed}, minutes={minutes}"
        )
    if not dataset.x_train.any():
        raise ValueError(f"{dataset.name}: all training images are zero, there is nothing to learn")
    drawn = dataset.split != "given"
    labels = _labels(dataset) if drawn else dataset.y_train
    counts = np.bincount(labels, minlength=dataset.n_classes)
    least = 2 if drawn else 1
    if counts.min() < least:
        name = dataset.class_names[int(counts.argmin())]
        raise ValueError(
            f"{dataset.name}: every class must have at least {least} training "
            f"image{'s' * drawn}, got {counts.min()} of {name!r}: add some or leave it out"
        )


def _cost_per_pair(shape: tuple[int, int, int]) -> int:
    ((program, _),) = compile_networks([cntk_gap(DEPTH)], shape, ["ntk"])
    return program.element_layers


def _choose_shrink(dataset: Dataset, budget: float) -> int:
    h, w, _ = dataset.image_shape
    n = dataset.y_train.size + dataset.y_test.size
    fewest = min(n, max(_FEWEST_IMAGES, _FEWEST_PER_CLASS * dataset.n_classes))
    n_conv = cntk_gap(DEPTH).n_conv
    shrink = 1
    while min(h, w) // (shrink + 1) >= 1:
        if _pairs(fewest) * ((h // shrink) * (w // shrink)) ** 2 * n_conv <= budget:
            break
        shrink += 1
    return shrink


def _pairs(n: int) -> int:
    return n * (n + 1) // 2


def _choose_images(
    dataset: Dataset, affordable: float, rng: np.random.Generator
) -> tuple[IntArray, IntArray | None]:
    """Numbers of the pool and of the test images, as many as make an affordable number of pairs."""
    n_train, n_test = dataset.y_train.size, dataset.y_test.size
    if dataset.split != "given":
        n = n_train + n_test
        if n <= _MAX_IMAGES and _pairs(n) <= affordable:
            return np.arange(n), None
        most = int(((8 * affordable + 1) ** 0.5 - 1) / 2)  # n (n + 1) / 2 pairs of n images
        count = min(_MAX_IMAGES, most) // dataset.n_classes
        return _draw_balanced(_labels(dataset), max(2, count), rng), None
    count, room = _choose_pool_size(dataset, affordable)
    pool = _draw_balanced(dataset.y_train, count, rng)
    n_kept = min(n_test, _MAX_IMAGES, max(room, dataset.n_classes))
    return pool, n_train + np.sort(rng.permutation(n_test)[:n_kept])


def _choose_pool_size(dataset: Dataset, affordable: float) -> tuple[int, int]:
    """Images of each class in a pool beside a test set, and test images that can be afforded.

    The pool is half as large again as the largest training set, so that draws differ; the latter
    is halved until enough test images are left.
    """
    smallest = int(np.bincount(dataset.y_train).min())
    largest = max(1, min(smallest, MAX_TRAINING // dataset.n_classes))
    largest = 2 ** (largest.bit_length() - 1)
    while True:
        count = min(smallest, largest + max(1, largest // 2))
        n_pool = count * dataset.n_classes
        room = int((affordable - _pairs(n_pool)) / n_pool)
        if largest == 1 or room >= min(dataset.y_test.size, _FEWEST_TEST):
            return count, room
        largest //= 2


def _draw_balanced(labels: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """At most ``count`` images of every class, ascending."""
    members = [np.flatnonzero(labels == k) for k in range(int(labels.max()) + 1)]
    return np.sort(np.concatenate([rng.permutation(group)[:count] for group in members]))


def _choose_sizes(dataset: Dataset, pool: IntArray, test: IntArray | None) -> tuple[int, ...]:
    """Images of each class in the training sets: powers of two, as far as the pool goes.

    Without a test set of its own, a fifth of the images of each class must be left for testing.
    """
    smallest = int(np.bincount(_labels(dataset)[pool]).min())
    room = smallest if test is not None else max(1, smallest * 4 // 5)
    most = max(1, min(room, MAX_TRAINING // dataset.n_classes))
    return tuple(2**j for j in range(most.bit_length()))


def _notes(dataset: Dataset, design: Design, minutes: float) -> Iterator[str]:
    """What was made smaller, or left out, and why."""
    h, w, _ = _shrunk(dataset, design.shrink)
    if design.shrink > 1:
        height, width, _ = dataset.image_shape
        yield (
            f"Images of {height} x {width} pixels were averaged over blocks of {design.shrink} x "
            f"{design.shrink} to {h} x {w}: the exact CNTK-GAP kernel of the full size is too "
            "expensive for a demo."
        )
    everything = dataset.y_train.size + dataset.y_test.size
    if design.pool.size + (0 if design.test is None else design.test.size) == everything:
        return
    share = f"{design.pool.size:,}"
    if design.test is not None:
        share += f" for training and {design.test.size:,} for testing"
    cost = design.element_layers / design.pairs
    affordable = minutes * 60 * _PLANNED_SPEED / cost
    reason = f"training sets end at {MAX_TRAINING:,} images"
    if design.pairs > affordable / 2:
        number = f"{cost / 1e6:.3g} million" if cost >= 1e6 else f"{cost:,.0f}"
        reason = (
            f"a pair of images of {h} x {w} costs CNTK-GAP {number} element-layers, which makes "
            f"{affordable:,.0f} pairs affordable in the {minutes:g} minutes that are planned "
            "(--minutes)"
        )
    yield f"Of {everything:,} images, {share} were drawn: {reason}."
