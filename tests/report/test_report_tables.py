"""Loading a study and its tables, on studies whose numbers are known."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from nnunet_locctx.report.document import MINUS, NOTHING, number
from nnunet_locctx.report.results import VALIDATION, read_results
from nnunet_locctx.report.sections import build_document
from nnunet_locctx.report.statistics import compare
from nnunet_locctx.report.tables import (
    class_table,
    comparison_table,
    error_table,
    overview,
    postprocessing_table,
    training_table,
)
from tests.report.synthetic_study import Synthetic, edit_json, evaluation_file, write_json

SMALL = "locbam_lowres_small"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Synthetic().write(tmp_path_factory.mktemp("complete"))


def rows_of(work: Path, method: str, folds: int = 2) -> pd.DataFrame:
    """The case rows of a run, read apart from the report's code."""
    files = [evaluation_file(work, method, SMALL, fold) for fold in range(folds)]
    return pd.DataFrame([row for file in files for row in json.loads(file.read_text())["cases"]])


def test_means_gain_and_test_are_those_computed_by_hand(work: Path) -> None:
    study = read_results(work)
    comparisons = {(row.method, row.preset): row for row in compare(study).itertuples()}
    base, located = (rows_of(work, method) for method in ("Baseline", "LocBAM"))
    row = comparisons["LocBAM", SMALL]
    mean, gain = located["dice"].mean(), located["dice"].mean() - base["dice"].mean()
    assert row.cases == row.pairs == 12
    assert row.dice == pytest.approx(float(mean))
    assert row.gain == pytest.approx(float(gain))
    assert row.gain == pytest.approx(0.05, abs=0.01)  # what the study was made with
    assert row.gain_relative == pytest.approx(float(gain / (mean - gain)))
    by_case = [table.groupby("case")["dice"].mean() for table in (located, base)]
    expected = stats.wilcoxon(by_case[0] - by_case[1]).pvalue
    assert row.p == pytest.approx(float(expected))
    # all 12 differences have one sign in three comparisons, p = 2 / 2**12; Holm: four comparisons
    assert row.p_holm == pytest.approx(4 * 2 / 2**12)
    assert math.isnan(comparisons["Baseline", SMALL].p)


def test_results_of_other_settings_are_missing(tmp_path: Path) -> None:
    work = Synthetic(presets=(SMALL,)).write(tmp_path)
    file = evaluation_file(work, "LocBAM", SMALL, 1)
    output = str(file.relative_to(work))
    edit_json(work / "study.json", made={output: "today's"})
    (work / f"{output}.made").write_text("today's")
    assert read_results(work).missing.empty
    (work / f"{output}.made").write_text("of another tolerance")
    study = read_results(work)
    assert list(study.missing["run"]) == [f"LocBAM__{SMALL}"]
    assert "it is of other settings or data than the study has now" in study.missing["why"][0]
    assert set(study.scores_of(f"LocBAM__{SMALL}")["fold"]) == {0}


def test_gain_interval_and_test_are_of_the_same_cases(tmp_path: Path) -> None:
    work = Synthetic(classes=("liver",), presets=(SMALL,)).write(tmp_path)
    plain = compare(read_results(work)).set_index("method").loc["LocBAM"]
    # three cases lack the class; only the baseline predicts it there
    for method, dice in (("Baseline", 0.0), ("LocBAM", None)):
        file = evaluation_file(work, method, SMALL, 0)
        rows = json.loads(file.read_text())["cases"]
        edit_json(file, cases=[{**row, "dice": dice} if at < 3 else row for at, row in enumerate(rows)])
    study = read_results(work)
    compared = compare(study)
    row = compared.set_index("method").loc["LocBAM"]
    base, located = (
        rows_of(work, method)["dice"].iloc[3:].astype(float) for method in ("Baseline", "LocBAM")
    )
    assert (row.cases, row.pairs, row.better + row.worse) == (9, 9, 9)
    assert row.gain == pytest.approx((located - base).mean())
    assert row.gain_low < row.gain < row.gain_high
    assert row.gain == pytest.approx(plain.gain, abs=0.02)
    records = class_table(study, compared, SMALL, "key", "").records.set_index(["method", "class"])
    assert records.loc[("LocBAM", "liver"), "gain"] == pytest.approx(row.gain)


