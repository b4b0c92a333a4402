"""Draw regression on the line: the ensemble of trained networks, and the posterior.

usage: python benchmarks/regression_picture.py FILE.svg
"""

from __future__ import annotations

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import widelimit as wl

NET = wl.Network([wl.Dense(1.5, 0.5), wl.ReLU(), wl.Dense(1.5, 0.5), wl.ReLU(), wl.Dense(1.0)])
T = np.array([-2.0, -1.5, -0.2, 0.1, 0.3, 1.8])[:, None]
AS_GIVEN = {"normalize_y": False, "standardise": False}
PANELS = (
    ("networks trained to the end", wl.NTKRegressor(NET, **AS_GIVEN)),
    (
        "posterior of the Gaussian process",
        wl.NTKRegressor(NET, kind="nngp", ridge=1e-6, **AS_GIVEN),
    ),
)


def main(path: str) -> None:
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "widelimit", "font.size": 9, "svg.fonttype": "path"})
    f = np.sin(2 * T[:, 0])
    grid = np.linspace(-3, 3, 241)[:, None]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    for axis, (title, model) in zip(axes, PANELS, strict=True):
        mean, std = model.fit(T, f).predict(grid, return_std=True)
        line = grid[:, 0]
        axis.fill_between(line, mean - 2 * std, mean + 2 * std, color="#cfe0f3", label="± 2 std")
        axis.plot(line, model.sample_y(grid, 4), color="#7aa6d6", linewidth=0.8)
        axis.plot(line, mean, color="#1f4e8c", label="mean")
        axis.plot(line, np.sin(2 * line), color="0.5", linestyle=":", label="sin 2t")
        axis.plot(T[:, 0], f, "o", color="black", markersize=4)
        axis.set_title(title)
        axis.set_xlabel("t")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower left", ncols=3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
