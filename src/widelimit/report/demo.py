"""The demo: data in; a table in the terminal, a page and its record out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from widelimit.data import Dataset, load_dataset
from widelimit.data.dataset import Size
from widelimit.display import Display, duration
from widelimit.experiments import learning_curve
from widelimit.experiments.learning_curve import CURVE_STAGE, METHODS, Design, KernelFunction
from widelimit.files import check_file, make_folder, write_atomically
from widelimit.keeping import keep_and_show
from widelimit.matrices.inputs import Channels
from widelimit.report.learning import render
from widelimit.report.terminal import make_tables, show_notes

__all__ = ["Demo"]

_DRAWS, _MINUTES = 5, 2.5
_QUICK_DRAWS, _QUICK_MINUTES = 2, 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """A demo that is ready to run.

    Parameters
    ----------
    dataset : Dataset
    design : Design
        For this data set.
    folder : Path
        Where page and record go; exists and can be written to.
    minutes : float
        Planned time of the CNTK-GAP kernel.
    threads : int or None
    """

    dataset: Dataset
    design: Design
    folder: Path
    minutes: float
    threads: int | None

    @classmethod
    def prepare(
        cls,
        data: str = "digits",
        out: str = "out",
        *,
        draws: int | None = None,
        seed: int = 0,
        minutes: float | None = None,
        threads: int | None = None,
        channels: Channels = None,
        size: Size | None = None,
        skip_bad: bool = False,
        label: str | None = None,
        image_shape: tuple[int, int, int] | None = None,
        quick: bool = False,
    ) -> Demo:
        """Load the data, design the run and make sure that the result can be written.

        Parameters
        ----------
        data : str
            As for `load_dataset`.
        out : str
            Folder for page and record; is made if it does not exist.
        draws, minutes : int, float, optional
            As for `make_design`. None: 5 and 2.5, or 2 and 0.05 if quick.
        seed : int
            As for `make_design`.
        threads : int, optional
            None: one for each processor.
        channels, size, skip_bad, label, image_shape
            As for `load_dataset`.
        quick : bool
            Take fewer images and draws: seconds instead of minutes.

        Returns
        -------
        Demo

        Raises
        ------
        OSError, ValueError
            If the data cannot be loaded or are unfit, or the folder cannot be written to. The
            message says what to do.
        """
        planned = minutes if minutes is not None else _QUICK_MINUTES if quick else _MINUTES
        count = draws if draws is not None else _QUICK_DRAWS if quick else _DRAWS
        folder = Path(out).expanduser()
        dataset = load_dataset(
            data,
            seed=seed,
            channels=channels,
            size=size,
            skip_bad=skip_bad,
            label=label,
            image_shape=image_shape,
        )
        design = learning_curve.make_design(dataset, draws=count, seed=seed, minutes=planned)
        make_folder(folder)
        for path in _outputs(folder, dataset):
            check_file(path)
        return cls(dataset, design, folder, planned, threads)

    def run(
        self,
        console: Console,
        *,
        command: Sequence[str] | None = None,
        kernel: KernelFunction | None = None,
    ) -> Path:
        """Run it, write page and record, and show the table.

        Parameters
        ----------
        console : Console
            Where bars, notes and table go.
        command, kernel
            As for `learning_curve.run`.

        Returns
        -------
        Path
            The page. Its record is beside it, with the suffix ``.json``.

        Raises
        ------
        OSError
            If page or record cannot be written; they are then kept elsewhere: `keep`.
        """
        h, w, c = self.dataset.image_shape
        n = self.dataset.y_train.size + self.dataset.y_test.size
        _say(
            console,
            f"{self.dataset.name}: {n:,} images of {h} x {w} x {c}, "
            f"{self.dataset.n_classes} classes",
        )
        seconds = learning_curve.estimate_seconds(self.dataset, self.design, self.threads, kernel)
        design, seconds = self._fit_to_machine(seconds)
        show_notes(console, design.notes)
        _say(
            console,
            f"CNTK-GAP: {design.pairs:,} pairs of images, {design.element_layers:.1e} "
            f"element-layers in {design.dtype}, about {duration(seconds)} on this machine",
        )
        stages = [method.label for method in METHODS if method.network is not None]
        with Display([*stages, CURVE_STAGE], console) as display:
            record = learning_curve.run(
                self.dataset,
                design,
                threads=self.threads,
                progress=display.show,
                command=command,
                kernel=kernel,
            )

        def write(folder: Path) -> None:
            make_folder(folder)
            page, values = _outputs(folder, self.dataset)
            text = render(record, self.dataset, record_name=values.name)
            write_atomically(values, record.to_json())
            write_atomically(page, text)

        def show() -> None:
            for table in make_tables(record, console):
                console.print(table)
            for error in record.errors:
                _say(console, error)

        page, values = _outputs(keep_and_show(self.folder, write, show), self.dataset)
        _say(console, f"Report: {page}", wrap=False)
        _say(console, f"Record: {values}", wrap=False)
        return page

    def _fit_to_machine(self, seconds: float) -> tuple[Design, float]:
        """Fall back on float32 where float64 would take much longer than planned."""
        if self.design.dtype == "float32" or seconds <= 40.0 * self.minutes:
            return self.design, seconds
        note = (
            "CNTK-GAP is computed in float32: in float64 it would take "
            f"{duration(seconds)} on this machine."
        )
        return replace(self.design, dtype="float32", notes=(*self.design.notes, note)), seconds / 3


def _say(console: Console, text: str, *, wrap: bool = True) -> None:
    """Print a text as it is: no markup, no colours for numbers; a path is not broken in lines."""
    console.print(text, markup=False, highlight=False, soft_wrap=not wrap)


def _outputs(folder: Path, dataset: Dataset) -> tuple[Path, Path]:
    """Return the paths of page and record."""
    name = f"demo-{_slug(dataset.name)}"
    return folder / f"{name}.html", folder / f"{name}.json"


def _slug(name: str) -> str:
    """A name for a file, from any name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "data"
