"""Records of readouts as Markdown: what a run prints, and what docs/results.md has."""

from __future__ import annotations

from typing import Any

__all__ = ["to_markdown", "variant_name"]

_VARIANTS = {
    "none": "as the paper",
    "flips": "flips",
    "zca": "ZCA",
    "zca-flips": "ZCA and flips",
}
_READOUTS = {"gap": "GAP", "lap4": "LAP(4)", "v": "V"}


def to_markdown(record: dict[str, Any]) -> str:
    """Return accuracies by readout and variant, and differences within draws, as three tables.

    Parameters
    ----------
    record : dict
        Of `widelimit.experiments.readouts`.
    """
    variants = record["variants"]
    heads = [_VARIANTS[entry["variant"]] for entry in variants]
    lines = [f"| readout | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for k, entry in enumerate(variants[0]["readouts"]):
        cells = [_share(variant["readouts"][k]) for variant in variants]
        lines.append(f"| {_READOUTS[entry['readout']]} | {' | '.join(cells)} |")
    lines += ["", f"| difference, points | {' | '.join(heads)} |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    for k, entry in enumerate(variants[0]["differences"]):
        cells = [_points(variant["differences"][k]) for variant in variants]
        name = " − ".join(_READOUTS[one] for one in entry["between"])
        lines.append(f"| {name} | {' | '.join(cells)} |")
    of_readouts: dict[tuple[str, str], list[str]] = {}
    names: list[str] = []
    for entry in record["changes"]:
        one, other = entry["between"]
        of_readouts.setdefault((one, other), []).append(_points(entry))
        names.append(_READOUTS[entry["readout"]])
    names = list(dict.fromkeys(names))
    lines += ["", f"| change, points | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for (one, other), cells in of_readouts.items():
        name = f"{_VARIANTS[one]} − {_VARIANTS[other]}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def variant_name(variant: str) -> str:
    """Return what images and kernels of a variant are, in words; itself if it is unknown."""
    return _VARIANTS.get(variant, variant)


def _share(entry: dict[str, Any]) -> str:
    error = entry["standard_error"]
    return f"{entry['mean']:.2%}" + ("" if error is None else f" ± {100 * error:.2f}")


def _points(entry: dict[str, Any]) -> str:
    error = entry["standard_error"]
    return f"{100 * entry['mean']:+.2f}" + ("" if error is None else f" ± {100 * error:.2f}")
