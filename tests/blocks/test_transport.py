"""LocalToGlobal against what every block must hold, and against its own formulas."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_locctx.blocks import LocalToGlobal, auxiliary_losses, make_block
from nnunet_locctx.blocks.quantise import Quantised
from nnunet_locctx.blocks.transport import EPSILON_RANGE, anchor_grid, log_sinkhorn
from tests.blocks.harness import BlockHarness, knowing, ramp, randomise

WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"references": 0}, "references must be an integer >= 1, got 0"),
    ({"heads": 1.5}, "heads must be an integer >= 1, got 1.5"),
    ({"dimensions": 0}, "dimensions must be an integer >= 1, got 0"),
    ({"iterations": 0}, "iterations must be an integer >= 1, got 0"),
    ({"codes": 1}, "codes must be an integer >= 2, got 1"),
    ({"decay": 1}, "decay must be a number from 0 up to, but not including, 1; got 1"),
    ({"epsilon": 0.01}, r"epsilon must be a number from 0.03 to 1.0, got 0.01"),
    ({"epsilon": 2}, r"epsilon must be a number from 0.03 to 1.0, got 2"),
    ({"sigma": 0}, "sigma must be a positive number, got 0"),
    ({"commitment": -1}, "commitment must be a number >= 0, got -1"),
    ({"location": "yes"}, "location must be true or false, got 'yes'"),
    ({"learn_epsilon": 1}, "learn_epsilon must be true or false, got 1"),
    ({"colour": "red"}, "block 'l2g' does not take colour; allowed: location, .*add_references$"),
]


class PassOn(nn.Module):
    """In the quantiser's place: a function whose gradient is its derivative."""

    def forward(self, tokens: Tensor) -> Quantised:
        return Quantised(tokens, tokens.new_zeros(tokens.shape[:-1]), tokens.new_zeros(()))


