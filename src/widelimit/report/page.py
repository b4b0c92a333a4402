"""Pages: HTML that needs nothing but itself, and the pieces that all of them are made of.

Everything that comes from a user or a file goes through `html.escape`; a page forbids itself, by
its content security policy, to load anything, and to run anything but the script that it has.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Sequence
from html import escape
from importlib import resources

from widelimit.experiments.environment import Environment

__all__ = [
    "FOOTER",
    "compact",
    "document",
    "environment_facts",
    "facts",
    "kernel_name",
    "notice",
    "result_table",
    "signed",
    "tiles",
]

# With hyphens at which no line breaks.
_KERNELS = {"v": "CNTK‑V", "gap": "CNTK‑GAP", "lap4": "CNTK‑LAP(4)"}

FOOTER = """<footer>widelimit: exact kernels of infinitely wide networks. After Arora, Du, Hu, Li,
Salakhutdinov and Wang, <i>On Exact Computation with an Infinitely Wide Neural Net</i>, NeurIPS
2019.</footer>"""


def document(title: str, sections: Sequence[str]) -> str:
    """Return a page.

    Parameters
    ----------
    title : str
        Text.
    sections : sequence of str
        HTML.

    Returns
    -------
    str
        HTML: inline style, inline SVG and PNG, one inline script, which shows what a plot has under
        the pointer, and no address of anything outside.
    """
    style, script = _read("style.css"), _read("plots.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            *sections,
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def notice(lines: Sequence[str]) -> str:
    """Return what a reader must know, text, in a frame; nothing if there is nothing."""
    told = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<aside class="notice">{told}</aside>' if lines else ""


def tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    """Return large numbers: HTML of the number, what it is, and what is small below it."""
    drawn = "".join(
        f'<li class="tile"><b>{number}</b><span>{escape(text)}</span>'
        f"<small>{escape(small)}</small></li>"
        for number, text, small in entries
    )
    return f'<ul class="tiles">{drawn}</ul>'


def result_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: Sequence[Collection[int]] | None = None,
    words: Collection[int] = (),
) -> str:
    """Return a table that scrolls by itself where it is too wide.

    Parameters
    ----------
    heads : sequence of str
        HTML.
    rows : sequence of sequence of str
        HTML; the first cell names the row.
    best : sequence of collection of int, optional
        For each row the cells that are bold.
    words : collection of int
        Columns of words, not of numbers.
    """
    kinds = [' class="words"' if j in words else "" for j in range(len(heads))]
    pairs = zip(heads, kinds, strict=True)
    head = "".join(f'<th scope="col"{kind}>{cell}</th>' for cell, kind in pairs)
    body = ""
    for i, (name, *cells) in enumerate(rows):
        bold: Collection[int] = best[i] if best is not None else ()
        drawn = "".join(
            f'<td class="best">{cell}</td>' if j in bold else f"<td{kinds[j]}>{cell}</td>"
            for j, cell in enumerate(cells, 1)
        )
        body += f'<tr><th scope="row">{name}</th>{drawn}</tr>'
    return f"""<div class="scroll"><table class="results">
<thead><tr>{head}</tr></thead>
<tbody>{body}</tbody>
</table></div>"""


def facts(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Return a section of names and values, HTML; those without a value are left out."""
    entries = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    return f"<section>\n<h2>{escape(title)}</h2>\n<dl>{entries}</dl>\n</section>"


def environment_facts(environment: Environment) -> list[tuple[str, str]]:
    """Return command, time, code, machine and versions of a run, as HTML for `facts`."""
    commit = "unknown"
    if environment.commit is not None:
        commit = environment.commit[:12] + (", with changes" if environment.dirty else "")
    machine = environment.machine
    plural = "" if machine.cores_usable == 1 else "s"
    packages = [f"{name} {version}" for name, version in machine.packages.items() if version]
    return [
        ("Command", f"<code>{escape(environment.command)}</code>"),
        ("Started", escape(environment.started)),
        ("Code", f"widelimit {escape(environment.version)}, commit <code>{escape(commit)}</code>"),
        (
            "Machine",
            f"{escape(machine.cpu)}, {machine.cores_usable} processor{plural}, "
            f"{escape(machine.system)}",
        ),
        ("Versions", escape(", ".join([machine.python, *packages]))),
    ]


def kernel_name(readout: str) -> str:
    """Return the name of a kernel, by its readout as records have it."""
    return _KERNELS.get(readout, readout)


def signed(value: float, digits: int = 2, *, plus: bool = False) -> str:
    """Write a number with the sign of mathematics."""
    return f"{value:{'+' if plus else ''}.{digits}f}".replace("-", "−")


def compact(count: int) -> str:
    """Write a large number in HTML: 4.00 million."""
    for size, unit in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= (size if size == 1000 else 0.9995 * size):
            return f"{count / size:.3g}<i>{unit}</i>"
    return str(count)


def _read(name: str) -> str:
    return resources.files("widelimit.report").joinpath(name).read_text("utf-8")
