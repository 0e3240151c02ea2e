"""Scans of one piece of anatomy, stored in many ways."""

import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st

PERMUTATIONS = list(itertools.permutations(range(3)))


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    """Rotation matrix (3, 3) from three angles in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        matrix = turn @ matrix
    return matrix


def sitk_properties(
    shape_zyx: tuple[int, int, int],
    spacing_xyz: tuple[float, float, float] = (1.0, 1.0, 1.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction: np.ndarray | None = None,
) -> dict[str, Any]:
    """nnU-Net's properties of an uncropped scan read with SimpleITK."""
    direction = np.eye(3) if direction is None else direction
    return {
        "sitk_stuff": {
            "spacing": tuple(spacing_xyz),
            "origin": tuple(origin),
            "direction": tuple(np.asarray(direction).ravel()),
        },
        "spacing": list(spacing_xyz)[::-1],
        "shape_before_cropping": shape_zyx,
    }


def stored(
    permutation: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
    lps_shape: tuple[int, int, int],
    lps_spacing: tuple[float, float, float],
    centre: np.ndarray,
    oblique: np.ndarray,
) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Properties and array shape (z, y, x) of a box of anatomy stored with its axes permuted and flipped.

    The box has ``lps_shape`` voxels of ``lps_spacing`` mm along the patient's L, P and S axes (turned by
    ``oblique``) around ``centre``. Stored axis ``k`` (x, y, z) runs along the box's axis ``permutation[k]``,
    reversed where ``flips[k]``.
    """
    shape = tuple(lps_shape[p] for p in permutation)
    spacing = np.array([lps_spacing[p] for p in permutation])
    direction = np.zeros((3, 3))
    for k, p in enumerate(permutation):
        direction[:, k] = oblique[:, p] * (-1 if flips[k] else 1)
    origin = centre - direction @ (spacing * (np.array(shape) - 1) / 2)
    properties = sitk_properties(shape[::-1], tuple(spacing), tuple(origin), direction)  # type: ignore[arg-type]
    return properties, (shape[2], shape[1], shape[0])


shapes = st.tuples(*[st.integers(1, 40)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)
centres = st.tuples(*[st.floats(-300, 300)] * 3).map(np.array)
permutations = st.sampled_from(PERMUTATIONS)
flips = st.tuples(*[st.booleans()] * 3)
small_angles = st.tuples(*[st.floats(-0.3, 0.3)] * 3)
