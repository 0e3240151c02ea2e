"""CoordConv: coordinates beside the features, mixed by a convolution."""

import math
from typing import Any

import torch
from torch import nn

from nnunet_locctx.blocks.checks import check_channels, check_flag, check_input, check_integer
from nnunet_locctx.blocks.encoding import make_fixed_encoding
from nnunet_locctx.blocks.resolution import FeaturesOfStage, coarser, resize_location, spread
from nnunet_locctx.types import Features, Location

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

SLOPE = 0.01
"""Of the leaky ReLU that nnU-Net's He initialisation assumes."""


class CoordConv(nn.Module):
    """1x1 mix of features and encoded location (after Liu et al., 2018).

    ``features + A features + B encoding(location) + b`` with A, B and b zero at first: a 1x1 convolution over
    the concatenation of both, initialised as the identity on the features, without the copy that
    concatenating costs.

    Args:
        channels: Feature channels C.
        rank: Spatial axes, 2 or 3.
        encoding: ``"identity"`` or ``"frequency"``.
        bands: Bands of the frequency encoding.
        base: Angular frequency of its lowest band.
        band_limit: Whether bands too fine for the stage are faded out.
        stride: Computes the location's part for every `stride`-th voxel along each axis, at its exact centre, and
            linearly between: it varies slowly, and computing it is what the block costs. 1: everywhere.
        zero_init: Starts as the identity. False: as published, an ordinary convolution over features and encoded
            location, all its input channels drawn alike (He et al. 2015, as nnU-Net draws its convolutions).

    Raises:
        ValueError: If an option is not allowed.
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        encoding: str = "frequency",
        bands: int = 6,
        base: float = math.pi,
        band_limit: bool = True,
        stride: int = 2,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        check_channels(channels, rank)
        check_integer("stride", stride, 1)
        check_flag("zero_init", zero_init)
        self.channels, self.rank, self.stride = channels, rank, stride
        self.encoding = make_fixed_encoding(encoding, bands, base, band_limit)
        self.mix_features = CONV[rank](channels, channels, 1)
        self.mix_location = CONV[rank](self.encoding.channels, channels, 1, bias=False)
        for parameter in (*self.mix_features.parameters(), *self.mix_location.parameters()):
            nn.init.zeros_(parameter)
        if not zero_init:
            with torch.no_grad():
                both = self.mix_features.weight.new_empty(channels, channels + self.encoding.channels)
                nn.init.kaiming_normal_(both, SLOPE)
                mixed = both[:, :channels] - torch.eye(channels)  # the features are added as they are
                self.mix_features.weight.copy_(mixed.view_as(self.mix_features.weight))
                self.mix_location.weight.copy_(both[:, channels:].reshape(self.mix_location.weight.shape))

    def forward(self, features: Features, location: Location) -> Features:
        """(B, C, *spatial), (B, 3, *spatial) -> (B, C, *spatial)."""
        check_input(features, location, self.channels, self.rank)
        size = features.shape[2:]
        located = self.mix_location(self.encoding(resize_location(location, coarser(size, self.stride))))
        return features + self.mix_features(features) + spread(located, size)


class CoordConvStem(nn.Module):
    """What the location adds to the first convolution of a network: CoordConv as published, at the input.

    A convolution over [image | encoded location] is the sum of a convolution over the image, which the
    planned network has, and one over the location, which is this module: same kernel, stride and padding, no
    bias.

    Args:
        first: The planned network's first convolution.
        encoding: ``"identity"`` or ``"frequency"``.
        bands: Bands of the frequency encoding.
        base: Angular frequency of its lowest band.
        band_limit: Whether bands too fine for the stage are faded out.
        zero_init: Starts at zero: the network is the planned one. False: as published, drawn like the image's channels,
            from a normal distribution with the standard deviation of the first convolution's weights.

    Raises:
        ValueError: If an option is not allowed.
    """

    def __init__(
        self,
        first: nn.Conv2d | nn.Conv3d,
        *,
        encoding: str = "identity",
        bands: int = 6,
        base: float = math.pi,
        band_limit: bool = True,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        check_flag("zero_init", zero_init)
        self.encoding = make_fixed_encoding(encoding, bands, base, band_limit)
        geometry: dict[str, Any] = {
            name: getattr(first, name) for name in ("kernel_size", "stride", "padding", "dilation")
        }
        conv = CONV[len(first.kernel_size)]
        self.conv = conv(self.encoding.channels, first.out_channels, bias=False, **geometry)
        with torch.no_grad():
            if zero_init:
                self.conv.weight.zero_()
            else:
                self.conv.weight.normal_().mul_(first.weight.std())

    def forward(self, location: Location) -> FeaturesOfStage:
        """(B, 3, *spatial) -> (B, channels of the first convolution, *spatial / stride)."""
        return self.conv(self.encoding(location))
