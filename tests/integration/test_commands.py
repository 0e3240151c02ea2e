"""nnU-Net's commands around a training, run as they are, on a located network."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.integration.short_trainers import EPOCHS
from tests.integration.workspace import Workspace, images

TRAINER = "ShortPriorHead"


@pytest.fixture(scope="module")
def trained(phantom: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Folds 0 and 1 of two trainers, with the probabilities of their validation."""
    space = phantom.with_results(tmp_path_factory.mktemp("trained"))
    for trainer in (TRAINER, "ShortLocBAM"):
        for fold in (0, 1):
            space.train(trainer, fold=fold, options="--npz")
    return space


@pytest.fixture(scope="module")
def predicted(trained: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0's prediction of the test scans, with probabilities, without mirroring."""
    folder = tmp_path_factory.mktemp("predicted")
    trained.predict(folder, TRAINER, options="-f 0 --save_probabilities --disable_tta")
    return folder


def relative_logits(folder: Path, name: str) -> np.ndarray:
    """(classes, z, y, x): log-probabilities relative to the background's."""
    probabilities = np.load(folder / f"{name}.npz")["probabilities"].astype(np.float64)
    logits: np.ndarray = np.log(probabilities) - np.log(probabilities[:1])
    return logits


def same(first: Path, second: Path) -> None:
    """The same segmentations, voxel by voxel."""
    one, other = images(first), images(second)
    assert one.keys() == other.keys()
    assert one
    for name, segmentation in one.items():
        np.testing.assert_array_equal(segmentation, other[name])


def test_npz_writes_the_validations_probabilities(trained: Workspace) -> None:
    for fold in (0, 1):
        folder = trained.model(TRAINER) / f"fold_{fold}" / "validation"
        names = {name.removesuffix(".nii.gz") for name in images(folder)}
        assert names == {file.stem for file in folder.glob("*.npz")}
        assert len(names) == 1


def test_val_repeats_the_validation_of_the_final_checkpoint(trained: Workspace, tmp_path: Path) -> None:
    folder = trained.model(TRAINER) / "fold_0"
    before = (folder / "checkpoint_final.pth").read_bytes()
    shutil.move(folder / "validation", tmp_path / "validation")
    trained.train(TRAINER, options="--val --npz")
    same(folder / "validation", tmp_path / "validation")
    assert (folder / "checkpoint_final.pth").read_bytes() == before


def test_c_goes_on_where_the_training_stopped(phantom: Workspace, tmp_path: Path) -> None:
    space = phantom.with_results(tmp_path)
    space.train(TRAINER)
    assert space.checkpoint(TRAINER)["current_epoch"] == 1
    printed = space.train(TRAINER, options="--c", **{EPOCHS: "3"})
    assert re.findall(r"Epoch (\d+) *\n", printed) == ["1", "2"]
    assert space.checkpoint(TRAINER)["current_epoch"] == 3


def test_modelfolder_predicts_the_same(trained: Workspace, predicted: Path, tmp_path: Path) -> None:
    trained.run(
        f"nnUNetv2_predict_from_modelfolder -i {trained.raw / trained.dataset / 'imagesTs'} -o {tmp_path} "
        f"-m {trained.model(TRAINER)} -f 0 --disable_tta -device cpu -npp 1 -nps 1 --disable_progress_bar"
    )
    same(tmp_path, predicted)


def test_without_workers_predicts_the_same(trained: Workspace, predicted: Path, tmp_path: Path) -> None:
    trained.predict(tmp_path, TRAINER, options="-f 0 --disable_tta -npp 0 -nps 0")
    same(tmp_path, predicted)


def test_parts_together_are_the_whole(trained: Workspace, predicted: Path, tmp_path: Path) -> None:
    for part in (0, 1):
        trained.predict(tmp_path, TRAINER, options=f"-f 0 --disable_tta -num_parts 2 -part_id {part}")
        assert len(images(tmp_path)) == part + 1
    same(tmp_path, predicted)
    scans = {name.removesuffix(".nii.gz") for name in images(predicted)}
    assert json.loads((tmp_path / "location.json").read_text()).keys() == scans


def test_what_training_has_seen_is_kept_and_checked(trained: Workspace, tmp_path: Path) -> None:
    """Of the fold's training cases; a validation or test scan with another field of view is named."""
    weights = trained.checkpoint(TRAINER)["network_weights"]
    extents = weights["location_range.ranges"][:, 2:]
    assert (extents[:, 0] > 20).all()
    assert (extents[:, 0] < extents[:, 1]).all()
    assert "location (voxel): of 5 cases, R in 5, A in 5, S in 5 known" in trained.log(TRAINER)
    validation = trained.model(TRAINER) / "fold_0" / "validation"
    records = json.loads((validation / "location.json").read_text())
    assert records.keys() == {name.removesuffix(".nii.gz") for name in images(validation)}
    (tmp_path / "scans").mkdir()
    source = trained.raw / trained.dataset / "imagesTs" / "phantom_005_0000.nii.gz"
    image = SimpleITK.ReadImage(str(source))
    direction = np.reshape(image.GetDirection(), (3, 3))
    axis = int(np.argmax(np.abs(direction[2])))
    spacing = list(image.GetSpacing())
    spacing[axis] *= 2
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(tmp_path / "scans" / "long_0000.nii.gz"))
    printed = trained.predict(tmp_path / "out", TRAINER, source=tmp_path / "scans")
    assert "location of long (voxel): R, A known; S unknown: the scan spans" in printed
    assert list(json.loads((tmp_path / "out" / "location.json").read_text())["long"]["unknown"]) == ["S"]


