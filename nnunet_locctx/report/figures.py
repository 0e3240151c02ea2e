"""The report's plots: each function returns a picture with its caption and its finding in words."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from nnunet_locctx.evaluation import wrong_location
from nnunet_locctx.report.document import Figure, count, number, percent, slug
from nnunet_locctx.report.papers import printed_gains
from nnunet_locctx.report.results import SERIES, Results
from nnunet_locctx.report.statistics import by_case, class_gains, class_sizes, foreground, with_base
from nnunet_locctx.report.style import BASELINE_COLOUR, WIDTH, legend_below, looks, new_figure, to_svg

MANY_POINTS = 4000
"""Thin lines of a panel with more points are drawn as pixels, as their paths would make the page large."""

SERIES_WORDS = {"train_loss": "training loss", "val_loss": "validation loss", "pseudo_dice": "pseudo Dice, %"}
KIND_WORDS = {
    "shift": "constant shift",
    "noise": "noise per slice (SD)",
    "unknown": "unknown (line; dot: true)",
}
AXES_WORDS = {**wrong_location.AXES_WORDS, "all": "all axes"}
FARTHEST = 50.0
"""Largest error that is drawn, percent of the axis; larger errors are in the table."""

PER_ROW = 3
"""Panels side by side; further presets go into further figures."""

SQUEEZE_FROM = 3
"""If a paper's gain is more than this many times the study's largest, the axis is not linear: the study's gains would
not be readable."""


def draw_coverage(study: Results, rows: pd.DataFrame) -> Figure | None:
    """Draws the gain against the share of the volume that a patch covers (the relation in LocBAM's table 2).

    Each preset and method has a point with its interval. The paper's own gains are hollow; they are drawn if the study
    names the paper's table and has the same dataset. None if no preset has both a coverage and a gain.
    """
    coverage = 100 * study.presets["coverage"].astype(float).replace(0, np.nan)
    chosen = (
        _in_points(rows).assign(coverage=rows["preset"].map(coverage)).dropna(subset=["coverage", "gain"])
    )
    if chosen.empty:
        return None
    printed = printed_gains(study)
    look = looks(study)
    methods = list(chosen["method"].unique())
    with new_figure(WIDTH, 4.0) as figure:
        panel = figure.subplots()
        for place, method in enumerate(methods):
            colour, marker, _ = look[method]
            points = chosen[chosen["method"] == method].sort_values("coverage", kind="stable")
            # points of one preset are moved apart to stay visible
            x = points["coverage"] * 1.04 ** (place - (len(methods) - 1) / 2)
            panel.plot(x, points["gain"], color=colour, marker=marker, markersize=5, label=method)
            panel.vlines(x, points["gain_low"], points["gain_high"], color=colour, linewidth=1, alpha=0.7)
        for method, points in printed.groupby("method", sort=False):
            colour, marker, _ = look.get(method, (BASELINE_COLOUR, "o", ""))
            hollow: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "linestyle": ":"}
            name = f"{method} (paper)"
            panel.plot(points["coverage"], points["gain"], color=colour, marker=marker, label=name, **hollow)
        largest = float(chosen[["gain", "gain_low", "gain_high"]].abs().max(axis=None))
        squeezed = bool((printed["gain"].abs() > SQUEEZE_FROM * largest).any())
        if squeezed:
            _squeeze(panel, largest)
        panel.axhline(0, color=BASELINE_COLOUR, linewidth=0.8)
        panel.set_xscale("log")
        _label_ticks(panel, [*coverage.dropna(), *printed["coverage"]])
        panel.set_xlabel("patch over median volume, % (logarithmic)")
        panel.set_ylabel(study.gain_axis)
        panel.grid(axis="y")
        _name_presets(panel, dict(zip(chosen["preset"], chosen["coverage"], strict=True)))
        legend_below(figure, *panel.get_legend_handles_labels())
        svg = to_svg(figure)
    paper = (
        ""
        if printed.empty
        else " Hollow, dotted: the papers' own gains (see the comparison with the papers)."
    )
    if squeezed:
        paper += " The vertical axis is linear around 0 and logarithmic further out."
    return Figure(
        "coverage_gain",
        svg,
        f"Gain in mean foreground Dice over {study.baselines} against the share of the median volume that one "
        "patch covers; a point per preset, joined per method. Lines: 95% bootstrap intervals over up to "
        f"{count(chosen['pairs'].max(), 'validation case')}{study.mean_of_seeds}. Points of one preset are moved "
        f"apart by a few percent to stay visible.{paper}",
        f"Gain over {study.baselines} in points of Dice. " + _of_each(chosen, "preset"),
    )


def draw_classes(study: Results, rows: pd.DataFrame, preset: str) -> Figure | None:
    """Draws the gain per class, in the order of the organs' size (as figure 3 of the LocBAM paper).

    Each class is a line with a point per method. None if the preset has no gains.
    """
    others = rows[(rows["preset"] == preset) & rows["gain"].notna()]
    if others.empty:
        return None
    base = others.iloc[0]
    sizes = class_sizes(study.scores_of(base["base"], base["part"]))
    gains = _in_points(class_gains(with_base(study, rows[rows["preset"] == preset])))
    look = looks(study)
    step = 0.8 / len(others)
    with new_figure(WIDTH, 1.5 + len(sizes) * max(0.3, 0.1 * len(others))) as figure:
        panel = figure.subplots()
        for place, method in enumerate(others["method"]):
            colour, marker, _ = look[method]
            points = gains[gains["method"] == method].set_index("class").reindex(sizes.index)
            y = np.arange(len(sizes)) + (place - (len(others) - 1) / 2) * step
            panel.plot(points["gain"], y, marker, color=colour, markersize=4.5, label=method)
            panel.hlines(y, points["gain_low"], points["gain_high"], color=colour, linewidth=1.2, alpha=0.7)
        for stripe in range(1, len(sizes), 2):
            panel.axhspan(stripe - 0.5, stripe + 0.5, color="#888888", alpha=0.08, linewidth=0)
        panel.axvline(0, color=BASELINE_COLOUR, linewidth=0.8)
        panel.set_yticks(range(len(sizes)), [_with_size(name, size) for name, size in sizes.items()])
        panel.set_ylim(len(sizes) - 0.5, -0.5)  # the smallest on top
        panel.set_xlabel(study.gain_axis)
        panel.grid(axis="x")
        legend_below(figure, *panel.get_legend_handles_labels())
        svg = to_svg(figure)
    return Figure(
        f"class_gain_{slug(preset)}",
        svg,
        f"{preset}: gain in Dice per class over {study.baselines}, the smallest organ on top (median true "
        "volume in brackets). Lines: 95% bootstrap intervals over up to "
        f"{count(int(gains['pairs'].max()) if len(gains) else 0, 'validation case')}; a "
        "class counts in the cases where both methods have a Dice. Not corrected for the number of classes.",
        f"Gain per class at {preset}. " + _extremes(gains),
    )


def draw_training(study: Results) -> list[Figure]:
    """Draws loss and pseudo Dice by epoch (as figure 2 of the LocBAM paper) for all presets with trainings."""
    shown = [
        preset
        for preset in study.presets.index
        if study.runs_at(preset).index.isin(study.trainings["run"]).any()
    ]
    groups = [shown[start : start + PER_ROW] for start in range(0, len(shown), PER_ROW)]
    return [
        _draw_curves(study, group, "training" if len(groups) == 1 else f"training_{number}")
        for number, group in enumerate(groups, 1)
    ]


def _draw_curves(study: Results, presets: Sequence[str], key: str) -> Figure:
    look = looks(study)
    epochs = study.epochs[study.epochs["preset"].isin(presets)]
    epochs = epochs.assign(pseudo_dice=100 * epochs["pseudo_dice"])
    methods = epochs.dropna(subset=SERIES, how="all")["method"].unique()
    trainings = study.trainings[
        study.trainings["run"].isin(study.runs.index[study.runs["preset"].isin(presets)])
    ]
    with new_figure(WIDTH, 6.2) as figure:
        panels = figure.subplots(len(SERIES), len(presets), squeeze=False, sharex="col", sharey="row")
        for (row, column), panel in np.ndenumerate(panels):
            for run in study.runs_at(presets[column]).itertuples():
                colour, _, stroke = look[run.method]
                # missing values become gaps
                mine = epochs[epochs["run"] == run.Index]
                mine = mine.drop_duplicates(["seed", "fold", "epoch"], keep="last")
                table = mine.pivot(index="epoch", columns=["seed", "fold"], values=SERIES[row])
                marker = "o" if len(table) == 1 else None
                if table.shape[1] > 1:
                    thin: Any = {"linewidth": 0.5, "alpha": 0.45, "marker": marker, "markersize": 2}
                    panel.plot(table, color=colour, rasterized=table.size > MANY_POINTS, **thin)
                mean = table.mean(axis=1)
                panel.plot(mean, stroke, color=colour, linewidth=1.5, marker=marker, markersize=4)
            panel.grid(axis="y")
        for preset, panel in zip(presets, panels[0], strict=True):
            panel.set_title(preset)
        for panel in panels[-1]:
            panel.set_xlabel("epoch")
            panel.xaxis.get_major_locator().set_params(integer=True)
        for name, panel in zip(SERIES, panels[:, 0], strict=True):
            panel.set_ylabel(SERIES_WORDS[name])
        panels[-1, 0].set_ylim(bottom=min(0, panels[-1, 0].get_ylim()[0]))
        strokes = {name: Line2D([], [], color=look[name][0], linestyle=look[name][2]) for name in methods}
        legend_below(figure, list(strokes.values()), list(strokes))
        svg = to_svg(figure)
    folds = int(trainings.groupby(["run", "seed"]).size().max())
    last = epochs.dropna(subset="pseudo_dice").sort_values("epoch")
    last = last.groupby(["run", "seed", "fold"]).tail(1).sort_index()
    last = last.groupby(["preset", "method"], sort=False)["pseudo_dice"].mean().reset_index()
    of_seeds = f" of each of {len(study.seeds)} seeds" if len(study.seeds) > 1 else ""
    return Figure(
        key,
        svg,
        "Training and validation loss and nnU-Net's pseudo Dice (mean over the classes) by epoch. Thin "
        f"lines: the folds (up to {count(folds, 'fold')}{of_seeds}); thick: their mean. The pseudo Dice is measured on "
        "random validation patches, so patches of different sizes are not comparable.",
        "Pseudo Dice in the last epoch in %. " + _of_each(last, "preset", "pseudo_dice"),
        study.epochs.loc[epochs.index].drop(columns="run"),
    )


def baseline_dice(study: Results, preset: str) -> float:
    """The baseline's mean foreground Dice at a preset on the cases that `locctx robustness` used; NaN if unknown."""
    cases = study.shifted[preset]
    scores = study.scores_of(study.find(study.baseline, preset))
    scores = scores[scores["case"].isin(cases)]
    known = cases and scores["case"].nunique() == len(cases)
    return float(foreground(by_case(scores))) if known else math.nan


def draw_location(study: Results) -> Figure | None:
    """Draws the Dice under a wrong location (as figure 4 of the LocBAM paper) from the results of `locctx robustness`.

    The panels have a column per source of the location and a row per preset, kind of error and axes; errors go up to
    :data:`FARTHEST` percent. None without results.
    """
    points = study.robustness.dropna(subset="dice")
    points = points[(points["percent"] <= FARTHEST) | (points["kind"] == "unknown")]
    if points.empty:
        return None
    look = looks(study)
    points = points.assign(source=points["method"].map(study.methods["source"]).fillna("unknown"))
    sources = list(points["source"].unique())
    rows = list(points.groupby(["preset", "kind", "axes"], sort=False))
    handles: dict[str, Any] = {}
    width = WIDTH if len(sources) > 1 else 0.7 * WIDTH
    with new_figure(width, 0.6 + 2.3 * len(rows)) as figure:
        panels = figure.subplots(len(rows), len(sources), squeeze=False, sharex=True, sharey=True)
        for line, ((preset, kind, axes), group) in zip(panels, rows, strict=True):
            reference = 100 * baseline_dice(study, preset)
            line[0].set_ylabel(
                f"{preset}\n{KIND_WORDS.get(kind, kind)}, {AXES_WORDS.get(axes, axes)}\nDice, %"
            )
            for panel, source in zip(line, sources, strict=True):
                for name, curve in group[group["source"] == source].groupby("method", sort=False):
                    colour, marker, _ = look[name]
                    dice = 100 * curve.groupby("percent")["dice"].last()
                    if kind == "unknown":  # an unknown location has no amount
                        for level in dice[dice.index > 0].tail(1):
                            panel.axhline(level, color=colour, linewidth=1.2)
                        dice = dice[dice.index == 0]
                    handles.setdefault(name, panel.plot(dice, color=colour, marker=marker, markersize=4)[0])
                if math.isfinite(reference):
                    dashed = panel.axhline(reference, color=BASELINE_COLOUR, linestyle="--", linewidth=1.2)
                    handles.setdefault(f"{study.baseline} (no location)", dashed)
                panel.grid(axis="y")
        for panel, source in zip(panels[0], sources, strict=True):
            panel.set_title(f"source {source}")
        for panel in panels[-1]:
            panel.set_xlabel("error, % of the axis")
        low, high = panels[0, 0].get_ylim()
        panels[0, 0].set_ylim(max(low, -2), min(high, 102))
        legend_below(figure, list(handles.values()), list(handles))
        svg = to_svg(figure)
    largest = min(points["percent"].max(), FARTHEST)
    return Figure(
        "wrong_location",
        svg,
        f"Foreground Dice when the location is wrong by up to {largest:g}% of the axis: shifted by a "
        "constant (mean of both directions), or off by a Gaussian error per slice; or unknown (no amount); on up to "
        f"{count(points['cases'].max(), 'validation case')} of the first fold{study.mean_of_seeds}; a column per "
        f"source of the location. Dashed: {study.baseline} on the same cases, from the validation (with mirroring, if "
        "the trainer mirrors; the curves are without).",
        _falls(points),
    )


def _falls(points: pd.DataFrame) -> str:
    """The first and last Dice of each curve, in words."""
    words = []
    for (method, kind, axes, preset), curve in points.groupby(
        ["method", "kind", "axes", "preset"], sort=False
    ):
        ends = curve.sort_values("percent").iloc[[0, -1]]
        (start, end), amount = (percent(dice, 1) for dice in ends["dice"]), ends["percent"].iloc[-1]
        error = "the location unknown" if kind == "unknown" else f"{amount:g}% {kind}"
        if amount > 0:
            words.append(
                f"{method} at {preset}: {start}% Dice, {end}% with {error}, {AXES_WORDS.get(axes, axes)}"
            )
    return "; ".join(words) + "."


def _of_each(rows: pd.DataFrame, across: str, value: str = "gain") -> str:
    """The values of each method in words, such as ``LocBAM: +5.1 at small, +1.0 at large``."""
    sign = value == "gain"
    groups = rows.dropna(subset=[value]).groupby("method", sort=False)
    words = [
        f"{method}: "
        + ", ".join(
            f"{number(size, 1, sign=sign)} at {name}"
            for size, name in zip(group[value], group[across], strict=True)
        )
        for method, group in groups
    ]
    return "; ".join(words) + "."


def _extremes(gains: pd.DataFrame) -> str:
    """The classes in which each method gains most and least, in words."""
    words = []
    for method, group in gains.dropna(subset="gain").groupby("method", sort=False):
        most, least = (group.loc[at] for at in (group["gain"].idxmax(), group["gain"].idxmin()))
        text = f"{method}: most in {most['class']} ({number(most['gain'], 1, sign=True)})"
        if len(group) > 1:
            text += f", least in {least['class']} ({number(least['gain'], 1, sign=True)})"
        words.append(text)
    return "; ".join(words) + "."


def _in_points(rows: pd.DataFrame) -> pd.DataFrame:
    ends = ["gain", "gain_low", "gain_high"]
    return rows.assign(**(100 * rows[ends]))


def _squeeze(panel: Any, linear: float) -> None:
    """Makes the vertical axis logarithmic beyond `linear` points, with numbers at 1, 2 and 5 of each decade."""
    threshold = next((step for step in (1.0, 2.0, 5.0, 10.0, 20.0) if step >= linear), 50.0)
    panel.set_yscale("symlog", linthresh=threshold, linscale=1.5)
    steps = [threshold / 2, *(step for step in (1, 2, 5, 10, 20, 50, 100) if step >= threshold)]
    panel.yaxis.set_major_locator(FixedLocator([-step for step in reversed(steps)] + [0, *steps]))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(ScalarFormatter())


def _label_ticks(panel: Any, values: Sequence[float]) -> None:
    """Labels 1, 2 and 5 of each decade as numbers and shows at least one decade."""
    low, high = min(values), max(values)
    middle = math.sqrt(low * high)
    reach = max(math.sqrt(high / low) * 1.35, math.sqrt(10))
    panel.set_xlim(middle / reach, middle * reach)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _name_presets(panel: Any, presets: dict[str, float]) -> None:
    """Writes the presets' names above the panel; names of equal coverage form a column."""
    places: dict[float, list[str]] = {}
    for name, share in presets.items():
        places.setdefault(round(share, 6), []).append(name)
    style: dict[str, Any] = {
        "rotation": 20,
        "rotation_mode": "anchor",
        "fontsize": 7,
        "color": BASELINE_COLOUR,
    }
    for share, names in places.items():
        panel.annotate(
            "\n".join(names),
            (share, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="left",
            va="bottom",
            **style,
        )


def _with_size(name: str, size: float) -> str:
    if not math.isfinite(size):
        return name
    return f"{name} ({size:.3g} ml)" if size < 1000 else f"{name} ({size:.0f} ml)"
