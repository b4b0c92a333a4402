"""Kernel regression on all of Fashion-MNIST: 60,000 training and 10,000 test images.

usage: python benchmarks/fashion_mnist.py FOLDER [--memory 14GB]
       python benchmarks/fashion_mnist.py --table RECORD

CNTK-V at depths 3, 6 and 11 in one pass, float32: the kernels, the exact solutions (out-of-core
Cholesky in float64, no ridge), test and leave-one-out accuracy. FOLDER takes 50 GB; everything in
it can be killed and is gone on with by the same command. The record is FOLDER/record.json: every
part that ran, each with its time, memory and commit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import widelimit as wl
from widelimit.experiments.environment import describe_environment
from widelimit.files import write_atomically
from widelimit.machine import peak_memory
from widelimit.matrices.progress import Progress
from widelimit.solvers import encode_labels, factorise, leave_one_out_of_factor, solve_tiled

DEPTHS = (3, 6, 11)
BLOCK = 1024  # test images whose predictions are computed at a time


class Log:
    """The parts of a run, in a file that is there completely or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.parts: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    @contextmanager
    def part(self, name: str, **about: Any) -> Iterator[dict[str, Any]]:
        """Time what is done within the block; what is put into the dictionary is kept."""
        environment = dataclasses.asdict(describe_environment())
        entry: dict[str, Any] = {"part": name, **about}
        start, cpu = time.monotonic(), time.process_time()
        try:
            yield entry
        finally:
            entry["seconds"] = round(time.monotonic() - start, 1)
            entry["cpu_seconds"] = round(time.process_time() - cpu, 1)
            entry["peak_memory"] = peak_memory()  # of the process, since it began, in bytes
            self.parts.append({**entry, "environment": environment})
            write_atomically(self._path, json.dumps(self.parts, indent=1) + "\n")


def noted(entry: dict[str, Any]) -> Callable[[Progress], None]:
    """Return a callback that keeps, and now and then prints, the state of a run."""
    printed = [60.0]

    def note(state: Progress) -> None:
        entry.update(
            tiles=state.tiles,
            tiles_found=state.tiles_found,
            tiles_total=state.tiles_total,
            pairs=state.pairs,
        )
        if state.seconds > printed[0]:
            printed[0] = state.seconds + 60
            print(state, flush=True)

    return note


def regress(
    log: Log, folder: Path, memory: str, depth: int, k: wl.Gram, k_test: wl.Gram, data: wl.Dataset
) -> None:
    """Solve for one depth; note accuracy on the test images and leaving one out."""
    done = folder / f"depth-{depth}.npz"
    if done.exists():
        return
    targets = encode_labels(data.y_train, range(data.n_classes))
    store = folder / f"factor-{depth}.zarr"
    with log.part("solve", depth=depth, memory=memory) as entry:
        solution = solve_tiled(k, targets, store=store, memory=memory, progress=True)
        entry["status"], entry["message"] = solution.status.name, solution.message
        entry["statistics"] = dataclasses.asdict(solution.statistics)
        solution.require()
    with log.part("predict", depth=depth) as entry:
        outputs = np.concatenate(
            [
                k_test[start : start + BLOCK, :] @ solution.value
                for start in range(0, len(data.y_test), BLOCK)
            ]
        )
        entry["test_accuracy"] = float(np.mean(outputs.argmax(axis=1) == data.y_test))
    with log.part("leave one out", depth=depth, memory=memory) as entry:
        factor = factorise(k, store=store, memory=memory)
        # The factor and the solution are float64; its inverse's diagonal needs no such accuracy.
        left_out = leave_one_out_of_factor(
            factor,
            targets,
            value=solution.value,
            dtype="float32",
            progress=True,
        )
        entry["accuracy"] = float(left_out.accuracies(data.y_train)[0])
        entry["mean_square"] = float(left_out.errors[0])
    np.savez(
        done,
        outputs=outputs.astype(np.float32),
        left_out=left_out.predictions[0].astype(np.float32),
        value=solution.value,
    )
    shutil.rmtree(store)


def table(parts: list[dict[str, Any]]) -> str:
    """Return what a record says as tables for docs/results.md."""

    def chosen(name: str, depth: int | None = None) -> list[dict[str, Any]]:
        return [p for p in parts if p["part"] == name and depth in (None, p.get("depth"))]

    def minutes(some: list[dict[str, Any]]) -> str:
        return f"{sum(p['seconds'] for p in some) / 60:.1f}"

    def memory(some: list[dict[str, Any]]) -> str:
        peaks = [p["peak_memory"] for p in some if "peak_memory" in p]
        return f"{max(peaks) / 1e9:.1f}" if peaks else ""

    lines = [
        "| depth | test accuracy | leave-one-out accuracy | residual | solve, min "
        "| leave one out, min |",
        "|---|---|---|---|---|---|",
    ]
    for depth in DEPTHS:
        solve, predict, left = (
            chosen(name, depth) for name in ("solve", "predict", "leave one out")
        )
        if not (solve and predict and left):
            continue
        lines.append(
            f"| {depth} | {predict[-1]['test_accuracy']:.2%} | {left[-1]['accuracy']:.2%} "
            f"| {solve[-1]['statistics']['residual_norm']:.0e} | {minutes(solve)} "
            f"| {minutes(left)} |"
        )
    lines += ["", "| part | runs | wall, min | processors, min | peak memory, GB |"]
    lines.append("|---|---|---|---|---|")
    for name in ("kernel train", "kernel test", "solve", "predict", "leave one out"):
        some = chosen(name)
        cpu = sum(p["cpu_seconds"] for p in some) / 60
        lines.append(f"| {name} | {len(some)} | {minutes(some)} | {cpu:.1f} | {memory(some)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--memory", default="14GB")
    parser.add_argument("--table", type=Path, help="print the tables of a record")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())))
        return
    if arguments.folder is None:
        parser.error("give a folder")
    folder, memory = arguments.folder, arguments.memory
    folder.mkdir(parents=True, exist_ok=True)
    data = wl.load_dataset("fashion-mnist")
    networks = [wl.cntk_vanilla(depth=depth, filter_size=3) for depth in DEPTHS]
    log = Log(folder / "record.json")
    grams: dict[str, list[wl.Gram]] = {}
    for name, rows, columns in (
        ("train", data.x_train, None),
        ("test", data.x_test, data.x_train),
    ):
        with log.part(f"kernel {name}", memory=memory) as entry:
            grams[name] = wl.gram(
                networks,
                rows,
                columns,
                store=folder / f"{name}.zarr",
                memory=memory,
                progress=noted(entry),
            )
    for depth, k, k_test in zip(DEPTHS, grams["train"], grams["test"], strict=True):
        regress(log, folder, memory, depth, k, k_test, data)


if __name__ == "__main__":
    main()
