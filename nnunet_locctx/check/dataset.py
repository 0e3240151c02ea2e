"""Checks a whole raw dataset: every file by itself, a case's files against each other, cases against the dataset."""

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_locctx.check.files import Case, RawDataset, list_dataset
from nnunet_locctx.check.outliers import outliers
from nnunet_locctx.check.report import CaseSummary, DatasetReport, Finding
from nnunet_locctx.check.scan import (
    SAME_PLACE_VOXELS,
    Scan,
    orientation,
    read_scan,
)
from nnunet_locctx.geometry import corner_distance
from nnunet_locctx.nnunet.reading import read_quietly, readers_for
from nnunet_locctx.nnunet.workers import map_in_workers


@dataclass
class CheckedCase:
    """What one case gave: findings, and its geometry if it could be read."""

    findings: list[Finding] = field(default_factory=list)
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
    reader = _choose_reader(dataset, findings)
    bar = tqdm(total=len(dataset.cases), desc="reading scans", unit="case", disable=not progress, leave=False)
    checked = []
    with bar:
        for case in _check_cases(dataset, reader, processes):
            checked.append(case)
            bar.update()
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
    scans = [read_scan(file, reader, segmentation=False) for file in case.images]
    label = read_scan(case.label, reader, segmentation=True) if case.label is not None else None
    for channel, scan in enumerate(scans):
        where = f"channel {channel:04d}: " if len(scans) > 1 else ""
        result.findings += [
            Finding(severity, kind, case.name, where + text) for severity, kind, text in scan.problems
        ]
    found = sum(scan.channels for scan in scans)
    if all(scan.readable for scan in scans) and found != channels:
        message = f"{found} image channels found, dataset.json lists {channels}"
        result.findings.append(Finding("error", "channels", case.name, message))
    frames = [scan.frame for scan in scans if scan.frame is not None]
    if label is not None:
        result.findings += [
            Finding(severity, kind, case.name, text) for severity, kind, text in label.problems
        ]
        result.findings += _label_findings(case, label, labels)
    if not frames:
        return result
    image = frames[0]
    for number, scan in enumerate(scans[1:], start=1):
        result.findings += _compare(case, scans[0], scan, f"channel {number:04d}")
    if label is not None:
        result.findings += _compare(case, scans[0], label, "the label")
    code, tilt = orientation(image) if image.has_geometry else ("none", 0.0)
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
            findings.append(
                Finding(
                    "warning",
                    "reader",
                    None,
                    f"nnU-Net knows no reader {dataset.reader!r} (overwrite_image_reader_writer)",
                )
            )
        else:
            return str(dataset.reader)
    candidates = readers_for(dataset.ending)
    first = next((case.images[0] for case in dataset.cases if case.images), None)
    if first is None:
        return candidates[0]
    for candidate in candidates:
        try:
            read_quietly([first], candidate)
        except Exception:  # the next reader may manage, as in nnU-Net
            continue
        if candidate != candidates[0]:
            message = (
                f"{candidates[0]} cannot read {first.name}, so nnU-Net will read every case with {candidate}"
            )
            findings.append(Finding("note", "reader", None, message))
        return candidate
    return candidates[0]


def _check_cases(dataset: RawDataset, reader: str, processes: int) -> Iterator[CheckedCase]:
    check = functools.partial(check_case, reader=reader, channels=dataset.channels, labels=dataset.labels)
    yield from map_in_workers(check, dataset.cases, processes)


def _label_findings(case: Case, label: Scan, labels: dict[int, str]) -> list[Finding]:
    findings = []
    unknown = sorted(set(label.labels) - set(labels))
    if unknown:
        numbers = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
        findings.append(
            Finding(
                "error", "label value", case.name, f"label values that dataset.json does not list: {numbers}"
            )
        )
    if label.constant == 0:
        findings.append(Finding("note", "no foreground", case.name, "the label has no foreground"))
    return findings


def _compare(case: Case, image: Scan, other: Scan, name: str) -> list[Finding]:
    """The geometry of a case's second file against its first image."""
    if image.frame is None or other.frame is None:
        return []
    one, two = image.frame, other.frame
    if one.shape != two.shape:
        sizes = f"{one.shape[::-1]} voxels (x, y, z) and {two.shape[::-1]}"
        return [Finding("error", "mismatch", case.name, f"image and {name} differ in size: {sizes}")]
    if not np.allclose(one.spacing, two.spacing, rtol=1e-3):
        sizes = f"{np.round(one.spacing[::-1], 4).tolist()} mm (x, y, z) and {np.round(two.spacing[::-1], 4).tolist()}"
        return [Finding("error", "mismatch", case.name, f"image and {name} differ in voxel size: {sizes}")]
    if one.has_geometry and two.has_geometry:
        distance = corner_distance(one, two)
        if distance > SAME_PLACE_VOXELS:
            codes = orientation(one)[0], orientation(two)[0]
            turned = f", orientations {codes[0]} and {codes[1]}" if codes[0] != codes[1] else ""
            message = f"image and {name} lie at different places (corners up to {distance:.1f} voxels apart{turned})"
            return [Finding("warning", "mismatch", case.name, message)]
    return []


def _dataset_findings(
    checked: list[CheckedCase], cases: list[CaseSummary], dataset: RawDataset
) -> list[Finding]:
    findings = []
    flat = [case for case in checked if case.summary is not None and case.one_slice]
    if flat and len(flat) == len(cases):
        findings.append(Finding("note", "one slice", None, "every scan has one slice: a 2D dataset"))
    else:
        findings += [
            Finding("warning", "one slice", case.summary.name, "the scan has one slice only along an axis")
            for case in flat
            if case.summary is not None
        ]
    bare = [case for case in checked if case.summary is not None and not case.has_geometry]
    if bare:
        message = "the file format carries no position in the patient: location follows the array axes"
        if len(bare) == len(cases):
            findings.append(Finding("note", "no geometry", None, message))
        else:
            findings += [
                Finding("warning", "no geometry", case.summary.name, message) for case in bare if case.summary
            ]
    if len({case.orientation for case in cases} - {"none"}) > 1:
        findings.append(
            Finding(
                "note",
                "orientations",
                None,
                "scans are stored in several orientations: their coordinates agree all the same, but the network sees "
                "the anatomy turned or mirrored accordingly",
            )
        )
    findings += outliers(cases, dataset.labels)
    return findings
