"""What cropping kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


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
        recall: Share that was kept.
        problem: Why it was not written.
    """

    case: str
    folder: str
    size: tuple[int, int, int]
    first: tuple[int, int, int] | None = None
    cropped: tuple[int, int, int] | None = None
    recall_left_out: float | None = None
    recall: float | None = None
    problem: str = ""

    @property
    def written(self) -> bool:
        """Whether there is a crop."""
        return self.cropped is not None

    @property
    def reduction(self) -> float | None:
        """Voxels before per voxel after."""
        return None if self.cropped is None else float(np.prod(self.size) / np.prod(self.cropped))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "case": self.case,
            "folder": self.folder,
            "size_xyz": list(self.size),
            "first_voxel_xyz": None if self.first is None else list(self.first),
            "cropped_size_xyz": None if self.cropped is None else list(self.cropped),
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
        recall: Of each label, mean over the scans that have it, each with a region made from the others.
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
        written = [crop for crop in self.crops if crop.cropped is not None]
        if not written:
            return None
        after = sum(int(np.prod(crop.cropped)) for crop in written if crop.cropped is not None)
        return sum(int(np.prod(crop.size)) for crop in written) / after

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


def format_report(report: CropReport) -> str:
    """As text: a line per case, then the labels, then the whole."""
    rows = [("case", "size", "cropped", "smaller", "recall left out", "recall")]
    for crop in report.crops:
        rows.append(
            (
                crop.case,
                _size(crop.size),
                _size(crop.cropped) if crop.cropped is not None else "-",
                "-" if crop.reduction is None else f"{crop.reduction:.1f} x",
                _share(crop.recall_left_out),
                _share(crop.recall),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.append("")
    for crop in report.crops:
        if crop.problem:
            lines.append(f"not written: {crop.case} {crop.problem}")
    for label, recall in report.recall.items():
        lines.append(f"{label}: recall {recall:.4f} in scans left out (wanted {report.target:g})")
    written = sum(crop.written for crop in report.crops)
    total = "" if report.reduction is None else f", {report.reduction:.1f} times fewer voxels"
    lines.append(
        f"{written} of {len(report.crops)} scans written{total}; region {report.width:g} mm wide of the labels"
    )
    return "\n".join(lines)


def _size(size: tuple[int, int, int]) -> str:
    return " x ".join(map(str, size))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
