"""`locctx sources`, `locctx plan --source auto` and a training with `jitter: auto` on preprocessed phantoms."""

import json
import shutil
from pathlib import Path

import pytest

from nnunet_locctx import cli
from nnunet_locctx.nnunet.data.fitted import REGRESSOR
from tests.integration.workspace import Workspace


def locctx(space: Workspace, command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with space.entered(1):
        status = cli.main(command.split())
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_sources_are_compared_and_the_recommended_one_is_planned_and_trained(
    phantom: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = phantom.copy(tmp_path)
    status, text = locctx(space, "sources -d 1 -np 1 --quick", capsys)
    assert (status, "\nbody " in text) == (0, False)  # its scans were never read
    status, text = locctx(space, f"sources -d 1 -np 1 -o {tmp_path / 'places.png'}", capsys)
    assert status == 0
    assert (tmp_path / "places.png").stat().st_size > 10_000
    assert "\nvoxel" in text
    assert "\nbody " in text
    assert "5 of 5" in text
    best = text.split("recommended: ")[1].split(",")[0]
    assert f"locctx plan -d 1 -p nnUNetPlans -c 3d_fullres --name 3d_fullres_{best} --source {best}" in text
    status, text = locctx(space, "plan -d 1 --name located --source auto --dropout 0.2", capsys)
    assert status == 0
    assert f"recommended: {best}" in text
    plans = json.loads((space.preprocessed / space.dataset / "nnUNetPlans_locctx.json").read_text())
    location = plans["configurations"]["located"]["location"]
    assert (location["source"], location["jitter"], location["dropout"]) == (best, "auto", 0.2)

    def add(plans: dict[str, dict[str, object]]) -> None:
        plans["configurations"]["located"] = {"inherits_from": "3d_fullres", "location": location}

    space.change_plans(add)
    space.train("ShortPriorHead", "located")
    assert "jitter (R, A, S): 0." in space.log("ShortPriorHead", "located")


def test_without_preprocessed_data_nothing_is_compared(
    phantom: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = phantom.copy(tmp_path)
    folder = space.preprocessed / space.dataset
    shutil.rmtree(folder / "nnUNetPlans_3d_fullres")
    before = sorted(folder.rglob("*"))
    words = (
        "that of 2d, 3d_lowres is: give one with -c, or run nnUNetv2_preprocess -d 1 -plans_name nnUNetPlans "
        "-c 3d_fullres"
    )
    for command in ("sources -d 1", "plan -d 1 --name located --source auto"):
        status, text = locctx(space, command, capsys)
        assert (status, f"is not there; {words}" in text) == (2, True)
    for command, words in (
        ("sources -d 1 -o here.jpg", "must be a .png"),
        ("sources -d 1 -np 0", "at least 1, got 0"),
    ):
        status, text = locctx(space, command, capsys)
        assert (status, words in text) == (2, True)
    assert sorted(folder.rglob("*")) == before


def test_training_measures_bodies_that_nobody_measured(phantom: Workspace, tmp_path: Path) -> None:
    space = phantom.copy(tmp_path)

    def add(plans: dict[str, dict[str, object]]) -> None:
        plans["configurations"]["body"] = {"inherits_from": "3d_fullres", "location": {"source": "body"}}

    space.change_plans(add)
    with space.entered(1):
        space.train("ShortPriorHead", "body")
    assert (space.preprocessed / space.dataset / "locctx_body" / REGRESSOR).is_file()
