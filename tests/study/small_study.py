"""A study whose jobs are over in a moment, in an environment where nnU-Net's commands are small programs.

The environment is a virtual one, as Python knows them: our steps are run by its ``python``, and commands are looked for
beside it. Of our own modules only the training and of our own commands only the evaluation and so on are stood in for.
"""

import json
import sys
from pathlib import Path

import yaml

from tests.nnunet.small_plans import configuration

# Notes the call, obeys a file of orders, writes the results.
PROGRAM = r"""#!{python} -IS
import json, os, sys, time
from pathlib import Path

name, words = Path(sys.argv[0]).name, sys.argv[1:]
base = Path(sys.argv[0]).parent.parent.parent
value = lambda key: words[words.index(key) + 1]
call = " ".join([name, *words])
if name == "train":
    runs = json.loads(Path("study.json").read_text())["runs"]
    run = next(run for run in runs if run["run"] == words[0])
    call = " ".join(["train", run["trainer"], run["configuration"], words[1]])
with open(base / "calls.txt", "a") as file:
    file.write(call + "\n")
with open(base / "variables.txt", "a") as file:
    keep = ("nnUNet_raw", "nnUNet_results", "nnUNet_n_proc_DA", "CUDA_VISIBLE_DEVICES")
    file.write(json.dumps([call, {{key: os.environ.get(key) for key in keep}}]) + "\n")
orders = json.loads((base / "orders.json").read_text()) if (base / "orders.json").exists() else {{}}
for part, order in orders.items():
    if part in call:
        if order == "fail":
            print("the reason: no luck")
            sys.exit(3)
        until = time.monotonic() + order
        while time.monotonic() < until and not (base / "go").exists():
            time.sleep(0.1)

def write(file, text="{{}}"):
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)

if name == "nnUNetv2_preprocess":
    data = Path(os.environ["nnUNet_preprocessed"]) / "{dataset}"
    plans = json.loads((data / (value("-plans_name") + ".json")).read_text())["configurations"]
    one = value("-c")
    while "data_identifier" not in plans[one]:
        one = plans[one]["inherits_from"]
    for case in {cases}:
        for ending in (".pkl", ".b2nd"):
            write(data / plans[one]["data_identifier"] / (case + ending))
elif name == "train":
    fold = "fold_" + words[1]
    write(Path(run["model"]) / fold / "checkpoint_final.pth")
    write(Path(run["model"]) / fold / "validation" / "summary.json")
    epochs = [{{"epoch": 0, "train_loss": 0.1, "val_loss": 0.1, "pseudo_dice": [0.5], "seconds": 1.0}}]
    record = {{"seconds": 1.0, "iterations": 250, "seed": run["seed"], "device": "cpu", "epochs": epochs}}
    write(Path("runs", words[0], fold, "training.json"), json.dumps(record))
elif name == "nnUNetv2_predict":
    write(Path(value("-o")) / "plans.json")
elif words[0] == "report":
    write(Path(words[1]) / "report" / "index.html", "page")
elif words[0] == "evaluate":
    write(Path(value("-o")) / "evaluation.json")
elif words[0] == "robustness":
    write(Path(value("-o")) / "robustness.json")
"""

# The environment's Python: the usual one, but for trainings.
PYTHON = r"""#!/bin/bash
if [ "$1 $2" = "-m nnunet_locctx.study.train" ]; then
    exec "$(dirname "$0")/train" "${{@:3}}"
fi
exec -a "$0" {python} "$@"
"""

COMMANDS = ("locctx", "nnUNetv2_preprocess", "nnUNetv2_predict", "train")

DATASET = "Dataset012_Small"
CASES = [f"case_{number}" for number in range(4)]
SPLITS = [
    {"train": CASES[2:], "val": CASES[:2]},
    {"train": CASES[:2], "val": CASES[2:]},
]


def write_dataset(folder: Path, splits=SPLITS) -> None:
    """A raw dataset of empty files, with base plans and splits."""
    raw, preprocessed = folder / "raw" / DATASET, folder / "preprocessed" / DATASET
    for part, cases in (("Tr", CASES), ("Ts", ["case_8"])):
        for case in cases:
            for file in (
                raw / f"images{part}" / f"{case}_0000.nii.gz",
                raw / f"labels{part}" / f"{case}.nii.gz",
            ):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    described = {
        "labels": {"background": 0, "organ": 1},
        "channel_names": {"0": "CT"},
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(described))
    preprocessed.mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir(exist_ok=True)
    plans = {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration()},
    }
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    if splits is not None:
        (preprocessed / "splits_final.json").write_text(json.dumps(splits))


def settings(**changes):
    """The study: two methods, two presets of different voxel sizes, one fold."""
    content = {
        "name": "small",
        "dataset": 12,
        "folders": {"raw": "raw", "preprocessed": "preprocessed", "results": "results"},
        "work": "work",
        "baseline": "Plain",
        "methods": {"Plain": {"trainer": "nnUNetTrainer"}, "CoordConv": {"trainer": "CoordConvTrainer"}},
        "presets": ["near.json", "far.json"],
        "folds": [0],
        "epochs": 5,
        "test": False,
        "device": "cpu",
        "processes": 1,
    }
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


def write_study(folder: Path, **changes) -> Path:
    """The study's file; a value of None leaves the key out."""
    for name, preset in {
        "near": {"patch_size": [16, 16, 16], "batch_size": 4},
        "far": {"patch_size": [32, 32, 32], "batch_size": 2, "spacing": [3.0, 3.0, 3.0]},
    }.items():
        file = folder / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps({"description": name, **preset}))
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(settings(**changes), sort_keys=False))
    return file


def write_environment(folder: Path) -> Path:
    """A virtual environment with this one's packages; returns its Python, which is to be ``sys.executable``."""
    programs, own = folder / "environment" / "bin", Path(sys.prefix)
    programs.mkdir(parents=True)
    (folder / "environment" / "lib").symlink_to(own / "lib")
    if (own / "pyvenv.cfg").is_file():
        (folder / "environment" / "pyvenv.cfg").write_text((own / "pyvenv.cfg").read_text())
    for name in COMMANDS:
        (programs / name).write_text(PROGRAM.format(python=sys.executable, dataset=DATASET, cases=CASES))
    (programs / "python").write_text(PYTHON.format(python=sys.executable))
    for program in programs.iterdir():
        program.chmod(0o755)
    return programs / "python"


def order(folder: Path, **orders) -> None:
    """What the programs do when their call holds a text: ``"fail"``, or wait so many seconds, or until the file ``go``
    is there."""
    (folder / "orders.json").write_text(json.dumps(orders))


def calls(folder: Path) -> list[str]:
    """The calls since the last time this was asked."""
    file = folder / "calls.txt"
    made = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return made
