"""The CUDA backend without a card: its device code on the processor, and all that is around it."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from host_device import HostDevice
from hypothesis import given, settings
from hypothesis import strategies as st

import widelimit as wl
from widelimit import backends
from widelimit.backends import Backend
from widelimit.backends.base import Cancelled, Entries, Pairs
from widelimit.backends.cuda import CudaBackend
from widelimit.backends.cuda.code_cache import compiled
from widelimit.backends.cuda.device import Card, Launch, LostCard, OutOfMemory
from widelimit.backends.cuda.plan import ALONE, plan_kernels
from widelimit.backends.cuda.source import Layout
from widelimit.backends.reference import ReferenceBackend
from widelimit.machine import CACHE_VARIABLE
from widelimit.network import Conv, Dense, Flatten, GlobalAvgPool, LocalAvgPool, Network, ReLU
from widelimit.program import compile_family
from widelimit.testing.compare import KINDS, assert_close, assert_same_bits, compute
from widelimit.testing.conformance import CHAINS, BackendConformance, Case

H100 = Card("H100", "sm_90", 132, 232448, 80 * 2**30)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled kernels of this run, for all tests and processes of it."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.getbasetemp()
        root = root.parent if "popen" in root.name else root
        patch.setenv(CACHE_VARIABLE, str(root / "cuda-cache"))
        yield


@lru_cache(maxsize=1)
def backend() -> CudaBackend:
    return CudaBackend(HostDevice())


class TestOnTheHost(BackendConformance):
    """The whole conformance suite, rows in registers and fields in memory."""

    cases: ClassVar[tuple[Case, ...]] = (
        *CHAINS,
        Case("wider than a warp", wl.cntk_gap(3), (3, 33, 2)),
    )

    def make_backend(self) -> Backend:
        return backend()


# ---------------------------------------------------------------- shapes and kinds of kernels

BIASED = Network(
    [
        *(Conv(3, b_std=0.3), ReLU(), Conv(3, trainable=False, b_std=0.1), ReLU(), Conv(1)),
        *(GlobalAvgPool(), Dense(b_std=0.1)),
    ]
)
ALTERNATING = Network(
    [Conv(3), ReLU(), Conv(1), ReLU(), Conv(3), ReLU(), Conv(1), ReLU(), GlobalAvgPool(), Dense()]
)
DEEP = Network(
    [Conv(5, b_std=0.2), ReLU(), *[Conv(3, b_std=0.1), ReLU()] * 4, Flatten(), Dense(b_std=0.1)]
)
LOCAL = Network([Conv(3), ReLU(), Conv(3), ReLU(), LocalAvgPool(2), Flatten(), Dense()])


def images(shape: tuple[int, ...], n: int = 5) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(size=(n, *shape))


def agree(
    networks: Sequence[Network], shape: tuple[int, ...], device: HostDevice, dtype: str = "float64"
) -> None:
    """Compare all kernels with the reference, in a square and in a rectangle."""
    x = images(shape)
    exact = compute(ReferenceBackend(), networks, x)
    own = CudaBackend(device)
    tolerance = 1e-12 if dtype == "float64" else 5e-6
    square = compute(own, networks, x, dtype=dtype)  # pyright: ignore[reportArgumentType]
    assert_close(square, exact, rtol=tolerance)
    part = compute(own, networks, x[:2], x, dtype=dtype)  # pyright: ignore[reportArgumentType]
    assert_same_bits(part[..., 2:], square[..., :2, 2:], "a rectangle")


@pytest.mark.parametrize(
    ("networks", "shape"),
    [
        ([wl.cntk_gap(3)], (9, 8, 1)),
        ([BIASED], (3, 5, 2)),
        ([ALTERNATING], (4, 3, 1)),
        ([LOCAL], (7, 6, 1)),
        ([wl.cntk_gap(2), wl.cntk_gap(4), wl.cntk_gap(3)], (4, 4, 1)),
        ([wl.cntk_vanilla(3)], (33, 9, 1)),
    ],
    ids=["samples in shared memory", "biases", "kinds by turns", "local", "depths", "tall"],
)
def test_kernels_agree_with_the_reference(
    networks: list[Network], shape: tuple[int, int, int]
) -> None:
    agree(networks, shape, HostDevice())


@pytest.mark.parametrize(
    ("networks", "shape"), [([wl.cntk_vanilla(6)], (9, 5, 3)), ([DEEP], (4, 32, 1))]
)
def test_pairs_of_one_slice_share_fields(
    networks: list[Network], shape: tuple[int, int, int]
) -> None:
    program = compile_family(networks, shape, KINDS)
    kernels = plan_kernels(Layout(program, "float32"), H100).kernels
    assert ["#define WL_TILED 0" in kernel.source for kernel in kernels] == [True, False]
    agree(networks, shape, HostDevice(), "float32")


def test_samples_lie_in_shared_memory_where_many_slices_use_them() -> None:
    program = compile_family([wl.cntk_gap(3)], (9, 8, 1), KINDS)
    sources = [k.source for k in plan_kernels(Layout(program, "float64"), H100).kernels]
    assert any("#define WL_STAGED 0" not in source for source in sources)


@pytest.mark.parametrize("shape", [(3, 65, 1), (2, 33, 2)])
def test_fields_that_do_not_fit_into_shared_memory_lie_in_that_of_the_card(
    shape: tuple[int, int, int],
) -> None:
    device = HostDevice(shared_bytes=2000)
    agree([BIASED], shape, device)
    assert {"wl_fields", "wl_finish"} == set(device.launched)


def test_more_sums_than_lanes_of_images_wider_than_a_warp() -> None:
    # 17 readouts after one layer, of both fields: 34 sums.
    networks = [
        Network([Conv(3), ReLU(), LocalAvgPool(c), Flatten(), Dense()]) for c in range(1, 18)
    ]
    agree(networks, (2, 33, 1), HostDevice())


def test_a_call_that_is_too_large_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from widelimit.backends.cuda import backend as module

    net, x = wl.cntk_vanilla(3), images((4, 4, 1), 9)
    whole = compute(backend(), [net], x)
    for most in (1, 3, 7, 20):
        monkeypatch.setattr(module, "_MOST_PAIRS", most)
        assert_same_bits(compute(backend(), [net], x), whole, f"{most} pairs at a time")
        program = compile_family([net], (4, 4, 1), KINDS)
        profile = backend().profile(program, x, np.arange(9), "float64")
        pairs = Pairs(np.arange(2, 9), np.arange(9))
        sums = backend().sums(program, profile, profile, pairs, np.zeros(1, np.int32))
        monkeypatch.undo()
        every = backend().sums(program, profile, profile, pairs, np.zeros(1, np.int32))
        assert_same_bits(sums, every, "sums")


def test_a_flag_that_is_set_late_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, cancel = images((3, 3, 1)), np.zeros(1, np.int32)
    program = compile_family([wl.cntk_vanilla(2)], (3, 3, 1), KINDS)
    profile = backend().profile(program, x, np.arange(5), "float64")
    fetch = HostDevice.fetch

    def late(self: HostDevice, *arguments: Any) -> None:
        fetch(self, *arguments)
        cancel[0] = 1

    monkeypatch.setattr(HostDevice, "fetch", late)
    with pytest.raises(Cancelled):
        backend().sums(program, profile, profile, Pairs(np.arange(5), np.arange(5)), cancel)


# ---------------------------------------------------------------- planted faults

ROWS, FIELDS = ((4, 5, 2), [wl.cntk_gap(4)]), ((2, 34, 1), [wl.cntk_gap(3)])
DEPTHS, EVEN = ((3, 3, 1), [wl.cntk_gap(4), wl.cntk_gap(3)]), ((3, 6, 1), [wl.cntk_gap(3)])
SOME, TILES = ((3, 6, 1), [LOCAL]), ((3, 5, 2), [wl.cntk_vanilla(6)])
FAULTS = [
    ("a shuffle off by one", ROWS, "l >= n ? v[l - n] : v[l]", "l > n ? v[l - n - 1] : v[l]"),
    ("a shuffle that goes too far", ROWS, "l + n < 32 ? v[l + n]", "l + n < 31 ? v[l + n + 1]"),
    ("a lost mask", ROWS, "m.active & (local >= k)", "m.active"),
    ("another lost mask", ROWS, "m.active & (local + k < width)", "m.active"),
    (
        "a wrong cut",
        ROWS,
        "const I cut = kW - dj;",
        "const I cut = kW - dj - 1;",
    ),
    ("a dropped layer", ROWS, "l < 4; ++l", "l < 3; ++l"),
    ("a profile of another layer", ROWS, "z = advance(z, kField);", ""),
    ("a row too few", ROWS, "i + 1 + R < N ? both +", "i + 2 + R < N ? both +"),
    ("a row of the wrong image", ROWS, "Column<kH - N, N> zs(z);", "Column<0, N> zs(z);"),
    ("Theta with K in it", DEPTHS, "merged ? T[i] - K[i] : T[i]", "T[i]"),
    (
        "the sign of a displacement",
        ROWS,
        "const B swapped = how == 1;",
        "const B swapped = how == 9;",
    ),
    ("a weight of another column", SOME, "dj - 1) * kW + local", "dj) * kW + local"),
    ("sums of half of the columns", EVEN, "if (n < kColumns) v = v +", "if (n > kColumns) v = v +"),
    ("an entry that is left out", ROWS, "e < c.n_entries; ++e", "e + 2 < c.n_entries; ++e"),
    ("a scale that is forgotten", ROWS, "c.factors[field] * (", "("),
    ("one polynomial for the other", ROWS, "v * polynomial(WL_C", "v * polynomial(WL_A"),
    ("a profile of another layer, in a tile", TILES, "advance(z, at), m", "z, m"),
    ("a field of the other half", TILES, "return field % 2 * kHalf;", "return 0;"),
    ("a row for a column", TILES, "kTileColumns + kTileRows, kField)", "kTileColumns, kField)"),
    ("a sample twice", TILES, "column = tile_column + i - kTileRows", "column = tile_column"),
    ("a first pixel in a field", FIELDS, "d.x_at = e[1] < 0 ? -e[1] : 0;", "d.x_at = 0;"),
    ("a strip too few", FIELDS, "strip < kAcross * kDown", "strip < kAcross * kDown - 1"),
    ("the edge of a field", FIELDS, "column + b < d.width", "column + b <= d.width"),
    ("fields that change places", FIELDS, "turn = 1 - turn;", "turn = turn;"),
]


@pytest.mark.parametrize(
    ("where", "old", "new"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_planted_fault_is_noticed(
    where: tuple[tuple[int, int, int], list[Network]], old: str, new: str
) -> None:
    shape, networks = where
    device = HostDevice(faults=[(old, new)])
    # What is not summed is not a number.
    with pytest.raises((AssertionError, OverflowError), match=r"differ by more|got nan"):
        agree(networks, shape, device, "float32")
    assert device.planted


# ---------------------------------------------------------------- entries

poolings = st.sampled_from([GlobalAvgPool(), Flatten(), LocalAvgPool(1), LocalAvgPool(2)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.lists(poolings, min_size=1, max_size=3))
def test_every_slice_is_in_one_entry(h: int, w: int, pools: list[Any]) -> None:
    def network(depth: int, pool: Any) -> Network:
        tail = [pool, Flatten(), Dense()] if isinstance(pool, LocalAvgPool) else [pool, Dense()]
        return Network([*[Conv(3), ReLU()] * depth, *tail])

    networks = [network(3 - i, pool) for i, pool in enumerate(pools)]
    program = compile_family(networks, (h, w, 1), ("ntk",))
    kernels = plan_kernels(Layout(program, "float32"), H100)
    entries = [tuple(map(int, entry)) for entry in kernels.entries]
    packed = kernels.kernels[0].name == "wl_rows"
    found: Counter[tuple[int, int]] = Counter()
    depth_of: dict[tuple[int, int], int] = {}
    for di, dj, sign, depth in entries:
        slices = [(di, dj), (di, dj - w)] if packed and dj else [(di, dj)]
        for d in slices:
            d = (-d[0], -d[1]) if sign == 1 else d
            found[d] += 1
            depth_of[d] = depth
    for di, dj, variant in program.stages[0].slices.tolist():
        for d in ((di, dj), (-di, -dj)):
            assert found[d] == 1
            assert depth_of[d] >= len(program.stages[0].variants[int(variant)])
    assert entries[0][:3] == (0, 0, ALONE)
    # What is not its own opposite is followed by its opposite.
    rest = [entry for entry in entries if entry[2] != ALONE]
    assert [e[2] for e in rest] == [0, 1] * (len(rest) // 2)
    assert all(a[:2] == b[:2] for a, b in zip(rest[::2], rest[1::2], strict=True))
    if packed:
        sizes = kernels.variants
        assert sizes[:, 1].sum() == len(entries)
        for rows in range(1, h + 1):
            part = entries[sizes[rows, 0] : sizes[rows, 0] + sizes[rows, 1]]
            assert all(entry[0] == h - rows for entry in part)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 40),
    st.sampled_from(["all", "upper", "diagonal"]),
    st.integers(0, 40),
    st.integers(1, 300),
)
def test_every_entry_of_a_tile_is_in_one_call(
    n1: int, n2: int, part: Any, known: int, most: int
) -> None:
    from widelimit.backends.cuda import backend as module

    n1 = n2 if part != "all" else max(1, n1)
    known = min(known, n2)
    program = compile_family([wl.cntk_vanilla(2)], (3, 3, 1), ("ntk",))
    done = np.zeros((n1, n2), int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_PAIRS", most)
        for pairs, swapped in backend().cut(program, "float32", Entries(n1, n2, part, known)):
            assert not swapped
            rows, columns = pairs.rows, pairs.columns
            done[(rows, columns) if pairs.pairwise else np.ix_(rows, columns)] += 1
    i, j = np.indices(done.shape)
    wanted = {
        "all": j >= known,
        "upper": (i <= j) & (j >= known),
        "diagonal": (i == j) & (j >= known),
    }
    assert np.array_equal(done == 1, wanted[part])
    assert done.max(initial=0) <= 1


# ---------------------------------------------------------------- a card that fails


class Small(HostDevice):
    """A card that has no room for large arrays."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def empty(self, n: int, dtype: str) -> np.ndarray:
        if n > self.numbers:
            raise OutOfMemory(f"{n} numbers")
        return super().empty(n, dtype)


