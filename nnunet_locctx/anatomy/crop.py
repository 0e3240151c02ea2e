"""Crops scans to the region of the body in which chosen labels lie, and reports the share that was kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_locctx.anatomy.region import Blocks, Example, Region, StoredRegion, Voxel, fingerprint, fit_region
from nnunet_locctx.anatomy.scans import ScanFiles, measure_scan, read_labels
from nnunet_locctx.files import replacing, write_atomically
from nnunet_locctx.image_files import check_whole, explain, write_sitk
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.regression.regressor import Regressor

REPORT = "crop.json"
REGION = "region.npz"
"""Files of the folder of crops: the report, and the region, for new scans."""


@dataclass(frozen=True)
class ScanGroup:
    """Scans of one folder.

    Attributes:
        images: Name of the folder that the cropped images go to.
        labels: Name of that of the cropped segmentations.
        scans: The cases.
        teaches: Whether their segmentations help to make the region.
    """

    images: str
    labels: str
    scans: Sequence[ScanFiles]
    teaches: bool = True


@dataclass(frozen=True)
class MeasuredScan:
    """A case with its map, and where its labels are."""

    group: ScanGroup
    files: ScanFiles
    map: AnatomicalMap
    blocks: Blocks
    example: Example | None


@dataclass(frozen=True)
class ScanCrop:
    """The crop of one case.

    Attributes:
        case: Its name.
        folder: Folder of the cropped images.
        size: Voxels before, in the file's order (x, y, z).
        first: First voxel kept.
        cropped: Voxels after, None if it was not written.
        recall_left_out: Share of the labels' voxels that a region made from the other scans would have kept; None
            without labels.
        recall: Share of the labels' voxels that was kept.
        problem: The reason why no crop was written.
    """

    case: str
    folder: str
    size: Voxel
    first: Voxel | None = None
    cropped: Voxel | None = None
    recall_left_out: float | None = None
    recall: float | None = None
    problem: str = ""

    @property
    def written(self) -> bool:
        """Whether a crop was written."""
        return self.cropped is not None

    @property
    def reduction(self) -> float | None:
        """Voxels before per voxel after."""
        return None if self.cropped is None else float(np.prod(self.size) / np.prod(self.cropped))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "case": self.case,
            "size_xyz": self.size,
            "first_voxel_xyz": self.first,
            "cropped_size_xyz": self.cropped,
            "volume_reduction": self.reduction,
            "recall_left_out": self.recall_left_out,
            "recall": self.recall,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class CropReport:
    """The crops of all cases.

    Attributes:
        labels: Values of each label to be kept.
        target: Recall aimed at.
        width: The region's, mm.
        recall: Label -> recall, mean over the scans that have it, each with a region made from the others.
        crops: One per case.
    """

    labels: dict[str, Sequence[int]]
    target: float
    width: float
    recall: dict[str, float]
    crops: list[ScanCrop] = field(default_factory=list)

    @property
    def reduction(self) -> float | None:
        """Voxels before per voxel after, over all crops written."""
        pairs = [(crop.size, crop.cropped) for crop in self.crops if crop.cropped is not None]
        if not pairs:
            return None
        return sum(int(np.prod(size)) for size, _ in pairs) / sum(int(np.prod(kept)) for _, kept in pairs)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "labels": {name: list(values) for name, values in self.labels.items()},
            "recall_target": self.target,
            "region_width_mm": self.width,
            "recall_left_out": self.recall,
            "volume_reduction": self.reduction,
            "scans": [crop.to_dict() for crop in self.crops],
        }


def crop_scans(
    groups: Sequence[ScanGroup],
    regressor: Regressor,
    labels: Mapping[str, Sequence[int]],
    folder: Path,
    *,
    recall: float = 0.99,
    region: StoredRegion | None = None,
    dataset: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> CropReport:
    """Crops scans, and their segmentations, to the box around the region in which labels lie.

    The region is made from the scans that have a segmentation, wide enough for the recall, see
    :func:`~nnunet_locctx.anatomy.region.fit_region`. Scans that do not show it or cannot be measured are
    reported and not written. Everything is read and checked before the first file is written. The crops are written to
    a hidden folder beside `folder`, which takes its place at the end: a run that was stopped leaves no part of a
    folder.

    Args:
        groups: The scans; folders of one name per group.
        regressor: Fitted anatomical regressor.
        labels: Values of each label to be kept.
        folder: New or empty folder to write to.
        recall: Share of each label's voxels that must be kept, see :func:`~nnunet_locctx.anatomy.region.fit_region`.
        region: An existing region, by which all scans are cropped; it has its own `labels` and `recall`.
        dataset: Content of dataset.json, written with the new number of training cases.
        progress: Show progress bars on stderr.

    Raises:
        ValueError: The folder is not empty, a file is not usable, or the labelled scans do not suffice.
        OSError: Something could not be written, such as for lack of space.
    """
    folder = Path(folder).resolve()
    if folder.is_mount():
        raise ValueError(f"{folder} is a mount point; crops take the place of a folder, such as one in it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; crops go to a folder of their own")
    cases = [(group, scan) for group in groups for scan in group.scans]
    if region is not None:
        labels = region.labels
    elif not any(scan.label for group, scan in cases if group.teaches):
        raise ValueError("none of the scans has a segmentation, from which the region could be made")
    for _, scan in cases:
        check_headers(scan)
    measured = [
        measure_case(group, scan, regressor, labels)
        for group, scan in tqdm(cases, desc="measuring", unit="scan", disable=not progress, leave=False)
    ]
    if region is None:
        region = StoredRegion(_fit(measured, labels, recall), labels, recall, fingerprint(regressor))
    with replacing(folder) as staging:
        staging.mkdir(parents=True)
        crops = [
            crop_case(scan, region.region, staging)
            for scan in tqdm(measured, desc="cropping", unit="scan", disable=not progress, leave=False)
        ]
        report = CropReport(
            dict(labels), region.target, region.region.width, dict(region.region.recall), crops
        )
        write_atomically(staging / REGION, region.to_bytes())
        if dataset is not None:
            first = groups[0]
            written = sum(crop.written and crop.folder == first.images for crop in crops)
            content = {key: value for key, value in dataset.items() if key != "dataset"}
            text = json.dumps({**content, "numTraining": written}, indent=4) + "\n"
            write_atomically(staging / "dataset.json", text.encode())
        write_atomically(staging / REPORT, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    return report


def _fit(measured: Sequence[MeasuredScan], labels: Mapping[str, Sequence[int]], recall: float) -> Region:
    examples = [scan.example for scan in measured if scan.example is not None and scan.group.teaches]
    try:
        return fit_region(examples, list(labels), recall)
    except ValueError as error:
        reasons = [
            f"{scan.files.name} could not: {scan.map.problem}" for scan in measured if scan.map.problem
        ]
        raise ValueError("; ".join([str(error), *reasons[:5]])) from error


def check_headers(scan: ScanFiles) -> None:
    """Raises ValueError if a file of a case is not whole, SimpleITK cannot read it, or the files differ in size."""
    sizes = {}
    for file in scan.files:
        check_whole(file)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise ValueError(f"SimpleITK, which crops, cannot read {file}: {explain(error)}") from error
        sizes[file] = reader.GetSize()
        if len(sizes[file]) != 3:
            raise ValueError(f"{file} must be a volume with three axes, its size is {sizes[file]}")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{file.name} {size}" for file, size in sizes.items())
        raise ValueError(f"the files of the case {scan.name} differ in size (x, y, z): {listed}")


def measure_case(
    group: ScanGroup, scan: ScanFiles, regressor: Regressor, labels: Mapping[str, Sequence[int]]
) -> MeasuredScan:
    """Reads a case and measures it."""
    scan_map, frame = measure_scan(scan.file_of(regressor.channel), regressor)
    example = None
    if scan.label is not None:
        segmentation = read_labels(scan.label, frame)
        if not scan_map.problem:
            example = Example.of(scan.name, scan_map, frame, segmentation, labels)
    return MeasuredScan(group, scan, scan_map, Blocks.of(frame), example)


def crop_case(scan: MeasuredScan, region: Region, folder: Path) -> ScanCrop:
    """Writes the crops of a case's files."""
    z, y, x = scan.blocks.frame.shape
    size = (x, y, z)
    name, images = scan.files.name, scan.group.images
    if scan.map.problem:
        return ScanCrop(name, images, size, problem=f"could not be measured: {scan.map.problem}")
    box = region.box(scan.map, scan.blocks)
    example = scan.example if scan.example is not None and scan.example.labels else None
    left_out = None
    if example is not None and name in region.left_out:
        left_out = example.recall_of_all(region.left_out[name])
    if box is None:
        return ScanCrop(name, images, size, recall_left_out=left_out, problem="does not show the region")
    # files are z, y, x as arrays
    lower, upper = (voxel[::-1] for voxel in box.voxels(scan.blocks))
    for file, target in scan.files.raw_names(images, scan.group.labels).items():
        crop_file(file, folder / target, lower, upper)
    return ScanCrop(
        case=name,
        folder=images,
        size=size,
        first=lower,
        cropped=(upper[0] - lower[0], upper[1] - lower[1], upper[2] - lower[2]),
        recall_left_out=left_out,
        recall=None if example is None else example.recall_of_all(box),
    )


