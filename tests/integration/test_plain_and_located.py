"""A plain and a located run differ in the location alone: same batches, same first weights; weights go both ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration.short_trainers import (
    LEARNING_RATE,
    ShortCoordConv,
    ShortLocBAM,
    ShortPlain,
    ShortPriorHead,
)
from tests.integration.workspace import Workspace

TRAINERS = (ShortCoordConv, ShortLocBAM, ShortPriorHead)
CONFIGURATIONS = ("2d", "3d_fullres", "3d_cascade_fullres")
BLOCKS = "location_blocks."
RECORDS = ("location_signature.", "location_range.")


def planned(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that a plain network has too."""
    return {name: weight for name, weight in weights.items() if not name.startswith((BLOCKS, *RECORDS))}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


@pytest.fixture(scope="module")
def space(phantom: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Location with every augmentation on, and the low resolution's segmentations for the cascade."""
    space = phantom.copy(tmp_path_factory.mktemp("both"))

    def augment(plans: dict[str, Any]) -> None:
        for name in ("2d", "3d_fullres"):
            plans["configurations"][name]["location"] = {"jitter": 0.1, "dropout": 0.5}

    space.change_plans(augment)
    space.train("ShortPlain", "3d_lowres", "all")
    return space


def batches(space: Workspace, made_by: type, configuration: str, count: int = 4) -> list[dict[str, Any]]:
    with space.entered():
        trainer = space.trainer(made_by, configuration)
        if trainer.is_cascaded:
            lowres = space.model("ShortPlain", "3d_lowres")
            trainer.folder_with_segs_from_previous_stage = str(
                lowres / "predicted_next_stage" / configuration
            )
        trainer.initialize()
        np.random.seed(7)  # noqa: NPY002 - nnU-Net draws from the global state
        torch.manual_seed(7)
        training, validation = trainer.get_dataloaders()
        return [*(next(training) for _ in range(count)), *(next(validation) for _ in range(2))]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_same_seed_same_batches(configuration: str, space: Workspace) -> None:
    plain = batches(space, ShortPlain, configuration)
    located = batches(space, ShortPriorHead, configuration)
    for one, other in zip(plain, located, strict=True):
        assert list(one["keys"]) == list(other["keys"])
        for mine, theirs in zip(other["target"], one["target"], strict=True):
            assert torch.equal(mine, theirs)
        image, previous = one["data"][:, :1], one["data"][:, 1:]
        assert other["data"].shape[1] == one["data"].shape[1] + 3
        assert torch.equal(other["data"][:, :1], image)
        assert torch.equal(other["data"][:, 4:], previous)
    locations = torch.stack([batch["data"][:, 1:4] for batch in located])
    assert not torch.isnan(locations).any()  # dropout takes axes from whole batches, in the training step
    assert locations.std() > 0.01


@pytest.mark.parametrize("made_by", TRAINERS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_same_seed_same_planned_weights(made_by: type, configuration: str, space: Workspace) -> None:
    weights = []
    with space.entered():
        for trainer in (space.trainer(ShortPlain, configuration), space.trainer(made_by, configuration)):
            torch.manual_seed(11)
            trainer.initialize()
            weights.append(trainer.network.state_dict())
            after = torch.rand(3)
            weights.append({"random state": after})
    plain, plain_random, located, located_random = weights
    equal(plain, planned(located))
    assert any(name.startswith(BLOCKS) for name in located)
    equal(plain_random, located_random)


@pytest.mark.parametrize("made_by", TRAINERS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_with_a_plain_networks_weights_day_0_equals_it(
    made_by: type, configuration: str, space: Workspace
) -> None:
    with space.entered():
        plain, located = space.trainer(ShortPlain, configuration), space.trainer(made_by, configuration)
        plain.initialize()
        located.initialize()
    weights = located.network.state_dict()
    weights.update(plain.network.state_dict())
    located.network.load_state_dict(weights)
    rank = len(plain.configuration_manager.patch_size)
    x = torch.randn(2, plain.num_input_channels, *[16] * rank)
    place = torch.rand(2, 3, *[16] * rank) - 0.5
    for training in (True, False):
        plain.network.train(training)
        located.network.train(training)
        with torch.no_grad():
            expected = plain.network(x)
            output = located.network(torch.cat([x[:, :1], place, x[:, 1:]], dim=1))
        answers = 2 if training and located.location.unlocated_weight else 1
        for one, other in zip(expected * answers, output, strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def plain_checkpoint(space: Workspace) -> Path:
    space.train("ShortPlain")
    return space.model("ShortPlain") / "fold_0" / "checkpoint_final.pth"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ShortCoordConv", marks=pytest.mark.slow),
        pytest.param("ShortLocBAM", marks=pytest.mark.slow),
        "ShortPriorHead",
    ],
)
def test_pretrained_weights_of_a_plain_training(name: str, space: Workspace, plain_checkpoint: Path) -> None:
    printed = space.train(name, options=f"-pretrained_weights {plain_checkpoint}", **{LEARNING_RATE: "0"})
    plain = space.checkpoint("ShortPlain")["network_weights"]
    located = space.checkpoint(name)["network_weights"]
    count = sum(key.startswith(BLOCKS) for key in located)
    assert f"location blocks: 0 tensors from the file, {count} kept as they start" in printed
    loaded = {key: weight for key, weight in planned(located).items() if ".seg_layers." not in key}
    assert loaded
    equal(loaded, {key: plain[key] for key in loaded})
    # and it trains on from there
    space.train(name, fold=1, options=f"-pretrained_weights {plain_checkpoint}")


def test_pretrained_weights_of_a_located_training(space: Workspace) -> None:
    space.train("ShortPriorHead", fold=2)
    source = space.model("ShortPriorHead") / "fold_2" / "checkpoint_final.pth"
    space.train("ShortPriorHead", fold=3, options=f"-pretrained_weights {source}", **{LEARNING_RATE: "0"})
    trained = space.checkpoint("ShortPriorHead", fold=2)["network_weights"]
    loaded = space.checkpoint("ShortPriorHead", fold=3)["network_weights"]
    kept = [key for key in loaded if ".seg_layers." not in key and not key.startswith(RECORDS)]
    assert any(key.startswith(BLOCKS) and trained[key].abs().max() > 0 for key in kept)
    equal({key: loaded[key] for key in kept}, {key: trained[key] for key in kept})
