"""What is not known of a location, and how blocks go without it.

``known`` (B, 3) says for each sample along which of the patient's axes (R, A, S) its location is known; None: all of
them, for all samples. No operation here depends on values, so that networks can be compiled and exported.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_locctx.types import Features, Known, Location


def as_mask(known: Known, axes: int) -> Tensor:
    """`known` for a tensor with `axes` more axes: (B, 3) -> (B, 3, 1, ...)."""
    return known.view(*known.shape, *[1] * axes)


def hide_unknown(location: Location, known: Known | None) -> Location:
    """The location with 0 along the axes that are not known, whatever stood there: (B, 3, *spatial) -> the same."""
    return location if known is None else torch.where(as_mask(known, location.dim() - 2), location, 0.0)


def if_any_known(change: Features, known: Known | None) -> Features:
    """What a block changes: exactly 0 for a sample of which nothing is known; (B, ...) -> the same."""
    if known is None:
        return change
    return torch.where(known.any(dim=1).view(-1, *[1] * (change.dim() - 1)), change, 0.0)


class UnknownFlags(nn.Module):
    """A learned vector for each axis, added where that axis is not known; zero at first.

    For encodings of which 0 is also a place: the coordinates as they are, and the hash encoding. A
    frequency encoding needs no flag: the square sum of a sine and a cosine is 1 unless the axis is unknown.

    Args:
        channels: Length C of the vectors.
        rank: Spatial axes of what they are added to.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 3))
        self.rank = rank

    def forward(self, features: Features, known: Known | None) -> Features:
        """(B, C, *spatial), (B, 3) -> (B, C, *spatial)."""
        missing = features.new_zeros(len(features), 3) if known is None else (~known).to(features.dtype)
        added = (missing.unsqueeze(1) * self.weight.to(features.dtype)).sum(dim=2)
        return features + added.view(*added.shape, *[1] * self.rank)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Checkpoints from before there were flags have none: they start at zero."""
        state_dict.setdefault(prefix + "weight", torch.zeros_like(self.weight))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
