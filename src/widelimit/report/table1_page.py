"""The page of a run of table 1: ours beside the paper's, and what the kernels look like."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, TypeAlias

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.costs import shortened, to_size
from widelimit.display import duration
from widelimit.experiments.portrait import CAPTIONS, SIDE
from widelimit.markup import to_data_uri
from widelimit.report.page import (
    compact,
    environment_facts,
    facts,
    kernel_name,
    notice,
    result_table,
    signed,
    tiles,
)
from widelimit.report.plots import Axis, Line, Mark, answers, draw_lines, draw_matrix
from widelimit.report.shapes import ENVIRONMENT, Each, Maybe, environment_of

__all__ = ["FIRST_SHAPE", "SHAPE", "sections_of", "title_of", "updated"]

Record: TypeAlias = dict[str, Any]

_DRAW = {
    "accuracy": Maybe(float),
    "leave_one_out": Maybe(float),
    "status": str,
    "message": str,
    "method": str,
}
_KERNEL = {
    "cosines": str,
    "low": float,
    "high": float,
    "alignment": Maybe(float),
    "centred_alignment": Maybe(float),
    "spectrum": {"images": int, "trace": float, "ranks": [int], "values": [float]},
}
_ROW = {
    "depth": int,
    "accuracy": Maybe(float),
    "standard_error": Maybe(float),
    "paper_percent": Maybe(float),
    "leave_one_out": Maybe(float),
    "residual_norm": Maybe(float),
    "solve_seconds": float,
}
_EXAMPLE = {"image": int, "label": int, "predicted": int, "outputs": [(int, float)]}
_CARD = {"name": str, "memory": int}
SHAPE = {
    "environment": ENVIRONMENT,
    "data": {
        "name": str,
        "provenance": str,
        "image_shape": (int, int, int),
        "n_classes": int,
        "class_names": Maybe([str]),
    },
    "asked": {"dtype": str},
    "notes": [str],
    "columns": [
        {
            "column": str,
            "readout": str,
            "n_train": int,
            "n_test": int,
            "n_classes": Maybe(int),
            "balanced": bool,
            "seed": int,
            "draws": int,
            "preprocessing": str,
            "flips": str,
            "pairs": int,
            "pairs_computed": int,
            "element_layers": int,
            "backend": str,
            "seconds": Each(float),
            "rows": [_ROW | {"draws": [_DRAW], "kernel": Maybe(_KERNEL)}],
            "blocks": Maybe([(int, int, int)]),
            "examples": Maybe({"depth": int} | {kind: [_EXAMPLE] for kind in CAPTIONS}),
        }
    ],
    "test_images": Maybe(Each({"file": Maybe(str), "png": str})),
    "errors": [str],
    "seconds": float,
    "peak_memory": Maybe(int),
    "card": Maybe(_CARD),
}
"""Of a record of ``widelimit.table1/2``."""
FIRST_SHAPE = {
    "environment": ENVIRONMENT,
    "data": {"file": str, "note": str},
    "readout": str,
    "n_train": int,
    "n_test": int,
    "pairs": int,
    "backend": str,
    "method": str,
    "seconds": Each(float),
    "rows": [_ROW | {"status": str}],
    "card": Maybe(_CARD),
}
"""Of a record of ``widelimit.table1/1``."""

_MOST_THUMBNAIL = 2**16  # characters
_LACKS = (
    "The record has no kernel matrix, spectrum, alignment or examples: it was written by an "
    "earlier version; widelimit reproduce table1 writes them."
)


def updated(first: Record) -> Record:
    """Return a record of the first format as one of the second, as far as it goes."""
    column = {name: first[name] for name in ("readout", "n_train", "n_test", "pairs", "backend")}
    column |= dict.fromkeys(("n_classes", "blocks", "examples", "element_layers"))
    column |= {"column": "", "balanced": False, "seed": 0, "draws": 1, "flips": "none"}
    column |= {"preprocessing": "standardise", "pairs_computed": first["pairs"]}
    column["seconds"] = {
        name.removeprefix("kernel_"): value
        for name, value in first["seconds"].items()
        if name.startswith("kernel_")
    }
    column["rows"] = [row | {"draws": [], "kernel": None} for row in first["rows"]]
    note = first["data"]["note"]
    return {
        "environment": first["environment"],
        "data": {
            "name": first["data"]["file"],
            "provenance": first["data"]["file"] + (f", {note}" if note else ""),
            "image_shape": None,
            "n_classes": 10,
            "class_names": None,
        },
        "asked": {"dtype": ""},
        "notes": [],
        "columns": [column],
        "test_images": None,
        "errors": [
            f"depth {row['depth']}: {row['status']}"
            for row in first["rows"]
            if row["status"] != "SOLVED"
        ],
        "seconds": first["seconds"].get("total", 0.0),
        "peak_memory": None,
        "card": first["card"],
    }


def title_of(record: Record) -> str:
    """Return what a record is of, in a line."""
    kinds = dict.fromkeys(kernel_name(column["readout"]) for column in record["columns"])
    return f"Table 1: {' and '.join(kinds)} on {record['data']['name']}"


def sections_of(record: Record, *, kicker: str, beside: str) -> list[str]:
    """Return the sections of a run of table 1, the first of them its header.

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
    return [
        _head(record, kicker),
        *(_column(record, column) for column in record["columns"]),
        _making(record, beside),
    ]


