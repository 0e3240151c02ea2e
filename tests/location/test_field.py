"""Fields: the location of any box, inside and outside the volume."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AXES, MILLIMETRES_PER_UNIT, AffineField, hide_axes, make_source
from tests.geometry_cases import (
    centres,
    flips,
    permutations,
    rotation,
    shapes,
    small_angles,
    spacings,
    stored,
)

sources = st.sampled_from([("voxel", {}), ("scanner", {}), ("scanner", {"absolute": True})])


def expected(frame: Frame, name: str, options: dict, index: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """The location by the definition of the source, point by point."""
    if name == "voxel":
        return frame.fraction(index)
    patient = frame.millimetres(index) * [-1, -1, 1]
    middle = np.zeros(3) if options else frame.millimetres((np.array(frame.shape) - 1) / 2) * [-1, -1, 1]
    return np.asarray((patient - middle) / MILLIMETRES_PER_UNIT)


@given(permutations, flips, shapes, spacings, centres, small_angles, st.booleans(), sources, st.data())
def test_every_voxel_of_a_box_has_its_true_location(  # type: ignore[no-untyped-def]
    permutation, flip, shape, spacing, centre, angles, oblique, source, data
) -> None:
    name, options = source
    properties, array_shape = stored(
        permutation, flip, shape, spacing, centre, rotation(angles if oblique else (0, 0, 0))
    )
    frame = Frame.from_properties(properties, array_shape)
    lower = np.array(data.draw(st.tuples(*[st.integers(-20, 40)] * 3)))
    size = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    box = make_source(name, **options).field(frame).box(lower, size)
    assert box.shape == (3, *size)
    assert box.dtype == np.float32
    index = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), axis=-1) + lower
    truth = np.moveaxis(expected(frame, name, options, index), -1, 0)
    np.testing.assert_allclose(box, truth, rtol=2e-7, atol=1e-7)


@given(shapes, permutations, flips)
def test_within_a_thousandth_of_a_voxel(shape, permutation, flip) -> None:  # type: ignore[no-untyped-def]
    big = tuple(20 * n for n in shape)
    properties, array_shape = stored(permutation, flip, big, (1.0, 1.0, 1.0), np.zeros(3), np.eye(3))
    frame = Frame.from_properties(properties, array_shape)
    corner = np.array(array_shape) - 1
    box = make_source("voxel").field(frame).box(corner, (1, 1, 1)).astype(np.float64)
    np.testing.assert_allclose(frame.index_from_fraction(box[:, 0, 0, 0]), corner, atol=1e-3)


def test_boxes_of_one_field_agree_where_they_overlap() -> None:
    field = AffineField(np.random.default_rng(0).normal(size=(3, 4)), (5, 6, 7))
    whole = field.box((0, 0, 0), (5, 6, 7))
    np.testing.assert_allclose(field.box((1, 2, 3), (3, 2, 4)), whole[:, 1:4, 2:4, 3:7], atol=1e-6)


def test_a_true_location_is_never_exactly_zero() -> None:
    """Zero marks padding; the middle voxel of an odd volume would be zero by definition."""
    properties, shape = stored((0, 1, 2), (False,) * 3, (5, 5, 5), (1.0, 1.0, 1.0), np.zeros(3), np.eye(3))
    middle = make_source("voxel").field(Frame.from_properties(properties, shape)).box((2, 2, 2), (1, 1, 1))
    assert middle.any()
    assert np.abs(middle).max() < 1e-8


@given(st.sets(st.sampled_from(AXES)), st.sets(st.sampled_from(AXES)))
def test_hidden_axes_are_unknown_everywhere_and_leave_the_others(first: set[str], second: set[str]) -> None:
    """The reason given first stays; nothing else of the field changes, inside the volume and outside."""
    field = AffineField(np.random.default_rng(0).normal(size=(3, 4)), (5, 6, 7))
    hidden = hide_axes(hide_axes(field, dict.fromkeys(first, "one")), dict.fromkeys(second, "two"))
    assert hidden.shape == field.shape
    assert hidden.unknown == {
        axis: "one" if axis in first else "two" for axis in AXES if axis in first | second
    }
    channels = [AXES.index(axis) for axis in hidden.unknown]
    expected = field.box((-2, 1, 3), (4, 9, 5))
    expected[channels] = np.nan
    np.testing.assert_array_equal(hidden.box((-2, 1, 3), (4, 9, 5)), expected)
    at = field.at([[0.5, -3.0, 9.0]])
    at[:, channels] = np.nan
    np.testing.assert_array_equal(hidden.at([[0.5, -3.0, 9.0]]), at)


def test_errors_name_the_value_and_what_is_allowed() -> None:
    with pytest.raises(
        ValueError,
        match="unknown location source 'gps'; there are anatomical, body, body_part, scanner, voxel",
    ):
        make_source("gps")
    with pytest.raises(ValueError, match="'scanner' does not take origin; allowed: absolute"):
        make_source("scanner", origin="x")
    with pytest.raises(ValueError, match="'voxel' does not take absolute; allowed: no options"):
        make_source("voxel", absolute=True)
    with pytest.raises(ValueError, match=r"must be \(3, 4\), got \(4, 4\)"):
        AffineField(np.eye(4), (2, 2, 2))
