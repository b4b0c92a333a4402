"""Records of finite networks as Markdown: what a run prints, and what docs/finite.md has."""

from __future__ import annotations

from typing import Any

__all__ = ["to_markdown"]

_NAMES = {"v": "CNTK-V", "gap": "CNTK-GAP"}


def to_markdown(record: dict[str, Any]) -> str:
    """Return the tables of a record of `reproduce theorem31`, `theorem32`, and so on.

    Parameters
    ----------
    record : dict
        With its ``format``.

    Raises
    ------
    ValueError
        If it is that of something else.
    """
    kind = str(record.get("format")).partition("/")[0].removeprefix("widelimit.")
    if kind not in _TABLES:
        raise ValueError(
            f"the record must be one of finite networks ({', '.join(_TABLES)}), its format is "
            f"{record.get('format')!r:.60}"
        )
    return _TABLES[kind](record)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, *rows]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join(
        f"|{'|'.join(cells)}|" if i == 1 else f"| {' | '.join(cells)} |"
        for i, cells in enumerate(lines)
    )


def _percent(share: float | None) -> str:
    return "not solved" if share is None else f"{share:.2%}"


def _table2(record: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for row in record["rows"]:
        accuracies = [one["accuracy"] for one in row["random"]]
        mid = _percent(row["median"])
        if None not in accuracies:
            mid += f" ({min(accuracies):.2%} to {max(accuracies):.2%})"
        paper = row["paper_percent"]
        cells = [_NAMES[row["readout"]], f"{row['depth']}", mid, _percent(row["accuracy"])]
        rows.append([*cells, "-" if paper is None else f"{paper:.2f}%"])
    random = f"random features, median of {record['draws']}"
    return _table(["kernel", "depth", random, "exact kernel", "exact, the paper"], rows)


def _table1_cnn(record: dict[str, Any]) -> str:
    heads = ["network", "depth", "channels", "test accuracy", "the paper", "learning rate"]
    heads += ["epochs to full training accuracy"]
    rows: list[list[str]] = []
    for row in record["rows"]:
        error, paper = row["standard_error"], row["paper_percent"]
        accuracy = "diverged" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        reached = [str(one["full_at"] or "not reached") for one in row["trials"]]
        rows.append(
            [
                row["column"].upper(),
                f"{row['depth']}",
                f"{row['channels']:,}",
                accuracy + ("" if error is None else f" ± {100 * error:.2f}"),
                "-" if paper is None else f"{paper:.2f}%",
                f"{row['learning_rate']:g}",
                ", ".join(dict.fromkeys(reached)),
            ]
        )
    for one in record["exact"]:
        name = one["column"].upper().replace("CNN", "exact CNTK")
        rows.append([name, f"{one['depth']}", "-", _percent(one["accuracy"]), "-", "-", "-"])
    return _table(heads, rows)


_TABLES = {
    "table1_cnn": _table1_cnn,
    "table2": _table2,
}
