"""`locctx check`: wrong headers in a raw dataset."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import (
    CLEAN,
    FINDINGS,
    add_command,
    add_processes,
    check_output,
    print_next,
)
from nnunet_locctx.nnunet.data.paths import dataset_folder
from nnunet_locctx.values import check_integer


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "check",
        run,
        "look for wrong headers in a raw dataset before training",
        """Reads every scan of a dataset in nnU-Net's raw format and reports orientations, voxel sizes and what looks
        wrong: unusable or default headers, images and labels that do not fit each other, labels far from where they
        lie in other cases, voxels that are not finite, unknown label values, missing and unreadable files; and whatever
        nnU-Net's own integrity check would refuse. Writes nothing (but --json).
        Exit status: 0 clean, 1 something found, 2 no such dataset.""",
        """
        locctx check -d 3
        locctx check /data/nnUNet_raw/Dataset003_Liver --json check.json
        """,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-d", "--dataset", metavar="ID", help="id or name of a dataset in nnUNet_raw")
    where.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="the dataset's folder, with dataset.json"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file as well")
    parser.add_argument(
        "--cases", type=int, default=5, metavar="N", help="cases named per finding (default: 5)"
    )
    add_processes(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from nnunet_locctx.check import check_dataset, format_report
    from nnunet_locctx.files import write_atomically

    check_integer("cases", options.cases, 1)
    folder = options.folder or dataset_folder("nnUNet_raw", options.dataset)
    check_output("--json", options.json)
    report = check_dataset(folder, processes=options.processes, progress=not options.quiet)
    print(format_report(report, options.cases))
    if options.json is not None:
        write_atomically(options.json, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    if report.training_cases:
        dataset = int(name[1]) if (name := re.match(r"Dataset(\d{3})_", folder.resolve().name)) else "ID"
        print_next(
            [f"nnUNetv2_plan_and_preprocess -d {dataset} -c 3d_fullres", f"locctx sources -d {dataset}"]
        )
    return CLEAN if report.clean else FINDINGS
