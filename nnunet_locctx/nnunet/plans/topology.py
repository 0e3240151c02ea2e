"""Pooling that a patch size and a voxel spacing allow, by nnU-Net's own rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST_FEATURE_MAP = 4
"""nnU-Net pools an axis as long as the bottleneck keeps this many voxels along it."""

FEWEST_STAGES = 3
"""nnU-Net's deep supervision gives the lowest resolution the weight 0; with two stages the loss would be NaN."""

LARGEST_FEATURES = {2: 512, 3: 320}
"""nnU-Net's upper bound of feature maps, by spatial rank."""

RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
"""Blocks per stage of nnU-Net's residual encoder presets; deeper stages repeat the last number."""


@dataclass(frozen=True)
class Topology:
    """Strides and kernels of a U-Net, one entry per stage; axis order of the plans.

    Attributes:
        strides: Stride of each stage's first convolution, all ones for the first stage.
        kernels: Kernel size of each stage.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, arch_kwargs: Mapping[str, Any]) -> "Topology":
        """The topology in the plans' arguments of a U-Net."""
        return cls(
            tuple(tuple(map(int, row)) for row in arch_kwargs["strides"]),
            tuple(tuple(map(int, row)) for row in arch_kwargs["kernel_sizes"]),
        )

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Patch sizes must be multiples of this."""
        return tuple(int(n) for n in np.prod(self.strides, axis=0))

    @property
    def trainable(self) -> bool:
        """Whether nnU-Net can train it."""
        return len(self.strides) >= FEWEST_STAGES

    def fits(self, patch_size: Sequence[int]) -> bool:
        """Whether the patch is a multiple of the total stride."""
        return all(n % stride == 0 for n, stride in zip(patch_size, self.total_stride, strict=True))


def plan_topology(spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
    """The topology nnU-Net plans for a patch; some sizes are not divisible by it (:func:`allowed_sizes`)."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, _, _ = get_pool_and_conv_props(spacing, patch_size, SMALLEST_FEATURE_MAP, 999999)
    return Topology(
        tuple(tuple(map(int, row)) for row in strides), tuple(tuple(map(int, row)) for row in kernels)
    )


def allowed_sizes(
    spacing: Sequence[float], patch_size: Sequence[int], fixed: Topology | None = None
) -> list[list[int]]:
    """The nearest patch sizes below and above that fit their own topology, the nearer one first.

    Args:
        fixed: Use this topology whatever the size, instead of the one nnU-Net plans for each size.
    """
    sizes: list[list[int]] = []
    for step in (1, -1):
        size = [int(n) for n in patch_size]
        while min(size) > 0:
            # another size may have another topology, so axes go one voxel at a time
            topology = fixed or plan_topology(spacing, size)
            if topology.fits(size):
                if size not in sizes and topology.trainable:
                    sizes.append(size)
                break
            size = [
                n + step * (n % stride != 0) for n, stride in zip(size, topology.total_stride, strict=True)
            ]
    return sorted(sizes, key=lambda size: sum(abs(a - b) for a, b in zip(size, patch_size, strict=True)))


def fit_architecture(architecture: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """A planned U-Net's ``architecture`` with another topology; numbers per stage are cut or continued.

    Args:
        architecture: The plans' entry, with ``strides`` and ``kernel_sizes`` among its ``arch_kwargs``; not changed.
    """
    kwargs = dict(architecture["arch_kwargs"])
    stages, rank = len(topology.strides), len(topology.strides[0])
    kwargs["n_stages"] = stages
    kwargs["strides"] = [list(row) for row in topology.strides]
    kwargs["kernel_sizes"] = [list(row) for row in topology.kernels]
    if isinstance(kwargs.get("features_per_stage"), list | tuple):
        features = list(kwargs["features_per_stage"])
        cap = max(LARGEST_FEATURES[rank], *features)
        while len(features) < stages:
            features.append(min(2 * features[-1], cap))
        kwargs["features_per_stage"] = features[:stages]
    for key, length in (
        ("n_conv_per_stage", stages),
        ("n_blocks_per_stage", stages),
        ("n_conv_per_stage_decoder", stages - 1),
    ):
        if isinstance(kwargs.get(key), list | tuple):
            kwargs[key] = _continue(list(kwargs[key]), length)
    return {**architecture, "arch_kwargs": kwargs}


def _continue(numbers: list[int], length: int) -> list[int]:
    usual = RESIDUAL_BLOCKS[: len(numbers)]
    if len(numbers) > 1 and tuple(numbers) == usual:
        numbers = [*RESIDUAL_BLOCKS]
    return [*numbers, *[numbers[-1]] * max(0, length - len(numbers))][:length]
