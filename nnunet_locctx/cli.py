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
    fit,
    inspect,
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
from nnunet_locctx.commands.common import CLEAN, FAILED, INTERRUPTED, RED, UNREAD, Parser, run_command, styled

GROUPS = {
    "start": (demo, check, trainers, methods, sources, plan, show),
    "measure": (evaluate, inspect, postprocess, robustness),
    "papers": (convert, study, report),
    "anatomy": (fit, landmarks, localize, crop),
}
"""In the order of the help."""

COMMANDS = tuple(command for group in GROUPS.values() for command in group)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Command line without the program's name; None: that of the process.

    Returns:
        Exit status: 0 done, 1 `locctx check` or `locctx inspect` found something, 2 unusable input, 130 interrupted,
        141 nobody reads what it prints any more.
    """
    try:
        return _run(arguments)
    finally:  # help leaves by SystemExit
        _nobody_reads()


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        if getattr(options, "processes", 1) < 1:
            raise ValueError(f"--processes must be at least 1, got {options.processes}")
        status = run_command(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk shows here, not when Python ends
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return UNREAD
        if getattr(options, "traceback", False):
            raise
        words = f"not enough memory. {error}".strip() if isinstance(error, MemoryError) else str(error)
        print(f"locctx {options.command}: {styled('error:', RED, sys.stderr)} {words}", file=sys.stderr)
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
        watch = select.poll()
    except (AttributeError, OSError):  # closed, or no file; Windows cannot ask
        return False
    watch.register(output, 0)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="locctx",
        usage="locctx COMMAND [OPTIONS]",
        description="Location as input for nnU-Net v2. Training and prediction stay nnU-Net's own commands;\n"
        "`locctx` prepares and inspects. Each COMMAND has its own --help.",
        epilog='Before training or predicting: export nnUNet_extTrainer="$(locctx trainers)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )

    def bare(_: argparse.Namespace) -> int:
        parser.print_help()
        return CLEAN

    parser.set_defaults(run=bare)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS, prog="locctx")
    for command in COMMANDS:
        command.add(commands)
    names = iter(commands.choices.items())
    for title, group in GROUPS.items():
        lines = [f"{name:<14}{command.summary}" for name, command in (next(names) for _ in group)]
        parser.add_argument_group(title, "\n".join(lines))
    others = parser.add_argument_group("options")
    others.add_argument("-h", "--help", action="help", help="show this and stop")
    others.add_argument("--version", action="version", version=f"locctx {__version__}")
    return parser
