"""Why does a located network label specks in a corner of a scan? Predicts it with changed locations and intensities.

    python -m scripts.experiments.evidence.corner_specks MODEL --fold 1 -i IMAGES --cases head_08 head_12

Prints, for each case and change, the voxels of each class in the eight corners (cubes of :data:`CORNER` voxels);
results: corner_specks.md. MODEL is the folder of a located training whose location is linear in the voxels (`voxel`,
`body`), IMAGES holds CASE_0000.nii.gz.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nnunet_locctx.nnunet.predicting.prediction import load_located_model
from scripts.benchmarks.harness import described_parser

CORNER = 8
MARGIN = 16
"""Voxels by which a scan is padded: a patch of the trainings."""

Array = npt.NDArray[np.float32]


def changed(data: Array) -> Iterator[tuple[str, Array, int]]:
    """What was changed, (channels + 3, i, j, k) intensities and location, and by how many voxels they are padded."""
    image, location = data[:-3], data[-3:]
    yield "nothing", data, 0
    yield "location unknown", np.concatenate([image, np.full_like(location, np.nan)]), 0
    for inside in (2, 4, 8):
        index = np.ix_(*(np.arange(n).clip(inside, n - 1 - inside) for n in data.shape[1:]))
        held = location[:, index[0], index[1], index[2]]
        yield f"location at most that of {inside} voxels inside", np.concatenate([image, held]), 0
    around = ((0, 0), *((MARGIN, MARGIN),) * 3)
    # linear in the voxels, so that what lies outside is continued exactly
    continued = np.pad(location, around, mode="reflect", reflect_type="odd")
    padded = np.concatenate([np.pad(image, around, mode="edge"), continued])
    yield f"padded by {MARGIN} voxels, location continued", padded, MARGIN
    flat = image.copy()
    for corner in corners():
        everywhere = (slice(None), *corner)
        flat[everywhere] = np.median(image[everywhere], axis=(1, 2, 3), keepdims=True)
    yield "intensities of the corners flat", np.concatenate([flat, location]), 0


def corners() -> Iterator[tuple[slice, ...]]:
    """The cubes in the eight corners of a volume."""
    yield from product((slice(None, CORNER), slice(-CORNER, None)), repeat=3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each case and change."""
    parser = described_parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--fold", default="0")
    parser.add_argument("-i", "--images", type=Path, required=True, metavar="IMAGES")
    parser.add_argument("--cases", nargs="+", required=True, metavar="CASE")
    options = parser.parse_args(arguments)
    model = load_located_model(options.model, options.fold, device="cpu", progress=False)
    names = {value: name for name, value in model.dataset_json["labels"].items()}
    for case in options.cases:
        scan = model.prepare([options.images / f"{case}_0000.nii.gz"])
        for what, data, pad in changed(scan.data):
            labels = model.labels(data)
            labels = labels[tuple(slice(pad, n - pad) for n in labels.shape)]
            found = np.concatenate([labels[corner].ravel() for corner in corners()])
            values, counts = np.unique(found[found > 0], return_counts=True)
            specks = ", ".join(f"{n} {names[int(value)]}" for value, n in zip(values, counts, strict=True))
            print(f"{case}, {what}: {specks or 'none'}", flush=True)


if __name__ == "__main__":
    main()
