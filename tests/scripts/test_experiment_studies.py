"""The experiments' study files: they can be read, and their runs are those that their tables have."""

import json
import re
from pathlib import Path

import pytest

from nnunet_locctx.cli import main

EXPERIMENTS = Path(__file__).resolve().parents[2] / "scripts" / "experiments"


@pytest.mark.parametrize(
    ("file", "trainings"),
    [("anatomy/sources.yaml", 5), ("robustness/robustness.yaml", 8), ("real_data/hippocampus.yaml", 7)],
)
def test_jobs_of_a_study(
    file: str,
    trainings: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = EXPERIMENTS / file
    splits = study.with_name("splits.json")
    (split,) = json.loads(splits.read_text()) if splits.exists() else [{"train": list("abcdefgh"), "val": []}]
    number = re.search(r"^dataset: (\d+)", study.read_text(), re.MULTILINE)
    assert number is not None
    raw = tmp_path / "raw" / f"Dataset{number[1]}_Data"
    (raw / "imagesTr").mkdir(parents=True)
    for case in (*split["train"], *split["val"]):
        (raw / "imagesTr" / f"{case}_0000.nii.gz").touch()
    described = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(described))
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    assert main(["study", str(study), "--dry-run"]) == 0
    assert re.search(rf"^train +{trainings} +{trainings}$", capsys.readouterr().out, re.MULTILINE)
