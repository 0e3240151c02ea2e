"""Fitted sources from the fit to a prediction on a machine that has never seen the training data."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_locctx import cli
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import BodyPartCurve, Measurement, make_source
from nnunet_locctx.nnunet.data.fitted import REGRESSOR, CaseMeasurements
from nnunet_locctx.nnunet.data.reading import read_quietly
from nnunet_locctx.nnunet.training.augmentation import read_key
from nnunet_locctx.phantoms.whole_body import make_whole_body
from nnunet_locctx.regression.bpreg import file_frame, stack_order
from nnunet_locctx.regression.registry import load_regressor
from tests.integration.short_trainers import EchoTrainer, EchoUNet
from tests.integration.workspace import Workspace

FIT = {
    "body": "fit body",
    "body_part": "fit body-part --spacing 8 --steps 60 --option side=80 --option evaluate_every=30 --option volumes=8",
    "anatomical": "fit ape --spacing 8 --steps 10 --option widths=[8,16] --option depths=[1,1]",
}
TRAINER = "ShortPriorHead"


def locctx(space: Workspace, command: str) -> int:
    with space.entered(1):
        return cli.main([*command.split(), "--traceback"])


def fit(space: Workspace, source: str, options: str = "") -> int:
    return locctx(space, f"{FIT[source]} -d {space.dataset} -np 1 --quiet {options}")


@pytest.fixture(scope="module", autouse=True)
def lenient() -> Iterator[None]:
    """Regressors fitted for seconds score badly; here their slopes are not judged, so that the scores are used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_locctx.regression.body_part.regressor.SPREADS", 1000.0)
        patch.setattr("nnunet_locctx.regression.anatomical.regressor.PLAUSIBLE_SLOPES", (-1000.0, 1000.0))
        yield


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory, lenient: None) -> Workspace:
    """Five coarse scans of other parts of the body each, both sources fitted, and a configuration for each."""
    space = Workspace(tmp_path_factory.mktemp("bodies"), "Dataset007_WholeBody")
    make_whole_body(
        space.raw, 7, cases=5, test_cases=2, in_plane=(14, 15), slices=(14, 16), fraction=(0.5, 1.0), seed=2
    )

    def add_sources(plans: dict[str, Any]) -> None:
        for source in FIT:
            plans["configurations"][source] = {
                "inherits_from": "3d_fullres",
                "location": {"source": source, "jitter": 0.02, "dropout": 0.1},
            }

    space.prepare(change=add_sources)
    for source in FIT:
        assert fit(space, source) == 0
    return space


def folder(space: Workspace, source: str) -> Path:
    return space.preprocessed / space.dataset / f"locctx_{source}"


@pytest.mark.parametrize("source", FIT)
def test_a_model_predicts_where_nothing_but_its_zip_is_known(
    source: str, bodies: Workspace, tmp_path: Path
) -> None:
    bodies.train(TRAINER, source)
    assert (bodies.model(TRAINER, source) / "fold_0" / "validation" / "summary.json").is_file()
    file = tmp_path / "model.zip"
    bodies.run(f"nnUNetv2_export_model_to_zip -d 7 -o {file} -c {source} -tr {TRAINER} -f 0")
    elsewhere = Workspace(tmp_path / "elsewhere", bodies.dataset)
    elsewhere.run(f"nnUNetv2_install_pretrained_model_from_zip {file}")
    scans = bodies.raw / bodies.dataset / "imagesTs"
    for space, target in ((bodies, "here"), (elsewhere, "there")):
        space.predict(tmp_path / target, TRAINER, source, "-f 0 --disable_tta", scans)
    here, others = (sorted((tmp_path / name).glob("*.nii.gz")) for name in ("here", "there"))
    assert len(here) == len(others) == 2
    for one, other in zip(here, others, strict=True):
        first, second = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(f))) for f in (one, other))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("source", FIT)
