import numpy as np
import pytest
import torch

from nnunet_locctx.regression.body_part.augmentation import augment
from nnunet_locctx.regression.body_part.sampling import GAPS_MM, SliceSampler, gather


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_slices_rise_with_equal_gaps_within_the_bounds() -> None:
    batch = SliceSampler([np.arange(250) * 4.0, 30 + np.arange(90) * 4.0], 200, 4).draw(generator())
    assert batch.levels.shape == (200, 4)
    np.testing.assert_allclose(batch.gaps, np.diff(batch.levels) * 4.0)
    np.testing.assert_array_equal(batch.gaps, batch.gaps[:, :1].repeat(3, axis=1))
    assert batch.gaps.min() == 8
    assert batch.gaps.max() == GAPS_MM[1]
    assert set(batch.scans) == {0, 1}
    assert batch.levels[batch.scans == 0].max() > 240
    assert 80 < batch.levels[batch.scans == 1].max() < 90


@pytest.mark.parametrize("count", [4, 5, 7, 30])
def test_short_scans_give_smaller_gaps(count: int) -> None:
    batch = SliceSampler([np.arange(count) * 2.0], 100, 4).draw(generator())
    assert batch.levels.min() == 0
    assert batch.levels.max() == count - 1
    assert (np.diff(batch.levels) > 0).all()


def test_gaps_follow_the_positions() -> None:
    places = np.cumsum(np.r_[0, np.full(30, 4.0), 50, np.full(30, 4.0)])
    batch = SliceSampler([places], 50, 4).draw(generator())
    np.testing.assert_allclose(batch.gaps, np.diff(places[batch.levels]))


def test_seed_decides() -> None:
    sampler = SliceSampler([np.arange(50) * 4.0] * 5, 20, 4)
    first, again, other = (sampler.draw(generator(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.levels, again.levels)
    assert (first.levels != other.levels).any()


def test_too_short_scans_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 4 slices, got one with 3"):
        SliceSampler([np.arange(10) * 4.0, np.arange(3) * 4.0], 20, 4)


def test_gathers_scan_by_scan() -> None:
    images = [np.full((60, 2, 2), scan, dtype=np.uint8) for scan in range(3)]
    images = [image + np.arange(60, dtype=np.uint8)[:, None, None] for image in images]
    batch = SliceSampler([np.arange(60) * 4.0] * 3, 10, 4).draw(generator())
    found = gather(images, batch)
    assert found.shape == (40, 2, 2)
    np.testing.assert_array_equal(found[:, 0, 0].reshape(10, 4), batch.levels + batch.scans[:, None])


def slices(count: int = 64) -> torch.Tensor:
    axis = torch.linspace(-1, 1, 32)
    image = torch.where((axis[:, None] - 0.2) ** 2 + (2 * axis) ** 2 < 0.5, 0.2, -1.0)
    return image.expand(count, 1, 32, 32)


def test_changed_slices_keep_range_and_most_of_the_body() -> None:
    found = augment(slices(), generator())
    assert found.shape == slices().shape
    assert found.min() == -1
    assert found.max() <= 1
    areas = (found > -0.4).sum(dim=(1, 2, 3)) / (slices() > -0.4).sum(dim=(1, 2, 3))
    assert 0.6 < areas.min() < 0.9
    assert 1.1 < areas.max() < 1.6


def test_every_slice_is_changed_on_its_own_and_the_seed_decides() -> None:
    first, again = augment(slices(), generator(3)), augment(slices(), generator(3))
    assert torch.equal(first, again)
    assert len({tuple(image.flatten().tolist()) for image in first}) == len(first)
    assert torch.equal(slices()[0], slices()[1])  # what came in is left alone


def test_flips_are_left_right_only() -> None:
    axis = torch.linspace(-1, 1, 32)
    one_side = torch.where(axis[:, None] > 0.3, 1.0, -1.0).expand(200, 1, 32, 32)
    found = augment(one_side, generator())
    right = found[:, 0, 16:].mean(dim=(1, 2)) > found[:, 0, :16].mean(dim=(1, 2))
    assert 0.3 < right.float().mean() < 0.7
    found = augment(one_side.transpose(2, 3), generator())
    front = found[:, 0, :, 16:].mean(dim=(1, 2)) > found[:, 0, :, :16].mean(dim=(1, 2))
    assert front.all()
