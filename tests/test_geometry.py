"""Frame: every voxel centre of the preprocessed array has the place in the patient that the scan's header
gives it."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_locctx import geometry
from nnunet_locctx.geometry import Frame, corner_distance
from tests.geometry_cases import (
    centres,
    flips,
    permutations,
    rotation,
    shapes,
    sitk_properties,
    small_angles,
    spacings,
    stored,
)


def test_the_docstring_example() -> None:
    assert doctest.testmod(geometry) == (0, 4)


def test_corner_distance_is_in_voxels() -> None:
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    moved, mirrored = affine.copy(), affine @ np.diag([-1.0, 1, 1, 1])
    moved[0, 3], mirrored[0, 3] = 3, 2 * 3
    frame, other, twin = (Frame.from_affine((4, 4, 4), one, "LPS") for one in (affine, moved, mirrored))
    assert corner_distance(frame, other) == pytest.approx(1.5)
    # the corners change places over the voxels between
    assert corner_distance(frame, twin) == pytest.approx(3)


def test_patient_axes_of_an_identity_direction() -> None:
    """In LPS storage x grows to the left, y to posterior, z to superior: R and A are reversed, S is not."""
    frame = Frame.from_properties(sitk_properties((2, 4, 8)), (2, 4, 8))
    np.testing.assert_allclose(frame.fraction([0, 0, 0]), [0.5 - 1 / 16, 0.5 - 1 / 8, -0.25])
    np.testing.assert_allclose(frame.millimetres([1, 3, 7]), [7, 3, 1])
    assert frame.array_axes == (2, 1, 0)


@given(permutations, flips, shapes, spacings, centres, small_angles, st.data())
def test_anatomy_keeps_its_coordinates_however_it_is_stored(
    permutation: tuple[int, int, int],
    flip: tuple[bool, bool, bool],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    centre: np.ndarray,
    angles: tuple[float, float, float],
    data: st.DataObject,
) -> None:
    oblique = rotation(angles)
    plain, plain_shape = stored((0, 1, 2), (False,) * 3, shape, spacing, centre, oblique)
    other, other_shape = stored(permutation, flip, shape, spacing, centre, oblique)
    reference, frame = Frame.from_properties(plain, plain_shape), Frame.from_properties(other, other_shape)
    place = centre + np.array(data.draw(st.tuples(*[st.floats(-150, 150)] * 3)))
    one, two = reference.index_from_millimetres(place), frame.index_from_millimetres(place)
    np.testing.assert_allclose(reference.fraction(one), frame.fraction(two), atol=1e-9)
    for matrix in ("centred_affine", "absolute_affine"):
        a, b = getattr(reference, matrix), getattr(frame, matrix)
        np.testing.assert_allclose(a[:, :3] @ one + a[:, 3], b[:, :3] @ two + b[:, 3], atol=1e-8)


@given(permutations, flips, shapes, spacings, centres, small_angles, st.tuples(*[st.floats(-100, 100)] * 3))
def test_inverses(permutation, flip, shape, spacing, centre, angles, index) -> None:  # type: ignore[no-untyped-def]
    properties, array_shape = stored(permutation, flip, shape, spacing, centre, rotation(angles))
    frame = Frame.from_properties(properties, array_shape)
    np.testing.assert_allclose(frame.index_from_millimetres(frame.millimetres(index)), index, atol=1e-8)
    np.testing.assert_allclose(frame.index_from_fraction(frame.fraction(index)), index, atol=1e-8)


@given(permutations, flips, shapes, spacings, centres)
def test_fractions_fill_the_volume(permutation, flip, shape, spacing, centre) -> None:  # type: ignore[no-untyped-def]
    properties, array_shape = stored(permutation, flip, shape, spacing, centre, np.eye(3))
    frame = Frame.from_properties(properties, array_shape)
    faces = [frame.fraction(corner) for corner in ([-0.5] * 3, np.array(array_shape) - 0.5)]
    np.testing.assert_allclose(np.sort(faces, axis=0), [[-0.5] * 3, [0.5] * 3], atol=1e-9)


@given(permutations, st.tuples(*[st.integers(6, 20)] * 3), spacings, st.data())
def test_crop_transpose_and_resampling(permutation, shape, spacing, data) -> None:  # type: ignore[no-untyped-def]
    """nnU-Net transposes, crops and resamples: a voxel centre stays at the same millimetres."""
    direction = rotation((0.1, -0.2, 0.3)) @ np.diag([-1.0, 1.0, -1.0])
    properties = sitk_properties(shape, spacing, (11.0, -7.0, 5.0), direction)
    raw = Frame.from_properties(properties, shape)
    transposed = [shape[axis] for axis in permutation]
    box = [
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
        for n in transposed
    ]
    cropped = [upper - lower for lower, upper in box]
    resampled = [data.draw(st.integers(1, 40)) for _ in range(3)]
    properties |= {
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": tuple(cropped),
    }
    frame = Frame.from_properties(properties, resampled, permutation)
    voxel = np.array([data.draw(st.integers(0, n - 1)) for n in resampled])
    in_crop = (voxel + 0.5) * np.array(cropped) / np.array(resampled) - 0.5
    in_transposed = in_crop + [lower for lower, _ in box]
    in_stored = np.empty(3)
    in_stored[list(permutation)] = in_transposed
    np.testing.assert_allclose(frame.millimetres(voxel), raw.millimetres(in_stored), atol=1e-8)
    np.testing.assert_allclose(frame.spacing * resampled, raw.spacing[list(permutation)] * cropped)


def test_the_frame_of_a_simpleitk_image() -> None:
    """The millimetres are SimpleITK's own."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.Image([5, 6, 7], sitk.sitkFloat32)
    image.SetSpacing((0.7, 1.1, 3.0))
    image.SetOrigin((-12.0, 40.0, 7.5))
    image.SetDirection(rotation((0.2, 0.1, -0.3)).ravel().tolist())
    properties = sitk_properties(
        (7, 6, 5), image.GetSpacing(), image.GetOrigin(), np.array(image.GetDirection()).reshape(3, 3)
    )
    frame = Frame.from_properties(properties, (7, 6, 5))
    for x, y, z in [(0, 0, 0), (4, 5, 6), (1, 3, 2)]:
        np.testing.assert_allclose(
            frame.millimetres([z, y, x]), image.TransformIndexToPhysicalPoint((x, y, z)), atol=1e-10
        )


