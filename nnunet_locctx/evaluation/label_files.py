"""Folders of segmentations: lists, reads and checks their files."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.geometry import corner_distance
from nnunet_locctx.names import summarise
from nnunet_locctx.nnunet.data.dataset_json import checked_content, places_of_dataset_json, read_dataset_json
from nnunet_locctx.nnunet.data.reading import read_scan, share_not_finite
from nnunet_locctx.nnunet.data.workers import map_in_workers
from nnunet_locctx.scan import Scan

SAME_PLACE = 0.01
"""Voxels. Two grids are the same if their corners lie at most this far apart (headers are rounded)."""


@dataclass(frozen=True)
class Description:
    """A dataset as its ``dataset.json`` describes it.

    Attributes:
        content: The whole content.
        classes: The classes of its ``labels``.
        file: The file; None if the caller passed the content.
    """

    content: Mapping[str, Any]
    classes: Classes
    file: Path | None = None

    def list_files(self, folder: Path) -> dict[str, Path]:
        """Case -> segmentation of a folder.

        Raises:
            ValueError: The folder does not exist, or has no file with the dataset's ending.
        """
        ending = self.content["file_ending"]
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        cases = {
            file.name.removesuffix(ending): file
            for file in sorted(folder.iterdir())
            if file.name.endswith(ending) and not file.name.startswith(".") and file.is_file()
        }
        if not cases:
            raise ValueError(f"{folder} has no files that end in {ending}")
        return cases


def read_description(dataset_json: Path | Mapping[str, Any] | None, folders: Sequence[Path]) -> Description:
    """The dataset's description.

    Args:
        dataset_json: The file or its content; None: the first dataset.json in one of the folders, or one or two levels
            above. nnU-Net writes one to a folder of predictions, and to a model's folder, which is two levels above a
            fold's validation.
        folders: Folders to search.

    Raises:
        ValueError: There is no file, it cannot be read, or it lacks a needed entry.
    """
    needed = ("labels", "file_ending")
    file = None
    if isinstance(dataset_json, Mapping):
        content = checked_content(dataset_json, "dataset.json", needed)
    else:
        places = places_of_dataset_json(folders) if dataset_json is None else [dataset_json]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise ValueError(
                f"no dataset.json; looked for {', '.join(map(str, places))}. Give it: -d ID or --dataset-json FILE"
            )
        content = read_dataset_json(file, needed)
    return Description(content, Classes.from_labels(content["labels"]), file)


def read_labels(file: Path, reader: str) -> Scan:
    """Reads a segmentation. The frame of files without geometry (such as png) follows the array axes.

    Raises:
        ValueError: The file cannot be read, or its header is not usable.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_scan([file], reader, segmentation=True)


@dataclass(frozen=True)
class LabelFile:
    """A segmentation to be checked.

    Attributes:
        case: Name of the case.
        file: The file.
        reader: Class name of nnU-Net's reader.
        allowed: Label values it may hold.
    """

    case: str
    file: Path
    reader: str
    allowed: frozenset[int]

    def read(self) -> tuple[Scan | None, list[str]]:
        """The segmentation (None if it cannot be read) and a line for each of its problems."""
        try:
            scan = read_labels(self.file, self.reader)
        except ValueError as error:
            return None, [f"case {self.case}: {error}"]
        subject = f"case {self.case}: {self.file}"
        if len(scan.voxels) != 1:
            return scan, [f"{subject} has {len(scan.voxels)} channels, a segmentation has one"]
        values = np.unique(scan.voxels)
        if not np.isfinite(values).all() or share_not_finite(self.file):
            return scan, [f"{subject} has voxels that are NaN or infinite"]
        fractions = values[values != np.round(values)]
        if fractions.size:
            shown = ", ".join(f"{value:g}" for value in fractions[:5])
            return scan, [f"{subject} has voxels that are no whole numbers: {shown}"]
        unknown = sorted({int(value) for value in values} - self.allowed)
        if unknown:
            shown = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
            return scan, [f"{subject} has labels that dataset.json does not list there: {shown}"]
        return scan, []


def check_label_files(
    groups: Sequence[tuple[LabelFile, ...]], processes: int, failure: str, *, progress: bool
) -> None:
    """Reads all files and refuses them if one has a problem.

    Args:
        groups: A file alone, or the prediction and the reference of one case, which must have the same grid.
        processes: Worker processes.
        failure: Begins the error's message, such as ``"the files cannot be used"``.
        progress: Show a bar.

    Raises:
        ValueError: There are problems; the message has a line for each.
    """
    problems = map_in_workers(_problems, groups, processes, "checking" if progress else None)
    refuse([line for lines in problems for line in lines], failure)


def refuse(problems: Sequence[str], failure: str) -> None:
    """Raises ValueError with the problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ValueError(f"{failure}, {count}:\n{summarise(problems, 50)}")


def _problems(group: tuple[LabelFile, ...]) -> list[str]:
    scans, problems = zip(*(one.read() for one in group), strict=True)
    lines = [line for lines in problems for line in lines]
    if len(group) < 2 or None in scans:
        return lines
    predicted, true = (scan.frame for scan in scans)
    differ = f"case {group[0].case}: prediction and reference"
    if predicted.shape != true.shape:
        return [*lines, f"{differ} differ in shape, {predicted.shape} and {true.shape} (z, y, x)"]
    # along an axis of one voxel the corners do not show the voxel size
    sizes = np.abs(predicted.spacing - true.spacing).max() / predicted.spacing.min()
    distance = max(corner_distance(predicted, true), float(sizes))
    if distance > SAME_PLACE:
        lines.append(
            f"{differ} lie at different places, by up to {distance:.3g} voxels (at most {SAME_PLACE} allowed): "
            f"affines (index to mm, LPS) {predicted.affine_lps[:3].round(4).tolist()} and "
            f"{true.affine_lps[:3].round(4).tolist()}"
        )
    return lines
