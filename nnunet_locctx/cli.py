"""`locctx`: the package's commands. Nothing slow (torch, nnU-Net, matplotlib) is imported before a command needs it."""

import argparse
import os
import select
import sys
from collections.abc import Sequence

from nnunet_locctx import __version__
from nnunet_locctx.commands import (
    check,
    convert,
    crop,
    demo,
    evaluate,
    extras,
    fit,
    landmarks,
    localize,
    methods,
    plan,
    postprocess,
    report,
    robustness,
    show,
    sources,
    study,
    trainers,
)
from nnunet_locctx.commands.common import FAILED, INTERRUPTED, UNREAD

COMMANDS = (
    trainers,
    methods,
    demo,
    convert,
    check,
    sources,
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
        Exit status: 0 done, 1 `locctx check` found something, 2 unusable input, 130 interrupted, 141 nobody reads what
        it prints any more.
    """
    try:
        return _run(arguments)
    finally:  # help leaves by SystemExit
        _nobody_reads()


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        status = extras.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk shows here, not when Python ends
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return UNREAD
        if options.traceback:
            raise
        words = f"not enough memory. {error}".strip() if isinstance(error, MemoryError) else str(error)
        print(f"locctx {options.command}: error: {words}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"locctx {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def _nobody_reads() -> bool:
    """Whether the other end of the pipe that is printed to was closed, as after `| head`; then the rest goes nowhere.

    Python would say so on stderr when it ends, and change the exit status.
    """
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError):  # closed, or no file
        return False
    watch = select.poll()
    watch.register(output, 0)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True


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
