"""How far a Gram matrix is: for a callback, a live bar, or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

__all__ = ["Display", "Progress", "Tracker"]

_LINE_SECONDS = 10.0  # between two lines where there is no terminal


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a run of `gram`.

    Parameters
    ----------
    tiles, tiles_total : int
        Finished tiles, those that were there before included, and all of them.
    tiles_found : int
        Those that were there before.
    pairs, pairs_total : int
        Pairs of inputs that this run has computed, and that it has to compute.
    seconds : float
        Since this run began.
    pairs_per_second, element_layers_per_second : float
        Of this run; an element-layer is one entry of one slice through one layer.
    seconds_left : float or None
        At this speed; None before there is one.
    """

    tiles: int
    tiles_total: int
    tiles_found: int
    pairs: int
    pairs_total: int
    seconds: float
    pairs_per_second: float
    element_layers_per_second: float
    seconds_left: float | None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {_duration(self.seconds_left)} left"
        return (
            f"{self.tiles:,} of {self.tiles_total:,} tiles, {_rate(self.pairs_per_second)} "
            f"pairs/s, {_rate(self.element_layers_per_second)} element-layers/s{left}"
        )


class Tracker:
    """Counts what is done. Takes time from a clock that nobody can set."""

    def __init__(
        self, tiles_total: int, tiles_found: int, pairs_total: int, element_layers: int
    ) -> None:
        self._tiles_total, self._tiles_found = tiles_total, tiles_found
        self._pairs_total, self._element_layers = pairs_total, element_layers
        self._tiles = tiles_found
        self._pairs = 0.0
        self._start = time.monotonic()

    def add(self, pairs: float, tiles: int) -> Progress:
        """Count pairs and finished tiles; return the new state."""
        self._pairs = min(self._pairs + pairs, self._pairs_total)
        self._tiles += tiles
        seconds = time.monotonic() - self._start
        rate = self._pairs / seconds if seconds > 0 else 0.0
        return Progress(
            self._tiles,
            self._tiles_total,
            self._tiles_found,
            round(self._pairs),
            self._pairs_total,
            seconds,
            rate,
            rate * self._element_layers,
            (self._pairs_total - self._pairs) / rate if rate else None,
        )


class Display:
    """Shows progress within a ``with`` block: a bar on a terminal, plain lines elsewhere.

    Parameters
    ----------
    progress : bool or callable
        True: on standard error. A callable is given every `Progress`. False: nothing.
    """

    def __init__(self, progress: bool | Callable[[Progress], None]) -> None:
        if not isinstance(progress, bool) and not callable(progress):
            raise TypeError(f"progress must be True, False or a callable, got {progress!r}")
        self._progress = progress
        self._bar: Any = None
        self._task: Any = None
        self._next_line = _LINE_SECONDS

    def __enter__(self) -> Callable[[Progress], None]:
        if not isinstance(self._progress, bool):
            return self._progress
        if not self._progress:
            return lambda state: None
        if not sys.stderr.isatty():
            return self._line
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            BarColumn(20),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=1.0, state="")
        return self._move

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _move(self, state: Progress) -> None:
        share = state.pairs / state.pairs_total if state.pairs_total else 1.0
        self._bar.update(self._task, completed=share, state=str(state))

    def _line(self, state: Progress) -> None:
        finished = state.tiles == state.tiles_total
        if (finished and self._next_line < float("inf")) or state.seconds >= self._next_line:
            self._next_line = float("inf") if finished else state.seconds + _LINE_SECONDS
            print(state, file=sys.stderr, flush=True)


def _rate(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
