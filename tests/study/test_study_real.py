"""A study from start to finish with nnU-Net itself, on a phantom of a few small scans."""

import json
import subprocess
import sys

import pytest
import yaml

from nnunet_locctx.phantoms.twin_organs import make_phantom
from nnunet_locctx.study.model import read_study
from nnunet_locctx.study.runner import Runner
from nnunet_locctx.study.scheduling import Where

pytestmark = pytest.mark.slow

PRESET = {
    "description": "as small as can be",
    "patch_size": [16, 16, 16],
    "batch_size": 2,
    "spacing": [5.0, 5.0, 5.0],
    "architecture": {
        "features_per_stage": [4, 8, 8],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
    },
}

# Prints the sum of the first weights of the planned network and fingerprints of the first patches.
FIRST_PATCHES = """
import hashlib, json, sys
import numpy as np
import torch
from nnunet_locctx.study.seeding import install
from nnunetv2.run.run_training import get_trainer_from_args

if __name__ == "__main__":
    install(0, 0, 1)
    trainer = get_trainer_from_args("Dataset955_Phantom", sys.argv[2], 0, sys.argv[1], "nnUNetPlans_tiny",
                                    device=torch.device("cpu"))
    trainer.initialize()
    weights = trainer.network.state_dict()["encoder.stages.0.0.convs.0.conv.weight"]
    made = []
    for loader in trainer.get_dataloaders():
        for _ in range(4):
            image = np.ascontiguousarray(next(loader)["data"][:, :1].numpy())
            made.append(hashlib.md5(image.tobytes()).hexdigest())
        loader._finish()
    print("RESULT" + json.dumps([weights.double().sum().item(), made]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished study, of a dataset whose files lie elsewhere."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELSEWHERE", str(folder / "elsewhere"))
        yield finished(folder)


def finished(folder):
    make_phantom(folder / "raw", 955, cases=5, test_cases=0, size=24, spacing=4.0)
    move_files(folder / "raw" / "Dataset955_Phantom", folder / "elsewhere")
    (folder / "tiny.json").write_text(json.dumps(PRESET))
    content = {
        "name": "tiny",
        "dataset": 955,
        "folders": {"raw": "raw", "preprocessed": "preprocessed", "results": "results"},
        "work": "work",
        "baseline": "Plain",
        "methods": {"Plain": "nnUNetTrainer", "CoordConv": "CoordConvTrainer"},
        "presets": ["tiny.json"],
        "folds": [0],
        "epochs": 1,
        "device": "cpu",
        "processes": 1,
        "postprocessing": ["atlas"],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    assert run(folder) == 0
    return folder


def move_files(raw, elsewhere):
    """Moves scans and labels away and lists them in dataset.json, by the key `dataset` that nnU-Net knows."""
    description = json.loads((raw / "dataset.json").read_text())
    cases = {}
    for image in sorted((raw / "imagesTr").iterdir()):
        case = image.name.removesuffix(f"_0000{description['file_ending']}")
        cases[case] = {
            "images": [f"$ELSEWHERE/imagesTr/{image.name}"],
            "label": f"../../elsewhere/labelsTr/{case}{description['file_ending']}",
        }
    for name in ("imagesTr", "labelsTr"):
        elsewhere.mkdir(exist_ok=True)
        (raw / name).rename(elsewhere / name)
    (raw / "dataset.json").write_text(json.dumps({**description, "dataset": cases}))


def run(folder):
    return Runner(read_study(folder / "study.yaml")).run(Where(cores=1))


def test_what_it_leaves(folder):
    work = folder / "work"
    study = json.loads((work / "study.json").read_text())
    assert study["presets"][0]["patch_size"] == [16, 16, 16]
    assert 0 < study["presets"][0]["coverage"] < 1
    assert all(entry["holds"] for entry in study["fairness"]), study["fairness"]
    for run_of in study["runs"]:
        fold = work / "runs" / run_of["run"] / "fold_0"
        record = json.loads((fold / "training.json").read_text())
        assert (record["iterations"], record["seed"], len(record["epochs"])) == (250, 0, 1)
        assert record["parameters"] > 1000
        evaluation = json.loads((fold / "evaluation" / "evaluation.json").read_text())
        assert {row["case"] for row in evaluation["cases"]} == set(study["cases"]["0"]["val"])
    page = (work / "report" / "index.html").read_text()
    assert "CoordConv" in page
    assert "Could not be drawn" not in page
    for run_of in study["runs"]:
        assert (work / "runs" / run_of["run"] / "postprocessing" / "atlas" / "atlas.npz").is_file()


def test_a_validation_that_is_missing_is_made_without_training(folder):
    study = read_study(folder / "study.yaml")
    model = next((folder / "results" / study.dataset).glob("CoordConv*")) / "fold_0"
    trained = (model / "checkpoint_final.pth").stat().st_mtime_ns
    (model / "validation" / "summary.json").unlink()
    assert run(folder) == 0
    assert (model / "validation" / "summary.json").is_file()
    assert (model / "checkpoint_final.pth").stat().st_mtime_ns == trained


def test_every_method_begins_with_the_same_weights_and_patches(folder, monkeypatch):
    script = folder / "first_patches.py"
    script.write_text(FIRST_PATCHES)
    for name, path in {"raw": "raw", "preprocessed": "preprocessed", "results": "elsewhere"}.items():
        monkeypatch.setenv(f"nnUNet_{name}", str(folder / path))
    results = []
    for words in (("nnUNetTrainer_1epoch", "tiny"), ("CoordConvTrainer_1epoch", "tiny_voxel")):
        answer = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=True)
        results.append(json.loads(answer.stdout.split("RESULT")[1].splitlines()[0]))
    assert results[0] == results[1]
