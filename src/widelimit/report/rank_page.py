"""The page of a ranking: architectures by their scores on few images, and how well these agree."""

from __future__ import annotations

from html import escape
from typing import Any, TypeAlias

from widelimit.costs import to_size
from widelimit.display import duration
from widelimit.report.page import environment_facts, facts, notice, result_table, signed, tiles
from widelimit.report.plots import Axis, Line, Mark, draw_lines, draw_rows
from widelimit.report.shapes import ENVIRONMENT, Maybe, environment_of

__all__ = ["SHAPE", "sections_of", "title_of"]

Record: TypeAlias = dict[str, Any]

SHAPE = {
    "environment": ENVIRONMENT,
    "data": {
        "name": str,
        "provenance": str,
        "image_shape": (int, int, int),
        "n_classes": int,
    },
    "sizes": [int],
    "n_pool": int,
    "n_validation": int,
    "preprocessing": Maybe(str),
    "draws": int,
    "seed": int,
    "notes": Maybe([str]),
    "measures": (str, str, str),
    "architectures": [
        {
            "name": str,
            "paper": Maybe({"cntk": float, "cnn": float}),
            "mean": [(float, float, float)],
            "standard_error": Maybe([(float, float, float)]),
        }
    ],
    "agreement": [
        {
            "between": (str, str),
            "architectures": int,
            "tau": Maybe(float),
            "low": Maybe(float),
            "high": Maybe(float),
        }
    ],
    "seconds": float,
    "peak_memory": Maybe(int),
}
"""Of a record of ``widelimit.rank/1``."""

_EQUALS = "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
_SHOWN = ((0, "Leave-one-out"), (2, "Validation"))  # places of measures


def title_of(record: Record) -> str:
    """Return what a record is of, in a line."""
    return f"Architectures ranked on few images of {record['data']['name']}"


def sections_of(record: Record, *, kicker: str, beside: str) -> list[str]:
    """Return the sections of a ranking, the first of them its header.

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
    sizes, entries = record["sizes"], record["architectures"]
    if not sizes or not entries:
        raise ValueError("a ranking must have sizes and architectures")
    for entry in entries:
        for key in ("mean", "standard_error"):
            if entry[key] is not None and len(entry[key]) != len(sizes):
                raise ValueError(f"{key} must have an entry for each of {len(sizes)} sizes")
    best = sorted(entries, key=lambda entry: -entry["mean"][-1][2])
    return [
        _head(record, best, kicker),
        _scores(record, best),
        _curves(record, best),
        _agreement(record),
        _making(record, beside),
    ]


def _head(record: Record, best: list[Record], kicker: str) -> str:
    data, largest = record["data"], record["sizes"][-1]
    h, w, c = data["image_shape"]
    top = best[0]
    validation = [row for row in record["agreement"] if "validation" in row["between"][1]]
    agreed = [row for row in validation if row["between"][0].startswith("loo_accuracy")]
    entries = [
        (
            f"{100 * top['mean'][-1][2]:.2f}<i>%</i>",
            f"of validation images with {largest:,} training images",
            f"the best of {len(best)}: {top['name']}",
        )
    ]
    if agreed and agreed[-1]["tau"] is not None:
        told = "Kendall’s tau between leave-one-out and validation"
        entries.append((signed(agreed[-1]["tau"]), told, f"with {largest:,} training images"))
    sizes = ", ".join(f"{size:,}" for size in record["sizes"])
    return f"""<header>
<p class="kicker">{escape(kicker)}</p>
<h1>{escape(title_of(record))}</h1>
<p class="lede">{len(best)} architectures on {sizes} training images of {h} × {w} × {c} in
{data["n_classes"]} classes: which are good, by leaving one image out, and by
{record["n_validation"]:,} images for validation.</p>
{notice(record["notes"] or [])}
{tiles(entries)}
</header>"""


def _scores(record: Record, best: list[Record]) -> str:
    last, draws = len(record["sizes"]) - 1, record["draws"]
    lines = [
        Line(label, [_mark(entry, i, label, last, measure) for i, entry in enumerate(best)])
        for measure, label in _SHOWN
    ]
    drawn = draw_rows(
        [entry["name"] for entry in best],
        lines,
        Axis("correct", unit=" %"),
        "Accuracy of each architecture; the table has the numbers.",
    )
    paper = any(entry["paper"] is not None for entry in best)
    heads = ["Architecture"]
    heads += [f"{label}, n{_EQUALS}{size:,}" for size in record["sizes"] for _, label in _SHOWN]
    heads += ["CNTK, the paper", "CNN, the paper"] * paper
    rows: list[list[str]] = []
    for entry in best:
        cells = [escape(entry["name"])]
        for j, means in enumerate(entry["mean"]):
            for measure, _ in _SHOWN:
                error = entry["standard_error"] and entry["standard_error"][j][measure]
                told = "" if error is None else f" <span>± {100 * error:.2f}</span>"
                cells.append(f"{100 * means[measure]:.2f}{told}")
        if paper:
            figures = entry["paper"]
            cells += [f"{figures[k]:.2f}" if figures else "–" for k in ("cntk", "cnn")]
        rows.append(cells)
    spread = f"Means over {draws} draws with their standard errors" if draws > 1 else "One draw"
    columns = " The paper’s columns are those of all 50,000 images of CIFAR-10." if paper else ""
    return f"""<section>
