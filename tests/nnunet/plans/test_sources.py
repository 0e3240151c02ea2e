"""Which source is recommended, and what is said about the patch."""

from typing import Any

import numpy as np
import pytest

from nnunet_locctx.commands.sources import SMALLER, _options_of_plan
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import make_source
from nnunet_locctx.nnunet.data.class_places import CasePoints, SourcePlaces
from nnunet_locctx.nnunet.plans.presets import list_presets
from nnunet_locctx.nnunet.plans.sources import (
    Candidate,
    location_key,
    recommend,
    report_recommendation,
    report_sources,
)


def candidate(
    location: dict[str, Any], ratios: tuple[float, ...], unknown: int = 0, mm: float = 100
) -> Candidate:
    """Two classes 0.2 apart (their standard deviation is 0.1) in 4 cases, with these ratios along R, A, S."""
    places = np.zeros((4, 2, 3))
    places[:, 1] = 0.2
    places += np.array([-1, -1, 1, 1])[:, None, None] * 0.1 / np.array(ratios)
    source = make_source(**{"name" if key == "source" else key: value for key, value in location.items()})
    problems = {str(number): "no body was found" for number in range(unknown)}
    seen = SourcePlaces(source, ["a", "b"], places, np.ones(3), np.full(3, mm), problems)
    return Candidate(location, seen, np.full(3, 20.0))


VOXEL = candidate({"source": "voxel"}, (4, 2, 1.2))
CASES = [CasePoints("one", Frame.from_affine((40, 50, 100), np.diag([2.0, 2.0, 2.0, 1.0]), "RAS"), {})]


def planned(*patch: int) -> dict[str, Any]:
    return {
        "patch_size": list(patch),
        "spacing": [2.0] * len(patch),
        "median_image_size_in_voxels": [40, 50, 100][-len(patch) :],
    }


def test_what_the_axes_tell_is_counted_in_bits_of_the_cases_that_have_a_location() -> None:
    assert VOXEL.bits == pytest.approx(0.5 * np.log2(17 * 5 * 2.44))
    half = candidate({"source": "voxel"}, (4, 2, 0.9), unknown=2)
    assert half.axes == ("R", "A")
    assert half.bits == pytest.approx(0.25 * np.log2(17 * 5))


@pytest.mark.parametrize(
    ("ratios", "unknown", "source"),
    [
        ((4.2, 2, 1.2), 0, "voxel"),
        ((8, 4, 1.2), 0, "body"),
        ((8, 4, 1.2), 3, "voxel"),
        ((0.9, 0.9, 0.9), 0, "voxel"),
    ],
)
def test_the_simpler_source_is_taken_where_it_tells_about_as_much(
    ratios: tuple[float, ...], unknown: int, source: str
) -> None:
    best = recommend([VOXEL, candidate({"source": "body"}, ratios, unknown)])
    assert best is not None
    assert best.location["source"] == source


def test_axes_that_mislead_are_left_out_of_the_plans() -> None:
    assert location_key(VOXEL) == {"source": "voxel", "jitter": "auto"}
    misled = candidate({"source": "scanner", "absolute": True}, (4, 0.7, 0.7))
    assert location_key(misled) == {"source": "scanner", "absolute": True, "axes": ["R"], "jitter": "auto"}
    text = " ".join(report_recommendation([misled], CASES, planned(8, 8, 8)))
    assert "recommended: scanner, absolute, axes R, jitter auto" in text
    assert "A, S are left out" in text
    assert "help along R." in text


def test_an_axis_along_which_all_classes_lie_at_one_place_tells_them_from_what_is_none() -> None:
    """On the phantom of twin organs all organs lie at one depth, and what looks alike at another."""
    places = np.random.default_rng(0).normal(0, 0.01, (8, 2, 3))
    places[:, 1, 0] += 0.5
    seen = SourcePlaces(make_source("voxel"), ["a", "b"], places, np.ones(3), np.full(3, 100.0), {})
    assert (seen.spread.ratio[1:] < 1).all()
    assert Candidate({"source": "voxel"}, seen, np.full(3, 30.0)).axes == ("R", "A", "S")
    assert Candidate({"source": "voxel"}, seen, np.array([30.0, 1.0, 30.0])).axes == ("R", "S")


def test_no_source_is_recommended_where_none_tells_classes_apart() -> None:
    useless = [candidate({"source": "voxel"}, (0.9, 0.5, 0.7))]
    assert recommend(useless) is None
    assert recommend([]) is None
    assert "train plain nnU-Net" in " ".join(report_recommendation(useless, CASES, planned(8, 8, 8)))


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        # the guess along R is 64 mm over the root of 12, 18 mm; the scatter 100 / 40 = 2.5
        (
            (8, 8, 8),
            ["sees 20% (R), 16% (A), 8% (S)", "known to 18.5 (R), 24.2 (A), 53.1 (S) mm", "along R, A, S."],
        ),
        ((36, 8, 8), ["90% (R)", "along A, S."]),  # 2.3 mm: the patch sees where it is
        ((40, 50, 100), ["100% (R), 100% (A), 100% (S)", "cannot be expected to help at this patch"]),
        ((8, 8), ["sees 2% (R), 16% (A), 8% (S)"]),  # 2D: a slice of the first axis
    ],
)
def test_location_helps_where_the_patch_does_not_know_its_place(
    patch: tuple[int, ...], words: list[str]
) -> None:
    text = " ".join(report_recommendation([VOXEL], CASES, planned(*patch)))
    for word in words:
        assert word in text


def test_the_table_has_a_line_a_source_and_says_what_is_not_known() -> None:
    body = candidate({"source": "body"}, (np.inf, 2, 1), unknown=1)
    lines = list(report_sources([VOXEL, body]))
    assert lines[2].split() == ["voxel", "4", "of", "4", "2.5", "5", "8.33", "4", "2", "1.2", "3.8"]
    assert "3 of 4" in lines[3]
    sentences = list(report_recommendation([VOXEL, body], CASES, planned(8, 8, 8)))
    assert "body: unknown in 1 cases: no body was found" in sentences
    assert "anatomical: not compared; measure it with `locctx fit ape`." in sentences


def test_a_smaller_patch_is_proposed_where_the_planned_one_sees_where_it_is() -> None:
    body = candidate({"source": "body"}, (4, 2, 1.2))
    assert _options_of_plan(body, "2d", True) == "--name 2d_body --source body --jitter auto"
    misled = candidate({"source": "scanner", "absolute": True}, (4, 0.7, 0.7))
    options = _options_of_plan(misled, "3d_fullres", False)
    assert options == f"--preset {SMALLER} --source scanner --absolute --axes R --jitter auto"
    assert SMALLER in list_presets()
