import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunet_locctx.blocks import (
    FrequencyEncoding,
    GlobalPositionalEncoding,
    HashEncoding,
    make_block,
    make_positional_encodings,
    resize_location,
)
from nnunet_locctx.blocks.gpe import share_encodings
from tests.blocks.harness import BlockHarness, ramp, randomise

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "frequency_encoding.npz"
SMALL = {"levels": 4, "log2_entries": 9, "base_resolution": 5}


class TestGPE(BlockHarness):
    block = "gpe"
    wrong_options = [  # noqa: RUF012
        ({"stride": 0}, "stride must be an integer >= 1, got 0"),
        (
            {"hash": {"levels": 4}},
            "hash holds options of the encoding 'hash', but the encoding is 'frequency'",
        ),
        (
            {"encoding": "hash", "hash": {"level": 4}},
            "the hash encoding does not take level; .*levels, ",
        ),
        ({"encoding": "hash", "hash": {"band_limit": False}}, "hash encoding does not take band_limit"),
        ({"encoding": "hash", "hash": {"levels": 40}}, "levels must be an integer from 1 to 32, got 40"),
        ({"encoding": "hash", "hash": 4}, "hash must be a table of options, got 4"),
    ]

    def test_is_the_formula(self) -> None:
        block = randomise(self.make(4))
        assert isinstance(block, GlobalPositionalEncoding)
        features, location = torch.randn(2, 4, 3, 5, 4), ramp(2, (3, 5, 4))
        encoded = FrequencyEncoding(bands=10, base=1.0)(location)
        added = torch.einsum("ce,bexyz->bcxyz", block.project.weight.flatten(1), encoded)
        expected = features + added + block.project.bias.view(4, 1, 1, 1)
        torch.testing.assert_close(block(features, location), expected)

    def test_has_the_published_encoding(self) -> None:
        """Through the block: a projection that passes the 63 channels on."""
        fixture = {name: torch.from_numpy(array) for name, array in np.load(FIXTURE).items()}
        block = self.make(63, band_limit=False)
        assert isinstance(block, GlobalPositionalEncoding)
        assert block.project.weight.shape == (63, 63, 1, 1, 1)
        nn.init.eye_(block.project.weight.data.view(63, 63))
        encoded = block(torch.zeros(2, 63, 4, 5, 6), fixture["location"])
        torch.testing.assert_close(encoded, fixture["encoding"], atol=1e-5, rtol=0)


class TestGPEHash(BlockHarness):
    block = "gpe"
    options = {"encoding": "hash", "hash": SMALL}  # noqa: RUF012

    def test_is_the_formula(self) -> None:
        block = randomise(self.make(4))
        assert isinstance(block, GlobalPositionalEncoding)
        encoding = HashEncoding(**SMALL)
        encoding.load_state_dict(block.encoding.state_dict())
        features, location = torch.randn(2, 4, 3, 5, 4), ramp(2, (3, 5, 4))
        added = torch.einsum("ce,bexyz->bcxyz", block.project.weight.flatten(1), encoding(location))
        expected = features + added + block.project.bias.view(4, 1, 1, 1)
        torch.testing.assert_close(block(features, location), expected)

    def test_a_checkpoint_from_before_the_flags_loads(self) -> None:
        block = randomise(self.make(4))
        state = {name: value for name, value in block.state_dict().items() if name != "flags.weight"}
        assert len(state) == len(block.state_dict()) - 1
        block.load_state_dict(state)
        assert not block.flags.weight.any()  # type: ignore[union-attr, operator]

    def test_starts_at_a_zero_table_and_a_projection_that_passes_gradients(self) -> None:
        block = self.make(4)
        assert not block.encoding.table.any()
        assert not block.project.bias.any()
        assert block.project.weight.all()
        (block(torch.randn(1, 4, 4, 5, 6), ramp(1, (4, 5, 6))) ** 2).sum().backward()
        assert block.encoding.table.grad.any()

    def test_learns_as_nnunet_trains(self) -> None:
        """A ball that only its place tells apart, from few crops, by nnU-Net's SGD."""
        torch.manual_seed(0)
        block = self.make(4)
        head = nn.Sequential(nn.LeakyReLU(), nn.Conv3d(4, 1, 1))
        optimizer = torch.optim.SGD(
            [*block.parameters(), *head.parameters()], 1e-2, momentum=0.99, nesterov=True
        )
        axis = (torch.arange(16) + 0.5) / 16 - 0.5
        full = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))[None]
        centre = torch.tensor([0.2, -0.1, 0.15]).view(1, 3, 1, 1, 1)
        losses = []
        for _ in range(150):
            a, b, c = torch.randint(0, 9, (3,)).tolist()
            location = full[..., a : a + 8, b : b + 8, c : c + 8]
            ball = ((location - centre).norm(dim=1, keepdim=True) < 0.25).float()
            logits = head(block(0.5 * torch.randn(1, 4, 8, 8, 8), location))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, ball)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-30:]) < 0.5 * sum(losses[:30])

    def test_band_limit_reaches_the_encoding(self) -> None:
        for band_limit in (True, False):
            encoding = self.make(4, band_limit=band_limit).encoding
            assert isinstance(encoding, HashEncoding)
            assert encoding.band_limit == band_limit


