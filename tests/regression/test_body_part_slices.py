import numpy as np
import pytest
import torch

from nnunet_locctx.regression.body_part.cross_section import cross_section
from nnunet_locctx.regression.body_part.slices import as_input, take_slices
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
    found = take_slices(scan, "ct", WINDOW, 64)
    assert found.images.shape == (30, 64, 64)
    body = found.images[15] > 100
    assert body.sum() == 64
    np.testing.assert_allclose(np.argwhere(body).mean(axis=0), 31.5, atol=0.5)
    cut = take_slices(scan, "ct", WINDOW, 6)
    assert cut.images.shape == (30, 6, 6)
    assert (cut.images[15] > 100).all()


def test_intensities_come_back_within_a_level() -> None:
    scan, _ = box_scan()
    found = as_input(take_slices(scan, "ct", WINDOW, 64).images)
    assert found.shape == (30, 1, 64, 64)
    assert float(found.max()) == pytest.approx(1040 * 2 / 2500 - 1, abs=1 / 255)
    assert float(found.min()) == -1


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
    found = take_slices(scan, "ct", WINDOW, 64)
    assert not found.usable.any()
    assert found.cross_section is None


def test_magnetic_resonance_is_known_up_to_scale() -> None:
    scan = small_scan(0)
    bright = CanonicalScan(scan.image * 3 + 4000, scan.inside, scan.affine)
    first, second = (take_slices(s, "mr", WINDOW, 64) for s in (scan, bright))
    assert first.usable.all()
    np.testing.assert_allclose(as_input(first.images), as_input(second.images), atol=2.1 / 255)


def test_positions_are_millimetres_along_superior() -> None:
    found = take_slices(small_scan(3, lowest=160), "ct", WINDOW, 64)
    assert found.positions[0] == pytest.approx(160 + SPACING / 2 + 300)
    np.testing.assert_allclose(np.diff(found.positions), SPACING)
    assert torch.is_tensor(as_input(found.images))
