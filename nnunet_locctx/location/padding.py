"""Restores the location where nnU-Net padded a volume with zeros."""

import torch
from torch import Tensor


def extrapolate_padding(location: Tensor) -> Tensor:
    """Replaces zero-padded location by the linear continuation of the location inside the volume.

    At prediction nnU-Net pads a volume smaller than the patch with 0 in every channel, and 0 is the centre
    of the volume. What is left of the volume is a box; from each of its faces the location continues outwards
    with the mean slope along the box's edges, without a jump also where it is not affine. A volume of one voxel
    along an axis has no change along it: its location is repeated. A true location is never exactly 0 (see
    :data:`~nnunet_locctx.location.field.NEVER_ZERO`).

    Args:
        location: (B, 3, *spatial), spatial rank 2 or 3.

    Returns:
        (B, 3, *spatial); voxels that are not all 0 are returned as they are.
    """
    inside = (location != 0).any(dim=1)
    size = location.shape[2:]
    axes = range(len(size))
    lines = [inside.any(dim=[a + 1 for a in axes if a != axis]) for axis in axes]
    first = [line.to(torch.uint8).argmax(dim=1) for line in lines]
    reach = [(line.sum(dim=1) - 1).clamp(min=0) for line in lines]
    sample = torch.arange(location.shape[0], device=location.device)
    channels = location.movedim(1, -1)
    origin = channels[(sample, *first)]
    for axis, n in enumerate(size):
        far = channels[(sample, *[f + reach[a] if a == axis else f for a, f in enumerate(first)])]
        slope = (far - origin) / reach[axis].clamp(min=1)[:, None]
        steps = torch.arange(n, device=location.device) - first[axis][:, None]
        nearest = torch.minimum(steps.clamp(min=0), reach[axis][:, None])
        along = [n if a == axis else 1 for a in axes]
        index = (first[axis][:, None] + nearest).reshape(-1, 1, *along).expand(location.shape)
        beyond = (steps - nearest).to(location.dtype)
        continued = (slope[:, :, None] * beyond[:, None]).reshape(*slope.shape, *along)
        location = location.gather(axis + 2, index) + continued
    return location
