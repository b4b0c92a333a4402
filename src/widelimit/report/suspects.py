"""Samples whose labels are likely wrong: a table and a sheet of thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.data.dataset import Dataset
from widelimit.estimators.calibration import log_softmax
from widelimit.markup import lines, to_data_uri
from widelimit.report.page import document
from widelimit.report.table import to_csv

__all__ = ["Suspect", "find_suspects", "render_sheet", "to_table", "unjudged"]

_ONE = {"rows": "row", "series": "series", "images": "image"}


@dataclass(frozen=True, slots=True)
class Suspect:
    """A training image that the others label otherwise.

    Parameters
    ----------
    image : int
        Its place among the training images.
    file : str
        The name of its file, or of its row in a table that is divided (`Dataset`), or "image N".
    label, suggested : str
        Its class, and the one that is most probable.
    p_label, p_suggested : float
        Their probabilities, by a fit to all other images.
    """

    image: int
    file: str
    label: str
    suggested: str
    p_label: float
    p_suggested: float


def find_suspects(
    data: Dataset, outputs: FloatArray, temperature: float, judged: NDArray[np.bool_]
) -> list[Suspect]:
    """Return the training images that leave-one-out labels otherwise, the least probable first.

    Parameters
    ----------
    data : Dataset
    outputs : ndarray of shape (n, classes)
        Leave-one-out predictions of its training images.
    temperature : float
        Of probabilities.
    judged : ndarray of bool, shape (n,)
        Which images can be suspects. One that is alone in its class cannot: without it nothing is
        known of the class.
    """
    chances = np.exp(log_softmax(outputs, temperature))
    best: IntArray = outputs.argmax(axis=1)
    own = chances[np.arange(len(chances)), data.y_train]
    odd = np.flatnonzero((best != data.y_train) & judged)
    return [
        Suspect(
            image=int(i),
            file=f"{_ONE[data.what]} {i}" if data.files_train is None else data.files_train[int(i)],
            label=data.class_names[data.y_train[i]],
            suggested=data.class_names[best[i]],
            p_label=float(own[i]),
            p_suggested=float(chances[i, best[i]]),
        )
        for i in odd[np.argsort(own[odd], kind="stable")]
    ]


def unjudged(count: int) -> str:
    """Say how many images could not be judged; "" if all could."""
    if not count:
        return ""
    alone = "it is alone in its class" if count == 1 else "they are alone in their classes"
    return f"{count:,} could not be judged: {alone}"


def to_table(suspects: Sequence[Suspect]) -> str:
    """Return the suspects as CSV, one row for each."""
    head = ["image", "label", "suggested", "probability of label", "probability of suggested"]
    rows = [
        [s.file, s.label, s.suggested, f"{s.p_label:.6g}", f"{s.p_suggested:.6g}"] for s in suspects
    ]
    return to_csv([head, *rows])


def render_sheet(data: Dataset, suspects: Sequence[Suspect], alone: int) -> str:
    """Return the suspects as a page that needs nothing but itself, with a thumbnail of each.

    Parameters
    ----------
    data : Dataset
    suspects : sequence of Suspect
    alone : int
        How many images could not be judged.
    """
    what = data.what
    title = f"Likely wrong labels: {data.name}"
    note = f" Of all {what} {unjudged(alone)}." if alone else ""
    if len(data.y_test):
        note += f" {len(data.y_test):,} test {what} were left out."
    cards = "\n".join(
        f"<li>{_thumbnail(data, s)}"
        f"<b>{escape(s.label)}</b> ({s.p_label:.1%}), rather <b>{escape(s.suggested)}</b> "
        f"({s.p_suggested:.1%})<br>{escape(s.file)}</li>"
        for s in suspects
    )
    return document(
        title,
        [
            f"""<section>
<h1>{escape(title)}</h1>
<p>{len(suspects):,} of {len(data.y_train):,} {what}, which a fit to all other {what} labels
otherwise, those with the least probable labels first. In brackets the probabilities.{note}</p>
<ul class="sheet">
{cards}
</ul>
</section>"""
        ],
    )


def _thumbnail(data: Dataset, suspect: Suspect) -> str:
    if data.is_rows:
        return ""
    x = data.x_train[suspect.image]
    uri = lines(x[0]) if data.is_series else to_data_uri(x)
    return f'<img src="{uri}" alt="{escape(suspect.file)}"><br>'
