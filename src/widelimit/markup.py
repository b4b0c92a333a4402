"""Pieces of HTML, as notebooks and the report show them.

Whatever comes in as text is escaped. Colours are those of the page around, or see-through, so that
all of it can be read on light and dark ones.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray

__all__ = ["bar_of", "boxes", "facts", "image", "lines", "table", "to_data_uri", "to_png"]

_EDGE = "1px solid rgba(128,128,128,.45)"
_CELL = "text-align:left;padding:.15em .8em .15em 0;vertical-align:top"
BLUE, ORANGE, GREY = "rgba(0,114,178,.22)", "rgba(230,159,0,.3)", "rgba(128,128,128,.18)"
_LINES = "#0072b2", "#e69f00", "#888888", "#cc79a7"
_MOST_STEPS = 200


def table(title: str, rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return a table with a title; cells are HTML, the title and the heads are text."""
    heads = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div style="overflow-x:auto"><b>{escape(title)}</b>'
        f'<table style="border-collapse:collapse;margin:.3em 0">'
        f"{f'<thead><tr>{heads}</tr></thead>' if head else ''}<tbody>{body}</tbody></table></div>"
    )


def facts(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and values, both text; those without a value are left out."""
    return table(title, [(f"<i>{escape(name)}</i>", escape(text)) for name, text in rows if text])


def boxes(entries: Sequence[tuple[str, str, str]]) -> str:
    """Return boxes in a row with arrows between them, of (text, colour, hint) each."""
    drawn = [
        f'<span title="{escape(hint)}" style="display:inline-block;border:{_EDGE};'
        f"border-radius:5px;background:{colour};padding:.15em .55em;margin:.15em 0;"
        f'white-space:nowrap">{escape(text)}</span>'
        for text, colour, hint in entries
    ]
    return f'<div style="line-height:2;font-size:.92em">{" → ".join(drawn)}</div>'


def bar_of(share: float) -> str:
    """Return a bar with the length of a share, -1 to 1: blue above 0, orange below."""
    colour = "#0072b2" if share >= 0 else "#e69f00"
    return (
        f'<span style="display:inline-block;height:.65em;width:{6 * min(abs(share), 1.0):.2f}em;'
        f'background:{colour}"></span>'
    )


def image(uri: str, height: int, hint: str = "") -> str:
    """Return a picture so many pixels high, from `to_data_uri` or `lines`."""
    return (
        f'<img src="{uri}" height="{height}" alt="{escape(hint)}" '
        f'title="{escape(hint)}" style="image-rendering:pixelated;margin:1px;display:inline-block">'
    )


def lines(x: FloatArray) -> str:
    """Draw one series as SVG in a data URI, a line for each channel.

    Parameters
    ----------
    x : ndarray of float64, shape (length, c)
        Any finite numbers, c of any size; beyond some hundred steps every so many-th is drawn.

    Returns
    -------
    str
    """
    x = x[:: max(1, len(x) // _MOST_STEPS), : len(_LINES)]
    low, high = float(x.min()), float(x.max())
    heights = 46.0 - 44.0 * (x - low) / ((high - low) or 1.0)
    places = np.linspace(1.0, 95.0, len(x))
    drawn = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="'
        f'{" ".join(f"{i:.1f},{j:.1f}" for i, j in zip(places, column, strict=True))}"/>'
        for colour, column in zip(_LINES, heights.T, strict=False)
    )
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 48">{drawn}</svg>'
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def to_data_uri(x: NDArray[np.float64]) -> str:
    """Encode one image as PNG in a data URI.

    Parameters
    ----------
    x : ndarray of float64, shape (h, w, c)
        As for `to_png`.

    Returns
    -------
    str
    """
    return "data:image/png;base64," + base64.b64encode(to_png(x)).decode("ascii")


def to_png(x: NDArray[np.float64], *, most: int | None = None, colours: int | None = None) -> bytes:
    """Encode one image as PNG.

    Parameters
    ----------
    x : ndarray of float64, shape (h, w, c)
        Pixels in [0, 1]; those of an image that is normalised are stretched to that. Three
        channels are shown as red, green and blue; of any other number the mean is shown in grey.
    most : int or None
        Pixels on the longer side, to which a larger image is averaged. None: as it is.
    colours : int or None
        Most of them. None: all.

    Returns
    -------
    bytes
    """
    from PIL import Image

    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        x = (x - low) / ((high - low) or 1.0)
    pixels = np.rint(255 * (x if x.shape[2] == 3 else x.mean(axis=2))).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if most is not None and max(picture.size) > most:
        ratio = most / max(picture.size)
        w, h = (max(1, round(ratio * side)) for side in picture.size)
        picture = picture.resize((w, h), Image.Resampling.BOX)
    if colours is not None and picture.mode == "RGB":
        picture = picture.quantize(colours)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()
