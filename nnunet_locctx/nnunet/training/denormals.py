"""Training on the CPU without denormal floats.

Where location leaves no doubt, as for an organ far from the patch, logits differ by 100 and more, and the gradients of
such patches are denormal (docs/benchmarks.md).
"""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class DenormalsFlushed(nnUNetTrainer):
    """nnU-Net's trainer; on the CPU, denormal floats count as 0 from initialisation to the training's end."""

    def initialize(self) -> None:
        """As nnU-Net's."""
        if self.device.type == "cpu":
            # before the first large operation: torch's worker threads take the setting over when they are started
            torch.set_flush_denormal(True)
        super().initialize()

    def on_train_end(self) -> None:
        """As nnU-Net's."""
        super().on_train_end()
        if self.device.type == "cpu":
            torch.set_flush_denormal(False)
