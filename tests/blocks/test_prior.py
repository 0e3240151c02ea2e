import pytest
import torch

from nnunet_locctx.blocks import PriorHead
from tests.blocks.harness import BlockHarness, ramp, randomise


class TestPriorHead(BlockHarness):
    block = "prior"
    wrong_options = [  # noqa: RUF012
        ({"hidden": 0}, "hidden must be an integer >= 1, got 0"),
        ({"stride": 0.5}, "stride must be an integer >= 1, got 0.5"),
        ({"bound": 0}, "bound must be a positive number, got 0"),
        ({"bound": float("inf")}, "bound must be a positive number, got inf"),
    ]

    def test_scales_and_shifts_by_the_location_alone(self) -> None:
        block = randomise(self.make(4))
        assert isinstance(block, PriorHead)
        location = ramp(2, (3, 4, 5))
        zero, one, two = (block(torch.full((2, 4, 3, 4, 5), value), location) for value in (0.0, 1.0, 2.0))
        torch.testing.assert_close(two - one, one - zero)  # affine in the features, voxel by voxel
        assert zero.std() > 0.01
        assert (one - zero).std() > 0.01

    @pytest.mark.parametrize("bound", [0.5, 1.0, 3.0])
    def test_the_scale_is_bounded_and_the_shift_is_not(self, bound: float) -> None:
        block = self.make(4, bound=bound, encoding="identity")
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_(100 * torch.randn_like(parameter))
        location = ramp(2, (3, 4, 5))
        zero, one = (block(torch.full((2, 4, 3, 4, 5), value), location) for value in (0.0, 1.0))
        gamma = one.double() - zero.double() - 1  # differences of large shifts: rounding of 1e-7 of them
        assert gamma.abs().max() <= bound + 1e-6 * zero.abs().max()
        assert gamma.abs().max() > 0.9 * bound
        assert zero.abs().max() > 1000

    def test_a_small_scale_is_what_the_network_says(self) -> None:
        narrow, wide = self.make(4, bound=1.0), self.make(4, bound=1e6)
        with torch.no_grad():
            for parameter in narrow.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        wide.load_state_dict(narrow.state_dict())
        features, location = torch.randn(2, 4, 5, 6, 7), ramp(2, (5, 6, 7))
        torch.testing.assert_close(narrow(features, location), wide(features, location), atol=1e-3, rtol=0)


class TestPriorHeadIdentity(BlockHarness):
    block = "prior"
    options = {"encoding": "identity", "hidden": 8}  # noqa: RUF012


class TestPriorHeadEverywhere(BlockHarness):
    block = "prior"
    options = {"stride": 1, "bands": 3}  # noqa: RUF012


class TestPriorHeadStride(BlockHarness):
    block = "prior"
    options = {"stride": 3, "bands": 3}  # noqa: RUF012

    def test_is_close_to_the_atlas_computed_everywhere(self) -> None:
        coarse, fine = self.make(4, bands=2, stride=2), self.make(4, bands=2, stride=1)
        randomise(fine)
        coarse.load_state_dict(fine.state_dict())
        size = (12, 13, 8)
        features, location = torch.randn(2, 4, *size), ramp(2, size)
        inside = (slice(None), slice(None), slice(1, -1), slice(1, -1), slice(1, -1))
        difference = (coarse(features, location) - fine(features, location))[inside]
        assert difference.std() < 0.1 * (fine(features, location) - features).std()
