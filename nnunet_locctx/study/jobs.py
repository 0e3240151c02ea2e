"""The jobs of a study: what each makes in the work folder, what its result depends on, and its name.

The Snakefile has a rule for each kind; a job of a rule is named by the rule's wildcards. All that Snakemake may delete
lies in the work folder: models, plans and preprocessed data, in nnU-Net's folders, are no outputs of rules.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.names import check_known
from nnunet_locctx.study.cases import SPLITS, find_splits, labelled_tests
from nnunet_locctx.study.methods import Run
from nnunet_locctx.study.model import STUDY, Study, load_study
from nnunet_locctx.study.settings import KINDS, Resources, digest

OUTPUTS = {
    "plan": "plans.json",
    "fit": "fits/{source}.json",
    "preprocess": "data/{data}.json",
    "train": "runs/{run}/fold_{fold}/training.json",
    "evaluate": "runs/{run}/{part}/evaluation/evaluation.json",
    "predict": "runs/{run}/test/predictions/plans.json",
    "postprocess": "runs/{run}/postprocessing/{method}/evaluation/evaluation.json",
    "robustness": "runs/{run}/robustness/robustness.json",
}
"""Kind -> the file that a job makes last, below the work folder."""

TRAINED = ("checkpoint_final.pth", "validation/summary.json")
"""What a finished training leaves in the fold's folder."""

USUAL = {"train": (48.0, 24.0), "predict": (32.0, 4.0)}
"""Memory in GB and hours of a kind of job that needs more than the others, unless the study says otherwise."""


@dataclass(frozen=True)
class Job:
    """One job: its kind and the values of the wildcards of its rule, in their order."""

    kind: str
    names: Mapping[str, str]

    @property
    def name(self) -> str:
        """``KIND.WHAT``, for its log, its lock and messages."""
        values = [f"fold_{value}" if key == "fold" else value for key, value in self.names.items()]
        return ".".join([self.kind, *values])

    @property
    def output(self) -> str:
        """The file it makes last, below the work folder."""
        return OUTPUTS[self.kind].format(**self.names)

    @property
    def fold(self) -> str | None:
        """Its fold, if it belongs to one."""
        fold = self.names.get("fold") or self.names.get("part", "").removeprefix("fold_")
        return fold if fold.isdigit() else None


