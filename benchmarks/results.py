"""Write docs/results.md: every record under results/, as tables and pictures, with what made it.

usage: python benchmarks/results.py     after a record came or changed, or benchmarks/results.md

What the tables do not say themselves is in benchmarks/results.md, in which a comment stands for
records: ``<!-- record: NAME.json -->`` for one, ``<!-- records: KIND -->`` for all of a kind that
are named nowhere. A section whose records are not there is left out. A record of a kind that is not
known, or for which there is no place, is an error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import widelimit.report.finite
import widelimit.report.myrtle
import widelimit.report.rank
import widelimit.report.readouts
import widelimit.report.table1
from widelimit.display import duration
from widelimit.files import check_file, write_atomically

ROOT = Path(__file__).resolve().parents[1]
_MARK = re.compile(r"<!-- (records?): (\S+) -->")
_SECTION = re.compile(r"^(?=## )", re.MULTILINE)
_PICTURES = {
    "calibration": "Share of test images that are right against confidence, for digits and "
    "Fashion-MNIST",
    "theorem31": "The relative error of tangent kernels over the width, on logarithmic axes, for "
    "four networks: points fall along lines of slope minus one half",
    "theorem32": "The largest gap between trained networks and the kernel on test points over the "
    "time of training, for four widths: each width is closer",
    "weakly-trained": "The distance of predictions of random features from those of the NNGP "
    "kernel over the width: it falls for both networks",
    "table2": "Test accuracies of random features as points, their medians as bars, and those of "
    "the exact kernels above them, for CNTK-V and CNTK-GAP at depths 3, 4 and 6",
    "cnn-digits": "Test accuracy of trained CNN-GAP over the number of channels, with error bars: "
    "it rises to that of the exact CNTK-GAP, a dotted line",
}
"""What is to be seen in a picture, which has the name of its record."""


@cache
def _benchmark(name: str) -> Any:
    """Return a module beside this one, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _by(name: str) -> Callable[[Any], str]:
    """Return the tables of a benchmark, which is imported when there is such a record."""
    return lambda record: _benchmark(name).table(record)


# ---------------------------------------------------------------- tables


