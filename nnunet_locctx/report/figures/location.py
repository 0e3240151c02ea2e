"""Dice under a wrong location (as figure 4 of the LocBAM paper), from what `locctx robustness` measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_locctx.report.document import Figure, count
from nnunet_locctx.report.figures.style import WIDTH, legend_below, looks, new_figure, to_png
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.scores import foreground

KIND_WORDS = {"shift": "constant shift", "noise": "noise per slice (SD)"}
AXES_WORDS = {"axial": "along the body", "all": "all axes"}
PER_ROW = 3


def location_points(study: Study) -> list[dict[str, Any]]:
    """Every measured point, with the preset and the method it belongs to; Dice as a fraction, NaN if undefined."""
    found = []
    for run in study.runs:
        content = study.robustness.get(run.run, {})
        models = content.get("models") or ()
        for point in content.get("points") or ():
            name = run.method if len(models) < 2 else f"{run.method}: {point['model']}"
            found.append(
                {
                    "preset": run.preset,
                    "method": name,
                    "kind": point["kind"],
                    "axes": point["axes"],
                    "percent": float(point["percent"]),
                    "dice": _number(point.get("dice")),
                    "deviation": _number(point.get("deviation")),
                    "cases": int(point.get("cases") or 0),
                }
            )
    return found


def baseline_dice(study: Study, preset: str) -> float:
    """The baseline's mean foreground Dice on the cases that `locctx robustness` used at the preset; NaN if unknown."""
    run = study.find(study.baseline, preset)
    scores = study.validation.get(run.run) if run else None
    cases = {
        case for one in study.at(preset) for case in study.robustness.get(one.run, {}).get("cases") or ()
    }
    if scores is None or not cases:
        return math.nan
    keys = [key for key in scores.keys if key[1] in cases]
    if len(keys) < len(cases):
        return math.nan
    return float(foreground(scores.chosen(keys).values["dice"]))


def draw_location(study: Study, points: Sequence[Mapping[str, Any]]) -> Figure | None:
    """A panel per preset, kind of error and axes; None without points."""
    groups = list(dict.fromkeys((str(p["preset"]), str(p["kind"]), str(p["axes"])) for p in points))
    if not groups:
        return None
    look = looks(study)
    amounts = sorted({float(point["percent"]) for point in points})
    columns = min(PER_ROW, len(groups))
    lines = math.ceil(len(groups) / columns)
    width = WIDTH if columns > 1 else 0.7 * WIDTH
    handles: dict[str, Any] = {}
    with new_figure(width, 0.5 + 2.7 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for panel, group in zip(panels.flat, groups, strict=False):
            chosen = [p for p in points if (p["preset"], p["kind"], p["axes"]) == group]
            for method in dict.fromkeys(str(point["method"]) for point in chosen):
                colour, marker = look.get(method.split(": ")[0], ("#000000", "o"))
                values = {
                    float(p["percent"]): 100 * float(p["dice"]) for p in chosen if p["method"] == method
                }
                curve = [values.get(amount, math.nan) for amount in amounts]
                (line,) = panel.plot(curve, color=colour, marker=marker, markersize=4)
                handles.setdefault(method, line)
            reference = 100 * baseline_dice(study, group[0])
            if math.isfinite(reference):
                line = panel.axhline(reference, color=look[study.baseline][0], linestyle="--", linewidth=1.2)
                handles.setdefault(f"{study.baseline} (no location)", line)
            panel.set_title(
                f"{group[0]}\n{KIND_WORDS.get(group[1], group[1])}, {AXES_WORDS.get(group[2], group[2])}"
            )
            panel.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
            panel.set_xlabel("error of the location, % of the axis")
            panel.grid(axis="y")
        for panel in list(panels.flat)[len(groups) :]:
            panel.set_visible(False)
        for row in panels:
            row[0].set_ylabel("foreground Dice, %")
        low, high = panels[0, 0].get_ylim()
        panels[0, 0].set_ylim(max(low, -2), min(high, 102))
        legend_below(figure, list(handles.values()), list(handles))
        png = to_png(figure)
    cases = max(int(point["cases"]) for point in points)
    return Figure(
        "wrong_location",
        png,
        "Foreground Dice when the location is wrong: shifted by a constant, or off by a Gaussian error per "
        f"slice, on up to {count(cases, 'validation case')} of the first fold. The amounts stand at equal "
        f"distances. Shift: mean of both directions. Dashed: {study.baseline} on the same cases, from the "
        "validation (with mirroring, if the trainer mirrors; the curves are without).",
        "Dice against the error of the location",
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
