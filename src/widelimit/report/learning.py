"""The page of a learning curve: of the demo with its images, of other runs without."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from widelimit.data.dataset import Dataset
from widelimit.display import duration
from widelimit.experiments.design import shrink_images
from widelimit.experiments.record import (
    ComputedKernel,
    Curve,
    Data,
    HardImage,
    Point,
    Record,
    Vote,
)
from widelimit.experiments.sets import file_of, take
from widelimit.markup import to_data_uri
from widelimit.report.chart import draw_curves, draw_key, name_size
from widelimit.report.page import (
    FOOTER,
    compact,
    document,
    environment_facts,
    facts,
    notice,
    result_table,
    signed,
    tiles,
)
from widelimit.report.shapes import ENVIRONMENT, Each, Maybe, environment_of

__all__ = ["SHAPE", "record_of", "render", "sections_of", "title_of"]

SHAPE = {
    "data": {
        "name": str,
        "provenance": str,
        "class_names": [str],
        "split": str,
        "image_shape": (int, int, int),
        "shrink": int,
        "n_pool": int,
        "n_test": int,
        "n_available": int,
    },
    "environment": ENVIRONMENT,
    "seed": int,
    "draws": int,
    "notes": [str],
    "kernels": [
        {
            "method": str,
            "network": str,
            "dtype": str,
            "pairs": int,
            "element_layers": float,
            "seconds": float,
        }
    ],
    "curves": [
        {
            "key": str,
            "label": str,
            "detail": str,
            "points": [
                {
                    "size": int,
                    "accuracies": [float],
                    "mean": float,
                    "std": Maybe(float),
                    "settings": [Each(float)],
                }
            ],
        }
    ],
    "confusion": [[int]],
    "hardest": [
        {
            "image": int,
            "label": int,
            "predicted": int,
            "margin": float,
            "draw": int,
            "totals": [float],
            "votes": [{"image": int, "label": int, "weight": float}],
        }
    ],
    "seconds": Each(float),
    "errors": [str],
}
"""Of a record of ``widelimit.learning_curve/1``."""

_MAX_MATRIX = 30  # classes; with more, only the most frequent confusions are listed
_UPRIGHT = 3  # characters of a class name, from which on column headings stand upright


def record_of(content: dict[str, Any]) -> Record:
    """Return the record that JSON of the shape `SHAPE` holds.

    Raises
    ------
    ValueError
        If parts of it contradict one another.
    """
    data = content["data"]
    classes = len(data["class_names"])
    curves = tuple(
        Curve(**curve | {"points": tuple(Point(**point) for point in curve["points"])})
        for curve in content["curves"]
    )
    sizes = {tuple(point.size for point in curve.points) for curve in curves}
    if len(sizes) != 1 or not min(sizes) or min(min(sizes)) < 1:
        raise ValueError(f"curves must have the same sizes of training sets, got {sizes}")
    hardest = tuple(
        HardImage(
            **hard
            | {"totals": tuple(hard["totals"]), "votes": tuple(Vote(**v) for v in hard["votes"])}
        )
        for hard in content["hardest"]
    )
    if not all(0 <= k < classes for hard in hardest for k in (hard.label, hard.predicted)):
        raise ValueError(f"labels must be below {classes}")
    if any(len(row) != classes for row in [content["confusion"], *content["confusion"]]):
        raise ValueError(f"confusion must be {classes} x {classes}")
    parts: dict[str, Any] = {
        "data": Data(**data | {name: tuple(data[name]) for name in ("class_names", "image_shape")}),
        "environment": environment_of(content["environment"]),
        "curves": curves,
        "kernels": tuple(ComputedKernel(**kernel) for kernel in content["kernels"]),
        "hardest": hardest,
        "confusion": tuple(tuple(row) for row in content["confusion"]),
    }
    parts |= {name: tuple(content[name]) for name in ("notes", "errors")}
    return Record(**content | parts)


def title_of(record: Record) -> str:
    """Return what a record is of, in a line."""
    return f"Learning from few images: {record.data.name}"


def render(record: Record, dataset: Dataset, *, record_name: str = "") -> str:
    """Render the record of a demo as a page.

    Parameters
    ----------
    record : Record
        All numbers and words of the page.
    dataset : Dataset
        All its images.
    record_name : str
        Name of the file beside the page that holds the record, to be mentioned.

    Returns
    -------
    str
        HTML, as `document` makes it.
    """
    beside = f"<code>{escape(record_name)}</code>, beside this page" if record_name else ""
    sections = sections_of(record, dataset, kicker="widelimit demo", beside=beside)
    return document(title_of(record), [*sections, FOOTER])


def sections_of(
    record: Record, dataset: Dataset | None = None, *, kicker: str, beside: str
) -> list[str]:
    """Return the sections of a learning curve, the first of them its header.

    Parameters
    ----------
    record : Record
    dataset : Dataset or None
        Of the images. None: none are shown.
    kicker : str
        What stands over the title.
    beside : str
        HTML: where the record is.
    """
    return [
        _head(record, kicker),
        _curves(record),
        _table(record),
        _confusion(record),
        _hardest(record, dataset) if dataset is not None else _hardest_numbers(record),
        _methods(record),
        _making(record, beside),
    ]


def _head(record: Record, kicker: str) -> str:
    data = record.data
    h, w, c = data.image_shape
    colour = {1: "grey ", 3: "colour "}.get(c, "")
    images = (
        f"{escape(data.name)}: {data.n_available:,} {colour}images of {h} × {w} pixels"
        f"{f' and {c} channels' if not colour else ''} in {len(data.class_names)} classes"
        f"{', averaged from a larger size' if data.shrink > 1 else ''}."
    )
    first, last = record.sizes[0], record.sizes[-1]
    span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
    draws = "one draw" if record.draws == 1 else f"{record.draws} draws"
    return f"""<header>
