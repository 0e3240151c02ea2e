"""The scatter of classes between cases, against values worked out by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AXES, AffineField, hide_axes, make_source
from nnunet_locctx.nnunet.data.class_places import (
    CasePoints,
    class_points,
    measured_scatter,
    source_places,
    spread,
)

NAN = np.nan
SHARED = Path("/work/shared/data")


def box(shape: tuple[int, int, int] = (20, 20, 20), spacing: float = 2.0) -> Frame:
    return Frame.from_affine(shape, np.diag([spacing, spacing, spacing, 1]), "RAS")


def case(name: str, **points: Any) -> CasePoints:
    return CasePoints(name, box(), {key: np.array(value).reshape(-1, 3) for key, value in points.items()})


def test_spread_is_that_of_the_means_over_the_median_scatter() -> None:
    """Classes at 0 and 4 along R scatter by 1 and 3 (5 and 9 at +-1, +-3 around their means), each in two of... three
    cases: 0, 0, +-sqrt(1.5) has the standard deviation 1."""
    one, three = np.sqrt(1.5), 3 * np.sqrt(1.5)
    places = np.zeros((3, 2, 3))
    places[:, 0, 0] = [-one, 0, one]
    places[:, 1, 0] = [4 - three, 4, 4 + three]
    places[:, :, 1] = [[NAN, 1], [0, 1], [0, 2]]  # the first class is known too seldom
    places[:, :, 2] = NAN
    result = spread(places, np.array([7.0, 8.0, 9.0]))
    np.testing.assert_allclose(result.between, [2, 8, NAN])
    np.testing.assert_allclose(result.scatter, [2, np.sqrt(2) / 3, NAN])
    np.testing.assert_allclose(result.ratio[0], 1)


def test_points_are_at_most_some_of_each_class_and_the_ignore_label_is_none() -> None:
    index = np.stack([np.zeros(1300, dtype=int), *[np.arange(1300)] * 3], axis=1)
    result = class_points(
        {1: index, (1, 2): index[:3], 2: [], (-1, 0, 1): index}, {1: "a", (1, 2): "ab", 2: "b"}
    )
    assert {name: len(points) for name, points in result.items()} == {"a": 434, "ab": 3, "b": 0}
    np.testing.assert_array_equal(result["a"][:2], [[0, 0, 0], [3, 3, 3]])


def test_a_source_sees_classes_in_its_own_units_and_in_millimetres() -> None:
    cases = [case(str(n), a=[[4, 9, 9], [6, 9, 9]], b=[[n, 0, 0]]) for n in (8, 10, 12)]
    result = source_places(cases, make_source("voxel"))
    np.testing.assert_allclose(result.millimetres, 40)  # 20 voxels of 2 mm are one unit
    np.testing.assert_allclose(
        result.places[0, 0], [5.5 / 20 - 0.5, 9.5 / 20 - 0.5, 9.5 / 20 - 0.5], atol=1e-6
    )
    np.testing.assert_allclose(result.spread.scatter, [np.std([8, 10, 12]) / 20 / 2, 0, 0], atol=1e-9)
    assert result.measured == 1.0
    np.testing.assert_allclose(source_places(cases, make_source("scanner")).millimetres, 500)


def test_jitter_is_the_scatter_of_what_is_known() -> None:
    cases = [case(str(n), a=[[n, n, n]]) for n in (8, 10, 12)]
    field = AffineField(box().fraction_affine, box().shape)
    hidden = hide_axes(field, {"S": "for the test"})
    jitter = measured_scatter((hidden, one.points) for one in cases)
    np.testing.assert_allclose(jitter, [np.std([8, 10, 12]) / 20] * 2 + [0], atol=1e-9)
    nowhere = hide_axes(field, dict.fromkeys(AXES, "for the test"))
    for wrong in ([(nowhere, one.points) for one in cases], [(field, cases[0].points)], []):
        with pytest.raises(
            ValueError, match=r"no class has a known place in 3 or more of \d cases; give jitter"
        ):
            measured_scatter(wrong)


def real_cases(dataset: str) -> list[CasePoints]:
    """The scans of a raw dataset as they are stored, not cropped to what is not 0 as nnU-Net does."""
    folder = SHARED / dataset
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    cases = []
    for file in sorted((folder / "labelsTr").glob("*.nii.gz")):
        image = SimpleITK.ReadImage(str(file))
        array = SimpleITK.GetArrayFromImage(image)
        points = {name: np.argwhere(array == value) for name, value in labels.items() if value}
        cases.append(CasePoints(file.name, Frame.from_sitk(image), points))
    return cases


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared scans are not here")
@pytest.mark.parametrize(
    ("dataset", "ratio"),
    [("Dataset208_MouseBrainMR", (4.6, 7.1, 1.0)), ("Dataset209_HeadMR", (10, 3.2, 1.05))],
)
def test_ratios_of_real_scans_are_those_of_the_issue(dataset: str, ratio: tuple[float, ...]) -> None:
    """Issue 15's table, in fractions of the scan."""
    result = source_places(real_cases(dataset), make_source("voxel"))
    np.testing.assert_allclose(result.spread.ratio, ratio, rtol=0.06)
