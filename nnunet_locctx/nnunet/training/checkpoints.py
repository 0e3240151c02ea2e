"""Which weights a located network takes: those that were trained with its own location options, and plain ones to start
from.

``nnUNetv2_train -pretrained_weights``: nnU-Net's loader wants every parameter of the network in the file. A plain
nnU-Net checkpoint has none of a location block, so the loader is shown the planned part of the network only. Location
blocks are added from the file where it has them in the same shape and otherwise stay as they start, which leaves the
planned network's output unchanged.
"""

import functools
import json
import sys
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_locctx.networks.located_unet import LocatedUNet

LENGTH = 2048

GONE = object()
"""What no option can ask for."""

CHANGED: dict[str, Any] = {"bound": GONE, "fraction_of": GONE, "stride": GONE, "span": None}
"""Options whose default is not what was computed before they existed, with the value that is."""


class LocationSignature(nn.Module):
    """Travels in the checkpoint and refuses weights that were trained with other location options.

    Without it a plans file edited after training (another source, say) would change what the coordinates
    mean without a word.

    A checkpoint from before an option existed does not name it. It is read as if it named the default: that of a new
    option must be what was computed before, or its name belongs to :data:`CHANGED`, and the checkpoint is read as if it
    named the value there; if there is none, it is refused.

    Args:
        text: The options that the weights depend on, JSON.
        defaults: The same, with all options of block or network at their defaults.
    """

    text: torch.Tensor

    def __init__(self, text: str, defaults: str = "{}") -> None:
        super().__init__()
        self.defaults: dict[str, Any] = json.loads(defaults)
        data = text.encode()
        if len(data) > LENGTH:
            raise ValueError(f"the location options take {len(data)} characters, {LENGTH} are allowed")
        self.register_buffer("text", torch.tensor([*data, *[0] * (LENGTH - len(data))], dtype=torch.uint8))

    def decoded(self) -> str:
        """The options as text."""
        return bytes(self.text.tolist()).rstrip(b"\0").decode()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + "text")
        if stored is None:
            raise ValueError(
                "the checkpoint was not written by a trainer of nnunet_locctx (it has no location signature). "
                "To start from a plain nnU-Net checkpoint, train with -pretrained_weights."
            )
        trained = bytes(stored.tolist()).rstrip(b"\0").decode()
        before, now = self._completed(trained), self._completed(self.decoded())
        if before != now:
            raise ValueError(
                f"the checkpoint was trained with the location options {trained}, the plans say "
                f"{self.decoded()}. Use the plans.json of the model folder as training wrote it; an option that only "
                f"one of them names belongs to another version of nnunet_locctx.{_remedy(before, now)}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _completed(self, text: str) -> Any:
        """The options of a text, those that it does not name at their defaults; a text that is not JSON as it is."""
        try:
            return _completed(json.loads(text), self.defaults)
        except ValueError:
            return text


def _completed(value: Any, default: Any) -> Any:
    if isinstance(value, dict) and isinstance(default, dict):
        before = {key: CHANGED.get(key, option) for key, option in default.items()}
        before = {key: option for key, option in before.items() if option is not GONE}
        return {**before, **{key: _completed(option, default.get(key)) for key, option in value.items()}}
    if isinstance(value, list) and isinstance(default, list) and len(value) == len(default):
        return [_completed(*pair) for pair in zip(value, default, strict=True)]
    return value


def _remedy(before: Any, now: Any) -> str:
    """How the plans can ask for the network of a checkpoint, where another default of this version is all that
    differs; else nothing."""
    # further blocks have no options in the plans
    own: dict[str, Any] = {"place": None, "block": {}, "also": None}
    if not isinstance(before, dict) or "place" not in before or {**before, **own} != {**now, **own}:
        return ""
    if before["block"].keys() != now["block"].keys():
        return ""
    changes: dict[str, Any] = {}
    if before["place"] != now["place"]:
        changes["place"] = before["place"]
    options = {key: value for key, value in before["block"].items() if value != now["block"][key]}
    if options:
        changes["block"] = options
    if not changes:
        return ""
    return (
        " If it was trained by another version, this one's defaults are what differs: with "
        f"{json.dumps(changes)[1:-1]} in location of its plans.json the network is the one that was trained."
    )


RUN_TRAINING = "nnunetv2.run.run_training"
BLOCKS = "location_blocks."


def planned_part(network: LocatedUNet) -> nn.Module:
    """The planned network inside a located one, sharing its modules and parameter names."""
    planned = nn.Module()
    planned.encoder = network.encoder
    planned.decoder = network.decoder
    return planned


def allow_plain_weights() -> None:
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