class LocalToGlobalHarness(BlockHarness):
    block = "l2g"
    options = {"codes": 16, "references": 8}  # noqa: RUF012

    def made_and_fed(
        self, channels: int, size: tuple[int, ...], batch: int = 2
    ) -> tuple[nn.Module, Tensor, Tensor]:
        block, features, location = super().made_and_fed(channels, size, batch)
        block.weight.data.fill_(0.5)  # type: ignore[union-attr, operator] # at random it may be close to zero
        return block, features, location

    @pytest.mark.parametrize("size", [(2, 2, 3), (3, 2)])
    def test_gradcheck(self, size: tuple[int, ...]) -> None:
        """Without the quantiser, whose straight-through gradient is no derivative (tests/blocks/test_quantise.py)."""
        block, features, location = self.made_and_fed(2, size, batch=1)
        block.quantiser = PassOn()
        block.double()
        names, values = zip(*block.named_parameters(), strict=True)

        def call(features: Tensor, *parameters: Tensor) -> Tensor:
            return torch.func.functional_call(
                block, dict(zip(names, parameters, strict=True)), (features, location.double())
            )

        assert torch.autograd.gradcheck(call, (features.double().requires_grad_(), *values), fast_mode=True)

    def test_compiles_in_training(self) -> None:
        """Output, codebook, auxiliary loss and gradients of several steps."""
        block, features, location = self.made_and_fed(4, (5, 6, 7))
        block.train()
        twin = copy.deepcopy(block)
        torch._dynamo.reset()
        compiled = torch.compile(twin, fullgraph=True, backend="eager")
        for _ in range(3):
            losses = []
            for network in (block, compiled):
                output = network(features, location)
                (auxiliary,) = auxiliary_losses(network)
                losses.append((output**2).mean() + auxiliary)
                losses[-1].backward()
            torch.testing.assert_close(losses[0], losses[1])
        for one, other in zip(block.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        for name, value in block.state_dict().items():
            torch.testing.assert_close(value, twin.state_dict()[name])

    def test_commitment_moves_the_reduction_from_the_start(self) -> None:
        block = self.make(8).train()
        features, location = torch.randn(2, 8, 4, 5, 6), ramp(2, (4, 5, 6))
        block(features, location)
        (auxiliary,) = auxiliary_losses(block)
        assert auxiliary > 0
        auxiliary.backward()
        moved = {name for name, parameter in block.named_parameters() if parameter.grad is not None}
        assert moved == {"reduce.weight", "reduce.bias"}
        assert auxiliary_losses(block) == []  # handed out once
        block.eval()(features, location)
        assert auxiliary_losses(block) == []

    def test_copies_and_pickles_in_training(self) -> None:
        block = self.make(8).train()
        block(torch.randn(2, 8, 4, 5, 6), ramp(2, (4, 5, 6)))
        for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert twin.auxiliary_loss is None
        assert block.auxiliary_loss is not None

    def test_every_training_step_changes_the_codebook_and_no_evaluation(self) -> None:
        block, features, location = self.made_and_fed(6, (4, 5, 6))
        before = block.quantiser.codebook.clone()  # type: ignore[union-attr, operator]
        block(features, location)
        assert torch.equal(block.quantiser.codebook, before)  # type: ignore[union-attr]
        block.train()(features, location)
        assert not torch.equal(block.quantiser.codebook, before)  # type: ignore[union-attr]

    def test_autocast_in_training(self) -> None:
        block, features, location = self.made_and_fed(6, (4, 5, 6))
        block.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = block(features.bfloat16(), location)
        assert output.dtype == torch.bfloat16
        (auxiliary,) = auxiliary_losses(block)
        assert auxiliary.dtype == torch.float32

    def test_refuses_unknown_and_impossible_options(self) -> None:
        for options, message in WRONG_OPTIONS:
            with pytest.raises(ValueError, match=message):
                make_block("l2g", 5, 3, **options)

    def test_the_plan_meets_its_marginals(self) -> None:
        block, codes, place = plan_of(self, tokens=150)
        block.iterations = 200
        plan = block.log_plan(codes, place).exp()
        heads, references = block.references.shape[:2]
        assert plan.shape == (2, heads, 150, references)
        torch.testing.assert_close(plan.sum(dim=3), torch.full((2, heads, 150), 1 / 150))
        columns = expected_columns(block, place)
        assert (plan.sum(dim=2) - columns).abs().max() < 1e-4
        assert (columns.sum(dim=-1) - 1).abs().max() < 1e-5


def plan_of(
    harness: LocalToGlobalHarness, tokens: int, width: int = 64
) -> tuple[LocalToGlobal, Tensor, Tensor]:
    """A block somewhat off its start, codes (2, tokens, D) and places (2, tokens, 3)."""
    block = harness.make(width)
    assert isinstance(block, LocalToGlobal)
    width = block.references.shape[2]
    with torch.no_grad():
        for parameter in (block.anchors, block.columns):
            if parameter is not None:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return block, torch.randn(2, tokens, width), torch.rand(2, tokens, 3) * 0.5 - 0.3


def expected_columns(block: LocalToGlobal, place: Tensor) -> Tensor:
    """Mass of each reference, by a loop over the heads: (B or 1, heads, p)."""
    heads, references = block.references.shape[:2]
    masses = []
    for head in range(heads):
        logits = torch.zeros(1, 1, references) if block.columns is None else block.columns[head][None, None]
        if block.anchors is not None and block.log_sigma is not None:
            squared = torch.cdist(place, block.anchors[head][None].expand(len(place), -1, -1)) ** 2
            logits = logits - squared / (2 * block.log_sigma.exp() ** 2)
        masses.append(logits.softmax(dim=2).mean(dim=1))
    return torch.stack(masses, dim=1)


class TestLocalToGlobal(LocalToGlobalHarness):
    def test_the_plan_moves_with_the_patch(self) -> None:
        """Each token prefers the references close to it."""
        block, codes, place = plan_of(self, tokens=60)
        centre = (block.log_plan(codes, place).exp() @ block.anchors).sum(dim=2)
        moved = (block.log_plan(codes, place + 0.2).exp() @ block.anchors).sum(dim=2)
        assert ((moved - centre) > 0.02).all()

    def test_uniform_columns_would_be_blind_to_the_place_of_the_patch(self) -> None:
        """Why the columns take the prior's mass: the column's potential takes up what a shift changes."""
        block, codes, place = plan_of(self, tokens=60)
        similarity = F.normalize(codes, dim=2)[:, None] @ F.normalize(block.references, dim=2).mT
        plan, shifted_plan = (
            log_sinkhorn(similarity / 0.1 + block._log_prior(place + shift, 8)) for shift in (0.0, 0.2)
        )
        torch.testing.assert_close(plan, shifted_plan, atol=1e-4, rtol=1e-4)

    def test_far_outside_the_scan(self) -> None:
        """Scanner coordinates or a wrong header: no reference is near."""
        block, features, location = self.made_and_fed(6, (4, 5, 6))
        location = location + 50
        output = block(features, location)
        output.sum().backward()
        assert output.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in block.parameters())  # type: ignore[union-attr]


class TestLocalToGlobalEveryOption(LocalToGlobalHarness):
    options = {  # noqa: RUF012
        **LocalToGlobalHarness.options,
        "heads": 2,
        "learn_epsilon": True,
        "learn_columns": True,
        "dimensions": 3,
        "add_references": False,
        "iterations": 3,
    }

    @pytest.mark.parametrize("start", [0.03, 1.0])
    def test_epsilon_comes_back_from_its_bounds(self, start: float) -> None:
        block = self.make(6, epsilon=start)
        assert isinstance(block, LocalToGlobal)
        assert block.log_epsilon is not None
        beyond = {0.03: math.log(0.01), 1.0: math.log(3.0)}[start]
        block.log_epsilon.data.fill_(beyond)
        epsilon = block.current_epsilon()
        assert isinstance(epsilon, Tensor)
        assert epsilon.item() == pytest.approx(start)
        assert EPSILON_RANGE[0] - 1e-6 <= epsilon.item() <= EPSILON_RANGE[1] + 1e-6
        epsilon.backward()
        assert block.log_epsilon.grad is not None
        assert block.log_epsilon.grad > 0

    def test_heads_are_averaged(self) -> None:
        block, codes, place = plan_of(self, tokens=30, width=3)
        both = block._align(codes, place, None)
        apart = []
        for head in range(2):
            one = self.make(3, heads=1)
            for name in ("references", "anchors", "columns"):
                getattr(one, name).data.copy_(getattr(block, name)[head : head + 1])
            apart.append(one._align(codes, place, None))  # type: ignore[operator]
        torch.testing.assert_close(both, (apart[0] + apart[1]) / 2)


