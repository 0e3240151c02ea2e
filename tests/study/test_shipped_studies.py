"""The studies that come with the package: they can be read and planned, and say what the guides say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nnunet_locctx.nnunet.plans.planning import add_configuration, resolve
from nnunet_locctx.nnunet.plans.plans_file import derive_plans
from nnunet_locctx.nnunet.plans.suitability import check_trainer
from nnunet_locctx.nnunet.training.trainers import find_trainer
from nnunet_locctx.resources import studies_folder
from nnunet_locctx.study.cases import check_study
from nnunet_locctx.study.expected import batch_of, expected_minutes
from nnunet_locctx.study.model import PAPERS, Study, find_study, read_study
from tests.nnunet.paper_plans import ACDC, BRATS, BTCV, HIPPOCAMPUS

STUDIES = sorted(file.stem for file in studies_folder().glob("*.yaml"))
PLANS = {
    "lightmedseg_brats": BRATS,
    "lightmedseg_acdc": ACDC,
    "l2gnet_acdc": ACDC,
    "hippocampus": HIPPOCAMPUS,
    "phantom": HIPPOCAMPUS,
}
GUIDES = Path(__file__).resolve().parents[2] / "docs" / "how-to"
CASES = 10


def read(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study, with its dataset as files without content."""
    return read_with_data(find_study(name), folder, monkeypatch)


def read_with_data(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study's file, likewise."""
    number = re.search(r"^dataset: (\d+)", file.read_text(), re.MULTILINE)
    assert number is not None
    raw = folder / "raw" / f"Dataset{int(number[1]):03d}_Data"
    (raw / "imagesTr").mkdir(parents=True)
    for case in range(CASES):
        (raw / "imagesTr" / f"case{case:02d}_0000.nii.gz").touch()
    content = {"numTraining": CASES, "file_ending": ".nii.gz", "labels": {"background": 0, "a": 1}}
    (raw / "dataset.json").write_text(json.dumps(content))
    for variable in ("raw", "preprocessed", "results"):
        (folder / variable).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{variable}", str(folder / variable))
    study = read_study(file)
    check_study(study)
    return study


def planned(study: Study, name: str) -> dict[str, Any]:
    """The study's plans."""
    made = derive_plans(PLANS.get(name, BTCV), study.plans)
    for one in study.configurations.values():
        made = add_configuration(made, one.base, one.name, **one.changes)
    return made


def test_there_is_one_for_each_table() -> None:
    papers = (
        "locbam_btcv",
        "locbam_amos22",
        "locbam_kits23",
        "gpe_synapse",
        "lightmedseg_brats",
        "lightmedseg_acdc",
        "l2gnet_acdc",
        "l2gnet_synapse",
    )
    assert sorted([*papers, "hippocampus", "phantom"]) == STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_can_be_trained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read(name, tmp_path, monkeypatch)
    made = planned(study, name)
    runs = study.runs.values()
    assert study.baseline in [run.method.name for run in runs]
    for run in runs:
        trainer = find_trainer(run.method.trainer)
        assert (trainer is None) == run.method.trainer.startswith("nnUNetTrainer")
        if trainer is not None:
            check_trainer(trainer, resolve(made, run.configuration))


def test_methods_and_presets_are_those_of_the_papers_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the papers' rows for the dataset finds the study's run that it is compared with."""
    for name in STUDIES:
        study = read(name, tmp_path / name, monkeypatch)
        ours = {(run.method.name, run.preset.name) for run in study.runs.values()}
        for table in study.papers:
            rows = json.loads((PAPERS / f"{table}.json").read_text())["rows"]
            theirs = {
                (row["method"], row["preset"])
                for row in rows
                if row["preset"] in {preset for _, preset in ours}
            }
            assert theirs, (name, table)
            assert theirs <= ours, (name, table, theirs - ours)


def test_lightmedsegs_ablations_leave_out_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read("lightmedseg_brats", tmp_path, monkeypatch)
    changed = {
        "structural prior": {"structure_prior": False},
        "anchors": {"anchors": 0},
        "router": {"router": False},
    }
    expected: dict[str, Any] = {f"LightMedSeg without {part}": options for part, options in changed.items()}
    expected |= {f"LightMedSeg {number} anchors": {"anchors": number} for number in (16, 32)}
    expected["LightMedSeg standard convolutions"] = {"ghost": False}
    networks = {method.name: method for method in study.methods if method.network}
    assert {name: method.network for name, method in networks.items()} == expected
    assert {method.against for method in networks.values()} == {"LightMedSeg"}
    whole = next(method for method in study.methods if method.name == "LightMedSeg")
    assert {method.trainer for method in networks.values()} == {whole.trainer}


def test_the_study_of_the_guide_to_ones_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (GUIDES / "your-own-data.md").read_text()
    (tmp_path / "liver.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    study = read_with_data(tmp_path / "liver.yaml", tmp_path, monkeypatch)
    runs = study.runs.values()
    hours = [expected_minutes(*batch_of(run, None), run.method.epochs) / 60 for run in runs]
    assert f"are {len(runs) * len(study.folds)} trainings" in text
    assert f"8 x 32^3 voxels are {min(hours):.2f} h, of 4 x 64^3 voxels {max(hours):.2f} h" in text
    assert f"{sum(hours) * len(study.folds):.0f} h in all" in text


def test_equal_voxels_are_preprocessed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read("locbam_btcv", tmp_path, monkeypatch)
    made = planned(study, "locbam_btcv")
    identifiers = {resolve(made, run.configuration)["data_identifier"] for run in study.runs.values()}
    assert len(identifiers) == 3


def test_trainings_and_hours_of_the_guides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {}
    for page in (*GUIDES.glob("*.md"), GUIDES.parent / "explanation" / "l2gnet.md"):
        for name, trainings, hours in re.findall(
            r"^\| `(\w+)` \| (\d+) \| (\d+) \|", page.read_text(), re.MULTILINE
        ):
            listed[name] = (int(trainings), int(hours))
    assert set(listed) == set(STUDIES) - {"phantom", "hippocampus"}
    for name, totals in listed.items():
        study = read(name, tmp_path / name, monkeypatch)
        runs = study.runs.values()
        hours = [expected_minutes(*batch_of(run, None), run.method.epochs) / 60 for run in runs]
        assert totals[0] == len(runs) * len(study.folds), name
        assert totals[1] == pytest.approx(sum(hours) * len(study.folds), abs=0.51), name
