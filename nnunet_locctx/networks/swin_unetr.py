"""Swin UNETR, with and without location."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import swin_unetr as monai_swin_unetr
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nnunet_locctx.networks.inputs import LocationPyramid
from nnunet_locctx.networks.positions import EncodedLocation, make_encodings, published_encoding
from nnunet_locctx.networks.stem import check_stage_sizes
from nnunet_locctx.networks.whole import WholeNetwork
from nnunet_locctx.values import check_integer, check_share

STAGES = 4
STRIDE = 2 ** (STAGES + 1)

NEIGHBOURS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""The tokens of each cube of eight that MONAI up to 1.4 merged, two of them twice: offsets along the three axes."""


class MergingWithDuplicates(monai_swin_unetr.PatchMerging):
    """MONAI's patch merging as it was up to 1.4, see :data:`NEIGHBOURS`; in 2D as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, *size, C) -> (B, *size / 2, 2 C), sizes even."""
        if x.dim() == 5:
            x = torch.cat([x[:, a::2, b::2, c::2] for a, b, c in NEIGHBOURS], dim=-1)
            merged: Tensor = self.reduction(self.norm(x))
        else:
            merged = super().forward(x)
        return merged


class _RatesWithValues(TorchFunctionMode):
    """MONAI reads its rates of stochastic depth off a tensor, which has values on another device than ``meta`` only."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.linspace:
            kwargs = {**(kwargs or {}), "device": "cpu"}
        return function(*args, **(kwargs or {}))


class SwinUNETR(WholeNetwork):
    """MONAI's Swin UNETR (Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors
    in MRI Images", 2022), on request with global positional encoding (Le and Le, MIWAI 2025).

    The encoding is added at ten places: to the input, to the hidden states of the patch embedding and of the stages 1,
    2 and 4 before their convolutions, and in each of the five decoder stages to the upsampled features and the skip
    connection, before their convolutions; unless `sampling` is ``"published"`` it is computed at the token centres of
    each place. MONAI's modules lie under ``network.``, by the names that they have there. No deep supervision.

    Up to 1.4 MONAI's merging of eight neighbouring tokens took two of them twice and left two out, in 3D; so does the
    code of Le and Le, and so were the published models trained. `duplicate_neighbours` computes that; MONAI's weights
    fit either way.

    Args:
        feature_size: Channels at full resolution, a multiple of 12; the paper has 48.
        depths: Transformer blocks of each of the four stages.
        num_heads: Attention heads of each stage.
        window_size: Tokens along an axis within which attention is computed, or one number for each axis.
        mlp_ratio: Width inside the feed-forward layers, in widths of the stage.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout.
        attn_drop_rate: Dropout of attention weights.
        dropout_path_rate: Stochastic depth: rate of the last block, rising linearly from 0 in the first.
        use_checkpoint: Whether to recompute activations in the backward pass instead of storing them.
        use_v2: Whether a residual convolution block stands before each stage (He et al., "SwinUNETR-V2", 2023).
        duplicate_neighbours: Merging of tokens as in MONAI up to 1.4, see above; of no effect in 2D.
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
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Sequence[int] | int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dropout_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        use_v2: bool = False,
        duplicate_neighbours: bool = False,
        **encoding: Any,
    ) -> None:
        located = encoding.get("encoding") is not None
        super().__init__(
            image_channels, classes, patch_size, previous_channels, deep_supervision, located=located
        )
        self.check_patch(patch_size)
        windows = _check_sizes(self.rank, feature_size, depths, num_heads, window_size)
        check_share("drop_rate", drop_rate)
        check_share("attn_drop_rate", attn_drop_rate)
        check_share("dropout_path_rate", dropout_path_rate)
        channels = image_channels + previous_channels
        # Any: MONAI takes the class, and says a module
        merging: Any = MergingWithDuplicates if duplicate_neighbours else monai_swin_unetr.PatchMerging
        with _RatesWithValues():
            self.network = monai_swin_unetr.SwinUNETR(
                channels,
                classes,
                feature_size=feature_size,
                depths=depths,
                num_heads=num_heads,
                window_size=windows,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_rate=drop_rate,
                attn_drop_rate=attn_drop_rate,
                dropout_path_rate=dropout_path_rate,
                use_checkpoint=use_checkpoint,
                spatial_dims=self.rank,
                downsample=merging,
                use_v2=use_v2,
            )
        widths = [feature_size * factor for factor in (1, 2, 4, 16, 16, 8, 4, 2, 2)]
        self.positions = make_encodings([channels, *widths], self.rank, **encoding)

    @classmethod
    def published(cls, **options: Any) -> dict[str, Any]:
        """As MONAI up to 1.4 and the code of Le and Le."""
        return {"duplicate_neighbours": True, **published_encoding(options)}

    @classmethod
    def patch_multiple(cls, rank: int, **options: Any) -> tuple[int, ...]:
        """32 along each axis: a token of the coarsest stage."""
        return (STRIDE,) * rank

    @classmethod
    def check_patch(cls, patch_size: Sequence[int], **options: Any) -> None:
        """As every network's; besides, one side must be 64 or more: the coarsest stage is normalised over its tokens,
        and a single one would be nothing but zero."""
        cls.check_rank(len(patch_size))
        multiple = cls.patch_multiple(len(patch_size), **options)
        if max(patch_size) < 2 * STRIDE:
            nearest = [max(1, round(n / STRIDE)) * STRIDE for n in patch_size]
            nearest[list(patch_size).index(max(patch_size))] = 2 * STRIDE
            raise ValueError(
                f"patch_size {[int(n) for n in patch_size]} does not fit {cls.__name__}: each side must be a multiple "
                f"of {list(multiple)}, and one at least {2 * STRIDE}; nearest allowed: {nearest}"
            )
        super().check_patch(patch_size, **options)

    def segment(self, image: Tensor, location: LocationPyramid | None) -> Tensor:
        """(B, image + previous, *patch) -> (B, classes, *patch), in the order of MONAI's ``forward``."""
        network, positions = self.network, EncodedLocation(self.positions, location)
        image = positions.add(0, image)
        hidden = network.swinViT(image, network.normalize)
        skips = [
            network.encoder1(image),
            network.encoder2(positions.add(1, hidden[0])),
            network.encoder3(positions.add(2, hidden[1])),
            network.encoder4(positions.add(3, hidden[2])),
            hidden[3],
        ]
        x = network.encoder10(positions.add(4, hidden[4]))
        x = positions.join(network.decoder5, 5, x, skips[4])
        x = positions.join(network.decoder4, 6, x, skips[3])
        x = positions.join(network.decoder3, 7, x, skips[2])
        x = positions.join(network.decoder2, 8, x, skips[1])
        x = positions.join(network.decoder1, 9, x, skips[0])
        logits: Tensor = network.out(x)
        return logits


def _check_sizes(
    rank: int,
    feature_size: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: Sequence[int] | int,
) -> tuple[int, ...]:
    """The window along each axis; raises ValueError unless the sizes fit each other."""
    check_integer("feature_size", feature_size, 12)
    if feature_size % 12:
        raise ValueError(f"feature_size must be a multiple of 12, got {feature_size}")
    check_stage_sizes(STAGES, depths=depths, num_heads=num_heads)
    widths = [feature_size * 2**stage for stage in range(STAGES)]
    if any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
        raise ValueError(f"num_heads must divide the stages' widths, {widths}; got {list(num_heads)}")
    windows = (window_size,) * rank if isinstance(window_size, int) else tuple(window_size)
    if len(windows) != rank:
        raise ValueError(f"window_size must be one integer or {rank}, one for each axis; got {window_size!r}")
    for n in windows:
        check_integer("window_size", n, 2)
    return windows
