"""Real scans: coordinates of labelled structures. Without any scan: what the experiment on them writes."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.geometry import PATIENT_FROM_LPS
from nnunet_locctx.location import make_source
from scripts.experiments.real_data import positions, run
from scripts.experiments.real_data import report as real_report

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real scans are not there ({DATA})")


@pytest.fixture
def script() -> ModuleType:
    return run


@pytest.fixture
def report() -> ModuleType:
    return real_report


@pytest.fixture
def places() -> ModuleType:
    return positions


# ---------------------------------------------------------------------------------------------------- with the scans


@needs_data
def test_left_structures_lie_left_and_vertebrae_ascend_in_the_ct(places: ModuleType) -> None:
    folder = DATA / "Dataset203_TotalSegCT"
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    scan = places.Scan(next((folder / "labelsTr").glob("*.nii.gz")))
    centres = places.positions(scan, labels)
    pairs = places.check_sides(centres)
    assert ("kidney_left", "kidney_right") in pairs
    assert ("rib_left_9", "rib_right_9") in pairs
    assert len(pairs) >= 15
    assert places.check_spine(centres)[:2] == ["vertebrae_S1", "vertebrae_L5"]
    assert scan.orientation == "RAS"
    assert centres["liver"]["mm"][0] > 0 > centres["spleen"]["mm"][0]


@needs_data
def test_the_network_is_given_the_same_place_for_a_ct_stored_in_another_order(
    places: ModuleType, tmp_path: Path
) -> None:
    """Kidney centroids from the location field itself, for the file as it is and stored as PIR."""
    original = next((DATA / "Dataset203_TotalSegCT" / "labelsTr").glob("*.nii.gz"))
    turned = tmp_path / "turned.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(original)), "PIR"), str(turned))
    kidneys: list[Any] = []
    for file in (original, turned):
        scan = places.Scan(file)
        location = make_source("voxel").field(scan.frame).box((0, 0, 0), scan.array.shape)
        kidneys.append([[channel[scan.array == label].mean() for channel in location] for label in (3, 2)])
    left, right = kidneys[0]
    assert left[0] < 0 < right[0]
    np.testing.assert_allclose(kidneys[0], kidneys[1], atol=1e-5)


@needs_data
def test_the_anterior_hippocampus_lies_ahead_of_the_posterior_one(places: ModuleType) -> None:
    files = sorted((DATA / "Dataset201_HippocampusMR" / "labelsTr").glob("*.nii.gz"))[::10]
    for file in files:
        scan = places.Scan(file)
        anterior, posterior = (scan.frame.fraction(scan.centroid(label))[1] for label in (1, 2))
        assert anterior > 0 > posterior, file.name


@needs_data
def test_raw_data_is_linked_not_copied(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "elsewhere")  # put back after the test
    work = script.Work(tmp_path / "work", DATA, tmp_path / "docs", 5)
    script.link_raw(work, script.HIPPOCAMPUS)
    script.link_raw(work, script.HIPPOCAMPUS)  # as when a run is taken up again
    link = work.raw / script.HIPPOCAMPUS
    assert link.is_symlink()
    assert (link / "dataset.json").is_file()
    assert (tmp_path / "work" / ".gitignore").read_text() == "*\n"


# ------------------------------------------------------------------------------------------------- without the scans


def test_frame_agrees_with_simpleitk_for_an_oblique_scan(places: ModuleType, tmp_path: Path) -> None:
    array = np.zeros((6, 5, 4), np.uint8)
    array[4, 1, 2] = 1
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    turn = np.deg2rad(20)
    image.SetDirection(
        [float(x) for x in (np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0, 0, 0, 1)]
    )
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    scan = places.Scan(tmp_path / "scan.nii.gz")
    found = places.positions(scan, {"background": 0, "organ": 1, "absent": 2})
    assert list(found) == ["organ"]
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([1.5, 2.0, 2.5]))
    expected = PATIENT_FROM_LPS @ (np.array(image.TransformIndexToPhysicalPoint([2, 1, 4])) - middle)
    np.testing.assert_allclose(found["organ"]["mm"], expected, atol=0.01)


def test_the_atlas_tells_what_lies_where_whatever_the_storage_order(
    places: ModuleType, tmp_path: Path
) -> None:
    array = np.zeros((8, 6, 10), np.uint8)
    array[:, :, 5:] = 2  # x grows to the patient's left
    image = sitk.GetImageFromArray(array)
    sitk.WriteImage(image, str(tmp_path / "one.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, "RSA"), str(tmp_path / "other.nii.gz"))
    one, other = (places.Scan(tmp_path / f"{name}.nii.gz") for name in ("one", "other"))
    atlas = places.Atlas([one, one], classes=3, edge=10)
    assert atlas.counts.sum(-1).max() == 2
    assert atlas.counts[0, 0, 0].tolist() == [0, 0, 2]  # R is smallest at the patient's left
    np.testing.assert_array_equal(atlas.segment(other), other.array)


def test_side_pairs_need_both_sides(places: ModuleType) -> None:
    names = ["kidney_right", "kidney_left", "rib_left_7", "rib_right_7", "rib_left_8", "lung_upper_lobe_left"]
    assert places.side_pairs(names) == [("kidney_left", "kidney_right"), ("rib_left_7", "rib_right_7")]


def test_swapped_sides_and_levels_are_noticed(places: ModuleType) -> None:
    swapped = {"hip_left": {"fraction": [0.2, 0, 0]}, "hip_right": {"fraction": [-0.2, 0, 0]}}
    with pytest.raises(places.StepError, match=r"hip_left has R = 0\.2"):
        places.check_sides(swapped)
    upside_down = {"vertebrae_L5": {"fraction": [0, 0, 0.1]}, "vertebrae_L4": {"fraction": [0, 0, -0.1]}}
    with pytest.raises(places.StepError, match="ever higher"):
        places.check_spine(upside_down)


def test_confusion_tells_swapped_parts_from_missed_ones(report: ModuleType) -> None:
    truth = np.array([[1, 1, 2, 2, 0, 0]])
    predicted = np.array([[1, 2, 2, 0, 1, 0]])
    found = report.confusion(truth, predicted)
    assert found["whole_dice"] == pytest.approx(2 * 3 / 8)
    assert found["swapped"] == pytest.approx(1 / 3)
    assert report.confusion(truth, np.zeros_like(truth)) == {"whole_dice": 0.0, "swapped": None}


def test_paired_difference_is_taken_case_by_case(report: ModuleType) -> None:
    plain, located = {"a": 0.2, "b": 0.6, "c": 0.4}, {"b": 0.7, "a": 0.5, "c": 0.2}
    found = report.paired_difference(located, plain)
    differences = np.array([0.3, 0.1, -0.2])
    assert found["mean"] == pytest.approx(differences.mean(), abs=1e-4)
    assert found["standard_error"] == pytest.approx(differences.std(ddof=1) / 3**0.5, abs=1e-4)
    assert found["better_cases"] == 2


def training(dice: float, location: str | None) -> dict[str, Any]:
    cases = {
        name: {"dice": {"anterior": dice, "posterior": dice / 2}, "whole_dice": 0.9, "swapped": 0.1}
        for name in "abc"
    }
    return {
        "command": "nnUNetv2_train 201",
        "seconds": 61.0,
        "cpu_seconds": 50.0,
        "trainer": "SomeTrainer_5epochs",
        "patch": [16, 4],
        "location": location,
        "parameters": 1234,
        "folds": 5,
        "training_cases": 156,
        "validation_cases": 3,
        "cases": cases,
        "depends": ["something"],
    }


def test_documents_hold_the_figures_and_keep_what_was_written_by_hand(
    report: ModuleType, tmp_path: Path
) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{report.BEGIN}\nformer figures\n{report.END}\nafter\n")
    records = {
        "train:patch16:plain": training(0.4, None),
        "train:patch16:prior": training(0.8, '{"place": "logits"}'),
    }
    report.write_documents(records, tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "former figures" not in text
    assert (
        "| 16^3 | `SomeTrainer_5epochs` | logits | 1234 | 0.800 | 0.400 | 0.600 | 0.900 | 10.0 % | +0.300"
        in text
    )
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["trainings"]["patch16"]["plain"]["dice"]["mean"] == 0.3
    assert saved["trainings"]["patch16"]["prior"]["minus_plain"]["better_cases"] == 3
    assert "cases" not in saved["trainings"]["patch16"]["plain"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_a_page_without_its_marks_is_left_alone(report: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("somebody's text\n")
    with pytest.raises(report.StepError, match="once each"):
        report.write_documents({}, tmp_path, page)
    assert page.read_text() == "somebody's text\n"
    assert not (tmp_path / "results.json").exists()


def test_done_steps_are_skipped_and_stale_ones_are_done_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "elsewhere")
    ran: list[str] = []

    def steps(setting: int) -> list[Any]:
        return [
            script.Step("one", lambda work: {"ran": ran.append("one")}),
            script.Step("two", lambda work: {"ran": ran.append("two")}, [setting]),
        ]

    def run(setting: int, chosen: str = "*") -> bool:
        # a new Work each time, as in a new process
        return bool(script.run_steps(script.Work(tmp_path, tmp_path, tmp_path, 5), steps(setting), chosen))

    assert not run(1, "two")
    assert ran == ["two"]
    assert run(1)
    assert run(1)
    assert ran == ["two", "one"]
    assert run(2)
    assert ran == ["two", "one", "two"]


def test_a_failed_command_says_what_it_printed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "elsewhere")
    work = script.Work(tmp_path, tmp_path, tmp_path, 5)
    with pytest.raises(script.StepError, match=r"(?s)exit code 3.*the reason"):
        work.command(sys.executable, "-c", "print('the reason'); raise SystemExit(3)", log="failing")
    assert (tmp_path / "logs" / "failing.log").read_text() == "the reason\n"


def test_without_the_data_the_script_says_so(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tmp_path / "nowhere"), "--folder", str(tmp_path / "work")]
    assert script.main(arguments) == 2
    assert "--data" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
    assert script.main([*arguments, "--only", "nothing:*"]) == 2
