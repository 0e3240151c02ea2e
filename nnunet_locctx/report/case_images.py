"""Slices of scans with truth and predictions, turned the way radiologists look at them."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_locctx.nnunet.data.dataset_json import read_dataset_json
from nnunet_locctx.nnunet.data.reading import read_scan
from nnunet_locctx.report.results import Results
from nnunet_locctx.viewing import SOFT_TISSUE, Slice, grey_levels, per_plane, widest_view

MARGIN_MM = 25.0


@dataclass(frozen=True)
class CaseSlice:
    """One slice of a case, rows from top to bottom.

    Attributes:
        case: Its name.
        image: (rows, columns) scaled to 0..1.
        truth: (rows, columns) labels.
        predictions: Method -> labels, or None if there is no readable prediction.
        spacing: mm of a row and of a column.
        letters: What lies left, right, above and below; empty if the scan does not say.
        name: Such as ``axial, slice 12 of 40``.
        problems: What could not be read.
    """

    case: str
    image: npt.NDArray[np.floating]
    truth: npt.NDArray[np.integer]
    predictions: Mapping[str, npt.NDArray[np.integer] | None]
    spacing: tuple[float, float]
    letters: tuple[str, ...]
    name: str
    problems: tuple[str, ...]


def read_case(study: Results, case: str, fold: int, runs: pd.DataFrame) -> CaseSlice:
    """The slice of a validation case with the most true foreground, cropped to what is labelled or predicted.

    Args:
        study: The study.
        case: Name of the case.
        fold: In which it was validated.
        runs: Whose predictions to read: rows of :attr:`Results.runs`.

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
        piece = Slice(frame, view, int(np.argmax(counts)) if counts.any() else shape[fixed] // 2)
        problems: list[str] = []
        planes: dict[str, npt.NDArray[np.integer] | None] = {}
        for run in runs.itertuples():
            file = Path(run.model) / f"fold_{fold}" / "validation" / f"{case}{ending}"
            try:
                labels = read_scan([file], segmentation=True).labels
                if labels.shape != shape:
                    raise ValueError(f"has the shape {labels.shape}, the truth {shape}")
                planes[run.method] = piece.of(labels)
            except ValueError as error:
                planes[run.method] = None
                problems.append(f"{run.method}: {error}")
    true_plane = piece.of(truth)
    marked = np.any([plane > 0 for plane in (true_plane, *planes.values()) if plane is not None], axis=0)
    box = _box(marked, piece.spacing)
    low, high = SOFT_TISSUE if _is_ct(study) else grey_levels(scan.voxels[0])
    grey = np.clip((np.nan_to_num(piece.of(scan.voxels[0])) - low) / (high - low), 0, 1)
    place = f"slice {piece.index + 1} of {shape[fixed]}" if shape[fixed] > 1 else "2D"
    return CaseSlice(
        case=case,
        image=grey[box],
        truth=true_plane[box],
        predictions={name: None if plane is None else plane[box] for name, plane in planes.items()},
        spacing=piece.spacing,
        letters=piece.letters,
        name=f"{view.name}, {place}" if frame.has_geometry else f"{place}, as stored",
        problems=tuple(problems),
    )


def _files(raw: Path, case: str) -> tuple[Path, Path, str]:
    dataset = read_dataset_json(raw)
    ending = str(dataset["file_ending"])
    entry = dataset.get("dataset", {}).get(case)
    if entry:  # nnU-Net's other way to name files, relative to the dataset
        image, label = (raw / os.path.expandvars(file) for file in (entry["images"][0], entry["label"]))
        return image.resolve(), label.resolve(), ending
    return raw / "imagesTr" / f"{case}_0000{ending}", raw / "labelsTr" / f"{case}{ending}", ending


def _is_ct(study: Results) -> bool:
    channels = study.settings.get("channels") or {}
    first = channels.get("0") if isinstance(channels, Mapping) else next(iter(channels), "")
    return str(first).upper() == "CT"


def _box(marked: npt.NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """Around what is marked, with a margin; everything if nothing is."""
    if not marked.any():
        return slice(None), slice(None)
    sides = []
    for axis, size in enumerate(spacing):
        places = np.flatnonzero(marked.any(axis=1 - axis))
        margin = round(MARGIN_MM / size)
        sides.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin))
    return sides[0], sides[1]