<h2>Scores</h2>
<figure>
{drawn}
<figcaption>With {record["sizes"][-1]:,} training images; bars are one standard error.</figcaption>
</figure>
{result_table(heads, rows)}
<p class="caption">Per cent. {spread}, sorted by the last validation.{columns}</p>
</section>"""


def _mark(entry: Record, row: int, label: str, size: int, measure: int) -> Mark:
    value, errors = 100 * entry["mean"][size][measure], entry["standard_error"]
    tip = f"{entry['name']}, {label.lower()}: {value:.2f} %"
    if errors is None:
        return Mark(value, row, tip)
    error = 100 * errors[size][measure]
    return Mark(value, row, f"{tip} ± {error:.2f}", value - error, value + error)


def _curves(record: Record, best: list[Record]) -> str:
    sizes = record["sizes"]
    if len(sizes) < 2 or min(sizes) < 1:
        return ""
    shown = best[:5]
    lines: list[Line] = []
    for entry in shown:
        marks: list[Mark] = []
        for j, size in enumerate(sizes):
            mark = _mark(entry, 0, f"validation, n = {size:,}", j, 2)
            marks.append(Mark(size, mark.x, mark.tip, mark.low, mark.high))
        lines.append(Line(entry["name"], marks))
    drawn = draw_lines(
        lines,
        Axis("training images", "log", ticks=sizes),
        Axis("correct validation images", unit=" %"),
        "Learning curves of the best architectures.",
    )
    return f"""<section>
<h2>Learning curves</h2>
<figure>
{drawn}
<figcaption>The {len(shown)} best of {len(best)}; bars are one standard error.</figcaption>
</figure>
</section>"""


def _agreement(record: Record) -> str:
    rows = [row for row in record["agreement"] if row["tau"] is not None]
    if not rows:
        return ""
    names = [" / ".join(_spoken(name) for name in row["between"]) for row in rows]
    marks: list[Mark] = []
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        tip = f"{name}: {signed(row['tau'])}"
        if row["low"] is not None:
            tip += f", {signed(row['low'])} to {signed(row['high'] or 0.0)}"
        marks.append(Mark(row["tau"], i, tip, row["low"], row["high"]))
    drawn = draw_rows(
        [f"{i + 1}" for i in range(len(rows))],
        [Line("tau", marks)],
        Axis("Kendall’s tau"),
        "Kendall's tau of pairs of scores; the table has the numbers.",
        zero=True,
    )
    table = [
        [
            f"{i + 1}",
            *(escape(_spoken(name)) for name in row["between"]),
            f"{row['architectures']}",
            signed(row["tau"]),
            "–" if row["low"] is None else f"{signed(row['low'])} to {signed(row['high'] or 0.0)}",
        ]
        for i, row in enumerate(rows)
    ]
    heads = ["", "Between", "and", "Architectures", "Tau", "95 % interval"]
    return f"""<section>
<h2>How well the scores agree</h2>
<figure>
{drawn}
</figure>
{result_table(heads, table, words=(1, 2))}
<p class="caption">Kendall’s tau between means over draws: 1 is the same order, 0 none. The interval
is of the bootstrap over the draws, which share images: that of new images is wider. The loo score
is minus the mean squared error of left-out images.</p>
</section>"""


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace(" = ", _EQUALS)


def _making(record: Record, beside: str) -> str:
    memory = record["peak_memory"]
    pool = f"{record['n_pool']:,}, of which {record['n_validation']:,} are left for validation"
    return facts(
        "How this was made",
        [
            *environment_facts(environment_of(record["environment"])),
            ("Data", escape(record["data"]["provenance"])),
            ("Images", pool),
            ("Pixels", escape(record["preprocessing"] or "not recorded")),
            ("Draws", f"{record['draws']}, seed {record['seed']}"),
            ("Time", duration(record["seconds"])),
            ("Memory", "not recorded" if memory is None else f"{to_size(memory)} at most"),
            ("Record", beside),
        ],
    )
