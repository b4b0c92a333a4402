"""Write docs/accuracy.md: how far kernels are from the truth, by dtype, kernel and depth.

The images are 32x32 pieces of the two photographs that scikit-learn ships, so that everybody
gets the same table. Run it by ``scripts/accuracy``; it takes about six minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from widelimit.experiments.environment import Environment, describe_environment
from widelimit.files import check_file, write_atomically
from widelimit.keeping import keep
from widelimit.testing import AccuracyRow, accuracy_table

DISTANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)

INTRODUCTION = """\
# Accuracy

The largest relative errors of the NTK that were measured. Float32 is compared with float64 on
{n} pieces of 32x32x3 pixels of scikit-learn's two photographs; float64 with `mpmath` (50 digits),
on the middle 5x5 pixels of three of them. Written by `scripts/accuracy`; its record stands at
the end.

## What to expect

- **Different images**: errors below 2e-6 in float32, and of 1e-15 to 1e-13 in float64.
- **The same image twice**: no loss. Identical images are recognised, also between `x1` and `x2`,
  and the slice where `lambda = 1` is then computed in closed form.
- **Near-duplicates** lose digits in every dtype. `kappa0` has a square root at `lambda = 1`: a
  rounding error of 6e-8 in `lambda` can become one of 1e-4 in `kappa0`. CNTK-V, which looks at
  equal pixels only, keeps three to four digits in float32 and eight or more in float64.
  Global average pooling averages over all pairs of pixels, few of which are affected.
- **Two-level images and scaled copies** (`half as bright`) are the same case in disguise: whole
  patches agree up to a factor, so that `lambda = 1` at many pairs of pixels although the images
  differ. So are large areas of one colour, and biases that are much larger than the pixels: what
  is left of `lambda` below 1 is the square of their ratio. (Biases are given in multiples of the
  brightest pixel.)
- **Dark pixels** are as good as bright ones, also where two images have no others in common: in
  float32 down to 1e-15 of the brightest pixel. Below that, entries that come from such pixels
  alone are wrong; float64 goes down to 1e-70.

## What to do

| your data | use |
|---|---|
| photographs; a ridge of 1e-6 or more | `dtype="float32"` |
| near-duplicates (augmentation, frames of a video), line art, huge biases | `dtype="float64"` |
| multiples of an image (`a x`), networks without biases | nothing: estimators see one direction |
| the same with `wl.kernel` and a solver of your own | `dtype="float64"` |
| `ridge=0`, and the solver says ill-conditioned | `dtype="float64"`, or a ridge |
| exact copies | nothing: estimators count them as one sample |

The loss is in the input, not in the order of operations: rounding an image to float32 already
moves `lambda` by 6e-8. The NNGP kernel does not suffer, `kappa1` has a finite derivative;
that of other activations may be steep, [networks](networks.md#steep-activations) says which.
"""


def photographs(size: int, per_photograph: int) -> NDArray[np.float64]:
    """Cut pieces of ``size`` x ``size`` pixels, spread evenly over the photographs, in [0, 1]."""
    pieces: list[NDArray[np.float64]] = []
    for photograph in load_sample_images().images:
        image = np.asarray(photograph, np.float64) / 255.0
        centres = (np.arange(per_photograph) + 0.5) / per_photograph
        for index, x in enumerate(centres):
            top = int(centres[(index * 3) % per_photograph] * (image.shape[0] - size))
            left = int(x * (image.shape[1] - size))
            pieces.append(image[top : top + size, left : left + size])
    return np.stack(pieces)


def table(rows: Sequence[AccuracyRow]) -> str:
    """Render a table for each dtype: a line for each kind of pair, a column for each kernel."""
    text: list[str] = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        own = [row for row in rows if row.dtype == dtype]
        columns = list(dict.fromkeys((row.kernel, row.depth) for row in own))
        text.append(f"## {dtype}, against {own[0].witness}\n")
        text.append(
            "| pairs | " + " | ".join(f"{kernel} {depth}" for kernel, depth in columns) + " |"
        )
        text.append("|---|" + "---|" * len(columns))
        for inputs in dict.fromkeys(row.inputs for row in own):
            errors = {(row.kernel, row.depth): row.error for row in own if row.inputs == inputs}
            cells = " | ".join(f"{errors[column]:.1e}" for column in columns)
            text.append(f"| {inputs} | {cells} |")
        text.append("")
    return "\n".join(text)


def describe(environment: Environment) -> str:
    """Render where and with what the table was made, in words."""
    machine = environment.machine
    versions = [f"{name} {version}" for name, version in machine.packages.items() if version]
    changed = ", with changes" if environment.dirty else ""
    return "\n".join(
        [
            f"- made by `{environment.command}` on {environment.started[:10]}",
            f"- widelimit {environment.version}, commit {environment.commit}{changed}",
            f"- {machine.cpu}, {machine.cores_usable} of {machine.cores} cores",
            f"- {machine.system}, {machine.python}, {', '.join(versions)}",
        ]
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/accuracy.md"))
    parser.add_argument("--images", type=int, default=4, help="pieces of each photograph")
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 11, 21])
    arguments = parser.parse_args()
    check_file(arguments.out)
    images = photographs(32, arguments.images)
    rows = accuracy_table(images, depths=arguments.depths, distances=DISTANCES, threads=2)
    record = describe(describe_environment())
    text = INTRODUCTION.format(n=len(images)) + "\n" + table(rows) + f"\n## Record\n\n{record}\n"
    keep(arguments.out, lambda path: write_atomically(path, text))
    print(table(rows))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
