"""Optimiser and learning rate schedule of a method, as its authors trained it or as nnU-Net trains."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the schedule advances once per epoch.

    Attributes:
        optimizer: ``"sgd"`` (Nesterov momentum 0.99, as nnU-Net) or ``"adamw"``.
        learning_rate: The highest.
        weight_decay: L2 penalty (AdamW: decoupled).
        epochs: Length of the training, 250 iterations each, unless a suffix of the trainer's name says otherwise.
        schedule: ``"poly"`` (power 0.9, as nnU-Net) or ``"cosine"``, both from the highest rate to the lowest.
        warmup_epochs: The rate rises linearly over these first.
        lowest: Learning rate at the end.
        source: Where the values are from.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float
    epochs: int
    schedule: str = "poly"
    warmup_epochs: int = 0
    lowest: float = 0.0
    source: str = ""

    def rate(self, epoch: int, epochs: int) -> float:
        """Learning rate of an epoch, counted from 0, of a training of `epochs`."""
        warmup = min(self.warmup_epochs, epochs // 5)  # a short training must not end in its warm-up
        if epoch < warmup:
            return self.learning_rate * (epoch + 1) / (warmup + 1)
        progress = min(1.0, (epoch - warmup) / max(1, epochs - warmup))
        share = (1 - progress) ** 0.9 if self.schedule == "poly" else (1 + math.cos(math.pi * progress)) / 2
        return self.lowest + (self.learning_rate - self.lowest) * share

    def configure(self, network: nn.Module, epochs: int) -> tuple[torch.optim.Optimizer, "EpochSchedule"]:
        """Optimiser and schedule for a training of `epochs`."""
        groups = parameter_groups(network, self.weight_decay)
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, self.learning_rate, momentum=0.99, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, self.learning_rate, betas=(0.9, 0.999))
        return optimizer, EpochSchedule(optimizer, self, epochs)


# Project-MONAI/research-contributions, main.py and utils/data_utils.py of UNETR/BTCV and of SwinUNETR/BTCV: AdamW, rate
# 1e-4, decay 1e-5, 5000 epochs of 24 steps (a scan each, four crops of it), the first 50 to warm up, then a cosine to
# 0. Here as many steps: 120,000 and 1,200 are 480 and 5 epochs of 250.
UNETR_RECIPE = Recipe("adamw", 1e-4, 1e-5, 480, "cosine", 5, source="UNETR's authors' code for BTCV")
SWIN_UNETR_RECIPE = Recipe(
    "adamw", 1e-4, 1e-5, 480, "cosine", 5, source="Swin UNETR's authors' code for BTCV"
)
NNFORMER_RECIPE = Recipe(
    "sgd",
    1e-2,
    3e-5,
    1000,
    source="nnFormer's authors' trainer for Synapse, which starts from pretrained weights",
)
UNETRPP_RECIPE = Recipe("sgd", 1e-2, 3e-5, 1000, source="UNETR++'s authors' trainer for Synapse")
PNETWORK_RECIPE = Recipe(
    "sgd",
    1e-3,
    3e-5,
    300,
    source="P-Network's authors' trainer for Synapse, which starts from earlier weights of theirs",
)
LIGHTMEDSEG_RECIPE = Recipe(
    "adamw",
    1e-3,
    1e-4,
    300,
    "cosine",
    10,
    1e-6,
    source="LightMedSeg; the rates are lost in the paper and ours",
)


class EpochSchedule(LRScheduler):
    """Sets a recipe's learning rate; nnU-Net calls ``step(epoch)`` before each epoch, also when it resumes."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, epochs: int) -> None:
        self.recipe, self.epochs = recipe, epochs
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Sets the rate of an epoch; without a number, of the next one."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rate = self.recipe.rate(self.last_epoch, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All parameters, those of hash tables without weight decay: an entry that no patch of a batch touched would
    shrink towards forgetting."""
    tables, others = split_tables(network)
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": weight_decay}]
    if tables:
        groups.append({"params": tables, "weight_decay": 0.0})
    return groups


def split_tables(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of hash tables (named ``table``), and the others."""
    named: Iterable[tuple[str, nn.Parameter]] = network.named_parameters()
    tables: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        (tables if name.rsplit(".", 1)[-1] == "table" else others).append(parameter)
    return tables, others
