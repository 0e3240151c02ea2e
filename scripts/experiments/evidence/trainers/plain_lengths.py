"""Plain nnU-Net with lengths of training that it has no class for; nnU-Net finds them through nnUNet_extTrainer."""

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)


class nnUNetTrainer_8epochs(nnUNetTrainer):  # noqa: N801 - nnU-Net's way to name its variants
    """2,000 steps."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.num_epochs = 8


class nnUNetTrainer_8epochs_NoMirroring(nnUNetTrainerNoMirroring):  # noqa: N801
    """2,000 steps, patches not mirrored: what a careful user takes where sides matter."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.num_epochs = 8
