"""Which slices a training step sees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nnunet_locctx.geometry import Array

GAPS_MM = (5.0, 100.0)
"""Smallest and largest distance of neighbouring slices (the publication's)."""


@dataclass(frozen=True)
class SliceBatch:
    """Slices of some scans.

    Attributes:
        scans: (volumes,) index of each volume's scan.
        levels: (volumes, slices) index of each slice in its scan, rising.
        gaps: (volumes, slices - 1) mm between neighbours.
    """

    scans: npt.NDArray[np.int64]
    levels: npt.NDArray[np.int64]
    gaps: npt.NDArray[np.float32]


class SliceSampler:
    """Draws scans at random and from each the same number of equidistant slices.

    The step from slice to slice is uniform among those that give gaps within :data:`GAPS_MM` and fit into the scan; a
    scan too short for the smallest gap gets the largest step that fits.

    Args:
        positions: For each scan the positions in mm of its usable slices, rising, at least `slices` of them.
        volumes: Scans of a batch; a scan can be drawn twice.
        slices: Slices of each scan.
    """

    def __init__(self, positions: Sequence[Array], volumes: int, slices: int) -> None:
        short = [len(p) for p in positions if len(p) < slices]
        if short:
            raise ValueError(f"every scan needs {slices} slices, got one with {min(short)}")
        self.positions, self.volumes, self.slices = positions, volumes, slices
        self.steps = [_steps(p, slices) for p in positions]

    def draw(self, generator: torch.Generator) -> SliceBatch:
        """The next batch."""
        scans = torch.randint(len(self.positions), (self.volumes,), generator=generator).numpy()
        chance = torch.rand(self.volumes, 2, generator=generator, dtype=torch.float64).numpy()
        levels = np.empty((self.volumes, self.slices), dtype=np.int64)
        gaps = np.empty((self.volumes, self.slices - 1), dtype=np.float32)
        for row, (scan, (u, v)) in enumerate(zip(scans, chance, strict=True)):
            places, (least, most) = self.positions[scan], self.steps[scan]
            step = least + int(u * (most - least + 1))
            start = int(v * (len(places) - (self.slices - 1) * step))
            levels[row] = start + step * np.arange(self.slices)
            gaps[row] = np.diff(places[levels[row]])
        return SliceBatch(scans, levels, gaps)


def _steps(positions: Array, slices: int) -> tuple[int, int]:
    """Smallest and largest step between slices."""
    spacing = float(np.median(np.diff(positions)))
    fits = (len(positions) - 1) // (slices - 1)
    most = min(fits, max(1, math.floor(GAPS_MM[1] / spacing)))
    return min(most, max(1, math.ceil(GAPS_MM[0] / spacing))), most


def gather(images: Sequence[npt.NDArray[np.uint8]], batch: SliceBatch) -> npt.NDArray[np.uint8]:
    """The batch's slices (volumes * slices, side, side), scan by scan."""
    return np.concatenate(
        [images[scan][levels] for scan, levels in zip(batch.scans, batch.levels, strict=True)]
    )
