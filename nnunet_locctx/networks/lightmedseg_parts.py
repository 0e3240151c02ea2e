"""The parts of LightMedSeg (Tyagi, Rathi and Goyal, arXiv 2603.07228, 2026).

Written from the paper's formulas, whose numbers stand in the docstrings. What the paper leaves open was chosen so that
its parameter counts come out; docs/explanation/lightmedseg.md lists the choices.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_locctx.blocks.anchors import PositionMaps
from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.resolution import spread
from nnunet_locctx.blocks.unknown import if_any_known
from nnunet_locctx.networks.stem import TRANSPOSED
from nnunet_locctx.types import Known

GROUPS = 4
ROUTED = 64
"""Channels to which the router brings the outputs of all encoder stages."""


def norm(channels: int) -> nn.GroupNorm:
    """The only normalisation of the network."""
    return nn.GroupNorm(GROUPS, channels)


def normalised(conv: nn.Module, channels: int) -> nn.Sequential:
    """A convolution, its normalisation and SiLU."""
    return nn.Sequential(conv, norm(channels), nn.SiLU(inplace=True))


def depthwise(channels: int, rank: int, kernel: int) -> nn.Sequential:
    """Depthwise convolution, normalised."""
    conv = CONV[rank](channels, channels, kernel, padding=kernel // 2, groups=channels)
    return normalised(conv, channels)


def pointwise(channels: int, out: int, rank: int) -> nn.Sequential:
    """1x1 convolution, normalised."""
    return normalised(CONV[rank](channels, out, 1), out)


class GhostConv(nn.Module):
    """Half of the channels by a 3x3x3 convolution, the other half by a depthwise one over these; normalised.

    After Han et al., GhostNet, CVPR 2020; here without an activation.

    Args:
        channels: In.
        out: Out, even.
        rank: Spatial axes.
        stride: Stride of the first convolution.
        ghost: False: an ordinary 3x3x3 convolution.
    """

    def __init__(self, channels: int, out: int, rank: int, stride: int = 1, ghost: bool = True) -> None:
        super().__init__()
        made = out // 2 if ghost else out
        self.primary = CONV[rank](channels, made, 3, stride=stride, padding=1, bias=False)
        self.cheap = CONV[rank](made, made, 3, padding=1, groups=made, bias=False) if ghost else None
        self.norm = norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, *spatial) -> (B, out, *spatial / stride)."""
        x = self.primary(x)
        if self.cheap is not None:
            x = torch.cat([x, self.cheap(x)], dim=1)
        return self.norm(x)


class SqueezeExcite(nn.Module):
    """(10): channels weighted by a gate from their means (Hu et al., CVPR 2018).

    Args:
        channels: In and out.
        reduction: The hidden layer has ``channels / reduction`` units, at least 4.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, *spatial) -> the same."""
        axes = tuple(range(2, x.dim()))
        return x * self.gate(x.mean(dim=axes)).view(*x.shape[:2], *[1 for _ in axes])


