"""What a network is told about a location: the coordinates themselves, or waves of them.

Every encoding maps a location (B, 3, *spatial) to (B, `channels`, *spatial) in float32, whatever the autocast
mode: it computes with operations that autocast leaves alone. The spatial rank is 1, 2 or 3.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.checks import check_integer, check_positive
from nnunet_locctx.blocks.hash_encoding import HashEncoding
from nnunet_locctx.blocks.resolution import fade_out, in_full_precision, token_step
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
        check_positive("base", base)
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
        shape = phase.shape[:3]
        del phase
        if self.band_limit:
            weight = self.band_weights(location).view(*shape, *[1] * rank)
            sine, cosine = sine.mul_(weight), cosine.mul_(weight)  # large tensors: in place
        parts = [sine.flatten(1, 2), cosine.flatten(1, 2)]
        return torch.cat([location, *parts] if self.keep_identity else parts, dim=1)

    def band_weights(self, location: Location) -> Tensor:
        """Weight 0..1 of every band: (B, 3, *spatial) -> (B, 3, bands)."""
        phase_step = token_step(location).unsqueeze(2) * self.frequencies
        return fade_out(phase_step / math.pi)

    def extra_repr(self) -> str:
        """The options, for ``print(network)``."""
        options = ("bands", "base", "keep_identity", "band_limit")
        return ", ".join(f"{option}={getattr(self, option):g}" for option in options)


FixedEncoding = IdentityEncoding | FrequencyEncoding
Encoding = FixedEncoding | HashEncoding
ENCODINGS = ("identity", "frequency", "hash")

HASH_OPTIONS = tuple(
    name for name in inspect.signature(HashEncoding).parameters if name != "band_limit"
)  # band_limit is the block's own option


def make_encoding(
    name: str,
    bands: int = 6,
    base: float = math.pi,
    keep_identity: bool = True,
    band_limit: bool = True,
    hash: Mapping[str, Any] | None = None,  # noqa: A002 - the option's name in the plans
) -> Encoding:
    """An encoding by its name.

    Args:
        name: ``"identity"``, ``"frequency"`` or ``"hash"``.
        bands: See :class:`FrequencyEncoding`; not used by the others.
        base: Likewise.
        keep_identity: Likewise.
        band_limit: Whether bands, or levels of ``"hash"``, too fine for the stage are faded out.
        hash: Options of :class:`~nnunet_locctx.blocks.hash_encoding.HashEncoding`, for ``"hash"`` only.

    Raises:
        ValueError: If the name or an option is not allowed.
    """
    if name not in ENCODINGS:
        raise ValueError(f"encoding must be one of {ENCODINGS}, got {name!r}")
    if name == "hash":
        return HashEncoding(**_checked_hash_options(hash), band_limit=band_limit)
    if hash:
        raise ValueError(
            f"hash holds options of the encoding 'hash', but the encoding is {name!r}; got {hash!r}"
        )
    if name == "identity":
        return IdentityEncoding()
    return FrequencyEncoding(bands, base, keep_identity, band_limit)


def make_fixed_encoding(name: str, bands: int, base: float, band_limit: bool) -> FixedEncoding:
    """An encoding without parameters, for blocks that bring their own: a hash table would double them.

    Raises:
        ValueError: If the name or an option is not allowed.
    """
    if name == "hash":
        raise ValueError(
            f"encoding must be one of {ENCODINGS[:2]}, got 'hash', which only the block 'gpe' takes"
        )
    encoding = make_encoding(name, bands, base, band_limit=band_limit)
    assert not isinstance(encoding, HashEncoding)
    return encoding


def _checked_hash_options(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The options, or none, if they are options of the hash encoding."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"hash must be a table of options, got {options!r}")
    unknown = [option for option in options if option not in HASH_OPTIONS]
    if unknown:
        raise ValueError(
            f"unknown option {unknown[0]!r} for the hash encoding; allowed are {', '.join(HASH_OPTIONS)}"
        )
    return options
