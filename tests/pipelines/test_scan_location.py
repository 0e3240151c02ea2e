"""`coordinates` and `locate`: the location of files, scans and frames."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_locctx.geometry import Frame
from nnunet_locctx.image_files import BrokenFileError
from nnunet_locctx.location import make_source
from nnunet_locctx.pipelines.scan_location import coordinates, locate
from nnunet_locctx.regression.body import BodyFinder
from nnunet_locctx.scan import Scan
from tests.geometry_cases import flips, permutations, rotation, shapes, small_angles, spacings
from tests.pipelines.scans import ball

AFFINE = np.array([[-2.0, 0, 0, 40], [0, 1.5, 0, -30], [0, 0, 3, 7], [0, 0, 0, 1]])


def nifti(file: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), file)
    return file


def test_a_file_a_scan_and_a_frame_agree(tmp_path: Path) -> None:
    """Files and scans count voxels along z, y, x, a frame as it was made; the channels are R, A, S everywhere."""
    voxels = np.zeros((4, 5, 6), dtype=np.int16)
    file = nifti(tmp_path / "ct.nii.gz", voxels, AFFINE)
    whole = coordinates(file)
    assert whole.dtype == np.float32
    assert whole.shape == (3, 6, 5, 4)
    np.testing.assert_array_equal(coordinates(str(file)), whole)
    np.testing.assert_array_equal(coordinates(Scan.read(file)), whole)
    frame = Frame.from_nibabel(nib.load(file))
    np.testing.assert_allclose(coordinates(frame), whole.transpose(0, 3, 2, 1), atol=1e-6)
    # x is stored from right to left: its first voxel lies furthest to the right
    np.testing.assert_allclose(whole[0, 0, 0], [0.375, 0.125, -0.125, -0.375], atol=1e-6)
    np.testing.assert_allclose(whole[2, :, 0, 0], (np.arange(6) + 0.5) / 6 - 0.5, atol=1e-6)


def test_a_box_is_a_part_of_the_whole_and_goes_on_outside() -> None:
    frame = Frame.from_affine((6, 5, 4), AFFINE, "RAS")
    whole = coordinates(frame, [(-6, 12), (-5, 10), (-4, 8)])
    part = coordinates(frame, [(1, 3), (0, 5), (2, 3)])
    assert part.shape == (3, 2, 5, 1)
    np.testing.assert_allclose(part, whole[:, 7:9, 5:10, 6:7], atol=1e-6)
    np.testing.assert_allclose(np.diff(whole[0, :, 0, 0]), -1 / 6, atol=1e-6)


def test_sources_by_name_with_options_and_by_file(tmp_path: Path) -> None:
    voxels, affine = ball(20)
    file = nifti(tmp_path / "ct.nii.gz", voxels, affine)
    absolute = coordinates(file, [(0, 1)] * 3, make_source("scanner", absolute=True))
    np.testing.assert_allclose(absolute.ravel() * 500, affine[:3, 3], atol=1e-4)
    centred = coordinates(file, [(0, 20)] * 3, "scanner")
    np.testing.assert_allclose(centred.mean(axis=(1, 2, 3)), 0, atol=1e-6)
    (tmp_path / "regressor.pt").write_bytes(BodyFinder("ct").to_bytes())
    body = coordinates(file, None, tmp_path / "regressor.pt")
    np.testing.assert_array_equal(body, coordinates(file, None, BodyFinder("ct")))
    box = BodyFinder("ct").measure(voxels, Frame.from_affine(voxels.shape, affine, "RAS"))
    right = affine[0, 3] + 4.0 * np.arange(20)  # mm
    expected = (right - (box.lower[0] + box.upper[0]) / 2) / (box.upper[0] - box.lower[0])
    np.testing.assert_allclose(body[0, 10, 10], expected, atol=1e-6)
    assert np.isfinite(body).all()


def test_what_cannot_be_measured_is_unknown() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 12, 12, 12)).astype(np.float32)
    scan = Scan(noise, Frame.from_affine((12, 12, 12), AFFINE, "RAS"))
    assert np.isnan(coordinates(scan, [(0, 2)] * 3, BodyFinder("mr"))).all()


@given(permutations, flips, shapes, spacings, small_angles, st.data())
def test_other_grids_of_a_scan(permutation, flip, shape, spacing, angles, data) -> None:  # type: ignore[no-untyped-def]
    """A crop of a scan, turned and resampled, has the location of its places in the scan."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles)[:, list(permutation)] * np.where(flip, -1, 1) * np.array(spacing)
    frame = Frame.from_affine(shape, affine, "RAS")
    lower = np.array(data.draw(st.tuples(*[st.integers(-5, 45)] * 3)))
    step = np.eye(4)
    step[:3, :3] = rotation(data.draw(small_angles)) * np.array(data.draw(spacings))
    step[:3, 3] = lower
    located = locate(frame)
    grid = Frame((2, 3, 4), affine_lps=frame.affine_lps @ step)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    expected = frame.fraction(index @ step[:3, :3].T + lower)
    np.testing.assert_allclose(np.moveaxis(located.on(grid), 0, -1), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(located.at(grid.millimetres(index)), expected, rtol=1e-6, atol=1e-6)
    crop = Frame((2, 3, 4), affine_lps=frame.affine_lps @ np.vstack([np.eye(4)[:, :3].T, [*lower, 1]]).T)
    np.testing.assert_allclose(located.on(crop), located.field.box(lower, (2, 3, 4)), rtol=1e-5, atol=1e-6)


def test_errors(tmp_path: Path) -> None:
    frame = Frame.from_affine((6, 5, 4), AFFINE, "RAS")
    with pytest.raises(ValueError, match=r"a box is three pairs .* got \[\(0, 1\), \(2, 2\), \(0, 1\)\]"):
        coordinates(frame, [(0, 1), (2, 2), (0, 1)])
    with pytest.raises(ValueError, match="a box is three pairs"):
        coordinates(frame, [(0, 1), (0, 2)])
    with pytest.raises(
        ValueError, match=r"'voxels' is neither the file of a regressor nor one of .*scanner, voxel"
    ):
        coordinates(frame, None, "voxels")
    with pytest.raises(ValueError, match=r"'body' is measured in each scan: give BodyFinder\('ct'\)"):
        coordinates(frame, None, "body")
    with pytest.raises(ValueError, match="'anatomical' is measured in each scan: give a regressor's file"):
        coordinates(frame, None, make_source("anatomical"))
    with pytest.raises(ValueError, match="give the scan, not its frame"):
        coordinates(frame, None, BodyFinder("ct"))
    with pytest.raises(ValueError, match="looks at channel 1, the scan has 1"):
        coordinates(Scan(np.zeros((1, 6, 5, 4)), frame), None, BodyFinder("ct", channel=1))
    (tmp_path / "regressor.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"regressor\.pt: not a fitted regressor"):
        coordinates(frame, None, tmp_path / "regressor.pt")
    with pytest.raises(BrokenFileError, match="no file"):
        coordinates(tmp_path / "ct.nii.gz")