def test_a_card_without_room_computes_less_at_a_time() -> None:
    x = images((4, 4, 1), 9)
    whole = compute(backend(), [wl.cntk_gap(3)], x)
    small = CudaBackend(Small(2 * 28 * 5))
    assert_same_bits(compute(small, [wl.cntk_gap(3)], x), whole, "little memory")
    with pytest.raises(MemoryError, match="no room for a single pair"):
        compute(CudaBackend(Small(20)), [wl.cntk_gap(3)], x)


class Dying(HostDevice):
    """A card that is lost after some launches."""

    def __init__(self, launches: int) -> None:
        super().__init__()
        self.left = launches

    def launch(self, kernel: Any, launch: Launch, arguments: Sequence[Any]) -> None:
        self.left -= 1
        if self.left < 0:
            raise LostCard("the host failed: start again in a new process")
        super().launch(kernel, launch, arguments)


def test_what_was_finished_is_there_after_a_card_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, net = images((3, 3, 1), 200), wl.cntk_vanilla(2)
    whole = wl.kernel(net, x, backend="reference")
    where = tmp_path / "k.zarr"
    monkeypatch.setattr(backends, "_cuda", lambda worker: CudaBackend(Dying(9)))
    with pytest.raises(LostCard, match="start again"):
        wl.gram(net, x, store=where, backend="cuda", tile=64, threads=1)
    finished = len([*where.glob("**/c/*/*")])
    monkeypatch.setattr(backends, "_cuda", lambda worker: backend())
    resumed = wl.gram(net, x, store=where, backend="cuda", tile=64, threads=1)
    assert 0 < finished < 16
    assert_close(resumed[:, :], whole, rtol=5e-6)


