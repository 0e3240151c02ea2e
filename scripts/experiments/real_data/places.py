"""Where labelled structures of two real datasets lie, and what location alone tells; hippocampus.yaml trains on one.

* Dataset201_HippocampusMR, 195 MR crops: coordinates of its two parts; the label that is most frequent at each place,
  counted on the training cases of fold 0, as a segmentation of the others; how often a training's validation takes one
  part for the other (`--validation`).
* Dataset203_TotalSegCT, one CT: left structures must lie left and vertebrae ever higher.

    python -m scripts.experiments.real_data.places --data ../shared/data
    python -m scripts.experiments.real_data.places --data ../shared/data --validation .../fold_0/validation

Writes places.json beside it.
"""

import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame
from scripts.benchmarks.harness import REPOSITORY, Record, describe_machine, described_parser, say

HIPPOCAMPUS, TOTALSEG = "Dataset201_HippocampusMR", "Dataset203_TotalSegCT"
PARTS = ("anterior", "posterior")
"""Of the hippocampus, labels 1 and 2."""
FOLDS, SEED = 5, 12345
"""Of nnU-Net's own split."""

Centre = dict[str, list[float]]
"""``fraction`` (R, A, S) of the volume and ``mm`` (R, A, S) relative to its centre."""

SPINE = tuple(f"vertebrae_{name}" for name in ("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9"))
"""From below upwards. (Ribs are no such ladder: they hang down, and the field of view cuts the upper ones.)"""


class PlaceError(RuntimeError):
    """Something does not lie where it must; the message says what was seen."""


class Scan:
    """A labelled NIfTI file as nnU-Net's reader gives it, and where its voxels lie.

    Attributes:
        array: (z, y, x) labels.
        frame: Their position in the patient.
        orientation: The directions in which x, y and z grow, such as ``"RAS"``.
        spacing_xyz: Voxel size in mm.
    """

    def __init__(self, file: Path) -> None:
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        data, properties = SimpleITKIO().read_seg(str(file))
        self.file = file
        self.array: npt.NDArray[Any] = data[0]
        self.frame = Frame.as_read(properties, self.array.shape)
        stuff = properties["sitk_stuff"]
        self.orientation = str(
            sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(stuff["direction"])
        )
        self.spacing_xyz = [round(float(size), 6) for size in stuff["spacing"]]

    def centroid(self, label: int) -> npt.NDArray[np.float64]:
        """(3,) mean index (z, y, x) of a label's voxels.

        Raises:
            PlaceError: There is none.
        """
        found = np.argwhere(self.array == label)
        if not len(found):
            raise PlaceError(f"{self.file.name} has no voxel of label {label}")
        return np.asarray(found.mean(0))


def read_labels(file: Path) -> npt.NDArray[np.int64]:
    """(z, y, x) labels of a file."""
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), dtype=np.int64)


def side_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """(left, right) names of the structures that are there on both sides."""
    names = list(names)
    pairs = []
    for name in names:
        other = re.sub(r"(^|_)left(_|$)", r"\1right\2", name)
        if other != name and other in names:
            pairs.append((name, other))
    return pairs


def positions(scan: Scan, labels: Mapping[str, int]) -> dict[str, Centre]:
    """Centroid of every structure that has voxels.

    Raises:
        PlaceError: The millimetres are not those that SimpleITK gives.
    """
    image = sitk.ReadImage(str(scan.file))
    present = {int(value) for value in np.unique(scan.array)}
    found: dict[str, Centre] = {}
    for name, label in labels.items():
        if label == 0 or label not in present:
            continue
        index = scan.centroid(label)
        lps = scan.frame.millimetres(index)
        reference = image.TransformContinuousIndexToPhysicalPoint([float(at) for at in index[::-1]])
        if not np.allclose(lps, reference, rtol=0, atol=1e-3):
            raise PlaceError(f"{name} lies at {lps.tolist()} mm LPS, SimpleITK says {list(reference)}")
        found[name] = {
            "fraction": np.round(scan.frame.fraction(index), 4).tolist(),
            "mm": np.round(PATIENT_FROM_LPS @ (lps - scan.frame.centre), 2).tolist(),
        }
    return found


def check_sides(centres: Mapping[str, Centre]) -> list[tuple[str, str]]:
    """The (left, right) pairs, once each left member has been found left of its right one.

    Raises:
        PlaceError: One is not.
    """
    pairs = side_pairs(centres)
    for left, right in pairs:
        at = centres[left]["fraction"][0], centres[right]["fraction"][0]
        if not at[0] < at[1]:
            raise PlaceError(f"{left} has R = {at[0]}, {right} has R = {at[1]}; left must be the smaller one")
    return pairs


