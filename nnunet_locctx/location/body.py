"""Location as fractions of the box that holds the patient's body.

The box comes from the scan alone, without labels and without a fit. It leaves out what changes between scans of one
patient: air margins, couch, blankets, and arms, which lie beside the trunk in one scan and above the head in the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location.field import AffineField
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.location.source import FittedSource, register

Mask = npt.NDArray[np.bool_]

MODALITIES = ("ct", "mr")
"""``ct``: intensities are HU. ``mr``: everything else, known up to scale only."""

CELLS = 400_000
"""Cells of the coarse grid on which the body is found, about, where a scan has as many voxels."""

BODY_HU = -300.0
"""Cells of a CT above this are body; foam, blankets and lungs lie below."""

BRIGHTEST = 99.5
"""Percentile of ``mr`` intensities above which all are alike, so that vessels do not set the threshold."""

ZEROS = 0.02
"""Share of the scan from which connected voxels of exactly 0 are a background that was cut away."""

COUCH = 0.1
"""Thickest couch that is taken for none of the body, as a share of the body's thickness."""

LIMBS = 0.45
"""Likewise the thickest arm: its radius is 4 to 5 cm, that of a trunk 11 and more, of a neck or calf 6."""

TIP = 0.2
"""Axial sections of less than this share of the largest ones are tips, such as the top of the head or what is left of
arms above it."""

LARGE_PART = 0.05
"""Share of the largest part from which another part, such as a thigh, is part of the body too."""

SMALLEST_BODY = 0.01
"""Share of the scan that a body takes, at least."""

NOISE = 0.3
"""Correlation of neighbouring cells below which a scan shows nothing but noise; 0 for white noise, above 0.8 for
tissue."""


@dataclass
class BodyBox(Measurement):
    """The box along the patient's axes that holds the body.

    Attributes:
        lower: (3,) mm along (R, A, S), scanner coordinates.
        upper: (3,) likewise, above ``lower``.
        problem: See :class:`Measurement`.
    """

    kind: ClassVar[str] = "body"
    lower: Array
    upper: Array
    problem: str = ""

    def __post_init__(self) -> None:
        if self.problem:
            return
        edges = np.stack([self.lower, self.upper])
        if edges.shape != (2, 3) or not np.isfinite(edges).all() or (self.lower >= self.upper).any():
            raise ValueError(
                f"a box needs three lower edges in mm below its upper ones, got {edges.tolist()}"
            )

    @classmethod
    def unusable(cls, problem: str) -> "BodyBox":
        """A scan in which no body was found."""
        return cls(np.zeros(3), np.zeros(3), problem)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"lower": np.asarray(self.lower), "upper": np.asarray(self.upper)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "BodyBox":
        return cls(arrays["lower"], arrays["upper"], str(arrays.get("problem", "")))

    def measured_field(self, frame: Frame, **options: Any) -> AffineField:
        matrix = frame.absolute_affine.copy()
        matrix[:, 3] -= (self.lower + self.upper) / 2
        return AffineField(matrix / (self.upper - self.lower)[:, None], frame.shape)


