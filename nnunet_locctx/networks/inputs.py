"""Preparation of the input, which the networks of this package share."""

import torch
from torch import Tensor

from nnunet_locctx.blocks import resize_location
from nnunet_locctx.blocks.resolution import nearest, published_location
from nnunet_locctx.blocks.unknown import hide_unknown
from nnunet_locctx.location import LOCATION_CHANNELS
from nnunet_locctx.location.padding import extrapolate_padding


class LocationPyramid:
    """The location of one forward pass at several sizes, each computed once.

    Args:
        full: (B, 3, *patch), finite.
        known: (B, 3), the axes along which it is known.
    """

    def __init__(self, full: Tensor, known: Tensor) -> None:
        self.full, self.known = full, known
        self._sizes: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def at(self, size: torch.Size | tuple[int, ...], sampling: str = "centres") -> Tensor:
        """Location of the tokens of a stage that covers the patch with `size` tokens: (B, 3, *size).

        Args:
            size: Tokens along each axis.
            sampling: ``"centres"``: of the tokens' centres; ``"published"``: see
                :class:`~nnunet_locctx.blocks.GlobalPositionalEncoding`.
        """
        key = (sampling, tuple(size))
        if key not in self._sizes:
            self._sizes[key] = self._sampled(*key)
        return self._sizes[key]

    def without(self, lost: Tensor) -> "LocationPyramid":
        """The same location, unknown along further axes.

        Args:
            lost: (3,) bool.
        """
        other = LocationPyramid(self.full, self.known & ~lost)
        other._sizes = self._sizes
        return other

    def _sampled(self, sampling: str, size: tuple[int, ...]) -> Tensor:
        if sampling == "centres":
            return resize_location(self.full, size)
        whole = tuple(self.full.shape[2:])
        if size == whole:
            return published_location(self.full)
        return nearest(self.at(whole, sampling), size)


def split_input(
    x: Tensor, image_channels: int, previous_channels: int, training: bool
) -> tuple[Tensor, LocationPyramid]:
    """Parts of an input [image | location (R, A, S) | previous stage].

    Args:
        x: (B, image + 3 + previous, *patch).
        image_channels: Channels in front of the location.
        previous_channels: Channels behind it, those of a cascade's previous stage.
        training: Whether the network is in training mode; in evaluation mode the location is continued into the
            border that nnU-Net pads with zeros around a volume smaller than the patch.

    Returns:
        [image | previous stage], (B, image + previous, *patch), and the location. NaN in a location channel says that
        the location of a sample is not known along that axis; there it is 0 and not `known`.
    """
    image, location, previous = x.split((image_channels, LOCATION_CHANNELS, previous_channels), dim=1)
    if previous_channels:
        image = torch.cat([image, previous], dim=1)
    known = ~location.isnan().flatten(2).any(dim=2)
    if not training:
        location = extrapolate_padding(location)  # NaN is continued as well
    return image, LocationPyramid(hide_unknown(location, known), known)


def check_input_shape(
    x: Tensor, image_channels: int, previous_channels: int, rank: int, located: bool = True
) -> None:
    """Raises ValueError unless `x` has the channels and axes that the network was made for.

    Skipped while torch.compile traces, where a check costs a graph break and shapes were seen before.
    """
    if torch.compiler.is_compiling():
        return
    location_channels = LOCATION_CHANNELS if located else 0
    expected = image_channels + location_channels + previous_channels
    if x.dim() == rank + 2 and x.shape[1] == expected:
        return
    parts = [f"{image_channels} image"]
    if location_channels:
        parts.append(f"{location_channels} location")
    if previous_channels:
        parts.append(f"{previous_channels} previous stage")
    raise ValueError(
        f"input must have {expected} channels ({' + '.join(parts)}) and {rank} spatial axes, got shape {tuple(x.shape)}"
    )
