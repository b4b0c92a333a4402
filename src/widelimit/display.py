"""How far work is: bars on a terminal and in a notebook, plain lines elsewhere.

Every function that takes ``progress`` shows it with `shown`: True is this display, on standard
error; a callable is given the state itself, whatever that is; False is silence.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # rich is imported when there is something to show
    from rich.console import Console

__all__ = ["Display", "check_progress", "duration", "read_duration", "share_alone", "shown"]

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PAUSE = 10.0  # seconds between two lines
_REDRAWN = 0.2  # seconds between two pictures of a bar in a notebook
_BAR = (8, 40)  # columns of a bar: with less room than the first there is none
_TEXT = (26, 76)  # columns beside it: for times, and for what is said of a stage without a name

State = TypeVar("State")


def duration(seconds: float) -> str:
    """Write a time: ``0.4 s``, ``42 s``, ``3 min 07 s``, ``1 h 01 min``."""
    if seconds < 9.95:
        return f"{max(0.0, round(seconds, 1)):g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def read_duration(text: str) -> float:
    """Return seconds for ``90s``, ``30min``, ``1.5h`` or ``2d``.

    Raises
    ------
    ValueError
        If it is none of these, or 0.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:[.][0-9]{1,9})?) ?(s|min|h|d)", text.strip())
    seconds = 0.0 if found is None else float(found[1]) * _UNITS[found[2]]
    if not seconds:
        raise ValueError(f"a time must be a number and s, min, h or d, as in 30min, got {text!r}")
    return seconds


@dataclass(slots=True)
class _Stage:
    """What is known of a stage; as a string, what is shown beside its bar.

    Times are those of a clock that nobody can set.
    """

    name: str
    share: float = 0.0
    text: str = ""
    start: float | None = None
    told: float = 0.0  # when it was last heard of
    printed: float = 0.0  # when its last line was printed

    def __str__(self) -> str:
        if self.text or self.start is None:
            return self.text
        taken = self.told - self.start
        if self.share >= 1:
            return duration(taken)
        since = time.monotonic() - self.told
        if self.share <= 0:
            return duration(taken + since)
        left = taken * (1 - self.share) / self.share - since
        return f"{duration(taken + since)}, {duration(left)} left"

    def markup(self) -> str:
        return (
            f'<div><progress value="{self.share:.4f}" max="1"></progress> {escape(self.name)} '
            f"{int(100 * self.share)}% <small>{escape(str(self))}</small></div>"
        )

    def line(self) -> str:
        name = f"{self.name}: " if self.name else ""
        return f"{name}{'' if self.text else f'{int(100 * self.share)}%, '}{self}"


