"""`locctx evaluate`: measures of a folder of predictions."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import (
    CLEAN,
    add_command,
    add_dataset_json,
    add_processes,
    dataset_json,
    warn,
)


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        "Dice, HD95, NSD, volume error, swapped sides and far false positives of predictions",
        """Compares predicted segmentations with true ones, per case and class, on the grid of the files: Dice, 95th
        percentile of the Hausdorff distance, normalised surface Dice, volume error, share of each side's voxels that
        are predicted as the other side's, and the volume predicted far from the class. Writes evaluation.json, .csv
        and .md with the definitions, and prints the means. Every file is checked first. Started again with the same
        output folder, only new and changed files are measured.""",
        """
        locctx evaluate MODEL/fold_0/validation $nnUNet_raw/Dataset003_Liver/labelsTr -o evaluation --predicted-only
        locctx evaluate PREDICTIONS labelsTs -o evaluation --tolerance-mm 1 --pairs kidney_a=kidney_b --paper
        """,
    )
    parser.add_argument("predictions", type=Path, metavar="PRED", help="folder of predictions, CASE.ENDING")
    parser.add_argument(
        "references", type=Path, metavar="GT", help="folder of true segmentations, CASE.ENDING"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write")
    add_dataset_json(parser, "the one in or above PRED, then GT")
    parser.add_argument(
        "--tolerance-mm", type=float, default=2.0, metavar="MM", help="of the NSD (default: 2)"
    )
    parser.add_argument(
        "--off-region-mm",
        type=float,
        default=20.0,
        metavar="MM",
        help="predicted voxels farther than this from the class are off its region (default: 20)",
    )
    parser.add_argument(
        "--pairs",
        nargs="+",
        metavar="LEFT=RIGHT",
        help="classes that are the sides of one organ (default: as their names say)",
    )
    parser.add_argument(
        "--paper",
        nargs="?",
        const="locbam",
        choices=("locbam", "gpe"),
        help="add Dice and HD95 as this paper's code has them (default: locbam)",
    )
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="only these")
    parser.add_argument(
        "--predicted-only", action="store_true", help="leave out cases of GT that PRED does not have"
    )
    add_processes(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from nnunet_locctx.evaluation.folders import CSV, JSON, MARKDOWN, evaluate_folders, to_table

    pairs = None if options.pairs is None else [text.split("=") for text in options.pairs]
    content = evaluate_folders(
        options.predictions,
        options.references,
        options.output,
        dataset_json=dataset_json(options),
        tolerance_mm=options.tolerance_mm,
        off_region_mm=options.off_region_mm,
        pairs=pairs,
        paper=options.paper,
        cases=options.cases,
        predicted_only=options.predicted_only,
        processes=options.processes,
        progress=not options.quiet,
    )
    print(to_table(content))
    if "paper" in content:
        for name, value in content["paper"].items():
            print(f"{name} as the paper takes the mean: {'-' if value is None else f'{value:.4f}'}")
    for sentence in content["warnings"]:
        warn(sentence)
    for name in (JSON, CSV, MARKDOWN):
        print(f"wrote {options.output / name}")
    return CLEAN