def _head(record: Record, kicker: str) -> str:
    data = record["data"]
    shape = data["image_shape"]
    size = f" of {shape[0]} × {shape[1]} × {shape[2]}" if shape else ""
    best: list[tuple[str, str, str]] = []
    for column in record["columns"]:
        solved = [row for row in column["rows"] if row["accuracy"] is not None]
        if solved:
            # Test images have a say only where there is nothing else, and then it is told.
            judged = [row for row in solved if row["leave_one_out"] is not None]
            key, by = "leave_one_out", "leaving one out"
            if not judged:
                key, by = "accuracy", "on these test images"
            top = max(judged or solved, key=lambda row: row[key])
            chosen = f", the best of {len(judged or solved)} {by}" if len(solved) > 1 else ""
            paper = top["paper_percent"]
            said = "" if paper is None else f". The paper: {paper:.2f} %"
            small = f"{column['n_train']:,} training images{said}"
            text = f"{kernel_name(column['readout'])}, depth {top['depth']}{chosen}"
            best.append((f"{100 * top['accuracy']:.2f}<i>%</i>", text, small))
    pairs = sum(column["pairs_computed"] for column in record["columns"])
    if pairs:
        seconds = sum(sum(column["seconds"].values()) for column in record["columns"])
        best.append((compact(pairs), f"exact kernel values in {duration(seconds)}", "this run"))
    lacks = [] if any(c["blocks"] for c in record["columns"]) else [_LACKS]
    return f"""<header>
<p class="kicker">{escape(kicker)}</p>
<h1>{escape(title_of(record))}</h1>
<p class="lede">Kernel regression with exact kernels of infinitely wide convolutional networks,
beside the numbers of the paper: {escape(data["name"])}, images{size} in {data["n_classes"]}
classes.</p>
{notice([*record["notes"], *record["errors"], *lacks])}
{tiles(best)}
</header>"""


# ---------------------------------------------------------------- a column


def _column(record: Record, column: Record) -> str:
    title = f"{kernel_name(column['readout'])}, {column['n_train']:,} images"
    name = f" ({column['column']})" if column["column"] else ""
    draws = f" Means over {column['draws']} draws of them." if column["draws"] > 1 else ""
    how = [f"pixels: {column['preprocessing']}", f"flips: {column['flips']}"]
    if column["balanced"]:
        how.append("as many of each class")
    if column["n_classes"]:
        how.append(f"the first {column['n_classes']} classes")
    return f"""<section>
<h2>{escape(title + name)}</h2>
<p>{column["n_train"]:,} training and {column["n_test"]:,} test images, {column["pairs"]:,} pairs;
{escape(", ".join(how))}.{draws}</p>
{_accuracies(column)}
{_draws(column)}
{_matrices(record, column)}
{_spectra(column)}
{_alignment(column)}
{_examples(record, column)}
</section>"""


