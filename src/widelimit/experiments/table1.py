"""Table 1 of the paper, its kernel columns: CNTK-V and CNTK-GAP, and both with 2,000 images.

A run is a plan, whose cost is known before it starts; kernels in stores, so that a run that was
stopped goes on where it was; an exact solution for each depth, with what it predicts of the test
images and, leaving one out, of the training images; and one record.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from widelimit.arrays import FloatArray, IntArray
from widelimit.backends import BackendName
from widelimit.costs import LONG, shortened, to_size
from widelimit.data.dataset import Dataset
from widelimit.data.load import load_dataset
from widelimit.display import duration, shown
from widelimit.estimators.regression import Options, solver_for
from widelimit.estimators.samples import Training
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.interpolation import copies, told_of_copies
from widelimit.experiments.planning import (
    PLAN,
    Asked,
    Column,
    ColumnCost,
    cost_of,
    make_plan,
    plan_text,
    planned_before,
    published,
)
from widelimit.experiments.portrait import (
    CAPTIONS,
    cut_by_class,
    find_examples,
    portray,
    thumbnails,
)
from widelimit.experiments.protocol import Draw, Part, accuracy, join_parts
from widelimit.files import check_folder, check_record, own_folder, write_atomically
from widelimit.machine import peak_memory
from widelimit.matrices import gram
from widelimit.matrices.progress import Progress
from widelimit.network import Network
from widelimit.solvers import solve

__all__ = ["Record", "Table1", "solve_and_test"]

Record: TypeAlias = dict[str, Any]

FORMAT = "widelimit.table1/2"


@dataclass(frozen=True, eq=False)
class Table1:
    """A run that is ready: what can be checked before the work has been.

    Parameters
    ----------
    dataset : Dataset
    asked : Asked
    columns : list of Column
    costs : list of ColumnCost
        One for each.
    notes : list of str
        What differs from what was asked for: sentences.
    out, store : Path
        The record; a folder for the kernels, which the same run goes on with.
    how : dict
        Of `gram`: backend, threads, memory, allow_mixed.
    """

    dataset: Dataset
    asked: Asked
    columns: list[Column]
    costs: list[ColumnCost]
    notes: list[str]
    out: Path
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
        allow_mixed: bool = False,
    ) -> Table1:
        """Read the images, choose how many of them are used, and check what can be checked.

        Parameters
        ----------
        data : str
            As for `load_dataset`.
        asked : Asked
        out : Path
            Of the record, a ``.json`` file.
        store : Path or None
            A folder for the kernels. None: beside the record.
        overwrite : bool
            Whether a record that is there is replaced.
        reading : dict or None
            Keywords of `load_dataset`.
        backend, threads, memory, allow_mixed
            As for `gram`.

        Raises
        ------
        OSError
            If the data cannot be read, or the record or the kernels will not be written.
        ValueError
            If the data have not what is asked for, nothing fits into the budget, or the store is
            that of another run.
        MemoryError
            If the equations do not fit.
        """
        folder = out.with_name(f"{out.stem}-stores") if store is None else store
        check_record(out, folder, replace=overwrite)
        dataset = load_dataset(data, **(reading or {}))
        how: Any = {"backend": backend, "threads": threads}
        columns, notes = planned_before(folder, asked, dataset) or make_plan(dataset, asked, how)
        for column in columns:
            column.protocol.check(dataset)
        costs = [cost_of(column, dataset, asked.dtype, how) for column in columns]
        check_folder(folder, sum(cost.stored for cost in costs) if not folder.is_dir() else 0)
        how |= {"memory": memory, "allow_mixed": allow_mixed}
        run = cls(dataset, asked, columns, costs, notes, out, folder, how)
        for column, cost in zip(columns, costs, strict=True):
            method = run._method(column, cost.backend, 0)  # refuses what fits nowhere
            plain = dataclasses.replace(column.protocol, preprocessing="none", flips="none")
            sets = [plain.draw(dataset, i).training for i in range(plain.draws)]
            told = [f"{column.name}: {note}" for note in told_of_copies(sets)]
            if told and method == "tiled":
                raise MemoryError(
                    f"{column.name}: training images repeat, and equal ones are put together in "
                    "memory, where the equations have no room: raise memory, ask for fewer images, "
                    "or remove the copies"
                )
            notes += [note for note in told if note not in notes]
        return run

    @property
    def seconds(self) -> float:
        """Estimate of all of it, from the beginning."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def is_long(self) -> bool:
        """Whether somebody should be asked before."""
        return self.seconds > LONG

    def lines(self) -> list[str]:
        """Say what the run takes."""
        told = list(self.notes)
        for column, cost in zip(self.columns, self.costs, strict=True):
            protocol = column.protocol
            draws = f" x {protocol.draws} draws" if protocol.draws > 1 else ""
            where = " on the card" if cost.backend == "cuda" else ""
            told.append(
                f"{column.name}, depths {', '.join(map(str, column.depths))}: "
                f"{protocol.n_train:,} + {protocol.n_test:,} images{draws}, {cost.pairs:,} pairs "
                f"of {shortened(cost.element_layers)} element-layers, about "
                f"{duration(cost.kernel)}{where}, then {duration(cost.solving)} to solve; "
                f"{to_size(cost.stored)} in {self.store}"
            )
        if len(self.columns) > 1:
            told.append(f"in all about {duration(self.seconds)}")
        return told

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
        say : callable
            Is told each row when it is known.
        progress : bool
            Whether to show how far kernels are, on standard error.
        command : sequence of str or None
            As for `describe_environment`.

        Returns
        -------
        dict
            Ready for JSON. But for times, and what is said of machine and command, it is the same
            however often the run was stopped.

        Raises
        ------
        OSError, ValueError, MemoryError
            As for `gram` and `solve`.
        HeldByAnother
            If another process runs it.
        """
        start = time.perf_counter()
        environment = dataclasses.asdict(describe_environment(command))
        names = {PLAN}
        for column in self.columns:
            for i in range(column.protocol.draws):
                names |= {*column.store_names(i).values(), column.factor_folder(i)}
        with own_folder(self.store, names, "a run of table 1", (PLAN,)):
            write_atomically(self.store / PLAN, plan_text(self.asked, self.columns, self.notes))
            columns = [
                self._column(column, cost, say, progress)
                for column, cost in zip(self.columns, self.costs, strict=True)
            ]
        errors = [
            f"{column['column']}, depth {row['depth']}: {draw['message'] or draw['status']}"
            for column in columns
            for row in column["rows"]
            for draw in row["draws"]
            if draw["status"] != "SOLVED"
        ]
        h, w, c = self.dataset.image_shape
        record: Record = {
            "format": FORMAT,
            "environment": environment,
            "data": {
                "name": self.dataset.name,
                "provenance": self.dataset.provenance,
                "image_shape": [h, w, c],
                "n_classes": self.dataset.n_classes,
                "class_names": list(self.dataset.class_names),
                "n_train": len(self.dataset.y_train),
                "n_test": len(self.dataset.y_test),
            },
            "asked": dataclasses.asdict(self.asked),
            "notes": self.notes,
            "columns": columns,
            "test_images": thumbnails(self.dataset, sorted(_shown(columns))),
            "errors": errors,
            "seconds": round(time.perf_counter() - start, 3),
            "peak_memory": peak_memory(),
        }
        if any(cost.backend == "cuda" for cost in self.costs):
            from widelimit.backends.cuda.cupy_device import find_devices

            record["card"] = dataclasses.asdict(find_devices()[0].card)
        return record

    # ------------------------------------------------------------ a column

    def _column(
        self, column: Column, cost: ColumnCost, say: Callable[[str], None], progress: bool
    ) -> Record:
        protocol, networks = column.protocol, column.networks
        seconds: dict[str, float] = {}
        computed = 0
        found: list[list[Record]] = [[] for _ in networks]
        labels, blocks = np.empty(0, np.int64), list[IntArray]()
        portraits: list[Record] = []
        examples: list[Record | None] = []
        for i in range(protocol.draws):
            draw = protocol.draw(self.dataset, i)
            grams: dict[str, list[Any]] = {}
            for part in protocol.parts():
                begin = time.perf_counter()
                name = column.store_names(i)[part.name]
                grams[part.name], pairs = self._compute(networks, draw, part, name, progress)
                computed += pairs
                seconds.setdefault(part.of, 0.0)
                seconds[part.of] += time.perf_counter() - begin
            for k, results in enumerate(found):
                matrices = {name: of_depths[k] for name, of_depths in grams.items()}
                train, test = join_parts(matrices)
                result, outputs = self._solve(column, cost.backend, draw, i, train, test)
                results.append(result)
                if not i:  # a report shows one draw
                    labels, blocks = draw.y_train, cut_by_class(draw.y_train)
                    portraits.append(portray(train, labels, blocks))
                    known = None if outputs is None else (outputs, draw.y_test, draw.test)
                    examples.append(None if known is None else find_examples(*known))
        rows: list[Record] = []
        for depth, results, portrait in zip(column.depths, found, portraits, strict=True):
            rows.append(self._row(column, depth, results) | {"kernel": portrait})
            say(f"{column.name}, depth {depth}: {_told(rows[-1])}")
        return {
            "column": column.name,
            "readout": column.readout,
            "networks": [network.to_json() for network in networks],
            **dataclasses.asdict(protocol),
            "pairs": cost.pairs,
            "pairs_computed": computed,
            "element_layers": cost.element_layers,
            "backend": cost.backend,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "rows": rows,
            # Of images sorted by class: first class, last class, images.
            "blocks": [[int(labels[b[0]]), int(labels[b[-1]]), len(b)] for b in blocks],
            "examples": _of_the_best(rows, examples),
        }

    def _compute(
        self, networks: list[Network], draw: Draw, part: Part, name: str, progress: bool
    ) -> tuple[list[Any], int]:
        """Return the matrices of a part, and how many pairs were computed now."""
        pairs = 0
        x1, x2 = draw.sides(part)

        def read(state: Progress) -> tuple[float, str]:
            return state.share, str(state)

        def told(state: Progress) -> None:
            nonlocal pairs
            pairs = state.pairs
            report(state)

        dtype: Any = self.asked.dtype
        with shown(progress, name.removesuffix(".zarr"), read) as report:
            matrices = gram(
                networks,
                x1,
                x2,
                store=self.store / name,
                channels="last",
                dtype=dtype,
                progress=told,
                **self.how,
            )
        return matrices, pairs

    def _solve(
        self, column: Column, backend: BackendName, draw: Draw, i: int, train: Any, test: Any
    ) -> tuple[Record, FloatArray | None]:
        """Solve for one depth in one draw; return what came out, and outputs of test images."""
        method = self._method(column, backend, i)
        stored: Any = {}
        if method == "tiled":
            place = self.store / column.factor_folder(i) / f"{train.fingerprint}.zarr"
            place.parent.mkdir(exist_ok=True)
            stored = {"store": place, "memory": self.how["memory"], "threads": self.how["threads"]}
        # Of a doubled training set the mirror image of what is left out would stay.
        leave_out = column.protocol.flips != "double"
        return solve_and_test(
            train, test, draw.training, draw.y_test, method, leave_out=leave_out, **stored
        )

    def _method(self, column: Column, backend: BackendName, i: int) -> Any:
        """Return how to solve: where there is room."""
        folder = str(self.store / column.factor_folder(i))
        memory, threads = self.how["memory"], self.how["threads"]
        options = Options(0.0, np.inf, "cholesky", folder, memory, threads)
        n = column.protocol.parts()[0].rows
        averaged = column.protocol.flips == "average"  # two matrices in float64
        return solver_for(
            n,
            options,
            targets=column.protocol.n_classes or self.dataset.n_classes,
            stored=not averaged,
            held=16 * n * n if averaged else 0,
            card=backend == "cuda",
        )

    def _row(self, column: Column, depth: int, results: list[Record]) -> Record:
        """Return what a depth comes to in all draws, next to the paper."""
        protocol = column.protocol
        accuracies = [one["accuracy"] for one in results]
        paper = published(column, self.dataset).get(depth)
        row: Record = {"depth": depth, "accuracy": None, "standard_error": None}
        row |= {"paper_percent": paper, "difference": None}
        if None not in accuracies:
            accuracy = float(np.mean(accuracies))
            row["accuracy"] = accuracy
            row["standard_error"] = (
                float(np.std(accuracies, ddof=1)) / math.sqrt(len(results))
                if len(results) > 1 and not protocol.takes_all(self.dataset)
                else math.sqrt(accuracy * (1 - accuracy) / protocol.n_test)
            )
            row["difference"] = None if paper is None else 100 * accuracy - paper
        left_out = [one["leave_one_out"] for one in results]
        row["leave_one_out"] = None if None in left_out else float(np.mean(left_out))
        norms = [one["residual_norm"] for one in results]
        row["residual_norm"] = None if None in norms else max(norms)
        row["solve_seconds"] = round(sum(one["seconds"] for one in results), 3)
        return row | {"draws": results}


def _of_the_best(rows: list[Record], examples: list[Record | None]) -> Record | None:
    """Return the examples of the depth with the best leave-one-out accuracy, the first of equals.

    Where nothing was left out it is the first depth that was solved: no test image has a say.
    """
    solved = [k for k, found in enumerate(examples) if found is not None]
    if not solved:
        return None
    best = max(solved, key=lambda k: rows[k]["leave_one_out"] or 0.0)
    found = examples[best]
    assert found is not None
    return {"depth": rows[best]["depth"], **found}


def _shown(columns: list[Record]) -> set[int]:
    """Return the numbers of all test images that are examples."""
    of_columns = [column["examples"] for column in columns if column["examples"] is not None]
    return {one["image"] for found in of_columns for kind in CAPTIONS for one in found[kind]}


def solve_and_test(
    train: Any,
    test: Any,
    training: Training,
    y_test: IntArray,
    method: Any = "cholesky",
    *,
    leave_out: bool = True,
    **stored: Any,
) -> tuple[Record, FloatArray | None]:
    """Solve without a ridge; return accuracies, how well it was solved, and outputs of test images.

    Parameters
    ----------
    train, test : matrices of shape (n, n) and (m, n)
        In stores or in memory.
    training : Training
        Of whose rows the equations are. Where images are equal they are taken into memory.
    y_test : ndarray of int64, shape (m,)
        Classes.
    method, **stored
        As for `solve`.
    leave_out : bool
        Whether training images are predicted by leaving one out, too: without their equals.
    """
    start = time.perf_counter()
    rows = training.first
    if copies(training):
        train = np.asarray(train, np.float64)[np.ix_(rows, rows)]
    solution = solve(train, training.means, method=method, **stored)
    told = solution.statistics
    result: Record = {
        "accuracy": None,
        "leave_one_out": None,
        "status": solution.status.name,
        "message": solution.message,
        "method": method,
        "residual_norm": _finite(told.residual_norm),
        "reciprocal_condition": _finite(told.reciprocal_condition),
        "seconds": 0.0,
    }
    value, outputs = np.asarray(solution.value), None
    if np.isfinite(value).all():
        coefficients = np.zeros(training.targets.shape)
        coefficients[rows] = value
        outputs = _outputs(test, coefficients)
        result["accuracy"] = accuracy(outputs, y_test)
        if solution.factor is not None and leave_out:
            left_out = training.at_samples(solution.factor.left_out(training.means, value))
            result["leave_one_out"] = accuracy(left_out, training.targets.argmax(axis=1))
    result["seconds"] = round(time.perf_counter() - start, 3)
    return result, outputs


def _outputs(test: Any, value: FloatArray) -> FloatArray:
    """Return ``k value`` for a matrix (m, n), in a store or not; reads a row of tiles at a time."""
    step = getattr(test, "tile", 1024)
    parts = [
        np.asarray(test[start : start + step], np.float64) @ value
        for start in range(0, test.shape[0], step)
    ]
    return np.concatenate(parts)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _told(row: Record) -> str:
    """Return a row as a sentence."""
    if row["accuracy"] is None:
        return "not solved"
    text = f"{row['accuracy']:.2%} of the test images"
    if row["leave_one_out"] is not None:
        text += f", {row['leave_one_out']:.2%} leaving one out"
    if row["paper_percent"] is not None:
        error = 100 * row["standard_error"]
        text += f"; the paper {row['paper_percent']:.2f}%, {row['difference']:+.2f} ± {error:.2f}"
    return text
