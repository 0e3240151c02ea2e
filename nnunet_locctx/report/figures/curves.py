"""Loss and pseudo Dice by epoch (as figure 2 of the LocBAM paper)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_locctx.report.document import Figure, count
from nnunet_locctx.report.figures.style import (
    WIDTH,
    legend_below,
    line_style,
    looks,
    new_figure,
    to_png,
)
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.scores import Array, mean_known
from nnunet_locctx.report.training import SERIES, epoch_series

LABELS = {"train_loss": "training loss", "val_loss": "validation loss", "pseudo_dice": "pseudo Dice, %"}
PER_FIGURE = 3
"""Presets side by side; more go into further figures."""


def draw_training(study: Study) -> list[Figure]:
    """Figures of all presets that have trainings."""
    shown = [
        preset.name
        for preset in study.presets
        if any((run.run, fold) in study.training for run in study.at(preset.name) for fold in study.folds)
    ]
    groups = [shown[start : start + PER_FIGURE] for start in range(0, len(shown), PER_FIGURE)]
    return [_draw(study, group, number, len(groups)) for number, group in enumerate(groups, 1)]


def fold_table(trainings: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], Array]:
    """Epochs of all folds, and (folds, epochs) values, NaN where a fold has none."""
    series = [epoch_series(one, name) for one in trainings]
    epochs = sorted({epoch for found, _ in series for epoch in found})
    table = np.full((len(series), len(epochs)), np.nan)
    for line, (found, values) in zip(table, series, strict=True):
        line[np.searchsorted(epochs, found)] = values
    return epochs, table


def _draw(study: Study, presets: Sequence[str], number: int, total: int) -> Figure:
    look = looks(study)
    folds = 0
    with new_figure(WIDTH, 6.2) as figure:
        panels = figure.subplots(len(SERIES), len(presets), squeeze=False, sharex="col", sharey="row")
        handles: dict[str, Any] = {}
        for column, preset in enumerate(presets):
            for run in study.at(preset):
                found = [
                    study.training[run.run, fold] for fold in study.folds if (run.run, fold) in study.training
                ]
                folds = max(folds, len(found))
                for panel, name in zip(panels[:, column], SERIES, strict=True):
                    line = _curves(panel, found, name, look[run.method][0], line_style(study, run.method))
                    if line is not None:
                        handles.setdefault(run.method, line)
            panels[0, column].set_title(preset)
            panels[-1, column].set_xlabel("epoch")
            panels[-1, column].xaxis.get_major_locator().set_params(integer=True)
        for row, name in zip(panels, SERIES, strict=True):
            row[0].set_ylabel(LABELS[name])
            for panel in row:
                panel.grid(axis="y")
        panels[-1, 0].set_ylim(bottom=min(0, panels[-1, 0].get_ylim()[0]))
        legend_below(figure, list(handles.values()), list(handles))
        png = to_png(figure)
    return Figure(
        "training" if total == 1 else f"training_{number}",
        png,
        "Training and validation loss and nnU-Net's pseudo Dice (mean over the classes) by epoch. Thin "
        f"lines: the folds (up to {count(folds, 'fold')}); thick: their mean. The pseudo Dice is measured on "
        "random validation patches, so patches of different sizes are not comparable.",
        f"Losses and pseudo Dice by epoch at {', '.join(presets)}",
    )


def _curves(panel: Any, trainings: Sequence[Mapping[str, Any]], name: str, colour: str, style: str) -> Any:
    """Draws the folds and their mean; returns the mean's line, None if there is nothing to draw."""
    epochs, table = fold_table(trainings, name)
    if not np.isfinite(table).any():
        return None
    if name == "pseudo_dice":
        table = 100 * table
    marker = "o" if len(epochs) == 1 else None
    if len(table) > 1:
        for line in table:
            panel.plot(epochs, line, color=colour, linewidth=0.5, alpha=0.45, marker=marker, markersize=2)
    (line,) = panel.plot(
        epochs, mean_known(table, axis=0), style, color=colour, linewidth=1.5, marker=marker, markersize=4
    )
    return line
