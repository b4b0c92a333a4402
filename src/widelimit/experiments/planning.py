"""What a run of table 1 will compute, and what that takes: known before it starts.

A plan is kept beside the kernels. A run that goes on has the numbers of images with which it began,
whatever a budget would choose today.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.backends import BackendName
from widelimit.costs import Cost, estimate, solving_seconds
from widelimit.data.dataset import Dataset
from widelimit.display import duration
from widelimit.experiments.paper import CNTK, DEPTHS, is_cifar10
from widelimit.experiments.protocol import Part, Protocol
from widelimit.matrices.inputs import check_dtype
from widelimit.network import Network
from widelimit.reading import read_json

__all__ = [
    "COLUMNS",
    "PLAN",
    "Asked",
    "Column",
    "ColumnCost",
    "cost_of",
    "estimate_parts",
    "fewer",
    "images_that_fit",
    "make_plan",
    "plan_text",
    "planned_before",
    "published",
    "read_plan",
]

PLAN = "plan.json"
"""Name of the file beside the kernels."""
COLUMNS: dict[str, tuple[Literal["v", "gap"], int]] = {
    "cntk-v": ("v", 50_000),
    "cntk-gap": ("gap", 50_000),
    "cntk-v-2k": ("v", 2_000),
    "cntk-gap-2k": ("gap", 2_000),
}
"""Readout and number of training images of each kernel column of the paper."""

_N_TEST = 10_000
_PAPER_CLASSES, _PAPER_SHAPE = 10, (32, 32, 3)
_PLAN_FORMAT, _MAX_PLAN = "widelimit.table1-plan/1", 2**16
_SOLVES = 3  # a factor, the diagonal of its inverse, and reading the kernel, in units of a factor


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for: all that the values of a record depend on, but for the images.

    Parameters
    ----------
    columns : tuple of str
        Of `COLUMNS`.
    depths : tuple of int
        All in one pass.
    n_train, n_test : int or None
        Images. None: those of the paper, or as many as there are.
    budget : float or None
        Seconds that all of it may take here: numbers of images are made smaller until it fits.
    n_classes, balanced, seed, draws, preprocessing, flips
        As for `Protocol`.
    dtype : {"float32", "float64"}
        Of the kernels.

    Raises
    ------
    ValueError
        If a column or the dtype is unknown, or columns or depths repeat.
    """

    columns: tuple[str, ...] = tuple(COLUMNS)
    depths: tuple[int, ...] = DEPTHS
    n_train: int | None = None
    n_test: int | None = None
    budget: float | None = None
    n_classes: int | None = None
    balanced: bool = False
    seed: int = 0
    draws: int = 1
    preprocessing: str = "standardise"
    flips: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                raise ValueError(f"a column must be one of {', '.join(COLUMNS)}, got {name!r}")
        check_dtype(self.dtype)
        for what, values in (("columns", self.columns), ("depths", self.depths)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{what} must be different ones, at least one, got {values}")

    def protocol(self, n_train: int, n_test: int) -> Protocol:
        """Return the protocol of a column with these numbers of images."""
        given: Any = (self.n_classes, self.balanced, self.seed, self.draws)
        how: Any = (self.preprocessing, self.flips)
        return Protocol(n_train, n_test, *given, *how)


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it is computed.

    Parameters
    ----------
    name : str
        Of `COLUMNS`.
    depths : tuple of int
    protocol : Protocol
    """

    name: str
    depths: tuple[int, ...]
    protocol: Protocol

    @property
    def readout(self) -> Literal["v", "gap"]:
        """Without pooling, or with global average pooling."""
        return COLUMNS[self.name][0]

    @property
    def networks(self) -> list[Network]:
        """One for each depth."""
        make = cntk_gap if self.readout == "gap" else cntk_vanilla
        return [make(depth) for depth in self.depths]

    @property
    def pairs(self) -> int:
        """Of images, in all draws."""
        return self.protocol.draws * sum(part.pairs for part in self.protocol.parts())

    def store_names(self, draw: int) -> dict[str, str]:
        """Return the name of the store of each part of a draw, by the name of the part."""
        last = f"-draw-{draw}" if self.protocol.draws > 1 else ""
        return {part.name: f"{self.name}-{part.name}{last}.zarr" for part in self.protocol.parts()}

    def factor_folder(self, draw: int) -> str:
        """Return the name of the folder for factors that do not fit into memory."""
        return f"{self.name}-factors-{draw}"


@dataclass(frozen=True, slots=True)
class ColumnCost:
    """What a column takes on this machine: pairs of images, seconds, bytes on the disk."""

    pairs: int
    element_layers: int
    kernel: float
    solving: float
    stored: int
    backend: BackendName

    @property
    def seconds(self) -> float:
        """Of all of it."""
        return self.kernel + self.solving


def make_plan(
    dataset: Dataset, asked: Asked, how: dict[str, Any]
) -> tuple[list[Column], list[str]]:
    """Return the columns with their numbers of images, and what differs from what was asked."""
    columns: list[Column] = []
    notes: list[str] = []
    most_train, most_test = _available(dataset, asked)
    for name in asked.columns:
        n_train = asked.n_train or min(COLUMNS[name][1], most_train)
        n_test = asked.n_test or min(_N_TEST, most_test)
        if not asked.n_train and n_train < COLUMNS[name][1]:
            notes.append(
                f"{name}: {n_train:,} training images, which is what there is for it; the paper "
                f"has {COLUMNS[name][1]:,}"
            )
        column = _column(name, asked, dataset, n_train, n_test)
        same = [one for one in columns if _alike(one, column)]
        if same:
            notes.append(f"{name}: is the same as {same[0].name} with these images, computed once")
            continue
        column.protocol.check(dataset)
        columns.append(column)
    if not asked.n_test and most_test < _N_TEST:
        notes.append(f"{most_test:,} test images; the paper has {_N_TEST:,}")
    if asked.budget is not None:
        columns, notes = _shrunk(columns, dataset, asked, how, notes)
    notes += [
        f"{column.name}: {column.protocol.n_train:,} training images are all there are, so that "
        f"{asked.draws} draws are the same: one is taken, and the error is that of the test images"
        for column in columns
        if column.protocol.draws < asked.draws
    ]
    return columns, notes


def _column(name: str, asked: Asked, dataset: Dataset, n_train: int, n_test: int) -> Column:
    protocol = asked.protocol(n_train, n_test)
    if protocol.takes_all(dataset):
        protocol = replace(protocol, draws=1)
    return Column(name, asked.depths, protocol)


def _available(dataset: Dataset, asked: Asked) -> tuple[int, int]:
    """Return how many training and test images there are for a column."""
    classes = asked.n_classes or dataset.n_classes
    y_train = dataset.y_train[dataset.y_train < classes]
    n_train = y_train.size
    if asked.balanced:
        n_train = int(np.bincount(y_train, minlength=classes).min()) * classes
    return n_train, int((dataset.y_test < classes).sum())


def _alike(one: Column, other: Column) -> bool:
    return (one.readout, one.protocol) == (other.readout, other.protocol)


def _shrunk(
    columns: list[Column],
    dataset: Dataset,
    asked: Asked,
    how: dict[str, Any],
    notes: list[str],
) -> tuple[list[Column], list[str]]:
    """Return columns that fit into the budget: the cheap ones whole, the others share the rest."""
    assert asked.budget is not None
    left, chosen = asked.budget, dict[str, Column]()
    costs = {column.name: cost_of(column, dataset, asked.dtype, how).seconds for column in columns}
    waiting = sorted(columns, key=lambda column: costs[column.name])
    while waiting:
        column = waiting.pop(0)
        allowed = left / (len(waiting) + 1)
        smaller, seconds = _fit(column, allowed, dataset, asked, how)
        if smaller != column:
            notes.append(
                f"{column.name}: {smaller.protocol.n_train:,} + {smaller.protocol.n_test:,} of "
                f"{column.protocol.n_train:,} + {column.protocol.n_test:,} images fit into "
                f"{duration(allowed)}"
            )
        chosen[column.name] = smaller
        left -= seconds
    return [chosen[column.name] for column in columns], notes


def _fit(
    column: Column, seconds: float, dataset: Dataset, asked: Asked, how: dict[str, Any]
) -> tuple[Column, float]:
    """Return a column with as many images as fit into a time, and how long it takes."""
    whole = column.protocol
    unit = whole.n_classes or dataset.n_classes

    def of(n_train: int, n_test: int) -> Column:
        return _column(column.name, asked, dataset, n_train, n_test)

    def cost(n_train: int, n_test: int) -> float:
        return cost_of(of(n_train, n_test), dataset, asked.dtype, how).seconds

    found = images_that_fit(whole.n_train, whole.n_test, unit, cost, seconds)
    if found is None:
        least = duration(cost(*fewer(whole.n_train, whole.n_test, unit)))
        raise ValueError(
            f"{column.name} takes {least} even with {unit} training images, and "
            f"{duration(seconds)} of the budget are left for it: raise the budget, or give fewer "
            "columns, depths or draws"
        )
    return of(*found), cost(*found)


def images_that_fit(
    n_train: int,
    n_test: int,
    unit: int,
    cost: Callable[[int, int], float],
    seconds: float | None,
) -> tuple[int, int] | None:
    """Return how many training and test images take no longer than a time; None if none do.

    Parameters
    ----------
    n_train, n_test : int
        All of them.
    unit : int
        Of fewer training images: their number is a multiple of it, as of the number of classes.
    cost : callable
        Returns the seconds that numbers of training and test images take.
    seconds : float or None
        None: any time will do.
    """
    if seconds is None or cost(n_train, n_test) <= seconds:
        return n_train, n_test
    low, high = 0, -(-n_train // unit)  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        fits = cost(*fewer(n_train, n_test, middle * unit)) <= seconds
        low, high = (middle, high) if fits else (low, middle)
    return fewer(n_train, n_test, low * unit) if low else None


def fewer(n_train: int, n_test: int, taken: int) -> tuple[int, int]:
    """Return `taken` training images, and test images that are fewer by the same share."""
    return taken, max(1, n_test * taken // n_train)


def estimate_parts(
    networks: Sequence[Network], shape: Sequence[int], parts: Iterable[Part], **how: Any
) -> list[Cost]:
    """Estimate what each part costs: blocks of rows by their pairs, at the rate of the first part.

    Parameters
    ----------
    networks, shape, **how
        As for `estimate`.
    parts : iterable of Part
        Some of `Protocol.parts`, in their order. What a block needs of memory is told of the first.
    """
    costs: list[Cost] = []
    for part in parts:
        if part.number is None:
            costs.append(estimate(networks, shape, part.rows, part.columns, **how))
        else:
            seconds = costs[0].seconds * part.pairs / costs[0].pairs
            costs.append(replace(costs[0], pairs=part.pairs, seconds=seconds))
    return costs


def cost_of(column: Column, dataset: Dataset, dtype: Any, how: dict[str, Any]) -> ColumnCost:
    """Estimate what a column takes on this machine; `how` as for `make_plan`."""
    protocol, networks = column.protocol, column.networks
    parts = protocol.parts()
    costs = estimate_parts(networks, dataset.image_shape, parts, dtype=dtype, **how)
    solving = solving_seconds(parts[0].rows) * len(networks) * _SOLVES
    backend: Any = costs[0].backend
    return ColumnCost(
        pairs=column.pairs,
        element_layers=costs[0].element_layers,
        kernel=protocol.draws * sum(cost.seconds for cost in costs),
        solving=protocol.draws * solving,
        stored=protocol.draws * sum(cost.stored for cost in costs),
        backend=backend,
    )


def plan_text(asked: Asked, columns: list[Column], notes: list[str]) -> str:
    """Return a plan as JSON, for `planned_before`."""
    content = {
        "format": _PLAN_FORMAT,
        "asked": dataclasses.asdict(asked),
        "columns": [
            [c.name, c.protocol.n_train, c.protocol.n_test, c.protocol.draws] for c in columns
        ],
        "notes": notes,
    }
    return json.dumps(content, indent=1) + "\n"


def planned_before(
    folder: Path, asked: Asked, dataset: Dataset
) -> tuple[list[Column], list[str]] | None:
    """Return the plan of the run that a folder is of, whatever a budget would choose today."""
    path = folder / PLAN
    wanted = json.loads(plan_text(asked, [], []))
    content = read_plan(folder, _PLAN_FORMAT, wanted["asked"], "run of table 1")
    if content is None:
        return None
    try:
        columns: list[Column] = []
        for name, n_train, n_test, *more in content["columns"]:
            (draws,) = more or (asked.draws,)  # which plans of earlier versions do not have
            if draws not in (1, asked.draws):
                raise ValueError(f"{draws!r:.60} draws")
            protocol = replace(asked.protocol(int(n_train), int(n_test)), draws=int(draws))
            columns.append(Column(str(name), asked.depths, protocol))
        notes = [str(note) for note in content["notes"]]
        known_columns = {column.name for column in columns} <= set(asked.columns)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r:.100}): delete it") from error
    if not (columns and known_columns):
        raise ValueError(f"{path} is damaged (its columns are not those asked for): delete it")
    return columns, notes


def read_plan(folder: Path, form: str, asked: dict[str, Any], what: str) -> dict[str, Any] | None:
    """Return the plan that is kept beside kernels; None if there is none.

    Parameters
    ----------
    folder : Path
    form : str
        The format that the plan must have.
    asked : dict
        What is asked for now, as JSON has it.
    what : str
        What the folder is for, in messages.

    Raises
    ------
    ValueError
        If it is that of something else, or of another run.
    """
    path = folder / PLAN
    try:
        content = read_json(path, _MAX_PLAN)
    except FileNotFoundError:
        return None
    if content.get("format") != form:
        raise ValueError(f"{path} must be the plan of a {what}: give another store")
    before: Any = content.get("asked")
    if before != asked:
        known: dict[str, Any] = before if isinstance(before, dict) else {}  # pyright: ignore[reportUnknownVariableType]
        differs = [
            f"{name} {known.get(name)!r:.60} there and {value!r:.60} here"
            for name, value in asked.items()
            if known.get(name) != value
        ]
        raise ValueError(
            f"{folder} holds another {what} ({'; '.join(differs) or 'of another version'}): give "
            "another store, or delete that one"
        )
    return content


def published(column: Column, dataset: Dataset) -> dict[int, float]:
    """Return the paper's accuracies in per cent by depth; none if it has no such column."""
    if not is_cifar10(dataset):
        return {}
    classes = column.protocol.n_classes or dataset.n_classes
    if classes != _PAPER_CLASSES or dataset.image_shape != _PAPER_SHAPE:
        return {}
    figures = CNTK.get((column.readout, column.protocol.n_train))
    return {} if figures is None else dict(zip(DEPTHS, figures, strict=True))
