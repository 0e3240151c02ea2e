"""Makes an atlas from training labels and tunes its dilation on validation predictions.

For the tuning, a fold's validation cases are masked by an atlas of the other cases, so that no case is in its own
atlas. The Dice at each radius is computed without masked files, from the distance of each predicted voxel to the cells
of its class.
"""

import functools
import hashlib
import itertools
import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
    Description,
    LabelFile,
    check_label_files,
    read_description,
    read_labels,
    refuse,
)
from nnunet_locctx.files import file_digest, replacing
from nnunet_locctx.geometry import Frame
from nnunet_locctx.names import near_name
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers

RADII = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)
"""Default radii in mm for the tuning."""

Curves = npt.NDArray[np.float64]
"""(cases, classes, radii + 1) Dice, NaN where a class is in neither mask; the last entry is the Dice without a mask."""


@dataclass(frozen=True)
class _Fold:
    """A fold's validation predictions.

    Attributes:
        name: ``fold_N`` from the folder's path, or from its place among the folders.
        training: Names of the training cases: all cases that the fold does not validate.
        cases: Case -> predicted file.
    """

    name: str
    training: tuple[str, ...]
    cases: Mapping[str, Path]


def fit_atlas(
    labels: Path,
    output: Path,
    *,
    validation: Sequence[Path] = (),
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
    """Makes an atlas and writes it, unless the file already holds this atlas.

    Args:
        labels: Folder of the training labels.
        output: File of the atlas (``.npz``).
        validation: Folders of predictions of validation cases, one for each fold, to tune the dilation on.
        cases: The training cases; None: all of `labels`.
        radius_mm: The dilation in mm; None: it is tuned.
        radii: Dilations for the tuning, mm on the grid, ascending.
        threshold: A cell counts if more than this share of the training cases has the class there.
        grid: Cells along (R, A, S); None: the cases' median size in voxels.
        fold_atlases: Also write each fold's atlas beside the file, as STEM_FOLD.npz, for its validation cases. Its
            radius is tuned on the other folds, or on its own predictions if there is only one fold.
        dataset_json: See :func:`~nnunet_locctx.evaluation.folders.evaluate_folders`.
        processes: Worker processes.
        progress: Show bars.

    Raises:
        ValueError: An argument or a file is not usable; nothing is written.
    """
    if output.suffix != ".npz":
        raise ValueError(f"an atlas is a .npz file, got {output}")
    if (radius_mm is None) != bool(validation):
        raise ValueError("an atlas needs either validation predictions to tune its radius on, or a radius")
    tried = [float(radius) for radius in (radii if radius_mm is None else [radius_mm])]
    ascending = all(a < b for a, b in itertools.pairwise([*tried, math.inf]))
    if not tried or not 0 <= tried[0] < math.inf or not ascending or len(tried) > 200:
        raise ValueError(f"radii must be numbers of mm from 0, ascending, got {tried}")
    if not 0 <= threshold < 1:
        raise ValueError(f"the threshold is a share of the cases, from 0 to below 1, got {threshold}")
    description = read_description(dataset_json, (labels, *validation))
    classes = description.classes
    references = description.list_files(labels)
    names = sorted(references) if cases is None else sorted(set(cases))
    refuse(
        [
            f"case {name} is not in {labels}{near_name(name, references)}"
            for name in names
            if name not in references
        ],
        "training cases are missing",
    )
    if not names:
        raise ValueError("an atlas needs at least one case")
    folds = _find_folds(validation, names, references, description)
    reader = choose_reader(description.content, references[names[0]])
    used = sorted({*names, *(case for fold in folds for case in fold.cases)})
    stamps = {case: file_digest(references[case]) for case in used}
    history: dict[str, Any] = {
        "whole": True,  # earlier versions also took files that were cut off
        "training": {case: stamps[case] for case in names},
        "validation": [
            {
                "name": fold.name,
                "predictions": {case: file_digest(file) for case, file in fold.cases.items()},
                "references": {case: stamps[case] for case in fold.cases},
                "training": list(fold.training),
            }
            for fold in folds
        ],
        "radii_mm": tried,
        "grid": None if grid is None else list(grid),
    }
    files = {fold.name: output.with_name(f"{output.stem}_{fold.name}.npz") for fold in folds}
    named_labels = description.content["labels"]
    origin = json.loads(json.dumps([history, threshold, dict(named_labels)]))
    existing = _existing([output, *(files.values() if fold_atlases else [])], origin, radius_mm)
    if existing is not None:
        return existing
    known = {case: LabelFile(case, references[case], reader, classes.in_references) for case in used}
    pairs = [
        (LabelFile(case, file, reader, classes.known), known[case])
        for fold in folds
        for case, file in fold.cases.items()
    ]
    groups = [*((one,) for one in known.values()), *pairs]
    check_label_files(groups, processes, "the files cannot be used", progress=progress)

    def title(text: str) -> str | None:
        return text if progress else None

    measure = functools.partial(_frame, reader=reader)
    frames = map_in_workers(measure, [references[case] for case in names], processes, title("sizes"))
    common = Grid.median(list(frames), grid)
    kept = output.with_name(f".{output.stem}.cells")
    kept.mkdir(parents=True, exist_ok=True)
    values = tuple(sorted(classes.known - {0}))
    keep = functools.partial(_keep_cells, reader=reader, grid=common, labels=values, folder=kept)
    jobs = [(references[case], stamps[case]) for case in used]
    cells = dict(zip(used, map_in_workers(keep, jobs, processes, title("labels to grid")), strict=True))

    def atlas_of(members: Sequence[str]) -> Atlas:
        counted = _count_cells([cells[case] for case in members], values, common)
        return Atlas(common, tuple(members), counted, named_labels, threshold)

    by_fold = [atlas_of(fold.training) for fold in folds]
    tuning_jobs = []
    for number, (fold, atlas) in enumerate(zip(folds, by_fold, strict=True)):
        write_atlas(atlas, kept / f"atlas_{number}.npz")
        tuning_jobs += [
            (kept / f"atlas_{number}.npz", file, references[case]) for case, file in fold.cases.items()
        ]
    tune = functools.partial(_dice_at_radii, radii=tried, reader=reader, classes=classes)
    dice = map_in_workers(tune, tuning_jobs, processes, title("tuning"))
    curves: list[Curves] = [np.array([next(dice) for _ in fold.cases]) for fold in folds]
    if fold_atlases:
        for number, (fold, atlas) in enumerate(zip(folds, by_fold, strict=True)):
            others = [curve for place, curve in enumerate(curves) if place != number] or curves
            radius, table = _best_radius(others, tried)
            tuned = replace(atlas, radius_mm=radius, history={**history, "tuning": table})
            write_atlas(tuned, files[fold.name])
    radius, final_table = _best_radius(curves, tried) if folds else (tried[0], None)
    final = replace(atlas_of(names), radius_mm=radius, history={**history, "tuning": final_table})
    write_atlas(final, output)
    shutil.rmtree(kept)
    return final


def _find_folds(
    validation: Sequence[Path], names: Sequence[str], references: Mapping[str, Path], description: Description
) -> list[_Fold]:
    """The folds with their cases."""
    folds: list[_Fold] = []
    for number, folder in enumerate(validation):
        cases = description.list_files(folder)
        refuse(
            [f"case {case} of {folder} has no label" for case in cases if case not in references],
            "labels are missing",
        )
        training = tuple(name for name in names if name not in cases)
        if not training:
            raise ValueError(f"no training cases for those in the validation folder {folder}")
        parents = (folder.resolve().name, folder.resolve().parent.name)
        name = next((part for part in parents if part.startswith("fold_")), f"fold_{number}")
        folds.append(_Fold(name, training, cases))
    if len({fold.name for fold in folds}) < len(folds):
        folds = [replace(fold, name=f"fold_{number}") for number, fold in enumerate(folds)]
    return folds


def _existing(files: Sequence[Path], origin: Any, radius_mm: float | None) -> Atlas | None:
    """The atlas of the first file, if all files were made from the same labels, predictions and options; else None.

    Args:
        files: The atlas and those of the folds.
        origin: History without the tuning, threshold and labels, as read back from JSON.
        radius_mm: The dilation in mm; None: it is tuned.
    """
    try:
        atlases = [read_atlas(file) for file in files]
    except ValueError:
        return None
    for atlas in atlases:
        history = {key: value for key, value in atlas.history.items() if key != "tuning"}
        if [history, atlas.threshold, dict(atlas.labels)] != origin:
            return None
    return atlases[0] if radius_mm in (None, atlases[0].radius_mm) else None


def _frame(file: Path, reader: str) -> Frame:
    return read_labels(file, reader).frame


def _keep_cells(job: tuple[Path, str], reader: str, grid: Grid, labels: Sequence[int], folder: Path) -> Path:
    """Writes the cells of a case to the folder, unless an earlier, interrupted run did so; returns their file.

    `job` is the case's label file and its fingerprint.
    """
    file, stamp = job
    name = hashlib.sha256(repr((stamp, grid, labels)).encode()).hexdigest()[:32]
    kept = folder / f"{name}.npz"
    if not kept.is_file():
        scan = read_labels(file, reader)
        cells = occupied_cells(scan.labels, scan.frame, grid, labels)
        arrays: dict[str, Any] = {str(label): indices for label, indices in cells.items()}
        with replacing(kept) as draft:
            np.savez(draft, **arrays)
    return kept


def _count_cells(
    files: Sequence[Path], labels: Sequence[int], grid: Grid
) -> dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Label -> the cells (flat index) of all cases, and the number of cases for each."""
    counted = {}
    for label in labels:
        counts = np.zeros(grid.shape, dtype=np.int64).ravel()
        for file in files:
            with np.load(file) as stored:
                counts[stored[str(label)]] += 1
        cells = np.flatnonzero(counts).astype(np.int64)
        counted[label] = (cells, counts[cells])
    return counted


def _dice_at_radii(
    files: tuple[Path, Path, Path], radii: Sequence[float], reader: str, classes: Classes
) -> Curves:
    """(classes, radii + 1) Dice of one prediction; `files` are the atlas, the prediction and its reference."""
    mask = mask_of_file(files[0], radii[-1])
    scan = read_labels(files[2], reader)
    prediction, reference = read_labels(files[1], reader).labels, scan.labels
    if classes.ignore is not None:
        prediction[reference == classes.ignore] = 0
    ordered, _ = patient_order(reference, scan.frame)
    distances = list(mask.distances(prediction, scan.frame))
    count = len(radii) + 1
    dice = np.full((len(classes.labels), count), np.nan)
    for number, values in enumerate(classes.values.values()):
        predicted, correct = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for label, voxels, millimetres in distances:
            if label in values:
                # the smallest radius that keeps a voxel; all greater radii keep it too
                smallest = np.searchsorted(radii, millimetres - SLACK)
                true = np.isin(ordered[tuple(voxels.T)], values)
                predicted += np.bincount(smallest, minlength=count)
                correct += np.bincount(smallest[true], minlength=count)
        total = int(np.isin(reference, values).sum()) + np.cumsum(predicted)
        present = total > 0
        dice[number, present] = 2 * np.cumsum(correct)[present] / total[present]
    return dice


def _best_radius(curves: Sequence[Curves], radii: Sequence[float]) -> tuple[float, dict[str, Any]]:
    """The radius of the greatest mean Dice, and the Dice at each.

    The mean is computed as in `locctx evaluate`: over the cases of a class, then over the classes, without the classes
    that are in neither mask. Of radii with equal Dice the greatest is taken, as it removes least.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")  # NaN is the answer
        means = np.nanmean(np.nanmean(np.concatenate(list(curves)), axis=0), axis=0)
    tried = np.nan_to_num(means[:-1], nan=-1.0)
    best = len(tried) - 1 - int(np.argmax(tried[::-1] >= tried.max() - 1e-12))
    *masked, unmasked = [None if np.isnan(value) else float(value) for value in means]
    table = {
        "cases": sum(len(curve) for curve in curves),
        "foreground_dice": {f"{radius:g}": value for radius, value in zip(radii, masked, strict=True)},
        "foreground_dice_without_mask": unmasked,
        "radius_mm": float(radii[best]),
    }
    return float(radii[best]), table
