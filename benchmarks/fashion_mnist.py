"""Kernel regression on all of Fashion-MNIST: 60,000 training and 10,000 test images.

usage: python benchmarks/fashion_mnist.py FOLDER [--memory 14GB]

CNTK-V at depths 3, 6 and 11 in one pass, float32: the kernels, the exact solutions (out-of-core
Cholesky in float64, no ridge), test and leave-one-out accuracy. FOLDER takes 50 GB; everything in
it can be killed and is gone on with by the same command. The record is FOLDER/record.json: every
part that ran, each with its time, memory and commit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import widelimit as wl
from widelimit.experiments.environment import describe_environment
from widelimit.files import write_atomically
from widelimit.gram.progress import Progress

DEPTHS = (3, 6, 11)


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
            # Of the process, since it began, in bytes.
            entry["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self.parts.append({**entry, "environment": environment})
            write_atomically(self._path, json.dumps(self.parts, indent=1) + "\n")


def noted(entry: dict[str, Any]) -> Callable[[Progress], None]:
    """Return a callback that keeps, and now and then prints, the state of a run."""
    printed = [0.0]

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="14GB")
    arguments = parser.parse_args()
    folder, memory = arguments.folder, arguments.memory
    folder.mkdir(parents=True, exist_ok=True)
    data = wl.load_dataset("fashion-mnist")
    networks = [wl.cntk_vanilla(depth=depth, filter_size=3) for depth in DEPTHS]
    log = Log(folder / "record.json")
    for name, rows, columns in (
        ("train", data.x_train, None),
        ("test", data.x_test, data.x_train),
    ):
        with log.part(f"kernel {name}", memory=memory) as entry:
            wl.gram(
                networks,
                rows,
                columns,
                store=folder / f"{name}.zarr",
                memory=memory,
                progress=noted(entry),
            )


if __name__ == "__main__":
    main()
