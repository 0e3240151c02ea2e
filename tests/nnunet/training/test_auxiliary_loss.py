"""The loss of answers without location; the codebook's loss on its way through trainer, gradient scaler, torch.compile
and two real processes."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_locctx.nnunet.training.losses import AuxiliaryLoss, DiceOfPresent, over_present_classes
from tests.blocks.two_processes import in_two_processes
from tests.networks.test_located_unet import feed, fit, plan


class TestDiceOfPresent:
    """Of answers without location."""

    def made(self, regions: bool = False, batch_dice: bool = True) -> tuple[nn.Module, nn.Module]:
        """nnU-Net's Dice, and ours."""
        nonlinearity = torch.sigmoid if regions else softmax_helper_dim1
        stock = MemoryEfficientSoftDiceLoss(nonlinearity, batch_dice, regions, 1e-5, ddp=False)
        return stock, DiceOfPresent(stock)

    def test_equals_nnunets_where_all_classes_are_present(self) -> None:
        said = torch.randn(2, 3, 4, 4, 4)
        for batch_dice in (True, False):
            stock, ours = self.made(batch_dice=batch_dice)
            target = torch.randint(0, 3, (2, 1, 4, 4, 4)).float()
            torch.testing.assert_close(ours(said, target), stock(said, target))
            stock, ours = self.made(True, batch_dice)
            target = torch.randint(0, 2, (2, 3, 4, 4, 4)).float()
            torch.testing.assert_close(ours(said, target), stock(said, target))

    @pytest.mark.parametrize("regions", [False, True])
    def test_an_absent_class_counts_as_found(self, regions: bool) -> None:
        """Class 2 lies in the second sample alone, class 3 nowhere."""
        said = torch.randn(2, 4, 4, 4, 4)
        target = torch.randint(0, 2, (2, 1, 4, 4, 4)).float()
        target[1, 0, 0] = 2.0
        if regions:
            target = torch.cat([target == index for index in range(4)], 1).float()
        first = 0 if regions else 1
        for batch_dice, share in ((True, [[1, 1, 1, 0]]), (False, [[1, 1, 0, 0], [1, 1, 1, 0]])):
            stock, ours = self.made(regions, batch_dice)
            probability = stock.apply_nonlin(said)
            truth = target if regions else torch.cat([target == index for index in range(4)], 1).float()
            axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
            dice = 2 * (probability * truth).sum(axes) / (probability + truth).sum(axes)
            expected = torch.where(torch.tensor(share).view(dice.shape) == 1, dice, 1.0)[..., first:].mean()
            torch.testing.assert_close(ours(said, target), -expected, atol=1e-4, rtol=1e-4)
            assert (ours(said, target) - stock(said, target)).abs() > 0.05

    def test_what_is_ignored_is_not_present(self) -> None:
        stock, ours = self.made(regions=True)
        said, target = torch.randn(2, 2, 4, 4, 4), torch.zeros(2, 2, 4, 4, 4)
        target[:, 0], target[:, 1, 0] = 1.0, 1.0
        mask = torch.ones(2, 1, 4, 4, 4)
        mask[:, :, 0] = 0.0  # all of the second region
        assert ours(said, target, loss_mask=mask) < stock(said, target, loss_mask=mask) - 0.3

    def test_a_certain_background_is_not_the_best(self) -> None:
        """Of two small organs that look alike, one of them in each batch."""
        target = torch.zeros(1, 1, 8, 8, 8)
        target[..., :2, :2, :2] = 1.0
        background = torch.zeros(1, 3, 8, 8, 8)
        background[:, 0] = 50.0
        undecided = background.clone()
        undecided[:, 0, :2, :2, :2] = 0.0
        stock, ours = self.made()
        assert stock(background, target) < stock(undecided, target)
        assert ours(undecided, target) < ours(background, target) - 0.2

    def test_replaces_the_dice_of_nnunets_losses(self) -> None:
        kinds = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
        one = DC_and_CE_loss(dict(kinds), {}, dice_class=MemoryEfficientSoftDiceLoss)
        several = DeepSupervisionWrapper(DC_and_BCE_loss({}, dict(kinds)), [1.0, 0.5])
        assert over_present_classes(one) is one
        assert isinstance(one.dc, DiceOfPresent)
        assert isinstance(over_present_classes(several).loss.dc, DiceOfPresent)
        said, target = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 1, 4, 4, 4)).float()
        assert one(said, target).isfinite()
        regions = torch.randint(0, 2, (2, 3, 4, 4, 4)).float()
        assert several([said, said], [regions, regions]).isfinite()


