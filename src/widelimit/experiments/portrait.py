"""What a report shows of a kernel, kept in the record: whoever reads that has no stores.

A few kilobytes for each network: cosines by class, eigenvalues, alignment with the classes; and for
one network of a column the test images that it is surest, least sure and most wrong about.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from widelimit.arrays import FloatArray, IntArray
from widelimit.data.dataset import Dataset
from widelimit.markup import to_png

__all__ = ["CAPTIONS", "SIDE", "cut_by_class", "find_examples", "portray", "thumbnails"]

Record: TypeAlias = dict[str, Any]

SIDE = 64
"""Most blocks on a side of the matrix of cosines, and most pixels on a side of a thumbnail."""
CAPTIONS = {
    "surest": "Surest",
    "least_sure": "Least sure",
    "most_wrong": "Most wrong",
}
"""Kinds of examples, as keys of a record, and in words."""

_EACH = 4  # examples of a kind
_LEADING = 3  # outputs that are kept of each
_MOST_SAMPLES, _MOST_RANKS = 2_000, 32  # of the spectrum
_THUMBNAIL, _COLOURS = 32, 64


def cut_by_class(labels: IntArray) -> list[IntArray]:
    """Return the places of images, sorted by class, in at most `SIDE` blocks.

    A block is of one class, unless there are more classes than that.
    """
    order = np.argsort(labels, kind="stable")
    classes = np.flatnonzero(np.bincount(labels))
    if classes.size > SIDE:
        return np.array_split(order, SIDE)
    found: list[IntArray] = []
    for k in classes:
        places = np.flatnonzero(labels == k)
        found += np.array_split(places, min(places.size, SIDE // classes.size))
    return found


def portray(train: Any, labels: IntArray, blocks: Sequence[IntArray]) -> Record:
    """Summarise the kernel of a training set.

    Parameters
    ----------
    train : Gram or ndarray, shape (n, n)
        Is read once, a row of tiles at a time.
    labels : ndarray of int64, shape (n,)
        Classes, from 0 on.
    blocks : sequence of ndarray of int64
        Of `cut_by_class`.

    Returns
    -------
    dict
        ``cosines``: of the blocks the means of ``k(x, x') / sqrt(k(x, x) k(x', x'))``
        over pairs of different images; bytes of the upper triangle, row by row, in base64, where 0
        is ``low`` and 255 ``high``. ``alignment``: ``<K, Y Y^T> / (|K| |Y Y^T|)`` in Frobenius
        norms, Y the classes one-hot (Cristianini et al. 2002), and ``centred_alignment``, with both
        matrices centred (Cortes, Mohri, Rostamizadeh 2012). ``spectrum``: eigenvalues of K / m,
        ``values`` at ``ranks`` from 1, of m = ``images`` evenly spaced ones, at most 2,000, and
        their sum ``trace``. All numbers have five digits.
    """
    n, step = len(labels), int(getattr(train, "tile", 1024))
    one_hot = np.zeros((n, int(labels.max()) + 1))
    one_hot[np.arange(n), labels] = 1
    diagonal = np.concatenate(
        [
            np.asarray(train[i : i + step, i : i + step], np.float64).diagonal()
            for i in range(0, n, step)
        ]
    )
    # The kernel of an image of zeros is 0: its cosines are taken as 0.
    scale = np.divide(1, np.sqrt(diagonal), out=np.zeros(n), where=diagonal > 0)
    member = np.zeros((n, len(blocks)))
    for b, places in enumerate(blocks):
        member[places, b] = scale[places]
    chosen = np.unique(np.linspace(0, n - 1, min(n, _MOST_SAMPLES)).round().astype(np.int64))
    part = np.empty((chosen.size, chosen.size))
    sides = np.concatenate([one_hot, member], axis=1)
    squares, towards = 0.0, np.empty(sides.shape)
    for start in range(0, n, step):
        rows = np.asarray(train[start : start + step], np.float64)
        squares += float(np.vdot(rows, rows))
        towards[start : start + step] = rows @ sides
        here = (chosen >= start) & (chosen < start + step)
        part[here] = rows[np.ix_(chosen[here] - start, chosen)]
    to_classes, to_blocks = np.split(towards, [one_hot.shape[1]], axis=1)
    return {
        **_cosines(member.T @ to_blocks, blocks, scale > 0),
        **_alignments(one_hot, to_classes, squares),
        "spectrum": _spectrum(part),
    }


def find_examples(outputs: FloatArray, labels: IntArray, places: IntArray) -> Record:
    """Choose the test images that say most about predictions.

    Parameters
    ----------
    outputs : ndarray of shape (m, classes)
    labels : ndarray of int64, shape (m,)
    places : ndarray of int64, shape (m,)
        Numbers of the images in the test set of the data.

    Returns
    -------
    dict
        By kind, lists of ``image``, ``label``, ``predicted`` and ``outputs``: ``[class, output]``
        of the leading classes and its own, the largest first. Surest: those that are right by the
        largest margin. Least sure: the smallest margin between the first class and the second.
        Most wrong: those whose own class is furthest behind the first.
    """
    samples = np.arange(len(labels))
    order = np.argsort(-outputs, axis=1, kind="stable")
    first, second = order[:, 0], order[:, 1]
    ahead = outputs[samples, first] - outputs[samples, second]
    behind = outputs[samples, first] - outputs[samples, labels]
    right = np.flatnonzero(first == labels)
    wrong = np.flatnonzero(first != labels)

    def told(i: int) -> Record:
        shown = order[i, :_LEADING].tolist()
        if int(labels[i]) not in shown:
            shown.append(int(labels[i]))
        return {
            "image": int(places[i]),
            "label": int(labels[i]),
            "predicted": int(first[i]),
            "outputs": [[k, _rounded(outputs[i, k])] for k in shown],
        }

    chosen = {
        "surest": right[np.argsort(-ahead[right], kind="stable")],
        "least_sure": np.argsort(ahead, kind="stable"),
        "most_wrong": wrong[np.argsort(-behind[wrong], kind="stable")],
    }
    return {kind: [told(int(i)) for i in of[:_EACH]] for kind, of in chosen.items()}


def thumbnails(dataset: Dataset, numbers: Sequence[int]) -> Record:
    """Return the name of the file of test images, if they have one, and a PNG in base64 of each.

    Parameters
    ----------
    dataset : Dataset
    numbers : sequence of int
        Of test images.

    Returns
    -------
    dict
        By number, as text: ``file``, ``png`` of at most 32 x 32 pixels and 64 colours.
    """
    files = dataset.files_test
    return {
        str(i): {
            "file": None if files is None else files[i],
            "png": _text(to_png(dataset.x_test[i], most=_THUMBNAIL, colours=_COLOURS)),
        }
        for i in numbers
    }


def _cosines(sums: FloatArray, blocks: Sequence[IntArray], known: Any) -> Record:
    """Return the bytes of mean cosines, from their sums over all pairs of images of two blocks."""
    counts = np.array([len(b) for b in blocks])
    pairs = np.outer(counts, counts) - np.diag(counts)
    sums = sums - np.diag([float(np.count_nonzero(known[b])) for b in blocks])
    means = np.full(sums.shape, np.nan)
    np.divide(sums, pairs, out=means, where=pairs > 0)
    there = means[pairs > 0]
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    levels = np.nan_to_num((means - low) / ((high - low) or 1.0), nan=1.0)  # an image with itself
    upper = np.rint(255 * levels).astype(np.uint8)[np.triu_indices(len(blocks))]
    return {"low": _rounded(low), "high": _rounded(high), "cosines": _text(upper.tobytes())}


def _alignments(one_hot: FloatArray, towards: FloatArray, squares: float) -> Record:
    """Return alignments from Y, K Y and the sum of squares of K."""
    n, counts, sums = len(one_hot), one_hot.sum(axis=0), towards.sum(axis=1)
    own, total = float(np.vdot(one_hot, towards)), float(sums.sum())
    whole = np.sqrt(squares * float(counts @ counts))
    shares = counts / n
    # With Y - 1 shares^T in the place of Y, and H K H in that of K, for H = I - 1 1^T / n.
    centred = own - 2 * float(shares @ (one_hot.T @ sums)) + float(shares @ shares) * total
    of_classes = np.diag(counts) - n * np.outer(shares, shares)
    of_kernel = squares - 2 / n * float(sums @ sums) + (total / n) ** 2
    norm = np.sqrt(max(of_kernel, 0.0)) * np.linalg.norm(of_classes)
    return {
        "alignment": _rounded(own / whole) if whole > 0 else None,
        "centred_alignment": _rounded(centred / norm) if norm > 0 else None,
    }


def _spectrum(part: FloatArray) -> Record:
    m = len(part)
    values = np.linalg.eigvalsh(part)[::-1] / m
    ranks = np.unique(np.geomspace(1, m, _MOST_RANKS).round().astype(np.int64))
    return {
        "images": m,
        "trace": _rounded(values.sum()),
        "ranks": ranks.tolist(),
        "values": [_rounded(value) for value in values[ranks - 1]],
    }


def _rounded(value: Any) -> float:
    return float(f"{float(value):.5g}")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
