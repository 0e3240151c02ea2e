"""Reads slices of scans with truth and predictions, in radiological view."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_locctx.nnunet.data.dataset_json import read_dataset_json
from nnunet_locctx.nnunet.data.reading import read_scan
from nnunet_locctx.report.results import Results
from nnunet_locctx.viewing import Slice, grey_levels, per_plane, widest_view

MARGIN_MM = 25.0
MOST_SLICES = 24
Labels = npt.NDArray[np.integer]


@dataclass(frozen=True)
class CaseSlices:
    """N slices of a case.

    Attributes:
        case: Name of the case.
        image: (N, rows, columns) scaled to 0..1.
        truth: (N, rows, columns) labels.
        predictions: Method -> (N, rows, columns) labels, or None if there is no readable prediction.
        spacing: mm of a row and of a column.
        letters: Patient directions at the left, right, top and bottom edge; empty if not known.
        names: Name of each slice, such as ``axial, slice 12 of 40``.
        fullest: Number of the slice with the most true foreground.
        problems: Sentences on predictions that could not be read.
    """

    case: str
    image: npt.NDArray[np.floating]
    truth: Labels
    predictions: Mapping[str, Labels | None]
    spacing: tuple[float, float]
    letters: tuple[str, ...]
    names: tuple[str, ...]
    fullest: int
    problems: tuple[str, ...]


def read_case(study: Results, case: str, fold: int, runs: pd.DataFrame) -> CaseSlices:
    """Reads slices of a validation case, cropped to labelled and predicted voxels; at most :data:`MOST_SLICES`.

    Args:
        study: The study.
        case: Name of the case.
        fold: The fold that validates the case.
        runs: Rows of :attr:`Results.runs` whose predictions are read.

    Raises:
        ValueError: Image or truth cannot be read, or do not fit together.
    """
    raw = Path(str(study.settings["dataset"].get("raw", "")))
    image_file, label_file, ending = _files(raw, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a scan without a direction is drawn as it is stored
        scan = read_scan([image_file])
        truth = read_scan([label_file], segmentation=True).labels
        frame, shape = scan.frame, scan.frame.shape
        if truth.shape != shape:
            raise ValueError(f"the label of {case} has the shape {truth.shape}, its image {shape}")
        view = widest_view(frame)
        fixed = frame.array_axes[view.fixed]
        counts = per_plane(truth > 0)[fixed]
        fullest = int(np.argmax(counts)) if counts.any() else shape[fixed] // 2
        plane = Slice(frame, view, fullest)

        def across(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return plane.turn(np.moveaxis(volume, fixed, 0))

        problems: list[str] = []
        stacks: dict[str, Labels | None] = {}
        for run in runs.itertuples():
            file = Path(run.model) / f"fold_{fold}" / "validation" / f"{case}{ending}"
            try:
                labels = read_scan([file], segmentation=True).labels
                if labels.shape != shape:
                    raise ValueError(f"has the shape {labels.shape}, the truth {shape}")
                stacks[run.method] = across(labels)
            except ValueError as error:
                stacks[run.method] = None
                problems.append(f"{run.method}: {error}")
    true_stack = across(truth)
    marked = np.any([stack > 0 for stack in (true_stack, *stacks.values()) if stack is not None], axis=0)
    box, chosen = _box(marked.any(axis=0), plane.spacing), _thinned(marked.any(axis=(1, 2)), fullest)
    # order the slices from feet to head, whatever their storage
    if frame.absolute_affine[view.fixed, fixed] < 0:
        chosen.reverse()
    channels = study.settings.get("channels") or {}
    low, high = grey_levels(scan.voxels[0], str(channels.get("0", "")))

    def cut(stack: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return stack[(chosen, *box)]

    names = [f"slice {index + 1} of {shape[fixed]}" if shape[fixed] > 1 else "2D" for index in chosen]
    return CaseSlices(
        case=case,
        image=np.clip((np.nan_to_num(cut(across(scan.voxels[0]))) - low) / (high - low), 0, 1),
        truth=cut(true_stack),
        predictions={name: None if stack is None else cut(stack) for name, stack in stacks.items()},
        spacing=plane.spacing,
        letters=plane.letters,
        names=tuple(f"{view.name}, {name}" if frame.has_geometry else f"{name}, as stored" for name in names),
        fullest=chosen.index(fullest),
        problems=tuple(problems),
    )


def _thinned(marked: npt.NDArray[np.bool_], fullest: int) -> list[int]:
    """Indices of equidistant slices from the first marked one to the last, including the fullest."""
    known = [*np.flatnonzero(marked).tolist(), fullest]
    step = -(-(max(known) - min(known) + 1) // MOST_SLICES)
    return list(range(fullest - (fullest - min(known)) // step * step, max(known) + 1, step))


def _files(raw: Path, case: str) -> tuple[Path, Path, str]:
    dataset = read_dataset_json(raw)
    ending = str(dataset["file_ending"])
    entry = dataset.get("dataset", {}).get(case)
    if entry:  # dataset.json may name the files, relative to the dataset
        image, label = (raw / os.path.expandvars(file) for file in (entry["images"][0], entry["label"]))
        return image.resolve(), label.resolve(), ending
    return raw / "imagesTr" / f"{case}_0000{ending}", raw / "labelsTr" / f"{case}{ending}", ending


def _box(marked: npt.NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """The bounding box of the marked pixels with a margin; the whole plane without any."""
    if not marked.any():
        return slice(None), slice(None)
    sides = []
    for axis, size in enumerate(spacing):
        places = np.flatnonzero(marked.any(axis=1 - axis))
        margin = round(MARGIN_MM / size)
        sides.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin))
    return sides[0], sides[1]
