"""Draws one held-out case of fields_ct.yaml: truth, plain nnU-Net and the located one, for the README.

The case is the one whose located Dice is nearest to the mean of all, so neither the best nor the worst; the coronal
slice is the one through most classes. The scan is the TotalSegmentator repository's (Apache-2.0), warped by
make_fields.py.

    python -m scripts.experiments.evidence.picture --study fields-ct -o docs/mistake.png
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.files import replacing
from nnunet_locctx.scan import Scan
from nnunet_locctx.viewing import CORONAL, SOFT_TISSUE, Slice, class_colours
from scripts.benchmarks.harness import described_parser

LOCATED = "LocCtx (body)"
TITLES = {"Plain": "nnU-Net without mirroring", LOCATED: "LocCtxTrainer, same budget"}
MODELS = {
    "Plain": "nnUNetTrainer_8epochs_NoMirroring__nnUNetPlans_fields-ct__ct_patch16",
    LOCATED: "LocCtxTrainer_noMirroring_8epochs__nnUNetPlans_fields-ct__ct_patch16_body",
}
DATASET = "Dataset213_FieldsPatient"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, help="work folder of fields_ct.yaml")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the PNG to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    options = parse(arguments)
    scores = pd.read_csv(options.study / "report" / "cases.csv")
    dice = (
        scores[scores["class"] != "foreground"].groupby(["method", "case"])["dice"].mean().unstack("method")
    )
    case = (dice[LOCATED] - dice[LOCATED].mean()).abs().idxmin()
    dataset, results = (Path(os.environ[name]) / DATASET for name in ("nnUNet_raw", "nnUNet_results"))
    scan = Scan.read(dataset / "imagesTr" / f"{case}_0000.nii.gz")
    labels = {"truth": Scan.read(dataset / "labelsTr" / f"{case}.nii.gz").labels}
    for method, model in MODELS.items():
        labels[method] = Scan.read(results / model / "fold_0" / "validation" / f"{case}.nii.gz").labels

    planes = np.moveaxis(labels["truth"], scan.frame.array_axes[CORONAL.fixed], 0)
    piece = Slice(scan.frame, CORONAL, int(np.argmax([len(np.unique(plane)) for plane in planes])))
    numbers = json.loads((dataset / "dataset.json").read_text())["labels"]
    names = [name for name in numbers if name != "background"]
    colours = class_colours(names, find_pairs(names))

    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    shown = set()
    for panel, (title, volume) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        piece.paint(panel, piece.of(scan.voxels[0]), cmap="gray", vmin=SOFT_TISSUE[0], vmax=SOFT_TISSUE[1])
        for name in names:
            mask = piece.of(volume) == numbers[name]
            if mask.any():
                shown.add(name)
                paint = np.zeros((*mask.shape, 4))
                paint[mask] = (*colours[name], 0.55)
                piece.paint(panel, paint)
        piece.frame_panel(panel)
        score = "" if title == "truth" else f"\nDice {100 * dice.loc[case, title]:.0f} %"
        panel.set_title(TITLES.get(title, title) + score, fontsize=11, pad=18)
    patches = [Patch(color=colours[name], label=name.replace("_", " ")) for name in names if name in shown]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    with replacing(options.output) as draft:
        figure.savefig(draft, dpi=110, format="png")
    print(f"wrote {options.output}: {case}, {dice.loc[case].round(3).to_dict()}")


if __name__ == "__main__":
    main()
