"""Writes datasets of real anatomy whose fields of view differ, to nnUNet_raw, for fields_heads.yaml and fields_ct.yaml.

    python -m scripts.experiments.evidence.make_fields heads -i DATA/Dataset209_HeadMR -d 219
    python -m scripts.experiments.evidence.make_fields patient -i DATA/Dataset203_TotalSegCT -d 213

``heads``: each scan cropped along the body to a random 50 to 100 % of it. ``patient``: the one CT warped into 18
"patients" (size of each axis by up to 12 %, a smooth warp of 8 mm, standard deviation of its nodes), each cropped so;
semi-real: one person's anatomy, nothing of what differs between people but size and shape.
"""

import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from tqdm import tqdm

from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Frame
from nnunet_locctx.image_files import write_sitk
from nnunet_locctx.nnunet.data.paths import nnunet_folder
from scripts.benchmarks.harness import described_parser
from scripts.experiments.anatomy.make_data import keep_organs

FRACTION = (0.5, 1.0)
"""Least and largest share of the scan along the body."""

PATIENTS = 18
SIZE = 0.12
"""Largest change of the size along an axis, as a fraction."""

NODES = (5, 5, 5)
WARP = 8.0
"""Standard deviation of the displacement of a node, mm."""

AIR = -1024.0

ORGANS = (
    "spleen",
    "kidney_right",
    "kidney_left",
    "liver",
    "stomach",
    "pancreas",
    "urinary_bladder",
    "sacrum",
    "iliac_artery_left",
    "iliac_artery_right",
    "hip_left",
    "hip_right",
)
"""Of the CT, numbered from 1; its other structures become background."""


def crop(images: Sequence[SimpleITK.Image], random: np.random.Generator) -> list[SimpleITK.Image]:
    """The same random part along the body of an image and its labels; voxels and their places stay what they are."""
    first = images[0]
    axis = 2 - Frame.from_sitk(first).array_axes[2]  # of the file: x, y, z
    length = first.GetSize()[axis]
    kept = round(length * random.uniform(*FRACTION))
    start = int(random.integers(length - kept + 1))
    window = [slice(None)] * 3
    window[axis] = slice(start, start + kept)
    return [image[tuple(window)] for image in images]


def warp(
    image: SimpleITK.Image, labels: SimpleITK.Image, random: np.random.Generator
) -> list[SimpleITK.Image]:
    """Another "patient": the scan and its labels under one smooth map."""
    centre = image.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in image.GetSize()])
    size = SimpleITK.ScaleTransform(3, list(random.uniform(1 - SIZE, 1 + SIZE, 3)))
    size.SetCenter(centre)
    bend = SimpleITK.BSplineTransformInitializer(image, NODES)
    bend.SetParameters(list(random.normal(0, WARP, len(bend.GetParameters()))))
    both = SimpleITK.CompositeTransform([size, bend])
    return [
        SimpleITK.Resample(image, image, both, SimpleITK.sitkLinear, AIR),
        SimpleITK.Resample(labels, labels, both, SimpleITK.sitkNearestNeighbor, 0),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the dataset anew; a study finds it whole or not at all."""
    parser = described_parser(__doc__)
    parser.add_argument("kind", choices=("heads", "patient"), help="what to make")
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="FOLDER", help="raw dataset of the scans"
    )
    parser.add_argument(
        "-d", "--dataset", type=int, required=True, metavar="ID", help="number of the new one"
    )
    options = parser.parse_args(arguments)
    raw = nnunet_folder("nnUNet_raw")
    name = f"Dataset{options.dataset:03d}_Fields{options.kind.capitalize()}"
    if (raw / name).exists():
        parser.error(f"{raw / name} is there; take another number or remove it")
    content = json.loads((options.input / "dataset.json").read_text())
    cases = [
        file.name.removesuffix(content["file_ending"])
        for file in sorted(options.input.glob("labelsTr/*.nii.gz"))
    ]
    sources = [(case, case) for case in cases]
    if options.kind == "patient":
        sources = [(f"patient_{number:02d}", cases[0]) for number in range(1, PATIENTS + 1)]
    draft = raw / f".{name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr"):
        (draft / folder).mkdir(parents=True)
    for case, source in tqdm(sources, unit="scan"):
        random = np.random.default_rng(zlib.crc32(case.encode()))
        pair = [
            SimpleITK.ReadImage(str(options.input / "imagesTr" / f"{source}_0000.nii.gz")),
            SimpleITK.ReadImage(str(options.input / "labelsTr" / f"{source}.nii.gz")),
        ]
        if options.kind == "patient":
            pair = warp(pair[0], pair[1], random)
        image, labels = crop(pair, random)
        write_sitk(image, draft / "imagesTr" / f"{case}_0000.nii.gz")
        write_sitk(labels, draft / "labelsTr" / f"{case}.nii.gz")
    content["numTraining"] = len(sources)
    write_atomically(draft / "dataset.json", (json.dumps(content, indent=1) + "\n").encode())
    if options.kind == "patient":
        keep_organs(draft, ORGANS)
    draft.replace(raw / name)
    print(f"wrote {raw / name}")


if __name__ == "__main__":
    main()
