"""Several seeds: each case counts with its mean over them, and what they say alone is told."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from nnunet_locctx.report.browser import build_browser
from nnunet_locctx.report.cases import read_cases
from nnunet_locctx.report.document import percent
from nnunet_locctx.report.figures import draw_training
from nnunet_locctx.report.results import read_results
from nnunet_locctx.report.sections import write_report
from nnunet_locctx.report.statistics import class_gains, compare, mean_of_classes, swap_rates, with_base
from nnunet_locctx.report.tables import comparison_table, location_table, training_table
from nnunet_locctx.report.verdict import next_steps, verdict
from tests.report.synthetic_study import Synthetic, edit_json, robustness, write_json

SMALL = "locbam_lowres_small"
SEEDS = (0, 1, 4)
ONE = Synthetic(
    {"Baseline": (0,), "LocBAM": (0.05,)}, presets=(SMALL,), folds=1, cases_per_fold=8, seeds=SEEDS
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return ONE.write(tmp_path)


def evaluation(work: Path, method: str, seed: int) -> Path:
    run = f"{method}__{SMALL}" + (f"__seed{seed}" if seed else "")
    return work / "runs" / run / "fold_0" / "evaluation" / "evaluation.json"


def raw(work: Path, method: str) -> pd.DataFrame:
    """Dice as the evaluations have it: a row per seed and case, a column per class."""
    files = {seed: json.loads(evaluation(work, method, seed).read_text())["cases"] for seed in SEEDS}
    rows = pd.concat({seed: pd.DataFrame(rows) for seed, rows in files.items()}, names=["seed"])
    return rows.reset_index("seed").pivot(index=["seed", "case"], columns="class", values="dice")


def test_a_case_counts_once_with_its_mean(work: Path) -> None:
    study = read_results(work)
    assert list(study.runs.index) == [f"Baseline__{SMALL}", f"LocBAM__{SMALL}"]
    rows = compare(study).set_index("method")
    mine, theirs = (raw(work, method) for method in ("LocBAM", "Baseline"))
    mean, base = (table.groupby("case").mean() for table in (mine, theirs))
    own = rows.loc["LocBAM"]
    assert own["pairs"] == own["cases"] == 8
    assert own["dice"] == pytest.approx(mean.mean().mean())
    assert own["p"] == pytest.approx(wilcoxon(mean.mean(axis=1) - base.mean(axis=1)).pvalue)
    alone = mine.groupby("seed").mean().mean(axis=1)
    gains = alone - theirs.groupby("seed").mean().mean(axis=1)
    assert (own["dice_seed_low"], own["dice_seed_high"]) == pytest.approx((alone.min(), alone.max()))
    assert (own["gain_seed_low"], own["gain_seed_high"]) == pytest.approx((gains.min(), gains.max()))
    assert alone.min() < own["dice"] < alone.max()
    shown = comparison_table(study, compare(study), "comparison", "cases").shown.set_index("method")
    assert shown.loc["LocBAM", "seeds"] == "3"
    ends = f"{percent(alone.min())} to {percent(alone.max())}"
    assert shown.loc["LocBAM", "min to max of the seeds, %"] == ends


def test_the_verdict_says_whether_the_seeds_agree(work: Path) -> None:
    study = read_results(work)
    rows = compare(study)
    (sentence,) = verdict(study, rows)
    assert "; all 3 seeds agree" in sentence
    assert not any("Another seed" in step for step in next_steps(study, rows))
    # one seed's trainings turn the other way round
    files = [evaluation(work, method, 4) for method in ("LocBAM", "Baseline")]
    texts = [file.read_text() for file in files]
    for file, text in zip(files, reversed(texts), strict=True):
        file.write_text(text)
    study = read_results(work)
    (sentence,) = verdict(study, compare(study))
    assert "; 2 of 3 seeds agree" in sentence


def test_what_is_not_defined_in_one_seed_is_the_mean_of_the_others(work: Path) -> None:
    file = evaluation(work, "LocBAM", 1)
    rows = json.loads(file.read_text())["cases"]
    rows[0] |= {"dice": None, "hd95_mm": None}
    edit_json(file, cases=rows)
    study = read_results(work)
    scores = study.scores_of(f"LocBAM__{SMALL}").set_index(["case", "class"])
    values = raw(work, "LocBAM").xs(rows[0]["case"], level="case")[rows[0]["class"]]
    assert scores.loc[(rows[0]["case"], rows[0]["class"]), "dice"] == pytest.approx(
        values.astype(float).mean()
    )
    assert values.isna().sum() == 1


def test_seeds_in_the_files_and_what_is_missing(work: Path, tmp_path: Path) -> None:
    evaluation(work, "LocBAM", 1).unlink()
    page = write_report(work, tmp_path / "report").read_text()
    cases = pd.read_csv(tmp_path / "report" / "cases.csv")
    assert list(cases.columns[:3]) == ["preset", "method", "seed"]
    assert cases.groupby("method")["seed"].unique().map(list).to_dict() == {
        "Baseline": [0, 1, 4],
        "LocBAM": [0, 4],
    }
    assert list(pd.read_csv(tmp_path / "report" / "training.csv")["seed"]) == [*SEEDS, *SEEDS]
    missing = pd.read_csv(tmp_path / "report" / "missing.csv")
    assert list(missing["run"]) == [f"LocBAM__{SMALL}__seed1"]
    for text in ("3 seeds", "seeds are not cases", "seeds: 0, 1, 4", "fold 0, mean of 3 seeds"):
        assert text in page, text


def test_method_and_baseline_are_compared_over_the_seeds_that_both_have(work: Path) -> None:
    """The baseline of a seed that the method lacks is another training, which the method cannot be compared with."""
    mine, theirs = (raw(work, method) for method in ("LocBAM", "Baseline"))
    evaluation(work, "LocBAM", 1).unlink()
    file = evaluation(work, "Baseline", 1)
    worse = [
        {**row, "dice": row["dice"] / 4, "swap_rate": 0.9} for row in json.loads(file.read_text())["cases"]
    ]
    edit_json(file, cases=worse)
    study = read_results(work)
    rows = compare(study)
    own = rows.set_index("method").loc["LocBAM"]
    means = [table.drop(index=1).groupby("case").mean().mean() for table in (mine, theirs)]
    assert (own["gain_seeds"], own["seeds"]) == (2, 2)
    assert own["dice_base"] == pytest.approx(means[1].mean())
    assert own["gain"] == pytest.approx(means[0].mean() - means[1].mean())
    gains = class_gains(with_base(study, rows)).set_index("class")["gain"]
    pd.testing.assert_series_equal(gains, (means[0] - means[1])[gains.index], check_names=False)
    kept = study.seed_scores[study.seed_scores["seed"] != 1]
    rate = mean_of_classes(kept, ["run"])["swap_rate"][f"Baseline__{SMALL}"]
    assert swap_rates(study, rows)["base"].dropna().item() == pytest.approx(rate)
    table = comparison_table(study, rows, "comparison", "cases")
    note = "Gain and test over the seeds that method and baseline both have: LocBAM at locbam_lowres_small (2 of 3)."
    assert table.notes == [note]
    # of no common seed, nothing can be said
    for seed in (0, 4):
        evaluation(work, "Baseline", seed).unlink()
    rows = compare(read_results(work))
    assert rows["base"].isna().all()
    assert rows["gain"].isna().all()


def test_trainings_of_each_seed(work: Path) -> None:
    study = read_results(work)
    table = training_table(study)
    assert table is not None
    assert [tuple(row[1:4]) for row in table.rows] == [
        (method, str(seed), "1") for method in ("Baseline", "LocBAM") for seed in SEEDS
    ]
    (figure,) = draw_training(study)
    assert "the folds (up to 1 fold of each of 3 seeds)" in figure.caption


def test_a_wrong_location_is_the_mean_of_the_seeds(work: Path) -> None:
    for seed, fall in zip(SEEDS, (0.1, 0.2, 0.6), strict=True):
        file = evaluation(work, "LocBAM", seed).parents[2] / "robustness" / "robustness.json"
        write_json(file, robustness("LocBAM", ["case_000"], fall))
    points = read_results(work).robustness.set_index(["kind", "percent"])
    assert points.loc[("shift", 100.0), "dice"] == pytest.approx(0.85 - 0.3)
    assert len(points) == 10


def test_an_unknown_location_has_a_column_of_its_own(work: Path) -> None:
    content = robustness("LocBAM", ["case_000"], 0.2)
    unknown = [
        {**point, "kind": "unknown", "dice": 0.4}
        for point in content["points"]
        if point["percent"] in (5, 25)
    ]
    file = evaluation(work, "LocBAM", 0).parents[2] / "robustness" / "robustness.json"
    write_json(file, {**content, "points": [*content["points"], *unknown]})
    table = location_table(read_results(work))
    assert table is not None
    assert table.columns[5:] == ["0 %", "1 %", "5 %", "25 %", "100 %", "unknown"]
    cells = {row[2]: row[5:] for row in table.rows}
    assert cells["unknown"] == ["\N{EN DASH}"] * 5 + ["40.0"]
    assert cells["shift"][-1] == "\N{EN DASH}"


def test_pictures_are_of_the_first_seed(tmp_path: Path) -> None:
    one = Synthetic(
        {"Baseline": (0,), "LocBAM": (0.05,)},
        presets=(SMALL,),
        folds=1,
        cases_per_fold=2,
        seeds=(3, 0),
        images=True,
    )
    study = read_results(one.write(tmp_path))
    cases = read_cases(study, compare(study), SMALL)
    assert cases is not None
    first = study.seed_scores[(study.seed_scores["seed"] == 3) & (study.seed_scores["method"] == "LocBAM")]
    expected = first.groupby("case")["dice"].mean()
    assert np.allclose(cases.dice["LocBAM"].droplevel("fold"), expected)
    browser = build_browser(study, [cases])
    assert browser is not None
    for caption in (browser.caption, browser.figures[0].caption):
        assert "Predictions and Dice are those of seed 3, the first of 2." in caption
