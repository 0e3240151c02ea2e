"""The Dice that the demo reads from the evaluator's summary."""

import json
import math
import multiprocessing.dummy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation import evaluate_predictions

from nnunet_locctx.demo.run import mean_dice


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"one": 1, "two": 2, "ignore": 3}, {"one": (1 + 2 / 3) / 2, "two": 1.0}),
        ({"both": [1, 2], "two": [2]}, {"both": (1 + 12 / 14) / 2, "two": 1.0}),
    ],
)
def test_it_is_the_evaluators(
    labels: dict[str, Any], expected: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cases: class 1 half missed in the second, class 2 right in both."""
    # threads in place of spawned processes, which take half a minute to start
    in_threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", in_threads)
    reference = np.zeros((2, 4, 4), dtype=np.uint8)
    reference[0, 0], reference[1, 3] = 1, 2  # four voxels each
    missed = reference.copy()
    missed[0, 0, :2] = 0
    for name, first, second in (("truth", reference, reference), ("predicted", reference, missed)):
        (tmp_path / name).mkdir()
        for case, array in (("a", first), ("b", second)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name / f"{case}.nii.gz"))
    labels = {"background": 0, **labels}
    plans = {"label_manager": "LabelManager", "plans_name": "p", "dataset_name": "d", "configurations": {}}
    dataset = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    dataset["regions_class_order"] = [1, 2]
    for name, content in (("dataset.json", dataset), ("plans.json", plans)):
        (tmp_path / name).write_text(json.dumps(content))
    names = ("truth", "predicted", "dataset.json", "plans.json", "summary.json")
    evaluate_predictions.compute_metrics_on_folder2(
        *(str(tmp_path / name) for name in names), num_processes=1
    )
    assert mean_dice(tmp_path / "summary.json", labels) == pytest.approx(expected)


def test_absent_classes(tmp_path: Path) -> None:
    summary = {"mean": {"1": {"Dice": 0.5}, "2": {"Dice": math.nan}}, "metric_per_case": [{}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert math.isnan(mean_dice(tmp_path / "summary.json", {"one": 1, "two": 2})["two"])
    with pytest.raises(ValueError, match=r"has no class 3 \(three\); it has 1, 2"):
        mean_dice(tmp_path / "summary.json", {"one": 1, "three": 3})
