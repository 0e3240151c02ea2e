"""Draws a located scan: slices the way the patient lies, the three location channels, what a model makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.location import MILLIMETRES_PER_UNIT
from nnunet_locctx.show.scan import LocatedScan

CHANNELS = ("left to right", "posterior to anterior", "inferior to superior")
LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Per patient axis (R, A, S): where it begins and where it ends."""

INCHES_PER_PANEL = 2.6


@dataclass(frozen=True)
class View:
    """One slice through the volume.

    Attributes:
        name: What radiologists call it.
        fixed: Patient axis (0 R, 1 A, 2 S) that the slice is perpendicular to.
        row: Patient axis that runs upwards in the picture.
        column: Patient axis that runs to the left in the picture.
    """

    name: str
    fixed: int
    row: int
    column: int


# the patient's right is drawn at the left, as if looking from the feet or from the front
VIEWS = (View("axial", 2, 1, 0), View("coronal", 1, 2, 0), View("sagittal", 0, 2, 1))


class Slice:
    """A plane of a scan's array, turned for drawing.

    Args:
        scan: The scan.
        view: Which plane.
        index: A voxel (array axis order) that it passes through.
    """

    def __init__(self, scan: LocatedScan, view: View, index: tuple[int, int, int]) -> None:
        self.scan = scan
        self.view = view
        axes = scan.patient_axes()
        self.fixed = axes[view.fixed][0]
        self.row, self.row_grows = axes[view.row]
        self.column, self.column_grows = axes[view.column]
        self.index = index
        spacing = scan.frame.spacing
        self.height = float(spacing[self.row] * scan.frame.shape[self.row])
        self.width = float(spacing[self.column] * scan.frame.shape[self.column])

    def of(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The plane of a volume with the scan's shape, first row on top."""
        plane = np.take(volume, self.index[self.fixed], axis=self.fixed)
        return self._turn(plane)

    def location(self) -> npt.NDArray[np.float32]:
        """(3, rows, columns): the location in the plane."""
        lower, size = [0, 0, 0], list(self.scan.frame.shape)
        lower[self.fixed], size[self.fixed] = self.index[self.fixed], 1
        box = self.scan.field.box(lower, size)
        return np.stack([self._turn(np.take(channel, 0, axis=self.fixed)) for channel in box])

    def rectangle(
        self, lower: npt.NDArray[np.float64], size: npt.NDArray[np.float64]
    ) -> tuple[float, float, float, float]:
        """Left, top, width and height in mm of a box of voxels."""
        left, width = self._span(self.column, self.column_grows, lower, size)
        top, height = self._span(self.row, self.row_grows, lower, size)
        return left, top, width, height

    def _span(
        self, axis: int, grows: bool, lower: npt.NDArray[np.float64], size: npt.NDArray[np.float64]
    ) -> tuple[float, float]:
        spacing = float(self.scan.frame.spacing[axis])
        # pictures run against the patient axis: down and to the right
        begin = self.scan.frame.shape[axis] - lower[axis] - size[axis] if grows else lower[axis]
        return float(begin) * spacing, float(size[axis]) * spacing

    def _turn(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.row > self.column:
            plane = plane.T
        return plane[:: -1 if self.row_grows else 1, :: -1 if self.column_grows else 1]


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


def draw(scan: LocatedScan, output: Path, *, at: tuple[int, int, int] | None = None) -> None:
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
    slices = [Slice(scan, view, index) for view in VIEWS]
    columns: list[tuple[str, Callable[[Any, Slice], Any]]] = [(_scan_title(scan), _draw_scan)]
    low, high = _location_range(scan)
    normal = mpl.colors.Normalize(low, high)
    for channel, name in enumerate(CHANNELS):
        columns.append((f"location {'RAS'[channel]}: {name}", _location_panel(channel, normal)))
    if scan.comparison is not None:
        located, replaced = scan.comparison.located, scan.comparison.replaced
        columns.append(("prediction, true location", _overlay_panel(located)))
        columns.append((f"prediction, {scan.comparison.replacement}", _overlay_panel(replaced)))
        share = 100 * float(scan.comparison.changed.mean())
        columns.append((f"where they differ ({share:.2g}% of voxels)", _difference_panel(scan)))
    ratios = [max(0.45, min(1.6, piece.height / piece.width)) for piece in slices]
    figure = Figure(
        figsize=(INCHES_PER_PANEL * len(columns), INCHES_PER_PANEL * sum(ratios) + 1.3), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(slices), len(columns), squeeze=False, height_ratios=ratios)
    for row, piece in zip(panels, slices, strict=True):
        for panel, (title, paint) in zip(row, columns, strict=True):
            paint(panel, piece)
            _frame_panel(panel, piece)
            if piece is slices[0]:
                panel.set_title(title, fontsize=8)
        row[0].set_ylabel(f"{piece.view.name}, {_place(scan, piece)}", fontsize=8)
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


def _draw_scan(panel: Any, piece: Slice) -> None:
    _grey(panel, piece)
    scan = piece.scan
    if scan.label is not None:
        _overlay(panel, piece, scan.label)
    if scan.patch_size is not None:
        _patches(panel, piece, scan.patch_size)


def _location_panel(channel: int, normal: Any) -> Callable[[Any, Slice], Any]:
    from matplotlib.ticker import MaxNLocator

    def paint(panel: Any, piece: Slice) -> None:
        _grey(panel, piece)
        values = piece.location()[channel]
        extent = (0, piece.width, piece.height, 0)
        panel.imshow(values, extent=extent, cmap="coolwarm", norm=normal, alpha=0.55, interpolation="nearest")
        levels = MaxNLocator(nbins=11, steps=[1, 2, 5, 10]).tick_values(normal.vmin, normal.vmax)
        if np.isnan(values).any():
            panel.text(0.5, 0.5, "unknown", transform=panel.transAxes, ha="center", va="center", fontsize=7)
        elif float(np.ptp(values)) > (levels[1] - levels[0]) / 2 and min(values.shape) > 1:
            lines = panel.contour(values, levels, extent=extent, origin="upper", colors="k", linewidths=0.5)
            panel.clabel(lines, fontsize=5, fmt="%.2g")
        else:
            text = f"{float(values.mean()):+.2f} throughout"
            panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", fontsize=7)

    return paint


def _overlay_panel(labels: npt.NDArray[np.integer]) -> Callable[[Any, Slice], Any]:
    def paint(panel: Any, piece: Slice) -> None:
        _grey(panel, piece)
        _overlay(panel, piece, labels)

    return paint


def _difference_panel(scan: LocatedScan) -> Callable[[Any, Slice], Any]:
    def paint(panel: Any, piece: Slice) -> None:
        _grey(panel, piece)
        if scan.comparison is not None:
            changed = piece.of(scan.comparison.changed)
            colour = np.zeros((*changed.shape, 4))
            colour[changed] = (1.0, 0.15, 0.1, 0.75)
            panel.imshow(colour, extent=(0, piece.width, piece.height, 0), interpolation="nearest")

    return paint


def _grey(panel: Any, piece: Slice) -> None:
    plane = piece.of(piece.scan.image)
    low, high = np.percentile(plane, [1, 99.5])
    panel.imshow(
        plane,
        extent=(0, piece.width, piece.height, 0),
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        interpolation="nearest",
    )


def _overlay(panel: Any, piece: Slice, labels: npt.NDArray[np.integer]) -> None:
    import matplotlib as mpl

    plane = piece.of(labels)
    # steps through the colours so that neighbouring numbers, often neighbouring organs, look different
    colours = mpl.colormaps["hsv"]((plane * 0.381966) % 1.0)
    colours[..., 3] = np.where(plane > 0, 0.5, 0.0)
    panel.imshow(colours, extent=(0, piece.width, piece.height, 0), interpolation="nearest")


def _patches(panel: Any, piece: Slice, patch_size: tuple[int, int, int]) -> None:
    """One patch around the place shown, and faintly the grid of patches side by side."""
    from matplotlib.patches import Rectangle

    shape = np.array(piece.scan.frame.shape, dtype=np.float64)
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
    lower = np.clip(np.array(piece.index) - size // 2, slack, shape - size - slack)
    left, top, width, height = piece.rectangle(lower, size)
    panel.add_patch(Rectangle((left, top), width, height, fill=False, lw=1.4, ec="yellow"))


def _frame_panel(panel: Any, piece: Slice) -> None:
    panel.set_xlim(0, piece.width)
    panel.set_ylim(piece.height, 0)
    panel.set_xticks([])
    panel.set_yticks([])
    column, row = LETTERS[piece.view.column], LETTERS[piece.view.row]
    style = {"transform": panel.transAxes, "fontsize": 7, "color": "#ffd24d", "weight": "bold"}
    for x, y, text in (
        (0.03, 0.5, column[1]),
        (0.97, 0.5, column[0]),
        (0.5, 0.96, row[1]),
        (0.5, 0.04, row[0]),
    ):
        panel.text(x, y, text, ha="center", va="center", **style)


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


def _place(scan: LocatedScan, piece: Slice) -> str:
    fraction = scan.frame.fraction(np.array(piece.index))[piece.view.fixed]
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
