"""Fields made from measurements: the same place of the patient has the same location, however it is stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AnatomicalMap, BodyPartCurve, Measurement, make_source
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

UP = np.array([0.0, 0.0, 1.0])


def make_curve(*, body: bool = True) -> BodyPartCurve:
    """A bent curve over 400 mm, and a body that widens upwards."""
    positions = np.linspace(-150.0, 250.0, 41)
    scores = 30 + 0.1 * positions + 5 * np.tanh(positions / 60)
    edges = np.stack(
        [-100 - 0.1 * positions, 120 + 0.2 * positions, np.full(41, -80.0), 90 + 0.05 * positions], axis=1
    )
    return BodyPartCurve(UP, positions, scores, 0.12, edges if body else None)


def make_map(seed: int = 0) -> AnatomicalMap:
    """Coordinates that mostly follow the patient axes, on an oblique grid of 16 mm."""
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-16.0, -16.0, 16.0]) @ rotation((0.1, -0.05, 0.2))
    affine[:3, 3] = [90.0, 80.0, -100.0]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (12, 10, 14)], indexing="ij"), axis=-1)
    millimetres = index @ affine[:3, :3].T + affine[:3, 3]
    slopes = np.diag([-1.0, -1.0, 1.0]) / 400
    values = np.moveaxis(millimetres @ slopes.T, -1, 0) + 0.01 * random.standard_normal((3, 12, 10, 14))
    return AnatomicalMap(values.astype(np.float32), affine, slopes)


measurements = st.sampled_from(
    [
        ("body_part", {}, make_curve()),
        ("body_part", {}, make_curve(body=False)),
        ("body_part", {"cross_section": "scan"}, make_curve()),
        ("anatomical", {}, make_map()),
    ]
)


@given(permutations, flips, shapes, spacings, centres, small_angles, st.booleans(), measurements, st.data())
def test_any_grid_of_points_has_the_location_of_its_points(  # type: ignore[no-untyped-def]
    permutation, flip, shape, spacing, centre, angles, oblique, measured, data
) -> None:
    properties, array_shape = stored(
        permutation, flip, shape, spacing, centre, rotation(angles if oblique else (0, 0, 0))
    )
    frame = Frame.from_properties(properties, array_shape)
    name, options, measurement = measured
    field = make_source(name, **options).field(frame, measurement)
    rank = data.draw(st.integers(2, 3))
    size = data.draw(st.tuples(*[st.integers(1, 6)] * rank))
    origin = np.array(data.draw(st.tuples(*[st.floats(-20, 40)] * 3)))
    steps = np.array(data.draw(st.lists(st.floats(-2, 2), min_size=3 * rank, max_size=3 * rank)))
    steps = steps.reshape(3, rank)
    out = np.empty((3, *size), dtype=np.float32)
    field.sample(origin, steps, out)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), axis=-1)
    truth = np.moveaxis(field.at(index @ steps.T + origin), -1, 0)
    np.testing.assert_allclose(out, truth, atol=2e-4, rtol=2e-4)
    lower = tuple(int(n) for n in origin)
    box = field.box(lower, (3, 2, 4))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (3, 2, 4)], indexing="ij"), axis=-1) + lower
    np.testing.assert_allclose(box, np.moveaxis(field.at(index), -1, 0), atol=2e-4, rtol=2e-4)


@given(permutations, flips, st.booleans(), measurements)
def test_storage_does_not_change_a_places_location(permutation, flip, transposed, measured) -> None:  # type: ignore[no-untyped-def]
    name, options, measurement = measured
    if name == "body_part" and (options or measurement.cross_section is None):
        return  # fractions of the scan, tested with the source voxel
    place = np.array([-12.5, 20.0, 33.0])
    coordinates = []
    for permuted, flipped in (((0, 1, 2), (1, 1, 1)), (permutation, flip)):
        properties, shape = stored(permuted, flipped, (9, 8, 7), (4.0, 5.0, 6.0), np.zeros(3), np.eye(3))
        order = (2, 0, 1) if transposed else (0, 1, 2)
        frame = Frame.from_properties(properties, [shape[axis] for axis in order], order)
        index = frame.index_from_millimetres(place)
        coordinates.append(make_source(name, **options).field(frame, measurement).at(index))
    np.testing.assert_allclose(coordinates[0], coordinates[1], atol=1e-9)


def test_scores_continue_without_a_jump() -> None:
    curve = make_curve()
    for end in (curve.positions[0], curve.positions[-1]):
        near = curve.score_at([end - 1e-6, end, end + 1e-6])
        np.testing.assert_allclose(near, near[1], atol=1e-5)
    assert curve.score_at(350.0) == pytest.approx(curve.scores[-1] + 100 * curve.slope)
    assert curve.score_at(-250.0) == pytest.approx(curve.scores[0] - 100 * curve.slope)
    assert (np.diff(curve.score_at(np.linspace(-400, 500, 1000))) >= 0).all()


def test_a_map_continues_without_a_jump() -> None:
    field = make_map()
    corner = np.array([11.0, 9.0, 13.0])
    to_millimetres = lambda index: index @ field.affine[:3, :3].T + field.affine[:3, 3]  # noqa: E731
    np.testing.assert_allclose(field.at(to_millimetres(corner)), field.values[:, -1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(
        field.at(to_millimetres(corner + 1e-6)), field.at(to_millimetres(corner)), atol=1e-6
    )
    away = to_millimetres(corner + np.array([3.0, 0.0, 0.0]))
    step = field.slopes @ (away - to_millimetres(corner))
    np.testing.assert_allclose(field.at(away) - field.values[:, -1, -1, -1], step, atol=1e-6)


def test_the_bodys_cross_section_spans_half_to_half() -> None:
    frame = Frame.from_affine((5, 5, 5), np.diag([-1.0, -1.0, 1.0, 1.0]), "LPS")
    curve = make_curve()
    assert curve.cross_section is not None
    level = 7
    lower, upper, back, front = curve.cross_section[level]
    z = curve.positions[level]
    places = np.array([[-lower, -back, z], [-upper, -front, z], [-(lower + upper) / 2, 0.0, z]])  # mm LPS
    coordinates = make_source("body_part").field(frame, curve).at(frame.index_from_millimetres(places))
    np.testing.assert_allclose(coordinates[:2, :2], [[-0.5, -0.5], [0.5, 0.5]], atol=1e-9)
    assert coordinates[2, 0] == pytest.approx(0)
    np.testing.assert_allclose(coordinates[:, 2], curve.scores[level] / 100 - 0.5)


@pytest.mark.parametrize("measurement", [make_curve(), make_curve(body=False), make_map()])
def test_bytes_and_back(measurement: Measurement) -> None:
    again = Measurement.from_bytes(measurement.to_bytes())
    assert type(again) is type(measurement)
    for name, array in measurement.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)


@pytest.mark.parametrize("kind", [BodyPartCurve, AnatomicalMap])
def test_the_location_of_a_scan_that_could_not_be_measured_is_unknown(kind: type[BodyPartCurve]) -> None:
    measurement = Measurement.from_bytes(kind.unusable("nothing but air").to_bytes())
    frame = Frame.from_affine((5, 6, 7), np.diag([-1.0, -1.0, 1.0, 1.0]), "LPS")
    field = make_source(kind.kind).field(frame, measurement)
    assert field.unknown == dict.fromkeys("RAS", "nothing but air")
    assert np.isnan(field.box((0, 0, 0), (5, 6, 7))).all()


def test_fractions_of_a_body_that_was_not_found_are_unknown() -> None:
    """Those of the scan are another coordinate; they stand where they were asked for."""
    frame = Frame.from_affine((5, 6, 7), np.diag([-1.0, -1.0, 1.0, 1.0]), "LPS")
    box = make_source("body_part").field(frame, make_curve(body=False)).box((0, 0, 0), (5, 6, 7))
    scan = make_source("body_part", cross_section="scan").field(frame, make_curve(body=False))
    assert np.isnan(box[:2]).all()
    np.testing.assert_array_equal(box[2], scan.box((0, 0, 0), (5, 6, 7))[2])
    assert not scan.unknown


def test_errors_say_what_is_wrong() -> None:
    frame = Frame.from_affine((5, 6, 7), np.eye(4), "LPS")
    with pytest.raises(ValueError, match="'body_part' needs a measurement of the scan, got none"):
        make_source("body_part").field(frame)
    with pytest.raises(ValueError, match="got one of 'anatomical'"):
        make_source("body_part").field(frame, make_map())
    with pytest.raises(ValueError, match="cross_section must be one of body, scan, got 'arm'"):
        make_source("body_part", cross_section="arm")
    for damaged in (b"", b"hello", make_map().to_bytes()[:-100]):
        with pytest.raises(ValueError, match="not a measurement of a scan, or damaged"):
            Measurement.from_bytes(damaged)
    with pytest.raises(ValueError, match="must not decrease"):
        BodyPartCurve(UP, np.arange(3.0), np.array([1.0, 0.0, 2.0]), 0.1)
    with pytest.raises(ValueError, match="must be finite"):
        BodyPartCurve(UP, np.arange(3.0), np.array([1.0, np.nan, 2.0]), 0.1)
    with pytest.raises(ValueError, match="2 or more along each axis"):
        AnatomicalMap(np.zeros((3, 1, 4, 4), dtype=np.float32), np.eye(4), np.eye(3))


@given(measurements)
def test_no_location_is_exactly_zero(measured) -> None:  # type: ignore[no-untyped-def]
    name, options, measurement = measured
    frame = Frame.from_affine((4, 5, 6), np.diag([-20.0, -20.0, 20.0, 1.0]), "LPS")
    box = make_source(name, **options).field(frame, measurement).box((0, 0, 0), frame.shape)
    assert (box != 0).any(axis=0).all()
