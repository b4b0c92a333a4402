"""The report: one HTML page that needs nothing but itself.

Everything that comes from a user or a file goes through `html.escape`; the page forbids itself, by
its content security policy, to load anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np

from widelimit.data.dataset import Dataset
from widelimit.display import duration
from widelimit.experiments.design import shrink_images
from widelimit.experiments.record import ComputedKernel, HardImage, Point, Record
from widelimit.experiments.sets import file_of, take
from widelimit.markup import to_data_uri
from widelimit.report.chart import draw_curves, draw_key, name_size

__all__ = ["render"]

_MAX_MATRIX = 30  # classes; with more, only the most frequent confusions are listed
_UPRIGHT = 3  # characters of a class name, from which on column headings stand upright
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(record: Record, dataset: Dataset, *, record_name: str = "") -> str:
    """Render a record of a learning curve as a page.

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
        HTML: inline style, inline SVG and PNG, no script, no address of anything outside.
    """
    style = resources.files("widelimit.report").joinpath("style.css").read_text("utf-8")
    title = f"Learning from few images: {record.data.name}"
    sections = [
        _head(record),
        _curves(record),
        _table(record),
        _confusion(record),
        _hardest(record, dataset),
        _methods(record),
        _making(record, record_name),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            *sections,
            "</body>",
            "</html>",
            "",
        ]
    )


def _head(record: Record) -> str:
    data = record.data
    h, w, c = data.image_shape
    colour = {1: "grey ", 3: "colour "}.get(c, "")
    facts = (
        f"{escape(data.name)}: {data.n_available:,} {colour}images of {h} × {w} pixels"
        f"{f' and {c} channels' if not colour else ''} in {len(data.class_names)} classes"
        f"{', averaged from a larger size' if data.shrink > 1 else ''}."
    )
    first, last = record.sizes[0], record.sizes[-1]
    span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
    draws = "one draw" if record.draws == 1 else f"{record.draws} draws"
    notice = ""
    if record.notes or record.errors:
        lines = [f"<p>{escape(text)}</p>" for text in (*record.notes, *record.errors)]
        notice = f'<aside class="notice">{"".join(lines)}</aside>'
    return f"""<header>
<p class="kicker">widelimit demo</p>
<h1>Learning from few images</h1>
<p class="lede">{facts}</p>
<p>Five methods learn to tell the classes apart from {span} labelled images. Three are exact kernels
of infinitely wide networks; two are common baselines, tuned on their training images. Accuracy is
measured on {data.n_test:,} images that none of them has seen, over {draws} of the training
images.</p>
{notice}
{_tiles(record)}
</header>"""


def _tiles(record: Record) -> str:
    gap, svm = record.curve("gap"), record.curve("svm")
    n = len(record.sizes)
    tiles = [
        _tile(
            f"{gap.points[i].mean * 100:.1f}<i>%</i>",
            f"correct with {name_size(record.sizes[i])} training images",
            f"CNTK-GAP. Tuned RBF‑SVM: {svm.points[i].mean * 100:.1f} %",
        )
        for i in sorted({min(1, n - 1), n // 2 if n > 2 else n - 1, n - 1})
    ]
    kernel = next(entry for entry in record.kernels if entry.method == "gap")
    tiles.append(
        _tile(
            f"{_compact(kernel.pairs)}",
            f"exact kernel values in {duration(kernel.seconds)}",
            f"CNTK-GAP, {kernel.dtype}",
        )
    )
    return f'<ul class="tiles">{"".join(tiles)}</ul>'


def _tile(number: str, text: str, small: str) -> str:
    words = f"<span>{escape(text)}</span><small>{escape(small)}</small>"
    return f'<li class="tile"><b>{number}</b>{words}</li>'


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
    heads = "".join(
        f'<th scope="col">{draw_key(i)}{escape(curve.label)}</th>'
        for i, curve in enumerate(record.curves)
    )
    spread = ", mean ± standard deviation over draws" if record.draws > 1 else ""
    rows: list[str] = []
    for size, points in record.rows():
        best = max(round(point.mean, 3) for point in points)
        cells = "".join(
            f'<td class="best">{_percent(p)}</td>'
            if round(p.mean, 3) == best
            else f"<td>{_percent(p)}</td>"
            for p in points
        )
        rows.append(f'<tr><th scope="row">{name_size(size)}</th>{cells}</tr>')
    return f"""<section>
