"""`locctx check` finds an error wherever nnU-Net's own integrity check refuses a dataset."""

import contextlib
import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from tests.test_check import Maker, findings_of, maker, with_voxel

__all__ = ["maker"]


class OneProcess:
    """A pool that works here: nnU-Net's spawns would take seconds each."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    def starmap(self, function: Callable[..., Any], jobs: Any) -> list[Any]:
        return [function(*job) for job in jobs]


@pytest.fixture
def nnunet_refuses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Runs nnU-Net's integrity check; returns its words, "" if it has no objection."""
    from nnunetv2.experiment_planning import verify_dataset_integrity as code
    from nnunetv2.utilities import utils

    context = types.SimpleNamespace(Pool=OneProcess)
    monkeypatch.setattr(code, "multiprocessing", types.SimpleNamespace(get_context=lambda _: context))
    monkeypatch.setattr(utils, "Pool", OneProcess)

    def refuses(folder: Path) -> str:
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            try:
                code.verify_dataset_integrity(str(folder))
            except Exception as error:  # it asserts, raises, and stumbles
                return f"{type(error).__name__}: {error}"
        return ""

    return refuses


def label_spacing(factor: float) -> Callable[[Maker], None]:
    def spoil(maker: Maker) -> None:
        rescale(maker.label_file("c1"), factor)

    return spoil


def channel_spacing(factor: float) -> Callable[[Maker], None]:
    def spoil(maker: Maker) -> None:
        maker.content["channel_names"] = {"0": "T1", "1": "T2"}
        for name in ("c0", "c1"):
            second = maker.image_file(name).with_name(f"{name}_0001{maker.ending}")
            second.write_bytes(maker.image_file(name).read_bytes())
        rescale(second, factor)

    return spoil


def rescale(file: Path, factor: float) -> None:
    image = sitk.ReadImage(str(file))
    image.SetSpacing((2.0, 2.0, 3.0 * factor))
    sitk.WriteImage(image, str(file))


def four_axes(maker: Maker) -> None:
    maker.content["channel_names"] = {"0": "T1", "1": "T2"}
    for name in ("c0", "c1"):
        maker.edit(name, lambda image: sitk.JoinSeries([image, image * 2]), "image")


def vectors(maker: Maker) -> None:
    maker.content["channel_names"] = {"0": "T1", "1": "T2"}
    for name in ("c0", "c1"):
        maker.edit(name, lambda image: sitk.Compose(image, image * 2), "image")


def ghost(maker: Maker) -> None:
    maker.image_file("c1").with_name(f"patient12{maker.ending}").write_bytes(
        maker.image_file("c1").read_bytes()
    )


def counted_ghost(maker: Maker) -> None:
    ghost(maker)
    maker.content["numTraining"] += 1


def foreign_value(maker: Maker) -> None:
    maker.edit("c1", with_voxel(7), "label")


def one_channel_too_many(maker: Maker) -> None:
    maker.content["channel_names"] = {"0": "T1", "1": "T2"}


def cut_label(maker: Maker) -> None:
    maker.edit("c1", lambda label: label[:, :, :-1], "label")


def not_a_number(maker: Maker) -> None:
    image = sitk.ReadImage(str(maker.image_file("c1")))
    image[0, 0, 0] = float("nan")
    sitk.WriteImage(image, str(maker.image_file("c1")))


def listed_but_absent(maker: Maker) -> None:
    entry = {"images": ["imagesTr/nothing.nii.gz"], "label": "labelsTr/c1.nii.gz"}
    maker.content |= {"dataset": {"x": entry}, "numTraining": 1}


def empty(maker: Maker) -> None:
    for file in (*maker.folder.glob("images*/*"), *maker.folder.glob("labels*/*")):
        file.unlink()
    maker.content["numTraining"] = 0


