"""Denormal floats count as 0 while a located network trains on the CPU, and only then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_locctx.denormals import flushed
from nnunet_locctx.nnunet.training.trainer import DenormalsFlushed
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from tests.nnunet.small_plans import configuration, plans

DATASET = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}


def make(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return TRAINERS[name](plans({"c": configuration()}), "c", 0, dict(DATASET), torch.device("cpu"))


def test_from_initialisation_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda _: None)
    monkeypatch.setattr(nnUNetTrainer, "on_train_end", lambda _: None)
    trainer = make("LocCtxTrainer", tmp_path, monkeypatch)
    assert not flushed()
    DenormalsFlushed.initialize(trainer)
    assert flushed()
    trainer.on_train_end()
    assert not flushed()


def test_before_the_network_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda _: seen.append(flushed()))
    DenormalsFlushed.initialize(make("LocBAMTrainer", tmp_path, monkeypatch))
    assert seen == [True]


def test_not_on_other_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda _: None)
    trainer = make("LocCtxTrainer", tmp_path, monkeypatch)
    trainer.device = torch.device("cuda")
    DenormalsFlushed.initialize(trainer)
    assert not flushed()


@pytest.mark.parametrize("name", sorted(TRAINERS))
def test_in_every_trainer(name: str) -> None:
    trainer = TRAINERS[name]
    assert issubclass(trainer, DenormalsFlushed)
    order = trainer.__mro__
    assert order.index(DenormalsFlushed) < order.index(nnUNetTrainer)