<h2>Accuracy</h2>
<div class="scroll"><table class="results">
<thead><tr><th scope="col">Training images</th>{heads}</tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>
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
    rows = "".join(
        f"<tr><td>{escape(names[i])}</td><td>{escape(names[j])}</td><td>{count:,}</td></tr>"
        for i, j, count in pairs[:20]
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("True", "Predicted", "Times"))
    return f"""<div class="scroll"><table class="results">
<thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody>
</table></div>"""


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
of the leading classes (its own in green), and the training images that weigh most.</p>
<ul class="cards">{cards}</ul>
<p class="caption">CNTK-GAP, {name_size(record.sizes[-1])} training images. The weights of a test
image x are (K + λI)⁻¹ k(x), where K is the kernel of the training images, k(x) their kernel with
x, and λ the ridge; they may be negative (shown pale).</p>
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
        f"<span>{_signed(hard.totals[k])}</span></li>"
        for k in leading
    )
    votes = "".join(
        f"<li{' class=against' if vote.weight < 0 else ''}>"
        f'<img src="{uris[vote.image]}" alt="training image of {escape(names[vote.label])}"'
        f"{_hint(files[vote.image])}>"
        f"<b>{_short(names[vote.label])}</b>{_signed(vote.weight)}</li>"
        for vote in hard.votes
    )
    return f"""<li class="card"><header>
<img src="{uris[hard.image]}" alt="test image of {escape(names[hard.label])}"{_hint(own)}>
<div><h3>{escape(heading)}</h3><p>{told}margin {_signed(hard.margin)}</p>
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


def _making(record: Record, record_name: str) -> str:
    env = record.environment
    commit = "unknown"
    if env.commit is not None:
        commit = env.commit[:12] + (", with changes" if env.dirty else "")
    machine = env.machine
    stages = {curve.label for curve in record.curves}
    times = [(k.lower(), v) for k, v in record.seconds.items() if k not in stages]
    plural = "" if machine.cores_usable == 1 else "s"
    packages = [f"{name} {version}" for name, version in machine.packages.items() if version]
    rows: list[tuple[str, str]] = [
        ("Command", f"<code>{escape(env.command)}</code>"),
        ("Started", escape(env.started)),
        ("Code", f"widelimit {escape(env.version)}, commit <code>{escape(commit)}</code>"),
        (
            "Machine",
            f"{escape(machine.cpu)}, {machine.cores_usable} processor{plural}, "
            f"{escape(machine.system)}",
        ),
        ("Versions", escape(", ".join([machine.python, *packages]))),
        ("Data", escape(record.data.provenance)),
        ("Images", escape(_describe_images(record))),
        ("Draws", f"{record.draws}, seed {record.seed}"),
        *(
            (record.curve(entry.method).label, escape(_describe_kernel(entry)))
            for entry in record.kernels
        ),
        ("Time", escape(", ".join(f"{k} {duration(v)}" for k, v in times))),
    ]
    if record_name:
        rows.append(("Record", f"<code>{escape(record_name)}</code>, beside this page"))
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in rows)
    return f"""<section>
<h2>How this was made</h2>
<dl>{entries}</dl>
</section>
<footer>widelimit: exact kernels of infinitely wide networks. After Arora, Du, Hu, Li, Salakhutdinov
and Wang, <i>On Exact Computation with an Infinitely Wide Neural Net</i>, NeurIPS 2019.</footer>"""


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


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _compact(count: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= size:
            return f"{count / size:.3g}<i>{unit}</i>"
    return str(count)