def test_an_ensemble_is_the_mean_of_its_folds(trained: Workspace, predicted: Path, tmp_path: Path) -> None:
    trained.predict(tmp_path / "1", TRAINER, options="-f 1 --save_probabilities --disable_tta")
    trained.predict(tmp_path / "both", TRAINER, options="-f 0 1 --save_probabilities --disable_tta")
    for name in (name.removesuffix(".nii.gz") for name in images(predicted)):
        folds = [relative_logits(folder, name) for folder in (predicted, tmp_path / "1")]
        assert np.abs(folds[0] - folds[1]).max() > 0.05
        # nnU-Net adds logits up in half precision
        np.testing.assert_allclose(
            relative_logits(tmp_path / "both", name), np.mean(folds, axis=0), atol=0.02
        )


def test_mirroring_at_prediction(trained: Workspace, predicted: Path, tmp_path: Path) -> None:
    trained.predict(tmp_path, TRAINER, options="-f 0 --save_probabilities")
    for name in (name.removesuffix(".nii.gz") for name in images(predicted)):
        difference = np.abs(relative_logits(tmp_path, name) - relative_logits(predicted, name))
        assert difference.max() > 1e-3


def test_best_configuration_and_its_postprocessing(
    trained: Workspace, predicted: Path, tmp_path: Path
) -> None:
    trained.run(f"nnUNetv2_find_best_configuration 1 -tr {TRAINER} ShortLocBAM -c 3d_fullres -f 0 1 -np 1")
    best = json.loads((trained.results / trained.dataset / "inference_information.json").read_text())
    assert len(best["all_results"]) == 3  # two trainers and their ensemble
    chosen = best["best_model_or_ensemble"]
    trained.run(
        f"nnUNetv2_apply_postprocessing -i {predicted} -o {tmp_path} -pp_pkl_file {chosen['postprocessing_file']} "
        f"-plans_json {chosen['some_plans_file']} -np 1"
    )
    before, after = images(predicted), images(tmp_path)
    assert before.keys() == after.keys()
    for name, segmentation in after.items():
        kept = segmentation == before[name]
        assert (segmentation[~kept] == 0).all()  # postprocessing only takes away


def test_an_exported_model_predicts_the_same_elsewhere(
    trained: Workspace, predicted: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.zip"
    trained.run(f"nnUNetv2_export_model_to_zip -d 1 -o {file} -c 3d_fullres -tr {TRAINER} -f 0")
    elsewhere = trained.with_results(tmp_path / "results")
    elsewhere.run(f"nnUNetv2_install_pretrained_model_from_zip {file}")
    elsewhere.predict(tmp_path / "predicted", TRAINER, options="-f 0 --save_probabilities --disable_tta")
    same(tmp_path / "predicted", predicted)
    for name in (name.removesuffix(".nii.gz") for name in images(predicted)):
        np.testing.assert_array_equal(
            np.load(tmp_path / "predicted" / f"{name}.npz")["probabilities"],
            np.load(predicted / f"{name}.npz")["probabilities"],
        )
