"""Crops and points that the anatomical embeddings are trained on."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.anatomical.sampling import (
    UNKNOWN,
    Box,
    TrainingScan,
    augment,
    cut,
    sample_pairs,
)
from tests.anatomical_cases import SPACING, scan

OPTIONS = AnatomicalOptions(
    spacing=SPACING,
    crop=(32, 24, 32),
    paired_points=50,
    body_points=20,
    background_points=30,
    pairs_per_scan=3,
    augment=0.0,
    masked=0.0,
)


def ramps(shape: tuple[int, int, int], body: np.ndarray | None = None) -> TrainingScan:
    """A scan whose intensity grows by 1 a voxel along its first axis."""
    image = np.broadcast_to(np.arange(1, shape[0] + 1, dtype=np.uint8)[:, None, None], shape).copy()
    return TrainingScan(image, np.ones(shape, dtype=bool) if body is None else body, np.full(3, SPACING))


@pytest.mark.parametrize("shape", [(60, 50, 70), (40, 3, 70), (5, 4, 6), (2, 2, 2)])
def test_places_positions_and_intensities_belong_together(shape: tuple[int, int, int]) -> None:
    """What is read at a point of a crop is the intensity at its position in the scan."""
    scan_ = ramps(shape)
    for seed in range(5):
        sample = sample_pairs(scan_, OPTIONS, np.random.default_rng(seed))
        assert sample.crops.shape == (6, 2, 32, 24, 32)
        assert sample.places.shape == sample.positions.shape == (6, 100, 3)
        assert np.abs(sample.places).max() < 1
        grid = torch.from_numpy(sample.places).flip(-1)[:, None, None]
        read = F.grid_sample(torch.from_numpy(sample.crops), grid, padding_mode="border", align_corners=False)
        image, known = read[:, :, 0, 0].movedim(1, 0).numpy()
        voxel = sample.positions / SPACING
        assert (voxel >= 0).all()
        assert (voxel <= np.array(shape) - 1).all()
        expected = voxel[..., 0] / 127 - 1
        sure = known > 0.999  # next to the scan's faces the crop mixes in what is not known
        assert sure.mean() > 0.15 if min(shape) > 4 else True
        np.testing.assert_allclose(image[sure], expected[sure], atol=0.6 / 127)


def test_paired_points_are_the_same_places_of_the_body() -> None:
    whole = TrainingScan.from_canonical(scan((-160, -120, -200), (40, 30, 50)), OPTIONS)
    outside = 0
    for seed in range(10):
        sample = sample_pairs(whole, OPTIONS, np.random.default_rng(seed))
        first, second = sample.positions[:3], sample.positions[3:]
        np.testing.assert_array_equal(first[:, :50], second[:, :50])
        assert not np.array_equal(first[:, 50:], second[:, 50:])
        voxels = np.rint(sample.positions / SPACING).astype(int)
        body = whole.body[tuple(np.moveaxis(voxels, -1, 0))]
        assert body[:, :70].all()
        outside += int((~body[:, 70:]).sum())
    assert outside > 0.9 * 10 * 6 * 30


def test_a_body_of_one_voxel_is_always_found() -> None:
    """No empty set of points, wherever the body is: the loss of nothing would be NaN."""
    for place in [(0, 0, 0), (59, 49, 69), (30, 20, 0)]:
        body = np.zeros((60, 50, 70), dtype=bool)
        body[place] = True
        for seed in range(5):
            sample = sample_pairs(ramps((60, 50, 70), body), OPTIONS, np.random.default_rng(seed))
            np.testing.assert_array_equal(
                sample.positions[:, :70], np.broadcast_to(np.array(place) * SPACING, (6, 70, 3))
            )


def test_a_scan_without_air_has_its_background_points_in_the_body() -> None:
    sample = sample_pairs(ramps((20, 20, 20)), OPTIONS, np.random.default_rng(0))
    assert np.isfinite(sample.positions).all()


def test_a_scan_without_body_is_refused() -> None:
    with pytest.raises(ValueError, match="without body"):
        sample_pairs(ramps((5, 5, 5), np.zeros((5, 5, 5), dtype=bool)), OPTIONS, np.random.default_rng(0))


def test_the_crops_of_a_pair_have_scales_of_their_own() -> None:
    """Points as far apart in the scan are differently far apart in the two crops, within the range of the zoom."""
    ratios = []
    for seed in range(20):
        sample = sample_pairs(ramps((100, 90, 110)), OPTIONS, np.random.default_rng(seed))
        for crop in range(6):
            place, position = sample.places[crop], sample.positions[crop]
            for axis, size in enumerate(OPTIONS.crop):
                slope = np.polyfit(position[:, axis] / SPACING, place[:, axis] / 2 * size, 1)[0]
                ratios.append(1 / slope)
    low, high = OPTIONS.zoom
    assert min(ratios) > low - 0.02
    assert max(ratios) < high + 0.02
    assert np.std(ratios) > 0.1


@pytest.mark.parametrize("levels", [110, 6])
def test_a_part_of_each_crop_is_seen(levels: int) -> None:
    """Also of a scan that is shorter than a crop: its own field of view must not be a frame for it."""
    options = dataclasses.replace(OPTIONS, visible=(0.4, 1.0))
    shares = []
    for seed in range(20):
        sample = sample_pairs(ramps((100, 90, levels)), options, np.random.default_rng(seed))
        for crop in sample.crops:
            known = crop[1] > 0.5
            shares.append([known.any(axis=(1, 2)).mean(), known.any(axis=(0, 1)).mean()])
    first, last = np.transpose(shares)
    assert 0.3 < first.min() < 0.5
    assert first.max() > 0.95
    assert last.max() > 2 * last.min()


def test_crops_beyond_the_scan_are_unknown() -> None:
    crop = cut(
        ramps((4, 4, 4)).image, Box(np.array([-4, 0, 0]), np.array([8, 4, 4]), (slice(0, 4),) * 3), (8, 4, 4)
    )
    assert (crop[:, :4] == 0).all()
    assert (crop[1, 4:] == 1).all()
    np.testing.assert_allclose(crop[0, 4:, 0, 0], np.arange(4) / 127 - 1, atol=1e-6)


def test_stored_intensities() -> None:
    canonical = scan((-160, -120, -200), (40, 30, 50))
    inside = canonical.inside.copy()
    inside[:3] = False
    canonical = dataclasses.replace(canonical, inside=inside)
    stored = TrainingScan.from_canonical(canonical, OPTIONS)
    assert (stored.image[:3] == UNKNOWN).all()
    assert (stored.image[3:] != UNKNOWN).all()
    hu = np.clip(canonical.image[3:], -1000, 300)
    np.testing.assert_allclose((stored.image[3:].astype(float) - 1) / 254 * 1300 - 1000, hu, atol=3.0)


def test_augmentation_keeps_the_unknown_unknown_and_the_geometry() -> None:
    generator = np.random.default_rng(0)
    image = np.sin(np.arange(24) / 3)[:, None, None] * np.ones((24, 24, 24))
    known = np.ones((24, 24, 24))
    known[:, :, 12:] = 0
    changed, correlation = 0, []
    for _ in range(30):
        crop = np.stack([image * known, known]).astype(np.float32)
        augment(crop, 0.5, 0.0, generator)
        np.testing.assert_array_equal(crop[1], known)
        assert (crop[0, :, :, 12:] == 0).all()
        changed += not np.allclose(crop[0, :, :, :12], image[:, :, :12], atol=1e-6)
        correlation.append(np.corrcoef(crop[0, :, :, :12].ravel(), image[:, :, :12].ravel())[0, 1])
    assert changed > 20
    assert min(correlation) > 0.9  # a flip along the sine would turn the sign


def test_hidden_blocks_are_unknown() -> None:
    crop = np.ones((2, 32, 24, 32), dtype=np.float32)
    augment(crop, 0.0, 0.999999, np.random.default_rng(0))
    hidden = crop[1] == 0
    assert 0.02 < hidden.mean() < 0.7
    assert (crop[0][hidden] == 0).all()
    assert (crop[0][~hidden] == 1).all()
    cells = crop[1].reshape(8, 4, 6, 4, 8, 4).mean(axis=(1, 3, 5))
    assert set(np.unique(cells)) == {0.0, 1.0}  # whole cells of the output


def test_equal_seeds_draw_equal_samples() -> None:
    options = dataclasses.replace(OPTIONS, augment=0.5, masked=0.5)
    first, again, other = (
        sample_pairs(ramps((40, 40, 40)), options, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.crops, again.crops)
    np.testing.assert_array_equal(first.positions, again.positions)
    assert not np.array_equal(first.positions, other.positions)
