"""Draws a located scan: slices the way the patient lies, the three location channels, what a model makes of it."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nnunet_locctx.location import MILLIMETRES_PER_UNIT
from nnunet_locctx.show.scan import LocatedScan
from nnunet_locctx.viewing import VIEWS, Slice, clear, grey_levels

Index: TypeAlias = tuple[int, int, int]

CHANNELS = ("left to right", "posterior to anterior", "inferior to superior")
INCHES_PER_PANEL = 2.6


def check_output(output: Path) -> None:
    """Refuses files that could not be written in the end.

    Raises:
        ValueError: There is no such folder, or matplotlib does not know the file's ending.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if not output.resolve().parent.is_dir():
        raise ValueError(f"cannot write {output}: there is no folder {output.resolve().parent}")
    if output.suffix[1:].lower() not in FigureCanvasBase.filetypes:
        known = ", ".join(sorted(FigureCanvasBase.filetypes))
        raise ValueError(
            f"cannot write {output}: a picture's name must end in one of {known}, got {output.suffix!r}"
        )


def draw(scan: LocatedScan, output: Path, *, at: Index | None = None) -> None:
    """Writes the picture.

    Args:
        scan: What to draw.
        output: File to write; its ending decides the format (png, pdf, svg ...).
        at: Voxel (array axis order) that the slices pass through; None: the centre of interest.

    Raises:
        ValueError: The file cannot be written (:func:`check_output`).
    """
    check_output(output)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    index = at or scan.centre_of_interest()
    slices = [Slice(scan.frame, view, index) for view in VIEWS]
    normal = mpl.colors.Normalize(*_location_range(scan))
    columns: list[tuple[str, Callable[[Any, Slice], Any]]] = [
        (_scan_title(scan), functools.partial(_draw_scan, scan=scan, index=index))
    ]
    for channel, name in enumerate(CHANNELS):
        channel_panel = functools.partial(_draw_location, scan=scan, channel=channel, normal=normal)
        columns.append((f"location {'RAS'[channel]}: {name}", channel_panel))
    if scan.comparison is not None:
        both = scan.comparison
        columns += [
            ("prediction, true location", functools.partial(_overlay, labels=both.located)),
            (f"prediction, {both.replacement}", functools.partial(_overlay, labels=both.replaced)),
            (
                f"where they differ ({100 * float(both.changed.mean()):.2g}% of voxels)",
                functools.partial(_draw_difference, changed=both.changed),
            ),
        ]
    ratios = [max(0.45, min(1.6, piece.height / piece.width)) for piece in slices]
    figure = Figure(
        figsize=(INCHES_PER_PANEL * len(columns), INCHES_PER_PANEL * sum(ratios) + 1.3), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(slices), len(columns), squeeze=False, height_ratios=ratios)
    for row, piece in zip(panels, slices, strict=True):
        for panel, (title, paint) in zip(row, columns, strict=True):
            _grey(panel, piece, scan.image)
            paint(panel, piece)
            _frame_panel(panel, piece)
            if piece is slices[0]:
                panel.set_title(title, fontsize=8)
        row[0].set_ylabel(f"{piece.view.name}, {_place(scan, piece, index)}", fontsize=8)
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(normal, "coolwarm"),
        ax=list(panels[:, 1:4].flat),
        location="bottom",
        shrink=0.5,
        aspect=40,
    )
    bar.set_label(_unit(scan), fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(_heading(scan), fontsize=9)
    figure.savefig(output, dpi=130)


def plane_of_location(scan: LocatedScan, piece: Slice) -> npt.NDArray[np.float32]:
    """(3, rows, columns): the location in a slice."""
    lower, size = [0, 0, 0], list(scan.frame.shape)
    lower[piece.fixed], size[piece.fixed] = piece.index, 1
    return piece.turn(np.take(scan.field.box(lower, size), 0, axis=piece.fixed - 3))


def _draw_scan(panel: Any, piece: Slice, scan: LocatedScan, index: Index) -> None:
    if scan.label is not None:
        _overlay(panel, piece, scan.label)
    if scan.patch_size is not None:
        _patches(panel, piece, index, scan.patch_size)


def _draw_location(panel: Any, piece: Slice, scan: LocatedScan, channel: int, normal: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    values = plane_of_location(scan, piece)[channel]
    piece.paint(panel, values, cmap="coolwarm", norm=normal, alpha=0.55)
    levels = MaxNLocator(nbins=11, steps=[1, 2, 5, 10]).tick_values(normal.vmin, normal.vmax)
    if np.isnan(values).any():
        panel.text(0.5, 0.5, "unknown", transform=panel.transAxes, ha="center", va="center", fontsize=7)
    elif float(np.ptp(values)) > (levels[1] - levels[0]) / 2 and min(values.shape) > 1:
        lines = panel.contour(values, levels, extent=piece.extent, origin="upper", colors="k", linewidths=0.5)
        panel.clabel(lines, fontsize=5, fmt="%.2g")
    else:
        text = f"{float(values.mean()):+.2f} throughout"
        panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", fontsize=7)


def _draw_difference(panel: Any, piece: Slice, changed: npt.NDArray[np.bool_]) -> None:
    piece.paint(panel, piece.of(changed)[..., None] * np.array((1.0, 0.15, 0.1, 0.75)))


def _grey(panel: Any, piece: Slice, image: npt.NDArray[Any]) -> None:
    plane = piece.of(image)
    low, high = grey_levels(plane, (1, 99.5))
    piece.paint(panel, plane, cmap="gray", vmin=low, vmax=high)


def _overlay(panel: Any, piece: Slice, labels: npt.NDArray[np.integer]) -> None:
    import matplotlib as mpl

    plane = piece.of(labels)
    # steps through the colours so that neighbouring numbers, often neighbouring organs, look different
    colours = mpl.colormaps["hsv"]((plane * 0.381966) % 1.0)
    colours[..., 3] = np.where(plane > 0, 0.5, 0.0)
    piece.paint(panel, colours)


def _patches(panel: Any, piece: Slice, index: Index, patch_size: Index) -> None:
    """One patch around the place shown, and faintly the grid of patches side by side."""
    from matplotlib.patches import Rectangle

    shape = np.array(piece.frame.shape, dtype=np.float64)
    size = np.array(patch_size, dtype=np.float64)
    counts = np.ceil(shape / size).astype(int)
    grid = (shape - counts * size) / 2
    for i in range(counts[piece.row]):
        for j in range(counts[piece.column]):
            lower = grid.copy()
            lower[piece.row] += i * size[piece.row]
            lower[piece.column] += j * size[piece.column]
            left, top, width, height = piece.rectangle(lower, size)
            panel.add_patch(
                Rectangle((left, top), width, height, fill=False, lw=0.5, ec="white", alpha=0.6, ls=":")
            )
    # as nnU-Net's window, a patch stays within the volume where it can
    slack = np.where(size < shape, 0, (shape - size) / 2)
    lower = np.clip(np.array(index) - size // 2, slack, shape - size - slack)
    left, top, width, height = piece.rectangle(lower, size)
    panel.add_patch(Rectangle((left, top), width, height, fill=False, lw=1.4, ec="yellow"))


def _frame_panel(panel: Any, piece: Slice) -> None:
    panel.set_xlim(0, piece.width)
    panel.set_ylim(piece.height, 0)
    clear(panel)
    style = {"transform": panel.transAxes, "fontsize": 7, "color": "#ffd24d", "weight": "bold"}
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04))
    for (x, y), letter in zip(places, piece.letters, strict=False):
        panel.text(x, y, letter, ha="center", va="center", **style)


def _location_range(scan: LocatedScan) -> tuple[float, float]:
    """Least and largest location of any channel in the volume, from its corner voxels."""
    last = [n - 1 for n in scan.frame.shape]
    corners = [(i, j, k) for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])]
    values = np.array([scan.field.box(corner, (1, 1, 1)).ravel() for corner in corners])
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (-0.5, 0.5)
    middle, half = (low + high) / 2, max((high - low) / 2, 1e-6)
    if low < 0 < high:
        middle, half = 0.0, max(-low, high)
    return middle - half, middle + half


