"""`locctx fit` refuses what it cannot use before anything is written, and reads what it can."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_locctx.cli import main
from nnunet_locctx.location import AnatomicalMap, BodyPartCurve
from nnunet_locctx.locks import lock
from nnunet_locctx.nnunet.data.digests import file_digests
from nnunet_locctx.nnunet.data.fitted import REGRESSOR, CaseMeasurements
from nnunet_locctx.nnunet.data.fitting import Anchors, FittedDataset, fit_source
from nnunet_locctx.nnunet.data.raw_scans import CanonicalScans, keep_scans, training_cases
from nnunet_locctx.show.fitted import draw_fitted
from tests.anatomical_cases import SPACING, scan

DATASET = "Dataset005_Tiny"


def write(file: Path, array: np.ndarray, spacing: float = 8.0) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([spacing] * 3)
    SimpleITK.WriteImage(image, str(file))


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raw dataset of three scans of noise; returns its folder."""
    for name in ("raw", "preprocessed"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "raw" / DATASET
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(3):
        image = random.normal(0, 100, (10, 9, 8)).astype(np.float32)
        label = np.zeros((10, 9, 8), dtype=np.uint8)
        label[3:5] = 1
        write(folder / "imagesTr" / f"tiny_{number}_0000.nii.gz", image)
        write(folder / "labelsTr" / f"tiny_{number}.nii.gz", label)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def preprocessed(raw: Path) -> list[Path]:
    return list((raw.parents[1] / "preprocessed").rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("body-part -d 6", "no dataset 6"),
        ("body-part -d 5 --lowest organ", "--lowest and --highest go together"),
        ("body-part -d 5 --lowest organ --highest skull", "no label 'skull'; it has background, organ"),
        ("ape -d 5 --lowest organ --highest organ", "for the source 'body_part', got 'anatomical'"),
        ("body-part -d 5 --option colour=red", "does not take colour; allowed: modality, channel, spacing"),
        ("ape -d 5 --option steps", "needs OPTION=VALUE, got 'steps'"),
        ("body-part -d 5 --channel 3", "has the channels 0, channel 3 is asked for"),
        ("ape -d 5 --spacing -1", "spacing must be"),
        ("body-part -d 5 --plans nnUNetPlans", "needs a configuration"),
        ("body-part -d 5 -c 3d_fullres", "no dataset 5"),
        ("body-part -d 5 --from-json nowhere", "nowhere is not a folder"),
        ("ape -d 5 -np 0", "--processes must be at least 1, got 0"),
        (
            "body-part -d 5 --option learning_rate=high",
            "learning_rate must be a finite number above 0, got 'high'",
        ),
        ("body-part -d 5 --option window=5", "the window must be two rising numbers, got 5"),
        (
            "body-part -d 5 --option validation_share=[1]",
            "validation_share must lie between 0 and 1, got [1]",
        ),
        ("ape -d 5 --option crop=16", "crop must be a list of numbers, got 16"),
        ("ape -d 5 --seed 99999999999999999999", "seed must be a whole number"),
    ],
)
def test_unusable_input(raw: Path, arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments.split(), "--quiet"]) == 2
    assert words in capsys.readouterr().err
    assert not preprocessed(raw)


