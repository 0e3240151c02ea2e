"""How far swapped voxels lie from their twin: a border drawn a voxel aside, or one side taken for the other.

    python -m scripts.experiments.evidence.swap_distance LABELS PREDICTIONS ... --dataset-json FILE --border-mm MM

For each folder of predictions: voxels whose true class is one of a left and right pair and which are predicted as the
twin, and their distance in mm to the nearest voxel that truly is the twin (median, 90th percentile), over all cases.
Then the share of the true voxels of such pairs that is swapped, and that is swapped further from the twin than MM.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.scan import Scan
from scripts.benchmarks.harness import described_parser


def swap_distances(truth: Scan, prediction: Scan, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(swapped voxels,) mm to the nearest voxel of the twin; a twin that the truth lacks has no distance."""
    apart = [np.empty(0)]
    for own, twin in (*pairs, *((twin, own) for own, twin in pairs)):
        swapped = (truth.labels == own) & (prediction.labels == twin)
        if swapped.any() and (truth.labels == twin).any():
            to_twin = distance_transform_edt(truth.labels != twin, sampling=truth.frame.spacing)
            apart.append(to_twin[swapped])
    return np.concatenate(apart)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each folder."""
    parser = described_parser(__doc__)
    parser.add_argument("labels", type=Path, metavar="LABELS", help="folder of true segmentations")
    parser.add_argument(
        "predictions", type=Path, nargs="+", metavar="PREDICTIONS", help="folder of predictions"
    )
    parser.add_argument(
        "--dataset-json", type=Path, required=True, metavar="FILE", help="names of the classes"
    )
    parser.add_argument(
        "--border-mm",
        type=float,
        required=True,
        metavar="MM",
        help="swaps up to here from the twin lie at the border",
    )
    options = parser.parse_args(arguments)
    content = json.loads(options.dataset_json.read_text())
    values = content["labels"]
    pairs = [(values[left], values[right]) for left, right in find_pairs(list(values))]
    if not pairs:
        parser.error(f"{options.dataset_json}: no pair of left and right classes among {', '.join(values)}")
    for folder in options.predictions:
        files = sorted(folder.glob(f"*{content['file_ending']}"))
        if not files:
            parser.error(f"{folder}: no predictions, files named *{content['file_ending']}")
        mm: list[np.ndarray] = []
        true_voxels = 0
        for file in files:
            truth = Scan.read(options.labels / file.name)
            mm.append(swap_distances(truth, Scan.read(file), pairs))
            true_voxels += np.isin(truth.labels, np.ravel(pairs)).sum()
        apart = np.concatenate(mm)
        median, most = np.percentile(apart, (50, 90)) if apart.size else (np.nan, np.nan)
        beyond = (apart > options.border_mm).sum()
        print(
            f"{folder.parts[-3]}: {apart.size} voxels in {len(files)} cases, {median:.2f} mm (90 %: {most:.2f} mm); "
            f"{100 * apart.size / true_voxels:.3f} % of the true voxels, {100 * beyond / true_voxels:.3f} % beyond "
            f"{options.border_mm:g} mm"
        )


if __name__ == "__main__":
    main()
