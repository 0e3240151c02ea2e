"""Takes location through nnU-Net's augmentation.

nnU-Net's list of transforms stays as it is. In front, the location channels move from the image to
batchgeneratorsv2's regression target, which spatial transforms move and intensity transforms leave alone;
behind, they return to the image, before the one-hot channels of a cascade are added.
"""

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor

from nnunet_locctx.location import LOCATION_CHANNELS

Sample = dict[str, Any]


class SplitLocation(BasicTransform):
    """``image`` (C + 3, *s) -> ``image`` (C, *s) and ``regression_target`` (3, *s)."""

    def apply(self, data_dict: Sample, **params: Any) -> Sample:
        image = data_dict["image"]
        data_dict["image"] = image[:-LOCATION_CHANNELS]
        data_dict["regression_target"] = image[-LOCATION_CHANNELS:]
        return data_dict


class JoinLocation(BasicTransform):
    """``image`` (C, *s) and ``regression_target`` (3, *s) -> ``image`` (C + 3, *s)."""

    def apply(self, data_dict: Sample, **params: Any) -> Sample:
        data_dict["image"] = torch.cat([data_dict["image"], data_dict.pop("regression_target")])
        return data_dict


class LocatedSpatialTransform(SpatialTransform):
    """nnU-Net's spatial transform; the location is computed where each voxel is sampled instead of
    interpolated.

    Interpolation would put 0, the centre of the volume, wherever sampling leaves the patch. The location is
    affine in the index, so its values at the sampling points follow from the corners of the patch, outside
    as inside.
    """

    def _apply_to_regr_target(self, regression_target: Tensor, **params: Any) -> Tensor:
        """(3, *loaded) -> (3, *patch); under dummy 2D augmentation (3 * slices, ...)."""
        size = regression_target.shape[1:]
        origin, slopes = _affine_of(regression_target)
        grid = params["grid"]
        if grid is None:
            # the crop that nnU-Net makes of the image when nothing is rotated or scaled
            first = [
                int(np.floor(c)) - p // 2
                for c, p in zip(params["center_location_in_pixels"], self.patch_size, strict=True)
            ]
            location = origin.reshape(-1, *[1] * len(size))
            for axis, n in enumerate(self.patch_size):
                steps = torch.arange(first[axis], first[axis] + n, dtype=origin.dtype)
                ramp = slopes[axis][:, None] * steps
                location = location + ramp.reshape(-1, *[n if a == axis else 1 for a in range(len(size))])
            return location.expand(-1, *self.patch_size).contiguous()
        # grid_sample counts axes from the last and -1..1 from outer face to outer face
        half = torch.tensor(size[::-1], dtype=grid.dtype) / 2
        scale = slopes.flip(0) * half[:, None]
        shift = origin + (slopes.flip(0) * (half[:, None] - 0.5)).sum(0)
        location = grid @ scale + shift
        return location.movedim(-1, 0).contiguous()


def _affine_of(location: Tensor) -> tuple[Tensor, Tensor]:
    """Value (K,) at index 0 and change (rank, K) per voxel along each axis of an affine (K, *s) map."""
    rank = location.ndim - 1
    channels = location.movedim(0, -1)
    origin = channels[(0,) * rank]
    slopes = []
    for axis in range(rank):
        n = location.shape[1 + axis]
        far = channels[tuple(n - 1 if a == axis else 0 for a in range(rank))]
        slopes.append((far - origin) / max(n - 1, 1))
    return origin, torch.stack(slopes)


class PerturbLocation(BasicTransform):
    """Location augmentation: jitter and dropout of a whole patch's location.

    Random numbers come from a generator of its own, seeded by numpy's global state without advancing it:
    runs with and without location see the same patches and the same augmentation.

    Args:
        jitter: Standard deviation of the shift (units of the location) and of the relative scale, drawn per
            axis.
        dropout: Probability that the location is replaced by ``neutral``.
        neutral: (R, A, S) of a location that says nothing.
    """

    def __init__(self, jitter: float, dropout: float, neutral: tuple[float, float, float]) -> None:
        super().__init__()
        self.jitter = jitter
        self.dropout = dropout
        self.neutral = neutral

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        state: Any = np.random.get_state()  # noqa: NPY002 - nnU-Net draws from the global state
        keys, position = state[1], state[2]
        random = np.random.default_rng([position, *keys[:8].tolist(), int(keys[position % len(keys)])])
        dropped = random.random() < self.dropout
        shift, scale = random.normal(0, 1, (2, LOCATION_CHANNELS)) * self.jitter
        return {"dropped": dropped, "shift": shift, "scale": 1 + scale}

    def _apply_to_regr_target(self, regression_target: Tensor, **params: Any) -> Tensor:
        shape = (-1, *[1] * (regression_target.ndim - 1))
        if params["dropped"]:
            neutral = torch.tensor(self.neutral, dtype=regression_target.dtype)
            return neutral.reshape(shape).expand_as(regression_target).clone()
        scale, shift = (
            torch.tensor(params[k], dtype=regression_target.dtype).reshape(shape) for k in ("scale", "shift")
        )
        return regression_target * scale + shift

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return img

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        return segmentation


def locate_transforms(
    transforms: BasicTransform, perturb: PerturbLocation | None = None
) -> ComposeTransforms:
    """nnU-Net's training transforms, fitted to carry location.

    Args:
        transforms: What nnU-Net's ``get_training_transforms`` returned; changed in place.
        perturb: Location augmentation, None for none.

    Returns:
        Transforms of ``image`` (C + 3, *loaded) to ``image`` (C + 3 + previous stage, *patch).
    """
    steps = list(transforms.transforms) if isinstance(transforms, ComposeTransforms) else [transforms]
    for step in steps:
        if type(step) is SpatialTransform:
            step.__class__ = LocatedSpatialTransform
    cascade = [i for i, step in enumerate(steps) if isinstance(step, MoveSegAsOneHotToDataTransform)]
    end = cascade[0] if cascade else len(steps)
    joined = [*([perturb] if perturb else []), JoinLocation()]
    return ComposeTransforms([SplitLocation(), *steps[:end], *joined, *steps[end:]])
