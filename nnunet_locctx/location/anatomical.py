"""Location by anatomical positional embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location.field import NEVER_ZERO, LocationField, add_ramps
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.location.source import FittedSource, register

if TYPE_CHECKING:
    import torch

SLAB = 4_000_000
"""Voxels whose location is computed at a time."""


@dataclass
class AnatomicalMap(Measurement):
    """A coarse map of anatomical coordinates over a scan.

    Attributes:
        values: (3, a, b, c) float32, coordinates in patient axes (R, A, S), about -0.5 to 0.5 over the anatomy of the
            training scans; each axis has 2 or more entries.
        affine: (4, 4) float64, index of the map -> mm LPS.
        slopes: (3, 3): change of the coordinate (row) per mm LPS (column), with which the map continues outside.
        problem: See :class:`Measurement`.
    """

    kind: ClassVar[str] = "anatomical"
    values: npt.NDArray[np.float32]
    affine: Array
    slopes: Array
    problem: str = ""

    def __post_init__(self) -> None:
        if self.problem:
            return
        if self.values.ndim != 4 or self.values.shape[0] != 3 or min(self.values.shape) < 2:
            raise ValueError(
                f"a map must be (3, a, b, c), 2 or more along each axis, got {self.values.shape}"
            )
        if not np.isfinite(self.values).all() or not np.isfinite(self.slopes).all():
            raise ValueError("the coordinates of a map must be finite")

    @classmethod
    def unusable(cls, problem: str) -> "AnatomicalMap":
        """A scan that could not be measured."""
        return cls(np.zeros((3, 0, 0, 0), dtype=np.float32), np.eye(4), np.zeros((3, 3)), problem)

    def at(self, millimetres: npt.ArrayLike) -> Array:
        """Coordinates (..., 3) at places (..., 3) in mm LPS; outside the map linear, without a jump."""
        millimetres = np.asarray(millimetres, dtype=np.float64)
        matrix = self.affine[:3, :3]
        index = (millimetres - self.affine[:3, 3]) @ np.linalg.inv(matrix).T
        inside = np.clip(index, 0, np.array(self.values.shape[1:]) - 1)
        points = inside.reshape(-1, 3).T
        values = [map_coordinates(channel, points, order=1, output=np.float64) for channel in self.values]
        return np.stack(values, axis=-1).reshape(index.shape) + (index - inside) @ (self.slopes @ matrix).T

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"values": self.values, "affine": self.affine, "slopes": self.slopes}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "AnatomicalMap":
        return cls(arrays["values"], arrays["affine"], arrays["slopes"], str(arrays.get("problem", "")))

    def measured_field(self, frame: Frame, **options: Any) -> "AnatomicalField":
        return AnatomicalField(frame, self)


class AnatomicalField(LocationField):
    """Anatomical coordinates looked up in a scan's map.

    Args:
        frame: The preprocessed array's.
        anatomical_map: The scan's.
    """

    def __init__(self, frame: Frame, anatomical_map: AnatomicalMap) -> None:
        super().__init__(frame.shape)
        self.affine_matrix = frame.affine_lps[:3]
        self.map = anatomical_map

    def at(self, index: npt.ArrayLike) -> Array:
        index = np.asarray(index, dtype=np.float64)
        return self.map.at(index @ self.affine_matrix[:, :3].T + self.affine_matrix[:, 3])

    def sample(self, origin: Array, steps: Array, out: npt.NDArray[np.float32]) -> None:
        import torch

        inverse = np.linalg.inv(self.map.affine)[:3]
        matrix = inverse[:, :3] @ self.affine_matrix[:, :3]
        start = matrix @ origin + inverse[:, :3] @ self.affine_matrix[:, 3] + inverse[:, 3]
        changes = matrix @ steps
        size = out.shape[1:]
        last = np.array(self.map.values.shape[1:]) - 1
        values = torch.from_numpy(np.ascontiguousarray(self.map.values))[None]
        slopes = self.map.slopes @ self.map.affine[:3, :3]
        # slab by slab: three float32 indices per voxel of a whole scan are large
        thickness = max(1, SLAB // int(np.prod(size[1:])))
        for first in range(0, size[0], thickness):
            slab = out[:, first : first + thickness]
            index = np.empty((3, *slab.shape[1:]), dtype=np.float32)
            for axis in range(3):
                add_ramps(start[axis] + changes[axis, 0] * first, changes[axis], index[axis])
            self._look_up(values, index, last, slab)
            for axis, n in enumerate(last):  # beyond the map: linear, without a jump
                beyond = index[axis] - np.clip(index[axis], 0, n)
                if beyond.any():
                    for channel in range(3):
                        slab[channel] += np.float32(slopes[channel, axis]) * beyond
        out[0] += NEVER_ZERO

    def _look_up(
        self,
        values: "torch.Tensor",
        index: npt.NDArray[np.float32],
        last: Array,
        out: npt.NDArray[np.float32],
    ) -> None:
        """Interpolates the map (1, 3, a, b, c) linearly at (3, *s) indices, those outside moved to its border."""
        import torch
        import torch.nn.functional as F

        # grid_sample counts axes from the last, and -1..1 between the centres of the outer cells
        grid = torch.from_numpy(index * (2 / last).astype(np.float32).reshape(3, *[1] * (index.ndim - 1)) - 1)
        points = grid.flip(0).movedim(0, -1).reshape(1, 1, 1, -1, 3)
        looked_up = F.grid_sample(values, points, padding_mode="border", align_corners=True)
        out[...] = looked_up.reshape(out.shape).numpy()


@register
@dataclass(frozen=True)
class AnatomicalSource(FittedSource):
    """Anatomical positional embeddings, fitted on the user's scans (``locctx fit ape``): one place of the body has the
    same three coordinates in every scan.

    Source: Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291).
    """

    name: ClassVar[str] = "anatomical"
