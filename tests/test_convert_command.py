"""`locctx convert` as a user calls it."""

from pathlib import Path

import pytest

from nnunet_locctx.cli import main
from nnunet_locctx.commands import convert
from nnunet_locctx.datasets.conversion import RELEASES
from tests.datasets import fake_releases as fake


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


def test_the_command_offers_every_release() -> None:
    assert tuple(RELEASES) == convert.RELEASES


def test_first_and_second_call(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fake.kits23(folders / "kits23", (0, 1, 2, 3, 4, 51))
    call = ["convert", "kits23", str(source), "-d", "220", "--partial", "--quiet", "-np", "1"]
    assert main(call) == 0
    target = folders / "nnUNet_raw" / "Dataset220_KiTS23"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wrote {target}: 5 training and 0 test cases"
    assert lines[1] == f"split: {folders / 'nnUNet_preprocessed' / 'Dataset220_KiTS23' / 'splits_final.json'}"
    reason = "excluded in the LocBAM paper (orientation or spacing)"
    assert lines[-3] == f"left out: case_00051: {reason}; nothing unusual in its header"
    assert lines[-2:] == ["next:", "  locctx check -d 220"]
    assert main(call) == 0
    assert capsys.readouterr().out.startswith(f"{target} exists and is whole: 5 training")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["btcv", "--with-mr"], "--with-mr is an option of amos22, not of btcv"),
        (
            ["amos22", "--split", "nnformer"],
            "--split of amos22 must be one of folds, official, got 'nnformer'",
        ),
        (["kits23", "-np", "0"], "processes must be at least 1, got 0"),
        (["kits23"], "is not a folder"),
        (["kits23", "--tolerance", "-1"], "the tolerance must be at least 0 voxels, got -1.0"),
    ],
)
def test_unusable_calls(
    folders: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release, *rest = arguments
    assert main(["convert", release, str(folders / "nowhere"), "-d", "3", *rest]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