def test_a_method_with_a_baseline_of_its_own_is_compared_with_that(tmp_path: Path) -> None:
    work = Synthetic().write(tmp_path)
    methods = json.loads((work / "study.json").read_text())["methods"]
    own = [{**one, **({"against": "CoordConv"} if one["name"] == "LocBAM" else {})} for one in methods]
    edit_json(work / "study.json", methods=own)
    study = read_results(work)
    compared = compare(study)
    rows = compared[compared["preset"] == SMALL].set_index("method")
    dice, gain = rows["dice"], rows["gain"]
    assert gain["LocBAM"] == pytest.approx(dice["LocBAM"] - dice["CoordConv"])
    assert gain["CoordConv"] == pytest.approx(dice["CoordConv"] - dice["Baseline"])
    assert study.baselines == "Baseline (LocBAM over CoordConv)"
    table = class_table(study, compared, SMALL, "classes", "all")
    assert "over Baseline (LocBAM over CoordConv)" in table.caption
    liver = table.records[table.records["class"] == "liver"].set_index("method")
    gain = liver["dice"]["LocBAM"] - liver["dice"]["CoordConv"]
    assert liver["gain"]["LocBAM"] == pytest.approx(gain)


def test_comparison_table_shows_and_stores_them(work: Path) -> None:
    study = read_results(work)
    rows = compare(study)
    table = comparison_table(study, rows, "comparison", "all")
    methods = ("Baseline", "CoordConv", "LocBAM")
    assert [line[:3] for line in table.rows][:3] == [[SMALL, method, "12"] for method in methods]
    assert "4 comparisons" in table.caption
    stored = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert float(stored[2]["dice"]) == pytest.approx(rows["dice"][2], rel=1e-5)
    assert stored[0]["gain"] == ""
    assert table.rows[0][5] == NOTHING
    assert table.rows[2][3] == f"{100 * rows['dice'][2]:.2f}"
    assert overview(study, rows, "overview", "all").rows[2][1].endswith("*)")


def test_a_gain_below_zero_has_a_real_minus() -> None:
    assert number(-0.956, 2, sign=True) == f"{MINUS}0.96"
    assert number(-0.001, 2, sign=True) == "0.00"
    assert number(math.nan) == NOTHING


def test_class_table_gives_each_class_its_mean(work: Path) -> None:
    study = read_results(work)
    table = class_table(study, compare(study), SMALL, "classes", "all")
    liver, base = (
        rows_of(work, name).groupby("class")["dice"].mean()["liver"] for name in ("LocBAM", "Baseline")
    )
    assert table.shown["liver"][2] == f"{100 * liver:.1f} (+{100 * (liver - base):.1f})"


def test_a_class_that_a_run_lacks_is_a_dash(tmp_path: Path) -> None:
    work = Synthetic(presets=(SMALL,), folds=1).write(tmp_path)
    file = evaluation_file(work, "LocBAM", SMALL)
    content = json.loads(file.read_text())
    del content["classes"]["liver"]
    write_json(file, {**content, "cases": [row for row in content["cases"] if row["class"] != "liver"]})
    study = read_results(work)
    table = class_table(study, compare(study), SMALL, "classes", "all")
    assert table.columns[-1] == "liver"
    assert [row[-1] == NOTHING for row in table.rows] == [False, False, True]
    # the others' gain is over the classes that both have
    assert compare(study)["gain"][2] == pytest.approx(0.05, abs=0.01)


