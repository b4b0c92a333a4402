"""A small data set, and a kernel that costs nothing, for tests of the demo."""

from collections.abc import Callable
from typing import Any

import numpy as np

from widelimit.data import Dataset
from widelimit.experiments.learning_curve import Record, make_design, run
from widelimit.network import Network

# Names that a page must escape.
NAMES = ("<script>alert('a')</script>", 'bars & "stripes"', "dots")


def make_images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 8 x 8 images of horizontal bars, vertical bars and dots; labels in turns."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = 0.35 * rng.random((n, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        at = rng.integers(1, 7, 2)
        rows = slice(None) if label == 1 else slice(at[0], at[0] + 1)
        columns = slice(None) if label == 0 else slice(at[1], at[1] + 1)
        image[rows, columns] += 0.4
    return images, labels.astype(np.int64)


def make_dataset(n: int = 90, split: str = "drawn", **changes: Any) -> Dataset:
    """Two thirds of n images for training, the others for testing."""
    x, y = make_images(n)
    cut = 2 * n // 9 * 3
    fields: dict[str, Any] = {
        "name": "toy <&> set",
        "x_train": x[:cut],
        "y_train": y[:cut],
        "x_test": x[cut:],
        "y_test": y[cut:],
        "class_names": NAMES,
        "provenance": "Made by tests/toys.py.",
        "split": split,
    }
    return Dataset(**(fields | changes))


def run_toy(dataset: Dataset, draws: int, *, seed: int = 0, **options: Any) -> Record:
    """The learning curve of a data set, on one thread with a `FakeKernel` unless options differ."""
    defaults: dict[str, Any] = {"threads": 1, "kernel": FakeKernel()}
    return run(dataset, make_design(dataset, draws=draws, seed=seed), **(defaults | options))


class FakeKernel:
    """Gaussian kernels instead of those of networks; remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int | None, str]] = []

    def __call__(
        self,
        net: Network,
        x1: np.ndarray,
        x2: np.ndarray | None,
        *,
        dtype: str,
        threads: int | None,
        progress: Callable[[float], None],
    ) -> np.ndarray:
        self.calls.append((str(net), len(x1), None if x2 is None else len(x2), dtype))
        progress(0.5)
        a = x1.reshape(len(x1), -1)
        b = a if x2 is None else x2.reshape(len(x2), -1)
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        progress(1.0)
        return np.exp(-squares * (0.05 + 0.01 * net.n_conv)).astype(dtype)
