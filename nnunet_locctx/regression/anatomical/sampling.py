"""Samples overlapping crops of one scan, and points in them with their position in the patient."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from nnunet_locctx.regression.anatomical.network import STRIDE
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.intensity import body_mask, normalise

UNKNOWN = 0
"""Stored value of a voxel outside the scan; 1 to 255 are intensities from -1 to 1."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainingScan:
    """A scan in the form for training, with 2 bytes per voxel.

    Attributes:
        image: (a, b, c) uint8 along (R, A, S), see :data:`UNKNOWN`.
        body: (a, b, c) bool.
        spacing: (3,) mm.
    """

    image: npt.NDArray[np.uint8]
    body: npt.NDArray[np.bool_]
    spacing: npt.NDArray[np.float64]

    @classmethod
    def from_canonical(cls, scan: CanonicalScan, options: AnatomicalOptions) -> "TrainingScan":
        """Normalises intensities and finds the body; the mask may be empty."""
        image = normalise(scan, options.modality, options.window)
        coded = np.where(scan.inside, 1 + np.rint((image + 1) * 127), UNKNOWN).astype(np.uint8)
        return cls(coded, body_mask(scan, options.modality), scan.spacing)


@dataclass(frozen=True)
class Box:
    """A box of voxels with a visible part; it may reach beyond the scan.

    Attributes:
        lower: (3,) its first voxel.
        size: (3,) voxels.
        seen: (3,) slices of the scan: the visible part.
    """

    lower: Indices
    size: Indices
    seen: tuple[slice, ...]

    def relative(self, voxels: Indices) -> npt.NDArray[np.float32]:
        """Centres of voxels (N, 3) -> (N, 3), -1 to 1 from face to face of the box."""
        return ((voxels - self.lower + 0.5) / self.size * 2 - 1).astype(np.float32)


@dataclass(frozen=True)
class ScanSample:
    """P pairs of crops of one scan; crops ``p`` and ``P + p`` form a pair.

    Attributes:
        crops: (2 P, 2, *crop) float32.
        places: (2 P, N, 3) float32 places of the points in the crop: -1 to 1 from face to face, along (R, A, S).
        positions: (2 P, N, 3) float32 positions of the points in the patient: mm along (R, A, S) from the scan's first
            voxel.
        paired: Number of first points that are the same places in both crops of a pair.
    """

    crops: npt.NDArray[np.float32]
    places: npt.NDArray[np.float32]
    positions: npt.NDArray[np.float32]
    paired: int


def sample_pairs(
    scan: TrainingScan, options: AnatomicalOptions, generator: np.random.Generator
) -> ScanSample:
    """Draws `options.pairs_per_scan` pairs of crops.

    Both boxes of a pair contain a common voxel of the body (the pin), so their overlap always contains body. Their
    sizes differ, so the crops show the anatomy at different scales. A scan smaller than a box lies at a random place in
    it, surrounded by unknown voxels.

    Raises:
        ValueError: The scan has no body.
    """
    levels = np.flatnonzero(scan.body.any(axis=(0, 1)))
    if levels.size == 0:
        raise ValueError("a scan without body cannot be sampled")
    boxes: tuple[list[Box], list[Box]] = ([], [])
    points: tuple[list[Indices], list[Indices]] = ([], [])
    for _ in range(options.pairs_per_scan):
        # drawing the level first makes legs, neck and head as likely as the trunk
        level = int(generator.choice(levels))
        pin = np.array([*_voxels(scan.body[:, :, level], 1, generator)[0], level])
        pair = [_box(scan.body.shape, pin, options, generator) for _ in range(2)]
        common = tuple(
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(pair[0].seen, pair[1].seen, strict=True)
        )
        paired = _within(scan.body, common, options.paired_points, generator)
        for box, drawn, place in zip(pair, points, boxes, strict=True):
            place.append(box)
            drawn.append(
                np.concatenate(
                    [
                        paired,
                        _within(scan.body, box.seen, options.body_points, generator),
                        _within(~scan.body, box.seen, options.background_points, generator, scan.body),
                    ]
                )
            )
    crops = np.stack([cut(scan.image, box, options.crop) for box in boxes[0] + boxes[1]])
    for crop in crops:
        augment(crop, options.augment, options.masked, generator)
    chosen = points[0] + points[1]
    return ScanSample(
        crops,
        np.stack([box.relative(p) for box, p in zip(boxes[0] + boxes[1], chosen, strict=True)]),
        np.stack([(p * scan.spacing).astype(np.float32) for p in chosen]),
        options.paired_points,
    )


