"""Records of finite networks as Markdown: what a run prints, and what docs/finite.md has."""

from __future__ import annotations

from statistics import fmean
from typing import Any

__all__ = ["PAPER_IMAGES", "to_markdown"]

PAPER_IMAGES = 10_000
"""Training images of Table 2 of the paper."""

_NORMAL_95 = 1.96
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


def _theorem31(record: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for decay in record["decays"]:
        first, last = decay["widths"][0], decay["widths"][-1]
        counts = sorted({len(errors) for errors in decay["errors"]})
        number = " to ".join(str(n) for n in (counts[0], counts[-1])[: len(counts)])
        slope = f"{decay['slope']:.2f} ± {_NORMAL_95 * decay['slope_error']:.2f}"
        rows.append([decay["name"], f"{first} to {last:,}", number, slope])
    heads = ["network", "widths", "networks a width", "slope, 95 %"]
    shares: list[list[str]] = []
    for decay in record["decays"]:
        last = decay["within"][-1]
        cells = [f"{share:.0%}" for share in last]
        shares.append([decay["name"], f"{decay['widths'][-1]:,}", *cells])
    within = [f"within {epsilon:.0%}" for epsilon in record["decays"][0]["epsilons"]]
    means: list[list[str]] = []
    for mean in record["means"]:
        away = f"{mean['relative_error']:.2%}"
        largest = mean["largest"]
        beyond = "-" if largest is None else f"{largest:.1f} standard errors"
        means.append([mean["name"], f"{mean['width']}", away, beyond])
    draws = record["means"][0]["draws"]
    return "\n\n".join(
        [
            _table(heads, rows),
            _table(["share of networks", "width", *within], shares),
            _table(
                [
                    f"mean of {draws} networks",
                    "width",
                    "from the exact kernel",
                    "largest entry, beyond the bias",
                ],
                means,
            ),
        ]
    )


def _theorem32(record: dict[str, Any]) -> str:
    training = record["training"]
    rows: list[list[str]] = []
    for width in sorted({run["width"] for run in training["runs"]}):
        own = [run for run in training["runs"] if run["width"] == width]
        gap = fmean(run["gaps"][-1] for run in own)
        residual = max(run["residual"] for run in own)
        rows.append([f"{width:,}", f"{len(own)}", f"{gap:.3f}", f"{residual:.3f}"])
    heads = ["width", "networks", "largest gap on test points", "training residual"]
    scale = f"Root mean square of the predictions: {training['scale']:.2f}."
    return f"{_table(heads, rows)}\n\n{scale}"


def _weakly_trained(record: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    for one in record["weakly_trained"]:
        for width, accuracies, gaps in zip(
            one["widths"], one["accuracies"], one["gaps"], strict=True
        ):
            gap = fmean(gaps) / one["scale"]
            rows.append([one["name"], f"{width:,}", f"{gap:.0%}", f"{fmean(accuracies):.1%}"])
        rows.append([one["name"], "exact NNGP kernel", "-", f"{one['exact_accuracy']:.1%}"])
    return _table(["network", "width", "from the NNGP kernel", "test accuracy"], rows)


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
    papers = "exact, the paper"
    if record["n_train"] != PAPER_IMAGES:
        papers += f" ({PAPER_IMAGES:,} images)"
    table = _table(["kernel", "depth", random, "exact kernel", papers], rows)
    return f"{_images(record)}; {record['channels']:,} channels.\n\n{table}"


def _images(record: dict[str, Any]) -> str:
    images = f"{record['n_train']:,} training and {record['n_test']:,} test images"
    return f"{images} of {record['data']['name']}"


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
    return f"{_images(record)}.\n\n{_table(heads, rows)}"


_TABLES = {
    "theorem31": _theorem31,
    "theorem32": _theorem32,
    "weakly_trained": _weakly_trained,
    "table1_cnn": _table1_cnn,
    "table2": _table2,
}
