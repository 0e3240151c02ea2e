"""What a network gets of a location: the coordinates themselves, or waves of them.

Every encoding maps a location (B, 3, *spatial) to (B, `channels`, *spatial) in float32, whatever the autocast
mode: it computes with operations that autocast leaves alone. The spatial rank is 1, 2 or 3. Along an axis that is
not `known` it says nothing: the features of its waves are 0, cosines as well.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.hash_encoding import HashEncoding
from nnunet_locctx.blocks.resolution import SAMPLINGS, fade_out, in_full_precision, token_step
from nnunet_locctx.blocks.unknown import UnknownFlags, as_mask, hide_unknown
from nnunet_locctx.names import check_options
from nnunet_locctx.places import ENCODINGS
from nnunet_locctx.types import Features, Known, Location
from nnunet_locctx.values import check_choice, check_integer, check_positive

SPAN = 4.0
"""Range of coordinates that a location is expected to reach, with its continuation beyond the volume, shifts and scans
of two metres: -2 to 2 volumes, or times 50 cm."""


class IdentityEncoding(nn.Module):
    """The three coordinates as they are (Liu et al., CoordConv, 2018)."""

    channels = 3

    def forward(self, location: Location, known: Known | None = None) -> Features:
        """(B, 3, *spatial), (B, 3) -> (B, 3, *spatial)."""
        return hide_unknown(in_full_precision(location), known)


class FrequencyEncoding(nn.Module):
    """Sines and cosines of each coordinate at growing frequencies (Mildenhall et al., NeRF, 2020).

    Band ``l`` of coordinate ``c`` is ``sin(f_l * c)`` and ``cos(f_l * c)``. Channels: the identity (if kept), all
    sines, all cosines; within the sines and the cosines coordinate by coordinate, from the lowest band to the highest.

    As published ``f_l = base * 2**l``. With base pi all waves but the lowest then repeat after one unit, and a scan
    shifted by its whole length looks almost like itself. With `span` the frequencies grow evenly from ``pi / span``,
    whose sine rises once over the whole span, to the same highest one: between them no wave repeats after one unit, and
    the lowest never within the span.

    A stage whose neighbouring tokens are ``step`` apart samples band ``l`` every ``f_l * step`` radians. From pi on the
    samples alias, so the band is faded out between pi/2 (full weight) and pi (exactly 0). The step is measured in the
    location itself, for each sample and coordinate: spacing, zoom and stage are accounted for.

    Args:
        bands: Number of bands per coordinate, 1 to 16.
        base: Highest angular frequency is ``base * 2**(bands - 1)``.
        keep_identity: Also pass the coordinates as they are.
        band_limit: Fade bands out as described; False gives every band full weight.
        span: See above; None: as published.

    Raises:
        ValueError: If `bands`, `base` or `span` is out of range.
    """

    def __init__(
        self,
        bands: int = 6,
        base: float = math.pi,
        keep_identity: bool = True,
        band_limit: bool = True,
        span: float | None = None,
    ) -> None:
        super().__init__()
        check_integer("bands", bands, 1, 16)
        check_positive("base", base)
        if span is not None:
            check_positive("span", span)
        self.bands, self.base, self.span = bands, float(base), span
        self.keep_identity, self.band_limit = keep_identity, band_limit
        self.channels = 3 * (2 * bands + int(keep_identity))
        lowest, growth = self.base, 2.0
        if span is not None:
            lowest = math.pi / span
            growth = (self.base * 2.0 ** (bands - 1) / lowest) ** (1 / max(bands - 1, 1))
        # not persistent: follows from the options, and a checkpoint must not overrule them
        frequencies = torch.tensor([lowest * growth**band for band in range(bands)])
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(self, location: Location, known: Known | None = None) -> Features:
        """(B, 3, *spatial), (B, 3) -> (B, channels, *spatial)."""
        location = hide_unknown(in_full_precision(location), known)
        rank = location.dim() - 2
        phase = location.unsqueeze(2) * self.frequencies.view(1, 1, -1, *[1] * rank)
        sine, cosine = phase.sin(), phase.cos()
        shape = phase.shape[:3]
        del phase
        if self.band_limit:
            weight = self.band_weights(location)
            if known is not None:
                weight = weight * known.unsqueeze(2)
            weight = weight.view(*shape, *[1] * rank)
            sine, cosine = sine.mul_(weight), cosine.mul_(weight)  # large tensors: in place
        elif known is not None:
            cosine = cosine.mul_(as_mask(known, rank + 1))
        parts = [sine.flatten(1, 2), cosine.flatten(1, 2)]
        return torch.cat([location, *parts] if self.keep_identity else parts, dim=1)

    def band_weights(self, location: Location) -> Tensor:
        """Weight 0..1 of every band: (B, 3, *spatial) -> (B, 3, bands)."""
        phase_step = token_step(location).unsqueeze(2) * self.frequencies
        return fade_out(phase_step / math.pi)

    def extra_repr(self) -> str:
        """The options, for ``print(network)``."""
        options = ("bands", "base", "keep_identity", "band_limit")
        shown = ", ".join(f"{option}={getattr(self, option):g}" for option in options)
        return f"{shown}, span={self.span}"


EncodingModule: TypeAlias = IdentityEncoding | FrequencyEncoding | HashEncoding

HASH_OPTIONS = tuple(
    name for name in inspect.signature(HashEncoding).parameters if name != "band_limit"
)  # band_limit is the block's own option


@dataclass(frozen=True)
class Encoding:
    """How a block or network encodes location.

    A class that encodes has its defaults as attribute ``encoding_defaults`` and takes these options by their names,
    beside its own: in the plans they stand flat.

    Attributes:
        encoding: ``"identity"``, ``"frequency"`` or, where the class takes it, ``"hash"``; None: the class decides,
            and a whole network goes without location.
        bands: Bands of the frequency encoding, see :class:`FrequencyEncoding`.
        base: Base of the frequency encoding.
        band_limit: Whether bands, or levels of ``"hash"``, too fine for the stage are faded out.
        span: Span of the frequency encoding.
    """

    encoding: str | None = "frequency"
    bands: int = 6
    base: float = math.pi
    band_limit: bool = True
    span: float | None = SPAN

    def options(self) -> dict[str, Any]:
        """The options by their names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def make(self) -> EncodingModule:
        """The encoding.

        Raises:
            ValueError: If the name or an option is not allowed.
        """
        if self.encoding == "identity":
            return IdentityEncoding()
        if self.encoding == "frequency":
            return FrequencyEncoding(self.bands, self.base, band_limit=self.band_limit, span=self.span)
        # a block with parameters of its own would double them with a hash table
        reason = ", which only the block 'gpe' takes" if self.encoding == "hash" else ""
        raise ValueError(f"encoding must be one of {ENCODINGS[:2]}, got {self.encoding!r}{reason}")


