"""Draws a located scan: large slices in radiological view, a model's predictions, the location as a strip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.files import replacing
from nnunet_locctx.location import AXES, MILLIMETRES_PER_UNIT
from nnunet_locctx.show.scan import LocatedScan, nearest_voxel
from nnunet_locctx.viewing import VIEWS, Colour, Slice, class_colours, clear, grey_levels, widest_view

WIDTH, HIGHEST = 11.0, 5.0
"""Inches: width of all slices together; height of the highest slice."""

GAP, STRIP = 0.45, 0.7
"""Inches: gap between slices for the letters; height of the location's strip."""

ENDS = ("left to right", "posterior to anterior", "inferior to superior")


def check_output(output: Path) -> None:
    """Refuses a file that cannot be written.

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


def draw(
    scan: LocatedScan,
    output: Path,
    *,
    at: Sequence[float] | None = None,
    window: tuple[float, float] | None = None,
    progress: bool = False,
) -> None:
    """Writes the picture: a column for each plane; a row for the scan with its label and one for each prediction.

    Args:
        scan: The scan.
        output: File to write; its ending decides the format (png, pdf, svg ...).
        at: Common place of the slices, as fractions (R, A, S) of the volume; None: the place of interest.
        window: Values drawn black and white, in units of the scan; None: a window that suits the channel's name.
        progress: Show a progress bar.

    Raises:
        ValueError: The file cannot be written (:func:`check_output`), or the place lies outside the volume.
    """
    check_output(output)
    place = scan.place_of_interest() if at is None else at
    views = (widest_view(scan.frame),) if 1 in scan.frame.shape else VIEWS
    pieces = [Slice(scan.frame, view, nearest_voxel(scan.frame, place)) for view in views]
    pieces_of_grid = [Slice(scan.grid, view, nearest_voxel(scan.grid, place)) for view in views]
    rows = [_Row("scan" if scan.label is None else "scan and label", pieces, scan.label)]
    if scan.comparison is not None:
        located, replaced = scan.comparison.located, scan.comparison.replaced
        title = f"prediction,\n{scan.comparison.replacement}"
        rows.append(_Row("prediction,\ntrue location", pieces_of_grid, located))
        rows.append(_Row(title, pieces_of_grid, replaced, scan.comparison.changed))
    levels = window or grey_levels(scan.image, scan.channel)
    names = list(dict.fromkeys(scan.names.values()))
    colours = class_colours(names, find_pairs(names))

    sheet = _Sheet.of(pieces, len(rows))
    visible: set[str] = set()
    cells = [(row, column) for row in range(len(rows)) for column in range(len(views))]
    for row, column in tqdm(
        cells, desc="drawing", unit="slice", disable=None if progress else True, leave=False
    ):
        panel, piece = sheet.panel(row, column), pieces[column]
        grey = {"cmap": "gray", "vmin": levels[0], "vmax": levels[1], "interpolation": "bilinear"}
        piece.paint(panel, piece.of(scan.image), **grey)
        visible |= rows[row].paint(panel, column, scan.names, colours)
        if row == 0 and scan.patch_size is not None:
            _patches(panel, pieces_of_grid[column], place, scan.patch_size)
        piece.frame_panel(panel)
        if row == 0:
            panel.set_title(_plane(scan, piece), fontsize=9, pad=16 if piece.letters else 6)
        if column == 0:
            panel.set_ylabel(rows[row].title, fontsize=9, labelpad=16 if piece.letters else 6)
    _draw_location(sheet, scan, pieces_of_grid)
    _legend(sheet, scan, {name: colours[name] for name in names if name in visible})
    top = 1 + 0.42 / sheet.figure.get_figheight()
    sheet.figure.text(0, top, _heading(scan, levels), fontsize=9, va="bottom")
    with replacing(output) as draft:
        sheet.figure.savefig(draft, dpi=130, bbox_inches="tight", pad_inches=0.15)


@dataclass(frozen=True)
class _Sheet:
    """Rows of slices of equal height above a strip; titles and legend lie outside.

    Attributes:
        figure: The figure.
        widths: Inches of each column.
        height: Inches of each row.
        rows: Number of rows.
    """

    figure: Any
    widths: Sequence[float]
    height: float
    rows: int

    @classmethod
    def of(cls, pieces: Sequence[Slice], rows: int) -> "_Sheet":
        """A sheet for slices beside each other."""
        from matplotlib.figure import Figure

        ratios = [min(max(piece.width / piece.height, 0.5), 3.0) for piece in pieces]
        height = min(WIDTH / sum(ratios), HIGHEST)
        size = sum(ratios) * height + GAP * len(ratios), (height + GAP) * rows + STRIP
        return cls(Figure(size), [ratio * height for ratio in ratios], height, rows)

    def panel(self, row: int, column: int, parts: int = 1, part: int = 0) -> Any:
        """A panel over a part of the column's width; the row after the last is the strip."""
        width, height = self.figure.get_size_inches()
        left = sum(self.widths[:column]) + GAP * column
        own = (self.widths[column] - GAP * (parts - 1)) / parts
        bottom = height - (self.height + GAP) * row - self.height if row < self.rows else 0.0
        size = own, self.height if row < self.rows else STRIP
        return self.figure.add_axes(
            [(left + part * (own + GAP)) / width, bottom / height, size[0] / width, size[1] / height]
        )


