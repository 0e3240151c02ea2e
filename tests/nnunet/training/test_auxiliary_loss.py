"""The loss of answers without location; the codebook's loss on its way through trainer, gradient scaler, torch.compile
and two real processes."""

from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_locctx.nnunet.training.losses import AuxiliaryLoss, without_smoothing
from tests.blocks.two_processes import in_two_processes
from tests.networks.test_located_unet import feed, fit, plan


class TestWithoutSmoothing:
    """Of trainers that ask for it."""

    kinds: ClassVar[dict[str, Any]] = {"batch_dice": True, "smooth": 1e-5, "ddp": False}

    def made(self, *, regions: bool = False) -> tuple[Any, Any]:
        """nnU-Net's loss, and ours."""
        stock, ours = (
            DC_and_BCE_loss({}, {**self.kinds, "do_bg": True}, dice_class=MemoryEfficientSoftDiceLoss)
            if regions
            else DC_and_CE_loss({**self.kinds, "do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)
            for _ in range(2)
        )
        return stock, without_smoothing(ours)

    @pytest.mark.parametrize("regions", [False, True])
    def test_equals_nnunets_where_all_classes_are_present(self, regions: bool) -> None:
        logits = torch.randn(2, 3, 4, 4, 4)
        stock, ours = self.made(regions=regions)
        shape, classes = ((2, 3, 4, 4, 4), 2) if regions else ((2, 1, 4, 4, 4), 3)
        target = torch.randint(0, classes, shape).float()
        torch.testing.assert_close(ours(logits, target), stock(logits, target))

    def test_an_absent_class_has_no_gradient(self) -> None:
        """Class 2 is nowhere; what the cross entropy says of it stays."""
        target = torch.randint(0, 2, (2, 1, 4, 4, 4)).float()
        gradients = []
        for loss in self.made():
            probability = torch.randn(2, 3, 4, 4, 4).softmax(1).requires_grad_()
            loss.dc.apply_nonlin = None
            loss.dc(probability, target).backward()
            gradients.append(probability.grad)
        stock, ours = gradients
        assert stock is not None
        assert ours is not None
        assert (ours[:, 2] == 0).all()
        assert (stock[:, 2] != 0).all()
        assert (ours[:, 1] != 0).all()

    def test_a_certain_background_is_not_the_best(self) -> None:
        """Of two small organs that look alike, one of them in each batch."""
        target = torch.zeros(1, 1, 8, 8, 8)
        target[..., :2, :2, :2] = 1.0
        background = torch.zeros(1, 3, 8, 8, 8)
        background[:, 0] = 50.0
        undecided = background.clone()
        undecided[:, 0, :2, :2, :2] = 0.0
        stock, ours = self.made()
        assert stock.dc(background, target) < stock.dc(undecided, target)
        assert ours.dc(undecided, target) < ours.dc(background, target) - 0.2

    def test_also_of_several_resolutions_and_compiled(self) -> None:
        several = DeepSupervisionWrapper(self.made()[0], [1.0, 0.5])
        several.loss.dc = torch.compile(several.loss.dc, backend="eager")
        assert without_smoothing(several) is several
        assert several.loss.dc._orig_mod.smooth == 0
        logits, target = torch.randn(1, 3, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
        assert several.loss.dc(logits, target) == 0  # no class is there

    def test_another_loss_stays_as_it_is(self) -> None:
        assert without_smoothing(loss := nn.CrossEntropyLoss()) is loss


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
