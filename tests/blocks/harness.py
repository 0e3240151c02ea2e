"""What every block must hold, once: a block's test class inherits `BlockHarness` and adds what is its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_locctx.blocks import make_block

SHAPES = [
    pytest.param(1, (5, 6, 7), id="3d-odd"),
    pytest.param(33, (4, 4, 4), id="3d-many-channels"),
    pytest.param(5, (1, 6, 5), id="3d-one-slice"),
    pytest.param(5, (3, 1, 1), id="3d-one-row"),
    pytest.param(5, (8, 12), id="2d"),
    pytest.param(7, (9, 5), id="2d-odd"),
    pytest.param(3, (1, 2), id="2d-tiny"),
]


def ramp(batch: int, size: tuple[int, ...], rotation: float = 0.3) -> Tensor:
    """A location (batch, 3, *size), affine in the index, rotated against the array, another offset per
    sample."""
    axes = [(torch.arange(n) + 0.5) / max(n, 12) - 0.5 for n in size]
    grid = list(torch.meshgrid(*axes, indexing="ij"))
    if len(grid) == 2:
        grid.append(torch.full(size, 0.1))
    first, second, third = grid
    rotated = torch.stack([first + rotation * second, second - rotation * first, third + 0.1 * first])
    return torch.stack([rotated + 0.05 * sample for sample in range(batch)])


def randomise(module: nn.Module) -> nn.Module:
    """Moves every parameter off its start, where zeros hide gradients."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def knowing(*rows: str) -> Tensor:
    """(B, 3), from the axes that are known for each sample."""
    return torch.tensor([[axis in row for axis in "RAS"] for row in rows])


MIXED = ("RAS", "AS", "R", "", "S")
"""Axes that are known for each sample of a batch."""


