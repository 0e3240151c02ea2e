"""The phantom: same anatomy whatever the storage, twins of equal look, files nnU-Net accepts, nothing half written."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.phantoms import storage, twin_organs
from nnunet_locctx.phantoms.storage import ORIENTATIONS
from nnunet_locctx.phantoms.twin_organs import LOOK_ALIKES, ORGANS, REGIONS, make_phantom, phantom_case
from tests.integration.workspace import ThreadsForProcesses

SIDES = {label: 1 if name.endswith("_left") else -1 for label, name in enumerate(ORGANS, start=1)}


def centres_mm(case):
    """Label -> centre of mass in mm LPS."""
    centroids = {}
    for label in range(1, len(ORGANS) + 1):
        index = np.argwhere(case.labels == label)
        centroids[label] = case.frame.millimetres(index).mean(0)
    return centroids


def read_lps(path):
    """Array (x, y, z), index growing along L, P, S, and the position in mm LPS of any index."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), image


@pytest.mark.parametrize("code", [*ORIENTATIONS, "IPL", "ARS"])
@pytest.mark.parametrize("number", [0, 2])  # 2 is stored obliquely
def test_anatomy_does_not_depend_on_the_storage_orientation(code, number):
    size, spacing = (24, 20, 28), (2.0, 3.0, 4.0)
    straight = phantom_case(number, size=size, spacing=spacing, orientations=["LPS"], seed=5)
    stored = phantom_case(number, size=size, spacing=spacing, orientations=[code], seed=5)

    index = np.argwhere(straight.labels >= 0).astype(float)
    position = straight.frame.millimetres(index)
    # the same position in the other storage: solve origin + direction * spacing * index = position
    steps = stored.direction * np.asarray(stored.spacing)
    other = np.linalg.solve(steps, (position - np.asarray(stored.origin)).T).T
    assert np.abs(other - np.rint(other)).max() < 1e-6
    other = tuple(np.rint(other).astype(int).T)
    here = tuple(index.astype(int).T)
    assert np.array_equal(straight.labels[here], stored.labels[other])
    assert np.array_equal(straight.images[0][here], stored.images[0][other])
    assert straight.structures == stored.structures


@pytest.mark.parametrize("number", range(6))
def test_labels_lie_where_their_names_say(number):
    case = phantom_case(number, size=40, seed=1)
    centre = centres_mm(case)
    for label, side in SIDES.items():
        twin = label + 1 if side > 0 else label - 1
        assert side * (centre[label][0] - centre[twin][0]) > 20.0  # the left one lies at the larger x of LPS
    for label in (1, 2):
        # upper, middle, lower
        assert centre[label][2] > centre[label + 2][2] + 15.0 > centre[label + 4][2] + 30.0


def test_labels_match_the_structures():
    case = phantom_case(1, size=40, seed=2)
    centre = centres_mm(case)
    organs = {structure.label: structure for structure in case.structures if structure.label}
    assert sorted(organs) == list(range(1, 7))
    for label, structure in organs.items():
        assert np.abs(centre[label] - structure.centre).max() < 1.5  # half a voxel of 3 mm
        volume = (case.labels == label).sum() * np.prod(case.spacing)
        assert volume == pytest.approx(4 / 3 * np.pi * np.prod(structure.radii), rel=0.2)
    assert 1 <= sum(structure.label == 0 for structure in case.structures) <= len(LOOK_ALIKES)


def test_structures_lie_in_the_body_and_apart():
    for number in range(20):
        case = phantom_case(number, size=(30, 20, 36), seed=3)
        for first in case.structures:
            for second in case.structures:
                if first is not second:
                    gap = np.linalg.norm(np.subtract(first.centre, second.centre))
                    assert gap > max(first.radii) + max(second.radii)
        # no labelled voxel is air: an organ that left the body would stand in it
        blurred = case.images[0][case.labels > 0]
        assert blurred.min() > -500


def test_cases_differ_in_size_position_and_orientation():
    cases = [phantom_case(number, size=32, seed=0) for number in range(12)]
    assert len({case.labels.shape for case in cases}) > 6
    assert {case.orientation for case in cases} == set(ORIENTATIONS)
    oblique = [not np.isin(np.abs(case.direction), (0.0, 1.0)).all() for case in cases]
    assert 1 <= sum(oblique) < len(cases)
    for case in cases:
        assert np.allclose(case.direction.T @ case.direction, np.eye(3))
    volumes = [(case.labels == 1).sum() for case in cases]
    assert max(volumes) > 1.3 * min(volumes)


