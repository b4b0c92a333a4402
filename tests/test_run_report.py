"""Reports of runs: what a record keeps of its kernels, the page, and what is refused."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, Tab, find_chromium, open_browser
from PIL import Image
from test_report import Page
from test_table1 import make_file
from toys import make_dataset
from typer.testing import CliRunner, Result

from widelimit.cli import app
from widelimit.experiments import portrait
from widelimit.experiments.portrait import cut_by_class, find_examples, portray, thumbnails
from widelimit.files import write_record
from widelimit.report import comparison_page
from widelimit.report.finite import to_markdown
from widelimit.report.page import compact, signed
from widelimit.report.runs import Report
from widelimit.report.shapes import Each, Maybe, check

ROOT = Path(__file__).parents[1]
EQUALS = "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
KNOWN = ["table1-gap-2k", "table1-gap-500", "table1-v-2k", "table1-v-50k", "rank-16x16"]
KNOWN += ["theorem31", "theorem32", "weakly-trained"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Records of runs on a toy: table 1 over draws, and small data."""
    folder = tmp_path_factory.mktemp("runs")
    data = make_file(folder)
    options = ("--column", "cntk-v", "--column", "cntk-gap", "--depths", "3,4", "--n-train", 20)
    names = {"table1": ("table1", *options, "--balanced", "--draws", 2)}
    names["small-data"] = ("small-data", "--largest", 20, "--draws", 2)
    records = {}
    for name, (what, *more) in names.items():
        out = folder / f"{name}.json"
        result = call("reproduce", what, data, "--out", out, "--threads", 1, *more)
        assert result.exit_code == 0, result.output
        records[name] = json.loads(out.read_text("utf-8"))
    return records


@pytest.fixture
def record(made: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(made["table1"])


def page_of(folder: Path, *records: dict[str, Any]) -> str:
    paths = []
    for i, record in enumerate(records):
        paths.append(folder / f"run-{i}.json")
        paths[-1].write_text(json.dumps(record))
    return Report.prepare(paths, folder / "r.html").text


# ---------------------------------------------------------------- what a record keeps


class Tiled:
    """A matrix that is read a row of tiles at a time, as from a store."""

    tile = 7

    def __init__(self, k: np.ndarray) -> None:
        self.k = k

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = index[0] if isinstance(index, tuple) else index
        assert rows.stop - rows.start <= self.tile
        return self.k[index]


@pytest.mark.parametrize("classes", [2, 10, 70])
def test_a_portrait_is_that_of_the_kernel(classes: int) -> None:
    n = 150
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % classes)
    x = rng.standard_normal((n, 9)) + 0.3 * labels[:, None]
    x[3] = 0  # k(x, x) = 0
    k = x @ x.T
    blocks = cut_by_class(labels)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(n))
    assert len(blocks) == {2: 64, 10: 60, 70: 64}[classes]
    if classes < 64:
        assert all(len(set(labels[block])) == 1 for block in blocks)
    found = portray(Tiled(k), labels, blocks)

    norms = np.linalg.norm(x, axis=1)
    with np.errstate(invalid="ignore"):
        cosines = np.nan_to_num(k / np.outer(norms, norms))
    np.fill_diagonal(cosines, np.nan)
    means = np.array([[np.nanmean(cosines[np.ix_(a, b)]) for b in blocks] for a in blocks])
    assert found["low"] == pytest.approx(means.min(), rel=1e-4)
    assert found["high"] == pytest.approx(means.max(), rel=1e-4)
    levels = np.frombuffer(base64.b64decode(found["cosines"]), np.uint8) / 255
    shown = found["low"] + (found["high"] - found["low"]) * levels
    upper = means[np.triu_indices(len(blocks))]
    assert np.allclose(shown, upper, atol=(means.max() - means.min()) / 500)

    y = np.eye(classes)[labels]
    h = np.eye(n) - 1 / n
    for name, one, other in (
        ("alignment", k, y @ y.T),
        ("centred_alignment", h @ k @ h, h @ y @ y.T @ h),
    ):
        cosine = np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
        assert found[name] == pytest.approx(cosine, rel=1e-4)
    spectrum = found["spectrum"]
    values = np.linalg.eigvalsh(k)[::-1] / n
    assert (spectrum["images"], spectrum["ranks"][0], spectrum["ranks"][-1]) == (n, 1, n)
    ranks = np.array(spectrum["ranks"])
    assert np.allclose(spectrum["values"], values[ranks - 1], rtol=1e-4, atol=1e-9)
    assert spectrum["trace"] == pytest.approx(values.sum(), rel=1e-4)