class TestLocalToGlobalWithoutLocation(LocalToGlobalHarness):
    options = {**LocalToGlobalHarness.options, "location": False}  # noqa: RUF012

    @pytest.mark.parametrize("size", [(5, 6, 7), (8, 9)])
    def test_depends_on_the_absolute_position(self, size: tuple[int, ...]) -> None:
        """It does not."""
        block, features, location = self.made_and_fed(6, size)
        assert torch.equal(block(features, location + 0.2), block(features, location))

    @pytest.mark.parametrize("known", ["AS", "R", "RS"])
    def test_does_not_use_an_axis_that_is_not_known(self, known: str) -> None:
        """Nor one that is."""
        block, features, location = self.made_and_fed(6, (5, 6, 7))
        output = block(features, torch.full_like(location, torch.nan), knowing(known, known))
        assert torch.equal(output, block(features, location))

    def test_formulas(self) -> None:
        """Plan, collection and alignment, with probabilities instead of logarithms."""
        block, codes, _ = plan_of(self, tokens=20, width=4)
        block.iterations = 200
        unit, references = F.normalize(codes, dim=2), F.normalize(block.references[0], dim=1)
        aligned = []
        for one, given in zip(unit, codes, strict=True):
            plan = (one @ references.T / 0.1).exp()
            for _ in range(200):
                plan = plan / plan.sum(dim=0) / 8
                plan = plan / plan.sum(dim=1, keepdim=True) / 20
            aligned.append(20 * plan @ (8 * plan.T @ given))
        torch.testing.assert_close(
            block._align(codes, None, None), torch.stack(aligned), rtol=1e-3, atol=1e-3
        )

    @pytest.mark.parametrize(("tokens", "used"), [(1, 1), (2, 1), (5, 2), (15, 7), (16, 8), (100, 8)])
    def test_few_tokens_use_few_references(self, tokens: int, used: int) -> None:
        block, codes, _ = plan_of(self, tokens, width=4)
        assert block.log_plan(codes, None).shape == (2, 1, tokens, used)
        block._align(codes, None, None).square().sum().backward()
        gradient = block.references.grad
        assert gradient is not None  # DDP waits for it
        assert not gradient[:, used:].any()
        assert gradient[:, :used].any() == (used > 1)  # a single reference takes everything, whatever it is


def test_detached_potentials_change_the_gradient_only() -> None:
    outputs, gradients = [], []
    for detached in (False, True):
        torch.manual_seed(0)
        block = randomise(make_block("l2g", 6, 3, codes=16, references=8, detach_potentials=detached))
        output = block(torch.randn(2, 6, 4, 5, 6), ramp(2, (4, 5, 6)))
        (output**2).mean().backward()
        outputs.append(output)
        gradients.append(block.references.grad)
        assert all(parameter.grad is not None for parameter in block.parameters())
    assert torch.equal(*outputs)
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("count", [1, 5, 8, 27, 64, 100])
def test_anchors_cover_the_cube(count: int) -> None:
    anchors = anchor_grid(count)
    assert anchors.shape == (count, 3)
    assert len(anchors.unique(dim=0)) == count
    assert anchors.abs().max() < 0.5
    if count >= 8:
        assert (anchors.min(dim=0).values <= -0.25).all()
        assert (anchors.max(dim=0).values >= 0.25).all()
        assert anchors.mean(dim=0).abs().max() < 0.05
    if count == 64:
        assert anchors.unique().tolist() == [-0.375, -0.125, 0.125, 0.375]


def test_the_reduction_is_no_wider_than_the_features() -> None:
    assert make_block("l2g", 320, 3).quantiser.codebook.shape == (512, 256)
    assert make_block("l2g", 16, 3).quantiser.codebook.shape == (512, 16)


def test_parameters_of_a_deep_stage() -> None:
    """The notes' count for C 320: 82 k reduction, 16 k references, 164 k fusion; 131 k codebook as a buffer."""
    with torch.device("meta"):
        block = make_block("l2g", 320, 3)
    counts = {name: parameter.numel() for name, parameter in block.named_parameters()}
    assert counts == {
        "references": 64 * 256,
        "anchors": 64 * 3,
        "log_sigma": 1,
        "weight": 1,
        "reduce.weight": 320 * 256,
        "reduce.bias": 256,
        "fuse.weight": 512 * 320,
        "fuse.bias": 320,
    }
    assert block.quantiser.codebook.numel() == 512 * 256
