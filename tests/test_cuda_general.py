"""General networks on a card: the device code on the processor, and the plan that it goes by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import naive
import numpy as np
import pytest
from host_device import HostDevice
from test_cpu_general import NETWORKS as OF_THE_PROCESSOR
from trees import samples, tree

import widelimit as wl
from widelimit import backends
from widelimit.backends.base import Dtype
from widelimit.backends.cpu import CpuBackend
from widelimit.backends.cuda import CudaBackend
from widelimit.backends.cuda.device import Card
from widelimit.backends.cuda.plan import plan_stages
from widelimit.backends.cuda.rounds import plan_rounds
from widelimit.backends.cuda.stages import StagesLayout, gathering
from widelimit.backends.lowered import is_chain, lower, missing
from widelimit.machine import CACHE_VARIABLE
from widelimit.matrices.families import choose_backend, find_families
from widelimit.network import (
    GELU,
    Abs,
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
    Network,
    Polynomial,
    ReLU,
    Sin,
)
from widelimit.program import compile_family, compile_networks
from widelimit.testing.compare import assert_close, assert_same_bits, compute

KINDS: Any = ("nngp", "ntk")
TOLERANCE: dict[Dtype, float] = {"float64": 1e-11, "float32": 1e-5}
SHAPE = (7, 6, 2)  # ragged: no stride divides it, and slices leave lanes free
END = [GlobalAvgPool(), Dense()]
H100 = Card("H100", "sm_90", 132, 232448, 80 * 2**30)
NETWORKS: dict[str, Sequence[Layer]] = {
    name: OF_THE_PROCESSOR[name]
    for name in (
        *("pool 2/2", "pool 3/2 same", "pool 3/1 same", "pools", "pool read out", "strided"),
        *("residual", "residual across a pool", "valid 5", "rows and columns"),
    )
} | {
    "activations": [
        *(Conv(3, 1.3, 0.2), LeakyReLU(0.2), Conv(5), Abs(), Conv(3), GELU(), AvgPool(2)),
        *(Conv(3), Gaussian(3.0), Conv(1, 1.3, 0.2), Erf(), *END),
    ],
    "waves": [
        *(Conv(3), LayerNorm(0.5), Sin(), AvgPool(3, 1, "same"), Conv(3, 0.8), Cos(), Conv(3)),
        *(LayerNorm(), ReLU(), LocalAvgPool(1), Flatten(), Dense()),
    ],
}
IN_FLOAT32 = "pool 2/2", "residual across a pool", "activations", "waves"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled kernels of this run, for all tests and processes of it."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.getbasetemp()
        root = root.parent if "popen" in root.name else root
        patch.setenv(CACHE_VARIABLE, str(root / "cuda-cache"))
        yield


def card(**options: Any) -> CudaBackend:
    return CudaBackend(HostDevice(quick=True, **options))


def check(
    network: Network, shape: tuple[int, ...], own: CudaBackend, dtypes: Sequence[Dtype], seed: int
) -> None:
    """Compare with the witness, and a rectangle with the square and with its mirror image."""
    x, z = samples(shape, 4, seed), samples(shape, 3, seed + 1)
    z[0] = x[1]  # known to both sides
    wanted = naive.kernels(network, x, z)
    for dtype in dtypes:
        values = compute(own, [network], x, z, dtype=dtype)
        for kind, value in zip(KINDS, values[0], strict=True):
            scale = getattr(wanted, f"{kind}_scale")
            error = np.abs(value - getattr(wanted, kind)) / np.where(scale > 0, scale, 1.0)
            worst = np.where(np.isnan(error), np.inf, error).max()
            assert worst < TOLERANCE[dtype], f"{kind}, {dtype}, of {network!r}: {worst:.1e}"
        turned = compute(own, [network], z, x, dtype=dtype)
        assert_same_bits(turned.swapaxes(-1, -2), values, "sides that change places")
        gram = compute(own, [network], x, dtype=dtype)
        assert_same_bits(gram.swapaxes(-1, -2), gram, "a square")
        assert_same_bits(gram[..., 1], values[..., 0], "the same image")
        one = compute(own, [network], x[2:3], z[1:2], dtype=dtype)
        assert_same_bits(one[..., 0, 0], values[..., 2, 1], "one pair")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_agrees_with_the_naive_witness(name: str) -> None:
    dtypes: Sequence[Dtype] = ("float64", "float32") if name in IN_FLOAT32 else ("float64",)
    check(Network(NETWORKS[name]), SHAPE, card(), dtypes, 0)


def test_random_trees_agree_with_the_naive_witness() -> None:
    checked = 0
    for seed in range(100):
        network, shape = tree(seed)
        programs = [program for program, _ in compile_networks([network], shape, KINDS)]
        if not any(missing(program) or is_chain(program) for program in programs):
            check(network, shape, card(), ("float64", "float32"), seed)
            checked += 1
        if checked == 5:  # each waits for its compiler
            return
    raise AssertionError("hardly a tree that a card computes")


@pytest.mark.parametrize("kind", KINDS)
def test_one_kernel_alone_has_the_values_of_both(kind: Any) -> None:
    network, x = [Network(NETWORKS["residual across a pool"])], samples(SHAPE, 3)
    both = compute(card(), network, x)[:, KINDS.index(kind)]
    assert_close(compute(card(), network, x, kinds=[kind])[:, 0], both, rtol=1e-13)


def test_what_one_way_to_a_grid_leaves_out_is_not_added_to() -> None:
    own = card()
    end = [AvgPool(2), Conv(3), ReLU()]
    near = Network([Conv(3), ReLU(), *end, *END])
    far = Network([Conv(3), ReLU(), Conv(3), ReLU(), *end, LocalAvgPool(2), Flatten(), Dense()])
    x = samples((16, 16, 1), 2, 5)
    both = compute(own, [near, far], x, dtype="float64")
    for values, network in zip(both, (near, far), strict=True):
        exact = naive.kernels(network, x, x)
        for kind, value in zip(KINDS, values, strict=True):
            assert_close(value, getattr(exact, kind), rtol=1e-11)


def test_pools_to_different_grids_are_computed_one_by_one() -> None:
    networks = [Network([Conv(3), ReLU(), AvgPool(m), Conv(3), ReLU(), *END]) for m in (2, 4)]
    joined = compile_family(networks, (9, 8, 1), KINDS)
    assert missing(joined) == ["pools to different grids in one pass"]
    families = find_families(networks, (9, 8, 1), KINDS, card())
    assert [family.positions for family in families] == [(0,), (1,)]
    assert len(find_families(networks, (9, 8, 1), KINDS, CpuBackend())) == 1


def test_a_family_with_and_without_pools_is_one_pass() -> None:
    start: list[Layer] = [Conv(3), ReLU(), Conv(3), ReLU()]
    networks = [
        Network([*start, AvgPool(2), Conv(3), ReLU(), AvgPool(2), Conv(3), ReLU(), *END]),
        Network([*start, AvgPool(2), *END]),
        Network([*start, Flatten(), Dense()]),
        Network([*start, *END]),
    ]
    x = samples((9, 8, 1), 3)
    together = compute(card(), networks, x)
    exact = compute(CpuBackend(), networks, x)
    assert_close(
        together, exact, rtol=1e-12, floor=1e-3 * np.abs(exact).max((-1, -2), keepdims=True)
    )


@pytest.mark.parametrize("name", ["pool 3/1 same", "residual across a pool"])
def test_no_bit_depends_on_where_coarse_slices_lie(name: str) -> None:
    network, x = [Network(NETWORKS[name])], samples(SHAPE, 3)
    whole = compute(card(), network, x)
    program = compile_family(network, SHAPE, KINDS)
    layout = StagesLayout(program, "float64")
    own = card(shared_bytes=2000)
    plan = plan_stages(layout, own.card)
    assert plan.memory > 0
    assert "#define WL_SAMPLES_SHARED 0" in plan.source
    assert_same_bits(compute(own, network, x), whole, "in the memory of the card")


def test_myrtle_on_images_of_cifar_10() -> None:
    network, x = [wl.myrtle(5)], samples((32, 32, 3), 2)
    exact = compute(CpuBackend(), network, x)
    assert_close(compute(card(shared_bytes=232448), network, x, dtype="float32"), exact, rtol=2e-6)


# ---------------------------------------------------------------- planted faults

POOLED, PADDED = Network(NETWORKS["pool 2/2"]), Network(NETWORKS["pool 3/1 same"])
ACROSS = Network(NETWORKS["residual across a pool"])
FAULTS = [
    (
        "a stencil that is shifted",
        POOLED,
        "start = p.column - begin;",
        "start = p.column - begin - 1;",
    ),
    (
        "a stencil that is shifted down",
        POOLED,
        "int in = r - first[a]",
        "int in = r - first[a] - 1",
    ),
    (
        "a corner term that is dropped",
        POOLED,
        "if (!used[b]) continue;",
        "if (!used[b] || (a && b)) continue;",
    ),
    ("windows of one column", POOLED, "wide = wide || some(count[b] > 1);", ""),
    (
        "terms joined one by one",
        POOLED,
        "to + i] += room[a + i] + room[b + i];",
        "to + i] = room[to + i] + room[a + i] + room[b + i];",
    ),
    ("terms that are not joined", POOLED, "+= room[a + i] + room[b + i];", "+= room[a + i];"),
    ("parts that are not cleared", POOLED, "room[a + i] = room[b + i] = 0;", ""),
    ("a window that begins outside", PADDED, "(before < 0) & (early", "(before < -1) & (early"),
    (
        "a wrong count at the border",
        PADDED,
        "early_count[e][b] = count[b] + before;",
        "early_count[e][b] = count[b];",
    ),
    (
        "a row too few of a window",
        PADDED,
        "R * G::stride_down <= from",
        "R * G::stride_down < from",
    ),
    ("a skip of another row", ACROSS, "s = mad(k3[1]", "s = mad(k3[0]"),
    ("a skip from another node", ACROSS, "s = mad(k3[1]", "s = mad(k5[1]"),
    (
        "images that do not change places",
        ACROSS,
        "swapped = task[3] == 1",
        "swapped = task[3] == 9",
    ),
    (
        "a column of a neighbour",
        ACROSS,
        "(column >= 0) & (column < width - p.size), b",
        "(column >= 0), b",
    ),
    ("sums of one sign", ACROSS, "(alone ? 0. : double(part[(i + 1) * kFields + f]))", "0."),
]


@pytest.mark.parametrize(
    ("network", "old", "new"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_planted_fault_is_noticed(network: Network, old: str, new: str) -> None:
    own = card(faults=[(old, new)])

    def check_some() -> None:  # one sum in another order changes the last bit of few pairs
        for seed in range(8):
            check(network, SHAPE, own, ["float32", "float64"], seed)

    with pytest.raises((AssertionError, OverflowError)):
        check_some()
    assert own.devices[0].planted  # type: ignore[attr-defined]


# ---------------------------------------------------------------- the plan

PLANNED: dict[str, tuple[list[Network], tuple[int, int, int]]] = {
    **{name: ([Network(NETWORKS[name])], SHAPE) for name in ("pool 3/1 same", "strided", "waves")},
    "across": ([ACROSS], (9, 11, 1)),
    "a resnet": ([wl.resnet(8)], (13, 12, 1)),
    "myrtle": ([wl.myrtle(5), wl.myrtle(7)], (32, 32, 3)),
}


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize(("warps", "window"), [(16, 64), (8, 8), (2, 1)])
def test_rounds(name: str, warps: int, window: int) -> None:
    networks, shape = PLANNED[name]
    if name == "myrtle" and warps == 2:
        pytest.skip("like others, and slow")
    lowered = lower(compile_family(networks, shape, KINDS))
    rounds = plan_rounds(lowered, warps, window)
    units = [unit for some in rounds.units for unit in some]
    for k, grid in enumerate(lowered.stages):
        found = sorted(n for unit in units if unit.stage == k for n in unit.slices)
        assert found == [*range(len(grid.slices))]  # each once
    feeders: dict[tuple[int, int], int] = {}
    for unit in units:
        for D in unit.feeds:
            feeders[unit.stage + 1, D] = feeders.get((unit.stage + 1, D), 0) + 1
    w = [max(level.w for level in part) for part in levels_of(lowered)]
    for some in rounds.units:
        assert sum(unit.tasks for unit in some) <= warps
        fed = [(unit.stage + 1, D) for unit in some for D in unit.feeds]
        assert len(fed) == len(set(fed))  # no two units of a round add to one coarse slice
        for unit in some:
            slices = lowered.stages[unit.stage].slices[[*unit.slices]]
            assert len({(di, variant) for di, _, variant, *_ in slices.tolist()}) == 1
            assert sum(w[unit.stage] - abs(slices[:, 1])) <= 32
            assert unit.alone == (slices[0, :2].tolist() == [0, 0])
            for number in unit.slices if unit.stage else ():
                assert feeders[unit.stage, number] == 0  # all that it reads is there
        for key in fed:
            feeders[key] -= 1
    if name == "myrtle" and window > 8:
        assert np.mean(rounds.rounds[:, 1]) > 0.95 * warps


def levels_of(lowered: Any) -> list[Any]:
    found: list[Any] = []
    first = 0
    for grid in lowered.stages:
        found.append(lowered.levels[first : first + grid.n_levels])
        first += grid.n_levels
    return found


@pytest.mark.parametrize(("kinds", "kib"), [(("ntk",), 140), (("nngp",), 70)])
def test_coarse_slices_of_myrtle_lie_in_shared_memory(kinds: Any, kib: int) -> None:
    layout = StagesLayout(compile_family([wl.myrtle(5)], (32, 32, 3), kinds), "float32")
    plan = plan_stages(layout, H100)
    assert gathering(layout.lowered, plan.rounds)[1] * 4 / 1024 < kib
    assert plan.memory == 0
    assert "#define WL_SAMPLES_SHARED 1" in plan.source
    assert plan.shared <= H100.shared_bytes - 1024


# ---------------------------------------------------------------- what a card cannot do


def names(network: Network, shape: tuple[int, ...]) -> list[str]:
    return missing(compile_family([network], shape, ("ntk",)))


def test_what_a_card_cannot_do_is_named_or_falls_to_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert names(POOLED, SHAPE) == names(ACROSS, SHAPE) == names(wl.cntk_gap(3), (4, 50, 1)) == []
    assert names(Network([Conv(3), Polynomial((0.0, 1.0, 0.5)), *END]), SHAPE) == ["Polynomial"]
    wide = (2, 33, 1)
    assert names(POOLED, wide) == ["such networks on images wider than 32 pixels"]
    own = card()
    monkeypatch.setattr(backends, "_cuda", lambda worker: own)
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setattr(backends, "_WORTH", 0)
    x = samples(wide, 3)
    with pytest.raises(ValueError, match=r'"cuda" cannot compute such networks on images wider'):
        wl.kernel(POOLED, x, backend="cuda")
    assert choose_backend("auto", [POOLED], wide, 3, None) == "cpu"
    assert_same_bits(wl.kernel(POOLED, x), wl.kernel(POOLED, x, backend="cpu"), "the processor")
    assert choose_backend("auto", [POOLED], SHAPE, 3, None) == "cpu"  # until a card has run it
    assert choose_backend("auto", [wl.cntk_gap(3)], SHAPE, 3, None) == "cuda"
    x = samples(SHAPE, 3)
    chosen = wl.kernel(POOLED, x, backend="cuda")
    assert "wl_stages" in own.devices[0].launched  # type: ignore[attr-defined]
    assert_close(chosen, wl.kernel(POOLED, x, backend="cpu"), rtol=1e-5)
