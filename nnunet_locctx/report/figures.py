"""The report's figures in one look: colours that the colour-blind can tell apart, a marker per method, a page's width.

Each is a function of the study that returns pictures with captions.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from nnunet_locctx.evaluation.robustness_figure import COLOURS
from nnunet_locctx.report.document import Figure, count, slug
from nnunet_locctx.report.papers import paper_names, read_paper, same_dataset
from nnunet_locctx.report.results import SERIES, Results
from nnunet_locctx.report.statistics import by_case, class_gains, class_sizes, foreground, with_base

WIDTH = 7.6
"""Inches of a figure as wide as the page."""

DPI = 150
MARKERS = "osD^vP*X<>"
BASELINE_COLOUR = "#555555"
SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
}
SERIES_WORDS = {"train_loss": "training loss", "val_loss": "validation loss", "pseudo_dice": "pseudo Dice, %"}
KIND_WORDS = {"shift": "constant shift", "noise": "noise per slice (SD)", "unknown": "unknown"}
AXES_WORDS = {"axial": "along the body", "all": "all axes"}
PER_ROW = 3
"""Panels side by side; presets with more trainings go into further figures."""

SQUEEZE_FROM = 3
"""A paper's gains beyond so many times the study's own would leave no room for the latter on a linear axis."""


def looks(study: Results) -> dict[str, tuple[str, str, Any]]:
    """Method -> colour, marker and stroke of a line without markers, the same in every figure.

    The baseline is grey and dashed; the stroke is dash-dotted where a colour comes a second time.
    """
    strokes: dict[str, tuple[str, str, Any]] = {study.baseline: (BASELINE_COLOUR, "o", "--")}
    for place, name in enumerate(study.methods.index.drop(study.baseline)):
        stroke = "-" if place < len(COLOURS) else "-."
        strokes[name] = (COLOURS[place % len(COLOURS)], MARKERS[(place + 1) % len(MARKERS)], stroke)
    return strokes


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """An empty figure (inches) in the report's style."""
    with mpl.rc_context(SETTINGS):
        figure = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def to_png(figure: Any) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    picture = io.BytesIO()
    # without matplotlib's version the picture changes only when what it shows does
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return picture.getvalue()


def draw_coverage(study: Results, rows: pd.DataFrame) -> Figure | None:
    """Gain against the share of the volume that a patch covers (the relation behind LocBAM's table 2).

    A point per preset and method, with its interval; the paper's own gains are drawn hollow where the study is about
    the same dataset and names the paper's table. None if no preset has both a coverage and a gain.
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
            # points of one preset are moved apart to be seen
            x = points["coverage"] * 1.04 ** (place - (len(methods) - 1) / 2)
            panel.plot(x, points["gain"], color=colour, marker=marker, markersize=5, label=method)
            panel.vlines(x, points["gain_low"], points["gain_high"], color=colour, linewidth=1, alpha=0.7)
        for method, points in printed.groupby("method", sort=False):
            colour, marker, _ = look.get(method, ("#999999", "o", ""))
            hollow: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "linestyle": ":"}
            name = f"{method} (paper)"
            panel.plot(points["coverage"], points["gain"], color=colour, marker=marker, label=name, **hollow)
        largest = float(chosen[["gain", "gain_low", "gain_high"]].abs().max(axis=None))
        squeezed = bool((printed["gain"].abs() > SQUEEZE_FROM * largest).any())
        if squeezed:
            _squeeze(panel, largest)
        panel.axhline(0, color="#555555", linewidth=0.8)
        panel.set_xscale("log")
        _label_ticks(panel, [*coverage.dropna(), *printed["coverage"]])
        panel.set_xlabel("patch over median volume, % (logarithmic)")
        panel.set_ylabel(study.gain_axis)
        panel.grid(axis="y")
        _name_presets(panel, dict(zip(chosen["preset"], chosen["coverage"], strict=True)))
        _legend_below(figure, *panel.get_legend_handles_labels())
        png = to_png(figure)
    paper = (
        "" if printed.empty else " Hollow, dotted: the papers' own gains (see the tables beside the papers)."
    )
    if squeezed:
        paper += " The upright axis is linear around 0 and logarithmic further out."
    return Figure(
        "coverage_gain",
        png,
        f"Gain in mean foreground Dice over {study.baselines} against the share of the median volume that one "
        "patch covers; a point per preset, joined per method. Lines: 95% bootstrap intervals over up to "
        f"{count(chosen['pairs'].max(), 'validation case')}. Points of one preset are moved apart by a few percent "
        f"to be seen.{paper}",
        f"Gain of {', '.join(methods)} at {count(chosen['preset'].nunique(), 'preset')}",
    )


def printed_gains(study: Results) -> pd.DataFrame:
    """method, coverage in % and gain in points, from the papers' tables that state a coverage."""
    rows = pd.DataFrame(
        [
            {**row, "paper": name, "coverage": row.get("parts", {}).get("coverage_percent")}
            for name in study.settings.get("papers") or ()
            if name in paper_names()
            for row in read_paper(name)["rows"]
            if same_dataset(row["dataset"], study.dataset) and "class" not in row
        ],
        columns=["paper", "preset", "method", "value", "coverage"],
    ).astype({"value": float, "coverage": float})
    base = rows.loc[rows["method"] == study.baseline, ["paper", "preset", "value"]]
    rows = rows[rows["method"] != study.baseline].merge(base, on=["paper", "preset"], suffixes=("", "_base"))
    rows["gain"] = rows["value"] - rows["value_base"]
    rows = rows.dropna(subset="coverage").drop_duplicates(["method", "coverage"], keep="last")
    return rows[["method", "coverage", "gain"]].sort_values("coverage")


