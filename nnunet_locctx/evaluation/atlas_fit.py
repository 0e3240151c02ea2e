"""Makes an atlas from training labels and tunes its dilation on validation predictions.

A fold's validation cases are masked by an atlas of the fold's other cases, so that no case is tuned on that is in the
atlas. What a radius does to the Dice needs no masked files: it follows from how far each predicted voxel lies from its
class's cells.
"""

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_locctx.evaluation.atlas import Atlas, read_atlas, write_atlas
from nnunet_locctx.evaluation.atlas_cells import count_cells, keep_cells
from nnunet_locctx.evaluation.atlas_grid import Grid
from nnunet_locctx.evaluation.atlas_tuning import ValidationFold, best_radius, find_folds, tune
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
from nnunet_locctx.geometry import Frame
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers

RADII = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)
"""Radii in mm that are tried."""


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
    found = list_label_files(labels, description.file_ending)
    names = sorted(found) if cases is None else sorted(set(cases))
    refuse(
        [f"case {name} is not in {labels}" for name in names if name not in found],
        "training cases are missing",
    )
    if not names:
        raise ValueError("an atlas needs at least one case")
    folds = find_folds(validation, names, found, description.file_ending)
    reader = choose_reader(description.content, found[names[0]])
    used = sorted({*names, *(case for fold in folds for case in (*fold.training, *fold.cases))})
    stamps = {case: fingerprint(found[case]) for case in used}
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
    checks = [LabelFile(case, found[case], reader, allowed) for case in used]
    checks += [
        LabelFile(case, file, reader, classes.known, found[case], allowed)
        for fold in folds
        for case, file in fold.cases.items()
    ]
    refuse(check_label_files(checks, processes, progress=progress), "the files cannot be used")

    frames = map_in_workers(_frame, [(found[case], reader) for case in names], processes)
    bar = tqdm(frames, total=len(names), desc="sizes", unit="case", disable=not progress)
    common = Grid.median(list(bar), grid)
    kept = output.with_name(f".{output.stem}.cells")
    kept.mkdir(parents=True, exist_ok=True)
    values = tuple(sorted(classes.known - {0}))
    answers = keep_cells(
        {found[case]: stamps[case] for case in used}, reader, common, values, kept, processes
    )
    bar = tqdm(answers, total=len(used), desc="labels to grid", unit="case", disable=not progress)
    cells = dict(zip(used, bar, strict=True))

    def atlas_of(members: Sequence[str]) -> Atlas:
        return Atlas(
            common,
            tuple(members),
            count_cells([cells[one] for one in members], values),
            description.labels,
            threshold,
        )

    by_fold: list[Atlas] = [atlas_of(fold.training) for fold in folds]
    curves = tune(by_fold, folds, found, reader, classes, tried, kept, processes, progress)
    radius, table = best_radius(curves, tried) if folds else (tried[0], None)
    final = _finished(atlas_of(names), radius, history, table)
    if fold_atlases:
        for number, (fold, atlas) in enumerate(zip(folds, by_fold, strict=True)):
            others = [curve for at, curve in enumerate(curves) if at != number] or curves
            own, own_table = best_radius(others, tried) if radius_mm is None else (radius, table)
            write_atlas(_finished(atlas, own, history, own_table), files[fold.name])
    write_atlas(final, output)
    shutil.rmtree(kept)
    return final


def _finished(
    atlas: Atlas, radius: float, history: Mapping[str, Any], table: Mapping[str, Any] | None
) -> Atlas:
    return Atlas(
        atlas.grid,
        atlas.cases,
        atlas.cells,
        atlas.labels,
        atlas.threshold,
        radius,
        {**history, "tuning": table},
    )


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
