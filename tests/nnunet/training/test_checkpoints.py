"""Which weights a network takes: those of its own location options, and plain ones to start from."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_locctx.nnunet.training import checkpoints, trainers
from nnunet_locctx.nnunet.training.checkpoints import LENGTH, LocationSignature
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from tests.networks.small_networks import SMALL
from tests.nnunet.small_plans import configuration
from tests.nnunet.training.test_trainer import FITTED, build

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


@pytest.mark.parametrize("name", ["LocCtxTrainer", "PriorHeadTrainer"])
def test_models_from_before_the_bound_of_shifts_compute_what_they_did(name: str) -> None:
    network = build(TRAINERS[name], configuration())
    weights = {key: value for key, value in network.state_dict().items() if not key.endswith(".limits")}
    options = json.loads(network.location_signature.decoded())
    for one in (options["block"], *[also[2] for also in options.get("also", [])]):
        del one["shift_bound"]
    weights["location_signature.text"] = stored(options)["text"]
    network.load_state_dict(weights)
    assert all(block.limits.tolist() == [3.0, float("inf")] for block in network.location_blocks)


@pytest.mark.parametrize("name", ["LocCtxTrainer", "LocBAMTrainer", "GPETrainer", "CoordConvTrainer"])
def test_models_from_before_the_span_load_with_doubling_frequencies_only(name: str) -> None:
    """As plans may ask for, and as the published encoding of GPE and encodings without waves always were."""

    def older(network: nn.Module) -> dict[str, torch.Tensor]:
        options = json.loads(network.location_signature.decoded())  # type: ignore[operator, union-attr]
        for one in (options["block"], *[also[2] for also in options.get("also", [])]):
            del one["span"]
        return stored(options)

    default = build(TRAINERS[name], configuration())
    doubling = build(TRAINERS[name], configuration(location={"block": {"span": None}}))
    for network in (default, doubling):
        if network is doubling or name == "GPETrainer":
            network.location_signature.load_state_dict(older(network))
            continue
        with pytest.raises(
            ValueError,
            match=r'defaults are what differs: with "block": {"span": null} in location of its plans',
        ):
            network.location_signature.load_state_dict(older(network))
    for block in doubling.location_blocks:
        frequencies = block.encoding.frequencies
        torch.testing.assert_close(frequencies[1:], 2 * frequencies[:-1])


def test_the_form_of_an_earlier_version_is_named() -> None:
    """LocCtxTrainer scaled the features of the inner decoder stages once."""
    earlier = configuration(location={"place": "decoder_inner", "block": {"stride": 2}})
    weights = build(trainers.LocCtxTrainer, earlier).state_dict()
    remedy = (
        r'with "place": "decoder_inner", "block": {"stride": 2} in location of its plans.json the network is'
    )
    with pytest.raises(ValueError, match=remedy):
        build(trainers.LocCtxTrainer, configuration()).load_state_dict(weights)
    other_source = configuration(location={"source": "scanner"})
    with pytest.raises(ValueError, match=r"another version of nnunet_locctx\.$"):
        build(trainers.LocCtxTrainer, other_source).load_state_dict(weights)


def test_models_without_waves_do_not_mind_the_span() -> None:
    network = build(TRAINERS["LocBAMTrainer"], configuration(location={"block": {"faithful": True}}))
    network.location_signature.load_state_dict(without(network, "block", "span"))


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


def test_a_checkpoint_keeps_to_its_plans() -> None:
    weights = build(trainers.PriorHeadTrainer, configuration()).state_dict()
    build(trainers.PriorHeadTrainer, configuration(location={"jitter": 0.3})).load_state_dict(weights)
    other = build(trainers.PriorHeadTrainer, configuration(location={"source": "scanner"}))
    with pytest.raises(
        ValueError, match=r'trained with the location options .*"voxel".* the plans say .*"scanner"'
    ):
        other.load_state_dict(weights)
    plain = build(nnUNetTrainer, configuration()).state_dict()
    with pytest.raises(ValueError, match="was not written by a trainer of nnunet_locctx"):
        other.load_state_dict(plain)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the running nnUNetv2_train."""
    module: Any = types.ModuleType(checkpoints.RUN_TRAINING)
    module.load_pretrained_weights = load_pretrained_weights
    monkeypatch.setitem(sys.modules, checkpoints.RUN_TRAINING, module)
    checkpoints.allow_plain_weights()
    checkpoints.allow_plain_weights()
    return module


@pytest.mark.parametrize("name", FITTED)
def test_pretrained_with_a_plain_checkpoint(name: str, command: Any, tmp_path: Path) -> None:
    """nnU-Net never transfers segmentation layers; everything else is loaded and the output is the
    pretrained network's."""
    pretrained = build(nnUNetTrainer, configuration())
    for parameter in pretrained.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"network_weights": pretrained.state_dict()}, tmp_path / "plain.pth")
    located = build(TRAINERS[name], configuration())
    command.load_pretrained_weights(located, str(tmp_path / "plain.pth"), verbose=False)
    for key, value in pretrained.state_dict().items():
        assert torch.equal(located.state_dict()[key], value) != (".seg_layers." in key), key
    pretrained.decoder.seg_layers.load_state_dict(located.decoder.seg_layers.state_dict())
    image, location = torch.rand(2, 1, 8, 8, 8), torch.rand(2, 3, 8, 8, 8)
    torch.testing.assert_close(
        located(torch.cat([image, location], 1)), pretrained(image), atol=1e-5, rtol=1e-5
    )


def test_pretrained_with_a_located_checkpoint(command: Any, tmp_path: Path) -> None:
    """Blocks are transferred too, also when only the source differs."""
    pretrained = build(trainers.LocBAMTrainer, configuration(location={"source": "scanner"}))
    for parameter in pretrained.location_blocks.parameters():
        torch.nn.init.normal_(parameter)
    torch.save({"network_weights": pretrained.state_dict()}, tmp_path / "located.pth")
    located = build(trainers.LocBAMTrainer, configuration())
    command.load_pretrained_weights(located, str(tmp_path / "located.pth"))
    for key, value in pretrained.location_blocks.state_dict().items():
        assert torch.equal(located.location_blocks.state_dict()[key], value)
    assert '"voxel"' in located.location_signature.decoded()


def test_plain_networks_are_loaded_as_ever(command: Any, tmp_path: Path) -> None:
    one, two = build(nnUNetTrainer, configuration()), build(nnUNetTrainer, configuration())
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter)
    torch.save({"network_weights": one.state_dict()}, tmp_path / "plain.pth")
    command.load_pretrained_weights(two, str(tmp_path / "plain.pth"))
    assert torch.equal(
        one.encoder.stages[0][0].convs[0].conv.weight, two.encoder.stages[0][0].convs[0].conv.weight
    )
