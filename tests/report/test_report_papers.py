"""The papers' numbers, and which of the study's stand beside them."""

import json
from pathlib import Path

import pytest

from nnunet_locctx.report.papers import METRICS, find_ours, paper_names, paper_table, read_paper, same_dataset
from nnunet_locctx.report.results import read_results
from nnunet_locctx.resources import plans_folder
from tests.report.synthetic_study import Synthetic, edit_json, robustness, write_json

SMALL = "locbam_lowres_small"


@pytest.mark.parametrize("name", paper_names())
def test_every_table_is_complete(name: str) -> None:
    paper = read_paper(name)
    assert {"title", "citation", "metric", "unit", "note", "rows"} <= set(paper)
    assert paper["metric"] in METRICS
    presets = {file.stem for file in plans_folder().glob("*.json")}
    for row in paper["rows"]:
        assert row["preset"] in presets
        assert 0 < row["value"] <= 100
        assert "class" not in row or row["class"] in paper["aliases"]


def test_the_printed_numbers_agree_with_each_other() -> None:
    """Gains and means that the papers print beside their values, from the notes: a slip of the pen would show."""
    values = {(row["method"], row["preset"]): row["value"] for row in read_paper("locbam_table2")["rows"]}
    gains = {"lowres_small": 1.88, "lowres_large": 0.04, "iso_small": 55.25, "iso_large": 0.39}
    for preset, gain in {**gains, "median_small": 37.08, "median_large": 3.35}.items():
        difference = values["LocBAM", f"locbam_{preset}"] - values["Baseline", f"locbam_{preset}"]
        assert difference == pytest.approx(gain, abs=0.006)
    rows = read_paper("gpe_synapse")["rows"]
    means = {row["method"]: row["value"] for row in rows if "class" not in row}
    assert len(means) == 12
    for method, mean in means.items():
        organs = [row["value"] for row in rows if row["method"] == method and "class" in row]
        assert len(organs) == 8
        assert sum(organs) / 8 == pytest.approx(mean, abs=0.09)
    acdc = [row["value"] for row in read_paper("lightmedseg_acdc")["rows"] if "class" in row]
    assert sum(acdc) / 3 == pytest.approx(91.24, abs=0.02)


@pytest.mark.parametrize(
    ("paper", "ours", "same"),
    [
        ("BTCV", "Dataset007_BTCV", True),
        ("AMOS22-CT", "Dataset210_AMOS22", True),
        ("KiTS23", "Dataset220_KiTS2023", False),
        ("BTCV", "Dataset007_Synapse", False),
        ("BTCV", "Dataset007_", False),
    ],
)
def test_data_sets_are_told_apart(paper: str, ours: str, same: bool) -> None:
    assert same_dataset(paper, ours) is same


def with_paper_columns(work: Path, convention: str) -> None:
    """As ``locctx evaluate --paper`` would have it: Dice 0.5 everywhere, 0.9 for the background."""
    for file in (work / "runs").rglob("evaluation.json"):
        content = json.loads(file.read_text())
        rows = [{**row, "paper_dice": 0.5, "paper_hd95_voxels": 3.0} for row in content["cases"]]
        if convention == "locbam":
            cases = dict.fromkeys(row["case"] for row in rows)
            rows += [{"case": case, "class": "background", "dice": None, "paper_dice": 0.9} for case in cases]
        write_json(file, {**content, "cases": rows, "settings": {**content["settings"], "paper": convention}})


def test_ours_is_counted_as_the_paper_counts(tmp_path: Path) -> None:
    work = Synthetic(presets=(SMALL,)).write(tmp_path)
    paper = read_paper("locbam_table2")
    row = next(row for row in paper["rows"] if (row["method"], row["preset"]) == ("LocBAM", SMALL))
    ours = find_ours(read_results(work), paper, row)
    assert "paper: locbam" in ours.why  # not evaluated that way: no value, rather than another measure
    assert ours.dice > 80
    with_paper_columns(work, "locbam")
    assert find_ours(read_results(work), paper, row).value == pytest.approx(100 * (5 * 0.5 + 0.9) / 6)
    with_paper_columns(work, "gpe")
    assert "paper: locbam" in find_ours(read_results(work), paper, row).why


