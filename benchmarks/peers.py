"""The same kernels by neural-tangents and by widelimit: same images, same cores, taking turns.

Run by scripts/bench-peers in an environment that has neural-tangents. widelimit runs in its own
environment, in a process (`serve`) that waits while neural-tangents is timed, and vice versa.

The networks have NTK parametrisation, every layer trained, w_std = sqrt(2) for convolutions, 1 for
the last layer, and no bias: in both libraries, so that the kernels are equal without any factor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

XLA_FLAGS = "--xla_cpu_use_thunk_runtime=false"  # two to three times faster than the default
PACKAGES = ("neural-tangents", "jax", "jaxlib", "tf2jax", "numpy")
DEPTHS = (3, 11, 21)
# Time of neural-tangents over that of widelimit, on one core.
AIMS = {"GAP": 170.0, "V": 30.0, "Myrtle": 90.0}
# Of a Myrtle network, by its depth: convolutions before each pool, the last of which is global.
MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}
AGREE = 1e-4  # both compute in float32
LONGEST_CALL = 15.0  # seconds; a larger batch is not tried if it would take longer
SHORTEST_TIMING = 0.3  # seconds; shorter calls are repeated


# ---- widelimit, in its own environment ----------------------------------------------------------


def serve(folder: Path) -> None:
    """Answer one request a line: time a kernel, store its values."""
    import widelimit as wl
    from widelimit.experiments.environment import describe_environment

    def network(kind: str, depth: int) -> wl.Network:
        if kind == "Myrtle":
            return wl.Network([*wl.myrtle(depth).layers[:-1], wl.Dense()])
        pooling = wl.GlobalAvgPool() if kind == "GAP" else wl.Flatten()
        return wl.Network([*[wl.Conv(3), wl.ReLU()] * (depth - 1), pooling, wl.Dense()])

    x1, x2 = (np.load(folder / f"x{i}.npy") for i in (1, 2))
    print(json.dumps(asdict(describe_environment([]))), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        n1, n2 = request["sizes"]
        net = network(request["kind"], request["depth"])
        start = perf_counter()
        values = wl.kernel(
            net, x1[:n1], x2[:n2], dtype=request["dtype"], threads=request["threads"]
        )
        seconds = perf_counter() - start
        np.save(folder / "values.npy", values)
        print(json.dumps({"seconds": seconds}), flush=True)


class Widelimit:
    """The other end of `serve`."""

    def __init__(self, python: str, folder: Path, threads: int) -> None:
        command = [python, str(Path(__file__).resolve()), "--serve", str(folder)]
        self.folder, self.threads = folder, threads
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"widelimit ended with exit status {self.process.wait()}: see above")
        return json.loads(line)

    def time(
        self, kind: str, depth: int, sizes: tuple[int, int], dtype: str = "float32"
    ) -> tuple[float, np.ndarray]:
        """Return the seconds of one call and its values."""
        request = {"kind": kind, "depth": depth, "sizes": sizes, "dtype": dtype}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request | {"threads": self.threads}) + "\n")
        self.process.stdin.flush()
        return self._read()["seconds"], np.load(self.folder / "values.npy")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


# ---- neural-tangents ----------------------------------------------------------------------------


class NeuralTangents:
    """Kernels of one network, compiled for square batches of given sizes."""

    def __init__(self, kind: str, depth: int, x1: np.ndarray, x2: np.ndarray) -> None:
        from neural_tangents import stax

        layers: list[Any] = []
        for stage, convolutions in enumerate(MYRTLE[depth] if kind == "Myrtle" else (depth - 1,)):
            if stage > 0:
                layers.append(stax.AvgPool((2, 2), (2, 2)))
            for _ in range(convolutions):
                conv = stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5, b_std=None)
                layers += [conv, stax.Relu()]
        pooling = stax.Flatten() if kind == "V" else stax.GlobalAvgPool()
        self.kernel = stax.serial(*layers, pooling, stax.Dense(1, W_std=1.0, b_std=None))[2]
        self.x1, self.x2 = x1, x2
        self.compiled: dict[int, Callable[[], Any]] = {}

    def prepare(self, batch: int) -> None:
        """Compile for a batch: never part of a timing."""
        import jax

        x, z = (jax.device_put(images[:batch]) for images in (self.x1, self.x2))
        function = jax.jit(lambda x, z: self.kernel(x, z, "ntk")).lower(x, z).compile()
        self.compiled[batch] = lambda: function(x, z).block_until_ready()

    def time(self, batch: int, calls: int = 1) -> tuple[float, np.ndarray]:
        """Return the seconds of one call, the mean of `calls`, and its values."""
        start = perf_counter()
        for _ in range(calls):
            values = self.compiled[batch]()
        return (perf_counter() - start) / calls, np.asarray(values)


def find_best_batch(
    prepare: Callable[[int], None], seconds: Callable[[int], float], largest: int, first: int
) -> tuple[int, dict[int, float]]:
    """Double the batch until a pair gets much dearer, or a call too long.

    Parameters
    ----------
    prepare : callable
        Called before a batch is timed.
    seconds : callable
        Time of one call with a batch.
    largest, first : int
        The batches are first, 2 first, 4 first, ... up to largest.

    Returns
    -------
    best : int
    tried : dict of int to float
        Seconds per pair for each batch.
    """
    tried: dict[int, float] = {}
    batch = first
    while batch <= largest:
        prepare(batch)
        spent = seconds(batch)
        if spent < LONGEST_CALL / 4:  # the first call is slower than those that follow
            spent = min(spent, seconds(batch), seconds(batch))
        tried[batch] = spent / batch**2
        if tried[batch] > 1.5 * min(tried.values()):
            break
        batch *= 2
        if tried[batch // 2] * batch**2 > LONGEST_CALL:
            break
    return min(tried, key=lambda size: tried[size]), tried


# ---- both ---------------------------------------------------------------------------------------


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest relative difference of two arrays."""
    return float(np.max(np.abs(np.asarray(a, np.float64) / np.asarray(b, np.float64) - 1.0)))


