"""A scan's location is known along the axes that the plans use and as far as training has seen it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import (
    AXES,
    COORDINATE_TOLERANCE,
    EXTENT_TOLERANCE,
    BodyBox,
    BodyPartCurve,
    Locator,
    TrainingRange,
    make_source,
)

SOURCES: list[tuple[str, dict[str, Any]]] = [
    ("voxel", {}),
    ("scanner", {}),
    ("scanner", {"absolute": True}),
    ("body_part", {}),
    ("body_part", {"cross_section": "scan"}),
]


def scan(extent: tuple[float, float, float], centre: tuple[float, float, float] = (0, 0, 0)) -> Frame:
    """A scan of 20 voxels along each axis: its extent and centre in mm along R, A and S."""
    spacing = np.array(extent) / 20
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array(centre) - 9.5 * spacing
    return Frame.from_affine((20, 20, 20), affine, "RAS")


def curve(*, body: bool = True) -> BodyPartCurve:
    """Scores that rise by one in 10 mm, and a body of 300 by 200 mm."""
    positions = np.linspace(-1000.0, 1000.0, 41)
    edges = np.tile([-150.0, 150.0, -100.0, 100.0], (41, 1))
    up = np.array([0.0, 0.0, 1.0])
    return BodyPartCurve(up, positions, 50 + positions / 10, 0.1, edges if body else None)


ABDOMENS = [scan((350, 350, 400), (0, 0, 10)), scan((420, 400, 480), (5, -10, -20))]


def located(name: str, options: dict[str, Any], frames: list[Frame] = ABDOMENS, **more: Any) -> Locator:
    locator = Locator(make_source(name, **options), **more)
    training = TrainingRange.over(locator, [(frame, curve()) for frame in frames])
    return dataclasses.replace(locator, training=training)


@pytest.mark.parametrize(("name", "options"), SOURCES)
def test_training_cases_are_within_what_training_has_seen(name: str, options: dict[str, Any]) -> None:
    locator = located(name, options)
    for frame in ABDOMENS:
        field, known = locator.field(frame, curve()), locator.source.field(frame, curve())
        assert not field.unknown
        np.testing.assert_array_equal(field.box((-2, 0, 3), (9, 5, 7)), known.box((-2, 0, 3), (9, 5, 7)))


@pytest.mark.parametrize(("name", "options"), SOURCES)
def test_a_whole_body_loses_its_level_in_an_abdominal_model(name: str, options: dict[str, Any]) -> None:
    field = located(name, options).field(scan((400, 380, 1700)), curve())
    assert list(field.unknown) == ["S"]
    box = field.box((0, 0, 0), (20, 20, 20))
    assert np.isnan(box[2]).all()
    assert np.isfinite(box[:2]).all()


@given(st.sampled_from([0, 1, 2]), st.floats(0.2, 5))
def test_a_field_of_view_may_differ_by_the_tolerance(axis: int, factor: float) -> None:
    locator = located("voxel", {})
    assert locator.training is not None
    shortest, longest = locator.training.extents[axis]
    extent = [380.0, 380.0, 440.0]
    extent[axis] *= factor
    allowed = shortest / (1 + EXTENT_TOLERANCE) <= extent[axis] <= longest * (1 + EXTENT_TOLERANCE)
    field = locator.field(scan((extent[0], extent[1], extent[2])))
    assert list(field.unknown) == ([] if allowed else [AXES[axis]])
    # where a coordinate does not depend on the field of view, less of the same is as good
    smaller = located("scanner", {"absolute": True}).field(scan((40, 40, 40)))
    assert not smaller.unknown


def test_the_reason_names_the_values() -> None:
    unknown = located("voxel", {}).field(scan((400, 380, 1700))).unknown
    assert unknown == {"S": "the scan spans 1700 mm, those of training 400 to 480 mm"}
    unknown = located("body_part", {}).field(scan((300, 200, 420), (0, 0, 600)), curve()).unknown
    assert unknown == {"S": "its coordinates run from 0.40 to 0.80, in training from -0.24 to 0.20"}


@given(st.sampled_from([0, 1, 2]), st.floats(-1.2, 1.2))
def test_a_shift_up_to_the_tolerance_stays_known(axis: int, shift: float) -> None:
    """Of a location that is already there, as `locctx robustness` makes it."""
    locator = located("voxel", {})
    location = locator.source.field(ABDOMENS[0]).box((0, 0, 0), (20, 20, 20))
    true = location.copy()
    location[axis] += shift
    expected = location.copy()
    assert locator.training is not None
    width = np.diff(locator.training.coordinates[axis])[0]
    if abs(abs(shift) - COORDINATE_TOLERANCE * width) < 1e-5:
        return  # float32
    if abs(shift) > COORDINATE_TOLERANCE * width:
        expected[axis] = np.nan
    locator.hide_unseen(location, true)
    np.testing.assert_array_equal(location, expected)


@pytest.mark.parametrize(("hidden", "shifted"), [(a, b) for a in range(3) for b in range(3) if a != b])
def test_an_unknown_axis_says_nothing_about_the_others(hidden: int, shifted: int) -> None:
    locator = located("voxel", {})
    location = locator.source.field(ABDOMENS[0]).box((0, 0, 0), (20, 20, 20))
    location[hidden] = np.nan
    true = location.copy()
    location[shifted] += 0.5
    expected = location.copy()
    expected[shifted] = np.nan
    locator.hide_unseen(location, true)
    np.testing.assert_array_equal(location, expected)


def body(lower: float, upper: float) -> BodyBox:
    """A body of 300 by 200 mm between two levels."""
    return BodyBox(np.array([-150.0, -100.0, lower]), np.array([150.0, 100.0, upper]))


@pytest.fixture
def in_the_body() -> Locator:
    """Trained on bodies of 300 and 400 mm, and on a scan without one."""
    locator = Locator(make_source("body"))
    cases = [
        (ABDOMENS[0], body(-150, 150)),
        (ABDOMENS[1], body(-200, 200)),
        (ABDOMENS[1], BodyBox.unusable("air")),
    ]
    return dataclasses.replace(locator, training=TrainingRange.over(locator, cases))


def test_more_of_the_body_than_training_had_loses_its_level(in_the_body: Locator) -> None:
    whole = in_the_body.field(scan((400, 380, 1700)), body(-820, 830))
    assert whole.unknown == {"S": "the body in the scan spans 1650 mm, those of training 300 to 400 mm"}
    assert list(in_the_body.field(scan((400, 380, 400)), body(0, 120)).unknown) == ["S"]


def test_a_scan_without_a_body_has_no_length(in_the_body: Locator) -> None:
    air = BodyBox.unusable("air")
    assert set(in_the_body.field(ABDOMENS[0], air).unknown.values()) == {"air"}
    empty = dataclasses.replace(
        in_the_body, training=TrainingRange.over(Locator(make_source("body")), [(ABDOMENS[0], air)])
    )
    assert set(empty.field(ABDOMENS[0], body(-150, 150)).unknown.values()) == {
        "the axis was unknown in training"
    }


def test_air_around_the_body_takes_nothing_from_it(in_the_body: Locator) -> None:
    assert not in_the_body.field(scan((800, 800, 900), (0, 0, 300)), body(-150, 150)).unknown


@given(st.sampled_from([0, 1, 2]), st.floats(-1.2, 1.2), st.floats(0, 200))
def test_a_shift_within_the_body_is_judged_whatever_air_there_is(axis: int, shift: float, air: float) -> None:
    source = make_source("body")
    box = body(-150, 150)
    tight = scan((300, 200, 300))
    training = TrainingRange.over(Locator(source), [(tight, box)])
    locator = Locator(source, training=training)
    location = source.field(scan((300 + air, 200 + air, 300 + air)), box).box((0, 0, 0), (20, 20, 20))
    true = location.copy()
    location[axis] += shift
    locator.hide_unseen(location, true)
    # a cell more or less of the coarse grid lies in the body
    if abs(shift) < COORDINATE_TOLERANCE * 0.7:
        assert np.isfinite(location).all()
    if abs(shift) > COORDINATE_TOLERANCE * 1.5:
        assert np.isnan(location[axis]).all()
        assert np.isfinite(np.delete(location, axis, 0)).all()


def test_models_of_earlier_versions_check_no_range() -> None:
    locator = Locator(make_source("voxel"))
    frame = scan((40, 4000, 1))
    assert not locator.field(frame).unknown
    location = np.full((3, 4, 4, 4), 77, np.float32)
    locator.hide_unseen(location, location)
    assert (location == 77).all()


def test_axes_that_the_plans_leave_out_were_never_seen() -> None:
    locator = located("voxel", {}, axes=("R", "A"))
    assert locator.field(ABDOMENS[0]).unknown == {"S": "the plans leave it out"}
    everything = Locator(locator.source, training=locator.training)
    assert everything.field(ABDOMENS[0]).unknown == {"S": "the axis was unknown in training"}


@pytest.mark.parametrize("geometry", [True, False])
def test_array_axes_are_not_the_patients(geometry: bool) -> None:
    frames = [Frame(f.shape, affine_lps=f.affine_lps, has_geometry=geometry) for f in ABDOMENS]
    locator = located("voxel", {}, frames)
    assert not locator.field(frames[0]).unknown
    other = Frame(frames[0].shape, affine_lps=frames[0].affine_lps, has_geometry=not geometry)
    (reason,) = set(locator.field(other).unknown.values())
    assert ("no direction and origin" in reason) == geometry
    assert len(locator.field(other).unknown) == 3
    # where only some have one, those without are unknown, and the range is that of the others
    mixed = located("voxel", {}, [other, frames[0]])
    assert bool(mixed.field(frames[0]).unknown) != geometry
    assert bool(mixed.field(other).unknown) == geometry


def test_cases_that_could_not_be_measured_say_nothing_about_the_range() -> None:
    locator, measured = (
        Locator(make_source("body_part")),
        [curve(), curve(body=False), BodyPartCurve.unusable("air")],
    )
    training = TrainingRange.over(locator, zip([*ABDOMENS, ABDOMENS[0]], measured, strict=True))
    alone = TrainingRange.over(locator, [(ABDOMENS[0], curve())])
    np.testing.assert_array_equal(training.coordinates[:2], alone.coordinates[:2])
    assert training.coordinates[2, 0] < alone.coordinates[2, 0]
    with pytest.raises(ValueError, match=r"coordinates of a training range must be \(3, 2\), got"):
        TrainingRange(np.full((3, 2), np.inf), training.extents, True)
    with pytest.raises(ValueError, match=r"extents of a training range must be \(3, 2\), got"):
        TrainingRange(training.coordinates, np.zeros((2, 2)), True)
