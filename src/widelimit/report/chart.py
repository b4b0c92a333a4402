"""The learning curve as SVG that takes its colours and letters from the page around it.

The vertical axis is logarithmic in the error and labelled with the accuracy: 90, 99 and 99.9 % are
equally far apart, so that what happens near the top can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from widelimit.experiments.record import Curve, Point, Record

__all__ = ["MARKERS", "draw_curves", "draw_key", "name_size"]

# Accuracies that get a label where there is room, the most wanted first.
_TICKS = (0.5, 0.9, 0.99, 0.999, 0.0, 0.8, 0.95, 0.98, 0.995, 0.998, 0.7, 0.6, 0.4, 0.2, 0.3)
_MORE_TICKS = (*(k / 100 for k in range(1, 100)), *(k / 1000 for k in range(900, 1000)))
_FEWEST_TICKS = 3  # with fewer, more of them are tried
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 54, 8, 28, 46
_LEAST_GAP = 17  # pixels between two labels of the vertical axis
_DODGE = 4.0  # pixels between curves, so that error bars do not hide each other
MARKERS = (
    '<circle r="4.6"/>',
    '<rect x="-4" y="-4" width="8" height="8"/>',
    '<path d="M0-5.6 5.6 0 0 5.6-5.6 0z"/>',
    '<path d="M0-5.2 5 4-5 4z"/>',
    '<path d="M0 5.2 5-4-5-4z"/>',
)


@dataclass(frozen=True, slots=True)
class _Axes:
    """From sizes and accuracies to pixels."""

    width: int
    height: int
    sizes: tuple[int, ...]
    lowest: float  # accuracy at the lower edge
    smallest_error: float  # at the upper edge

    def x(self, size: int) -> float:
        inner = self.width - _MARGIN_LEFT - _MARGIN_RIGHT
        first, last = math.log(self.sizes[0]), math.log(self.sizes[-1])
        # Half a step is left free on either side.
        step = inner / max(1.0, len(self.sizes))
        share = 0.5 if last == first else (math.log(size) - first) / (last - first)
        return _MARGIN_LEFT + step / 2 + share * (inner - step)

    def y(self, accuracy: float) -> float:
        inner = self.height - _MARGIN_TOP - _MARGIN_BOTTOM
        error = min(max(1.0 - accuracy, self.smallest_error), 1.0 - self.lowest)
        top, bottom = math.log(self.smallest_error), math.log(1.0 - self.lowest)
        return _MARGIN_TOP + inner * (math.log(error) - top) / (bottom - top)


def draw_curves(record: Record, *, width: int, height: int, name: str) -> str:
    """Draw all curves with error bars of one standard deviation.

    Parameters
    ----------
    record : Record
    width, height : int
        Of the drawing in pixels, at its natural size.
    name : str
        Class of the SVG element.

    Returns
    -------
    str
        One ``svg`` element. Colours are the classes ``series-0``, ``series-1`` and so on.
    """
    axes = _make_axes(record, width, height)
    parts = [
        f'<svg class="plot {escape(name)}" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Test accuracy against the number of training images; the table below has the '
        'numbers.">'
    ]
    parts += _draw_grid(axes)
    # The first curve is drawn last, above the others.
    for i, curve in reversed(list(enumerate(record.curves))):
        offset = (i - (len(record.curves) - 1) / 2) * _DODGE
        parts += _draw_curve(axes, curve, i, offset)
    return "\n".join([*parts, "</svg>"])


def draw_key(index: int) -> str:
    """Draw line and marker of one curve, for a legend: five colours, each with five markers."""
    return (
        f'<svg class="key series-{index % 5}" viewBox="0 0 34 14" width="34" height="14" '
        f'aria-hidden="true"><path class="line" d="M1 7H33"/>'
        f'<g transform="translate(17 7)" class="marker">{_marker(index)}</g></svg>'
    )


def _marker(index: int) -> str:
    return MARKERS[(index + index // 5) % len(MARKERS)]


def name_size(size: int) -> str:
    """Write a number of images: 1,280."""
    return f"{size:,}"


def _make_axes(record: Record, width: int, height: int) -> _Axes:
    points = [point for curve in record.curves for point in curve.points]
    # Half a test image: where an accuracy of 1 is drawn.
    floor = 0.5 / record.data.n_test
    low = min(point.mean - (point.std or 0.0) for point in points)
    high = max(min(1.0, point.mean + (point.std or 0.0)) for point in points)
    smallest = max(floor, (1.0 - high) * 0.8)
    lowest = max(0.0, min(1.0 - 1.15 * (1.0 - low), 1.0 - 2.0 * smallest))
    return _Axes(width, height, record.sizes, lowest, min(smallest, (1.0 - lowest) / 2))


def _draw_grid(axes: _Axes) -> list[str]:
    parts: list[str] = []
    right, bottom = axes.width - _MARGIN_RIGHT, axes.height - _MARGIN_BOTTOM
    for tick in _choose_ticks(axes):
        y = axes.y(tick)
        parts.append(f'<path class="grid" d="M{_MARGIN_LEFT} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{_MARGIN_LEFT - 8}" y="{y + 4:.1f}" '
            f'text-anchor="end">{tick * 100:g} %</text>'
        )
    free = math.inf  # left of what has been labelled so far; the largest size always is
    for size in reversed(axes.sizes):
        x, half = axes.x(size), 3.6 * len(name_size(size))
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
        if x + half + 5.0 <= free:
            free = x - half
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 19}" '
                f'text-anchor="middle">{name_size(size)}</text>'
            )
    parts.append(f'<path class="axis" d="M{_MARGIN_LEFT} {bottom}H{right}"/>')
    parts.append('<text class="title" x="0" y="14">correct test images</text>')
    parts.append(
        f'<text class="title" x="{(_MARGIN_LEFT + right) / 2:.0f}" y="{axes.height - 6}" '
        'text-anchor="middle">training images</text>'
    )
    return parts


def _choose_ticks(axes: _Axes) -> list[float]:
    chosen: list[float] = []
    for i, tick in enumerate((*_TICKS, *_MORE_TICKS)):
        if i >= len(_TICKS) and len(chosen) >= _FEWEST_TICKS:
            break
        inside = axes.lowest <= tick <= 1.0 - axes.smallest_error
        if inside and all(abs(axes.y(tick) - axes.y(other)) >= _LEAST_GAP for other in chosen):
            chosen.append(tick)
    return sorted(chosen)


def _draw_curve(axes: _Axes, curve: Curve, index: int, offset: float) -> list[str]:
    places = [(axes.x(p.size) + offset, axes.y(p.mean), p) for p in curve.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    parts = [f'<g class="series-{index % 5}">', f'<polyline class="line" points="{line}"/>']
    parts += [_draw_bar(axes, x, point) for x, _, point in places if point.std is not None]
    marker = _marker(index)
    for x, y, point in places:
        title = f"{curve.label}, {name_size(point.size)} images: {point.mean * 100:.1f} %"
        if point.std is not None:
            title += f" ± {point.std * 100:.1f}"
        parts.append(
            f'<g class="marker mark" transform="translate({x:.1f} {y:.1f})">{marker}'
            f"<title>{escape(title)}</title></g>"
        )
    return [*parts, "</g>"]


def _draw_bar(axes: _Axes, x: float, point: Point) -> str:
    std = point.std or 0.0
    low, high = axes.y(max(0.0, point.mean - std)), axes.y(min(1.0, point.mean + std))
    caps: Sequence[float] = (low, high)
    return f'<path class="bar" d="M{x:.1f} {low:.1f}V{high:.1f}' + (
        "".join(f"M{x - 3:.1f} {cap:.1f}h6" for cap in caps) + '"/>'
    )
