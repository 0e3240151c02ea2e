"""UNETR, with and without location."""

from collections.abc import Sequence
from typing import Any

from monai.networks.nets import unetr as monai_unetr
from torch import Tensor, nn

from nnunet_locctx.networks.inputs import LocationPyramid
from nnunet_locctx.networks.positions import EncodedLocation, make_encodings, published_encoding
from nnunet_locctx.networks.whole import WholeNetwork
from nnunet_locctx.values import check_integer, check_share

TOKEN = 16


class UNETR(WholeNetwork):
    """MONAI's UNETR (Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022), on
    request with global positional encoding (Le and Le, MIWAI 2025).

    The encoding is added at eight places: to the input, to the three hidden states of the transformer that are skip
    connections, and in each of the four decoder stages to the upsampled features and the skip connection, before
    their convolutions; unless `sampling` is ``"published"`` it is computed at the token centres of each place. MONAI's
    modules lie under ``network.``, by the names that they have there. No deep supervision.

    Args:
        feature_size: Channels at full resolution.
        hidden_size: Width of the transformer.
        mlp_dim: Width inside its feed-forward layers.
        num_heads: Attention heads; `hidden_size` must be a multiple.
        conv_block: Whether residual convolutions follow the upsampling of the skip connections, as in the authors'
            code; the published comparison with positional encoding was made without.
        dropout_rate: Dropout in the transformer.
        qkv_bias: Whether queries, keys and values have a bias.
        **encoding: Options of :class:`~nnunet_locctx.blocks.encoding.GlobalEncoding`. ``encoding`` None, the default:
            without location.

    Raises:
        ValueError: An option or the patch size is not allowed.
    """

    def __init__(
        self,
        image_channels: int,
        classes: int,
        patch_size: Sequence[int],
        previous_channels: int = 0,
        deep_supervision: bool = False,
        *,
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        conv_block: bool = True,
        dropout_rate: float = 0.0,
        qkv_bias: bool = False,
        **encoding: Any,
    ) -> None:
        located = encoding.get("encoding") is not None
        super().__init__(
            image_channels, classes, patch_size, previous_channels, deep_supervision, located=located
        )
        self.check_patch(patch_size)
        for name, value in (("feature_size", feature_size), ("mlp_dim", mlp_dim), ("num_heads", num_heads)):
            check_integer(name, value, 1)
        if hidden_size < 1 or hidden_size % num_heads:
            raise ValueError(f"hidden_size must be a multiple of num_heads, {num_heads}; got {hidden_size}")
        check_share("dropout_rate", dropout_rate)
        channels = image_channels + previous_channels
        self.network = monai_unetr.UNETR(
            channels,
            classes,
            self.patch_size,
            feature_size,
            hidden_size,
            mlp_dim,
            num_heads,
            conv_block=conv_block,
            dropout_rate=dropout_rate,
            spatial_dims=self.rank,
            qkv_bias=qkv_bias,
        )
        for block in self.network.vit.blocks:
            # for cross-attention, which UNETR has not; parameters without gradient stop DDP (Project-MONAI/MONAI#8845)
            block.norm_cross_attn, block.cross_attn = nn.Identity(), nn.Identity()
        stages = [2 * feature_size * factor for factor in (8, 4, 2, 1)]
        self.positions = make_encodings([channels, *[hidden_size] * 3, *stages], self.rank, **encoding)

    @classmethod
    def published(cls, **options: Any) -> dict[str, Any]:
        """As the code of Le and Le, which has no residual blocks in the skip paths; without location as UNETR's own
        code for BTCV, which has them and is the default."""
        if options.get("encoding") is None:
            return options
        return {"conv_block": False, **published_encoding(options)}

    @classmethod
    def patch_multiple(cls, rank: int, **options: Any) -> tuple[int, ...]:
        """16 along each axis: a token of the transformer."""
        return (TOKEN,) * rank

    def segment(self, image: Tensor, location: LocationPyramid | None) -> Tensor:
        """(B, image + previous, *patch) -> (B, classes, *patch), in the order of MONAI's ``forward``."""
        network, positions = self.network, EncodedLocation(self.positions, location)
        image = positions.add(0, image)
        last, hidden = network.vit(image)
        first = network.encoder1(image)
        skips = [network.proj_feat(hidden[layer]) for layer in (3, 6, 9)]
        skips = [positions.add(place, skip) for place, skip in enumerate(skips, start=1)]
        x = network.proj_feat(last)
        x = positions.join(network.decoder5, 4, x, network.encoder4(skips[2]))
        x = positions.join(network.decoder4, 5, x, network.encoder3(skips[1]))
        x = positions.join(network.decoder3, 6, x, network.encoder2(skips[0]))
        x = positions.join(network.decoder2, 7, x, first)
        return network.out(x)
