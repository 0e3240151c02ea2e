"""A planned U-Net that knows where its patch lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_locctx.blocks import CoordConvStem, check_block, make_block, share_encodings
from nnunet_locctx.networks.inputs import LocationPyramid, check_input_shape, split_input
from nnunet_locctx.networks.whole import LogitsOfAnyResolution
from nnunet_locctx.places import LATE
from nnunet_locctx.types import Logits, NetworkInput

ARCHITECTURES = (PlainConvUNet, ResidualEncoderUNet)

DEEP_TOKENS = 128
"""Place ``encoder_deep``: the deepest encoder stage with at least this many tokens per patch."""

Site: TypeAlias = tuple[str, int]
"""A point of the network where blocks can sit: ``("encoder", 0)`` is behind the first encoder stage."""


@dataclass(frozen=True)
class Fitting:
    """One kind of block at one place.

    Attributes:
        block: A key of ``nnunet_locctx.blocks.BLOCKS``.
        place: One of ``nnunet_locctx.blocks.PLACES``.
        options: Options of the block.
    """

    block: str
    place: str
    options: Mapping[str, Any] = field(default_factory=dict)


class LocatedUNet(nn.Module):
    """Fits blocks into a planned network.

    Input channels are [image | location (R, A, S) | previous stage], the last only in a cascade. The planned
    network's encoder and decoder stay the modules they are, at the same names, so its weights go both ways;
    what the blocks add lies under ``location_blocks.``. In evaluation mode the location is continued into the
    border that nnU-Net pads with zeros around a volume smaller than the patch. NaN in a location channel says that the
    location is not known along that axis; where nothing is known, the network is the planned one.

    The blocks are made with a random state of their own: the generator is left as the planned network left it.

    Args:
        planned: PlainConvUNet or ResidualEncoderUNet (dynamic_network_architectures), 2D or 3D. It is not copied.
        image_channels: Channels in front of the location; further input channels of the planned network are the
            previous stage of a cascade.
        *fittings: What is fitted; where two share a place, in this order.
        patch_size: Voxels along each axis; needed for the place ``encoder_deep`` only.

    Raises:
        TypeError: If the planned network is of another class.
        ValueError: If the number of image channels, a block, a place or an option is not allowed.
    """

    def __init__(
        self,
        planned: nn.Module,
        image_channels: int,
        *fittings: Fitting,
        patch_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(planned, ARCHITECTURES):
            allowed = " or ".join(architecture.__name__ for architecture in ARCHITECTURES)
            raise TypeError(
                f"a location can be fitted to a {allowed}, got a {type(planned).__name__}; plan with one of these"
            )
        for fitting in fittings:
            check_block(fitting.block, fitting.place, dict(fitting.options))
        self.encoder: Any = planned.encoder
        self.decoder: Any = planned.decoder
        self.fittings = fittings
        self.image_channels = image_channels
        first = self._stem().convs[0].conv
        self.planned_channels: int = first.in_channels
        self.rank = len(first.kernel_size)
        if not 1 <= image_channels <= self.planned_channels:
            raise ValueError(
                f"image_channels must be 1 to {self.planned_channels}, the input channels of the planned network, "
                f"got {image_channels}"
            )
        self._blocks_at: dict[Site, list[int]] = {}
        blocks: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            for fitting in fittings:
                made: list[nn.Module] = []
                for site in self._sites(fitting, patch_size):
                    self._blocks_at.setdefault(site, []).append(len(blocks) + len(made))
                    made.append(
                        CoordConvStem(first, **fitting.options)
                        if site[0] == "stem"
                        else make_block(fitting.block, self._channels(site), self.rank, **fitting.options)
                    )
                share_encodings(made)
                blocks += made
        self.location_blocks = nn.ModuleList(blocks)
        self._twice = False
        self._all_lost = True
        # a buffer, so that another axis compiles no other network; it belongs to one training step
        self.register_buffer("lost", torch.ones(3, dtype=torch.bool), persistent=False)
        self.lost: Tensor

    def _stem(self) -> Any:
        """The stack of convolutions that the input enters first."""
        return (
            self.encoder.stages[0][-1]
            if isinstance(self.encoder.stages[0], nn.Sequential)
            else self.encoder.stem
        )

    def _sites(self, fitting: Fitting, patch_size: Sequence[int] | None) -> list[Site]:
        """Where the blocks of a fitting sit, in the order in which features pass them."""
        if fitting.block == "coordconv" and fitting.place == "input":
            return [("stem", 0)]  # within the first convolution rather than before it
        encoder = [("encoder", index) for index in range(len(self.encoder.stages))]
        decoder = [("decoder", index) for index in range(len(self.decoder.stages))]
        if fitting.place == "encoder_deep":
            return [encoder[self._deep_stage(patch_size)]]
        return {
            "input": [("input", 0)],
            "encoder_first": encoder[:1],
            "encoder": encoder,
            "bottleneck": encoder[-1:],
            "decoder": decoder,
            "decoder_inner": decoder[:-1],
            "decoder_last": decoder[-1:],
            "stages": encoder + decoder,
            "logits": [("logits", 0)],
        }[fitting.place]

    def _deep_stage(self, patch_size: Sequence[int] | None) -> int:
        if patch_size is None:
            raise ValueError("the place 'encoder_deep' depends on the patch: give patch_size")
        strides = np.cumprod([np.broadcast_to(stride, self.rank) for stride in self.encoder.strides], axis=0)
        tokens = np.prod(np.ceil(np.asarray(patch_size) / strides), axis=1)
        return max([index for index, count in enumerate(tokens) if count >= DEEP_TOKENS], default=0)

    def _channels(self, site: Site) -> int:
        """Channels of the features at a site."""
        kind, index = site
        encoder = list(self.encoder.output_channels)
        if kind == "input":
            return self.planned_channels
        if kind == "logits":
            return int(self.decoder.num_classes)
        return int((encoder if kind == "encoder" else encoder[-2::-1])[index])

    def answer_twice(self) -> None:
        """From now on, in training mode, outputs are followed by as many that go without some of the location
        (:meth:`lose`), from the same features.

        Raises:
            ValueError: If a place is not among ``nnunet_locctx.places.LATE``: the features would not be the same.
        """
        early = [fitting.place for fitting in self.fittings if fitting.place not in LATE]
        if early:
            raise ValueError(f"answering twice needs places among {', '.join(LATE)}, got {', '.join(early)}")
        self._twice = True

    def lose(self, axes: Sequence[bool]) -> None:
        """Sets which axes, of R, A and S, the second answer goes without; at first all."""
        self.lost.copy_(torch.as_tensor(axes))
        self._all_lost = all(axes)

    def forward(self, x: NetworkInput) -> Logits | list[LogitsOfAnyResolution]:
        """Logits for a patch.

        Args:
            x: (B, image + 3 + previous stage, *spatial).

        Returns:
            (B, classes, *spatial); with deep supervision a list, highest resolution first. Of a network that answers
            twice, in training mode, a list of both answers, one behind the other.

        Raises:
            ValueError: If `x` has another number of channels or axes.
        """
        previous_channels = self.planned_channels - self.image_channels
        check_input_shape(x, self.image_channels, previous_channels, self.rank)
        image, located = split_input(x, self.image_channels, previous_channels, self.training)
        return self._decode(self._encode(image, located), located)

    def _encode(self, features: Tensor, located: LocationPyramid) -> list[Tensor]:
        """Outputs of the encoder's stages, first stage first."""
        stages = list(self.encoder.stages)
        features = self._located(("input", 0), features, located)
        stem = getattr(self.encoder, "stem", None)
        outputs: list[Tensor] = []
        if ("stem", 0) in self._blocks_at:
            features = self._located_stem(features, located.full, located.known)
            if stem is None:  # the first stage is the stem
                outputs.append(self._located(("encoder", 0), features, located))
                features = outputs[0]
                stages = stages[1:]
        elif stem is not None:
            features = stem(features)
        for stage in stages:
            features = self._located(("encoder", len(outputs)), stage(features), located)
            outputs.append(features)
        return outputs

    def _located_stem(self, image: Tensor, location: Tensor, known: Tensor | None = None) -> Tensor:
        """The stem, its first convolution over [image | location]."""
        first, *others = self._stem().convs
        conv, *rest = list(first.all_modules)
        features = conv(image)
        for index in self._blocks_at[("stem", 0)]:
            features = features + self.location_blocks[index](location, known)
        for module in (*rest, *others):
            features = module(features)
        return features

    def _decode(self, skips: list[Tensor], located: LocationPyramid) -> Tensor | list[Tensor]:
        decoder = self.decoder
        last = len(decoder.stages) - 1
        locations: list[LocationPyramid | None] = [located]
        if self._twice and self.training:
            # without any axis the blocks change nothing, and need not be asked
            locations.append(None if self._all_lost else located.without(self.lost))
        outputs: list[list[Tensor]] = [[] for _ in locations]
        features = skips[-1]
        for index, stage in enumerate(decoder.stages):
            features = stage(torch.cat([decoder.transpconvs[index](features), skips[-(index + 2)]], dim=1))
            if index < last:
                features = self._located(("decoder", index), features, located)
            if not (decoder.deep_supervision or index == last):
                continue
            layer = decoder.seg_layers[index if decoder.deep_supervision else -1]
            for location, logits in zip(locations, outputs, strict=True):
                seen = self._located(("decoder", index), features, location) if index == last else features
                logits.append(self._located(("logits", 0), layer(seen), location))
        if len(locations) == 1 and not decoder.deep_supervision:
            return outputs[0][0]
        return [output for logits in outputs for output in reversed(logits)]

    def _located(self, site: Site, features: Tensor, located: LocationPyramid | None) -> Tensor:
        """`features` through the blocks at a site; None: nothing is known."""
        if located is None:
            return features
        for index in self._blocks_at.get(site, ()):
            block = self.location_blocks[index]
            sampling = str(getattr(block, "sampling", "centres"))
            features = block(features, located.at(features.shape[2:], sampling), located.known)
        return features
