"""The canonical grid: the same place of the patient has the same intensity, however the scan was stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame
from nnunet_locctx.regression.canonical import CanonicalScan, to_canonical
from nnunet_locctx.regression.intensity import body_mask, normalise
from tests.geometry_cases import flips, permutations, rotation, small_angles, stored

SLOPES = np.array([0.7, -1.1, 1.9])
"""Intensity per mm LPS of the ramps."""


def ramp(frame: Frame) -> np.ndarray:
    """Intensities that say where a voxel lies."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in frame.shape], indexing="ij"), axis=-1)
    return np.asarray(frame.millimetres(index) @ SLOPES)


def places(scan: CanonicalScan) -> np.ndarray:
    """mm LPS of every voxel."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in scan.image.shape], indexing="ij"), axis=-1)
    return np.asarray(index @ scan.affine[:3, :3].T + scan.affine[:3, 3])


@given(permutations, flips, small_angles, st.booleans(), st.floats(2.0, 9.0))
def test_a_ramp_stays_a_ramp(permutation, flip, angles, oblique, spacing) -> None:  # type: ignore[no-untyped-def]
    properties, shape = stored(
        permutation,
        flip,
        (20, 18, 16),
        (2.5, 3.0, 4.0),
        np.array([30.0, -20.0, 70.0]),
        rotation(angles if oblique else (0, 0, 0)),
    )
    frame = Frame.from_properties(properties, shape)
    scan = to_canonical(ramp(frame), frame, spacing)
    assert scan.image.dtype == np.float32
    np.testing.assert_allclose(scan.spacing, spacing)
    # linear interpolation and smoothing keep a ramp, but for where they reach over the border
    index = frame.index_from_millimetres(places(scan))
    reach = 3 + 3 * spacing / frame.spacing
    inner = ((index >= reach) & (index <= np.array(shape) - 1 - reach)).all(axis=-1)
    np.testing.assert_allclose(scan.image[inner], (places(scan) @ SLOPES)[inner], atol=1e-2)
    outside = ((index < -0.5 - 1e-6) | (index > np.array(shape) - 0.5 + 1e-6)).any(axis=-1)
    assert not scan.inside[outside].any()
    assert scan.inside[~outside].mean() > 0.99
    # the grid runs with the patient axes and covers the scan
    steps = PATIENT_FROM_LPS @ scan.affine[:3, :3]
    np.testing.assert_allclose(steps, np.eye(3) * spacing, atol=1e-12)
    corners = (
        np.array([[0, 0, 0], np.array(scan.image.shape) - 1]) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    )
    covered = np.sort(corners @ PATIENT_FROM_LPS, axis=0)
    faces = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    ends = frame.millimetres(faces) @ PATIENT_FROM_LPS
    assert (covered[0] - spacing / 2 <= ends.min(axis=0) + 0.01).all()
    assert (covered[1] + spacing / 2 >= ends.max(axis=0) - 0.01).all()


def test_storage_does_not_change_the_canonical_scan() -> None:
    resampled = []
    random = np.random.default_rng(0)
    image = random.normal(0, 100, (12, 14, 16))  # (R, A, S)
    for axes, signs in (((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 2, 0), (1, -1, -1))):
        affine = np.eye(4)
        turned = image.transpose(axes)
        for array_axis, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
            column = PATIENT_FROM_LPS[:, axis] * 3.0
            affine[:3, array_axis] = sign * column
            if sign < 0:
                turned = np.flip(turned, array_axis)
                affine[:3, 3] += column * (image.shape[axis] - 1)
        resampled.append(
            to_canonical(np.ascontiguousarray(turned), Frame.from_affine(turned.shape, affine, "LPS"), 5.0)
        )
    for other in resampled[1:]:
        np.testing.assert_allclose(other.image, resampled[0].image, atol=1e-3)
        np.testing.assert_array_equal(other.inside, resampled[0].inside)
        np.testing.assert_allclose(other.affine, resampled[0].affine, atol=1e-9)


def ellipsoid(intensity: float, air: float, noise: float = 10.0) -> CanonicalScan:
    """A body with a cavity, and a table under it."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (30, 28, 26)], indexing="ij"), axis=-1)
    inside = (((index - [15, 15, 13]) / [11, 8, 20]) ** 2).sum(-1) < 1
    cavity = (((index - [15, 15, 13]) / [4, 3, 8]) ** 2).sum(-1) < 1
    image = np.where(inside & ~cavity, intensity, air) + np.random.default_rng(0).normal(
        0, noise, inside.shape
    )
    image[:, 1:3, :] = intensity
    return CanonicalScan(image.astype(np.float32), np.ones(inside.shape, dtype=bool), np.diag([4.0, 4, 4, 1]))


@pytest.mark.parametrize(("modality", "intensity", "air"), [("ct", 40.0, -1000.0), ("mr", 900.0, 20.0)])
def test_the_body_is_found_without_its_table_and_with_its_cavities(
    modality: str, intensity: float, air: float
) -> None:
    body = body_mask(ellipsoid(intensity, air), modality)
    assert body[15, 15, 13]  # in the cavity
    assert body[15, 20, 13]
    assert not body[:, 1:3].any()
    assert not body[1, 25, 13]


def test_both_legs_are_body_where_the_pelvis_is_out_of_view() -> None:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (40, 20, 12)], indexing="ij"), axis=-1)
    legs = [(((index[..., :2] - [x, 10]) / [8, r]) ** 2).sum(-1) < 1 for x, r in ((10, 7), (30, 6))]
    image = np.where(legs[0] | legs[1], 40.0, -1000.0).astype(np.float32)
    scan = CanonicalScan(image, np.ones(image.shape, dtype=bool), np.diag([4.0, 4, 4, 1]))
    body = body_mask(scan, "ct")
    assert body[10, 10, 6]
    assert body[30, 10, 6]
    assert not body[20, 10, 6]


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_air_has_no_body(modality: str) -> None:
    scan = CanonicalScan(
        np.full((9, 9, 9), -1000, np.float32), np.ones((9, 9, 9), dtype=bool), np.diag([4.0, 4, 4, 1])
    )
    assert not body_mask(scan, modality).any()


def test_intensities_are_mapped_to_the_window() -> None:
    scan = CanonicalScan(
        np.array([-2000, -1000, 250, 1500, 3000], np.float32).reshape(5, 1, 1),
        np.array([1, 1, 1, 1, 0], dtype=bool).reshape(5, 1, 1),
        np.eye(4),
    )
    np.testing.assert_allclose(normalise(scan, "ct", (-1000, 1500)).ravel(), [-1, -1, 0, 1, -1])
    scaled = CanonicalScan(scan.image * 37, scan.inside, scan.affine)
    # MR: known up to scale
    np.testing.assert_allclose(normalise(scan, "mr", (0, 1)), normalise(scaled, "mr", (0, 1)), atol=1e-6)


def test_unusable_scans() -> None:
    frame = Frame.from_affine((4, 4, 4), np.eye(4), "LPS")
    image = np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 3\) does not fit its frame, \(4, 4, 4\)"):
        to_canonical(image[..., :3], frame, 4.0)
    image[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_canonical(image, frame, 4.0)
    with pytest.raises(ValueError, match="modality must be one of ct, mr, got 'pet'"):
        body_mask(ellipsoid(1, 0), "pet")
