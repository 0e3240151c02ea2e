"""`nnunet_locctx.check` on tiny datasets, each with one thing wrong."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.check import DatasetReport, check_dataset, format_report
from nnunet_locctx.check.report import CaseSummary, Finding

DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "PIR": np.array([[0, 0, -1.0], [1.0, 0, 0], [0, -1.0, 0]]),
}
"""SimpleITK directions by the code of where x, y and z grow to."""


class Maker:
    """Writes a dataset of small scans with one labelled block each, at the same place in the patient."""

    def __init__(self, folder: Path, ending: str = ".nii.gz") -> None:
        self.folder = folder
        self.ending = ending
        self.random = np.random.default_rng(0)
        self.content: dict[str, Any] = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "organ": 1},
            "numTraining": 0,
            "file_ending": ending,
        }
        for name in ("imagesTr", "labelsTr", "imagesTs"):
            (folder / name).mkdir(parents=True)

    def case(self, name: str, *, count: bool = True, **changes: Any) -> None:
        """One training case; see `scan` for the changes."""
        image, label = self.scan(**changes)
        sitk.WriteImage(image, str(self.folder / "imagesTr" / f"{name}_0000{self.ending}"))
        sitk.WriteImage(label, str(self.folder / "labelsTr" / f"{name}{self.ending}"))
        self.content["numTraining"] += count

    def scan(
        self,
        *,
        code: str = "LPS",
        spacing: tuple[float, float, float] = (2.0, 2.0, 3.0),
        origin: tuple[float, float, float] = (-10.0, 5.0, 40.0),
    ) -> tuple[sitk.Image, sitk.Image]:
        """Image and label in LPS voxel order, then stored in the orientation asked for."""
        data = self.random.normal(size=(9, 11, 12)).astype(np.float32)  # z, y, x
        label = np.zeros(data.shape, dtype=np.uint8)
        label[2:5, 3:6, 1:4] = 1  # inferior, anterior of the middle, right
        images = []
        for array in (data, label):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(spacing)
            image.SetOrigin(origin)
            images.append(sitk.DICOMOrient(image, code))
        return images[0], images[1]

    def image_file(self, name: str) -> Path:
        return self.folder / "imagesTr" / f"{name}_0000{self.ending}"

    def label_file(self, name: str) -> Path:
        return self.folder / "labelsTr" / f"{name}{self.ending}"

    def edit(self, name: str, change: Any, *files: str) -> None:
        """Writes the changed image and label (or one of them) of a case."""
        for part in files or ("image", "label"):
            file = getattr(self, f"{part}_file")(name)
            sitk.WriteImage(change(sitk.ReadImage(str(file))), str(file))

    def edit_affine(self, name: str, change: Any, *files: str) -> None:
        """Writes image and label (or one of them) with the changed affine as their sform alone."""
        for part in files or ("image", "label"):
            file = getattr(self, f"{part}_file")(name)
            image: Any = nibabel.load(file)
            stored = nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
            stored.header.set_qform(None, code=0)
            stored.header.set_sform(change(image.affine.copy()), code=1)
            nibabel.save(stored, file)

    def check(self, **options: Any) -> DatasetReport:
        (self.folder / "dataset.json").write_text(json.dumps(self.content))
        return check_dataset(self.folder, progress=False, **options)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "Dataset007_Tiny")


def findings_of(report: DatasetReport, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def test_clean_dataset(maker: Maker) -> None:
    for number in range(3):
        maker.case(f"c{number}")
    report = maker.check()
    assert report.findings == []
    assert report.clean
    assert (report.training_cases, report.test_cases, report.reader) == (3, 0, "SimpleITKIO")
    case = report.cases[0]
    assert case.orientation == "LPS"
    assert case.shape == (12, 11, 9)
    assert case.spacing == pytest.approx((2, 2, 3))
    assert case.extent == pytest.approx((24, 22, 27))
    # block of 3 voxels whose middle is voxel 2 of 12, 4 of 11 and 3 of 9; R and A run against L and P
    assert case.positions[1] == pytest.approx((0.5 - 2.5 / 12, 0.5 - 4.5 / 11, 3.5 / 9 - 0.5))
    assert "nothing suspicious found" in format_report(report)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SAL"])
def test_orientation_codes_and_positions(maker: Maker, code: str) -> None:
    maker.case("reference")
    maker.case("turned", code=code)
    reference, turned = maker.check().cases
    assert turned.orientation == code
    # the same block of anatomy, however it is stored
    assert turned.positions[1] == pytest.approx(reference.positions[1], abs=1e-6)
    assert turned.spacing == pytest.approx(reference.spacing)
    assert turned.extent == pytest.approx(reference.extent)


def test_mixed_orientations_are_a_note(maker: Maker) -> None:
    for number, code in enumerate(["LPS", "RAS", "LPS"]):
        maker.case(f"c{number}", code=code)
    report = maker.check()
    assert report.orientations == {"LPS": 2, "RAS": 1}
    assert [finding.severity for finding in findings_of(report, "orientations")] == ["note"]
    assert report.clean
    assert "RAS" in format_report(report)


def _turned(degrees: float) -> Any:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return lambda image: _with(image, direction=turn.ravel().tolist())


def test_oblique_scans_are_named_with_their_angle(maker: Maker) -> None:
    for name, degrees in (("straight", 0), ("little", 19), ("cardiac", 24.3), ("half", 45)):
        maker.case(name)
        maker.edit(name, _turned(degrees))
    report = maker.check()
    findings = findings_of(report, "oblique")
    assert [(finding.case, finding.detail) for finding in findings] == [
        ("cardiac", "24.3 degrees"),
        ("half", "45.0 degrees"),
    ]
    assert report.clean
    # the box that holds a volume of 24 x 22 mm turned by 45 degrees
    extents = {case.name: case.extent for case in report.cases}
    assert extents["half"] == pytest.approx((46 / np.sqrt(2), 46 / np.sqrt(2), 27), rel=1e-5)
    text = format_report(report)
    assert "note: oblique: the array axes are more than 20 degrees off the patient's" in text
    assert "in cardiac (24.3 degrees), half (45.0 degrees)" in text


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_four_axes_keep_their_place(tmp_path: Path, ending: str) -> None:
    """All channels in one file: stored RAS or LPS, a place is the same."""
    maker = Maker(tmp_path / "Dataset007_Tiny", ending)
    maker.content["channel_names"] = {"0": "T1", "1": "T2"}
    for code in ("LPS", "RAS"):
        maker.case(code, code=code)
        maker.edit(code, lambda image: sitk.JoinSeries([image, image * 2]), "image")
    report = maker.check()
    assert findings_of(report, "no geometry") == []
    assert report.orientations == {"LPS": 1, "RAS": 1}
    one, two = report.cases
    assert one.positions[1] == pytest.approx(two.positions[1], abs=1e-6)
    assert (one.spacing, one.extent) == (pytest.approx((2, 2, 3)), pytest.approx((24, 22, 27)))
    assert [finding.case for finding in findings_of(report, "channels")] == ["LPS", "RAS"]


def _singular(affine: np.ndarray) -> np.ndarray:
    affine[:3, 0] = affine[:3, 1]
    return affine


def _sheared(affine: np.ndarray) -> np.ndarray:
    affine[0, 1] += 0.5
    return affine


@pytest.mark.parametrize(("change", "words"), [(_singular, "singular"), (_sheared, "not orthonormal")])
def test_direction_that_the_reader_refuses(maker: Maker, change: Any, words: str) -> None:
    maker.case("good")
    maker.case("strange")
    maker.edit_affine("strange", change, "image")
    report = maker.check()
    (finding,) = findings_of(report, "unreadable")
    assert (finding.case, finding.severity) == ("strange", "error")
    assert words in finding.message
    assert not report.clean


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_singular, "the image's header is unusable: the direction matrix is singular"),
        (_sheared, "not orthonormal"),
    ],
)
def test_direction_that_the_reader_takes(maker: Maker, change: Any, words: str) -> None:
    """As nnU-Net: if SimpleITK refuses the first scan, every scan is read with nibabel."""
    maker.case("c")
    maker.edit_affine("c", change, "image")
    report = maker.check()
    assert report.reader == "NibabelIO"
    assert "SimpleITKIO cannot read" in findings_of(report, "reader")[0].message
    assert any(words in finding.message for finding in findings_of(report, "header"))


def test_the_named_reader_is_taken(maker: Maker) -> None:
    maker.case("bad")
    maker.content["overwrite_image_reader_writer"] = "NibabelIO"
    maker.edit_affine("bad", _sheared)
    report = maker.check()
    assert report.reader == "NibabelIO"
    assert findings_of(report, "reader") == []
    assert any("not orthonormal" in finding.message for finding in findings_of(report, "header"))


def test_unknown_reader_is_reported(maker: Maker) -> None:
    maker.case("c")
    maker.content["overwrite_image_reader_writer"] = "DicomIO"
    report = maker.check()
    assert report.reader == "SimpleITKIO"
    assert "'DicomIO'" in findings_of(report, "reader")[0].message


def test_nifti_without_orientation(maker: Maker) -> None:
    maker.case("c")
    image = nibabel.load(maker.image_file("c"))
    header = image.header.copy()
    stored = nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, header)
    stored.header.set_sform(None, code=0)
    stored.header.set_qform(None, code=0)
    nibabel.save(stored, maker.image_file("c"))
    (finding,) = findings_of(maker.check(), "no orientation")
    assert "sform_code and qform_code are 0" in finding.message


def test_disagreeing_sform_and_qform(maker: Maker) -> None:
    maker.case("c")
    image = nibabel.load(maker.image_file("c"))
    moved = image.affine.copy()
    moved[0, 3] += 10
    image.set_qform(moved, code=1)
    nibabel.save(image, maker.image_file("c"))
    (finding,) = findings_of(maker.check(), "header")
    assert "5.0 voxels" in finding.message


def _raw_pixdim(file: Path, axis: int, size: float) -> None:
    """Writes a voxel size as it is; nibabel would repair it."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    struct.pack_into("<f", content, 76 + 4 * axis, size)  # pixdim stands at byte 76 of a NIfTI-1 header
    file.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("size", [0.0, float("nan")])
