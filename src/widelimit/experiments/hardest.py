"""A closer look at CNTK-GAP: its confusion matrix, and the test images that it finds hard."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.estimators import NTKClassifier
from widelimit.experiments.design import Design
from widelimit.experiments.fitting import KernelBlocks, Result, fit_kernel, reproducible
from widelimit.experiments.record import HardImage, Vote
from widelimit.experiments.sets import Sets

__all__ = ["find_hardest", "make_confusion"]

_HARDEST = 8
_VOTES = 7


def make_confusion(
    sets: Sets, results: list[Result], n_classes: int
) -> tuple[tuple[int, ...], ...]:
    """Count test images by class (row) and predicted class (column), summed over draws.

    Parameters
    ----------
    images : Sets
    results : list of Result
        Of a kernel, one for each draw.
    n_classes : int

    Returns
    -------
    tuple of tuple of int
    """
    confusion = np.zeros((n_classes, n_classes), dtype=np.int64)
    for draw, result in zip(sets.draws, results, strict=True):
        assert result.outputs is not None
        predicted = result.outputs.argmax(axis=1)
        np.add.at(confusion, (sets.y_test[draw.test], predicted), 1)
    return tuple(tuple(row) for row in confusion.tolist())


def find_hardest(
    blocks: KernelBlocks, sets: Sets, design: Design, results: list[Result]
) -> tuple[HardImage, ...]:
    """Find the test images with the smallest margins, and who weighs most in their predictions.

    Parameters
    ----------
    gram : KernelBlocks
        The kernel.
    images : Sets
    design : Design
    results : list of Result
        Of this kernel with the largest training sets, one for each draw.

    Returns
    -------
    tuple of HardImage
        By ascending margin. An image that is hard in several draws is shown in its worst.
    """
    worst: dict[int, tuple[float, int, int]] = {}  # place of the image: margin, draw, prediction
    for i, (draw, result) in enumerate(zip(sets.draws, results, strict=True)):
        assert result.outputs is not None
        labels = sets.y_test[draw.test]
        predicted = result.outputs.argmax(axis=1)
        own = result.outputs[np.arange(labels.size), labels]
        others = result.outputs.copy()
        others[np.arange(labels.size), labels] = -np.inf
        margins = own - others.max(axis=1)
        for row, place in enumerate(draw.test.tolist()):
            candidate = (float(margins[row]), i, int(predicted[row]))
            worst[place] = min(worst.get(place, candidate), candidate)

    chosen = sorted(worst.items(), key=lambda item: item[1])[:_HARDEST]
    with reproducible():
        models = {i: fit_kernel(blocks, sets, i, -1) for i in {i for _, (_, i, _) in chosen}}
    hardest: list[HardImage] = []
    for place, (margin, i, predicted) in chosen:
        train = sets.draws[i].train[-1]
        weights = _weights(models[i], blocks.test[place, train])
        labels = sets.y_pool[train]
        largest = np.argsort(-np.abs(weights), kind="stable")[:_VOTES]
        hardest.append(
            HardImage(
                image=int(sets.test_numbers[place]),
                label=int(sets.y_test[place]),
                predicted=predicted,
                margin=margin,
                draw=i,
                totals=tuple(np.bincount(labels, weights, design.n_classes).tolist()),
                votes=tuple(
                    Vote(int(design.pool[train[t]]), int(labels[t]), float(weights[t]))
                    for t in largest
                ),
            )
        )
    return tuple(hardest)


def _weights(model: NTKClassifier, k: NDArray[Any]) -> FloatArray:
    """``(K + ridge trace(K)/n I)^-1 k(x)``: outputs are these weights times the encoded labels."""
    factor = model.solution_.factor
    assert factor is not None  # solved by Cholesky
    return factor.solve(k.astype(np.float64)[:, None])[:, 0]
