"""The code in the documentation runs, or says why it is not run; its commands exist, with their presets and studies."""

import argparse
import importlib.util
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from nnunet_locctx.cli import COMMANDS, build_parser, main
from nnunet_locctx.nnunet.plans.presets import list_presets
from nnunet_locctx.resources import studies_folder

REPOSITORY = Path(__file__).resolve().parents[1]
SHELLS = ("bash", "console")
READ = ("text", "bibtex")
"""Languages of blocks with nothing to run."""
PROGRAMS = ("cd", "docker", "echo", "export", "pip")
"""Programs whose lines are not looked at."""
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


@dataclass(frozen=True)
class Code:
    """One fenced block of a page.

    Attributes:
        language: Behind the fence.
        text: The block.
        reason: Why no test runs it: that of the comment above it, or that of the page for its commands.
    """

    language: str
    text: str
    reason: str | None


def fenced(text: str) -> list[Code]:
    """The fenced blocks of a page, with the reasons in `<!-- not run: ... -->` and `<!-- commands not run: ... -->`."""
    of_page = re.search(r"<!-- commands not run: (.+?) -->", text, re.DOTALL)
    matches = re.findall(
        r"(?:<!-- not run: ([^>]+?) -->\n+)?^( *)```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE
    )
    return [
        Code(
            language,
            re.sub(rf"^{indent}", "", block, flags=re.MULTILINE),
            reason or (of_page[1] if of_page and language in SHELLS else None),
        )
        for reason, indent, language, block in matches
    ]


def shell_commands(code: Code) -> list[list[str]]:
    """The commands of a block; in `console` blocks those behind `$`, the rest is what they print."""
    lines = code.text.replace("\\\n", " ").splitlines()
    if code.language == "console":
        lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    parts = (part for line in lines for part in re.split(r" (?:&&|\|\||;|\|) ", line))
    return [words for words in (shlex.split(part, comments=True) for part in parts) if words]


def command_lines(text: str) -> list[list[str]]:
    """The calls of `locctx` in code blocks, as a shell would split them."""
    matches = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"\s*(?:\$ )?locctx (?!\w+: )(.*)", line)  # "locctx plan: error" is printed
            if match:
                first = re.split(r" (?:&&|;|\||>) ", match[1])[0]
                matches.append(shlex.split(first, comments=True))
    return matches


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


DOCUMENTATION = [
    page for page in PAGES if page.is_relative_to(REPOSITORY / "docs") or page.parent == REPOSITORY
]


@pytest.mark.parametrize("page", DOCUMENTATION, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_code_of_the_documentation_runs_or_says_why_not(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    codes, names = fenced(text), {"__name__": "__main__"}
    assert len(codes) == len(blocks(text)), "code stands between fences, not behind spaces"
    for code in codes:
        if code.language in SHELLS:
            run = [run_command(words) for words in shell_commands(code)]
            assert all(run) or code.reason, f"say above the block why no test runs it:\n{code.text}"
        elif code.language == "json":
            json.loads(code.text)
        elif code.language == "yaml":
            yaml.safe_load(code.text)
        elif code.language == "python" and not code.reason:
            exec(compile(code.text, str(page), "exec"), names)  # one after the other, as a reader types them
        elif code.language not in READ:
            assert code.reason, f"say above the block why no test runs it:\n{code.text}"
            assert code.language in ("python", "powershell"), f"{code.language!r} is no language of our pages"


def run_command(words: list[str]) -> bool:
    """Runs a command of the documentation if it needs no data; checks what can be checked of another.

    Returns:
        Whether it was run.
    """
    program, *arguments = words
    if program == "locctx" and (arguments[0] == "trainers" or "--list" in arguments):
        assert main(arguments) == 0
        return True
    if program.rpartition("/")[-1] in ("python", "python3"):
        if arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1]), f"{arguments[1]} is no module"
        elif "/" in arguments[0]:
            assert (REPOSITORY / arguments[0]).is_file(), f"{arguments[0]} is no file"
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), f"{arguments} are no targets"
    else:
        known = program in PROGRAMS or program == "locctx" or program.startswith("nnUNetv2_")
        assert known, f"{program} is no program that our pages use"
    return False


def test_blocks_have_their_reasons() -> None:
    text = (
        "<!-- not run: data -->\n\n```python\nno\n```\n```console\n$ locctx trainers | head\nprinted\n```\n"
    )
    assert fenced(text) == [
        Code("python", "no\n", "data"),
        Code("console", "$ locctx trainers | head\nprinted\n", None),
    ]
    assert [one.reason for one in fenced(f"<!-- commands not run: hours -->\n{text}")] == ["data", "hours"]
    assert shell_commands(fenced(text)[1]) == [["locctx", "trainers"], ["head"]]


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
