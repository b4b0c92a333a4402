"""What a card computes and how fast: conformance, agreement with the processor, rates; a record.

Needs CuPy, a driver and a card, and no network::

    scripts/gpu-check --out docs/records/gpu-check.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import widelimit as wl
from widelimit.backends import get_backend
from widelimit.backends.base import Dtype, Pairs
from widelimit.backends.cpu import CpuBackend
from widelimit.backends.cuda import CudaBackend
from widelimit.backends.cuda.cupy_device import CupyDevice, compiler_version
from widelimit.experiments.environment import describe_environment
from widelimit.files import check_file, write_atomically
from widelimit.network import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    LocalAvgPool,
    Network,
    ReLU,
)
from widelimit.program import Program, compile_networks
from widelimit.solvers import Spectrum, solve
from widelimit.solvers.card import card_device
from widelimit.testing.compare import KINDS, compute
from widelimit.testing.conformance import CHAINS, TREES, BackendConformance

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
FAULTY = "exit code 9"  # of the sanitizer, where it found something

DEPTHS = (3, 4, 6, 11, 21)
ROUNDS = 3
SECONDS = 0.12  # of one measurement
GUESSED = {"float32": 8e11, "float64": 2.4e11}  # element-layers per second, to size the cases

DENSE = 20_000  # samples of a dense network
SOLVED = (8_000, 20_000)  # samples of a regression

PEAK = """
extern "C" __global__ void peak(float* out, int n) {
  float a[8];
  for (int i = 0; i < 8; ++i) a[i] = threadIdx.x + i;
  for (int k = 0; k < n; ++k)
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i] = fmaf(a[i], 0.999f, 0.001f);
  float s = 0;
  for (int i = 0; i < 8; ++i) s += a[i];
  if (s == 12345.f) out[0] = s;
}
"""


def lap(depth: int) -> Network:
    """Return CNTK-LAP(4)."""
    return Network([*wl.cntk_gap(depth).layers[:-2], LocalAvgPool(4), Flatten(), Dense()])


def biased() -> Network:
    """Return a network with all that a layer can have."""
    layers = [Conv(5, b_std=0.3), ReLU(), Conv(3, b_std=0.2, trainable=False), ReLU(), Conv(7)]
    return Network([*layers, GlobalAvgPool(), Dense(), ReLU(), Dense(b_std=0.2)])


def program_of(networks: list[Network], shape: tuple[int, ...], kinds: Any = ("ntk",)) -> Program:
    """Return the program of networks that begin alike."""
    ((program, _),) = compile_networks(networks, shape, kinds)
    return program


def images(n: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return random images, uniform in [0, 1]."""
    return np.random.default_rng(seed).uniform(size=(n, *shape))


def fma_peak(device: CupyDevice) -> float:
    """Return the fused multiply-adds of the card, of single threads per second."""
    cupy: Any = __import__("cupy")
    kernel = cupy.RawKernel(PEAK, "peak")
    out, n, blocks = cupy.empty(1, "float32"), 200_000, device.card.multiprocessors * 8
    times: list[float] = []
    for _ in range(3):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        kernel((blocks,), (256,), (out, np.int32(n)))
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) * 1e-3)
    return blocks * 256 * n * 8 / min(times)


def bare(backend: CudaBackend, program: Program, dtype: Dtype, n1: int, n2: int) -> list[float]:
    """Return the seconds of the kernels alone on n1 x n2 pairs, without transfers."""
    cupy: Any = __import__("cupy")
    left = backend.profile(program, images(n1, program.shape, 1), np.arange(n1), dtype)
    right = backend.profile(program, images(n2, program.shape, 2), np.arange(n1, n1 + n2), dtype)
    (loaded, *_) = backend.load(program, dtype)
    x, z = left.resident[0], right.resident[0]  # type: ignore[attr-defined]
    pairs = Pairs(np.arange(n1), np.arange(n2))
    times: list[float] = []
    for _ in range(ROUNDS + 1):
        with backend.devices[0].turn():
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            loaded.start(x, z, pairs)
            end.record()
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(begin, end) * 1e-3)
    return times[1:]