def test_missing_json_files_are_named(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "tiny_1.json").write_text("{}")
    assert main(["fit", "body-part", "-d", "5", "--from-json", str(tmp_path / "json"), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "has no JSON file for 2 cases" in message
    assert "tiny_0" in message
    assert "tiny_2" in message
    assert not preprocessed(raw)


def test_all_unusable_scans_are_named_and_the_others_kept(raw: Path) -> None:
    for number in (1, 2):
        (raw / "imagesTr" / f"tiny_{number}_0000.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"2 of 3 scans cannot be used:\n(.|\n)*tiny_1(.|\n)*tiny_2"):
        fit_source(5, "body_part", progress=False)
    assert not (raw.parents[1] / "preprocessed" / DATASET / "locctx_body_part" / "regressor.pt").exists()
    kept = raw.parents[1] / "preprocessed" / DATASET / "locctx_scans_4mm_channel0"
    assert [file.name for file in kept.iterdir()] == ["tiny_0.npz"]


@pytest.mark.parametrize("source", ["body_part", "anatomical"])
@pytest.mark.parametrize(("slices", "intensity"), [(30, -1000), (1, 40)], ids=["air", "2D"])
@pytest.mark.filterwarnings("ignore:.*tiny_:UserWarning")
def test_scans_that_show_nothing(raw: Path, source: str, slices: int, intensity: int) -> None:
    for number in range(3):
        array = np.full((slices, 9, 8), intensity, np.float32)
        write(raw / "imagesTr" / f"tiny_{number}_0000.nii.gz", array)
    with pytest.raises(ValueError, match=r"scans? "):
        fit_source(5, source, progress=False, steps=2)
    assert not (raw.parents[1] / "preprocessed" / DATASET / f"locctx_{source}" / "regressor.pt").exists()


def test_scans_are_kept_as_they_are_and_read_again_when_they_change(raw: Path, tmp_path: Path) -> None:
    cases = training_cases(raw)
    assert [case.identifier for case in cases] == ["tiny_0", "tiny_1", "tiny_2"]

    def keep() -> CanonicalScans:
        digests = file_digests(
            [file for case in cases for file in case.images], tmp_path / "d", progress=False
        )
        stamps = {case.identifier: case.stamp(digests) for case in cases}
        return keep_scans(cases, stamps, tmp_path / "kept", 0, 8.0, progress=False)

    kept = keep()
    assert isinstance(kept, CanonicalScans)
    data, frame = cases[0].read()
    scan = kept["tiny_0"]
    assert scan.image.shape == (8, 9, 10)
    # (R, A, S) against the reader's (z, y, x) of a scan that runs L, P, S
    np.testing.assert_allclose(scan.image[::-1, ::-1].transpose(2, 1, 0), data[0], atol=0.05)
    assert scan.inside.all()
    corner = scan.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(corner[:3], frame.millimetres([0, 8, 7]))
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    keep()
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    write(raw / "imagesTr" / "tiny_1_0000.nii.gz", np.ones((10, 9, 8), np.float32))
    (tmp_path / "kept" / "tiny_2.npz").write_bytes(b"damaged")
    again = keep()
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["tiny_1.npz", "tiny_2.npz"]
    np.testing.assert_allclose(again["tiny_1"].image, 1)
    with pytest.raises(KeyError):
        kept["other"]


def test_worker_processes_give_the_same_scans(raw: Path, tmp_path: Path) -> None:
    cases = training_cases(raw)
    stamps = {case.identifier: "" for case in cases}
    alone = keep_scans(cases, stamps, tmp_path / "alone", 0, 8.0, progress=False)
    together = keep_scans(cases, stamps, tmp_path / "together", 0, 8.0, processes=2, progress=False)
    for identifier in alone:
        np.testing.assert_array_equal(alone[identifier].image, together[identifier].image)


def test_wrong_source() -> None:
    with pytest.raises(ValueError, match="source must be one of body, body_part, anatomical, got 'voxel'"):
        fit_source(5, "voxel")
    with pytest.raises(ValueError, match="anchors and imported scores are for the source 'body_part'"):
        fit_source(5, "anatomical", anchors=Anchors("organ", "organ"))


QUICK = (
    "ape -d 5 --quiet -np 1 --steps 2 --option widths=[8,16] --option depths=[1,1] --option crop=[16,16,16]"
)


def write_scan(file: Path, lower: tuple[float, float, float], shape: tuple[int, int, int], seed: int) -> None:
    """A scan of made-up anatomy, with the header that says where it lies."""
    made = scan(lower, shape, seed)
    image = SimpleITK.GetImageFromArray(made.image.transpose(2, 1, 0))
    image.SetSpacing([SPACING] * 3)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin(made.affine[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(file))


@pytest.fixture
def bodies(raw: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The dataset with three bodies; what a fit of seconds makes of them is not judged."""
    monkeypatch.setattr("nnunet_locctx.regression.anatomical.regressor.PLAUSIBLE_SLOPES", (-1e9, 1e9))
    for number in range(3):
        file = raw / "imagesTr" / f"tiny_{number}_0000.nii.gz"
        write_scan(file, (-160, -120, -200.0 + 50 * number), (40, 30, 20), number)
    return raw


def stored(raw: Path) -> tuple[CaseMeasurements, bytes]:
    folder = raw.parents[1] / "preprocessed" / DATASET / "locctx_anatomical"
    data = (folder / REGRESSOR).read_bytes()
    return CaseMeasurements(folder, data), data


def times(raw: Path) -> dict[str, int]:
    return {file.stem: file.stat().st_mtime_ns for file in stored(raw)[0].folder.iterdir()}


def move(file: Path, millimetres: float) -> None:
    """Writes another position into a scan's header: a file of the same size and time with another content."""
    before = file.stat()
    image = SimpleITK.ReadImage(str(file))
    origin = image.GetOrigin()
    image.SetOrigin((origin[0], origin[1], origin[2] + millimetres))
    SimpleITK.WriteImage(image, str(file))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_scan_that_changed_is_measured_again_and_named(
    bodies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *QUICK.split()]) == 0
    before, (measurements, regressor) = times(bodies), stored(bodies)
    first = measurements.read("tiny_1")
    assert isinstance(first, AnatomicalMap)
    # nnU-Net's data, one folder made before the change and one after it
    dataset = bodies.parents[1] / "preprocessed" / DATASET
    for name in ("old", "new"):
        (dataset / name).mkdir()
        (dataset / name / "tiny_1.pkl").write_bytes(b"")
    time.sleep(0.02)
    move(bodies / "imagesTr" / "tiny_1_0000.nii.gz", 80.0)
    time.sleep(0.02)
    (dataset / "new" / "tiny_1.pkl").touch()
    capsys.readouterr()
    assert main(["fit", *QUICK.split()]) == 0
    said = capsys.readouterr().out
    assert "measured again, because the scan changed: tiny_1\n" in said
    assert "warning: the preprocessed data in old is still that of the scans before they changed" in said
    assert "note: the regressor was fitted before these scans changed: tiny_1." in said
    after = times(bodies)
    assert [name for name in sorted(after) if after[name] != before[name]] == ["tiny_1"]
    second = measurements.read("tiny_1")
    assert isinstance(second, AnatomicalMap)
    np.testing.assert_allclose(second.affine[2, 3] - first.affine[2, 3], 80.0)
    np.testing.assert_array_equal(second.values, first.values)
    assert stored(bodies)[1] == regressor
    # nothing more to do, but the regressor is still that of the scans before
    assert main(["fit", *QUICK.split()]) == 0
    said = capsys.readouterr().out
    assert "measured again" not in said
    assert "fitted before these scans changed: tiny_1" in said
    assert times(bodies) == after
    assert main(["fit", *QUICK.split(), "--again"]) == 0
    said = capsys.readouterr().out
    assert "fitted " in said
    assert "fitted before" not in said


def test_a_copied_dataset_is_not_measured_again(bodies: Path) -> None:
    assert main(["fit", *QUICK.split()]) == 0
    before = times(bodies)
    for file in (bodies / "imagesTr").iterdir():
        shutil.copy(file, file.with_name("copy"))  # another time, the same content
        file.with_name("copy").replace(file)
    assert main(["fit", *QUICK.split()]) == 0
    assert times(bodies) == before


def test_another_reader_reads_other_headers(bodies: Path) -> None:
    """SimpleITK and nibabel prefer other transforms of a NIfTI file."""
    assert main(["fit", *QUICK.split()]) == 0
    before = times(bodies)
    file = bodies / "dataset.json"
    content = {**json.loads(file.read_text()), "overwrite_image_reader_writer": "NibabelIO"}
    file.write_text(json.dumps(content))
    assert main(["fit", *QUICK.split()]) == 0
    after = times(bodies)
    assert all(after[name] != before[name] for name in before)


def test_measurements_of_earlier_versions_are_read_and_measured_again(
    bodies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *QUICK.split()]) == 0
    measurements, _ = stored(bodies)
    found = measurements.read("tiny_0")
    assert found.stamp
    found.stamp, found.scan = "", None
    measurements.write("tiny_0", found)
    file = measurements.folder.parent / "fit.json"
    content = json.loads(file.read_text())
    del content["scans"]
    file.write_text(json.dumps(content))
    before = times(bodies)
    assert measurements.read("tiny_0").stamp == ""
    assert main(["fit", *QUICK.split()]) == 0
    assert "scan changed" not in capsys.readouterr().out
    assert [name for name, at in times(bodies).items() if at != before[name]] == ["tiny_0"]
    assert measurements.read("tiny_0").stamp


def test_case_was_preprocessed_from_the_scan_that_was_measured(bodies: Path) -> None:
    assert main(["fit", *QUICK.split()]) == 0
    measurements, _ = stored(bodies)
    file = bodies / "imagesTr" / "tiny_1_0000.nii.gz"
    (case,) = [case for case in training_cases(bodies) if case.identifier == "tiny_1"]
    transpose = (2, 0, 1)

    def check() -> None:
        data, properties = case.read_with_properties()
        properties["shape_before_cropping"] = tuple(data.shape[1 + axis] for axis in transpose)
        measurements.check_scan("tiny_1", properties, transpose)

    check()
    move(file, 0.5)  # a sixteenth of a voxel
    check()
    move(file, 80.0)
    with pytest.raises(ValueError, match=r"measured with another header .*corners lie 10\.1 voxels apart"):
        check()
    write_scan(file, (-160, -120, -150), (40, 30, 21), 1)
    with pytest.raises(ValueError, match=r"\[20, 30, 40\] voxels against \[21, 30, 40\]"):
        check()


def small(file: Path, number: int) -> None:
    write_scan(file, (-24, -24, -100.0 + 50 * number), (6, 6, 8), number)


def test_scans_too_small_are_refused_before_the_fit(bodies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        small(bodies / "imagesTr" / f"tiny_{number}_0000.nii.gz", number)
    assert main(["fit", *QUICK.split()]) == 2
    message = capsys.readouterr().err
    assert "got 0 of 3; tiny_0: 36 nodes of body were found, at least 64 are needed" in message
    assert "--spacing 5.9" in message
    assert not (bodies.parents[1] / "preprocessed" / DATASET / "locctx_anatomical" / REGRESSOR).exists()
    assert main(["fit", *QUICK.split(), "--spacing", "5.9"]) == 0


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
def test_few_measured_scans_are_warned_about_and_none_is_no_success(
    bodies: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small(bodies / "imagesTr" / "tiny_2_0000.nii.gz", 2)
    assert main(["fit", *QUICK.split()]) == 0
    said = capsys.readouterr().out
    assert "warning: only 2 of 3 scans could be measured" in said
    assert "warning: tiny_2: 36 nodes of body" in said
    picture = bodies.parents[1] / "preprocessed" / DATASET / "locctx_anatomical" / "report.png"
    assert picture.is_file()
    # coordinates that run against the patient's axes, in every scan
    monkeypatch.setattr("nnunet_locctx.regression.anatomical.regressor.PLAUSIBLE_SLOPES", (1e9, 1e10))
    assert main(["fit", *QUICK.split(), "--again", "--seed", "1"]) == 1
    said = capsys.readouterr().out
    assert "0 of 3 scans measured" in said
    assert "no scan could be measured" in said
    assert "next:" not in said
    assert "picture" not in said
    assert not picture.exists()


def test_nothing_measured_is_not_drawn(tmp_path: Path) -> None:
    nothing = FittedDataset(tmp_path, "anatomical", {"a": AnatomicalMap.unusable("no body")}, True)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_fitted(nothing, tmp_path / "report.png")
    assert not list(tmp_path.iterdir())
    curves = {"a": BodyPartCurve(np.array([0.0, 0.0, 1.0]), np.array([0.0, 9]), np.array([0.0, 9]), 1.0)}
    draw_fitted(FittedDataset(tmp_path, "body_part", curves, True), tmp_path / "report.png")
    assert (tmp_path / "report.png").is_file()


def test_a_second_fit_waits_for_the_first_and_finds_it_done(
    bodies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *QUICK.split()]) == 0
    capsys.readouterr()
    held = bodies.parents[1] / "preprocessed" / DATASET / "locctx_fit.lock"
    found: list[int] = []
    second = threading.Thread(target=lambda: found.append(main(["fit", *QUICK.split()])))
    with lock(held):
        second.start()
        said = wait_until(lambda: capsys.readouterr().out)
        assert f"Dataset005_Tiny (locctx fit) is in use by process {os.getpid()} on" in said
        assert not found
    second.join(30)
    assert found == [0]
    assert "unchanged:" in capsys.readouterr().out


def wait_until(answer: Callable[[], str], seconds: float = 20.0) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = answer()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail("waited in vain")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["ghost.nii.gz"], "1 files without a channel number, of which nnU-Net makes cases without an image"),
        (["tiny_0_00001.nii.gz"], "name them CASE_0000.nii.gz"),
        (["more_0001.nii.gz"], "channels are missing in .*more_0000.nii.gz"),
        (["more_0000.nii.gz", "more_0001.nii.gz"], r"names 1 channel\(s\), .*more has 2"),
    ],
)
def test_images_that_nnunet_takes_for_something_else(raw: Path, names: list[str], words: str) -> None:
    for name in names:
        shutil.copy(raw / "imagesTr" / "tiny_0_0000.nii.gz", raw / "imagesTr" / name)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        training_cases(raw)
    assert main(["fit", *QUICK.split()]) == 2
    assert not preprocessed(raw)


def test_cases_listed_in_dataset_json(bodies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's other way to name files: relative to the dataset, absolute, or with a variable."""
    elsewhere = bodies.parents[1] / "elsewhere"
    (bodies / "imagesTr").rename(elsewhere)
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    images = [
        "../../elsewhere/tiny_0_0000.nii.gz",
        str(elsewhere / "tiny_1_0000.nii.gz"),
        "$ELSEWHERE/tiny_2_0000.nii.gz",
    ]
    listed = {
        f"case_{number}": {"images": [image], "label": f"labelsTr/tiny_{number}.nii.gz"}
        for number, image in enumerate(images)
    }
    file = bodies / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dataset": listed}))
    cases = training_cases(bodies)
    assert [case.identifier for case in cases] == ["case_0", "case_1", "case_2"]
    assert [case.images[0].name for case in cases] == [f"tiny_{number}_0000.nii.gz" for number in range(3)]
    assert all(case.label.is_file() for case in cases)
    assert main(["fit", *QUICK.split()]) == 0
    assert sorted(times(bodies)) == ["case_0", "case_1", "case_2"]
    (elsewhere / "tiny_1_0000.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"not there: .*tiny_1_0000"):
        training_cases(bodies)


@pytest.mark.parametrize(
    "source", ["body-part --option side=80 --option volumes=4", "ape --option crop=[16,16,16]"]
)
def test_a_learning_rate_that_is_too_high(
    bodies: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"fit {source} -d 5 --quiet -np 1 --spacing 8 --steps 20 --option learning_rate=1e18"
    assert main(arguments.split()) == 2
    message = capsys.readouterr().err
    assert "the learning rate 1e+18 is too high; fit again with a lower learning rate" in message


def test_a_network_larger_than_memory(bodies: Path) -> None:
    with pytest.raises(MemoryError, match="allocate"):
        fit_source(5, "anatomical", progress=False, widths=(10**6, 10**6), depths=(1, 1))
