"""Rows of features: the default network next to a tuned SVM and tuned gradient boosting.

usage: python benchmarks/tabular.py --out RECORD
       python benchmarks/tabular.py --table RECORD

Each of 10 repeats draws a training set from five data sets of scikit-learn, of at most 400 rows,
and tests on the others. Every choice is made on the training rows alone: the ridge by
leave-one-out, C, gamma, learning rate and size of trees by three-fold cross-validation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import LinAlgWarning
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

import widelimit as wl
from widelimit.experiments.environment import describe_environment
from widelimit.files import check_file, write_atomically
from widelimit.keeping import keep

REPEATS = 10
MOST = 400  # training rows
SETS = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "digits as rows": datasets.load_digits,
    "diabetes": datasets.load_diabetes,
}
REGRESSION = ("diabetes",)
# Method -> how it is called in the table.
LABELS = {
    "default": "the default: NTK, 3 hidden layers with biases",
    "loo": "the same, ridge by leave-one-out",
    "svm": "RBF-SVM, tuned",
    "boosting": "gradient boosting, tuned",
}


def models(name: str) -> dict[str, Any]:
    """Return the methods for a data set, of which the last two tune themselves."""
    regression = name in REGRESSION
    mine: Any = wl.NTKRegressor if regression else wl.NTKClassifier
    svm: Any = SVR() if regression else SVC()
    trees: Any = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    scaled = make_pipeline(StandardScaler(), svm)
    step = type(svm).__name__.lower()
    # The targets of diabetes are in hundreds, and so is C.
    costs = np.logspace(0, 4, 5) if regression else np.logspace(-1, 3, 5)
    grid = {f"{step}__C": costs, f"{step}__gamma": np.logspace(-4, 0, 5)}
    growth = {"learning_rate": [0.1, 0.3], "max_leaf_nodes": [4, 16]}
    return {
        "default": mine(),
        "loo": mine(ridge="loo"),
        "svm": GridSearchCV(scaled, grid, cv=3),
        "boosting": GridSearchCV(trees(max_iter=50, random_state=0), growth, cv=3),
    }


def compare(name: str, seed: int) -> dict[str, float]:
    """Return the score of every method on the test rows of this draw."""
    x, y = SETS[name](return_X_y=True)
    count = min(MOST, int(0.7 * len(x)))
    strata = None if name in REGRESSION else y
    parts = train_test_split(x, y, train_size=count, stratify=strata, random_state=seed)
    x_train, x_test, y_train, y_test = parts
    found: dict[str, float] = {}
    for method, model in models(name).items():
        with warnings.catch_warnings():  # without a ridge rows of few features are near-duplicates
            warnings.simplefilter("ignore", LinAlgWarning)
            found[method] = float(model.fit(x_train, y_train).score(x_test, y_test))
    return {"seed": seed, "training": count, "test": len(x_test), **found}


def measure() -> dict[str, Any]:
    """Return the record of all repeats."""
    environment = dataclasses.asdict(describe_environment())
    sets = {name: [compare(name, seed) for seed in range(REPEATS)] for name in SETS}
    return {"environment": environment, "sets": sets}


def table(record: dict[str, Any]) -> str:
    """Return what a record says as a table for docs/results.md."""
    names = list(record["sets"])
    heads = [
        f"{name}, {record['sets'][name][0]['training']} rows"
        + (" (R²)" if name in REGRESSION else "")
        for name in names
    ]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(names) + 1) + "|"]
    for method, label in LABELS.items():
        cells: list[str] = []
        for name in names:
            scores = np.array([draw[method] for draw in record["sets"][name]])
            mean, spread = scores.mean(), scores.std(ddof=1)
            cells.append(
                f"{mean:.3f} ± {spread:.3f}"
                if name in REGRESSION
                else f"{100 * mean:.1f} ± {100 * spread:.1f} %"
            )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the record")
    parser.add_argument("--table", type=Path, help="print the table of a record")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())))
        return
    if arguments.out is None:
        parser.error("give --out or --table")
    check_file(arguments.out)
    record = measure()
    text = json.dumps(record, indent=1) + "\n"
    keep(arguments.out, lambda path: write_atomically(path, text))
    print(table(record))


if __name__ == "__main__":
    main()
