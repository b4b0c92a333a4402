"""Class labels as regression targets, the encoding of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray

__all__ = ["encode_labels", "join_labels"]

_EXACT = 2**53  # integers up to this are exact in float64


def join_labels(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate labels, none of which changes: NumPy has float64 for int64 beside uint64.

    Parameters
    ----------
    parts : sequence of ndarray of shape (n,)

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        If some are text and others numbers, or no dtype holds all exactly.
    """
    filled = [part for part in parts if part.size]
    kinds = {part.dtype.kind for part in filled}
    if kinds & set("biuf") and kinds & set("US"):
        raise ValueError("labels must be of one kind, got numbers and text: write all as text")
    joined = np.concatenate(parts)
    if joined.dtype.kind != "f" or not kinds & set("iu"):
        return joined
    whole = [part for part in filled if part.dtype.kind in "iu"]
    low, high = min(int(part.min()) for part in whole), max(int(part.max()) for part in whole)
    if "f" in kinds:
        if max(-low, high) <= _EXACT:
            return joined
    elif low >= 0:
        return np.concatenate([part.astype(np.uint64) for part in parts])
    elif high < 2**63:
        return np.concatenate([part.astype(np.int64) for part in parts])
    raise ValueError(
        f"labels must fit into one dtype, got integers from {low} to {high}"
        f"{' and floats' if 'f' in kinds else ''}: write all as text"
    )


def encode_labels(y: ArrayLike, classes: ArrayLike) -> FloatArray:
    """Targets of the paper for kernel regression on classes: ``1 - 1/c`` and ``-1/c``.

    With c = 10 classes the target is 0.9 for the class of a sample and -0.1 for the others, so
    that every row sums to 0. The predicted class is the column with the largest output.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels: integers, strings, or anything numpy can sort.
    classes : array-like of shape (c,), c >= 2
        The distinct labels. Column j of the result belongs to ``classes[j]``.

    Returns
    -------
    ndarray of float64, shape (n, c)

    Raises
    ------
    ValueError
        If y or classes is not one-dimensional, there are fewer than two classes, a class occurs
        twice, or y holds a label that is not in classes; as for `join_labels`.

    Examples
    --------
    >>> encode_labels(["cat", "dog"], ["cat", "dog", "emu", "fox"])
    array([[ 0.75, -0.25, -0.25, -0.25],
           [-0.25,  0.75, -0.25, -0.25]])
    """
    labels: NDArray[Any] = np.asarray(y)
    names: NDArray[Any] = np.asarray(classes)
    if labels.ndim != 1:
        raise ValueError(
            f"y must hold one label per sample, shape (n,), got shape {labels.shape}: "
            "use y.argmax(axis=1) on one-hot rows, y.ravel() on a column"
        )
    if names.ndim != 1 or names.size < 2:
        raise ValueError(
            f"classes must be a list of at least 2 labels, got shape {names.shape}: "
            "use numpy.unique(y) on labels of at least 2 classes"
        )
    both = join_labels([names, labels])
    names, labels = both[: names.size], both[names.size :]
    order = np.argsort(names, kind="stable")
    ranked = names[order]
    if np.any(ranked[1:] == ranked[:-1]):
        raise ValueError(f"classes must be distinct, got {names.tolist()!r}: use numpy.unique")
    place = np.minimum(np.searchsorted(ranked, labels), names.size - 1)
    unknown = ranked[place] != labels
    if np.any(unknown):
        raise ValueError(
            f"y must hold labels from classes = {names.tolist()!r}, got "
            f"{np.unique(labels[unknown]).tolist()!r}: add them to classes or drop their samples"
        )
    targets = np.full((labels.size, names.size), -1.0 / names.size)
    targets[np.arange(labels.size), order[place]] = 1.0 - 1.0 / names.size
    return targets
