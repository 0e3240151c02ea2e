"""nnFormer, with and without location."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from nnunet_locctx.networks.inputs import LocationPyramid
from nnunet_locctx.networks.positions import EncodedLocation, make_encodings, published_encoding
from nnunet_locctx.networks.stem import CONVOLUTION, TRANSPOSED, check_stage_sizes, stem_stride
from nnunet_locctx.networks.whole import WholeNetwork
from nnunet_locctx.networks.window_attention import WindowBlock, WindowGrid
from nnunet_locctx.values import check_integer, check_share, is_number

STAGES = 4
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
    decoder stage it therefore reaches what the attention is added to, not queries, keys and values. It is computed at
    the token centres of its own stage; with the `sampling` ``"published"``, decoder stages have the location of the
    coarsest of them.

    Differs from the published code (282857341/nnFormer) where that is wrong: every relative position within a window
    has a bias of its own, tokens that fill up a window are masked, windows fit each axis by itself
    (`published_windows`: as there), and the targets of deep supervision have the resolutions of the heads. Its forms
    for ACDC and BraTS have no deep supervision (`supervision`), that for ACDC windows of different length along each
    axis, no mask, and other halvings (`strides`), that for BraTS other attention heads in the decoder.

    Args:
        embed_dim: Channels of the first stage, even; they double with each.
        depths: Blocks of each encoder stage; a decoder stage has those of its encoder stage.
        num_heads: Attention heads of each stage, likewise.
        decoder_num_heads: Heads of the three decoder stages, the coarsest first; None: of its encoder stage.
        window_size: Tokens of a window for each stage, likewise: one number, or one for each axis.
        mlp_ratio: Width inside the feed-forward layers, in widths of the stage.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout.
        attn_drop_rate: Dropout of attention weights.
        dropout_path_rate: Stochastic depth: rate of the last block of encoder and decoder, rising linearly from 0 in
            the first of each.
        stem: Stride of the stem along each axis, 1, 2 or 4; None: (2, 4, 4), in 2D (4, 4).
        strides: Stride of each of the three steps to coarser stages along each axis, 1 or 2; None: 2. If they are
            given, the last step takes an odd number of tokens too.
        supervision: Whether there is deep supervision.
        published_windows: Windows, masks and biases as in the published code, see
            :meth:`~nnunet_locctx.networks.window_attention.WindowGrid.published` and
            :func:`~nnunet_locctx.networks.window_attention.relative_positions`.
        **encoding: Options of :class:`~nnunet_locctx.blocks.encoding.GlobalEncoding`. ``encoding`` None, the default:
            without location.

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
        decoder_num_heads: Sequence[int] | None = None,
        window_size: Sequence[int | Sequence[int]] = (4, 4, 8, 4),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dropout_path_rate: float = 0.2,
        stem: Sequence[int] | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        supervision: bool = True,
        published_windows: bool = False,
        **encoding: Any,
    ) -> None:
        located = encoding.get("encoding") is not None
        super().__init__(
            image_channels, classes, patch_size, previous_channels, deep_supervision, located=located
        )
        self.check_patch(patch_size, stem=stem, strides=strides)
        check_integer("embed_dim", embed_dim, 2)
        check_stage_sizes(STAGES, depths=depths, num_heads=num_heads)
        _check_windows(window_size, self.rank)
        widths = [embed_dim * 2**stage for stage in range(STAGES)]
        back = list(decoder_num_heads or list(num_heads)[-2::-1])
        check_stage_sizes(STAGES, decoder_num_heads=back)
        if embed_dim % 2 or any(
            width % heads
            for width, heads in zip([*widths, *widths[-2::-1]], [*num_heads, *back], strict=True)
        ):
            raise ValueError(
                "embed_dim must be even and num_heads and decoder_num_heads divide the stages' channels, "
                f"{widths}; got {list(num_heads)} and {back}"
            )
        if not is_number(mlp_ratio) or mlp_ratio * embed_dim < 1:
            raise ValueError(f"mlp_ratio must be a positive number, got {mlp_ratio!r}")
        check_share("drop_rate", drop_rate)
        check_share("attn_drop_rate", attn_drop_rate)
        check_share("dropout_path_rate", dropout_path_rate)

        rank = self.rank
        stride = stem_stride(rank, stem, STEM)
        self.stem = _stem(image_channels + previous_channels, embed_dim, stride)
        self.dropout = nn.Dropout(drop_rate)
        steps = _steps(rank, strides)
        sizes = [tuple(n // first for n, first in zip(self.patch_size, stride, strict=True))]
        for step in steps:
            sizes.append(tuple(n // s for n, s in zip(sizes[-1], step, strict=True)))
        self.down = nn.ModuleList(
            nn.Sequential(nn.GELU(), ChannelNorm(width), _halving(width, size, step))
            for width, size, step in zip(widths, sizes, steps, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(ChannelNorm(width), _doubling(width, size, step))
            for width, size, step in zip(widths[:0:-1], sizes[-2::-1], steps[::-1], strict=True)
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        levels = [*range(STAGES), *range(STAGES - 2, -1, -1)]
        rates = [
            *_rising(dropout_path_rate, [depths[level] for level in levels[:STAGES]]),
            *_rising(dropout_path_rate, [depths[level] for level in levels[STAGES:]]),
        ]
        self.stages = nn.ModuleList()
        fit = WindowGrid.published if published_windows else WindowGrid.fit
        for number, (level, heads) in enumerate(zip(levels, [*num_heads, *back], strict=True)):
            decoder = number >= STAGES
            blocks = (
                WindowBlock(
                    widths[level],
                    heads,
                    fit(sizes[level], window_size[level], shifted=block > 0 if decoder else block % 2 == 1),
                    cross=decoder and block == 0,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    attention_dropout=attn_drop_rate,
                    dropout=drop_rate,
                    drop_path=rate,
                    published_index=published_windows,
                )
                for block, rate in enumerate(rates[number])
            )
            self.stages.append(nn.ModuleList(blocks))
        supervised = widths[:-1] if supervision else widths[:1]
        self.heads = nn.ModuleList(TRANSPOSED[rank](width, classes, stride, stride) for width in supervised)
        self.supervision_weights = type(self).supervision_weights[: len(supervised)]  # type: ignore[misc]
        self.positions = make_encodings([widths[level] for level in levels], self.rank, **encoding)

    @classmethod
    def published(cls, **options: Any) -> dict[str, Any]:
        """As nnFormer's code for Synapse; with location as that of Le and Le."""
        return {"published_windows": True, **published_encoding(options)}

    @classmethod
    def patch_multiple(cls, rank: int, **options: Any) -> tuple[int, ...]:
        """A token of the coarsest stage; with `strides` of the stage before, which may have an odd number of them."""
        stem = stem_stride(rank, options.get("stem"), STEM)
        steps = _steps(rank, options.get("strides"))
        if options.get("strides") is not None:
            steps.pop()
        return tuple(math.prod(strides) for strides in zip(stem, *steps, strict=True))

    @classmethod
    def check_patch(cls, patch_size: Sequence[int], **options: Any) -> None:
        """As every network's; besides, a step to the coarsest stage needs as many tokens as its stride."""
        super().check_patch(patch_size, **options)
        rank = len(patch_size)
        multiple, (*_, last) = cls.patch_multiple(rank, **options), _steps(rank, options.get("strides"))
        least = [m * s if options.get("strides") else m for m, s in zip(multiple, last, strict=True)]
        if any(n < m for n, m in zip(patch_size, least, strict=True)):
            nearest = [max(n, m) for n, m in zip(patch_size, least, strict=True)]
            raise ValueError(
                f"patch_size {[int(n) for n in patch_size]} does not fit {cls.__name__}: at least {least} voxels are "
                f"needed; nearest allowed: {nearest}"
            )

    @classmethod
    def supervision_strides(cls, rank: int, **options: Any) -> tuple[tuple[int, ...], ...]:
        """Full resolution, and the next two stages against the first; the first alone without `supervision`."""
        if not options.get("supervision", True):
            return ((1,) * rank,)
        first, second, _ = _steps(rank, options.get("strides"))
        return (1,) * rank, first, tuple(a * b for a, b in zip(first, second, strict=True))

    def segment(self, image: Tensor, location: LocationPyramid | None) -> Tensor | list[Tensor]:
        """(B, image + previous, *patch) -> logits, see ``forward``."""
        positions = EncodedLocation(self.positions, location)
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
            x = self._stage(stage, up(x), positions, skips.pop(), None if stage == STAGES else outputs[0])
            outputs.append(x)
        if not self.deep_supervision:
            return cast(Tensor, self.heads[0](x))
        return [head(output) for head, output in zip(self.heads, reversed(outputs), strict=False)]

    def _stage(
        self,
        stage: int,
        x: Tensor,
        positions: EncodedLocation,
        skip: Tensor | None = None,
        coarsest: Tensor | None = None,
    ) -> Tensor:
        """The blocks of a stage, and the encoding before each; (B, C, *size) -> (B, C, *size).

        Args:
            stage: Its number.
            x: Its input.
            positions: The encodings.
            skip: A decoder stage's skip connection.
            coarsest: The output of the decoder stage whose location the published code gives this one.
        """
        through = None if coarsest is None else coarsest.shape[2:]
        place = positions.at(stage, x.shape[2:], through).movedim(1, -1) if self.located else None
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