@pytest.mark.parametrize("reoriented", [False, True])
def test_nibabel_and_simpleitk_agree(reoriented: bool) -> None:
    direction = rotation((0.2, 0.1, -0.3))
    sitk = sitk_properties((7, 6, 5), (0.7, 1.1, 3.0), (-12.0, 40.0, 7.5), direction)
    ras = np.eye(4)
    ras[:3, :3] = np.diag([-1, -1, 1]) @ direction @ np.diag([0.7, 1.1, 3.0])
    ras[:3, 3] = np.diag([-1, -1, 1]) @ np.array([-12.0, 40.0, 7.5])
    stuff = (
        {"original_affine": np.eye(4), "reoriented_affine": ras} if reoriented else {"original_affine": ras}
    )
    nibabel = {"nibabel_stuff": stuff, "spacing": [3.0, 1.1, 0.7]}
    one, two = (Frame.from_properties(p, (7, 6, 5)) for p in (sitk, nibabel))
    np.testing.assert_allclose(one.affine_lps, two.affine_lps, atol=1e-12)


@pytest.mark.parametrize(
    "properties",
    [
        {"spacing": [3.0, 2.0, 1.0]},
        {
            "spacing": [999.0, 2.0, 1.0],
            "sitk_stuff": {"spacing": (1, 2), "origin": (0, 0), "direction": (1, 0, 0, 1)},
        },
    ],
    ids=["npy", "2d-sitk"],
)
def test_without_geometry_array_axes_are_used_and_said_once(properties: dict) -> None:  # type: ignore[type-arg]
    geometry._warn_no_geometry.cache_clear()
    with pytest.warns(UserWarning, match="location follows the array axes") as record:
        frames = [Frame.from_properties(properties, (2, 4, 8)) for _ in range(3)]
    assert len(record) == 1
    frame = frames[0]
    assert not frame.has_geometry
    np.testing.assert_allclose(frame.fraction([1, 0, 2]), [2.5 / 8 - 0.5, 0.5 / 4 - 0.5, 0.25])
    np.testing.assert_allclose(frame.spacing[1:], [2.0, 1.0])


def test_an_oblique_volume_is_as_long_as_its_bounding_box() -> None:
    turned = sitk_properties((10, 10, 10), direction=rotation((np.pi / 4, 0, 0)))
    frame = Frame.as_read(turned, (10, 10, 10))
    assert sorted(frame.array_axes) == [0, 1, 2]
    np.testing.assert_allclose(frame.extent, [10, 10 * np.sqrt(2), 10 * np.sqrt(2)])
    assert frame.obliquity == pytest.approx(45)


angles = st.tuples(*[st.floats(-np.pi, np.pi)] * 3)


