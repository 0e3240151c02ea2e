"""nnU-Net's own commands with located trainers, and those of `locctx` around them, each with what it must leave behind.

Every command is a process of its own, as a user would start it; only nnU-Net's variables are set. The dataset is a
phantom of five training scans of about 24 voxels per side, the networks have three stages of 4 to 8 features. The
trainer is the package's with 2 iterations an epoch instead of 250 (short_trainers.py). Other trainers, networks, kinds
of data and options go through the same commands in the test's process (test_matrix.py, test_commands.py, ...).
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.workspace import REPOSITORY

TRAINER = "ShortPriorHead"
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
PHANTOM = "Dataset001_Phantom"


class Folders:
    """nnU-Net's folders and the predictions of one test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw, self.preprocessed, self.results = root / "raw", root / "preprocessed", root / "results"
        self.installed, self.predictions = root / "installed", root / "predictions"
        for folder in (self.raw, self.preprocessed, self.results, self.installed, self.predictions):
            folder.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Variables of every command."""
        trainers = (REPOSITORY / "trainers", REPOSITORY / "tests" / "integration" / "ext")
        scripts = Path(sys.executable).parent
        return {
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": os.pathsep.join(map(str, trainers)),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_npp": "1",
            "nnUNet_nps": "1",
            "nnUNet_compile": "f",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # on the CPU nnU-Net takes all cores, and threads that spin for each other stall on a shared machine
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": "0",
        }

    def model(self, configuration: str) -> Path:
        """The model folder of a training."""
        return self.results / PHANTOM / f"{TRAINER}__nnUNetPlans__{configuration}"

    def plans(self, name: str = "nnUNetPlans") -> Path:
        """A plans file."""
        return self.preprocessed / PHANTOM / f"{name}.json"

    def checkpoint(self, folder: Path) -> dict[str, Any]:
        """The final checkpoint in a fold's folder."""
        import torch

        loaded: dict[str, Any] = torch.load(
            folder / "checkpoint_final.pth", map_location="cpu", weights_only=False
        )
        return loaded


Check = Callable[[Folders, str], str]
"""Given the folders and what the command printed, says what was found as it should be, or raises AssertionError."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Unique; what it shows.
        command: As typed into a shell; `{root}` stands for the folder of the test.
        check: See :data:`Check`.
        variables: Further environment variables.
    """

    name: str
    command: str
    check: Check
    variables: dict[str, str] = field(default_factory=dict)


def steps() -> Iterator[Step]:
    """All commands, in an order in which each finds what it needs."""
    yield from preparation()
    yield from matrix()
    yield from around_a_training()
    yield from locctx_around_a_training()


def preparation() -> Iterator[Step]:
    """Fingerprint, plans and preprocessing; the plans are then cut down to a tiny network."""
    yield Step("fingerprint", "nnUNetv2_extract_fingerprint -d 1 -np 1", exists("dataset_fingerprint.json"))
    yield Step("plans", "nnUNetv2_plan_experiment -d 1", shrunk)
    command = "nnUNetv2_preprocess -d 1 -c 2d 3d_fullres 3d_lowres -np 1 1 1"
    yield Step("preprocessing", command, exists("nnUNetPlans_3d_lowres"))


def matrix() -> Iterator[Step]:
    """The four configurations: training with its validation, then prediction of unseen scans."""
    for configuration in CONFIGURATIONS:
        # the cascade wants the low resolution's segmentation of every case; fold "all" validates on all
        fold = "all" if configuration == "3d_lowres" else 0
        npz = " --npz" if configuration in ("2d", "3d_fullres") else ""
        command = f"nnUNetv2_train 1 {configuration} {fold} -tr {TRAINER} -device cpu{npz}"
        yield Step(f"{configuration}, training", command, trained(configuration, fold))
        previous = (
            " -prev_stage_predictions {root}/predictions/3d_lowres" if "cascade" in configuration else ""
        )
        yield predict(
            f"{configuration}, prediction", configuration, configuration, f"-npp 0 -nps 0{previous}", fold
        )