<p class="kicker">{escape(kicker)}</p>
<h1>Learning from few images</h1>
<p class="lede">{images}</p>
<p>Five methods learn to tell the classes apart from {span} labelled images. Three are exact kernels
of infinitely wide networks; two are common baselines, tuned on their training images. Accuracy is
measured on {data.n_test:,} images that none of them has seen, over {draws} of the training
images.</p>
{notice([*record.notes, *record.errors])}
{_tiles(record)}
</header>"""


def _tiles(record: Record) -> str:
    gap, svm = record.curve("gap"), record.curve("svm")
    n = len(record.sizes)
    entries = [
        (
            f"{gap.points[i].mean * 100:.1f}<i>%</i>",
            f"correct with {name_size(record.sizes[i])} training images",
            f"CNTK-GAP. Tuned RBF‑SVM: {svm.points[i].mean * 100:.1f} %",
        )
        for i in sorted({min(1, n - 1), n // 2 if n > 2 else n - 1, n - 1})
    ]
    kernel = next(entry for entry in record.kernels if entry.method == "gap")
    told = f"exact kernel values in {duration(kernel.seconds)}"
    return tiles([*entries, (compact(kernel.pairs), told, f"CNTK-GAP, {kernel.dtype}")])


def _curves(record: Record) -> str:
    keys = "".join(
        f"<li>{draw_key(i)} {escape(curve.label)}</li>" for i, curve in enumerate(record.curves)
    )
    mean = ", mean over draws" if record.draws > 1 else ""
    bars = (
        " Bars are one standard deviation between draws."
        if any(point.std is not None for curve in record.curves for point in curve.points)
        else ""
    )
    return f"""<section>
<h2>Learning curve</h2>
<figure>
<ul class="legend">{keys}</ul>
{draw_curves(record, width=800, height=440, name="curve wide")}
{draw_curves(record, width=400, height=400, name="curve narrow")}
<figcaption>Test accuracy against the number of training images{mean}.{bars} The
horizontal axis is logarithmic; the vertical one is logarithmic in the error, so that 90 % and 99 %
are as far apart as 99 % and 99.9 %.</figcaption>
</figure>
</section>"""


def _table(record: Record) -> str:
    heads = [f"{draw_key(i)}{escape(curve.label)}" for i, curve in enumerate(record.curves)]
    spread = ", mean ± standard deviation over draws" if record.draws > 1 else ""
    rows: list[list[str]] = []
    best: list[set[int]] = []
    for size, points in record.rows():
        means = [round(point.mean, 3) for point in points]
        best.append({i + 1 for i, mean in enumerate(means) if mean == max(means)})
        rows.append([name_size(size), *map(_percent, points)])
    return f"""<section>
