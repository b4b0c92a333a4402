"""Which architectures are good, known from few images (Section 5 of the paper, last paragraph).

Every kernel is computed once, on a pool of images, and then only sliced: training sets of growing
size are drawn from the pool several times, each within the next larger one, and what the largest
leaves over is the validation set of the draw. The pool is standardised as a whole. An architecture
is scored by leaving one out, in closed form, and on the validation set; how well scores agree is
Kendall's tau.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.arrays import FloatArray, IntArray
from widelimit.backends import BackendName
from widelimit.costs import Forecast, forecast
from widelimit.data.dataset import Dataset, draw_training_sets
from widelimit.data.load import read_dataset
from widelimit.estimators.samples import Training
from widelimit.estimators.scaling import channel_scale
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.interpolation import (
    Interpolation,
    interpolate,
    put_together,
    told_of_copies,
)
from widelimit.experiments.paper import CNN, CNTK, DEPTHS, is_cifar10
from widelimit.files import check_record
from widelimit.machine import peak_memory
from widelimit.matrices import gram
from widelimit.matrices.inputs import number_samples, read_series
from widelimit.network import Dense, Flatten, LocalAvgPool, Network

__all__ = ["MEASURES", "Rank", "architectures", "pooled", "tau_with_interval"]

FORMAT = "widelimit.rank/1"
MEASURES = ("loo_accuracy", "loo_score", "validation_accuracy")
"""Share of left-out training images, minus their squared error, share of validation images."""

Record: TypeAlias = dict[str, Any]
Scores: TypeAlias = FloatArray  # (architectures, sizes, draws, measures)
Sets: TypeAlias = list[list[tuple[IntArray, Training]]]  # of draws and sizes: places in the pool

_RESAMPLES = 2_000
_COVERED = 95  # per cent
_FEWEST = 3  # architectures that are compared with the paper's
_KENDALLTAU: Callable[..., Any] = cast("Any", stats).kendalltau


def architectures() -> dict[str, Network]:
    """Return the architectures that are ranked by default, by name.

    Readouts without pooling (V), with local average pooling of width 3 and 9 (LAP1, LAP4) and with
    global average pooling (GAP); depths 3, 4, 6 and 11; filters of 3 and 5 pixels.
    """
    found: dict[str, Network] = {}
    for depth in (3, 4, 6, 11):
        found[f"cntk-vanilla-{depth}"] = cntk_vanilla(depth)
        found[f"cntk-gap-{depth}"] = cntk_gap(depth)
    for depth in (4, 6):
        for half_width in (1, 4):
            pooling = LocalAvgPool(half_width)
            found[f"cntk-lap{half_width}-{depth}"] = pooled(cntk_vanilla(depth), pooling)
    for depth in (4, 6):
        found[f"cntk-vanilla-{depth}-filter5"] = cntk_vanilla(depth, filter_size=5)
        found[f"cntk-gap-{depth}-filter5"] = cntk_gap(depth, filter_size=5)
    return found


def pooled(network: Network, pooling: LocalAvgPool) -> Network:
    """Return a network of `cntk_vanilla` with local average pooling before its last layers."""
    *convs, flatten, last = network.layers
    assert isinstance(flatten, Flatten)
    assert isinstance(last, Dense)
    layers = [*convs, pooling, flatten, last]
    return Network(layers, scaling=network.scaling)


@dataclass(frozen=True, eq=False)
class Rank:
    """A ranking that is ready to be computed.

    Parameters
    ----------
    dataset : Dataset
    networks : dict of Network
        By name.
    per_class : tuple of int
        Images of each class in the training sets, ascending.
    draws, seed : int
    pool : ndarray of int64
        Places of training images of the data set, as many of each class.
    cost : Forecast
    out, store : Path
        The record, and the kernels.
    how : dict
        Of `gram`: backend, threads, memory.
    """

    dataset: Dataset
    networks: dict[str, Network]
    per_class: tuple[int, ...]
    draws: int
    seed: int
    pool: IntArray
    cost: Forecast
    out: Path
    store: Path
    how: dict[str, Any]

    @classmethod
    def prepare(
        cls,
        data: str,
        networks: dict[str, Network],
        sizes: Sequence[int],
        out: Path,
        store: Path | None = None,
        *,
        validation: int | None = None,
        draws: int = 5,
        seed: int = 0,
        overwrite: bool = False,
        reading: dict[str, Any] | None = None,
        backend: BackendName = "auto",
        threads: int | None = None,
        memory: int | str | None = None,
    ) -> Rank:
        """Read the images, draw the pool, and check what can be checked before the work.

        Parameters
        ----------
        data : str
            As for `load_dataset`. Test images of its own are not used, and none are drawn.
        networks : dict of Network
            By name, two or more; none given: `architectures`.
        sizes : sequence of int
            Training images, ascending multiples of the number of classes.
        out : Path
            Of the record, a ``.json`` file.
        store : Path or None
            Of the kernels, one store. None: beside the record.
        validation : int or None
            Images for validation, a multiple of the number of classes. None: half as many as the
            largest training set has, at least one of each class.
        draws : int
            1 or more; intervals need two.
        seed : int
        overwrite, reading
            As for `Table1.prepare`.
        backend, threads, memory
            As for `gram`.

        Raises
        ------
        OSError, ValueError
            If the data cannot be read or have too few images, an option is wrong, or the record
            will not be written.
        """
        folder = out.with_name(f"{out.stem}.zarr") if store is None else store
        check_record(out, folder, replace=overwrite)
        chosen = networks or architectures()
        if len(chosen) < 2:
            raise ValueError(f"a ranking needs two networks or more, got {len(chosen)}")
        if draws < 1 or seed < 0:
            raise ValueError(f"draws must be 1 or more and seed 0 or more, got {draws} and {seed}")
        dataset = read_dataset(data, series=read_series(list(chosen.values())), **(reading or {}))
        classes = dataset.n_classes
        per_class = _per_class(sizes, classes)
        held = max(1, per_class[-1] // 2)
        if validation is not None:
            (held,) = _per_class([validation], classes)
        count = per_class[-1] + held
        rng = np.random.default_rng([seed, 0])
        have = np.bincount(dataset.y_train, minlength=classes)
        least = int(have.argmin())
        if have[least] < count:
            raise ValueError(
                f"{dataset.name} must have {count} training images of every class, "
                f"{per_class[-1]} to train and {held} to validate with, got {have[least]} of "
                f"{dataset.class_names[least]!r}: give smaller sizes, or fewer images for "
                "validation"
            )
        pool = draw_training_sets(dataset.y_train, [count], rng)[0]
        how: Any = {"backend": backend, "threads": threads}
        cost = forecast(list(chosen.values()), dataset.image_shape, pool.size, net=None, **how)
        how["memory"] = memory
        return cls(dataset, chosen, per_class, draws, seed, pool, cost, out, folder, how)

    def run(
        self,
        say: Callable[[str], None],
        *,
        progress: bool = False,
        command: Sequence[str] | None = None,
    ) -> Record:
        """Compute the kernels that are not there yet, score, and return the record.

        Parameters
        ----------
        say : callable
            Is told of each architecture when it is scored.
        progress, command
            As for `Table1.run`.

        Raises
        ------
        OSError, ValueError, MemoryError, numpy.linalg.LinAlgError
            As for `gram` and `interpolate`.
        """
        start = time.perf_counter()
        environment = dataclasses.asdict(describe_environment(command))
        images = self.dataset.x_train[self.pool]
        mean, scale = channel_scale(images)
        x = (images - mean) * scale
        networks = list(self.networks.values())
        labels = self.dataset.y_train[self.pool]
        draws = [
            draw_training_sets(labels, self.per_class, np.random.default_rng([self.seed, 1, i]))
            for i in range(self.draws)
        ]
        classes = self.dataset.n_classes
        sets = [
            [(train, put_together(images[train], labels[train], classes)) for train in of_sizes]
            for of_sizes in draws
        ]
        notes = told_of_copies(of_sizes[-1][1] for of_sizes in sets)
        notes += _told_of_shared(images, [of_sizes[-1] for of_sizes in draws])
        for note in notes:
            say(note)
        grams = gram(networks, x, store=self.store, channels="last", progress=progress, **self.how)
        scores = np.empty((len(networks), len(self.per_class), self.draws, len(MEASURES)))
        for a, (name, matrix) in enumerate(zip(self.networks, grams, strict=True)):
            scores[a], told = self._score(name, np.asarray(matrix, np.float64), labels, sets)
            notes += told
            for note in told:
                say(note)
            best = scores[a, -1].mean(axis=0)
            say(f"{name}: {best[0]:.2%} leaving one out, {best[2]:.2%} of validation images")
        sizes = [count * self.dataset.n_classes for count in self.per_class]
        return {
            "format": FORMAT,
            "environment": environment,
            "data": {
                "name": self.dataset.name,
                "provenance": self.dataset.provenance,
                "image_shape": list(self.dataset.image_shape),
                "n_classes": self.dataset.n_classes,
            },
            "sizes": sizes,
            "n_pool": int(self.pool.size),
            "n_validation": int(self.pool.size) - sizes[-1],
            "preprocessing": (
                f"standardised by channel, with mean and deviation of all {self.pool.size:,} "
                "images, those for validation too"
            ),
            "draws": self.draws,
            "seed": self.seed,
            "notes": notes,
            "measures": list(MEASURES),
            "architectures": [
                {
                    "name": name,
                    "network": network.to_json(),
                    "paper": self._paper(network),
                    "scores": scores[a].tolist(),
                    "mean": scores[a].mean(axis=1).tolist(),
                    "standard_error": _errors(scores[a]),
                }
                for a, (name, network) in enumerate(self.networks.items())
            ],
            "agreement": self._agreement(scores, sizes),
            "seconds": round(time.perf_counter() - start, 3),
            "peak_memory": peak_memory(),
        }

    def _score(
        self, name: str, k: FloatArray, labels: IntArray, sets: Sets
    ) -> tuple[NDArray[np.float64], list[str]]:
        """Return the scores (sizes, draws, measures) of one kernel of the pool, and notes."""
        scores = np.empty((len(self.per_class), self.draws, len(MEASURES)))
        places = np.arange(labels.size)
        solved: list[Interpolation] = []
        for i, of_sizes in enumerate(sets):
            held = np.setdiff1d(places, of_sizes[-1][0])
            for j, (train, training) in enumerate(of_sizes):
                found = interpolate(k[np.ix_(train, train)], k[np.ix_(held, train)], training)
                solved.append(found)
                scores[j, i] = (
                    np.mean(found.left_out.argmax(axis=1) == labels[train]),
                    -np.mean((found.left_out - training.targets) ** 2),
                    np.mean(found.outputs.argmax(axis=1) == labels[held]),
                )
        return scores, Interpolation.told(name, solved)

    def _paper(self, network: Network) -> dict[str, float] | None:
        """Return the paper's figures for an architecture of its Table 1; None for other ones.

        None, too, if images are not those of CIFAR-10, of any size.
        """
        if not is_cifar10(self.dataset):
            return None
        for place, depth in enumerate(DEPTHS):
            for readout, made in (("v", cntk_vanilla(depth)), ("gap", cntk_gap(depth))):
                if network == made:
                    return {"cntk": CNTK[readout, 50_000][place], "cnn": CNN[readout][place]}
        return None

    def _agreement(self, scores: Scores, sizes: list[int]) -> list[Record]:
        """Return Kendall's tau of all that is compared."""
        found: list[Record] = []

        def compare(one: tuple[str, FloatArray], other: tuple[str, FloatArray]) -> None:
            keep = np.flatnonzero(np.isfinite(other[1]).all(axis=1))
            tau, low, high = tau_with_interval(one[1][keep], other[1][keep], self.seed)
            between = [one[0], other[0]]
            row = {"between": between, "architectures": int(keep.size)}
            found.append(row | {"tau": tau, "low": low, "high": high})

        def named(measure: int, size: int) -> tuple[str, FloatArray]:
            return f"{MEASURES[measure]}, n = {sizes[size]}", scores[:, size, :, measure]

        last = len(sizes) - 1
        for measure in range(len(MEASURES)):
            for size in range(last):
                compare(named(measure, size), named(measure, last))
        for size in range(len(sizes)):
            for measure in (0, 1):
                compare(named(measure, size), named(2, size))
        papers = [self._paper(network) for network in self.networks.values()]
        if sum(paper is not None for paper in papers) >= _FEWEST:
            for key, label in (("cntk", "the paper's CNTK"), ("cnn", "the paper's CNN")):
                values = [np.nan if paper is None else paper[key] for paper in papers]
                column = np.repeat(np.array(values)[:, None], self.draws, axis=1)
                for measure in range(len(MEASURES)):
                    for size in range(len(sizes)):
                        compare(named(measure, size), (label, column))
        return found


