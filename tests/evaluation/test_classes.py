"""Classes of a dataset and their sides."""

import pytest

from nnunet_locctx.evaluation.classes import Classes, check_pairs, find_pairs


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left kidney", "right kidney"),
        ("L kidney", "R kidney"),
        ("l_kidney", "r_kidney"),
        ("kidney_left", "kidney_right"),
        ("LeftKidney", "RightKidney"),
        ("Kidney (L.)", "kidney R"),
        ("kidney_sin", "kidney_dex"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
    ],
)
def test_sides_are_found_in_names(left: str, right: str) -> None:
    assert find_pairs(["spleen", right, left, "liver"]) == [(left, right)]


@pytest.mark.parametrize(
    "names",
    [
        ["left", "right"],
        ["left kidney", "right lung"],
        ["kidney_left", "left_kidney_right"],
        ["l_kidney", "left_kidney", "r_kidney"],  # which of the two?
        ["LV", "RV"],
        ["area_11", "area_21", "R1", "L1"],
        ["lateral_left", "left_lateral", "bright", "leftover"],
        ["kidney_left", "right_kidney"],
    ],
)
def test_what_is_no_pair(names: list[str]) -> None:
    assert find_pairs(names) == []


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["rib_L1", "rib_R1", "vertebrae_L1"], [("rib_L1", "rib_R1")]),
        (["rib_left_1", "rib_right_1", "rib_left_2"], [("rib_left_1", "rib_right_1")]),
        (
            ["tooth_11", "tooth_21", "tooth_48", "tooth_38"],
            [("tooth_21", "tooth_11"), ("tooth_38", "tooth_48")],
        ),
        (["11", "21", "55", "65"], [("21", "11"), ("65", "55")]),
    ],
)
def test_ribs_and_teeth_are_paired_by_letter_and_number(
    names: list[str], pairs: list[tuple[str, str]]
) -> None:
    assert find_pairs(names) == pairs


def test_all_pairs_of_btcv() -> None:
    names = ["spleen", "R kidney", "L kidney", "liver", "R adrenal", "L adrenal"]
    assert find_pairs(names) == [("L kidney", "R kidney"), ("L adrenal", "R adrenal")]


def test_classes() -> None:
    classes = Classes.from_labels({"background": 0, "whole": [1, 2], "core": [2], "organ": 3, "ignore": 4})
    assert classes.values == {"whole": (1, 2), "core": (2,), "organ": (3,)}
    assert classes.known == {0, 1, 2, 3}
    assert classes.ignore == 4
    assert classes.as_json() == {"whole": [1, 2], "core": [2], "organ": 3}


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0},
        {"0": "background", "1": "liver"},
        {"liver": 0},
        {"liver": []},
        {"a": [0, 1]},
        [1, 2],
    ],
)
def test_labels_that_are_refused(labels: object) -> None:
    with pytest.raises(ValueError, match=r"dataset\.json"):
        Classes.from_labels(labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["a"]], "two different"),
        ([["a", "a"]], "two different"),
        ([["a", "z"]], "unknown class 'z'"),
        ([["a", "b"], ["c", "a"]], "more than one"),
        ([["a", "ab"]], "share labels"),
    ],
)
def test_pairs_that_are_refused(pairs: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pairs(pairs, Classes({"a": 1, "b": 2, "c": 3, "ab": (1, 2)}))
