"""Plain nnU-Net with lengths of training that it has no class for; nnU-Net finds them through nnUNet_extTrainer."""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import (
    nnUNetTrainerDiceCELoss_noSmooth,
)


class nnUNetTrainer_8epochs(nnUNetTrainer):  # noqa: N801 - nnU-Net's way to name its variants
    """2,000 steps."""

    length = 8

    # nnU-Net reads its arguments off this signature
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - as nnU-Net's own
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.length


class nnUNetTrainer_2epochs(nnUNetTrainer_8epochs):  # noqa: N801
    """500 steps."""

    length = 2


class nnUNetTrainer_80epochs(nnUNetTrainer_8epochs):  # noqa: N801
    """20,000 steps."""

    length = 80


class nnUNetTrainer_8epochs_NoMirroring(nnUNetTrainer_8epochs, nnUNetTrainerNoMirroring):  # noqa: N801
    """2,000 steps, patches not mirrored: what a careful user takes where sides matter."""


class nnUNetTrainerDiceCELoss_noSmoothNoMirroring(  # noqa: N801
    nnUNetTrainerDiceCELoss_noSmooth, nnUNetTrainerNoMirroring
):
    """Not mirrored, with the Dice of `LocCtxTrainer`: classes that a batch does not hold do not count."""


class nnUNetTrainerDiceCELoss_noSmooth_8epochs_NoMirroring(  # noqa: N801
    nnUNetTrainer_8epochs, nnUNetTrainerDiceCELoss_noSmoothNoMirroring
):
    """The same, 2,000 steps."""


class nnUNetTrainer_2epochs_NoMirroring(nnUNetTrainer_2epochs, nnUNetTrainerNoMirroring):  # noqa: N801
    """500 steps, not mirrored."""


class nnUNetTrainer_80epochs_NoMirroring(nnUNetTrainer_80epochs, nnUNetTrainerNoMirroring):  # noqa: N801
    """20,000 steps, not mirrored."""