def test_a_store_of_the_processor_is_not_continued_on_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, net = images((3, 3, 1), 8), wl.cntk_vanilla(2)
    monkeypatch.setattr(backends, "_cuda", lambda worker: backend())
    where = tmp_path / "k.zarr"
    wl.gram(net, x, store=where, backend="cpu")
    next(where.glob("**/c/0/0")).unlink()
    with pytest.raises(ValueError, match="allow_mixed"):
        wl.gram(net, x, store=where, backend="cuda")
    mixed = wl.gram(net, x, store=where, backend="cuda", allow_mixed=True)
    assert_close(mixed[:, :], wl.kernel(net, x), rtol=5e-6)


# ---------------------------------------------------------------- several cards, and the choice


def test_several_cards_have_the_bits_of_one() -> None:
    x, z = images((4, 4, 1), 23), images((4, 4, 2), 9)[..., :1]
    cards = [HostDevice() for _ in range(3)]
    several = CudaBackend(*cards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["widelimit.backends.cuda.backend"], "_MOST_PAIRS", 16)
        for right in (None, z):
            whole = compute(backend(), [wl.cntk_gap(3)], x, right, threads=3)
            got = compute(several, [wl.cntk_gap(3)], x, right, threads=3)
            assert_same_bits(got, whole, "three cards")
    assert all(card.launched for card in cards)