<h2>Accuracy</h2>
{result_table(["Training images", *heads], rows, best)}
<p class="caption">Per cent of the test images{spread}; the best of each row is bold.</p>
</section>"""


def _percent(point: Point) -> str:
    mean = f"{point.mean * 100:.1f}"
    return mean if point.std is None else f"{mean} <span>± {point.std * 100:.1f}</span>"


def _confusion(record: Record) -> str:
    names, matrix = record.data.class_names, np.array(record.confusion)
    total, wrong = int(matrix.sum()), int(matrix.sum() - np.trace(matrix))
    draws = "the draw" if record.draws == 1 else f"all {record.draws} draws"
    intro = (
        f"With {name_size(record.sizes[-1])} training images, {wrong:,} of {total:,} predictions "
        f"over {draws} are wrong."
    )
    pairs = _most_confused(matrix)
    if pairs:
        i, j, count = pairs[0]
        intro += (
            f" Most often, {count} time{'s' * (count > 1)}, {names[i]} is taken for {names[j]}."
        )
    body = _matrix(names, matrix) if len(names) <= _MAX_MATRIX else _list_pairs(names, pairs)
    return f"""<section>
<h2>What CNTK-GAP confuses</h2>
<p>{escape(intro)}</p>
{body}
</section>"""


def _most_confused(
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> list[tuple[int, int, int]]:
    off = matrix - np.diag(np.diag(matrix))
    places = [(int(i), int(j)) for i, j in np.argwhere(off > 0)]
    return sorted(((i, j, int(off[i, j])) for i, j in places), key=lambda entry: -entry[2])


def _matrix(names: Sequence[str], matrix: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    rows: list[str] = []
    sums = np.maximum(matrix.sum(axis=1), 1)
    largest = max(1, int((matrix - np.diag(np.diag(matrix))).max()))
    for i, name in enumerate(names):
        cells: list[str] = []
        for j, count in enumerate(matrix[i].tolist()):
            if i == j:
                cells.append(f'<td class="own" style="--v:{count / sums[i]:.3f}">{count:,}</td>')
            elif count == 0:
                cells.append('<td class="none">·</td>')
            else:
                cells.append(f'<td style="--v:{0.15 + 0.85 * count / largest:.3f}">{count:,}</td>')
        rows.append(f'<tr><th scope="row">{_short(name)}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col">{_short(name)}</th>' for name in names)
    upright = " upright" if max(map(len, names)) > _UPRIGHT else ""
    return f"""<div class="scroll"><table class="confusion{upright}">
<thead><tr><td class="none"></td><th class="axis-name" colspan="{len(names)}">predicted</th></tr>
<tr><th class="axis-name" scope="col">true</th>{heads}</tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>"""


def _short(name: str) -> str:
    """A name that the style may cut off, and that a pointer shows in full."""
    return f'<span title="{escape(name)}">{escape(name)}</span>'


def _list_pairs(names: Sequence[str], pairs: list[tuple[int, int, int]]) -> str:
    rows = [[escape(names[i]), escape(names[j]), f"{count:,}"] for i, j, count in pairs[:20]]
    return result_table(["True", "Predicted", "Times"], rows, words=(1,))


def _hardest(record: Record, dataset: Dataset) -> str:
    shown = {hard.image for hard in record.hardest}
    shown |= {vote.image for hard in record.hardest for vote in hard.votes}
    numbers = np.array(sorted(shown), dtype=np.int64)
    images = shrink_images(take(dataset, numbers), record.data.shrink)
    uris = {int(n): to_data_uri(x) for n, x in zip(numbers, images, strict=True)}
    files = {int(n): file_of(dataset, int(n)) for n in numbers}
    cards = "".join(_card(hard, record.data.class_names, uris, files) for hard in record.hardest)
    return f"""<section>
<h2>The hardest test images</h2>
<p>A kernel’s prediction is a vote: every training image adds its weight to its own class, and the
class with the largest sum wins. These are the test images with the smallest margins, with the sums
of the leading classes (its own bold, in green), and the training images that weigh most.</p>
<ul class="cards">{cards}</ul>
<p class="caption">CNTK-GAP, {name_size(record.sizes[-1])} training images. The weights of a test
image x are (K + λI)⁻¹ k(x), where K is the kernel of the training images, k(x) their kernel with
x, and λ the ridge; they may be negative (shown pale).</p>
</section>"""


def _hardest_numbers(record: Record) -> str:
    names = record.data.class_names
    rows = [
        [
            f"{hard.image:,}",
            escape(names[hard.label]),
            escape(names[hard.predicted]),
            signed(hard.margin),
        ]
        for hard in record.hardest
    ]
    if not rows:
        return ""
    return f"""<section>
