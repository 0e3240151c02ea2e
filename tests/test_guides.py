"""The commands printed in the documentation are commands of the package, with presets and studies that exist."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from nnunet_locctx.cli import COMMANDS, build_parser, main
from nnunet_locctx.nnunet.plans.presets import list_presets
from nnunet_locctx.resources import studies_folder

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        REPOSITORY / "README.md",
        *(page for folder in ("docs", "scripts") for page in (REPOSITORY / folder).rglob("*.md")),
    ]
)


def blocks(text: str) -> list[str]:
    """Fenced and indented code blocks of a Markdown page."""
    fenced = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^ *```\w*\n.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [*fenced, *re.findall(r"(?:^(?: {4}|\t).*\n)+", rest, re.MULTILINE)]


def command_lines(text: str) -> list[list[str]]:
    """The calls of `locctx` in code blocks, as a shell would split them."""
    found = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\$ )?locctx (?!\w+: )(.*)", line)  # "locctx plan: error" is printed
            if match:
                first = re.split(r" (?:&&|;|\||>) ", match[1])[0]
                found.append(shlex.split(first, comments=True))
    return found


def parse(arguments: list[str]) -> argparse.Namespace | None:
    """The parsed options; None for a call for help."""
    if {"--help", "-h", "--version"} & set(arguments):
        return None
    try:
        return build_parser().parse_args(arguments)
    except SystemExit as stopped:
        raise AssertionError(f"locctx {shlex.join(arguments)} is not a command (see stderr)") from stopped


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_of_the_pages_parse_and_name_what_exists(page: Path) -> None:
    studies = {file.stem for file in studies_folder().glob("*.yaml")}
    for arguments in command_lines(page.read_text(encoding="utf-8")):
        options = parse(arguments)
        for preset in getattr(options, "preset", None) or []:
            assert preset in list_presets() or preset.endswith(".json"), shlex.join(arguments)
        study = getattr(options, "study", None)
        assert study is None or study in studies or study.endswith(".yaml"), shlex.join(arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__.rsplit(".", 1)[-1])
def test_examples_of_the_help_parse_and_name_what_exists(command: object) -> None:
    """The examples below `locctx COMMAND --help`."""
    name = command.__name__.rsplit(".", 1)[-1]  # type: ignore[attr-defined]
    subparsers = next(
        action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    example = str(subparsers.choices[name].epilog).removeprefix("example:\n")
    lines = command_lines(f"```\n{example}\n```")
    studies = {file.stem for file in studies_folder().glob("*.yaml")}
    for arguments in lines:
        options = parse(arguments)
        study = getattr(options, "study", None)
        assert study is None or study in studies or study.endswith(".yaml"), shlex.join(arguments)


@pytest.mark.parametrize("guide", ["gpe", "lightmedseg", "locbam", "your-own-data"])
def test_guides_to_a_study_check_the_data_and_run_it(guide: str) -> None:
    text = (REPOSITORY / "docs" / "how-to" / f"{guide}.md").read_text()
    assert {"study", "check"} <= {arguments[0] for arguments in command_lines(text)}


def test_lines_are_found_as_written() -> None:
    text = "a\n```bash\nlocctx plan -d 3 \\\n  --preset patch32   # why\n$ locctx check -d 1\n```\n"
    text += "    locctx show x > y\nlocctx no\n"
    assert command_lines(text) == [
        ["plan", "-d", "3", "--preset", "patch32"],
        ["check", "-d", "1"],
        ["show", "x"],
    ]
    with pytest.raises(AssertionError, match="is not a command"):
        parse(["plan", "--fast"])


def test_presets_are_listed_as_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--list"]) == 0
    printed = f"$ locctx plan --list\n{capsys.readouterr().out}"
    assert printed in blocks((REPOSITORY / "docs" / "reference" / "commands.md").read_text())
