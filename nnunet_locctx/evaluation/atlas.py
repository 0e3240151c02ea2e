"""An atlas of where each class occurs, and its use as a mask (atlas masking, LocBAM paper, section 3.3).

The training labels are brought to one grid and averaged; cells where a class's mean is above a threshold, and those
within a radius of them, may hold the class. The grid is described in :mod:`.atlas_grid`, the fit in
:mod:`.atlas_fit`.
"""

import functools
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.atlas_grid import Grid, Indices, patient_order
from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Frame

FORMAT = 1


@dataclass(frozen=True)
class Atlas:
    """Where each label occurs in the training scans.

    Attributes:
        grid: Its grid.
        cases: Names of the scans.
        cells: Label -> (cells, counts): flat indices of the cells where it occurs, and in how many scans.
        labels: The ``labels`` of the ``dataset.json``.
        threshold: Cells count whose share of the scans is above this.
        radius_mm: By how far the cells are dilated, mm on the grid.
        history: How it was made, as JSON can hold it.
    """

    grid: Grid
    cases: tuple[str, ...]
    cells: dict[int, tuple[Indices, npt.NDArray[np.int64]]]
    labels: Mapping[str, Any]
    threshold: float = 0.0
    radius_mm: float = 0.0
    history: Mapping[str, Any] = field(default_factory=dict)

    def mean(self, label: int) -> npt.NDArray[np.float64]:
        """(R, A, S) share of the scans in which a cell holds the label."""
        dense = np.zeros(math.prod(self.grid.shape))
        cells, counts = self.cells[label]
        dense[cells] = counts / len(self.cases)
        return dense.reshape(self.grid.shape)

    def support(self, label: int) -> Indices:
        """(N, 3) cells where the label's share is above the threshold."""
        cells, counts = self.cells[label]
        kept = cells[counts / len(self.cases) > self.threshold]
        return np.stack(np.unravel_index(kept, self.grid.shape), axis=-1).astype(np.int64)


class AtlasMask:
    """An atlas with its distances worked out: for each label, by how much it must be dilated to reach a cell.

    Args:
        atlas: The atlas.
        radii: Radii in mm, ascending; None: the atlas's own.
    """

    def __init__(self, atlas: Atlas, radii: Sequence[float] | None = None) -> None:
        self.atlas = atlas
        self.radii = np.array([atlas.radius_mm] if radii is None else radii, dtype=np.float64)
        if not self.radii.size or (np.diff(self.radii) <= 0).any() or self.radii[0] < 0:
            raise ValueError(f"radii must be numbers of mm from 0, ascending, got {self.radii.tolist()}")
        self._levels = {label: self._level_box(label) for label in atlas.cells}

    @classmethod
    def of_file(cls, file: Path) -> "AtlasMask":
        """The atlas of a file with its own radius; kept for the next call."""
        stamp = file.stat()
        return _mask_of_file(file, stamp.st_mtime_ns, stamp.st_size)

    def levels(self, label: int, cells: Indices) -> npt.NDArray[np.uint8]:
        """(N,) index of the smallest radius that reaches each cell (N, 3); the number of radii if none does."""
        lower, box = self._levels[label]
        found = np.full(len(cells), len(self.radii), dtype=np.uint8)
        at = cells - lower
        inside = ((at >= 0) & (at < box.shape)).all(axis=-1)
        found[inside] = box[tuple(at[inside].T)]
        return found

    def apply(self, segmentation: npt.NDArray[np.int32], frame: Frame) -> npt.NDArray[np.int32]:
        """(z, y, x) label values as stored -> the same with those voxels 0 that no radius reaches."""
        changed = segmentation.copy()
        for label, voxels, levels in self.voxel_levels(segmentation, frame):
            ordered, _ = patient_order(changed, frame)  # a view: writes to `changed`
            lost = voxels[levels == len(self.radii)]
            assert (ordered[tuple(lost.T)] == label).all()
            ordered[tuple(lost.T)] = 0
        return changed

    def voxel_levels(
        self, segmentation: npt.NDArray[np.int32], frame: Frame
    ) -> list[tuple[int, Indices, npt.NDArray[np.uint8]]]:
        """(label, voxels (N, 3) in patient order, their levels) for each label of the atlas."""
        ordered, patient = patient_order(segmentation, frame)
        found = []
        for label in self.atlas.cells:
            voxels = np.argwhere(ordered == label)
            found.append((label, voxels, self.levels(label, self.atlas.grid.cells(patient, voxels))))
        return found

    def _level_box(self, label: int) -> tuple[Indices, npt.NDArray[np.uint8]]:
        """First cell of the box that the greatest radius reaches, and the levels in it."""
        from scipy.ndimage import distance_transform_edt

        support = self.atlas.support(label)
        if not len(support):
            return np.zeros(3, dtype=np.int64), np.zeros((0, 0, 0), dtype=np.uint8)
        spacing = np.array(self.atlas.grid.spacing)
        margin = np.ceil(self.radii[-1] / spacing).astype(np.int64)
        lower = np.maximum(support.min(axis=0) - margin, 0)
        upper = np.minimum(support.max(axis=0) + 1 + margin, self.atlas.grid.shape)
        outside = np.ones(upper - lower, dtype=bool)
        outside[tuple((support - lower).T)] = False
        distance = distance_transform_edt(outside, sampling=spacing)
        # the slack is for sums of rounded cell sizes
        return lower, np.searchsorted(self.radii, distance - 1e-6).astype(np.uint8)


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
        ValueError: It cannot be read, or holds something else.
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
    except Exception as error:  # numpy raises many kinds
        raise ValueError(f"{file} is no atlas of `locctx postprocess fit-atlas`: {error}") from error
    return Atlas(
        grid,
        tuple(about["cases"]),
        cells,
        about["labels"],
        about["threshold"],
        about["radius_mm"],
        about["history"],
    )


@functools.lru_cache(maxsize=1)
def _mask_of_file(file: Path, changed: int, size: int) -> AtlasMask:
    return AtlasMask(read_atlas(file))
