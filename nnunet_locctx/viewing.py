"""Slices the way radiologists see them: as if looking from the feet or from the front, the patient's right at the left.

Sagittal slices have the anterior side at the left. A scan whose file says nothing of the patient is drawn as it is
stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame

ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Per patient axis (R, A, S): where it begins and where it ends."""

SOFT_TISSUE = (-160.0, 240.0)
"""Window of CT in HU."""


@dataclass(frozen=True)
class View:
    """How a volume is cut.

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


AXIAL, CORONAL, SAGITTAL = View("axial", 2, 1, 0), View("coronal", 1, 2, 0), View("sagittal", 0, 2, 1)
VIEWS = (AXIAL, CORONAL, SAGITTAL)


class Slice:
    """A plane of a scan's array, turned for drawing.

    Args:
        frame: The scan's.
        view: Which plane.
        index: A voxel (array axis order) that it passes through, or the plane's index along its fixed axis.

    Attributes:
        fixed: Array axis that the plane is perpendicular to.
        row, column: Array axes that run along the picture's rows and columns.
        index: Of the plane along ``fixed``.
        spacing: mm of a row and of a column.
        height, width: mm of the whole plane.
        letters: What lies left, right, above and below; empty if the scan does not say.
    """

    def __init__(self, frame: Frame, view: View, index: int | Sequence[int]) -> None:
        self.frame, self.view = frame, view
        axes = frame.array_axes
        self.fixed, self.row, self.column = axes[view.fixed], axes[view.row], axes[view.column]
        self.index = int(index if isinstance(index, int | np.integer) else index[self.fixed])
        along = PATIENT_FROM_LPS @ frame.affine_lps[:3, :3]
        # pictures run down and to the right, against the patient's axes
        self._flip_rows = frame.has_geometry and bool(along[view.row, self.row] > 0)
        self._flip_columns = frame.has_geometry and bool(along[view.column, self.column] > 0)
        self.spacing = float(frame.spacing[self.row]), float(frame.spacing[self.column])
        self.height = self.spacing[0] * frame.shape[self.row]
        self.width = self.spacing[1] * frame.shape[self.column]
        self.letters = (*ENDS[view.column][::-1], *ENDS[view.row][::-1]) if frame.has_geometry else ()

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top in mm, for ``imshow``."""
        return 0.0, self.width, self.height, 0.0

    def of(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., rows, columns) of a volume (..., i, j, k) with the scan's shape, first row on top."""
        return self.turn(np.take(volume, self.index, axis=self.fixed - 3))

    def turn(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., rows, columns) of the plane (..., a, b) cut out of an array."""
        if self.row > self.column:
            plane = plane.swapaxes(-1, -2)
        return plane[..., :: -1 if self._flip_rows else 1, :: -1 if self._flip_columns else 1]

    def rectangle(self, lower: npt.ArrayLike, size: npt.ArrayLike) -> tuple[float, float, float, float]:
        """Left, top, width and height in mm of a box of voxels (array axis order)."""
        begin, length = np.asarray(lower, dtype=np.float64), np.asarray(size, dtype=np.float64)
        mirrored = np.array(self.frame.shape) - begin - length
        left = (mirrored if self._flip_columns else begin)[self.column] * self.spacing[1]
        top = (mirrored if self._flip_rows else begin)[self.row] * self.spacing[0]
        return (
            float(left),
            float(top),
            float(length[self.column] * self.spacing[1]),
            float(length[self.row] * self.spacing[0]),
        )

    def paint(self, panel: Any, plane: npt.NDArray[Any], **style: Any) -> None:
        """Draws a turned plane (rows, columns[, RGBA]) onto a matplotlib panel, in mm."""
        panel.imshow(plane, extent=self.extent, interpolation="nearest", **style)


def widest_view(frame: Frame) -> View:
    """Across the body; of an image of one slice the view that shows it."""
    if 1 not in frame.shape:
        return AXIAL
    thin = frame.array_axes.index(frame.shape.index(1))
    return next(view for view in VIEWS if view.fixed == thin)


def per_plane(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.integer]]:
    """How much of a mask (i, j, k) each plane holds, along each axis."""
    return [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]


def grey_levels(
    values: npt.NDArray[Any], percentiles: tuple[float, float] = (0.5, 99.5)
) -> tuple[float, float]:
    """What is drawn black and what white, such that few of the finite values lie beyond."""
    low, high = (float(end) for end in np.percentile(values[np.isfinite(values)], percentiles))
    return low, max(high, low + 1e-6)


def clear(panel: Any, *, spines: bool = True) -> None:
    """Takes ticks, and the frame unless it is wanted, from a matplotlib panel."""
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(spines)
