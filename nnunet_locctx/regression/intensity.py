"""Normalises intensities for a regressor, and finds the body."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from nnunet_locctx.location.body import check_modality
from nnunet_locctx.regression.canonical import CanonicalScan

PERCENTILES = (0.5, 99.5)
"""Percentiles of the voxels in the scan that become -1 and 1 for ``mr``."""

BODY_HU = -500.0
"""Smallest HU of the body in smoothed CT."""

SMALLEST_PART = 0.5
"""Share of the largest connected region above which a region also belongs to the body (two legs without the pelvis)."""

SMALLEST_BODY = 0.01
"""Smallest share of the scan that counts as a body."""


def normalise(scan: CanonicalScan, modality: str, window: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Intensities from -1 to 1, clipped; -1 outside the scan.

    Args:
        scan: The scan.
        modality: One of :data:`~nnunet_locctx.location.body.MODALITIES`.
        window: HU that become -1 and 1; ``mr`` uses :data:`PERCENTILES` instead.
    """
    check_modality(modality)
    lower, upper = window
    if modality == "mr":
        lower, upper = np.percentile(scan.image[scan.inside], PERCENTILES)
    scaled = (scan.image - lower) * (2 / max(float(upper) - float(lower), 1e-6)) - 1
    return np.where(scan.inside, np.clip(scaled, -1, 1), -1).astype(np.float32)


def body_mask(scan: CanonicalScan, modality: str) -> npt.NDArray[np.bool_]:
    """(a, b, c) bool: the largest connected bright regions, with holes filled in each axial slice; empty if they are
    less than :data:`SMALLEST_BODY` of the scan.

    The threshold after smoothing is :data:`BODY_HU` for CT, otherwise half of Otsu's threshold, so that both fat and
    muscle pass.
    """
    check_modality(modality)
    smoothed = ndimage.gaussian_filter(scan.image, 1.0, mode="nearest")
    values = smoothed[scan.inside]
    if values.size == 0 or values.min() == values.max():
        return np.zeros(scan.image.shape, dtype=bool)
    if modality == "ct":
        threshold = BODY_HU
    else:
        least = float(values.min())
        threshold = least + (float(threshold_otsu(values)) - least) / 2
    regions, count = ndimage.label((smoothed > threshold) & scan.inside)
    if count == 0:
        return np.zeros(scan.image.shape, dtype=bool)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    body = np.isin(regions, np.flatnonzero(sizes >= SMALLEST_PART * sizes.max()))
    if body.sum() < SMALLEST_BODY * scan.inside.sum():
        return np.zeros(scan.image.shape, dtype=bool)
    for level in range(body.shape[2]):
        body[:, :, level] = ndimage.binary_fill_holes(body[:, :, level])
    return np.asarray(body)
