"""The jobs of a study and what each waits for."""

from collections.abc import Mapping

from nnunet_locctx.nnunet.data.fitted import COMMANDS
from nnunet_locctx.study.definition import Study
from nnunet_locctx.study.jobs import Job
from nnunet_locctx.study.result_jobs import ResultJobs
from nnunet_locctx.study.runs import digest
from nnunet_locctx.study.training_jobs import TrainingJobs


def build_graph(study: Study) -> dict[str, Job]:
    """Every job by its name, each after those it waits for."""
    return {job.name: job for job in _Graph(study).jobs()}


def digests_of(graph: Mapping[str, Job]) -> dict[str, str]:
    """Job -> fingerprint of what its result depends on, through all jobs before it."""
    found: dict[str, str] = {}
    for name, job in graph.items():
        found[name] = digest([name, dict(job.identity), [found[need] for need in job.needs]])
    return found


class _Graph(TrainingJobs, ResultJobs):
    """Makes all jobs of a study."""

    def jobs(self) -> list[Job]:
        study = self.study
        found = [self.plan()]
        found += [self.fit(source) for source in study.sources if source in COMMANDS]
        found += [self.preprocess(name) for name in dict.fromkeys(run.data for run in self.runs)]
        found += [self.train(run, fold) for run in self.runs for fold in study.folds]
        found += [self.evaluate(run, fold) for run in self.runs for fold in study.folds]
        if study.test:
            found += [self.predict(run) for run in self.runs]
            if (study.raw / "labelsTs").is_dir():
                found += [self.evaluate_test(run) for run in self.runs]
        found += [self.postprocess(run, kind) for run in self.runs for kind in study.postprocessing]
        if study.robustness is not None:
            at = study.robustness.presets
            found += [
                self.robustness(run)
                for run in self.runs
                if run.method.source is not None and run.preset.name in at
            ]
        return found