def _accuracies(column: Record) -> str:
    rows = column["rows"]
    with_paper = any(row["paper_percent"] is not None for row in rows)
    left_out = any(row["leave_one_out"] is not None for row in rows)
    heads = ["Depth", "Test accuracy, %", *["The paper, %", "Difference"] * with_paper]
    heads += [] if with_paper else ["Standard error"]
    heads += ["Leave-one-out, %"] * left_out + ["Residual", "Solve"]
    table: list[list[str]] = []
    for row in rows:
        paper, error = row["paper_percent"], row["standard_error"]
        accuracy = None if row["accuracy"] is None else 100 * row["accuracy"]
        cells = [f"{row['depth']}", "not solved" if accuracy is None else f"{accuracy:.2f}"]
        if with_paper:
            cells += ["–" if paper is None else f"{paper:.2f}", _difference(accuracy, paper, error)]
        else:
            cells.append("–" if error is None else f"± {100 * error:.2f}")
        if left_out:
            cells.append(_percent(row["leave_one_out"]))
        residual = row["residual_norm"]
        cells.append("–" if residual is None else f"{residual:.0e}".replace("e-", "e−"))
        table.append([*cells, duration(row["solve_seconds"])])
    over = (
        f"standard error over the {column['draws']} draws"
        if column["draws"] > 1
        else f"binomial standard error of {column['n_test']:,} test images"
    )
    what = "Difference, in points, to the paper" if with_paper else "Accuracy"
    caption = f"{what}, with the {over}."
    if with_paper:
        caption += " The paper’s own numbers, of all 10,000 test images, have an error, too."
    else:
        caption += " The paper has no figures for these images."
    if left_out:
        caption += " Leave-one-out: each training image predicted from all others."
    return f"""{_curve(column)}
{result_table(heads, table)}
<p class="caption">{caption}</p>"""


def _difference(accuracy: float | None, paper: float | None, error: float | None) -> str:
    if accuracy is None or paper is None:
        return "–"
    told = signed(accuracy - paper, plus=True)
    return told if error is None else f"{told} <span>± {100 * error:.2f}</span>"


def _curve(column: Record) -> str:
    rows = column["rows"]

    def line(label: str, key: str, scale: float) -> Line:
        marks: list[Mark] = []
        for place, row in enumerate(rows):
            value = row[key]
            if value is None:
                continue
            y, error = scale * value, row["standard_error"] if key == "accuracy" else None
            tip = f"{label}, depth {row['depth']}: {y:.2f} %"
            ends = (None, None)
            if error is not None:
                tip += f" ± {100 * error:.2f}"
                ends = (y - 100 * error, y + 100 * error)
            marks.append(Mark(place, y, tip, *ends))
        return Line(label, marks)

    lines = [
        line("Test images", "accuracy", 100),
        line("Leave-one-out", "leave_one_out", 100),
        line("The paper", "paper_percent", 1),
    ]
    lines = [one for one in lines if one.marks]
    if not lines or len(rows) < 2:
        return ""
    x = Axis("depth", "places", [str(row["depth"]) for row in rows])
    drawn = draw_lines(
        lines, x, Axis("correct", unit=" %"), "Accuracy against depth; the table has the numbers."
    )
    return (
        f"<figure>\n{drawn}\n<figcaption>Accuracy against the depth of the network. Bars are one "
        "standard error.</figcaption>\n</figure>"
    )


def _draws(column: Record) -> str:
    if column["draws"] < 2:
        return ""
    if any(len(row["draws"]) != column["draws"] for row in column["rows"]):
        raise ValueError(f"every row must have {column['draws']} draws")
    heads = ["Depth", *(f"Draw {i + 1}" for i in range(column["draws"]))]
    rows = [
        [f"{row['depth']}", *(_percent(draw["accuracy"]) for draw in row["draws"])]
        for row in column["rows"]
    ]
    return f"""<details><summary>Test accuracy of each draw, seed {column["seed"]}</summary>
{result_table(heads, rows)}
</details>"""


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


# ---------------------------------------------------------------- kernels


def _with_kernels(column: Record) -> list[Record]:
    return [row for row in column["rows"] if row["kernel"] is not None]


def _matrices(record: Record, column: Record) -> str:
    rows, blocks = _with_kernels(column), column["blocks"]
    if not rows or not blocks:
        return ""
    items: list[str] = []
    mixed = any(block[0] != block[1] for block in blocks)  # more classes than blocks
    names: list[str] = []
    for row in rows:
        kernel = row["kernel"]
        levels, means, sides, classes = _unpacked(kernel, blocks)
        names = [] if mixed else [_class_name(record, k) for k in classes]
        label = f"Kernel of depth {row['depth']}, images sorted by class"
        items.append(
            f"<li><h4>Depth {row['depth']}</h4>{draw_matrix(levels, means, sides, names, label)}"
            f'<p class="ramp"><span>{kernel["low"]:.3g}</span><i></i>'
            f"<span>{kernel['high']:.3g}</span></p></li>"
        )
    first = " of the first draw" if column["draws"] > 1 else ""
    cut = "in blocks of images that are sorted by class" if mixed else "in blocks of one class"
    pointer = " The pointer tells the mean of two classes." * answers(names)
    return f"""<h3 class="part">The kernel matrix, sorted by class</h3>
<ul class="matrices">{"".join(items)}</ul>
<p class="caption">Means of k(x, x′) / √(k(x, x) k(x′, x′)) over pairs of different training
images{first}, {cut}. Columns have the order of the rows; each picture has its own
scale.{pointer}</p>"""


