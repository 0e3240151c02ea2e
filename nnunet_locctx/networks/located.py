"""Any network with a block on its logits that knows where the patch lies."""

from torch import Tensor, nn

from nnunet_locctx.networks.inputs import check_input_shape, split_input
from nnunet_locctx.networks.whole import LogitsOfAnyResolution
from nnunet_locctx.types import Logits, NetworkInput


class Located(nn.Module):
    """``head(network(image), location)`` over an input [image | location (R, A, S)]; of a sample whose location is
    unknown (NaN) along all axes, exactly what the network says.

    Runs under MONAI's ``sliding_window_inference``: in evaluation mode the location is continued into what that pads
    with zeros.

    Args:
        network: From an image (B, image_channels, *spatial) to logits (B, classes, *spatial), or a list of them in
            several resolutions (deep supervision).
        head: A block for as many channels as there are classes, such as ``make_block("prior", classes, rank)``.
        image_channels: Channels in front of the location.
    """

    def __init__(self, network: nn.Module, head: nn.Module, image_channels: int) -> None:
        super().__init__()
        if image_channels < 1:
            raise ValueError(f"image_channels must be at least 1, got {image_channels}")
        self.network, self.head, self.image_channels = network, head, image_channels

    def forward(self, x: NetworkInput) -> Logits | list[LogitsOfAnyResolution]:
        """(B, image_channels + 3, *spatial) -> (B, classes, *spatial), or a list as the network gives it.

        Raises:
            ValueError: If `x` has another number of channels.
        """
        check_input_shape(x, self.image_channels, 0, x.dim() - 2)
        image, location = split_input(x, self.image_channels, 0, self.training)

        def with_head(logits: Tensor) -> Tensor:
            located: Tensor = self.head(logits, location.at(logits.shape[2:]), location.known)
            return located

        output = self.network(image)
        return (
            [with_head(logits) for logits in output]
            if isinstance(output, list | tuple)
            else with_head(output)
        )