def test_table_shows_both_gains_and_why_a_value_is_not_there(tmp_path: Path) -> None:
    work = Synthetic(presets=(SMALL,)).write(tmp_path)
    with_paper_columns(work, "locbam")
    lines = {tuple(line[1:3]): line for line in paper_table(read_results(work), "locbam_table2").rows}
    cells = lines[SMALL, "LocBAM"][3:]
    assert cells == ["0.26 / 0.26", "93.90", "56.67", "+1.88", "0.00", cells[5], "12"]
    assert lines["locbam_iso_small", "LocBAM"][-1] == "not in the study"
    edit_json(work / "study.json", dataset={"id": 7, "name": "Dataset007_Other", "raw": ""})
    lines = {tuple(line[1:3]): line for line in paper_table(read_results(work), "locbam_table2").rows}
    assert lines[SMALL, "LocBAM"][-1] == "other dataset"


def test_classes_stand_across_and_only_the_papers_count(tmp_path: Path) -> None:
    """Organs the paper does not evaluate are left out of its mean."""
    organs = ("spleen", "right_kidney", "left_kidney", "gallbladder", "liver", "stomach", "aorta")
    organs += ("pancreas", "vena cava")
    one = Synthetic(
        gains={"UNETR++": (0,), "UNETR++ FE": (0.01,)},
        presets=("gpe_synapse",),
        classes=organs,
        pairs=(),
        dataset="Dataset008_Synapse",
    )
    work = one.write(tmp_path)
    with_paper_columns(work, "gpe")
    for file in (work / "runs").rglob("evaluation.json"):
        content = json.loads(file.read_text())
        rows = [
            {**row, "paper_dice": 0.0 if row["class"] == "vena cava" else 0.5} for row in content["cases"]
        ]
        write_json(file, {**content, "cases": rows})
    table = paper_table(read_results(work), "gpe_synapse")
    assert list(table.columns[:5]) == ["dataset", "preset", "method", "mean", "spleen"]
    assert len(table.rows) == 12
    assert table.rows[0][2:5] == ["UNETR++", "87.22 / 50.00", "95.77 / 50.00"]
    assert table.rows[2][2:4] == ["UNETR++ FE", "87.59 / 50.00"]
    assert table.rows[3][-1] == "not in the study"


def test_gains_of_an_ablation_count_from_the_whole_network(tmp_path: Path) -> None:
    one = Synthetic(
        gains={"Baseline": (0,), "LightMedSeg": (0.02,), "LightMedSeg without router": (0.01,)},
        presets=("lightmedseg_brats",),
        classes=("whole tumor", "enhancing tumor", "tumor core"),
        pairs=(),
        dataset="Dataset137_BraTS",
    )
    study = read_results(one.write(tmp_path))
    records = paper_table(study, "lightmedseg_ablation").records.set_index("method").to_dict("index")
    whole, left_out = records["LightMedSeg"], records["LightMedSeg without router"]
    assert left_out["paper_gain"] == pytest.approx(82.27 - 83.43)
    assert left_out["our_gain"] == pytest.approx(left_out["our_value"] - whole["our_value"])
    assert left_out["our_gain"] < 0
    assert records["LightMedSeg 16 anchors"]["why_not"] == "not in the study"


def test_shifts_and_postprocessing_are_found(tmp_path: Path) -> None:
    one = Synthetic(presets=(SMALL,))
    work = one.write(tmp_path)
    run = f"LocBAM__{SMALL}"
    write_json(
        work / "runs" / run / "robustness" / "robustness.json", robustness("LocBAM", one.case_names(0), 0.3)
    )
    table = paper_table(read_results(work), "locbam_section34")
    assert table.rows[0][3:5] == ["> 59.40", "55.00"]
    assert table.rows[1][-1] == "not there yet"
    source = json.loads(
        (work / "runs" / f"Baseline__{SMALL}" / "fold_0/evaluation/evaluation.json").read_text()
    )
    rows = [{**row, "dice": 0.75} for row in source["cases"]]
    folder = work / "runs" / f"Baseline__{SMALL}" / "postprocessing" / "atlas" / "evaluation"
    write_json(folder / "evaluation.json", {**source, "cases": rows})
    table = paper_table(read_results(work), "locbam_section33")
    atlas = next(line for line in table.rows if line[2] == "Baseline, atlas")
    assert (atlas[3], atlas[5], atlas[7]) == ("93.65", "+1.63", "75.00")


def test_a_method_with_several_sources_is_found_by_its_name(tmp_path: Path) -> None:
    work = Synthetic(gains={"Baseline": (0,), "LocBAM (body_part)": (0.02,)}, presets=(SMALL,)).write(
        tmp_path
    )
    paper = read_paper("locbam_table2")
    row = next(row for row in paper["rows"] if (row["method"], row["preset"]) == ("LocBAM", SMALL))
    assert find_ours(read_results(work), paper, row).cases == 12
