"""What the figures are made of; that they can be read was checked by eye."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
import pandas as pd
import pytest

from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.report import figures, style
from nnunet_locctx.report.case_images import MOST_SLICES, _thinned, read_case
from nnunet_locctx.report.cases import PresetCases, choose_cases, draw_overlays, label_colours, read_cases
from nnunet_locctx.report.figures import (
    baseline_dice,
    draw_classes,
    draw_coverage,
    draw_location,
    draw_training,
)
from nnunet_locctx.report.papers import printed_gains
from nnunet_locctx.report.results import Results, read_results
from nnunet_locctx.report.statistics import by_case, class_gains, class_sizes, compare, with_base
from nnunet_locctx.report.style import looks
from nnunet_locctx.show import scan
from nnunet_locctx.viewing import class_colours
from tests.report.synthetic_study import CLASSES, Synthetic, edit_json, robustness, true_labels, write_json

SMALL = "locbam_lowres_small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    Synthetic(images=True, cases_per_fold=4).write(folder)
    return folder


def test_slices_are_seen_from_the_feet_with_the_patients_right_at_the_left(folder: Path) -> None:
    study = read_results(folder / "work")
    piece = read_case(study, "case_000", 0, study.runs_at(SMALL))
    truth = piece.truth[piece.fullest]
    columns = truth.shape[1]
    right = np.argwhere(truth == CLASSES["right kidney"]).mean(axis=0)
    left = np.argwhere(truth == CLASSES["left kidney"]).mean(axis=0)
    liver = np.argwhere(truth == CLASSES["liver"]).mean(axis=0)
    # the scan is stored with x to the right, y to the front
    assert right[1] < columns / 2 < left[1]
    assert liver[0] < right[0]  # the liver lies in front of the kidney
    assert piece.letters == ("R", "L", "A", "P")
    name = piece.names[piece.fullest]
    assert name.startswith("axial, slice")
    full = true_labels(0)
    fullest = int(np.argmax((full > 0).sum(axis=(1, 2))))
    assert f"slice {fullest + 1} of 12" in name
    # from the first slice with a label to the last
    assert [one.split()[2] for one in piece.names] == [str(index + 1) for index in range(2, 10)]
    assert piece.problems == ()
    assert 0 <= piece.image.min() <= piece.image.max() <= 1


def test_a_flipped_and_permuted_scan_gives_the_same_picture(folder: Path, tmp_path: Path) -> None:
    Synthetic(images=True, cases_per_fold=4).write(tmp_path)
    for file in tmp_path.rglob("*.nii.gz"):
        image = nibabel.load(file)
        # axes permuted, two of them flipped
        turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
        nibabel.save(nibabel.Nifti1Image(np.asarray(turned.dataobj), turned.affine), file)
    pieces = []
    for place in (folder, tmp_path):
        study = read_results(place / "work")
        pieces.append(read_case(study, "case_001", 0, study.runs_at(SMALL)))
    one, other = pieces
    assert one.letters == other.letters
    assert np.array_equal(one.truth, other.truth)
    assert np.allclose(one.image, other.image)
    for method, plane in one.predictions.items():
        assert np.array_equal(plane, other.predictions[method])


def cases_of(work: Path) -> tuple[Results, PresetCases]:
    """A study and its cases at the small preset."""
    study = read_results(work)
    cases = read_cases(study, compare(study), SMALL)
    assert cases is not None
    return study, cases


def test_missing_files_are_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    work = Synthetic(images=True, cases_per_fold=3, presets=(SMALL,)).write(tmp_path)
    study, _ = cases_of(work)
    for file in Path(study.runs.loc[f"CoordConv__{SMALL}", "model"]).rglob("*.nii.gz"):
        file.unlink()
    gone = min(choose_cases(case_dice(study), "LocBAM", "Baseline"))[1]
    (tmp_path / "raw" / "Dataset007_BTCV" / "imagesTr" / f"{gone}_0000.nii.gz").unlink()
    _, cases = cases_of(work)
    figure, problems = draw_overlays(study, cases), cases.problems
    assert figure is not None
    assert gone not in figure.caption
    assert cases.left_out == 1
    assert any(problem.startswith(f"{SMALL}, {gone}: no file") for problem in problems)
    assert any("CoordConv: no file" in problem for problem in problems)


def test_without_raw_data_there_is_no_figure_but_a_reason(tmp_path: Path) -> None:
    study, cases = cases_of(Synthetic(presets=(SMALL,), folds=1).write(tmp_path))
    assert draw_overlays(study, cases) is None
    assert cases.problems
    assert all("dataset.json" in problem for problem in cases.problems)


def test_two_dimensional_images_are_drawn_as_stored(tmp_path: Path) -> None:
    from PIL import Image

    work = Synthetic(presets=(SMALL,), folds=1, cases_per_fold=2).write(tmp_path)
    study = read_results(work)
    raw = Path(study.settings["dataset"]["raw"])
    write_json(
        raw / "dataset.json",
        {"channel_names": {"0": "R"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"},
    )
    truth = np.zeros((10, 16), np.uint8)
    truth[2:5, 3:12] = 1
    places = [raw / "imagesTr" / "case_000_0000.png", raw / "labelsTr" / "case_000.png"]
    places += [Path(run.model) / "fold_0" / "validation" / "case_000.png" for run in study.runs.itertuples()]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(truth * (100 if place == places[0] else 1)).save(place)
    piece = read_case(study, "case_000", 0, study.runs)
    assert (piece.letters, piece.names) == ((), ("2D, as stored",))
    assert np.array_equal(piece.truth, truth[None])
    assert all(np.array_equal(stack, truth[None]) for stack in piece.predictions.values())


def test_slices_are_thinned_evenly_and_the_fullest_stays() -> None:
    marked = np.zeros(200, bool)
    marked[20:171] = True
    chosen = _thinned(marked, 103)
    assert len(chosen) <= MOST_SLICES
    assert set(np.diff(chosen)) == {7}
    assert 103 in chosen
    assert (min(chosen) - 20 < 7, 170 - max(chosen) < 7) == (True, True)
    assert _thinned(np.zeros(9, bool), 4) == [4]


def test_the_leaders_worst_case_comes_first(folder: Path) -> None:
    _, cases = cases_of(folder / "work")
    dice = [cases.dice["LocBAM"][key] for key in cases.slices]
    assert dice == sorted(dice)
    assert dice[0] == cases.dice["LocBAM"].min()


def test_alternatives_state_the_finding(folder: Path) -> None:
    study = read_results(folder / "work")
    rows = compare(study)
    located = rows[(rows["method"] == "LocBAM") & (rows["preset"] == SMALL)]["gain"].item()
    coverage, classes = draw_coverage(study, rows), draw_classes(study, rows, SMALL)
    assert coverage is not None
    assert classes is not None
    assert f"LocBAM: +{100 * located:.1f} at {SMALL}" in coverage.alternative
    gains = class_gains(with_base(study, rows[rows["preset"] == SMALL]))
    best = gains.loc[gains[gains["method"] == "LocBAM"]["gain"].idxmax()]
    assert f"LocBAM: most in {best['class']} (+{100 * best['gain']:.1f})" in classes.alternative
    (training,) = draw_training(study)
    assert training.alternative.startswith("Pseudo Dice in the last epoch in %. Baseline: ")


def case_dice(study: Results) -> pd.DataFrame:
    """Mean over the classes: (fold, case) x methods."""
    runs = study.runs_at(SMALL).itertuples()
    return pd.DataFrame({run.method: by_case(study.scores_of(run.Index)).mean(axis=1) for run in runs})


def test_cases_are_chosen_by_dice_and_gain(folder: Path) -> None:
    dice = case_dice(read_results(folder / "work"))
    gain = dice["LocBAM"] - dice["Baseline"]
    chosen = choose_cases(dice, "LocBAM", "Baseline")
    assert "best of LocBAM" in chosen[dice["LocBAM"].idxmax()]
    assert "worst of LocBAM" in chosen[dice["LocBAM"].idxmin()]
    assert "largest gain" in chosen[gain.idxmax()]
    assert sum(len(why.split(", ")) for why in chosen.values()) == 4


def test_classes_are_ordered_by_their_size_where_they_are(folder: Path) -> None:
    scores = read_results(folder / "work").scores_of(f"Baseline__{SMALL}").reset_index(drop=True)
    liver, spleen = (scores.index[scores["class"] == name] for name in ("liver", "spleen"))
    scores.loc[liver[0], "reference_ml"] = 0.0  # a case without it does not count
    scores.loc[spleen, "reference_ml"] = np.nan
    sizes = class_sizes(scores)
    assert sizes["liver"] > 1000
    assert list(sizes.index) == ["gallbladder", "right kidney", "left kidney", "liver", "spleen"]


def test_class_gain_counts_the_cases_that_both_have(folder: Path) -> None:
    study = read_results(folder / "work")
    spleen = study.scores[study.scores["class"] == "spleen"].set_index("run")["dice"]
    mine, theirs = spleen[f"LocBAM__{SMALL}"], spleen[f"Baseline__{SMALL}"]
    first = study.scores.index[
        (study.scores["class"] == "spleen") & (study.scores["run"] == f"Baseline__{SMALL}")
    ][0]
    for scores in (study.scores, study.seed_scores):
        scores.loc[first, "dice"] = np.nan
    rows = compare(study)
    gains = class_gains(with_base(study, rows[rows["preset"] == SMALL])).set_index(["method", "class"])
    gain = gains.loc[("LocBAM", "spleen")]
    assert gain["pairs"] == 7
    assert gain["gain"] == pytest.approx((mine.to_numpy() - theirs.to_numpy())[1:].mean())


def test_coverage_shows_the_papers_gains_for_the_same_data_only(tmp_path: Path) -> None:
    work = Synthetic(folds=1).write(tmp_path)
    edit_json(work / "study.json", papers=["locbam_table2"])
    study = read_results(work)
    printed = printed_gains(study)
    assert set(printed["method"]) == {"LocBAM"}
    assert list(printed.iloc[0]) == ["LocBAM", 0.06, pytest.approx(55.25)]
    figure = draw_coverage(study, compare(study))
    assert figure is not None
    assert "logarithmic further out" in figure.caption
    edit_json(work / "study.json", dataset={"id": 8, "name": "Dataset008_Other", "raw": ""})
    assert printed_gains(read_results(work)).empty


def test_coverage_needs_a_coverage(tmp_path: Path) -> None:
    work = Synthetic(folds=1, presets=("mine",)).write(tmp_path)
    content = json.loads((work / "study.json").read_text())
    content["presets"][0]["coverage"] = None
    write_json(work / "study.json", content)
    study = read_results(work)
    assert draw_coverage(study, compare(study)) is None


def test_pseudo_dice_is_the_mean_of_the_known_classes_and_folds_may_differ_in_length(tmp_path: Path) -> None:
    work = Synthetic(presets=(SMALL,)).write(tmp_path)
    long = [{"epoch": n, "pseudo_dice": [0.2, None, 0.4], "train_loss": -n} for n in range(3)]
    short = [{"epoch": 0, "pseudo_dice": [0.5, 0.7, None], "train_loss": 1.0}]
    for fold, epochs in enumerate((long, short)):
        edit_json(work / "runs" / f"LocBAM__{SMALL}" / f"fold_{fold}" / "training.json", epochs=epochs)
    study = read_results(work)
    table = study.epochs[study.epochs["method"] == "LocBAM"].pivot(index="epoch", columns="fold")
    assert list(table["pseudo_dice"].loc[0]) == pytest.approx([0.3, 0.6])
    assert np.isnan(table["pseudo_dice"][1].loc[1:]).all()
    (figure,) = draw_training(study)
    assert "up to 2 folds" in figure.caption


def test_wrong_locations_stand_beside_the_baseline_on_the_same_cases(tmp_path: Path) -> None:
    one = Synthetic(presets=(SMALL,))
    work = one.write(tmp_path)
    cases = one.case_names(0)[:4]
    content = robustness("LocBAM", cases, 0.3)
    content["points"][0]["dice"] = None
    write_json(work / "runs" / f"LocBAM__{SMALL}" / "robustness" / "robustness.json", content)
    study = read_results(work)
    points = study.robustness
    assert set(points["method"]) == {"LocBAM"}
    assert np.isnan(points["dice"][0])
    assert points["dice"][1] == pytest.approx(0.847)
    figure = draw_location(study)
    assert figure is not None
    # 0.85 - 0.3 x 25 / 100; 100 % is in the table and not in the figure
    assert f"LocBAM at {SMALL}: 84.7% Dice, 77.5% with 25% shift, along the body" in figure.alternative
    scores = study.scores_of(f"Baseline__{SMALL}")
    assert baseline_dice(study, SMALL) == pytest.approx(scores.loc[scores["case"].isin(cases), "dice"].mean())


def test_an_unknown_location_is_drawn_whatever_its_amount(tmp_path: Path) -> None:
    one = Synthetic(presets=(SMALL,))
    work = one.write(tmp_path)
    content = robustness("LocBAM", one.case_names(0)[:2], 0.3)
    shared = {**content["points"][0], "kind": "unknown"}
    content["points"] = [
        {**shared, "axes": axes, "percent": amount, "dice": dice}
        for axes, unknown in (("axial", 0.8), ("all", 0.3))
        for amount, dice in ((0.0, 0.85), (100.0, unknown))
    ]
    write_json(work / "runs" / f"LocBAM__{SMALL}" / "robustness" / "robustness.json", content)
    figure = draw_location(read_results(work))
    assert figure is not None
    told = [f"85.0% Dice, {dice}% with the location unknown, " for dice in ("80.0", "30.0")]
    assert all(words in figure.alternative for words in told)
    assert "up to 50%" in figure.caption


def test_names_are_no_formulas(tmp_path: Path) -> None:
    work = Synthetic(gains={"Baseline": (0,), r"x $\foo$": (0.02,)}, presets=(SMALL,)).write(tmp_path)
    study = read_results(work)
    assert draw_coverage(study, compare(study)) is not None


def test_methods_keep_their_colour_and_regions_their_number(folder: Path) -> None:
    study = read_results(folder / "work")
    look = looks(study)
    assert len(set(look.values())) == 3
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edema": [1], "ignore": 4}
    edit_json(folder / "work" / "study.json", labels=labels)
    named = {label: name for label, (name, _) in label_colours(read_results(folder / "work")).items()}
    assert named == {1: "edema", 2: "core", 3: "core"}


def test_classes_have_the_colours_of_locctx_show(folder: Path) -> None:
    labels = {"background": 0, **CLASSES, "ignore": 6}
    edit_json(folder / "work" / "study.json", labels=labels)
    shown = scan._names({"labels": labels}, None)["names"]
    names = list(dict.fromkeys(shown.values()))
    colours = class_colours(names, find_pairs(names))
    ours = label_colours(read_results(folder / "work"))
    assert ours == {value: (name, colours[name]) for value, name in shown.items() if name != "ignore"}


def test_wrong_locations_have_a_panel_per_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Synthetic(presets=(SMALL,))
    work = one.write(tmp_path)
    content = json.loads((work / "study.json").read_text())
    content["methods"][1]["source"] = "body"
    write_json(work / "study.json", content)
    for method in ("CoordConv", "LocBAM"):
        file = work / "runs" / f"{method}__{SMALL}" / "robustness" / "robustness.json"
        write_json(file, robustness(method, one.case_names(0)[:2], 0.3))
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "to_svg", lambda figure: drawn.append(figure) or b"")
    study = read_results(work)
    assert draw_location(study) is not None
    (figure,) = drawn
    # rows: shift and noise; columns: the sources; beside each curve the dashed baseline
    assert [panel.get_title() for panel in figure.axes] == ["source body", "source voxel", "", ""]
    assert [len(panel.lines) for panel in figure.axes] == [2] * 4
    assert max(figure.axes[0].lines[0].get_xdata()) == 25


def test_an_unknown_location_is_a_level_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Synthetic(presets=(SMALL,))
    work = one.write(tmp_path)
    content = robustness("LocBAM", one.case_names(0)[:2], 0.3)
    content["points"] = [
        {**point, "kind": "unknown", "dice": 0.85 if point["percent"] == 0 else 0.4}
        for point in content["points"]
        if point["kind"] == "shift"
    ]
    write_json(work / "runs" / f"LocBAM__{SMALL}" / "robustness" / "robustness.json", content)
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "to_svg", lambda figure: drawn.append(figure) or b"")
    assert draw_location(read_results(work)) is not None
    level, true, _ = drawn[0].axes[0].lines
    assert list(level.get_ydata()) == pytest.approx([40, 40])
    assert (list(true.get_xdata()), list(true.get_ydata())) == ([0], pytest.approx([85]))


def test_figures_follow_the_readers_theme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "to_svg", style.to_svg)
    (figure,) = draw_training(read_results(folder / "work"))
    svg = figure.svg.decode()
    assert "prefers-color-scheme: dark" in svg
    assert not {"#000000", style.BASELINE_COLOUR, "#ffffff"} & set(
        re.findall(r"(?:fill|stroke): (#\w+)", svg)
    )
    assert ElementTree.fromstring(svg).tag.endswith("svg")
