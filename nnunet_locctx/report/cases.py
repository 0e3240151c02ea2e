"""The best and the worst cases: truth and the methods' predictions on the image, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch

from nnunet_locctx.evaluation.robustness_figure import COLOURS
from nnunet_locctx.report.case_images import CaseSlice, read_case
from nnunet_locctx.report.document import Figure, percent, slug
from nnunet_locctx.report.figures import WIDTH, new_figure, to_png
from nnunet_locctx.report.results import Results
from nnunet_locctx.report.statistics import by_case

Key = tuple[int, str]
"""Fold and name of a case."""

OPACITY = 0.45
SMALLEST_PANEL, MOST_COLUMNS = 1.5, 7
LONGEST_LEGEND = 24
DISTINCT = 20
"""Colours, if there are more labels than Okabe and Ito's."""


def choose_cases(dice: pd.DataFrame, leader: str, base: str | None) -> dict[Key, str]:
    """Cases to show, and why: the leading method's best and worst, and its largest gain and loss.

    Args:
        dice: The cases' means over the classes: a row per case (fold, case), a column per method.
        leader: The method that leads.
        base: The baseline, if the leader is another.
    """
    chosen: dict[Key, str] = {}

    def add(key: Key, why: str) -> None:
        chosen[key] = f"{chosen[key]}, {why}" if key in chosen else why

    known = dice[leader].dropna()
    if known.empty:
        return {}
    add(known.idxmax(), f"best of {leader}")
    add(known.idxmin(), f"worst of {leader}")
    if base is not None:
        gain = (dice[leader] - dice[base]).dropna()
        if len(gain):
            add(gain.idxmax(), "largest gain")
            add(gain.idxmin(), "largest loss" if gain.min() < 0 else "smallest gain")
    return chosen


def draw_overlays(study: Results, rows: pd.DataFrame, preset: str) -> tuple[Figure | None, list[str]]:
    """The figure of one preset, and what could not be drawn.

    Args:
        study: The study.
        rows: The comparisons of the validation cases.
        preset: Which one.
    """
    chosen = rows[(rows["preset"] == preset) & rows["dice"].notna()]
    if chosen.empty:
        return None, []
    others = chosen[chosen["method"] != study.baseline].sort_values("dice", ascending=False, kind="stable")
    has_base = len(others) < len(chosen)
    leader = (others if len(others) else chosen)["method"].iloc[0]
    base = study.baseline if has_base and leader != study.baseline else None
    dice = pd.DataFrame(
        {one.method: by_case(study.scores_of(one.run)).mean(axis=1) for one in chosen.itertuples()}
    )
    # the baseline, the leader and the next best
    best = [study.baseline, *others["method"].head(MOST_COLUMNS - has_base)]
    methods = [name for name in chosen["method"] if name in best]
    runs = study.runs_at(preset)
    runs = runs[runs["method"].isin(methods)]
    slices: list[tuple[Key, CaseSlice, str]] = []
    problems: list[str] = []
    for (fold, case), why in choose_cases(dice, leader, base).items():
        try:
            piece = read_case(study, case, fold, runs)
        except (ValueError, KeyError, OSError) as error:
            problems.append(f"{preset}, {case}: {error}")
            continue
        problems += [f"{preset}, {case}, {problem}" for problem in piece.problems]
        if any(plane is not None for plane in piece.predictions.values()):
            slices.append(((fold, case), piece, why))
    if not slices:
        return None, problems
    order = "; ".join(f"{piece.case} ({why})" for _, piece, why in slices)
    caption = (
        f"{preset}: validation cases chosen by Dice, from the top: {order}. Each in the slice with the most "
        "true foreground, cropped to what is labelled or predicted there. Filled: truth (left) and "
        "predictions; white lines: the truth. Below: the case's mean foreground Dice in 3D."
    )
    if len(label_colours(study)) > DISTINCT:
        caption += " Colours repeat: there are more labels than colours."
    if slices[0][1].letters:
        caption += " Seen as radiologists do: the patient's right is at the left."
    png = _draw(study, methods, slices, dice)
    alternative = f"Truth and predictions in {len(slices)} cases at {preset}"
    return Figure(f"cases_{slug(preset)}", png, caption, alternative), problems


def label_colours(study: Results) -> dict[int, tuple[str, Any]]:
    """Label -> its name and colour; the label of a region that overlaps others is named by its number."""
    names: dict[int, str] = {}
    for name, label in (study.settings.get("labels") or {}).items():
        parts = label if isinstance(label, list | tuple) else [label]
        if name != "ignore":
            names |= {int(one): name if len(parts) == 1 else f"label {one}" for one in parts}
    numbers = sorted(number for number in names if number > 0)
    many = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    palette = COLOURS[:-1] if len(numbers) < len(COLOURS) else many
    return {number: (names[number], palette[place % len(palette)]) for place, number in enumerate(numbers)}


