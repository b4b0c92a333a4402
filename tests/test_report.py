"""The page: complete, correct, self-contained, and safe with any name."""

import base64
import dataclasses
import hashlib
import io
import itertools
import math
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from toys import NAMES, make_dataset, run_toy

from widelimit.data import Dataset
from widelimit.experiments.learning_curve import Record
from widelimit.experiments.record import Curve, Point
from widelimit.files import write_atomically
from widelimit.markup import to_data_uri
from widelimit.report import page
from widelimit.report.chart import draw_curves
from widelimit.report.learning import render
from widelimit.report.terminal import make_tables, show_notes

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Parses a page, checks that elements are nested, and keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="module")
def record(dataset: Dataset) -> Record:
    return run_toy(
        dataset,
        3,
        command=["widelimit", "<i>"],
    )


@pytest.fixture(scope="module")
def text(record: Record, dataset: Dataset) -> str:
    return render(record, dataset, record_name="demo <b>.json")


def test_page_refers_to_nothing_outside(text: str) -> None:
    page = Page(text)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for _, name, value in page.attributes:
        assert name not in ("href", "srcset", "action", "onload", "onerror", "onclick")
        assert "//" not in value.replace("data:image/png;base64,", "") or value.startswith("data:")
        if name == "src":
            assert value.startswith("data:image/png;base64,")
    assert "http:" not in text
    assert "https:" not in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(value for _, name, value in page.attributes if value.startswith("default-src"))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def test_names_are_escaped(text: str, dataset: Dataset) -> None:
    page = Page(text)
    for name in (*NAMES, "toy <&> set", "demo <b>.json", "widelimit '<i>'"):
        assert name in "".join(page.text)
    for raw in ("<script>alert", "<b>.json", "<i>'", "toy <&>"):
        assert raw not in text
    assert "bars &amp; &quot;stripes&quot;" in text


def test_all_numbers_are_there(text: str, record: Record) -> None:
    page = Page(text)
    for size, points in record.rows():
        at = page.cells.index(f"{size:,}")
        row = page.cells[at + 1 : at + 1 + len(points)]
        expected = [f"{p.mean * 100:.1f} ± {(p.std or 0) * 100:.1f}" for p in points]
        assert row == expected
    at = page.cells.index("true")
    width = len(record.confusion)
    cells = page.cells[at + 1 + width :]
    for i, counts in enumerate(record.confusion):
        row = cells[i * (width + 1) :][: width + 1]
        assert row == [
            NAMES[i],
            *(f"{count:,}" if count or i == j else "·" for j, count in enumerate(counts)),
        ]
    words = " ".join("".join(page.text).split())
    total, right = np.sum(record.confusion), np.trace(record.confusion)
    assert f"{total - right:,} of {total:,} predictions" in words
    assert record.environment.version in words
    assert record.environment.machine.cpu in words
    assert f"{record.draws}, seed {record.seed}" in words


def test_pictures_are_those_of_the_record(text: str, record: Record, dataset: Dataset) -> None:
    sources = [value for _, name, value in Page(text).attributes if name == "src"]
    expected = []
    x = np.concatenate([dataset.x_train, dataset.x_test])
    for hard in record.hardest:
        expected += [x[hard.image], *(x[vote.image] for vote in hard.votes)]
    assert len(sources) == len(expected)
    for source, image in zip(sources, expected, strict=True):
        png = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        np.testing.assert_allclose(np.asarray(png) / 255, image[..., 0], atol=0.51 / 255)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (5, "L")])
def test_pictures_of_any_number_of_channels(channels: int, mode: str) -> None:
    x = np.random.default_rng(0).random((4, 6, channels))
    png = Image.open(io.BytesIO(base64.b64decode(to_data_uri(x).partition(",")[2])))
    assert (png.mode, png.size) == (mode, (6, 4))