@pytest.mark.parametrize(
    ("spoil", "ending", "kind", "words"),
    [
        (label_spacing(1 + 2e-5), ".nii.gz", "mismatch", "2 x 2 x 3 mm (x, y, z) and 2 x 2 x 3.00006 mm"),
        (label_spacing(1 + 1e-4), ".nii.gz", "mismatch", "label c1.nii.gz differ in voxel size"),
        (label_spacing(1 - 9e-4), ".nrrd", "mismatch", "2 x 2 x 2.9973 mm"),
        (channel_spacing(1 + 2e-5), ".nii.gz", "mismatch", "2 x 2 x 3.00006 mm"),
        (channel_spacing(1 + 9e-4), ".nrrd", "mismatch", "channel c1_0001.nrrd differ in voxel size"),
        (four_axes, ".nii.gz", "channels", "one file holds 2 channels along its fourth axis"),
        (four_axes, ".nrrd", "channels", "one file holds 2 channels along its fourth axis"),
        (
            vectors,
            ".nrrd",
            "channels",
            "2 components in each voxel. SimpleITKIO takes the components for an axis",
        ),
        (vectors, ".nii.gz", "channels", "and the slices (9) for channels"),
        (ghost, ".nii.gz", "file name", "imagesTr/patient12.nii.gz lacks the channel number"),
        (counted_ghost, ".nii.gz", "file name", "makes a case 'pati' of it that has no image"),
        (foreign_value, ".nii.gz", "label value", "does not list: 7"),
        (one_channel_too_many, ".nii.gz", "channels", "1 image channels found, dataset.json lists 2"),
        (cut_label, ".nii.gz", "mismatch", "differ in size"),
        (not_a_number, ".nrrd", "not finite", "NaN"),
        (listed_but_absent, ".nii.gz", "missing file", "image channel 0000 is missing"),
        (lambda maker: maker.label_file("c1").unlink(), ".nii.gz", "missing file", "the label c1.nii.gz"),
        (empty, ".nii.gz", "count", "there is no training case"),
    ],
)
def test_what_nnunet_refuses_is_an_error(
    tmp_path: Path,
    spoil: Callable[[Maker], None],
    ending: str,
    kind: str,
    words: str,
    nnunet_refuses: Callable[[Path], str],
) -> None:
    maker = Maker(tmp_path / "Dataset007_Tiny", ending)
    maker.case("c0")
    maker.case("c1")
    assert maker.check().findings == []
    assert nnunet_refuses(maker.folder) == ""
    spoil(maker)
    report = maker.check()
    assert nnunet_refuses(maker.folder)
    assert not report.clean
    findings = [finding for finding in findings_of(report, kind) if finding.severity == "error"]
    assert any(words in finding.message for finding in findings), report.findings
    if kind in ("mismatch", "not finite"):  # of the two cases, one was changed
        assert {finding.case for finding in report.findings} == {"c1"}


@pytest.mark.parametrize("factor", [1 + 5e-6, 1 - 5e-6])
def test_rounding_that_nnunet_takes_is_no_finding(
    maker: Maker, factor: float, nnunet_refuses: Callable[[Path], str]
) -> None:
    maker.case("c0")
    maker.case("c1")
    label_spacing(factor)(maker)
    channel_spacing(factor)(maker)
    assert maker.check().findings == []
    assert nnunet_refuses(maker.folder) == ""


def test_file_name_that_nnunet_ignores(maker: Maker, nnunet_refuses: Callable[[Path], str]) -> None:
    """Without its last five characters it is the name of a case that is there."""
    maker.case("c0")
    shutil.copy(maker.image_file("c0"), maker.folder / "imagesTr" / "c0_copy.nii.gz")
    report = maker.check()
    (finding,) = report.findings
    assert (finding.severity, finding.kind) == ("warning", "file name")
    assert finding.message.endswith("nnU-Net ignores it")
    assert nnunet_refuses(maker.folder) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"numTraining": "2"}, '"numTraining" must be a whole number, 2, got "2"'),
        ({"numTraining": None}, '"numTraining" must be a whole number'),
        ({"labels": {"organ": 1}}, '"labels" must have "background": 0'),
        (
            {"labels": {"background": 0, "organ": 1, "cyst": 3}},
            "without gaps, the one to ignore last; got 0, 1, 3",
        ),
        ({"labels": {"background": 0, "ignore": 1, "organ": 2}}, "got 0, 2 and 1 to ignore"),
        ({"labels": {"background": 0, "all": [1, 2], "core": 2}}, 'it lacks "regions_class_order"'),
        (
            {"labels": {"background": 0, "all": [1, 2], "core": 2}, "regions_class_order": [1]},
            "a list of 2 whole numbers, one for each of all, core, got [1]",
        ),
    ],
)
def test_entries_of_dataset_json(
    maker: Maker, changes: dict[str, Any], words: str, nnunet_refuses: Callable[[Path], str]
) -> None:
    """The files are checked all the same."""
    maker.case("c0")
    maker.case("c1")
    maker.content |= changes
    report = maker.check()
    (finding,) = findings_of(report, "dataset.json")
    assert finding.severity == "error"
    assert words in finding.message
    assert len(report.cases) == 2
    assert nnunet_refuses(maker.folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"0": "background", "1": "organ"}}, '{"background": 0, "organ": 1}'),
        ({"labels": ["background", "organ"]}, '{"background": 0, "organ": 1}'),
        (
            {"labels": {"background": 0, "organ": [[1]]}},
            "label 'organ' must be one number or a list of numbers, [1]",
        ),
        ({"channel_names": ["CT"]}, '{"0": "CT"}, got ["CT"]'),
        ({"dataset": [{"image": "a", "label": "b"}]}, "nnU-Net 1 listed the cases"),
    ],
)
def test_old_forms_of_dataset_json(
    maker: Maker, changes: dict[str, Any], words: str, nnunet_refuses: Callable[[Path], str]
) -> None:
    maker.case("c0")
    maker.content |= changes
    with pytest.raises(ValueError, match=r"/dataset\.json: ") as stopped:
        maker.check()
    assert words in str(stopped.value)
    assert nnunet_refuses(maker.folder)