def test_no_voxel_size(
    maker: Maker,
    size: float,
    reader: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Readers take 1 mm in silence, the sform's 3 mm, or fail."""
    maker.content["overwrite_image_reader_writer"] = reader
    maker.case("c")
    for file in (maker.image_file("c"), maker.label_file("c")):
        _raw_pixdim(file, 3, size)
    report = maker.check()
    errors = [finding.message for finding in findings_of(report, "header") if finding.severity == "error"]
    text = f"has no voxel size: pixdim[3] is {size:g}; readers take 1 mm, or what the sform says"
    assert [f"the {what} {text}" in errors for what in ("image", "label")] == [True, True]
    # nibabel and ITK have their say on it
    assert (capfd.readouterr().err, caplog.records) == ("", [])


@pytest.mark.parametrize("qform", [0, 1])
@pytest.mark.parametrize("factor", [1.5, 1.02])
def test_sform_whose_scale_is_not_pixdim(maker: Maker, factor: float, qform: int) -> None:
    """SimpleITK takes pixdim, nibabel's location the sform."""
    maker.case("c")
    image = nibabel.load(maker.image_file("c"))
    affine = image.affine.copy()
    affine[:3, 2] *= factor
    stored = nibabel.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    stored.header.set_qform(image.affine, code=qform)
    stored.header.set_sform(affine, code=1)
    nibabel.save(stored, maker.image_file("c"))
    (finding,) = findings_of(maker.check(), "header")
    assert finding.severity == "warning"
    size = f"{3 * factor:.7g}"
    expected = f"sform has voxels of 2 x 2 x {size} mm (x, y, z), its pixdim says 2 x 2 x 3 mm"
    assert expected in finding.message


def test_rounded_voxel_size_is_no_finding(maker: Maker) -> None:
    maker.case("c", spacing=(2, 2, 2.999))
    for file in (maker.image_file("c"), maker.label_file("c")):
        _raw_pixdim(file, 3, 3.0)
    assert maker.check().findings == []


def test_qform_that_is_no_rotation(maker: Maker) -> None:
    maker.case("c")
    content = bytearray(gzip.decompress(maker.image_file("c").read_bytes()))
    struct.pack_into("<f", content, 256, 7.0)  # quatern_b
    maker.image_file("c").write_bytes(gzip.compress(bytes(content)))
    assert any("qform is no rotation" in finding.message for finding in findings_of(maker.check(), "header"))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_default_header(tmp_path: Path, ending: str) -> None:
    maker = Maker(tmp_path / "Dataset007_Tiny", ending)
    maker.case("real")
    maker.case("lost", spacing=(1, 1, 1), origin=(0, 0, 0))
    (finding,) = findings_of(maker.check(), "default header")
    assert (finding.case, finding.severity) == ("lost", "warning")


def test_default_nifti_affine(maker: Maker) -> None:
    """np.eye(4), as many scripts write it, reads as a turn by 180 degrees in SimpleITK."""
    maker.case("c")
    for file in (maker.image_file("c"), maker.label_file("c")):
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(nibabel.load(file).dataobj), np.eye(4)), file)
    assert [finding.case for finding in findings_of(maker.check(), "default header")] == ["c"]


