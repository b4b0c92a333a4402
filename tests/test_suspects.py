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