def compare(
    kind: str, depth: int, x1: np.ndarray, x2: np.ndarray, ours: Widelimit, repeats: int
) -> dict[str, Any]:
    """Measure one kernel with both libraries."""
    n = len(x1)
    theirs = NeuralTangents(kind, depth, x1, x2)

    def seconds(batch: int) -> float:
        return theirs.time(batch)[0]

    largest, first = (min(128, n), min(8, n)) if kind == "V" else (min(8, n), 1)
    batch, tried = find_best_batch(theirs.prepare, seconds, largest, first)
    calls = max(1, math.ceil(SHORTEST_TIMING / (tried[batch] * batch**2)))
    # Whole lane groups, about a second of work, and the images of the batch among them.
    sizes = {3: (32, 32), 11: (16, 16), 21: (8, 16)}.get(depth, (16, 32)) if kind != "V" else (n, n)
    sizes = (min(n, sizes[0]), min(n, sizes[1]))

    timings: dict[str, list[float]] = {"neural_tangents": [], "widelimit": []}
    for _ in range(repeats):
        # The first call of each turn is not timed: threads of the other process still spin for a
        # tenth of a second after its last one, on the same core, and a core that slept is slow.
        theirs.time(batch)
        spent, peer_values = theirs.time(batch, calls)
        timings["neural_tangents"].append(spent / batch**2)
        ours.time(kind, depth, sizes)
        spent, values = ours.time(kind, depth, sizes)
        timings["widelimit"].append(spent / (sizes[0] * sizes[1]))
    _, exact = ours.time(kind, depth, (batch, batch), "float64")
    block = values[:batch, :batch]
    return {
        "kind": kind,
        "depth": depth,
        "batch": batch,
        "batches_tried": {str(size): value for size, value in tried.items()},
        "sizes": sizes,
        "seconds_per_pair": timings,
        "ratio": median(
            a / b for a, b in zip(timings["neural_tangents"], timings["widelimit"], strict=True)
        ),
        "difference": largest_difference(block, peer_values),
        "error_neural_tangents": largest_difference(peer_values, exact),
        "error_widelimit": largest_difference(block, exact),
    }


def load_images(path: Path | None, n: int, side: int, seed: int) -> np.ndarray:
    """2n images: of a file with an array X_train, or random ones."""
    if path is None:
        rng = np.random.default_rng(seed)
        return rng.random((2 * n, side, side, 3), dtype=np.float32)
    with np.load(path) as stored:
        images = stored["X_train"][: 2 * n].astype(np.float32) / 255
    if len(images) < 2 * n or images.shape[1:3] != (side, side):
        raise SystemExit(f"{path} must hold {2 * n} images of {side}x{side}, got {images.shape}")
    return images


