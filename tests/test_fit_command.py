"""`locctx fit` refuses what it cannot use before anything is written, and reads what it can."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from nnunet_locctx.cli import main
from nnunet_locctx.location import AnatomicalMap, BodyPartCurve
from nnunet_locctx.locks import lock
from nnunet_locctx.nnunet.data import fitting
from nnunet_locctx.nnunet.data.fitted import REGRESSOR, CaseMeasurements
from nnunet_locctx.nnunet.data.fitting import Anchors, FittedDataset, fit_source
from nnunet_locctx.nnunet.data.raw_scans import training_cases
from nnunet_locctx.resources import trainers_folder
from nnunet_locctx.show.fitted import draw_fitted
from tests.nnunet.small_plans import configuration, plans
from tests.tiny_dataset import DATASET, enter, write, write_bodies, write_dataset, write_scan

QUICK = [
    *["ape", "-d", "5", "--quiet", "-np", "1", "--steps", "2"],
    *["--option", "widths=[8,16]", "--option", "depths=[1,1]", "--option", "crop=[16,16,16]"],
]


@pytest.fixture(autouse=True, scope="module")
def _seconds_not_judgement() -> Iterator[None]:
    """What two steps teach is not judged; the picture and nnU-Net's dozen processes would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_locctx.regression.anatomical.regressor.PLAUSIBLE_SLOPES", (-1e9, 1e9))
        patch.setattr(
            "nnunet_locctx.show.fitted.draw_fitted", lambda fitted, file: file.write_bytes(b"drawn")
        )
        patch.setattr("nnunetv2.utilities.utils.Pool", lambda processes: ThreadPool(1))
        yield


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_dataset(enter(tmp_path, monkeypatch))


@pytest.fixture
def bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_bodies(enter(tmp_path, monkeypatch))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    space = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        write_bodies(enter(space, patch))
        assert main(["fit", *QUICK]) == 0
    return space


@pytest.fixture
def fitted(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The raw dataset of three bodies, fitted."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return enter(tmp_path, monkeypatch)


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
        ("body-part -d 5 --channel 3", "has the channels 0, channel 3 is named"),
        ("ape -d 5 --spacing -1", "spacing must be"),
        ("body-part -d 5 --plans nnUNetPlans", "needs a configuration"),
        ("body-part -d 5 -c 3d_fullres", "no dataset 5"),
        ("body-part -d 5 --from-json nowhere", "nowhere is not a folder"),
        ("ape -d 5 -np 0", "--processes must be at least 1, got 0"),
        ("body-part -d 5 --option learning_rate=high", "learning_rate must be a positive number, got 'high'"),
        ("body-part -d 5 --option window=5", "window must be two rising numbers, got 5"),
        ("body-part -d 5 --option validation_share=[1]", "validation_share must be between 0 and 1, got [1]"),
        ("ape -d 5 --option crop=16", "crop must be a list of numbers, got 16"),
        ("ape -d 5 --seed 99999999999999999999", "seed must be an integer from 0"),
        ("body -d 5 --channel 3 --modality ct", "has the channels 0, channel 3 is named"),
        ("body-part -d 5 --option channel=0", "--option channel: it has an option of its own, --channel"),
        ("ape -d 5 --steps 5 --option steps=6", "it has an option of its own, --steps"),
    ],
)
def test_unusable_input(raw: Path, arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments.split(), "--quiet"]) == 2
    assert words in capsys.readouterr().err
    assert not preprocessed(raw)


