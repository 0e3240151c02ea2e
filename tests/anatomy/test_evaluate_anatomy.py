"""The study of landmarks and boxes on labelled scans of one's own."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_locctx.anatomy import LabelledScan, localize
from scripts.experiments.anatomy import accuracy as evaluate_anatomy
from tests.anatomy.warped_scans import KnowingRegressor, Patient, cut, save, save_scan, whole_frame

CASES = (1, 2, 3, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four labelled patients; the last one's scan ends within the liver. One scan is of air."""
    for number in CASES:
        frame = whole_frame(number, 6, oblique=False)
        if number == 4:
            axis = frame.array_axes[2]
            inside = np.argwhere(Patient.number(number).labels(frame) == 1)[:, axis]
            frame = cut(frame, axis, 0, int(inside.mean()))
        save_scan(number, frame, tmp_path / "images" / f"case_{number}_0000.nii.gz")
        labels = Patient.number(number).labels(frame).astype(np.uint8)
        save(labels, frame, tmp_path / "labels" / f"case_{number}.nii.gz")
    frame = whole_frame(6, 12)
    save_scan(-1000, frame, tmp_path / "images" / "air_0000.nii.gz")
    save(np.ones(frame.shape, dtype=np.uint8), frame, tmp_path / "labels" / "air.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "kidney": 2, "node": 3}}
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    return tmp_path


def line(folder: Path, regressor: Path, *more: str) -> list[str]:
    labelled = ["--labelled", str(folder / "images"), str(folder / "labels")]
    return ["--regressor", str(regressor), *labelled, "-o", str(folder / "accuracy.csv"), *more]


def test_anatomy_finds_organs_and_the_same_fraction_of_a_scan_does_not(
    folder: Path, regressor_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_anatomy.main(line(folder, regressor_file, "--labelled-scans", "2", "1", "9", "--draws", "3"))
    with (folder / "accuracy.csv").open() as file:
        rows = list(csv.DictReader(file))
    whole = {(row["case"], row["organ"]) for row in rows}
    assert {organ for case, organ in whole if case == "case_1"} == {"liver", "kidney", "node"}
    assert ("case_4", "liver") not in whole  # its scan shows a part
    assert "air" not in {case for case, _ in whole}
    # two others show the whole liver: one draw of both, three of one
    draws = [
        row["draw"]
        for row in rows
        if (row["case"], row["organ"], row["method"]) == ("case_1", "liver", "anatomical")
    ]
    assert draws == ["0", "1", "2", "0"]

    def values(method: str, measure: str) -> np.ndarray:
        return np.array([float(row[measure]) for row in rows if row["method"] == method])

    assert values("anatomical", "landmark_mm").max() < 6  # one voxel
    assert np.median(values("fraction of the scan", "landmark_mm")) > 10
    assert values("anatomical", "face_mm").max() < 6
    assert values("anatomical", "recall").mean() > 0.95
    assert values("anatomical", "overlap").mean() > values("fraction of the scan", "overlap").mean() + 0.2
    printed = capsys.readouterr().out
    assert "not used, could not be measured: air" in printed
    assert "| liver | 1 | anatomical | 3 |" in printed
    assert "| node | 2 | fraction of the scan |" in printed


def test_several_labelled_scans_give_the_box_of_localize(folder: Path) -> None:
    regressor = KnowingRegressor()
    files = evaluate_anatomy.list_scans(folder / "images", folder / "labels")
    scans = [evaluate_anatomy.read_scan(one, regressor, {"liver": (1,), "kidney": (2,)}) for one in files]
    known = [scan for scan in scans if scan is not None]
    assert len(known) == 4  # not that of air
    new, *others = known[:3]
    (row,) = [
        one
        for one in evaluate_anatomy.rows_of(new, others, [2], 1, 0)
        if (one["organ"], one["method"]) == ("kidney", "anatomical")
    ]
    labelled: list[LabelledScan] = [one.labelled for one in others]
    box = localize(labelled, new.labelled.map, new.frame, ["kidney"])["kidney"]
    truth = new.organs["kidney"].faces
    off = np.abs(np.stack([box.lower, box.upper]) - truth) * new.frame.spacing
    assert row["face_mm"] == pytest.approx(off.mean())
    assert row["labelled_scans"] == 2


def test_measures_of_a_box_that_is_right_and_of_one_that_is_moved() -> None:
    frame = whole_frame(1)
    faces = np.array([[1.5, 2.5, 3.5], [9.5, 8.5, 7.5]])
    organ = evaluate_anatomy.Organ(np.array([1.0, 2.0, 3.0]), faces, np.array([[2.0, 3, 4], [9, 8, 7]]))
    right = {"landmark_mm": 0, "face_mm": 0, "overlap": 1, "recall": 1}
    assert evaluate_anatomy._errors(organ.centroid, faces, organ, frame) == right
    moved = faces + np.array([4, 0, 0])  # half of it along one axis, voxels of 4 mm
    errors = evaluate_anatomy._errors(organ.centroid + np.array([3, 4, 0]), moved, organ, frame)
    assert list(errors.values()) == pytest.approx([5, 16 / 3, 1 / 3, 0.5])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cases", "case_9"], "unknown labelled case 'case_9' (did you mean case_"),
        (["--labels", "spleen"], "unknown label 'spleen'; there are liver, kidney, node"),
        (["--cases", "case_1"], "at least 2 labelled scans that can be measured are needed, got 1"),
        (["--labelled-scans", "0"], "--labelled-scans must be an integer >= 1, got 0"),
        (["--labelled-scans", "7"], "no organ is shown whole by a scan and by as many others"),
        (["-o", "/nowhere/a.csv"], "there is no folder /nowhere"),
    ],
)
def test_says_what_is_wrong(
    folder: Path, regressor_file: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate_anatomy.main(line(folder, regressor_file, *more))
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder / "accuracy.csv").exists()
