"""The location of every voxel of one scan, computed for the box that is asked for and never stored."""

import abc
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

NEVER_ZERO = 1e-9
"""Added to the first channel: keeps a true location from being exactly 0, so that 0 in all channels marks
nnU-Net's padding (:func:`~nnunet_locctx.location.padding.extrapolate_padding`). Far below what float32
resolves over a volume."""

FLOAT32_RESOLUTION = 3e-8
"""Half a unit in the last place of a float32 near 0.5."""


class LocationField(abc.ABC):
    """Location channels (3, *box) of a preprocessed volume; patient axes (R, A, S), units of the source.

    No voxel's location is exactly 0 in all three channels.

    Attributes:
        shape: Voxels of the preprocessed array.
        affine: Whether the location is affine in the index, so that the corners of a box say everything about it.
    """

    affine: ClassVar[bool] = False

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(int(n) for n in shape)

    @abc.abstractmethod
    def fill(
        self, lower: Sequence[int], out: npt.NDArray[np.float32], step: Sequence[int] = (1, 1, 1)
    ) -> None:
        """Writes the location of the box of ``out.shape[1:]`` voxels whose first voxel has index ``lower``.

        Args:
            lower: (3,) index of the first voxel, array axis order; it and the box may lie outside the volume.
            out: (3, *box) float32, written in place.
            step: Voxels from one written voxel to the next, along each axis.
        """

    def box(self, lower: Sequence[int], size: Sequence[int]) -> npt.NDArray[np.float32]:
        """Location (3, *size) float32 of the box of ``size`` voxels whose first voxel has index ``lower``."""
        out = np.empty((3, *size), dtype=np.float32)
        self.fill(lower, out)
        return out


class AffineField(LocationField):
    """A location that is affine in the index, inside and outside the volume.

    Args:
        matrix: (3, 4) float64, homogeneous index -> location.
        shape: Voxels of the preprocessed array.
    """

    affine = True

    def __init__(self, matrix: npt.ArrayLike, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.matrix = np.asarray(matrix, dtype=np.float64)
        if self.matrix.shape != (3, 4):
            raise ValueError(f"the matrix of an affine field must be (3, 4), got {self.matrix.shape}")

    def fill(
        self, lower: Sequence[int], out: npt.NDArray[np.float32], step: Sequence[int] = (1, 1, 1)
    ) -> None:
        size = out.shape[1:]
        matrix = self.matrix.copy()
        matrix[0, 3] += NEVER_ZERO
        for channel, row in zip(out, matrix, strict=True):
            ramps = [
                (row[axis] * (np.arange(size[axis]) * step[axis] + lower[axis])).reshape(
                    [-1 if a == axis else 1 for a in range(3)]
                )
                for axis in range(3)
                # a header's round-off leaves slopes that over the whole scan stay below float32's resolution
                if abs(row[axis]) * max(self.shape) > FLOAT32_RESOLUTION
            ]
            if not ramps:
                channel[...] = row[3]
                continue
            ramps[0] = ramps[0] + row[3]
            # summing small operands first leaves one pass over the volume
            ramps.sort(key=lambda ramp: ramp.size)
            total = ramps[0]
            for ramp in ramps[1:-1]:
                total = total + ramp
            if len(ramps) == 1:
                channel[...] = total
            else:
                np.add(total, ramps[-1], out=channel, casting="same_kind")
