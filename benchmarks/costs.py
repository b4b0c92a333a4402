"""Write docs/costs.md: how long kernels and fits take, by number of images, their size and kernel.

usage: python benchmarks/costs.py            measure the rates of this machine, and write both files
       python benchmarks/costs.py --render   write the page from its record

Rates are measured on images of at most 32 x 32 pixels, three times, of which the best counts; the
times of the table are pairs divided by these rates, as `widelimit explain` tells them: predicted,
not measured. Let the machine be idle; it takes about a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from widelimit.architectures import named_network
from widelimit.costs import estimate, solving_seconds
from widelimit.display import duration
from widelimit.experiments.environment import describe_environment
from widelimit.files import check_file, write_atomically
from widelimit.keeping import keep
from widelimit.machine import CACHE_VARIABLE, default_threads

KERNELS = ("myrtle-5", "cntk-gap-4", "cntk-gap-11", "cntk-gap-21", "cntk-vanilla-11", "ntk-dense-3")
SIZES = ((28, 28, 1), (32, 32, 3), (64, 64, 3), (128, 128, 3), (224, 224, 3))
NUMBERS = (100, 500, 1_000, 5_000, 10_000, 60_000)
_ROUNDS = 3

INTRODUCTION = """\
# What it costs

A kernel of n images has `n (n + 1) / 2` pairs, and a pair of images of h x w pixels costs CNTK-GAP
`(h w)^2` element-layers for each convolution, CNTK-V `h w`: an element-layer is one entry of the
kernel between pixels through one convolution and its ReLU. What that is on *your* machine says
`widelimit explain NETWORK --shape 128x128x3 --inputs 500`: it measures for half a second how fast
this network is computed, and keeps that. `fit` (with the images of `--test`), `kernel` and
`suspects` say it, too, before work of more than ten seconds, with what would be cheaper; before
work of more than ten minutes they ask, if there is somebody to ask (`--yes` means: do not).
`predict` says it, and does not ask: a new image has as many pairs as there are training images.

- Half the side of the images is a sixteenth of the time of CNTK-GAP: `--size 32x32`.
- CNTK-V costs a thousandth, and pooling is worth more the fewer images there are.
- Depth counts in proportion: `cntk-gap-4` takes a third of `cntk-gap-11`. `myrtle-5`, the default
  for images, takes as long as `cntk-gap-4`: behind each pool a layer costs a sixteenth.
- A card is much faster: [docs/gpu.md](gpu.md) has its rates.

The times below are **predicted** from rates that were measured with {threads} threads on the
machine of the record: float32, the symmetric matrix of all images. Solving comes once, for the
matrix of any kernel.
"""


def measure() -> dict[str, Any]:
    """Return the record: seconds by kernel, size and number of images."""
    rows: list[dict[str, Any]] = []
    solving: list[dict[str, Any]] = []
    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory() as folder:  # where no rate is known
            os.environ[CACHE_VARIABLE] = folder
            rows += [
                {"kernel": name, "shape": shape, "n": n, "seconds": cost.seconds}
                for name in KERNELS
                for shape in SIZES
                for n in NUMBERS
                for cost in [estimate([named_network(name)], shape, n, backend="cpu")]
            ]
            solving += [
                {"n": n, "factor": solving_seconds(n), "loo": solving_seconds(n, decompose=True)}
                for n in NUMBERS
            ]
    count, systems = len(rows) // _ROUNDS, len(solving) // _ROUNDS
    best = [min(rows[i::count], key=lambda row: row["seconds"]) for i in range(count)]
    return {
        "threads": default_threads(),
        "kernels": best,
        "solving": [
            {key: min(row[key] for row in solving[i::systems]) for key in ("n", "factor", "loo")}
            for i in range(systems)
        ],
        "environment": dataclasses.asdict(describe_environment()),
    }


def render(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    text = [INTRODUCTION.format(threads=record["threads"])]
    for name in dict.fromkeys(row["kernel"] for row in record["kernels"]):
        own = [row for row in record["kernels"] if row["kernel"] == name]
        shapes = list(dict.fromkeys(tuple(row["shape"]) for row in own))
        heads = [f"{h} x {w} {'grey' if c == 1 else 'colour'}" for h, w, c in shapes]
        text += [f"## {name}\n", f"| images | {' | '.join(heads)} |"]
        text.append("|---:" * (len(heads) + 1) + "|")
        for n in dict.fromkeys(row["n"] for row in own):
            found = {tuple(row["shape"]): row["seconds"] for row in own if row["n"] == n}
            text.append(f"| {n:,} | {' | '.join(_time(found[shape]) for shape in shapes)} |")
        text.append("")
    text.append("## Solving\n\n| images | ridge given | `--ridge loo` |\n|---:|---:|---:|")
    for row in record["solving"]:
        text.append(f"| {row['n']:,} | {_time(row['factor'])} | {_time(row['loo'])} |")
    made = record["environment"]
    machine = made["machine"]
    packages = [f"{name} {version}" for name, version in machine["packages"].items() if version]
    text.append(
        f"\n## Record\n\n- made by `{made['command']}` on {made['started'][:10]}\n"
        f"- widelimit {made['version']}, commit {made['commit']}"
        f"{', with changes' if made['dirty'] else ''}\n"
        f"- {machine['cpu']}, {record['threads']} threads\n"
        f"- {machine['system']}, {machine['python']}, {', '.join(packages)}\n"
    )
    return "\n".join(text)


def _time(seconds: float) -> str:
    if seconds < 1:
        return "< 1 s"
    days = seconds / 86400
    if days >= 1000:
        return f"{days / 365:,.0f} years"
    return duration(seconds) if days < 3 else f"{days:,.0f} days"


def main() -> None:
    """Measure, or read the record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", type=Path, default=Path("docs/records/costs.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/costs.md"))
    parser.add_argument("--render", action="store_true")
    arguments = parser.parse_args()
    for path in (arguments.record, arguments.out):
        check_file(path)
    if arguments.render:
        record = json.loads(arguments.record.read_text("utf-8"))
    else:
        record = measure()
        text = json.dumps(record, indent=1) + "\n"
        keep(arguments.record, lambda path: write_atomically(path, text))
    keep(arguments.out, lambda path: write_atomically(path, render(record)))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