def _place(scan: LocatedScan, piece: Slice, index: Index) -> str:
    fraction = scan.frame.fraction(np.array(index))[piece.view.fixed]
    return f"{'RAS'[piece.view.fixed]} = {fraction:+.2f}"


def _scan_title(scan: LocatedScan) -> str:
    parts = [
        "scan",
        *(["label"] if scan.label is not None else []),
        *(["patches"] if scan.patch_size else []),
    ]
    return ", ".join(parts)


def _unit(scan: LocatedScan) -> str:
    if scan.source.name == "voxel":
        return "location: fraction of the volume (-0.5 to 0.5)"
    return f"location: units of {MILLIMETRES_PER_UNIT:g} mm" if scan.source.name == "scanner" else "location"


def _heading(scan: LocatedScan) -> str:
    frame = scan.frame
    sizes = " x ".join(f"{length:.0f}" for length in frame.extent)
    text = f"{scan.name}: {sizes} mm (left-right, posterior-anterior, inferior-superior), source {scan.source.name}"
    if not frame.has_geometry:
        text += ", no geometry: axes of the array"
    if scan.patch_size is not None:
        share = float(np.prod(np.minimum(1.0, np.array(scan.patch_size) / np.array(frame.shape))))
        text += f"\npatch {' x '.join(map(str, scan.patch_size))} voxels: {100 * share:.2g}% of the volume (yellow)"
    return text
