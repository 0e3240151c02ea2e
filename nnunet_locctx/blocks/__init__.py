"""What a network does with its location.

A block maps features (B, C, *spatial), the location at their resolution (B, 3, *spatial) and what of it is known
(B, 3) to features of the same shape. Where nothing is known it is exactly the identity; where some axes are, it uses
those and nothing of the others. Blocks work by themselves, in any torch network; ``nnunet_locctx.networks`` fits them
into planned U-Nets.
"""

from nnunet_locctx.blocks.anchors import AnchorBlock
from nnunet_locctx.blocks.coordconv import CoordConv, CoordConvStem
from nnunet_locctx.blocks.encoding import (
    Encoding,
    FrequencyEncoding,
    GlobalEncoding,
    IdentityEncoding,
)
from nnunet_locctx.blocks.gpe import GlobalPositionalEncoding, make_positional_encodings, share_encodings
from nnunet_locctx.blocks.hash_encoding import HashEncoding
from nnunet_locctx.blocks.locbam import LocBAM
from nnunet_locctx.blocks.prior import PriorHead
from nnunet_locctx.blocks.registry import (
    BLOCKS,
    DEFAULTS,
    BlockDefault,
    block_options,
    check_block,
    complete_options,
    make_block,
)
from nnunet_locctx.blocks.resolution import resize_location
from nnunet_locctx.blocks.transport import LocalToGlobal, auxiliary_losses
from nnunet_locctx.places import PLACES

__all__ = [
    "BLOCKS",
    "DEFAULTS",
    "PLACES",
    "AnchorBlock",
    "BlockDefault",
    "CoordConv",
    "CoordConvStem",
    "Encoding",
    "FrequencyEncoding",
    "GlobalEncoding",
    "GlobalPositionalEncoding",
    "HashEncoding",
    "IdentityEncoding",
    "LocBAM",
    "LocalToGlobal",
    "PriorHead",
    "auxiliary_losses",
    "block_options",
    "check_block",
    "complete_options",
    "make_block",
    "make_positional_encodings",
    "resize_location",
    "share_encodings",
]
