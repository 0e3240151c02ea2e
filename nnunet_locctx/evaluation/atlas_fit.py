"""Makes an atlas from training labels and tunes its dilation on validation predictions.

A fold's validation cases are masked by an atlas of the fold's other cases, so that no case is tuned on that is in the
atlas. What a radius does to the Dice needs no masked files: it follows from how far each predicted voxel lies from its
class's cells.
"""

import hashlib
import itertools
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from nnunet_locctx.evaluation.atlas import (
    SLACK,
    Atlas,
    Grid,
    mask_of_file,
    occupied_cells,
    patient_order,
    read_atlas,
    write_atlas,
)
from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.label_files import (
    LabelFile,
    check_label_files,
    fingerprint,
    frame_of,
    list_label_files,
    read_description,
    read_labels,
    refuse,
)
from nnunet_locctx.files import replacing
from nnunet_locctx.geometry import Frame
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers

RADII = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)
"""Radii in mm that are tried."""

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


def fit_atlas(
    labels: Path,
    output: Path,
    *,
    validation: Sequence[Path | ValidationFold] = (),
    cases: Sequence[str] | None = None,
    radius_mm: float | None = None,
    radii: Sequence[float] = RADII,
    threshold: float = 0.0,
    grid: Sequence[int] | None = None,
    fold_atlases: bool = False,
    dataset_json: Path | Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Atlas:
    """Makes an atlas and writes it, unless the file holds just that already.

    Args:
        labels: Folder of the training labels.
        output: The atlas's file (``.npz``).
        validation: Folders of predictions of validation cases, one per fold, to tune the dilation on.
        cases: The training cases; None: all of `labels`.
        radius_mm: The dilation, if it is not to be tuned.
        radii: Dilations that are tried, mm on the grid, ascending.
        threshold: Cells count in whose place more than this share of the training cases has the class.
        grid: Cells along (R, A, S); None: the cases' median size in voxels.
        fold_atlases: Write each fold's atlas beside the file too, as STEM_FOLD.npz, to mask its validation cases with.
            Its radius is tuned on the other folds; on its own predictions if there is one fold only.
        dataset_json: See :func:`~nnunet_locctx.evaluation.folders.evaluate_folders`.
        processes: Worker processes.
        progress: Show bars.

    Raises:
        ValueError: Something is not usable; nothing is written.
    """
    if output.suffix != ".npz":
        raise ValueError(f"an atlas is a .npz file, got {output}")
    if (radius_mm is None) != bool(validation):
        raise ValueError("an atlas needs either validation predictions to tune its radius on, or a radius")
    tried = [float(radius) for radius in (radii if radius_mm is None else [radius_mm])]
    if not tried or tried[0] < 0 or any(b <= a for a, b in itertools.pairwise(tried)) or len(tried) > 200:
        raise ValueError(f"radii must be numbers of mm from 0, ascending, got {tried}")
    if not 0 <= threshold < 1:
        raise ValueError(f"the threshold is a share of the cases, from 0 to below 1, got {threshold}")
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, got {processes}")
    folders = [one.predictions if isinstance(one, ValidationFold) else one for one in validation]
    description = read_description(dataset_json, (labels, *folders))
    classes = Classes.from_labels(description.labels)
    references = list_label_files(labels, description.file_ending)
    names = sorted(references) if cases is None else sorted(set(cases))
    refuse(
        [f"case {name} is not in {labels}" for name in names if name not in references],
        "training cases are missing",
    )
    if not names:
        raise ValueError("an atlas needs at least one case")
    folds = _find_folds(validation, names, references, description.file_ending)
    reader = choose_reader(description.content, references[names[0]])
    used = sorted({*names, *(case for fold in folds for case in (*fold.training, *fold.cases))})
    stamps = {case: fingerprint(references[case]) for case in used}
    history: dict[str, Any] = {
        "whole": True,  # earlier versions also took files that were cut off
        "training": {case: stamps[case] for case in names},
        "validation": [
            {
                "name": fold.name,
                "predictions": {case: fingerprint(file) for case, file in fold.cases.items()},
                "references": {case: stamps[case] for case in fold.cases},
                "training": list(fold.training),
            }
            for fold in folds
        ],
        "radii_mm": tried,
        "grid": None if grid is None else list(grid),
    }
    files = {fold.name: output.with_name(f"{output.stem}_{fold.name}.npz") for fold in folds}
    written = [output, *(files.values() if fold_atlases else [])]
    old = _same(written, history, threshold, description.labels, radius_mm)
    if old is not None:
        return old
    allowed = classes.in_references
    checks = [LabelFile(case, references[case], reader, allowed) for case in used]
    checks += [
        LabelFile(case, file, reader, classes.known, references[case], allowed)
        for fold in folds
        for case, file in fold.cases.items()
    ]
    refuse(check_label_files(checks, processes, progress=progress), "the files cannot be used")

    def in_workers(function: Any, jobs: Sequence[Any], title: str, unit: str = "case") -> list[Any]:
        answers = map_in_workers(function, jobs, processes)
        return list(tqdm(answers, total=len(jobs), desc=title, unit=unit, disable=not progress or not jobs))

    frames = in_workers(_frame, [(references[case], reader) for case in names], "sizes")
    common = Grid.median(frames, grid)
    kept = output.with_name(f".{output.stem}.cells")
    kept.mkdir(parents=True, exist_ok=True)
    values = tuple(sorted(classes.known - {0}))
    cells_jobs = [_CellsJob(references[case], stamps[case], reader, common, values, kept) for case in used]
    cells = dict(zip(used, in_workers(_keep_cells, cells_jobs, "labels to grid"), strict=True))

    def atlas_of(members: Sequence[str]) -> Atlas:
        counted = _count_cells([cells[one] for one in members], values, common)
        return Atlas(common, tuple(members), counted, description.labels, threshold)

    by_fold: list[Atlas] = [atlas_of(fold.training) for fold in folds]
    tuning_jobs = []
    for number, (fold, atlas) in enumerate(zip(folds, by_fold, strict=True)):
        file = kept / f"atlas_{number}.npz"
        write_atlas(atlas, file)
        tuning_jobs += [
            _TuningJob(file, tuple(tried), prediction, references[case], reader, classes)
            for case, prediction in fold.cases.items()
        ]
    dice = iter(in_workers(_dice_at_radii, tuning_jobs, "tuning"))
    curves: list[Curves] = [np.array([next(dice) for _ in fold.cases]) for fold in folds]
    radius, table = _best_radius(curves, tried) if folds else (tried[0], None)
    if fold_atlases:
        for number, (fold, atlas) in enumerate(zip(folds, by_fold, strict=True)):
            others = [curve for place, curve in enumerate(curves) if place != number] or curves
            own, own_table = _best_radius(others, tried)
            own_history = {**history, "tuning": own_table}
            write_atlas(replace(atlas, radius_mm=own, history=own_history), files[fold.name])
    final = replace(atlas_of(names), radius_mm=radius, history={**history, "tuning": table})
    write_atlas(final, output)
    shutil.rmtree(kept)
    return final


def _find_folds(
    validation: Sequence[Path | ValidationFold],
    names: Sequence[str],
    references: Mapping[str, Path],
    ending: str,
) -> list[ValidationFold]:
    """The folds with their cases; a fold's training cases are those it does not validate, unless given."""
    folds: list[ValidationFold] = []
    for number, given in enumerate(validation):
        fold = given if isinstance(given, ValidationFold) else ValidationFold(given)
        cases = list_label_files(fold.predictions, ending)
        refuse(
            [f"case {case} of {fold.predictions} has no label" for case in cases if case not in references],
            "labels are missing",
        )
        training = tuple(fold.training) or tuple(name for name in names if name not in cases)
        absent = [case for case in training if case not in references]
        refuse([f"training case {case} has no label" for case in absent], "labels are missing")
        both = sorted(set(training) & set(cases))
        if both or not training:
            what = f"{', '.join(both[:5])} both in training and" if both else "no training cases for those"
            raise ValueError(f"{what} in the validation folder {fold.predictions}")
        parents = (fold.predictions.resolve().name, fold.predictions.resolve().parent.name)
        name = fold.name or next((part for part in parents if part.startswith("fold_")), f"fold_{number}")
        folds.append(ValidationFold(fold.predictions, name, training, cases))
    if len({fold.name for fold in folds}) < len(folds):
        folds = [
            ValidationFold(fold.predictions, f"fold_{number}", fold.training, fold.cases)
            for number, fold in enumerate(folds)
        ]
    return folds


def _same(
    files: Sequence[Path],
    history: Mapping[str, Any],
    threshold: float,
    labels: Mapping[str, Any],
    radius_mm: float | None,
) -> Atlas | None:
    """The atlas that is there, if every file was made of the same."""
    atlases = []
    for file in files:
        try:
            atlas = read_atlas(file)
        except ValueError:
            return None
        made = {key: value for key, value in atlas.history.items() if key != "tuning"}
        same = made == json.loads(json.dumps(history)) and atlas.threshold == threshold
        if not same or dict(atlas.labels) != json.loads(json.dumps(dict(labels))):
            return None
        if radius_mm is not None and atlas.radius_mm != radius_mm:
            return None
        atlases.append(atlas)
    return atlases[0]


def _frame(job: tuple[Path, str]) -> Frame:
    segmentation, properties = read_labels(*job)
    return frame_of(properties, segmentation.shape)


@dataclass(frozen=True)
class _CellsJob:
    file: Path
    stamp: str
    reader: str
    grid: Grid
    labels: tuple[int, ...]
    folder: Path


def _keep_cells(job: _CellsJob) -> Path:
    """Writes the cells of a case to the folder, unless an interrupted run left them there; returns the file."""
    name = hashlib.sha256(repr((job.stamp, job.grid, job.labels)).encode()).hexdigest()[:32]
    kept = job.folder / f"{name}.npz"
    if not kept.is_file():
        segmentation, properties = read_labels(job.file, job.reader)
        frame = frame_of(properties, segmentation.shape)
        cells = occupied_cells(segmentation, frame, job.grid, job.labels)
        arrays: dict[str, Any] = {str(label): held for label, held in cells.items()}
        with replacing(kept) as draft:
            np.savez(draft, **arrays)
    return kept


def _count_cells(
    files: Sequence[Path], labels: Sequence[int], grid: Grid
) -> dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Label -> the cells (flat index) of all cases, and how many cases have each."""
    counted = {}
    for label in labels:
        counts = np.zeros(grid.shape, dtype=np.int64).ravel()
        for file in files:
            with np.load(file) as stored:
                counts[stored[str(label)]] += 1
        cells = np.flatnonzero(counts).astype(np.int64)
        counted[label] = (cells, counts[cells])
    return counted


@dataclass(frozen=True)
class _TuningJob:
    atlas: Path
    radii: tuple[float, ...]
    prediction: Path
    reference: Path
    reader: str
    classes: Classes


def _dice_at_radii(job: _TuningJob) -> Curves:
    """(classes, radii + 1) Dice of one prediction."""
    mask = mask_of_file(job.atlas, job.radii[-1])
    reference, properties = read_labels(job.reference, job.reader)
    prediction, _ = read_labels(job.prediction, job.reader)
    if job.classes.ignore is not None:
        prediction[reference == job.classes.ignore] = 0
    frame = frame_of(properties, reference.shape)
    ordered, _ = patient_order(reference, frame)
    distances = list(mask.distances(prediction, frame))
    count = len(job.radii) + 1
    dice = np.full((len(job.classes.labels), count), np.nan)
    for number, values in enumerate(job.classes.values.values()):
        predicted, correct = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for label, voxels, millimetres in distances:
            if label in values:
                # the smallest radius that keeps a voxel; every greater one keeps it too
                smallest = np.searchsorted(job.radii, millimetres - SLACK)
                true = np.isin(ordered[tuple(voxels.T)], values)
                predicted += np.bincount(smallest, minlength=count)
                correct += np.bincount(smallest[true], minlength=count)
        total = int(np.isin(reference, values).sum()) + np.cumsum(predicted)
        present = total > 0
        dice[number, present] = 2 * np.cumsum(correct)[present] / total[present]
    return dice


def _best_radius(curves: Sequence[Curves], radii: Sequence[float]) -> tuple[float, dict[str, Any]]:
    """The radius of the greatest mean Dice, and the Dice at each.

    The mean is that of `locctx evaluate`: over the cases of a class, then over the classes; what is in neither mask is
    left out. Of equal radii the greatest is taken, as it removes least.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")  # NaN is the answer
        means = np.nanmean(np.nanmean(np.concatenate(list(curves)), axis=0), axis=0)
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
