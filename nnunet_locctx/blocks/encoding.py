"""What a network is told about a location: the coordinates themselves, or waves of them.

Every encoding maps a location (B, 3, *spatial) to (B, `channels`, *spatial) in float32, whatever the autocast
mode: it computes with elementwise operations on float32 only. The spatial rank is 1, 2 or 3.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.checks import check_integer, is_number
from nnunet_locctx.blocks.resolution import in_full_precision
from nnunet_locctx.types import Features, Location


class IdentityEncoding(nn.Module):
    """The three coordinates as they are (Liu et al., CoordConv, 2018)."""

    channels = 3

    def forward(self, location: Location) -> Features:
        """(B, 3, *spatial) -> (B, 3, *spatial)."""
        return in_full_precision(location)


class FrequencyEncoding(nn.Module):
    """Sines and cosines of each coordinate at doubling frequencies (Mildenhall et al., NeRF, 2020).

    Band ``l`` of coordinate ``c`` is ``sin(base * 2**l * c)`` and ``cos(base * 2**l * c)``. Channels: the
    identity (if kept), all sines, all cosines; within the sines and the cosines coordinate by coordinate,
    from the lowest band to the highest.

    A stage whose neighbouring tokens are ``step`` apart samples band ``l`` every ``base * 2**l * step``
    radians. From pi on the samples alias, so the band is faded out between pi/2 (full weight) and pi (exactly
    0). The step is measured in the location itself, for each sample and coordinate: spacing, zoom and stage
    are accounted for.

    Args:
        bands: Number of bands per coordinate, at least 1.
        base: Angular frequency of the lowest band. With pi, over coordinates -0.5..0.5, its sine rises once
            from end to end.
        keep_identity: Also pass the coordinates as they are.
        band_limit: Fade bands out as described; False gives every band full weight.

    Raises:
        ValueError: If `bands` or `base` is out of range.
    """

    def __init__(
        self, bands: int = 6, base: float = math.pi, keep_identity: bool = True, band_limit: bool = True
    ) -> None:
        super().__init__()
        check_integer("bands", bands, 1, 16)
        if not is_number(base) or not 0 < base < math.inf:
            raise ValueError(f"base must be a positive number, got {base!r}")
        self.bands = bands
        self.base = float(base)
        self.keep_identity = keep_identity
        self.band_limit = band_limit
        self.channels = 3 * (2 * bands + int(keep_identity))
        # not persistent: follows from the options, and a checkpoint must not overrule them
        frequencies = torch.tensor([self.base * 2.0**band for band in range(bands)])
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(self, location: Location) -> Features:
        """(B, 3, *spatial) -> (B, channels, *spatial)."""
        location = in_full_precision(location)
        rank = location.dim() - 2
        phase = location.unsqueeze(2) * self.frequencies.view(1, 1, -1, *[1] * rank)
        sine, cosine = phase.sin(), phase.cos()
        if self.band_limit:
            weight = self.band_weights(location).view(*phase.shape[:3], *[1] * rank)
            sine, cosine = sine * weight, cosine * weight
        parts = [sine.flatten(1, 2), cosine.flatten(1, 2)]
        return torch.cat([location, *parts] if self.keep_identity else parts, dim=1)

    def band_weights(self, location: Location) -> Tensor:
        """Weight 0..1 of every band: (B, 3, *spatial) -> (B, 3, bands)."""
        phase_step = token_step(location).unsqueeze(2) * self.frequencies
        rising = ((math.pi - phase_step) / (math.pi / 2)).clamp(0, 1)
        return rising * rising * (3 - 2 * rising)  # smooth, and exactly 0 and 1 at the ends

    def extra_repr(self) -> str:
        """The options, for ``print(network)``."""
        options = ("bands", "base", "keep_identity", "band_limit")
        return ", ".join(f"{option}={getattr(self, option):g}" for option in options)


def token_step(location: Location) -> Tensor:
    """Largest change of each coordinate between neighbouring tokens: (B, 3, *spatial) -> (B, 3).

    Measured end to end on the lines through the middle, and summed over the axes: a rotated coordinate
    changes along several. An axis of one token adds nothing. Exact for a location affine in the index.
    """
    size = location.shape[2:]
    middle = [n // 2 for n in size]
    step = location.new_zeros(location.shape[:2])
    for axis, n in enumerate(size):
        first: list[Any] = list(middle)
        last: list[Any] = list(middle)
        first[axis], last[axis] = 0, n - 1
        ends = location[(slice(None), slice(None), *last)] - location[(slice(None), slice(None), *first)]
        step = step + ends.abs() / max(n - 1, 1)
    return step


Encoding = IdentityEncoding | FrequencyEncoding
ENCODINGS = ("identity", "frequency")


def make_encoding(
    name: str,
    bands: int = 6,
    base: float = math.pi,
    keep_identity: bool = True,
    band_limit: bool = True,
    hash: dict[str, Any] | None = None,  # noqa: A002 - the option's name in the plans
) -> Encoding:
    """An encoding by its name; all options but the name concern ``frequency``.

    Raises:
        ValueError: If the name or an option is not allowed.
    """
    if name == "identity":
        return IdentityEncoding()
    if name == "frequency":
        return FrequencyEncoding(bands, base, keep_identity, band_limit)
    raise ValueError(f"encoding must be one of {ENCODINGS}, got {name!r}")
