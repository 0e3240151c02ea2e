"""The scatter of classes between cases, against values worked out by hand."""

from typing import Any

import numpy as np
import pytest

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
    found = spread(places, np.array([7.0, 8.0, 9.0]))
    np.testing.assert_allclose(found.between, [2, 8, NAN])
    np.testing.assert_allclose(found.scatter, [2, np.sqrt(2) / 3, NAN])
    np.testing.assert_allclose(found.ratio[0], 1)


def test_points_are_at_most_some_of_each_class_and_the_ignore_label_is_none() -> None:
    index = np.stack([np.zeros(1300, dtype=int), *[np.arange(1300)] * 3], axis=1)
    found = class_points(
        {1: index, (1, 2): index[:3], 2: [], (-1, 0, 1): index}, {1: "a", (1, 2): "ab", 2: "b"}
    )
    assert {name: len(points) for name, points in found.items()} == {"a": 434, "ab": 3, "b": 0}
    np.testing.assert_array_equal(found["a"][:2], [[0, 0, 0], [3, 3, 3]])


def test_a_source_sees_classes_in_its_own_units_and_in_millimetres() -> None:
    cases = [case(str(n), a=[[4, 9, 9], [6, 9, 9]], b=[[n, 0, 0]]) for n in (8, 10, 12)]
    found = source_places(cases, make_source("voxel"))
    np.testing.assert_allclose(found.millimetres, 40)  # 20 voxels of 2 mm are one unit
    np.testing.assert_allclose(
        found.places[0, 0], [5.5 / 20 - 0.5, 9.5 / 20 - 0.5, 9.5 / 20 - 0.5], atol=1e-6
    )
    np.testing.assert_allclose(found.spread.scatter, [np.std([8, 10, 12]) / 20 / 2, 0, 0], atol=1e-9)
    assert found.measured == 1.0
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
