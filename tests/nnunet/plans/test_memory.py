import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_locctx.nnunet.plans.memory import REFERENCE_BATCH, REFERENCE_GB, REFERENCE_VOXELS, expected_memory
from tests.nnunet.small_plans import architecture, configuration


def test_the_reference_is_that_of_nnunets_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are attributes that only a planner of an existing dataset has, so they are repeated here."""
    import nnunetv2.experiment_planning.experiment_planners.default_experiment_planner as module

    for name in ("maybe_convert_to_dataset_name", "join"):
        monkeypatch.setattr(module, name, lambda *parts: "x")
    monkeypatch.setattr(module, "nnUNet_raw", "x")
    monkeypatch.setattr(module, "nnUNet_preprocessed", "x")
    monkeypatch.setattr(module, "load_json", lambda _: {})
    monkeypatch.setattr(module, "get_filenames_of_train_images_and_targets", lambda *_: {})
    monkeypatch.setattr(module, "isfile", lambda path: True)
    monkeypatch.setattr(module, "_maybe_copy_splits_file", lambda *_: None, raising=False)
    planner = ExperimentPlanner(1)
    assert {2: planner.UNet_reference_val_2d, 3: planner.UNet_reference_val_3d} == REFERENCE_VOXELS
    assert {
        2: planner.UNet_reference_val_corresp_bs_2d,
        3: planner.UNet_reference_val_corresp_bs_3d,
    } == REFERENCE_BATCH
    assert planner.UNet_reference_val_corresp_GB == REFERENCE_GB


def test_memory_of_nnunets_usual_network() -> None:
    """nnU-Net plans 128^3 patches for 8 GB where the voxels are isotropic; the next larger size is too much."""
    planned = architecture(3, features=(32, 64, 128, 256, 320, 320))
    planned["arch_kwargs"]["n_conv_per_stage"] = [2] * 6
    planned["arch_kwargs"]["n_conv_per_stage_decoder"] = [2] * 5
    usual = configuration(patch_size=[128] * 3, batch_size=2, architecture=planned)
    memory = expected_memory(usual)
    assert memory is not None
    assert 6 < memory < REFERENCE_GB
    larger = expected_memory({**usual, "patch_size": [160, 128, 128]})
    assert larger is not None
    assert larger > REFERENCE_GB
    assert expected_memory({**usual, "batch_size": 8}) == pytest.approx(4 * memory)
    # as many voxels in 128 patches of 32^3
    assert expected_memory({**usual, "batch_size": 128, "patch_size": [32] * 3}) == pytest.approx(memory)


def test_networks_of_which_nothing_is_known() -> None:
    other = {"network_class_name": "some.Transformer", "arch_kwargs": {"depth": 4}, "_kw_requires_import": []}
    assert expected_memory(configuration(architecture=other)) is None
