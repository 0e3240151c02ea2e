"""What the commands share."""

import argparse
import json
import os
import textwrap
from collections.abc import Callable
from typing import Any

CLEAN, FINDINGS, FAILED = 0, 1, 2
"""Exit status: done; `locctx check` found something; the input was not usable."""

INTERRUPTED, UNREAD = 130, 141
"""Exit status as of shells after SIGINT and SIGPIPE: interrupted; nobody reads what is printed (`| head`)."""


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    example: str,
) -> argparse.ArgumentParser:
    """Adds the parser of one command.

    Args:
        commands: The subparsers of `locctx`.
        name: Name of the command.
        run: Does the work; returns the exit status.
        summary: One line for the list of the commands.
        description: What the command's own help says first.
        example: Command lines.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(" ".join(description.split()), 100),
        epilog="example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    parser.set_defaults(run=run)
    return parser


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the number of worker processes."""
    parser.add_argument(
        "-np",
        "--processes",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="worker processes that read scans (default: %(default)s)",
    )


def assignments(texts: list[str], option: str) -> dict[str, Any]:
    """OPTION=VALUE -> {OPTION: VALUE}; a value that is no JSON is text."""
    options: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ValueError(f"{option} needs OPTION=VALUE, got {text!r}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value  # a bare word is text
    return options
