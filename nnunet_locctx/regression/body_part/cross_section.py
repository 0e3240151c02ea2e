"""The body's edges in every axial slice."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.canonical import CanonicalScan

SMOOTHING_MM = 10.0
"""Standard deviation of the smoothing along the body."""


def cross_section(scan: CanonicalScan, body: npt.NDArray[np.bool_]) -> Array | None:
    """Lower and upper edge of the body along R, then along A, in every axial slice.

    The outer faces of the outermost body voxels, smoothed along the body; slices without body take the edges of those
    around them. Where the scan cuts the body off, its edge is the scan's.

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
        for column, found in ((2 * axis, first), (2 * axis + 1, last)):
            edges[:, column] = np.interp(np.arange(body.shape[2]), levels, found)
    return np.asarray(gaussian_filter1d(edges, SMOOTHING_MM / scan.spacing[2], axis=0, mode="nearest"))
