"""The benchmark measures what it says and judges as it says. No timing decides a test."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.backends.cpu import ISA_VARIABLE, instruction_sets
from widelimit.bench import GROUPS, Images, Setting, exit_code, render, run, write_json
from widelimit.bench import record as record_module
from widelimit.bench.cases import Benchmark, _seconds_to_exit, interrupt, lane_sizes, timed_kernel
from widelimit.bench.groups import Figure, Group, _ratio, _relative_rate, arithmetic, shortfall
from widelimit.bench.images import smooth_images
from widelimit.bench.record import measure
from widelimit.cli import app

ROOT = Path(__file__).parents[1]
SUPPORTED = tuple(name for name, supported in instruction_sets().items() if supported)


class Blank(Images):
    """Images that cost nothing: what is built from them is not run."""

    def take(self, n: int, shape: tuple[int, int, int]) -> Any:
        return np.zeros((n, *shape), np.float32)


def setting(*, isa: str = SUPPORTED[0], cores: int = 2, quick: bool = False) -> Setting:
    return Setting(Blank(), isa, SUPPORTED, cores, quick)


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# ---- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32, 3), (7, 4, 1), (1, 1, 2)])
def test_smooth_images(shape: tuple[int, int, int]) -> None:
    images = smooth_images(5, shape, seed=3)
    assert images.shape == (5, *shape)
    assert images.dtype == np.float32
    assert np.all((images >= 0) & (images <= 1))
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5
    np.testing.assert_array_equal(images, smooth_images(5, shape, seed=3))
    many = smooth_images(300, (16, 16, 1), seed=0)  # some would lie outside
    assert (many.min(), many.max()) == (0, 1)
    assert np.any(images != smooth_images(5, shape, seed=4))


def test_smooth_images_are_smooth() -> None:
    images = smooth_images(20, (32, 32, 3), seed=0)
    noise = np.random.default_rng(0).permuted(images, axis=1)  # the same values, rows in disorder
    assert np.abs(np.diff(images, axis=1)).mean() < 0.75 * np.abs(np.diff(noise, axis=1)).mean()


def test_images_of_a_file_are_taken_where_they_fit(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    stored = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(path, X_train=stored, X_test=stored[:1], y_train=np.zeros(6))
    images = Images(path)
    np.testing.assert_array_equal(images.take(4, (8, 8, 3)), np.float32(stored[:4] / 255))
    assert images.take(7, (8, 8, 3)).shape == (7, 8, 8, 3)
    assert images.take(4, (9, 8, 3)).shape == (4, 9, 8, 3)
    assert "images.npz" in images.source


def test_file_without_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", y=np.zeros(3))
    with pytest.raises(ValueError, match=r"array of shape \(n, h, w, c\), got \{'y': \(3,\)\}"):
        Images(tmp_path / "x.npz")


# ---- cases -------------------------------------------------------------------------------------


@given(
    cost=st.integers(10**2, 10**10),
    lanes=st.sampled_from([2, 4, 8, 16]),
    isa=st.sampled_from(["avx512", "avx2", "sse4", "plain"]),
    dtype=st.sampled_from(["float32", "float64"]),
    seconds=st.floats(1e-3, 10),
)
def test_sizes_fill_lane_groups(
    cost: int, lanes: int, isa: str, dtype: Any, seconds: float
) -> None:
    n1, n2 = lane_sizes(cost, lanes, isa, dtype, seconds)
    assert n1 >= 1
    assert n2 >= lanes
    assert n2 % lanes == 0


def test_sizes_follow_the_time() -> None:
    short, long = (lane_sizes(10**7, 16, "avx512", "float32", s) for s in (1.0, 4.0))
    assert math.prod(long) == pytest.approx(4 * math.prod(short), rel=0.2)


@pytest.mark.parametrize("isa", SUPPORTED)
def test_a_kernel_is_timed(isa: str) -> None:
    shared = Setting(Images(), isa, SUPPORTED, 1)
    net = cntk_gap(3)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    before = os.environ.get(ISA_VARIABLE)
    case = timed_kernel(shared, "tiny", net, (4, 5, 1), sizes=(3, 2))
    assert case.measure() > 0
    assert (case.pairs, case.element_layers) == (6, 6 * 2 * 20**2)
    assert case.detail["isa"] == isa
    assert os.environ.get(ISA_VARIABLE) == before
    if cores is not None:
        assert os.sched_getaffinity(0) == cores


@pytest.mark.parametrize(("square", "pairs"), [(False, 15), (True, 25)])
def test_pairs_of_a_gram_matrix(square: bool, pairs: int) -> None:
    net = cntk_vanilla(3)
    case = timed_kernel(setting(), "gram", net, (4, 4, 1), gram=5, square=square)
    assert case.pairs == pairs


def test_time_to_exit() -> None:
    prompt = "import time\nprint('started', flush=True)\ntime.sleep(600)"
    assert _seconds_to_exit(prompt, 0.05) >= 0  # it raises if the program has to be killed


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit", "did not start"),
        ("print('started')", "ended by itself"),
        (
            "import time\n"
            "try:\n    print('started', flush=True)\n    time.sleep(600)\n"
            "except KeyboardInterrupt: print('going on')",
            "went on",
        ),
    ],
)
def test_program_that_cannot_be_interrupted_is_no_measurement(code: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _seconds_to_exit(code, 50.0 if message == "ended by itself" else 0.3)


def test_interrupted_program_is_valid() -> None:
    assert interrupt("x", (32, 32, 3), 256, 11).measure() > 0


# ---- groups ------------------------------------------------------------------------------------


def polynomial_length(name: str) -> int:
    text = (ROOT / "src/widelimit/_core/dual_coefficients.hpp").read_text("utf-8")
    table = re.search(rf"\b{name}\[\] = \{{(.*?)\}};", text, re.DOTALL)
    assert table is not None
    return table[1].count("0x1.")


def test_arithmetic_is_that_of_the_source() -> None:
    # Horner's scheme; in float64 one for even and one for odd powers, and the square of v.
    for dtype, table, extra in (("float32", "kA32", 0), ("float64", "kA64", 1)):
        counted = arithmetic("avx512", dtype)  # pyright: ignore[reportArgumentType]
        assert counted is not None
        assert counted["polynomial in v"] == polynomial_length(table) - 1 + extra
    assert arithmetic("plain", "float32") is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_hot_loop_is_that_of_the_source() -> None:
    options = "-fsyntax-only -std=c++17 -DWL_PLAIN -DWL_ISA=plain -Isrc/widelimit/_core"
    command = f"g++ {options} benchmarks/hot_loop.cpp"
    made = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_consistent(name: str, quick: bool) -> None:
    group = GROUPS[name](setting(quick=quick))
    names = [case.name for case in group.cases]
    assert len(set(names)) == len(names)
    assert len({figure.name for figure in group.figures}) == len(group.figures)
    assert group.rounds >= 3
    results = {case.name: [1.0, 2.0, 3.0] for case in group.cases}
    for figure in group.figures:
        assert math.isfinite(figure.value(results))
    if arithmetic(SUPPORTED[0], "float32") is not None:  # without it there is no bound
        assert any(figure.target is not None for figure in group.figures)


def test_targets() -> None:
    """Each figure that the project promises is measured: the smallest or largest target of each."""
    targets: dict[str, set[float]] = {}
    for name, make in GROUPS.items():
        figures = make(Setting(Blank(), "avx512", ("avx512", "avx2"), 2)).figures
        targets[name] = {figure.target for figure in figures if figure.target is not None}
    assert targets == {
        "speed": {0.90, 0.80, 0.75},
        "sizes": {0.65},
        "families": {1.15, 1.10, 0.30, 0.52, 1.30},
        "general": {1.35, 1.25, 0.35, 0.90, 0.60, 2.0**21},
        "threads": {1.9},
        "store": {1.03},
        "instruction-sets": {0.90, 0.80, 0.65},
        "interrupt": {0.5},
    }


def test_targets_are_shares_of_the_bound_of_the_same_run() -> None:
    """The speed of the machine cancels: twice as fast in all changes no figure with a target."""
    shared = Setting(Blank(), "avx512", ("avx512", "avx2"), 2)
    for name, make in GROUPS.items():
        if name == "interrupt":  # the seconds that a user waits
            continue
        group = make(shared)
        rates = {case.name for case in group.cases if case.unit not in ("s", "B")}
        slow = {case.name: [1.0, 2.0, 3.0] for case in group.cases}
        fast = {n: [v * 2 if n in rates else v / 2 for v in slow[n]] for n in slow}
        fast |= {case.name: slow[case.name] for case in group.cases if case.unit == "B"}
        judged = [figure for figure in group.figures if figure.target is not None]
        assert judged
        for figure in judged:
            assert figure.value(fast) == pytest.approx(figure.value(slow)), figure.name
            assert figure.unit == ("B" if "memory" in figure.name else "")


@pytest.mark.parametrize(
    ("name", "target", "tolerance"),
    [
        ("GAP depth 3 float32", 0.90, 0.20),
        ("GAP depth 21 float64", 0.80, 0.20),
        ("V depth 3 float32", 0.75, None),
        ("V depth 4 float32", None, None),
        ("V depth 6 float32", 0.80, 0.20),
        ("V depth 6 float64", None, None),
    ],
)
def test_targets_of_speed(name: str, target: float | None, tolerance: float | None) -> None:
    figures = GROUPS["speed"](Setting(Blank(), "avx512", ("avx512",), 2)).figures
    (figure,) = (f for f in figures if f.name == f"{name}, share of FMA bound")
    assert (figure.target, figure.tolerance) == (target, tolerance)


def test_one_core_cannot_show_two_threads() -> None:
    group = GROUPS["threads"](setting(cores=1))
    assert group.cases == ()
    assert "one core" in group.missing


def test_ratios_cancel_a_machine_that_gets_slower() -> None:
    a = Benchmark("a", lambda: 0.0, pairs=10, element_layers=100)
    b = Benchmark("b", lambda: 0.0, pairs=20, element_layers=100)
    results = {"a": [1.0, 2.0, 8.0], "b": [2.0, 4.0, 16.0]}
    assert _ratio(a, b)(results) == 0.5
    assert _ratio(a, b, per_pair=True)(results) == 1.0
    assert _relative_rate(a, b)(results) == 2.0


def test_shortfall() -> None:
    assert shortfall(3.0, 2.0, at_most=False) == 0
    assert shortfall(1.5, 2.0, at_most=False) == 0.25
    assert shortfall(1.5, 2.0, at_most=True) == 0
    assert shortfall(3.0, 2.0, at_most=True) == 0.5
    assert math.isnan(shortfall(math.nan, 2.0, at_most=True))


# ---- records -----------------------------------------------------------------------------------


def fake_group(
    value: float,
    target: float | None = 1.0,
    log: list[str] | None = None,
    tolerance: float | None = 0.10,
) -> Group:
    def case(name: str) -> Benchmark:
        def once() -> float:
            if log is not None:
                log.append(name)
            return value

        return Benchmark(name, once, pairs=4, element_layers=8)

    figure = Figure(
        "the figure", "", lambda results: results["one"][0], target, tolerance=tolerance
    )
    return Group((case("one"), case("two")), (figure,), 3)


def test_cases_take_turns() -> None:
    log: list[str] = []
    results = measure(fake_group(0.5, log=log), 3, lambda line: None)
    assert log == ["one", "two"] * 3
    assert results == {"one": [0.5] * 3, "two": [0.5] * 3}


def run_fake(monkeypatch: pytest.MonkeyPatch, group: Group, *, quick: bool = False) -> Any:
    def fail(shared: Setting) -> Group:
        raise RuntimeError("out of order")

    fakes = {"fake": lambda shared: group, "broken": fail}
    monkeypatch.setattr(record_module, "GROUPS", fakes)
    return lambda *names: run(setting(quick=quick), names, lambda line: None)


@pytest.mark.parametrize(
    ("value", "verdict", "code"),
    [
        (1.0, "OK", 0),
        (0.91, "MISSED by 9%", 0),
        (0.89, "MISSED by 11%", 1),
        (math.nan, "MISSED", 1),
    ],
)
def test_verdicts(monkeypatch: pytest.MonkeyPatch, value: float, verdict: str, code: int) -> None:
    record = run_fake(monkeypatch, fake_group(value))("fake")
    page = render(record)
    assert re.search(rf"the figure .* >= 1\.000 +{verdict}$", page, re.MULTILINE)
    assert exit_code(record) == code
    record["quick"] = True
    assert exit_code(record) == 0
    assert "proves nothing" in render(record)


def test_aim_that_is_missed_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_fake(monkeypatch, fake_group(0.5, tolerance=None))("fake")
    assert exit_code(record) == 0
    assert re.search(r"the figure .* >= 1\.000 +aim, short by 50%$", render(record), re.MULTILINE)


def test_figure_without_target_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_fake(monkeypatch, fake_group(0.1, target=None))("fake")
    assert exit_code(record) == 0
    assert "MISSED" not in render(record)


def test_group_that_fails_is_told_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_fake(monkeypatch, fake_group(1.0), quick=True)("broken", "fake")
    assert [group["name"] for group in record["groups"]] == ["fake"]
    assert exit_code(record) == 1
    assert "out of order" in render(record)
    assert record["groups"][0]["cases"][0]["values"] == [1.0]  # quick: one round


def test_record_is_json_and_renders_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_fake(monkeypatch, fake_group(1.0))("fake")
    path = tmp_path / "new" / "bench.json"
    write_json(record, path)
    stored = json.loads(path.read_text())
    assert render(stored) == render(record)
    assert stored["format"] == "widelimit.bench/2"
    assert {"environment", "isa", "seed", "images", "finished"} <= stored.keys()
    assert stored["groups"][0]["cases"][1]["values"] == [1.0, 1.0, 1.0]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_json({"a": 1}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["bench.json"]


# ---- benchmarks/ -------------------------------------------------------------------------------

LISTING = """
0000000000000010 <void widelimit::(anonymous namespace)::compute_rows<float, 61>(Rows const&)>:
  10:\tmov    (%rdi),%rax
  14:\tvmovaps (%rax),%zmm1
  1a:\tvaddps 0x40(%rax),%zmm1,%zmm2
  20:\tvfmadd213ps %zmm3,%zmm2,%zmm1
  26:\tvmovaps %zmm1,%zmm4
  2c:\tvrsqrt14ps %zmm4,%zmm5
  32:\tvmovaps %zmm5,(%rsp)
  38:\tvmovaps %zmm1,(%rax)
  3e:\tvmovaps %zmm2,0x40(%rax)
  44:\tadd    $0x1,%rsi
  48:\tcmp    %rsi,%rdx
  4c:\tjne    14 <void widelimit::(anonymous namespace)::compute_rows<float, 61>+0x4>
  50:\tvmovaps %zmm0,(%rax)
  56:\tret
