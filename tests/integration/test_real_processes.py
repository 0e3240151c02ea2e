"""nnU-Net's commands as processes of their own: the whole record of docs/commands-record.md, made anew."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.workspace import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "record_commands.py"


def test_steps_have_names_of_their_own() -> None:
    """A record that goes on finds what is done by name."""
    listed = subprocess.run(
        [sys.executable, str(SCRIPT), "--list"], capture_output=True, text=True, check=True
    )
    names = [line.split(": nnUNetv2_")[0] for line in listed.stdout.splitlines()]
    assert len(names) == len(set(names)) > 50


@pytest.mark.slow
def test_every_command_does_what_it_should(tmp_path: Path) -> None:
    page = tmp_path / "commands-record.md"
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path / "record"), "--output", str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = page.read_text()
    assert "not run yet" not in text
    assert "not as it should be" not in text
