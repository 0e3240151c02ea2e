"""What an evaluation writes: JSON, CSV and Markdown, and how it is read again."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.evaluation.measures import Settings
from nnunet_locctx.files import write_atomically

JSON, CSV, MARKDOWN = "evaluation.json", "evaluation.csv", "evaluation.md"
KEYS = ("version", "definitions", "settings", "classes", "pairs", "cases", "mean", "foreground")
COLUMNS = {
    "reference_ml": ("reference ml", 1),
    "dice": ("Dice", 3),
    "hd95_mm": ("HD95 mm", 2),
    "nsd": ("NSD", 3),
    "volume_error_ml": ("error ml", 1),
    "volume_error_percent": ("error %", 1),
    "swap_rate": ("swap rate", 4),
    "off_region_ml": ("off region ml", 2),
    "paper_dice": ("paper Dice", 3),
    "paper_hd95_voxels": ("paper HD95 voxels", 2),
}
"""Measure -> heading and decimals in the table."""


def summarise_cases(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Means over the cases, then over the classes; values that are None are left out.

    Args:
        rows: The cases' rows, those of the background (if a paper counts it) among them.
        classes: The foreground classes.
        settings: What was measured.

    Returns:
        ``mean`` (per class), ``foreground`` (mean of the foreground classes' means), ``presence`` (per class, cases
        of each kind) and, with the measures of a paper, ``paper``: the mean over the classes of a case, background
        included where the paper does, then over the cases (``locbam``); or over the cases of a class, then over the
        classes (``gpe``).
    """
    names = list(dict.fromkeys(row["class"] for row in rows))
    of = {name: [row for row in rows if row["class"] == name] for name in names}
    mean = {
        name: {measure: _mean([row[measure] for row in of[name]]) for measure in settings.measures}
        for name in names
    }
    found: dict[str, Any] = {
        "mean": mean,
        "foreground": {
            measure: _mean([mean[name][measure] for name in classes]) for measure in settings.measures
        },
        "presence": {
            name: {
                kind: sum(row["presence"] == kind for row in of[name])
                for kind in ("both", "missing", "spurious", "absent")
            }
            for name in classes
        },
    }
    if settings.paper is not None:
        by_class = settings.paper == "gpe"
        groups = [
            [row for row in rows if row["class" if by_class else "case"] == key]
            for key in (names if by_class else dict.fromkeys(row["case"] for row in rows))
        ]
        found["paper"] = {
            measure: _mean([_mean([row[measure] for row in group]) for group in groups])
            for measure in ("paper_dice", "paper_hd95_voxels")
        }
    return found


def write_evaluation(content: Mapping[str, Any], output: Path) -> list[Path]:
    """Writes the three files into the folder.

    Returns:
        The files.
    """
    texts = {
        JSON: json.dumps(content, indent=1, allow_nan=False) + "\n",
        CSV: to_csv(content),
        MARKDOWN: to_markdown(content),
    }
    for name, text in texts.items():
        write_atomically(output / name, text.encode())
    return [output / name for name in texts]


def read_evaluation(file: Path) -> dict[str, Any]:
    """What ``evaluation.json`` holds.

    Args:
        file: The file, or its folder.

    Raises:
        ValueError: It cannot be read, or holds something else.
    """
    file = file / JSON if file.is_dir() else file
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{file} is no evaluation by `locctx evaluate`: it lacks {', '.join(missing)}")
    if content["version"] != 1:
        raise ValueError(f"{file} has version {content['version']}, this package reads version 1")
    return dict(content)


def to_csv(content: Mapping[str, Any]) -> str:
    """One line per case and class; nothing where a measure is not defined."""
    text = io.StringIO()
    columns = ["case", "class", *content["definitions"]]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in content["cases"]:
        writer.writerow(
            "" if row[name] is None else f"{row[name]:.8g}" if isinstance(row[name], float) else row[name]
            for name in columns
        )
    return text.getvalue()


def to_table(content: Mapping[str, Any]) -> str:
    """The means over the cases, as a Markdown table whose columns are aligned."""
    columns = [name for name in COLUMNS if name in content["definitions"]]
    heads = ["class", *(COLUMNS[name][0] for name in columns), "missing", "spurious"]
    lines = []
    for name in [*content["classes"], *(["background"] if "background" in content["mean"] else [])]:
        counts = content["presence"].get(name, {})
        shown = [_number(content["mean"][name][measure], COLUMNS[measure][1]) for measure in columns]
        lines.append([_cell(name), *shown, *(str(counts.get(kind, "-")) for kind in ("missing", "spurious"))])
    means = [_number(content["foreground"][measure], COLUMNS[measure][1]) for measure in columns]
    totals = [
        str(sum(counts[kind] for counts in content["presence"].values())) for kind in ("missing", "spurious")
    ]
    lines.append(["foreground", *means, *totals])
    widths = [max(len(line[at]) for line in [heads, *lines]) for at in range(len(heads))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def joined(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    return "\n".join(map(joined, [heads, rule, *lines])) + "\n"


def to_markdown(content: Mapping[str, Any]) -> str:
    """The table, what it is of, and the definitions."""
    count = len({row["case"] for row in content["cases"]})
    told = (
        f"{content['settings']['predictions']} against {content['settings']['references']}, {count} "
        f"case{'s' if count != 1 else ''}. Means over the cases; foreground: mean of the classes' means. Values that "
        "are not defined are left out. `missing` and `spurious` count cases."
    )
    lines = ["# Evaluation", "", told, "", to_table(content)]
    if "paper" in content:
        means = [f"{name} {_number(value, 3)}" for name, value in content["paper"].items()]
        lines += [f"As the paper ({content['settings']['paper']}) takes the mean: {', '.join(means)}.", ""]
    if content["pairs"]:
        lines += [f"Sides: {'; '.join(f'{left} - {right}' for left, right in content['pairs'])}.", ""]
    lines += [f"- {name}: {text}" for name, text in content["definitions"].items()]
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