def _steps(rank: int, strides: Sequence[Sequence[int]] | None) -> list[tuple[int, ...]]:
    """Stride of each step to a coarser stage.

    Raises:
        ValueError: If they are not allowed.
    """
    if strides is None:
        return [(2,) * rank] * (STAGES - 1)
    steps = [tuple(step) for step in strides]
    if len(steps) != STAGES - 1 or any(
        len(step) != rank or any(type(n) is not int or n not in (1, 2) for n in step) for step in steps
    ):
        raise ValueError(
            f"strides must be {STAGES - 1} times {rank} of 1, 2, one for each axis; got {list(map(list, strides))}"
        )
    return steps


def _halving(width: int, size: tuple[int, ...], step: tuple[int, ...]) -> nn.Module:
    """Convolution to a coarser stage of ``size // step`` tokens: of length 3, and 1 along an axis that stays."""
    kernel = tuple(3 if s > 1 else 1 for s in step)
    padding = tuple(1 if s > 1 and n % s == 0 else 0 for n, s in zip(size, step, strict=True))
    convolution: nn.Module = CONVOLUTION[len(step)](width, 2 * width, kernel, step, padding)
    return convolution


def _doubling(width: int, size: tuple[int, ...], step: tuple[int, ...]) -> nn.Module:
    """Transposed convolution back to a stage of `size` tokens."""
    rest = tuple(n % s for n, s in zip(size, step, strict=True))
    convolution: nn.Module = TRANSPOSED[len(step)](width, width // 2, step, step, output_padding=rest)
    return convolution


def _check_windows(window_size: Sequence[int | Sequence[int]], rank: int) -> None:
    """Raises ValueError unless there is a positive integer, or one for each axis, for each stage."""
    windows = [[window] if isinstance(window, int) else list(window) for window in window_size]
    check_stage_sizes(STAGES, window_size=[window[0] if window else 0 for window in windows])
    for window in windows:
        for n in window:
            check_integer("each of window_size", n, 1)
        if len(window) not in (1, rank):
            raise ValueError(f"a window_size must be a number or {rank}, one for each axis; got {window}")


def _rising(highest: float, depths: list[int]) -> list[list[float]]:
    """Rates of stochastic depth for the blocks of each stage, from 0 to `highest`."""
    count = sum(depths)
    rates = [highest * block / max(1, count - 1) for block in range(count)]
    ends = [0, *itertools.accumulate(depths)]
    return [rates[first:last] for first, last in itertools.pairwise(ends)]