@dataclass(frozen=True)
class _Row:
    """Slices with one segmentation.

    Attributes:
        title: Title of the row.
        pieces: The slices, one for each view, in the segmentation's frame.
        labels: The segmentation, or None.
        changed: Voxels that are hatched, or None.
    """

    title: str
    pieces: Sequence[Slice]
    labels: npt.NDArray[np.integer] | None
    changed: npt.NDArray[np.bool_] | None = None

    def paint(
        self, panel: Any, column: int, names: Mapping[int, str], colours: Mapping[str, Colour]
    ) -> set[str]:
        """Outlines the classes in one slice; returns their names."""
        if self.labels is None:
            return set()
        piece = self.pieces[column]
        plane = piece.of(self.labels)
        values = [value for value in np.unique(plane).tolist() if value > 0]
        for value in values:
            piece.outline(panel, plane == value, colours[names[value]])
        if self.changed is not None:
            piece.outline(panel, piece.of(self.changed), "white", hatch="////")
        return {names[value] for value in values}


def plane_of_location(scan: LocatedScan, piece: Slice) -> npt.NDArray[np.float32]:
    """(3, rows, columns): the location in a slice of the scan's grid."""
    lower, size = [0, 0, 0], list(scan.grid.shape)
    lower[piece.fixed], size[piece.fixed] = piece.index, 1
    return piece.turn(np.take(scan.field.box(lower, size), 0, axis=piece.fixed - 3))


def _draw_location(sheet: _Sheet, scan: LocatedScan, pieces: Sequence[Slice]) -> None:
    """Draws below each plane one channel that changes in it; below the only plane of a 2D scan, both channels."""
    channels = [(0,), (2,), (1,)] if len(pieces) > 1 else [(pieces[0].view.column, pieces[0].view.row)]
    for column, (piece, several) in enumerate(zip(pieces, channels, strict=True)):
        for part, channel in enumerate(several):
            panel = sheet.panel(sheet.rows, column, len(several), part)
            _draw_map(panel, piece, plane_of_location(scan, piece)[channel])
            panel.set(xlim=(0, piece.width), ylim=(piece.height, 0), aspect="auto")
            clear(panel)
            grows = f" grows from {ENDS[channel]}" if scan.frame.has_geometry else ""
            panel.set_xlabel(f"location {AXES[channel]}{grows}", fontsize=8)