@pytest.mark.parametrize(("ending", "severity"), [(".nrrd", "error"), (".nii.gz", "warning")])
def test_voxels_that_are_not_finite(tmp_path: Path, ending: str, severity: str) -> None:
    """SimpleITK reads NaN in NIfTI as 0; in other formats it reaches nnU-Net."""
    maker = Maker(tmp_path / "Dataset007_Tiny", ending)
    maker.case("c")
    image = sitk.ReadImage(str(maker.image_file("c")))
    image[0, 0, 0], image[1, 0, 0] = float("nan"), float("inf")
    sitk.WriteImage(image, str(maker.image_file("c")))
    (finding,) = findings_of(maker.check(), "not finite")
    assert finding.severity == severity
    assert ("reads as 0" in finding.message) == (severity == "warning")
    assert "0.17%" in finding.message  # 2 of 9 * 11 * 12


@pytest.mark.parametrize("volumes", [0, 1])
def test_one_slice(maker: Maker, volumes: int) -> None:
    for number in range(volumes):
        maker.case(f"volume_{number}")
    maker.case("slice")
    maker.edit("slice", lambda scan: scan[:, :, 3:4])
    (finding,) = findings_of(maker.check(), "one slice")
    assert (finding.case, finding.severity) == (("slice", "warning") if volumes else (None, "note"))