def rate_cases() -> Iterator[tuple[str, list[Network], tuple[int, int, int], Dtype]]:
    """Yield what is timed."""
    large = (32, 32, 3)
    for dtype in ("float32", "float64"):
        for name, make in (("GAP", wl.cntk_gap), ("V", wl.cntk_vanilla), ("LAP(4)", lap)):
            for depth in DEPTHS:
                yield f"{name} depth {depth} {dtype}", [make(depth)], large, dtype
    for name, make in (("GAP", wl.cntk_gap), ("V", wl.cntk_vanilla)):
        yield f"{name} five depths float32", [make(depth) for depth in DEPTHS], large, "float32"
    yield "GAP depth 11, 28x28, float32", [wl.cntk_gap(11)], (28, 28, 1), "float32"
    yield "GAP depth 11, 8x8, float32", [wl.cntk_gap(11)], (8, 8, 3), "float32"
    yield "GAP depth 3, 64x64, float32", [wl.cntk_gap(3)], (64, 64, 3), "float32"
    for name, networks in MYRTLE.items():
        yield f"{name} float32", networks, large, "float32"
    yield "Myrtle-5 float64", [wl.myrtle(5)], large, "float64"
    yield "ResNet-20 float32", [wl.resnet(20)], large, "float32"


MYRTLE = {
    "Myrtle-5": [wl.myrtle(5)],
    "Myrtle-10": [wl.myrtle(10)],
    "Myrtle-10, Gaussian": [wl.myrtle(10, activation=wl.Gaussian())],
    "Myrtle-5, 7 and 10": [wl.myrtle(5), wl.myrtle(7), wl.myrtle(10)],
}


def tree(*, padded: bool) -> Network:
    """Return a small network with pools, a residual block across one, and other activations."""
    pool = wl.AvgPool(3, 1, "same") if padded else wl.AvgPool(2)
    block = [wl.LeakyReLU(0.2), Conv(3, b_std=0.2, stride=2), wl.GELU(), Conv(3)]
    layers = [Conv(3), wl.Erf(), pool, Conv(3), wl.Sum([Conv(1, stride=2)], block)]
    return Network([*layers, wl.LayerNorm(), wl.Sin(), Conv(3), ReLU(), GlobalAvgPool(), Dense()])


def two_ways() -> list[Network]:
    """Return networks whose pools leave different layers for one grid."""
    end = [AvgPool(2), Conv(3), ReLU()]
    return [
        Network([Conv(3), ReLU(), *end, GlobalAvgPool(), Dense()]),
        Network([Conv(3), ReLU(), Conv(3), ReLU(), *end, LocalAvgPool(2), Flatten(), Dense()]),
    ]


AGREEMENT = (
    ("GAP", [wl.cntk_gap(21)], (32, 32, 3)),
    ("five depths of GAP", [wl.cntk_gap(depth) for depth in DEPTHS], (32, 32, 3)),
    ("five depths of V", [wl.cntk_vanilla(depth) for depth in DEPTHS], (32, 32, 3)),
    ("LAP(4)", [lap(11)], (32, 32, 3)),
    ("28 x 28", [wl.cntk_gap(6)], (28, 28, 1)),
    ("biases, filters of 3, 5, 7, deep head", [biased()], (9, 7, 3)),
    ("wider than a warp", [wl.cntk_gap(3)], (20, 40, 3)),
    ("taller than registers", [biased()], (70, 33, 2)),
    ("Myrtle-5, 7 and 10", MYRTLE["Myrtle-5, 7 and 10"], (32, 32, 3)),
    ("Myrtle-5, Gaussian", [wl.myrtle(5, activation=wl.Gaussian())], (32, 32, 3)),
    ("ResNet-20", [wl.resnet(20)], (32, 32, 3)),
    ("a tree", [tree(padded=False)], (13, 11, 2)),
    ("a tree, padded", [tree(padded=True)], (9, 17, 3)),
    ("two ways to a grid", two_ways(), (16, 16, 3)),
)


