"""A small fully convolutional network from a scan to coarse anatomical coordinates."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_CHANNELS = 2
"""Intensity from -1 to 1, 0 where nothing is known, and 1 where something is known."""

STRIDE = 4
"""Voxels of the input along each axis for one cell of the output."""


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each cell, so that the result does not depend on the field of view."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, a, b, c) -> the same shape."""
        return self.norm(features.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Norm, 3^3 convolution, GELU, 1^3 convolution, added to the input.

    Dense convolutions: at these widths (32 channels of 16 x 12 x 16 cells, batch 8, one core) they are not slower on a
    CPU than depthwise ones in the default memory layout (32 against 47 ms, backward) and mix channels as well; in
    channels-last, which the network uses, depthwise ones are faster (15 against 25 ms).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.spatial = nn.Conv3d(width, width, 3, padding=1)
        self.mix = nn.Conv3d(width, width, 1)
        nn.init.zeros_(self.mix.weight)  # every block starts as the identity
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, a, b, c) -> the same shape."""
        return features + self.mix(F.gelu(self.spatial(self.norm(features))))


class EmbeddingNetwork(nn.Module):
    """A feature pyramid: halved level by level, then doubled and added to the level before.

    Source: the pyramid of Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291), with
    other blocks and a thirtieth of its parameters. The output is linear: a sigmoid would saturate on scans longer than
    those of the training.

    Zeros beyond the input's faces mean "nothing known", as they do in its second channel, so a crop of a scan looks
    like a scan of that field of view.

    Args:
        widths: Channels of each level, finest first; cells of level ``l`` have ``STRIDE * 2**l`` voxels a side.
        depths: Residual blocks of each level on the way down; on the way up there is one a level.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 48, 64, 64), depths: Sequence[int] = (1, 2, 2, 2)
    ) -> None:
        super().__init__()
        self.stem = nn.Conv3d(INPUT_CHANNELS, widths[0], STRIDE, stride=STRIDE)
        self.down = nn.ModuleList(
            nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
            for width, depth in zip(widths, depths, strict=True)
        )
        steps = list(itertools.pairwise(widths))
        self.coarser = nn.ModuleList(
            nn.Sequential(ChannelNorm(fine), nn.Conv3d(fine, coarse, 2, stride=2)) for fine, coarse in steps
        )
        self.finer = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(ResidualBlock(width) for width in widths[:-1])
        self.head = nn.Sequential(ChannelNorm(widths[0]), nn.Conv3d(widths[0], 3, 1))

    @property
    def total_stride(self) -> int:
        """Voxels a side of the coarsest level's cells."""
        return STRIDE * 2 ** len(self.coarser)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, 2, a, b, c) -> (B, 3, ceil(a / 4), ceil(b / 4), ceil(c / 4)) embeddings of the cells' centres.

        Cell ``i`` spans the voxels ``4 i`` to ``4 i + 3``; its centre is at index ``4 i + 1.5``.
        """
        features = self.stem(_padded(volume, STRIDE).contiguous(memory_format=torch.channels_last_3d))
        levels = []
        for blocks, coarser in zip(
            self.down, self.coarser, strict=False
        ):  # the coarsest level has none to follow
            features = blocks(features)
            levels.append(features)
            features = coarser(_padded(features, 2))
        features = self.down[-1](features)
        for level in reversed(range(len(levels))):
            skip = levels[level]
            doubled = F.interpolate(
                self.finer[level](features), scale_factor=2, mode="trilinear", align_corners=False
            )
            a, b, c = skip.shape[2:]
            features = self.up[level](skip + doubled[:, :, :a, :b, :c])
        return self.head(features)


def _padded(volume: Tensor, multiple: int) -> Tensor:
    """With zeros at the far end of each axis, so that its size is a multiple."""
    missing = [-n % multiple for n in volume.shape[2:]]
    if not any(missing):
        return volume
    return F.pad(volume, [amount for n in reversed(missing) for amount in (0, n)])