class Display:
    """Shows how far the stages of some work are, within a ``with`` block.

    On a terminal, and below the cell of a notebook (for which IPython is enough), a bar for each
    stage. Elsewhere lines: for a stage one every ten seconds, and one
    when it is finished.

    Parameters
    ----------
    stages : sequence of str
        Their names, in order. That of an only one may be empty: what is said of it names it.
    console : Console or None
        None: standard error.
    pause : float
        Seconds between two lines; 0 for a line each time.
    """

    def __init__(
        self, stages: Sequence[str], console: Console | None = None, *, pause: float = _PAUSE
    ) -> None:
        self._stages = {name: _Stage(name) for name in stages}
        self._console, self._pause = console, pause
        self._lock = threading.Lock()
        self._bars: Any = None
        self._cell: Any = None
        self._drawn = 0.0
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Display:
        first = next(iter(self._stages.values()))
        first.start = first.told = first.printed = time.monotonic()
        if self._file.isatty():
            self._bars = self._make_bars()
        elif self._console is None:
            self._cell = _open_cell()
        if self._bars is not None:
            try:
                self._bars.start()
            except BaseException:  # Ctrl-C: the cursor, which bars hide, must be there again
                self._bars.stop()
                raise
        return self

    def __exit__(self, *exception: object) -> None:
        # Where there was nothing to do, nothing is left on the screen.
        idle = all(stage.share == 0 for stage in self._stages.values()) and exception[0] is None
        if self._bars is not None:
            self._bars.live.transient = idle
            self._bars.stop()
        elif self._cell is not None:
            self._draw("" if idle else None)

    def show(self, name: str, share: float, text: str = "") -> None:
        """Show that a share of a stage is finished; any thread may call.

        Parameters
        ----------
        name : str
            Of the stage.
        share : float
            0 to 1.
        text : str
            What to say of it. Empty: the times that it has taken, and will take at this speed.
        """
        with self._lock:
            stage, now = self._stages[name], time.monotonic()
            if stage.start is None:
                stage.start = stage.printed = now
            ends, ended = share >= 1 > stage.share, stage.share >= 1
            stage.share, stage.text, stage.told = share, text, now
            if self._bars is not None:
                self._bars.update(self._tasks[name], completed=share)
            elif self._cell is not None:
                if ends or now - self._drawn >= _REDRAWN:
                    self._drawn = now
                    self._draw()
            elif ends or (not ended and now - stage.printed >= self._pause):
                stage.printed = now
                print(stage.line(), file=self._file, flush=True)

    def _draw(self, markup: str | None = None) -> None:
        if markup is None:
            markup = "".join(stage.markup() for stage in self._stages.values())
        self._cell.update({"text/html": markup, "text/plain": ""}, raw=True)

    @property
    def _file(self) -> Any:
        return sys.stderr if self._console is None else self._console.file

    def _make_bars(self) -> Any:
        """Return the bars, or None if the terminal cannot move its cursor."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.table import Column

        console = self._console or Console(stderr=True)
        if console.is_dumb_terminal:
            return None
        label = max(map(len, self._stages))
        room = console.width - len("100% ") - (label + 1 if label else 0)
        bar = min(room - _TEXT[not label] - 1, _BAR[1])
        if bar >= _BAR[0]:
            room -= bar + 1
        bars = Progress(
            *([TextColumn("{task.description}", markup=False)] if label else []),
            *([BarColumn(bar)] if bar >= _BAR[0] else []),
            TaskProgressColumn(),
            TextColumn(
                "{task.fields[stage]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", max_width=max(1, room)),
            ),
            console=console,
        )
        for name, stage in self._stages.items():
            # The stage itself: its string is asked for whenever the bars are drawn.
            self._tasks[name] = bars.add_task(name, total=1.0, stage=stage)
        return bars


def _open_cell() -> Any:
    """Return a place below the running cell of a notebook, to be drawn anew; None elsewhere."""
    # Where there is a notebook, IPython is there, and imported.
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:  # a console
        return None
    show: Any = sys.modules["IPython.display"]
    return show.display({"text/plain": ""}, raw=True, display_id=True)


def check_progress(progress: object) -> None:
    """Refuse what is neither True, nor False, nor a callable.

    Raises
    ------
    TypeError
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False or a callable, got {progress!r}")


def share_alone(share: float) -> tuple[float, str]:
    """Read a state that is the finished share, for `shown`."""
    return share, ""


def shown(
    progress: bool | Callable[[State], None],
    stage: str,
    read: Callable[[State], tuple[float, str]],
    *,
    pause: float = _PAUSE,
) -> AbstractContextManager[Callable[[State], None]]:
    """Return a context whose value is a function to report to, as `progress` asks for.

    Parameters
    ----------
    progress : bool or callable
        True: a `Display`. A callable is given every state. False: nothing.
    stage : str
        What is done; may be empty.
    read : callable
        From a state to the finished share, 0 to 1, and what to say of it, for the display.
    pause : float
        As for `Display`.

    Raises
    ------
    TypeError
        At once, if progress is neither.
    """
    check_progress(progress)
    return _shown(progress, stage, read, pause)


@contextmanager
def _shown(
    progress: bool | Callable[[State], None],
    stage: str,
    read: Callable[[State], tuple[float, str]],
    pause: float,
) -> Generator[Callable[[State], None]]:
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield lambda state: None
    else:
        with Display([stage], pause=pause) as display:
            yield lambda state: display.show(stage, *read(state))