def tau_with_interval(
    one: FloatArray, other: FloatArray, seed: int = 0
) -> tuple[float | None, float | None, float | None]:
    """Return Kendall's tau-b between means over draws, and its 95 % interval over draws.

    Parameters
    ----------
    one, other : ndarray of float64, shape (architectures, draws)
        Scores, higher is better; draw i of both is the same draw.
    seed : int

    Returns
    -------
    tau, low, high : float or None
        None where it is not defined, as where all scores are equal. The interval is that of the
        percentiles of 2,000 resamples of the draws (bootstrap); None for a single draw. Of few
        draws, which share images, it is narrower than that of new images would be.
    """

    def tau(of: Any) -> float:
        found = _KENDALLTAU(one[:, of].mean(axis=1), other[:, of].mean(axis=1)).statistic
        return float(found)

    draws = one.shape[1]
    whole = tau(np.arange(draws))
    if not math.isfinite(whole):
        return None, None, None
    if draws == 1:
        return whole, None, None
    rng = np.random.default_rng([seed, 2])
    resampled = [tau(rng.integers(0, draws, draws)) for _ in range(_RESAMPLES)]
    known = [value for value in resampled if math.isfinite(value)]
    low, high = np.percentile(known, [50 - _COVERED / 2, 50 + _COVERED / 2])
    return whole, float(low), float(high)


