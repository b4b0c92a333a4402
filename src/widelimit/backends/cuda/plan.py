"""Which kernels a program needs on a card: pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from widelimit.backends.cuda.device import Card
from widelimit.backends.cuda.rounds import Rounds, plan_rounds
from widelimit.backends.cuda.source import Layout, fields_source, finish_source, rows_source
from widelimit.backends.cuda.stages import StagesLayout, gathering, stages_source
from widelimit.backends.lowered import depths

__all__ = ["Kernel", "Kernels", "StagesPlan", "plan_kernels", "plan_stages"]

_WARP = 32
_FIELD_WARPS = 8
_FIELD_BLOCKS = 4  # of a multiprocessor, where fields lie in the memory of the card
ALONE = 2  # the sign of an entry that is its own opposite
_HALF = 8  # warps of a block, if two share a multiprocessor: one computes, one gets its samples
# Rows that one kernel goes through, in all. Where blocks share a multiprocessor they should run the
# same code, which is long; where one has it alone, warps that are done go on with the next height.
_SHARED_ROWS, _ALONE_ROWS = 40, 100
_SHARED_STEPS = 5  # layers from which on copying fields pays for its barriers
_STAGES_WARPS = {"float32": 16, "float64": 8}
_STAGES_BLOCKS = 2  # of a multiprocessor, where coarse slices lie in the memory of the card
_STATIC = 1024  # bytes of shared memory that are left alone


@dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel to compile, and how it is launched.

    Parameters
    ----------
    name, source : str
    warps : int
        Of a block.
    shared : int
        Bytes of shared memory of a block.
    memory : int
        Numbers that each block needs in the memory of the card.
    most_blocks : int
        0: any number.
    blocks : callable
        From the rows and columns of a call, and whether it is pairwise, to a number of blocks.
    """

    name: str
    source: str
    warps: int
    shared: int
    memory: int
    most_blocks: int
    blocks: Callable[[int, int, int], int]


@dataclass(frozen=True, eq=False)
class Kernels:
    """All kernels of a program.

    Parameters
    ----------
    kernels : tuple of Kernel
    finish : str
        Source of the kernel that adds up.
    entries : ndarray of int32, shape (n, 4)
        di, dj, sign, layers. The first is the displacement 0; opposite ones follow each other.
    variants : ndarray of int32, shape (h + 1, 2)
        First entry and number of entries, by the number of rows.
    """

    kernels: tuple[Kernel, ...]
    finish: str
    entries: NDArray[np.int32]
    variants: NDArray[np.int32]

    @property
    def sources(self) -> list[str]:
        """Return all that is compiled; the last is `finish`."""
        return [*(kernel.source for kernel in self.kernels), self.finish]


def most_rows(dtype: str) -> int:
    """Return the largest number of rows that registers hold."""
    return 64 if dtype == "float32" else 36


