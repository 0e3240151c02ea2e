"""`nnunet_locctx.viewing`: one picture of a patient, however the scan is stored."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.geometry import Frame
from nnunet_locctx.viewing import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    VIEWS,
    Slice,
    View,
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
    assert grey_levels(np.arange(101.0), (0, 100)) == (0, 100)
    mask = np.zeros((2, 3, 4), dtype=bool)
    mask[1, 2, :3] = True
    assert [counts.tolist() for counts in per_plane(mask)] == [[0, 3], [0, 0, 3], [1, 1, 1, 0]]
    assert widest_view(Frame((2, 3, 4), affine_lps=np.eye(4))) is AXIAL