def test_the_spectrum_of_many_images_is_that_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portrait, "_MOST_SAMPLES", 20)
    x = np.random.default_rng(0).standard_normal((58, 5))
    labels = np.arange(58) % 2
    spectrum = portray(Tiled(x @ x.T), labels, cut_by_class(labels))["spectrum"]
    part = x[np.linspace(0, 57, 20).round().astype(int)]
    assert spectrum["images"] == 20
    assert spectrum["values"][0] == pytest.approx(np.linalg.norm(part, 2) ** 2 / 20, rel=1e-4)


def test_kernels_that_tell_nothing() -> None:
    """Of all ones nothing is left when centred; one image has no pair; a kernel may be 0."""
    labels = np.array([0, 1, 1])
    found = portray(np.ones((3, 3)), labels, cut_by_class(labels))
    assert found["centred_alignment"] is None
    assert (found["low"], found["high"]) == (1.0, 1.0)
    found = portray(np.zeros((2, 2)), labels[:2], cut_by_class(labels[:2]))
    assert found["alignment"] is None


def test_examples_are_the_extreme_ones() -> None:
    outputs = np.array(
        [
            [0.9, 0.1, 0.0],  # right by 0.8
            [0.5, 0.4, 0.1],  # right by 0.1
            [0.2, 0.8, -0.1],  # wrong, 0.9 behind
            [0.3, 0.31, 0.2],  # wrong, 0.01 ahead
            [0.0, 0.2, 0.7],  # right by 0.5
            [-0.1, 0.9, 0.85],  # wrong, 1.0 behind, 0.05 ahead
        ]
    )
    labels = np.array([0, 0, 2, 0, 2, 0])
    found = find_examples(outputs, labels, np.arange(10, 16))
    assert [one["image"] for one in found["surest"]] == [10, 14, 11]
    assert [one["image"] for one in found["least_sure"]] == [13, 15, 11, 14]
    assert [one["image"] for one in found["most_wrong"]] == [15, 12, 13]
    assert found["most_wrong"][1]["predicted"] == 1
    assert found["most_wrong"][1]["outputs"] == [[1, 0.8], [0, 0.2], [2, -0.1]]
    wide = find_examples(np.array([[0.1, 0.5, 0.4, 0.3, 0.2]]), np.array([0]), np.array([0]))
    assert [k for k, _ in wide["most_wrong"][0]["outputs"]] == [1, 2, 3, 0]  # its own, too


def test_thumbnails_have_names_and_are_small() -> None:
    dataset = make_dataset(files_train=("a",) * 60, files_test=tuple(f"{i}.png" for i in range(30)))
    found = thumbnails(dataset, [4])
    assert list(found) == ["4"]
    assert found["4"]["file"] == "4.png"
    picture = Image.open(io.BytesIO(base64.b64decode(found["4"]["png"])))
    assert np.allclose(np.asarray(picture) / 255, dataset.x_test[4][..., 0], atol=0.002)
    x = np.random.default_rng(0).random((3, 100, 80, 3))
    large = make_dataset(x_test=x, x_train=x, y_train=np.arange(3), y_test=np.arange(3))
    (entry,) = thumbnails(large, [0]).values()
    assert entry["file"] is None
    picture = Image.open(io.BytesIO(base64.b64decode(entry["png"])))
    assert picture.size == (26, 32)
    assert len(picture.convert("RGB").getcolors()) <= 64


def test_records_keep_it_and_stay_small(record: dict[str, Any]) -> None:
    assert record["data"]["class_names"] == [str(k) for k in range(10)]
    for column in record["columns"]:
        assert sum(block[2] for block in column["blocks"]) == 20
        rows = {row["depth"]: row for row in column["rows"]}
        best = max(row["leave_one_out"] for row in rows.values())
        assert rows[column["examples"]["depth"]]["leave_one_out"] == best
        for one in column["examples"]["surest"]:
            assert one["label"] == one["predicted"]
            assert str(one["image"]) in record["test_images"]
        for row in rows.values():
            assert len(json.dumps(row["kernel"], indent=1)) < 8_000


# ---------------------------------------------------------------- the page


