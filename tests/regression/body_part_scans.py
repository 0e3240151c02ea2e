"""Small scans whose slices tell their height: a cone of muscle with a bone that wanders from back to front."""

import numpy as np

from nnunet_locctx.geometry import Frame
from nnunet_locctx.regression.body_part import BodyPartOptions
from nnunet_locctx.regression.canonical import CanonicalScan

SPACING = 8.0
HEIGHT = 480.0
"""Millimetres from the lowest to the highest level of the body."""

OPTIONS = BodyPartOptions(
    spacing=SPACING, side=80, volumes=6, steps=40, evaluate_every=20, learning_rate=2e-3
)


def small_scan(
    seed: int, *, lowest: float = 0.0, highest: float = HEIGHT, shift: tuple[int, int] = (0, 0)
) -> CanonicalScan:
    """The levels from `lowest` to `highest` mm; mm along S is the level plus 100 times the seed.

    Args:
        seed: Of size, noise and place.
        lowest: mm.
        highest: mm.
        shift: Voxels by which the body lies off the middle along R and A.
    """
    rng = np.random.default_rng(seed)
    levels = np.arange(lowest + SPACING / 2, highest, SPACING)
    right = (np.arange(48) - 23.5 - shift[0])[:, None, None] * SPACING
    front = (np.arange(40) - 19.5 - shift[1])[None, :, None] * SPACING
    width = (90 + 70 * levels / HEIGHT) * rng.uniform(0.95, 1.05)
    image = np.full((48, 40, len(levels)), -1000.0)
    image[(right / width) ** 2 + (front / 90) ** 2 < 1] = 40
    bone = (np.abs(right) < 25) & (np.abs(front - (-60 + 120 * levels / HEIGHT)) < 20)
    image[bone & (image > 0)] = 800
    image += rng.normal(0, 15, image.shape)
    affine = np.diag([-SPACING, -SPACING, SPACING, 1.0])
    affine[:3, 3] = 23.5 * SPACING, 19.5 * SPACING, levels[0] + 100 * seed
    return CanonicalScan(image.astype(np.float32), np.ones(image.shape, dtype=bool), affine)


def small_scans(count: int = 6) -> dict[str, CanonicalScan]:
    """Scans of about two thirds of the body, from different levels on."""
    starts = np.linspace(0, HEIGHT / 3, count)
    return {
        f"scan_{seed}": small_scan(seed, lowest=float(start), highest=float(start) + HEIGHT * 2 / 3)
        for seed, start in enumerate(starts)
    }


def frame_of(scan: CanonicalScan) -> Frame:
    """The canonical grid's own frame."""
    shape = scan.image.shape
    return Frame.from_affine((shape[0], shape[1], shape[2]), scan.affine, "LPS")
