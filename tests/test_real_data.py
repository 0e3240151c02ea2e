"""Real scans: coordinates of labelled structures. Without any scan: what the experiment on them writes."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.geometry import PATIENT_FROM_LPS
from nnunet_locctx.location import make_source
from scripts.experiments.real_data import places as real_places

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real scans are not there ({DATA})")


@pytest.fixture
def places() -> ModuleType:
    return real_places


# ---------------------------------------------------------------------------------------------------- with the scans


@needs_data
def test_left_structures_lie_left_and_vertebrae_ascend_in_the_ct(places: ModuleType) -> None:
    folder = DATA / "Dataset203_TotalSegCT"
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    file = next((folder / "labelsTr").glob("*.nii.gz"))
    scan = places.Scan.read(file)
    centres = places.positions(scan, labels)
    pairs = places.check_sides(centres)
    assert ("kidney_left", "kidney_right") in pairs
    assert ("rib_left_9", "rib_right_9") in pairs
    assert len(pairs) >= 15
    assert places.check_spine(centres)[:2] == ["vertebrae_S1", "vertebrae_L5"]
    assert places.orientation(scan.frame)[0] == "RAS"
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
        scan = places.Scan.read(file)
        location = make_source("voxel").field(scan.frame).box((0, 0, 0), scan.frame.shape)
        kidneys.append([[channel[scan.labels == label].mean() for channel in location] for label in (3, 2)])
    left, right = kidneys[0]
    assert left[0] < 0 < right[0]
    np.testing.assert_allclose(kidneys[0], kidneys[1], atol=1e-5)


@needs_data
def test_the_anterior_hippocampus_lies_ahead_of_the_posterior_one(places: ModuleType) -> None:
    files = sorted((DATA / "Dataset201_HippocampusMR" / "labelsTr").glob("*.nii.gz"))[::10]
    for file in files:
        scan = places.Scan.read(file)
        anterior, posterior = (scan.frame.fraction(places.centroid(scan, label))[1] for label in (1, 2))
        assert anterior > 0 > posterior, file.name


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
    scan = places.Scan.read(tmp_path / "scan.nii.gz")
    centres = places.positions(scan, {"background": 0, "organ": 1, "absent": 2})
    assert list(centres) == ["organ"]
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([1.5, 2.0, 2.5]))
    expected = PATIENT_FROM_LPS @ (np.array(image.TransformIndexToPhysicalPoint([2, 1, 4])) - middle)
    np.testing.assert_allclose(centres["organ"]["mm"], expected, atol=0.01)


def test_the_atlas_tells_what_lies_where_whatever_the_storage_order(
    places: ModuleType, tmp_path: Path
) -> None:
    array = np.zeros((8, 6, 10), np.uint8)
    array[:, :, 5:] = 2  # x grows to the patient's left
    image = sitk.GetImageFromArray(array)
    sitk.WriteImage(image, str(tmp_path / "one.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, "RSA"), str(tmp_path / "other.nii.gz"))
    one, other = (places.Scan.read(tmp_path / f"{name}.nii.gz") for name in ("one", "other"))
    atlas = places.Atlas([one, one], classes=3, edge=10)
    assert atlas.counts.sum(-1).max() == 2
    assert atlas.counts[0, 0, 0].tolist() == [0, 0, 2]  # R is smallest at the patient's left
    np.testing.assert_array_equal(atlas.segment(other), other.labels)


def test_swapped_sides_and_levels_are_noticed(places: ModuleType) -> None:
    swapped = {"hip_left": {"fraction": [0.2, 0, 0]}, "hip_right": {"fraction": [-0.2, 0, 0]}}
    with pytest.raises(places.PlaceError, match=r"hip_left has R = 0\.2"):
        places.check_sides(swapped)
    upside_down = {"vertebrae_L5": {"fraction": [0, 0, 0.1]}, "vertebrae_L4": {"fraction": [0, 0, -0.1]}}
    with pytest.raises(places.PlaceError, match="ever higher"):
        places.check_spine(upside_down)


def test_confusion_tells_swapped_parts_from_missed_ones(places: ModuleType) -> None:
    truth = np.array([[1, 1, 2, 2, 0, 0]])
    predicted = np.array([[1, 2, 2, 0, 1, 0]])
    assert places.confusion(truth, predicted) == pytest.approx((2 * 3 / 8, 1 / 3))
    assert places.confusion(truth, np.zeros_like(truth)) == pytest.approx((0.0, np.nan), nan_ok=True)


def test_a_validation_is_scored_against_the_labels(places: ModuleType, tmp_path: Path) -> None:
    made, true = (tmp_path / name for name in ("validation", "labelsTr"))
    for folder, values in ((made, [1, 2, 0]), (true, [1, 1, 2])):
        folder.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.array([[values]], np.uint8)), str(folder / "a.nii.gz"))
    assert places.validation(made, true) == {"cases": 1, "whole_dice": 0.8, "swapped": 0.5}
    with pytest.raises(places.PlaceError, match="holds no segmentation"):
        places.validation(tmp_path, true)


def test_without_the_data_the_script_says_so(
    places: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        places.main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    assert "give the folder that holds it with --data" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