class Full(HostDevice):
    """A card that has no room for samples."""

    def put(self, values: np.ndarray) -> np.ndarray:
        if values.nbytes > 5000:
            raise OutOfMemory("no room")
        return super().put(values)


def test_samples_that_a_card_has_no_room_for_are_refused_with_what_to_do() -> None:
    with pytest.raises(MemoryError, match=r"MiB are needed on the host.*smaller tile"):
        compute(CudaBackend(Full()), [wl.cntk_gap(3)], images((8, 8, 1), 30))


@pytest.mark.parametrize("shape", [(3, 2, 1), (131,)])
def test_dense_networks_on_a_card(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["widelimit.backends.cuda.dense"], "_SIDE", 16)
    net = Network([Dense(b_std=0.1), ReLU(), Dense(), ReLU(), Dense()])
    x, z = images(shape, 70), images(shape, 37)
    x[50] = x[3]
    cards = [HostDevice(), HostDevice()]
    own = CudaBackend(*cards)
    for right in (None, z):
        exact = compute(ReferenceBackend(), [net], x, right)
        assert_close(compute(own, [net], x, right), exact, rtol=1e-13)
        part = compute(own, [net], x[5:40], right)
        whole = compute(own, [net], x, right)
        kept = whole[..., 5:40, 5:40] if right is None else whole[..., 5:40, :]
        assert_same_bits(part, kept, "part of it")
    assert all("product" in card.launched for card in cards)