def _unpacked(
    kernel: Record, blocks: Sequence[Sequence[int]]
) -> tuple[FloatArray, FloatArray, list[int], list[int]]:
    """Return levels of blocks, mean cosines of classes, blocks of each class, and the classes."""
    count = len(blocks)
    content = base64.b64decode(kernel["cosines"], validate=True)
    if count > SIDE or len(content) != count * (count + 1) // 2:
        raise ValueError(
            f"cosines of {count} blocks must have {count * (count + 1) // 2} bytes and at most "
            f"{SIDE} blocks, got {len(content)} bytes"
        )
    if any(block[2] < 1 or block[0] < 0 or block[0] > block[1] for block in blocks):
        raise ValueError("blocks must have classes in ascending order, and images")
    levels = np.zeros((count, count))
    levels[np.triu_indices(count)] = np.frombuffer(content, np.uint8) / 255
    levels = np.maximum(levels, levels.T)
    cosines = kernel["low"] + (kernel["high"] - kernel["low"]) * levels
    images = np.array([float(block[2]) for block in blocks])
    pairs = np.outer(images, images) - np.diag(images)
    starts = [i for i in range(count) if i == 0 or blocks[i][0] != blocks[i - 1][0]]

    def summed(values: FloatArray) -> FloatArray:
        return np.add.reduceat(np.add.reduceat(values, starts, axis=0), starts, axis=1)

    of_classes = summed(pairs)
    means = np.full(of_classes.shape, np.nan)
    np.divide(summed(cosines * pairs), of_classes, out=means, where=of_classes > 0)
    sides = np.diff([*starts, count]).tolist()
    return levels, means, sides, [int(blocks[i][0]) for i in starts]


def _class_name(record: Record, k: int) -> str:
    names = record["data"]["class_names"]
    return names[k] if names and 0 <= k < len(names) else f"class {k}"


def _spectra(column: Record) -> str:
    rows = _with_kernels(column)
    lines: list[Line] = []
    for row in rows:
        spectrum = row["kernel"]["spectrum"]
        if len(spectrum["ranks"]) != len(spectrum["values"]):
            raise ValueError("a spectrum must have as many ranks as values")
        marks = [
            Mark(rank, value, f"depth {row['depth']}, eigenvalue {rank:,}: {value:.3g}")
            for rank, value in zip(spectrum["ranks"], spectrum["values"], strict=True)
            if value > 0 and rank > 0
        ]
        if marks:
            lines.append(Line(f"depth {row['depth']}", marks, small=True))
    if not lines:
        return ""
    images = rows[0]["kernel"]["spectrum"]["images"]
    whole = images == column["n_train"] * (2 if column["flips"] == "double" else 1)
    of = f"all {images:,} training images" if whole else f"{images:,} training images"
    drawn = draw_lines(
        lines,
        Axis("rank", "log"),
        Axis("eigenvalue", "log"),
        "Eigenvalues of the kernel matrix, the largest first.",
    )
    return f"""<h3 class="part">Spectrum</h3>
<figure>
{drawn}
<figcaption>Eigenvalues of K / n, the largest first, for {of}; both axes are
logarithmic.</figcaption>
</figure>"""


def _alignment(column: Record) -> str:
    rows = [r for r in _with_kernels(column) if r["kernel"]["centred_alignment"] is not None]
    if not rows:
        return ""
    table = [
        [
            f"{row['depth']}",
            f"{row['kernel']['alignment'] or 0.0:.4f}",
            f"{row['kernel']['centred_alignment']:.4f}",
        ]
        for row in rows
    ]
    return f"""<h3 class="part">Kernel-target alignment</h3>
{result_table(["Depth", "Alignment", "Centred"], table)}
<p class="caption">⟨K, Y Yᵀ⟩ / (‖K‖ ‖Y Yᵀ‖), where Y has a column for each class: 1 for a
kernel that knows the classes. Centred: of both matrices with the mean of the features taken off,
which tells kernels apart whose values are all alike.</p>"""


# ---------------------------------------------------------------- examples