def test_notes_and_errors_are_shown(record: Record, dataset: Dataset) -> None:
    assert "<aside" not in render(record, dataset)
    changed = dataclasses.replace(record, notes=("Only <half>.",), errors=("It & failed.",))
    page = render(changed, dataset)
    assert "<aside" in page
    assert "Only &lt;half&gt;." in page
    assert "It &amp; failed." in page


def test_minutes_have_sixty_seconds(record: Record, dataset: Dataset) -> None:
    kernels = tuple(dataclasses.replace(kernel, seconds=95.2) for kernel in record.kernels)
    seconds = dict.fromkeys(record.seconds, 3725.0)
    slow = dataclasses.replace(record, kernels=kernels, seconds=seconds)
    words = " ".join("".join(Page(render(slow, dataset)).text).split())
    assert "exact kernel values in 1 min 35 s" in words
    assert words.count("float64, 1 min 35 s") == 3
    assert "learning curve 1 h 02 min, all 1 h 02 min" in words


def test_one_draw_has_no_spread(dataset: Dataset) -> None:
    record = run_toy(dataset, 1)
    text = render(record, dataset)
    Page(text)
    assert "±" not in text
    assert 'class="bar"' not in text
    assert "±" not in draw_table(record)


def test_many_classes_are_listed(record: Record) -> None:
    names = tuple(f"class {k}" for k in range(40))
    confusion = np.eye(40, dtype=int) * 9
    confusion[3, 5] = 7
    confusion[8, 1] = 2
    many = dataclasses.replace(
        record,
        data=dataclasses.replace(record.data, class_names=names),
        confusion=tuple(map(tuple, confusion.tolist())),
        hardest=(),
    )
    page = Page(render(many, make_dataset()))
    assert page.cells[-6:] == ["class 3", "class 5", "7", "class 8", "class 1", "2"]
    assert "Most often, 7 times, class 3 is taken for class 5." in "".join(page.text)


def test_perfect_accuracy(record: Record) -> None:
    perfect = np.eye(3, dtype=int) * 30
    best = dataclasses.replace(record, confusion=tuple(map(tuple, perfect.tolist())))
    text = "".join(Page(render(best, make_dataset())).text)
    assert "0 of 90 predictions" in text
    assert "Most often" not in text


# --- the chart ---


def with_points(record: Record, table: list[list[tuple[float, float | None]]]) -> Record:
    """A record of these means and deviations: a list for each method, a pair for each size."""
    curves = tuple(
        Curve(
            curve.key,
            curve.label,
            curve.detail,
            tuple(
                Point(10 * 2**j, (mean,), mean, std, ({},)) for j, (mean, std) in enumerate(pairs)
            ),
        )
        for curve, pairs in zip(record.curves, table, strict=True)
    )
    return dataclasses.replace(record, curves=curves)


unit = st.floats(0, 1)
pair = st.tuples(unit, st.none() | st.floats(0, 0.5))


@settings(deadline=None)
@given(
    table=st.integers(1, 9).flatmap(
        lambda n: st.lists(st.lists(pair, min_size=n, max_size=n), min_size=5, max_size=5)
    ),
    width=st.sampled_from([400, 800]),
)
def test_chart_stays_in_its_frame(
    table: list[list[tuple[float, float | None]]], width: int, record: Record
) -> None:
    svg = draw_curves(with_points(record, table), width=width, height=400, name="curve")
    Page(svg)
    places = re.findall(r"translate\(([^ ]+) ([^)]+)\)", svg)
    assert len(places) == 5 * len(table[0])
    for x, y in places:
        assert 0 <= float(x) <= width
        assert 0 <= float(y) <= 400
    for number in re.findall(r"-?[\d.]+|nan|inf", " ".join(re.findall(r'points="([^"]*)"', svg))):
        assert math.isfinite(float(number))


