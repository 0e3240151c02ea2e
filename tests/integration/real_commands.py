"""nnU-Net's own commands with located trainers, and those of `locctx` around them, each with what it must leave behind.

Every command is a process of its own, as a user would start it; only nnU-Net's variables are set. The data
set is a phantom of five training scans of about 24 voxels per side, the networks have three stages of 4 to 8
features. Trainers called Short... are the package's trainers with 2 iterations an epoch instead of 250
(short_trainers.py); those with suffixes are the package's own.
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

SHORT = ("ShortPriorHead", "ShortCoordConv", "ShortLocBAM")
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
PHANTOM, REGIONS = "Dataset001_Phantom", "Dataset002_Phantom"
SUFFIXED = "PriorHeadTrainer_1epochs_noDA_noMirroring"
RESIDUAL = "nnUNetResEncUNetMPlans"


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

    def model(
        self, trainer: str, configuration: str, dataset: str = PHANTOM, plans: str = "nnUNetPlans"
    ) -> Path:
        """The model folder of a training."""
        return self.results / dataset / f"{trainer}__{plans}__{configuration}"

    def plans(self, name: str = "nnUNetPlans", dataset: str = PHANTOM) -> Path:
        """A plans file."""
        return self.preprocessed / dataset / f"{name}.json"

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
        fails: The command is meant to end with an error.
    """

    name: str
    command: str
    check: Check
    variables: dict[str, str] = field(default_factory=dict)
    fails: bool = False


def steps() -> Iterator[Step]:
    """All commands, in an order in which each finds what it needs."""
    yield from preparation(1, PHANTOM)
    yield Step(
        "plans, residual encoder", "nnUNetv2_plan_experiment -d 1 -pl nnUNetPlannerResEncM", shrunk_residual
    )
    for trainer in SHORT:
        yield from matrix(trainer)
        if trainer == SHORT[0]:
            yield from around_a_training(trainer)
            yield from locctx_around_a_training(trainer)
    for trainer in SHORT:
        residual = f"-tr {trainer} -p {RESIDUAL}"
        yield Step(
            f"residual encoder, {trainer}",
            f"nnUNetv2_train 1 3d_fullres 0 {residual} -device cpu",
            trained(trainer, "3d_fullres", 0, plans=RESIDUAL),
        )
    yield from preparation(2, REGIONS)
    for trainer in SHORT:
        yield Step(
            f"two channels, regions, ignore label, {trainer}",
            f"nnUNetv2_train 2 3d_fullres 0 -tr {trainer} -device cpu",
            trained(trainer, "3d_fullres", 0, REGIONS),
        )
    yield predict("two channels, regions, ignore label, prediction", SHORT[0], "3d_fullres", dataset=REGIONS)


def preparation(number: int, dataset: str) -> Iterator[Step]:
    """Fingerprint, plans and preprocessing; the plans are then cut down to a tiny network."""
    yield Step(
        f"fingerprint, dataset {number}",
        f"nnUNetv2_extract_fingerprint -d {number} -np 1",
        exists("dataset_fingerprint.json", dataset),
    )
    yield Step(f"plans, dataset {number}", f"nnUNetv2_plan_experiment -d {number}", shrunk(dataset))
    names = ("2d", "3d_fullres", "3d_lowres") if number == 1 else ("3d_fullres",)
    folders = [f"nnUNetPlans_{name}" for name in names]
    command = f"nnUNetv2_preprocess -d {number} -c {' '.join(names)} -np {' '.join('1' for _ in names)}"
    yield Step(f"preprocessing, dataset {number}", command, exists(folders[-1], dataset))


def matrix(trainer: str) -> Iterator[Step]:
    """One trainer on the four configurations: training with its validation, then prediction of unseen scans."""
    for configuration in CONFIGURATIONS:
        # the cascade wants the low resolution's segmentation of every case; fold "all" validates on all
        fold = "all" if configuration == "3d_lowres" else 0
        npz = " --npz" if trainer == SHORT[0] and configuration in ("2d", "3d_fullres") else ""
        command = f"nnUNetv2_train 1 {configuration} {fold} -tr {trainer} -device cpu{npz}"
        yield Step(f"{trainer}, {configuration}, training", command, trained(trainer, configuration, fold))
        previous = (
            f" -prev_stage_predictions {{root}}/predictions/{trainer}_3d_lowres"
            if "cascade" in configuration
            else ""
        )
        yield predict(
            f"{trainer}, {configuration}, prediction",
            trainer,
            configuration,
            f"-npp 0 -nps 0{previous}",
            fold,
        )


