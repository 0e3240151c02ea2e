"""Gain against the share of the volume that a patch covers (the relation behind LocBAM's table 2)."""

import math
from collections.abc import Sequence
from typing import Any

from nnunet_locctx.report.comparison import Comparison
from nnunet_locctx.report.document import Figure, count
from nnunet_locctx.report.figures.style import WIDTH, legend_below, looks, new_figure, to_png
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.papers import paper_names, read_paper, same_dataset

SQUEEZE_FROM = 3
"""A paper's gains beyond so many times the study's own would leave no room for the latter on a linear axis."""


def draw_coverage(study: Study, rows: Sequence[Comparison]) -> Figure | None:
    """A point per preset and method, with its interval; None if no preset has both a coverage and a gain.

    The paper's own gains are drawn hollow where the study is about the same data set and names the paper's table.
    """
    coverage = {one.name: 100 * one.coverage for one in study.presets if one.coverage}
    chosen = [row for row in rows if row.preset in coverage and math.isfinite(row.gain)]
    if not chosen:
        return None
    printed = _printed(study)
    look = looks(study)
    with new_figure(WIDTH, 4.0) as figure:
        panel = figure.subplots()
        methods = list(dict.fromkeys(row.method for row in chosen))
        for place, method in enumerate(methods):
            points = sorted(
                [
                    (coverage[row.preset] * _dodge(place, len(methods)), row)
                    for row in chosen
                    if row.method == method
                ],
                key=lambda point: point[0],
            )
            colour, marker = look[method]
            x = [point[0] for point in points]
            y = [100 * row.gain for _, row in points]
            panel.plot(x, y, color=colour, marker=marker, markersize=5, label=method)
            for at, row in points:
                if row.gain_interval.known:
                    ends = [100 * row.gain_interval.low, 100 * row.gain_interval.high]
                    panel.plot([at, at], ends, color=colour, linewidth=1, alpha=0.7)
        for method, points_ in printed.items():
            colour, marker = look.get(method, ("#999999", "o"))
            x, y = [point[0] for point in points_], [point[1] for point in points_]
            panel.plot(
                x,
                y,
                color=colour,
                marker=marker,
                markersize=6,
                markerfacecolor="none",
                linestyle=":",
                label=f"{method} (paper)",
            )
        own = [100 * abs(end) for row in chosen for end in (row.gain, *_known_ends(row))]
        beyond = max((abs(y) for points in printed.values() for _, y in points), default=0.0)
        squeezed = beyond > SQUEEZE_FROM * max(own)
        if squeezed:
            _squeeze(panel, max(own))
        panel.axhline(0, color="#555555", linewidth=0.8)
        panel.set_xscale("log")
        _label_ticks(panel, [*coverage.values(), *(x for points_ in printed.values() for x, _ in points_)])
        panel.set_xlabel("patch over median volume, % (logarithmic)")
        panel.set_ylabel(study.gain_axis)
        panel.grid(axis="y")
        _name_presets(panel, {row.preset: coverage[row.preset] for row in chosen})
        legend_below(figure, *panel.get_legend_handles_labels())
        png = to_png(figure)
    cases = max(row.pairs for row in chosen)
    paper = " Hollow, dotted: the papers' own gains (see the tables beside the papers)." if printed else ""
    if squeezed:
        paper += " The upright axis is linear around 0 and logarithmic further out."
    return Figure(
        "coverage_gain",
        png,
        f"Gain in mean foreground Dice over {study.baselines} against the share of the median volume that one "
        "patch covers; a point per preset, joined per method. Lines: 95% bootstrap intervals over up to "
        f"{count(cases, 'validation case')}. Points of one preset are moved apart by a few percent to be "
        f"seen.{paper}",
        f"Gain of {', '.join(methods)} at {count(len({row.preset for row in chosen}), 'preset')}",
    )


def _known_ends(row: Comparison) -> tuple[float, ...]:
    return (row.gain_interval.low, row.gain_interval.high) if row.gain_interval.known else ()


def _squeeze(panel: Any, linear: float) -> None:
    """Makes the upright axis logarithmic beyond a few points, with numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    threshold = next((step for step in (1.0, 2.0, 5.0, 10.0, 20.0) if step >= linear), 50.0)
    panel.set_yscale("symlog", linthresh=threshold, linscale=1.5)
    steps = [threshold / 2, *(step for step in (1, 2, 5, 10, 20, 50, 100) if step >= threshold)]
    panel.yaxis.set_major_locator(FixedLocator([-step for step in reversed(steps)] + [0, *steps]))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(ScalarFormatter())


def _printed(study: Study) -> dict[str, list[tuple[float, float]]]:
    """Method -> coverage in % and gain in points, from the papers' tables that state a coverage."""
    found: dict[str, dict[float, float]] = {}
    for name in study.settings.get("papers") or ():
        if name not in paper_names():
            continue
        rows = [row for row in read_paper(name)["rows"] if same_dataset(row["dataset"], study.dataset)]
        base = {
            row["preset"]: row["value"]
            for row in rows
            if row["method"] == study.baseline and "class" not in row
        }
        for row in rows:
            share = row.get("parts", {}).get("coverage_percent")
            if share is not None and row["method"] != study.baseline and row["preset"] in base:
                found.setdefault(row["method"], {})[share] = row["value"] - base[row["preset"]]
    return {method: sorted(points.items()) for method, points in found.items()}


def _dodge(place: int, total: int) -> float:
    return float(1.04 ** (place - (total - 1) / 2))


def _label_ticks(panel: Any, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 of each decade, as numbers; at least one decade is shown."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    middle = math.sqrt(low * high)
    reach = max(math.sqrt(high / low) * 1.35, math.sqrt(10))
    panel.set_xlim(middle / reach, middle * reach)
    axis = panel.xaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _name_presets(panel: Any, presets: dict[str, float]) -> None:
    """The presets' names above the panel, those of the same coverage under one another."""
    places: dict[float, list[str]] = {}
    for name, share in presets.items():
        places.setdefault(round(share, 6), []).append(name)
    for share, names in places.items():
        panel.annotate(
            "\n".join(names),
            (share, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="left",
            va="bottom",
            rotation=20,
            rotation_mode="anchor",
            fontsize=7,
            color="#444444",
        )
