"""Judges a folder of predictions without references, the most doubtful case first (`locctx inspect`)."""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.doubt import MOST, Finding, judge
from nnunet_locctx.evaluation.label_files import LabelFile, read_description, refuse
from nnunet_locctx.evaluation.label_summary import LabelSummary, summarise_labels, twins
from nnunet_locctx.evaluation.training_ranges import learn_ranges
from nnunet_locctx.location.locator import LEFT_OUT
from nnunet_locctx.names import named
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers


@dataclass(frozen=True)
class InspectedCase:
    """A predicted case.

    Attributes:
        case: Name of the case.
        file: Its segmentation.
        doubt: The doubt of :func:`~nnunet_locctx.evaluation.doubt.judge`; a file that cannot be judged has the largest
            one.
        findings: The findings, the most doubtful first.
    """

    case: str
    file: Path
    doubt: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Inspection:
    """All predicted cases, the most doubtful first.

    Attributes:
        predictions: Folder of the predictions.
        labels: Folder of the training labels.
        training: Number of training labels.
        classes: The classes.
        channel: Name of the first image channel.
        file_ending: Ending of all files.
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
    """Judges every predicted segmentation by the training labels.

    A predicted case that is among the training cases is judged by the other training cases, so predictions of a
    validation or of a whole cross-validation can be inspected too. A prediction that cannot be read is a finding.

    Args:
        predictions: Folder of predictions, as nnU-Net writes them.
        labels: Folder of training labels.
        dataset_json: See :func:`~nnunet_locctx.evaluation.folders.evaluate_folders`.
        processes: Worker processes.
        progress: Show bars.

    Raises:
        ValueError: There are no predictions, or training labels cannot be used or are too few.
    """
    description = read_description(dataset_json, (predictions, labels))
    classes = description.classes
    predicted, training = description.list_files(predictions), description.list_files(labels)
    reader = choose_reader(description.content, next(iter(training.values())))
    summarise = functools.partial(_summarise, classes=classes)

    def summaries(files: Mapping[str, Path], allowed: frozenset[int], title: str) -> dict[str, _Answer]:
        jobs = [LabelFile(case, file, reader, allowed) for case, file in files.items()]
        answers = map_in_workers(summarise, jobs, processes, title if progress else None)
        return dict(zip(files, answers, strict=True))

    learned = summaries(training, classes.in_references, "training labels")
    refuse([line for _, lines in learned.values() for line in lines], "the training labels cannot be used")
    known = {case: summary for case, (summary, _) in learned.items() if summary is not None}
    bare = [case for case, summary in known.items() if not summary.frame.has_geometry]
    if 0 < len(bare) < len(known):
        raise ValueError(f"{len(bare)} of {len(known)} training labels have no geometry, such as {bare[0]}")
    ranges = learn_ranges(known, twins(classes))
    unknown = _unknown_locations(predictions)
    cases = []
    for case, (summary, problems) in summaries(predicted, classes.known, "predictions").items():
        if summary is not None and not bare and not summary.frame.has_geometry:
            problems = [f"case {case}: {predicted[case]} has no geometry, the training labels have one"]
        if problems or summary is None:
            findings, doubt = [Finding("file", (), line) for line in problems], MOST * len(classes.labels)
        else:
            findings, doubt = judge(case, summary, ranges, classes)
        if case in unknown:
            findings, doubt = [*findings, Finding("location", (), unknown[case], times=1.0)], doubt + 1
        cases.append(InspectedCase(case, predicted[case], doubt, tuple(findings)))
    cases.sort(key=lambda inspected: (-inspected.doubt, inspected.case))
    channels = description.content.get("channel_names", {})
    channel = str(next(iter(channels.values()), "")) if isinstance(channels, Mapping) else ""
    ending = description.content["file_ending"]
    return Inspection(predictions, labels, len(known), classes, channel, ending, reader, tuple(cases))


_Answer = tuple[LabelSummary | None, list[str]]


def _summarise(job: LabelFile, classes: Classes) -> _Answer:
    scan, problems = job.read()
    if scan is None or problems:
        return None, problems
    return summarise_labels(scan.labels, scan.frame, classes), problems


def _unknown_locations(predictions: Path) -> dict[str, str]:
    """Case -> a sentence, for each case whose location was unknown to the model according to the prediction's record.

    Raises:
        ValueError: The file of records is not one.
    """
    from nnunet_locctx.nnunet.predicting.location_file import LOCATION_FILE, describe, read_records

    if not (predictions / LOCATION_FILE).is_file():
        return {}
    records = read_records(predictions)
    if not records:
        raise ValueError(
            f"{predictions / LOCATION_FILE} is no record of the predictions' locations; predict again, or move it away "
            "to inspect without it"
        )
    sentences = {}
    for case, record in records.items():
        try:
            if set(record["unknown"].values()) - {LEFT_OUT}:
                sentences[case] = describe(case, record)
        except (TypeError, KeyError, AttributeError):
            sentences[case] = (
                f"{LOCATION_FILE} has no record for {case} that can be read, got {json.dumps(record)[:100]}"
            )
    return sentences


def to_frame(inspection: Inspection) -> pd.DataFrame:
    """One row for each finding, and one for each case without findings."""
    details = ("kind", "classes", "value", "unit", "low", "high", "times", "sentence")
    rows: list[dict[str, Any]] = []
    for rank, case in enumerate(inspection.cases, 1):
        shared = {"rank": rank, "case": case.case, "doubt": round(case.doubt, 4)}
        for finding in case.findings:
            rows.append({**shared, **asdict(finding), "classes": " ".join(finding.classes)})
        if not case.findings:
            rows.append({**shared, "classes": ""})
    return pd.DataFrame(rows, columns=["rank", "case", "doubt", *details])


def to_json(inspection: Inspection) -> str:
    """The inspection as JSON."""
    content = {
        "version": 1,
        "predictions": str(inspection.predictions.resolve()),
        "labels": str(inspection.labels.resolve()),
        "training_cases": inspection.training,
        "cases": [{**asdict(case), "file": case.file.name} for case in inspection.cases],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def to_table(inspection: Inspection, most: int = 20, most_findings: int = 6) -> str:
    """The findings for a terminal, one on each line, the most doubtful case first.

    Args:
        inspection: The inspection.
        most: Largest number of cases that are shown.
        most_findings: Largest number of findings of a case that are shown; the rest is counted.
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
        lines.append(f"nothing found in {len(clean)} of {len(inspection.cases)} cases: {named(clean)}")
    return "\n".join(lines)
