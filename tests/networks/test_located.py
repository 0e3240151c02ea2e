"""`Located`: any network with a block on its logits."""

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from nnunet_locctx.blocks import make_block
from nnunet_locctx.networks import Located


class TwoResolutions(nn.Module):
    """A network with deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(2, 4, 3, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        logits = self.convolution(image)
        return [logits, nn.functional.avg_pool3d(logits, 2)]


def located(network: nn.Module) -> Located:
    """With a head that does something."""
    head = make_block("prior", 4, 3, stride=1)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return Located(network, head, 2)


def scan(size: tuple[int, int, int], channels: int = 2) -> Tensor:
    """(1, channels + 3, *size) of an image and its fractions."""
    axes = [(torch.arange(n) + 0.5) / n - 0.5 for n in size]
    return torch.cat([torch.randn(channels, *size), torch.stack(torch.meshgrid(*axes, indexing="ij"))])[None]


def test_the_head_uses_the_location_and_an_unknown_one_changes_nothing() -> None:
    network = located(nn.Conv3d(2, 4, 1)).eval()
    x = scan((4, 6, 8))
    plain = network.network(x[:, :2])
    assert (network(x) - plain).abs().max() > 1e-3
    x[:, 2:] = torch.nan
    torch.testing.assert_close(network(x), plain, rtol=0, atol=0)


def test_deep_supervision() -> None:
    network = located(TwoResolutions())
    fine, coarse = network(scan((4, 6, 8)))
    assert fine.shape == (1, 4, 4, 6, 8)
    assert coarse.shape == (1, 4, 2, 3, 4)
    (fine.mean() + coarse.mean()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_monais_sliding_window() -> None:
    """Windows of a convolution without a margin add up to the whole scan; one that is too small is padded."""
    network = located(nn.Conv3d(2, 4, 1)).eval()
    whole = scan((9, 10, 11))
    with torch.no_grad():
        windows = sliding_window_inference(whole, (4, 4, 4), 2, network, overlap=0.5)
        torch.testing.assert_close(windows, network(whole), rtol=1e-4, atol=1e-5)
        padded = sliding_window_inference(MetaTensor(whole), (16, 12, 12), 1, network)
        torch.testing.assert_close(padded.as_tensor(), network(whole), rtol=1e-4, atol=1e-5)


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"5 channels \(2 image \+ 3 location\) and 3 spatial axes, got shape \(1, 6"
    ):
        located(nn.Conv3d(2, 4, 1))(scan((4, 4, 4), channels=3))
    with pytest.raises(ValueError, match="image_channels must be at least 1, got 0"):
        Located(nn.Identity(), nn.Identity(), 0)
