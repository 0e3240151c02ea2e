"""Dice of predicted files, by nnU-Net's own evaluator."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.image_files import check_whole


@dataclass(frozen=True)
class DiceScores:
    """Dice per class and its mean.

    Attributes:
        per_class: Class name -> mean Dice over the cases (a fraction, 1 is perfect). NaN where the class is in no
            reference and in no prediction.
        cases: Number of cases.
    """

    per_class: dict[str, float]
    cases: int

    @property
    def dice(self) -> float:
        """Mean over the foreground classes, those without a value left out."""
        known = [value for value in self.per_class.values() if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan


def mean_dice(summary: Path, labels: Mapping[str, Any]) -> DiceScores:
    """Reads the ``summary.json`` that ``nnUNetv2_evaluate_folder`` wrote.

    The evaluator compares files on the original grid of the scans and averages each class over the cases.

    Args:
        summary: Path of the file.
        labels: The ``labels`` of the dataset's ``dataset.json``; background and ignore label are skipped.

    Raises:
        ValueError: The summary lacks a class of `labels`.
    """
    content = json.loads(summary.read_text(encoding="utf-8"))
    means = content["mean"]
    per_class = {}
    for name, label in labels.items():
        if name in ("background", "ignore"):
            continue
        # nnU-Net's key of a region is the text of a tuple, that of a label the text of a number
        key = str(tuple(label)) if isinstance(label, list | tuple) else str(label)
        if key not in means:
            raise ValueError(f"{summary} has no class {key} ({name}); it has {', '.join(means)}")
        value = means[key]["Dice"]
        per_class[name] = math.nan if value is None else float(value)
    return DiceScores(per_class, len(content["metric_per_case"]))


def foreground(labels: Mapping[str, Any]) -> dict[str, int | tuple[int, ...]]:
    """Class name -> label or region, without background and ignore label.

    Args:
        labels: The ``labels`` of the dataset's ``dataset.json``.
    """
    return {
        name: tuple(int(one) for one in label) if isinstance(label, list | tuple) else int(label)
        for name, label in labels.items()
        if name not in ("background", "ignore")
    }


def file_dice(reference: Path, prediction: Path, labels: Mapping[str, Any], reader: Any) -> dict[str, float]:
    """Class name -> Dice of one predicted file (a fraction; NaN if the class is in neither file).

    Args:
        reference: The true segmentation.
        prediction: The predicted one, on the same grid.
        labels: The ``labels`` of the dataset's ``dataset.json``.
        reader: nnU-Net's reader of the files.

    Raises:
        BrokenFileError: A file is not whole.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics

    for file in (reference, prediction):
        check_whole(file)
    classes = foreground(labels)
    ignore = labels.get("ignore")
    metrics = compute_metrics(
        str(reference),
        str(prediction),
        reader,
        list(classes.values()),
        None if ignore is None else int(ignore),
    )["metrics"]
    return {name: float(metrics[label]["Dice"]) for name, label in classes.items()}
