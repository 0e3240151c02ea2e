"""`locctx`: the package's commands. Nothing slow (torch, nnU-Net, matplotlib) is imported before a command needs it."""

import argparse
import sys
from collections.abc import Sequence

from nnunet_locctx import __version__
from nnunet_locctx.commands import (
    check,
    convert,
    crop,
    demo,
    evaluate,
    fit,
    landmarks,
    localize,
    methods,
    plan,
    postprocess,
    report,
    robustness,
    show,
    study,
    trainers,
)
from nnunet_locctx.commands.common import FAILED

COMMANDS = (
    trainers,
    methods,
    demo,
    convert,
    check,
    plan,
    fit,
    show,
    evaluate,
    postprocess,
    robustness,
    study,
    report,
    landmarks,
    localize,
    crop,
)
"""In the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Command line without the program's name; None: that of the process.

    Returns:
        Exit status: 0 done, 1 `locctx check` found something, 2 unusable input.
    """
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"locctx {options.command}: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"locctx {options.command}: interrupted", file=sys.stderr)
        return 130
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="locctx",
        description="Location as input for nnU-Net v2. Training and prediction stay nnU-Net's own commands; "
        "`locctx` prepares and inspects.",
        epilog='Before training or predicting: export nnUNet_extTrainer="$(locctx trainers)"',
    )
    parser.add_argument("--version", action="version", version=f"locctx {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
