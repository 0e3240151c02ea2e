"""Reading the evaluator's summary."""

import json
import math
import multiprocessing.dummy
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation import evaluate_predictions

from nnunet_locctx.evaluation import mean_dice


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Truth and prediction of two cases: class 1 half missed in the second, class 2 right in both."""
    # threads in place of spawned processes, which take half a minute to start
    in_threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", in_threads)
    reference = np.zeros((2, 4, 4), dtype=np.uint8)
    reference[0, 0] = 1  # four voxels
    reference[1, 3] = 2
    missed = reference.copy()
    missed[0, 0, :2] = 0
    for name, first, second in (("truth", reference, reference), ("predicted", reference, missed)):
        (tmp_path / name).mkdir()
        for case, array in (("a", first), ("b", second)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name / f"{case}.nii.gz"))
    return tmp_path


def evaluate(folder, labels, **more):
    """nnU-Net's own evaluation, as nnUNetv2_evaluate_folder does it."""
    description = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}, **more}
    (folder / "dataset.json").write_text(json.dumps(description))
    plans = {"label_manager": "LabelManager", "plans_name": "p", "dataset_name": "d", "configurations": {}}
    (folder / "plans.json").write_text(json.dumps(plans))
    evaluate_predictions.compute_metrics_on_folder2(
        str(folder / "truth"),
        str(folder / "predicted"),
        str(folder / "dataset.json"),
        str(folder / "plans.json"),
        str(folder / "summary.json"),
        num_processes=1,
    )
    return mean_dice(folder / "summary.json", labels)


def test_labels(folders):
    scores = evaluate(folders, {"background": 0, "one": 1, "two": 2, "ignore": 3})
    assert scores.cases == 2
    assert scores.per_class == pytest.approx({"one": (1 + 2 / 3) / 2, "two": 1.0})
    assert scores.dice == pytest.approx((5 / 6 + 1) / 2)


def test_regions(folders):
    labels = {"background": 0, "both": [1, 2], "two": [2]}
    scores = evaluate(folders, labels, regions_class_order=[1, 2])
    assert scores.per_class == pytest.approx({"both": (1 + 12 / 14) / 2, "two": 1.0})


def test_a_class_that_is_nowhere_does_not_count(tmp_path):
    summary = {"mean": {"1": {"Dice": 0.5}, "2": {"Dice": math.nan}}, "metric_per_case": [{}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    scores = mean_dice(tmp_path / "summary.json", {"one": 1, "two": 2})
    assert math.isnan(scores.per_class["two"])
    assert scores.dice == 0.5


def test_a_summary_of_other_labels(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"mean": {"1": {"Dice": 0.5}}, "metric_per_case": []}))
    with pytest.raises(ValueError, match=r"has no class 2 \(two\); it has 1"):
        mean_dice(tmp_path / "summary.json", {"one": 1, "two": 2})