def agreement(backend: CudaBackend) -> Iterator[dict[str, Any]]:
    """Compare with the processor in float64, and two runs with one another."""
    for name, networks, shape in AGREEMENT:
        x = images(8, shape, 0)
        x[5] = x[1]
        exact = compute(CpuBackend(), networks, x, dtype="float64", threads=16)
        for dtype in ("float32", "float64"):
            first, second = (compute(backend, networks, x, dtype=dtype) for _ in range(2))
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.where(first == exact, 0.0, np.abs(first / exact - 1))
            yield {
                "name": name,
                "shape": shape,
                "dtype": dtype,
                "error": float(error.max()),
                "symmetric": bool(np.array_equal(first, first.swapaxes(-1, -2))),
                "same_bits": bool(np.array_equal(first, second)),
            }


def conformance(backend: CudaBackend) -> dict[str, str]:
    """Run the conformance suite; return what each test said, empty if it passed."""

    class OnTheCard(BackendConformance):
        cases = (*CHAINS, *TREES)

        def make_backend(self) -> CudaBackend:  # type: ignore[override]
            return backend

    suite, results = OnTheCard(), {}
    for name in (name for name in dir(suite) if name.startswith("test_")):
        try:
            getattr(suite, name)()
            results[name] = ""
        except AssertionError as error:
            results[name] = str(error)[:500]
    return results


def conformance_programs() -> Iterator[tuple[Program, Dtype]]:
    """Yield what the suite computes, to compile it side by side."""
    family = [wl.cntk_gap(2), wl.cntk_vanilla(3), wl.cntk_gap(4)]
    family += [Network([*wl.cntk_gap(4).layers[:4], LocalAvgPool(1), Dense()], "paper")]
    groups = [([case.network], case.shape) for case in (*CHAINS, *TREES)]
    groups += [(family, (4, 3, 2)), *(([network], (4, 3, 2)) for network in family)]
    for networks, shape in groups:
        for kinds in (KINDS, ("nngp",), ("ntk",)):
            for program, _ in compile_networks(networks, shape, kinds):
                for dtype in BackendConformance.tolerance:
                    yield program, dtype


def is_good(record: dict[str, Any]) -> bool:
    """Return whether values, bits and memory accesses are as they must be."""
    agree = all(
        row["symmetric"] and row["same_bits"] and row["error"] < TOLERANCE[row["dtype"]]
        for row in record["agreement"]
    )
    failed = any(record.get("conformance", {}).values())
    faulty = any(FAULTY in said for said in record["sanitizer"].values())
    return agree and record["dense"]["same_bits"] and not failed and not faulty


def engine(backend: CudaBackend, network: Network, n1: int, n2: int) -> dict[str, Any]:
    """Time `wl.kernel` next to the kernels alone."""
    x, z = images(n1, (32, 32, 3), 1), images(n2, (32, 32, 3), 2)
    times: list[float] = []
    for _ in range(2):
        start = time.perf_counter()
        wl.kernel(network, x, z, backend="cuda")
        times.append(time.perf_counter() - start)
    program = program_of([network], (32, 32, 3))
    alone = min(bare(backend, program, "float32", min(n1, 500), min(n2, 500)))
    alone *= n1 * n2 / (min(n1, 500) * min(n2, 500))
    return {"pairs": n1 * n2, "seconds": min(times), "bare": alone, "share": alone / min(times)}


