"""An atlas of where each class occurs, and its use as a mask (atlas masking, LocBAM paper, section 3.3).

The training labels are resampled to one grid and counted. A class may lie in the cells where its share of the scans is
above a threshold, and in cells within a radius of these. The fit is described in :mod:`.atlas_fit`.

The grid divides each scan's volume along the patient's axes. Indices in this module are in patient order (R, A, S): a
stored array is first flipped and transposed so that each axis grows along the nearest patient axis. So the storage
order of a scan does not matter.
"""

import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Array, Frame

FORMAT = 1
TIE = 1e-6
"""Cells. Added before rounding down, so that a place half way between two cells belongs to the greater one."""

SLACK = 1e-4
"""Millimetres. Tolerance for distances, which are sums of rounded cell sizes in single precision."""

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Grid:
    """A grid over the whole volume of any scan.

    Attributes:
        shape: Cells along (R, A, S).
        spacing: Size of a cell in mm in a scan of median extent, (R, A, S); distances on the grid are in these mm.
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

    def cells(self, frame: Frame, voxels: npt.NDArray[np.integer]) -> Indices:
        """(N, 3) cell that holds the centre of each voxel (N, 3) of a patient-ordered scan."""
        index = np.floor((frame.fraction(voxels) + 0.5) * self.shape + TIE).astype(np.int64)
        # rounding may put a face of the scan outside
        return np.asarray(np.clip(index, 0, np.array(self.shape) - 1))


def patient_order(array: Labels, frame: Frame) -> tuple[Labels, Frame]:
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
    shape = (view.shape[0], view.shape[1], view.shape[2])
    return view, Frame(shape, affine_lps=affine, has_geometry=frame.has_geometry)


def occupied_cells(
    segmentation: Labels, frame: Frame, grid: Grid, labels: Sequence[int]
) -> dict[int, Indices]:
    """Label -> the cells (flat index, sorted) where it occurs in a scan.

    A cell counts if the voxel nearest to its centre has the label, or if the centre of a voxel with the label lies in
    it: no voxel is lost where the grid is coarser than the scan.

    Args:
        segmentation: (z, y, x) label values as stored.
        frame: Frame of the array.
        grid: The atlas's grid.
        labels: Label values to look for.
    """
    from scipy.ndimage import affine_transform

    ordered, patient = patient_order(segmentation, frame)
    # the map from cells to voxels is affine: four cells determine it
    origin, *ends = patient.index_from_fraction(grid.fraction(np.vstack([np.zeros(3), np.eye(3)])))
    matrix = (np.array(ends) - origin).T
    sampled = affine_transform(
        ordered, matrix, origin + TIE, grid.shape, order=0, mode="grid-constant", prefilter=False
    )
    cells = {}
    for label in labels:
        occupied = sampled == label
        occupied[tuple(grid.cells(patient, np.argwhere(ordered == label)).T)] = True
        cells[label] = np.flatnonzero(occupied).astype(np.int64)
    return cells


@dataclass(frozen=True)
class Atlas:
    """The places of each label in the training scans.

    Attributes:
        grid: Its grid.
        cases: Names of the scans.
        cells: Label -> (cells, counts): flat indices of the cells where it occurs, and the number of scans for each.
        labels: The ``labels`` of the ``dataset.json``.
        threshold: A cell counts if its share of the scans is above this.
        radius_mm: Radius of the dilation, mm on the grid.
        history: How the atlas was made, as JSON can hold it.
    """

    grid: Grid
    cases: tuple[str, ...]
    cells: dict[int, tuple[Indices, npt.NDArray[np.int64]]]
    labels: Mapping[str, Any]
    threshold: float = 0.0
    radius_mm: float = 0.0
    history: Mapping[str, Any] = field(default_factory=dict)

    def support(self, label: int) -> Indices:
        """(N, 3) cells where the label's share is above the threshold."""
        cells, counts = self.cells[label]
        kept = cells[counts / len(self.cases) > self.threshold]
        return np.stack(np.unravel_index(kept, self.grid.shape), axis=-1).astype(np.int64)


