"""Cuts a scan into axial slices for the network; draws and augments slices for training.

Kinds and strengths of the augmentation follow Schuhegger, "Body part regression for CT images", 2021
(arXiv:2110.09148), as far as they are fast for a whole batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.body_part.curve import SMOOTHING_MM
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.intensity import body_mask, normalise


def cross_section(scan: CanonicalScan, body: npt.NDArray[np.bool_]) -> Array | None:
    """Lower and upper edge of the body along R, then along A, in every axial slice.

    The edges are the outer faces of the outermost body voxels, smoothed along the body; slices without body get
    interpolated edges. Where the scan cuts the body off, the edge is the scan's.

    Args:
        scan: The scan, (a, b, c).
        body: (a, b, c), where the body is.

    Returns:
        (c, 4) mm along the patient axes, or None without any body.
    """
    levels = np.flatnonzero(body.any(axis=(0, 1)))
    if len(levels) == 0:
        return None
    edges = np.empty((body.shape[2], 4))
    for axis in range(2):
        shadow = np.asarray(body.any(axis=1 - axis))[:, levels]  # (a or b, levels)
        places, half = scan.places(axis), scan.spacing[axis] / 2
        first = places[shadow.argmax(axis=0)] - half
        last = places[len(places) - 1 - shadow[::-1].argmax(axis=0)] + half
        for column, edge in ((2 * axis, first), (2 * axis + 1, last)):
            edges[:, column] = np.interp(np.arange(body.shape[2]), levels, edge)
    return np.asarray(gaussian_filter1d(edges, SMOOTHING_MM / scan.spacing[2], axis=0, mode="nearest"))


AIR = 0.01
"""Smallest share of body in a usable axial slice; other slices are air."""

COVERED = 0.8
"""Smallest area of a usable axial slice within the scan, as a share of the largest; slices at the ends of an oblique
scan are cut off."""

LEVELS = 255
"""Largest stored value: intensities from -1 to 1 are stored as 0 to 255."""


@dataclass(frozen=True)
class ScanSlices:
    """The axial slices of a scan.

    Attributes:
        images: (K, side, side) uint8, axes (R, A), from inferior to superior; the body's centre is the image's.
        positions: (K,) mm along S.
        usable: (K,) bool; False for slices of air and for slices that are mostly outside the scan.
        cross_section: (K, 4) mm, see :func:`cross_section`.
    """

    images: npt.NDArray[np.uint8]
    positions: Array
    usable: npt.NDArray[np.bool_]
    cross_section: Array | None


def take_slices(scan: CanonicalScan, modality: str, window: tuple[float, float], side: int) -> ScanSlices:
    """Cuts a scan into slices.

    Each slice is moved by whole voxels to centre the body, then padded with -1 or cut to `side`: the place of the body
    in the scan and the field of view do not matter.

    Args:
        scan: The scan.
        modality: Modality for :func:`~nnunet_locctx.regression.intensity.normalise`.
        window: Window for the same function.
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


GAPS_MM = (5.0, 100.0)
"""Smallest and largest distance of neighbouring slices in mm (as in the publication)."""