class TestTiff:
    @pytest.fixture
    def tiff(self, tmp_path: Path) -> Maker:
        maker = Maker(tmp_path / "Dataset007_Tiny", ".tif")
        for file, array in (
            (maker.image_file("c"), maker.random.normal(size=(9, 11, 12)).astype(np.float32)),
            (maker.label_file("c"), np.ones((9, 11, 12), np.uint8)),
        ):
            tifffile.imwrite(file, array)
        maker.content["numTraining"] = 1
        for folder in ("imagesTr", "labelsTr"):
            (maker.folder / folder / "c.json").write_text(json.dumps({"spacing": [3, 2, 2]}))
        return maker

    def test_voxel_size_from_its_file(self, tiff: Maker) -> None:
        report = tiff.check()
        assert report.clean
        assert report.reader == "Tiff3DIO"
        assert report.cases[0].spacing == pytest.approx((2, 2, 3))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("{", "imagesTr/c.json is not valid JSON"),
            ("[3, 2, 2]", "imagesTr/c.json has no spacing"),
            ('{"Spacing": [3, 2, 2]}', "imagesTr/c.json has no spacing"),
            ('{"spacing": [2, 2]}', "imagesTr/c.json has the spacing [2, 2]"),
            ('{"spacing": ["3", "2", "2"]}', "imagesTr/c.json has the spacing ['3', '2', '2']"),
            ('{"spacing": [0, 2, 2]}', "imagesTr/c.json has the spacing [0, 2, 2]"),
            ('{"spacing": [NaN, 2, 2]}', "imagesTr/c.json has the spacing [nan, 2, 2]"),
        ],
    )
    def test_file_that_holds_none(
        self, tiff: Maker, content: str, words: str, nnunet_refuses: Callable[[Path], str]
    ) -> None:
        (tiff.folder / "imagesTr" / "c.json").write_text(content)
        report = tiff.check()
        (finding,) = findings_of(report, "unreadable")
        assert words in finding.message
        assert 'it must hold {"spacing": [z, y, x]}, three numbers above 0 mm' in finding.message
        assert nnunet_refuses(tiff.folder)

    def test_no_file_is_one_millimetre(self, tiff: Maker, nnunet_refuses: Callable[[Path], str]) -> None:
        (tiff.folder / "labelsTr" / "c.json").unlink()
        report = tiff.check()
        (note,) = findings_of(report, "no spacing")
        assert (note.severity, note.detail) == ("note", "labelsTr/c.json")
        (finding,) = findings_of(report, "mismatch")
        assert "2 x 2 x 3 mm (x, y, z) and 1 x 1 x 1 mm" in finding.message
        assert nnunet_refuses(tiff.folder)


def test_channels_that_are_the_first_axis(maker: Maker) -> None:
    """A file (channel, x, y, z) is read as (x, y, z, channel) by nnU-Net; only the numbers can tell."""
    maker.content["channel_names"] = {"0": "T1", "1": "T2"}
    maker.case("c")
    image: Any = nibabel.load(maker.image_file("c"))
    data = np.stack([image.get_fdata()] * 2)
    nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), image.affine), maker.image_file("c"))
    messages = [finding.message for finding in findings_of(maker.check(), "channels")]
    assert (
        "9 image channels found, dataset.json lists 2; the last axis of c_0000.nii.gz (2 x 12 x 11 x 9 voxels) "
        "counts as channels" in messages
    )
