"""scikit-learn's RBF-SVM and logistic regression, tuned by cross-validation on training images.

Test images take no part in the choice. Where several settings are equally good, as with few
images they often are, the first in the grid is taken, so grids begin with the usual setting.
"""

# scikit-learn has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from sklearn import exceptions, linear_model, model_selection, svm

from widelimit.arrays import FloatArray, IntArray

__all__ = ["GRIDS", "Baseline", "Cancelled", "ConvergenceWarning", "TunedBaseline", "fit_baseline"]

Baseline: TypeAlias = Literal["svm", "logistic"]
Setting: TypeAlias = dict[str, float]

_SVC: Callable[..., Any] = cast("Any", svm).SVC
_LogisticRegression: Callable[..., Any] = cast("Any", linear_model).LogisticRegression
_StratifiedKFold: Callable[..., Any] = cast("Any", model_selection).StratifiedKFold
ConvergenceWarning: type[Warning] = cast("Any", exceptions).ConvergenceWarning
"""scikit-learn's, which callers silence: `TunedBaseline` counts what it would say."""

# gamma is in units of 1 / (number of pixels x variance of the pixels), scikit-learn's "scale".
GRIDS: dict[Baseline, dict[str, tuple[float, ...]]] = {
    "svm": {"C": (10.0, 1.0, 100.0), "gamma": (1.0, 2.0, 0.5, 4.0, 0.25, 0.125)},
    "logistic": {"C": (1.0, 10.0, 0.1, 100.0)},
}
_MAX_FOLDS = 5
_MAX_ITERATIONS = 2_000


class Cancelled(Exception):
    """Raised between two fits when the caller wants no more."""


@dataclass(frozen=True, slots=True, eq=False)
class TunedBaseline:
    """A tuned baseline and what it says of the test images.

    Parameters
    ----------
    predicted : ndarray of int64
        Classes of the test images.
    setting : dict
        The chosen C, and gamma in units of "scale".
    unconverged : int
        Fits, of those for cross-validation and the last one, that stopped before they converged.
    """

    predicted: IntArray
    setting: Setting
    unconverged: int


def fit_baseline(
    kind: Baseline,
    x_train: FloatArray,
    y_train: IntArray,
    x_test: FloatArray,
    *,
    seed: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> TunedBaseline:
    """Tune on the training images by cross-validation, fit all of them, predict the test images.

    Parameters
    ----------
    kind : {"svm", "logistic"}
        `GRIDS` has the settings that are tried.
    x_train, x_test : ndarray of float64, shape (n, d) and (m, d)
        Flattened images.
    y_train : ndarray of int64, shape (n,)
        Classes, each with the same number of images.
    seed : int
        Of the division into folds: five, or as many as a class has images.
    cancelled : callable
        Asked before every fit.

    Returns
    -------
    TunedBaseline
        With one image per class there is nothing to validate on: the first setting is taken.

    Raises
    ------
    Cancelled
        If cancelled says so.

    Notes
    -----
    Several may run at a time in threads: filters of warnings, which threads share, are left alone.
    """
    settings = [
        dict(zip(GRIDS[kind], values, strict=True))
        for values in itertools.product(*GRIDS[kind].values())
    ]
    folds = min(_MAX_FOLDS, int(np.unique(y_train, return_counts=True)[1].min()))
    unconverged = 0
    if kind == "logistic":
        x_train, x_test = _rotate(x_train, x_test)

    def predict(setting: Setting, train: Any, test: FloatArray) -> IntArray:
        nonlocal unconverged
        if cancelled():
            raise Cancelled
        model = _make(kind, setting, x_train[train])
        model.fit(x_train[train], y_train[train])
        unconverged += kind == "logistic" and int(np.max(model.n_iter_)) >= _MAX_ITERATIONS
        return np.asarray(model.predict(test), dtype=np.int64)

    best = settings[0]
    if folds > 1:
        splitter = _StratifiedKFold(folds, shuffle=True, random_state=seed)
        parts = cast("Iterable[tuple[IntArray, IntArray]]", splitter.split(x_train, y_train))
        splits = list(parts)
        correct = [
            sum(
                int(np.sum(predict(setting, train, x_train[held]) == y_train[held]))
                for train, held in splits
            )
            for setting in settings
        ]
        best = settings[int(np.argmax(correct))]
    return TunedBaseline(predict(best, slice(None), x_test), best, unconverged)


def _rotate(x_train: FloatArray, x_test: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rotate so that training images have as many coordinates as there are training images.

    The weights of regularised logistic regression are combinations of training images, so what a
    test image has beyond these has no influence: the model is the same, and cheaper to fit.
    """
    if x_train.shape[0] >= x_train.shape[1]:
        return x_train, x_test
    basis: FloatArray = np.linalg.qr(x_train.T).Q
    return x_train @ basis, x_test @ basis


def _make(kind: Baseline, setting: Setting, x: FloatArray) -> Any:
    if kind == "logistic":
        return _LogisticRegression(C=setting["C"], max_iter=_MAX_ITERATIONS)
    variance = float(x.var())
    scale = 1.0 / (x.shape[1] * variance) if variance > 0 else 1.0
    return _SVC(kernel="rbf", C=setting["C"], gamma=setting["gamma"] * scale)
