"""Myrtle networks (Shankar et al. 2020) on few images: which pooled kernel is best, and how good.

All networks and kinds of an activation come out of one pass over the pairs of images. Each kernel
is solved with as it is and normalised, and averages of normalised ones are, too; ridges, and the
kernel that is named in the end, are chosen by leaving one training image out, nothing else.

The paper's compositional kernels are NNGP kernels; the NTK is beside them where it is that of a
network, with ReLU.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.costs import LONG, solving_seconds, to_size
from widelimit.data.dataset import Dataset
from widelimit.data.load import load_dataset
from widelimit.display import duration
from widelimit.estimators.judge import edge
from widelimit.estimators.regression import Options, explain, regress, solver_for
from widelimit.experiments.cells import PLAN, Cells, Keep
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.interpolation import told_of_copies
from widelimit.experiments.myrtle_groups import (
    ACTIVATIONS,
    NETWORKS,
    OF_THEMSELVES,
    PREPROCESSING,
    SPOKEN,
    Asked,
    Group,
    images_name,
    kernel_name,
    networks_of,
    parts_of,
    pass_name,
)
from widelimit.experiments.paper import CNTK, DEPTHS, MYRTLE, is_cifar10
from widelimit.experiments.planning import estimate_parts, fewer, images_that_fit
from widelimit.experiments.protocol import (
    Draw,
    Part,
    Protocol,
    accuracy,
    flip,
    join_parts,
)
from widelimit.files import check_folder, check_record, write_record
from widelimit.machine import peak_memory
from widelimit.matrices import gram, kernel
from widelimit.matrices.progress import Progress
from widelimit.reading import read_json
from widelimit.solvers.checkpoint import seal

__all__ = ["SO_FAR", "Myrtle", "choose", "normalised"]

Record: TypeAlias = dict[str, Any]

FORMAT = "widelimit.myrtle/1"
SO_FAR = "record.json"
"""Name of the file beside the parts: the record of what is complete."""

_BLOCK = 16  # images whose kernels with themselves are computed at a time: as many as lanes
_POOLED = 4  # columns that become one
_MOST_PLAN = 2**16
_PAPER_SHAPE = 32, 32, 3
_COMPARED_DEPTH = 11  # of CNTK-GAP, beside which Myrtle networks are quoted


@dataclass(frozen=True, eq=False)
class Myrtle:
    """A run that is ready: what can be checked before the work has been.

    Parameters
    ----------
    dataset : Dataset
    asked : Asked
    protocol : Protocol
        With the numbers of images that are taken; its preprocessing is that of no pass.
    cells : Cells
    told, notes : list of str
        What it takes; what differs from what was asked for: sentences.
    seconds : float
        Estimate of what is not there yet.
    how : dict
        Of `gram`: backend, threads, memory.
    solving : tuple
        Options and method of `regress`.
    draws : dict of Draw
        By preprocessing, as soon as it is used.
    """

    dataset: Dataset
    asked: Asked
    protocol: Protocol
    cells: Cells
    told: list[str]
    notes: list[str]
    seconds: float
    how: dict[str, Any]
    solving: tuple[Options, Any]
    draws: dict[str, Draw] = field(default_factory=dict[str, Draw])

    @classmethod
    def prepare(
        cls,
        data: str,
        asked: Asked,
        out: Path,
        store: Path | None = None,
        *,
        overwrite: bool = False,
        reading: dict[str, Any] | None = None,
        backend: BackendName = "auto",
        threads: int | None = None,
        memory: int | str | None = None,
    ) -> Myrtle:
        """Read the images, choose how many of them are used, and check what can be checked.

        Parameters
        ----------
        data, out, store, overwrite, reading, backend, threads, memory
            As for `Table1.prepare`.
        asked : Asked

        Raises
        ------
        OSError, ValueError, MemoryError
            As for `Table1.prepare`.
        """
        folder = out.with_name(f"{out.stem}-stores") if store is None else store
        check_record(out, folder, replace=overwrite)
        dataset = load_dataset(data, **(reading or {}))
        asked.protocol(asked.n_train).check(dataset)
        width = dataset.image_shape[1]
        if asked.flips and width % _POOLED:
            raise ValueError(
                f"flips need images whose width is a multiple of {_POOLED}, or pools lose columns "
                f"on one side, got {width}: resize them, or leave flips out"
            )
        how: Any = {"backend": backend, "threads": threads}

        def costs(count: int) -> dict[str, float]:
            return _costs(asked, asked.protocol(count), dataset, how)

        unit, budget = dataset.n_classes, asked.budget
        wanted = {"n_train": asked.n_train, "n_test": asked.n_test, "budget": budget}
        whole, before = (asked.n_train, asked.n_test), _taken_before(folder, wanted)
        if before:
            found = fewer(*whole, before)
        else:
            found = images_that_fit(*whole, unit, lambda n, _: sum(costs(n).values()), budget)
        if found is None:
            raise ValueError(
                f"{unit} training images take {duration(sum(costs(unit).values()))}, the "
                f"budget is {duration(budget or 0)}: raise it, or ask for less"
            )
        count = found[0]
        protocol = asked.protocol(count)
        protocol.check(dataset)
        images = replace(protocol, preprocessing="none").draw(dataset, 0)
        notes = told_of_copies([images.training])
        if count < asked.n_train:
            notes.append(
                f"{count:,} + {protocol.n_test:,} of {asked.n_train:,} + {asked.n_test:,} images "
                f"fit into {duration(budget or 0)}"
            )
        values = math.prod(dataset.image_shape)
        if "zca" in asked.preprocessing and 2 * count < values:
            notes.append(
                f"ZCA is that of all {count:,} training images, and what is left out of the "
                "regression is not left out of it: of fewer images than half their "
                f"{values:,} values its scores by leave-one-out are too good, and a choice by them "
                "leans to it: look at the accuracy on the test images"
            )
        sealed = {n: getattr(images, n) for n in ("x_train", "y_train", "x_test", "y_test")}
        identity = wanted | {"taken": count, "images": seal(sealed)}
        cells = Cells(folder, "myrtle", identity, costs(count), _names_of_all())
        stored = _stored(asked, protocol)
        check_folder(folder, stored if not folder.is_dir() else 0)
        how |= {"memory": memory}
        options = Options("loo", np.inf, "cholesky", None, memory, threads)
        # Of training and of test images: a kernel, normalised, rows of it, three averages, and
        # two more while one is made of another.
        held = 8 * 8 * count * (count + protocol.n_test)
        method = solver_for(count, options, targets=dataset.n_classes, held=held)
        lines = _lines(asked, protocol, cells, stored)
        args: Any = (lines, notes, cells.left, how, (options, method))
        return cls(dataset, asked, protocol, cells, *args)

    @property
    def is_long(self) -> bool:
        """Whether somebody should be asked before."""
        return self.seconds > LONG

    def lines(self) -> list[str]:
        """Say what the run takes."""
        return [*self.notes, *self.told]

    def run(
        self,
        say: Callable[[str], None],
        *,
        progress: bool = False,
        command: Sequence[str] | None = None,
    ) -> Record:
        """Compute what is not there yet, and return the record.

        Whenever kernels are solved with, the record of what is complete is written beside the
        parts, as `SO_FAR`.

        Parameters
        ----------
        say, progress, command
            As for `Table1.run`.

        Raises
        ------
        OSError, ValueError, MemoryError, numpy.linalg.LinAlgError
            As for `gram` and `regress`.
        HeldByAnother
            If another process runs it.
        """
        environment = dataclasses.asdict(describe_environment(command))
        groups = self.asked.groups()
        rows: list[Record] = []
        passes: dict[str, Record] = {}
        record: Record = {}
        with self.cells.held(progress) as keep:
            for place, group in enumerate(groups, 1):
                for activation, preprocessing in group.passes:
                    for part in parts_of(self.protocol, group.flips):
                        one = self._pass(keep, group.networks, activation, preprocessing, part)
                        passes.setdefault(one["name"], one)
                found = keep(group.name, lambda group=group: self._score(keep, group))
                best = choose(found)
                say(
                    f"{best['images']}, the best of {len(found)} leaving one out: "
                    f"{best['kernel']}: {best['leave_one_out']:.2%}, "
                    f"{best['accuracy']:.2%} of the test images"
                )
                rows += found
                left = [other.name.removeprefix("scores-") for other in groups[place:]]
                record = self._record(environment, rows, list(passes.values()), left)
                write_record(self.cells.folder / SO_FAR, record)
        return record

    def _record(
        self, environment: Record, rows: list[Record], passes: list[Record], left: list[str]
    ) -> Record:
        return {
            "format": FORMAT,
            "environment": environment,
            "data": {
                "name": self.dataset.name,
                "provenance": self.dataset.provenance,
                "image_shape": list(self.dataset.image_shape),
                "n_classes": self.dataset.n_classes,
            },
            "asked": dataclasses.asdict(self.asked),
            "notes": [*self.notes, *_warnings(rows)],
            "n_train": self.protocol.n_train,
            "n_test": self.protocol.n_test,
            "networks": {
                f"{name}, {activation}": network.to_json()
                for activation in self.asked.activations
                for name, network in zip(
                    self.asked.networks, networks_of(self.asked.networks, activation), strict=True
                )
            },
            "left": left,
            "kernels": rows,
            "chosen": choose(rows),
            "quoted": self._quoted(),
            "passes": passes,
            "pairs": sum(one["pairs"] for one in passes),
            "pairs_computed": sum(one["pairs_computed"] for one in passes),
            "seconds": round(self.cells.seconds, 3),
            "peak_memory": peak_memory(),
        }

    def _quoted(self) -> list[Record]:
        """Return what papers have of CIFAR-10; of other images, so that no difference is told."""
        if not is_cifar10(self.dataset) or self.dataset.image_shape != _PAPER_SHAPE:
            return []
        gap = CNTK["gap", 2_000][DEPTHS.index(_COMPARED_DEPTH)]
        return [
            {
                "what": f"CNTK-GAP of depth {_COMPARED_DEPTH}, Arora et al. 2019, Table 1",
                "n_train": 2_000,
                "percent": gap,
            },
            {
                "what": "the best compositional kernel of Shankar et al. 2020, their abstract",
                "n_train": 50_000,
                "percent": MYRTLE,
            },
        ]

    # ------------------------------------------------------------ kernels

    def _draw(self, preprocessing: str) -> Draw:
        if preprocessing not in self.draws:
            how: Any = preprocessing
            protocol = replace(self.protocol, preprocessing=how)
            self.draws[preprocessing] = protocol.draw(self.dataset, 0)
        return self.draws[preprocessing]

    def _pass(
        self,
        keep: Keep,
        networks: tuple[str, ...],
        activation: str,
        preprocessing: str,
        part: Part,
    ) -> Record:
        """Compute one matrix of all networks and kinds; return what it took."""
        name = pass_name(networks, activation, preprocessing, part.name)

        def compute() -> Record:
            start, pairs = time.perf_counter(), 0

            def report(state: Progress) -> None:
                nonlocal pairs
                pairs = state.pairs
                self.cells.tell({name: state.share})

            self._gram(networks, activation, preprocessing, part, report)
            seconds = round(time.perf_counter() - start, 3)
            return {"name": name, "pairs": part.pairs, "pairs_computed": pairs, "seconds": seconds}

        return keep(name, compute)

    def _gram(
        self,
        networks: tuple[str, ...],
        activation: str,
        preprocessing: str,
        part: Part,
        progress: bool | Callable[[Progress], None] = False,
    ) -> tuple[list[Any], ...]:
        """Return the matrices of a part, computed or read: for each kind one of each network."""
        name = pass_name(networks, activation, preprocessing, part.name)
        return gram(
            networks_of(networks, activation),
            *self._draw(preprocessing).sides(part),
            kind=ACTIVATIONS[activation][1],
            store=self.cells.folder / f"{name}.zarr",
            channels="last",
            progress=progress,
            **self.how,
        )

    def _own(
        self,
        keep: Keep,
        networks: tuple[str, ...],
        activation: str,
        preprocessing: str,
        flips: bool,
    ) -> FloatArray:
        """Return the kernels of test images with themselves, (kinds, networks, images)."""
        x = self._draw(preprocessing).x_test
        nets, kinds = networks_of(networks, activation), ACTIVATIONS[activation][1]
        how: Any = {"backend": self.how["backend"], "threads": self.how["threads"]}

        def compute(mirrored: bool) -> list[Any]:
            found: list[Any] = []
            for start in range(0, len(x), _BLOCK):
                block = x[start : start + _BLOCK]
                other = flip(block) if mirrored else None
                of_kinds: Any = kernel(nets, block, other, kind=kinds, channels="last", **how)
                found.append(np.diagonal(np.array(of_kinds, np.float64), axis1=-2, axis2=-1))
            return np.concatenate(found, axis=-1).tolist()

        means: list[FloatArray] = []
        for mirrored in (False, True) if flips else (False,):
            name = pass_name(networks, activation, preprocessing, OF_THEMSELVES[mirrored])
            means.append(np.array(keep(name, lambda mirrored=mirrored: compute(mirrored))))
        return np.mean(means, axis=0)

    def kernels(
        self, keep: Keep, group: Group, activation: str, preprocessing: str
    ) -> Iterator[tuple[str, str, FloatArray, FloatArray, FloatArray]]:
        """Yield kind, network, and kernels of training, of test images, and of these themselves."""
        names = group.networks, activation, preprocessing
        own = self._own(keep, *names, group.flips)
        parts = parts_of(self.protocol, group.flips)
        grams = {part.name: self._gram(*names, part) for part in parts}
        for i, kind in enumerate(ACTIVATIONS[activation][1]):
            for j, network in enumerate(group.networks):
                train, test = join_parts({name: found[i][j] for name, found in grams.items()})
                yield (
                    kind,
                    network,
                    np.array(train, np.float64),
                    np.array(test, np.float64),
                    own[i, j],
                )

    # ------------------------------------------------------------ scores

    def _score(self, keep: Keep, group: Group) -> list[Record]:
        """Return a row for each kernel and average of a group."""
        rows: list[Record] = []
        single = len(group.passes) == 1
        whole = _Average()
        for activation, preprocessing in group.passes:
            of_kinds: dict[str, _Average] = {}
            for kind, network, train, test, own in self.kernels(
                keep, group, activation, preprocessing
            ):
                scaled = normalised(train, test, own)
                whole.add(*scaled)
                if single:
                    of_kinds.setdefault(kind, _Average()).add(*scaled)
                    for pair, how in (((train, test), False), (scaled, True)):
                        rows.append(self._row(group, [network], [kind], pair, normalised=how))
            if single and len(group.networks) > 1:
                for kind, average in of_kinds.items():
                    rows.append(self._row(group, group.networks, [kind], average.kernels()))
        kinds = list(dict.fromkeys(k for a in group.activations for k in ACTIVATIONS[a][1]))
        if not single or len(kinds) > 1:
            rows.append(self._row(group, group.networks, kinds, whole.kernels()))
        return rows

    def _row(
        self,
        group: Group,
        networks: Sequence[str],
        kinds: Sequence[str],
        kernels: tuple[FloatArray, FloatArray],
        *,
        normalised: bool = True,
    ) -> Record:
        """Solve with one kernel, the ridge by leave-one-out, and return how good it is."""
        train, test = kernels
        images = self._draw(group.preprocessing[0])  # labels are the same for all
        training, rows = images.training, images.training.first
        options, method = self.solving
        # Equal images are one row, so that none that is left out is predicted from its copy.
        fit = regress(train[np.ix_(rows, rows)], training, options, method)
        assert fit.left_out is not None  # by a factor
        left_out = training.at_samples(fit.left_out)
        right = accuracy(test[:, rows] @ fit.solution.value, images.y_test)
        warning = explain(fit.solution) or edge(fit.grid, fit.curve)
        return {
            "kernel": kernel_name(group, networks, kinds, normalised=normalised),
            "images": images_name(group.preprocessing, group.flips),
            "networks": list(networks),
            "kinds": list(kinds),
            "activations": list(group.activations),
            "preprocessing": list(group.preprocessing),
            "flips": group.flips,
            "normalised": normalised,
            "ridge": float(fit.solution.statistics.ridge),
            "leave_one_out": accuracy(left_out, images.y_train),
            "leave_one_out_error": float(((left_out - training.targets) ** 2).mean()),
            "accuracy": right,
            "standard_error": math.sqrt(right * (1 - right) / len(test)),
            "warning": warning,
        }


class _Average:
    """The uniform average of kernels."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[FloatArray] = []

    def add(self, *kernels: FloatArray) -> None:
        """Take one more, of training and of test images."""
        self._count += 1
        self._sums = [k + s for k, s in zip(kernels, self._sums or [0.0, 0.0], strict=True)]

    def kernels(self) -> tuple[FloatArray, FloatArray]:
        """Return the average of both."""
        train, test = (total / self._count for total in self._sums)
        return train, test