def _learning_curve(record: dict[str, Any]) -> str:
    """Return the accuracies of all methods by size, with the standard deviation of a draw."""
    curves = record["curves"]
    lines = [
        f"{record['data']['name']}, {record['data']['n_test']:,} test images, "
        f"{record['draws']} draws",
        "",
        f"| training images | {' | '.join(curve['label'] for curve in curves)} |",
        "|---" * (len(curves) + 1) + "|",
    ]
    for points in zip(*(curve["points"] for curve in curves), strict=True):
        cells = [
            f"{point['mean']:.1%}"
            + ("" if point["std"] is None else f" ± {100 * point['std']:.1f}")
            for point in points
        ]
        lines.append(f"| {points[0]['size']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


_TABLES: dict[str, Callable[[Any], str]] = {
    "fashion_mnist": _by("fashion_mnist"),
    "table1": widelimit.report.table1.to_markdown,
    "rank": widelimit.report.rank.to_markdown,
    "readouts": widelimit.report.readouts.to_markdown,
    "myrtle": widelimit.report.myrtle.to_markdown,
    "learning_curve": _learning_curve,
    "small_data": _by("small_data"),
    "calibration": _by("calibration"),
    "tabular": _by("tabular"),
    "whitening": _by("whitening"),
    "default_network": _by("default_network"),
    "theorem31": widelimit.report.finite.to_markdown,
    "theorem32": widelimit.report.finite.to_markdown,
    "weakly_trained": widelimit.report.finite.to_markdown,
    "table1_cnn": widelimit.report.finite.to_markdown,
    "table2": widelimit.report.finite.to_markdown,
}
# Records that have no format are told by what is in them.
_KEYS = {
    "train_per_class": "small_data",
    "sets": "tabular",
    "draws": "calibration",
}


def kind_of(name: str, record: Any) -> str:
    """Return the kind of a record, a key of the tables; ValueError if it is of none."""
    if isinstance(record, list):  # of parts
        return "fashion_mnist"
    form: object = record.get("format")
    kind = next((kind for key, kind in _KEYS.items() if key in record), None)
    if form is not None:
        kind = str(form).removeprefix("widelimit.").partition("/")[0]
    if kind not in _TABLES:
        raise ValueError(
            f"results/{name} must be a record of a known kind ({', '.join(_TABLES)}), its format "
            f"is {form!r:.60}: give benchmarks/results.py a table for it"
        )
    return kind


# ---------------------------------------------------------------- what made a record


def _made(name: str, record: Any) -> str:
    """Say in a line which command made a record, of which commit, where, when, and how long."""
    link = f"[results/{name}](../results/{name})"
    if isinstance(record, list):
        parts = cast("list[dict[str, Any]]", record)
        known: list[str | None] = [part.get("environment", {}).get("commit") for part in parts]
        commits = dict.fromkeys(commit[:7] for commit in known if commit)
        return f"{link}: {len(parts)} parts, commits {', '.join(commits)}"
    made = record["environment"]
    machine = made["machine"]
    day = datetime.fromisoformat(made["started"])
    told = [
        f"`{_shortened(made['command'])}`",
        f"commit {str(made['commit'])[:7]}{' with changes' if made['dirty'] else ''}",
        f"{machine['cpu']}, {machine['cores_usable']} of {machine['cores']} processors",
        f"{day.day} {day:%B %Y}",
    ]
    if "card" in record:
        told.insert(3, str(record["card"]["name"]))
    seconds = record.get("seconds")
    if isinstance(seconds, dict):  # of parts, and of all of them
        parts = cast("dict[str, float]", seconds)
        seconds = parts.get("All", parts.get("total"))
    if isinstance(seconds, float):
        told.append(duration(seconds))
    return f"{link}: {'; '.join(told)}"


def _shortened(command: str) -> str:
    """Return a command with the names of files instead of their paths on a machine."""
    words = [Path(word).name if word.startswith("/") else word for word in shlex.split(command)]
    return shlex.join(words)


def _told(name: str, record: Any, pictures: Path) -> str:
    parts = [_TABLES[kind_of(name, record)](record).rstrip()]
    stem = name.removesuffix(".json")
    if (pictures / f"{stem}.svg").exists():
        parts.append(f"![{_PICTURES[stem]}](pictures/{stem}.svg)")
    return "\n\n".join([*parts, _made(name, record)])


# ---------------------------------------------------------------- the page


def render(results: Path, template: str) -> str:
    """Return the page.

    Parameters
    ----------
    results : Path
        The folder of records.
    template : str
        As described above.

    Raises
    ------
    ValueError
        If a record is of no known kind, or has no place, or a place no record.
    """
    records = {path.name: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    kinds = {name: kind_of(name, record) for name, record in records.items()}
    marks = _MARK.findall(template)
    named = {what for mark, what in marks if mark == "record"}
    if missing := named - set(records):
        raise ValueError(f"benchmarks/results.md names {', '.join(missing)}, which results/ lacks")
    if unknown := {what for mark, what in marks if mark == "records"} - set(_TABLES):
        raise ValueError(f"benchmarks/results.md names the kinds {', '.join(unknown)}: none is one")
    placed: list[str] = []

    def place(found: re.Match[str]) -> str:
        mark, what = found.groups()
        names = [what]
        if mark == "records":
            names = [name for name in records if kinds[name] == what and name not in named]
        placed.extend(names)
        return "\n\n".join(_told(name, records[name], ROOT / "docs" / "pictures") for name in names)

    sections: list[str] = []
    for section in _SECTION.split(template):
        before = len(placed)
        text = re.sub(r"\n{3,}", "\n\n", _MARK.sub(place, section))
        if not _MARK.search(section) or len(placed) > before:
            sections.append(text)
    if left := [name for name in records if name not in placed]:
        raise ValueError(
            f"results/{left[0]} is of the kind {kinds[left[0]]}, for which benchmarks/results.md "
            "has no place: give it one"
        )
    note = "<!-- Written by benchmarks/results.py from results/ and benchmarks/results.md. -->\n\n"
    return note + "".join(sections).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args()
    check_file(arguments.out)
    template = (ROOT / "benchmarks" / "results.md").read_text("utf-8")
    write_atomically(arguments.out, render(ROOT / "results", template))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
