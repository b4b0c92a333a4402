"""A run of the benchmark: one JSON record, and the table that is rendered from it."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from widelimit.bench.cases import Setting
from widelimit.bench.groups import GROUPS, Group, arithmetic, shortfall
from widelimit.experiments.environment import describe_environment
from widelimit.files import make_folder, write_atomically

__all__ = ["exit_code", "measure", "render", "run", "write_json"]

_FORMAT = "widelimit.bench/2"

Say = Callable[[str], None]


def measure(group: Group, rounds: int, say: Say) -> dict[str, list[float]]:
    """Measure the cases of a group in turns.

    Parameters
    ----------
    group : Group
    rounds : int
    say : callable
        Is told what is going on, a line at a time.

    Returns
    -------
    dict of str to list of float
        For each case its `rounds` measurements, in their order.
    """
    results: dict[str, list[float]] = {case.name: [] for case in group.cases}
    for turn in range(1, rounds + 1):
        for case in group.cases:
            value = case.measure()
            results[case.name].append(value)
            say(f"  {turn}/{rounds}  {case.name}: {value:.4g} {case.unit}")
    return results


def _entries(name: str, group: Group, results: dict[str, list[float]]) -> dict[str, Any]:
    cases = [
        {
            "name": case.name,
            "unit": case.unit,
            "pairs": case.pairs,
            "element_layers": case.element_layers,
            **case.detail,
            "values": results[case.name],
        }
        for case in group.cases
    ]
    figures: list[dict[str, Any]] = []
    for figure in group.figures:
        value = figure.value(results)
        missed = None
        if figure.target is not None:
            missed = shortfall(value, figure.target, at_most=figure.at_most)
        figures.append(
            {
                "name": figure.name,
                "unit": figure.unit,
                "value": value,
                "target": figure.target,
                "at_most": figure.at_most,
                "missed_by": missed,
                "tolerance": figure.tolerance,
            }
        )
    return {"name": name, "cases": cases, "figures": figures, "missing": group.missing}


def run(setting: Setting, names: Sequence[str], say: Say) -> dict[str, Any]:
    """Measure groups one after the other.

    Parameters
    ----------
    setting : Setting
    names : sequence of str
        Of `GROUPS`.
    say : callable
        Is told what is going on, a line at a time.

    Returns
    -------
    dict
        The record: plain data. A group that fails is in it with its error.
    """
    isa = setting.isa
    record: dict[str, Any] = {
        "format": _FORMAT,
        "environment": asdict(describe_environment()),
        "isa": isa,
        "instruction_sets": setting.supported,
        "images": setting.images.source,
        "seed": setting.images.seed,
        "quick": setting.quick,
        "arithmetic": {dtype: arithmetic(isa, dtype) for dtype in ("float32", "float64")},
        "groups": [],
        "errors": [],
    }
    for name in names:
        say(f"{name}:")
        try:
            group = GROUPS[name](setting)
            results = measure(group, 1 if setting.quick else group.rounds, say)
            record["groups"].append(_entries(name, group, results))
        except Exception as error:  # the other groups are still worth having
            say(f"  failed: {error}")
            record["errors"].append({"group": name, "error": traceback.format_exc()})
    record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    return record


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record so that the file is whole, or as it was before."""
    make_folder(path.parent)
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def exit_code(record: dict[str, Any]) -> int:
    """Return 1 if a group failed, or a target is missed by more than its tolerance, else 0.

    A quick run is too short to judge: only failures count.
    """
    if record["errors"]:
        return 1
    if record["quick"]:
        return 0
    return int(any(_far_off(f) for group in record["groups"] for f in group["figures"]))


def _far_off(figure: dict[str, Any]) -> bool:
    missed, tolerance = figure["missed_by"], figure["tolerance"]
    if missed is None or tolerance is None:
        return False
    return not missed <= tolerance  # nan is far off, too


def _number(value: float) -> str:
    return f"{value:.2e}" if value and not 0.001 <= abs(value) < 10_000 else f"{value:.3f}"


def _verdict(figure: dict[str, Any]) -> str:
    missed = figure["missed_by"]
    if missed is None:
        return ""
    if missed == 0:
        return "OK"
    word = "aim, short" if figure["tolerance"] is None else "MISSED"
    return f"{word} by {missed:.0%}" if math.isfinite(missed) else word


def render(record: dict[str, Any]) -> str:
    """Write a record as tables: every figure next to its target, then what was measured."""
    environment = record["environment"]
    machine = environment["machine"]
    commit = (environment["commit"] or "unknown")[:12]
    changes = " with changes" if environment["dirty"] else ""
    lines = [
        f"widelimit {environment['version']}, commit {commit}{changes}",
        f"{machine['cpu']}, {machine['cores_usable']} cores usable, {record['isa']}",
        f"{machine['python']}, numpy {machine['packages']['numpy']}; images: {record['images']}",
        f"{environment['started']} to {record['finished']}",
    ]
    if record["quick"]:
        lines.append("quick: one short measurement of each case, which proves nothing")
    for group in record["groups"]:
        lines += ["", group["name"]]
        if group["missing"]:
            lines.append(f"  not measured: {group['missing']}")
        for figure in group["figures"]:
            sign = "<=" if figure["at_most"] else ">="
            target = "" if figure["target"] is None else f"{sign} {_number(figure['target'])}"
            measured = f"{_number(figure['value'])} {figure['unit']}"
            line = f"  {figure['name']:<52} {measured:<27} {target:<11} {_verdict(figure)}"
            lines.append(line.rstrip())
    lines += ["", f"{'kernel':<46}{'pairs/s':>10}{'us/pair':>11}{'el.-layers/s':>14}{'spread':>8}"]
    for group in record["groups"]:
        lines += [_row(case) for case in group["cases"] if case["pairs"]]
    for error in record["errors"]:
        lines += ["", f"FAILED: {error['group']}", error["error"]]
    return "\n".join(lines)


def _row(case: dict[str, Any]) -> str:
    seconds = median(case["values"])
    pairs, layers = case["pairs"] / seconds, case["element_layers"] / seconds
    spread = max(case["values"]) / min(case["values"]) - 1
    return f"{case['name']:<46}{pairs:>10.4g}{1e6 / pairs:>11.4g}{layers:>14.2e}{spread:>8.0%}"
