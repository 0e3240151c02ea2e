"""Every command that reads scans or segmentations says in one line which file is not whole, and uses none of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import nnunet_locctx.regression.anatomical  # noqa: F401 - registers itself before it is replaced
from nnunet_locctx.cli import main
from nnunet_locctx.regression.registry import REGRESSORS
from tests.anatomy.warped_scans import KnowingRegressor, Patient, save, save_scan, whole_frame
from tests.broken_files import BROKEN
from tests.datasets import fake_releases

NAME = "Dataset007_Warped"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw dataset of labelled scans, predictions of them, a regressor and a release."""
    folder = tmp_path_factory.mktemp("made")
    raw = folder / "raw" / NAME
    for number in (1, 2, 3):
        frame = whole_frame(number, 12)
        save_scan(number, frame, raw / "imagesTr" / f"case_{number}_0000.nii.gz")
        labels = Patient.number(number).labels(frame).astype(np.uint8)
        for place in (raw / "labelsTr", folder / "predictions"):
            save(labels, frame, place / f"case_{number}.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "kidney": 2, "node": 3},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    (folder / "regressor.pt").write_bytes(KnowingRegressor().to_bytes())
    (folder / "preprocessed").mkdir()
    fake_releases.kits23(folder / "release")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(copy / name))
    monkeypatch.setitem(REGRESSORS, "anatomical", KnowingRegressor)
    monkeypatch.chdir(copy)
    return copy


IMAGE, LABEL, PREDICTION = (
    f"raw/{NAME}/imagesTr/case_2_0000.nii.gz",
    f"raw/{NAME}/labelsTr/case_2.nii.gz",
    "predictions/case_2.nii.gz",
)
FIRST = f"raw/{NAME}/imagesTr/case_1_0000.nii.gz"
ANATOMY = "--regressor regressor.pt"
LABELLED = f"--labelled raw/{NAME}/imagesTr raw/{NAME}/labelsTr"
COMMANDS = {
    "check an image": ("check -d 7 --quiet -np 1", IMAGE),
    "check the first image": ("check -d 7 --quiet -np 1", FIRST),
    "check a label": ("check -d 7 --quiet -np 1", LABEL),
    "show": (f"show {IMAGE} -o out.png", IMAGE),
    "show a label": (f"show {IMAGE} --label {LABEL} -o out.png", LABEL),
    "fit body-part": ("fit body-part -d 7 --quiet -np 1", IMAGE),
    "fit body-part, the first image": ("fit body-part -d 7 --quiet -np 1", FIRST),
    "fit ape": ("fit ape -d 7 --quiet -np 1", IMAGE),
    "evaluate": (f"evaluate predictions raw/{NAME}/labelsTr -o out --quiet -np 1", PREDICTION),
    "evaluate, reference": (f"evaluate predictions raw/{NAME}/labelsTr -o out --quiet -np 1", LABEL),
    "postprocess largest-component": (
        f"postprocess largest-component predictions -o out --dataset-json raw/{NAME}/dataset.json --quiet -np 1",
        PREDICTION,
    ),
    "postprocess fit-atlas": ("postprocess fit-atlas -d 7 --radius-mm 10 -o out.npz --quiet -np 1", LABEL),
    "crop": (f"crop -d 7 {ANATOMY} --labels liver -o out --quiet", IMAGE),
    "crop, label": (f"crop -d 7 {ANATOMY} --labels liver -o out --quiet", LABEL),
    "landmarks": (f"landmarks {ANATOMY} --from {FIRST} --to {IMAGE} --at 5 5 5 --json out", IMAGE),
    "localize": (f"localize {IMAGE} {ANATOMY} {LABELLED} --cases case_1 case_3 -o out --quiet", IMAGE),
    "localize, labelled": (
        f"localize {FIRST} {ANATOMY} {LABELLED} --cases case_2 case_3 -o out --quiet",
        LABEL,
    ),
    "convert": ("convert kits23 release -d 9 --partial -np 1", "release/dataset/case_00001/imaging.nii.gz"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_one_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, broken = COMMANDS[name]
    file = folder / broken
    whole = file.read_bytes()
    # ITK reads both, nibabel none; tests/test_image_files.py has the other kinds
    for kind in ("cut", "plain"):
        make, words = BROKEN[kind]
        file.write_bytes(make(whole))
        status = main(line.split())
        out, err = capsys.readouterr()
        lines = [text for text in (out + err).splitlines() if words in text]
        assert len(lines) == 1
        assert file.name in lines[0]
        assert "Traceback" not in out + err
        assert status == (1 if name.startswith("check") else 2)
        assert not list(folder.glob("out*"))
        assert not [path for path in (folder / "preprocessed").rglob("*.pt") if path.is_file()]