@dataclass(frozen=True)
class GlobalEncoding(Encoding):
    """The options of :class:`~nnunet_locctx.blocks.GlobalPositionalEncoding`, in blocks and in whole networks.

    Attributes:
        bands: As published.
        base: As published, without a factor pi. Its lowest wave has a period of 2 pi units.
        span: None, as published.
        hash: Options of the hash encoding, see :class:`~nnunet_locctx.blocks.hash_encoding.HashEncoding`.
        shared_table: Whether a network may let all its places share one hash table, see
            :func:`~nnunet_locctx.blocks.share_encodings`; the published code has one for each.
        zero_init: Starts as the identity: the projection at zero, or for ``"hash"`` the table, which learns sooner so
            (with both factors near zero each waits for the other), and the bias. False draws the projection as torch
            does and the table within 1e-4, which is what was published.
        sampling: ``"centres"``: the location is taken as it is. ``"published"``: as the published code does, from 0 to
            1 where the location is from -0.5 to 0.5. A network of this package also samples it then as that code:
            evenly from border to border of the patch, both included, and for a coarser stage the first voxel of each
            token (:func:`~nnunet_locctx.blocks.resolution.published_location`). The hash encoding shifts by itself.
    """

    bands: int = 10
    base: float = 1.0
    span: float | None = None
    hash: Mapping[str, Any] | None = None
    shared_table: bool = True
    zero_init: bool = True
    sampling: str = "centres"

    def __post_init__(self) -> None:
        check_choice("sampling", self.sampling, SAMPLINGS)

    def make(self) -> EncodingModule:
        """As in the base; ``"hash"`` as well."""
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be one of {ENCODINGS}, got {self.encoding!r}")
        if self.encoding == "hash":
            return HashEncoding(**_checked_hash_options(self.hash), band_limit=self.band_limit)
        if self.hash:
            raise ValueError(
                f"hash holds options of the encoding 'hash', but the encoding is {self.encoding!r}; got {self.hash!r}"
            )
        return super().make()


def flags_for(encoding: EncodingModule, zero_init: bool, channels: int, rank: int) -> UnknownFlags | None:
    """Flags for what a block adds, where its encoding needs them and it is not the published form, which has none.

    Args:
        encoding: The block's.
        zero_init: Whether the block starts as the identity, which the published forms do not.
        channels: Channels of what it adds.
        rank: Spatial axes.
    """
    needed = zero_init and not isinstance(encoding, FrequencyEncoding)
    return UnknownFlags(channels, rank) if needed else None


def options_of(made: Callable[..., Any]) -> dict[str, Any]:
    """The options that a block or a network takes, by their names, with their defaults: those of its encoding, and its
    keyword-only parameters."""
    encoding: Encoding | None = getattr(made, "encoding_defaults", None)
    own = {
        parameter.name: parameter.default
        for parameter in inspect.signature(made).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return {**(encoding.options() if encoding is not None else {}), **own}


def _checked_hash_options(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The options, or none, if they are options of the hash encoding."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"hash must be a table of options, got {options!r}")
    check_options(options, HASH_OPTIONS, "the hash encoding")
    return options