class TestGPEStride(BlockHarness):
    block = "gpe"
    options = {"stride": 2, "bands": 3}  # noqa: RUF012


class TestGPEPublishedStart(BlockHarness):
    block = "gpe"
    options = {"zero_init": False, "bands": 4}  # noqa: RUF012
    identity_at_start = False

    @pytest.mark.parametrize("encoding", ["frequency", "hash"])
    def test_is_torch_s_own(self, encoding: str) -> None:
        torch.manual_seed(5)
        block = self.make(6, encoding=encoding)
        torch.manual_seed(5)
        if encoding == "hash":
            HashEncoding()
        conv = nn.Conv3d({"frequency": 27, "hash": 32}[encoding], 6, 1)
        assert torch.equal(block.project.weight, conv.weight)
        assert torch.equal(block.project.bias, conv.bias)


ENCODINGS: list[dict[str, Any]] = [
    {"encoding": "frequency"},
    {"encoding": "identity"},
    {"encoding": "hash"},
    {"encoding": "hash", "band_limit": False, "hash": {"levels": 6}},
]


@pytest.mark.parametrize("options", ENCODINGS)
@pytest.mark.parametrize("flipped", [(2,), (3, 4), (2, 3, 4)])
def test_follows_flips(options: dict[str, Any], flipped: tuple[int, ...]) -> None:
    """Mirrored features with their mirrored location give the mirrored result, at any stage."""
    block = randomise(make_block("gpe", 5, 3, **options)).double()
    full = ramp(2, (8, 12, 10)).double()
    for size in ((8, 12, 10), (4, 6, 5), (3, 5, 4)):
        features, location = torch.randn(2, 5, *size).double(), resize_location(full, size)
        back = resize_location(full.flip(flipped), size)
        expected = block(features, location).flip(flipped)
        torch.testing.assert_close(block(features.flip(flipped), back), expected)


@pytest.mark.parametrize("options", ENCODINGS)
def test_a_crop_is_the_crop(options: dict[str, Any]) -> None:
    """Nothing depends on the size of the patch, so padding around it changes nothing inside."""
    block = randomise(make_block("gpe", 5, 3, **options)).double()
    features, location = torch.randn(2, 5, 8, 10, 9).double(), ramp(2, (8, 10, 9)).double()
    crop = (..., slice(1, 7), slice(0, 4), slice(3, 9))
    torch.testing.assert_close(block(features[crop], location[crop]), block(features, location)[crop])


