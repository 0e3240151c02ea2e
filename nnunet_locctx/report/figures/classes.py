"""Gain per class, the classes ordered by the size of the organ (as figure 3 of the LocBAM paper)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_locctx.report.comparison import Comparison, aligned
from nnunet_locctx.report.document import Figure, count, slug
from nnunet_locctx.report.figures.style import WIDTH, legend_below, looks, new_figure, to_png
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.scores import Scores, foreground
from nnunet_locctx.report.statistics import NO_INTERVAL, Interval, gain_interval


@dataclass(frozen=True)
class ClassGain:
    """Gain of one method in one class: points of Dice as a fraction, and pairs of cases that have it."""

    gain: float
    interval: Interval
    pairs: int


def class_sizes(scores: Scores) -> dict[str, float]:
    """Class -> median volume in ml over the cases that have it; NaN if none has."""
    volumes = scores.values["reference_ml"]
    found = {}
    for place, name in enumerate(scores.classes):
        there = volumes[:, place][np.nan_to_num(volumes[:, place]) > 0]
        found[name] = float(np.median(there)) if len(there) else math.nan
    return found


def by_size(sizes: Mapping[str, float]) -> list[str]:
    """Classes from the smallest; those of unknown size last."""
    return sorted(sizes, key=lambda name: (not math.isfinite(sizes[name]), sizes[name]))


def class_gain(scores: Scores, baseline: Scores, name: str) -> ClassGain:
    """Of the cases in which both methods have a Dice of the class."""
    mine, theirs = aligned(scores.chosen(scores.keys, [name]), baseline)
    both = np.isfinite(mine[:, 0]) & np.isfinite(theirs[:, 0])
    if not both.any():
        return ClassGain(math.nan, NO_INTERVAL, 0)
    mine, theirs = mine[both], theirs[both]
    gain = float(foreground(mine)) - float(foreground(theirs))
    return ClassGain(gain, gain_interval(mine, theirs), int(both.sum()))


def draw_classes(study: Study, rows: Sequence[Comparison], preset: str) -> Figure | None:
    """A line per class and a point per method; None if there is nothing to compare at this preset."""
    chosen = [row for row in rows if row.preset == preset]
    by_method = {row.method: row for row in chosen}
    others = [row for row in chosen if math.isfinite(row.gain)]
    if not others:
        return None
    bases = {row.method: by_method[study.baseline_of(row.method)].scores for row in others}
    sizes = class_sizes(next(iter(bases.values())))
    names = by_size(sizes)
    look = looks(study)
    gains = {
        (row.method, name): class_gain(row.scores, bases[row.method], name)
        for row in others
        for name in names
        if name in row.scores.classes
    }
    step = 0.8 / len(others)
    with new_figure(WIDTH, 1.5 + len(names) * max(0.3, 0.1 * len(others))) as figure:
        panel = figure.subplots()
        for number, row in enumerate(others):
            colour, marker = look[row.method]
            places = [place + (number - (len(others) - 1) / 2) * step for place in range(len(names))]
            found = [gains.get((row.method, name)) for name in names]
            x = [math.nan if one is None else 100 * one.gain for one in found]
            panel.plot(
                x, places, color=colour, marker=marker, markersize=4.5, linestyle="none", label=row.method
            )
            for place, one in zip(places, found, strict=True):
                if one is not None and one.interval.known:
                    ends = [100 * one.interval.low, 100 * one.interval.high]
                    panel.plot(ends, [place, place], color=colour, linewidth=1.2, alpha=0.7)
        for place in range(1, len(names), 2):
            panel.axhspan(place - 0.5, place + 0.5, color="#888888", alpha=0.08, linewidth=0)
        panel.axvline(0, color="#555555", linewidth=0.8)
        panel.set_yticks(range(len(names)), [_label(name, sizes[name]) for name in names])
        panel.set_ylim(len(names) - 0.5, -0.5)  # the smallest on top
        panel.set_xlabel(study.gain_axis)
        panel.grid(axis="x")
        legend_below(figure, *panel.get_legend_handles_labels())
        png = to_png(figure)
    pairs = max((one.pairs for one in gains.values()), default=0)
    return Figure(
        f"class_gain_{slug(preset)}",
        png,
        f"{preset}: gain in Dice per class over {study.baselines}, the smallest organ on top (median true "
        f"volume in brackets). Lines: 95% bootstrap intervals over up to {count(pairs, 'validation case')}; a "
        "class counts in the cases where both methods have a Dice. Not corrected for the number of classes.",
        f"Gain per class of {', '.join(row.method for row in others)} at {preset}",
    )


def _label(name: str, size: float) -> str:
    if not math.isfinite(size):
        return name
    return f"{name} ({size:.3g} ml)" if size < 1000 else f"{name} ({size:.0f} ml)"
