"""LocBAM: gates along each axis, driven by the features' profile and their position (Hooft et al., ISBI
2026).

Written from the formulas of the method, which follows HANet (Choi et al., CVPR 2020) in two or three axes.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.checks import check_channels, check_input
from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.encoding import Encoding
from nnunet_locctx.blocks.unknown import hide_unknown, if_any_known
from nnunet_locctx.types import Features, Known, Location
from nnunet_locctx.values import check_choice, check_integer, check_share

NORMS = ("none", "layer", "batch")
FUSIONS = ("conv", "sum", "product")


class LocBAM(nn.Module):
    """Multiplies features by gates, one per array axis, computed from their profile along it and where it lies.

    The profile along axis k is the mean over the other axes, (B, C, L_k). A stack of 1D convolutions turns it,
    together with the position, into a gate (B, C, L_k).

    Default: the position is encoded per channel, from all three coordinates averaged over the other axes, so
    nothing is assumed about how the location lies in the array. No batch norm, which would subtract the mean
    position of a small batch. A wide middle, two layers, He initialisation: what learns
    (docs/explanation/why-location.md). The gates ``2 * sigmoid(a)`` multiply, so that a channel can be let through in
    one box of the body; a is zero at first, and the block exactly the identity. Along an array axis whose coordinate
    is not known the gate is 1.

    ``faithful=True`` is the published block: the raw coordinate is added to all channels of the profile, batch
    norm, a middle of ``ceil(C / 32)`` channels, ``sigmoid`` gates, a 1x1 convolution over the gated features, no
    residual. It takes for granted that coordinate k varies along array axis k. nnU-Net permutes the axes, so here
    each axis takes, in each sample, the coordinate that varies most along it. A gate still sees one coordinate
    only, and a location rotated far is beyond this form. It is not the identity at first.

    Args:
        channels: Feature channels C.
        rank: Spatial axes, 2 or 3.
        faithful: The published block; sets the defaults of the options below.
        reduction: The middle has ``ceil(C / reduction)`` channels. Default 4; faithful 32.
        min_channels: Least number of channels in the middle. Default 32; faithful 1.
        kernel_size: Kernel of the last convolution; odd. Default 3.
        layers: Convolutions per gate, 2 or 3. Default 2; faithful 3.
        dropout: Probability to drop a channel of the profile in training (faithful: with its position). Default 0;
            faithful 0.1.
        norm: ``"none"``, ``"layer"`` (over the channels at one position, which leaves the position absolute) or
            ``"batch"``. Default ``"none"``; faithful ``"batch"``.
        fusion: ``"product"`` multiplies the gates. The others use signed gates ``tanh(a / 2)`` and a residual:
            ``"sum"`` adds the gated features to the features, ``"conv"`` mixes them by a 1x1 convolution first.
            Default ``"product"``; faithful ``"conv"`` without residual.
        **encoding: Options of :class:`~nnunet_locctx.blocks.encoding.Encoding`. Default ``"frequency"``; faithful the
            raw coordinate, no other.

    Raises:
        ValueError: If an option is not allowed, or not together with ``faithful=True``.
    """

    encoding_defaults: ClassVar[Encoding] = Encoding(None)

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        faithful: bool = False,
        reduction: int | None = None,
        min_channels: int | None = None,
        kernel_size: int = 3,
        layers: int | None = None,
        dropout: float | None = None,
        norm: str | None = None,
        fusion: str | None = None,
        **encoding: Any,
    ) -> None:
        super().__init__()
        check_channels(channels, rank)
        reduction = _or(reduction, 32 if faithful else 4)
        min_channels = _or(min_channels, 1 if faithful else 32)
        layers = _or(layers, 3 if faithful else 2)
        dropout = _or(dropout, 0.1 if faithful else 0.0)
        norm = _or(norm, "batch" if faithful else "none")
        fusion = _or(fusion, "conv" if faithful else "product")
        options = replace(self.encoding_defaults, **encoding)
        if options.encoding is None:
            options = replace(options, encoding="identity" if faithful else "frequency")
        check_integer("reduction", reduction, 1)
        check_integer("min_channels", min_channels, 1)
        check_integer("kernel_size", kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size!r}")
        if layers not in (2, 3):
            raise ValueError(f"layers must be 2 or 3, got {layers!r}")
        check_share("dropout", dropout)
        check_choice("norm", norm, NORMS)
        check_choice("fusion", fusion, FUSIONS)
        if faithful and options.encoding != "identity":
            raise ValueError(
                "the faithful LocBAM adds the raw coordinate: its encoding must be 'identity' or left out, "
                f"got {options.encoding!r}"
            )
        if faithful and fusion != "conv":
            raise ValueError(
                "the faithful LocBAM fuses by convolution: its fusion must be 'conv' or left out, "
                f"got {fusion!r}"
            )
        self.channels, self.rank, self.faithful, self.fusion = channels, rank, faithful, fusion
        self.encoding = options.make()
        middle = max(min_channels, math.ceil(channels / reduction))
        position_channels = 0 if faithful else self.encoding.channels
        gates = [
            AxisGate(channels, position_channels, middle, kernel_size, layers, float(dropout), norm)
            for _ in range(rank)
        ]
        self.gates = nn.ModuleList(gates)
        self.fuse = CONV[rank](rank * channels, channels, 1, bias=faithful) if fusion == "conv" else None
        if not faithful:
            for gate in gates:
                gate.start_well()
            for parameter in (parameter for gate in gates for parameter in gate.conv3.parameters()):
                nn.init.zeros_(parameter)
            if self.fuse is not None:  # the sum of the gated features, from which the mix may depart
                with torch.no_grad():
                    self.fuse.weight.copy_(torch.eye(channels).repeat(1, rank).view_as(self.fuse.weight))

    def forward(self, features: Features, location: Location, known: Known | None = None) -> Features:
        """(B, C, *spatial), (B, 3, *spatial), (B, 3) -> (B, C, *spatial)."""
        check_input(features, location, known, self.channels, self.rank)
        positions = axis_profiles(location)
        if known is not None:
            positions = [hide_unknown(position, known) for position in positions]
        gates = []
        for axis, (gate, profile, position) in enumerate(
            zip(self.gates, axis_profiles(features), positions, strict=True)
        ):
            if self.faithful:
                score = gate(profile + varying_channel(position, known).to(profile.dtype), None).sigmoid()
            else:
                score = gate(profile, self.encoding(position, known))
                score = 2 * score.sigmoid() if self.fusion == "product" else torch.tanh(score / 2)
            if known is not None:
                through = (
                    1.0 if self.fusion == "product" or self.faithful else 0.0
                )  # signed gates: nothing added
                located = located_along(axis, positions, known).view(-1, 1, 1)
                score = torch.where(located, score, through)
            shape = [1] * self.rank
            shape[axis] = -1
            gates.append(score.reshape(*score.shape[:2], *shape))
        if self.fusion == "product":
            return features * math.prod(gates[1:], start=gates[0])
        if self.fuse is None:
            return torch.addcmul(features, features, sum(gates[1:], start=gates[0]))
        gated = self.fuse(torch.cat([features * gate for gate in gates], dim=1))
        if not self.faithful:
            return features + if_any_known(gated, known)
        if known is None:
            return gated
        return torch.where(known.any(dim=1).view(-1, *[1] * (self.rank + 1)), gated, features)


class AxisGate(nn.Module):
    """The convolutions of one gate: profile (B, C, L) and encoded position (B, E, L) -> gate before its
    squashing (B, C, L)."""

    def __init__(
        self,
        channels: int,
        position_channels: int,
        middle: int,
        kernel_size: int,
        layers: int,
        dropout: float,
        norm: str,
    ) -> None:
        super().__init__()
        wide = 2 * middle if layers == 3 else middle
        self.drop = nn.Dropout1d(dropout)
        self.conv1 = nn.Conv1d(channels + position_channels, middle, 1, bias=norm != "batch")
        self.norm1 = _norm(norm, middle)
        self.conv2 = nn.Conv1d(middle, wide, 3, padding=1) if layers == 3 else None
        self.norm2 = _norm(norm, wide) if layers == 3 else None
        self.conv3 = nn.Conv1d(wide, channels, kernel_size, padding=kernel_size // 2)
        self.act = nn.ReLU() if norm == "batch" else nn.LeakyReLU()

    def start_well(self) -> None:
        """He initialisation (2015): torch's own shrinks the signal, and with it the position, threefold per layer."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, profile: Tensor, position: Tensor | None) -> Tensor:
        """(B, C, L), (B, E, L) or None -> (B, C, L)."""
        hidden = self.drop(profile)
        if position is not None:
            hidden = torch.cat([hidden, position.to(hidden.dtype)], dim=1)
        hidden = self.act(self.norm1(self.conv1(hidden)))
        if self.conv2 is not None and self.norm2 is not None:
            hidden = self.act(self.norm2(self.conv2(hidden)))
        return self.conv3(hidden)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, L), at each position by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C, L)."""
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def axis_profiles(tensor: Tensor) -> list[Tensor]:
    """Means over all spatial axes but one: (B, C, *spatial) -> for each axis k (B, C, spatial[k]), float32.

    As sums: the gradient of a mean fills a tensor of the full size, that of a sum is a view.
    """
    size = tensor.shape[2:]
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    if len(size) == 2:
        sums = [tensor.sum(dim=3, dtype=dtype), tensor.sum(dim=2, dtype=dtype)]
    else:
        plane = tensor.sum(dim=4, dtype=dtype)
        sums = [plane.sum(dim=3), plane.sum(dim=2), tensor.sum(dim=(2, 3), dtype=dtype)]
    return [total * (n / size.numel()) for total, n in zip(sums, size, strict=True)]


def varying_channel(position: Tensor, known: Known | None = None) -> Tensor:
    """The known coordinate that varies most along the axis, chosen for each sample: (B, 3, L), (B, 3) -> (B, 1, L)."""
    span = _span(position)
    if known is not None:
        span = torch.where(known, span, -1.0)
    chosen = span.argmax(dim=1).view(-1, 1, 1).expand(-1, 1, position.shape[-1])
    return position.gather(1, chosen)


def located_along(axis: int, positions: list[Tensor], known: Known) -> Tensor:
    """Whether the location says where a sample lies along an array axis: (B,).

    A coordinate says so along the array axis where it varies most; one that is constant (the slice of a 2D patch)
    along each. Coordinates that are not known do not count.

    Args:
        axis: Array axis.
        positions: Profiles of the location along each array axis, (B, 3, L_k).
        known: (B, 3).
    """
    spans = torch.stack([_span(position) for position in positions])
    own = spans[axis] >= spans.amax(dim=0)
    return (own & known).any(dim=1) | known.all(dim=1)


def _span(position: Tensor) -> Tensor:
    """How far each coordinate varies along an axis: (B, 3, L) -> (B, 3)."""
    return (position[..., -1] - position[..., 0]).abs()


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm1d(channels)
    return ChannelNorm(channels) if name == "layer" else nn.Identity()


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
