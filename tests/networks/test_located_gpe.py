"""Global positional encoding in a planned U-Net: one table for all stages, and where the deepest stage lies."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_locctx.blocks import GlobalPositionalEncoding
from nnunet_locctx.networks import Fitting, LocatedUNet
from tests.blocks.harness import randomise
from tests.networks.test_located_unet import feed, plan

SMALL = {"levels": 3, "log2_entries": 8, "base_resolution": 4}  # 64 + 216 + 256 entries
HASH: dict[str, Any] = {"encoding": "hash", "hash": SMALL}


def located(
    architecture: type[nn.Module] = PlainConvUNet, place: str = "stages", rank: int = 3
) -> LocatedUNet:
    return LocatedUNet(plan(architecture, rank), 1, Fitting("gpe", place, HASH))


def tables(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in network.named_parameters() if name.endswith("table")]


@pytest.mark.parametrize("architecture", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("rank", [2, 3])
def test_all_stages_share_one_table(architecture: type[nn.Module], rank: int) -> None:
    network = located(architecture, rank=rank)
    assert [block.channels for block in network.location_blocks] == [4, 6, 8, 6, 4]
    (table,) = tables(network)
    assert all(block.encoding.table is table for block in network.location_blocks)
    added = sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in plan(architecture, rank).parameters()
    )
    assert added == 2 * (64 + 216 + 256) + sum(6 * c + c + 3 * c for c in (4, 6, 8, 6, 4))


def test_the_table_learns_from_every_stage() -> None:
    network = located().train()
    randomise(network.location_blocks)
    x, _ = feed()
    network(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.location_blocks.parameters())
    (table,) = tables(network)
    assert table.grad is not None
    together = table.grad.clone()
    alone = torch.zeros_like(together)
    for block in network.location_blocks:
        block.encoding = copy.deepcopy(block.encoding)
        block.encoding.zero_grad()
    network(x).square().sum().backward()
    for block in network.location_blocks:
        assert block.encoding.table.grad.any()
        alone += block.encoding.table.grad
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_and_copies_keep_it_shared() -> None:
    network, other = located().eval(), located().eval()
    randomise(network.location_blocks)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    missing, unexpected = other.load_state_dict(plan().state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("location_blocks.") for name in missing)
    other.load_state_dict(network.state_dict())
    x, _ = feed()
    for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert len(tables(twin)) == 1
        assert torch.equal(twin(x), network(x))


def test_two_fittings_have_two_tables() -> None:
    network = LocatedUNet(plan(), 1, Fitting("gpe", "encoder", HASH), Fitting("gpe", "decoder", HASH))
    assert len(tables(network)) == 2


def test_frequencies_have_nothing_to_share() -> None:
    network = LocatedUNet(plan(), 1, Fitting("gpe", "stages", {"bands": 2}))
    encodings = [block.encoding for block in network.location_blocks]
    assert len({id(encoding) for encoding in encodings}) == 5


@pytest.mark.parametrize(
    ("rank", "patch", "stage"),
    [
        # strides against the patch: (1, 1, 1), (1, 2, 2), (2, 4, 4)
        (3, (16, 32, 32), 2),  # 8 x 8 x 8 tokens
        (3, (4, 32, 32), 2),  # 2 x 8 x 8 = 128
        (3, (4, 28, 32), 1),  # 2 x 7 x 8 = 112 are too few
        (3, (3, 31, 29), 2),  # rounded up: 2 x 8 x 8
        (3, (4, 8, 8), 0),  # 4 x 4 x 4 = 64 are too few
        (3, (2, 8, 4), 0),  # the first stage if none has enough
        (2, (64, 32), 2),
        (2, (32, 40), 1),  # 80 are too few
    ],
)
@pytest.mark.parametrize("architecture", [PlainConvUNet, ResidualEncoderUNet])
def test_where_encoder_deep_lies(
    architecture: type[nn.Module], rank: int, patch: tuple[int, ...], stage: int
) -> None:
    network = LocatedUNet(plan(architecture, rank), 1, Fitting("gpe", "encoder_deep"), patch_size=patch)
    (block,) = network.location_blocks
    assert isinstance(block, GlobalPositionalEncoding)
    assert block.channels == [4, 6, 8][stage]
    seen: list[int] = []
    block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[2:].numel()))
    shape = [
        -(-n // m) * m for n, m in zip(patch, (2, 4, 4)[3 - rank :] if rank == 3 else (4, 4), strict=True)
    ]
    network(torch.randn(1, 4, *shape))
    tokens = [tokens_of(shape, rank, index) for index in range(3)]
    assert seen == [tokens[stage]]
    assert seen[0] >= 128 or stage == 0
    assert all(count < 128 for count in tokens[stage + 1 :])


def tokens_of(shape: list[int], rank: int, stage: int) -> int:
    """Tokens of a stage of the plan, from its strides."""
    strides = {3: [(1, 1, 1), (1, 2, 2), (2, 4, 4)], 2: [(1, 1), (2, 2), (4, 4)]}[rank][stage]
    count = 1
    for n, s in zip(shape, strides, strict=True):
        count *= n // s
    return count


def test_encoder_deep_needs_the_patch() -> None:
    with pytest.raises(ValueError, match="'encoder_deep' depends on the patch: give patch_size"):
        LocatedUNet(plan(), 1, Fitting("gpe", "encoder_deep"))
