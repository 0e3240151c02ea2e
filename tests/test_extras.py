"""What is not installed gives a sentence: which module, and what to type."""

import re
import sys
from pathlib import Path

import pytest

from nnunet_locctx.cli import main
from nnunet_locctx.commands.common import EXTRAS

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY = EXTRAS["study"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that must not begin says."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize("arguments", [["study", "phantom", "--dry-run"], ["report", "work"]])
@pytest.mark.parametrize("module", STUDY)
def test_commands_of_an_extra_name_it(
    arguments: list[str], module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = f"this command needs {module}, which is not installed: pip install 'nnunet-locctx[study]'\n"
    assert refused(arguments, capsys) == f"locctx {arguments[0]}: error: {message}"


@pytest.mark.parametrize("module", ["torch", "nnunetv2", "SimpleITK", "matplotlib", "nibabel"])
def test_no_command_ends_with_a_traceback(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imports(_: object) -> int:
        __import__(f"{module}.some_part")
        return 0

    monkeypatch.setattr("nnunet_locctx.commands.trainers.run", imports)
    monkeypatch.setitem(sys.modules, module, None)
    assert f"this command needs {module}, which is not installed" in refused(["trainers"], capsys)
    monkeypatch.setattr("nnunet_locctx.commands.trainers.run", lambda _: __import__("nnunet_locctx.no_such"))
    with pytest.raises(ModuleNotFoundError, match="no_such"):  # our own fault, not the installation's
        main(["trainers"])


def test_a_system_that_cannot_ask_whether_anybody_reads(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Windows has no `select.poll`."""
    monkeypatch.delattr("select.poll")
    assert main(["trainers"]) == 0
    assert capfd.readouterr().err == ""


def test_the_extras_are_those_of_the_package() -> None:
    declared = re.findall(r"(?ms)^(\w+) = \[(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text())
    listed = {name: re.findall(r'^    "([\w-]+)', text, re.MULTILINE) for name, text in declared}
    assert set(EXTRAS) <= set(listed)
    distributions = {"yaml": "pyyaml"}
    assert {distributions.get(name, name) for name in STUDY} | {"snakemake-executor-plugin-slurm"} == set(
        listed["study"]
    )