def check_spine(centres: Mapping[str, Centre]) -> list[str]:
    """The vertebrae that are there, once each has been found above the one before.

    Raises:
        PlaceError: One is not.
    """
    spine = [name for name in SPINE if name in centres]
    heights = [centres[name]["fraction"][2] for name in spine]
    if heights != sorted(heights):
        raise PlaceError(f"{', '.join(spine)} must lie ever higher, but have S = {heights}")
    return spine


class Atlas:
    """How often each label is found at each place of the volume: what location alone tells.

    Args:
        scans: Label files to count.
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
            index = np.clip(index, 0, np.array(scan.array.shape) - 1)
            found = scan.array[tuple(np.moveaxis(index, -1, 0))]
            for label in range(classes):
                self.counts[..., label] += found == label

    def segment(self, scan: Scan) -> npt.NDArray[np.int64]:
        """The most frequent label at the place of each voxel, (z, y, x); the scan's content is not looked at."""
        index = np.stack(np.meshgrid(*map(np.arange, scan.array.shape), indexing="ij"), axis=-1)
        cell = np.floor((scan.frame.fraction(index) + 0.5) * self.edge).astype(int)
        cell = np.clip(cell, 0, self.edge - 1)
        return np.asarray(self.counts[tuple(np.moveaxis(cell, -1, 0))].argmax(-1))


# ------------------------------------------------------------------------------------------------- the two datasets


def confusion(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> Record:
    """Dice of all parts taken together, and how often one is taken for another.

    Args:
        truth: Labels, 0 background.
        predicted: Labels of the same shape.

    Returns:
        ``whole_dice``, and ``swapped``: of the voxels that are foreground in both, the share with different labels.
        None where there are no such voxels.

    Raises:
        PlaceError: The shapes differ.
    """
    if truth.shape != predicted.shape:
        raise PlaceError(f"the prediction has the shape {predicted.shape}, its reference {truth.shape}")
    both = (truth > 0) & (predicted > 0)
    total = int((truth > 0).sum() + (predicted > 0).sum())
    return {
        "whole_dice": 2 * int(both.sum()) / total if total else None,
        "swapped": float((truth[both] != predicted[both]).mean()) if both.any() else None,
    }


def dice(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
    """Dice of two masks of one shape; nan if both are empty."""
    total = int(truth.sum()) + int(predicted.sum())
    return 2 * int((truth & predicted).sum()) / total if total else float("nan")


def first_fold(cases: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and validation cases of fold 0 of nnU-Net's own division."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    fold = generate_crossval_split(sorted(cases), seed=SEED, n_splits=FOLDS)[0]
    return [str(case) for case in fold["train"]], [str(case) for case in fold["val"]]


def hippocampus(folder: Path) -> Record:
    """Where the two parts lie in the coordinates of the source `voxel`, and the Dice of location alone."""
    scans = {
        file.name.removesuffix(".nii.gz"): Scan(file) for file in sorted(folder.glob("labelsTr/*.nii.gz"))
    }
    centres = np.array(
        [[scan.frame.fraction(scan.centroid(label)) for label in (1, 2)] for scan in scans.values()]
    )  # (cases, 2 parts, 3)
    train, val = first_fold(list(scans))
    atlas = Atlas((scans[name] for name in tqdm(train, desc="atlas", unit="case")), classes=3)
    scored = []
    for name in tqdm(val, desc="location alone", unit="case"):
        truth, found = scans[name].array, atlas.segment(scans[name])
        parts = [dice(truth == label, found == label) for label in (1, 2)]
        scored.append([*parts, statistics.fmean(parts), *confusion(truth, found).values()])
    return {
        "cases": len(scans),
        "orientations": sorted({scan.orientation for scan in scans.values()}),
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
    found = [
        confusion(read_labels(labels / file.name), read_labels(file))
        for file in sorted(predictions.glob("*.nii.gz"))
    ]
    if not found:
        raise PlaceError(f"{predictions} holds no segmentation (*.nii.gz)")
    means = {}
    for name in ("whole_dice", "swapped"):
        known = [one[name] for one in found if one[name] is not None]
        means[name] = round(statistics.fmean(known), 4) if known else None
    return {"cases": len(found), **means}


def totalseg(folder: Path) -> Record:
    """Orientation and coordinates of the CT's structures."""
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    scan = Scan(next(folder.glob("labelsTr/*.nii.gz")))
    centres = positions(scan, labels)
    return {
        "orientation": scan.orientation,
        "size_xyz": list(scan.array.shape[::-1]),
        "spacing_xyz": scan.spacing_xyz,
        "extent_ras": np.round(scan.frame.extent, 1).tolist(),
        "pairs": check_sides(centres),
        "spine": check_spine(centres),
        "centres": centres,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for; 1 where something does not lie where it must."""
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
