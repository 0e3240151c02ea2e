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
        ({"shift_bound": -1}, "shift_bound must be a positive number, got -1"),
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
    def test_scale_and_shift_are_bounded(self, bound: float) -> None:
        gamma, beta = self.extremes(self.make(4, bound=bound, shift_bound=2 * bound, encoding="identity"))
        for change, limit in ((gamma, bound), (beta, 2 * bound)):
            assert change.abs().max() <= limit + 1e-5
            assert change.abs().max() > 0.9 * limit

    def test_weights_from_before_they_held_their_limits_keep_a_free_shift(self) -> None:
        trained = self.make(4, encoding="identity")
        self.extremes(trained)
        weights = trained.state_dict()
        del weights["limits"]
        old, continued = self.make(4, encoding="identity"), self.make(4, encoding="identity")
        old.load_state_dict(weights)
        continued.load_state_dict(old.state_dict())  # a checkpoint of a training that went on
        location = ramp(2, (3, 4, 5))
        shift = old(torch.zeros(2, 4, 3, 4, 5), location)
        assert shift.abs().max() > 1000
        torch.testing.assert_close(continued(torch.zeros(2, 4, 3, 4, 5), location), shift)

    @staticmethod
    def extremes(block: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Gamma and beta of a block with large weights."""
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_(100 * torch.randn_like(parameter))
        zero, one = (block(torch.full((2, 4, 3, 4, 5), value), ramp(2, (3, 4, 5))) for value in (0.0, 1.0))
        return one - zero - 1, zero

    def test_a_small_scale_is_what_the_network_says(self) -> None:
        narrow, wide = self.make(4, bound=1.0, shift_bound=1.0), self.make(4, bound=1e6, shift_bound=1e6)
        with torch.no_grad():
            for parameter in narrow.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        wide.load_state_dict({**narrow.state_dict(), "limits": wide.limits})
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
