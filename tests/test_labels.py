"""Labels of several calls, joined: none of them changes."""

from typing import Any

import numpy as np
import pytest

import widelimit as wl
from widelimit.solvers import encode_labels
from widelimit.solvers.labels import join_labels

LARGE = np.array([2**63 + 1, 2**63 + 2, 2**64 - 1], np.uint64)
X = np.random.default_rng(0).random((6, 4))


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        ([np.array([1, 2]), LARGE], "uint64"),
        ([LARGE, np.array([1, 2]), np.array([True])], "uint64"),
        ([np.array([-(2**63), 2**63 - 1]), np.array([7], np.uint64)], "int64"),
        ([np.array([-1]), np.array([2**53 + 1], np.uint64), np.array([], float)], "int64"),
        ([np.array([2**53, -(2**53)]), np.array([0.5])], "float64"),
        ([np.array(["a"]), np.array(["bcd"])], "<U3"),
        ([np.array([], str), np.array([3])], None),
        ([np.array(["a"], object), np.array(["b"])], "object"),
        ([np.array([1, 2], np.int8), np.array([3], np.uint8)], "int16"),
    ],
)
def test_joined_labels_are_what_they_were(parts: list[Any], dtype: str | None) -> None:
    joined = join_labels(parts)
    expected = [label for part in parts for label in part.tolist()]
    assert joined.tolist() == expected
    assert dtype is None or joined.dtype == dtype


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([np.array([-1]), LARGE], "must fit into one dtype, got integers from -1 to 18446744073"),
        ([np.array([2**53 + 1]), np.array([0.5])], "to 9007199254740993 and floats: write all as"),
        ([np.array([1]), np.array(["1"])], "got numbers and text: write all as text"),
    ],
)
def test_labels_that_no_dtype_holds_are_refused(parts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join_labels(parts)


def test_large_labels_of_a_classifier() -> None:
    model = wl.NTKClassifier(ridge=0.1).fit(X, [2**53 + 1, 2**53] * 3)
    model.partial_fit(X + 1, np.r_[LARGE, LARGE])
    assert model.classes_.tolist() == [2**53, 2**53 + 1, *LARGE.tolist()]
    assert model.score(X + 1, np.r_[LARGE, LARGE]) > 0.5
    with pytest.raises(ValueError, match="write all as text"):
        model.partial_fit(X + 2, ["1"] * 6)
    classes = np.array([4, *LARGE[::-1]], np.uint64)
    assert encode_labels(LARGE, classes).argmax(axis=1).tolist() == [3, 2, 1]