class BlockHarness:
    """Subclasses set `block` and, where they differ, the other attributes."""

    block: str
    options: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed
    identity_at_start = True
    wrong_options: list[tuple[dict[str, Any], str]] = []  # noqa: RUF012 - options, pattern of the message

    def make(self, channels: int = 5, rank: int = 3, **options: Any) -> nn.Module:
        return make_block(self.block, channels, rank, **{**self.options, **options})

    def made_and_fed(
        self, channels: int, size: tuple[int, ...], batch: int = 2
    ) -> tuple[nn.Module, Tensor, Tensor]:
        """A block in the middle of training, in evaluation mode, and its input."""
        block = randomise(self.make(channels, len(size))).eval()
        return block, torch.randn(batch, channels, *size), ramp(batch, size)

    @pytest.mark.parametrize(("channels", "size"), SHAPES)
    def test_keeps_the_shape_of_the_features(self, channels: int, size: tuple[int, ...]) -> None:
        block, features, location = self.made_and_fed(channels, size)
        output = block(features, location)
        assert output.shape == features.shape
        assert output.dtype == features.dtype
        assert output.isfinite().all()

    @pytest.mark.parametrize(("channels", "size"), SHAPES)
    def test_starts_as_the_identity(self, channels: int, size: tuple[int, ...]) -> None:
        features = torch.randn(2, channels, *size)
        output = self.make(channels, len(size)).eval()(features, ramp(2, size))
        assert torch.equal(output, features) == self.identity_at_start

    @pytest.mark.parametrize("size", [(5, 6, 7), (9, 5)])
    def test_every_parameter_and_the_features_get_a_gradient(self, size: tuple[int, ...]) -> None:
        block, features, location = self.made_and_fed(40, size, batch=3)
        block.train()
        features.requires_grad_()
        (block(features, location, knowing("RAS", "AS", "RA")) ** 2).sum().backward()
        without = [
            name
            for name, parameter in block.named_parameters()
            if not (parameter.grad is not None and parameter.grad.any())
        ]
        assert without == []
        assert features.grad is not None
        assert features.grad.any()

    def test_gradients_reach_the_location_branch_from_the_start(self) -> None:
        block = self.make(8).train()
        (block(torch.randn(2, 8, 4, 5, 6), ramp(2, (4, 5, 6))) ** 2).sum().backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())
        assert all(
            parameter.grad is not None for parameter in block.parameters()
        )  # DDP waits for each of them

    @pytest.mark.parametrize("size", [(2, 2, 3), (3, 2)])
    def test_gradcheck(self, size: tuple[int, ...]) -> None:
        block, features, location = self.made_and_fed(2, size, batch=1)
        block.double()
        names, values = zip(*block.named_parameters(), strict=True)

        def call(features: Tensor, *parameters: Tensor) -> Tensor:
            return torch.func.functional_call(
                block, dict(zip(names, parameters, strict=True)), (features, location.double())
            )

        assert torch.autograd.gradcheck(call, (features.double().requires_grad_(), *values), fast_mode=True)

    def test_compiles_without_a_graph_break(self) -> None:
        block, features, location = self.made_and_fed(4, (5, 6, 7), batch=5)
        torch._dynamo.reset()
        compiled = torch.compile(block, fullgraph=True, backend="eager")
        given = (features, location, knowing(*MIXED))
        torch.testing.assert_close(compiled(*given), block(*given))

    @pytest.mark.parametrize("size", [(5, 6, 7), (8, 9)])
    def test_autocast(self, size: tuple[int, ...]) -> None:
        block, features, location = self.made_and_fed(4, size)
        expected = block(features, location)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = block(features, location)
        assert (output.float() - expected).abs().max() <= 0.05 * expected.abs().max()

    def test_state_dict_round_trip(self) -> None:
        block, features, location = self.made_and_fed(6, (4, 5, 6))
        copy = self.make(6).eval()
        copy.load_state_dict(block.state_dict())
        assert torch.equal(copy(features, location), block(features, location))

    @pytest.mark.parametrize("size", [(5, 6, 7), (8, 9)])
    def test_a_batch_is_its_samples(self, size: tuple[int, ...]) -> None:
        block, features, location = self.made_and_fed(6, size, batch=3)
        one_by_one = torch.cat([block(features[i : i + 1], location[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(block(features, location), one_by_one)

    @pytest.mark.parametrize("size", [(5, 6, 7), (8, 9)])
    def test_depends_on_the_absolute_position(self, size: tuple[int, ...]) -> None:
        block, features, location = self.made_and_fed(6, size)
        assert (block(features, location + 0.2) - block(features, location)).abs().max() > 1e-3

    def test_is_the_identity_where_nothing_is_known(self) -> None:
        for size in ((5, 6, 7), (8, 9)):
            block, features, location = self.made_and_fed(6, size)
            nowhere = torch.full_like(location, torch.nan)
            for training in (False, True):
                output = block.train(training)(features, nowhere, knowing("", ""))
                assert torch.equal(output, features)
            output.sum().backward()
            for parameter in block.parameters():  # DDP waits for each of them
                assert parameter.grad is not None
                assert not parameter.grad.any()  # and no NaN

    @pytest.mark.parametrize("known", ["AS", "R", "RS"])
    def test_does_not_use_an_axis_that_is_not_known(self, known: str) -> None:
        block, features, location = self.made_and_fed(6, (5, 6, 7))
        axes = [axis for axis, name in enumerate("RAS") if name not in known]
        outputs = []
        for value in (location[:, axes], 10 * torch.randn_like(location[:, axes]), torch.nan):
            given = location.clone()
            given[:, axes] = value
            block.zero_grad()
            outputs.append(block(features, given.requires_grad_(), knowing(known, known)))
            (outputs[-1] ** 2).sum().backward()
            assert given.grad is None or not given.grad[:, axes].any()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])
        moved = location.clone()
        moved[:, ["RAS".index(name) for name in known]] += 0.2
        assert (block(features, moved, knowing(known, known)) - outputs[0]).abs().max() > 1e-4
        assert not torch.equal(outputs[0], block(features, location))

    @pytest.mark.parametrize("size", [(5, 6, 7), (8, 9)])
    def test_a_batch_of_mixed_masks_is_its_samples(self, size: tuple[int, ...]) -> None:
        block, features, location = self.made_and_fed(6, size, batch=len(MIXED))
        known = knowing(*MIXED)
        one_by_one = [block(features[i, None], location[i, None], known[i, None]) for i in range(len(MIXED))]
        output = block(features, location, known)
        torch.testing.assert_close(output, torch.cat(one_by_one))
        assert torch.equal(output[3], features[3])
        everything = torch.ones_like(known)
        assert torch.equal(block(features, location, everything), block(features, location))

    def test_says_which_features_it_wants(self) -> None:
        with pytest.raises(
            ValueError, match=r"features must have shape \(B, 5, size, size, size\), got \(2, 4, 3, 3, 3\)"
        ):
            self.make(5)(torch.zeros(2, 4, 3, 3, 3), torch.zeros(2, 3, 3, 3, 3))
        with pytest.raises(
            ValueError, match=r"features must have shape \(B, 5, size, size\), got \(2, 5, 3, 3, 3\)"
        ):
            self.make(5, rank=2)(torch.zeros(2, 5, 3, 3, 3), torch.zeros(2, 3, 3, 3, 3))

    def test_says_which_location_it_wants(self) -> None:
        with pytest.raises(
            ValueError, match=r"location must have shape \(2, 3, 4, 4, 4\).*got \(2, 3, 8, 8, 8\)"
        ):
            self.make(5)(torch.zeros(2, 5, 4, 4, 4), torch.zeros(2, 3, 8, 8, 8))
        for known in (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 3)):
            with pytest.raises(ValueError, match=r"known must be a mask of shape \(2, 3\).*; got \(2, "):
                self.make(5)(torch.zeros(2, 5, 4, 4, 4), torch.zeros(2, 3, 4, 4, 4), known)

    def test_refuses_a_wrong_size(self) -> None:
        with pytest.raises(ValueError, match="rank must be 2 or 3 spatial axes, got 4"):
            self.make(5, rank=4)
        with pytest.raises(ValueError, match="at least 1 feature channel, got 0"):
            self.make(0)

    def test_refuses_unknown_and_impossible_options(self) -> None:
        with pytest.raises(ValueError, match=f"block '{self.block}' does not take colour; allowed: .*bands"):
            self.make(5, colour="red")
        for options, message in [*COMMON_WRONG_OPTIONS, *self.wrong_options]:
            with pytest.raises(ValueError, match=message):
                make_block(self.block, 5, 3, **options)


COMMON_WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"encoding": "sine"}, "encoding must be one of .*'identity', 'frequency'.*got 'sine'"),
    ({"encoding": "frequency", "bands": 0}, "bands must be an integer from 1 to 16, got 0"),
    ({"encoding": "frequency", "bands": "6"}, "bands must be an integer from 1 to 16, got '6'"),
    ({"encoding": "frequency", "base": -1}, "base must be a positive number, got -1"),
]
