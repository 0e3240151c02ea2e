"""`locctx report`: the report of a study, finished or not."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, require


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "report",
        run,
        "write the report of a study",
        """Writes tables, statistics and figures of a study from what its jobs have left in its work folder so
        far: one page (index.html, nothing to load), the same as Markdown, a CSV file per table and the figures. What is
        missing or failed is named. `locctx study` does this at its end; this command does it at any time.""",
        """
        locctx report locbam-btcv
        locctx report locbam-btcv -o /tmp/so_far
        """,
    )
    parser.add_argument("work", type=Path, metavar="WORK", help="work folder of the study (holds study.json)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write (default: report in the work folder)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    require("study")
    from nnunet_locctx.report import write_report

    page = write_report(options.work, options.output, progress=not options.quiet)
    print(f"wrote {page}")
    return CLEAN
