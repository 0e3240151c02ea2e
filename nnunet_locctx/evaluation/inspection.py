"""A folder of predictions looked through without a truth: what to look at first, and why (`locctx inspect`)."""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.doubt import MOST, Finding, judge
from nnunet_locctx.evaluation.label_files import (
    LabelFile,
    list_label_files,
    read_checked,
    read_description,
    refuse,
)
from nnunet_locctx.evaluation.label_summary import LabelSummary, summarise_labels, twins
from nnunet_locctx.evaluation.training_ranges import learn_ranges
from nnunet_locctx.location.locator import LEFT_OUT
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers


@dataclass(frozen=True)
class InspectedCase:
    """A predicted case.

    Attributes:
        case: Its name.
        file: Its segmentation.
        doubt: See :func:`~nnunet_locctx.evaluation.doubt.judge`; a file that cannot be judged has the largest.
        findings: The most doubtful first.
    """

    case: str
    file: Path
    doubt: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Inspection:
    """All predicted cases, the most doubtful first.

    Attributes:
        predictions: Their folder.
        labels: That of the training labels.
        training: Number of these.
        classes: The classes.
        channel: Name of the first image channel.
        file_ending: Of all files.
        reader: Class name of nnU-Net's reader.
        cases: The cases.
    """

    predictions: Path
    labels: Path
    training: int
    classes: Classes
    channel: str
    file_ending: str
    reader: str
    cases: tuple[InspectedCase, ...]

    @property
    def doubtful(self) -> tuple[InspectedCase, ...]:
        """The cases with a finding."""
        return tuple(case for case in self.cases if case.findings)


