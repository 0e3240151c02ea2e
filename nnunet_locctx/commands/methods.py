"""`locctx methods`: the trainers side by side."""

import argparse
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command
from nnunet_locctx.methods.table import FORMATS, format_methods


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "methods",
        run,
        "list the trainers: what, source, place, encoding, cost, effect",
        """Lists the trainers that fit location into the planned U-Net, with what each does, where it was published,
        where and how encoded location enters
        unless the plans say otherwise, and what was measured: parameters, multiply-adds (MACs) and time of a training
        step relative to the planned U-Net, and Dice on a phantom whose organs only their position tells apart.""",
        """
        locctx methods
        locctx methods gpe --format markdown
        """,
    )
    parser.add_argument(
        "part", nargs="?", default="", metavar="NAME", help="only trainers whose name contains this"
    )
    parser.add_argument("--all", action="store_true", help="also those with networks of their own")
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help="default: table; markdown and json list all"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from nnunet_locctx.methods.description import list_methods
    from nnunet_locctx.methods.measured import read_measured

    short = options.format == "table" and not (options.all or options.part)
    print(format_methods(list_methods(options.part, planned=short), read_measured(), options.format))
    if short:
        print("\nTrainers with networks of their own: locctx methods --all")
    return CLEAN
