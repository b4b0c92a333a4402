"""Readouts beside each other: global average pooling, local average pooling, and none.

One network, of which only the readout differs, so that one pass over the pairs of images serves all
of them; on balanced draws of training images, as they are, with horizontal flips, whitened (ZCA),
and both. Every draw is one of all variants and readouts, so that differences are within draws.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from widelimit.architectures import cntk_vanilla
from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.costs import LONG, shortened, to_size
from widelimit.data.dataset import Dataset
from widelimit.data.load import load_dataset
from widelimit.display import duration, shown
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.interpolation import Interpolation, interpolate, told_of_copies
from widelimit.experiments.planning import PLAN, estimate_parts, fewer, images_that_fit, read_plan
from widelimit.experiments.protocol import Draw, Preprocessing, Protocol, accuracy, join_parts
from widelimit.experiments.rank import pooled
from widelimit.files import check_folder, check_record, own_folder, write_record
from widelimit.machine import peak_memory
from widelimit.matrices import gram
from widelimit.matrices.progress import Progress
from widelimit.network import GlobalAvgPool, LocalAvgPool, Network

__all__ = ["VARIANTS", "Asked", "Readouts", "readouts"]

Record: TypeAlias = dict[str, Any]

FORMAT = "widelimit.readouts/1"
_PLAN_FORMAT = "widelimit.readouts-plan/1"
HALF_WIDTH = 4
"""Of the windows of local average pooling: 9 x 9 pixels, LAP(4)."""
VARIANTS: dict[str, tuple[Preprocessing, bool]] = {
    "none": ("standardise", False),
    "flips": ("standardise", True),
    "zca": ("zca", False),
    "zca-flips": ("zca", True),
}
"""Preprocessing, and whether kernels are averaged over horizontal flips."""
_COMPARED = (("gap", "lap4"), ("lap4", "v"), ("gap", "v"))
_CHANGES = (
    ("flips", "none"),
    ("zca", "none"),
    ("zca-flips", "none"),
    ("zca-flips", "flips"),
    ("zca-flips", "zca"),
)


def readouts(depth: int) -> dict[str, Network]:
    """Return CNTK-V, and the same network with its readout exchanged, by name.

    All layers are trained in all three; `cntk_gap` trains neither the first layer nor the last.

    Parameters
    ----------
    depth : int
        As for `cntk_vanilla`.
    """
    network = cntk_vanilla(depth)
    *convs, _, last = network.layers
    gap = Network([*convs, GlobalAvgPool(), last], scaling=network.scaling)
    return {"gap": gap, f"lap{HALF_WIDTH}": pooled(network, LocalAvgPool(HALF_WIDTH)), "v": network}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for: all that the values of a record depend on, but for the images.

    Parameters
    ----------
    depth : int
    n_train, n_test : int
        Training images of each draw, a multiple of the number of classes; test images.
    draws, seed : int
        As for `Protocol`.
    budget : float or None
        Seconds that all of it may take here: both numbers of images are made smaller, by the same
        share, until it fits.
    """

    depth: int = 4
    n_train: int = 500
    n_test: int = 500
    draws: int = 5
    seed: int = 0
    budget: float | None = None

    def protocol(self, preprocessing: Preprocessing = "standardise") -> Protocol:
        """Return which images are used, and how they are prepared."""
        return Protocol(
            self.n_train,
            self.n_test,
            balanced=True,
            seed=self.seed,
            draws=self.draws,
            preprocessing=preprocessing,
            flips="average",
        )


