"""Table, numbers and curves of a robustness run, as Markdown, CSV, JSON and PNG."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_locctx.evaluation.robustness import Robustness
from nnunet_locctx.evaluation.wrong_location import AXES_WORDS
from nnunet_locctx.files import write_atomically
from nnunet_locctx.viewing import COLOURS

CURVE = ["model", "kind", "axes", "percent"]
"""Index of :func:`collect`'s frames: identifies a point of a curve."""

NAMES = ("robustness.md", "robustness.csv", "robustness.json", "robustness.png")
KIND_WORDS = {
    "shift": "Location shifted by a constant",
    "noise": "Location off by a Gaussian error per slice (amount: its standard deviation)",
    "unknown": "Location unknown (NaN)",
}
SIGN_WORDS = {"both": "mean of both directions", "plus": "towards +", "minus": "towards -"}

STYLES = {"axial": "-", "all": "--", "R": ":", "A": "-."}
TITLES = {"shift": "constant shift", "noise": "noise per slice (standard deviation)", "unknown": "unknown"}


def write_report(run: Robustness) -> list[Path]:
    """Writes table, numbers and picture of a finished run.

    Returns:
        The files.

    Raises:
        KeyError: The run is not finished.
    """
    points, per_class = collect(run)
    settings = describe(run)
    contents = (
        to_markdown(points, settings).encode(),
        to_csv(points, per_class).encode(),
        to_json(points, per_class, settings).encode(),
        draw_curves(points.reset_index()),
    )
    files = [run.output / name for name in NAMES]
    for file, data in zip(files, contents, strict=True):
        write_atomically(file, data)
    return files


