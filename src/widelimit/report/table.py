"""Tables as CSV that gives everything back, whatever the text in it, and that no spreadsheet runs.

UTF-8, lines end with a line feed; a text with commas, quotes or line breaks is in quotes. One rule
for the text that CSV cannot hold, or that a spreadsheet or a terminal would act on: a cell that
begins with ``'`` has the escapes of a Python string after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["to_cell", "to_csv"]

# Also what separates cells where a comma separates decimals. Python's csv, before 3.13, puts no
# quotes around a carriage return, and then does not read what it wrote.
_QUOTED = re.compile(r'[",;\t\r\n]|\A\s|\s\Z')
# What begins a formula, also after space, in half or full width; a number is none.
_FORMULA = re.compile(r"\s*([=@＝＋－＠]|[+-](?![0-9]{1,300}(\.[0-9]{1,300})?\Z))")
# Controls, but for a tab and the ends of lines, and what stands for bytes that are not UTF-8.
_UNFIT = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPED = re.compile(r"[\\\0-\x1f\x7f-\x9f\ud800-\udfff]")


def to_cell(text: str) -> str:
    """Return a text as it stands in a table.

    A text that begins like a formula or with ``'``, or holds controls or bytes that are not UTF-8
    (as Python reads names of files: U+DC80 to U+DCFF), has a ``'`` before it, and escapes:
    ``text = cell[1:].encode("ascii", "backslashreplace").decode("unicode_escape")``. Any other text
    stands as it is.
    """
    if not (text.startswith("'") or _FORMULA.match(text) or _UNFIT.search(text)):
        return text
    return "'" + _ESCAPED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV: strings as `to_cell` has them, anything else as `str` does."""
    return "".join(",".join(map(_written, row)) + "\n" for row in rows)


def _written(cell: object) -> str:
    text = to_cell(cell) if isinstance(cell, str) else str(cell)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
