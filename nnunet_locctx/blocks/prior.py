"""PriorHead: a learned, continuous atlas that scales and shifts features or logits."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.checks import check_channels, check_input
from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.encoding import Encoding, flags_for
from nnunet_locctx.blocks.resolution import coarser, resize_location, spread
from nnunet_locctx.blocks.unknown import if_any_known
from nnunet_locctx.types import Features, Known, Location
from nnunet_locctx.values import check_integer, check_positive


class PriorHead(nn.Module):
    """``features * (1 + gamma(c)) + beta(c)``: on logits a location prior, elsewhere FiLM (Perez et al.,
    2018).

    gamma and beta come from a 1x1 network of one hidden layer over the encoded location. Its last layer is
    zero at first, so the block starts as exactly the identity.

    Both are bounded. A scale of logits feeds itself: the larger the logits, the faster it grows. Without a bound they
    reached 17 000 after 20 epochs on the whole-body phantom; nnU-Net's sliding window, which adds them up in half
    precision, ends with infinity at a third of that.

    Args:
        channels: Feature channels C.
        rank: Spatial axes, 2 or 3.
        stride: Computes gamma and beta for every `stride`-th voxel along each axis, at its exact centre, and linearly
            between: they vary slowly, and computing them is what the block costs. 1: everywhere.
        hidden: Width of the hidden layer.
        bound: Limit of gamma: features are scaled by ``1 - bound`` to ``1 + bound``.
        shift_bound: Limit of beta, in units of the features.
        **encoding: Options of :class:`~nnunet_locctx.blocks.encoding.Encoding`.

    Raises:
        ValueError: If an option is not allowed.
    """

    encoding_defaults: ClassVar[Encoding] = Encoding()

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        stride: int = 2,
        hidden: int = 32,
        bound: float = 3.0,
        shift_bound: float = 10.0,
        **encoding: Any,
    ) -> None:
        super().__init__()
        check_channels(channels, rank)
        check_integer("hidden", hidden, 1)
        check_integer("stride", stride, 1)
        check_positive("bound", bound)
        check_positive("shift_bound", shift_bound)
        self.channels, self.rank, self.stride = channels, rank, stride
        self.bound, self.shift_bound = bound, shift_bound
        self.encoding = replace(self.encoding_defaults, **encoding).make()
        self.flags = flags_for(self.encoding, True, hidden, rank)
        last = CONV[rank](hidden, 2 * channels, 1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.atlas = nn.Sequential(
            CONV[rank](self.encoding.channels, hidden, 1), nn.LeakyReLU(inplace=True), last
        )
        self.register_buffer("limits", torch.tensor([bound, shift_bound], dtype=torch.float32))
        self.limits: Tensor

    def forward(self, features: Features, location: Location, known: Known | None = None) -> Features:
        """(B, C, *spatial), (B, 3, *spatial), (B, 3) -> (B, C, *spatial)."""
        check_input(features, location, known, self.channels, self.rank)
        size = features.shape[2:]
        first, activation, last = self.atlas
        hidden = first(self.encoding(resize_location(location, coarser(size, self.stride)), known))
        if self.flags is not None:
            hidden = self.flags(hidden, known)
        gamma, beta = if_any_known(last(activation(hidden)), known).chunk(2, dim=1)
        gamma, beta = within(gamma, self.limits[0]), within(beta, self.limits[1])
        return torch.addcmul(features + spread(beta, size), features, spread(gamma, size))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Weights from before they held their limits have a free shift."""
        if prefix + "atlas.0.weight" in state_dict:  # else those of a plain network
            state_dict.setdefault(prefix + "limits", self.limits.new_tensor([self.bound, math.inf]))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def within(change: Features, limit: Tensor) -> Features:
    """``limit * tanh(change / limit)``; the change itself if the limit is infinite."""
    finite = limit.isfinite()
    some = torch.where(finite, limit, 1.0)  # infinity times 0 would be no number
    return torch.where(finite, some * (change / some).tanh(), change)
