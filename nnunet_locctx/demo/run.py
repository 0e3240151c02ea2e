"""The demo's steps: phantom, planning, two trainings, prediction, evaluation, figure.

What to expect: no 24-voxel patch of the phantom shows which of its twins an organ is, nnU-Net mirrors patches
along every axis while training, and the scans are stored in six orientations. So plain nnU-Net cannot name an
organ, and as about half of all structures that look like one are unlabelled, background is its best guess.
Coordinates are mirrored together with their patch and count along the patient's axes, so the located network
can tell left from right with the same augmentation. The phantom is built to isolate this; how much location
helps on a real dataset is another question.
"""

import json
import math
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.files import write_atomically
from nnunet_locctx.locks import one_at_a_time
from nnunet_locctx.nnunet.commands import NNUNet
from nnunet_locctx.phantoms.twin_organs import make_phantom

PLANS = "demo"
CONFIGURATION = "3d_demo"
FOLD = "0"


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the phantom and of the two trainings; all but `located` apply to both trainings.

    Attributes:
        seed: Seed of the phantom. nnU-Net itself draws its batches and weights without a seed.
        dataset_id: nnU-Net's number of the phantom.
        cases: Scans for training, one of which is nnU-Net's validation case.
        test_cases: Held-out scans.
        size: Nominal voxels per axis of a scan.
        spacing: Voxel size in mm.
        patch: Voxels per axis of a training patch.
        batch: Patches per batch.
        features: Channels of the U-Net's stages.
        convolutions: Convolutions per stage.
        epochs: Epochs of 250 training iterations; 1, 5, 10, 20 or 50, for which nnU-Net has trainers.
        located: The located trainer, without its suffix.
        threads: Threads of a training.
    """

    seed: int = 0
    dataset_id: int = 901
    cases: int = 24
    test_cases: int = 6
    size: int = 56
    spacing: float = 4.0
    patch: int = 24
    batch: int = 4
    features: tuple[int, ...] = (16, 32, 64)
    convolutions: int = 1
    epochs: int = 5
    located: str = "LocCtxTrainer"
    threads: int = 2

    def __post_init__(self) -> None:
        if self.epochs not in (1, 5, 10, 20, 50):
            raise ValueError(
                f"epochs must be 1, 5, 10, 20 or 50 (nnU-Net's own trainers of that length), got {self.epochs}"
            )
        if self.cases < 2 or self.test_cases < 1:
            raise ValueError(
                f"the demo needs at least 2 cases and 1 test case, got {self.cases} and {self.test_cases}"
            )

    @property
    def trainers(self) -> dict[str, str]:
        """Run -> trainer."""
        suffix = f"_{self.epochs}epoch{'s' if self.epochs > 1 else ''}"
        return {"plain": f"nnUNetTrainer{suffix}", "located": f"{self.located}{suffix}"}


def run_demo(folder: Path, seed: int = 0, settings: DemoSettings | None = None) -> dict[str, Any]:
    """Train plain and located nnU-Net on the phantom with one budget and compare them on held-out scans.

    Everything is done by nnU-Net's own commands. Both trainings have the same plans (patch, batch, network), epochs,
    augmentation and data. Finished steps are not repeated when the folder is given again.

    Args:
        folder: Takes nnU-Net's three folders, ``results.json``, ``figure.png`` and the logs; made if absent.
        seed: Seed of the phantom, unless `settings` are given.
        settings: Everything else that can be chosen.

    Returns:
        What ``results.json`` holds: for ``plain`` and ``located`` the mean foreground Dice over the held-out scans
        (``dice``) and that of each class (``per_class``), the settings, commands and seconds.

    Raises:
        ValueError: The folder belongs to a demo with other settings.
        CommandError: One of nnU-Net's commands failed.
    """
    settings = settings or DemoSettings(seed=seed)
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # a training that outlived a demo which was killed would write into the folder
    with one_at_a_time(folder / "demo.lock", "the demo's folder", inherited=True) as locks:
        return _run(_Demo(folder, settings, NNUNet(folder, settings.threads, locks=locks)))


def _run(demo: "_Demo") -> dict[str, Any]:
    folder, settings = demo.folder, demo.settings
    steps = Steps(folder / "steps.json", asdict(settings))
    print("nnU-Net's commands below run with:", *demo.nnunet.exports, sep="\n  ", flush=True)
    steps.run("phantom", "phantom: twin organs that only their position tells apart", demo.phantom)
    steps.run("plan", "nnU-Net plans and preprocesses", demo.plan)
    for run, trainer in settings.trainers.items():
        steps.run(f"train_{run}", f"training: {run} ({trainer})", lambda run=run: demo.train(run))  # type: ignore[misc]
        steps.run(f"predict_{run}", f"held-out scans: {run}", lambda run=run: demo.predict(run))  # type: ignore[misc]
        steps.run(f"evaluate_{run}", f"Dice: {run}", lambda run=run: demo.evaluate(run))  # type: ignore[misc]
    steps.run("figure", "figure", demo.figure)

    results = demo.results(steps.seconds)
    write_atomically(folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    print(format_results(results), flush=True)
    print(f"results: {folder / 'results.json'}\nfigure:  {folder / 'figure.png'}", flush=True)
    return results


def make_study_data(raw: Path) -> Path:
    """The phantom of the study `phantom`, made in nnUNet_raw unless it is there."""
    folder = raw / f"Dataset{DemoSettings.dataset_id:03d}_Phantom"
    if not folder.is_dir():
        others = [path.name for path in raw.glob(f"Dataset{DemoSettings.dataset_id:03d}_*")]
        if others:
            raise ValueError(
                f"{raw} has {others[0]}, so the phantom {folder.name} would be a second dataset of its id"
            )
        make_phantom(
            raw, DemoSettings.dataset_id, cases=20, test_cases=4, size=40, spacing=4.0, progress=True
        )
    return folder


class Steps:
    """The finished steps of a job, kept in one JSON file that is replaced as a whole.

    A step counts as done once its function has returned. The function must be able to start over from what an
    interrupted run of itself left behind.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        """Take up the job in `file`, or begin it.

        Args:
            file: JSON file; its folder must exist.
            settings: What the steps depend on, as JSON can hold it.

        Raises:
            ValueError: The file belongs to a job with other settings, or cannot be read.
        """
        self.file = file
        self._state: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "seconds": {}}
        if file.exists():
            try:
                state = json.loads(file.read_text(encoding="utf-8"))
                differing = [
                    f"{key}: was {state['settings'].get(key)!r}, is now {value!r}"
                    for key, value in self._state["settings"].items()
                    if state["settings"].get(key) != value
                ]
                state["seconds"].items()
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"{file} does not hold the state of a job ({error!r}); remove {file.parent}"
                ) from error
            if differing:
                raise ValueError(
                    f"{file.parent} was begun with other settings ({'; '.join(differing)}); "
                    "choose another folder or remove it"
                )
            self._state = state

    @property
    def seconds(self) -> dict[str, float]:
        """Step -> seconds it took, for the finished ones in the order they ended."""
        return dict(self._state["seconds"])

    def run(self, name: str, title: str, work: Callable[[], object]) -> None:
        """Do a step unless it is done.

        Args:
            name: Name of the step, once per job.
            title: Printed before the step.
            work: The step.
        """
        if name in self._state["seconds"]:
            print(f"== {title}: done before ({self._state['seconds'][name]:.0f} s)", flush=True)
            return
        print(f"== {title}", flush=True)
        start = time.monotonic()
        work()
        self._state["seconds"][name] = round(time.monotonic() - start, 1)
        write_atomically(self.file, (json.dumps(self._state, indent=2) + "\n").encode())