def render(record: dict[str, Any]) -> str:
    """Write the record as a table."""
    ours, peers = record["widelimit"], record["peers"]
    commit = (ours["commit"] or "unknown")[:12] + (" with changes" if ours["dirty"] else "")
    lines = [
        f"widelimit {ours['version']}, commit {commit}, float32",
        ", ".join(f"{name} {version}" for name, version in peers.items()) + f", {XLA_FLAGS}",
        f"{ours['machine']['cpu']}; cores: {record['cores']}; images {record['images']}",
        "",
        f"{'':<14}{'neural-tangents':>25}{'widelimit':>12}{'':>8}{'':>8}{'difference':>12}"
        f"{'from float64':>22}",
        f"{'kernel':<14}{'batch':>11}{'us/pair':>14}{'us/pair':>12}{'ratio':>8}{'aim':>8}"
        f"{'':>12}{'theirs':>11}{'ours':>11}",
    ]
    for case in record["cases"]:
        theirs, own = (
            1e6 * median(case["seconds_per_pair"][name])
            for name in ("neural_tangents", "widelimit")
        )
        name = f"{case['kind']} depth {case['depth']}"
        batch = f"{case['batch']} x {case['batch']}"
        lines.append(
            f"{name:<14}{batch:>11}{theirs:>14.5g}{own:>12.4g}{case['ratio']:>8.4g}"
            f"{AIMS[case['kind']]:>8.4g}{case['difference']:>12.1e}"
            f"{case['error_neural_tangents']:>11.1e}{case['error_widelimit']:>11.1e}"
        )
    return "\n".join(lines)


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record so that the file is whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(record, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def pin(cores: str) -> list[int]:
    """Restrict this process, and those it starts, to one core or to those it has; return them."""
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("timing on the same cores needs Linux: this system cannot pin processes")
    usable = sorted(os.sched_getaffinity(0))
    chosen = usable if cores == "all" else usable[-1:]
    os.sched_setaffinity(0, chosen)
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widelimit-python", help="interpreter of the environment of widelimit")
    parser.add_argument("--cores", choices=["1", "all"], default="1")
    parser.add_argument("--images", type=Path, help=".npz with X_train, uint8, 32x32x3")
    parser.add_argument("--kind", choices=AIMS, action="append", help="may be repeated: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="8x8 images, to see that it works")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench-peers.json"))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    own = ("--widelimit-python", options.widelimit_python)  # of the script, not of who called it
    given = [word for word in sys.argv[1:] if word not in own]
    if options.serve is not None:
        serve(options.serve)
        return 0

    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=options.out.parent):
        pass  # the record can be written
    cores = pin(options.cores)
    os.environ["XLA_FLAGS"] = XLA_FLAGS  # all before jax is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    n, side = (16, 8) if options.quick else (512, 32)
    path = None if options.quick else options.images
    images = load_images(path, n, side, options.seed)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x1.npy", images[:n])
        np.save(folder / "x2.npy", images[n:])
        ours = Widelimit(options.widelimit_python or sys.executable, folder, len(cores))
        try:
            for kind in options.kind or ("V", "GAP", "Myrtle"):
                for depth in MYRTLE if kind == "Myrtle" else DEPTHS:
                    print(f"{kind} depth {depth} ...", file=sys.stderr, flush=True)
                    cases.append(
                        compare(kind, depth, images[:n], images[n:], ours, options.repeats)
                    )
        finally:
            ours.close()
    record = {
        "format": "widelimit.bench-peers/1",
        "started": started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["scripts/bench-peers", *given]),
        "cores": cores,
        "images": f"{path.name if path else 'random'}, {images.shape}",
        "seed": options.seed,
        "quick": options.quick,
        "widelimit": ours.about,
        "peers": {name: metadata.version(name) for name in PACKAGES},
        "peers_python": platform.python_version(),
        "xla_flags": XLA_FLAGS,
        "cases": cases,
    }
    write_json(record, options.out)
    print(render(record))
    print(f"record: {options.out}")
    apart = [case for case in cases if not case["difference"] <= AGREE]
    for case in apart:
        print(f"values differ: {case['kind']} depth {case['depth']}", file=sys.stderr)
    return int(bool(apart))


if __name__ == "__main__":
    raise SystemExit(main())
