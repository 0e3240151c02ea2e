"""The blocks by name: where each can sit, what it takes, and what is chosen unless the plans say otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nnunet_locctx.blocks.anchors import AnchorBlock
from nnunet_locctx.blocks.coordconv import CoordConv, CoordConvStem
from nnunet_locctx.blocks.encoding import options_of
from nnunet_locctx.blocks.gpe import GlobalPositionalEncoding
from nnunet_locctx.blocks.locbam import LocBAM
from nnunet_locctx.blocks.prior import PriorHead
from nnunet_locctx.blocks.transport import LocalToGlobal
from nnunet_locctx.names import check_known, check_options
from nnunet_locctx.places import PLACES

BLOCKS: dict[str, type[nn.Module]] = {
    "coordconv": CoordConv,
    "locbam": LocBAM,
    "gpe": GlobalPositionalEncoding,
    "prior": PriorHead,
    "anchors": AnchorBlock,
    "l2g": LocalToGlobal,
}


@dataclass(frozen=True)
class BlockDefault:
    """Where a block sits, and its options, unless the plans say otherwise.

    Attributes:
        place: One of :data:`~nnunet_locctx.places.PLACES`.
        options: Options of the block that differ from those of its class.
        reason: Why, with the measurement.
    """

    place: str
    options: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


# Figures: docs/explanation/recommended.md, mean Dice of the phantom's organs over three seeds; without location 0.04.
# All with doubling frequencies (`span` None).
DEFAULTS: dict[str, BlockDefault] = {
    "coordconv": BlockDefault(
        "decoder_last", reason="Dice 0.86, the cheapest that works; at the input, as published, 0.06"
    ),
    "locbam": BlockDefault("decoder", reason="Dice 0.75, the only place where gates were seen to learn"),
    "gpe": BlockDefault(
        "stages",
        {"stride": 2},
        reason="Dice 0.89; as published (stride 1, not zero at first) 0.92, in the decoder alone 0.86",
    ),
    "prior": BlockDefault(
        "logits", reason="Dice 0.88; in the decoder 0.93, at more cost; gamma and beta can be drawn"
    ),
    "anchors": BlockDefault("decoder", reason="Dice 0.70"),
    "l2g": BlockDefault(
        "encoder_deep",
        reason="the method's place, a deep stage with enough tokens; Dice 0.05 (one seed), without its location 0.00",
    ),
}


def block_options(name: str, place: str = "") -> tuple[str, ...]:
    """Names of the options that the block `name` takes, at `place` if that matters.

    Raises:
        ValueError: If there is no such block.
    """
    check_known([name], BLOCKS, "block")
    return tuple(options_of(_class(name, place)))


def complete_options(name: str, place: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the defaults of the block's class filled in: all that decides what the block computes."""
    complete = {**options_of(_class(name, place)), **options}
    if complete.get("encoding") == "identity" or complete.get("faithful"):
        complete["span"] = None  # no waves
    return complete


def make_block(name: str, channels: int, rank: int, **options: Any) -> nn.Module:
    """A block by its name.

    Args:
        name: A key of :data:`BLOCKS`.
        channels: Feature channels.
        rank: Spatial axes, 2 or 3.
        **options: The block's own options, see its class.

    Raises:
        ValueError: If the name, an option or the value of an option is not allowed.
    """
    _check_options(name, options)
    return BLOCKS[name](channels, rank, **options)


def check_block(name: str, place: str, options: dict[str, Any]) -> None:
    """Raises ValueError if block, place or an option is not allowed; leaves the random state alone."""
    check_known([name], BLOCKS, "block")
    check_known([place], PLACES, "place")
    _check_options(name, options, place)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # a hash table is large
        make_block(name, channels=4, rank=2, **options)


def _class(name: str, place: str) -> type[nn.Module]:
    """CoordConv at the input is another module: it shares the planned network's first convolution."""
    return CoordConvStem if (name, place) == ("coordconv", "input") else BLOCKS[name]


def _check_options(name: str, options: dict[str, Any], place: str = "") -> None:
    allowed = block_options(name, place)
    at = f" at place {place!r}" if _class(name, place) is CoordConvStem else ""
    check_options(options, allowed, f"block {name!r}{at}")