class _Demo:
    """The work of each step. Each begins anew whatever an interrupted run of it left."""

    def __init__(self, folder: Path, settings: DemoSettings, nnunet: NNUNet) -> None:
        self.folder = folder
        self.settings = settings
        self.nnunet = nnunet
        self.name = f"Dataset{settings.dataset_id:03d}_Phantom"
        self.preprocessed = nnunet.preprocessed / self.name
        self.raw = nnunet.raw / self.name

    def phantom(self) -> None:
        make_phantom(
            self.nnunet.raw,
            self.settings.dataset_id,
            cases=self.settings.cases,
            test_cases=self.settings.test_cases,
            size=self.settings.size,
            spacing=self.settings.spacing,
            seed=self.settings.seed,
            overwrite=True,
            progress=True,
        )

    def plan(self) -> None:
        from nnunet_locctx.nnunet.plans.planning import plan_configuration

        shutil.rmtree(self.preprocessed, ignore_errors=True)
        self._run(
            "nnUNetv2_plan_and_preprocess", "-d", str(self.settings.dataset_id), "-c", "3d_fullres",
            "-npfp", "1", "-np", "1", log="plan",
        )  # fmt: skip
        stages = len(self.settings.features)
        plan_configuration(
            self.preprocessed,
            "nnUNetPlans",
            "3d_fullres",
            CONFIGURATION,
            own_plans_name=PLANS,
            patch_size=[self.settings.patch] * 3,
            batch_size=self.settings.batch,
            architecture={
                "features_per_stage": list(self.settings.features),
                "n_conv_per_stage": [self.settings.convolutions] * stages,
                "n_conv_per_stage_decoder": [self.settings.convolutions] * (stages - 1),
            },
        )
        # nnU-Net ends a training by predicting the validation cases; one of them is enough here.
        cases = [f"phantom_{number:03d}" for number in range(self.settings.cases)]
        splits = [{"train": cases[:-1], "val": cases[-1:]}]
        write_atomically(self.preprocessed / "splits_final.json", json.dumps(splits, indent=2).encode())

    def train(self, run: str) -> None:
        trainer = self.settings.trainers[run]
        shutil.rmtree(
            self.nnunet.results / self.name / f"{trainer}__{PLANS}__{CONFIGURATION}", ignore_errors=True
        )
        self._run(
            "nnUNetv2_train", str(self.settings.dataset_id), CONFIGURATION, FOLD,
            "-tr", trainer, "-p", PLANS, "-device", "cpu", log=f"train_{run}",
        )  # fmt: skip

    def predict(self, run: str) -> None:
        target = self._predictions(run)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        self._run(
            "nnUNetv2_predict", "-d", str(self.settings.dataset_id), "-c", CONFIGURATION, "-f", FOLD,
            "-tr", self.settings.trainers[run], "-p", PLANS, "-i", str(self.raw / "imagesTs"), "-o", str(target),
            "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1", log=f"predict_{run}",
        )  # fmt: skip

    def evaluate(self, run: str) -> None:
        """Compare the predictions with the truth on the scans' own grid."""
        target = self._predictions(run)
        self._run(
            "nnUNetv2_evaluate_folder", str(self.raw / "labelsTs"), str(target),
            "-djfile", str(target / "dataset.json"), "-pfile", str(target / "plans.json"), "-np", "1",
            log=f"evaluate_{run}",
        )  # fmt: skip

    def figure(self) -> None:
        from nnunet_locctx.demo.figure import draw_figure

        draw_figure(
            self.folder / "figure.png",
            images=self.raw / "imagesTs",
            truth=self.raw / "labelsTs",
            predictions={run: self._predictions(run) for run in self.settings.trainers},
        )

    def results(self, seconds: dict[str, float]) -> dict[str, Any]:
        labels = json.loads((self.raw / "dataset.json").read_text(encoding="utf-8"))["labels"]
        results: dict[str, Any] = {}
        for run, trainer in self.settings.trainers.items():
            per_class = mean_dice(self._predictions(run) / "summary.json", labels)
            known = [value for value in per_class.values() if not math.isnan(value)]
            dice = sum(known) / len(known) if known else math.nan
            results[run] = {"dice": dice, "per_class": per_class, "trainer": trainer}
        results["settings"] = asdict(self.settings)
        results["environment"] = self.nnunet.variables
        results["commands"] = self._commands()
        results["seconds"] = round(sum(seconds.values()), 1)
        results["seconds_per_step"] = seconds
        results["machine"] = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        return results

    def _predictions(self, run: str) -> Path:
        return self.folder / "predictions" / run

    def _run(self, *command: str, log: str) -> None:
        self.nnunet.run(*command, log=log, show=_Progress())
        (self.nnunet.logs / f"{log}.command").write_text(self.nnunet.history[-1] + "\n", encoding="utf-8")

    def _commands(self) -> list[str]:
        """The commands of all steps, those of earlier runs included, in the order they ran."""
        files = sorted(self.nnunet.logs.glob("*.command"), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_text(encoding="utf-8").strip() for path in files]


