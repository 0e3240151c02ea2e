"""What no key of a study file can know alone: equal runs, folds that do not exist, a work folder of something else."""

import json
from pathlib import Path

from nnunet_locctx.study.cases import NNUNET_FOLDS, SPLITS, find_splits, raw_cases, read_splits
from nnunet_locctx.study.model import STUDY, Study


def check_study(study: Study) -> None:
    """Refuses what cannot be run.

    Raises:
        ValueError: Says what.
    """
    _check_runs(study)
    _check_work(study)
    _check_splits(study)


def _check_splits(study: Study) -> None:
    """Refuses folds that do not exist, cases that do not, and other splits than those nnU-Net would use."""
    if not (study.raw / "dataset.json").is_file():
        raise ValueError(f"{study.raw} has no dataset.json: not a dataset in nnU-Net's raw format")
    cases = set(raw_cases(study.raw))
    splits = find_splits(study)
    count = NNUNET_FOLDS if splits is None else len(splits)
    wrong = [fold for fold in study.folds if fold >= count]
    if wrong:
        raise ValueError(
            f"{study.file.name}: folds {wrong} do not exist; the split has {count} (counted from 0)"
        )
    if splits is None:
        if len(cases) < NNUNET_FOLDS:
            raise ValueError(
                f"{study.raw} has {len(cases)} training cases, too few for nnU-Net's {NNUNET_FOLDS} folds; "
                "give `splits`"
            )
        return
    for fold in study.folds:
        train, val = (set(splits[fold][part]) for part in ("train", "val"))
        unknown = sorted((train | val) - cases)
        if unknown:
            raise ValueError(
                f"fold {fold} of the splits has cases that {study.raw} lacks: {', '.join(unknown[:5])}"
            )
        if not train or not val:
            raise ValueError(f"fold {fold} of the splits has no cases to train or to validate with")
        if train & val:
            both = ", ".join(sorted(train & val)[:5])
            raise ValueError(f"fold {fold} of the splits has cases in both parts: {both}")
    stored = study.preprocessed / SPLITS
    if study.splits is not None and stored.is_file() and read_splits(stored) != splits:
        raise ValueError(
            f"{stored}, which nnU-Net uses, differs from {study.splits}. Other models may have been trained with it: "
            "move it away, or leave `splits` out."
        )


def _check_work(study: Study) -> None:
    """Refuses a work folder that holds something else: what the steps make there takes the place of what was there."""
    work, where = study.work, study.file.name
    if not work.exists():
        return
    if not work.is_dir():
        raise ValueError(f"{where}: work is {work}, which is not a folder")
    if (work / STUDY).exists():
        try:
            content = json.loads((work / STUDY).read_text(encoding="utf-8"))
            owner = content["name"], content["dataset"]["name"]
        except (ValueError, LookupError, TypeError):
            owner = (None, None)
        if owner != (study.name, study.dataset):
            raise ValueError(
                f"{where}: work is {work}, the work folder of another study ({owner[0]!r}, dataset {owner[1]!r}); "
                "name another folder"
            )
        return
    # what is there before a study has written study.json
    others = sorted({path.name for path in work.iterdir() if not path.name.startswith(".")} - {"locks"})
    if others:
        raise ValueError(
            f"{where}: work is {work}, which holds {', '.join(others[:3])} and no {STUDY}, so it is not this "
            "study's work folder; name a new or an empty one"
        )


def _check_runs(study: Study) -> None:
    """Refuses two runs that are the same, or would be written to the same place."""
    from nnunet_locctx.nnunet.plans.plans_file import check_name

    where = study.file.name
    check_name(study.plans, f"name of the plans of {where}")
    slugs = [method.slug.lower() for method in study.methods]
    for method in study.methods:
        if slugs.count(method.slug.lower()) > 1:
            raise ValueError(
                f"{where}: two methods would be written as {method.slug!r}; choose names that differ in more"
            )
    trained: dict[Path, str] = {}
    for run in study.runs.values():
        for one in run.own_configurations:
            if study.configurations[one.name] != one:
                raise ValueError(
                    f"{where}: a preset is called {one.name}, as the configuration of {run.slug}; rename the preset"
                )
        fixed = run.preset.changes.get("location", {}).get("source")
        if run.method.source is not None and fixed not in (None, run.method.source):
            raise ValueError(
                f"{where}: the preset {run.preset.name} is for the source {fixed}, but {run.method.name} has "
                f"{run.method.source}; set its sources: [{fixed}], or other presets"
            )
        if run.model in trained:
            raise ValueError(
                f"{where}: duplicate runs: {trained[run.model]} and {run.method.name} are the same training at "
                f"{run.preset.name} ({run.method.trainer})"
            )
        trained[run.model] = run.method.name
        check_name(run.configuration, f"name of a configuration of {where}")
        longest = max(run.slug, run.model.name, key=len)
        if len(longest) > 200:  # 255 for a file system, with room for what is put before and behind
            raise ValueError(
                f"{where}: the name of a folder, {longest[:40]}..., would have {len(longest)} letters, 200 are "
                "allowed; choose shorter names of methods and presets"
            )
