"""A map of coordinates where the network has nothing to go by: in the air around the body, and beyond the scan."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_locctx.geometry import Array

PRIOR_LENGTH = 20.0
"""Millimetres. Along an axis on which the body's cells spread (standard deviation) less than this, the slope is taken
from the training scans rather than from the cells."""

SMOOTHING = 1.0
"""Nodes: standard deviation with which the deviation from the linear map is smoothed outside the body."""


def linear_fit(coordinates: Array, positions: Array, typical: Array) -> tuple[Array, Array]:
    """The linear map ``slopes @ position + offset`` nearest to coordinates, by least squares.

    A slab of a few slices does not determine a slope across it; `typical` enters as if it had been seen over
    :data:`PRIOR_LENGTH`.

    Args:
        coordinates: (N, 3).
        positions: (N, 3) mm.
        typical: (3, 3) slopes: change of the coordinate (row) per mm along an axis (column).

    Returns:
        slopes (3, 3) and offset (3,).
    """
    place, value = positions.mean(0), coordinates.mean(0)
    relative = positions - place
    spread = relative.T @ relative / len(relative)
    covariance = (coordinates - value).T @ relative / len(relative)
    # the prior's weight falls from 1 to nothing as the body spreads beyond PRIOR_LENGTH along an axis
    variances, axes = np.linalg.eigh(spread)
    variances = np.maximum(variances, 1e-9)
    weight = 1 / (1 + (variances / PRIOR_LENGTH**2) ** 2)
    free = covariance @ axes / variances
    slopes = (free * (1 - weight) + (typical @ axes) * weight) @ axes.T
    return slopes, value - slopes @ place


def continue_outside(
    coordinates: npt.NDArray[np.floating], linear: npt.NDArray[np.floating], body: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Coordinates of a map, those outside the body replaced by the linear map plus the nearest body node's deviation
    from it, smoothed.

    Air, table and blankets look the same everywhere, so what the network says there is noise.

    Args:
        coordinates: (3, a, b, c).
        linear: (3, a, b, c), the linear map's.
        body: (a, b, c), at least one of them true.
    """
    nearest = ndimage.distance_transform_edt(~body, return_distances=False, return_indices=True)
    deviation = np.asarray(coordinates - linear, dtype=np.float64)[(slice(None), *nearest)]
    smoothed = ndimage.gaussian_filter(deviation, (0, *[SMOOTHING] * 3), mode="nearest")
    return np.asarray(linear + np.where(body, deviation, smoothed), dtype=np.float64)