def collect(run: Robustness) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every point of every curve.

    Returns:
        points: ``dice`` (foreground Dice, a fraction: mean over the classes of a case, then over directions, then over
            cases), ``deviation`` (standard deviation over the cases, n - 1) and ``cases`` (number of cases with a
            Dice). Classes in neither label nor prediction are left out; NaN if none is left.
        per_class: A column per class: mean over directions, then over cases.
    """
    keys, values = [], []
    for kind, axes in run.design.curves():
        for model in run.models:
            for amount in run.design.amounts:
                for case in run.cases:
                    for change in run.design.point(kind, axes, amount):
                        keys.append((model, kind, axes, amount, case.name))
                        values.append(run.dice(model, case, change))
    by_class = pd.DataFrame(values, index=pd.MultiIndex.from_tuples(keys, names=[*CURVE, "case"]))
    by_case = by_class.mean(axis=1).groupby(level=[*CURVE, "case"], sort=False).mean()
    points = by_case.groupby(level=CURVE, sort=False).agg(dice="mean", deviation="std", cases="count")
    per_class = by_class.groupby(level=[*CURVE, "case"], sort=False).mean()
    return points, per_class.groupby(level=CURVE, sort=False).mean()


def describe(run: Robustness) -> dict[str, Any]:
    """The models, cases and settings, for the reports."""
    first = next(iter(run.models.values()))
    return {
        "models": [
            {
                "name": name,
                "folder": str(model.folder),
                "fold": model.fold,
                "checkpoint": model.checkpoint,
                "source": model.source.name,
            }
            for name, model in run.models.items()
        ],
        "cases": [case.name for case in run.cases],
        "mirroring": bool(first.predictor.use_mirroring),
        "sign": run.design.sign,
        "seed": run.design.seed,
    }


def to_markdown(points: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    """One table for each kind of error, with a line for each model and axes."""
    count = len(settings["cases"])
    intro = (
        f"Foreground Dice on the original grid, mean over the classes and then over {count} "
        f"case{'s' if count != 1 else ''}. Amounts are percent of the axis: of the coordinate's range, for the source "
        "`scanner` of the scan's extent."
    )
    lines = ["# Dice under a wrong location", "", intro]
    for kind in points.index.unique("kind"):
        table = points["dice"].xs(kind, level="kind").unstack("percent", sort=False)
        amounts = [f"{amount:g} %" for amount in table.columns]
        if kind == "unknown":  # an unknown location has no amount
            wrong = [amount for amount in table.columns if amount > 0]
            table = table.drop(columns=wrong[1:])
            amounts = ["unknown" if amount in wrong else f"{amount:g} %" for amount in table.columns]
        direction = f", {SIGN_WORDS[settings['sign']]}" if kind == "shift" else ""
        lines += [
            "",
            f"{KIND_WORDS[kind]}{direction}:",
            "",
            f"| model | error | {' | '.join(amounts)} |",
            "|---|---|" + "---:|" * len(table.columns),
        ]
        for (name, axes), values in table.iterrows():
            shown = ["-" if pd.isna(value) else f"{value:.3f}" for value in values]
            model = name.replace("|", "\\|")
            lines.append(f"| {model} | {AXES_WORDS[axes]} | {' | '.join(shown)} |")
    lines.append("")
    lines += [
        f"- {one['name']}: {one['folder']}, fold {one['fold']}, {one['checkpoint']}, source `{one['source']}`"
        for one in settings["models"]
    ]
    return "\n".join(lines) + "\n"


def to_csv(points: pd.DataFrame, per_class: pd.DataFrame) -> str:
    """One line for each point; a number that is not defined is left empty."""
    table = pd.concat([points, per_class], axis=1)
    names = ["model", "change", "axes", "percent"]
    return str(table.to_csv(index_label=names, float_format="%.6g", lineterminator="\n"))


def to_json(points: pd.DataFrame, per_class: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    """Settings and points; null where a number is not defined."""
    rows = []
    for (key, point), classes in zip(points.iterrows(), per_class.to_dict("records"), strict=True):
        numbers = {name: _or_null(point[name]) for name in ("dice", "deviation")}
        count = int(point["cases"])
        by_class = {name: _or_null(value) for name, value in classes.items()}
        rows.append({**dict(zip(CURVE, key, strict=True)), **numbers, "cases": count, "per_class": by_class})
    return json.dumps({**settings, "points": rows}, indent=1, allow_nan=False) + "\n"


def _or_null(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def draw_curves(points: pd.DataFrame) -> bytes:
    """A panel for each kind of error, with a line for each model (colour) and axes (dash).

    The amounts are drawn at equal distances, as they span two orders of magnitude and begin at 0. An unknown location
    has no amount: its panel compares the true with the unknown location.

    Args:
        points: A row per point: ``model``, ``kind``, ``axes``, ``percent``, ``dice``.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    kinds, models = points["kind"].unique(), points["model"].unique()
    several = points["axes"].nunique() > 1
    amounts = sorted(points["percent"].unique())
    curves = points.set_index(["kind", "model", "axes", "percent"])["dice"].unstack("percent")
    longest = max(map(len, models)) + (24 if several else 0)
    figure = Figure(figsize=(4.2 * len(kinds) + 0.7 + 0.065 * longest, 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    lines: dict[str, Any] = {}
    for panel, kind in zip(panels, kinds, strict=True):
        steps = amounts if kind != "unknown" else sorted({amounts[0], amounts[-1]})
        for number, model in enumerate(models):
            for axes, style in STYLES.items():
                if (kind, model, axes) in curves.index:
                    dice = curves.loc[(kind, model, axes), steps].to_numpy()
                    look = {"color": COLOURS[number % len(COLOURS)], "marker": "o", "markersize": 3.5}
                    (line,) = panel.plot(dice, style, linewidth=1.6, **look)
                    lines.setdefault(f"{model}, {AXES_WORDS[axes]}" if several else model, line)
        panel.set_xlim(-0.3, len(steps) - 0.7)
        names = [f"{amount:g}" for amount in steps]
        if kind == "unknown":
            names = ["unknown" if amount else "true" for amount in steps]
        panel.set_xticks(range(len(steps)), names)
        panel.set_xlabel("location" if kind == "unknown" else "error of the location, % of the axis")
        panel.set_title(TITLES[kind], fontsize=10)
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelleft=True)
    # a margin above and below, within the possible values of Dice
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(max(-0.02, low), min(1.02, high))
    panels[0].set_ylabel("foreground Dice")
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", fontsize=8, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()