def expected_cells(record: dict[str, Any], column: dict[str, Any]) -> list[list[str]]:
    """Return the first cells of the rows of the table of a column, from the record."""
    found = []
    for row in column["rows"]:
        accuracy, error = 100 * row["accuracy"], 100 * row["standard_error"]
        cells = [f"{row['depth']}", f"{accuracy:.2f}"]
        paper = row["paper_percent"]
        if paper is None:
            cells.append(f"± {error:.2f}")
        else:
            difference = signed(accuracy - paper, plus=True)
            cells += [f"{paper:.2f}", f"{difference} ± {error:.2f}"]
        if row.get("leave_one_out") is not None:
            cells.append(f"{100 * row['leave_one_out']:.2f}")
        found.append(cells)
    return found


def has_rows(cells: list[str], rows: list[list[str]]) -> bool:
    return all(
        any(cells[i : i + len(row)] == row for i in range(len(cells) - len(row) + 1))
        for row in rows
    )


def test_tables_hold_the_numbers_of_table_1(tmp_path: Path, record: dict[str, Any]) -> None:
    record["columns"][0]["rows"][0]["paper_percent"] = 64.47
    record["columns"][0]["rows"][1]["paper_percent"] = 65.52
    page = Page(page_of(tmp_path, record))
    for column in record["columns"]:
        assert has_rows(page.cells, expected_cells(record, column))
        for row in column["rows"]:
            draws = [f"{100 * draw['accuracy']:.2f}" for draw in row["draws"]]
            assert has_rows(page.cells, [[f"{row['depth']}", *draws]])
            kernel = row["kernel"]
            both = [f"{kernel[name]:.4f}" for name in ("alignment", "centred_alignment")]
            assert has_rows(page.cells, [[f"{row['depth']}", *both]])
    words = " ".join("".join(page.text).split())
    environment = record["environment"]
    assert environment["command"] in words
    assert environment["machine"]["cpu"] in words
    assert f"numpy {np.__version__}" in words
    assert f"widelimit {environment['version']}, commit" in words
    assert "2, seed 0" in words
    assert re.search(r"[\d.]+ [MG]B at most", words)
    assert "standard error over the 2 draws" in words
    assert "run-0.json" in words


def test_the_headline_is_not_chosen_by_test_images(tmp_path: Path, record: dict[str, Any]) -> None:
    record["columns"] = record["columns"][:1]
    first, second, *_ = record["columns"][0]["rows"] = record["columns"][0]["rows"][:2]
    first |= {"leave_one_out": 0.75, "accuracy": 0.5125}
    second |= {"leave_one_out": 0.25, "accuracy": 0.9875}
    text = page_of(tmp_path, record)
    assert "<b>51.25<i>%</i></b>" in text
    assert f"depth {first['depth']}, the best of 2 leaving one out<" in text
    first["leave_one_out"] = second["leave_one_out"] = None
    text = page_of(tmp_path, record)
    assert "<b>98.75<i>%</i></b>" in text
    assert f"depth {second['depth']}, the best of 2 on these test images<" in text


def test_pointers_are_told_the_means_of_classes(tmp_path: Path, record: dict[str, Any]) -> None:
    column = record["columns"][0]
    kernel = column["rows"][0]["kernel"]
    blocks = [[0, 0, 3], [0, 0, 1], [1, 1, 1]]
    kernel |= {
        "cosines": base64.b64encode(bytes([51, 255, 51, 0, 102, 0])).decode(),
        "low": 0.0,
        "high": 1.0,
    }
    column["blocks"], column["rows"] = blocks, column["rows"][:1]
    record["columns"] = [column]
    record["data"]["class_names"] = ["cat", "dog"]
    text = page_of(tmp_path, record)
    # Of 3 + 1 cats: 6 pairs in one block, of 0.2, and 6 with the fourth, of 1.
    assert "<title>cat and cat: 0.6</title>" in text
    assert "<title>cat and dog: 0.25</title>" in text
    assert "<title>dog and cat: 0.25</title>" in text
    assert "dog and dog" not in text  # one dog has no pair


def test_blocks_of_several_classes_have_no_names(tmp_path: Path, record: dict[str, Any]) -> None:
    column = record["columns"][0]
    record["columns"] = [column]
    text = page_of(tmp_path, record)
    assert "in blocks of one class" in text
    assert "The pointer tells" in text
    column["blocks"][-1][1] += 1
    text = page_of(tmp_path, record)
    assert "in blocks of images that are sorted by class" in text
    assert "The pointer tells" not in text
    assert 'class="mark cell"' not in text


