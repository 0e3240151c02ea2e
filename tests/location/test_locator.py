"""A scan's location is known along the axes that the plans use and as far as training has seen it."""

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
    source = make_source(name, **options)
    cases = [(frame, Locator(source, **more).field(frame, curve())) for frame in frames]
    return Locator(source, training=TrainingRange.over(cases), **more)


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
    location[axis] += shift
    expected = location.copy()
    assert locator.training is not None
    width = np.diff(locator.training.coordinates[axis])[0]
    if abs(abs(shift) - COORDINATE_TOLERANCE * width) < 1e-5:
        return  # float32
    if abs(shift) > COORDINATE_TOLERANCE * width:
        expected[axis] = np.nan
    locator.hide_unseen(location)
    np.testing.assert_array_equal(location, expected)


@pytest.mark.parametrize(("hidden", "shifted"), [(a, b) for a in range(3) for b in range(3) if a != b])
def test_an_unknown_axis_says_nothing_about_the_others(hidden: int, shifted: int) -> None:
    locator = located("voxel", {})
    location = locator.source.field(ABDOMENS[0]).box((0, 0, 0), (20, 20, 20))
    location[hidden] = np.nan
    location[shifted] += 0.5
    expected = location.copy()
    expected[shifted] = np.nan
    locator.hide_unseen(location)
    np.testing.assert_array_equal(location, expected)


def test_models_of_earlier_versions_check_no_range() -> None:
    locator = Locator(make_source("voxel"))
    frame = scan((40, 4000, 1))
    assert not locator.field(frame).unknown
    location = np.full((3, 4, 4, 4), 77, np.float32)
    locator.hide_unseen(location)
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
    source = make_source("body_part")
    fields = [
        source.field(frame, measured)
        for frame, measured in zip(
            [*ABDOMENS, ABDOMENS[0]], [curve(), curve(body=False), BodyPartCurve.unusable("air")], strict=True
        )
    ]
    training = TrainingRange.over(zip([*ABDOMENS, ABDOMENS[0]], fields, strict=True))
    alone = TrainingRange.over([(ABDOMENS[0], fields[0])])
    np.testing.assert_array_equal(training.coordinates[:2], alone.coordinates[:2])
    assert training.coordinates[2, 0] < alone.coordinates[2, 0]
    with pytest.raises(ValueError, match=r"coordinates of a training range must be \(3, 2\), got"):
        TrainingRange(np.full((3, 2), np.inf), training.extents, True)
    with pytest.raises(ValueError, match=r"extents of a training range must be \(3, 2\), got"):
        TrainingRange(training.coordinates, np.zeros((2, 2)), True)