def test_a_configuration_is_added_and_reported_as_plan_does(
    bodies: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    folder = bodies.parents[1] / "preprocessed" / DATASET
    (folder / "nnUNetPlans_3d").mkdir(parents=True)
    planned = plans({"3d_fullres": configuration(patch_size=[16] * 3)})
    (folder / "nnUNetPlans.json").write_text(json.dumps(planned))
    assert (
        main(["fit", "body", "-d", "5", "-c", "3d_fullres", "-np", "1", "--quiet", "--modality", "mr"]) == 0
    )
    text = capsys.readouterr().out
    assert "location        {'source': 'body'}" in text
    starts = ["nnUNetv2_train 5 3d_fullres_body 0 -p nnUNetPlans_locctx -tr LocCtxTrainer"]
    starts += ["nnUNetv2_predict -d 5 -c 3d_fullres_body", "locctx inspect predictions -d 5"]
    lines = text.partition("next:\n")[2].splitlines()
    assert [line.strip().startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 3
    # a name that is taken is refused before the fit
    changed = [
        "plan",
        "-d",
        "5",
        "--name",
        "3d_fullres_body",
        "--source",
        "body",
        "--jitter",
        "0.1",
        "--force",
    ]
    assert main(changed) == 0
    shutil.rmtree(folder / "locctx_body")
    assert main(["fit", "body", "-d", "5", "-c", "3d_fullres", "--modality", "mr", "--quiet"]) == 2
    assert "replace it with `locctx plan --force`" in capsys.readouterr().err
    assert not (folder / "locctx_body").exists()


@pytest.mark.parametrize("source", ["ape", "body-part"])
def test_single_slices_are_refused_before_the_fit(
    source: str, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_scan(raw / "imagesTr" / f"tiny_{number}_0000.nii.gz", (0, 0, 0), (40, 50, 1), number)
    assert main(["fit", source, "-d", "5", "--quiet", "-np", "1"]) == 2
    assert "are single slices" in capsys.readouterr().err
    assert not preprocessed(raw)


def test_images_without_a_channel_are_refused(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(raw / "imagesTr" / "tiny_0_0000.nii.gz", raw / "imagesTr" / "ghost.nii.gz")
    assert main(["fit", *QUICK]) == 2
    assert "ghost.nii.gz" in capsys.readouterr().err
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


def test_unusable_scans_are_all_named_also_the_first(raw: Path) -> None:
    for number in (0, 2):
        (raw / "imagesTr" / f"tiny_{number}_0000.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"2 of 3 scans cannot be used:\n(.|\n)*tiny_0(.|\n)*tiny_2"):
        fit_source(5, "body_part", progress=False)


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


def test_wrong_source() -> None:
    with pytest.raises(ValueError, match="source must be one of body, body_part, anatomical, got 'voxel'"):
        fit_source(5, "voxel")
    with pytest.raises(ValueError, match="anchors and imported scores are for the source 'body_part'"):
        fit_source(5, "anatomical", anchors=Anchors("organ", "organ"))


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
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, (measurements, regressor) = times(fitted), stored(fitted)
    first = measurements.read("tiny_1")
    assert isinstance(first, AnatomicalMap)
    # nnU-Net's data, one folder made before the change and one after it
    dataset = fitted.parents[1] / "preprocessed" / DATASET
    for name in ("old", "new"):
        (dataset / name).mkdir()
        (dataset / name / "tiny_1.pkl").write_bytes(b"")
    time.sleep(0.02)
    move(fitted / "imagesTr" / "tiny_1_0000.nii.gz", 80.0)
    time.sleep(0.02)
    (dataset / "new" / "tiny_1.pkl").touch()
    capsys.readouterr()
    assert main(["fit", *QUICK]) == 0
    output = capsys.readouterr().out
    assert "measured again, because the scan changed: tiny_1\n" in output
    assert "warning: the preprocessed data in old is still that of the scans before they changed" in output
    assert "note: the regressor was fitted before these scans changed: tiny_1." in output
    after = times(fitted)
    assert [name for name in sorted(after) if after[name] != before[name]] == ["tiny_1"]
    second = measurements.read("tiny_1")
    assert isinstance(second, AnatomicalMap)
    np.testing.assert_allclose(second.affine[2, 3] - first.affine[2, 3], 80.0)
    np.testing.assert_array_equal(second.values, first.values)
    assert stored(fitted)[1] == regressor
    # nothing more to do, but the regressor is still that of the scans before
    assert main(["fit", *QUICK]) == 0
    output = capsys.readouterr().out
    assert "measured again" not in output
    assert "fitted before these scans changed: tiny_1" in output
    assert times(fitted) == after
    assert main(["fit", *QUICK, "--again"]) == 0
    output = capsys.readouterr().out
    assert "fitted " in output
    assert "fitted before" not in output


def test_fit_again_leaves_what_a_running_training_reads(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier regressor until every scan is measured with the new one, and its measurements beyond that."""
    earlier, regressor = stored(fitted)
    folder = earlier.folder.parent
    description = (folder / "fit.json").read_bytes()
    arguments = ["fit", *QUICK, "--seed", "1", "--again"]
    measure, steps = fitting._measure, []

    def interrupted(job: Any) -> str:
        if job[0].identifier == "tiny_1":
            raise KeyboardInterrupt
        return measure(job)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_measure", interrupted)
        assert main(arguments) == 130
    assert (stored(fitted)[1], (folder / "fit.json").read_bytes()) == (regressor, description)
    with monkeypatch.context() as patch:  # neither fitted nor measured twice
        patch.setattr(fitting, "fit_anatomical", pytest.fail)
        patch.setattr(fitting, "_measure", lambda job: steps.append(job[0].identifier) or measure(job))
        assert main(arguments) == 0
    assert steps == ["tiny_1", "tiny_2"]
    assert stored(fitted)[1] != regressor
    assert not (folder / "training").exists()
    for name in ("tiny_0", "tiny_1", "tiny_2"):
        assert earlier.read(name).problem == stored(fitted)[0].read(name).problem == ""
    # long after, no training reads them
    assert main(["fit", *QUICK, "--seed", "1"]) == 0
    assert earlier.folder.is_dir()
    os.utime(earlier.folder, times=(time.time() - 31 * 86400,) * 2)
    assert main(["fit", *QUICK, "--seed", "1"]) == 0
    assert not earlier.folder.exists()


def test_a_copied_dataset_is_not_measured_again(fitted: Path) -> None:
    before = times(fitted)
    for file in (fitted / "imagesTr").iterdir():
        shutil.copy(file, file.with_name("copy"))  # another time, the same content
        file.with_name("copy").replace(file)
    assert main(["fit", *QUICK]) == 0
    assert times(fitted) == before


def test_another_reader_reads_other_headers(fitted: Path) -> None:
    """SimpleITK and nibabel prefer other transforms of a NIfTI file."""
    before = times(fitted)
    file = fitted / "dataset.json"
    content = {**json.loads(file.read_text()), "overwrite_image_reader_writer": "NibabelIO"}
    file.write_text(json.dumps(content))
    assert main(["fit", *QUICK]) == 0
    after = times(fitted)
    assert all(after[name] != before[name] for name in before)


def test_measurements_of_earlier_versions_are_read_and_measured_again(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measurements, _ = stored(fitted)
    measured = measurements.read("tiny_0")
    assert measured.stamp
    measured.stamp, measured.scan = "", None
    measurements.write("tiny_0", measured)
    file = measurements.folder.parent / "fit.json"
    content = json.loads(file.read_text())
    del content["scans"]
    file.write_text(json.dumps(content))
    before = times(fitted)
    assert measurements.read("tiny_0").stamp == ""
    assert main(["fit", *QUICK]) == 0
    assert "scan changed" not in capsys.readouterr().out
    assert [name for name, at in times(fitted).items() if at != before[name]] == ["tiny_0"]
    assert measurements.read("tiny_0").stamp


def test_case_was_preprocessed_from_the_scan_that_was_measured(fitted: Path) -> None:
    measurements, _ = stored(fitted)
    file = fitted / "imagesTr" / "tiny_1_0000.nii.gz"
    (case,) = [case for case in training_cases(fitted) if case.identifier == "tiny_1"]
    transpose = (2, 0, 1)

    def check() -> None:
        stored_scan = case.read()
        shape = tuple(stored_scan.frame.shape[axis] for axis in transpose)
        properties = {**stored_scan.properties, "shape_before_cropping": shape}
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
    assert main(["fit", *QUICK]) == 2
    message = capsys.readouterr().err
    assert "got 0 of 3; tiny_0: 36 nodes of body were found, at least 64 are needed" in message
    assert "--spacing 5.9" in message
    assert not (bodies.parents[1] / "preprocessed" / DATASET / "locctx_anatomical" / REGRESSOR).exists()
    assert main(["fit", *QUICK, "--spacing", "5.9"]) == 0


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
def test_few_measured_scans_are_warned_about_and_none_is_no_success(
    bodies: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small(bodies / "imagesTr" / "tiny_2_0000.nii.gz", 2)
    assert main(["fit", *QUICK]) == 0
    output = capsys.readouterr().out
    assert "warning: only 2 of 3 scans could be measured" in output
    assert "warning: tiny_2: 36 nodes of body" in output
    picture = bodies.parents[1] / "preprocessed" / DATASET / "locctx_anatomical" / "report.png"
    assert picture.is_file()
    # coordinates that run against the patient's axes, in every scan
    monkeypatch.setattr("nnunet_locctx.regression.anatomical.regressor.PLAUSIBLE_SLOPES", (1e9, 1e10))
    assert main(["fit", *QUICK, "--again", "--seed", "1"]) == 1
    output = capsys.readouterr().out
    assert "0 of 3 scans measured" in output
    assert "no scan could be measured" in output
    assert "next:" not in output
    assert "picture" not in output
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
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = fitted.parents[1] / "preprocessed" / DATASET / "locctx_fit.lock"
    statuses: list[int] = []
    second = threading.Thread(target=lambda: statuses.append(main(["fit", *QUICK])))
    with lock(held):
        second.start()
        output = wait_until(lambda: capsys.readouterr().out)
        assert f"Dataset005_Tiny (locctx fit) is in use by process {os.getpid()} on" in output
        assert not statuses
    second.join(30)
    assert statuses == [0]
    assert "unchanged:" in capsys.readouterr().out


def wait_until(answer: Callable[[], str], seconds: float = 20.0) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        given = answer()
        if given:
            return given
        time.sleep(0.05)
    pytest.fail("waited in vain")


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
    assert main(["fit", *QUICK]) == 0
    assert sorted(times(bodies)) == ["case_0", "case_1", "case_2"]
    (elsewhere / "tiny_1_0000.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"missing: .*tiny_1_0000"):
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
