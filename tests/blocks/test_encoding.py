import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_locctx.blocks import (
    Encoding,
    FrequencyEncoding,
    GlobalEncoding,
    HashEncoding,
    IdentityEncoding,
    make_block,
    resize_location,
)
from nnunet_locctx.blocks.encoding import token_step
from tests.blocks.harness import ramp

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "frequency_encoding.npz"


def straight(*size: int, extent: float = 1.0) -> torch.Tensor:
    """(1, 3, *size): coordinate k along axis k, `extent` from border to border."""
    axes = [((torch.arange(n) + 0.5) / n - 0.5) * extent for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def test_identity() -> None:
    location = ramp(2, (3, 4, 5))
    assert torch.equal(IdentityEncoding()(location), location)


def test_reproduces_the_published_frequencies() -> None:
    fixture = {name: torch.from_numpy(array) for name, array in np.load(FIXTURE).items()}
    encoding = FrequencyEncoding(bands=10, base=1.0, band_limit=False)
    assert encoding.channels == 63
    torch.testing.assert_close(encoding(fixture["location"]), fixture["encoding"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep_identity", [True, False])
@pytest.mark.parametrize("size", [(7,), (5, 6), (3, 4, 5)])
def test_layout_and_base(size: tuple[int, ...], keep_identity: bool) -> None:
    location = torch.randn(2, 3, *size) * 0.01
    encoding = FrequencyEncoding(bands=3, keep_identity=keep_identity, band_limit=False)
    parts = [location] if keep_identity else []
    for wave in (torch.sin, torch.cos):
        parts += [wave(math.pi * 2**band * location[:, [k]]) for k in range(3) for band in range(3)]
    expected = torch.cat(parts, dim=1)
    assert encoding.channels == expected.shape[1]
    torch.testing.assert_close(encoding(location), expected)


@pytest.mark.parametrize("n", [4, 8, 32, 100])
def test_a_band_fades_out_before_it_aliases(n: int) -> None:
    encoding = FrequencyEncoding(bands=10)
    weights = encoding.band_weights(straight(n, n, n))[0, 0]
    for band, weight in enumerate(weights.tolist()):
        phase_step = math.pi * 2**band / n
        if phase_step <= math.pi / 2 + 1e-4:
            assert weight == pytest.approx(1.0, abs=1e-4)
        elif phase_step >= math.pi * (1 + 1e-5):
            assert weight == 0.0
        elif phase_step < math.pi * 0.999:
            assert 0 < weight < 1
    assert (weights.diff() <= 0).all()


def test_what_is_left_is_not_aliased() -> None:
    """Every band that a coarse stage keeps at full weight is the fine one, averaged, up to the averaging's
    own loss."""
    fine, encoding = straight(64, 2, 2), FrequencyEncoding(bands=8, keep_identity=False)
    coarse = resize_location(fine, (16, 2, 2))
    weights = encoding.band_weights(coarse)[0, 0]
    waves = encoding(coarse)[0, :8, :, 0, 0]
    truth = torch.sin(encoding.frequencies[:, None] * coarse[0, 0, :, 0, 0])
    kept = weights == 1
    assert kept.tolist() == [True] * 4 + [False] * 4  # up to 2 pi / 16 * 2**2: a quarter turn per token
    torch.testing.assert_close(waves[kept], truth[kept])
    assert not waves[weights == 0].any()


def test_each_sample_has_its_own_limit() -> None:
    encoding = FrequencyEncoding(bands=6)
    near, far = straight(16, 16, 16, extent=0.2), straight(16, 16, 16)
    both = encoding.band_weights(torch.cat([near, far]))
    assert torch.equal(both[:1], encoding.band_weights(near))
    assert torch.equal(both[1:], encoding.band_weights(far))
    assert both[0].sum() > both[1].sum()


def test_step_of_a_rotated_location_counts_all_axes() -> None:
    location = straight(8, 8, 8)
    turned = torch.stack([location[:, 0] + location[:, 1], location[:, 1], location[:, 2]], dim=1)
    torch.testing.assert_close(token_step(turned), torch.tensor([[0.25, 0.125, 0.125]]))


def test_one_token_has_no_step() -> None:
    assert not token_step(torch.randn(2, 3, 1, 1, 1)).any()
    assert FrequencyEncoding(bands=4)(torch.full((1, 3, 1, 1), 0.2)).isfinite().all()


def test_float32_under_autocast() -> None:
    location = straight(6, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert FrequencyEncoding()(location).dtype == torch.float32
        assert FrequencyEncoding()(location.half()).dtype == torch.float32
        assert IdentityEncoding()(location.half()).dtype == torch.float32


def test_mirroring_negates_the_sines() -> None:
    encoding = FrequencyEncoding(bands=4, keep_identity=False)
    location = straight(6, 7, 8)
    encoded, mirrored = encoding(location), encoding(-location)
    torch.testing.assert_close(mirrored[:, :12], -encoded[:, :12])
    torch.testing.assert_close(mirrored[:, 12:], encoded[:, 12:])


def test_carries_nothing_in_the_state_dict() -> None:
    assert FrequencyEncoding().state_dict() == {}


@pytest.mark.parametrize("name", ["identity", "frequency"])
def test_options_of_the_hash_encoding_are_its_own(name: str) -> None:
    GlobalEncoding(name, hash={}).make()
    with pytest.raises(
        ValueError, match=f"hash holds options of the encoding 'hash', but .* is '{name}'; got {{'lev"
    ):
        GlobalEncoding(name, hash={"levels": 4}).make()


def test_hash_by_name() -> None:
    encoding = GlobalEncoding("hash", band_limit=False, hash={"levels": 2, "log2_entries": 8}).make()
    assert isinstance(encoding, HashEncoding)
    assert (encoding.grid.levels, encoding.grid.log2_entries, encoding.band_limit) == (2, 8, False)
    assert encoding.channels == 4
    with pytest.raises(
        ValueError,
        match=r"the hash encoding does not take level; allowed: levels, features, log2_entries, "
        r"base_resolution, scale, backend, extent, gain$",
    ):
        GlobalEncoding("hash", hash={"level": 2}).make()


def test_says_which_encodings_there_are() -> None:
    with pytest.raises(ValueError, match=r"one of \('identity', 'frequency', 'hash'\), got 'sine'"):
        GlobalEncoding("sine").make()


@pytest.mark.parametrize("block", ["coordconv", "locbam", "prior"])
def test_blocks_that_refuse_a_hash_table(block: str) -> None:
    with pytest.raises(
        ValueError, match=r"one of \('identity', 'frequency'\), got 'hash', .* only the block 'gpe'"
    ):
        make_block(block, 4, 3, encoding="hash")
    with pytest.raises(ValueError, match=f"block '{block}' does not take hash"):
        make_block(block, 4, 3, hash={"levels": 4})


SHIFTS = (1.0, -1.0, 2.0, 0.5, 1.5)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_by_whole_volumes_is_seen_by_all_waves_but_the_finest(shift: float) -> None:
    """With doubling frequencies all but the lowest repeat after one unit."""
    here = torch.linspace(-0.5, 0.5, 101).view(1, 1, -1).expand(1, 3, -1)

    def moved(encoding: FrequencyEncoding) -> list[float]:
        """Change of each band's sine and cosine, at least anywhere."""
        change = (encoding(here + shift) - encoding(here))[0, 3:].view(2, 3, encoding.bands, -1)
        return change.square().sum(dim=0).sqrt().amin(dim=(0, 2)).tolist()

    made = Encoding().make()
    assert isinstance(made, FrequencyEncoding)
    assert sum(change > 0.1 for change in moved(made)) >= made.bands - 1
    if shift == 1.0:
        assert sum(change > 1e-4 for change in moved(FrequencyEncoding())) == 1


@pytest.mark.parametrize("bands", [1, 2, 6])
def test_the_lowest_wave_rises_once_over_the_span_and_the_highest_stays(bands: int) -> None:
    encoding = FrequencyEncoding(bands, span=4.0)
    assert encoding.frequencies[0].item() == pytest.approx(math.pi / 4)
    if bands > 1:
        torch.testing.assert_close(encoding.frequencies[-1], FrequencyEncoding(bands).frequencies[-1])
    range_of_location = torch.linspace(-2, 2, 101).view(1, 1, -1).expand(1, 3, -1)
    assert (encoding(range_of_location)[0, 3].diff() > 0).all()
    torch.testing.assert_close(FrequencyEncoding(bands, span=1.0).frequencies[:1], torch.tensor([math.pi]))


def test_the_span_is_checked() -> None:
    for block in ("prior", "gpe", "coordconv", "locbam"):
        with pytest.raises(ValueError, match="span must be a positive number, got 0"):
            make_block(block, 4, 3, span=0)


def test_shows_its_options() -> None:
    assert "bands=5, base=3.14159" in repr(FrequencyEncoding(bands=5))
