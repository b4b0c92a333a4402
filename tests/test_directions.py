"""Samples of one direction are found, and no others, by comparing all with all."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widelimit.estimators import directions as module
from widelimit.estimators.directions import Directions, find_directions
from widelimit.matrices.inputs import number_samples


def found(x, known=0):
    return find_directions(x, number_samples(x, None)[0], known)


def exact(x):
    """Rows that are exactly proportional, by fractions, all with all: place and factor of each."""
    rows = [[Fraction(float(value)) for value in np.ravel(row)] for row in x]
    first, place, factors = [], [], []
    for i, row in enumerate(rows):
        if not any(row):
            place.append(None)
            factors.append(0.0)
            continue
        for number, j in enumerate(first):
            at = next(k for k, value in enumerate(rows[j]) if value)
            factor = row[at] / rows[j][at]
            if factor > 0 and all(a == factor * b for a, b in zip(row, rows[j], strict=True)):
                place.append(number)
                factors.append(float(factor))
                break
        else:
            first.append(i)
            place.append(len(first) - 1)
            factors.append(1.0)
    return [0 if number is None else number for number in place], first, factors


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    n=st.integers(1, 12),
    d=st.integers(1, 4),
    dtype=st.sampled_from(["uint8", "float32", "float64"]),
)
def test_small_integers_by_fractions(data, n, d, dtype):
    low = 0 if dtype == "uint8" else -6
    values = st.lists(st.integers(low, 6), min_size=d, max_size=d)
    x = np.array(data.draw(st.lists(values, min_size=n, max_size=n)), dtype)
    place, first, factors = exact(x)
    if not first:  # only zeros
        first, factors = [0], [1.0] * n
    rows = found(x)
    assert (rows.place.tolist(), rows.first.tolist()) == (place, first)
    np.testing.assert_allclose(rows.multiples, factors, rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3,), (40,), (6, 5, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_multiples_that_were_rounded(dtype, shape, seed):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(30, *shape)) * rng.random((30, *shape)) ** 8  # of all sizes
    of, size = rng.integers(30, size=200), np.exp(4 * rng.normal(size=200))
    size[::5] = 2.0 ** rng.integers(-20, 20, 40)
    x = (base[of] * size.reshape(-1, *[1] * len(shape))).astype(dtype)  # each rounded by itself
    x[3] = x[117] = 0
    rows = found(x)
    others = np.delete(np.arange(200), [3, 117])
    np.testing.assert_array_equal(of[rows.first[rows.place[others]]], of[others])
    assert len(rows.first) == len(set(of[others].tolist()))
    assert np.all(np.diff(rows.first) > 0)
    assert rows.place[3] == rows.place[117] == rows.multiples[3] == 0
    expected = (size / size[rows.first[rows.place]])[others]
    np.testing.assert_allclose(rows.multiples[others], expected, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(rows.multiples[rows.first], 1)
    # Of all factors the one that comes closest: roundings of single entries average out.
    each, first = (
        np.asarray(x[i], np.float64).reshape(len(i), -1)
        for i in (others, rows.first[rows.place[others]])
    )
    closest = (each * first).sum(axis=1) / (first**2).sum(axis=1)
    np.testing.assert_allclose(rows.multiples[others], closest, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_neighbours_of_other_directions(dtype):
    """Samples that differ by a few roundings more than division explains are not merged."""
    rng = np.random.default_rng(0)
    eps = np.finfo(dtype).eps
    base = rng.uniform(1, 2, size=(50, 9)).astype(dtype)
    base[:, 0] = 2  # the largest
    other = base.copy()
    other[:, 4] *= dtype_of(dtype)(1 + 16 * eps)
    rows = found(np.concatenate([base, other]))
    assert len(rows.first) == 100
    close = base.copy()
    close[:, 4] = np.nextafter(close[:, 4], dtype_of(dtype)(9))
    assert len(found(np.concatenate([base, close])).first) == 50
    assert len(found(np.concatenate([base, -base])).first) == 100  # not a positive factor
    sparse = np.zeros((2, 9), dtype)
    sparse[:, 0] = 1
    sparse[1, 5] = 1e-30
    assert len(found(sparse).first) == 2


def dtype_of(name):
    return np.dtype(name).type


def test_factors_at_the_ends_of_the_range():
    tiny = np.float32(1e-44)  # a few units of what float32 can hold
    x = np.array([[1, 1e-3, 7e-4], [tiny * 100, tiny * 0.1, 0]], "float32")
    for sign in (1, -1):  # either may be the first on the line
        assert len(found(sign * x).first) == 1
    x = np.array([[1.0, 2.0], [1e-40, 2e-40], [3e49, 6e49]])
    np.testing.assert_allclose(found(x).multiples, [1, 1e-40, 3e49], rtol=1e-15)
    with pytest.raises(
        ValueError,
        match=r"within a factor of 1e\+50, got a factor of 1\.0e-60 be.*"
        "samples 1 and 2: rescale or remove",
    ):
        found(np.array([[1.0, 1], [1.0, 2.0], [1e-60, 2e-60]]))


def test_numbers_in_a_cell_of_their_own():
    """Whatever cells a hash would have, some multiples fall into two of them: none are lost."""
    rng = np.random.default_rng(1)
    for boundary in (0.5, 0.25, 0.75, 1.0, 0.1):
        row = np.array([1.0, boundary, np.nextafter(boundary, 0), np.nextafter(boundary, 2)])
        size = rng.uniform(0.1, 10, 300)
        assert len(found(row * size[:, None]).first) == 1
        assert len(found((row * size[:, None]).astype("float32")).first) == 1


def test_directions_that_are_known_stay():
    x = np.array([[1.0, 2], [0, 0], [2, 4], [0, 1], [3, 6], [0, 0], [0, 5], [1, 1]])
    # As of a model that was saved before there were directions: rows 0 and 2, and one of zeros.
    numbers = number_samples(x, None)[0]
    rows = find_directions(x, numbers, known=4)
    assert rows.first.tolist() == [0, 1, 2, 3, 7]
    assert rows.place.tolist() == [0, 1, 2, 3, 0, 1, 3, 4]
    assert rows.multiples.tolist() == [1, 1, 1, 1, 3, 1, 5, 1]
    rows = found(np.array([[1.0, 2], [0, 1], [0, 0]]), known=2)
    assert (rows.place.tolist(), rows.multiples.tolist()) == ([0, 1, 0], [1, 1, 0])


def test_equal_samples_alone():
    rows = Directions.of_equal(np.array([0, 1, 0, 2, 1]))
    assert rows.first.tolist() == [0, 1, 3]
    assert rows.multiples.tolist() == [1] * 5


def test_the_work_is_not_quadratic(monkeypatch):
    """Rows are compared with those they may be multiples of, not with all."""
    rng = np.random.default_rng(0)
    compared = []
    row = module._Search._row
    monkeypatch.setattr(
        module._Search, "_row", lambda self, index: compared.append(index) or row(self, index)
    )
    found(rng.random((3000, 50)).astype("float32"))
    assert compared == []
    found(rng.random((20, 50))[rng.integers(20, size=3000)] * rng.uniform(1, 9, (3000, 1)))
    assert len(compared) <= 2 * 3000


def test_others_that_lie_between_multiples():
    """On the line two others come between a sample and its multiple, closer than either."""
    d, rng = 200, np.random.default_rng(1)
    line = np.random.default_rng(0).standard_normal(d)  # that of the search
    e, f = np.argsort(np.abs(line))[[0, 20]]

    def along(row):
        return (row.astype(float) / np.abs(row).max()) @ line

    def sparse(place):
        row = np.zeros(d)
        row[e], row[f] = 1, (place - line[e]) / line[f]
        return row.astype("float32")

    tried = 0
    while tried < 3:
        row = rng.normal(size=d)
        row = (row - (row @ line) / (line @ line) * line).astype("float32")  # along() is nearly 0
        other = (row * np.float32(rng.uniform(1, 2))).astype("float32")
        low, high = sorted((along(row), along(other)))
        if high - low < 1e-7:
            continue
        between = [sparse(low + share * (high - low)) for share in (0.2, 0.8)]
        assert low < along(between[0]) < along(between[1]) < high
        assert len(found(np.stack([row, *between, other])).first) == 3
        tried += 1
