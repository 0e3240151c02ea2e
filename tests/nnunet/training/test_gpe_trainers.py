"""GPETrainer and GPEHashTrainer: what the optimiser does with a hash table, and what a checkpoint says of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_locctx.blocks import GlobalPositionalEncoding, HashEncoding
from nnunet_locctx.nnunet.training import trainers
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from tests.nnunet.small_plans import configuration
from tests.nnunet.training.test_trainer import build

SMALL = {"levels": 2, "log2_entries": 8}


@pytest.fixture
def trained(make_trainer: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a trainer with its network."""

    def make(made_by: type[LocatedTrainer], **location: Any) -> Any:
        trainer = make_trainer(made_by.__name__, **location)
        trainer.network = build(made_by, configuration(location=location))
        return trainer

    return make


def test_the_table_is_trained_without_weight_decay(trained: Any) -> None:
    trainer = trained(trainers.GPEHashTrainer, block={"hash": SMALL})
    optimizer, _ = trainer.configure_optimizers()
    others, tables = optimizer.param_groups
    (table,) = tables["params"]
    assert table is trainer.network.location_blocks[0].encoding.table
    assert (tables["weight_decay"], others["weight_decay"]) == (0, trainer.weight_decay)
    assert trainer.weight_decay > 0
    for option in ("lr", "momentum", "nesterov"):
        assert tables[option] == others[option]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in trainer.network.parameters()
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(trainer.network.parameters())
    )


def test_entries_out_of_reach_stay(trained: Any) -> None:
    """A step of the optimiser moves what the patch has seen, and nothing else of the table."""
    trainer = trained(trainers.GPEHashTrainer, block={"hash": SMALL, "zero_init": False})
    optimizer, schedule = trainer.configure_optimizers()
    network = trainer.network.train()
    table = network.location_blocks[0].encoding.table
    nn.init.normal_(table)
    before = table.detach().clone()
    seen = torch.zeros_like(before, dtype=torch.bool)
    x = torch.rand(1, 4, 8, 8, 8) * 0.02
    for _ in range(2):
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
        seen |= table.grad != 0
    moved = table.detach() != before
    assert moved.any()
    assert not (moved & ~seen).any()
    assert not seen.all()
    schedule.step(1)
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


def test_other_trainers_keep_nnunet_s_groups(trained: Any) -> None:
    optimizer, _ = trained(trainers.GPETrainer).configure_optimizers()
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("made_by", "encoding", "bands"),
    [(trainers.GPETrainer, "frequency", 10), (trainers.GPEHashTrainer, "hash", 10)],
)
def test_the_checkpoint_names_the_encoding(made_by: type[LocatedTrainer], encoding: str, bands: int) -> None:
    network = build(made_by, configuration())
    says = json.loads(network.location_signature.decoded())
    assert (says["method"], says["block"]["encoding"], says["block"]["bands"]) == ("gpe", encoding, bands)
    blocks = list(network.location_blocks)
    assert all(isinstance(block, GlobalPositionalEncoding) for block in blocks)
    learned = [block.encoding for block in blocks if isinstance(block.encoding, HashEncoding)]
    assert len(learned) == (len(blocks) if encoding == "hash" else 0)


def test_a_checkpoint_keeps_to_its_encoding() -> None:
    small = build(trainers.GPEHashTrainer, configuration(location={"block": {"hash": SMALL}}))
    assert json.loads(small.location_signature.decoded())["block"]["hash"] == SMALL
    again = build(trainers.GPEHashTrainer, configuration(location={"block": {"hash": SMALL}}))
    again.load_state_dict(small.state_dict())
    waves = build(trainers.GPETrainer, configuration())
    with pytest.raises(ValueError, match=r'trained with .*"encoding": "hash".*the plans say .*"frequency"'):
        waves.location_signature.load_state_dict(small.location_signature.state_dict())
    for changed in ({"levels": 2, "log2_entries": 9}, {**SMALL, "extent": 2.0}):
        other = build(trainers.GPEHashTrainer, configuration(location={"block": {"hash": changed}}))
        with pytest.raises(ValueError, match="trained with the location options"):
            other.location_signature.load_state_dict(small.location_signature.state_dict())


def test_wrong_hash_options_stop_before_anything_is_written(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the hash encoding does not take tables"):
        trained(trainers.GPEHashTrainer, block={"hash": {"tables": 3}})
    with pytest.raises(ValueError, match="hash holds options of the encoding 'hash'"):
        trained(trainers.GPETrainer, block={"hash": SMALL})
    assert not (tmp_path / "results").exists()