@dataclass(frozen=True, eq=False)
class Readouts:
    """A run that is ready.

    Parameters
    ----------
    dataset : Dataset
    asked : Asked
    protocols : dict of Protocol
        By preprocessing, with the numbers of images that are taken.
    seconds : float
        Estimate of all of it, from the beginning.
    told : str
        What it takes.
    notes : list of str
        What differs from what was asked for: sentences.
    store : Path
        A folder for the kernels.
    how : dict
        Of `gram`: backend, threads, memory.
    """

    dataset: Dataset
    asked: Asked
    protocols: dict[str, Protocol]
    seconds: float
    told: str
    notes: list[str]
    store: Path
    how: dict[str, Any]

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
    ) -> Readouts:
        """Read the images, choose how many of them are used, and check what can be checked.

        Parameters
        ----------
        data, out, store, overwrite, reading, backend, threads, memory
            As for `Table1.prepare`.
        asked : Asked

        Raises
        ------
        OSError, ValueError
            As for `Table1.prepare`.
        """
        folder = out.with_name(f"{out.stem}-stores") if store is None else store
        check_record(out, folder, replace=overwrite)
        networks = list(readouts(asked.depth).values())
        dataset = load_dataset(data, **(reading or {}))
        asked.protocol().check(dataset)
        how: Any = {"backend": backend, "threads": threads}

        def costs(protocol: Protocol) -> list[Any]:
            return estimate_parts(networks, dataset.image_shape, protocol.parts(), **how)

        prepared = len({preprocessing for preprocessing, _ in VARIANTS.values()})
        unit = dataset.n_classes

        def of(n_train: int, n_test: int) -> Protocol:
            found = replace(asked.protocol(), n_train=n_train, n_test=n_test)
            return replace(found, draws=1) if found.takes_all(dataset) else found

        def seconds(n_train: int, n_test: int) -> float:
            protocol = of(n_train, n_test)
            return prepared * protocol.draws * sum(cost.seconds for cost in costs(protocol))

        whole, budget = (asked.n_train, asked.n_test), asked.budget
        count = _planned(folder, asked, asked.n_train // unit)
        if count is None:
            found = images_that_fit(*whole, unit, seconds, budget)
        else:
            found = fewer(*whole, count * unit)
        if found is None:
            raise ValueError(
                f"{unit} training images take {duration(seconds(*fewer(*whole, unit)))}, the "
                f"budget is {duration(budget or 0)}: raise it, or take fewer draws"
            )
        taken = of(*found)
        notes: list[str] = []
        if taken.n_train < asked.n_train:
            notes.append(
                f"{taken.n_train:,} + {taken.n_test:,} of {asked.n_train:,} + {asked.n_test:,} "
                f"images fit into {duration(budget or 0)}"
            )
        if taken.draws < asked.draws:
            notes.append(
                f"{taken.n_train:,} training images are all there are, so that {asked.draws} draws "
                "are the same: one is taken, and there is no standard error over draws"
            )
        plain = replace(taken, preprocessing="none")
        notes += told_of_copies(plain.draw(dataset, i).training for i in range(taken.draws))
        parts, repeats = costs(taken), prepared * taken.draws
        stored = repeats * sum(cost.stored for cost in parts)
        check_folder(folder, stored if not folder.is_dir() else 0)
        pairs = repeats * sum(part.pairs for part in taken.parts())
        needed = seconds(*found)
        several = f" x {taken.draws} draws" if taken.draws > 1 else ""
        told = (
            f"{len(networks)} readouts at depth {asked.depth}, {len(VARIANTS)} variants: "
            f"{taken.n_train:,} + {taken.n_test:,} images{several}, {pairs:,} pairs "
            f"of {shortened(parts[0].element_layers)} element-layers, about {duration(needed)}; "
            f"{to_size(stored)} in {folder}"
        )
        protocols = {
            preprocessing: replace(taken, preprocessing=preprocessing)
            for preprocessing, _ in VARIANTS.values()
        }
        how = how | {"memory": memory}
        return cls(dataset, asked, protocols, needed, told, notes, folder, how)

    @property
    def is_long(self) -> bool:
        """Whether somebody should be asked before."""
        return self.seconds > LONG

    def lines(self) -> list[str]:
        """Say what the run takes."""
        return [*self.notes, self.told]

    def run(
        self,
        say: Callable[[str], None],
        *,
        progress: bool = False,
        command: Sequence[str] | None = None,
    ) -> Record:
        """Compute what is not there yet, solve, and return the record.

        Parameters
        ----------
        say, progress, command
            As for `Table1.run`; `say` is told of each variant of each draw.

        Raises
        ------
        OSError, ValueError, MemoryError, numpy.linalg.LinAlgError
            As for `gram` and `interpolate`.
        HeldByAnother
            If another process runs it.
        """
        start = time.perf_counter()
        environment = dataclasses.asdict(describe_environment(command))
        networks = readouts(self.asked.depth)
        taken = next(iter(self.protocols.values()))
        draws = range(taken.draws)
        scores = np.empty((len(VARIANTS), len(networks), len(draws), 2))
        computed = 0
        solved: dict[tuple[str, str], list[Interpolation]] = {}
        names = {
            _name(i, preprocessing, part.name)
            for i in range(self.asked.draws)  # of a run that was begun before, too
            for preprocessing, protocol in self.protocols.items()
            for part in protocol.parts()
        }
        with own_folder(self.store, {PLAN, *names}, "a run of readouts", (PLAN,)):
            plan: Record = {"format": _PLAN_FORMAT, "asked": dataclasses.asdict(self.asked)}
            plan["count"] = taken.n_train // self.dataset.n_classes
            write_record(self.store / PLAN, plan)
            for i in draws:
                for preprocessing, protocol in self.protocols.items():
                    draw = protocol.draw(self.dataset, i)
                    grams, pairs = self._compute(
                        list(networks.values()), draw, i, protocol, progress
                    )
                    computed += pairs
                    for v, (variant, (prepared, flips)) in enumerate(VARIANTS.items()):
                        if prepared != preprocessing:
                            continue
                        for k, name in enumerate(networks):
                            own = {
                                part.name: grams[part.name][k]
                                for part in protocol.parts()
                                if flips or not part.is_flipped
                            }
                            found = interpolate(*join_parts(own), draw.training)
                            scores[v, k, i] = (
                                accuracy(found.outputs, draw.y_test),
                                accuracy(found.left_out, draw.y_train),
                            )
                            solved.setdefault((variant, name), []).append(found)
                        accuracies = ", ".join(
                            f"{name} {score:.2%}"
                            for name, score in zip(networks, scores[v, :, i, 0], strict=True)
                        )
                        say(f"draw {i + 1} of {len(draws)}, {variant}: {accuracies}")
        notes = [
            note
            for (variant, name), found in solved.items()
            for note in Interpolation.told(f"{variant}, {name}", found)
        ]
        for note in notes:
            say(note)
        by_name = {
            (variant, name): scores[v, k, :, 0]
            for v, variant in enumerate(VARIANTS)
            for k, name in enumerate(networks)
        }
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
            "notes": [*self.notes, *notes],
            "n_train": taken.n_train,
            "n_test": taken.n_test,
            "draws": len(draws),
            "networks": {name: network.to_json() for name, network in networks.items()},
            "variants": [
                {
                    "variant": variant,
                    "preprocessing": prepared,
                    "flips": flips,
                    "readouts": [
                        {
                            "readout": name,
                            **_summary(by_name[variant, name]),
                            "leave_one_out": scores[v, k, :, 1].tolist(),
                        }
                        for k, name in enumerate(networks)
                    ],
                    "differences": [
                        {
                            "between": [one, other],
                            **_summary(by_name[variant, one] - by_name[variant, other]),
                        }
                        for one, other in _COMPARED
                    ],
                }
                for v, (variant, (prepared, flips)) in enumerate(VARIANTS.items())
            ],
            "changes": [
                {
                    "readout": name,
                    "between": [one, other],
                    **_summary(by_name[one, name] - by_name[other, name]),
                }
                for name in networks
                for one, other in _CHANGES
            ],
            "pairs": 2 * len(draws) * sum(part.pairs for part in taken.parts()),
            "pairs_computed": computed,
            "seconds": round(time.perf_counter() - start, 3),
            "peak_memory": peak_memory(),
        }

    def _compute(
        self, networks: list[Network], draw: Draw, i: int, protocol: Protocol, progress: bool
    ) -> tuple[dict[str, list[Any]], int]:
        """Return the matrices of a draw, and how many pairs were computed now."""
        grams: dict[str, list[Any]] = {}
        total = 0

        def read(state: Progress) -> tuple[float, str]:
            return state.share, str(state)

        for part in protocol.parts():
            name = _name(i, protocol.preprocessing, part.name)
            pairs = 0
            x1, x2 = draw.sides(part)
            with shown(progress, name.removesuffix(".zarr"), read) as report:

                def told(state: Progress) -> None:
                    nonlocal pairs
                    pairs = state.pairs
                    report(state)

                place = self.store / name
                grams[part.name] = gram(
                    networks, x1, x2, store=place, channels="last", progress=told, **self.how
                )
            total += pairs
        return grams, total


def _name(draw: int, preprocessing: str, part: str) -> str:
    return f"draw-{draw}-{preprocessing}-{part}.zarr"


def _planned(folder: Path, asked: Asked, most: int) -> int | None:
    """Return the training images of a class of the run that a folder is of; None if of none."""
    wanted = json.loads(json.dumps(dataclasses.asdict(asked)))
    content = read_plan(folder, _PLAN_FORMAT, wanted, "run of readouts")
    if content is None:
        return None
    count = content.get("count")
    if not isinstance(count, int) or not 1 <= count <= most:
        raise ValueError(f"{folder / PLAN} is damaged (count is {count!r:.60}): delete it")
    return count


def _summary(values: FloatArray) -> Record:
    """Return values of draws, their mean and its standard error; None for a single draw."""
    error = None
    if len(values) > 1:
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"values": values.tolist(), "mean": float(np.mean(values)), "standard_error": error}
