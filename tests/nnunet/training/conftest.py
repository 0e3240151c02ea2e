"""Trainers before their first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_locctx.nnunet.training import trainers
from tests.nnunet.small_plans import configuration, plans

DATASET = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}


@pytest.fixture
def make_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a trainer of that name with these location options; its results would go to ``tmp_path / "results"``."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))

    def make(name: str, **location: Any) -> Any:
        made = plans({"c": configuration(location=location)})
        return trainers.find_trainer(name)(made, "c", 0, dict(DATASET), torch.device("cpu"))

    return make
