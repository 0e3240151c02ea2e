"""`locctx fit` refuses what it cannot use before anything is written, and reads what it can."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_locctx.cli import main
from nnunet_locctx.nnunet.fitting import Anchors, fit_source
from nnunet_locctx.nnunet.raw_scans import CanonicalScans, keep_scans, training_cases

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
    kept = keep_scans(cases, tmp_path / "kept", 0, 8.0, progress=False)
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
    keep_scans(cases, tmp_path / "kept", 0, 8.0, progress=False)
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    write(raw / "imagesTr" / "tiny_1_0000.nii.gz", np.ones((10, 9, 8), np.float32))
    (tmp_path / "kept" / "tiny_2.npz").write_bytes(b"damaged")
    again = keep_scans(cases, tmp_path / "kept", 0, 8.0, progress=False)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["tiny_1.npz", "tiny_2.npz"]
    np.testing.assert_allclose(again["tiny_1"].image, 1)
    with pytest.raises(KeyError):
        kept["other"]


def test_worker_processes_give_the_same_scans(raw: Path, tmp_path: Path) -> None:
    cases = training_cases(raw)
    alone = keep_scans(cases, tmp_path / "alone", 0, 8.0, progress=False)
    together = keep_scans(cases, tmp_path / "together", 0, 8.0, processes=2, progress=False)
    for identifier in alone:
        np.testing.assert_array_equal(alone[identifier].image, together[identifier].image)


def test_wrong_source() -> None:
    with pytest.raises(ValueError, match="source must be one of body_part, anatomical, got 'voxel'"):
        fit_source(5, "voxel")
    with pytest.raises(ValueError, match="anchors and imported scores are for the source 'body_part'"):
        fit_source(5, "anatomical", anchors=Anchors("organ", "organ"))
