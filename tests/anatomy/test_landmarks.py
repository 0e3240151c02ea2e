"""A place of one patient is found in another."""

import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_locctx.anatomy import PlaceFinder, find_landmarks
from nnunet_locctx.cli import main
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.regression.registry import REGRESSORS
from tests.anatomy.warped_scans import CELL, KnowingRegressor, Patient, cut, save_scan, whole_frame


def places_of(patient: Patient, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Places in the atlas and in a patient, well within every whole frame."""
    atlas = np.random.default_rng(1).uniform([-110, -80, -110], [110, 80, 130], (count, 3))
    return atlas, patient.place(atlas)


@pytest.mark.parametrize("second", [2, 3, 4])
def test_places_are_found_within_a_fraction_of_a_cell(second: int) -> None:
    one, other = Patient.number(1), Patient.number(second)
    frame = whole_frame(second)
    atlas, places = places_of(one)
    landmarks = find_landmarks(one.map(whole_frame(1)), other.map(frame), places, frame)
    error = np.linalg.norm(landmarks.millimetres - other.place(atlas), axis=1)
    assert np.median(error) < 0.02 * CELL
    assert error.max() < 0.1 * CELL
    assert landmarks.inside.all()
    assert landmarks.distances.max() < 0.05


def test_places_beyond_the_scan_are_said_to_be_outside() -> None:
    one, other = Patient.number(1), Patient.number(2)
    whole = whole_frame(2, oblique=False)
    # the lower half of the patient, whichever way it is stored
    axis = whole.array_axes[2]
    upwards = whole.affine_lps[2, axis] > 0
    half = whole.shape[axis] // 2
    frame = (
        cut(whole, axis, 0, half)
        if upwards
        else cut(whole, axis, whole.shape[axis] - half, whole.shape[axis])
    )
    atlas, places = places_of(one)
    landmarks = find_landmarks(one.map(whole_frame(1)), other.map(frame), places, frame)
    truth = other.place(atlas)
    top = whole.centre[2]
    clear = np.abs(truth[:, 2] - top) > 3
    np.testing.assert_array_equal(landmarks.inside[clear], truth[clear, 2] < top)
    assert {bool(inside) for inside in landmarks.inside} == {True, False}
    # where there is no map, the slopes lead on: not far off, and never back into the scan
    beyond = truth[:, 2] > top + 3
    assert np.linalg.norm(landmarks.millimetres[beyond] - truth[beyond], axis=1).max() < 40


def test_the_better_of_two_basins_is_found() -> None:
    """A map that rises, falls and rises again: the nearest cell leads to the wrong one of two places."""
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 2.6, 4.0, 7.0, 8.0, 9.0, 10.0]) / 40
    y, z = np.arange(4) / 40, np.arange(4) / 40
    values = np.stack(np.meshgrid(x, y, z, indexing="ij")).astype(np.float32)
    scan_map = AnatomicalMap(values, np.diag([10.0, 10.0, 10.0, 1.0]), np.eye(3) / 400)
    target = np.array([[5.5 / 40, 1.5 / 40, 1.5 / 40]])
    places = PlaceFinder(scan_map).find(target)
    np.testing.assert_allclose(places.distances, 0, atol=0.05)
    np.testing.assert_allclose(places.millimetres, [[75.0, 15.0, 15.0]], atol=0.5)


def test_coordinates_that_a_scan_does_not_have_are_far() -> None:
    """The map is flat beyond a step, so nothing in it comes near."""
    x = np.array([0.0, 0.1, 0.1, 0.4, 0.4])
    values = np.stack(np.meshgrid(x, np.arange(4) / 40, np.arange(4) / 40, indexing="ij")).astype(np.float32)
    folded = values[
        :, ::-1
    ].copy()  # falls where its slopes say it rises, so nothing lies beyond its ends either
    scan_map = AnatomicalMap(folded, np.diag([10.0, 10.0, 10.0, 1.0]), np.eye(3) / 400)
    target = np.array([[0.25, 1.5 / 40, 1.5 / 40], [0.25, 1.5 / 40, 0.9]])
    places = PlaceFinder(scan_map).find(target)
    assert places.distances[0] < 0.05
    np.testing.assert_allclose(scan_map.at(places.millimetres)[0], target[0], atol=1e-3)


def test_unusable_maps() -> None:
    frame = whole_frame(1)
    good, bad = Patient.number(1).map(frame), AnatomicalMap.unusable("it is air")
    for first, second in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="no anatomical coordinates: it is air"):
            find_landmarks(first, second, np.zeros((1, 3)), frame)
    flat = AnatomicalMap(good.values, good.affine, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="slopes must tell places apart"):
        PlaceFinder(flat)


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        files = tmp_path / "a_0000.nii.gz", tmp_path / "b_0000.nrrd"
        for number, file in enumerate(files, start=1):
            save_scan(number, whole_frame(number), file)
        return files

    def test_voxels_of_the_files(
        self,
        files: tuple[Path, Path],
        regressor_file: Path,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        one, other = whole_frame(1), whole_frame(2)
        index = np.array([[40.0, 30.0, 45.0], [50.0, 36.5, 41.0]])  # z, y, x
        truth = Patient.number(2).place(Patient.number(1).atlas(one.millimetres(index)))
        at = [text for row in index for text in ("--at", *map(str, row[::-1]))]
        line = f"landmarks --regressor {regressor_file} --from {files[0]} --to {files[1]}".split()
        assert main([*line, *at, "--json", str(tmp_path / "found.json")]) == 0
        rows = json.loads((tmp_path / "found.json").read_text())["landmarks"]
        assert [row["from"]["voxel_xyz"] for row in rows] == index[:, ::-1].tolist()
        np.testing.assert_allclose(
            [row["from"]["millimetres_lps"] for row in rows], one.millimetres(index), atol=0.01
        )
        np.testing.assert_allclose([row["to"]["millimetres_lps"] for row in rows], truth, atol=1)
        voxels = other.index_from_millimetres(truth)[:, ::-1]
        np.testing.assert_allclose([row["to"]["voxel_xyz"] for row in rows], voxels, atol=0.3)
        assert all(row["inside"] and row["distance"] < 0.1 for row in rows)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 3
        assert printed[1].startswith("45.0 30.0 40.0  ")
        assert "outside" not in printed[1]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"--at": "1 2 900"}, "is not in"),
            ({"--from": "nowhere.nii.gz"}, "no file nowhere.nii.gz"),
            ({"--regressor": "nowhere.pt"}, "no file nowhere.pt"),
            ({"--json": "/nowhere/x.json"}, "there is no folder /nowhere"),
        ],
    )
    def test_wrong_input(
        self,
        change: dict[str, str],
        message: str,
        files: tuple[Path, Path],
        regressor_file: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        options = {
            "--regressor": str(regressor_file),
            "--from": str(files[0]),
            "--to": str(files[1]),
            "--at": "1 2 3",
            **change,
        }
        assert (
            main(["landmarks", *" ".join(f"{name} {value}" for name, value in options.items()).split()]) == 2
        )
        assert message in capsys.readouterr().err

    def test_regressors_of_other_kinds_and_channels(
        self,
        files: tuple[Path, Path],
        regressor_file: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        line = f"landmarks --regressor {regressor_file} --from {files[0]} --to {files[1]} --at 1 2 3".split()
        regressor_file.write_bytes(KnowingRegressor(channel=1).to_bytes())
        assert main(line) == 2
        assert "looks at channel 1" in (printed := capsys.readouterr().err)
        assert "give a_0001.nii.gz" in printed
        regressor_file.write_bytes(b"nothing")
        assert main(line) == 2
        assert "not a fitted regressor" in capsys.readouterr().err
        monkeypatch.setattr(KnowingRegressor, "kind", "body_part")
        regressor_file.write_bytes(KnowingRegressor().to_bytes())
        monkeypatch.setitem(REGRESSORS, "body_part", KnowingRegressor)
        assert main(line) == 2
        assert "'anatomical' one is needed" in capsys.readouterr().err
