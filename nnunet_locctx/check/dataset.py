"""Checks a whole raw dataset: every file by itself, a case's files against each other, cases against the dataset."""

import contextlib
import dataclasses
import functools
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

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
    Grid,
    robust,
    unusual_grids,
)
from nnunet_locctx.geometry import OBLIQUE, corner_distance
from nnunet_locctx.nnunet.data.reading import BrokenFileError, read_quietly, readers_for
from nnunet_locctx.nnunet.data.workers import map_in_workers

POSITION_DISTANCE = 0.2
"""A label whose mean position is this fraction of the volume away from where it usually lies may be reported ..."""

POSITION_DEVIATIONS = 6.0
"""... if that is also this many (robust) standard deviations."""

VOLUME_FACTOR = 3.0
"""The label that varies least in volume tells of a wrong voxel size if it is this many times larger or smaller."""

OBLIQUE_MESSAGE = (
    f"array axes more than {OBLIQUE:g} degrees from the patient's: fractions are of the box along the patient's axes "
    "that holds the volume"
)


@dataclass
class CheckedCase:
    """What one case gave: findings, its label values, and its geometry if it could be read."""

    findings: list[Finding] = field(default_factory=list)
    labels: frozenset[int] = frozenset()
    summary: CaseSummary | None = None
    one_slice: bool = False
    has_geometry: bool = True


def check_dataset(folder: Path | str, *, processes: int = 1, progress: bool = True) -> DatasetReport:
    """Checks a dataset in nnU-Net's raw format. Writes nothing.

    Args:
        folder: Dataset folder with dataset.json, imagesTr, labelsTr and perhaps imagesTs.
        processes: Worker processes that read scans.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: The folder is no dataset, or no reader of nnU-Net takes its files.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    dataset = list_dataset(Path(folder))
    findings = list(dataset.findings)
    with libraries_silenced():
        reader = _choose_reader(dataset, findings)
    check = functools.partial(check_case, reader=reader, channels=dataset.channels, labels=dataset.labels)
    answers = map_in_workers(check, dataset.cases, processes)
    bar = functools.partial(tqdm, desc="reading scans", unit="case", disable=not progress, leave=False)
    checked = list(bar(answers, total=len(dataset.cases)))
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
        where = f"channel {channel:04d}: " if len(scans) > 1 else ""
        result.findings += _problems(case, scan, where)
    if all(scan.readable for scan in scans):
        result.findings += _channel_findings(case, scans, channels)
    frames = [scan.frame for scan in scans if scan.frame is not None]
    if label is not None:
        result.findings += _problems(case, label)
        result.findings += _label_findings(case, label, labels)
        result.labels = frozenset(label.labels)
    if not frames:
        return result
    image = frames[0]
    for scan in scans[1:]:
        result.findings += _compare(case, scans[0], scan, f"channel {scan.file.name}")
    if label is not None:
        result.findings += _compare(case, scans[0], label, f"label {label.file.name}")
    code, tilt = orientation(image) if image.has_geometry else ("none", 0.0)
    if tilt > OBLIQUE:
        result.findings.append(Finding("note", "oblique", case.name, OBLIQUE_MESSAGE, f"{tilt:.1f} degrees"))
    axes = list(image.array_axes)
    positions, volumes = {}, {}
    if label is not None and label.frame is not None and label.frame.shape == image.shape:
        for value, index in label.labels.items():
            if value != 0:
                r, a, s = image.fraction(index)
                positions[value] = (float(r), float(a), float(s))
                if value not in label.cut:
                    volumes[value] = label.voxels[value] * float(np.prod(image.spacing)) / 1000
    result.one_slice = min(image.shape) == 1
    result.has_geometry = image.has_geometry
    result.summary = CaseSummary(
        name=case.name,
        split=case.split,
        orientation=code,
        oblique=tilt,
        shape=(image.shape[2], image.shape[1], image.shape[0]),
        spacing=_three(image.spacing[axes]),
        extent=_three(image.extent),
        positions=positions,
        volumes=volumes,
        stored=scans[0].stored if image.has_geometry else "",
    )
    return result


def _problems(case: Case, scan: CheckedFile, where: str = "") -> list[Finding]:
    return [
        Finding(severity, kind, case.name, where + text, detail)
        for severity, kind, text, detail in scan.problems
    ]


def _channel_findings(case: Case, scans: list[CheckedFile], channels: int) -> list[Finding]:
    """Numbers of channels that do not fit dataset.json or each other."""
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


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _choose_reader(dataset: RawDataset, findings: list[Finding]) -> str:
    """The reader nnU-Net will use: the one that dataset.json names, else the first that reads the first image."""
    from nnunetv2.imageio.reader_writer_registry import (
        recursive_find_reader_writer_by_name,
    )

    if dataset.reader not in (None, "None"):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                recursive_find_reader_writer_by_name(dataset.reader)
        except RuntimeError:
            message = f"nnU-Net knows no reader {dataset.reader!r} (overwrite_image_reader_writer)"
            findings.append(Finding("warning", "reader", None, message))
        else:
            return str(dataset.reader)
    candidates = readers_for(dataset.ending)
    first = next((case.images[0] for case in dataset.cases if case.images), None)
    if first is None:
        return candidates[0]
    for candidate in candidates:
        try:
            read_quietly([first], candidate)
        except BrokenFileError:  # of no reader's making
            break
        except Exception:  # the next reader may manage, as in nnU-Net
            continue
        if candidate != candidates[0]:
            message = (
                f"{candidates[0]} cannot read {first.name}, so nnU-Net will read every case with {candidate}"
            )
            findings.append(Finding("note", "reader", None, message))
        return candidate
    # meant for this reader; the check of the case says what is wrong with its voxel size
    tiff = "Tiff3DIO" in candidates and tiff_spacing_file(first, segmentation=False).is_file()
    return "Tiff3DIO" if tiff else candidates[0]


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
    """The geometry of a case's second file against its first image; errors where nnU-Net refuses the case."""
    if image.frame is None or other.frame is None:
        return []
    one, two = image.frame, other.frame
    if one.shape != two.shape:
        sizes = f"{one.shape[::-1]} voxels (x, y, z) and {two.shape[::-1]}"
        return [Finding("error", "mismatch", case.name, f"image and {name} differ in size: {sizes}")]
    findings = []
    # as in nnU-Net, which compares channels with the first one but images with the label: 1e-5 of either
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
    readable = [(case, case.summary.name) for case in checked if case.summary is not None]
    flat = [name for case, name in readable if case.one_slice]
    if flat and len(flat) == len(cases):
        findings.append(Finding("note", "one slice", None, "every scan has one slice: a 2D dataset"))
    else:
        message = "the scan has one slice only along an axis"
        findings += [Finding("warning", "one slice", name, message) for name in flat]
    bare = [name for case, name in readable if not case.has_geometry]
    message = "the file format carries no position in the patient: location follows the array axes"
    if bare and len(bare) == len(cases):
        findings.append(Finding("note", "no geometry", None, message))
    else:
        findings += [Finding("warning", "no geometry", name, message) for name in bare]
    if len({case.orientation for case in cases} - {"none"}) > 1:
        message = (
            "scans are stored in several orientations: their coordinates agree all the same, but the network sees "
            "the anatomy turned or mirrored accordingly"
        )
        findings.append(Finding("note", "orientations", None, message))
    findings += outliers(cases, dataset.labels)
    findings += side_findings(cases, dataset.labels)
    return findings


