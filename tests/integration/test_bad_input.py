"""Broken input, given to nnU-Net's commands: a message with the value seen before anything is written, or a fallback.

The single checks are tested in tests/nnunet and tests/test_geometry.py; here the question is what a user gets to see.
"""

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_locctx import geometry
from nnunet_locctx.blocks import DEFAULTS
from tests import geometry_cases
from tests.integration.short_trainers import EPOCHS, ShortPriorHead
from tests.integration.workspace import Workspace, images

TRAINER = "ShortPriorHead"


def written(space: Workspace) -> list[Path]:
    """Everything below nnUNet_results."""
    return sorted(space.results.rglob("*"))


@pytest.fixture
def fresh(phantom: Workspace, tmp_path: Path) -> Workspace:
    """The phantom, its data and plans free to be broken."""
    return phantom.copy(tmp_path / "copy")


@pytest.fixture(scope="module")
def model(phantom: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A model trained from plans without a ``location`` key."""
    space = phantom.with_results(tmp_path_factory.mktemp("model"))
    assert all("location" not in configuration for configuration in space.plans["configurations"].values())
    space.train(TRAINER)
    return space


@pytest.fixture
def copied(model: Workspace, tmp_path: Path) -> Workspace:
    """That model, free to be broken."""
    shutil.copytree(model.results, tmp_path / "results")
    return model.with_results(tmp_path / "results")


def predict_one(space: Workspace, folder: Path, image: SimpleITK.Image, trainer: str = TRAINER) -> None:
    """``nnUNetv2_predict`` of one scan, without workers, for which nnU-Net raises an error of its own."""
    (folder / "scans").mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(folder / "scans" / "scan_0000.nii.gz"))
    space.predict(folder / "predicted", trainer, options="-f 0 -npp 0 -nps 0", source=folder / "scans")


def noise(*size: int) -> np.ndarray:
    """(z, y, x) float32."""
    return np.random.default_rng(0).normal(0, 100, size).astype(np.float32)


def as_image(array: np.ndarray) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([3.0] * 3)
    return image


# -- the plans' location key


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            {"source": "satellite"},
            "unknown location.source 'satellite'; there are anatomical, body, body_part, scanner, voxel",
        ),
        ({"block": {"wings": 2}}, "block 'prior' does not take wings; allowed: "),
        ("voxel", "'location' key must be a table, got 'voxel'"),
    ],
)
def test_wrong_location_key(location: Any, message: str, fresh: Workspace) -> None:
    fresh.change_plans(lambda plans: plans["configurations"]["3d_fullres"].update(location=location))
    with pytest.raises(ValueError, match=message):
        fresh.train(TRAINER)
    assert written(fresh) == []


def test_plans_without_the_key_mean_voxel_and_the_blocks_own_place(model: Workspace, tmp_path: Path) -> None:
    text = model.checkpoint(TRAINER)["network_weights"]["location_signature.text"]
    signature = json.loads(bytes(text.tolist()).rstrip(b"\0"))
    assert (signature["source"], signature["absolute"], signature["place"]) == (
        "voxel",
        False,
        DEFAULTS["prior"].place,
    )
    assert (
        "location"
        not in json.loads((model.model(TRAINER) / "plans.json").read_text())["configurations"]["3d_fullres"]
    )
    predict_one(model, tmp_path, as_image(noise(18, 20, 17)))
    assert images(tmp_path / "predicted")["scan.nii.gz"].shape == (18, 20, 17)


def test_a_scan_that_is_cut_off(model: Workspace, tmp_path: Path) -> None:
    """ITK would fill it with zeros, and a prediction of them would be written."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a", "b"):
        SimpleITK.WriteImage(as_image(noise(18, 20, 17)), str(scans / f"{name}_0000.nii.gz"))
    cut = scans / "b_0000.nii.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{cut} is cut off: it ends after {cut.stat().st_size} bytes"):
        model.predict(tmp_path / "predicted", TRAINER, options="-f 0 -npp 0 -nps 0", source=scans)
    assert not (tmp_path / "predicted" / "b.nii.gz").exists()


# -- trainers' names


def test_unknown_suffix(phantom: Workspace, tmp_path: Path) -> None:
    space = phantom.with_results(tmp_path / "results")
    message = "'PriorHeadTrainer_fast': suffix '_fast' is unknown or repeated; allowed: _<N>epochs, _noDA, _noMirroring"
    with pytest.raises(ValueError, match=message):
        space.train("PriorHeadTrainer_fast")
    assert written(space) == []


