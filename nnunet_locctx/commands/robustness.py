"""`locctx robustness`: Dice of a trained model when its location is wrong."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, check_device, check_folder, check_model

AMOUNTS = (0, 1, 5, 10, 25, 50, 100)


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "robustness",
        run,
        "measure a trained model's Dice with a location that is wrong",
        """Predicts labelled scans with a trained located model while their location is wrong by a known amount:
        shifted by a constant, off by a Gaussian error per slice, or unknown; along the body (axial), along another
        axis, or along all three. Writes a table (Markdown, CSV, JSON) and the curves of the foreground Dice on the
        original grid. Several models are compared. Started again with the same folder, it goes on where it stopped.""",
        """
        locctx robustness --model $nnUNet_results/Dataset003_Liver/LocCtxTrainer__nnUNetPlans__3d_fullres \\
            -i $nnUNet_raw/Dataset003_Liver/imagesTs -l $nnUNet_raw/Dataset003_Liver/labelsTs -o robustness
        locctx robustness --model PLAIN --name plain --model JITTERED --name "with jitter" -i IMAGES -l LABELS -o OUT
        """,
    )
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        required=True,
        metavar="FOLDER",
        help="trained model (TRAINER__PLANS__CONFIGURATION); give it again for another one",
    )
    parser.add_argument(
        "--name",
        action="append",
        metavar="NAME",
        help="what to call the model, one for each --model in its order",
    )
    parser.add_argument(
        "-i", "--images", type=Path, required=True, metavar="FOLDER", help="scans, CASE_0000.ENDING"
    )
    parser.add_argument(
        "-l", "--labels", type=Path, required=True, metavar="FOLDER", help="labels, CASE.ENDING"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write")
    errors = parser.add_argument_group("errors of the location")
    errors.add_argument(
        "--amounts",
        type=float,
        nargs="+",
        default=AMOUNTS,
        metavar="P",
        help=f"percent of the axis (default: {' '.join(map(str, AMOUNTS))})",
    )
    errors.add_argument(
        "--changes",
        nargs="+",
        choices=("shift", "noise", "unknown"),
        default=("shift", "noise"),
        help="default: shift noise; unknown: the axes' coordinates are taken away, whatever the amount",
    )
    errors.add_argument(
        "--axes",
        nargs="+",
        choices=("R", "A", "axial", "all"),
        default=("axial", "all"),
        help="default: axial (S) and all three at once",
    )
    errors.add_argument(
        "--sign",
        choices=("both", "plus", "minus"),
        default="both",
        help="direction of the shift; both: the mean of the two (default)",
    )
    errors.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    prediction = parser.add_argument_group("prediction")
    prediction.add_argument("--fold", metavar="N", help="fold to use (default: the first of the model)")
    prediction.add_argument(
        "--device", metavar="NAME", help="cpu, mps or cuda (default: cuda, without a GPU cpu)"
    )
    prediction.add_argument(
        "--mirroring", action="store_true", help="average mirrored predictions, as nnUNetv2_predict does"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from nnunet_locctx.evaluation.wrong_location import Design

    check_device(options.device)

    design = Design(
        amounts=tuple(options.amounts),
        axes=tuple(dict.fromkeys(options.axes)),
        kinds=tuple(dict.fromkeys(options.changes)),
        sign=options.sign,
        seed=options.seed,
    )
    check_folder("--images", options.images)
    check_folder("--labels", options.labels)
    if options.name is not None and len(options.name) != len(options.model):
        raise ValueError(f"{len(options.model)} models need as many different names, got {options.name}")
    for folder in options.model:
        check_model(folder)

    from nnunet_locctx.evaluation.robustness import Robustness, load_models
    from nnunet_locctx.evaluation.robustness_report import write_report

    models = load_models(
        options.model, options.name, fold=options.fold, device=options.device, mirroring=options.mirroring
    )
    robustness = Robustness(models, options.images, options.labels, design, options.output)
    robustness.run(progress=not options.quiet)
    files = write_report(robustness)
    print(files[0].read_text(encoding="utf-8"))
    for file in files:
        print(f"wrote {file}")
    return CLEAN
