"""`locctx demo`: plain and located nnU-Net on a small phantom."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command


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
        "locctx demo --folder demo",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="where everything is written (default: demo)"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from nnunet_locctx.demo import run_demo

    run_demo(options.folder)
    return CLEAN
