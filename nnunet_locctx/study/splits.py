"""The cases of each fold: the study's file, the data set's, or nnU-Net's own division."""

import json
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically
from nnunet_locctx.study.definition import Study

SPLITS = "splits_final.json"
NNUNET_FOLDS = 5
Splits = list[dict[str, list[str]]]


def read_splits(file: Path) -> Splits:
    """Reads a file of nnU-Net's form, a list of ``{"train": [...], "val": [...]}``.

    Raises:
        ValueError: No such file, or not of that form.
    """
    if not file.is_file():
        raise ValueError(f"there is no file of splits {file}")
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in content]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} must be a list of {{"train": [...], "val": [...]}} ({error!r})') from error


def raw_cases(raw: Path, part: str = "Tr") -> list[str]:
    """The cases of a raw data set.

    Args:
        raw: Its folder.
        part: ``Tr`` or ``Ts``.
    """
    content = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    if part == "Tr" and "dataset" in content:
        return sorted(content["dataset"])
    ending = content["file_ending"]
    files = (raw / f"images{part}").glob(f"*{ending}")
    return sorted({file.name.removesuffix(ending)[: -len("_0000")] for file in files})


def find_splits(study: Study) -> Splits | None:
    """The splits in force, from the study's file, else beside the preprocessed or the raw data; None: nnU-Net's own.

    Raises:
        ValueError: A file is not of the form.
    """
    if study.splits is not None:
        return read_splits(study.splits)
    for folder in (study.preprocessed, study.raw):
        if (folder / SPLITS).is_file():
            return read_splits(folder / SPLITS)
    return None


def check_splits(study: Study) -> None:
    """Refuses folds that do not exist, cases that do not, and other splits than those nnU-Net would use.

    Raises:
        ValueError: Says which.
    """
    if not (study.raw / "dataset.json").is_file():
        raise ValueError(f"{study.raw} has no dataset.json: not a data set in nnU-Net's raw format")
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
        unknown = sorted({*splits[fold]["train"], *splits[fold]["val"]} - cases)
        if unknown:
            raise ValueError(
                f"fold {fold} of the splits has cases that {study.raw} lacks: {', '.join(unknown[:5])}"
            )
        if not splits[fold]["train"] or not splits[fold]["val"]:
            raise ValueError(f"fold {fold} of the splits has no cases to train or to validate with")
        both = sorted(set(splits[fold]["train"]) & set(splits[fold]["val"]))
        if both:
            raise ValueError(f"fold {fold} of the splits has cases in both parts: {', '.join(both[:5])}")
    stored = study.preprocessed / SPLITS
    if study.splits is not None and stored.is_file() and read_splits(stored) != splits:
        raise ValueError(
            f"{stored}, which nnU-Net uses, differs from {study.splits}. Other models may have been trained with it: "
            "move it away, or leave `splits` out."
        )


def write_splits(raw: Path, preprocessed: Path, given: Splits | None) -> Splits:
    """Puts the splits where nnU-Net looks for them, before trainings could each make their own; returns them.

    Args:
        raw: The data set's raw folder.
        preprocessed: Its preprocessed one.
        given: What :func:`find_splits` found; None: made as nnU-Net makes them.
    """
    stored = preprocessed / SPLITS
    if stored.is_file():
        return read_splits(stored)
    splits = given
    if splits is None:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        made = generate_crossval_split(
            raw_cases(raw), seed=12345, n_splits=NNUNET_FOLDS
        )  # as nnU-Net calls it
        splits = [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in made]
    write_atomically(stored, (json.dumps(splits, indent=4) + "\n").encode())
    return splits
