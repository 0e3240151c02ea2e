"""The grid that an atlas is made on: fractions of each scan's volume along the patient's axes.

Index frames here have the patient's axis order (R, A, S): a stored array is first flipped and transposed so that each
axis grows along the patient axis next to it. Flips and permutations of the storage then change nothing, and voxels
half way between two cells go to the same one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.surfaces import bounding_box
from nnunet_locctx.geometry import Array, Frame

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """A grid over the whole volume of any scan.

    Attributes:
        shape: Cells along (R, A, S).
        spacing: Size of a cell in mm in a scan of median extent, (R, A, S); gives distances on the grid their unit.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @classmethod
    def median(cls, frames: Sequence[Frame], shape: Sequence[int] | None = None) -> "Grid":
        """The grid of the scans' median size in voxels (or `shape`) and median extent in mm.

        Raises:
            ValueError: There is no scan, or a shape is not three numbers above 0.
        """
        if not frames:
            raise ValueError("an atlas needs at least one scan")
        if shape is None:
            sizes = [[frame.shape[axis] for axis in frame.array_axes] for frame in frames]
            shape = [max(1, round(float(n))) for n in np.median(sizes, axis=0)]
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"the grid needs three numbers of cells above 0 (R, A, S), got {list(shape)}")
        extent = np.median([frame.extent for frame in frames], axis=0)
        spacing = [float(length) / n for length, n in zip(extent, shape, strict=True)]
        return cls((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))

    def fraction(self, index: npt.ArrayLike) -> Array:
        """Continuous cell index (..., 3), cell centres at whole numbers -> fraction of the volume."""
        return np.asarray((np.asarray(index, dtype=np.float64) + 0.5) / self.shape - 0.5)

    def index(self, fraction: npt.ArrayLike) -> Array:
        """Fraction of the volume (..., 3) -> continuous cell index."""
        return np.asarray((np.asarray(fraction, dtype=np.float64) + 0.5) * self.shape - 0.5)

    def cells(self, frame: Frame, voxels: npt.NDArray[np.integer]) -> Indices:
        """(N, 3) cell that holds the centre of each voxel (N, 3) of a patient-ordered scan."""
        found = nearest(self.index(frame.fraction(voxels)))
        return np.asarray(
            np.clip(found, 0, np.array(self.shape) - 1)
        )  # a face of the scan may be rounded outwards


def patient_order(array: npt.NDArray[np.int32], frame: Frame) -> tuple[npt.NDArray[np.int32], Frame]:
    """A view of a stored array whose axes run to the patient's right, anterior and superior, and its frame."""
    axes = frame.array_axes
    affine = frame.affine_lps.copy()
    affine[:3, :3] = affine[:3, list(axes)]
    view = array.transpose(axes)
    for patient in range(3):
        if frame.absolute_affine[patient, axes[patient]] < 0:
            view = np.flip(view, patient)
            affine[:3, 3] += affine[:3, patient] * (view.shape[patient] - 1)
            affine[:3, patient] *= -1
    return view, Frame(
        (view.shape[0], view.shape[1], view.shape[2]), affine_lps=affine, has_geometry=frame.has_geometry
    )


def nearest(index: Array) -> Indices:
    """The whole number next to each; half way, the greater one, whatever the last bits say."""
    return np.asarray(np.floor(np.round(index, 6) + 0.5), dtype=np.int64)


def occupied_cells(
    segmentation: npt.NDArray[np.int32], frame: Frame, grid: Grid, labels: Sequence[int]
) -> dict[int, Indices]:
    """Label -> the cells (flat index, sorted) where it occurs in a scan.

    These are the cells at whose centre the scan has the label, by the nearest voxel, and those that hold the centre of
    one of its voxels: no voxel is lost where the grid is coarser than the scan.

    Args:
        segmentation: (z, y, x) label values as stored.
        frame: That array's.
        grid: The atlas's grid.
        labels: Label values to look for.
    """
    ordered, patient = patient_order(segmentation, frame)
    box = bounding_box(np.isin(ordered, list(labels)))
    if box is None:
        return {label: np.empty(0, dtype=np.int64) for label in labels}
    lower, upper = _cells_of_box(box, patient, grid)
    size = upper - lower
    sampled = np.zeros(size, dtype=np.int32)
    columns = np.stack(np.meshgrid(*map(np.arange, lower[1:], upper[1:]), indexing="ij"), axis=-1)
    cell = np.empty((*columns.shape[:2], 3))
    cell[..., 1:] = columns
    for number in range(int(size[0])):
        cell[..., 0] = lower[0] + number
        voxel = nearest(patient.index_from_fraction(grid.fraction(cell)))
        inside = ((voxel >= 0) & (voxel < patient.shape)).all(axis=-1)
        sampled[number][inside] = ordered[tuple(voxel[inside].T)]
    found = {}
    for label in labels:
        pulled = np.argwhere(sampled == label) + lower
        pushed = grid.cells(patient, np.argwhere(ordered == label))
        cells = np.concatenate([pulled, pushed]).T
        found[label] = np.unique(np.ravel_multi_index(tuple(cells), grid.shape)).astype(np.int64)
    return found


def _cells_of_box(box: Sequence[slice], frame: Frame, grid: Grid) -> tuple[Indices, Indices]:
    """First cell and the one behind the last of the cells that a box of voxels reaches."""
    faces = [(part.start - 0.5, part.stop - 0.5) for part in box]
    corners = np.stack(np.meshgrid(*faces, indexing="ij"), axis=-1).reshape(-1, 3)
    reached = grid.index(frame.fraction(corners))
    ends = np.array(grid.shape)
    lower = np.clip([math.floor(n) for n in reached.min(axis=0)], 0, ends - 1)
    upper = np.clip([math.ceil(n) + 1 for n in reached.max(axis=0)], lower + 1, ends)
    return lower.astype(np.int64), upper.astype(np.int64)
