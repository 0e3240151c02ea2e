"""What is said of each comparison, and what to do next, on differences that are set by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from nnunet_locctx.report.results import read_results
from nnunet_locctx.report.statistics import compare
from nnunet_locctx.report.tables import error_table, postprocessing_table
from nnunet_locctx.report.verdict import fewer, next_steps, verdict
from tests.report.synthetic_study import Synthetic, edit_json, evaluation_file, write_json

SMALL = "locbam_lowres_small"


def study_of(
    folder: Path, gains: Sequence[float], base: float = 0.5, swaps: tuple[float, float] = (0.04, 0.001)
) -> Path:
    """A work folder where LocBAM's Dice is the baseline's and one of the gains in each case."""
    one = Synthetic(
        gains={"Baseline": (0,), "LocBAM": (0,)}, presets=(SMALL,), folds=1, cases_per_fold=len(gains)
    )
    work = one.write(folder)
    for method, added, swapped in (("Baseline", [0.0] * len(gains), swaps[0]), ("LocBAM", gains, swaps[1])):
        file = evaluation_file(work, method, SMALL)
        content = json.loads(file.read_text())
        for row in content["cases"]:
            row["dice"] = base + added[one.case_names(0).index(row["case"])]
            row["swap_rate"] = None if row["swap_rate"] is None else swapped
        write_json(file, content)
    return work


def sentence_of(work: Path) -> str:
    study = read_results(work)
    (sentence,) = verdict(study, compare(study))
    return sentence


FEW = "with {} cases no test can reach 0.05"


@pytest.mark.parametrize(
    ("gains", "effect", "numbers", "chance"),
    [
        ([0.05] * 5, "helps in all 5 cases, by 5.0", "55.0%, 10.0% more", FEW.format(5)),
        (
            [0.05] * 7,
            "helps in all 7 cases, by 5.0",
            "55.0%, 10.0% more",
            "chance hardly explains it (p = 0.016)",
        ),
        ([-0.02, -0.04, -0.01, 0.01], "worse in 3 of 4 cases, by 1.5", "48.5%, 3.0% less", FEW.format(4)),
        (
            [0.01] * 5 + [-0.4, -0.3],
            "helps in 5 of 7 cases, but the mean falls by 9.3",
            "40.7%, 18.6% less",
            "chance may be the reason (p = 1.000)",
        ),
        ([0.02, -0.01], "helps in 1 of 2 cases and is worse in 1, by 0.5", "50.5%, 1.0% more", FEW.format(2)),
    ],
    ids=["too few", "all", "worse", "mean against count", "half"],
)
def test_a_sentence_says_in_how_many_cases_by_how_much_and_what_chance_can_do(
    tmp_path: Path, gains: list[float], effect: str, numbers: str, chance: str
) -> None:
    swaps = "swapped sides: 0.10% of the voxels instead of 4.00% (40.0 times fewer)."
    expected = (
        f"LocBAM against Baseline: {effect} points of Dice (from 50.0% to {numbers}); {chance}; {swaps}"
    )
    assert sentence_of(study_of(tmp_path, gains)) == expected


def test_equal_methods_do_not_differ(tmp_path: Path) -> None:
    work = study_of(tmp_path, [0.0] * 6, swaps=(0.0, 0.0))
    assert sentence_of(work) == "LocBAM against Baseline: no difference in 6 cases."


def test_gains_over_a_baseline_that_knows_little_are_in_points_alone(tmp_path: Path) -> None:
    work = study_of(tmp_path, [0.5] * 7, base=0.19)
    assert "(from 19.0% to 69.0%); chance" in sentence_of(work)
    study = read_results(work)
    rows = compare(study)
    assert rows["gain_relative"].isna().all()
    assert any(
        "Train longer: at" in step and "reaches 19.0% Dice" in step for step in next_steps(study, rows)
    )


def test_many_comparisons_need_more_cases_for_a_test_to_reach_anything(tmp_path: Path) -> None:
    """Seven cases are enough for one comparison (2 / 2**7 = 0.016), and not for the first of four."""
    gains = {"Baseline": (0, 0), "CoordConv": (0.2, 0.2), "LocBAM": (0.2, 0.2)}
    work = Synthetic(gains=gains, folds=1, cases_per_fold=7).write(tmp_path)
    study = read_results(work)
    rows = compare(study)
    sentences = verdict(study, rows)
    assert len(sentences) == 4
    assert all(
        "helps in all 7 cases" in one and "7 cases and 4 comparisons no test can" in one for one in sentences
    )
    assert rows["p_least"][1] == pytest.approx(4 * 2 / 2**7)
    # 4 * 2 / 2**8 = 0.03
    assert any(
        "a test needs 8 cases" in step and "folds 1, 2, 3, 4" in step for step in next_steps(study, rows)
    )


def test_next_steps_follow_from_what_is_missing(tmp_path: Path) -> None:
    work = study_of(tmp_path, [-0.05] * 7)
    study = read_results(work)
    beginnings = [step.split(":")[0] for step in next_steps(study, compare(study))]
    assert beginnings == ["Another seed", "Another source", "No mirroring", "Repaired sides"]
    content = json.loads((work / "study.json").read_text())
    content["methods"].append({"name": "Still", "trainer": "nnUNetTrainerNoMirroring", "source": None})
    write_json(work / "study.json", {**content, "postprocessing": ["sides"]})
    for method in ("Baseline", "LocBAM"):
        content = json.loads(evaluation_file(work, method, SMALL).read_text())
        for row in content["cases"]:
            row["swap_rate"] = None if row["swap_rate"] is None else 0.0
        run = work / "runs" / f"{method}__{SMALL}"
        write_json(run / "postprocessing" / "sides" / "evaluation" / "evaluation.json", content)
    study = read_results(work)
    beginnings = [step.split(":")[0] for step in next_steps(study, compare(study))]
    assert beginnings == ["Another seed", "Another source"]
    table = postprocessing_table(study)
    assert table is not None
    assert table.columns[3:] == ["none", "sides repaired", "swaps, %: none", "swaps, %: sides repaired"]
    assert table.rows[0][5:] == ["4.00", "0.00"]


def test_swaps_stand_beside_the_baselines(tmp_path: Path) -> None:
    study = read_results(study_of(tmp_path, [0.05] * 7))
    table = error_table(study, compare(study), "errors", "all")
    place = table.columns.index("swaps, %")
    assert [row[place : place + 2] for row in table.rows] == [
        ["4.00", "\N{EN DASH}"],
        ["0.10", "40.0 times fewer"],
    ]
    assert [fewer(*both) for both in ((0.0, 0.1), (0.2, 0.1), (0.1, 0.1), (0.1, 0.0))] == [
        "none left", "2.0 times more", "as many", "",
    ]  # fmt: skip


def test_a_method_that_lacks_a_fold_says_so(tmp_path: Path) -> None:
    work = Synthetic(gains={"Baseline": (0,), "LocBAM": (0.1,)}, presets=(SMALL,)).write(tmp_path)
    evaluation_file(work, "LocBAM", SMALL, 1).unlink()
    edit_json(work / "study.json", seed=3)
    assert sentence_of(work).startswith("LocBAM against Baseline (1 of 2 folds): helps in all 6 cases")
    study = read_results(work)
    steps = next_steps(study, compare(study))
    assert steps[0].startswith("Finish the study")
    assert any("from seed 3; seeds: [3, 4]" in step for step in steps)