def inspect_predictions(
    predictions: Path,
    labels: Path,
    *,
    dataset_json: Path | Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Inspection:
    """Judges every predicted segmentation by what the training labels have.

    A predicted case that is among the training cases is judged by the others, so the predictions of a validation or of
    a whole cross-validation can be inspected too. A prediction that cannot be read or judged is a finding.

    Args:
        predictions: Folder of predictions, as nnU-Net writes them.
        labels: Folder of training labels.
        dataset_json: See :func:`~nnunet_locctx.evaluation.folders.evaluate_folders`.
        processes: Worker processes.
        progress: Show bars.

    Raises:
        ValueError: There are no predictions, or training labels cannot be used or are too few.
    """
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, got {processes}")
    description = read_description(dataset_json, (predictions, labels))
    classes = Classes.from_labels(description.labels)
    predicted = list_label_files(predictions, description.file_ending)
    training = list_label_files(labels, description.file_ending)
    reader = choose_reader(description.content, next(iter(training.values())))
    summarise = functools.partial(_summarise, classes=classes)

    def summaries(files: Mapping[str, Path], allowed: frozenset[int], shown: str) -> list[_Answer]:
        jobs = [LabelFile(case, file, reader, allowed) for case, file in files.items()]
        return list(map_in_workers(summarise, jobs, processes, shown if progress else None))

    learned = summaries(training, classes.in_references, "training labels")
    refuse([line for _, lines in learned for line in lines], "the training labels cannot be used")
    known = {case: one for case, (one, _) in zip(training, learned, strict=True) if one is not None}
    with_geometry = sum(one.frame.has_geometry for one in known.values())
    if 0 < with_geometry < len(known):
        bare = next(case for case, one in known.items() if not one.frame.has_geometry)
        raise ValueError(
            f"{len(known) - with_geometry} of {len(known)} training labels have no geometry, such as {bare}"
        )
    ranges = learn_ranges(known, twins(classes))
    unknown = _unknown_locations(predictions)
    cases = []
    for case, (summary, problems) in zip(
        predicted, summaries(predicted, classes.known, "predictions"), strict=True
    ):
        if summary is not None and with_geometry and not summary.frame.has_geometry:
            problems = [f"case {case}: {predicted[case]} has no geometry, the training labels have one"]
        if problems or summary is None:
            findings, doubt = [Finding("file", (), line) for line in problems], MOST * len(classes.labels)
        else:
            findings, doubt = judge(case, summary, ranges, classes)
        if case in unknown:
            findings, doubt = [*findings, Finding("location", (), unknown[case], times=1.0)], doubt + 1
        cases.append(InspectedCase(case, predicted[case], doubt, tuple(findings)))
    cases.sort(key=lambda one: (-one.doubt, one.case))
    channels = description.content.get("channel_names", {})
    channel = str(next(iter(channels.values()), "")) if isinstance(channels, Mapping) else ""
    return Inspection(
        predictions, labels, len(known), classes, channel, description.file_ending, reader, tuple(cases)
    )


_Answer = tuple[LabelSummary | None, list[str]]


def _summarise(job: LabelFile, classes: Classes) -> _Answer:
    problems: list[str] = []
    labels, frame = read_checked(job.file, job.reader, job.allowed, job.case, problems)
    if labels is None or frame is None:
        return None, problems
    return summarise_labels(labels, frame, classes), problems


def _unknown_locations(predictions: Path) -> dict[str, str]:
    """Case -> a sentence, for the cases whose location was unknown to the model, if it wrote so."""
    from nnunet_locctx.nnunet.predicting.location_file import LOCATION_FILE, describe, read_records

    if not (predictions / LOCATION_FILE).is_file():
        return {}
    sentences = {}
    for case, record in read_records(predictions).items():
        try:
            if set(record["unknown"].values()) - {LEFT_OUT}:
                sentences[case] = describe(case, record)
        except (TypeError, KeyError, AttributeError):
            sentences[case] = (
                f"{LOCATION_FILE} has no record for {case} that can be read, got {json.dumps(record)[:100]}"
            )
    return sentences


def to_frame(inspection: Inspection) -> pd.DataFrame:
    """A row a finding, and one for each case without."""
    columns = [
        "rank",
        "case",
        "doubt",
        "kind",
        "classes",
        "value",
        "unit",
        "low",
        "high",
        "times",
        "sentence",
    ]
    rows: list[dict[str, Any]] = []
    for rank, case in enumerate(inspection.cases, 1):
        for finding in case.findings or [None]:
            details = {} if finding is None else asdict(finding)
            details["classes"] = " ".join(details.get("classes", ()))
            rows.append({**details, "rank": rank, "case": case.case, "doubt": round(case.doubt, 4)})
    return pd.DataFrame(rows, columns=columns)


def to_json(inspection: Inspection) -> str:
    """Everything, for programs."""
    content = {
        "version": 1,
        "predictions": str(inspection.predictions.resolve()),
        "labels": str(inspection.labels.resolve()),
        "training_cases": inspection.training,
        "cases": [{**asdict(case), "file": case.file.name} for case in inspection.cases],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def to_table(inspection: Inspection, most: int = 20, most_findings: int = 6) -> str:
    """The cases' findings for a terminal, the most doubtful case first, a line a finding.

    Args:
        inspection: What was found.
        most: Cases that are shown.
        most_findings: Findings of a case that are shown; the rest is counted.
    """
    doubtful = inspection.doubtful
    width = max([4, *(len(case.case) for case in doubtful[:most])])
    lines = [f"{'case':<{width}}  doubt  finding"] if doubtful else []
    for case in doubtful[:most]:
        sentences = [finding.sentence for finding in case.findings]
        if len(sentences) > most_findings:
            sentences[most_findings - 1 :] = [f"and {len(sentences) - most_findings + 1} more findings"]
        heads = [f"{case.case:<{width}}  {case.doubt:5.1f}", *[" " * (width + 7)] * len(sentences)]
        lines += [f"{head}  {sentence}" for head, sentence in zip(heads, sentences, strict=False)]
    if len(doubtful) > most:
        lines.append(f"and {len(doubtful) - most} more cases with findings")
    clean = [case.case for case in inspection.cases if not case.findings]
    if clean:
        names = ", ".join(clean[:10]) + (f" and {len(clean) - 10} more" if len(clean) > 10 else "")
        lines.append(f"nothing found in {len(clean)} of {len(inspection.cases)} cases: {names}")
    return "\n".join(lines)