class _Progress:
    """Picks the lines worth showing from what nnU-Net prints, without their date, after the seconds passed."""

    WORTH = re.compile(
        r"Epoch |train_loss|val_loss|Pseudo dice|[Pp]redicting |Mean Validation Dice|\w*Error|Traceback"
        r"|(Fingerprint extraction|Experiment planning|Preprocessing)\.\.\.$"
    )
    DATE = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+: ")
    NUMBER = re.compile(r"np\.float\d+\(([^)]*)\)")

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, line: str) -> str | None:
        text = self.DATE.sub("", line, count=1).strip()
        if not self.WORTH.match(text):
            return None
        text = self.NUMBER.sub(lambda number: f"{float(number[1]):.2f}", text)
        return f"{time.monotonic() - self.start:6.0f} s  {text}"


def mean_dice(summary: Path, labels: Mapping[str, Any]) -> dict[str, float]:
    """Class name -> mean Dice over the cases (a fraction), NaN where the class is in no reference and no prediction.

    Args:
        summary: The ``summary.json`` of ``nnUNetv2_evaluate_folder``.
        labels: The ``labels`` of the dataset's ``dataset.json``.

    Raises:
        ValueError: The summary lacks a class of `labels`.
    """
    means = json.loads(summary.read_text(encoding="utf-8"))["mean"]
    per_class = {}
    for name, label in Classes.from_labels(labels).labels.items():
        if str(label) not in means:  # nnU-Net's key of a region is the text of a tuple
            raise ValueError(f"{summary} has no class {label} ({name}); it has {', '.join(means)}")
        value = means[str(label)]["Dice"]
        per_class[name] = math.nan if value is None else float(value)
    return per_class


def format_results(results: dict[str, Any]) -> str:
    """The results as a table for the terminal: Dice per class, plain beside located."""
    plain, located = results["plain"], results["located"]
    dice = pd.DataFrame(
        {run: {**results[run]["per_class"], "mean": results[run]["dice"]} for run in ("plain", "located")}
    )
    lines = ["", f"Dice on {results['settings']['test_cases']} held-out scans"]
    lines += dice.to_string(float_format="{:.3f}".format, col_space=8).splitlines()
    lines.append(
        f"trainers: {plain['trainer']}, {located['trainer']}; {results['seconds'] / 60:.1f} minutes in all"
    )
    return "\n".join(lines)
