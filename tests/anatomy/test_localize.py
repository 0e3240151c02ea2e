"""Organ boxes carried over from labelled patients to another."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_locctx.anatomy import LabelledScan, localize, sample_organs
from nnunet_locctx.anatomy.localize import without_outliers
from nnunet_locctx.cli import main
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AnatomicalMap
from tests.anatomy.warped_scans import Patient, cut, save, save_scan, whole_frame

VALUES = {"liver": (1,), "kidney": (2,), "node": (3,), "absent": (9,)}
NAMES = ("liver", "kidney", "node")


@functools.cache
def labelled(number: int) -> LabelledScan:
    return labelled_in(number, whole_frame(number))


def labelled_in(number: int, frame: Frame) -> LabelledScan:
    patient = Patient.number(number)
    return LabelledScan(
        f"case_{number}", patient.map(frame), sample_organs(patient.labels(frame), frame, VALUES)
    )


def true_box(labels: np.ndarray, value: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.argwhere(labels == value)
    return index.min(axis=0), index.max(axis=0) + 1


@pytest.mark.parametrize("number", [5, 6])
def test_boxes_in_a_new_patient(number: int) -> None:
    frame = whole_frame(number)
    patient = Patient.number(number)
    boxes = localize([labelled(n) for n in (1, 2, 3)], patient.map(frame), frame, list(VALUES))
    assert set(boxes) == set(NAMES)  # nobody has the last one
    labels = patient.labels(frame)
    for name in NAMES:
        box = boxes[name]
        first, stop = true_box(labels, VALUES[name][0])
        voxels = box.voxels(frame)
        assert voxels is not None
        # one voxel of 4 mm at each face
        np.testing.assert_allclose(voxels[0], first, atol=1)
        np.testing.assert_allclose(voxels[1], stop, atol=1)
        assert (box.outside, box.scans, box.cut) == (0, 3, False)
        assert box.spread is not None
        assert box.spread < 3
        lower, upper = box.millimetres(frame)
        places = frame.millimetres(np.argwhere(labels == VALUES[name][0]))
        assert (lower < places.min(axis=0) + 4).all()
        assert (upper > places.max(axis=0) - 4).all()


def test_organs_beyond_the_field_of_view() -> None:
    whole = whole_frame(5, oblique=False)
    patient = Patient.number(5)
    axis = whole.array_axes[2]
    index = np.argwhere(patient.labels(whole) == 1)
    middle = int(index[:, axis].mean())
    scans = [labelled(n) for n in (1, 2, 3)]
    parts = [cut(whole, axis, 0, middle), cut(whole, axis, middle, whole.shape[axis])]
    boxes = [localize(scans, patient.map(frame), frame, NAMES) for frame in parts]
    upwards = whole.affine_lps[2, axis] > 0
    lower, upper = boxes if upwards else boxes[::-1]
    lower_frame = parts[0] if upwards else parts[1]
    # the liver is halved, the node below it is in one part only
    assert boxes[0]["liver"].outside == pytest.approx(0.5, abs=0.08)
    assert boxes[1]["liver"].outside == pytest.approx(0.5, abs=0.08)
    assert lower["node"].outside == 0
    assert upper["node"].outside == 1
    assert lower["node"].voxels(lower_frame) is not None
    assert upper["node"].voxels(parts[1] if upwards else parts[0]) is None
    # the whole box is known all the same
    for frame, own_boxes in zip(parts, boxes, strict=True):
        ends = np.array(own_boxes["liver"].millimetres(frame))
        truth = whole.millimetres(index)
        np.testing.assert_allclose(ends, [truth.min(axis=0), truth.max(axis=0)], atol=12)


def test_scans_that_cut_an_organ_are_used_only_without_others() -> None:
    whole = whole_frame(1, oblique=False)
    axis = whole.array_axes[2]
    middle = int(np.argwhere(Patient.number(1).labels(whole) == 1)[:, axis].mean())
    halved = labelled_in(1, cut(whole, axis, 0, middle))
    assert halved.organs["liver"].cut
    frame = whole_frame(5)
    new_map = Patient.number(5).map(frame)
    alone = localize([halved], new_map, frame, ["liver"])["liver"]
    assert (alone.cut, alone.scans, alone.spread) == (True, 1, None)
    both = localize([halved, labelled(2)], new_map, frame, ["liver"])["liver"]
    only = localize([labelled(2)], new_map, frame, ["liver"])["liver"]
    assert (both.cut, both.scans) == (False, 1)
    np.testing.assert_array_equal([both.lower, both.upper], [only.lower, only.upper])
    # half an organ gives a smaller box
    assert np.prod(alone.upper - alone.lower) < 0.7 * np.prod(only.upper - only.lower)


def test_a_scan_that_could_not_be_measured_is_left_out() -> None:
    frame = whole_frame(5)
    new_map = Patient.number(5).map(frame)
    good = labelled(2)
    bad = LabelledScan("bad", AnatomicalMap.unusable("air"), good.organs)
    assert localize([bad, good], new_map, frame, ["liver"])["liver"].scans == 1
    assert localize([bad], new_map, frame, ["liver"]) == {}
    with pytest.raises(ValueError, match="no anatomical coordinates: air"):
        localize([good], bad.map, frame, ["liver"])


def test_single_failures_are_replaced() -> None:
    random = np.random.default_rng(0)
    here = random.uniform(-40, 40, (300, 3))
    change = np.eye(3) + random.normal(0, 0.1, (3, 3))
    true = here @ change + [50, -20, 7] + random.normal(0, 0.5, here.shape)
    moved = true.copy()
    wrong = random.choice(300, size=45, replace=False)
    moved[wrong] += random.uniform(40, 150, (45, 3)) * random.choice([-1, 1], (45, 3))
    repaired = without_outliers(here, moved)
    right = np.setdiff1d(np.arange(300), wrong)
    np.testing.assert_array_equal(repaired[right], moved[right])
    assert np.abs(repaired[wrong] - true[wrong]).max() < 6
    assert np.abs(repaired[wrong] - true[wrong]).mean() < 2
    # an organ of one voxel, and one of a few
    np.testing.assert_array_equal(without_outliers(here[:1], moved[:1]), moved[:1])
    np.testing.assert_array_equal(without_outliers(here[right][:3], true[right][:3]), true[right][:3])


def test_labels_of_another_scan() -> None:
    with pytest.raises(ValueError, match="do not fit their scan"):
        sample_organs(np.zeros((3, 4, 5), dtype=int), whole_frame(1), VALUES)


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number in (1, 2):
            frame = whole_frame(number)
            save_scan(number, frame, tmp_path / "images" / f"case_{number}_0000.nii.gz")
            labels = Patient.number(number).labels(frame).astype(np.uint8)
            save(labels, frame, tmp_path / "labels" / f"case_{number}.nii.gz")
        save_scan(5, whole_frame(5), tmp_path / "new.nii.gz")
        save_scan(-1000, whole_frame(6, 8), tmp_path / "air.nii.gz")
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1, "kidney": 2, "both": [1, 2]},
        }
        (tmp_path / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
        return tmp_path

    def line(self, folder: Path, regressor: Path, *more: str) -> list[str]:
        labelled = ["--labelled", str(folder / "images"), str(folder / "labels")]
        scans = [str(folder / "new.nii.gz"), str(folder / "air.nii.gz")]
        output = ["-o", str(folder / "boxes.json"), "--quiet"]
        return ["localize", "--regressor", str(regressor), *scans, *labelled, *output, *more]

    def test_boxes_of_the_files(
        self, folder: Path, regressor_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(self.line(folder, regressor_file)) == 0
        written = json.loads((folder / "boxes.json").read_text())
        assert written["labelled"] == ["case_1", "case_2"]
        new, air = written["scans"]
        frame = whole_frame(5)
        assert new["size_xyz"] == list(frame.shape[::-1])
        assert list(new["organs"]) == ["liver", "kidney", "both"]
        first, stop = true_box(Patient.number(5).labels(frame), 2)
        organ = new["organs"]["kidney"]
        np.testing.assert_allclose(organ["voxel_xyz"]["first"], first[::-1], atol=1)
        np.testing.assert_allclose(organ["voxel_xyz"]["stop"], stop[::-1], atol=1)
        assert organ["labelled_scans"] == 2
        assert air["problem"] == "no body was found"
        printed = capsys.readouterr().out
        x, last = organ["voxel_xyz"]["first"][0], organ["voxel_xyz"]["stop"][0] - 1
        assert f"kidney  x {x}..{last}  y " in printed
        assert "could not be measured: no body was found" in printed

    def test_chosen_cases_and_labels(self, folder: Path, regressor_file: Path) -> None:
        more = ["--cases", "case_2", "--labels", "kidney", "1"]
        assert main(self.line(folder, regressor_file, *more)) == 0
        written = json.loads((folder / "boxes.json").read_text())
        assert written["labelled"] == ["case_2"]
        assert list(written["scans"][0]["organs"]) == ["kidney", "1"]
        assert written["scans"][0]["organs"]["1"]["spread_mm"] is None

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--cases", "case_9"], "no labelled case case_9; labelled are case_1, case_2"),
            (["--labels", "spleen"], "unknown label 'spleen'; there are liver, kidney, both"),
            (["--labels", "7"], "unknown label '7'"),
            (["-o", "/nowhere/boxes.json"], "there is no folder /nowhere"),
            (["--labelled", "/nowhere", "/nowhere"], "--labelled: there is no folder /nowhere"),
        ],
    )
    def test_wrong_input(
        self,
        more: list[str],
        message: str,
        folder: Path,
        regressor_file: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert main(self.line(folder, regressor_file, *more)) == 2
        assert message in capsys.readouterr().err
        assert not (folder / "boxes.json").exists()

    def test_nothing_is_written_without_a_measured_scan(
        self, folder: Path, regressor_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in (1, 2):
            save_scan(-1000, whole_frame(number), folder / "images" / f"case_{number}_0000.nii.gz")
        assert main(self.line(folder, regressor_file)) == 2
        assert "none of the labelled scans could be measured: case_1: no body" in capsys.readouterr().err
        assert not (folder / "boxes.json").exists()
