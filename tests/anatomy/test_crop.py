"""Crops hold the labels, also in scans that the region was not learned from."""

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.anatomy import fit_region
from nnunet_locctx.anatomy.region import Blocks, Box, Example
from nnunet_locctx.cli import main
from nnunet_locctx.geometry import Frame
from tests.anatomy.warped_scans import KnowingRegressor, Patient, cut, save, save_scan, whole_frame
from tests.broken_files import full_disk

VALUES = {"liver": (1,), "kidney": (2,)}


@functools.cache
def example(number: int) -> Example:
    frame = whole_frame(number, 9)
    patient = Patient.number(number)
    return Example.of(f"case_{number}", patient.map(frame), frame, patient.labels(frame), VALUES)


def share_within(labels: np.ndarray, values: Sequence[int], box: Box, blocks: Blocks) -> float:
    """Counted voxel by voxel."""
    first, stop = box.voxels(blocks)
    mask = np.isin(labels, list(values))
    return float(mask[tuple(map(slice, first, stop))].sum() / mask.sum())


class TestRegion:
    @pytest.mark.parametrize("recall", [0.9, 1.0])
    def test_recall_in_scans_left_out(self, recall: float) -> None:
        examples = [example(number) for number in range(1, 5)]
        region = fit_region(examples, list(VALUES), recall)
        assert min(region.recall.values()) >= recall
        for name, values in VALUES.items():
            counted = []
            for number, one in enumerate(examples, start=1):
                box = region.left_out[one.name]
                assert box is not None
                labels = Patient.number(number).labels(one.blocks.frame)
                counted.append(share_within(labels, values, box, one.blocks))
                assert one.recall(box, name) == pytest.approx(counted[-1])
            assert region.recall[name] == pytest.approx(np.mean(counted))
        # as narrow as whole millimetres allow
        if region.width > 0:
            narrower = {name: [] for name in VALUES}
            for one in examples:
                others = np.concatenate([other.places() for other in examples if other is not one])
                smaller = dataclasses.replace(region, places=others, width=region.width - 1)
                box = smaller.box(one.map, one.blocks)
                for name in VALUES:
                    narrower[name].append(one.recall(box, name))
            assert min(np.mean(recalls) for recalls in narrower.values()) < recall

    def test_a_patient_it_has_never_seen(self) -> None:
        region = fit_region([example(number) for number in range(1, 5)], list(VALUES), 0.99)
        for number in (7, 8):
            frame, patient = whole_frame(number, 9), Patient.number(number)
            blocks = Blocks.of(frame)
            box = region.box(patient.map(frame), blocks)
            assert box is not None
            labels = patient.labels(frame)
            for values in VALUES.values():
                assert share_within(labels, values, box, blocks) > 0.97
            first, stop = box.voxels(blocks)
            index = np.argwhere(np.isin(labels, [1, 2]))
            least = np.prod(index.max(axis=0) + 1 - index.min(axis=0))
            kept = np.prod(np.array(stop) - np.array(first))
            assert kept < 2 * least  # little more than the tightest box
            assert kept < 0.5 * np.prod(frame.shape)

    def test_a_scan_that_does_not_show_it(self) -> None:
        region = fit_region([example(number) for number in range(1, 4)], list(VALUES), 0.99)
        frame = whole_frame(7, 9, oblique=False)
        axis = frame.array_axes[2]
        heights = frame.millimetres(np.argwhere(np.isin(Patient.number(7).labels(frame), [1, 2])))[:, 2]
        index = frame.index_from_millimetres([*frame.centre[:2], heights.min() - 30])[axis]
        below = (
            cut(frame, axis, 0, int(index))
            if frame.affine_lps[2, axis] > 0
            else cut(frame, axis, int(index) + 1, frame.shape[axis])
        )
        assert region.box(Patient.number(7).map(below), Blocks.of(below)) is None

    def test_too_few_scans(self) -> None:
        with pytest.raises(ValueError, match=r"'liver' is in 1 of 1 labelled scans .* at least 2"):
            fit_region([example(1)], ["liver"], 0.99)
        with pytest.raises(ValueError, match="'spleen' is in 0 of 2"):
            fit_region([example(1), example(2)], ["spleen"], 0.99)
        for recall in (0, 1.1, float("nan")):
            with pytest.raises(ValueError, match="recall must be above 0"):
                fit_region([example(1), example(2)], ["liver"], recall)

    def test_blocks_hold_every_voxel_once(self) -> None:
        affine = np.diag([1.0, 2.0, 7.0, 1.0])
        blocks = Blocks.of(Frame.from_affine((20, 10, 5), affine, "LPS"))
        assert (blocks.size, blocks.shape) == ((6, 3, 1), (4, 4, 5))
        mask = np.random.default_rng(0).random((20, 10, 5)) < 0.3
        occupied, counts = blocks.count(mask)
        assert counts.sum() == mask.sum()
        for block, count in zip(occupied, counts, strict=True):
            first, stop = Box(block, block + 1).voxels(blocks)
            assert mask[tuple(map(slice, first, stop))].sum() == count
        everything = Box(np.zeros(3, dtype=int), np.array(blocks.shape))
        assert everything.voxels(blocks) == ((0, 0, 0), (20, 10, 5))


