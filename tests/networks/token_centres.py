"""Where the encodings of a network stand: what its tests look at."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_locctx.blocks import FrequencyEncoding


def hooked_locations(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The locations that a network's encodings get for an input, in the order of its places.

    The network has one encoding module for each place, and each is called or shares another place's result; a hook
    on the projection behind it sees both. Encodings keep the location as their first three channels.
    """
    seen: dict[int, Tensor] = {}

    def remember(place: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], __: Tensor) -> None:
            seen[place] = arguments[0][:, :3]

        return hook

    handles = []
    for place, block in enumerate(network.positions):  # type: ignore[arg-type] # a ModuleList
        assert isinstance(block.encoding, FrequencyEncoding)
        handles.append(block.project.register_forward_hook(remember(place)))
    network(x)
    for handle in handles:
        handle.remove()
    return [seen[place] for place in range(len(handles))]


def token_means(location: Tensor, size: tuple[int, ...]) -> Tensor:
    """Mean location of each token's voxels: the token's centre, for a location that is affine in the index."""
    stride = [n // m for n, m in zip(location.shape[2:], size, strict=True)]
    return F.avg_pool3d(location, stride)
