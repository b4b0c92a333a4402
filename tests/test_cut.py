"""The calls that a tile is cut into cover every pair, once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from widelimit.backends.base import Pairs
from widelimit.backends.cut import rectangle, triangle

Counts = NDArray[np.int64]
sizes = st.integers(1, 70)
lane_counts = st.sampled_from([1, 2, 3, 4, 8, 16])
row_counts = st.integers(1, 40)
many = settings(max_examples=150, deadline=None, derandomize=True)


def entries(pairs: Pairs) -> tuple[Counts, Counts]:
    if pairs.pairwise:
        return pairs.rows, pairs.columns
    rows, columns = np.meshgrid(pairs.rows, pairs.columns, indexing="ij")
    return rows.ravel(), columns.ravel()


def cover_rectangle(calls: Iterable[tuple[Pairs, bool]], n1: int, n2: int) -> Counts:
    count = np.zeros((n1, n2), np.int64)
    for pairs, swapped in calls:
        rows, columns = entries(pairs)
        np.add.at(count, (columns, rows) if swapped else (rows, columns), 1)
    return count


def cover_triangle(calls: Iterable[Pairs], n: int) -> Counts:
    """How often each unordered pair is computed, above the diagonal."""
    count = np.zeros((n, n), np.int64)
    for pairs in calls:
        rows, columns = entries(pairs)
        np.add.at(count, (np.minimum(rows, columns), np.maximum(rows, columns)), 1)
    assert not np.tril(count, -1).any()
    return count


def check_sizes(pairs: Pairs, lanes: int, most_rows: int) -> None:
    assert pairs.rows.dtype == pairs.columns.dtype == np.int64
    assert pairs.rows.size > 0
    if pairs.pairwise:
        assert pairs.shape == pairs.rows.shape == pairs.columns.shape
        assert pairs.rows.size <= lanes * most_rows
    else:
        assert pairs.shape == (pairs.rows.size, lanes)  # no lane idle
        assert pairs.columns.size == lanes
        assert pairs.rows.size <= most_rows


@given(sizes, sizes, lane_counts, row_counts)
@many
def test_rectangle_covers_each_pair_once(n1: int, n2: int, lanes: int, rows: int) -> None:
    calls = list(rectangle(n1, n2, lanes, rows))
    for pairs, _ in calls:
        check_sizes(pairs, lanes, rows)
    np.testing.assert_array_equal(cover_rectangle(calls, n1, n2), 1)


@given(sizes, lane_counts, row_counts)
@many
def test_packed_triangle_covers_each_pair_once(n: int, lanes: int, rows: int) -> None:
    calls = list(triangle(n, lanes, rows, pack=True))
    for pairs in calls:
        check_sizes(pairs, lanes, rows)
    np.testing.assert_array_equal(cover_triangle(calls, n), np.triu(np.ones((n, n))))


@given(sizes, lane_counts, row_counts)
@many
def test_unpacked_triangle_covers_diagonal_squares_twice(n: int, lanes: int, rows: int) -> None:
    calls = list(triangle(n, lanes, rows, pack=False))
    for pairs in calls:
        check_sizes(pairs, lanes, rows)
    expected = np.triu(np.ones((n, n), np.int64))
    for start in range(0, n - n % lanes, lanes):
        square = np.triu(np.full((lanes, lanes), 2, np.int64), 1) + np.eye(lanes, dtype=np.int64)
        expected[start : start + lanes, start : start + lanes] = square
    np.testing.assert_array_equal(cover_triangle(calls, n), expected)


@given(sizes, sizes, lane_counts, row_counts)
@many
def test_few_lanes_are_idle(n1: int, n2: int, lanes: int, rows: int) -> None:
    # Lane groups that are computed: those of full calls, and pairs packed into as few as possible
    # but for the last group of a pairs.
    groups = 0
    for pairs, _ in rectangle(n1, n2, lanes, rows):
        groups += -(-pairs.rows.size // lanes) if pairs.pairwise else pairs.rows.size
    assert groups * lanes < n1 * n2 + lanes


@pytest.mark.parametrize("n", [1, 5, 16, 20, 48])
def test_a_symmetric_matrix_costs_half(n: int) -> None:
    groups = 0
    for pairs in triangle(n, 16, 4, pack=True):
        groups += -(-pairs.rows.size // 16) if pairs.pairwise else pairs.rows.size
    assert groups * 16 < n * (n + 1) / 2 + 16


def test_coverage_check_can_fail() -> None:
    calls = list(rectangle(19, 21, 8, 4))
    assert len(calls) > 3
    assert (cover_rectangle(calls[1:], 19, 21) == 0).any()
    assert (cover_rectangle([*calls, calls[0]], 19, 21) == 2).any()
    moved = [(Pairs((t.rows + 1) % 19, t.columns, t.pairwise), s) for t, s in calls[:2]]
    assert (cover_rectangle([*moved, *calls[2:]], 19, 21) != 1).any()


def test_shape_of_a_tile() -> None:
    i = np.arange(3)
    assert Pairs(i, np.arange(4)).shape == (3, 4)
    assert Pairs(i, i, pairwise=True).shape == (3,)
