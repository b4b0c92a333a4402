"""What the paper says: Table 1 of Arora et al. 2019, in per cent, on the test set of CIFAR-10."""

from __future__ import annotations

__all__ = ["CNN", "CNTK", "DEPTHS"]

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
