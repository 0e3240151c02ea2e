"""The papers' tables, with the study's values beside."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nnunet_locctx.report.document import NOTHING, Table, number
from nnunet_locctx.report.papers import METRICS, Ours, find_ours, read_paper, same_dataset
from nnunet_locctx.report.results import Results


def paper_table(study: Results, name: str) -> Table:
    """A paper's table with the study's values beside; classes across, if the paper has them.

    Raises:
        ValueError: There is none of this name.
    """
    paper = read_paper(name)
    rows = paper["rows"]
    found = [find_ours(study, paper, row) for row in rows]
    records = _records(study, name, rows, found)
    notes = [paper["note"], f"Here: {study.dataset}. Gains in the unit of the metric."]
    convention = paper.get("convention")
    if any(mine.cases and math.isnan(mine.value) for mine in found):
        notes.append(
            f"The study's evaluation lacks the paper's measures (`paper: {convention}`): no value to compare."
        )
    caption = f"{paper['title']}. Paper: {paper['citation']}. Metric: {METRICS[paper['metric']]}."
    if any("class" in row for row in rows):
        columns, lines = _across(rows, found)
        caption += " In each cell: paper / here."
    else:
        columns, lines = _down(rows, found, records)
        if any("coverage_percent" in row.get("parts", {}) for row in rows):
            columns.insert(3, "coverage, %: paper / here")
            for line, row in zip(lines, rows, strict=True):
                line.insert(3, _coverage(study, row))
    shown = pd.DataFrame(lines, columns=columns)
    return Table(f"paper_{name}", caption, shown, labels=3, notes=notes, records=records)


def _records(
    study: Results, name: str, rows: Sequence[Mapping[str, Any]], found: Sequence[Ours]
) -> list[dict[str, Any]]:
    ours = dict(zip(map(_identity, rows), found, strict=True))
    printed = {_identity(row): float(row["value"]) for row in rows}
    records = []
    for row, mine in zip(rows, found, strict=True):
        base = _baseline_of(row, study.baseline, printed)
        records.append(
            {
                "paper": name,
                "dataset": row["dataset"],
                "preset": row["preset"],
                "method": _what(row),
                "class": row.get("class", ""),
                "paper_value": float(row["value"]),
                "our_value": mine.value,
                "paper_gain": row["value"] - printed[base] if base else math.nan,
                "our_gain": mine.value - ours[base].value if base else math.nan,
                "our_dice_percent": mine.dice,
                "cases": mine.cases,
                "why_not": mine.why,
            }
        )
    return records


def _down(
    rows: Sequence[Mapping[str, Any]], found: Sequence[Ours], records: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """Columns and a line per row of the paper."""
    columns = ["data set", "preset", "method", "paper", "here", "gain, paper", "gain, here"]
    columns += ["foreground Dice, %", "cases"]
    lines = [
        [
            row["dataset"],
            row["preset"],
            _what(row),
            _bound(row) + number(row["value"]),
            number(mine.value),
            number(record["paper_gain"], sign=True),
            number(record["our_gain"], sign=True),
            number(mine.dice),
            str(mine.cases or mine.why),
        ]
        for row, mine, record in zip(rows, found, records, strict=True)
    ]
    return columns, lines


def _coverage(study: Results, row: Mapping[str, Any]) -> str:
    printed = row.get("parts", {}).get("coverage_percent", math.nan)
    own = study.presets["coverage"].get(row["preset"])
    if own is None or not same_dataset(row["dataset"], study.dataset):
        own = math.nan
    return f"{number(printed)} / {number(100 * own)}"


def _across(rows: Sequence[Mapping[str, Any]], found: Sequence[Ours]) -> tuple[list[str], list[list[str]]]:
    """Columns and a line per method of the paper, its mean and its classes across."""
    classes = ["", *dict.fromkeys(row["class"] for row in rows if "class" in row)]
    cells = {_identity(row): (row, mine) for row, mine in zip(rows, found, strict=True)}
    lines = []
    for row, mine in zip(rows, found, strict=True):
        if "class" in row:
            continue
        line = [row["dataset"], row["preset"], _what(row)]
        for name in classes:
            other = cells.get(_identity({**row, "class": name}))
            line.append(f"{number(other[0]['value'])} / {number(other[1].value)}" if other else NOTHING)
        lines.append([*line, str(mine.cases or mine.why)])
    return ["data set", "preset", "method", "mean", *classes[1:], "cases"], lines


def _identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    parts = {
        key: value
        for key, value in row.get("parts", {}).items()
        if key in ("postprocessing", "shift_percent")
    }
    return (
        row["dataset"],
        row["preset"],
        row["method"],
        row.get("class", ""),
        json.dumps(parts, sort_keys=True),
    )


def _baseline_of(
    row: Mapping[str, Any], baseline: str, rows: Mapping[tuple[str, ...], float]
) -> tuple[str, ...] | None:
    """The row that a row's gain counts from: the paper's own, or that of the study's baseline."""
    parts = row.get("parts", {})
    name = parts.get("baseline", baseline)
    identity = (row["dataset"], row["preset"], name, row.get("class", ""), "{}")
    return (
        identity if identity in rows and identity != _identity(row) and "shift_percent" not in parts else None
    )


def _what(row: Mapping[str, Any]) -> str:
    parts = row.get("parts", {})
    if "postprocessing" in parts:
        return f"{row['method']}, {parts['postprocessing'].replace('_', ' ')}"
    return str(row["method"])


def _bound(row: Mapping[str, Any]) -> str:
    bound = row.get("parts", {}).get("bound", "")
    return f"{bound} " if bound else ""