@pytest.mark.parametrize("chosen", ["A, normalised", "A"])
def test_the_chosen_kernel_is_drawn(chosen: str, tmp_path: Path) -> None:
    record = example_of(comparison_page.MYRTLE_SHAPE, "word", 0.25)
    kernel = record["kernels"][0] | {"images": "as they are"}
    names = ["A", "A, normalised", "B, normalised"]
    record["kernels"] = [kernel | {"kernel": name} for name in names]
    record |= {"format": "widelimit.myrtle/1", "chosen": kernel | {"kernel": chosen}}
    text = page_of(tmp_path, record)
    drawn = [f"<title>{name}; as they are" in text for name in names]
    assert drawn == [True, chosen == "A, normalised", False]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (1000, "1<i>thousand</i>"),
        (999_499, "999<i>thousand</i>"),
        (999_500, "1<i>million</i>"),
        (999_999_999, "1<i>billion</i>"),
        (2_500_000, "2.5<i>million</i>"),
    ],
)
def test_large_numbers_have_their_unit(count: int, text: str) -> None:
    assert compact(count) == text


def test_names_of_files_are_told(tmp_path: Path, record: dict[str, Any]) -> None:
    numbers = list(record["test_images"])
    record["test_images"][numbers[0]]["file"] = "birds/one.png"
    text = page_of(tmp_path, record)
    assert "<p>birds/one.png</p>" in text
    assert f"<p>test image {int(numbers[1]):,}</p>" in text
    pictures = {value for _, name, value in Page(text).attributes if name == "src"}
    assert len(pictures) == len(numbers)


def test_older_records_say_what_they_lack(tmp_path: Path, record: dict[str, Any]) -> None:
    assert "The record has no kernel matrix" not in page_of(tmp_path, record)
    for column in record["columns"]:
        del column["blocks"], column["examples"]
        for row in column["rows"]:
            del row["kernel"]
    del record["test_images"], record["data"]["class_names"]
    text = page_of(tmp_path, record)
    assert "The record has no kernel matrix, spectrum, alignment or examples" in text


@pytest.mark.parametrize("name", KNOWN)
def test_pages_of_the_records_of_this_repository(name: str, tmp_path: Path) -> None:
    path = ROOT / "results" / f"{name}.json"
    record = json.loads(path.read_text("utf-8"))
    page = Page(Report.prepare([path], tmp_path / "r.html").text)
    rows: list[list[str]] = []
    if name.startswith("table1"):
        for column in record.get("columns", [record]):
            rows += expected_cells(record, column)
    elif name.startswith("rank"):
        for entry in record["architectures"]:
            cells = [entry["name"]]
            for means, errors in zip(entry["mean"], entry["standard_error"], strict=True):
                cells += [f"{100 * means[k]:.2f} ± {100 * errors[k]:.2f}" for k in (0, 2)]
            rows.append(cells)
        for row in record["agreement"]:
            numbers = [f"{row['architectures']}", signed(row["tau"])]
            names = [one.replace("_", " ").replace(" = ", EQUALS) for one in row["between"]]
            rows.append([*names, *numbers, f"{signed(row['low'])} to {signed(row['high'])}"])
    elif name == "theorem31":
        for decay in record["decays"]:
            slope = f"{signed(decay['slope'], 3)} ± {1.96 * decay['slope_error']:.3f}"
            errors = decay["errors"][0]
            error = np.std(errors, ddof=1) / len(errors) ** 0.5
            rows.append([decay["name"], slope, f"{np.mean(errors):.4f} ± {error:.4f}"])
    elif name == "theorem32":
        widths = sorted({run["width"] for run in record["training"]["runs"]})
        for width in widths:
            runs = [run for run in record["training"]["runs"] if run["width"] == width]
            mean = f"{np.mean([run['gaps'][-1] for run in runs]):.4f}"
            assert any(cell.startswith(mean) for cell in page.cells)
            rows.append([f"{width:,}", f"{len(runs)}"])
    else:
        for found in record["weakly_trained"]:
            for width, gaps in zip(found["widths"], found["gaps"], strict=True):
                at = page.cells.index(f"{width:,}")
                assert page.cells[at + 1].startswith(f"{np.mean(gaps):.4f}") or width
    assert has_rows(page.cells, rows)
    assert "".join(page.text).count(record["environment"]["command"][:40]) == 1