def around_a_training() -> Iterator[Step]:
    """What else nnU-Net offers, on 3d_fullres."""
    train = f"nnUNetv2_train 1 3d_fullres all -tr {TRAINER} -device cpu"
    yield Step("fold all", train, trained("3d_fullres", "all"))
    yield Step("--c", f"{train} --c", continued, {"SHORT_EPOCHS": "3"})
    yield predict("prediction in workers", "3d_fullres", "workers", same=True)
    folder = f"{{root}}/results/{PHANTOM}/{TRAINER}__nnUNetPlans__3d_fullres"
    command = (
        f"nnUNetv2_predict_from_modelfolder -i {{root}}/raw/{PHANTOM}/imagesTs -o {{root}}/predictions/modelfolder "
        f"-m {folder} -f 0 -device cpu"
    )
    yield Step("prediction from the model folder", command, predicted("modelfolder", same=True))
    best = f"nnUNetv2_find_best_configuration 1 -tr {TRAINER} -c 2d 3d_fullres -f 0 -np 1"
    yield Step("best configuration", best, best_found)
    crossval = f"{folder}/crossval_results_folds_0"
    yield Step(
        "nnUNetv2_determine_postprocessing",
        f"nnUNetv2_determine_postprocessing -i {crossval} -ref {{root}}/preprocessed/{PHANTOM}/gt_segmentations "
        f"-plans_json {crossval}/plans.json -dataset_json {crossval}/dataset.json -np 1",
        lambda folders, _: existing(
            (folders.model("3d_fullres") / "crossval_results_folds_0" / "postprocessing.pkl",)
        ),
    )
    yield Step(
        "postprocessing",
        "nnUNetv2_apply_postprocessing -i {root}/predictions/3d_fullres -o {root}/predictions/postprocessed "
        f"-pp_pkl_file {crossval}/postprocessing.pkl -plans_json {crossval}/plans.json -np 1",
        predicted("postprocessed"),
    )
    yield Step(
        "export",
        f"nnUNetv2_export_model_to_zip -d 1 -o {{root}}/model.zip -c 3d_fullres -tr {TRAINER} -f 0",
        lambda folders, _: existing((folders.root / "model.zip",)),
    )
    installed = {"nnUNet_results": "{root}/installed"}
    yield Step(
        "installation into empty results",
        "nnUNetv2_install_pretrained_model_from_zip {root}/model.zip",
        lambda folders, _: existing(
            (folders.installed / PHANTOM / folders.model("3d_fullres").name / "plans.json",)
        ),
        installed,
    )
    yield predict(
        "prediction of the installed model", "3d_fullres", "installed", same=True, variables=installed
    )


def locctx_around_a_training() -> Iterator[Step]:
    """The package's own commands before and after a training."""
    base, truth = "{root}/predictions/3d_fullres", f"{{root}}/raw/{PHANTOM}/labelsTs"
    yield Step(
        "locctx plan, two presets",
        "locctx plan -d 1 --preset patch16 patch32_robust",
        lambda folders, _: planned(folders, ("3d_fullres_patch16", "3d_fullres_patch32_robust")),
    )
    yield Step(
        "locctx evaluate",
        f"locctx evaluate {base} {truth} -o {{root}}/evaluation --paper --quiet -np 1",
        lambda folders, _: existing((folders.root / "evaluation" / "evaluation.json",)),
    )
    yield Step(
        "locctx postprocess",
        f"locctx postprocess largest-component {base} -o {{root}}/predictions/largest --quiet -np 1",
        predicted("largest"),
    )
    yield Step("locctx study, the jobs alone", "locctx study {root}/study.yaml --dry-run", dry_run)


def planned(folders: Folders, configurations: tuple[str, ...]) -> str:
    """The plans of our own hold these configurations."""
    plans = json.loads(folders.plans("nnUNetPlans_locctx").read_text())
    missing = sorted(set(configurations) - set(plans["configurations"]))
    assert not missing, f"not planned: {', '.join(missing)}"
    return f"planned: {', '.join(configurations)}"


def dry_run(folders: Folders, printed: str) -> str:
    """Minutes of the trainings are printed."""
    assert "minutes of the trainings:" in printed
    return "printed: minutes of the trainings"


def predict(
    name: str,
    configuration: str,
    target: str,
    options: str = "",
    fold: object = 0,
    *,
    same: bool = False,
    variables: dict[str, str] | None = None,
) -> Step:
    """A call of nnUNetv2_predict on the test scans."""
    command = (
        f"nnUNetv2_predict -d {PHANTOM} -c {configuration} -tr {TRAINER} -f {fold} -i {{root}}/raw/{PHANTOM}/imagesTs "
        f"-o {{root}}/predictions/{target} -device cpu {options}"
    )
    return Step(name, command.strip(), predicted(target, same), variables or {})


def existing(files: tuple[Path, ...]) -> str:
    """The files exist."""
    missing = [str(file) for file in files if not file.exists()]
    assert not missing, f"not written: {', '.join(missing)}"
    return "written: " + ", ".join(f"`{file.name}`" for file in files)


