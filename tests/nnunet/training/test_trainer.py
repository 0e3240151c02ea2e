"""Trainers: found by name, built around nnU-Net's own network, on the CPU without denormal floats."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_locctx.denormals import flushed
from nnunet_locctx.networks.located_unet import LocatedUNet
from nnunet_locctx.nnunet.options import UNLOCATED_WEIGHT
from nnunet_locctx.nnunet.predicting.preprocessing import LocatedConfiguration
from nnunet_locctx.nnunet.training import trainers
from nnunet_locctx.nnunet.training.trainer import DenormalsFlushed
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from nnunet_locctx.nnunet.training.whole_network import WholeNetworkTrainer
from tests.nnunet.small_plans import architecture, configuration, plans

NAMES = sorted(TRAINERS)
FITTED = sorted(name for name, trainer in TRAINERS.items() if not issubclass(trainer, WholeNetworkTrainer))


def build(
    trainer: type[nnUNetTrainer], made: dict[str, Any], channels: int = 1, supervised: bool = False
) -> Any:
    manager = PlansManager(plans({"c": made}))
    torch.manual_seed(3)
    return trainer.build_network_architecture(
        manager, manager.get_configuration("c"), channels, 4, supervised
    )


@pytest.mark.parametrize(
    "name",
    [
        *NAMES,
        "LocBAMTrainer_100epochs_noDA",
        "PriorHeadTrainer_noMirroring_5epochs_noDA",
        "CoordConvTrainer_1epoch",
    ],
)
def test_nnunet_finds_them_and_can_pickle_them(name: str) -> None:
    trainer_class = recursive_find_trainer_class_by_name(name)
    assert trainer_class.__name__ == name
    assert trainer_class.__module__ == "nnunet_locctx.nnunet.training.trainers"
    assert pickle.loads(pickle.dumps(trainer_class)) is trainer_class


def test_suffixes() -> None:
    trainer = trainers.find_trainer("LocBAMTrainer_100epochs_noMirroring_noDA")
    assert trainer is not None
    assert issubclass(trainer, trainers.LocBAMTrainer)
    assert issubclass(trainer, nnUNetTrainerNoDA)
    assert issubclass(trainer, nnUNetTrainerNoMirroring)
    assert (trainer.epochs, trainer.augments) == (100, False)
    plain = trainers.find_trainer("LocBAMTrainer")
    assert plain is trainers.LocBAMTrainer
    assert (plain.epochs, plain.augments) == (None, True)


@pytest.mark.parametrize(
    "name", ["LocBAMTrainer_fast", "LocBAMTrainer_0epochs", "LocBAMTrainer_5epochs_6epochs", "LocBAMTrainer_"]
)
def test_unknown_suffixes_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"is unknown or repeated; allowed: _<N>epochs, _noDA, _noMirroring"):
        recursive_find_trainer_class_by_name(name)


def test_other_names_are_left_to_nnunet() -> None:
    assert not hasattr(trainers, "nnUNetTrainerSomething")
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"):
        recursive_find_trainer_class_by_name("NoSuchTrainer")


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize(("rank", "residual"), [(2, False), (3, True)])
def test_the_planned_network_is_inside(name: str, residual: bool, rank: int) -> None:
    """Same seed, same weights as plain nnU-Net, and before training the same output, whatever the
    location."""
    made = configuration(rank, architecture=architecture(rank, residual))
    plain, located = build(nnUNetTrainer, made), build(TRAINERS[name], made)
    assert isinstance(located, LocatedUNet)
    for key, value in plain.state_dict().items():
        assert torch.equal(located.state_dict()[key], value), key
    image, location = torch.rand(2, 1, *[8] * rank), torch.rand(2, 3, *[8] * rank)
    torch.testing.assert_close(located(torch.cat([image, location], 1)), plain(image), atol=1e-5, rtol=1e-5)


def test_the_cascade_and_several_channels() -> None:
    made = configuration(channels=2, previous_stage="low")
    network = build(trainers.PriorHeadTrainer, made, channels=2 + 3, supervised=True)
    assert (network.image_channels, network.planned_channels) == (2, 5)
    outputs = network(torch.rand(1, 2 + 3 + 3, 8, 8, 8))
    assert [tuple(o.shape[2:]) for o in outputs] == [(8,) * 3, (4,) * 3]


def test_the_configuration_learns_to_bring_location() -> None:
    manager = PlansManager(plans({"c": configuration()}))
    config = manager.get_configuration("c")
    trainers.LocBAMTrainer.build_network_architecture(manager, config, 1, 4, False)
    assert isinstance(config, LocatedConfiguration)


@pytest.mark.parametrize("name", NAMES)
def test_published_methods_are_trained_as_published(name: str) -> None:
    """Learning to do without location and a Dice without smoothing are this project's; its own trainers have both."""
    own = name in ("LocCtxTrainer", "PriorHeadTrainer")
    assert getattr(TRAINERS[name], "unlocated_weight", 0.0) == (UNLOCATED_WEIGHT if own else 0.0)
    assert getattr(TRAINERS[name], "smooths", True) != own


