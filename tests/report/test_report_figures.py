"""What the figures are made of; that they can be read was checked by eye."""

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_locctx.report.case_images import read_case
from nnunet_locctx.report.comparison import compare
from nnunet_locctx.report.figures.classes import by_size, class_gain, class_sizes
from nnunet_locctx.report.figures.coverage import _printed, draw_coverage
from nnunet_locctx.report.figures.curves import fold_table
from nnunet_locctx.report.figures.location import baseline_dice, location_points
from nnunet_locctx.report.figures.overlays import choose_cases, draw_overlays, label_colours
from nnunet_locctx.report.figures.style import looks
from nnunet_locctx.report.load import load_study
from tests.report.synthetic_study import (
    CLASSES,
    Synthetic,
    edit_json,
    robustness,
    true_labels,
    write_json,
)

SMALL = "locbam_lowres_small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    Synthetic(images=True, cases_per_fold=4).write(folder)
    return folder


def test_slices_are_seen_from_the_feet_with_the_patients_right_at_the_left(folder: Path) -> None:
    study = load_study(folder / "work")
    piece = read_case(study, "case_000", 0, study.at(SMALL))
    columns = piece.truth.shape[1]
    right = np.argwhere(piece.truth == CLASSES["right kidney"]).mean(axis=0)
    left = np.argwhere(piece.truth == CLASSES["left kidney"]).mean(axis=0)
    liver = np.argwhere(piece.truth == CLASSES["liver"]).mean(axis=0)
    # the scan is stored with x to the right, y to the front
    assert right[1] < columns / 2 < left[1]
    assert liver[0] < right[0]  # the liver lies in front of the kidney
    assert piece.letters == ("R", "L", "A", "P")
    assert piece.name.startswith("axial, slice")
    full = true_labels(0)
    fullest = int(np.argmax((full > 0).sum(axis=(1, 2))))
    assert f"slice {fullest + 1} of 12" in piece.name
    assert piece.problems == ()
    assert 0 <= piece.image.min() <= piece.image.max() <= 1


def test_a_flipped_and_permuted_scan_gives_the_same_picture(folder: Path, tmp_path: Path) -> None:
    Synthetic(images=True, cases_per_fold=4).write(tmp_path)
    for file in tmp_path.rglob("*.nii.gz"):
        image = nibabel.load(file)
        turned = image.as_reoriented(
            np.array([[1, -1], [2, 1], [0, -1]])
        )  # axes permuted, two of them flipped
        nibabel.save(nibabel.Nifti1Image(np.asarray(turned.dataobj), turned.affine), file)
    pieces = []
    for place in (folder, tmp_path):
        study = load_study(place / "work")
        pieces.append(read_case(study, "case_001", 0, study.at(SMALL)))
    one, other = pieces
    assert one.letters == other.letters
    assert np.array_equal(one.truth, other.truth)
    assert np.allclose(one.image, other.image)
    for method, plane in one.predictions.items():
        assert np.array_equal(plane, other.predictions[method])


def test_missing_files_are_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    work = Synthetic(images=True, cases_per_fold=3, presets=(SMALL,)).write(tmp_path)
    study = load_study(work)
    rows = compare(study, study.validation)
    (lost,) = [run for run in study.runs if run.method == "CoordConv"]
    for file in lost.model.rglob("*.nii.gz"):
        file.unlink()
    leader = max(rows[1:], key=lambda row: row.mean)
    gone = sorted(choose_cases(leader, rows[0]))[0][1]
    (tmp_path / "raw" / "Dataset007_BTCV" / "imagesTr" / f"{gone}_0000.nii.gz").unlink()
    figure, problems = draw_overlays(study, rows, SMALL)
    assert figure is not None
    assert gone not in figure.caption
    assert any(problem.startswith(f"{SMALL}, {gone}: no file") for problem in problems)
    assert any("CoordConv: no file" in problem for problem in problems)


def test_without_raw_data_there_is_no_figure_but_a_reason(tmp_path: Path) -> None:
    work = Synthetic(presets=(SMALL,), folds=1).write(tmp_path)
    study = load_study(work)
    figure, problems = draw_overlays(study, compare(study, study.validation), SMALL)
    assert figure is None
    assert problems
    assert all("dataset.json" in problem for problem in problems)


def test_two_dimensional_images_are_drawn_as_stored(tmp_path: Path) -> None:
    from PIL import Image

    work = Synthetic(presets=(SMALL,), folds=1, cases_per_fold=2).write(tmp_path)
    study = load_study(work)
    raw = Path(study.settings["dataset"]["raw"])
    write_json(raw / "dataset.json", {"channel_names": {"0": "R"}, "labels": {}, "file_ending": ".png"})
    truth = np.zeros((10, 16), np.uint8)
    truth[2:5, 3:12] = 1
    places = [raw / "imagesTr" / "case_000_0000.png", raw / "labelsTr" / "case_000.png"]
    places += [run.model / "fold_0" / "validation" / "case_000.png" for run in study.runs]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(truth * (100 if place == places[0] else 1)).save(place)
    piece = read_case(study, "case_000", 0, list(study.runs))
    assert (piece.letters, piece.name) == ((), "2D, as stored")
    assert np.array_equal(piece.truth, truth)
    assert all(np.array_equal(plane, truth) for plane in piece.predictions.values())