def test_a_learning_curve_has_its_table_and_no_pictures(
    tmp_path: Path, made: dict[str, Any]
) -> None:
    record = made["small-data"]
    text = page_of(tmp_path, record)
    page = Page(text)
    for j, point in enumerate(record["curves"][0]["points"]):
        points = [curve["points"][j] for curve in record["curves"]]
        cells = [
            f"{100 * p['mean']:.1f}" + ("" if p["std"] is None else f" ± {100 * p['std']:.1f}")
            for p in points
        ]
        assert has_rows(page.cells, [[f"{point['size']:,}", *cells]])
    assert 'src="data:' not in text
    hard = record["hardest"][0]
    assert has_rows(page.cells, [[f"{hard['image']:,}", f"{hard['label']}"]])


def example_of(shape: Any, word: str, number: float) -> Any:
    """Return something that has a shape."""
    if isinstance(shape, Maybe | Each):
        inner = example_of(shape.shape, word, number)
        return inner if isinstance(shape, Maybe) else {"k": inner}
    if isinstance(shape, dict):
        return {key: example_of(inner, word, number) for key, inner in shape.items()}
    if isinstance(shape, list | tuple):
        return [example_of(inner, word, number) for inner in shape]
    return {str: word, bool: True, int: 3, float: number}[shape]


@pytest.mark.parametrize("kind", ["table1_cnn", "table2", "readouts", "myrtle"])
def test_comparisons(kind: str, tmp_path: Path) -> None:
    shape = {
        "table1_cnn": comparison_page.CNN_SHAPE,
        "table2": comparison_page.RANDOM_SHAPE,
        "readouts": comparison_page.READOUTS_SHAPE,
        "myrtle": comparison_page.MYRTLE_SHAPE,
    }[kind]
    name = {"format": f"widelimit.{kind}/1"}
    page, odd = (
        Page(page_of(tmp_path, example_of(shape, word, 0.25) | name))
        for word in ("word", "<script>x</script>\"'&")
    )
    assert page.tags == odd.tags
    assert "<script>x</script>\"'&" in "".join(odd.text)
    rows = {
        "table1_cnn": ["WORD", "3", "3", "25.00 ± 25.00", "0.25", "+24.75 ± 25.00", "0.25", "3"],
        "table2": ["word", "3", "25.00 (25.00 to 25.00)", "25.00", "0.25", "–"],
        "readouts": ["word", "word", "25.00 ± 25.00", "25.00"],
        "myrtle": ["word", "25.00 ± 25.00", "25.00"],
    }
    assert has_rows(page.cells, [rows[kind]])
    if kind == "readouts":
        assert has_rows(page.cells, [["word above word", "word", "+25.00 ± 25.00"]])
        assert "Readouts of networks of depth 3" in "".join(page.text)
    if kind == "table2":  # no difference from a figure that is of another number of images
        papers = example_of(shape, "word", 0.25) | name | {"n_train": 10_000}
        whole = Page(page_of(tmp_path, papers))
        assert has_rows(whole.cells, [[*rows[kind][:-1], "+24.75 ± 25.00"]])
        told = "The paper's are of 10,000 training images"
        assert told in "".join(page.text)
        assert told not in "".join(whole.text)
    assert "3 training and 3 test images of 3 × 3 × 3" in " ".join("".join(page.text).split())
    # What may be missing is.
    bare = check(example_of(shape, "word", 0.25) | name, shape)
    for path in list(leaves(bare)):
        inner, of = bare, shape
        for key in path[:-1]:
            inner = None if inner is None else inner[key]
            of = of.shape if isinstance(of, Maybe) else of
            of = of[key] if isinstance(of, dict) else of[0]
        of = of.shape if isinstance(of, Maybe) else of
        if inner is not None and path and isinstance(of, dict) and isinstance(of[path[-1]], Maybe):
            inner[path[-1]] = None
    Page(page_of(tmp_path, bare))


def test_several_runs_are_one_page(tmp_path: Path, made: dict[str, Any]) -> None:
    rank = json.loads((ROOT / "results" / "rank-16x16.json").read_text("utf-8"))
    text = page_of(tmp_path, made["table1"], rank, made["small-data"])
    page = Page(text)
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["#run-1", "#run-2", "#run-3"]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert ids == ["run-1", "run-2", "run-3"]
    titles = [text[m.end() :].partition("</h1>")[0] for m in re.finditer("<h1>", text)]
    assert len(titles) == 4
    assert "Table 1: " in titles[1]
    assert "ranked" in titles[2]


