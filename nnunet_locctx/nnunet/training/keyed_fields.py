"""The location of a patch on its way through augmentation.

A patch is loaded with two things in its location channels: the index of its first voxel in the preprocessed volume,
and a number by which this process finds the field that says where an index lies. Augmentation moves the *index*, held
by the patch's corners, and the field is asked when the patch is final (:mod:`.augmentation`). That is exact for every
source, affine or not, inside the scan and outside; no dense volume of coordinates is loaded, rotated or interpolated.
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

EXACT = 2**24
"""Whole numbers below this are exact in float32."""

_fields: "OrderedDict[int, LocationField]" = OrderedDict()
_loads = itertools.count()


def remember(field: LocationField) -> int:
    """A number, exact in float32, by which this process finds the field among the last :data:`REMEMBERED`."""
    number = next(_loads) % EXACT
    _fields[number] = field
    while len(_fields) > REMEMBERED:
        _fields.popitem(last=False)
    return number


def write_key(field: LocationField, lower: Sequence[int], out: npt.NDArray[np.float32]) -> None:
    """Writes the first voxel's index to the first voxel of a patch and the field's number to its last.

    Args:
        field: The scan's location.
        lower: (3,) index of the patch's first voxel, array axis order; may lie outside the volume.
        out: (3, *patch), written in place; voxels between the first and the last are left as they are. In a patch of
            one voxel, as nnU-Net may cut out before it pads, there is no room for both: it cannot be read.
    """
    out[:, 0, 0, 0] = lower
    out[0, -1, -1, -1] = remember(field)


def read_key(location: Tensor) -> tuple[LocationField, Tensor]:
    """The field of a loaded patch, and the index at the patch's corners.

    Args:
        location: (3, *s) as :func:`write_key` wrote it, s with 2 or 3 axes (2: a slice of the volume along its
            first axis).

    Returns:
        The field, and (3, 2, ...) the index at the corners, one entry along an axis of one voxel.

    Raises:
        ValueError: A patch of a single voxel.
        KeyError: The patch was loaded by another process, or long ago.
    """
    size = location.shape[1:]
    if max(size) == 1:
        raise ValueError("a patch of a single voxel cannot carry its location; 2 or more voxels are needed")
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


def affine_of(corners: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Value (K,) at voxel 0 and change (rank, K) per voxel along each axis of the affine map (K, *size) with these
    corners (K, 2, ...)."""
    rank = len(size)
    values = corners.movedim(0, -1)
    origin = values[(0,) * rank]
    slopes = [
        (values[tuple(-1 if a == axis else 0 for a in range(rank))] - origin) / max(n - 1, 1)
        for axis, n in enumerate(size)
    ]
    return origin, torch.stack(slopes)


def sample_at_corners(field: LocationField, corners: Tensor, out: Tensor) -> None:
    """Writes a field's location to ``out`` (3, *s) float32, given the index (3, 2, ...) at its corners."""
    origin, slopes = affine_of(corners.double(), out.shape[1:])
    field.sample(origin.numpy(), slopes.T.numpy(), out.numpy())
