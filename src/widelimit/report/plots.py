"""Plots as SVG that take their colours and letters from the page around them.

Each is drawn twice, for a wide page and a narrow one, of which the style shows the one that fits.
What stands under the pointer is the title of its mark: the script of the page shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.markup import to_data_uri
from widelimit.report.chart import MARKERS, draw_key

__all__ = ["Axis", "Line", "Mark", "answers", "draw_lines", "draw_matrix", "draw_rows", "legend"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 28, 46
_DODGE = 5.0  # pixels between lines, so that error bars do not hide each other
_ROW, _SERIES = 26, 10  # pixels: of a row, and of each line in it if there are many
_LONGEST = {800: 30, 400: 22}  # characters of names, by the width of the drawing
# The colours of viridis, told apart with any colour vision, and in grey.
_VIRIDIS = (
    (0x44, 0x01, 0x54),
    (0x48, 0x28, 0x78),
    (0x3E, 0x49, 0x89),
    (0x31, 0x68, 0x8E),
    (0x26, 0x82, 0x8E),
    (0x1F, 0x9E, 0x89),
    (0x35, 0xB7, 0x79),
    (0x6E, 0xCE, 0x58),
    (0xFD, 0xE7, 0x25),
)
_MOST_NAMED = 24  # classes whose pairs answer to the pointer


@dataclass(frozen=True, slots=True)
class Mark:
    """A point: its place, the ends of its error bar, and what the pointer is told."""

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Points that belong together.

    Parameters
    ----------
    label : str
    marks : sequence of Mark
        In the order of the line.
    small : bool
        Whether the points are so many that only the line counts.
    """

    label: str
    marks: Sequence[Mark]
    small: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis.

    Parameters
    ----------
    title : str
    scale : {"linear", "log", "places"}
        "places": values are 0, 1, 2 and so on.
    names : sequence of str
        Of the places.
    unit : str
        After the numbers.
    ticks : sequence of float
        Values with a label. None given: round ones.
    """

    title: str
    scale: Literal["linear", "log", "places"] = "linear"
    names: Sequence[str] = ()
    unit: str = ""
    ticks: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels."""

    axis: Axis
    low: float
    high: float
    start: float  # pixel of low
    end: float  # of high

    def __call__(self, value: float) -> float:
        low, high = self._own(self.low), self._own(self.high)
        share = (self._own(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Return the values with a label, and the labels."""
        if self.axis.scale == "places":
            step = -(-len(self.axis.names) // most)
            return [(float(i), name) for i, name in enumerate(self.axis.names) if not i % step]
        values = self.axis.ticks
        if values:
            values = values[:: -(-len(values) // most)]
        elif self.axis.scale == "log":
            values = _decades(self.low, self.high, most)
        else:
            values = _round_numbers(self.low, self.high, most)
        return [(v, f"{_number(v)}{self.axis.unit}") for v in values]

    def _own(self, value: float) -> float:
        return math.log(value) if self.axis.scale == "log" else value


def legend(labels: Sequence[str]) -> str:
    """Return what the lines are, in the order of their colours."""
    keys = "".join(f"<li>{draw_key(i)} {escape(label)}</li>" for i, label in enumerate(labels))
    return f'<ul class="legend">{keys}</ul>'


def draw_lines(lines: Sequence[Line], x: Axis, y: Axis, label: str, *, height: int = 340) -> str:
    """Draw lines through points, with error bars where these have them.

    Parameters
    ----------
    lines : sequence of Line
        Values on logarithmic axes are above 0.
    x, y : Axis
    label : str
        What is drawn, for who does not see it.
    height : int
        In pixels, where the page is wide.

    Returns
    -------
    str
        A legend, and two ``svg`` elements.
    """
    drawn = [
        _lines(lines, x, y, label, width, tall, name)
        for width, tall, name in ((800, height, "wide"), (400, min(height, 360), "narrow"))
    ]
    keys = legend([line.label for line in lines]) if len(lines) > 1 else ""
    return "\n".join([keys, *drawn])


def draw_rows(
    names: Sequence[str], lines: Sequence[Line], x: Axis, label: str, *, zero: bool = False
) -> str:
    """Draw points in rows that have names, with horizontal error bars.

    Parameters
    ----------
    names : sequence of str
        Of the rows, from above.
    lines : sequence of Line
        The y of a mark is the place of its row.
    x : Axis
    label : str
        As for `draw_lines`.
    zero : bool
        Whether to mark 0.
    """
    drawn = [_rows(names, lines, x, label, w, zero, n) for w, n in ((800, "wide"), (400, "narrow"))]
    keys = legend([line.label for line in lines]) if len(lines) > 1 else ""
    return "\n".join([keys, *drawn])


def answers(names: Sequence[str]) -> bool:
    """Whether `draw_matrix` tells the means of classes with these names: they are not too many."""
    return 0 < len(names) <= _MOST_NAMED


def draw_matrix(
    levels: FloatArray, means: FloatArray, sides: Sequence[int], names: Sequence[str], label: str
) -> str:
    """Draw a symmetric matrix as a picture, whose classes answer to the pointer.

    Parameters
    ----------
    levels : ndarray of shape (blocks, blocks)
        From 0 to 1.
    means : ndarray of shape (classes, classes)
        What the pointer is told of two classes; nan: nothing.
    sides : sequence of int
        Blocks of each class.
    names : sequence of str
        Of the classes; none: nothing answers.
    label : str
        As for `draw_lines`.
    """
    side, room = 240.0, 76.0
    stops = np.array(_VIRIDIS) / 255
    at = np.linspace(0, 1, len(stops))
    pixels = np.stack([np.interp(levels, at, stops[:, i]) for i in range(3)], axis=-1)
    edges = np.concatenate([[0], np.cumsum(sides)]) * side / max(1, sum(sides))
    parts = [
        f'<svg class="plot matrix" viewBox="0 0 {room + side + 2:.0f} {side + 2:.0f}" role="img" '
        f'aria-label="{escape(label)}">',
        f'<image x="{room:.0f}" y="1" width="{side:.0f}" height="{side:.0f}" '
        f'preserveAspectRatio="none" href="{to_data_uri(pixels)}"/>',
    ]
    if not answers(names):
        return "\n".join([*parts, "</svg>"])
    for i, name in enumerate(names):
        middle = (edges[i] + edges[i + 1]) / 2
        parts.append(
            f'<text class="tick" x="{room - 6:.0f}" y="{middle + 4:.1f}" '
            f'text-anchor="end">{escape(_short(name, 11))}</text>'
        )
        for j, other in enumerate(names):
            if np.isfinite(means[i, j]):
                tip = f"{name} and {other}: {_number(float(means[i, j]))}"
                w, h = edges[j + 1] - edges[j], edges[i + 1] - edges[i]
                parts.append(
                    f'<rect class="mark cell" x="{room + edges[j]:.2f}" y="{edges[i] + 1:.2f}" '
                    f'width="{w:.2f}" height="{h:.2f}"><title>{escape(tip)}</title></rect>'
                )
    return "\n".join([*parts, "</svg>"])


def _lines(
    lines: Sequence[Line], x: Axis, y: Axis, label: str, width: int, height: int, name: str
) -> str:
    across = [m.x for line in lines for m in line.marks]
    up = [v for line in lines for m in line.marks for v in (m.y, m.low, m.high) if v is not None]
    right, bottom = width - _RIGHT, height - _BOTTOM
    low, high = _padded(across, x)
    to_x = _Scale(x, low, high, _LEFT, right)
    low, high = _padded(up, y)
    to_y = _Scale(y, low, high, bottom, _TOP)
    parts = _open(width, height, name, label)
    for value, text in to_y.ticks(6):
        at = to_y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(_tick(_LEFT - 8, at + 4, text, "end"))
    for value, text in to_x.ticks(width // 70):
        at = to_x(value)
        parts.append(f'<path class="axis" d="M{at:.1f} {bottom}v5"/>')
        parts.append(_tick(at, bottom + 19, text, "middle"))
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    parts.append(f'<text class="title" x="0" y="14">{escape(y.title)}</text>')
    parts.append(
        f'<text class="title" x="{(_LEFT + right) / 2:.0f}" y="{height - 6}" '
        f'text-anchor="middle">{escape(x.title)}</text>'
    )
    # The first line is drawn last, above the others.
    for i, line in reversed(list(enumerate(lines))):
        shift = 0.0 if x.scale != "places" else (i - (len(lines) - 1) / 2) * _DODGE
        places = [(to_x(m.x) + shift, to_y(m.y), m) for m in line.marks]
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in places)
        parts += [f'<g class="series-{i % 5}">', f'<polyline class="line" points="{points}"/>']
        for px, py, mark in places:
            bar = ""
            if mark.low is not None and mark.high is not None:
                ends = to_y(mark.low), to_y(mark.high)
                caps = "".join(f"M{px - 3:.1f} {end:.1f}h6" for end in ends)
                bar = f'<path class="bar" d="M{px:.1f} {ends[0]:.1f}V{ends[1]:.1f}{caps}"/>'
            parts.append(bar + _drawn(px, py, i, mark, small=line.small))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


def _rows(
    names: Sequence[str],
    lines: Sequence[Line],
    x: Axis,
    label: str,
    width: int,
    zero: bool,
    name: str,
) -> str:
    shown = [_short(text, _LONGEST[width]) for text in names]
    left = 14 + max(map(_width, shown), default=0)
    row = max(_ROW, _SERIES * (len(lines) + 1))
    right, height = width - _RIGHT, 34 + row * len(names) + _BOTTOM
    bottom = height - _BOTTOM
    values = [
        v for line in lines for m in line.marks for v in (m.x, m.low, m.high) if v is not None
    ]
    low, high = _padded([*values, 0.0] if zero else values, x)
    to_x = _Scale(x, low, high, left, right)
    parts = _open(width, height, name, label)
    for value, text in to_x.ticks(5):
        at = to_x(value)
        strong = "axis" if zero and value == 0 else "grid"
        parts.append(f'<path class="{strong}" d="M{at:.1f} 20V{bottom}"/>')
        parts.append(_tick(at, bottom + 19, text, "middle"))
    for i, text in enumerate(shown):
        y = 34 + row * (i + 0.5)
        parts.append(_tick(left - 8, y + 4, text, "end"))
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right}"/>')
    parts.append(
        f'<text class="title" x="{(left + right) / 2:.0f}" y="{height - 6}" '
        f'text-anchor="middle">{escape(x.title)}</text>'
    )
    for i, line in reversed(list(enumerate(lines))):
        shift = (i - (len(lines) - 1) / 2) * _DODGE * 1.4
        parts.append(f'<g class="series-{i % 5}">')
        for mark in line.marks:
            y, at = 34 + row * (mark.y + 0.5) + shift, to_x(mark.x)
            if mark.low is not None and mark.high is not None:
                parts.append(
                    f'<path class="bar" d="M{to_x(mark.low):.1f} {y:.1f}H{to_x(mark.high):.1f}"/>'
                )
            parts.append(_drawn(at, y, i, mark))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


def _open(width: int, height: int, name: str, label: str) -> list[str]:
    return [
        f'<svg class="plot curve {name}" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}">'
    ]


def _drawn(x: float, y: float, index: int, mark: Mark, *, small: bool = False) -> str:
    shape = '<circle r="1.8"/>' if small else MARKERS[(index + index // 5) % len(MARKERS)]
    return (
        f'<g class="marker mark" transform="translate({x:.1f} {y:.1f})">{shape}'
        f"<title>{escape(mark.tip)}</title></g>"
    )


def _tick(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _padded(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    """Return the ends of an axis, with some room beyond the values."""
    if axis.scale == "places":
        return -0.5, max(len(axis.names), 1) - 0.5
    low, high = min(values), max(values)
    if axis.scale == "log":
        room = max((high / low) ** 0.05, 1.05)
        return low / room, high * room
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _decades(low: float, high: float, most: int) -> list[float]:
    """Return 1, 2, 5, 10, ... if there are few, or 1, 10, 100, ..., or every so many of these."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = [10.0**e for e in range(first, last + 1)]
    for values in ([k * one for one in decades for k in (1, 2, 5)], decades):
        inside = [value for value in values if low <= value <= high]
        if len(inside) <= most:
            return inside
    return inside[:: -(-len(inside) // most)]


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [k * step for k in range(first, last + 1)]


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return f"{value:,.4g}".replace("-", "−") if abs(value) < 1e4 else f"{value:,.0f}"


def _width(text: str) -> float:
    """Return about how many pixels a tick's text takes, rather more: capitals are wide."""
    return sum(9.0 if letter.isupper() else 6.6 for letter in text)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