def test_a_missing_value_is_left_out_of_its_class(tmp_path: Path) -> None:
    work = Synthetic(gains={"Baseline": (0,)}, presets=(SMALL,), folds=1, cases_per_fold=2).write(tmp_path)
    dice = {("a", "spleen"): 0.4, ("b", "spleen"): 0.6, ("a", "liver"): None, ("b", "liver"): 0.9}
    dice[("c", "liver")] = 0.7
    rows = [{"case": case, "class": name, "dice": value} for (case, name), value in dice.items()]
    edit_json(evaluation_file(work, "Baseline", SMALL), classes={"spleen": 1, "liver": 2}, cases=rows)
    study = read_results(work)
    # class means 0.5 and 0.8, by hand
    assert compare(study)["dice"].to_list() == pytest.approx([0.65])
    table = class_table(study, compare(study), SMALL, "classes", "all")
    assert table.rows == [["Baseline", "65.0", "50.0", "80.0"]]
    assert table.to_csv().splitlines()[1:] == [
        f"{SMALL},Baseline,spleen,2,0.5,",
        f"{SMALL},Baseline,liver,2,0.8,",
    ]


def test_lost_distances_are_counted_not_hidden(tmp_path: Path) -> None:
    work = Synthetic(gains={"Baseline": (0,)}, presets=(SMALL,), folds=1).write(tmp_path)
    file = evaluation_file(work, "Baseline", SMALL)
    content = json.loads(file.read_text())
    content["cases"][0].update(dice=0.0, hd95_mm=None)  # not predicted
    content["cases"][1].update(reference_ml=0.0, dice=None, hd95_mm=None)  # not in the case
    write_json(file, content)
    study = read_results(work)
    table = error_table(study, compare(study), "errors", "all")
    assert table.rows[0][3] == "1 of 29"
    assert "paper Dice, %" not in table.columns


def test_missing_runs_folds_and_broken_files_are_named(tmp_path: Path) -> None:
    work = Synthetic().write(tmp_path)
    lost = work / "runs" / f"LocBAM__{SMALL}" / "fold_1"
    (lost / "evaluation" / "evaluation.json").unlink()
    (lost / "training.json").write_text("{")
    (lost.parent / "fold_0" / "training.json").write_text("{}")
    failure = {"job": "train x", "run": f"LocBAM__{SMALL}", "fold": 1, "exit_status": 137}
    write_json(work / "failures" / "train.json", {**failure, "log": "logs/x", "message": "killed"})
    study = read_results(work)
    assert list(study.missing[["what", "fold"]].itertuples(index=False, name=None)) == [
        ("training", "0"),
        ("training", "1"),
        ("evaluation of the validation cases", "1"),
    ]
    assert "cannot be used" in study.missing["why"][0]
    rows = compare(study).set_index("run").loc[f"LocBAM__{SMALL}"]
    assert (rows["cases"], rows["pairs"]) == (6, 6)
    # compared on the six cases that both have
    base, located = (rows_of(work, method, folds=1)["dice"] for method in ("Baseline", "LocBAM"))
    assert rows["gain"] == pytest.approx(located.mean() - base.mean())
    failed = study.failures.iloc[0]
    assert (failed.job, failed.fold, failed.exit_status, failed.message) == ("train x", "1", "137", "killed")


def test_cases_that_only_the_method_has_are_left_out_of_the_gain(tmp_path: Path) -> None:
    work = Synthetic().write(tmp_path)
    evaluation_file(work, "Baseline", SMALL, 1).unlink()
    study = read_results(work)
    rows = compare(study)
    table = comparison_table(study, rows, "comparison", "all")
    named = [f"{method} at {SMALL} (6 of 12)" for method in ("CoordConv", "LocBAM")]
    assert table.notes == [f"Gain and test over the cases that the baseline has too: {', '.join(named)}."]


def test_postprocessed_cases_are_paired_by_fold(tmp_path: Path) -> None:
    work = Synthetic(presets=(SMALL,)).write(tmp_path)
    rows = rows_of(work, "Baseline")
    rows = rows.assign(dice=(rows["dice"] + 0.01).clip(upper=1)).astype(object).where(rows.notna(), None)
    source, run = evaluation_file(work, "Baseline", SMALL), f"Baseline__{SMALL}"
    file = work / "runs" / run / "postprocessing" / "largest_component" / "evaluation" / "evaluation.json"
    write_json(file, {**json.loads(source.read_text()), "cases": rows.to_dict("records")})
    study = read_results(work)
    before, after = (
        study.scores_of(run, part)[["fold", "case"]] for part in (VALIDATION, "largest_component")
    )
    assert before.to_numpy().tolist() == after.to_numpy().tolist()
    table = postprocessing_table(study)
    assert table is not None
    before, after = (float(cell) for cell in table.rows[0][3:5])
    assert after - before == pytest.approx(1.0, abs=0.011)


