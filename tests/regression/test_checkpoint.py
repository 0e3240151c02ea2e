"""A fit's checkpoint is replaced as a whole."""

from pathlib import Path

import pytest
import torch

from nnunet_locctx.regression.checkpoint import TIMED_STEPS, Course
from tests.broken_files import full_disk


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    file = tmp_path / "fit" / "checkpoint.pt"
    course = Course(file, {"seed": 1}, 9, "a fit", progress=False)
    course.save({"step": 3, "weights": torch.ones(9)})
    with full_disk(5000), pytest.raises(OSError, match=f"File too large: '{file}'"):
        course.save({"step": 4, "weights": torch.ones(9999)})
    stored = course.resume(lambda stored: stored)
    assert stored is not None
    assert stored["step"] == 3
    assert list(file.parent.iterdir()) == [file]


def test_the_time_of_a_fit_is_said_after_a_few_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    course = Course(tmp_path / "checkpoint.pt", {}, 900, "a fit", progress=True)
    with course.bar:
        for step in range(1, 900):
            assert not course.step_ended(step)  # within a minute
            if step <= TIMED_STEPS:
                assert "min at most" not in capsys.readouterr().out
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "at most" in line]
    assert line.startswith("a fit: ")
    assert line.endswith(f"s a step on this machine, {900 - TIMED_STEPS - 1} steps to go: 1 min at most")
