"""The official kernels of the paper on the same card, in the same run; their file is not ours.

`CNTK.py` of https://github.com/ruosongwang/CNTK is named by the user, and its code is run, down to
where it reads CIFAR-10. It needs CuPy, a driver and a card::

    scripts/gpu-peers CNTK/CNTK.py --out docs/records/gpu-peers.json
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import widelimit as wl
from widelimit.backends import get_backend
from widelimit.backends.cuda import CudaBackend
from widelimit.backends.cuda.cupy_device import compiler_version
from widelimit.experiments.environment import describe_environment
from widelimit.files import write_atomically

DEPTHS = (3, 11, 21)
SHAPE = (32, 32, 3)
ROUNDS = 3
THEIRS = {3: 400, 11: 120, 21: 60}  # ordered pairs of one timing
OURS = 600  # images of each side of one timing
COMPARED = 6
ORDERED = 60_000**2  # pairs that the official loop goes through for complete CIFAR-10


def official(path: Path, depth: int, *, gap: bool) -> dict[str, Any]:
    """Return the names that the file defines, for one depth: `xx` and `xz` are its kernels."""
    text = path.read_text()  # what follows is Python 2
    part = ast.parse(text[: text.index("\n(X_train, y_train)")], str(path))
    utils = types.ModuleType("utils")
    utils.load_cifar = None  # type: ignore[attr-defined]
    sys.modules["utils"] = utils
    answer = "yes" if gap else "no"
    sys.argv = [str(path), "--depth", str(depth), "--gap", answer, "--fix", answer]
    names: dict[str, Any] = {"__name__": "official"}
    exec(compile(part, str(path), "exec"), names)  # the user asks for it
    return names


def theirs(path: Path, depth: int, x: np.ndarray, *, gap: bool) -> tuple[float, np.ndarray]:
    """Return seconds a pair, and the kernel of the first images."""
    cupy: Any = __import__("cupy")
    names = official(path, depth, gap=gap)
    images = cupy.asarray(x.transpose(0, 3, 1, 2).reshape(len(x), 3, -1), "float32")
    ready = [names["xx"](image) for image in images]

    def value(i: int, j: int) -> Any:
        (a, ia), (b, ib) = ready[i], ready[j]
        return names["xz"](images[i], images[j], a, b, ia, ib)

    values = np.array([[float(value(i, j)) for j in range(len(x))] for i in range(len(x))])

    def run() -> None:
        for step in range(THEIRS[depth]):
            value(step % len(x), step // len(x) % len(x))
        cupy.cuda.Device().synchronize()

    return timed(run) / THEIRS[depth], values


def ours(net: wl.Network, x: np.ndarray, z: np.ndarray) -> None:
    """Compute the same kernel by the public interface, transfers included."""
    wl.kernel(net, x, z, backend="cuda")


def timed(run: Callable[[], None]) -> float:
    """Return the least of some times."""
    times: list[float] = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def table(record: dict[str, Any]) -> str:
    """Return the table of docs/gpu.md."""
    head = (
        "depth | GAP, official | GAP | ratio | V, official | V | ratio | GAP on CIFAR-10, official"
    )
    lines = [f"| {head} |", "|---" * 8 + "|"]
    for depth in DEPTHS:
        cells = [str(depth)]
        for readout in ("GAP", "V"):
            (row,) = (
                row for row in record["rows"] if (row["readout"], row["depth"]) == (readout, depth)
            )
            times = row["official_seconds_a_pair"], row["seconds_a_pair"]
            cells += [*(f"{seconds * 1e6:,.4g} µs" for seconds in times), f"{row['ratio']:,.0f}"]
        (seconds,) = (
            row["official_seconds_a_pair"]
            for row in record["rows"]
            if (row["readout"], row["depth"]) == ("GAP", depth)
        )
        cells.append(f"{seconds * ORDERED / 3600:,.0f} h")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="CNTK.py of the authors; its code is run")
    parser.add_argument("--table", action="store_true", help="print the table of a record instead")
    parser.add_argument("--out", type=Path, default=Path("gpu-peers.json"))
    parser.add_argument("--commit", help="of the code, where it is not in its repository")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.file.read_text())), end="")
        return
    backend = get_backend("cuda")
    assert isinstance(backend, CudaBackend)
    environment = dataclasses.asdict(describe_environment())
    environment["commit"] = arguments.commit or environment["commit"]
    record: dict[str, Any] = {
        "format": "widelimit.gpu_peers/1",
        "environment": environment,
        "card": dataclasses.asdict(backend.card),
        "software": {"cupy": __import__("cupy").__version__, "nvrtc": compiler_version()},
        "rows": [],
    }
    rng = np.random.default_rng(0)
    x, z = (rng.uniform(size=(OURS, *SHAPE)) for _ in range(2))
    for gap, make in ((True, wl.cntk_gap), (False, wl.cntk_vanilla)):
        for depth in DEPTHS:
            net = make(depth)
            wl.kernel(net, x[:8], z[:8], backend="cuda")  # compiles
            mine = timed(lambda net=net: ours(net, x, z)) / OURS**2
            other, values = theirs(arguments.file, depth, x[:COMPARED], gap=gap)
            exact = wl.kernel(net, x[:COMPARED], dtype="float64", backend="cpu")
            row = {
                "readout": "GAP" if gap else "V",
                "depth": depth,
                "official_seconds_a_pair": other,
                "seconds_a_pair": mine,
                "ratio": other / mine,
                "official_error": float(np.abs(values / exact - 1).max()),
            }
            record["rows"].append(row)
            print(row, flush=True)
    write_atomically(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
