"""nnU-Net's commands and those around them, as processes of their own."""

import re
from pathlib import Path

import pytest

from nnunet_locctx.cli import build_parser
from tests.integration.real_commands import Folders, prepare, run, steps
from tests.test_guides import PAGES, command_lines


def test_steps_have_names_of_their_own() -> None:
    names = [step.name for step in steps()]
    assert len(names) == len(set(names)) > 20


def test_commands_of_the_package_parse() -> None:
    """A command that is no longer one fails here, not after half an hour."""
    given = [step.command for step in steps() if step.command.startswith("locctx ")]
    lines = command_lines("```\n" + "\n".join(given) + "\n```\n")
    assert len(lines) == len(given) > 2
    for arguments in lines:
        build_parser().parse_args(arguments)


def test_every_command_of_nnunet_in_the_documentation_is_run() -> None:
    """Or, of nnUNetv2_plan_and_preprocess, its three parts."""

    def named(text: str) -> set[str]:
        return set(re.findall(r"\bnnUNetv2_[a-z_]+[a-z]\b", text))

    pages = set().union(*(named(page.read_text(encoding="utf-8")) for page in PAGES))
    assert "nnUNetv2_train" in pages
    assert pages - named("\n".join(step.command for step in steps())) == {"nnUNetv2_plan_and_preprocess"}


@pytest.mark.slow
def test_every_command_does_what_it_should(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "commands")
    prepare(folders)
    for step in steps():
        print(f"{step.name}: {run(step, folders)}")