class Jobs:
    """The jobs of a study.

    Args:
        study: The study.
        scans: Part -> case -> fingerprint of its raw files (:func:`~nnunet_locctx.study.cases.digests_of_cases`).
    """

    def __init__(self, study: Study, scans: Mapping[str, Mapping[str, str]]) -> None:
        self.study, self.scans = study, scans

    @classmethod
    def load(cls, file: Path = Path(STUDY)) -> "Jobs":
        """The jobs of the study that a ``study.json`` holds."""
        return cls(load_study(file), json.loads(file.read_text(encoding="utf-8"))["scans"])

    @functools.cached_property
    def named(self) -> dict[str, Job]:
        """Every job by its name."""
        return {job.name: job for job in self.all()}

    def all(self) -> Iterator[Job]:
        """Every job, each after those it waits for."""
        study = self.study
        yield Job("plan", {})
        yield from (Job("fit", {"source": source}) for source in study.fitted)
        data = dict.fromkeys(run.data for run in study.runs.values())
        yield from (Job("preprocess", {"data": name}) for name in data)
        folds = [(run, str(fold)) for run in study.runs for fold in study.folds]
        yield from (Job("train", {"run": run, "fold": fold}) for run, fold in folds)
        yield from (Job("evaluate", {"run": run, "part": f"fold_{fold}"}) for run, fold in folds)
        if study.test:
            yield from (Job("predict", {"run": run}) for run in study.runs)
            if labelled_tests(study):
                yield from (Job("evaluate", {"run": run, "part": "test"}) for run in study.runs)
        for method in study.postprocessing:
            yield from (Job("postprocess", {"run": run, "method": method}) for run in study.runs)
        presets = () if study.robustness is None else study.robustness.presets or ()
        for run in study.runs.values():
            if run.method.source is not None and run.preset.name in presets:
                yield Job("robustness", {"run": run.slug})

    def chosen(self, only: Sequence[str]) -> list[Job]:
        """The jobs that belong to the names, without those they wait for.

        Args:
            only: Kinds; seeds (``seed1``); runs, methods or presets. Of each of these three that is named, a job must
                belong to one name. Empty: all jobs.

        Raises:
            ValueError: Unknown names.
        """
        jobs, asked = list(self.all()), set(only)
        labels: list[tuple[set[str], set[str], set[str]]] = []  # of each job: kind, seed, names of its run
        for job in jobs:
            run = self.study.runs.get(job.names.get("run", ""))
            seed = set() if run is None else {f"seed{run.seed}"}
            names = set() if run is None else {run.slug, run.method.name, run.method.slug, run.preset.name}
            labels.append(({job.kind}, seed, names))
        _, seeds, names = (set().union(*sets) for sets in zip(*labels, strict=True))
        known = (set(KINDS), seeds, names)
        try:
            check_known(only, [*KINDS, *sorted(seeds), *sorted(names)], "kind, seed, run, method or preset")
        except ValueError as error:
            raise ValueError(f"--only: {error}") from None
        return [
            job
            for job, own in zip(jobs, labels, strict=True)
            if all(not asked & sort or asked & mine for sort, mine in zip(known, own, strict=True))
        ]

    def waits_for(self, job: Job) -> list[Job]:
        """The jobs before a job: it is done again when one of them is, except for the plan.

        A plan with one more configuration leaves the others as they were: what matters is in :meth:`depends_on`.
        """
        run, plan = self.study.runs.get(job.names.get("run", "")), Job("plan", {})
        if run is None:
            return [] if job.kind == "plan" else [plan]
        if job.kind == "train":
            fits = [Job("fit", {"source": run.method.source})] if run.method.source and run.method.fit else []
            return [plan, Job("preprocess", {"data": run.data}), *fits]
        if job.names.get("part") == "test":
            return [Job("predict", {"run": run.slug})]
        folds = list(map(str, self.study.folds))
        if job.kind in ("evaluate", "robustness"):
            folds = [job.fold or folds[0]]
        return [Job("train", {"run": run.slug, "fold": fold}) for fold in folds]

    def depends_on(self, job: Job) -> str:
        """What the job's result depends on besides the results of other jobs, as JSON."""
        study, training, test = self.study, self.scans.get("Tr"), self.scans.get("Ts")
        run = study.runs.get(job.names.get("run", ""))
        evaluation = study.evaluation.model_dump()
        splits = None if study.splits is None else find_splits(study)
        content: dict[str, Any]
        if job.kind == "plan":
            added = [asdict(configuration) for configuration in study.configurations.values()]
            content = {"plans": study.base_plans, "configurations": added, "splits": splits}
        elif job.kind == "fit":
            content = {"seed": study.seeds[0], "scans": training}
        elif job.kind == "preprocess":
            base = {"plans": study.base_plans, "configuration": study.base_configuration}
            content = {**base, "scans": training}
        elif job.kind == "train":
            assert run is not None
            content = {"model": str(run.model), "configuration": self._inherited(run), "scans": training}
            content |= {"epochs": run.method.epochs, "seed": run.seed, "gpus": study.gpus}
            content["split"] = None if splits is None else splits[int(job.names["fold"])]
        elif job.kind == "predict":
            content = {"folds": study.folds, "scans": test}
        elif job.kind == "evaluate":
            content = {**evaluation, "scans": test if job.names["part"] == "test" else None}
        elif job.kind == "postprocess":
            content = evaluation
        else:
            assert study.robustness is not None
            content = study.robustness.model_dump(exclude={"presets"})
        if content.get("scans"):
            content["scans"] = digest(content["scans"])
        return json.dumps(content, sort_keys=True)

    def identity(self, job: Job) -> str:
        """A fingerprint of all that the job's result depends on, with the jobs it waits for, except for the plan."""
        before = [self.identity(one) for one in self.waits_for(job) if one.kind != "plan"]
        return digest([self.depends_on(job), before])

    def gone(self) -> list[Job]:
        """Jobs that were done, but whose plans or models are no longer in nnU-Net's folders."""
        study = self.study
        plans = (study.preprocessed / f"{study.plans}.json", study.preprocessed / SPLITS)
        needed: list[tuple[Job, tuple[Path, ...]]] = [(Job("plan", {}), plans)]
        for run in study.runs.values():
            for fold in study.folds:
                models = tuple(run.model / f"fold_{fold}" / name for name in TRAINED)
                needed.append((Job("train", {"run": run.slug, "fold": str(fold)}), models))
        return [
            job
            for job, files in needed
            if (study.work / job.output).is_file() and not all(file.is_file() for file in files)
        ]

    def title(self, job: Job) -> str:
        """A job's name in a line for people."""
        run = self.study.runs.get(job.names.get("run", ""))
        if run is None:
            return " ".join([job.kind, *job.names.values()])
        what = "test cases" if job.kind == "predict" or job.names.get("part") == "test" else None
        if job.kind == "postprocess":
            what = job.names["method"]
        if job.fold is not None:
            what = f"fold {job.fold}"
        return f"{job.kind} {self.study.title_of(run)}" + (f", {what}" if what else "")

    def resources(self, kind: str) -> dict[str, Any]:
        """What a kind of job asks for (its own entry, then ``default``), in the words of Snakemake and its SLURM
        executor."""
        study = self.study
        own, default = (
            study.resources.get(key, Resources()).model_dump(exclude_none=True) for key in (kind, "default")
        )
        memory, hours = USUAL.get(kind, (default.get("memory_gb", 16.0), default.get("hours", 4.0)))
        requested = {**default, "memory_gb": memory, "hours": hours, **own}
        gpus = {"train": study.gpus}.get(kind, int(kind in ("fit", "predict", "robustness")))
        requests: dict[str, Any] = {
            "mem_mb": round(requested["memory_gb"] * 1000),
            "runtime": max(1, round(requested["hours"] * 60)),
            "cpus_per_task": study.processes + 1,
        }
        if gpus and study.device != "cpu":
            requests["gpu"] = gpus
        names = {"partition": "slurm_partition", "account": "slurm_account"}
        for key in ("partition", "account", "qos", "constraint", "slurm_extra"):
            if key in requested:
                requests[names.get(key, key)] = requested[key]
        return requests

    def _inherited(self, run: Run) -> list[Any]:
        """A run's configuration, its changes and those of all it inherits from."""
        name, chain = run.configuration, []
        while name in self.study.configurations:
            chain.append(asdict(self.study.configurations[name]))
            name = self.study.configurations[name].base
        return [*chain, name]
