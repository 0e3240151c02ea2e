"""The jobs that use trained models: evaluation, prediction, postprocessing, robustness."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_locctx.study.jobs import PYTHON, Job, JobMaker, partial
from nnunet_locctx.study.runs import Run


class ResultJobs(JobMaker):
    """Makes them; one method for each kind."""

    def evaluate(self, run: Run, fold: int) -> Job:
        folder = self.folder(run, fold) / "evaluation"
        return Job(
            self.name("evaluate", run, fold),
            "evaluate",
            f"evaluate {run.method.name}, {run.preset.name}, fold {fold}",
            [self.evaluation(run.model / f"fold_{fold}" / "validation", partial(folder))],
            self.evaluation_identity(),
            [self.name("train", run, fold)],
            run=run.slug,
            fold=fold,
            fresh={str(folder): str(partial(folder))},
            outputs=[str(folder / "evaluation.json")],
        )

    def evaluation(self, predictions: Path, output: Path, part: str = "Tr") -> list[str]:
        study = self.study
        command = [
            "locctx",
            "evaluate",
            str(predictions),
            str(self.labels[part]),
            "-o",
            str(output),
        ]
        command += [
            "--dataset-json",
            str(study.raw / "dataset.json"),
            *self.np,
            "--predicted-only",
            "--quiet",
        ]
        command += [
            "--tolerance-mm",
            f"{study.tolerance_mm:g}",
            "--off-region-mm",
            f"{study.off_region_mm:g}",
        ]
        return [*command, *([] if study.paper_columns is None else ["--paper", study.paper_columns])]

    def evaluation_identity(self) -> dict[str, Any]:
        study = self.study
        return {
            "tolerance": study.tolerance_mm,
            "off_region": study.off_region_mm,
            "paper": study.paper_columns,
        }

    def predict(self, run: Run) -> Job:
        study = self.study
        folder = self.work / "runs" / run.slug / "test" / "predictions"
        command = [
            "nnUNetv2_predict",
            "-i",
            str(study.raw / "imagesTs"),
            "-o",
            str(partial(folder)),
            "-d",
            study.dataset,
        ]
        command += ["-p", study.plans, "-tr", run.method.trainer.name, "-c", run.configuration]
        command += ["-f", *map(str, study.folds), "-device", study.device, "--disable_progress_bar"]
        command += ["-npp", str(study.processes), "-nps", str(study.processes)]
        return Job(
            self.name("predict", run),
            "predict",
            f"predict {run.method.name}, {run.preset.name}, test cases",
            [command],
            {"folds": list(study.folds)},
            [self.name("train", run, fold) for fold in study.folds],
            run=run.slug,
            fresh={str(folder): str(partial(folder))},
            outputs=[str(folder / "plans.json")],
            gpus=self.gpu,
        )

    def evaluate_test(self, run: Run) -> Job:
        folder = self.work / "runs" / run.slug / "test"
        output = folder / "evaluation"
        return Job(
            f"evaluate.{run.slug}.test",
            "evaluate",
            f"evaluate {run.method.name}, {run.preset.name}, test cases",
            [self.evaluation(folder / "predictions", partial(output), "Ts")],
            self.evaluation_identity(),
            [self.name("predict", run)],
            run=run.slug,
            fresh={str(output): str(partial(output))},
            outputs=[str(output / "evaluation.json")],
        )

    def postprocess(self, run: Run, kind: str) -> Job:
        study = self.study
        folder = self.work / "runs" / run.slug / "postprocessing" / kind
        draft = partial(folder)
        validation = {fold: run.model / f"fold_{fold}" / "validation" for fold in study.folds}
        common = ["--dataset-json", str(study.raw / "dataset.json"), *self.np, "--quiet"]
        commands: list[list[str]] = []
        if kind == "atlas":
            labels = ["--labels", str(self.labels["Tr"]), "--validation", *map(str, validation.values())]
            atlas = draft / "atlas.npz"
            commands.append(
                ["locctx", "postprocess", "fit-atlas", *labels, "-o", str(atlas), "--fold-atlases", *common]
            )
        for fold, predictions in validation.items():
            action = (
                ["apply-atlas", str(draft / f"atlas_fold_{fold}.npz")]
                if kind == "atlas"
                else ["largest-component"]
            )
            output = ["-o", str(draft / "predictions")]
            commands.append(["locctx", "postprocess", *action, str(predictions), *output, *common])
        commands.append(self.evaluation(draft / "predictions", draft / "evaluation"))
        return Job(
            f"postprocess.{run.slug}.{kind}",
            "postprocess",
            f"postprocess {run.method.name}, {run.preset.name}, {kind}",
            commands,
            self.evaluation_identity(),
            [self.name("train", run, fold) for fold in study.folds],
            run=run.slug,
            fresh={str(folder): str(draft)},
            outputs=[str(folder / "evaluation" / "evaluation.json")],
        )

    def robustness(self, run: Run) -> Job:
        study, asked = self.study, self.study.robustness
        assert asked is not None
        folder = self.work / "runs" / run.slug / "robustness"
        fold = study.folds[0]
        command = [PYTHON, "-m", "nnunet_locctx.study.robustness", str(self.work), "--model", str(run.model)]
        command += [
            "--name",
            run.method.name,
            "--fold",
            str(fold),
            "--cases",
            str(asked.cases),
            "-o",
            str(folder),
        ]
        command += ["--device", study.device, "--amounts", *(f"{amount:g}" for amount in asked.amounts)]
        command += ["--changes", *asked.changes, "--axes", *asked.axes]
        return Job(
            self.name("robustness", run),
            "robustness",
            f"robustness of {run.method.name}, {run.preset.name}",
            [command],
            {**asdict(asked), "presets": None},
            [self.name("train", run, fold)],
            run=run.slug,
            fold=fold,
            outputs=[str(folder / "robustness.json")],
            gpus=self.gpu,
        )
