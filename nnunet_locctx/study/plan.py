"""The job that plans: ``python -m nnunet_locctx.study.plan WORK``.

Makes nnU-Net's plans if there are none, adds the study's configurations to plans of its own, and fixes the splits.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_locctx.nnunet.commands import executable
from nnunet_locctx.study.definition import Study
from nnunet_locctx.study.runs import configurations_of, runs_of
from nnunet_locctx.study.splits import find_splits, write_splits
from nnunet_locctx.study.steps import exit_status
from nnunet_locctx.study.work_folder import read_json

PLAN = "plan.json"
"""In the work folder: what this job and those that preprocess are asked."""

PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
"""Plans that can be made if they are missing, and nnU-Net's planner for each."""


def plan_request(study: Study) -> dict[str, Any]:
    """The content of ``plan.json``."""
    return {
        "dataset": study.dataset,
        "raw": str(study.raw),
        "preprocessed": str(study.preprocessed),
        "base_plans": study.base_plans,
        "base_configuration": study.base_configuration,
        "plans": study.plans,
        "splits": find_splits(study),
        "processes": study.processes,
        "configurations": [
            {"name": one.name, "base": one.base, "changes": dict(one.changes)}
            for one in configurations_of(study)
        ],
        "runs": [
            {"run": run.slug, "trainer": run.method.trainer.name, "configuration": run.configuration}
            for run in runs_of(study)
        ],
    }


def plan(request: Mapping[str, Any]) -> None:
    """Does what was asked.

    Raises:
        ValueError: Plans that cannot be made or extended, or a run whose trainer does not take its configuration.
    """
    from nnunet_locctx.nnunet.plans.planning import add_configuration, resolve
    from nnunet_locctx.nnunet.plans.plans_file import derive_plans, read_plans, write_plans

    preprocessed = Path(request["preprocessed"])
    base = preprocessed / f"{request['base_plans']}.json"
    if not base.is_file():
        _plan_base(request)
    source = read_plans(base)
    resolve(source, request["base_configuration"])
    plans = derive_plans(source, request["plans"])
    for one in request["configurations"]:
        if one["name"] in source["configurations"]:
            raise ValueError(
                f"{one['name']!r} is a configuration of {request['base_plans']} itself; rename the preset"
            )
        plans = add_configuration(plans, one["base"], one["name"], **one["changes"])
    _check_runs(plans, request["runs"])
    changed = write_plans(plans, preprocessed / f"{request['plans']}.json")
    print(f"{'wrote' if changed else 'unchanged:'} {preprocessed / request['plans']}.json")
    splits = write_splits(Path(request["raw"]), preprocessed, request["splits"])
    print(f"{len(splits)} folds")


def _plan_base(request: Mapping[str, Any]) -> None:
    name = request["base_plans"]
    if name not in PLANNERS:
        raise ValueError(
            f"there are no plans {name} in {request['preprocessed']}; those that can be made are {', '.join(PLANNERS)}"
        )
    number = str(int(request["dataset"][7:10]))
    Path(request["preprocessed"]).parent.mkdir(parents=True, exist_ok=True)
    command = [executable("nnUNetv2_plan_and_preprocess"), "-d", number, "--no_pp", "-pl", PLANNERS[name]]
    command += ["-npfp", str(request["processes"])]
    subprocess.run(command, check=True, close_fds=False)  # it holds the job's lock too


def _check_runs(plans: Mapping[str, Any], runs: Any) -> None:
    from nnunet_locctx.nnunet.plans.planning import resolve
    from nnunet_locctx.nnunet.plans.suitability import check_trainer
    from nnunet_locctx.nnunet.training.trainers import find_trainer

    problems = []
    for run in runs:
        trainer = find_trainer(run["trainer"])
        if trainer is not None:
            try:
                check_trainer(trainer, resolve(dict(plans), run["configuration"]))
            except ValueError as error:
                problems.append(f"{run['run']}: {error}")
    if problems:
        raise ValueError("runs whose trainer does not take the preset:\n" + "\n".join(problems))


def main(work: str) -> int:
    """Entry point."""
    return exit_status(lambda: plan(read_json(Path(work) / PLAN)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