def with_voxel(value: float) -> Any:
    def change(label: sitk.Image) -> sitk.Image:
        label = sitk.Cast(label, sitk.sitkFloat32)
        label[0, 0, 0] = value
        return label

    return change


MIRRORED = (-1, 0, 0, 0, 1, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("file", "change", "kind", "severity", "words"),
    [
        ("image", lambda image: image * 0 + 7, "empty", "error", "(7)"),
        ("label", lambda label: label * 0, "no foreground", "note", "no foreground"),
        ("label", with_voxel(1.5), "label value", "error", "such as 1.5"),
        ("label", with_voxel(-1), "label value", "error", "such as -1"),
        ("label", lambda label: _with(label, origin=(-4, 5, 40)), "mismatch", "warning", "3.0 voxels apart"),
        (
            "label",
            lambda label: _with(label, direction=MIRRORED),
            "mismatch",
            "warning",
            "orientations LPS and RPS",
        ),
    ],
)
def test_one_changed_file(maker: Maker, file: str, change: Any, kind: str, severity: str, words: str) -> None:
    maker.case("c")
    maker.edit("c", change, file)
    report = maker.check()
    (finding,) = findings_of(report, kind)
    assert finding.severity == severity
    assert words in finding.message
    assert report.clean is (severity == "note")


def test_channels_that_do_not_fit(maker: Maker) -> None:
    maker.content["channel_names"] = {"0": "T1", "1": "T2"}
    maker.case("c")
    image, _ = maker.scan(origin=(0, 5, 40))
    sitk.WriteImage(image, str(maker.folder / "imagesTr" / "c_0001.nii.gz"))
    (finding,) = findings_of(maker.check(), "mismatch")
    assert "image and channel c_0001.nii.gz lie at different places" in finding.message


def test_problems_name_the_channel(maker: Maker) -> None:
    maker.content["channel_names"] = {"0": "T1", "1": "T2"}
    maker.case("c")
    image, _ = maker.scan()
    sitk.WriteImage(image * 0, str(maker.folder / "imagesTr" / "c_0001.nii.gz"))
    (finding,) = findings_of(maker.check(), "empty")
    assert finding.message.startswith("channel 0001: ")


