"""Measures the places of labelled structures in two real datasets, and a segmentation by location alone.

* Dataset201_HippocampusMR, 195 MR crops: coordinates of its two parts; a segmentation by the most frequent label at
  each place, counted on the training cases of fold 0; the confusion of the two parts in a training's validation
  (`--validation`). hippocampus.yaml trains on it.
* Dataset203_TotalSegCT, one CT: left structures must lie left and vertebrae ever higher.

    python -m scripts.experiments.real_data.places --data ../shared/data
    python -m scripts.experiments.real_data.places --data ../shared/data --validation .../fold_0/validation

Writes places.json beside the script.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from nnunet_locctx.check.scan import orientation
from nnunet_locctx.datasets.release import crossval_folds
from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import PATIENT_FROM_LPS
from nnunet_locctx.scan import Scan
from scripts.benchmarks.harness import REPOSITORY, Record, describe_machine, described_parser, say

HIPPOCAMPUS, TOTALSEG = "Dataset201_HippocampusMR", "Dataset203_TotalSegCT"
PARTS = ("anterior", "posterior")
"""Parts of the hippocampus, labels 1 and 2."""

Centre = dict[str, list[float]]
"""``fraction`` (R, A, S) of the volume and ``mm`` (R, A, S) relative to its centre."""

SPINE = tuple(f"vertebrae_{name}" for name in ("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9"))
"""Vertebrae from below upwards. (Ribs hang down, and the field of view cuts the upper ones.)"""


class PlaceError(RuntimeError):
    """A structure lies at a wrong place, which the message names."""


def centroid(scan: Scan, label: int) -> npt.NDArray[np.float64]:
    """(3,) mean index (z, y, x) of a label's voxels; NaN if there are none."""
    index = np.argwhere(scan.labels == label)
    return np.asarray(index.mean(axis=0)) if len(index) else np.full(3, np.nan)


def positions(scan: Scan, labels: Mapping[str, int]) -> dict[str, Centre]:
    """Centroid of every structure that has voxels."""
    present = set(np.unique(scan.labels).tolist())
    centres: dict[str, Centre] = {}
    for name, label in labels.items():
        if label == 0 or label not in present:
            continue
        index = centroid(scan, label)
        centres[name] = {
            "fraction": np.round(scan.frame.fraction(index), 4).tolist(),
            "mm": np.round(
                PATIENT_FROM_LPS @ (scan.frame.millimetres(index) - scan.frame.centre), 2
            ).tolist(),
        }
    return centres


def check_sides(centres: Mapping[str, Centre]) -> list[tuple[str, str]]:
    """The (left, right) pairs.

    Raises:
        PlaceError: A left member does not lie left of its right one.
    """
    pairs = list(find_pairs(list(centres)))
    for left, right in pairs:
        r_left, r_right = centres[left]["fraction"][0], centres[right]["fraction"][0]
        if not r_left < r_right:
            raise PlaceError(
                f"{left} has R = {r_left}, {right} has R = {r_right}; left must be the smaller one"
            )
    return pairs


def check_spine(centres: Mapping[str, Centre]) -> list[str]:
    """The vertebrae that the scan shows.

    Raises:
        PlaceError: One does not lie above the one before.
    """
    spine = [name for name in SPINE if name in centres]
    heights = [centres[name]["fraction"][2] for name in spine]
    if heights != sorted(heights):
        raise PlaceError(f"{', '.join(spine)} must lie ever higher, but have S = {heights}")
    return spine


class Atlas:
    """Counts of each label at each place of the volume, for a segmentation by location alone.

    Args:
        scans: Segmentations to count.
        classes: Number of labels, background included.
        edge: Cells per patient axis.
    """

    def __init__(self, scans: Iterable[Scan], classes: int, edge: int = 48) -> None:
        self.edge = edge
        centres = (np.arange(edge) + 0.5) / edge - 0.5
        cells = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1)
        self.counts = np.zeros((edge, edge, edge, classes), dtype=np.int64)
        for scan in scans:
            index = np.rint(scan.frame.index_from_fraction(cells)).astype(int)
            index = np.clip(index, 0, np.array(scan.frame.shape) - 1)
            labels = scan.labels[tuple(np.moveaxis(index, -1, 0))]
            for label in range(classes):
                self.counts[..., label] += labels == label

    def segment(self, scan: Scan) -> npt.NDArray[np.int64]:
        """The most frequent label at the place of each voxel, (z, y, x), regardless of the scan's content."""
        index = np.stack(np.meshgrid(*map(np.arange, scan.frame.shape), indexing="ij"), axis=-1)
        cell = np.floor((scan.frame.fraction(index) + 0.5) * self.edge).astype(int)
        cell = np.clip(cell, 0, self.edge - 1)
        return np.asarray(self.counts[tuple(np.moveaxis(cell, -1, 0))].argmax(-1))


# ------------------------------------------------------------------------------------------------- the two datasets


