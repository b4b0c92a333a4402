"""The limit made visible: finite networks of PyTorch beside the exact kernels, on digits.

usage: python benchmarks/finite.py theorem31 --out results/theorem31.json
       python benchmarks/finite.py theorem32 --out results/theorem32.json
       python benchmarks/finite.py weakly-trained --out results/weakly-trained.json
       with --plot FILE.svg: the picture of the record, too

theorem31: how the error of tangent kernels falls with the width, and the mean over many networks.
theorem32: wide networks trained by gradient descent, beside regression with the tangent kernel.
weakly-trained: networks of which the last layer alone is trained, beside the NNGP kernel.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import widelimit as wl
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.finite_width import (
    Decay,
    Run,
    Training,
    WeaklyTrained,
    compare_means,
    digits_pair,
    measure_decay,
    train_weakly,
    train_widths,
)
from widelimit.files import check_file, write_atomically
from widelimit.keeping import keep
from widelimit.network import (
    Conv,
    Dense,
    Flatten,
    LocalAvgPool,
    Network,
    ReLU,
)

WIDTHS = tuple(2**i for i in range(4, 12))
# Of width 2,048 a convolution has 38 million weights: fewer networks, and three images.
SEEDS = {"dense": (60, 60, 60, 60, 60, 60, 40, 20), "conv": (60, 60, 60, 60, 40, 20)}

MEANS = {
    "CNTK-V, depth 3": wl.cntk_vanilla(3),
    "CNTK-GAP, depth 3": wl.cntk_gap(3),
    "CNTK-LAP, depth 3": Network(
        [Conv(3), ReLU(), Conv(3), ReLU(), LocalAvgPool(1), Dense()], scaling="fan_in"
    ),
    "dense, depth 2": wl.ntk_dense(2),
    "dense, depth 2, with biases": wl.ntk_dense(2, b_std=0.5),
    "partly frozen": Network(
        [
            *(Conv(3, b_std=0.3, trainable=False), ReLU(), Conv(3, b_std=0.2), ReLU()),
            *(Flatten(), Dense(trainable=False)),
        ]
    ),
}
DRAWS, MEAN_WIDTH = 200, 512


def say(text: str) -> None:
    print(text, flush=True)


def theorem31() -> Iterator[dict[str, Any]]:
    """Measure errors over widths and depths, and the means of 200 networks."""
    x = digits_pair((3, 8), 10, 0)["x"]
    cases = {
        "dense, depth 1": (wl.ntk_dense(1), x, "dense"),
        "dense, depth 3": (wl.ntk_dense(3), x, "dense"),
        "CNTK-GAP, depth 4": (wl.cntk_gap(4), x[:4], "conv"),
        "CNTK-V, depth 3": (wl.cntk_vanilla(3), x[:4], "conv"),
    }
    found: dict[str, Any] = {"decays": [], "means": []}
    for name, (net, images, kind) in cases.items():
        seeds = SEEDS[kind]
        decay = measure_decay(name, net, images, WIDTHS[: len(seeds)], seeds, say=say)
        found["decays"].append(dataclasses.asdict(decay))
        yield found
    for name, net in MEANS.items():
        mean = compare_means(name, net, x[[0, 1, -1]], MEAN_WIDTH, DRAWS, say=say)
        found["means"].append(dataclasses.asdict(mean))
        yield found


def theorem32() -> Iterator[dict[str, Any]]:
    """Train dense networks on twenty images of 3 and 8."""
    data = digits_pair((3, 8), 20, 100)
    training = train_widths(
        "3 and 8, dense, depth 2",
        wl.ntk_dense(2),
        data["x"],
        data["y"],
        data["x_test"],
        data["y_test"],
        (64, 256, 1024, 4096),
        (4, 4, 4, 1),
        kappa=0.1,
        say=say,
    )
    yield {"training": dataclasses.asdict(training)}


def weakly_trained() -> Iterator[dict[str, Any]]:
    """Regress with random features of 40 images of 3 and 8, of which 200 others are tested."""
    data = digits_pair((3, 8), 40, 200)
    found = [
        train_weakly(
            name, net, data["x"], data["y"], data["x_test"], data["y_test"], widths, 5, say=say
        )
        for name, net, widths in (
            ("dense, depth 3", wl.ntk_dense(3), (16, 64, 256, 1024)),
            ("CNTK-GAP, depth 4", wl.cntk_gap(4), (16, 64, 256)),
        )
    ]
    yield {"weakly_trained": [dataclasses.asdict(one) for one in found]}


WHAT: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "theorem31": theorem31,
    "theorem32": theorem32,
    "weakly-trained": weakly_trained,
}


def run(what: str, threads: int = 1) -> Iterator[dict[str, Any]]:
    """Yield the record of one experiment, each time with one part more."""
    import torch

    torch.set_num_threads(threads)
    environment = dataclasses.asdict(describe_environment())
    start = time.perf_counter()
    for found in WHAT[what]():
        seconds = time.perf_counter() - start
        yield {"environment": environment, "threads": threads, "seconds": seconds} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--out", type=Path, required=True, help="write the record")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--plot", type=Path, help="draw the record, too, into an SVG file")
    arguments = parser.parse_args()
    check_file(arguments.out)
    record: dict[str, Any] = {}
    for record in run(arguments.what, arguments.threads):
        text = json.dumps(record, indent=1) + "\n"
        keep(arguments.out, lambda path, text=text: write_atomically(path, text))
    if arguments.plot is not None:
        plot(record, arguments.plot)


def table(record: dict[str, Any]) -> str:
    """Return the tables of a record of theorem31, or the one of theorem32."""
    if "training" in record:
        return _training_table(record["training"])
    rows = ["| network | widths | networks a width | slope, 95 % |", "|---|---|---|---|"]
    for decay in record["decays"]:
        first, last = decay["widths"][0], decay["widths"][-1]
        spread = 1.96 * decay["slope_error"]
        counts = sorted({len(errors) for errors in decay["errors"]})
        number = " to ".join(str(n) for n in (counts[0], counts[-1])[: len(counts)])
        rows.append(
            f"| {decay['name']} | {first} to {last:,} | {number} | "
            f"{decay['slope']:.2f} ± {spread:.2f} |"
        )
    rows += [
        "",
        "| mean of 200 networks | width | from the exact kernel | largest entry, beyond the bias |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| {mean['name']} | {mean['width']} | {mean['relative_error']:.2%} | "
        f"{mean['largest']:.1f} standard errors |"
        for mean in record["means"]
    ]
    return "\n".join(rows)


def _training_table(training: dict[str, Any]) -> str:
    runs = training["runs"]
    rows = ["| width | networks | largest gap on test points | training residual |"]
    rows.append("|---|---|---|---|")
    for width in sorted({run["width"] for run in runs}):
        own = [run for run in runs if run["width"] == width]
        gap = sum(run["gaps"][-1] for run in own) / len(own)
        residual = max(run["residual"] for run in own)
        rows.append(f"| {width:,} | {len(own)} | {gap:.3f} | {residual:.3f} |")
    return "\n".join(rows)


def plot(record: dict[str, Any], out: Path) -> None:
    """Draw a record into an SVG file."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "widelimit", "svg.fonttype": "none", "font.size": 9}):
        if "decays" in record:
            axes = wl.plot.width_errors([Decay(**one) for one in record["decays"]])
        elif "training" in record:
            given = record["training"]
            runs = tuple(Run(**one) for one in given["runs"])
            axes = wl.plot.training_gaps(Training(**{**given, "runs": runs}))
        else:
            axes = wl.plot.weakly_trained([WeaklyTrained(**r) for r in record["weakly_trained"]])
        drawn = io.BytesIO()
        axes.figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_atomically(out, drawn.getvalue())


if __name__ == "__main__":
    main()
