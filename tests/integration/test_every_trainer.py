"""Every trainer of the package through nnU-Net's own commands: two training steps, the checkpoint, prediction."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_locctx.nnunet.training.trainers import TRAINERS, Trainer, find_trainer
from nnunet_locctx.nnunet.training.whole_network import WholeNetworkTrainer
from tests.integration.test_matrix import check_predictions
from tests.integration.workspace import Workspace, images
from tests.networks.small_networks import SMALL

PATCHES = {"swin_unetr": [64, 32, 32]}
"""The smallest patch of a whole network, if not 32 a side; the phantom's scans are smaller, so prediction pads them."""

HASH = {"levels": 4, "log2_entries": 8}


def options(trainer: Trainer) -> dict[str, Any]:
    """Options that make a trainer's network small; for a hash table too."""
    if not issubclass(trainer, WholeNetworkTrainer):
        return (
            {"location": {"block": {"hash": HASH}}} if trainer.block_options.get("encoding") == "hash" else {}
        )
    small = dict(SMALL[trainer.network_name])
    if trainer.network_options.get("encoding") == "hash":
        small["hash"] = HASH
    return {"network": small}


QUICK = {
    "AnchorTrainer",
    "GPEHashTrainer",
    "L2GTrainer",
    "LightMedSegPaperTrainer_weightedClasses",
    "LocCtxTrainer",
    "PNetworkTrainer",
    "UNETRTrainer",
}
"""A trainer for each block and each kind of trainer; networks are tested in tests/networks, trainers' options beside
them. test_matrix.py and test_commands.py train LocBAM and the prior head."""

NAMES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in sorted([*TRAINERS, "LightMedSegPaperTrainer_weightedClasses"])
]


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_predicts(name: str, phantom: Workspace, tmp_path: Path) -> None:
    space = phantom.copy(tmp_path)
    trainer = find_trainer(name)
    assert trainer is not None
    size: dict[str, Any] = {}
    if issubclass(trainer, WholeNetworkTrainer):
        size["patch_size"] = PATCHES.get(trainer.network_name, [32] * 3)

    def small(plans: dict[str, Any]) -> None:
        plans["configurations"]["small"] = {"inherits_from": "3d_fullres", **size, **options(trainer)}

    space.change_plans(small)
    space.train(f"Short{name}", "small")
    checkpoint = space.checkpoint(f"Short{name}", "small")
    weights = checkpoint["network_weights"]
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert "location_signature.text" in weights
    space.predict(tmp_path / "predicted", f"Short{name}", "small", "-f 0 --disable_tta")
    check_predictions(images(tmp_path / "predicted"), space.raw / space.dataset / "labelsTs", range(7))
