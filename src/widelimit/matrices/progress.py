"""How far a Gram matrix is, as `gram` tells it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from widelimit.display import duration

__all__ = ["Progress", "Tracker"]


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

    @property
    def share(self) -> float:
        """Finished share, 0 to 1: of the pairs, and 1 when all tiles are there."""
        if self.tiles == self.tiles_total:
            return 1.0
        return min(self.pairs / max(1, self.pairs_total), 0.999)

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
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


def _rate(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"
