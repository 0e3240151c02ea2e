"""`locctx check` on datasets with one corrupted header: voxel size, order of axes, direction."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.check import DatasetReport, check_dataset

CASES = 12


def write(folder: Path, *, reader: str | None = None) -> None:
    """12 scans with an organ each, at nearly the same place and of nearly the same volume; slices of 2 to 5 mm."""
    random = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in range(CASES):
        slice_mm = (2.0, 3.0, 5.0)[case % 3]
        slices = round(90 / slice_mm)
        label = np.zeros((slices, 20, 20), dtype=np.uint8)  # z, y, x
        low, high = round(30 / slice_mm), round(60 / slice_mm)
        label[low:high, 6:10, 2 : 6 + case % 2] = 1
        for file, array in (
            (image(folder, case), random.normal(size=label.shape)),
            (organ(folder, case), label),
        ):
            scan = sitk.GetImageFromArray(array.astype(label.dtype if array is label else np.float32))
            scan.SetSpacing((4.0, 4.0, slice_mm))
            scan.SetOrigin((-10.0, 5.0, 40.0 + case))
            sitk.WriteImage(scan, str(file))
    content: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}}
    content |= {"numTraining": CASES, "file_ending": ".nii.gz"}
    content |= {"overwrite_image_reader_writer": reader} if reader else {}
    (folder / "dataset.json").write_text(json.dumps(content))


def image(folder: Path, case: int) -> Path:
    return folder / "imagesTr" / f"c{case:02d}_0000.nii.gz"


def organ(folder: Path, case: int) -> Path:
    return folder / "labelsTr" / f"c{case:02d}.nii.gz"


def change(folder: Path, case: int, **header: Any) -> None:
    """Writes another header to image and label."""
    for file in (image(folder, case), organ(folder, case)):
        scan = sitk.ReadImage(str(file))
        for name, value in header.items():
            getattr(scan, f"Set{name.capitalize()}")(value)
        sitk.WriteImage(scan, str(file))


def check(folder: Path) -> DatasetReport:
    return check_dataset(folder, progress=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "Dataset007_Tiny")
    return tmp_path / "Dataset007_Tiny"


def test_mixed_slices_are_no_findings(folder: Path) -> None:
    assert check(folder).findings == []


def test_sizes_in_the_wrong_order(folder: Path) -> None:
    change(folder, 3, spacing=(2.0, 4.0, 4.0))
    findings = [finding for finding in check(folder).findings if finding.case == "c03"]
    assert any(
        finding.kind == "slices" and "Are the sizes in the right order?" in finding.message
        for finding in findings
    )
    assert {finding.case for finding in check(folder).findings} == {"c03"}


def test_wrong_size_shows_in_the_organs_volume(folder: Path) -> None:
    """Slices of 5 mm said to be 1 mm: plausible for a scan, not for the organ."""
    change(folder, 2, spacing=(4.0, 4.0, 1.0))
    findings = check(folder).findings
    (volume,) = [finding for finding in findings if finding.kind == "volume"]
    assert volume.case == "c02"
    # 4 voxels by 4 by 6 slices of 4 x 4 x 1 mm
    assert volume.message.startswith("organ measures 1.54 ml, the dataset's median is ")


def test_cut_organs_are_not_measured(folder: Path) -> None:
    scan = sitk.ReadImage(str(organ(folder, 5)))
    array = sitk.GetArrayFromImage(scan) * 0
    array[0:2, 6:10, 2:3] = 1
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(scan)
    sitk.WriteImage(changed, str(organ(folder, 5)))
    assert not [finding for finding in check(folder).findings if finding.kind == "volume"]


def test_direction_that_the_labels_confirm_is_a_note(folder: Path) -> None:
    for file in (image(folder, 4), organ(folder, 4)):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS"), str(file))
    report = check(folder)
    (finding,) = [finding for finding in report.findings if finding.kind == "direction"]
    assert (finding.case, finding.severity) == ("c04", "note")
    assert report.clean


def test_direction_that_the_labels_deny_is_a_warning(folder: Path) -> None:
    change(folder, 4, direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    findings = {finding.kind: finding for finding in check(folder).findings}
    assert findings["direction"].severity == "warning"
    assert findings["position"].case == "c04"


def test_order_of_axes_is_seen_through_a_reader_that_turns_scans(tmp_path: Path) -> None:
    """nnU-Net reads KiTS23 and AMOS22 so; all scans then look alike, the file's own header does not."""
    folder = tmp_path / "Dataset007_Tiny"
    write(folder, reader="NibabelIOWithReorient")
    change(folder, 6, direction=(0, 0, 1, 0, 1, 0, 1, 0, 0))
    report = check(folder)
    assert report.orientations == {"RAS": CASES}
    (finding,) = [finding for finding in report.findings if finding.kind == "axes"]
    assert (finding.case, finding.severity) == ("c06", "warning")
    assert "its axes run SPL, those of 11 of 12 cases in the order of LPS" in finding.message
