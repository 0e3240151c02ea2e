"""Global positional encoding: an encoded location, projected and added."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from nnunet_locctx.blocks.checks import check_channels, check_input
from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.encoding import GlobalEncoding, flags_for
from nnunet_locctx.blocks.hash_encoding import HashEncoding
from nnunet_locctx.blocks.resolution import coarser, resize_location, spread
from nnunet_locctx.blocks.unknown import if_any_known
from nnunet_locctx.types import Features, Known, Location
from nnunet_locctx.values import check_integer

PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {"band_limit": False, "sampling": "published", "shared_table": False, "zero_init": False}
)
"""Options with which the encoding is that of the code of Le and Le; for ``"hash"`` also :data:`PUBLISHED_HASH`."""

PUBLISHED_HASH: Mapping[str, Any] = MappingProxyType({"gain": 1.0})
"""Likewise, options of the hash encoding."""


class GlobalPositionalEncoding(nn.Module):
    """``features + conv1x1(encoding(location))`` (Le and Le, "Global Positional Encoding and Its Application in Medical
    Image Segmentation", MIWAI 2025).

    Differs from the published code (QuyLe-Minh/P_network) where that is wrong: the encoding is computed at the token
    centres of the stage it is added to, not computed at full resolution and decimated, and bands too fine for the stage
    are faded out. With the options :data:`PUBLISHED` it is what that code computes, up to the order of the axes: there
    the array's, here R, A, S.

    Args:
        channels: Feature channels C.
        rank: Spatial axes, 2 or 3.
        stride: Computes the encoding for every `stride`-th voxel along each axis, at its exact centre, and linearly
            between. 1: everywhere.
        **encoding: Options of :class:`~nnunet_locctx.blocks.encoding.GlobalEncoding`.

    Raises:
        ValueError: If an option is not allowed.
    """

    encoding_defaults: ClassVar[GlobalEncoding] = GlobalEncoding()

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        stride: int = 1,
        **encoding: Any,
    ) -> None:
        super().__init__()
        check_channels(channels, rank)
        check_integer("stride", stride, 1)
        options = replace(self.encoding_defaults, **encoding)
        sampling = options.sampling
        if sampling == "published" and stride != 1:
            raise ValueError(f"sampling 'published' goes with stride 1, got stride {stride}")
        self.channels, self.rank, self.stride, self.sampling = channels, rank, stride, sampling
        self.encoding = options.make()
        learned = isinstance(self.encoding, HashEncoding)
        self.own_table = learned and not options.shared_table
        self.origin = 0.5 if sampling == "published" and not learned else 0.0
        self.project = CONV[rank](self.encoding.channels, channels, 1)
        self.flags = flags_for(self.encoding, options.zero_init, channels, rank)
        if options.zero_init:
            if isinstance(self.encoding, HashEncoding):
                nn.init.zeros_(self.encoding.table)
            else:
                nn.init.zeros_(self.project.weight)
            assert self.project.bias is not None
            nn.init.zeros_(self.project.bias)

    def forward(self, features: Features, location: Location, known: Known | None = None) -> Features:
        """(B, C, *spatial), (B, 3, *spatial), (B, 3) -> (B, C, *spatial)."""
        check_input(features, location, known, self.channels, self.rank)
        size = features.shape[2:]
        encoded = self.encode(resize_location(location, coarser(size, self.stride)), known)
        return features + spread(self.projected(encoded, known), size)

    def encode(self, location: Location, known: Known | None = None) -> Features:
        """What is projected: (B, 3, *spatial), (B, 3) -> (B, channels of the encoding, *spatial)."""
        encoded: Features = self.encoding(location + self.origin if self.origin else location, known)
        return encoded

    def projected(self, encoded: Features, known: Known | None = None) -> Features:
        """What is added: (B, channels of the encoding, *spatial), (B, 3) -> (B, C, *spatial)."""
        added: Features = self.project(encoded)
        return if_any_known(added if self.flags is None else self.flags(added, known), known)


def share_encodings(blocks: list[nn.Module]) -> None:
    """Lets blocks use the first one's encoding where it has parameters: one hash table for all stages. Blocks made
    with ``shared_table=False`` keep their own.

    Raises:
        ValueError: If these encodings have different options.
    """
    learned = [
        block
        for block in blocks
        if isinstance(getattr(block, "encoding", None), HashEncoding)
        and not getattr(block, "own_table", False)
    ]
    for block in learned[1:]:
        if repr(block.encoding) != repr(learned[0].encoding):
            raise ValueError(
                "one hash table can be shared by blocks of the same options only, got "
                f"{learned[0].encoding} and {block.encoding}"
            )
        block.encoding = learned[0].encoding


def make_positional_encodings(channels: list[int], rank: int, **options: Any) -> nn.ModuleList:
    """One :class:`GlobalPositionalEncoding` per stage, all with one encoding unless ``shared_table=False``.

    Args:
        channels: Feature channels of each stage.
        rank: Spatial axes, 2 or 3.
        **options: As for :class:`GlobalPositionalEncoding`.
    """
    blocks: list[nn.Module] = [GlobalPositionalEncoding(count, rank, **options) for count in channels]
    share_encodings(blocks)
    return nn.ModuleList(blocks)