def _absent_labels(checked: list[CheckedCase], dataset: RawDataset) -> list[Finding]:
    """A class without a voxel is trained on, and its Dice is nan: worth a note if labels could be read at all."""
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
    doubtful = {finding.case for finding in displaced}
    seen = {case.name for case in cases if case.positions}
    findings = []
    for item in unusual_grids([_grid(case) for case in cases]):
        severity, message = "warning", item.message
        if item.kind == "direction" and item.case in seen - doubtful:
            # the header tells the truth about this scan if its organs lie where they lie elsewhere
            severity, message = "note", f"{message} Its labels lie where they do in other cases."
        findings.append(Finding(severity, item.kind, item.case, message))
    return findings + displaced + list(_volumes(cases, labels))


def _grid(case: CaseSummary) -> Grid:
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(Grid)}
    if not case.stored or case.stored == case.orientation:
        return Grid(**fields)
    # the reader turned the scan: the order of the file's own axes is what a broken header gives away
    axes = {letter: index for index, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
    along = {axes[letter]: number for letter, number in zip(case.orientation, case.shape, strict=True)}
    shape = tuple(along[axes[letter]] for letter in case.stored)
    return Grid(**{**fields, "orientation": case.stored, "shape": shape})


def _displaced(cases: list[CaseSummary], labels: dict[int, str]) -> Iterator[Finding]:
    """Labels far from where they lie in all other cases: the usual sign of a wrong direction matrix."""
    far: dict[tuple[str, int], list[str]] = {}
    for value, name in labels.items():
        having = [case for case in cases if value in case.positions]
        if len(having) < FEWEST_CASES:
            continue
        positions = np.array([case.positions[value] for case in having])
        median, deviation = robust(positions)
        limit = np.maximum(POSITION_DISTANCE, POSITION_DEVIATIONS * deviation)
        for case, position in zip(having, positions, strict=True):
            for axis in map(int, np.flatnonzero(np.abs(position - median) > limit)):
                text = f"{name} at {position[axis]:+.2f} (elsewhere {median[axis]:+.2f})"
                far.setdefault((case.name, axis), []).append(text)
    for (case_name, axis), texts in far.items():
        yield Finding(
            "warning",
            "position",
            case_name,
            f"labels lie far from where they are in other cases, {PATIENT_AXES[axis]} as a fraction of the volume: "
            f"{', '.join(texts[:3])}{f' and {len(texts) - 3} more' if len(texts) > 3 else ''}. "
            "Is the direction right, or does the scan show more or less of the body?",
        )


def _volumes(cases: list[CaseSummary], labels: dict[int, str]) -> Iterator[Finding]:
    """A wrong voxel size makes organs too large or too small; the label that varies least is the measure."""
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