def test_training_table_averages_the_folds(work: Path) -> None:
    table = training_table(read_results(work))
    assert table is not None
    assert table.rows[0][2:7] == ["2", "12", "31.000", "12.0 min", "1234"]


def test_trainings_recorded_before_the_memory_was(work: Path) -> None:
    for file in work.rglob("training.json"):
        content = json.loads(file.read_text())
        del content["peak_memory"]
        file.write_text(json.dumps(content))
    table = training_table(read_results(work))
    assert table is not None
    assert table.rows[0][6] == NOTHING


@pytest.mark.parametrize(
    "one",
    [
        Synthetic(gains={"Baseline": (0, 0)}, folds=1),
        Synthetic(folds=1, presets=(SMALL,), cases_per_fold=2),
        Synthetic(classes=("liver",), pairs=()),
    ],
    ids=["one method", "two cases", "one class"],
)
def test_small_studies_have_a_report(tmp_path: Path, one: Synthetic) -> None:
    document = build_document(read_results(one.write(tmp_path)))
    keys = [section.key for section in document.sections]
    assert {"verdict", "validation", "training", "fairness", "settings", "computed", "repeat"} <= set(keys)
    for table in document.tables():
        assert all(len(row) == len(table.columns) for row in table.rows), table.key


def test_a_study_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    work = Synthetic().write(tmp_path)
    for file in (work / "runs").rglob("*.json"):
        file.unlink()
    document = build_document(read_results(work))
    (missing,) = [table for table in document.tables() if table.key == "missing"]
    assert len(missing.rows) == 6 * 2 * 2  # runs, folds, training and evaluation


def test_only_what_was_asked_for_is_missing(tmp_path: Path) -> None:
    one = Synthetic(presets=(SMALL,), folds=1)
    work = one.write(tmp_path)
    assert read_results(work).missing.empty
    (tmp_path / "raw" / one.dataset / "labelsTs").mkdir(parents=True)
    asked = {"postprocessing": ["atlas"], "robustness": {"presets": [SMALL]}, "test_cases": ["t"]}
    edit_json(work / "study.json", **asked)
    missing = [(entry.run.split("__")[0], entry.what) for entry in read_results(work).missing.itertuples()]
    each = ["evaluation of the test cases", "evaluation after atlas"]
    # the baseline has no location to shift
    expected = [("Baseline", what) for what in each]
    expected += [(method, what) for method in ("CoordConv", "LocBAM") for what in (*each, "robustness")]
    assert missing == expected


def test_values_that_are_all_null(tmp_path: Path) -> None:
    work = Synthetic(presets=(SMALL,)).write(tmp_path)
    for file in (work / "runs" / f"LocBAM__{SMALL}").rglob("evaluation.json"):
        content = json.loads(file.read_text())
        rows = [{"case": row["case"], "class": row["class"], "dice": None} for row in content["cases"]]
        write_json(file, {**content, "cases": rows})
    document = build_document(read_results(work))
    (table,) = [table for table in document.tables() if table.key == "comparison"]
    assert table.rows[2][3:] == [NOTHING, "n = 0", NOTHING, NOTHING, NOTHING, "not tested: n = 0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda study: {**study, "baseline": "X"}, "baselines of .* must be among .*, got 'X'"),
        (lambda study: {key: value for key, value in study.items() if key != "runs"}, "lacks runs"),
        (lambda study: None, "no study's work folder"),
    ],
    ids=["baseline", "runs", "none"],
)
def test_unusable_studies_are_refused(tmp_path: Path, change: Callable[..., object], message: str) -> None:
    file = Synthetic(presets=(SMALL,)).write(tmp_path) / "study.json"
    content = change(json.loads(file.read_text()))
    file.unlink()
    if content is not None:
        write_json(file, content)
    with pytest.raises(ValueError, match=message):
        read_results(file.parent)
