"""Slices of scans with truth and predictions, turned the way radiologists look at them."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame
from nnunet_locctx.nnunet.data.raw_scans import read_dataset_json
from nnunet_locctx.nnunet.data.reading import read_any
from nnunet_locctx.report.results import Results

LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Per patient axis (R, A, S): where it begins and where it ends."""

IN_PLANE = {2: (1, 0), 1: (2, 0), 0: (2, 1)}
"""Fixed patient axis -> the patient axes that run upwards and to the left in the picture."""

VIEW_NAMES = {2: "axial", 1: "coronal", 0: "sagittal"}
MARGIN_MM = 25.0
SOFT_TISSUE = (-160.0, 240.0)
"""Window of CT in HU."""


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
    image: npt.NDArray[np.float64]
    truth: npt.NDArray[np.int64]
    predictions: Mapping[str, npt.NDArray[np.int64] | None]
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
    data, properties = read_any([image_file])
    truth = _read_labels(label_file)
    image = data[0]
    if truth.shape != image.shape:
        raise ValueError(f"the label of {case} has the shape {truth.shape}, its image {image.shape}")
    turn = _Turn(properties, image.shape, truth)
    problems: list[str] = []
    planes: dict[str, npt.NDArray[np.int64] | None] = {}
    for run in runs.itertuples():
        file = Path(run.model) / f"fold_{fold}" / "validation" / f"{case}{ending}"
        try:
            found = _read_labels(file)
            if found.shape != truth.shape:
                raise ValueError(f"has the shape {found.shape}, the truth {truth.shape}")
            planes[run.method] = turn.plane(found)
        except ValueError as error:
            planes[run.method] = None
            problems.append(f"{run.method}: {error}")
    true_plane = turn.plane(truth)
    marked = np.any([plane > 0 for plane in (true_plane, *planes.values()) if plane is not None], axis=0)
    box = _box(marked, turn.spacing)
    return CaseSlice(
        case=case,
        image=_window(image, turn.plane(image), _is_ct(study))[box],
        truth=true_plane[box],
        predictions={name: None if plane is None else plane[box] for name, plane in planes.items()},
        spacing=turn.spacing,
        letters=turn.letters,
        name=turn.name,
        problems=tuple(problems),
    )


class _Turn:
    """Takes a slice out of volumes and turns it: the patient's right at the left, anterior (or superior) on top."""

    def __init__(
        self, properties: Mapping[str, Any], shape: tuple[int, ...], truth: npt.NDArray[np.int64]
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a scan without a direction is drawn as it is stored
            frame = Frame.as_read(properties, shape)
        axes = frame.array_axes
        # a 2D image has only one slice; a volume is cut across the body
        view = 2 if 1 not in shape else axes.index(shape.index(1))
        if not frame.has_geometry:
            view, axes = 2, (2, 1, 0)
            if 1 in shape and shape[0] != 1:
                axes = (2, 0, 1) if shape[1] == 1 else (1, 0, 2)
        row, column = IN_PLANE[view]
        cosines = PATIENT_FROM_LPS @ frame.affine_lps[:3, :3]
        self.fixed, self._row, self._column = axes[view], axes[row], axes[column]
        self._up = frame.has_geometry and bool(cosines[row, self._row] > 0)
        self._left = frame.has_geometry and bool(cosines[column, self._column] > 0)
        counts = (truth > 0).sum(axis=tuple(axis for axis in range(3) if axis != self.fixed))
        self._index = int(np.argmax(counts)) if counts.any() else shape[self.fixed] // 2
        spacing = frame.spacing
        self.spacing = (float(spacing[self._row]), float(spacing[self._column]))
        self.letters: tuple[str, ...] = ()
        if frame.has_geometry:
            self.letters = (*LETTERS[column][::-1], *LETTERS[row][::-1])
        place = f"slice {self._index + 1} of {shape[self.fixed]}" if shape[self.fixed] > 1 else "2D"
        self.name = f"{VIEW_NAMES[view]}, {place}" if frame.has_geometry else f"{place}, as stored"

    def plane(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(rows, columns) of a volume (array axes)."""
        plane = np.take(volume, self._index, axis=self.fixed)
        if self._row > self._column:
            plane = plane.T
        return plane[:: -1 if self._up else 1, :: -1 if self._left else 1]


def _files(raw: Path, case: str) -> tuple[Path, Path, str]:
    dataset = read_dataset_json(raw)
    ending = str(dataset["file_ending"])
    entry = dataset.get("dataset", {}).get(case)
    if entry:  # nnU-Net's other way to name files, relative to the data set
        image, label = (raw / os.path.expandvars(file) for file in (entry["images"][0], entry["label"]))
        return image.resolve(), label.resolve(), ending
    return raw / "imagesTr" / f"{case}_0000{ending}", raw / "labelsTr" / f"{case}{ending}", ending


def _read_labels(file: Path) -> npt.NDArray[np.int64]:
    data, _ = read_any([file], segmentation=True)
    return np.asarray(np.rint(data[0]), dtype=np.int64)


def _is_ct(study: Results) -> bool:
    channels = study.settings.get("channels") or {}
    first = channels.get("0") if isinstance(channels, Mapping) else next(iter(channels), "")
    return str(first).upper() == "CT"


def _window(volume: npt.NDArray[Any], plane: npt.NDArray[Any], is_ct: bool) -> npt.NDArray[np.float64]:
    finite = volume[np.isfinite(volume)]
    low, high = SOFT_TISSUE if is_ct else (float(end) for end in np.percentile(finite, (0.5, 99.5)))
    if high <= low:
        high = low + 1
    return np.asarray(np.clip((np.nan_to_num(plane) - low) / (high - low), 0, 1), dtype=np.float64)


def _box(marked: npt.NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """Around what is marked, with a margin; everything if nothing is."""
    if not marked.any():
        return slice(None), slice(None)
    found = []
    for axis, size in enumerate(spacing):
        places = np.flatnonzero(marked.any(axis=1 - axis))
        margin = round(MARGIN_MM / size)
        found.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin))
    return found[0], found[1]
