"""What the demo shows in a terminal while it runs and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from widelimit.experiments.record import Point, Record

__all__ = ["Bars", "make_table", "show_notes"]


class Bars:
    """One live progress bar for each stage, within a ``with`` block.

    Parameters
    ----------
    console : Console
        Without a terminal behind it, only the final state is printed.
    stages : sequence of str
        Names, in order.
    """

    def __init__(self, console: Console, stages: Sequence[str]) -> None:
        width = max(map(len, stages))
        self._progress = Progress(
            TextColumn("{task.fields[label]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {
            stage: self._progress.add_task("", total=1.0, start=False, label=stage.ljust(width))
            for stage in stages
        }

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, stage: str, share: float) -> None:
        """Show that a share from 0 to 1 of a stage is finished; any thread may call."""
        task = self._tasks[stage]
        self._progress.start_task(task)
        self._progress.update(task, completed=share)


def show_notes(console: Console, notes: Sequence[str]) -> None:
    """Show, in a frame that cannot be missed, what a reader must know about the images."""
    if notes:
        text = Text("\n".join(notes))
        console.print(Panel(text, title="Please note", border_style="yellow", title_align="left"))


def make_table(record: Record) -> Table:
    """Make the table of accuracies: a row for each size, a column for each method."""
    spread = f", mean ± standard deviation over {record.draws} draws" if record.draws > 1 else ""
    table = Table(
        title=f"Accuracy in per cent on {record.data.n_test:,} test images of "
        f"{escape(record.data.name)}{spread}",
        box=box.SIMPLE_HEAD,
        title_style="bold",
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("Training\nimages", justify="right", no_wrap=True)
    for curve in record.curves:
        first, comma, rest = curve.label.partition(", ")
        header = f"{first}\n{rest}" if comma else curve.label.replace(" ", "\n", 1)
        table.add_column(header, justify="right", no_wrap=True)
    for size, points in record.rows():
        best = max(round(point.mean, 3) for point in points)
        cells = [
            Text(_percent(point), style="bold green" if round(point.mean, 3) == best else "")
            for point in points
        ]
        table.add_row(f"{size:,}", *cells)
    return table


def _percent(point: Point) -> str:
    mean = f"{point.mean * 100:.1f}"
    return mean if point.std is None else f"{mean} ± {point.std * 100:.1f}"
