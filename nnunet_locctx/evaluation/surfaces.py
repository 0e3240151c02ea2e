"""Distances between two masks on one grid: (z, y, x) boolean arrays, voxel sizes in mm along the same axes."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Mask: TypeAlias = npt.NDArray[np.bool_]

MARGIN = (1, 1, 1)
"""Voxels left around masks that are cropped: a mask of one slice must not look like an image of one slice."""


def bounding_box(mask: Mask, margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...] | None:
    """The smallest box that holds the mask, grown by `margin` voxels within the array; None if the mask is empty."""
    box = []
    for axis, more in enumerate(margin):
        (at,) = np.nonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not at.size:
            return None
        box.append(slice(max(int(at[0]) - more, 0), int(at[-1]) + 1 + more))
    return tuple(box)


def surface_measures(
    true: Mask, found: Mask, spacing: Sequence[float], tolerance: float, *, crop: bool = True
) -> tuple[float, float]:
    """(95th percentile Hausdorff distance in mm, NSD) of two masks, neither empty, through MONAI.

    Images of one slice are measured in their plane.

    Args:
        true: (z, y, x).
        found: (z, y, x).
        spacing: Voxel size in mm.
        tolerance: Of the NSD, mm.
        crop: Look at the masks' common box alone, which gives the same in less time.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    predicted, reference, sizes = _as_tensors(true, found, spacing, crop)
    with _without_own_warnings():
        distance = compute_hausdorff_distance(
            predicted, reference, include_background=True, percentile=95, spacing=sizes
        )
        shared = compute_surface_dice(
            predicted, reference, [tolerance], include_background=True, spacing=sizes, use_subvoxels=True
        )
    return float(distance), float(shared)


def voxel_distance(true: Mask, found: Mask, *, pooled: bool) -> float:
    """95th percentile of the surface distances in voxels; neither mask empty.

    Args:
        true: (z, y, x).
        found: (z, y, x).
        pooled: Of both directions taken together; else the larger of the two directions'.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.utils import get_edge_surface_distance

    predicted, reference, _ = _as_tensors(true, found, (1, 1, 1), True)
    with _without_own_warnings():
        if not pooled:
            return float(
                compute_hausdorff_distance(predicted, reference, include_background=True, percentile=95)
            )
        _, distances, _ = get_edge_surface_distance(predicted[0, 0], reference[0, 0], symmetric=True)
    return float(np.percentile(np.concatenate([one.numpy() for one in distances]), 95))


def off_region_voxels(true: Mask, found: Mask, spacing: Sequence[float], distance: float) -> int:
    """Number of voxels of `found` whose centre is farther than `distance` mm from every voxel centre of `true`.

    All of them if `true` is empty.
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial import KDTree

    total = int(found.sum())
    box = bounding_box(true)
    if not total or box is None:
        return total
    # whatever is outside the grown box is too far along one axis already
    margin = [math.ceil(distance / size) for size in spacing]
    grown = bounding_box(true, margin)
    assert grown is not None
    far = total - int(found[grown].sum())
    near = np.argwhere(found[grown] & ~true[grown]) + [part.start for part in grown]
    if len(near):
        # the nearest voxel of the class is one of its surface
        inner = true[box]
        surface = np.argwhere(inner & ~binary_erosion(inner)) + [part.start for part in box]
        sizes = np.asarray(spacing, dtype=np.float64)
        # the slack is for sums of rounded voxel sizes
        reached, _ = KDTree(surface * sizes).query(near * sizes, distance_upper_bound=distance + 1e-6)
        far += int(np.isinf(reached).sum())
    return far


@contextlib.contextmanager
def _without_own_warnings() -> Iterator[None]:
    """MONAI 1.6 calls itself with an argument that it deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        yield


def _as_tensors(
    true: Mask, found: Mask, spacing: Sequence[float], crop: bool
) -> tuple[Any, Any, list[float]]:
    """MONAI's (batch, class, ...) prediction and reference, and the voxel sizes."""
    import torch

    if crop:
        box = bounding_box(true | found, MARGIN)
        assert box is not None
        true, found = true[box], found[box]
    sizes = [float(size) for size in spacing]
    flat = next((axis for axis, n in enumerate(true.shape) if n == 1), None)
    if flat is not None:
        true, found = true.squeeze(flat), found.squeeze(flat)
        del sizes[flat]
    reference, predicted = (
        torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None] for mask in (true, found)
    )
    return predicted, reference, sizes
