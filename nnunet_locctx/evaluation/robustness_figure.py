"""The curves of a robustness run: Dice against the error of the location."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nnunet_locctx.evaluation.wrong_location import AXES_WORDS

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, told apart with every common colour blindness."""

STYLES = {"axial": "-", "all": "--", "R": ":", "A": "-."}
TITLES = {"shift": "constant shift", "noise": "noise per slice (standard deviation)", "unknown": "unknown"}
LABEL_GAP = 0.055
"""Least distance of two labels, as a fraction of the panel's height."""


def draw_curves(points: pd.DataFrame) -> bytes:
    """A panel per kind of error, a line per model (colour) and axes (dash), labelled at its end.

    The amounts stand at equal distances, as they span two orders of magnitude and begin at 0. An unknown location has
    no amount: its panel has the true location and the unknown one.

    Args:
        points: A row per point: ``model``, ``kind``, ``axes``, ``percent``, ``dice``.

    Returns:
        A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds, models = points["kind"].unique(), points["model"].unique()
    several = points["axes"].nunique() > 1
    amounts = sorted(points["percent"].unique())
    curves = points.set_index(["kind", "model", "axes", "percent"])["dice"].unstack("percent")
    longest = max(map(len, models)) + (22 if several else 0)
    figure = Figure(figsize=((4.2 + 0.085 * longest) * len(kinds), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        ends = []
        steps = amounts if kind != "unknown" else sorted({amounts[0], amounts[-1]})
        for number, model in enumerate(models):
            colour = COLOURS[number % len(COLOURS)]
            for axes, style in STYLES.items():
                if (kind, model, axes) not in curves.index:
                    continue
                values = curves.loc[(kind, model, axes), steps].to_numpy()
                (known,) = np.nonzero(~np.isnan(values))
                if not known.size:
                    continue
                panel.plot(values, style, color=colour, marker="o", markersize=3.5, linewidth=1.6)
                label = f"{model}, {AXES_WORDS[axes]}" if several else model
                ends.append((label, colour, float(known[-1]), float(values[known[-1]])))
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
        _limit(panel, points["dice"])
        _label(panel, ends)
    panels[0].set_ylabel("foreground Dice")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves places until they are `gap` apart, half of them up and half down, keeping their order.

    They stay within `low` to `high` as far as there is room.
    """
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(order))
    wanted = np.asarray(places, dtype=float)[order] - steps
    # with the steps taken off, places are far enough apart if they do not decrease
    upwards = np.maximum.accumulate(wanted)
    downwards = np.minimum.accumulate(wanted[::-1])[::-1]
    fitted = np.clip((upwards + downwards) / 2, low, max(low, high - steps[-1])) + steps
    moved = np.empty(len(order))
    moved[order] = fitted
    return [float(value) for value in moved]


def _limit(panel: Any, values: "pd.Series[float]") -> None:
    """The range of all values with some air, so that small differences can be seen as well."""
    low, high = (values.min(), values.max()) if values.notna().any() else (0.0, 1.0)
    air = max(0.02, 0.06 * (high - low))
    panel.set_ylim(max(-0.02, low - air), min(1.02, high + air))


def _label(panel: Any, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Writes each label beside the end of its line, with a thin line where the two had to part."""
    low, high = panel.get_ylim()
    heights = spread([height for *_, height in ends], LABEL_GAP * (high - low), low, high) if ends else []
    beside = panel.get_yaxis_transform()  # across the panel from 0 to 1, Dice upwards
    right = panel.get_xlim()[1]
    for (label, colour, place, height), moved in zip(ends, heights, strict=True):
        start = (place - panel.get_xlim()[0]) / (right - panel.get_xlim()[0])
        panel.plot(
            [start, 1.03],
            [height, moved],
            color=colour,
            linewidth=0.6,
            alpha=0.6,
            transform=beside,
            clip_on=False,
        )
        panel.text(1.04, moved, label, color=colour, fontsize=8, va="center", transform=beside)
