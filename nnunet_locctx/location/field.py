"""The location of every voxel of one scan, computed box by box and never stored."""

import abc
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

AXES = ("R", "A", "S")
"""The patient's axes in the order of the location's channels."""

NEVER_ZERO = 1e-9
"""Added to the first channel: keeps a true location from being exactly 0, so that 0 in all channels marks
nnU-Net's padding (:func:`~nnunet_locctx.location.padding.extrapolate_padding`). Far below what float32
resolves over a volume."""

FLOAT32_RESOLUTION = 3e-8
"""Half a unit in the last place of a float32 near 0.5."""


class LocationField(abc.ABC):
    """Location channels (3, *box) of a preprocessed volume; patient axes (R, A, S), units of the source.

    No voxel's location is exactly 0 in all three channels. The channel of an unknown axis is NaN everywhere.

    Attributes:
        shape: Voxels of the preprocessed array.
        unknown: Why an axis is unknown, for each axis (a name of :data:`AXES`) that is.
    """

    def __init__(self, shape: Sequence[int], unknown: Mapping[str, str] | None = None) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.unknown = {axis: (unknown or {})[axis] for axis in AXES if axis in (unknown or {})}

    def fill(self, lower: Sequence[int], out: npt.NDArray[np.float32]) -> None:
        """Writes the location of the box of ``out.shape[1:]`` voxels whose first voxel has index ``lower``.

        Args:
            lower: (3,) index of the first voxel, array axis order; it and the box may lie outside the volume.
            out: (3, *box) float32, written in place.
        """
        self.sample(np.asarray(lower, dtype=np.float64), np.eye(3), out)

    @abc.abstractmethod
    def at(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Location (..., 3) at indices (..., 3), array axis order, inside or outside the volume."""

    @abc.abstractmethod
    def sample(
        self, origin: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], out: npt.NDArray[np.float32]
    ) -> None:
        """Writes the location on a grid of points that is affine in the volume's index.

        Args:
            origin: (3,) index of the first point, array axis order, inside or outside the volume.
            steps: (3, rank), change of the index (rows) from one point to the next along each axis of ``out``.
            out: (3, *size) float32 with ``rank`` spatial axes, written in place.
        """

    def box(self, lower: Sequence[int], size: Sequence[int]) -> npt.NDArray[np.float32]:
        """Location (3, *size) float32 of the box of ``size`` voxels whose first voxel has index ``lower``."""
        out = np.empty((3, *size), dtype=np.float32)
        self.fill(lower, out)
        return out


class PartlyKnownField(LocationField):
    """A field of which some axes are unknown; made by :func:`hide_axes`."""

    def __init__(self, field: LocationField, unknown: Mapping[str, str]) -> None:
        super().__init__(field.shape, unknown)
        self.field = field
        self.channels = [AXES.index(axis) for axis in self.unknown]

    def at(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        location = self.field.at(index)
        location[..., self.channels] = np.nan
        return location

    def sample(
        self, origin: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], out: npt.NDArray[np.float32]
    ) -> None:
        if len(self.channels) < len(AXES):
            self.field.sample(origin, steps, out)
        out[self.channels] = np.nan


def hide_axes(field: LocationField, unknown: Mapping[str, str]) -> LocationField:
    """The field without the axes that are unknown.

    Args:
        field: Any field; what is unknown of it already stays so, for the reason that it gives.
        unknown: Axis (a name of :data:`AXES`) -> why it is unknown.
    """
    if not set(unknown) - set(field.unknown):
        return field
    return PartlyKnownField(field, {**unknown, **field.unknown})


class AffineField(LocationField):
    """A location that is affine in the index, inside and outside the volume.

    Args:
        matrix: (3, 4) float64, homogeneous index -> location.
        shape: Voxels of the preprocessed array.
    """

    def __init__(self, matrix: npt.ArrayLike, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.matrix = np.asarray(matrix, dtype=np.float64)
        if self.matrix.shape != (3, 4):
            raise ValueError(f"the matrix of an affine field must be (3, 4), got {self.matrix.shape}")

    def at(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        location = np.asarray(index, dtype=np.float64) @ self.matrix[:, :3].T + self.matrix[:, 3]
        location[..., 0] += NEVER_ZERO
        return np.asarray(location)

    def sample(
        self, origin: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], out: npt.NDArray[np.float32]
    ) -> None:
        matrix = self.matrix[:, :3]
        start = matrix @ origin + self.matrix[:, 3]
        start[0] += NEVER_ZERO
        # a header's round-off leaves slopes that over the whole scan stay below float32's resolution
        slopes = np.where(np.abs(matrix) * max(self.shape) > FLOAT32_RESOLUTION, matrix, 0) @ steps
        for channel, first, changes in zip(out, start, slopes, strict=True):
            add_ramps(first, changes, channel)


def ramps(
    start: float, changes: npt.NDArray[np.float64], size: Sequence[int]
) -> list[npt.NDArray[np.float64]]:
    """Arrays that broadcast to ``size`` and add up to ``start + changes @ index``; axes without change have none.

    Small operands come first, so that summing in this order leaves one pass over the whole.
    """
    summands = [
        (change * np.arange(n)).reshape([-1 if a == axis else 1 for a in range(len(size))])
        for axis, (n, change) in enumerate(zip(size, changes, strict=True))
        if change != 0
    ]
    if not summands:
        return [np.full([1] * len(size), start)]
    summands[0] = summands[0] + start
    return sorted(summands, key=lambda ramp: ramp.size)


def add_ramps(start: float, changes: npt.NDArray[np.float64], out: npt.NDArray[np.float32]) -> None:
    """Writes ``start + changes @ index`` to ``out``."""
    total, *others = ramps(start, changes, out.shape)
    for ramp in others[:-1]:
        total = total + ramp
    if others:
        np.add(total, others[-1], out=out, casting="same_kind")
    else:
        out[...] = total