def test_every_voxel_of_a_new_scan_gets_what_the_regressor_says_about_its_place(
    source: str, bodies: Workspace, tmp_path: Path
) -> None:
    space = bodies.with_results(tmp_path / "results")
    with space.entered():
        trainer = space.trainer(EchoTrainer, source)
        trainer.initialize()
        checkpoint = {
            "network_weights": trainer.network.state_dict(),
            "init_args": trainer.my_init_kwargs,
            "trainer_name": "EchoTrainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        torch.save(checkpoint, Path(trainer.output_folder) / "checkpoint_final.pth")
    for name in ("dataset.json", "nnUNetPlans.json"):
        target = space.model("EchoTrainer", source) / name.replace("nnUNetPlans", "plans")
        shutil.copy(space.preprocessed / space.dataset / name, target)
    EchoTrainer.built.clear()
    scans = space.raw / space.dataset / "imagesTs"
    space.predict(tmp_path / "out", "EchoTrainer", source, "-f 0 --save_probabilities", scans)
    regressor = load_regressor((folder(bodies, source) / REGRESSOR).read_bytes())
    files = sorted(scans.glob("*.nii.gz"))
    assert len(files) == 2
    for file in files:
        stored = np.load(tmp_path / "out" / file.name.replace("_0000.nii.gz", ".npz"))["probabilities"]
        probabilities = stored.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            echoed = (np.log(probabilities[:3]) - np.log(probabilities[3])) / EchoUNet.scale
        data, properties = read_quietly([file], "SimpleITKIO")
        frame = Frame.from_properties(properties, data.shape[1:])
        measured = regressor.measure(data[0], frame)
        expected = make_source(source).field(frame, measured).box((0, 0, 0), frame.shape)
        difference = np.abs(echoed - expected)[np.isfinite(echoed) & (np.abs(expected) < 0.6)]
        assert difference.size > 0.5 * expected.size
        # resampling to the plans' voxel size bends a curve a little
        assert np.quantile(difference, 0.5) < 5e-3
        assert np.quantile(difference, 0.95) < 5e-2


def test_cases_are_loaded_with_their_measured_location(bodies: Workspace) -> None:
    """Whole for validation, as index and field for training."""
    source = "body_part"
    stored = folder(bodies, source)
    measurements = CaseMeasurements(stored, (stored / REGRESSOR).read_bytes())
    with bodies.entered():
        trainer = bodies.trainer(EchoTrainer, source)
        trainer.initialize()
        whole = trainer.dataset_class(trainer.preprocessed_dataset_folder)
        training, _ = trainer.get_tr_and_val_datasets()
        for identifier in whole.identifiers:
            data, _, _, properties = whole.load_case(identifier)
            frame = Frame.from_properties(properties, data.shape[1:], trainer.plans_manager.transpose_forward)
            field = make_source(source).field(frame, measurements.read(identifier))
            np.testing.assert_array_equal(data[:][1:], field.box((0, 0, 0), data.shape[1:]))
        identifier = training.identifiers[0]
        patch = torch.from_numpy(np.asarray(training.load_case(identifier)[0][:, 2:9, 3:8, 1:7]))
        key, corners = read_key(patch[-3:])
        np.testing.assert_array_equal(corners[:, 0, 0, 0], [2, 3, 1])
        properties = training.load_case(identifier)[-1]
        frame = Frame.from_properties(properties, key.shape, trainer.plans_manager.transpose_forward)
        field = make_source(source).field(frame, measurements.read(identifier))
        np.testing.assert_array_equal(key.box((2, 3, 1), (7, 5, 6)), field.box((2, 3, 1), (7, 5, 6)))


def test_the_location_of_a_scan_of_air_is_unknown(bodies: Workspace, tmp_path: Path) -> None:
    bodies.train(TRAINER, "body_part")
    (tmp_path / "scans").mkdir()
    noise = np.random.default_rng(0).normal(-1000, 5, (20, 22, 24)).astype(np.float32)
    image = SimpleITK.GetImageFromArray(noise)
    image.SetSpacing((14.0, 14.0, 15.0))
    SimpleITK.WriteImage(image, str(tmp_path / "scans" / "air_0000.nii.gz"))
    printed = bodies.predict(tmp_path / "out", TRAINER, "body_part", source=tmp_path / "scans")
    assert "location of air (body_part): R, A, S unknown: no body found" in printed
    assert (tmp_path / "out" / "air.nii.gz").is_file()
    record = json.loads((tmp_path / "out" / "location.json").read_text())["air"]
    assert (record["source"], record["known"], list(record["unknown"])) == ("body_part", [], ["R", "A", "S"])


def test_a_source_that_was_never_fitted_is_refused_before_anything_is_written(
    bodies: Workspace, tmp_path: Path
) -> None:
    space = bodies.copy(tmp_path)
    shutil.rmtree(folder(space, "body_part"))
    with pytest.raises(ValueError, match="locctx fit body-part -d Dataset007_WholeBody"):
        space.train(TRAINER, "body_part")
    assert not list(space.results.rglob("*"))


def test_missing_and_damaged_files_are_named(bodies: Workspace, tmp_path: Path) -> None:
    space = bodies.copy(tmp_path)
    stored = folder(space, "body_part")
    regressor = stored / REGRESSOR
    intact = regressor.read_bytes()
    regressor.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(ValueError, match="not a fitted regressor, or damaged"):
        space.train(TRAINER, "body_part")
    regressor.write_bytes(intact)
    measurements = CaseMeasurements(stored, intact)
    measurements.file("whole_body_001").unlink()
    measurements.file("whole_body_002").write_bytes(b"nonsense")
    with pytest.raises(
        ValueError, match=r"case whole_body_001 was not measured(.|\n)*whole_body_002.*damaged"
    ):
        space.train(TRAINER, "body_part")
    assert fit(space, "body_part") == 0  # measures what is missing
    assert regressor.read_bytes() == intact
    measurements.problems([f"whole_body_{number:03d}" for number in range(5)])


def test_fitting_again_with_other_options_is_refused_and_other_regressors_are_not_mixed(
    bodies: Workspace, tmp_path: Path
) -> None:
    space = bodies.copy(tmp_path)
    space.train(TRAINER, "body_part")
    with pytest.raises(ValueError, match=r"fitted with other options(.|\n)*--again"):
        fit(space, "body_part", "--seed 5")
    before = (folder(space, "body_part") / REGRESSOR).read_bytes()
    assert fit(space, "body_part", "--seed 5 --again") == 0
    assert (folder(space, "body_part") / REGRESSOR).read_bytes() != before
    # a training that still runs goes on reading what the first one measured
    CaseMeasurements(folder(space, "body_part"), before).read("whole_body_000")
    # the model carries the first regressor; continuing on the second one's scores would be wrong
    with pytest.raises(ValueError, match="another fitted regressor"):
        space.train(TRAINER, "body_part", options="--val")
    # prediction needs the checkpoint's alone
    space.predict(tmp_path / "out", TRAINER, "body_part")


def test_scores_of_measurements_follow_the_anatomy(bodies: Workspace) -> None:
    """Whatever the storage orientation: the curve points upwards and was stored for every case."""
    stored = folder(bodies, "body_part")
    measurements = CaseMeasurements(stored, (stored / REGRESSOR).read_bytes())
    for number in range(5):
        measured = measurements.read(f"whole_body_{number:03d}")
        assert isinstance(measured, Measurement)
    assert (stored / "report.json").is_file()
    assert (stored / "report.png").stat().st_size > 10_000


def test_an_added_case_is_measured_with_the_regressor_there_is(bodies: Workspace, tmp_path: Path) -> None:
    space = bodies.copy(tmp_path)
    raw = space.raw / space.dataset
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        shutil.copy(raw / part / f"whole_body_000{ending}", raw / part / f"added{ending}")
    before = (folder(space, "body_part") / REGRESSOR).read_bytes()
    assert fit(space, "body_part") == 0
    assert (folder(space, "body_part") / REGRESSOR).read_bytes() == before
    measurements = CaseMeasurements(folder(space, "body_part"), before)
    added, original = (measurements.read(name).arrays() for name in ("added", "whole_body_000"))
    for name in original:
        np.testing.assert_array_equal(added[name], original[name])


def test_a_header_repaired_after_preprocessing_stops_the_training(bodies: Workspace, tmp_path: Path) -> None:
    """The measurement is then that of the repaired scan, nnU-Net's data that of the scan before."""
    space = bodies.copy(tmp_path)
    file = space.raw / space.dataset / "imagesTr" / "whole_body_001_0000.nii.gz"
    image = SimpleITK.ReadImage(str(file))
    origin = image.GetOrigin()
    image.SetOrigin((origin[0], origin[1], origin[2] + 90.0))
    SimpleITK.WriteImage(image, str(file))
    assert fit(space, "body_part") == 0
    with pytest.raises(
        ValueError,
        match=r"whole_body_001: the scan was measured with another header than it was preprocessed",
    ):
        space.train(TRAINER, "body_part")


def test_scores_of_bpreg_are_taken_over(bodies: Workspace, tmp_path: Path) -> None:
    """Training cases get the files' scores; the regressor for new scans is fitted to them."""
    space = bodies.copy(tmp_path)
    (tmp_path / "json").mkdir()
    for file in sorted((space.raw / space.dataset / "imagesTr").glob("*.nii.gz")):
        data, properties = read_quietly([file], "SimpleITKIO")
        frame = file_frame(properties, data.shape[1:])
        axis = frame.array_axes[2]
        order = stack_order(frame)
        assert order is not None
        spacing = float(frame.spacing[axis])
        scores = [20 + 0.118 * spacing * index for index in range(frame.shape[axis])]
        if not order.upwards:  # the order in which bpreg lists them
            scores.reverse()
        content = {
            "cleaned slice scores": scores,
            "z-spacing": spacing,
            "valid z-spacing": 1,
            "reverse z-ordering": int(scores[0] > scores[-1]),
        }
        (tmp_path / "json" / file.name.replace("_0000.nii.gz", ".json")).write_text(json.dumps(content))
    assert fit(space, "body_part", f"--again --from-json {tmp_path / 'json'}") == 0
    stored = folder(space, "body_part")
    measurements = CaseMeasurements(stored, (stored / REGRESSOR).read_bytes())
    for number in range(5):
        measured = measurements.read(f"whole_body_{number:03d}")
        assert isinstance(measured, BodyPartCurve)
        assert not measured.problem
        assert measured.slope == pytest.approx(0.118, rel=0.02)
        assert measured.cross_section is not None
        assert measured.scores[0] == pytest.approx(20, abs=2.5)
    # scores that changed are taken over again, those of the other cases are left alone
    file = tmp_path / "json" / "whole_body_003.json"
    content = json.loads(file.read_text())
    content["cleaned slice scores"] = [score + 7 for score in content["cleaned slice scores"]]
    file.write_text(json.dumps(content))
    before = {path.name: path.stat().st_mtime_ns for path in measurements.folder.iterdir()}
    assert fit(space, "body_part", f"--from-json {tmp_path / 'json'}") == 0
    after = {path.name: path.stat().st_mtime_ns for path in measurements.folder.iterdir()}
    assert [name for name in before if after[name] != before[name]] == ["whole_body_003.npz"]
    measured = measurements.read("whole_body_003")
    assert isinstance(measured, BodyPartCurve)
    assert measured.scores[0] == pytest.approx(27, abs=2.5)