def row_warps(rows: int, dtype: str) -> int:
    """Return the warps of a block whose lanes hold so many rows: a register file holds them."""
    registers = 56 + 2 * rows * (1 if dtype == "float32" else 2) + (0 if dtype == "float32" else 24)
    return max(4, min(16, 65536 // _WARP // registers // 4 * 4))


@lru_cache(maxsize=64)
def plan_kernels(layout: Layout, card: Card) -> Kernels:
    """Choose kernels, and list the entries that they go through."""
    h, w, _ = layout.program.shape
    finish = finish_source(layout)
    if w > _WARP or h > most_rows(layout.dtype):
        entries = _field_entries(layout)
        variants = np.zeros((h + 1, 2), np.int32)
        return Kernels((_field_kernel(layout, len(entries), card),), finish, entries, variants)
    entries, variants = _row_entries(layout)
    found: list[Kernel] = []
    for heights in _groups(layout, variants, card):
        found += _row_kernels(layout, heights, variants, card)
    return Kernels(tuple(found), finish, entries, variants)


# ---------------------------------------------------------------- rows in registers


def _row_entries(layout: Layout) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """List the packed pairs of slices (di, dj) and (di, dj - w), the largest first."""
    h, w, _ = layout.program.shape
    wanted = {(di, dj): depth for di, dj, depth in depths(layout.program).tolist()}
    wanted |= {(-di, -dj): depth for (di, dj), depth in wanted.items()}
    entries: list[tuple[int, int, int, int]] = []
    variants = np.zeros((h + 1, 2), np.int32)
    for di in range(h):
        first = len(entries)
        # With x and z exchanged, dj goes through the slices of w - dj: where di is 0, half of all
        # dj is enough, and 0 and w / 2 are their own opposites.
        for dj in range(w if di else w // 2 + 1):
            both = [wanted[d] for d in ((di, dj), (di, dj - w)) if d in wanted]
            if not both:
                continue
            alone = di == 0 and 2 * dj in (0, w)
            entries += [(di, dj, sign, max(both)) for sign in ((ALONE,) if alone else (0, 1))]
        variants[h - di] = first, len(entries) - first
    return np.array(entries, np.int32), variants


def _groups(layout: Layout, variants: NDArray[np.int32], card: Card) -> list[tuple[int, ...]]:
    """Put heights together that one kernel goes through, the tallest first."""
    h = layout.program.shape[0]
    most = _SHARED_ROWS if _two_blocks(layout, card) else _ALONE_ROWS
    wanted = [rows for rows in range(h, 0, -1) if variants[rows, 1]]
    groups: list[list[int]] = []
    for rows in wanted:
        if groups and sum(groups[-1]) + rows <= most:
            groups[-1].append(rows)
        else:
            groups.append([rows])
    return [tuple(group) for group in groups]


def _shared(layout: Layout) -> int:
    """Return the bytes of the samples of a pair."""
    return 2 * layout.sample * np.dtype(layout.dtype).itemsize


def _two_blocks(layout: Layout, card: Card) -> bool:
    """Whether the samples of two pairs fit into the shared memory of a multiprocessor."""
    return 2 * (_shared(layout) + _STATIC) <= card.shared_bytes


def _row_kernels(
    layout: Layout, heights: tuple[int, ...], variants: NDArray[np.int32], card: Card
) -> list[Kernel]:
    """Return the kernel of some heights; or two, one of them for tiles of pairs alone."""
    w = layout.program.shape[1]
    warps = row_warps(heights[0], layout.dtype)
    slices = _WARP // w
    counts = variants[list(heights), 1]
    count = int(counts.max())
    shared = _shared(layout)
    staged = shared <= card.shared_bytes - _STATIC and int(sum(-(-counts // slices))) >= warps
    if staged and _two_blocks(layout, card):
        warps = min(warps, _HALF)
    tile = (4, 4 * slices) if count == 1 else (1, 1)
    tiled = None
    if count == 1 and _shares_fields(layout):
        tiled = _tile_kernel(layout, heights[0], warps, card)
    source = rows_source(layout, heights, warps=warps, tile=tile, staged=staged)

    def blocks(rows: int, columns: int, pairwise: int) -> int:
        if tiled is not None and not pairwise:
            return 0
        slots = rows
        if not pairwise:
            across, down = -(-columns // tile[1]), -(-rows // tile[0])
            slots = rows * columns if staged else across * down * tile[0] * tile[1]
        return slots if staged else -(-slots * int(counts.sum()) // (slices * warps))

    kernel = Kernel("wl_rows", source, warps, shared if staged else 0, 0, 0, blocks)
    return [kernel] if tiled is None else [kernel, tiled]


def _shares_fields(layout: Layout) -> bool:
    """Whether pairs with one slice are faster where a block shares their fields (measured)."""
    steps, single = len(layout.lowered.steps), layout.dtype == "float32"
    return single and steps >= _SHARED_STEPS and len(layout.order) == 1


def _tile_kernel(layout: Layout, rows: int, warps: int, card: Card) -> Kernel | None:
    """Return the kernel of pairs with one slice: blocks share samples, a field at a time."""
    slices = _WARP // layout.program.shape[1]
    tile = (4, warps // 4 * slices)
    shared = 2 * sum(tile) * layout.field * np.dtype(layout.dtype).itemsize
    if shared > card.shared_bytes - _STATIC:
        return None
    source = rows_source(layout, (rows,), warps=warps, tile=tile, tiled=True)

    def blocks(rows: int, columns: int, pairwise: int) -> int:
        return 0 if pairwise else -(-rows // tile[0]) * -(-columns // tile[1])

    return Kernel("wl_rows", source, warps, shared, 0, 0, blocks)


# ---------------------------------------------------------------- fields in memory


def _field_entries(layout: Layout) -> NDArray[np.int32]:
    entries: list[tuple[int, int, int, int]] = []
    for di, dj, depth in depths(layout.program).tolist():
        signs = (ALONE,) if di == dj == 0 else (0, 1)
        entries += [(di, dj, sign, depth) for sign in signs]
    return np.array(entries, np.int32)


def _field_kernel(layout: Layout, n_entries: int, card: Card) -> Kernel:
    h, w, _ = layout.program.shape
    item = np.dtype(layout.dtype).itemsize
    bytes_of_fields = 4 * h * w * item
    sums = 2 * _FIELD_WARPS * len(layout.fields) * item
    in_shared = bytes_of_fields + sums <= card.shared_bytes - _STATIC
    source = fields_source(layout, warps=_FIELD_WARPS, in_shared=in_shared)

    def blocks(rows: int, columns: int, pairwise: int) -> int:
        return min(rows * columns * n_entries, 2**30)

    shared = bytes_of_fields if in_shared else 0
    memory = 0 if in_shared else 4 * h * w
    most = card.multiprocessors * _FIELD_BLOCKS
    return Kernel("wl_fields", source, _FIELD_WARPS, shared, memory, most, blocks)


# ---------------------------------------------------------------- stages


@dataclass(frozen=True, eq=False)
class StagesPlan:
    """The kernel of a general program, and what it goes by.

    Parameters
    ----------
    source : str
    rounds : Rounds
    warps : int
        Of a block.
    shared : int
        Bytes of shared memory of a block.
    memory : int
        Numbers that each block needs in the memory of the card; then there are `most_blocks`.
    most_blocks : int
    """

    source: str
    rounds: Rounds
    warps: int
    shared: int
    memory: int
    most_blocks: int

    @property
    def sources(self) -> list[str]:
        """Return all that is compiled."""
        return [self.source]


@lru_cache(maxsize=64)
def plan_stages(layout: StagesLayout, card: Card) -> StagesPlan:
    """Choose how many warps a block has, and what lies in shared memory.

    Coarse slices first, then the samples of the pair; fewer of the former at a time, with warps
    that wait, rather than in the memory of the card.
    """
    item = np.dtype(layout.dtype).itemsize
    warps = _STAGES_WARPS[layout.dtype]
    n_fields = len(layout.fields)
    sums = 8 * (n_fields + n_fields % 2) + 2 * warps * n_fields * item
    free = card.shared_bytes - _STATIC - sums
    samples = 2 * layout.sample * item
    plans = [plan_rounds(layout.lowered, warps, warps * ahead) for ahead in (4, 2, 1)]
    rooms = [gathering(layout.lowered, rounds)[1] * item for rounds in plans]
    for beside in (samples, 0):
        for rounds, room in zip(plans, rooms, strict=True):
            if room + beside <= free:
                source = stages_source(layout, rounds, warps, room=True, samples=beside > 0)
                return StagesPlan(source, rounds, warps, sums + room + beside, 0, 0)
    beside = samples if samples <= free else 0
    source = stages_source(layout, plans[0], warps, room=False, samples=beside > 0)
    most = card.multiprocessors * _STAGES_BLOCKS
    return StagesPlan(source, plans[0], warps, sums + beside, rooms[0] // item, most)