def around_a_training(trainer: str) -> Iterator[Step]:
    """Everything else nnU-Net offers, for one trainer on 3d_fullres."""
    train = f"nnUNetv2_train 1 3d_fullres {{fold}} -tr {trainer} -device cpu"
    base = f"{trainer}_3d_fullres"
    yield Step("--val --npz", f"{train.format(fold=0)} --val --npz", validated(trainer))
    yield Step("second fold, --npz", f"{train.format(fold=1)} --npz", trained(trainer, "3d_fullres", 1))
    yield Step("fold all", train.format(fold="all"), trained(trainer, "3d_fullres", "all", cases=5))
    yield Step("--c", f"{train.format(fold='all')} --c", continued(trainer), {"SHORT_EPOCHS": "3"})
    yield Step(
        "plain nnU-Net, for comparison",
        "nnUNetv2_train 1 3d_fullres 0 -tr ShortPlain -device cpu",
        trained("ShortPlain", "3d_fullres", 0),
    )
    for name, source, fold in (("plain", "ShortPlain", 2), ("located", trainer, 3)):
        file = f"{source}__nnUNetPlans__3d_fullres/fold_0/checkpoint_final.pth"
        weights = f"-pretrained_weights {{root}}/results/{PHANTOM}/{file}"
        # without learning the checkpoint shows the weights that training started from
        yield Step(
            f"-pretrained_weights of a {name} network",
            f"{train.format(fold=fold)} {weights}",
            pretrained(trainer, source, fold),
            {"SHORT_LEARNING_RATE": "0"},
        )
    yield predict("prediction in workers", trainer, "3d_fullres", target="workers", same=base)
    yield predict(
        "--disable_tta", trainer, "3d_fullres", "--disable_tta --save_probabilities", target="no_tta"
    )
    yield predict("ensemble of two folds", trainer, "3d_fullres", "-npp 0 -nps 0", "0 1", target="ensemble")
    for part in (0, 1):
        parts = f"-num_parts 2 -part_id {part}"
        yield predict(
            f"part {part} of 2",
            trainer,
            "3d_fullres",
            parts,
            target="parts",
            same=base if part else None,
            cases=part + 1,
        )
    folder = f"{{root}}/results/{PHANTOM}/{trainer}__nnUNetPlans__3d_fullres"
    command = (
        f"nnUNetv2_predict_from_modelfolder -i {{root}}/raw/{PHANTOM}/imagesTs -o {{root}}/predictions/modelfolder "
        f"-m {folder} -f 0 -device cpu"
    )
    yield Step("prediction from the model folder", command, predicted("modelfolder", same=base))
    best = f"nnUNetv2_find_best_configuration 1 -tr {trainer} -c 2d 3d_fullres -f 0 -np 1"
    yield Step("best configuration", best, best_found)
    crossval = f"{folder}/crossval_results_folds_0"
    yield Step(
        "nnUNetv2_determine_postprocessing",
        f"nnUNetv2_determine_postprocessing -i {crossval} -ref {{root}}/preprocessed/{PHANTOM}/gt_segmentations "
        f"-plans_json {crossval}/plans.json -dataset_json {crossval}/dataset.json -np 1",
        lambda folders, _: found(
            (folders.model(trainer, "3d_fullres") / "crossval_results_folds_0" / "postprocessing.pkl",)
        ),
    )
    yield Step(
        "postprocessing",
        f"nnUNetv2_apply_postprocessing -i {{root}}/predictions/{base} -o {{root}}/predictions/postprocessed "
        f"-pp_pkl_file {crossval}/postprocessing.pkl "
        f"-plans_json {crossval}/plans.json -np 1",
        predicted("postprocessed"),
    )
    yield Step(
        "export",
        f"nnUNetv2_export_model_to_zip -d 1 -o {{root}}/model.zip -c 3d_fullres -tr {trainer} -f 0",
        lambda folders, _: found((folders.root / "model.zip",)),
    )
    installed = {"nnUNet_results": "{root}/installed"}
    yield Step(
        "installation into empty results",
        "nnUNetv2_install_pretrained_model_from_zip {root}/model.zip",
        lambda folders, _: found(
            (folders.installed / PHANTOM / f"{trainer}__nnUNetPlans__3d_fullres" / "plans.json",)
        ),
        installed,
    )
    yield predict(
        "prediction of the installed model",
        trainer,
        "3d_fullres",
        target="installed",
        same=base,
        variables=installed,
    )
    yield Step(
        "suffixes",
        f"nnUNetv2_train 1 3d_fullres 0 -tr {SUFFIXED} -device cpu",
        trained(SUFFIXED, "3d_fullres", 0),
    )
    yield predict("prediction with suffixes", SUFFIXED, "3d_fullres")
    message = "suffix '_fast' is unknown or repeated; allowed: _<N>epochs, _noDA, _noMirroring"
    yield Step(
        "unknown suffix",
        "nnUNetv2_train 1 3d_fullres 0 -tr LocBAMTrainer_fast -device cpu",
        says(message),
        fails=True,
    )