@pytest.mark.parametrize("encoding", ["frequency", "identity", "hash"])
def test_a_token_is_encoded_at_its_centre(encoding: str) -> None:
    """A token of 2x3 voxels: not at its first voxel."""
    block = randomise(make_block("gpe", 4, 2, encoding=encoding, band_limit=False))
    full = ramp(1, (8, 12))
    added = block(torch.zeros(1, 4, 4, 4), resize_location(full, (4, 4)))[..., 1, 1]
    centre = full[..., 2:4, 3:6].mean(dim=(2, 3), keepdim=True)
    nothing = torch.zeros(1, 4, 1, 1)
    torch.testing.assert_close(block(nothing, centre)[..., 0, 0], added, atol=1e-4, rtol=1e-4)
    assert (block(nothing, full[..., 2:3, 3:4])[..., 0, 0] - added).abs().max() > 1e-3


class TestSharedTable:
    channels = (4, 6, 8)

    def make(self, **options: Any) -> nn.ModuleList:
        return make_positional_encodings([*self.channels], 3, encoding="hash", hash=SMALL, **options)

    def tables(self, stages: nn.Module) -> list[Tensor]:
        return [parameter for name, parameter in stages.named_parameters() if name.endswith("table")]

    def test_is_one_tensor_counted_once(self) -> None:
        stages = self.make()
        assert len(self.tables(stages)) == 1
        assert len({id(block.encoding) for block in stages}) == 1
        projections = sum(c * 8 + c + c * 3 for c in self.channels)  # flags of the axes as well
        table = HashEncoding(**SMALL).grid.parameters
        assert sum(p.numel() for p in stages.parameters()) == projections + table

    def test_gets_the_sum_of_the_stages_gradients(self) -> None:
        stages = randomise(self.make())
        location = ramp(1, (4, 6, 5))
        (table,) = self.tables(stages)
        sums = []
        for chosen in ([0], [1], [2], [0, 1, 2]):
            stages.zero_grad()
            for index in chosen:
                stages[index](torch.zeros(1, self.channels[index], 4, 6, 5), location).sum().backward()
            assert table.grad is not None
            sums.append(table.grad.clone())
        torch.testing.assert_close(sums[0] + sums[1] + sums[2], sums[3])

    def test_state_dict_round_trip(self) -> None:
        stages, other = randomise(self.make()), self.make()
        other.load_state_dict(stages.state_dict())
        assert torch.equal(self.tables(other)[0], self.tables(stages)[0])
        assert len(self.tables(other)) == 1
        assert [key for key in stages.state_dict() if key.endswith("table")] == [
            f"{index}.encoding.table" for index in range(3)
        ]

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
    def test_copies_share_it_too(self, how: str) -> None:
        stages = randomise(self.make())
        if how == "deepcopy":
            twin = copy.deepcopy(stages)
        elif how == "pickle":
            twin = pickle.loads(pickle.dumps(stages))
        else:
            file = io.BytesIO()
            torch.save(stages, file)
            file.seek(0)
            twin = torch.load(file, weights_only=False)
        assert len(self.tables(twin)) == 1
        assert torch.equal(self.tables(twin)[0], self.tables(stages)[0])
        with torch.no_grad():
            self.tables(twin)[0].zero_()
        assert not twin[2].encoding.table.any()
        assert self.tables(stages)[0].any()

    def test_other_encodings_are_left_alone(self) -> None:
        blocks: list[nn.Module] = [make_block("gpe", 4, 3), make_block("gpe", 5, 3), nn.Identity()]
        before = [blocks[0].encoding, blocks[1].encoding]
        share_encodings(blocks)
        assert [blocks[0].encoding, blocks[1].encoding] == before
        assert before[0] is not before[1]

    def test_tables_of_another_shape_are_not_shared(self) -> None:
        blocks: list[nn.Module] = [
            make_block("gpe", 4, 3, encoding="hash", hash={**SMALL, "levels": levels}) for levels in (2, 3, 2)
        ]
        with pytest.raises(
            ValueError, match="one hash table can be shared by blocks of the same options only"
        ):
            share_encodings(blocks)