SMALL = wl.cntk_vanilla(3)
WORK = compile_family([SMALL], (3, 3, 1), ("ntk",)).element_layers


def with_a_card(monkeypatch: pytest.MonkeyPatch, worth: float) -> None:
    """Make the host a card that is worth so many element-layers."""
    monkeypatch.setattr(backends, "_cuda", lambda worker: backend())
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setattr(backends, "_WORTH", worth / backends.default_threads())


def test_a_card_is_chosen_where_the_work_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images((3, 3, 1), 20)
    cpu = wl.kernel(SMALL, x)
    with_a_card(monkeypatch, WORK * 20 * 21 / 2)
    card = wl.kernel(SMALL, x, backend="cuda")
    assert not np.array_equal(cpu, card)  # the last bits tell who computed
    assert_same_bits(wl.kernel(SMALL, x), card, "worth it")
    assert_same_bits(wl.kernel(SMALL, x[:19]), cpu[:19, :19], "not worth it")
    monkeypatch.setattr(backends, "_cuda", without)
    assert_same_bits(wl.kernel(SMALL, x), cpu, "no card")
    with pytest.raises(ValueError, match='"auto", "cpu", "cuda" or "reference", got \'gpu\''):
        wl.kernel(SMALL, x, backend="gpu")  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_card_that_fails_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(worker: bool) -> Backend:
        raise LostCard("a card is there, but cannot be used: error 46")

    x = images((3, 3, 1), 20)
    cpu = wl.kernel(SMALL, x)
    with_a_card(monkeypatch, 0)
    monkeypatch.setattr(backends, "_cuda", failing)
    with pytest.warns(RuntimeWarning, match=r"error 46\. The processor computes instead"):
        assert_same_bits(wl.kernel(SMALL, x), cpu, "on the processor")
    with pytest.raises(LostCard, match="cannot be used"):
        wl.kernel(SMALL, x, backend="cuda")


def without(worker: bool) -> Backend:
    raise RuntimeError("no card")


def test_a_store_goes_on_where_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, net = images((3, 3, 1), 24), SMALL
    with_a_card(monkeypatch, 0)
    card = wl.kernel(net, x, backend="cuda")
    wl.gram(net, x[:20], store=tmp_path / "a", tile=16)
    with_a_card(monkeypatch, 1e30)
    grown = wl.gram(net, x, store=tmp_path / "b", reuse=tmp_path / "a")
    assert_same_bits(grown[:, :], card, "grown")
    monkeypatch.setattr(backends, "_cuda", without)
    finished = wl.gram(net, x, store=tmp_path / "b")
    assert_same_bits(finished[:, :], card, "finished")
    next((tmp_path / "b").glob("**/c/0/0")).unlink()
    with pytest.raises(ValueError, match=r"begun by backend cuda with host.*here is backend cpu"):
        wl.gram(net, x, store=tmp_path / "b")


