"""Scans in blocks of voxels, and boxes of such blocks."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import AnatomicalMap

BLOCK_MM = 6.0
"""Scans are looked at in blocks of whole voxels, about this long along each axis; boxes consist of such blocks."""

Voxel: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Blocks:
    """A scan divided into blocks of whole voxels; the last along an axis may be smaller.

    Attributes:
        frame: The scan's.
        size: Voxels of a block along each array axis.
    """

    frame: Frame
    size: tuple[int, ...]

    @classmethod
    def of(cls, frame: Frame) -> "Blocks":
        """Blocks of about :data:`BLOCK_MM`."""
        return cls(frame, tuple(max(1, round(BLOCK_MM / float(mm))) for mm in frame.spacing))

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks along each array axis."""
        return tuple(-(-n // size) for n, size in zip(self.frame.shape, self.size, strict=True))

    def coordinates(self, found: AnatomicalMap, block: npt.NDArray[np.integer] | None = None) -> Array:
        """(N, 3) anatomical coordinates of block centres; of all blocks, in C order, or of blocks (N, 3)."""
        if block is None:
            block = np.indices(self.shape).reshape(3, -1).T
        size = np.array(self.size)
        last = np.minimum((block + 1) * size, self.frame.shape) - 1
        return found.at(self.frame.millimetres((block * size + last) / 2))

    def count(self, mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Blocks (N, 3) that hold voxels of a mask, and how many each holds (N,)."""
        index = np.argwhere(mask) // np.array(self.size)
        flat, counts = np.unique(np.ravel_multi_index(tuple(index.T), self.shape), return_counts=True)
        return np.stack(np.unravel_index(flat, self.shape), axis=1).astype(np.int32), counts


@dataclass(frozen=True)
class Box:
    """A box of blocks: the first one along each axis and the one after the last, (3,) each."""

    first: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]

    def voxels(self, blocks: Blocks) -> tuple[Voxel, Voxel]:
        """First voxel and the one after the last along each array axis."""
        first = self.first * np.array(blocks.size)
        stop = np.minimum(self.stop * np.array(blocks.size), blocks.frame.shape)
        return voxel(first), voxel(stop)


def voxel(index: npt.NDArray[np.integer]) -> Voxel:
    """Three whole numbers."""
    first, second, third = (int(n) for n in index)
    return first, second, third
