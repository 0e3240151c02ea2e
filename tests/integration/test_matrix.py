"""Every trainer on every configuration and kind of label, with nnU-Net's own commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_locctx.phantoms.twin_organs import make_phantom
from tests.integration.workspace import Workspace, images, tiny

TRAINERS = (
    "ShortLocBAM",
    pytest.param("ShortCoordConv", marks=pytest.mark.slow),
    pytest.param("ShortPriorHead", marks=pytest.mark.slow),
)


def check_predictions(echoed: dict[str, np.ndarray], truth: Path, allowed: range) -> None:
    """One segmentation per scan, of its size, with the dataset's labels only."""
    expected = images(truth)
    assert echoed.keys() == expected.keys()
    for name, segmentation in echoed.items():
        assert segmentation.shape == expected[name].shape
        assert set(np.unique(segmentation)) <= set(allowed)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trains_and_predicts_every_configuration(trainer: str, phantom: Workspace, tmp_path: Path) -> None:
    space, once = phantom.with_results(tmp_path / "results"), "--disable_tta"
    truth = space.raw / space.dataset / "labelsTs"
    for configuration in ("2d", "3d_fullres"):
        space.train(trainer, configuration)
        space.predict(tmp_path / configuration, trainer, configuration, f"-f 0 {once}")
    # all cases need a segmentation from the previous stage; fold "all" makes it in one training
    space.train(trainer, "3d_lowres", "all")
    assert len(images(space.model(trainer, "3d_lowres") / "fold_all" / "validation")) == 5
    space.predict(tmp_path / "3d_lowres", trainer, "3d_lowres", f"-f all {once}")
    space.train(trainer, "3d_cascade_fullres")
    previous = f"-f 0 {once} -prev_stage_predictions {tmp_path / '3d_lowres'}"
    space.predict(tmp_path / "3d_cascade_fullres", trainer, "3d_cascade_fullres", previous)
    for configuration in ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"):
        check_predictions(images(tmp_path / configuration), truth, range(7))
        checkpoint = space.checkpoint(trainer, configuration, "all" if configuration == "3d_lowres" else 0)
        assert checkpoint["trainer_name"] == trainer
        weights = checkpoint["network_weights"]
        assert any(name.startswith("location_blocks.") for name in weights)
        assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_residual_encoder(trainer: str, phantom: Workspace, tmp_path: Path) -> None:
    space = phantom.copy(tmp_path)
    space.run("nnUNetv2_plan_experiment -d 1 -pl nnUNetPlannerResEncM")
    file = space.preprocessed / space.dataset / "nnUNetResEncUNetMPlans.json"
    plans = json.loads(file.read_text())
    full = plans["configurations"]["3d_fullres"]
    assert full["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    full["architecture"]["arch_kwargs"].update(tiny(3, residual=True))
    full.update(patch_size=[16] * 3, batch_size=2, data_identifier="nnUNetPlans_3d_fullres")
    file.write_text(json.dumps(plans))
    space.train(trainer, options="-p nnUNetResEncUNetMPlans")
    space.predict(tmp_path / trainer, trainer, options="-f 0 --disable_tta -p nnUNetResEncUNetMPlans")
    check_predictions(images(tmp_path / trainer), space.raw / space.dataset / "labelsTs", range(7))


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("options", "heads"),
    [
        pytest.param({"channels": 2, "regions": True, "ignore": True}, 3, id="two channels, regions, ignore"),
        pytest.param({"ignore": True}, 7, id="labels, ignore", marks=pytest.mark.slow),
    ],
)
def test_kinds_of_data(options: dict[str, int], heads: int, trainer: str, tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    make_phantom(space.raw, 1, cases=5, test_cases=1, size=20, seed=4, **options)  # type: ignore[arg-type]
    space.prepare()
    space.train(trainer)
    weights = space.checkpoint(trainer)["network_weights"]
    assert weights["encoder.stages.0.0.convs.0.conv.weight"].shape[1] == options.get("channels", 1)
    assert weights["decoder.seg_layers.0.weight"].shape[0] == heads
    space.predict(tmp_path / trainer, trainer)
    check_predictions(images(tmp_path / trainer), space.raw / space.dataset / "labelsTs", range(7))


@pytest.mark.parametrize("short", ["Short", pytest.param("", marks=pytest.mark.slow)])
def test_suffixes_name_results_and_checkpoints(short: str, phantom: Workspace, tmp_path: Path) -> None:
    """All suffixes; slowly at nnU-Net's 250 iterations."""
    name = f"{short}PriorHeadTrainer_noDA_1epochs_noMirroring"
    space = phantom.with_results(tmp_path / "results")
    space.train(name)
    checkpoint = space.checkpoint(name)
    assert checkpoint["trainer_name"] == name
    assert checkpoint["current_epoch"] == 1
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    assert [path.name for path in (space.results / space.dataset).iterdir()] == [
        f"{name}__nnUNetPlans__3d_fullres"
    ]
    space.predict(tmp_path / "predicted", name)
    check_predictions(images(tmp_path / "predicted"), space.raw / space.dataset / "labelsTs", range(7))
