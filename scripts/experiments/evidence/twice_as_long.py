"""Dice on scans that are made twice as long towards the feet, with air or with more body, as training never saw them.

    python -m scripts.experiments.evidence.twice_as_long --model MODEL -i IMAGES -l LABELS -o FILE.csv

``air`` repeats values of the scan's darkest tenth, ``body`` mirrors the scan at its lower end. Dice is that of the
original part, on its own grid; ``beyond`` counts the voxels that are predicted as an organ in the added part, where
there is none.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK
from tqdm import tqdm

from nnunet_locctx.evaluation.robustness import file_dice, list_cases
from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Frame
from nnunet_locctx.nnunet.predicting.prediction import load_located_model
from scripts.benchmarks.harness import described_parser

DARKEST = 10
"""Percentile below which a scan's values stand for air."""


def along_the_body(image: SimpleITK.Image) -> tuple[int, bool]:
    """The axis (x, y, z: 0, 1, 2) closest to the body's, and whether its index rises towards the head."""
    axis = 2 - Frame.from_sitk(image).array_axes[2]  # of an array (z, y, x)
    return axis, np.reshape(image.GetDirection(), (3, 3))[2, axis] > 0


def lengthened(image: SimpleITK.Image, way: str) -> SimpleITK.Image:
    """The image with as many slices again below it; its own voxels keep their place."""
    axis, rising = along_the_body(image)
    array = SimpleITK.GetArrayFromImage(image)
    length = image.GetSize()[axis]
    width = [(0, 0)] * 3
    width[2 - axis] = (length, 0) if rising else (0, length)
    if way == "body":
        longer = np.pad(array, width, mode="symmetric")
    else:
        dark = array[array <= np.percentile(array, DARKEST)]
        longer = np.random.default_rng(0).choice(
            dark, [n + sum(w) for n, w in zip(array.shape, width, strict=True)]
        )
        longer[original(image)] = array
    result = SimpleITK.GetImageFromArray(longer)
    result.SetSpacing(image.GetSpacing())
    result.SetDirection(image.GetDirection())
    first = [0, 0, 0]
    first[axis] = -length if rising else 0
    result.SetOrigin(image.TransformContinuousIndexToPhysicalPoint([float(n) for n in first]))
    return result


def original(image: SimpleITK.Image) -> tuple[slice, ...]:
    """Where an image's voxels lie in the lengthened array (z, y, x)."""
    axis, rising = along_the_body(image)
    length = image.GetSize()[axis]
    part = [slice(None)] * 3
    part[2 - axis] = slice(length, None) if rising else slice(0, length)
    return tuple(part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a line for each case and way, and prints the means."""
    parser = described_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="trained model")
    parser.add_argument("-i", "--images", type=Path, required=True, metavar="FOLDER", help="scans")
    parser.add_argument("-l", "--labels", type=Path, required=True, metavar="FOLDER", help="their labels")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="CSV")
    options = parser.parse_args(arguments)
    model = load_located_model(options.model, device="cpu", mirroring=False, progress=False)
    reader = model.predictor.plans_manager.image_reader_writer_class()
    labels, ending = model.dataset_json["labels"], model.dataset_json["file_ending"]
    rows = []
    for case in tqdm(list_cases(options.images, options.labels, ending, model.channels), unit="scan"):
        label = SimpleITK.ReadImage(str(case.label))
        for way in ("as it is", "air", "body"):
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder) / file.name for file in case.images]
                for source, file in zip(case.images, files, strict=True):
                    image = SimpleITK.ReadImage(str(source))
                    SimpleITK.WriteImage(image if way == "as it is" else lengthened(image, way), str(file))
                scan, predicted = model.prepare(files), Path(folder) / f"predicted{ending}"
                model.export(model.logits(scan.data), scan, predicted)
                array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(predicted)))
                part = (slice(None),) * 3 if way == "as it is" else original(label)
                own = SimpleITK.GetImageFromArray(array[part])
                own.CopyInformation(label)
                SimpleITK.WriteImage(own, str(predicted))
                dice = np.nanmean(list(file_dice(case.label, predicted, labels, reader).values()))
            rows.append(
                {
                    "case": case.name,
                    "longer by": way,
                    "unknown": " ".join(model.field(scan).unknown),
                    "dice": dice,
                    "beyond": int((array > 0).sum() - (array[part] > 0).sum()),
                }
            )
    table = pd.DataFrame(rows)
    write_atomically(options.output, table.to_csv(index=False, float_format="%.6g").encode())
    print(table.groupby(["longer by", "unknown"], sort=False)[["dice", "beyond"]].agg(["mean", "count"]))


if __name__ == "__main__":
    main()
