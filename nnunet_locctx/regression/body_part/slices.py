"""Axial slices of a scan as the network sees them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.body_part.cross_section import cross_section
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.intensity import body_mask, normalise

AIR = 0.01
"""Smallest share of an axial slice that the body takes; below it the slice is air."""

COVERED = 0.8
"""Smallest share of an axial slice within the scan, of what the scan covers at most; at the ends of an oblique scan the
slices are cut off."""

LEVELS = 255
"""Intensities from -1 to 1 are stored as 0 to this."""


@dataclass(frozen=True)
class ScanSlices:
    """The axial slices of a scan.

    Attributes:
        images: (K, side, side) uint8, axes (R, A), from inferior to superior; the body's centre is the image's.
        positions: (K,) mm along S.
        usable: (K,) bool; False where there is air only, or hardly anything of the scan.
        cross_section: (K, 4) mm, see :func:`~nnunet_locctx.regression.body_part.cross_section.cross_section`.
    """

    images: npt.NDArray[np.uint8]
    positions: Array
    usable: npt.NDArray[np.bool_]
    cross_section: Array | None


def take_slices(scan: CanonicalScan, modality: str, window: tuple[float, float], side: int) -> ScanSlices:
    """Cuts a scan into slices.

    Each slice is moved by whole voxels so that the body's centre comes to lie in the middle, then padded with -1 or
    cut to `side`: where in the scan the body lies, and how wide the field of view is, does not matter.

    Args:
        scan: The scan.
        modality: See :mod:`nnunet_locctx.regression.intensity`.
        window: As modality.
        side: Voxels of an image along both axes.
    """
    body = body_mask(scan, modality)
    edges = cross_section(scan, body)
    count = scan.image.shape[2]
    images = np.zeros((count, side, side), dtype=np.uint8)
    area = scan.inside.sum(axis=(0, 1))
    usable = body.sum(axis=(0, 1)) >= np.maximum(AIR * area, 1)
    usable &= area >= COVERED * area.max()
    if edges is not None:
        stored = np.rint((normalise(scan, modality, window) + 1) * (LEVELS / 2)).astype(np.uint8)
        for level in np.flatnonzero(usable):
            source, target = [], []
            for axis in range(2):
                places = scan.places(axis)
                middle = (edges[level, 2 * axis : 2 * axis + 2].mean() - places[0]) / scan.spacing[axis]
                # voxel `lower` of the scan becomes voxel 0 of the image
                lower = int(np.floor(middle - (side - 1) / 2 + 0.5))
                first, last = max(lower, 0), min(lower + side, len(places))
                source.append(slice(first, last))
                target.append(slice(first - lower, last - lower))
            images[level][tuple(target)] = stored[source[0], source[1], level]
    return ScanSlices(images, scan.places(2), usable, edges)


def as_input(images: npt.NDArray[np.uint8]) -> Tensor:
    """Stored images (K, side, side) -> network input (K, 1, side, side) float32 from -1 to 1."""
    return torch.from_numpy(images).unsqueeze(1).float().mul_(2 / LEVELS).sub_(1)
