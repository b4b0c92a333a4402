"""Which slices the warps of a block take at a time, and where coarse slices gather: pure functions.

A *unit* is a warp's load: slices of one stage and one di, side by side in its lanes. Each unit is
taken twice, as it is and for the opposite slices, by two warps of one *round*; between rounds the
block meets at a barrier. Units of one round add to different coarse slices, so that nobody else
writes where a warp adds, and each coarse slice gathers in the order of the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from widelimit.backends.lowered import GATHER, Lowered
from widelimit.lattice import first_gap

__all__ = ["ALONE", "Gather", "Rounds", "Unit", "plan_rounds"]

WARP = 32
ALONE = 2  # how a unit is taken that is its own opposite; 0: as it is, 1: x and z change places
_MOST_PACKED = 8  # slices of a unit

_Run = tuple[int, int, int]  # coarse displacement, first fine entry, how many
_Runs = dict[int, list[_Run]]
_Displacement = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Gather:
    """A level that gathers, as the stage sees it that it gathers from.

    Parameters
    ----------
    level, source : int
    down, across : dict of int to list
        By the displacement of a fine slice: coarse displacement, first entry and number of entries
        of each run (`widelimit.lattice.Run`).
    """

    level: int
    source: int
    down: _Runs
    across: _Runs
    wanted: frozenset[int]  # slices of the next stage that go through it: no others are added to

    @property
    def most(self) -> tuple[int, int]:
        """Runs of one displacement along each axis, at most."""
        return max(map(len, self.down.values())), max(map(len, self.across.values()))

    @property
    def tallest(self) -> int:
        """Rows of a window, at most."""
        return max(count for runs in self.down.values() for _, _, count in runs)

    @property
    def longest(self) -> int:
        """Columns of a window, at most."""
        return max(count for runs in self.across.values() for _, _, count in runs)

    @property
    def early(self) -> int:
        """Windows of a row that begin before the first column, at most."""
        least = min(first for runs in self.across.values() for _, first, _ in runs)
        return max(0, -least)


@dataclass(frozen=True, slots=True)
class Unit:
    """Slices that lie side by side in a warp.

    Parameters
    ----------
    stage : int
    slices : tuple of int
        Numbers of slices of the stage, of one di and one variant.
    alone : bool
        Whether it is the slice d = 0, its own opposite.
    feeds : frozenset of int
        Slices of the next stage that these and their opposites add to.
    """

    stage: int
    slices: tuple[int, ...]
    alone: bool
    feeds: frozenset[int]

    @property
    def tasks(self) -> int:
        """Warps that it takes."""
        return 1 if self.alone else 2


@dataclass(frozen=True, eq=False)
class Rounds:
    """What the warps of a block do, in order.

    Parameters
    ----------
    gathers : tuple of tuple of Gather
        By stage: those that add what they read of it to the next one.
    packed : tuple of int
        By stage: slices of a unit, at most.
    units : tuple of tuple of Unit
        Those of each round.
    rooms : tuple of int
        By stage: entries of the memory where its slices gather.
    rounds : ndarray of int32, shape (n, 4)
        Place of the first task, number of tasks, first join, number of joins.
    tasks : ndarray of int32, shape (n, size)
        See ``stages.cuh``.
    joins : ndarray of int32, shape (n, 5)
        Stage; an entry, to which two others are added, after they were added; how many of each.
    """

    gathers: tuple[tuple[Gather, ...], ...]
    packed: tuple[int, ...]
    units: tuple[tuple[Unit, ...], ...]
    rooms: tuple[int, ...]
    rounds: NDArray[np.int32]
    tasks: NDArray[np.int32]
    joins: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class _Slices:
    """The slices of a stage."""

    d: list[_Displacement]
    variant: list[int]
    h: int
    w: int

    @cached_property
    def place(self) -> dict[_Displacement, int]:
        """Number of each slice that is not negative."""
        return {d: number for number, d in enumerate(self.d)}

    def entries(self, d: _Displacement) -> int:
        """Return the entries of one slice."""
        return (self.h - abs(d[0])) * (self.w - abs(d[1]))


def plan_rounds(lowered: Lowered, warps: int, window: int) -> Rounds:
    """Put all slices of a program into rounds, and give out the memory of coarse ones.

    Parameters
    ----------
    lowered : Lowered
    warps : int
        Of a block: an even number.
    window : int
        How many units ahead are looked at to fill a round: more of them fill more warps, and let
        more coarse slices gather at a time.
    """
    stages, gathers = _stages(lowered)
    units = _all_units(lowered, stages, gathers)
    rounds = _fill(units, stages, warps, window)
    return _placed(rounds, stages, gathers)


def _stages(lowered: Lowered) -> tuple[list[_Slices], list[tuple[Gather, ...]]]:
    stages: list[_Slices] = []
    gathers: list[list[Gather]] = []
    first = 0
    for grid in lowered.stages:
        levels = range(first, first + grid.n_levels)
        first += grid.n_levels
        # All pools of a stage have one grid, and nodes after them are no larger.
        h, w = (max(getattr(lowered.levels[n], axis) for n in levels) for axis in "hw")
        rows = grid.slices[grid.slices[:, 7] == 1].tolist()  # strips are not for a card
        stages.append(_Slices([(row[0], row[1]) for row in rows], [row[2] for row in rows], h, w))
        gathers.append([])
        for number in levels:
            level = lowered.levels[number]
            if level.kind == GATHER:
                down, across = _by_fine(level.down), _by_fine(level.across)
                variants = enumerate(stages[-1].variant)
                wanted = frozenset(n for n, variant in variants if number in grid.variants[variant])
                gathers[-2].append(Gather(number, level.source, down, across, wanted))
    return stages, [tuple(found) for found in gathers]


def _by_fine(runs: NDArray[np.int32]) -> _Runs:
    found: _Runs = {}
    for fine, coarse, first, count in runs.tolist():
        found.setdefault(fine, []).append((coarse, first, count))
    return found


def _padded(unit: Unit, slices: _Slices, n: int) -> list[_Displacement | None]:
    found: list[_Displacement | None] = [slices.d[number] for number in unit.slices]
    return found + [None] * (n - len(found))


def _grid(gather: Gather, d: _Displacement | None) -> list[_Displacement | None]:
    """Return the targets of a slice as a table of the most runs down and across; None: no run."""
    a, b = gather.most
    if d is None:
        return [None] * (a * b)
    down, across = gather.down.get(d[0], []), gather.across.get(d[1], [])
    return [
        (down[i][0], across[j][0]) if i < len(down) and j < len(across) else None
        for i in range(a)
        for j in range(b)
    ]


def _head(unit: Unit, how: int, slices: _Slices, packed: int) -> list[int]:
    """Return stage, di, variant, how; then of each slice its first lane; then of each dj."""
    d = [slices.d[number] for number in unit.slices]
    starts = np.cumsum([0, *(slices.w - abs(dj) for _, dj in d)])[:-1].tolist()
    fill = packed - len(d)
    head = [unit.stage, d[0][0], slices.variant[unit.slices[0]], how]
    return [*head, *starts, *[WARP] * fill, *(dj for _, dj in d), *[0] * fill]


def _windows(gather: Gather, unit: Unit, fine: _Slices, coarse: _Slices, packed: int) -> list[int]:
    """Return first entry, length and extent of the coarse slice: of each run down, then across."""
    a, b = gather.most
    di = fine.d[unit.slices[0]][0]
    found: list[int] = []

    def add(runs: Sequence[_Run], most: int, extent: int) -> None:
        for coarse_d, first, count in runs:
            found.extend((first, count, extent - abs(coarse_d)))
        found.extend([0] * (3 * (most - len(runs))))

    add(gather.down.get(di, []), a, coarse.h)
    for d in _padded(unit, fine, packed):
        add([] if d is None else gather.across.get(d[1], []), b, coarse.w)
    return found


def _same(d: _Displacement) -> _Displacement:
    """Return which of d and -d is in a list of slices."""
    return max(d, (-d[0], -d[1]))


def _targets(gather: Gather, d: _Displacement) -> list[_Displacement]:
    down, across = gather.down.get(d[0], []), gather.across.get(d[1], [])
    return [(a[0], b[0]) for a in down for b in across]


# ---------------------------------------------------------------- units


def _all_units(
    lowered: Lowered, stages: Sequence[_Slices], gathers: Sequence[tuple[Gather, ...]]
) -> list[list[Unit]]:
    """Return the units of each stage, those first that the next stage needs first."""
    found: list[list[Unit]] = [[] for _ in stages]
    position: dict[int, int] = {}  # of a slice of the next stage: its unit
    for k in range(len(stages) - 1, -1, -1):
        slices, through = stages[k], lowered.stages[k].variants
        feeds: list[frozenset[int]] = []
        for number, d in enumerate(slices.d):
            reached: set[int] = set()
            for gather in gathers[k]:
                if gather.source in through[slices.variant[number]]:
                    coarse = stages[k + 1].place
                    targets = {coarse.get(_same(D), -1) for D in _targets(gather, d)}
                    reached |= targets & gather.wanted
            feeds.append(frozenset(reached))
        units = list(_units(k, slices, feeds))
        late = len(position)
        where = [min((position[D] for D in unit.feeds), default=late) for unit in units]
        order = sorted(range(len(units)), key=lambda n, w=where: (w[n], n))
        found[k] = [units[n] for n in order]
        position = {number: n for n, unit in enumerate(found[k]) for number in unit.slices}
    return found


def _units(stage: int, slices: _Slices, feeds: Sequence[frozenset[int]]) -> list[Unit]:
    """Pack the slices of each di into warps: dj and dj - w fill as many lanes as the image has."""
    w = slices.w
    rows: dict[int, dict[int, int]] = {}
    for number, (di, dj) in enumerate(slices.d):
        rows.setdefault(di, {})[dj] = number
    found: list[Unit] = []

    def fits(group: Sequence[int]) -> bool:
        fed = [D for number in group for D in feeds[number]]
        width = sum(w - abs(slices.d[number][1]) for number in group)
        return (
            len(group) <= _MOST_PACKED
            and width <= WARP
            and len({slices.variant[number] for number in group}) == 1
            and len(fed) == len(set(fed))
        )

    def add(group: Sequence[int], *, alone: bool = False) -> None:
        fed = frozenset(D for number in group for D in feeds[number])
        found.append(Unit(stage, tuple(group), alone, fed))

    for di, row in sorted(rows.items()):
        both = [(dj, dj - w if di else w - dj) for dj in range(w if di else w // 2 + 1)]
        classes = [[row[dj] for dj in dict.fromkeys(pair) if dj in row] for pair in both]
        if di == 0 and 0 in row:
            add([row[0]], alone=True)
            classes = classes[1:]
        classes = [part for part in classes if part]
        # What lies side by side lies far apart, and adds to different coarse slices.
        beside = max(1, WARP // w)
        step = -(-len(classes) // beside)
        for start in range(step):
            group: list[int] = []
            for part in classes[start::step]:
                for piece in [part] if fits(part) else [[number] for number in part]:
                    if group and not fits([*group, *piece]):
                        add(group)
                        group = []
                    group = [*group, *piece]
            if group:
                add(group)
    return found


# ---------------------------------------------------------------- rounds


def _fill(
    units: Sequence[Sequence[Unit]], stages: Sequence[_Slices], warps: int, window: int
) -> list[tuple[Unit, ...]]:
    left = [list(some) for some in units]
    waiting = [[0] * len(slices.d) for slices in stages]  # units that still add to a slice
    for k, some in enumerate(units[:-1]):
        for unit in some:
            for D in unit.feeds:
                waiting[k + 1][D] += 1
    rounds: list[tuple[Unit, ...]] = []
    while any(left):
        ready = [
            [unit for unit in some if not any(waiting[k][n] for n in unit.slices)]
            for k, some in enumerate(left)
        ]
        taken: list[Unit] = []
        free = warps
        fed: list[frozenset[int]] = [frozenset() for _ in stages]
        for k in range(len(stages) - 1, -1, -1):  # what frees memory first
            for unit in ready[k][:window]:
                if unit.tasks <= free and not fed[k] & unit.feeds:
                    taken.append(unit)
                    free -= unit.tasks
                    fed[k] |= unit.feeds
        here = set(map(id, taken))
        left = [[unit for unit in some if id(unit) not in here] for some in left]
        for k, some in enumerate(fed):
            for number in some:
                waiting[k + 1][number] -= 1
        rounds.append(tuple(taken))
    return rounds


# ---------------------------------------------------------------- memory and tables


def _placed(
    rounds: Sequence[tuple[Unit, ...]],
    stages: Sequence[_Slices],
    gathers: Sequence[tuple[Gather, ...]],
) -> Rounds:
    """Give out memory, as registers are given out, and write down all tasks."""
    packed = tuple(
        max((len(u.slices) for some in rounds for u in some if u.stage == k), default=1)
        for k in range(len(stages))
    )
    taken: list[list[tuple[int, int, int]]] = [[] for _ in stages]
    slots: list[dict[int, int]] = [{} for _ in stages]
    rooms = [0] * len(stages)
    table: list[tuple[int, ...]] = []
    tasks: list[list[int]] = []
    joins: list[tuple[int, ...]] = []

    def take(stage: int, entries: int, owner: int) -> int:
        at = first_gap(taken[stage], entries, owner)
        rooms[stage] = max(rooms[stage], taken[stage][-1][1])
        return at

    def give_back(stage: int, owner: int) -> None:
        taken[stage] = [entry for entry in taken[stage] if entry[2] != owner]

    def entry_of(stage: int, d: _Displacement) -> int:
        """Return where a slice or an opposite one gathers."""
        same = _same(d)
        number = stages[stage].place[same]
        return slots[stage][number] + (stages[stage].entries(d) if d != same else 0)

    for some in rounds:
        first_task, first_join = len(tasks), len(joins)
        for unit in some:
            k = unit.stage
            for D in sorted(unit.feeds - slots[k + 1].keys() if unit.feeds else ()):
                d = stages[k + 1].d[D]
                twice = 1 if d == (0, 0) else 2
                slots[k + 1][D] = take(k + 1, twice * stages[k + 1].entries(d), D)
        for unit in some:
            k = unit.stage
            parts: dict[tuple[_Displacement, int], int] = {}
            reached = {
                (number, D)
                for number in unit.slices
                for gather in gathers[k]
                for D in _targets(gather, stages[k].d[number])
                if stages[k + 1].place.get(_same(D), -1) in unit.feeds & gather.wanted
            }
            # Where d and -d both add, they gather apart, and are added to each other first.
            for number, to in sorted(reached):
                if (number, (-to[0], -to[1])) in reached and not unit.alone:
                    size = stages[k + 1].entries(to)
                    both = [take(k + 1, size, -1) for _ in range(2)]
                    parts[to, 0], parts[to, 1] = both
                    joins.append((k + 1, entry_of(k + 1, to), *both, size))
            for how in (ALONE,) if unit.alone else (0, 1):
                sign = -1 if how == 1 else 1
                task = _head(unit, how, stages[k], packed[k])
                for n in range(packed[k]):  # where each slice lies
                    inside = n < len(unit.slices)
                    d = stages[k].d[unit.slices[n]] if inside else (0, 0)
                    task.append(entry_of(k, (sign * d[0], sign * d[1])) if k and inside else 0)
                for gather in gathers[k]:
                    task += _windows(gather, unit, stages[k], stages[k + 1], packed[k])
                    for d in _padded(unit, stages[k], packed[k]):
                        for to in _grid(gather, d):
                            same = None if to is None else stages[k + 1].place.get(_same(to))
                            if to is None or same not in unit.feeds & gather.wanted:
                                task.append(-1)
                                continue
                            here = (sign * to[0], sign * to[1])
                            at = parts.get((here, how))
                            task.append(entry_of(k + 1, here) if at is None else at)
                tasks.append(task)
        counts = sum(unit.tasks for unit in some), len(joins) - first_join
        table.append((first_task, counts[0], first_join, counts[1]))
        for k in range(1, len(stages)):
            give_back(k, -1)
        for unit in some:
            for number in unit.slices if unit.stage else ():
                give_back(unit.stage, number)
    size = max(map(len, tasks))
    return Rounds(
        tuple(gathers),
        packed,
        tuple(rounds),
        tuple(rooms),
        np.array(table, np.int32),
        np.array([task + [0] * (size - len(task)) for task in tasks], np.int32),
        np.array(joins, np.int32).reshape(-1, 5),
    )
