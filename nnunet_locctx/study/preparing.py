"""What the steps before a training do: plans, splits, and preprocessed data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from nnunet_locctx.locks import wait_for_lock
from nnunet_locctx.study.cases import raw_cases, write_splits
from nnunet_locctx.study.model import Study
from nnunet_locctx.study.settings import digest, read_object, write_json

PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
"""Plans that can be made if they are missing, and nnU-Net's planner for each."""

ENDINGS = (".b2nd", ".npz", ".npy")
"""Endings of nnU-Net's preprocessed images."""

Command: TypeAlias = Callable[..., None]
"""Runs a command, given by its words, to its end, with the locks of the step."""


def plan(study: Study, command: Command) -> dict[str, Any]:
    """Makes nnU-Net's plans if there are none, adds the study's configurations to its own, and fixes the splits.

    Returns:
        The study's plans.

    Raises:
        ValueError: Plans that cannot be made or extended, or a run whose trainer does not take its configuration.
    """
    from nnunet_locctx.nnunet.plans.plans_file import write_plans

    base = study.preprocessed / f"{study.base_plans}.json"
    if not base.is_file():
        if study.base_plans not in PLANNERS:
            raise ValueError(
                f"there are no plans {study.base_plans} in {study.preprocessed}; those that can be made are "
                + ", ".join(PLANNERS)
            )
        study.folders.preprocessed.mkdir(parents=True, exist_ok=True)
        planner = ["--no_pp", "-pl", PLANNERS[study.base_plans], "-npfp", str(study.processes)]
        command("nnUNetv2_plan_and_preprocess", "-d", study.number, *planner)
    plans = expected_plans(study)
    if plans is None:
        raise ValueError(f"nnUNetv2_plan_and_preprocess ended well, but did not write {base}")
    _check_trainers(study, plans)
    file = study.preprocessed / f"{study.plans}.json"
    print("wrote" if write_plans(plans, file) else "unchanged:", file)
    print(f"{len(write_splits(study))} folds")
    return plans


def expected_plans(study: Study) -> dict[str, Any] | None:
    """nnU-Net's plans with the study's configurations, as they will be written; None before the dataset is planned.

    Raises:
        ValueError: Plans that cannot be extended.
    """
    from nnunet_locctx.nnunet.plans.planning import add_configuration, resolve
    from nnunet_locctx.nnunet.plans.plans_file import derive_plans, read_plans

    base = study.preprocessed / f"{study.base_plans}.json"
    if not base.is_file():
        return None
    source = read_plans(base)
    resolve(source, study.base_configuration)
    plans = derive_plans(source, study.plans)
    for name, added in study.configurations.items():
        if name in source["configurations"]:
            raise ValueError(f"{name!r} is a configuration of {study.base_plans} itself; rename the preset")
        plans = add_configuration(plans, added.base, name, **added.changes)
    return plans


def _check_trainers(study: Study, plans: Mapping[str, Any]) -> None:
    from nnunet_locctx.nnunet.plans.planning import resolve
    from nnunet_locctx.nnunet.plans.suitability import check_trainer
    from nnunet_locctx.nnunet.training.trainers import find_trainer

    problems = []
    for run in study.runs.values():
        trainer = find_trainer(run.method.trainer)
        if trainer is not None:
            try:
                check_trainer(trainer, resolve(dict(plans), run.configuration))
            except ValueError as error:
                problems.append(f"{run.slug}: {error}")
    if problems:
        raise ValueError("runs whose trainer does not take the preset:\n" + "\n".join(problems))


def preprocess(study: Study, data: str, scans: Mapping[str, str], command: Command) -> dict[str, Any]:
    """Preprocesses every training case with nnUNetv2_preprocess, unless whole data of these scans exists.

    Beside the data a file says what it was made from and whether it is whole: nnU-Net itself leaves no sign of a run
    that was interrupted.

    Args:
        study: The study.
        data: Name of the data (:func:`~nnunet_locctx.study.methods.data_name`).
        scans: Training case -> fingerprint of its raw files.
        command: Runs a command.

    Returns:
        The folder of the data, and the scans that it was made from.

    Raises:
        ValueError: The plans have no such configuration, or nnU-Net did not make all of it.
    """
    from nnunet_locctx.nnunet.plans.identifiers import DECISIVE
    from nnunet_locctx.nnunet.plans.planning import read_plans, resolve

    configuration = study.data_configuration(data)
    plans = read_plans(study.preprocessed / f"{study.plans}.json")
    resolved = resolve(plans, configuration)
    folder = study.preprocessed / str(resolved["data_identifier"])
    settings = {key: resolved.get(key) for key in DECISIVE}
    settings["transpose"] = plans["transpose_forward"]
    settings["intensities"] = plans.get("foreground_intensity_properties_per_channel")
    made_from = {"fingerprint": digest(settings), "scans": dict(scans)}
    sign = folder.with_name(f"{folder.name}.locctx.json")
    with wait_for_lock(
        sign.with_suffix(".lock"), lambda holder: print(f"waiting for {holder}", flush=True), inherited=True
    ):
        before = read_object(sign)
        if sign.is_file() and not before:
            print(f"{sign} cannot be read: preprocessing again")
            before = {"state": "begun"}
        # data that nnU-Net made has no sign, and a sign of earlier versions no scans: both are taken as they are
        changed = any(before.get(key, value) != value for key, value in made_from.items())
        if changed or before.get("state") == "begun" or missing_cases(study, folder):
            write_json(sign, {"state": "begun", **made_from})
            words = ["-plans_name", study.plans, "-c", configuration, "-np", str(study.processes)]
            command("nnUNetv2_preprocess", "-d", study.number, *words)
            missing = missing_cases(study, folder)
            if missing:
                raise ValueError(
                    f"nnUNetv2_preprocess ended well, but {folder} lacks {', '.join(missing[:5])}"
                )
        else:
            print(f"{folder} is whole" + ("" if before else ", made before by nnU-Net"))
        write_json(sign, {"state": "done", **made_from})
    return {"folder": str(folder), "scans": scans}


def missing_cases(study: Study, folder: Path) -> list[str]:
    """The training cases that a folder of preprocessed data lacks."""
    files = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return [
        case
        for case in raw_cases(study.raw)
        if f"{case}.pkl" not in files or not any(f"{case}{ending}" in files for ending in ENDINGS)
    ]
