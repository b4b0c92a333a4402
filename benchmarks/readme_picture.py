"""Draw what the README shows: a kernel, the choice of a ridge, and how sure predictions are.

usage: python benchmarks/readme_picture.py FOLDER

Writes ``kernel-light.png`` and ``kernel-dark.png``.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from PIL import Image

import widelimit as wl
from widelimit import plot

NETS = ("cntk-gap-3", "cntk-gap-6", "cntk-vanilla-6")
STYLES = {"light": ("default", "white"), "dark": ("dark_background", "#0d1117")}


def main(folder: Path) -> None:
    mpl.use("agg")
    data = wl.load_dataset("digits")
    x, y = data.x_train[:200], data.y_train[:200]
    k = wl.kernel(wl.cntk_gap(6), x)
    model = wl.NTKClassifier(list(NETS), ridge="loo").fit(x, y)
    for name, (style, paper) in STYLES.items():
        with plt.style.context([style, {"font.size": 9, "savefig.facecolor": paper}]):
            figure, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
            plot.kernel_matrix(k, y, ax=axes[0]).set_title("CNTK-GAP of 200 digits")
            plot.leave_one_out(model, ax=axes[1]).set_title("ridge and network by leave-one-out")
            test = data.x_test, data.y_test
            plot.reliability(model, *test, bins=5, label="517 test images", ax=axes[2])
            axes[2].set_title("how sure, and how often right")
            for ax in axes:
                ax.set_facecolor(paper)
            drawn = io.BytesIO()
            figure.savefig(drawn, dpi=110)
            plt.close(figure)
        # 256 colours are a third of the bytes.
        Image.open(drawn).convert("RGB").quantize(256).save(folder / f"kernel-{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
