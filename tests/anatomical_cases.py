"""Small made-up anatomy for the tests of anatomical embeddings."""

import numpy as np

from nnunet_locctx.geometry import PATIENT_FROM_LPS
from nnunet_locctx.regression.canonical import CanonicalScan

SPACING = 8.0
"""Millimetres."""


def anatomy(places: np.ndarray) -> np.ndarray:
    """HU at places (..., 3) in mm along (R, A, S): a tapering body in air, with structure that repeats nowhere."""
    r, a, s = np.moveaxis(np.asarray(places, dtype=np.float64), -1, 0)
    width = 1 - s / 900
    body = (r / (150 * width)) ** 2 + (a / (100 * width)) ** 2 < 1
    inner = 120 * np.sin(r / 40 + s / 90) + 100 * np.cos(a / 30 - s / 130) + s / 2
    return np.where(body & (np.abs(s) < 280), inner, -1000.0)


def scan(lower: tuple[float, float, float], shape: tuple[int, int, int], seed: int = 0) -> CanonicalScan:
    """A canonical scan of :func:`anatomy`.

    Args:
        lower: Place of its first voxel in mm along (R, A, S).
        shape: Voxels.
        seed: Of its noise.
    """
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    image = anatomy(index * SPACING + np.asarray(lower))
    image += np.random.default_rng(seed).normal(0, 10, shape)
    affine = np.eye(4)
    affine[:3, :3] = PATIENT_FROM_LPS * SPACING
    affine[:3, 3] = PATIENT_FROM_LPS @ np.asarray(lower, dtype=np.float64)
    return CanonicalScan(image.astype(np.float32), np.ones(shape, dtype=bool), affine)


def scans(count: int) -> dict[str, CanonicalScan]:
    """Scans whose fields of view begin and end at different heights."""
    generator = np.random.default_rng(7)
    made = {}
    for number in range(count):
        levels = int(generator.integers(20, 60))
        first = float(generator.uniform(-250, 250 - SPACING * levels))
        made[f"case_{number}"] = scan((-160, -120, first), (40, 30, levels), number)
    return made
