"""Measures landmarks, organ boxes and crops by a fitted anatomical regressor on unseen whole-body phantoms.

    python -m scripts.experiments.anatomy.uses REGRESSOR     # regressor.pt of `locctx fit ape`, fitted on cases 0 to 19

Cases 0 to 7 are the labelled scans, 30 to 37 the unseen ones (seed 0). Prints the figures of
docs/explanation/results.md.
"""

import itertools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_locctx.anatomy import LabelledScan, find_landmarks, fit_region, localize, sample_organs
from nnunet_locctx.anatomy.region import Blocks, Example
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.phantoms.whole_body import ORGANS, WholeBodyCase, whole_body_case
from nnunet_locctx.regression.registry import load_regressor
from nnunet_locctx.regression.regressor import Regressor
from scripts.benchmarks.harness import described_parser

LABELLED, UNSEEN = range(8), range(30, 38)
PLACES = 300
SMALLEST_ORGAN = 20
"""Voxels. Smaller organs, and organs cut by the edge of the field of view, are left out."""

REGION, RECALL = ("loin_right", "loin_left"), 0.99
Scan = tuple[WholeBodyCase, AnatomicalMap]


def measure(regressor: Regressor, numbers: range) -> list[Scan]:
    """Phantoms and their maps; those that cannot be measured are left out."""
    scans = []
    for number in tqdm(numbers, desc="measuring"):
        case = whole_body_case(number)
        measured = regressor.measure(case.images[0].astype(np.float32), case.frame)
        if isinstance(measured, AnatomicalMap) and not measured.problem:
            scans.append((case, measured))
    return scans


def landmark_errors(scans: list[Scan]) -> str:
    """Errors of places in the body of each scan, found in the next scan."""
    random = np.random.default_rng(0)
    errors = []
    for (case, measured), (next_case, next_map) in itertools.pairwise(scans):
        index = np.argwhere(case.images[0] > -300)
        places = case.frame.millimetres(index[random.choice(len(index), PLACES)])
        landmarks = find_landmarks(measured, next_map, places, next_case.frame)
        difference = next_case.body.to_atlas(landmarks.millimetres) - case.body.to_atlas(places)
        errors.append(np.linalg.norm(difference, axis=1)[landmarks.inside])
    joined = np.concatenate(errors)
    return (
        f"landmarks: median {np.median(joined):.1f} mm, 90th percentile {np.percentile(joined, 90):.1f} mm, "
        f"{len(joined)} places that the other scan shows"
    )


def box_errors(labelled: list[Scan], scans: list[Scan]) -> str:
    """Errors of the boxes of whole organs."""
    values = {name: (number,) for number, name in enumerate(ORGANS, start=1)}
    known = [
        LabelledScan(str(number), measured, sample_organs(case.labels, case.frame, values))
        for number, (case, measured) in enumerate(labelled)
    ]
    faces, overlaps = [], []
    for case, measured in scans:
        boxes = localize(known, measured, case.frame, list(values))
        for name, sample in sample_organs(case.labels, case.frame, values).items():
            index = np.argwhere(case.labels == values[name][0])
            if len(index) < SMALLEST_ORGAN or name not in boxes or sample.cut:
                continue
            truth = np.stack([index.min(0) - 0.5, index.max(0) + 0.5])
            found = np.stack([boxes[name].lower, boxes[name].upper])
            faces.append(np.abs(found - truth) * case.spacing)
            common = np.prod(np.maximum(0, np.minimum(truth[1], found[1]) - np.maximum(truth[0], found[0])))
            overlaps.append(common / (np.prod(truth[1] - truth[0]) + np.prod(found[1] - found[0]) - common))
    return (
        f"boxes of {len(overlaps)} organs: faces off by {np.median(faces):.1f} mm (median), "
        f"intersection over union {np.mean(overlaps):.2f}"
    )


def crop_recall(labelled: list[Scan], scans: list[Scan]) -> str:
    """Recall and volume of crops to two organs."""
    numbers = [list(ORGANS).index(name) + 1 for name in REGION]
    examples = [
        Example.of(str(number), measured, case.frame, case.labels, {"region": numbers})
        for number, (case, measured) in enumerate(labelled)
    ]
    region = fit_region(examples, ["region"], RECALL)
    recalls, reductions = [], []
    for case, measured in scans:
        blocks = Blocks.of(case.frame)
        box = region.box(measured, blocks)
        mask = np.isin(case.labels, numbers)
        if box is None:
            recalls += [0.0] if mask.any() else []
            continue
        lower, upper = box.voxels(blocks)
        reductions.append(mask.size / np.prod(np.array(upper) - np.array(lower)))
        if mask.any():
            recalls.append(float(mask[tuple(map(slice, lower, upper))].sum() / mask.sum()))
    listed = ", ".join(f"{value:.2f}" for value in recalls)
    return (
        f"crops to {' and '.join(REGION)}: recall {region.recall['region']:.3f} left out of the labelled "
        f"scans; unseen scans {listed}; volumes {min(reductions):.0f} to {max(reductions):.0f} times smaller"
    )


def main() -> None:
    """Prints the figures."""
    parser = described_parser(__doc__)
    parser.add_argument("regressor", type=Path)
    regressor = load_regressor(parser.parse_args().regressor.read_bytes())
    labelled, unseen = measure(regressor, LABELLED), measure(regressor, UNSEEN)
    print(landmark_errors(unseen))
    print(box_errors(labelled, unseen))
    print(crop_recall(labelled, unseen))


if __name__ == "__main__":
    main()
