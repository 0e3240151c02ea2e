"""Axial slices as the network sees them, and those that a training step draws and changes."""

import numpy as np
import pytest
import torch

from nnunet_locctx.regression.body_part.slices import (
    GAPS_MM,
    SliceSampler,
    as_input,
    augment,
    cross_section,
    take_slices,
)
from nnunet_locctx.regression.canonical import CanonicalScan
from tests.regression.body_part_scans import SPACING, small_scan

WINDOW = (-1000.0, 1500.0)


def box_scan() -> tuple[CanonicalScan, np.ndarray]:
    """20 x 16 x 30 voxels of 4 mm; a body of voxels 4..11 along R and 2..9 along A in the levels 3..26."""
    body = np.zeros((20, 16, 30), dtype=bool)
    body[4:12, 2:10, 3:27] = True
    affine = np.diag([-4.0, -4.0, 4.0, 1.0])
    affine[:3, 3] = -100, 50, 7  # mm LPS: R starts at 100, A at -50
    return CanonicalScan(np.where(body, 40, -1000).astype(np.float32), np.ones_like(body), affine), body


def test_edges_are_the_outer_faces_of_the_body() -> None:
    scan, body = box_scan()
    edges = cross_section(scan, body)
    assert edges is not None
    np.testing.assert_allclose(edges, np.tile([100 + 14, 100 + 46, -50 + 6, -50 + 38], (30, 1)))


def test_edges_are_smoothed_along_the_body() -> None:
    scan, body = box_scan()
    body[12:16, :, 15:] = body[11:12, :, 15:]
    edges = cross_section(scan, body)
    assert edges is not None
    upper = edges[:, 1]
    assert upper[0] == pytest.approx(146, abs=0.01)
    assert upper[-1] == pytest.approx(162, abs=0.01)
    assert (np.diff(upper) >= 0).all()
    assert np.diff(upper).max() < 4


def test_no_body_has_no_edges() -> None:
    scan, body = box_scan()
    assert cross_section(scan, np.zeros_like(body)) is None


def test_images_do_not_depend_on_where_in_the_scan_the_body_lies() -> None:
    middle = take_slices(small_scan(0), "ct", WINDOW, 64)
    moved = take_slices(small_scan(0, shift=(2, 5)), "ct", WINDOW, 64)
    # noise stays where it is in the scan
    difference = as_input(middle.images) - as_input(moved.images)
    assert difference.abs().mean() < 0.01
    bone = as_input(middle.images) > 0
    assert bone.sum() > 100
    assert (bone == (as_input(moved.images) > 0)).all()


def test_wide_and_narrow_scans_are_cut_and_padded() -> None:
    scan, _ = box_scan()
    taken = take_slices(scan, "ct", WINDOW, 64)
    assert taken.images.shape == (30, 64, 64)
    body = taken.images[15] > 100
    assert body.sum() == 64
    np.testing.assert_allclose(np.argwhere(body).mean(axis=0), 31.5, atol=0.5)
    cut = take_slices(scan, "ct", WINDOW, 6)
    assert cut.images.shape == (30, 6, 6)
    assert (cut.images[15] > 100).all()


def test_intensities_come_back_within_a_level() -> None:
    scan, _ = box_scan()
    network_input = as_input(take_slices(scan, "ct", WINDOW, 64).images)
    assert network_input.shape == (30, 1, 64, 64)
    assert float(network_input.max()) == pytest.approx(1040 * 2 / 2500 - 1, abs=1 / 255)
    assert float(network_input.min()) == -1


def test_slices_of_air_are_not_usable() -> None:
    scan, _ = box_scan()
    usable = take_slices(scan, "ct", WINDOW, 64).usable
    assert usable[5:25].all()
    assert not usable[:2].any()
    assert not usable[28:].any()


def test_slices_that_the_scan_hardly_covers_are_not_usable() -> None:
    scan, _ = box_scan()
    scan.inside[7:, :, :8] = False
    usable = take_slices(scan, "ct", WINDOW, 64).usable
    assert not usable[:8].any()
    assert usable[8:25].all()


def test_air_has_no_usable_slice() -> None:
    scan, _ = box_scan()
    scan.image[:] = -1000
    taken = take_slices(scan, "ct", WINDOW, 64)
    assert not taken.usable.any()
    assert taken.cross_section is None


def test_magnetic_resonance_is_known_up_to_scale() -> None:
    scan = small_scan(0)
    bright = CanonicalScan(scan.image * 3 + 4000, scan.inside, scan.affine)
    first, second = (take_slices(s, "mr", WINDOW, 64) for s in (scan, bright))
    assert first.usable.all()
    np.testing.assert_allclose(as_input(first.images), as_input(second.images), atol=2.1 / 255)


def test_positions_are_millimetres_along_superior() -> None:
    taken = take_slices(small_scan(3, lowest=160), "ct", WINDOW, 64)
    assert taken.positions[0] == pytest.approx(160 + SPACING / 2 + 300)
    np.testing.assert_allclose(np.diff(taken.positions), SPACING)
    assert torch.is_tensor(as_input(taken.images))


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
    drawn = batch.of(images)
    assert drawn.shape == (40, 2, 2)
    np.testing.assert_array_equal(drawn[:, 0, 0].reshape(10, 4), batch.levels + batch.scans[:, None])


def slices(count: int = 64) -> torch.Tensor:
    axis = torch.linspace(-1, 1, 32)
    image = torch.where((axis[:, None] - 0.2) ** 2 + (2 * axis) ** 2 < 0.5, 0.2, -1.0)
    return image.expand(count, 1, 32, 32)


def test_changed_slices_keep_range_and_most_of_the_body() -> None:
    changed = augment(slices(), generator())
    assert changed.shape == slices().shape
    assert changed.min() == -1
    assert changed.max() <= 1
    areas = (changed > -0.4).sum(dim=(1, 2, 3)) / (slices() > -0.4).sum(dim=(1, 2, 3))
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
    changed = augment(one_side, generator())
    right = changed[:, 0, 16:].mean(dim=(1, 2)) > changed[:, 0, :16].mean(dim=(1, 2))
    assert 0.3 < right.float().mean() < 0.7
    changed = augment(one_side.transpose(2, 3), generator())
    front = changed[:, 0, :, 16:].mean(dim=(1, 2)) > changed[:, 0, :, :16].mean(dim=(1, 2))
    assert front.all()
