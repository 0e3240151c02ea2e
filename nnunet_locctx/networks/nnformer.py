"""nnFormer, with and without location."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from nnunet_locctx.blocks.checks import check_integer, check_share, is_number
from nnunet_locctx.networks.inputs import LocationPyramid
from nnunet_locctx.networks.positions import EncodedLocation, make_encodings
from nnunet_locctx.networks.stem import CONVOLUTION, TRANSPOSED, check_stage_sizes, stem_stride
from nnunet_locctx.networks.whole import WholeNetwork
from nnunet_locctx.networks.window_attention import WindowBlock, WindowGrid

STAGES = 4
HALVINGS = 2 ** (STAGES - 1)
STEM = (1, 2, 4)
"""Strides that two convolutions of stride 1 or 2 can make."""


class NNFormer(WholeNetwork):
    """nnFormer (Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE TIP 2023), on
    request with global positional encoding (Le and Le, MIWAI 2025).

    A convolutional stem, four encoder stages and three decoder stages of attention within windows, the second block of
    each with shifted windows (in general: every second block of the encoder and all but the first of the decoder). The
    first block of a decoder stage takes queries from the upsampled features, keys and values from the skip connection,
    and is added to the sum of both. Deep supervision after each decoder stage; every head is a transposed convolution
    with the stem's stride.

    One encoding for each of the seven stages is added before each of its blocks, as published. In the first block of a
    decoder stage it therefore reaches what the attention is added to, not queries, keys and values. Unlike the
    published one it is computed at the token centres of its own stage, in the decoder too.

    Differs from the published code where that is wrong: every relative position within a window has a bias of its own
    (there the first axis is counted in steps of 3w - 1 instead of (2w - 1)^2, so that distant positions share one),
    tokens that fill up a window are masked, windows fit each axis by itself, and the targets of deep supervision have
    the resolutions of the heads.

    Args:
        embed_dim: Channels of the first stage, even; they double with each.
        depths: Blocks of each encoder stage; a decoder stage has those of its encoder stage.
        num_heads: Attention heads of each stage, likewise.
        window_size: Tokens of a window along each axis, for each stage, likewise.
        mlp_ratio: Width inside the feed-forward layers, in widths of the stage.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout.
        attn_drop_rate: Dropout of attention weights.
        dropout_path_rate: Stochastic depth: rate of the last block of encoder and decoder, rising linearly from 0 in
            the first of each.
        stem: Stride of the stem along each axis, 1, 2 or 4; None: (2, 4, 4), in 2D (4, 4).
        encoding: None: without location; ``"frequency"`` or ``"hash"``: with it.
        bands: Bands of the frequency encoding.
        base: Angular frequency of its lowest band.
        band_limit: Whether bands or levels too fine for a place are faded out.
        hash: Options of the hash encoding.
        shared_table: Whether all places share one hash table.
        zero_init: Whether the network starts as the one without location; what was published did not.

    Raises:
        ValueError: An option or the patch size is not allowed.
    """

    supervision_weights: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.25)

    def __init__(
        self,
        image_channels: int,
        classes: int,
        patch_size: Sequence[int],
        previous_channels: int = 0,
        deep_supervision: bool = False,
        *,
        embed_dim: int = 192,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        window_size: Sequence[int] = (4, 4, 8, 4),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dropout_path_rate: float = 0.2,
        stem: Sequence[int] | None = None,
        encoding: str | None = None,
        bands: int = 10,
        base: float = 1.0,
        band_limit: bool = True,
        hash: Mapping[str, Any] | None = None,  # noqa: A002 - the option's name in the plans
        shared_table: bool = True,
        zero_init: bool = True,
    ) -> None:
        super().__init__(
            image_channels,
            classes,
            patch_size,
            previous_channels,
            deep_supervision,
            located=encoding is not None,
        )
        self.check_patch(patch_size, stem=stem)
        check_integer("embed_dim", embed_dim, 2)
        check_stage_sizes(STAGES, depths=depths, num_heads=num_heads, window_size=window_size)
        widths = [embed_dim * 2**stage for stage in range(STAGES)]
        if embed_dim % 2 or any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
            raise ValueError(
                f"embed_dim must be even and num_heads divide the stages' channels, {widths}; got {list(num_heads)}"
            )
        if not is_number(mlp_ratio) or mlp_ratio * embed_dim < 1:
            raise ValueError(f"mlp_ratio must be a positive number, got {mlp_ratio!r}")
        for name, value in (
            ("drop_rate", drop_rate),
            ("attn_drop_rate", attn_drop_rate),
            ("dropout_path_rate", dropout_path_rate),
        ):
            check_share(name, value)

        rank = self.rank
        stride = stem_stride(rank, stem, STEM)
        self.stem = _stem(image_channels + previous_channels, embed_dim, stride)
        self.dropout = nn.Dropout(drop_rate)
        self.down = nn.ModuleList(
            nn.Sequential(nn.GELU(), ChannelNorm(width), CONVOLUTION[rank](width, 2 * width, 3, 2, 1))
            for width in widths[:-1]
        )
        self.up = nn.ModuleList(
            nn.Sequential(ChannelNorm(width), TRANSPOSED[rank](width, width // 2, 2, 2))
            for width in widths[:0:-1]
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        levels = [*range(STAGES), *range(STAGES - 2, -1, -1)]
        rates = [
            *_rising(dropout_path_rate, [depths[level] for level in levels[:STAGES]]),
            *_rising(dropout_path_rate, [depths[level] for level in levels[STAGES:]]),
        ]
        self.stages = nn.ModuleList()
        for number, level in enumerate(levels):
            size = [n // s // 2**level for n, s in zip(self.patch_size, stride, strict=True)]
            decoder = number >= STAGES
            blocks = (
                WindowBlock(
                    widths[level],
                    num_heads[level],
                    WindowGrid.fit(
                        size, window_size[level], shifted=block > 0 if decoder else block % 2 == 1
                    ),
                    cross=decoder and block == 0,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    attention_dropout=attn_drop_rate,
                    dropout=drop_rate,
                    drop_path=rate,
                )
                for block, rate in enumerate(rates[number])
            )
            self.stages.append(nn.ModuleList(blocks))
        self.heads = nn.ModuleList(TRANSPOSED[rank](width, classes, stride, stride) for width in widths[:-1])
        self.shared = shared_table or encoding != "hash"
        self.positions = make_encodings(
            [widths[level] for level in levels],
            rank,
            encoding=encoding,
            shared_table=shared_table,
            bands=bands,
            base=base,
            band_limit=band_limit,
            hash=hash,
            zero_init=zero_init,
        )

    @classmethod
    def patch_multiple(cls, rank: int, **options: Any) -> tuple[int, ...]:
        """Eight strides of the stem along each axis: a token of the coarsest stage."""
        return tuple(HALVINGS * n for n in stem_stride(rank, options.get("stem"), STEM))

    @classmethod
    def supervision_strides(cls, rank: int, **options: Any) -> tuple[tuple[int, ...], ...]:
        """Full resolution and two halvings along every axis."""
        return (1,) * rank, (2,) * rank, (4,) * rank

    def segment(self, image: Tensor, location: LocationPyramid | None) -> Tensor | list[Tensor]:
        """(B, image + previous, *patch) -> logits, see ``forward``."""
        positions = EncodedLocation(self.positions, location, self.shared)
        x = self.dropout(self.stem(image))
        skips: list[Tensor] = []
        for stage, norm in enumerate(self.norms):
            if stage:
                x = self.down[stage - 1](x)
            x = self._stage(stage, x, positions)
            skips.append(norm(x))
        x = self.dropout(skips.pop())
        outputs: list[Tensor] = []
        for stage, up in enumerate(self.up, start=STAGES):
            x = self._stage(stage, up(x), positions, skips.pop())
            outputs.append(x)
        if not self.deep_supervision:
            return cast(Tensor, self.heads[0](x))
        return [head(output) for head, output in zip(self.heads, reversed(outputs), strict=True)]

    def _stage(self, stage: int, x: Tensor, positions: EncodedLocation, skip: Tensor | None = None) -> Tensor:
        """The blocks of a stage, and the encoding before each; (B, C, *size) -> (B, C, *size)."""
        place = positions.at(stage, x.shape[2:]).movedim(1, -1) if self.located else None
        x = x.movedim(1, -1)
        pair: tuple[Tensor, ...] = ()
        if skip is not None:
            pair = (x, skip.movedim(1, -1))
            x = pair[0] + pair[1]
        for block in cast(nn.ModuleList, self.stages[stage]):
            x = block(x if place is None else x + place, *pair)
            pair = ()
        return x.movedim(-1, 1)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each token: (B, C, *spatial) -> (B, C, *spatial)."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, C, *spatial)."""
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)


def _stem(channels: int, width: int, stride: tuple[int, ...]) -> nn.Sequential:
    """Two strided convolutions of stride 1 or 2, each followed by one without."""
    conv, half = CONVOLUTION[len(stride)], width // 2
    first = tuple(min(n, 2) for n in stride)
    second = tuple(n // f for n, f in zip(stride, first, strict=True))
    return nn.Sequential(
        *(conv(channels, half, 3, first, 1), nn.GELU(), ChannelNorm(half)),
        *(conv(half, half, 3, 1, 1), nn.GELU(), ChannelNorm(half)),
        *(conv(half, width, 3, second, 1), nn.GELU(), ChannelNorm(width)),
        *(conv(width, width, 3, 1, 1), ChannelNorm(width)),
    )


def _rising(highest: float, depths: list[int]) -> list[list[float]]:
    """Rates of stochastic depth for the blocks of each stage, from 0 to `highest`."""
    count = sum(depths)
    rates = [highest * block / max(1, count - 1) for block in range(count)]
    ends = [0, *itertools.accumulate(depths)]
    return [rates[first:last] for first, last in itertools.pairwise(ends)]
