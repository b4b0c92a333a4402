"""Records of rankings as Markdown: what a run prints."""

from __future__ import annotations

from typing import Any

__all__ = ["to_markdown"]


def to_markdown(record: dict[str, Any]) -> str:
    """Return the architectures, best first, and how well their scores agree, as two tables.

    Parameters
    ----------
    record : dict
        Of `widelimit.experiments.rank`.
    """
    heads = ["architecture"]
    for size in record["sizes"]:
        heads += [f"leave-one-out, n = {size:,}", f"validation, n = {size:,}"]
    lines = [f"| {' | '.join(heads)} | CNTK, paper | CNN, paper |", "|---" * (len(heads) + 2) + "|"]
    for entry in sorted(record["architectures"], key=lambda entry: -entry["mean"][-1][2]):
        cells = [entry["name"]]
        errors = entry["standard_error"]
        for j, means in enumerate(entry["mean"]):
            for measure in (0, 2):
                cell = f"{100 * means[measure]:.2f}%"
                cells.append(cell if errors is None else f"{cell} ± {100 * errors[j][measure]:.2f}")
        paper = entry["paper"]
        cells += ["-", "-"] if paper is None else [f"{paper['cntk']:.2f}%", f"{paper['cnn']:.2f}%"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| between | and | architectures | tau | 95% interval |", "|---" * 5 + "|"]
    for row in record["agreement"]:
        one, other = (name.replace("_", " ") for name in row["between"])
        interval = "-" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
        tau = "-" if row["tau"] is None else f"{row['tau']:.2f}"
        lines.append(f"| {one} | {other} | {row['architectures']} | {tau} | {interval} |")
    return "\n".join(lines)
