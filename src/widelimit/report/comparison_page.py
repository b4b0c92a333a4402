"""Pages of networks beside kernels, and of readouts and Myrtle networks beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, TypeAlias

from widelimit.costs import to_size
from widelimit.display import duration
from widelimit.report.finite import PAPER_IMAGES
from widelimit.report.myrtle import by_kernel, chosen_told, quoted_told
from widelimit.report.page import (
    environment_facts,
    facts,
    kernel_name,
    notice,
    result_table,
    signed,
)
from widelimit.report.plots import Axis, Line, Mark, draw_rows
from widelimit.report.readouts import variant_name
from widelimit.report.shapes import ENVIRONMENT, Maybe, environment_of

__all__ = ["CNN_SHAPE", "MYRTLE_SHAPE", "RANDOM_SHAPE", "READOUTS_SHAPE", "sections_of", "title_of"]

Record: TypeAlias = dict[str, Any]

_ANY = {
    "format": str,
    "environment": ENVIRONMENT,
    "data": {"name": str, "provenance": str, "image_shape": (int, int, int)},
    "notes": Maybe([str]),
    "errors": Maybe([str]),
    "n_train": int,
    "n_test": int,
    "device": Maybe(str),
    "threads": Maybe(int),
    "seed": Maybe(int),
    "draws": Maybe(int),
    "asked": Maybe({"seed": Maybe(int), "depth": Maybe(int)}),
    "seconds": float,
    "peak_memory": Maybe(int),
}
RANDOM_SHAPE = _ANY | {
    "channels": int,
    "rows": [
        {
            "readout": str,
            "depth": int,
            "accuracy": Maybe(float),
            "median": Maybe(float),
            "paper_percent": Maybe(float),
            "random": [{"accuracy": Maybe(float)}],
        }
    ],
}
"""Of a record of ``widelimit.table2/1``."""
CNN_SHAPE = _ANY | {
    "rows": [
        {
            "column": str,
            "depth": int,
            "channels": int,
            "learning_rate": float,
            "accuracy": Maybe(float),
            "standard_error": Maybe(float),
            "paper_percent": Maybe(float),
            "trials": [{"full_at": Maybe(int), "epochs": int}],
        }
    ],
    "exact": [{"column": str, "depth": int, "accuracy": Maybe(float)}],
}
"""Of a record of ``widelimit.table1_cnn/1``."""
_SUMMARY = {"mean": float, "standard_error": Maybe(float)}
READOUTS_SHAPE = _ANY | {
    "variants": [
        {
            "variant": str,
            "readouts": [_SUMMARY | {"readout": str, "leave_one_out": [float]}],
            "differences": [_SUMMARY | {"between": (str, str)}],
        }
    ],
    "changes": [_SUMMARY | {"readout": str, "between": (str, str)}],
}
"""Of a record of ``widelimit.readouts/1``."""
_KERNEL = {
    "kernel": str,
    "images": str,
    "ridge": float,
    "leave_one_out": float,
    "accuracy": float,
    "standard_error": float,
}
MYRTLE_SHAPE = _ANY | {
    "left": [str],
    "kernels": [_KERNEL],
    "chosen": _KERNEL,
    "quoted": [{"what": str, "n_train": int, "percent": float}],
}
"""Of a record of ``widelimit.myrtle/1``."""


def title_of(record: Record) -> str:
    """Return what a record is of, in a line."""
    return f"{_TITLES[record['format']]} on {record['data']['name']}"


def sections_of(record: Record, *, kicker: str, beside: str) -> list[str]:
    """Return the sections of a comparison, the first of them its header.

    Parameters
    ----------
    record : dict
        Of one of the shapes above.
    kicker : str
        What stands over the title.
    beside : str
        HTML: where the record is.
    """
    h, w, c = record["data"]["image_shape"]
    draws = f", {record['draws']} draws" if (record["draws"] or 0) > 1 else ""
    head = f"""<header>