def dense() -> dict[str, Any]:
    """Time a dense network on the card and, with fewer samples, on the processors."""
    x, net = images(DENSE, (3072,), 1), wl.ntk_dense(5)
    rows: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    for name, n in (("cuda", DENSE), ("cpu", DENSE // 5)):
        times: list[float] = []
        for _ in range(2):
            start = time.perf_counter()
            before = values.get(name)
            values[name] = wl.kernel(net, x[:n], backend=name)  # type: ignore[call-overload]
            times.append(time.perf_counter() - start)
            if name == "cuda" and before is not None:
                rows["same_bits"] = bool(np.array_equal(before, values[name]))
        rows[name] = {"n": n, "seconds_a_pair": min(times) / (n * (n + 1) / 2)}
    few = DENSE // 5
    rows["error"] = float(np.abs(values["cuda"][:few, :few] / values["cpu"] - 1).max())
    return rows


def solvers() -> list[dict[str, Any]]:
    """Time a factor, and eigenvectors, on the card and on the processors."""
    rows: list[dict[str, Any]] = []
    for n in SOLVED:
        x = np.random.default_rng(0).standard_normal((n, 200))
        k, y = wl.kernel(wl.ntk_dense(3), x), x[:, :10]
        row: dict[str, Any] = {"n": n, "seconds": {}}
        values: list[np.ndarray] = []
        for method in ("card", "cholesky"):
            start = time.perf_counter()
            values.append(solve(k, y, 1e-6, method=method).require().value)  # type: ignore[arg-type]
            row["seconds"][method] = time.perf_counter() - start
        row["difference"] = float(np.abs(values[0] - values[1]).max() / np.abs(values[1]).max())
        negative = solve(k - 2 * np.eye(n) * k[0, 0], y, method="card")
        row["indefinite"] = negative.status.value
        for name, found in (("card", card_device().eigenvectors), ("processors", None)):
            if name == "processors" and n > SOLVED[0]:
                continue
            start = time.perf_counter()
            spectrum = Spectrum.of(k, None, found)
            row["seconds"][f"eigenvectors, {name}"] = time.perf_counter() - start
            row[f"largest eigenvalue, {name}"] = float(spectrum.values[-1])
        rows.append(row)
    return rows


SMALL = (  # for the sanitizer, which is slow
    ([wl.cntk_gap(3)], (5, 4, 1)),
    ([wl.cntk_vanilla(6)], (6, 5, 1)),
    ([biased()], (4, 3, 1)),
    ([wl.cntk_gap(3)], (2, 34, 1)),
    ([tree(padded=False)], (7, 6, 1)),
    ([tree(padded=True)], (6, 5, 1)),
)


def sanitized() -> dict[str, str]:
    """Run a small kernel of each kind under compute-sanitizer, where it is installed."""
    tool = find_sanitizer()
    results: dict[str, str] = {}
    for check in ("memcheck", "racecheck") if tool else ():
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, __file__]
        try:
            done = subprocess.run(
                [*command, "--small"], capture_output=True, text=True, check=False, timeout=100
            )
        except subprocess.TimeoutExpired:
            results[check] = "took longer than 100 s"
            continue
        said = [line for line in done.stdout.splitlines() if "=========" in line]
        results[check] = f"exit code {done.returncode}; {said[-1] if said else done.stderr[-300:]}"
    return results


def find_sanitizer() -> str:
    """Return the path of compute-sanitizer, or nothing."""
    found = shutil.which("compute-sanitizer")
    for folder in map(Path, sys.path):  # the package nvidia-cuda-sanitizer-api
        if found is None:
            tools = sorted(folder.glob("nvidia/**/compute-sanitizer"))
            found = next((str(tool) for tool in tools if tool.is_file()), None)
    return found or ""


def small() -> None:
    """Compute what the sanitizer looks at: each kind of kernel."""
    for networks, shape in SMALL:
        x = images(4, shape, 0)
        compute(get_backend("cuda"), networks, x, x[:3], dtype="float32")
        compute(get_backend("cuda"), networks, x, dtype="float32")


COMPLETE = 50_000 * 50_001 // 2 + 50_000 * 10_000  # pairs of complete CIFAR-10


def table(record: dict[str, Any]) -> str:
    """Return the tables of docs/gpu.md."""
    rates = {row["name"]: row for row in record["rates"]}
    lines = ["| depth | GAP, float32 | V | LAP(4) | GAP, float64 | V | LAP(4) |", "|---" * 7 + "|"]
    for depth in DEPTHS:
        cells = [str(depth)]
        for dtype in ("float32", "float64"):
            for readout in ("GAP", "V", "LAP(4)"):
                row = rates[f"{readout} depth {depth} {dtype}"]
                scale, unit = (1e9, "ns") if readout == "V" else (1e6, "µs")
                pair, rate = row["seconds_a_pair"], row["element_layers_per_second"]
                cells.append(f"{pair * scale:.3g} {unit} ({rate / 1e11:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    deepest, base = rates["GAP depth 21 float32"], rates["GAP depth 11 float32"]
    five, v_five = rates["GAP five depths float32"], rates["V five depths float32"]
    lines += ["", "| what | measured |", "|---|---|"]
    share = five["seconds_a_pair"] / deepest["seconds_a_pair"]
    lines.append(f"| GAP, five depths in one pass / depth 21 alone | {share:.3f} |")
    lines.append(f"| V, five depths in one pass | {v_five['seconds_a_pair'] * 1e9:.1f} ns a pair |")
    for size in ("28x28", "8x8"):
        row = rates[f"GAP depth 11, {size}, float32"]
        share = row["element_layers_per_second"] / base["element_layers_per_second"]
        lines.append(f"| {size} / 32x32, element-layers/s, GAP depth 11 | {share:.2f} |")
    for name in MYRTLE:
        row = rates.get(f"{name} float32")
        if row is not None:  # older records
            pair, hours = row["seconds_a_pair"], row["seconds_a_pair"] * COMPLETE / 3600
            lines.append(
                f"| {name}, float32 | {pair * 1e6:.3g} µs a pair, {1 / pair:,.0f} pairs/s; "
                f"complete CIFAR-10 in {hours:.1f} h |"
            )
    wide = rates["GAP depth 3, 64x64, float32"]["element_layers_per_second"]
    lines.append(f"| 64x64, fields in memory, GAP depth 3 | {wide:.1e} element-layers/s |")
    for name, row in record["engine"].items():
        lines.append(f"| `wl.kernel` / the kernels alone, {name} | {row['share']:.2f} |")
    lines.append(f"| fused multiply-adds of the card, by threads | {record['fma_peak']:.2e} /s |")
    for dtype in ("float32", "float64"):
        worst = max(row["error"] for row in record["agreement"] if row["dtype"] == dtype)
        lines.append(f"| largest error against the processor in float64, {dtype} | {worst:.1e} |")
    passed = sum(not said for said in record["conformance"].values())
    lines.append(f"| conformance suite, on the card | {passed} of {len(record['conformance'])} |")
    lines += ["", "| depth | GAP, complete CIFAR-10 | V |", "|---|---|---|"]
    for depth in DEPTHS:
        gap, v = (
            rates[f"{readout} depth {depth} float32"]["seconds_a_pair"] * COMPLETE
            for readout in ("GAP", "V")
        )
        lines.append(f"| {depth} | {gap / 3600:.1f} h | {v:.0f} s |")
    gap, v = five["seconds_a_pair"] * COMPLETE, v_five["seconds_a_pair"] * COMPLETE
    lines.append(f"| all five in one pass | {gap / 3600:.1f} h | {v:.0f} s |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="print the tables of a record, and do nothing")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--no-conformance", action="store_true")
    parser.add_argument("--commit", help="of the code, where it is not in its repository")
    parser.add_argument("--small", action="store_true", help="compute a few kernels")
    arguments = parser.parse_args()
    if arguments.small:
        small()
        return
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())), end="")
        return
    check_file(arguments.out)
    begin = time.perf_counter()

    record: dict[str, Any] = {"format": "widelimit.gpu_check/1"}

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begin:6.1f} s  {text}", flush=True)
        record["seconds"] = time.perf_counter() - begin
        write_atomically(arguments.out, json.dumps(record, indent=1) + "\n")  # what there is

    backend = get_backend("cuda")
    assert isinstance(backend, CudaBackend)
    device = backend.devices[0]
    assert isinstance(device, CupyDevice)
    cupy: Any = __import__("cupy")
    runtime = cupy.cuda.runtime
    record["environment"] = dataclasses.asdict(describe_environment())
    record["environment"]["commit"] = arguments.commit or record["environment"]["commit"]
    record["card"] = dataclasses.asdict(device.card)
    record["software"] = {
        "driver": runtime.driverGetVersion(),
        "cupy": cupy.__version__,
        "nvrtc": compiler_version(),
    }
    say(f"{device.card.name}, NVRTC {compiler_version()}, CuPy {cupy.__version__}")
    record["fma_peak"] = fma_peak(device)
    say(f"FMA peak {record['fma_peak']:.3e} thread instructions/s")

    first = program_of([wl.cntk_gap(11)], (32, 32, 3))
    start = time.perf_counter()
    backend.compile_all([(first, "float32")])
    record["first_compilation"] = time.perf_counter() - start
    say(f"first compilation of GAP depth 11: {record['first_compilation']:.1f} s")
    programs = [(program_of(n, s), d) for _, n, s, d in rate_cases()]
    cases = [(networks, shape) for _, networks, shape in AGREEMENT]
    for networks, shape in (*cases, *SMALL):
        for program, _ in compile_networks(networks, shape, KINDS):
            programs += [(program, "float32"), (program, "float64")]
    if not arguments.no_conformance:
        programs += conformance_programs()
    start = time.perf_counter()
    backend.compile_all(programs)
    record["compilation"] = {"programs": len(programs), "seconds": time.perf_counter() - start}
    say(f"compiled the kernels of {len(programs)} programs")

    record["agreement"] = []
    for row in agreement(backend):
        record["agreement"].append(row)
        say(f"{row['name']}, {row['dtype']}: error {row['error']:.1e}, {row['symmetric']}, "
            f"{row['same_bits']}")  # fmt: skip
    record["rates"] = []
    for name, networks, shape, dtype in rate_cases():
        program = program_of(networks, shape)
        side = math.sqrt(SECONDS * GUESSED[dtype] / program.element_layers)
        side = max(4, min(1024, int(side) // 4 * 4))
        seconds = bare(backend, program, dtype, side, side)
        pair = min(seconds) / side**2
        record["rates"].append(
            {"name": name, "pairs": side**2, "seconds": seconds, "seconds_a_pair": pair,
             "element_layers_per_second": program.element_layers / pair}
        )  # fmt: skip
        say(f"{name}: {pair * 1e6:.4g} us a pair, {program.element_layers / pair:.3e} el.-layers/s")
    record["engine"] = {}
    for name, network, n in (
        ("GAP depth 3", wl.cntk_gap(3), 2000),
        ("V depth 21", wl.cntk_vanilla(21), 4000),
    ):
        record["engine"][name] = row = engine(backend, network, n, n)
        say(f"engine, {name}: {row['share']:.3f} of the bare kernels")
    record["dense"] = dense()
    say(f"dense, depth 5, 3,072 inputs: {record['dense']}")
    record["solvers"] = solvers()
    for row in record["solvers"]:
        say(f"regression: {row}")
    record["sanitizer"] = sanitized()
    say(f"compute-sanitizer: {record['sanitizer'] or 'not installed'}")
    if not arguments.no_conformance:
        record["conformance"] = conformance(backend)
        failed = [name for name, said in record["conformance"].items() if said]
        say(f"conformance: {len(record['conformance'])} tests, failed: {failed or 'none'}")
    say("done")
    sys.exit(0 if is_good(record) else 1)


if __name__ == "__main__":
    main()