def test_twins_cannot_be_told_apart_by_their_look():
    """Per-structure mean, spread and size: classes (and look-alikes) differ no more than chance allows."""
    look: dict[int, list[tuple[float, float, float]]] = {label: [] for label in range(7)}
    for number in range(25):
        case = phantom_case(number, size=44, seed=4)
        for structure in case.structures:
            index = np.linalg.solve(
                case.direction * np.asarray(case.spacing), np.subtract(structure.centre, case.origin)
            )
            middle = tuple(slice(round(i) - 1, round(i) + 2) for i in index)
            values = case.images[0][middle].astype(float)
            look[structure.label].append((values.mean(), values.std(), float(np.prod(structure.radii))))
    for feature in range(3):
        samples = [np.array([entry[feature] for entry in entries]) for entries in look.values()]
        overall = np.concatenate(samples)
        for sample in samples:
            error = overall.std() / np.sqrt(len(sample))
            assert abs(sample.mean() - overall.mean()) < 4 * error


def test_intensities_look_like_ct():
    case = phantom_case(0, size=48)
    image = case.images[0].astype(float)
    assert case.images.dtype == np.int16
    assert np.median(image[0, 0]) == pytest.approx(-1000, abs=5)  # a corner row: air
    assert np.median(image[case.labels > 0]) == pytest.approx(twin_organs.ORGAN_HU, abs=25)
    tissue = image[(image > -50) & (case.labels == 0)]
    assert np.median(tissue) == pytest.approx(twin_organs.TISSUE_HU, abs=5)
    assert image.min() >= -1024


def test_the_seed_decides():
    first, again = (phantom_case(3, size=20, seed=7) for _ in range(2))
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    other = phantom_case(3, size=20, seed=8)
    assert first.structures != other.structures


def test_writes_nnunet_raw_format(tmp_path):
    folder = make_phantom(
        tmp_path / "raw", 7, cases=3, test_cases=2, size=(18, 20, 22), spacing=(2, 3, 4), seed=1
    )
    assert folder == tmp_path / "raw" / "Dataset007_Phantom"
    names = {
        part.name: sorted(path.name for path in part.iterdir()) for part in folder.iterdir() if part.is_dir()
    }
    assert names == {
        "imagesTr": [f"phantom_00{k}_0000.nii.gz" for k in (0, 1, 2)],
        "labelsTr": [f"phantom_00{k}.nii.gz" for k in (0, 1, 2)],
        "imagesTs": [f"phantom_00{k}_0000.nii.gz" for k in (3, 4)],
        "labelsTs": [f"phantom_00{k}.nii.gz" for k in (3, 4)],
    }
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 3
    assert description["file_ending"] == ".nii.gz"
    assert description["labels"] == {"background": 0, **{name: k for k, name in enumerate(ORGANS, start=1)}}
    assert description["channel_names"] == {"0": "CT"}
    for number in range(3):
        case = phantom_case(number, size=(18, 20, 22), spacing=(2, 3, 4), seed=1)
        for path, array in (
            (folder / "imagesTr" / f"phantom_00{number}_0000.nii.gz", case.images[0]),
            (folder / "labelsTr" / f"phantom_00{number}.nii.gz", case.labels),
        ):
            image = sitk.ReadImage(str(path))
            assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), array)
            assert image.GetSpacing() == pytest.approx(case.spacing, abs=1e-4)
            assert image.GetOrigin() == pytest.approx(case.origin, abs=1e-3)
            assert image.GetDirection() == pytest.approx(tuple(case.direction.ravel()), abs=1e-5)


def test_sides_are_right_in_the_files(tmp_path):
    folder = make_phantom(tmp_path, 1, cases=6, test_cases=0, size=24, seed=2)
    assert not (folder / "imagesTs").exists()
    for number in range(6):
        labels, _ = read_lps(folder / "labelsTr" / f"phantom_00{number}.nii.gz")
        middle = [np.argwhere(labels == label).mean(0) for label in range(1, 7)]
        for pair in (0, 2, 4):
            assert middle[pair][0] > middle[pair + 1][0]  # left has the larger index along L
        assert middle[0][2] > middle[2][2] > middle[4][2]  # upper has the larger index along S


def test_more_cases_do_not_change_the_first_ones(tmp_path):
    few = make_phantom(tmp_path / "few", 1, cases=1, test_cases=0, size=16)
    many = make_phantom(tmp_path / "many", 1, cases=2, test_cases=1, size=16)
    first, second = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / "phantom_000_0000.nii.gz")))
        for folder in (few, many)
    )
    assert np.array_equal(first, second)