@given(permutations, flips, shapes, spacings, centres, angles)
def test_the_bounding_box_of_the_volume_has_the_fractions_one_half(  # type: ignore[no-untyped-def]
    permutation, flip, shape, spacing, centre, angles
) -> None:
    """However oblique: the outermost corner along each patient axis, and no other place of the volume, is at 0.5."""
    properties, array_shape = stored(permutation, flip, shape, spacing, centre, rotation(angles))
    frame = Frame.as_read(properties, array_shape)
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in array_shape], indexing="ij"), axis=-1)
    fractions = frame.fraction(corners.reshape(-1, 3))
    np.testing.assert_allclose(fractions.max(axis=0), 0.5, atol=1e-9)
    np.testing.assert_allclose(fractions.min(axis=0), -0.5, atol=1e-9)


@given(
    permutations, flips, shapes, spacings, angles, st.integers(0, 2), st.tuples(*[st.floats(-0.5, 0.5)] * 3)
)
def test_fractions_are_continuous_in_every_angle(  # type: ignore[no-untyped-def]
    permutation, flip, shape, spacing, angles, axis, place
) -> None:
    """A volume that is turned a little further moves no place by more than it was turned, at 45 degrees too."""
    little = 1e-4
    box = np.array(shape) * np.array(spacing)
    # no part of a unit of the shortest extent can move faster than the longest side over the shortest
    fastest = 4 * box.max() / box.min()
    fractions = []
    for turn in (0, little):
        turned = tuple(angle + turn * (axis == a) for a, angle in enumerate(angles))
        properties, array_shape = stored(permutation, flip, shape, spacing, np.zeros(3), rotation(turned))
        fractions.append(Frame.as_read(properties, array_shape).fraction(np.array(place) * array_shape))
    np.testing.assert_allclose(*fractions, atol=fastest * little * (1 + max(array_shape)))


@pytest.mark.parametrize("degrees", [44, 46])
def test_the_same_place_on_both_sides_of_forty_five_degrees(degrees: float) -> None:
    """A long volume turned about S: R and A do not jump where another array axis becomes the closest."""
    direction = rotation((0, 0, np.radians(degrees)))
    properties = sitk_properties((20, 30, 120), (2.0, 2.0, 2.0), direction=direction)
    frame = Frame.as_read(properties, (20, 30, 120))
    centre = sitk_properties((20, 30, 120), (2.0, 2.0, 2.0), direction=rotation((0, 0, np.pi / 4)))
    reference = Frame.as_read(centre, (20, 30, 120)).fraction([10, 3, 100])
    np.testing.assert_allclose(frame.fraction([10, 3, 100]), reference, atol=0.01)


@pytest.mark.parametrize("axes", [4, 5])
def test_further_axes_have_no_place(axes: int) -> None:
    """A 4D file with its channels inside: the spatial part of the direction counts, sides are not swapped."""
    direction = rotation((0.2, 0.1, -0.3)) @ np.diag([-1.0, 1.0, -1.0])
    volume = sitk_properties((7, 6, 5), (0.7, 1.1, 3.0), (-12.0, 40.0, 7.5), direction)
    larger = np.eye(axes)
    larger[:3, :3] = direction
    more = [1.0] * (axes - 3)
    stuff = volume["sitk_stuff"]
    channels = {
        "spacing": volume["spacing"],
        "sitk_stuff": {
            "spacing": (*stuff["spacing"], *more),
            "origin": (*stuff["origin"], *more),
            "direction": tuple(larger.ravel()),
        },
    }
    frame = Frame.as_read(channels, (7, 6, 5))
    assert frame.has_geometry
    np.testing.assert_allclose(frame.affine_lps, Frame.as_read(volume, (7, 6, 5)).affine_lps)


@pytest.mark.parametrize("cosines", [8, 1, 12])
def test_a_direction_that_is_no_matrix_is_refused(cosines: int) -> None:
    properties = sitk_properties((7, 6, 5))
    properties["sitk_stuff"]["direction"] = (1.0,) * cosines
    with pytest.raises(ValueError, match=f"direction must be a square matrix .* got {cosines} cosines"):
        Frame.as_read(properties, (7, 6, 5))


def test_as_read_does_not_look_at_what_preprocessing_left() -> None:
    properties = sitk_properties((7, 6, 5), (0.7, 1.1, 3.0), (-12.0, 40.0, 7.5))
    used = properties | {
        "bbox_used_for_cropping": [[2, 6], [1, 4], [0, 5]],
        "shape_after_cropping_and_before_resampling": (4, 3, 5),
    }
    before, after = Frame.as_read(properties, (7, 6, 5)), Frame.as_read(used, (7, 6, 5))
    np.testing.assert_array_equal(before.affine_lps, after.affine_lps)
    assert not np.allclose(Frame.from_properties(used, (7, 6, 5)).affine_lps, before.affine_lps)


