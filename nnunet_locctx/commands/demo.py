"""`locctx demo`: plain and located nnU-Net on a small phantom."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, print_next
from nnunet_locctx.nnunet.data.paths import nnunet_folder


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "demo",
        run,
        "train plain and located nnU-Net on a small phantom and compare",
        """Makes a CT phantom with twin organs that only their position tells apart, trains plain nnU-Net and a
        located one on it with the same budget, predicts unseen scans with nnUNetv2_predict and writes results.json
        and figure.png.""",
        """
        locctx demo --folder demo
        locctx demo --data-only
        """,
    )
    parser.add_argument(
        "--data-only",
        action="store_true",
        help="only make the phantom of `locctx study phantom`, in nnUNet_raw",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="where everything is written (default: demo)"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if options.data_only:
        raw = nnunet_folder("nnUNet_raw")
    from nnunet_locctx.demo import make_study_data, run_demo

    if options.data_only:
        print(f"the phantom: {make_study_data(raw)}")
        print_next(["locctx study phantom --dry-run", "locctx study phantom"])
    else:
        run_demo(options.folder)
    return CLEAN