<p class="kicker">{escape(kicker)}</p>
<h1>{escape(title_of(record))}</h1>
<p class="lede">{record["n_train"]:,} training and {record["n_test"]:,} test images of
{h} × {w} × {c}{draws}.</p>
{notice([*(record["notes"] or []), *(record["errors"] or [])])}
</header>"""
    return [head, *_BODIES[record["format"]](record), _making(record, beside)]


def _table1_cnn(record: Record) -> list[str]:
    marks: list[list[Mark]] = [[], []]
    names: list[str] = []
    rows: list[list[str]] = []
    for row in record["rows"]:
        accuracy, error, paper = row["accuracy"], row["standard_error"], row["paper_percent"]
        name = f"{row['column'].upper()} {row['depth']}, {row['channels']:,} channels"
        if accuracy is not None:
            marks[0].append(_mark(name, len(names), 100 * accuracy, error and 100 * error))
        if paper is not None:
            marks[1].append(_mark(f"{name}, the paper", len(names), paper, None))
        names.append(name)
        told = "diverged" if accuracy is None else _with_error(accuracy, error)
        reached = [str(one["full_at"] or "not reached") for one in row["trials"]]
        rows.append(
            [
                escape(row["column"].upper()),
                f"{row['depth']}",
                f"{row['channels']:,}",
                told,
                _percent(paper),
                _difference(accuracy, paper, error),
                f"{row['learning_rate']:g}",
                ", ".join(dict.fromkeys(reached)),
            ]
        )
    for one in record["exact"]:
        name = one["column"].upper().replace("CNN", "exact CNTK")
        if one["accuracy"] is not None:
            marks[0].append(
                _mark(f"{name}, depth {one['depth']}", len(names), 100 * one["accuracy"], None)
            )
        names.append(f"{name} {one['depth']}")
        known = "not solved" if one["accuracy"] is None else f"{100 * one['accuracy']:.2f}"
        rows.append([escape(name), f"{one['depth']}", "–", known, "–", "–", "–", "–"])
    heads = ["Network", "Depth", "Channels", "Test accuracy, %", "The paper, %", "Difference"]
    heads += ["Learning rate", "Epochs to full training accuracy"]
    return [
        f"""<section>
<h2>Trained networks, and exact kernels</h2>
{_picture(names, marks, ("Here", "The paper"))}
{result_table(heads, rows)}
<p class="caption">Means over trained networks with their standard errors, where there are
several.</p>
</section>"""
    ]


def _table2(record: Record) -> list[str]:
    papers = record["n_train"] == PAPER_IMAGES
    marks: list[list[Mark]] = [[], [], []]
    names: list[str] = []
    rows: list[list[str]] = []
    for i, row in enumerate(record["rows"]):
        known = [100 * one["accuracy"] for one in row["random"] if one["accuracy"] is not None]
        name, paper = kernel_name(row["readout"]), row["paper_percent"]
        names.append(f"{name} {row['depth']}")
        median, exact = row["median"], row["accuracy"]
        spread = ""
        if median is not None and known:
            spread = f" <span>({min(known):.2f} to {max(known):.2f})</span>"
            tip = f"{names[-1]}, random features: {100 * median:.2f} %"
            marks[0].append(Mark(100 * median, i, tip, min(known), max(known)))
        if exact is not None:
            marks[1].append(_mark(f"{names[-1]}, exact", i, 100 * exact, None))
        if paper is not None:
            marks[2].append(_mark(f"{names[-1]}, exact, the paper", i, paper, None))
        share = None if exact is None else 100 * exact
        rows.append(
            [
                escape(name),
                f"{row['depth']}",
                "not solved" if median is None else f"{100 * median:.2f}{spread}",
                "not solved" if share is None else f"{share:.2f}",
                _percent(paper),
                _difference(exact, paper if papers else None, _binomial(exact, record["n_test"])),
            ]
        )
    heads = ["Kernel", "Depth", "Random features, %", "Exact, %", "Exact, the paper, %"]
    beside = (
        "" if papers else f" The paper's are of {PAPER_IMAGES:,} training images: no difference."
    )
    return [
        f"""<section>
<h2>Random features, and exact kernels</h2>
{_picture(names, marks, ("Random features", "Exact", "Exact, the paper"))}
{result_table([*heads, "Difference"], rows)}
<p class="caption">Random features: the gradient of networks of {record["channels"]:,} channels, the
median over draws, and in brackets (bars) the least and the largest. The difference, of exact
kernels, has the binomial standard error of the test images.{beside}</p>
</section>"""
    ]


def _readouts(record: Record) -> list[str]:
    marks: dict[str, list[Mark]] = {}
    names = [variant_name(variant["variant"]) for variant in record["variants"]]
    asked: dict[str, Any] = record["asked"] or {}
    depth = asked.get("depth")
    of = "" if depth is None else f" of networks of depth {depth}"
    rows: list[list[str]] = []
    compared: list[list[str]] = []
    for i, variant in enumerate(record["variants"]):
        for one in variant["readouts"]:
            name, error = kernel_name(one["readout"]), one["standard_error"]
            tip = f"{name}, {names[i]}"
            mark = _mark(tip, i, 100 * one["mean"], error and 100 * error)
            marks.setdefault(name, []).append(mark)
            left_out = one["leave_one_out"]
            mean = 100 * sum(left_out) / len(left_out) if left_out else None
            rows.append(
                [
                    escape(names[i]),
                    escape(name),
                    _with_error(one["mean"], error),
                    _percent(mean),
                ]
            )
        for one in variant["differences"]:
            first, other = (escape(kernel_name(name)) for name in one["between"])
            told = _points(one["mean"], one["standard_error"])
            compared.append([f"{first} above {other}", escape(names[i]), told])
    for one in record["changes"]:
        name = escape(kernel_name(one["readout"]))
        first, other = (escape(variant_name(text)) for text in one["between"])
        told = _points(one["mean"], one["standard_error"])
        compared.append([f"{first} above {other}", name, told])
    return [
        f"""<section>
