"""What papers say, in per cent, on images of CIFAR-10: tables 1 and 2 of Arora et al. 2019."""

from __future__ import annotations

import re

from widelimit.data.cifar import CLASSES
from widelimit.data.dataset import Dataset

__all__ = ["CIFAR2", "CNN", "CNTK", "DEPTHS", "MYRTLE", "is_cifar10"]

DEPTHS = (3, 4, 6, 11, 21)
CNTK = {
    ("v", 50_000): (64.47, 65.52, 66.03, 65.90, 64.09),
    ("gap", 50_000): (70.47, 75.93, 76.73, 77.43, 77.08),
    ("v", 2_000): (40.94, 42.54, 43.43, 43.42, 42.53),
    ("gap", 2_000): (49.71, 51.06, 51.73, 51.92, 52.22),
}
"""Of kernels, one for each depth, by readout and number of training images."""
CNN = {
    "v": (59.97, 60.20, 64.11, 69.48, 75.57),
    "gap": (63.81, 80.93, 83.75, 82.92, 83.30),
}
"""Of the finite networks with the same layers, trained on all images."""
CIFAR2 = {
    "v": {3: 92.15, 4: 92.80, 6: 93.10},
    "gap": {3: 71.05, 4: 94.50, 6: 95.25},
}
"""Of the exact kernels in table 2, by readout and depth: CIFAR-2, all images of two classes."""
MYRTLE = 90.0
"""Of the best kernel of Shankar et al. 2020, *Neural Kernels Without Tangents*: their abstract."""

_CLASSES, _CHANNELS = 10, 3
_CALLED = re.compile(r"cifar[-_ ]?10(?!\d)")


def is_cifar10(dataset: Dataset) -> bool:
    """Whether images are those that the numbers are of: told by the names of classes, or its own.

    A file without names of classes is taken for it if it is called so, as in "cifar10_3k.npz".
    """
    if (dataset.n_classes, dataset.image_shape[-1]) != (_CLASSES, _CHANNELS):
        return False
    called = _CALLED.search(dataset.name.lower()) is not None
    return called or tuple(sorted(dataset.class_names)) == CLASSES
