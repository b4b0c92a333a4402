"""Table 1 of the paper, its CNN columns: finite networks trained by gradient descent.

As in Section A: quadratic loss, labels -0.1 and 0.9, plain stochastic gradient descent with a
fixed learning rate, no batch normalisation, no augmentation, no decay of weights, the output times
kappa. The networks have the layers of the kernels, and those train that do there: `cntk_vanilla`
and `cntk_gap`. What the paper leaves open is in the record: the size of a batch, and how the
learning rate is chosen - by the training images of the first trial alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import numpy as np

from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.backends import BackendName
from widelimit.costs import LONG, estimate
from widelimit.data.dataset import Dataset
from widelimit.data.load import load_dataset
from widelimit.display import duration
from widelimit.experiments.cells import Cells, Keep
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.paper import CNN, DEPTHS, is_cifar10
from widelimit.experiments.protocol import Draw, Protocol
from widelimit.experiments.table1 import Record, solve_and_test
from widelimit.files import check_record
from widelimit.finite.building import build
from widelimit.finite.costs import (
    choose_device,
    count_multiply_adds,
    describe_device,
    on_threads,
    rate,
)
from widelimit.finite.sgd import History, Recipe, train_sgd
from widelimit.machine import peak_memory
from widelimit.matrices import kernel
from widelimit.network import Network
from widelimit.solvers.checkpoint import seal

__all__ = ["AskedCNN", "Table1CNN"]

FORMAT = "widelimit.table1_cnn/1"
COLUMNS: dict[str, Callable[[int], Network]] = {"cnn-v": cntk_vanilla, "cnn-gap": cntk_gap}
_N_TRAIN, _N_TEST = 50_000, 10_000
_PAPER_SHAPE, _PAPER_CHANNELS = (32, 32, 3), 1024
_SMALL = 2e-4  # seconds for each layer of a step


@dataclass(frozen=True, slots=True)
class AskedCNN:
    """What is asked for: all that the values of a record depend on, but for images and machine.

    Parameters
    ----------
    columns : tuple of str
        "cnn-v", "cnn-gap".
    depths, channels : tuple of int
        Every depth with every number of channels.
    n_train, n_test : int or None
        The first images. None: those of the paper, or as many as there are.
    learning_rates : tuple of float
        Of which one is chosen.
    trials : int
        Networks of each depth and number of channels.
    kappa : float
    batch, epochs, after
        As for `Recipe`.
    seed : int
    exact : bool
        Whether the exact kernels are computed, too.

    Raises
    ------
    ValueError
        If a column is unknown, something repeats or is missing, or a number is outside its range.
    """

    columns: tuple[str, ...] = tuple(COLUMNS)
    depths: tuple[int, ...] = DEPTHS
    channels: tuple[int, ...] = (_PAPER_CHANNELS,)
    n_train: int | None = None
    n_test: int | None = None
    learning_rates: tuple[float, ...] = (0.1, 1.0, 10.0)
    trials: int = 3
    kappa: float = 0.05
    batch: int = 128
    epochs: int = 200
    after: int = 10
    seed: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                raise ValueError(f"a column must be one of {', '.join(COLUMNS)}, got {name!r}")
        for name in ("columns", "depths", "channels", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be different ones, at least one, got {values}")
        if min(self.channels) < 1 or self.trials < 1:
            raise ValueError(
                f"channels and trials must be 1 or more, got {self.channels}, {self.trials}"
            )
        if not 0 < self.kappa < math.inf:
            raise ValueError(f"kappa must be above 0, got {self.kappa}")
        for learning_rate in self.learning_rates:
            self.recipe(learning_rate, 0)

    def recipe(self, learning_rate: float, trial: int) -> Recipe:
        """Return how a network of a trial is trained."""
        # An order of its own for each trial, as for the weights.
        seed = 1000 * self.seed + trial
        return Recipe(learning_rate, self.batch, self.epochs, self.after, seed)

    def cases(self) -> list[tuple[str, int, int]]:
        """Return column, depth and channels of every row."""
        return [(c, d, w) for c in self.columns for d in self.depths for w in self.channels]


@dataclass(frozen=True, eq=False)
class Table1CNN:
    """A run that is ready: what can be checked before the work has been.

    Parameters
    ----------
    dataset : Dataset
    protocol : Protocol
    images : Draw
    asked : AskedCNN
    notes : list of str
        What differs from the paper: sentences.
    cells : Cells
    out : Path
    device : str
    threads : int or None
    backend : BackendName
        Of the exact kernels.
    seconds : float
        Estimate of what is not there yet, if every network trains for all epochs.
    """

    dataset: Dataset
    protocol: Protocol
    images: Draw
    asked: AskedCNN
    notes: list[str]
    cells: Cells
    out: Path
    device: str
    threads: int | None
    backend: BackendName
    seconds: float

    @classmethod
    def prepare(
        cls,
        data: str,
        asked: AskedCNN,
        out: Path,
        store: Path | None = None,
        *,
        overwrite: bool = False,
        reading: dict[str, Any] | None = None,
        device: str = "auto",
        backend: BackendName = "auto",
        threads: int | None = None,
    ) -> Table1CNN:
        """Read the images, and check what can be checked.

        Parameters
        ----------
        data, out, store, overwrite, reading, backend, threads
            As for `Table1.prepare`.
        asked : AskedCNN
        device : {"auto", "cpu", "cuda"}

        Raises
        ------
        ImportError
            If PyTorch is not installed.
        OSError, ValueError
            As for `Table1.prepare`; and if the store is that of a run on another device, with
            another number of threads or version of PyTorch: its networks would not be the same
            ones, bit for bit.
        """
        device = choose_device(device)
        folder = out.with_name(f"{out.stem}-stores") if store is None else store
        check_record(out, folder, replace=overwrite)
        dataset = load_dataset(data, **(reading or {}))
        protocol = Protocol(
            asked.n_train or min(_N_TRAIN, len(dataset.y_train)),
            asked.n_test or min(_N_TEST, len(dataset.y_test)),
        )
        protocol.check(dataset)
        images = protocol.draw(dataset, 0)
        with on_threads(threads) as used:
            costs = _costs(asked, dataset, protocol, rate(device), backend, threads)
        of_run = {
            **dataclasses.asdict(asked),
            "images": seal(
                {n: getattr(images, n) for n in ("x_train", "y_train", "x_test", "y_test")}
            ),
            "threads": used,
            **describe_device(device),
        }
        cells = Cells(folder, "table1-cnn", of_run, costs, [f"{name}.npz" for name in costs])
        notes = _notes(asked, dataset, protocol)
        args: Any = (asked, notes, cells, out, device, threads, backend, cells.left)
        return cls(dataset, protocol, images, *args)

    @property
    def is_long(self) -> bool:
        """Whether somebody should be asked before."""
        return self.seconds > LONG

    def lines(self) -> list[str]:
        """Say what the run takes."""
        asked, where = self.asked, "the card" if self.device == "cuda" else "the processor"
        count = len(asked.cases()) * (len(asked.learning_rates) + asked.trials - 1)
        return [
            *self.notes,
            f"{count} networks on {where}, {self.protocol.n_train:,} + {self.protocol.n_test:,} "
            f"images: about {duration(self.seconds)}, if all of them train for {asked.epochs} "
            f"epochs; kept in {self.cells.folder}",
        ]

    def run(
        self,
        say: Callable[[str], None],
        *,
        progress: bool = False,
        command: Sequence[str] | None = None,
    ) -> Record:
        """Train what is not trained yet, and return the record.

        Parameters
        ----------
        say : callable
            Is told each row when it is known.
        progress : bool
            Whether to show how far it is, on standard error.
        command : sequence of str or None
            As for `describe_environment`.

        Raises
        ------
        OSError, ValueError, MemoryError
            As for `train_sgd`, `kernel` and `solve`.
        """
        environment = dataclasses.asdict(describe_environment(command))
        rows: list[Record] = []
        exact: list[Record] = []
        with self.cells.held(progress) as keep, on_threads(self.threads) as threads:
            for case in self.asked.cases():
                rows.append(self._row(keep, *case))
                say(told(rows[-1]))
            if self.asked.exact:
                for column in self.asked.columns:
                    found = keep(f"{column}-exact", lambda column=column: self._exact(column))
                    exact += found
        errors = [f"{told(row)}" for row in rows if row["accuracy"] is None]
        h, w, c = self.dataset.image_shape
        return {
            "format": FORMAT,
            "environment": environment,
            "data": {
                "name": self.dataset.name,
                "provenance": self.dataset.provenance,
                "image_shape": [h, w, c],
                "n_classes": self.dataset.n_classes,
            },
            **dataclasses.asdict(self.protocol),
            "asked": dataclasses.asdict(self.asked),
            "notes": [*self.notes, *_few_epochs(rows, self.asked.after)],
            "device": self.device,
            "threads": threads,
            "rows": rows,
            "exact": exact,
            "errors": errors,
            "seconds": round(self.cells.seconds, 3),
            "peak_memory": peak_memory(),
        }

    def _row(self, keep: Keep, column: str, depth: int, channels: int) -> Record:
        """Train all networks of a row, the first one with every learning rate."""
        asked = self.asked

        def train(name: str, learning_rate: float, trial: int) -> Record:
            checkpoint = self.cells.folder / f"{name}.npz"
            case = (column, depth, channels)
            found = keep(name, lambda: self._train(name, case, learning_rate, trial, checkpoint))
            checkpoint.unlink(missing_ok=True)
            return found

        first = [
            train(_name(column, depth, channels, 0, i), learning_rate, 0)
            for i, learning_rate in enumerate(asked.learning_rates)
        ]
        chosen = min(range(len(first)), key=lambda i: _rank(first[i]))
        learning_rate = asked.learning_rates[chosen]
        trials = [first[chosen]]
        if not trials[0]["diverged"]:
            trials += [
                train(_name(column, depth, channels, trial, None), learning_rate, trial)
                for trial in range(1, asked.trials)
            ]
        accuracies = [one["accuracy"] for one in trials]
        known = None not in accuracies
        figures: dict[int, float] = dict(zip(DEPTHS, CNN[column[4:]], strict=True))
        whole = self.protocol.n_train == _N_TRAIN and channels == _PAPER_CHANNELS
        paper = figures.get(depth) if whole and _is_papers(self.dataset) else None
        return {
            "column": column,
            "depth": depth,
            "channels": channels,
            "network": COLUMNS[column](depth).to_json(),
            "learning_rate": learning_rate,
            "accuracy": fmean(accuracies) if known else None,
            "standard_error": (
                stdev(accuracies) / math.sqrt(len(accuracies))
                if known and len(accuracies) > 1
                else None
            ),
            "paper_percent": paper,
            "trials": trials,
            "learning_rates": first,
        }

    def _train(
        self,
        name: str,
        case: tuple[str, int, int],
        learning_rate: float,
        trial: int,
        checkpoint: Path,
    ) -> Record:
        column, depth, channels = case
        images, asked = self.images, self.asked
        module = build(
            COLUMNS[column](depth),
            channels,
            (asked.seed, trial),
            input_shape=self.dataset.image_shape,
            outputs=self.dataset.n_classes,
            kappa=asked.kappa,
            channels="last",
            device=self.device,
        )
        history = train_sgd(
            module,
            images.x_train,
            images.y_train,
            images.x_test,
            images.y_test,
            asked.recipe(learning_rate, trial),
            checkpoint=checkpoint,
            progress=lambda share: self.cells.tell({name: share}),
        )
        return {"learning_rate": learning_rate} | _summary(history)

    def _exact(self, column: str) -> list[Record]:
        """Return how the exact kernels of a column do."""
        networks = [COLUMNS[column](depth) for depth in self.asked.depths]
        images = self.images
        how: Any = {"channels": "last", "threads": self.threads, "backend": self.backend}
        sides = (images.x_train, None), (images.x_test, images.x_train)
        train, test = (cast("list[Any]", kernel(networks, a, b, **how)) for a, b in sides)
        return [
            {"column": column, "depth": depth}
            | solve_and_test(
                np.asarray(k, np.float64),
                np.asarray(k_test, np.float64),
                images.training,
                images.y_test,
            )[0]
            for depth, k, k_test in zip(self.asked.depths, train, test, strict=True)
        ]


def told(row: Record) -> str:
    """Return a row as a sentence."""
    text = f"{row['column']}, depth {row['depth']}, {row['channels']:,} channels: "
    if row["accuracy"] is None:
        return text + "diverged with every learning rate: give smaller ones"
    error = row["standard_error"]
    reached = [one["full_at"] for one in row["trials"]]
    text += f"{row['accuracy']:.2%}" + ("" if error is None else f" ± {100 * error:.2f}")
    if None in reached:
        return text + ", full training accuracy not reached: mean of the last epochs"
    return text + f", full training accuracy after {fmean(reached):.0f} epochs"


def _name(column: str, depth: int, channels: int, trial: int, rate_number: int | None) -> str:
    last = "" if rate_number is None else f"-rate-{rate_number}"
    return f"{column}-{depth}-{channels}-{trial}{last}"


def _summary(history: History) -> Record:
    last = slice(-history.averaged, None)
    return {
        "accuracy": history.accuracy,
        "full_at": history.full_at,
        "diverged": history.diverged,
        "epochs": len(history.train),
        "averaged": history.averaged,
        "train_accuracy": None if history.diverged else float(history.train[last].mean()),
        "loss": None if history.diverged else float(history.loss[last].mean()),
    }


def _rank(found: Record) -> tuple[float, float]:
    """Return what is smaller for a better learning rate; of test images it knows nothing."""
    if found["diverged"]:
        return math.inf, 0.0
    if found["full_at"] is not None:
        return found["full_at"], found["loss"]
    return 1e9, -found["train_accuracy"]


def _costs(
    asked: AskedCNN,
    dataset: Dataset,
    protocol: Protocol,
    speed: float,
    backend: BackendName,
    threads: int | None,
) -> dict[str, float]:
    """Return about how long each part takes, if it takes all epochs."""
    costs: dict[str, float] = {}
    shape = dataset.image_shape
    steps = -(-protocol.n_train // asked.batch)
    passes = 4 * protocol.n_train + protocol.n_test  # forward, backward twice, and tested
    for column, depth, channels in asked.cases():
        network = COLUMNS[column](depth)
        work = count_multiply_adds(network, channels, shape, dataset.n_classes)[0]
        each = asked.epochs * (passes * work / speed + _SMALL * steps * len(network.layers))
        for i in range(len(asked.learning_rates)):
            costs[_name(column, depth, channels, 0, i)] = each
        for trial in range(1, asked.trials):
            costs[_name(column, depth, channels, trial, None)] = each
    if asked.exact:
        n = protocol.n_train + protocol.n_test
        for column in asked.columns:
            networks = [COLUMNS[column](depth) for depth in asked.depths]
            cost = estimate(networks, shape, n, backend=backend, threads=threads)
            costs[f"{column}-exact"] = cost.seconds
    return costs


def _notes(asked: AskedCNN, dataset: Dataset, protocol: Protocol) -> list[str]:
    notes: list[str] = []
    if _is_papers(dataset):
        for name, found, papers in (
            ("training", protocol.n_train, _N_TRAIN),
            ("test", protocol.n_test, _N_TEST),
        ):
            if found < papers:
                notes.append(f"{found:,} {name} images; the paper has {papers:,}")
    if len(asked.learning_rates) > 1:
        notes.append(
            "the learning rate of each row is the one whose first trial is the first with every "
            "training image right, or has the largest training accuracy in the end"
        )
    return notes


def _few_epochs(rows: Sequence[Record], after: int) -> list[str]:
    """Say of which networks the epochs ended before `after` followed full training accuracy."""
    notes: list[str] = []
    for row in rows:
        # Parts that an earlier version has kept do not say it.
        trials = [one for one in row["trials"] if one["full_at"] is not None]
        few = [one["averaged"] for one in trials if one.get("averaged", after) < after]
        if few:
            numbers = ", ".join(map(str, sorted(set(few))))
            notes.append(
                f"{row['column']}, depth {row['depth']}, {row['channels']:,} channels: accuracies "
                f"of {len(few)} of {len(row['trials'])} trials are means of {numbers} epochs, from "
                f"full training accuracy on, where it should be {after}: give more epochs"
            )
    return notes


def _is_papers(dataset: Dataset) -> bool:
    return is_cifar10(dataset) and dataset.image_shape == _PAPER_SHAPE