# ---------------------------------------------------------------- hostile records


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield from leaves(value, (*path, key))


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    if not path:
        return value
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def small(made: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind in made:
        return made[kind]
    return json.loads((ROOT / "results" / f"{kind}.json").read_text("utf-8"))


@pytest.mark.parametrize("kind", ["table1", "small-data", "rank-16x16", "theorem31"])
def test_words_are_never_tags(kind: str, tmp_path: Path, made: dict[str, Any]) -> None:
    evil = "</title></style><script>alert(1)</script><img src=x onerror='a'>\"&"
    record = small(made, kind)
    changed = copy.deepcopy(record)
    for path in leaves(record):
        inner: Any = changed
        for key in path[:-1]:
            inner = inner[key]
        kept = ("format", "cosines", "png", "key", "method", "readout")
        if path and isinstance(inner[path[-1]], str) and path[-1] not in kept:
            inner[path[-1]] += evil
    for key in ("notes", "errors"):
        if key in changed:
            changed[key] = record[key] + [evil]
            record = record | {key: [*record[key], "note"]}
    tags = [Page(page_of(tmp_path, one)).tags for one in (record, changed)]
    assert tags[0] == tags[1]
    text = page_of(tmp_path, changed)
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("kind", ["table1", "small-data", "rank-16x16", "theorem31"])
def test_whatever_is_in_a_record_makes_a_page_or_one_line(
    kind: str, tmp_path: Path, made: dict[str, Any]
) -> None:
    record = small(made, kind)
    places = [path for path in leaves(record) if path and path[0] != "environment"]
    rng = np.random.default_rng(0)
    values = ["<b>x</b>", -1, 0, 2**62, 1e299, None, [], {}, [["<b>"]], True, 1e-300]
    path = tmp_path / "r.json"
    outcomes = set()
    for i in rng.choice(len(places), 40):
        value = values[rng.integers(len(values))]
        path.write_text(json.dumps(replaced(record, places[i], value)))
        text, refusal = "", ""
        try:
            text = Report.prepare([path], tmp_path / "r.html").text
        except ValueError as error:
            refusal = str(error)
        assert text or refusal.startswith(f"{path} must be a record of widelimit")
        assert "<b>x</b>" not in text
        outcomes.add(bool(text))
    assert outcomes == {False, True}


def without(*path: Any) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        for key in path[:-1]:
            record = record[key]
        del record[path[-1]]

    return change


def put(value: Any, *path: Any) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return change


def first_image(record: Any) -> Any:
    return next(iter(record["test_images"].values()))


def not_a_picture(record: Any) -> None:
    first_image(record)["png"] = "AAAA"


def a_large_picture(record: Any) -> None:
    content = io.BytesIO()
    Image.new("L", (65, 2)).save(content, "PNG")
    first_image(record)["png"] = base64.b64encode(content.getvalue()).decode()


def a_picture_of_another_kind(record: Any) -> None:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "GIF")
    first_image(record)["png"] = base64.b64encode(content.getvalue()).decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("widelimit.other/1", "format"), "it has the format 'widelimit.other/1' .known: "),
        (put(7, "format"), "it has the format 7 "),
        (without("format"), "it has no format .*is it the right file"),
        (without("columns"), "it must have 'columns'"),
        (put("<b>", "columns", 0, "rows", 0, "accuracy"), r"columns\[0\].rows\[0\].accuracy must "),
        (put(True, "seconds"), "seconds must be a number, got True"),
        (put(10**30, "peak_memory"), "peak_memory must be a whole number"),
        (put([32, 32], "data", "image_shape"), "data.image_shape must have 3 entries, got 2"),
        (put("x", "columns"), "columns must be a list"),
        (put([], "environment"), "environment must be an object"),
        (put(10**15, "columns", 0, "draws"), "every row must have 1000000000000000 draws"),
        (put([[0, 0, 20]], "columns", 0, "blocks"), "cosines of 1 blocks must have 1 bytes"),
        (put([[1, 0, 2]], "columns", 0, "blocks"), "is it damaged"),
        (put("?", "columns", 0, "rows", 0, "kernel", "cosines"), "is it damaged"),
        (put([1], "columns", 0, "rows", 0, "kernel", "spectrum", "ranks"), "as many ranks as"),
        (not_a_picture, "a thumbnail must be a PNG"),
        (a_large_picture, "at most 64 pixels wide"),
        (a_picture_of_another_kind, "a thumbnail must be a PNG"),
    ],
)
def test_damaged_records_are_one_line(
    change: Callable[[Any], None], words: str, tmp_path: Path, record: dict[str, Any]
) -> None:
    change(record)
    path, out = tmp_path / "bad.json", tmp_path / "r.html"
    path.write_text(json.dumps(record))
    result = call("report", path, "--out", out)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert re.search(f"^widelimit: {re.escape(str(path))} must .*{words}", result.stderr)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "must be a JSON object"),
        (b"\xff\x00", "must be a JSON object"),
        (b'{"format": ' + b"[" * 100 + b"]" * 100 + b"}", "must be a JSON object"),
        (b'{"seconds": NaN}', "must be a JSON object"),
        (b'{"a": 1, "a": 2}', "must be a JSON object"),
        (b"{" + b" " * 2**24 + b"}", "must have at most 16,777,216 bytes"),
        (b"", "must be a JSON object"),
    ],
)
def test_other_files_are_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    path, out = tmp_path / "bad.json", tmp_path / "r.html"
    path.write_bytes(content)
    good = ROOT / "results" / "rank-16x16.json"
    result = call("report", good, path, "--out", out)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"{path} {words}" in result.stderr
    assert not out.exists()


