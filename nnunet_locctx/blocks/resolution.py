"""The location at the resolution of a stage, and what that resolution can carry."""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nnunet_locctx.types import Features, Location

LocationOfStage: TypeAlias = Float[Tensor, "batch ras=3 *stage"]
FeaturesOfStage: TypeAlias = Float[Tensor, "batch channels *stage"]


def resize_location(location: Location, size: tuple[int, ...] | torch.Size) -> LocationOfStage:
    """Location of the token centres of a coarser stage that covers the same region.

    Token ``i`` of ``m`` along an axis of ``n`` voxels is centred at voxel ``(i + 0.5) * n / m - 0.5``. Where
    ``m`` divides ``n`` this is the average over the token's voxels; elsewhere the location is interpolated
    linearly at that point (an adaptive average pools windows of unequal length, and is off by up to half a
    voxel on a ramp). Both are exact for a location that is affine in the index and commute with flips.

    Args:
        location: (B, 3, *spatial), spatial rank 2 or 3.
        size: Spatial size of the stage; along each axis at most that of the location.

    Returns:
        (B, 3, *size), float32 (float64 if the location is).

    Raises:
        ValueError: If the rank differs or the stage is finer than the location.
    """
    current = location.shape[2:]
    if len(size) != len(current) or len(current) not in (2, 3):
        raise ValueError(
            f"a location of spatial size {tuple(current)} cannot be given at size {tuple(size)}: "
            "allowed are 2 or 3 axes, as many as it has"
        )
    if any(m > n or m < 1 for m, n in zip(size, current, strict=True)):
        raise ValueError(
            "along each axis a stage has at least 1 token and at most as many as the location has voxels, "
            f"{tuple(current)}; got {tuple(size)}"
        )
    location = in_full_precision(location)
    block = [n // m if n % m == 0 else 1 for n, m in zip(current, size, strict=True)]
    if any(b > 1 for b in block):
        location = F.avg_pool3d(location, block) if len(size) == 3 else F.avg_pool2d(location, block)
    if tuple(location.shape[2:]) != tuple(size):
        mode = "trilinear" if len(size) == 3 else "bilinear"
        location = F.interpolate(location, size=tuple(size), mode=mode, align_corners=False)
    return location


SAMPLINGS = ("centres", "published")
"""How a stage's location is taken from the patch's: :func:`resize_location`, or :func:`published_location`."""


def published_location(location: Location) -> Location:
    """The location as the code of Le and Le (GPE, 2025) samples a patch: evenly from its lower to its upper border,
    both included.

    Along an axis of ``n`` voxels, voxel ``i`` gets the value at ``i * n / (n - 1) - 0.5`` instead of at ``i``: what is
    true is the middle, the first and last voxel are half a voxel off. Exact for a location affine in the index.

    Args:
        location: (B, 3, *spatial) at voxel centres.

    Returns:
        (B, 3, *spatial), float32 (float64 if the location is).
    """
    location = in_full_precision(location)
    # the highest frequency multiplies a rounding error by 512; Apple's GPUs have no float64
    spread_out = location if location.device.type == "mps" else location.double()
    for axis, n in enumerate(location.shape[2:], start=2):
        if n > 1:
            spread_out = spread_out + (spread_out - spread_out.mean(axis, keepdim=True)) / (n - 1)
    return spread_out.to(location.dtype)


def nearest(field: FeaturesOfStage, size: tuple[int, ...] | torch.Size) -> FeaturesOfStage:
    """Every token's first voxel, or every voxel's token: (B, C, *spatial) -> (B, C, *size), element
    ``floor(i * n / m)`` of ``n`` for ``i`` of ``m``. Not the same after a flip."""
    return (
        field
        if field.shape[2:] == torch.Size(size)
        else F.interpolate(field, size=tuple(size), mode="nearest")
    )


def coarser(size: tuple[int, ...] | torch.Size, stride: int) -> tuple[int, ...]:
    """Spatial size of a grid with one token for `stride` voxels along each axis, the last one for what is left."""
    return tuple(-(-n // stride) for n in size)


def spread(field: FeaturesOfStage, size: tuple[int, ...] | torch.Size) -> Features:
    """Linear interpolation between token centres, constant beyond the outermost: (B, C, *coarse) -> (B, C, *size).

    Axis by axis, as matrix products: several times faster than torch's trilinear interpolation on a CPU, and its
    gradient is deterministic on CUDA.
    """
    for axis, n in reversed(list(enumerate(size, start=2))):
        m = field.shape[axis]
        if m == n:
            continue
        weights = torch.eye(m, device=field.device)[None]
        weights = F.interpolate(weights, size=n, mode="linear", align_corners=False)[0].to(
            field.dtype
        )  # (m, n)
        shape = field.shape
        if axis == field.dim() - 1:
            field = torch.matmul(field, weights)
        else:
            field = torch.matmul(weights.T, field.flatten(axis + 1))
            field = field.view(*shape[:axis], n, *shape[axis + 1 :])
    return field


def token_step(location: Location) -> Tensor:
    """Largest change of each coordinate between neighbouring tokens: (B, 3, *spatial) -> (B, 3).

    Measured end to end on the lines through the middle, and summed over the axes: a rotated coordinate
    changes along several. An axis of one token adds nothing. Exact for a location affine in the index.
    """
    size = location.shape[2:]
    middle = [n // 2 for n in size]
    step = location.new_zeros(location.shape[:2])
    for axis, n in enumerate(size):
        first: list[Any] = list(middle)
        last: list[Any] = list(middle)
        first[axis], last[axis] = 0, n - 1
        ends = location[(slice(None), slice(None), *last)] - location[(slice(None), slice(None), *first)]
        step = step + ends.abs() / max(n - 1, 1)
    return step


def fade_out(share: Tensor) -> Tensor:
    """Weight of a wave by its frequency as a share of the highest that its samples can carry: 1 up to one half, exactly
    0 from 1 on, smooth between."""
    rising = ((1 - share) * 2).clamp(0, 1)
    return rising * rising * (3 - 2 * rising)


def in_full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: half precision cannot tell neighbouring voxels of a
    large volume apart."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
