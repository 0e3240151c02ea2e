"""Draws the best and worst cases: truth and the methods' predictions on the image, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch

from nnunet_locctx.evaluation.classes import find_pairs, value_names
from nnunet_locctx.report.case_images import CaseSlices, read_case
from nnunet_locctx.report.document import Figure, percent, slug
from nnunet_locctx.report.results import Results
from nnunet_locctx.report.statistics import by_case
from nnunet_locctx.report.style import WIDTH, new_figure, to_svg
from nnunet_locctx.viewing import class_colours

Key = tuple[int, str]
"""Fold and name of a case."""

OPACITY = 0.45
FINE = 4
"""Pixels per voxel in figures; the truth's outline is one pixel wide."""

SMALLEST_PANEL, MOST_COLUMNS = 1.5, 5
MOST_CASES = 8
"""Number of the leader's worst cases per preset that are read in addition to those of the figure."""

LONGEST_LEGEND = 24


def choose_cases(dice: pd.DataFrame, leader: str, base: str | None) -> dict[Key, str]:
    """Case -> reason to show it: the leading method's best or worst case, its largest gain or loss.

    Args:
        dice: Mean Dice over the classes: a row per case (fold, case), a column per method.
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


@dataclass(frozen=True)
class PresetCases:
    """The shown cases of one preset.

    Attributes:
        preset: Its name.
        methods: Methods whose predictions are shown, in the study's order.
        leader: The method whose worst case comes first.
        dice: Mean Dice over the classes: a row per case (fold, case), a column per method.
        slices: Case -> its slices, the leader's worst first.
        why: Case -> reason for showing it in the figure, for some of the cases.
        left_out: Number of validation cases that are not shown.
        problems: Sentences on files that could not be read.
    """

    preset: str
    methods: Sequence[str]
    leader: str
    dice: pd.DataFrame
    slices: Mapping[Key, CaseSlices]
    why: Mapping[Key, str]
    left_out: int
    problems: Sequence[str]


def read_cases(study: Results, rows: pd.DataFrame, preset: str) -> PresetCases | None:
    """The cases of one preset; None if it has no results.

    Args:
        study: The study.
        rows: The comparisons of the validation cases.
        preset: Its name.
    """
    chosen = rows[(rows["preset"] == preset) & rows["dice"].notna()]
    if chosen.empty:
        return None
    others = chosen[chosen["method"] != study.baseline].sort_values("dice", ascending=False, kind="stable")
    has_base = len(others) < len(chosen)
    leader = (others if len(others) else chosen)["method"].iloc[0]
    base = study.baseline if has_base and leader != study.baseline else None
    dice = pd.DataFrame(
        {row.method: by_case(study.first_scores_of(row.run)).mean(axis=1) for row in chosen.itertuples()}
    )
    # the baseline, the leader and the next best
    best = [study.baseline, *others["method"].head(MOST_COLUMNS - has_base)]
    methods = [name for name in chosen["method"] if name in best]
    runs = study.runs_at(preset)
    runs = runs[runs["method"].isin(methods)]
    why = choose_cases(dice, leader, base)
    order = dice[leader].sort_values(kind="stable").index
    keys = [key for place, key in enumerate(order) if place < MOST_CASES or key in why]
    slices: dict[Key, CaseSlices] = {}
    problems: list[str] = []
    for fold, case in keys:
        try:
            piece = read_case(study, case, fold, runs)
        except (ValueError, KeyError, OSError) as error:
            problems.append(f"{preset}, {case}: {error}")
            continue
        problems += [f"{preset}, {case}, {problem}" for problem in piece.problems]
        if any(stack is not None for stack in piece.predictions.values()):
            slices[fold, case] = piece
    return PresetCases(preset, methods, leader, dice, slices, why, len(dice) - len(slices), problems)


def draw_overlays(study: Results, cases: PresetCases) -> Figure | None:
    """The figure of one preset with the cases of ``why``; None if none of them could be read."""
    slices = [(key, cases.slices[key], why) for key, why in cases.why.items() if key in cases.slices]
    if not slices:
        return None
    order = "; ".join(f"{piece.case} ({why})" for _, piece, why in slices)
    caption = (
        f"{cases.preset}: validation cases chosen by Dice, from the top: {order}. Each picture is the slice with "
        "the most true foreground, cropped to labelled and predicted voxels. Filled: truth (left) and "
        f"predictions; white lines: the truth. Below: the case's mean foreground Dice in 3D.{of_first_seed(study)}"
    )
    if slices[0][1].letters:
        caption += " Seen as radiologists do: the patient's right is at the left."
    svg = _draw(study, cases.methods, slices, cases.dice)
    dice = [f"{piece.case}: {dice_words(cases, key)}" for key, piece, _ in slices]
    return Figure(f"cases_{slug(cases.preset)}", svg, caption, f"Dice at {cases.preset}. {'; '.join(dice)}.")


def of_first_seed(study: Results) -> str:
    """For captions: names the seed of the pictures if the study has several."""
    if len(study.seeds) == 1:
        return ""
    return f" Predictions and Dice are those of seed {study.seeds[0]}, the first of {len(study.seeds)}."


def dice_words(cases: PresetCases, key: Key) -> str:
    """The Dice of each method in a case, such as ``Plain 61.0%, LocBAM 84.2%``."""
    return ", ".join(f"{name} {percent(cases.dice[name].get(key, np.nan), 1)}%" for name in cases.methods)


def label_colours(study: Results) -> dict[int, tuple[str, Any]]:
    """Label -> its name and colour, the same in all pictures of the dataset."""
    names = value_names(study.settings.get("labels") or {})
    distinct = list(dict.fromkeys(names.values()))
    colours = class_colours(distinct, find_pairs(distinct))
    return {number: (name, colours[name]) for number, name in sorted(names.items()) if name != "ignore"}


def _draw(
    study: Results, methods: Sequence[str], slices: Sequence[tuple[Key, CaseSlices, str]], dice: pd.DataFrame
) -> bytes:
    colours = label_colours(study)
    columns = len(methods) + 1
    side = max(SMALLEST_PANEL, WIDTH / columns)
    sizes = [np.multiply(piece.truth.shape[1:], piece.spacing) for _, piece, _ in slices]
    ratios = [min(1.5, max(0.5, height / width)) for height, width in sizes]
    legend = [Patch(color=colour, label=name) for name, colour in _shown(slices, colours)]
    in_row = max(1, int(side * columns / 1.6))
    below = 0.5 + 0.17 * -(-len(legend) // in_row)
    with new_figure(side * columns, sum(0.9 * side * ratio + 0.25 for ratio in ratios) + below) as figure:
        panels = figure.subplots(len(slices), columns, squeeze=False, height_ratios=ratios)
        for row, (key, piece, why) in zip(panels, slices, strict=True):
            _paint(row[0], piece, piece.truth, colours)
            row[0].set_xlabel(piece.names[piece.fullest], fontsize=7)
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
        return to_svg(figure)


def _shown(
    slices: Sequence[tuple[Key, CaseSlices, str]], colours: Mapping[int, tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """Names and colours of the labels in the pictures; at most :data:`LONGEST_LEGEND`, those with the most voxels."""
    planes = [
        stack[piece.fullest]
        for _, piece, _ in slices
        for stack in (piece.truth, *piece.predictions.values())
        if stack is not None
    ]
    voxels = pd.Series(np.concatenate([plane.ravel() for plane in planes])).value_counts()
    kept = voxels[voxels.index.isin(list(colours))].nlargest(LONGEST_LEGEND).index
    return list(dict.fromkeys(value for label, value in colours.items() if label in kept))


def _paint(
    panel: Any,
    piece: CaseSlices,
    labels: npt.NDArray[np.integer] | None,
    colours: Mapping[int, tuple[str, Any]],
) -> None:
    rows, columns = piece.truth.shape[1:]
    extent = (0, columns * piece.spacing[1], rows * piece.spacing[0], 0)
    panel.imshow(
        piece.image[piece.fullest], cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest"
    )
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
            overlay[labels[piece.fullest] == label] = (*to_rgba(colour)[:3], OPACITY)
        overlay = enlarged(overlay[None], FINE)[0]
        overlay[outline(enlarged(piece.truth[piece.fullest][None], FINE))[0]] = 1
        panel.imshow(overlay, extent=extent, interpolation="nearest")
    if piece.letters:
        left, right, *_ = piece.letters
        style = {"transform": panel.transAxes, "va": "center", "color": "#ffe680", "fontsize": 7}
        panel.text(0.03, 0.5, left, ha="left", **style)
        panel.text(0.97, 0.5, right, ha="right", **style)


def enlarged(stack: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """(N, rows, columns, ...) with `factor` pixels for each pixel along rows and columns."""
    return stack.repeat(factor, axis=1).repeat(factor, axis=2)


def outline(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """The pixels (N, rows, columns) whose label differs from the pixel above or to the left."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
    return edge