def locctx_around_a_training(trainer: str) -> Iterator[Step]:
    """The package's own commands before and after a training."""
    base = f"{{root}}/predictions/{trainer}_3d_fullres"
    truth = f"{{root}}/raw/{PHANTOM}/labelsTs"
    yield Step(
        "locctx plan, two presets",
        "locctx plan -d 1 --preset patch16 patch32_robust",
        lambda folders, _: planned(folders, ("3d_fullres_patch16", "3d_fullres_patch32_robust")),
    )
    yield Step(
        "locctx evaluate",
        f"locctx evaluate {base} {truth} -o {{root}}/evaluation --paper --quiet -np 1",
        lambda folders, _: found((folders.root / "evaluation" / "evaluation.json",)),
    )
    yield Step(
        "locctx postprocess",
        f"locctx postprocess largest-component {base} -o {{root}}/predictions/largest --quiet -np 1",
        predicted("largest"),
    )
    yield Step(
        "locctx study, the jobs alone",
        "locctx study {root}/study.yaml --dry-run",
        says("expected for the trainings", nothing_written=False),
    )


def planned(folders: Folders, configurations: tuple[str, ...]) -> str:
    """The plans of our own hold these configurations."""
    plans = json.loads(folders.plans("nnUNetPlans_locctx").read_text())
    missing = sorted(set(configurations) - set(plans["configurations"]))
    assert not missing, f"not planned: {', '.join(missing)}"
    return f"planned: {', '.join(configurations)}"


def predict(
    name: str,
    trainer: str,
    configuration: str,
    options: str = "",
    fold: object = 0,
    *,
    target: str | None = None,
    same: str | None = None,
    cases: int = 2,
    dataset: str = PHANTOM,
    variables: dict[str, str] | None = None,
) -> Step:
    """A call of nnUNetv2_predict on the test scans."""
    target = target or f"{trainer}_{configuration}{'' if dataset == PHANTOM else '_regions'}"
    command = (
        f"nnUNetv2_predict -d {dataset} -c {configuration} -tr {trainer} -f {fold} -i {{root}}/raw/{dataset}/imagesTs "
        f"-o {{root}}/predictions/{target} -device cpu {options}"
    )
    return Step(name, command.strip(), predicted(target, same, cases, dataset), variables or {})


def found(files: tuple[Path, ...]) -> str:
    """The files exist."""
    missing = [str(file) for file in files if not file.exists()]
    assert not missing, f"not written: {', '.join(missing)}"
    return "written: " + ", ".join(f"`{file.name}`" for file in files)


def exists(name: str, dataset: str) -> Check:
    """A file or folder of the preprocessed data exists."""
    return lambda folders, _: found((folders.preprocessed / dataset / name,))


def shrunk(dataset: str) -> Check:
    """Plans exist; then makes them tiny."""

    def check(folders: Folders, printed: str) -> str:
        from tests.integration.workspace import shrink

        file = folders.plans(dataset=dataset)
        plans = json.loads(file.read_text())
        shrink(plans)
        file.write_text(json.dumps(plans, indent=4))
        return (
            "written: `nnUNetPlans.json` (then cut down to tiny networks, low resolution and cascade added)"
        )

    return check


