"""Table and figures of a robustness run, as Markdown, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_locctx.evaluation.robustness import NamedModel, Robustness
from nnunet_locctx.evaluation.robustness_figure import draw_curves
from nnunet_locctx.files import write_atomically

NAMES = ("robustness.md", "robustness.csv", "robustness.json", "robustness.png")
KIND_WORDS = {
    "shift": "Location shifted by a constant",
    "noise": "Location off by a Gaussian error per slice (amount: its standard deviation)",
}
AXES_WORDS = {"axial": "along the body", "all": "along all three axes"}
SIGN_WORDS = {"both": "mean of both directions", "plus": "towards +", "minus": "towards -"}


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        model: Name of the model.
        kind: ``shift`` or ``noise``.
        axes: ``axial`` or ``all``.
        percent: Of the axis.
        dice: Foreground Dice, a fraction: mean over the classes of a case, then over directions, then over cases.
            Classes in neither label nor prediction are left out. NaN if nothing is left.
        deviation: Standard deviation over the cases (n - 1); NaN for fewer than two.
        cases: Cases that count.
        per_class: Class name -> mean over directions, then over cases.
    """

    model: str
    kind: str
    axes: str
    percent: float
    dice: float
    deviation: float
    cases: int
    per_class: Mapping[str, float]


def write_report(run: Robustness) -> list[Path]:
    """Writes table, numbers and picture of a finished run.

    Returns:
        The files.

    Raises:
        KeyError: The run is not finished.
    """
    points = collect(run)
    settings = describe(run)
    picture = draw_curves(points)
    texts = (to_markdown(points, settings), to_csv(points), to_json(points, settings))
    files = [run.output / name for name in NAMES]
    for file, data in zip(files, [*(text.encode() for text in texts), picture], strict=True):
        write_atomically(file, data)
    return files


def collect(run: Robustness) -> list[Point]:
    """Every point of every curve."""
    return [
        _point(run, one, kind, axes, amount)
        for kind, axes in run.design.curves()
        for one in run.models
        for amount in run.design.amounts
    ]


def describe(run: Robustness) -> dict[str, Any]:
    """What was done, for the reports."""
    return {
        "models": [
            {
                "name": one.name,
                "folder": str(one.model.folder),
                "fold": one.model.fold,
                "checkpoint": one.model.checkpoint,
                "source": one.model.source.name,
            }
            for one in run.models
        ],
        "cases": [case.name for case in run.cases],
        "mirroring": bool(run.models[0].model.predictor.use_mirroring),
        "sign": run.design.sign,
        "seed": run.design.seed,
    }


def to_markdown(points: Sequence[Point], settings: Mapping[str, Any]) -> str:
    """One table per kind of error, a line per model and axes."""
    count = len(settings["cases"])
    told = (
        f"Foreground Dice on the original grid, mean over the classes and then over {count} "
        f"case{'s' if count != 1 else ''}. Amounts are percent of the axis: of the coordinate's range, for the source "
        "`scanner` of the scan's extent."
    )
    lines = [
        "# Dice under a wrong location",
        "",
        told,
    ]
    for kind in dict.fromkeys(point.kind for point in points):
        chosen = [point for point in points if point.kind == kind]
        amounts = sorted({point.percent for point in chosen})
        direction = f", {SIGN_WORDS[settings['sign']]}" if kind == "shift" else ""
        lines += [
            "",
            f"{KIND_WORDS[kind]}{direction}:",
            "",
            f"| model | error | {' | '.join(f'{amount:g} %' for amount in amounts)} |",
            "|---|---|" + "---:|" * len(amounts),
        ]
        for name, axes in dict.fromkeys((point.model, point.axes) for point in chosen):
            row = {point.percent: point.dice for point in chosen if (point.model, point.axes) == (name, axes)}
            values = [_number(row[amount]) for amount in amounts]
            lines.append(
                f"| {name.replace('|', chr(92) + '|')} | {AXES_WORDS[axes]} | {' | '.join(values)} |"
            )
    lines.append("")
    lines += [
        f"- {one['name']}: {one['folder']}, fold {one['fold']}, {one['checkpoint']}, source `{one['source']}`"
        for one in settings["models"]
    ]
    return "\n".join(lines) + "\n"


def to_csv(points: Sequence[Point]) -> str:
    """One line per point; no value where a number is not defined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = list(points[0].per_class)
    writer.writerow(["model", "change", "axes", "percent", "dice", "deviation", "cases", *classes])
    for point in points:
        numbers = [point.dice, point.deviation, point.cases, *point.per_class.values()]
        shown = ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
        writer.writerow([point.model, point.kind, point.axes, f"{point.percent:g}", *shown])
    return text.getvalue()


def to_json(points: Sequence[Point], settings: Mapping[str, Any]) -> str:
    """Settings and points; null where a number is not defined."""
    content = {**settings, "points": [asdict(point) for point in points]}
    return json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"


def _point(run: Robustness, one: NamedModel, kind: str, axes: str, amount: float) -> Point:
    names = list(run.dice(one, run.cases[0], run.design.point(kind, axes, amount)[0]))
    # (cases, directions, classes)
    found = np.array(
        [
            [list(run.dice(one, case, change).values()) for change in run.design.point(kind, axes, amount)]
            for case in run.cases
        ]
    )
    per_case = [_mean([_mean(classes) for classes in directions]) for directions in found]
    known = [value for value in per_case if not math.isnan(value)]
    return Point(
        model=one.name,
        kind=kind,
        axes=axes,
        percent=amount,
        dice=_mean(per_case),
        deviation=float(np.std(known, ddof=1)) if len(known) > 1 else math.nan,
        cases=len(known),
        per_class={
            name: _mean([_mean(directions) for directions in found[:, :, number]])
            for number, name in enumerate(names)
        },
    )


def _mean(values: Any) -> float:
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