def crop_file(file: Path, target: Path, first: Voxel, stop: Voxel) -> None:
    """Crops one file to the voxels from `first` to before `stop`, in the file's order (x, y, z)."""
    size = [last - at for at, last in zip(first, stop, strict=True)]
    cropped = sitk.RegionOfInterest(sitk.ReadImage(str(file)), size, list(first))
    write_sitk(cropped, target)


def format_report(report: CropReport) -> str:
    """The report as text: a line for each case, then the labels, then all cases together."""
    rows = []
    for crop in report.crops:
        smaller = "-" if crop.reduction is None else f"{crop.reduction:.1f} x"
        recalls = _share(crop.recall_left_out), _share(crop.recall)
        rows.append((crop.case, _size(crop.size), _size(crop.cropped), smaller, *recalls))
    columns = ["case", "size", "cropped", "smaller", "recall left out", "recall"]
    lines = pd.DataFrame(rows, columns=columns).to_string(index=False).splitlines()
    lines.append("")
    for crop in report.crops:
        if crop.problem:
            lines.append(f"not written: {crop.case} {crop.problem}")
    for label, recall in report.recall.items():
        lines.append(f"{label}: recall {recall:.4f} in scans left out (target {report.target:g})")
    written = sum(crop.written for crop in report.crops)
    total = "" if report.reduction is None else f", {report.reduction:.1f} times fewer voxels"
    lines.append(
        f"{written} of {len(report.crops)} scans written{total}; region {report.width:g} mm wide of the labels"
    )
    return "\n".join(lines)


def _size(size: Voxel | None) -> str:
    return "-" if size is None else " x ".join(map(str, size))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