def normalised(
    train: FloatArray, test: FloatArray, own: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return ``k(x, z) / sqrt(k(x, x) k(z, z))`` of training, and of test images.

    Parameters
    ----------
    train : ndarray of shape (n, n)
    test : ndarray of shape (m, n)
    own : ndarray of shape (m,)
        Of test images with themselves.
    """
    rows, columns = np.sqrt(own), np.sqrt(train.diagonal())
    for scale in (rows, columns):
        scale[scale == 0] = 1.0  # of an image of zeros all entries are 0
    return train / np.outer(columns, columns), test / np.outer(rows, columns)


def choose(rows: Sequence[Record]) -> Record:
    """Return the row with the best leave-one-out accuracy; of equals the one with the least error.

    The error is that of leaving one out, too: test images have no say.
    """
    return max(rows, key=lambda row: (row["leave_one_out"], -row["leave_one_out_error"]))


def _warnings(rows: Sequence[Record]) -> list[str]:
    """Return what is to be known of solutions: a sentence for all alike."""
    found = Counter((row["images"], row["warning"]) for row in rows if row["warning"])
    return [
        f"{images}, {count} kernel{'s' if count > 1 else ''}: {warning}"
        for (images, warning), count in found.items()
    ]


# ---------------------------------------------------------------- what there is, and what it takes


def _costs(
    asked: Asked, protocol: Protocol, dataset: Dataset, how: dict[str, Any]
) -> dict[str, float]:
    """Return about how long each part takes, by its name, in the order of the work."""
    costs: dict[str, float] = {}
    solving = 2 * solving_seconds(protocol.n_train, decompose=True)
    for group in asked.groups():
        for activation, preprocessing in group.passes:
            kinds = ACTIVATIONS[activation][1]
            networks = networks_of(asked.networks, activation)
            parts = parts_of(protocol, group.flips)
            found = estimate_parts(networks, dataset.image_shape, parts, kinds=kinds, **how)
            for part, cost in zip(parts, found, strict=True):
                name = pass_name(asked.networks, activation, preprocessing, part.name)
                costs[name] = cost.seconds
                if part.of.startswith("test"):
                    own = OF_THEMSELVES[part.is_flipped]
                    name = pass_name(asked.networks, activation, preprocessing, own)
                    costs[name] = cost.seconds * min(1.0, _BLOCK / protocol.n_train)
        costs[group.name] = solving * group.solutions
    return costs


def _names_of_all() -> set[str]:
    """Return the names of what any run may have in the folder."""

    def some(of: Sequence[str]) -> list[tuple[str, ...]]:
        counts = range(1, len(of) + 1)
        return [one for count in counts for one in itertools.combinations(of, count)]

    parts = [part.name for part in Protocol(10**6, 1, flips="average").parts()]  # in all blocks
    found = {SO_FAR}
    choices = itertools.product(
        some(tuple(NETWORKS)), some(tuple(ACTIVATIONS)), some(PREPROCESSING)
    )
    for networks, activations, preprocessing in choices:
        for group in Asked(networks, activations, preprocessing, flips=True).groups():
            found.add(f"{group.name}.json")
            for one in group.passes:
                names = [pass_name(networks, *one, part) for part in (*parts, *OF_THEMSELVES)]
                found |= {f"{name}{end}" for name in names for end in (".json", ".zarr")}
    return found


def _stored(asked: Asked, protocol: Protocol) -> int:
    """Return the bytes of all kernels, in float32."""
    kinds = sum(len(ACTIVATIONS[activation][1]) for activation in asked.activations)
    pairs = sum(part.pairs for part in protocol.parts())
    return 4 * kinds * len(asked.networks) * len(asked.preprocessing) * pairs


def _lines(asked: Asked, protocol: Protocol, cells: Cells, stored: int) -> list[str]:
    """Say what a run takes: a line for each pass, and one for all."""
    lines: list[str] = []
    for group in asked.groups():
        if len(group.passes) > 1:
            continue
        ((activation, preprocessing),) = group.passes
        parts = [p for p in parts_of(protocol, group.flips) if p.is_flipped == group.flips]
        names = [pass_name(asked.networks, activation, preprocessing, p.name) for p in parts]
        kinds = ", ".join(kind.upper() for kind in ACTIVATIONS[activation][1])
        lines.append(
            f"{SPOKEN[activation]} ({kinds}), {images_name([preprocessing], group.flips)}: "
            f"{sum(part.pairs for part in parts):,} pairs, about "
            f"{duration(sum(cells.costs[name] for name in names))}"
        )
    total = sum(cells.costs.values())
    left = f", {duration(cells.left)} of them left" if cells.left < total else ""
    lines.append(
        f"{', '.join(asked.networks)} on {protocol.n_train:,} + {protocol.n_test:,} images: in all "
        f"about {duration(total)}{left}; {to_size(stored)} in {cells.folder}, whose {SO_FAR} has "
        "what is complete"
    )
    return lines


def _taken_before(folder: Path, wanted: dict[str, Any]) -> int | None:
    """Return the training images of the run that a folder is of, whatever would fit today.

    None if it is of no such run: what differs is told by `Cells`.
    """
    try:
        content = read_json(folder / PLAN, _MOST_PLAN)
    except FileNotFoundError:
        return None
    asked: Any = content.get("asked")
    before: dict[str, Any] = asked if isinstance(asked, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    if any(before.get(name) != value for name, value in wanted.items()):
        return None
    taken = before.get("taken")
    if not isinstance(taken, int) or not 1 <= taken <= wanted["n_train"]:
        raise ValueError(f"{folder / PLAN} is damaged (taken is {taken!r:.60}): delete it")
    return taken
