"""The evidence on real anatomy: scans made longer or cropped, and how far swapped voxels lie from their twin."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_locctx.geometry import Frame
from scripts.experiments.evidence import swap_distance
from scripts.experiments.evidence.make_fields import FRACTION, crop
from scripts.experiments.evidence.twice_as_long import lengthened, original


@pytest.mark.parametrize("code", ["LPS", "RAI", "PSR"])
@pytest.mark.parametrize("way", ["air", "body"])
def test_a_scan_made_twice_as_long_keeps_its_voxels_in_their_place(code: str, way: str) -> None:
    scan = SimpleITK.GetImageFromArray(
        np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)
    )  # S last to first
    scan.SetSpacing((1.0, 2.0, 3.0))
    scan.SetOrigin((7.0, -8.0, 9.0))
    stored = SimpleITK.DICOMOrient(scan, code)
    longer = SimpleITK.DICOMOrient(lengthened(stored, way), "LPS")
    assert longer.GetSize() == (3, 4, 10)
    assert longer.GetOrigin() == pytest.approx((7, -8, 9 - 5 * 3))  # towards the feet
    array = SimpleITK.GetArrayFromImage(longer)
    np.testing.assert_array_equal(array[5:], SimpleITK.GetArrayFromImage(scan))
    if way == "body":
        np.testing.assert_array_equal(array[:5], array[:4:-1])
    else:
        assert array[:5].max() <= 6  # the darkest tenth
    part = SimpleITK.GetArrayFromImage(lengthened(stored, way))[original(stored)]
    np.testing.assert_array_equal(part, SimpleITK.GetArrayFromImage(stored))


@pytest.mark.parametrize("code", ["LPS", "RAI", "PSR"])
def test_a_crop_is_along_the_body_and_voxels_keep_their_place(code: str) -> None:
    scan = SimpleITK.GetImageFromArray(np.arange(40 * 4 * 3, dtype=np.int16).reshape(40, 4, 3))
    stored = SimpleITK.DICOMOrient(scan, code)
    image, labels = crop([stored, stored], np.random.default_rng(0))
    part = SimpleITK.DICOMOrient(image, "LPS")
    assert part.GetSize()[:2] == (3, 4)
    assert FRACTION[0] * 40 <= part.GetSize()[2] <= FRACTION[1] * 40
    first = scan.TransformPhysicalPointToIndex(part.GetOrigin())
    assert part[0, 0, 0] == scan[first]
    assert (SimpleITK.GetArrayFromImage(labels) == SimpleITK.GetArrayFromImage(image)).all()
    assert Frame.from_sitk(image).spacing == pytest.approx(Frame.from_sitk(stored).spacing)


def test_swaps_at_the_border_and_beyond(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.zeros((2, 1, 10), np.uint8)
    truth[..., :5], truth[..., 5:] = 1, 2
    predicted = truth.copy()
    predicted[0, 0, 4] = 2  # one voxel from the twin
    predicted[0, 0, 9] = 1  # five from it
    predicted[1, 0, 0] = 0  # missed, not swapped
    folder = tmp_path / "model" / "fold_0" / "validation"
    folder.mkdir(parents=True)
    for array, file in ((truth, tmp_path / "a.nii.gz"), (predicted, folder / "a.nii.gz")):
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((3.0, 1.0, 7.0))
        SimpleITK.WriteImage(image, str(file))
    content = {"file_ending": ".nii.gz", "labels": {"background": 0, "ear_left": 1, "ear_right": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    swap_distance.main(
        [str(tmp_path), str(folder), "--dataset-json", str(tmp_path / "dataset.json"), "--border-mm", "3"]
    )
    assert capsys.readouterr().out == (
        "model: 2 voxels in 1 cases, 9.00 mm (90 %: 13.80 mm); 10.000 % of the true voxels, 5.000 % beyond 3 mm\n"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [(("ear_left", "ear_right"), "no predictions"), (("ear", "nose"), "no pair of left and right classes")],
)
def test_nothing_to_measure(
    names: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"file_ending": ".nii.gz", "labels": {"background": 0, names[0]: 1, names[1]: 2}}
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        swap_distance.main([str(tmp_path), str(tmp_path), "--dataset-json", str(file), "--border-mm", "3"])
    assert message in capsys.readouterr().err
