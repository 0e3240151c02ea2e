"""Global positional encodings of a network of its own, one for each of several places."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks import GlobalPositionalEncoding, make_positional_encodings
from nnunet_locctx.blocks.gpe import PUBLISHED, PUBLISHED_HASH
from nnunet_locctx.blocks.resolution import nearest
from nnunet_locctx.networks.inputs import LocationPyramid


class EncodedLocation:
    """Adds the encodings of one forward pass; a resolution is encoded once for all places that have it.

    Args:
        encodings: As :func:`~nnunet_locctx.blocks.make_positional_encodings` makes them, all with the same options;
            empty for a network without location.
        location: None for a network without location.
    """

    def __init__(self, encodings: nn.ModuleList, location: LocationPyramid | None) -> None:
        self.encodings, self.location = encodings, location
        self._sizes: dict[tuple[tuple[int, ...], ...], Tensor] = {}

    def at(
        self,
        place: int,
        size: torch.Size | tuple[int, ...],
        through: torch.Size | tuple[int, ...] | None = None,
    ) -> Tensor:
        """The encoding that is added at a place: (B, C, *size). Only for a network with location.

        Args:
            place: Which of the encodings.
            size: Tokens along each axis, which together cover the patch.
            through: With the published sampling: a coarser stage whose tokens' location these tokens get.
        """
        assert self.location is not None
        block = cast(GlobalPositionalEncoding, self.encodings[place])
        source = tuple(size if through is None or block.sampling == "centres" else through)
        key = (tuple(size), source)
        encoded = None if block.own_table else self._sizes.get(key)
        if encoded is None:
            location = nearest(self.location.at(source, block.sampling), key[0])
            encoded = self._sizes[key] = block.encode(location, self.location.known)
        return block.projected(encoded, self.location.known)

    def add(self, place: int, features: Tensor) -> Tensor:
        """(B, C, *stage) -> (B, C, *stage); unchanged in a network without location.

        Args:
            place: Which of the encodings.
            features: Their tokens together cover the patch.
        """
        return features if self.location is None else features + self.at(place, features.shape[2:])

    def join(self, up_block: Any, place: int, features: Tensor, skip: Tensor) -> Tensor:
        """Runs MONAI's UnetrUpBlock, and adds the encoding between its concatenation and its convolutions.

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
    channels: list[int], rank: int, *, encoding: str | None = None, **options: Any
) -> nn.ModuleList:
    """The encodings of a network: made with a random state of their own, so that its other weights are those of the
    network without location.

    Args:
        channels: Feature channels of each place.
        rank: Spatial axes, 2 or 3.
        encoding: None: a network without location, which has no encodings.
        **options: Others of :class:`~nnunet_locctx.blocks.encoding.GlobalEncoding`.

    Raises:
        ValueError: If an option is not allowed.
    """
    if encoding is None:
        return nn.ModuleList()
    with torch.random.fork_rng(devices=[]):
        return make_positional_encodings(channels, rank, encoding=encoding, **options)


def published_encoding(options: Mapping[str, Any]) -> dict[str, Any]:
    """A network's options with the encoding that the code of Le and Le computes, unless they name another;
    unchanged for a network without location."""
    if options.get("encoding") is None:
        return dict(options)
    filled = {**PUBLISHED, **options}
    if options["encoding"] == "hash":
        filled["hash"] = {**PUBLISHED_HASH, **(options.get("hash") or {})}
    return filled
