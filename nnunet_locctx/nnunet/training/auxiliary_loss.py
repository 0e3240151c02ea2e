"""nnU-Net's loss with what blocks of the network add to it."""

from typing import Any

from torch import Tensor, nn

from nnunet_locctx.blocks import auxiliary_losses


class AuxiliaryLoss:
    """A loss of nnU-Net's plus the auxiliary losses of the network's last forward pass.

    Blocks leave their losses in an attribute during a forward pass in training mode, and none in evaluation mode: the
    loss of the online validation stays nnU-Net's.

    The sum goes through the gradient scaler with the rest of the loss. A function that injects a gradient in its
    backward pass would need no hook here, but under fp16 the gradients that pass it are scaled by a factor that it does
    not know and that changes from step to step: what it adds would be divided by that factor afterwards.

    Args:
        loss: Of predictions and targets, lists of them with deep supervision.
        network: As nnU-Net runs it, compiled or in DistributedDataParallel or not.
    """

    def __init__(self, loss: Any, network: nn.Module) -> None:
        self.loss, self.network = loss, network

    def __call__(self, output: Any, target: Any) -> Tensor:
        """The loss, a scalar; arguments as for the wrapped loss."""
        total: Tensor = self.loss(output, target)
        for one in auxiliary_losses(self.network):
            total = total + one
        return total
