"""Windows on slices, against every pair of pixels; schedules, replayed."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widelimit.lattice import Boundary, Schedule, Window, schedule, strip_width

some = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, int]:
    """Draw a window, and a number of pixels on which it fits."""
    size, stride = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    window = Window(size, stride, draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1)))
    least = max(1, size - window.low - window.high)
    return window, draw(st.integers(least, 9))


def pairs_of(window: Window, fine: int, P: int, P2: int, diagonal: bool) -> list[tuple[int, int]]:
    """Return the pairs of pixels in the windows at P and P2, by counting."""
    inside = range(fine)
    first, second = (
        range(window.stride * Q - window.low, window.stride * Q - window.low + window.size)
        for Q in (P, P2)
    )
    both = zip(first, second, strict=True) if diagonal else product(first, second)
    return [(p, p2) for p, p2 in both if p in inside and p2 in inside]


@given(windows(), st.booleans())
@some
def test_runs_are_the_pairs_of_pixels_in_two_windows(drawn: Any, diagonal: bool) -> None:
    window, fine = drawn
    coarse = window.extent(fine)
    # The last place fits, the next one does not.
    assert window.stride * (coarse - 1) + window.size <= fine + window.low + window.high
    assert window.stride * coarse + window.size > fine + window.low + window.high
    for P, P2 in product(range(coarse), repeat=2):
        D, R = P2 - P, min(P, P2)
        found: list[tuple[int, int]] = []
        for run in window.sources(D, fine, diagonal=diagonal):
            start = run.first + window.stride * R
            for r in range(start, start + run.length):
                if 0 <= r < fine - abs(run.fine):
                    found.append((r + max(0, -run.fine), r + max(0, run.fine)))
        assert sorted(found) == sorted(pairs_of(window, fine, P, P2, diagonal))


@given(windows(), st.booleans())
@some
def test_targets_and_spread_are_sources_turned_around(drawn: Any, diagonal: bool) -> None:
    window, fine = drawn
    coarse = window.extent(fine)
    spread = window.spread(fine, diagonal=diagonal)
    every = {D: window.sources(D, fine, diagonal=diagonal) for D in range(1 - coarse, coarse)}
    for d in range(1 - fine, fine):
        targets = window.targets(d, coarse, diagonal=diagonal)
        assert [run.fine for run in targets] == [d] * len(targets)
        assert list(targets) == [run for runs in every.values() for run in runs if run.fine == d]
        column = {D for D in every if spread[D + coarse - 1, d + fine - 1]}
        assert column == {run.coarse for run in targets}


def test_a_window_that_does_not_fit_has_no_place() -> None:
    assert Window(3).extent(2) == 0
    assert Window(3, 2, 1, 0).extent(2) == 1
    assert [Window(2, 2).extent(n) for n in range(1, 6)] == [0, 1, 1, 2, 2]
    assert [Window(3, 2, 1, 1).extent(n) for n in range(1, 6)] == [1, 1, 2, 2, 3]


# ---------------------------------------------------------------- schedules


def half_plane(h: int, w: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(h) for j in range(1 - w, w) if (i, j) >= (0, 0)]


def plan(
    boundaries: list[Boundary],
    shape: tuple[int, int],
    coarse: list[tuple[int, int]],
    width: int | None = None,
) -> tuple[Schedule, tuple[int, int]]:
    first = boundaries[0]
    coarse_shape = first.rows.extent(shape[0]), first.columns.extent(shape[1])
    fine, wanted = np.array(half_plane(*shape)), np.array(coarse).reshape(-1, 2)
    return schedule(boundaries, wanted, coarse_shape, fine, width), coarse_shape


def replay(boundaries: list[Boundary], made: Schedule, shape: Any) -> dict[Any, list[Any]]:
    """Go through a schedule, check what it promises; return what each slice reads, in order."""
    coarse = [tuple(D) for D in made.coarse.tolist()]
    strip = dict(zip(coarse, made.strip.tolist(), strict=True))
    feeds: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for i, j in set(map(tuple, made.fine.tolist())):
        for boundary, d in product(boundaries, ((i, j), (-i, -j))):
            for a, b in boundary.targets(d, shape):
                D = (a.coarse, b.coarse)
                feeds[i, j].add(D if D >= (0, 0) else (-D[0], -D[1]))

    def area(D: tuple[int, int]) -> int:
        return (shape[0] - abs(D[0])) * (shape[1] - abs(D[1])) * (1 if D == (0, 0) else 2)

    owner = np.full(made.size, -1)
    gathering: dict[tuple[int, int], int] = {}
    reads: dict[Any, list[Any]] = {D: [] for D in coarse}
    position = most = 0
    for index, D in enumerate(coarse):
        while position < made.needs[index]:
            i, j = made.fine[position].tolist()
            for target in feeds[i, j] & set(coarse):
                if strip[target] != made.strips[position]:
                    continue
                reads[target].append((i, j))
                number = coarse.index(target)
                assert number >= index  # never after it was done
                start = int(made.slots[number])
                if target not in gathering:
                    assert (owner[start : start + area(target)] == -1).all()
                    owner[start : start + area(target)] = number
                    gathering[target] = start
            position += 1
        most = max(most, sum(map(area, gathering)))
        # All that a slice reads has gone by, once.
        assert sorted(reads[D]) == sorted(d for d in feeds if D in feeds[d])
        start = gathering.pop(D)
        assert (owner[start : start + area(D)] == index).all()
        owner[start : start + area(D)] = -1
    assert not gathering
    assert most == made.alive <= made.size
    seen: set[Any] = set()
    for d, first in zip(map(tuple, made.fine.tolist()), made.first.tolist(), strict=True):
        assert first == (d not in seen)
        seen.add(d)
    return reads


POOL2, POOL3, SAME3 = Window(2, 2), Window(3, 2, 1, 1), Window(3, 1, 1, 1)


@pytest.mark.parametrize(
    "boundaries",
    [
        [Boundary(POOL2, POOL2, False)],
        [Boundary(POOL3, POOL3, False)],
        [Boundary(SAME3, SAME3, False)],
        [Boundary(POOL3, POOL3, True), Boundary(Window(1, 2), Window(1, 2), True)],
        [Boundary(Window(1, 1), POOL2, False)],
        [Boundary(POOL3, POOL3, False), Boundary(POOL3, POOL3, True)],
    ],
    ids=["2/2", "3/2", "3/1", "strided", "1-D", "pool and strided"],
)
@pytest.mark.parametrize("shape", [(5, 7), (1, 6), (4, 4), (3, 4)])
def test_schedules_keep_their_promises(boundaries: list[Boundary], shape: Any) -> None:
    first = boundaries[0]
    if not first.rows.extent(shape[0]):
        pytest.skip("no pixel is left")
    coarse = half_plane(first.rows.extent(shape[0]), first.columns.extent(shape[1]))
    for wanted in (coarse, coarse[:1], coarse[::2]):
        made, coarse_shape = plan(boundaries, shape, wanted)
        assert made.fine.tolist() == [list(d) for d in half_plane(*shape)]
        assert sorted(map(tuple, made.coarse.tolist())) == wanted
        assert made.coarse[0].tolist() == [0, 0]  # profiles are made by it
        reads = replay(boundaries, made, coarse_shape)
        for width in (1, 2, 3):
            strips, _ = plan(boundaries, shape, wanted, width)
            assert set(map(tuple, strips.fine.tolist())) == set(half_plane(*shape))
            assert strips.size <= made.size
            assert strips.coarse[0].tolist() == [0, 0]
            # The same additions in the same order, however wide strips are.
            assert replay(boundaries, strips, coarse_shape) == reads


@pytest.mark.parametrize(
    ("window", "side", "alive"),
    [(POOL2, 32, 8_790), (POOL2, 16, 1_134), (POOL3, 32, 16_504)],
)
def test_memory_of_a_boundary(window: Window, side: int, alive: int) -> None:
    boundaries = [Boundary(window, window, False)]
    made, _ = plan(boundaries, (side, side), half_plane(window.extent(side), window.extent(side)))
    assert made.alive == alive
    assert made.size <= 1.3 * alive  # gaps between slices of different sizes


def test_strips_take_a_share_of_the_memory_for_a_border_that_goes_by_twice() -> None:
    boundaries = [Boundary(POOL2, POOL2, False)]
    coarse = half_plane(48, 48)
    whole, shape = plan(boundaries, (96, 96), coarse)
    assert strip_width(boundaries, shape, whole.size, whole.size) is None
    width = strip_width(boundaries, shape, whole.size, 2**16)
    assert width == 13
    made, _ = plan(boundaries, (96, 96), coarse, width)
    assert made.alive < 2**16 < whole.alive
    area = (96 - made.fine[:, 0]) * (96 - abs(made.fine[:, 1]))
    assert 1 < area.sum() / area[made.first].sum() < 1.05
    # As narrow as a border of a sixteenth allows: 2 W + 1 columns of 2 W, W + 4 of W.
    assert strip_width(boundaries, shape, whole.size, 1) == 8
    same = [Boundary(SAME3, SAME3, False)]
    assert strip_width(same, (96, 96), 10**6, 1) == 64
    assert strip_width(same, (32, 32), 10**6, 1) is None
    assert strip_width([Boundary(POOL2, POOL2, True)], shape, 10**6, 1) == 1
