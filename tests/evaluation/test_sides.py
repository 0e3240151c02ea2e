"""Voxels on the wrong side of the body become the twin's; scans are stored and turned in many ways."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.cli import main
from nnunet_locctx.evaluation.postprocessing import repair_sides
from tests.evaluation.label_scans import STORAGES, box, describe, write

SHAPE = (24, 14, 12)
CLASSES = {
    "kidney_left": 1,
    "kidney_right": 2,
    "liver": 3,
    "Lung R": 4,
    "Lung L": 5,
    "capsule_left": 6,
    "capsule_right": 7,
}
EXCHANGED = np.array([0, 2, 1, 3, 5, 4, 6, 7], dtype=np.uint8)
"""Label -> the twin's."""


def anatomy(shift: int = 0) -> np.ndarray:
    """(L, P, S): kidneys to both sides of x = 12 (left is where x grows), lungs that meet there, and a capsule of both
    sides with one label."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2 + shift : 6 + shift, 3:8, 2:6] = 2
    labels[17 + shift : 21 + shift, 3:8, 2:6] = 1
    labels[8 + shift : 12 + shift, 8:12, 7:11] = 4
    labels[12 + shift : 16 + shift, 8:12, 7:11] = 5
    labels[4 + shift : 19 + shift, 1, 1] = 6
    labels[10 + shift : 14 + shift, 9:11, 1:3] = 3
    return labels


def confused(labels: np.ndarray) -> np.ndarray:
    """Left and right exchanged in a part of the scan, as a patch that does not know where it is would have it."""
    part = box(SHAPE, (0, 4, 0), (24, 11, 9)).astype(bool)
    return np.where(part, EXCHANGED[labels], labels)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Training labels of a, b, c, d and predictions of c and d."""
    true, predicted = tmp_path / "labelsTr", tmp_path / "predicted"
    for number, (case, storage) in enumerate(zip("abcd", STORAGES, strict=False)):
        labels = anatomy(shift=number % 2)
        turned = (*storage[:2], (0.0, 0.0, 0.01 * number))
        write(true / f"{case}.nii.gz", labels, (2.0, 1.5, 3.0), *turned)
        if case in "cd":
            write(predicted / f"{case}.nii.gz", confused(labels), (2.0, 1.5, 3.0), *turned)
    describe(predicted, CLASSES)
    return true, predicted


def read(file: Path) -> np.ndarray:
    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    return array


def test_exchanged_parts_are_given_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    true, predicted = folders
    line = f"postprocess sides {predicted} --labels {true} -o {tmp_path / 'out'} --quiet -np 1"
    assert main(line.split()) == 0
    for case in "cd":
        truth, before, after = (
            read(folder / f"{case}.nii.gz") for folder in (true, predicted, tmp_path / "out")
        )
        assert (before != truth).sum() > 100
        assert np.array_equal(after, truth)
    (first, _) = (
        json.loads(line) for line in (tmp_path / "out" / "postprocessing.jsonl").read_text().splitlines()
    )
    assert first["operation"] == "sides"
    # the capsule has no right label in training: it is left alone
    assert sorted({label for limit in first["limits"] for label in limit[:2]}) == [1, 2, 4, 5]


def test_a_case_with_one_side_is_left_alone_and_teaches_no_limits(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    true, predicted = folders
    limits = {}
    for name in ("whole", "one kidney"):
        for case, kidney in (("d", 1), ("e", 2), ("f", 1)):
            one = np.where(anatomy() == kidney, kidney, 0).astype(np.uint8)
            write(predicted / f"{case}.nii.gz", one, (2.0, 1.5, 3.0))
            if name == "one kidney":
                write(true / f"only_{case}.nii.gz", one, (2.0, 1.5, 3.0))
        for case in ("g", "h"):  # most training cases show both
            write(true / f"{case}.nii.gz", anatomy(), (2.0, 1.5, 3.0))
        out = tmp_path / name
        repair_sides(true, predicted, out, progress=False)
        for case in "def":
            assert np.array_equal(read(out / f"{case}.nii.gz"), read(predicted / f"{case}.nii.gz"))
        assert np.array_equal(read(out / "c.nii.gz"), read(true / "c.nii.gz"))
        limits[name] = json.loads((out / "postprocessing.jsonl").read_text().splitlines()[0])["limits"]
    assert np.allclose(limits["whole"], limits["one kidney"])


@pytest.mark.parametrize("right", [2, 8, 17])
def test_a_class_that_lies_on_both_sides_in_training_is_left_alone(
    right: int, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The left capsule lies on both sides; that one training label has a right one, too, does not change that."""
    true, predicted = folders
    labels = anatomy()
    labels[right : right + 3, 1, 3] = 7
    write(true / "a.nii.gz", labels, (2.0, 1.5, 3.0), *STORAGES[0][:2])
    repair_sides(true, predicted, tmp_path / "out", progress=False)
    first = json.loads((tmp_path / "out" / "postprocessing.jsonl").read_text().splitlines()[0])
    assert sorted({label for limit in first["limits"] for label in limit[:2]}) == [1, 2, 4, 5]


def test_a_case_does_not_teach_its_own_sides(folders: tuple[Path, Path], tmp_path: Path) -> None:
    true, predicted = folders
    exchanged = {case: read(true / f"{case}.nii.gz") for case in "cd"}
    for case, labels in exchanged.items():  # labels of the predicted cases, left and right exchanged
        image = sitk.ReadImage(str(true / f"{case}.nii.gz"))
        wrong = sitk.GetImageFromArray(EXCHANGED[labels])
        wrong.CopyInformation(image)
        sitk.WriteImage(wrong, str(true / f"{case}.nii.gz"))
    repair_sides(true, predicted, tmp_path / "out", progress=False)
    for case, labels in exchanged.items():
        assert np.array_equal(read(tmp_path / "out" / f"{case}.nii.gz"), labels)


def test_what_cannot_tell_sides_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    true, predicted = folders
    with pytest.raises(ValueError, match=r"all cases of .* are among the predictions"):
        repair_sides(predicted, predicted, tmp_path / "out")
    one_sided = {**{f"organ_{label}": label for label in range(1, 8)}, "kidney_left": 1}
    with pytest.raises(ValueError, match="no two classes are named as the left and the right"):
        repair_sides(
            true, predicted, tmp_path / "out", dataset_json={"labels": one_sided, "file_ending": ".nii.gz"}
        )
    for case in "ab":
        write(true / f"{case}.nii.gz", np.where(anatomy() == 3, 3, 0).astype(np.uint8), (2.0, 1.5, 3.0))
    with pytest.raises(ValueError, match="none of 2 training labels has both"):
        repair_sides(true, predicted, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