def test_region_and_ignore_labels_are_known(maker: Maker) -> None:
    maker.content["labels"] = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    maker.content["regions_class_order"] = [1, 2]
    maker.case("c")
    label = sitk.ReadImage(str(maker.label_file("c")))
    label[0, 0, 0], label[1, 0, 0] = 2, 3
    sitk.WriteImage(label, str(maker.label_file("c")))
    assert maker.check().findings == []


def test_class_without_a_voxel_is_a_note(maker: Maker) -> None:
    maker.content["labels"] = {"background": 0, "organ": 1, "cyst": 2, "tumour": 3, "ignore": 4}
    for name in ("a", "b"):
        maker.case(name)
    label = sitk.ReadImage(str(maker.label_file("b")))
    label[0, 0, 0] = 3
    sitk.WriteImage(label, str(maker.label_file("b")))
    report = maker.check()
    (finding,) = report.findings
    assert (finding.severity, finding.kind) == ("note", "absent label")
    assert finding.message == "labels that occur in no training case: 2 (cyst)"
    assert report.clean


def test_unreadable_file(maker: Maker) -> None:
    maker.case("good")
    maker.case("torn")
    maker.image_file("torn").write_bytes(b"not a scan")
    report = maker.check()
    (finding,) = findings_of(report, "unreadable")
    assert finding.case == "torn"
    assert [case.name for case in report.cases] == ["good"]


def _torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def _flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize("what", ["image", "label"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_torn, " is cut off: it "),
        (_flipped, " is damaged: "),
        (lambda file: file.write_bytes(b""), " is empty (0 bytes)"),
        (
            lambda file: file.write_bytes(b"<!DOCTYPE html><html>Please log in</html>"),
            " is not compressed although its name ends in .gz: it begins with b'<!DOCTYPE html>",
        ),
        (
            lambda file: file.write_bytes(gzip.decompress(file.read_bytes())),
            " is not compressed although its name ends in .gz: it is a plain NIfTI file",
        ),
    ],
    ids=["torn", "flipped", "empty", "html", "plain"],
)
def test_file_that_is_not_whole(maker: Maker, spoil: Any, words: str, what: str) -> None:
    """ITK reads the first of these in silence, and plain files whatever their name."""
    for name in ("a", "b"):
        maker.case(name)
    label = maker.random.integers(0, 2, (9, 11, 12)).astype(np.uint8)  # is large enough to be torn
    image = sitk.GetImageFromArray(label)
    image.CopyInformation(sitk.ReadImage(str(maker.label_file("a"))))
    sitk.WriteImage(image, str(maker.label_file("a")))
    file = getattr(maker, f"{what}_file")("a")
    spoil(file)
    report = maker.check()
    (finding,) = report.findings
    assert (finding.severity, finding.kind, finding.case) == ("error", "unreadable", "a")
    assert finding.message.startswith(f"the {what} cannot be read: {file.name}{words}")
    assert "\n" not in finding.message
    assert report.reader == "SimpleITKIO"


def test_missing_and_superfluous_files(maker: Maker) -> None:
    for name in ("a", "b", "c"):
        maker.case(name)
    maker.label_file("a").unlink()
    maker.image_file("b").unlink()
    maker.image_file("c").rename(maker.folder / "imagesTr" / "c_0001.nii.gz")
    (maker.folder / "imagesTr" / "stray.nii.gz").write_bytes(b"")
    report = maker.check()
    messages = {(finding.case, finding.message) for finding in findings_of(report, "missing file")}
    assert messages == {
        ("a", "the label a.nii.gz is missing"),
        ("b", "the label has no image in imagesTr"),
        ("c", "image channel 0000 is missing"),
    }
    (stray,) = findings_of(report, "file name")
    assert "stray.nii.gz lacks the channel number" in stray.message
    assert (stray.severity, "makes a case '' of it" in stray.message) == ("error", True)
    assert findings_of(report, "count")[0].message == "dataset.json says numTraining 3, found 2"


def test_voxel_size_outlier(maker: Maker) -> None:
    for number in range(6):
        maker.case(f"c{number}", spacing=(2, 2, 3) if number else (2, 2, 30))
    (finding,) = findings_of(maker.check(), "voxel size")
    assert finding.case == "c0"
    assert finding.message == "voxel size inferior-superior 30 mm, the dataset's median is 3 mm"


