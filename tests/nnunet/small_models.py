"""Trained models of a few kilobytes, whose weights decide the answer."""

import json
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_locctx.nnunet.training.trainers import find_trainer
from tests.nnunet.small_plans import configuration, plans


def make_model(
    folder: Path,
    trainer: str,
    *,
    previous_stage: str | None = None,
    trainer_in_checkpoint: str | None = None,
    axis: int = 0,
    **source: Any,
) -> Path:
    """A model folder as training leaves it.

    Args:
        folder: The folder to make.
        trainer: Its trainer. The weights of a PriorHeadTrainer call everything class 1 whose location along `axis` is
            above 0 and the rest background; those of others are random.
        previous_stage: Makes it the second stage of a cascade.
        trainer_in_checkpoint: What the checkpoint says instead.
        axis: Patient axis (R, A, S) that decides.
        source: Options of the location source; without: voxel.
    """
    block = {"encoding": "identity", "stride": 1}
    location = {"location": {"source": "voxel", **source, "block": block}}
    stage = {} if previous_stage is None else {"previous_stage": previous_stage}
    content = plans(
        {
            "3d_fullres": configuration(
                patch_size=[16, 16, 16], spacing=[3.0, 2.0, 1.0], **location, **stage
            ),
            "3d_lowres": configuration(),
        }
    )
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ".nii.gz",
    }
    manager = PlansManager(content)
    builder: Any = find_trainer(trainer) or nnUNetTrainer
    channels = 1 if previous_stage is None else 2
    network = builder.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), channels, 2, False
    )
    if hasattr(network, "location_regressor"):  # of a fitted source; only `LocationMixin._measure` reads it
        network.location_regressor.data = torch.ones(3, dtype=torch.uint8)
    if trainer == "PriorHeadTrainer":
        _upper_half_is_class_one(network, axis)
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": trainer_in_checkpoint or trainer,
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, fold / "checkpoint_final.pth")
    return folder


def _upper_half_is_class_one(network: nn.Module, axis: int) -> None:
    """Logits that depend on one channel of the location alone: class 1 wins where it is above 0."""
    with torch.no_grad():
        for layer in network.decoder.seg_layers:
            layer.weight.zero_()
            layer.bias.zero_()
        for block in network.location_blocks:
            first, _, last = block.atlas
            for layer in (first, last):
                layer.weight.zero_()
                layer.bias.zero_()
            first.weight[0, axis] = 1  # hidden unit 0 follows the axis
            last.weight[3, 0] = 1  # shift of class 1, behind two scales and the shift of class 0
