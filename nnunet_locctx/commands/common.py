"""Code that the commands share."""

import argparse
import importlib.util
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from nnunet_locctx.names import instead
from nnunet_locctx.resources import trainers_folder, with_pages

CLEAN, FINDINGS, FAILED = 0, 1, 2
"""Exit status: done; `locctx check` or `inspect` found something; the input was not usable."""

INTERRUPTED, UNREAD = 130, 141
"""Exit status as of shells after SIGINT and SIGPIPE: interrupted; nobody reads what is printed (`| head`)."""

BOLD, RED, YELLOW, CYAN = 1, 31, 33, 36
"""Style codes of a terminal."""

EXTRAS = {"study": ("snakemake", "jinja2", "yaml", "pydantic")}
"""Extra of pyproject.toml -> its modules that commands need."""


def styled(text: str, style: int, stream: TextIO | None = None) -> str:
    """The text with the codes of a style for a terminal; unchanged for a file, a pipe, or a user who set NO_COLOR.

    Args:
        text: The text.
        style: A style code, such as :data:`BOLD`.
        stream: Where it is printed; None: standard output.
    """
    stream = stream or sys.stdout
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or stream is None or not stream.isatty() else f"\033[{style}m{text}\033[0m"


def print_next(lines: Iterable[str]) -> None:
    """Prints the commands to type next, in their order; nnU-Net's are preceded by the export that it needs."""
    lines = list(lines)
    known = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    if any("-tr " in line for line in lines) and str(trainers_folder()) not in known:
        lines.insert(0, 'export nnUNet_extTrainer="$(locctx trainers)"')
    print("\n  ".join([styled("next:", BOLD), *lines]))


def warn(sentence: str) -> None:
    """Prints a warning."""
    print(f"{styled('warning:', YELLOW)} {sentence}")


class Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest name for an unknown one.

    Attributes:
        summary: One line for the list of the commands.
    """

    summary = ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(
                action, f"unknown {value!r}{instead(value, map(str, action.choices))}"
            )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses an unknown option in the parser of its command."""
        parsed, rest = super().parse_known_args(args, namespace)
        for option in rest:
            if option.startswith("--"):
                meant = instead(option.partition("=")[0], self._option_string_actions)
                self.error(f"unknown option {option}{meant if 'did you mean' in meant else ''}")
        return parsed, rest

    def format_help(self) -> str:
        """The help with styled headings and options."""
        text = super().format_help()
        if hasattr(self, "color"):
            return text  # Python 3.14 styles the help
        text = re.sub(r"(?m)^\S.*:$", lambda heading: styled(heading[0], BOLD), text)
        return re.sub(r"(?<![\w-])--?[a-z][\w-]*", lambda option: styled(option[0], CYAN), text)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    example: str,
) -> Parser:
    """Adds the parser of one command.

    Args:
        commands: The subparsers of `locctx`.
        name: Name of the command.
        run: Does the work; returns the exit status.
        summary: One line for the list of the commands.
        description: Begins the command's own help.
        example: Command lines.
    """
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(with_pages(" ".join(description.split())), 100, break_on_hyphens=False),
        epilog="example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.summary = summary
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,  # a subcommand's own default would undo what stands before it
        help="show where in the code an error arose",
    )
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
        help="worker processes that read scans, if there are many (default: %(default)s)",
    )


def add_dataset_json(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the two options that name the dataset.json; :func:`dataset_json` evaluates them."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-d",
        "--dataset",
        metavar="ID",
        help=f"dataset in nnUNet_raw, for its dataset.json (default: {default})",
    )
    where.add_argument("--dataset-json", type=Path, metavar="FILE", help="the same as a file")


def dataset_json(options: argparse.Namespace) -> Path | None:
    """The dataset.json of the options of :func:`add_dataset_json`.

    Raises:
        ValueError: There is no such dataset.
    """
    from nnunet_locctx.nnunet.data.paths import dataset_folder

    if options.dataset is None:
        return options.dataset_json
    return dataset_folder("nnUNet_raw", options.dataset) / "dataset.json"


def add_regressor(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name the regressor, one of which is needed."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "-d", "--dataset", metavar="ID", help="dataset on which a regressor was fitted (locctx fit ape)"
    )
    where.add_argument("--regressor", type=Path, metavar="FILE", help="file of a fitted regressor")


def check_folder(option: str, folder: Path | None) -> None:
    """Raises ValueError if an option's folder does not exist."""
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{option}: there is no folder {folder}")


def check_model(folder: Path | None) -> None:
    """Raises ValueError if an option's folder is not the folder of a trained model."""
    if folder is not None and not (folder / "plans.json").is_file():
        raise ValueError(
            f"{folder} is not the folder of a trained model (TRAINER__PLANS__CONFIGURATION below nnUNet_results)"
        )


def check_file(file: Path | None) -> None:
    """Raises ValueError if an option's file does not exist."""
    if file is not None and not file.is_file():
        raise ValueError(f"no file {file}")


def check_device(device: str | None) -> None:
    """Raises ValueError if torch knows no such device; the machine need not have it."""
    if device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"--device must be cpu, cuda (also cuda:1) or mps, got {device!r}")


def check_output(option: str, file: Path | None) -> None:
    """Raises ValueError if a file cannot be written: its folder is missing, or it is a folder itself."""
    if file is None:
        return
    if not file.resolve().parent.is_dir():
        raise ValueError(f"{option}: there is no folder {file.resolve().parent}")
    if file.is_dir():
        raise ValueError(f"{option}: {file} is a folder")


def assignments(texts: list[str], option: str) -> dict[str, Any]:
    """OPTION=VALUE -> {OPTION: VALUE}; a value that is not JSON is text."""
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


def require(extra: str) -> None:
    """Raises ValueError if a module of an extra is not installed, before a command begins."""
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        names = f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed"
        raise ValueError(f"this command needs {names}: pip install 'nnunet-locctx[{extra}]'")


def run_command(options: argparse.Namespace) -> int:
    """Runs a command; returns its exit status.

    Raises:
        ValueError: Among others, a module of another package is missing.
    """
    try:
        status: int = options.run(options)
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        if package == "nnunet_locctx":
            raise
        raise ValueError(
            f"this command needs {package}, which is not installed. Install nnunet_locctx again with pip, which "
            "installs its requirements"
        ) from error
    return status