@dataclass(frozen=True)
class SliceBatch:
    """A batch of slices of several scans.

    Attributes:
        scans: (volumes,) index of each volume's scan.
        levels: (volumes, slices) index of each slice in its scan, rising.
        gaps: (volumes, slices - 1) mm between neighbours.
    """

    scans: npt.NDArray[np.int64]
    levels: npt.NDArray[np.int64]
    gaps: npt.NDArray[np.float32]

    def of(self, arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The entries of each scan's array (levels, ...) at the slices: (volumes * slices, ...), scan by scan."""
        return np.concatenate(
            [arrays[scan][levels] for scan, levels in zip(self.scans, self.levels, strict=True)]
        )


class SliceSampler:
    """Draws random scans and the same number of equidistant slices from each.

    The step from slice to slice is drawn uniformly from the steps whose gaps are within :data:`GAPS_MM` and that fit
    into the scan; a scan too short for the smallest gap gets the largest step that fits.

    Args:
        positions: For each scan the positions in mm of its usable slices, rising, at least `slices` of them.
        volumes: Scans of a batch; a scan can be drawn twice.
        slices: Slices of each scan.
    """

    def __init__(self, positions: Sequence[Array], volumes: int, slices: int) -> None:
        short = [len(p) for p in positions if len(p) < slices]
        if short:
            raise ValueError(f"every scan needs {slices} slices, got one with {min(short)}")
        self.positions, self.volumes, self.slices = positions, volumes, slices
        self.steps = [_steps(p, slices) for p in positions]

    def draw(self, generator: torch.Generator) -> SliceBatch:
        """The next batch."""
        scans = torch.randint(len(self.positions), (self.volumes,), generator=generator).numpy()
        chance = torch.rand(self.volumes, 2, generator=generator, dtype=torch.float64).numpy()
        levels = np.empty((self.volumes, self.slices), dtype=np.int64)
        gaps = np.empty((self.volumes, self.slices - 1), dtype=np.float32)
        for row, (scan, (u, v)) in enumerate(zip(scans, chance, strict=True)):
            places, (least, most) = self.positions[scan], self.steps[scan]
            step = least + int(u * (most - least + 1))
            start = int(v * (len(places) - (self.slices - 1) * step))
            levels[row] = start + step * np.arange(self.slices)
            gaps[row] = np.diff(places[levels[row]])
        return SliceBatch(scans, levels, gaps)


def _steps(positions: Array, slices: int) -> tuple[int, int]:
    """Smallest and largest step between slices."""
    spacing = float(np.median(np.diff(positions)))
    fits = (len(positions) - 1) // (slices - 1)
    most = min(fits, max(1, math.floor(GAPS_MM[1] / spacing)))
    return min(most, max(1, math.ceil(GAPS_MM[0] / spacing))), most


CHANCE = 0.5
"""Probability of each change of a slice."""

NOISE = 0.04
"""Largest standard deviation of the noise; intensities run from -1 to 1."""

SHIFT = 0.08
"""Largest shift of the intensities."""

CONTRAST = 0.2
"""Largest relative change of the intensities' scale."""

SCALE = 0.15
"""Largest relative change of size."""

ANGLE = math.radians(10)
"""Largest rotation."""

MOVE = 0.05
"""Largest movement, as a share of the image's side."""

FRAME_CHANCE = 0.25
"""Probability of cutting a slice to a disc, as a smaller field of view."""

FRAME = (0.55, 0.9)
"""Radius of that disc, as a share of half the side."""


def augment(slices: Float[Tensor, "n 1 side side"], generator: torch.Generator) -> Tensor:
    """Changed copies of slices, intensities from -1 to 1, each with its own random changes.

    Size, rotation, movement, left-right flip, intensity scale and shift, blur, noise and a smaller field of view.
    """
    count = len(slices)
    rand = torch.rand(count, 14, generator=generator)
    chosen = (rand[:, :7] < CHANCE).float()
    signed = 2 * rand[:, 7:] - 1
    moved = _move(slices, chosen[:, 0], chosen[:, 1], signed)

    def column(values: Tensor) -> Tensor:
        return values.view(count, 1, 1, 1)

    factor = column(1 + chosen[:, 2] * CONTRAST * signed[:, 4])
    changed = torch.addcmul(column(chosen[:, 3] * SHIFT * signed[:, 5]), moved, factor)
    blurred = F.avg_pool2d(changed, 3, stride=1, padding=1, count_include_pad=False)
    changed = torch.lerp(changed, blurred, column(chosen[:, 4] * rand[:, 13]))
    noise = torch.randn(slices.shape, generator=generator)
    changed.addcmul_(noise, column(chosen[:, 5] * NOISE * rand[:, 12]))
    cut = rand[:, 6] < FRAME_CHANCE
    radius = torch.where(cut, FRAME[0] + (FRAME[1] - FRAME[0]) * rand[:, 8], 2.0)
    axis = torch.linspace(-1, 1, slices.shape[-1])
    outside = (axis[:, None] ** 2 + axis**2)[None, None] > column(radius**2)
    return changed.clamp_(-1, 1).masked_fill_(outside, -1)


def _move(slices: Tensor, chosen: Tensor, flipped: Tensor, signed: Tensor) -> Tensor:
    """Applies size, rotation and movement (where `chosen`) and left-right flips; voxels from outside are -1."""
    size = 1 + chosen * SCALE * signed[:, 0]
    angle = chosen * ANGLE * signed[:, 1]
    sign = 1 - 2 * flipped  # images are (R, A): the rows run along R, grid_sample's y
    matrix = torch.zeros(len(slices), 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = size * angle.cos(), -size * angle.sin() * sign
    matrix[:, 1, 0], matrix[:, 1, 1] = size * angle.sin(), size * angle.cos() * sign
    matrix[:, :, 2] = (2 * MOVE * chosen)[:, None] * signed[:, 2:4]
    grid = F.affine_grid(matrix, list(slices.shape), align_corners=False)
    # grid_sample pads with 0
    return F.grid_sample(slices + 1, grid, align_corners=False) - 1
