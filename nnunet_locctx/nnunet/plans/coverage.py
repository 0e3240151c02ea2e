"""The share of a scan that a patch covers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TILE_STEP = 0.5
"""nnU-Net's sliding window moves by this fraction of the patch."""


@dataclass(frozen=True)
class Coverage:
    """The share of the median training volume that a patch covers; axis order of the plans.

    Attributes:
        patch_size: Voxels.
        spacing: Voxel size in mm.
        median_size: Voxels of the median training volume after resampling.
        fraction: Share of the volume's length that the patch covers, per axis, at most 1.
        patches: Positions of the sliding window in the median volume.
    """

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    median_size: tuple[float, ...]
    fraction: tuple[float, ...]
    patches: int

    @property
    def patch_to_volume(self) -> float:
        """Voxels of the patch / voxels of the volume; above 1 if the patch is the larger one. The patch-to-volume
        coverage (PtVC) of Hooft et al., ISBI 2026."""
        return float(np.prod(self.patch_size) / np.prod(self.median_size))

    def __str__(self) -> str:
        millimetres = [n * size for n, size in zip(self.patch_size, self.spacing, strict=True)]
        volume = [n * size for n, size in zip(self.median_size, self.spacing, strict=True)]
        what = "volume" if len(self.patch_size) == 3 else "slice"
        shares = " x ".join(f"{100 * share:.0f}%" for share in self.fraction)
        return "\n".join(
            [
                f"patch           {_times(self.patch_size)} voxels = {_times(millimetres)} mm",
                f"median {what:<9}{_times(self.median_size)} voxels = {_times(volume)} mm",
                f"the patch sees {shares} = {100 * float(np.prod(self.fraction)):.3g}% of the median {what}",
                f"{'coverage':<16}{_percent(self.patch_to_volume)} (PtVC: voxels of the patch / voxels of the {what})",
                f"the sliding window takes {_count(self.patches, 'position')}",
            ]
        )


def coverage(configuration: Mapping[str, Any]) -> Coverage:
    """The share of the median volume that a patch of this configuration (inheritance resolved) covers."""
    patch = tuple(int(n) for n in configuration["patch_size"])
    median = tuple(float(n) for n in configuration["median_image_size_in_voxels"])
    steps = [
        int(np.ceil(max(0.0, size - n) / (n * TILE_STEP))) + 1 for size, n in zip(median, patch, strict=True)
    ]
    return Coverage(
        patch_size=patch,
        spacing=tuple(float(size) for size in configuration["spacing"]),
        median_size=median,
        fraction=tuple(min(1.0, n / size) for n, size in zip(patch, median, strict=True)),
        patches=int(np.prod(steps)),
    )


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    return f"{percent:.3g}%" if percent < 1000 else f"{percent:.0f}%"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
