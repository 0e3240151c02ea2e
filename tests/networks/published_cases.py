"""The published forms that were run beside their authors' code: which, with which weights, on which patch.

Weights and inputs follow from names and positions alone, so that the fixture holds nothing but outputs.
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nnunet_locctx.networks.registry import complete_network_options, network_class
from nnunet_locctx.networks.whole import WholeNetwork
from tests.networks.small_networks import SMALL

BOXES = ((0.1, 0.4, 0.3, 0.55, 0.0, 0.25), (0.6, 0.9, 0.7, 0.2, 0.5, 0.75))
"""Lower and upper border of each sample's patch along each axis, fractions of the volume; one axis is mirrored."""

FREQUENCY = {"encoding": "frequency"}
HASH = {"encoding": "hash", "hash": {"levels": 3, "log2_entries": 8, "base_resolution": 4}}


@dataclass(frozen=True)
class Case:
    """One comparison: a network, its patch, and its options besides ``form: published``."""

    network: str
    size: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, **other: Any) -> WholeNetwork:
        options = complete_network_options(self.network, {"form": "published", **self.options}) | other
        made = network_class(self.network)(1, 3, self.size, deep_supervision=True, **options).eval()
        made.load_state_dict(weights(made.state_dict()))
        return made

    def feed(self, network: WholeNetwork) -> Tensor:
        return torch.cat([image(self.size), *([location(self.size)] if network.located else [])], dim=1)


# groups divide channels there
UNETRPP = {**SMALL["unetr_pp"], "dims": [4, 8, 16, 32], "depths": [1, 1, 2, 1]}
NNFORMER = {**SMALL["nnformer"], "depths": [2, 2, 2, 2]}
# old MONAI's other sizes are fixed
SWIN_UNETR = {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 4]}

CASES = {
    "unetr_pp": Case("unetr_pp", (16, 32, 64), UNETRPP),
    "unetr_pp_acdc": Case("unetr_pp", (8, 32, 32), {**UNETRPP, "stem": [1, 4, 4], "twofold": True}),
    "unetr_pp_frequency": Case("unetr_pp", (16, 32, 64), {**UNETRPP, **FREQUENCY}),
    "unetr_pp_hash": Case("unetr_pp", (16, 32, 64), {**UNETRPP, **HASH}),
    "p_network": Case("unetr_pp", (16, 32, 64), {**UNETRPP, **HASH, "gpe_places": "all"}),
    "nnformer": Case("nnformer", (16, 32, 64), NNFORMER),
    "nnformer_filled_up": Case("nnformer", (48, 96, 96), {**NNFORMER, "window_size": [4, 5, 5, 2]}),
    "nnformer_frequency": Case("nnformer", (16, 32, 64), {**NNFORMER, **FREQUENCY}),
    "nnformer_brats": Case(
        "nnformer",
        (32, 32, 64),
        {**NNFORMER, "stem": [4, 4, 4], "decoder_num_heads": [4, 2, 2], "supervision": False},
    ),
    "nnformer_acdc": Case(
        "nnformer",
        (14, 64, 64),
        {
            **NNFORMER,
            "window_size": [[3, 5, 5], [3, 5, 5], [7, 4, 4], [3, 5, 5]],
            "stem": [1, 4, 4],
            "strides": [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
            "supervision": False,
        },
    ),
    "unetr_frequency": Case("unetr", (16, 32, 48), {**SMALL["unetr"], **FREQUENCY}),
    "unetr_hash": Case("unetr", (16, 32, 48), {**SMALL["unetr"], **HASH}),
    "swin_unetr": Case("swin_unetr", (32, 32, 64), SWIN_UNETR),
    "swin_unetr_frequency": Case("swin_unetr", (32, 32, 64), {**SWIN_UNETR, **FREQUENCY}),
}


def noise(count: int, phase: float) -> Tensor:
    """`count` numbers from -0.5 to 0.5 that look random and are the same everywhere."""
    wave = torch.sin(78.233 * torch.arange(count, dtype=torch.float64) + phase) * 43758.5453
    return wave - wave.floor() - 0.5


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values for every floating-point tensor of a state dict: about 1 for scales, else about 0, far from the start."""
    made = {}
    for name, value in state.items():
        if not value.is_floating_point():
            made[name] = value
            continue
        vector = value.dim() == 1
        scales = (vector and name.endswith("weight")) or name.endswith(
            ("running_var", "temperature", "scale")
        )
        spread = 0.5 if vector else 2.0 / value[0].numel() ** 0.5
        values = float(scales) + spread * noise(value.numel(), zlib.crc32(name.encode()) % 1000)
        made[name] = values.view(value.shape).to(value.dtype)
    return made


def image(size: tuple[int, ...]) -> Tensor:
    """(2, 1, *size)."""
    values = noise(len(BOXES) * torch.Size(size).numel(), 0.0)
    return values.float().view(len(BOXES), 1, *size)


def location(size: tuple[int, ...]) -> Tensor:
    """Voxel centres of the boxes, -0.5 to 0.5 over the volume: (2, 3, *size)."""
    samples = []
    for box in BOXES:
        axes = [
            low + (torch.arange(n, dtype=torch.float64) + 0.5) / n * (high - low) - 0.5
            for low, high, n in zip(box[::2], box[1::2], size, strict=True)
        ]
        samples.append(torch.stack(torch.meshgrid(*axes, indexing="ij")).float())
    return torch.stack(samples)


def sampled(outputs: Tensor | list[Tensor]) -> dict[str, Tensor]:
    """Every output at every fifth voxel of the first axis and seventh of the others."""
    listed = outputs if isinstance(outputs, list) else [outputs]
    return {str(number): output[:, :, 1::5, 2::7, 3::7] for number, output in enumerate(listed)}
