"""The page of networks of finite width: what their kernels and their training tend to."""

from __future__ import annotations

from html import escape
from typing import Any, TypeAlias

import numpy as np

from widelimit.costs import to_size
from widelimit.display import duration
from widelimit.report.page import environment_facts, facts, result_table
from widelimit.report.plots import Axis, Line, Mark, draw_lines
from widelimit.report.shapes import ENVIRONMENT, Maybe, environment_of

__all__ = ["SHAPE", "sections_of", "title_of"]

Record: TypeAlias = dict[str, Any]

SHAPE = {
    "environment": ENVIRONMENT,
    "device": Maybe(str),
    "threads": Maybe(int),
    "seconds": Maybe(float),
    "peak_memory": Maybe(int),
    "decays": Maybe(
        [
            {
                "name": str,
                "widths": [int],
                "errors": [[float]],
                "slope": float,
                "slope_error": float,
            }
        ]
    ),
    "means": Maybe(
        [
            {
                "name": str,
                "width": int,
                "draws": int,
                "largest": Maybe(float),
                "relative_error": float,
            }
        ]
    ),
    "training": Maybe(
        {
            "name": str,
            "n_train": int,
            "n_test": int,
            "scale": float,
            "kernel_accuracy": float,
            "runs": [
                {
                    "width": int,
                    "seed": int,
                    "residual": float,
                    "gaps": [float],
                    "accuracy": float,
                }
            ],
        }
    ),
    "weakly_trained": Maybe(
        [
            {
                "name": str,
                "n_train": int,
                "n_test": int,
                "widths": [int],
                "accuracies": [[float]],
                "gaps": [[float]],
                "scale": float,
                "exact_accuracy": float,
                "ntk_accuracy": float,
            }
        ]
    ),
}
"""Of records of finite networks."""


def title_of(record: Record) -> str:
    """Return what a record is of, in a line."""
    if record["decays"]:
        return "Theorem 3.1: tangent kernels of wide networks"
    if record["training"]:
        return "Theorem 3.2: training of wide networks"
    return "Networks of which the last layer is trained"


def sections_of(record: Record, *, kicker: str, beside: str) -> list[str]:
    """Return the sections of a run of finite networks, the first of them its header.

    Parameters
    ----------
    record : dict
        Of `SHAPE`.
    kicker : str
        What stands over the title.
    beside : str
        HTML: where the record is.

    Raises
    ------
    ValueError
        If parts of the record contradict one another.
    """
    weakly: list[Record] = record["weakly_trained"] or []
    parts = [
        _decays(record["decays"]) if record["decays"] else "",
        _means(record["means"]) if record["means"] else "",
        _training(record["training"]) if record["training"] else "",
        *(_weakly(found) for found in weakly),
    ]
    if not any(parts):
        raise ValueError("it must have decays, means, training or weakly_trained networks")
    head = f"""<header>
<p class="kicker">{escape(kicker)}</p>
<h1>{escape(title_of(record))}</h1>
<p class="lede">Real networks of growing width, beside the exact kernels of their limit.</p>
</header>"""
    threads, memory = record["threads"], record["peak_memory"]
    making = facts(
        "How this was made",
        [
            *environment_facts(environment_of(record["environment"])),
            ("Device", escape(record["device"] or "")),
            ("Threads", "" if threads is None else f"{threads}"),
            ("Time", "" if record["seconds"] is None else duration(record["seconds"])),
            ("Memory", "not recorded" if memory is None else f"{to_size(memory)} at most"),
            ("Record", beside),
        ],
    )
    return [head, *filter(None, parts), making]


def _line(label: str, widths: list[int], values: list[list[float]], unit: float = 1.0) -> Line:
    """Return means over seeds for each width, with their standard errors."""
    if len(widths) != len(values) or not all(values) or min(widths, default=1) < 1:
        raise ValueError(f"{label} must have values for each of {len(widths)} widths, from 1 on")
    marks: list[Mark] = []
    for width, row in zip(widths, values, strict=True):
        mean, error = unit * float(np.mean(row)), _error(row, unit)
        tip = f"{label}, width {width:,}: {mean:.4g}"
        if error is None or error >= mean:
            marks.append(Mark(width, mean, tip))
        else:
            marks.append(Mark(width, mean, f"{tip} ± {error:.2g}", mean - error, mean + error))
    return Line(label, marks)


def _width(widths: list[int]) -> Axis:
    return Axis("width", "log", ticks=widths)


def _error(row: list[float], unit: float = 1.0) -> float | None:
    return unit * float(np.std(row, ddof=1)) / len(row) ** 0.5 if len(row) > 1 else None


def _told(row: list[float], unit: float = 1.0, digits: int = 4) -> str:
    if not row:
        raise ValueError("a mean must be one of at least one value")
    error = _error(row, unit)
    mean = f"{unit * float(np.mean(row)):.{digits}f}"
    return mean if error is None else f"{mean} <span>± {error:.{digits}f}</span>"