def test_channels_regions_and_ignore_label(tmp_path):
    folder = make_phantom(tmp_path, 2, cases=3, test_cases=1, size=20, channels=2, regions=True, ignore=True)
    description = json.loads((folder / "dataset.json").read_text())
    assert list(description["channel_names"]) == ["0", "1"]
    assert description["labels"]["ignore"] == 7
    assert {name: tuple(parts) for name, parts in description["labels"].items() if name in REGIONS} == REGIONS
    assert len(list((folder / "imagesTr").iterdir())) == 6
    ignored = 0
    for number in range(3):
        labels = sitk.GetArrayFromImage(
            sitk.ReadImage(str(folder / "labelsTr" / f"phantom_00{number}.nii.gz"))
        )
        ignored += (labels == 7).sum()
        assert set(np.unique(labels)) <= set(range(8))
    assert ignored > 0
    test = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTs" / "phantom_003.nii.gz")))
    assert test.max() == 6
    # the second channel shows organs darker than the tissue around them
    case = phantom_case(0, size=32, channels=2)
    tissue = (np.abs(case.images[0] - twin_organs.TISSUE_HU) < 40) & (case.labels == 0)
    assert np.median(case.images[1][case.labels > 0]) < np.median(case.images[1][tissue]) - 20


def test_region_order_paints_labels_of_their_own_region():
    """nnU-Net paints region after region: what it paints must lie in that region and all before, in none after."""
    for number, painted in enumerate(twin_organs._REGION_ORDER):
        inside = [painted in parts for parts in REGIONS.values()]
        assert inside == [True] * (number + 1) + [False] * (len(REGIONS) - number - 1)


def test_nnunet_accepts_it(tmp_path, monkeypatch):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    folder = make_phantom(tmp_path, 3, cases=2, test_cases=0, size=16, channels=2)
    monkeypatch.setattr("multiprocessing.get_context", lambda method: ThreadsForProcesses)
    verify_dataset_integrity(str(folder), num_processes=1)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupt(*arguments):
        written.append(arguments)
        if len(written) == 2:
            raise KeyboardInterrupt
        original(*arguments)

    original = storage.write_case
    monkeypatch.setattr(storage, "write_case", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path, 1, cases=3, test_cases=0, size=16)
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_data_set(tmp_path, monkeypatch):
    folder = make_phantom(tmp_path, 1, cases=2, test_cases=0, size=16)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(storage, "write_case", fail)
    with pytest.raises(OSError, match="disk full"):
        make_phantom(tmp_path, 1, cases=2, test_cases=0, size=16, seed=1, overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_existing_data_set_is_left_alone(tmp_path):
    folder = make_phantom(tmp_path, 1, cases=2, test_cases=0, size=16)
    with pytest.raises(FileExistsError, match=r"Dataset001_Phantom exists already.*overwrite=True"):
        make_phantom(tmp_path, 1, cases=1, test_cases=0, size=16)
    assert len(list((folder / "labelsTr").iterdir())) == 2
    make_phantom(tmp_path, 1, cases=1, test_cases=0, size=16, overwrite=True)
    assert len(list((folder / "labelsTr").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset001_Phantom"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset_id": 0}, ValueError, "dataset_id must be 1 to 999, got 0"),
        ({"dataset_id": "1"}, TypeError, "dataset_id must be a whole number, got '1'"),
        ({"cases": 0}, ValueError, "cases must be at least 1, got 0"),
        ({"test_cases": -1}, ValueError, "test_cases must be at least 0, got -1"),
        ({"size": 15}, ValueError, "size must be at least 16, got 15"),
        ({"size": (20, 20)}, ValueError, "size must be one number or three"),
        ({"size": (20, 20.5, 20)}, TypeError, "size must be a whole number, got 20.5"),
        ({"spacing": 0}, ValueError, "spacing must be one or three finite numbers above 0"),
        (
            {"spacing": (1, float("nan"), 1)},
            ValueError,
            "spacing must be one or three finite numbers above 0",
        ),
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ({"orientations": []}, ValueError, "orientations must be a non-empty list"),
        ({"orientations": "LPS"}, ValueError, "orientations must be a non-empty list"),
        ({"orientations": ["LRS"]}, ValueError, "one letter each of L/R, P/A and S/I.*'LRS'"),
        ({"orientations": ["LP"]}, ValueError, "one letter each of L/R, P/A and S/I.*'LP'"),
        ({"oblique": 45}, ValueError, "oblique must be 0 to 30 degrees, got 45"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    arguments = {"dataset_id": 1, "cases": 1, "test_cases": 0, "size": 16, **arguments}
    with pytest.raises(error, match=message):
        make_phantom(tmp_path / "raw", **arguments)
    assert not (tmp_path / "raw").exists()
