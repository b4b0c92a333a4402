"""`widelimit suspects`: images whose labels are wrong, by the names of their files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

import widelimit as wl
from widelimit.cli import app


def test_wrong_labels_are_named_in_a_table_and_a_sheet(tmp_path: Path) -> None:
    data, rng = wl.load_dataset("digits"), np.random.default_rng(0)
    for label in (0, 1):
        folder = tmp_path / "digits-01" / ["<zero>", "=one"][label]
        folder.mkdir(parents=True)
        places = rng.permutation(np.flatnonzero(data.y_train == label))[:20]
        for k, place in enumerate(places):
            pixels = (data.x_train[place, ..., 0] * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
    folder = tmp_path / "digits-01"
    (folder / "<zero>" / "7.png").rename(folder / "=one" / "wrong.png")
    words = ["suspects", str(folder), "--net", "cntk-gap-3", "--ridge", "1e-3"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "s")])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("=one/wrong.png: =one (")
    assert "rather <zero> (" in lines[0]
    sheet = tmp_path / "s" / "suspects.html"
    assert lines[-1].endswith(
        f"of 40 images are suspects: {sheet}, and {sheet.with_suffix('.csv')}"
    )

    table = (tmp_path / "s" / "suspects.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert rows[0]["image"] == "'=one/wrong.png"  # no formula of a spreadsheet
    assert rows[0]["suggested"] == "<zero>"
    assert float(rows[0]["probability of label"]) < 0.5 < float(rows[0]["probability of suggested"])
    page = (tmp_path / "s" / "suspects.html").read_text()
    assert "could not be judged" not in page + result.stdout
    assert page.count("<img") == len(rows)
    assert "&lt;zero&gt;" in page
    assert "<zero>" not in page
    assert "default-src 'none'" in page


def test_images_without_files_have_numbers(tmp_path: Path) -> None:
    data = wl.load_dataset("digits")
    y = data.y_train[:60].copy()
    y[5] = (y[5] + 1) % 10
    np.savez(tmp_path / "d.npz", x=data.x_train[:60], y=y)
    words = ["suspects", str(tmp_path / "d.npz"), "--net", "cntk-gap-3", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "image 5: " in result.stdout
    code = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "d.npz" / "x")]).exit_code
    assert code == 2


def test_what_is_alone_in_its_class_is_no_suspect(tmp_path: Path) -> None:
    """Without it there is no example of its class; a copy of it is none, either."""
    data = wl.load_dataset("digits")
    for count, said in ((1, "1 could not be judged: it is alone in its class"), (2, "2 could not")):
        places = [*np.flatnonzero(data.y_train < 2)[:20], *[np.argmax(data.y_train == 7)] * count]
        y = data.y_train[places]
        y[3] = 1 - y[3]
        np.savez(tmp_path / "d.npz", x=data.x_train[places], y=y)
        words = ["suspects", str(tmp_path / "d.npz"), "--net", "cntk-gap-3", "--overwrite"]
        result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
        assert result.exit_code == 0, result.stderr
        assert "image 3: " in result.stdout
        assert "image 20: " not in result.stdout
        assert f"of {20 + count} images {said}" in result.stdout
        assert f"Of all images {said}" in (tmp_path / "suspects.html").read_text()
        assert "image 20" not in (tmp_path / "suspects.csv").read_text()


def test_warnings_have_the_names_of_classes(tmp_path: Path) -> None:
    """As text they have another order than as numbers."""
    data = wl.load_dataset("digits")
    places = [*np.flatnonzero(data.y_train < 2)[:20], np.argmax(data.y_train == 7)]
    y = np.where(data.y_train[places] == 0, 2, 10)
    y[3] = 12 - y[3]
    y[-1] = 7
    np.savez(tmp_path / "d.npz", x=data.x_train[places], y=y)
    words = ["suspects", str(tmp_path / "d.npz"), "--net", "cntk-gap-3", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "1 of 3 classes have one distinct sample, '7': " in result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("image 3: "))
    assert line.startswith(f"image 3: {y[3]} (")
    assert f", rather {12 - y[3]} (" in line


def test_rows_of_a_divided_table_have_their_places_in_the_file(tmp_path: Path) -> None:
    """As `predict` has them; and what is not looked at is said."""
    rng = np.random.default_rng(0)
    labels = ["x" if k % 4 < 2 else "y" for k in range(40)]
    rows = [
        f"{rng.normal(9.0 * (labels[k] == 'y'))},{rng.normal()},{['train', 'test'][k % 2]},"
        f"{'y' if k == 20 else labels[k]}\n"
        for k in range(40)
    ]
    path = tmp_path / "sp.csv"
    path.write_text("a,b,split,label\n" + "".join(rows))
    words = ["suspects", str(path), "--out", str(tmp_path / "s")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("sp.csv[20]: y (")
    assert lines[-2] == "left out: 20 test rows of the data"
    assert " of 20 rows are suspects: " in lines[-1]
    page = (tmp_path / "s" / "suspects.html").read_text()
    assert "20 test rows were left out" in page
    assert "sp.csv[20]" in (tmp_path / "s" / "suspects.csv").read_text()
    data = wl.load_dataset(path)
    assert data.files_train == tuple(f"sp.csv[{k}]" for k in range(0, 40, 2))
    assert data.files_test == tuple(f"sp.csv[{k}]" for k in range(1, 40, 2))
    model = tmp_path / "m"
    assert CliRunner().invoke(app, ["fit", str(path), "--out", str(model)]).exit_code == 0
    result = CliRunner().invoke(app, ["predict", str(model), str(path)])
    assert [line for line in result.stdout.splitlines() if f"{path}[20]" in line]
