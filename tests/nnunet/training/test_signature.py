"""Which checkpoints a network takes."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_locctx.nnunet.training.checkpoints import LENGTH, LocationSignature
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from tests.networks.small_networks import SMALL
from tests.nnunet.small_plans import configuration
from tests.nnunet.training.test_trainer import build

PLANS = {"source": "voxel", "block": {"bands": 6, "hidden": 8}, "also": [["prior", "logits", {"hidden": 16}]]}
DEFAULTS = {
    "source": "voxel",
    "block": {"bands": 6, "hidden": 32},
    "also": [["prior", "logits", {"hidden": 32}]],
}


def stored(options: Any) -> dict[str, torch.Tensor]:
    return LocationSignature(options if isinstance(options, str) else json.dumps(options)).state_dict()


def test_an_option_newer_than_the_checkpoint_counts_as_its_default() -> None:
    signature = LocationSignature(json.dumps(PLANS), json.dumps(DEFAULTS))
    signature.load_state_dict(stored({**PLANS, "block": {"hidden": 8}}))
    signature.load_state_dict(stored(PLANS))  # again, after the older one
    without = {**PLANS, "block": {"bands": 6}}
    with pytest.raises(ValueError, match=r'trained with the location options .*the plans say .*"hidden": 8'):
        LocationSignature(json.dumps(PLANS), json.dumps(DEFAULTS)).load_state_dict(stored(without))
    without = {**PLANS, "also": [["prior", "logits", {}]]}
    with pytest.raises(ValueError, match="trained with the location options"):
        LocationSignature(json.dumps(PLANS), json.dumps(DEFAULTS)).load_state_dict(stored(without))


@pytest.mark.parametrize(
    "trained",
    [
        {**PLANS, "block": {"bands": 6, "hidden": 8, "newer": True}},
        {**PLANS, "source": "scanner"},
        {**PLANS, "also": []},
        [PLANS],
        "no JSON",
    ],
)
def test_other_options_are_refused(trained: Any) -> None:
    signature = LocationSignature(json.dumps(PLANS), json.dumps(DEFAULTS))
    with pytest.raises(ValueError, match="trained with the location options"):
        signature.load_state_dict(stored(trained))


def test_options_that_changed_what_is_computed_must_be_named() -> None:
    """The bound of the scales: without it they were free, so its default is not what the checkpoint computed."""
    network = build(TRAINERS["LocCtxTrainer"], configuration())
    network.location_signature.load_state_dict(without(network, "block", "band_limit"))
    with pytest.raises(ValueError, match=r'the plans say .*"bound": 3.0'):
        network.location_signature.load_state_dict(without(network, "block", "bound"))


@pytest.mark.parametrize("name", ["LocCtxTrainer", "GPEUNETRTrainer"])
def test_fractions_that_were_measured_otherwise_are_refused(name: str) -> None:
    """Before, an oblique scan was divided by the length of its closest array axis."""
    made = {"patch_size": [32] * 3, "network": SMALL["unetr"]} if name.startswith("GPE") else {}
    network = build(TRAINERS[name], configuration(**made))
    options = json.loads(network.location_signature.decoded())
    del options["fraction_of"]
    with pytest.raises(ValueError, match=r'the plans say .*"fraction_of": "bounding box"'):
        network.location_signature.load_state_dict(stored(options))


def test_says_how_long_it_may_be() -> None:
    with pytest.raises(ValueError, match=f"take {LENGTH + 1} characters, {LENGTH} are allowed"):
        LocationSignature("x" * (LENGTH + 1))


def without(network: nn.Module, part: str, option: str) -> dict[str, torch.Tensor]:
    """A network's signature as a version wrote it that did not know one option."""
    assert isinstance(network.location_signature, LocationSignature)
    options = json.loads(network.location_signature.decoded())
    del options[part][option]
    return stored(options)


@pytest.mark.parametrize(
    ("name", "part", "network"),
    [("GPEHashTrainer", "block", {}), ("GPEHashUNETRTrainer", "options", SMALL["unetr"])],
)
def test_models_from_before_an_option_load_and_of_other_hash_arithmetic_do_not(
    name: str, part: str, network: dict[str, Any]
) -> None:
    """Where fine levels are not faded out they would be read at other places than they were trained at."""

    def made(band_limit: bool) -> Any:
        options = {"band_limit": band_limit, "hash": {"levels": 2, "log2_entries": 8}}
        if not network:
            return build(TRAINERS[name], configuration(location={"block": options}))
        return build(TRAINERS[name], configuration(patch_size=[32] * 3, network={**network, **options}))

    faded, whole = made(True), made(False)
    faded.location_signature.load_state_dict(without(faded, part, "bands"))
    whole.location_signature.load_state_dict(whole.location_signature.state_dict())
    assert "hash_positions" not in faded.location_signature.decoded()
    with pytest.raises(
        ValueError, match=r'plans say .*"hash_positions": "float32".*another version of nnunet_locctx'
    ):
        whole.location_signature.load_state_dict(without(whole, part, "hash_positions"))
