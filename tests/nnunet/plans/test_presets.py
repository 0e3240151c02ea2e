import json
from pathlib import Path

import pytest
import torch

from nnunet_locctx.blocks.gpe import PUBLISHED, PUBLISHED_HASH
from nnunet_locctx.networks.registry import network_class
from nnunet_locctx.nnunet.plans.misfits import misfits
from nnunet_locctx.nnunet.plans.planning import add_configuration, coverage, resolve
from nnunet_locctx.nnunet.plans.presets import MadeFor, list_presets, load_preset
from nnunet_locctx.nnunet.plans.suitability import suitable_trainers
from nnunet_locctx.nnunet.training.trainers import PNetworkTrainer, UNETRPPTrainer, nnFormerTrainer
from nnunet_locctx.nnunet.training.whole_network import WholeNetworkTrainer
from tests.nnunet.paper_plans import BTCV, DATA, planned


@pytest.mark.parametrize("name", sorted(list_presets()))
def test_every_preset_can_be_planned_and_fits_the_data_it_is_for(name: str, tmp_path: Path) -> None:
    preset = load_preset(name)
    assert preset.description == list_presets()[name] != ""
    (tmp_path / "locctx_body_part").mkdir()
    (tmp_path / "locctx_body_part" / "regressor.pt").touch()
    base = DATA.get(name, BTCV)
    made = add_configuration(base, "3d_fullres", "new", **preset.changes)
    full = resolve(made, "new")
    assert full["patch_size"] == preset.changes.get("patch_size", full["patch_size"])
    suitable = suitable_trainers(full)
    of_one_block = "block" in preset.changes.get("location", {}) or preset.changes.get("network")
    usual = () if of_one_block else ("LocCtxTrainer", "LocBAMTrainer", "CoordConvTrainer")
    expected = {*usual, *preset.made_for.trainers}
    assert expected
    assert expected <= set(suitable.names)
    assert misfits(tmp_path, made, full, suitable, preset.made_for) == []


def test_small_patches_take_the_dice_of_the_batch() -> None:
    """Dice per patch rewards calling everything background where a patch holds few of the classes."""
    small = [name for name in list_presets() if max(load_preset(name).changes.get("patch_size", [128])) <= 64]
    assert len(small) == 8
    assert all(load_preset(name).changes["batch_dice"] is True for name in small)


def test_the_published_presets_are_the_published_forms() -> None:
    for name, options in (
        ("gpe_published", {}),
        ("gpe_hash_published", {"encoding": "hash", "hash": PUBLISHED_HASH}),
    ):
        location = load_preset(name).changes["location"]
        assert location == {"place": "stages", "block": {**PUBLISHED, "stride": 1, **options}}
    assert load_preset("gpe_synapse_published").changes["network"] == {"form": "published"}
    location = load_preset("coordconv_published").changes["location"]
    assert location == {"place": "input", "block": {"encoding": "identity", "zero_init": False}}
    # Hooft et al.: body part scores replace the axial coordinate only
    location = load_preset("locbam_iso_large_body_part").changes["location"]
    assert location == {"source": "body_part", "cross_section": "scan"}


@pytest.mark.parametrize(
    ("name", "trainer", "channels", "millions"),
    [
        ("unetrpp_acdc_published", UNETRPPTrainer, 1, 66.8),  # as the paper says
        ("nnformer_acdc_published", nnFormerTrainer, 1, 37.2),
        ("nnformer_brats_published", nnFormerTrainer, 4, 37.6),
        ("gpe_synapse_published", PNetworkTrainer, 1, 59.0),
    ],
)
def test_the_published_networks_have_their_size(
    name: str, trainer: type[WholeNetworkTrainer], channels: int, millions: float
) -> None:
    preset = load_preset(name)
    assert trainer.__name__ in preset.made_for.trainers
    options = trainer.check_configuration(preset.changes)
    classes = 14 if "synapse" in name else 4
    with torch.device("meta"):
        network = network_class(trainer.network_name)(
            channels, classes, preset.changes["patch_size"], **options
        )
    assert sum(one.numel() for one in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_coverage_is_that_of_the_papers_table_2() -> None:
    """All six rows of PtVC in Hooft et al. are those of a volume of 384 mm along each axis."""
    base = planned([3.0, 0.75, 0.75], [128, 512, 512], "CTNormalization")
    printed = {
        "lowres_small": "0.26",
        "lowres_large": "16.67",
        "iso_small": "0.06",
        "iso_large": "3.70",
        "median_small": "0.10",
        "median_large": "5.27",
    }
    for row, percent in printed.items():
        made = add_configuration(base, "3d_fullres", row, **load_preset(f"locbam_{row}").changes)
        assert f"{100 * coverage(resolve(made, row)).patch_to_volume:.2f}" == percent


def test_own_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    content = {"batch_size": 3, "description": "mine", "made_for": {"modality": "MR", "trainers": ["A"]}}
    file.write_text(json.dumps(content))
    assert load_preset(str(file)).changes == {"batch_size": 3}
    assert load_preset(str(file)).made_for == MadeFor(modality="MR", trainers=("A",))
    assert load_preset(str(file)).name == "mine"


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"no preset or file 'huge'; there are .*patch16, patch32"):
        load_preset("huge")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("3", "must hold an object, got int"),
        ('{"speed": 1}', "does not take speed; allowed: desc"),
        ('{"made_for": 3}', "made_for must be an object, got 3"),
        ('{"made_for": {"trainers": 5}}', "made_for.trainers must be a list, got 5"),
        ('{"made_for": {"trainers": [5]}}', r"made_for.trainers must be a list of names, got \[5\]"),
        ('{"made_for": {"upsampling": "x"}}', "made_for.upsampling must be a positive number, got 'x'"),
        ('{"made_for": {"channels": "2"}}', "made_for.channels must be an integer >= 1, got '2'"),
        ('{"patch_size": 32}', "patch_size must be a list, got 32"),
        ('{"spacing": 1.5}', "spacing must be a list, got 1.5"),
        ('{"batch_size": true}', "batch_size must be a whole number, got True"),
        ('{"architecture": [1, 2]}', r"architecture must be an object, got \[1, 2\]"),
        ('{"location": "voxel"}', "location must be an object, got 'voxel'"),
        ('{"location": {"block": "gpe"}}', "location.block must be an object, got 'gpe'"),
        ('{"made_for": {"colour": 1}}', "made_for of the preset .* does not take colour; allowed: modality"),
        ('{"made_for": {"modality": "US"}}', "made_for.modality must be one of CT, MR, got 'US'"),
    ],
)
def test_files_that_are_no_presets(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        load_preset(str(tmp_path / "p.json"))
