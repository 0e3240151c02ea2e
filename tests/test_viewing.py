"""`nnunet_locctx.viewing`: one picture of a patient, however the scan is stored."""

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from skimage.color import deltaE_ciede2000, rgb2lab

from nnunet_locctx.geometry import Frame
from nnunet_locctx.viewing import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    VIEWS,
    VISIONS,
    Slice,
    View,
    class_colours,
    grey_levels,
    per_plane,
    widest_view,
)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SLA"])
def test_right_anterior_superior_are_where_radiologists_expect_them(code: str) -> None:
    lps = sitk.GetImageFromArray(np.arange(4 * 5 * 6, dtype=np.int32).reshape(4, 5, 6))  # z, y, x
    lps.SetSpacing((1.0, 2.0, 3.0))
    image = sitk.DICOMOrient(lps, code)
    frame, volume = Frame.from_sitk(image), sitk.GetArrayFromImage(image)
    whole = sitk.GetArrayFromImage(lps)
    middle = [int(index[0]) for index in np.nonzero(volume == whole[2, 3, 4])]
    expected = {AXIAL: whole[2], CORONAL: whole[::-1, 3], SAGITTAL: whole[::-1, :, 4]}
    sizes = {AXIAL: (2.0, 1.0), CORONAL: (3.0, 1.0), SAGITTAL: (3.0, 2.0)}
    letters = {AXIAL: "RLAP", CORONAL: "RLSI", SAGITTAL: "APSI"}
    for view in VIEWS:
        piece = Slice(frame, view, middle)
        np.testing.assert_array_equal(piece.of(volume), expected[view])
        np.testing.assert_array_equal(piece.of(np.stack([volume, -volume]))[1], -expected[view])
        assert piece.spacing == pytest.approx(sizes[view])
        assert (piece.height, piece.width) == pytest.approx(np.multiply(expected[view].shape, sizes[view]))
        assert "".join(piece.letters) == letters[view]
        np.testing.assert_array_equal(Slice(frame, view, piece.index).of(volume), expected[view])


@pytest.mark.parametrize(("shape", "view"), [((1, 3, 4), AXIAL), ((3, 1, 4), CORONAL), ((3, 4, 1), SAGITTAL)])
def test_without_geometry_as_stored(shape: tuple[int, int, int], view: View) -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])[:, [2, 1, 0, 3]]
    frame = Frame(shape, affine_lps=affine, has_geometry=False)
    assert widest_view(frame) is view
    piece = Slice(frame, widest_view(frame), 0)
    volume = np.arange(12).reshape(shape)
    np.testing.assert_array_equal(piece.of(volume), np.arange(12).reshape(3, 4))
    assert piece.letters == ()
    lower = np.array([0 if n == 1 else 1 for n in shape])
    assert piece.rectangle(lower, np.ones(3)) == (1, 1, 1, 1)


def test_grey_levels_and_planes() -> None:
    assert grey_levels(np.array([1.0, np.nan, 1.0])) == (1.0, 1.000001)
    assert grey_levels(np.arange(201.0)) == (1, 199)
    assert grey_levels(np.arange(201.0), "ct") == (-160, 240)
    mask = np.zeros((2, 3, 4), dtype=bool)
    mask[1, 2, :3] = True
    assert [counts.tolist() for counts in per_plane(mask)] == [[0, 3], [0, 0, 3], [1, 1, 1, 0]]
    assert widest_view(Frame((2, 3, 4), affine_lps=np.eye(4))) is AXIAL


def smallest_distance(colours: np.ndarray, vision: np.ndarray) -> float:
    """CIEDE2000 between the two most alike of (n, 3) RGB colours, as seen by someone."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ vision.T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    first, second = np.triu_indices(len(colours), 1)
    return float(deltaE_ciede2000(lab[first], lab[second]).min())


@pytest.mark.parametrize("twins", [0, 20])
def test_no_two_of_61_classes_look_alike(twins: int) -> None:
    pairs = [(f"left {number}", f"right {number}") for number in range(twins)]
    names = [f"class {number}" for number in range(61 - 2 * twins)] + [
        name for pair in pairs for name in pair
    ]
    by_name = class_colours(names, pairs)
    assert list(by_name) == names
    colours = np.array(list(by_name.values()))
    normal, deuteranopia, protanopia = (smallest_distance(colours, vision) for vision in VISIONS)
    assert normal > 7  # a difference of 1 is seen at once by people who compare colours side by side
    assert min(deuteranopia, protanopia) > 4
    for left, right in pairs:
        light, dark = (rgb2lab(by_name[name]) for name in (left, right))
        assert light[0] > dark[0] + 20
        turn = np.degrees(np.arctan2(light[2], light[1]) - np.arctan2(dark[2], dark[1]))
        assert abs((turn + 180) % 360 - 180) < 5


def test_colours_are_the_same_everywhere() -> None:
    names = ["liver", "kidney_left", "kidney_right"]
    colours = class_colours(names, [("kidney_left", "kidney_right")])
    assert colours == class_colours(names, [("kidney_left", "kidney_right"), ("rib_left", "rib_right")])
    assert class_colours([]) == {}


def test_outlines_lie_around_their_voxels() -> None:
    frame = Frame((1, 4, 5), affine_lps=np.diag([1.0, 2.0, 3.0, 1.0])[:, [2, 1, 0, 3]])
    piece, panel = Slice(frame, AXIAL, 0), Figure().subplots()
    inside = np.zeros((4, 5), dtype=bool)
    inside[:2, 1:3] = True
    piece.outline(panel, inside, "red")
    piece.frame_panel(panel)
    (line,) = [one for one in panel.get_children() if isinstance(one, ContourSet) and not one.filled]
    corners = np.concatenate([path.vertices for path in line.get_paths()])
    spacing = np.array(piece.spacing[::-1])
    np.testing.assert_allclose(corners.min(axis=0), np.array((1, 0)) * spacing, atol=1e-6)
    np.testing.assert_allclose(corners.max(axis=0), np.array((3, 2)) * spacing, atol=1e-6)
    assert "".join(text.get_text() for text in panel.texts) == "RLAP"
