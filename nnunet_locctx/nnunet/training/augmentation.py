"""Takes location through nnU-Net's augmentation.

What travels is the *index* in the preprocessed volume at the patch's corners, (3, 2, 2, 2), one corner along an axis of
one voxel. It is affine and stays so under rotation, scaling, mirroring and cropping; the field gives the indices their
location when the patch is final. That is exact for every source, affine or not, inside the scan and outside;
no dense volume of coordinates is loaded, rotated or interpolated.

A patch is loaded with two things in its location channels (:func:`write_key`): the index of its first voxel, and a
number by which this process finds the field. nnU-Net's list of transforms stays as it is. In front, the location moves
from the image to batchgeneratorsv2's regression target, which spatial transforms move and intensity transforms leave
alone; behind, it returns to the image, before the one-hot channels of a cascade are added.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor

from nnunet_locctx.location import LOCATION_CHANNELS, LocationField

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


Sample = dict[str, Any]


class SplitLocation(BasicTransform):
    """``image`` (C + 3, *s) as loaded -> ``image`` (C, *s), ``location_field`` and, as ``regression_target``, the index
    (3, 2, 2, 2) at the corners."""

    def apply(self, data_dict: Sample, **params: Any) -> Sample:
        image = data_dict["image"]
        data_dict["image"] = image[:-LOCATION_CHANNELS]
        data_dict["location_field"], data_dict["regression_target"] = read_key(image[-LOCATION_CHANNELS:])
        return data_dict


class JoinLocation(BasicTransform):
    """``image`` (C, *s), ``location_field`` and ``regression_target`` (3, 2, 2, 2) -> ``image`` (C + 3, *s).

    Args:
        jitter: Of the location, None for none.
    """

    def __init__(self, jitter: "JitterLocation | None" = None) -> None:
        super().__init__()
        self.jitter = jitter

    def apply(self, data_dict: Sample, **params: Any) -> Sample:
        image = data_dict["image"]
        joined = image.new_empty((image.shape[0] + LOCATION_CHANNELS, *image.shape[1:]))
        joined[:-LOCATION_CHANNELS] = image
        location = joined[-LOCATION_CHANNELS:]
        sample_at_corners(data_dict.pop("location_field"), data_dict.pop("regression_target"), location)
        if self.jitter is not None:
            self.jitter(regression_target=location)
        data_dict["image"] = joined
        return data_dict


class LocatedSpatialTransform(SpatialTransform):
    """nnU-Net's spatial transform; the location is computed where each voxel is sampled instead of interpolated.

    Interpolation would put 0 wherever sampling leaves the patch.
    """

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        return {**super().get_parameters(**data_dict), "loaded": tuple(data_dict["image"].shape[1:])}

    def _apply_to_regr_target(self, regression_target: Tensor, **params: Any) -> Tensor:
        """Corners (K, 2, ...) of what was loaded -> corners (K, 2, ...) of the patch. K is 3, in dummy 2D 3 * 2."""
        size = params["loaded"]
        origin, slopes = affine_of(regression_target, size)
        grid = params["grid"]
        if grid is None:
            # the crop that nnU-Net makes of the image when nothing is rotated or scaled
            centre = params["center_location_in_pixels"]
            first = [int(np.floor(c)) - n // 2 for c, n in zip(centre, self.patch_size, strict=True)]
            ends = [
                torch.tensor(sorted({at, at + int(n) - 1}), dtype=origin.dtype)
                for at, n in zip(first, self.patch_size, strict=True)
            ]
            index = torch.stack(torch.meshgrid(*ends, indexing="ij"), dim=-1)
        else:
            # grid_sample counts axes from the last, and -1..1 from outer face to outer face
            faces = grid[tuple(slice(None, None, max(n - 1, 1)) for n in grid.shape[:-1])].flip(-1)
            index = (faces + 1) * torch.tensor(size, dtype=origin.dtype) / 2 - 0.5
        return (index @ slopes + origin).movedim(-1, 0).contiguous()


class JitterLocation(BasicTransform):
    """Shifts and scales a patch's location (3, *s) at random, in place.

    Random numbers come from a generator of its own, seeded by numpy's global state without advancing it:
    runs with and without location see the same patches and the same augmentation.

    Args:
        jitter: Standard deviation of the shift (units of the location) and of the relative scale, drawn per
            axis; one number, or (3,) along (R, A, S).
    """

    def __init__(self, jitter: npt.ArrayLike) -> None:
        super().__init__()
        self.jitter = jitter

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        state: Any = np.random.get_state()  # noqa: NPY002 - nnU-Net draws from the global state
        keys, position = state[1], state[2]
        random = np.random.default_rng([position, *keys[:8].tolist(), int(keys[position % len(keys)])])
        shift, scale = random.normal(0, 1, (2, LOCATION_CHANNELS)) * np.asarray(self.jitter)
        return {"shift": shift, "scale": 1 + scale}

    def _apply_to_regr_target(self, regression_target: Tensor, **params: Any) -> Tensor:
        def per_channel(values: Any) -> Tensor:
            tensor = torch.as_tensor(values, dtype=regression_target.dtype)
            return tensor.reshape(-1, *[1] * (regression_target.ndim - 1))

        regression_target.mul_(per_channel(params["scale"])).add_(per_channel(params["shift"]))
        return regression_target

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return img

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        return segmentation


def locate_transforms(transforms: BasicTransform, jitter: JitterLocation | None = None) -> ComposeTransforms:
    """nnU-Net's transforms of a training or validation batch, fitted to carry location.

    Args:
        transforms: What nnU-Net made; changed in place.
        jitter: Of the location, None for none.

    Returns:
        Transforms of ``image`` (C + 3, *loaded), which carries its key (:func:`write_key`), to ``image``
        (C + 3 + previous stage, *patch).

    Raises:
        ValueError: Elastic deformation, under which the index is no longer affine, or aligned corners.
    """
    steps = list(transforms.transforms) if isinstance(transforms, ComposeTransforms) else [transforms]
    for step in steps:
        if type(step) is SpatialTransform:
            if step.p_elastic_deform > 0:
                raise ValueError(
                    "location cannot follow elastic deformation: p_elastic_deform must be 0, as in nnU-Net's "
                    f"augmentation, got {step.p_elastic_deform}"
                )
            if step.align_corners:
                raise ValueError(
                    "location needs a spatial transform with align_corners=False, as in nnU-Net, got True"
                )
            step.__class__ = LocatedSpatialTransform
    cascade = [i for i, step in enumerate(steps) if isinstance(step, MoveSegAsOneHotToDataTransform)]
    end = cascade[0] if cascade else len(steps)
    return ComposeTransforms([SplitLocation(), *steps[:end], JoinLocation(jitter), *steps[end:]])
