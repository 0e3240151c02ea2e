"""What nnU-Net finds behind `trainers/` in nnUNet_extTrainer during the tests: re-exports only."""

from tests.integration.short_trainers import (
    EchoTrainer,
    ShortCoordConv,
    ShortLocBAM,
    ShortPlain,
    ShortPriorHead,
    __getattr__,
)

__all__ = ["EchoTrainer", "ShortCoordConv", "ShortLocBAM", "ShortPlain", "ShortPriorHead", "__getattr__"]
