"""Records of table 1 as Markdown: what a run prints, and what docs/results.md has."""

from __future__ import annotations

from typing import Any

__all__ = ["columns_of", "to_markdown"]


def columns_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the columns of a record; those of the first format are records of one column."""
    return record.get("columns", [record])


def to_markdown(record: dict[str, Any]) -> str:
    """Return one table for each column: ours, the paper's, the difference and its error.

    Parameters
    ----------
    record : dict
        Of `widelimit.experiments.table1`, or of the first format, ``widelimit.table1/1``.
    """
    columns = columns_of(record)
    tables = [
        (f"{_title(column)}\n\n" if "column" in column else "") + _table(column["rows"])
        for column in columns
    ]
    return "\n\n".join(tables)


def _title(column: dict[str, Any]) -> str:
    draws = f", mean of {column['draws']} draws" if column["draws"] > 1 else ""
    return (
        f"{column['column']}: {column['n_train']:,} training and {column['n_test']:,} test images"
        + draws
    )


def _table(rows: list[dict[str, Any]]) -> str:
    left_out = any(row.get("leave_one_out") is not None for row in rows)
    heads = ["depth", "test accuracy", "the paper", "difference"]
    heads += ["leave-one-out"] * left_out + ["residual", "solve, s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        accuracy, paper = row["accuracy"], row["paper_percent"]
        error = row["standard_error"]
        known = accuracy is not None
        cells = [
            f"{row['depth']}",
            f"{accuracy:.2%}" if known else "not solved",
            "-" if paper is None else f"{paper:.2f}%",
        ]
        difference = f"{100 * accuracy - paper:+.2f} " if known and paper is not None else ""
        cells.append(f"{difference}± {100 * error:.2f}" if known else "-")
        if left_out:
            cells.append(_percent(row.get("leave_one_out")))
        residual = row["residual_norm"]
        cells += ["-" if residual is None else f"{residual:.0e}", f"{row['solve_seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