def test_unknown_trainer_is_nnunets_own_message(phantom: Workspace, tmp_path: Path) -> None:
    space = phantom.with_results(tmp_path / "results")
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer PostHeadTrainer"):
        space.train("PostHeadTrainer")
    assert written(space) == []


# -- checkpoints and plans that do not belong together


def change_model_plans(space: Workspace, change: Callable[[dict[str, Any]], None]) -> None:
    file = space.model(TRAINER) / "plans.json"
    plans = json.loads(file.read_text())
    change(plans["configurations"]["3d_fullres"])
    file.write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ({"source": "scanner"}, '"source": "voxel".*the plans say .*"source": "scanner"'),
        ({"block": {"bands": 3}}, '"bands": 6.*the plans say .*"bands": 3'),
    ],
)
def test_prediction_refuses_plans_that_were_edited_after_training(
    location: dict[str, Any], message: str, copied: Workspace, tmp_path: Path
) -> None:
    change_model_plans(copied, lambda configuration: configuration.update(location=location))
    with pytest.raises(ValueError, match=f"the checkpoint was trained with the location options .*{message}"):
        predict_one(copied, tmp_path, as_image(noise(18, 20, 17)))
    assert list((tmp_path / "predicted").iterdir()) == []


def test_options_of_training_alone_may_change(copied: Workspace, tmp_path: Path) -> None:
    change_model_plans(
        copied, lambda configuration: configuration.update(location={"jitter": 0.2, "dropout": 0.5})
    )
    predict_one(copied, tmp_path, as_image(noise(18, 20, 17)))
    assert list(images(tmp_path / "predicted")) == ["scan.nii.gz"]