<h2>Readouts{of}</h2>
{_picture(names, list(marks.values()), list(marks))}
{result_table(["Variant", "Readout", "Test accuracy, %", "Leave-one-out, %"], rows, words=(1,))}
<p class="caption">Means over draws with their standard errors; all draws share the test images.
"As the paper" is standardised by channel, without flips.</p>
</section>""",
        f"""<section>
<h2>Differences</h2>
{result_table(["Difference", "Of", "Points"], compared, words=(1,))}
<p class="caption">Draw by draw: the mean difference of test accuracies and its standard
error.</p>
</section>""",
    ]


def _myrtle(record: Record) -> list[str]:
    heads, kernels = by_kernel(record)
    marks: list[list[Mark]] = [[] for _ in heads]
    chosen = record["chosen"]["kernel"]
    drawn = [k for k in kernels if k == chosen or not k.endswith(", normalised")]
    rows: list[list[str]] = []
    best: list[list[int]] = []
    for kernel, found in kernels.items():
        cells = [escape(kernel)]
        for j, row in enumerate(found):
            if row is None:
                cells += ["", ""]
                continue
            tip, error = f"{kernel}; {heads[j]}", 100 * row["standard_error"]
            if kernel in drawn:
                mark = _mark(tip, drawn.index(kernel), 100 * row["accuracy"], error)
                marks[j].append(mark)
            cells.append(_with_error(row["accuracy"], row["standard_error"]))
            cells.append(f"{100 * row['leave_one_out']:.2f}")
        rows.append(cells)
        best.append([2 * j + 1 for j, row in enumerate(found) if row == record["chosen"]])
    columns = ["Kernel"]
    for head in heads:
        columns += [f"{escape(head)}, %", "leave-one-out, %"]
    left = f"Not there yet: {', '.join(record['left'])}." if record["left"] else ""
    told = [chosen_told(record), *quoted_told(record), *[left] * bool(left)]
    return [
        f"""<section>
<h2>Kernels</h2>
{_picture(drawn, marks, heads)}
{"".join(f"<p>{escape(line)}</p>" for line in told)}
{result_table(columns, rows, best)}
<p class="caption">Accuracies on test images, with their binomial standard errors, and leaving one
training image out, by which ridges and the kernel in bold were chosen. Means are uniform, of the
normalised kernels of all networks; with flips, kernels are averaged over horizontal ones. The
picture leaves out normalised kernels, but for the one that was chosen.</p>
</section>"""
    ]


_TITLES = {
    "widelimit.table1_cnn/1": "Table 1: trained CNNs",
    "widelimit.table2/1": "Table 2: random features and exact kernels",
    "widelimit.readouts/1": "Readouts, flips and ZCA",
    "widelimit.myrtle/1": "Myrtle networks",
}
_BODIES = {
    "widelimit.table1_cnn/1": _table1_cnn,
    "widelimit.table2/1": _table2,
    "widelimit.readouts/1": _readouts,
    "widelimit.myrtle/1": _myrtle,
}


def _picture(names: Sequence[str], marks: Sequence[list[Mark]], labels: Sequence[str]) -> str:
    lines = [Line(label, found) for label, found in zip(labels, marks, strict=True) if found]
    if not lines:
        return ""
    drawn = draw_rows(
        names, lines, Axis("correct test images", unit=" %"), "Accuracies; the table has them."
    )
    return f"<figure>\n{drawn}\n</figure>"


def _mark(tip: str, row: int, value: float, error: float | None) -> Mark:
    told = f"{tip}: {value:.2f} %"
    if error is None:
        return Mark(value, row, told)
    return Mark(value, row, f"{told} ± {error:.2f}", value - error, value + error)


def _with_error(share: float, error: float | None) -> str:
    told = f"{100 * share:.2f}"
    return told if error is None else f"{told} <span>± {100 * error:.2f}</span>"


def _points(share: float, error: float | None) -> str:
    told = signed(100 * share, plus=True)
    return told if error is None else f"{told} <span>± {100 * error:.2f}</span>"


def _percent(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:.2f}"


def _difference(share: float | None, paper: float | None, error: float | None) -> str:
    if share is None or paper is None:
        return "–"
    return _points(share - paper / 100, error)


def _binomial(share: float | None, count: int) -> float | None:
    return None if share is None else (share * (1 - share) / count) ** 0.5


def _making(record: Record, beside: str) -> str:
    asked: dict[str, Any] = record["asked"] or {"seed": None}
    seed = record["seed"] if record["seed"] is not None else asked["seed"]
    memory, threads = record["peak_memory"], record["threads"]
    return facts(
        "How this was made",
        [
            *environment_facts(environment_of(record["environment"])),
            ("Data", escape(record["data"]["provenance"])),
            ("Seed", "" if seed is None else f"{seed}"),
            ("Device", escape(record["device"] or "")),
            ("Threads", "" if threads is None else f"{threads}"),
            ("Time", duration(record["seconds"])),
            ("Memory", "not recorded" if memory is None else f"{to_size(memory)} at most"),
            ("Record", beside),
        ],
    )
