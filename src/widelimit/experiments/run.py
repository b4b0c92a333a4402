"""What the runs of an experiment have in common, for the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Run"]


class Run(Protocol):
    """A run that is ready: what can be checked before the work has been."""

    @property
    def is_long(self) -> bool:
        """Whether somebody should be asked before."""
        ...

    def lines(self) -> list[str]:
        """Say what the run takes."""
        ...

    def run(self, say: Callable[[str], None], *, progress: bool = False) -> dict[str, Any]:
        """Compute what is not there yet, and return the record, ready for JSON."""
        ...
