"""Checks a whole raw dataset: every file by itself, a case's files against each other, cases against the dataset."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nnunet_locctx.check.files import Case, RawDataset, list_dataset
from nnunet_locctx.check.report import CaseSummary, DatasetReport, Finding
from nnunet_locctx.check.scan import (
    SAME_PLACE_VOXELS,
    CheckedFile,
    check_file,
    libraries_silenced,
    millimetres,
    orientation,
    tiff_spacing_file,
)
from nnunet_locctx.check.sides import side_findings
from nnunet_locctx.datasets.grids import (
    COMMON,
    DEVIATIONS,
    FEWEST_CASES,
    PATIENT_AXES,
    PATIENT_AXIS,
    robust,
    three,
    unusual_grids,
)
from nnunet_locctx.geometry import OBLIQUE, corner_distance
from nnunet_locctx.image_files import BrokenFileError, check_whole
from nnunet_locctx.names import named
from nnunet_locctx.nnunet.data.reading import choose_reader, readers_for
from nnunet_locctx.nnunet.data.workers import map_in_workers

POSITION_DISTANCE = 0.2
"""Fraction of the volume. A label is reported if its mean position is at least this far from its median position ..."""

POSITION_DEVIATIONS = 6.0
"""... and the distance is also at least this many robust standard deviations."""

VOLUME_FACTOR = 3.0
"""Factor. The voxel size may be wrong if the volume of the most constant label differs from its median by at least
this."""

OBLIQUE_MESSAGE = (
    f"the array axes are more than {OBLIQUE:g} degrees off the patient's: fractions refer to the bounding box along "
    "the patient's axes"
)


@dataclass
class CheckedCase:
    """The result of one case: findings, its label values, and its geometry if it can be read."""

    findings: list[Finding] = field(default_factory=list)
    labels: frozenset[int] = frozenset()
    summary: CaseSummary | None = None


def check_dataset(folder: Path | str, *, processes: int = 1, progress: bool = True) -> DatasetReport:
    """Checks a dataset in nnU-Net's raw format. Writes nothing.

    Args:
        folder: Dataset folder with dataset.json, imagesTr, labelsTr and perhaps imagesTs.
        processes: Worker processes that read scans.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: The folder is no dataset, or no reader of nnU-Net takes its files.
    """
    dataset = list_dataset(Path(folder))
    findings = list(dataset.findings)
    with libraries_silenced():
        reader = _choose_reader(dataset, findings)
    check = functools.partial(check_case, reader=reader, channels=dataset.channels, labels=dataset.labels)
    checked = list(map_in_workers(check, dataset.cases, processes, "reading scans" if progress else None))
    for case in checked:
        findings += case.findings
    summaries = [case.summary for case in checked if case.summary is not None]
    findings += _dataset_findings(checked, summaries, dataset)
    return DatasetReport(
        dataset=dataset.name,
        reader=reader,
        channels=dataset.channels,
        training_cases=sum(case.split == "train" for case in dataset.cases),
        test_cases=sum(case.split == "test" for case in dataset.cases),
        labels=dataset.labels,
        cases=summaries,
        findings=findings,
    )


def check_case(case: Case, reader: str, channels: int, labels: dict[int, str]) -> CheckedCase:
    """Reads the files of one case and compares them."""
    result = CheckedCase()
    scans = [check_file(file, reader, segmentation=False) for file in case.images]
    label = check_file(case.label, reader, segmentation=True) if case.label is not None else None
    for channel, scan in enumerate(scans):
        prefix = f"channel {channel:04d}: " if len(scans) > 1 else ""
        result.findings += [
            replace(problem, case=case.name, message=prefix + problem.message) for problem in scan.problems
        ]
    if all(scan.readable for scan in scans):
        result.findings += _channel_findings(case, scans, channels)
    if label is not None:
        result.findings += [replace(problem, case=case.name) for problem in label.problems]
        result.findings += _label_findings(case, label, labels)
        result.labels = frozenset(label.labels)
    image = next((scan.frame for scan in scans if scan.frame is not None), None)
    if image is None:
        return result
    for scan in scans[1:]:
        result.findings += _compare(case, scans[0], scan, f"channel {scan.file.name}")
    if label is not None:
        result.findings += _compare(case, scans[0], label, f"label {label.file.name}")
    code, tilt = orientation(image) if image.has_geometry else ("none", 0.0)
    if tilt > OBLIQUE:
        result.findings.append(Finding("note", "oblique", case.name, OBLIQUE_MESSAGE, f"{tilt:.1f} degrees"))
    positions, volumes = {}, {}
    if label is not None and label.frame is not None and label.frame.shape == image.shape:
        for value, index in label.labels.items():
            if value != 0:
                positions[value] = three(image.fraction(index))
                if value not in label.cut:
                    volumes[value] = label.voxels[value] * float(np.prod(image.spacing)) / 1000
    result.summary = CaseSummary(
        name=case.name,
        split=case.split,
        orientation=code,
        oblique=tilt,
        shape=(image.shape[2], image.shape[1], image.shape[0]),
        spacing=three(image.spacing[list(image.array_axes)]),
        extent=three(image.extent),
        positions=positions,
        volumes=volumes,
        stored=scans[0].stored if image.has_geometry else "",
    )
    return result


def _channel_findings(case: Case, scans: list[CheckedFile], channels: int) -> list[Finding]:
    """Findings where the number of channels differs from dataset.json or between files."""
    number = sum(scan.channels for scan in scans)
    if number != channels:
        message = f"{number} image channels found, dataset.json lists {channels}"
        for scan in scans:
            if scan.channels > 1 and scan.frame is not None:
                axes = " x ".join(map(str, (*scan.frame.shape[::-1], scan.channels)))
                message += f"; the last axis of {scan.file.name} ({axes} voxels) counts as channels"
        return [Finding("error", "channels", case.name, message)]
    if len({scan.channels for scan in scans}) > 1:
        numbers = ", ".join(f"{scan.channels} in {scan.file.name}" for scan in scans)
        return [
            Finding("error", "channels", case.name, f"files with different numbers of channels: {numbers}")
        ]
    return []


def _choose_reader(dataset: RawDataset, findings: list[Finding]) -> str:
    """The reader that nnU-Net will use; adds a finding if it is not the expected one."""
    candidates = readers_for(dataset.ending)
    example = first = next((case.images[0] for case in dataset.cases if case.images), Path("none"))
    try:
        check_whole(first)
    except BrokenFileError:
        example = Path("none")  # a damaged file says nothing about the readers
    content = {"file_ending": dataset.ending, "overwrite_image_reader_writer": dataset.reader or "None"}
    reader = choose_reader(content, example)
    if dataset.reader not in (None, "None"):
        if reader != dataset.reader:
            message = f"nnU-Net knows no reader {dataset.reader!r} (overwrite_image_reader_writer)"
            findings.append(Finding("warning", "reader", None, message))
    elif reader != candidates[0]:
        message = f"{candidates[0]} cannot read {first.name}, so nnU-Net will read every case with {reader}"
        findings.append(Finding("note", "reader", None, message))
    elif "Tiff3DIO" in candidates and tiff_spacing_file(first, segmentation=False).is_file():
        return "Tiff3DIO"  # the TIFF has this reader's .json; the check of the case names the fault in it
    return reader


def _label_findings(case: Case, label: CheckedFile, labels: dict[int, str]) -> list[Finding]:
    findings = []
    unknown = sorted(set(label.labels) - set(labels))
    if unknown:
        numbers = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
        message = f"label values that dataset.json does not list: {numbers}"
        findings.append(Finding("error", "label value", case.name, message))
    if label.constant == 0:
        findings.append(Finding("note", "no foreground", case.name, "the label has no foreground"))
    return findings


def _compare(case: Case, image: CheckedFile, other: CheckedFile, name: str) -> list[Finding]:
    """Findings where the geometry of a case's file differs from its first image; errors where nnU-Net refuses the
    case."""
    if image.frame is None or other.frame is None:
        return []
    one, two = image.frame, other.frame
    if one.shape != two.shape:
        sizes = f"{one.shape[::-1]} voxels (x, y, z) and {two.shape[::-1]}"
        return [Finding("error", "mismatch", case.name, f"image and {name} differ in size: {sizes}")]
    findings = []
    # nnU-Net compares channels with the first one, but images with the label: 1e-5 of either
    if not (np.allclose(image.spacing, other.spacing) and np.allclose(other.spacing, image.spacing)):
        sizes = f"{millimetres(image.spacing[::-1])} (x, y, z) and {millimetres(other.spacing[::-1])}"
        message = f"image and {name} differ in voxel size, which nnU-Net refuses: {sizes}"
        findings.append(Finding("error", "mismatch", case.name, message))
    if not np.allclose(one.spacing, two.spacing, rtol=1e-3):  # then the places differ, too
        return findings
    if one.has_geometry and two.has_geometry:
        distance = corner_distance(one, two)
        if distance > SAME_PLACE_VOXELS:
            codes = orientation(one)[0], orientation(two)[0]
            turned = f", orientations {codes[0]} and {codes[1]}" if codes[0] != codes[1] else ""
            message = f"image and {name} lie at different places (corners up to {distance:.1f} voxels apart{turned})"
            findings.append(Finding("warning", "mismatch", case.name, message))
    return findings


def _dataset_findings(
    checked: list[CheckedCase], cases: list[CaseSummary], dataset: RawDataset
) -> list[Finding]:
    findings = []
    if not any(case.split == "train" for case in dataset.cases):
        findings.append(Finding("error", "count", None, "there is no training case"))
    findings += _absent_labels(checked, dataset)
    flat = [case.name for case in cases if min(case.shape) == 1]
    message = "every scan has one slice: a 2D dataset"
    if len(flat) < len(cases):
        message = "the scan has one slice only along an axis"
    findings += _of_some_or_all("one slice", flat, cases, message)
    bare = [case.name for case in cases if case.orientation == "none"]
    message = "the file format carries no position in the patient: location follows the array axes"
    findings += _of_some_or_all("no geometry", bare, cases, message)
    if len({case.orientation for case in cases} - {"none"}) > 1:
        message = (
            "scans are stored in several orientations: their coordinates agree all the same, but the network sees "
            "the anatomy turned or mirrored accordingly"
        )
        findings.append(Finding("note", "orientations", None, message))
    findings += outliers(cases, dataset.labels)
    findings += side_findings(cases, dataset.labels)
    return findings


def _of_some_or_all(
    kind: str, names: Sequence[str], cases: Sequence[CaseSummary], message: str
) -> list[Finding]:
    """A note about the dataset if the message is true of all cases, else a warning about each named case."""
    if names and len(names) == len(cases):
        return [Finding("note", kind, None, message)]
    return [Finding("warning", kind, name, message) for name in names]


def _absent_labels(checked: list[CheckedCase], dataset: RawDataset) -> list[Finding]:
    """A note about classes without a voxel: nnU-Net trains on them and their Dice is nan. No note if no label was
    read."""
    present = frozenset().union(*(case.labels for case in checked))
    absent = [
        f"{value} ({name})"
        for value, name in dataset.labels.items()
        if value not in present and name not in ("background", "ignore")
    ]
    if not present or not absent:
        return []
    return [
        Finding("note", "absent label", None, f"labels that occur in no training case: {', '.join(absent)}")
    ]


def outliers(cases: list[CaseSummary], labels: dict[int, str]) -> list[Finding]:
    """Compares the cases of a dataset.

    Args:
        cases: Those that could be read.
        labels: Label value -> name.
    """
    displaced = list(_displaced(cases, labels))
    in_place = {case.name for case in cases if case.positions} - {finding.case for finding in displaced}
    findings = []
    for item in unusual_grids([_as_stored(case) for case in cases]):
        severity, message = "warning", item.message
        if item.kind == "direction" and item.case in in_place:
            # the header of this scan is right if its organs lie where they lie in other scans
            severity, message = "note", f"{message} Its labels lie where they do in other cases."
        findings.append(Finding(severity, item.kind, item.case, message))
    return findings + displaced + list(_volumes(cases, labels))


def _as_stored(case: CaseSummary) -> CaseSummary:
    """The case with the axes of the file itself. A reader may turn them, but a broken header shows in the stored
    ones."""
    if not case.stored or case.stored == case.orientation:
        return case
    along = {PATIENT_AXIS[letter]: n for letter, n in zip(case.orientation, case.shape, strict=True)}
    x, y, z = (along[PATIENT_AXIS[letter]] for letter in case.stored)
    return replace(case, orientation=case.stored, shape=(x, y, z))


def _displaced(cases: list[CaseSummary], labels: dict[int, str]) -> Iterator[Finding]:
    """Labels far from their median position: the usual sign of a wrong direction matrix."""
    far: dict[tuple[str, int], list[str]] = {}
    for value, name in labels.items():
        labelled = [case for case in cases if value in case.positions]
        if len(labelled) < FEWEST_CASES:
            continue
        positions = np.array([case.positions[value] for case in labelled])
        median, deviation = robust(positions)
        limit = np.maximum(POSITION_DISTANCE, POSITION_DEVIATIONS * deviation)
        for case, position in zip(labelled, positions, strict=True):
            for axis in map(int, np.flatnonzero(np.abs(position - median) > limit)):
                text = f"{name} at {position[axis]:+.2f} (elsewhere {median[axis]:+.2f})"
                far.setdefault((case.name, axis), []).append(text)
    for (case_name, axis), texts in far.items():
        yield Finding(
            "warning",
            "position",
            case_name,
            f"labels lie far from where they are in other cases, {PATIENT_AXES[axis]} as a fraction of the volume: "
            f"{named(texts, 3)}. "
            "Is the direction right, or does the scan show more or less of the body?",
        )


def _volumes(cases: list[CaseSummary], labels: dict[int, str]) -> Iterator[Finding]:
    """Cases in which the label with the most constant volume is too large or too small: their voxel size may be
    wrong."""
    spread: dict[int, tuple[float, float]] = {}
    for value in labels:
        volumes = np.log([case.volumes[value] for case in cases if value in case.volumes])
        if len(volumes) >= FEWEST_CASES and len(volumes) >= COMMON * len([c for c in cases if c.positions]):
            median, deviation = robust(volumes)
            spread[value] = float(median), float(deviation)
    if not spread:
        return
    value = min(spread, key=lambda label: spread[label][1])
    median_ml, deviation_ml = spread[value]
    limit = max(math.log(VOLUME_FACTOR), DEVIATIONS * deviation_ml)
    for case in cases:
        if value in case.volumes and abs(math.log(case.volumes[value]) - median_ml) > limit:
            yield Finding(
                "warning",
                "volume",
                case.name,
                f"{labels[value]} measures {case.volumes[value]:.3g} ml, the dataset's median is "
                f"{math.exp(median_ml):.3g} ml. Is the voxel size right?",
            )
