"""``nnUNetv2_train -pretrained_weights`` for located networks.

nnU-Net's loader wants every parameter of the network in the file. A plain nnU-Net checkpoint has none of a
location block, so the loader is shown the planned part of the network only. Location blocks are added from
the file where it has them in the same shape and otherwise stay as they start, which leaves the planned
network's output unchanged.
"""

import functools
import sys
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_locctx.networks.located_unet import LocatedUNet

RUN_TRAINING = "nnunetv2.run.run_training"
BLOCKS = "location_blocks."


def planned_part(network: LocatedUNet) -> nn.Module:
    """The planned network inside a located one, sharing its modules and parameter names."""
    planned = nn.Module()
    planned.encoder = network.encoder
    planned.decoder = network.decoder
    return planned


def install() -> None:
    """Lets the running ``nnUNetv2_train`` load plain checkpoints into located networks; does nothing outside
    that command."""
    command = sys.modules.get(RUN_TRAINING)
    if command is None or getattr(command.load_pretrained_weights, "loads_located", False):
        return
    stock = command.load_pretrained_weights

    @functools.wraps(stock)
    def load_pretrained_weights(network: nn.Module, fname: str, verbose: bool = False) -> None:
        located: Any = network.module if isinstance(network, DistributedDataParallel) else network
        located = located._orig_mod if isinstance(located, OptimizedModule) else located
        if not isinstance(located, LocatedUNet):
            stock(network, fname, verbose)
            return
        stock(planned_part(located), fname, verbose)
        weights = torch.load(fname, map_location="cpu", weights_only=False)["network_weights"]
        copied = load_blocks(located, weights)
        kept = [key for key in located.state_dict() if key.startswith(BLOCKS) and key not in copied]
        print(f"location blocks: {len(copied)} tensors from the file, {len(kept)} kept as they start")

    load_pretrained_weights.loads_located = True  # type: ignore[attr-defined]
    command.load_pretrained_weights = load_pretrained_weights  # type: ignore[attr-defined]


def load_blocks(network: LocatedUNet, weights: dict[str, torch.Tensor]) -> list[str]:
    """Copies the location blocks' tensors of equal name and shape; returns their names."""
    own = network.state_dict()
    copied = [
        key
        for key in own
        if key.startswith(BLOCKS) and key in weights and weights[key].shape == own[key].shape
    ]
    with torch.no_grad():
        for key in copied:
            own[key].copy_(weights[key])
    return copied
