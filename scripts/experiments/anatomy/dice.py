"""Dice of one trainer with each location source on the whole-body phantom, by nnU-Net's and this package's commands.

Used by `run.py`.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_locctx.datasets.whole_body import make_whole_body, whole_body_case
from nnunet_locctx.datasets.whole_body_settings import FRACTION
from nnunet_locctx.demo.steps import Steps, write_text
from nnunet_locctx.evaluation.dice import mean_dice
from nnunet_locctx.nnunet.commands import NNUNet
from nnunet_locctx.nnunet.fitted import COMMANDS
from scripts.benchmarks.harness import PLAIN, Record
from scripts.experiments.anatomy.location import SMALL

PLANS = "nnUNetPlans_locctx"
SMALL_CONFIGURATION = "small"
SOURCES = ("voxel", "scanner", "body_part", "anatomical")


@dataclass(frozen=True)
class DiceSettings:
    """What is trained on and with; the same for all.

    Attributes:
        dataset_id: nnU-Net's number of the phantom.
        cases: Training scans, one of which is nnU-Net's validation case.
        test_cases: Held-out scans.
        fraction: Share of the body's height in a field of view, smallest and largest.
        seed: Of the phantom and of the fits. nnU-Net itself draws its batches and weights without a seed.
        organs: The labelled classes; the phantom's other organs count as look-alikes.
        spacing: Voxel size in mm that scans are resampled to; coarse, so that patches hold enough of the organs.
        patch: Voxels of a patch along each axis.
        batch: Patches per batch.
        features: Channels of the U-Net's stages.
        epochs: Of 250 iterations; nnU-Net's own trainer exists with 1, 5, 10, 20, 50.
        located: The located trainer.
        steps: Training steps of the fits; None: their defaults.
        threads: Threads of a training.
    """

    dataset_id: int = 904
    cases: int = 20
    test_cases: int = 10
    fraction: tuple[float, float] = FRACTION
    seed: int = 0
    organs: tuple[str, ...] = ("hip_right", "hip_left", "chest_right", "chest_left")
    spacing: float = 6.0
    patch: int = 16
    batch: int = 8
    features: tuple[int, ...] = (16, 32, 64)
    epochs: int = 10
    located: str = "LocCtxTrainer"
    steps: tuple[tuple[str, int], ...] = ()
    threads: int = 1

    @property
    def runs(self) -> dict[str, tuple[str, str]]:
        """Run -> configuration and trainer."""
        suffix = f"_{self.epochs}epoch{'s' if self.epochs > 1 else ''}"
        located = {source: (source, f"{self.located}{suffix}") for source in SOURCES}
        return {"plain": ("voxel", f"{PLAIN}{suffix}"), **located}


class DiceRun:
    """The steps of the comparison; finished ones are not repeated.

    Args:
        folder: Takes nnU-Net's folders, logs and predictions.
        settings: What to run.
        sources: Which runs, ``plain`` and names of location sources.
    """

    def __init__(self, folder: Path, settings: DiceSettings, sources: tuple[str, ...]) -> None:
        unknown = sorted(set(sources) - set(settings.runs))
        if unknown:
            raise ValueError(f"unknown runs {', '.join(unknown)}; there are {', '.join(settings.runs)}")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = settings
        self.sources = sources
        self.nnunet = NNUNet(folder, settings.threads)
        self.steps = Steps(folder / "steps.json", asdict(settings))
        self.name = f"Dataset{settings.dataset_id:03d}_WholeBody"
        self.raw, self.preprocessed = self.nnunet.raw / self.name, self.nnunet.preprocessed / self.name
        self.number = str(settings.dataset_id)

    def run(self) -> None:
        """Runs what is missing."""
        self.steps.run("phantom", "phantom", self.phantom)
        self.steps.run("plan", "nnU-Net plans", self.plan)
        self.steps.run("preprocess", "a small configuration, preprocessed", self.preprocess)
        for source in COMMANDS:
            if source in self.sources:
                self.steps.run(f"fit_{source}", f"locctx fit: {source}", lambda s=source: self.fit(s))  # type: ignore[misc]
        for source in SOURCES:
            if source in self.sources or (source == "voxel" and "plain" in self.sources):
                self.steps.run(
                    f"configure_{source}",
                    f"locctx plan: {source}",
                    lambda s=source: self.configure(s),  # type: ignore[misc]
                )
        for run in self.sources:
            for step in (self.train, self.predict, self.evaluate):
                name = step.__name__
                self.steps.run(f"{name}_{run}", f"{name}: {run}", lambda s=step, r=run: s(r))  # type: ignore[misc]

    def phantom(self) -> None:
        make_whole_body(
            self.nnunet.raw,
            self.settings.dataset_id,
            cases=self.settings.cases,
            test_cases=self.settings.test_cases,
            fraction=self.settings.fraction,
            seed=self.settings.seed,
            overwrite=True,
            progress=True,
        )
        keep_organs(self.raw, self.settings.organs)

    def plan(self) -> None:
        shutil.rmtree(self.preprocessed, ignore_errors=True)
        self._run("plan", "nnUNetv2_plan_and_preprocess", "-d", self.number, "--no_pp", "-npfp", "1")
        # nnU-Net ends a training by predicting the validation cases, mirrored eight times; one small one is enough here
        shares = self.shares(0, self.settings.cases)
        held = min(shares, key=lambda name: shares[name])
        split = {"train": [name for name in shares if name != held], "val": [held]}
        write_text(self.preprocessed / "splits_final.json", json.dumps([split]) + "\n")

    def fit(self, source: str) -> None:
        words = [
            "locctx",
            "fit",
            COMMANDS[source],
            "-d",
            self.number,
            "--seed",
            str(self.settings.seed),
            "-np",
            "1",
        ]
        if source in dict(self.settings.steps):
            words += ["--steps", str(dict(self.settings.steps)[source])]
        self._run(f"fit_{source}", *words, quiet=False)

    def preprocess(self) -> None:
        stages = len(self.settings.features)
        preset = self.folder / "small.json"
        content = {
            "description": "a small network and patch",
            "spacing": [self.settings.spacing] * 3,
            "patch_size": [self.settings.patch] * 3,
            "batch_size": self.settings.batch,
            "batch_dice": True,  # Dice per patch rewards calling everything background where few classes are in a patch
            "architecture": {
                "features_per_stage": list(self.settings.features),
                "n_conv_per_stage": [1] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
            },
        }
        write_text(preset, json.dumps(content, indent=2) + "\n")
        added = ("--preset", str(preset), "--name", SMALL_CONFIGURATION, "--force")
        self._run("configure", "locctx", "plan", "-d", self.number, *added, quiet=False)
        which = ("-plans_name", PLANS, "-c", SMALL_CONFIGURATION, "-np", "1")
        self._run("preprocess", "nnUNetv2_preprocess", "-d", self.number, *which)

    def configure(self, source: str) -> None:
        words = ("-p", PLANS, "-c", SMALL_CONFIGURATION, "--name", source, "--source", source, "--force")
        self._run(f"configure_{source}", "locctx", "plan", "-d", self.number, *words, quiet=False)

    def train(self, run: str) -> None:
        configuration, trainer = self.settings.runs[run]
        shutil.rmtree(
            self.nnunet.results / self.name / f"{trainer}__{PLANS}__{configuration}", ignore_errors=True
        )
        words = (self.number, configuration, "0", "-p", PLANS, "-tr", trainer, "-device", "cpu")
        self._run(f"train_{run}", "nnUNetv2_train", *words)

    def predict(self, run: str) -> None:
        configuration, trainer = self.settings.runs[run]
        target = self._predictions(run)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        model = ("-d", self.number, "-c", configuration, "-f", "0", "-p", PLANS, "-tr", trainer)
        files = ("-i", str(self.raw / "imagesTs"), "-o", str(target))
        how = ("-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1")
        self._run(f"predict_{run}", "nnUNetv2_predict", *model, *files, *how)

    def evaluate(self, run: str) -> None:
        target = self._predictions(run)
        described = ("-djfile", str(target / "dataset.json"), "-pfile", str(target / "plans.json"))
        folders = (str(self.raw / "labelsTs"), str(target))
        self._run(f"evaluate_{run}", "nnUNetv2_evaluate_folder", *folders, *described, "-np", "1")

    def record(self) -> Record:
        """The Dice of the runs that are done, and how they were made."""
        done = [run for run in self.settings.runs if f"evaluate_{run}" in self.steps.seconds]
        labels = json.loads((self.raw / "dataset.json").read_text())["labels"] if done else {}
        shares = self.shares(self.settings.cases, self.settings.test_cases) if done else {}
        runs = {}
        for run in done:
            summary = self._predictions(run) / "summary.json"
            scores = mean_dice(summary, labels)
            small, large = by_field_of_view(summary, shares)
            runs[run] = {
                "trainer": self.settings.runs[run][1],
                "dice": _known(scores.dice),
                "small": small,
                "large": large,
                "per_class": {name: _known(value) for name, value in scores.per_class.items()},
                "train_seconds": self.steps.seconds[f"train_{run}"],
            }
        return {
            "settings": asdict(self.settings),
            "runs": runs,
            "seconds": self.steps.seconds,
            "commands": [file.read_text().strip() for file in sorted(self.nnunet.logs.glob("*.command"))],
        }

    def shares(self, first: int, count: int) -> dict[str, float]:
        """Case -> share of the body that it shows."""
        seed, fraction = self.settings.seed, self.settings.fraction
        return {
            f"whole_body_{number:03d}": whole_body_case(number, seed=seed, fraction=fraction).fraction
            for number in range(first, first + count)
        }

    def _predictions(self, run: str) -> Path:
        return self.folder / "predictions" / run

    def _run(self, log: str, *command: str, quiet: bool = True) -> None:
        self.nnunet.run(*command, log=log, show=_worth if quiet else None)
        shown = self.nnunet.history[-1].replace(f"{self.folder}/", "")
        (self.nnunet.logs / f"{log}.command").write_text(shown + "\n")


def _known(value: float) -> float | None:
    """Four digits; None for the NaN of a class that no held-out scan has, which JSON does not know."""
    return None if np.isnan(value) else round(value, 4)


def keep_organs(dataset: Path, organs: tuple[str, ...]) -> None:
    """Relabels a raw dataset: these classes are numbered from 1, all others become background."""
    file = dataset / "dataset.json"
    content = json.loads(file.read_text())
    values = np.zeros(256, dtype=np.uint8)
    for number, name in enumerate(organs, start=1):
        values[content["labels"][name]] = number
    for label in sorted((*dataset.glob("labelsTr/*.nii.gz"), *dataset.glob("labelsTs/*.nii.gz"))):
        stored = SimpleITK.ReadImage(str(label))
        kept = SimpleITK.GetImageFromArray(values[SimpleITK.GetArrayFromImage(stored)])
        kept.CopyInformation(stored)
        SimpleITK.WriteImage(kept, str(label), useCompression=True)
    content["labels"] = {"background": 0, **{name: number for number, name in enumerate(organs, start=1)}}
    write_text(file, json.dumps(content, indent=2) + "\n")


def _worth(line: str) -> str | None:
    """The lines of nnU-Net that show progress."""
    parts = ("Epoch ", "train_loss", "Pseudo dice", "redicting ", "Error", "arning", "Validation Dice")
    return line.strip() if any(part in line for part in parts) else None


def by_field_of_view(summary: Path, shares: dict[str, float]) -> tuple[float | None, float | None]:
    """Mean Dice over the organs that are in the reference or the prediction of small and of large fields of view.

    Args:
        summary: What ``nnUNetv2_evaluate_folder`` wrote.
        shares: Case -> share of the body that it shows.
    """
    values: tuple[list[float], list[float]] = ([], [])
    for case in json.loads(summary.read_text())["metric_per_case"]:
        name = Path(case["prediction_file"]).name.split(".")[0]
        for label, metrics in case["metrics"].items():
            dice = metrics["Dice"]
            if int(label) and dice is not None and np.isfinite(dice):
                values[shares[name] > SMALL].append(float(dice))
    small, large = (round(float(np.mean(part)), 4) if part else None for part in values)
    return small, large
