"""Reports what a fitted location source measured in the training scans: figures and a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunet_locctx.files import replacing
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AnatomicalMap, BodyBox, BodyPartCurve
from nnunet_locctx.nnunet.data.fitting import FittedDataset
from nnunet_locctx.viewing import CORONAL, SAGITTAL, Slice, clear

DRAWN_MAPS = 4
NAMED_SCANS = 40
"""Largest number of scans that are drawn with their names."""


def report_fitted(fitted: FittedDataset) -> dict[str, Any]:
    """The figures of each scan, and a summary over all scans as lines of text."""
    cases = {
        name: {"problem": measurement.problem} if measurement.problem else _figures(measurement)
        for name, measurement in fitted.measured.items()
    }
    usable = [figures for figures in cases.values() if "problem" not in figures]
    summary = [f"{len(usable)} of {len(cases)} scans measured"]
    if usable and fitted.source == "body_part":
        slopes = [float(figures["slope_points_per_mm"]) for figures in usable]
        lowest = min(figures["lowest_score"] for figures in usable)
        highest = max(figures["highest_score"] for figures in usable)
        summary.append(f"scores from {lowest:.1f} to {highest:.1f}")
        summary.append(
            f"slope {np.median(slopes):.4f} points per mm ({min(slopes):.4f} to {max(slopes):.4f})"
        )
    elif usable and fitted.source == "body":
        for axis, name in enumerate("RAS"):
            least, middle, most = np.percentile([figures["box_mm"][axis] for figures in usable], (0, 50, 100))
            summary.append(f"{name}: the body's box is {middle:.4g} mm long ({least:.4g} to {most:.4g})")
    elif usable:
        for axis, name in enumerate("RAS"):
            ends = [figures["range"][axis] for figures in usable]
            summary.append(f"{name} from {min(e[0] for e in ends):+.2f} to {max(e[1] for e in ends):+.2f}")
    return {"source": fitted.source, "summary": summary, "cases": cases}


def _figures(measurement: Any) -> dict[str, Any]:
    if isinstance(measurement, BodyPartCurve):
        return {
            "lowest_score": round(float(measurement.scores[0]), 2),
            "highest_score": round(float(measurement.scores[-1]), 2),
            "slope_points_per_mm": round(float(measurement.slope), 5),
            "length_mm": round(float(np.ptp(measurement.positions)), 1),
            "body": measurement.cross_section is not None,
        }
    if isinstance(measurement, BodyBox):
        return {"box_mm": np.round(measurement.upper - measurement.lower, 2).tolist()}
    ends = np.percentile(measurement.values.reshape(3, -1), (1, 99), axis=1).T
    return {"range": np.round(ends, 3).tolist(), "cells": list(measurement.values.shape[1:])}


def draw_fitted(fitted: FittedDataset, output: Path) -> None:
    """Writes a picture (.png): the curves or boxes of all scans, or slices through the maps of a few.

    Raises:
        ValueError: No scan could be measured.
    """
    usable = {name: one for name, one in fitted.measured.items() if not one.problem}
    if not usable:
        raise ValueError("no scan could be measured, so there is nothing to draw")
    boxes = {name: one for name, one in usable.items() if isinstance(one, BodyBox)}
    curves = {name: one for name, one in usable.items() if isinstance(one, BodyPartCurve)}
    maps = {name: one for name, one in usable.items() if isinstance(one, AnatomicalMap)}
    if boxes:
        figure = _draw_boxes(boxes)
    elif curves:
        figure = _draw_curves(curves)
    else:
        figure = _draw_maps(dict(list(maps.items())[:DRAWN_MAPS]))
    with replacing(output) as draft:
        figure.savefig(draft, dpi=120)


def _draw_curves(curves: dict[str, BodyPartCurve]) -> Figure:
    names = sorted(curves, key=lambda name: float(curves[name].scores[0]))
    figure = Figure(figsize=(11, max(4.0, min(0.22 * len(names), 10.0))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, name in enumerate(names):
        curve = curves[name]
        # the origin of a scan's mm is arbitrary: the curves are aligned at score 50
        middle = _position_of(curve, 50.0)
        left.plot(curve.positions - middle, curve.scores, linewidth=1, color="tab:blue", alpha=0.5)
        right.plot(
            curve.scores[[0, -1]], [index, index], linewidth=3, color="tab:blue", solid_capstyle="butt"
        )
    left.set_xlabel("mm above the place with score 50")
    left.set_ylabel("body part score")
    left.set_title("scores along the body, one line per scan")
    left.grid(alpha=0.3)
    right.set_xlabel("body part score")
    right.set_title("what each scan shows")
    right.axvline(0, color="grey", linewidth=0.8)
    right.axvline(100, color="grey", linewidth=0.8)
    if len(names) <= NAMED_SCANS:
        right.set_yticks(range(len(names)), names, fontsize=7)
    else:
        right.set_ylabel("scans, by their lowest score")
    return figure


def _position_of(curve: BodyPartCurve, score: float) -> float:
    """The position in mm of a score; linear beyond the ends."""
    if score < curve.scores[0]:
        return float(curve.positions[0] + (score - curve.scores[0]) / curve.slope)
    if score > curve.scores[-1]:
        return float(curve.positions[-1] + (score - curve.scores[-1]) / curve.slope)
    return float(np.interp(score, curve.scores, curve.positions))


def _draw_boxes(boxes: dict[str, BodyBox]) -> Figure:
    """The lengths of each scan's box, so that an unusual one stands out."""
    figure = Figure(figsize=(11, max(4.0, min(0.22 * len(boxes), 10.0))), layout="constrained")
    for axis, ax in enumerate(figure.subplots(1, 3, sharey=True)):
        ax.plot([box.upper[axis] - box.lower[axis] for box in boxes.values()], range(len(boxes)), "o")
        ax.set_xlabel(f"{'RAS'[axis]}: length of the body's box in mm")
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
        if axis == 0 and len(boxes) <= NAMED_SCANS:
            ax.set_yticks(range(len(boxes)), list(boxes), fontsize=7)
    return figure


def _draw_maps(maps: dict[str, AnatomicalMap]) -> Figure:
    """The middle slices of the maps, each with the coordinate that changes most in it."""
    figure = Figure(figsize=(9, 3.4 * len(maps)), layout="constrained")
    rows = figure.subplots(len(maps), 3, squeeze=False)
    for panels, (name, anatomical) in zip(rows, maps.items(), strict=True):
        shape = anatomical.values.shape[1:]
        frame = Frame.from_affine(shape, anatomical.affine, "LPS")
        for channel, (panel, view) in enumerate(zip(panels, (CORONAL, SAGITTAL, CORONAL), strict=True)):
            piece = Slice(frame, view, [n // 2 for n in shape])
            plane = piece.of(anatomical.values[channel])
            piece.paint(panel, plane, cmap="coolwarm", vmin=-0.6, vmax=0.6)
            lines = np.arange(-1, 1.01, 0.1)
            panel.contour(plane, lines, extent=piece.extent, origin="upper", colors="k", linewidths=0.4)
            clear(panel)
            panel.set_title(f"{'RAS'[channel]}, {view.name}", fontsize=9)
        panels[0].set_ylabel(name, fontsize=8)
    figure.colorbar(rows[0, 0].images[0], ax=rows, shrink=0.6, label="anatomical coordinate")
    return figure
