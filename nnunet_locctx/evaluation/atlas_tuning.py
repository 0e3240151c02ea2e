"""What the dilation of an atlas does to the Dice of validation predictions."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from nnunet_locctx.evaluation.atlas import Atlas, AtlasMask, read_atlas, write_atlas
from nnunet_locctx.evaluation.atlas_grid import patient_order
from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.label_files import frame_of, list_label_files, read_labels, refuse
from nnunet_locctx.nnunet.data.workers import map_in_workers

Curves = npt.NDArray[np.float64]
"""(cases, classes, radii + 1) Dice, NaN where a class is in neither mask; the last radius is that without mask."""


@dataclass(frozen=True)
class ValidationFold:
    """A fold's validation predictions.

    Attributes:
        predictions: Their folder.
        name: What the fold is called; empty: ``fold_N`` as in the folder's path, or by its place.
        training: The fold's training cases; empty: all that it does not validate.
        cases: Case -> predicted file; found in the folder.
    """

    predictions: Path
    name: str = ""
    training: tuple[str, ...] = ()
    cases: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    atlas: Path
    radii: tuple[float, ...]
    prediction: Path
    reference: Path
    reader: str
    classes: Classes


def find_folds(
    validation: Sequence[Path | ValidationFold], names: Sequence[str], found: Mapping[str, Path], ending: str
) -> list[ValidationFold]:
    """The folds with their cases; a fold's training cases are those it does not validate, unless given."""
    folds: list[ValidationFold] = []
    for number, given in enumerate(validation):
        one = given if isinstance(given, ValidationFold) else ValidationFold(given)
        cases = list_label_files(one.predictions, ending)
        refuse(
            [f"case {case} of {one.predictions} has no label" for case in cases if case not in found],
            "labels are missing",
        )
        training = tuple(one.training) or tuple(name for name in names if name not in cases)
        absent = [case for case in training if case not in found]
        refuse([f"training case {case} has no label" for case in absent], "labels are missing")
        both = sorted(set(training) & set(cases))
        if both or not training:
            what = f"{', '.join(both[:5])} both in training and" if both else "no training cases for those"
            raise ValueError(f"{what} in the validation folder {one.predictions}")
        parents = (one.predictions.resolve().name, one.predictions.resolve().parent.name)
        name = one.name or next((part for part in parents if part.startswith("fold_")), f"fold_{number}")
        folds.append(ValidationFold(one.predictions, name, training, cases))
    if len({fold.name for fold in folds}) < len(folds):
        folds = [
            ValidationFold(fold.predictions, f"fold_{number}", fold.training, fold.cases)
            for number, fold in enumerate(folds)
        ]
    return folds


def tune(
    atlases: Sequence[Atlas],
    folds: Sequence[ValidationFold],
    references: Mapping[str, Path],
    reader: str,
    classes: Classes,
    radii: Sequence[float],
    scratch: Path,
    processes: int,
    progress: bool,
) -> list[Curves]:
    """Dice of every fold's validation cases at every radius.

    Args:
        atlases: Of each fold's training cases.
        folds: The folds.
        references: Case -> true segmentation.
        reader: Class name of nnU-Net's reader.
        classes: The classes.
        radii: Radii in mm, ascending.
        scratch: Folder in which the atlases are handed to the workers.
        processes: Worker processes.
        progress: Show a bar.
    """
    jobs = []
    for number, (atlas, fold) in enumerate(zip(atlases, folds, strict=True)):
        file = scratch / f"atlas_{number}.npz"
        write_atlas(atlas, file)
        jobs += [
            _Job(file, tuple(radii), path, references[case], reader, classes)
            for case, path in fold.cases.items()
        ]
    answers = map_in_workers(_dice_at_radii, jobs, processes)
    bar = tqdm(answers, total=len(jobs), desc="tuning", unit="case", disable=not progress or not jobs)
    found = list(bar)
    ends = np.cumsum([0, *(len(fold.cases) for fold in folds)])
    return [np.array(found[begin:end]) for begin, end in itertools.pairwise(ends)]


def best_radius(curves: Sequence[Curves], radii: Sequence[float]) -> tuple[float, dict[str, Any]]:
    """The radius of the greatest mean Dice, and the Dice at each.

    The mean is that of `locctx evaluate`: over the cases of a class, then over the classes; what is in neither mask is
    left out. Of equal radii the greatest is taken, as it removes least.
    """
    means = _mean(_mean(np.concatenate(list(curves)), 0), 0)
    tried = np.nan_to_num(means[:-1], nan=-1.0)
    best = len(tried) - 1 - int(np.argmax(tried[::-1] >= tried.max() - 1e-12))
    shown = [None if np.isnan(value) else float(value) for value in means]
    table = {
        "cases": int(sum(len(one) for one in curves)),
        "foreground_dice": {f"{radius:g}": value for radius, value in zip(radii, shown[:-1], strict=True)},
        "foreground_dice_without_mask": shown[-1],
        "radius_mm": float(radii[best]),
    }
    return float(radii[best]), json.loads(json.dumps(table))


def _mean(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


_MASKS: dict[tuple[Path, int, tuple[float, ...]], AtlasMask] = {}


def _mask(file: Path, radii: tuple[float, ...]) -> AtlasMask:
    """The distances of an atlas, which the next case of a fold needs again."""
    key = (file, file.stat().st_mtime_ns, radii)
    if key not in _MASKS:
        _MASKS.clear()
        _MASKS[key] = AtlasMask(read_atlas(file), radii)
    return _MASKS[key]


def _dice_at_radii(job: _Job) -> Curves:
    """(classes, radii + 1) Dice of one prediction."""
    mask = _mask(job.atlas, job.radii)
    reference, properties = read_labels(job.reference, job.reader)
    prediction, _ = read_labels(job.prediction, job.reader)
    if job.classes.ignore is not None:
        prediction[reference == job.classes.ignore] = 0
    frame = frame_of(properties, reference.shape)
    ordered, _ = patient_order(reference, frame)
    levels = mask.voxel_levels(prediction, frame)
    count = len(job.radii) + 1
    dice = np.full((len(job.classes.labels), count), np.nan)
    for number, values in enumerate(job.classes.values.values()):
        # voxels at each level: a radius keeps its own level and those below
        predicted, correct = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for label, voxels, level in levels:
            if label in values:
                true = np.isin(ordered[tuple(voxels.T)], values)
                predicted += np.bincount(level, minlength=count)
                correct += np.bincount(level[true], minlength=count)
        total = int(np.isin(reference, values).sum()) + np.cumsum(predicted)
        present = total > 0
        dice[number, present] = 2 * np.cumsum(correct)[present] / total[present]
    return dice