<h2>The hardest test images</h2>
{result_table(["Image", "True", "Predicted", "Margin"], rows, words=(1, 2))}
<p class="caption">CNTK-GAP, {name_size(record.sizes[-1])} training images: the test images with the
smallest margins, the output for the own class less the largest other one. Images are numbered from
0, those of the training set first. The record has no pictures.</p>
</section>"""


def _card(
    hard: HardImage, names: Sequence[str], uris: dict[int, str], files: dict[int, str | None]
) -> str:
    right = hard.predicted == hard.label
    heading = f"{names[hard.label]}, but taken for {names[hard.predicted]}"
    if right:
        heading = f"{names[hard.label]}, just recognised"
    own = files[hard.image]
    told = "" if own is None else f"{escape(own)}<br>"
    leading = sorted(range(len(names)), key=lambda k: -hard.totals[k])[:3]
    if hard.label not in leading:
        leading[-1] = hard.label
    largest = max(max(hard.totals), 1e-300)
    totals = "".join(
        f"<li{' class=own' if k == hard.label else ''}><span>{escape(names[k])}</span>"
        f'<span class="fill" style="--v:{max(0.0, hard.totals[k] / largest):.3f}"></span>'
        f"<span>{signed(hard.totals[k])}</span></li>"
        for k in leading
    )
    votes = "".join(
        f"<li{' class=against' if vote.weight < 0 else ''}>"
        f'<img src="{uris[vote.image]}" alt="training image of {escape(names[vote.label])}"'
        f"{_hint(files[vote.image])}>"
        f"<b>{_short(names[vote.label])}</b>{signed(vote.weight)}</li>"
        for vote in hard.votes
    )
    return f"""<li class="card"><header>
<img src="{uris[hard.image]}" alt="test image of {escape(names[hard.label])}"{_hint(own)}>
<div><h3>{escape(heading)}</h3><p>{told}margin {signed(hard.margin)}</p>
<ul class="totals">{totals}</ul></div>
</header><ul class="votes">{votes}</ul></li>
"""


def _hint(file: str | None) -> str:
    """Return the attribute that shows the name of a file over its image."""
    return "" if file is None else f' title="{escape(file)}"'


def _methods(record: Record) -> str:
    entries = "".join(
        f"<dt>{draw_key(i)} {escape(curve.label)}</dt><dd>{escape(curve.detail)}</dd>"
        for i, curve in enumerate(record.curves)
    )
    return f"""<section>
<h2>What was compared</h2>
<dl class="methods">{entries}</dl>
<p class="caption">Pixels are in [0, 1] and not centred. Training sets have equally many images of
every class, and each is part of the next larger one. Nothing was chosen by accuracy on test images:
kernel regression has no parameter but a ridge of 0 (a tiny one only where the system is
ill-conditioned, and then the notice at the top says so).</p>
</section>"""


def _making(record: Record, beside: str) -> str:
    stages = {curve.label for curve in record.curves}
    times = [(k.lower(), v) for k, v in record.seconds.items() if k not in stages]
    rows: list[tuple[str, str]] = [
        *environment_facts(record.environment),
        ("Data", escape(record.data.provenance)),
        ("Images", escape(_describe_images(record))),
        ("Draws", f"{record.draws}, seed {record.seed}"),
        *(
            (escape(record.curve(entry.method).label), escape(_describe_kernel(entry)))
            for entry in record.kernels
        ),
        ("Time", escape(", ".join(f"{k} {duration(v)}" for k, v in times))),
        ("Record", beside),
    ]
    return facts("How this was made", rows)


def _describe_images(record: Record) -> str:
    data = record.data
    if data.split == "given":
        return f"training sets drawn from {data.n_pool:,}, tested on {data.n_test:,} others"
    return (
        f"{data.n_pool:,}; in each draw, the {data.n_test:,} that are in none of its training sets "
        "are the test images"
    )


def _describe_kernel(kernel: ComputedKernel) -> str:
    cost = f", {kernel.element_layers:.2e} element-layers" if kernel.element_layers else ""
    return f"{kernel.pairs:,} pairs{cost}, {kernel.dtype}, {duration(kernel.seconds)}"