@pytest.fixture(scope="module")
def plain_weights(phantom: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    space = phantom.with_results(tmp_path_factory.mktemp("plain"))
    space.train("ShortPlain")
    weights: dict[str, torch.Tensor] = space.checkpoint("ShortPlain")["network_weights"]
    return weights


NOT_OURS = "the checkpoint was not written by a trainer of nnunet_locctx .*-pretrained_weights"


def test_prediction_refuses_a_plain_networks_weights(
    copied: Workspace, plain_weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = copied.checkpoint(TRAINER)
    torch.save(
        {**checkpoint, "network_weights": plain_weights},
        copied.model(TRAINER) / "fold_0" / "checkpoint_final.pth",
    )
    with pytest.raises(ValueError, match=NOT_OURS):
        predict_one(copied, tmp_path, as_image(noise(18, 20, 17)))
    assert list((tmp_path / "predicted").iterdir()) == []


def test_c_refuses_a_plain_networks_weights(
    copied: Workspace, plain_weights: dict[str, torch.Tensor]
) -> None:
    file = copied.model(TRAINER) / "fold_0" / "checkpoint_final.pth"
    torch.save({**copied.checkpoint(TRAINER), "network_weights": plain_weights}, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=NOT_OURS):
        copied.train(TRAINER, options="--c", **{EPOCHS: "2"})
    assert file.read_bytes() == before


def test_c_refuses_other_location_options(fresh: Workspace, model: Workspace) -> None:
    shutil.copytree(model.results, fresh.results, dirs_exist_ok=True)
    fresh.change_plans(
        lambda plans: plans["configurations"]["3d_fullres"].update(location={"source": "scanner"})
    )
    with pytest.raises(ValueError, match="the checkpoint was trained with the location options"):
        fresh.train(TRAINER, options="--c", **{EPOCHS: "2"})


def test_pretrained_weights_of_another_network(fresh: Workspace, model: Workspace) -> None:
    fresh.change_plans(
        lambda plans: plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(
            features_per_stage=[4, 8, 12]
        )
    )
    source = model.model(TRAINER) / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(AssertionError, match=r"The shape of the parameters of key encoder\.stages\.2"):
        fresh.train(TRAINER, options=f"-pretrained_weights {source}")


# -- plans of other versions and networks


def test_plans_of_old_versions_are_converted_by_nnunet(fresh: Workspace, tmp_path: Path) -> None:
    """Before nnU-Net 2.5 configurations described the network without the key ``architecture``."""

    def age(plans: dict[str, Any]) -> None:
        configuration = plans["configurations"]["3d_fullres"]
        arguments = configuration.pop("architecture")["arch_kwargs"]
        configuration.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=4,
            unet_max_num_features=8,
            n_conv_per_stage_encoder=arguments["n_conv_per_stage"],
            n_conv_per_stage_decoder=arguments["n_conv_per_stage_decoder"],
            num_pool_per_axis=[2, 2, 2],
            pool_op_kernel_sizes=arguments["strides"],
            conv_kernel_sizes=arguments["kernel_sizes"],
        )

    fresh.change_plans(age)
    fresh.train(TRAINER)
    predict_one(fresh, tmp_path, as_image(noise(18, 20, 17)))
    assert list(images(tmp_path / "predicted")) == ["scan.nii.gz"]


def test_plans_without_any_network(fresh: Workspace) -> None:
    fresh.change_plans(lambda plans: plans["configurations"]["3d_fullres"].pop("architecture"))
    message = "configuration '3d_fullres' of the plans has no 'architecture'.*nnUNetv2_plan_experiment"
    with pytest.raises(ValueError, match=message):
        fresh.train(TRAINER)
    assert written(fresh) == []


def test_a_network_that_is_no_unet(fresh: Workspace) -> None:
    name = "dynamic_network_architectures.architectures.vgg.PlainConvEncoder"
    fresh.change_plans(
        lambda plans: plans["configurations"]["3d_fullres"]["architecture"].update(network_class_name=name)
    )
    with pytest.raises((TypeError, ValueError), match="PlainConvEncoder"):
        fresh.train(TRAINER)


# -- variables


def test_missing_variables(phantom: Workspace, model: Workspace, tmp_path: Path) -> None:
    space = phantom.with_results(tmp_path / "results")
    command = f"nnUNetv2_train {space.dataset} 3d_fullres 0 -tr {TRAINER} -device cpu"
    with pytest.raises(RuntimeError, match="nnUNet_preprocessed is not defined"):
        space.run(command, {"nnUNet_preprocessed": None})
    with pytest.raises(
        ValueError, match=r"the environment variable nnUNet_results is not set.*export nnUNet_results="
    ):
        space.run(command, {"nnUNet_results": None})
    with pytest.raises(
        RuntimeError, match=f"Could not find requested nnunet trainer {TRAINER}.*nnUNet_extTrainer"
    ):
        space.run(command, {"nnUNet_extTrainer": None})
    assert written(space) == []
    scans = f"-i {space.raw / space.dataset / 'imagesTs'} -o {tmp_path / 'predicted'} -f 0 -device cpu"
    with pytest.raises(RuntimeError, match="nnUNet_results is not defined"):
        model.run(
            f"nnUNetv2_predict -d {space.dataset} -c 3d_fullres -tr {TRAINER} {scans}",
            {"nnUNet_results": None},
        )
    # the receiver of a model has not set up this package
    with pytest.raises(
        RuntimeError, match=f"Could not find requested nnunet trainer {TRAINER}.*nnUNet_extTrainer"
    ):
        model.run(
            f"nnUNetv2_predict -d {space.dataset} -c 3d_fullres -tr {TRAINER} {scans}",
            {"nnUNet_extTrainer": None},
        )


def test_prediction_from_a_folder_needs_no_variables_but_the_trainers(
    model: Workspace, tmp_path: Path
) -> None:
    model.run(
        f"nnUNetv2_predict_from_modelfolder -i {model.raw / model.dataset / 'imagesTs'} -o {tmp_path} "
        f"-m {model.model(TRAINER)} -f 0 --disable_tta -device cpu -npp 1 -nps 1",
        {"nnUNet_raw": None, "nnUNet_preprocessed": None, "nnUNet_results": None},
    )
    assert len(images(tmp_path)) == 2


# -- training cases


def break_case(space: Workspace, change: Callable[[dict[str, Any]], None]) -> str:
    """Changes the stored properties of one training case; returns its name."""
    file = sorted((space.preprocessed / space.dataset / "nnUNetPlans_3d_fullres").glob("*.pkl"))[1]
    properties = pickle.loads(file.read_bytes())
    change(properties)
    file.write_bytes(pickle.dumps(properties))
    return file.stem


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ((1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0), "the direction matrix is singular .*determinant"),
        ((np.nan, *np.eye(3).ravel()[1:]), "origin and direction must be finite, got the affine .*nan"),
    ],
)
def test_a_training_case_with_a_broken_direction_is_named(
    direction: tuple[float, ...], message: str, fresh: Workspace
) -> None:
    name = break_case(fresh, lambda properties: properties["sitk_stuff"].update(direction=direction))
    with pytest.raises(
        ValueError, match=f"(?s)cases without a usable place in the patient.*{name}: {message}"
    ):
        fresh.train(TRAINER)
    assert not [path for path in written(fresh) if path.suffix in (".pth", ".json")]


def test_the_training_log_names_oblique_cases(fresh: Workspace) -> None:
    turned = geometry_cases.rotation((0.0, np.radians(30), 0.0)).ravel()
    name = break_case(fresh, lambda properties: properties["sitk_stuff"].update(direction=tuple(turned)))
    with fresh.entered():
        trainer = fresh.trainer(ShortPriorHead)
        trainer.initialize()
        trainer._survey_cases()
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "cases are stored more than 20 degrees off the patient's axes" in log
    assert f"Degrees: {name} (30)" in log


