"""Names against sides: mirrored datasets, mirrored cases, exchanged names."""

from pathlib import Path
from typing import Any

import pytest

from nnunet_locctx.check import check_dataset
from nnunet_locctx.check.report import CaseSummary
from nnunet_locctx.check.sides import side_findings

SHARED = Path("/work/shared/data")
LABELS = {0: "background", 1: "left_kidney", 2: "right_kidney", 3: "left_lung", 4: "right_lung", 5: "spine"}


def case(name: str, sides: dict[int, float], orientation: str = "LPS") -> CaseSummary:
    """A case whose labels lie at these fractions along R."""
    places = {value: (place, 0.0, 0.0) for value, place in sides.items()}
    grid: Any = {"shape": (9, 9, 9), "spacing": (1, 1, 1), "extent": (9, 9, 9)}
    return CaseSummary(
        name=name, split="train", orientation=orientation, oblique=0.0, positions=places, **grid
    )


def cases(*signs: int, exchanged: bool = False, orientation: str = "LPS") -> list[CaseSummary]:
    """A case a sign, -1: left is left; `exchanged`: but for the lungs."""
    lung = -1 if exchanged else 1
    return [
        case(str(n), {1: 0.2 * s, 2: -0.2 * s, 3: lung * 0.3 * s, 4: -lung * 0.3 * s, 5: 0.0}, orientation)
        for n, s in enumerate(signs)
    ]


def test_what_lies_where_its_name_says_is_not_mentioned() -> None:
    assert side_findings(cases(-1, -1, -1), LABELS) == []
    assert side_findings(cases(1, 1, orientation="none"), LABELS) == []
    assert side_findings([case("flat", {1: 0.004, 2: 0.0})], LABELS) == []
    assert side_findings([case("one", {1: 0.3}), case("none", {})], LABELS) == []


def test_a_mirrored_dataset_is_one_finding() -> None:
    (finding,) = side_findings(cases(1, 1, 1), LABELS)
    assert (
        finding.message == "left_* lie on the patient's right in 3 of 3 cases: header or names are mirrored"
    )
    assert (finding.severity, finding.kind, finding.case) == ("warning", "sides", None)


@pytest.mark.parametrize(
    ("signs", "count", "odd", "side"), [((-1, -1, 1, -1), 1, "2", "right"), ((1, 1, -1), 2, "2", "left")]
)
def test_a_case_unlike_the_others_is_named(signs: tuple[int, ...], count: int, odd: str, side: str) -> None:
    findings = side_findings(cases(*signs), LABELS)
    assert len(findings) == count
    assert findings[-1].case == odd
    assert f"lie on the patient's {side}, and in most other cases on the" in findings[-1].message


def test_exchanged_names_of_one_pair_are_told_from_a_mirrored_header() -> None:
    labels = {**LABELS, 6: "left_hip", 7: "right_hip"}
    data = [
        case(one.name, {value: place[0] for value, place in one.positions.items()} | {6: -0.1, 7: 0.1})
        for one in cases(-1, -1, exchanged=True)
    ]
    (finding,) = side_findings(data, labels)
    assert (
        "left_lung and right_lung lie on each other's side, unlike other twins, in 2 of 2" in finding.message
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("kidney_left", "kidney_right", "hip_left", "hip_right"), r"\*_left lie"),
        (("tooth_21", "tooth_11", "tooth_38", "tooth_48"), "tooth_21, tooth_38 lie"),
        (("kidney_left", "kidney_right", "l_hip", "r_hip"), "kidney_left, l_hip lie"),
    ],
)
def test_the_classes_are_named_by_what_their_names_share(names: tuple[str, ...], words: str) -> None:
    (finding,) = side_findings(cases(1), {n + 1: name for n, name in enumerate(names)})
    assert words.replace("\\", "") in finding.message


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared scans are not here")
@pytest.mark.parametrize(
    ("dataset", "mirrored"), [("Dataset208_MouseBrainMR", True), ("Dataset209_HeadMR", False)]
)
def test_the_mice_are_mirrored_and_the_heads_are_not(dataset: str, mirrored: bool) -> None:
    report = check_dataset(SHARED / dataset, progress=False)
    messages = [finding.message for finding in report.findings if finding.kind == "sides"]
    count = report.training_cases
    expected = f"left_* lie on the patient's right in {count} of {count} cases: header or names are mirrored"
    assert messages == ([expected] if mirrored else [])