def _per_class(sizes: Sequence[int], classes: int) -> tuple[int, ...]:
    counts = [divmod(size, classes) for size in sizes]
    if any(rest or not count for count, rest in counts):
        raise ValueError(
            f"numbers of images must be multiples of the {classes} classes, got "
            f"{', '.join(map(str, sizes))}"
        )
    found = tuple(count for count, _ in counts)
    if list(found) != sorted(set(found)):
        raise ValueError(f"sizes must be ascending, got {', '.join(map(str, sizes))}")
    return found


def _told_of_shared(pool: FloatArray, sets: list[IntArray]) -> list[str]:
    """Return a sentence if images for validation are equal to training images of their draw."""
    numbers = number_samples(pool, None)[0]
    held = [np.delete(numbers, train) for train in sets]
    counts = [int(np.isin(h, numbers[t]).sum()) for h, t in zip(held, sets, strict=True)]
    if not any(counts):
        return []
    return [
        f"up to {max(counts):,} of {len(held[0]):,} validation images of a draw are copies of "
        "training images, which tell their labels: remove copies, or go by leaving one out"
    ]


def _errors(scores: FloatArray) -> list[list[float]] | None:
    """Return standard errors over draws, (sizes, measures); None for a single draw."""
    draws = scores.shape[1]
    if draws == 1:
        return None
    errors: list[list[float]] = (scores.std(axis=1, ddof=1) / math.sqrt(draws)).tolist()
    return errors
