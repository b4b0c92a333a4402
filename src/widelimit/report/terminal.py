"""What the demo shows in a terminal: notes before it runs, and a table when it ends."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from widelimit.experiments.record import Point, Record

__all__ = ["make_tables", "show_notes"]


def show_notes(console: Console, notes: Sequence[str]) -> None:
    """Show, in a frame that cannot be missed, what a reader must know about the images."""
    if notes:
        text = Text("\n".join(notes))
        console.print(Panel(text, title="Please note", border_style="yellow", title_align="left"))


def make_tables(record: Record, console: Console) -> list[Table]:
    """Make the table of accuracies: a row for each size, a column for each method.

    Where the console is too narrow for all columns, the table is cut into several.
    """
    tables: list[Table] = []
    endless = console.options.update(max_width=1_000)
    for count in range(len(record.curves), 0, -1):
        starts = range(0, len(record.curves), count)
        tables = [_make_table(record, slice(start, start + count)) for start in starts]
        if all(console.measure(t, options=endless).maximum <= console.width for t in tables):
            break
    return tables


def _make_table(record: Record, shown: slice) -> Table:
    """Make the table of some of the methods; the first has the title."""
    spread = f", mean ± standard deviation over {record.draws} draws" if record.draws > 1 else ""
    title = (
        f"Accuracy in per cent on {record.data.n_test:,} test images of "
        f"{escape(record.data.name)}{spread}"
    )
    table = Table(
        title=None if shown.start else title,
        box=box.SIMPLE_HEAD,
        title_style="bold",
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("Training\nimages", justify="right", no_wrap=True)
    for curve in record.curves[shown]:
        first, comma, rest = curve.label.partition(", ")
        header = f"{first}\n{rest}" if comma else curve.label.replace(" ", "\n", 1)
        table.add_column(header, justify="right", no_wrap=True)
    for size, points in record.rows():
        best = max(round(point.mean, 3) for point in points)
        cells = [
            Text(_percent(point), style="bold green" if round(point.mean, 3) == best else "")
            for point in points[shown]
        ]
        table.add_row(f"{size:,}", *cells)
    return table


def _percent(point: Point) -> str:
    mean = f"{point.mean * 100:.1f}"
    return mean if point.std is None else f"{mean} ± {point.std * 100:.1f}"