def _draw_map(panel: Any, piece: Slice, values: npt.NDArray[np.float32]) -> None:
    from matplotlib.ticker import MaxNLocator

    if np.isnan(values).any():
        panel.text(0.5, 0.5, "unknown", transform=panel.transAxes, ha="center", va="center", fontsize=7)
        return
    low, high = float(values.min()), float(values.max())
    piece.paint(panel, values, cmap="coolwarm", vmin=low, vmax=high, alpha=0.7)
    lines = np.asarray(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high))
    edge = 0.05 * (high - low)  # a number closer to the end would be cut off
    lines = lines[(lines > low + edge) & (lines < high - edge)]
    if min(values.shape) > 1 and lines.size:
        drawn = panel.contour(values, lines, extent=piece.extent, origin="upper", colors="k", linewidths=0.5)
        middles = [line[len(line) // 2] for lines in drawn.allsegs for line in lines if len(line)]
        for text in panel.clabel(drawn, manual=middles, fontsize=7, fmt="%g"):
            text.set_rotation(0)


def _patches(panel: Any, piece: Slice, place: npt.ArrayLike, patch_size: tuple[int, int, int]) -> None:
    """Draws one patch around the place, and faintly a grid of adjacent patches."""
    from matplotlib.patches import Rectangle

    shape = np.array(piece.frame.shape, dtype=np.float64)
    size = np.array(patch_size, dtype=np.float64)
    counts = np.ceil(shape / size).astype(int)
    corner = (shape - counts * size) / 2

    def outline(lower: npt.NDArray[np.float64], **style: Any) -> None:
        left, top, width, height = piece.rectangle(lower, size)
        panel.add_patch(Rectangle((left, top), width, height, fill=False, ec="white", **style))

    for i, j in np.ndindex(counts[piece.row], counts[piece.column]):
        steps = np.zeros(3)
        steps[piece.row], steps[piece.column] = i, j
        outline(corner + steps * size, lw=0.5, alpha=0.5, ls=":")
    # a patch stays within the volume if it fits, as nnU-Net's sliding window
    slack = np.where(size < shape, 0, (shape - size) / 2)
    middle = np.array(nearest_voxel(piece.frame, place))
    outline(np.clip(middle - size // 2, slack, shape - size - slack), lw=1.4)


def _legend(sheet: _Sheet, scan: LocatedScan, colours: Mapping[str, Colour]) -> None:
    """A legend of the visible classes, in as many columns as needed."""
    from matplotlib.patches import Patch

    if not colours:
        return
    keys = [Patch(fc=(*colour, 0.4), ec=colour, label=name) for name, colour in colours.items()]
    rows = int(sheet.figure.get_figheight() / 0.16)
    known = len(set(scan.names.values()))
    sheet.figure.legend(
        handles=keys,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
        ncols=-(-len(keys) // rows),
        fontsize=7,
        frameon=False,
        title=f"{len(colours)} of {known} classes in these slices" if len(colours) < known else None,
        title_fontsize=7,
        alignment="left",
    )


def _plane(scan: LocatedScan, piece: Slice) -> str:
    number = f"slice {piece.index + 1} of {scan.frame.shape[piece.fixed]}"
    return f"{piece.view.name}, {number}" if scan.frame.has_geometry else f"{number}, as stored"


def _heading(scan: LocatedScan, levels: tuple[float, float]) -> str:
    frame = scan.frame
    axes = [axis for axis in frame.array_axes if frame.shape[axis] > 1 or 1 not in frame.shape]
    size = " x ".join(f"{frame.shape[axis] * frame.spacing[axis]:.4g}" for axis in axes)
    voxel = " x ".join(f"{frame.spacing[axis]:.3g}" for axis in axes)
    units = " HU" if scan.channel.casefold() == "ct" else ""
    level, width = (levels[0] + levels[1]) / 2, levels[1] - levels[0]
    lines = [
        f"{scan.name}: {size} mm, voxels of {voxel} mm, window: level {level:.4g}, width {width:.4g}{units}",
        f"location: source {scan.source.name}" + _units(scan),
    ]
    if not frame.has_geometry:
        lines[0] += ", as stored (the file does not give the patient's axes)"
    if scan.patch_size is not None:
        share = float(np.prod(np.minimum(1.0, np.array(scan.patch_size) / np.array(scan.grid.shape))))
        sizes = " x ".join(map(str, scan.patch_size))
        lines[1] += f"; box: a patch of {sizes} voxels, {100 * share:.2g}% of the volume"
    if scan.comparison is not None:
        lines.append(
            f"hatched: {100 * float(scan.comparison.changed.mean()):.2g}% of the voxels are predicted otherwise"
        )
    return "\n".join(lines)


def _units(scan: LocatedScan) -> str:
    if scan.source.name == "voxel":
        return ", fractions of the volume"
    return f", units of {MILLIMETRES_PER_UNIT:g} mm" if scan.source.name == "scanner" else ""