def test_cases_are_chosen_by_dice_and_gain(folder: Path) -> None:
    study = load_study(folder / "work")
    base, _, leader = compare(study, study.validation)[:3]
    dice = leader.scores.values["dice"].mean(axis=1)
    gain = dice - base.scores.values["dice"].mean(axis=1)
    chosen = choose_cases(leader, base)
    keys = leader.scores.keys
    assert "best of LocBAM" in chosen[keys[int(np.argmax(dice))]]
    assert "worst of LocBAM" in chosen[keys[int(np.argmin(dice))]]
    assert "largest gain" in chosen[keys[int(np.argmax(gain))]]
    assert sum(len(why.split(", ")) for why in chosen.values()) == 4


def test_classes_are_ordered_by_their_size_where_they_are(folder: Path) -> None:
    study = load_study(folder / "work")
    scores = study.validation[f"Baseline__{SMALL}"]
    scores.values["reference_ml"][0, scores.classes.index("liver")] = 0.0  # a case without it does not count
    sizes = class_sizes(scores)
    assert sizes["liver"] > 1000
    assert by_size({**sizes, "unknown": math.nan}) == [
        "gallbladder",
        "right kidney",
        "left kidney",
        "spleen",
        "liver",
        "unknown",
    ]


def test_class_gain_counts_the_cases_that_both_have(folder: Path) -> None:
    study = load_study(folder / "work")
    base, located = study.validation[f"Baseline__{SMALL}"], study.validation[f"LocBAM__{SMALL}"]
    column = base.classes.index("spleen")
    base.values["dice"][0, column] = np.nan
    found = class_gain(located, base, "spleen")
    expected = (located.values["dice"] - base.values["dice"])[1:, column].mean()
    assert (found.pairs, found.gain) == (7, pytest.approx(expected))


def test_coverage_shows_the_papers_gains_for_the_same_data_only(tmp_path: Path) -> None:
    work = Synthetic(folds=1).write(tmp_path)
    edit_json(work / "study.json", papers=["locbam_table2"])
    study = load_study(work)
    printed = _printed(study)
    assert list(printed) == ["LocBAM"]
    assert printed["LocBAM"][0] == (0.06, pytest.approx(55.25))
    figure = draw_coverage(study, compare(study, study.validation))
    assert figure is not None
    assert "logarithmic further out" in figure.caption
    edit_json(work / "study.json", dataset={"id": 8, "name": "Dataset008_Other", "raw": ""})
    assert _printed(load_study(work)) == {}


def test_coverage_needs_a_coverage(tmp_path: Path) -> None:
    work = Synthetic(folds=1, presets=("mine",)).write(tmp_path)
    content = json.loads((work / "study.json").read_text())
    content["presets"][0]["coverage"] = None
    write_json(work / "study.json", content)
    study = load_study(work)
    assert draw_coverage(study, compare(study, study.validation)) is None


def test_folds_of_different_length_are_averaged_where_they_are() -> None:
    long = {"epochs": [{"epoch": n, "pseudo_dice": [0.2, None, 0.4], "train_loss": -n} for n in range(3)]}
    short = {"epochs": [{"epoch": 0, "pseudo_dice": [0.5, 0.7, None], "train_loss": 1.0}]}
    epochs, table = fold_table([long, short], "pseudo_dice")
    assert epochs == [0, 1, 2]
    assert table[:, 0] == pytest.approx([0.3, 0.6])
    assert np.isnan(table[1, 1:]).all()


def test_wrong_locations_stand_beside_the_baseline_on_the_same_cases(tmp_path: Path) -> None:
    one = Synthetic(presets=(SMALL,))
    work = one.write(tmp_path)
    cases = one.case_names(0)[:4]
    content = robustness("LocBAM", cases, 0.3)
    content["points"][0]["dice"] = None
    write_json(work / "runs" / f"LocBAM__{SMALL}" / "robustness" / "robustness.json", content)
    study = load_study(work)
    points = location_points(study)
    assert (points[0]["method"], points[1]["dice"]) == ("LocBAM", pytest.approx(0.847))
    assert math.isnan(points[0]["dice"])
    scores = study.validation[f"Baseline__{SMALL}"]
    rows = [place for place, key in enumerate(scores.keys) if key[1] in cases]
    assert baseline_dice(study, SMALL) == pytest.approx(scores.values["dice"][rows].mean())


def test_methods_keep_their_colour_and_regions_their_number(folder: Path) -> None:
    study = load_study(folder / "work")
    look = looks(study)
    assert len(set(look.values())) == 3
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edema": [1], "ignore": 4}
    edit_json(folder / "work" / "study.json", labels=labels)
    named = {label: name for label, (name, _) in label_colours(load_study(folder / "work")).items()}
    assert named == {1: "edema", 2: "label 2", 3: "label 3"}
