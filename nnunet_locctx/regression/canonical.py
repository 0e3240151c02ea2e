"""Resamples scans to a coarse grid along the patient's axes, whatever their storage and voxel size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform, gaussian_filter1d

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Array, Frame

SMALLEST_SIDE = 2
"""Smallest number of voxels of the canonical grid along each axis."""


@dataclass(frozen=True)
class CanonicalScan:
    """A scan resampled to a grid along the patient's axes (R, A, S).

    Attributes:
        image: (a, b, c) float32; the first index grows to the patient's right, the second to anterior, the third to
            superior. Voxels outside the scan have the scan's smallest intensity.
        inside: (a, b, c) bool; whether each voxel lies in the scan.
        affine: (4, 4) float64, index -> mm LPS.
    """

    image: npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_]
    affine: Array

    @property
    def spacing(self) -> Array:
        """(3,) voxel size in mm along (R, A, S)."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def places(self, axis: int) -> Array:
        """Voxel centres along a patient axis, in mm along that axis (R, A, S; S equals the LPS z)."""
        start = float((PATIENT_FROM_LPS @ self.affine[:3, 3])[axis])
        return np.asarray(start + self.spacing[axis] * np.arange(self.image.shape[axis]))


def to_canonical(
    image: npt.NDArray[np.floating], frame: Frame, spacing: float | Sequence[float]
) -> CanonicalScan:
    """Resamples a scan.

    The image is smoothed before sampling at a coarser resolution, and interpolated linearly. The grid is centred on the
    scan and covers its outer faces.

    Args:
        image: (i, j, k), as stored.
        frame: Frame of the array.
        spacing: Voxel size in mm along (R, A, S), or one size for all axes.

    Raises:
        ValueError: The image does not fit its frame, or has voxels that are not finite.
    """
    if image.ndim != 3 or image.shape != frame.shape:
        raise ValueError(f"a scan of shape {image.shape} does not fit its frame, {frame.shape}")
    if not np.isfinite(image.sum(dtype=np.float64)):
        raise ValueError("the scan has voxels that are NaN or infinite; all must be finite")
    steps = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,))
    # half the size of the box that holds the scan's outer faces, along the patient's axes
    extent = np.abs(PATIENT_FROM_LPS @ frame.affine_lps[:3, :3]) @ np.array(frame.shape, dtype=np.float64)
    shape = [
        max(SMALLEST_SIDE, int(np.ceil(length / step - 1e-3)))
        for length, step in zip(extent, steps, strict=True)
    ]
    affine = np.eye(4)
    affine[:3, :3] = PATIENT_FROM_LPS * steps
    affine[:3, 3] = frame.centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    smoothed = np.asarray(image, dtype=np.float32)
    for axis, (n, size) in enumerate(zip(frame.shape, frame.spacing, strict=True)):
        # the target step along the stored axis that runs with the patient axis
        step = steps[int(np.argmax(np.abs(frame.affine_lps[:3, axis])))]
        if n > 1 and step > 1.5 * size:
            smoothed = gaussian_filter1d(smoothed, 0.4 * step / size, axis=axis, mode="nearest", truncate=2.5)
    inverse = np.linalg.inv(frame.affine_lps) @ affine
    resampled = affine_transform(
        smoothed, inverse[:3, :3], inverse[:3, 3], tuple(shape), np.float32, order=1, mode="nearest"
    )
    inside = _inside(inverse, shape, frame.shape)
    resampled[~inside] = smoothed.min()
    return CanonicalScan(resampled, inside, affine)


def _inside(inverse: Array, shape: Sequence[int], stored: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Whether the centre of each voxel of the new grid lies within the stored array's outer faces."""
    inside = np.ones(tuple(shape), dtype=bool)
    for row, n in zip(inverse[:3], stored, strict=True):
        ramps = [
            (row[axis] * np.arange(count)).reshape([-1 if a == axis else 1 for a in range(3)])
            for axis, count in enumerate(shape)
        ]
        index = ramps[0] + ramps[1] + ramps[2] + row[3]
        inside &= (index >= -0.5) & (index <= n - 0.5)
    return inside
