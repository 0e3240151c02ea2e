"""The jobs up to a trained model: planning, fitted sources, preprocessing, training."""

from dataclasses import asdict
from typing import Any

from nnunet_locctx.nnunet.data.fitted import COMMANDS
from nnunet_locctx.study.jobs import PYTHON, Job, JobMaker
from nnunet_locctx.study.runs import Run, data_configuration
from nnunet_locctx.study.splits import SPLITS, find_splits


class TrainingJobs(JobMaker):
    """Makes them; one method for each kind."""

    def plan(self) -> Job:
        study = self.study
        identity = {
            "plans": study.base_plans,
            "configurations": [asdict(one) for one in self.configurations.values()],
            "splits": self.splits_identity(),
        }
        outputs = [str(study.preprocessed / f"{study.plans}.json"), str(study.preprocessed / SPLITS)]
        commands = [[PYTHON, "-m", "nnunet_locctx.study.plan", str(self.work)]]
        return Job("plan.all", "plan", "plan", commands, identity, outputs=outputs)

    def splits_identity(self) -> Any:
        return None if self.study.splits is None else find_splits(self.study)

    def fit(self, source: str) -> Job:
        seed = str(self.study.seed)
        command = ["locctx", "fit", COMMANDS[source], "-d", self.number, "--seed", seed, *self.np, "--quiet"]
        identity = {"source": source, "seed": seed}
        return Job(
            f"fit.{source}", "fit", f"fit {source}", [command], identity, after=["plan.all"], gpus=self.gpu
        )

    def preprocess(self, name: str) -> Job:
        study = self.study
        configuration = data_configuration(study, name)
        command = [PYTHON, "-m", "nnunet_locctx.study.preprocess", str(self.work), configuration]
        identity = {"plans": study.base_plans, "configuration": study.base_configuration, "data": name}
        return Job(
            f"preprocess.{name}", "preprocess", f"preprocess {name}", [command], identity, after=["plan.all"]
        )

    def inherited(self, name: str) -> list[Any]:
        """A configuration's changes and those of all it inherits from."""
        found: list[Any] = []
        while name in self.configurations:
            found.append(asdict(self.configurations[name]))
            name = self.configurations[name].base
        return [*found, name]

    def train(self, run: Run, fold: int) -> Job:
        study, trainer = self.study, run.method.trainer
        record = self.folder(run, fold) / "training.json"
        command = [
            PYTHON,
            "-m",
            "nnunet_locctx.study.train",
            "--dataset",
            study.dataset,
            "--plans",
            study.plans,
        ]
        command += ["--configuration", run.configuration, "--trainer", trainer.name, "--fold", str(fold)]
        command += ["--epochs", str(trainer.epochs), "--seed", str(study.seed), "--device", study.device]
        command += ["--gpus", str(study.gpus), "--record", str(record)]
        identity = {
            "model": str(run.model),
            "configuration": self.inherited(run.configuration),
            "epochs": trainer.epochs,
            "seed": study.seed,
            "gpus": study.gpus,
            "split": self.splits[fold] if study.splits is not None else None,
        }
        needs = [f"preprocess.{run.data}"]
        if run.method.source in COMMANDS:
            needs.append(f"fit.{run.method.source}")
        model = run.model / f"fold_{fold}"
        return Job(
            self.name("train", run, fold),
            "train",
            f"train {run.method.name}, {run.preset.name}, fold {fold}",
            [command],
            identity,
            needs,
            ["plan.all"],
            run.slug,
            fold,
            outputs=[
                str(record),
                str(model / "checkpoint_final.pth"),
                str(model / "validation" / "summary.json"),
            ],
            gpus=study.gpus * self.gpu,
        )
