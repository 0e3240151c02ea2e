"""What the whole-body phantom's cases are drawn from, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_locctx.phantoms.storage import check_count, check_storage, orientation_axes

Range = tuple[float, float]

IN_PLANE: Range = (4.0, 6.0)
"""Voxel size along R and A in mm."""

SLICES: Range = (4.0, 8.0)
"""Voxel size along S in mm."""

FRACTION: Range = (0.3, 1.0)
"""Share of the body's height that a field of view takes."""

SMALLEST_FRACTION = 0.05
SMALLEST_SPACING = 0.5  # mm
LARGEST_SPACING = 30.0  # mm; an organ is about as large


@dataclass(frozen=True)
class Settings:
    """What a data set's cases are drawn from."""

    in_plane: Range
    slices: Range
    fraction: Range
    orientations: tuple[str, ...]
    oblique: float
    seed: int

    @classmethod
    def checked(
        cls,
        in_plane: Range,
        slices: Range,
        fraction: Range,
        orientations: Sequence[str],
        oblique: float,
        seed: int,
    ) -> Settings:
        check_count("seed", seed, 0)
        check_storage(orientations, oblique)
        return cls(
            _range("in_plane", in_plane, SMALLEST_SPACING, LARGEST_SPACING, "mm"),
            _range("slices", slices, SMALLEST_SPACING, LARGEST_SPACING, "mm"),
            _range("fraction", fraction, SMALLEST_FRACTION, 1.0, "of the body's height"),
            tuple(orientations),
            float(oblique),
            int(seed),
        )


@dataclass(frozen=True)
class Wish:
    """What one case shall have instead of what its settings draw."""

    crop: Range | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None

    @classmethod
    def checked(
        cls, crop: Range | None, spacing: float | Sequence[float] | None, orientation: str | None
    ) -> Wish:
        if orientation is not None:
            orientation_axes(orientation)
        if crop is not None:
            crop = lower, upper = _range("crop", crop, 0.0, 1.0, "of the patient's height")
            if upper - lower < SMALLEST_FRACTION:
                raise ValueError(f"crop must span at least {SMALLEST_FRACTION} of the height, got {crop!r}")
        steps = None
        if spacing is not None:
            sizes = [spacing] * 3 if isinstance(spacing, (int, float, np.number)) else list(spacing)
            if len(sizes) != 3 or not all(SMALLEST_SPACING <= size <= LARGEST_SPACING for size in sizes):
                raise ValueError(
                    f"spacing must be one or three numbers from {SMALLEST_SPACING:g} to {LARGEST_SPACING:g} (mm), "
                    f"got {spacing!r}"
                )
            steps = (float(sizes[0]), float(sizes[1]), float(sizes[2]))
        return cls(crop, steps, orientation)


def _range(name: str, value: Range, smallest: float, largest: float, unit: str) -> Range:
    ends = [float(end) for end in value]
    if (
        len(ends) != 2
        or not all(math.isfinite(end) for end in ends)
        or not smallest <= ends[0] <= ends[1] <= largest
    ):
        raise ValueError(
            f"{name} must be two numbers, smaller first, from {smallest:g} to {largest:g} ({unit}), got {value!r}"
        )
    return ends[0], ends[1]