def dice(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
    """Dice of two masks of one shape; nan if both are empty."""
    total = int(truth.sum()) + int(predicted.sum())
    return 2 * int((truth & predicted).sum()) / total if total else float("nan")


def confusion(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> tuple[float, float]:
    """Dice of all parts together, and the share of different labels among the voxels that are foreground in both (z, y,
    x) segmentations (nan without such voxels).

    Raises:
        PlaceError: The shapes differ.
    """
    if truth.shape != predicted.shape:
        raise PlaceError(f"the prediction has the shape {predicted.shape}, its reference {truth.shape}")
    both = (truth > 0) & (predicted > 0)
    swapped = float((truth[both] != predicted[both]).mean()) if both.any() else float("nan")
    return dice(truth > 0, predicted > 0), swapped


def hippocampus(folder: Path) -> Record:
    """Where the two parts lie in the coordinates of the source `voxel`, and the Dice of location alone."""
    files = {file.name.removesuffix(".nii.gz"): file for file in sorted(folder.glob("labelsTr/*.nii.gz"))}
    scans = {name: Scan.read(file) for name, file in files.items()}
    # (cases, 2 parts, 3)
    centres = np.array(
        [[scan.frame.fraction(centroid(scan, label)) for label in (1, 2)] for scan in scans.values()]
    )
    fold = crossval_folds(list(scans))[0]
    atlas = Atlas((scans[name] for name in tqdm(fold["train"], desc="atlas", unit="case")), classes=3)
    scored = []
    for name in tqdm(fold["val"], desc="location alone", unit="case"):
        truth, guess = scans[name].labels, atlas.segment(scans[name])
        parts = [dice(truth == label, guess == label) for label in (1, 2)]
        scored.append([*parts, statistics.fmean(parts), *confusion(truth, guess)])
    return {
        "cases": len(scans),
        "orientations": sorted({orientation(scan.frame)[0] for scan in scans.values()}),
        "mean": dict(zip(PARTS, np.round(centres.mean(0), 3).tolist(), strict=True)),
        "sd": dict(zip(PARTS, np.round(centres.std(0, ddof=1), 3).tolist(), strict=True)),
        "anterior_lies_ahead": int((centres[:, 0, 1] > centres[:, 1, 1]).sum()),
        "location_alone": {
            name: round(float(value), 4)
            for name, value in zip((*PARTS, "mean", "whole", "swapped"), np.mean(scored, axis=0), strict=True)
        },
    }


def validation(predictions: Path, labels: Path) -> Record:
    """Dice of both parts together and share of swapped voxels, means over the segmentations of a folder."""
    scored = [
        confusion(Scan.read(labels / file.name).labels, Scan.read(file).labels)
        for file in sorted(predictions.glob("*.nii.gz"))
    ]
    if not scored:
        raise PlaceError(f"{predictions} holds no segmentation (*.nii.gz)")
    overlaps, swapped = zip(*scored, strict=True)
    return {
        "cases": len(scored),
        "whole_dice": round(float(np.nanmean(overlaps)), 4),
        "swapped": round(float(np.nanmean(swapped)), 4),
    }


def totalseg(folder: Path) -> Record:
    """Orientation and coordinates of the CT's structures."""
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    scan = Scan.read(next(folder.glob("labelsTr/*.nii.gz")))
    centres = positions(scan, labels)
    return {
        "orientation": orientation(scan.frame)[0],
        "size_xyz": list(scan.frame.shape[::-1]),
        "spacing_xyz": np.round(scan.frame.spacing[::-1], 6).tolist(),
        "extent_ras": np.round(scan.frame.extent, 1).tolist(),
        "pairs": check_sides(centres),
        "spine": check_spine(centres),
        "centres": centres,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the record; returns 1 if a structure lies at a wrong place."""
    parser = described_parser(__doc__)
    data = REPOSITORY.parent / "shared" / "data"
    parser.add_argument(
        "--data", type=Path, default=data, help="folder of the raw datasets (default: %(default)s)"
    )
    parser.add_argument(
        "--validation", type=Path, nargs="+", default=[], metavar="FOLDER", help="only score these"
    )
    parser.add_argument("--out", type=Path, help="folder that takes places.json (default: the script's own)")
    options = parser.parse_args(arguments)
    for name in (HIPPOCAMPUS, TOTALSEG):
        if not (options.data / name / "dataset.json").is_file():
            parser.error(f"no dataset {name} in {options.data}; give the folder that holds it with --data")
    try:
        if options.validation:
            for folder in options.validation:
                say(f"{folder}: {validation(folder, options.data / HIPPOCAMPUS / 'labelsTr')}")
            return 0
        record = {
            "machine": describe_machine("cpu"),
            "hippocampus": hippocampus(options.data / HIPPOCAMPUS),
            "totalseg": totalseg(options.data / TOTALSEG),
        }
    except PlaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    out = options.out or Path(__file__).resolve().parent
    write_atomically(out / "places.json", (json.dumps(record, indent=1) + "\n").encode())
    say(f"written: {out / 'places.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
