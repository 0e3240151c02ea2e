import pytest
import torch
from torch import nn

from nnunet_locctx.blocks import CoordConv, CoordConvStem
from tests.blocks.harness import BlockHarness, ramp, randomise


class TestCoordConv(BlockHarness):
    block = "coordconv"


class TestCoordConvEverywhere(BlockHarness):
    block = "coordconv"
    options = {"stride": 1, "bands": 3}  # noqa: RUF012
    wrong_options = [({"stride": 0}, "stride must be an integer >= 1, got 0")]  # noqa: RUF012


class TestCoordConvIdentity(BlockHarness):
    block = "coordconv"
    options = {"encoding": "identity", "stride": 1}  # noqa: RUF012

    def test_is_a_convolution_over_features_and_coordinates(self) -> None:
        block = randomise(self.make(4))
        assert isinstance(block, CoordConv)
        features, location = torch.randn(2, 4, 3, 5, 4), ramp(2, (3, 5, 4))
        both = nn.Conv3d(7, 4, 1)
        with torch.no_grad():
            identity = torch.eye(4).view(4, 4, 1, 1, 1)
            both.weight.copy_(
                torch.cat([block.mix_features.weight + identity, block.mix_location.weight], dim=1)
            )
            both.bias.copy_(block.mix_features.bias)
        expected = both(torch.cat([features, location], dim=1))
        torch.testing.assert_close(block(features, location), expected)


class TestCoordConvPublished(BlockHarness):
    block = "coordconv"
    options = {"encoding": "identity", "stride": 1, "zero_init": False}  # noqa: RUF012
    identity_at_start = False
    wrong_options = [({"zero_init": "no"}, "zero_init must be true or false, got 'no'")]  # noqa: RUF012

    def test_is_drawn_as_one_convolution_over_features_and_coordinates(self) -> None:
        torch.manual_seed(0)
        block = self.make(200)
        assert isinstance(block, CoordConv)
        both = torch.cat(
            [block.mix_features.weight.flatten(1) + torch.eye(200), block.mix_location.weight.flatten(1)], 1
        )
        deviation = (2 / 1.0001 / 203) ** 0.5  # He et al. 2015 over all 203 input channels
        assert both[:, :200].std().item() == pytest.approx(deviation, rel=0.02)
        assert both[:, 200:].std().item() == pytest.approx(deviation, rel=0.1)
        assert not block.mix_features.bias.any()


@pytest.mark.parametrize(("conv", "size"), [(nn.Conv3d, (6, 7, 8)), (nn.Conv2d, (9, 6))])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_stem_is_a_convolution_over_image_and_coordinates(
    conv: type[nn.Conv2d | nn.Conv3d], size: tuple[int, ...], stride: int
) -> None:
    rank = len(size)
    first = conv(2, 4, 3, stride=stride, padding=1)
    stem = CoordConvStem(first)
    image, location = torch.randn(2, 2, *size), ramp(2, size)
    assert not stem(location).any()
    randomise(stem)
    both = conv(5, 4, 3, stride=stride, padding=1)
    with torch.no_grad():
        both.weight.copy_(torch.cat([first.weight, stem.conv.weight], dim=1))
        both.bias.copy_(first.bias)
    torch.testing.assert_close(first(image) + stem(location), both(torch.cat([image, location], dim=1)))
    assert stem.conv.bias is None
    assert stem.conv.weight.dim() == rank + 2


@pytest.mark.parametrize("conv", [nn.Conv3d, nn.Conv2d])
def test_the_published_stem_is_drawn_like_the_image_channels(conv: type[nn.Conv2d | nn.Conv3d]) -> None:
    """The whole is one convolution over [image | coordinates], but for a factor that the norm behind it takes out."""
    torch.manual_seed(0)
    first = conv(1, 320, 3)
    nn.init.kaiming_normal_(first.weight, 0.01)
    stem = CoordConvStem(first, zero_init=False)
    assert stem.conv.weight.std().item() == pytest.approx(first.weight.std().item(), rel=0.05)
    assert stem.conv.weight.mean().item() == pytest.approx(0, abs=0.05 * first.weight.std().item())
    with pytest.raises(ValueError, match="zero_init must be true or false, got 0"):
        CoordConvStem(first, zero_init=0)  # type: ignore[arg-type]