def _draw(
    study: Results, methods: Sequence[str], slices: Sequence[tuple[Key, CaseSlice, str]], dice: pd.DataFrame
) -> bytes:
    colours = label_colours(study)
    columns = len(methods) + 1
    side = max(SMALLEST_PANEL, WIDTH / columns)
    sizes = [np.multiply(piece.truth.shape, piece.spacing) for _, piece, _ in slices]
    ratios = [min(1.5, max(0.5, height / width)) for height, width in sizes]
    legend = [Patch(color=colour, label=name) for name, colour in _shown(slices, colours)]
    in_row = max(1, int(side * columns / 1.6))
    below = 0.5 + 0.17 * -(-len(legend) // in_row)
    with new_figure(side * columns, sum(0.9 * side * ratio + 0.25 for ratio in ratios) + below) as figure:
        panels = figure.subplots(len(slices), columns, squeeze=False, height_ratios=ratios)
        for row, (key, piece, why) in zip(panels, slices, strict=True):
            _paint(row[0], piece, piece.truth, colours)
            row[0].set_xlabel(piece.name, fontsize=7)
            reasons = [part.split(" of ")[0] for part in why.split(", ")]
            row[0].set_ylabel("\n".join([piece.case, *reasons]), fontsize=7)
            for panel, method in zip(row[1:], methods, strict=True):
                _paint(panel, piece, piece.predictions.get(method), colours)
                panel.set_xlabel(f"Dice {percent(dice[method].get(key, np.nan), 1)}%", fontsize=7.5)
        for panel, name in zip(panels[0], ["truth", *methods], strict=True):
            panel.set_title(name, fontsize=8.5)
        if legend:
            in_row = min(in_row, len(legend))
            figure.legend(handles=legend, loc="outside lower center", ncols=in_row, fontsize=7.5)
        return to_png(figure)


def _shown(
    slices: Sequence[tuple[Key, CaseSlice, str]], colours: Mapping[int, tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """Names and colours of the labels in the pictures; of very many, those with the most voxels."""
    planes = [plane for _, piece, _ in slices for plane in (piece.truth, *piece.predictions.values())]
    voxels = pd.Series(
        np.concatenate([plane.ravel() for plane in planes if plane is not None])
    ).value_counts()
    kept = voxels[voxels.index.isin(list(colours))].nlargest(LONGEST_LEGEND).index
    return [value for label, value in colours.items() if label in kept]


def _paint(
    panel: Any,
    piece: CaseSlice,
    labels: npt.NDArray[np.integer] | None,
    colours: Mapping[int, tuple[str, Any]],
) -> None:
    rows, columns = piece.truth.shape
    extent = (0, columns * piece.spacing[1], rows * piece.spacing[0], 0)
    panel.imshow(piece.image, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([])
    for edge in panel.spines.values():
        edge.set_visible(False)
    if labels is None:
        style = {"transform": panel.transAxes, "va": "center", "color": "white", "fontsize": 8}
        panel.text(0.5, 0.5, "no prediction", ha="center", **style)
    else:
        overlay = np.zeros((rows, columns, 4))
        for label, (_, colour) in colours.items():
            overlay[labels == label] = (*to_rgba(colour)[:3], OPACITY)
        panel.imshow(overlay, extent=extent, interpolation="nearest")
    _outline(panel, piece, extent)
    if piece.letters:
        left, right, *_ = piece.letters
        style = {"transform": panel.transAxes, "va": "center", "color": "#ffe680", "fontsize": 7}
        panel.text(0.03, 0.5, left, ha="left", **style)
        panel.text(0.97, 0.5, right, ha="right", **style)


def _outline(panel: Any, piece: CaseSlice, extent: tuple[float, float, float, float]) -> None:
    """The true classes' borders, along the edges of voxels."""
    height, width = piece.spacing
    segments = []
    inner = np.pad(piece.truth, 1)
    for row, column in zip(*np.nonzero(inner[1:, 1:-1] != inner[:-1, 1:-1]), strict=True):
        segments.append([(column * width, row * height), ((column + 1) * width, row * height)])
    for row, column in zip(*np.nonzero(inner[1:-1, 1:] != inner[1:-1, :-1]), strict=True):
        segments.append([(column * width, row * height), (column * width, (row + 1) * height)])
    panel.add_collection(LineCollection(segments, colors="white", linewidths=0.7), autolim=False)
    panel.set_xlim(extent[0], extent[1])
    panel.set_ylim(extent[2], extent[3])