class TestCommand:
    @pytest.fixture
    def raw(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A dataset of two channels: three labelled cases, one of air, and test cases with and without the organs."""
        folder = tmp_path / "raw" / "Dataset007_Warped"
        frames = {f"case_{number}": (number, whole_frame(number, 9)) for number in (1, 2, 3)}
        frames["air"] = (-1000, whole_frame(4, 12))
        for name, (number, frame) in frames.items():
            for channel in range(2):
                save_scan(number, frame, folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
            labels = Patient.number(abs(number)).labels(frame).astype(np.uint8)
            save(labels, frame, folder / "labelsTr" / f"{name}.nii.gz")
        whole = whole_frame(5, 9, oblique=False)
        axis = whole.array_axes[2]
        for name, frame in (("test", whole), ("legs", self.lowest(whole, axis))):
            for channel in range(2):
                save_scan(5, frame, folder / "imagesTs" / f"{name}_{channel:04d}.nii.gz")
        content = {
            "channel_names": {"0": "CT", "1": "CT2"},
            "labels": {"background": 0, "liver": 1, "kidney": 2, "node": 3},
            "numTraining": 4,
            "file_ending": ".nii.gz",
        }
        (folder / "dataset.json").write_text(json.dumps(content))
        monkeypatch.setenv("nnUNet_raw", str(folder.parent))
        return folder

    def lowest(self, frame: Frame, axis: int) -> Frame:
        slices = 4
        if frame.affine_lps[2, axis] > 0:
            return cut(frame, axis, 0, slices)
        return cut(frame, axis, frame.shape[axis] - slices, frame.shape[axis])

    def test_a_dataset(
        self, raw: Path, regressor_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = {file: file.read_bytes() for file in raw.rglob("*") if file.is_file()}
        out = tmp_path / "raw" / "Dataset107_Crop"
        assert main([*self.command(regressor_file, out), "--labels", "liver", "2"]) == 0
        assert {file: file.read_bytes() for file in raw.rglob("*") if file.is_file()} == before
        report = json.loads((out / "crop.json").read_text())
        by_case = {scan["case"]: scan for scan in report["scans"]}
        written = {"case_1", "case_2", "case_3", "test"}
        assert {case for case, scan in by_case.items() if not scan["problem"]} == written
        assert by_case["air"]["problem"] == "could not be measured: no body was found"
        assert by_case["legs"]["problem"] == "does not show the region"
        names = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
        train = {f"imagesTr/case_{n}_000{c}.nii.gz" for n in (1, 2, 3) for c in (0, 1)}
        train |= {f"labelsTr/case_{n}.nii.gz" for n in (1, 2, 3)}
        assert names == train | {"imagesTs/test_0000.nii.gz", "imagesTs/test_0001.nii.gz"} | {
            "dataset.json",
            "crop.json",
            "region.npz",
        }
        assert json.loads((out / "dataset.json").read_text())["numTraining"] == 3
        total, kept = 0, 0
        for case in ("case_1", "case_2", "case_3"):
            whole = sitk.ReadImage(str(raw / "labelsTr" / f"{case}.nii.gz"))
            part = sitk.ReadImage(str(out / "labelsTr" / f"{case}.nii.gz"))
            entry = by_case[case]
            assert list(part.GetSize()) == entry["cropped_size_xyz"]
            # every voxel of the crop lies where it lay before, with the value it had
            first = entry["first_voxel_xyz"]
            np.testing.assert_allclose(
                part.GetOrigin(), whole.TransformIndexToPhysicalPoint(first), atol=1e-3
            )
            np.testing.assert_allclose(part.GetDirection(), whole.GetDirection(), atol=1e-6)
            np.testing.assert_allclose(part.GetSpacing(), whole.GetSpacing())
            values = sitk.GetArrayFromImage(whole)
            x, y, z = (slice(at, at + n) for at, n in zip(first, part.GetSize(), strict=True))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(part), values[z, y, x])
            organs = np.isin(values, [1, 2])
            assert entry["recall"] == pytest.approx(organs[z, y, x].sum() / organs.sum())
            assert entry["recall_left_out"] <= entry["recall"]
            assert entry["volume_reduction"] == pytest.approx(
                whole.GetNumberOfPixels() / part.GetNumberOfPixels()
            )
            image = sitk.ReadImage(str(out / "imagesTr" / f"{case}_0001.nii.gz"))
            assert image.GetSize() == part.GetSize()
            assert image.GetOrigin() == part.GetOrigin()
            assert image.GetPixelID() == sitk.sitkInt16
            total, kept = total + whole.GetNumberOfPixels(), kept + part.GetNumberOfPixels()
        test = by_case["test"]
        total, kept = total + np.prod(test["size_xyz"]), kept + np.prod(test["cropped_size_xyz"])
        assert report["volume_reduction"] == pytest.approx(total / kept)
        assert report["volume_reduction"] > 2
        assert (test["recall"], test["recall_left_out"]) == (None, None)
        assert min(report["recall_left_out"].values()) >= 0.99
        assert list(report["recall_left_out"]) == ["liver", "2"]
        printed = capsys.readouterr().out
        assert "not written: legs does not show the region" in printed
        assert "4 of 6 scans written" in printed

    def test_files_of_any_names_and_labelled_test_cases(
        self, raw: Path, regressor_file: Path, tmp_path: Path
    ) -> None:
        """dataset.json may list files that lie anywhere, several of one name."""
        content = json.loads((raw / "dataset.json").read_text())
        listed = {}
        for case in ("case_1", "case_2", "case_3"):
            images = []
            for channel, folder in enumerate(("ct", "pet")):
                (raw / folder).mkdir(exist_ok=True)
                images.append(f"{folder}/{case}.nii.gz")
                (raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz").rename(raw / images[-1])
            listed[case] = {"images": images, "label": f"labelsTr/{case}.nii.gz"}
        (raw / "dataset.json").write_text(json.dumps({**content, "dataset": listed}))
        (raw / "labelsTs").mkdir()
        frame = whole_frame(5, 9, oblique=False)
        truth = Patient.number(5).labels(frame).astype(np.uint8)
        save(np.where(truth == 3, 1, 0).astype(np.uint8), frame, raw / "labelsTs" / "test.nii.gz")
        out = tmp_path / "raw" / "Dataset107_Crop"
        assert main(self.command(regressor_file, out)) == 0
        for case in listed:
            names = {file.name for file in (out / "imagesTr").glob(f"{case}*")}
            assert names == {f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"}
        assert (out / "labelsTs" / "test.nii.gz").is_file()
        report = json.loads((out / "crop.json").read_text())
        # the test case's label, which lies elsewhere, is cropped, and has no part in the region
        assert min(report["recall_left_out"].values()) >= 0.99
        (test,) = (scan for scan in report["scans"] if scan["case"] == "test")
        assert test["recall"] < 0.99
        assert test["recall_left_out"] is None
        shutil.rmtree(raw / "imagesTs")
        (raw / "imagesTs").mkdir()
        (raw / "imagesTs" / ".DS_Store").touch()
        assert main(self.command(regressor_file, tmp_path / "raw" / "Dataset108_Crop")) == 0

    def test_folders(self, raw: Path, regressor_file: Path, tmp_path: Path) -> None:
        regressor_file.write_bytes(KnowingRegressor(channel=1).to_bytes())
        (raw / "labelsTr" / "case_3.nii.gz").unlink()
        out = tmp_path / "cropped"
        line = ["crop", "-i", str(raw / "imagesTr"), "-l", str(raw / "labelsTr"), "--labels", "1", "--quiet"]
        assert main([*line, "--regressor", str(regressor_file), "--recall", "0.95", "-o", str(out)]) == 0
        assert not (out / "dataset.json").exists()
        assert sorted(file.name for file in (out / "labels").iterdir()) == ["case_1.nii.gz", "case_2.nii.gz"]
        assert len(list((out / "images").iterdir())) == 6
        report = json.loads((out / "crop.json").read_text())
        assert report["recall_target"] == 0.95

    def test_new_scans_are_cropped_by_the_region_of_earlier_crops(
        self, raw: Path, regressor_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = ["crop", "--regressor", str(regressor_file), "--quiet"]
        out, again = tmp_path / "out", tmp_path / "again"
        assert main([*line, "-d", "7", "--labels", "liver", "-o", str(out)]) == 0
        region = ["--region", str(out / "region.npz"), "-o", str(again)]
        # the new scan alone, its own label now a test of the region
        save_scan(5, whole_frame(5, 9, oblique=False), tmp_path / "new" / "test_0000.nii.gz")
        labels = Patient.number(5).labels(whole_frame(5, 9, oblique=False)).astype(np.uint8)
        save(labels, whole_frame(5, 9, oblique=False), tmp_path / "truth" / "test.nii.gz")
        assert main([*line, "-i", str(tmp_path / "new"), "-l", str(tmp_path / "truth"), *region]) == 0
        earlier = sitk.ReadImage(str(out / "imagesTs" / "test_0000.nii.gz"))
        image = sitk.ReadImage(str(again / "images" / "test_0000.nii.gz"))
        assert (image.GetSize(), image.GetOrigin()) == (earlier.GetSize(), earlier.GetOrigin())
        report = json.loads((again / "crop.json").read_text())
        assert report["labels"] == {"liver": [1]}
        assert report["recall_target"] == 0.99
        (scan,) = report["scans"]
        assert scan["recall_left_out"] is None
        cropped = sitk.GetArrayFromImage(sitk.ReadImage(str(again / "labels" / "test.nii.gz")))
        assert scan["recall"] == pytest.approx((cropped == 1).sum() / (labels == 1).sum())
        assert scan["recall"] > 0.97
        # the coordinates of another regressor, and no region at all
        third = [*line, "-i", str(tmp_path / "new"), "-o", str(tmp_path / "third"), "--region"]
        regressor_file.write_bytes(KnowingRegressor(channel=1).to_bytes())
        assert main([*third, str(out / "region.npz")]) == 2
        assert "another regressor" in capsys.readouterr().err
        assert main([*third, str(out / "crop.json")]) == 2
        assert "not a region written by locctx crop" in capsys.readouterr().err
        assert not (tmp_path / "third").exists()

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--labels", "spleen"], "unknown label 'spleen'; there are liver, kidney, node"),
            (["--labels", "0"], "unknown label '0'"),
            (["--recall", "1.5"], "recall must be above 0 and at most 1, got 1.5"),
            (["--regressor", "nowhere.pt"], "no file nowhere.pt"),
            (["-i", "images"], "either -d DATASET or -i IMAGES"),
            (["-l", "labels"], "-l LABELS needs -i IMAGES"),
            (["--region", "region.npz"], "either --labels NAME... to learn a region or --region FILE"),
        ],
    )
    def test_wrong_input(
        self,
        more: list[str],
        message: str,
        raw: Path,
        regressor_file: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out"
        line = self.command(regressor_file, out)
        assert main([*line, *more]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()

    def test_files_that_do_not_fit(
        self, raw: Path, regressor_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        line = self.command(regressor_file, out)
        label = raw / "labelsTr" / "case_2.nii.gz"
        good = label.read_bytes()
        save(np.zeros((4, 5, 6), dtype=np.uint8), whole_frame(1), label)
        assert main(line) == 2
        assert "the files of the case case_2 differ in size" in capsys.readouterr().err
        label.write_bytes(b"broken")
        assert main(line) == 2
        assert f"{label} is not compressed although" in capsys.readouterr().err
        assert not out.exists()
        label.write_bytes(good)
        for case in ("case_1", "case_2"):
            save_scan(-1000, whole_frame(int(case[-1]), 9), raw / "imagesTr" / f"{case}_0000.nii.gz")
        assert main(line) == 2
        assert "case_1 could not: no body was found" in capsys.readouterr().err
        assert not out.exists()

    def command(self, regressor: Path, out: Path) -> list[str]:
        return [
            *("crop", "-d", "7", "--regressor", str(regressor)),
            *("--labels", "liver", "-o", str(out), "--quiet"),
        ]

    def test_a_full_disk(
        self, raw: Path, regressor_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        random = np.random.default_rng(0)
        noisy = raw / "imagesTr" / "case_2_0001.nii.gz"
        image = sitk.ReadImage(str(noisy))
        noise = sitk.GetImageFromArray(
            random.integers(0, 1000, sitk.GetArrayViewFromImage(image).shape).astype(np.int16)
        )
        noise.CopyInformation(image)
        sitk.WriteImage(noise, str(noisy))
        out = tmp_path / "cropped" / "out"
        out.mkdir(parents=True)
        with full_disk(1000):
            assert main(self.command(regressor_file, out)) == 2
        message = capsys.readouterr().err
        assert "case_2_0001.nii.gz was not written whole" in message
        assert "Traceback" not in message
        assert [*out.parent.iterdir(), *out.iterdir()] == [out]
        assert main(self.command(regressor_file, out)) == 0
        assert (out / "imagesTr" / "case_2_0001.nii.gz").stat().st_size > 1000
        assert list(out.parent.iterdir()) == [out]

    def test_killed_and_started_again(
        self, raw: Path, regressor_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "cropped" / "out"
        line = self.command(regressor_file, out)
        code = (
            "import os, signal, sys\n"
            "import nnunet_locctx.regression.anatomical\n"
            "from nnunet_locctx.anatomy import crop\n"
            "from nnunet_locctx.cli import main\n"
            "from nnunet_locctx.regression.registry import REGRESSORS\n"
            "from tests.anatomy.warped_scans import KnowingRegressor\n"
            "REGRESSORS['anatomical'] = KnowingRegressor\n"
            "crop_file = crop.crop_file\n"
            "def killed(file, *rest):\n"
            "    crop_file(file, *rest)\n"
            "    if file.name == 'case_2_0000.nii.gz': os.kill(os.getpid(), signal.SIGKILL)\n"
            "crop.crop_file = killed\n"
            "main(sys.argv[1:])\n"
        )
        ended = subprocess.run([sys.executable, "-c", code, *line], check=False)
        assert ended.returncode == -signal.SIGKILL
        (left,) = out.parent.iterdir()
        assert (left / "imagesTr" / "case_2_0000.nii.gz").exists()
        assert main(line) == 0
        assert list(out.parent.iterdir()) == [out]
        assert sorted(file.name for file in out.glob("labelsTr/*")) == [f"case_{n}.nii.gz" for n in (1, 2, 3)]
        assert sum(1 for _ in out.rglob("*.nii.gz")) == 11
        assert {file.name for file in out.glob("*.*")} == {"crop.json", "dataset.json", "region.npz"}

    def test_only_an_empty_folder_is_written_to(
        self, raw: Path, regressor_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = sorted(raw.rglob("*"))
        assert main(self.command(regressor_file, raw)) == 2
        assert "not an empty folder" in capsys.readouterr().err
        assert sorted(raw.rglob("*")) == before

    def test_the_regressor_of_the_dataset(
        self,
        raw: Path,
        regressor_file: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = tmp_path / "preprocessed" / raw.name
        folder.mkdir(parents=True)
        monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
        line = ["crop", "-d", "7", "--labels", "liver", "-o", str(tmp_path / "out"), "--quiet"]
        assert main(line) == 2
        assert "locctx fit ape -d 7" in capsys.readouterr().err
        (folder / "locctx_anatomical").mkdir()
        (folder / "locctx_anatomical" / "regressor.pt").write_bytes(regressor_file.read_bytes())
        assert main(line) == 0
        assert (tmp_path / "out" / "dataset.json").is_file()