0000000000000060 <other>:
  60:\tret
"""


def test_instruction_mix() -> None:
    mix = load_script("instruction_mix")
    (function,) = mix.read_functions(LISTING, "compute_rows<float, 61>")
    loop = mix.find_hot_loop(function)
    assert [hex(i.address) for i in (loop[0], loop[-1])] == ["0x14", "0x4c"]
    assert mix.widest_register(loop) == "%zmm"
    groups, notes, vectors = mix.count(loop)
    assert groups == {
        "load": 1,
        "addition, subtraction": 1,
        "fused multiply-add": 1,
        "move between registers": 1,
        "estimate of 1/sqrt": 1,
        "store": 3,
        "scalar: addresses and counters": 2,
        "jump": 1,
    }
    assert list(notes.values()) == [1, 1]  # the addition reads memory; one store is a spill
    assert vectors == 1  # two stores that are no spill
    assert "16 entries, 11 instructions" in mix.render(groups, notes, vectors, 16)


@pytest.mark.parametrize(
    ("per_pair", "best", "tried"),
    [
        ({1: 1.0, 2: 0.8, 4: 0.7, 8: 0.9}, 4, [1, 2, 4, 8]),
        ({1: 1.0, 2: 1.2, 4: 0.5, 8: 0.9}, 4, [1, 2, 4, 8]),  # a little dearer: go on
        ({1: 1.0, 2: 1.6, 4: 0.5, 8: 0.9}, 1, [1, 2]),
        ({1: 1.0, 2: 0.9, 4: 0.9, 8: 0.1}, 2, [1, 2]),  # a call would take too long
    ],
)
def test_best_batch(per_pair: dict[int, float], best: int, tried: list[int]) -> None:
    peers = load_script("peers")
    unit = 3.0 if tried == [1, 2] and best == 2 else 0.01
    prepared: list[int] = []
    found, seen = peers.find_best_batch(
        prepared.append, lambda batch: unit * per_pair[batch] * batch**2, 8, 1
    )
    assert (found, list(seen)) == (best, tried)
    assert prepared == tried


def test_the_help_names_every_group() -> None:
    (words,) = (p.help for p in get_command(app).commands["bench"].params if p.name == "only")
    assert ", ".join(GROUPS) in words