def _examples(record: Record, column: Record) -> str:
    examples = column["examples"]
    if examples is None:
        return ""
    parts: list[str] = []
    for kind, caption in CAPTIONS.items():
        cards = "".join(_example(record, one) for one in examples[kind])
        if cards:
            parts.append(f'<h4>{caption}</h4>\n<ul class="cards">{cards}</ul>')
    if not parts:
        return ""
    first = ", first draw" if column["draws"] > 1 else ""
    return f"""<h3 class="part">Examples of predictions</h3>
<p>Test images at depth {examples["depth"]}{first}, with their largest outputs; the class of the
image is bold and green.</p>
{"".join(parts)}
<p class="caption">Outputs are regressions on 0.9 for the class and −0.1 for the others, if there
are ten. Surest: right by the largest margin. Least sure: the smallest margin between the first
class and the second. Most wrong: the own class furthest behind.</p>"""


def _example(record: Record, one: Record) -> str:
    label, predicted = one["label"], one["predicted"]
    images: dict[str, dict[str, Any]] = record["test_images"] or {}
    image = images.get(str(one["image"]))
    file = None if image is None else image["file"]
    told = escape(f"test image {one['image']:,}" if file is None else file)
    name = _class_name(record, label)
    heading = name if label == predicted else f"{name}, taken for {_class_name(record, predicted)}"
    largest = max((value for _, value in one["outputs"]), default=0.0)
    largest = max(largest, 1e-300)
    totals = "".join(
        f"<li{' class=own' if k == label else ''}><span>{escape(_class_name(record, k))}</span>"
        f'<span class="fill" style="--v:{min(1.0, max(0.0, value / largest)):.3f}"></span>'
        f"<span>{signed(value)}</span></li>"
        for k, value in one["outputs"]
    )
    picture = ""
    if image is not None:
        uri = _thumbnail(image["png"])
        picture = f'<img src="{uri}" alt="{escape(f"test image of {name}")}" title="{told}">'
    return f"""<li class="card"><header>{picture or "<span></span>"}
<div><h3>{escape(heading)}</h3><p>{told}</p><ul class="totals">{totals}</ul></div></header></li>
"""


def _thumbnail(text: str) -> str:
    """Return a picture of the record, drawn again: no byte of the file gets into the page."""
    from PIL import Image

    if len(text) > _MOST_THUMBNAIL:
        raise ValueError(f"a thumbnail must have at most {_MOST_THUMBNAIL:,} characters")
    content = base64.b64decode(text, validate=True)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if max(picture.size) > SIDE:
                raise ValueError(
                    f"a thumbnail must be at most {SIDE} pixels wide, got {picture.size}"
                )
            pixels = np.asarray(picture.convert("RGB"), np.float64) / 255
    except OSError as error:  # none of the system: of bytes in memory
        raise ValueError("a thumbnail must be a PNG") from error
    return to_data_uri(pixels)


# ---------------------------------------------------------------- the record


def _making(record: Record, beside: str) -> str:
    kernels = [
        (
            escape(column["column"] or "Kernels"),
            escape(", ".join(_described(column, record["asked"]["dtype"]))),
        )
        for column in record["columns"]
    ]
    seeds = [
        f"{column['column']}: {column['draws']}, seed {column['seed']}"
        for column in record["columns"]
        if column["balanced"]
    ]
    card = record["card"]
    rows = [
        *environment_facts(environment_of(record["environment"])),
        ("Card", "" if card is None else escape(f"{card['name']}, {to_size(card['memory'])}")),
        ("Data", escape(record["data"]["provenance"])),
        ("Draws", escape("; ".join(seeds)) or "none: the first images, in their order"),
        *kernels,
        ("Time", duration(record["seconds"])),
        (
            "Memory",
            "not recorded"
            if record["peak_memory"] is None
            else f"{to_size(record['peak_memory'])} at most",
        ),
        ("Record", beside),
    ]
    return facts("How this was made", rows)


def _described(column: Record, dtype: str) -> list[str]:
    told = [f"{column['pairs']:,} pairs of images"]
    if column["pairs_computed"] != column["pairs"]:
        now = f"{column['pairs_computed']:,}" if column["pairs_computed"] else "none"
        told.append(f"{now} of them in this run, the others before")
    if column["element_layers"]:
        told.append(f"{shortened(column['element_layers'])} element-layers each")
    told += [dtype] * bool(dtype) + [f"backend {column['backend']}"]
    return told + [f"{name} {duration(value)}" for name, value in column["seconds"].items()]