def test_chart_puts_better_accuracies_higher(record: Record) -> None:
    rows = [(0.5, 0.1), (0.9, 0.05), (0.99, 0.005), (1.0, 0.0)]
    many = dataclasses.replace(record, data=dataclasses.replace(record.data, n_test=10_000))
    svg = draw_curves(with_points(many, [rows] * 5), width=800, height=400, name="curve")
    heights = [float(y) for y in re.findall(r"translate\([^ ]+ ([^)]+)\)", svg)][:4]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 4
    labels = re.findall(r">([\d.]+) %<", svg)
    assert {"50", "90"} <= set(labels)
    # 90 to 99 % is as far as 99 to 99.9 %: here by the error, 0.5 to 0.1 against 0.1 to 0.01
    ratio = (heights[1] - heights[2]) / (heights[0] - heights[1])
    assert ratio == pytest.approx(math.log(10) / math.log(5), rel=0.01)


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.503, 0.971, 0.9991, 1.0])
def test_narrow_ranges_have_labels_too(record: Record, accuracy: float) -> None:
    rows = [(accuracy, 0.0004), (accuracy, None)]
    svg = draw_curves(with_points(record, [rows] * 5), width=800, height=400, name="curve")
    assert len(re.findall(r">[\d.]+ %<", svg)) >= 2


def test_labels_of_sizes_do_not_overlap(record: Record) -> None:
    table = [[(0.5, None)] * 12] * 5
    svg = draw_curves(with_points(record, table), width=400, height=400, name="curve")
    labels = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d,]+)<', svg)
    assert labels[0][1] == "20,480"  # the largest size always has its label
    edges = sorted((float(x) - 3.6 * len(t), float(x) + 3.6 * len(t)) for x, t in labels)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(edges))


# --- the terminal ---


def draw_table(record: Record, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in make_tables(record, console):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_terminal_table_fits_and_is_complete(record: Record) -> None:
    table = draw_table(record)
    assert "…" not in table
    for size, points in record.rows():
        line = next(line for line in table.splitlines() if line.split()[:1] == [f"{size:,}"])
        expected = " ".join(f"{p.mean * 100:.1f} ± {(p.std or 0) * 100:.1f}" for p in points)
        assert " ".join(line.split()[1:]) == expected
    odd = dataclasses.replace(record, data=dataclasses.replace(record.data, name="[bold]x[/]"))
    assert "[bold]x[/]" in draw_table(odd)


@pytest.mark.parametrize("width", [10, 30, 40, 60, 80])
def test_a_narrow_terminal_gets_several_tables(record: Record, width: int) -> None:
    lines = draw_table(record, width).splitlines()
    if width >= 30:
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)
    for i, (size, points) in enumerate(record.rows()):
        rows = [line.split()[1:] for line in lines if re.fullmatch(rf" *{size:,} [\d.± …]+", line)]
        found = " ".join(" ".join(row) for row in rows)
        if width >= 30:
            assert found == " ".join(
                f"{p.mean * 100:.1f} ± {(p.std or 0) * 100:.1f}" for p in points
            )
        assert i or len(rows) == {10: 5, 30: 5, 40: 3, 60: 2, 80: 1}[width]


def test_notes_are_framed() -> None:
    console = Console(file=io.StringIO(), width=80)
    show_notes(console, [])
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    show_notes(console, ["[red]Of 9 images, 5[/red]"])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Please note" in shown
    assert "[red]Of 9 images, 5[/red]" in shown


# --- files ---


def test_write_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.html"
    write_atomically(path, "first ±\n")
    assert path.read_bytes() == "first ±\n".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    write_atomically(path, "second")
    assert path.read_text() == "second"

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "third")
    assert path.read_text() == "second"
    assert os.listdir(tmp_path) == ["a.html"]


def test_a_table_that_goes_on_shows_it() -> None:
    """A shadow that stands still, under a cover that scrolls away with the end of the table."""
    style = (Path(page.__file__).parent / "style.css").read_text("utf-8")
    (rules,) = re.findall(r"^\.scroll \{([^}]*)\}", style, re.MULTILINE)
    layers = re.findall(r"linear-gradient\(to left, (var\(--\w+\)).*no-repeat (\w+)", rules)
    assert layers == [("var(--paper)", "local"), ("var(--shade)", "scroll")]
    assert style.count("--shade:") == 2  # light and dark
