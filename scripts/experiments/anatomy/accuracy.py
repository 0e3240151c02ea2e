"""Measures how well a fitted regressor finds landmarks and organ boxes in scans, given a few labelled ones.

    python -m scripts.experiments.anatomy.accuracy -d 3 --labels liver spleen pancreas -o accuracy.csv

The study of Goncharov et al. (MICCAI 2024, arXiv:2409.10291) on any dataset with segmentations: each labelled scan in
turn is the new one, and 1, 3 and 5 others (`--labelled-scans`) are known. A landmark is an organ's centroid. The
baseline needs no regressor: it takes the same fraction of the scan. More: docs/how-to/anatomy.md.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from nnunet_locctx.anatomy import LabelledScan, find_landmarks, localize, sample_organs
from nnunet_locctx.anatomy.scans import (
    ScanFiles,
    label_values,
    list_scans,
    list_training,
    load_anatomical,
    measure_scan,
    read_labels,
)
from nnunet_locctx.commands.common import add_regressor, check_output
from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.names import check_known
from nnunet_locctx.nnunet.data.paths import dataset_folder
from nnunet_locctx.regression.regressor import Regressor
from nnunet_locctx.values import check_integer
from scripts.benchmarks.harness import Record, described_parser, table

MOST_VOXELS = 5000
"""Largest number of an organ's voxels that are drawn to measure its share in a box."""

METHODS = ("anatomical", "fraction of the scan")

MEASURES = {
    "landmark_mm": ("landmark, mm (median)", "median", 1),
    "face_mm": ("box faces, mm (median)", "median", 1),
    "overlap": ("box overlap (mean)", "mean", 2),
    "recall": ("organ in the box (mean)", "mean", 2),
}
"""Column -> heading, statistic over the cases, digits. The columns: distance of the centroid from the true one; mean
distance of the box's faces from the true ones; intersection of the boxes over their union; share of the organ in the
box."""


@dataclass(frozen=True)
class Organ:
    """An organ that a scan shows completely.

    Attributes:
        centroid: (3,) mm LPS.
        faces: (2, 3) index of its box's lower and upper faces; the scan's first face is at -0.5.
        voxels: (N, 3) index of some of its voxels.
    """

    centroid: Array
    faces: Array
    voxels: Array


@dataclass(frozen=True)
class Scan:
    """A labelled scan, and the whole organs that it shows."""

    labelled: LabelledScan
    frame: Frame
    organs: Mapping[str, Organ]


def read_scan(files: ScanFiles, regressor: Regressor, values: Mapping[str, Sequence[int]]) -> Scan | None:
    """A labelled scan; None if it cannot be measured."""
    assert files.label is not None
    scan_map, frame = measure_scan(files.file_of(regressor.channel), regressor)
    if scan_map.problem:
        return None
    labels = read_labels(files.label, frame)
    samples = sample_organs(labels, frame, values)
    whole = {name: sample for name, sample in samples.items() if not sample.cut}
    random = np.random.default_rng(0)
    organs = {}
    for name in whole:
        index = np.argwhere(np.isin(labels, list(values[name])))
        drawn = random.choice(len(index), min(MOST_VOXELS, len(index)), replace=False)
        faces = np.stack([index.min(axis=0) - 0.5, index.max(axis=0) + 0.5])
        organs[name] = Organ(frame.millimetres(index.mean(axis=0)), faces, index[drawn].astype(np.float64))
    return Scan(LabelledScan(files.name, scan_map, whole), frame, organs)


def carried_over(known: Scan, new: Scan) -> dict[str, dict[str, tuple[Array, Array]]]:
    """Method -> organ -> centroid (mm LPS) and faces (index) in the new scan."""
    names = list(known.organs)
    if not names:
        return {method: {} for method in METHODS}
    centroids = np.stack([known.organs[name].centroid for name in names])
    places = find_landmarks(known.labelled.map, new.labelled.map, centroids, new.frame).millimetres
    boxes = localize([known.labelled], new.labelled.map, new.frame, names)
    anatomical = {
        name: (place, np.stack([boxes[name].lower, boxes[name].upper]))
        for name, place in zip(names, places, strict=True)
    }
    fraction = {}
    for name, organ in known.organs.items():
        corners = np.array(list(itertools.product(*organ.faces.T)))
        index = known.frame.index_from_millimetres(organ.centroid)
        fractions = known.frame.fraction(np.vstack([index, corners]))
        centre, *box = new.frame.index_from_fraction(fractions)
        fraction[name] = new.frame.millimetres(centre), np.stack([np.min(box, axis=0), np.max(box, axis=0)])
    return dict(zip(METHODS, (anatomical, fraction), strict=True))