def shrunk_residual(folders: Folders, printed: str) -> str:
    """The residual encoder's plans exist; then makes them tiny."""
    from tests.integration.workspace import PATCH, tiny

    file = folders.plans(RESIDUAL)
    plans = json.loads(file.read_text())
    full = plans["configurations"]["3d_fullres"]
    assert full["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    full["architecture"]["arch_kwargs"].update(tiny(3, residual=True))
    full.update(patch_size=[PATCH] * 3, batch_size=2)
    file.write_text(json.dumps(plans, indent=4))
    return f"written: `{RESIDUAL}.json` (then cut down)"


def trained(
    trainer: str,
    configuration: str,
    fold: object,
    dataset: str = PHANTOM,
    cases: int | None = None,
    plans: str = "nnUNetPlans",
) -> Check:
    """A final checkpoint with the trainer's full name and finite weights, and the validation's segmentations."""

    def check(folders: Folders, printed: str) -> str:
        import torch

        folder = folders.model(trainer, configuration, dataset, plans) / f"fold_{fold}"
        checkpoint = folders.checkpoint(folder)
        assert checkpoint["trainer_name"] == trainer, checkpoint["trainer_name"]
        weights = checkpoint["network_weights"]
        assert all(bool(torch.isfinite(weight).all()) for weight in weights.values()), (
            "weights are not finite"
        )
        own = sum(name.startswith("location_blocks.") for name in weights)
        assert (own > 0) == (trainer != "ShortPlain")
        count = len(list((folder / "validation").glob("*.nii.gz")))
        assert count == (cases or (5 if fold == "all" else 1)), f"{count} validation cases"
        return f"checkpoint of `{trainer}`, {own} tensors of location blocks, weights finite; {count} case(s) validated"

    return check


def validated(trainer: str) -> Check:
    """The validation folder was made again, with probabilities."""

    def check(folders: Folders, printed: str) -> str:
        assert "Validation complete" in printed
        assert not re.search(r"Epoch \d+ *\n", printed), "it trained"
        folder = folders.model(trainer, "3d_fullres") / "fold_0" / "validation"
        assert list(folder.glob("*.npz"))
        return "validated without training; probabilities (`.npz`) written"

    return check


def continued(trainer: str) -> Check:
    """The training went on with the second epoch."""

    def check(folders: Folders, printed: str) -> str:
        epochs = re.findall(r"Epoch (\d+) *\n", printed)
        assert epochs == ["1", "2"], epochs
        epoch = folders.checkpoint(folders.model(trainer, "3d_fullres") / "fold_all")["current_epoch"]
        assert epoch == 3, epoch
        return "after epoch 0 of the first run: epochs 1 and 2; the checkpoint says 3"

    return check


def pretrained(trainer: str, source: str, fold: int) -> Check:
    """The weights that training started from are those of the file."""

    def check(folders: Folders, printed: str) -> str:
        import torch

        given = folders.checkpoint(folders.model(source, "3d_fullres") / "fold_0")["network_weights"]
        loaded = folders.checkpoint(folders.model(trainer, "3d_fullres") / f"fold_{fold}")["network_weights"]
        shared = [name for name in loaded if name in given and ".seg_layers." not in name]
        own = [name for name in shared if name.startswith("location_blocks.")]
        assert all(torch.equal(loaded[name], given[name]) for name in shared)
        assert bool(own) == (source == trainer)
        return f"{len(shared)} tensors equal to the file's, {len(own)} of them of location blocks"

    return check


def predicted(target: str, same: str | None = None, cases: int = 2, dataset: str = PHANTOM) -> Check:
    """One segmentation per scan, of its size; bit by bit that of another prediction."""

    def check(folders: Folders, printed: str) -> str:
        import numpy as np

        from tests.integration.workspace import images

        made, truth = images(folders.predictions / target), images(folders.raw / dataset / "labelsTs")
        assert len(made) == cases, f"{len(made)} segmentations, {cases} expected"
        for name, segmentation in made.items():
            assert segmentation.shape == truth[name].shape, (
                f"{name}: {segmentation.shape}, scan {truth[name].shape}"
            )
        text = f"{cases} segmentation(s) of the scans' sizes"
        if "location of " in printed:
            records = json.loads((folders.predictions / target / "location.json").read_text())
            assert {f"{name}.nii.gz" for name in records} >= made.keys(), sorted(records)
        if same:
            other = images(folders.predictions / same)
            assert all(np.array_equal(made[name], other[name]) for name in other)
            text += f", every voxel as in `{same}`"
        return text

    return check


def best_found(folders: Folders, printed: str) -> str:
    """Two models and their ensemble were compared."""
    information = json.loads((folders.results / PHANTOM / "inference_information.json").read_text())
    assert len(information["all_results"]) == 3, information["all_results"]
    return "two configurations and their ensemble compared"


def says(message: str, nothing_written: bool = True) -> Check:
    """The command printed this."""

    def check(folders: Folders, printed: str) -> str:
        assert message in printed
        if not nothing_written:
            return f"printed: {message} ..."
        assert not list(folders.results.rglob("*_fast*")), "something was written"
        return f"nothing written; message: {message}"

    return check


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
    assert (done.returncode != 0) == step.fails, f"exit status {done.returncode}; {shown}"
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
    """Draws the phantoms and writes a study file."""
    (folders.root / "study.yaml").write_text(STUDY)
    from nnunet_locctx.phantoms.twin_organs import make_phantom

    if not (folders.raw / PHANTOM).exists():
        make_phantom(folders.raw, 1, cases=5, test_cases=2, size=24, seed=3)
    if not (folders.raw / REGIONS).exists():
        make_phantom(
            folders.raw, 2, cases=5, test_cases=2, size=20, channels=2, regions=True, ignore=True, seed=4
        )
