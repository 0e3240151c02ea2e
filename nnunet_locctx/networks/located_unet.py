"""A planned U-Net that knows where its patch lies."""

from typing import Any, TypeAlias

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from jaxtyping import Float
from torch import Tensor, nn

from nnunet_locctx.blocks import CoordConvStem, check_block, make_block, resize_location
from nnunet_locctx.location import LOCATION_CHANNELS, extrapolate_padding
from nnunet_locctx.types import Logits, NetworkInput

LogitsOfAnyResolution: TypeAlias = Float[Tensor, "batch classes ..."]

ARCHITECTURES = (PlainConvUNet, ResidualEncoderUNet)


class LocatedUNet(nn.Module):
    """Fits one kind of block at one place of a planned network.

    Input channels are [image | location (R, A, S) | previous stage], the last only in a cascade. The planned
    network's encoder and decoder stay the modules they are, at the same names, so its weights go both ways;
    what the blocks add lies under ``location_blocks.``. In evaluation mode the location is continued into the
    border that nnU-Net pads with zeros around a volume smaller than the patch.

    The blocks are made with a random state of their own: the generator is left as the planned network left it.

    Args:
        planned: PlainConvUNet or ResidualEncoderUNet (dynamic_network_architectures), 2D or 3D. It is not copied.
        image_channels: Channels in front of the location; further input channels of the planned network are the
            previous stage of a cascade.
        block: A key of ``nnunet_locctx.blocks.BLOCKS``.
        place: One of ``nnunet_locctx.blocks.PLACES``.
        **options: Options of the block.

    Raises:
        TypeError: If the planned network is of another class.
        ValueError: If the number of image channels, the block, the place or an option is not allowed.
    """

    def __init__(
        self, planned: nn.Module, image_channels: int, block: str, place: str, **options: Any
    ) -> None:
        super().__init__()
        if not isinstance(planned, ARCHITECTURES):
            allowed = " or ".join(architecture.__name__ for architecture in ARCHITECTURES)
            raise TypeError(
                f"a location can be fitted to a {allowed}, got a {type(planned).__name__}; plan with one of these"
            )
        check_block(block, place, options)
        self.encoder: Any = planned.encoder
        self.decoder: Any = planned.decoder
        self.block, self.place = block, place
        self.image_channels = image_channels
        stem = self._stem()
        first = stem.convs[0].conv
        self.planned_channels: int = first.in_channels
        self.rank = len(first.kernel_size)
        if not 1 <= image_channels <= self.planned_channels:
            raise ValueError(
                f"image_channels must be 1 to {self.planned_channels}, the input channels of the planned network, "
                f"got {image_channels}"
            )
        with torch.random.fork_rng(devices=[]):
            blocks = [CoordConvStem(first, **options)] if self._in_stem else self._make_blocks(options)
        self.location_blocks = nn.ModuleList(blocks)

    @property
    def _in_stem(self) -> bool:
        """Whether the location enters within the first convolution rather than before it."""
        return self.block == "coordconv" and self.place == "input"

    def _stem(self) -> Any:
        """The stack of convolutions that the input enters first."""
        return (
            self.encoder.stages[0][-1]
            if isinstance(self.encoder.stages[0], nn.Sequential)
            else self.encoder.stem
        )

    def _make_blocks(self, options: dict[str, Any]) -> list[nn.Module]:
        encoder = list(self.encoder.output_channels)
        decoder = encoder[-2::-1]
        channels = {
            "input": [self.planned_channels],
            "encoder_first": encoder[:1],
            "encoder": encoder,
            "bottleneck": encoder[-1:],
            "decoder": decoder,
            "decoder_last": decoder[-1:],
            "logits": [self.decoder.num_classes],
        }[self.place]
        return [make_block(self.block, count, self.rank, **options) for count in channels]

    def forward(self, x: NetworkInput) -> Logits | list[LogitsOfAnyResolution]:
        """Logits for a patch.

        Args:
            x: (B, image + 3 + previous stage, *spatial).

        Returns:
            (B, classes, *spatial); with deep supervision a list, highest resolution first.

        Raises:
            ValueError: If `x` has another number of channels or axes.
        """
        self._check(x)
        image, location, previous = x.split(
            (self.image_channels, LOCATION_CHANNELS, self.planned_channels - self.image_channels), dim=1
        )
        if previous.shape[1]:
            image = torch.cat([image, previous], dim=1)
        if not self.training:
            location = extrapolate_padding(location)
        located = LocationPyramid(location)
        return self._decode(self._encode(image, located), located)

    def _encode(self, features: Tensor, located: "LocationPyramid") -> list[Tensor]:
        """Outputs of the encoder's stages, first stage first."""
        stages = list(self.encoder.stages)
        if self.place == "input" and not self._in_stem:
            features = self._located(0, features, located)
        stem = getattr(self.encoder, "stem", None)
        if self._in_stem:
            features = self._located_stem(features, located.full)
            if stem is None:  # the first stage is the stem
                outputs = [features]
                stages = stages[1:]
            else:
                outputs = []
        else:
            outputs = []
            if stem is not None:
                features = stem(features)
        for stage in stages:
            features = stage(features)
            index = len(outputs)
            last = index == len(self.encoder.stages) - 1
            if self.place == "encoder":
                features = self._located(index, features, located)
            elif (self.place == "encoder_first" and index == 0) or (self.place == "bottleneck" and last):
                features = self._located(0, features, located)
            outputs.append(features)
        return outputs

    def _located_stem(self, image: Tensor, location: Tensor) -> Tensor:
        """The stem, its first convolution over [image | location]."""
        first, *others = self._stem().convs
        conv, *rest = list(first.all_modules)
        features = conv(image) + self.location_blocks[0](location)
        for module in (*rest, *others):
            features = module(features)
        return features

    def _decode(self, skips: list[Tensor], located: "LocationPyramid") -> Tensor | list[Tensor]:
        decoder = self.decoder
        features = skips[-1]
        logits: list[Tensor] = []
        last = len(decoder.stages) - 1
        for index, stage in enumerate(decoder.stages):
            features = stage(torch.cat([decoder.transpconvs[index](features), skips[-(index + 2)]], dim=1))
            if self.place == "decoder":
                features = self._located(index, features, located)
            elif self.place == "decoder_last" and index == last:
                features = self._located(0, features, located)
            if decoder.deep_supervision or index == last:
                output = decoder.seg_layers[index if decoder.deep_supervision else -1](features)
                logits.append(self._located(0, output, located) if self.place == "logits" else output)
        return logits[::-1] if decoder.deep_supervision else logits[0]

    def _located(self, index: int, features: Tensor, located: "LocationPyramid") -> Tensor:
        return self.location_blocks[index](features, located.at(features.shape[2:]))

    def _check(self, x: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        expected = self.planned_channels + LOCATION_CHANNELS
        if x.dim() != self.rank + 2 or x.shape[1] != expected:
            previous = self.planned_channels - self.image_channels
            parts = f"{self.image_channels} image + {LOCATION_CHANNELS} location" + (
                f" + {previous} previous stage" if previous else ""
            )
            raise ValueError(
                f"input must have {expected} channels ({parts}) and {self.rank} spatial axes, "
                f"got shape {tuple(x.shape)}"
            )


class LocationPyramid:
    """The location of one forward pass at the sizes asked for, each computed once."""

    def __init__(self, full: Tensor) -> None:
        self.full = full
        self._sizes: dict[tuple[int, ...], Tensor] = {}

    def at(self, size: torch.Size) -> Tensor:
        """(B, 3, *size)."""
        key = tuple(size)
        if key not in self._sizes:
            self._sizes[key] = resize_location(self.full, key)
        return self._sizes[key]
