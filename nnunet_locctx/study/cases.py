"""What a study finds on disk: its cases and their files, the division into folds (its own file's, the dataset's, or
nnU-Net's), the work folder; and whether it can be run with them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from nnunet_locctx.datasets.release import FOLDS, crossval_folds
from nnunet_locctx.files import write_atomically
from nnunet_locctx.study.model import STUDY, Study
from nnunet_locctx.study.settings import read_object

SPLITS = "splits_final.json"
Splits = list[dict[str, list[str]]]


def raw_cases(raw: Path, part: str = "Tr") -> dict[str, list[Path]]:
    """The cases of a raw dataset, each with its files: the images of all channels, then the labels.

    Args:
        raw: The dataset's folder.
        part: ``Tr`` or ``Ts``.
    """
    content = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    cases: dict[str, list[Path]] = {}
    if part == "Tr" and "dataset" in content:  # nnU-Net's way to list files that lie anywhere
        for case, files in sorted(content["dataset"].items()):
            cases[case] = [raw / os.path.expandvars(file) for file in (*files["images"], files["label"])]
        return cases
    ending = content["file_ending"]
    for image in sorted((raw / f"images{part}").glob(f"*{ending}")):
        cases.setdefault(image.name.removesuffix(ending)[: -len("_0000")], []).append(image)
    for case, files in cases.items():
        files.append(raw / f"labels{part}" / f"{case}{ending}")
    return cases


def labelled_tests(study: Study) -> list[str]:
    """The test cases that can be evaluated: those with labels."""
    return [case for case, files in raw_cases(study.raw, "Ts").items() if files[-1].is_file()]


def digests_of_cases(study: Study, *, progress: bool = True) -> dict[str, dict[str, str]]:
    """Part (``Tr``, ``Ts``) -> case -> short fingerprint of what its raw files hold.

    Files are read when they are new or may have changed (:func:`~nnunet_locctx.nnunet.data.digests.file_digests`); what
    is known of them is shared with `locctx fit`.
    """
    from nnunet_locctx.nnunet.data.digests import file_digests
    from nnunet_locctx.nnunet.data.fitted import DIGESTS

    parts = {"Tr": raw_cases(study.raw), "Ts": raw_cases(study.raw, "Ts") if study.test else {}}
    # a test case may have no labels
    existing = [
        file for cases in parts.values() for files in cases.values() for file in files if file.is_file()
    ]
    known = file_digests(existing, study.preprocessed / DIGESTS, processes=study.processes, progress=progress)
    digests: dict[str, dict[str, str]] = {part: {} for part in parts}
    for part, cases in parts.items():
        for case, files in cases.items():
            text = " ".join(known.get(file, "-") for file in files)
            digests[part][case] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digests


def read_splits(file: Path) -> Splits:
    """Reads a file of nnU-Net's form, a list of ``{"train": [...], "val": [...]}``.

    Raises:
        ValueError: There is no such file, or it does not have that form.
    """
    if not file.is_file():
        raise ValueError(f"there is no file of splits {file}")
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in content]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} must be a list of {{"train": [...], "val": [...]}} ({error!r})') from error


def find_splits(study: Study) -> Splits | None:
    """The splits that hold: the study's file, else the file beside the preprocessed or raw data; None: nnU-Net's own.

    Raises:
        ValueError: A file does not have the form.
    """
    if study.splits is not None:
        return read_splits(study.splits)
    for folder in (study.preprocessed, study.raw):
        if (folder / SPLITS).is_file():
            return read_splits(folder / SPLITS)
    return None


def write_splits(study: Study) -> Splits:
    """Writes the splits where nnU-Net looks for them, before trainings could each make their own; returns them."""
    stored = study.preprocessed / SPLITS
    if stored.is_file():
        return read_splits(stored)
    splits = find_splits(study)
    if splits is None:
        splits = crossval_folds(list(raw_cases(study.raw)))
    write_atomically(stored, (json.dumps(splits, indent=4) + "\n").encode())
    return splits


def check_study(study: Study) -> None:
    """Refuses a study that cannot be run, for what no key of its file can know alone.

    Raises:
        ValueError: Runs that are the same, folds that do not exist, or a work folder of something else.
    """
    _check_runs(study)
    _check_work(study)
    _check_splits(study)


def _check_runs(study: Study) -> None:
    """Refuses two runs that are the same, or would be written to the same place."""
    from nnunet_locctx.nnunet.plans.plans_file import check_name

    file = study.file.name
    check_name(study.plans, f"name of the plans of {file}")
    slugs = [method.slug.lower() for method in study.methods]
    for method in study.methods:
        if slugs.count(method.slug.lower()) > 1:
            raise ValueError(
                f"{file}: two methods would be written as {method.slug!r}; choose names that differ in more"
            )
    trained: dict[Path, str] = {}
    for run in study.runs.values():
        for configuration in run.own_configurations:
            if study.configurations[configuration.name] != configuration:
                raise ValueError(
                    f"{file}: a preset is called {configuration.name}, as the configuration of {run.slug}; rename the "
                    "preset"
                )
        fixed = run.preset.changes.get("location", {}).get("source")
        if run.method.source is not None and fixed not in (None, run.method.source):
            raise ValueError(
                f"{file}: the preset {run.preset.name} is for the source {fixed}, but {run.method.name} has "
                f"{run.method.source}; set its sources: [{fixed}], or other presets"
            )
        if run.model in trained:
            raise ValueError(
                f"{file}: duplicate runs: {trained[run.model]} and {run.method.name} are the same training at "
                f"{run.preset.name} ({run.method.trainer})"
            )
        trained[run.model] = run.method.name
        check_name(run.configuration, f"name of a configuration of {file}")
        longest = max(run.slug, run.model.name, key=len)
        if len(longest) > 200:  # 255 for a file system, with room for what is put before and behind
            raise ValueError(
                f"{file}: the name of a folder, {longest[:40]}..., would have {len(longest)} letters, 200 are "
                "allowed; choose shorter names of methods and presets"
            )


def _check_work(study: Study) -> None:
    """Refuses a work folder that holds something else, which the results of the steps would replace."""
    work, file = study.work, study.file.name
    if not work.exists():
        return
    if not work.is_dir():
        raise ValueError(f"{file}: work is {work}, which is not a folder")
    if (work / STUDY).exists():
        content = read_object(work / STUDY)
        dataset = content.get("dataset")
        name, dataset = content.get("name"), dataset.get("name") if isinstance(dataset, dict) else None
        if (name, dataset) != (study.name, study.dataset):
            raise ValueError(
                f"{file}: work is {work}, the work folder of another study ({name!r}, dataset {dataset!r}); name "
                "another folder"
            )
        return
    # a start that was killed leaves its locks before it writes study.json
    others = sorted({path.name for path in work.iterdir() if not path.name.startswith(".")} - {"locks"})
    if others:
        raise ValueError(
            f"{file}: work is {work}, which holds {', '.join(others[:3])} and no {STUDY}, so it is not this "
            "study's work folder; name a new or an empty one"
        )


def _check_splits(study: Study) -> None:
    """Refuses folds that do not exist, cases that do not, and other splits than those nnU-Net would use."""
    if not (study.raw / "dataset.json").is_file():
        raise ValueError(f"{study.raw} has no dataset.json: not a dataset in nnU-Net's raw format")
    cases = set(raw_cases(study.raw))
    splits = find_splits(study)
    count = FOLDS if splits is None else len(splits)
    missing = [fold for fold in study.folds if fold >= count]
    if missing:
        raise ValueError(
            f"{study.file.name}: folds {missing} do not exist; the split has {count} (counted from 0)"
        )
    if splits is None:
        if len(cases) < FOLDS:
            raise ValueError(
                f"{study.raw} has {len(cases)} training cases, too few for nnU-Net's {FOLDS} folds; "
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
