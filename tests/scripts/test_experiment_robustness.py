"""The experiment on wrong locations: its documents, from one work folder and from two that shared the work."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scripts.experiments.robustness import run as experiment_robustness
from scripts.experiments.robustness.run import BEGIN, END, RobustnessSettings, section, together


def point(model: str, percent: float, dice: float | None, axes: str = "axial") -> dict[str, Any]:
    return {"model": model, "kind": "shift", "axes": axes, "percent": percent, "dice": dice, "cases": 4}


def record(*points: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    machine = {"processor": "a processor", "versions": {"torch": "2"}}
    commands = [f"locctx {name}" for name in seconds]
    return {
        "settings": asdict(RobustnessSettings()),
        "machine": machine,
        "seconds": seconds,
        "commands": commands,
        "points": list(points),
    }


def test_two_folders_make_one_record() -> None:
    first = record(point("voxel", 0, 0.5), seconds={"phantom": 1.0, "train_voxel": 2.0})
    second = record(
        point("voxel", 0, 0.1), point("anatomical", 0, 0.7), seconds={"phantom": 3.0, "train_anatomical": 4.0}
    )
    found = together([first, second])
    assert found["seconds"] == {"phantom": 1.0, "train_voxel": 2.0, "train_anatomical": 4.0}
    assert [(p["model"], p["dice"]) for p in found["points"]] == [("voxel", 0.5), ("anatomical", 0.7)]
    assert found["commands"] == ["locctx phantom", "locctx train_voxel", "locctx train_anatomical"]
    assert len(first["points"]) == 1  # the parts stay as they were
    swapped = [p["model"] for p in together([second, first])["points"]]
    assert swapped == ["voxel", "anatomical"]  # in the order of the sources


def test_a_line_for_each_model_and_axes() -> None:
    points = [point("voxel", 0, 0.5), point("voxel", 10, None)]
    points += [point("voxel", 0, 0.25, "all"), point("voxel", 10, 0.0, "all")]
    rows = [line for line in section(record(*points, seconds={})).splitlines() if line.startswith("| voxel")]
    assert rows == ["| voxel | along the body | 0.50 | - |", "| voxel | along all axes | 0.25 | 0.00 |"]


def test_several_folders_only_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        experiment_robustness.main(["--work", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "--work takes one folder unless --report is given, got 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_measured_yet(tmp_path: Path) -> None:
    (tmp_path / "results.md").write_text(f"{BEGIN}\n{END}\n")
    with pytest.raises(ValueError, match=r"nothing has been measured in .*work yet"):
        experiment_robustness.main(["--report", "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    assert (tmp_path / "results.md").read_text() == f"{BEGIN}\n{END}\n"
