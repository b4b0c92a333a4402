"""What is measured, in groups, and what it should reach.

The benchmarks of a group take turns, one measurement each, several rounds: a machine that gets
slower for a while slows all of them, and ratios are medians over rounds of ratios within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import get_args

from widelimit.architectures import cntk_gap, cntk_vanilla, myrtle
from widelimit.backends.base import Dtype
from widelimit.backends.cpu import CpuBackend
from widelimit.bench.cases import (
    Benchmark,
    Setting,
    bandwidth,
    bare_core,
    interrupt,
    peak,
    scratch,
    stored_gram,
    timed_kernel,
)
from widelimit.layers import (
    GELU,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Erf,
    Flatten,
    Gaussian,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    LeakyReLU,
    LocalAvgPool,
    Pointwise,
    ReLU,
    Sin,
)
from widelimit.network import Network

__all__ = [
    "GROUPS",
    "Figure",
    "Group",
    "arithmetic",
    "choose_groups",
    "local_pooling",
    "shortfall",
]

Results = Mapping[str, Sequence[float]]
_Shares = dict[tuple[str, Dtype, int], tuple[float, float | None]]

_TABLE_1 = (3, 4, 6, 11, 21)
_DTYPES: tuple[Dtype, ...] = get_args(Dtype)

_TOLERANCE = 0.10
# Of a share of the FMA bound: processors differ by a sixth in what they do beside arithmetic.
_SHARE_TOLERANCE = 0.20


def _shares(*rows: tuple[str, Dtype, tuple[int, ...], float, float | None]) -> _Shares:
    return {
        (kernel, dtype, depth): (target, tolerance)
        for kernel, dtype, depths, target, tolerance in rows
        for depth in depths
    }


# What each kernel should reach of the FMA bound that the same run measures, at 32x32x3, by the
# instruction set in use. The bound is that of inner layers; of CNTK-V at depth 3 one layer of two
# is the first, whose sigma has a sign and needs a second polynomial: that target is an aim.
_SHARES: dict[str, _Shares] = {
    "avx512": _shares(
        ("GAP", "float32", _TABLE_1, 0.90, _SHARE_TOLERANCE),
        ("GAP", "float64", _TABLE_1, 0.80, _SHARE_TOLERANCE),
        ("V", "float32", (6, 11, 21), 0.80, _SHARE_TOLERANCE),
        ("V", "float32", (3,), 0.75, None),
    ),
    "avx2": _shares(("GAP", "float32", _TABLE_1, 0.65, _SHARE_TOLERANCE)),
}

# Where a core of today finds them: first and second cache, last cache, memory.
_BUFFERS = {"16 KiB": 2**14, "512 KiB": 2**19, "8 MiB": 2**23, "256 MiB": 2**28}


@dataclass(frozen=True)
class Figure:
    """One number of the report, computed from the measurements of its group.

    Parameters
    ----------
    name, unit : str
    value : callable
        From the measurements of each benchmark, by name, to the figure.
    target : float or None
        A ratio of two measurements of one run, so that no machine is asked for the speed of
        another; or the seconds that a user may have to wait.
    at_most : bool
        Whether the target is an upper limit.
    tolerance : float or None
        Share of the target by which it may be missed before the command fails. None: it never
        does, the target is an aim.
    """

    name: str
    unit: str
    value: Callable[[Results], float]
    target: float | None = None
    at_most: bool = False
    tolerance: float | None = _TOLERANCE


@dataclass(frozen=True)
class Group:
    """Cases that take turns, and the figures that follow from them.

    Parameters
    ----------
    cases : tuple of Benchmark
    figures : tuple of Figure
    rounds : int
        Measurements of each benchmark.
    missing : str
        Why nothing can be measured here; empty if all can.
    """

    cases: tuple[Benchmark, ...]
    figures: tuple[Figure, ...]
    rounds: int
    missing: str = ""


def shortfall(value: float, target: float, *, at_most: bool) -> float:
    """Return by what share of the target it is missed: 0 if it is reached, nan for nan."""
    missed = value - target if at_most else target - value
    return 0.0 if missed <= 0 else missed / target


def arithmetic(isa: str, dtype: Dtype) -> dict[str, float] | None:
    """Vector instructions that an inner layer needs for one vector of entries, by purpose.

    An inner layer is a trained convolution (q = 3) with ReLU, K and Theta in and out: the code of
    ``compute_rows`` (_core/kernels.cpp), two rows at a time. An FMA counts as one instruction, as
    multiplications, additions and maxima do. Not counted: loads, stores, moves, and the one
    instruction that estimates 1/sqrt.

    Returns
    -------
    dict of str to float, or None
        None for instruction sets without FMA, where the compiler decides.
    """
    if isa not in ("avx512", "avx2") or (isa, dtype) == ("avx2", "float64"):
        return None  # AVX2 has no estimate in float64: its division and square root are the limit
    # w = (m + s)(m - s), then Newton's steps from the estimate y of 1/sqrt(w), times e
    steps = {("avx512", "float32"): 4, ("avx512", "float64"): 7, ("avx2", "float32"): 6}
    return {
        # Per field: three additions give the column sums of two rows, two a row make box sums.
        "box sums of K and Theta": 2 * (1.5 + 2),
        "trained: Theta + K": 1,
        "m = X Z, e = max(m - s, 0), m + s": 4,
        "t = e / sqrt(w), v = t^2": 1 + steps[isa, dtype] + 1,
        # Degree 7, and degree 16 in v and v^2.
        "polynomial in v": 7 if dtype == "float32" else 16 + 1,
        "kappa0": 1,
        "K": 3,
        "Theta": 1,
    }


def _rate(case: Benchmark) -> Callable[[Results], float]:
    return lambda results: case.element_layers / median(results[case.name])


def _ratio(
    case: Benchmark, other: Benchmark, *, per_pair: bool = False
) -> Callable[[Results], float]:
    """Time of `case` over that of `other`, the median over rounds."""
    work = other.pairs / case.pairs if per_pair else 1.0

    def value(results: Results) -> float:
        rounds = zip(results[case.name], results[other.name], strict=True)
        return work * median(a / b for a, b in rounds)

    return value


def _relative_rate(case: Benchmark, other: Benchmark) -> Callable[[Results], float]:
    work = case.element_layers / other.element_layers

    def value(results: Results) -> float:
        rounds = zip(results[case.name], results[other.name], strict=True)
        return work * median(b / a for a, b in rounds)

    return value


def _share(
    case: Benchmark, top: Benchmark, isa: str, dtype: Dtype
) -> Callable[[Results], float] | None:
    """Share of the element-layers that a peak of instructions per second allows."""
    needed = arithmetic(isa, dtype)
    if needed is None:
        return None
    work = case.element_layers * sum(needed.values()) / CpuBackend(isa).lanes(dtype)
    # The peak is the largest that was seen: what is sought is a limit of the machine.
    return lambda results: work / median(results[case.name]) / max(results[top.name])


def _share_figures(
    case: Benchmark, tops: Mapping[str, Benchmark], isa: str, key: tuple[str, Dtype, int]
) -> list[Figure]:
    """Shares of the bounds that peaks give; that of the FMA bound has a target."""
    figures: list[Figure] = []
    for title, top in tops.items():
        share = _share(case, top, isa, key[1])
        if share is not None:
            target = _SHARES.get(isa, {}).get(key) if title == "FMA" else None
            asked, tolerance = target or (None, None)
            name = f"{case.name}, share of {title} bound"
            figures.append(Figure(name, "", share, asked, tolerance=tolerance))
    return figures


def local_pooling(depth: int, half_width: int) -> Network:
    """CNTK-GAP with local instead of global average pooling."""
    gap = cntk_gap(depth)
    last = gap.layers[-1]
    assert isinstance(last, Dense)
    layers = [*gap.layers[:-2], LocalAvgPool(half_width), Flatten(), last]
    return Network(layers, gap.scaling)


def _vanilla_sizes(setting: Setting, depth: int, dtype: Dtype) -> tuple[int, int]:
    """Whole blocks of the engine, and many: what is done once per image must not count much."""
    if setting.quick:
        return 32, 32
    rows = {3: 1024, 4: 1024, 6: 512, 11: 512, 21: 256}[depth]
    return (2 * rows if dtype == "float32" else rows), min(1024, 2 * rows)


def _speed(setting: Setting) -> Group:
    isa = setting.isa
    cases: list[Benchmark] = []
    figures: list[Figure] = []
    for dtype in _DTYPES:
        tops = {
            "FMA": peak(f"FMA {dtype}", isa, dtype),
            "mixed": peak(f"mixed {dtype}", isa, dtype, mixed=True),
        }
        cases += tops.values()
        for title, top in tops.items():
            value = _maximum(top)
            figures.append(Figure(f"peak, {title} {dtype}", "instructions/s", value))
        for kind in ("V", "GAP", "LAP(4)"):
            for depth in _TABLE_1:
                network, sizes = cntk_gap(depth), None
                if kind == "V":
                    network, sizes = cntk_vanilla(depth), _vanilla_sizes(setting, depth, dtype)
                elif kind == "LAP(4)":
                    network = local_pooling(depth, 4)
                name = f"{kind} depth {depth} {dtype}"
                case = timed_kernel(setting, name, network, dtype=dtype, sizes=sizes)
                cases.append(case)
                figures.append(Figure(name, "element-layers/s", _rate(case)))
                if kind != "LAP(4)":
                    figures += _share_figures(case, tops, isa, (kind, dtype, depth))
    for title, size in _BUFFERS.items():
        if setting.quick and size > 2**20:
            continue
        case = bandwidth(f"read {title}", isa, size)
        cases.append(case)
        figures.append(Figure(f"read bandwidth, {title}", "B/s", _maximum(case)))
    return Group(tuple(cases), tuple(figures), 5)


def _maximum(case: Benchmark) -> Callable[[Results], float]:
    return lambda results: max(results[case.name])


def _sizes(setting: Setting) -> Group:
    network = cntk_gap(11)
    reference = timed_kernel(setting, "32x32", network)
    cases, figures = [reference], [Figure("32x32", "element-layers/s", _rate(reference))]
    for side in (8, 16, 28) if setting.quick else (8, 16, 28, 64, 96):
        name = f"{side}x{side}"
        case = timed_kernel(setting, name, network, (side, side, 3))
        cases.append(case)
        figures.append(Figure(name, "element-layers/s", _rate(case)))
        relative = _relative_rate(case, reference)
        figures.append(Figure(f"{name} / 32x32, element-layers/s", "", relative, 0.65))
    return Group(tuple(cases), tuple(figures), 5)


def _families(setting: Setting) -> Group:
    cases: list[Benchmark] = []
    figures: list[Figure] = []

    def compare(
        title: str, case: Benchmark, other: Benchmark, target: float, *, per_pair: bool
    ) -> None:
        for new in (case, other):
            if all(known.name != new.name for known in cases):
                cases.append(new)
        value = _ratio(case, other, per_pair=per_pair)
        figures.append(Figure(title, "", value, target, at_most=True))

    # Both cases of a comparison compute the same pairs.
    deepest = timed_kernel(setting, "GAP depth 21", cntk_gap(21))
    sizes = (deepest.detail["n1"], deepest.detail["n2"])
    family = [cntk_gap(depth) for depth in _TABLE_1]
    case = timed_kernel(setting, "GAP, the depths of Table 1", family, sizes=sizes)
    compare("five depths in one pass / depth 21 alone", case, deepest, 1.15, per_pair=False)

    alone = timed_kernel(setting, "GAP depth 11", cntk_gap(11))
    sizes = (alone.detail["n1"], alone.detail["n2"])
    case = timed_kernel(
        setting, "GAP depth 11, NTK and NNGP", cntk_gap(11), kinds=("ntk", "nngp"), sizes=sizes
    )
    compare("NTK and NNGP / NTK alone", case, alone, 1.10, per_pair=False)
    case = timed_kernel(setting, "LAP(4) depth 11", local_pooling(11, 4), sizes=sizes)
    compare("LAP(4) / GAP", case, alone, 0.30, per_pair=False)

    n = 64 if setting.quick else 512
    for depth in (3, 11):
        net = cntk_vanilla(depth)
        half = timed_kernel(setting, f"V depth {depth}, Gram n={n}", net, gram=n)
        whole = timed_kernel(setting, f"V depth {depth}, square n={n}", net, gram=n, square=True)
        title = f"symmetric Gram / full square, V depth {depth}, n={n}"
        compare(title, half, whole, 0.52, per_pair=False)
    for side in (16,) if setting.quick else (16, 32):
        shape = (side, side, 3)
        title = f"GAP depth 11, {side}x{side}, Gram of"
        few, many = (
            timed_kernel(setting, f"{title} {n}", cntk_gap(11), shape, gram=n) for n in (20, 32)
        )
        title = f"a pair of a Gram of 20 / of 32 images, GAP {side}x{side}"
        compare(title, few, many, 1.30, per_pair=True)
    return Group(tuple(cases), tuple(figures), 5)


# Of the rate of ReLU. GELU takes a second arc tangent and more; LayerNorm is no dual.
_ACTIVATIONS: dict[Pointwise, float | None] = {
    Gaussian(): 0.9,
    LeakyReLU(0.1): 0.6,
    Erf(): 0.6,
    Sin(): 0.6,
    Cos(): 0.6,
    GELU(): None,
    LayerNorm(): None,
}


def _general(setting: Setting) -> Group:
    head: list[Layer] = [GlobalAvgPool(), Dense()]
    gap = timed_kernel(setting, "GAP depth 11", cntk_gap(11))
    cases, figures = [gap], [Figure("GAP depth 11", "element-layers/s", _rate(gap))]

    def per_pair(case: Benchmark) -> Callable[[Results], float]:
        return lambda results: median(results[case.name]) / case.pairs

    # What the layers of a Myrtle network take at the rate of layers that no pool reads.
    myrtles = {depth: myrtle(depth) for depth in (5, 7, 10)}
    alone: list[Benchmark] = []
    for depth, network in myrtles.items():
        case = timed_kernel(setting, f"Myrtle-{depth}", network)
        slower = _relative_rate(gap, case)
        figures += [
            Figure(f"Myrtle-{depth}", "s/pair", per_pair(case)),
            Figure(f"Myrtle-{depth} / its layers at the rate of GAP", "", slower, 1.35, True),
        ]
        alone.append(case)
    cases += alone
    together = timed_kernel(setting, "Myrtle-5, 7 and 10", list(myrtles.values()))
    longest = _ratio(together, alone[-1], per_pair=True)
    figures.append(Figure("Myrtle-5, 7 and 10 in one pass / Myrtle-10", "", longest, 1.25, True))
    memory = scratch(setting, "scratch memory, Myrtle-7", myrtles[7])
    figures.append(Figure(memory.name, "B", _maximum(memory), 2.0**21, at_most=True))
    cases += [together, memory]

    # Two layers, a third one, and a pool instead of it.
    block: list[Layer] = [Conv(3), ReLU()]
    ways = {"two layers": [], "three layers": block, "two layers and a pool": [AvgPool(2)]}
    two, three, pooled = (
        timed_kernel(setting, name, Network([*block * 2, *more, *head]))
        for name, more in ways.items()
    )

    def pool(results: Results) -> float:
        rounds = zip(*(per_pairs(results, case) for case in (two, three, pooled)), strict=True)
        return median((c - a) / (b - a) for a, b, c in rounds)

    def per_pairs(results: Results, case: Benchmark) -> list[float]:
        return [seconds / case.pairs for seconds in results[case.name]]

    figures.append(Figure("a 2x2 pool / a layer before it", "", pool, 0.35, at_most=True))
    cases += [two, three, pooled]

    def five(activation: Pointwise) -> Benchmark:
        network = Network([*[Conv(3), activation] * 5, *head])
        return timed_kernel(setting, f"{activation}, 5 layers", network)

    relu = five(ReLU())
    cases.append(relu)
    for activation, target in _ACTIVATIONS.items():
        case = five(activation)
        cases.append(case)
        relative = _relative_rate(case, relu)
        figures.append(Figure(f"{activation} / ReLU, element-layers/s", "", relative, target))
    return Group(tuple(cases), tuple(figures), 5)


def _threads(setting: Setting) -> Group:
    if setting.cores < 2:
        return Group((), (), 0, "this process may use one core only")
    one = timed_kernel(setting, "1 thread", cntk_gap(11), seconds=2 * setting.seconds)
    sizes = (one.detail["n1"], one.detail["n2"])
    two = timed_kernel(setting, "2 threads", cntk_gap(11), threads=2, sizes=sizes)
    figure = Figure("speed of 2 threads / 1 thread, GAP depth 11", "", _ratio(one, two), 1.9)
    return Group((one, two), (figure,), 5)


def _store(setting: Setting) -> Group:
    n = 256 if setting.quick else 4000
    net = cntk_vanilla(6)
    title = f"V depth 6, Gram n={n}"
    bare = bare_core(setting, f"{title}, compiled core alone", net, n)
    memory = timed_kernel(setting, f"{title}, kernel", net, gram=n, threads=setting.cores)
    stored = stored_gram(setting, f"{title}, gram into a store", net, n)
    figures = (
        Figure("gram into a store / compiled core alone", "", _ratio(stored, bare), 1.03, True),
        Figure("kernel / compiled core alone", "", _ratio(memory, bare)),
    )
    return Group((bare, memory, stored), figures, 5)


def _instruction_sets(setting: Setting) -> Group:
    cases: list[Benchmark] = []
    figures: list[Figure] = []
    for isa in setting.supported:
        for dtype in _DTYPES:
            top = peak(f"{isa} FMA {dtype}", isa, dtype)
            name = f"{isa} GAP depth 11 {dtype}"
            case = timed_kernel(setting, name, cntk_gap(11), dtype=dtype, isa=isa)
            cases += [top, case]
            figures.append(Figure(name, "element-layers/s", _rate(case)))
            figures += _share_figures(case, {"FMA": top}, isa, ("GAP", dtype, 11))
    return Group(tuple(cases), tuple(figures), 3)


def _interrupt(setting: Setting) -> Group:
    cases = [interrupt("GAP depth 11, 32x32", (32, 32, 3), 256, 11)]
    if not setting.quick:
        cases.append(interrupt("GAP depth 11, 96x96", (96, 96, 3), 64, 11))
        # Images so many and so large that after a second their profiles are still being computed.
        cases.append(interrupt("GAP depth 21, 96x96, 512 images", (96, 96, 3), 512, 21))
    figures = [
        Figure(f"Ctrl-C to exit, {case.name}", "s", _maximum(case), 0.5, at_most=True)
        for case in cases
    ]
    return Group(tuple(cases), tuple(figures), 5)


GROUPS: dict[str, Callable[[Setting], Group]] = {
    "speed": _speed,
    "sizes": _sizes,
    "families": _families,
    "general": _general,
    "threads": _threads,
    "store": _store,
    "instruction-sets": _instruction_sets,
    "interrupt": _interrupt,
}


def choose_groups(names: Sequence[str] | None) -> list[str]:
    """Return the groups to measure, in their order.

    Parameters
    ----------
    names : sequence of str or None
        None or empty: all of them.

    Raises
    ------
    ValueError
        If there is no group of a name.
    """
    for name in names or ():
        if name not in GROUPS:
            raise ValueError(f"groups of measurements are {', '.join(GROUPS)}, got {name!r}")
    return [name for name in GROUPS if not names or name in names]
