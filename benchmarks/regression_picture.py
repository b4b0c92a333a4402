"""Draw regression on the line: the ensemble of trained networks, and the posterior.

usage: python benchmarks/regression_picture.py FILE.svg
"""

from __future__ import annotations

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import widelimit as wl
from widelimit import plot

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
        axis.plot(grid, np.sin(2 * grid), color="0.5", linestyle=":", label="sin 2t")
        plot.regression(model.fit(T, f), grid, x_train=T, y_train=f, draws=4, ax=axis)
        axis.set(title=title, xlabel="t")
        axis.legend(frameon=False, fontsize="small", loc="lower left", ncols=2)
    axes[1].set_ylabel("")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