def draw_classes(study: Results, rows: pd.DataFrame, preset: str) -> Figure | None:
    """Gain per class, the classes ordered by the size of the organ (as figure 3 of the LocBAM paper).

    A line per class and a point per method; None if there is nothing to compare at this preset.
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
        panel.axvline(0, color="#555555", linewidth=0.8)
        panel.set_yticks(range(len(sizes)), [_with_size(name, size) for name, size in sizes.items()])
        panel.set_ylim(len(sizes) - 0.5, -0.5)  # the smallest on top
        panel.set_xlabel(study.gain_axis)
        panel.grid(axis="x")
        _legend_below(figure, *panel.get_legend_handles_labels())
        png = to_png(figure)
    return Figure(
        f"class_gain_{slug(preset)}",
        png,
        f"{preset}: gain in Dice per class over {study.baselines}, the smallest organ on top (median true "
        "volume in brackets). Lines: 95% bootstrap intervals over up to "
        f"{count(int(gains['pairs'].max()) if len(gains) else 0, 'validation case')}; a "
        "class counts in the cases where both methods have a Dice. Not corrected for the number of classes.",
        f"Gain per class of {', '.join(others['method'])} at {preset}",
    )


def draw_training(study: Results) -> list[Figure]:
    """Loss and pseudo Dice by epoch (as figure 2 of the LocBAM paper), of all presets that have trainings."""
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
                # missing values are gaps
                mine = epochs[epochs["run"] == run.Index].drop_duplicates(["fold", "epoch"], keep="last")
                table = mine.pivot(index="epoch", columns="fold", values=SERIES[row])
                marker = "o" if len(table) == 1 else None
                if table.shape[1] > 1:
                    panel.plot(table, color=colour, linewidth=0.5, alpha=0.45, marker=marker, markersize=2)
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
        _legend_below(figure, list(strokes.values()), list(strokes))
        png = to_png(figure)
    folds = int(trainings.groupby("run").size().max())
    return Figure(
        key,
        png,
        "Training and validation loss and nnU-Net's pseudo Dice (mean over the classes) by epoch. Thin "
        f"lines: the folds (up to {count(folds, 'fold')}); thick: their mean. The pseudo Dice is measured on "
        "random validation patches, so patches of different sizes are not comparable.",
        f"Losses and pseudo Dice by epoch at {', '.join(presets)}",
    )


def baseline_dice(study: Results, preset: str) -> float:
    """The baseline's mean foreground Dice on the cases that `locctx robustness` used at the preset; NaN if unknown."""
    shifted = (study.robustness.get(run, {}).get("cases") or () for run in study.runs_at(preset).index)
    cases = {case for names in shifted for case in names}
    scores = study.scores_of(study.find(study.baseline, preset))
    scores = scores[scores["case"].isin(cases)]
    if not cases or scores["case"].nunique() < len(cases):
        return math.nan
    return float(foreground(by_case(scores)))


