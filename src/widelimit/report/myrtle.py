"""Records of Myrtle networks as Markdown: what a run prints, and what docs/results.md has."""

from __future__ import annotations

from typing import Any

__all__ = ["by_kernel", "chosen_told", "quoted_told", "to_markdown"]


def to_markdown(record: dict[str, Any]) -> str:
    """Return a table of accuracies by kernel and images, the choice, and what papers have.

    Parameters
    ----------
    record : dict
        Of `widelimit.experiments.myrtle`.
    """
    heads, kernels = by_kernel(record)
    lines = [f"| test images, % (leaving one out) | {' | '.join(heads)} |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    for kernel, rows in kernels.items():
        cells: list[str] = []
        for row in rows:
            if row is None:
                cells.append("")
                continue
            error = 100 * row["standard_error"]
            told = f"{100 * row['accuracy']:.2f} ± {error:.2f} ({100 * row['leave_one_out']:.2f})"
            cells.append(f"**{told}**" if row == record["chosen"] else told)
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    lines += ["", chosen_told(record), "", *(f"- {line}" for line in quoted_told(record))]
    if record["left"]:
        lines += ["", f"Not there yet: {', '.join(record['left'])}"]
    return "\n".join(lines)


def by_kernel(
    record: dict[str, Any],
) -> tuple[list[str], dict[str, list[dict[str, Any] | None]]]:
    """Return how images were prepared, and the rows of each kernel in this order; None: no row."""
    rows = {(row["kernel"], row["images"]): row for row in record["kernels"]}
    heads = list(dict.fromkeys(images for _, images in rows))
    kernels = dict.fromkeys(kernel for kernel, _ in rows)
    return heads, {kernel: [rows.get((kernel, one)) for one in heads] for kernel in kernels}


def chosen_told(record: dict[str, Any]) -> str:
    """Return a sentence on the kernel that is best by leave-one-out."""
    row = record["chosen"]
    return (
        f"Chosen by leave-one-out alone: {row['kernel']}; {row['images']}: "
        f"{row['leave_one_out']:.2%} leaving one out, {row['accuracy']:.2%} "
        f"± {100 * row['standard_error']:.2f} of the test images."
    )


def quoted_told(record: dict[str, Any]) -> list[str]:
    """Return a sentence on each number of a paper."""
    return [
        f"Quoted: {one['what']}, {one['n_train']:,} training images: {one['percent']:g}%."
        for one in record["quoted"]
    ]