def _decays(decays: list[Record]) -> str:
    lines = [_line(decay["name"], decay["widths"], decay["errors"]) for decay in decays]
    widths = sorted({width for decay in decays for width in decay["widths"]})
    drawn = draw_lines(
        lines,
        _width(widths),
        Axis("relative error", "log"),
        "Errors of tangent kernels by width.",
    )
    rows: list[list[str]] = []
    for decay in decays:
        of = dict(zip(decay["widths"], decay["errors"], strict=True))
        half = 1.96 * decay["slope_error"]
        slope = f"{decay['slope']:.3f} <span>± {half:.3f}</span>".replace("-", "−")
        cells = [_told(of[width]) if width in of else "–" for width in widths]
        rows.append([escape(decay["name"]), slope, *cells])
    heads = ["Network", "Slope", *(f"{width:,}" for width in widths)]
    return f"""<section>
<h2>How far the kernels of random networks are</h2>
<figure>
{drawn}
<figcaption>‖K̂ − K‖ / ‖K‖ against the width, mean over seeds; both axes are
logarithmic.</figcaption>
</figure>
{result_table(heads, rows)}
<p class="caption">The slope of log error over log width with its 95 % interval, and the mean error
at each width with its standard error.</p>
</section>"""


def _means(means: list[Record]) -> str:
    rows = [
        [
            escape(one["name"]),
            f"{one['width']:,}",
            f"{one['draws']:,}",
            f"{one['relative_error']:.4f}",
            "–" if one["largest"] is None else f"{one['largest']:.2f}".replace("-", "−"),
        ]
        for one in means
    ]
    heads = ["Network", "Width", "Draws", "Error of the mean", "Largest entry, beyond the bias"]
    return f"""<section>
<h2>Means over many random networks</h2>
{result_table(heads, rows)}
<p class="caption">‖mean K̂ − K‖ / ‖K‖; and of the entries the largest difference, less the bias
that is expected of this width, in its standard errors: below 0 where none goes beyond the bias.</p>
</section>"""


def _training(training: Record) -> str:
    by_width: dict[int, list[Record]] = {}
    for run in training["runs"]:
        by_width.setdefault(run["width"], []).append(run)
    widths = sorted(by_width)
    ends = [[run["gaps"][-1] for run in by_width[width]] for width in widths]
    drawn = draw_lines(
        [_line("gap", widths, ends)],
        _width(widths),
        Axis("gap to the kernel", "log"),
        "Gap between trained networks and kernel regression against width.",
    )
    rows = [
        [
            f"{width:,}",
            f"{len(runs)}",
            _told([run["gaps"][-1] for run in runs]),
            f"{max(run['residual'] for run in runs):.4f}",
            _told([run["accuracy"] for run in runs], 100, 2),
        ]
        for width, runs in sorted(by_width.items())
    ]
    return f"""<section>
<h2>{escape(training["name"])}</h2>
<p>{training["n_train"]:,} training and {training["n_test"]:,} test images. Kernel regression is
right on {100 * training["kernel_accuracy"]:.2f} % of them.</p>
<figure>
{drawn}
<figcaption>Largest distance, over test images, of the outputs of trained networks from those of the
kernel, mean over seeds; both axes are logarithmic.</figcaption>
</figure>
{result_table(["Width", "Networks", "Gap", "Residual", "Test accuracy, %"], rows)}
<p class="caption">Means over seeds with their standard errors; the residual is the
largest of training images in the end. Root mean square of the predictions:
{training["scale"]:.2f}.</p>
</section>"""


def _weakly(found: Record) -> str:
    widths, unit = found["widths"], 1 / found["scale"]
    drawn = draw_lines(
        [_line("distance", widths, found["gaps"], unit)],
        _width(widths),
        Axis("relative distance from the kernel", "log"),
        "Distance between networks and kernel regression against width.",
    )
    rows = [
        [f"{width:,}", _told(gaps, unit), _told(accuracies, 100, 2)]
        for width, gaps, accuracies in zip(widths, found["gaps"], found["accuracies"], strict=True)
    ]
    return f"""<section>
<h2>{escape(found["name"])}</h2>
<p>{found["n_train"]:,} training and {found["n_test"]:,} test images. The NNGP kernel, the limit, is
right on {100 * found["exact_accuracy"]:.2f} % of them, the tangent kernel on
{100 * found["ntk_accuracy"]:.2f} %.</p>
<figure>
{drawn}
<figcaption>Root mean square distance of the outputs from those of the limit, relative to these:
mean over seeds; both axes are logarithmic.</figcaption>
</figure>
{result_table(["Width", "Relative distance", "Test accuracy, %"], rows)}
<p class="caption">Means over seeds with their standard errors.</p>
</section>"""
