"""What the tests of UNETR and Swin UNETR share: full sizes without memory, and where the location enters."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nnunet_locctx.blocks import GlobalEncoding, resize_location
from nnunet_locctx.networks.registry import network_class
from nnunet_locctx.networks.whole import WholeNetwork
from tests.networks.harness import feed

PUBLISHED_PATCH = (64, 128, 128)
"""The patch of the published comparison, of one channel and 14 classes."""

FREQUENCY: dict[str, Any] = {"encoding": "frequency", "bands": 3}
HASH: dict[str, Any] = {"encoding": "hash", "hash": {"levels": 3, "log2_entries": 6}}
LOCATED = {"frequency": FREQUENCY, "hash": HASH}


def full_size(name: str, **options: Any) -> WholeNetwork:
    """A network for the published patch that has shapes and no values."""
    with torch.device("meta"):
        return network_class(name)(1, 14, PUBLISHED_PATCH, **options)


def parameters(network: WholeNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: WholeNetwork) -> float:
    """Those of convolutions and matrix products, for one patch."""
    x = torch.zeros(1, 4 if network.located else 1, *PUBLISHED_PATCH, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.train()(x)  # the evaluation mode looks for padding, in values that are not there
    return counter.get_total_flops() / 2


def check_places(network: WholeNetwork, sizes: list[tuple[int, ...]]) -> None:
    """Each place gets the encoding of its own token centres; `sizes` are those of the places, in their order."""
    seen: dict[int, Tensor] = {}
    for place, block in enumerate(network.positions):
        block.project.register_forward_pre_hook(lambda _, inputs, at=place: seen.update({at: inputs[0]}))
    x = feed(network.patch_size, located=True)
    network.train()(x)
    assert sorted(seen) == list(range(len(sizes)))
    for place, size in enumerate(sizes):
        encoding = GlobalEncoding("frequency", bands=FREQUENCY["bands"]).make()
        torch.testing.assert_close(seen[place], encoding(resize_location(x[:, 1:4], size)))
