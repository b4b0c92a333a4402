"""Runs of many parts, each kept in a file when it is done: a run that was stopped goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from widelimit.display import share_alone, shown
from widelimit.files import own_folder, write_record
from widelimit.reading import read_json

__all__ = ["PLAN", "Cells", "Keep", "compute_now"]

PLAN = "plan.json"
"""Name of the file beside the parts."""
Keep = Callable[[str, Callable[[], Any]], Any]
"""Returns what a part comes to, by its name: computed now, or before."""

_FORMAT = "widelimit.cells/1"
_MAX_CELL = 2**26


def compute_now(_: str, compute: Callable[[], Any]) -> Any:
    """Keep nothing: the `Keep` of runs that are not resumed."""
    return compute()


class Cells:
    """What the parts of a run come to, in a folder: one file of JSON for each.

    Parameters
    ----------
    folder : Path
    run : str
        Which: "table2".
    asked : mapping
        All that the values depend on, ready for JSON. The folder of a run that was asked for
        something else is refused.
    costs : mapping of str to float
        Estimated seconds of every part, by its name: the name of a file without its end.
    others : collection of str
        Names of other files and folders of the run in the folder.

    Raises
    ------
    OSError
        If the folder cannot be read.
    ValueError
        If it holds another run.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        asked: Mapping[str, Any],
        costs: Mapping[str, float],
        others: Collection[str] = (),
    ) -> None:
        self.folder, self.run, self.costs = folder, run, dict(costs)
        self.asked: dict[str, Any] = json.loads(json.dumps(asked, allow_nan=False))
        self._others = others
        self._done: dict[str, float] = {}  # seconds that were taken, here or before
        self._found: set[str] = set()  # parts that were there before: nothing is left to do of them
        self._inside = 0.0  # those of parts that were computed within the one that is
        self._report: Callable[[float], None] = _silent
        self._check()

    @property
    def left(self) -> float:
        """Estimated seconds of what is not there yet."""
        return sum(cost for name, cost in self.costs.items() if not self._path(name).exists())

    @property
    def seconds(self) -> float:
        """Seconds that the parts took, those before an interruption, too."""
        return sum(self._done.values())

    @contextmanager
    def held(self, progress: bool = False) -> Generator[Keep]:
        """Be the only process that works in the folder; the value is `keep`.

        Parameters
        ----------
        progress : bool
            Whether to show how far the run is, on standard error.

        Raises
        ------
        OSError, ValueError
            As for `own_folder`, and if it holds another run by now.
        """
        names = {PLAN, *(f"{name}.json" for name in self.costs), *self._others}
        with own_folder(self.folder, names, f"a run of {self.run}", (PLAN,)):
            self._check()
            self._found = {name for name in self.costs if self._path(name).exists()}
            plan = {"format": _FORMAT, "run": self.run, "asked": self.asked}
            write_record(self.folder / PLAN, plan)
            with shown(progress, self.run, share_alone) as report:
                self._report = report
                yield self.keep
            self._report = _silent

    def keep(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what a part comes to: read, or computed and written.

        Parameters
        ----------
        name : str
            Of `costs`.
        compute : callable
            Returns what JSON can hold; tuples become lists. It may keep parts itself, whose seconds
            are theirs alone.
        """
        if name not in self.costs:
            raise KeyError(name)
        path = self._path(name)
        if not path.exists():
            start, around, self._inside = time.perf_counter(), self._inside, 0.0
            value = compute()
            took = time.perf_counter() - start
            write_record(path, {"value": value, "seconds": took - self._inside})
            self._inside = around + took
        content = read_json(path, _MAX_CELL)
        try:
            value, seconds = content["value"], float(content["seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r:.100}): delete it") from error
        self._done[name] = seconds
        self.tell({name: 1.0})
        return value

    def tell(self, shares: Mapping[str, float]) -> None:
        """Say how far parts are that are being computed: shares by their names.

        Of what was not there before: from the time that this took follows what is left.
        """
        costs = {name: cost for name, cost in self.costs.items() if name not in self._found}
        done = sum(
            cost * (1.0 if name in self._done else shares.get(name, 0.0))
            for name, cost in costs.items()
        )
        whole = sum(costs.values())
        self._report(min(1.0, done / whole) if whole else 1.0)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _check(self) -> None:
        path = self.folder / PLAN
        try:
            content = read_json(path, _MAX_CELL)
        except FileNotFoundError:
            return
        if content.get("format") != _FORMAT or content.get("run") != self.run:
            raise ValueError(f"{path} must be the plan of a run of {self.run}: give another store")
        before: Any = content.get("asked")
        if before == self.asked:
            return
        known: dict[str, Any] = before if isinstance(before, dict) else {}  # pyright: ignore[reportUnknownVariableType]
        differs = [
            f"{name} {known.get(name)!r:.60} there and {self.asked.get(name)!r:.60} here"
            for name in sorted({*known, *self.asked})
            if known.get(name) != self.asked.get(name)
        ]
        raise ValueError(
            f"{self.folder} holds another run of {self.run} ({'; '.join(differs)}): give another "
            "store, or delete that one"
        )


def _silent(_: float) -> None: ...
