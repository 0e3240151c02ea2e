"""Global positional encoding: an encoded location, projected and added."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from nnunet_locctx.blocks.checks import check_channels, check_input, check_integer
from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.encoding import make_encoding
from nnunet_locctx.blocks.hash_encoding import HashEncoding
from nnunet_locctx.blocks.resolution import SAMPLINGS, coarser, resize_location, spread
from nnunet_locctx.types import Features, Location

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
        encoding: ``"frequency"`` or ``"hash"``; ``"identity"`` for the coordinates as they are.
        bands: Bands of the frequency encoding.
        base: Angular frequency of its lowest band. The published one has no factor pi.
        band_limit: Whether bands (levels of the hash encoding) too fine for the stage are faded out.
        hash: Options of the hash encoding, see :class:`~nnunet_locctx.blocks.hash_encoding.HashEncoding`.
        stride: Computes the encoding for every `stride`-th voxel along each axis, at its exact centre, and linearly
            between. 1: everywhere.
        zero_init: Starts as the identity: the projection at zero, or for ``"hash"`` the table, which learns sooner so
            (with both factors near zero each waits for the other), and the bias. False draws the projection as torch
            does and the table within 1e-4, which is what was published.
        sampling: ``"centres"``: the location is taken as it is. ``"published"``: as the published code does, from 0 to
            1 where the location is from -0.5 to 0.5. A network of this package also samples it then as that code:
            evenly from border to border of the patch, both included, and for a coarser stage the first voxel of each
            token (:func:`~nnunet_locctx.blocks.resolution.published_location`). The hash encoding shifts by itself.
        shared_table: Whether a network may let all its places share one hash table, see :func:`share_encodings`.

    Raises:
        ValueError: If an option is not allowed.
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        encoding: str = "frequency",
        bands: int = 10,
        base: float = 1.0,
        band_limit: bool = True,
        hash: dict[str, Any] | None = None,  # noqa: A002 - the option's name in the plans
        stride: int = 1,
        zero_init: bool = True,
        sampling: str = "centres",
        shared_table: bool = True,
    ) -> None:
        super().__init__()
        check_channels(channels, rank)
        check_integer("stride", stride, 1)
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
        if sampling == "published" and stride != 1:
            raise ValueError(f"sampling 'published' goes with stride 1, got stride {stride}")
        self.channels, self.rank, self.stride, self.sampling = channels, rank, stride, sampling
        self.encoding = make_encoding(encoding, bands=bands, base=base, band_limit=band_limit, hash=hash)
        learned = isinstance(self.encoding, HashEncoding)
        self.own_table = learned and not shared_table
        self.origin = 0.5 if sampling == "published" and not learned else 0.0
        self.project = CONV[rank](self.encoding.channels, channels, 1)
        if zero_init:
            if isinstance(self.encoding, HashEncoding):
                nn.init.zeros_(self.encoding.table)
            else:
                nn.init.zeros_(self.project.weight)
            assert self.project.bias is not None
            nn.init.zeros_(self.project.bias)

    def forward(self, features: Features, location: Location) -> Features:
        """(B, C, *spatial), (B, 3, *spatial) -> (B, C, *spatial)."""
        check_input(features, location, self.channels, self.rank)
        size = features.shape[2:]
        encoded = self.encode(resize_location(location, coarser(size, self.stride)))
        return features + spread(self.project(encoded), size)

    def encode(self, location: Location) -> Features:
        """What is projected: (B, 3, *spatial) -> (B, channels of the encoding, *spatial)."""
        encoded: Features = self.encoding(location + self.origin if self.origin else location)
        return encoded


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