def test_an_executors_worker_has_one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    from widelimit.backends.cuda import cupy_device

    monkeypatch.setattr(cupy_device, "find_devices", lambda: [HostDevice(), HostDevice()])
    backends._cuda.cache_clear()
    counts = [len(backends.get_backend("cuda", worker=w).devices) for w in (True, False)]  # pyright: ignore
    backends._cuda.cache_clear()
    assert counts == [1, 2]


def test_an_estimator_keeps_to_the_backend_of_its_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images((3, 3, 1), 24), np.arange(24) % 2
    with_a_card(monkeypatch, WORK * 24 * 25 / 2)
    outputs = [
        wl.NTKClassifier(SMALL, ridge=1e-3, backend=name).fit(x, y).decision_function(x[:3])
        for name in ("auto", "cuda", "cpu")
    ]
    assert_same_bits(outputs[0], outputs[1], "three")
    assert not np.array_equal(outputs[0], outputs[2])


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is here")
def test_without_cupy_a_card_is_refused_with_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"pip install 'widelimit\[cuda13\]'"):
        wl.kernel(wl.cntk_vanilla(2), images((3, 3, 1)), backend="cuda")


# ---------------------------------------------------------------- compiled code

SOURCES = ['extern "C" void f(int, double* x) { x[0] = 1; }', 'extern "C" void f(int, double*) {}']


def test_code_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "new" / "folder"))
    device, told = HostDevice(), []
    paths = compiled(device, SOURCES, told.append)
    assert device.compiled == 2
    assert told == [0.5, 1.0]
    assert compiled(HostDevice(), SOURCES) == paths
    x = np.zeros(1)
    device.launch(device.load(paths[0], "f", 0), Launch(1, 32), [x])
    assert x[0] == 1

    class Other(HostDevice):
        def compiler(self) -> str:
            return "another version"

    other = Other()
    assert set(compiled(other, SOURCES)).isdisjoint(paths)
    assert other.compiled == 2


@pytest.mark.parametrize("damage", ["bytes", "empty", "no checksum"])
def test_damaged_code_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (path,) = compiled(HostDevice(), SOURCES[:1])
    code = path.read_bytes()
    if damage == "no checksum":
        path.with_suffix(".sum").unlink()
    else:
        path.unlink()
        path.write_bytes(code[:-1] + bytes([code[-1] ^ 1]) if damage == "bytes" else b"")
    device = HostDevice()
    assert compiled(device, SOURCES[:1]) == [path]
    assert device.compiled == 1
    assert path.read_bytes() == code


def test_code_goes_to_a_temporary_folder_if_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    device = HostDevice()
    (path,) = compiled(device, SOURCES[:1])
    assert path.is_file()
    assert tmp_path not in path.parents


def test_only_our_own_files_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from widelimit.backends.cuda import code_cache

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(code_cache, "_KEPT", 0)
    (tmp_path / "weights.bin").write_text("of somebody else")
    (old,) = compiled(HostDevice(), SOURCES[:1])
    (new,) = compiled(HostDevice(), SOURCES[1:])
    assert {path.name for path in tmp_path.glob("*.bin")} == {"weights.bin", new.name}
    assert not old.with_suffix(".sum").exists()


def test_a_source_that_cannot_be_compiled_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(RuntimeError, match="error"):
        compiled(HostDevice(), ["this is no source"])
    assert not [*tmp_path.iterdir()]


# ---------------------------------------------------------------- what the compiler makes of it


def _report() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "gpu_report.py"
    spec = importlib.util.spec_from_file_location("gpu_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_report"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_machine_code_of_inner_layers_is_short() -> None:
    from widelimit.backends.cuda.cupy_device import compile_cubin, compiler_version

    report = _report()
    try:
        compiler_version()
    except Exception as error:  # no CuPy, or no library of the compiler beside it
        pytest.skip(f"NVRTC is not here: {error}")
    if report.tool("nvdisasm") is None:
        pytest.skip("nvdisasm is not here")
    for kernel in report.kernels_of([wl.cntk_gap(11)], (32, 32, 3), "float32", "sm_90").kernels:
        code = report.read_code(compile_cubin(kernel.source, "sm_90"))
        assert (code.spills, code.stack) == (0, 0)
        assert code.registers <= 128
        for rows in report.heights(kernel):
            if rows > 3:  # the ends of the loop weigh more and more
                assert code.loops[rows].total() <= 31.5 * rows, rows