@register
@dataclass(frozen=True)
class BodySource(FittedSource):
    """Fractions of the body's own box, -0.5..0.5 along the patient's axes (R, A, S); beyond outside it.

    Nothing is fitted: the box is found in each scan by itself (:func:`find_body`). Where the field of view cuts the
    body off, the box ends with it.
    """

    name: ClassVar[str] = "body"
    needs_fit: ClassVar[bool] = False
    measures: ClassVar[str] = "the body in the scan"

    @property
    def axes_of_the_scan(self) -> tuple[str, ...]:
        return ("S",)  # few scans hold the whole length of a body

    def extent(self, frame: Frame, measured: Measurement | None = None) -> Array:
        """(3,) length in mm of the body in the scan, whatever air surrounds it; NaN where none was found."""
        if not isinstance(measured, BodyBox) or measured.problem:
            return np.full(3, np.nan)
        return measured.upper - measured.lower

    def judged(self, coordinates: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """(points,) whether a place is in the body's box: how much air a scan shows around it means nothing."""
        return ~(np.abs(coordinates) > 0.5).any(axis=1)


def check_modality(modality: str) -> None:
    """Raises ValueError for an unknown modality."""
    if modality not in MODALITIES:
        raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got {modality!r}")


def modality_of(channel: str) -> str:
    """The modality of an image channel by its name in dataset.json, where nnU-Net knows CT by this name."""
    return "ct" if channel.casefold() == "ct" else "mr"


def find_body(image: npt.NDArray[np.floating], frame: Frame, modality: str) -> BodyBox:
    """The box of the body in one scan; a box with a problem where there is none.

    The body is the largest bright part of the scan: in CT what is denser than :data:`BODY_HU`, without what is thin
    (the couch); elsewhere what is brighter than half of Otsu's threshold, so that dark tissue passes too; of a scan
    whose surroundings were set to 0 (skull-stripped), all the rest. The box holds what is thick, which arms are
    not, and along the body it ends where sections become tips.

    Source: Otsu, "A threshold selection method from gray-level histograms", 1979, for the threshold; the rest is ours.

    Args:
        image: (i, j, k) intensities as stored, any orientation and voxel size.
        frame: Its geometry.
        modality: One of :data:`MODALITIES`.

    Raises:
        ValueError: Unknown modality, or image and frame differ in size.
    """
    check_modality(modality)
    if image.shape != frame.shape:
        raise ValueError(f"the image has {image.shape} voxels, its frame {frame.shape}")
    factors = _factors(frame)
    cells = _block_means(image, factors)
    size = frame.spacing * factors
    if not np.isfinite(cells).all():
        return BodyBox.unusable("no body was found: the scan has voxels that are not finite")
    if cells.min() == cells.max():
        return BodyBox.unusable(f"no body was found: every voxel has the value {cells.min():g}")
    inside = ~_cut_away(image, factors, modality)
    if _correlation(cells, inside) < NOISE:
        return BodyBox.unusable("no body was found: the scan shows nothing but noise")
    bright, stripped = _bright(cells, inside, modality)
    body = _largest(_opened(bright, size, COUCH) if modality == "ct" and not stripped else bright)
    if body.sum() < max(SMALLEST_BODY * body.size, 1):
        share = f"{100 * body.mean():.2g}% of the scan, at least {100 * SMALLEST_BODY:g}% are needed"
        return BodyBox.unusable(f"no body was found: the largest bright part takes {share}")
    if stripped:
        return _box(frame, factors, body, body)
    body = _filled(body, frame.array_axes[2])
    trunk = _parts(_opened(body, size, LIMBS))
    return _box(frame, factors, trunk, _without_tips(trunk, frame.array_axes[2]))


def _factors(frame: Frame) -> npt.NDArray[np.int64]:
    """(3,) voxels per cell along each array axis, so that cells are about cubes."""
    cell = float((np.prod(frame.spacing * frame.shape) / CELLS) ** (1 / 3))
    return np.maximum(1, np.rint(cell / frame.spacing)).astype(np.int64)


def _blocks(array: npt.NDArray[Any], factors: npt.NDArray[np.int64], combine: np.ufunc) -> npt.NDArray[Any]:
    """Combines the voxels of each cell; the last cell along an axis may be smaller."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            array = combine.reduceat(array, np.arange(0, array.shape[axis], factor), axis=axis)
    return array


def _block_means(image: npt.NDArray[np.floating], factors: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    sums = _blocks(image.astype(np.float32, copy=False), factors, np.add)
    counts = [np.diff(np.append(np.arange(0, n, f), n)) for n, f in zip(image.shape, factors, strict=True)]
    voxels = counts[0][:, None, None] * counts[1][:, None] * counts[2]
    return np.asarray(sums / voxels, dtype=np.float32)


def _cut_away(image: npt.NDArray[np.floating], factors: npt.NDArray[np.int64], modality: str) -> Mask:
    """Cells of a background that was set to 0; none where zeros are but single voxels of noise.

    In CT 0 is also water: there a background takes a corner of the scan, where no body is.
    """
    zero = _blocks(image == 0, factors, np.logical_and)
    # single zeros do not survive, whatever their number
    background = ndimage.binary_opening(zero, np.ones((3, 3, 3), dtype=bool))
    if background.mean() < ZEROS:
        return np.zeros(zero.shape, dtype=bool)
    if modality == "ct":
        parts, _ = ndimage.label(zero)
        background &= np.isin(parts, parts[np.ix_(*[(0, -1)] * 3)])
    return np.asarray(ndimage.binary_propagation(background, mask=zero))


def _correlation(cells: npt.NDArray[np.float32], inside: Mask) -> float:
    """Largest correlation of neighbouring cells along an axis."""
    correlations = [0.0]
    for axis in range(3):
        lower, upper = (np.moveaxis(cells, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        both = np.moveaxis(inside, axis, 0)[:-1] & np.moveaxis(inside, axis, 0)[1:]
        if both.sum() > 2 and lower[both].std() > 0 and upper[both].std() > 0:
            correlations.append(float(np.corrcoef(lower[both], upper[both])[0, 1]))
    return max(correlations)


def _bright(cells: npt.NDArray[np.float32], inside: Mask, modality: str) -> tuple[Mask, bool]:
    """Cells that may be body, and whether the scan was stripped of everything else."""
    if modality == "ct":
        bright = (cells > BODY_HU) & inside
        return bright, bool(not inside.all() and bright[_rim(inside)].mean() > 0.5)
    values = cells[inside]
    values = np.minimum(values, np.percentile(values, BRIGHTEST))
    least = float(values.min())
    if least == values.max():
        return inside, not inside.all()
    threshold = least + (float(threshold_otsu(values)) - least) / 2
    if not inside.all() and np.median(cells[_rim(inside)]) > threshold:
        return inside, True  # what borders on the zeros is tissue, not air
    smoothed = ndimage.gaussian_filter(cells, 1.0, mode="nearest")
    return (smoothed > threshold) & inside, False


def _rim(inside: Mask) -> Mask:
    """Cells within two of the background."""
    return np.asarray(ndimage.binary_dilation(~inside, iterations=2) & inside)


def _opened(mask: Mask, size: Array, share: float) -> Mask:
    """What holds a ball of `share` of the radius of the largest ball in the mask. The mask goes on beyond the scan."""
    if mask.all() or not mask.any():
        return mask
    depth = ndimage.distance_transform_edt(mask, sampling=size)
    radius = max(share * float(depth.max()), 1.01 * float(size.max()))
    core = depth > radius
    if not core.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~core, sampling=size) <= radius)


def _largest(mask: Mask) -> Mask:
    """The largest connected part."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((parts == sizes.argmax()) & mask)


def _parts(mask: Mask) -> Mask:
    """The connected parts that are not much smaller than the largest one."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(np.isin(parts, np.flatnonzero(sizes >= LARGE_PART * sizes.max())) & mask)


def _filled(body: Mask, axis: int) -> Mask:
    """Lungs and bowel belong to the body: closed holes of each section across an array axis."""
    sections = [ndimage.binary_fill_holes(section) for section in np.moveaxis(body, axis, 0)]
    return np.moveaxis(np.stack(sections), 0, axis)


def _without_tips(body: Mask, axis: int) -> Mask:
    """The body without its first and last sections across an array axis that are tips."""
    others = tuple(a for a in range(3) if a != axis)
    area = body.sum(axis=others)
    whole = np.flatnonzero(area >= TIP * np.percentile(area[area > 0], 95))
    kept = np.zeros(area.shape, dtype=bool)
    kept[whole[0] : whole[-1] + 1] = True
    return np.asarray(body & np.expand_dims(kept, others))


def _box(frame: Frame, factors: npt.NDArray[np.int64], across: Mask, along: Mask) -> BodyBox:
    """The box of two masks of cells: R and A from one, S from the other."""
    matrix = frame.absolute_affine
    edges = np.empty((2, 3))
    for axis, mask in zip(range(3), (across, across, along), strict=True):
        # a cell is a box whose corners are where its outer voxels end
        first = np.argwhere(mask) * factors
        lower, upper = first - 0.5, np.minimum(first + factors, frame.shape) - 0.5
        rising = matrix[axis, :3] > 0
        low = np.where(rising, lower, upper) @ matrix[axis, :3]
        high = np.where(rising, upper, lower) @ matrix[axis, :3]
        edges[:, axis] = low.min() + matrix[axis, 3], high.max() + matrix[axis, 3]
    return BodyBox(edges[0], edges[1])