def test_typos_and_places_are_told(tmp_path: Path) -> None:
    good = ROOT / "results" / "rank-16x16.json"
    out = tmp_path / "r.html"
    link = tmp_path / "link.json"
    link.symlink_to(good)
    for arguments, words in (
        ((tmp_path / "typo.json", "--out", out), "typo.json: No such file"),
        ((tmp_path, "--out", out), "must be a regular file, it is a folder"),
        ((good, link, "--out", out), "link.json is given twice, also as "),
        ((good, "--out", tmp_path / "r.json"), "the report must be an .html file"),
        ((good, "--out", tmp_path / "no" / "r.html"), "there is no folder"),
        (("--out", out), "RUN"),
    ):
        result = call("report", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert not out.exists()


def test_a_page_is_not_replaced(tmp_path: Path) -> None:
    good, out = ROOT / "results" / "rank-16x16.json", tmp_path / "r.html"
    result = call("report", good, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"report: {out}\n")
    before = out.read_bytes()
    result = call("report", ROOT / "results" / "theorem31.json", "--out", out)
    assert (result.exit_code, out.read_bytes()) == (2, before)
    assert "there is one already: give another path, or say --overwrite" in result.stderr
    result = call("report", ROOT / "results" / "theorem31.json", "--out", out, "--overwrite")
    assert result.exit_code == 0
    assert out.read_bytes() != before


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Generator[Browser]:
    if find_chromium() is None:
        pytest.skip("there is no chromium: .ci/run installs Debian's")
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages on the disk: each kind, and one of several runs."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, record in made.items():
        write_record(folder / f"{name}.json", record)
        found[name] = [folder / f"{name}.json"]
    for name in ("rank-16x16", "theorem31", "table1-v-2k"):
        found[name] = [ROOT / "results" / f"{name}.json"]
    found["several"] = [paths[0] for paths in found.values()]
    for name, paths in found.items():
        Report.prepare(paths, folder / f"{name}.html").write(folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in found}


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_are_shown(width: int, browser: Browser, pages: dict[str, Path]) -> None:
    for name, path in pages.items():
        tab = Tab(browser, path, width)
        assert tab.errors() == [], name
        assert tab.value("innerWidth") == width
        assert tab.value("document.documentElement.scrollWidth") <= width, name
        assert tab.value("document.body.scrollWidth") <= width, name
        assert tab.value("document.title")
        # One of the two drawings of every plot is seen, and it is not empty.
        seen = "[...document.querySelectorAll('svg.curve')].filter(s => s.getClientRects().length)"
        count = tab.value("document.querySelectorAll('svg.curve').length")
        assert tab.value(f"{seen}.length") == count / 2 > 0
        assert tab.value(f"{seen}.every(s => s.getBoundingClientRect().height > 100)")
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert tab.value(broken) == 0


def test_what_is_shown_is_the_record(
    browser: Browser, pages: dict[str, Path], made: dict[str, Any]
) -> None:
    texts = "[...document.querySelectorAll('th, td')].map(c => c.textContent)"
    cells = Tab(browser, pages["table1"], 390).value(texts)
    for column in made["table1"]["columns"]:
        assert has_rows(cells, expected_cells(made["table1"], column))
    record = json.loads((ROOT / "results" / "table1-v-2k.json").read_text("utf-8"))
    cells = Tab(browser, pages["table1-v-2k"], 1280).value(texts)
    assert has_rows(cells, expected_cells(record, record["columns"][0]))
    assert cells[cells.index("3") :][:4] == ["3", "39.30", "40.94", "−1.64 ± 1.54"]
    text = Tab(browser, pages["table1"], 390).value("document.body.innerText")
    environment = made["table1"]["environment"]
    for words in (environment["command"], environment["started"], environment["machine"]["cpu"]):
        assert words in text


def test_plots_answer(browser: Browser, pages: dict[str, Path]) -> None:
    tab = Tab(browser, pages["table1-v-2k"], 1280)
    place = tab.value(
        "(() => { const m = document.querySelector('svg.wide .series-0 .mark');"
        "m.scrollIntoView({block: 'center'}); const r = m.getBoundingClientRect();"
        "return [r.left + r.width / 2, r.top + r.height / 2] })()"
    )
    tip = "[document.querySelector('.tip').hidden, document.querySelector('.tip').textContent]"
    assert tab.value(tip) == [True, ""]

    def move(x: float, y: float) -> None:
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    move(place[0] + 12, place[1] + 12)  # near is enough
    assert tab.value(tip) == [False, "Test images, depth 3: 39.30 % ± 1.54"]
    assert tab.value("document.querySelectorAll('.lit').length") == 1
    inside = "(() => { const r = document.querySelector('.tip').getBoundingClientRect();"
    assert tab.value(f"{inside} return r.left >= 0 && r.right <= innerWidth && r.top >= 0 }})()")
    move(2, 2)
    assert tab.value(tip)[0] is True
    assert tab.value("document.querySelectorAll('.lit').length") == 0

    tab.value("document.querySelector('svg.wide').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        for kind in ("rawKeyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)
    first = tab.value("document.querySelector('svg.wide .mark').dataset.tip")
    assert tab.value(tip) == [False, first]
    tab.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Escape", code="Escape")
    assert tab.value(tip)[0] is True
    assert tab.errors() == []


def test_cells_of_the_matrix_answer(browser: Browser, pages: dict[str, Path]) -> None:
    tab = Tab(browser, pages["table1"], 390)
    told = tab.value(
        "(() => { const m = document.querySelectorAll('.matrix .cell')[7];"
        "m.scrollIntoView({block: 'center'}); const r = m.getBoundingClientRect();"
        "return [r.left + r.width / 2, r.top + r.height / 2, m.dataset.tip] })()"
    )
    assert re.fullmatch(r"0 and 7: 0\.\d+", told[2])
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=told[0], y=told[1])
    assert tab.value("document.querySelector('.tip').textContent") == told[2]


def test_light_dark_and_paper(browser: Browser, pages: dict[str, Path]) -> None:
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    found = [
        [
            int(part)
            for colour in Tab(browser, pages["table1"], 390, dark=dark).value(colours)
            for part in re.findall(r"\d+", colour)[:3]
        ]
        for dark in (False, True)
    ]
    light, dark = found
    assert min(light[:3]) > 200 > 60 > max(light[3:])
    assert max(dark[:3]) < 60 < 200 < min(dark[3:])
    tab = Tab(browser, pages["table1"], 1280)
    content = base64.b64decode(tab.call("Page.printToPDF", printBackground=True)["data"])
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 1


def test_means_without_a_standard_error(tmp_path: Path) -> None:
    record = json.loads((ROOT / "results" / "theorem31.json").read_text("utf-8"))
    record["means"][0]["largest"] = None
    (tmp_path / "r.json").write_text(json.dumps(record), "utf-8")
    row = Report.prepare([tmp_path / "r.json"], tmp_path / "r.html").text.partition("<h2>Means")[2]
    assert "–" in row.partition("</tr>")[2].partition("</tr>")[0]
    assert f"| {record['means'][0]['relative_error']:.2%} | - |" in to_markdown(record)
