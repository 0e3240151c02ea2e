"""Scans that sources measure something in."""

import numpy as np


def ball(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A ball of tissue in air, (size, size, size) HU in axis order x, y, z, and its (4, 4) affine in RAS."""
    index = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1)
    distance = np.linalg.norm(index - (size - 1) / 2, axis=-1)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (10.0, -20.0, 30.0)
    return np.where(distance < size / 3, 40.0, -1000.0).astype(np.float32), affine
