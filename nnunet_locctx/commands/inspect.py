"""`locctx inspect`: predictions judged without a truth."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import (
    CLEAN,
    FINDINGS,
    add_command,
    add_dataset_json,
    add_processes,
    check_folder,
    dataset_json,
    print_next,
)


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "inspect",
        run,
        "which predictions of new scans to look at first, and why; no truth is needed",
        """Compares predicted segmentations with what the training labels have: sides exchanged or the whole case
        mirrored, classes far from where they lie among the others, in several or far pieces, too large or too small,
        missing, or never seen in training; and scans whose location was unknown to the model (location.json). What is
        too much is learned from the training labels. Prints the findings, the most doubtful case first, and writes a
        page with pictures, findings.csv and inspection.json.
        Exit status: 0 nothing found, 1 something found, 2 unusable input.""",
        """
        locctx inspect PREDICTIONS -d 3
        locctx inspect PREDICTIONS --labels labelsTr -o inspection --images imagesTs
        """,
    )
    parser.add_argument("predictions", type=Path, metavar="PRED", help="folder of predictions, CASE.ENDING")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write, made anew (default: PRED/inspection)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FOLDER",
        help="folder of training labels, CASE.ENDING (default: those of -d)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="the scans, CASE_0000.ENDING, for the pictures (default: imagesTs or, for other cases, imagesTr of -d)",
    )
    add_dataset_json(parser, "the one in or above the folders")
    add_processes(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from nnunet_locctx.nnunet.data.paths import dataset_folder, training_labels

    if options.labels is None and options.dataset is None:
        raise ValueError("which training labels? Give a dataset (-d) or a folder (--labels)")
    raw = None if options.dataset is None else dataset_folder("nnUNet_raw", options.dataset)
    labels = options.labels if raw is None or options.labels is not None else training_labels(raw)
    check_folder("PRED", options.predictions)
    check_folder("--labels", options.labels)
    check_folder("--images", options.images)
    output = options.output or options.predictions / "inspection"

    from nnunet_locctx.evaluation.inspection import inspect_predictions, to_table
    from nnunet_locctx.report.document import check_target
    from nnunet_locctx.report.inspection import JSON, write_inspection

    check_target(output, (JSON,))
    inspection = inspect_predictions(
        options.predictions,
        labels,
        dataset_json=dataset_json(options),
        processes=options.processes,
        progress=not options.quiet,
    )
    if options.images is not None:
        images = [options.images]
    else:
        images = [] if raw is None else [raw / "imagesTs", raw / "imagesTr"]
    page = write_inspection(inspection, output, images=images, progress=not options.quiet)
    print(to_table(inspection))
    print(f"wrote {page}")
    if any(finding.kind in ("sides", "mirrored") for case in inspection.cases for finding in case.findings):
        named = "-d ID" if options.dataset is None else f"-d {options.dataset}"
        which = named if options.labels is None else f"--labels {options.labels}"
        print_next(
            [f"locctx check {named}", f"locctx postprocess sides {options.predictions} {which} -o REPAIRED"]
        )
    return FINDINGS if inspection.doubtful else CLEAN
