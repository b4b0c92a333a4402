"""`widelimit report`: one page of the records of several runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from widelimit.files import check_file, write_atomically
from widelimit.reading import read_json, refusing
from widelimit.report import comparison_page, finite_page, learning, rank_page, table1_page
from widelimit.report.page import FOOTER, document
from widelimit.report.shapes import check

__all__ = ["Report"]

_MOST = 2**24  # bytes of a record: those of this repository have fewer than 2**18
_KICKER = "widelimit report"


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of records: what they look like, and how a page is made of one.

    Parameters
    ----------
    shape : dict
        For `check`.
    read : callable
        From what has this shape to what the others take.
    title_of, sections_of : callable
    """

    shape: dict[str, Any]
    read: Callable[[Any], Any]
    title_of: Callable[[Any], str]
    sections_of: Callable[..., list[str]]


def _as_it_is(content: Any) -> Any:
    return content


_TABLE1 = (table1_page.title_of, table1_page.sections_of)
_FINITE = _Kind(finite_page.SHAPE, _as_it_is, finite_page.title_of, finite_page.sections_of)
_KINDS = {
    "widelimit.table1/2": _Kind(table1_page.SHAPE, _as_it_is, *_TABLE1),
    "widelimit.table1/1": _Kind(table1_page.FIRST_SHAPE, table1_page.updated, *_TABLE1),
    "widelimit.rank/1": _Kind(
        rank_page.SHAPE, _as_it_is, rank_page.title_of, rank_page.sections_of
    ),
    "widelimit.learning_curve/1": _Kind(
        learning.SHAPE, learning.record_of, learning.title_of, learning.sections_of
    ),
    "widelimit.theorem31/1": _FINITE,
    "widelimit.theorem32/1": _FINITE,
    "widelimit.weakly_trained/1": _FINITE,
}
for _name, _shape in (
    ("table1_cnn", comparison_page.CNN_SHAPE),
    ("table2", comparison_page.RANDOM_SHAPE),
    ("readouts", comparison_page.READOUTS_SHAPE),
    ("myrtle", comparison_page.MYRTLE_SHAPE),
):
    _KINDS[f"widelimit.{_name}/1"] = _Kind(
        _shape, _as_it_is, comparison_page.title_of, comparison_page.sections_of
    )
_FINITE_KEYS = {"decays", "training", "weakly_trained"}  # of records from before these had a format


@dataclass(frozen=True, slots=True)
class _Run:
    title: str
    sections: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """A page that is ready to be written.

    Parameters
    ----------
    text : str
        HTML.
    """

    text: str

    @classmethod
    def prepare(cls, runs: Sequence[Path], out: Path, *, overwrite: bool = False) -> Report:
        """Read records, make the page, and check that it can be written.

        Parameters
        ----------
        runs : sequence of Path
            Records of ``widelimit reproduce``, ``rank`` and ``demo``: ``.json`` files.
        out : Path
            Of the page, an ``.html`` file.
        overwrite : bool
            Whether a page that is there is replaced.

        Raises
        ------
        OSError
            If a record cannot be read or the page will not be written.
        ValueError
            If a file is no such record, or is given twice, or the page is no .html file.
        """
        if out.suffix not in (".html", ".htm"):
            raise ValueError(f"the report must be an .html file, got {out}")
        check_file(out, replace=overwrite)
        known: dict[str, Path] = {}
        for path in runs:
            real = os.path.realpath(path)
            if real in known:
                raise ValueError(f"{path} is given twice, also as {known[real]}: leave one out")
            known[real] = path
        kickers = [f"Run {i}" for i in range(1, len(runs) + 1)] if len(runs) > 1 else [_KICKER]
        return cls(_page([_read(*one) for one in zip(runs, kickers, strict=True)]))

    def write(self, path: Path) -> None:
        """Write the page: there completely, or not at all."""
        write_atomically(path, self.text)


def _read(path: Path, kicker: str) -> _Run:
    content = read_json(path, _MOST)
    name = content.get("format")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None and _FINITE_KEYS & content.keys():
        kind = _FINITE
    if kind is None:
        of = "has no format" if name is None else f"has the format {name!r:.60}"
        raise ValueError(
            f"{path} must be a record of widelimit reproduce, rank or demo, it {of} (known: "
            f"{', '.join(_KINDS)}): is it the right file, and of this version?"
        )
    with refusing(f"{path} must be a record of widelimit", "is it damaged?"):
        record = kind.read(check(content, kind.shape))
        beside = f"<code>{escape(path.name)}</code>"
        return _Run(kind.title_of(record), kind.sections_of(record, kicker=kicker, beside=beside))


def _page(runs: Sequence[_Run]) -> str:
    if len(runs) == 1:
        return document(runs[0].title, [*runs[0].sections, FOOTER])
    title = "The paper’s experiments"
    entries = "".join(
        f'<li><a href="#run-{i}">{escape(run.title)}</a></li>' for i, run in enumerate(runs, 1)
    )
    head = f"""<header>
<p class="kicker">{_KICKER}</p>
<h1>{title}</h1>
<p class="lede">{len(runs)} runs.</p>
<nav><ol>{entries}</ol></nav>
</header>"""
    articles = [
        "\n".join([f'<article id="run-{i}">', *run.sections, "</article>"])
        for i, run in enumerate(runs, 1)
    ]
    return document(title, [head, *articles, FOOTER])
