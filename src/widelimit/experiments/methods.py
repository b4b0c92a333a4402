"""The methods that the learning curve compares."""

from __future__ import annotations

from dataclasses import dataclass

from widelimit.architectures import cntk_gap, cntk_vanilla, ntk_dense
from widelimit.experiments.baselines import Baseline
from widelimit.experiments.design import DEPTH
from widelimit.network import Network

__all__ = ["METHODS", "Method"]

_DENSE_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the comparison: a kernel if it has a network, else a baseline.

    Parameters
    ----------
    key, label, detail : str
        As in `Curve`.
    network : Network, optional
        Whose tangent kernel is used.
    baseline : {"svm", "logistic"}, optional
        What of scikit-learn is used.
    """

    key: str
    label: str
    detail: str
    network: Network | None = None
    baseline: Baseline | None = None


METHODS = (
    Method(
        "gap",
        f"CNTK-GAP, depth {DEPTH}",
        f"Tangent kernel of an infinitely wide network of {DEPTH - 1} convolutions with global "
        "average pooling, kernel regression.",
        network=cntk_gap(DEPTH),
    ),
    Method(
        "vanilla",
        f"CNTK-V, depth {DEPTH}",
        f"The same with {DEPTH - 1} convolutions and no pooling.",
        network=cntk_vanilla(DEPTH),
    ),
    Method(
        "dense",
        f"NTK, {_DENSE_DEPTH} hidden layers",
        f"Tangent kernel of an infinitely wide network of {_DENSE_DEPTH} hidden layers, which "
        "does not know which pixels are neighbours.",
        network=ntk_dense(_DENSE_DEPTH),
    ),
    Method(
        "svm",
        "RBF-SVM, tuned",
        "scikit-learn's SVC; C and gamma by cross-validation on each training set.",
        baseline="svm",
    ),
    Method(
        "logistic",
        "Logistic regression",
        "scikit-learn's LogisticRegression on pixels; C by cross-validation on each training set.",
        baseline="logistic",
    ),
)
