"""Global positional encodings of a network of its own, one for each of several places."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks import GlobalPositionalEncoding, make_positional_encodings
from nnunet_locctx.networks.inputs import LocationPyramid


class EncodedLocation:
    """Adds the encodings of one forward pass; a resolution is encoded once for all places that have it.

    Args:
        encodings: As :func:`~nnunet_locctx.blocks.make_positional_encodings` makes them, all with the same options;
            empty for a network without location.
        location: None for a network without location.
        shared: False: each place has a learned encoding of its own, and none is used twice.
    """

    def __init__(
        self, encodings: nn.ModuleList, location: LocationPyramid | None, shared: bool = True
    ) -> None:
        self.encodings, self.location, self.shared = encodings, location, shared
        self._sizes: dict[tuple[int, ...], Tensor] = {}

    def at(self, place: int, size: torch.Size | tuple[int, ...]) -> Tensor:
        """What is added at a place: (B, C, *size). Only in a network with location.

        Args:
            place: Which of the encodings.
            size: Tokens along each axis, which together cover the patch.
        """
        assert self.location is not None
        block = cast(GlobalPositionalEncoding, self.encodings[place])
        size = tuple(size)
        encoded = self._sizes.get(size) if self.shared else None
        if encoded is None:
            encoded = self._sizes[size] = block.encoding(self.location.at(size))
        return cast(Tensor, block.project(encoded))

    def add(self, place: int, features: Tensor) -> Tensor:
        """(B, C, *stage) -> (B, C, *stage); unchanged in a network without location.

        Args:
            place: Which of the encodings.
            features: Their tokens together cover the patch.
        """
        return features if self.location is None else features + self.at(place, features.shape[2:])

    def join(self, up_block: Any, place: int, features: Tensor, skip: Tensor) -> Tensor:
        """What MONAI's UnetrUpBlock does, the encoding added between its concatenation and its convolutions.

        Args:
            up_block: A ``monai.networks.blocks.UnetrUpBlock``.
            place: Which of the encodings.
            features: (B, C, *coarser stage).
            skip: (B, C', *stage).
        """
        both = torch.cat((up_block.transp_conv(features), skip), dim=1)
        joined: Tensor = up_block.conv_block(self.add(place, both))
        return joined


def make_encodings(
    channels: list[int], rank: int, *, encoding: str | None, shared_table: bool = True, **options: Any
) -> nn.ModuleList:
    """The encodings of a network: made with a random state of their own, so that its other weights are those of the
    network without location.

    Args:
        channels: Feature channels of each place.
        rank: Spatial axes, 2 or 3.
        encoding: None: a network without location, which has no encodings.
        shared_table: Whether all places share one hash table.
        **options: As for :class:`~nnunet_locctx.blocks.GlobalPositionalEncoding`.

    Raises:
        ValueError: If an option is not allowed.
    """
    if encoding is None:
        return nn.ModuleList()
    with torch.random.fork_rng(devices=[]):
        if shared_table:
            return make_positional_encodings(channels, rank, encoding=encoding, **options)
        blocks = [GlobalPositionalEncoding(count, rank, encoding=encoding, **options) for count in channels]
        return nn.ModuleList(blocks)