class StructurePrior(nn.Module):
    """LSPM, (2) to (5): a map of fine structure, and features mixed by what their neighbourhood says.

    Args:
        channels: Channels of the stem's output.
        rank: Spatial axes.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        conv = CONV[rank]
        self.smooth = conv(channels, channels, 5, padding=2, groups=channels)
        self.structure = nn.Sequential(norm(channels), nn.SiLU(inplace=True), conv(channels, 1, 1))
        self.neighbourhood = nn.Sequential(
            normalised(conv(channels, 2 * channels, 3, padding=1), 2 * channels),
            normalised(conv(2 * channels, 2 * channels, 3, padding=1), 2 * channels),
            conv(2 * channels, 1, 1),
        )
        self.weigh = conv(1, 2, 1)
        self.first, self.second = conv(channels, channels, 1), conv(channels, channels, 1)

    def forward(self, stem: Tensor) -> tuple[Tensor, Tensor]:
        """(B, channels, *spatial) -> texture (B, 1, *spatial) in 0..1 and features as the input."""
        texture = self.structure((stem - self.smooth(stem)).abs()).sigmoid()
        # two weights that sum to 1: a softmax over two channels is the sigmoid of their difference
        scores = self.weigh(self.neighbourhood(stem).sigmoid())
        share = (scores[:, :1] - scores[:, 1:]).sigmoid()
        first, second = self.first(stem), self.second(stem)
        return texture, second + share * (first - second)


class FiLM(nn.Module):
    """(6): ``x * (1 + gamma(s)) + beta(s)``, zero at first (Perez et al., 2018).

    Args:
        values: Length of s.
        channels: Channels of x.
    """

    def __init__(self, values: int, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Linear(values, channels), nn.Linear(values, channels)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, s: Tensor, known: Known | None) -> Tensor:
        """(B, channels, *spatial), (B, values), (B, 3) -> (B, channels, *spatial); x where nothing is known."""
        shape = (*x.shape[:2], *[1 for _ in x.shape[2:]])
        gamma, beta = (if_any_known(layer(s), known).view(shape) for layer in (self.gamma, self.beta))
        return x + x * gamma + beta


class EncoderStage(nn.Module):
    """(6) to (10): FiLM by the anchors, then a path for detail and one for the rest, mixed by the texture.

    Args:
        channels: In.
        out: Out.
        rank: Spatial axes.
        values: Number of values that FiLM sees; 0: no FiLM.
        kernel: Kernel of the path for detail.
        reduction: Reduction of squeeze and excite.
        ghost: Whether the convolution is a ghost convolution.
    """

    def __init__(
        self, channels: int, out: int, rank: int, values: int, kernel: int, reduction: int, ghost: bool
    ) -> None:
        super().__init__()
        self.conv = GhostConv(channels, out, rank, ghost=ghost)
        self.film = FiLM(values, out) if values else None
        self.detail = depthwise(out, rank, kernel)
        self.smooth = pointwise(out, out, rank)
        self.excite = SqueezeExcite(out, reduction)

    def forward(self, x: Tensor, texture: Tensor | None, s: Tensor, known: Known | None) -> Tensor:
        """(B, channels, *spatial), (B, 1, *any), (B, values), (B, 3) -> (B, out, *spatial).

        Without a texture both paths count half.
        """
        x = self.conv(x)
        if self.film is not None:
            x = self.film(x, s, known)
        smooth = self.smooth(x)
        share = 0.5 if texture is None else spread(texture, x.shape[2:])
        return self.excite(smooth + share * (self.detail(x) - smooth))


class Router(nn.Module):
    """(11) to (13): what each decoder level is given from the encoder.

    The two coarse levels get a mixture of all encoder stages, weighted voxel by voxel; the third the first encoder
    stage, the last the stem's output.

    Args:
        stem: Channels of the stem's output.
        encoder: Channels of the four encoder stages.
        decoder: Channels of the four decoder levels.
        rank: Spatial axes.
        shared: Whether both coarse levels weigh by the same network.
        direct: Without a mixture: which encoder stage each of the coarse levels gets, as in a U-Net. None: the mixture.
    """

    def __init__(
        self,
        stem: int,
        encoder: tuple[int, ...],
        decoder: tuple[int, ...],
        rank: int,
        shared: bool,
        direct: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        conv = CONV[rank]
        self.direct = direct
        self.fine, self.finest = conv(encoder[0], decoder[2], 1), conv(stem, decoder[3], 1)
        if direct is not None:
            self.give = nn.ModuleList(
                conv(encoder[stage], channels, 1) for stage, channels in zip(direct, decoder[:2], strict=True)
            )
            return
        self.align = nn.ModuleList(conv(channels, ROUTED, 1) for channels in encoder)
        self.controllers = nn.ModuleList(
            nn.Sequential(
                conv(ROUTED * len(encoder), ROUTED, 1), nn.SiLU(inplace=True), conv(ROUTED, len(encoder), 1)
            )
            for _ in range(1 if shared else 2)
        )
        self.give = nn.ModuleList(conv(ROUTED, channels, 1) for channels in decoder[:2])

    def forward(self, stem: Tensor, encoded: list[Tensor], sizes: list[torch.Size]) -> list[Tensor]:
        """The stem's output, those of the encoder's stages and the size of each decoder level -> skip per level."""
        coarse = self._mixed(encoded, sizes) if self.direct is None else [encoded[i] for i in self.direct]
        skips = [spread(give(stage), n) for give, stage, n in zip(self.give, coarse, sizes[:2], strict=True)]
        return [*skips, spread(self.fine(encoded[0]), sizes[2]), spread(self.finest(stem), sizes[3])]

    def _mixed(self, encoded: list[Tensor], sizes: list[torch.Size]) -> list[Tensor]:
        """Mixtures of all encoder stages for the coarse levels."""
        aligned = [align(stage) for align, stage in zip(self.align, encoded, strict=True)]
        mixtures = []
        for level in range(len(self.give)):
            sources = [spread(stage, sizes[level]) for stage in aligned]
            weights = self.controllers[level % len(self.controllers)](torch.cat(sources, dim=1)).softmax(
                dim=1
            )
            mixed = weights[:, :1] * sources[0]
            for index in range(1, len(sources)):
                mixed = mixed + weights[:, index : index + 1] * sources[index]
            mixtures.append(mixed)
        return mixtures


class DecoderStage(nn.Module):
    """(14) to (19): upsampled features with a position bias, fused with the skip, through three weighted branches.

    Args:
        channels: In.
        out: Out.
        rank: Spatial axes.
        anchors: Number of anchors; 0: no position bias.
        bias: Form of the position maps, see :class:`~nnunet_locctx.blocks.anchors.PositionMaps`.
        kernel: Kernel of the depthwise branch.
        reduction: Reduction of squeeze and excite.
        ghost: Whether the second branch is a ghost convolution.
        upsample: Whether the resolution doubles.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        rank: int,
        anchors: int,
        bias: str,
        kernel: int,
        reduction: int,
        ghost: bool,
        upsample: bool,
    ) -> None:
        super().__init__()
        conv = CONV[rank]
        self.up = TRANSPOSED[rank](channels, out, 2, stride=2) if upsample else conv(channels, out, 1)
        self.maps = PositionMaps(anchors, bias) if anchors else None
        self.position = conv(anchors, out, 1) if anchors else None
        self.fuse = pointwise(2 * out, out, rank)
        self.weigh = conv(out, 3, 1)
        self.detail = depthwise(out, rank, kernel)
        self.conv = GhostConv(out, out, rank, ghost=ghost)
        self.smooth = pointwise(out, out, rank)
        self.excite = SqueezeExcite(out, reduction)

    def forward(
        self, x: Tensor, skip: Tensor, location: Tensor, points: Tensor, known: Known | None
    ) -> Tensor:
        """(B, channels, *coarse), (B, out, *spatial), (B, D, *any), (B, K, D), (B, 3) -> (B, out, *spatial)."""
        x = self.up(x)
        if self.maps is not None and self.position is not None:
            x = x + spread(if_any_known(self.position(self.maps(location, points)), known), skip.shape[2:])
        x = self.fuse(torch.cat([x, skip], dim=1))
        weights = self.weigh(x).softmax(dim=1)
        mixed = weights[:, :1] * self.detail(x)
        mixed = mixed + weights[:, 1:2] * self.conv(x)
        mixed = mixed + weights[:, 2:] * self.smooth(x)
        return self.excite(mixed)


def halve(x: Tensor) -> Tensor:
    """Half the resolution, by the maximum."""
    return F.max_pool3d(x, 2) if x.dim() == 5 else F.max_pool2d(x, 2)