def draw_location(study: Results, points: pd.DataFrame) -> Figure | None:
    """Dice under a wrong location (as figure 4 of the LocBAM paper), from what `locctx robustness` measured.

    A panel per preset, kind of error and axes; None without points.
    """
    if points.empty:
        return None
    look = looks(study)
    amounts = sorted(points["percent"].unique())
    groups = list(points.groupby(["preset", "kind", "axes"], sort=False))
    columns = min(PER_ROW, len(groups))
    lines = math.ceil(len(groups) / columns)
    handles: dict[str, Any] = {}
    with new_figure(WIDTH if columns > 1 else 0.7 * WIDTH, 0.5 + 2.7 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for panel, ((preset, kind, axes), curves) in zip(panels.flat, groups, strict=False):
            for name, curve in curves.groupby("method", sort=False):
                colour, marker, _ = look.get(name.split(": ")[0], ("#000000", "o", ""))
                dice = 100 * curve.groupby("percent")["dice"].last().reindex(amounts).to_numpy()
                (line,) = panel.plot(dice, color=colour, marker=marker, markersize=4)
                handles.setdefault(name, line)
            reference = 100 * baseline_dice(study, preset)
            if math.isfinite(reference):
                line = panel.axhline(reference, color=look[study.baseline][0], linestyle="--", linewidth=1.2)
                handles.setdefault(f"{study.baseline} (no location)", line)
            panel.set_title(f"{preset}\n{KIND_WORDS.get(kind, kind)}, {AXES_WORDS.get(axes, axes)}")
            panel.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
            panel.set_xlabel("error of the location, % of the axis")
            panel.grid(axis="y")
        for panel in list(panels.flat)[len(groups) :]:
            panel.set_visible(False)
        for row in panels:
            row[0].set_ylabel("foreground Dice, %")
        low, high = panels[0, 0].get_ylim()
        panels[0, 0].set_ylim(max(low, -2), min(high, 102))
        _legend_below(figure, list(handles.values()), list(handles))
        png = to_png(figure)
    return Figure(
        "wrong_location",
        png,
        "Foreground Dice when the location is wrong: shifted by a constant, or off by a Gaussian error per "
        f"slice, on up to {count(points['cases'].max(), 'validation case')} of the first fold. The amounts stand at "
        f"equal distances. Shift: mean of both directions. Dashed: {study.baseline} on the same cases, from the "
        "validation (with mirroring, if the trainer mirrors; the curves are without).",
        "Dice against the error of the location",
    )


def _in_points(rows: pd.DataFrame) -> pd.DataFrame:
    ends = ["gain", "gain_low", "gain_high"]
    return rows.assign(**(100 * rows[ends]))


def _legend_below(figure: Any, handles: Any, labels: Any) -> None:
    """A legend for all panels, outside of them; in as many columns as fit."""
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(16 * figure.get_figwidth() / (longest + 9))))
    rows = -(-len(labels) // columns)
    # as many in each row, as far as that goes
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // rows) if rows else 1)


def _squeeze(panel: Any, linear: float) -> None:
    """Makes the upright axis logarithmic beyond a few points, with numbers at 1, 2 and 5 of each decade."""
    threshold = next((step for step in (1.0, 2.0, 5.0, 10.0, 20.0) if step >= linear), 50.0)
    panel.set_yscale("symlog", linthresh=threshold, linscale=1.5)
    steps = [threshold / 2, *(step for step in (1, 2, 5, 10, 20, 50, 100) if step >= threshold)]
    panel.yaxis.set_major_locator(FixedLocator([-step for step in reversed(steps)] + [0, *steps]))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(ScalarFormatter())


def _label_ticks(panel: Any, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 of each decade, as numbers; at least one decade is shown."""
    low, high = min(values), max(values)
    middle = math.sqrt(low * high)
    reach = max(math.sqrt(high / low) * 1.35, math.sqrt(10))
    panel.set_xlim(middle / reach, middle * reach)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _name_presets(panel: Any, presets: dict[str, float]) -> None:
    """The presets' names above the panel, those of the same coverage under one another."""
    places: dict[float, list[str]] = {}
    for name, share in presets.items():
        places.setdefault(round(share, 6), []).append(name)
    style: dict[str, Any] = {"rotation": 20, "rotation_mode": "anchor", "fontsize": 7, "color": "#444444"}
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
