"""Evaluates a folder of predictions (`locctx evaluate`)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_locctx.evaluation.classes import Classes, check_pairs, find_pairs
from nnunet_locctx.evaluation.evaluation_report import read_evaluation, summarise_cases, write_evaluation
from nnunet_locctx.evaluation.label_files import (
    LabelFile,
    check_label_files,
    fingerprint,
    list_label_files,
    read_description,
    read_labels,
    refuse,
)
from nnunet_locctx.evaluation.measures import Settings, definitions, measure_case
from nnunet_locctx.evaluation.records import Records
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers

__all__ = ["evaluate_folders", "read_evaluation"]

RECORDS = "evaluation.jsonl"
VERSION = 1
"""Of the measures; results of another version are measured again."""


@dataclass(frozen=True)
class _Job:
    case: str
    prediction: Path
    reference: Path
    reader: str
    classes: Classes
    pairs: tuple[tuple[str, str], ...]
    settings: Settings


def evaluate_folders(
    predictions: Path,
    references: Path,
    output: Path,
    *,
    dataset_json: Path | Mapping[str, Any] | None = None,
    tolerance_mm: float = 2.0,
    off_region_mm: float = 20.0,
    pairs: Sequence[Sequence[str]] | None = None,
    paper: bool | str | None = None,
    cases: Sequence[str] | None = None,
    predicted_only: bool = False,
    processes: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures every prediction against its reference, on the grid of the files.

    Every file is checked before anything is measured. Results are kept case by case in ``evaluation.jsonl``, with a
    fingerprint of both files' content, and are not measured again.

    Args:
        predictions: Folder of ``CASE.ENDING`` files, as nnU-Net writes them.
        references: Folder of the true segmentations, named likewise.
        output: Folder of the results; made if needed.
        dataset_json: The data set's description (labels, file ending) or its file; None: the one that lies with the
            predictions, in a folder above them, or with the references.
        tolerance_mm: Of the NSD.
        off_region_mm: Distance from which predicted voxels are off their class's region.
        pairs: (left, right) classes, for the swap rate; None: as their names say.
        paper: Add the measures of a paper (:data:`~nnunet_locctx.evaluation.measures.PAPERS`); True: ``"locbam"``.
        cases: Which to evaluate; None: all.
        predicted_only: References without prediction are left out instead of refused.
        processes: Worker processes.
        progress: Show a bar.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        ValueError: Something is not usable; files are named all at once, and nothing is written.
    """
    settings = Settings(
        float(tolerance_mm), float(off_region_mm), "locbam" if paper is True else paper or None
    )
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, got {processes}")
    description = read_description(dataset_json, (predictions, references))
    classes = Classes.from_labels(description.labels)
    chosen = find_pairs(list(classes.labels)) if pairs is None else check_pairs(pairs, classes)
    # sides that share labels (a region of both) cannot be swapped
    sides = [pair for pair in chosen if not set(classes.values[pair[0]]) & set(classes.values[pair[1]])]
    found, true = (list_label_files(folder, description.file_ending) for folder in (predictions, references))
    names = _names(found, true, cases, predicted_only, predictions, references)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; the results need a folder")
    records = Records(output / RECORDS)
    reader = choose_reader(description.content, true[names[0]])
    jobs = {
        name: _Job(name, found[name], true[name], reader, classes, tuple(sides), settings) for name in names
    }
    what = {name: _what(job) for name, job in jobs.items()}
    open_ones = [name for name in names if what[name] not in records]
    files = [
        LabelFile(name, found[name], reader, classes.known, true[name], classes.in_references)
        for name in open_ones
    ]
    refuse(check_label_files(files, processes, progress=progress), "the files cannot be compared")
    output.mkdir(parents=True, exist_ok=True)
    answers = map_in_workers(_measure, [jobs[name] for name in open_ones], processes)
    records.add_all(
        [what[name] for name in open_ones], answers, total=len(names), title="evaluating", progress=progress
    )
    rows = [{"case": name, **row} for name in names for row in records.get(what[name])]
    content = {
        "version": VERSION,
        "definitions": definitions(settings),
        "settings": {
            "predictions": str(predictions.resolve()),
            "references": str(references.resolve()),
            "dataset_json": None if description.file is None else str(description.file.resolve()),
            **asdict(settings),
            "ignore_label": classes.ignore,
            "reader": reader,
            "versions": {name: version(name) for name in ("nnunet_locctx", "monai", "nnunetv2")},
        },
        "classes": classes.as_json(),
        "pairs": [list(pair) for pair in sides],
        "cases": rows,
        **summarise_cases(rows, list(classes.labels), settings),
    }
    write_evaluation(content, output)
    return content


def _names(
    found: Mapping[str, Path],
    true: Mapping[str, Path],
    cases: Sequence[str] | None,
    predicted_only: bool,
    predictions: Path,
    references: Path,
) -> list[str]:
    """The cases to evaluate, sorted."""
    wanted = set(cases) if cases is not None else set(found) | (set() if predicted_only else set(true))
    if not wanted:
        raise ValueError("no case is to be evaluated")
    problems = [f"case {name} is not in {predictions}" for name in sorted(wanted - set(found))]
    problems += [f"case {name} is not in {references}" for name in sorted(wanted - set(true))]
    refuse(problems, "the folders do not hold the same cases (see --cases and --predicted-only)")
    return sorted(wanted)


def _what(job: _Job) -> dict[str, Any]:
    """What a result is of, as :class:`Records` takes it."""
    return json.loads(
        json.dumps(
            {
                "version": VERSION,
                "whole": True,  # earlier versions also measured files that were cut off
                "case": job.case,
                "prediction": fingerprint(job.prediction),
                "reference": fingerprint(job.reference),
                "reader": job.reader,
                "classes": job.classes.as_json(),
                "ignore": job.classes.ignore,
                "pairs": job.pairs,
                **asdict(job.settings),
            }
        )
    )


def _measure(job: _Job) -> list[dict[str, Any]]:
    reference, properties = read_labels(job.reference, job.reader)
    prediction, _ = read_labels(job.prediction, job.reader)
    spacing = [float(size) for size in properties["spacing"]]
    return measure_case(reference, prediction, spacing, job.classes, job.pairs, job.settings)