def test_wrong_direction_shows_in_the_labels(maker: Maker) -> None:
    """A header that claims the mirrored side cannot be seen in one scan, but among others."""
    for number in range(6):
        maker.case(f"c{number}")
    maker.edit("c4", lambda scan: _with(scan, direction=MIRRORED))
    (finding,) = findings_of(maker.check(), "position")
    assert finding.case == "c4"
    assert "left-right" in finding.message
    assert "organ at -0.29 (elsewhere +0.29)" in finding.message


def test_test_scans_are_checked_too(maker: Maker) -> None:
    maker.case("c")
    image, _ = maker.scan(code="RAS")
    sitk.WriteImage(image, str(maker.folder / "imagesTs" / "t_0000.nii.gz"))
    report = maker.check()
    assert (report.training_cases, report.test_cases) == (1, 1)
    assert [case.orientation for case in report.cases] == ["LPS", "RAS"]


def test_files_listed_in_dataset_json(maker: Maker) -> None:
    maker.case("c")
    maker.content["dataset"] = {"x": {"images": ["imagesTr/c_0000.nii.gz"], "label": "labelsTr/c.nii.gz"}}
    report = maker.check()
    assert [case.name for case in report.cases] == ["x"]
    assert report.findings == []


def test_files_without_geometry(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "Dataset008_Flat", ".png")
    random = np.random.default_rng(0)
    for folder, name in (("imagesTr", "c_0000"), ("labelsTr", "c")):
        array = random.integers(0, 2, (8, 9), dtype=np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(maker.folder / folder / f"{name}.png"))
    maker.content["numTraining"] = 1
    report = maker.check()
    assert report.reader == "NaturalImage2DIO"
    assert report.cases[0].orientation == "none"
    assert [finding.severity for finding in findings_of(report, "no geometry")] == ["note"]
    assert report.clean


def test_worker_processes_give_the_same(maker: Maker, workers_at_once: None) -> None:
    for number, code in enumerate(DIRECTIONS):
        maker.case(f"c{number}", code=code)
    assert maker.check(processes=2).to_dict() == maker.check().to_dict()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda maker: (maker.folder / "dataset.json").unlink(), "has no dataset.json"),
        (lambda maker: (maker.folder / "dataset.json").write_text("{"), "dataset.json cannot be read: "),
        (
            lambda maker: (maker.folder / "dataset.json").write_text("[]"),
            "dataset.json: it must hold an object",
        ),
        (
            lambda maker: (maker.folder / "dataset.json").write_text('{"labels": {}}'),
            "dataset.json: it lacks channel_names, file_ending",
        ),
        (lambda maker: (maker.folder / "labelsTr").rmdir(), "has no folder labelsTr"),
    ],
)
def test_not_a_dataset(maker: Maker, spoil: Any, words: str) -> None:
    (maker.folder / "dataset.json").write_text(json.dumps(maker.content))
    spoil(maker)
    with pytest.raises(ValueError, match=words):
        check_dataset(maker.folder, progress=False)


def test_unusable_arguments(maker: Maker, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        check_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        maker.check(processes=0)
    maker.content["file_ending"] = ".dcm"
    with pytest.raises(ValueError, match=r"no reader for files ending in '\.dcm'; it reads \.bmp"):
        maker.check()


def test_report_is_json_and_names_few_cases(maker: Maker) -> None:
    findings = [Finding("warning", "header", f"c{number}", "odd") for number in range(7)]
    cases = [
        CaseSummary(
            name="c0",
            split="train",
            orientation="LPS",
            oblique=3.0,
            shape=(1, 2, 3),
            spacing=(1, 1, 1),
            extent=(1, 2, 3),
        )
    ]
    report = DatasetReport("D", "SimpleITKIO", 1, 7, 0, {0: "background"}, cases, findings)
    text = format_report(report, cases_shown=2)
    assert "7 warnings" in text
    assert "in c0, c1 and 5 more" in text
    assert "oblique by up to 3.0 degrees" in text
    assert json.loads(json.dumps(report.to_dict()))["orientations"] == {"LPS": 1}


def _with(image: sitk.Image, **changes: Any) -> sitk.Image:
    for name, value in changes.items():
        getattr(image, f"Set{name.capitalize()}")(value)
    return image
