"""Trainers of networks that replace the planned one: options, refusals, deep supervision, recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_locctx.nnunet.training import recipes, trainers
from nnunet_locctx.nnunet.training.checkpoints import LocationSignature
from nnunet_locctx.nnunet.training.recipes import Recipe
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from nnunet_locctx.nnunet.training.whole_network import WholeNetworkTrainer
from tests.networks.small_networks import SMALL
from tests.nnunet.small_plans import configuration, plans

DATASET = {
    "labels": {"background": 0, "a": 1, "b": 2},
    "channel_names": {"0": "CT"},
    "file_ending": ".nii.gz",
}
PATCH = [64, 32, 32]  # every one of them takes it


def make(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    made = configuration(**{"patch_size": PATCH, **changes})
    trainer = trainers.find_trainer(name)
    assert trainer is not None
    return trainer(plans({"c": made}), "c", 0, dict(DATASET), torch.device("cpu"))


def small(name: str) -> dict[str, Any]:
    trainer = TRAINERS[name.split("_")[0]]
    assert issubclass(trainer, WholeNetworkTrainer)
    return SMALL[trainer.network_name]


@pytest.mark.parametrize("name", ["GPEHashSwinUNETRTrainer", "LightMedSegTrainer", "nnFormerTrainer"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [40, 40, 40]}, r"patch_size \[40, 40, 40\] does not fit .*; nearest allowed: \["),
        ({"network": {"colour": 1}}, r"network '.*' does not take colour; allowed: "),
        ({"network": [1]}, r"'network' key must be a table of options, got \[1\]"),
        ({"location": {"place": "decoder"}}, r"location\.place is for trainers that fit a block"),
        ({"location": {"block": {"bands": 3}}}, r"location\.block is for trainers that fit a block"),
    ],
)
def test_refuses_before_anything_is_written(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, tmp_path, monkeypatch, **changes)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GPEUNETRTrainer", {"encoding": None}),
        ("UNETRTrainer", {"encoding": "frequency"}),
        ("LightMedSegTrainer", {"coordinates": "patch"}),
        ("LightMedSegTrainer", {"anchors": 0, "box": False}),
    ],
)
def test_the_trainers_name_decides_about_location(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"location, and the options .* (do not use|ask for) it"):
        make(name, tmp_path, monkeypatch, network={**small(name), **options})
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "name", ["UNETRPPTrainer", "GPEnnFormerTrainer", "UNETRTrainer", "LightMedSegTrainer"]
)
def test_loss_and_targets_follow_the_networks_resolutions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(name, tmp_path, monkeypatch, network=small(name))
    trainer.num_input_channels = 1
    scales = trainer._get_deep_supervision_scales()
    network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, trainer.enable_deep_supervision
    ).train()
    outputs = network(torch.randn(2, 4 if trainer.located else 1, *PATCH))
    trainer.network = network
    loss = trainer._build_loss()
    if scales is None:
        assert isinstance(outputs, torch.Tensor)
        assert not hasattr(loss, "weight_factors")
        return
    expected = [[round(n * scale) for n, scale in zip(PATCH, one, strict=True)] for one in scales]
    assert [list(output.shape[2:]) for output in outputs] == expected
    assert loss.weight_factors == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    targets = [torch.randint(0, 3, (2, 1, *size)).float() for size in expected]
    assert loss(outputs, targets).isfinite()
    trainer.set_deep_supervision_enabled(False)
    assert isinstance(network(torch.randn(2, 4 if trainer.located else 1, *PATCH)), torch.Tensor)


def test_deep_supervision_is_not_switched_on_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make("UNETRTrainer", tmp_path, monkeypatch, network=small("UNETRTrainer"))
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, False
    )
    trainer.set_deep_supervision_enabled(True)
    assert trainer.network.deep_supervision is False


def test_a_network_without_its_deep_supervision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = {**small("nnFormerTrainer"), "form": "published", "supervision": False}
    trainer = make("nnFormerTrainer", tmp_path, monkeypatch, network=network)
    assert not trainer.enable_deep_supervision
    assert trainer._get_deep_supervision_scales() is None
    made = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, trainer.enable_deep_supervision
    )
    assert len(made.heads) == 1
    output = made(torch.randn(2, 1, *PATCH))
    assert output.shape == (2, 3, *PATCH)
    assert trainer._build_loss()(output, torch.zeros(2, 1, *PATCH)).isfinite()
    options = json.loads(made.location_signature.decoded())["options"]
    assert options["published_windows"] is True  # spelt out: what the form stands for may change
    assert "form" not in options


ADDED = {
    "GPEUNETRTrainer": {"sampling", "shared_table"},
    "GPESwinUNETRTrainer": {"sampling", "shared_table", "duplicate_neighbours"},
    "GPEnnFormerTrainer": {"sampling", "published_windows", "strides", "supervision", "decoder_num_heads"},
    "GPEUNETRPPTrainer": {"sampling", "scrambled_tokens", "gate", "twofold"},
}
"""Options that came with the published forms."""


@pytest.mark.parametrize("name", ADDED)
def test_models_from_before_the_published_forms_load_and_only_as_what_they_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(**network: Any) -> Any:
        trainer = make(name, tmp_path, monkeypatch, network={**small(name), **network})
        return trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 3, False
        )

    network = build()
    signature = json.loads(network.location_signature.decoded())
    signature["options"] = {
        key: value for key, value in signature["options"].items() if key not in ADDED[name]
    }
    before = network.state_dict()
    before["location_signature.text"] = LocationSignature(json.dumps(signature, sort_keys=True)).text
    network.load_state_dict(before)
    with pytest.raises(ValueError, match="the checkpoint was trained with the location options"):
        build(form="published").load_state_dict(before)


def test_recipe_of_the_authors_or_nnunets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make("UNETRTrainer", tmp_path, monkeypatch, network=small("UNETRTrainer"))
    own.network = nn.Linear(2, 2)
    optimizer, schedule = own.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (own.num_epochs, own.initial_lr) == (recipes.UNETR_RECIPE.epochs, 1e-4)
    rates = []
    for epoch in range(own.num_epochs):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    peak = max(range(len(rates)), key=rates.__getitem__)
    assert peak == recipes.UNETR_RECIPE.warmup_epochs
    assert rates[peak] == pytest.approx(1e-4)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-8
    theirs = make("UNETRTrainer_nnUNetSchedule_7epochs", tmp_path, monkeypatch, network=small("UNETRTrainer"))
    theirs.network = nn.Linear(2, 2)
    optimizer, _ = theirs.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert (theirs.num_epochs, theirs.initial_lr, theirs.weight_decay) == (7, 1e-2, 3e-5)
    short = make("UNETRTrainer_7epochs", tmp_path, monkeypatch, network=small("UNETRTrainer"))
    assert (short.num_epochs, short.initial_lr) == (7, 1e-4)


def test_the_schedules_suffix_is_for_networks_of_their_own() -> None:
    with pytest.raises(
        ValueError, match="'_nnUNetSchedule' is unknown or repeated; allowed: _<N>epochs, _noDA, _noM"
    ):
        trainers.find_trainer("LocCtxTrainer_nnUNetSchedule")


@pytest.mark.parametrize("name", ["LightMedSegPaperTrainer", "LightMedSegTrainer_5epochs"])
def test_classes_weighted_by_the_suffix(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for full in (name, f"{name}_weightedClasses"):
        trainer = make(full, tmp_path, monkeypatch)
        losses.append(trainer._build_loss())
    plain, weighted = losses
    assert not plain.inverse_frequency
    assert weighted.inverse_frequency
    labels = torch.zeros(1, 1, 8, 8, 8)
    labels[..., 4:] = 1
    labels[..., 7, 7] = 2
    logits = torch.randn(1, 3, 8, 8, 8)
    assert abs(float(weighted(logits, labels) - plain(logits, labels))) > 1e-3
    with pytest.raises(
        ValueError, match=r"'_weightedClasses' is unknown or repeated; allowed: .*Schedule, each"
    ):
        trainers.find_trainer("UNETRTrainer_weightedClasses")


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    recipe = Recipe("sgd", 0.1, 0.0, 10)
    optimizer, schedule = recipe.configure(nn.Linear(2, 2), 10)
    schedule.step(6)
    again, resumed = recipe.configure(nn.Linear(2, 2), 10)
    resumed.step(6)
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.4**0.9)


def test_tables_have_no_weight_decay() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    network[0].table = nn.Parameter(torch.zeros(3))
    optimizer, _ = Recipe("adamw", 0.1, 0.5, 10).configure(network, 10)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [
        (2, 0.5),
        (1, 0.0),
    ]
