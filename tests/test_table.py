"""Tables as CSV: whatever the text, one row is one row, and nothing is lost or run."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from widelimit.report.table import to_cell, to_csv

# Any characters, halves of surrogates among them, and more of those that matter.
TEXT = st.text(
    st.one_of(st.characters(), st.sampled_from("=+-@'\\\"\t\r\n,; 0\x1b\x85\udcff＝\\u"))
)


def text_of(cell: str) -> str:
    """As the documentation says."""
    if not cell.startswith("'"):
        return cell
    return cell[1:].encode("ascii", "backslashreplace").decode("unicode_escape")


@given(st.lists(st.lists(TEXT, min_size=2, max_size=3), max_size=4))
@example(
    [["a\rb", "a\nb", "a\r\nb"], ["\r", "\n", '"'], ["", "'", "''"], ["\\", "=\\u0041", "\udcff"]]
)
def test_everything_comes_back(rows: list[list[str]]) -> None:
    content = to_csv(rows).encode()  # UTF-8 holds all of it
    read = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert [[text_of(cell) for cell in row] for row in read] == rows


@given(TEXT)
def test_no_spreadsheet_runs_it_and_no_terminal_acts_on_it(text: str) -> None:
    cell = to_cell(text)
    assert not re.match(r"\s*[=@＝＋－＠]", cell)
    assert not re.match(r"\s*[+-]", cell) or re.fullmatch(r"\s*[+-]\d+(\.\d+)?", cell)
    assert not re.search(r"[^\t\r\n -~\u00a0-\ud7ff\ue000-\U0010ffff]", cell)
    # Nor where a semicolon or a tab separates cells: it is in quotes.
    assert not re.search("[;\t]", cell) or to_csv([[text, ""]]).startswith('"')


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("new/a b.png", "new/a b.png"),
        ("C:\\new\\é.png", "C:\\new\\é.png"),
        ("it's", "it's"),
        ("-1", "-1"),
        ("+2.5", "+2.5"),
        ("a,b", '"a,b"'),
        ('a"b', '"a""b"'),
        ("a\r", '"a\r"'),
        ("a;=b", '"a;=b"'),
        ("=1", "'=1"),
        ("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0"),
        ("-1\n", r"'-1\n"),
        ("@sum", "'@sum"),
        ("\t=1", "'\\t=1"),
        ("＝1", "'＝1"),
        ("'a", "''a"),
        ("=a\\b,c", '"\'=a\\\\b,c"'),
        ("\udcff", "'\\udcff"),
        ("\x1b]0;x\x07", '"\'\\x1b]0;x\\x07"'),
    ],
)
def test_what_is_written(text: str, written: str) -> None:
    assert (
        to_csv([[text, 18446744073709551615, "0.25"]]) == f"{written},18446744073709551615,0.25\n"
    )


def test_pandas_reads_it(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    names = ["a\rb", "a\nb", "\r\n", 'a",b', "=1", "\udcff", "'x", "a;b", "-1 "]
    (tmp_path / "t.csv").write_bytes(
        to_csv([["image", "class", "p"], *([name, 2**64 - 1, "0.5"] for name in names)]).encode()
    )
    frame = pandas.read_csv(tmp_path / "t.csv")
    assert list(map(text_of, frame["image"])) == names
    assert frame["class"].tolist() == [2**64 - 1] * len(names)
    assert frame["p"].tolist() == [0.5] * len(names)