class AtlasMask:
    """An atlas with distances: for each cell the radius by which a label must be dilated to reach it.

    Args:
        atlas: The atlas.
        reach_mm: Largest distance that is computed; None: the atlas's radius.
    """

    def __init__(self, atlas: Atlas, reach_mm: float | None = None) -> None:
        self.atlas = atlas
        self._reach = atlas.radius_mm if reach_mm is None else reach_mm
        self._boxes = {label: self._distance_box(label) for label in atlas.cells}

    def apply(self, segmentation: Labels, frame: Frame) -> Labels:
        """(z, y, x) label values as stored -> a copy in which voxels beyond the atlas's radius are 0."""
        changed = segmentation.copy()
        ordered, _ = patient_order(changed, frame)  # a view: writes to `changed`
        for _, voxels, distances in self.distances(segmentation, frame):
            ordered[tuple(voxels[distances > self.atlas.radius_mm + SLACK].T)] = 0
        return changed

    def distances(
        self, segmentation: Labels, frame: Frame
    ) -> Iterator[tuple[int, Indices, npt.NDArray[np.float32]]]:
        """(label, its voxels (N, 3) in patient order, mm on the grid to the label's cells) for each label of the atlas.

        The distance of voxels out of reach is infinite.
        """
        ordered, patient = patient_order(segmentation, frame)
        for label, (lower, box) in self._boxes.items():
            voxels = np.argwhere(ordered == label)
            place = self.atlas.grid.cells(patient, voxels) - lower
            inside = ((place >= 0) & (place < box.shape)).all(axis=-1)
            millimetres = np.full(len(voxels), np.inf, dtype=np.float32)
            millimetres[inside] = box[tuple(place[inside].T)]
            yield label, voxels, millimetres

    def _distance_box(self, label: int) -> tuple[Indices, npt.NDArray[np.float32]]:
        """First cell of the box within reach of the label's cells, and the distances in it."""
        from scipy.ndimage import distance_transform_edt

        support = self.atlas.support(label)
        if not len(support):
            return np.zeros(3, dtype=np.int64), np.zeros((0, 0, 0), dtype=np.float32)
        spacing = np.array(self.atlas.grid.spacing)
        margin = np.ceil(self._reach / spacing).astype(np.int64)
        lower = np.maximum(support.min(axis=0) - margin, 0)
        upper = np.minimum(support.max(axis=0) + 1 + margin, self.atlas.grid.shape)
        outside = np.ones(upper - lower, dtype=bool)
        outside[tuple((support - lower).T)] = False
        return lower, distance_transform_edt(outside, sampling=spacing).astype(np.float32)


def mask_of_file(file: Path, reach_mm: float | None = None) -> AtlasMask:
    """The atlas of a file as a mask; cached, as a worker masks many scans with it.

    Raises:
        ValueError: The file cannot be read, or holds something else.
    """
    stamp = file.stat()
    return _mask_of_file(file, stamp.st_mtime_ns, stamp.st_size, reach_mm)


@functools.lru_cache(maxsize=1)
def _mask_of_file(file: Path, changed: int, size: int, reach_mm: float | None) -> AtlasMask:
    return AtlasMask(read_atlas(file), reach_mm)


def write_atlas(atlas: Atlas, file: Path) -> None:
    """Writes the atlas as one ``.npz`` file."""
    about = {
        "format": FORMAT,
        "shape": atlas.grid.shape,
        "spacing_mm": atlas.grid.spacing,
        "axes": "R, A, S: fractions of the volume along the patient's right, anterior, superior",
        "cases": atlas.cases,
        "labels": dict(atlas.labels),
        "values": sorted(atlas.cells),
        "threshold": atlas.threshold,
        "radius_mm": atlas.radius_mm,
        "history": dict(atlas.history),
    }
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for label, (cells, counts) in atlas.cells.items():
        arrays[f"cells_{label}"], arrays[f"counts_{label}"] = cells, counts
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, buffer.getvalue())


def read_atlas(file: Path) -> Atlas:
    """The atlas of a file.

    Raises:
        ValueError: The file cannot be read, or holds something else.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, this package reads {FORMAT}")
            shape, spacing = about["shape"], about["spacing_mm"]
            grid = Grid((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))
            cells = {
                int(label): (stored[f"cells_{label}"], stored[f"counts_{label}"]) for label in about["values"]
            }
            described = [about[key] for key in ("labels", "threshold", "radius_mm", "history")]
    except Exception as error:  # numpy raises many kinds
        # numpy would advise to load it unsafely
        reason = error if isinstance(error, OSError) else f"{type(error).__name__} in reading it"
        raise ValueError(f"{file} is no atlas of `locctx postprocess fit-atlas`: {reason}") from error
    return Atlas(grid, tuple(about["cases"]), cells, *described)
