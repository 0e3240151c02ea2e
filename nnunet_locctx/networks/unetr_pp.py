"""UNETR++, with and without location; P-Network is one of its forms."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn

from nnunet_locctx.networks.inputs import LocationPyramid
from nnunet_locctx.networks.paired_attention import PairedAttentionBlock
from nnunet_locctx.networks.positions import EncodedLocation, make_encodings, published_encoding
from nnunet_locctx.networks.stem import CONVOLUTION, TRANSPOSED, check_stage_sizes, stem_stride
from nnunet_locctx.networks.whole import WholeNetwork
from nnunet_locctx.values import check_choice, check_integer, check_share

STAGES = 4
HALVINGS = 2 ** (STAGES - 1)
PLACES = ("paper", "tokens", "all")
PAPER_STAGES = (2, 3, 4)
"""Stages of place ``paper``, counted through encoder (0 to 3) and decoder (4 to 7)."""


class UNETRPP(WholeNetwork):
    """UNETR++ (Shaker et al., "UNETR++: Delving Into Efficient and Accurate 3D Medical Image Segmentation", IEEE TMI
    2024), on request with global positional encoding (Le and Le, MIWAI 2025).

    Four encoder stages of paired attention behind a strided convolution each, three decoder stages of the same, which
    add the upsampled features to the skip connection, and a residual convolution block at full resolution. Deep
    supervision at full resolution and after the last two decoder stages before it.

    The encoding is added to the learned position embedding of the published network, which stays: with and without
    location the network differs in the location alone. P-Network, as its paper draws it, is ``gpe_places="all"`` with
    a hash encoding.

    Each published code differs in its own way. The form ``published`` is, without location, UNETR++'s
    (Amshaker/unetr_plus_plus): `scrambled_tokens`, where a token's result of the attention between tokens goes to
    others; for ACDC with `twofold`, ``stem=(1, 4, 4)`` and ``attn_drop_rate=0.1`` besides. With location it is that of
    Le and Le (QuyLe-Minh/P_network), which keeps tokens in order: with frequencies encodings instead of position
    embeddings in the three deepest stages (`replace_positions`) and `gate`; with a hash encoding `attention_prelu` and
    encodings in the seven stages with tokens, for P-Network in all eight; for both what
    :data:`nnunet_locctx.blocks.gpe.PUBLISHED` says. Not offered: a contrastive loss of P-Network's code that nothing
    calls, and tables and projections in it that nothing reads.

    Args:
        feature_size: Channels at full resolution.
        dims: Channels of the four encoder stages, the finest first; the decoder has those of the first three.
        depths: Blocks of each encoder stage.
        decoder_depths: Blocks of the three decoder stages, the coarsest first.
        num_heads: Attention heads.
        projections: Keys and values in the attention between tokens, for each encoder stage.
        decoder_projections: The same for the decoder, the coarsest first.
        attn_drop_rate: Dropout of attention weights.
        drop_rate: Dropout of channels at the end of each block.
        stem: Stride of the first convolution along each axis; None: (2, 4, 4), in 2D (4, 4).
        attention_prelu: Whether a PReLU follows each attention.
        scrambled_tokens: Whether the result of the attention between tokens is read in UNETR++'s code's order.
        gate: Whether the skip connection and the last decoder stage at full resolution are ``x + x * sigmoid(mean of x
            over the patch)``.
        twofold: Blocks of UNETR++'s code for ACDC, see
            :class:`~nnunet_locctx.networks.paired_attention.PairedAttentionBlock`.
        gpe_places: ``"paper"``: before every block of the two deepest encoder stages and of the coarsest decoder stage,
            as the published variant with frequencies; ``"all"``: once before the blocks of each of the four encoder and
            four decoder stages, full resolution included, as P-Network; ``"tokens"``: the same without full resolution,
            as the published variant with a hash encoding.
        replace_positions: Whether blocks that an encoding stands right before lose their learned position embedding, as
            in the published variant with frequencies.
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
        feature_size: int = 16,
        dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (3, 3, 3, 3),
        decoder_depths: Sequence[int] = (3, 3, 3),
        num_heads: int = 4,
        projections: Sequence[int] = (64, 64, 64, 32),
        decoder_projections: Sequence[int] = (64, 64, 64),
        attn_drop_rate: float = 0.15,
        drop_rate: float = 0.1,
        stem: Sequence[int] | None = None,
        attention_prelu: bool = False,
        scrambled_tokens: bool = False,
        gate: bool = False,
        twofold: bool = False,
        gpe_places: str = "paper",
        replace_positions: bool = False,
        **encoding: Any,
    ) -> None:
        located = encoding.get("encoding") is not None
        super().__init__(
            image_channels, classes, patch_size, previous_channels, deep_supervision, located=located
        )
        self.check_patch(patch_size, stem=stem)
        check_integer("feature_size", feature_size, 1)
        check_integer("num_heads", num_heads, 1)
        check_stage_sizes(
            STAGES, dims=dims, depths=depths, decoder_depths=decoder_depths, projections=projections,
            decoder_projections=decoder_projections,
        )  # fmt: skip
        if any(width % num_heads or width % 2 for width in dims):
            raise ValueError(f"dims must be even multiples of num_heads, {num_heads}; got {list(dims)}")
        check_share("attn_drop_rate", attn_drop_rate)
        check_share("drop_rate", drop_rate)
        check_choice("gpe_places", gpe_places, PLACES)
        if replace_positions and not self.located:
            raise ValueError("replace_positions needs an encoding that replaces them; encoding is None")

        rank, channels = self.rank, image_channels + previous_channels
        strides = [stem_stride(rank, stem), *[(2,) * rank] * (STAGES - 1)]
        widths = [*dims, *dims[-2::-1], feature_size]
        counts = [*depths, *decoder_depths]
        places = _places(gpe_places, counts) if self.located else []
        self.places = {site: place for place, site in enumerate(places)}
        self.down = nn.ModuleList(
            nn.Sequential(
                CONVOLUTION[rank](source, width, stride, stride, bias=False),
                # one group for each channel that comes in, where that divides
                nn.GroupNorm(math.gcd(source, width), width),
            )
            for source, width, stride in zip([channels, *dims], dims, strides, strict=False)
        )
        self.up = nn.ModuleList(
            TRANSPOSED[rank](source, width, stride, stride, bias=False)
            for source, width, stride in zip(widths[3:-1], widths[4:], strides[::-1], strict=True)
        )
        sizes = _sizes(self.patch_size, strides)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                PairedAttentionBlock(
                    widths[stage],
                    size,
                    num_heads,
                    projection,
                    attention_dropout=attn_drop_rate,
                    dropout=drop_rate,
                    position=not (replace_positions and (stage, block) in self.places),
                    activation=attention_prelu,
                    scrambled_tokens=scrambled_tokens,
                    twofold=twofold,
                )
                for block in range(counts[stage])
            )
            for stage, (size, projection) in enumerate(
                zip([*sizes, *sizes[-2::-1]], [*projections, *decoder_projections], strict=True)
            )
        )
        self.full_resolution = UnetResBlock(rank, channels, feature_size, 3, 1, norm_name="instance")
        self.stages.append(
            nn.ModuleList([UnetResBlock(rank, feature_size, feature_size, 3, 1, norm_name="instance")])
        )
        self.heads = nn.ModuleList(CONVOLUTION[rank](width, classes, 1) for width in widths[:4:-1])
        self.stages[:STAGES].apply(_initialise)
        self.gate = gate
        self.positions = make_encodings([widths[stage] for stage, _ in places], self.rank, **encoding)

    @classmethod
    def published(cls, **options: Any) -> dict[str, Any]:
        """As UNETR++'s code; with location as that of Le and Le."""
        if options.get("encoding") is None:
            return {"scrambled_tokens": True, **options}
        if options["encoding"] == "hash":
            own = {"gpe_places": "tokens", "attention_prelu": True}
        else:
            own = {"gpe_places": "paper", "replace_positions": True, "gate": True}
        return {**own, **published_encoding(options)}

    @classmethod
    def patch_multiple(cls, rank: int, **options: Any) -> tuple[int, ...]:
        """Eight strides of the stem along each axis: a token of the coarsest stage."""
        return tuple(HALVINGS * n for n in stem_stride(rank, options.get("stem")))

    @classmethod
    def supervision_strides(cls, rank: int, **options: Any) -> tuple[tuple[int, ...], ...]:
        """Full resolution, the finest tokens, and the next."""
        stem = stem_stride(rank, options.get("stem"))
        return (1,) * rank, stem, tuple(2 * n for n in stem)

    def segment(self, image: Tensor, location: LocationPyramid | None) -> Tensor | list[Tensor]:
        """(B, image + previous, *patch) -> logits, see ``forward``."""
        positions = EncodedLocation(self.positions, location)
        x, skips = image, [self._gated(self.full_resolution(image))]
        for stage, down in enumerate(self.down):
            x = self._stage(stage, down(x), positions)
            skips.append(x)
        skips.pop()
        outputs: list[Tensor] = []
        for stage, up in enumerate(self.up, start=STAGES):
            x = self._stage(stage, up(x) + skips.pop(), positions)
            outputs.append(x)
        x = outputs[-1] = self._gated(x)
        if not self.deep_supervision:
            return cast(Tensor, self.heads[0](x))
        return [head(output) for head, output in zip(self.heads, reversed(outputs), strict=False)]

    def _gated(self, x: Tensor) -> Tensor:
        """With `gate`, features by their own mean over the patch; (B, C, *size) -> (B, C, *size)."""
        if not self.gate:
            return x
        mean = x.mean(dim=tuple(range(2, x.dim())), keepdim=True)
        return x + x * mean.sigmoid()

    def _stage(self, stage: int, x: Tensor, positions: EncodedLocation) -> Tensor:
        """The blocks of a stage, and the encodings before them."""
        for block, module in enumerate(cast(nn.ModuleList, self.stages[stage])):
            place = self.places.get((stage, block))
            x = module(x if place is None else positions.add(place, x))
        return x


def _places(name: str, counts: list[int]) -> list[tuple[int, int]]:
    """Blocks (stage, number) that an encoding stands before."""
    if name != "paper":
        return [(stage, 0) for stage in range(2 * STAGES - (name == "tokens"))]
    return [(stage, block) for stage in PAPER_STAGES for block in range(counts[stage])]


def _sizes(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Tokens along each axis at each encoder stage."""
    sizes: list[tuple[int, ...]] = []
    size = tuple(patch_size)
    for stride in strides:
        size = tuple(n // s for n, s in zip(size, stride, strict=True))
        sizes.append(size)
    return sizes


def _initialise(module: nn.Module) -> None:
    """Linear layers of the encoder as published; the decoder's, which the published code leaves out, as torch does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