def rows_of(new: Scan, known: Sequence[Scan], counts: Sequence[int], draws: int, seed: int) -> list[Record]:
    """All rows of one scan: its name as ``case``, ``organ``, ``method``, the number of ``labelled_scans``, the number
    of the ``draw`` of these, and the :data:`MEASURES`.

    Of several labelled scans the middle is taken, coordinate by coordinate, as `locctx localize` does.

    Args:
        new: The scan searched.
        known: The others.
        counts: Numbers of labelled scans; an organ with fewer gets no row.
        draws: Draws of each number.
        seed: Seed of the draws.
    """
    carried = [carried_over(scan, new) for scan in known]
    rows: list[Record] = []
    for (organ, truth), method in itertools.product(new.organs.items(), METHODS):
        places = [by_method[method][organ] for by_method in carried if organ in by_method[method]]
        for count in counts:
            random = np.random.default_rng(seed)  # the same scans for both methods
            for draw in range(draws if count < len(places) else int(count == len(places))):
                chosen = random.choice(len(places), count, replace=False)
                place = np.median([places[n][0] for n in chosen], axis=0)
                faces = np.median([places[n][1] for n in chosen], axis=0)
                row = {"case": new.labelled.name, "organ": organ, "method": method, "labelled_scans": count}
                rows.append({**row, "draw": draw, **_errors(place, faces, truth, new.frame)})
    return rows


def _errors(place: Array, faces: Array, truth: Organ, frame: Frame) -> dict[str, float]:
    common = np.prod(
        np.maximum(0, np.minimum(faces[1], truth.faces[1]) - np.maximum(faces[0], truth.faces[0]))
    )
    either = np.prod(faces[1] - faces[0]) + np.prod(truth.faces[1] - truth.faces[0]) - common
    inside = ((truth.voxels >= faces[0]) & (truth.voxels <= faces[1])).all(axis=1)
    return {
        "landmark_mm": float(np.linalg.norm(place - truth.centroid)),
        "face_mm": float((np.abs(faces - truth.faces) * frame.spacing).mean()),
        "overlap": float(common / either),
        "recall": float(inside.mean()),
    }


def summary(frame: pd.DataFrame) -> str:
    """A Markdown table: medians and means over cases, of each case the mean over its draws."""
    keys = ["organ", "labelled_scans", "method"]
    frame = frame.assign(
        **{key: pd.Categorical(frame[key], frame[key].unique()) for key in ("organ", "method")}
    )
    cases = frame.groupby([*keys, "case"], observed=True)[list(MEASURES)].mean()
    groups = cases.groupby(keys, observed=True)
    shown = pd.DataFrame({"cases": groups.size()})
    for measure, (heading, statistic, digits) in MEASURES.items():
        shown[heading] = groups[measure].agg(statistic).map(f"{{:.{digits}f}}".format)
    heads = ("organ", "labelled scans", "method", *shown.columns)
    return table(heads, shown.reset_index().to_numpy().tolist())


def make_parser() -> argparse.ArgumentParser:
    """The script's parser."""
    parser = described_parser(__doc__)
    add_regressor(parser)
    folders = "folders of labelled scans in nnU-Net's format (default: the training scans of -d)"
    parser.add_argument("--labelled", nargs=2, type=Path, metavar=("IMAGES", "LABELS"), help=folders)
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="labelled cases to use (default: all)")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="organs (default: all labels)")
    known = "how many are known (default: 1 3 5)"
    parser.add_argument("--labelled-scans", nargs="+", type=int, default=[1, 3, 5], metavar="N", help=known)
    draws = "choices of the known scans (default: 5)"
    parser.add_argument("--draws", type=int, default=5, metavar="N", help=draws)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of these choices (default: 0)")
    output = "CSV file, a row a result"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=output)
    return parser


def evaluate(options: argparse.Namespace) -> list[Record]:
    """The rows of all scans.

    Raises:
        ValueError: Something named is missing, or fewer than two scans can be used.
    """
    check_output("-o", options.output)
    check_integer("--draws", options.draws, 1)
    for count in options.labelled_scans:
        check_integer("--labelled-scans", count, 1)
    if options.labelled is None and options.dataset is None:
        raise ValueError("labelled scans are needed: --labelled IMAGES LABELS or -d DATASET")
    regressor = load_anatomical(options.regressor, options.dataset)
    if options.labelled is None:
        folder = dataset_folder("nnUNet_raw", options.dataset)
        files = list_training(folder)
    else:
        folder, files = options.labelled[0].resolve().parent, list_scans(*options.labelled)
    values = label_values(folder, options.labels)
    labelled = {case.name: case for case in files if case.label is not None}
    check_known(options.cases or (), labelled, "labelled case")
    scans = []
    for name in tqdm(options.cases or list(labelled), desc="measuring", unit="scan"):
        scan = read_scan(labelled[name], regressor, values)
        if scan is None:
            print(f"not used, could not be measured: {name}")
        else:
            scans.append(scan)
    if len(scans) < 2:
        raise ValueError(f"at least 2 labelled scans that can be measured are needed, got {len(scans)}")
    rows: list[Record] = []
    for scan in tqdm(scans, desc="searching", unit="scan"):
        others = [known for known in scans if known is not scan]
        rows += rows_of(scan, others, sorted(set(options.labelled_scans)), options.draws, options.seed)
    if not rows:
        raise ValueError("no organ is shown whole by a scan and by as many others as --labelled-scans names")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the rows and prints the summary."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        rows = evaluate(options)
    except ValueError as error:
        parser.error(str(error))
    frame = pd.DataFrame(rows)
    write_atomically(options.output, frame.to_csv(index=False).encode())
    print(summary(frame))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