@pytest.fixture
def trainer() -> Any:
    """A real trainer before its first step, without data."""
    from nnunet_locctx.nnunet.training.trainers import L2GTrainer
    from tests.nnunet.small_plans import configuration, plans

    made = configuration(location={"block": {"codes": 16, "references": 8}})
    dataset = {
        "labels": {"background": 0, "a": 1, "b": 2},
        "channel_names": {"0": "CT"},
        "file_ending": ".nii.gz",
    }
    trainer = L2GTrainer(plans({"c": made}), "c", 0, dataset, torch.device("cpu"))
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, trainer.enable_deep_supervision
    )
    trainer.optimizer, _ = trainer.configure_optimizers()
    trainer.loss = trainer._build_loss()
    return trainer


def batch(trainer: Any) -> dict[str, Any]:
    targets = [torch.randint(0, 3, (2, 1, 8, 8, 8)).float()]
    for scale in trainer._get_deep_supervision_scales()[1:]:
        targets.append(targets[0][(..., *[slice(None, None, round(1 / one)) for one in scale])])
    return {"data": torch.randn(2, 4, 8, 8, 8), "target": targets}


def block_of(network: nn.Module) -> Any:
    return next(module for module in network.modules() if hasattr(module, "quantiser"))


def test_training_adds_it(trainer: Any) -> None:
    one = batch(trainer)
    block = block_of(trainer.network)
    output = trainer.network(one["data"])
    auxiliary = block.auxiliary_loss
    total = trainer.loss(output, one["target"])
    torch.testing.assert_close(total, trainer.loss.loss(output, one["target"]) + auxiliary)
    assert auxiliary > 0
    total.backward()
    # the block starts as the identity, so that segmentation says nothing to the reduction yet
    assert block.reduce.weight.grad.abs().max() > 1e-6


def test_steps_of_the_trainer(trainer: Any) -> None:
    block = block_of(trainer.network)
    codebook, reduction = block.quantiser.codebook.clone(), block.reduce.weight.detach().clone()
    for _ in range(2):
        loss = trainer.train_step(batch(trainer))["loss"]
        assert np.isfinite(loss)
        assert block.auxiliary_loss is None  # no graph is kept
    assert not torch.equal(block.quantiser.codebook, codebook)
    assert not torch.equal(block.reduce.weight, reduction)


def test_validation_does_not(trainer: Any) -> None:
    one = batch(trainer)
    trainer.network(one["data"])  # leaves a loss behind
    trainer.network.eval()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with torch.no_grad():
        loss = trainer.validation_step(dict(one))["loss"]
        expected = trainer.loss.loss(trainer.network(one["data"]), one["target"])
    assert float(loss) == pytest.approx(float(expected))
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_gradient_scaler_scales_it_too(trainer: Any) -> None:
    one, block = batch(trainer), block_of(trainer.network)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    state = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    gradients = []
    for scaled in (False, True):
        trainer.network.load_state_dict(state)
        trainer.optimizer.zero_grad()
        loss = trainer.loss(trainer.network(one["data"]), one["target"])
        (scaler.scale(loss) if scaled else loss).backward()
        if scaled:
            scaler.unscale_(trainer.optimizer)
        gradients.append(block.reduce.weight.grad.clone())
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("place", ["bottleneck", pytest.param("stages", marks=pytest.mark.slow)])
def test_a_compiled_network_still_yields_it(place: str) -> None:
    """nnU-Net compiles the network, not the loss."""
    located = fit(plan(deep_supervision=True), "l2g", place).train()
    state = {name: value.clone() for name, value in located.state_dict().items()}
    x, _ = feed()
    torch._dynamo.reset()
    compiled = torch.compile(located, backend="eager", fullgraph=True)
    totals, gradients, codebooks = [], [], []
    for network in (located, compiled):
        located.load_state_dict(state)
        for _ in range(2):
            located.zero_grad()
            total = AuxiliaryLoss(lambda output, _: output[0].square().mean(), network)(network(x), None)
            total.backward()
        totals.append(total)
        gradients.append([block.reduce.weight.grad.clone() for block in located.location_blocks])
        codebooks.append([block.quantiser.codebook.clone() for block in located.location_blocks])
    torch.testing.assert_close(totals[0], totals[1])
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(codebooks[0], codebooks[1])


def three_steps(compiled: bool, rank: int) -> dict[str, Tensor]:
    """State of a network after three steps on batches of this process."""
    located = fit(plan(deep_supervision=True), "l2g", "bottleneck").train()
    wrapped = torch.compile(located, backend="eager", fullgraph=True) if compiled else located
    network = DistributedDataParallel(wrapped)  # in nnU-Net's order
    loss = AuxiliaryLoss(lambda output, _: sum(one.square().mean() for one in output), network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    torch.manual_seed(rank)
    for _ in range(3):
        optimizer.zero_grad()
        loss(network(feed()[0]), None).backward()
        optimizer.step()
    return located.state_dict()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_one_network(compiled: bool) -> None:
    one, other = in_two_processes(partial(three_steps, compiled))
    start = fit(plan(deep_supervision=True), "l2g", "bottleneck").state_dict()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    for name in ("weight", "reduce.weight", "quantiser.codebook"):
        assert not torch.equal(one["location_blocks.0." + name], start["location_blocks.0." + name]), name
