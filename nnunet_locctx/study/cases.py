"""The cases of a study: its raw files, and the division into folds (its own file's, the dataset's, or nnU-Net's)."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically
from nnunet_locctx.study.model import Study

SPLITS = "splits_final.json"
NNUNET_FOLDS = 5
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


def digests_of_cases(study: Study, *, progress: bool = True) -> dict[str, dict[str, str]]:
    """Part (``Tr``, ``Ts``) -> case -> short fingerprint of what its raw files hold.

    Files are read when they are new or may have changed (:func:`~nnunet_locctx.nnunet.data.digests.file_digests`); what
    is known of them is shared with `locctx fit`.
    """
    from nnunet_locctx.nnunet.data.digests import file_digests
    from nnunet_locctx.nnunet.data.fitted import DIGESTS

    parts = {"Tr": raw_cases(study.raw), "Ts": raw_cases(study.raw, "Ts") if study.test else {}}
    files = [file for cases in parts.values() for some in cases.values() for file in some if file.is_file()]
    known = file_digests(
        files, study.preprocessed / DIGESTS, processes=study.processes, progress=progress
    )  # a test case may have no labels

    def together(some: Sequence[Path]) -> str:
        return hashlib.sha256(" ".join(known.get(file, "-") for file in some).encode()).hexdigest()[:16]

    return {part: {case: together(some) for case, some in cases.items()} for part, cases in parts.items()}


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


def write_splits(study: Study) -> Splits:
    """Puts the splits where nnU-Net looks for them, before trainings could each make their own; returns them."""
    stored = study.preprocessed / SPLITS
    if stored.is_file():
        return read_splits(stored)
    splits = find_splits(study)
    if splits is None:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        # as nnU-Net calls it
        made = generate_crossval_split(list(raw_cases(study.raw)), seed=12345, n_splits=NNUNET_FOLDS)
        splits = [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in made]
    write_atomically(stored, (json.dumps(splits, indent=4) + "\n").encode())
    return splits