@pytest.mark.parametrize(("name", "smooth"), [("LocCtxTrainer_noMirroring", 0.0), ("LocBAMTrainer", 1e-5)])
@pytest.mark.parametrize("supervised", [True, False])
def test_the_dice_is_smoothed_as_the_trainer_says(
    name: str, smooth: float, supervised: bool, make_trainer: Any
) -> None:
    trainer = make_trainer(name, unlocated_weight=0)
    trainer.enable_deep_supervision = supervised
    loss = trainer._build_loss()
    assert (loss.loss if supervised else loss).dc.smooth == smooth


class TestDoingWithout:
    """The share of the loss for what the network says without location."""

    @pytest.mark.parametrize(
        ("name", "location", "weight"),
        [
            ("LocCtxTrainer", {}, UNLOCATED_WEIGHT),
            ("LocCtxTrainer", {"unlocated_weight": 0.3}, 0.3),
            ("LocCtxTrainer", {"unlocated_weight": 0}, 0.0),
            ("LocCtxTrainer", {"place": "decoder"}, 0.0),
            ("LocBAMTrainer", {}, 0.0),
            ("GPETrainer", {"place": "decoder_last", "unlocated_weight": 1}, 1.0),
        ],
    )
    def test_the_plans_weight_goes_first(
        self, name: str, location: dict[str, Any], weight: float, make_trainer: Any
    ) -> None:
        trainer = make_trainer(name, **location)
        assert trainer.location.unlocated_weight == weight

    @pytest.mark.parametrize(("name", "place"), [("LocCtxTrainer", "encoder"), ("LocBAMTrainer", None)])
    def test_early_places_cannot(
        self, name: str, place: str | None, make_trainer: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(
            ValueError, match=r"unlocated_weight above 0 needs .* decoder_last or logits, got 0\.5"
        ):
            make_trainer(name, unlocated_weight=0.5, **({"place": place} if place else {}))
        assert not (tmp_path / "results").exists()

    @pytest.mark.parametrize("supervised", [True, False])
    def test_a_step_learns_both(self, supervised: bool, make_trainer: Any) -> None:
        trainer = make_trainer("LocCtxTrainer", unlocated_weight=0.5)
        trainer.enable_deep_supervision = supervised
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 2, supervised
        )
        loss = trainer._build_loss()
        data = torch.rand(2, 4, 8, 8, 8)
        target: Any = torch.randint(0, 2, (2, 1, 8, 8, 8)).float()
        if supervised:
            target = [
                target,
                *(target[..., ::2, ::2, ::2] for _ in trainer._get_deep_supervision_scales()[1:]),
            ]
        trainer.network.answer_twice()
        for block in trainer.network.location_blocks:
            torch.nn.init.normal_(block.atlas[2].weight)
        outputs = trainer.network.train()(data)
        half = len(outputs) // 2
        first, second = (outputs[:half], outputs[half:]) if supervised else outputs
        assert loss(outputs, target) == loss.loss(first, target) + 0.5 * loss.loss(second, target)
        assert loss.loss(first, target) != loss.loss(second, target)
        logits = trainer.network.eval()(data)
        assert loss(logits, target) == loss.loss(logits, target)

    @pytest.mark.parametrize(("weight", "answers"), [(1.0, 2), (0.0, 1)])
    def test_the_network_answers_as_often_as_the_loss_asks(
        self, weight: float, answers: int, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before the first step, also of a wrapped network."""

        def initialize(self: Any) -> None:
            network = build(trainers.LocCtxTrainer, configuration(), supervised=True)
            self.network, self.dataset_class = torch.nn.Sequential(network), None

        monkeypatch.setattr(DenormalsFlushed, "initialize", initialize)
        trainer = make_trainer("LocCtxTrainer", unlocated_weight=weight)
        trainer.initialize()
        assert len(trainer.network(torch.rand(1, 4, 8, 8, 8))) == 2 * answers

    def test_half_of_the_steps_lose_all_axes_the_others_one(self, make_trainer: Any) -> None:
        trainer = make_trainer("LocCtxTrainer", axes=["S", "R"])
        lost = torch.tensor([trainer._lost_axes() for _ in range(2000)])
        counts = {
            tuple(row): int((lost == torch.tensor(row)).all(1).sum()) for row in lost.unique(dim=0).tolist()
        }
        assert set(counts) == {(True, True, True), (True, False, False), (False, False, True)}
        assert abs(counts[True, True, True] - 1000) < 100
        assert abs(counts[True, False, False] - 500) < 80

    def test_the_network_is_told_before_each_step(
        self, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the epoch's number, so that a continued training and all GPUs do the same; also without augmentation."""
        monkeypatch.setattr(nnUNetTrainer, "on_train_epoch_start", lambda self: None)
        trainer = make_trainer("LocCtxTrainer_noDA")
        network = build(trainers.LocCtxTrainer, configuration())
        trainer.network = torch.nn.Sequential(network)
        monkeypatch.setattr(nnUNetTrainer, "train_step", lambda self, batch: {"lost": network.lost.tolist()})

        def steps(epoch: int) -> list[list[bool]]:
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            return [trainer.train_step({"data": torch.rand(1, 4, 2, 2, 2)})["lost"] for _ in range(30)]

        assert steps(3) == steps(3) != steps(4)


class TestDropout:
    """Batches that go without an axis, or without all."""

    def rates(self, trainer: Any, monkeypatch: pytest.MonkeyPatch, epoch: int = 0) -> torch.Tensor:
        """(2000, 3): whether an axis was unknown in a batch."""
        monkeypatch.setattr(nnUNetTrainer, "on_train_epoch_start", lambda self: None)
        monkeypatch.setattr(nnUNetTrainer, "train_step", lambda self, batch: {"data": batch["data"]})
        trainer.current_epoch, trainer.network = epoch, torch.nn.Identity()
        trainer.on_train_epoch_start()
        batches = []
        for _ in range(2000):
            data = torch.rand(2, 1 + 3 + 1, 2, 2, 2)  # image, location, previous stage
            before = data.clone()
            after = trainer.train_step({"data": data})["data"]
            assert torch.equal(data, before)  # a benchmark uses its batch again
            unknown = torch.isnan(after)
            torch.testing.assert_close(torch.where(unknown, before, after), before, atol=0, rtol=0)
            unknown = unknown.transpose(0, 1).flatten(1)
            assert torch.equal(unknown.any(1), unknown.all(1))  # the whole batch
            assert not unknown[[0, 4]].any()
            batches.append(unknown[1:4, 0])
        return torch.stack(batches).double()

    def test_has_the_probability_asked_for(self, make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each axis is unknown with it, and all of them together once more."""
        rates = self.rates(make_trainer("LocCtxTrainer", dropout=0.2), monkeypatch)
        assert ((rates.mean(0) - (1 - 0.8**2)).abs() < 0.04).all()
        assert abs(rates.prod(1).mean() - (0.2 + 0.8 * 0.2**3)) < 0.03
        alone = rates[:, 0][rates.prod(1) == 0].mean()
        assert abs(alone - 0.8 * (0.2 - 0.2**3) / (0.8 - 0.8 * 0.2**3)) < 0.04

    def test_follows_from_the_epoch(self, make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """So a continued training and every process of a distributed one do the same."""
        first, again = (
            self.rates(make_trainer("LocCtxTrainer", dropout=0.2), monkeypatch, 3) for _ in range(2)
        )
        assert torch.equal(first, again)
        other = self.rates(make_trainer("LocCtxTrainer", dropout=0.2), monkeypatch, 4)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize(("name", "dropout"), [("LocCtxTrainer_noDA", 0.5), ("LocCtxTrainer", 0.0)])
    def test_nothing_is_dropped(
        self, name: str, dropout: float, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not self.rates(make_trainer(name, dropout=dropout), monkeypatch).any()


def test_wrong_options_stop_before_anything_is_written(make_trainer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown place 'roof'; there are "):
        make_trainer("PriorHeadTrainer", place="roof")
    assert not (tmp_path / "results").exists()


def test_the_recommended_trainer_bounds_its_scales() -> None:
    """A free scale of the logits grows until nnU-Net's prediction overflows, a free shift ends with background."""
    network = build(trainers.LocCtxTrainer, configuration())
    assert {tuple(block.limits.tolist()) for block in network.location_blocks} == {(3.0, 10.0)}
    with torch.no_grad():
        for parameter in network.location_blocks.parameters():
            parameter.copy_(100 * torch.randn_like(parameter))
    for block in network.location_blocks:
        features = torch.zeros(1, block.channels, 8, 8, 8)
        location = torch.rand(1, 3, 8, 8, 8) - 0.5
        shifted = block(features, location)
        assert (block(features + 1000, location) - shifted).abs().max() <= 4001  # at most four times


def test_denormals_are_0_from_initialisation_to_the_end(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda _: None)
    monkeypatch.setattr(nnUNetTrainer, "on_train_end", lambda _: None)
    trainer = make_trainer("LocCtxTrainer")
    assert not flushed()
    DenormalsFlushed.initialize(trainer)
    assert flushed()
    trainer.on_train_end()
    assert not flushed()


def test_denormals_are_0_before_the_network_is_built(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda _: seen.append(flushed()))
    DenormalsFlushed.initialize(make_trainer("LocBAMTrainer"))
    assert seen == [True]


def test_denormals_are_left_alone_on_other_devices(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda _: None)
    trainer = make_trainer("LocCtxTrainer")
    trainer.device = torch.device("cuda")
    DenormalsFlushed.initialize(trainer)
    assert not flushed()


@pytest.mark.parametrize("name", NAMES)
def test_every_trainer_flushes_denormals(name: str) -> None:
    trainer = TRAINERS[name]
    assert issubclass(trainer, DenormalsFlushed)
    order = trainer.__mro__
    assert order.index(DenormalsFlushed) < order.index(nnUNetTrainer)
