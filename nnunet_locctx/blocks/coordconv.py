"""CoordConv: coordinates beside the features, mixed by a convolution."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from nnunet_locctx.blocks.checks import check_channels, check_input
from nnunet_locctx.blocks.encoding import Encoding, flags_for
from nnunet_locctx.blocks.resolution import FeaturesOfStage, coarser, resize_location, spread
from nnunet_locctx.blocks.unknown import if_any_known
from nnunet_locctx.types import Features, Known, Location
from nnunet_locctx.values import check_flag, check_integer

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

SLOPE = 0.01
"""Slope of the leaky ReLU that nnU-Net's He initialisation assumes."""


class CoordConv(nn.Module):
    """1x1 mix of features and encoded location (after Liu et al., 2018).

    ``features + A features + B encoding(location) + b`` with A, B and b zero at first: a 1x1 convolution over
    the concatenation of both, initialised as the identity on the features, without the copy that
    concatenating costs.

    Args:
        channels: Feature channels C.
        rank: Spatial axes, 2 or 3.
        stride: Computes the location's part for every `stride`-th voxel along each axis, at its exact centre, and
            linearly between: it varies slowly, and computing it is what the block costs. 1: everywhere.
        zero_init: Starts as the identity. False: as published, an ordinary convolution over features and encoded
            location, all its input channels drawn alike (He et al. 2015, as nnU-Net draws its convolutions).
        **encoding: Options of :class:`~nnunet_locctx.blocks.encoding.Encoding`.

    Raises:
        ValueError: If an option is not allowed.
    """

    encoding_defaults: ClassVar[Encoding] = Encoding()

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        stride: int = 2,
        zero_init: bool = True,
        **encoding: Any,
    ) -> None:
        super().__init__()
        check_channels(channels, rank)
        check_integer("stride", stride, 1)
        check_flag("zero_init", zero_init)
        self.channels, self.rank, self.stride = channels, rank, stride
        self.encoding = replace(self.encoding_defaults, **encoding).make()
        self.mix_features = CONV[rank](channels, channels, 1)
        self.mix_location = CONV[rank](self.encoding.channels, channels, 1, bias=False)
        for parameter in (*self.mix_features.parameters(), *self.mix_location.parameters()):
            nn.init.zeros_(parameter)
        self.flags = flags_for(self.encoding, zero_init, channels, rank)
        if not zero_init:
            with torch.no_grad():
                both = self.mix_features.weight.new_empty(channels, channels + self.encoding.channels)
                nn.init.kaiming_normal_(both, SLOPE)
                mixed = both[:, :channels] - torch.eye(channels)  # the features are added as they are
                self.mix_features.weight.copy_(mixed.view_as(self.mix_features.weight))
                self.mix_location.weight.copy_(both[:, channels:].reshape(self.mix_location.weight.shape))

    def forward(self, features: Features, location: Location, known: Known | None = None) -> Features:
        """(B, C, *spatial), (B, 3, *spatial), (B, 3) -> (B, C, *spatial)."""
        check_input(features, location, known, self.channels, self.rank)
        size = features.shape[2:]
        located = self.mix_location(
            self.encoding(resize_location(location, coarser(size, self.stride)), known)
        )
        if self.flags is not None:
            located = self.flags(located, known)
        return features + if_any_known(self.mix_features(features) + spread(located, size), known)


class CoordConvStem(nn.Module):
    """What the location adds to the first convolution of a network: CoordConv as published, at the input.

    A convolution over [image | encoded location] is the sum of a convolution over the image, which the
    planned network has, and one over the location, which is this module: same kernel, stride and padding, no
    bias.

    Args:
        first: The planned network's first convolution.
        zero_init: Starts at zero: the network is the planned one. False: as published, drawn like the image's channels,
            from a normal distribution with the standard deviation of the first convolution's weights.
        **encoding: Options of :class:`~nnunet_locctx.blocks.encoding.Encoding`.

    Raises:
        ValueError: If an option is not allowed.
    """

    encoding_defaults: ClassVar[Encoding] = Encoding("identity")

    def __init__(
        self,
        first: nn.Conv2d | nn.Conv3d,
        *,
        zero_init: bool = True,
        **encoding: Any,
    ) -> None:
        super().__init__()
        check_flag("zero_init", zero_init)
        self.encoding = replace(self.encoding_defaults, **encoding).make()
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

    def forward(self, location: Location, known: Known | None = None) -> FeaturesOfStage:
        """(B, 3, *spatial), (B, 3) -> (B, channels of the first convolution, *spatial / stride); 0 where nothing is
        known."""
        return self.conv(self.encoding(location, known))