def exists(name: str) -> Check:
    """A file or folder of the preprocessed data exists."""
    return lambda folders, _: existing((folders.preprocessed / PHANTOM / name,))


def shrunk(folders: Folders, printed: str) -> str:
    """Plans exist; then makes them tiny."""
    from tests.integration.workspace import shrink

    plans = json.loads(folders.plans().read_text())
    shrink(plans)
    folders.plans().write_text(json.dumps(plans, indent=4))
    return "written: `nnUNetPlans.json` (then cut down to tiny networks, low resolution and cascade added)"


def trained(configuration: str, fold: object) -> Check:
    """A final checkpoint with the trainer's full name and finite weights, and the validation's segmentations."""

    def check(folders: Folders, printed: str) -> str:
        import torch

        folder = folders.model(configuration) / f"fold_{fold}"
        checkpoint = folders.checkpoint(folder)
        assert checkpoint["trainer_name"] == TRAINER, checkpoint["trainer_name"]
        weights = checkpoint["network_weights"]
        assert all(bool(torch.isfinite(weight).all()) for weight in weights.values()), (
            "weights are not finite"
        )
        own = sum(name.startswith("location_blocks.") for name in weights)
        assert own > 0
        count = len(list((folder / "validation").glob("*.nii.gz")))
        assert count == (5 if fold == "all" else 1), f"{count} validation cases"
        return f"checkpoint of `{TRAINER}`, {own} tensors of location blocks, weights finite; {count} case(s) validated"

    return check


def continued(folders: Folders, printed: str) -> str:
    """The training went on with the second epoch."""
    epochs = re.findall(r"Epoch (\d+) *\n", printed)
    assert epochs == ["1", "2"], epochs
    epoch = folders.checkpoint(folders.model("3d_fullres") / "fold_all")["current_epoch"]
    assert epoch == 3, epoch
    return "after epoch 0 of the first run: epochs 1 and 2; the checkpoint says 3"


def predicted(target: str, same: bool = False) -> Check:
    """One segmentation per scan, of its size; bit by bit that of the first prediction if asked."""

    def check(folders: Folders, printed: str) -> str:
        import numpy as np

        from tests.integration.workspace import images

        made, truth = images(folders.predictions / target), images(folders.raw / PHANTOM / "labelsTs")
        assert made.keys() == truth.keys(), sorted(made)
        for name, segmentation in made.items():
            assert segmentation.shape == truth[name].shape, (
                f"{name}: {segmentation.shape}, scan {truth[name].shape}"
            )
        text = f"{len(made)} segmentation(s) of the scans' sizes"
        if "location of " in printed:
            records = json.loads((folders.predictions / target / "location.json").read_text())
            assert {f"{name}.nii.gz" for name in records} >= made.keys(), sorted(records)
        if same:
            other = images(folders.predictions / "3d_fullres")
            assert all(np.array_equal(made[name], other[name]) for name in other)
            text += ", every voxel as in the first prediction"
        return text

    return check


def best_found(folders: Folders, printed: str) -> str:
    """Two models and their ensemble were compared."""
    information = json.loads((folders.results / PHANTOM / "inference_information.json").read_text())
    assert len(information["all_results"]) == 3, information["all_results"]
    return "two configurations and their ensemble compared"


def run(step: Step, folders: Folders) -> str:
    """Runs one command and its check.

    Returns:
        What the check found.

    Raises:
        AssertionError: The command or its check failed; carries the end of what was printed.
    """

    def filled(text: str) -> str:
        return text.replace("{root}", str(folders.root))

    variables = {key: filled(value) for key, value in step.variables.items()}
    done = subprocess.run(
        shlex.split(filled(step.command)),
        env={**folders.environment(), **variables},
        cwd=folders.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = f"{step.name}: {step.command}\n{done.stdout[-3000:]}"
    assert done.returncode == 0, f"exit status {done.returncode}; {shown}"
    try:
        return step.check(folders, done.stdout)
    except (AssertionError, OSError, KeyError) as error:
        raise AssertionError(f"{type(error).__name__}: {error}; {shown}") from error


STUDY = """name: commands
dataset: 1
baseline: Plain
methods:
  Plain: {trainer: nnUNetTrainer}
  PriorHead: {trainer: PriorHeadTrainer}
presets: [patch16]
folds: [0]
epochs: 1
device: cpu
"""


def prepare(folders: Folders) -> None:
    """Draws the phantom and writes a study file."""
    from nnunet_locctx.phantoms.twin_organs import make_phantom

    (folders.root / "study.yaml").write_text(STUDY)
    make_phantom(folders.raw, 1, cases=5, test_cases=2, size=24, seed=3)