def test_affines_come_with_their_space() -> None:
    """A RAS affine given as the raw argument would swap left and right: it is not taken without a name."""
    ras = np.diag([2.0, 3.0, 4.0, 1.0])
    ras[:3, 3] = 5, 6, 7
    with pytest.raises(TypeError):
        Frame((2, 2, 2), ras)  # type: ignore[misc]
    with pytest.raises(ValueError, match="space must be 'RAS' or 'LPS', got 'ras'"):
        Frame.from_affine((2, 2, 2), ras, "ras")  # type: ignore[arg-type]
    frame = Frame.from_affine((2, 2, 2), ras, "RAS")
    np.testing.assert_allclose(frame.millimetres([1, 1, 1]), [-7, -9, 11])
    np.testing.assert_allclose(frame.fraction([1, 1, 1]), [0.25, 0.25, 0.25])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras
    np.testing.assert_allclose(Frame.from_affine((2, 2, 2), lps, "LPS").affine_lps, frame.affine_lps)


def test_nibabel_and_simpleitk_images_have_one_place() -> None:
    """Voxel (x, y, z) of one file: nibabel's array is ordered x, y, z, SimpleITK's z, y, x."""
    nibabel = pytest.importorskip("nibabel")
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.Image([5, 6, 7], sitk.sitkFloat32)
    image.SetSpacing((0.7, 1.1, 3.0))
    image.SetOrigin((-12.0, 40.0, 7.5))
    image.SetDirection(rotation((0.2, 0.1, -0.3)).ravel().tolist())
    ras = np.eye(4)
    ras[:3, :3] = np.diag([-1, -1, 1]) @ rotation((0.2, 0.1, -0.3)) @ np.diag([0.7, 1.1, 3.0])
    ras[:3, 3] = [12.0, -40.0, 7.5]
    volume = np.zeros((5, 6, 7, 2), dtype=np.float32)
    one, two = Frame.from_nibabel(nibabel.Nifti1Image(volume, ras)), Frame.from_sitk(image)
    assert one.shape == (5, 6, 7)
    assert two.shape == (7, 6, 5)
    for x, y, z in [(0, 0, 0), (4, 5, 6), (1, 3, 2)]:
        np.testing.assert_allclose(one.millimetres([x, y, z]), two.millimetres([z, y, x]), atol=1e-5)
        np.testing.assert_allclose(one.fraction([x, y, z]), two.fraction([z, y, x]), atol=1e-6)
    joined = Frame.from_sitk(sitk.JoinSeries([image, image]))
    np.testing.assert_allclose(joined.affine_lps, two.affine_lps)
    with pytest.raises(ValueError, match="three or more dimensions is needed"):
        Frame.from_sitk(sitk.Image([5, 6], sitk.sitkFloat32))


def test_the_frame_cannot_be_changed() -> None:
    frame = Frame.from_properties(sitk_properties((2, 2, 2)), (2, 2, 2))
    with pytest.raises(ValueError, match="read-only"):
        frame.affine_lps[0, 0] = 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": [1.0, 0.0, 1.0]}, r"spacing must be three numbers above 0 mm, got \[1.0, 0.0, 1.0\]"),
        ({"spacing": [1.0, float("nan"), 1.0]}, "spacing must be three numbers above 0 mm"),
        ({"direction": [1, 1, 0, 0, 0, 0, 0, 0, 1]}, "direction matrix is singular"),
        ({"direction": [0] * 9}, "voxel sizes must be above 0 mm"),
        ({"direction": [float("nan")] + [0] * 8}, "origin and direction must be finite"),
        ({"origin": (float("inf"), 0, 0)}, "origin and direction must be finite"),
    ],
)
def test_broken_headers(change: dict, message: str) -> None:  # type: ignore[type-arg]
    properties = sitk_properties((2, 2, 2))
    if "spacing" in change:
        properties["spacing"] = change["spacing"]
    else:
        properties["sitk_stuff"] |= change
    with pytest.raises(ValueError, match=message):
        Frame.from_properties(properties, (2, 2, 2))


@pytest.mark.parametrize(
    ("shape", "transpose", "message"),
    [
        ((0, 2, 2), (0, 1, 2), "at least one voxel"),
        ((2, 2), (0, 1, 2), "three axes"),
        ((2, 2, 2), (0, 0, 2), r"permutation of 0, 1, 2, got \[0, 0, 2\]"),
    ],
)
def test_impossible_shapes(shape: tuple[int, ...], transpose: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frame.from_properties(sitk_properties((2, 2, 2)), shape, transpose)
