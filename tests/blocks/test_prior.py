import torch

from nnunet_locctx.blocks import PriorHead
from tests.blocks.harness import BlockHarness, ramp, randomise


class TestPriorHead(BlockHarness):
    block = "prior"
    wrong_options = [({"hidden": 0}, "hidden must be an integer >= 1, got 0")]  # noqa: RUF012

    def test_scales_and_shifts_by_the_location_alone(self) -> None:
        block = randomise(self.make(4))
        assert isinstance(block, PriorHead)
        location = ramp(2, (3, 4, 5))
        zero, one, two = (block(torch.full((2, 4, 3, 4, 5), value), location) for value in (0.0, 1.0, 2.0))
        torch.testing.assert_close(two - one, one - zero)  # affine in the features, voxel by voxel
        assert zero.std() > 0.01
        assert (one - zero).std() > 0.01


class TestPriorHeadIdentity(BlockHarness):
    block = "prior"
    options = {"encoding": "identity", "hidden": 8}  # noqa: RUF012
