"""Writes the whole-body phantom of `sources.yaml` and of ../robustness/robustness.yaml to nnUNet_raw.

    python -m scripts.experiments.anatomy.make_data -d 904                                             # sources.yaml
    python -m scripts.experiments.anatomy.make_data -d 905 --cases 22 --test-cases 0 --fraction 0.9 1  # robustness.yaml

Four organs keep their labels; the phantom's other organs become look-alikes without one.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_locctx.files import write_atomically
from nnunet_locctx.nnunet.data.paths import nnunet_folder
from nnunet_locctx.phantoms.whole_body import FRACTION, make_whole_body
from scripts.benchmarks.harness import described_parser

ORGANS = ("hip_right", "hip_left", "chest_right", "chest_left")


def keep_organs(dataset: Path, organs: Sequence[str]) -> None:
    """Relabels a raw dataset: these classes are numbered from 1, all others become background."""
    file = dataset / "dataset.json"
    content = json.loads(file.read_text())
    values = np.zeros(256, dtype=np.uint8)
    for number, name in enumerate(organs, start=1):
        values[content["labels"][name]] = number
    for label in sorted((*dataset.glob("labelsTr/*.nii.gz"), *dataset.glob("labelsTs/*.nii.gz"))):
        stored = SimpleITK.ReadImage(str(label))
        kept = SimpleITK.GetImageFromArray(values[SimpleITK.GetArrayFromImage(stored)])
        kept.CopyInformation(stored)
        SimpleITK.WriteImage(kept, str(label), useCompression=True)
    content["labels"] = {"background": 0, **{name: number for number, name in enumerate(organs, start=1)}}
    write_atomically(file, (json.dumps(content, indent=2) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the dataset and publishes it in one step."""
    parser = described_parser(__doc__)
    parser.add_argument("-d", "--dataset", type=int, required=True, metavar="ID", help="its number")
    parser.add_argument("--cases", type=int, default=20, metavar="N", help="training scans (default: 20)")
    parser.add_argument("--test-cases", type=int, default=10, metavar="N", help="test scans (default: 10)")
    share = "share of the body in a scan, least and most (default: %(default)s)"
    parser.add_argument("--fraction", type=float, nargs=2, default=FRACTION, metavar="F", help=share)
    options = parser.parse_args(arguments)
    raw = nnunet_folder("nnUNet_raw")
    name = f"Dataset{options.dataset:03d}_WholeBody"
    if (raw / name).exists():
        parser.error(f"{raw / name} is there; take another number or remove it")
    draft = raw / f".{name}.draft"  # a draft until it is relabelled
    made = make_whole_body(
        draft,
        options.dataset,
        cases=options.cases,
        test_cases=options.test_cases,
        fraction=tuple(options.fraction),
        overwrite=True,
        progress=True,
    )
    keep_organs(made, ORGANS)
    made.replace(raw / name)
    draft.rmdir()
    print(f"wrote {raw / name}")


if __name__ == "__main__":
    main()