def test_without_a_header_the_array_axes_stand_in(fresh: Workspace) -> None:
    for file in (fresh.preprocessed / fresh.dataset / "nnUNetPlans_3d_fullres").glob("*.pkl"):
        properties = pickle.loads(file.read_bytes())
        properties.pop("sitk_stuff")
        file.write_bytes(pickle.dumps(properties))
    geometry._warn_no_geometry.cache_clear()

    def first_batch() -> torch.Tensor:
        with fresh.entered():
            trainer = fresh.trainer(ShortPriorHead)
            trainer.initialize()
            training, _ = trainer.get_dataloaders()
            batch: torch.Tensor = next(training)["data"]
        return batch

    with pytest.warns(UserWarning, match="location follows the array axes, not the patient's") as caught:
        batch = first_batch()
    assert torch.isfinite(batch).all()
    assert sum("array axes" in str(warning.message) for warning in caught) == 1


# -- scans to predict


def spoiled(value: float) -> np.ndarray:
    array = noise(18, 20, 17)
    array[3, 4, 5:7] = value
    return array


def read_by_nibabel(space: Workspace) -> None:
    """Lets the model read scans with nibabel; SimpleITK reads voxels of a NIfTI file that are no numbers as 0."""
    file = space.model(TRAINER) / "plans.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_reader_writer": "NibabelIO"}))


def test_a_scan_with_voxels_that_are_no_numbers(copied: Workspace, tmp_path: Path) -> None:
    read_by_nibabel(copied)
    with pytest.raises(ValueError, match=r"the scan has 2 voxels that are NaN or infinite \(of 6120\)"):
        predict_one(copied, tmp_path, as_image(spoiled(np.nan)))
    assert images(tmp_path / "predicted") == {}


def test_simpleitk_reads_such_voxels_as_0(model: Workspace, tmp_path: Path) -> None:
    predict_one(model, tmp_path / "spoiled", as_image(spoiled(np.nan)))
    predict_one(model, tmp_path / "zeros", as_image(spoiled(0)))
    first, second = (images(tmp_path / name / "predicted")["scan.nii.gz"] for name in ("spoiled", "zeros"))
    np.testing.assert_array_equal(first, second)


def test_with_workers_the_message_is_printed(
    copied: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in a worker is printed there; the command itself then ends with nnU-Net's own."""
    read_by_nibabel(copied)
    (tmp_path / "scans").mkdir()
    SimpleITK.WriteImage(as_image(spoiled(np.nan)), str(tmp_path / "scans" / "scan_0000.nii.gz"))
    printed: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: printed.append(str(arguments.exc_value)))
    with pytest.raises(RuntimeError, match=r"Background workers died. Look for the error message further up"):
        copied.predict(tmp_path / "predicted", TRAINER, source=tmp_path / "scans")
    (message,) = printed
    assert "the scan has 2 voxels that are NaN or infinite" in message


@pytest.mark.parametrize("size", [(20, 1, 22), (1, 1, 1)])
def test_thin_scans_are_predicted(size: tuple[int, int, int], model: Workspace, tmp_path: Path) -> None:
    predict_one(model, tmp_path, as_image(noise(*size)))
    assert images(tmp_path / "predicted")["scan.nii.gz"].shape == size


def test_a_scan_of_zeros_is_predicted(model: Workspace, tmp_path: Path) -> None:
    """nnU-Net crops nothing off where nothing is above zero."""
    predict_one(model, tmp_path, as_image(np.zeros((18, 20, 17), dtype=np.float32)))
    assert images(tmp_path / "predicted")["scan.nii.gz"].shape == (18, 20, 17)


def test_a_singular_direction_that_the_reader_lets_pass(model: Workspace, tmp_path: Path) -> None:
    """SimpleITK refuses such files itself; nibabel, which nnU-Net can be told to use, does not."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_locctx.nnunet.predicting.preprocessing import locate

    plans = PlansManager(model.plans)
    configuration = locate(plans.get_configuration("3d_fullres"))
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 1] = affine[:3, 0]
    properties = {"spacing": [3.0] * 3, "nibabel_stuff": {"original_affine": affine}}
    with pytest.raises(ValueError, match="the direction matrix is singular"):
        configuration.preprocessor_class(verbose=False).run_case_npy(
            noise(18, 20, 17)[None],
            None,
            properties,
            plans,
            configuration,
            str(model.model(TRAINER) / "dataset.json"),
        )
