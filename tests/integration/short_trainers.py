"""Trainers of the package, cut to a few iterations; importable, so that spawned workers can unpickle them."""

import functools
import os
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunet_locctx.networks.located_unet import LocatedUNet
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from nnunet_locctx.nnunet.training.trainers import (
    CoordConvTrainer,
    LocBAMTrainer,
    PriorHeadTrainer,
    find_trainer,
)

EPOCHS = "SHORT_EPOCHS"
"""Environment variable: epochs of a short training, 1 if not set."""

LEARNING_RATE = "SHORT_LEARNING_RATE"
"""Environment variable: nnU-Net's own if not set; with 0 the checkpoint holds the weights of day 0."""


class Short(nnUNetTrainer):
    """Two iterations an epoch instead of 250, and one instead of 50 for the online validation."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1
        self.num_epochs = int(os.environ.get(EPOCHS, "1"))
        if LEARNING_RATE in os.environ:
            self.initial_lr = float(os.environ[LEARNING_RATE])


class ShortPlain(Short):
    """nnU-Net without location."""


class ShortCoordConv(Short, CoordConvTrainer):
    """CoordConv."""


class ShortLocBAM(Short, LocBAMTrainer):
    """LocBAM."""


class ShortPriorHead(Short, PriorHeadTrainer):
    """Prior head."""


class EchoUNet(LocatedUNet):
    """Answers with the location it was given instead of a segmentation, and keeps what it was given.

    Attributes:
        scale: Logits per unit of location; large, because nnU-Net adds weighted logits up in half precision.
        inputs: What was given, whole.
        locations: The location of it, continued into the padding.
    """

    scale = 16

    inputs: list[Tensor]
    locations: list[Tensor]

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.clone())
        logits = super().forward(x)
        assert isinstance(logits, Tensor)
        return logits

    def _encode(self, features: Tensor, located: Any) -> list[Tensor]:
        self.locations.append(located.full.clone())
        return [located.full]

    def _decode(self, skips: list[Tensor], located: Any) -> Tensor:
        """Logits (B, classes, *spatial): the location in the first three classes, 0 in the others."""
        location = skips[0] * self.scale
        rest = self.decoder.num_classes - 3
        return torch.cat(
            [location, location.new_zeros((location.shape[0], rest, *location.shape[2:]))], dim=1
        )


class EchoTrainer(Short, LocatedTrainer):
    """For prediction only: the network that stock prediction builds echoes the location."""

    block = "prior"
    built: list[EchoUNet] = []  # noqa: RUF012 - filled by the command under test, read by the test

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> EchoUNet:
        network = super().build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        network.__class__ = EchoUNet
        assert isinstance(network, EchoUNet)
        network.inputs, network.locations = [], []
        cls.built.append(network)
        return network


@functools.cache
def _short(trainer: type[nnUNetTrainer]) -> type[nnUNetTrainer]:
    name = trainer.__name__
    body = {"__module__": __name__, "__doc__": f"{name}, two iterations an epoch."}
    return type(f"Short{name}", (Short, trainer), body)


def __getattr__(name: str) -> type[nnUNetTrainer]:
    """``ShortUNETRTrainer`` and so on: every trainer of the package by its full name, suffixes included."""
    trainer = find_trainer(name.removeprefix("Short")) if name.startswith("Short") else None
    if trainer is not None:
        return _short(trainer)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
