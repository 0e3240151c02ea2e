"""Locations that are not affine, on their way through augmentation.

Augmentation carries what is affine in the index, held by a patch's corner voxels (:mod:`.augmentation`). A location
that is not affine cannot be carried so, but the *index* can: the corners of a loaded patch hold the index in the
preprocessed volume and a number that says which field it indexes; the field is asked when the patch is final. That
is exact, and no dense volume of coordinates is loaded, rotated or interpolated.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_locctx.location import LocationField

REMEMBERED = 256
"""Fields that a process remembers; a patch is augmented right after it was loaded."""

_fields: "OrderedDict[int, LocationField]" = OrderedDict()
_numbers = itertools.count(1)


class KeyedField(LocationField):
    """Stands for another field where only the corners of a patch are written: their index, and the field's number.

    Args:
        field: Any field.
    """

    affine = True

    def __init__(self, field: LocationField) -> None:
        super().__init__(field.shape)
        self.field = field
        self.number = remember(field)

    def fill(
        self, lower: Sequence[int], out: npt.NDArray[np.float32], step: Sequence[int] = (1, 1, 1)
    ) -> None:
        """Writes the first voxel's index to the first voxel of ``out`` and the number to its last.

        Raises:
            ValueError: A patch of one voxel has no room for both.
        """
        if max(out.shape[1:]) == 1:
            raise ValueError(
                "a patch of a single voxel cannot carry this location source; 2 or more are needed"
            )
        out[...] = 0
        out[:, 0, 0, 0] = lower
        out[0, -1, -1, -1] = self.number

    def at(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return self.field.at(index)

    def sample(
        self, origin: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], out: npt.NDArray[np.float32]
    ) -> None:
        self.field.sample(origin, steps, out)


def remember(field: LocationField) -> int:
    """A number by which this process finds the field again."""
    number = next(_numbers)
    _fields[number] = field
    while len(_fields) > REMEMBERED:
        _fields.popitem(last=False)
    return number


def read_key(location: Tensor) -> tuple[LocationField, Tensor]:
    """The field of a loaded patch, and the index at the patch's corners.

    Args:
        location: (3, *s) as :meth:`KeyedField.fill` wrote it, s with 2 or 3 axes (2: a slice of the volume along its
            first axis).

    Returns:
        The field, and (3, 2, ...) the index at the corners, one entry along an axis of one voxel.

    Raises:
        KeyError: The patch was loaded by another process, or long ago.
    """
    size = location.shape[1:]
    rank = len(size)
    number = int(location[0].flatten()[-1])
    if number not in _fields:
        raise KeyError(f"no location field {number}: a patch must be augmented by the process that loaded it")
    lower = location.flatten(1)[:, 0]
    ends = [torch.tensor([0, n - 1] if n > 1 else [0], dtype=location.dtype) for n in size]
    offsets = torch.stack(torch.meshgrid(*ends, indexing="ij"))
    corners = lower.reshape(3, *[1] * rank).repeat(1, *offsets.shape[1:])
    corners[3 - rank :] += offsets
    return _fields[number], corners


def sample_at_corners(field: LocationField, corners: Tensor, out: Tensor) -> None:
    """Writes a field's location to ``out`` (3, *s) float32, given the index (3, 2, ...) at its corners."""
    size = out.shape[1:]
    rank = len(size)
    index = corners.double().movedim(0, -1).numpy()
    origin = index[(0,) * rank]
    steps = [
        (index[tuple(-1 if a == axis else 0 for a in range(rank))] - origin) / max(n - 1, 1)
        for axis, n in enumerate(size)
    ]
    field.sample(origin, np.stack(steps, axis=-1), out.numpy())