def cut(image: npt.NDArray[np.uint8], box: Box, size: Sequence[int]) -> npt.NDArray[np.float32]:
    """(2, *size) float32: a box's intensities (0 where unknown) and its mask of known voxels, resampled linearly."""
    coded = np.zeros(tuple(box.size), dtype=np.uint8)
    covered = tuple(
        slice(int(p.start - at), int(p.stop - at)) for p, at in zip(box.seen, box.lower, strict=True)
    )
    coded[covered] = image[box.seen]
    known = (coded != UNKNOWN).astype(np.float32)
    values = ((coded.astype(np.float32) - 1) / 127 - 1) * known
    both = torch.from_numpy(np.stack([values, known]))
    return F.interpolate(both[None], tuple(size), mode="trilinear", align_corners=False)[0].numpy()


def _box(
    shape: Sequence[int], pin: Indices, options: AnatomicalOptions, generator: np.random.Generator
) -> Box:
    """A box of random size and place that contains `pin` and as much of the scan as possible, with a random visible
    part."""
    factors = generator.uniform(*options.zoom, size=3)
    size = np.maximum(1, np.rint(np.array(options.crop) * factors)).astype(np.int64)
    lower = np.empty(3, dtype=np.int64)
    seen = []
    for axis, (length, n) in enumerate(zip(size, shape, strict=True)):
        lower[axis] = (
            _start(0, n, length, pin[axis], generator) if n > length else generator.integers(n - length, 1)
        )
        first, stop = max(0, int(lower[axis])), min(n, int(lower[axis] + length))
        part = max(1, round((stop - first) * generator.uniform(*options.visible)))
        start = _start(first, stop, part, pin[axis], generator)
        seen.append(slice(start, start + part))
    return Box(lower, size, tuple(seen))


def _start(first: int, stop: int, length: int, pin: int, generator: np.random.Generator) -> int:
    """A random start of a run of `length` voxels between `first` and `stop` that contains `pin`."""
    return int(generator.integers(max(first, pin - length + 1), min(pin, stop - length) + 1))


def _voxels(mask: npt.NDArray[np.bool_], count: int, generator: np.random.Generator) -> Indices:
    """(count, axes) indices of voxels of a mask that is not empty, drawn with replacement."""
    flat = np.flatnonzero(mask)
    chosen = flat[generator.integers(0, flat.size, count)]
    return np.stack(np.unravel_index(chosen, mask.shape), axis=-1)


def _within(
    mask: npt.NDArray[np.bool_],
    part: tuple[slice, ...],
    count: int,
    generator: np.random.Generator,
    otherwise: npt.NDArray[np.bool_] | None = None,
) -> Indices:
    """(count, 3) voxels of a mask in a part of the scan; voxels of `otherwise` if the mask is empty there."""
    candidates = mask[part]
    if otherwise is not None and not candidates.any():
        candidates = otherwise[part]
    return _voxels(candidates, count, generator) + np.array([axis.start for axis in part])


Crop = npt.NDArray[np.float32]


def augment(crop: Crop, chance: float, masked: float, generator: np.random.Generator) -> None:
    """Changes a crop (2, a, b, c) of intensities from -1 to 1 (0 where unknown) and known voxels in place.

    Args:
        crop: The crop.
        chance: Probability of each of blur, gain, shift, gamma and noise.
        masked: Probability of hiding blocks, as if they lay outside the scan.
        generator: Random generator.
    """
    image, known = crop
    if generator.random() < chance:
        image[...] = gaussian_filter(image, generator.uniform(0.3, 1.0), mode="nearest", truncate=2.5)
    if generator.random() < chance:
        image *= generator.uniform(0.8, 1.2)
    if generator.random() < chance:
        image += generator.uniform(-0.1, 0.1)
    np.clip(image, -1, 1, out=image)
    if generator.random() < chance:
        image[...] = 2 * ((image + 1) / 2) ** generator.uniform(0.7, 1.4) - 1
    if generator.random() < chance:
        noise = generator.standard_normal(image.shape, dtype=np.float32)
        image += np.float32(generator.uniform(0.0, 0.15)) * noise
    if generator.random() < masked:
        _hide_blocks(known, generator.uniform(0.1, 0.5), generator)
    image *= known


def _hide_blocks(known: npt.NDArray[np.float32], share: float, generator: np.random.Generator) -> None:
    """Sets blocks of a random number of whole output cells to unknown."""
    size = [STRIDE * int(generator.integers(1, 1 + max(1, n // (4 * STRIDE)))) for n in known.shape]
    kept = generator.random([-(-n // s) for n, s in zip(known.shape, size, strict=True)]) >= share
    for axis, length in enumerate(size):
        kept = np.repeat(kept, length, axis=axis)
    a, b, c = known.shape
    known *= kept[:a, :b, :c]
